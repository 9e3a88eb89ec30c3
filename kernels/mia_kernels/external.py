"""Calling a desk's own compiled function from the program: one row at a time, over copies.

A function that is registered at run time has no name that this package could have been compiled
with; the program carries its address instead. It is called once per row with the row's own inputs
and those of the rows before it, copied together. What is not in its arguments it cannot read: not
the next row, not the block's length, not another column. So it can neither look ahead nor depend on
how the rows are cut.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from mia_kernels.compile import kernel
from mia_kernels.opcodes import BLOCK

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CALLBACK_ARGUMENTS = 9
"""The callback's int64 arguments: address and sizes of x (inputs, rows), parameters, state, outputs."""

ADDRESS, INPUTS, ROWS_SEEN, PARAMETERS, OWN_STATE, GUARD, FIRST_SLOT = range(7)
"""The instruction's integers: what to call, the sizes, when not to call it, then the inputs' columns."""

CALL_ALWAYS, CALL_WHEN_PRESENT, CALL_WHEN_WHOLE = range(3)
"""The guard: always; when this row's inputs are all there; when those of all its rows are."""

MOST_INPUTS = 16
MOST_OUTPUTS = 8
MOST_PARAMETERS = 16


_tuple_of: Any = types.UniTuple


def _call_address(typing: Any, address: Any, arguments: Any) -> Any:
    signature = types.int64(types.int64, _tuple_of(types.int64, CALLBACK_ARGUMENTS))

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        function = ir.FunctionType(word, [word] * CALLBACK_ARGUMENTS)
        pointer = builder.inttoptr(args[0], function.as_pointer())
        return builder.call(pointer, [builder.extract_value(args[1], k) for k in range(CALLBACK_ARGUMENTS)])

    return signature, codegen


_call: Any = intrinsic(_call_address)


@kernel
def external(
    columns: Floats,
    integers: Integers,
    parameters: Floats,
    outputs: int,
    p: int,
    n: int,
    state: Floats,
    at: int,
    work: Floats,
) -> None:
    """Call the function at ``integers[ADDRESS]`` for rows p .. p+n; results to ``work`` (outputs, n).

    ``state[at]`` counts the rows at which the function raised: their outputs are missing. Its own
    state follows. An output that it leaves alone, or that is not finite, is missing.
    """
    count, rows, own = integers[INPUTS], integers[ROWS_SEEN], integers[OWN_STATE]
    guard = integers[GUARD]
    scratch = work[MOST_OUTPUTS:].reshape(-1)
    results = scratch[:MOST_OUTPUTS]
    given = scratch[MOST_OUTPUTS : MOST_OUTPUTS + MOST_PARAMETERS]
    x = scratch[BLOCK : BLOCK + count * rows]
    for i in range(n):
        whole = True
        for k in range(count):
            slot, first = integers[FIRST_SLOT + k], p + i - rows + 1
            for j in range(rows):
                value = columns[slot, first + j]
                x[k * rows + j] = value
                if value != value and (guard == CALL_WHEN_WHOLE or j == rows - 1):  # noqa: PLR0124 - NaN
                    whole = False
        for k in range(outputs):
            results[k] = math.nan
        if whole or guard == CALL_ALWAYS:
            for k in range(integers[PARAMETERS]):
                given[k] = parameters[k]
            failed = _call(
                integers[ADDRESS],
                (
                    x.ctypes.data,
                    count,
                    rows,
                    given.ctypes.data,
                    integers[PARAMETERS],
                    state.ctypes.data + 8 * (at + 1),
                    own,
                    results.ctypes.data,
                    outputs,
                ),
            )
            if failed != 0:
                state[at] += 1.0
                for k in range(outputs):
                    results[k] = math.nan
        for k in range(outputs):
            work[k, i] = results[k] if results[k] - results[k] == 0.0 else math.nan
