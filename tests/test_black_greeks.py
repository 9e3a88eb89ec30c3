"""The ten greeks against derivatives of the price in 50 digits, over the whole grid of years, volatilities, strikes."""

from __future__ import annotations

import itertools
import math
import os

import mpmath as mp
import numpy as np
import pytest
from test_black import exact_price, smile, table_of_terms

from mia_kernels import black

DAY = 1 / 365
YEARS = [60 / 31_536_000, 2 / 8760, DAY, 7 * DAY, 30 * DAY, 0.25, 1.5, 5.0]
SIGMAS = [0.03, 0.08, 0.21, 0.5, 1.2, 3.0]
WIDTHS = [-6.0, -3.0, -1.0, -0.2, 0.0, 1e-3, 0.7, 2.5, 4.5, 6.0]
RATES = [(0.043, 0.013), (0.0, 0.03), (-0.01, 0.0)]
"""Rate and yield."""
SPOT = 4480.0
ORDERS = {  # of the derivatives by spot, volatility, years, rate
    black.DELTA: (1, 0, 0, 0),
    black.GAMMA: (2, 0, 0, 0),
    black.VEGA: (0, 1, 0, 0),
    black.THETA: (0, 0, 1, 0),
    black.RHO: (0, 0, 0, 1),
    black.VANNA: (1, 1, 0, 0),
    black.CHARM: (1, 0, 1, 0),
    black.VOMMA: (0, 2, 0, 0),
    black.SPEED: (3, 0, 0, 0),
    black.ULTIMA: (0, 3, 0, 0),
}


def _exact(terms: np.ndarray, strike: float, sigma: float) -> dict[int, float]:
    """Derivatives of a call's price; forward and discount are the floats that the kernel is given, to the last bit."""
    with mp.workdps(50):
        years, rate, carry = (mp.mpf(float(terms[row, 0])) for row in (black.YEARS, black.RATE, black.YIELD))
        grown = mp.mpf(float(terms[black.FORWARD, 0])) / (SPOT * mp.exp((rate - carry) * years))
        paid = mp.mpf(float(terms[black.DISCOUNT, 0])) / mp.exp(-rate * years)
        k = mp.mpf(strike)

        def call(s, v, tau, r):
            f = grown * s * mp.exp((r - carry) * tau)
            w = v * mp.sqrt(tau)
            d1 = mp.log(f / k) / w + w / 2
            return paid * mp.exp(-r * tau) * (f * mp.ncdf(d1) - k * mp.ncdf(d1 - w))

        at = (mp.mpf(SPOT), mp.mpf(sigma), years, rate)
        exact = {row: float(mp.diff(call, at, order)) for row, order in ORDERS.items()}
    return exact | {row: -exact[row] for row in (black.THETA, black.CHARM)}  # per year that passes


def _sizes(exact: dict[int, float], strike: float, sigma: float, years: float) -> dict[int, float]:
    """Each greek's own size where it crosses zero."""
    s, gamma, vega = sigma * math.sqrt(years), abs(exact[black.GAMMA]), abs(exact[black.VEGA])
    return {
        black.DELTA: 1.0,
        black.GAMMA: gamma,
        black.VEGA: vega,
        black.THETA: abs(exact[black.THETA]) + vega * sigma / years,
        black.RHO: strike * years,
        black.VANNA: vega / SPOT / s,
        black.CHARM: vega / SPOT / s / years * sigma,
        black.VOMMA: vega / sigma,
        black.SPEED: gamma / SPOT / s,
        black.ULTIMA: vega / sigma**2,
    }


@pytest.mark.parametrize("years", YEARS)
def test_greeks_over_the_whole_grid(years: float) -> None:
    """60 seconds to 5 years, 3 % to 300 %, 6 widths to both sides, three pairs of rate and yield.

    Of the 1,440 points every seventh; make torture takes all. From prices (``smile``) and from volatilities
    (``reprice``). The room is 1e-13 of the greek's size, or what one rounding of F/K means ``h`` widths out.
    """
    points = list(itertools.product(SIGMAS, WIDTHS, RATES))
    worst = dict.fromkeys(ORDERS, 0.0)
    for sigma, h, (rate, carry) in points[:: 1 if os.environ.get("MIA_WHOLE") else 7]:
        forward, discount = SPOT * math.exp((rate - carry) * years), math.exp(-rate * years)
        s = sigma * math.sqrt(years)
        strike = forward * math.exp(h * s)
        terms = table_of_terms(forward, discount, years, SPOT)
        right = 1.0 if strike >= forward else -1.0
        price = np.array([float(discount * exact_price(forward, strike, s, right))])
        out, status = np.empty((black.N_GREEKS, 1)), np.zeros(1, np.int8)
        smile(price, np.array([strike]), terms, SPOT, out, status)
        assert status[0] == black.OK
        again, sums = np.empty_like(out), np.empty((1, 2, black.N_SUMS))
        group, held = np.zeros(1, np.int64), np.zeros((2, 1))
        black.reprice(out[black.SIGMA].copy(), np.array([strike]), group, terms, SPOT, again, held, sums)
        exact = _exact(terms, strike, float(out[black.SIGMA, 0]))
        size = _sizes(exact, strike, sigma, years)
        room = max(1e-13, abs(h) / s * 2.0**-53)
        for found, (row, value) in itertools.product((out, again), exact.items()):
            error = abs(found[row, 0] - value) / max(size[row], abs(value))
            assert error <= room, (row, sigma, h, rate, carry, error / room)
            worst[row] = max(worst[row], error / room)
    print(f"{years:.3g} years: largest error {max(worst.values()):.2f} of its room")
