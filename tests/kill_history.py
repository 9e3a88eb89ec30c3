"""Writes a history in a process of its own, for the tests that kill it."""

from __future__ import annotations

import sys
from pathlib import Path

from mia_fast.histories import Settings, expand, survey, write_history
from mia_fast.histories.inputs import Beside
from mia_fast.workspace import Workspace


def run(bars: Path, out: Path, cross: Path, levels: Path, events: Path) -> None:
    """Small parts, so that a random moment falls into any of the steps."""
    place = Workspace(out.parent / "workspace")
    found = survey(expand([bars]), workspace=place)
    print("surveyed", flush=True)
    beside = Beside(place, cross=cross, levels=levels, events=events)
    write_history(found, out, beside, workspace=place, settings=Settings(part_rows=400))


if __name__ == "__main__":
    run(*map(Path, sys.argv[1:6]))
