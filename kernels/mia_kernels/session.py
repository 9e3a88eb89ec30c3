"""What is counted from the session's open: average price, volume profile, daily variance.

Each starts again when the trade date changes. Before the first open that the series itself has
seen, the values are missing: a profile that began in mid-session is not the session's profile.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import inlined, kernel
from mia_kernels.formula import finite
from mia_kernels.memory import address_of, floats_at, get, view
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
CHUNK = 8
"""Bins are added to in whole chunks: a loop of one length for most bars, and in vectors."""
SLACK = 1e-9
"""Part of the total by which a volume that was carried from bar to bar must clear a bound to be believed.

Carried over a block of 256 bars, and 4096 pairs taken in, it is off by 1e-12 of the total at the most.
"""

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


@inlined
def nearest_tick(price: float, tick: float) -> float:
    """Number of the tick nearest to a price; NaN stays NaN."""
    # NumPy's floor gives a float; that of math gives an integer, for which NaN is a number like another.
    return np.floor(price / tick + 0.5)  # type: ignore[no-any-return, unused-ignore]


@inlined
def add_share(volume: float, j: int, first: int, spread: int, share: float) -> float:
    """The volume of bin ``j`` with the share of a bar over the bins first .. first + spread, if ``j`` is of them."""
    return volume + share if np.uint64(j - first) <= np.uint64(spread) else volume  # below first wraps: far too large


class Area(NamedTuple):
    """A value area on its way: what it spans, what it holds, and the least pair taken in on either side.

    ``up`` and ``down`` are whole pairs from the point of control, so they may lie one bin beyond the profile.
    """

    up: int
    down: int
    held: float
    before: float
    """What it held before the last pair."""
    least_above: float
    above_at: int
    """The pair is that after this bin, counted from the point of control."""
    least_below: float
    below_at: int


@inlined
def seed(bins: int, poc: int) -> Area:
    """The area that holds the point of control alone; ``bins`` is an address, as in all that follows."""
    return Area(poc, poc, get(bins + 8 * poc), -math.inf, math.inf, poc, math.inf, poc)


@inlined
def _pair_above(bins: int, up: int, highest: int) -> float:
    """Volume of the two ticks above ``up``; -1 where the profile has none."""
    second = get(bins + 8 * (up + 2)) if up + 2 <= highest else 0.0
    return get(bins + 8 * (up + 1)) + second if up < highest else -1.0


@inlined
def _pair_below(bins: int, down: int, lowest: int) -> float:
    second = get(bins + 8 * (down - 2)) if down - 2 >= lowest else 0.0
    return get(bins + 8 * (down - 1)) + second if down > lowest else -1.0


@inlined
def grow(bins: int, lowest: int, highest: int, target: float, area: Area) -> Area:
    """Take in the larger of the pairs above and below (the upper of equals) until ``target`` is held."""
    up, down, held, before, least_above, above_at, least_below, below_at = area
    above, below = _pair_above(bins, up, highest), _pair_below(bins, down, lowest)
    while held < target and (above >= 0.0 or below >= 0.0):
        before = held
        if above >= below:
            held += above
            if above <= least_above:
                least_above, above_at = above, up
            up += 2
            above = _pair_above(bins, up, highest)
        else:
            held += below
            if below <= least_below:
                least_below, below_at = below, down
            down -= 2
            below = _pair_below(bins, down, lowest)
    return Area(up, down, held, before, least_above, above_at, least_below, below_at)


@inlined
def _with_bar(bins: int, poc: int, lowest: int, highest: int, start: int, stop: int, share: float, area: Area) -> Area:
    """The same area, after a bar added ``share`` to the bins start .. stop."""
    up, down, held, _, least_above, above_at, least_below, below_at = area
    held += share * max(min(stop, up) - max(start, down) + 1, 0)
    # Volume only grows: the least pair stays the least unless it was added to.
    if start <= above_at + 2 and stop > above_at and above_at < up:
        least_above = math.inf
        for j in range(poc, up, 2):
            pair = _pair_above(bins, j, highest)
            if pair <= least_above:
                least_above, above_at = pair, j
    if start < below_at and stop >= below_at - 2 and below_at > down:
        least_below = math.inf
        for j in range(poc, down, -2):
            pair = _pair_below(bins, j, lowest)
            if pair <= least_below:
                least_below, below_at = pair, j
    # Of two pairs that are taken, the later is that which has the smaller one on its own way from the point of control.
    last = math.inf
    if least_above < least_below:
        last = _pair_above(bins, up - 2, highest)
    elif least_below < math.inf:
        last = _pair_below(bins, down + 2, lowest)
    return Area(up, down, held, held - last, least_above, above_at, least_below, below_at)


@inlined
def _on_the_way(bins: int, lowest: int, highest: int, area: Area) -> bool:
    """True if growing from the point of control passes through just this area.

    A pair above is taken before a pair below exactly when the least pair on the way to it, itself included, is
    not smaller than that on the way to the other. So the area is passed if all that it took above comes
    before the next below, and all below before the next above.
    """
    above, below = _pair_above(bins, area.up, highest), _pair_below(bins, area.down, lowest)
    a, b = area.least_above, area.least_below
    return (a >= b or a >= below) and (b > a or b > above)


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

    Within a block the area is carried from bar to bar, and grown anew from the point of control only where that
    could end elsewhere: another point of control, another order of the pairs, or a volume so near to 70 % that
    the order of its additions counts. A block begins anew, so it never shows where the cuts are.
    """
    bins = address_of(state) + 8 * (at + 8)
    seen, first, total = state[at], state[at + 1], state[at + 5]  # open seen, tick number of the first bin, volume
    lowest, highest, poc = int(state[at + 2]), int(state[at + 3]), int(state[at + 4])  # bins: in use, most volume
    h, lo, traded = columns[high, p : p + n], columns[low, p : p + n], columns[volume, p : p + n]
    bottoms, tops, shares = out[0], out[1], out[2]  # until the row's results take their place
    for i in range(n):
        missing = (h[i] - h[i]) + (lo[i] - lo[i]) + (traded[i] - traded[i])  # NaN, else 0
        bottoms[i], tops[i] = nearest_tick(lo[i], tick) + missing, nearest_tick(h[i], tick)
        shares[i] = traded[i] / (tops[i] - bottoms[i] + 1.0)
    area, kept = seed(bins, poc), False
    for i in range(n):
        if opens(columns, p + i, bar_minutes):
            empty = floats_at(bins, PROFILE_BINS)
            for j in range(PROFILE_BINS):
                empty[j] = 0.0
            seen, first, total = 1.0, math.nan, 0.0
            lowest, highest, poc = PROFILE_BINS, -1, 0
            kept = False
        bottom, top, share, v = bottoms[i], tops[i], shares[i], traded[i]
        known = seen != 0.0 and bottom == bottom  # noqa: PLR0124 - not NaN
        if known:
            if first != first:  # noqa: PLR0124
                first = bottom - PROFILE_BINS // 2
            # Compared as floats: an absurd price would wrap around as an integer and pass.
            if not (bottom >= first and top - first < PROFILE_BINS and top >= bottom and abs(bottom) < 2.0**63):
                seen, known = 0.0, False
        if known and v > 0.0:
            start, stop = int(bottom - first), int(top - first)
            spread = stop - start
            most = add_share(get(bins + 8 * poc), poc, start, spread, share)
            width = (spread + CHUNK) & -CHUNK
            begin = min(start, PROFILE_BINS - width)
            here = floats_at(bins + 8 * begin, width)
            within, peak = start - begin, poc - begin
            rivals = 0
            for j in range(width):
                here[j] = add_share(here[j], j, within, spread, share)
                rivals += 1 if (here[j] >= most) & (j != peak) else 0
            if rivals > 0:
                for j in range(start, stop + 1):
                    x = get(bins + 8 * j)
                    if x > most or (x == most and j < poc):
                        poc, most, kept = j, x, False
            total += v
            lowest, highest = min(lowest, start), max(highest, stop)
            if kept:
                area = _with_bar(bins, poc, lowest, highest, start, stop, share, area)
        if not (known and total > 0.0 and total < math.inf):
            for k in range(6):
                out[k, i] = math.nan
            continue
        target, slack = VALUE_AREA * total, SLACK * total
        kept = kept and _on_the_way(bins, lowest, highest, area)
        if kept:
            area = grow(bins, lowest, highest, target - slack, area)
            kept = area.before < target - slack and area.held >= target + slack
        if not kept:
            area = grow(bins, lowest, highest, target, seed(bins, poc))
            kept = True
        # Where all shares are too small for a number, bin 0 is the point of control, below the lowest in use.
        up, down = min(area.up, highest), max(area.down, min(lowest, poc))
        out[0, i] = (first + poc) * tick
        out[1, i] = (first + up) * tick
        out[2, i] = (first + down) * tick
        out[3, i] = get(bins + 8 * poc)
        out[4, i] = get(bins + 8 * up)
        out[5, i] = get(bins + 8 * down)
    state[at], state[at + 1], state[at + 5] = seen, first, total
    state[at + 2], state[at + 3], state[at + 4] = float(lowest), float(highest), float(poc)


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
