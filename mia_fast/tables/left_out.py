"""Rows that were taken out of an input, where a person finds them: a file, and a warning that names it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import polars as pl

from mia_fast.errors import QuarantineWarning, WorkspaceError
from mia_fast.files import replacing
from mia_fast.tables.read import Table, read_table
from mia_fast.workspace import Workspace


def write(table: Table, workspace: Workspace) -> Path | None:
    """Write the rows that were left out to ``data/quarantine/KIND.csv``; None where there are none.

    Columns: ``source``, then those of :attr:`~mia_fast.tables.Table.quarantine`. The file holds the rows of the last
    input of its kind that had any.

    Raises
    ------
    WorkspaceError
        It cannot be written.
    """
    if table.quarantine.is_empty():
        return None
    path = workspace.data / "quarantine" / f"{table.kind}.csv"
    try:
        with replacing(path) as temporary:
            table.quarantine.select(pl.lit(table.source).alias("source"), pl.all()).write_csv(temporary)
    except OSError as error:
        raise WorkspaceError(
            f"the rows that were left out cannot be listed ({error})",
            where=str(path),
            hint="check the permissions and the free space of the workspace, or choose another one",
            then="nothing was computed",
        ) from error
    return path


def read_and_tell(kind: str, source: Any, workspace: Workspace) -> Table:
    """:func:`~mia_fast.tables.read_table`; rows that were left out are listed in a file, and a warning names it.

    Raises
    ------
    DataError, ConfigError
        As :func:`~mia_fast.tables.read_table`.
    WorkspaceError
        The list cannot be written.
    """
    table = read_table(kind, source, workspace=workspace)
    path = write(table, workspace)
    if path is not None:
        rules = "; ".join(table.faults())
        warnings.warn(
            f"{table.quarantine.height:,} of {table.quarantine.height + table.frame.height:,} rows of {kind} were left "
            f"out: {rules}. {path} lists them with row, value and hint",
            QuarantineWarning,
            stacklevel=4,
        )
    return table
