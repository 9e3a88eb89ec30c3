"""What remembers sessions and changes: sums since the open, ranks and means over earlier days, spells of standstill.

Each keeps a few numbers of state and takes one row at a time, so a block boundary cannot be seen. A
value that is missing or not finite changes nothing that is remembered.

What depends on rows alone (the clock) is worked out for the whole block first, what stands until something
happens (a session's open, a slot's end) when it happens; in between a loop does the least. The kernels that take
addresses are for live calls: an array costs seven arguments where a call is not inlined.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import inlined, kernel
from mia_kernels.memory import address_of, floats_at, get, integers_at, view
from mia_kernels.opcodes import MINUTE, SESSION, STRIDE, TIME
from mia_kernels.session import opens
from mia_kernels.vector import quotient

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SESSION_SUM_STATE = 3
CLOCK_DEVIATION_STATE = 5
UNCHANGED_FOR_STATE = 3
BEFORE_CHANGE_STATE = 4
SESSION_RANK_STATE = 5
"""... and one number more for each session."""
SEASONAL_MEAN_STATE = 4
"""... and two numbers more for each slot of the day."""
DAY_SECONDS = 86_400.0


@inlined
def _clock(time: float, minute: float) -> float:
    """Seconds since midnight in New York at the bar's close."""
    return float(60.0 * minute + (time - np.floor(quotient(time, 60.0, 1.0 / 60.0)) * 60.0))


@kernel
def session_sum(
    columns: Floats, source: int, bar_minutes: float, p: int, n: int, state: Floats, at: int, out: Floats
) -> None:
    """Sum since the session's open, into ``out`` (n,); missing until the session's first value.

    A missing value leaves the sum as it stands. Before the first open that the series itself has seen,
    the sum is missing: one that began in mid-session is not the session's.
    """
    base = address_of(columns) + 8 * p
    x, now, before = view(base, source, 0, n), view(base, SESSION, 0, n), view(base, SESSION, 1, n)
    seen, valued, total = state[at], state[at + 1], state[at + 2]
    for i in range(n):
        if now[i] != before[i] and opens(columns, p + i, bar_minutes):
            seen, valued, total = 1.0, 0.0, 0.0
        if x[i] - x[i] == 0.0:
            valued = 1.0
            total += x[i]
        known = seen != 0.0 and valued != 0.0 and total - total == 0.0
        out[i] = total if known else math.nan
    state[at], state[at + 1], state[at + 2] = seen, valued, total


@inlined
def _session_end(sessions: Floats, i: int, n: int) -> int:
    """The first row after ``i`` of another session, up to n; a later bar's session is never an earlier one."""
    end = n
    if sessions[n - 1] != sessions[i]:
        end = i + 1
        while sessions[end] == sessions[i]:
            end += 1
    return end


@kernel
def session_rank(
    columns: Floats, source: int, sessions: int, p: int, n: int, state: Floats, at: int, out: Floats
) -> None:
    """Place of x between the extremes of earlier sessions' last values and itself, into ``out`` (n,); 0..1.

    (x - lowest) / (highest - lowest) over the last value of each of the ``sessions`` latest earlier
    sessions that have one, together with x; 0.5 where highest equals lowest. This is the "IV rank" of
    option desks, for any series.
    """
    base = address_of(columns) + 8 * p
    x, now, last = view(base, source, 0, n), view(base, SESSION, 0, n), view(base, SESSION, 1, n)
    ring = at + SESSION_RANK_STATE
    i = 0
    while i < n:
        changed = last[i] == last[i] and now[i] != last[i]  # not NaN
        if changed and state[at + 1] != 0.0:
            kept = int(state[at + 2])
            state[ring + kept % sessions] = state[at]
            state[at + 1] = 0.0
            state[at + 2] += 1.0
            lowest, highest = state[at], state[at]
            for j in range(min(kept + 1, sessions)):
                lowest = min(lowest, state[ring + j])
                highest = max(highest, state[ring + j])
            state[at + 3], state[at + 4] = lowest, highest
        enough, bottom, top = state[at + 2] >= sessions, state[at + 3], state[at + 4]
        end = _session_end(now, i, n)
        for j in range(i, end):
            lowest, highest = min(bottom, x[j]), max(top, x[j])
            share = (x[j] - lowest) / (highest - lowest)
            share = share if highest > lowest else 0.5
            out[j] = share if enough & (x[j] - x[j] == 0.0) else math.nan
        for j in range(end - 1, i - 1, -1):
            if x[j] - x[j] == 0.0:
                state[at], state[at + 1] = x[j], 1.0
                break
        i = end


@kernel
def clock_deviation(
    columns: Floats,
    source: int,
    opening: float,
    closing: float,
    bar_minutes: float,
    p: int,
    n: int,
    state: Floats,
    at: int,
    out: Floats,
) -> None:
    """Sample standard deviation of the returns of the bars that close in a daily window of the wall clock.

    The window is (opening, closing] in seconds since midnight in New York. While it is open, ``out`` (n,)
    is the deviation of what came in so far, from two returns on; afterwards that of the whole window is
    held until the next one opens. A window that was open when the series began is passed over. Updated
    by Welford's method (1962), anew every day.
    """
    _clock_deviation(
        address_of(columns) + 8 * p,
        source,
        opening,
        closing,
        bar_minutes,
        n,
        address_of(state) + 8 * at,
        address_of(out),
    )


@kernel
def _clock_deviation(
    base: int, source: int, opening: float, closing: float, bar_minutes: float, n: int, state: int, result: int
) -> None:
    x, time, minute = view(base, source, 0, n), view(base, TIME, 0, n), view(base, MINUTE, 0, n)
    kept, out = floats_at(state, CLOCK_DEVIATION_STATE), floats_at(result, n)
    today, whole, count, mean, squares = kept[0], kept[1], kept[2], kept[3], kept[4]
    value = _sample_deviation(whole, count, squares)
    if n > 1 and _closed_throughout(opening, closing, base, n):  # as for most of the day
        for i in range(n):
            out[i] = value
        return
    for i in range(n):
        clock = _clock(time[i], minute[i])
        if clock > opening and clock <= closing:
            # New York's midnight is between 3:00 and 6:00 UTC, on the days of changing clocks too.
            day = np.floor((time[i] - clock) / DAY_SECONDS) + 1.0
            if day != today:
                before = get(base + 8 * (STRIDE * TIME + i - 1))
                begun = before == before or clock == opening + 60.0 * bar_minutes  # noqa: PLR0124 - not NaN
                today, whole = day, 1.0 if begun else 0.0
                count, mean, squares = 0.0, 0.0, 0.0
            if x[i] - x[i] == 0.0:
                count += 1.0
                d = x[i] - mean
                mean += d / count
                squares += d * (x[i] - mean)
            value = _sample_deviation(whole, count, squares)
        out[i] = value
    kept[0], kept[1], kept[2], kept[3], kept[4] = today, whole, count, mean, squares


@kernel
def _closed_throughout(opening: float, closing: float, base: int, n: int) -> bool:
    time, minute = view(base, TIME, 0, n), view(base, MINUTE, 0, n)
    inside = 0
    for i in range(n):
        clock = _clock(time[i], minute[i])
        inside += 1 if (clock > opening) & (clock <= closing) else 0
    return inside == 0


@inlined
def _sample_deviation(whole: float, count: float, squares: float) -> float:
    variance = squares / (count - 1.0)
    known = whole != 0.0 and count >= 2.0 and variance - variance == 0.0
    return math.sqrt(variance) if known else math.nan


@kernel
def seasonal_mean(
    columns: Floats, source: int, slots: int, alpha: float, p: int, n: int, state: Floats, at: int, out: Floats
) -> None:
    """What is usual at this time of day: the exponential mean over earlier sessions, slot by slot.

    The New York day has ``slots`` of equal length, each without its first and with its last instant.
    When a slot has ended, the mean of its values joins the slot's exponential mean (weight ``alpha``,
    the first seeds it); ``out`` (n,) is that mean as the slot in progress found it.
    """
    seconds = DAY_SECONDS / slots
    values, have = at + SEASONAL_MEAN_STATE, at + SEASONAL_MEAN_STATE + slots
    base = address_of(columns) + 8 * p
    x, time, minute = view(base, source, 0, n), view(base, TIME, 0, n), view(base, MINUTE, 0, n)
    sessions = view(base, SESSION, 0, n)
    for i in range(n):
        slot = np.ceil(_clock(time[i], minute[i]) / seconds)
        out[i] = slot if slot > 0.0 else float(slots)  # midnight ends the day before; from 1 on, until the result comes
    current, session, total, count = state[at], state[at + 1], state[at + 2], state[at + 3]
    usual = _usual(state, values, have, current)
    for i in range(n):
        if current != out[i] or session != sessions[i]:
            if count > 0.0:
                ended = int(current) - 1
                mean = total / count
                before = state[values + ended]
                joined = before + alpha * (mean - before) if state[have + ended] != 0.0 else mean
                if joined - joined == 0.0:  # a mean beyond the range of numbers must not stay for ever
                    state[values + ended], state[have + ended] = joined, 1.0
            current, session, total, count = out[i], sessions[i], 0.0, 0.0
            usual = _usual(state, values, have, current)
        valid = x[i] - x[i] == 0.0
        total += x[i] if valid else 0.0  # never -0.0, so nothing is added
        count += 1.0 if valid else 0.0
        out[i] = usual
    state[at], state[at + 1], state[at + 2], state[at + 3] = current, session, total, count


@inlined
def _usual(state: Floats, values: int, have: int, slot: float) -> float:
    k = int(slot) - 1
    return state[values + k] if slot > 0.0 and state[have + k] != 0.0 else math.nan


@kernel
def unchanged_for(columns: Floats, source: int, p: int, n: int, state: Floats, at: int, out: Floats) -> None:
    """Minutes, by the bars' closes, since x took the value it has, into ``out`` (n,); 0 at the bar of a change.

    The first value counts as a change. A missing value neither changes x nor stops the clock.
    """
    base = address_of(columns) + 8 * p
    _unchanged_for(base + 8 * STRIDE * source, base + 8 * STRIDE * TIME, n, address_of(state) + 8 * at, address_of(out))


@kernel
def _unchanged_for(source: int, times: int, n: int, state: int, result: int) -> None:
    x, time, kept, out = (
        floats_at(source, n),
        floats_at(times, n),
        floats_at(state, UNCHANGED_FOR_STATE),
        floats_at(result, n),
    )
    seen, value, since = kept[0], kept[1], kept[2]
    steady = n > 1 and _is_one_value(source, n)
    for i in range(1 if steady else n):
        out[i] = math.nan
        if x[i] - x[i] == 0.0:
            if seen == 0.0 or x[i] != value:
                seen, value, since = 1.0, x[i], time[i]
            out[i] = (time[i] - since) / 60.0
    if steady:
        start = since if x[0] - x[0] == 0.0 else math.nan
        for i in range(1, n):
            out[i] = (time[i] - start) / 60.0
    kept[0], kept[1], kept[2] = seen, value, since


@kernel
def _is_one_value(at: int, n: int) -> bool:
    """Whether all n numbers are the same to the bit, as a slow input's mostly are, known or missing."""
    x = integers_at(at, n)
    others = 0
    for i in range(n):
        others += 0 if x[i] == x[0] else 1
    return others == 0


@kernel
def before_change(columns: Floats, source: int, key: int, p: int, n: int, state: Floats, at: int, out: Floats) -> None:
    """The last value that x had while ``key`` had its previous value, into ``out`` (n,).

    Missing until the key has changed once, while it is missing, and where x had no value under the
    previous key. A row without a key changes nothing.
    """
    base = address_of(columns) + 8 * p
    _before_change(base + 8 * STRIDE * source, base + 8 * STRIDE * key, n, address_of(state) + 8 * at, address_of(out))


@kernel
def _before_change(source: int, key: int, n: int, state: int, result: int) -> None:
    x, keys, kept, out = (
        floats_at(source, n),
        floats_at(key, n),
        floats_at(state, BEFORE_CHANGE_STATE),
        floats_at(result, n),
    )
    seen, held, last, previous = kept[0], kept[1], kept[2], kept[3]
    steady = n > 1 and _is_one_value(key, n)
    for i in range(1 if steady else n):
        k = keys[i]
        out[i] = math.nan
        if k - k == 0.0:
            if seen == 0.0:
                seen, held, last, previous = 1.0, k, math.nan, math.nan
            elif k != held:
                held, previous, last = k, last, math.nan
            if x[i] - x[i] == 0.0:
                last = x[i]
            out[i] = previous
    if steady:
        for i in range(1, n):
            out[i] = out[0]
        i = n - 1 if keys[0] - keys[0] == 0.0 else 0
        while i > 0 and x[i] - x[i] != 0.0:
            i -= 1
        if i > 0:
            last = x[i]
    kept[0], kept[1], kept[2], kept[3] = seen, held, last, previous
