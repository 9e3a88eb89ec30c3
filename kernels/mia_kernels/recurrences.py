"""Recursive averages, eight to a job, seeded as TA-Lib seeds them.

A lane first collects ``need`` valid values (after skipping ``skip``) and starts from ``sum * scale``; then
``s += a (x - s)``. Its alpha is 2/(n+1) for an exponential, 1/n for a Wilder average.

A missing input (NaN) gives a missing output and leaves the state as it was: one bad bar does not
poison what follows. An infinite input means *undefined here*: the average holds and is repeated
(TA-Lib does so in ADX when both directional indicators are zero).

Everything is named by its address (:mod:`mia_kernels.memory`). State of a job of eight lanes (25 floats):
value[8], seed sum[8], count[8], ready. Lane table (int64): (need, skip, emit seed) x 8, need 0 where a lane is
not used. Numbers: alpha[8], seed scale[8].
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import inlined, kernel
from mia_kernels.lanes import (
    JOB,
    WIDTH,
    advance_2,
    advance_3,
    advance_4,
    advance_each,
    halves_1,
    halves_2,
    halves_3,
    halves_each,
)
from mia_kernels.memory import floats_at, get, get_integer, put, put_integer
from mia_kernels.opcodes import LANES, SCRATCH_STRIDE

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

AVERAGE_STATE = 3 * LANES + 1
_SUM, _COUNT, _READY, _SCALE = 8 * LANES, 16 * LANES, 24 * LANES, 8 * LANES  # bytes
_LANE_ROW = 24
ROW = 8 * SCRATCH_STRIDE
"""Bytes of a scratch row; a table of jobs takes one."""
PLACES = 8 * JOB * 4
"""Where the places of four jobs stand in their table, in bytes."""


@kernel
def _lane(z: float, state: int, alpha: int, table: int) -> float:
    """Advance one lane by one value with the seeding rule; returns its output (NaN: none)."""
    if z != z:  # noqa: PLR0124 - NaN
        return math.nan
    need, skip = get_integer(table), get_integer(table + 8)
    count = get(state + _COUNT)
    if count >= skip + need:
        s = get(state)
        if z - z == 0.0:
            s = (z - s) * get(alpha) + s
            put(state, s)
        return float(s)
    put(state + _COUNT, count + 1.0)
    if count < skip:
        return math.nan
    if z - z == 0.0:
        put(state + _SUM, get(state + _SUM) + z)
    if count + 1.0 < skip + need:
        return math.nan
    s = get(state + _SUM) * get(alpha + _SCALE)
    put(state, s)
    return float(s) if get_integer(table + 16) else math.nan


@kernel
def settle(state: int, table: int) -> None:
    """After a row: note that every lane of the job has its seed."""
    if get(state + _READY) == 0.0:
        for lane in range(LANES):
            row = table + _LANE_ROW * lane
            if get(state + _COUNT + 8 * lane) < get_integer(row) + get_integer(row + 8):
                return
        put(state + _READY, 1.0)


@inlined
def _step(z: float, s: float, a: float) -> float:
    """One step; a value that is missing or infinite counts as no step, off the chain that waits."""
    valid = z - z == 0.0
    return ((z if valid else 0.0) - s) * (a if valid else 0.0) + s


@inlined
def _repeat(s: float, z: float) -> float:
    return s if z == z else math.nan  # noqa: PLR0124 - NaN


@kernel
def _masked(job: int, start: int, n: int) -> None:
    """Rows ``start`` .. n of one job: the seeding, then eight lanes side by side that may meet missing values."""
    x, state, alpha = floats_at(get_integer(job), n), get_integer(job + 8), get_integer(job + 16)
    places, table = get_integer(job + 24), get_integer(job + 32)
    while get(state + _READY) == 0.0 and start < n:
        for lane in range(LANES):
            y = _lane(x[start], state + 8 * lane, alpha + 8 * lane, table + _LANE_ROW * lane)
            put(get_integer(places + 8 * lane) + 8 * start, y)
        settle(state, table)
        start += 1
    s, a = floats_at(state, LANES), floats_at(alpha, LANES)
    s0, s1, s2, s3, s4, s5, s6, s7 = s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]
    a0, a1, a2, a3, a4, a5, a6, a7 = a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]
    o0, o1 = floats_at(get_integer(places), n), floats_at(get_integer(places + 8), n)
    o2, o3 = floats_at(get_integer(places + 16), n), floats_at(get_integer(places + 24), n)
    o4, o5 = floats_at(get_integer(places + 32), n), floats_at(get_integer(places + 40), n)
    o6, o7 = floats_at(get_integer(places + 48), n), floats_at(get_integer(places + 56), n)
    for i in range(start, n):
        z = x[i]
        s0, s1, s2, s3 = _step(z, s0, a0), _step(z, s1, a1), _step(z, s2, a2), _step(z, s3, a3)
        s4, s5, s6, s7 = _step(z, s4, a4), _step(z, s5, a5), _step(z, s6, a6), _step(z, s7, a7)
        o0[i], o1[i], o2[i], o3[i] = _repeat(s0, z), _repeat(s1, z), _repeat(s2, z), _repeat(s3, z)
        o4[i], o5[i], o6[i], o7[i] = _repeat(s4, z), _repeat(s5, z), _repeat(s6, z), _repeat(s7, z)
    s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7] = s0, s1, s2, s3, s4, s5, s6, s7


@kernel
def _is_finite(at: int, n: int) -> bool:
    x = floats_at(at, n)
    others = 0  # counted as an integer: a sum of floats would have to be taken in order
    for i in range(n):
        others += 0 if x[i] - x[i] == 0.0 else 1
    return others == 0


@kernel
def set_job(jobs: int, k: int, x: int, state: int, alpha: int, table: int, places: int) -> int:
    """Fill job ``k`` of the table at ``jobs``; returns the address of its eight places, which begin at ``places``."""
    job = jobs + 8 * JOB * k
    put_integer(job, x)
    put_integer(job + 8, state)
    put_integer(job + 16, alpha)
    put_integer(job + 24, places)
    put_integer(job + 32, table)
    return places


@kernel
def averages(jobs: int, count: int, n: int) -> None:
    """Advance 1 .. 4 jobs by n rows; each is eight averages of one input."""
    start = 0
    if n >= 4:
        calm, half = True, count < 4
        for k in range(count):
            job = jobs + 8 * JOB * k
            if get(get_integer(job + 8) + _READY) == 0.0 or not _is_finite(get_integer(job), n):
                calm = False
            if get_integer(get_integer(job + 32) + WIDTH * _LANE_ROW) != 0:
                half = False
        if calm and (half or count > 1):
            start = n & ~3
            if half and count == 1:
                halves_1(jobs, n >> 2)
            elif half and count == 2:
                halves_2(jobs, n >> 2)
            elif half:
                halves_3(jobs, n >> 2)
            elif count == 2:
                advance_2(jobs, n >> 2)
            elif count == 3:
                advance_3(jobs, n >> 2)
            else:
                advance_4(jobs, n >> 2)
    if start < n:
        for k in range(count):
            _masked(jobs + 8 * JOB * k, start, n)


@kernel
def averages_each(job: int, lanes: int, n: int) -> None:
    """Advance one job whose lanes have an input each: its first number is the address of eight addresses."""
    inputs, state, alpha = get_integer(job), get_integer(job + 8), get_integer(job + 16)
    places, table = get_integer(job + 24), get_integer(job + 32)
    start = 0
    if n >= 4 and get(state + _READY) != 0.0:
        calm = True
        for lane in range(lanes):
            calm = calm and _is_finite(get_integer(inputs + 8 * lane), n)
        if calm:
            start = n & ~3
            if lanes <= WIDTH:
                halves_each(job, n >> 2)
            else:
                advance_each(job, n >> 2)
    while start < n and get(state + _READY) == 0.0:
        for lane in range(lanes):
            z = get(get_integer(inputs + 8 * lane) + 8 * start)
            y = _lane(z, state + 8 * lane, alpha + 8 * lane, table + _LANE_ROW * lane)
            put(get_integer(places + 8 * lane) + 8 * start, y)
        settle(state, table)
        start += 1
    if n == 1:
        if start == 0:
            for lane in range(lanes):
                z = get(get_integer(inputs + 8 * lane))
                put(get_integer(places + 8 * lane), _row(z, state, alpha, table, lane))
    elif start < n:
        _masked_each(job, start, n)


@kernel
def _masked_each(job: int, start: int, n: int) -> None:
    """Rows ``start`` .. n of a job that is ready and whose lanes have an input each."""
    inputs, state, alpha, places = get_integer(job), get_integer(job + 8), get_integer(job + 16), get_integer(job + 24)
    s, a = floats_at(state, LANES), floats_at(alpha, LANES)
    s0, s1, s2, s3, s4, s5, s6, s7 = s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]
    a0, a1, a2, a3, a4, a5, a6, a7 = a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]
    o0, o1 = floats_at(get_integer(places), n), floats_at(get_integer(places + 8), n)
    o2, o3 = floats_at(get_integer(places + 16), n), floats_at(get_integer(places + 24), n)
    o4, o5 = floats_at(get_integer(places + 32), n), floats_at(get_integer(places + 40), n)
    o6, o7 = floats_at(get_integer(places + 48), n), floats_at(get_integer(places + 56), n)
    x0, x1 = floats_at(get_integer(inputs), n), floats_at(get_integer(inputs + 8), n)
    x2, x3 = floats_at(get_integer(inputs + 16), n), floats_at(get_integer(inputs + 24), n)
    x4, x5 = floats_at(get_integer(inputs + 32), n), floats_at(get_integer(inputs + 40), n)
    x6, x7 = floats_at(get_integer(inputs + 48), n), floats_at(get_integer(inputs + 56), n)
    for i in range(start, n):
        z0, z1, z2, z3, z4, z5, z6, z7 = x0[i], x1[i], x2[i], x3[i], x4[i], x5[i], x6[i], x7[i]
        s0, s1, s2, s3 = _step(z0, s0, a0), _step(z1, s1, a1), _step(z2, s2, a2), _step(z3, s3, a3)
        s4, s5, s6, s7 = _step(z4, s4, a4), _step(z5, s5, a5), _step(z6, s6, a6), _step(z7, s7, a7)
        o0[i], o1[i], o2[i], o3[i] = _repeat(s0, z0), _repeat(s1, z1), _repeat(s2, z2), _repeat(s3, z3)
        o4[i], o5[i], o6[i], o7[i] = _repeat(s4, z4), _repeat(s5, z5), _repeat(s6, z6), _repeat(s7, z7)
    s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7] = s0, s1, s2, s3, s4, s5, s6, s7


@kernel
def bring(rows: int, places: int, count: int, n: int) -> None:
    """Copy ``count`` scratch rows to their places, one after the other.

    Lanes that are written side by side into a large matrix miss the cache in as many places at once; a row that is
    copied streams.
    """
    for lane in range(count):
        x, y = floats_at(rows + lane * ROW, n), floats_at(get_integer(places + 8 * lane), n)
        for i in range(n):
            y[i] = x[i]


@inlined
def _row(z: float, state: int, alpha: int, table: int, lane: int) -> float:
    """One row of one lane of a job: what :func:`averages` gives, without its preparations; then :func:`settle`."""
    if get(state + _READY) == 0.0:
        y = _lane(z, state + 8 * lane, alpha + 8 * lane, table + _LANE_ROW * lane)
    else:
        s = _step(z, get(state + 8 * lane), get(alpha + 8 * lane))
        put(state + 8 * lane, s)
        y = _repeat(s, z)
    return y


@kernel
def average_row(x: int, state: int, alpha: int, table: int, places: int, lanes: int) -> None:
    """One row of a job with ``lanes`` lanes in use, of the input at ``x``."""
    z = get(x)
    for lane in range(lanes):
        put(get_integer(places + 8 * lane), _row(z, state, alpha, table, lane))
    settle(state, table)


@inlined
def _gain(change: float) -> float:
    return change if change != change or change > 0.0 else 0.0  # noqa: PLR0124 - keeps NaN


@inlined
def _loss(change: float) -> float:
    fall = -change if change < 0.0 else 0.0
    return change if change != change else fall  # noqa: PLR0124 - keeps NaN


@inlined
def _strength(up: float, down: float) -> float:
    total = up + down
    value = 100.0 * (up / total)
    return value if total != 0.0 else 0.0


@kernel
def rsi(
    close: int, n: int, state: int, alpha: int, table: int, places: int, count: int, jobs: int, spare: int, work: int
) -> None:
    """Wilder's relative strength index (Wilder 1978) for up to eight periods.

    ``close`` is the address of the first close; the one before it stands to its left. Results go to
    ``count`` places, 0..100; 0 where nothing moved, as in TA-Lib.
    """
    losses = state + 8 * AVERAGE_STATE
    if n == 1:
        change = get(close) - get(close - 8)
        gain, loss = _gain(change), _loss(change)
        for lane in range(count):
            up = _row(gain, state, alpha, table, lane)
            down = _row(loss, losses, alpha, table, lane)
            put(get_integer(places + 8 * lane), _strength(up, down))
        settle(state, table)
        settle(losses, table)
        return
    c, before = floats_at(close, n), floats_at(close - 8, n)
    gains, drops = floats_at(work, n), floats_at(work + ROW, n)
    for i in range(n):
        gains[i] = _gain(c[i] - before[i])
    for i in range(n):
        drops[i] = _loss(c[i] - before[i])
    results = work + 2 * ROW
    set_rows(jobs, 0, work, state, alpha, table, results, count, spare)
    set_rows(jobs, 1, work + ROW, losses, alpha, table, results + LANES * ROW, count, spare)
    averages(jobs, 2, n)
    for lane in range(count):
        ups, downs = floats_at(results + lane * ROW, n), floats_at(results + (LANES + lane) * ROW, n)
        out = floats_at(get_integer(places + 8 * lane), n)
        for i in range(n):
            out[i] = _strength(ups[i], downs[i])


@kernel
def set_rows(jobs: int, k: int, x: int, state: int, alpha: int, table: int, rows: int, count: int, spare: int) -> None:
    """Fill job ``k``, whose results go to ``count`` scratch rows from ``rows`` on."""
    places = jobs + PLACES + 8 * LANES * k
    for lane in range(LANES):
        put_integer(places + 8 * lane, rows + lane * ROW if lane < count else spare)
    set_job(jobs, k, x, state, alpha, table, places)


@inlined
def _missing(up: float, down: float, true_range: float) -> float:
    """0, or NaN where anything is missing: then all three sums hold, or they would fall out of step."""
    return (up - up) + (down - down) + (true_range - true_range)


@inlined
def _moves(this: float, other: float) -> float:
    return this if this > other and this > 0.0 else 0.0


@inlined
def _share(part: float, whole: float) -> float:
    value = 100.0 * (part / whole)
    return 0.0 if whole == 0.0 else value


@inlined
def _direction(up: float, down: float) -> float:
    total = up + down
    value = 100.0 * (abs(up - down) / total)
    return math.inf if total == 0.0 else value


@kernel
def adx(
    high: int,
    low: int,
    true_range: int,
    n: int,
    state: int,
    alpha: int,
    table: int,
    places: int,
    count: int,
    jobs: int,
    spare: int,
    work: int,
) -> None:
    """Wilder's average directional index with both directional indicators, for up to eight periods.

    Results 0..100 go to ``3 * count`` places: ADX, +DI, -DI. The three directional sums are seeded with n - 1
    values, as TA-Lib does; lane table and numbers of the final average of DX follow those of the sums.
    """
    minus_state, range_state = state + 8 * AVERAGE_STATE, state + 16 * AVERAGE_STATE
    last_state, last_alpha, last_table = state + 24 * AVERAGE_STATE, alpha + 16 * LANES, table + _LANE_ROW * LANES
    if n == 1:
        up, down, tr = get(high) - get(high - 8), get(low - 8) - get(low), get(true_range)
        missing = _missing(up, down, tr)
        plus, minus, tr = _moves(up, down) + missing, _moves(down, up) + missing, tr + missing
        for lane in range(count):
            whole = _row(tr, range_state, alpha, table, lane)
            rise = _share(_row(plus, state, alpha, table, lane), whole)
            fall = _share(_row(minus, minus_state, alpha, table, lane), whole)
            at = 8 * lane
            y = _row(_direction(rise, fall), last_state, last_alpha, last_table, lane)
            put(get_integer(places + at), y)
            put(get_integer(places + at + 8 * count), rise)
            put(get_integer(places + at + 16 * count), fall)
        settle(state, table)
        settle(minus_state, table)
        settle(range_state, table)
        settle(last_state, last_table)
        return
    h, h1 = floats_at(high, n), floats_at(high - 8, n)
    lo, lo1 = floats_at(low, n), floats_at(low - 8, n)
    t = floats_at(true_range, n)
    pluses, minuses, ranges = floats_at(work, n), floats_at(work + ROW, n), floats_at(work + 2 * ROW, n)
    for i in range(n):
        up, down = h[i] - h1[i], lo1[i] - lo[i]
        missing = _missing(up, down, t[i])
        pluses[i] = _moves(up, down) + missing
        minuses[i] = _moves(down, up) + missing
        ranges[i] = t[i] + missing
    a, b = work + 3 * ROW, work + (3 + LANES) * ROW
    c, d = work + (3 + 2 * LANES) * ROW, work + (3 + 3 * LANES) * ROW
    set_rows(jobs, 0, work, state, alpha, table, a, count, spare)
    set_rows(jobs, 1, work + ROW, minus_state, alpha, table, b, count, spare)
    set_rows(jobs, 2, work + 2 * ROW, range_state, alpha, table, c, count, spare)
    averages(jobs, 3, n)
    for lane in range(count):
        p, m = floats_at(a + lane * ROW, n), floats_at(b + lane * ROW, n)
        w, dx = floats_at(c + lane * ROW, n), floats_at(d + lane * ROW, n)
        rises = floats_at(get_integer(places + 8 * (count + lane)), n)
        falls = floats_at(get_integer(places + 8 * (2 * count + lane)), n)
        for i in range(n):
            rises[i] = _share(p[i], w[i])
        for i in range(n):
            falls[i] = _share(m[i], w[i])
        for i in range(n):
            dx[i] = _direction(rises[i], falls[i])
    set_each(jobs, d, last_state, last_alpha, last_table, a, count, spare)
    averages_each(jobs, count, n)
    bring(a, places, count, n)


@kernel
def set_each(jobs: int, rows: int, state: int, alpha: int, table: int, results: int, count: int, spare: int) -> None:
    """Fill the first job for :func:`averages_each`: from ``count`` scratch rows to as many."""
    inputs, outs = jobs + PLACES, jobs + PLACES + 8 * LANES
    for lane in range(LANES):
        put_integer(inputs + 8 * lane, rows + (lane * ROW if lane < count else 0))
        put_integer(outs + 8 * lane, results + lane * ROW if lane < count else spare)
    set_job(jobs, 0, inputs, state, alpha, table, outs)


@kernel
def macd(
    close: int, n: int, state: int, alpha: int, table: int, places: int, count: int, jobs: int, spare: int, work: int
) -> None:
    """Moving average convergence/divergence (Appel) for up to eight parameter sets.

    Results go to ``3 * count`` places: line, signal, histogram. All three start with the signal, and the fast
    average is seeded so that both seeds end at the same bar, as in TA-Lib. Lane tables and numbers of fast, slow
    and signal follow one another.
    """
    slow_state, last_state = state + 8 * AVERAGE_STATE, state + 16 * AVERAGE_STATE
    slow_alpha, last_alpha = alpha + 16 * LANES, alpha + 32 * LANES
    slow_table, last_table = table + _LANE_ROW * LANES, table + 2 * _LANE_ROW * LANES
    if n == 1:
        z = get(close)
        for lane in range(count):
            at = 8 * lane
            line = _row(z, state, alpha, table, lane) - _row(z, slow_state, slow_alpha, slow_table, lane)
            signal = _row(line, last_state, last_alpha, last_table, lane)
            put(get_integer(places + at), line if signal == signal else math.nan)  # noqa: PLR0124
            put(get_integer(places + at + 8 * count), signal)
            put(get_integer(places + at + 16 * count), line - signal)
        settle(state, table)
        settle(slow_state, slow_table)
        settle(last_state, last_table)
        return
    a, b, c = work, work + LANES * ROW, work + 2 * LANES * ROW
    set_rows(jobs, 0, close, state, alpha, table, a, count, spare)
    set_rows(jobs, 1, close, slow_state, slow_alpha, slow_table, b, count, spare)
    averages(jobs, 2, n)
    for lane in range(count):
        fast, slow, line = floats_at(a + lane * ROW, n), floats_at(b + lane * ROW, n), floats_at(c + lane * ROW, n)
        for i in range(n):
            line[i] = fast[i] - slow[i]
    set_each(jobs, c, last_state, last_alpha, last_table, a, count, spare)
    averages_each(jobs, count, n)
    bring(a, places + 8 * count, count, n)
    for lane in range(count):
        line, signal = floats_at(c + lane * ROW, n), floats_at(a + lane * ROW, n)
        out = floats_at(get_integer(places + 8 * lane), n)
        histogram = floats_at(get_integer(places + 8 * (2 * count + lane)), n)
        for i in range(n):
            histogram[i] = line[i] - signal[i]
        for i in range(n):
            out[i] = line[i] if signal[i] == signal[i] else math.nan
