"""What kernels lower their rows into: instructions, working columns, tables and state.

A program has two halves, which two threads may run over the same bars (``docs/decisions/0030``). Everything that a
builder makes is marked with the halves that need it (:data:`BOTH`, or one of them), so that each half is a program of
its own; what both need, both compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mia_fast.features import expression as expressions
from mia_fast.features.arithmetic import Arithmetic, Places
from mia_fast.features.rows import Column
from mia_kernels import opcodes as op

CALENDAR = {
    "time": op.TIME,
    "session_date": op.SESSION,
    "minute_of_day": op.MINUTE,
    "weekday": op.WEEKDAY,
    "month_day": op.MONTH_DAY,
    "month": op.MONTH,
}
"""Columns that every program has, made from the bar's close (New York wall clock)."""

_PUT_TOGETHER = 32
_PUT_SOON = 8
"""So many values are put out together: of a bar many, for few instructions; of a block few, while they are warm."""
FIRST, SECOND, BOTH = 1, 2, 3
"""Which halves of a program need something, as bits."""


@dataclass(slots=True)
class _Instruction:
    fields: list[int]
    halves: int


@dataclass(slots=True)
class _Values:
    """From here on these values of formulas are read, each by some halves."""

    wanted: dict[int, int]


@dataclass(slots=True)
class _Marked:
    """A stretch of state that some halves need."""

    first: int
    size: int
    halves: int


@dataclass(slots=True)
class Lowered:
    """What a builder made: programs, and where their numbers and columns lie."""

    live: list[int] = field(default_factory=list)
    """The program for a bar as it comes."""
    blocks: dict[int, list[int]] = field(default_factory=dict)
    """The programs for blocks of bars, by halves."""
    columns: int = 0


class Builder:
    """Collects instructions; hands out working columns, tables and targets."""

    def __init__(
        self,
        columns: dict[str, Column],
        parsed: dict[str, expressions.Expression],
        inputs: Sequence[str],
        read: frozenset[str],
        outputs: dict[str, int],
        bar_minutes: float,
        tick_size: float,
        halves: dict[str, int],
    ) -> None:
        self.columns, self.parsed = columns, parsed
        self.outputs = outputs
        self.halves = BOTH
        self._halves_of = halves
        self.arithmetic = Arithmetic()
        self.bar_minutes, self.tick_size = bar_minutes, tick_size
        self._items: list[_Instruction | _Values] = []
        self.integers: list[int] = []
        self.floats: list[float] = []
        self.state = op.HEADER
        self.slots = op.FIRST_INPUT
        self._slot = dict(CALENDAR)
        self._input = {name: k for k, name in enumerate(inputs)}
        self._loaded: dict[int, int] = {}
        self.marked = [_Marked(0, op.HEADER, BOTH)]
        self.slot_halves = [BOTH] * self.slots
        self.depths = [op.HISTORY if slot != op.SPARE else 0 for slot in range(self.slots)]
        """How many rows before a block are read of each working column."""
        for name in inputs:
            if name in read:  # others are passed on at most: nothing looks back on them
                self._slot[name] = self._new_slots(1, 0, depth=0)
                self._loaded[self._slot[name]] = self._input[name]
        self._bounded = frozenset((*CALENDAR, *inputs))  # numbers or missing
        self._value: dict[str, int] = {}
        self._table_at: dict[tuple[int, str], _Instruction] = {}
        self._tables: dict[tuple[int, str], int] = {}
        self._longest: dict[tuple[int, str], int] = {}
        self._squares: dict[str, int] = {}
        self._copies: list[tuple[int, int, int]] = []
        self.passed: dict[int, int] = {}
        """Outputs that are inputs as they are: output row -> input."""
        self._passed_halves: dict[int, int] = {}
        self.externals: list[tuple[tuple[str, ...], int]] = []
        """Columns of registered functions, with the place of their count of failures in the state."""

    # --- what kernels ask for when they lower their rows ----------------------------------------

    def give_slot(self, name: str) -> None:
        """Keep ``name`` in a working column, because others read it."""
        if name not in self._slot:
            self._slot[name] = self._new_slots(1, self._halves_of[name], depth=0)

    def halves_of(self, name: str) -> int:
        """Which halves need a column."""
        return self._halves_of[name]

    @property
    def inputs(self) -> frozenset[str]:
        """The calendar and the inputs: there from the start."""
        return self._bounded

    @property
    def held(self) -> frozenset[str]:
        """The columns that are kept in working columns."""
        return frozenset(self._slot)

    def ask_table(self, code: int, source: str, window: int) -> None:
        """Say how long a window the table over ``source`` must serve, before it is first used."""
        key = (code, source)
        self._longest[key] = max(self._longest.get(key, 0), window)

    def _levels(self, key: tuple[int, str]) -> int:
        return self._longest[key].bit_length() - 1

    def ask_squares(self, source: str, window: int) -> None:
        """Say the same of the squared deviations in the table of moments over ``source``: sums alone need none."""
        self._squares[source] = max(self._squares.get(source, 0), window.bit_length() - 1)

    def slot(self, name: str) -> int:
        """The working column that holds ``name``, for the halves that are being lowered."""
        slot = self._slot[name]
        self.depths[slot] = op.HISTORY
        if slot in self._loaded:
            self.slot_halves[slot] |= self.halves
        return slot

    def private_slot(self) -> int:
        """A working column for a kernel's own use."""
        return self._new_slots(1, self.halves)

    def _new_slots(self, count: int, halves: int, depth: int = op.HISTORY) -> int:
        self.slots += count
        self.depths += [depth] * count
        self.slot_halves += [halves] * count
        return self.slots - count

    def target(self, name: str) -> int:
        """Where a result goes: its working column if others read it, else the output itself."""
        if name in self._slot:
            return -1 - self._slot[name]
        return self.outputs[name]

    def rows_in(self, minutes: int) -> int:
        """How many bars a time window spans when none is missing."""
        return round(minutes / self.bar_minutes)

    # --- formulas ---------------------------------------------------------------------------------

    def define(self, row: Column) -> None:
        """Add a formula, or a column as it is, to the graph."""
        if row.kernel == "formula":
            value = self.arithmetic.formula(self.parsed[row.name], self._now, self._back, self._ago)
        else:
            value = self.arithmetic.checked(self._now(row.inputs[0]))
        self._value[row.name] = value
        if row.name in self._slot:
            if value not in self.arithmetic.home:
                if not self.arithmetic.nodes[value].operands:  # a column or a number: it takes an operation to hold it
                    value = self._value[row.name] = self.arithmetic.operation(op.CHECK, value)
                self.arithmetic.home.setdefault(value, self._slot[row.name])
            else:
                first = self.arithmetic.home[value]
                self.slot_halves[first] |= self._halves_of[row.name]
            self._slot[row.name] = self.arithmetic.home[value]

    def _now(self, name: str) -> int:
        if name in self._value:
            return self._value[name]
        return self.arithmetic.column(self._slot[name], bounded=name in self._bounded)

    def _back(self, name: str, bars: int) -> int:
        value = self._value.get(name, -1)
        bounded = name in self._bounded or value in self.arithmetic.bounded
        self.depths[self._slot[name]] = max(self.depths[self._slot[name]], bars)
        return self.arithmetic.column(self._slot[name], back=bars, after=value, bounded=bounded)

    def _ago(self, name: str, minutes: float) -> int:
        value = self._value.get(name, -1)
        bounded = name in self._bounded or value in self.arithmetic.bounded
        self.depths[self._slot[name]] = op.HISTORY
        return self.arithmetic.ago(self._slot[name], self.rows_in(int(minutes)), 60.0 * minutes, value, bounded)

    def need(self, names: dict[str, int]) -> None:
        """Say which formulas kernels are about to read, each with its halves."""
        wanted: dict[int, int] = {}
        for name, halves in names.items():
            value = self._value[name]
            wanted[value] = wanted.get(value, 0) | halves
        self._items.append(_Values(wanted))

    def table(self, code: int, source: str) -> int:
        """First column of the window table over ``source``; filled once, by whoever needs it first."""
        key = (code, source)
        if key not in self._tables:
            levels = self._levels(key)
            width = 2 if code == op.MOMENT_TABLE else 1
            self._tables[key] = self._new_slots(levels * width, self.halves, depth=self._longest[key])
            if levels:
                squares = 0
                if code == op.MOMENT_TABLE:
                    squares = self._squares.get(source, 0)
                    for level in range(squares, levels):  # never filled
                        self.depths[self._tables[key] + 2 * level + 1] = 0
                self.emit(code, a=self.slot(source), b=self._tables[key], c=squares, count=levels)
                self._table_at[key] = self._last_instruction()
        self._share(key)
        return self._tables[key]

    def _last_instruction(self) -> _Instruction:
        last = self._items[-1]
        assert isinstance(last, _Instruction)
        return last

    def _share(self, key: tuple[int, str]) -> None:
        """A table that another half asks for as well is filled by both."""
        if key not in self._table_at:
            return
        made = self._table_at[key]
        if made.halves | self.halves != made.halves:
            made.halves |= self.halves
            first, width = self._tables[key], 2 if key[0] == op.MOMENT_TABLE else 1
            for slot in range(first, first + width * self._levels(key)):
                self.slot_halves[slot] |= self.halves
            for source in key[1].split():
                self.slot(source)
            # What the table is made from must be there in the other half as early as the table itself.
            formulas = {self._value[source]: self.halves for source in key[1].split() if source in self._value}
            if formulas:
                self._items.insert(next(k for k, item in enumerate(self._items) if item is made), _Values(formulas))

    def pair_table(self, x: str, y: str) -> int:
        """First column of the co-moment table over ``x`` and ``y``, beside the moment tables of both."""
        key = (op.COMOMENT_TABLE, f"{x} {y}")
        if key not in self._tables:
            levels = self._levels(key)
            x_table, y_table = self.table(op.MOMENT_TABLE, x), self.table(op.MOMENT_TABLE, y)
            self._tables[key] = self._new_slots(levels, self.halves, depth=self._longest[key])
            self.emit(
                op.COMOMENT_TABLE,
                a=self.slot(x),
                b=self.slot(y),
                c=x_table,
                d=y_table,
                count=levels,
                integers=[self._tables[key]],
            )
            self._table_at[key] = self._last_instruction()
        self._share(key)
        return self._tables[key]

    def copy(self, name: str, output: str) -> None:
        """Put a column out under the name ``output``, when all is computed; an input at once."""
        row, halves = self.outputs[output], self._halves_of[output]
        if name in self._input:
            self.passed[row], self._passed_halves[row] = self._input[name], halves
        else:
            self._copies.append((self._now(name), row, halves))

    def emit(
        self,
        code: int,
        *,
        a: int = 0,
        b: int = 0,
        c: int = 0,
        d: int = 0,
        count: int = 1,
        state: int = 0,
        integers: Sequence[int] = (),
        floats: Sequence[float] = (),
        targets: Sequence[int] = (),
    ) -> None:
        """Append one instruction with its numbers, reserving ``state`` floats of state."""
        fields = self._fields(code, integers, floats, targets)
        fields[op.SOURCE_A : op.STATE + 1] = [a, b, c, d, count, self.state]
        if state:
            self.marked.append(_Marked(self.state, state, self.halves))
            self.state += state
        self._items.append(_Instruction(fields, self.halves))

    def _fields(self, code: int, integers: Sequence[int], floats: Sequence[float], targets: Sequence[int]) -> list[int]:
        at = len(self.integers), len(self.floats), len(self.integers) + len(integers)
        self.integers += [*integers, *targets]
        self.floats += floats
        return [code, 0, 0, 0, 0, 0, 0, *at]

    @property
    def layout(self) -> str:
        """What lies where in a state: one that was saved under another layout must not be restored into this one.

        No addresses of registered functions, which differ from process to process, and nothing of programs that
        only orders operations.
        """
        marked = [(stretch.first, stretch.size) for stretch in self.marked]
        emitted = [item.fields[: op.INTEGERS] for item in self._items if isinstance(item, _Instruction)]
        return repr((sorted(self._slot.items()), sorted(self._tables.items()), self.depths, marked, emitted))

    # --- programs -----------------------------------------------------------------------------------

    def finish(self) -> Lowered:
        """The program for blocks, whole and its halves, and that for a bar: the same operations in other orders."""
        made = Lowered()
        for halves in (FIRST, SECOND, BOTH):  # the halves say what they load, the whole loads what either does
            made.blocks[halves], columns = self._program(halves, blocks=True)
            made.columns = max(made.columns, columns)
        made.live, columns = self._program(BOTH, blocks=False)
        made.columns = max(made.columns, columns)
        return made

    def _program(self, halves: int, *, blocks: bool) -> tuple[list[int], int]:
        graph = self.arithmetic
        operands = {o for node in graph.nodes for o in node.operands}
        puts: dict[int, list[int]] = {}
        for copied, output, needed in self._copies:
            node = graph.nodes[copied]
            bare = node.code == op.CHECK and copied not in graph.home and copied not in operands
            putting = FIRST if needed == BOTH else needed  # what both halves compute, one puts out
            if putting & halves:  # what is put out is checked there
                puts.setdefault(node.operands[0] if bare else copied, []).append(output)
        done: set[int] = set()
        steps: list[_Instruction | tuple[int, list[int]]] = []
        ordered = graph.in_turn if blocks else graph.groups
        for item in self._items:
            if isinstance(item, _Values):
                steps += ordered([v for v, needed in item.wanted.items() if needed & halves], done)
            elif item.halves & halves:
                steps.append(item)
        steps += ordered(puts, done)
        for values in (list(puts), *(step[1] for step in steps if isinstance(step, tuple))):
            self._load_for(values, halves)
        groups = [step[1] for step in steps if isinstance(step, tuple)]
        # Values go out some at a time, soon after they are made: their columns are warm then, and free again.
        put_after: dict[int, int] = {}
        waiting: list[int] = []
        for k, values in enumerate(groups):
            waiting += [v for v in values if v in puts]
            if len(waiting) >= (_PUT_SOON if blocks else _PUT_TOGETHER):
                put_after |= dict.fromkeys(waiting, k)
                waiting = []
        put_after |= dict.fromkeys(waiting, len(groups) - 1)
        going: dict[int, list[int]] = {}
        for v, k in put_after.items():
            going.setdefault(k, []).append(v)

        places = Places(graph, self.slots)
        places.assign(groups, put_after)
        program = self._write_inputs(halves)
        run: list[int] = []
        numbered = iter(range(len(groups)))
        for step in steps:
            if isinstance(step, _Instruction):
                program += self._write_run(run, places) + step.fields
                continue
            code, values = step
            if blocks and code != op.AGO:
                run += values
            else:
                program += self._write_run(run, places) + self._write_group(values, places)
            put = going.get(next(numbered))
            if put:
                program += self._write_run(run, places) + self._write_puts(put, puts, places)
        program += self._write_run(run, places)
        program += self._write_puts([v for v in puts if v not in put_after], puts, places)
        return program, places.columns

    def _load_for(self, values: list[int], halves: int) -> None:
        """Mark the inputs that these values of a half are, or are made from."""
        if halves == BOTH:
            return
        nodes = self.arithmetic.nodes
        for value in values:
            for node in (nodes[value], *(nodes[o] for o in nodes[value].operands)):
                if node.slot in self._loaded:
                    self.slot_halves[node.slot] |= halves

    def _write_inputs(self, halves: int) -> list[int]:
        """The instructions that load inputs, and pass them on."""
        program = []
        loads = [n for slot, k in self._loaded.items() if self.slot_halves[slot] & halves for n in (slot, k)]
        passes = [n for row, k in self.passed.items() if self._passed_halves[row] & halves for n in (row, k)]
        for code, table in ((op.LOAD, loads), (op.PASS, passes)):
            if table:
                fields = self._fields(code, table, (), ())
                fields[op.COUNT] = len(table) // 2
                program += fields
        return program

    def _write_puts(self, values: list[int], puts: dict[int, list[int]], places: Places) -> list[int]:
        """The instruction that puts values out, each to its rows."""
        named = [n for v in values for output in puts[v] for n in (output, places.of(v))]
        if not named:
            return []
        fields = self._fields(op.PUT, named, (), ())
        fields[op.COUNT] = len(named) // 2
        return fields

    def _write_run(self, run: list[int], places: Places) -> list[int]:
        """The instruction of operations of any kind, one after the other; it takes them out of ``run``."""
        if not run:
            return []
        integers: list[int] = []
        for value in run:
            integers += [self.arithmetic.nodes[value].code, *self._named(value, places)]
        fields = self._fields(op.OPERATIONS, integers, (), ())
        fields[op.COUNT] = len(run)
        run.clear()
        return fields

    def _named(self, value: int, places: Places) -> list[int]:
        """The places that an operation names: its result and three operands, where it has fewer the first again."""
        named = [places.of(value), *map(places.of, self.arithmetic.nodes[value].operands)]
        return named + [named[1]] * (op.OPERATION_FIELDS - len(named))

    def _write_group(self, values: list[int], places: Places) -> list[int]:
        """The instruction of a group."""
        nodes = [self.arithmetic.nodes[v] for v in values]
        integers: list[int] = []
        numbers: list[float] = []
        for value, node in zip(values, nodes, strict=True):
            if node.code == op.AGO:
                integers += [node.back, 8 * op.STRIDE * node.slot, places.of(value)]
                numbers.append(node.number)
            else:
                integers += self._named(value, places)
        code = op.AGO if nodes[0].code == op.AGO else op.ARITHMETIC
        fields = self._fields(code, integers, numbers, ())
        fields[op.SOURCE_A], fields[op.COUNT] = nodes[0].code, len(nodes)
        return fields
