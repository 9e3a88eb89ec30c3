"""``config/risk.yaml``: limits, windows, freshness. The drawdown limit is in ``market_config.yaml``."""

from __future__ import annotations

import datetime as dt
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mia_fast.config import Model, load
from mia_fast.workspace import Workspace


class Window(Model):
    """How long an event forbids entries."""

    before_minutes: float = Field(ge=0, le=1440, description="minutes before the start of the event")
    after_minutes: float = Field(ge=0, le=1440, description="minutes after it")


class TypeWindow(Window):
    """The window of the event types that match one of the texts."""

    match: tuple[str, ...] = Field(min_length=1, description="start of a word of the type; '*' stands for anything")

    @field_validator("match")
    @classmethod
    def _says_something(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            if not any(letter.isalnum() for letter in text):
                raise ValueError(f"{text!r} has no letter or digit and would match every event")
        return texts


class Events(Model):
    """Macro events."""

    impact_threshold: float = Field(ge=0, lt=1, description="events strictly above it block")
    default: Window
    windows: tuple[TypeWindow, ...] = ()


class Closure(Model):
    """A stretch without entries that the desk knows beforehand: a holiday, a halt, a maintenance."""

    start: dt.datetime
    end: dt.datetime
    reason: str = Field(min_length=1)

    @field_validator("start", "end")
    @classmethod
    def _in_utc(cls, moment: dt.datetime) -> dt.datetime:
        if moment.tzinfo is None:
            raise ValueError(f"{moment} has no time zone; write 2025-07-04T17:00:00Z")
        return moment

    @model_validator(mode="after")
    def _in_order(self) -> Closure:
        if self.end <= self.start:
            raise ValueError(f"the closure ends at {self.end}, before it starts")
        return self


class Contract(Model):
    """Expiry of the traded contract, and the time around it in which nothing is opened."""

    expiry: dt.date | None = Field(
        description="last trade date; null: the root symbol rolls, third Fridays of March, June, September, December"
    )
    before_hours: float = Field(ge=0, le=720, description="blackout before 09:30 New York of the expiry")
    after_hours: float = Field(ge=0, le=720, description="blackout after it")


class Stream(Model):
    """Greatest age of one more input stream."""

    seconds: float = Field(gt=0)
    session_time: bool = Field(description="true: only time in which the market is open counts")


class Freshness(Model):
    """The greatest age of each input, in seconds of the engine's clock."""

    market_seconds: float = Field(gt=0, description="since the last bar became known")
    equity_seconds: float = Field(gt=0, description="since the account was last marked")
    clock_skew_seconds: float = Field(ge=0, le=60, description="tolerated lead of a stamp over the engine's clock")
    streams: dict[str, Stream] = Field(description="further streams an entry needs, by the name the engine gives them")


class Overtrading(Model):
    """The trade rate against the desk's own history, in active time (while bars arrive)."""

    window_minutes: float = Field(gt=0, le=1440, description="length of the present")
    half_life_hours: float = Field(gt=0, description="of the weight of past trades")
    min_trades: float = Field(ge=1, description="weighted trades below which the score is 0")
    min_windows: float = Field(ge=1, description="weighted windows of history below which the score is 0")
    pause_minutes: float = Field(gt=0, description="a longer silence between bars counts as no time")
    max_score: float = Field(gt=0, le=1, description="entries are refused above it; 1: never")


class Limits(Model):
    """What one order and the position may be."""

    order_types: tuple[Literal["market", "limit"], ...] = Field(min_length=1)
    max_quantity: float = Field(gt=0, description="contracts per order")
    max_notional: float = Field(gt=0, description="USD per order")
    max_position: float = Field(gt=0, description="contracts, working and in-flight orders included")
    collar: float = Field(gt=0, lt=1, description="fraction that a limit price may lie from the last price")
    margin_per_contract: float = Field(gt=0, description="USD")
    max_daily_loss: float = Field(gt=0, le=1, description="fraction of the equity at the open of the trade date")
    max_trade_risk: float = Field(gt=0, le=1, description="fraction of equity between price and protective stop")
    stop_required: bool = Field(description="an entry must carry its protective stop")


class Messages(Model):
    """How often orders may be sent."""

    max_orders: int = Field(ge=1, description="orders and cancels within `per_seconds`")
    per_seconds: float = Field(gt=0)
    repeat_seconds: float = Field(ge=0, description="the same side, quantity and price is not sent again within this")
    max_entries_per_day: int = Field(ge=1, description="entries per trade date")
    in_flight_seconds: float = Field(
        ge=0, description="an order counts as open until an account report that is this much younger"
    )


class ModelLimits(Model):
    """What a model's output may be before an entry relies on it."""

    min_output: float
    max_output: float

    @model_validator(mode="after")
    def _in_order(self) -> ModelLimits:
        if not self.min_output < self.max_output:
            raise ValueError("min_output must lie below max_output")
        return self


class RiskConfig(Model):
    """``config/risk.yaml``."""

    limits: Limits
    messages: Messages
    model: ModelLimits
    events: Events
    closures: tuple[Closure, ...]
    contract: Contract
    freshness: Freshness
    overtrading: Overtrading


def risk(workspace: Workspace) -> RiskConfig:
    """The desk's ``risk.yaml``.

    Raises
    ------
    ConfigError
        The file is present but invalid.
    """
    return load(RiskConfig, workspace.config("risk.yaml"))
