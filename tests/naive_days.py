"""Slow twins of the kernels that remember days and changes or look back over minutes, from their definitions.

As in ``naive.py``: loops and whole windows, nothing imported from a kernel, NaN for what is missing. ``known_at`` are
the bars' closes, int64 ns UTC.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable

import naive
import numpy as np
from naive import NAN, PROFILE, Floats
from numpy.typing import NDArray

Instants = NDArray[np.int64]
MINUTE = 60 * 10**9


# --- days -------------------------------------------------------------------------------------------


def session_sum(twin: naive.Twin, x: Floats) -> Floats:
    """Sum since the open; missing values are left out, and before the first one there is no sum."""
    begins, seen = naive.sessions(twin)
    out = np.full(len(x), NAN)
    values: list[float] = []
    for i in range(len(x)):
        if begins[i]:
            values = []
        if not math.isnan(x[i]):
            values.append(x[i])
        if seen[i] and values:
            out[i] = math.fsum(values)
    return out


def session_rank(known_at: Instants, x: Floats, sessions: int) -> Floats:
    """Place of x among the last values of the latest ``sessions`` earlier sessions that have one, and itself."""
    dates = [naive.trade_date(local) for local in naive.wall_clock(known_at)]
    out = np.full(len(x), NAN)
    last: dict[dt.date, float] = {}  # of each session so far, in order
    for i, date in enumerate(dates):
        if math.isnan(x[i]):
            continue
        earlier = [value for day, value in last.items() if day < date][-sessions:]
        last[date] = x[i]
        if len(earlier) == sessions:
            low, high = min([*earlier, x[i]]), max([*earlier, x[i]])
            out[i] = 0.5 if high == low else (x[i] - low) / (high - low)
    return out


def clock_deviation(
    known_at: Instants, returns: Floats, opening: int, closing: int, bar_minutes: float = 1.0
) -> Floats:
    """Sample deviation of the returns that came in (opening, closing] of the latest New York day with such bars."""
    out = np.full(len(returns), NAN)
    groups: dict[dt.date, list[float]] = {}
    passed_over: set[dt.date] = set()
    for i, local in enumerate(naive.wall_clock(known_at)):
        minutes = local.hour * 60 + local.minute + local.second / 60
        if opening < minutes <= closing:
            if local.date() not in groups and i == 0 and minutes != opening + bar_minutes:
                passed_over.add(local.date())
            group = groups.setdefault(local.date(), [])
            if not math.isnan(returns[i]):
                group.append(returns[i])
        if groups:
            day, group = list(groups.items())[-1]
            if day not in passed_over and len(group) >= 2:
                out[i] = float(naive.deviation(np.array(group), 1))
    return out


def seasonal_mean(known_at: Instants, x: Floats, slot: int, span: int) -> Floats:
    """Exponential mean, over earlier sessions, of the mean of x in the slot of the day that the bar closes in."""
    where = []
    for local in naive.wall_clock(known_at):
        # A slot has its end and not its beginning: what closes at midnight belongs to the day before.
        before = local.replace(tzinfo=None) - dt.timedelta(microseconds=1)
        where.append((naive.trade_date(local), (before.hour * 60 + before.minute) // slot))
    values: dict[tuple[dt.date, int], list[float]] = {}
    for place, value in zip(where, x, strict=True):
        if not math.isnan(value):
            values.setdefault(place, []).append(value)
    means = {place: math.fsum(part) / len(part) for place, part in values.items()}
    out = np.full(len(x), NAN)
    for i, (date, number) in enumerate(where):
        usual = NAN
        for (day, slot_of_day), mean in means.items():  # in order of time
            if slot_of_day == number and day < date:
                usual = mean if math.isnan(usual) else usual + 2 / (span + 1) * (mean - usual)
        out[i] = usual
    return out


# --- changes ----------------------------------------------------------------------------------------


def unchanged_for(known_at: Instants, x: Floats) -> Floats:
    """Minutes since the first of the equal values that end at this bar, missing ones apart."""
    out = np.full(len(x), NAN)
    for i in range(len(x)):
        if math.isnan(x[i]):
            continue
        first = i
        for j in range(i - 1, -1, -1):
            if math.isnan(x[j]):
                continue
            if x[j] != x[i]:
                break
            first = j
        out[i] = (known_at[i] - known_at[first]) / MINUTE
    return out


def before_change(x: Floats, key: Floats) -> Floats:
    """The last x of the run of equal keys before the present run, rows without a key apart."""
    out = np.full(len(x), NAN)
    runs: list[tuple[float, float]] = []  # key, its last value
    for i in range(len(x)):
        if math.isnan(key[i]):
            continue
        if not runs or runs[-1][0] != key[i]:
            runs.append((key[i], NAN))
        if not math.isnan(x[i]):
            runs[-1] = (key[i], x[i])
        if len(runs) > 1:
            out[i] = runs[-2][1]
    return out


# --- the last minutes -------------------------------------------------------------------------------


def over_minutes(
    known_at: Instants, minutes: int, function: Callable[[list[int]], float], bar_minutes: float = 1.0
) -> Floats:
    """``function`` of the rows that close in (t - minutes, t].

    Missing while the series has fewer rows than a window without gaps, and where the window holds 128 or more.
    """
    out = np.full(len(known_at), NAN)
    fewest = round(minutes / bar_minutes)
    times = known_at.tolist()
    for i, t in enumerate(times):
        rows = [i]
        while rows[0] > 0 and times[rows[0] - 1] > t - minutes * MINUTE and len(rows) < 128:
            rows.insert(0, rows[0] - 1)
        if i + 1 >= fewest and len(rows) < 128:
            out[i] = function(rows)
    return out


def time_window(known_at: Instants, x: Floats, minutes: int, output: str, bar_minutes: float = 1.0) -> Floats:
    """Sum or mean of x."""

    def of(rows: list[int]) -> float:
        if np.isnan(x[rows]).any():
            return NAN
        return math.fsum(x[rows]) / (len(rows) if output == "mean" else 1)

    return over_minutes(known_at, minutes, of, bar_minutes)


def profile_window(
    known_at: Instants,
    high: Floats,
    low: Floats,
    volume: Floats,
    minutes: int,
    tick_size: float = 0.25,
    bar_minutes: float = 1.0,
) -> dict[str, Floats]:
    """Volume profile of the window's bars, and ``near``: where rounding decides how far the value area goes."""
    out = {name: np.full(len(high), NAN) for name in (*PROFILE, "near")}

    def of(rows: list[int]) -> float:
        at: dict[int, float] = {}
        if np.isnan([high[rows], low[rows], volume[rows]]).any() or (high[rows] < low[rows]).any():
            return NAN
        ticks = [(round(low[j] / tick_size), round(high[j] / tick_size)) for j in rows]
        if max(top for _, top in ticks) - min(bottom for bottom, _ in ticks) >= 2048:
            return NAN
        for j, (bottom, top) in zip(rows, ticks, strict=True):
            for tick in range(bottom, top + 1) if volume[j] > 0 else ():
                at[tick] = at.get(tick, 0.0) + volume[j] / (top - bottom + 1)
        if at:
            *found, out["near"][rows[-1]] = naive.value_area(at)
            for name, tick in zip(PROFILE, found, strict=False):
                out[name][rows[-1]] = tick * tick_size
                out[f"volume_at_{name}"][rows[-1]] = at.get(tick, 0.0)
        return NAN

    over_minutes(known_at, minutes, of, bar_minutes)
    return out


def fitted(times: Floats, values: Floats) -> float:
    """Least-squares slope: covariance over variance, from the first value on in long doubles."""
    t, x = np.asarray(times, dtype=np.longdouble), np.asarray(values, dtype=np.longdouble)
    t, x = t - t.mean(), x - x[0]
    return float((t * x).sum() / (t * t).sum())


def slope(x: Floats, period: int) -> Floats:
    """Least-squares slope per bar of the last ``period`` values."""
    out = np.full(len(x), NAN)
    for i in range(period - 1, len(x)):
        out[i] = fitted(np.arange(period), x[i - period + 1 : i + 1])
    return out


def time_slope(known_at: Instants, x: Floats, minutes: int, bar_minutes: float = 1.0) -> Floats:
    """Least-squares slope per minute over three bars or more."""

    def of(rows: list[int]) -> float:
        if len(rows) < 3:
            return NAN
        return fitted((known_at[rows] - known_at[rows[0]]) / MINUTE, x[rows])

    return over_minutes(known_at, minutes, of, bar_minutes)
