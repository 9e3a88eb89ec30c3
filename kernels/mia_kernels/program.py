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
from mia_kernels.compile import inlined, kernel
from mia_kernels.external import external
from mia_kernels.formula import ago, arithmetic, logarithm, operations
from mia_kernels.history import (
    before_change,
    clock_deviation,
    seasonal_mean,
    session_rank,
    session_sum,
    unchanged_for,
)
from mia_kernels.memory import (
    address_of,
    floats_at,
    get,
    get_integer,
    integers_at,
    matrix_at,
    put,
    put_integer,
    table_at,
)
from mia_kernels.recurrences import (
    AVERAGE_STATE,
    PLACES,
    ROW,
    adx,
    average_row,
    averages,
    averages_each,
    macd,
    rsi,
    set_job,
    set_rows,
)
from mia_kernels.session import profile, return_since, session_variance, vwap
from mia_kernels.spans import PROFILE_SCRATCH, profile_bars, profile_window, slope, time_slope, time_window
from mia_kernels.streams import fence, fetch, fetch_input, stream, stream_within
from mia_kernels.validity import mark
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
    window_sum,
)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LARGEST = 1e15
"""No price, volume or time in seconds is larger."""
FINITE = 1.7976931348623157e308
"""The largest number: what is beyond it in size is infinite."""

HISTORY, CAPACITY = op.HISTORY, op.CAPACITY
ROWS, POSITION = op.ROWS, op.POSITION
CODE, SOURCE_A, SOURCE_B, SOURCE_C, SOURCE_D = op.CODE, op.SOURCE_A, op.SOURCE_B, op.SOURCE_C, op.SOURCE_D
COUNT, STATE, INTEGERS, FLOATS, TARGETS = op.COUNT, op.STATE, op.INTEGERS, op.FLOATS, op.TARGETS


# --- where results go: SINK int64 in scratch, whose address is ``sink`` ----------------------------------
OUT_AT, OUT_BYTES, STAGE_AT, VALID_AT, VALID_BYTES, MISSING_AT, PASSES = range(7)
SINK = 7
"""The first output's first row of this block, bytes from one output to the next; where outputs wait that are streamed
(0: none are); the first output's bitmap from this block on (0: no bitmaps), bytes from one bitmap to the next, counts
of missing values; whether inputs that are passed on are written too."""


@inlined
def _output(target: int, sink: int) -> int:
    """Address of an output's first row."""
    return int(get_integer(sink + 8 * OUT_AT) + get_integer(sink + 8 * OUT_BYTES) * target)


@inlined
def _place(target: int, base: int, sink: int) -> int:
    """Address of a finished column's first row: output row ``target``, or working column ``-1 - target``."""
    return _output(target, sink) if target >= 0 else base + 8 * op.STRIDE * (-1 - target)


@inlined
def _room(target: int, base: int, sink: int, row: int) -> int:
    """Where a kernel writes a finished column: its place, or the stage's ``row`` that :func:`_leave` streams."""
    stage = get_integer(sink + 8 * STAGE_AT)
    return stage + ROW * row if stage != 0 and target >= 0 else _place(target, base, sink)


@kernel
def _mark(target: int, source: int, n: int, limit: float, sink: int) -> None:
    """Fill an output's bitmap from its numbers at ``source``; those beyond ``limit`` in size are missing."""
    valid, counts = get_integer(sink + 8 * VALID_AT), get_integer(sink + 8 * MISSING_AT) + 8 * target
    missing = mark(source, n, limit, valid + get_integer(sink + 8 * VALID_BYTES) * target)
    put_integer(counts, get_integer(counts) + missing)


@inlined
def _leave(target: int, row: int, sink: int, n: int) -> None:
    """After a finished output: its bitmap, and its way from the stage, unless it was written in its place."""
    if target >= 0:
        stage = get_integer(sink + 8 * STAGE_AT)
        if get_integer(sink + 8 * VALID_AT) != 0:
            _mark(target, stage + ROW * row if stage != 0 else _output(target, sink), n, math.inf, sink)
        if stage != 0:
            stream(stage + ROW * row, _output(target, sink), n)


@inlined
def _ahead(targets: int, lane: int, count: int, sink: int, n: int) -> None:
    """Ask for the cache lines of the next lane's output while this lane is computed."""
    if n > 1 and get_integer(sink + 8 * STAGE_AT) == 0 and lane + 1 < count:
        target = get_integer(targets + 8 * (lane + 1))
        if target >= 0:
            fetch(_output(target, sink), n)


@kernel
def _find_places(targets: int, count: int, places: int, base: int, sink: int) -> None:
    """Turn ``count`` targets into addresses to write to, staged ones a row of the stage each."""
    for k in range(count):
        put_integer(places + 8 * k, _room(get_integer(targets + 8 * k), base, sink, k))


@kernel
def _leave_all(targets: int, count: int, sink: int, n: int) -> None:
    """:func:`_leave` for ``count`` finished columns."""
    if get_integer(sink + 8 * STAGE_AT) != 0 or get_integer(sink + 8 * VALID_AT) != 0:
        for k in range(count):
            _leave(get_integer(targets + 8 * k), k, sink, n)


@kernel
def _bring(rows: int, targets: int, count: int, base: int, sink: int, n: int) -> None:
    """Copy ``count`` rows of scratch to their places, one after the other; outputs stream if others do."""
    for k in range(count):
        source, target = rows + ROW * k, get_integer(targets + 8 * k)
        to = _place(target, base, sink)
        if target >= 0 and get_integer(sink + 8 * VALID_AT) != 0:
            _mark(target, source, n, math.inf, sink)
        if target >= 0 and get_integer(sink + 8 * STAGE_AT) != 0:
            stream(source, to, n)
        else:
            _ahead(targets, k, count, sink, n)
            x, y = floats_at(source, n), floats_at(to, n)
            for i in range(n):
                y[i] = x[i]


@inlined
def _copy_within(source: int, to: int, n: int, limit: float, streams: bool) -> None:
    """Copy n numbers; what is larger in size than ``limit`` becomes missing, as NaN is."""
    if n == 1:
        number = get(source)
        put(to, number if abs(number) <= limit else math.nan)
    elif streams:
        stream_within(source, to, n, limit)
    else:
        x, y = floats_at(source, n), floats_at(to, n)
        for i in range(n):
            y[i] = x[i] if abs(x[i]) <= limit else math.nan  # NaN compares false


@kernel
def _put(table: int, count: int, base: int, sink: int, n: int) -> None:
    """Put columns out: (output row, byte offset of the column) each. What is not finite is missing."""
    marks, streams = get_integer(sink + 8 * VALID_AT) != 0, get_integer(sink + 8 * STAGE_AT) != 0
    for k in range(count):
        target = get_integer(table + 16 * k)
        source = base + get_integer(table + 16 * k + 8)
        if marks:
            _mark(target, source, n, FINITE, sink)
        if n > 1 and not streams and k + 1 < count:
            fetch(_output(get_integer(table + 16 * k + 16), sink), n)
        _copy_within(source, _output(target, sink), n, FINITE, streams)


@inlined
def _input(table: int, k: int, count: int, inputs: int, done: int, n: int) -> int:
    """Address of the k-th input of a table from row ``done`` on; the next one's lines are asked for meanwhile."""
    if n > 1 and k + 1 < count:
        fetch_input(get_integer(inputs + 8 * get_integer(table + 16 * k + 24)) + 8 * done, n)
    return int(get_integer(inputs + 8 * get_integer(table + 16 * k + 8)) + 8 * done)


@kernel
def _load(table: int, count: int, inputs: int, done: int, base: int, n: int) -> None:
    """Inputs to their working columns: (working column, input) each. What is larger than LARGEST is missing."""
    for k in range(count):
        to = base + 8 * op.STRIDE * get_integer(table + 16 * k)
        _copy_within(_input(table, k, count, inputs, done, n), to, n, LARGEST, False)


@kernel
def _pass(table: int, count: int, inputs: int, done: int, sink: int, n: int) -> None:
    """Inputs to the output: (output row, input) each; or only their bitmaps, where the inputs' memory is handed on."""
    marks, streams = get_integer(sink + 8 * VALID_AT) != 0, get_integer(sink + 8 * STAGE_AT) != 0
    for k in range(count):
        target, source = get_integer(table + 16 * k), _input(table, k, count, inputs, done, n)
        if marks:
            _mark(target, source, n, LARGEST, sink)
        if get_integer(sink + 8 * PASSES) != 0:
            _copy_within(source, _output(target, sink), n, LARGEST, streams)


@kernel
def _average(
    x: int,
    state: int,
    numbers: int,
    table: int,
    targets: int,
    count: int,
    jobs: int,
    places: int,
    work: int,
    base: int,
    sink: int,
    n: int,
) -> None:
    """Up to 32 averages of one input: jobs of eight lanes, side by side."""
    if n == 1:
        _find_places(targets, count, places, base, sink)
    some = (count + op.LANES - 1) // op.LANES
    for k in range(some):
        lanes = min(op.LANES, count - op.LANES * k)
        job_state, job_numbers = state + 8 * AVERAGE_STATE * k, numbers + 16 * op.LANES * k
        job_table = table + 24 * op.LANES * k
        if n == 1:
            average_row(x, job_state, job_numbers, job_table, places + 8 * op.LANES * k, lanes)
        else:
            set_rows(jobs, k, x, job_state, job_numbers, job_table, work + ROW * op.LANES * k, lanes, base)
    if n > 1:
        averages(jobs, some, n)
        _bring(work, targets, count, base, sink, n)
    else:
        _leave_all(targets, count, sink, n)


@kernel
def _average_each(
    sources: int,
    state: int,
    numbers: int,
    table: int,
    targets: int,
    count: int,
    jobs: int,
    places: int,
    work: int,
    base: int,
    sink: int,
    n: int,
) -> None:
    """Up to eight averages, each of an input of its own; ``sources`` is the address of their columns' numbers."""
    inputs, rows = jobs + PLACES, jobs + PLACES + 8 * op.LANES
    for lane in range(op.LANES):
        used = lane < count
        put_integer(inputs + 8 * lane, base + 8 * op.STRIDE * get_integer(sources + (8 * lane if used else 0)))
        put_integer(rows + 8 * lane, work + ROW * lane)
    if n == 1:
        _find_places(targets, count, places, base, sink)
    set_job(jobs, 0, inputs, state, numbers, table, rows if n > 1 else places)
    averages_each(jobs, count, n)
    if n > 1:
        _bring(work, targets, count, base, sink, n)
    else:
        _leave_all(targets, count, sink, n)


@kernel
def _true_range(high: int, low: int, close: int, out_at: int, n: int) -> None:
    h, lo, before, y = floats_at(high, n), floats_at(low, n), floats_at(close - 8, n), floats_at(out_at, n)
    for i in range(n):
        top = h[i] if h[i] > before[i] else before[i]
        bottom = lo[i] if lo[i] < before[i] else before[i]
        y[i] = (top - bottom) + ((h[i] - h[i]) + (lo[i] - lo[i])) + (before[i] - before[i])


@kernel
def _log_return(close: int, before: int, out_at: int, n: int) -> None:
    c, b, y = floats_at(close, n), floats_at(before, n), floats_at(out_at, n)
    for i in range(n):
        y[i] = logarithm(c[i] / b[i])


@kernel
def _step(
    program: Integers,
    integers: Integers,
    floats: Floats,
    state: Floats,
    columns: Floats,
    p: int,
    n: int,
    inputs: int,
    done: int,
    sink: int,
    work: Floats,
) -> None:
    base = address_of(columns) + 8 * p
    integers_at_, floats_at_, state_at_ = address_of(integers), address_of(floats), address_of(state)
    work_at = address_of(work)
    jobs, places = work_at + ROW * (op.SCRATCH - 2), work_at + ROW * (op.SCRATCH - 1)
    for k in range(program.shape[0]):
        line = program[k]
        code, a, b, count = line[CODE], line[SOURCE_A], line[SOURCE_B], line[COUNT]
        at, i0, f0, targets = line[STATE], line[INTEGERS], line[FLOATS], line[TARGETS]
        if code == op.ARITHMETIC:
            arithmetic(a, count, integers_at_ + 8 * i0, base, n)
        elif code == op.OPERATIONS:
            operations(count, integers_at_ + 8 * i0, base, n)
        elif code == op.PUT:
            _put(integers_at_ + 8 * i0, count, base, sink, n)
        elif code == op.LOAD:
            _load(integers_at_ + 8 * i0, count, inputs, done, base, n)
        elif code == op.PASS:
            _pass(integers_at_ + 8 * i0, count, inputs, done, sink, n)
        elif code == op.AGO:
            for lane in range(count):
                ago(
                    floats[f0 + lane],
                    integers[i0 + 3 * lane],
                    base,
                    8 * op.STRIDE * op.TIME,
                    integers[i0 + 3 * lane + 1],
                    integers[i0 + 3 * lane + 2],
                    n,
                )
        elif code == op.AVERAGE:
            _average(
                base + 8 * op.STRIDE * a,
                state_at_ + 8 * at,
                floats_at_ + 8 * f0,
                integers_at_ + 8 * i0,
                integers_at_ + 8 * targets,
                count,
                jobs,
                places,
                work_at,
                base,
                sink,
                n,
            )
        elif code == op.AVERAGE_EACH:
            _average_each(
                integers_at_ + 8 * (i0 + 3 * op.LANES),
                state_at_ + 8 * at,
                floats_at_ + 8 * f0,
                integers_at_ + 8 * i0,
                integers_at_ + 8 * targets,
                count,
                jobs,
                places,
                work_at,
                base,
                sink,
                n,
            )
        elif code == op.RSI:
            _find_places(integers_at_ + 8 * targets, count, places, base, sink)
            rsi(
                base + 8 * op.STRIDE * a,
                n,
                state_at_ + 8 * at,
                floats_at_ + 8 * f0,
                integers_at_ + 8 * i0,
                places,
                count,
                jobs,
                base,
                work_at,
            )
            _leave_all(integers_at_ + 8 * targets, count, sink, n)
        elif code == op.ADX:
            _find_places(integers_at_ + 8 * targets, 3 * count, places, base, sink)
            adx(
                base + 8 * op.STRIDE * a,
                base + 8 * op.STRIDE * b,
                base + 8 * op.STRIDE * line[SOURCE_C],
                n,
                state_at_ + 8 * at,
                floats_at_ + 8 * f0,
                integers_at_ + 8 * i0,
                places,
                count,
                jobs,
                base,
                work_at,
            )
            _leave_all(integers_at_ + 8 * targets, 3 * count, sink, n)
        elif code == op.MACD:
            _find_places(integers_at_ + 8 * targets, 3 * count, places, base, sink)
            macd(
                base + 8 * op.STRIDE * a,
                n,
                state_at_ + 8 * at,
                floats_at_ + 8 * f0,
                integers_at_ + 8 * i0,
                places,
                count,
                jobs,
                base,
                work_at,
            )
            _leave_all(integers_at_ + 8 * targets, 3 * count, sink, n)
        elif code == op.TRUE_RANGE:
            _true_range(
                base + 8 * op.STRIDE * a,
                base + 8 * op.STRIDE * b,
                base + 8 * op.STRIDE * line[SOURCE_C],
                _room(integers[targets], base, sink, 0),
                n,
            )
            _leave(integers[targets], 0, sink, n)
        elif code == op.LOG_RETURN:
            before = base + 8 * (op.STRIDE * a - integers[i0])
            _log_return(base + 8 * op.STRIDE * a, before, _room(integers[targets], base, sink, 0), n)
            _leave(integers[targets], 0, sink, n)
        elif code == op.MOMENT_TABLE:
            moment_table(a, b, count, line[SOURCE_C], base, n)
        elif code == op.MAXIMUM_TABLE:
            maximum_table(a, b, count, base, n)
        elif code == op.MINIMUM_TABLE:
            minimum_table(a, b, count, base, n)
        elif code == op.COMOMENT_TABLE:
            comoment_table(a, b, line[SOURCE_C], line[SOURCE_D], integers[i0], count, base, n)
        elif code == op.MOMENT_WINDOW:
            window, squares = 0, False
            for lane in range(count):
                length, kind = integers[i0 + 2 * lane], integers[i0 + 2 * lane + 1]
                place = _room(integers[targets + lane], base, sink, 0)
                _ahead(integers_at_ + 8 * targets, lane, count, sink, n)
                if kind in (op.POPULATION_DEVIATION, op.SAMPLE_DEVIATION):
                    if length != window or not squares:  # lanes of one window share its sums
                        window_moments(a, b, length, base, n, work_at)
                    squares = True
                elif length != window:
                    window_sum(a, b, length, base, n, work_at)
                    squares = False
                window = length
                finish_moments(kind, length, n, work_at, place)
                _leave(integers[targets + lane], 0, sink, n)
        elif code == op.MAXIMUM_WINDOW:
            for lane in range(count):
                place = _room(integers[targets + lane], base, sink, 0)
                _ahead(integers_at_ + 8 * targets, lane, count, sink, n)
                window_maximum(a, b, integers[i0 + lane], base, n, place)
                _leave(integers[targets + lane], 0, sink, n)
        elif code == op.MINIMUM_WINDOW:
            for lane in range(count):
                place = _room(integers[targets + lane], base, sink, 0)
                _ahead(integers_at_ + 8 * targets, lane, count, sink, n)
                window_minimum(a, b, integers[i0 + lane], base, n, place)
                _leave(integers[targets + lane], 0, sink, n)
        elif code == op.SLOPE:
            for lane in range(count):
                place = _room(integers[targets + lane], base, sink, 0)
                _ahead(integers_at_ + 8 * targets, lane, count, sink, n)
                slope(columns, a, integers[i0 + lane], p, n, floats_at(place, n))
                _leave(integers[targets + lane], 0, sink, n)
        elif code == op.CORRELATION:
            for lane in range(count):
                _ahead(integers_at_ + 8 * targets, lane, count, sink, n)
                window_correlation(
                    a,
                    b,
                    line[SOURCE_C],
                    line[SOURCE_D],
                    integers[i0],
                    integers[i0 + 1 + lane],
                    base,
                    n,
                    work_at,
                    _room(integers[targets + lane], base, sink, 0),
                )
                _leave(integers[targets + lane], 0, sink, n)
        elif code == op.STOCHASTIC:
            _ahead(integers_at_ + 8 * targets, -1, 2, sink, n)
            _ahead(integers_at_ + 8 * targets, 0, 2, sink, n)
            stochastic(
                line[SOURCE_C],
                a,
                integers[i0],
                b,
                integers[i0 + 1],
                integers[i0 + 2],
                integers[i0 + 3],
                integers[i0 + 4],
                base,
                n,
                work_at,
                _room(integers[targets], base, sink, 0),
                _room(integers[targets + 1], base, sink, 1),
            )
            _leave_all(integers_at_ + 8 * targets, 2, sink, n)
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
                    base,
                    n,
                    work_at,
                    _room(integers[targets + lane], base, sink, 0),
                )
                _leave(integers[targets + lane], 0, sink, n)
        elif code == op.VWAP:
            vwap(columns, a, b, line[SOURCE_C], line[SOURCE_D], floats[f0], p, n, state, at, work[0, :n])
            _bring(work_at, integers_at_ + 8 * targets, 1, base, sink, n)
        elif code == op.PROFILE:
            profile(columns, a, b, line[SOURCE_C], floats[f0], floats[f0 + 1], p, n, state, at, work[0:6])
            _bring(work_at, integers_at_ + 8 * targets, 6, base, sink, n)
        elif code == op.SESSION_VARIANCE:
            session_variance(columns, a, floats[f0], p, n, state, at, work[0:2])
            _bring(work_at, integers_at_ + 8 * targets, 2, base, sink, n)
        elif code == op.RETURN_SINCE:
            return_since(columns, a, b, p, n, state, at, work[0, :n])
            _bring(work_at, integers_at_ + 8 * targets, 1, base, sink, n)
        elif code == op.SESSION_SUM:
            session_sum(columns, a, floats[f0], p, n, state, at, work[0, :n])
            _bring(work_at, integers_at_ + 8 * targets, 1, base, sink, n)
        elif code == op.SESSION_RANK:
            session_rank(columns, a, integers[i0], p, n, state, at, work[0, :n])
            _bring(work_at, integers_at_ + 8 * targets, 1, base, sink, n)
        elif code == op.CLOCK_DEVIATION:
            clock_deviation(columns, a, floats[f0], floats[f0 + 1], floats[f0 + 2], p, n, state, at, work[0, :n])
            _bring(work_at, integers_at_ + 8 * targets, 1, base, sink, n)
        elif code == op.SEASONAL_MEAN:
            seasonal_mean(columns, a, integers[i0], floats[f0], p, n, state, at, work[0, :n])
            _bring(work_at, integers_at_ + 8 * targets, 1, base, sink, n)
        elif code == op.UNCHANGED_FOR:
            unchanged_for(columns, a, p, n, state, at, work[0, :n])
            _bring(work_at, integers_at_ + 8 * targets, 1, base, sink, n)
        elif code == op.BEFORE_CHANGE:
            before_change(columns, a, b, p, n, state, at, work[0, :n])
            _bring(work_at, integers_at_ + 8 * targets, 1, base, sink, n)
        elif code == op.TIME_WINDOW:
            for lane in range(count):
                rows, kind = integers[i0 + 2 * lane], integers[i0 + 2 * lane + 1]
                time_window(columns, a, kind, floats[f0 + lane], rows, p, n, work[1, :n], work[0, :n])
                _bring(work_at, integers_at_ + 8 * (targets + lane), 1, base, sink, n)
        elif code == op.PROFILE_WINDOW:
            profile_bars(columns, a, b, line[SOURCE_C], floats[f0], line[SOURCE_D], p, n)
            scratch = floats_at(work[8:].ctypes.data, PROFILE_SCRATCH)
            for lane in range(count):
                seconds, rows = floats[f0 + 1 + lane], integers[i0 + lane]
                profile_window(
                    columns, line[SOURCE_C], line[SOURCE_D], floats[f0], seconds, rows, p, n, scratch, work[0:6]
                )
                _bring(work_at, integers_at_ + 8 * (targets + 6 * lane), 6, base, sink, n)
        elif code == op.TIME_SLOPE:
            for lane in range(count):
                time_slope(columns, a, b, floats[f0 + lane], integers[i0 + lane], p, n, work[0, :n])
                _bring(work_at, integers_at_ + 8 * (targets + lane), 1, base, sink, n)
        elif code == op.EXTERNAL:
            external(columns, integers[i0:], floats[f0:], count, p, n, state, at, work)
            _bring(work_at, integers_at_ + 8 * targets, count, base, sink, n)


@kernel
def _turn_back(depths: Integers, columns: int, p: int) -> None:
    """Move what is still read of the rows before row p to before row HISTORY."""
    for j in range(depths.size):
        here = columns + 8 * op.STRIDE * j
        depth = depths[j]
        old, new = floats_at(here + 8 * (p - depth), depth), floats_at(here + 8 * (HISTORY - depth), depth)
        for i in range(depth):
            new[i] = old[i]


# --- the call: one array of addresses and sizes ------------------------------------------------------
# An array argument costs some 100 ns, a number 40: a live call passes the address of this array alone.
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
    KNOWN_AT,
    ROW_COUNT,
    STATE_TABLE,
    STATE_SIZE,
    COLUMNS_AT,
    DEPTHS,
    SLOTS,
    WORK,
    OUT,
    OUT_STRIDE,
    STREAMS,
    VALID,
    VALID_STRIDE,
    MISSING,
    WRITES_PASSED,
) = range(24)
CALL_SIZE = 24


@kernel
def run(call_at: int) -> None:
    """Advance a program by a block of rows.

    ``call_at`` is the address of CALL_SIZE int64: addresses and sizes, by position:

    PROGRAM, PROGRAM_SIZE
        The (k, FIELDS) int64 instructions.
    INTEGER_TABLE, FLOAT_TABLE and their sizes
        The numbers that instructions refer to.
    ZONE, ZONE_SIZE
        UTC offsets of New York, see :func:`mia_kernels.calendar.calendar_columns`.
    INPUT_TABLE
        The addresses (int64) of the contiguous float64 input columns, in the plan's order.
    KNOWN_AT, ROW_COUNT
        The int64 column of closes, nanoseconds UTC, strictly ascending; and how many rows there are.
    STATE_TABLE, STATE_SIZE, COLUMNS_AT
        The flat state, advanced in place; working columns begin at COLUMNS_AT. After it lie the columns of
        numbers and of scratch that formulas name.
    DEPTHS, SLOTS
        How many rows back each working column is read, int64; rows further back are not kept.
    WORK
        (SCRATCH, SCRATCH_STRIDE) float64 scratch.
    OUT, OUT_STRIDE
        Where the first row's results go, in a float64 matrix of outputs that lie OUT_STRIDE numbers apart; NaN where
        a value is missing.
    STREAMS
        Not 0 to write outputs around the cache (:mod:`mia_kernels.streams`): the same numbers, sooner where OUT is
        larger than the cache.
    VALID, VALID_STRIDE, MISSING
        Bitmaps of the outputs (:mod:`mia_kernels.validity`), VALID_STRIDE bytes apart, each at a multiple of eight
        bytes, and int64 counts to which each output's missing values are added; VALID 0 for none.
    WRITES_PASSED
        0 to leave alone, in OUT, what is an input as it is; its bitmap is made even so.

    An input beyond LARGEST in size is missing, as infinity and NaN are: squares and sums of what is left
    stay finite.
    """
    call = integers_at(call_at, CALL_SIZE)
    program = table_at(call[PROGRAM], call[PROGRAM_SIZE], op.FIELDS)
    integers = integers_at(call[INTEGER_TABLE], call[INTEGER_TABLE_SIZE])
    floats = floats_at(call[FLOAT_TABLE], call[FLOAT_TABLE_SIZE])
    zone = integers_at(call[ZONE], call[ZONE_SIZE])
    count = call[ROW_COUNT]
    known_at = integers_at(call[KNOWN_AT], count)
    state = floats_at(call[STATE_TABLE], call[STATE_SIZE])
    depths = integers_at(call[DEPTHS], call[SLOTS])
    columns = matrix_at(call[STATE_TABLE] + 8 * call[COLUMNS_AT], depths.size, op.STRIDE)
    work = matrix_at(call[WORK], op.SCRATCH, op.SCRATCH_STRIDE)
    sink_at = address_of(work) + ROW * (op.SCRATCH - 3)
    sink = integers_at(sink_at, SINK)
    sink[OUT_BYTES], sink[VALID_BYTES], sink[MISSING_AT] = 8 * call[OUT_STRIDE], call[VALID_STRIDE], call[MISSING]
    sink[PASSES] = call[WRITES_PASSED]
    done = 0
    while done < count:
        p, left = int(state[POSITION]), count - done
        if CAPACITY - p < min(left, op.WORD):
            _turn_back(depths, address_of(columns), p)
            p = HISTORY
        n = min(left, CAPACITY - p)
        if n < left:
            n -= n % op.WORD
        calendar_columns(known_at[done : done + n], zone, columns, p)
        sink[OUT_AT] = call[OUT] + 8 * done
        sink[STAGE_AT] = address_of(work) + ROW * op.STAGE if call[STREAMS] != 0 and n > 1 else 0
        sink[VALID_AT] = call[VALID] + done // 8 if call[VALID] != 0 else 0
        _step(program, integers, floats, state, columns, p, n, call[INPUT_TABLE], done, sink_at, work)
        state[POSITION] = p + n
        state[ROWS] += n
        done += n
    if call[STREAMS] != 0:
        fence()
