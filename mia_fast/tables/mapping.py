"""The mapping of other people's files to the input tables: ``config/inputs.yaml``.

Names are compared without regard to case. A canonical name is always accepted and needs no line; the mapping lists
further names, and a desk adds its own.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import zoneinfo
from typing import Any, Literal

from pydantic import Field, create_model, field_validator, model_validator

from mia_fast.config import Model, load
from mia_fast.errors import ConfigError
from mia_fast.tables.live import PriceJumps
from mia_fast.tables.schema import TABLES
from mia_fast.workspace import Workspace

_UNITS = {"ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000, "h": 3_600_000_000_000, "d": 86_400_000_000_000}
_DURATION = re.compile(r"([1-9]\d*)(ms|s|m|h|d)")
_TIME = re.compile(r"(?:[01]\d|2[0-3]):[0-5]\d|24:00")

Names = tuple[str, ...]


def duration_ns(text: str) -> int:
    """Nanoseconds of ``250ms``, ``1s``, ``1m``, ``4h`` or ``1d``."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write a number and ms, s, m, h or d, for instance 1m")
    return int(match[1]) * _UNITS[match[2]]


def interval_of(text: str) -> int:
    """:func:`duration_ns` for a person at the command line.

    Raises
    ------
    ConfigError
        The text is not a duration.
    """
    try:
        return duration_ns(text)
    except ValueError as error:
        raise ConfigError(str(error), where="interval", hint="for instance 1m", then="nothing was started") from None


def _check_zone(zone: str | None) -> str | None:
    if zone is not None:
        try:
            zoneinfo.ZoneInfo(zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError):
            raise ValueError("is not an IANA time zone; write for instance America/New_York or UTC") from None
    return zone


class RowFilter(Model):
    """Keeps rows whose ``column`` (the file's own name) holds one of ``keep``; without that column it does nothing.

    A row whose field is empty stays: what is not known to be irrelevant is relevant.
    """

    column: str = Field(min_length=1)
    keep: Names = Field(min_length=1)


class TableInput(Model):
    """What every table's mapping may say."""

    columns: Any = Field(default=None, description="names the columns may have")  # each table has its own model
    values: Any = Field(default=None, description="words and what they mean")
    constants: Any = Field(default=None, description="values of columns that the source does not have")
    filters: tuple[RowFilter, ...] = ()
    zone: str | None = Field(default=None, description="IANA zone of instants that have none")
    epoch: Literal["s", "ms", "us", "ns"] | None = Field(default=None, description="unit of instants kept as integers")
    time_format: str | None = Field(default=None, min_length=1, description="strftime format of text instants")

    _zone = field_validator("zone")(_check_zone)

    @model_validator(mode="after")
    def _no_name_twice(self) -> TableInput:
        owner: dict[str, str] = {}
        for column in type(self.columns).model_fields:
            for alias in getattr(self.columns, column):
                try:
                    key = alias.format(level=1, level0=0).casefold()
                except (KeyError, IndexError, ValueError):
                    raise ValueError(
                        f"{alias!r} is not a name; only {{level}} and {{level0}} may stand in braces"
                    ) from None
                if owner.setdefault(key, column) != column:
                    raise ValueError(f"{alias!r} is listed under {owner[key]!r} and under {column!r}; keep one")
        return self


def _sections(kind: str) -> dict[str, Any]:
    """The fields of a table's mapping that list its columns, so that a misspelt column is an unknown key."""
    names = [column.name for column in TABLES[kind].columns]
    label = kind.capitalize()
    lists: dict[str, Any] = {name: (Names, Field(default=(name,), min_length=1)) for name in names}
    words: dict[str, Any] = {name: (dict[str, float | str], Field(default={})) for name in names}
    fixed: dict[str, Any] = dict.fromkeys(names, (float | str | None, None))
    models = {
        "columns": create_model(f"{label}Columns", __base__=Model, **lists),
        "values": create_model(f"{label}Values", __base__=Model, **words),
        "constants": create_model(f"{label}Constants", __base__=Model, **fixed),
    }
    return {part: (model, Field(default_factory=model)) for part, model in models.items()}


class PriceJump(Model):
    """``bars.price_jump``: when a bar is taken for a bad print."""

    limit: float | None = Field(default=0.2, gt=0, lt=1, description="fraction of the last good close; null: no rule")
    confirm: int = Field(default=3, ge=2, le=1000, description="bars in a row near one level that make it the new one")
    pause_minutes: float = Field(default=30, gt=0, description="without a good bar; behind it a new session begins")

    def guard(self) -> PriceJumps:
        """The rule for one series of bars, at its beginning."""
        return PriceJumps(
            math.inf if self.limit is None else self.limit, self.confirm, round(self.pause_minutes * 6e10)
        )


class _Bars(TableInput):
    """``bars`` in ``config/inputs.yaml``."""

    stamp: Literal["start", "end"] = Field(default="start", description="what the timestamp marks")
    interval: Names = Field(default=("1m",), min_length=1, description="lengths of bars; the commonest gap decides")
    volume_bars: bool = Field(
        default=True, description="bars with a known_at of their own and no common length are volume bars"
    )
    skip_empty: bool = Field(default=False, description="a row without any price is an interval without trades")
    price_jump: PriceJump = PriceJump()

    @field_validator("interval", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("interval")
    @classmethod
    def _durations(cls, value: Names) -> Names:
        for text in value:
            duration_ns(text)
        return value

    def intervals_ns(self) -> tuple[int, ...]:
        """The configured lengths in nanoseconds, in the configured order."""
        return tuple(duration_ns(text) for text in self.interval)


class Close(Model):
    """When a value that has only a date is known."""

    time: str = Field(default="16:00", description="HH:MM, or 24:00 for the end of the day")
    zone: str = "America/New_York"
    business_days_later: int = Field(default=0, ge=0, le=30, description="working days to the publication")

    _zone = field_validator("zone")(_check_zone)

    @field_validator("time", mode="before")
    @classmethod
    def _clock_time(cls, value: Any) -> Any:
        if not (isinstance(value, str) and _TIME.fullmatch(value)):
            raise ValueError("write the time in quotes as HH:MM between '00:00' and '24:00'")
        return value

    def offset(self) -> dt.timedelta:
        """Time from midnight."""
        hours, minutes = self.time.split(":")
        return dt.timedelta(hours=int(hours), minutes=int(minutes))


class SymbolsClose(Close):
    """The close of some symbols."""

    symbols: Names = Field(min_length=1)


class Daily(Model):
    """Closes of daily values, by symbol."""

    default: Close = Close()
    closes: tuple[SymbolsClose, ...] = ()

    @model_validator(mode="after")
    def _one_close_each(self) -> Daily:
        seen: set[str] = set()
        for close in self.closes:
            for symbol in close.symbols:
                if symbol in seen:
                    raise ValueError(f"{symbol!r} has two closes; keep one")
                seen.add(symbol)
        return self


class _Cross(TableInput):
    """``cross`` in ``config/inputs.yaml``."""

    daily: Daily = Daily()
    prefer_source: Names = Field(default=(), description="of two sources of one value, the first listed wins")
    stamp: Literal["start", "end"] | None = Field(
        default=None, description="what an instant marks where the table holds bars (open, high or low)"
    )
    interval: str = Field(default="1m", description="the length of those bars")

    @model_validator(mode="after")
    def _length(self) -> _Cross:
        duration_ns(self.interval)
        return self


BarsInput = create_model("BarsInput", __base__=_Bars, **_sections("bars"))
TradesInput = create_model("TradesInput", __base__=TableInput, **_sections("trades"))
BookInput = create_model("BookInput", __base__=TableInput, **_sections("book"))
OrdersInput = create_model("OrdersInput", __base__=TableInput, **_sections("orders"))
ChainInput = create_model("ChainInput", __base__=TableInput, **_sections("chain"))
EventsInput = create_model("EventsInput", __base__=TableInput, **_sections("events"))
CrossInput = create_model("CrossInput", __base__=_Cross, **_sections("cross"))


def _by_default(model: Any) -> Any:
    return Field(default_factory=model)


class InputsConfig(Model):
    """``config/inputs.yaml``."""

    max_quarantined_share: float = Field(default=0.05, ge=0, lt=1, description="of an input's rows; above it, refused")
    bars: BarsInput = _by_default(BarsInput)  # type: ignore[valid-type]
    trades: TradesInput = _by_default(TradesInput)  # type: ignore[valid-type]
    book: BookInput = _by_default(BookInput)  # type: ignore[valid-type]
    orders: OrdersInput = _by_default(OrdersInput)  # type: ignore[valid-type]
    chain: ChainInput = _by_default(ChainInput)  # type: ignore[valid-type]
    events: EventsInput = _by_default(EventsInput)  # type: ignore[valid-type]
    cross: CrossInput = _by_default(CrossInput)  # type: ignore[valid-type]
    unscheduled_events: tuple[str, ...] = Field(
        default=(), description="types of events, with * and ?, that are never known in advance"
    )

    def of(self, kind: str) -> TableInput:
        """The mapping of one table."""
        chosen: TableInput = getattr(self, kind)
        return chosen


def inputs(workspace: Workspace) -> InputsConfig:
    """The desk's ``inputs.yaml``."""
    return load(InputsConfig, workspace.config("inputs.yaml"))


def price_jumps(workspace: Workspace) -> PriceJumps:
    """The rule against bad prints for one series of bars: ``bars.price_jump`` of the desk's ``inputs.yaml``."""
    found: PriceJump = inputs(workspace).of("bars").price_jump  # type: ignore[attr-defined]  # made at run time
    return found.guard()


def day_closes(workspace: Workspace) -> Daily:
    """When the day of each cross-asset series ends: ``cross.daily`` of the desk's ``inputs.yaml``."""
    found: Daily = inputs(workspace).of("cross").daily  # type: ignore[attr-defined]  # made at run time
    return found


def unscheduled_events(workspace: Workspace) -> tuple[str, ...]:
    """Patterns of the types of events that nothing may look forward to."""
    return inputs(workspace).unscheduled_events


def aliases(mapping: TableInput, column: str, levels: int) -> dict[str, Names]:
    """For each canonical name of a column (or of its levels) the other names it may have, in order."""
    listed: Names = getattr(mapping.columns, column)
    if not levels:
        return {column: listed}
    first_only = [alias for alias in listed if "{" not in alias]
    result = {}
    for level in range(1, levels + 1):
        names = [alias.format(level=level, level0=level - 1) for alias in listed if "{" in alias]
        result[f"{column}_{level}"] = tuple(names + (first_only if level == 1 else []))
    return result
