"""What remembers sessions and changes: sums since the open, ranks and means over earlier days, spells of standstill.

Each keeps a few numbers of state and takes one row at a time, so a block boundary cannot be seen. A
value that is missing or not finite changes nothing that is remembered.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import inlined, kernel
from mia_kernels.opcodes import MINUTE, SESSION, TIME
from mia_kernels.session import opens

Floats = NDArray[np.float64]

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
def _clock(columns: Floats, row: int) -> float:
    """Seconds since midnight in New York at the bar's close."""
    seconds = columns[TIME, row]
    return float(60.0 * columns[MINUTE, row] + (seconds - np.floor(seconds / 60.0) * 60.0))


@kernel
def session_sum(
    columns: Floats, source: int, bar_minutes: float, p: int, n: int, state: Floats, at: int, out: Floats
) -> None:
    """Sum since the session's open, into ``out`` (n,); missing until the session's first value.

    A missing value leaves the sum as it stands. Before the first open that the series itself has seen,
    the sum is missing: one that began in mid-session is not the session's.
    """
    seen, valued, total = state[at], state[at + 1], state[at + 2]
    for i in range(n):
        row = p + i
        if opens(columns, row, bar_minutes):
            seen, valued, total = 1.0, 0.0, 0.0
        x = columns[source, row]
        if x - x == 0.0:
            valued = 1.0
            total += x
        known = seen != 0.0 and valued != 0.0 and total - total == 0.0
        out[i] = total if known else math.nan
    state[at], state[at + 1], state[at + 2] = seen, valued, total


@kernel
def session_rank(
    columns: Floats, source: int, sessions: int, p: int, n: int, state: Floats, at: int, out: Floats
) -> None:
    """Place of x between the extremes of earlier sessions' last values and itself, into ``out`` (n,); 0..1.

    (x - lowest) / (highest - lowest) over the last value of each of the ``sessions`` latest earlier
    sessions that have one, together with x; 0.5 where highest equals lowest. This is the "IV rank" of
    option desks, for any series.
    """
    ring = at + SESSION_RANK_STATE
    for i in range(n):
        row = p + i
        before = columns[SESSION, row - 1]
        changed = before == before and columns[SESSION, row] != before  # noqa: PLR0124 - not NaN
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
        x = columns[source, row]
        out[i] = math.nan
        if x - x == 0.0:
            state[at], state[at + 1] = x, 1.0
            if state[at + 2] >= sessions:
                lowest, highest = min(state[at + 3], x), max(state[at + 4], x)
                out[i] = (x - lowest) / (highest - lowest) if highest > lowest else 0.5


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
    for i in range(n):
        row = p + i
        clock = _clock(columns, row)
        if clock > opening and clock <= closing:
            # New York's midnight is between 3:00 and 6:00 UTC, on the days of changing clocks too.
            day = np.floor((columns[TIME, row] - clock) / DAY_SECONDS) + 1.0
            if day != state[at]:
                before = columns[TIME, row - 1]
                begun = before == before or clock == opening + 60.0 * bar_minutes  # noqa: PLR0124 - not NaN
                state[at], state[at + 1] = day, 1.0 if begun else 0.0
                state[at + 2], state[at + 3], state[at + 4] = 0.0, 0.0, 0.0  # count, mean, squares
            r = columns[source, row]
            if r - r == 0.0:
                state[at + 2] += 1.0
                d = r - state[at + 3]
                state[at + 3] += d / state[at + 2]
                state[at + 4] += d * (r - state[at + 3])
        variance = state[at + 4] / (state[at + 2] - 1.0)
        known = state[at + 1] != 0.0 and state[at + 2] >= 2.0 and variance - variance == 0.0
        out[i] = math.sqrt(variance) if known else math.nan


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
    for i in range(n):
        row = p + i
        slot = int(np.ceil(_clock(columns, row) / seconds)) - 1
        if slot < 0:
            slot = slots - 1  # midnight ends the day before
        session = columns[SESSION, row]
        if state[at] != slot + 1.0 or state[at + 1] != session:
            if state[at + 3] > 0.0:
                ended = int(state[at]) - 1
                mean = state[at + 2] / state[at + 3]
                usual = state[values + ended]
                joined = usual + alpha * (mean - usual) if state[have + ended] != 0.0 else mean
                if joined - joined == 0.0:  # a mean beyond the range of numbers must not stay for ever
                    state[values + ended], state[have + ended] = joined, 1.0
            state[at], state[at + 1], state[at + 2], state[at + 3] = slot + 1.0, session, 0.0, 0.0
        x = columns[source, row]
        if x - x == 0.0:
            state[at + 2] += x
            state[at + 3] += 1.0
        out[i] = state[values + slot] if state[have + slot] != 0.0 else math.nan


@kernel
def unchanged_for(columns: Floats, source: int, p: int, n: int, state: Floats, at: int, out: Floats) -> None:
    """Minutes, by the bars' closes, since x took the value it has, into ``out`` (n,); 0 at the bar of a change.

    The first value counts as a change. A missing value neither changes x nor stops the clock.
    """
    for i in range(n):
        row = p + i
        x = columns[source, row]
        out[i] = math.nan
        if x - x == 0.0:
            if state[at] == 0.0 or x != state[at + 1]:
                state[at], state[at + 1], state[at + 2] = 1.0, x, columns[TIME, row]
            out[i] = (columns[TIME, row] - state[at + 2]) / 60.0


@kernel
def before_change(columns: Floats, source: int, key: int, p: int, n: int, state: Floats, at: int, out: Floats) -> None:
    """The last value that x had while ``key`` had its previous value, into ``out`` (n,).

    Missing until the key has changed once, while it is missing, and where x had no value under the
    previous key. A row without a key changes nothing.
    """
    for i in range(n):
        row = p + i
        x, k = columns[source, row], columns[key, row]
        out[i] = math.nan
        if k - k == 0.0:
            if state[at] == 0.0:
                state[at], state[at + 1], state[at + 2], state[at + 3] = 1.0, k, math.nan, math.nan
            elif k != state[at + 1]:
                state[at + 1], state[at + 3], state[at + 2] = k, state[at + 2], math.nan
            if x - x == 0.0:
                state[at + 2] = x
            out[i] = state[at + 3]
