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


def initial_state() -> NDArray[np.float64]:
    """The state before the first mark: no peak, nothing known. Shape (STATE_SIZE,)."""
    return np.array([-np.inf, np.nan, np.nan])


@inlined
def _below(peak: float, equity: float) -> float:
    """The drawdown as a fraction of a positive peak, else NaN."""
    return (peak - equity) / peak if (equity - equity == 0.0) & (peak > 0.0) else np.nan


@inlined
def _advance(equity: NDArray[np.float64], state: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """One path. Only the peak is a chain: three passes over a tile let the first and last vectorise."""
    n = equity.shape[0]
    if n == 0:
        return
    peak = state[PEAK]
    tile = 512  # marks: input and output stay in the first-level cache
    for start in range(0, n, tile):
        stop = min(start + tile, n)
        for i in range(start, stop):  # a mark that is not finite never becomes the peak
            out[i] = equity[i] if equity[i] - equity[i] == 0.0 else -np.inf
        for i in range(start, stop):
            peak = out[i] if out[i] > peak else peak
            out[i] = peak
        for i in range(start, stop):
            out[i] = _below(out[i], equity[i])
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
