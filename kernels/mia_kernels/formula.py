"""A formula over columns, interpreted a block at a time.

The planner turns ``100 * (close - low_14) / (high_14 - low_14)`` into tokens in reverse Polish order;
each token works on whole (n,) rows, so a formula costs about what compiled code would. A missing
operand makes the result missing, comparisons included; a result that is not finite (a division by
zero, the root of a negative) is missing too.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import kernel
from mia_kernels.elementary import cos_turn, exp, log, sin_turn
from mia_kernels.opcodes import (
    ABSOLUTE,
    ADD,
    CHOOSE,
    COSINE_TURN,
    DIVIDE,
    EXPONENTIAL,
    FLOOR,
    GREATER,
    IS_MORE,
    IS_MORE_OR_EQUAL,
    LESSER,
    LOGARITHM,
    MULTIPLY,
    NEGATE,
    PUSH_AGO,
    PUSH_COLUMN,
    PUSH_LAG,
    PUSH_NUMBER,
    SIGN,
    SINE_TURN,
    SQUARE_ROOT,
    SUBTRACT,
    TIME,
)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SMALLEST = 2.2250738585072014e-308
"""Smallest normal number: the logarithm of anything less is missing."""


@kernel
def _push_ago(columns: Floats, source: int, seconds: float, rows: int, p: int, n: int, out: Floats) -> None:
    """The value ``seconds`` ago: that of the last bar known at or before that instant.

    Without gaps it stands ``rows`` bars back; a gap can only bring it nearer. History that does not
    reach back so far gives none.
    """
    for i in range(n):
        row = p + i
        moment = columns[TIME, row] - seconds
        j = row - rows
        if not columns[TIME, j] <= moment:
            out[i] = math.nan
            continue
        while columns[TIME, j + 1] <= moment:
            j += 1
        out[i] = columns[source, j]


@kernel
def evaluate(
    tokens: Integers, count: int, numbers: Floats, columns: Floats, p: int, n: int, stack: Floats, out: Floats
) -> None:
    """Evaluate ``count`` tokens (code, argument, rows) over rows p .. p+n into ``out`` (n,).

    ``stack`` (STACK, >= n) is scratch. ``numbers`` holds the literals that tokens refer to.
    """
    top = -1
    for t in range(count):
        code, argument = tokens[3 * t], tokens[3 * t + 1]
        if code <= PUSH_AGO:
            top += 1
            y = stack[top, :n]
            if code == PUSH_COLUMN:
                source = columns[argument, p : p + n]
                for i in range(n):
                    y[i] = source[i]
            elif code == PUSH_NUMBER:
                number = numbers[argument]
                for i in range(n):
                    y[i] = number
            elif code == PUSH_LAG:
                lag = tokens[3 * t + 2]
                source = columns[argument, p - lag : p - lag + n]
                for i in range(n):
                    y[i] = source[i]
            else:
                rows = tokens[3 * t + 2] >> 32
                literal = tokens[3 * t + 2] & 0xFFFFFFFF
                _push_ago(columns, argument, numbers[literal], rows, p, n, y)
        elif code == CHOOSE:
            top -= 2
            c, a, b = stack[top, :n], stack[top + 1, :n], stack[top + 2, :n]
            for i in range(n):
                chosen = a[i] if c[i] != 0.0 else b[i]
                c[i] = chosen + (c[i] - c[i])
        elif (code >= NEGATE and code <= COSINE_TURN) or code == FLOOR:
            x = stack[top, :n]
            if code == NEGATE:
                for i in range(n):
                    x[i] = -x[i]
            elif code == ABSOLUTE:
                for i in range(n):
                    x[i] = abs(x[i])
            elif code == SQUARE_ROOT:
                for i in range(n):
                    x[i] = math.sqrt(x[i])
            elif code == LOGARITHM:
                for i in range(n):
                    valid = x[i] >= SMALLEST and x[i] < math.inf
                    z = x[i] if valid else 1.0
                    x[i] = log(z) if valid else math.nan
            elif code == EXPONENTIAL:
                for i in range(n):
                    power = exp(x[i])
                    power = power if x[i] <= 709.0 else math.nan  # beyond the numbers, or NaN
                    x[i] = power if x[i] >= -708.0 else 0.0 * power
            elif code == SIGN:
                for i in range(n):
                    s = 1.0 if x[i] > 0.0 else 0.0
                    s = -1.0 if x[i] < 0.0 else s
                    x[i] = s + (x[i] - x[i])
            elif code == FLOOR:
                for i in range(n):
                    x[i] = math.floor(x[i]) if x[i] - x[i] == 0.0 else math.nan
            elif code == SINE_TURN:
                for i in range(n):
                    x[i] = sin_turn(x[i])
            else:
                for i in range(n):
                    x[i] = cos_turn(x[i])
        else:
            top -= 1
            a, b = stack[top, :n], stack[top + 1, :n]
            if code == ADD:
                for i in range(n):
                    a[i] = a[i] + b[i]
            elif code == SUBTRACT:
                for i in range(n):
                    a[i] = a[i] - b[i]
            elif code == MULTIPLY:
                for i in range(n):
                    a[i] = a[i] * b[i]
            elif code == DIVIDE:
                for i in range(n):
                    a[i] = a[i] / b[i] + (b[i] - b[i])  # nothing is zero for being over infinity
            elif code == LESSER:
                for i in range(n):
                    m = a[i] if a[i] < b[i] else b[i]
                    a[i] = m + ((a[i] - a[i]) + (b[i] - b[i]))
            elif code == GREATER:
                for i in range(n):
                    m = a[i] if a[i] > b[i] else b[i]
                    a[i] = m + ((a[i] - a[i]) + (b[i] - b[i]))
            elif code == IS_MORE:
                for i in range(n):
                    m = 1.0 if a[i] > b[i] else 0.0
                    a[i] = m + ((a[i] - a[i]) + (b[i] - b[i]))
            elif code == IS_MORE_OR_EQUAL:
                for i in range(n):
                    m = 1.0 if a[i] >= b[i] else 0.0
                    a[i] = m + ((a[i] - a[i]) + (b[i] - b[i]))
    x = stack[0, :n]
    for i in range(n):
        out[i] = x[i] if x[i] - x[i] == 0.0 else math.nan
