"""The figures that were asked for, as assertions: a benchmark that falls behind fails.

A shared machine is not a quiet one, so a figure passes with ``MIA_BENCH_SLACK`` of it (default 0.7; 1 on a quiet
machine). What was measured is printed by the benchmark itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

SLACK = float(os.environ.get("MIA_BENCH_SLACK", "0.7"))


def at_least(what: str, measured: float, asked: float) -> None:
    """Fail unless ``measured`` reaches the figure less the slack."""
    assert measured >= SLACK * asked, f"{what}: {measured:,.4g}, asked >= {asked:,g} (passes from {SLACK * asked:,.4g})"


def at_most(what: str, measured: float, asked: float) -> None:
    """Fail unless ``measured`` stays below the figure and the slack."""
    assert measured <= asked / SLACK, f"{what}: {measured:,.4g}, asked <= {asked:,g} (passes to {asked / SLACK:,.4g})"


def synced(path: Path) -> Callable[[int], None]:
    """What the disk takes for itself: a call that appends 256 bytes and forces them to it."""

    def append(_: int) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(handle, b"x" * 256)
            os.fdatasync(handle)
        finally:
            os.close(handle)

    return append
