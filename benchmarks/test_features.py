"""The feature engine against TA-Lib 0.8.2: the catalogue's overlap and 350 columns, in batch and live.

Parity is asserted before anything is timed. Ratios, not absolute times, are what a noisy machine
can tell; both are printed with the machine they come from.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import talib
from talib import stream

from benchmarks import layouts
from mia_fast import register_kernel
from mia_fast.features.catalogue import Catalogue, Feature, read
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.expression import parse
from mia_fast.features.plan import make_plan
from mia_fast.features.rows import Column, Warmup
from mia_fast.features.sample import simulate
from mia_fast.workspace import Workspace, shipped
from mia_kernels.compile import kernel

ROWS = 100_000
LIVE_ROWS = 3_000
MINUTE = 60_000_000_000
BARS = ("open", "high", "low", "close", "volume")

Arrays = dict[str, np.ndarray]


def _bars(rows: int) -> tuple[np.ndarray, Arrays]:
    """A random walk on the tick with ranges and volumes; one bar a minute without gaps."""
    generator = np.random.default_rng(7)
    close = 4000 + 0.25 * np.cumsum(generator.integers(-4, 5, rows)).astype(float)
    opened = np.concatenate([[4000.0], close[:-1]])
    high = np.maximum(opened, close) + 0.25 * generator.integers(0, 4, rows)
    low = np.minimum(opened, close) - 0.25 * generator.integers(0, 4, rows)
    volume = generator.integers(1, 2000, rows).astype(float)
    known_at = np.arange(rows, dtype=np.int64) * MINUTE + 1_700_000_040_000_000_000
    return known_at, dict(zip(BARS, (opened, high, low, close, volume), strict=True))


OVERLAP: dict[str, Callable[..., list[tuple[str, np.ndarray]]]] = {}
for _n in (7, 14, 21):
    OVERLAP[f"rsi_{_n}"] = lambda h, lo, c, n=_n: [(f"rsi_{n}", talib.RSI(c, n))]
    OVERLAP[f"atr_{_n}"] = lambda h, lo, c, n=_n: [(f"atr_{n}", talib.ATR(h, lo, c, n))]
    OVERLAP[f"adx_{_n}"] = lambda h, lo, c, n=_n: [(f"adx_{n}", talib.ADX(h, lo, c, n))]
    OVERLAP[f"plus_di_{_n}"] = lambda h, lo, c, n=_n: [(f"plus_di_{n}", talib.PLUS_DI(h, lo, c, n))]
    OVERLAP[f"minus_di_{_n}"] = lambda h, lo, c, n=_n: [(f"minus_di_{n}", talib.MINUS_DI(h, lo, c, n))]
for _n in (5, 10, 20):
    OVERLAP[f"momentum_{_n}"] = lambda h, lo, c, n=_n: [(f"momentum_{n}", talib.MOM(c, n))]
for _n, _suffix in ((14, ""), (7, "_7"), (21, "_21")):
    OVERLAP[f"stochastic{_suffix}"] = lambda h, lo, c, n=_n, s=_suffix: list(
        zip((f"stochastic_k{s}", f"stochastic_d{s}"), talib.STOCH(h, lo, c, n, 3, 0, 3, 0), strict=True)
    )
OVERLAP["macd"] = lambda h, lo, c: list(
    zip(("macd_line", "macd_signal", "macd_histogram"), talib.MACD(c, 12, 26, 9), strict=True)
)
OVERLAP["bollinger"] = lambda h, lo, c: [
    (name, band)
    for name, band in zip(("bollinger_upper_20", "", "bollinger_lower_20"), talib.BBANDS(c, 20, 2.0, 2.0), strict=True)
    if name
]


def _peer(arrays: Arrays) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for function in OVERLAP.values():
        found.update(function(arrays["high"], arrays["low"], arrays["close"]))
    return found


def _peer_stream(high: np.ndarray, low: np.ndarray, close: np.ndarray) -> None:
    """The same indicators for the last bar only, as TA-Lib's stream functions give them."""
    for n in (7, 14, 21):
        stream.RSI(close, n)
        stream.ATR(high, low, close, n)
        stream.ADX(high, low, close, n)
        stream.PLUS_DI(high, low, close, n)
        stream.MINUS_DI(high, low, close, n)
        stream.STOCH(high, low, close, n, 3, 0, 3, 0)
    for n in (5, 10, 20):
        stream.MOM(close, n)
    stream.MACD(close, 12, 26, 9)
    stream.BBANDS(close, 20, 2.0, 2.0)


@pytest.fixture(scope="module")
def bars() -> tuple[np.ndarray, Arrays]:
    return _bars(ROWS)


def _read_by(catalogue: Catalogue, names: set[str]) -> tuple[Column, ...]:
    """The auxiliary columns that these features rest on."""
    rows = {row.name: row for row in (*catalogue.auxiliary, *catalogue.features)}
    found: set[str] = set()
    stack = [*names]
    while stack:
        name = stack.pop()
        if name in found or name not in rows:
            continue
        found.add(name)
        row = rows[name]
        stack += row.inputs if row.expression is None else parse(row.expression, name).columns
    return tuple(row for row in catalogue.auxiliary if row.name in found)


@pytest.fixture(scope="module")
def engine(bars: tuple[np.ndarray, Arrays]) -> FeatureEngine:
    """Only the features that TA-Lib has too, after proving that both agree."""
    known_at, arrays = bars
    peer = _peer(arrays)
    catalogue = read(Workspace(shipped()))
    common = Catalogue(
        inputs=catalogue.inputs,
        auxiliary=_read_by(catalogue, set(peer)),
        features=tuple(feature for feature in catalogue.features if feature.name in peer),
    )
    assert {feature.name for feature in common.features} == set(peer)
    engine = FeatureEngine(make_plan(common, BARS, bar_minutes=1.0, tick_size=0.25))
    matrix = engine.batch(known_at, arrays)
    for name, row in zip(common.names, matrix, strict=True):
        assert np.array_equal(np.isnan(row), np.isnan(peer[name])), name
        scale = np.maximum(1.0, np.abs(peer[name]))
        tolerance = 1e-10 if name.startswith("stochastic") else 1e-11
        assert np.nanmax(np.abs(row - peer[name]) / scale) < tolerance, name
    return engine


def test_batch(bars: tuple[np.ndarray, Arrays], engine: FeatureEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """One thread against one thread, outputs stored by both."""
    known_at, arrays = bars
    out = np.empty((len(engine.plan.outputs), ROWS))

    def ours() -> None:
        engine.reset()
        engine.batch(known_at, arrays, out=out)

    mine, theirs = _interleaved(ours, lambda: _peer(arrays), rounds=15)
    _report(capsys, f"batch, {len(engine.plan.outputs)} columns", mine / ROWS * 1e9, theirs / ROWS * 1e9, "ns per row")


def test_live(bars: tuple[np.ndarray, Arrays], engine: FeatureEngine, capsys: pytest.CaptureFixture[str]) -> None:
    """One bar at a time from Python, against TA-Lib's streams over the last 100 bars (their own minimum)."""
    known_at, arrays = bars
    rows = np.stack([arrays[name] for name in engine.plan.inputs], axis=1).tolist()
    times = known_at.tolist()
    h, low, c = arrays["high"], arrays["low"], arrays["close"]
    mine, theirs = [], []
    engine.reset()
    for k in range(LIVE_ROWS):
        began = time.perf_counter_ns()
        engine.update(times[k], rows[k])
        mine.append(time.perf_counter_ns() - began)
        if k >= 100:
            began = time.perf_counter_ns()
            _peer_stream(h[k - 100 : k + 1], low[k - 100 : k + 1], c[k - 100 : k + 1])
            theirs.append(time.perf_counter_ns() - began)
    ours = statistics.median(mine[100:])
    _report(capsys, "live, one bar", ours / 1e3, statistics.median(theirs) / 1e3, "us")


def test_an_own_function(bars: tuple[np.ndarray, Arrays], capsys: pytest.CaptureFixture[str]) -> None:
    """What calling a desk's own function costs, against the same average as a built-in kernel."""

    @register_kernel("own_ema", inputs=("any",), state=2, missing="holds", warmup=19, meaning="exponential average")
    def own_ema(x: np.ndarray, _params: np.ndarray, state: np.ndarray, out: np.ndarray) -> None:
        state[0] += 1.0
        if state[0] <= 20.0:
            state[1] += x[0, -1] / 20.0
        else:
            state[1] += 2.0 / 21.0 * (x[0, -1] - state[1])
        if state[0] >= 20.0:
            out[0] = state[1]

    known_at, arrays = bars
    shipped_inputs = read(Workspace(shipped())).inputs
    engines = []
    for name, params in (("own_ema", {}), ("ema", {"period": 20.0})):
        feature = Feature(
            name="average", kernel=name, inputs=("close",), params=params, family="test", stage=1, unit="index points",
            range=(0, None), warmup=Warmup(rows=19), missing="holds", definition="EMA 20 of the close", source="test",
        )  # fmt: skip
        catalogue = Catalogue(inputs=shipped_inputs, auxiliary=(), features=(feature,))
        engines.append(FeatureEngine(make_plan(catalogue, BARS, bar_minutes=1.0, tick_size=0.25)))
    own, built_in = engines
    np.testing.assert_allclose(own.batch(known_at, arrays), built_in.batch(known_at, arrays), rtol=1e-12)
    out = np.empty((1, ROWS))

    def run(engine: FeatureEngine) -> None:
        engine.reset()
        engine.batch(known_at, arrays, out=out)

    mine, theirs = _interleaved(lambda: run(own), lambda: run(built_in), rounds=15)
    with capsys.disabled():
        print(
            f"\nown function: {mine / ROWS * 1e9:.1f} ns per row, built-in EMA {theirs / ROWS * 1e9:.1f} "
            f"(one column and the calendar's): {(mine - theirs) / ROWS * 1e9:.1f} more"
        )


LAYOUT_ROWS = 100_000


@pytest.fixture(scope="module")
def layout() -> tuple[np.ndarray, Arrays, FeatureEngine]:
    """350 columns that TA-Lib has too, after proving that both agree."""
    known_at, arrays = _bars(LAYOUT_ROWS)
    catalogue, names = layouts.talib_layout()
    engine = FeatureEngine(make_plan(catalogue, BARS, bar_minutes=1.0, tick_size=0.25, auxiliary=names))
    matrix = engine.batch(known_at, arrays)
    for name, row, peer in zip(names, matrix, layouts.talib_batch(arrays), strict=True):
        flat = np.zeros(len(row), dtype=bool)
        if name.startswith("correlation"):  # where the closes are all equal TA-Lib says 0, or what rounding leaves
            window = np.lib.stride_tricks.sliding_window_view(arrays["close"], int(name.split("_")[1]))
            flat[len(row) - len(window) :] = np.ptp(window, axis=1) == 0.0
        assert np.array_equal(np.isnan(row), np.isnan(peer) | flat), name
        scale = np.maximum(1.0, np.abs(peer))
        tolerance = 1e-10 if name.startswith(("stochastic", "slope")) else 1e-11
        assert np.nanmax(np.abs(row - peer) / scale) < tolerance, name
    engine.reset()
    halved = engine.batch(known_at, arrays, threads=2)
    assert np.array_equal(matrix.view(np.int64)[~np.isnan(matrix)], halved.view(np.int64)[~np.isnan(matrix)])
    return known_at, arrays, engine


def test_layout_batch(layout: tuple[np.ndarray, Arrays, FeatureEngine], capsys: pytest.CaptureFixture[str]) -> None:
    """350 columns in batch: one thread against one, two against two; the gate is 2.5 on a quiet machine.

    TA-Lib returns 350 arrays: all are held until the last is there, or, as this engine leaves them, brought into one
    matrix. That each is thrown away before the next is computed, so that all share warm memory, is printed too.
    """
    known_at, arrays, engine = layout
    out = np.empty((350, LAYOUT_ROWS))

    def ours(threads: int) -> None:
        engine.reset()
        engine.batch(known_at, arrays, out=out, threads=threads)

    first, second = layouts.talib_halves(arrays)
    stored = np.empty_like(out)
    first_kept, second_kept = layouts.talib_halves(arrays, stored)
    with ThreadPoolExecutor(max_workers=1) as other:

        def theirs() -> None:
            done = other.submit(second)
            first()
            done.result()

        def theirs_kept() -> None:
            done = other.submit(second_kept)
            first_kept()
            done.result()

        def keep() -> None:
            for row, column in zip(stored, layouts.talib_batch(arrays), strict=True):
                row[:] = column

        def lose() -> None:
            first()
            second()

        held = _interleaved(lambda: ours(1), lambda: layouts.talib_batch(arrays), rounds=7)
        lost = _interleaved(lambda: ours(1), lose, rounds=7)
        one = _interleaved(lambda: ours(1), keep, rounds=7)
        two = _interleaved(lambda: ours(2), theirs, rounds=7, clock=time.perf_counter)
        two_kept = _interleaved(lambda: ours(2), theirs_kept, rounds=7, clock=time.perf_counter)
    floor = statistics.median(_timed(lambda: write_floor(out)) for _ in range(7))
    for how, (mine, peer) in (
        ("results held", held),
        ("in one matrix", one),
        ("thrown away one by one", lost),
        ("two threads, thrown away one by one", two),
        ("two threads, in one matrix", two_kept),
    ):
        what = f"350 columns of TA-Lib, batch, TA-Lib's {how}"
        _report(capsys, what, mine / LAYOUT_ROWS * 1e9, peer / LAYOUT_ROWS * 1e9, "ns per row")
    with capsys.disabled():
        print(f"  writing them takes {floor / LAYOUT_ROWS * 1e9:,.0f} ns per row")


def test_layout_live(layout: tuple[np.ndarray, Arrays, FeatureEngine], capsys: pytest.CaptureFixture[str]) -> None:
    """The same, one bar at a time, against the 285 streams of TA-Lib over the last 100 bars."""
    known_at, arrays, engine = layout
    rows = np.stack([arrays[name] for name in engine.plan.inputs], axis=1).tolist()
    engine.reset()
    mine, theirs = [], []
    for k, (t, row) in enumerate(zip(known_at[:2000].tolist(), rows, strict=False)):
        mine.append(_timed(lambda t=t, row=row: engine.update(t, row)))  # type: ignore[misc]
        if k >= 1000 and k % 5 == 0:
            theirs.append(_timed(lambda k=k: layouts.talib_streams(arrays, k - 100, k + 1)))  # type: ignore[misc]
    ours, peer = statistics.median(mine[1000:]) * 1e6, statistics.median(theirs) * 1e6
    _report(capsys, "350 columns of TA-Lib, live", ours, peer, "us")
    assert peer / ours >= 12


@kernel
def write_floor(out: np.ndarray) -> None:
    """Write every number of ``out`` (k, n) once, 256 rows at a time as the engine does."""
    for first in range(0, out.shape[1], 256):
        for k in range(out.shape[0]):
            row = out[k, first : first + 256]
            for i in range(row.size):
                row[i] = 1.0


def test_whole_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    """All of stage 1 with every input present: live from Python, and batch against the time to write the output.

    Live, the inputs of slower tables are set when they change, inside the time of the bar that follows.
    """
    catalogue = read(Workspace(shipped()))
    late = {column.name for column in catalogue.inputs if column.table in ("models", "account", "memory")}
    sample = simulate(catalogue, 15)
    columns = {name: values for name, values in sample.columns.items() if name not in late}
    known_at, rows = sample.known_at, len(sample)
    plan = make_plan(catalogue, list(columns), bar_minutes=1.0, tick_size=0.25)
    engine = FeatureEngine(plan)
    stage = [feature.name for feature in catalogue.features if feature.stage == 1]
    assert not plan.null_features.keys() & set(stage)
    out = np.empty((len(plan.outputs), rows))

    def batch(threads: int) -> None:
        engine.reset()
        engine.batch(known_at, columns, out=out, threads=threads)

    computed = np.empty((len(stage), rows))
    one, floor = _interleaved(lambda: batch(1), lambda: write_floor(computed), rounds=9)
    two, alone = _interleaved(lambda: batch(2), lambda: batch(1), rounds=9, clock=time.perf_counter)
    matrix = np.ascontiguousarray(np.stack([columns[name] for name in plan.inputs], axis=1))
    count = len(plan.bar_inputs)
    times, lists, arrays = known_at.tolist(), matrix[:, :count].tolist(), list(matrix[:, :count])
    slow: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for table, names in plan.held.items():
        values = np.ascontiguousarray(np.stack([columns[name] for name in names], axis=1))
        changed = np.ones(rows, dtype=bool)
        changed[1:] = (values[1:].view(np.int64) != values[:-1].view(np.int64)).any(axis=1)
        slow[table] = values, changed
    lines = []
    for way, given in (("a list", lists), ("an array", arrays)):
        engine.reset()
        taken = []
        for k in range(8000):
            news = [(table, values[k]) for table, (values, changed) in slow.items() if changed[k]]
            began = time.perf_counter_ns()
            for table, held in news:
                engine.hold(table, held)
            engine.update(times[k], given[k])
            taken.append(time.perf_counter_ns() - began)
        p50, p99 = np.percentile(taken[2000:], (50, 99)) / 1e3
        lines.append(f"{way} p50 {p50:.2f} p99 {p99:.2f} us")
    with capsys.disabled():
        print(f"\n{len(stage)} features of stage 1 over {len(plan.inputs)} inputs, live: {'; '.join(lines)}")
        print(f"  batch {one / rows * 1e9:,.0f} ns per row, write floor {floor / rows * 1e9:,.0f}")
        print(f"  on the wall clock: one thread {alone / rows * 1e9:,.0f}, two {two / rows * 1e9:,.0f}")
        print(f"  ratio to the floor {one / floor:.2f}")
    assert one / floor <= 8


STARTS = """
import time
began = time.perf_counter()
import mia_fast
imported = time.perf_counter()
import numpy as np
from mia_fast.features.catalogue import read
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.plan import make_plan
from mia_fast.workspace import Workspace, shipped
from mia_kernels.compile import kernel
plan = make_plan(read(Workspace(shipped())), ["close"], bar_minutes=1.0, tick_size=0.25)
planned = time.perf_counter()
FeatureEngine(plan).update(1_700_000_040_000_000_000, [1.0])
print(imported - began, planned - imported, time.perf_counter() - planned)
"""


def test_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Import, plan and first bar in a new process: with nothing compiled, then with everything."""
    for what in ("cold", "warm"):
        done = subprocess.run(
            [sys.executable, "-c", STARTS],
            env={**os.environ, "MIA_KERNEL_CACHE": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        imported, planned, first = map(float, done.stdout.split())
        with capsys.disabled():
            print(f"\n{what} start: import mia_fast {imported:.2f} s, plan {planned:.2f} s, first bar {first:.2f} s")


def _timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _interleaved(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> tuple[float, float]:
    """Medians of both, taken in turns so that the machine's moods strike both alike.

    What runs on one thread is measured in the processor's time: on a busy machine the wall clock counts others' work.
    """
    ours()
    theirs()
    mine, other = [], []
    for _ in range(rounds):
        for function, times in ((ours, mine), (theirs, other)):
            began = clock()
            function()
            times.append(clock() - began)
    return statistics.median(mine), statistics.median(other)


def _report(capsys: pytest.CaptureFixture[str], what: str, mine: float, theirs: float, unit: str) -> None:
    with capsys.disabled():
        print(
            f"\n{what}: mia-fast {mine:,.2f}, TA-Lib {talib.__version__} {theirs:,.2f} {unit}; "
            f"ratio {theirs / mine:.2f} ({platform.machine()}, Python {platform.python_version()})"
        )
