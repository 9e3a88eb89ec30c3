"""Risk: the drawdown latch, macro event windows and the order gate. It may only say no.

    desk = Desk(workspace, journal=journal, clock=engine_clock)   # or desk(workspace) for the shared one
    gate = desk.gate(account="U1", model_sha256=sha)
    desk.controller.arm()                                         # disarm() takes it back; halt() stops all processes
    desk.controller.update_equity(equity, now_ns)                 # each bar: True stops trading
    verdict = gate.check(order, market, account, now_ns)          # before each order

``docs/risk-codes.md`` lists every denial code.
"""

from __future__ import annotations

from mia_fast.risk.calendar import Event, EventCalendar, load_calendar
from mia_fast.risk.codes import Category, Code, Denial
from mia_fast.risk.config import RiskConfig, risk
from mia_fast.risk.controller import Cleared, RiskController, State
from mia_fast.risk.desk import Desk, attach, block_trade, desk, detach, stop_trading
from mia_fast.risk.gate import Gate, Rule
from mia_fast.risk.instance import Instance
from mia_fast.risk.orders import Account, Action, Market, Order, Side, Verdict, client_id
from mia_fast.risk.windows import DatedSessions, Sessions, Span, TradeWindowFilter, WeeklySessions, trading_hours

__all__ = [
    "Account",
    "Action",
    "Category",
    "Cleared",
    "Code",
    "DatedSessions",
    "Denial",
    "Desk",
    "Event",
    "EventCalendar",
    "Gate",
    "Instance",
    "Market",
    "Order",
    "RiskConfig",
    "RiskController",
    "Rule",
    "Sessions",
    "Side",
    "Span",
    "State",
    "TradeWindowFilter",
    "Verdict",
    "WeeklySessions",
    "attach",
    "block_trade",
    "client_id",
    "desk",
    "detach",
    "load_calendar",
    "risk",
    "stop_trading",
    "trading_hours",
]
