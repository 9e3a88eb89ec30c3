"""Instants. Inside mia-fast an instant is an ``int``: nanoseconds since 1970-01-01 UTC."""

from __future__ import annotations

import datetime as dt
import time

NS_PER_SECOND = 1_000_000_000
NS_PER_MINUTE = 60 * NS_PER_SECOND


def now_ns() -> int:
    """The wall clock. A replay never calls it: there, now is the bar's time."""
    return time.time_ns()


def to_datetime(ns: int) -> dt.datetime:
    """The instant as an aware datetime in UTC (whole microseconds, rounded down)."""
    return dt.datetime.fromtimestamp(ns // NS_PER_SECOND, dt.UTC).replace(microsecond=ns % NS_PER_SECOND // 1000)


def from_datetime(moment: dt.datetime) -> int:
    """Nanoseconds since the epoch of an aware datetime."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone; attach one, for instance datetime.UTC")
    whole = moment.replace(microsecond=0)
    return int(whole.timestamp()) * NS_PER_SECOND + moment.microsecond * 1000


def iso(ns: int) -> str:
    """ISO-8601 in UTC with microseconds: ``2025-05-13T14:00:00.123456Z``."""
    return to_datetime(ns).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def file_stamp(ns: int) -> str:
    """The same instant as it appears in file names: ``20250513T140000_123456Z``."""
    return to_datetime(ns).strftime("%Y%m%dT%H%M%S_%fZ")
