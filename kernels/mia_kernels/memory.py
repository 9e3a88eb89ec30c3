"""Reading caller-owned memory in place.

A frame's columns lie wherever Arrow put them. A program receives addresses, so that any number of
columns enters one compiled call without being copied into a matrix. Views made from an address own
nothing, so slicing one costs no atomic reference count: with 1,000 slices a bar that is most of a
live call (26 us a bar with counted arrays, measured when this was written).

The caller keeps the memory alive during the call; :mod:`mia_fast.features.engine` and
:mod:`mia_fast.bars` are the only ones.
"""

from __future__ import annotations

from typing import Any

import numba
from numba import types
from numba.extending import intrinsic

from mia_kernels.compile import inlined
from mia_kernels.opcodes import STRIDE

_carray: Any = numba.carray  # type: ignore[attr-defined, unused-ignore]
_CPointer: Any = types.CPointer


def _pointer(result: Any) -> Any:
    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(result))

    return codegen


def _float_pointer(typing: Any, address: Any) -> Any:
    result = _CPointer(types.float64)
    return result(types.int64), _pointer(result)


def _integer_pointer(typing: Any, address: Any) -> Any:
    result = _CPointer(types.int64)
    return result(types.int64), _pointer(result)


def _byte_pointer(typing: Any, address: Any) -> Any:
    result = _CPointer(types.int8)
    return result(types.int64), _pointer(result)


_to_floats: Any = intrinsic(_float_pointer)
_to_integers: Any = intrinsic(_integer_pointer)
_to_bytes: Any = intrinsic(_byte_pointer)


def _load(kind: Any) -> Any:
    def typed(typing: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], context.get_value_type(kind).as_pointer())
            return builder.load(pointer)

        return kind(types.int64), codegen

    return typed


def _store(kind: Any) -> Any:
    def typed(typing: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            builder.store(args[1], builder.inttoptr(args[0], args[1].type.as_pointer()))
            return context.get_dummy_value()

        return types.void(types.int64, kind), codegen

    return typed


get: Any = intrinsic(_load(types.float64))
"""The float64 at an address: for single rows, where making a view costs more than reading through it."""
get_integer: Any = intrinsic(_load(types.int64))
"""The int64 at an address."""
put: Any = intrinsic(_store(types.float64))
"""Store a float64 at an address."""
put_integer: Any = intrinsic(_store(types.int64))
"""Store an int64 at an address."""


def _address_of(typing: Any, array: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        made = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.ptrtoint(made.data, context.get_value_type(types.int64))

    return types.int64(array), codegen


address_of: Any = intrinsic(_address_of)
"""The address of an array's first number."""


@inlined
def floats_at(address: int, size: int) -> Any:
    """(size,) view of the float64 numbers at ``address``."""
    return _carray(_to_floats(address), (size,))


@inlined
def view(base: int, column: int, back: int, n: int) -> Any:
    """(n,) view of a working column from ``back`` rows before row p on; ``base`` is the address of row p of column 0.

    Loops over such views vectorise; indices into the matrix that may be negative, for all the compiler knows, do not.
    """
    return floats_at(base + 8 * (column * STRIDE - back), n)


@inlined
def matrix_at(address: int, rows: int, columns: int) -> Any:
    """(rows, columns) view of the float64 numbers at ``address``, row by row."""
    return _carray(_to_floats(address), (rows, columns))


@inlined
def integers_at(address: int, size: int) -> Any:
    """(size,) view of the int64 numbers at ``address``."""
    return _carray(_to_integers(address), (size,))


@inlined
def bytes_at(address: int, size: int) -> Any:
    """(size,) view of the int8 numbers at ``address``."""
    return _carray(_to_bytes(address), (size,))


@inlined
def table_at(address: int, rows: int, columns: int) -> Any:
    """(rows, columns) view of the int64 numbers at ``address``, row by row."""
    return _carray(_to_integers(address), (rows, columns))
