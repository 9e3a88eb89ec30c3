"""The macro calendar as of each bar. What is scheduled is known in advance, so looking at the next such event is legal.

A calendar put together afterwards also holds surprises, an emergency meeting for instance: types of events that are
never known in advance are listed in ``inputs.yaml`` (``unscheduled_events``), and nothing looks forward to them.
Entries of impact 0, which mark holidays, do not count.

Outside the span from the calendar's first event to its last nothing is said: a count of 0 there would be invented.
A window that reaches beyond the span is missing too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from mia_fast.features.asof import Floats, Integers, Steps
from mia_fast.features.catalogue import InputColumn

if TYPE_CHECKING:
    import polars as pl

    from mia_fast.risk.calendar import EventCalendar

HIGH_IMPACT: Final = 0.7
"""An event above this is a high one, as for the risk room's windows."""

_NS = 1_000_000_000
_MINUTE = 60 * _NS


class EventSchedule(Steps):
    """The declared statistics of a macro calendar.

    Every one changes at known instants only; the minutes to and since an event are formulas of the catalogue over
    ``next_event_at`` and the like, so that a live bar between two events sets nothing.
    """

    @classmethod
    def build(
        cls,
        starts: Integers,
        impacts: Floats,
        inputs: Sequence[InputColumn],
        interval_ns: int,
        scheduled: NDArray[np.bool_] | None = None,
    ) -> EventSchedule | None:
        """The inputs of table ``events``; None if none are declared or there is no event.

        Parameters
        ----------
        starts
            (m,) int64 ns UTC, any order.
        impacts
            (m,) 0..1.
        inputs
            The catalogue's inputs.
        interval_ns
            Length of a bar, for ``started_in_bar``; 0 where they have no common one, which leaves that input out.
        scheduled
            (m,) which of them were known in advance; default: all.
        """
        columns = [
            column
            for column in inputs
            if column.table == "events" and (interval_ns or column.statistic != "started_in_bar")
        ]
        ahead = np.ones(len(starts), dtype=np.bool_) if scheduled is None else scheduled
        counts = impacts > 0
        starts, impacts, ahead = starts[counts], impacts[counts], ahead[counts]
        if not columns or not len(starts):
            return None
        order = np.argsort(starts, kind="stable")
        calendar = _Calendar(starts[order], impacts[order], ahead[order], interval_ns)
        instants = calendar.changes({column.minutes or 0 for column in columns})
        values = np.full((len(columns), len(instants) + 1), np.nan)
        inside = (instants >= calendar.first) & (instants <= calendar.last)
        for k, column in enumerate(columns):
            values[k, 1:][inside] = calendar.values(column, instants[inside])
        return cls("events", [column.name for column in columns], instants, values)

    @classmethod
    def from_frame(
        cls, frame: pl.DataFrame, inputs: Sequence[InputColumn], interval_ns: int, unscheduled: Sequence[str] = ()
    ) -> EventSchedule | None:
        """Of a canonical events table; types that fit a pattern of ``unscheduled`` are never looked forward to."""
        starts, impacts = frame["start_time"].dt.epoch("ns").to_numpy(), frame["impact"].to_numpy()
        return cls.build(starts, impacts, inputs, interval_ns, _scheduled(frame["type"].to_list(), unscheduled))

    @classmethod
    def from_calendar(
        cls,
        calendar: EventCalendar,
        inputs: Sequence[InputColumn],
        interval_ns: int,
        unscheduled: Sequence[str] = (),
    ) -> EventSchedule | None:
        """Of the risk room's calendar; None if it is unusable."""
        if calendar.fault is not None:
            return None
        starts = np.array([event.start_ns for event in calendar.events], dtype=np.int64)
        impacts = np.array([event.impact for event in calendar.events], dtype=np.float64)
        known = _scheduled([event.type for event in calendar.events], unscheduled)
        return cls.build(starts, impacts, inputs, interval_ns, known)


def _scheduled(types: Sequence[str], unscheduled: Sequence[str]) -> NDArray[np.bool_]:
    """Which types fit no pattern, whatever their case."""
    patterns = [pattern.lower() for pattern in unscheduled]
    return np.array([not any(fnmatchcase(name.lower(), p) for p in patterns) for name in types], dtype=np.bool_)


class _Calendar:
    """Events in time; what each statistic is at instants inside their span."""

    def __init__(self, starts: Integers, impacts: Floats, ahead: NDArray[np.bool_], interval_ns: int) -> None:
        self.starts, self.interval = starts, interval_ns
        self.first, self.last = int(starts[0]), int(starts[-1])
        self._views = {"previous": (starts, impacts), "next": (starts[ahead], impacts[ahead])}

    def changes(self, windows: set[int]) -> Integers:
        """All instants at which anything can change, ascending."""
        spans = [minutes * _MINUTE for minutes in windows]
        found = [self.starts, self.starts + 1, self.starts + self.interval + 1, np.array([self.last + 1])]
        for span in spans:
            found += [self.starts - span, self.starts + span, np.array([self.last - span + 1])]
        instants: Integers = np.unique(np.concatenate(found))
        return instants[(instants >= self.first) & (instants <= self.last + 1)]

    def values(self, column: InputColumn, now: Integers) -> Floats:
        """One statistic at ``now`` (n,)."""
        statistic = column.statistic or ""
        if statistic == "started_in_bar":
            before = np.searchsorted(self.starts, now, side="left")
            return (before > np.searchsorted(self.starts, now - self.interval, side="left")).astype(np.float64)
        forward = statistic.startswith("next") or statistic.endswith("_next")
        starts, impacts = self._views["next" if forward else "previous"]
        if statistic.endswith("_at"):
            chosen = starts[impacts > HIGH_IMPACT] if "high" in statistic else starts
            at = np.searchsorted(chosen, now, side="right") - (0 if forward else 1)
            return self._pick(chosen / _NS, at)
        if statistic in ("next_impact", "previous_impact"):
            # Several events at one instant count as their highest.
            instants, first = np.unique(starts, return_index=True)
            at = np.searchsorted(instants, now, side="right") - (0 if forward else 1)
            highest = np.maximum.reduceat(impacts, first) if len(first) else np.empty(0)
            return self._pick(highest, at)
        span = (column.minutes or 0) * _MINUTE
        if forward:
            low, high, covered = now, now + span, now + span <= self.last
        else:
            low, high, covered = now - span, now, now - span >= self.first
        begin = np.searchsorted(starts, low, side="right")
        end = np.searchsorted(starts, high, side="right")
        if statistic.startswith("count"):
            found = (end - begin).astype(np.float64)
        else:
            listed: list[float] = impacts.tolist()
            pairs = zip(begin.tolist(), end.tolist(), strict=True)
            found = np.array([math.fsum(listed[a:b]) for a, b in pairs], dtype=np.float64)
        return np.where(covered, found, np.nan)

    @staticmethod
    def _pick(values: Floats, at: Integers) -> Floats:
        """``values[at]``, NaN outside."""
        inside = (at >= 0) & (at < len(values))
        return np.where(inside, np.append(values, np.nan)[np.where(inside, at, len(values))], np.nan)
