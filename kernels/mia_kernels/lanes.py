"""Recursive averages in vector registers, up to thirty-two in one pass.

``s += a (x - s)`` waits for itself: one chain takes some twelve cycles a row, however many lanes it has. So the
lanes lie side by side in vectors, and up to four jobs of eight lanes advance together. Rows come in fours, which
are turned over in registers, so that every column is written contiguously. The arithmetic is the same
three IEEE operations a lane as in :mod:`mia_kernels.recurrences`, hence the same bits.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
WIDTH = 4
"""Lanes of one register: 256 bits. The wider registers lower the clock, and these chains wait, not work."""
_DOUBLE = ir.DoubleType()
_WORD = ir.IntType(64)
_INDEX = ir.IntType(32)
_VECTOR = ir.VectorType(_DOUBLE, WIDTH)


def _mask(indices: list[int]) -> Any:
    return ir.Constant(ir.VectorType(_INDEX, WIDTH), [ir.Constant(_INDEX, i) for i in indices])


_SWAPS = ((1, [0, 4, 2, 6], [1, 5, 3, 7]), (2, [0, 1, 4, 5], [2, 3, 6, 7]))


def _turned(builder: Any, rows: list[Any]) -> list[Any]:
    """The transpose of as many vectors as each has numbers."""
    rows = list(rows)
    for distance, low, high in _SWAPS:
        for k in range(WIDTH):
            if not k & distance:
                a, b = rows[k], rows[k + distance]
                rows[k] = builder.shuffle_vector(a, b, _mask(low))
                rows[k + distance] = builder.shuffle_vector(a, b, _mask(high))
    return rows


def _word(builder: Any, table: Any, k: int) -> Any:
    at = builder.add(table, ir.Constant(_WORD, 8 * k))
    return builder.load(builder.inttoptr(at, _WORD.as_pointer()))


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


JOB = 5
"""Numbers of a job: addresses of its input, state (8 values first), alphas (8), eight places, lane table.

Where each lane has an input of its own, the first is the address of eight addresses.
"""


def _advance(jobs: int, lanes: int, each: bool = False) -> Any:
    def typed(_typing: Any, _jobs: Any, _fours: Any) -> Any:
        def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            table, fours = args
            chains = []
            half = ir.Constant(_WORD, 8 * WIDTH)
            for job in range(jobs):
                source, state, alphas, places = (_word(builder, table, JOB * job + k) for k in range(4))
                sources = [_word(builder, source, k) for k in range(lanes)] if each else [source]
                outs = [_word(builder, places, k) for k in range(lanes)]
                for first in range(0, lanes, WIDTH):
                    alpha = builder.load(_at(builder, alphas, _VECTOR), align=8)
                    value = cgutils.alloca_once(builder, _VECTOR)  # type: ignore[no-untyped-call, unused-ignore]
                    builder.store(builder.load(_at(builder, state, _VECTOR), align=8), value)
                    part = slice(first, first + WIDTH)
                    chains.append((sources[part] if each else sources, state, outs[part], alpha, value))
                    alphas, state = builder.add(alphas, half), builder.add(state, half)
            with cgutils.for_range(builder, fours, intp=_WORD) as loop:
                offset = builder.mul(loop.index, half)
                for sources, _, outs, alpha, value in chains:
                    read = [
                        builder.load(_at(builder, builder.add(source, offset), _VECTOR), align=8) for source in sources
                    ]
                    if each:
                        inputs = _turned(builder, read)
                    else:
                        inputs = [
                            builder.shuffle_vector(read[0], ir.Constant(_VECTOR, ir.Undefined), _mask([r] * WIDTH))
                            for r in range(WIDTH)
                        ]
                    s = builder.load(value)
                    rows = []
                    for z in inputs:
                        s = builder.fadd(builder.fmul(builder.fsub(z, s), alpha), s)
                        rows.append(s)
                    builder.store(s, value)
                    for out, column in zip(outs, _turned(builder, rows), strict=True):
                        builder.store(column, _at(builder, builder.add(out, offset), _VECTOR), align=8)
            for _, state, _, _, value in chains:
                builder.store(builder.load(value), _at(builder, state, _VECTOR), align=8)
            return _context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return intrinsic(typed)


advance_2: Any = _advance(2, LANES)
"""Advance two jobs side by side by that many times four rows; ``(address of the jobs, fours)``."""
advance_3: Any = _advance(3, LANES)
"""Advance three jobs side by side."""
advance_4: Any = _advance(4, LANES)
"""Advance four jobs side by side."""
advance_each: Any = _advance(1, LANES, each=True)
"""Advance one job whose eight lanes have an input each."""
halves_1: Any = _advance(1, WIDTH)
"""Advance the first four lanes of one job, where no more are used."""
halves_2: Any = _advance(2, WIDTH)
"""Advance the first four lanes of two jobs."""
halves_3: Any = _advance(3, WIDTH)
"""Advance the first four lanes of three jobs."""
halves_each: Any = _advance(1, WIDTH, each=True)
"""Advance one job whose first four lanes have an input each."""
