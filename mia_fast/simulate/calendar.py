"""When the simulated market trades and what is released: both follow from rules, for any year.

Sessions are those of CME Globex for the E-mini S&P 500 future: 18:00 New York of the evening before to
17:00. Days on which the New York Stock Exchange is closed have no session (in reality the future
trades a shortened one), and early closes are not modelled.

The releases fall on the weekdays and times at which the real ones usually fall; they are not the
published calendar. In particular the rate decision is put on the day after the consumer price index,
so that any two sessions from the second Tuesday of a decision month hold the two largest releases.
"""

from __future__ import annotations

import datetime as dt
import functools
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from mia_fast.clock import NS_PER_SECOND
from mia_fast.session_table import easter, observed

NEW_YORK = ZoneInfo("America/New_York")
SESSION_MINUTES = 23 * 60
_DAY = dt.timedelta(days=1)
_MON, _TUE, _WED, _THU, _FRI = range(5)


@dataclass(frozen=True, slots=True)
class Release:
    """One kind of scheduled release and what it does to the simulated market.

    ``impact`` is the calendar's 0..1; ``jump`` the standard deviation of the log price jump at the
    release; ``volatility`` and ``volume`` the multiples right after it, which decay with
    ``decay_minutes``; ``family`` the label written as ``cluster_id``.
    """

    type: str
    hour: int
    minute: int
    impact: float
    family: int
    jump: float
    volatility: float
    volume: float
    decay_minutes: float


@dataclass(frozen=True, slots=True)
class Event:
    """A release at an instant (nanoseconds UTC)."""

    start_ns: int
    release: Release


_INFLATION, _LABOUR, _CENTRAL_BANK, _ACTIVITY = range(4)
_CPI = Release("CPI", 8, 30, 0.9, _INFLATION, 0.0045, 3.2, 7.0, 10)
_PPI = Release("PPI", 8, 30, 0.6, _INFLATION, 0.0012, 1.8, 2.5, 7)
_PCE = Release("PCE", 8, 30, 0.65, _INFLATION, 0.0012, 1.8, 2.5, 7)
_NFP = Release("NFP", 8, 30, 0.95, _LABOUR, 0.0045, 3.5, 9.0, 12)
_CLAIMS = Release("JOBLESS_CLAIMS", 8, 30, 0.4, _LABOUR, 0.0004, 1.3, 1.6, 5)
_FOMC = Release("FOMC", 14, 0, 1.0, _CENTRAL_BANK, 0.0030, 3.5, 9.0, 20)
_PRESS = Release("FOMC_PRESS_CONFERENCE", 14, 30, 0.85, _CENTRAL_BANK, 0.0015, 2.2, 3.0, 30)
_MINUTES = Release("FOMC_MINUTES", 14, 0, 0.6, _CENTRAL_BANK, 0.0010, 1.6, 2.0, 10)
_RETAIL = Release("RETAIL_SALES", 8, 30, 0.65, _ACTIVITY, 0.0012, 1.7, 2.3, 7)
_ISM_MFG = Release("ISM_MANUFACTURING", 10, 0, 0.6, _ACTIVITY, 0.0010, 1.5, 1.6, 7)
_ISM_SVC = Release("ISM_SERVICES", 10, 0, 0.55, _ACTIVITY, 0.0009, 1.4, 1.5, 7)
_SENTIMENT = Release("CONSUMER_SENTIMENT", 10, 0, 0.45, _ACTIVITY, 0.0006, 1.3, 1.4, 5)

_DECISION_MONTHS = frozenset({1, 3, 5, 6, 7, 9, 11, 12})


def new_york_ns(day: dt.date, hour: int, minute: int) -> int:
    """The instant of a New York wall clock time, daylight saving included."""
    return int(dt.datetime.combine(day, dt.time(hour, minute), NEW_YORK).timestamp()) * NS_PER_SECOND


def session_open_ns(session: dt.date) -> int:
    """18:00 New York of the calendar day before the session's date."""
    return new_york_ns(session - _DAY, 18, 0)


def nth_weekday(year: int, month: int, weekday: int, n: int) -> dt.date:
    """The n-th (from 1) given weekday of a month; n = -1 is the last one."""
    if n > 0:
        first = dt.date(year, month, 1)
        return first + dt.timedelta(days=(weekday - first.weekday()) % 7 + 7 * (n - 1))
    last = month_end(year, month)
    return last - dt.timedelta(days=(last.weekday() - weekday) % 7)


def month_end(year: int, month: int) -> dt.date:
    """The last calendar day of a month."""
    return dt.date(year + month // 12, month % 12 + 1, 1) - _DAY


def holidays(year: int) -> frozenset[dt.date]:
    """The closures of the New York Stock Exchange under the rules in force since 2022 (rule 7.2)."""
    new_year = dt.date(year, 1, 1)
    days = {
        nth_weekday(year, 1, _MON, 3),  # Martin Luther King Day
        nth_weekday(year, 2, _MON, 3),  # Washington's Birthday
        easter(year) - 2 * _DAY,  # Good Friday
        nth_weekday(year, 5, _MON, -1),  # Memorial Day
        observed(dt.date(year, 6, 19)),  # Juneteenth
        observed(dt.date(year, 7, 4)),  # Independence Day
        nth_weekday(year, 9, _MON, 1),  # Labor Day
        nth_weekday(year, 11, _THU, 4),  # Thanksgiving
        observed(dt.date(year, 12, 25)),  # Christmas
    }
    if new_year.weekday() != _FRI + 1:  # a Saturday's New Year is not made up for: the Friday closes the year's books
        days.add(observed(new_year))
    return frozenset(days)


@functools.cache
def is_session(day: dt.date) -> bool:
    """Whether a Globex session bears this date."""
    return day.weekday() <= _FRI and day not in holidays(day.year)


def on_or_after(day: dt.date) -> dt.date:
    """The first session date that is not before ``day``."""
    while not is_session(day):
        day += _DAY
    return day


def on_or_before(day: dt.date) -> dt.date:
    """The last session date that is not after ``day``."""
    while not is_session(day):
        day -= _DAY
    return day


def sessions_from(start: dt.date, count: int) -> list[dt.date]:
    """``count`` session dates, the first one on or after ``start``."""
    days: list[dt.date] = []
    day = start
    while len(days) < count:
        day = on_or_after(day)
        days.append(day)
        day += _DAY
    return days


def sessions_before(start: dt.date, count: int) -> list[dt.date]:
    """The ``count`` session dates before ``start``, in ascending order."""
    days: list[dt.date] = []
    day = start - _DAY
    while len(days) < count:
        day = on_or_before(day)
        days.append(day)
        day -= _DAY
    return days[::-1]


@functools.cache
def _month_events(year: int, month: int) -> tuple[Event, ...]:
    first = on_or_after(dt.date(year, month, 1))
    cpi = on_or_after(nth_weekday(year, month, _TUE, 2))
    planned = [
        (first, _ISM_MFG),
        (sessions_from(first, 3)[2], _ISM_SVC),
        (on_or_before(nth_weekday(year, month, _FRI, 1)), _NFP),
        (cpi, _CPI),
        (on_or_after(nth_weekday(year, month, _THU, 2)), _PPI),
        (on_or_after(nth_weekday(year, month, _FRI, 2)), _SENTIMENT),
        (on_or_after(dt.date(year, month, 16)), _RETAIL),
        (on_or_before(nth_weekday(year, month, _FRI, -1)), _PCE),
    ]
    thursdays = [nth_weekday(year, month, _THU, n) for n in range(1, 6)]
    planned += [(on_or_before(day), _CLAIMS) for day in thursdays if day.month == month]
    if month in _DECISION_MONTHS:
        decision = on_or_after(cpi + _DAY)
        planned += [
            (decision, _FOMC),
            (decision, _PRESS),
            (on_or_after(decision + 21 * _DAY), _MINUTES),
        ]
    events = [Event(new_york_ns(day, release.hour, release.minute), release) for day, release in planned]
    return tuple(sorted(events, key=lambda event: (event.start_ns, event.release.type)))


def events_between(first: dt.date, last: dt.date) -> list[Event]:
    """All releases on the New York dates ``first`` to ``last``, both included, by time and type."""
    low, high = new_york_ns(first, 0, 0), new_york_ns(last + _DAY, 0, 0)
    events: list[Event] = []
    # Moved by a closure (or three weeks after a decision) a release may leave its month.
    count = 12 * (last.year - first.year) + last.month - first.month + 3
    for offset in range(count):
        year, month = divmod(12 * first.year + first.month - 2 + offset, 12)
        events += [event for event in _month_events(year, month + 1) if low <= event.start_ns < high]
    return sorted(events, key=lambda event: (event.start_ns, event.release.type))
