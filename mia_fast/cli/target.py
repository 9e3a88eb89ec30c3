"""Where a command may write: never over its own input, nor over a file that it did not make, unless told to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pyarrow.lib
import pyarrow.parquet as pq

from mia_fast.errors import DataError

MADE: Final = "mia_fast"
"""Key in the metadata of a Parquet file that a command wrote; its value says what it holds."""


def label(kind: str) -> dict[str, str]:
    """The metadata that marks a Parquet file as one of ``kind``, which the same command may replace."""
    return {MADE: kind}


def check(out: Path, kind: str, inputs: Iterable[Path], *, force: bool) -> None:
    """Refuse a target whose loss nobody asked for.

    Parameters
    ----------
    out
        The file to write.
    kind
        What the command writes: a Parquet file so labelled may be replaced.
    inputs
        What the command reads: never replaced, whatever ``force`` says.
    force
        Any other file may be replaced.

    Raises
    ------
    DataError
        ``out`` is an input, a folder, or holds something else and ``force`` was not given.
    """
    then = "nothing was computed, and the file is as it was"
    if any(_same(out, path) for path in inputs):
        raise DataError("is also an input", where=str(out), hint="name another file to write to", then=then)
    if out.is_dir():
        raise DataError("is a folder", where=str(out), hint="name a file to write to", then=then)
    if force or not out.exists() or _made(out) == kind:
        return
    raise DataError(
        f"exists, and is no file of {kind} that mia-fast wrote",
        where=str(out),
        hint="name another file, or give --force to replace this one",
        then=then,
    )


def _same(out: Path, path: Path) -> bool:
    try:
        return out.samefile(path)
    except OSError:
        return out.resolve() == path.resolve()


def _made(path: Path) -> str | None:
    try:
        found = pq.read_metadata(path).metadata or {}
    except (OSError, pyarrow.lib.ArrowException):
        return None
    value = found.get(MADE.encode())
    return None if value is None else value.decode(errors="replace")
