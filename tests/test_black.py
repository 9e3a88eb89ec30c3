"""Black kernels against mpmath: volatility, greeks, parity, status."""

from __future__ import annotations

import itertools
import math
import os

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mia_kernels import black

YEAR = 31_536_000


def exact_price(f, k, s, right):
    """Undiscounted Black price in 60 digits; f and k are taken as the floats they are."""
    with mp.workdps(60):
        f, k, s = mp.mpf(f), mp.mpf(k), mp.mpf(s)
        d1 = mp.log(f / k) / s + s / 2
        return right * (f * mp.ncdf(right * d1) - k * mp.ncdf(right * (d1 - s)))


def solve(price, forward, strike, years, discount, right):
    arrays = [np.atleast_1d(np.asarray(a, dtype=float)) for a in (price, forward, strike, years, discount, right)]
    n = max(a.size for a in arrays)
    arrays = [np.ascontiguousarray(np.broadcast_to(a, n)).copy() for a in arrays]
    sigma, status = np.empty(n), np.empty(n, np.int8)
    black.implied_volatility(*arrays, sigma, status)
    return sigma, status


def test_erfcx_agrees_with_mpmath():
    for z in [*np.linspace(0, 30, 200), *np.logspace(-8, 8, 60)]:
        with mp.workdps(40):
            x = mp.mpf(float(z))
            exact = (
                mp.exp(x * x) * mp.erfc(x) if z < 1e3 else (1 - 1 / (2 * x * x) + 3 / (4 * x**4)) / x / mp.sqrt(mp.pi)
            )
            assert abs(float(black.erfcx(float(z)) / exact - 1)) < 1e-14


@pytest.mark.parametrize("seconds", [60, 3600, 86_400, 30 * 86_400, YEAR, 5 * YEAR])
def test_volatility_out_of_the_money_is_exact_to_2e_12(seconds):
    years = seconds / YEAR
    rows = []
    for sigma in (0.05, 0.2, 0.6, 1.5, 3.0):
        s = sigma * math.sqrt(years)
        for h in (-7.5, -5, -3, -1.5, -0.5, -0.01, 0.0, 1e-6, 0.1, 1, 2, 4, 6, 8):
            strike = 4500.0 * math.exp(h * s)
            right = 1.0 if strike >= 4500.0 else -1.0
            price = float(exact_price(4500.0, strike, s, right))
            if price > 1e-12:
                rows.append((price, strike, right, sigma))
    price, strike, right, sigma = np.array(rows).T
    found, status = solve(price, 4500.0, strike, years, 1.0, right)
    assert (status == black.OK).all()
    assert np.max(np.abs(found / sigma - 1)) < 2e-12


def test_volatility_over_the_whole_grid():
    """60 seconds to 5 years, 1 % to 1000 %, to the last price above 1e-12; make torture takes every point."""
    seconds = [60, 300, 3600, 21_600, 86_400, 7 * 86_400, 30 * 86_400, 91 * 86_400, YEAR // 2, YEAR, 2 * YEAR, 5 * YEAR]
    widths = [0.0, 1e-9, -1e-6, 1e-4, -0.01, 0.05, *np.linspace(-8.3, 8.3, 48)]
    points = itertools.product(seconds, np.geomspace(0.01, 10.0, 24), widths)
    rows = []
    for whole, sigma, h in itertools.islice(points, 0, None, 1 if os.environ.get("MIA_WHOLE") else 13):
        s = sigma * math.sqrt(whole / YEAR)
        strike = 4500.0 * math.exp(h * s)
        right = 1.0 if strike >= 4500.0 else -1.0
        exact = exact_price(4500.0, strike, s, right)
        price = float(exact)
        if price > 1e-12 and price < min(4500.0, strike):
            with mp.workdps(60):  # what a relative error of 2^-53 in the price means for s
                x, w = mp.log(mp.mpf(4500) / strike), mp.mpf(s)
                vega = mp.sqrt(mp.mpf(4500) * strike) * mp.npdf(x / w) * mp.exp(-w * w / 8)
                room = float(exact / vega / w) * 2.3e-16
            rows.append((price, strike, whole / YEAR, right, sigma, room))
    price, strike, years, right, sigma, room = np.array(rows).T
    found, status = solve(price, 4500.0, strike, years, 1.0, right)
    assert (status == black.OK).all()
    error = np.abs(found / sigma - 1)
    assert (error <= 2e-12 + 8 * room).all()
    assert (room < 2.5e-13).mean() > 0.9  # the bound is the solver's own nearly everywhere
    print(f"{price.size:,} prices: largest error {error[room < 2.5e-13].max():.2e}, median {np.median(error):.1e}")


def test_far_prices_are_right_whatever_the_first_guess():
    """Where exp(-h^2/2) of a trial value is clamped its price is noise: it once passed for a solution."""
    rng = np.random.default_rng(5)
    rows = []
    while len(rows) < 600:
        s, reach = math.exp(rng.uniform(math.log(1e-4), math.log(8))), rng.choice([1, 8, 30])
        strike = 4500.0 * math.exp(rng.uniform(-1, 1) * min(12.0, s * reach))
        right = 1.0 if strike >= 4500.0 else -1.0
        exact = exact_price(4500.0, strike, s, right)
        if float(exact) > 1e-240 and float(exact) < min(strike, 4500.0) * (1 - 1e-12):
            with mp.workdps(60):
                x, w = mp.log(mp.mpf(4500) / strike), mp.mpf(s)
                vega = mp.sqrt(mp.mpf(4500) * strike) * mp.npdf(x / w) * mp.exp(-w * w / 8)
                rows.append((float(exact), strike, right, s, float(exact / vega / w) * 2.3e-16))
    rows.append(
        (
            float(exact_price(4500.0, 0.1811750923764748, 1.4771647895120223, -1.0)),
            0.1811750923764748,
            -1.0,
            1.4771647895120223,
            0.0,
        )
    )
    price, strike, right, s, room = np.array(rows).T
    found, status = solve(price, 4500.0, strike, 1.0, 1.0, right)
    assert (status == black.OK).all()
    assert (np.abs(found / s - 1) <= 2e-12 + 8 * room).all()


def test_prices_outside_the_fit_are_finished_by_the_bracketed_iteration():
    # far strikes over long times, volatilities of 1000 %, prices near the maximum
    for f, k, s in [
        (100, 1e8, 5.0),
        (100, 1e-6, 3.5),
        (100, 100, 6.0),
        (100, 100.001, 1e-5),
        (100, 5000, 8.0),
        (1, 1e22, 5.6),
    ]:
        right = 1.0 if k >= f else -1.0
        exact = exact_price(f, k, s, right)
        found, status = solve(float(exact), f, k, 1.0, 1.0, right)
        assert status[0] == black.OK
        # what a relative error of 2^-53 in the price means for s, and the solver's own
        with mp.workdps(60):
            x, w = mp.log(mp.mpf(f) / k), mp.mpf(s)
            vega = mp.sqrt(mp.mpf(f) * k) * mp.npdf(x / w) * mp.exp(-w * w / 8)
            room = float(exact / vega / w) * 2.3e-16
        assert abs(found[0] / s - 1) < 2e-12 + 8 * room


def test_volatility_in_the_money_uses_all_bits_of_the_price():
    for h in (0.5, 1.0, 2.0, 3.0):
        for right in (1.0, -1.0):
            s = 0.1
            strike = 4500.0 * math.exp(-right * h * s)
            price = float(exact_price(4500.0, strike, s, right))
            found, status = solve(price, 4500.0, strike, 0.25, 1.0, right)
            with mp.workdps(40):
                vega = float(mp.mpf(4500) * mp.npdf(mp.log(mp.mpf(4500) / mp.mpf(strike)) / mp.mpf(s) + mp.mpf(s) / 2))
            assert status[0] == black.OK
            assert abs(found[0] * 0.5 - s) < 4 * np.spacing(price) / vega + 1e-14 * s


def test_every_status_and_no_nan_without_one():
    nan, inf = math.nan, math.inf
    cases = [
        ((10.0, 100, 100, 1.0, 1.0, 1), black.OK),
        ((0.0, 100, 100, 1.0, 1.0, 1), black.BELOW_INTRINSIC),
        ((9.9, 110, 100, 1.0, 1.0, 1), black.BELOW_INTRINSIC),
        ((-1.0, 100, 100, 1.0, 1.0, -1), black.BELOW_INTRINSIC),
        ((100.0, 100, 120, 1.0, 1.0, 1), black.ABOVE_MAX),
        ((120.0, 100, 120, 1.0, 1.0, -1), black.ABOVE_MAX),
        ((10.0, 100, 100, 0.0, 1.0, 1), black.EXPIRED),
        ((10.0, 100, 100, -1.0, 1.0, 1), black.EXPIRED),
        ((nan, 100, 100, 1.0, 1.0, 1), black.INVALID),
        ((10.0, nan, 100, 1.0, 1.0, 1), black.INVALID),
        ((10.0, 100, 0.0, 1.0, 1.0, 1), black.INVALID),
        ((10.0, 100, inf, 1.0, 1.0, 1), black.INVALID),
        ((10.0, 100, 100, inf, 1.0, 1), black.INVALID),
        ((10.0, 100, 100, 1.0, 0.0, 1), black.INVALID),
    ]
    arguments = np.array([case for case, _ in cases], dtype=float).T
    found, status = solve(*arguments)
    assert status.tolist() == [code for _, code in cases]
    assert (np.isnan(found) == (status != black.OK)).all()


def test_blocks_do_not_change_a_bit():
    rng = np.random.default_rng(3)
    n = 600
    years, sigma = rng.uniform(1e-4, 3, n), rng.uniform(0.05, 1.2, n)
    strike = 4500 * np.exp(rng.uniform(-6, 6, n) * sigma * np.sqrt(years))
    right = np.where(strike >= 4500, 1.0, -1.0)
    price = np.array(
        [float(exact_price(4500.0, k, s, r)) for k, s, r in zip(strike, sigma * years**0.5, right, strict=True)]
    )
    whole, _ = solve(price, 4500.0, strike, years, 1.0, right)
    for size in (1, 127, 128, 129, 300):
        parts = [
            solve(price[i : i + size], 4500.0, strike[i : i + size], years[i : i + size], 1.0, right[i : i + size])[0]
            for i in range(0, n, size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@settings(max_examples=60, deadline=None)
@given(
    h=st.floats(-6, 6),
    sigma=st.floats(0.03, 2.0),
    years=st.floats(1e-4, 4.0),
    power=st.integers(-8, 8),
)
def test_volatility_is_monotone_symmetric_and_free_of_scale(h, sigma, years, power):
    s = sigma * math.sqrt(years)
    strike = 4096.0 * math.exp(h * s)
    right = 1.0 if strike >= 4096.0 else -1.0
    price = float(exact_price(4096.0, strike, s, right))
    (low, middle, high), status = solve([price * 0.999, price, price * 1.001], 4096.0, strike, years, 1.0, right)
    assert (status == black.OK).all()
    assert low < middle < high
    scale = 2.0**power
    scaled, _ = solve(price * scale, 4096.0 * scale, strike * scale, years, 1.0, right)
    assert scaled[0] == pytest.approx(middle, rel=1e-13)
    discounted, _ = solve(price * 0.5, 4096.0, strike, years, 0.5, right)
    assert discounted[0] == middle
    # the mirrored contract has the same volatility: a put at K on F is a call at F on K
    mirrored, _ = solve(price, strike, 4096.0, years, 1.0, -right)
    assert mirrored[0] == pytest.approx(middle, rel=1e-13)


@settings(max_examples=60, deadline=None)
@given(h=st.floats(-4, 4), sigma=st.floats(0.03, 2.0), years=st.floats(1e-3, 4.0), discount=st.floats(0.7, 1.0))
def test_call_and_put_of_one_strike_have_one_volatility(h, sigma, years, discount):
    """Put-call parity C - P = D (F - K): what the in-the-money price's own bits allow."""
    s = sigma * math.sqrt(years)
    strike = 4096.0 * math.exp(h * s)
    right = 1.0 if strike >= 4096.0 else -1.0
    out_of_it = discount * float(exact_price(4096.0, strike, s, right))
    in_it = out_of_it + discount * abs(4096.0 - strike)
    (one,), _ = solve(out_of_it, 4096.0, strike, years, discount, right)
    (other,), status = solve(in_it, 4096.0, strike, years, discount, -right)
    assert status[0] == black.OK
    vega = discount * math.sqrt(4096.0 * strike) * math.exp(-h * h / 2 - s * s / 8) / math.sqrt(2 * math.pi)
    room = 8 * (np.spacing(in_it) + np.spacing(4096.0) + np.spacing(strike)) / vega / s
    assert one == pytest.approx(other, rel=1e-11 + room)


# --- greeks -----------------------------------------------------------------------------------


def smile(price, strike, terms, spot, out, status, interest=None):
    """One expiry's smile and its sums."""
    sums = np.empty((terms.shape[1], 2, black.N_SUMS))
    held = np.empty((2, 0)) if interest is None else interest
    black.smile(price, strike, np.zeros(strike.size, np.int64), terms, spot, out, status, held, sums)
    return sums


def table_of_terms(forward, discount, years, spot):
    terms = np.empty((black.N_TERMS, 1))
    carry = discount * forward / spot
    terms[:, 0] = (
        forward,
        discount,
        carry,
        years,
        math.sqrt(years),
        -math.log(discount) / years,
        -math.log(carry) / years,
    )
    return terms


def test_greeks_agree_with_quantlib():
    """Delta, gamma, vega, theta, rho of calls and puts; the other five are against mpmath in test_black_greeks.py."""
    ql = pytest.importorskip("QuantLib")
    rng = np.random.default_rng(11)
    spot = 4480.0
    for years in (1 / 365, 0.08, 0.7, 4.0):
        r, q = rng.uniform(0.0, 0.08), rng.uniform(0.0, 0.04)
        forward, discount = spot * math.exp((r - q) * years), math.exp(-r * years)
        terms = table_of_terms(forward, discount, years, spot)
        n = 80
        sigma = rng.uniform(0.08, 0.9, n)
        strike = forward * np.exp(rng.uniform(-4, 4, n) * sigma * math.sqrt(years))
        out, held = np.empty((black.N_GREEKS, n)), rng.integers(0, 50, (2, n)).astype(float)
        sums = np.empty((1, 2, black.N_SUMS))
        black.reprice(sigma, strike, np.zeros(n, np.int64), terms, spot, out, held, sums)
        carry = terms[black.CARRY, 0]
        for i in range(n):
            w = sigma[i] * math.sqrt(years)
            vega, gamma = out[black.VEGA, i], out[black.GAMMA, i]
            scales = {
                "delta": 1.0,
                "gamma": gamma,
                "vega": vega,
                "theta": vega * sigma[i] / years + abs(r) * strike[i] + abs(q) * spot,
                "rho": strike[i] * years,
            }
            for kind, put in ((ql.Option.Call, 0.0), (ql.Option.Put, 1.0)):
                theirs = ql.BlackCalculator(ql.PlainVanillaPayoff(kind, float(strike[i])), forward, float(w), discount)
                mine = {
                    "delta": out[black.DELTA, i] - put * carry,
                    "gamma": gamma,
                    "vega": vega,
                    "theta": out[black.THETA, i] + put * (r * strike[i] * discount - q * spot * carry),
                    "rho": out[black.RHO, i] - put * strike[i] * years * discount,
                }
                wanted = {
                    "delta": theirs.delta(spot),
                    "gamma": theirs.gamma(spot),
                    "vega": theirs.vega(years),
                    "theta": theirs.theta(spot, years),
                    "rho": theirs.rho(years),
                }
                for name, value in wanted.items():
                    assert abs(mine[name] - value) <= 1e-12 * scales[name], (name, years, strike[i], sigma[i])
        for side in range(2):
            np.testing.assert_allclose(sums[0, side, black.DELTA : black.N_GREEKS], out[1:] @ held[side], rtol=1e-12)
            assert sums[0, side, black.SIGMA] == held[side].sum()
            assert sums[0, side, black.STRUCK] == pytest.approx(strike @ held[side], rel=1e-13)


def test_sums_by_expiry_leave_out_what_has_no_volatility():
    """Runs of expiries longer and shorter than a block, strikes without a price, an expiry that is over."""
    rng = np.random.default_rng(2)
    size = [3, 250, 70, 1, 300, 64]
    n, g = sum(size), len(size)
    group = np.repeat(np.arange(g), size)
    terms = np.hstack([table_of_terms(100.0 + k, 0.99, 0.1 * k + 0.05, 100.0) for k in range(g)])
    terms[:, 3] = np.nan
    strike = rng.uniform(80, 120, n)
    price = np.abs(rng.normal(1.0, 0.3, n)) + 1e-3
    status = np.where(rng.random(n) < 0.2, black.NO_BID, black.OK).astype(np.int8)
    status[group == 3] = black.EXPIRED
    out, held, sums = np.empty((black.N_GREEKS, n)), rng.integers(0, 9, (2, n)) * 1.0, np.empty((g, 2, black.N_SUMS))
    black.smile(price, strike, group, terms, 100.0, out, status, held, sums)
    again, twice = np.empty_like(out), np.empty_like(sums)
    black.reprice(out[black.SIGMA].copy(), strike, group, terms, 100.0, again, held, twice)
    np.testing.assert_allclose(again, out, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(twice, sums, rtol=1e-11)
    for k in range(g):
        rows = (group == k) & (status == black.OK)
        for side in range(2):
            weight = held[side, rows]
            assert sums[k, side, black.SIGMA] == weight.sum()
            np.testing.assert_allclose(
                sums[k, side, 1 : black.N_GREEKS], out[1:, rows] @ weight, rtol=1e-12, atol=1e-300
            )
            sigma, years = out[black.SIGMA, rows], terms[black.YEARS, k]
            slope = (out[black.VOMMA, rows] * sigma - out[black.VEGA, rows]) / (sigma**2 * years)
            if rows.any():
                assert sums[k, side, black.VANNA_SLOPE] == pytest.approx(slope @ weight, rel=1e-10)
                assert sums[k, side, black.STRUCK] == pytest.approx(strike[rows] @ weight, rel=1e-13)


def test_the_greeks_of_a_strike_do_not_depend_on_what_stands_beside_it():
    """Bit for bit: alone, in a block, behind other expiries, and with its expiry in pieces."""
    rng = np.random.default_rng(8)
    n, g = 500, 5
    terms = np.hstack([table_of_terms(98.0 + k, 0.99, 0.07 * k + 0.02, 100.0) for k in range(g)])
    group = np.sort(rng.integers(0, g, n))
    strike = rng.uniform(60, 150, n)
    price = np.abs(rng.normal(1.0, 0.8, n)) * 10.0 ** rng.integers(-9, 1, n)
    held = rng.integers(0, 9, (2, n)) * 1.0

    def run(rows):
        out, status = np.empty((black.N_GREEKS, rows.size)), np.zeros(rows.size, np.int8)
        sums = np.empty((g, 2, black.N_SUMS))
        interest = np.ascontiguousarray(held[:, rows])
        black.smile(price[rows], strike[rows], group[rows], terms, 100.0, out, status, interest, sums)
        again = np.empty_like(out)
        black.reprice(out[black.SIGMA], strike[rows], group[rows], terms, 100.0, again, interest, np.empty_like(sums))
        return out, again, status, sums

    whole, repriced, status, sums = run(np.arange(n))
    assert (status == black.OK).sum() > 400
    for rows in (*np.arange(n)[::7].reshape(-1, 1), rng.permutation(n), np.arange(n)[::-1], np.arange(3, n, 2)):
        some, again, code, parts = run(rows)
        np.testing.assert_array_equal(some, whole[:, rows])
        np.testing.assert_array_equal(again, repriced[:, rows])
        np.testing.assert_array_equal(code, status[rows])
        if rows.size == n:
            np.testing.assert_allclose(parts, sums, rtol=1e-12)


def test_an_endless_greek_stays_in_its_own_expiry():
    """Over 1e300 years ultima is beyond all numbers: the next expiry's sums are not told of it."""
    terms = np.hstack([table_of_terms(100.0, 0.99, 1e300, 100.0), table_of_terms(101.0, 0.98, 0.3, 100.0)])
    n = 40
    price, strike = np.full(n + 3, 5.0), np.full(n + 3, 100.0)
    price[n:], strike[n:] = (1.0, 2.0, 3.0), (90.0, 101.0, 110.0)
    group = np.repeat([0, 1], [n, 3])
    out, status, sums = np.empty((black.N_GREEKS, n + 3)), np.zeros(n + 3, np.int8), np.empty((2, 2, black.N_SUMS))
    black.smile(price, strike, group, terms, 100.0, out, status, np.ones((2, n + 3)), sums)
    assert (status == black.OK).all()
    assert np.isinf(out[black.ULTIMA, :n]).all()
    np.testing.assert_allclose(sums[1, :, 1 : black.N_GREEKS], [out[1:, n:].sum(axis=1)] * 2, rtol=1e-13)


def test_an_expiry_without_terms_gives_no_greeks_and_says_so():
    terms = np.hstack([table_of_terms(100.0, 0.99, 0.1, 100.0) for _ in range(2)])
    terms[black.CARRY, 1] = np.nan
    out, status, sums = np.empty((black.N_GREEKS, 4)), np.zeros(4, np.int8), np.empty((2, 2, black.N_SUMS))
    group = np.array([0, 0, 1, 1])
    black.smile(np.full(4, 2.0), np.full(4, 100.0), group, terms, 100.0, out, status, np.ones((2, 4)), sums)
    assert status.tolist() == [black.OK, black.OK, black.INVALID, black.INVALID]
    assert (np.isnan(out) == (status != black.OK)).all()
    assert not sums[1].any()


def test_put_call_parity_of_the_call_row():
    spot, years, sigma = 4480.0, 0.2, 0.3
    terms = table_of_terms(4500.0, 0.99, years, spot)
    strikes = np.array([4300.0, 4700.0])
    price = np.array(
        [float(0.99 * exact_price(4500.0, k, sigma * years**0.5, r)) for k, r in zip(strikes, (-1, 1), strict=True)]
    )
    out, status = np.empty((black.N_GREEKS, 2)), np.zeros(2, np.int8)
    smile(price, strikes, terms, spot, out, status)
    np.testing.assert_allclose(out[black.SIGMA], sigma, rtol=1e-12)
    put_delta = out[black.DELTA] - terms[black.CARRY, 0]
    assert -1 < put_delta[1] < put_delta[0] < 0


def test_smile_flags_impossible_prices_and_skips_what_has_a_status():
    terms = table_of_terms(100.0, 1.0, 1.0, 100.0)
    price = np.array([5.0, 0.0, 100.0, math.nan, 5.0])
    strikes = np.array([100.0, 100.0, 120.0, 100.0, 100.0])
    out, status = np.empty((black.N_GREEKS, 5)), np.array([0, 0, 0, 0, black.NO_BID], np.int8)
    smile(price, strikes, terms, 100.0, out, status)
    assert status.tolist() == [black.OK, black.BELOW_INTRINSIC, black.ABOVE_MAX, black.INVALID, black.NO_BID]
    assert (np.isnan(out) == (status != black.OK)).all()


# --- forwards -----------------------------------------------------------------------------------


def quotes(strike, forward, discount, years, sigma=0.2, spread=0.4):
    bid, ask = np.empty((2, strike.size)), np.empty((2, strike.size))
    for side, right in enumerate((1.0, -1.0)):
        mid = np.array([float(discount * exact_price(forward, k, sigma * math.sqrt(years), right)) for k in strike])
        bid[side], ask[side] = mid - spread / 2, mid + spread / 2
    return bid, ask


def fit(bid, ask, strike, years, *, european=1, spot=4480.0, stale=None, min_pairs=5):
    terms, source, pairs = np.empty((black.N_TERMS, 1)), np.empty(1, np.int8), np.empty(1, np.int64)
    black.expiry_terms(
        bid,
        ask,
        np.zeros((2, strike.size), np.int8) if stale is None else stale,
        strike,
        np.array([0, strike.size]),
        np.array([years]),
        np.array([european], np.int8),
        spot,
        np.array([0.04]),
        np.array([0.014]),
        0.06,
        min_pairs,
        terms,
        source,
        pairs,
    )
    return terms[:, 0], int(source[0]), int(pairs[0])


def test_parity_finds_forward_and_discount_and_ignores_bad_pairs():
    strike = np.arange(4000.0, 5000.0, 25.0)
    bid, ask = quotes(strike, 4501.5, 0.9912, 0.25)
    terms, source, pairs = fit(bid, ask, strike, 0.25)
    assert source == black.FROM_PARITY
    assert pairs == int((np.abs(strike / 4480 - 1) < 0.06).sum())
    assert terms[black.FORWARD] == pytest.approx(4501.5, abs=1e-8)
    assert terms[black.DISCOUNT] == pytest.approx(0.9912, abs=1e-11)
    assert terms[black.CARRY] == pytest.approx(0.9912 * 4501.5 / 4480, rel=1e-10)
    assert terms[black.RATE] == pytest.approx(-math.log(0.9912) / 0.25, rel=1e-8)
    bad = [9, 14, 22, 27]  # stale calls, 20 points away
    bid[0, bad] += 20
    ask[0, bad] += 20
    terms, source, used = fit(bid, ask, strike, 0.25)
    assert source == black.FROM_PARITY
    assert used == pairs - sum(abs(strike[i] / 4480 - 1) < 0.06 for i in bad)
    assert terms[black.FORWARD] == pytest.approx(4501.5, abs=1e-6)


@pytest.mark.parametrize("case", ["american", "few", "one_sided", "stale", "nonsense"])
def test_where_parity_fails_the_fallback_is_flagged(case):
    strike = np.arange(4300.0, 4700.0, 25.0)
    bid, ask = quotes(strike, 4501.5, 0.9912, 0.25)
    stale = np.zeros((2, strike.size), np.int8)
    european, keep = 1, strike.size
    if case == "american":
        european = 0
    elif case == "few":
        keep = 4
    elif case == "one_sided":
        bid[1] = 0.0
    elif case == "stale":
        stale[0] = 1
    else:
        bid, ask = bid[:, ::-1].copy(), ask[:, ::-1].copy()  # prices of other strikes: D < 0
    terms, source, pairs = fit(
        bid[:, :keep].copy(), ask[:, :keep].copy(), strike[:keep], 0.25, european=european, stale=stale[:, :keep].copy()
    )
    assert (source, pairs) == (black.FROM_RATES, 0)
    assert terms[black.FORWARD] == pytest.approx(4480 * math.exp(0.026 * 0.25), rel=1e-14)
    assert terms[black.DISCOUNT] == pytest.approx(math.exp(-0.01), rel=1e-14)


def test_an_expired_group_has_no_forward():
    strike = np.arange(4300.0, 4700.0, 25.0)
    bid, ask = quotes(strike, 4501.5, 0.9912, 0.25)
    terms, source, _ = fit(bid, ask, strike, 0.0)
    assert source == black.NO_FORWARD
    assert np.isnan(terms).all()


def test_quote_status_of_each_contract():
    terms = table_of_terms(100.0, 1.0, 0.5, 100.0)
    cases = [  # strike, call (bid, ask), expected call status
        (110.0, (1.0, 1.2), black.OK),
        (110.0, (0.0, 0.1), black.NO_BID),
        (110.0, (math.nan, 0.1), black.NO_BID),
        (110.0, (1.0, 1.0), black.CROSSED),
        (110.0, (1.0, 0.9), black.CROSSED),
        (110.0, (1.0, math.nan), black.CROSSED),
        (90.0, (9.0, 10.9), black.BELOW_INTRINSIC),
        (110.0, (99.0, 101.1), black.ABOVE_MAX),
    ]
    n = len(cases)
    strike = np.array([k for k, *_ in cases])
    bid, ask = np.full((2, n), 11.0), np.full((2, n), 11.2)
    bid[0], ask[0] = np.array([quote for _, quote, _ in cases]).T
    listed, stale = np.ones((2, n), np.int8), np.zeros((2, n), np.int8)
    status, price, strike_status = np.empty((2, n), np.int8), np.empty(n), np.empty(n, np.int8)
    group = np.zeros(n, np.int64)

    def run(terms=terms):
        black.otm_prices(bid, ask, listed, stale, strike, group, terms, status, price, strike_status)

    run()
    assert status[0].tolist() == [code for *_, code in cases]
    assert (np.isnan(price) == (strike_status != black.OK)).all()
    assert price[0] == pytest.approx(1.1)
    assert price[6] == pytest.approx(11.1)  # K < F: the put's mid, whatever the call's status
    stale[0, 0], listed[0, 1] = 1, 0
    run()
    assert status[0, :2].tolist() == [black.STALE, black.NOT_LISTED]
    run(np.full_like(terms, np.nan))
    assert status[0, 0] == status[1, 0] == black.EXPIRED


def test_atm_volatility_is_linear_in_variance_between_the_neighbours():
    terms = table_of_terms(100.0, 1.0, 0.5, 100.0)
    strike = np.array([90.0, 97.0, 99.0, 102.0, 104.0])
    sigma = np.array([0.3, 0.25, 0.22, 0.19, 0.18])
    status = np.array([0, 0, 0, 0, 0], np.int8)
    out = np.empty(1)
    start = np.array([0, 5])
    black.atm_volatility(sigma, status, strike, start, terms, 0.06, out)
    x = np.log(strike / 100)
    assert out[0] == pytest.approx(math.sqrt(np.interp(0, x, sigma**2)), rel=1e-12)
    status[2] = black.NO_BID
    black.atm_volatility(sigma, status, strike, start, terms, 0.06, out)
    assert out[0] == pytest.approx(math.sqrt(np.interp(0, x[[1, 3]], sigma[[1, 3]] ** 2)), rel=1e-12)
    status[1] = black.NO_BID  # the next one below is outside the band
    black.atm_volatility(sigma, status, strike, start, terms, 0.06, out)
    assert np.isnan(out[0])
    exact = np.array([95.0, 100.0, 105.0, 110.0, 115.0])
    status[:] = 0
    black.atm_volatility(sigma, status, exact, start, terms, 0.06, out)
    assert out[0] == sigma[1]


def test_the_fused_exponential_agrees_with_mpmath():
    from mia_kernels.compile import kernel
    from mia_kernels.vector import exp

    @kernel
    def over(x, out):
        for i in range(x.shape[0]):
            out[i] = exp(x[i])

    x = np.concatenate([np.linspace(-700, 700, 2001), np.linspace(-1, 1, 501)])
    out = np.empty_like(x)
    over(x, out)
    worst = max(abs(float(mp.mpf(b) / mp.exp(mp.mpf(a)) - 1)) for a, b in zip(x, out, strict=True))
    assert worst < 3e-16


def test_logarithms_and_roots_agree_with_mpmath():
    from mia_kernels.compile import kernel
    from mia_kernels.vector import inverse_root, log_quotient, rough_log

    @kernel
    def over(a, b, out):
        for i in range(a.shape[0]):
            out[0, i] = log_quotient(a[i], b[i])
            out[1, i] = inverse_root(a[i])
            out[2, i] = rough_log(a[i])

    rng = np.random.default_rng(1)
    a = np.concatenate([np.exp(rng.uniform(-600, 600, 800)), rng.uniform(0.5, 2.0, 800), np.full(400, 4500.0)])
    b = np.concatenate([np.exp(rng.uniform(-80, 80, 800)), rng.uniform(0.5, 2.0, 800), 4500.0 + rng.normal(0, 1, 400)])
    out = np.empty((3, a.size))
    over(a, b, out)
    for i, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        with mp.workdps(40):
            exact = mp.log(mp.mpf(x) / mp.mpf(y))
            assert abs(float(mp.mpf(out[0, i]) - exact)) <= 3e-16 * float(abs(exact)), (x, y)
            assert abs(float(mp.mpf(out[1, i]) * mp.sqrt(mp.mpf(x)) - 1)) <= 3e-16
            assert abs(float(mp.mpf(out[2, i]) - mp.log(mp.mpf(x)))) <= 4e-8 + 1e-13 * abs(math.log(x))


def test_constant_maturity_is_linear_in_total_variance():
    years = np.array([-0.01, 0.02, 0.1, 0.5])
    curves = np.array([[0.9, 0.3, 0.2, 0.25], [np.nan, np.nan, 0.2, np.nan]])
    out = np.empty((2, 4))
    black.constant_maturity(years, curves, np.array([0.01, 0.1, 0.3, 0.6]), out)
    assert np.isnan(out[0, [0, 3]]).all()
    assert out[0, 1] == 0.2
    assert out[0, 2] == pytest.approx(math.sqrt((0.1 * 0.04 * 0.5 + 0.5 * 0.0625 * 0.5) / 0.3), rel=1e-14)
    assert np.isnan(out[1, [0, 2, 3]]).all()
    assert out[1, 1] == 0.2
