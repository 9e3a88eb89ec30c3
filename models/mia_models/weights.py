"""Looks at every weight of an ONNX file without the ``onnx`` package.

The serving path must not import ``onnx``. The file is a protocol buffer; this walks its wire format [1] along the
fields of ``onnx.proto`` [2] that hold tensors: initialisers, constants in node attributes, and sub-graphs.

[1] https://protobuf.dev/programming-guides/encoding/
[2] https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_FUNCTION_NODE = 7
_NODE_ATTRIBUTE = 5
_ATTRIBUTE_FLOAT, _ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_FLOATS = 2, 5, 6, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES = 10, 11, 22, 23
_TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_INT32, _TENSOR_NAME = 2, 4, 5, 8
_TENSOR_RAW, _TENSOR_DOUBLES, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 9, 10, 13, 14
_SPARSE_VALUES = 1
_FLOAT, _FLOAT16, _DOUBLE, _COMPLEX64, _COMPLEX128, _BFLOAT16 = 1, 10, 11, 14, 15, 16
_WHOLE_NUMBERS = frozenset({2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 21, 22})  # integers, text, booleans: always finite
_RAW_DTYPES = {_FLOAT: "<f4", _FLOAT16: "<f2", _DOUBLE: "<f8", _COMPLEX64: "<f4", _COMPLEX128: "<f8"}
_DEEPEST = 32


class UnreadableError(ValueError):
    """The bytes are not an ONNX model, or hold what this reader cannot vouch for."""


def first_fault(content: bytes) -> str | None:
    """What is wrong with the weights in ``content``, or None when all are there and finite.

    Parameters
    ----------
    content
        A serialised ``ModelProto``.

    Returns
    -------
    str or None
        For instance ``initializer 'coefficients' holds a non-finite number``.

    Raises
    ------
    UnreadableError
        The bytes are cut off, or are not a protocol buffer with an ONNX graph.
    """
    has_graph = False
    for field, value in _fields(memoryview(content)):
        if field == _MODEL_GRAPH and isinstance(value, memoryview):
            has_graph = True
            fault = _graph(value, 0)
        elif field == _MODEL_FUNCTIONS and isinstance(value, memoryview):
            fault = _nodes(value, _FUNCTION_NODE, 0)
        else:
            continue
        if fault:
            return fault
    if not has_graph:
        raise UnreadableError("there is no graph in it")
    return None


def _graph(data: memoryview, depth: int) -> str | None:
    for field, value in _fields(data):
        if not isinstance(value, memoryview):
            continue
        fault = None
        if field == _GRAPH_INITIALIZER:
            fault = _tensor(value, "initializer")
        elif field == _GRAPH_SPARSE:
            fault = _sparse(value, "sparse initializer")
        if fault:
            return fault
    return _nodes(data, _GRAPH_NODE, depth)


def _nodes(data: memoryview, node_field: int, depth: int) -> str | None:
    if depth > _DEEPEST:
        raise UnreadableError(f"sub-graphs are nested more than {_DEEPEST} deep")
    for field, node in _fields(data):
        if field != node_field or not isinstance(node, memoryview):
            continue
        for part, attribute in _fields(node):
            if part == _NODE_ATTRIBUTE and isinstance(attribute, memoryview):
                fault = _attribute(attribute, depth)
                if fault:
                    return fault
    return None


def _attribute(data: memoryview, depth: int) -> str | None:
    for field, value in _fields(data):
        fault = None
        if field in (_ATTRIBUTE_FLOAT, _ATTRIBUTE_FLOATS) and isinstance(value, memoryview):
            fault = None if _finite(value, "<f4") else "an attribute holds a non-finite number"
        elif field in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS) and isinstance(value, memoryview):
            fault = _tensor(value, "constant")
        elif field in (_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES) and isinstance(value, memoryview):
            fault = _sparse(value, "sparse constant")
        elif field in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS) and isinstance(value, memoryview):
            fault = _graph(value, depth + 1)
        if fault:
            return fault
    return None


def _sparse(data: memoryview, kind: str) -> str | None:
    for field, value in _fields(data):
        if field == _SPARSE_VALUES and isinstance(value, memoryview):
            return _tensor(value, kind)
    return None


def _tensor(data: memoryview, kind: str) -> str | None:
    name, data_type, finite = "", 0, True
    raw: memoryview | None = None
    packed16: list[int] = []
    for field, value in _fields(data):
        if isinstance(value, int):
            if field == _TENSOR_TYPE:
                data_type = value
            elif field == _TENSOR_LOCATION and value != 0:
                return f"{kind} {name!r} keeps its numbers in another file"
            elif field == _TENSOR_INT32:
                packed16.append(value)
        elif field == _TENSOR_NAME:
            name = bytes(value).decode("utf-8", "replace")
        elif field == _TENSOR_EXTERNAL:
            return f"{kind} {name!r} keeps its numbers in another file"
        elif field == _TENSOR_FLOATS:
            finite &= _finite(value, "<f4")
        elif field == _TENSOR_DOUBLES:
            finite &= _finite(value, "<f8")
        elif field == _TENSOR_RAW:
            raw = value
        elif field == _TENSOR_INT32:
            packed16.extend(_varints(value))
    if data_type in _WHOLE_NUMBERS:
        return None
    if data_type not in _RAW_DTYPES and data_type != _BFLOAT16:
        return f"{kind} {name!r} has the element type {data_type}, whose numbers cannot be checked"
    if raw is not None:
        finite &= (
            _finite_bfloat16(np.frombuffer(raw, "<u2"))
            if data_type == _BFLOAT16
            else _finite(raw, _RAW_DTYPES[data_type])
        )
    if packed16 and data_type in (_FLOAT16, _BFLOAT16):
        bits = np.array(packed16, dtype="<u2")
        finite &= _finite_bfloat16(bits) if data_type == _BFLOAT16 else bool(np.isfinite(bits.view("<f2")).all())
    return None if finite else f"{kind} {name!r} holds a non-finite number"


def _finite(data: memoryview, dtype: str) -> bool:
    if len(data) % np.dtype(dtype).itemsize:
        raise UnreadableError("a tensor is cut off")
    return bool(np.isfinite(np.frombuffer(data, dtype)).all())


def _finite_bfloat16(bits: np.ndarray[tuple[int], np.dtype[np.uint16]]) -> bool:
    return bool(((bits & 0x7F80) != 0x7F80).all())


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Each field of one message: its number, and an integer or the bytes it holds."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        wire = key & 7
        if wire == _VARINT:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire == _FIXED64:
            size = 8
        elif wire == _FIXED32:
            size = 4
        else:
            raise UnreadableError(f"wire type {wire} at byte {at}: this is not a protocol buffer of ONNX")
        if at + size > end:
            raise UnreadableError(f"cut off: {size} bytes announced, {end - at} left")
        yield key >> 3, data[at : at + size]
        at += size


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        number, at = _varint(data, at)
        yield number


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise UnreadableError("cut off, or not a protocol buffer")
