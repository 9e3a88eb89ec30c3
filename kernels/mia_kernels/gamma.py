"""Gamma exposure by strike, its profile over the underlying's price, and where it changes sign.

Conventions. The exposure of a contract is ``gamma OI multiplier S^2 0.01``: USD of delta to be traded
per 1 % move of the underlying. The profile holds every strike's volatility (sticky strike) and the
ratio F/S of each expiry, and moves S alone:

    GEX(L) = sum_i  w_i L n(d_i),   d_i = (ln L - c_i) / s_i,
    c_i = ln K - ln(F/S) - s_i^2 / 2,   w_i = 0.01 multiplier (D F / S) signed OI / s_i

with n the normal density. Zero gamma is a root in L (C. E. Barbon and A. Buraschi, "Gamma fragility",
2021, for the aggregate; the sign of the dealers' position is the caller's assumption).
"""

from __future__ import annotations

import math

import numpy as np

from mia_kernels.black import CARRY, F64, FORWARD, I8, I64, OK, ROOT_YEARS
from mia_kernels.compile import inlined, kernel
from mia_kernels.elementary import exp, log

# Rows of the profile's table.
CENTRE = 0
INVERSE_WIDTH = 1
WEIGHT = 2
N_PROFILE = 3

_INV_SQRT_2PI = 0.3989422804014327
_REACH = 9.0  # beyond this many widths a density is below 3e-18 of its peak
_BLOCK = 256


@kernel
def exposure_by_strike(gamma: F64, status: I8, group: I64, level: I64, interest: F64, scale: F64, out: F64) -> None:
    """Unsigned gamma exposure of calls (row 0) and puts (row 1) at each distinct strike.

    Parameters
    ----------
    gamma, status
        [n] gamma of the strike (call and put share it) and its status; only OK counts.
    group, level
        [n] expiry of the row, and index of its strike among the distinct ones.
    interest
        [2, n] open interest of the call and of the put, contracts.
    scale
        [expiries] multiplier * S^2 * 0.01.
    out
        [2, strikes] out, USD per 1 % move.
    """
    out[:] = 0.0
    for i in range(gamma.shape[0]):
        if status[i] == OK:
            unit = gamma[i] * scale[group[i]]
            out[0, level[i]] += unit * interest[0, i]
            out[1, level[i]] += unit * interest[1, i]


@kernel
def profile_terms(
    sigma: F64,
    status: I8,
    strike: F64,
    group: I64,
    interest: F64,
    terms: F64,
    multiplier: F64,
    spot: float,
    call_sign: float,
    put_sign: float,
    out: F64,
) -> int:
    """Fill ``out`` [N_PROFILE, n] with c, 1/s and w of the strikes that have a weight; return their number.

    ``sigma``, ``status``, ``strike``, ``group`` [n]; ``interest`` [2, n]; ``terms`` as in
    :func:`mia_kernels.black.expiry_terms`; ``multiplier`` [expiries], USD per point.
    """
    m = 0
    for i in range(sigma.shape[0]):
        signed = call_sign * interest[0, i] + put_sign * interest[1, i]
        if status[i] != OK or signed == 0.0:
            continue
        g = group[i]
        s = sigma[i] * terms[ROOT_YEARS, g]
        out[CENTRE, m] = log(strike[i]) - log(terms[FORWARD, g] / spot) - 0.5 * s * s
        out[INVERSE_WIDTH, m] = 1.0 / s
        out[WEIGHT, m] = 0.01 * multiplier[g] * terms[CARRY, g] * signed / s
        m += 1
    return m


@kernel
def profile(table: F64, m: int, log_spot: F64, out: F64) -> None:
    """Net gamma exposure at each price of a grid.

    Parameters
    ----------
    table, m
        [N_PROFILE, >= m] from :func:`profile_terms`.
    log_spot
        [g] ln L, ascending.
    out
        [g] out, USD per 1 % move.
    """
    out[:] = 0.0
    size = log_spot.shape[0]
    for i in range(m):
        centre = table[CENTRE, i]
        inverse = table[INVERSE_WIDTH, i]
        weight = table[WEIGHT, i]
        # whole vectors: what a remainder loop costs per price is eight times as much
        first = np.searchsorted(log_spot, centre - _REACH / inverse) // 8 * 8
        last = min(size, (np.searchsorted(log_spot, centre + _REACH / inverse) + 7) // 8 * 8)
        near = log_spot[first:last]  # a loop from 0 vectorises; one from a variable may count from behind
        total = out[first:last]
        for g in range(near.shape[0]):
            d = (near[g] - centre) * inverse
            total[g] += weight * exp(-0.5 * d * d)
    for g in range(size):
        out[g] *= _INV_SQRT_2PI * exp(log_spot[g])


@inlined
def _net(table: F64, m: int, x: float, terms: F64, sums: F64) -> None:
    """sums[0], sums[1] = sum w n(d) and its derivative to x = ln L, both without the factor L."""
    sums[0] = 0.0
    sums[1] = 0.0
    for first in range(0, m, _BLOCK):
        n = min(_BLOCK, m - first)
        centre = table[CENTRE, first : first + n]
        inverse = table[INVERSE_WIDTH, first : first + n]
        weight = table[WEIGHT, first : first + n]
        for j in range(n):
            d = (x - centre[j]) * inverse[j]
            e = weight[j] * exp(-0.5 * d * d)
            terms[j] = e
            terms[_BLOCK + j] = e * d * inverse[j]
        total = 0.0
        slope = 0.0
        for j in range(n):
            total += terms[j]
            slope -= terms[_BLOCK + j]
        sums[0] += total
        sums[1] += slope


@kernel
def sign_changes(table: F64, m: int, log_spot: F64, values: F64, roots: F64) -> int:
    """Refine every change of sign between neighbours of the grid; return how many there are.

    Newton's method inside the bracket (bisection where it would leave it) on sum w n(d), to 4e-15
    in ln L: the last bits of a price.

    Parameters
    ----------
    table, m
        As in :func:`profile`.
    log_spot, values
        [g] the grid and the profile on it. Exact zeros belong to the interval around them.
    roots
        [g] out: the prices L, ascending, in the first places.
    """
    terms = np.empty(2 * _BLOCK)
    sums = np.empty(2)
    count = 0
    last = -1
    for g in range(log_spot.shape[0]):
        if values[g] == 0.0:
            continue
        if last >= 0 and (values[g] > 0.0) != (values[last] > 0.0):
            low = log_spot[last]
            high = log_spot[g]
            rising = values[g] > 0.0
            x = low + (high - low) * values[last] / (values[last] - values[g])
            for _ in range(100):
                _net(table, m, x, terms, sums)
                if sums[0] == 0.0:
                    break
                if (sums[0] > 0.0) == rising:
                    high = x
                else:
                    low = x
                new = x - sums[0] / sums[1]
                if not low < new < high:
                    new = 0.5 * (low + high)
                done = abs(new - x) <= 4e-15
                x = new
                if done:
                    break
            roots[count] = math.exp(x)
            count += 1
        last = g
    return count


@kernel
def max_pain(strike: F64, start: I64, interest: F64, out: F64) -> None:
    """Of each expiry the listed strike at which holders of its options would receive least.

    ``argmin over K of sum OI * intrinsic(K)`` by running sums, the lowest strike on ties; NaN without
    open interest. ``strike`` [n] ascending inside each expiry, ``start`` [expiries + 1],
    ``interest`` [2, n], ``out`` [expiries].
    """
    for g in range(out.shape[0]):
        puts = 0.0  # contracts struck above the price
        pain = 0.0
        for i in range(start[g], start[g + 1]):
            puts += interest[1, i]
            pain += interest[1, i] * (strike[i] - strike[start[g]])
        calls = 0.0  # struck below it
        total = puts
        best = np.inf
        out[g] = np.nan
        for i in range(start[g], start[g + 1]):
            if i > start[g]:
                pain += (calls - puts) * (strike[i] - strike[i - 1])
            if pain < best:
                best = pain
                out[g] = strike[i]
            calls += interest[0, i]
            puts -= interest[1, i]
        if not total + calls > 0.0:
            out[g] = np.nan
