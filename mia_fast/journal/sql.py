"""Read-only SQL, the same in the engine's process and beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mia_fast.errors import JournalError
from mia_fast.journal.database import first_line, is_damage
from mia_fast.journal.schema import TABLES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    import duckdb
    import polars as pl


def check(sql: str) -> None:
    """Refuse anything but one statement that reads.

    Raises
    ------
    JournalError
        It is wrong, several, or writes.
    """
    import duckdb

    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise _bad(sql, error) from error
    if len(statements) != 1 or statements[0].type not in (
        duckdb.StatementType.SELECT,
        duckdb.StatementType.EXPLAIN,
    ):
        raise JournalError(
            "is not one reading statement",
            where=sql,
            hint="use a single SELECT, DESCRIBE, SHOW or EXPLAIN; rows enter through append only",
            then="nothing was run",
        )


def run(cursor: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[Any] | None = None) -> pl.DataFrame:
    """The result of a checked statement; instants come as Datetime("ns", "UTC").

    Raises
    ------
    JournalError
        DuckDB refuses it.
    duckdb.Error
        It met damage in the file.
    """
    import duckdb

    cursor.execute("BEGIN TRANSACTION READ ONLY")
    try:
        relation = cursor.sql(sql) if parameters is None else cursor.sql(sql, params=list(parameters))
        return frame(relation)
    except duckdb.Error as error:
        if is_damage(error):
            raise
        raise _bad(sql, error) from error
    finally:
        end(cursor)


def frame(relation: duckdb.DuckDBPyRelation) -> pl.DataFrame:
    """A relation as a table of Polars, its instants in UTC."""
    import polars as pl

    table = pl.from_arrow(relation.to_arrow_table())
    assert isinstance(table, pl.DataFrame)  # a table, not a column
    naive = [name for name, kind in table.schema.items() if isinstance(kind, pl.Datetime) and kind.time_zone is None]
    return table.with_columns(pl.col(naive).dt.replace_time_zone("UTC"))


def end(cursor: duckdb.DuckDBPyConnection) -> None:
    """End a reading transaction, however it went."""
    import duckdb

    try:
        cursor.execute("ROLLBACK")
    except duckdb.Error:
        return  # the failed statement has ended the transaction already


def _bad(sql: str, error: BaseException) -> JournalError:
    return JournalError(
        first_line(error),
        where=sql,
        hint=f"the tables are {', '.join(TABLES)}; DESCRIBE TABLE shows the columns of one",
        then="nothing was changed",
    )
