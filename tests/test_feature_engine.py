"""The engine: the same bits however the rows are cut, saved state, gaps, and errors that say what to do."""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import math
import re
import subprocess
import sys
from pathlib import Path

import bars
import naive
import naive_families
import numpy as np
import polars as pl
import pytest
from bars import NEW_YORK, Bars, catalogue, feed, same_bits
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mia_fast.errors import ConfigError, DataError, StateError
from mia_fast.features import catalogue as catalogues
from mia_fast.features import expression
from mia_fast.features.builder import CALENDAR
from mia_fast.features.catalogue import Catalogue
from mia_fast.features.cross import DailyHistory
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.frame import generate_features, matrix_frame
from mia_fast.features.plan import Plan, make_plan, new_york
from mia_fast.features.rows import Column, Warmup
from mia_fast.tables import mapping
from mia_fast.workspace import Workspace, shipped

assert naive_families.FEATURES.keys() <= naive.TWINS.keys()
SESSION = bars.SESSION_MINUTES
SIZES = (1, 2, 3, 7, 64, 255, 256, 257)


@pytest.fixture(scope="module")
def gappy() -> Bars:
    return bars.make(3, gaps=True, seed=6)


@pytest.fixture(scope="module")
def plan(gappy: Bars) -> Plan:
    return bars.plan_for(gappy)


def in_blocks(plan: Plan, data: Bars, ends: list[int]) -> tuple[bars.Floats, bytes]:
    engine = FeatureEngine(plan)
    parts = [feed(engine, block) for block in bars.cut(data, ends)]
    return np.concatenate(parts, axis=1), engine.save()


# --- the same bits at every cut ---------------------------------------------------------------------


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_blocks_of_any_size(gappy: Bars, size: int, auxiliary: bool) -> None:
    plan = bars.plan_for(gappy, auxiliary=auxiliary)
    whole, state = in_blocks(plan, gappy, [])
    got, got_state = in_blocks(plan, gappy, list(range(size, len(gappy), size)))
    same_bits(got, whole, plan.outputs)
    assert got_state == state


def test_live_is_batch(gappy: Bars, plan: Plan) -> None:
    whole, state = in_blocks(plan, gappy, [])
    engine = FeatureEngine(plan)
    same_bits(feed(engine, gappy, live=True), whole, plan.outputs)
    assert engine.save() == state
    assert engine.rows == len(gappy)
    assert engine.last_known_at == gappy.known_at[-1]


def test_auxiliary_columns_change_no_feature(gappy: Bars) -> None:
    without = FeatureEngine(bars.plan_for(gappy, auxiliary=False))
    with_them = FeatureEngine(bars.plan_for(gappy))
    same_bits(feed(without, gappy), feed(with_them, gappy)[: len(catalogue().names)], catalogue().names)


@pytest.mark.parametrize("seed", range(4))
def test_random_cuts_live_and_batch_mixed(gappy: Bars, plan: Plan, seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole, state = in_blocks(plan, gappy, [])
    ends = np.unique(rng.integers(0, len(gappy), 40)).tolist()
    engine = FeatureEngine(plan)
    parts = [feed(engine, block, live=bool(rng.integers(2))) for block in bars.cut(gappy, ends)]
    same_bits(np.concatenate(parts, axis=1), whole, plan.outputs)
    assert engine.save() == state


@pytest.mark.parametrize("seed", range(3))
def test_a_saved_state_goes_on_in_another_engine(gappy: Bars, plan: Plan, seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole, state = in_blocks(plan, gappy, [])
    parts = []
    saved = FeatureEngine(plan).save()
    for block in bars.cut(gappy, sorted({1, 255, 257, *rng.integers(0, len(gappy), 5).tolist()})):
        engine = FeatureEngine(plan)
        feed(engine, bars.make(1, seed=50))  # what it had seen before must not matter
        engine.restore(saved)
        parts.append(feed(engine, block, live=len(block) < 400))
        saved = engine.save()
    same_bits(np.concatenate(parts, axis=1), whole, plan.outputs)
    assert saved == state


def test_reset_forgets_everything(gappy: Bars, plan: Plan) -> None:
    engine = FeatureEngine(plan)
    first = feed(engine, gappy).copy()
    engine.reset()
    assert engine.rows == 0
    assert engine.save() == FeatureEngine(plan).save()
    same_bits(feed(engine, gappy), first, plan.outputs)


def test_given_memory_is_filled_and_nothing_around_it(gappy: Bars, plan: Plan) -> None:
    n = len(gappy)
    guarded = np.full(len(plan.outputs) * n + 512, 7.0)
    out = guarded[256:-256].reshape(len(plan.outputs), n)
    assert FeatureEngine(plan).batch(gappy.known_at, gappy.columns, out=out) is out
    same_bits(out, feed(FeatureEngine(plan), gappy), plan.outputs)
    assert (guarded[:256] == 7.0).all()
    assert (guarded[-256:] == 7.0).all()


def test_input_is_read_only_and_may_be_strided(gappy: Bars, plan: Plan) -> None:
    table = np.column_stack([gappy.columns[name] for name in plan.inputs])
    before = table.copy()
    table.flags.writeable = False
    strided = {name: table[:, k] for k, name in enumerate(plan.inputs)}
    known_at = gappy.known_at.copy()
    known_at.flags.writeable = False
    same_bits(FeatureEngine(plan).batch(known_at, strided), feed(FeatureEngine(plan), gappy), plan.outputs)
    same_bits(table, before)


@pytest.mark.real
def test_a_real_month_in_all_cuts(real_data: Path) -> None:
    month = bars.real(real_data, 30_000)
    plan = bars.plan_for(month)
    whole, state = in_blocks(plan, month, [])
    for size in SIZES[3:]:
        got, got_state = in_blocks(plan, month, list(range(size, len(month), size)))
        same_bits(got, whole, plan.outputs)
        assert got_state == state
    engine = FeatureEngine(plan)
    same_bits(feed(engine, month, live=True), whole, plan.outputs)
    assert engine.save() == state
    rng = np.random.default_rng(8)
    got, got_state = in_blocks(plan, month, np.unique(rng.integers(0, len(month), 300)).tolist())
    same_bits(got, whole, plan.outputs)
    assert got_state == state
    # The smallest blocks on three thousand rows in the middle, from a state that was handed over.
    engine = FeatureEngine(plan)
    feed(engine, month.rows(slice(0, 14_001)))
    saved = engine.save()
    for size in (2, 3):
        engine.restore(saved)
        middle = [feed(engine, block) for block in bars.cut(month.rows(slice(14_001, 17_001)), range(size, 3000, size))]
        same_bits(np.concatenate(middle, axis=1), whole[:, 14_001:17_001], plan.outputs)


# --- other lengths of bars ----------------------------------------------------------------------------


def test_bars_of_five_minutes_agree_with_the_twins() -> None:
    data = bars.make(7, seed=5, minutes=5)
    plan = make_plan(catalogue(), tuple(data.columns), bar_minutes=5, tick_size=0.25)
    assert plan.warmups["vol_trend_1h"] == Warmup(rows=24)
    assert plan.warmups["realized_vol_30m"] == Warmup(rows=6)
    assert {"realized_vol_5m", "volatility_spike_indicator"} <= set(plan.missing)
    assert all(lack.startswith("bars that fit") for lacks in plan.missing.values() for lack in lacks)
    assert plan.missing["realized_vol_5m"] == ("bars that fit 5 minutes 2 to 127 times",)
    got = dict(zip(plan.outputs, feed(FeatureEngine(plan), data), strict=True))
    twin = naive.Twin(data.known_at, data.columns, bar_minutes=5)
    for name, values in got.items():
        if name in plan.missing:
            assert np.isnan(values).all(), name
            continue
        want = twin[name]
        assert (np.isnan(values) == np.isnan(want)).all(), name
        decided = ~naive.UNDECIDED[name](twin) if name in naive.UNDECIDED else np.ones(len(data), dtype=bool)
        np.testing.assert_allclose(values[decided], want[decided], rtol=1e-9, atol=5e-8, err_msg=name)
        first = int(np.argmax(~np.isnan(values)))
        warmup = plan.warmups[name]
        if not warmup.sessions:
            assert first == warmup.rows, name


@pytest.mark.parametrize(
    ("length", "unfit"), [(2.0, {"realized_vol_5m", "realized_vol_15m"}), (0.25, {"realized_vol_60m"})]
)
def test_bars_that_do_not_fit_a_window_leave_it_null_and_say_so(length: float, unfit: set[str]) -> None:
    data = bars.make(1)
    plan = make_plan(
        catalogue(), tuple(data.columns), bar_minutes=length, tick_size=0.25, auxiliary=["realized_vol_60m"]
    )
    missing = {name for name, lacks in plan.missing.items() if lacks[0].startswith("bars that fit")}
    reading = {"realized_vol_5m": {"volatility_spike_indicator"}, "realized_vol_60m": {"vol_trend_1h"}}
    wanted = unfit.union(*(reading.get(name, set()) for name in unfit))
    assert missing >= wanted
    for name in missing:  # each of them says whose window does not fit
        for lack in plan.missing[name]:
            span = int(re.findall(r"\d+(?= minutes)", lack)[0])
            assert _looks_back(name, span), name
    known_at = data.known_at[0] + (np.arange(len(data)) * length * 60e9).astype(np.int64)
    got = FeatureEngine(plan).batch(known_at, data.columns)
    for name in wanted:
        assert np.isnan(got[plan.outputs.index(name)]).all(), name


# --- short and empty input --------------------------------------------------------------------------


def test_no_row(plan: Plan) -> None:
    engine = FeatureEngine(plan)
    before = engine.save()
    none = np.zeros(0)
    assert engine.batch(np.zeros(0, dtype=np.int64), dict.fromkeys(plan.inputs, none)).shape == (len(plan.outputs), 0)
    assert engine.save() == before


def test_one_row_at_the_open() -> None:
    data = bars.make(1).rows(slice(0, 1))
    plan = bars.plan_for(data)
    got = dict(zip(plan.outputs, feed(FeatureEngine(plan), data)[:, 0].tolist(), strict=True))
    given_values = {name for name, value in got.items() if not math.isnan(value)}
    assert given_values == {
        *(name for name in plan.outputs if plan.warmups[name] == Warmup() and name not in plan.missing),
    }


# --- gaps, the break and the sessions ---------------------------------------------------------------


def column(data: Bars, name: str) -> bars.Floats:
    plan = bars.plan_for(data)
    return feed(FeatureEngine(plan), data)[plan.outputs.index(name)]


@pytest.fixture(scope="module")
def two_days() -> Bars:
    return bars.make(2, seed=4)


@pytest.mark.parametrize("minutes", [5, 15, 30])
def test_a_return_over_a_gap_counts_only_with_both_closes_in_the_window(two_days: Bars, minutes: int) -> None:
    keep = np.ones(len(two_days), dtype=bool)
    keep[600:603] = False  # closes 597, 598, 599, then 603
    data = two_days.rows(keep)
    data.columns["close"][600:] += 100.0  # the jump happens over the gap
    name = f"realized_vol_{minutes}m"
    got = column(data, name)
    returns = np.diff(np.log(data.columns["close"]), prepend=math.nan)
    for row in range(600, 640):
        age = np.round((data.known_at[row] - data.known_at) / bars.MINUTE).astype(int)
        inside = [k for k in range(1, row + 1) if age[k - 1] <= minutes]
        want = np.std(returns[inside], ddof=1) if len(inside) >= max(2, minutes / 2) else math.nan
        np.testing.assert_allclose(got[row], want, rtol=1e-11, err_msg=f"row {row}")
    assert np.isnan(got[600]) == (minutes == 5)
    jump = 100.0 / 5000.0 / minutes
    if minutes > 5:
        assert got[600] > jump


@pytest.mark.parametrize(("minutes", "first"), [(5, 3), (15, 8), (30, 15)])
def test_after_the_break_a_window_waits_for_half_of_its_returns(two_days: Bars, minutes: int, first: int) -> None:
    got = column(two_days, f"realized_vol_{minutes}m")
    assert not np.isnan(got[SESSION - 1])
    assert np.isnan(got[SESSION : SESSION + first]).all()
    assert not np.isnan(got[SESSION + first :]).any()


def test_one_hour_ago_looks_at_the_clock_and_not_at_rows(two_days: Bars) -> None:
    keep = np.ones(len(two_days), dtype=bool)
    keep[500:510] = False
    data = two_days.rows(keep)
    plan = bars.plan_for(data)
    matrix = dict(zip(plan.outputs, feed(FeatureEngine(plan), data), strict=True))
    now, trend = matrix["realized_vol_60m"], matrix["vol_trend_1h"]
    for row, ago in ((499, 439), (500, 450), (549, 499), (550, 499), (555, 499), (559, 499), (560, 500), (700, 640)):
        # Row 550 - the 560th minute - asks for minute 500, which is missing: minute 499 was the last known.
        minute = row + 10 * (row >= 500)
        while not keep[minute - 60] and minute > 0:
            minute -= 1
        assert keep[: minute - 60].sum() == ago
        np.testing.assert_allclose(trend[row], now[row] / now[ago] - 1, rtol=1e-12)


def test_session_columns_start_again_at_every_open(two_days: Bars) -> None:
    plan = bars.plan_for(two_days)
    both = feed(FeatureEngine(plan), two_days)
    second = feed(FeatureEngine(plan), two_days.rows(slice(SESSION, None)))
    for name in (
        "vwap",
        "poc",
        "vah",
        "val",
        "volume_at_poc",
        "volume_at_vah",
        "volume_at_val",
        "price_memory_zone_overlap",
    ):
        row = plan.outputs.index(name)
        same_bits(both[row, SESSION:], second[row])


def test_a_session_seen_from_its_middle_gives_nothing(two_days: Bars) -> None:
    late = two_days.rows(slice(1, None))  # the first bar closes at 18:02
    for name in ("vwap", "poc", "volume_at_val", "price_memory_zone_overlap"):
        got = column(late, name)
        assert np.isnan(got[: SESSION - 1]).all(), name
        assert not np.isnan(got[SESSION - 1 :]).any(), name
    assert np.isnan(column(late, "vol_historical_1d")).all()


def test_a_late_first_bar_after_a_break_still_opens_the_session(two_days: Bars) -> None:
    keep = np.ones(len(two_days), dtype=bool)
    keep[SESSION : SESSION + 4] = False
    assert not np.isnan(column(two_days.rows(keep), "vwap")[SESSION:]).any()


def test_a_friday_is_followed_by_monday_s_session() -> None:
    data = bars.make(7, seed=4)  # Monday to Friday, Monday, Tuesday
    begins = naive.sessions(naive.Twin(data.known_at, data.columns))[0]
    assert np.flatnonzero(begins).tolist() == [SESSION * k for k in range(7)]
    got = column(data, "vol_historical_1d")
    assert [len(np.unique(got[SESSION * k : SESSION * (k + 1)])) for k in range(1, 7)] == [1] * 6
    returns = np.diff(np.log(data.columns["close"]), prepend=math.nan)
    friday = math.sqrt(252 * np.sum(returns[4 * SESSION : 5 * SESSION] ** 2))
    assert got[5 * SESSION] == pytest.approx(friday, rel=1e-12)


def test_the_session_opens_at_18_new_york_in_summer_and_winter() -> None:
    data = bars.make(12)
    offsets = {dt.datetime.fromtimestamp(t / 1e9, NEW_YORK).utcoffset() for t in data.known_at.tolist()}
    assert len(offsets) == 2
    got = column(data, "vwap")
    typical = (data.columns["high"] + data.columns["low"] + data.columns["close"]) / 3
    for k in range(12):
        assert got[SESSION * k] == pytest.approx(typical[SESSION * k], rel=1e-15)


# --- absurd input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("high", "until"),
    [
        (1e6, SESSION),  # beyond the 8192 ticks: nothing more until the next session
        (9.9e14, SESSION),
        (1.1e15, 201),  # not a price at all: missing, and left out
        (1e19, 201),
        (1e20, 201),
        (1.7e308, 201),
    ],
)
def test_an_absurd_price_leaves_the_profile(high: float, until: int) -> None:
    """In a process of its own: the fault it guards against is a write outside the profile."""
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
import bars, numpy as np
data = bars.make(2, seed=3).injected(200, high={high!r})
plan = bars.plan_for(data)
out = dict(zip(plan.outputs, bars.feed(bars.FeatureEngine(plan), data), strict=True))
for name in ("poc", "vah", "val", "volume_at_poc", "volume_at_vah", "volume_at_val"):
    missing = np.flatnonzero(np.isnan(out[name]))
    assert missing.tolist() == list(range(200, {until})), (name, missing)
assert not np.isinf(np.array(list(out.values()))).any()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-800:]


@pytest.mark.parametrize(
    "values",
    [{"volume": 1e308}, {"low": -1e308}, {"high": 1e15}, {"close": 1e308}, {"close": 5e-324}, {"volume": -5.0}],
)
def test_absurd_numbers_never_become_infinite(values: dict[str, float]) -> None:
    data = bars.make(2, seed=3).injected(300, **values)
    plan = bars.plan_for(data)
    out = feed(FeatureEngine(plan), data)
    assert [plan.outputs[k] for k in np.flatnonzero(np.isinf(out).any(axis=1))] == []
    # ... and never for ever: everything is back in the next session.
    assert np.isfinite(out[[plan.outputs.index(name) for name in ("vwap", "poc")], SESSION:]).all()


# --- anything at all --------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 420),
    start=st.integers(0, 3 * SESSION),
    gap=st.sampled_from([0.0, 0.02, 0.3]),
    missing=st.sampled_from([0.0, 0.01, 0.2]),
    liveliness=st.sampled_from([0.0, 0.3, 2.0, 40.0]),
    thin=st.booleans(),
    cuts=st.lists(st.integers(0, 420), max_size=6),
)
@example(seed=0, n=420, start=SESSION - 60, gap=0.3, missing=0.2, liveliness=0.3, thin=True, cuts=[255, 256, 257])
def test_random_ticks_volumes_gaps_and_cuts(
    seed: int, n: int, start: int, gap: float, missing: float, liveliness: float, thin: bool, cuts: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    data = bars.make(4, seed=seed % 3)
    kept = np.ones(len(data), dtype=bool)
    kept[start:] = rng.random(len(data) - start) >= gap
    kept[:start] = False
    data = data.rows(kept).rows(slice(0, n))
    n = len(data)
    close = 16_000 + np.cumsum(np.rint(rng.normal(0.0, liveliness, n)))
    top = close + np.rint(np.abs(rng.normal(0.0, liveliness, n)))
    bottom = close - np.rint(np.abs(rng.normal(0.0, liveliness, n)))
    volume = rng.integers(0, 3 if thin else 900, n).astype(float)
    columns = {"open": close / 4, "high": top / 4, "low": bottom / 4, "close": close / 4, "volume": volume}
    for array in columns.values():
        array[rng.random(n) < missing] = rng.choice([math.nan, math.inf, -math.inf])
    data = data.altered(**columns)

    plan = bars.plan_for(data)
    whole, state = in_blocks(plan, data, [])
    assert not np.isinf(whole).any()
    got, got_state = in_blocks(plan, data, sorted({c for c in cuts if c < n}))
    same_bits(got, whole, plan.outputs)
    assert got_state == state
    engine = FeatureEngine(plan)
    same_bits(feed(engine, data, live=True), whole, plan.outputs)

    twin = naive.Twin(data.known_at, data.columns)
    for name, values in zip(plan.outputs, whole, strict=True):
        want = twin[name]
        decided = ~naive.UNDECIDED[name](twin) if name in naive.UNDECIDED else np.ones(n, dtype=bool)
        assert (np.isnan(values) == np.isnan(want)).all(), name
        scale = (
            4000.0
            if "index points" in units().get(name, "index points")
            else np.max(np.abs(want), initial=1.0, where=~np.isnan(want))
        )
        np.testing.assert_allclose(values[decided], want[decided], rtol=1e-9, atol=1e-11 * scale, err_msg=name)
        low, high = ranges().get(name, (None, None))
        seen = values[~np.isnan(values)]
        if missing == 0.0:
            assert low is None or (seen >= low).all(), name
            assert high is None or (seen <= high).all(), name


def units() -> dict[str, str]:
    return {feature.name: feature.unit for feature in catalogue().features}


def ranges() -> dict[str, tuple[float | None, float | None]]:
    return {feature.name: feature.range for feature in catalogue().features}


# --- other markets ----------------------------------------------------------------------------------


def daily(closes: dict[dt.date, float], hour: int = 16, minute: int = 15) -> pl.DataFrame:
    moments = [dt.datetime(d.year, d.month, d.day, hour, minute, tzinfo=NEW_YORK) for d in closes]
    return pl.DataFrame(
        {
            "timestamp": pl.Series(moments).dt.convert_time_zone("UTC").dt.cast_time_unit("ns"),
            "symbol": "VIX",
            "close": list(closes.values()),
        }
    )


VIX_COLUMNS = ("vix", "vix_known_at", "vix_mean_5", "vix_mean_20", "vix_deviation_20")


def vix_history(cross: pl.DataFrame) -> DailyHistory | None:
    """The inputs that the shipped catalogue takes of the VIX alone."""
    return DailyHistory.from_cross(cross, catalogue().inputs, mapping.day_closes(Workspace(shipped())))


@pytest.fixture(scope="module")
def vix_closes() -> dict[dt.date, float]:
    rng = np.random.default_rng(3)
    days = [dt.date(2024, 2, 1) + dt.timedelta(days=k) for k in range(50)]
    return {day: round(float(rng.uniform(11, 30)), 2) for day in days if day.weekday() < 5}


def test_a_daily_close_counts_from_16_15_new_york_on(vix_closes: dict[dt.date, float]) -> None:
    data = bars.make(12)  # over the change to daylight saving time
    history = vix_history(daily(vix_closes))
    assert history is not None
    got = history.columns(data.known_at)
    want = naive.vix_columns(data.known_at, list(vix_closes), list(vix_closes.values()))
    assert tuple(got) == VIX_COLUMNS
    for name in VIX_COLUMNS:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-14, atol=1e-12, err_msg=name)
    for row in (0, 5, 1334, 1335, 1336, len(data) - 1):
        same_bits(np.array([history.at(int(data.known_at[row]))]), np.array([[got[n][row] for n in VIX_COLUMNS]]))
    minute = naive.calendar(data.known_at)["minute_of_day"]
    changes = np.flatnonzero(np.diff(got["vix"]) != 0) + 1
    assert set(minute[changes]) == {16 * 60 + 15}


def test_nothing_is_known_before_the_first_close(vix_closes: dict[dt.date, float]) -> None:
    few = dict(list(vix_closes.items())[:22])
    history = vix_history(daily(few))
    assert history is not None
    first = int(dt.datetime(2024, 2, 1, 16, 15, tzinfo=NEW_YORK).timestamp()) * 10**9
    assert all(math.isnan(value) for value in history.at(first - 1))
    assert history.at(first)[:2] == (few[dt.date(2024, 2, 1)], first / 1e9)
    assert [math.isnan(value) for value in history.at(first)] == [False, False, True, True, True]


def test_a_value_after_16_15_is_not_that_day_s_close(vix_closes: dict[dt.date, float]) -> None:
    late = daily({day: -value for day, value in vix_closes.items()}, hour=16, minute=16)
    both = pl.concat([daily(vix_closes), late]).sort("timestamp")
    history, alone = vix_history(both), vix_history(daily(vix_closes))
    assert history is not None
    assert alone is not None
    at = bars.make(3).known_at
    for name in VIX_COLUMNS:
        same_bits(history.columns(at)[name], alone.columns(at)[name])


def test_cross_without_vix_gives_none() -> None:
    frame = daily({dt.date(2024, 2, 1): 15.0}).with_columns(symbol=pl.lit("SPY"))
    assert vix_history(frame) is None


def test_the_return_since_a_late_vix_close_starts_at_the_close_itself() -> None:
    """The daily close reaches the engine 40 minutes late: the reference stays the bar at 16:15."""
    data = bars.make(3, seed=3)
    minute = naive.calendar(data.known_at)["minute_of_day"]
    row = int(np.flatnonzero(minute == 975)[1])
    key = data.columns["vix_known_at"].copy()
    key[row : row + 40] = key[row - 1]
    on_time, late = (
        column(data, "es_return_since_vix_close"),
        column(data.altered(vix_known_at=key), "es_return_since_vix_close"),
    )
    same_bits(late[:row], on_time[:row])
    same_bits(late[row + 40 :], on_time[row + 40 :])


# --- frames -----------------------------------------------------------------------------------------


def frame_of(data: Bars) -> pl.DataFrame:
    start = pl.Series("timestamp", data.known_at - bars.MINUTE).cast(pl.Datetime("ns", "UTC"))
    return pl.DataFrame({"timestamp": start, **{k: v for k, v in data.columns.items() if k not in VIX_COLUMNS}})


def test_a_frame_gives_the_engine_s_bits(workspace: Workspace, vix_closes: dict[dt.date, float]) -> None:
    data = bars.make(2, seed=4)
    frame = frame_of(data)
    got = generate_features(frame, cross=daily(vix_closes), auxiliary=["vix_mean_5"], workspace=workspace)
    assert got.columns == ["timestamp", *catalogue().names, "vix_mean_5"]
    assert got["timestamp"].to_list() == frame["timestamp"].to_list()
    history = vix_history(daily(vix_closes))
    assert history is not None
    full = data.altered(**history.columns(data.known_at))
    plan = make_plan(catalogue(), tuple(full.columns), bar_minutes=1, tick_size=0.25, auxiliary=["vix_mean_5"])
    same_bits(got.drop("timestamp").to_numpy().T.copy(), feed(FeatureEngine(plan), full), plan.outputs)
    assert got["vol_historical_5d"].null_count() == len(data)
    assert got.select(pl.col(pl.Float64).is_nan().any()).sum_horizontal().item() == 0  # null, not NaN
    written = pl.read_csv(workspace.data / "features" / "features_latest.csv")
    assert written.columns == ["timestamp", *catalogue().names]
    assert len(written) == 1440
    assert written["timestamp"][-1] == "2024-02-27T21:59:00.000000Z"
    np.testing.assert_array_equal(written["rsi_14"].to_numpy(), got["rsi_14"].tail(1440).to_numpy())


def test_without_cross_the_vix_columns_are_null(workspace: Workspace) -> None:
    got = generate_features(frame_of(bars.make(1)), workspace=workspace)
    null = {name for name in got.columns if got[name].null_count() == len(got)}
    assert {"vix_term_1m", "vix_rolling_mean", "vix_rolling_std"} <= null
    assert "close" not in null


@pytest.mark.parametrize("rows", [1, 2])
def test_a_frame_of_few_rows(workspace: Workspace, rows: int) -> None:
    got = generate_features(frame_of(bars.make(1).rows(slice(0, rows))), workspace=workspace)
    assert got.shape == (rows, 1 + len(catalogue().names))
    assert got["close"].null_count() == 0
    assert got["rsi_14"].null_count() == rows


def test_nan_becomes_null_and_nothing_else_does() -> None:
    matrix = np.array([[1.0, math.nan, -0.0], [math.nan] * 3, [2.0, 3.0, 4.0]])
    stamps = pl.Series([0, 1, 2]).cast(pl.Datetime("ns", "UTC"))
    got = matrix_frame(stamps, ["a", "b", "c"], matrix)
    assert got["a"].to_list() == [1.0, None, -0.0]
    assert got["b"].to_list() == [None] * 3
    assert got["c"].null_count() == 0


# --- what the plan reports --------------------------------------------------------------------------


def test_the_plan_names_what_is_missing(gappy: Bars) -> None:
    no_vix = gappy.without("vix", "vix_known_at", "vix_mean_5", "vix_mean_20", "vix_deviation_20")
    lost = {name for name in catalogue().names if _market_inputs(name) & set(VIX_COLUMNS)}
    assert {"vix_term_1m", "vix_rolling_mean", "vix_rolling_std", "vol_term_slope"} <= lost
    plan = make_plan(
        catalogue(), tuple(no_vix.columns), bar_minutes=1, tick_size=0.25, auxiliary=["es_return_since_vix_close"]
    )
    assert plan.missing["vix_term_1m"] == ("vix",)
    assert plan.missing["vix_rolling_mean"] == ("vix_mean_20",)
    assert plan.missing["vix_rolling_std"] == ("vix_deviation_20",)
    assert set(plan.null_features) == lost
    assert set(plan.missing) - set(plan.null_features) == {"es_return_since_vix_close"}
    assert not set(plan.inputs) & set(VIX_COLUMNS)
    assert plan.inputs[:5] == ("open", "high", "low", "close", "volume")
    assert plan.outputs == (*catalogue().names, "es_return_since_vix_close")
    out = np.full((len(plan.outputs), len(gappy)), 5.0)
    FeatureEngine(plan).batch(no_vix.known_at, no_vix.columns, out=out)
    whole = feed(FeatureEngine(bars.plan_for(gappy)), gappy)
    for k, name in enumerate(plan.features):
        if name in plan.missing:
            assert np.isnan(out[k]).all()
        else:
            same_bits(out[k], whole[k])
    assert np.isnan(out[-1]).all(), "an auxiliary column without its input is null, not what the memory held"


def test_live_too_a_missing_column_is_null(gappy: Bars) -> None:
    no_volume = gappy.without("volume").rows(slice(0, 300))
    plan = bars.plan_for(no_volume)
    assert plan.missing["vwap"] == ("volume",)
    assert plan.missing["market_liquidity_score"] == ("volume",)
    same_bits(feed(FeatureEngine(plan), no_volume, live=True), feed(FeatureEngine(plan), no_volume), plan.outputs)
    assert np.isnan(feed(FeatureEngine(plan), no_volume)[plan.outputs.index("vwap")]).all()


def test_without_any_column_only_the_calendar_is_left(gappy: Bars) -> None:
    plan = make_plan(catalogue(), (), bar_minutes=1, tick_size=0.25)
    got = FeatureEngine(plan).batch(gappy.known_at, {})
    given_values = {name for name, row in zip(plan.outputs, got, strict=True) if not np.isnan(row).any()}
    inputs = {column.name for column in catalogue().inputs}
    assert given_values == {name for name in plan.features if not _market_inputs(name) & inputs}
    assert {"time_of_day_sin", "day_of_week"} <= given_values
    assert set(plan.missing) == set(plan.features) - given_values


@functools.cache
def _rows() -> dict[str, Column]:
    return {column.name: column for column in (*catalogue().auxiliary, *catalogue().features)}


def _reads(name: str) -> tuple[str, ...]:
    """The columns that a row of the catalogue reads; none of an input, nor of its copy under the same name."""
    row = _rows().get(name)
    if row is None or row.inputs == (name,):
        return ()
    return row.inputs if row.expression is None else expression.parse(row.expression, name).columns


def _market_inputs(name: str) -> set[str]:
    """Every name that a column of the catalogue rests on and that no row computes."""
    return {found for source in _reads(name) for found in _market_inputs(source)} if _reads(name) else {name}


def _looks_back(name: str, minutes: int) -> bool:
    """A row, or one that it rests on, has a window of so many minutes or a value of so long ago."""
    row = _rows().get(name)
    if row is None:
        return False
    tokens = () if row.expression is None else expression.parse(row.expression, name).tokens
    own = row.params.get("minutes") == minutes or any(token.minutes == minutes for token in tokens)
    return own or any(_looks_back(source, minutes) for source in _reads(name))


def test_calendar_names_are_what_the_page_says() -> None:
    assert set(CALENDAR) == set(naive.calendar(np.array([0])))


# --- a catalogue that cannot be used ----------------------------------------------------------------


def with_rows(*features: dict[str, object], auxiliary: tuple[dict[str, object], ...] = ()) -> Catalogue:
    """A catalogue of the shipped inputs and these rows."""
    contract = {
        "family": "test",
        "unit": "-",
        "range": (None, None),
        "warmup": 0,
        "definition": "for a test",
        "source": "test",
    }
    return Catalogue.model_validate(
        {
            "inputs": [c.model_dump() for c in catalogue().inputs],
            "auxiliary": auxiliary,
            "features": [contract | feature for feature in features],
        }
    )


def refuse(*features: dict[str, object], auxiliary: tuple[dict[str, object], ...] = ()) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        make_plan(
            with_rows(*features, auxiliary=auxiliary),
            ("close", "high"),
            bar_minutes=1,
            tick_size=0.25,
        )
    assert caught.value.where is not None
    assert caught.value.where.startswith("feature_sets.yaml")
    return caught.value


def ema(**changes: object) -> dict[str, object]:
    return {"name": "mine", "kernel": "ema", "inputs": ["close"], "params": {"period": 20}, "warmup": 19} | changes


def formula(expression: str, **changes: object) -> dict[str, object]:
    return {"name": "mine", "kernel": "formula", "expression": expression} | changes


@pytest.mark.parametrize(
    ("row", "what", "hint"),
    [
        (ema(kernel="emma"), "unknown kernel 'emma'", "did you mean 'ema'?"),
        (ema(kernel="zzzz"), "unknown kernel 'zzzz'", "kernels: adx, "),
        (ema(inputs=["close", "high"]), "kernel 'ema' takes 1 inputs, got 2", "inputs: any"),
        (ema(inputs=[]), "takes 1 inputs, got 0", "inputs: any"),
        (ema(params={"period": 20, "speed": 2}), "has no parameter 'speed'", "parameters: period"),
        (ema(params={}), "parameter 'period' (length in bars) is missing", "from 2 to 128"),
        (ema(params={"period": 1}), "period = 1", None),
        (ema(params={"period": 129}), "from 2 to 128", None),
        (ema(params={"period": 2.5}), "period = 2.5: length in bars is a whole number", None),
        (ema(output="mean"), "has one output; remove 'output'", None),
        (ema(kernel="window"), "has no output None", "outputs: mean, deviation, sample_deviation, sum"),
        (ema(kernel="window", output="median"), "has no output 'median'", "outputs: mean"),
        (ema(warmup=18), "declares a warm-up of 18 rows, but its kernel and inputs give 19 rows", "write warmup: 19"),
        (ema(inputs=["clsoe"]), "reads an unknown column 'clsoe'", "did you mean 'close'?"),
        (ema(inputs=["zzzzzzzz"]), "reads an unknown column 'zzzzzzzz'", "declare it under inputs or auxiliary"),
        (ema(inputs=["mine"]), "columns depend on themselves: mine -> mine", "break the circle"),
        (formula("close +"), "'close +' is not an expression", None),
        (formula("clsoe + 1"), "reads an unknown column 'clsoe'", "did you mean 'close'?"),
        (formula("median(close)"), "'median(close)' is not part of the formula language", "functions: abs, sqrt"),
        (formula("close ** 2"), "'close ** 2' is not part", None),
        (formula("close % 2"), "is not part", None),
        (formula("close == 2"), "is not part", None),
        (formula("1 < close < 2"), "'1 < close < 2' is not part", None),
        (formula("not close"), "is not part", None),
        (formula("True"), "'True' is not part", None),
        (formula("'text'"), "is not part", None),
        (formula("close.real"), "is not part", None),
        (formula("__import__('os')"), "is not part", None),
        (formula("lambda: 1"), "is not part", None),
        (formula("abs(close, high)"), "is not part", None),
        (formula("abs()"), "is not part", None),
        (formula("abs(x=close)"), "is not part", None),
        (formula("where(close, 1)"), "is not part", None),
        (formula("lag(close, 0)"), "is not part", "lag takes 1 to 128 bars"),
        (formula("lag(close, 129)"), "is not part", "lag takes 1 to 128 bars"),
        (formula("lag(close, 1.5)"), "is not part", None),
        (formula("lag(close + 1, 1)"), "is not part", None),
        (formula("ago(close, 0)"), "is not part", "ago takes 1 to 128 minutes"),
        (formula("ago(close, 129)"), "is not part", "ago takes 1 to 128 minutes"),
        (formula("lag(close, True)"), "is not part", None),
        (formula("close if high else 1"), "is not part", None),
        (formula("1e999 * close"), "is not part", None),
        (
            ema(kernel="macd", params={"fast": 26, "slow": 12, "signal": 9}, output="line", warmup=19),
            "fast = 26",
            None,
        ),
    ],
)
def test_a_row_that_cannot_be_used(row: dict[str, object], what: str, hint: str | None) -> None:
    error = refuse(row)
    assert what in error.what
    assert error.where is not None
    assert "mine" in error.where or "columns depend" in error.what
    if hint is not None:
        assert error.hint is not None
        assert hint in error.hint


def test_a_circle_is_named() -> None:
    circle = (
        {"name": "a", "kernel": "formula", "expression": "b + 1"},
        {"name": "b", "kernel": "formula", "expression": "lag(c, 1)"},
        {"name": "c", "kernel": "ema", "inputs": ["a"], "params": {"period": 2}},
    )
    error = refuse(ema(), auxiliary=circle)
    assert re.search(r"columns depend on themselves: (a -> b -> c -> a|b -> c -> a -> b|c -> a -> b -> c)", error.what)


def test_a_formula_may_be_twelve_deep_and_no_deeper() -> None:
    def nested(depth: int) -> str:
        return "close" if depth == 1 else f"(close + {nested(depth - 1)})"

    make_plan(with_rows(formula(nested(12))), ("close",), bar_minutes=1, tick_size=0.25)
    error = refuse(formula(nested(13)))
    assert "nests 13 values deep; at most 12" in error.what
    assert error.hint is not None
    assert "auxiliary" in error.hint


def test_a_column_is_put_out_once() -> None:
    for auxiliary in (["close"], ["sma_20", "sma_20"]):
        with pytest.raises(ConfigError, match="put out twice"):
            make_plan(catalogue(), ("close",), bar_minutes=1, tick_size=0.25, auxiliary=auxiliary)


def test_an_auxiliary_column_must_exist() -> None:
    with pytest.raises(ConfigError, match="unknown column 'sma_21'") as caught:
        make_plan(catalogue(), ("close",), bar_minutes=1, tick_size=0.25, auxiliary=["sma_21"])
    assert caught.value.hint == "did you mean 'sma_20'?"


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("warmup: 13,", "warmup: soon,", r"feature_sets.yaml:\d+: features.*warmup = 'soon'.*'1 session, 20 rows'"),
        ("family: raw,", "famly: raw,", r"unknown key .*famly"),
        ("- {name: adx_14,", "- {name: adx_7,", "features declared twice: adx_7|'adx_7' is declared twice"),
        ("- {name: adx_7,", "- {name: ADX_7,", "ADX_7"),
        ("expression: log(close)}", "inputs: [close]}", "the kernel 'formula' takes an 'expression'"),
        ("range: [0, 100],", "range: [0, .inf],", "feature_sets.yaml"),
        (
            "kernel: column, inputs: [high]",
            "kernel: column, inputs: [low]",
            "the feature 'high' must be the input of that name",
        ),
        ("features:", "features: [", "is not valid YAML"),
    ],
)
def test_a_damaged_catalogue_file(workspace: Workspace, old: str, new: str, match: str) -> None:
    shipped = Workspace(workspace.root).config("feature_sets.yaml").read_text(encoding="utf-8")
    own = workspace.root / "config" / "feature_sets.yaml"
    own.parent.mkdir(exist_ok=True)
    assert old in shipped
    own.write_text(shipped.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=match) as caught:
        catalogues.read(workspace)
    assert caught.value.where is not None
    assert str(own) in caught.value.where


def test_every_digest_follows_what_decides_a_value() -> None:
    base = with_rows(ema())
    plans = [make_plan(base, ("close",), bar_minutes=1, tick_size=0.25).digest]
    for changed in (
        ema(params={"period": 21}, warmup=20),
        ema(inputs=["high"]),
        ema(kernel="wilder"),
        formula("close + 1"),
    ):
        plans.append(make_plan(with_rows(changed), ("close", "high"), bar_minutes=1, tick_size=0.25).digest)
    plans.append(make_plan(base, ("close",), bar_minutes=5, tick_size=0.25).digest)
    plans.append(make_plan(base, ("close",), bar_minutes=1, tick_size=0.5).digest)
    plans.append(make_plan(base, ("close",), bar_minutes=1, tick_size=0.25, auxiliary=["close"]).digest)
    assert len(set(plans)) == len(plans)
    said_otherwise = with_rows(ema(definition="other words for the same", unit="points"))
    assert make_plan(said_otherwise, ("close",), bar_minutes=1, tick_size=0.25).digest == plans[0]


# --- state that cannot be used ----------------------------------------------------------------------


def test_a_state_of_another_catalogue_is_refused_and_changes_nothing(gappy: Bars, plan: Plan) -> None:
    other = FeatureEngine(make_plan(with_rows(ema()), ("close",), bar_minutes=1, tick_size=0.25))
    engine = FeatureEngine(plan)
    feed(engine, gappy.rows(slice(0, 500)))
    before = engine.save()
    with pytest.raises(StateError, match="was saved under plan") as caught:
        engine.restore(other.save())
    assert "the engine keeps the state it had" in str(caught.value)
    assert engine.save() == before
    assert engine.rows == 500


def test_damaged_state_is_refused(gappy: Bars, plan: Plan) -> None:
    engine = FeatureEngine(plan)
    feed(engine, gappy.rows(slice(0, 700)))
    saved = engine.save()
    header = saved.index(b"\n") + 1
    rng = np.random.default_rng(0)

    def flip(at: int) -> bytes:
        return saved[:at] + bytes([saved[at] ^ 1]) + saved[at + 1 :]

    for damaged in (
        b"",
        b"not a state",
        saved[:-1],
        saved[:header],
        saved + b"\0",
        saved[:header] + saved[header + 20 :],
        *(flip(at) for at in range(header, header + 200, 7)),
        *(flip(at) for at in rng.integers(header, len(saved), 20).tolist()),
    ):
        with pytest.raises(StateError, match=r"damaged|not a feature state") as caught:
            engine.restore(damaged)
        assert caught.value.hint == "restore the file from a backup, or start from history again"
        assert engine.save() == saved


def test_a_changed_header_is_refused(gappy: Bars, plan: Plan) -> None:
    """Rows and last close stand in the header: they must not be taken from a line that was changed."""
    engine = FeatureEngine(plan)
    feed(engine, gappy.rows(slice(0, 700)))
    saved = engine.save()
    last = str(engine.last_known_at).encode()
    assert saved.count(last) == 1
    for old, new in ((last, str(engine.last_known_at + 1).encode()), (b'"rows": 700', b'"rows": 701'), (b"{", b"[")):
        with pytest.raises(StateError, match="damaged"):
            engine.restore(saved.replace(old, new, 1))
        assert engine.save() == saved


# --- rows that cannot be taken ------------------------------------------------------------------------


def test_closes_must_ascend(gappy: Bars, plan: Plan) -> None:
    engine = FeatureEngine(plan)
    feed(engine, gappy.rows(slice(0, 300)))
    before = engine.save()
    later = gappy.rows(slice(300, 400))
    for bad, row in (
        (later.known_at[[0, 2, 1]], 2),
        (later.known_at[[0, 1, 1]], 2),
        (gappy.known_at[299:302], 0),
        (gappy.known_at[:3], 0),
    ):
        block = {name: array[:3] for name, array in later.columns.items()}
        with pytest.raises(DataError, match=f"row {row}: the close {bad[row]} ns does not follow") as caught:
            engine.batch(bad, block)
        assert "no bar was taken; the state is unchanged" in str(caught.value)
        assert engine.save() == before
    for known_at in (int(gappy.known_at[299]), int(gappy.known_at[298])):
        with pytest.raises(DataError, match="feed bars in the order of their closes"):
            engine.update(known_at, [1.0] * len(plan.inputs))
        assert engine.save() == before


def test_out_must_fit(gappy: Bars, plan: Plan) -> None:
    engine = FeatureEngine(plan)
    before = engine.save()
    n, rows = len(gappy), len(plan.outputs)
    for out in (
        np.empty((rows, n + 1)),
        np.empty((n, rows)).T,
        np.empty((rows, n), dtype=np.float32),
        np.empty((rows, 2 * n))[:, ::2],
        np.broadcast_to(np.empty((1, n)), (rows, n)),
        np.empty(8 * rows * n + 1, dtype=np.uint8)[1:].view(np.float64).reshape(rows, n),
    ):
        with pytest.raises(DataError, match=r"pass a writeable float64 array of shape .* whose rows are contiguous"):
            engine.batch(gappy.known_at, gappy.columns, out=out)
        assert engine.save() == before


def test_columns_must_fit(gappy: Bars, plan: Plan) -> None:
    engine = FeatureEngine(plan)
    before = engine.save()
    with pytest.raises(DataError, match="input column 'volume' of the plan is missing"):
        engine.batch(gappy.known_at, gappy.without("volume").columns)
    with pytest.raises(DataError, match=r"column 'close' has shape \(3,\)"):
        engine.batch(gappy.known_at, gappy.altered(close=np.zeros(3)).columns)
    assert engine.save() == before


@pytest.mark.parametrize("count", [0, 3, 11])
def test_a_live_bar_needs_all_its_values(gappy: Bars, plan: Plan, count: int) -> None:
    engine = FeatureEngine(plan)
    feed(engine, gappy.rows(slice(0, 300)))
    before = engine.save()
    with pytest.raises(DataError, match=f"{len(plan.bar_inputs)} "):
        engine.update(int(gappy.known_at[300]), [1.0] * count)
    assert engine.save() == before


# --- the zone table ---------------------------------------------------------------------------------


def test_the_zone_table_is_new_york_s() -> None:
    table = new_york()
    count = int(table[0])
    transitions, offsets = table[1 : 1 + count], table[1 + count :]
    assert len(offsets) == count
    assert (np.diff(transitions) > 0).all()
    for at, before, after in zip(transitions[1:].tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        for instant, offset in ((at - 1, before), (at, after)):
            local = dt.datetime.fromtimestamp(instant // 10**9, NEW_YORK).utcoffset()
            assert local is not None
            assert local.total_seconds() * 1e9 == offset
    years = [dt.datetime.fromtimestamp(at // 10**9, dt.UTC).year for at in transitions[1:].tolist()]
    assert {year: years.count(year) for year in years if 1976 <= year <= 2099} == dict.fromkeys(range(1976, 2100), 2)
    assert set(itertools.chain(offsets.tolist())) == {-4 * 3600 * 10**9, -5 * 3600 * 10**9}


def test_progress_is_told_and_changes_no_bit() -> None:
    data = bars.make(15, seed=5)
    plan = bars.plan_for(data)
    told: list[tuple[int, int]] = []
    known_at, columns = data.known_at, data.columns
    watched = FeatureEngine(plan).batch(known_at, columns, progress=lambda done, total: told.append((done, total)))
    same_bits(watched, FeatureEngine(plan).batch(known_at, columns))
    assert told[-1] == (len(data), len(data))
    assert len(told) > 1
    assert [done for done, _ in told] == sorted(done for done, _ in told)
