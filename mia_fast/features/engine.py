"""The feature engine: one plan, one state, one compiled function for batch and live."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mia_fast.errors import DataError, StateError
from mia_fast.features.plan import Plan, new_york
from mia_kernels import opcodes as op
from mia_kernels import program as call
from mia_kernels.streams import LINE

Floats = NDArray[np.float64]

_MAGIC = b"mia-fast feature state 3\n"
_STRETCH = 1 << 14
_STREAMED = 1 << 22
"""Results of so many bytes, more than a core's own cache holds, are written around it (measured: 0030)."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class FeatureBlock:
    """Features of some bars, column by column, as Arrow has them."""

    names: tuple[str, ...]
    values: list[Floats]
    """(n,) float64 each; what the bitmap marks as missing may be any number there."""
    valid: NDArray[np.uint8]
    """(names, bytes): bit i, least significant first, is set where row i has a value."""
    missing: NDArray[np.int64]
    """(names,): rows without a value."""


def room_size(rows: int, n: int) -> int:
    """Numbers of memory that :func:`room` takes."""
    return rows * ((n + 7) // 8 * 8) + 8


def room(rows: int, n: int, memory: Floats | None = None) -> Floats:
    """(rows, n) float64 for results, each row from the beginning of a cache line on; what it holds is undefined.

    Lines that are written whole need not be read first: 1,070 against 1,000 ns per row of the shipped features, at
    55,200 rows.

    Parameters
    ----------
    rows, n
        The shape.
    memory
        A flat array to use again, which must be large enough (:func:`room_size`): the first touch of new memory costs
        more than the features.
    """
    width = (n + 7) // 8 * 8
    memory = np.empty(room_size(rows, n)) if memory is None else memory
    first = -(memory.ctypes.data // 8) % 8
    return memory[first : first + rows * width].reshape(rows, width)[:, :n]


@functools.cache
def _zone() -> NDArray[np.int64]:
    return new_york()


class FeatureEngine:
    """Computes the features of one symbol, bar by bar or in blocks, from the same state.

    Bars must come in the order of their closes. :meth:`update` and :meth:`batch` may follow one
    another in any mixture: the values do not depend on how the rows are cut.

    Parameters
    ----------
    plan
        What to compute, from :func:`mia_fast.features.plan.make_plan`. Engines may share one: each has a state of
        its own, and nothing is planned or compiled again.

    Attributes
    ----------
    bar : numpy.ndarray
        (inputs,) float64, what :meth:`update` reads when it is given this very array: inputs that change seldom
        are written there when they do.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._memory, self._state = _memory(plan)
        self._work = _scratch()
        self._second: tuple[Floats, Floats] | None = None
        self._other: tuple[int, ThreadPoolExecutor] | None = None
        # A live bar: its close (int64 ns), then the inputs (float64). Those of the bars are packed in one go; those of
        # slower tables follow and stay until they are held anew.
        self._bar = np.zeros(1 + len(plan.inputs))
        self._bar_inputs_count = len(plan.bar_inputs)
        self._bar_time = self._bar[:1].view(np.int64)
        self.bar = self._bar[1 : 1 + self._bar_inputs_count]
        self._bar_bytes = self._bar.data
        self._pack = struct.Struct(f"=q{self._bar_inputs_count}d").pack_into
        self._held = self._bar[1 + self._bar_inputs_count :]
        self._places = {
            table: {name: plan.inputs.index(name) - self._bar_inputs_count for name in names}
            for table, names in plan.held.items()
        }
        self._bar_inputs = self._bar.ctypes.data + 8 * np.arange(1, 1 + len(plan.inputs), dtype=np.int64)
        self._bar_out = np.full((len(plan.outputs), 1), np.nan)
        self._bar_values = self._bar_out[:, 0]
        self._missing = [k for k, name in enumerate(plan.outputs) if name in plan.missing]
        self._last_known_at = -(2**63)
        zone = _zone()
        self._call = np.zeros(call.CALL_SIZE, dtype=np.int64)
        for address, size, array in (
            (call.PROGRAM, call.PROGRAM_SIZE, plan.blocks),
            (call.INTEGER_TABLE, call.INTEGER_TABLE_SIZE, plan.integers),
            (call.FLOAT_TABLE, call.FLOAT_TABLE_SIZE, plan.floats),
            (call.ZONE, call.ZONE_SIZE, zone),
            (call.STATE_TABLE, call.STATE_SIZE, self._state),
            (call.DEPTHS, call.SLOTS, plan.depths),
        ):
            self._call[address], self._call[size] = array.ctypes.data, len(array)
        self._call[call.COLUMNS_AT] = plan.columns_at
        self._call[call.WORK] = self._work.ctypes.data
        self._call[call.WRITES_PASSED] = 1
        self._live_call = self._aim(
            self._call, self._bar.ctypes.data, 1, self._bar_inputs, self._bar_out.ctypes.data, 1
        )
        self._live_call[call.PROGRAM], self._live_call[call.PROGRAM_SIZE] = plan.program.ctypes.data, len(plan.program)
        self._live_at = int(self._live_call.ctypes.data)
        self.reset()

    @staticmethod
    def _aim(
        given: NDArray[np.int64], known_at: int, count: int, inputs: NDArray[np.int64], out: int, stride: int
    ) -> NDArray[np.int64]:
        """The argument of one call: a program and state over those rows."""
        aimed = given.copy()
        aimed[call.KNOWN_AT], aimed[call.ROW_COUNT] = known_at, count
        aimed[call.INPUT_TABLE], aimed[call.OUT], aimed[call.OUT_STRIDE] = inputs.ctypes.data, out, stride
        return aimed

    @property
    def rows(self) -> int:
        """Rows seen since the start of the series."""
        return int(self._state[op.ROWS])

    @property
    def last_known_at(self) -> int:
        """The close of the last bar, ns UTC; very negative before the first."""
        return self._last_known_at

    @property
    def failures(self) -> dict[str, int]:
        """Columns of registered functions that raised, with the number of rows at which they did."""
        counts = {names: int(self._state[at]) for names, at in self.plan.externals}
        return {name: count for names, count in counts.items() if count for name in names}

    def reset(self) -> None:
        """Forget everything: the next bar is the first of a series."""
        self._state[: self.plan.columns_at] = 0.0
        self._state[self.plan.columns_at :] = np.nan
        self._state[op.POSITION] = op.HISTORY
        self._held[:] = np.nan
        self._last_known_at = -(2**63)

    def hold(self, table: str, values: Mapping[str, float] | Sequence[float] | Floats) -> None:
        """Set inputs of a slow table: they stand from the next bar on, until they are set again.

        Parameters
        ----------
        table
            One of the plan's ``held``.
        values
            All inputs of the table in the plan's order, or some of them by name; NaN where one is missing.

        Raises
        ------
        DataError
            The plan reads no such table or input, or the number of values is wrong; nothing was set.
        """
        places = self._places.get(table)
        if places is None:
            raise DataError(
                f"the plan reads no input of the table {table!r}",
                where="FeatureEngine.hold",
                hint=f"tables: {', '.join(self._places) or 'none'}; name the inputs when the plan is made",
                then="nothing was set",
            )
        if isinstance(values, Mapping):
            unknown = [name for name in values if name not in places]
            if unknown:
                raise DataError(
                    f"the plan reads no input {unknown[0]!r} of the table {table!r}",
                    where="FeatureEngine.hold",
                    hint=f"inputs: {', '.join(places)}",
                    then="nothing was set",
                )
            for name, value in values.items():
                self._held[places[name]] = value
            return
        if len(values) != len(places):
            raise DataError(
                f"the table {table!r} takes {len(places)} numbers, got {len(values)}",
                where="FeatureEngine.hold",
                hint=f"give, in this order: {', '.join(places)}",
                then="nothing was set",
            )
        first = next(iter(places.values()))
        self._held[first : first + len(places)] = values

    def held(self, table: str) -> Floats:
        """What stands of a slow table, (inputs,) in the plan's order: a view, and writing into it is holding.

        For a caller that writes at each bar; empty where the plan reads nothing of the table.
        """
        places = self._places.get(table, {})
        first = next(iter(places.values()), 0)
        return self._held[first : first + len(places)]

    def update(self, known_at: int, values: Sequence[float] | Floats) -> Floats:
        """Take one bar; return its features.

        Parameters
        ----------
        known_at
            The bar's close, ns UTC, later than the last one.
        values
            The plan's ``bar_inputs`` in their order; NaN where one is missing. What slower tables bring is set by
            :meth:`hold`. A float64 array costs the least, and :attr:`bar` itself nothing.

        Returns
        -------
        numpy.ndarray
            (outputs,) in the plan's order, NaN where missing. The array is overwritten by the next
            call: copy what must last.
        """
        if known_at <= self._last_known_at:
            raise DataError(
                f"a bar known at {known_at} ns follows one known at {self._last_known_at} ns",
                where="FeatureEngine.update",
                hint="feed bars in the order of their closes, each once",
                then="the bar was not taken; the state is unchanged",
            )
        try:
            if type(values) is np.ndarray and values.shape == self.bar.shape:
                if values is not self.bar:
                    self.bar[:] = values
                self._bar_time[0] = known_at
            else:
                self._pack(self._bar_bytes, 0, known_at, *values)
        except (struct.error, TypeError, ValueError) as error:
            raise DataError(
                f"takes an int and {self._bar_inputs_count} numbers, got {known_at!r} and {len(values)} ({error})",
                where="FeatureEngine.update",
                hint=f"give, in this order: {', '.join(self.plan.bar_inputs)}",
                then="the bar was not taken; the state is unchanged",
            ) from None
        call.run(self._live_at)
        self._last_known_at = known_at
        return self._bar_values

    def batch(
        self,
        known_at: NDArray[np.int64],
        columns: Mapping[str, Floats],
        *,
        out: Floats | None = None,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> Floats:
        """Take a block of bars; return their features.

        Parameters
        ----------
        known_at
            (n,) int64, the bars' closes in ns UTC, ascending and later than the last one taken.
        columns
            The plan's inputs by name, each (n,) float64; contiguous ones are read in place. Inputs of slow tables keep
            their last row for the bars that follow.
        out
            (outputs, n) float64 to fill, its rows contiguous; allocated if not given. Reusing it saves the first
            touch of its memory, which costs more than the features.
        threads
            1, or 2 to compute the two halves of the program side by side: the same bits and the same state after it.
        progress
            Called with (rows done, rows) after each stretch of rows; what was done stays done when it
            raises.

        Returns
        -------
        numpy.ndarray
            (outputs, n), one contiguous row per feature, NaN where missing.
        """
        out = self._memory_for(out, len(known_at), "FeatureEngine.batch")
        self._take(known_at, columns, out, threads, progress, None, "FeatureEngine.batch")
        for row in self._missing:
            out[row] = np.nan
        return out

    def block(
        self,
        known_at: NDArray[np.int64],
        columns: Mapping[str, Floats],
        *,
        out: Floats | None = None,
        share: bool = True,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> FeatureBlock:
        """Take a block of bars as :meth:`batch` does; return their features column by column, with Arrow's bitmaps.

        Cheaper than a matrix: a feature that is an input as it is stays where the input is, and the bitmaps are made
        while the values are in the cache.

        Parameters
        ----------
        known_at, columns, threads, progress
            As for :meth:`batch`.
        out
            (outputs, n) float64 from :func:`room`, or any whose rows are contiguous: memory for what is computed; rows
            of other outputs stay as they are.
        share
            Whether the column of a feature that is an input as it is may be the very array that was given; that must
            not change then as long as the result is used. Otherwise it is copied.
        """
        out = room(len(self.plan.outputs), len(known_at)) if out is None else out
        out = self._memory_for(out, len(known_at), "FeatureEngine.block")
        count, width = out.shape
        threads = self._allowed(threads, "FeatureEngine.block")
        valid = np.zeros((count, 8 * ((width + 63) // 64)), dtype=np.uint8)
        counts = np.zeros((2, count), dtype=np.int64)  # some outputs are made by both halves
        arrays = self._take(known_at, columns, out, threads, progress, (valid, counts, share), "FeatureEngine.block")
        missing = counts.max(axis=0)
        missing[self._missing] = width
        values = list(out)
        if share:
            for row, name in self.plan.passed.items():
                values[row] = arrays[name]
        return FeatureBlock(self.plan.outputs, values, valid, missing)

    def _memory_for(self, out: Floats | None, n: int, where: str) -> Floats:
        shape = len(self.plan.outputs), n
        if out is None:
            return np.empty(shape)
        in_rows = n < 2 or (out.strides[1] == 8 and out.strides[0] >= 8 * n and out.strides[0] % 8 == 0)
        if out.shape != shape or out.dtype != np.float64 or not (in_rows and out.flags.aligned and out.flags.writeable):
            raise DataError(
                f"out has shape {out.shape}, strides {out.strides} and dtype {out.dtype}",
                where=where,
                hint=f"pass a writeable float64 array of shape {shape} whose rows are contiguous",
                then="no bar was taken; the state is unchanged",
            )
        return out

    @staticmethod
    def _allowed(threads: int, where: str) -> int:
        if threads not in (1, 2):
            raise DataError(
                f"threads = {threads}",
                where=where,
                hint="a program has two halves: 1 or 2 threads",
                then="no bar was taken; the state is unchanged",
            )
        return threads

    def _take(
        self,
        known_at: NDArray[np.int64],
        columns: Mapping[str, Floats],
        out: Floats,
        threads: int,
        progress: Progress | None,
        bitmaps: tuple[NDArray[np.uint8], NDArray[np.int64], bool] | None,
        where: str,
    ) -> dict[str, Floats]:
        """Compute a block into ``out``, and into bitmaps if there are any; return the inputs as they were read."""
        n = len(known_at)
        self._allowed(threads, where)
        times = np.ascontiguousarray(known_at, dtype=np.int64)
        if n:
            _check_times(times, self._last_known_at, where)
        arrays: dict[str, Floats] = {}
        for name in self.plan.inputs:
            if name not in columns:
                raise DataError(
                    f"the input column {name!r} of the plan is missing",
                    where=where,
                    hint="make the plan from the columns that the data has",
                    then="no bar was taken; the state is unchanged",
                )
            arrays[name] = np.ascontiguousarray(columns[name], dtype=np.float64)
            if arrays[name].shape != (n,):
                raise DataError(f"column {name!r} has shape {arrays[name].shape}, expected {(n,)}", where=where)
        addresses = np.array([array.ctypes.data for array in arrays.values()], dtype=np.int64)
        held = [arrays[name] for name in self.plan.inputs[self._bar_inputs_count :]]
        stretch = max(n, 1) if progress is None else _STRETCH
        two = threads == 2 and len(self.plan.halves[1]) > 0
        calls = self._halves() if two else [self._call.copy()]
        for k, given in enumerate(calls):
            given[call.STREAMS] = out.nbytes >= _STREAMED
            if bitmaps is not None:
                valid, counts, share = bitmaps
                given[call.VALID], given[call.VALID_STRIDE] = valid.ctypes.data, valid.strides[0]
                given[call.MISSING], given[call.WRITES_PASSED] = counts[k].ctypes.data, not share
        other = self._worker() if two else None
        for first in range(0, n, stretch):
            count = min(stretch, n - first)
            ahead = 8 * first
            inputs = addresses + ahead
            aimed = [
                self._aim(given, times.ctypes.data + ahead, count, inputs, out.ctypes.data + ahead, out.strides[0] // 8)
                for given in calls
            ]
            if bitmaps is not None:
                for one in aimed:
                    one[call.VALID] += first // 8
            second: Future[None] | None = None
            try:
                if other is not None:
                    second = other.submit(call.run, aimed[1].ctypes.data)
                call.run(aimed[0].ctypes.data)
            finally:
                if second is not None:
                    _join(second)
            if second is not None:
                self._take_second()
            self._last_known_at = int(times[first + count - 1])
            for k, array in enumerate(held):
                self._held[k] = array[first + count - 1]
            if progress is not None:
                progress(first + count, n)
        return arrays

    def _worker(self) -> ThreadPoolExecutor:
        """The thread of the second half; it waits for the next block, for starting one costs as much as 500 rows."""
        if self._other is None or self._other[0] != os.getpid():  # a fork has the executor, but not its thread
            self._other = os.getpid(), ThreadPoolExecutor(max_workers=1, thread_name_prefix="features")
        return self._other[1]

    def _halves(self) -> list[NDArray[np.int64]]:
        """The calls of both halves; the second gets a memory of its own, in this engine's state."""
        if self._second is None:
            memory, _ = _memory(self.plan)
            self._second = memory, _scratch()
        memory, work = self._second
        memory[: self.plan.state_size] = self._state
        calls = [self._call.copy(), self._call.copy()]
        for given, program in zip(calls, self.plan.halves, strict=True):
            given[call.PROGRAM], given[call.PROGRAM_SIZE] = program.ctypes.data, len(program)
        calls[1][call.STATE_TABLE], calls[1][call.WORK] = memory.ctypes.data, work.ctypes.data
        return calls

    def _take_second(self) -> None:
        """Bring what only the second half advances into this engine's state."""
        assert self._second is not None
        plan = self.plan
        memory = self._second[0][: plan.state_size]
        self._state[plan.second_state] = memory[plan.second_state]
        columns = memory[plan.columns_at :].reshape(-1, op.STRIDE)
        self._columns()[plan.second_columns] = columns[plan.second_columns]

    def save(self) -> bytes:
        """The state as bytes, held inputs included: the same bytes however the rows were cut into blocks."""
        header = {"plan": self.plan.digest, "rows": self.rows, "last_known_at": self._last_known_at}
        content = json.dumps(header).encode() + b"\n" + self._canonical().tobytes() + self._held.tobytes()
        return _MAGIC + hashlib.sha256(content).digest() + content

    def restore(self, saved: bytes) -> None:
        """Go on from a saved state.

        Raises
        ------
        StateError
            The bytes are damaged, or were saved under another catalogue, input set or bar length.
        """
        header, body = _split(saved)
        if header["plan"] != self.plan.digest:
            raise StateError(
                f"the state was saved under plan {header['plan']}, this is plan {self.plan.digest}",
                where="feature state",
                hint="use the catalogue, inputs and bar length it was saved with, or start from history again",
                then="the engine keeps the state it had",
            )
        saved_state = np.frombuffer(body)
        at = self.plan.columns_at
        slots = (self.plan.state_size - at) // op.STRIDE
        size = at + slots * op.HISTORY
        canonical, held = saved_state[:size], saved_state[size:]
        if saved_state.size != size + self._held.size:
            raise StateError("the state has another size than its plan asks for", where="feature state")
        self.reset()
        self._state[:at] = canonical[:at]
        self._columns()[:, : op.HISTORY] = canonical[at:].reshape(slots, op.HISTORY)
        self._held[:] = held
        self._last_known_at = int(header["last_known_at"])

    def _columns(self) -> Floats:
        return self._state[self.plan.columns_at :].reshape(-1, op.STRIDE)

    def _canonical(self) -> Floats:
        """Header, recurrences and the last HISTORY rows, as if the next row were the first of a block."""
        position = int(self._state[op.POSITION])
        head = self._state[: self.plan.columns_at].copy()
        head[op.POSITION] = op.HISTORY
        tail = self._columns()[:, position - op.HISTORY : position].copy()
        tail[np.arange(op.HISTORY) < op.HISTORY - self.plan.depths[:, None]] = np.nan  # nobody reads it
        canonical = np.concatenate([head, tail.ravel()])
        canonical[np.isnan(canonical)] = np.nan  # one NaN, whatever its sign
        return canonical


def _join(second: Future[None]) -> None:
    """Wait for the other half to the end, also when a person stops it: it writes to memory of this call."""
    stopped: KeyboardInterrupt | None = None
    while True:
        try:
            second.result()
            break
        except KeyboardInterrupt as interrupt:
            stopped = interrupt
    if stopped is not None:
        raise stopped


def _check_times(times: NDArray[np.int64], last: int, where: str) -> None:
    if times[0] <= last or not bool(np.all(times[1:] > times[:-1])):
        bad = 0 if times[0] <= last else int(np.argmin(times[1:] > times[:-1])) + 1
        raise DataError(
            f"row {bad}: the close {int(times[bad])} ns does not follow the one before it",
            where=where,
            hint="sort the bars by time and drop duplicates",
            then="no bar was taken; the state is unchanged",
        )


def _aligned(size: int, first: int) -> Floats:
    """(size,) float64, not set, of which number ``first`` begins a cache line: what a vector reads lies in one then."""
    room = np.empty(size + LINE)
    skipped = -(room.ctypes.data // room.itemsize + first) % LINE
    return room[skipped : skipped + size]


def _scratch() -> Floats:
    return _aligned(op.SCRATCH * op.SCRATCH_STRIDE, 0).reshape(op.SCRATCH, op.SCRATCH_STRIDE)


def _memory(plan: Plan) -> tuple[Floats, Floats]:
    """Memory for a plan, with the numbers of its formulas in their columns; and the part of it that is the state."""
    memory = _aligned(plan.memory_size, plan.columns_at)
    rest = memory[plan.state_size :].reshape(-1, op.STRIDE)
    rest[: len(plan.numbers)] = plan.numbers[:, None]
    rest[len(plan.numbers) :] = np.nan
    return memory, memory[: plan.state_size]


def _split(saved: bytes) -> tuple[dict[str, Any], bytes]:
    if not saved.startswith(_MAGIC):
        raise StateError(
            "these bytes are not a feature state of this version",
            where="feature state",
            hint="restore the file from a backup, or start from history again",
        )
    start = len(_MAGIC) + hashlib.sha256().digest_size
    content = saved[start:]
    if hashlib.sha256(content).digest() != saved[len(_MAGIC) : start]:
        raise StateError(
            "the feature state is damaged: its checksum does not match",
            where="feature state",
            hint="restore the file from a backup, or start from history again",
        )
    line, _, body = content.partition(b"\n")
    return json.loads(line), body
