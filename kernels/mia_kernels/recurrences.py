"""Recursive averages, eight at a time, seeded as TA-Lib seeds them.

``s += a (x - s)`` is bound by the latency of its chain, so eight independent lanes cost as much as
one. A lane first collects ``need`` valid values (after skipping ``skip``) and starts from
``sum * scale``; its alpha is 2/(n+1) for an exponential, 1/n for a Wilder average.

A missing input (NaN) gives a missing output and leaves the state as it was: one bad bar does not
poison what follows. An input of +inf means *undefined here*: the average holds and is repeated
(TA-Lib does so in ADX when both directional indicators are zero).

State of one average of eight lanes (25 floats): value[8], seed sum[8], count[8], ready.
Lane table in ``integers``: (need, skip, emit seed) x 8; in ``floats``: alpha[8], seed scale[8].
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import inlined, kernel
from mia_kernels.opcodes import LANES

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

AVERAGE_STATE = 3 * LANES + 1
_SUM, _COUNT, _READY = LANES, 2 * LANES, 3 * LANES


@kernel
def _seed_row(z: float, lane: int, integers: Integers, floats: Floats, state: Floats, at: int) -> float:
    """Advance one lane by one value with the seeding rule; returns its output (NaN: none)."""
    if z != z:  # noqa: PLR0124 - NaN
        return math.nan
    need, skip, emit = integers[3 * lane], integers[3 * lane + 1], integers[3 * lane + 2]
    count = state[at + _COUNT + lane]
    if count >= skip + need:
        if z < math.inf:
            state[at + lane] += (z - state[at + lane]) * floats[lane]
        return float(state[at + lane])
    state[at + _COUNT + lane] = count + 1.0
    if count < skip:
        return math.nan
    if z < math.inf:
        state[at + _SUM + lane] += z
    if count + 1.0 < skip + need:
        return math.nan
    state[at + lane] = state[at + _SUM + lane] * floats[LANES + lane]
    return float(state[at + lane]) if emit else math.nan


@kernel
def _all_ready(integers: Integers, state: Floats, at: int) -> bool:
    for lane in range(LANES):
        if state[at + _COUNT + lane] < integers[3 * lane] + integers[3 * lane + 1]:
            return False
    state[at + _READY] = 1.0
    return True


@kernel
def average8(x: Floats, integers: Integers, floats: Floats, state: Floats, at: int, out: Floats) -> None:
    """Eight averages of one input. ``x`` (n,), ``out`` (8, >= n)."""
    n = x.size
    start = 0
    if state[at + _READY] == 0.0:
        while start < n and not _all_ready(integers, state, at):
            for lane in range(LANES):
                out[lane, start] = _seed_row(x[start], lane, integers, floats, state, at)
            start += 1
    s0, s1, s2, s3 = state[at], state[at + 1], state[at + 2], state[at + 3]
    s4, s5, s6, s7 = state[at + 4], state[at + 5], state[at + 6], state[at + 7]
    a0, a1, a2, a3, a4, a5, a6, a7 = (
        floats[0],
        floats[1],
        floats[2],
        floats[3],
        floats[4],
        floats[5],
        floats[6],
        floats[7],
    )
    o0, o1, o2, o3 = out[0, :n], out[1, :n], out[2, :n], out[3, :n]
    o4, o5, o6, o7 = out[4, :n], out[5, :n], out[6, :n], out[7, :n]
    for i in range(start, n):
        z = x[i]
        valid = z == z  # noqa: PLR0124 - not NaN
        y0 = (z - s0) * a0 + s0
        y1 = (z - s1) * a1 + s1
        y2 = (z - s2) * a2 + s2
        y3 = (z - s3) * a3 + s3
        y4 = (z - s4) * a4 + s4
        y5 = (z - s5) * a5 + s5
        y6 = (z - s6) * a6 + s6
        y7 = (z - s7) * a7 + s7
        s0 = y0 if valid else s0
        s1 = y1 if valid else s1
        s2 = y2 if valid else s2
        s3 = y3 if valid else s3
        s4 = y4 if valid else s4
        s5 = y5 if valid else s5
        s6 = y6 if valid else s6
        s7 = y7 if valid else s7
        o0[i], o1[i], o2[i], o3[i] = y0, y1, y2, y3
        o4[i], o5[i], o6[i], o7[i] = y4, y5, y6, y7
    state[at], state[at + 1], state[at + 2], state[at + 3] = s0, s1, s2, s3
    state[at + 4], state[at + 5], state[at + 6], state[at + 7] = s4, s5, s6, s7


@inlined
def _hold(y: float, s: float, z: float) -> float:
    return y if z < math.inf else s


@inlined
def _repeat(s: float, z: float) -> float:
    return s if z == z else math.nan  # noqa: PLR0124 - NaN


@kernel
def average8_each(x: Floats, n: int, integers: Integers, floats: Floats, state: Floats, at: int, out: Floats) -> None:
    """Eight averages of eight inputs. ``x`` and ``out`` (8, >= n)."""
    start = 0
    if state[at + _READY] == 0.0:
        while start < n and not _all_ready(integers, state, at):
            for lane in range(LANES):
                out[lane, start] = _seed_row(x[lane, start], lane, integers, floats, state, at)
            start += 1
    s0, s1, s2, s3 = state[at], state[at + 1], state[at + 2], state[at + 3]
    s4, s5, s6, s7 = state[at + 4], state[at + 5], state[at + 6], state[at + 7]
    x0, x1, x2, x3 = x[0, :n], x[1, :n], x[2, :n], x[3, :n]
    x4, x5, x6, x7 = x[4, :n], x[5, :n], x[6, :n], x[7, :n]
    o0, o1, o2, o3 = out[0, :n], out[1, :n], out[2, :n], out[3, :n]
    o4, o5, o6, o7 = out[4, :n], out[5, :n], out[6, :n], out[7, :n]
    for i in range(start, n):
        z0, z1, z2, z3, z4, z5, z6, z7 = x0[i], x1[i], x2[i], x3[i], x4[i], x5[i], x6[i], x7[i]
        s0 = _hold((z0 - s0) * floats[0] + s0, s0, z0)
        s1 = _hold((z1 - s1) * floats[1] + s1, s1, z1)
        s2 = _hold((z2 - s2) * floats[2] + s2, s2, z2)
        s3 = _hold((z3 - s3) * floats[3] + s3, s3, z3)
        s4 = _hold((z4 - s4) * floats[4] + s4, s4, z4)
        s5 = _hold((z5 - s5) * floats[5] + s5, s5, z5)
        s6 = _hold((z6 - s6) * floats[6] + s6, s6, z6)
        s7 = _hold((z7 - s7) * floats[7] + s7, s7, z7)
        o0[i], o1[i], o2[i], o3[i] = _repeat(s0, z0), _repeat(s1, z1), _repeat(s2, z2), _repeat(s3, z3)
        o4[i], o5[i], o6[i], o7[i] = _repeat(s4, z4), _repeat(s5, z5), _repeat(s6, z6), _repeat(s7, z7)
    state[at], state[at + 1], state[at + 2], state[at + 3] = s0, s1, s2, s3
    state[at + 4], state[at + 5], state[at + 6], state[at + 7] = s4, s5, s6, s7


@kernel
def rsi8(
    close: Floats, before: Floats, integers: Integers, floats: Floats, state: Floats, at: int, work: Floats, count: int
) -> None:
    """Wilder's relative strength index (Wilder 1978) for eight periods.

    ``close`` and ``before`` (n,): the close and the one before it. Result of the first ``count`` lanes
    in ``work[0:8]``, 0..100; 0 where nothing moved, as in TA-Lib.
    """
    n = close.size
    gain, loss = work[8, :n], work[9, :n]
    for i in range(n):
        change = close[i] - before[i]
        gain[i] = change if change != change or change > 0.0 else 0.0  # noqa: PLR0124 - keeps NaN
        loss[i] = change if change != change else (-change if change < 0.0 else 0.0)  # noqa: PLR0124
    average8(gain, integers, floats, state, at, work[16:24])
    average8(loss, integers, floats, state, at + AVERAGE_STATE, work[24:32])
    for lane in range(count):
        up, down, out = work[16 + lane, :n], work[24 + lane, :n], work[lane, :n]
        for i in range(n):
            total = up[i] + down[i]
            value = 100.0 * (up[i] / total)
            out[i] = value if total != 0.0 else 0.0


@kernel
def adx8(
    high: Floats,
    high_before: Floats,
    low: Floats,
    low_before: Floats,
    true_range: Floats,
    integers: Integers,
    floats: Floats,
    state: Floats,
    at: int,
    work: Floats,
    count: int,
) -> None:
    """Wilder's average directional index with both directional indicators, for eight periods.

    Inputs (n,). Results 0..100: ADX in ``work[0:8]``, +DI in ``work[16:24]``, -DI in ``work[24:32]``.
    The three directional sums are seeded with n - 1 values, as TA-Lib does; the lane table of the
    final average of DX follows at ``integers[24:]`` and ``floats[16:]``.
    """
    n = high.size
    plus, minus, ranges = work[8, :n], work[9, :n], work[10, :n]
    for i in range(n):
        up = high[i] - high_before[i]
        down = low_before[i] - low[i]
        # 0, or NaN where anything is missing: then all three sums hold, or they would fall out of step.
        missing = (up - up) + (down - down) + (true_range[i] - true_range[i])
        ranges[i] = true_range[i] + missing
        plus[i] = (up if up > down and up > 0.0 else 0.0) + missing
        minus[i] = (down if down > up and down > 0.0 else 0.0) + missing
    average8(plus, integers, floats, state, at, work[16:24])
    average8(minus, integers, floats, state, at + AVERAGE_STATE, work[24:32])
    average8(ranges, integers, floats, state, at + 2 * AVERAGE_STATE, work[32:40])
    for lane in range(count):
        p, m, t, dx = work[16 + lane, :n], work[24 + lane, :n], work[32 + lane, :n], work[40 + lane, :n]
        for i in range(n):
            up = 100.0 * (p[i] / t[i])
            down = 100.0 * (m[i] / t[i])
            flat = t[i] == 0.0
            up = 0.0 if flat else up
            down = 0.0 if flat else down
            total = up + down
            value = 100.0 * (abs(up - down) / total)
            p[i] = up
            m[i] = down
            dx[i] = math.inf if total == 0.0 else value
    average8_each(work[40:48], n, integers[24:], floats[16:], state, at + 3 * AVERAGE_STATE, work[0:8])


@kernel
def macd8(close: Floats, integers: Integers, floats: Floats, state: Floats, at: int, work: Floats, count: int) -> None:
    """Moving average convergence/divergence (Appel) for eight parameter sets.

    ``close`` (n,). Line in ``work[16:24]``, signal in ``work[0:8]``, histogram in ``work[24:32]``.
    All three start with the signal, and the fast average is seeded so that both seeds end at the
    same bar, as in TA-Lib. Lane tables of fast, slow and signal follow one another.
    """
    n = close.size
    average8(close, integers, floats, state, at, work[32:40])
    average8(close, integers[24:], floats[16:], state, at + AVERAGE_STATE, work[40:48])
    for lane in range(count):
        fast, slow, line = work[32 + lane, :n], work[40 + lane, :n], work[16 + lane, :n]
        for i in range(n):
            line[i] = fast[i] - slow[i]
    average8_each(work[16:24], n, integers[48:], floats[32:], state, at + 2 * AVERAGE_STATE, work[0:8])
    for lane in range(count):
        line, signal, histogram = work[16 + lane, :n], work[lane, :n], work[24 + lane, :n]
        for i in range(n):
            histogram[i] = line[i] - signal[i]
            line[i] = line[i] if signal[i] == signal[i] else math.nan
