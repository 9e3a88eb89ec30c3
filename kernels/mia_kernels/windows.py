"""Moving windows that forget: each value depends on the rows of its window and on nothing else.

Sums, squared deviations and extremes over 2, 4, 8, ... rows are kept as working columns ("tables");
a window of any length is put together from a few of them. Nothing drifts, a missing value leaves
with its row, and a block boundary cannot be seen. Squared deviations are merged pairwise (Chan, Golub
and LeVeque 1983, "Algorithms for computing the sample variance"), which needs no anchor on prices
that are large against their changes.

Table layout: level j = 1, 2, ... covers 2**j rows; moments take two columns a level (sum, squared
deviations), extremes and co-moments one. Levels of squares that no window reads stay empty.

Columns are named by their number; ``base`` is the address of row p of column 0, ``n`` the number of rows.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import inlined, kernel
from mia_kernels.formula import finite, greater, lesser
from mia_kernels.memory import floats_at, get, put, put_integer, view
from mia_kernels.opcodes import MEAN, POPULATION_DEVIATION, SAMPLE_DEVIATION, SCRATCH_STRIDE, STRIDE
from mia_kernels.pieces import FACTORS, WIDTH, merge, merge_row
from mia_kernels.vector import quotient

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ROW = 8 * SCRATCH_STRIDE
LEVEL_ROUNDING = 2.0**-98
"""A window varies when its deviation is above 2**-49 of its mean: equal values may come out a rounding apart."""
_SMALLEST_PRODUCT = 1e-290


@kernel
def moment_table(source: int, first: int, levels: int, squares: int, base: int, n: int) -> None:
    """Fill the table of sums of ``source``, and of its squared deviations up to level ``squares``."""
    a, b = view(base, source, 0, n), view(base, source, 1, n)
    total, square = view(base, first, 0, n), view(base, first + 1, 0, n)
    if squares > 0:
        for i in range(n):
            total[i] = a[i] + b[i]
            d = a[i] - b[i]
            square[i] = 0.5 * d * d
    else:
        for i in range(n):
            total[i] = a[i] + b[i]
    width = 2
    for level in range(1, levels):
        at = first + 2 * level
        sa, sb = view(base, at - 2, 0, n), view(base, at - 2, width, n)
        qa, qb = view(base, at - 1, 0, n), view(base, at - 1, width, n)
        total, square = view(base, at, 0, n), view(base, at + 1, 0, n)
        scale = 0.5 / width  # (difference of means)**2 * width / 2, from the difference of sums
        if level < squares:
            for i in range(n):
                d = sa[i] - sb[i]
                total[i] = sa[i] + sb[i]
                square[i] = (qa[i] + qb[i]) + d * d * scale
        else:
            for i in range(n):
                total[i] = sa[i] + sb[i]
        width *= 2


@inlined
def _cover(window: int) -> tuple[int, int]:
    """The level and width of the largest table piece that fits into ``window``."""
    level, width = 0, 1
    while 2 * width <= window:
        level += 1
        width *= 2
    return level, width


@inlined
def _begins_in_main(window: int) -> bool:
    """Whether the first of the merges that a window takes goes to the main scratch, so that the last one does.

    Merges write to two sets of rows in turn: one that wrote where it reads would not be vectorised.
    """
    merges = 0
    while window > 0:
        merges += window & 1
        window >>= 1
    return merges % 2 == 0


@kernel
def window_sum(source: int, first: int, window: int, base: int, n: int, work: int) -> None:
    """Sum of the last ``window`` >= 2 rows into the first of three rows at ``work``: as :func:`window_moments`."""
    level, width = _cover(window)
    if n == 1:
        sum_now = get(base + 8 * STRIDE * (first + 2 * (level - 1)))
        have, rest = width, window - width
        while rest > 0:
            while width > rest:
                width //= 2
                level -= 1
            column = source if level == 0 else first + 2 * (level - 1)
            sum_now += get(base + 8 * (STRIDE * column - have))
            have += width
            rest -= width
        put(work, sum_now)
        return
    main, other = floats_at(work, n), floats_at(work + 16 * n, n)
    s = view(base, first + 2 * (level - 1), 0, n)
    have, rest = width, window - width
    if rest == 0:
        for i in range(n):
            main[i] = s[i]
        return
    to_main = _begins_in_main(window)
    while rest > 0:
        while width > rest:
            width //= 2
            level -= 1
        a = view(base, source if level == 0 else first + 2 * (level - 1), have, n)
        total = main if to_main else other
        for i in range(n):
            total[i] = s[i] + a[i]
        s = total
        to_main = not to_main
        have += width
        rest -= width


@kernel
def window_moments(source: int, first: int, window: int, base: int, n: int, work: int) -> None:
    """Sum and squared deviations of the last ``window`` >= 2 rows, into the first two of four rows at ``work``."""
    level, width = _cover(window)
    at = first + 2 * (level - 1)
    if n == 1:
        _moments_now(source, first, window, base, work)
        return
    s, q = view(base, at, 0, n), view(base, at + 1, 0, n)
    have, rest = width, window - width
    total, square = floats_at(work, n), floats_at(work + 8 * n, n)
    if rest == 0:
        for i in range(n):
            total[i], square[i] = s[i], q[i]
        return
    to_main = _begins_in_main(window)
    while rest > 0:
        while width > rest:
            width //= 2
            level -= 1
        grow = 1.0 / have
        part = 1.0 / width
        scale = have * width / (have + width)
        to = work if to_main else work + 16 * n
        total, square = floats_at(to, n), floats_at(to + 8 * n, n)
        if level == 0:
            a = view(base, source, have, n)
            for i in range(n):
                d = s[i] * grow - a[i]
                total[i] = s[i] + a[i]
                square[i] = q[i] + d * d * scale
        else:
            at = first + 2 * (level - 1)
            a, b = view(base, at, have, n), view(base, at + 1, have, n)
            for i in range(n):
                d = s[i] * grow - a[i] * part
                total[i] = s[i] + a[i]
                square[i] = q[i] + (b[i] + d * d * scale)
        s, q = total, square
        to_main = not to_main
        have += width
        rest -= width


@kernel
def _moments_now(source: int, first: int, window: int, base: int, work: int) -> None:
    """:func:`window_moments` for one row: the same operations, in registers."""
    level, width = _cover(window)
    at = base + 8 * STRIDE * (first + 2 * (level - 1))
    total, square = get(at), get(at + 8 * STRIDE)
    have, rest = width, window - width
    while rest > 0:
        while width > rest:
            width //= 2
            level -= 1
        grow, part = 1.0 / have, 1.0 / width
        scale = have * width / (have + width)
        if level == 0:
            a = get(base + 8 * (STRIDE * source - have))
            d = total * grow - a
            square += d * d * scale
        else:
            at = base + 8 * (STRIDE * (first + 2 * (level - 1)) - have)
            a = get(at)
            d = total * grow - a * part
            square += get(at + 8 * STRIDE) + d * d * scale
        total += a
        have += width
        rest -= width
    put(work, total)
    put(work + 8, square)


@kernel
def finish_moments(kind: int, window: int, n: int, work: int, out_at: int) -> None:
    """Turn sums into what was asked for: mean, deviation (ddof 0 or 1) or the sum itself.

    Missing where it is beyond the numbers: only computed columns hold values whose sum or square overflows.
    """
    total, square, out = floats_at(work, n), floats_at(work + 8 * n, n), floats_at(out_at, n)
    if kind == MEAN:
        length, part = float(window), 1.0 / window
        for i in range(n):
            out[i] = finite(quotient(total[i], length, part))
    elif kind == POPULATION_DEVIATION:
        share = 1.0 / window
        for i in range(n):
            out[i] = finite(math.sqrt(square[i] * share))
    elif kind == SAMPLE_DEVIATION:
        share = 1.0 / (window - 1)
        for i in range(n):
            out[i] = finite(math.sqrt(square[i] * share))
    else:
        for i in range(n):
            out[i] = finite(total[i])


@kernel
def comoment_table(x: int, y: int, x_table: int, y_table: int, first: int, levels: int, base: int, n: int) -> None:
    """Fill the table of summed products of deviations of columns ``x`` and ``y``, beside the moment tables of both."""
    xa, xb, ya, yb = view(base, x, 0, n), view(base, x, 1, n), view(base, y, 0, n), view(base, y, 1, n)
    product = view(base, first, 0, n)
    for i in range(n):
        product[i] = 0.5 * (xa[i] - xb[i]) * (ya[i] - yb[i])
    width = 2
    for level in range(1, levels):
        below = 2 * (level - 1)
        xa, xb = view(base, x_table + below, 0, n), view(base, x_table + below, width, n)
        ya, yb = view(base, y_table + below, 0, n), view(base, y_table + below, width, n)
        ca, cb = view(base, first + level - 1, 0, n), view(base, first + level - 1, width, n)
        product = view(base, first + level, 0, n)
        scale = 0.5 / width
        for i in range(n):
            product[i] = (ca[i] + cb[i]) + (xa[i] - xb[i]) * (ya[i] - yb[i]) * scale
        width *= 2


@inlined
def _put_products(place: int, x_table: int, y_table: int, first: int, level: int, back: int, base: int) -> int:
    """Note where five sums of a level lie, ``back`` rows before row p; returns where the next numbers go."""
    at = 2 * (level - 1)
    put_integer(place, base + 8 * (STRIDE * (x_table + at) - back))
    put_integer(place + 8, base + 8 * (STRIDE * (x_table + at + 1) - back))
    put_integer(place + 16, base + 8 * (STRIDE * (y_table + at) - back))
    put_integer(place + 24, base + 8 * (STRIDE * (y_table + at + 1) - back))
    put_integer(place + 32, base + 8 * (STRIDE * (first + level - 1) - back))
    return place + 40


@inlined
def _put_factors(place: int, have: int, width: int) -> int:
    """What weighs a piece of ``width`` rows that joins ``have``; returns where the next piece is noted."""
    put(place, 1.0 / have)
    put(place + 8, 1.0 / width)
    put(place + 16, have * width / (have + width))
    return place + 8 * FACTORS


@kernel
def window_correlation(
    x: int, y: int, x_table: int, y_table: int, first: int, window: int, base: int, n: int, work: int, out_at: int
) -> None:
    """Pearson's correlation of columns ``x`` and ``y`` over the last ``window`` >= 3 rows.

    ``work`` is the address of six scratch rows. Missing where either column varies by no more than
    the rounding of its own level, or the product of their squares leaves the range of numbers.
    """
    level, width = _cover(window)
    table = work + 5 * ROW
    place, count, single = _put_products(table, x_table, y_table, first, level, 0, base), 0, 0
    have, rest = width, window - width
    while rest > 0:
        while width > rest:
            width //= 2
            level -= 1
        if level == 0:
            put_integer(place, base + 8 * (STRIDE * x - have))
            put_integer(place + 8, base + 8 * (STRIDE * y - have))
            place, single = place + 16, 1
        else:
            place, count = _put_products(place, x_table, y_table, first, level, have, base), count + 1
        place = _put_factors(place, have, width)
        have += width
        rest -= width
    if n == 1:
        merge_row(table, count, single, work, ROW, 1)
    else:
        merge(table, count, single, work, ROW, (n + WIDTH - 1) // WIDTH)
    sa, qa, sb = floats_at(work, n), floats_at(work + ROW, n), floats_at(work + 2 * ROW, n)
    qb, products, out = floats_at(work + 3 * ROW, n), floats_at(work + 4 * ROW, n), floats_at(out_at, n)
    rounding = LEVEL_ROUNDING / window
    for i in range(n):
        size = qa[i] * qb[i]
        value = products[i] / math.sqrt(size)
        value = value if value < 1.0 else 1.0
        value = value if value > -1.0 else -1.0
        m = 0.0 if qa[i] > rounding * (sa[i] * sa[i]) else math.nan
        m = m if qb[i] > rounding * (sb[i] * sb[i]) else math.nan
        m = m if size > _SMALLEST_PRODUCT else math.nan
        out[i] = value + ((products[i] - products[i]) + (size - size)) + m


@kernel
def maximum_table(source: int, first: int, levels: int, base: int, n: int) -> None:
    """Fill the table of maxima over 2, 4, 8, ... rows of ``source``."""
    width, at = 1, source
    for level in range(levels):
        a, b, out = view(base, at, 0, n), view(base, at, width, n), view(base, first + level, 0, n)
        for i in range(n):
            out[i] = greater(a[i], b[i])
        at = first + level
        width *= 2


@kernel
def minimum_table(source: int, first: int, levels: int, base: int, n: int) -> None:
    """Fill the table of minima over 2, 4, 8, ... rows of ``source``."""
    width, at = 1, source
    for level in range(levels):
        a, b, out = view(base, at, 0, n), view(base, at, width, n), view(base, first + level, 0, n)
        for i in range(n):
            out[i] = lesser(a[i], b[i])
        at = first + level
        width *= 2


@kernel
def window_maximum(source: int, first: int, window: int, base: int, n: int, out_at: int) -> None:
    """Maximum of the last ``window`` rows: two overlapping pieces of the table."""
    level, width = _cover(window)
    at = source if level == 0 else first + level - 1
    a, b, out = view(base, at, 0, n), view(base, at, window - width, n), floats_at(out_at, n)
    for i in range(n):
        out[i] = greater(a[i], b[i])


@kernel
def window_minimum(source: int, first: int, window: int, base: int, n: int, out_at: int) -> None:
    """Minimum of the last ``window`` rows: two overlapping pieces of the table."""
    level, width = _cover(window)
    at = source if level == 0 else first + level - 1
    a, b, out = view(base, at, 0, n), view(base, at, window - width, n), floats_at(out_at, n)
    for i in range(n):
        out[i] = lesser(a[i], b[i])


@kernel
def stochastic(
    close: int,
    high: int,
    high_table: int,
    low: int,
    low_table: int,
    window: int,
    fast: int,
    slow: int,
    base: int,
    n: int,
    work: int,
    k_at: int,
    d_at: int,
) -> None:
    """Lane's slow stochastic: %K smoothed over 3 and %D over 3 more, 0..100, to two addresses.

    The raw and the smoothed %K live in the working columns ``fast`` and ``slow``; ``work`` has two rows of
    scratch. A window without range gives 0, as in TA-Lib. %K is missing wherever %D is: in the warm-up, and
    after a missing bar.
    """
    window_maximum(high, high_table, window, base, n, work)
    window_minimum(low, low_table, window, base, n, work + 8 * n)
    top, bottom = floats_at(work, n), floats_at(work + 8 * n, n)
    c, raw = view(base, close, 0, n), view(base, fast, 0, n)
    for i in range(n):
        spread = top[i] - bottom[i]
        value = 100.0 * ((c[i] - bottom[i]) / spread)
        raw[i] = value if spread != 0.0 else 0.0 * c[i]
    r1, r2 = view(base, fast, 1, n), view(base, fast, 2, n)
    k, k1, k2 = view(base, slow, 0, n), view(base, slow, 1, n), view(base, slow, 2, n)
    out_k, out_d = floats_at(k_at, n), floats_at(d_at, n)
    third = 1.0 / 3.0
    for i in range(n):
        k[i] = quotient((r2[i] + r1[i]) + raw[i], 3.0, third)
    for i in range(n):
        out_d[i] = quotient((k2[i] + k1[i]) + k[i], 3.0, third)
    # TA-Lib reports %K only together with %D; the smoothed column itself starts earlier.
    for i in range(n):
        out_k[i] = k[i] + (out_d[i] - out_d[i])


@kernel
def time_deviation(
    columns: Floats,
    source: int,
    first: int,
    time: int,
    seconds: float,
    periods: int,
    p: int,
    base: int,
    n: int,
    work: int,
    out_at: int,
) -> None:
    """Sample standard deviation of the log returns inside the last ``seconds``.

    A return counts when both of its closes lie in [t - seconds, t], so the jump over a gap is not
    taken for a return of one bar. Without gaps that is ``periods`` returns, taken from the table; a row
    after a gap is summed by itself. Fewer than half of the window's returns (or than two) give none.
    """
    window_moments(source, first, periods, base, n, work)
    square, out = floats_at(work + 8 * n, n), floats_at(out_at, n)
    stamp, edge = view(base, time, 0, n), view(base, time, periods, n)
    gaps = 0
    for i in range(n):
        out[i] = finite(math.sqrt(square[i] / (periods - 1)))
        gaps += 0 if edge[i] == stamp[i] - seconds else 1
    if gaps == 0:
        return
    for i in range(n):
        if edge[i] == stamp[i] - seconds:
            continue
        if edge[i] != edge[i]:
            out[i] = math.nan
        else:
            row = p + i
            count = 0
            mean, squares = 0.0, 0.0
            for j in range(row, row - periods, -1):
                if not columns[time, j - 1] >= stamp[i] - seconds:
                    break
                count += 1
                d = columns[source, j] - mean
                mean += d / count
                squares += d * (columns[source, j] - mean)
            out[i] = finite(math.sqrt(squares / (count - 1))) if count >= 2 and 2 * count >= periods else math.nan
