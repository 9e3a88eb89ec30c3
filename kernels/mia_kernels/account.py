"""An account in numbers: equity realised plus open, loss since the start of the trade date, trade rate.

Each function takes arrays of marks or of accounts; a live mark is an array of one.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import kernel

DAY, DAY_OPEN, DAY_LAST = 0, 1, 2


def initial_day_state() -> NDArray[np.float64]:
    """The state before the first mark: no day, no opening equity, no last mark. Shape (3,)."""
    return np.array([-np.inf, np.nan, np.nan])


@kernel
def equity(
    cash: NDArray[np.float64],
    position: NDArray[np.float64],
    entry: NDArray[np.float64],
    price: NDArray[np.float64],
    point_value: float,
    out: NDArray[np.float64],
) -> None:
    """Equity of n accounts or marks: cash with every realised result and fee, plus the open position at ``price``.

    Parameters
    ----------
    cash
        Shape (n,), USD.
    position
        Shape (n,), contracts, signed.
    entry, price
        Shape (n,), index points: average entry price, and the price to mark to. Ignored where the position is 0.
    point_value
        USD per index point and contract.
    out
        Shape (n,), USD; NaN where an input that counts is not finite.
    """
    for i in range(out.shape[0]):
        value = cash[i]
        if position[i] != 0.0:  # true for NaN as well: an unknown position has no known equity
            value += (price[i] - entry[i]) * position[i] * point_value
        out[i] = value if value - value == 0.0 else np.nan


@kernel
def daily_loss(
    marks: NDArray[np.float64], day: NDArray[np.float64], state: NDArray[np.float64], out: NDArray[np.float64]
) -> None:
    """Loss since the start of the trade date, over n >= 0 marks of one account.

    A trade date opens with the last finite mark of the one before it (its settlement), so that a gap over
    the break counts against the new date; the very first one opens with its first finite mark.

    Parameters
    ----------
    marks
        Shape (n,), USD.
    day
        Shape (n,), the number of the trade date. A smaller number than before belongs to the present
        date: a clock that goes backwards must not forgive a loss.
    state
        Shape (3,): trade date, its opening equity, last finite mark; read and left ready. Begin
        with :func:`initial_day_state`.
    out
        Shape (n,), USD; positive is a loss. NaN where the mark is not finite.
    """
    for i in range(marks.shape[0]):
        mark = marks[i]
        if day[i] > state[DAY]:
            state[DAY] = day[i]
            state[DAY_OPEN] = state[DAY_LAST]
        if mark - mark == 0.0:
            if state[DAY_OPEN] != state[DAY_OPEN]:
                state[DAY_OPEN] = mark
            state[DAY_LAST] = mark
            out[i] = state[DAY_OPEN] - mark
        else:
            out[i] = np.nan


@kernel
def overtrading(
    count: NDArray[np.int64],
    past_trades: NDArray[np.float64],
    past_time: NDArray[np.float64],
    window: float,
    min_trades: float,
    min_time: float,
    out: NDArray[np.float64],
) -> None:
    """P(K < count) of n accounts, K negative binomial: see :data:`mia_fast.risk.overtrading.FORMULA`.

    Parameters
    ----------
    count
        Shape (n,), trades in the present window.
    past_trades, past_time
        Shape (n,), weighted trades before it, and the weighted seconds they were made in.
    window
        Length of the present window, s.
    min_trades, min_time
        With less history than either the score is 0.
    out
        Shape (n,), 0..1.
    """
    for i in range(out.shape[0]):
        if (count[i] <= 0) | (not (past_trades[i] >= min_trades)) | (not (past_time[i] >= min_time)):
            out[i] = 0.0
            continue
        shape = past_trades[i] + 0.5
        success = past_time[i] / (past_time[i] + window)
        log_failure = math.log1p(-success)
        log_term = shape * math.log(success)  # of j = 0; in logs, for the probability of none may underflow
        total = math.exp(log_term)
        for j in range(1, count[i]):
            log_term += math.log((shape + j - 1.0) / j) + log_failure
            total += math.exp(log_term)
        out[i] = min(total, 1.0)
