"""One gate per account: the newest one in this process, and no process beside it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from mia_fast.risk.store import try_lock


class Instance:
    """The right to let entries through for one folder of risk state.

    The lock is the process's and ends with it. Within the process the newest claim wins: a gate that was
    left behind by a restart of the engine must not go on trading.

    Attributes
    ----------
    held
        This claim is the one in force.
    """

    def __init__(self, folder: Path) -> None:
        self.held = False
        self.path = folder / ".gate.lock"
        with _MUTEX:
            self._claim()

    def _claim(self) -> None:
        key = os.fspath(self.path)
        before = _HELD.get(key)
        if before is not None and _same_file(before[0], self.path):
            before[1].held = False
            handle = before[0]
        else:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError:
                return  # what cannot be claimed is not held
            if not try_lock(handle):
                os.close(handle)
                return
            if before is not None:  # the folder was replaced under the old claim
                before[1].held = False
                os.close(before[0])
        _HELD[key] = (handle, self)
        self.held = True

    def release(self) -> None:
        """Give the account back; this claim is over."""
        with _MUTEX:
            self.held = False
            key = os.fspath(self.path)
            found = _HELD.get(key)
            if found is not None and found[1] is self:
                os.close(found[0])
                del _HELD[key]


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


_HELD: Final[dict[str, tuple[int, Instance]]] = {}
_MUTEX: Final = threading.Lock()
