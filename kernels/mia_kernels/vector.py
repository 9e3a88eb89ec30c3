"""Two things that the vectoriser has to be told: fused multiply-add, and full-width registers.

``fma`` is an operation of IEEE 754-2008, rounded once: the same bits on every machine, with one
instruction where the processor has it (x86 since 2013, all 64-bit ARM) and by the C library's slow
function elsewhere. Contracting ``a * b + c`` silently, as fastmath does, would give bits that depend
on the compiler's mood; here each fused operation is written down.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic


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
