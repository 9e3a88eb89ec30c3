"""What daily closes before 2019 say about the coefficients: the point towards which the ridge shrinks.

Three years of sessions hold one crash and few falling markets. The daily closes of the VIX and of the S&P 500 since the
VIX has its present definition (22 September 2003) hold 15 years of both. The same terms are fitted to them, with the
index's close-to-close return as the move; all of it lies before the first ES bar, so no fold sees its own future.
"""

from __future__ import annotations

import numpy as np

from mia_models.errors import ModelError
from mia_models.training.response import INPUTS, MINUTES_PER_DAY, TERMS, least_absolute, terms
from mia_models.training.samples import Floats, Integers

FIRST, LAST = "2004-01-01", "2018-12-31"
FEWEST_DAYS = 2000
RIDGE = 1e-4
_MONTH, _WEEK = 20, 5
_LOWEST_VOLATILITY = 0.02
"""Five daily returns can be nearly zero by chance; their logarithm must not decide."""


def from_daily(day: Integers, vix: Floats, index: Floats) -> Floats:
    """Coefficients of the intercept and the eight raw terms at the next close, float64 (9,).

    The volatility of the last session alone cannot be had from daily closes: its coefficient is 0.

    Parameters
    ----------
    day
        int64 (n,), days since 1970, ascending.
    vix, index
        float64 (n,), closes of the VIX and of the S&P 500 on those days.
    """
    move = np.diff(np.log(index))
    count = len(day)
    rows = np.arange(_MONTH + 1, count)
    mean5, mean20 = (_trailing_mean(vix, width)[rows - 1] for width in (_WEEK, _MONTH))
    volatility = np.sqrt(252.0 * np.r_[np.nan, _trailing_mean(move**2, _WEEK)])[rows - 1]
    within = (day[rows] >= _day(FIRST)) & (day[rows] <= _day(LAST))
    if within.sum() < FEWEST_DAYS:
        raise ModelError(
            f"{int(within.sum())} days have both closes between {FIRST} and {LAST}; {FEWEST_DAYS} are needed",
            where="daily closes of VIX and SPX",
            hint="give daily histories that reach back to 2004",
            then="nothing was trained",
        )
    values = (
        vix[rows - 1],
        mean5,
        mean20,
        np.maximum(volatility, _LOWEST_VOLATILITY),
        np.maximum(volatility, _LOWEST_VOLATILITY),
        move[rows - 1],
        # Just before the next close: the whole days between the two closes, and all but a minute of the last.
        (day[rows] - day[rows - 1]) * MINUTES_PER_DAY - 1.0,
    )
    columns = {name: column[within] for name, column in zip(INPUTS, values, strict=True)}
    target = np.log(vix[rows] / vix[rows - 1])[within]
    kept = [k for k, name in enumerate(TERMS) if name != "realised_1d"]
    design = np.column_stack([np.ones(len(target)), terms(columns)[:, kept]])
    solution = least_absolute(design, target, RIDGE)
    coefficients = np.zeros(1 + len(TERMS))
    coefficients[0] = solution[0]
    coefficients[[k + 1 for k in kept]] = solution[1:]
    return coefficients


def _trailing_mean(values: Floats, width: int) -> Floats:
    """Mean of the last ``width`` values at each place, NaN before there are so many."""
    result = np.full(len(values), np.nan)
    result[width - 1 :] = np.lib.stride_tricks.sliding_window_view(values, width).mean(axis=1)
    return result


def _day(text: str) -> int:
    return int(np.datetime64(text, "D").astype(np.int64))
