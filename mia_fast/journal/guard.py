"""What guards a workspace's journal: one engine at a time, and faults that nobody may overlook."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any, Final

from mia_fast import clock, files
from mia_fast.errors import JournalError


class JournalInUseError(JournalError):
    """Another process has the journal open."""


class WorkspaceLock:
    """An advisory lock on ``data/.mia.lock``; the system releases it when its holder ends, however that comes."""

    def __init__(self, path: Path) -> None:
        """Take the lock.

        Raises
        ------
        JournalInUseError
            Another journal holds it; its process id is named.
        """
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            if not isinstance(error, BlockingIOError):
                raise
            raise JournalInUseError(
                f"the journal is in use by process {holder}",
                where=str(path),
                hint="stop that engine first, or point --workspace at another folder; "
                "the lock goes with its process, so never delete the file",
                then="nothing was opened",
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back. The file stays: deleting it would let two engines hold two locks."""
        os.close(self._fd)

    forget = release
    """In a forked child: drop the descriptor it inherited, else the lock would outlive its holder."""


class Incidents:
    """Faults that cost rows or may have: they stay open, and block entries, until a person acknowledges them.

    Kept as JSON beside the segments rather than in DuckDB, because DuckDB is what may be lost.
    """

    _KEYS: Final = ("timestamp", "kind", "message")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open: list[dict[str, str]] = []
        if path.exists():
            try:
                content: Any = json.loads(path.read_text(encoding="utf-8"))
                self.open = [{key: str(item[key]) for key in self._KEYS} for item in content["open"]]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise JournalError(
                    f"cannot be read ({error})",
                    where=str(path),
                    hint="restore the file; if that is impossible, rename it and start again: "
                    "the journal then reports what it finds anew",
                    then="nothing was opened",
                ) from error

    @property
    def reason(self) -> str | None:
        """All open incidents in one line, or None."""
        return "; ".join(item["message"] for item in self.open) or None

    def has(self, kind: str) -> bool:
        return any(item["kind"] == kind for item in self.open)

    def record(self, kind: str, message: str, now_ns: int) -> None:
        """Open an incident; it is on the disk when this returns. One that says the same is not repeated."""
        if any(item["kind"] == kind and item["message"] == message for item in self.open):
            return
        self.open.append({"timestamp": clock.iso(now_ns), "kind": kind, "message": message})
        self._save()

    def close(self, kind: str | None = None) -> None:
        """Close those of one kind, or all."""
        self.open = [item for item in self.open if kind is not None and item["kind"] != kind]
        self._save()

    def _save(self) -> None:
        files.write_json(self.path, {"open": self.open}, durable=True)
