"""A year of minute bars to a history of features, Parquet to Parquet; and the same columns by Polars and pandas.

Parity is asserted before anything is timed. ``MIA_ROWS`` shortens the year.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from mia_fast.features.catalogue import Catalogue, read
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.frame import feature_frame
from mia_fast.features.plan import make_plan
from mia_fast.histories import Settings, expand, survey, write_history
from mia_fast.histories.inputs import Beside
from mia_fast.workspace import Workspace, shipped

ROOT = Path(__file__).resolve().parents[1]
ROWS = int(os.environ.get("MIA_ROWS", "350000"))
MINUTE = 60_000_000_000
BARS = ("open", "high", "low", "close", "volume")


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
import resource, sys
from pathlib import Path
from mia_fast.histories import Settings, expand, survey, write_history
from mia_fast.histories.inputs import Beside
from mia_fast.workspace import Workspace
place = Workspace(Path(sys.argv[2]).parent / "desk")
found = survey(expand([sys.argv[1]]), workspace=place)
done = write_history(found, Path(sys.argv[2]), Beside(place), workspace=place, settings=Settings())
print(done.manifest.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, done.manifest.bytes)
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


# --- what peers can express ---------------------------------------------------------------------------

WINDOWS = (10, 20, 30)


def _polars(frame: pl.DataFrame) -> pl.DataFrame:
    """As a person writes it with Polars expressions: one select, all of them in parallel."""
    close, high, low = pl.col("close"), pl.col("high"), pl.col("low")
    r = (close / close.shift(1)).log()
    true_range = (
        pl.when(close.shift(1).is_null())
        .then(None)
        .otherwise(pl.max_horizontal(high - low, (high - close.shift(1)).abs(), (low - close.shift(1)).abs()))
    )
    out = {f"momentum_{n}": close - close.shift(n) for n in (5, 10, 20)}
    out |= {f"volatility_rolling_{n}": r.rolling_std(n, ddof=1) for n in WINDOWS}
    out["sharpe_ratio_rolling_20"] = r.rolling_mean(20) / r.rolling_std(20, ddof=1)
    mean, deviation = close.rolling_mean(20), close.rolling_std(20, ddof=0)
    out["bollinger_upper_20"] = mean + 2 * deviation
    out["bollinger_lower_20"] = mean - 2 * deviation
    out["bollinger_width_20"] = 4 * deviation / mean
    out["ichimoku_tenkan"] = (high.rolling_max(9) + low.rolling_min(9)) / 2
    out["volatility_trend"] = r.rolling_std(10, ddof=1) / r.rolling_std(30, ddof=1) - 1
    out["volatility_score"] = r.rolling_std(10, ddof=1) / (r.rolling_std(10, ddof=1) + r.rolling_std(30, ddof=1))
    out["trend_strength_score"] = (close - close.shift(20)).abs() / (close - close.shift(1)).abs().rolling_sum(20)
    for n in (7, 14, 21):
        out[f"atr_{n}"] = _polars_wilder(true_range, n)
    for n in (14, 7, 21):
        k = 100 * (close - low.rolling_min(n)) / (high.rolling_max(n) - low.rolling_min(n))
        suffix = "" if n == 14 else f"_{n}"
        out[f"stochastic_k{suffix}"] = k.rolling_mean(3)
        out[f"stochastic_d{suffix}"] = k.rolling_mean(3).rolling_mean(3)
    return frame.select(expression.alias(name) for name, expression in out.items())


def _polars_wilder(source: pl.Expr, n: int) -> pl.Expr:
    """Wilder's average, seeded with the mean of the first n values as TA-Lib does."""
    row = pl.int_range(pl.len())
    seeded = pl.when(row == n).then(source.rolling_mean(n)).when(row > n).then(source)
    return seeded.ewm_mean(alpha=1 / n, adjust=False)


def _pandas(frame: pd.DataFrame) -> pd.DataFrame:
    """As a person writes it with pandas."""
    close, high, low = frame["close"], frame["high"], frame["low"]
    r = np.log(close / close.shift(1))
    steps = pd.concat([high - low, (high - close.shift(1)).abs(), (low - close.shift(1)).abs()], axis=1)
    true_range = steps.max(axis=1).where(close.shift(1).notna())
    out = {f"momentum_{n}": close - close.shift(n) for n in (5, 10, 20)}
    deviation = {n: r.rolling(n).std() for n in WINDOWS}
    out |= {f"volatility_rolling_{n}": deviation[n] for n in WINDOWS}
    out["sharpe_ratio_rolling_20"] = r.rolling(20).mean() / deviation[20]
    mean, wide = close.rolling(20).mean(), close.rolling(20).std(ddof=0)
    out["bollinger_upper_20"] = mean + 2 * wide
    out["bollinger_lower_20"] = mean - 2 * wide
    out["bollinger_width_20"] = 4 * wide / mean
    out["ichimoku_tenkan"] = (high.rolling(9).max() + low.rolling(9).min()) / 2
    out["volatility_trend"] = deviation[10] / deviation[30] - 1
    out["volatility_score"] = deviation[10] / (deviation[10] + deviation[30])
    out["trend_strength_score"] = (close - close.shift(20)).abs() / (close - close.shift(1)).abs().rolling(20).sum()
    for n in (7, 14, 21):
        seeded = true_range.copy()
        seeded.iloc[:n] = np.nan
        seeded.iloc[n] = true_range.iloc[1 : n + 1].mean()
        out[f"atr_{n}"] = seeded.ewm(alpha=1 / n, adjust=False).mean()
    for n in (14, 7, 21):
        lowest, highest = low.rolling(n).min(), high.rolling(n).max()
        k = 100 * (close - lowest) / (highest - lowest)
        suffix = "" if n == 14 else f"_{n}"
        out[f"stochastic_k{suffix}"] = k.rolling(3).mean()
        out[f"stochastic_d{suffix}"] = k.rolling(3).mean().rolling(3).mean()
    return pd.DataFrame(out)


def test_against_polars_and_pandas(capsys: pytest.CaptureFixture[str]) -> None:
    """The columns that peers express without a loop, frame to frame; all of them keep what they computed."""
    frame = _bars(ROWS)
    other = frame.to_pandas()
    known_at = frame["timestamp"].dt.epoch("ns").to_numpy() + MINUTE
    columns = {name: frame[name].to_numpy() for name in BARS}
    names = _polars(frame[:100]).columns
    whole = read(Workspace(shipped()))
    chosen = Catalogue(
        inputs=whole.inputs,
        auxiliary=whole.auxiliary,
        features=tuple(feature for feature in whole.features if feature.name in names),
    )
    assert {*chosen.names} == {*names}
    engine = FeatureEngine(make_plan(chosen, BARS, bar_minutes=1.0, tick_size=0.25))
    memory = np.empty((len(chosen.names), ROWS))

    def ours() -> pl.DataFrame:
        engine.reset()
        matrix = engine.batch(known_at, columns, out=memory)
        return feature_frame(frame["timestamp"], chosen.names, matrix)

    mine, lazy, table = ours(), _polars(frame), _pandas(other)
    for name in chosen.names:
        a = mine[name].to_numpy()
        for b in (lazy[name].fill_null(np.nan).to_numpy(), table[name].to_numpy()):
            both = np.isfinite(a) & np.isfinite(b)
            assert both.sum() > 0.98 * ROWS, name
            # Flat windows are 0/0 for peers; their running sums drift from the sums that are anchored here.
            assert np.max(np.abs(a[both] - b[both]) / np.maximum(1.0, np.abs(a[both]))) < 1e-5, name
    times: dict[str, list[float]] = {"mia-fast": [], "polars": [], "pandas": []}
    calls: list[tuple[str, Callable[[], object]]] = [
        ("mia-fast", ours),
        ("polars", lambda: _polars(frame)),
        ("pandas", lambda: _pandas(other)),
    ]
    for _ in range(5):
        for name, call in calls:
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    best = {name: statistics.median(values) for name, values in times.items()}
    with capsys.disabled():
        print(
            f"\n{len(names)} columns x {ROWS:,} rows: "
            + ", ".join(f"{name} {seconds / ROWS * 1e9:,.0f} ns per row" for name, seconds in best.items())
            + f"; ratio to Polars {best['polars'] / best['mia-fast']:.1f}, to pandas "
            f"{best['pandas'] / best['mia-fast']:.1f} {_machine()}"
        )


def _machine() -> str:
    load = os.getloadavg()[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"({platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, this process {peak:.1f} GiB)"
