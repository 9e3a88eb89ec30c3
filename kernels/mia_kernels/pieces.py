"""Windows put together from the pieces of their tables, in vector registers.

A window of 60 rows is a piece of 32, one of 16, one of 8 and one of 4, merged one after the other (Chan, Golub and
LeVeque 1983; :mod:`mia_kernels.windows`). A loop over the rows for each merge writes five sums that the next one reads
again; here a vector of rows goes through all merges in registers, by the same operations in the same order.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WIDTH = 8
"""Rows of a step. What is read and written beyond the last row lies before the end of its column or scratch row."""
SUMS = 5
"""Of two series: sum and squared deviations of each, then the products of their deviations."""
FACTORS = 3
"""Numbers that follow the addresses of a merged piece: 1/rows so far, 1/rows of the piece, weight of the difference."""
_DOUBLE = ir.DoubleType()
_WORD = ir.IntType(64)
_INDEX = ir.IntType(32)


def _number(builder: Any, table: Any, k: int, kind: Any = _WORD) -> Any:
    at = builder.add(table, ir.Constant(_WORD, 8 * k))
    return builder.load(builder.inttoptr(at, kind.as_pointer()))


def _place(builder: Any, address: Any, offset: Any, width: int) -> Any:
    return builder.inttoptr(builder.add(address, offset), ir.VectorType(_DOUBLE, width).as_pointer())


def _everywhere(builder: Any, number: Any, width: int) -> Any:
    undefined = ir.Constant(ir.VectorType(_DOUBLE, width), ir.Undefined)
    one = builder.insert_element(undefined, number, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_INDEX, width), [0] * width))


def _join(builder: Any, have: list[Any], rows: Any, offset: Any, width: int, *, single: bool) -> list[Any]:
    """The five sums with those of the piece noted at ``rows``; a piece of a single row has no squares or products."""
    add, mul = builder.fadd, builder.fmul
    addresses = 2 if single else SUMS
    piece = [builder.load(_place(builder, _number(builder, rows, k), offset, width), align=8) for k in range(addresses)]
    grow, part, scale = (
        _everywhere(builder, _number(builder, rows, addresses + k, _DOUBLE), width) for k in range(FACTORS)
    )
    a, c = (piece[0], piece[1]) if single else (piece[0], piece[2])
    u = builder.fsub(mul(have[0], grow), a if single else mul(a, part))
    v = builder.fsub(mul(have[2], grow), c if single else mul(c, part))
    more = [mul(mul(u, u), scale), mul(mul(v, v), scale), mul(mul(u, v), scale)]
    if not single:
        more = [add(inside, between) for inside, between in zip((piece[1], piece[3], piece[4]), more, strict=True)]
    return [add(have[0], a), add(have[1], more[0]), add(have[2], c), add(have[3], more[1]), add(have[4], more[2])]


def _merge(width: int) -> Any:
    def typed(_typing: Any, _table: Any, _count: Any, _single: Any, _to: Any, _row: Any, _steps: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            table, count, single, to, row, steps = args
            vector = ir.VectorType(_DOUBLE, width)
            places = [cgutils.alloca_once(builder, vector) for _ in range(SUMS)]  # type: ignore[no-untyped-call, unused-ignore]
            rest = builder.add(table, ir.Constant(_WORD, 8 * SUMS))
            size = ir.Constant(_WORD, 8 * (SUMS + FACTORS))

            def join(rows: Any, offset: Any, *, single: bool) -> None:
                have = [builder.load(place) for place in places]
                joined = _join(builder, have, rows, offset, width, single=single)
                for place, value in zip(places, joined, strict=True):
                    builder.store(value, place)

            with cgutils.for_range(builder, steps, intp=_WORD) as step:
                offset = builder.mul(step.index, ir.Constant(_WORD, 8 * width))
                for k, place in enumerate(places):
                    first = _place(builder, _number(builder, table, k), offset, width)
                    builder.store(builder.load(first, align=8), place)
                with cgutils.for_range(builder, count, intp=_WORD) as piece:
                    join(builder.add(rest, builder.mul(piece.index, size)), offset, single=False)
                with builder.if_then(builder.icmp_signed("!=", single, ir.Constant(_WORD, 0))):
                    join(builder.add(rest, builder.mul(count, size)), offset, single=True)
                for k, place in enumerate(places):
                    out = builder.add(to, builder.mul(row, ir.Constant(_WORD, k)))
                    builder.store(builder.load(place), _place(builder, out, offset, width), align=8)
            return context.get_dummy_value()

        return types.void(*([types.int64] * 6)), codegen

    return intrinsic(typed)


merge: Any = _merge(WIDTH)
"""``(table, count, single, to, row, steps)``: the five sums of a window, for that many times WIDTH rows.

``table`` is the address of the first piece's five addresses, then of ``count`` pieces' (five addresses and FACTORS
numbers each), then, where ``single`` is not 0, of a piece of one row: two addresses and FACTORS numbers. The sums go to
five rows that lie ``row`` bytes apart from ``to`` on.
"""
merge_row: Any = _merge(1)
"""The same in steps of one row: a live bar's sums were stored singly a moment ago, and a wide load waits for them."""
