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
from mia_kernels.memory import address_of, get, view
from mia_kernels.opcodes import HISTORY, MEAN, STRIDE, TIME
from mia_kernels.session import value_area

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

WINDOW_BINS = 2048
"""Ticks that a profile over a time window may cover: 512 index points of the ES."""
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
        # NumPy's floor gives a float; that of math gives an integer, for which NaN is a number like another.
        start[i], stop[i] = np.floor(lo[i] / tick + 0.5), np.floor(h[i] / tick + 0.5)
        spread = stop[i] - start[i]
        share[i] = v[i] / (spread + 1.0) if spread >= 0.0 and v[i] - v[i] == 0.0 else math.nan


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
    bins: Floats,
    out: Floats,
) -> None:
    """Volume profile of the bars of the last ``seconds``; ``out`` (6, n): POC, VAH, VAL and the volume at each.

    The rules are those of :func:`mia_kernels.session.profile`. ``first`` is where :func:`profile_bars` put
    its columns; ``bins`` (WINDOW_BINS,) is scratch. Missing while a bar that no profile can hold is in the
    window, where nothing traded in it, and where its bars cover more than 2048 ticks, which bounds the time
    a row can take.
    """
    for i in range(n):
        row = p + i
        for k in range(6):
            out[k, i] = math.nan
        count = _bars_within(columns, seconds, rows, row)
        lowest, highest, faults = math.inf, -math.inf, 0.0
        for j in range(row - count + 1, row + 1):
            lowest = min(lowest, columns[first, j])
            highest = max(highest, columns[first + 1, j])
            faults += columns[first + 2, j] - columns[first + 2, j]
        if count == 0 or faults != 0.0 or not highest - lowest < WINDOW_BINS:
            continue
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
            continue
        poc, most = bottom, bins[bottom]
        for b in range(bottom + 1, top + 1):
            if bins[b] > most:
                poc, most = b, bins[b]
        up, down = value_area(bins, poc, bottom, top, total)
        out[0, i] = (lowest + poc) * tick
        out[1, i] = (lowest + up) * tick
        out[2, i] = (lowest + down) * tick
        out[3, i] = bins[poc]
        out[4, i] = bins[up]
        out[5, i] = bins[down]


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
