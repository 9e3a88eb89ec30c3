"""Policy, simulated venue and engine: what a bar does on its way to the journal."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mia_fast import config
from mia_fast.errors import ConfigError
from mia_fast.live.broker import SimulatedBroker
from mia_fast.live.policy import FEATURES, REGIMES, Policy, PolicyConfig
from mia_fast.risk import Order, Side
from mia_fast.workspace import Workspace, shipped

SHIPPED = Workspace(shipped())
GOOD = {
    "close": 4000.0,
    "vwap": 4000.0,
    "atr_14": 2.0,
    "market_momentum_score": 0.9,
    "trend_strength_score": 0.8,
    "vix_term_1m": 20.0,
}


@pytest.fixture
def policy() -> Policy:
    return Policy.open(SHIPPED)


def _signal(policy: Policy, vix: float = 20.0, **changed: float):
    values = {**GOOD, **changed}
    return policy.signal([values[name] for name in FEATURES], vix)


def test_a_trend_is_followed_and_a_stretched_range_is_faded(policy: Policy) -> None:
    up, down = _signal(policy), _signal(policy, market_momentum_score=0.1)
    assert up.score > 0.4
    assert down.score == pytest.approx(-up.score)
    stretched = _signal(policy, trend_strength_score=0.05, market_momentum_score=0.5, close=4040.0)
    assert stretched.score < -0.4


def test_a_defensive_market_gives_hardly_a_signal(policy: Policy) -> None:
    calm, alarmed = _signal(policy), _signal(policy, vix=30.0)
    assert alarmed.regime_probs is not None
    assert alarmed.regime_probs["defensive"] > 0.9
    assert abs(alarmed.score) < 0.1 * abs(calm.score)


@given(
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(-500, 500),
    st.floats(0.01, 100),
    st.floats(5, 90),
    st.floats(5, 90),
)
def test_scores_and_probabilities_stay_in_bounds(
    momentum: float, efficiency: float, distance: float, atr: float, vix: float, forecast: float
) -> None:
    signal = _signal(
        Policy.open(SHIPPED),
        forecast,
        market_momentum_score=momentum,
        trend_strength_score=efficiency,
        close=4000.0 + distance,
        atr_14=atr,
        vix_term_1m=vix,
    )
    assert -1.0 <= signal.score <= 1.0
    assert signal.regime_probs is not None
    assert tuple(signal.regime_probs) == REGIMES
    assert math.fsum(signal.regime_probs.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_missing_feature_gives_no_signal_and_is_named(policy: Policy, name: str, value: float) -> None:
    signal = _signal(policy, **{name: value})
    assert signal.score == 0.0
    assert signal.regime_probs is None
    assert signal.missing == f"FEATURE_MISSING: feature={name}"


def test_a_missing_forecast_gives_no_signal(policy: Policy) -> None:
    assert _signal(policy, math.nan).missing == "PREDICTION_MISSING: output=predicted_vix"
    assert str(_signal(policy, atr_14=0.0).missing).startswith("FEATURE_INVALID")


def test_no_entries_at_the_end_of_the_session(policy: Policy) -> None:
    assert policy.entries_open(9 * 60 + 30)
    assert not policy.entries_open(16 * 60 + 30)
    assert policy.must_be_flat(16 * 60 + 50)
    assert policy.entries_open(18 * 60)
    assert not policy.must_be_flat(18 * 60)


@pytest.mark.parametrize("text", ["25:00", "9", "aa:bb", "10:60", "-1:00"])
def test_a_time_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    good = (shipped() / "config" / "policy.yaml").read_text(encoding="utf-8")
    path = tmp_path / "policy.yaml"
    path.write_text(good.replace('"16:30"', f'"{text}"'), encoding="utf-8")
    with pytest.raises(ConfigError, match="not a time of day"):
        config.load(PolicyConfig, path)


@given(st.lists(st.tuples(st.integers(-400, 400), st.booleans()), min_size=1, max_size=60))
def test_the_account_adds_up_to_the_cent(path: list[tuple[int, bool]]) -> None:
    """Equity = start + sum over fills of quantity * price moves - fees, whatever the order of trades."""
    market = config.market(SHIPPED)
    broker = SimulatedBroker(market)
    price, cash, held = 4000.0, market.account.starting_equity, 0
    tick = market.instrument.tick_size * market.account.slippage_ticks
    now = 0
    for move, trade in path:
        now += 60_000_000_000
        was_pending = broker.pending
        closed = broker.open_bar(price, now)
        if was_pending is not None:
            sign = 1 if was_pending.side == "buy" else -1
            cash -= sign * (price + sign * tick) * market.instrument.point_value + market.account.fee_per_side
            held += sign
        assert (closed is not None) == (was_pending is not None and was_pending.reduce_only)
        price += 0.25 * move
        assert broker.equity(price) == pytest.approx(cash + held * price * market.instrument.point_value, abs=0.005)
        assert (broker.position.quantity if broker.position else 0) == held
        if trade:
            side = Side.SELL if held > 0 else Side.BUY
            order = Order(f"id-{now}", "ES", side, 1.0, None, held != 0)
            broker.submit(order, f"t-{now}", None, "TEST")
    other = SimulatedBroker(market)
    other.restore(broker.save())
    assert other.save() == broker.save()


def test_profit_of_a_round_trip_is_after_both_fees_and_both_slippages() -> None:
    market = config.market(SHIPPED)
    broker = SimulatedBroker(market)
    broker.submit(Order("a", "ES", Side.SELL, 1.0), "T1", {"trend": 1.0}, "ENTRY_SIGNAL")
    assert broker.open_bar(4000.0, 1) is None
    broker.submit(Order("b", "ES", Side.BUY, 1.0, None, True), "T2", None, "EXIT_TIME")
    trade = broker.open_bar(3990.0, 2)
    assert trade is not None
    assert trade.trade_id == "T1"
    assert trade.side == "sell"
    assert trade.entry_price == 3999.75
    assert trade.exit_price == 3990.25
    assert trade.profit == pytest.approx(9.5 * 50 - 2 * 2.25)
    assert broker.equity(5000.0) == pytest.approx(market.account.starting_equity + trade.profit)
    assert np.isclose(broker.cash, broker.equity(1.0))
