"""The order gate: it may only say no, and it always can.

``Gate.check`` holds an order against the rules of :data:`RULES`, journals the verdict and returns it. A
rule is a row: what it is called, which orders it concerns, which codes it may give, and the function that
decides. A new limit is a new row, and a line in ``Gate._suspects``.

``Gate._suspects`` asks the same questions in one pass, and builds nothing: it names the rules that may
deny. Those decide and explain; the others have nothing to say (a test holds the two against each
other, for every fault and every pair). Where the pass itself fails, all rules are asked.
"""

from __future__ import annotations

import hashlib
import math
import operator
import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, Flag, auto
from typing import Any, Final

import numpy as np

from mia_fast.clock import iso
from mia_fast.config import Instrument
from mia_fast.risk.codes import Code, Denial, denial
from mia_fast.risk.config import RiskConfig
from mia_fast.risk.controller import Journal, RiskController
from mia_fast.risk.history import History
from mia_fast.risk.instance import Instance
from mia_fast.risk.orders import ALLOW, Account, Action, Market, Order, Side, Verdict
from mia_fast.risk.windows import TradeWindowFilter
from mia_kernels.limits import CHECKS, LIMITS, VALUES, failed_limits

_TICK_TOLERANCE: Final = 1e-6  # of a tick: decimal ticks such as 0.01 are not exact in binary
_END: Final = 2**63
_NS: Final = 1e9
_PACK: Final = struct.Struct(f"{len(VALUES)}d").pack_into


class Scope(Flag):
    """Which orders a rule concerns. No rule concerns cancels."""

    ENTRY = auto()
    EXIT = auto()


class Gate:
    """Pre-trade checks of one instrument and one account.

    Parameters
    ----------
    controller, windows, journal
        Shared with the engine that holds them.
    instrument
        Symbol, tick size and point value.
    config
        Every limit.
    instance
        The right to trade this account.
    account
        The account's name, as its reports give it.
    model_sha256
        Of the model whose outputs entries may rest on; None where no model was loaded: no entry passes.

    Attributes
    ----------
    unread
        Why it is not known what passed before the restart, see :meth:`recall`; None where it is. Blocks entries.
    """

    def __init__(
        self,
        controller: RiskController,
        windows: TradeWindowFilter,
        instrument: Instrument,
        config: RiskConfig,
        journal: Journal,
        instance: Instance,
        *,
        account: str,
        model_sha256: str | None,
    ) -> None:
        self.controller = controller
        self.windows = windows
        self.instrument = instrument
        self.config = config
        self.journal = journal
        self.instance = instance
        self.account = account
        self.model_sha256 = model_sha256
        self.passed_ids: set[str] = set()
        self.last_ns = 0
        self.unread: str | None = None
        fresh, messages, limits = config.freshness, config.messages, config.limits
        self.market_ns, self.equity_ns = round(fresh.market_seconds * _NS), round(fresh.equity_seconds * _NS)
        self.skew_ns = round(fresh.clock_skew_seconds * _NS)
        self.rate_ns, self.repeat_ns = round(messages.per_seconds * _NS), round(messages.repeat_seconds * _NS)
        self.flight_ns = round(messages.in_flight_seconds * _NS)
        self.sent: deque[int] = deque(maxlen=messages.max_orders)
        self.in_flight: list[tuple[int, Order]] = []
        self._streams = tuple(fresh.streams.items())
        self._deadlines: dict[str, tuple[int, int]] = dict.fromkeys(fresh.streams, (0, 0))
        self._contents: dict[tuple[Any, ...], int] = {}
        self._market_orders, self._limit_orders = ("market" in limits.order_types, "limit" in limits.order_types)
        self._max_entries, self._max_score = messages.max_entries_per_day, config.overtrading.max_score
        self._low, self._high = config.model.min_output, config.model.max_output
        self._symbol, self._tick = instrument.symbol, instrument.tick_size
        values = {
            "max_quantity": limits.max_quantity,
            "max_notional": limits.max_notional,
            "max_position": limits.max_position,
            "collar": limits.collar,
            "margin": limits.margin_per_contract,
            "max_daily_loss": limits.max_daily_loss,
            "max_trade_risk": limits.max_trade_risk,
            "stop_required": float(limits.stop_required),
            "point_value": instrument.point_value,
        }
        self._limits = np.array([values[name] for name in LIMITS])
        self._values = np.empty(len(VALUES))
        self._entry = tuple(rule for rule in RULES if Scope.ENTRY in rule.scope)
        # That an exit reduces is asked first: it is what makes it one.
        self._exit = tuple(rule for rule in RULES if Scope.EXIT in rule.scope and rule.name != "reducing")

    def check(self, order: Order, market: Market | None, account: Account | None, now_ns: int) -> Verdict:
        """:meth:`evaluate`, journalled before it is returned. Never raises for bad data.

        An order that passes uses up its client id: the same id is denied afterwards. It counts as
        open until the account's reports show what became of it. An entry whose verdict the journal does not
        take is refused; an exit and a cancel pass all the same.
        """
        verdict = self.evaluate(order, market, account, now_ns)
        why = self._journalled(verdict, order, market, account, now_ns)
        if type(order) is not Order:
            return verdict
        if why is not None and verdict.allowed and order.action is Action.NEW and order.reduce_only is not True:
            return Verdict((denial(Code.JOURNAL_UNHEALTHY, why=why),))
        try:
            instant = operator.index(now_ns)
        except TypeError:
            instant = 0
        if self.last_ns < instant < _END:
            self.last_ns = instant
        if verdict.allowed:
            self._passed(order, account)
        return verdict

    def evaluate(self, order: Order, market: Market | None, account: Account | None, now_ns: int) -> Verdict:
        """Allow, or deny with every reason that applies; changes and journals nothing. Never raises for bad data.

        ``now_ns`` is the engine's clock. Cancels always pass. A reduce-only order that truly reduces
        is held to the rules about the order itself; one that does not is held to those of an entry
        as well.
        """
        if type(order) is not Order:
            return Verdict((denial(Code.ORDER_MISSING, found=type(order).__name__),))
        if order.action is Action.CANCEL:
            return ALLOW
        bits: int | None = None
        if order.reduce_only is True and _reduces(self, order, account):
            rules = self._exit
        else:
            try:
                suspects, bits = self._suspects(order, market, account, now_ns)
            except Exception:  # the rules find out why, and say
                rules = self._entry
            else:
                if not suspects:
                    return ALLOW
                rules = tuple([RULES[k] for k in sorted(set(suspects))])
        ask = Ask(self, order, market, account, now_ns, bits)
        denials: tuple[Denial, ...] = ()
        for rule in rules:
            try:
                found = rule.check(ask)
            except Exception as error:  # a check that cannot run means no
                found = denial(Code.RISK_CHECK, rule=rule.name, error=f"{type(error).__name__}:{error}")
            if found is not None:
                denials = (*denials, found)
        return Verdict(denials) if denials else ALLOW

    def standing(self, now_ns: int) -> Denial | None:
        """Why no entry at all would pass at ``now_ns``: state, day, trade rate or the clock; None when one may."""
        controller = self.controller
        if controller.state_denial is not None or controller.day_denial is not None:
            return controller.state_denial or controller.day_denial
        windows = self.windows
        if not (windows.free if windows.start_ns <= now_ns < windows.end_ns else windows.move(now_ns)):
            return windows.blocked(now_ns)
        if controller.score > self._max_score:
            return denial(Code.RISK_OVERTRADING, score=controller.score, limit=self._max_score)
        if controller.entries >= self._max_entries:
            return denial(Code.LIMIT_ENTRIES, entries=controller.entries, limit=self._max_entries)
        return None

    def _suspects(self, order: Order, market: Any, account: Any, now: Any) -> tuple[list[int], int | None]:
        """Places in :data:`RULES` of those that may deny this entry, and what the kernel said; or an exception."""
        controller, windows, sent = self.controller, self.windows, self.sent
        side, price, stop, name = order.side, order.price, order.stop, order.client_id
        known, position, quantity, marked = market.known_at_ns, account.position, order.quantity, controller.marked_ns
        reported, skew, equity, reference = account.known_at_ns, -self.skew_ns, account.equity, market.price
        buy = side is Side.BUY
        found: list[int] = []
        if not (type(now) is int and 0 < now < _END and now >= self.last_ns):
            found.append(_AT["clock"])
        if controller.state_denial is not None:
            found.append(_AT["state"])
        if controller.unsaved is not None:
            found.append(_AT["saved"])
        if self.instance.held is not True:
            found.append(_AT["instance"])
        if not 0.0 < controller.limit <= 1.0:
            found.append(_AT["memory"])
        if controller.day_denial is not None or not controller.day_open > 0.0:
            found.append(_AT["day"])
        if not controller.score <= self._max_score:
            found.append(_AT["busy"])
        if not (
            0.0 < equity < math.inf
            and type(reported) is int
            and skew <= now - reported <= self.equity_ns
            and marked is not None
            and skew <= now - marked <= self.equity_ns
        ):
            found.append(_AT["account"])
        if not (account.name == self.account and account.reconciled is True and type(account.working) is tuple):
            found.append(_AT["known account"])
        if position % 1 != 0:  # so is NaN
            found.append(_AT["position"])
        if not (windows.free if windows.start_ns <= now < windows.end_ns else windows.move(now)):
            found += _WINDOWS
        if not (0.0 < reference < math.inf and type(known) is int and skew <= now - known <= self.market_ns):
            found.append(_AT["market"])
        if market.halted is not False:
            found.append(_AT["halted"])
        if market.prediction_finite is not True:
            found.append(_AT["model"])
        if not self._low <= market.prediction <= self._high:
            found.append(_AT["output"])
        if not market.model_sha256 == self.model_sha256 is not None:
            found.append(_AT["which model"])
        if market.features_ready is not True:
            found.append(_AT["features"])
        if self.unread is not None or self.journal.health() != "ok":
            found.append(_AT["journal"])
        if order.action is not Action.NEW:
            found.append(_AT["action"])
        if not (
            order.symbol == self._symbol
            and (buy or side is Side.SELL)
            and 0.0 < quantity < math.inf
            and quantity % 1 == 0
            and quantity is not True
        ):
            found.append(_AT["fields"])
        if price is None:
            if not self._market_orders:
                found.append(_AT["type"])
            price = reference
        else:
            if not self._limit_orders:
                found.append(_AT["type"])
            if not (0.0 < price < math.inf and _on_tick(price, self._tick)):
                found.append(_AT["price"])
        if stop is None:
            stop = math.nan
        elif not (0.0 < stop < math.inf and _on_tick(stop, self._tick)):
            found.append(_AT["stop"])
        streams = market.streams
        for stream, _ in self._streams:
            at = streams[stream]
            seen, deadline = self._deadlines[stream]
            if at != seen or type(at) is not int or not at + skew <= now <= deadline:
                found.append(_AT["streams"])  # of a new value the rule finds the deadline and keeps it
        if not (len(sent) < sent.maxlen or now - sent[0] >= self.rate_ns):  # type: ignore[operator]
            found.append(_AT["rate"])
        if not controller.entries < self._max_entries:
            found.append(_AT["entries"])
        if order.reduce_only is not False:
            found.append(_AT["reducing"])
        if self._contents and now - self._contents.get((side, quantity, order.price), -_END) < self.repeat_ns:
            found.append(_AT["repeated"])
        if not (type(name) is str and name not in self.passed_ids and name.strip()):
            found.append(_AT["identity"])
        buying = selling = 0.0
        if account.working or self.in_flight:
            for other in (*account.working, *self.unreported(account)) if self.in_flight else account.working:
                if type(other) is not Order:
                    found.append(_AT["known account"])
                    continue
                if other.side is Side.BUY:
                    buying += other.quantity
                else:
                    selling += other.quantity
                if other.side is not side and _meet(order.price, other.price, buy):
                    found.append(_AT["self-cross"])
        _PACK(
            self._values.data,
            0,
            quantity if buy else -quantity,
            price,
            stop,
            reference,
            position,
            buying,
            selling,
            equity,
            controller.peak,
            controller.drawdown,
            controller.limit,
            controller.day_open,
        )
        bits = failed_limits(self._values, self._limits)
        if bits:
            found += [_AT[rule] for k, rule in enumerate(_OF_CHECKS) if bits >> k & 1]
        return found, bits

    def open_orders(self, account: Account) -> tuple[float, float]:
        """Contracts in open buys and open sells: reported as working, and passed but not reported on yet."""
        buying = selling = 0.0
        for other in self.others(account):
            if other.side is Side.BUY:
                buying += other.quantity
            else:
                selling += other.quantity
        return buying, selling

    def others(self, account: Account) -> Iterable[Order]:
        """Orders that may still fill; what is no order among them is for a rule to refuse."""
        yield from (other for other in account.working or () if type(other) is Order)
        yield from self.unreported(account)

    def unreported(self, account: Account) -> list[Order]:
        """Orders that passed, and that the account's report is too old to know of and does not list."""
        known = {other.client_id for other in account.working or () if type(other) is Order}
        reported = _whole(account.known_at_ns) or 0
        return [
            other for at, other in self.in_flight if reported <= at + self.flight_ns and other.client_id not in known
        ]

    def fresh_until(self, stream: str, known_at_ns: int) -> int:
        """The last instant at which a value of the stream is fresh; computed once for each value."""
        seen, deadline = self._deadlines[stream]
        if seen != known_at_ns:
            deadline = self.windows.deadline(known_at_ns, self.config.freshness.streams[stream])
            self._deadlines[stream] = (known_at_ns, deadline)
        return deadline

    def failed(self, order: Order, market: Market, account: Account) -> int:
        """The bits of :data:`mia_kernels.limits.CHECKS` that the order fails."""
        buying, selling = self.open_orders(account)
        _PACK(
            self._values.data,
            0,
            order.quantity if order.side is Side.BUY else -order.quantity,
            market.price if order.price is None else order.price,
            math.nan if order.stop is None else order.stop,
            market.price,
            account.position,
            buying,
            selling,
            account.equity,
            self.controller.peak,
            self.controller.drawdown,
            self.controller.limit,
            self.controller.day_open,
        )
        return int(failed_limits(self._values, self._limits))

    def repeated_at(self, order: Order) -> int | None:
        """When an order of the same content passed last, ns UTC."""
        return self._contents.get((order.side, order.quantity, order.price))

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over what :meth:`save` gave, after a restart."""
        self.passed_ids.update(saved["passed_ids"])
        self.last_ns = int(saved["last_ns"])
        self.sent.extend(saved["sent"])
        self._contents.update({(Side(side), size, price): at for side, size, price, at in saved["contents"]})
        self.in_flight = [
            (at, Order(name, symbol, Side(side), size, price, reduce))
            for at, name, symbol, side, size, price, reduce in saved["in_flight"]
        ]

    def recall(self, history: History) -> None:
        """Take over what the journal says passed before a restart; until then no entry passes.

        What the present configuration does not count any more (a repeat too long ago) is left out.
        """
        self.passed_ids.update(history.ids)
        self.last_ns = max(self.last_ns, history.last_ns)
        latest = 0
        self.sent.clear()
        told = {row[2] for row in history.passed}
        self.in_flight = [(at, order) for at, order in self.in_flight if order.client_id not in told]
        for instant, action, name, symbol, side, size, price, reduce, stop in history.passed:
            latest = at = max(latest, instant)  # an exit passes although the clock went backwards
            self.sent.append(at)
            if action != Action.NEW.value:
                continue
            order = Order(name, symbol, Side(side), size, price, reduce, stop=stop)
            self.in_flight.append((at, order))
            if self.repeat_ns and self.last_ns - at < self.repeat_ns:
                self._contents[order.side, order.quantity, order.price] = at
        self.controller.recall_entries(history.entries)
        self.unread = None

    def save(self) -> dict[str, Any]:
        """What a restart must know, as JSON holds it."""
        return {
            "passed_ids": sorted(self.passed_ids),
            "last_ns": self.last_ns,
            "sent": list(self.sent),
            "contents": [[side.value, size, price, at] for (side, size, price), at in self._contents.items()],
            "in_flight": [
                [at, o.client_id, o.symbol, o.side.value, o.quantity, o.price, o.reduce_only]
                for at, o in self.in_flight
            ],
        }

    def _passed(self, order: Order, account: Account | None) -> None:
        """Remember what was let through."""
        now = self.last_ns
        self.sent.append(now)
        if order.action is Action.CANCEL:
            return
        self.passed_ids.add(order.client_id)
        self._contents = {what: at for what, at in self._contents.items() if now - at < self.repeat_ns}
        if self.repeat_ns:
            self._contents[order.side, order.quantity, order.price] = now
        reported = _whole(getattr(account, "known_at_ns", None)) or 0
        self.in_flight = [(at, other) for at, other in self.in_flight if reported <= at + self.flight_ns]
        self.in_flight.append((now, order))
        if not order.reduce_only:
            self.controller.count_entry()

    def _journalled(self, verdict: Verdict, order: Any, market: Any, account: Any, now: Any) -> str | None:
        """One row for each question; returns why the journal did not take it."""
        instant = _whole(now)
        row = {
            "timestamp": instant if instant is not None else self.last_ns,
            "client_id": _word(order, "client_id"),
            "symbol": _word(order, "symbol"),
            "action": _word(order, "action"),
            "side": _word(order, "side"),
            "quantity": _number(order, "quantity"),
            "price": _number(order, "price"),
            "stop": _number(order, "stop"),
            "reduce_only": getattr(order, "reduce_only", None) is True,
            "verdict": "allow" if verdict.allowed else "deny",
            "code": verdict.code,
            "detail": str(verdict),
            "reference": _number(market, "price"),
            "market_known_at": _whole(getattr(market, "known_at_ns", None)),
            "prediction": _number(market, "prediction"),
            "equity": _number(account, "equity"),
            "position": _number(account, "position"),
            "account": _word(account, "name"),
            "drawdown": _finite(self.controller.drawdown),
            "drawdown_limit": _finite(self.controller.limit),
        }
        content = "\x1f".join(map(str, row.values()))
        row["event_id"] = "verdict-" + hashlib.sha256(content.encode(errors="replace")).hexdigest()[:20]
        try:
            self.journal.append("verdicts", row)
        except Exception as error:  # whatever its fault, the caller must hear
            return getattr(error, "what", None) or f"{type(error).__name__}: {error}"
        return None


@dataclass(slots=True)
class Ask:
    """One question to the gate. Nothing in it is trusted, whatever its type says."""

    gate: Gate
    order: Order
    market: Market | None
    account: Account | None
    now: int
    bits: int | None = None

    def fails(self, check: str) -> bool:
        """Does the order fail this one of :data:`mia_kernels.limits.CHECKS`? Market and account must be there."""
        if self.bits is None:
            self.bits = 0  # where the next line raises, the rule that asked denies; the others need not repeat it
            assert self.market is not None
            assert self.account is not None
            self.bits = self.gate.failed(self.order, self.market, self.account)
        return bool(self.bits >> CHECKS.index(check) & 1)


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


def _free(ask: Ask) -> bool:
    """The clock alone forbids nothing, by the stretch that was looked at last."""
    windows = ask.gate.windows
    return windows.free and windows.start_ns <= ask.now < windows.end_ns


def _event(ask: Ask) -> Denial | None:
    return None if _free(ask) else ask.gate.windows.calendar.blocked(ask.now)


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
    health = ask.gate.unread or ask.gate.journal.health()
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
    if ask.order.reduce_only is False or _reduces(ask.gate, ask.order, ask.account):
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


def _reduces(gate: Gate, order: Order, account: Any) -> bool:
    """True only when the position is known and the order brings it nearer to zero without crossing it.

    Other reduce-only orders that may still fill count, so that two exits do not turn the position.
    """
    try:
        position, quantity = account.position, order.quantity
        if not (math.isfinite(position) and 0 < quantity <= abs(position)):
            return False
        if order.side is not (Side.SELL if position > 0 else Side.BUY):
            return False
        ahead = sum(
            other.quantity
            for other in gate.others(account)
            if other.reduce_only and other.side is order.side and other.client_id != order.client_id
        )
        return bool(ahead + quantity <= abs(position))
    except (AttributeError, TypeError, OverflowError):
        return False


def _day(ask: Ask) -> Denial | None:
    controller = ask.gate.controller
    if controller.day_denial is not None:
        return controller.day_denial
    if not controller.day_open > 0.0:
        return denial(Code.DAILY_UNKNOWN, day_open=controller.day_open)
    if ask.account is not None and ask.market is not None and ask.fails("daily_loss"):
        return denial(Code.DAILY_LOSS, equity=ask.account.equity, day_open=controller.day_open)
    return None


def _instance(ask: Ask) -> Denial | None:
    return None if ask.gate.instance.held is True else denial(Code.RISK_INSTANCE, lock=ask.gate.instance.path)


def _busy(ask: Ask) -> Denial | None:
    score, limit = ask.gate.controller.score, ask.gate.config.overtrading.max_score
    return None if score <= limit else denial(Code.RISK_OVERTRADING, score=score, limit=limit)


def _known_account(ask: Ask) -> Denial | None:
    if ask.account is None or ask.account.name != ask.gate.account:
        return denial(Code.ACCOUNT_UNKNOWN, account=getattr(ask.account, "name", None), expected=ask.gate.account)
    if ask.account.reconciled is not True:
        return denial(Code.ACCOUNT_UNRECONCILED)
    if type(ask.account.working) is not tuple or any(type(other) is not Order for other in ask.account.working):
        return denial(Code.ACCOUNT_WORKING, working=ask.account.working)
    return None


def _session(ask: Ask) -> Denial | None:
    return None if _free(ask) else ask.gate.windows.closed(ask.now)


def _blackout(ask: Ask) -> Denial | None:
    return None if _free(ask) else ask.gate.windows.blackout(ask.now)


def _halted(ask: Ask) -> Denial | None:
    if ask.market is not None and ask.market.halted is False:
        return None
    return denial(Code.MARKET_HALTED, halted=getattr(ask.market, "halted", None))


def _streams(ask: Ask) -> Denial | None:
    streams = None if ask.market is None else ask.market.streams
    for name in ask.gate.config.freshness.streams:
        if streams is None or name not in streams:
            return denial(Code.STREAM_MISSING, stream=name)
        known = operator.index(streams[name])
        if known - ask.now > ask.gate.skew_ns:
            return denial(Code.STREAM_FUTURE, stream=name, lead_s=(known - ask.now) * 1e-9)
        deadline = ask.gate.fresh_until(name, known)
        if ask.now > deadline:
            return denial(Code.STREAM_STALE, stream=name, known=iso(known), fresh_until=iso(deadline))
    return None


def _output(ask: Ask) -> Denial | None:
    limits = ask.gate.config.model
    value = None if ask.market is None else ask.market.prediction
    if value is None or not limits.min_output <= value <= limits.max_output:
        return denial(Code.MODEL_RANGE, output=value, low=limits.min_output, high=limits.max_output)
    return None


def _which_model(ask: Ask) -> Denial | None:
    found, expected = getattr(ask.market, "model_sha256", None), ask.gate.model_sha256
    return None if found == expected is not None else denial(Code.MODEL_HASH, found=found, expected=expected)


def _features(ask: Ask) -> Denial | None:
    if ask.market is not None and ask.market.features_ready is True:
        return None
    return denial(Code.MODEL_FEATURES)


def _limit(check: str, code: Code) -> Callable[[Ask], Denial | None]:
    """A rule that the kernel decides; without market or account others have denied already."""

    def rule(ask: Ask) -> Denial | None:
        if ask.market is None or ask.account is None or not ask.fails(check):
            return None
        order, account = ask.order, ask.account
        return denial(
            code,
            quantity=order.quantity,
            price=order.price,
            stop=order.stop,
            reference=ask.market.price,
            position=account.position,
            equity=account.equity,
        )

    return rule


def _kind(ask: Ask) -> Denial | None:
    allowed = ask.gate.config.limits.order_types
    kind = "market" if ask.order.price is None else "limit"
    return None if kind in allowed else denial(Code.ORDER_TYPE, type=kind, allowed="+".join(allowed))


def _action(ask: Ask) -> Denial | None:
    return None if ask.order.action is Action.NEW else denial(Code.ORDER_ACTION, action=ask.order.action)


def _stop(ask: Ask) -> Denial | None:
    stop = ask.order.stop
    if stop is not None and not (math.isfinite(stop) and stop > 0.0 and _on_tick(stop, ask.gate.instrument.tick_size)):
        return denial(Code.ORDER_STOP, stop=stop)
    if ask.market is not None and ask.account is not None and ask.fails("stop"):
        return denial(Code.ORDER_STOP, stop=stop, price=ask.order.price, reference=ask.market.price)
    return None


def _rate(ask: Ask) -> Denial | None:
    sent, messages = ask.gate.sent, ask.gate.config.messages
    if len(sent) < messages.max_orders or ask.now - sent[0] >= ask.gate.rate_ns:
        return None
    return denial(Code.LIMIT_RATE, orders=len(sent), within_s=(ask.now - sent[0]) * 1e-9)


def _entries(ask: Ask) -> Denial | None:
    entries, limit = ask.gate.controller.entries, ask.gate.config.messages.max_entries_per_day
    return None if entries < limit else denial(Code.LIMIT_ENTRIES, entries=entries, limit=limit)


def _repeated(ask: Ask) -> Denial | None:
    at = ask.gate.repeated_at(ask.order)
    if at is None or ask.now - at >= ask.gate.repeat_ns:
        return None
    return denial(Code.ORDER_REPEATED, side=ask.order.side.value, quantity=ask.order.quantity, passed=iso(at))


def _cross(ask: Ask) -> Denial | None:
    if ask.account is None:
        return None
    other = _crossed(ask.gate, ask.order, ask.account)
    return None if other is None else denial(Code.ORDER_SELF_CROSS, working=other.client_id, price=other.price)


def _crossed(gate: Gate, order: Order, account: Account) -> Order | None:
    """An open order of the account on the other side that this one could trade with."""
    buy = order.side is Side.BUY
    for other in gate.others(account):
        if other.side is not order.side and _meet(order.price, other.price, buy):
            return other
    return None


def _meet(price: float | None, other: float | None, buy: bool) -> bool:
    """Could an order at ``price`` trade with one at ``other``? None is a market order."""
    if price is None or other is None:
        return True
    return price >= other if buy else price <= other


def _on_tick(price: float, tick: float) -> bool:
    ticks = price / tick
    return abs(ticks - round(ticks)) <= _TICK_TOLERANCE


def _whole(value: Any) -> int | None:
    """An instant that the journal can hold."""
    try:
        found = operator.index(value)
    except TypeError:
        return None
    return found if 0 <= found < 9_000_000_000_000_000_000 else None


def _number(source: Any, name: str) -> float | None:
    value = getattr(source, name, None)
    if not isinstance(value, int | float | np.integer | np.floating):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _word(source: Any, name: str) -> str | None:
    value = getattr(source, name, None)
    if isinstance(value, Enum):
        return str(value.value)
    return None if value is None else str(value)[:200]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


_BOTH = Scope.ENTRY | Scope.EXIT
RULES: tuple[Rule, ...] = (
    Rule("clock", Scope.ENTRY, (Code.CLOCK_INVALID, Code.CLOCK_BACKWARDS), _clock),
    Rule("state", Scope.ENTRY, (Code.RISK_DISARMED, Code.RISK_LATCHED), _state),
    Rule("saved", Scope.ENTRY, (Code.RISK_UNSAVED,), _saved),
    Rule("instance", Scope.ENTRY, (Code.RISK_INSTANCE,), _instance),
    Rule("memory", Scope.ENTRY, (Code.RISK_MEMORY,), _memory),
    Rule("drawdown", Scope.ENTRY, (Code.DRAWDOWN_UNKNOWN, Code.DRAWDOWN_LIMIT), _drawdown),
    Rule("day", Scope.ENTRY, (Code.DAILY_LOSS, Code.DAILY_UNKNOWN), _day),
    Rule("busy", Scope.ENTRY, (Code.RISK_OVERTRADING,), _busy),
    Rule(
        "account",
        Scope.ENTRY,
        (Code.ACCOUNT_MISSING, Code.ACCOUNT_NOT_FINITE, Code.ACCOUNT_STALE, Code.ACCOUNT_FUTURE),
        _account,
    ),
    Rule(
        "known account",
        Scope.ENTRY,
        (Code.ACCOUNT_UNKNOWN, Code.ACCOUNT_UNRECONCILED, Code.ACCOUNT_WORKING),
        _known_account,
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
    Rule("session", Scope.ENTRY, (Code.SESSION_CLOSED, Code.SESSION_UNKNOWN), _session),
    Rule("blackout", Scope.ENTRY, (Code.SESSION_CLOSURE, Code.CONTRACT_ROLL, Code.CONTRACT_EXPIRED), _blackout),
    Rule(
        "market",
        Scope.ENTRY,
        (Code.MARKET_MISSING, Code.MARKET_NOT_FINITE, Code.MARKET_STALE, Code.MARKET_FUTURE),
        _market,
    ),
    Rule("halted", Scope.ENTRY, (Code.MARKET_HALTED,), _halted),
    Rule("streams", Scope.ENTRY, (Code.STREAM_MISSING, Code.STREAM_FUTURE, Code.STREAM_STALE), _streams),
    Rule("model", Scope.ENTRY, (Code.MODEL_NOT_FINITE,), _model),
    Rule("output", Scope.ENTRY, (Code.MODEL_RANGE,), _output),
    Rule("which model", Scope.ENTRY, (Code.MODEL_HASH,), _which_model),
    Rule("features", Scope.ENTRY, (Code.MODEL_FEATURES,), _features),
    Rule("journal", Scope.ENTRY, (Code.JOURNAL_UNHEALTHY,), _healthy),
    Rule("action", _BOTH, (Code.ORDER_ACTION,), _action),
    Rule("fields", _BOTH, (Code.ORDER_INSTRUMENT, Code.ORDER_SIDE, Code.ORDER_QUANTITY), _fields),
    Rule("type", Scope.ENTRY, (Code.ORDER_TYPE,), _kind),
    Rule("price", _BOTH, (Code.ORDER_PRICE, Code.ORDER_TICK), _price),
    Rule("stop", Scope.ENTRY, (Code.ORDER_STOP,), _stop),
    Rule("quantity", Scope.ENTRY, (Code.LIMIT_QUANTITY,), _limit("quantity", Code.LIMIT_QUANTITY)),
    Rule("notional", Scope.ENTRY, (Code.LIMIT_NOTIONAL,), _limit("notional", Code.LIMIT_NOTIONAL)),
    Rule("resulting position", Scope.ENTRY, (Code.LIMIT_POSITION,), _limit("position", Code.LIMIT_POSITION)),
    Rule("collar", Scope.ENTRY, (Code.LIMIT_COLLAR,), _limit("collar", Code.LIMIT_COLLAR)),
    Rule("margin", Scope.ENTRY, (Code.ACCOUNT_MARGIN,), _limit("margin", Code.ACCOUNT_MARGIN)),
    Rule("trade risk", Scope.ENTRY, (Code.LIMIT_TRADE_RISK,), _limit("trade_risk", Code.LIMIT_TRADE_RISK)),
    Rule("rate", Scope.ENTRY, (Code.LIMIT_RATE,), _rate),
    Rule("entries", Scope.ENTRY, (Code.LIMIT_ENTRIES,), _entries),
    Rule("reducing", _BOTH, (Code.ORDER_NOT_REDUCING,), _reducing),
    Rule("self-cross", Scope.ENTRY, (Code.ORDER_SELF_CROSS,), _cross),
    Rule("repeated", Scope.ENTRY, (Code.ORDER_REPEATED,), _repeated),
    Rule("identity", _BOTH, (Code.ORDER_ID, Code.ORDER_DUPLICATE), _identity),
)

_AT: Final = {rule.name: place for place, rule in enumerate(RULES)}
_WINDOWS: Final = [_AT[name] for name in ("event", "session", "blackout")]
_OF_CHECKS: Final = (  # the rule that answers for each of CHECKS
    "quantity",
    "notional",
    "resulting position",
    "collar",
    "margin",
    "drawdown",
    "day",
    "stop",
    "trade risk",
)
