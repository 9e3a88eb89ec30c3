"""How long rows stay, and the room they leave.

Telemetry that is too old is deleted. Rows of an audit table go to ``data/archive/<table>/<day>.parquet``
first, on the disk before they leave the database; a crash in between archives them again, once each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mia_fast import clock, files
from mia_fast.journal import sql
from mia_fast.journal.schema import TABLES, Table

if TYPE_CHECKING:
    from mia_fast.journal.database import Database

_DAY_NS: Final = 86_400 * clock.NS_PER_SECOND


def expire(database: Database, data: Path, days: Mapping[str, int], now_ns: int) -> list[str]:
    """Remove the rows of whole UTC days that are older than their table's limit; what was done, in plain words.

    Raises
    ------
    duckdb.Error, OSError
        The archive or the database cannot be written. No row has left that is not in the archive.
    """
    done: list[str] = []
    for name, kept in days.items():
        table = TABLES[name]
        before = (now_ns // _DAY_NS - kept) * _DAY_NS
        if before <= 0:
            continue
        if table.audit:
            _archive(database, data / "archive" / name, table, before)
        count = database.purge(table, before)
        if count:
            where = f"moved to archive/{name}" if table.audit else "deleted"
            done.append(f"JOURNAL_RETENTION: table={name} rows={count} before={clock.iso(before)[:10]}: {where}")
    return done


def _archive(database: Database, folder: Path, table: Table, before_ns: int) -> None:
    import polars as pl

    cursor = database.cursor()
    try:
        old = f'FROM "{table.name}" WHERE timestamp < make_timestamp_ns(?)'
        days = cursor.execute(
            f"SELECT DISTINCT CAST(CAST(timestamp AS DATE) AS VARCHAR) AS day {old} ORDER BY day",
            [before_ns],
        ).fetchall()
        for (day,) in days:
            rows = sql.frame(
                cursor.sql(
                    f"SELECT * {old} AND CAST(timestamp AS DATE) = CAST(? AS DATE)",
                    params=[before_ns, day],
                )
            )
            path = folder / f"{day}.parquet"
            if path.exists():  # late rows of a day that left before, or a crash before they were deleted
                rows = pl.concat([pl.read_parquet(path), rows], how="diagonal")
            rows = rows.unique("sequence", keep="first").sort("timestamp", "sequence")
            with files.replacing(path, durable=True) as temporary:
                rows.write_parquet(temporary, compression="zstd")
    finally:
        cursor.close()
