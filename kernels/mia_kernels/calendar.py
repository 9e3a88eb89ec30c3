"""New York wall clock and Globex trade dates by integer arithmetic."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import kernel
from mia_kernels.opcodes import MINUTE, MONTH, MONTH_DAY, SESSION, TIME, WEEKDAY
from mia_kernels.vector import quotient

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

NS_PER_SECOND = 1_000_000_000
NS_PER_MINUTE = 60 * NS_PER_SECOND
NS_PER_DAY = 86_400 * NS_PER_SECOND
SESSION_SHIFT = 6 * 3600 * NS_PER_SECOND
"""The Globex session of trade date D opens at 18:00 New York on the evening before."""


@kernel
def _segment(instant: int, zone: Integers) -> int:
    """Which offset holds at an instant. ``zone`` = (count, transitions[count], offsets[count]), ascending."""
    low, high = 0, zone[0] - 1
    while low < high:
        middle = (low + high + 1) // 2
        if zone[1 + middle] <= instant:
            low = middle
        else:
            high = middle - 1
    return low


@kernel
def calendar_columns(known_at: Integers, zone: Integers, columns: Floats, p: int) -> None:
    """Fill the time columns from row p on. ``known_at`` (n,): the bars' closes, int64 ns UTC.

    What holds for a day, a session, or until the clocks change, is computed once for the rows it holds for.
    """
    count = known_at.size
    i = 0
    while i < count:
        instant = known_at[i]
        segment = _segment(instant, zone)
        offset = zone[1 + zone[0] + segment]
        until = zone[2 + segment] if segment + 1 < zone[0] else 2**63 - 1
        local = instant + offset
        day = local // NS_PER_DAY
        midnight = day * NS_PER_DAY - offset
        # Civil date from the day number (Hinnant, "chrono-compatible low-level date algorithms").
        shifted = day + 719468
        era = shifted // 146097
        of_era = shifted - era * 146097
        year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
        of_year = of_era - (365 * year + year // 4 - year // 100)
        place = (5 * of_year + 2) // 153
        # One nanosecond less: a bar that closes as the next session opens belongs to the one before.
        session = (local + SESSION_SHIFT - 1) // NS_PER_DAY
        until = min(until, midnight + NS_PER_DAY, (session + 1) * NS_PER_DAY - SESSION_SHIFT + 1 - offset)
        end = i + 1
        while end < count and instant <= known_at[end] < until:
            end += 1
        instants = known_at[i:end]
        time, minute = columns[TIME, p + i : p + end], columns[MINUTE, p + i : p + end]
        for j in range(end - i):
            time[j] = quotient(float(instants[j]), float(NS_PER_SECOND), 1.0 / NS_PER_SECOND)
        for j in range(end - i):
            minute[j] = np.floor(quotient(float(instants[j] - midnight), float(NS_PER_MINUTE), 1.0 / NS_PER_MINUTE))
        columns[SESSION, p + i : p + end] = float(session)
        columns[WEEKDAY, p + i : p + end] = float((day + 3) % 7)
        columns[MONTH_DAY, p + i : p + end] = float(of_year - (153 * place + 2) // 5 + 1)
        columns[MONTH, p + i : p + end] = float(place + 3 if place < 10 else place - 9)
        i = end
