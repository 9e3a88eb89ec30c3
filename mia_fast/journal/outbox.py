"""Rows of processes that do not hold the journal: each waits in a file until the holder, or the next opener, takes it.

The kill switch must work beside a running engine, and what it says must not be lost. A row is one JSON file in
``data/journal/outbox``, on the disk when :func:`put` returns. It gets a key of its own where its table knows
one, so that a crash between taking it and removing the file stores it once.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from mia_fast import clock, files
from mia_fast.errors import JournalError
from mia_fast.journal.schema import Table, table_named
from mia_fast.workspace import Workspace

FOLDER: Final = "outbox"
_KEY: Final = ("run_id", "event_id")


def folder_of(workspace: Workspace) -> Path:
    """Where the rows wait."""
    return workspace.data / "journal" / FOLDER


def put(workspace: Workspace, table: str, row: Mapping[str, Any]) -> Path:
    """Leave a row for whoever holds the journal; it survives a power cut when this returns.

    Raises
    ------
    JournalError
        The row does not fit its table or holds bytes, or the file cannot be written. Nothing was left.
    """
    declared = table_named(table)
    if declared.key == _KEY and any(row.get(name) is None for name in _KEY):
        row = {**row, "run_id": row.get("run_id") or FOLDER, "event_id": row.get("event_id") or secrets.token_hex(8)}
    values = [column[0] for column in declared.settled([[value] for value in declared.values(row)])]
    kept = {name: value for name, value in zip(declared.names, values, strict=True) if value is not None}
    path = folder_of(workspace) / f"{clock.now_ns():020d}_{os.getpid()}_{secrets.token_hex(4)}.json"
    try:
        files.write_text(path, json.dumps({"table": table, "row": kept}), durable=True)
    except TypeError as error:
        raise JournalError(
            f"a row of {table} cannot wait in a file ({error})",
            where=str(path.parent),
            hint="write it in the process that holds the journal",
            then="the row was not accepted",
        ) from error
    except OSError as error:
        raise JournalError(
            f"the row cannot be left for the process that holds the journal ({error.strerror})",
            where=str(path.parent),
            hint="free disk space or restore the permissions of data/journal",
            then="the row was not accepted",
        ) from error
    return path


def take(folder: Path, accept: Callable[[Table, list[Any]], Any]) -> list[str]:
    """Hand every waiting row to ``accept``, the oldest first, and remove its file; what could not be read.

    A file that is no row of today's tables is renamed to ``.refused`` and stays.

    Raises
    ------
    JournalError
        From ``accept``: the row's file stays, and those behind it.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))  # noqa: PTH208 - each 0.25 s
    except OSError:
        return []
    refused = []
    for name in names:
        path = folder / name
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
            table = table_named(content["table"])
            values = table.values(content["row"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, JournalError) as error:
            refused.append(f"{path.name} holds no row of the journal ({error}); it was kept as .refused")
            with contextlib.suppress(OSError):
                path.rename(path.with_suffix(".refused"))
            continue
        accept(table, values)
        with contextlib.suppress(OSError):  # taken again later, and stored once
            path.unlink()
    return refused
