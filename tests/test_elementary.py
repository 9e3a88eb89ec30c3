"""exp, log and the circle functions against mpmath, alone and inside a vectorised loop."""

from __future__ import annotations

import math
import sys

import mpmath
import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from mia_kernels import elementary

Floats = NDArray[np.float64]

_exp, _log, _sin, _cos = elementary.exp, elementary.log, elementary.sin_turn, elementary.cos_turn
EXP, LOG, SIN, COS = range(4)


@numba.njit(error_model="numpy")
def _one(which: int, x: float) -> float:
    if which == EXP:
        return _exp(x)
    if which == LOG:
        return _log(x)
    if which == SIN:
        return _sin(x)
    return _cos(x)


@numba.njit(error_model="numpy")
def _loop(which: int, x: Floats, out: Floats) -> None:
    if which == EXP:
        for i in range(x.size):
            out[i] = _exp(x[i])
    elif which == LOG:
        for i in range(x.size):
            out[i] = _log(x[i])
    elif which == SIN:
        for i in range(x.size):
            out[i] = _sin(x[i])
    else:
        for i in range(x.size):
            out[i] = _cos(x[i])


def over(which: int, x: Floats) -> Floats:
    out = np.empty_like(x)
    _loop(which, x, out)
    return out


def ulps(got: Floats, exact: list[mpmath.mpf]) -> Floats:
    """Errors in units of the last place of the exact value, in mpmath's precision."""
    return np.array(
        [float(abs(mpmath.mpf(g) - e) / math.ulp(float(e))) for g, e in zip(got.tolist(), exact, strict=True)]
    )


@pytest.fixture(autouse=True)
def _precision():
    with mpmath.workdps(50):
        yield


RNG = np.random.default_rng(20)
EXP_ARGUMENTS = np.concatenate(
    [RNG.uniform(-708, 709, 2500), RNG.normal(0, 1, 1500), RNG.normal(0, 1e-8, 200), [0.0, 1.0, -1.0]]
)
LOG_ARGUMENTS = np.concatenate(
    [
        np.exp(RNG.uniform(-700, 700, 1500)),
        1 + RNG.normal(0, 1e-3, 1500),  # the ratio of two prices
        1 + RNG.normal(0, 1e-9, 500),
        RNG.uniform(0.5, 2.0, 500),
        np.ldexp(1.0, RNG.integers(-1022, 1023, 200)),
        [
            1.0,
            math.nextafter(1, 0),
            math.nextafter(1, 2),
            math.sqrt(2),
            math.sqrt(0.5),
            sys.float_info.min,
            sys.float_info.max,
        ],
    ]
)
CALENDAR = np.concatenate([np.arange(1440) / 1440, np.arange(7) / 7, np.arange(5) / 5, np.arange(12) / 12])
TURNS = np.concatenate([CALENDAR, RNG.uniform(-3, 3, 1500), np.arange(-16, 17) / 8])


def test_exp_is_within_its_stated_error() -> None:
    exact = [mpmath.exp(mpmath.mpf(x)) for x in EXP_ARGUMENTS.tolist()]
    got = over(EXP, EXP_ARGUMENTS)
    relative = [float(abs(mpmath.mpf(g) / e - 1)) for g, e in zip(got.tolist(), exact, strict=True)]
    assert max(relative) < 4e-16


def test_exp_is_clamped_outside() -> None:
    got = over(EXP, np.array([-708.0, -709.0, -1e9, 709.0, 710.0, 1e9]))
    assert got[0] == got[1] == got[2] > 0
    assert got[3] == got[4] == got[5] < math.inf


def test_log_is_within_one_unit_of_the_last_place() -> None:
    exact = [mpmath.log(mpmath.mpf(x)) for x in LOG_ARGUMENTS.tolist()]
    nonzero = LOG_ARGUMENTS != 1.0
    got = over(LOG, LOG_ARGUMENTS)
    assert (got[~nonzero] == 0.0).all()
    assert ulps(got[nonzero], [e for e, keep in zip(exact, nonzero, strict=True) if keep]).max() < 1.0


def test_log_undoes_exp() -> None:
    x = RNG.uniform(-700, 700, 2000)
    np.testing.assert_allclose(over(LOG, over(EXP, x)), x, rtol=1e-15, atol=4e-16)


@pytest.mark.parametrize(
    ("which", "function", "bound"),
    [
        (SIN, mpmath.sin, 2e-16),
        (COS, mpmath.cos, 1e-15),  # the quarter turn that is added rounds the argument
    ],
)
def test_circle_functions(which: int, function, bound: float) -> None:
    for turns, allowed in ((CALENDAR, bound), (TURNS, 4 * bound)):
        exact = [function(2 * mpmath.pi * mpmath.mpf(x)) for x in turns.tolist()]
        got = over(which, turns)
        assert max(float(abs(mpmath.mpf(g) - e)) for g, e in zip(got.tolist(), exact, strict=True)) < allowed
        assert np.abs(got).max() <= 1.0


def test_quarter_turns_are_exact() -> None:
    quarters = np.arange(-8, 9) / 4
    assert over(SIN, quarters).tolist() == [round(math.sin(2 * math.pi * q)) for q in quarters]
    assert over(COS, quarters).tolist() == [round(math.cos(2 * math.pi * q)) for q in quarters]


def test_symmetry_and_period_are_exact_where_the_argument_is() -> None:
    x = np.arange(0, 1024) / 1024
    np.testing.assert_array_equal(over(SIN, -x), -over(SIN, x))
    np.testing.assert_array_equal(over(COS, -x), over(COS, x))
    np.testing.assert_array_equal(over(SIN, x + 3), over(SIN, x))
    np.testing.assert_array_equal(over(COS, x - 2), over(COS, x))


@pytest.mark.parametrize(("which", "x"), [(EXP, EXP_ARGUMENTS), (LOG, LOG_ARGUMENTS), (SIN, TURNS), (COS, TURNS)])
def test_alone_and_in_a_vector_the_bits_are_the_same(which: int, x: Floats) -> None:
    together = over(which, x)
    alone = np.array([_one(which, value) for value in x.tolist()])
    np.testing.assert_array_equal(together.view(np.int64), alone.view(np.int64))
    for length in (1, 3, 8, 13):
        np.testing.assert_array_equal(over(which, x[:length].copy()).view(np.int64), together[:length].view(np.int64))


@pytest.mark.parametrize("which", [EXP, SIN, COS])
def test_a_missing_argument_stays_missing(which: int) -> None:
    assert math.isnan(over(which, np.array([math.nan]))[0])
