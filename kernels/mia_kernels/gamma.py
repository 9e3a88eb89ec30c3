"""Gamma exposure by strike, its profile over the underlying's price, and where it changes sign.

Conventions. The exposure of a contract is ``gamma OI multiplier S^2 0.01``: USD of delta to be traded
per 1 % move of the underlying. The profile holds every strike's volatility (sticky strike) and the
ratio F/S of each expiry, and moves S alone:

    GEX(L) = sum_i  w_i L n(d_i),   d_i = (ln L - c_i) / s_i,
    c_i = ln K - ln(F/S) - s_i^2 / 2,   w_i = 0.01 multiplier (D F / S) signed OI / s_i

with n the normal density. Where a move of S also moves the volatilities by d sigma_i = v_i d ln S, the hedge
changes by gamma + vanna v_i / S, and each term is multiplied by 1 + b_i (d_i - s_i), b_i = -v_i sqrt(T): the
profile of the volatility trigger. Zero gamma is a root in L (C. E. Barbon and A. Buraschi, "Gamma fragility",
2021, for the aggregate; the sign of the dealers' position is the caller's assumption).
"""

from __future__ import annotations

import math

import numpy as np

from mia_kernels.black import (
    CARRY,
    CHARM,
    DELTA,
    DISCOUNT,
    F64,
    FORWARD,
    I8,
    I64,
    N_SUMS,
    OK,
    RATE,
    RHO,
    ROOT_YEARS,
    SIGMA,
    STRUCK,
    THETA,
    YEARS,
    YIELD,
)
from mia_kernels.compile import inlined, kernel
from mia_kernels.elementary import log
from mia_kernels.vector import exp, fma, wide

# Rows of the profile's table.
CENTRE = 0
INVERSE_WIDTH = 1
WEIGHT = 2
SKEW = 3  # b
TILT = 4  # 1 - b s
N_PROFILE = 5

# Places of the table that walls fills.
KEYS = 0
CALL_WALL = 5
PUT_WALL = 6
CALL_PEAK = 7
PUT_PEAK = 8
CALLS = 9
PUTS = 10
WITHIN_10 = 11
WITHIN_1 = 12
ABOVE = 13
BELOW = 14
N_WALLS = 15

_INV_SQRT_2PI = 0.3989422804014327
_REACH = 9.0  # beyond this many widths a density is below 3e-18 of its peak
_NEAR = 7.5  # the same on an even grid: 7e-13
_BLOCK = 256
_LANES = 16
_WIDTH = 2 * _LANES
_STEPS = 16  # prices that one evaluation of the exponential serves
_NARROW = 0.3  # step over width above which each price is evaluated for itself


@kernel
def exposure_by_strike(
    gamma: F64, status: I8, level: I64, start: I64, buckets: I64, interest: F64, scale: F64, out: F64
) -> None:
    """Unsigned gamma exposure of calls (row 0) and puts (row 1) at each distinct strike, by bucket.

    Parameters
    ----------
    gamma, status
        [n] gamma of the strike (call and put share it) and its status; only OK counts.
    level
        [n] index of the row's strike among the distinct ones.
    start
        [expiries + 1] the first row of each expiry, and n.
    buckets
        [b] so many of the first expiries belong to the bucket, ascending.
    interest
        [2, n] open interest of the call and of the put, contracts.
    scale
        [expiries] multiplier * S^2 * 0.01.
    out
        [b, 2, strikes] out, USD per 1 % move.
    """
    out[:] = 0.0
    of_calls = interest[0]
    of_puts = interest[1]
    first = 0
    for bucket in range(buckets.shape[0]):
        if bucket > 0:
            out[bucket] = out[bucket - 1]
        calls = out[bucket, 0]
        puts = out[bucket, 1]
        for g in range(first, buckets[bucket]):
            for row in range(start[g], start[g + 1]):
                i = np.uint64(row)  # unsigned: no place is counted from behind
                if status[i] == OK:
                    at = np.uint64(level[i])
                    unit = gamma[i] * scale[g]
                    calls[at] += unit * of_calls[i]
                    puts[at] += unit * of_puts[i]
        first = buckets[bucket]


@kernel
def count_contracts(
    interest: F64,
    volume: F64,
    listed: I8,
    status: I8,
    strike_status: I8,
    start: I64,
    level: I64,
    years: F64,
    out: F64,
    by_strike: F64,
) -> None:
    """Sums over each expiry, and the live open interest at each distinct strike.

    ``interest``, ``volume``, ``listed``, ``status`` [2, n]; ``strike_status``, ``level`` [n]; ``start``
    [expiries + 1]; ``years`` [expiries], not positive means expired. ``out`` [expiries, 6] out: open calls, open
    puts, open interest at strikes that are OK, contracts listed, contracts that are OK, calls traded.
    ``by_strike`` [strikes] out, contracts.
    """
    by_strike[:] = 0.0
    for g in range(out.shape[0]):
        calls = 0.0
        puts = 0.0
        solved = 0.0
        count = 0
        quoted = 0
        traded = 0.0
        for i in range(start[g], start[g + 1]):
            both = interest[0, i] + interest[1, i]
            calls += interest[0, i]
            puts += interest[1, i]
            if strike_status[i] == OK:
                solved += both
            count += listed[0, i] + listed[1, i]
            quoted += (status[0, i] == OK) + (status[1, i] == OK)
            traded += volume[0, i]
            if years[g] > 0.0:
                by_strike[level[i]] += both
        out[g, 0] = calls
        out[g, 1] = puts
        out[g, 2] = solved
        out[g, 3] = count
        out[g, 4] = quoted
        out[g, 5] = traded


@kernel
def count_near(
    interest: F64, strike_status: I8, strike: F64, start: I64, years: F64, forward: F64, reach: F64, out: F64
) -> None:
    """Live open interest at the strikes with |K/F - 1| <= reach, and at those of them that are OK.

    ``interest`` [2, n]; ``strike_status``, ``strike`` [n], ascending inside each expiry; ``start`` [expiries + 1];
    ``years``, ``forward``, ``reach`` [expiries]; ``out`` [expiries, 2] out, contracts.
    """
    for g in range(out.shape[0]):
        out[g] = 0.0
        if not years[g] > 0.0:
            continue
        ladder = strike[start[g] : start[g + 1]]
        low = start[g] + np.searchsorted(ladder, forward[g] * (1.0 - reach[g]))
        high = start[g] + np.searchsorted(ladder, forward[g] * (1.0 + reach[g]), side="right")
        near = 0.0
        solved = 0.0
        for i in range(low, high):
            both = interest[0, i] + interest[1, i]
            near += both
            solved += both if strike_status[i] == OK else 0.0
        out[g, 0] = near
        out[g, 1] = solved


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
    response: F64,
    out: F64,
    ends: I64,
) -> int:
    """Fill ``out`` [N_PROFILE, n] with c, 1/s, w, b and 1 - b s of the strikes that have a weight; return their number.

    ``sigma``, ``status``, ``strike``, ``group`` [n]; ``interest`` [2, n]; ``terms`` as in
    :func:`mia_kernels.black.expiry_terms`; ``multiplier`` [expiries], USD per point; ``response`` [expiries]
    v = d sigma / d ln S; ``ends`` [expiries] out: how many of the rows belong to this expiry or an earlier one.
    """
    m = 0
    last = -1
    shift = 0.0
    for i in range(sigma.shape[0]):
        g = group[i]
        if g != last:
            for earlier in range(max(last, 0), g):
                ends[earlier] = m
            shift = log(terms[FORWARD, g] / spot)
            last = g
        signed = call_sign * interest[0, i] + put_sign * interest[1, i]
        if status[i] != OK or signed == 0.0:
            continue
        s = sigma[i] * terms[ROOT_YEARS, g]
        out[CENTRE, m] = log(strike[i]) - shift - 0.5 * s * s
        out[INVERSE_WIDTH, m] = 1.0 / s
        out[WEIGHT, m] = 0.01 * multiplier[g] * terms[CARRY, g] * signed / s
        skew = -response[g] * terms[ROOT_YEARS, g]  # vanna = -n(d) (d - s) D F / (S sigma)
        out[SKEW, m] = skew
        out[TILT, m] = 1.0 - skew * s
        m += 1
    for later in range(max(last, 0), ends.shape[0]):
        ends[later] = m
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


@kernel
def profiles(table: F64, first: int, last: int, origin: float, step: float, out: F64) -> None:
    """Both profiles of a range of strikes on a grid that is even in ln L.

    Row 0 is :func:`profile`; row 1 is the same with each term times ``1 + b (d - s)``, the profile of the
    volatility trigger. A strike that is wide against the step is carried along the grid by
    ``e(x + h) = e r, r <- r exp(-h^2)`` with ``r = exp(-h (d + h/2))``, h = step / s, started afresh every 16 prices,
    so that rounding does not grow (below 3e-14 of a term); 32 strikes go side by side. A narrow one is evaluated
    price by price. Beyond 7.5 widths both leave out what is below 7e-13 of a peak.

    Parameters
    ----------
    table, first, last
        [N_PROFILE, >= last] from :func:`profile_terms`, and the range of its rows.
    origin, step
        The grid ``origin + step k`` in ln L, k < size.
    out
        [2, size] out, USD per 1 % move; size is a multiple of 16.
    """
    wide()
    size = out.shape[1]
    chunks = size // _STEPS
    total = np.zeros(2 * size * _LANES)
    rows = np.empty(7 * _WIDTH)  # of 32 strikes: c, 1/s, w, 1 - b s, b, h, exp(-h^2)
    sums = np.empty(2 * _STEPS * _LANES)
    narrow = np.zeros(2 * size)
    row = first
    while row < last:
        n = 0
        low = np.inf
        high = -np.inf
        while row < last and n < _WIDTH:
            centre = table[CENTRE, row]
            inverse = table[INVERSE_WIDTH, row]
            skew = table[SKEW, row]
            weight = table[WEIGHT, row]
            row += 1
            h = step * inverse
            if h <= _NARROW:
                rows[n] = centre
                rows[_WIDTH + n] = inverse
                rows[2 * _WIDTH + n] = weight
                rows[3 * _WIDTH + n] = table[TILT, row - 1]
                rows[4 * _WIDTH + n] = skew
                rows[5 * _WIDTH + n] = h
                low = min(low, centre - _NEAR / inverse)
                high = max(high, centre + _NEAR / inverse)
                n += 1
                continue
            begin = max(0, math.ceil((centre - _NEAR / inverse - origin) / step))
            end = min(size, math.floor((centre + _NEAR / inverse - origin) / step) + 1)
            for k in range(begin, end):
                d = (origin + step * k - centre) * inverse
                e = weight * exp(-0.5 * d * d)
                narrow[k] += e
                narrow[size + k] += e * (table[TILT, row - 1] + skew * d)
        if n == 0:
            continue
        for j in range(n, _WIDTH):  # idle lanes
            for k in range(6):
                rows[k * _WIDTH + j] = rows[k * _WIDTH]
            rows[2 * _WIDTH + j] = 0.0
        for j in range(_WIDTH):
            h = rows[5 * _WIDTH + j]
            rows[6 * _WIDTH + j] = exp(-h * h)
        begin = max(0, math.floor((low - origin) / step) // _STEPS)
        end = min(chunks, math.ceil((high - origin) / step) // _STEPS + 1)
        for chunk in range(begin, end):
            x = origin + step * (chunk * _STEPS)
            _sixteen(rows, x, sums)
            base = chunk * _STEPS * _LANES
            for k in range(_STEPS * _LANES):
                total[base + k] += sums[k]
            base += size * _LANES
            for k in range(_STEPS * _LANES):
                total[base + k] += sums[_STEPS * _LANES + k]
    for which in range(2):
        for k in range(size):
            value = narrow[which * size + k]
            for j in range(_LANES):
                value += total[(which * size + k) * _LANES + j]
            out[which, k] = value * _INV_SQRT_2PI * exp(origin + step * k)


@inlined
def _sixteen(rows: F64, x: float, sums: F64) -> None:
    """The terms of two times sixteen strikes, added in pairs, at sixteen prices from ``x`` on, by recurrence."""
    for j in range(_LANES):
        h = rows[5 * _WIDTH + j]
        d = (x - rows[j]) * rows[_WIDTH + j]
        e = rows[2 * _WIDTH + j] * exp(-0.5 * d * d)
        r = exp(-h * (d + 0.5 * h))
        c = rows[6 * _WIDTH + j]
        f = rows[3 * _WIDTH + j] + rows[4 * _WIDTH + j] * d
        rise = rows[4 * _WIDTH + j] * h
        h2 = rows[5 * _WIDTH + _LANES + j]
        d2 = (x - rows[_LANES + j]) * rows[_WIDTH + _LANES + j]
        e2 = rows[2 * _WIDTH + _LANES + j] * exp(-0.5 * d2 * d2)
        r2 = exp(-h2 * (d2 + 0.5 * h2))
        c2 = rows[6 * _WIDTH + _LANES + j]
        f2 = rows[3 * _WIDTH + _LANES + j] + rows[4 * _WIDTH + _LANES + j] * d2
        rise2 = rows[4 * _WIDTH + _LANES + j] * h2
        sums[j] = e + e2
        sums[_STEPS * _LANES + j] = fma(e, f, e2 * f2)
        e *= r
        r *= c
        f += rise
        e2 *= r2
        r2 *= c2
        f2 += rise2
        sums[1 * _LANES + j] = e + e2
        sums[(_STEPS + 1) * _LANES + j] = fma(e, f, e2 * f2)
        e *= r
        r *= c
        f += rise
        e2 *= r2
        r2 *= c2
        f2 += rise2
        sums[2 * _LANES + j] = e + e2
        sums[(_STEPS + 2) * _LANES + j] = fma(e, f, e2 * f2)
        e *= r
        r *= c
        f += rise
        e2 *= r2
        r2 *= c2
        f2 += rise2
        sums[3 * _LANES + j] = e + e2
        sums[(_STEPS + 3) * _LANES + j] = fma(e, f, e2 * f2)
        e *= r
        r *= c
        f += rise
        e2 *= r2
        r2 *= c2
        f2 += rise2
        sums[4 * _LANES + j] = e + e2
        sums[(_STEPS + 4) * _LANES + j] = fma(e, f, e2 * f2)
        e *= r
        r *= c
        f += rise
        e2 *= r2
        r2 *= c2
        f2 += rise2
        sums[5 * _LANES + j] = e + e2
        sums[(_STEPS + 5) * _LANES + j] = fma(e, f, e2 * f2)
        e *= r
        r *= c
        f += rise
        e2 *= r2
        r2 *= c2
        f2 += rise2
        sums[6 * _LANES + j] = e + e2
        sums[(_STEPS + 6) * _LANES + j] = fma(e, f, e2 * f2)
        e *= r
        r *= c
        f += rise
        e2 *= r2
        r2 *= c2
        f2 += rise2
        sums[7 * _LANES + j] = e + e2
        sums[(_STEPS + 7) * _LANES + j] = fma(e, f, e2 * f2)
        e *= r
        r *= c
        f += rise
        e2 *= r2
        r2 *= c2
        f2 += rise2
        sums[8 * _LANES + j] = e + e2
        sums[(_STEPS + 8) * _LANES + j] = fma(e, f, e2 * f2)
        e *= r
        r *= c
        f += rise
        e2 *= r2
        r2 *= c2
        f2 += rise2
        sums[9 * _LANES + j] = e + e2
        sums[(_STEPS + 9) * _LANES + j] = fma(e, f, e2 * f2)
        e *= r
        r *= c
        f += rise
        e2 *= r2
        r2 *= c2
        f2 += rise2
        sums[10 * _LANES + j] = e + e2
        sums[(_STEPS + 10) * _LANES + j] = fma(e, f, e2 * f2)
        e *= r
        r *= c
        f += rise
        e2 *= r2
        r2 *= c2
        f2 += rise2
        sums[11 * _LANES + j] = e + e2
        sums[(_STEPS + 11) * _LANES + j] = fma(e, f, e2 * f2)
        e *= r
        r *= c
        f += rise
        e2 *= r2
        r2 *= c2
        f2 += rise2
        sums[12 * _LANES + j] = e + e2
        sums[(_STEPS + 12) * _LANES + j] = fma(e, f, e2 * f2)
        e *= r
        r *= c
        f += rise
        e2 *= r2
        r2 *= c2
        f2 += rise2
        sums[13 * _LANES + j] = e + e2
        sums[(_STEPS + 13) * _LANES + j] = fma(e, f, e2 * f2)
        e *= r
        r *= c
        f += rise
        e2 *= r2
        r2 *= c2
        f2 += rise2
        sums[14 * _LANES + j] = e + e2
        sums[(_STEPS + 14) * _LANES + j] = fma(e, f, e2 * f2)
        e *= r
        r *= c
        f += rise
        e2 *= r2
        r2 *= c2
        f2 += rise2
        sums[15 * _LANES + j] = e + e2
        sums[(_STEPS + 15) * _LANES + j] = fma(e, f, e2 * f2)


@inlined
def _net(table: F64, m: int, x: float, tilted: bool, terms: F64, sums: F64) -> None:
    """sums[0], sums[1] = sum w n(d) f and its derivative to x = ln L, without the factor L; f = 1 or 1 + b (d - s)."""
    sums[0] = 0.0
    sums[1] = 0.0
    share = 1.0 if tilted else 0.0
    for first in range(0, m, _BLOCK):
        n = min(_BLOCK, m - first)
        centre = table[CENTRE, first : first + n]
        inverse = table[INVERSE_WIDTH, first : first + n]
        weight = table[WEIGHT, first : first + n]
        skew = table[SKEW, first : first + n]
        tilt = table[TILT, first : first + n]
        for j in range(n, _BLOCK):
            terms[j] = 0.0
            terms[_BLOCK + j] = 0.0
        for j in range(n):
            d = (x - centre[j]) * inverse[j]
            b = share * skew[j]
            f = 1.0 + share * (tilt[j] - 1.0) + b * d
            e = weight[j] * exp(-0.5 * d * d)
            terms[j] = e * f
            terms[_BLOCK + j] = e * inverse[j] * (b - d * f)
        for j in range(128):  # halves on halves: whole vectors, and less rounding than one long sum
            terms[j] += terms[128 + j]
            terms[_BLOCK + j] += terms[_BLOCK + 128 + j]
        for j in range(64):
            terms[j] += terms[64 + j]
            terms[_BLOCK + j] += terms[_BLOCK + 64 + j]
        for j in range(32):
            terms[j] += terms[32 + j]
            terms[_BLOCK + j] += terms[_BLOCK + 32 + j]
        for j in range(16):
            terms[j] += terms[16 + j]
            terms[_BLOCK + j] += terms[_BLOCK + 16 + j]
        for j in range(8):
            sums[0] += terms[j] + terms[8 + j]
            sums[1] += terms[_BLOCK + j] + terms[_BLOCK + 8 + j]


@kernel
def net_at(table: F64, m: int, x: float, out: F64) -> None:
    """Net gamma exposure at ln L = ``x`` and its derivative to ln L: ``out`` [2] out, USD per 1 % move."""
    wide()
    terms = np.empty(2 * _BLOCK)
    _net(table, m, x, False, terms, out)
    scale = _INV_SQRT_2PI * math.exp(x)
    out[1] = scale * (out[0] + out[1])
    out[0] *= scale


@kernel
def sign_changes(table: F64, m: int, log_spot: F64, values: F64, tilted: bool, roots: F64) -> int:
    """Refine every change of sign between neighbours of the grid; return how many there are.

    Newton's method inside the bracket (bisection where it would leave it) on sum w n(d) f, until the next
    step would be below 4e-15 in ln L: the last bits of a price.

    Parameters
    ----------
    table, m
        As in :func:`profile`.
    log_spot, values
        [g] the grid and the profile on it. Exact zeros belong to the interval around them.
    tilted
        The profile is that of the volatility trigger.
    roots
        [g] out: the prices L, ascending, in the first places.
    """
    wide()
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
            move = high - low
            x = low + (high - low) * values[last] / (values[last] - values[g])
            for _ in range(100):
                _net(table, m, x, tilted, terms, sums)
                if sums[0] == 0.0:
                    break
                if (sums[0] > 0.0) == rising:
                    high = x
                else:
                    low = x
                new = x - sums[0] / sums[1]
                if not low < new < high:
                    new = 0.5 * (low + high)
                step = abs(new - x)
                # steps shrink as their squares, so the next one is foreseen; below 1e-11 rounding may end that
                done = (
                    step <= 4e-15 or step * step * step <= 2e-15 * move * move or (step < 1e-11 and step > 0.25 * move)
                )
                move = step
                x = new
                if done:
                    break
            roots[count] = math.exp(x)
            count += 1
        last = g
    return count


@kernel
def largest(values: F64, strike: F64, spot: float, low: float, high: float, out: F64) -> None:
    """The strikes in [low, high] with the largest positive values; ties nearest S, then the lower one.

    ``values``, ``strike`` [m]; ``out`` [k] out, largest first, NaN where there are no more.
    """
    size = out.shape[0]
    best = np.full(size, -1)
    for i in range(strike.shape[0]):
        if not (values[i] > 0.0 and low <= strike[i] <= high):
            continue
        place = size
        while place > 0:
            held = best[place - 1]
            if held >= 0:
                far = abs(strike[i] - spot)
                held_far = abs(strike[held] - spot)
                if values[i] < values[held]:
                    break
                if values[i] == values[held] and (far > held_far or (far == held_far and strike[i] > strike[held])):
                    break
            place -= 1
        if place < size:
            for k in range(size - 1, place, -1):
                best[k] = best[k - 1]
            best[place] = i
    for k in range(size):
        out[k] = strike[best[k]] if best[k] >= 0 else np.nan


@kernel
def walls(exposure: F64, strike: F64, spot: float, out: F64) -> None:
    """The strikes that matter, and how the exposure lies around S.

    Parameters
    ----------
    exposure, strike
        [b, 2, m] of calls and puts as :func:`exposure_by_strike` gives it, [m].
    out
        [b, N_WALLS] out: KEYS.. five strikes of the largest call + put exposure; CALL_WALL, PUT_WALL the largest call
        exposure at K >= S and put exposure at K <= S; CALL_PEAK, PUT_PEAK on either side; CALLS, PUTS the sums;
        WITHIN_10, WITHIN_1 the sums of both within 10 % and 1 % of S; ABOVE, BELOW on either side. NaN for no strike.
    """
    for b in range(out.shape[0]):
        both = exposure[b, 0] + exposure[b, 1]
        largest(both, strike, spot, 0.0, np.inf, out[b, KEYS : KEYS + 5])
        largest(exposure[b, 0], strike, spot, spot, np.inf, out[b, CALL_WALL : CALL_WALL + 1])
        largest(exposure[b, 1], strike, spot, 0.0, spot, out[b, PUT_WALL : PUT_WALL + 1])
        largest(exposure[b, 0], strike, spot, 0.0, np.inf, out[b, CALL_PEAK : CALL_PEAK + 1])
        largest(exposure[b, 1], strike, spot, 0.0, np.inf, out[b, PUT_PEAK : PUT_PEAK + 1])
        out[b, CALLS:N_WALLS] = 0.0
        for i in range(strike.shape[0]):
            distance = strike[i] / spot - 1.0
            out[b, CALLS] += exposure[b, 0, i]
            out[b, PUTS] += exposure[b, 1, i]
            if abs(distance) <= 0.10:
                out[b, WITHIN_10] += both[i]
            if abs(distance) <= 0.01:
                out[b, WITHIN_1] += both[i]
            if distance > 0.0:
                out[b, ABOVE] += both[i]
            if distance < 0.0:
                out[b, BELOW] += both[i]


@kernel
def evenness(exposure: F64) -> float:
    """Entropy of the shares of calls and puts together by strike over that of even shares, 0..1; NaN without any.

    ``-sum p ln p / ln m`` over the m strikes with exposure (E. C. Pielou, 1966); 0 when all of
    it stands at one strike. ``exposure`` [2, strikes], not negative.
    """
    total = 0.0
    count = 0
    for i in range(exposure.shape[1]):
        value = exposure[0, i] + exposure[1, i]
        total += value
        count += value > 0.0
    if count < 2:
        return 0.0 if count == 1 else np.nan
    sum_of_logs = 0.0
    for i in range(exposure.shape[1]):
        share = (exposure[0, i] + exposure[1, i]) / total
        if share > 1e-300:  # what is smaller adds nothing
            sum_of_logs -= share * log(share)
    return sum_of_logs / math.log(count)


@kernel
def exposures(sums: F64, terms: F64, multiplier: F64, buckets: I64, spot: float, out: F64) -> None:
    """Sums of greek * OI * multiplier over the calls and the puts of each bucket.

    Parameters
    ----------
    sums
        [expiries, 2, N_SUMS] as :func:`mia_kernels.black.smile` adds them up: of the call's greeks, for puts too.
    terms, multiplier
        [N_TERMS, expiries], [expiries].
    buckets
        [b] so many of the first expiries belong to the bucket.
    out
        [b, 2, N_SUMS] out: calls, puts, times the multiplier; in the place of SIGMA the open interest.
    """
    out[:] = 0.0
    row_of = np.empty(N_SUMS)
    for g in range(sums.shape[0]):
        for side in range(2):
            if not sums[g, side, SIGMA] > 0.0:
                continue
            for row in range(N_SUMS):
                row_of[row] = sums[g, side, row] * (1.0 if row == SIGMA else multiplier[g])
            if side == 1:  # the puts from the calls' greeks by parity
                carried = row_of[SIGMA] * multiplier[g] * terms[CARRY, g]
                paid = row_of[STRUCK] * terms[DISCOUNT, g]
                row_of[DELTA] -= carried
                row_of[THETA] += terms[RATE, g] * paid - terms[YIELD, g] * spot * carried
                row_of[RHO] -= paid * terms[YEARS, g]
                row_of[CHARM] -= terms[YIELD, g] * carried
            for b in range(buckets.shape[0]):
                if g < buckets[b]:
                    for row in range(N_SUMS):
                        out[b, side, row] += row_of[row]


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
