"""New York wall clock and Globex trade dates by integer arithmetic."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import kernel
from mia_kernels.opcodes import MINUTE, MONTH, MONTH_DAY, SESSION, TIME, WEEKDAY

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

NS_PER_SECOND = 1_000_000_000
NS_PER_MINUTE = 60 * NS_PER_SECOND
NS_PER_DAY = 86_400 * NS_PER_SECOND
SESSION_SHIFT = 6 * 3600 * NS_PER_SECOND
"""The Globex session of trade date D opens at 18:00 New York on the evening before."""


@kernel
def _offset(instant: int, zone: Integers) -> int:
    """UTC offset in nanoseconds. ``zone`` = (count, transitions[count], offsets[count]), ascending."""
    count = zone[0]
    low, high = 0, count - 1
    while low < high:
        middle = (low + high + 1) // 2
        if zone[1 + middle] <= instant:
            low = middle
        else:
            high = middle - 1
    return int(zone[1 + count + low])


@kernel
def calendar_columns(known_at: Integers, zone: Integers, columns: Floats, p: int) -> None:
    """Fill the time columns from row p on. ``known_at`` (n,): the bars' closes, int64 ns UTC."""
    for i in range(known_at.size):
        instant = known_at[i]
        local = instant + _offset(instant, zone)
        day = local // NS_PER_DAY
        columns[TIME, p + i] = instant / NS_PER_SECOND
        # One nanosecond less: a bar that closes as the next session opens belongs to the one before.
        columns[SESSION, p + i] = float((local + SESSION_SHIFT - 1) // NS_PER_DAY)
        columns[MINUTE, p + i] = float((local - day * NS_PER_DAY) // NS_PER_MINUTE)
        columns[WEEKDAY, p + i] = float((day + 3) % 7)
        # Civil date from the day number (Hinnant, "chrono-compatible low-level date algorithms").
        shifted = day + 719468
        era = shifted // 146097
        of_era = shifted - era * 146097
        year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
        of_year = of_era - (365 * year + year // 4 - year // 100)
        month = (5 * of_year + 2) // 153
        columns[MONTH_DAY, p + i] = float(of_year - (153 * month + 2) // 5 + 1)
        columns[MONTH, p + i] = float(month + 3 if month < 10 else month - 9)
