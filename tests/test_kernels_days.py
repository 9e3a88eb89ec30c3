"""Kernels that remember days and changes or look back over minutes: slow twins, every cut, warm-ups, hard input."""

from __future__ import annotations

import datetime as dt
import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import bars
import naive
import naive_days
import numpy as np
import pytest
import talib
from bars import SESSION_MINUTES as SESSION
from bars import Bars, Floats, catalogue, feed, same_bits
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mia_fast.errors import ConfigError
from mia_fast.features.catalogue import Catalogue
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.plan import Plan, make_plan
from mia_fast.features.rows import Warmup

MINUTE = bars.MINUTE
PROFILE = naive.PROFILE
Row = dict[str, object]


def row(name: str, kernel: str, inputs: Iterable[str], output: str | None = None, **params: float) -> Row:
    return {"name": name, "kernel": kernel, "inputs": list(inputs), "output": output, "params": params}


def formula(name: str, expression: str) -> Row:
    return {"name": name, "kernel": "formula", "expression": expression}


HLV = ("high", "low", "volume")
MINUTES = (1, 2, 5, 15, 30, 60, 127)
SLOPES = (3, 4, 5, 8, 20, 33, 127, 128)
CLOCK = ((570, 600), (900, 960), (1080, 1110), (0, 60), (1200, 1439), (960, 1020))
KEY = "floor(close / 40)"
SLOW = "floor(close / 2)"

ROWS: list[Row] = [
    formula("key", KEY),
    formula("slow", SLOW),
    row("log_return", "log_return", ["close"], bars=1),
    row("session_sum", "session_sum", ["volume"]),
    row("session_sum_return", "session_sum", ["log_return"]),
    *(row(f"rank_{n}", "session_rank", ["close"], sessions=n) for n in (2, 3)),
    *(row(f"clock_{a}_{b}", "clock_deviation", ["log_return"], **{"from": a, "to": b}) for a, b in CLOCK),
    *(row(f"seasonal_{s}_{n}", "seasonal_mean", ["volume"], slot=s, span=n) for s, n in ((30, 3), (5, 10), (360, 1))),
    row("seasonal_key", "seasonal_mean", ["key"], slot=60, span=2),
    row("unchanged", "unchanged_for", ["slow"]),
    row("before_close", "before_change", ["close", "key"]),
    row("before_volume", "before_change", ["volume", "key"]),
    row("before_day", "before_change", ["close", "session_date"]),
    *(row(f"{o}_{n}", "time_window", ["volume"], o, minutes=n) for o in ("sum", "mean") for n in MINUTES),
    *(row(f"{o}_{n}", "profile_window", HLV, o, minutes=n) for o in PROFILE for n in (2, 5, 60)),
    *(row(f"slope_{n}", "slope", ["close"], period=n) for n in SLOPES),
    *(row(f"time_slope_{n}", "time_slope", ["close"], minutes=n) for n in (3, 10, 30, 127)),
]
PRICE_KEYED = ("before_close", "before_volume")
NAMES = tuple(str(r["name"]) for r in ROWS)


def plan_of(rows: list[Row], *, bar_minutes: float = 1, tick_size: float = 0.25) -> Plan:
    small = Catalogue.model_validate(
        {"inputs": [c.model_dump() for c in catalogue().inputs], "auxiliary": rows, "features": []}
    )
    names = [str(r["name"]) for r in rows]
    return make_plan(
        small,
        ("open", "high", "low", "close", "volume"),
        bar_minutes=bar_minutes,
        tick_size=tick_size,
        auxiliary=names,
    )


@functools.cache
def whole_plan() -> Plan:
    return plan_of(ROWS)


def computed(data: Bars, plan: Plan | None = None) -> dict[str, Floats]:
    plan = plan or whole_plan()
    return dict(zip(plan.outputs, feed(FeatureEngine(plan), data), strict=True))


def spoiled(data: Bars, seed: int, share: float = 0.01) -> Bars:
    """The same bars with missing and infinite values, each column by itself."""
    rng = np.random.default_rng(seed)
    columns = {}
    for name, array in data.columns.items():
        bad = rng.random(len(array)) < share
        columns[name] = np.where(bad, rng.choice([math.nan, math.inf, -math.inf, 1e16], len(array)), array)
    return Bars(data.known_at, columns)


def part_of(data: Bars) -> Bars:
    """A week's bars thinned out, so that the slow twins are quick: some hours of each session."""
    local = naive.wall_clock(data.known_at)
    keep = np.array([t.hour in (18, 19, 0, 9, 10, 15, 16, 17) for t in local])
    return data.rows(keep)


CASES: dict[str, Callable[[], Bars]] = {
    "whole sessions": lambda: bars.make(5),
    "gaps": lambda: bars.make(6, gaps=True, seed=2),
    "missing values": lambda: spoiled(bars.make(3, gaps=True, seed=3), 3),
    "mostly missing": lambda: spoiled(bars.make(3, seed=4), 4, 0.4),
    "hours": lambda: part_of(bars.make(12, seed=5)),
    "begins inside a session": lambda: bars.make(3, seed=6).rows(slice(SESSION - 430, None)),
    "begins inside a window": lambda: bars.make(3, seed=6).rows(slice(945, None)),
    "nothing moves": lambda: bars.make(2).altered(
        **{n: np.full(2 * SESSION, 5000.0) for n in ("open", "high", "low", "close")}
    ),
    "no volume": lambda: bars.make(2, seed=3).altered(volume=np.zeros(2 * SESSION)),
}


@functools.cache
def case(which: str) -> tuple[Bars, dict[str, Floats], dict[str, Floats]]:
    data = CASES[which]()
    return data, computed(data), twins(data)


def twins(data: Bars, bar_minutes: float = 1.0) -> dict[str, Floats]:
    """Every row of ROWS by its slow twin; ``near_*`` mark rows at which rounding decides a value area."""
    twin = naive.Twin(data.known_at, data.columns, bar_minutes=bar_minutes)
    t, close, volume, returns = data.known_at, twin["close"], twin["volume"], twin["log_return"]
    key, slow = np.floor(close / 40), np.floor(close / 2)
    out = {
        "key": key,
        "slow": slow,
        "log_return": returns,
        "session_sum": naive_days.session_sum(twin, volume),
        "session_sum_return": naive_days.session_sum(twin, returns),
        **{f"rank_{n}": naive_days.session_rank(t, close, n) for n in (2, 3)},
        **{f"clock_{a}_{b}": naive_days.clock_deviation(t, returns, a, b, bar_minutes) for a, b in CLOCK},
        **{f"seasonal_{s}_{n}": naive_days.seasonal_mean(t, volume, s, n) for s, n in ((30, 3), (5, 10), (360, 1))},
        "seasonal_key": naive_days.seasonal_mean(t, key, 60, 2),
        "unchanged": naive_days.unchanged_for(t, slow),
        "before_close": naive_days.before_change(close, key),
        "before_volume": naive_days.before_change(volume, key),
        "before_day": naive_days.before_change(close, twin["session_date"]),
        **{f"{o}_{n}": naive_days.time_window(t, volume, n, o, bar_minutes) for o in ("sum", "mean") for n in MINUTES},
        **{f"slope_{n}": naive_days.slope(close, n) for n in SLOPES},
        **{f"time_slope_{n}": naive_days.time_slope(t, close, n, bar_minutes) for n in (3, 10, 30, 127)},
    }
    for n in (2, 5, 60):
        profile = naive_days.profile_window(
            t, twin["high"], twin["low"], volume, n, twin.tick_size, bar_minutes=bar_minutes
        )
        out |= {f"{o}_{n}": values for o, values in profile.items()}
    return out


def agree(got: Floats, want: Floats, scale: float, where: str, skip: Floats | None = None) -> None:
    wrong = np.isnan(got) != np.isnan(want)
    assert not wrong.any(), f"{where}: missing at other rows, first {np.argmax(wrong)}, {wrong.sum()} in all"
    error = np.where(np.isnan(got), 0.0, np.abs(got - want))
    if skip is not None:
        error[skip > 0] = 0.0
    worst = int(np.argmax(error))
    assert error[worst] <= 1e-11 * scale, f"{where}: row {worst}: {got[worst]!r}, expected {want[worst]!r}"


def largest(values: Floats) -> float:
    return float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values))) or 1.0


# --- the twins --------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", CASES)
def test_agrees_with_the_twins(which: str) -> None:
    _, got, want = case(which)
    for name in NAMES:
        output, _, minutes = name.rpartition("_")
        skip = want[f"near_{minutes}"] if output.removeprefix("volume_at_") in ("vah", "val") else None
        agree(got[name], want[name], largest(want[name]), f"{which}: {name}", skip)
        assert not np.isinf(got[name]).any(), name


@pytest.mark.parametrize("name", NAMES)
def test_every_row_has_values_and_varies(name: str) -> None:
    values = case("whole sessions")[1][name]
    assert len(np.unique(values[~np.isnan(values)])) > 1


def test_session_rank_is_between_0_and_1_and_one_half_where_nothing_moves() -> None:
    for which in CASES:
        values = case(which)[1]["rank_2"]
        assert ((values >= 0.0) & (values <= 1.0) | np.isnan(values)).all()
    still = bars.make(4, seed=1).altered(close=np.full(4 * SESSION, 5000.0))
    assert (computed(still)["rank_2"][2 * SESSION :] == 0.5).all()


def test_other_lengths_of_bars_agree_with_the_twins() -> None:
    data = bars.make(7, seed=5, minutes=5)
    plan = plan_of(ROWS, bar_minutes=5)
    got, want = computed(data, plan), twins(data, 5.0)
    unfit = {name for name in plan.missing if plan.missing[name][0].startswith("bars")}
    assert {"sum_1", "mean_2", "sum_127", "poc_5", "time_slope_3", "time_slope_10", "time_slope_127"} <= unfit
    assert plan.missing["time_slope_10"] == ("bars that fit 10 minutes 3 to 127 times",)
    for name in NAMES:
        if name in unfit:
            assert np.isnan(got[name]).all()
            continue
        output, _, minutes = name.rpartition("_")
        skip = want[f"near_{minutes}"] if output.removeprefix("volume_at_") in ("vah", "val") else None
        agree(got[name], want[name], largest(want[name]), name, skip)
        expected = plan.warmups[name]
        if name not in PRICE_KEYED:
            assert int(np.argmax(~np.isnan(got[name]))) == max(expected.rows, expected.sessions * (SESSION // 5)), name


# --- warm-ups ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_warmup_is_exact(name: str) -> None:
    """On bars without a gap from a session's open on. A key that prices make changes when they do."""
    warmup = whole_plan().warmups[name]
    first = int(np.argmax(~np.isnan(case("whole sessions")[1][name])))
    if name in PRICE_KEYED:
        key = case("whole sessions")[1]["key"]
        assert first == int(np.argmax(key != key[0]))
        assert first < warmup.sessions * SESSION
    else:
        assert first == max(warmup.rows, warmup.sessions * SESSION)


@pytest.mark.parametrize(
    ("kernel", "params", "before", "want"),
    [
        ("clock_deviation", {"from": 570, "to": 600}, 0, Warmup(rows=931)),
        ("clock_deviation", {"from": 570, "to": 600}, 940, Warmup(rows=941)),
        ("clock_deviation", {"from": 570, "to": 600}, 958, Warmup(rows=959)),
        ("clock_deviation", {"from": 570, "to": 600}, 959, Warmup(rows=SESSION + 931)),
        ("clock_deviation", {"from": 1080, "to": 1082}, 0, Warmup(rows=1)),
        ("clock_deviation", {"from": 1080, "to": 1082}, 1, Warmup(rows=SESSION + 1)),
        ("seasonal_mean", {"slot": 30, "span": 5}, 0, Warmup(sessions=1)),
        ("seasonal_mean", {"slot": 30, "span": 5}, 29, Warmup(sessions=1)),
        ("seasonal_mean", {"slot": 30, "span": 5}, 30, Warmup(sessions=1, rows=SESSION + 30)),
        ("seasonal_mean", {"slot": 360, "span": 5}, 725, Warmup(sessions=1, rows=SESSION + 720)),
        ("time_window", {"minutes": 10}, 100, Warmup(rows=109)),
        ("time_slope", {"minutes": 10}, 100, Warmup(rows=109)),
        ("session_sum", {}, 100, Warmup(rows=100)),
        ("session_rank", {"sessions": 2}, 100, Warmup(sessions=2)),
    ],
)
def test_the_warmup_on_inputs_that_have_one(kernel: str, params: dict[str, float], before: int, want: Warmup) -> None:
    late: list[Row] = []
    for k in range(-(-before // 128)):
        lag = min(128, before - 128 * k)
        late.append(formula(f"late_{k}", f"lag({f'late_{k - 1}' if k else 'volume'}, {lag})"))
    source = str(late[-1]["name"]) if late else "volume"
    output = "mean" if kernel == "time_window" else None
    plan = plan_of([*late, row("x", kernel, [source], output, **params)])
    assert plan.warmups["x"] == want
    got = computed(bars.make(3), plan)["x"]
    assert int(np.argmax(~np.isnan(got))) == max(want.rows, want.sessions * SESSION)


def test_the_warmup_of_a_mean_over_slots_of_an_input_that_takes_sessions() -> None:
    rows = [
        row("rank", "session_rank", ["close"], sessions=2),
        row("usual", "seasonal_mean", ["rank"], slot=30, span=3),
        row("early", "clock_deviation", ["rank"], **{"from": 1080, "to": 1110}),
        row("recent", "time_window", ["rank"], "mean", minutes=5),
    ]
    plan = plan_of(rows)
    assert plan.warmups["usual"] == Warmup(sessions=3)
    got = computed(bars.make(5), plan)
    for name in ("usual", "early", "recent"):
        warmup = plan.warmups[name]
        # The break has emptied the window of five minutes when the rank begins.
        assert int(np.argmax(~np.isnan(got[name]))) == max(warmup.rows, warmup.sessions * SESSION), name


# --- the same bits at every cut ---------------------------------------------------------------------


def in_blocks(data: Bars, ends: Iterable[int], live: Callable[[], bool] = lambda: False) -> tuple[Floats, bytes]:
    engine = FeatureEngine(whole_plan())
    parts = [feed(engine, block, live=live()) for block in bars.cut(data, ends)]
    return np.concatenate(parts, axis=1), engine.save()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 64, 255, 256, 257])
def test_blocks_of_any_size(size: int) -> None:
    for which in ("gaps", "missing values"):
        data = case(which)[0].rows(slice(0, 4000))
        whole, state = in_blocks(data, [])
        got, got_state = in_blocks(data, range(size, len(data), size))
        same_bits(got, whole, NAMES)
        assert got_state == state


@pytest.mark.parametrize("seed", range(3))
def test_random_cuts_saved_states_live_and_batch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = case("missing values")[0]
    whole, state = in_blocks(data, [])
    ends = np.unique(rng.integers(0, len(data), 60)).tolist()
    got, got_state = in_blocks(data, ends, lambda: bool(rng.integers(2)))
    same_bits(got, whole, NAMES)
    assert got_state == state
    saved, parts = FeatureEngine(whole_plan()).save(), []
    for block in bars.cut(data, ends[::10]):
        engine = FeatureEngine(whole_plan())
        feed(engine, bars.make(1, seed=50))  # what it had seen before must not matter
        engine.restore(saved)
        parts.append(feed(engine, block, live=len(block) < 300))
        saved = engine.save()
    same_bits(np.concatenate(parts, axis=1), whole, NAMES)
    assert saved == state


def test_no_look_ahead() -> None:
    data = case("gaps")[0]
    whole = np.array(list(case("gaps")[1].values()))
    other = bars.make(6, seed=99)
    for end in (1, 2, 255, 256, 257, SESSION + 1, 2 * SESSION + 317, 5000):
        tail = other.rows(other.known_at > data.known_at[end - 1])
        known_at = np.concatenate([data.known_at[:end], tail.known_at])
        values = {name: np.concatenate([data.columns[name][:end], 1.5 * tail.columns[name]]) for name in data.columns}
        changed = FeatureEngine(whole_plan()).batch(known_at, values)
        same_bits(changed[:, :end], whole[:, :end], NAMES)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 300),
    start=st.integers(0, 3 * SESSION),
    gap=st.sampled_from([0.0, 0.02, 0.3]),
    missing=st.sampled_from([0.0, 0.01, 0.2]),
    shift=st.sampled_from([0, 1, 30, 59]),
    cuts=st.lists(st.integers(0, 300), max_size=6),
)
@example(seed=0, n=300, start=SESSION - 60, gap=0.3, missing=0.2, shift=30, cuts=[255, 256, 257])
def test_anything(seed: int, n: int, start: int, gap: float, missing: float, shift: int, cuts: list[int]) -> None:
    """Gaps, missing values and bars off the minute, by the twins and at any cut."""
    rng = np.random.default_rng(seed)
    data = bars.make(4, seed=seed % 7).rows(slice(start, start + n))
    data = spoiled(data.rows(rng.random(len(data)) >= gap), seed, missing)
    data = Bars(data.known_at + shift * 10**9, data.columns)
    if not len(data):
        return
    got = computed(data)
    for name, want in twins(data).items():
        if name.startswith("near"):
            continue
        output, _, minutes = name.rpartition("_")
        skip = naive_near(data, int(minutes)) if output.removeprefix("volume_at_") in ("vah", "val") else None
        agree(got[name], want, largest(want), name, skip)
    same_bits(in_blocks(data, sorted(c for c in cuts if c < len(data)))[0], np.array(list(got.values())), NAMES)


def naive_near(data: Bars, minutes: int) -> Floats:
    twin = naive.Twin(data.known_at, data.columns)
    return naive_days.profile_window(data.known_at, twin["high"], twin["low"], twin["volume"], minutes)["near"]


def test_bars_at_odd_times_are_taken_by_the_clock() -> None:
    """Seconds apart, minutes apart: windows hold the bars of their minutes, up to 127 of them."""
    rng = np.random.default_rng(12)
    data = bars.make(1, seed=3)
    steps = rng.choice([1, 7, 20, 60, 61, 150, 600], len(data), p=[0.3, 0.2, 0.1, 0.2, 0.1, 0.07, 0.03])
    odd = Bars(data.known_at[0] + np.cumsum(steps) * 10**9, data.columns)
    got, want = computed(odd), twins(odd)
    crowded = False
    for name in NAMES:
        if not name.startswith(("sum", "mean", "time_slope", "poc", "unchanged", "clock")):
            continue
        agree(got[name], want[name], largest(want[name]), name)
        crowded |= name == "sum_127" and bool(np.isnan(want[name][200:]).any())
    assert crowded, "no window had more bars than are kept"


# --- one by one -------------------------------------------------------------------------------------


def test_a_session_sum_waits_for_the_open_and_the_first_value() -> None:
    data = bars.make(2, seed=4)
    volume = data.columns["volume"].copy()
    volume[SESSION : SESSION + 3] = math.nan
    got = computed(data.altered(volume=volume).rows(slice(100, None)))["session_sum"]
    assert np.isnan(got[: SESSION - 100 + 3]).all()
    np.testing.assert_array_equal(got[SESSION - 100 + 3 :], np.cumsum(volume[SESSION + 3 :]))


def test_a_daily_window_is_held_over_the_weekend() -> None:
    data = bars.make(7, seed=4)  # Monday to Friday, Monday, Tuesday
    got = computed(data)["clock_900_960"]
    local = naive.wall_clock(data.known_at)
    friday = [i for i, t in enumerate(local) if t.weekday() == 4 and 900 < t.hour * 60 + t.minute <= 960]
    returns = np.diff(np.log(data.columns["close"]), prepend=math.nan)
    assert len(friday) == 60
    monday = next(i for i in range(friday[-1] + 1, len(local)) if local[i].hour * 60 + local[i].minute == 901)
    assert local[monday].weekday() == 0
    assert (got[friday[-1] : monday] == got[friday[-1]]).all()
    np.testing.assert_allclose(got[monday - 1], np.std(returns[friday], ddof=1), rtol=1e-12)
    assert np.isnan(got[monday])
    np.testing.assert_allclose(got[monday + 1], np.std(returns[monday : monday + 2], ddof=1), rtol=1e-9)


def test_slots_follow_new_york_s_clock_over_a_change_to_daylight_saving() -> None:
    data = bars.make(12)
    slot = (np.array([t.hour * 60 + t.minute for t in naive.wall_clock(data.known_at)]) - 1) % 1440 // 30
    got = computed(data.altered(volume=slot.astype(float)))["seasonal_30_3"]
    np.testing.assert_array_equal(got[SESSION:], slot[SESSION:])


def test_the_present_session_s_slot_does_not_join_before_it_ends() -> None:
    data = bars.make(3, seed=2)
    volume = data.columns["volume"].copy()
    volume[2 * SESSION :] *= 1000.0
    same_bits(computed(data.altered(volume=volume))["seasonal_30_3"], computed(data)["seasonal_30_3"])


def test_a_profile_of_too_many_ticks_is_missing_until_its_bar_has_left() -> None:
    data = bars.make(1, seed=3)
    for ticks in (2047, 2048, 10**9, 4 * 10**14):
        far = data.injected(300, low=5000.0, high=5000.0 + ticks * 0.25)
        alone = far.altered(
            high=np.where(np.arange(SESSION) == 300, far.columns["high"], 5000.0),
            low=np.full(SESSION, 5000.0),
        )
        got = computed(alone)["poc_5"]
        assert np.flatnonzero(np.isnan(got[4:])).tolist() == ([] if ticks < 2048 else list(range(296, 301)))


def test_a_bar_with_its_high_below_its_low_spoils_its_windows_alone() -> None:
    data = bars.make(1, seed=3)
    got, clean = computed(data.injected(300, high=1.0)), computed(data)
    assert np.isnan(got["vah_5"][300:305]).all()
    same_bits(got["vah_5"][305:], clean["vah_5"][305:])


@pytest.mark.parametrize("name", [n for n in NAMES if n.rpartition("_")[2].isdigit() and n[:4] in ("sum_", "slop")])
def test_a_missing_value_leaves_with_its_row(name: str) -> None:
    data = bars.make(1, seed=3)
    clean, bad = computed(data)[name], computed(data.injected(600, close=math.nan, volume=math.nan))[name]
    width = int(name.rpartition("_")[2])
    assert np.isnan(bad[600 : 600 + width]).all()
    same_bits(np.delete(bad, range(600, 600 + width)), np.delete(clean, range(600, 600 + width)))


def test_a_session_without_a_value_is_passed_over() -> None:
    data = bars.make(5, seed=3)
    close = data.columns["close"].copy()
    close[2 * SESSION : 3 * SESSION] = math.nan
    got = computed(data.altered(close=close))["rank_2"]
    ends = close[[SESSION - 1, 2 * SESSION - 1]]
    x = close[3 * SESSION]
    low, high = min(*ends, x), max(*ends, x)
    assert np.isnan(got[: 3 * SESSION]).all()
    assert got[3 * SESSION] == (x - low) / (high - low)


def test_a_key_under_which_there_was_no_value_leaves_none() -> None:
    data = bars.make(4, seed=3)
    close = data.columns["close"].copy()
    close[SESSION : 2 * SESSION] = math.nan
    got = computed(data.altered(close=close))["before_day"]
    assert (got[SESSION : 2 * SESSION] == close[SESSION - 1]).all()
    assert np.isnan(got[2 * SESSION : 3 * SESSION]).all()
    assert (got[3 * SESSION :] == close[3 * SESSION - 1]).all()


def test_numbers_beyond_the_range_never_become_infinite_nor_stay() -> None:
    """A computed column may hold 1e305: its sums overflow, for as long as it is in them and no longer."""
    data = bars.make(4, seed=3)
    volume = np.where(np.arange(4 * SESSION) < 2 * SESSION, 1e15, 1.0)
    volume[SESSION : 2 * SESSION] *= np.where(np.arange(SESSION) % 3, 1.0, -1.0)
    own: list[Row] = [
        formula("huge", "volume * 1e293"),
        row("sum", "session_sum", ["huge"]),
        row("rank", "session_rank", ["huge"], sessions=2),
        row("clock", "clock_deviation", ["huge"], **{"from": 570, "to": 600}),
        row("usual", "seasonal_mean", ["huge"], slot=30, span=1),
        row("window", "time_window", ["huge"], "sum", minutes=20),
        row("poc", "profile_window", ["high", "low", "huge"], "volume_at_poc", minutes=20),
        row("slope", "slope", ["huge"], period=20),
        row("time_slope", "time_slope", ["huge"], minutes=20),
        *(row(o, "window", ["huge"], o, period=20) for o in ("mean", "deviation", "sample_deviation")),
        row("window_sum", "window", ["huge"], "sum", period=20),
        row("time_deviation", "time_deviation", ["huge"], minutes=20),
        row("at_poc", "profile", ["high", "low", "huge"], "volume_at_poc"),
        formula("large", "volume * 1e140"),  # the squares overflow, the sums do not
        row("variance", "session_variance", ["large"], "one_session"),
        row("deviation_of_large", "window", ["large"], "deviation", period=20),
    ]
    got = computed(data.altered(volume=volume), plan_of(own))
    assert np.isnan(got["deviation_of_large"][SESSION : 2 * SESSION]).all()
    assert np.isnan(got["variance"][SESSION + 1 : 3 * SESSION]).all()
    assert (got["huge"][SESSION : SESSION + 2] == [-1e308, 1e308]).all()
    for name, values in got.items():
        assert not np.isinf(values).any(), name
        assert np.isfinite(values[3 * SESSION + 960 :]).all(), name


def test_return_since_takes_any_series() -> None:
    data = bars.make(3, seed=3)
    rows = [row("since", "return_since", ["volume", "vix_known_at"])]
    small = Catalogue.model_validate(
        {"inputs": [c.model_dump() for c in catalogue().inputs], "auxiliary": rows, "features": []}
    )
    plan = make_plan(small, tuple(data.columns), bar_minutes=1, tick_size=0.25, auxiliary=["since"])
    got = feed(FeatureEngine(plan), data)[0]
    want = naive.return_since(data.columns["volume"], data.known_at, data.columns["vix_known_at"])
    same_bits(got, want)
    assert np.isfinite(got).sum() > 2000


# --- slopes -----------------------------------------------------------------------------------------


def check_slopes(data: Bars) -> None:
    periods = range(3, 129)
    plan = plan_of([row(f"p{n}", "slope", ["close"], period=n) for n in periods])
    got = feed(FeatureEngine(plan), data)
    scale = float(np.max(np.abs(data.columns["close"])))
    for n, values in zip(periods, got, strict=True):
        agree(values, talib.LINEARREG_SLOPE(data.columns["close"], n), scale, f"period {n}")


def test_slope_agrees_with_talib() -> None:
    check_slopes(bars.make(2, seed=9))


@pytest.mark.real
def test_slope_agrees_with_talib_on_real_bars(real_data: Path) -> None:
    import polars as pl

    path = real_data / "bars" / "es_1m_2020.parquet"
    if not path.is_file():
        pytest.skip(f"no real bars at {path}")
    frame = pl.read_parquet(path, n_rows=100_000)
    close = frame["close"].cast(pl.Float64).to_numpy().copy()
    known_at = frame["ts"].dt.epoch("ns").to_numpy() + MINUTE
    check_slopes(Bars(known_at, dict.fromkeys(("open", "high", "low", "close", "volume"), close)))


def test_slope_loses_no_digits_to_the_price_level() -> None:
    data = bars.make(1, seed=2)
    high = data.altered(close=data.columns["close"] + 2.0**40)
    near, far = computed(data), computed(high)
    for n in SLOPES:
        same_bits(far[f"slope_{n}"], near[f"slope_{n}"])
    line = data.altered(close=3.0 * np.arange(SESSION) + 0.1)
    got = computed(line)
    np.testing.assert_allclose(got["slope_20"][19:], 3.0, rtol=1e-13)
    np.testing.assert_allclose(got["time_slope_30"][29:], 3.0, rtol=1e-13)


# --- rows that cannot be used -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (row("x", "clock_deviation", ["close"], **{"from": 600, "to": 600}), "from = 600 is not before to = 600"),
        (row("x", "clock_deviation", ["close"], **{"from": 1000, "to": 1100}), "reaches into the break, 1020..1080"),
        (row("x", "clock_deviation", ["close"], **{"from": 1020, "to": 1080}), "reaches into the break"),
        (row("x", "clock_deviation", ["close"], **{"from": 570, "to": 1440}), "from 1 to 1439"),
        (row("x", "seasonal_mean", ["close"], slot=7, span=5), "slot = 7 does not divide the 6 hours after 18:00"),
        (row("x", "seasonal_mean", ["close"], slot=240, span=5), "slot = 240 does not divide"),
        (row("x", "session_rank", ["close"], sessions=61), "from 2 to 60"),
        (row("x", "time_window", ["close"], "median", minutes=5), "has no output 'median'"),
        (row("x", "profile_window", HLV, "poc", minutes=61), "from 1 to 60"),
        (row("x", "slope", ["close"], period=1), "from 2 to 128"),
        (row("x", "time_slope", ["close"], minutes=128), "from 2 to 127"),
        (row("x", "before_change", ["close"]), "takes 2 inputs, got 1"),
    ],
)
def test_a_row_that_cannot_be_used(bad: Row, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of([bad])
    assert what in caught.value.what


@pytest.mark.parametrize(
    ("unfit", "bar_minutes", "lack"),
    [
        (row("x", "time_window", ["close"], "sum", minutes=7), 2, "bars that fit 7 minutes 1 to 127 times"),
        (row("x", "profile_window", HLV, "poc", minutes=1), 1, "bars that fit 1 minutes 2 to 127 times"),
        (row("x", "time_slope", ["close"], minutes=2), 1, "bars that fit 2 minutes 3 to 127 times"),
        (row("x", "clock_deviation", ["close"], **{"from": 570, "to": 600}), 30, "bars of which 2 close in the window"),
    ],
)
def test_bars_that_do_not_fit_leave_a_row_null_and_say_so(unfit: Row, bar_minutes: float, lack: str) -> None:
    plan = plan_of([unfit], bar_minutes=bar_minutes)
    assert plan.missing["x"] == (lack,)
    assert np.isnan(computed(bars.make(1, minutes=int(bar_minutes)), plan)["x"]).all()


def test_daily_bars_make_a_plan() -> None:
    plan = plan_of(ROWS, bar_minutes=1440)
    assert plan.warmups["seasonal_30_3"] == Warmup(sessions=1)
    assert "clock_570_600" in plan.missing


def test_dates_are_those_of_new_york() -> None:
    """A window after midnight of one evening's session belongs to the next day."""
    data = bars.make(2, sunday=dt.date(2024, 3, 3))
    got = computed(data)["clock_0_60"]
    first = int(np.argmax(~np.isnan(got)))
    assert naive.wall_clock(data.known_at)[first].strftime("%a %H:%M") == "Mon 00:02"
