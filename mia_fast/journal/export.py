"""Exports: what other programs read. The same rows always give the same bytes.

CSV, one file per log of the contract. Order: timestamp, then sequence number. Instants in ISO-8601
UTC with microseconds, floats in the shortest form that reads back as the same number, null as
nothing, ``\\n`` at each line's end. Parquet, all columns of all tables, one file per table and UTC day.

Both are incremental by day: what has been exported up to a sequence number stays, and only the days
from the earliest new row on (CSV) or the days with new rows (Parquet) are written again. The notes
for that lie in ``data/journal/exports.json``; where they do not fit the file (another size or time,
rows removed by retention, notes gone) it is written whole. The bytes are the same either way.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from mia_fast import files
from mia_fast.errors import JournalError
from mia_fast.journal import sql
from mia_fast.journal.schema import TABLES, Export, Table, table_named

if TYPE_CHECKING:
    import duckdb
    import polars as pl

_ROWS: Final = 65_536
_COPY: Final = 1 << 20
_FORMS: Final = {"TIMESTAMP_NS": "strftime({}, '%Y-%m-%dT%H:%M:%S.%fZ')", "DOUBLE": "CAST({} AS VARCHAR)"}
"""DuckDB writes a double as Python's ``repr`` does; Polars may spell small ones out."""


def choose(tables: Iterable[str] | None) -> list[Table]:
    """The tables to export: all that have an export, or the named ones.

    Raises
    ------
    JournalError
        A table is unknown or has no export.
    """
    if tables is None:
        return [table for table in TABLES.values() if table.export is not None]
    chosen = [table_named(name) for name in tables]
    for table in chosen:
        if table.export is None:
            raise JournalError(
                f"the table {table.name!r} has no CSV export",
                where="export",
                hint=f"choose among {', '.join(t.name for t in choose(None))}, export it as Parquet, or query it",
                then="nothing was written",
            )
    return chosen


def existing(data: Path) -> list[Path]:
    """The CSV exports that stand below ``data`` now."""
    found: list[Path] = []
    for table in choose(None):
        if table.export is not None:
            patterns = [table.export.path.format("*"), *table.export.special.values()]
            found += [path for pattern in patterns for path in sorted(data.glob(pattern))]
    return found


def write(cursor: duckdb.DuckDBPyConnection, data: Path, tables: Iterable[Table], *, whole: bool = False) -> list[Path]:
    """Write the CSV exports of the tables below ``data``, each file whole or not at all; the paths.

    With ``whole`` nothing of the files that are there is kept.
    """
    notes = _Notes(cursor, data, whole=whole)
    written: list[Path] = []
    cursor.execute("BEGIN TRANSACTION READ ONLY")
    try:
        notes.read()
        for table in tables:
            export = table.export
            if export is None:
                continue
            if export.split is None:
                written.append(_write(cursor, notes, table, export, data / export.path, None))
                continue
            values = cursor.execute(
                f'SELECT DISTINCT "{export.split}" FROM "{table.name}" ORDER BY ALL'  # noqa: S608 - declared names
            ).fetchall()
            written += [
                _write(cursor, notes, table, export, data / export.path_of(value), value) for (value,) in values
            ]
    finally:
        sql.end(cursor)
        notes.save()
    return written


def write_parquet(
    cursor: duckdb.DuckDBPyConnection, data: Path, tables: Iterable[Table], *, whole: bool = False
) -> list[Path]:
    """Write ``parquet/<table>/<YYYY-MM-DD>.parquet`` below ``data`` for the days with new rows; their paths.

    A day that retention has removed from the journal keeps its file.
    """
    notes = _Notes(cursor, data, whole=whole)
    written: list[Path] = []
    cursor.execute("BEGIN TRANSACTION READ ONLY")
    try:
        notes.read()
        for table in tables:
            folder = data / "parquet" / table.name
            key = f"parquet/{table.name}"
            known = notes.of(key)
            since = 0 if known is None else int(known["upto"])
            days = cursor.execute(
                "SELECT CAST(CAST(timestamp AS DATE) AS VARCHAR) AS day, max(sequence) > ? "  # noqa: S608 - declared names
                f'FROM "{table.name}" GROUP BY day ORDER BY day',
                [since],
            ).fetchall()
            for day, fresh in days:
                path = folder / f"{day}.parquet"
                if fresh or not path.exists():
                    with files.replacing(path) as temporary:
                        _day(cursor, table, day).write_parquet(temporary, compression="zstd")
                    written.append(path)
            notes.put(key, {"upto": notes.drained, "purged": notes.purged})
    finally:
        sql.end(cursor)
        notes.save()
    return written


def _day(cursor: duckdb.DuckDBPyConnection, table: Table, day: str) -> pl.DataFrame:
    """All rows of one UTC day, in the order of the exports."""
    return sql.frame(
        cursor.sql(
            f'SELECT * FROM "{table.name}" WHERE CAST(timestamp AS DATE) = CAST(? AS DATE) '  # noqa: S608
            "ORDER BY timestamp, sequence",
            params=[day],
        )
    )


class _Notes:
    """What stands in each file that was exported: up to which row, and at which byte each day begins."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, data: Path, *, whole: bool) -> None:
        self.drained = 0
        self.purged = 0
        self._cursor = cursor
        self._path = data / "journal" / "exports.json"
        self._whole = whole
        self._held: dict[str, Any] = {}
        self._changed = False

    def read(self) -> None:
        """Inside the transaction that reads the rows."""
        ((self.drained, self.purged),) = self._cursor.execute("SELECT drained, purged FROM journal_state").fetchall()
        try:
            held = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return  # without notes every file is written whole
        if isinstance(held, dict) and not self._whole:
            self._held = held

    def of(self, key: str, path: Path | None = None) -> dict[str, Any] | None:
        """The note of a file if it still tells the truth about it."""
        note = self._held.get(key)
        if not isinstance(note, dict) or note.get("purged") != self.purged or not note.get("upto", -1) <= self.drained:
            return None
        if path is not None and _stamp(path) != note.get("file"):
            return None
        return note

    def put(self, key: str, note: dict[str, Any]) -> None:
        self._held[key] = note
        self._changed = True

    def save(self) -> None:
        if self._changed:
            files.write_text(self._path, json.dumps(self._held))


def _write(
    cursor: duckdb.DuckDBPyConnection, notes: _Notes, table: Table, export: Export, path: Path, value: str | None
) -> Path:
    kinds = {column.name: column.kind.duckdb for column in table.columns}
    columns = ", ".join(
        _FORMS.get(kinds[name], "{}").format(f't."{name}"') + f' AS "{name}"' for name in export.columns
    )
    where = ["TRUE"] if value is None else [f't."{export.split}" = ?']
    values: list[Any] = [] if value is None else [value]
    header = (",".join(export.columns) + "\n").encode()
    key = path.name if value is None else f"{table.name}/{value}"
    days: list[list[Any]] = []
    keep = 0
    note = notes.of(key, path)
    if note is not None:
        ((earliest,),) = cursor.execute(
            f"SELECT strftime(min(t.timestamp), '%Y-%m-%d') FROM \"{table.name}\" t "  # noqa: S608 - declared names
            f"WHERE {' AND '.join(where)} AND t.sequence > ?",
            [*values, note["upto"]],
        ).fetchall()
        if earliest is None:
            return path
        place = bisect.bisect_left(note["days"], earliest, key=lambda item: item[0])
        days = note["days"][:place]
        keep = note["days"][place][1] if place < len(note["days"]) else note["file"][-1]
        where.append("t.timestamp >= CAST(? AS TIMESTAMP_NS)")
        values.append(earliest)
    query = (
        f'SELECT strftime(t.timestamp, \'%Y-%m-%d\') AS "the day", {columns} FROM "{table.name}" t '  # noqa: S608
        f"WHERE {' AND '.join(where)} ORDER BY t.timestamp, t.sequence"
    )
    with files.replacing(path) as temporary:
        with temporary.open("wb") as file:
            if keep:
                _copy(path, file, keep, notes_file=note["file"] if note is not None else None)
            else:
                file.write(header)
            _render(cursor.sql(query, params=values), file, days)
        state = _stamp(temporary)
    notes.put(key, {"file": state, "upto": notes.drained, "purged": notes.purged, "days": days})
    return path


def _stamp(path: Path) -> list[int]:
    """The file's state as the notes keep it, its size last; empty while there is none."""
    return list(files.stamp(path) or ())


def _render(relation: duckdb.DuckDBPyRelation, file: IO[bytes], days: list[list[Any]]) -> None:
    """Write the rows as CSV, and note at which byte each day begins."""
    import polars as pl

    for batch in relation.to_arrow_reader(_ROWS):
        frame = pl.from_arrow(batch)
        assert isinstance(frame, pl.DataFrame)  # a batch of a table, not a column
        if not frame.height:
            continue
        runs = frame["the day"].rle().struct.unnest()
        frame = frame.drop("the day")
        begin = 0
        for length, day in runs.iter_rows():
            if not days or days[-1][0] != day:
                days.append([day, file.tell()])
            frame.slice(begin, length).write_csv(file, include_header=False)
            begin += length


def _copy(path: Path, file: IO[bytes], count: int, *, notes_file: list[int] | None) -> None:
    """The first ``count`` bytes of the file that was noted."""
    with path.open("rb") as source:
        if _stamp(path) != notes_file:
            raise JournalError(
                "was written by another program during the export",
                where=str(path),
                hint="export again",
                then="the file stays as the other program left it",
            )
        while count:
            block = source.read(min(count, _COPY))
            file.write(block)
            count -= len(block)
