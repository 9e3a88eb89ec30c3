"""Slow twins of the inputs as of the bar: each looks at everything known at one instant and computes from scratch."""

from __future__ import annotations

import datetime as dt
import itertools
import math
from collections.abc import Sequence
from zoneinfo import ZoneInfo

import numpy as np

NAN = math.nan
DAY = 86_400 * 10**9
MINUTE = 60 * 10**9

Close = tuple[dt.date, int, float]
"""Date, instant at which it was known (ns UTC), value."""


def close_at(day: dt.date, hour: int, minute: int, zone: str = "America/New_York") -> int:
    """A wall clock as ns UTC; hour 24 is the end of the day."""
    if hour == 24:
        day, hour = day + dt.timedelta(days=1), 0
    return int(dt.datetime(day.year, day.month, day.day, hour, minute, tzinfo=ZoneInfo(zone)).timestamp()) * 10**9


def _fresh(closes: Sequence[Close], now: int) -> list[Close]:
    known = [close for close in closes if close[1] <= now]
    return known if known and now - known[-1][1] <= 5 * DAY else []


def daily(statistic: str, closes: Sequence[Close], now: int, period: int = 0) -> float:
    """One statistic of one series."""
    known = _fresh(closes, now)
    values = [value for _, _, value in known]
    if statistic == "last":
        return values[-1] if values else NAN
    if statistic == "known_at":
        return known[-1][1] / 1e9 if known else NAN
    if statistic == "change":
        return values[-1] - values[-2] if len(values) > 1 else NAN
    if statistic == "log_return":
        if len(values) <= period or min(values[-1], values[-1 - period]) <= 0:
            return NAN
        return math.log(values[-1]) - math.log(values[-1 - period])
    last = values[-period:]
    if len(last) < period:
        return NAN
    mean = math.fsum(last) / period
    return mean if statistic == "mean" else math.sqrt(math.fsum((x - mean) ** 2 for x in last) / period)


def correlation(
    a: Sequence[Close], b: Sequence[Close], now: int, period: int, stress: Sequence[Close] | None = None
) -> float:
    """Of log returns over the last common dates; with ``stress``, over those on which it is above its mean."""
    series = [{date: (at, value) for date, at, value in closes} for closes in ([a, b] + ([stress] if stress else []))]
    dates = sorted(set.intersection(*(set(one) for one in series)))
    known = [date for date in dates if all(one[date][0] <= now for one in series)]
    if len(known) <= period or now - max(one[known[-1]][0] for one in series) > 5 * DAY:
        return NAN
    known = known[-period - 1 :]
    if any(one[date][1] <= 0 for one in series[:2] for date in known):
        return NAN
    pairs = [
        tuple(math.log(one[day][1] / one[before][1]) for one in series[:2]) for before, day in itertools.pairwise(known)
    ]
    if stress:
        levels = [series[2][date][1] for date in known[1:]]
        mean = math.fsum(levels) / period
        pairs = [pair for pair, level in zip(pairs, levels, strict=True) if level > mean]
        if len(pairs) < 10:
            return NAN
    return float(np.corrcoef(np.array(pairs).T)[0, 1])


def event(statistic: str, events: Sequence[tuple[int, float]], now: int, minutes: int, interval: int) -> float:
    """One statistic of a calendar of (start ns, impact)."""
    starts = [start for start, _ in events]
    if not min(starts) <= now <= max(starts):
        return NAN
    before = [(start, impact) for start, impact in events if start <= now]
    after = [(start, impact) for start, impact in events if start > now]
    if "high" in statistic:
        before, after = ([(s, i) for s, i in part if i > 0.7] for part in (before, after))
    if statistic in ("next_at", "next_high_at"):
        return min(start for start, _ in after) / 1e9 if after else NAN
    if statistic in ("previous_at", "previous_high_at"):
        return max(start for start, _ in before) / 1e9 if before else NAN
    if statistic == "next_impact":
        return max(impact for start, impact in after if start == min(after)[0]) if after else NAN
    if statistic == "previous_impact":
        return max(impact for start, impact in before if start == max(before)[0])
    if statistic == "started_in_bar":
        return float(any(now - interval <= start < now for start in starts))
    span = minutes * MINUTE
    if statistic.endswith("_last"):
        if now - span < min(starts):
            return NAN
        inside = [impact for start, impact in events if now - span < start <= now]
    else:
        if now + span > max(starts):
            return NAN
        inside = [impact for start, impact in events if now < start <= now + span]
    return float(len(inside)) if statistic.startswith("count") else math.fsum(inside)
