"""What the vectoriser has to be told: fused multiply-add, and full-width registers.

``fma`` is an operation of IEEE 754-2008, rounded once: the same bits on every machine, with one
instruction where the processor has it (x86 since 2013, all 64-bit ARM) and by the C library's slow
function elsewhere. Contracting ``a * b + c`` silently, as fastmath does, would give bits that depend
on the compiler's mood; here each fused operation is written down.
"""

from __future__ import annotations

from typing import Any

import numpy as np
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
