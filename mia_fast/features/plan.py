"""From a catalogue and the columns at hand to a program for the compiled engine.

The plan says, before any work, which features can be computed, which are null for want of which
column, and what each warm-up is; it checks the warm-ups that the catalogue declares.
"""

from __future__ import annotations

import datetime as dt
import difflib
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from mia_fast.errors import ConfigError
from mia_fast.features import expression as expressions
from mia_fast.features.builder import BOTH, CALENDAR, FIRST, SECOND, Builder
from mia_fast.features.catalogue import TABLES, Catalogue
from mia_fast.features.kernels import HOLDS, KEEPS, POINTWISE, POLICIES, SKIPS, Kernel, check, unfit
from mia_fast.features.rows import Column, Warmup
from mia_kernels import opcodes as op

FILE = "feature_sets.yaml"


@dataclass(frozen=True, slots=True)
class Plan:
    """A program and what is known of it."""

    features: tuple[str, ...]
    inputs: tuple[str, ...]
    """The input columns that are read, by table, the bars' first."""
    held: dict[str, tuple[str, ...]]
    """Of :attr:`inputs`, those of the slow tables, which stand until they are held anew: table -> names in order."""
    missing: dict[str, tuple[str, ...]]
    """Features and auxiliary columns that stay null, each with the input columns (or the length of bars) it lacks."""
    warmups: dict[str, Warmup]
    policies: dict[str, str]
    """What becomes of a missing input, by column, see :func:`derived_missing`."""
    auxiliary: tuple[str, ...]
    """Auxiliary columns that were asked for; they follow the features in the output."""
    passed: dict[int, str]
    """Outputs that are inputs as they are: row of the output -> input."""
    program: NDArray[np.int64]
    """The instructions for a bar as it comes."""
    blocks: NDArray[np.int64]
    """The same for blocks of bars: other orders of the same operations, so the same bits and the same state."""
    integers: NDArray[np.int64]
    floats: NDArray[np.float64]
    halves: tuple[NDArray[np.int64], NDArray[np.int64]]
    """The program for blocks as two, for two threads; together they compute what it computes."""
    second_state: NDArray[np.int64]
    second_columns: NDArray[np.int64]
    """What only the second half advances: numbers of the state, and working columns."""
    depths: NDArray[np.int64]
    """Rows before the next that are read of each working column: what older rows hold is not part of the state."""
    state_size: int
    """Numbers of the state: header, recurrences, and working columns with their history."""
    memory_size: int
    """Numbers of the state with the columns after it that are not saved: numbers of formulas, then scratch."""
    numbers: NDArray[np.float64]
    """What the first of those columns hold, one number each."""
    columns_at: int
    bar_minutes: float
    digest: str
    externals: tuple[tuple[tuple[str, ...], int], ...] = ()
    """Columns of registered functions, and where in the state the count of their failures stands."""

    @property
    def bar_inputs(self) -> tuple[str, ...]:
        """Of :attr:`inputs`, those that each bar brings; they come first."""
        return self.inputs[: len(self.inputs) - sum(map(len, self.held.values()))]

    @property
    def null_features(self) -> dict[str, tuple[str, ...]]:
        """Of :attr:`missing`, the features."""
        return {name: lacks for name, lacks in self.missing.items() if name in self.features}

    @property
    def outputs(self) -> tuple[str, ...]:
        """The rows of the output matrix."""
        return self.features + self.auxiliary


def make_plan(
    catalogue: Catalogue,
    available: Collection[str],
    *,
    bar_minutes: float,
    tick_size: float,
    auxiliary: Sequence[str] = (),
) -> Plan:
    """Plan the catalogue over the input columns that are ``available``.

    Parameters
    ----------
    catalogue
        The features; each appears in the plan's output, null where its inputs are missing.
    available
        Names of the input columns that the data brings.
    bar_minutes
        Length of a bar in minutes; 0 of volume bars, over which rows that count minutes in bars are null.
    tick_size
        Smallest price step of the instrument, index points.
    auxiliary
        Auxiliary, input or calendar columns to put out after the features.

    Raises
    ------
    ConfigError
        A row that does not fit its kernel, names an unknown column, depends on itself, or declares a
        warm-up other than the derived one; or an auxiliary column is a feature or asked for twice.
    """
    columns: dict[str, Column] = {}
    kernels: dict[str, Kernel] = {}
    parsed: dict[str, expressions.Expression] = {}
    inputs = {c.name for c in catalogue.inputs}
    raw_copies: dict[str, str] = {}
    for declared in (*catalogue.auxiliary, *catalogue.features):
        column: Column = declared
        where = f"{FILE}, {column.name}"
        kernels[column.name] = check(column, where, catalogue.own)
        if column.expression is not None:
            parsed[column.name] = expressions.parse(column.expression, where)
            column = column.model_copy(update={"inputs": parsed[column.name].columns})
        if column.name in inputs:
            raw_copies[column.name] = column.inputs[0]
        else:
            columns[column.name] = column
    known = inputs | set(CALENDAR) | set(columns)
    for column in columns.values():
        for name in column.inputs:
            if name not in known:
                raise _unknown(name, column.name, known)
    for k, name in enumerate(auxiliary):
        if name in catalogue.names or name in auxiliary[:k]:
            raise ConfigError(
                f"the column {name!r} would be put out twice",
                where="auxiliary",
                hint="ask once for each column, and not for features: they are put out anyway",
            )
        if name in inputs or name in CALENDAR:
            raw_copies[name] = name
        elif name not in columns:
            raise _unknown(name, "the auxiliary columns asked for", inputs | set(CALENDAR) | set(columns))
    order = _sorted(columns)
    _refuse_twins(columns)

    lacking: dict[str, tuple[str, ...]] = {name: (name,) for name in inputs if name not in available}
    warmups: dict[str, Warmup] = dict.fromkeys(inputs | set(CALENDAR), Warmup())
    policies: dict[str, str] = dict.fromkeys(inputs | set(CALENDAR), POINTWISE)
    for name in order:
        column = columns[name]
        lacks = tuple(sorted({lack for source in column.inputs for lack in lacking.get(source, ())}))
        lacks = lacks or _unfit_bars(column, kernels[name], parsed.get(name), bar_minutes)
        if lacks:
            lacking[name] = lacks
        counts_minutes = bar_minutes == 0.0 and name in lacking
        warmups[name] = (
            Warmup() if counts_minutes else _warmup(column, kernels[name], parsed.get(name), warmups, bar_minutes)
        )
        policies[name] = derived_missing(kernels[name].missing, [policies[source] for source in column.inputs])
    for feature in catalogue.features:
        if bar_minutes == 1.0 and feature.warmup != warmups[feature.name]:
            raise ConfigError(
                f"declares a warm-up of {feature.warmup}, but its kernel and inputs give {warmups[feature.name]}",
                where=f"{FILE}, {feature.name}",
                hint=f"write warmup: {_yaml(warmups[feature.name])}",
            )
        if feature.missing is not None and POLICIES[feature.missing] != policies[feature.name]:
            word = next(word for word, policy in POLICIES.items() if policy == policies[feature.name])
            raise ConfigError(
                f"declares missing: {feature.missing}, but its kernel and inputs give {word}",
                where=f"{FILE}, {feature.name}",
                hint=f"write missing: {word} ({policies[feature.name]})",
            )

    wanted = [name for name in (*catalogue.names, *auxiliary) if name not in lacking]
    renamed = {name: columns[name].inputs[0] for name in wanted if _renames(columns.get(name), inputs)}
    raw_copies |= renamed
    needed = _needed(columns, [name for name in wanted if name not in renamed])
    for name in renamed.keys() - needed:  # nothing reads it under its new name: it is the input
        del columns[name]
    computed_from = frozenset(source for name in needed for source in columns[name].inputs)
    read = computed_from | {raw_copies.get(name) for name in wanted}
    tables = {
        table: tuple(c.name for c in catalogue.inputs if c.table == table and c.name in available and c.name in read)
        for table in TABLES
    }
    present = [name for names in tables.values() for name in names]
    outputs = {name: k for k, name in enumerate((*catalogue.names, *auxiliary))}
    halves = _halves(columns, parsed, wanted)
    builder = Builder(columns, parsed, present, computed_from, outputs, bar_minutes, tick_size, halves)
    _lower(builder, kernels, order, wanted, raw_copies)
    made = builder.finish()
    second = [stretch for stretch in builder.marked if stretch.halves == SECOND]
    identity = f"{catalogue.digest}|{present}|{auxiliary}|{bar_minutes}|{tick_size}|{builder.layout}"
    return Plan(
        features=catalogue.names,
        inputs=tuple(present),
        held={table: names for table, names in tables.items() if table != "bars" and names},
        missing={name: lacking[name] for name in (*catalogue.names, *auxiliary) if name in lacking},
        warmups={name: warmups[name] for name in (*catalogue.names, *auxiliary)},
        policies={name: policies[name] for name in (*catalogue.names, *auxiliary)},
        auxiliary=tuple(auxiliary),
        passed={row: present[k] for row, k in builder.passed.items()},
        program=_table(made.live),
        blocks=_table(made.blocks[BOTH]),
        halves=(_table(made.blocks[FIRST]), _table(made.blocks[SECOND])),
        second_state=np.array([k for m in second for k in range(m.first, m.first + m.size)], dtype=np.int64),
        second_columns=np.array([k for k, half in enumerate(builder.slot_halves) if half == SECOND], dtype=np.int64),
        depths=np.array(builder.depths, dtype=np.int64),
        integers=np.array(builder.integers or [0], dtype=np.int64),
        floats=np.array(builder.floats or [0.0], dtype=np.float64),
        state_size=builder.state + builder.slots * op.STRIDE,
        memory_size=builder.state + made.columns * op.STRIDE,
        numbers=np.array(builder.arithmetic.numbers, dtype=np.float64),
        columns_at=builder.state,
        bar_minutes=bar_minutes,
        digest=hashlib.sha256(identity.encode()).hexdigest()[:16],
        externals=tuple(builder.externals),
    )


def rests_on(catalogue: Catalogue) -> dict[str, frozenset[str]]:
    """What each feature and auxiliary column is made from in the end: inputs and columns of the calendar."""
    columns = {column.name: column for column in (*catalogue.auxiliary, *catalogue.features)}
    inputs = {column.name for column in catalogue.inputs}
    found: dict[str, frozenset[str]] = {}

    def of(name: str) -> frozenset[str]:
        column = columns.get(name)
        if column is None or name in inputs:
            return frozenset((name,))
        if name not in found:
            parsed = None if column.expression is None else expressions.parse(column.expression, name)
            found[name] = frozenset().union(*map(of, column.inputs if parsed is None else parsed.columns))
        return found[name]

    return {name: of(name) for name in columns}


def _table(program: list[int]) -> NDArray[np.int64]:
    return np.array(program, dtype=np.int64).reshape(-1, op.FIELDS)


def _lower(
    builder: Builder,
    kernels: dict[str, Kernel],
    order: Sequence[str],
    wanted: Sequence[str],
    raw_copies: dict[str, str],
) -> None:
    """Emit everything that ``wanted`` needs, rows of one kernel and inputs together.

    Formulas only enter the builder's graph; they are computed when a kernel reads them, or at the end.
    """
    columns = builder.columns
    needed = _needed(columns, wanted)
    rows = [columns[name] for name in order if name in needed]
    for column in rows:
        for source in column.inputs:
            if source in columns and not (_pointwise(column) and _pointwise(columns[source])):
                builder.give_slot(source)
        if column.kernel == "formula":
            for token in builder.parsed[column.name].tokens:
                if token.column in columns and token.code in (op.PUSH_LAG, op.PUSH_AGO):
                    builder.give_slot(token.column)
        _ask_tables(builder, column)
    defined = set(builder.inputs)
    while rows:
        formulas = [row for row in rows if _pointwise(row)]
        for row in formulas:  # in topological order: one pass finds all that can be defined
            if defined.issuperset(row.inputs):
                builder.define(row)
                defined.add(row.name)
        ready = [row for row in rows if not _pointwise(row) and defined.issuperset(row.inputs)]
        groups: dict[tuple[Any, ...], list[Column]] = {}
        for row in ready:
            average = row.kernel in ("ema", "wilder")
            key = ("average", ()) if average else (row.kernel, row.inputs)
            groups.setdefault(key, []).append(row)
        parts = [(halves, part) for group in groups.values() for halves, part in _parts(builder, group).items()]
        read: dict[str, int] = {}
        for halves, part in parts:
            for row in part:
                for source in row.inputs:
                    if source in columns and _pointwise(columns[source]):
                        read[source] = read.get(source, 0) | halves
        if read:
            builder.need(read)
        for halves, part in parts:
            builder.halves = halves
            kernels[part[0].name].lower(builder, part)
        builder.halves = BOTH
        defined |= {row.name for row in ready}
        rows = [row for row in rows if row.name not in defined]
    for name in wanted:
        if name in raw_copies:
            builder.copy(raw_copies[name], name)
        elif name in builder.held or _pointwise(columns[name]):
            builder.copy(name, name)


_WORTH_PARTING = 16


def _parts(builder: Builder, group: list[Column]) -> dict[int, list[Column]]:
    """Rows that one instruction computes, by the halves that need them.

    Few rows are not worth parting, if whatever they read is there in every half that would compute them all.
    """
    halves = 0
    for row in group:
        halves |= builder.halves_of(row.name)
    read = {source for row in group for source in row.inputs if source in builder.columns}
    there = all(halves & ~builder.halves_of(source) == 0 for source in read)
    if group[0].kernel in _WHOLE or (len(group) < _WORTH_PARTING and there):
        return {halves: group}
    parts: dict[int, list[Column]] = {}
    for row in group:
        parts.setdefault(builder.halves_of(row.name), []).append(row)
    return parts


_WHOLE = ("profile", "session_variance")
"""Kernels that compute all their outputs at once."""


def _renames(column: Column | None, inputs: Collection[str]) -> bool:
    """An input under another name."""
    return column is not None and column.kernel == "column" and column.inputs[0] in inputs


def _pointwise(column: Column) -> bool:
    """A formula, or a column as it is: part of the builder's graph."""
    return column.kernel in ("formula", "column")


_ONCE = {"profile": 28_000, "profile_window": 30_000, "adx": 6_000, "macd": 4_000, "rsi": 3_000}
"""Picoseconds per bar that a kernel takes for its inputs, however many rows it gives (measured: 0030).

Whole numbers: sums of sets must not depend on their order. The layout of a state follows from them, so another process
must find the same."""
_EACH = {"correlation": 5_000, "stochastic": 1_500, "time_deviation": 2_000}
_OTHERS, _TABLE, _TOKEN, _OUTPUT = 1_000, 1_500, 120, 600
"""... for each row of a kernel; rows of other kernels; tables of a windowed column; a token of a formula; an output."""


def _halves(
    columns: dict[str, Column], parsed: dict[str, expressions.Expression], wanted: Sequence[str]
) -> dict[str, int]:
    """Which half of the program needs each column, so that both halves cost about the same.

    Outputs of one kernel over the same inputs stay together. The dearest go first, each to the half that then
    costs less, unless that repeats too much: a column that both need is computed by both.
    """
    units: dict[tuple[Any, ...], list[str]] = {}
    for name in wanted:
        row = columns.get(name)
        key = ("raw", name) if row is None or _pointwise(row) else (row.kernel, row.inputs)
        units.setdefault(key, []).append(name)
    needs = {key: _needed(columns, names) for key, names in units.items()}
    everything = set().union(*needs.values())
    for needed in needs.values():  # a kernel that computes all its outputs at once is needed whole
        whole = {(columns[name].kernel, columns[name].inputs) for name in needed if columns[name].kernel in _WHOLE}
        needed |= {name for name in everything if (columns[name].kernel, columns[name].inputs) in whole}

    def once(names: Collection[str]) -> set[tuple[str, tuple[str, ...]]]:
        """What is paid for once: kernels over their inputs, and tables."""
        rows = [columns[name] for name in names]
        tables = {("table", row.inputs[:1]) for row in rows if row.kernel in ("window", "time_deviation")}
        return tables | {(row.kernel, row.inputs) for row in rows if row.kernel in _ONCE}

    def cost(names: Collection[str], beside: Collection[str] = ()) -> int:
        """Of these columns, where those ``beside`` are computed already."""
        total = sum(_ONCE.get(kernel, _TABLE) for kernel, _ in once(names) - once(beside))
        for name in names:
            row = columns[name]
            formula = row.kernel == "formula"
            total += _TOKEN * len(parsed[name].tokens) if formula else _EACH.get(row.kernel, _OTHERS)
        return total

    held: dict[int, set[str]] = {FIRST: set(), SECOND: set()}
    load = {FIRST: 0, SECOND: 0}
    halves: dict[str, int] = dict.fromkeys(wanted, 0)
    for key in sorted(units, key=lambda k: (-cost(needs[k]), str(k))):
        new = {half: needs[key] - held[half] for half in held}
        after = {half: load[half] + cost(new[half], held[half]) + _OUTPUT * len(units[key]) for half in held}
        twice = {half: cost(new[half] & held[BOTH - half], held[half]) for half in held}  # work done a second time
        half = min(held, key=lambda h: after[h] + twice[h])
        load[half] = after[half]
        held[half] |= needs[key]
        for name in units[key]:
            halves[name] |= half
    for half, names in held.items():
        for name in names:
            halves[name] = halves.get(name, 0) | half
    return halves


def _needed(columns: dict[str, Column], wanted: Sequence[str]) -> set[str]:
    needed: set[str] = set()
    stack = [name for name in wanted if name in columns]
    while stack:
        name = stack.pop()
        if name not in needed:
            needed.add(name)
            stack += [source for source in columns[name].inputs if source in columns]
    return needed


def _ask_tables(builder: Builder, row: Column) -> None:
    """Which window tables a row will use, and for how long a window."""
    length = int(row.params.get("period", 0))
    if row.kernel == "window":
        builder.ask_table(op.MOMENT_TABLE, row.inputs[0], length)
        if row.output in ("deviation", "sample_deviation"):
            builder.ask_squares(row.inputs[0], length)
    elif row.kernel == "time_deviation":
        rows = builder.rows_in(int(row.params["minutes"]))
        builder.ask_table(op.MOMENT_TABLE, row.inputs[0], rows)
        builder.ask_squares(row.inputs[0], rows)
    elif row.kernel == "highest":
        builder.ask_table(op.MAXIMUM_TABLE, row.inputs[0], length)
    elif row.kernel == "lowest":
        builder.ask_table(op.MINIMUM_TABLE, row.inputs[0], length)
    elif row.kernel == "correlation":
        x, y = row.inputs
        for code, source in ((op.MOMENT_TABLE, x), (op.MOMENT_TABLE, y), (op.COMOMENT_TABLE, f"{x} {y}")):
            builder.ask_table(code, source, length)
        builder.ask_squares(x, length)
        builder.ask_squares(y, length)
    elif row.kernel == "stochastic":
        builder.ask_table(op.MAXIMUM_TABLE, row.inputs[0], length)
        builder.ask_table(op.MINIMUM_TABLE, row.inputs[1], length)


def _sorted(columns: dict[str, Column]) -> list[str]:
    """Topological order; a cycle is an error that names its members."""
    order: list[str] = []
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if state.get(name) == 2:
            return
        if state.get(name) == 1:
            cycle = (*path[path.index(name) :], name)
            raise ConfigError(
                f"columns depend on themselves: {' -> '.join(cycle)}",
                where=FILE,
                hint="break the circle; a column may read only what is computed before it",
            )
        state[name] = 1
        for source in columns[name].inputs:
            if source in columns:
                visit(source, (*path, name))
        state[name] = 2
        order.append(name)

    for name in columns:
        visit(name, ())
    return order


def _warmup(
    column: Column,
    kernel: Kernel,
    expression: expressions.Expression | None,
    warmups: dict[str, Warmup],
    bar_minutes: float,
) -> Warmup:
    if expression is None:
        before = [warmups[source] for source in column.inputs]
    else:
        before = [
            Warmup(
                rows=warmups[token.column].rows
                + token.bars
                + (int(token.minutes / bar_minutes) if token.minutes else 0),
                sessions=warmups[token.column].sessions,
            )
            for token in expression.tokens
            if token.column is not None
        ]
    inputs = Warmup(
        rows=max((w.rows for w in before), default=0), sessions=max((w.sessions for w in before), default=0)
    )
    if kernel.clock_warmup is not None:
        return kernel.clock_warmup(column, inputs, bar_minutes)
    own = kernel.warmup(column)
    sessions = own.sessions + inputs.sessions
    if own.sessions:  # whole sessions outlast the rows that their inputs need
        return Warmup(sessions=sessions)
    return Warmup(rows=own.rows + inputs.rows, sessions=sessions)


def derived_missing(own: str, before: Sequence[str]) -> str:
    """The policy on missing values of a column, from its kernel's and from those of the columns it reads.

    A missing input is felt in three ways: the value is null at that bar; it stays null while a window holds
    the bar; what is remembered afterwards is not what it would have been. The column has the strongest of
    what its kernel does and of what its inputs bring, in the order of ``POLICIES``: remembering in a
    recurrence (``HOLDS``) before remembering single values (``BY_KEY``, ``PASSES``) or in a sum (``SKIPS``, or
    ``KEEPS`` where the value is not even null at the bar) before a window (``FORGETS``) before nothing
    (``POINTWISE``).

    Two combinations are not simply the stronger one. What rests on ``KEEPS`` and on something that is null at
    the bar is null there and remembers: ``SKIPS``. And a kernel that keeps its value does so although what it
    reads is null: ``KEEPS`` over anything that does not remember longer.

    Parameters
    ----------
    own
        The kernel's policy, one of :data:`mia_fast.features.kernels.POLICIES`.
    before
        The policies of its inputs; ``POINTWISE`` for an input of the catalogue or a calendar column. For a
        formula they decide alone, its own being ``POINTWISE``.
    """
    strongest = max((own, *before), key=list(POLICIES.values()).index)
    if strongest == HOLDS:
        return HOLDS
    if own == KEEPS:
        return KEEPS
    if strongest == KEEPS:  # of its inputs
        return KEEPS if set(before) == {KEEPS} and own == POINTWISE else SKIPS
    return strongest


def _refuse_twins(columns: dict[str, Column]) -> None:
    """No column may be another one under a second name: the second would never be computed."""
    seen: dict[tuple[Any, ...], str] = {}
    for column in columns.values():
        key = (column.kernel, column.inputs, tuple(sorted(column.params.items())), column.output, column.expression)
        first = seen.setdefault(key, column.name)
        if first != column.name:
            raise ConfigError(
                f"declares the same as {first!r}",
                where=f"{FILE}, {column.name}",
                hint=f"keep one of the two; where both names are wanted, let one read the other: expression: {first}",
            )


def _unfit_bars(
    column: Column, kernel: Kernel, expression: expressions.Expression | None, bar_minutes: float
) -> tuple[str, ...]:
    """What bars a row would need, where these do not fit it."""
    spans = [unfit(token.minutes, 1, bar_minutes) for token in expression.tokens if token.minutes] if expression else []
    return tuple(lack for lack in (*spans, kernel.unfit(column, bar_minutes)) if lack is not None)[:1]


def _yaml(warmup: Warmup) -> str:
    return str(warmup) if warmup.sessions else str(warmup.rows)


def _unknown(name: str, where: str, known: Collection[str]) -> ConfigError:
    near = difflib.get_close_matches(name, known, n=1)
    return ConfigError(
        f"reads an unknown column {name!r}",
        where=f"{FILE}, {where}",
        hint=f"did you mean {near[0]!r}?" if near else "declare it under inputs or auxiliary",
    )


def new_york() -> NDArray[np.int64]:
    """UTC offsets of New York as the kernel reads them: count, transition instants, offsets (ns).

    Found by bisection on the system's time zone database, 1970 to 2099.
    """
    zone = ZoneInfo("America/New_York")

    def offset(second: int) -> int:
        moment = dt.datetime.fromtimestamp(second, zone).utcoffset()
        assert moment is not None
        return int(moment.total_seconds())

    day = 86_400
    transitions = [-(2**62)]
    offsets = [offset(0)]
    before = offsets[0]
    for second in range(0, 130 * 366 * day, 7 * day):
        if offset(second + 7 * day) != before:
            low, high = second, second + 7 * day
            while high - low > 1:
                middle = (low + high) // 2
                if offset(middle) == before:
                    low = middle
                else:
                    high = middle
            before = offset(high)
            transitions.append(high * 1_000_000_000)
            offsets.append(before)
    return np.array([len(offsets), *transitions, *(o * 1_000_000_000 for o in offsets)], dtype=np.int64)
