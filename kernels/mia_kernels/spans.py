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
from mia_kernels.opcodes import HISTORY, MEAN, TIME
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
    if not columns[TIME, row - rows + 1] <= columns[TIME, row]:  # before the series it is NaN
        return 0
    since = columns[TIME, row] - seconds
    if columns[TIME, row - rows] == since:
        return rows
    count = 1
    while count < HISTORY and columns[TIME, row - count] > since:
        count += 1
    return count if count < HISTORY else 0


@inlined
def _sum_back(columns: Floats, source: int, row: int, count: int) -> float:
    """Sum of the last ``count`` values, from the newest back, every other one by itself."""
    even, odd = 0.0, 0.0
    for j in range(0, count - 1, 2):
        even += columns[source, row - j]
        odd += columns[source, row - j - 1]
    if count % 2 == 1:
        even += columns[source, row - count + 1]
    return even + odd


@kernel
def time_window(
    columns: Floats, source: int, kind: int, seconds: float, rows: int, p: int, n: int, odd: Floats, out: Floats
) -> None:
    """SUM or MEAN (``kind``) over the bars of the last ``seconds``, into ``out`` (n,); ``odd`` (n,) is scratch.

    Every window is added up by itself: for so few bars that is as quick as any table, and a block of many
    rows adds a whole vector of windows at a time, in the order of :func:`_sum_back`.
    """
    if n >= FEW:
        for i in range(n):
            out[i], odd[i] = 0.0, 0.0
        for j in range(rows):
            x = columns[source, p - j : p - j + n]
            if j % 2 == 0:
                for i in range(n):
                    out[i] += x[i]
            else:
                for i in range(n):
                    odd[i] += x[i]
        for i in range(n):
            out[i] += odd[i]
    for i in range(n):
        count = _bars_within(columns, seconds, rows, p + i)
        total = out[i]
        if count == 0:
            total = math.nan
        elif count != rows or n < FEW:
            total = _sum_back(columns, source, p + i, count)
        if kind == MEAN:
            total /= count
        out[i] = total if total - total == 0.0 else math.nan


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
    half = window // 2
    middle = 0.5 * (window - 1)
    scale = window * (window * window - 1.0) / 12.0
    if n < FEW:
        for i in range(n):
            row = p + i
            total = columns[source, row - half] - columns[source, row - half]  # an odd window's middle has weight 0
            for j in range(half):
                total += (middle - j) * (columns[source, row - j] - columns[source, row - window + 1 + j])
            out[i] = total / scale
    else:
        centre = columns[source, p - half : p - half + n]
        for i in range(n):
            out[i] = centre[i] - centre[i]
        x = columns[source]
        for j in range(0, half - 1, 2):  # two pairs a pass: what is summed up waits in a register
            w, new, old = middle - j, p - j, p - window + 1 + j
            a, b, c, d = x[new : new + n], x[old : old + n], x[new - 1 : new - 1 + n], x[old + 1 : old + 1 + n]
            for i in range(n):
                out[i] = (out[i] + w * (a[i] - b[i])) + (w - 1.0) * (c[i] - d[i])
        if half % 2 == 1:
            j = half - 1
            w, back = middle - j, p - window + 1 + j
            a, b = x[p - j : p - j + n], x[back : back + n]
            for i in range(n):
                out[i] += w * (a[i] - b[i])
        for i in range(n):
            out[i] = out[i] / scale
    for i in range(n):
        out[i] = out[i] if out[i] - out[i] == 0.0 else math.nan


@kernel
def time_slope(columns: Floats, source: int, run: int, seconds: float, rows: int, p: int, n: int, out: Floats) -> None:
    """Least-squares slope per minute against the closes of the bars of the last ``seconds``, into ``out`` (n,).

    At least three bars. The working column ``run`` counts how many bars have followed one another at the
    bar's length: a window of evenly spaced bars is :func:`slope`, any other is fitted by itself.
    """
    step = seconds / rows
    for row in range(p, p + n):
        follows = columns[TIME, row] - columns[TIME, row - 1] == step
        columns[run, row] = columns[run, row - 1] + 1.0 if follows else 0.0
    slope(columns, source, rows, p, n, out)
    for i in range(n):
        row = p + i
        count = _bars_within(columns, seconds, rows, row)
        fitted = math.nan
        if count == rows and columns[run, row] >= rows - 1.0:
            fitted = out[i] / (step / 60.0)
        elif count >= 3:
            now, x = columns[TIME, row], columns[source, row]
            mean = 0.0
            for j in range(row - count + 1, row + 1):
                mean += columns[TIME, j] - now
            mean /= count
            squares, products = 0.0, 0.0
            for j in range(row - count + 1, row + 1):
                d = (columns[TIME, j] - now) - mean
                squares += d * d
                products += d * (columns[source, j] - x)
            fitted = 60.0 * products / squares
        out[i] = fitted if fitted - fitted == 0.0 else math.nan
