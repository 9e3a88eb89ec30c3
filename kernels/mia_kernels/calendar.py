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

    What holds for a day, or until the clocks change, is computed when it changes.
    """
    first, after, offset = 0, 0, 0  # the offset holds from first to after
    midnight, end = 0, 0  # local
    weekday = month_day = month = 0.0
    session, session_end = 0, 0
    for i in range(known_at.size):
        instant = known_at[i]
        if not first <= instant < after:
            segment = _segment(instant, zone)
            offset = zone[1 + zone[0] + segment]
            first = zone[1 + segment] if segment > 0 else -(2**63)
            after = zone[2 + segment] if segment + 1 < zone[0] else 2**63 - 1
        local = instant + offset
        if not midnight <= local < end:
            day = local // NS_PER_DAY
            midnight, end = day * NS_PER_DAY, (day + 1) * NS_PER_DAY
            weekday = float((day + 3) % 7)
            # Civil date from the day number (Hinnant, "chrono-compatible low-level date algorithms").
            shifted = day + 719468
            era = shifted // 146097
            of_era = shifted - era * 146097
            year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
            of_year = of_era - (365 * year + year // 4 - year // 100)
            place = (5 * of_year + 2) // 153
            month_day = float(of_year - (153 * place + 2) // 5 + 1)
            month = float(place + 3 if place < 10 else place - 9)
        # One nanosecond less: a bar that closes as the next session opens belongs to the one before.
        in_session = local + SESSION_SHIFT - 1
        if not session_end - NS_PER_DAY <= in_session < session_end:
            session = in_session // NS_PER_DAY
            session_end = (session + 1) * NS_PER_DAY
        columns[TIME, p + i] = instant / NS_PER_SECOND
        columns[SESSION, p + i] = float(session)
        columns[MINUTE, p + i] = float((local - midnight) // NS_PER_MINUTE)
        columns[WEEKDAY, p + i] = weekday
        columns[MONTH_DAY, p + i] = month_day
        columns[MONTH, p + i] = month
