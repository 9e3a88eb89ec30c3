"""Errors of two forecasts as they become known, and what they say: three numbers at each bar.

The state is one flat array: a head, then rings of each close's mean error and mean absolute error, of the forecasts of
the coming close, of volatility forecasts that are still open, of log returns, and of errors of matured forecasts. A bar
is taken in two steps: first what is seen at it, from which the numbers follow, then what is forecast at it. So a
forecast cannot touch the numbers of its own bar.
``mia_models.drift`` says what the numbers are.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import inlined, kernel

SESSIONS, FEWEST_SESSIONS = 20, 5
WINDOW, FEWEST = 1380, 120
AHEAD = 30
BARS_PER_YEAR = 252 * 23 * 60

BARS, LOG_CLOSE, KNOWN_AT, MADE, CLOSES, MATURED = range(6)
_MEANS = 8
_SIZES = _MEANS + SESSIONS
_COMING = _SIZES + SESSIONS
_OPEN = _COMING + WINDOW
_MOVES = _OPEN + AHEAD
_ERRORS = _MOVES + AHEAD
STATE_SIZE = _ERRORS + WINDOW
OUTPUTS = 3


def initial_state() -> NDArray[np.float64]:
    """The state before the first bar, (STATE_SIZE,)."""
    state = np.zeros(STATE_SIZE)
    state[[LOG_CLOSE, KNOWN_AT]] = np.nan
    state[_OPEN:_ERRORS] = np.nan
    return state


@inlined
def _see(close: float, vix: float, known_at: float, state: NDArray[np.float64]) -> None:
    if (vix - vix == 0.0) & (known_at - known_at == 0.0):
        count = int(min(state[MADE], WINDOW))
        if (known_at > state[KNOWN_AT]) & (count > 0):
            mean, size = 0.0, 0.0
            for k in range(_COMING, _COMING + count):
                error = vix - state[k]
                mean += error
                size += abs(error)
            place = int(state[CLOSES]) % SESSIONS
            state[_MEANS + place], state[_SIZES + place] = mean / count, size / count
            state[CLOSES] += 1.0
            state[MADE] = 0.0
        state[KNOWN_AT] = known_at
    place = int(state[BARS]) % AHEAD
    log_close = math.log(close) if close > 0.0 else np.nan
    state[_MOVES + place] = log_close - state[LOG_CLOSE]
    total = 0.0
    for k in range(_MOVES, _MOVES + AHEAD):
        total += state[k] * state[k]
    realised = math.sqrt(total * BARS_PER_YEAR / AHEAD)
    forecast = state[_OPEN + place]  # made AHEAD bars ago
    if (realised > 0.0) & (forecast > 0.0):  # false for NaN
        error = abs(math.log(forecast / realised))
        state[_ERRORS + int(state[MATURED]) % WINDOW] = error
        state[MATURED] += 1.0
    state[_OPEN + place] = np.nan
    state[BARS] += 1.0
    state[LOG_CLOSE] = log_close


@inlined
def _expect(predicted_vix: float, predicted_volatility: float, state: NDArray[np.float64]) -> None:
    if predicted_vix - predicted_vix == 0.0:
        state[_COMING + int(state[MADE]) % WINDOW] = predicted_vix
        state[MADE] += 1.0
    state[_OPEN + int(state[BARS] - 1.0) % AHEAD] = predicted_volatility


@inlined
def _of_sessions(state: NDArray[np.float64], typical: float) -> tuple[float, float]:
    """Confidence and spread of the daily forecast's errors."""
    count = int(min(state[CLOSES], SESSIONS))
    if count < FEWEST_SESSIONS:
        return np.nan, np.nan
    total, size = 0.0, 0.0
    for k in range(count):
        total += state[_MEANS + k]
        size += state[_SIZES + k]
    mean, spread = total / count, 0.0
    for k in range(count):
        away = state[_MEANS + k] - mean
        spread += away * away
    ratio = size / count / typical
    return 1.0 / (1.0 + ratio * ratio), math.sqrt(spread / count)


@inlined
def _of_bars(state: NDArray[np.float64], expected: float) -> float:
    """How far the mean error of the matured forecasts is above the expected one."""
    count = int(min(state[MATURED], WINDOW))
    if count < FEWEST:
        return np.nan
    total = 0.0
    for k in range(_ERRORS, _ERRORS + count):
        total += state[k]
    return min(max(total / count / expected - 1.0, 0.0), 1.0)


@inlined
def _measure(state: NDArray[np.float64], expected: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    out[0], out[1] = _of_sessions(state, expected[0])
    out[2] = _of_bars(state, expected[1])


@kernel
def measure(state: NDArray[np.float64], expected: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """The three numbers by what is known.

    Parameters
    ----------
    state
        (STATE_SIZE,), from :func:`initial_state` and the other kernels.
    expected
        (2,): the mean absolute errors to expect, of the coming close and of matured forecasts.
    out
        (3,), NaN where there are too few errors.
    """
    _measure(state, expected, out)


@kernel
def see(
    bar: NDArray[np.float64], state: NDArray[np.float64], expected: NDArray[np.float64], out: NDArray[np.float64]
) -> None:
    """Take what is seen at a bar: close, VIX in force, and when it became known (3,); then as :func:`measure`."""
    _see(bar[0], bar[1], bar[2], state)
    _measure(state, expected, out)


@kernel
def expect(predicted_vix: float, predicted_volatility: float, state: NDArray[np.float64]) -> None:
    """Take what is forecast at the bar that was seen last; NaN where refused."""
    _expect(predicted_vix, predicted_volatility, state)


@kernel
def walk(
    bars: NDArray[np.float64],
    state: NDArray[np.float64],
    expected: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    """A block of bars.

    Parameters
    ----------
    bars
        (5, n): close, VIX in force, when it became known, forecast of the VIX, forecast of the volatility.
    state, expected
        As for :func:`measure`.
    out
        (3, n).
    """
    confidence, spread, closes = np.nan, np.nan, -1.0
    for i in range(bars.shape[1]):
        _see(bars[0, i], bars[1, i], bars[2, i], state)
        if state[CLOSES] != closes:
            closes = state[CLOSES]
            confidence, spread = _of_sessions(state, expected[0])
        out[0, i], out[1, i] = confidence, spread
        out[2, i] = _of_bars(state, expected[1])
        _expect(bars[3, i], bars[4, i], state)
