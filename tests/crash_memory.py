"""A process that works on a market memory until it is killed. Run by test_memory_faults.py, never imported.

Modes: ``store`` writes and notes each acknowledged key; ``purge`` stores old and young states and purges the old ones,
over and over; ``read`` asks for neighbours in several processes; ``full`` meets a limit on file sizes.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

from mia_fast.errors import MarketMemoryError
from mia_fast.memory import MemoryStore, memory_config
from mia_fast.memory.manifest import MemoryManifest
from mia_fast.workspace import Workspace

NAMES = tuple(f"feature_{k}" for k in range(40))
MANIFEST = MemoryManifest(NAMES, "0123456789abcdef", "selection")
START = 1_747_144_800_000_000_000
DAY = 86_400_000_000_000


def opened(workspace: Workspace) -> MemoryStore:
    return MemoryStore(workspace.data, MANIFEST, memory_config(workspace), sleep=time.sleep)


def state(number: int) -> np.ndarray:
    """A state from which its profit can be told: no half of a row can pass for a whole one."""
    return np.sin(np.arange(40) * (number % 1000 + 1)) + np.r_[float(number), np.zeros(39)]


def store(workspace: Workspace, acknowledged: Path) -> None:
    handle = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    memory = opened(workspace)
    number = memory.counts().stored
    while True:
        name = f"{os.getpid()}-{number}"
        key = memory.store(state(number), float(number), at_ns=START, trade_id=name)
        os.write(handle, f"{key} {name}\n".encode())
        number += 1


def purge(workspace: Workspace, acknowledged: Path) -> None:
    handle = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    memory = opened(workspace)
    number = 0
    while True:
        memory.store(state(number), float(number), at_ns=START)
        for _ in range(20):
            number += 1
            memory.store(state(number), float(number), at_ns=START - 31 * DAY)
        removed = memory.purge(START, vacuum=number % 3 == 0).removed
        os.write(handle, f"{removed}\n".encode())


def read(workspace: Workspace, seconds: float, processes: int) -> None:
    """So many processes at once; forked, because each start of Python costs more than what it reads."""
    children = []
    for _ in range(processes):
        if (process := os.fork()) == 0:
            ask(workspace, seconds)
            os._exit(0)
        children.append(process)
    sys.exit(sum(os.waitpid(process, 0)[1] for process in children))


def ask(workspace: Workspace, seconds: float) -> None:
    memory = opened(workspace)
    end, asked = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        found = memory.nearest(state(3), 5, "all")
        assert (np.diff(found.distances) >= 0).all()
        assert len(set(found.cluster_ids.tolist())) == len(found.cluster_ids)
        asked += 1
    os.write(1, f"{asked} {memory.counts().compared}\n".encode())


def full(workspace: Workspace) -> None:
    memory = opened(workspace)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    stored, refused = 0, ""
    for number in range(2000):
        try:
            memory.store(state(number), float(number), at_ns=START)
            stored += 1
        except MarketMemoryError as error:
            refused = error.reason
            break
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    memory.store(state(5000), 1.0, at_ns=START)
    print(stored, refused, memory.counts().compared, len(memory.check().faults), flush=True)


if __name__ == "__main__":
    mode, folder = sys.argv[1], Workspace(Path(sys.argv[2]))
    if mode == "store":
        store(folder, Path(sys.argv[3]))
    elif mode == "purge":
        purge(folder, Path(sys.argv[3]))
    elif mode == "read":
        read(folder, float(sys.argv[3]), int(sys.argv[4]))
    else:
        full(folder)
