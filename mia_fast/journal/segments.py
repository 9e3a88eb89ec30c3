"""Segment files: where a row is safe before it reaches DuckDB.

A segment is a file of frames. The first frame is a header, the others are rows::

    marker      4 bytes   b"MIAs" (header) or b"MIAr" (row)
    length      uint32    bytes after this head
    text        uint32    0: they are MessagePack. Else (format 1) how many of them are JSON; the rest are the
                          binary columns, one after another
    sequence    uint64    1, 2, 3, ... over all tables; in a header, the first one the file may hold
    crc         uint32    CRC-32 (IEEE 802.3) of the head up to here and of all that follows

all little-endian. A header is JSON and lists the columns of each table, so that a later version with
more columns reads the rows of an earlier one. A row is ``[table, value, ..., true]``, numbers to the bit.

Zeros may follow the last frame: the file's **reserve**, written before there are rows for it, so that a row meets no
new page and no new block. A row's last byte (``true``) is not zero: what is left without the zeros at the end is
what was written, and a row that was cut off is short.

Earlier formats are read: 2 had neither the reserve nor the ``true``; in 1 rows were JSON and the value of a
binary column was its length.

One ``pwrite`` brings one frame into the page cache: it survives the end of the process however that
comes. It survives a power cut after :func:`sync`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from mia_fast.journal.schema import TABLES, json_writer

HEADER: Final = b"MIAs"
ROW: Final = b"MIAr"
FORMAT: Final = 3
_HEAD: Final = struct.Struct("<4sIIQ")
_CRC: Final = struct.Struct("<I")
HEAD_BYTES: Final = _HEAD.size + _CRC.size
_NAME: Final = re.compile(r"segment-(\d{8})\.journal")
_SPARE: Final = "segment.spare"
_ZEROS: Final = bytes(1 << 14)
"""Written piece by piece: one large write makes large pages, and a row then walks over all the blocks of its page."""
_RESERVES: Final = 3
"""The format from which on a file may end in zeros."""
_ROOM: Final = 8
"""A reserve is made only where the disk has this many times its size left."""
_TEXT: Final = json_writer(sort_keys=False, allow_nan=True)
PACK: Final = msgspec.msgpack.Encoder().encode
_UNPACK: Final = msgspec.msgpack.Decoder().decode

Row = tuple[int, str, list[Any]]
"""Sequence number, table, values in the order of the table's columns."""


def encode(table: str, values: Sequence[Any]) -> bytes:
    """A row's content.

    Raises
    ------
    UnicodeEncodeError
        A text holds half a surrogate pair, which no file can hold.
    """
    return PACK([table, *values, True])


def decode_rows(first: int, contents: Sequence[bytes]) -> list[Row]:
    """Rows that :func:`encode` made, by one call; the first one's sequence number is ``first``."""
    rows = _UNPACK(b"\xdd" + len(contents).to_bytes(4) + b"".join(contents))  # an array of their arrays
    return [(sequence, row[0], row[1:-1]) for sequence, row in enumerate(rows, first)]


def frame(marker: bytes, sequence: int, content: bytes, text: int) -> bytes:
    """One whole frame."""
    head = _HEAD.pack(marker, len(content), text, sequence)
    return head + _CRC.pack(zlib.crc32(content, zlib.crc32(head))) + content


class Spare:
    """A file of zeros that the next segment is made of."""

    def __init__(self, folder: Path, size: int) -> None:
        """Write the zeros.

        Raises
        ------
        OSError
            The disk has not room enough, and nothing was left of it.
        """
        self.path = folder / _SPARE
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            self.size = _reserve(self.fd, 0, size, folder)
        except OSError:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove it."""
        os.close(self.fd)
        self.path.unlink(missing_ok=True)

    @staticmethod
    def forget(folder: Path) -> None:
        """Remove what the end of another process left."""
        (folder / _SPARE).unlink(missing_ok=True)


class Segment:
    """The segment that is being written. Not thread-safe: the journal's lock guards it.

    Parameters
    ----------
    path
        A new file.
    first
        Sequence number of its first row.
    columns
        Names of the columns of each table.
    reserve
        Bytes of zeros to write ahead, where the disk has room.
    spare
        The file to make it of; it is used up, whatever happens.
    """

    def __init__(
        self,
        path: Path,
        first: int,
        columns: Mapping[str, Sequence[str]],
        *,
        reserve: int = 0,
        spare: Spare | None = None,
    ) -> None:
        self.path = path
        self.first = first
        self.last = first - 1
        self.size = 0
        self.reserved = 0
        """Bytes that the file has already: rows and zeros."""
        self._named = False
        text = _TEXT({"format": FORMAT, "columns": {name: list(columns[name]) for name in columns}}).encode()
        begun = path if spare is None else spare.path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644) if spare is None else spare.fd
        try:
            header = frame(HEADER, first, text, len(text))
            self._complete(header, 0)
            self.size = len(header)
            if spare is not None:
                spare.path.rename(path)
                self.reserved = spare.size
        except OSError:
            self.close()
            begun.unlink()  # nothing but a part of its header was in it
            raise
        if reserve:
            with contextlib.suppress(OSError):
                self.reserved = _reserve(self._fd, self.size, reserve, path.parent)

    def append(self, sequence: int, content: bytes) -> None:
        """Write one row.

        Raises
        ------
        OSError
            The row is not in the file: what was written of it has been cut off again. If even that
            failed, the error's ``filename`` is the segment and it must not be written any more.
        """
        # frame() and _write(), in one: a row's frame is most often whole at the first try.
        head = _HEAD.pack(ROW, len(content), 0, sequence)
        data = head + _CRC.pack(zlib.crc32(content, zlib.crc32(head))) + content
        size = len(data)
        try:
            written = os.pwrite(self._fd, data, self.size)
            if written != size:
                self._complete(data, written)
        except OSError:
            self._undo()
            raise
        self.size += size
        self.last = sequence

    def cut(self, sequence: int, size: int) -> None:
        """Go back to the state before the row ``sequence``, when the file had ``size`` bytes."""
        os.ftruncate(self._fd, size)
        self.size = self.reserved = size
        self.last = sequence - 1

    def _complete(self, data: bytes, written: int) -> None:
        while written < len(data):  # a full disk takes a part first and refuses the rest
            written += os.pwrite(self._fd, data[written:], self.size + written)

    def _undo(self) -> None:
        """Cut off what was written of a row."""
        try:
            os.ftruncate(self._fd, self.size)
        except OSError as error:
            error.filename = str(self.path)
            raise
        self.reserved = self.size

    def handle(self) -> int:
        """A descriptor of its own for :func:`sync`, so that the wait happens outside the lock."""
        return os.dup(self._fd)

    def sync_name(self) -> None:
        """Make the file's name survive a power cut; once is enough."""
        if not self._named:
            sync_folder(self.path.parent)
            self._named = True

    def finish(self) -> None:
        """Give the reserve back and close."""
        if self.reserved > self.size:
            with contextlib.suppress(OSError):  # zeros at the end are as good
                os.ftruncate(self._fd, self.size)
        self.close()

    def close(self) -> None:
        os.close(self._fd)


def _reserve(fd: int, begin: int, size: int, folder: Path) -> int:
    """Write zeros from ``begin`` up to ``size`` bytes; the file's size then.

    Raises
    ------
    OSError
        The disk has not room enough: the file is as it was.
    """
    if shutil.disk_usage(folder).free < _ROOM * size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    at = begin
    try:
        while at < size:
            at += os.pwrite(fd, _ZEROS[: size - at], at)
    except OSError:
        os.ftruncate(fd, begin)
        raise
    return at


def sync(handle: int) -> None:
    """Wait until what was written is on the disk, and close the handle."""
    try:
        getattr(os, "fdatasync", os.fsync)(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Wait until the folder's entries are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def listing(folder: Path) -> list[tuple[int, Path]]:
    """Ordinal and path of each segment in the folder, oldest first."""
    found = []
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and path.is_file():
            found.append((int(match[1]), path))
    return sorted(found)


def path_of(folder: Path, ordinal: int) -> Path:
    return folder / f"segment-{ordinal:08d}.journal"


@dataclass(frozen=True, slots=True)
class Content:
    """What a segment file holds.

    Attributes
    ----------
    first
        The first sequence number it may hold; None when its header cannot be read.
    columns
        The columns of each table when it was written; None when its header cannot be read.
    rows
        Sequence number, JSON text (empty where there is none) and the rest of each sound row.
    damage
        Byte ranges that hold no sound frame although whole bytes stand there, each with the last
        sequence number before it.
    torn
        Bytes of an unfinished last frame: a write the end of the process or a power cut stopped.
    size
        Bytes that were written, without the reserve.
    """

    first: int | None
    columns: dict[str, list[str]] | None
    rows: list[tuple[int, bytes, bytes]]
    damage: list[tuple[int, int, int]]
    torn: int
    size: int


def read(path: Path) -> Content:
    """Read a whole segment; what cannot be read is reported, and reading goes on behind it."""
    data = path.read_bytes()
    first: int | None = None
    columns: dict[str, list[str]] | None = None
    rows: list[tuple[int, bytes, bytes]] = []
    damage: list[tuple[int, int, int]] = []
    torn = 0
    offset = 0
    last = 0
    while offset < len(data):
        end = _frame_end(data, offset)
        if end is None:
            resume = _resume(data, offset + 1)
            if resume is not None:
                damage.append((offset, resume, last))
                offset = resume
                continue
            if _unfinished(data, offset):
                torn = len(data) - offset
            else:
                damage.append((offset, len(data), last))
            break
        marker, _, text, sequence = _HEAD.unpack_from(data, offset)
        start = offset + HEAD_BYTES
        if marker == HEADER:
            first = sequence
            header = json.loads(data[start:end])
            columns = header["columns"]
            last = max(last, sequence - 1)
            if header.get("format", 1) >= _RESERVES:
                data = data.rstrip(b"\0")
        else:
            rows.append((sequence, data[start : start + text], data[start + text : end]))
            last = sequence
        offset = end
    return Content(first, columns, rows, damage, torn, len(data))


def decode(text: bytes, blobs: bytes, columns: Mapping[str, Sequence[str]]) -> tuple[str, list[Any]] | None:
    """Table and values of a row in the order of today's columns; None if it fits no known table.

    ``text`` and ``blobs`` are what :attr:`Content.rows` holds of it. ``columns`` is what the segment's
    header lists; columns that did not exist then are None.
    """
    name, *stored = json.loads(text) if text else _UNPACK(blobs)
    table = TABLES.get(name)
    names = columns.get(name)
    if table is None or names is None:
        return None
    if len(stored) == len(names) + 1:  # the true of format 3
        stored.pop()
    if len(stored) != len(names):
        return None
    row = dict(zip(names, stored, strict=True))
    if not text:
        return name, [row.get(column) for column in table.names]
    position = 0
    binary = {column.name for column in table.columns if column.kind.duckdb == "BLOB"}
    for column in names:
        if column in binary and row[column] is not None:
            length = row[column]
            row[column] = blobs[position : position + length]
            position += length
    return name, [row.get(column) for column in table.names]


def _frame_end(data: bytes, offset: int) -> int | None:
    """Where the frame that starts here ends; None if no sound frame starts here."""
    start = offset + HEAD_BYTES
    if start > len(data):
        return None
    marker, length, text, _ = _HEAD.unpack_from(data, offset)
    end = start + int(length)
    if marker not in (HEADER, ROW) or end > len(data) or text > length:
        return None
    (crc,) = _CRC.unpack_from(data, offset + _HEAD.size)
    sound = crc == zlib.crc32(data[start:end], zlib.crc32(data[offset : offset + _HEAD.size]))
    return end if sound else None


def _resume(data: bytes, offset: int) -> int | None:
    """The next place at which a sound frame starts."""
    while (offset := data.find(ROW[:3], offset)) >= 0:
        if _frame_end(data, offset) is not None:
            return offset
        offset += 1
    return None


def _unfinished(data: bytes, offset: int) -> bool:
    """Does the rest look like a frame that was not written to its end (short, or still all zero)?"""
    rest = len(data) - offset
    if rest < HEAD_BYTES:
        return True
    marker, length, _, _ = _HEAD.unpack_from(data, offset)
    if marker in (HEADER, ROW):
        return HEAD_BYTES + int(length) > rest
    return not any(data[offset:])
