"""The simulated venue of a replay: market orders fill at the next bar's open, protective stops inside a bar.

Slippage and fees are taken off each fill. A bar does not tell the way its price took, so the worst one is assumed:

* what was pending fills at the open, before the bar's range is looked at;
* a stop that the open reaches or has jumped over fills at the open, not at its own price;
* a stop that the range touches is filled, at its own price: a touch is enough, and a stop comes before any gain
  that the same bar may have brought;
* an entry's stop works from its fill on, in the same bar too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from mia_fast.config import MarketConfig
from mia_fast.risk import Account, Order, Side

ACCOUNT: Final = "simulated"
"""The name of the simulated account."""

STOPPED: Final = "EXIT_PROTECTIVE_STOP"
"""The reason of a trade that its protective stop closed."""

ROLLED: Final = "EXIT_ROLL"
"""The reason of a trade that ended with its contract."""


@dataclass(slots=True)
class Pending:
    """An accepted order that waits for the next open."""

    trade_id: str
    side: str
    quantity: int
    reduce_only: bool
    regime_probs: dict[str, float] | None
    reason: str
    stop: float | None = None


@dataclass(slots=True)
class Position:
    """The open position."""

    trade_id: str
    quantity: int
    """Signed: long is positive."""
    entry_price: float
    entry_ns: int
    bars: int
    regime_probs: dict[str, float] | None
    stop: float | None = None
    """Protective stop, index points; it rests at the venue and ends with the position."""


@dataclass(frozen=True, slots=True)
class Trade:
    """A closed trade."""

    trade_id: str
    entry_ns: int
    exit_ns: int
    side: str
    quantity: int
    entry_price: float
    exit_price: float
    profit: float
    """USD after fees."""
    fees: float
    regime_probs: dict[str, float] | None
    reason: str


class SimulatedBroker:
    """One account, one instrument, at most one position."""

    def __init__(self, config: MarketConfig) -> None:
        self._symbol = config.instrument.symbol
        self._point_value = config.instrument.point_value
        self._slippage = config.account.slippage_ticks * config.instrument.tick_size
        self._fee = config.account.fee_per_side
        self.cash = config.account.starting_equity
        self.position: Position | None = None
        self.pending: Pending | None = None
        self.trades = 0
        self.wins = 0

    def equity(self, price: float) -> float:
        """USD: cash and the open position marked at ``price``."""
        if self.position is None:
            return self.cash
        return self.cash + (price - self.position.entry_price) * self.position.quantity * self._point_value

    def account(self, price: float, now_ns: int) -> Account:
        """What the venue would report now."""
        held = float(self.position.quantity) if self.position else 0.0
        working: tuple[Order, ...] = ()
        if self.pending is not None:
            order = self.pending
            working = (Order(order.trade_id, self._symbol, Side(order.side), order.quantity, None, order.reduce_only),)
        return Account(now_ns, self.equity(price), held, name=ACCOUNT, reconciled=True, working=working)

    def submit(self, order: Order, trade_id: str, regime_probs: dict[str, float] | None, reason: str) -> None:
        """Accept a market order; it fills at the next open. An entry's protective stop goes to the venue with it."""
        quantity = int(order.quantity)
        self.pending = Pending(
            trade_id, order.side.value, quantity, order.reduce_only, regime_probs, reason, order.stop
        )

    def take_bar(self, open_price: float, high: float, low: float, known_at_ns: int) -> Trade | None:
        """Fill what is pending at this bar's open, then the protective stop if the bar reaches it.

        Parameters
        ----------
        open_price, high, low
            Of the bar, index points.
        known_at_ns
            Its close, ns UTC.

        Returns
        -------
        Trade | None
            The trade that this closed: one position is open at most, so there is one at most.
        """
        closed = self._open(open_price, known_at_ns)
        position = self.position
        if position is not None and position.stop is not None:
            long, stop = position.quantity > 0, position.stop
            if (low <= stop) if long else (high >= stop):
                price = min(stop, open_price) if long else max(stop, open_price)
                fees = self._fee * abs(position.quantity)
                self.cash -= fees
                price += -self._slippage if long else self._slippage
                closed = self._close(price, known_at_ns, 2 * fees, STOPPED)
        return closed

    def leave(self, price: float, at_ns: int) -> Trade | None:
        """Close what is open at ``price``, the last one of a contract that is rolled out of, and drop what is pending.

        Returns
        -------
        Trade | None
            The trade that this closed.
        """
        self.pending = None
        if self.position is None:
            return None
        fees = self._fee * abs(self.position.quantity)
        self.cash -= fees
        price += -self._slippage if self.position.quantity > 0 else self._slippage
        return self._close(price, at_ns, 2 * fees, ROLLED)

    def _open(self, open_price: float, known_at_ns: int) -> Trade | None:
        closed = None
        order, self.pending = self.pending, None
        if order is not None:
            sign = 1 if order.side == Side.BUY.value else -1
            price = open_price + sign * self._slippage
            fees = self._fee * order.quantity
            self.cash -= fees
            if order.reduce_only and self.position is not None:
                closed = self._close(price, known_at_ns, 2 * fees, order.reason)
            elif not order.reduce_only and self.position is None:
                self.position = Position(
                    order.trade_id, sign * order.quantity, price, known_at_ns, 0, order.regime_probs, order.stop
                )
        if self.position is not None:
            self.position.bars += 1
        return closed

    def _close(self, price: float, at_ns: int, fees: float, reason: str) -> Trade:
        position, self.position = self.position, None
        assert position is not None
        gross = (price - position.entry_price) * position.quantity * self._point_value
        self.cash += gross
        self.trades += 1
        self.wins += gross > fees
        return Trade(
            position.trade_id,
            position.entry_ns,
            at_ns,
            Side.BUY.value if position.quantity > 0 else Side.SELL.value,
            abs(position.quantity),
            position.entry_price,
            price,
            gross - fees,
            fees,
            position.regime_probs,
            reason,
        )

    def save(self) -> dict[str, Any]:
        """The account as JSON-safe values."""
        return {
            "cash": self.cash,
            "trades": self.trades,
            "wins": self.wins,
            "position": None if self.position is None else asdict(self.position),
            "pending": None if self.pending is None else asdict(self.pending),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from a saved account."""
        self.cash, self.trades, self.wins = saved["cash"], saved["trades"], saved["wins"]
        self.position = None if saved["position"] is None else Position(**saved["position"])
        self.pending = None if saved["pending"] is None else Pending(**saved["pending"])
