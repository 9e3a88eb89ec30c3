"""A year of minute bars to a history of features, Parquet to Parquet. ``MIA_ROWS`` shortens the year."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mia_fast.features.catalogue import read
from mia_fast.histories import Settings, expand, survey, write_history
from mia_fast.histories.inputs import Beside
from mia_fast.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
ROWS = int(os.environ.get("MIA_ROWS", "350000"))
MINUTE = 60_000_000_000


def _bars(rows: int, start: int = 1_700_000_040) -> pl.DataFrame:
    """A random walk on the tick; one bar a minute without gaps."""
    generator = np.random.default_rng(7)
    close = 40_000 + 0.25 * np.cumsum(generator.integers(-4, 5, rows)).astype(float)
    opened = np.concatenate([[40_000.0], close[:-1]])
    stamps = pl.Series(start * 10**9 + np.arange(rows) * MINUTE).cast(pl.Datetime("ns", "UTC"))
    return pl.DataFrame(
        {
            "timestamp": stamps,
            "open": opened,
            "high": np.maximum(opened, close) + 0.25 * generator.integers(0, 4, rows),
            "low": np.minimum(opened, close) - 0.25 * generator.integers(0, 4, rows),
            "close": close,
            "volume": generator.integers(1, 2000, rows).astype(float),
        }
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_year(tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str) -> None:
    """Where the time of ``mia-fast features`` goes: reading, computing, writing."""
    source = tmp_path / "bars.parquet"
    _bars(ROWS).write_parquet(source)
    place = Workspace(tmp_path / "desk")
    runs = []
    for k in range(5):
        found = survey(expand([source]), workspace=place)
        done = write_history(
            found,
            tmp_path / f"out{k}",
            Beside(place),
            workspace=place,
            settings=Settings(dtype=dtype),  # type: ignore[arg-type]
        )
        runs.append((done.reading, done.computing, done.writing))
        size = done.manifest.bytes
        shutil.rmtree(tmp_path / f"out{k}")
    reading, computing, writing = (statistics.median(column) for column in zip(*runs[1:], strict=True))
    total = reading + computing + writing
    with capsys.disabled():
        print(
            f"\n{ROWS:,} rows x {len(read(place).names)} features, Parquet to Parquet, {dtype}: {total:.2f} s "
            f"({ROWS / total:,.0f} rows/s): reading {reading / total:.0%}, computing {computing / total:.0%} "
            f"({computing / ROWS * 1e9:,.0f} ns per row), writing {writing / total:.0%}; "
            f"{size / 1e6:,.0f} MB {_machine()}"
        )


_TEN_YEARS = """
import re, sys
from pathlib import Path
from mia_fast.histories import Settings, expand, survey, write_history
from mia_fast.histories.inputs import Beside
from mia_fast.workspace import Workspace
place = Workspace(Path(sys.argv[2]).parent / "desk")
found = survey(expand([sys.argv[1]]), workspace=place)
done = write_history(found, Path(sys.argv[2]), Beside(place), workspace=place, settings=Settings())
# ru_maxrss would count the parent's memory.
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print(done.manifest.rows, peak, done.manifest.bytes)
"""


def test_peak_memory_of_one_year_and_of_ten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It does not grow with the history: one file, one process, its largest resident memory."""
    peaks = []
    for years in (1, 10):
        source = tmp_path / f"bars{years}.parquet"
        _bars(years * ROWS, 1_400_000_040).write_parquet(source, row_group_size=1 << 20)
        out = tmp_path / f"out{years}"
        paths = os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "models"))
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _TEN_YEARS, str(source), str(out)],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=True,
        )
        seconds = time.perf_counter() - began
        rows, peak, size = map(int, done.stdout.split())
        assert rows == years * ROWS
        peaks.append(peak * 1024)
        shutil.rmtree(out)
        with capsys.disabled():
            print(
                f"\n{rows:,} rows in a process of its own: peak {peak * 1024 / 2**30:.2f} GiB, {seconds:.1f} s, "
                f"{size / 1e9:.2f} GB written {_machine()}"
            )
    assert peaks[1] < 1.5 * 2**30
    assert peaks[1] < 1.5 * peaks[0]  # Arrow holds a compressed row group; the longer file has longer ones


def _machine() -> str:
    load = os.getloadavg()[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"({platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, this process {peak:.1f} GiB)"
