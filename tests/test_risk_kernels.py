"""Drawdown kernels against a naive twin, and the trade-rate score against scipy's negative binomial."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_risk_support import CONFIG, MINUTE, T0

from mia_fast.errors import StateError
from mia_fast.risk.overtrading import TradeRate
from mia_kernels import account
from mia_kernels.drawdown import DRAWDOWN, EQUITY, PEAK, TILE, deepest, drawdown, drawdown_paths, initial_state
from mia_kernels.limits import CHECKS, LIMITS, VALUES, failed_limits

marks = st.lists(
    st.one_of(
        st.floats(allow_nan=True, allow_infinity=True),
        st.floats(min_value=1e4, max_value=1e6),
        st.sampled_from([0.0, -0.0, -1.0, 250_000.0, math.inf, -math.inf, math.nan]),
    ),
    max_size=40,
)


def naive(equity):
    """Peak to date and drawdown, one obvious line each."""
    out = []
    for t, mark in enumerate(equity):
        seen = [x for x in equity[: t + 1] if math.isfinite(x)]
        peak = max(seen, default=-math.inf)
        with np.errstate(over="ignore"):
            out.append(float(np.float64(peak - mark) / peak) if math.isfinite(mark) and peak > 0 else math.nan)
    return np.array(out)


@settings(max_examples=300, deadline=None)
@given(marks, st.lists(st.integers(1, 7), min_size=1, max_size=40))
def test_any_cut_gives_the_naive_drawdown_bit_for_bit(values, cuts):
    equity = np.array(values, dtype=np.float64)
    whole, state = np.empty_like(equity), initial_state()
    drawdown(equity, state, whole)
    np.testing.assert_array_equal(whole, naive(values))
    parts, piece = np.empty_like(equity), initial_state()
    at, turn = 0, 0
    while at < equity.size:
        stop = at + cuts[turn % len(cuts)]
        drawdown(equity[at:stop], piece, parts[at:stop])
        at, turn = stop, turn + 1
    assert whole.tobytes() == parts.tobytes()
    assert state.tobytes() == piece.tobytes()


@pytest.mark.parametrize("length", [1, 511, 512, 513, 2_000])
def test_paths_equal_one_path_each(length):
    rng = np.random.default_rng(length)
    equity = 250_000.0 + np.cumsum(rng.normal(0.0, 400.0, (5, length)), axis=1)
    equity[3, length // 2] = np.nan
    states = np.tile(initial_state(), (5, 1))
    out = np.empty_like(equity)
    drawdown_paths(equity, states, out)
    for path in range(5):
        state, one = initial_state(), np.empty(length)
        drawdown(equity[path], state, one)
        assert one.tobytes() == out[path].tobytes()
        assert state.tobytes() == states[path].tobytes()
        assert state[EQUITY] == equity[path, -1] or np.isnan(equity[path, -1])
    np.testing.assert_allclose(out[0], 1 - equity[0] / np.maximum.accumulate(equity[0]), atol=1e-15)


@pytest.mark.parametrize("peak", [100_000.0, 250_000.0, 123_400.0])
def test_a_loss_of_exactly_five_percent_is_exactly_the_limit(peak):
    state, out = initial_state(), np.empty(2)
    drawdown(np.array([peak, peak * 95 / 100]), state, out)
    assert out[1] == 0.05
    assert (state[PEAK], state[DRAWDOWN]) == (peak, 0.05)


def test_an_empty_block_changes_nothing():
    state = np.array([10.0, 9.0, 0.1])
    drawdown(np.empty(0), state, np.empty(0))
    assert state.tolist() == [10.0, 9.0, 0.1]


def checked(equity, limit, state):
    """deepest against drawdown_paths, bit for bit; returns worst and breach."""
    worst, breach = np.empty(len(equity)), np.empty(len(equity), dtype=np.int64)
    series, other = np.empty_like(equity), state.copy()
    drawdown_paths(equity, other, series)
    deepest(equity, limit, state, worst, breach)
    assert state.tobytes() == other.tobytes()
    for path, row in enumerate(series):
        beyond = ~(row <= limit)
        assert breach[path] == (int(np.argmax(beyond)) if beyond.any() else -1)
        expected = np.nan if np.isnan(row).any() else row.max(initial=-np.inf)
        assert worst[path].tobytes() == np.float64(expected).tobytes() or (np.isnan(worst[path]) and np.isnan(expected))
    return worst, breach


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0, 1, TILE - 1, TILE, TILE + 1, 3 * TILE + 5]),
    st.lists(st.tuples(st.integers(0, 3 * TILE), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e300]))),
)
def test_the_deepest_mark_and_the_first_breach_equal_the_whole_series(seed, length, oddities):
    rng = np.random.default_rng(seed)
    equity = 250_000.0 + np.cumsum(rng.normal(0.0, 400.0, (4, length)), axis=1)
    for place, value in oddities:
        if place < length:
            equity[place % 4, place] = value
    state = np.tile(initial_state(), (4, 1))
    checked(equity, 0.02, state)
    checked(equity[:, : length // 2].copy(), 0.02, state)  # a second block goes on from the state


def test_a_path_in_decline_breaches_where_it_should():
    equity = np.linspace(100_000.0, 90_000.0, 10 * TILE + 1)[None, :]
    worst, breach = checked(equity, 0.05, initial_state()[None, :])
    assert worst[0] == 0.1
    assert breach[0] == 5 * TILE + 1


# ---------------------------------------------------------------- equity, the trade date, limits


def test_equity_is_cash_plus_the_open_position_to_the_cent():
    out = np.empty(5)
    account.equity(
        np.array([250_000.0, 249_997.75, 100.0, 5.0, np.nan]),
        np.array([0.0, 2.0, -1.0, np.nan, 0.0]),
        np.array([np.nan, 4_000.25, 4_000.0, 1.0, 1.0]),
        np.array([4_010.0, 4_010.25, 4_001.0, 1.0, 1.0]),
        50.0,
        out,
    )
    np.testing.assert_array_equal(out, [250_000.0, 250_997.75, 50.0, np.nan, np.nan])


def naive_daily(marks, days):
    """Loss against the last finite mark of an earlier day, or against the first finite mark of all."""
    out, seen = [], []  # seen: (day, mark) of finite marks; a day never goes back
    day = -math.inf
    for mark, stamp in zip(marks, days, strict=True):
        day = max(day, stamp)
        earlier = [value for when, value in seen if when < day]
        if math.isfinite(mark):
            seen.append((day, mark))
        today = [value for when, value in seen if when == day]
        opening = earlier[-1] if earlier else (today[0] if today else math.nan)
        out.append(opening - mark if math.isfinite(mark) else math.nan)
    return np.array(out)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.one_of(st.floats(1e4, 1e6), st.sampled_from([math.nan, math.inf])), st.integers(1, 5)), max_size=30
    ),
    st.integers(0, 30),
)
def test_daily_loss_equals_its_twin_at_any_cut(rows, cut):
    marks = np.array([row[0] for row in rows])
    days = np.array([float(row[1]) for row in rows])
    out, state = np.empty(len(rows)), account.initial_day_state()
    for part in (slice(0, cut), slice(cut, None)):
        account.daily_loss(marks[part], days[part], state, out[part])
    np.testing.assert_array_equal(out, naive_daily(marks.tolist(), days.tolist()))


LIMIT_ROW = dict(zip(LIMITS, [5.0, 2_000_000.0, 5.0, 0.01, 15_000.0, 0.03, 0.01, 1.0, 50.0], strict=True))
numbers = st.one_of(
    st.floats(-1e7, 1e7), st.sampled_from([0.0, 1.0, -1.0, 2.0, 5.0, 100.0, 4_000.0, 250_000.0, math.nan, math.inf])
)


def naive_limits(v, lim):
    """Each limit as a sentence; what is not finite or not true fails."""
    size, sign = abs(v["quantity"]), 1.0 if v["quantity"] > 0 else -1.0
    ahead = v["buying"] if sign > 0 else v["selling"]
    value = lim["point_value"]
    stop = v["stop"]
    below = (v["peak"] - v["equity"]) / v["peak"] if v["peak"] > 0 else math.nan
    holds = {
        "quantity": 0 < size <= lim["max_quantity"],
        "notional": size * v["price"] * value <= lim["max_notional"],
        "position": sign * v["position"] + ahead + size <= lim["max_position"],
        "collar": 0 < v["reference"] < math.inf and abs(v["price"] - v["reference"]) <= lim["collar"] * v["reference"],
        "margin": (abs(v["position"]) + ahead + size) * lim["margin"] <= v["equity"],
        "drawdown": all(map(math.isfinite, (v["equity"], v["drawdown"], below)))
        and max(below, v["drawdown"]) <= v["drawdown_limit"],
        "daily_loss": v["day_open"] - v["equity"] <= lim["max_daily_loss"] * v["day_open"],
        "stop": lim["stop_required"] == 0 if math.isnan(stop) else stop > 0 and (v["price"] - stop) * v["quantity"] > 0,
        "trade_risk": math.isnan(stop) or abs(v["price"] - stop) * size * value <= lim["max_trade_risk"] * v["equity"],
    }
    return sum(1 << k for k, name in enumerate(CHECKS) if not holds[name])


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(*[numbers] * len(VALUES)), min_size=1, max_size=5))
def test_limits_equal_their_sentences(rows):
    values, limits = np.array(rows), np.array([LIMIT_ROW[name] for name in LIMITS])
    with np.errstate(all="ignore"):
        expected = [naive_limits(dict(zip(VALUES, row, strict=True)), LIMIT_ROW) for row in rows]
    assert [failed_limits(row, limits) for row in values] == expected


# ---------------------------------------------------------------- overtrade_risk_score


def run(rate: TradeRate, minutes: int, every: int, start: int = T0) -> int:
    """Bars each minute, a trade each ``every`` of them; returns the next instant."""
    now = start
    for bar in range(minutes):
        rate.tick(now)
        if every and bar % every == 0:
            rate.trade(now)
        now += MINUTE
    return now


def burst(rate: TradeRate, now: int, trades: int) -> float:
    for _ in range(trades):
        rate.trade(now)
    return rate.score()


def test_score_is_the_negative_binomial_probability_of_fewer_trades():
    stats = pytest.importorskip("scipy.stats")
    rate = TradeRate(CONFIG.overtrading)
    now = run(rate, 60 * 24, 30)
    saved = rate.save()
    count = len(saved["recent"])
    # The past, weighted by hand: each trade by its age at the start of the present window.
    start = saved["active"] - 3600.0
    decay = math.log(2) / (CONFIG.overtrading.half_life_hours * 3600)
    times = [bar * 60.0 for bar in range(0, 60 * 24, 30)]
    past = sum(math.exp(-decay * (start - t)) for t in times if t <= start)
    exposure = (1 - math.exp(-decay * start)) / decay
    expected = stats.nbinom.cdf(count - 1, past + 0.5, exposure / (exposure + 3600.0))
    assert rate.score() == pytest.approx(expected, rel=1e-9)
    for extra in (1, 3, 10):
        rate.tick(now - MINUTE)
        other = TradeRate(CONFIG.overtrading)
        other.restore(rate.save())
        expected = stats.nbinom.cdf(count + extra - 1, past + 0.5, exposure / (exposure + 3600.0))
        assert burst(other, now - MINUTE, extra) == pytest.approx(expected, rel=1e-9)


def test_score_rises_with_the_rate_and_stays_in_range():
    rate = TradeRate(CONFIG.overtrading)
    now = run(rate, 60 * 24, 30)
    scores = [rate.score()] + [burst(rate, now - MINUTE, 1) for _ in range(200)]
    assert scores == sorted(scores)
    assert scores[0] < 0.8
    assert 0.999 < scores[-1] <= 1.0


@pytest.mark.parametrize(("minutes", "every"), [(60 * 24, 0), (60 * 24, 120), (60 * 5, 1)])
def test_little_history_gives_zero(minutes, every):
    rate = TradeRate(CONFIG.overtrading)
    now = run(rate, minutes, every)
    assert burst(rate, now, 50) == 0.0


def test_a_closed_market_is_no_time():
    apart, along = TradeRate(CONFIG.overtrading), TradeRate(CONFIG.overtrading)
    run(along, 60 * 24, 10)
    now = run(apart, 60 * 12, 10)
    run(apart, 60 * 12, 10, now + 3 * 24 * 60 * MINUTE)
    assert apart.score() == pytest.approx(along.score(), abs=0.02)


def test_a_saved_rate_goes_on_unchanged_and_a_damaged_one_is_refused():
    rate, other = TradeRate(CONFIG.overtrading), TradeRate(CONFIG.overtrading)
    now = run(rate, 60 * 24, 7)
    other.restore(rate.save())
    run(rate, 90, 5, now)
    run(other, 90, 5, now)
    assert rate.save() == other.save()
    for key, value in (("active", math.nan), ("recent", [-1.0]), ("last_ns", 1.5), ("past_time", "x")):
        with pytest.raises(StateError):
            other.restore({**rate.save(), key: value})
    with pytest.raises(StateError):
        other.restore({})
    assert rate.save() == other.save()
