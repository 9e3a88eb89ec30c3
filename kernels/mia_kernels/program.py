"""The one compiled entry point: a feature program run over a block of n >= 1 rows.

Batch is blocks of up to 256 rows, live is a block of one, a restart is a saved state, a partition is
a state handed over. All of them run this very machine code, so they cannot disagree.

The state is one flat float64 array: a header, the states of the recurrences, and the working columns
(``columns``): per column HISTORY rows of the past and room for a block. Reading back is reading to
the left in the same array; when the room is used up the last HISTORY rows move to its front.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mia_kernels import opcodes as op
from mia_kernels.calendar import calendar_columns
from mia_kernels.compile import kernel
from mia_kernels.elementary import log
from mia_kernels.external import external
from mia_kernels.formula import SMALLEST, evaluate
from mia_kernels.history import (
    before_change,
    clock_deviation,
    seasonal_mean,
    session_rank,
    session_sum,
    unchanged_for,
)
from mia_kernels.memory import floats_at, integers_at, matrix_at, table_at
from mia_kernels.recurrences import adx8, average8, macd8, rsi8
from mia_kernels.session import profile, return_since, session_variance, vwap
from mia_kernels.spans import WINDOW_BINS, profile_bars, profile_window, slope, time_slope, time_window
from mia_kernels.windows import (
    comoment_table,
    finish_moments,
    maximum_table,
    minimum_table,
    moment_table,
    stochastic,
    time_deviation,
    window_correlation,
    window_maximum,
    window_minimum,
    window_moments,
)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LARGEST = 1e15
"""No price, volume or time in seconds is larger."""

BLOCK, HISTORY, CAPACITY = op.BLOCK, op.HISTORY, op.CAPACITY
ROWS, POSITION, FIRST_INPUT = op.ROWS, op.POSITION, op.FIRST_INPUT
CODE, SOURCE_A, SOURCE_B, SOURCE_C, SOURCE_D = op.CODE, op.SOURCE_A, op.SOURCE_B, op.SOURCE_C, op.SOURCE_D
COUNT, STATE, INTEGERS, FLOATS, TARGETS = op.COUNT, op.STATE, op.INTEGERS, op.FLOATS, op.TARGETS


@kernel
def _emit(x: Floats, target: int, columns: Floats, p: int, out: Floats, q: int) -> None:
    """Store a finished row: to output column ``target``, or to working column ``-1 - target``."""
    n = x.size
    y = out[target, q : q + n] if target >= 0 else columns[-1 - target, p : p + n]
    for i in range(n):
        y[i] = x[i]


@kernel
def _emit_lanes(
    work: Floats, count: int, integers: Integers, targets: int, columns: Floats, p: int, out: Floats, q: int, n: int
) -> None:
    """Store ``count`` rows of ``work``, one after another in the list of targets."""
    for k in range(count):
        _emit(work[k, :n], integers[targets + k], columns, p, out, q)


@kernel
def _step(
    program: Integers,
    integers: Integers,
    floats: Floats,
    state: Floats,
    columns: Floats,
    p: int,
    n: int,
    out: Floats,
    q: int,
    work: Floats,
) -> None:
    for k in range(program.shape[0]):
        line = program[k]
        code, a, b, count = line[CODE], line[SOURCE_A], line[SOURCE_B], line[COUNT]
        at, i0, f0, targets = line[STATE], line[INTEGERS], line[FLOATS], line[TARGETS]
        if code == op.COPY:
            for lane in range(count):
                _emit(columns[integers[i0 + lane], p : p + n], integers[targets + lane], columns, p, out, q)
        elif code == op.FORMULA:
            evaluate(integers[i0:], count, floats[f0:], columns, p, n, work, work[op.STACK])
            _emit_lanes(work[op.STACK :], 1, integers, targets, columns, p, out, q, n)
        elif code == op.AVERAGE:
            average8(columns[a, p : p + n], integers[i0:], floats[f0:], state, at, work[0:8])
            _emit_lanes(work, count, integers, targets, columns, p, out, q, n)
        elif code == op.RSI:
            rsi8(
                columns[a, p : p + n], columns[a, p - 1 : p - 1 + n], integers[i0:], floats[f0:], state, at, work, count
            )
            _emit_lanes(work, count, integers, targets, columns, p, out, q, n)
        elif code == op.ADX:
            adx8(
                columns[a, p : p + n],
                columns[a, p - 1 : p - 1 + n],
                columns[b, p : p + n],
                columns[b, p - 1 : p - 1 + n],
                columns[line[SOURCE_C], p : p + n],
                integers[i0:],
                floats[f0:],
                state,
                at,
                work,
                count,
            )
            _emit_lanes(work, count, integers, targets, columns, p, out, q, n)
            _emit_lanes(work[16:], count, integers, targets + count, columns, p, out, q, n)
            _emit_lanes(work[24:], count, integers, targets + 2 * count, columns, p, out, q, n)
        elif code == op.MACD:
            macd8(columns[a, p : p + n], integers[i0:], floats[f0:], state, at, work, count)
            _emit_lanes(work[16:], count, integers, targets, columns, p, out, q, n)
            _emit_lanes(work, count, integers, targets + count, columns, p, out, q, n)
            _emit_lanes(work[24:], count, integers, targets + 2 * count, columns, p, out, q, n)
        elif code == op.TRUE_RANGE:
            h, low, c1 = columns[a, p : p + n], columns[b, p : p + n], columns[line[SOURCE_C], p - 1 : p - 1 + n]
            y = work[0, :n]
            for i in range(n):
                top = h[i] if h[i] > c1[i] else c1[i]
                bottom = low[i] if low[i] < c1[i] else c1[i]
                y[i] = (top - bottom) + ((h[i] - h[i]) + (low[i] - low[i])) + (c1[i] - c1[i])
            _emit_lanes(work, 1, integers, targets, columns, p, out, q, n)
        elif code == op.LOG_RETURN:
            lag = integers[i0]
            c, before, y = columns[a, p : p + n], columns[a, p - lag : p - lag + n], work[0, :n]
            for i in range(n):
                ratio = c[i] / before[i]
                valid = ratio >= SMALLEST and ratio < math.inf
                z = ratio if valid else 1.0
                y[i] = log(z) if valid else math.nan
            _emit_lanes(work, 1, integers, targets, columns, p, out, q, n)
        elif code == op.MOMENT_TABLE:
            moment_table(columns, a, b, count, p, n)
        elif code == op.MAXIMUM_TABLE:
            maximum_table(columns, a, b, count, p, n)
        elif code == op.MINIMUM_TABLE:
            minimum_table(columns, a, b, count, p, n)
        elif code == op.MOMENT_WINDOW:
            window = 0
            for lane in range(count):
                if integers[i0 + 2 * lane] != window:  # lanes of one window share its sums
                    window = integers[i0 + 2 * lane]
                    window_moments(columns, a, b, window, p, n, work[0, :n], work[1, :n])
                finish_moments(integers[i0 + 2 * lane + 1], window, work[0, :n], work[1, :n], work[2, :n])
                _emit(work[2, :n], integers[targets + lane], columns, p, out, q)
        elif code == op.MAXIMUM_WINDOW:
            for lane in range(count):
                window_maximum(columns, a, b, integers[i0 + lane], p, n, work[0, :n])
                _emit(work[0, :n], integers[targets + lane], columns, p, out, q)
        elif code == op.MINIMUM_WINDOW:
            for lane in range(count):
                window_minimum(columns, a, b, integers[i0 + lane], p, n, work[0, :n])
                _emit(work[0, :n], integers[targets + lane], columns, p, out, q)
        elif code == op.STOCHASTIC:
            stochastic(
                columns,
                line[SOURCE_C],
                a,
                integers[i0],
                b,
                integers[i0 + 1],
                integers[i0 + 2],
                integers[i0 + 3],
                integers[i0 + 4],
                p,
                n,
                work,
            )
            _emit_lanes(work[2:], 2, integers, targets, columns, p, out, q, n)
        elif code == op.TIME_DEVIATION:
            for lane in range(count):
                time_deviation(
                    columns,
                    a,
                    b,
                    op.TIME,
                    floats[f0 + lane],
                    integers[i0 + lane],
                    p,
                    n,
                    work[0, :n],
                    work[1, :n],
                    work[2, :n],
                )
                _emit(work[2, :n], integers[targets + lane], columns, p, out, q)
        elif code == op.COMOMENT_TABLE:
            comoment_table(columns, a, b, line[SOURCE_C], line[SOURCE_D], integers[i0], count, p, n)
        elif code == op.CORRELATION:
            for lane in range(count):
                window_correlation(
                    columns,
                    a,
                    b,
                    line[SOURCE_C],
                    line[SOURCE_D],
                    integers[i0],
                    integers[i0 + 1 + lane],
                    p,
                    n,
                    work[1:6],
                    work[0, :n],
                )
                _emit(work[0, :n], integers[targets + lane], columns, p, out, q)
        elif code == op.VWAP:
            vwap(columns, a, b, line[SOURCE_C], line[SOURCE_D], floats[f0], p, n, state, at, work[0, :n])
            _emit_lanes(work, 1, integers, targets, columns, p, out, q, n)
        elif code == op.PROFILE:
            profile(columns, a, b, line[SOURCE_C], floats[f0], floats[f0 + 1], p, n, state, at, work[0:6])
            _emit_lanes(work, 6, integers, targets, columns, p, out, q, n)
        elif code == op.SESSION_VARIANCE:
            session_variance(columns, a, floats[f0], p, n, state, at, work[0:2])
            _emit_lanes(work, 2, integers, targets, columns, p, out, q, n)
        elif code == op.RETURN_SINCE:
            return_since(columns, a, b, p, n, state, at, work[0, :n])
            _emit_lanes(work, 1, integers, targets, columns, p, out, q, n)
        elif code == op.SESSION_SUM:
            session_sum(columns, a, floats[f0], p, n, state, at, work[0, :n])
            _emit_lanes(work, 1, integers, targets, columns, p, out, q, n)
        elif code == op.SESSION_RANK:
            session_rank(columns, a, integers[i0], p, n, state, at, work[0, :n])
            _emit_lanes(work, 1, integers, targets, columns, p, out, q, n)
        elif code == op.CLOCK_DEVIATION:
            clock_deviation(columns, a, floats[f0], floats[f0 + 1], floats[f0 + 2], p, n, state, at, work[0, :n])
            _emit_lanes(work, 1, integers, targets, columns, p, out, q, n)
        elif code == op.SEASONAL_MEAN:
            seasonal_mean(columns, a, integers[i0], floats[f0], p, n, state, at, work[0, :n])
            _emit_lanes(work, 1, integers, targets, columns, p, out, q, n)
        elif code == op.UNCHANGED_FOR:
            unchanged_for(columns, a, p, n, state, at, work[0, :n])
            _emit_lanes(work, 1, integers, targets, columns, p, out, q, n)
        elif code == op.BEFORE_CHANGE:
            before_change(columns, a, b, p, n, state, at, work[0, :n])
            _emit_lanes(work, 1, integers, targets, columns, p, out, q, n)
        elif code == op.TIME_WINDOW:
            for lane in range(count):
                rows, kind = integers[i0 + 2 * lane], integers[i0 + 2 * lane + 1]
                time_window(columns, a, kind, floats[f0 + lane], rows, p, n, work[1, :n], work[0, :n])
                _emit(work[0, :n], integers[targets + lane], columns, p, out, q)
        elif code == op.PROFILE_WINDOW:
            profile_bars(columns, a, b, line[SOURCE_C], floats[f0], line[SOURCE_D], p, n)
            bins = floats_at(work[8:].ctypes.data, WINDOW_BINS)
            for lane in range(count):
                seconds, rows = floats[f0 + 1 + lane], integers[i0 + lane]
                profile_window(
                    columns, line[SOURCE_C], line[SOURCE_D], floats[f0], seconds, rows, p, n, bins, work[0:6]
                )
                _emit_lanes(work, 6, integers, targets + 6 * lane, columns, p, out, q, n)
        elif code == op.SLOPE:
            for lane in range(count):
                slope(columns, a, integers[i0 + lane], p, n, work[0, :n])
                _emit(work[0, :n], integers[targets + lane], columns, p, out, q)
        elif code == op.TIME_SLOPE:
            for lane in range(count):
                time_slope(columns, a, b, floats[f0 + lane], integers[i0 + lane], p, n, work[0, :n])
                _emit(work[0, :n], integers[targets + lane], columns, p, out, q)
        elif code == op.EXTERNAL:
            external(columns, integers[i0:], floats[f0:], count, p, n, state, at, work)
            _emit_lanes(work, count, integers, targets, columns, p, out, q, n)


# --- the call: one array of addresses and sizes ------------------------------------------------------
# One array argument costs about 40 ns; a live call passes this one alone.
(
    PROGRAM,
    PROGRAM_SIZE,
    INTEGER_TABLE,
    INTEGER_TABLE_SIZE,
    FLOAT_TABLE,
    FLOAT_TABLE_SIZE,
    ZONE,
    ZONE_SIZE,
    INPUT_TABLE,
    INPUT_TABLE_SIZE,
    KNOWN_AT,
    ROW_COUNT,
    STATE_TABLE,
    STATE_SIZE,
    COLUMNS_AT,
    WORK,
    OUT,
    OUT_ROWS,
    OUT_STRIDE,
) = range(19)
CALL_SIZE = 19


@kernel
def run(call: Integers) -> None:
    """Advance a program by a block of rows.

    ``call`` (CALL_SIZE,) holds addresses and sizes, by position:

    PROGRAM, PROGRAM_SIZE
        The (k, FIELDS) int64 instructions.
    INTEGER_TABLE, FLOAT_TABLE and their sizes
        The numbers that instructions refer to.
    ZONE, ZONE_SIZE
        UTC offsets of New York, see :func:`mia_kernels.calendar.calendar_columns`.
    INPUT_TABLE, INPUT_TABLE_SIZE
        The addresses (int64) of the contiguous float64 input columns, in the plan's order.
    KNOWN_AT, ROW_COUNT
        The int64 column of closes, nanoseconds UTC, strictly ascending; and how many rows there are.
    STATE_TABLE, STATE_SIZE, COLUMNS_AT
        The flat state, advanced in place; working columns begin at COLUMNS_AT.
    WORK
        (SCRATCH, BLOCK) float64 scratch.
    OUT, OUT_ROWS, OUT_STRIDE
        Where the first row's results go, in a float64 matrix of OUT_ROWS rows that lie OUT_STRIDE numbers
        apart; NaN where a value is missing.

    An input beyond LARGEST in size is missing, as infinity and NaN are: squares and sums of what is left
    stay finite.
    """
    program = table_at(call[PROGRAM], call[PROGRAM_SIZE], op.FIELDS)
    integers = integers_at(call[INTEGER_TABLE], call[INTEGER_TABLE_SIZE])
    floats = floats_at(call[FLOAT_TABLE], call[FLOAT_TABLE_SIZE])
    zone = integers_at(call[ZONE], call[ZONE_SIZE])
    inputs = integers_at(call[INPUT_TABLE], call[INPUT_TABLE_SIZE])
    count = call[ROW_COUNT]
    known_at = integers_at(call[KNOWN_AT], count)
    state = floats_at(call[STATE_TABLE], call[STATE_SIZE])
    columns_at = call[COLUMNS_AT]
    slots = (call[STATE_SIZE] - columns_at) // CAPACITY
    columns = matrix_at(call[STATE_TABLE] + 8 * columns_at, slots, CAPACITY)
    work = matrix_at(call[WORK], op.SCRATCH, BLOCK)
    out = matrix_at(call[OUT], call[OUT_ROWS], call[OUT_STRIDE])
    done = 0
    while done < count:
        p = int(state[POSITION])
        if p == CAPACITY:
            for j in range(slots):
                column = columns[j]
                for i in range(HISTORY):
                    column[i] = column[BLOCK + i]
            p = HISTORY
        n = min(count - done, CAPACITY - p)
        calendar_columns(known_at[done : done + n], zone, columns, p)
        for j in range(inputs.size):
            source = floats_at(inputs[j], count)[done : done + n]
            column = columns[FIRST_INPUT + j, p : p + n]
            for i in range(n):
                x = source[i]
                column[i] = x if abs(x) <= LARGEST else math.nan  # NaN compares false
        _step(program, integers, floats, state, columns, p, n, out, done, work)
        state[POSITION] = p + n
        state[ROWS] += n
        done += n
