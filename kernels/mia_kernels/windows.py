"""Moving windows that forget: each value depends on the rows of its window and on nothing else.

Sums, squared deviations and extremes over 2, 4, 8, ... rows are kept as working columns ("tables");
a window of any length is put together from a few of them. Nothing drifts, a missing value leaves
with its row, and a block boundary cannot be seen. Squared deviations are merged pairwise (Chan, Golub
and LeVeque 1983, "Algorithms for computing the sample variance"), which needs no anchor on prices
that are large against their changes.

Table layout: level j = 1, 2, ... covers 2**j rows; moments take two columns a level (sum, squared
deviations), extremes one.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import inlined, kernel
from mia_kernels.opcodes import MEAN, POPULATION_DEVIATION, SAMPLE_DEVIATION

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEVEL_ROUNDING = 2.0**-98
"""A window varies when its deviation is above 2**-49 of its mean: equal values may come out a rounding apart."""


@kernel
def moment_table(columns: Floats, source: int, first: int, levels: int, p: int, n: int) -> None:
    """Fill the table of sums and squared deviations of ``source`` for rows p .. p+n."""
    a, b = columns[source, p : p + n], columns[source, p - 1 : p - 1 + n]
    total, square = columns[first, p : p + n], columns[first + 1, p : p + n]
    for i in range(n):
        total[i] = a[i] + b[i]
        d = a[i] - b[i]
        square[i] = 0.5 * d * d
    width = 2
    for level in range(1, levels):
        at = first + 2 * level
        sa, sb = columns[at - 2, p : p + n], columns[at - 2, p - width : p - width + n]
        qa, qb = columns[at - 1, p : p + n], columns[at - 1, p - width : p - width + n]
        total, square = columns[at, p : p + n], columns[at + 1, p : p + n]
        scale = 0.5 / width  # (difference of means)**2 * width / 2, from the difference of sums
        for i in range(n):
            d = sa[i] - sb[i]
            total[i] = sa[i] + sb[i]
            square[i] = (qa[i] + qb[i]) + d * d * scale
        width *= 2


@kernel
def window_moments(
    columns: Floats, source: int, first: int, window: int, p: int, n: int, total: Floats, square: Floats
) -> None:
    """Sum and squared deviations of the last ``window`` rows, for rows p .. p+n, into (n,) arrays."""
    level, width = 0, 1
    while 2 * width <= window:
        level += 1
        width *= 2
    if level == 0:
        s = columns[source, p : p + n]
        for i in range(n):
            total[i], square[i] = s[i], 0.0
    else:
        at = first + 2 * (level - 1)
        s, q = columns[at, p : p + n], columns[at + 1, p : p + n]
        for i in range(n):
            total[i], square[i] = s[i], q[i]
    have, rest = width, window - width
    while rest > 0:
        while width > rest:
            width //= 2
            level -= 1
        grow = 1.0 / have
        part = 1.0 / width
        scale = have * width / (have + width)
        if level == 0:
            s = columns[source, p - have : p - have + n]
            for i in range(n):
                d = total[i] * grow - s[i]
                total[i] += s[i]
                square[i] += d * d * scale
        else:
            at = first + 2 * (level - 1)
            s, q = columns[at, p - have : p - have + n], columns[at + 1, p - have : p - have + n]
            for i in range(n):
                d = total[i] * grow - s[i] * part
                total[i] += s[i]
                square[i] += q[i] + d * d * scale
        have += width
        rest -= width


@kernel
def finish_moments(kind: int, window: int, total: Floats, square: Floats, out: Floats) -> None:
    """Turn sums into what was asked for: mean, deviation (ddof 0 or 1) or the sum itself."""
    n = out.size
    if kind == MEAN:
        for i in range(n):
            out[i] = total[i] / window
    elif kind == POPULATION_DEVIATION:
        for i in range(n):
            out[i] = math.sqrt(square[i] / window)
    elif kind == SAMPLE_DEVIATION:
        for i in range(n):
            out[i] = math.sqrt(square[i] / (window - 1))
    else:
        for i in range(n):
            out[i] = total[i]


@kernel
def comoment_table(
    columns: Floats, x: int, y: int, x_table: int, y_table: int, first: int, levels: int, p: int, n: int
) -> None:
    """Fill the table of summed products of deviations of ``x`` and ``y`` (columns) for rows p .. p+n.

    One column a level, beside the moment tables of both, from which it takes the sums.
    """
    xa, xb = columns[x, p : p + n], columns[x, p - 1 : p - 1 + n]
    ya, yb = columns[y, p : p + n], columns[y, p - 1 : p - 1 + n]
    product = columns[first, p : p + n]
    for i in range(n):
        product[i] = 0.5 * (xa[i] - xb[i]) * (ya[i] - yb[i])
    width = 2
    for level in range(1, levels):
        at, below = first + level, 2 * (level - 1)
        xa, xb = columns[x_table + below, p : p + n], columns[x_table + below, p - width : p - width + n]
        ya, yb = columns[y_table + below, p : p + n], columns[y_table + below, p - width : p - width + n]
        ca, cb = columns[at - 1, p : p + n], columns[at - 1, p - width : p - width + n]
        product = columns[at, p : p + n]
        scale = 0.5 / width
        for i in range(n):
            product[i] = (ca[i] + cb[i]) + (xa[i] - xb[i]) * (ya[i] - yb[i]) * scale
        width *= 2


@kernel
def window_correlation(
    columns: Floats,
    x: int,
    y: int,
    x_table: int,
    y_table: int,
    first: int,
    window: int,
    p: int,
    n: int,
    work: Floats,
    out: Floats,
) -> None:
    """Pearson's correlation of columns ``x`` and ``y`` over the last ``window`` >= 3 rows, into ``out`` (n,).

    ``work`` (5, >= n) is scratch. Missing where either varies by no more than the rounding of its own level.
    """
    level, width = 0, 1
    while 2 * width <= window:
        level += 1
        width *= 2
    sx, qx, sy, qy, product = work[0, :n], work[1, :n], work[2, :n], work[3, :n], work[4, :n]
    at = 2 * (level - 1)
    a, b = columns[x_table + at, p : p + n], columns[x_table + at + 1, p : p + n]
    c, d = columns[y_table + at, p : p + n], columns[y_table + at + 1, p : p + n]
    e = columns[first + level - 1, p : p + n]
    for i in range(n):
        sx[i], qx[i], sy[i], qy[i], product[i] = a[i], b[i], c[i], d[i], e[i]
    have, rest = width, window - width
    while rest > 0:
        while width > rest:
            width //= 2
            level -= 1
        grow, part = 1.0 / have, 1.0 / width
        scale = have * width / (have + width)
        if level == 0:
            a, c = columns[x, p - have : p - have + n], columns[y, p - have : p - have + n]
            for i in range(n):
                u, v = sx[i] * grow - a[i], sy[i] * grow - c[i]
                sx[i] += a[i]
                sy[i] += c[i]
                qx[i] += u * u * scale
                qy[i] += v * v * scale
                product[i] += u * v * scale
        else:
            at = 2 * (level - 1)
            a, b = columns[x_table + at, p - have : p - have + n], columns[x_table + at + 1, p - have : p - have + n]
            c, d = columns[y_table + at, p - have : p - have + n], columns[y_table + at + 1, p - have : p - have + n]
            e = columns[first + level - 1, p - have : p - have + n]
            for i in range(n):
                u, v = sx[i] * grow - a[i] * part, sy[i] * grow - c[i] * part
                sx[i] += a[i]
                sy[i] += c[i]
                qx[i] += b[i] + u * u * scale
                qy[i] += d[i] + v * v * scale
                product[i] += e[i] + u * v * scale
        have += width
        rest -= width
    rounding = LEVEL_ROUNDING / window
    for i in range(n):
        value = product[i] / (math.sqrt(qx[i]) * math.sqrt(qy[i]))
        value = min(value, 1.0)
        value = max(value, -1.0)
        varies = qx[i] > rounding * (sx[i] * sx[i]) and qy[i] > rounding * (sy[i] * sy[i])
        out[i] = value + (product[i] - product[i]) if varies else math.nan


@inlined
def _larger(a: float, b: float) -> float:
    """max that keeps a missing value on either side; branch-free, so that it vectorises."""
    m = a if a > b else b
    return m + ((a - a) + (b - b))


@inlined
def _smaller(a: float, b: float) -> float:
    m = a if a < b else b
    return m + ((a - a) + (b - b))


@kernel
def maximum_table(columns: Floats, source: int, first: int, levels: int, p: int, n: int) -> None:
    """Fill the table of maxima over 2, 4, 8, ... rows of ``source`` for rows p .. p+n."""
    width, at = 1, source
    for level in range(levels):
        a, b = columns[at, p : p + n], columns[at, p - width : p - width + n]
        out = columns[first + level, p : p + n]
        for i in range(n):
            out[i] = _larger(a[i], b[i])
        at = first + level
        width *= 2


@kernel
def minimum_table(columns: Floats, source: int, first: int, levels: int, p: int, n: int) -> None:
    """Fill the table of minima over 2, 4, 8, ... rows of ``source`` for rows p .. p+n."""
    width, at = 1, source
    for level in range(levels):
        a, b = columns[at, p : p + n], columns[at, p - width : p - width + n]
        out = columns[first + level, p : p + n]
        for i in range(n):
            out[i] = _smaller(a[i], b[i])
        at = first + level
        width *= 2


@inlined
def _cover(window: int) -> tuple[int, int]:
    """The level and width of the largest table piece that fits into ``window``."""
    level, width = 0, 1
    while 2 * width <= window:
        level += 1
        width *= 2
    return level, width


@kernel
def window_maximum(columns: Floats, source: int, first: int, window: int, p: int, n: int, out: Floats) -> None:
    """Maximum of the last ``window`` rows: two overlapping pieces of the table."""
    level, width = _cover(window)
    at = source if level == 0 else first + level - 1
    shift = window - width
    a, b = columns[at, p : p + n], columns[at, p - shift : p - shift + n]
    for i in range(n):
        out[i] = _larger(a[i], b[i])


@kernel
def window_minimum(columns: Floats, source: int, first: int, window: int, p: int, n: int, out: Floats) -> None:
    """Minimum of the last ``window`` rows: two overlapping pieces of the table."""
    level, width = _cover(window)
    at = source if level == 0 else first + level - 1
    shift = window - width
    a, b = columns[at, p : p + n], columns[at, p - shift : p - shift + n]
    for i in range(n):
        out[i] = _smaller(a[i], b[i])


@kernel
def stochastic(
    columns: Floats,
    close: int,
    high: int,
    high_table: int,
    low: int,
    low_table: int,
    window: int,
    fast: int,
    slow: int,
    p: int,
    n: int,
    work: Floats,
) -> None:
    """Lane's slow stochastic: %K smoothed over 3 in ``work[2]``, %D over 3 more in ``work[3]``; 0..100.

    The raw and the smoothed %K live in the working columns ``fast`` and ``slow``. A window without
    range gives 0, as in TA-Lib. %K is missing wherever %D is: in the warm-up, and after a missing bar.
    """
    top, bottom = work[0, :n], work[1, :n]
    window_maximum(columns, high, high_table, window, p, n, top)
    window_minimum(columns, low, low_table, window, p, n, bottom)
    c, raw = columns[close, p : p + n], columns[fast, p : p + n]
    for i in range(n):
        spread = top[i] - bottom[i]
        value = 100.0 * ((c[i] - bottom[i]) / spread)
        raw[i] = value if spread != 0.0 else 0.0 * c[i]
    r1, r2 = columns[fast, p - 1 : p - 1 + n], columns[fast, p - 2 : p - 2 + n]
    k, k1, k2 = columns[slow, p : p + n], columns[slow, p - 1 : p - 1 + n], columns[slow, p - 2 : p - 2 + n]
    out_k, out_d = work[2, :n], work[3, :n]
    for i in range(n):
        k[i] = ((r2[i] + r1[i]) + raw[i]) / 3.0
        out_k[i] = k[i]
    for i in range(n):
        out_d[i] = ((k2[i] + k1[i]) + k[i]) / 3.0
    # TA-Lib reports %K only together with %D; the smoothed column itself starts earlier.
    for i in range(n):
        out_k[i] += out_d[i] - out_d[i]


@kernel
def time_deviation(
    columns: Floats,
    source: int,
    first: int,
    time: int,
    seconds: float,
    rows: int,
    p: int,
    n: int,
    total: Floats,
    square: Floats,
    out: Floats,
) -> None:
    """Sample standard deviation of the log returns inside the last ``seconds``.

    A return counts when both of its closes lie in [t - seconds, t], so the jump over a gap is not
    taken for a return of one bar. Without gaps that is ``rows`` returns, taken from the table; a row
    after a gap is summed by itself. Fewer than half of the window's returns (or than two) give none.
    """
    window_moments(columns, source, first, rows, p, n, total, square)
    stamp, edge = columns[time, p : p + n], columns[time, p - rows : p - rows + n]
    for i in range(n):
        if edge[i] == stamp[i] - seconds:
            out[i] = math.sqrt(square[i] / (rows - 1))
        elif edge[i] != edge[i]:
            out[i] = math.nan
        else:
            row = p + i
            count = 0
            mean, squares = 0.0, 0.0
            for j in range(row, row - rows, -1):
                if not columns[time, j - 1] >= stamp[i] - seconds:
                    break
                count += 1
                d = columns[source, j] - mean
                mean += d / count
                squares += d * (columns[source, j] - mean)
            out[i] = math.sqrt(squares / (count - 1)) if count >= 2 and 2 * count >= rows else math.nan
