"""Black's (1976) model: implied volatility, greeks, and the forward from put-call parity.

Notation. F forward, K strike, T years to settlement, D discount factor, S underlying,
``x = ln(F/K)``, ``s = sigma sqrt(T)``, and the *normalised* out-of-the-money price

    b(x, s) = price / (D sqrt(F K)) = e^{-|x|/2} N(-h + s/2) - e^{|x|/2} N(-h - s/2),  h = |x| / s

(P. Jaeckel, "Let's be rational", Wilmott 2015). With ``E = exp(-(h^2 + s^2/4)/2)`` and erfcx it is
``b = E/2 (erfcx(u) - erfcx(w))``, ``u = (h - s/2)/sqrt 2``, ``w = (h + s/2)/sqrt 2``, free of
cancellation between tails. The inverse is a fitted first guess (relative error at most 5e-4) and
one Householder step of third order on ``ln b``; a contract whose step is larger than the fit allows
(outside its domain), or whose s is tiny, is finished by a bracketed iteration. Blocks of 128 contracts lie in one flat
scratch array with a constant stride: separate arrays defeat the compiler's alias checks.

Where the constants come from. ``erfcx``: Chebyshev interpolation of degree 24, in 40 digits
(mpmath), of ``(1 + 2z) erfcx(z)`` in ``t = (z - 3.75)/(z + 3.75)`` (Shepherd and Laframboise, Math.
Comp. 36, 1981), turned to powers of t. First guess: ``s = m P(v, m)``, ``m = b + |x|``,
``v = 1/sqrt(1 - ln(b/m))``, P of degree 9 in v and 5 in m, both mapped to [-1, 1]; 60,000 points with
s in (5e-4, 2.6), h in (0, 8), |x| < 3.3, b > 1e-18 (half of the s log-uniform, half uniform; NumPy
generator, seed 0), least squares on the relative error, reweighted 40 times towards the minimax
(weights times (error / mean error + 0.05)^0.35), best maximum kept: 4.87e-4.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from mia_kernels.compile import inlined, kernel
from mia_kernels.elementary import log
from mia_kernels.vector import exp, fma, inverse_root, log_quotient, rough_log, wide

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I8 = npt.NDArray[np.int8]

# The status of a contract, and of a strike's volatility.
OK = 0
NO_BID = 1  # bid missing, zero or negative
CROSSED = 2  # ask missing, or not above the bid
BELOW_INTRINSIC = 3  # no time value
ABOVE_MAX = 4  # at or above the no-arbitrage maximum
EXPIRED = 5  # settled at or before the market time
STALE = 6  # quoted long before the rest of the chain
NOT_LISTED = 7  # the other type exists at this strike, this one does not
INVALID = 8  # an argument is not finite, or not positive where it must be

# Rows of the expiry table ``terms``.
FORWARD = 0
DISCOUNT = 1  # D, of one unit paid at settlement
CARRY = 2  # D F / S, the discount factor of the dividends
YEARS = 3
ROOT_YEARS = 4
RATE = 5  # -ln D / T
YIELD = 6  # -ln(D F / S) / T
N_TERMS = 7

# Where an expiry's forward comes from.
FROM_PARITY = 0
FROM_RATES = 1  # the fallback S e^{(r - q) T}
NO_FORWARD = 2  # expired

# Rows of the greeks table, for the call; the put follows by parity (see ``smile``).
SIGMA = 0
DELTA = 1
GAMMA = 2
VEGA = 3
THETA = 4
RHO = 5
VANNA = 6
CHARM = 7
VOMMA = 8
SPEED = 9
ULTIMA = 10
N_GREEKS = 11

# Beside the greeks in the table of sums.
VANNA_SLOPE = N_GREEKS  # S d vanna / d ln S, volatilities and F/S held
STRUCK = N_GREEKS + 1  # K
N_SUMS = N_GREEKS + 2

BLOCK = 128
_ROW = BLOCK + 8  # an odd number of cache lines: a power of two would put all rows into the same few places of a cache
_GUESS_TOLERANCE = 6e-4  # of s; the fit's own error is at most 4.87e-4 inside its domain
_SMALL = 0.05  # what the series of one step may be given
_BENIGN = 1e-3  # a normalised price that solves cleanly: stands in where there is none
_INV_SQRT_2 = 0.7071067811865476
_INV_SQRT_2PI = 0.3989422804014327
_SQRT_HALF_PI = 1.2533141373155003
_1_3 = 0.3333333333333333
_1_5 = 0.2
_1_6 = 0.16666666666666666
_1_7 = 0.14285714285714285
_1_24 = 0.041666666666666664
_1_120 = 0.008333333333333333
_1_720 = 0.001388888888888889
_1_5040 = 0.0001984126984126984
_UNDERFLOW = 1400.0  # beyond this h^2 the exponential is clamped, and a price made of it is noise
_NARROW = 2e-3  # below this s the price is summed differently

# Rows of the scratch array, after those of the sums.
_LOG_MONEYNESS = N_SUMS  # x
_PRICE = N_SUMS + 1  # b
_FALL = N_SUMS + 2  # e^{-x/2}
_RISE = N_SUMS + 3  # e^{x/2}
_WIDTH = N_SUMS + 4  # s
_INVERSE_WIDTH = N_SUMS + 5
_BELL = N_SUMS + 6  # E
_NEAR = N_SUMS + 7  # N(-(h - s/2)) e^{-|x|/2}
_FAR = N_SUMS + 8  # N(-(h + s/2)) e^{|x|/2}
_VOID = N_SUMS + 9  # 0 where there is a volatility, else NaN
_CODE = N_SUMS + 10  # OK or what the price is instead
_DOUBT = N_SUMS + 11  # 1 where the step does not stand
_ROWS = N_SUMS + 12
# what is needed at another time stands in the same place, so that a block stays in the first cache
_VALUE = _NEAR  # b at the first guess
_MILLS = _FAR  # erfcx((h + s/2)/sqrt 2)/2 there
_CALLS = _CODE
_PUTS = _DOUBT
_FORWARD = SIGMA
_YEARS = DELTA
_LANES = 16
_CHUNK = 64  # strikes that are added up together


@inlined
def _erfcx_series(t: float) -> float:
    """(1 + 2z) erfcx(z) in t = (z - 3.75)/(z + 3.75); even and odd powers apart, two chains half as long."""
    z = t * t
    even = 2.5509998540467027e-09
    odd = 2.217672157727024e-09
    even = fma(z, even, -1.673127773802075e-08)
    odd = fma(z, odd, -1.409958880562584e-08)
    even = fma(z, even, 6.581922031718876e-08)
    odd = fma(z, odd, 4.7556402183313595e-08)
    even = fma(z, even, -2.9475507303992553e-07)
    odd = fma(z, odd, -8.946672487067617e-08)
    even = fma(z, even, 1.781537123521192e-06)
    odd = fma(z, odd, -9.468921362308667e-07)
    even = fma(z, even, -1.1460170658339811e-05)
    odd = fma(z, odd, 2.236998384443198e-05)
    even = fma(z, even, 5.1654682272511576e-05)
    odd = fma(z, odd, -0.0002901491314631766)
    even = fma(z, even, 0.0002937124265623389)
    odd = fma(z, odd, 0.001755624760371748)
    even = fma(z, even, -0.009746579391355585)
    odd = fma(z, odd, 0.028362277564732412)
    even = fma(z, even, -0.058693398602020865)
    odd = fma(z, odd, 0.09230432114969557)
    even = fma(z, even, -0.10880393014132352)
    odd = fma(z, odd, 0.08227673849050193)
    even = fma(z, even, 0.003585415485459938)
    odd = fma(z, odd, -0.14024059858555044)
    even = fma(z, even, 1.2375126308378275)
    return float(fma(t, odd, even))


@inlined
def erfcx(z: float) -> float:
    """exp(z^2) erfc(z) for z >= 0; relative error below 1e-14."""
    a = z + 3.75
    c = 1.0 + 2.0 * z
    q = 1.0 / (a * c)  # one division for both quotients
    return _erfcx_series((z - 3.75) * (q * c)) * (q * a)


@inlined
def _tails(ax: float, s: float) -> tuple[float, float, float, float]:
    """1/s, E, and erfcx of |h - s/2| and of h + s/2 over sqrt 2, with one division for all.

    Both arguments are taken times s, so that no quotient waits for another: ``y = s z``, and erfcx(z) is a series in
    ``(y - 3.75 s)/(y + 3.75 s)`` times ``s/(s + 2y)``.
    """
    half = 0.5 * s
    near = abs(fma(-half, s, ax)) * _INV_SQRT_2
    far = fma(half, s, ax) * _INV_SQRT_2
    a_near = fma(3.75, s, near)
    a_far = fma(3.75, s, far)
    c_near = fma(2.0, near, s)
    c_far = fma(2.0, far, s)
    p_near = a_near * c_near
    p_far = a_far * c_far
    both = p_near * p_far
    q = 1.0 / (both * s)
    rs = q * both
    q_near = q * s * p_far
    q_far = q * s * p_near
    h = ax * rs
    e = exp(-0.5 * fma(h, h, half * half))
    e_near = _erfcx_series(fma(-3.75, s, near) * (q_near * c_near)) * (q_near * a_near * s)
    e_far = _erfcx_series(fma(-3.75, s, far) * (q_far * c_far)) * (q_far * a_far * s)
    return rs, e, e_near, e_far


@inlined
def _guess(ax: float, b: float) -> float:
    """First guess of s from |x| and b."""
    m = ax + b
    v = inverse_root(1.0 - (rough_log(b) - rough_log(m)))
    y = fma(2.374496688323719, v, -1.374496688323719)
    w = 0.5959700987851513 * m - 1.0
    a0 = 0.1605489210930955
    a0 = fma(w, a0, 0.523750883215456)
    a0 = fma(w, a0, 0.7091625936341899)
    a0 = fma(w, a0, 0.6439167232244714)
    a0 = fma(w, a0, 0.458987509530143)
    a0 = fma(w, a0, 1.26596748626514)
    a1 = 1.6325000019406346
    a1 = fma(w, a1, 5.8349182296859965)
    a1 = fma(w, a1, 8.480429198403208)
    a1 = fma(w, a1, 7.040440515861434)
    a1 = fma(w, a1, 3.8411579819057016)
    a1 = fma(w, a1, 2.669361797407497)
    a2 = 7.217893525638601
    a2 = fma(w, a2, 27.802115640609372)
    a2 = fma(w, a2, 43.02631410555301)
    a2 = fma(w, a2, 34.99184882035394)
    a2 = fma(w, a2, 16.05228458416112)
    a2 = fma(w, a2, 3.697734941912728)
    a3 = 17.972191944443637
    a3 = fma(w, a3, 73.01466042914035)
    a3 = fma(w, a3, 118.72271660145807)
    a3 = fma(w, a3, 97.70963331251883)
    a3 = fma(w, a3, 41.48555076753298)
    a3 = fma(w, a3, 6.772410075896673)
    a4 = 26.462836737595353
    a4 = fma(w, a4, 111.45784147383597)
    a4 = fma(w, a4, 187.8205151816345)
    a4 = fma(w, a4, 157.81630536363457)
    a4 = fma(w, a4, 65.74486964830092)
    a4 = fma(w, a4, 10.91479309360048)
    a5 = 20.630999339951927
    a5 = fma(w, a5, 89.73020511654886)
    a5 = fma(w, a5, 155.10762041585014)
    a5 = fma(w, a5, 132.46225411165028)
    a5 = fma(w, a5, 55.30617735560968)
    a5 = fma(w, a5, 9.3016532200906)
    a6 = 2.521108337559781
    a6 = fma(w, a6, 13.04538640246028)
    a6 = fma(w, a6, 24.02454122248082)
    a6 = fma(w, a6, 20.575267743301083)
    a6 = fma(w, a6, 8.485801124129807)
    a6 = fma(w, a6, 1.1818613300897596)
    a7 = -9.570471228012593
    a7 = fma(w, a7, -40.82274603967562)
    a7 = fma(w, a7, -69.92195745038686)
    a7 = fma(w, a7, -59.653304162191944)
    a7 = fma(w, a7, -24.968864997337747)
    a7 = fma(w, a7, -4.20022052180434)
    a8 = -7.581209535084781
    a8 = fma(w, a8, -33.730824299105734)
    a8 = fma(w, a8, -57.986705691637326)
    a8 = fma(w, a8, -48.41179891501179)
    a8 = fma(w, a8, -19.73536503015839)
    a8 = fma(w, a8, -3.077359483907003)
    a9 = -1.8844212910335045
    a9 = fma(w, a9, -8.659070596397214)
    a9 = fma(w, a9, -14.794679812945333)
    a9 = fma(w, a9, -11.943213364362236)
    a9 = fma(w, a9, -4.657434641071461)
    a9 = fma(w, a9, -0.6852765956655276)
    p = a9
    p = fma(y, p, a8)
    p = fma(y, p, a7)
    p = fma(y, p, a6)
    p = fma(y, p, a5)
    p = fma(y, p, a4)
    p = fma(y, p, a3)
    p = fma(y, p, a2)
    p = fma(y, p, a1)
    p = fma(y, p, a0)
    return max(m * float(p), 1e-9)


@inlined
def _normalise(scratch: F64, m: int) -> None:
    """Fill the rows of x, b, e^{x/2} and the code from those of F, K, T and the time value.

    Without a branch: what has no volatility gets a price that solves cleanly, and finite greeks.
    """
    for j in range(m):
        f = scratch[_FORWARD * _ROW + j]
        k = scratch[STRUCK * _ROW + j]
        years = scratch[_YEARS * _ROW + j]
        value = scratch[_PRICE * _ROW + j]
        square = f * k  # of the middle price: neither overflows nor loses bits between these bounds
        good = (f > 0.0) & (square > 1e-280) & (square < 1e280) & (abs(value) < np.inf) & (years < np.inf)
        least = min(f, k)
        code = 0.0 if value < least else float(ABOVE_MAX)
        code = code if value > 0.0 else float(BELOW_INTRINSIC)
        code = code if years > 0.0 else float(EXPIRED)
        code = code if good else float(INVALID)
        f = f if code == 0.0 else 1.0
        k = k if code == 0.0 else 1.0
        up = inverse_root(f * k)
        scratch[_CODE * _ROW + j] = code
        scratch[_PRICE * _ROW + j] = value * up if code == 0.0 else _BENIGN
        scratch[_LOG_MONEYNESS * _ROW + j] = log_quotient(f, k)
        scratch[_FALL * _ROW + j] = k * up
        scratch[_RISE * _ROW + j] = f * up
        scratch[STRUCK * _ROW + j] = k


@inlined
def _bell(h: float, s: float) -> float:
    """E = exp(-(h^2 + s^2/4) / 2), which is sqrt(2 pi) db/ds."""
    t = 0.5 * s
    return exp(-0.5 * (h * h + t * t))


@inlined
def _householder(h: float, rs: float, s: float, y: float, nu: float) -> float:
    """The step of third order towards the root of g = ln b(x, s) - ln b; ``y`` = g', ``nu`` = the Newton step."""
    h2 = h * h
    curve = h2 * rs - 0.25 * s - y  # g'' / g'
    slope = -3.0 * h2 * rs * rs - 0.25 - y * curve
    third = curve * curve + slope  # the third derivative of g over g'
    return nu * (1.0 + 0.5 * curve * nu) / (1.0 + nu * (curve + third * nu * _1_6))


@kernel
def _bracketed(ax: float, b: float, maximum: float, start: float) -> float:
    """s by the same steps kept inside a bracket: outside the fit's domain, and for tiny s.

    Below s = 0.002 the price is a small difference of large terms; there it is the integral of
    db/ds = E / sqrt(2 pi) with exp(-s^2/8) expanded: b = J0 - J1/8 + J2/128, where
    J0 = s n(h) - |x| N(-h) is Bachelier's price and J_k = (s^(2k+1) n(h) - x^2 J_(k-1)) / (2k+1).
    """
    low = 0.0
    high = np.inf
    s = start if 1e-12 < start < 1e3 else 1.0
    for _ in range(200):
        h = ax / s
        e = _bell(h, s)
        if h * h > _UNDERFLOW:
            value = 0.0
        elif s < _NARROW:
            n = _INV_SQRT_2PI * exp(-0.5 * h * h)
            j0 = s * n * (1.0 - h * _SQRT_HALF_PI * erfcx(h * _INV_SQRT_2))
            j1 = (s * s * s * n - ax * ax * j0) * _1_3
            j2 = (s * s * s * s * s * n - ax * ax * j1) * 0.2
            value = j0 - 0.125 * j1 + 0.0078125 * j2
        else:
            _, _, near, far = _tails(ax, s)
            value = 0.5 * e * (near - far) if ax >= 0.5 * s * s else maximum - 0.5 * e * (near + far)
        if value == b:
            return s
        if value < b:
            low = s
        else:
            high = s
        new = -1.0
        if value > 0.0 and e > 0.0:
            y = _INV_SQRT_2PI * e / value
            d = (b - value) / value
            ratio = log(b / value) if abs(d) > 1e-4 else d * (1.0 - d * (0.5 - d * (_1_3 - 0.25 * d)))
            new = s + _householder(h, 1.0 / s, s, y, ratio / y)
        if not low < new < high:
            new = 2.0 * s if high == np.inf else 0.5 * (low + high)
        if abs(new - s) <= 2.3e-16 * s or new <= 1e-12 or new >= 1e4:
            return new
        s = new
    return s


@inlined
def _step(h: float, rs: float, s: float, e: float, b: float, value: float) -> tuple[float, bool]:
    """:func:`_householder`'s step from the first guess, with one division, and whether it stands.

    The Newton step measures the guess: larger than the fit allows means outside its domain.
    """
    n0 = _INV_SQRT_2PI * e
    total = b + value
    part = value * n0
    q = 1.0 / (part * total)  # for y = g', 1/y and d; where the product underflows it yields NaN, which does not stand
    part *= q
    n0 *= total
    y = n0 * (_INV_SQRT_2PI * e) * q
    d = (b - value) * part
    d2 = d * d
    nu = 2.0 * d * fma(d2, fma(d2, fma(d2, _1_7, _1_5), _1_3), 1.0) * (value * value * total * q)
    h2 = h * h
    curve = fma(h2, rs, -fma(0.25, s, y))
    slope = fma(-3.0 * h2 * rs, rs, fma(-y, curve, -0.25))
    third = fma(curve, curve, slope)
    small = nu * fma(third * nu, _1_6, curve)
    step = nu * fma(0.5 * curve, nu, 1.0)
    square = small * small
    step = fma(-small, step, step)  # over 1 + small: (1 - small)(1 + small^2)(1 + small^4)
    step = fma(square, step, step)
    step = fma(square * square, step, step)
    return step, (abs(nu) <= _GUESS_TOLERANCE * s) & (s >= _NARROW) & (abs(small) <= _SMALL)


@inlined
def _first_price(scratch: F64, m: int) -> None:
    """The first guess of s and the price there, from the rows of x and b.

    In loops of their own, as is the step: the processor overlaps short iterations.
    """
    for j in range(m):
        ax = abs(scratch[_LOG_MONEYNESS * _ROW + j])
        b = scratch[_PRICE * _ROW + j]
        scratch[_WIDTH * _ROW + j] = _guess(ax, b)
    for j in range(m):
        ax = abs(scratch[_LOG_MONEYNESS * _ROW + j])
        s = scratch[_WIDTH * _ROW + j]
        maximum = min(scratch[_FALL * _ROW + j], scratch[_RISE * _ROW + j])
        rs, e, near, far = _tails(ax, s)
        scratch[_INVERSE_WIDTH * _ROW + j] = rs
        scratch[_BELL * _ROW + j] = e
        scratch[_VALUE * _ROW + j] = 0.5 * e * (near - far) if ax >= 0.5 * s * s else maximum - 0.5 * e * (near + far)
        scratch[_MILLS * _ROW + j] = 0.5 * far


@inlined
def _finish(scratch: F64, j: int) -> float:
    """s at j where the step does not stand."""
    return float(
        _bracketed(
            abs(scratch[_LOG_MONEYNESS * _ROW + j]),
            scratch[_PRICE * _ROW + j],
            min(scratch[_FALL * _ROW + j], scratch[_RISE * _ROW + j]),
            scratch[_WIDTH * _ROW + j],
        )
    )


@inlined
def _solve(scratch: F64, m: int) -> None:
    """Fill the row of s from the rows of x and b."""
    _first_price(scratch, m)
    doubts = 0
    for j in range(m):
        s = scratch[_WIDTH * _ROW + j]
        rs = scratch[_INVERSE_WIDTH * _ROW + j]
        h = abs(scratch[_LOG_MONEYNESS * _ROW + j]) * rs
        step, stands = _step(
            h, rs, s, scratch[_BELL * _ROW + j], scratch[_PRICE * _ROW + j], scratch[_VALUE * _ROW + j]
        )
        scratch[_WIDTH * _ROW + j] = s + step
        scratch[_DOUBT * _ROW + j] = 0.0 if stands else 1.0
        doubts += 0 if stands else 1
    if doubts > 0:
        for j in range(m):
            if scratch[_DOUBT * _ROW + j] != 0.0:
                scratch[_WIDTH * _ROW + j] = _finish(scratch, j)


@inlined
def _solve_and_follow(scratch: F64, m: int) -> None:
    """Fill the rows of s, 1/s, E and the two tails, from the rows of x and b.

    The step is small, so what the greeks need at its end follows from the guess by short series, without a division or
    an exponential: E from the change of its exponent, the further tail from that of Mills' ratio M = N(-d)/n(d) (times
    a constant; M' = d M - c), and the nearer one from the price itself, which is their difference.
    """
    _first_price(scratch, m)
    doubts = 0
    for j in range(m):
        s = scratch[_WIDTH * _ROW + j]
        rs = scratch[_INVERSE_WIDTH * _ROW + j]
        b = scratch[_PRICE * _ROW + j]
        e = scratch[_BELL * _ROW + j]
        mills = scratch[_MILLS * _ROW + j]
        h = abs(scratch[_LOG_MONEYNESS * _ROW + j]) * rs
        step, stands = _step(h, rs, s, e, b, scratch[_VALUE * _ROW + j])
        scratch[_WIDTH * _ROW + j] = s + step
        r = step * rs
        change = -r * fma(r, fma(r, fma(r, fma(r, 1.0, -1.0), 1.0), -1.0), 1.0)  # of 1/s, relative
        scratch[_INVERSE_WIDTH * _ROW + j] = fma(rs, change, rs)
        dh = h * change
        dt = 0.5 * step
        fall = 0.5 * fma(dh, fma(2.0, h, dh), dt * (s + dt))  # of ln E
        p = fma(fall, -_1_5040, _1_720)
        p = fma(fall, p, -_1_120)
        p = fma(fall, p, _1_24)
        p = fma(fall, p, -_1_6)
        p = fma(fall, p, 0.5)
        p = fma(fall, p, -1.0)
        e = fma(e * fall, p, e)
        d = fma(0.5, s, h)
        dd = dh + dt
        m1 = fma(d, mills, -_INV_SQRT_2PI)
        m2 = fma(d, m1, mills)
        m3 = fma(d, m2, m1 + m1)
        m4 = fma(d, m3, 3.0 * m2)
        far = e * fma(dd, fma(dd, fma(dd, fma(dd, m4 * _1_24, m3 * _1_6), 0.5 * m2), m1), mills)
        scratch[_BELL * _ROW + j] = e
        scratch[_FAR * _ROW + j] = far
        scratch[_NEAR * _ROW + j] = b + far
        stands = stands & (abs(fall) <= _SMALL)
        scratch[_DOUBT * _ROW + j] = 0.0 if stands else 1.0
        doubts += 0 if stands else 1
    if doubts > 0:
        for j in range(m):
            if scratch[_DOUBT * _ROW + j] != 0.0:
                s = _finish(scratch, j)
                rs, e, _, far = _tails(abs(scratch[_LOG_MONEYNESS * _ROW + j]), s)
                scratch[_WIDTH * _ROW + j] = s
                scratch[_INVERSE_WIDTH * _ROW + j] = rs
                scratch[_BELL * _ROW + j] = e
                scratch[_FAR * _ROW + j] = 0.5 * e * far
                scratch[_NEAR * _ROW + j] = scratch[_PRICE * _ROW + j] + 0.5 * e * far


@inlined
def _scratch(size: int) -> F64:
    """Zeros on a boundary of 64 bytes, so that no vector straddles two cache lines."""
    room = np.zeros(size + 8)
    skip = -(room.ctypes.data >> 3) & 7
    return room[skip : skip + size]


@kernel
def implied_volatility(
    price: F64, forward: F64, strike: F64, years: F64, discount: F64, right: F64, sigma: F64, status: I8
) -> None:
    """Black implied volatility of n contracts, in or out of the money.

    Parameters
    ----------
    price, forward, strike, years, discount
        [n] each: price in currency, F, K, T in years, D.
    right
        [n] +1.0 for a call, -1.0 for a put.
    sigma
        [n] out: annual volatility as a fraction; NaN exactly where ``status`` is not OK.
    status
        [n] out: OK, BELOW_INTRINSIC, ABOVE_MAX, EXPIRED (T <= 0) or INVALID.

    Out of the money the relative error is below 2e-12; in the money the time value is what is left
    of the price after the intrinsic value, and no method can know it better than those bits.
    """
    wide()
    scratch = _scratch(_ROWS * _ROW)
    for first in range(0, price.shape[0], BLOCK):
        n = min(BLOCK, price.shape[0] - first)
        for j in range(n):
            scratch[_FORWARD * _ROW + j] = forward[np.uint64(first + j)]
        for j in range(n):
            scratch[STRUCK * _ROW + j] = strike[np.uint64(first + j)]
        for j in range(n):
            scratch[_YEARS * _ROW + j] = years[np.uint64(first + j)]
        for j in range(n):
            scratch[_DOUBT * _ROW + j] = discount[np.uint64(first + j)]
        for j in range(n):
            scratch[_PRICE * _ROW + j] = price[np.uint64(first + j)]
        for j in range(n):
            scratch[_CODE * _ROW + j] = right[np.uint64(first + j)]
        for j in range(n):
            d = scratch[_DOUBT * _ROW + j]
            f = scratch[_FORWARD * _ROW + j]
            k = scratch[STRUCK * _ROW + j]
            value = scratch[_PRICE * _ROW + j] / d - max(scratch[_CODE * _ROW + j] * (f - k), 0.0)
            scratch[_PRICE * _ROW + j] = value if d > 0.0 else np.nan
        _normalise(scratch, n)
        for j in range(n):
            code = scratch[_CODE * _ROW + j]
            scratch[_VOID * _ROW + j] = 0.0 if code == 0.0 else np.nan
        for j in range(n):
            status[np.uint64(first + j)] = np.int8(scratch[_CODE * _ROW + j])
        _solve(scratch, n)
        for j in range(n):
            sigma[np.uint64(first + j)] = (
                scratch[_WIDTH * _ROW + j] * inverse_root(scratch[_YEARS * _ROW + j]) + scratch[_VOID * _ROW + j]
            )


@inlined
def _greeks(
    scratch: F64, m: int, spot: float, discount: float, carry: float, years: float, root: float, r: float, q: float
) -> None:
    """Fill the greeks' rows of one expiry's strikes from the rows of x, K, s, 1/s, E and the tails."""
    inverse_spot = 1.0 / spot
    inverse_root_years = 1.0 / root
    inverse_years = inverse_root_years * inverse_root_years
    decay = 0.5 * inverse_years
    unit = carry * _INV_SQRT_2PI
    per_volatility = spot * root
    for j in range(m):
        x = scratch[_LOG_MONEYNESS * _ROW + j]
        k = scratch[STRUCK * _ROW + j]
        s = scratch[_WIDTH * _ROW + j]
        rs = scratch[_INVERSE_WIDTH * _ROW + j]
        fall = scratch[_FALL * _ROW + j]
        rise = scratch[_RISE * _ROW + j]
        near = scratch[_NEAR * _ROW + j]
        far = scratch[_FAR * _ROW + j]
        z = x * rs
        t = 0.5 * s
        d1 = z + t
        d2 = z - t
        itm = x >= 0.0
        n1 = 1.0 - fall * far if itm else fall * near
        n2 = 1.0 - rise * near if itm else rise * far
        density = unit * scratch[_BELL * _ROW + j] * fall
        sigma = s * inverse_root_years
        inverse_sigma = root * rs
        gamma = density * rs * inverse_spot
        vega = per_volatility * density
        dd = d1 * d2
        delta = carry * n1
        paid = discount * k * n2
        bent = vega * inverse_sigma
        twice = bent * inverse_sigma
        scratch[SIGMA * _ROW + j] = sigma
        scratch[DELTA * _ROW + j] = delta
        scratch[GAMMA * _ROW + j] = gamma
        scratch[VEGA * _ROW + j] = vega
        scratch[THETA * _ROW + j] = q * spot * delta - r * paid - decay * vega * sigma
        scratch[RHO * _ROW + j] = years * paid
        scratch[VANNA * _ROW + j] = -density * d2 * inverse_sigma
        scratch[CHARM * _ROW + j] = q * delta - density * ((r - q) * rs - decay * d2)
        scratch[VOMMA * _ROW + j] = bent * dd
        scratch[VANNA_SLOPE * _ROW + j] = twice * inverse_years * (dd - 1.0)
        scratch[SPEED * _ROW + j] = -gamma * inverse_spot * (d1 * rs + 1.0)
        scratch[ULTIMA * _ROW + j] = -twice * (dd * (1.0 - dd) + d1 * d1 + d2 * d2)


@inlined
def _run(group: I64, first: int) -> int:
    """How many rows from ``first`` on belong to its expiry, a block at most."""
    most = min(BLOCK, group.shape[0] - first)
    g = group[first]
    others = 0
    for j in range(most):  # counted first: that goes by whole vectors, and most blocks lie inside an expiry
        others += 0 if group[np.uint64(first + j)] == g else 1
    n: int = most - others
    others = 0
    for j in range(n):
        others += 0 if group[np.uint64(first + j)] == g else 1
    if others > 0:  # not one after the other
        n = 1
        while group[first + n] == g:
            n += 1
    return n


@inlined
def _alive(terms: F64, g: int) -> bool:
    """Whether an expiry has a forward and a time: an expired one has not, and its greeks are NaN without a sum."""
    total = terms[FORWARD, g] + terms[CARRY, g] + terms[ROOT_YEARS, g] + terms[RATE, g] + terms[YIELD, g]
    return bool((terms[YEARS, g] > 0.0) & (terms[DISCOUNT, g] > 0.0) & (abs(total) < np.inf))


@inlined
def _weigh(scratch: F64, interest: F64, first: int, n: int, readable: int) -> None:
    """The open interest of a block where there is a volatility, then zeros to the end of the chunk."""
    calls = interest[0]
    puts = interest[1]
    for j in range(readable):
        scratch[_CALLS * _ROW + j] = calls[np.uint64(first + j)] if scratch[_VOID * _ROW + j] == 0.0 else 0.0
    for j in range(readable):
        scratch[_PUTS * _ROW + j] = puts[np.uint64(first + j)] if scratch[_VOID * _ROW + j] == 0.0 else 0.0
    end = -(-n // _CHUNK) * _CHUNK
    for j in range(n, end):
        scratch[np.uint64(_CALLS * _ROW + j)] = 0.0
        scratch[np.uint64(_PUTS * _ROW + j)] = 0.0
    for row in range(DELTA, N_SUMS):  # an infinite greek of an earlier block, times 0, would be NaN
        for j in range(n, end):
            scratch[np.uint64(row * _ROW + j)] = 0.0


@inlined
def _add(scratch: F64, lanes: F64, n: int) -> None:
    """Add a block's greeks times open interest to the lanes: of each row 16 of the calls, 16 of the puts."""
    for at in range(0, n, _CHUNK):
        for side in range(2):
            weight = (_CALLS if side == 0 else _PUTS) * _ROW + at
            to = side * _LANES
            for j in range(_LANES):
                first = scratch[np.uint64(weight + j)] + scratch[np.uint64(weight + 16 + j)]
                second = scratch[np.uint64(weight + 32 + j)] + scratch[np.uint64(weight + 48 + j)]
                lanes[np.uint64(to + j)] += first + second
        for row in range(DELTA, N_SUMS):
            v = row * _ROW + at
            c = _CALLS * _ROW + at
            p = _PUTS * _ROW + at
            to = row * 2 * _LANES
            for j in range(_LANES):
                v0 = scratch[np.uint64(v + j)]
                v1 = scratch[np.uint64(v + 16 + j)]
                v2 = scratch[np.uint64(v + 32 + j)]
                v3 = scratch[np.uint64(v + 48 + j)]
                of_calls = lanes[np.uint64(to + j)]
                of_calls = fma(v0, scratch[np.uint64(c + j)], of_calls)
                of_calls = fma(v1, scratch[np.uint64(c + 16 + j)], of_calls)
                of_calls = fma(v2, scratch[np.uint64(c + 32 + j)], of_calls)
                lanes[np.uint64(to + j)] = fma(v3, scratch[np.uint64(c + 48 + j)], of_calls)
                of_puts = lanes[np.uint64(to + 16 + j)]
                of_puts = fma(v0, scratch[np.uint64(p + j)], of_puts)
                of_puts = fma(v1, scratch[np.uint64(p + 16 + j)], of_puts)
                of_puts = fma(v2, scratch[np.uint64(p + 32 + j)], of_puts)
                lanes[np.uint64(to + 16 + j)] = fma(v3, scratch[np.uint64(p + 48 + j)], of_puts)


@inlined
def _close(lanes: F64, g: int, sums: F64) -> None:
    """The lanes into the sums of an expiry, and back to zero."""
    for row in range(N_SUMS):
        for side in range(2):
            at = (2 * row + side) * _LANES
            for j in range(8):
                lanes[np.uint64(at + j)] += lanes[np.uint64(at + 8 + j)]
            for j in range(4):
                lanes[np.uint64(at + j)] += lanes[np.uint64(at + 4 + j)]
            sums[g, side, row] += (lanes[at] + lanes[at + 2]) + (lanes[at + 1] + lanes[at + 3])
    for j in range(2 * _LANES * N_SUMS):
        lanes[j] = 0.0


@kernel
def smile(
    price: F64,
    strike: F64,
    group: I64,
    terms: F64,
    spot: float,
    out: F64,
    status: I8,
    interest: F64,
    sums: F64,
) -> None:
    """Volatility and greeks of n strikes from their out-of-the-money prices, in one pass.

    Parameters
    ----------
    price
        [n] price of the out-of-the-money contract: the put for K < F, the call for K >= F.
    strike, group
        [n] K, and the column of ``terms`` that the strike belongs to; an expiry's strikes best one after the other.
    terms
        [N_TERMS, expiries] as :func:`expiry_terms` fills it.
    spot
        S.
    out
        [N_GREEKS, n] out, for the **call**, with F/S, D and sigma held: sigma; delta and gamma to S;
        vega, vanna (d delta / d sigma), vomma and ultima per 1.00 of volatility; theta and charm per
        year of calendar time; rho per 1.00 (the forward's own rate, dividends held); speed. The put: delta - CARRY,
        theta - q S CARRY + r K D, rho - K T D, charm - q CARRY; the other rows are the same.
        NaN exactly where ``status`` is not OK.
    status
        [n] in: not OK is skipped. Out: BELOW_INTRINSIC, ABOVE_MAX or INVALID where the price has no
        volatility.
    interest
        [2, n] open interest of the calls and the puts; [2, 0]: nothing is summed.
    sums
        [expiries, 2, N_SUMS] out: the rows of ``out`` times the open interest of the calls, of the puts, where OK; in
        the place of SIGMA the open interest that was counted; at VANNA_SLOPE and STRUCK what their names say.

    Equations: E. G. Haug, "The complete guide to option pricing formulas", 2nd ed. 2007, ch. 2, with
    the cost of carry of each expiry.
    """
    wide()
    scratch = _scratch(_ROWS * _ROW)
    lanes = _scratch(2 * _LANES * N_SUMS)
    sums[:] = 0.0
    total = price.shape[0]
    first = 0
    while first < total:
        g = group[first]
        n = _run(group, first)
        m = (n + 7) // 8 * 8  # whole vectors
        readable = min(m, total - first)  # the next expiry's rows fill the last one: not used, or written again
        for j in range(readable):
            scratch[STRUCK * _ROW + j] = strike[np.uint64(first + j)]
        for j in range(readable):
            scratch[_PRICE * _ROW + j] = price[np.uint64(first + j)]
        f = terms[FORWARD, g]
        years = terms[YEARS, g]
        growth = 1.0 / terms[DISCOUNT, g]
        alive = _alive(terms, g)
        for j in range(n, m):
            scratch[np.uint64(STRUCK * _ROW + j)] = f
            scratch[np.uint64(_PRICE * _ROW + j)] = 0.0
        for j in range(m):
            scratch[_FORWARD * _ROW + j] = f
            scratch[_YEARS * _ROW + j] = years
            scratch[_PRICE * _ROW + j] *= growth
        _normalise(scratch, m)
        void = 0
        for j in range(readable):
            good = alive & (scratch[_CODE * _ROW + j] == 0.0) & (status[np.uint64(first + j)] == OK)
            scratch[_VOID * _ROW + j] = 0.0 if good else np.nan
            void += 0 if good else 1
        if void > 0:
            for j in range(n):
                code = np.int8(scratch[_CODE * _ROW + j])
                if status[first + j] == OK:
                    status[first + j] = code if alive or code != OK else INVALID
        if alive:
            _solve_and_follow(scratch, m)
            _greeks(
                scratch,
                m,
                spot,
                terms[DISCOUNT, g],
                terms[CARRY, g],
                years,
                terms[ROOT_YEARS, g],
                terms[RATE, g],
                terms[YIELD, g],
            )
            if interest.shape[1] > 0:
                _weigh(scratch, interest, first, n, readable)
                _add(scratch, lanes, n)
        for row in range(N_GREEKS):
            values = out[row]
            for j in range(readable):
                values[np.uint64(first + j)] = scratch[np.uint64(row * _ROW + j)] + scratch[_VOID * _ROW + j]
        first += n
        if interest.shape[1] > 0 and (first == total or group[first] != g):
            _close(lanes, g, sums)


@kernel
def reprice(sigma: F64, strike: F64, group: I64, terms: F64, spot: float, out: F64, interest: F64, sums: F64) -> None:
    """The greeks of n strikes at volatilities that are known: nothing is solved.

    ``sigma`` [n] per year, NaN where there is none (it may be the row SIGMA of ``out``); the rest as in
    :func:`smile`, whose figures these are when its terms and spot are given. ``out`` may end after any of its rows:
    the sums are of all of them.
    """
    wide()
    scratch = _scratch(_ROWS * _ROW)
    lanes = _scratch(2 * _LANES * N_SUMS)
    sums[:] = 0.0
    total = strike.shape[0]
    first = 0
    while first < total:
        g = group[first]
        n = _run(group, first)
        m = (n + 7) // 8 * 8
        readable = min(m, total - first)
        f = terms[FORWARD, g]
        root = terms[ROOT_YEARS, g]
        alive = _alive(terms, g)
        for j in range(readable):
            value = sigma[np.uint64(first + j)]
            good = alive & (value > 0.0)
            scratch[_VOID * _ROW + j] = 0.0 if good else np.nan
            scratch[_WIDTH * _ROW + j] = value * root if good else 1.0
        for j in range(readable):
            scratch[STRUCK * _ROW + j] = strike[np.uint64(first + j)] if scratch[_VOID * _ROW + j] == 0.0 else f
        for j in range(n, m):
            scratch[np.uint64(STRUCK * _ROW + j)] = f
            scratch[np.uint64(_WIDTH * _ROW + j)] = 1.0
        if alive:
            for j in range(m):
                k = scratch[STRUCK * _ROW + j]
                s = scratch[_WIDTH * _ROW + j]
                x = log_quotient(f, k)
                up = inverse_root(f * k)
                rs, e, near, far = _tails(abs(x), s)
                least = min(f, k) * up
                scratch[_LOG_MONEYNESS * _ROW + j] = x
                scratch[_FALL * _ROW + j] = k * up
                scratch[_RISE * _ROW + j] = f * up
                scratch[_INVERSE_WIDTH * _ROW + j] = rs
                scratch[_BELL * _ROW + j] = e
                scratch[_NEAR * _ROW + j] = 0.5 * e * near if abs(x) >= 0.5 * s * s else least - 0.5 * e * near
                scratch[_FAR * _ROW + j] = 0.5 * e * far
            _greeks(
                scratch,
                m,
                spot,
                terms[DISCOUNT, g],
                terms[CARRY, g],
                terms[YEARS, g],
                root,
                terms[RATE, g],
                terms[YIELD, g],
            )
            if interest.shape[1] > 0:
                _weigh(scratch, interest, first, n, readable)
                _add(scratch, lanes, n)
        for row in range(DELTA, out.shape[0]):
            values = out[row]
            for j in range(readable):
                values[np.uint64(first + j)] = scratch[np.uint64(row * _ROW + j)] + scratch[_VOID * _ROW + j]
        values = out[SIGMA]
        for j in range(readable):
            values[np.uint64(first + j)] = sigma[np.uint64(first + j)]
        first += n
        if interest.shape[1] > 0 and (first == total or group[first] != g):
            _close(lanes, g, sums)


@kernel
def expiry_terms(
    bid: F64,
    ask: F64,
    stale: I8,
    strike: F64,
    start: I64,
    years: F64,
    european: I8,
    spot: float,
    rate: F64,
    dividend_yield: F64,
    band: float,
    min_pairs: int,
    terms: F64,
    source: I8,
    pairs: I64,
) -> None:
    """Forward, discount factor and what follows from them, for each (root, expiry).

    Put-call parity ``C - P = D (F - K)`` (Stoll 1969) is regressed on K over the pairs whose call and
    put are both two-sided with ``|K/S - 1| < band``. The residual's unit is the half-width of the
    parity interval, ``h = (spread of C + spread of P) / 2``: arbitrage holds it within 1. Weights are
    ``1/h^2`` times Huber's (k = 0.5) for eight rounds, then Tukey's biweight (c = 2) for up to 24, so
    that a pair which violates parity by a whole interval has no say.

    Fewer than ``min_pairs`` pairs (at the start or with weight left), an American root, or a result
    with ``|ln D|`` or ``|ln F/S|`` above 0.02 + 0.25 T: the fallback ``F = S e^{(r-q)T}``, flagged.

    Parameters
    ----------
    bid, ask, stale
        [2, n] calls in row 0, puts in row 1; ``stale`` excludes a quote.
    strike
        [n] K, ascending inside each expiry.
    start
        [expiries + 1] the first strike of each expiry, and n.
    years
        [expiries] T; not positive means expired.
    european
        [expiries] 1 where parity holds as an equation.
    spot
        S.
    rate, dividend_yield
        [expiries] continuously compounded r and q per year, for the fallback.
    terms
        [N_TERMS, expiries] out; NaN for an expired one.
    source, pairs
        [expiries] out: FROM_PARITY, FROM_RATES or NO_FORWARD; pairs with weight in the last round.
    """
    offset = np.empty(strike.shape[0])  # of the usable pairs of one expiry: K - S,
    value = np.empty(strike.shape[0])  # C - P,
    tight = np.empty(strike.shape[0])  # 1/h
    weight = np.empty(strike.shape[0])
    for g in range(years.shape[0]):
        t = years[g]
        pairs[g] = 0
        if not t > 0.0:
            source[g] = NO_FORWARD
            for row in range(N_TERMS):
                terms[row, g] = np.nan
            continue
        m = 0
        for i in range(start[g], start[g + 1]):
            if (
                abs(strike[i] / spot - 1.0) < band
                and bid[0, i] > 0.0
                and ask[0, i] > bid[0, i]
                and bid[1, i] > 0.0
                and ask[1, i] > bid[1, i]
                and stale[0, i] == 0
                and stale[1, i] == 0
            ):
                offset[m] = strike[i] - spot
                value[m] = 0.5 * (bid[0, i] + ask[0, i]) - 0.5 * (bid[1, i] + ask[1, i])
                tight[m] = 2.0 / (ask[0, i] - bid[0, i] + ask[1, i] - bid[1, i])
                weight[m] = 1.0
                m += 1
        found = european[g] != 0 and m >= min_pairs
        used = m
        level = 0.0  # D (F - S)
        slope = 0.0  # -D
        turn = 0
        while found and turn < 33:
            sw = 0.0
            sk = 0.0
            sy = 0.0
            for i in range(m):
                w = weight[i] * (tight[i] * tight[i])
                sw += w
                sk += w * offset[i]
                sy += w * value[i]
            mean_k = sk / sw
            mean_y = sy / sw
            skk = 0.0
            sky = 0.0
            for i in range(m):
                w = weight[i] * (tight[i] * tight[i])
                dk = offset[i] - mean_k
                skk += w * dk * dk
                sky += w * dk * (value[i] - mean_y)
            new_slope = sky / skk
            new_level = mean_y - new_slope * mean_k
            settled = abs(new_level - level) <= 1e-13 * spot and abs(new_slope - slope) <= 1e-14
            level = new_level
            slope = new_slope
            if turn > 8 and settled:
                break
            used = 0
            for i in range(m):
                u = abs(value[i] - level - slope * offset[i]) * tight[i]
                if turn < 8:
                    weight[i] = 0.5 / u if u > 0.5 else 1.0
                else:
                    weight[i] = (1.0 - 0.25 * u * u) ** 2 if u < 2.0 else 0.0
                used += weight[i] > 0.0
            found = used >= min_pairs
            turn += 1
        limit = 0.02 + 0.25 * t
        discount = -slope
        forward = spot
        if found:
            found = discount > 0.0 and abs(math.log(discount)) <= limit
        if found:
            forward = spot + level / discount
            found = forward > 0.0 and abs(math.log(forward / spot)) <= limit
        if found:
            source[g] = FROM_PARITY
            pairs[g] = used
        else:
            source[g] = FROM_RATES
            discount = math.exp(-rate[g] * t)
            forward = spot * math.exp((rate[g] - dividend_yield[g]) * t)
        terms[FORWARD, g] = forward
        terms[DISCOUNT, g] = discount
        terms[CARRY, g] = discount * forward / spot
        terms[YEARS, g] = t
        terms[ROOT_YEARS, g] = math.sqrt(t)
        terms[RATE, g] = -math.log(discount) / t
        terms[YIELD, g] = -math.log(discount * forward / spot) / t


@kernel
def otm_prices(
    bid: F64,
    ask: F64,
    listed: I8,
    stale: I8,
    strike: F64,
    group: I64,
    terms: F64,
    status: I8,
    price: F64,
    strike_status: I8,
) -> None:
    """The status of every quote, and of each strike the mid of its out-of-the-money side.

    Parameters
    ----------
    bid, ask, listed, stale
        [2, n] calls in row 0, puts in row 1; ``listed`` 1 where the contract exists, ``stale`` 1
        where it was quoted long before the rest of the chain.
    strike, group, terms
        As in :func:`smile`.
    status
        [2, n] out: the contract's own status. A mid exists only where bid > 0 and ask > bid.
    price, strike_status
        [n] out: the mid of the put for K < F and of the call for K >= F, with that contract's status;
        NaN where it is not OK.
    """
    for i in range(strike.shape[0]):
        g = group[i]
        f = terms[FORWARD, g]
        k = strike[i]
        price[i] = np.nan
        otm = 1 if k < f else 0
        for side in range(2):
            mid = np.nan
            if listed[side, i] == 0:
                code = NOT_LISTED
            elif not terms[YEARS, g] > 0.0:
                code = EXPIRED
            elif stale[side, i] != 0:
                code = STALE
            elif not bid[side, i] > 0.0:
                code = NO_BID
            elif not ask[side, i] > bid[side, i]:
                code = CROSSED
            else:
                mid = 0.5 * (bid[side, i] + ask[side, i])
                value = mid / terms[DISCOUNT, g]
                if not value - max(f - k if side == 0 else k - f, 0.0) > 0.0:
                    code = BELOW_INTRINSIC
                elif not value < (f if side == 0 else k):
                    code = ABOVE_MAX
                else:
                    code = OK
            status[side, i] = code
            if side == otm:
                strike_status[i] = code
                if code == OK:
                    price[i] = mid


@inlined
def _around(status: I8, strike: F64, first: int, last: int, f: float, band: float) -> tuple[int, int]:
    """The nearest rows of [first, last) on either side of F that are OK, within the band; -1 for none."""
    middle = first + int(np.searchsorted(strike[first:last], f))  # the first strike that is not below F; NaN: none
    below = -1
    above = -1
    i = middle
    while i < last and strike[i] / f - 1.0 < band:
        if status[i] == OK:
            above = i
            break
        i += 1
    i = middle if middle < last and strike[middle] == f else middle - 1
    while i >= first and 1.0 - strike[i] / f < band:
        if status[i] == OK:
            below = i
            break
        i -= 1
    return below, above


@kernel
def atm_volatility(sigma: F64, status: I8, strike: F64, start: I64, terms: F64, band: float, out: F64) -> None:
    """Volatility at K = F of each expiry, linear in total variance over ln(K/F).

    Between the nearest strikes with a volatility on either side of F, both with ``|K/F - 1| < band``;
    NaN where there are none. ``sigma``, ``status``, ``strike`` [n]; ``start`` [expiries + 1]; ``terms``
    as in :func:`smile`; ``out`` [expiries].
    """
    for g in range(out.shape[0]):
        out[g] = np.nan
        f = terms[FORWARD, g]
        below, above = _around(status, strike, start[g], start[g + 1], f, band)
        if below < 0 or above < 0:
            continue
        if below == above:
            out[g] = sigma[below]
            continue
        low = log_quotient(strike[below], f)
        high = log_quotient(strike[above], f)
        share = low / (low - high)
        out[g] = math.sqrt(sigma[below] ** 2 * (1.0 - share) + sigma[above] ** 2 * share)


@inlined
def _slope(
    sigma: F64, status: I8, strike: F64, first: int, last: int, f: float, atm: float, root_years: float
) -> float:
    """d sigma / d ln K at K = F of the strikes [first, last); NaN where :func:`smile_slope` says."""
    width = atm * root_years
    n = 0.0
    below = 0
    above = 0
    s1 = 0.0
    s2 = 0.0
    s3 = 0.0
    s4 = 0.0
    t0 = 0.0
    t1 = 0.0
    t2 = 0.0
    found = np.nan
    if width > 0.0:
        ladder = strike[first:last]
        low = first + np.searchsorted(ladder, f * math.exp(-width))
        high = first + np.searchsorted(ladder, f * math.exp(width), side="right")
        for i in range(low, high):
            if status[i] == OK:
                z = log_quotient(strike[i], f) / width
                y = sigma[i] - atm
                n += 1.0
                below += z < 0.0
                above += z > 0.0
                s1 += z
                s2 += z * z
                s3 += z * z * z
                s4 += z * z * z * z
                t0 += y
                t1 += y * z
                t2 += y * z * z
    if n >= 5.0 and below > 0 and above > 0:
        whole = n * (s2 * s4 - s3 * s3) - s1 * (s1 * s4 - s3 * s2) + s2 * (s1 * s3 - s2 * s2)
        part = n * (t1 * s4 - s3 * t2) - t0 * (s1 * s4 - s3 * s2) + s2 * (s1 * t2 - t1 * s2)
        if whole > 1e-12:
            found = part / whole / width
    return found


@kernel
def smile_slope(
    sigma: F64, status: I8, strike: F64, start: I64, terms: F64, atm: F64, target: float, slopes: F64
) -> float:
    """d sigma / d ln K at K = F at a fixed time to settlement.

    Of one expiry: the linear coefficient of the least-squares parabola of sigma in ln(K/F) over the strikes within one
    width, ``|ln(K/F)| <= sigma_atm sqrt(T)``; two neighbours alone would give the noise of their ticks. None with fewer
    than five strikes, or without one on either side. Between expiries: total variance and its slope
    ``2 sigma T d sigma / d ln K`` are linear in T between the nearest ones on either side that have both.

    Parameters
    ----------
    sigma, status, strike, start, terms
        As in :func:`atm_volatility`; the expiries in order of T.
    atm
        [expiries] sigma_atm, NaN where there is none.
    target
        Years.
    slopes
        [2] out: of the expiry at or before the target and of the one at or after it; NaN for none.

    Returns
    -------
    float
        NaN outside the expiries that have a slope.
    """
    size = atm.shape[0]
    slopes[:] = np.nan
    last = -1
    for back in range(size):
        g = size - 1 - back
        if terms[YEARS, g] <= target:
            slopes[0] = _slope(
                sigma, status, strike, start[g], start[g + 1], terms[FORWARD, g], atm[g], terms[ROOT_YEARS, g]
            )
            if not np.isnan(slopes[0]):
                last = g
                break
    if last >= 0 and terms[YEARS, last] == target:
        slopes[1] = slopes[0]
        return float(slopes[0])
    for g in range(size):
        if terms[YEARS, g] > target:
            slopes[1] = _slope(
                sigma, status, strike, start[g], start[g + 1], terms[FORWARD, g], atm[g], terms[ROOT_YEARS, g]
            )
            if not np.isnan(slopes[1]):
                if last < 0:
                    return np.nan
                before = atm[last] * terms[YEARS, last]
                after = atm[g] * terms[YEARS, g]
                share = (target - terms[YEARS, last]) / (terms[YEARS, g] - terms[YEARS, last])
                variance = (1.0 - share) * before * atm[last] + share * after * atm[g]
                change = (1.0 - share) * before * slopes[0] + share * after * slopes[1]
                return float(change / math.sqrt(variance * target))
    return np.nan


@kernel
def relative_spreads(bid: F64, ask: F64, stale: I8, strike: F64, start: I64, terms: F64, atm: F64, out: F64) -> int:
    """(ask - bid) / mid of the two-sided contracts of both types within one width of the forward.

    ``|ln(K/F)| <= sigma_atm sqrt(T)``. ``bid``, ``ask``, ``stale`` [2, n]; ``strike`` [n]; ``start`` [expiries + 1];
    ``atm`` [expiries]; ``out`` [2 n] out, in the first places; returns how many.
    """
    count = 0
    for g in range(atm.shape[0]):
        f = terms[FORWARD, g]
        width = atm[g] * terms[ROOT_YEARS, g]
        if not width > 0.0:
            continue
        ladder = strike[start[g] : start[g + 1]]
        first = start[g] + np.searchsorted(ladder, f * math.exp(-width))
        last = start[g] + np.searchsorted(ladder, f * math.exp(width), side="right")
        for side in range(2):
            for i in range(first, last):
                b = bid[side, i]
                a = ask[side, i]
                if stale[side, i] == 0 and b > 0.0 and a > b:
                    out[count] = 2.0 * (a - b) / (a + b)
                    count += 1
    return count


@kernel
def wings(greeks: F64, status: I8, strike: F64, start: I64, terms: F64, delta: float, out: F64) -> None:
    """The out-of-the-money put and call of a given delta, by expiry.

    Between the neighbouring strikes whose deltas enclose it: ln(K/F) linear in delta, total variance
    linear in ln(K/F), as at the money. NaN where no two strikes with a volatility enclose it, or where
    their deltas are further apart than ``delta`` itself, which would be a guess.

    Parameters
    ----------
    greeks, status, strike, start, terms
        [N_GREEKS, n], [n], [n], [expiries + 1], as :func:`smile` fills them.
    delta
        Absolute delta to the underlying, for instance 0.25.
    out
        [4, expiries] out: sigma of the put, of the call; ln(K/F) of the put, of the call.
    """
    for g in range(out.shape[1]):
        for row in range(4):
            out[row, g] = np.nan
        f = terms[FORWARD, g]
        carry = terms[CARRY, g]
        middle = start[g] + np.searchsorted(strike[start[g] : start[g + 1]], f)
        for side in range(2):  # the put, the call
            last = -1
            last_delta = 0.0
            for k in range(middle - start[g] if side == 0 else start[g + 1] - middle):
                i = middle - 1 - k if side == 0 else middle + k  # from the forward outwards
                if status[i] != OK:
                    continue
                d = carry - greeks[DELTA, i] if side == 0 else greeks[DELTA, i]
                if last >= 0 and last_delta >= delta and d <= delta:
                    if last_delta - d <= delta:
                        share = (last_delta - delta) / (last_delta - d) if last_delta > d else 0.0
                        low = log_quotient(strike[last], f)
                        high = log_quotient(strike[i], f)
                        variance = greeks[SIGMA, last] ** 2 * (1.0 - share) + greeks[SIGMA, i] ** 2 * share
                        out[side, g] = math.sqrt(variance)
                        out[2 + side, g] = low + share * (high - low)
                    break
                last = i
                last_delta = d


@kernel
def atm_sides(
    bid: F64, ask: F64, status: I8, strike: F64, start: I64, terms: F64, band: float, out: F64, middle: F64
) -> None:
    """At the money of each expiry: the calls' and the puts' own volatility, and the mids at K = F.

    As :func:`atm_volatility`, but from the quotes of one type alone, in and out of the money: the two
    differ by what parity leaves open. ``bid``, ``ask``, ``status`` [2, n] of the contracts; ``out``
    [2, expiries] out: calls, puts; ``middle`` [expiries] out: the mids of call and put added, linear in K
    at K = F. NaN where an expiry lacks a quote.
    """
    n = 4 * out.shape[1]  # of each expiry the call below and above F, the put below and above
    price = np.full(n, np.nan)
    forward = np.ones(n)
    struck = np.ones(n)
    years = np.ones(n)
    discount = np.ones(n)
    right = np.ones(n)
    sigma = np.empty(n)
    code = np.empty(n, np.int8)
    for g in range(out.shape[1]):
        f = terms[FORWARD, g]
        for side in range(2):
            below, above = _around(status[side], strike, start[g], start[g + 1], f, band)
            if below < 0 or above < 0:
                continue
            for k in range(2):
                i = below if k == 0 else above
                at = 4 * g + 2 * side + k
                price[at] = 0.5 * (bid[side, i] + ask[side, i])
                forward[at] = f
                struck[at] = strike[i]
                years[at] = terms[YEARS, g]
                discount[at] = terms[DISCOUNT, g]
                right[at] = 1.0 if side == 0 else -1.0
    implied_volatility(price, forward, struck, years, discount, right, sigma, code)
    for g in range(out.shape[1]):
        f = terms[FORWARD, g]
        middle[g] = 0.0
        for side in range(2):
            low = 4 * g + 2 * side
            high = low + 1
            share = 0.0
            linear = 0.0
            if struck[low] != struck[high]:
                x = log_quotient(struck[low], f)
                share = x / (x - log_quotient(struck[high], f))
                linear = (f - struck[low]) / (struck[high] - struck[low])
            middle[g] += price[low] * (1.0 - linear) + price[high] * linear  # NaN where there is none
            out[side, g] = math.sqrt(sigma[low] ** 2 * (1.0 - share) + sigma[high] ** 2 * share)


@kernel
def parity_deviation(
    bid: F64, ask: F64, status: I8, strike: F64, start: I64, terms: F64, source: I8, band: float, out: F64
) -> int:
    """|C - P - D (F - K)| over F of every two-sided pair near the forward, where parity gave the forward.

    ``bid``, ``ask``, ``status`` [2, n]; ``out`` [n] out: the deviations as fractions of F, in the first
    places; returns how many.
    """
    count = 0
    for g in range(start.shape[0] - 1):
        if source[g] != FROM_PARITY:
            continue
        f = terms[FORWARD, g]
        ladder = strike[start[g] : start[g + 1]]
        first = start[g] + np.searchsorted(ladder, f * (1.0 - band), side="right")
        for i in range(first, start[g] + np.searchsorted(ladder, f * (1.0 + band))):
            if status[0, i] == OK and status[1, i] == OK:
                value = 0.5 * (bid[0, i] + ask[0, i] - bid[1, i] - ask[1, i])
                out[count] = abs(value - terms[DISCOUNT, g] * (f - strike[i])) / f
                count += 1
    return count


@kernel
def constant_maturity(years: F64, curves: F64, targets: F64, out: F64) -> None:
    """Volatilities at fixed times to settlement: total variance linear in T between the listed expiries.

    ``years`` [expiries] ascending (not positive: expired, left out); ``curves`` [c, expiries], NaN where there is
    none; ``targets`` [t] years; ``out`` [c, t] out, NaN outside the expiries that have a value.
    """
    for c in range(curves.shape[0]):
        for k in range(targets.shape[0]):
            out[c, k] = np.nan
            target = targets[k]
            last = -1
            for g in range(years.shape[0]):
                value = curves[c, g]
                if not (years[g] > 0.0 and value > 0.0):
                    continue
                if years[g] >= target:
                    variance = value * value * years[g]
                    if years[g] == target:
                        out[c, k] = value
                    elif last >= 0:
                        before = curves[c, last] * curves[c, last] * years[last]
                        share = (target - years[last]) / (years[g] - years[last])
                        out[c, k] = math.sqrt((before * (1.0 - share) + variance * share) / target)
                    break
                last = g
