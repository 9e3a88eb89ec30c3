"""``config/risk.yaml``: event windows, freshness, overtrading. The drawdown limit is in ``market_config.yaml``."""

from __future__ import annotations

from pydantic import Field, field_validator

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


class Freshness(Model):
    """The greatest age of each input, in seconds of the engine's clock."""

    market_seconds: float = Field(gt=0, description="since the last bar became known")
    equity_seconds: float = Field(gt=0, description="since the account was last marked")
    clock_skew_seconds: float = Field(ge=0, le=60, description="tolerated lead of a stamp over the engine's clock")


class Overtrading(Model):
    """The trade rate against the desk's own history, in active time (while bars arrive)."""

    window_minutes: float = Field(gt=0, le=1440, description="length of the present")
    half_life_hours: float = Field(gt=0, description="of the weight of past trades")
    min_trades: float = Field(ge=1, description="weighted trades below which the score is 0")
    min_windows: float = Field(ge=1, description="weighted windows of history below which the score is 0")
    pause_minutes: float = Field(gt=0, description="a longer silence between bars counts as no time")


class RiskConfig(Model):
    """``config/risk.yaml``."""

    events: Events
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
