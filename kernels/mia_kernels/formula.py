"""Formulas as three-address code over columns.

The planner breaks every formula into operations ``result = operation(a, b, c)`` on columns and finds what
several formulas share (docs/decisions/0030). An operand is a place: a byte offset from row p of the working
columns, so that a look-back is a smaller offset and a number is a column that holds it everywhere. Live,
operations of one kind that are ready at the same time are a group, a tight loop over them; in batch, each
operation is a loop over rows, and the order is that of the cache: a result is read soon after it was written.

A missing operand makes the result missing, comparisons included. What is not finite is made missing by
CHECK at the end of a formula; until then no operation turns an infinity into a number.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mia_kernels import opcodes as op
from mia_kernels.compile import inlined, kernel
from mia_kernels.elementary import cos_turn, exp, log, sin_turn
from mia_kernels.memory import floats_at, get, get_integer, put

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SMALLEST = 2.2250738585072014e-308
"""Smallest normal number: the logarithm of anything less is missing."""
OPERATION_BYTES = 8 * op.OPERATION_FIELDS


@inlined
def _divide(a: float, b: float) -> float:
    return a / b + (b - b)  # nothing is zero for being over infinity


@inlined
def lesser(a: float, b: float) -> float:
    """min that keeps a missing value on either side; branch-free, so that it vectorises."""
    m = a if a < b else b
    return m + ((a - a) + (b - b))


@inlined
def greater(a: float, b: float) -> float:
    """max that keeps a missing value on either side."""
    m = a if a > b else b
    return m + ((a - a) + (b - b))


@inlined
def _is_more(a: float, b: float) -> float:
    m = 1.0 if a > b else 0.0
    return m + ((a - a) + (b - b))


@inlined
def _is_more_or_equal(a: float, b: float) -> float:
    m = 1.0 if a >= b else 0.0
    return m + ((a - a) + (b - b))


@inlined
def _choose(c: float, a: float, b: float) -> float:
    chosen = a if c != 0.0 else b
    return chosen + (c - c)


@inlined
def finite(x: float) -> float:
    """The number itself if it is one, else NaN."""
    return x if x - x == 0.0 else math.nan


@inlined
def logarithm(x: float) -> float:
    """Natural logarithm; missing for what is not a positive normal number."""
    valid = x >= SMALLEST and x < math.inf
    z = x if valid else 1.0
    y = log(z)
    return y if valid else math.nan


@inlined
def _exponential(x: float) -> float:
    power = exp(x)
    power = power if x <= 709.0 else math.nan  # beyond the numbers, or NaN
    return power if x >= -708.0 else 0.0 * power + (x - x)


@inlined
def _sign(x: float) -> float:
    s = 1.0 if x > 0.0 else 0.0
    s = -1.0 if x < 0.0 else s
    return s + (x - x)


@kernel
def _one_row(operation: int, count: int, table: int, base: int) -> bool:
    """The common operations at one row; False when ``operation`` is another."""
    end = table + count * OPERATION_BYTES
    t = table
    if operation == op.ADD:
        while t < end:
            put(base + get_integer(t), get(base + get_integer(t + 8)) + get(base + get_integer(t + 16)))
            t += OPERATION_BYTES
    elif operation == op.SUBTRACT:
        while t < end:
            put(base + get_integer(t), get(base + get_integer(t + 8)) - get(base + get_integer(t + 16)))
            t += OPERATION_BYTES
    elif operation == op.MULTIPLY:
        while t < end:
            put(base + get_integer(t), get(base + get_integer(t + 8)) * get(base + get_integer(t + 16)))
            t += OPERATION_BYTES
    elif operation == op.DIVIDE:
        while t < end:
            put(base + get_integer(t), _divide(get(base + get_integer(t + 8)), get(base + get_integer(t + 16))))
            t += OPERATION_BYTES
    elif operation == op.CHOOSE:
        while t < end:
            c, a = get(base + get_integer(t + 8)), get(base + get_integer(t + 16))
            put(base + get_integer(t), _choose(c, a, get(base + get_integer(t + 24))))
            t += OPERATION_BYTES
    elif operation == op.CHECK:
        while t < end:
            put(base + get_integer(t), finite(get(base + get_integer(t + 8))))
            t += OPERATION_BYTES
    elif operation == op.ABSOLUTE:
        while t < end:
            put(base + get_integer(t), abs(get(base + get_integer(t + 8))))
            t += OPERATION_BYTES
    elif operation == op.GREATER:
        while t < end:
            put(base + get_integer(t), greater(get(base + get_integer(t + 8)), get(base + get_integer(t + 16))))
            t += OPERATION_BYTES
    elif operation == op.LESSER:
        while t < end:
            put(base + get_integer(t), lesser(get(base + get_integer(t + 8)), get(base + get_integer(t + 16))))
            t += OPERATION_BYTES
    elif operation == op.IS_MORE:
        while t < end:
            put(base + get_integer(t), _is_more(get(base + get_integer(t + 8)), get(base + get_integer(t + 16))))
            t += OPERATION_BYTES
    elif operation == op.LOGARITHM:
        while t < end:
            put(base + get_integer(t), logarithm(get(base + get_integer(t + 8))))
            t += OPERATION_BYTES
    else:
        return False
    return True


@kernel
def _rows(operation: int, result: int, first: int, second: int, third: int, n: int) -> None:
    """One operation over (n,) rows; arguments are addresses. The result never lies where an operand does."""
    y, a, b = floats_at(result, n), floats_at(first, n), floats_at(second, n)
    if operation == op.ADD:
        for i in range(n):
            y[i] = a[i] + b[i]
    elif operation == op.SUBTRACT:
        for i in range(n):
            y[i] = a[i] - b[i]
    elif operation == op.MULTIPLY:
        for i in range(n):
            y[i] = a[i] * b[i]
    elif operation == op.DIVIDE:
        for i in range(n):
            y[i] = _divide(a[i], b[i])
    elif operation == op.LESSER:
        for i in range(n):
            y[i] = lesser(a[i], b[i])
    elif operation == op.GREATER:
        for i in range(n):
            y[i] = greater(a[i], b[i])
    elif operation == op.IS_MORE:
        for i in range(n):
            y[i] = _is_more(a[i], b[i])
    elif operation == op.IS_MORE_OR_EQUAL:
        for i in range(n):
            y[i] = _is_more_or_equal(a[i], b[i])
    elif operation == op.CHOOSE:
        c = floats_at(third, n)
        for i in range(n):
            y[i] = _choose(a[i], b[i], c[i])
    elif operation == op.NEGATE:
        for i in range(n):
            y[i] = -a[i]
    elif operation == op.ABSOLUTE:
        for i in range(n):
            y[i] = abs(a[i])
    elif operation == op.SQUARE_ROOT:
        for i in range(n):
            y[i] = math.sqrt(a[i])
    elif operation == op.LOGARITHM:
        for i in range(n):
            y[i] = logarithm(a[i])
    elif operation == op.EXPONENTIAL:
        for i in range(n):
            y[i] = _exponential(a[i])
    elif operation == op.SIGN:
        for i in range(n):
            y[i] = _sign(a[i])
    elif operation == op.FLOOR:
        for i in range(n):
            y[i] = math.floor(a[i]) if a[i] - a[i] == 0.0 else math.nan
    elif operation == op.SINE_TURN:
        for i in range(n):
            y[i] = sin_turn(a[i])
    elif operation == op.COSINE_TURN:
        for i in range(n):
            y[i] = cos_turn(a[i])
    elif operation == op.CHECK:
        for i in range(n):
            y[i] = finite(a[i])


@kernel
def arithmetic(operation: int, count: int, table: int, base: int, n: int) -> None:
    """Run a group of ``count`` equal operations over n rows.

    ``table`` is the address of (count, OPERATION_FIELDS) int64: the places of the result and of up to three
    operands, as byte offsets from ``base``, the address of row p of working column 0.
    """
    if n == 1 and _one_row(operation, count, table, base):
        return
    for k in range(count):
        t = table + k * OPERATION_BYTES
        _rows(
            operation,
            base + get_integer(t),
            base + get_integer(t + 8),
            base + get_integer(t + 16),
            base + get_integer(t + 24),
            n,
        )


@kernel
def operations(count: int, table: int, base: int, n: int) -> None:
    """Run ``count`` operations of any kind over n rows, one after the other.

    ``table`` is the address of (count, 1 + OPERATION_FIELDS) int64: the operation, then its places as in
    :func:`arithmetic`.
    """
    for k in range(count):
        t = table + k * (8 + OPERATION_BYTES)
        _rows(
            get_integer(t),
            base + get_integer(t + 8),
            base + get_integer(t + 16),
            base + get_integer(t + 24),
            base + get_integer(t + 32),
            n,
        )


@kernel
def ago(seconds: float, rows: int, base: int, time: int, source: int, result: int, n: int) -> None:
    """The value ``seconds`` ago: that of the last bar known at or before that instant.

    Without gaps it stands ``rows`` bars back; a gap can only bring it nearer, also when the series began less
    than ``rows`` bars ago. A series that began later than that instant has none. ``time``, ``source`` and
    ``result`` are byte offsets from ``base``.
    """
    if n > 1 and _ago_without_gaps(seconds, base + time, base + source, base + result, rows, n):
        return
    reached = 0  # never a later bar than the next row looks for: no row begins its search anew
    for i in range(n):
        here = base + 8 * i
        moment = get(here + time) - seconds
        j = here - 8 * rows
        if n > 1 and get(j + time) == moment and get(j + 8 + time) > moment:
            continue  # copied already
        j = max(j, reached)
        while get(j + time) != get(j + time):  # before the first bar
            j += 8
        if get(j + time) > moment:
            put(here + result, math.nan)
            continue
        while get(j + 8 + time) <= moment:
            j += 8
        put(here + result, get(j + source))
        reached = j


@kernel
def _ago_without_gaps(seconds: float, time: int, source: int, result: int, rows: int, n: int) -> bool:
    """What :func:`ago` gives if no row of the block has a gap behind it, as most: a shifted copy. False: some have."""
    now, then = floats_at(time, n), floats_at(time - 8 * rows, n)
    after = floats_at(time - 8 * rows + 8, n)  # not always later: the seconds of two closes may be equal
    x, y = floats_at(source - 8 * rows, n), floats_at(result, n)
    gaps = 0
    for i in range(n):
        moment = now[i] - seconds
        gaps += 0 if (then[i] == moment) & (after[i] > moment) else 1
    for i in range(n):
        y[i] = x[i]
    return gaps == 0
