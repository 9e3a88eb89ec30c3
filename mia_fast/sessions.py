"""Globex sessions of the equity index futures: a trade date opens at 18:00 New York on the evening before."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

from mia_fast.clock import from_datetime

_NEW_YORK = ZoneInfo("America/New_York")
_OPEN = dt.time(18)


def session_open(trade_date: dt.date) -> int:
    """The instant at which the session of ``trade_date`` opens, ns UTC."""
    return from_datetime(dt.datetime.combine(trade_date - dt.timedelta(days=1), _OPEN, _NEW_YORK))
