"""Policy, simulated venue and engine: what a bar does on its way to the journal."""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mia_fast import config
from mia_fast.clock import from_datetime
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


POLICY = Policy.open(SHIPPED)


@pytest.fixture
def policy() -> Policy:
    return POLICY


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
        POLICY,
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


def test_a_decision_names_the_regimes_of_the_model_and_the_score_stays_the_rules(policy: Policy) -> None:
    given = [GOOD[name] for name in FEATURES]
    rule, told = policy.signal(given, 20.0), policy.signal(given, 20.0, [0.125, 0.625, 0.25])
    assert told.regime_probs == {"trend": 0.125, "range": 0.625, "defensive": 0.25}
    assert told.score == rule.score
    for bad in ([0.5, math.nan, 0.5], [math.inf, 0.0, 0.0]):
        refused = policy.signal(given, 20.0, bad)
        assert (refused.score, refused.regime_probs) == (0.0, None)
        assert refused.missing == "PREDICTION_MISSING: output=regime_probs"


def test_a_missing_forecast_gives_no_signal(policy: Policy) -> None:
    assert _signal(policy, math.nan).missing == "PREDICTION_MISSING: output=predicted_vix"
    assert str(_signal(policy, atr_14=0.0).missing).startswith("FEATURE_INVALID")


def _ends(policy: Policy, day: str, clock: str) -> tuple[bool, bool]:
    """Whether entries are over, and whether positions are to be closed, at a time of New York."""
    moment = dt.datetime.fromisoformat(f"{day}T{clock}").replace(tzinfo=ZoneInfo("America/New_York"))
    known_at, minute = from_datetime(moment), 60.0 * moment.hour + moment.minute
    return not policy.entries_open(minute, known_at), policy.must_be_flat(minute, known_at)


def test_no_entries_at_the_end_of_the_session(policy: Policy) -> None:
    for day in ("2025-11-26", "2035-11-27"):  # also beyond the dated table
        assert _ends(policy, day, "09:30") == (False, False)
        assert _ends(policy, day, "16:29") == (False, False)
        assert _ends(policy, day, "16:30") == (True, False)
        assert _ends(policy, day, "16:49") == (True, False)
        assert _ends(policy, day, "16:50") == (True, True)
        assert _ends(policy, day, "17:00") == (True, True)
        assert _ends(policy, day, "18:01") == (False, False)


@pytest.mark.parametrize(
    ("day", "hour", "minute"), [("2025-11-27", 13, 0), ("2025-11-28", 13, 15), ("2021-04-02", 9, 15)]
)
def test_a_short_day_ends_as_long_before_its_own_close(policy: Policy, day: str, hour: int, minute: int) -> None:
    close = 60 * hour + minute

    def at(before: int) -> str:
        return f"{(close - before) // 60:02d}:{(close - before) % 60:02d}"

    assert _ends(policy, day, at(31)) == (False, False)
    assert _ends(policy, day, at(30)) == (True, False)
    assert _ends(policy, day, at(11)) == (True, False)
    assert _ends(policy, day, at(10)) == (True, True)
    assert _ends(policy, day, at(0)) == (True, True)
    assert _ends(policy, day, at(-120)) == (True, True)  # nothing trades
    assert _ends(Policy(policy.config), day, at(0)) == (False, False)


def test_a_product_without_a_table_has_the_usual_close(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    (tmp_path / "config").mkdir()
    text = (shipped() / "config" / "market_config.yaml").read_text(encoding="utf-8")
    assert "symbol: ES" in text
    (tmp_path / "config" / "market_config.yaml").write_text(text.replace("symbol: ES", "symbol: ZN"), encoding="utf-8")
    assert _ends(Policy.open(workspace), "2025-11-28", "13:10") == (False, False)
    assert _ends(Policy.open(workspace), "2025-11-28", "16:50") == (True, True)


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
        closed = broker.take_bar(price, price, price, now)
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
    assert broker.take_bar(4000.0, 4000.0, 4000.0, 1) is None
    broker.submit(Order("b", "ES", Side.BUY, 1.0, None, True), "T2", None, "EXIT_TIME")
    trade = broker.take_bar(3990.0, 3990.0, 3990.0, 2)
    assert trade is not None
    assert trade.trade_id == "T1"
    assert trade.side == "sell"
    assert trade.entry_price == 3999.75
    assert trade.exit_price == 3990.25
    assert trade.profit == pytest.approx(9.5 * 50 - 2 * 2.25)
    assert broker.equity(5000.0) == pytest.approx(market.account.starting_equity + trade.profit)
    assert np.isclose(broker.cash, broker.equity(1.0))


class NaiveVenue:
    """Walks every tick of the worst way through a bar: from the open against the position, then to the rest."""

    def __init__(self, slippage: float) -> None:
        self.slippage = slippage
        self.pending: tuple[int, float | None, bool] | None = None
        self.held, self.entry, self.stop = 0, 0.0, None
        self.points = 0.0
        self.fills: list[float] = []

    def fill(self, sign: int, price: float) -> None:
        self.fills.append(price + sign * self.slippage)

    def bar(self, opened: float, high: float, low: float) -> str | None:
        closed = None
        if self.pending is not None:
            sign, stop, leaves = self.pending
            self.pending = None
            self.fill(sign, opened)
            if leaves:
                self.leave()
                closed = "ordered"
            else:
                self.held, self.entry, self.stop = sign, self.fills[-1], stop
        if self.held and self.stop is not None:
            worst = low if self.held > 0 else high
            steps = round(abs(opened - worst) / 0.25)
            for k in range(steps + 1):
                price = opened - self.held * 0.25 * k
                if self.held * (price - self.stop) <= 0:
                    self.fill(-self.held, price)
                    self.leave()
                    closed = "stopped"
                    break
        return closed

    def leave(self) -> None:
        self.points += self.held * (self.fills[-1] - self.entry)
        self.held, self.stop = 0, None


ticks = st.integers(0, 12)


@given(
    st.lists(
        st.tuples(st.integers(-10, 10), ticks, ticks, st.sampled_from(["hold", "buy", "sell", "leave"]),
                  st.one_of(st.none(), st.integers(1, 10)), st.integers(-3, 3)), min_size=1, max_size=40)
)  # fmt: skip
def test_a_protective_stop_is_filled_as_a_walk_over_every_tick_fills_it(
    bars: list[tuple[int, int, int, str, int | None, int]],
) -> None:
    """Gaps through the stop, touches, entries stopped in their own bar: fill by fill as the naive twin."""
    market = config.market(SHIPPED)
    broker = SimulatedBroker(market)
    naive = NaiveVenue(market.instrument.tick_size * market.account.slippage_ticks)
    close, fees = 4000.0, 0.0
    for now, (gap, above, below, wish, away, drift) in enumerate(bars, start=1):
        opened = close + 0.25 * gap
        high, low = opened + 0.25 * above, opened - 0.25 * below
        before = len(naive.fills)
        expected = naive.bar(opened, high, low)
        trade = broker.take_bar(opened, high, low, now)
        fees += market.account.fee_per_side * (len(naive.fills) - before)
        assert (trade is not None) == (expected is not None)
        if trade is not None:
            assert trade.exit_price == naive.fills[-1]
            assert (trade.reason == "EXIT_PROTECTIVE_STOP") == (expected == "stopped")
        assert (broker.position.quantity if broker.position else 0) == naive.held
        close = min(max(opened + 0.25 * drift, low), high)
        unrealised = naive.held * (close - naive.entry)
        points = (naive.points + unrealised) * market.instrument.point_value
        assert broker.equity(close) == pytest.approx(market.account.starting_equity + points - fees, abs=1e-6)
        other = SimulatedBroker(market)
        other.restore(broker.save())
        broker = other  # a restart at every bar
        if wish in ("buy", "sell") and not naive.held:
            sign = 1 if wish == "buy" else -1
            stop = None if away is None else close - sign * 0.25 * away
            naive.pending = (sign, stop, False)
            broker.submit(Order(f"o{now}", "ES", Side(wish), 1.0, stop=stop), f"T{now}", None, "ENTRY_SIGNAL")
        elif wish == "leave" and naive.held:
            naive.pending = (-naive.held, None, True)
            side = Side.SELL if naive.held > 0 else Side.BUY
            broker.submit(Order(f"o{now}", "ES", side, 1.0, reduce_only=True), f"T{now}", None, "EXIT_TIME")


@pytest.mark.parametrize(
    ("bar", "price"),
    [
        ((3999.0, 4002.0, 3995.25), None),
        ((3999.0, 4002.0, 3995.0), 3994.75),  # touched: at the stop, less a tick
        ((3999.0, 4010.0, 3990.0), 3994.75),  # a gain in the same bar does not come first
        ((3993.0, 3994.0, 3990.0), 3992.75),  # jumped over: at the open
    ],
)
def test_the_stop_of_a_long_position(bar: tuple[float, float, float], price: float | None) -> None:
    broker = SimulatedBroker(config.market(SHIPPED))
    broker.submit(Order("a", "ES", Side.BUY, 1.0, stop=3995.0), "T1", None, "ENTRY_SIGNAL")
    assert broker.take_bar(4000.0, 4000.0, 4000.0, 1) is None
    trade = broker.take_bar(*bar, 2)
    assert (None if trade is None else trade.exit_price) == price
