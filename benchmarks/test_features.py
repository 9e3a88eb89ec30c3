"""The feature engine against TA-Lib 0.8.2: the catalogue's overlap, in batch and live.

Parity is asserted before anything is timed. Ratios, not absolute times, are what a noisy machine
can tell; both are printed with the machine they come from.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
import talib
from talib import stream

from mia_fast import register_kernel
from mia_fast.features.catalogue import Catalogue, Feature, Warmup, read
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.plan import make_plan
from mia_fast.workspace import Workspace, shipped

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


@pytest.fixture(scope="module")
def engine(bars: tuple[np.ndarray, Arrays]) -> FeatureEngine:
    """Only the features that TA-Lib has too, after proving that both agree."""
    known_at, arrays = bars
    peer = _peer(arrays)
    catalogue = read(Workspace(shipped()))
    common = Catalogue(
        inputs=catalogue.inputs,
        auxiliary=catalogue.auxiliary,
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
    for kernel, params in (("own_ema", {}), ("ema", {"period": 20.0})):
        feature = Feature(
            name="average", kernel=kernel, inputs=("close",), params=params, family="test", unit="index points",
            range=(0, None), warmup=Warmup(rows=19), definition="EMA 20 of the close", source="test",
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


def test_whole_catalogue_live(bars: tuple[np.ndarray, Arrays], benchmark: object) -> None:
    """All features of the shipped catalogue, one bar at a time."""
    known_at, arrays = bars
    plan = make_plan(read(Workspace(shipped())), BARS, bar_minutes=1.0, tick_size=0.25)
    whole = FeatureEngine(plan)
    rows = np.stack([arrays[name] for name in plan.inputs], axis=1).tolist()
    state = {"k": 0}
    times = known_at.tolist()

    def step() -> None:
        k = state["k"]
        whole.update(times[k], rows[k])
        state["k"] = k + 1

    benchmark.pedantic(step, rounds=5_000, iterations=1, warmup_rounds=1_000)  # type: ignore[attr-defined]


def _interleaved(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Medians of both, taken in turns so that the machine's moods strike both alike."""
    ours()
    theirs()
    mine, other = [], []
    for _ in range(rounds):
        for function, times in ((ours, mine), (theirs, other)):
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
    return statistics.median(mine), statistics.median(other)


def _report(capsys: pytest.CaptureFixture[str], what: str, mine: float, theirs: float, unit: str) -> None:
    with capsys.disabled():
        print(
            f"\n{what}: mia-fast {mine:,.2f}, TA-Lib {talib.__version__} {theirs:,.2f} {unit}; "
            f"ratio {theirs / mine:.2f} ({platform.machine()}, Python {platform.python_version()})"
        )
