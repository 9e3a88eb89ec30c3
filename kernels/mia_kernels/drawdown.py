"""Equity against its peak: the drawdown of one account, of a block of marks, or of many paths.

The drawdown at mark t is ``(peak_t - equity_t) / peak_t`` with ``peak_t = max(equity_0 .. equity_t)``
(Magdon-Ismail and Atiya, "Maximum drawdown", Risk 17(10), 2004, as a fraction of the peak). The
difference is formed first: it is exact near the peak, so a loss of exactly 5 % compares equal to
0.05, where ``1 - equity / peak`` does not.

A mark that is not finite gives NaN and leaves the peak alone; so does a peak that is not positive,
because a fraction of it means nothing. The caller treats NaN as "stop".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import inlined, kernel

PEAK, EQUITY, DRAWDOWN = 0, 1, 2
STATE_SIZE = 3
LANES = 32  # running extremes side by side; eight vectors of four
TILE = 256  # marks examined at once: two KiB, which stay in the first-level cache for the second look


def initial_state() -> NDArray[np.float64]:
    """The state before the first mark: no peak, nothing known. Shape (STATE_SIZE,)."""
    return np.array([-np.inf, np.nan, np.nan])


@inlined
def _below(peak: float, equity: float) -> float:
    """The drawdown as a fraction of a positive peak, else NaN."""
    return (peak - equity) / peak if (equity - equity == 0.0) & (peak > 0.0) else np.nan


@inlined
def _rising(equity: NDArray[np.float64], out: NDArray[np.float64], start: int, stop: int, peak: float) -> float:
    """Marks among which the peak may move or that may not be finite; returns the peak after them."""
    for i in range(start, stop):  # a mark that is not finite never becomes the peak
        mark = equity[i]
        peak = mark if (mark - mark == 0.0) & (mark > peak) else peak
        out[i] = _below(peak, mark)
    return peak


@inlined
def _extremes(
    equity: NDArray[np.float64],
    start: int,
    highs: NDArray[np.float64],
    lows: NDArray[np.float64],
    odd: NDArray[np.float64],
) -> tuple[float, float, float]:
    """Highest and lowest of TILE marks from ``start``; the third is 0, or NaN if one of them is not finite.

    LANES running extremes side by side: without a chain from mark to mark the loop vectorises, and a
    maximum is exact in any order.
    """
    highs[:] = -np.inf
    lows[:] = np.inf
    odd[:] = 0.0
    for i in range(start, start + TILE, LANES):
        for lane in range(LANES):
            mark = equity[i + lane]
            highs[lane] = mark if mark > highs[lane] else highs[lane]
            lows[lane] = mark if mark < lows[lane] else lows[lane]
            odd[lane] += mark - mark
    high, low, strange = -np.inf, np.inf, 0.0
    for lane in range(LANES):
        high = highs[lane] if highs[lane] > high else high
        low = lows[lane] if lows[lane] < low else low
        strange += odd[lane]
    return high, low, strange


@inlined
def _advance(equity: NDArray[np.float64], state: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """One path. A new peak is rare: a tile is divided in vectors as if it brought none, and done again if it did.

    A mark above the peak gives a negative quotient, one that is not finite gives NaN or an infinity.
    """
    n = equity.shape[0]
    if n == 0:
        return
    peak = state[PEAK]
    whole = n - n % TILE
    for start in range(0, whole, TILE):
        calm = peak > 0.0
        for i in range(start, start + TILE):
            value = (peak - equity[i]) / peak
            out[i] = value
            calm &= (value >= 0.0) & (value < np.inf)
        if not calm:
            peak = _rising(equity, out, start, start + TILE, peak)
    peak = _rising(equity, out, whole, n, peak)
    state[PEAK] = peak
    state[EQUITY] = equity[n - 1]
    state[DRAWDOWN] = out[n - 1]


@kernel
def drawdown(equity: NDArray[np.float64], state: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """Drawdown of one account over a block of n >= 0 marks; a live mark is a block of one.

    Parameters
    ----------
    equity
        Shape (n,), USD.
    state
        Shape (STATE_SIZE,): peak to date, last equity, last drawdown; read and left ready
        for the next block. Begin with :func:`initial_state`.
    out
        Shape (n,): drawdown as a fraction of the peak to date; NaN where it is undefined.
    """
    _advance(equity, state, out)


@kernel
def drawdown_paths(equity: NDArray[np.float64], state: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """Drawdown of many independent accounts or simulated paths; row by row equal to :func:`drawdown`.

    Parameters
    ----------
    equity
        Shape (paths, n), USD, each path contiguous.
    state
        Shape (paths, STATE_SIZE), one state per path.
    out
        Shape (paths, n): drawdown as a fraction of the path's own peak to date.
    """
    for path in range(equity.shape[0]):
        _advance(equity[path], state[path], out[path])


@kernel
def deepest(
    equity: NDArray[np.float64],
    limit: float,
    state: NDArray[np.float64],
    worst: NDArray[np.float64],
    breach: NDArray[np.int64],
) -> None:
    """The deepest drawdown of each path and where it first exceeds a limit, reading every mark once.

    What a backtest over many paths asks; it writes two numbers a path instead of one a mark, so it
    runs at the speed of memory. Equal to the maximum of :func:`drawdown_paths`, bit for bit: within a
    tile that brings no new peak the deepest mark is the lowest one.

    Parameters
    ----------
    equity
        Shape (paths, n), USD, each path contiguous.
    limit
        Fraction of the peak; a drawdown strictly above it is a breach, and so is one that is NaN.
    state
        Shape (paths, STATE_SIZE), as in :func:`drawdown_paths`.
    worst
        Shape (paths,): the largest drawdown of the block, -inf for n = 0; NaN if any mark's is.
    breach
        Shape (paths,) int64: the first index in breach, -1 where there is none.
    """
    paths, n = equity.shape
    highs, lows, odd = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    out = np.empty(TILE)
    for path in range(paths):
        marks = equity[path]
        peak, deep, first, unknown = state[path, PEAK], -np.inf, -1, False
        last = state[path, DRAWDOWN]
        for start in range(0, n, TILE):
            stop = min(start + TILE, n)
            if stop - start == TILE:
                high, low, strange = _extremes(marks, start, highs, lows, odd)
                value = (peak - low) / peak
                calm = (high <= peak) & (peak > 0.0) & (strange == 0.0)
                if calm & ((first >= 0) | (value <= limit)):
                    deep = value if value > deep else deep
                    last = (peak - marks[stop - 1]) / peak
                    continue
            part = marks[start:stop]
            peak = _rising(part, out, 0, stop - start, peak)
            for i in range(stop - start):
                value = out[i]
                unknown |= np.isnan(value)
                if (first < 0) & (not (value <= limit)):
                    first = start + i
                deep = value if value > deep else deep
            last = out[stop - start - 1]
        worst[path] = np.nan if unknown else deep
        breach[path] = first
        if n > 0:
            state[path, PEAK] = peak
            state[path, EQUITY] = marks[n - 1]
            state[path, DRAWDOWN] = last
