"""The order gate: it may only say no, and it always can.

``Gate.check`` runs the rules of :data:`RULES` and returns a :class:`Verdict`. A rule is a row: what
it is called, which orders it concerns, which codes it may give, and the function that decides. A
new limit is a new row.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, Flag, auto
from typing import Any

from mia_fast.clock import iso
from mia_fast.config import Instrument
from mia_fast.risk.calendar import EventCalendar
from mia_fast.risk.codes import Code, Denial, denial
from mia_fast.risk.config import Freshness
from mia_fast.risk.controller import Journal, RiskController

_TICK_TOLERANCE = 1e-6  # of a tick: decimal ticks such as 0.01 are not exact in binary


class Side(Enum):
    BUY = "buy"
    SELL = "sell"


class Action(Enum):
    NEW = "new"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Order:
    """What is about to be sent.

    Attributes
    ----------
    client_id
        From :func:`client_id`. For a cancel: of the order to cancel.
    symbol
        Root symbol of the instrument.
    side
        Buy or sell.
    quantity
        Contracts, a positive whole number.
    price
        Limit price in index points; None for a market order.
    reduce_only
        The order may only bring the position nearer to zero, here and at the venue. Exits must
        carry it: an order without it is an entry.
    action
        A cancel takes an order back; it always passes.
    """

    client_id: str
    symbol: str
    side: Side
    quantity: float
    price: float | None = None
    reduce_only: bool = False
    action: Action = Action.NEW


@dataclass(frozen=True, slots=True)
class Market:
    """What is known of the market when the order is about to be sent.

    Attributes
    ----------
    known_at_ns
        When the last bar became known (its close), ns UTC.
    price
        The last price, index points.
    prediction_finite
        Every model output behind the order is there and finite.
    """

    known_at_ns: int
    price: float
    prediction_finite: bool


@dataclass(frozen=True, slots=True)
class Account:
    """The account as the venue or the simulator reports it.

    Attributes
    ----------
    known_at_ns
        When it was marked, ns UTC.
    equity
        USD, realised plus open.
    position
        Contracts, signed: long is positive.
    """

    known_at_ns: int
    equity: float
    position: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Allowed, or every reason why not. True in a condition only when the order may be sent."""

    denials: tuple[Denial, ...] = ()

    @property
    def allowed(self) -> bool:
        return not self.denials

    @property
    def code(self) -> str | None:
        """The first code, for the ``code`` column of the decision log."""
        return self.denials[0].code.name if self.denials else None

    def __bool__(self) -> bool:
        return not self.denials

    def __str__(self) -> str:
        return "; ".join(map(str, self.denials)) or "ALLOW"


ALLOW = Verdict()


class Scope(Flag):
    """Which orders a rule concerns. No rule concerns cancels."""

    ENTRY = auto()
    EXIT = auto()


class Gate:
    """Pre-trade checks of one instrument and one account.

    Parameters
    ----------
    controller, calendar, journal
        Shared with the engine that holds them.
    instrument
        Symbol and tick size.
    freshness
        The greatest age of each input.
    passed_ids
        Client ids that passed before a restart, from the journal.
    """

    def __init__(
        self,
        controller: RiskController,
        calendar: EventCalendar,
        instrument: Instrument,
        freshness: Freshness,
        journal: Journal,
        passed_ids: Iterable[str] = (),
    ) -> None:
        self.controller = controller
        self.calendar = calendar
        self.instrument = instrument
        self.journal = journal
        self.passed_ids = set(passed_ids)
        self.market_ns = round(freshness.market_seconds * 1e9)
        self.equity_ns = round(freshness.equity_seconds * 1e9)
        self.skew_ns = round(freshness.clock_skew_seconds * 1e9)
        self.last_ns = 0
        self._entry = tuple(rule for rule in RULES if Scope.ENTRY in rule.scope)
        self._exit = tuple(rule for rule in RULES if Scope.EXIT in rule.scope)

    def check(self, order: Order, market: Market | None, account: Account | None, now_ns: int) -> Verdict:
        """Allow, or deny with every reason that applies. Never raises for bad data.

        ``now_ns`` is the engine's clock. An order that passes uses up its client id: the same id
        is denied afterwards. Cancels always pass. A reduce-only order that truly reduces is held to
        the rules about the order itself; one that does not is held to those of an entry as well.
        """
        if type(order) is not Order:
            return Verdict((denial(Code.ORDER_MISSING, found=type(order).__name__),))
        if order.action is Action.CANCEL:
            return ALLOW
        rules = self._exit if order.reduce_only is True and _reduces(order, account) else self._entry
        ask = Ask(self, order, market, account, now_ns)
        denials: tuple[Denial, ...] = ()
        for rule in rules:
            try:
                found = rule.check(ask)
            except Exception as error:  # a check that cannot run means no
                found = denial(Code.RISK_CHECK, rule=rule.name, error=f"{type(error).__name__}:{error}")
            if found is not None:
                denials = (*denials, found)
        if denials:
            return Verdict(denials)
        self.passed_ids.add(order.client_id)
        return ALLOW


@dataclass(slots=True)
class Ask:
    """One question to the gate. Nothing in it is trusted, whatever its type says."""

    gate: Gate
    order: Order
    market: Market | None
    account: Account | None
    now: int


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the gate.

    Attributes
    ----------
    name
        Names the rule in ``RISK_CHECK``.
    scope
        Which orders it concerns.
    codes
        Every code that ``check`` may give.
    check
        Gives a denial or None. It may raise: that denies.
    """

    name: str
    scope: Scope
    codes: tuple[Code, ...]
    check: Callable[[Ask], Denial | None]


def _clock(ask: Ask) -> Denial | None:
    try:
        instant = operator.index(ask.now)
    except TypeError:
        return denial(Code.CLOCK_INVALID, now=ask.now)
    if instant <= 0 or instant >= 2**63 or ask.now is True:
        return denial(Code.CLOCK_INVALID, now=ask.now)
    if instant < ask.gate.last_ns:
        return denial(Code.CLOCK_BACKWARDS, now=iso(instant), last=iso(ask.gate.last_ns))
    ask.gate.last_ns = instant
    return None


def _state(ask: Ask) -> Denial | None:
    return ask.gate.controller.state_denial


def _saved(ask: Ask) -> Denial | None:
    why = ask.gate.controller.unsaved
    return None if why is None else denial(Code.RISK_UNSAVED, why=why)


def _memory(ask: Ask) -> Denial | None:
    limit = ask.gate.controller.limit
    if 0.0 < limit <= 1.0:
        return None
    return denial(Code.RISK_MEMORY, limit=limit, why=ask.gate.controller.memory_fault)


def _drawdown(ask: Ask) -> Denial | None:
    controller = ask.gate.controller
    value = controller.drawdown
    if not math.isfinite(value):
        return denial(Code.DRAWDOWN_UNKNOWN, drawdown=value)
    if ask.account is not None:  # the account may have been reported since the last mark
        value = max(value, (controller.peak - ask.account.equity) / controller.peak)
    if value > controller.limit:
        return denial(Code.DRAWDOWN_LIMIT, drawdown=value, limit=controller.limit)
    return None


def _account(ask: Ask) -> Denial | None:
    if ask.account is None:
        return denial(Code.ACCOUNT_MISSING)
    if not (math.isfinite(ask.account.equity) and ask.account.equity > 0.0):
        return denial(Code.ACCOUNT_NOT_FINITE, equity=ask.account.equity)
    known = operator.index(ask.account.known_at_ns)
    marked = ask.gate.controller.marked_ns  # the drawdown is as old as the last mark
    oldest, latest = (known, known) if marked is None else (min(known, marked), max(known, marked))
    if ask.now - oldest > ask.gate.equity_ns:
        return denial(Code.ACCOUNT_STALE, age_s=(ask.now - oldest) * 1e-9, limit_s=ask.gate.equity_ns * 1e-9)
    if latest - ask.now > ask.gate.skew_ns:
        return denial(Code.ACCOUNT_FUTURE, lead_s=(latest - ask.now) * 1e-9)
    return None


def _position(ask: Ask) -> Denial | None:
    if ask.account is None or not (math.isfinite(ask.account.position) and ask.account.position % 1 == 0):
        return denial(Code.ACCOUNT_POSITION, position=None if ask.account is None else ask.account.position)
    return None


def _event(ask: Ask) -> Denial | None:
    return ask.gate.calendar.blocked(ask.now)


def _market(ask: Ask) -> Denial | None:
    if ask.market is None:
        return denial(Code.MARKET_MISSING)
    if not (math.isfinite(ask.market.price) and ask.market.price > 0.0):
        return denial(Code.MARKET_NOT_FINITE, price=ask.market.price)
    age = ask.now - operator.index(ask.market.known_at_ns)
    if age > ask.gate.market_ns:
        return denial(Code.MARKET_STALE, age_s=age * 1e-9, limit_s=ask.gate.market_ns * 1e-9)
    if -age > ask.gate.skew_ns:
        return denial(Code.MARKET_FUTURE, lead_s=-age * 1e-9)
    return None


def _model(ask: Ask) -> Denial | None:
    if ask.market is not None and ask.market.prediction_finite is True:
        return None
    return denial(Code.MODEL_NOT_FINITE)


def _healthy(ask: Ask) -> Denial | None:
    health = ask.gate.journal.health()
    return None if health == "ok" else denial(Code.JOURNAL_UNHEALTHY, why=health)


def _fields(ask: Ask) -> Denial | None:
    if ask.order.symbol != ask.gate.instrument.symbol:
        return denial(Code.ORDER_INSTRUMENT, symbol=ask.order.symbol, configured=ask.gate.instrument.symbol)
    if type(ask.order.side) is not Side:
        return denial(Code.ORDER_SIDE, side=ask.order.side)
    quantity = ask.order.quantity
    if not (math.isfinite(quantity) and quantity > 0 and quantity % 1 == 0) or quantity is True:
        return denial(Code.ORDER_QUANTITY, quantity=quantity)
    return None


def _price(ask: Ask) -> Denial | None:
    price = ask.order.price
    if price is None:
        return None
    if not (math.isfinite(price) and price > 0.0):
        return denial(Code.ORDER_PRICE, price=price)
    ticks = price / ask.gate.instrument.tick_size
    if abs(ticks - round(ticks)) > _TICK_TOLERANCE:
        return denial(Code.ORDER_TICK, price=price, tick=ask.gate.instrument.tick_size)
    return None


def _reducing(ask: Ask) -> Denial | None:
    if ask.order.reduce_only is False or _reduces(ask.order, ask.account):
        return None
    return denial(
        Code.ORDER_NOT_REDUCING,
        side=ask.order.side.value,
        quantity=ask.order.quantity,
        position=None if ask.account is None else ask.account.position,
    )


def _identity(ask: Ask) -> Denial | None:
    name = ask.order.client_id
    if type(name) is not str or not name.strip():
        return denial(Code.ORDER_ID, client_id=name)
    if name in ask.gate.passed_ids:
        return denial(Code.ORDER_DUPLICATE, client_id=name)
    return None


def _reduces(order: Order, account: Any) -> bool:
    """True only when the position is known and the order brings it nearer to zero without crossing it."""
    try:
        position, quantity = account.position, order.quantity
        if not (math.isfinite(position) and 0 < quantity <= abs(position)):
            return False
        return order.side is (Side.SELL if position > 0 else Side.BUY)
    except (AttributeError, TypeError, OverflowError):
        return False


_BOTH = Scope.ENTRY | Scope.EXIT
RULES: tuple[Rule, ...] = (
    Rule("clock", Scope.ENTRY, (Code.CLOCK_INVALID, Code.CLOCK_BACKWARDS), _clock),
    Rule("state", Scope.ENTRY, (Code.RISK_DISARMED, Code.RISK_LATCHED), _state),
    Rule("saved", Scope.ENTRY, (Code.RISK_UNSAVED,), _saved),
    Rule("memory", Scope.ENTRY, (Code.RISK_MEMORY,), _memory),
    Rule("drawdown", Scope.ENTRY, (Code.DRAWDOWN_UNKNOWN, Code.DRAWDOWN_LIMIT), _drawdown),
    Rule(
        "account",
        Scope.ENTRY,
        (Code.ACCOUNT_MISSING, Code.ACCOUNT_NOT_FINITE, Code.ACCOUNT_STALE, Code.ACCOUNT_FUTURE),
        _account,
    ),
    Rule("position", _BOTH, (Code.ACCOUNT_POSITION,), _position),
    Rule(
        "event",
        Scope.ENTRY,
        (
            Code.EVENT_WINDOW,
            Code.CALENDAR_MISSING,
            Code.CALENDAR_UNREADABLE,
            Code.CALENDAR_MALFORMED,
            Code.CALENDAR_EMPTY,
            Code.CALENDAR_ENDED,
        ),
        _event,
    ),
    Rule(
        "market",
        Scope.ENTRY,
        (Code.MARKET_MISSING, Code.MARKET_NOT_FINITE, Code.MARKET_STALE, Code.MARKET_FUTURE),
        _market,
    ),
    Rule("model", Scope.ENTRY, (Code.MODEL_NOT_FINITE,), _model),
    Rule("journal", Scope.ENTRY, (Code.JOURNAL_UNHEALTHY,), _healthy),
    Rule("fields", _BOTH, (Code.ORDER_INSTRUMENT, Code.ORDER_SIDE, Code.ORDER_QUANTITY), _fields),
    Rule("price", _BOTH, (Code.ORDER_PRICE, Code.ORDER_TICK), _price),
    Rule("reducing", _BOTH, (Code.ORDER_NOT_REDUCING,), _reducing),
    Rule("identity", _BOTH, (Code.ORDER_ID, Code.ORDER_DUPLICATE), _identity),
)


def client_id(account: str, symbol: str, side: Side, decided_at_ns: int, leg: str) -> str:
    """The same decision gives the same id, so that a repeat after a crash or a time-out is recognised.

    Parameters
    ----------
    account, symbol, side
        Who trades what.
    decided_at_ns
        The bar the decision was made on, ns UTC.
    leg
        Which order of that decision: "entry", "stop", "exit", ...

    Returns
    -------
    str
        20 characters, what a CME ClOrdID (FIX tag 11) holds: "M" and 76 bits of SHA-256 in hex.
    """
    text = "\x1f".join((account, symbol, side.value, str(operator.index(decided_at_ns)), leg))
    return "M" + hashlib.sha256(text.encode()).hexdigest()[:19]
