"""What the vectoriser has to be told: fused multiply-add, and full-width registers.

``fma`` is an operation of IEEE 754-2008, rounded once: the same bits on every machine, with one
instruction where the processor has it (x86 since 2013, all 64-bit ARM) and by the C library's slow
function elsewhere. Contracting ``a * b + c`` silently, as fastmath does, would give bits that depend
on the compiler's mood; here each fused operation is written down.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mia_kernels.compile import inlined
from mia_kernels.elementary import bits_of, from_bits


def _fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float64(types.float64, types.float64, types.float64), codegen


fma: Any = intrinsic(_fma)


@inlined
def quotient(x: float, divisor: float, inverse: float) -> float:
    """x / divisor, correctly rounded, for an integer divisor up to 2**40 whose ``inverse`` is 1.0 / divisor.

    Markstein's correction (IBM Journal 34, 1990) in place of the divider, which takes five times as long: the
    remainder e is exact, and q + e/divisor is no nearer to the middle between two numbers than a half unit over the
    divisor. Where e is zero, or x infinite or missing, q is the answer (and keeps the sign of zero). Subnormal
    quotients may be one unit off.
    """
    q = x * inverse
    e = fma(-q, divisor, x)
    corrected = fma(e, inverse, q)
    return corrected if abs(e) > 0.0 else q


def spread(builder: Any, number: Any, vector: Any) -> Any:
    """For code that is written out: a vector of this type with ``number`` in every lane."""
    index = ir.IntType(32)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(index, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(index, vector.count), [0] * vector.count))


def magnitude(builder: Any, x: Any) -> Any:
    """For code that is written out: the size of each float64 of a vector."""
    name = f"llvm.fabs.v{x.type.count}f64"
    known = builder.module.globals.get(name)
    return builder.call(known or ir.Function(builder.module, ir.FunctionType(x.type, [x.type]), name), [x])


def _wide(typing: Any) -> Any:
    """Let the vectoriser use 512-bit registers in the kernel that calls this, where there are any.

    LLVM prefers 256 bits on Intel's server processors since 2017, whose clock once fell with wider
    ones; a long loop of polynomials gains from the full width all the same. The attribute is a plain
    string attribute, which llvmlite's own list of names does not hold.
    """

    def codegen(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        attributes = builder.function.attributes
        set.add(attributes, '"prefer-vector-width"="512"')
        attributes.add("noinline")  # inlined, the loops would follow the caller's attributes
        return None

    return types.void(), codegen


wide: Any = intrinsic(_wide)


_ROUND = 6755399441055744.0  # 1.5 * 2**52: adding it rounds to the nearest integer
_LOG2_E = 1.4426950408889634
_LN2_HIGH = 6.93147180369123816490e-01  # fdlibm's split of ln 2
_LN2_LOW = 1.90821492927058770002e-10


@inlined
def exp(x: float) -> float:
    """As :func:`mia_kernels.elementary.exp`, fused: e**x in [-708, 709], clamped outside; error below 3e-16."""
    x = max(x, -708.0)
    x = min(x, 709.0)
    t = fma(x, _LOG2_E, _ROUND)
    n = t - _ROUND
    r = fma(n, -_LN2_LOW, fma(n, -_LN2_HIGH, x))
    p = 2.0876756987868099e-09
    p = fma(p, r, 2.5052108385441719e-08)
    p = fma(p, r, 2.7557319223985893e-07)
    p = fma(p, r, 2.7557319223985891e-06)
    p = fma(p, r, 2.4801587301587302e-05)
    p = fma(p, r, 1.9841269841269841e-04)
    p = fma(p, r, 1.3888888888888889e-03)
    p = fma(p, r, 8.3333333333333332e-03)
    p = fma(p, r, 4.1666666666666664e-02)
    p = fma(p, r, 1.6666666666666666e-01)
    p = fma(p, r, 0.5)
    p = fma(p, r, 1.0)
    p = fma(p, r, 1.0)
    return float(from_bits(bits_of(p) + (bits_of(t) << np.int64(52))))


_LN2 = 0.6931471805599453


@inlined
def log_quotient(a: float, b: float) -> float:
    """ln(a/b) of positive normal numbers with one division; error below 3e-16 of the larger of |ln(a/b)| and |a/b - 1|.

    b is brought to within a factor of 1.5 of a by a power of two, so a - b is exact and nothing is lost where the two
    are close: ``2 artanh((a - b)/(a + b))`` by its series.
    """
    k = (bits_of(a) - bits_of(b) + (np.int64(1) << np.int64(51))) >> np.int64(52)
    c = from_bits(bits_of(b) + (k << np.int64(52)))
    e = from_bits(k + np.int64(0x4338000000000000)) - _ROUND
    s = (a - c) / (a + c)
    z = s * s
    p = 0.047619047619047616
    p = fma(p, z, 0.05263157894736842)
    p = fma(p, z, 0.058823529411764705)
    p = fma(p, z, 0.06666666666666667)
    p = fma(p, z, 0.07692307692307693)
    p = fma(p, z, 0.09090909090909091)
    p = fma(p, z, 0.1111111111111111)
    p = fma(p, z, 0.14285714285714285)
    p = fma(p, z, 0.2)
    p = fma(p, z, 0.3333333333333333)
    t = s + s
    return float(fma(e, _LN2_HIGH, fma(e, _LN2_LOW, fma(t * z, p, t))))


@inlined
def rough_log(x: float) -> float:
    """ln x of a positive normal number to 4e-8, without a division (mpmath's ``chebyfit`` of ln(1 + f)/f)."""
    ix = bits_of(x)
    k = (ix - np.int64(0x3FE6A09E667F3BCD)) >> np.int64(52)
    f = from_bits(ix - (k << np.int64(52))) - 1.0
    e = from_bits(k + np.int64(0x4338000000000000)) - _ROUND
    p = 0.08533313082996152
    p = fma(p, f, -0.14269258206218832)
    p = fma(p, f, 0.14977401280127375)
    p = fma(p, f, -0.16577992896798863)
    p = fma(p, f, 0.1995593335838325)
    p = fma(p, f, -0.2500135218549606)
    p = fma(p, f, 0.3333419328613508)
    p = fma(p, f, -0.4999999638212389)
    p = fma(p, f, 0.9999999741310671)
    return float(fma(e, _LN2, f * p))


@inlined
def inverse_root(x: float) -> float:
    """1/sqrt(x) of a positive normal number by Newton's method, without a division; error below 3e-16.

    The first value comes from the halved exponent (relative error 0.034); four rounds square it away.
    """
    y = from_bits(np.int64(0x5FE6EB50C7B537A9) - (bits_of(x) >> np.int64(1)))
    for _ in range(4):
        y = fma(0.5 * y, fma(-x * y, y, 1.0), y)
    return float(y)
