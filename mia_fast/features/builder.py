"""What kernels lower their rows into: instructions, working columns, tables and state."""

from __future__ import annotations

from collections.abc import Sequence

from mia_fast.features import expression as expressions
from mia_fast.features.catalogue import Column
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


class Builder:
    """Collects instructions; hands out working columns, tables and targets."""

    def __init__(
        self,
        columns: dict[str, Column],
        parsed: dict[str, expressions.Expression],
        inputs: Sequence[str],
        outputs: dict[str, int],
        bar_minutes: float,
        tick_size: float,
    ) -> None:
        self.columns, self.parsed = columns, parsed
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
        self.externals: list[tuple[tuple[str, ...], int]] = []
        """Columns of registered functions, with the place of their count of failures in the state."""

    # --- what kernels ask for when they lower their rows ----------------------------------------

    def give_slot(self, name: str) -> None:
        """Keep ``name`` in a working column, because others read it."""
        if name not in self._slot:
            self._slot[name] = self.private_slot()

    @property
    def held(self) -> frozenset[str]:
        """The columns that are kept in working columns."""
        return frozenset(self._slot)

    def ask_table(self, code: int, source: str, window: int) -> None:
        """Say how long a window the table over ``source`` must serve, before it is first used."""
        key = (code, source)
        self._levels[key] = max(self._levels.get(key, 0), window.bit_length() - 1)

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

    def pair_table(self, x: str, y: str) -> int:
        """First column of the co-moment table over ``x`` and ``y``, beside the moment tables of both."""
        key = (op.COMOMENT_TABLE, f"{x} {y}")
        if key not in self._tables:
            levels = self._levels[key]
            x_table, y_table = self.table(op.MOMENT_TABLE, x), self.table(op.MOMENT_TABLE, y)
            self._tables[key] = self.slots
            self.slots += levels
            self.emit(
                op.COMOMENT_TABLE,
                a=self.slot(x),
                b=self.slot(y),
                c=x_table,
                d=y_table,
                count=levels,
                integers=[self._tables[key]],
            )
        return self._tables[key]

    def copy(self, source: str, name: str) -> None:
        """Put a working column out under ``name``, when all is computed."""
        self._copies.append((self._slot[source], self.outputs[name]))

    def emit_copies(self) -> None:
        """Put out what :meth:`copy` collected."""
        if self._copies:
            self.emit(
                op.COPY,
                count=len(self._copies),
                integers=[slot for slot, _ in self._copies],
                targets=[output for _, output in self._copies],
            )

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
