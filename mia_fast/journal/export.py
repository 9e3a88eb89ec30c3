"""CSV exports: what other programs read. The same rows always give the same bytes.

Order: timestamp, then sequence number. Instants in ISO-8601 UTC with microseconds, floats in the
shortest form that reads back as the same number, null as nothing, ``\\n`` at each line's end.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mia_fast import files
from mia_fast.errors import JournalError
from mia_fast.journal.schema import TABLES, Export, Table, table_named

if TYPE_CHECKING:
    import duckdb

_ROWS: Final = 65_536
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
                hint=f"choose among {', '.join(t.name for t in choose(None))}, or query it",
                then="nothing was written",
            )
    return chosen


def existing(data: Path) -> list[Path]:
    """The exports that stand below ``data`` now."""
    found: list[Path] = []
    for table in choose(None):
        if table.export is not None:
            patterns = [table.export.path.format("*"), *table.export.special.values()]
            found += [path for pattern in patterns for path in sorted(data.glob(pattern))]
    return found


def write(cursor: duckdb.DuckDBPyConnection, data: Path, tables: Iterable[Table]) -> list[Path]:
    """Write the exports of the tables below ``data``, each file whole or not at all; the paths."""
    written: list[Path] = []
    for table in tables:
        export = table.export
        if export is None:
            continue
        if export.split is None:
            written.append(_write(cursor, table, export, data / export.path, None))
            continue
        values = cursor.execute(
            f'SELECT DISTINCT "{export.split}" FROM "{table.name}" ORDER BY ALL'  # noqa: S608 - declared names
        ).fetchall()
        written += [_write(cursor, table, export, data / export.path_of(value), value) for (value,) in values]
    return written


def _write(cursor: duckdb.DuckDBPyConnection, table: Table, export: Export, path: Path, value: str | None) -> Path:
    import polars as pl

    kinds = {column.name: column.kind.duckdb for column in table.columns}
    columns = ", ".join(
        _FORMS.get(kinds[name], "{}").format(f't."{name}"') + f' AS "{name}"' for name in export.columns
    )
    where = "" if value is None else f'WHERE t."{export.split}" = ?'
    sql = f'SELECT {columns} FROM "{table.name}" t {where} ORDER BY t.timestamp, t.sequence'  # noqa: S608
    relation = cursor.sql(sql, params=None if value is None else [value])
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        file.write((",".join(export.columns) + "\n").encode())
        for batch in relation.to_arrow_reader(_ROWS):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)  # a batch of a table, not a column
            frame.write_csv(file, include_header=False)
    return path
