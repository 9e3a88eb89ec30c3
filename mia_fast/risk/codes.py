"""Every reason to refuse an order, with its stable code.

A denial reads ``CATEGORY_CONDITION: key=value``. Codes are never renamed or reused: logs and other
programs match on them. ``docs/risk-codes.md`` is generated from this enumeration
(``python -m mia_fast.risk.document > docs/risk-codes.md``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Category(Enum):
    """What a denial is about; the first word of its code."""

    RISK = "the state of the risk controller"
    DRAWDOWN = "equity against its peak"
    DAILY = "equity against the open of the trade date"
    SESSION = "trading hours"
    CONTRACT = "the traded contract"
    EVENT = "macro events"
    CALENDAR = "the macro calendar itself"
    CLOCK = "the engine's clock"
    MARKET = "market data"
    STREAM = "further input streams"
    ACCOUNT = "the account"
    MODEL = "the prediction"
    LIMIT = "how much and how often"
    ORDER = "the order itself"
    JOURNAL = "the audit trail"


class Code(Enum):
    """A stable denial code: its name, what it means, what to do."""

    RISK_DISARMED = (
        "The gate was not armed since the program started.",
        "Arm it once positions and orders are reconciled; it never arms by itself.",
    )
    RISK_LATCHED = (
        "A breach stopped trading and stays in force across restarts.",
        'Find the cause, then run `mia-fast risk reset --reason "..."` and arm again.',
    )
    RISK_STATE = (
        "The saved risk state is gone or damaged, and with it perhaps a latch: trading is latched for this cause.",
        "Look into data/risk_state.damaged_*.json and the penalty log, then reset with a reason.",
    )
    RISK_UNSAVED = (
        "The risk state could not be written, so a restart would not know it.",
        "Free the disk or restore the permissions of data/; writing is tried again at the next mark or call.",
    )
    RISK_MEMORY = (
        "The market memory that may tighten the drawdown limit cannot answer, so the limit is unknown.",
        "Restore data/market_memory.db or its lock; entries return when it answers.",
    )
    RISK_HALT = (
        "A person stopped trading with `mia-fast risk halt`.",
        'Stays across restarts; `mia-fast risk reset --reason "..."` clears it.',
    )
    RISK_INSTANCE = (
        "Another gate, in this process or another one, took over the account.",
        "One engine per account: end the other one, then start again.",
    )
    RISK_OVERTRADING = (
        "The present trade rate is far above the desk's own history.",
        "See `overtrade_risk_score` below; entries return when the rate falls, or change `overtrading.max_score`.",
    )
    RISK_CHECK = (
        "A rule could not be evaluated; a check that cannot run means no.",
        "The text names the rule and the fault; usually a field of the wrong type.",
    )
    DRAWDOWN_LIMIT = (
        "The drawdown from peak equity exceeds the limit.",
        "This latches: reduce, review, then reset with a reason.",
    )
    DRAWDOWN_UNKNOWN = (
        "The drawdown is not a finite number or the account was never marked.",
        "Mark the account with a finite equity before the first order.",
    )
    DAILY_LOSS = (
        "The loss since the open of the trade date exceeded its limit at some mark.",
        "Entries return with the next trade date; a restart or a reset does not shorten it.",
    )
    DAILY_UNKNOWN = (
        "The equity at the open of the trade date is not known.",
        "Mark the account with a finite equity before the first order.",
    )
    SESSION_CLOSED = (
        "The market is outside its trading hours.",
        "Wait for the session to open.",
    )
    SESSION_CLOSURE = (
        "A closure of config/risk.yaml is under way.",
        "Wait for its end, or correct `closures`.",
    )
    SESSION_UNKNOWN = (
        "The trading hours are not known for this instant.",
        "Extend the product calendar beyond today.",
    )
    CONTRACT_ROLL = (
        "The blackout around the contract's expiry is under way.",
        "Wait for its end, or change `contract` in config/risk.yaml.",
    )
    CONTRACT_EXPIRED = (
        "The configured contract has expired.",
        "Set `contract.expiry` in config/risk.yaml to the contract now traded.",
    )
    EVENT_WINDOW = (
        "A macro event above the impact threshold lies inside its window.",
        "Wait until the time named, or change the window of this type in config/risk.yaml.",
    )
    EVENT_ASSERTED = (
        "The caller asserts that an event is under way.",
        "Entries return when the caller no longer asserts it.",
    )
    CALENDAR_MISSING = (
        "There is no macro calendar.",
        "Put data/macro_events.csv in place: start_time, type, impact, cluster_id.",
    )
    CALENDAR_UNREADABLE = (
        "The macro calendar is there but cannot be read.",
        "Check permissions, encoding and that no other program is writing it.",
    )
    CALENDAR_MALFORMED = (
        "A row or column of the macro calendar is unusable, so an event may be hidden.",
        "Correct the row named; not one row is skipped in silence.",
    )
    CALENDAR_EMPTY = (
        "The macro calendar has no event.",
        "Fill it at least to the end of the trading period.",
    )
    CALENDAR_ENDED = (
        "The last event of the macro calendar lies before the engine's clock: it has run out.",
        "Extend data/macro_events.csv beyond today.",
    )
    CLOCK_INVALID = (
        "The engine's clock gave no usable instant.",
        "Pass nanoseconds since 1970 UTC as an integer.",
    )
    CLOCK_BACKWARDS = (
        "The engine's clock went backwards.",
        "Check the time service of the host; entries return when the clock has caught up.",
    )
    MARKET_MISSING = (
        "There is no market data for the instrument.",
        "Wait for the first bar.",
    )
    MARKET_NOT_FINITE = (
        "The reference price is not a positive finite number.",
        "Check the feed; the bar should have been quarantined.",
    )
    MARKET_STALE = (
        "The last bar is older than the freshness limit.",
        "Check the feed; a closed market is stale as well.",
    )
    MARKET_FUTURE = (
        "The market data is stamped after the engine's clock.",
        "Check `stamp: start` or `end` and the time zone of the feed, and the host's clock.",
    )
    MARKET_HALTED = (
        "The venue halted trading, or does not say that it trades.",
        "Wait for the venue to reopen.",
    )
    STREAM_MISSING = (
        "A stream that entries need was never seen.",
        "Give the engine this stream, or take it out of `freshness.streams`.",
    )
    STREAM_STALE = (
        "A stream is older than its freshness limit.",
        "Check this feed; its last value may be right, but nobody knows.",
    )
    STREAM_FUTURE = (
        "A stream is stamped after the engine's clock.",
        "Check its time zone and the host's clock.",
    )
    ACCOUNT_MISSING = (
        "There is no account.",
        "Pass the account as the venue or the simulator reports it.",
    )
    ACCOUNT_NOT_FINITE = (
        "The equity is not a positive finite number.",
        "Check the marks of the open positions.",
    )
    ACCOUNT_STALE = (
        "The equity is older than the freshness limit.",
        "Mark the account with every bar.",
    )
    ACCOUNT_FUTURE = (
        "The equity is stamped after the engine's clock.",
        "Check the clock of the account source.",
    )
    ACCOUNT_POSITION = (
        "The position is not a finite whole number of contracts.",
        "Reconcile with the venue before trading on.",
    )
    ACCOUNT_UNKNOWN = (
        "The report is of another account than the gate's.",
        "One gate per account.",
    )
    ACCOUNT_UNRECONCILED = (
        "Positions and orders are not confirmed by the venue.",
        "Reconcile; no entry until both agree.",
    )
    ACCOUNT_WORKING = (
        "The working orders are not known.",
        "Report them with the account: an empty tuple if there are none.",
    )
    ACCOUNT_MARGIN = (
        "Equity does not cover the margin of position, working orders and this order.",
        "Reduce the size or the position.",
    )
    MODEL_NOT_FINITE = (
        "The model's output is not finite, missing or not ready.",
        "See the model's status: warm-up, missing features or a failed session.",
    )
    MODEL_RANGE = (
        "The model's output lies outside the range it is believed in.",
        "See `model` in config/risk.yaml; check the model's inputs.",
    )
    MODEL_HASH = (
        "The output comes from another model than the one the gate was started with.",
        "Restart the engine with the model that should trade.",
    )
    MODEL_FEATURES = (
        "A feature behind the decision is missing or not finite.",
        "Wait for the warm-up, or see `mia-fast features` for what is missing.",
    )
    LIMIT_QUANTITY = ("The order is larger than one order may be.", "Split it, or change `limits.max_quantity`.")
    LIMIT_NOTIONAL = ("The order's value is larger than allowed.", "Reduce it, or change `limits.max_notional`.")
    LIMIT_POSITION = (
        "The position could exceed its limit if the working orders and this one were filled.",
        "Cancel working orders or reduce the size.",
    )
    LIMIT_COLLAR = (
        "The limit price lies too far from the last price.",
        "Check the price for a slip; the collar is `limits.collar`.",
    )
    LIMIT_TRADE_RISK = (
        "The loss at the protective stop is more than one trade may lose.",
        "A nearer stop or a smaller size; the cap is `limits.max_trade_risk`.",
    )
    LIMIT_RATE = (
        "Too many orders in a short time.",
        "Entries return as the window passes; look for a loop that sends.",
    )
    LIMIT_ENTRIES = (
        "The trade date had as many entries as it may have.",
        "Entries return with the next trade date.",
    )
    ORDER_MISSING = (
        "What was passed is not an order.",
        "Pass a mia_fast.risk.Order.",
    )
    ORDER_ID = (
        "The order has no client id.",
        "Use mia_fast.risk.client_id: deterministic, so that a repeat is recognised.",
    )
    ORDER_DUPLICATE = (
        "An order with this client id already passed the gate.",
        "After a time-out reconcile with the venue; never resend.",
    )
    ORDER_REPEATED = (
        "An order of the same side, quantity and price passed a moment ago.",
        "After a time-out reconcile with the venue; never resend.",
    )
    ORDER_SELF_CROSS = (
        "The order could trade with a working order of the same account.",
        "Cancel the working order first.",
    )
    ORDER_ACTION = ("The action is neither a new order nor a cancel.", "Pass Action.NEW or Action.CANCEL.")
    ORDER_TYPE = (
        "Orders of this type are not allowed.",
        "Without a price it is a market order, with one a limit order; see `limits.order_types`.",
    )
    ORDER_STOP = (
        "The protective stop is missing, not finite, or on the wrong side of the price.",
        "Below the price for a buy, above it for a sell, on the tick.",
    )
    ORDER_INSTRUMENT = (
        "The order is for another instrument than the one configured.",
        "Check `instrument.symbol` in config/market_config.yaml.",
    )
    ORDER_SIDE = ("The side is neither buy nor sell.", "Pass Side.BUY or Side.SELL.")
    ORDER_QUANTITY = (
        "The quantity is not a positive whole number of contracts.",
        "Check the position sizing.",
    )
    ORDER_PRICE = (
        "The limit price is not a positive finite number.",
        "Pass None for a market order.",
    )
    ORDER_TICK = (
        "The limit price is not a multiple of the tick.",
        "Round to `instrument.tick_size`: down for a buy, up for a sell.",
    )
    ORDER_NOT_REDUCING = (
        "A reduce-only order would open, increase or turn the position.",
        "Send at most the open quantity, on the other side.",
    )
    JOURNAL_UNHEALTHY = (
        "The audit trail cannot take rows.",
        "See the reason named: disk, lock or a dead writer; after a loss that was looked at: `mia-fast acknowledge`.",
    )

    def __init__(self, meaning: str, hint: str) -> None:
        self.meaning = meaning
        self.hint = hint

    @property
    def category(self) -> Category:
        return Category[self.name.partition("_")[0]]


@dataclass(frozen=True, slots=True)
class Denial:
    """One reason to say no. ``str(denial)`` is ``CATEGORY_CONDITION: key=value key=value``."""

    code: Code
    values: tuple[tuple[str, Any], ...] = ()

    @property
    def hint(self) -> str:
        return self.code.hint

    def __str__(self) -> str:
        if not self.values:
            return self.code.name
        return f"{self.code.name}: " + " ".join(f"{key}={_text(value)}" for key, value in self.values)

    def told(self) -> str:
        """For a person: the values as they are, blanks included."""
        return f"{self.code.name}: " + ", ".join(f"{key} {value}" for key, value in self.values)


def denial(code: Code, **values: Any) -> Denial:
    """``Denial(code)`` with its values named."""
    return Denial(code, tuple(values.items()))


def _text(value: Any) -> str:
    """One word per value, so that a log line can be split at the blanks."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return "_".join(text.split()) or "none"
