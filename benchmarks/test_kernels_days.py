"""Slopes against TA-Lib's LINEARREG_SLOPE, and what each kernel with a memory costs a row.

Parity is asserted before anything is timed; ratios are what a noisy machine can tell.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
import talib

from mia_fast.features.catalogue import Catalogue, read
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.plan import make_plan
from mia_fast.workspace import Workspace, shipped

ROWS = 100_000
LIVE_ROWS = 4_000
MINUTE = 60_000_000_000
COPIES = 8
BARS = ("high", "low", "close", "volume")
SLOPES = (5, 10, 14, 20, 30, 60)

Row = dict[str, object]
Arrays = dict[str, np.ndarray]

KERNELS: dict[str, tuple[list[str], str | None, dict[str, float]]] = {
    "session_sum": ([], None, {}),
    "session_rank": ([], None, {"sessions": 30}),
    "clock_deviation": ([], None, {"from": 570, "to": 600}),
    "seasonal_mean": ([], None, {"slot": 30, "span": 20}),
    "unchanged_for": ([], None, {}),
    "before_change": (["session_date"], None, {}),
    "time_window": ([], "sum", {"minutes": 5}),
    "profile_window": (["low", "volume"], "poc", {"minutes": 5}),
    "slope": ([], None, {"period": 20}),
    "time_slope": ([], None, {"minutes": 15}),
}


@pytest.fixture(scope="module")
def bars() -> tuple[np.ndarray, Arrays]:
    generator = np.random.default_rng(7)
    close = 4000 + 0.25 * np.cumsum(generator.integers(-4, 5, ROWS)).astype(float)
    arrays = {
        "high": close + 0.25 * generator.integers(0, 4, ROWS),
        "low": close - 0.25 * generator.integers(0, 4, ROWS),
        "close": close,
        "volume": generator.integers(1, 2000, ROWS).astype(float),
    }
    return np.arange(ROWS, dtype=np.int64) * MINUTE + 1_700_000_040_000_000_000, arrays


def _engine(rows: list[Row]) -> FeatureEngine:
    shipped_inputs = read(Workspace(shipped())).inputs
    small = Catalogue.model_validate(
        {"inputs": [c.model_dump() for c in shipped_inputs], "auxiliary": rows, "features": []}
    )
    names = [str(row["name"]) for row in rows]
    return FeatureEngine(make_plan(small, BARS, bar_minutes=1.0, tick_size=0.25, auxiliary=names))


def test_slopes(bars: tuple[np.ndarray, Arrays], capsys: pytest.CaptureFixture[str]) -> None:
    """Six periods in one batch, one thread against one thread."""
    known_at, arrays = bars
    engine = _engine(
        [{"name": f"s{n}", "kernel": "slope", "inputs": ["close"], "params": {"period": n}} for n in SLOPES]
    )
    out = np.empty((len(SLOPES), ROWS))
    close = arrays["close"]
    engine.batch(known_at, arrays, out=out)
    for n, got in zip(SLOPES, out, strict=True):
        want = talib.LINEARREG_SLOPE(close, n)
        assert np.array_equal(np.isnan(got), np.isnan(want)), n
        assert np.nanmax(np.abs(got - want)) < 1e-11 * close.max(), n

    def ours() -> None:
        engine.reset()
        engine.batch(known_at, arrays, out=out)

    mine, theirs = _interleaved(ours, lambda: [talib.LINEARREG_SLOPE(close, n) for n in SLOPES], rounds=9)
    mine, theirs = (statistics.median(times) / ROWS * 1e9 for times in (mine, theirs))
    with capsys.disabled():
        print(
            f"\n{len(SLOPES)} slopes, batch: mia-fast {mine:.1f}, TA-Lib {talib.__version__} {theirs:.1f} ns per row; "
            f"ratio {theirs / mine:.2f} ({platform.machine()})"
        )


@pytest.mark.parametrize("kernel", KERNELS)
def test_cost(bars: tuple[np.ndarray, Arrays], kernel: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What eight of them add to a program that only copies their inputs, live and per row of a batch."""
    known_at, arrays = bars
    more, output, params = KERNELS[kernel]
    source = "high" if kernel == "profile_window" else "close"
    copies: list[Row] = [{"name": f"c{k}", "kernel": "formula", "expression": f"{source} + 0"} for k in range(COPIES)]
    rows: list[Row] = [
        {"name": f"x{k}", "kernel": kernel, "inputs": [f"c{k}", *more], "output": output, "params": params}
        for k in range(COPIES)
    ]
    bare, full = _engine(copies), _engine(copies + rows)

    def batch(engine: FeatureEngine) -> Callable[[], None]:
        out = np.empty((len(engine.plan.outputs), ROWS // 5))
        block = {name: array[: ROWS // 5] for name, array in arrays.items()}

        def run() -> None:
            engine.reset()
            engine.batch(known_at[: ROWS // 5], block, out=out)

        return run

    without, with_them = _interleaved(batch(bare), batch(full), rounds=9)
    per_row = (min(with_them) - min(without)) / (ROWS // 5) / COPIES * 1e9

    live: list[list[float]] = [[], []]
    engines = (bare, full)
    values = [np.column_stack([arrays[name] for name in engine.plan.inputs]).tolist() for engine in engines]
    for engine in engines:
        engine.reset()
    for k in range(LIVE_ROWS):
        for engine, given, times in zip(engines, values, live, strict=True):
            began = time.perf_counter()
            engine.update(int(known_at[k]), given[k])
            times.append(time.perf_counter() - began)
    per_bar = (statistics.median(live[1]) - statistics.median(live[0])) / COPIES * 1e9
    with capsys.disabled():
        print(f"\n{kernel}: {per_bar:.0f} ns a bar live, {per_row:.1f} ns a row in a batch")
    assert np.isfinite(full.batch(known_at[LIVE_ROWS:], {n: a[LIVE_ROWS:] for n, a in arrays.items()})).any()


def _interleaved(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int
) -> tuple[list[float], list[float]]:
    """Times of both, taken in turns so that the machine's moods strike both alike."""
    ours()
    theirs()
    mine: list[float] = []
    other: list[float] = []
    for _ in range(rounds):
        for function, times in ((ours, mine), (theirs, other)):
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
    return mine, other
