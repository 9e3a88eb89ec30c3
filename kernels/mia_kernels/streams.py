"""Writing large results around the cache.

A store to a line that is not in the cache reads the line first: half of what a long column costs is reading what is
about to be overwritten. Streaming stores write whole lines without that, and leave the cache to the working columns.
They are slower when the results would have stayed in the cache, so that the caller decides by their size
(docs/decisions/0030). Arguments are addresses and numbers of float64.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mia_kernels.compile import kernel
from mia_kernels.memory import floats_at

LINE = 8
"""Numbers of a cache line."""
_WIDTH = 4
_DOUBLE = ir.DoubleType()
_WORD = ir.IntType(64)
_VECTOR = ir.VectorType(_DOUBLE, _WIDTH)


def _write_lines(checked: bool) -> Any:
    def typed(_typing: Any, _source: Any, _to: Any, _lines: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            source, to, lines = args
            streaming = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
            missing = ir.Constant(_VECTOR, [ir.Constant(_DOUBLE, math.nan)] * _WIDTH)
            zero = ir.Constant(_VECTOR, [ir.Constant(_DOUBLE, 0.0)] * _WIDTH)
            with cgutils.for_range(builder, lines, intp=_WORD) as loop:
                offset = builder.mul(loop.index, ir.Constant(_WORD, 8 * LINE))
                for part in range(0, 8 * LINE, 8 * _WIDTH):
                    at = builder.add(offset, ir.Constant(_WORD, part))
                    read = builder.inttoptr(builder.add(source, at), _VECTOR.as_pointer())
                    x = builder.load(read, align=8)
                    if checked:
                        number = builder.fcmp_ordered("==", builder.fsub(x, x), zero)
                        x = builder.select(number, x, missing)
                    written = builder.inttoptr(builder.add(to, at), _VECTOR.as_pointer())
                    builder.store(x, written, align=8 * _WIDTH).set_metadata("nontemporal", streaming)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return intrinsic(typed)


_lines: Any = _write_lines(checked=False)
_finite_lines: Any = _write_lines(checked=True)


def _fence(_typing: Any) -> Any:
    def codegen(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


fence: Any = intrinsic(_fence)
"""Wait until everything streamed is visible to other threads: streaming stores are not ordered with others."""


def _prefetch(_typing: Any, _address: Any) -> Any:
    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        byte, index = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, index, index, index])
        name = "llvm.prefetch.p0i8"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        builder.call(function, [builder.inttoptr(args[0], byte), *(ir.Constant(index, k) for k in (1, 3, 1))])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


_ask: Any = intrinsic(_prefetch)


@kernel
def fetch(to: int, n: int) -> None:
    """Ask for the cache lines of n numbers that are about to be written: they come while others are computed."""
    for line in range((n + LINE - 1) // LINE):
        _ask(to + 8 * LINE * line)


@kernel
def stream(source: int, to: int, n: int) -> None:
    """Copy n numbers; whole cache lines of the result go around the cache."""
    x, y = floats_at(source, n), floats_at(to, n)
    head = min(((-to) & (8 * LINE - 1)) >> 3, n)
    lines = (n - head) // LINE
    for i in range(head):
        y[i] = x[i]
    _lines(source + 8 * head, to + 8 * head, lines)
    for i in range(head + LINE * lines, n):
        y[i] = x[i]


@kernel
def stream_finite(source: int, to: int, n: int) -> None:
    """As :func:`stream`; what is not finite becomes missing."""
    x, y = floats_at(source, n), floats_at(to, n)
    head = min(((-to) & (8 * LINE - 1)) >> 3, n)
    lines = (n - head) // LINE
    for i in range(head):
        y[i] = x[i] if x[i] - x[i] == 0.0 else math.nan
    _finite_lines(source + 8 * head, to + 8 * head, lines)
    for i in range(head + LINE * lines, n):
        y[i] = x[i] if x[i] - x[i] == 0.0 else math.nan
