"""Exact k nearest rows by standardised Euclidean distance, from codes of one byte per value.

The distance of two rows is ``d(x, q)^2 = sum_j ((x_j - q_j) w_j)^2``, in float64 and in the order of the columns,
with ``w_j = 1 / s_j``. A value that is missing (not finite, or beyond :data:`LARGEST`) stands at the column's mean,
and a column whose ``w_j`` is 0 does not count. Reading all of it for each question costs the bandwidth of the memory.
So each row also has a code of one byte per column,

    z_j = (x_j - m_j) w_j,    p_j = min(max(z_j, -R), R),    c_j = round(p_j / STEP),    R = 127 STEP,

and a question reads the codes, then only the rows that the codes cannot rule out.

Why the answer is exact. Clipping to the box is a projection on a convex set, which brings no two points further apart,
so ``|x - q| >= |p(x) - p(q)| >= STEP |c(x) - c(q)| - e(x) - e(q)`` with ``e = |p - STEP c|``. The sum of squared code
differences is an integer below 2^31 and computed without rounding. ``e`` is computed with every rounding of z added to
it (4 units in the last place of ``(|x_j| + |m_j|) w_j`` per column), and :data:`SLACK` covers the few roundings after
it as well as those of ``d`` itself (relative below (columns + 3) 2^-53). A row is left out only if its lower bound
exceeds the k-th smallest of distances already measured; hence every row within that distance is among those measured
in float64. The k rows that are measured first are the nearest by code, so that few others are.

The filter is the vector approximation of Weber, Schek and Blott, "A quantitative analysis and performance
study for similarity-search methods in high-dimensional spaces" (VLDB 1998), with the box's projection for outliers.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import inlined, kernel

Floats = NDArray[np.float64]
Bytes = NDArray[np.int8]

STEP = 1.0 / 32.0
"""Width of a code, standard deviations; a power of two, so that ``STEP * code`` is exact."""
LANES = 32
"""Codes are padded with zeros to a multiple of so many columns, for whole registers."""
SLACK = 1e-11
"""Relative margin for the roundings that the bound does not count one by one."""
COLUMNS_MOST = 16384
"""More columns could exceed the integer sum."""
LARGEST = 1e150
"""A value beyond counts as missing: its differences could overflow."""
_ULP4 = 4.0 * 2.0**-53
_R = 127.0 * STEP


def code_width(columns: int) -> int:
    """Bytes of a row of codes."""
    return -(-columns // LANES) * LANES


@kernel
def column_scales(rows: Floats, n: int, mean: Floats, weight: Floats) -> None:
    """Mean and 1 / standard deviation of each column over the first ``n`` rows, without missing values.

    Parameters
    ----------
    rows
        (at least n, m) float64.
    n
        How many rows count.
    mean, weight
        (m,) are filled. The deviation is that of the population. A column with fewer than two different
        values, or whose deviation is not finite, has weight 0; without any its mean is 0.
    """
    columns = rows.shape[1]
    count = np.zeros(columns, dtype=np.int64)
    square = np.zeros(columns)
    for j in range(columns):
        mean[j] = 0.0
    for i in range(n):
        for j in range(columns):
            x = rows[i, j]
            if abs(x) <= LARGEST:
                count[j] += 1
                mean[j] += (x - mean[j]) / count[j]
    for i in range(n):
        for j in range(columns):
            x = rows[i, j]
            if abs(x) <= LARGEST:
                square[j] += (x - mean[j]) * (x - mean[j])
    for j in range(columns):
        weight[j] = 0.0
        if count[j] > 1 and square[j] > 0.0:
            inverse = 1.0 / math.sqrt(square[j] / count[j])
            # A spread at the last digit of the values is rounding, not information.
            if math.isfinite(inverse) and inverse * abs(mean[j]) < 1e12:
                weight[j] = inverse


@inlined
def _coded(x: float, mean: float, weight: float) -> tuple[int, float]:
    """The code of one value, and how far it may lie from the clipped value."""
    if not abs(x) <= LARGEST:
        return 0, 0.0
    z = min(max((x - mean) * weight, -_R), _R)
    c = math.floor(z / STEP + 0.5)
    return c, abs(z - STEP * c) + _ULP4 * (abs(x) + abs(mean)) * weight


@kernel
def encode(rows: Floats, first: int, last: int, mean: Floats, weight: Floats, codes: Bytes) -> float:
    """Fill the codes of the rows ``first`` to before ``last``.

    Parameters
    ----------
    rows
        (at least last, m) float64.
    mean, weight
        (m,) from :func:`column_scales`.
    codes
        (at least last, ``code_width(m)``) int8, of which those rows are filled.

    Returns
    -------
    float
        The largest ``e`` of those rows, standard deviations.
    """
    worst = 0.0
    columns = rows.shape[1]
    for i in range(first, last):
        total = 0.0
        for j in range(columns):
            c, error = _coded(rows[i, j], mean[j], weight[j])
            codes[i, j] = c
            total += error * error
        for j in range(columns, codes.shape[1]):
            codes[i, j] = 0
        worst = max(worst, total)
    return math.sqrt(worst) * (1.0 + SLACK)


@inlined
def _measured(row: Floats, query: Floats, mean: Floats, weight: Floats) -> float:
    """The squared distance, in the order of the columns."""
    total = 0.0
    for j in range(row.shape[0]):
        x = row[j] if abs(row[j]) <= LARGEST else mean[j]
        d = (x - query[j]) * weight[j]
        total += d * d
    return total


@kernel
def nearest(
    codes: Bytes,
    rows: Floats,
    kind: Bytes,
    known_at: NDArray[np.int64],
    n: int,
    query: Floats,
    mean: Floats,
    weight: Floats,
    error: float,
    wanted: int,
    until: int,
    k: int,
    apart: NDArray[np.int32],
    place: NDArray[np.int64],
    square: Floats,
) -> int:
    """The ``k`` nearest of the first ``n`` rows that are wanted and known: nearest first, ties in the rows' order.

    Parameters
    ----------
    codes, rows
        (at least n, ``code_width(m)``) int8 from :func:`encode`, and (at least n, m) float64.
    kind, known_at
        (at least n,): a row counts if bit ``kind`` of ``wanted`` is set and ``known_at <= until`` (int64, ns UTC).
    query
        (m,) float64; a missing value stands at the mean.
    mean, weight
        (m,) from :func:`column_scales`; the same that the codes were made with.
    error
        The largest that :func:`encode` returned for these codes.
    apart
        (at least n,) int32, scratch.
    place, square
        (at least k,): row numbers and squared distances are written here.

    Returns
    -------
    int
        How many were found: ``k``, or fewer if fewer rows count.
    """
    if n == 0 or k <= 0:
        return 0
    columns, width = rows.shape[1], codes.shape[1]
    clean = np.empty(columns)
    code = np.zeros(width, dtype=np.int8)
    own = 0.0
    for j in range(columns):
        clean[j] = query[j] if abs(query[j]) <= LARGEST else mean[j]
        c, e = _coded(query[j], mean[j], weight[j])
        code[j] = c
        own += e * e
    reach = error + math.sqrt(own) * (1.0 + SLACK)

    for i in range(n):
        total = np.int32(0)
        for j in range(width):
            d = np.int16(np.int16(codes[i, j]) - np.int16(code[j]))
            total = np.int32(total + np.int32(np.int32(d) * np.int32(d)))
        apart[i] = total

    # The k nearest by code, in no order: the last of them is the first guess of the threshold.
    found = 0
    worst_at = 0
    worst = np.int32(2147483647)
    guess = np.empty(k, dtype=np.int64)
    for i in range(n):
        if (found == k and apart[i] >= worst) or (wanted >> kind[i]) & 1 == 0 or known_at[i] > until:
            continue
        if found < k:
            guess[found] = i
            found += 1
            if found < k:
                continue
        else:
            guess[worst_at] = i
        worst_at = 0
        for t in range(1, k):
            if apart[guess[t]] > apart[guess[worst_at]]:
                worst_at = t
        worst = apart[guess[worst_at]]
    if found == 0:
        return 0

    kept = 0
    threshold = 0.0
    for t in range(found):
        threshold = max(threshold, _measured(rows[guess[t]], clean, mean, weight))
    limit = np.int64(2147483647)
    if found == k and math.isfinite(threshold):
        bound = (math.sqrt(threshold) * (1.0 + SLACK) + reach) / STEP
        bound = bound * bound * (1.0 + SLACK)
        if bound < 2147483647.0:
            limit = np.int64(math.floor(bound))
    for i in range(n):
        if apart[i] > limit or (wanted >> kind[i]) & 1 == 0 or known_at[i] > until:
            continue
        d2 = _measured(rows[i], clean, mean, weight)
        if not d2 <= threshold and found == k:  # a distance that overflowed is never near
            continue
        at = min(kept, k - 1)
        if kept >= k and d2 >= square[at]:
            continue
        while at > 0 and square[at - 1] > d2:
            square[at] = square[at - 1]
            place[at] = place[at - 1]
            at -= 1
        square[at] = d2
        place[at] = i
        kept = min(kept + 1, k)
    return kept
