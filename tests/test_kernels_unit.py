"""Single kernels: every length, hard numbers, the calendar, formulas, and the cache they are compiled into."""

from __future__ import annotations

import datetime as dt
import functools
import math
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import bars
import naive
import numpy as np
import pytest
import talib
from bars import NEW_YORK, Floats, catalogue, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

import mia_kernels
from mia_fast.features.catalogue import Catalogue
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.expression import parse
from mia_fast.features.plan import make_plan, new_york
from mia_kernels import opcodes as op
from mia_kernels.calendar import calendar_columns
from mia_kernels.validity import mark, validity_bitmap

PERIODS = (2, 3, 4, 5, 7, 8, 9, 14, 16, 17, 31, 32, 33, 63, 64, 65, 97, 127, 128)
MINUTE = 60_000_000_000


def compute(
    rows: list[dict[str, object]], known_at=None, *, cuts: tuple[int, ...] = (), **columns: Floats
) -> dict[str, Floats]:
    """The columns of auxiliary ``rows`` over the given inputs, in blocks that end at ``cuts``."""
    small = Catalogue.model_validate(
        {"inputs": [c.model_dump() for c in catalogue().inputs], "auxiliary": rows, "features": []}
    )
    names = [str(row["name"]) for row in rows]
    plan = make_plan(small, tuple(columns), bar_minutes=1, tick_size=0.25, auxiliary=names)
    n = len(next(iter(columns.values())))
    if known_at is None:
        known_at = 1_700_000_000_000_000_000 + MINUTE * np.arange(n)
    engine = FeatureEngine(plan)
    data = bars.Bars(
        np.asarray(known_at, dtype=np.int64), {name: np.asarray(a, dtype=float) for name, a in columns.items()}
    )
    matrix = np.concatenate([bars.feed(engine, block) for block in bars.cut(data, cuts)], axis=1)
    return dict(zip(names, matrix, strict=True))


def each_period(kernel: str, *inputs: str, **more: object) -> list[dict[str, object]]:
    return [{"name": f"p{n}", "kernel": kernel, "inputs": inputs, "params": {"period": n}, **more} for n in PERIODS]


@functools.cache
def walk(n: int = 3000, seed: int = 0) -> dict[str, Floats]:
    columns = bars.prices(np.random.default_rng(seed), n)
    del columns["open"]
    return columns


def _stochastic(line: int):
    return lambda c, n: talib.STOCH(c["high"], c["low"], c["close"], n, 3, 0, 3, 0)[line]


# --- every length against TA-Lib ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "inputs", "more", "referee", "tolerance"),
    [
        ("ema", ["close"], {}, lambda c, n: talib.EMA(c["close"], n), 1e-12),
        ("rsi", ["close"], {}, lambda c, n: talib.RSI(c["close"], n), 1e-12),
        ("window", ["close"], {"output": "mean"}, lambda c, n: talib.SMA(c["close"], n), 1e-12),
        ("window", ["close"], {"output": "sum"}, lambda c, n: talib.SUM(c["close"], n), 1e-12),
        ("window", ["close"], {"output": "deviation"}, lambda c, n: talib.STDDEV(c["close"], n, 1), 1e-11),
        ("highest", ["high"], {}, lambda c, n: talib.MAX(c["high"], n), 0.0),
        ("lowest", ["low"], {}, lambda c, n: talib.MIN(c["low"], n), 0.0),
        ("stochastic", ["high", "low", "close"], {"output": "k"}, _stochastic(0), 2e-14),
        ("stochastic", ["high", "low", "close"], {"output": "d"}, _stochastic(1), 2e-14),
    ],
)  # fmt: skip
def test_every_length_agrees_with_talib(
    kernel: str, inputs: list[str], more: dict[str, object], referee, tolerance: float
) -> None:
    columns = walk()
    got = compute(each_period(kernel, *inputs, **more), **columns)
    again = compute(each_period(kernel, *inputs, **more), cuts=(1, 2, 127, 128, 129, 700, 1213), **columns)
    for n in PERIODS:
        want = referee(columns, n)
        np.testing.assert_array_equal(np.isnan(got[f"p{n}"]), np.isnan(want), err_msg=str(n))
        np.testing.assert_allclose(got[f"p{n}"], want, rtol=0, atol=tolerance * 5000, err_msg=str(n))
        same_bits(got[f"p{n}"], again[f"p{n}"])


def test_directional_movement_of_every_length_agrees_with_talib() -> None:
    c = walk()
    rows: list[dict[str, object]] = [{"name": "tr", "kernel": "true_range", "inputs": ["high", "low", "close"]}]
    for n in PERIODS:
        rows.append({"name": f"atr{n}", "kernel": "wilder", "inputs": ["tr"], "params": {"period": n}})
        for output in ("adx", "plus_di", "minus_di"):
            rows.append(
                {
                    "name": f"{output}{n}",
                    "kernel": "adx",
                    "inputs": ["high", "low", "tr"],
                    "params": {"period": n},
                    "output": output,
                }
            )
    got = compute(rows, **c)
    for n in PERIODS:
        for name, function, scale in (
            ("adx", talib.ADX, 100),
            ("plus_di", talib.PLUS_DI, 100),
            ("minus_di", talib.MINUS_DI, 100),
            ("atr", talib.ATR, 10),
        ):
            want = function(c["high"], c["low"], c["close"], n)
            np.testing.assert_array_equal(np.isnan(got[f"{name}{n}"]), np.isnan(want), err_msg=f"{name} {n}")
            np.testing.assert_allclose(got[f"{name}{n}"], want, rtol=0, atol=1e-12 * scale, err_msg=f"{name} {n}")


@pytest.mark.parametrize("parameters", [(12, 26, 9), (2, 3, 2), (5, 35, 5), (19, 39, 9), (30, 31, 64), (8, 128, 3)])
def test_macd_of_any_parameters_agrees_with_talib(parameters: tuple[int, int, int]) -> None:
    fast, slow, signal = parameters
    params = {"fast": fast, "slow": slow, "signal": signal}
    rows = [
        {"name": o, "kernel": "macd", "inputs": ["close"], "params": params, "output": o}
        for o in ("line", "signal", "histogram")
    ]
    got = compute(rows, **walk())
    for name, want in zip(
        ("line", "signal", "histogram"), talib.MACD(walk()["close"], fast, slow, signal), strict=True
    ):
        np.testing.assert_array_equal(np.isnan(got[name]), np.isnan(want))
        np.testing.assert_allclose(got[name], want, rtol=0, atol=1e-12 * 5000)


def test_a_flat_market_is_what_talib_says() -> None:
    """No change, no range, no direction: the conventions for 0 / 0."""
    n = 200
    high, low, close = np.full(n, 100.5), np.full(n, 100.0), np.full(n, 100.25)
    high[80:] = low[80:] = close[80:] = 100.25
    rows = [
        {"name": "tr", "kernel": "true_range", "inputs": ["high", "low", "close"]},
        {"name": "rsi", "kernel": "rsi", "inputs": ["close"], "params": {"period": 14}},
        *(
            {"name": o, "kernel": "adx", "inputs": ["high", "low", "tr"], "params": {"period": 7}, "output": o}
            for o in ("adx", "plus_di", "minus_di")
        ),
        {
            "name": "k",
            "kernel": "stochastic",
            "inputs": ["high", "low", "close"],
            "params": {"period": 9},
            "output": "k",
        },
    ]
    got = compute(rows, high=high, low=low, close=close)
    for name, want in (
        ("rsi", talib.RSI(close, 14)),
        ("adx", talib.ADX(high, low, close, 7)),
        ("plus_di", talib.PLUS_DI(high, low, close, 7)),
        ("minus_di", talib.MINUS_DI(high, low, close, 7)),
        ("k", talib.STOCH(high, low, close, 9, 3, 0, 3, 0)[0]),
    ):
        np.testing.assert_allclose(got[name], want, rtol=0, atol=1e-10, err_msg=name)


# --- windows: hard numbers ----------------------------------------------------------------------------


def test_window_moments_against_exact_fractions() -> None:
    """Small changes on a large level, where sums of squares would cancel: against rational arithmetic."""
    rng = np.random.default_rng(4)
    close = 1e9 + np.rint(rng.normal(0, 3, 400)) * 0.25
    for output, ddof in (("mean", None), ("deviation", 0), ("sample_deviation", 1)):
        got = compute(each_period("window", "close", output=output), close=close)
        for n in PERIODS:
            for row in range(n - 1, 400, 37):
                part = [Fraction(x) for x in close[row - n + 1 : row + 1].tolist()]
                mean = sum(part) / n
                if ddof is None:
                    assert got[f"p{n}"][row] == pytest.approx(float(mean), rel=2e-16)
                else:
                    want = math.sqrt(sum((x - mean) ** 2 for x in part) / (n - ddof))
                    # Sums of squares would be wrong by eps * level**2 / deviation, which is a hundred.
                    assert got[f"p{n}"][row] == pytest.approx(want, rel=0, abs=2.2e-16 * 1e9)


def test_equal_values_deviate_by_nothing() -> None:
    for level in (0.1, 1 / 3, 5000.25, 1e-300):
        got = compute(each_period("window", "close", output="sample_deviation"), close=np.full(300, level))
        for n in PERIODS:
            assert np.nanmax(got[f"p{n}"]) <= 4e-16 * level, n


def test_windows_do_not_drift() -> None:
    """After a million times larger values have passed, nothing of them is left."""
    rng = np.random.default_rng(1)
    calm = rng.normal(0.0, 1.0, 4000)
    wild = calm.copy()
    wild[1000:1200] *= 1e12
    for output in ("sum", "mean", "deviation", "sample_deviation"):
        a = compute(each_period("window", "close", output=output), close=calm)
        b = compute(each_period("window", "close", output=output), close=wild)
        for n in PERIODS:
            same_bits(a[f"p{n}"][1200 + n :], b[f"p{n}"][1200 + n :])


def test_a_window_s_value_does_not_depend_on_where_it_lies() -> None:
    """The same rows give the same bits at any place in the series, at every length."""
    part = np.random.default_rng(2).normal(5000, 10, 140)
    series = np.concatenate([np.full(300, 1.0), part, np.full(411, 9.0), part])
    for kernel, more in (("window", {"output": "deviation"}), ("highest", {}), ("lowest", {})):
        got = compute(each_period(kernel, "close", **more), close=series)
        for n in PERIODS:
            same_bits(got[f"p{n}"][300 + n : 440], got[f"p{n}"][851 + n : 991])


@pytest.mark.parametrize("kernel", ["window", "highest", "lowest"])
def test_missing_rows_leave_with_their_windows(kernel: str) -> None:
    rng = np.random.default_rng(3)
    close = rng.normal(100, 1, 600)
    close[[50, 51, 300, 410]] = math.nan
    more = {"output": "sum"} if kernel == "window" else {}
    referee = {"window": naive.total, "highest": naive.largest, "lowest": naive.smallest}[kernel]
    got = compute(each_period(kernel, "close", **more), close=close, cuts=(51, 300, 301))
    for n in PERIODS:
        want = naive.windowed(close, n, referee)
        np.testing.assert_array_equal(np.isnan(got[f"p{n}"]), np.isnan(want))
        np.testing.assert_allclose(got[f"p{n}"], want, rtol=1e-13)


# --- correlation --------------------------------------------------------------------------------------

LENGTHS = tuple(n for n in PERIODS if n >= 3)


def correlations(x: Floats, y: Floats, cuts: tuple[int, ...] = ()) -> dict[int, Floats]:
    rows = [
        {"name": f"p{n}", "kernel": "correlation", "inputs": ["close", "volume"], "params": {"period": n}}
        for n in LENGTHS
    ]
    got = compute(rows, close=x, volume=y, cuts=cuts)
    return {n: got[f"p{n}"] for n in LENGTHS}


def test_correlation_agrees_with_talib_in_any_cut() -> None:
    c = walk()
    got = correlations(c["close"], c["volume"])
    again = correlations(c["close"], c["volume"], (1, 2, 127, 128, 129, 700, 1213))
    for n in LENGTHS:
        want = talib.CORREL(c["close"], c["volume"], n)
        # TA-Lib says 0 where the closes are all equal: what does not vary has no correlation here.
        flat = naive.windowed(c["close"], n, lambda part: np.ptp(part, axis=-1)) == 0.0
        np.testing.assert_array_equal(np.isnan(got[n]), np.isnan(want) | flat, err_msg=str(n))
        # TA-Lib subtracts squares of prices: its own error is eps * (level / deviation)**2.
        np.testing.assert_allclose(got[n], np.where(np.isnan(got[n]), N, want), rtol=0, atol=1e-8, err_msg=str(n))
        same_bits(got[n], again[n])


def test_correlation_agrees_with_talib_where_that_is_stable() -> None:
    rng = np.random.default_rng(11)
    x = rng.normal(0.0, 1.0, 3000)
    y = 0.6 * x + 0.8 * rng.normal(0.0, 1.0, 3000)
    for n, values in correlations(x, y).items():
        want = talib.CORREL(x, y, n)
        np.testing.assert_array_equal(np.isnan(values), np.isnan(want), err_msg=str(n))
        tolerance = 1e-11 if n >= 7 else 1e-8  # a short window may hold three nearly equal values
        np.testing.assert_allclose(values, want, rtol=0, atol=tolerance, err_msg=str(n))


def test_correlation_against_exact_sums_and_with_missing_rows() -> None:
    rng = np.random.default_rng(12)
    x = 5000 + 0.25 * np.cumsum(rng.integers(-4, 5, 700)).astype(float)
    y = 1e4 + rng.normal(0.0, 2.0, 700) + 0.1 * x
    x[[200, 201, 420]], y[[300, 420, 421]] = math.nan, math.nan
    x[500:560] = x[500]
    got = correlations(x, y, (130, 201, 300))
    for n in LENGTHS:
        want = naive.correlation(x, y, n)
        np.testing.assert_array_equal(np.isnan(got[n]), np.isnan(want), err_msg=str(n))
        np.testing.assert_allclose(got[n], want, rtol=0, atol=1e-10, err_msg=str(n))
        assert np.nanmax(np.abs(got[n])) <= 1.0


@pytest.mark.parametrize("level", [0.1, 1 / 3, 5000.25, 1e-200, 1e14, 0.0])
def test_what_does_not_vary_has_no_correlation(level: float) -> None:
    y = np.random.default_rng(13).normal(0.0, 1.0, 300)
    for values in (correlations(np.full(300, level), y), correlations(y, np.full(300, level))):
        for n in LENGTHS:
            assert np.isnan(values[n]).all(), n


def test_a_line_correlates_fully_with_itself() -> None:
    x = np.arange(400.0)
    for n, values in correlations(x, 7.0 - 3.0 * x).items():
        np.testing.assert_allclose(values[n - 1 :], -1.0, rtol=0, atol=1e-15)
        assert np.isnan(values[: n - 1]).all()


# --- recurrences --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["ema", "wilder"])
def test_more_lanes_than_eight_and_missing_rows(kernel: str) -> None:
    close = walk()["close"].copy()
    close[[0, 1, 5, 300, 301, 900]] = math.nan
    got = compute(each_period(kernel, "close"), close=close, cuts=(5, 6, 255, 300, 301))
    for n in PERIODS:
        want = getattr(naive, kernel)(close, n)
        np.testing.assert_array_equal(np.isnan(got[f"p{n}"]), np.isnan(want), err_msg=str(n))
        np.testing.assert_allclose(got[f"p{n}"], want, rtol=1e-12, err_msg=str(n))


def test_rows_of_one_kernel_do_not_mix() -> None:
    """A column's bits do not depend on which others are computed with it."""
    together = compute(each_period("ema", "close"), **walk())
    for n in PERIODS:
        alone = compute([{"name": "one", "kernel": "ema", "inputs": ["close"], "params": {"period": n}}], **walk())
        same_bits(alone["one"], together[f"p{n}"])


def test_an_average_stays_on_its_level_for_ever() -> None:
    got = compute(each_period("wilder", "close"), close=np.full(20_000, 4321.25))
    for n in PERIODS:
        assert got[f"p{n}"][-1] == 4321.25


@pytest.mark.parametrize("back", [1, 2, 60, 128])
def test_log_return_of_any_length(back: int) -> None:
    close = walk()["close"]
    got = compute(
        [{"name": "r", "kernel": "log_return", "inputs": ["close"], "params": {"bars": back}}],
        close=close,
        cuts=(1, 130, 255),
    )
    want = np.full(len(close), math.nan)
    want[back:] = [math.log(a / b) for a, b in zip(close[back:], close[:-back], strict=True)]
    np.testing.assert_allclose(got["r"], want, rtol=4e-16, atol=0)


# --- the calendar -------------------------------------------------------------------------------------

NAMES = ("session_date", "minute_of_day", "weekday", "month_day", "month")
SLOTS = (op.SESSION, op.MINUTE, op.WEEKDAY, op.MONTH_DAY, op.MONTH)


def calendar_of(known_at: list[int]) -> dict[str, list[float]]:
    columns = np.full((op.FIRST_INPUT, 5 + len(known_at)), -1.0)
    calendar_columns(np.array(known_at, dtype=np.int64), new_york(), columns, 5)
    assert (columns[:, :5] == -1.0).all()
    assert columns[op.TIME, 5:].tolist() == [t / 1e9 for t in known_at]
    return {name: columns[slot, 5:].tolist() for name, slot in zip(NAMES, SLOTS, strict=True)}


def same_calendar(seconds: list[int]) -> None:
    instants = sorted(s * 10**9 for s in seconds)
    want = naive.calendar(np.array(instants, dtype=np.int64))
    got = calendar_of(instants)
    for name in NAMES:
        assert got[name] == want[name].tolist(), name


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4_070_000_000), min_size=1, max_size=40))
def test_calendar_agrees_with_the_time_zone_database(seconds: list[int]) -> None:
    same_calendar(seconds)


def test_calendar_around_every_change_of_the_clock() -> None:
    table = new_york()
    changes = table[2 : 1 + int(table[0])] // 10**9
    same_calendar([int(at) + k for at in changes for k in (-3601, -3600, -61, -60, -1, 0, 1, 59, 60, 3599, 3600, 7200)])


def test_calendar_at_midnights_opens_and_leap_days() -> None:
    days = [
        dt.date(2024, 2, 28),
        dt.date(2024, 2, 29),
        dt.date(2024, 3, 1),
        dt.date(2023, 12, 31),
        dt.date(2000, 2, 29),
        dt.date(2100, 1, 1) - dt.timedelta(1),
    ]
    times = ((0, 0, 0), (0, 0, 1), (17, 0, 0), (17, 59, 59), (18, 0, 0), (18, 1, 0), (23, 59, 59))
    moments = [dt.datetime(d.year, d.month, d.day, *time, tzinfo=NEW_YORK) for d in days for time in times]
    same_calendar([int(moment.timestamp()) for moment in moments])


def test_a_sunday_evening_belongs_to_monday() -> None:
    sunday = dt.datetime(2024, 3, 10, 18, 1, tzinfo=NEW_YORK)
    got = calendar_of([int(sunday.timestamp()) * 10**9])
    assert got["session_date"] == [(dt.date(2024, 3, 11) - dt.date(1970, 1, 1)).days]
    assert got["weekday"] == [6.0]
    assert got["minute_of_day"] == [1081.0]


# --- formulas -----------------------------------------------------------------------------------------


def formula(text: str, known_at=None, *, cuts: tuple[int, ...] = (), **columns: Floats) -> Floats:
    row = {"name": "f", "kernel": "formula", "expression": text}
    return compute([row], known_at, cuts=cuts, **columns)["f"]


A = np.array([1.0, -2.0, 0.0, 3.5, math.nan, 4.0, -0.0, 9.0])
B = np.array([2.0, 2.0, 0.0, -7.0, 1.0, math.nan, 5.0, 3.0])
N = math.nan


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("close + high", [3.0, 0.0, 0.0, -3.5, N, N, 5.0, 12.0]),
        ("close - high * 2", [-3.0, -6.0, 0.0, 17.5, N, N, -10.0, 3.0]),
        ("-close", [-1.0, 2.0, -0.0, -3.5, N, -4.0, 0.0, -9.0]),
        ("close / high", [0.5, -1.0, N, -0.5, N, N, 0.0, 3.0]),
        ("1 / close", [1.0, -0.5, N, 1 / 3.5, N, 0.25, N, 1 / 9]),
        ("1 / (1 / close)", [1.0, -2.0, N, 3.5, N, 4.0, N, 9.0]),
        ("close > high", [0.0, 0.0, 0.0, 1.0, N, N, 0.0, 1.0]),
        ("close >= high", [0.0, 0.0, 1.0, 1.0, N, N, 0.0, 1.0]),
        ("close < high", [1.0, 1.0, 0.0, 0.0, N, N, 1.0, 0.0]),
        ("close <= high", [1.0, 1.0, 1.0, 0.0, N, N, 1.0, 0.0]),
        ("min(close, high)", [1.0, -2.0, 0.0, -7.0, N, N, 0.0, 3.0]),
        ("max(close, high)", [2.0, 2.0, 0.0, 3.5, N, N, 5.0, 9.0]),
        ("abs(close)", [1.0, 2.0, 0.0, 3.5, N, 4.0, 0.0, 9.0]),
        ("sign(close)", [1.0, -1.0, 0.0, 1.0, N, 1.0, 0.0, 1.0]),
        ("floor(close)", [1.0, -2.0, 0.0, 3.0, N, 4.0, 0.0, 9.0]),
        ("floor(-close / 4)", [-1.0, 0.0, 0.0, -1.0, N, -1.0, 0.0, -3.0]),
        ("sqrt(close)", [1.0, N, 0.0, math.sqrt(3.5), N, 2.0, 0.0, 3.0]),
        ("log(close)", [0.0, N, N, math.log(3.5), N, math.log(4), N, math.log(9)]),
        ("exp(close)", [math.e, math.exp(-2), 1.0, math.exp(3.5), N, math.exp(4), 1.0, math.exp(9)]),
        ("where(close, 1, high)", [1.0, 1.0, 0.0, 1.0, N, 1.0, 5.0, 1.0]),
        ("where(close > 0, 10 / close, high)", [10.0, 2.0, 0.0, 10 / 3.5, N, 2.5, 5.0, 10 / 9]),
        ("lag(close, 1)", [N, 1.0, -2.0, 0.0, 3.5, N, 4.0, 0.0]),
        ("close - lag(close, 2)", [N, N, -1.0, 5.5, N, 0.5, N, 5.0]),
        ("sin_turn(close / 4)", [1.0, 0.0, 0.0, math.sin(1.75 * math.pi), N, 0.0, 0.0, 1.0]),
        ("cos_turn(close / 4)", [0.0, -1.0, 1.0, math.cos(1.75 * math.pi), N, 1.0, 1.0, 0.0]),
        ("2", [2.0] * 8),
        ("1e300 * close * 1e10", [N, N, 0.0, N, N, N, 0.0, N]),
    ],
)  # fmt: skip
def test_what_each_part_of_a_formula_means(text: str, want: list[float]) -> None:
    np.testing.assert_allclose(formula(text, close=A, high=B), want, rtol=4e-16, atol=1e-15)
    same_bits(formula(text, close=A, high=B, cuts=(1, 3, 4)), formula(text, close=A, high=B))


def test_ago_looks_at_the_clock() -> None:
    minutes = np.array([0, 1, 2, 3, 7, 8, 9, 12, 300, 301])
    known_at = 1_700_000_000_000_000_000 + MINUTE * minutes
    got = formula("ago(close, 3)", known_at, close=minutes.astype(float))
    np.testing.assert_array_equal(got, [N, N, N, 0.0, 3.0, 3.0, 3.0, 9.0, 12.0, 12.0])
    np.testing.assert_array_equal(got, naive.ago(minutes.astype(float), known_at, 3))


OPERANDS = st.sampled_from(["close", "high", "low", "1", "0.5", "3", "lag(close, 1)", "lag(high, 5)"])


def _grow(inner):
    return st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", ">", ">=", "<", "<="]), inner).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        st.tuples(st.sampled_from(["abs", "floor", "sign", "sqrt"]), inner).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"),
        st.tuples(inner, inner, inner).map(lambda t: f"where({t[0]}, {t[1]}, {t[2]})"),
        inner.map(lambda t: f"(-{t})"),
    )


def _missing(function):
    """Lift a NumPy function: missing operands and results that are not finite are missing."""

    def lifted(*operands: Floats) -> Floats:
        with np.errstate(all="ignore"):
            operands = np.broadcast_arrays(*operands)
            value = np.asarray(function(*operands), dtype=float)
        return np.where(np.isfinite(value) & ~np.isnan(operands).any(axis=0), value, math.nan)

    return lifted


class Slow:
    """A value of a formula, evaluated by Python itself."""

    def __init__(self, value: Floats) -> None:
        self.value = np.asarray(value, dtype=float)

    @staticmethod
    def of(function, *operands) -> Slow:
        return Slow(_missing(function)(*(o.value if isinstance(o, Slow) else np.float64(o) for o in operands)))

    def __neg__(self):
        return Slow(-self.value)

    def __add__(self, o):
        return Slow.of(np.add, self, o)

    def __radd__(self, o):
        return Slow.of(np.add, o, self)

    def __sub__(self, o):
        return Slow.of(np.subtract, self, o)

    def __rsub__(self, o):
        return Slow.of(np.subtract, o, self)

    def __mul__(self, o):
        return Slow.of(np.multiply, self, o)

    def __rmul__(self, o):
        return Slow.of(np.multiply, o, self)

    def __truediv__(self, o):
        return Slow.of(np.divide, self, o)

    def __rtruediv__(self, o):
        return Slow.of(np.divide, o, self)

    def __gt__(self, o):
        return Slow.of(np.greater, self, o)

    def __ge__(self, o):
        return Slow.of(np.greater_equal, self, o)

    def __lt__(self, o):
        return Slow.of(np.less, self, o)

    def __le__(self, o):
        return Slow.of(np.less_equal, self, o)


def _choose(condition: Slow, yes: Slow, no: Slow) -> Slow:
    condition, yes, no = (v if isinstance(v, Slow) else Slow(np.float64(v)) for v in (condition, yes, no))
    return Slow(naive.choose(condition.value, yes.value, no.value))


WORDS = {
    "abs": lambda v: Slow.of(np.abs, v),
    "floor": lambda v: Slow.of(np.floor, v),
    "sign": lambda v: Slow.of(np.sign, v),
    "sqrt": lambda v: Slow.of(np.sqrt, v),
    "min": lambda a, b: Slow.of(np.minimum, a, b),
    "max": lambda a, b: Slow.of(np.maximum, a, b),
    "where": _choose,
    "lag": lambda v, bars_back: Slow(naive.lag(v.value, bars_back)),
}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(text=st.recursive(OPERANDS, _grow, max_leaves=9), seed=st.integers(0, 1000))
def test_random_formulas_agree_with_python_s_own_arithmetic(text: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = {name: rng.choice([0.0, 1.0, -1.0, 2.5, 0.25, math.nan, -3.0], 40) for name in ("close", "high", "low")}
    parse(text, "test")
    scope = WORDS | {name: Slow(array) for name, array in values.items()}
    want = eval(text, {"__builtins__": {}}, scope)
    want = want.value if isinstance(want, Slow) else float(want)
    got = formula(text, cuts=(1, 7), **values)
    np.testing.assert_array_equal(got, np.broadcast_to(want, 40), err_msg=text)


# --- validity bitmaps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [*range(35), 63, 64, 65, 128, 255, 256, 257, 1000])
def test_validity_bitmap(n: int) -> None:
    """Arrow's bits, whatever the memory held; the words' rest is cleared, and nothing behind them is touched."""
    random = np.random.default_rng(n)
    for values in (
        random.choice([1.0, math.nan, math.inf, -math.inf, -0.0], n),
        np.where(np.arange(n) < n // 3, math.nan, 1.0),  # a warm-up
        np.ones(n),
        np.full(n, math.nan),
    ):
        words = random.integers(0, 256, (n + 63) // 64 * 8 + 8).astype(np.uint8)
        behind = words[-8:].copy()
        assert validity_bitmap(values, words[:-8]) == np.isnan(values).sum()
        bits = np.unpackbits(words[:-8], bitorder="little")
        np.testing.assert_array_equal(bits[:n], ~np.isnan(values))
        assert not bits[n:].any()
        np.testing.assert_array_equal(words[-8:], behind)


@pytest.mark.parametrize("limit", [1e15, 1.7976931348623157e308, math.inf])
def test_what_lies_beyond_a_limit_is_marked_as_missing(limit: float) -> None:
    beyond = math.nextafter(limit, math.inf)
    edge = [limit, -limit, beyond, -beyond, math.nan, 0.0, 5e-324, math.inf]
    values = np.array(edge * 9)[:70]
    words = np.zeros(16, dtype=np.uint8)
    expected = np.abs(values) <= limit
    assert mark(values.ctypes.data, 70, limit, words.ctypes.data) == 70 - expected.sum()
    np.testing.assert_array_equal(np.unpackbits(words, bitorder="little")[:70], expected)


# --- where compiled kernels are kept ------------------------------------------------------------------

PROBE = """
from mia_kernels.compile import kernel
from mia_kernels.probe_constant import CONSTANT

@kernel
def probe(x: float) -> float:
    return x + CONSTANT
"""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the package's ground floor with a tiny kernel that reads a constant of another file."""
    package = tmp_path / "copy" / "mia_kernels"
    package.mkdir(parents=True)
    for name in ("__init__.py", "compile.py", "errors.py"):
        shutil.copy(Path(mia_kernels.__file__).parent / name, package / name)
    (package / "probe.py").write_text(PROBE)
    (package / "probe_constant.py").write_text("CONSTANT = 1.0\n")
    return package


def in_a_process(package: Path, program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-B", "-c", program],
        env={
            **{k: v for k, v in os.environ.items() if k != "MIA_KERNEL_CACHE"},
            "PYTHONPATH": str(package.parent),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


CALL = """
from mia_kernels.compile import cache_dir
from mia_kernels.probe import probe
value = probe(1.0)
print(value, sum(probe.stats.cache_hits.values()), cache_dir())
"""


def test_no_stale_kernel_is_ever_served(copied: Path, tmp_path: Path) -> None:
    """A constant in another file changes: Numba alone would serve the old machine code (numba#1833)."""
    cache = {"MIA_KERNEL_CACHE": str(tmp_path / "cache")}
    value, hits, folder = in_a_process(copied, CALL, **cache).split()
    assert (value, hits) == ("2.0", "0")
    assert in_a_process(copied, CALL, **cache).split() == ["2.0", "1", folder]

    elsewhere = tmp_path / "another place" / "mia_kernels"
    shutil.copytree(copied, elsewhere)
    assert in_a_process(elsewhere, CALL, **cache).split() == ["2.0", "1", folder], (
        "the same sources share one compilation"
    )

    (copied / "probe_constant.py").write_text("CONSTANT = 41.0\n")
    value, hits, moved = in_a_process(copied, CALL, **cache).split()
    assert (value, hits) == ("42.0", "0")
    assert moved != folder


def test_the_digest_follows_every_source(copied: Path) -> None:
    program = "from mia_kernels.compile import source_digest; print(source_digest())"
    first = in_a_process(copied, program)
    assert len(first) == 16
    assert in_a_process(copied, program) == first
    (copied / "room").mkdir()
    (copied / "room" / "new.py").write_text("")
    second = in_a_process(copied, program)
    (copied / "room" / "new.py").rename(copied / "room" / "renamed.py")
    third = in_a_process(copied, program)
    assert len({first, second, third}) == 3


def test_a_cache_that_cannot_be_written_falls_back_to_a_private_temporary_folder(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {"MIA_KERNEL_CACHE": str(tmp_path / "file" / "cache"), "TMPDIR": str(temporary)}
    value, hits, folder = in_a_process(copied, CALL, **environment).split()
    assert (value, hits) == ("2.0", "0")
    assert Path(folder).is_relative_to(temporary)
    assert Path(folder).parent.stat().st_mode & 0o077 == 0
    assert in_a_process(copied, CALL, **environment).split() == ["2.0", "1", folder]


def test_a_cache_folder_that_cannot_be_used_is_told_of_once(tmp_path):
    """A file where the folder should be: the fallback is taken, and standard error says which, one time."""
    (tmp_path / "taken").write_text("")
    code = "from mia_kernels.compile import cache_dir, cache_root; cache_root(); cache_dir(); print(cache_root())"
    folders = str(Path(mia_kernels.__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": folders, "MIA_KERNEL_CACHE": str(tmp_path / "taken"), "TMPDIR": str(tmp_path)},
    )
    used = done.stdout.strip()
    assert used.startswith(str(tmp_path / "mia-fast-kernels-"))
    assert done.stderr.count("compiled kernels are kept in") == 1
    assert used in done.stderr
    assert str(tmp_path / "taken") in done.stderr
