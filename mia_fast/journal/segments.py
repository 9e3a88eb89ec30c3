"""Segment files: where a row is safe before it reaches DuckDB.

A segment is a file of frames. The first frame is a header, the others are rows::

    marker      4 bytes   b"MIAs" (header) or b"MIAr" (row)
    length      uint32    bytes after this head
    text        uint32    0: they are MessagePack. Else (format 1) how many of them are JSON; the rest are the
                          binary columns, one after another
    sequence    uint64    1, 2, 3, ... over all tables; in a header, the first one the file may hold
    crc         uint32    CRC-32 (IEEE 802.3) of the head up to here and of all that follows

all little-endian. A header is JSON and lists the columns of each table, so that a later version with
more columns reads the rows of an earlier one. A row is ``[table, value, ...]``, numbers to the bit. (In format 1,
written until a row's JSON proved a third of its cost, the value of a binary column was its length.)

One ``write`` brings one frame into the page cache: it survives the end of the process however that
comes. It survives a power cut after :meth:`Segment.sync`.
"""

from __future__ import annotations

import json
import os
import re
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
FORMAT: Final = 2
_HEAD: Final = struct.Struct("<4sIIQ")
_CRC: Final = struct.Struct("<I")
HEAD_BYTES: Final = _HEAD.size + _CRC.size
_NAME: Final = re.compile(r"segment-(\d{8})\.journal")
_TEXT: Final = json_writer(sort_keys=False, allow_nan=True)
_PACK: Final = msgspec.msgpack.Encoder().encode
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
    return _PACK([table, *values])


def frame(marker: bytes, sequence: int, content: bytes, text: int) -> bytes:
    """One whole frame."""
    head = _HEAD.pack(marker, len(content), text, sequence)
    return head + _CRC.pack(zlib.crc32(content, zlib.crc32(head))) + content


class Segment:
    """The segment that is being written. Not thread-safe: the journal's lock guards it."""

    def __init__(self, path: Path, first: int, columns: Mapping[str, Sequence[str]]) -> None:
        self.path = path
        self.first = first
        self.last = first - 1
        self.size = 0
        self._named = False
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        text = _TEXT({"format": FORMAT, "columns": {name: list(columns[name]) for name in columns}}).encode()
        try:
            self._write(frame(HEADER, first, text, len(text)))
        except OSError:
            self.close()
            path.unlink()  # nothing but a part of its header was in it
            raise

    def append(self, sequence: int, content: bytes) -> None:
        """Write one row.

        Raises
        ------
        OSError
            The row is not in the file: what was written of it has been cut off again. If even that
            failed, the error's ``filename`` is the segment and it must not be written any more.
        """
        self._write(frame(ROW, sequence, content, 0))
        self.last = sequence

    def cut(self, sequence: int, size: int) -> None:
        """Go back to the state before the row ``sequence``, when the file had ``size`` bytes."""
        os.ftruncate(self._fd, size)
        self.size = size
        self.last = sequence - 1

    def _write(self, data: bytes) -> None:
        try:
            written = os.write(self._fd, data)
            while written < len(data):  # a full disk takes a part first and refuses the rest
                written += os.write(self._fd, data[written:])
        except OSError:
            try:
                os.ftruncate(self._fd, self.size)
            except OSError as error:
                error.filename = str(self.path)
                raise
            raise
        self.size += len(data)

    def handle(self) -> int:
        """A descriptor of its own for :func:`sync`, so that the wait happens outside the lock."""
        return os.dup(self._fd)

    def sync_name(self) -> None:
        """Make the file's name survive a power cut; once is enough."""
        if not self._named:
            sync_folder(self.path.parent)
            self._named = True

    def close(self) -> None:
        os.close(self._fd)


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
    """

    first: int | None
    columns: dict[str, list[str]] | None
    rows: list[tuple[int, bytes, bytes]]
    damage: list[tuple[int, int, int]]
    torn: int


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
            columns = json.loads(data[start:end])["columns"]
            last = max(last, sequence - 1)
        else:
            rows.append((sequence, data[start : start + text], data[start + text : end]))
            last = sequence
        offset = end
    return Content(first, columns, rows, damage, torn)


def decode(text: bytes, blobs: bytes, columns: Mapping[str, Sequence[str]]) -> tuple[str, list[Any]] | None:
    """Table and values of a row in the order of today's columns; None if it fits no known table.

    ``text`` and ``blobs`` are what :attr:`Content.rows` holds of it. ``columns`` is what the segment's
    header lists; columns that did not exist then are None.
    """
    name, *stored = json.loads(text) if text else _UNPACK(blobs)
    table = TABLES.get(name)
    names = columns.get(name)
    if table is None or names is None or len(names) != len(stored):
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
