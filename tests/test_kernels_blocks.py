"""Kernels that decide once for a block: what the vectors say against bar by bar and slow twins, at every seam.

A live bar takes the loops over rows, a block without gaps, changes or missing values the vectors, and a block with one
both. So a gap, a change, a missing value or the first row is put at each place around a block's ends.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import bars
import naive
import naive_days
import numpy as np
import pytest
from bars import MINUTE, Bars, Floats, catalogue, feed, same_bits

from mia_fast.features.catalogue import Catalogue
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.plan import Plan, make_plan
from mia_kernels import opcodes as op

START = 1_709_161_200_000_000_000
"""2024-02-28 18:00 in New York: a session's open."""
COLUMNS = ("open", "high", "low", "close", "volume")
MINUTES = (1, 5, 30, 60)
PIECES = (3, 4, 5, 7, 20, 60, 63, 64, 65, 96, 127, 128)
SEAMS = (0, 1, 63, 64, 65, 128)
"""Rows around the ends of blocks of 64, counted from the row at which blocks begin to be cut."""
FROM = 140
CLOCK = ((1090, 1240), (1090, 1080 + FROM + 1), (1080 + FROM + 63, 1300))
"""Windows of the wall clock: one ends with the first bar of a block of 64, one begins with the last."""
Row = dict[str, object]


def row(name: str, kernel: str, inputs: Sequence[str], output: str | None = None, **params: float) -> Row:
    return {"name": name, "kernel": kernel, "inputs": list(inputs), "output": output, "params": params}


def formula(name: str, expression: str) -> Row:
    return {"name": name, "kernel": "formula", "expression": expression}


ROWS: list[Row] = [
    formula("key", "floor(close / 8)"),
    row("log_return", "log_return", ["close"], bars=1),
    row("true_range", "true_range", ["high", "low", "close"]),
    *(formula(f"ago_{n}", f"ago(close, {n})") for n in MINUTES),
    *(row(f"{o}_{n}", "time_window", ["volume"], o, minutes=n) for o in ("sum", "mean") for n in MINUTES),
    *(row(f"deviation_{n}", "time_deviation", ["log_return"], minutes=n) for n in (5, 30, 60)),
    *(row(f"slope_{n}", "time_slope", ["close"], minutes=n) for n in (3, 30)),
    *(row(f"clock_{a}_{b}", "clock_deviation", ["log_return"], **{"from": a, "to": b}) for a, b in CLOCK),
    row("seasonal", "seasonal_mean", ["volume"], slot=5, span=3),
    row("session_sum", "session_sum", ["volume"]),
    row("rank", "session_rank", ["close"], sessions=2),
    row("vwap", "vwap", ["high", "low", "close", "volume"]),
    row("unchanged", "unchanged_for", ["open"]),
    row("before", "before_change", ["close", "open"]),
    row("before_key", "before_change", ["volume", "key"]),
    *(row(f"correlation_{n}", "correlation", ["close", "volume"], period=n) for n in PIECES),
    *(row(f"average_{n}", "ema", ["close"], period=n) for n in (2, 5, 9, 14)),
    *(row(f"other_{n}", "ema", ["volume"], period=n) for n in (2, 5, 9, 14, 20)),
    *(row(f"true_range_{n}", "wilder", ["true_range"], period=n) for n in (3, 14)),
    *(row(f"rsi_{n}", "rsi", ["close"], period=n) for n in (2, 14)),
    *(row(f"{o}_{n}", "adx", ["high", "low", "true_range"], o, period=n) for o in ("adx", "plus_di") for n in (3, 7)),
    row("macd", "macd", ["close"], "signal", fast=3, slow=7, signal=4),
    row("realized", "session_variance", ["log_return"], "one_session"),
]


@functools.cache
def plan_of() -> Plan:
    return make(ROWS)


def make(rows: Sequence[Row]) -> Plan:
    small = Catalogue.model_validate(
        {"inputs": [c.model_dump() for c in catalogue().inputs], "auxiliary": list(rows), "features": []}
    )
    names = [str(r["name"]) for r in rows]
    return make_plan(small, COLUMNS, bar_minutes=1, tick_size=0.25, auxiliary=names)


def evenly(n: int, seed: int = 0) -> Bars:
    """Bars minute by minute from the open on; ``open`` stands for a slow input: it changes at few rows."""
    rng = np.random.default_rng(seed)
    columns = bars.prices(rng, n)
    columns["open"] = np.full(n, 7.0)
    return Bars(START + MINUTE * np.arange(1, n + 1), columns)


def check(data: Bars, sizes: Sequence[int] = (64, 256)) -> dict[str, Floats]:
    """Live, in blocks of these sizes after FROM rows, and in one: the same bits and the same state."""
    plan = plan_of()
    live = FeatureEngine(plan)
    want = feed(live, data, live=True)
    for ends in (*(range(FROM, len(data), size) for size in sizes), ()):
        engine = FeatureEngine(plan)
        got = np.concatenate([feed(engine, block) for block in bars.cut(data, ends)], axis=1)
        same_bits(got, want, plan.outputs)
        assert engine.save() == live.save()
    return dict(zip(plan.outputs, want, strict=True))


def by_twins(data: Bars, got: dict[str, Floats], *, on_the_grid: bool = True) -> None:
    """What is a copy, or exact, to the bit; the rest to rounding. ``ago`` looks back by bars: it needs their grid."""
    t, c = data.known_at, data.columns
    returns = np.array(got["log_return"])
    for n in MINUTES:
        if on_the_grid:
            same_bits(got[f"ago_{n}"], naive.ago(c["close"], t, n))
        for o in ("sum", "mean"):
            np.testing.assert_allclose(got[f"{o}_{n}"], naive_days.time_window(t, c["volume"], n, o), rtol=1e-12)
    for n in (5, 30, 60):
        np.testing.assert_allclose(got[f"deviation_{n}"], naive.time_deviation(returns, t, n), rtol=1e-9, atol=1e-14)
    for n in (3, 30):
        np.testing.assert_allclose(
            got[f"slope_{n}"], naive_days.time_slope(t, c["close"], n), rtol=0, atol=1e-9, err_msg=str(n)
        )
    same_bits(got["before"], naive_days.before_change(c["close"], c["open"]))
    np.testing.assert_allclose(got["unchanged"], naive_days.unchanged_for(t, c["open"]), rtol=1e-12)


# --- gaps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", SEAMS)
@pytest.mark.parametrize("missing", [1, 29, 61, 600])
def test_a_gap_at_any_place_of_a_block(at: int, missing: int) -> None:
    data = evenly(FROM + 300)
    t = data.known_at.copy()
    t[FROM + at :] += missing * MINUTE
    data = Bars(t, data.columns)
    by_twins(data, check(data))


@pytest.mark.parametrize("at", SEAMS)
def test_a_bar_off_the_grid(at: int) -> None:
    data = evenly(FROM + 300, seed=1)
    t = data.known_at.copy()
    t[FROM + at] -= 20_000_000_000
    data = Bars(t, data.columns)
    by_twins(data, check(data), on_the_grid=False)


@pytest.mark.parametrize("at", SEAMS)
def test_two_bars_whose_seconds_are_equal(at: int) -> None:
    """50 ns are less than a float of seconds can tell apart: the later of the two bars counts as known then."""
    data = evenly(FROM + 300, seed=2)
    t = data.known_at.copy()
    t[FROM + at] = t[FROM + at - 1] + 50
    assert t[FROM + at] / 1e9 == t[FROM + at - 1] / 1e9
    got = check(Bars(t, data.columns))
    then = FROM + at + 29  # thirty minutes after the first of the two
    assert got["ago_30"][then] == data.columns["close"][FROM + at]


@pytest.mark.parametrize("first", [1, 2, 59, 60, 61, 127, 128, 129, 255, 256, 257])
def test_the_first_rows_of_a_series(first: int) -> None:
    data = evenly(first + 40, seed=3)
    by_twins(data, check(data, (1, 3, 255)))


def test_irregular_bars_throughout() -> None:
    rng = np.random.default_rng(4)
    data = evenly(700, seed=4)
    data = data.rows(rng.random(700) < 0.8)
    by_twins(data, check(data, (1, 2, 7, 64, 255, 256)))


# --- values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", SEAMS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -0.0])
def test_a_value_that_is_none_at_any_place_of_a_block(at: int, value: float) -> None:
    data = evenly(FROM + 200, seed=5)
    for name in ("close", "volume", "open"):
        got = check(data.injected(FROM + at, **{name: value}), (64,))
        assert np.isfinite(got["vwap"]).any()


@pytest.mark.parametrize("at", SEAMS)
def test_a_slow_value_changes_at_any_place_of_a_block(at: int) -> None:
    data = evenly(FROM + 300, seed=6)
    for values in ((7.0, 8.0), (math.nan, 8.0), (7.0, math.nan), (0.0, -0.0), (math.nan, math.nan)):
        slow = np.where(np.arange(len(data)) < FROM + at, *values)
        changed = data.altered(open=slow)
        by_twins(changed, check(changed))
    there_and_back = np.full(len(data), 7.0)
    there_and_back[FROM + at] = 8.0
    changed = data.altered(open=there_and_back)
    by_twins(changed, check(changed))


def test_a_session_opens_and_a_clock_window_begins_and_ends_at_any_place_of_a_block() -> None:
    data = evenly(1440 + 400, seed=7)
    minute = (np.arange(1, len(data) + 1)) % 1440
    data = data.rows(minute < 1380)  # from the break on the next session
    for shift in (0, 1, 2, 63):
        part = data.rows(slice(1380 - FROM - 64 - shift, None))
        got = check(part, (64,))
        assert np.isfinite(got["session_sum"]).any()


# --- windows put together in registers ------------------------------------------------------------------


def merged(x: list[float], y: list[float], window: int, end: int) -> float:
    """The correlation of the window that ends before ``end``, by the kernel's merges in Python's floats."""

    def sums(a: int, b: int) -> tuple[float, float, float, float, float]:
        if b - a == 2:
            u, v = x[b - 1] - x[a], y[b - 1] - y[a]
            return x[b - 1] + x[a], 0.5 * u * u, y[b - 1] + y[a], 0.5 * v * v, 0.5 * u * v
        half = (a + b) // 2
        new, old, scale = sums(half, b), sums(a, half), 0.5 / (half - a)
        u, v = new[0] - old[0], new[2] - old[2]
        return (
            new[0] + old[0],
            (new[1] + old[1]) + u * u * scale,
            new[2] + old[2],
            (new[3] + old[3]) + v * v * scale,
            (new[4] + old[4]) + u * v * scale,
        )

    width = 1 << (window.bit_length() - 1)
    sx, qx, sy, qy, product = sums(end - width, end)
    have, rest = width, window - width
    while rest:
        width = 1 << (rest.bit_length() - 1)
        grow, part, scale = 1.0 / have, 1.0 / width, have * width / (have + width)
        a, b = end - have - width, end - have
        if width == 1:
            u, v = sx * grow - x[a], sy * grow - y[a]
            sx, sy = sx + x[a], sy + y[a]
            qx, qy, product = qx + u * u * scale, qy + v * v * scale, product + u * v * scale
        else:
            other = sums(a, b)
            u, v = sx * grow - other[0] * part, sy * grow - other[2] * part
            sx, sy = sx + other[0], sy + other[2]
            qx, qy = qx + (other[1] + u * u * scale), qy + (other[3] + v * v * scale)
            product += other[4] + u * v * scale
        have, rest = have + width, rest - width
    return max(-1.0, min(1.0, product / math.sqrt(qx * qy)))


def test_correlations_are_the_merges_of_their_pieces_to_the_bit() -> None:
    data = evenly(400, seed=8)
    got = check(data, (1, 7, 8, 9, 255))
    x, y = data.columns["close"].tolist(), data.columns["volume"].tolist()
    for window in PIECES:
        for end in (window, window + 1, 137, 256, 263, 384, 385, 400):
            if end >= window:
                assert got[f"correlation_{window}"][end - 1] == merged(x, y, window, end), (window, end)


def test_tables_without_squares_give_the_same_sums() -> None:
    data = evenly(600, seed=9)
    means = [row(f"mean_{n}", "window", ["close"], "mean", period=n) for n in (2, 20, 64, 100)]
    short = row("deviation", "window", ["close"], "sample_deviation", period=9)
    long = row("long_deviation", "window", ["close"], "sample_deviation", period=100)
    plans = [make(rows) for rows in (means, [*means, short], [*means, short, long])]
    tables = [plan.program[plan.program[:, op.CODE] == op.MOMENT_TABLE][0] for plan in plans]
    assert [int(line[op.SOURCE_C]) for line in tables] == [0, 3, 6]
    values = [dict(zip(p.outputs, feed(FeatureEngine(p), data), strict=True)) for p in plans]
    for name in (str(r["name"]) for r in means):
        same_bits(values[0][name], values[2][name])
        same_bits(values[1][name], values[2][name])
    same_bits(values[1]["deviation"], values[2]["deviation"])
