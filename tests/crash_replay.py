"""Child process of test_replay: replays the sample and prints a line at each checkpoint, to be killed."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path

from mia_fast.live.replay import read_inputs, replay
from mia_fast.sessions import session_open
from mia_fast.workspace import Workspace

if __name__ == "__main__":
    sample, root, every = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    place = Workspace(root)
    inputs = read_inputs(
        place,
        bars=sample / "bars.parquet",
        events=sample / "events.parquet",
        cross=sample / "cross.parquet",
        chain=sample / "chain.parquet",
    )
    start = session_open(dt.date(2025, 5, 13))
    replay(place, inputs, start=start, checkpoint_bars=every, progress=lambda done, _total: print(done, flush=True))
