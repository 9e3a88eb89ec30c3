"""The last minutes and nothing else: sums, volume profiles and slopes over the bars of a time window.

A window of ``minutes`` is (t - minutes, t] by the bars' closes: a gap only leaves fewer bars in it. Every
value is made anew from its window's rows, so nothing drifts, a missing value leaves with its row, and a
block boundary cannot be seen. A series shorter than the bars that a window without gaps holds gives no
value yet, and neither does a window of more bars than the history keeps.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import inlined, kernel
from mia_kernels.formula import finite
from mia_kernels.memory import address_of, floats_at, get, get_integer, integers_at, put, put_integer, view
from mia_kernels.opcodes import HISTORY, MEAN, STRIDE, TIME
from mia_kernels.session import CHUNK, VALUE_AREA, add_share, grow, nearest_tick, seed

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

WINDOW_BINS = 2048
"""Ticks that a profile over a time window may cover: 512 index points of the ES."""
SHORT_BARS, SHORT_TICKS = 5, 56
"""Bars and ticks of a window that :func:`profile_window` makes side by side with others."""
GROUP = 32
"""Windows that are made side by side: their profiles stay in the first-level cache."""
UP, DOWN, POC, TOP, HELD, TARGET, LOWEST = range(0, 56, 8)
"""Byte offsets in a window's record: addresses of bins, then two volumes and the tick number of the lowest bin."""
EDGE = 4
"""Bins on either side that are zero, so that a step from the last one needs no test."""
RECORD = 8 + EDGE
"""Numbers before a window's bins."""
WINDOW = RECORD + SHORT_TICKS + EDGE
"""Numbers from one window to the next: an odd number of cache lines."""
PROFILE_SCRATCH = WINDOW_BINS + GROUP * (WINDOW + 1)
"""Scratch of :func:`profile_window`: bins of a long window, GROUP short ones, and which of those still grow."""
FEW = 8
"""Blocks of fewer rows are summed row by row: a vector of one lane only waits for itself."""


@inlined
def _bars_within(columns: Floats, seconds: float, rows: int, row: int) -> int:
    """Bars that close in the last ``seconds``; ``rows`` without gaps. 0: too short a series, or too many bars."""
    here = address_of(columns) + 8 * (STRIDE * TIME + row)
    now = get(here)
    if not get(here - 8 * (rows - 1)) <= now:  # before the series it is NaN
        return 0
    since = now - seconds
    if get(here - 8 * rows) == since:
        return rows
    count = 1
    while count < HISTORY and get(here - 8 * count) > since:
        count += 1
    return count if count < HISTORY else 0


@inlined
def _sum_back(columns: Floats, source: int, row: int, count: int) -> float:
    """Sum of the last ``count`` values, from the newest back, every other one by itself."""
    even, odd = 0.0, 0.0
    here = address_of(columns) + 8 * (STRIDE * source + row)
    oldest = here - 8 * (count - 1)
    while here > oldest:
        even += get(here)
        odd += get(here - 8)
        here -= 16
    if here == oldest:
        even += get(here)
    return even + odd


@kernel
def time_window(
    columns: Floats, source: int, kind: int, seconds: float, rows: int, p: int, n: int, odd: Floats, out: Floats
) -> None:
    """SUM or MEAN (``kind``) over the bars of the last ``seconds``, into ``out`` (n,); ``odd`` (n,) is scratch.

    Every window is added up by itself: for so few bars that is as quick as any table. A block of many rows adds a
    whole vector of windows at a time, in the order of :func:`_sum_back`, as if there were no gap; windows with one
    are then added again.
    """
    base = address_of(columns) + 8 * p
    now, edge = view(base, TIME, 0, n), view(base, TIME, rows, n)
    gaps = n
    if n >= FEW:
        for i in range(n):
            out[i], odd[i] = 0.0, 0.0
        paired = rows & ~1
        for j in range(0, paired, 2):
            a, b = view(base, source, j, n), view(base, source, j + 1, n)
            for i in range(n):
                out[i] += a[i]
                odd[i] += b[i]
        last = view(base, source, paired, n)
        divisor = float(rows) if kind == MEAN else 1.0
        gaps = 0
        for i in range(n):
            total = (out[i] + last[i] if paired != rows else out[i]) + odd[i]
            out[i] = finite(total / divisor if kind == MEAN else total)
            gaps += 0 if edge[i] == now[i] - seconds else 1
    if gaps == 0:
        return
    for i in range(n):
        if n >= FEW and edge[i] == now[i] - seconds:
            continue
        count = _bars_within(columns, seconds, rows, p + i)
        total = _sum_back(columns, source, p + i, count) if count > 0 else math.nan
        out[i] = finite(total / count if kind == MEAN else total)


@kernel
def profile_bars(columns: Floats, high: int, low: int, volume: int, tick: float, first: int, p: int, n: int) -> None:
    """Lowest tick, highest tick and volume per tick of each bar, into the working columns from ``first`` on.

    The volume per tick is NaN for a bar that no profile can hold: with a missing value, or its high below
    its low.
    """
    start, stop, share = columns[first, p : p + n], columns[first + 1, p : p + n], columns[first + 2, p : p + n]
    h, lo, v = columns[high, p : p + n], columns[low, p : p + n], columns[volume, p : p + n]
    for i in range(n):
        start[i], stop[i] = nearest_tick(lo[i], tick), nearest_tick(h[i], tick)
        spread = stop[i] - start[i]
        even = v[i] / (spread + 1.0)
        share[i] = even if (spread >= 0.0) & (v[i] - v[i] == 0.0) else math.nan


@kernel
def _long_profile(
    columns: Floats, volume: int, first: int, tick: float, count: int, row: int, bins: Floats, i: int, out: Floats
) -> None:
    """Column ``i`` of :func:`profile_window`, from any ``count`` bars."""
    for k in range(6):
        out[k, i] = math.nan
    lowest, highest, faults = math.inf, -math.inf, 0.0
    for j in range(row - count + 1, row + 1):
        lowest = min(lowest, columns[first, j])
        highest = max(highest, columns[first + 1, j])
        faults += columns[first + 2, j] - columns[first + 2, j]
    if count == 0 or faults != 0.0 or not highest - lowest < WINDOW_BINS:
        return
    span = int(highest - lowest) + 1
    for j in range(span):
        bins[j] = 0.0
    total = 0.0
    bottom, top = span, -1
    for j in range(row - count + 1, row + 1):
        share = columns[first + 2, j]
        if share > 0.0:
            start, stop = int(columns[first, j] - lowest), int(columns[first + 1, j] - lowest)
            for b in range(start, stop + 1):
                bins[b] += share
            total += columns[volume, j]
            bottom, top = min(bottom, start), max(top, stop)
    if not (total > 0.0 and total < math.inf):
        return
    poc, most = bottom, bins[bottom]
    for b in range(bottom + 1, top + 1):
        if bins[b] > most:
            poc, most = b, bins[b]
    area = grow(address_of(bins), bottom, top, VALUE_AREA * total, seed(address_of(bins), poc))
    up, down = min(area.up, top), max(area.down, bottom)
    out[0, i] = (lowest + poc) * tick
    out[1, i] = (lowest + up) * tick
    out[2, i] = (lowest + down) * tick
    out[3, i] = bins[poc]
    out[4, i] = bins[up]
    out[5, i] = bins[down]


@inlined
def _short_profile(starts: int, shift: int, volumes: int, count: int, window: int) -> bool:
    """Bins, point of control and target of a window of few bars and ticks; False if it is not one.

    ``starts`` is the address of its oldest bar's lowest tick, ``shift`` bytes before the highest tick and as many
    again before the share; ``volumes`` that of the bar's volume; ``window`` that of the record.
    """
    start, stop, share = (
        floats_at(starts, count),
        floats_at(starts + shift, count),
        floats_at(starts + 2 * shift, count),
    )
    volume = floats_at(volumes, count)
    lowest, highest, total, traded = math.inf, -math.inf, 0.0, 0 < count <= SHORT_BARS
    for j in range(count):
        lowest = start[j] if start[j] < lowest else lowest
        highest = stop[j] if stop[j] > highest else highest
        traded = traded & (share[j] > 0.0)
        total += volume[j]
    if not (traded and highest - lowest < SHORT_TICKS and total < math.inf):
        return False
    # All bars in one pass over the bins, in their order; those that there are not have no share.
    f0, w0, s0 = int(start[0] - lowest), int(stop[0] - start[0]), share[0]
    f1, w1, s1, f2, w2, s2, f3, w3, s3, f4, w4, s4 = 0, 0, 0.0, 0, 0, 0.0, 0, 0, 0.0, 0, 0, 0.0
    if count > 1:
        f1, w1, s1 = int(start[1] - lowest), int(stop[1] - start[1]), share[1]
    if count > 2:
        f2, w2, s2 = int(start[2] - lowest), int(stop[2] - start[2]), share[2]
    if count > 3:
        f3, w3, s3 = int(start[3] - lowest), int(stop[3] - start[3]), share[3]
    if count > 4:
        f4, w4, s4 = int(start[4] - lowest), int(stop[4] - start[4]), share[4]
    top = int(highest - lowest)
    width = (top + CHUNK) & -CHUNK
    line = window + 8 * RECORD
    bins = floats_at(line, width)
    for k in range(width):
        x = add_share(add_share(0.0, k, f0, w0, s0), k, f1, w1, s1)
        bins[k] = add_share(add_share(add_share(x, k, f2, w2, s2), k, f3, w3, s3), k, f4, w4, s4)
    for k in range(1, EDGE):
        put(line - 8 * k, 0.0)
        put(line + 8 * (top + k), 0.0)
    # Volume rises only where a bar begins, so the lowest of the bins with most is one bar's first.
    most, poc = 0.0, width
    for j in range(count):
        x = get(line + 8 * int(start[j] - lowest))
        most = x if x > most else most
    for j in range(count):
        k = int(start[j] - lowest)
        k = k if get(line + 8 * k) == most else width
        poc = k if k < poc else poc
    for place in (UP, DOWN, POC):
        put_integer(window + place, line + 8 * poc)
    put_integer(window + TOP, line + 8 * top)
    put(window + HELD, most)
    put(window + TARGET, VALUE_AREA * total)
    put(window + LOWEST, lowest)
    return True


@inlined
def _take_pairs(growing: Integers, some: int) -> int:
    """Let the first ``some`` windows of ``growing`` take in a pair each; returns how many go on, put first.

    There is no branch to guess. A pair beyond an end is zero here, where the rules have nothing: the other side's
    is taken, unless it is zero too. A window that gains nothing stays short of its target, for :func:`_long_profile`.
    """
    left = 0
    for q in range(some):
        window = growing[q]
        up, down = get_integer(window + UP), get_integer(window + DOWN)
        above, below = get(up + 8) + get(up + 16), get(down - 8) + get(down - 16)
        gain = above if above > below else below
        held = get(window + HELD) + gain
        step = 16 if above >= below else 0
        put_integer(window + UP, up + step)
        put_integer(window + DOWN, down - 16 + step)
        put(window + HELD, held)
        growing[left] = window
        left += 1 if (held < get(window + TARGET)) & (gain > 0.0) else 0
    return left


@kernel
def profile_window(
    columns: Floats,
    volume: int,
    first: int,
    tick: float,
    seconds: float,
    rows: int,
    p: int,
    n: int,
    scratch: Floats,
    out: Floats,
) -> None:
    """Volume profile of the bars of the last ``seconds``; ``out`` (6, n): POC, VAH, VAL and the volume at each.

    The rules are those of :func:`mia_kernels.session.profile`. ``first`` is where :func:`profile_bars` put
    its columns; ``scratch`` (PROFILE_SCRATCH,). Missing while a bar that no profile can hold is in the
    window, where nothing traded in it, and where its bars cover more than 2048 ticks, which bounds the time
    a row can take.

    One short profile is a chain of guesses for the processor, most of them wrong. So GROUP windows are filled, then
    their areas grow side by side, a pair each in turn. What is not short is made by itself.
    """
    windows = address_of(scratch) + 8 * WINDOW_BINS
    growing = integers_at(windows + 8 * WINDOW * GROUP, GROUP)
    shift = 8 * columns.shape[1]
    starts, volumes = address_of(columns) + shift * first, address_of(columns) + shift * volume
    for begin in range(0, n, GROUP):
        size = min(GROUP, n - begin)
        some = 0
        for g in range(size):
            row = p + begin + g
            count = _bars_within(columns, seconds, rows, row)
            oldest, window = 8 * (row - count + 1), windows + 8 * WINDOW * g
            if _short_profile(starts + oldest, shift, volumes + oldest, count, window):
                growing[some] = window
                some += 1 if get(window + HELD) < get(window + TARGET) else 0
            else:
                put(window + HELD, math.nan)
        while some > 0:
            some = _take_pairs(growing, some)
        for g in range(size):
            i, window = begin + g, windows + 8 * WINDOW * g
            if get(window + HELD) >= get(window + TARGET):
                line, lowest = window + 8 * RECORD, get(window + LOWEST)
                poc = get_integer(window + POC)
                up, down = (
                    min(get_integer(window + UP), get_integer(window + TOP)),
                    max(get_integer(window + DOWN), line),
                )
                out[0, i] = (lowest + ((poc - line) >> 3)) * tick
                out[1, i] = (lowest + ((up - line) >> 3)) * tick
                out[2, i] = (lowest + ((down - line) >> 3)) * tick
                out[3, i] = get(poc)
                out[4, i] = get(up)
                out[5, i] = get(down)
            else:
                count = _bars_within(columns, seconds, rows, p + i)
                _long_profile(columns, volume, first, tick, count, p + i, scratch, i, out)


@kernel
def slope(columns: Floats, source: int, window: int, p: int, n: int, out: Floats) -> None:
    """Least-squares slope per bar over the last ``window`` >= 2 rows, into ``out`` (n,).

    The weights are antisymmetric about the window's middle, so the sum runs over differences of pairs
    (newest less oldest, and inwards): prices that are large against their changes cost no digits. Both
    loops below add in the same order and give the same bits.
    """
    base = address_of(columns) + 8 * p
    half = window // 2
    middle = 0.5 * (window - 1)
    scale = window * (window * window - 1.0) / 12.0
    if n < FEW:
        for i in range(n):
            new = base + 8 * (STRIDE * source + i)
            old = new - 8 * (window - 1)
            total = get(new - 8 * half) - get(new - 8 * half)  # an odd window's middle has weight 0
            for j in range(half):
                total += (middle - j) * (get(new - 8 * j) - get(old + 8 * j))
            out[i] = finite(total / scale)
        return
    centre = view(base, source, half, n)
    for i in range(n):
        out[i] = centre[i] - centre[i]
    for j in range(0, half - 1, 2):  # two pairs a pass: what is summed up waits in a register
        w, old = middle - j, window - 1 - j
        a, b = view(base, source, j, n), view(base, source, old, n)
        c, d = view(base, source, j + 1, n), view(base, source, old - 1, n)
        for i in range(n):
            out[i] = (out[i] + w * (a[i] - b[i])) + (w - 1.0) * (c[i] - d[i])
    if half % 2 == 1:
        j = half - 1
        w = middle - j
        a, b = view(base, source, j, n), view(base, source, window - 1 - j, n)
        for i in range(n):
            out[i] += w * (a[i] - b[i])
    for i in range(n):
        out[i] = finite(out[i] / scale)


@kernel
def time_slope(columns: Floats, source: int, run: int, seconds: float, rows: int, p: int, n: int, out: Floats) -> None:
    """Least-squares slope per minute against the closes of the bars of the last ``seconds``, into ``out`` (n,).

    At least three bars. The working column ``run`` counts how many bars have followed one another at the
    bar's length: a window of evenly spaced bars is :func:`slope`, any other is fitted by itself.
    """
    base = address_of(columns) + 8 * p
    step = seconds / rows
    now, before, edge = view(base, TIME, 0, n), view(base, TIME, 1, n), view(base, TIME, rows, n)
    runs = view(base, run, 0, n)
    length = get(base + 8 * (STRIDE * run - 1))
    breaks = 0
    for i in range(n):
        breaks += 0 if now[i] - before[i] == step else 1
        runs[i] = length + (i + 1.0)
    if breaks > 0:
        for i in range(n):
            length = length + 1.0 if now[i] - before[i] == step else 0.0
            runs[i] = length
    slope(columns, source, rows, p, n, out)
    gaps = 0
    for i in range(n):
        out[i] = finite(out[i] / (step / 60.0))
        gaps += 0 if (edge[i] == now[i] - seconds) & (runs[i] >= rows - 1.0) else 1
    if gaps == 0:
        return
    for i in range(n):
        row = p + i
        count = _bars_within(columns, seconds, rows, row)
        if count == rows and runs[i] >= rows - 1.0:
            continue  # done above
        fitted = math.nan
        if count >= 3:
            x = columns[source, row]
            mean = 0.0
            for j in range(row - count + 1, row + 1):
                mean += columns[TIME, j] - now[i]
            mean /= count
            squares, products = 0.0, 0.0
            for j in range(row - count + 1, row + 1):
                d = (columns[TIME, j] - now[i]) - mean
                squares += d * d
                products += d * (columns[source, j] - x)
            fitted = 60.0 * products / squares
        out[i] = finite(fitted)
