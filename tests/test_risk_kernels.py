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
from mia_kernels.drawdown import DRAWDOWN, EQUITY, PEAK, drawdown, drawdown_paths, initial_state

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
