"""Arrow validity bitmaps: which numbers of a column are values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from mia_kernels.compile import kernel
from mia_kernels.memory import address_of, bytes_at, floats_at, integers_at
from mia_kernels.vector import magnitude, spread

_BLOCK = 256
_WIDTH = 8


def _set_bytes(_typing: Any, _source: Any, _bits: Any, _count: Any, _limit: Any) -> Any:
    """A byte of the bitmap for eight numbers: compared together, a vector of bits being a byte."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        source, bits, count, limit = args
        word, byte, vector = ir.IntType(64), ir.IntType(8), ir.VectorType(ir.DoubleType(), _WIDTH)
        bound = spread(builder, limit, vector)
        with cgutils.for_range(builder, count, intp=word) as loop:
            at = builder.add(source, builder.mul(loop.index, ir.Constant(word, 8 * _WIDTH)))
            x = builder.load(builder.inttoptr(at, vector.as_pointer()), align=8)
            within = builder.fcmp_ordered("<=", magnitude(builder, x), bound)
            to = builder.inttoptr(builder.add(bits, loop.index), byte.as_pointer())
            builder.store(builder.bitcast(within, byte), to)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float64), codegen


def _ones_of(_typing: Any, _word: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.int64), codegen


_bytes: Any = intrinsic(_set_bytes)
_ones: Any = intrinsic(_ones_of)


@kernel
def mark(source: int, n: int, limit: float, bits: int) -> int:
    """Set bit i (least significant first, as Arrow has it) where number i is no larger than ``limit`` in size.

    ``source`` is the address of n float64, ``bits`` that of whole words of a bitmap, 8 * ceil(n / 64) bytes, whatever
    they hold; bits beyond n are cleared. NaN is no value. Returns how many of the n are none.
    """
    words = integers_at(bits, (n + 63) // 64)
    rest = bytes_at(bits, 8 * words.size)
    # Each byte is written once, as it stays: two halves may mark the same column at the same time.
    _bytes(source, bits, n >> 3, limit)
    if n & 7:
        x, last = floats_at(source, n), 0
        for i in range(n & ~7, n):
            last |= (1 if abs(x[i]) <= limit else 0) << (i & 7)
        rest[n >> 3] = last
    for k in range((n + 7) >> 3, rest.size):
        rest[k] = 0
    there = 0
    for k in range(words.size):
        there += _ones(words[k])
    return n - there


@kernel
def validity_bitmap(values: NDArray[np.float64], bitmap: NDArray[np.uint8]) -> int:
    """Set bit i of ``bitmap`` where ``values[i]`` is not NaN; ``values`` (n,), ``bitmap`` (8 * ceil(n / 64),).

    Returns the number of missing values.
    """
    source, bits = address_of(values), address_of(bitmap)
    missing = 0
    for first in range(0, values.size, _BLOCK):  # what is read twice is read from the cache
        n = min(_BLOCK, values.size - first)
        missing += mark(source + 8 * first, n, math.inf, bits + first // 8)
    return missing
