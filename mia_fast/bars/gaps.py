"""Gaps in a series of time bars, each with its cause. A missing bar is reported and never made up."""

from __future__ import annotations

import bisect
import itertools

import numpy as np
import polars as pl

from mia_fast.sessions import Sessions

_LONGEST_PAUSE = 86_400_000_000_000
_INSTANT = pl.Datetime("ns", "UTC")
SCHEMA: dict[str, pl.DataType] = {
    "start": _INSTANT,
    "end": _INSTANT,
    "bars": pl.Int64(),
    "cause": pl.String(),
    "reason": pl.String(),
}


def gap_events(frame: pl.DataFrame, interval_ns: int, sessions: Sessions) -> pl.DataFrame:
    """Every stretch without bars between the first and the last one.

    Parameters
    ----------
    frame
        Time bars of one symbol with ``timestamp`` (start of the bar).
    interval_ns
        Length of a bar.
    sessions
        When the product trades.

    Returns
    -------
    polars.DataFrame
        ``start``, ``end`` (half-open), ``bars`` that are not there, ``cause``: ``closed`` between sessions, ``halt``
        (the daily or a configured one), ``limit`` (the price stood at its limit), ``no_trades`` (the market was open:
        nobody traded, or the feed lost it), ``session_missing`` (a whole session without a bar); and the ``reason``.
        A gap with several causes is several events; ``bars`` counts grid intervals that lie, or begin, in the event's
        stretch.

    Raises
    ------
    ConfigError
        The bars reach beyond the session table.
    """
    starts = frame["timestamp"].dt.epoch("ns").to_numpy()
    if starts.size == 0:
        return pl.DataFrame(schema=SCHEMA)
    sessions.covers(int(starts[0]), int(starts[-1]) + 1)
    lines: list[tuple[int, int, int, str, str]] = []
    for at in np.flatnonzero(np.diff(starts) > interval_ns).tolist():
        _explain(int(starts[at]) + interval_ns, int(starts[at + 1]), interval_ns, sessions, lines)
    numbers = {"start": pl.Int64(), "end": pl.Int64()}
    found = pl.DataFrame(lines, schema={**SCHEMA, **numbers}, orient="row")
    return found.with_columns(pl.col("start", "end").cast(_INSTANT))


def _explain(
    start: int, end: int, interval: int, sessions: Sessions, lines: list[tuple[int, int, int, str, str]]
) -> None:
    """Cut [start, end) at opens, closes and pauses, and say what each part was."""
    edges = {start, end}
    place = max(bisect.bisect_right(sessions.rows, start, key=lambda row: row.open) - 1, 0)
    while place < len(sessions.rows) and sessions.rows[place].open < end:
        row = sessions.rows[place]
        edges |= {edge for edge in (row.open, row.close) if start < edge < end}
        place += 1
    # Pauses overlap (a halt inside a night at the limit), so their ends do not ascend; none lasts a day.
    at = bisect.bisect_left(sessions.pauses, start - _LONGEST_PAUSE, key=lambda pause: pause.start)
    pauses = []
    while at < len(sessions.pauses) and sessions.pauses[at].start < end:
        if sessions.pauses[at].end > start:
            pauses.append(sessions.pauses[at])
        at += 1
    for pause in pauses:
        edges |= {edge for edge in (pause.start, pause.end) if start < edge < end}
    ordered = sorted(edges)
    for a, b in itertools.pairwise(ordered):
        session = sessions.at(a)
        here = next((p for p in sorted(pauses, key=lambda p: p.kind) if p.start <= a < p.end), None)
        if session is None:
            lines.append((a, b, 0, "closed", "between sessions"))
            continue
        first = session.open + -(-(a - session.open) // interval) * interval
        count = max(0, -(-(b - first) // interval))
        if here is not None:
            lines.append((a, b, count, here.kind, here.reason))
        elif a == session.open and b == session.close:
            lines.append((a, b, count, "session_missing", str(session.trade_date)))
        elif count:
            lines.append((a, b, count, "no_trades", "the market was open"))
