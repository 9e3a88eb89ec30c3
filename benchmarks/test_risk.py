"""Risk: the pre-trade check, the drawdown kernels, and many paths against pandas and against reading them once.

Parity is asserted before anything is timed; peers are timed in turn with the kernel in the same run.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mia_fast.config import Instrument, load
from mia_fast.risk import (
    Account,
    Event,
    EventCalendar,
    Gate,
    Instance,
    Market,
    Order,
    RiskConfig,
    RiskController,
    Side,
    TradeWindowFilter,
    WeeklySessions,
)
from mia_fast.workspace import Workspace, shipped
from mia_kernels.drawdown import deepest, drawdown, drawdown_paths, initial_state

PATHS, STEPS = 200, 350_000
T0 = 1_584_367_200_000_000_000  # 2020-03-16 14:00 UTC
MINUTE = 60_000_000_000
CONFIG = load(RiskConfig, shipped() / "config" / "risk.yaml")


class Quiet:
    """A journal that takes everything and keeps nothing: the figures are without the journal."""

    def append(self, table: str, row: Any, /) -> int:
        return 0

    def health(self) -> str:
        return "ok"


def _each(function: Callable[[], object], calls: int) -> tuple[float, float]:
    """p50 and p99 of single calls, microseconds."""
    clock, spent = time.perf_counter_ns, []
    for _ in range(calls):
        began = clock()
        function()
        spent.append(clock() - began)
    return float(np.percentile(spent, 50)) / 1e3, float(np.percentile(spent, 99)) / 1e3


def _in_turn(rounds: int, **functions: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each, timed in turn so that a slow moment meets all of them."""
    spent: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            spent[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in spent.items()}


@pytest.fixture(scope="module")
def gate() -> Gate:
    root = Path(tempfile.mkdtemp())
    controller = RiskController(
        Workspace(root), config=CONFIG, max_drawdown=0.05, journal=Quiet(), clock=lambda: T0, losing_share=lambda: 0.1
    )
    controller.update_equity(100_000.0, T0)
    controller.arm()
    events = [Event(T0 + 40 * k * MINUTE, "FOMC" if k % 3 else "CPI", 0.9) for k in range(-2000, 2000) if k]
    calendar = EventCalendar.from_events([e for e in events if abs(e.start_ns - T0) > 120 * MINUTE], CONFIG.events)
    windows = TradeWindowFilter(calendar, WeeklySessions(), CONFIG.closures, CONFIG.contract)
    instrument = Instrument(symbol="ES", tick_size=0.25, point_value=50.0)
    return Gate(controller, windows, instrument, CONFIG, Quiet(), Instance(root), account="A", model_sha256="5" * 64)


MARKET = Market(T0, 2_400.0, True, 40.0, "5" * 64, True, False, {"cross": T0 - 60 * MINUTE})
ENTRY = Order("id", "ES", Side.BUY, 1, 2_400.25, stop=2_395.0)
BUSY = (Order("w1", "ES", Side.BUY, 1, 2_390.0), Order("w2", "ES", Side.SELL, 1, 2_420.0))


def test_one_check_with_all_rules(gate: Gate) -> None:
    cases = {
        "entry": (ENTRY, Account(T0, 100_000.0, 0, "A", True, ())),
        "entry, two orders working": (ENTRY, Account(T0, 100_000.0, 0, "A", True, BUSY)),
        "exit": (Order("x", "ES", Side.SELL, 1, reduce_only=True), Account(T0, 100_000.0, 1, "A", True, ())),
        "entry, denied": (Order("id", "ES", Side.BUY, 9, 2_400.25, stop=2_395.0), Account(T0, 1e5, 0, "A", True, ())),
    }
    print(f"\n{platform.processor() or platform.machine()}: Gate.evaluate, {len(gate._entry)} rules")
    for name, (order, account) in cases.items():
        assert gate.evaluate(order, MARKET, account, T0).allowed is (name != "entry, denied")
        for _ in range(3):
            middle, high = _each(lambda o=order, a=account: gate.evaluate(o, MARKET, a, T0), 20_000)  # type: ignore[misc]
            print(f"  {name:<26} p50 {middle:6.2f} us   p99 {high:6.2f} us")


def test_one_mark() -> None:
    equity, state, out = np.array([250_000.0]), initial_state(), np.empty(1)
    middle, high = _each(lambda: drawdown(equity, state, out), 50_000)
    print(f"\ndrawdown kernel, one mark: p50 {middle:.2f} us, p99 {high:.2f} us")


def test_many_paths() -> None:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(7)
    equity = np.empty((PATHS, STEPS))
    for path in equity:
        path[:] = 250_000.0 + np.cumsum(rng.normal(0.0, 20.0, STEPS))
    frame = pandas.DataFrame(equity.T, copy=False)  # a path per column, contiguous as it is here
    state = np.tile(initial_state(), (PATHS, 1))
    worst, breach, out = np.empty(PATHS), np.empty(PATHS, dtype=np.int64), np.zeros_like(equity)

    def ours() -> None:
        state[:] = initial_state()
        deepest(equity, 0.05, state, worst, breach)

    def series() -> None:
        state[:] = initial_state()
        drawdown_paths(equity, state, out)

    def theirs() -> Any:
        peak = frame.cummax()
        return ((peak - frame) / peak).max()

    np.testing.assert_array_equal(theirs().to_numpy(), (ours(), worst)[1])
    series()
    np.testing.assert_array_equal(out.max(axis=1), worst)
    spent = _in_turn(5, read=equity.sum, ours=ours, series=series, copy=lambda: np.copyto(out, equity))
    peer = _in_turn(2, ours=ours, theirs=theirs)
    print(f"\n{PATHS} paths x {STEPS:,} steps, {equity.nbytes / 1e6:,.0f} MB")
    for name, seconds in spent.items():
        print(f"  {name:<7} {seconds * 1e3:8.1f} ms   {seconds / spent['read']:5.2f} x reading")
    print(f"  pandas  {peer['theirs'] * 1e3:8.1f} ms   {peer['theirs'] / peer['ours']:5.1f} x ours")
