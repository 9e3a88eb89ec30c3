"""The gate says no: each input removed, corrupted, delayed or not finite, one by one and in pairs."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_risk_support import CONFIG, MINUTE, ROOT, T0, Clock, Recorder, controller

from mia_fast import files
from mia_fast.config import Instrument
from mia_fast.errors import RiskError
from mia_fast.risk import (
    Account,
    Action,
    Code,
    Denial,
    Event,
    EventCalendar,
    Gate,
    Instance,
    Market,
    Order,
    Side,
    State,
    TradeWindowFilter,
    Verdict,
    WeeklySessions,
    client_id,
)
from mia_fast.risk.codes import Category
from mia_fast.risk.config import Closure, Contract
from mia_fast.risk.document import page
from mia_fast.risk.gate import RULES, Ask, Scope, _reduces

ES = Instrument(symbol="ES", tick_size=0.25, point_value=50.0)
SECOND = 1_000_000_000
NAN, INF = math.nan, math.inf


SHA = "5" * 64


class Scene:
    """Everything a check looks at, all of it in order; a fault spoils one part."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.journal = Recorder()
        self.share = 0.0
        self.controller = controller(root, self.journal, Clock(), losing_share=lambda: self.share)
        self.controller.update_equity(100_000.0, T0)
        self.controller.arm()
        self.calendar = EventCalendar.from_events([Event(T0 + 10_000 * MINUTE, "FOMC", 0.9)], CONFIG.events)
        self.sessions = WeeklySessions()
        self.closures = CONFIG.closures
        self.contract = CONFIG.contract
        self.config = CONFIG
        self.order = Order("id-1", "ES", Side.BUY, 1, 2_400.25, stop=2_395.0)
        self.market = Market(T0, 2_400.0, True, 40.0, SHA, True, False, {"cross": T0 - 18 * 60 * MINUTE})
        self.account = Account(T0, 100_000.0, 0, "A", True, ())
        self.instance = Instance(root)
        self.now = T0
        self.before = 0
        self.sent: list[int] = []
        self.passed: list[Order] = []

    def gate(self) -> Gate:
        windows = TradeWindowFilter(self.calendar, self.sessions, self.closures, self.contract)
        gate = Gate(
            self.controller, windows, ES, self.config, self.journal, self.instance, account="A", model_sha256=SHA
        )
        gate.last_ns = self.before
        gate.sent.extend(self.sent)
        for order in self.passed:
            gate._passed(order, None)
        return gate

    def check(self) -> Verdict:
        """The verdict, after what it says was held against all rules asked one by one."""
        gate = self.gate()
        verdict = gate.evaluate(self.order, self.market, self.account, self.now)
        if type(self.order) is Order and self.order.action is not Action.CANCEL:
            leaves = self.order.reduce_only is True and _reduces(gate, self.order, self.account)
            assert list(map(str, verdict.denials)) == self.one_by_one(gate, Scope.EXIT if leaves else Scope.ENTRY)
        return gate.check(self.order, self.market, self.account, self.now)

    def one_by_one(self, gate: Gate, scope: Scope) -> list[str]:
        """What every rule of the scope says, whether or not the pass in one go suspects it."""
        ask = Ask(gate, self.order, self.market, self.account, self.now)
        said = []
        for row in RULES:
            if scope in row.scope:
                try:
                    found = row.check(ask)
                except Exception as error:
                    values = {"rule": row.name, "error": f"{type(error).__name__}:{error}"}
                    found = Denial(Code.RISK_CHECK, tuple(values.items()))
                if found is not None:
                    said.append(str(found))
        return said


def put(**parts):
    """A fault that replaces whole parts of the scene."""

    def apply(scene):
        for name, value in parts.items():
            setattr(scene, name, value)

    return apply


def change(part, **fields):
    """A fault in fields of the order, market or account."""

    def apply(scene):
        current = getattr(scene, part)
        if current is not None:
            setattr(scene, part, replace(current, **fields))

    return apply


def both(*faults):
    def apply(scene):
        for fault in faults:
            fault(scene)

    return apply


def limit(**values):
    """A fault in the limits of the configuration."""

    def apply(scene):
        scene.config = scene.config.model_copy(update={"limits": scene.config.limits.model_copy(update=values)})

    return apply


class NoHours:
    def span(self, now_ns):
        return None


CLOSURE = Closure(
    start=dt.datetime(2020, 3, 16, 13, tzinfo=dt.UTC), end=dt.datetime(2020, 3, 16, 15, tzinfo=dt.UTC), reason="test"
)


def unusable(code):
    return lambda scene: setattr(scene, "calendar", EventCalendar.unusable(Denial(code), CONFIG.events))


def memory(value):
    def apply(scene):
        scene.share = value
        scene.controller.stop_trading(0.0)

    return apply


def unsaved(scene):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(files, "write_json", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "full")))
        scene.controller.update_equity(100_000.0, T0 + 1)
        with pytest.raises(RiskError, match="full"):
            scene.controller.checkpoint()


FAULTS = {
    "disarmed": (lambda s: s.controller.disarm(), Code.RISK_DISARMED),
    "latched by a drawdown": (lambda s: s.controller.stop_trading(0.06), Code.RISK_LATCHED),
    "latched by NaN": (lambda s: s.controller.stop_trading(NAN), Code.RISK_LATCHED),
    "latched by an equity": (lambda s: s.controller.update_equity(90_000.0, T0), Code.DRAWDOWN_LIMIT),
    "state file gone": (
        lambda s: ((s.root / "data" / "risk_state.json").unlink(), s.controller.update_equity(100_000.0, T0)),
        Code.RISK_LATCHED,
    ),
    "state not saved": (unsaved, Code.RISK_UNSAVED),
    "memory NaN": (memory(NAN), Code.RISK_MEMORY),
    "memory of text": (memory("x"), Code.RISK_MEMORY),
    "memory above 1": (memory(1.1), Code.RISK_MEMORY),
    "never marked": (
        lambda s: setattr(s, "controller", controller(s.root, s.journal)) or s.controller.arm(),
        Code.DRAWDOWN_UNKNOWN,
    ),
    "equity below the limit since the mark": (change("account", equity=94_999.0), Code.DRAWDOWN_LIMIT),
    "no account": (put(account=None), Code.ACCOUNT_MISSING),
    "equity NaN": (change("account", equity=NAN), Code.ACCOUNT_NOT_FINITE),
    "equity inf": (change("account", equity=INF), Code.ACCOUNT_NOT_FINITE),
    "equity None": (change("account", equity=None), Code.RISK_CHECK),
    "equity zero": (change("account", equity=0.0), Code.ACCOUNT_NOT_FINITE),
    "account stale": (change("account", known_at_ns=T0 - 91 * SECOND), Code.ACCOUNT_STALE),
    "account of the future": (change("account", known_at_ns=T0 + 2 * SECOND), Code.ACCOUNT_FUTURE),
    "account time NaN": (change("account", known_at_ns=NAN), Code.RISK_CHECK),
    "account time None": (change("account", known_at_ns=None), Code.RISK_CHECK),
    "position NaN": (change("account", position=NAN), Code.ACCOUNT_POSITION),
    "position inf": (change("account", position=-INF), Code.ACCOUNT_POSITION),
    "half a contract held": (change("account", position=0.5), Code.ACCOUNT_POSITION),
    "position None": (change("account", position=None), Code.RISK_CHECK),
    "event": (
        lambda s: setattr(
            s, "calendar", EventCalendar.from_events([Event(T0 + 29 * MINUTE, "FOMC", 0.8)], CONFIG.events)
        ),
        Code.EVENT_WINDOW,
    ),
    "calendar ended": (
        lambda s: setattr(s, "calendar", EventCalendar.from_events([Event(T0 - 1, "x", 0.1)], CONFIG.events)),
        Code.CALENDAR_ENDED,
    ),
    "calendar missing": (unusable(Code.CALENDAR_MISSING), Code.CALENDAR_MISSING),
    "calendar unreadable": (unusable(Code.CALENDAR_UNREADABLE), Code.CALENDAR_UNREADABLE),
    "calendar malformed": (unusable(Code.CALENDAR_MALFORMED), Code.CALENDAR_MALFORMED),
    "calendar empty": (unusable(Code.CALENDAR_EMPTY), Code.CALENDAR_EMPTY),
    "calendar None": (put(calendar=None), Code.RISK_CHECK),
    "outside trading hours": (put(now=T0 + 7 * 60 * MINUTE), Code.SESSION_CLOSED),
    "hours unknown": (put(sessions=NoHours()), Code.SESSION_UNKNOWN),
    "hours that fail": (put(sessions=None), Code.RISK_CHECK),
    "closure": (put(closures=(CLOSURE,)), Code.SESSION_CLOSURE),
    "expiry": (put(now=T0 + 4 * 1440 * MINUTE - 60 * MINUTE), Code.CONTRACT_ROLL),
    "expired": (
        put(contract=Contract(expiry=dt.date(2019, 12, 20), before_hours=1, after_hours=1)),
        Code.CONTRACT_EXPIRED,
    ),
    "halted": (change("market", halted=True), Code.MARKET_HALTED),
    "halted unknown": (change("market", halted=None), Code.MARKET_HALTED),
    "no cross": (change("market", streams={}), Code.STREAM_MISSING),
    "streams None": (change("market", streams=None), Code.STREAM_MISSING),
    "cross stale": (change("market", streams={"cross": T0 - 7 * 1440 * MINUTE}), Code.STREAM_STALE),
    "cross of the future": (change("market", streams={"cross": T0 + 2 * SECOND}), Code.STREAM_FUTURE),
    "cross time NaN": (change("market", streams={"cross": NAN}), Code.RISK_CHECK),
    "features not ready": (change("market", features_ready=False), Code.MODEL_FEATURES),
    "features unknown": (change("market", features_ready=None), Code.MODEL_FEATURES),
    "output too high": (change("market", prediction=151.0), Code.MODEL_RANGE),
    "output too low": (change("market", prediction=4.9), Code.MODEL_RANGE),
    "output NaN": (change("market", prediction=NAN), Code.MODEL_RANGE),
    "output None": (change("market", prediction=None), Code.MODEL_RANGE),
    "another model": (change("market", model_sha256="6" * 64), Code.MODEL_HASH),
    "no model": (change("market", model_sha256=None), Code.MODEL_HASH),
    "another account": (change("account", name="B"), Code.ACCOUNT_UNKNOWN),
    "account without name": (change("account", name=""), Code.ACCOUNT_UNKNOWN),
    "not reconciled": (change("account", reconciled=False), Code.ACCOUNT_UNRECONCILED),
    "reconciled unknown": (change("account", reconciled=None), Code.ACCOUNT_UNRECONCILED),
    "working unknown": (change("account", working=None), Code.ACCOUNT_WORKING),
    "working of junk": (change("account", working=(1,)), Code.ACCOUNT_WORKING),
    "lost the account": (lambda s: setattr(s, "other", Instance(s.root)), Code.RISK_INSTANCE),
    "no instance": (put(instance=None), Code.RISK_CHECK),
    "halted by hand": (lambda s: s.controller.halt("test"), Code.RISK_LATCHED),
    "daily loss": (lambda s: s.controller.update_equity(96_900.0, T0), Code.DAILY_LOSS),
    "daily loss since the mark": (change("account", equity=96_900.0), Code.DAILY_LOSS),
    "day unknown": (lambda s: setattr(s.controller, "day_open", NAN), Code.DAILY_UNKNOWN),
    "overtrading": (lambda s: setattr(s.controller, "score", 1.0), Code.RISK_OVERTRADING),
    "overtrading unknown": (lambda s: setattr(s.controller, "score", NAN), Code.RISK_OVERTRADING),
    "too large": (change("order", quantity=6), Code.LIMIT_QUANTITY),
    "too valuable": (limit(max_notional=120_000.0), Code.LIMIT_NOTIONAL),
    "position full": (change("account", position=5), Code.LIMIT_POSITION),
    "working fills the position": (
        change("account", working=(Order("w", "ES", Side.BUY, 5, 2_390.0),)),
        Code.LIMIT_POSITION,
    ),
    "in flight fills the position": (
        both(
            put(before=T0 - 6 * SECOND, passed=[Order("w", "ES", Side.BUY, 5, 2_390.0)]),
            change("account", known_at_ns=T0 - 7 * SECOND),
        ),
        Code.LIMIT_POSITION,
    ),
    "price outside the collar": (change("order", price=2_425.0), Code.LIMIT_COLLAR),
    "margin": (limit(margin_per_contract=100_001.0), Code.ACCOUNT_MARGIN),
    "no stop": (change("order", stop=None), Code.ORDER_STOP),
    "stop NaN": (change("order", stop=NAN), Code.ORDER_STOP),
    "stop above a buy": (change("order", stop=2_401.0), Code.ORDER_STOP),
    "stop off tick": (change("order", stop=2_395.1), Code.ORDER_STOP),
    "stop in words": (change("order", stop="below"), Code.RISK_CHECK),
    "too much at the stop": (change("order", stop=2_380.0), Code.LIMIT_TRADE_RISK),
    "too many messages": (put(sent=[T0 - SECOND] * 20), Code.LIMIT_RATE),
    "too many entries": (lambda s: setattr(s.controller, "entries", 60), Code.LIMIT_ENTRIES),
    "repeated content": (
        put(before=T0 - SECOND, passed=[Order("id-0", "ES", Side.BUY, 1, 2_400.25)]),
        Code.ORDER_REPEATED,
    ),
    "crosses a working order": (
        change("account", working=(Order("w", "ES", Side.SELL, 1, 2_400.25),)),
        Code.ORDER_SELF_CROSS,
    ),
    "crosses a working market order": (
        change("account", working=(Order("w", "ES", Side.SELL, 1),)),
        Code.ORDER_SELF_CROSS,
    ),
    "market orders not allowed": (both(limit(order_types=("limit",)), change("order", price=None)), Code.ORDER_TYPE),
    "action in words": (change("order", action="new"), Code.ORDER_ACTION),
    "action None": (change("order", action=None), Code.ORDER_ACTION),
    "no market": (put(market=None), Code.MARKET_MISSING),
    "price NaN": (change("market", price=NAN), Code.MARKET_NOT_FINITE),
    "price inf": (change("market", price=INF), Code.MARKET_NOT_FINITE),
    "price zero": (change("market", price=0.0), Code.MARKET_NOT_FINITE),
    "price None": (change("market", price=None), Code.RISK_CHECK),
    "bar stale": (change("market", known_at_ns=T0 - 91 * SECOND), Code.MARKET_STALE),
    "bar of the future": (change("market", known_at_ns=T0 + 2 * SECOND), Code.MARKET_FUTURE),
    "bar time NaN": (change("market", known_at_ns=NAN), Code.RISK_CHECK),
    "prediction not finite": (change("market", prediction_finite=False), Code.MODEL_NOT_FINITE),
    "prediction unknown": (change("market", prediction_finite=None), Code.MODEL_NOT_FINITE),
    "prediction NaN": (change("market", prediction_finite=NAN), Code.MODEL_NOT_FINITE),
    "journal unhealthy": (lambda s: setattr(s.journal, "state", "disk full"), Code.JOURNAL_UNHEALTHY),
    "journal raises": (lambda s: setattr(s.journal, "health", None), Code.RISK_CHECK),
    "clock None": (put(now=None), Code.CLOCK_INVALID),
    "clock NaN": (put(now=NAN), Code.CLOCK_INVALID),
    "clock a float": (put(now=float(T0)), Code.CLOCK_INVALID),
    "clock zero": (put(now=0), Code.CLOCK_INVALID),
    "clock beyond 64 bits": (put(now=2**63), Code.CLOCK_INVALID),
    "clock backwards": (put(before=T0 + 1), Code.CLOCK_BACKWARDS),
    "no order": (put(order=None), Code.ORDER_MISSING),
    "a dictionary for an order": (put(order={"side": "buy"}), Code.ORDER_MISSING),
    "other instrument": (change("order", symbol="NQ"), Code.ORDER_INSTRUMENT),
    "symbol None": (change("order", symbol=None), Code.ORDER_INSTRUMENT),
    "side in words": (change("order", side="buy"), Code.ORDER_SIDE),
    "side None": (change("order", side=None), Code.ORDER_SIDE),
    "quantity NaN": (change("order", quantity=NAN), Code.ORDER_QUANTITY),
    "quantity inf": (change("order", quantity=INF), Code.ORDER_QUANTITY),
    "quantity zero": (change("order", quantity=0), Code.ORDER_QUANTITY),
    "quantity negative": (change("order", quantity=-1), Code.ORDER_QUANTITY),
    "half a contract": (change("order", quantity=0.5), Code.ORDER_QUANTITY),
    "quantity True": (change("order", quantity=True), Code.ORDER_QUANTITY),
    "quantity None": (change("order", quantity=None), Code.RISK_CHECK),
    "limit NaN": (change("order", price=NAN), Code.ORDER_PRICE),
    "limit inf": (change("order", price=INF), Code.ORDER_PRICE),
    "limit zero": (change("order", price=0.0), Code.ORDER_PRICE),
    "limit off tick": (change("order", price=2_400.30), Code.ORDER_TICK),
    "limit in words": (change("order", price="market"), Code.RISK_CHECK),
    "reduce-only when flat": (change("order", reduce_only=True), Code.ORDER_NOT_REDUCING),
    "reduce-only not a Boolean": (change("order", reduce_only=None), Code.ORDER_NOT_REDUCING),
    "no id": (change("order", client_id=""), Code.ORDER_ID),
    "id None": (change("order", client_id=None), Code.ORDER_ID),
}


def test_with_everything_in_order_an_entry_passes(tmp_path):
    verdict = Scene(tmp_path).check()
    assert verdict
    assert verdict.allowed
    assert verdict.code is None
    assert str(verdict) == "ALLOW"


@pytest.mark.parametrize("name", FAULTS)
def test_each_single_fault_stops_an_entry_with_its_code(tmp_path, name):
    scene = Scene(tmp_path)
    fault, code = FAULTS[name]
    fault(scene)
    verdict = scene.check()
    assert not verdict
    assert code in [denial.code for denial in verdict.denials]
    for denial in verdict.denials:
        assert re.fullmatch(r"[A-Z]+_[A-Z_]+(: \w+=\S+( \w+=\S+)*)?", str(denial))
        assert denial.hint


EACH = 1 if os.environ.get("MIA_WHOLE") else 13
"""Which pairs are tried: all in the long round, every thirteenth in the short one."""


HEALS = {("never marked", "daily loss")}
"""The second fault is a first mark: it opens the day that the first one left unknown, and nothing is lost yet."""


def test_each_pair_of_faults_stops_an_entry(tmp_path):
    passed = set()
    for number, (one, two) in enumerate(itertools.combinations(FAULTS, 2)):
        if number % EACH:
            continue
        scene = Scene(tmp_path / str(number))
        FAULTS[one][0](scene)
        try:
            FAULTS[two][0](scene)
        except Exception:
            continue  # the first fault left nothing for the second to spoil
        if scene.check():
            passed.add((one, two))
    assert passed <= HEALS, passed - HEALS


def test_every_code_of_every_rule_is_given_by_some_fault():
    shown = {code for _, code in FAULTS.values()} | {Code.ORDER_DUPLICATE}
    declared = [code for rule in RULES for code in rule.codes]
    assert set(declared) - shown == set()
    assert len(declared) == len(set(declared))
    elsewhere = {Code.ORDER_MISSING, Code.RISK_CHECK, Code.RISK_STATE, Code.RISK_HALT, Code.EVENT_ASSERTED}
    assert set(Code) == set(declared) | elsewhere


DECISIVE = {
    "clock": FAULTS["clock backwards"][0],
    "state": FAULTS["disarmed"][0],
    "saved": FAULTS["state not saved"][0],
    "instance": FAULTS["lost the account"][0],
    "memory": FAULTS["memory NaN"][0],
    "drawdown": both(limit(max_daily_loss=0.9), change("account", equity=94_999.0)),
    "day": FAULTS["daily loss"][0],
    "busy": FAULTS["overtrading"][0],
    "account": FAULTS["account stale"][0],
    "known account": FAULTS["not reconciled"][0],
    "position": FAULTS["half a contract held"][0],
    "event": FAULTS["event"][0],
    "session": both(put(sessions=NoHours()), change("market", streams={"cross": T0})),
    "blackout": FAULTS["closure"][0],
    "market": FAULTS["bar stale"][0],
    "halted": FAULTS["halted"][0],
    "streams": FAULTS["cross stale"][0],
    "model": FAULTS["prediction not finite"][0],
    "output": FAULTS["output too high"][0],
    "which model": FAULTS["another model"][0],
    "features": FAULTS["features not ready"][0],
    "journal": FAULTS["journal unhealthy"][0],
    "action": FAULTS["action in words"][0],
    "fields": FAULTS["other instrument"][0],
    "type": both(limit(order_types=("limit",)), change("order", price=None)),
    "price": FAULTS["limit off tick"][0],
    "stop": FAULTS["no stop"][0],
    "quantity": both(limit(max_position=6), change("order", quantity=6, stop=2_399.0)),
    "notional": FAULTS["too valuable"][0],
    "resulting position": FAULTS["position full"][0],
    "collar": change("order", price=2_425.0, stop=2_420.0),
    "margin": FAULTS["margin"][0],
    "trade risk": FAULTS["too much at the stop"][0],
    "rate": FAULTS["too many messages"][0],
    "entries": FAULTS["too many entries"][0],
    "reducing": FAULTS["reduce-only when flat"][0],
    "self-cross": FAULTS["crosses a working order"][0],
    "repeated": FAULTS["repeated content"][0],
    "identity": FAULTS["no id"][0],
}
"""For each rule a scene that every other rule lets through."""


@pytest.mark.parametrize("rule_name", [row.name for row in RULES])
def test_each_rule_is_the_only_one_that_stops_some_entry(tmp_path, rule_name):
    scene = Scene(tmp_path)
    DECISIVE[rule_name](scene)
    (only,) = scene.check().denials
    assert only.code in next(row for row in RULES if row.name == rule_name).codes


# ---------------------------------------------------------------- exits and cancels

DESK_FAULTS = [
    name
    for name, (_, code) in FAULTS.items()
    if code.category not in (Category.ORDER,)
    and not name.startswith(("position NaN", "position inf", "position None", "half a contract held", "no account"))
    and name != "too large"  # more than is held is no exit
]


@pytest.mark.parametrize("name", DESK_FAULTS)
def test_an_exit_passes_whatever_is_wrong_with_the_desk(tmp_path, name):
    scene = Scene(tmp_path)
    scene.account = replace(scene.account, position=2)
    scene.order = Order("exit-1", "ES", Side.SELL, 2, 2_390.0, reduce_only=True)
    if name in ("quantity None", "limit in words"):
        return
    FAULTS[name][0](scene)
    assert scene.check().denials == ()
    scene.order = replace(scene.order, reduce_only=False)
    assert not scene.check()


@pytest.mark.parametrize("name", FAULTS)
def test_a_cancel_always_passes(tmp_path, name):
    scene = Scene(tmp_path)
    FAULTS[name][0](scene)
    if type(scene.order) is not Order:
        return
    scene.order = replace(scene.order, action=Action.CANCEL)
    assert scene.check().allowed


@pytest.mark.parametrize(
    ("position", "side", "quantity", "reduces"),
    [
        (2, Side.SELL, 1, True),
        (2, Side.SELL, 2, True),
        (2, Side.SELL, 3, False),
        (2, Side.BUY, 1, False),
        (-2, Side.BUY, 2, True),
        (-2, Side.SELL, 1, False),
        (0, Side.SELL, 1, False),
        (NAN, Side.SELL, 1, False),
        (None, Side.SELL, 1, False),
        (2, "sell", 1, False),
        (2, Side.SELL, NAN, False),
        (2, Side.SELL, -1, False),
    ],
)
def test_when_latched_reduce_only_passes_exactly_when_it_reduces(tmp_path, position, side, quantity, reduces):
    scene = Scene(tmp_path)
    scene.controller.stop_trading(0.06)
    scene.account = replace(scene.account, position=position)
    scene.order = Order("exit", "ES", side, quantity, reduce_only=True)
    assert scene.check().allowed is reduces


@pytest.mark.parametrize("name", ["limit off tick", "limit NaN", "other instrument", "no id", "half a contract"])
def test_a_malformed_exit_is_refused(tmp_path, name):
    scene = Scene(tmp_path)
    scene.account = replace(scene.account, position=2)
    scene.order = Order("exit", "ES", Side.SELL, 1, 2_400.0, reduce_only=True)
    FAULTS[name][0](scene)
    assert [denial.code for denial in scene.check().denials] == [FAULTS[name][1]]


# ---------------------------------------------------------------- identity, time, numbers


def test_an_id_passes_once_and_a_denied_one_is_not_used_up(tmp_path):
    scene = Scene(tmp_path)
    scene.config = CONFIG.model_copy(update={"messages": CONFIG.messages.model_copy(update={"repeat_seconds": 0.0})})
    gate = scene.gate()
    gate.passed_ids.add("old")
    stale = replace(scene.market, known_at_ns=T0 - 1000 * SECOND)
    assert not gate.check(scene.order, stale, scene.account, T0)
    assert gate.check(scene.order, scene.market, scene.account, T0)
    assert gate.check(scene.order, scene.market, scene.account, T0).code == "ORDER_DUPLICATE"
    assert gate.check(replace(scene.order, client_id="old"), scene.market, scene.account, T0).code == "ORDER_DUPLICATE"
    assert gate.check(replace(scene.order, client_id="new"), scene.market, scene.account, T0)


def test_client_ids_are_deterministic_distinct_and_short():
    parts = [("A", "B"), ("ES", "NQ"), tuple(Side), (T0, T0 + 1), ("entry", "exit")]
    ids = [client_id(*combination) for combination in itertools.product(*parts)]
    assert len(set(ids)) == 32
    assert ids == [client_id(*combination) for combination in itertools.product(*parts)]
    assert all(re.fullmatch(r"M[0-9a-f]{19}", name) for name in ids)
    assert client_id("A", "ES", Side.BUY, np.int64(T0), "x") == client_id("A", "ES", Side.BUY, T0, "x")


@pytest.mark.parametrize(("age", "passes"), [(90 * SECOND, True), (90 * SECOND + 1, False)])
@pytest.mark.parametrize("part", ["market", "account"])
def test_freshness_is_to_the_nanosecond(tmp_path, part, age, passes):
    scene = Scene(tmp_path)
    setattr(scene, part, replace(getattr(scene, part), known_at_ns=T0 - age))
    assert scene.check().allowed is passes


def test_a_mark_that_grew_old_blocks_although_the_account_looks_fresh(tmp_path):
    scene = Scene(tmp_path)
    scene.now = T0 + 91 * SECOND
    scene.market = replace(scene.market, known_at_ns=scene.now)
    scene.account = replace(scene.account, known_at_ns=scene.now)
    assert scene.check().code == "ACCOUNT_STALE"


@settings(max_examples=200, deadline=None)
@given(ticks=st.integers(1, 10**7), tick=st.sampled_from([0.25, 0.1, 0.01, 0.005, 1.0]), off=st.sampled_from([0, 0.5]))
def test_every_multiple_of_a_decimal_tick_is_on_tick(tmp_path_factory, ticks, tick, off):
    gate = Gate.__new__(Gate)
    gate.instrument = Instrument(symbol="ES", tick_size=tick, point_value=1.0)
    from mia_fast.risk.gate import _price

    order = Order("x", "ES", Side.BUY, 1, (ticks + off) * tick)
    found = _price(Ask(gate, order, None, None, T0))
    assert (found is None) is (off == 0)


junk = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=2), st.just([]),
    st.sampled_from([Side.BUY, T0, "ES", 1, 100_000.0]),
)  # fmt: skip


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return Scene(tmp_path_factory.mktemp("gate"))


@settings(max_examples=300, deadline=None)
@given(order=st.tuples(*[junk] * 8), market=st.tuples(*[junk] * 8), now=junk,
       account=st.tuples(*[junk] * 6))  # fmt: skip
def test_no_input_makes_the_gate_raise(scene, order, market, account, now):
    gate = scene.gate()
    verdict = gate.check(Order(*order), Market(*market), Account(*account), now)
    str(verdict)
    if verdict.allowed:
        assert now == T0
        assert type(order[2]) is Side


# ---------------------------------------------------------------- the journal, what is in flight, how often


def test_every_verdict_is_journalled_before_it_is_returned(tmp_path):
    scene = Scene(tmp_path)
    gate = scene.gate()
    assert gate.check(scene.order, scene.market, scene.account, T0)
    assert not gate.check(scene.order, scene.market, scene.account, T0 + 1)
    assert gate.check(replace(scene.order, action=Action.CANCEL), None, None, T0 + 2)
    gate.check(None, None, None, None)
    rows = scene.journal.of("verdicts")
    assert [row["verdict"] for row in rows] == ["allow", "deny", "allow", "deny"]
    assert [row["action"] for row in rows] == ["new", "new", "cancel", None]
    assert rows[0]["detail"] == "ALLOW"
    assert (rows[0]["reference"], rows[0]["stop"], rows[0]["equity"]) == (2_400.0, 2_395.0, 100_000.0)
    assert "ORDER_DUPLICATE" in rows[1]["detail"]
    assert rows[3]["code"] == "ORDER_MISSING"
    assert gate.evaluate(scene.order, scene.market, scene.account, T0 + 3).code == "ORDER_REPEATED"
    assert len(scene.journal.of("verdicts")) == 4, "a question alone leaves no row"


class Refusing(Recorder):
    """Says that it is well, and takes nothing."""

    def append(self, table, row, /):
        raise OSError(28, "no space left")


def test_an_entry_whose_verdict_is_not_taken_is_refused_and_an_exit_is_not(tmp_path):
    scene = Scene(tmp_path)
    scene.journal = Refusing()
    verdict = scene.check()
    assert verdict.code == "JOURNAL_UNHEALTHY"
    gate = scene.gate()
    assert not gate.check(scene.order, scene.market, scene.account, T0)
    assert scene.order.client_id not in gate.passed_ids
    leave = Order("exit", "ES", Side.SELL, 1, reduce_only=True)
    assert gate.check(leave, scene.market, replace(scene.account, position=1), T0)
    assert gate.check(replace(leave, action=Action.CANCEL), None, None, T0)


def quiet(scene):
    """Without the rule against repeats, which the others would hide behind."""
    scene.config = CONFIG.model_copy(update={"messages": CONFIG.messages.model_copy(update={"repeat_seconds": 0.0})})


def test_orders_in_flight_count_until_the_account_knows_of_them(tmp_path):
    scene = Scene(tmp_path)
    quiet(scene)
    gate = scene.gate()
    order = replace(scene.order, quantity=3, stop=2_399.0)
    assert gate.check(order, scene.market, scene.account, T0)
    second = replace(order, client_id="id-2")
    assert gate.evaluate(second, scene.market, scene.account, T0).code == "LIMIT_POSITION"
    seen = replace(scene.account, known_at_ns=T0 + SECOND)  # as young as may be and still not sure to know
    assert gate.evaluate(second, scene.market, seen, T0 + SECOND).code == "LIMIT_POSITION"
    reported = replace(seen, working=(order,))
    assert gate.evaluate(second, scene.market, reported, T0 + SECOND).code == "LIMIT_POSITION"
    later = replace(scene.account, known_at_ns=T0 + SECOND + 1)
    assert gate.evaluate(second, scene.market, later, T0 + SECOND + 1), "it was neither filled nor is it working"
    filled = replace(later, position=3)
    assert gate.evaluate(second, scene.market, filled, T0 + SECOND + 1).code == "LIMIT_POSITION"


def test_two_exits_do_not_turn_the_position(tmp_path):
    scene = Scene(tmp_path)
    gate = scene.gate()
    account = replace(scene.account, position=2)
    leave = Order("exit-1", "ES", Side.SELL, 2, reduce_only=True)
    assert gate.check(leave, scene.market, account, T0)
    again = replace(leave, client_id="exit-2")
    assert "ORDER_NOT_REDUCING" in str(gate.check(again, scene.market, account, T0 + SECOND))
    known = replace(account, known_at_ns=T0 + 2 * SECOND)
    assert gate.check(again, scene.market, known, T0 + 2 * SECOND), "the first is known to be gone, the position is not"


def test_the_rate_counts_exits_and_cancels_but_refuses_entries_only(tmp_path):
    scene = Scene(tmp_path)
    gate = scene.gate()
    cancel = replace(scene.order, action=Action.CANCEL)
    for k in range(20):
        assert gate.check(cancel, None, None, T0 + k)
    assert gate.check(scene.order, scene.market, scene.account, T0 + 20).code == "LIMIT_RATE"
    assert gate.check(cancel, None, None, T0 + 21)
    leave = Order("exit", "ES", Side.SELL, 1, reduce_only=True)
    assert gate.check(leave, scene.market, replace(scene.account, position=1), T0 + 22)
    after = T0 + 11 * SECOND
    fresh = replace(scene.account, known_at_ns=after)
    assert gate.check(scene.order, scene.market, fresh, after)


def test_a_restored_gate_goes_on_where_the_saved_one_stood(tmp_path):
    import json

    scene = Scene(tmp_path)
    gate = scene.gate()
    assert gate.check(scene.order, scene.market, scene.account, T0)
    scene.instance = Instance(tmp_path)
    again = scene.gate()
    again.restore(json.loads(json.dumps(gate.save())))
    assert again.save() == gate.save()
    other = replace(scene.order, client_id="other")
    for order, now in ((scene.order, T0), (other, T0), (other, T0 - 1)):
        assert again.evaluate(order, scene.market, scene.account, now) == gate_twin(gate, scene, order, now), (
            "the same answer, but for the account, which the restart took over"
        )


def gate_twin(gate, scene, order, now):
    gate.instance = scene.instance
    return gate.evaluate(order, scene.market, scene.account, now)


# ---------------------------------------------------------------- a model of a trading day


class Desk(RuleBasedStateMachine):
    """Orders, fills, prices, clocks, crashes and resets in any order, against an account kept in cents."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.scene = Scene(self.root)
        limit(max_quantity=2, max_notional=245_000.0, max_position=4, margin_per_contract=30_000.0)(self.scene)
        self.now, self.price = T0, 240_000  # cents of an index point
        self.cash, self.position, self.peak = 10_000_000, 0, 10_000_000  # cents of a dollar
        self.working: list[Order] = []
        self.count, self.latched = 0, False
        self.day_worst = 0
        self.saved = None
        self.connect()

    def connect(self) -> None:
        scene = self.scene
        scene.instance = Instance(self.root)
        self.gate = scene.gate()
        if self.saved is not None:
            self.gate.restore(self.saved)
        scene.controller = self.gate.controller

    def equity(self) -> int:
        return self.cash + 50 * self.position * self.price

    def account(self) -> Account:
        return Account(self.now, self.equity() / 100, self.position, "A", True, tuple(self.working))

    def mark(self) -> None:
        value = self.equity()
        self.peak = max(self.peak, value)
        controller = self.scene.controller
        stopped = controller.update_equity(value / 100, self.now)
        drawdown = (self.peak - value) / self.peak
        if value <= 0 or drawdown > 0.05:
            self.latched = True
        assert stopped is self.latched
        assert round(controller.equity * 100) == value
        assert round(controller.peak * 100) == self.peak
        self.day_worst = max(self.day_worst, 10_000_000 - value)

    @rule(ticks=st.integers(-60, 60), seconds=st.integers(0, 70))
    def bar(self, ticks: int, seconds: int) -> None:
        self.now += seconds * SECOND
        self.price = max(self.price + 25 * ticks, 100_000)
        self.mark()

    @rule(buy=st.booleans(), quantity=st.sampled_from([1, 1, 2, 3, 4]), away=st.sampled_from([0, -40, 40, -97, 97]),
          stop=st.sampled_from([8, 8, 20, 40, 80, 0, -4]), reduce=st.booleans(), market_order=st.booleans(),
          late=st.sampled_from([0, 0, 0, 0, 1, 91]))  # fmt: skip
    def order(self, buy, quantity, away, stop, reduce, market_order, late) -> None:
        self.count += 1
        side, sign = (Side.BUY, 1) if buy else (Side.SELL, -1)
        price = None if market_order else (self.price + 25 * away) / 100
        base = self.price if market_order else self.price + 25 * away
        order = Order(f"o-{self.count}", "ES", side, quantity, price, reduce, stop=(base - sign * 25 * stop) / 100)
        now = self.now + late * SECOND
        market = replace(self.scene.market, known_at_ns=self.now, price=self.price / 100)
        held = self.position
        verdict = self.gate.check(order, market, self.account(), now)
        equity = self.equity()
        self.now = max(self.now, now)
        self.mark()
        if not verdict:
            return
        if reduce:
            assert held * sign < 0
            assert quantity <= abs(held)
        else:
            assert not self.latched
            assert self.scene.controller.state is State.ARMED
            assert late < 91
            assert quantity <= 2
            assert quantity * base * 50 <= 245_000 * 100
            same = sum(o.quantity for o in self.working if o.side is side)
            assert sign * held + same + quantity <= 4
            assert (abs(held) + same + quantity) * 30_000 * 100 <= equity
            assert abs(base - self.price) * 100 <= self.price
            assert 0 < 25 * stop * quantity * 50 <= equity * 0.01 + 1e-6
            assert self.day_worst <= 300_000
            crossing = [o for o in self.working if o.side is not side]
            assert price is not None or not crossing
            assert all(o.price is not None and sign * (o.price - price) > 0 for o in crossing)
        self.working.append(order)

    @precondition(lambda self: self.working)
    @rule(which=st.integers(0, 5), slip=st.integers(-4, 4))
    def fill(self, which: int, slip: int) -> None:
        order = self.working.pop(which % len(self.working))
        sign = 1 if order.side is Side.BUY else -1
        quantity = int(order.quantity)
        if order.reduce_only:  # the venue keeps its word: no more than is open
            quantity = min(quantity, max(0, -sign * self.position))
        price = self.price if order.price is None else round(order.price * 100)
        price += 25 * slip
        self.cash -= 50 * sign * quantity * price + 225 * quantity
        self.position += sign * quantity
        self.now += 2 * SECOND
        self.mark()

    @precondition(lambda self: self.working)
    @rule()
    def cancel(self) -> None:
        order = self.working.pop()
        assert self.gate.check(replace(order, action=Action.CANCEL), None, None, self.now)

    @rule(cleanly=st.booleans())
    def crash(self, cleanly: bool) -> None:
        """The process ends and another one starts: risk from its file, the gate from its checkpoint."""
        if cleanly:
            self.scene.controller.checkpoint()
        self.saved = self.gate.save()
        self.scene.controller = controller(self.root, self.scene.journal, Clock(), losing_share=lambda: 0.0)
        assert (self.scene.controller.state is State.LATCHED) is self.latched
        assert self.scene.controller.state is not State.ARMED
        if not cleanly:
            peak = self.scene.controller.peak * 100  # what no checkpoint told it, it learns from here on
            self.peak = round(peak) if math.isfinite(peak) else -(10**18)
        self.connect()
        self.mark()
        if not self.latched:
            self.scene.controller.arm()

    @precondition(lambda self: self.latched)
    @rule()
    def reset(self) -> None:
        self.scene.controller.reset("reviewed")
        self.latched = False
        self.peak = self.equity()
        assert self.scene.controller.state is State.DISARMED
        if self.peak > 0:
            self.scene.controller.arm()

    @invariant()
    def within_the_limits(self) -> None:
        if not hasattr(self, "gate"):
            return
        assert (self.scene.controller.state is State.LATCHED) is self.latched
        assert abs(self.position) <= 4

    def teardown(self) -> None:
        if hasattr(self, "root"):
            shutil.rmtree(self.root)


TestDesk = Desk.TestCase
TestDesk.settings = settings(
    max_examples=1000 if os.environ.get("MIA_WHOLE") else 30, stateful_step_count=40, deadline=None
)


# ---------------------------------------------------------------- the page


def test_the_page_of_codes_is_current():
    assert (ROOT / "docs" / "risk-codes.md").read_text(encoding="utf-8") == page(), (
        "run `python -m mia_fast.risk.document > docs/risk-codes.md`"
    )


def test_codes_are_well_formed_and_no_two_are_one():
    for code in Code:
        assert code.category.name == code.name.split("_", maxsplit=1)[0]
        assert f"`{code.name}`" in page()
        assert code.meaning.endswith(".")
        assert code.hint.endswith(".")
    assert len({code.value for code in Code}) == len(Code.__members__) == len(list(Code))
    assert all(Scope.ENTRY in rule.scope for rule in RULES)
