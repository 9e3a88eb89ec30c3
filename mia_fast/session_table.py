"""Writes ``config/sessions_cme_equity.csv``:
``python -m mia_fast.session_table 2013-10-01 2028-12-31 config/sessions_cme_equity.csv`` (``make sessions``).

The days come from exchange_calendars (a development dependency: it needs pandas); the hours of the product from the
dated rules below, because that calendar knows one open and one close only. Where minute bars of the time were at hand
(October 2013, 2019 to June 2022) a test holds the table against them; earlier and later short days say so in ``note``.
"""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from mia_fast.files import write_text

_NEW_YORK = ZoneInfo("America/New_York")
HEADER = "trade_date,open,halt_from,halt_to,close,note"

# Hours in New York. CME notices: close 16:30 -> 16:15 Chicago on 2012-11-18, -> 16:00 on 2015-09-21 (SER-7469);
# the halt 15:15 - 15:30 Chicago ended with trade date 2021-06-28.
_OPEN = dt.time(18)
_CLOSES = ((dt.date(2012, 11, 19), dt.time(17, 15)), (dt.date(2015, 9, 21), dt.time(17)))
_HALT = (dt.time(16, 15), dt.time(16, 30))
_HALT_ENDS = dt.date(2021, 6, 28)
_HOLIDAY, _EVE, _PAYROLLS, _MOURNING = dt.time(13), dt.time(13, 15), dt.time(9, 15), dt.time(9, 30)
_MOURNED = (dt.date(2018, 12, 5), dt.date(2025, 1, 9))
_JUNETEENTH_SINCE = 2022
_SEEN = (dt.date(2019, 1, 1), dt.date(2022, 6, 30))  # short days that bars of the time confirm


def short_day(day: dt.date, listed: bool) -> tuple[dt.time, str] | None:
    """The early close of a trade date (New York) and why; None for a full day."""
    if day in _MOURNED:
        return _MOURNING, "national day of mourning"
    if day == easter(day.year) - dt.timedelta(days=2):
        return _PAYROLLS, "Good Friday with a payrolls release"
    if (day.month, day.day) == (12, 24):
        return _EVE, "Christmas Eve"
    if (day.month, day.day) == (7, 3) and day.weekday() < 4:
        return _EVE, "day before Independence Day"
    if day.month == 11 and day.weekday() == 4 and 23 <= day.day <= 29:
        return _EVE, "day after Thanksgiving"
    if day.year >= _JUNETEENTH_SINCE and day == observed(dt.date(day.year, 6, 19)):
        return _HOLIDAY, "Juneteenth"
    return (_HOLIDAY, "holiday") if listed else None


def easter(year: int) -> dt.date:
    """Easter Sunday of the Gregorian calendar (Butcher, 1876)."""
    a, (b, c) = year % 19, divmod(year, 100)
    (d, e), g = divmod(b, 4), (8 * b + 13) // 25
    h = (19 * a + b - d - g + 15) % 30
    i, k = divmod(c, 4)
    last = (32 + 2 * e + 2 * i - h - k) % 7
    m = (a + 11 * h + 22 * last) // 451
    month, day = divmod(h + last - 7 * m + 114, 31)
    return dt.date(year, month, day + 1)


def observed(day: dt.date) -> dt.date:
    """The weekday on which a holiday is kept."""
    return day + dt.timedelta(days={5: -1, 6: 1}.get(day.weekday(), 0))


def _utc(day: dt.date, time: dt.time) -> str:
    return dt.datetime.combine(day, time, _NEW_YORK).astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%MZ")


def row(day: dt.date, listed: bool) -> str:
    """One line of the table."""
    opened = _utc(day - dt.timedelta(days=1), _OPEN)
    short = short_day(day, listed)
    if short is not None:
        doubt = "" if _SEEN[0] <= day <= _SEEN[1] else ", by rule"
        return f"{day},{opened},,,{_utc(day, short[0])},{short[1]}{doubt}"
    close = [time for since, time in _CLOSES if since <= day][-1]
    halt = (_utc(day, _HALT[0]), _utc(day, _HALT[1])) if day < _HALT_ENDS else ("", "")
    return f"{day},{opened},{halt[0]},{halt[1]},{_utc(day, close)},"


def table(first: dt.date, last: dt.date) -> str:
    """The whole file from exchange_calendars' sessions and early closes."""
    import exchange_calendars

    calendar: Any = exchange_calendars.get_calendar("CMES", start=str(first), end=str(last))
    days = {stamp.date() for stamp in calendar.sessions}
    listed = {stamp.date() for stamp in calendar.early_closes}
    for year in range(first.year, last.year + 1):
        friday = easter(year) - dt.timedelta(days=2)
        # Payrolls are released on the first Friday also when it is Good Friday; the future trades until 09:15.
        if friday.day <= 7 and first <= friday <= last:
            days.add(friday)
        else:
            days.discard(friday)
    return "\n".join((HEADER, *(row(day, day in listed) for day in sorted(days)))) + "\n"


def main() -> None:
    """Write the table for two dates given as arguments."""
    first, last, path = dt.date.fromisoformat(sys.argv[1]), dt.date.fromisoformat(sys.argv[2]), Path(sys.argv[3])
    write_text(path, table(first, last))


if __name__ == "__main__":
    main()
