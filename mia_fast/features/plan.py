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
from mia_fast.features.catalogue import Catalogue, Column, Warmup
from mia_fast.features.kernels import Kernel, check
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

FILE = "feature_sets.yaml"


@dataclass(frozen=True, slots=True)
class Plan:
    """A program and what is known of it."""

    features: tuple[str, ...]
    inputs: tuple[str, ...]
    missing: dict[str, tuple[str, ...]]
    """Features that stay null, each with the input columns (or the length of bars) it lacks."""
    warmups: dict[str, Warmup]
    auxiliary: tuple[str, ...]
    """Auxiliary columns that were asked for; they follow the features in the output."""
    program: NDArray[np.int64]
    integers: NDArray[np.int64]
    floats: NDArray[np.float64]
    state_size: int
    columns_at: int
    bar_minutes: float
    digest: str

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
        Length of a bar in minutes.
    tick_size
        Smallest price step of the instrument, index points.
    auxiliary
        Auxiliary, input or calendar columns to put out after the features.

    Raises
    ------
    ConfigError
        A row that does not fit its kernel, names an unknown column, depends on itself, or declares a
        warm-up other than the derived one.
    """
    columns: dict[str, Column] = {}
    kernels: dict[str, Kernel] = {}
    parsed: dict[str, expressions.Expression] = {}
    inputs = {c.name for c in catalogue.inputs}
    raw_copies: dict[str, str] = {}
    for declared in (*catalogue.auxiliary, *catalogue.features):
        column: Column = declared
        where = f"{FILE}, {column.name}"
        kernels[column.name] = check(column, where)
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
    for name in auxiliary:
        if name in inputs or name in CALENDAR:
            raw_copies[name] = name
        elif name not in columns:
            raise _unknown(name, "the auxiliary columns asked for", inputs | set(CALENDAR) | set(columns))
    order = _sorted(columns)

    lacking: dict[str, tuple[str, ...]] = {name: (name,) for name in inputs if name not in available}
    warmups: dict[str, Warmup] = dict.fromkeys(inputs | set(CALENDAR), Warmup())
    for name in order:
        column = columns[name]
        lacks = tuple(sorted({lack for source in column.inputs for lack in lacking.get(source, ())}))
        lacks = lacks or _unfit_bars(column, parsed.get(name), bar_minutes)
        if lacks:
            lacking[name] = lacks
        warmups[name] = _warmup(column, kernels[name], parsed.get(name), warmups, bar_minutes)
    for feature in catalogue.features:
        if bar_minutes == 1.0 and feature.warmup != warmups[feature.name]:
            raise ConfigError(
                f"declares a warm-up of {feature.warmup}, but its kernel and inputs give {warmups[feature.name]}",
                where=f"{FILE}, {feature.name}",
                hint=f"write warmup: {_yaml(warmups[feature.name])}",
            )

    wanted = [name for name in (*catalogue.names, *auxiliary) if name not in lacking]
    present = [c.name for c in catalogue.inputs if c.name in available]
    outputs = {name: k for k, name in enumerate((*catalogue.names, *auxiliary))}
    builder = Builder(columns, kernels, parsed, present, outputs, bar_minutes, tick_size)
    builder.build(order, wanted, raw_copies)
    identity = f"{catalogue.digest}|{present}|{auxiliary}|{bar_minutes}|{tick_size}"
    return Plan(
        features=catalogue.names,
        inputs=tuple(present),
        missing={name: lacking[name] for name in catalogue.names if name in lacking},
        warmups={name: warmups[name] for name in (*catalogue.names, *auxiliary)},
        auxiliary=tuple(auxiliary),
        program=np.array(builder.program, dtype=np.int64).reshape(-1, op.FIELDS),
        integers=np.array(builder.integers or [0], dtype=np.int64),
        floats=np.array(builder.floats or [0.0], dtype=np.float64),
        state_size=builder.state + builder.slots * op.CAPACITY,
        columns_at=builder.state,
        bar_minutes=bar_minutes,
        digest=hashlib.sha256(identity.encode()).hexdigest()[:16],
    )


class Builder:
    """Collects instructions; hands out working columns, tables and targets."""

    def __init__(
        self,
        columns: dict[str, Column],
        kernels: dict[str, Kernel],
        parsed: dict[str, expressions.Expression],
        inputs: Sequence[str],
        outputs: dict[str, int],
        bar_minutes: float,
        tick_size: float,
    ) -> None:
        self.columns, self.kernels, self.parsed = columns, kernels, parsed
        self.outputs = outputs
        self.bar_minutes, self.tick_size = bar_minutes, tick_size
        self.program: list[int] = []
        self.integers: list[int] = []
        self.floats: list[float] = []
        self.state = op.HEADER
        self.slots = op.FIRST_INPUT
        self._slot = dict(CALENDAR)
        for name in inputs:
            self._slot[name] = self.slots
            self.slots += 1
        self._tables: dict[tuple[int, str], int] = {}
        self._levels: dict[tuple[int, str], int] = {}
        self._copies: list[tuple[int, int]] = []

    # --- what kernels ask for when they lower their rows ----------------------------------------

    def slot(self, name: str) -> int:
        """The working column that holds ``name``."""
        return self._slot[name]

    def private_slot(self) -> int:
        """A working column for a kernel's own use."""
        self.slots += 1
        return self.slots - 1

    def target(self, name: str) -> int:
        """Where a result goes: its working column if others read it, else the output itself."""
        if name in self._slot:
            return -1 - self._slot[name]
        return self.outputs[name]

    def rows_in(self, minutes: int) -> int:
        """How many bars a time window spans when none is missing."""
        return round(minutes / self.bar_minutes)

    def expression(self, row: Column) -> expressions.Expression:
        """The parsed formula of a row."""
        return self.parsed[row.name]

    def table(self, code: int, source: str) -> int:
        """First column of the window table over ``source``; filled once, by whoever needs it first."""
        key = (code, source)
        if key not in self._tables:
            levels = self._levels[key]
            self._tables[key] = self.slots
            self.slots += levels * (2 if code == op.MOMENT_TABLE else 1)
            if levels:
                self.emit(code, a=self.slot(source), b=self._tables[key], count=levels)
        return self._tables[key]

    def copy(self, source: str, name: str) -> None:
        """Put a working column out under ``name``."""
        self._copies.append((self._slot[source], self.outputs[name]))

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
        integers_at, floats_at, state_at = len(self.integers), len(self.floats), self.state
        self.integers += integers
        self.floats += floats
        targets_at = len(self.integers)
        self.integers += targets
        self.state += state
        self.program += [code, a, b, c, d, count, state_at, integers_at, floats_at, targets_at]

    # --- the whole program ----------------------------------------------------------------------

    def build(self, order: Sequence[str], wanted: Sequence[str], raw_copies: dict[str, str]) -> None:
        """Emit everything that ``wanted`` needs, rows of one kernel and inputs together."""
        needed = self._needed(wanted)
        rows = [self.columns[name] for name in order if name in needed]
        for column in rows:
            for source in column.inputs:
                if source in self.columns and source not in self._slot:
                    self._slot[source] = self.private_slot()
        self._plan_tables(rows)
        defined = set(self._slot) - set(self.columns)
        while rows:
            ready = [row for row in rows if all(source in defined for source in row.inputs)]
            groups: dict[tuple[Any, ...], list[Column]] = {}
            for row in ready:
                alone = row.name if row.kernel in ("formula", "column") else ""
                groups.setdefault((row.kernel, row.inputs, alone), []).append(row)
            for group in groups.values():
                self.kernels[group[0].name].lower(self, group)
            defined |= {row.name for row in ready}
            rows = [row for row in rows if row.name not in defined]
        for name in wanted:
            if name in raw_copies:
                self.copy(raw_copies[name], name)
            elif name in self._slot:
                self.copy(name, name)
        if self._copies:
            self.emit(
                op.COPY,
                count=len(self._copies),
                integers=[slot for slot, _ in self._copies],
                targets=[output for _, output in self._copies],
            )

    def _needed(self, wanted: Sequence[str]) -> set[str]:
        needed: set[str] = set()
        stack = [name for name in wanted if name in self.columns]
        while stack:
            name = stack.pop()
            if name not in needed:
                needed.add(name)
                stack += [source for source in self.columns[name].inputs if source in self.columns]
        return needed

    def _plan_tables(self, rows: Sequence[Column]) -> None:
        """How many levels each window table needs for its longest window."""
        for row in rows:
            length = int(row.params.get("period", 0))
            wants: list[tuple[int, str]] = []
            if row.kernel == "window":
                wants = [(op.MOMENT_TABLE, row.inputs[0])]
            elif row.kernel == "time_deviation":
                wants = [(op.MOMENT_TABLE, row.inputs[0])]
                length = self.rows_in(int(row.params["minutes"]))
            elif row.kernel == "highest":
                wants = [(op.MAXIMUM_TABLE, row.inputs[0])]
            elif row.kernel == "lowest":
                wants = [(op.MINIMUM_TABLE, row.inputs[0])]
            elif row.kernel == "stochastic":
                wants = [(op.MAXIMUM_TABLE, row.inputs[0]), (op.MINIMUM_TABLE, row.inputs[1])]
            for key in wants:
                self._levels[key] = max(self._levels.get(key, 0), length.bit_length() - 1)


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
    own = kernel.warmup(column)
    if column.kernel == "time_deviation":  # its inputs bring one row of it
        own = Warmup(rows=max(0, int(column.params["minutes"] / bar_minutes) - 1))
    if expression is None:
        before = [warmups[source] for source in column.inputs]
    else:
        before = [
            Warmup(
                rows=warmups[token.column].rows + token.bars + int(token.minutes / bar_minutes),
                sessions=warmups[token.column].sessions,
            )
            for token in expression.tokens
            if token.column is not None
        ]
    sessions = own.sessions + max((w.sessions for w in before), default=0)
    if own.sessions:  # whole sessions outlast the rows that their inputs need
        return Warmup(sessions=sessions)
    return Warmup(rows=own.rows + max((w.rows for w in before), default=0), sessions=sessions)


def _unfit_bars(column: Column, expression: expressions.Expression | None, bar_minutes: float) -> tuple[str, ...]:
    """What bars a time window would need, where these do not fit it: a whole number of them, within reach."""
    spans = [(token.minutes, 1) for token in expression.tokens if token.minutes] if expression is not None else []
    if column.kernel == "time_deviation":
        spans.append((column.params["minutes"], 2))
    for minutes, fewest in spans:
        rows = minutes / bar_minutes
        if rows != int(rows) or not fewest <= rows < op.HISTORY:
            return (f"bars that fit {minutes:g} minutes {fewest} to {op.HISTORY - 1} times",)
    return ()


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
