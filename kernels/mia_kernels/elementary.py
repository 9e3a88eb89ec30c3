"""Exponential, logarithm and circle functions built from IEEE basic operations only.

The C library's versions differ between systems and block the vectoriser; these give the same
bits on every machine, alone or in a vector lane, which "live equals batch" rests on.
All are branch-free. Accuracy against mpmath is tested in ``tests/test_elementary.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mia_kernels.compile import inlined


def _bits_of(typing: Any, x: Any) -> Any:
    """The 64 bits of a float64, as an int64."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), codegen


bits_of: Any = intrinsic(_bits_of)


def _from_bits(typing: Any, x: Any) -> Any:
    """The float64 that has these 64 bits."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


from_bits: Any = intrinsic(_from_bits)


_ROUND = 6755399441055744.0  # 1.5 * 2**52: adding it rounds to the nearest integer
_LOG2_E = 1.4426950408889634
_LN2_HIGH = 6.93147180369123816490e-01  # fdlibm's split of ln 2
_LN2_LOW = 1.90821492927058770002e-10


@inlined
def exp(x: float) -> float:
    """e**x for x in [-708, 709], clamped outside; relative error below 4e-16."""
    x = max(x, -708.0)
    x = min(x, 709.0)
    t = x * _LOG2_E + _ROUND
    n = t - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = 2.0876756987868099e-09
    p = p * r + 2.5052108385441719e-08
    p = p * r + 2.7557319223985893e-07
    p = p * r + 2.7557319223985891e-06
    p = p * r + 2.4801587301587302e-05
    p = p * r + 1.9841269841269841e-04
    p = p * r + 1.3888888888888889e-03
    p = p * r + 8.3333333333333332e-03
    p = p * r + 4.1666666666666664e-02
    p = p * r + 1.6666666666666666e-01
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return float(from_bits(bits_of(p) + (bits_of(t) << np.int64(52))))


@inlined
def log(x: float) -> float:
    """Natural logarithm of a positive normal number (fdlibm's polynomial); error below 1 ulp.

    Zero, negative, subnormal and non-finite arguments are the caller's to exclude.
    """
    ix = bits_of(x)
    k = (ix - np.int64(0x3FE6A09E667F3BCD)) >> np.int64(52)
    m = from_bits(ix - (k << np.int64(52)))
    e = from_bits(k + np.int64(0x4338000000000000)) - _ROUND
    f = m - 1.0
    s = f / (2.0 + f)
    z = s * s
    r = z * (
        6.666666666666735130e-01
        + z
        * (
            3.999999999940941908e-01
            + z
            * (
                2.857142874366239149e-01
                + z
                * (
                    2.222219843214978396e-01
                    + z * (1.818357216161805012e-01 + z * (1.531383769920937332e-01 + z * 1.479819860511658591e-01))
                )
            )
        )
    )
    h = 0.5 * f * f
    return float(e * _LN2_HIGH - ((h - (s * (h + r) + e * _LN2_LOW)) - f))


@inlined
def sin_turn(x: float) -> float:
    """sin(2 pi x) for x in turns, so that calendar fractions reduce exactly; absolute error below 2e-16."""
    y = x - np.floor(x + 0.5)  # [-1/2, 1/2)
    y = 0.5 - y if y > 0.25 else y
    y = -0.5 - y if y < -0.25 else y  # [-1/4, 1/4]
    t = 6.283185307179586 * y
    z = t * t
    p = -8.2206352466243295e-18 + z * 1.9572941063391263e-20
    p = 2.8114572543455206e-15 + z * p
    p = -7.6471637318198165e-13 + z * p
    p = 1.6059043836821613e-10 + z * p
    p = -2.5052108385441720e-08 + z * p
    p = 2.7557319223985893e-06 + z * p
    p = -1.9841269841269841e-04 + z * p
    p = 8.3333333333333333e-03 + z * p
    p = -1.6666666666666667e-01 + z * p
    return float(t + t * (z * p))


@inlined
def cos_turn(x: float) -> float:
    """cos(2 pi x), by the quarter turn, whose sum is rounded: absolute error below 1e-15 for |x| < 1."""
    return sin_turn(x + 0.25)
