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
from mia_kernels.vector import magnitude, spread

LINE = 8
"""Numbers of a cache line."""
_WIDTH = 4
_DOUBLE = ir.DoubleType()
_WORD = ir.IntType(64)
_VECTOR = ir.VectorType(_DOUBLE, _WIDTH)


def _write_lines(checked: bool) -> Any:
    def typed(_typing: Any, _source: Any, _to: Any, _lines: Any, _limit: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            source, to, lines, limit = args
            bound = spread(builder, limit, _VECTOR)
            streaming = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
            missing = ir.Constant(_VECTOR, [ir.Constant(_DOUBLE, math.nan)] * _WIDTH)
            with cgutils.for_range(builder, lines, intp=_WORD) as loop:
                offset = builder.mul(loop.index, ir.Constant(_WORD, 8 * LINE))
                for part in range(0, 8 * LINE, 8 * _WIDTH):
                    at = builder.add(offset, ir.Constant(_WORD, part))
                    read = builder.inttoptr(builder.add(source, at), _VECTOR.as_pointer())
                    x = builder.load(read, align=8)
                    if checked:
                        within = builder.fcmp_ordered("<=", magnitude(builder, x), bound)
                        x = builder.select(within, x, missing)
                    written = builder.inttoptr(builder.add(to, at), _VECTOR.as_pointer())
                    builder.store(x, written, align=8 * _WIDTH).set_metadata("nontemporal", streaming)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.float64), codegen

    return intrinsic(typed)


_lines: Any = _write_lines(checked=False)
_lines_within: Any = _write_lines(checked=True)


def _fence(_typing: Any) -> Any:
    def codegen(context: Any, builder: Any, _signature: Any, _args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


fence: Any = intrinsic(_fence)
"""Wait until everything streamed is visible to other threads: streaming stores are not ordered with others."""


def _prefetch(writes: bool) -> Any:
    def typed(_typing: Any, _address: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            byte, index = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [byte, index, index, index])
            name = "llvm.prefetch.p0i8"
            function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
            how = (ir.Constant(index, k) for k in (int(writes), 3, 1))
            builder.call(function, [builder.inttoptr(args[0], byte), *how])
            return context.get_dummy_value()

        return types.void(types.int64), codegen

    return intrinsic(typed)


_ask_to_read: Any = _prefetch(writes=False)
_ask_to_write: Any = _prefetch(writes=True)


@kernel
def fetch(to: int, n: int) -> None:
    """Ask for the cache lines of n numbers that are about to be written: they come while others are computed."""
    for line in range((n + LINE - 1) // LINE):
        _ask_to_write(to + 8 * LINE * line)


@kernel
def fetch_input(source: int, n: int) -> None:
    """Ask for the cache lines of n numbers that are about to be read: a new column is where no processor guesses."""
    for line in range((n + LINE - 1) // LINE):
        _ask_to_read(source + 8 * LINE * line)


@kernel
def stream(source: int, to: int, n: int) -> None:
    """Copy n numbers; whole cache lines of the result go around the cache."""
    x, y = floats_at(source, n), floats_at(to, n)
    head = min(((-to) & (8 * LINE - 1)) >> 3, n)
    lines = (n - head) // LINE
    for i in range(head):
        y[i] = x[i]
    _lines(source + 8 * head, to + 8 * head, lines, 0.0)
    for i in range(head + LINE * lines, n):
        y[i] = x[i]


@kernel
def stream_within(source: int, to: int, n: int, limit: float) -> None:
    """As :func:`stream`; what is larger in size than ``limit`` becomes missing, as NaN is."""
    x, y = floats_at(source, n), floats_at(to, n)
    head = min(((-to) & (8 * LINE - 1)) >> 3, n)
    lines = (n - head) // LINE
    for i in range(head):
        y[i] = x[i] if abs(x[i]) <= limit else math.nan
    _lines_within(source + 8 * head, to + 8 * head, lines, limit)
    for i in range(head + LINE * lines, n):
        y[i] = x[i] if abs(x[i]) <= limit else math.nan
