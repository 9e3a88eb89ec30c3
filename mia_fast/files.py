"""Files that are either there whole or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mia_fast.telemetry import retrying


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it takes the name ``path`` at once.

    A reader sees the old file or the new one, never a part. With ``durable`` the content and the
    name are on disk before this returns. On any error the temporary file is removed and the old
    file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fill(path: Path, write: Callable[[Path], Any], *, durable: bool = False, wait: bool = True) -> None:
    """Let ``write`` fill a temporary path, with the guarantees of :func:`replacing`.

    A transient fault (:func:`~mia_fast.telemetry.is_transient`: a file that another program holds, a network file
    system that lost its handle) begins anew 2, 4 and 8 seconds later, from an empty temporary file: what a file that
    failed still holds is not to be trusted, nor a second fsync of it.

    Parameters
    ----------
    path
        The file.
    write
        Called with the temporary path; safe to call again.
    durable
        As for :func:`replacing`.
    wait
        False in the live path, where nothing sleeps: the first fault is raised.

    Raises
    ------
    OSError
        The last fault, unchanged; the old file stays.
    """

    def once() -> None:
        with replacing(path, durable=durable) as temporary:
            write(temporary)

    if wait:
        retrying(once, sleep=time.sleep)
    else:
        once()


def write_text(path: Path, text: str, *, durable: bool = False, wait: bool = False) -> None:
    """Write ``text`` as UTF-8 with the guarantees of :func:`replacing`; ``wait`` as for :func:`fill`."""
    fill(path, lambda part: part.write_text(text, encoding="utf-8", newline=""), durable=durable, wait=wait)


def write_json(path: Path, content: Mapping[str, Any], *, durable: bool = False, wait: bool = False) -> None:
    """Write a JSON object in the given key order. NaN and infinities are refused, not written."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n", durable=durable, wait=wait)


Stamp = tuple[int, int, int]


def stamp(path: Path) -> Stamp | None:
    """Changes when any process writes the file or puts another in its place; None while there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - 1 us
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
