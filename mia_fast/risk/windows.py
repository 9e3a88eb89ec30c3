"""When entries are forbidden by the clock alone: macro events, trading hours, closures, expiry.

Everything is compiled to sorted arrays; :class:`TradeWindowFilter` remembers the stretch of time in which
its last answer holds, so that the next question usually is two comparisons.
"""

from __future__ import annotations

import bisect
import datetime as dt
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from zoneinfo import ZoneInfo

from mia_fast import sessions
from mia_fast.clock import from_datetime, iso, to_datetime
from mia_fast.config import load
from mia_fast.risk.calendar import EventCalendar
from mia_fast.risk.codes import Code, Denial, denial
from mia_fast.risk.config import Closure, Contract, Stream
from mia_fast.sessions import session_open
from mia_fast.workspace import Workspace

_NEW_YORK: Final = ZoneInfo("America/New_York")
_CLOSE: Final = dt.time(17)
_EXPIRY: Final = dt.time(9, 30)
_DAY: Final = dt.timedelta(days=1)
_HOUR_NS: Final = 3_600_000_000_000
_FIRST_YEAR, _LAST_YEAR = 1997, 2100  # of the quarterly expiries; the E-mini was listed in September 1997
_MOST_SPANS = 64  # walked to count open time; a stream that old is stale


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time in which the market is open, or closed.

    Attributes
    ----------
    start_ns, end_ns
        First instant, and first instant after it, ns UTC.
    open
        Orders are matched.
    trade_date
        Proleptic ordinal (``date.toordinal``) of the trade date; in a break, of the one that ended last.
    """

    start_ns: int
    end_ns: int
    open: bool
    trade_date: int


class Sessions(Protocol):
    """Trading hours of a product: :class:`DatedSessions`, or the rule of :class:`WeeklySessions`."""

    def span(self, now_ns: int, /) -> Span | None:
        """The stretch that contains ``now_ns``; None where the hours are not known. Spans tile time."""


class WeeklySessions:
    """Globex equity index futures without holidays: 18:00 to 17:00 New York, Sunday evening to Friday."""

    def span(self, now_ns: int) -> Span:
        """The stretch that contains ``now_ns``."""
        local = to_datetime(now_ns).astimezone(_NEW_YORK)
        trade_date = _weekday(local.date() + _DAY if local.hour >= 18 else local.date())
        opens, closes = session_open(trade_date), _session_close(trade_date)
        if now_ns < opens:
            before = trade_date - _DAY
            while before.weekday() > 4:
                before -= _DAY
            return Span(_session_close(before), opens, False, before.toordinal())
        if now_ns < closes:
            return Span(opens, closes, True, trade_date.toordinal())
        return Span(closes, session_open(_weekday(trade_date + _DAY)), False, trade_date.toordinal())


class DatedSessions:
    """Trading hours by the product's dated table: holidays, short days, daily halts and known interruptions.

    Outside the table nothing is known, and what is not known blocks: the weekly rule would open on a holiday.
    """

    def __init__(self, table: sessions.Sessions) -> None:
        halts = [pause for pause in table.pauses if pause.kind == "halt"]
        starts = [pause.start for pause in halts]
        spans: list[Span] = []
        for row in table.rows:
            date, at = row.trade_date.toordinal(), row.open
            if spans and spans[-1].end_ns < at:
                spans.append(Span(spans[-1].end_ns, at, False, spans[-1].trade_date))
            for halt in halts[bisect.bisect_left(starts, row.open) : bisect.bisect_left(starts, row.close)]:
                spans.append(Span(at, halt.start, True, date))
                spans.append(Span(halt.start, halt.end, False, date))
                at = halt.end
            spans.append(Span(at, row.close, True, date))
        self._spans = spans
        self._starts = [span.start_ns for span in spans]

    def span(self, now_ns: int) -> Span | None:
        """The stretch that contains ``now_ns``; None before the table's first open and from its last close on."""
        place = bisect.bisect_right(self._starts, now_ns) - 1
        return self._spans[place] if place >= 0 and now_ns < self._spans[place].end_ns else None


class UnknownHours:
    """Of a product without a table: nothing is known, so nothing is entered."""

    def span(self, now_ns: int) -> None:
        """None."""


def trading_hours(workspace: Workspace, symbol: str) -> Sessions:
    """The hours of a product by the table that ``config/sessions.yaml`` names for it.

    Raises
    ------
    ConfigError
        The configuration or the table is present but invalid.
    """
    config = load(sessions.SessionsConfig, workspace.config("sessions.yaml"))
    return DatedSessions(sessions.Sessions.load(workspace, symbol)) if symbol in config.products else UnknownHours()


class TradeWindowFilter:
    """Macro events, sessions, closures, expiry and roll: whether the clock alone forbids entries.

    Parameters
    ----------
    calendar
        Macro events.
    hours
        Trading hours.
    closures, contract
        Of ``config/risk.yaml``.

    Attributes
    ----------
    start_ns, end_ns, free
        The stretch around the last question in which the answer is the same, and the answer.
    """

    def __init__(
        self, calendar: EventCalendar, hours: Sessions, closures: Sequence[Closure], contract: Contract
    ) -> None:
        self.calendar = calendar
        self.sessions = hours
        self.start_ns, self.end_ns, self.free = 0, 0, False
        spans = [
            (from_datetime(c.start), from_datetime(c.end), denial(Code.SESSION_CLOSURE, reason=c.reason, until=c.end))
            for c in closures
        ]
        before, after = round(contract.before_hours * _HOUR_NS), round(contract.after_hours * _HOUR_NS)
        self._expired: tuple[int, Denial] | None = None
        if contract.expiry is not None:
            at = _instant(contract.expiry, _EXPIRY)
            self._expired = (at, denial(Code.CONTRACT_EXPIRED, expiry=contract.expiry))
            expiries = [at]
        else:
            expiries = _quarterly()
        spans += [
            (at - before, at + after, denial(Code.CONTRACT_ROLL, expiry=iso(at), until=iso(at + after)))
            for at in expiries
            if before + after > 0
        ]
        spans.sort(key=lambda span: span[:2])
        self._spans = spans
        self._starts = [span[0] for span in spans]
        ends = {end for _, end, _ in spans} | ({self._expired[0]} if self._expired is not None else set())
        self._edges = sorted({*self._starts, *ends})

    def blocked(self, now_ns: int) -> Denial | None:
        """Why entries are forbidden at ``now_ns``: the first reason, or None."""
        return self.calendar.blocked(now_ns) or self.closed(now_ns) or self.blackout(now_ns)

    def closed(self, now_ns: int) -> Denial | None:
        """Outside the trading hours, or hours not known."""
        span = self.sessions.span(now_ns)
        if span is None:
            return denial(Code.SESSION_UNKNOWN, now=iso(now_ns))
        return None if span.open else denial(Code.SESSION_CLOSED, until=iso(span.end_ns))

    def blackout(self, now_ns: int) -> Denial | None:
        """In a closure, around an expiry, or after that of a dated contract. Starts count, ends do not."""
        if self._expired is not None and now_ns >= self._expired[0]:
            return self._expired[1]
        for start, end, why in self._spans[: bisect.bisect_right(self._starts, now_ns)]:
            if start <= now_ns < end:
                return why
        return None

    def move(self, now_ns: int) -> bool:
        """Find the answer at ``now_ns`` and how long it holds; True when entries are free."""
        start, end = self.calendar.stretch(now_ns)
        span = self.sessions.span(now_ns)
        if span is not None:
            start, end = max(start, span.start_ns), min(end, span.end_ns)
        else:
            start, end = now_ns, now_ns + 1
        place = bisect.bisect_right(self._edges, now_ns)
        if place:
            start = max(start, self._edges[place - 1])
        if place < len(self._edges):
            end = min(end, self._edges[place])
        self.start_ns, self.end_ns, self.free = start, end, self.blocked(now_ns) is None
        return self.free

    def deadline(self, known_at_ns: int, stream: Stream) -> int:
        """The last instant at which a value known at ``known_at_ns`` is fresh, ns UTC."""
        left = round(stream.seconds * 1e9)
        if not stream.session_time:
            return known_at_ns + left
        at = known_at_ns
        for _ in range(_MOST_SPANS):
            span = self.sessions.span(at)
            if span is None:
                return at
            if span.open:
                if left <= span.end_ns - at:
                    return at + left
                left -= span.end_ns - at
            at = span.end_ns
        return at


def _weekday(date: dt.date) -> dt.date:
    """``date``, or the Monday after it."""
    while date.weekday() > 4:
        date += _DAY
    return date


def _session_close(trade_date: dt.date) -> int:
    return _instant(trade_date, _CLOSE)


def _instant(date: dt.date, time: dt.time) -> int:
    return from_datetime(dt.datetime.combine(date, time, _NEW_YORK))


@functools.cache
def _quarterly() -> list[int]:
    """Every quarterly expiry, ns UTC."""
    return [
        _instant(_third_friday(year, month), _EXPIRY)
        for year in range(_FIRST_YEAR, _LAST_YEAR)
        for month in (3, 6, 9, 12)
    ]


def _third_friday(year: int, month: int) -> dt.date:
    first = dt.date(year, month, 1)
    return first + _DAY * ((4 - first.weekday()) % 7 + 14)
