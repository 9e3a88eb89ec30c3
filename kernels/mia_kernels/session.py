"""What is counted from the session's open: average price, volume profile, daily variance.

Each starts again when the trade date changes. Before the first open that the series itself has
seen, the values are missing: a profile that began in mid-session is not the session's profile.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import inlined, kernel
from mia_kernels.formula import finite
from mia_kernels.memory import address_of, view
from mia_kernels.opcodes import HISTORY, MINUTE, SESSION, TIME

Floats = NDArray[np.float64]

OPEN_MINUTE = 18 * 60
"""The Globex open, minutes after midnight in New York."""

VWAP_STATE = 3
SESSION_VARIANCE_STATE = 10
RETURN_SINCE_STATE = 2
PROFILE_BINS = 8192
PROFILE_STATE = 8 + PROFILE_BINS
VALUE_AREA = 0.70

_SEEN, _A, _B = 0, 1, 2


@kernel
def opens(columns: Floats, row: int, bar_minutes: float) -> bool:
    """True when this row is the first of a session whose beginning is in the series."""
    before = columns[SESSION, row - 1]
    if before != before:  # noqa: PLR0124 - the very first row
        seconds = columns[TIME, row] - math.floor(columns[TIME, row] / 60.0) * 60.0
        return bool(60.0 * columns[MINUTE, row] + seconds == 60.0 * (OPEN_MINUTE + bar_minutes))
    return bool(columns[SESSION, row] != before)


@kernel
def vwap(
    columns: Floats,
    high: int,
    low: int,
    close: int,
    volume: int,
    bar_minutes: float,
    p: int,
    n: int,
    state: Floats,
    at: int,
    out: Floats,
) -> None:
    """Volume-weighted average of the typical price (high + low + close) / 3 since the open."""
    base = address_of(columns) + 8 * p
    h, lo, c = view(base, high, 0, n), view(base, low, 0, n), view(base, close, 0, n)
    v, now, before = view(base, volume, 0, n), view(base, SESSION, 0, n), view(base, SESSION, 1, n)
    for i in range(n):
        out[i] = (h[i] + lo[i] + c[i]) / 3.0 * v[i]
    seen, paid, traded = state[at + _SEEN], state[at + _A], state[at + _B]
    for i in range(n):
        if now[i] != before[i] and opens(columns, p + i, bar_minutes):
            seen, paid, traded = 1.0, 0.0, 0.0
        known = False
        if out[i] - out[i] == 0.0:  # neither NaN, nor beyond the range of numbers
            paid += out[i]
            traded += v[i]
            known = seen != 0.0 and traded > 0.0
        average = paid / traded
        out[i] = average if known and average - average == 0.0 else math.nan
    state[at + _SEEN], state[at + _A], state[at + _B] = seen, paid, traded


@kernel
def value_area(bins: Floats, poc: int, lowest: int, highest: int, total: float) -> tuple[int, int]:
    """Top and bottom bin of the value area that grows from ``poc`` within lowest .. highest; see :func:`profile`."""
    down, up = poc, poc
    held = bins[poc]
    target = VALUE_AREA * total
    while held < target and (down > lowest or up < highest):
        above = bins[up + 1] + (bins[up + 2] if up + 2 <= highest else 0.0) if up < highest else -1.0
        below = bins[down - 1] + (bins[down - 2] if down - 2 >= lowest else 0.0) if down > lowest else -1.0
        if above >= below:
            held += above
            up = min(up + 2, highest)
        else:
            held += below
            down = max(down - 2, lowest)
    return up, down


@kernel
def profile(
    columns: Floats,
    high: int,
    low: int,
    volume: int,
    tick: float,
    bar_minutes: float,
    p: int,
    n: int,
    state: Floats,
    at: int,
    out: Floats,
) -> None:
    """Volume profile of the session by tick; ``out`` (6, n): POC, VAH, VAL and the volume at each.

    A bar's volume is spread evenly over the ticks from its low to its high. The point of control is
    the price with most volume (the lowest of equals); the value area grows from it by the larger of
    the two-tick pairs above and below (the upper of equals) until it holds 70 % (Steidlmayer's
    market profile, CBOT 1985). A session that leaves the 8192 ticks around its first price gives
    nothing more until the next.
    """
    bins = state[at + 8 : at + 8 + PROFILE_BINS]
    for i in range(n):
        row = p + i
        h, lo, v = columns[high, row], columns[low, row], columns[volume, row]
        missing = (h - h) + (lo - lo) + (v - v) != 0.0
        if opens(columns, row, bar_minutes):
            for j in range(PROFILE_BINS):
                bins[j] = 0.0
            state[at] = 1.0  # open seen
            state[at + 1] = math.nan  # tick number of the first bin
            state[at + 2], state[at + 3] = float(PROFILE_BINS), -1.0  # lowest and highest bin in use
            state[at + 4] = 0.0  # bin of the point of control
            state[at + 5] = 0.0  # total volume
        for k in range(6):
            out[k, i] = math.nan
        if state[at] == 0.0 or missing:
            continue
        if state[at + 1] != state[at + 1]:
            state[at + 1] = math.floor(lo / tick + 0.5) - PROFILE_BINS // 2
        # Compared as floats: an absurd price would wrap around as an integer and pass.
        from_first, to_last = math.floor(lo / tick + 0.5) - state[at + 1], math.floor(h / tick + 0.5) - state[at + 1]
        if not (from_first >= 0.0 and to_last < PROFILE_BINS and to_last >= from_first):
            state[at] = 0.0
            continue
        start, stop = int(from_first), int(to_last)
        if v > 0.0:
            share = v / (stop - start + 1)
            poc = int(state[at + 4])
            for j in range(start, stop + 1):
                bins[j] += share
            for j in range(start, stop + 1):
                if bins[j] > bins[poc] or (bins[j] == bins[poc] and j < poc):
                    poc = j
            state[at + 4] = float(poc)
            state[at + 5] += v
            state[at + 2] = min(state[at + 2], float(start))
            state[at + 3] = max(state[at + 3], float(stop))
        total = state[at + 5]
        if not (total > 0.0 and total < math.inf):
            continue
        poc, lowest, highest = int(state[at + 4]), int(state[at + 2]), int(state[at + 3])
        up, down = value_area(bins, poc, lowest, highest, total)
        first = state[at + 1]
        out[0, i] = (first + poc) * tick
        out[1, i] = (first + up) * tick
        out[2, i] = (first + down) * tick
        out[3, i] = bins[poc]
        out[4, i] = bins[up]
        out[5, i] = bins[down]


@kernel
def session_variance(
    columns: Floats, source: int, bar_minutes: float, p: int, n: int, state: Floats, at: int, out: Floats
) -> None:
    """Realised volatility of the last one and of the last five whole sessions; ``out`` (2, n).

    The realised variance of a session is the sum of its squared log returns (Andersen and Bollerslev
    1998), the first of which spans the break before it; a session without any return has none. The
    result is sqrt(252 * mean variance).
    """
    base = address_of(columns) + 8 * p
    r, now, before = view(base, source, 0, n), view(base, SESSION, 0, n), view(base, SESSION, 1, n)
    sofar = state[at + 1]
    one, five = _volatilities(state, at)
    for i in range(n):
        if now[i] != before[i] and opens(columns, p + i, bar_minutes):
            if state[at] != 0.0:  # the session that ends here was seen from its open
                for k in range(4, 0, -1):
                    state[at + 3 + k] = state[at + 2 + k]
                state[at + 3] = sofar
                state[at + 2] += 1.0
                one, five = _volatilities(state, at)
            state[at], sofar = 1.0, math.nan
        if r[i] == r[i]:  # not NaN
            sofar = (sofar if sofar == sofar else 0.0) + r[i] * r[i]  # noqa: PLR0124 - not NaN
        out[0, i], out[1, i] = one, five
    state[at + 1] = sofar


@inlined
def _volatilities(state: Floats, at: int) -> tuple[float, float]:
    """Of the last session and of the last five, from what :func:`session_variance` keeps."""
    five = state[at + 3] + state[at + 4] + state[at + 5] + state[at + 6] + state[at + 7]
    one = finite(math.sqrt(252.0 * state[at + 3])) if state[at + 2] >= 1.0 else math.nan
    five = finite(math.sqrt(252.0 * (five / 5.0))) if state[at + 2] >= 5.0 else math.nan
    return one, five


@kernel
def return_since(columns: Floats, source: int, key: int, p: int, n: int, state: Floats, at: int, out: Floats) -> None:
    """x less its value at the instant at which the slow value named by ``key`` became known.

    Of a logarithm of the close that is the log return since then. ``key`` holds the instant in seconds
    UTC, constant until a newer value arrives. The reference is the last x known at or before it, looked
    for among the last 128 bars, so that a value which arrives late is still measured from its own
    instant. Missing while the series does not reach back to it.
    """
    base = address_of(columns) + 8 * p
    x, marks = view(base, source, 0, n), view(base, key, 0, n)
    last, reference = state[at], state[at + 1]
    for i in range(n):
        mark = marks[i]
        if mark == mark and mark != last:  # noqa: PLR0124 - not NaN
            last, reference = mark, math.nan
            for j in range(p + i, p + i - HISTORY, -1):
                if columns[TIME, j] <= mark:
                    reference = columns[source, j]
                    break
        out[i] = x[i] - reference if mark == mark else math.nan  # noqa: PLR0124
    state[at], state[at + 1] = last, reference
