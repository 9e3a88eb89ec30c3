"""The DuckDB side of the journal: one file, filled in batches, one transaction at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mia_fast.errors import JournalError
from mia_fast.journal.schema import TABLES, Table, to_json
from mia_fast.journal.segments import Row, sync, sync_folder

if TYPE_CHECKING:
    import duckdb
    import polars as pl

_SETTINGS: Final = (
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET checkpoint_threshold = '1TB'",  # the writer checkpoints when it chooses to
    "PRAGMA disable_checkpoint_on_shutdown",  # a forked child that ends must not touch its parent's file
    "SET enable_progress_bar = false",
    "SET memory_limit = '1GB'",  # beyond it sorts spill to mia.duckdb.tmp: the engine's memory is not the journal's
    "SET TimeZone = 'UTC'",
    "SET enable_external_access = false",  # last: SQL sees this database and no other file
)
_DAMAGE: Final = (
    "corrupt",
    "checksum",
    "not a valid duckdb",
    "could not read enough bytes",
    "failure while replaying wal",
    "failed to deserialize",
    "serialization error",
    "internal error",
)
_NOT_DAMAGE: Final = ("version number", "no space left", "could not write", "file too large", "permission denied")
CONFLICT: Final = "JOURNAL_KEY_CONFLICT"


class DatabaseDamagedError(JournalError):
    """The file is there but DuckDB finds it broken."""


@dataclass
class Inserted:
    """What became of a batch."""

    rows: int = 0
    repeated: int = 0
    refused: list[str] = field(default_factory=list)


def is_damage(error: BaseException) -> bool:
    """Does DuckDB complain about the content of its file (and not about the disk or a lock)?"""
    text = str(error).lower()
    return any(sign in text for sign in _DAMAGE) and not any(sign in text for sign in _NOT_DAMAGE)


class Database:
    """An open ``mia.duckdb``. The writer thread inserts; any thread may ask for a :meth:`cursor`."""

    def __init__(self, path: Path) -> None:
        """Open the file, or create it whole; bring its tables up to today's columns.

        Raises
        ------
        DatabaseDamagedError
            The content is broken.
        JournalError
            It cannot be opened for another reason: locked, not permitted, of a newer DuckDB, disk full.
        """
        import duckdb

        self.path = path
        try:
            if not path.exists():
                self._create()
            self._root = self._connect(path)
            self._writer = self._root.cursor()
            ((self.drained,),) = self._writer.execute("SELECT drained FROM journal_state").fetchall()
            self._upgrade()
        except JournalError:
            self.close()
            raise
        except (duckdb.Error, OSError, ValueError) as error:
            self.close()
            if is_damage(error) or isinstance(error, ValueError | duckdb.CatalogException):
                raise DatabaseDamagedError(f"is damaged ({first_line(error)})", where=str(path)) from error
            raise JournalError(
                f"cannot be opened ({first_line(error)})",
                where=str(path),
                hint="close the program that holds the file, or free disk space, or restore the permissions",
                then="the file was left as it is and nothing was started",
            ) from error

    @staticmethod
    def _connect(path: Path) -> duckdb.DuckDBPyConnection:
        import duckdb

        connection = duckdb.connect(str(path), config={"threads": 1})
        for setting in _SETTINGS:
            connection.execute(setting)
        return connection

    def _create(self) -> None:
        """Under another name first: a crash in here must not leave half a database behind."""
        fresh = self._fresh(self.path)
        connection = self._connect(fresh)
        try:
            self._fill_empty(connection)
            connection.execute("CHECKPOINT")
        finally:
            connection.close()
        fresh.replace(self.path)
        sync_folder(self.path.parent)

    @staticmethod
    def _fresh(path: Path) -> Path:
        """The name a new file is made under; what an earlier crash left there is removed."""
        fresh = path.with_name(path.name + ".new")
        fresh.unlink(missing_ok=True)
        fresh.with_name(fresh.name + ".wal").unlink(missing_ok=True)
        return fresh

    @staticmethod
    def _fill_empty(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("CREATE TABLE journal_state (drained BIGINT NOT NULL, purged BIGINT NOT NULL DEFAULT 0)")
        connection.execute("INSERT INTO journal_state (drained) VALUES (0)")
        for table in TABLES.values():
            connection.execute(_create_sql(table))

    def _upgrade(self) -> None:
        found: dict[str, dict[str, str]] = {}
        for table, column, kind in self._writer.execute(
            "SELECT table_name, column_name, data_type FROM information_schema.columns"
        ).fetchall():
            found.setdefault(table, {})[column] = kind
        if "purged" not in found["journal_state"]:
            self._writer.execute("ALTER TABLE journal_state ADD COLUMN purged BIGINT DEFAULT 0")
        for name, table in TABLES.items():
            if name not in found:
                self._writer.execute(_create_sql(table))
                continue
            for column in table.columns:
                kind = found[name].get(column.name)
                if kind is None:
                    self._writer.execute(f'ALTER TABLE "{name}" ADD COLUMN "{column.name}" {column.kind.duckdb}')
                elif kind != column.kind.duckdb:
                    raise JournalError(
                        f"{name}.{column.name} is {kind}, this version wants {column.kind.duckdb}",
                        where=str(self.path),
                        hint="open it with the version of mia-fast that wrote it, or start in another workspace",
                        then="the file was left as it is",
                    )

    def insert(self, rows: Sequence[Row], upto: int) -> Inserted:
        """Insert the rows and remember that all up to the sequence number ``upto`` are in, in one transaction.

        Rows whose key is already there are not inserted. If such a row differs from the one kept,
        an alert with the whole refused row takes its place.

        Raises
        ------
        duckdb.Error
            Nothing of the batch was inserted, or the commit itself failed: then only a new
            connection can tell, by :attr:`drained`.
        """
        by_table: dict[str, list[Row]] = {}
        for row in rows:
            by_table.setdefault(row[1], []).append(row)
        result = Inserted()
        execute = self._writer.execute
        execute("BEGIN")
        try:
            alerts = by_table.pop("alerts", [])
            for name, group in by_table.items():
                alerts += self._insert(TABLES[name], group, result)
            if alerts:
                self._insert(TABLES["alerts"], alerts, result)
            execute("UPDATE journal_state SET drained = ?", [upto])
            execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        self.drained = upto
        return result

    def _insert(self, table: Table, rows: list[Row], result: Inserted) -> list[Row]:
        """Insert rows of one table; the alerts for those it refused."""
        sequences = [row[0] for row in rows]
        columns = table.settled(list(zip(*(row[2] for row in rows), strict=True)))
        names = ", ".join(f'"{name}"' for name in ("sequence", *table.names))
        self._writer.register("batch", _frame(table, sequences, columns))
        try:
            inserted = self._insert_batch(table, names)
            result.rows += inserted
            if inserted == len(rows):
                return []
            result.repeated += len(rows) - inserted
            same = " AND ".join(f'kept."{name}" = b."{name}"' for name in table.key)
            differs = " OR ".join(f'kept."{name}" IS DISTINCT FROM b."{name}"' for name in table.names)
            conflicts = self._writer.execute(
                f'SELECT b.sequence, kept.sequence FROM batch b JOIN "{table.name}" kept ON {same} '  # noqa: S608
                f"WHERE kept.sequence <> b.sequence AND ({differs}) ORDER BY b.sequence"
            ).fetchall()
        finally:
            self._writer.unregister("batch")
        if table.name == "alerts":
            return []  # an alert about an alert would never end; the first one stands
        given = dict(zip(sequences, zip(*columns, strict=True), strict=True))
        result.repeated -= len(conflicts)
        alerts = [self._conflict(table, sequence, kept, given[sequence]) for sequence, kept in conflicts]
        result.refused += [str(values[TABLES["alerts"].names.index("message")]) for _, _, values in alerts]
        return alerts

    def _insert_batch(self, table: Table, names: str) -> int:
        """Insert the registered batch; how many rows went in.

        Rows without a full key take a plain INSERT: within one statement ON CONFLICT holds nulls
        equal (DuckDB 2.0.0), although its unique index does not, and would drop all but one of them.
        """
        insert = f'INSERT INTO "{table.name}" ({names}) SELECT {names} FROM batch'  # noqa: S608 - declared names
        if not table.key:
            ((count,),) = self._writer.execute(insert).fetchall()
            return int(count)
        full = " AND ".join(f'"{name}" IS NOT NULL' for name in table.key)
        ((free,),) = self._writer.execute(f"{insert} WHERE NOT ({full})").fetchall()
        ((keyed,),) = self._writer.execute(f"{insert} WHERE {full} ON CONFLICT DO NOTHING").fetchall()
        return int(free) + int(keyed)

    @staticmethod
    def _conflict(table: Table, sequence: int, kept: int, values: Sequence[Any]) -> Row:
        row = dict(zip(table.names, values, strict=True))
        refused = {key: value.hex() if isinstance(value, bytes) else value for key, value in row.items()}
        key = " ".join(f"{name}={row[name]}" for name in table.key)
        alert = {
            "timestamp": row["timestamp"],
            "priority": 4,
            "code": CONFLICT,
            "message": f"{CONFLICT}: table={table.name} {key} kept_sequence={kept} refused_sequence={sequence}",
            "source": "journal",
            "detail": to_json(refused),
        }
        return sequence, "alerts", TABLES["alerts"].values(alert)

    def advance(self, upto: int) -> None:
        """Remember that nothing up to ``upto`` is to come any more."""
        self._writer.execute("UPDATE journal_state SET drained = ?", [upto])
        self.drained = upto

    def checkpoint(self) -> None:
        """Move what the write-ahead log holds into the database file."""
        self._writer.execute("CHECKPOINT")

    def purge(self, table: Table, before_ns: int) -> int:
        """Delete the rows of a table whose timestamp lies before the instant; how many."""
        self._writer.execute("BEGIN")
        try:
            ((count,),) = self._writer.execute(
                f'DELETE FROM "{table.name}" WHERE timestamp < make_timestamp_ns(?)',  # noqa: S608 - declared names
                [before_ns],
            ).fetchall()
            if count:  # what was exported before holds rows that are gone now
                self._writer.execute("UPDATE journal_state SET purged = purged + 1")
            self._writer.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        return int(count)

    def wasted_share(self) -> float:
        """Which share of the file is free or held by deleted rows (DuckDB frees only whole row groups), about."""
        ((blocks, free),) = self._writer.execute(
            "SELECT total_blocks, free_blocks FROM pragma_database_size()"
        ).fetchall()
        stored = live = 0
        for name in TABLES:
            ((held, left),) = self._writer.execute(
                f"SELECT (SELECT coalesce(sum(count), 0) FROM pragma_storage_info('{name}') "  # noqa: S608
                "WHERE column_name = 'sequence' AND segment_type = 'BIGINT'), "
                f'(SELECT count(*) FROM "{name}")'
            ).fetchall()
            stored, live = stored + int(held), live + int(left)
        empty = free / max(blocks, 1)
        dead = 1.0 - live / stored if stored else 0.0
        return float(empty + (1.0 - empty) * max(dead, 0.0))

    def compacted(self) -> Database:
        """The same database in a new file without free blocks, which takes the old one's place; closes this one.

        A crash leaves the old file or the new one under the name, whole.
        """
        import duckdb

        self.checkpoint()
        self.close()
        fresh = self._fresh(self.path)
        connection = duckdb.connect(str(fresh), config={"threads": 1})
        try:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET memory_limit = '1GB'")
            old = str(self.path).replace("'", "''")
            connection.execute(f"ATTACH '{old}' AS old (READ_ONLY)")
            self._fill_empty(connection)
            connection.execute(
                "UPDATE journal_state SET drained = s.drained, purged = s.purged FROM old.journal_state s"
            )
            for name in TABLES:
                connection.execute(f'INSERT INTO "{name}" BY NAME SELECT * FROM old."{name}" ORDER BY sequence')  # noqa: S608
            connection.execute("CHECKPOINT")
        finally:
            connection.close()
        handle = os.open(fresh, os.O_RDONLY)
        sync(handle)
        fresh.replace(self.path)
        sync_folder(self.path.parent)
        return Database(self.path)

    def verify(self) -> None:
        """Read every block of every table.

        Raises
        ------
        DatabaseDamagedError
            One of them is broken.
        """
        import duckdb

        try:
            for name, table in TABLES.items():
                sums = ", ".join(f'max(hash("{column}"))' for column in ("sequence", *table.names))
                self._writer.execute(f'SELECT {sums} FROM "{name}"').fetchall()  # noqa: S608 - declared names
        except duckdb.Error as error:
            raise DatabaseDamagedError(f"is damaged ({first_line(error)})", where=str(self.path)) from error

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own for the calling thread; it closes it."""
        return self._root.cursor()

    def close(self) -> None:
        """Close; never raises, for the rows are in the segments until a checkpoint has succeeded."""
        import duckdb

        for name in ("_writer", "_root"):
            connection = self.__dict__.pop(name, None)
            if connection is not None:
                try:
                    connection.close()
                except duckdb.Error:
                    continue

    def _roll_back(self) -> None:
        import duckdb

        try:
            self._writer.execute("ROLLBACK")
        except duckdb.Error:
            return  # the failed statement has ended the transaction, or the whole database


def _create_sql(table: Table) -> str:
    columns = ", ".join(f'"{c.name}" {c.kind.duckdb}{" NOT NULL" if c.required else ""}' for c in table.columns)
    unique = f", UNIQUE ({', '.join(table.key)})" if table.key else ""
    return f'CREATE TABLE "{table.name}" (sequence BIGINT NOT NULL, {columns}{unique})'


def _frame(table: Table, sequences: Sequence[int], given: Sequence[Sequence[Any]]) -> pl.DataFrame:
    """The columns as a frame. Polars rather than ``pyarrow.array``, which imports pandas where it is installed."""
    import polars as pl

    kinds: dict[str, pl.DataType | type[pl.DataType]] = {
        "TIMESTAMP_NS": pl.Datetime("ns"),
        "VARCHAR": pl.String,
        "DOUBLE": pl.Float64,
        "BIGINT": pl.Int64,
        "BOOLEAN": pl.Boolean,
        "BLOB": pl.Binary,
    }
    columns = [pl.Series("sequence", sequences, dtype=pl.Int64)]
    for column, values in zip(table.columns, given, strict=True):
        columns.append(pl.Series(column.name, values, dtype=kinds[column.kind.duckdb]))
    return pl.DataFrame(columns)


def first_line(error: BaseException) -> str:
    """The first line of an error's message (DuckDB adds advice about its own tools), or its type."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
