"""Macro events as forbidden time: compiled once to sorted arrays, asked by binary search."""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mia_fast.clock import NS_PER_MINUTE, iso
from mia_fast.errors import ConfigError, DataError
from mia_fast.risk.codes import Code, Denial, denial
from mia_fast.risk.config import Events, Window
from mia_fast.workspace import Workspace

if TYPE_CHECKING:
    import polars as pl

_COLUMNS = ("start_time", "type", "impact")
_REFUSALS = {"empty": Code.CALENDAR_EMPTY, "unreadable": Code.CALENDAR_UNREADABLE}
_NS_LIMIT = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the macro calendar."""

    start_ns: int
    type: str
    impact: float
    cluster_id: int | None = None


class EventCalendar:
    """When macro events forbid entries.

    A calendar is either usable or carries the one denial that says why it is not; an unusable
    calendar blocks at every instant. Build it with :meth:`from_events`, :meth:`from_frame` or
    :meth:`unusable`.

    Attributes
    ----------
    starts, ends
        First and last blocked nanosecond of each merged window, ascending and disjoint. Both ends are
        blocked.
    events
        All events, sorted by start.
    fault
        Why the calendar is unusable, or None.
    """

    def __init__(self, events: tuple[Event, ...], config: Events, fault: Denial | None) -> None:
        self.events = events
        self.fault = fault
        windows = _WindowTable(config)
        spans = sorted(
            (event.start_ns - before, event.start_ns + after, event.type)
            for event in events
            if event.impact > config.impact_threshold
            for before, after in [windows.of(event.type)]
        )
        starts: list[int] = []
        ends: list[int] = []
        labels: list[list[str]] = []
        for start, end, name in spans:
            if ends and start <= ends[-1]:
                ends[-1] = max(ends[-1], end)
                if name not in labels[-1]:
                    labels[-1].append(name)
            else:
                starts.append(start)
                ends.append(end)
                labels.append([name])
        self.starts, self.ends = starts, ends
        self._denials = [
            denial(Code.EVENT_WINDOW, event="+".join(names), until=iso(end))
            for names, end in zip(labels, ends, strict=True)
        ]
        self._last = max((event.start_ns for event in events), default=0)

    @classmethod
    def from_events(cls, events: Iterable[Event], config: Events) -> EventCalendar:
        """Compile events in any order. An event with an impossible value makes the calendar unusable."""
        rows = tuple(events)
        for number, event in enumerate(rows, start=1):
            fault = _check(event, number)
            if fault is not None:
                return cls.unusable(fault, config)
        if not rows:
            return cls.unusable(denial(Code.CALENDAR_EMPTY), config)
        return cls(tuple(sorted(rows, key=lambda event: event.start_ns)), config, None)

    @classmethod
    def from_frame(cls, frame: pl.DataFrame | None, config: Events) -> EventCalendar:
        """Compile a canonical events frame; ``None`` means that there is none.

        Parameters
        ----------
        frame
            Columns ``start_time`` Datetime("ns", "UTC"), ``type`` String, ``impact`` Float64 in 0..1,
            optionally ``cluster_id``, whole numbers or nulls. Anything else is malformed, and blocks.
        """
        import polars as pl

        if frame is None:
            return cls.unusable(denial(Code.CALENDAR_MISSING), config)
        expected = dict(zip(_COLUMNS, (pl.Datetime("ns", "UTC"), pl.String(), pl.Float64()), strict=True))
        for name, dtype in expected.items():
            found = frame.schema.get(name)
            if found != dtype:
                return cls.unusable(
                    denial(Code.CALENDAR_MALFORMED, column=name, found=found or "nothing", expected=dtype), config
                )
        rows = frame.select(pl.col("start_time").to_physical(), "type", "impact").rows()
        clusters: list[Any] = frame["cluster_id"].to_list() if "cluster_id" in frame.columns else [None] * frame.height
        return cls.from_events(
            [Event(start, name, impact, _label(c)) for (start, name, impact), c in zip(rows, clusters, strict=True)],
            config,
        )

    @classmethod
    def unusable(cls, fault: Denial, config: Events) -> EventCalendar:
        """A calendar that blocks always, for the reason ``fault``."""
        return cls((), config, fault)

    def blocked(self, now_ns: int) -> Denial | None:
        """Why entries are forbidden at ``now_ns``, or None. O(log windows), no allocation when free."""
        if self.fault is not None:
            return self.fault
        place = bisect.bisect_right(self.starts, now_ns) - 1
        if place >= 0 and now_ns <= self.ends[place]:
            return self._denials[place]
        if self._last < now_ns:
            return denial(Code.CALENDAR_ENDED, last=iso(self._last))
        return None

    def stretch(self, now_ns: int) -> tuple[int, int]:
        """The stretch around ``now_ns`` in which :meth:`blocked` stays the same: first instant, first after it."""
        if self.fault is not None:
            return 0, _NS_LIMIT
        place = bisect.bisect_right(self.starts, now_ns) - 1
        if place >= 0 and now_ns <= self.ends[place]:
            return self.starts[place], self.ends[place] + 1
        start = self.ends[place] + 1 if place >= 0 else 0
        end = self.starts[place + 1] if place + 1 < len(self.starts) else _NS_LIMIT
        run_out = self._last + 1
        return (max(start, run_out), end) if now_ns >= run_out else (start, min(end, run_out))


def load_calendar(workspace: Workspace, config: Events, source: Path | None = None) -> EventCalendar:
    """The calendar in ``source``, by default ``data/macro_events.csv`` of the workspace.

    Never raises for a bad file: the calendar then blocks, and says why. A row that the table's own
    rules would set aside makes the whole calendar malformed, because it may hide an event.

    Raises
    ------
    ConfigError
        ``config/inputs.yaml`` is present but invalid.
    """
    from mia_fast.tables import read_table

    path = source if source is not None else workspace.data / "macro_events.csv"
    try:
        with path.open("rb"):
            pass
    except FileNotFoundError:
        return EventCalendar.unusable(denial(Code.CALENDAR_MISSING, path=path), config)
    except OSError as error:
        return EventCalendar.unusable(denial(Code.CALENDAR_UNREADABLE, path=path, error=error.strerror), config)
    try:
        table = read_table("events", path, workspace=workspace)
    except DataError as error:
        code = _REFUSALS.get(error.reason or "", Code.CALENDAR_MALFORMED)
        return EventCalendar.unusable(denial(code, where=error.where or path, error=error.what), config)
    except ConfigError:
        raise
    except Exception as error:  # whatever a reader raises, the calendar is not known
        return EventCalendar.unusable(denial(Code.CALENDAR_UNREADABLE, path=path, error=error), config)
    if table.quarantine.height:
        row = table.quarantine.row(0, named=True)
        fault = denial(
            Code.CALENDAR_MALFORMED,
            path=path,
            row=row["row"],
            column=row["column"],
            value=row["value"],
            rule=row["rule"],
        )
        return EventCalendar.unusable(fault, config)
    return EventCalendar.from_frame(table.frame, config)


class _WindowTable:
    """From an event's type to nanoseconds before and after."""

    def __init__(self, config: Events) -> None:
        self._default = config.default
        self._rules = [(_pattern(line.match), line) for line in config.windows]
        self._known: dict[str, tuple[int, int]] = {}

    def of(self, name: str) -> tuple[int, int]:
        found = self._known.get(name)
        if found is None:
            text = _plain(name)
            lines: list[Window] = [line for pattern, line in self._rules if pattern.search(text)] or [self._default]
            found = (
                round(max(line.before_minutes for line in lines) * NS_PER_MINUTE),
                round(max(line.after_minutes for line in lines) * NS_PER_MINUTE),
            )
            self._known[name] = found
        return found


def _plain(text: str) -> str:
    """Lower case, one blank between words: "FOMC_Statement" and "fomc statement" are one name."""
    return " ".join(re.findall(r"[^\W_]+|\*", text.casefold()))


def _pattern(texts: tuple[str, ...]) -> re.Pattern[str]:
    """Matches any of the texts at the start of a word ("PPI" must not match "Philippines")."""
    alternatives = []
    for text in texts:
        words = re.sub(r" ?\* ?", "*", _plain(text))
        alternatives.append(".*".join(re.escape(part) for part in words.split("*")))
    return re.compile(r"(?<!\w)(?:" + "|".join(alternatives) + ")")


def _label(cluster: Any) -> Any:
    """A KMeans label that came through a real column is a whole number again; anything else stays and is refused."""
    if type(cluster) is float:
        if math.isnan(cluster):
            return None
        return int(cluster) if cluster.is_integer() else cluster
    return cluster


def _check(event: Event, number: int) -> Denial | None:
    """The first impossible value of one event."""
    start, impact, name, cluster = event.start_ns, event.impact, event.type, event.cluster_id
    if type(start) is not int or not 0 < start < _NS_LIMIT - 2 * 1440 * NS_PER_MINUTE:
        return denial(Code.CALENDAR_MALFORMED, row=number, column="start_time", value=start)
    if not isinstance(name, str) or not name.strip():
        return denial(Code.CALENDAR_MALFORMED, row=number, column="type", value=name)
    if type(impact) is not float or not (math.isfinite(impact) and 0.0 <= impact <= 1.0):
        return denial(Code.CALENDAR_MALFORMED, row=number, column="impact", value=impact)
    if cluster is not None and type(cluster) is not int:
        return denial(Code.CALENDAR_MALFORMED, row=number, column="cluster_id", value=cluster)
    return None
