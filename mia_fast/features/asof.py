"""Values as of each bar: what was known at its close, and nothing later.

Every table that is slower than the bars becomes :class:`Steps`: instants, and the row of inputs that holds from each of
them on. Batch and live read the same rows, so they cannot disagree.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mia_fast.features.engine import FeatureEngine

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FOREVER: Final = 2**63 - 1


class Steps:
    """Inputs of one table that change at known instants.

    Parameters
    ----------
    table
        The catalogue's name of the table.
    names
        The inputs, k of them.
    instants
        (m,) int64 ns UTC, strictly ascending: row j + 1 holds from ``instants[j]`` on.
    values
        (k, m + 1) float64, NaN where missing; column 0 holds before the first instant.
    """

    def __init__(self, table: str, names: Sequence[str], instants: Integers, values: Floats) -> None:
        assert values.shape == (len(names), len(instants) + 1)
        self.table, self.names = table, tuple(names)
        self.instants, self.values = instants, values
        values[np.isnan(values)] = np.nan  # one pattern of bits, because a state is compared by its bytes
        self._instants: list[int] = instants.tolist()

    @classmethod
    def nothing(cls, table: str, names: Sequence[str]) -> Steps:
        """All inputs of a table missing, until something is known."""
        return cls(table, names, np.empty(0, np.int64), np.full((len(names), 1), np.nan))

    @classmethod
    def merged(cls, table: str, parts: Iterable[tuple[str, Integers, Floats]]) -> Steps:
        """Of columns that change at instants of their own: ``(name, instants (m,), values (m,))``, ascending."""
        columns = list(parts)
        instants = np.unique(np.concatenate([at for _, at, _ in columns])) if columns else np.empty(0, np.int64)
        values = np.full((len(columns), len(instants) + 1), np.nan)
        for k, (_, at, column) in enumerate(columns):
            values[k, 1:] = np.concatenate([[np.nan], column])[np.searchsorted(at, instants, side="right")]
        return cls(table, [name for name, _, _ in columns], instants, values)

    def index(self, known_at: int) -> int:
        """The row in force at an instant."""
        return bisect.bisect_right(self._instants, known_at)

    def columns(self, known_at: Integers, names: Sequence[str] | None = None) -> dict[str, Floats]:
        """Inputs (by default all) as of bars known at ``known_at`` (n,), ns UTC: name -> (n,)."""
        at = np.searchsorted(self.instants, known_at, side="right")
        places = {name: k for k, name in enumerate(self.names)}
        return {
            name: self.values[places[name]].take(at)
            for name in (self.names if names is None else names)
            if name in places
        }

    def at(self, known_at: int) -> tuple[float, ...]:
        """The same for one bar, in the order of :attr:`names`."""
        return tuple(self.values[:, self.index(known_at)].tolist())

    def span(self, known_at: int) -> tuple[int, int, int]:
        """The row in force, and the instants (first, first after it) between which it is."""
        row = self.index(known_at)
        first = self._instants[row - 1] if row else -FOREVER
        return row, first, self._instants[row] if row < len(self._instants) else FOREVER


def expiring(known: Integers, values: Floats, age_ns: int) -> tuple[Integers, Floats]:
    """Values (m,) known from ``known`` (m,) on, each missing again once it is older than ``age_ns``.

    Returns instants and values with the ends put in.
    """
    following = np.append(known[1:], FOREVER)[: len(known)]
    ends = known + (age_ns + 1)
    lapses = ends < following
    instants = np.concatenate([known, ends[lapses]])
    order = np.argsort(instants, kind="stable")
    return instants[order], np.concatenate([values, np.full(int(lapses.sum()), np.nan)])[order]


class Feed:
    """Holds the rows of :class:`Steps` in a live engine: it writes only when a row changes.

    ``skip`` names inputs that the bars bring themselves.
    """

    def __init__(self, steps: Steps, engine: FeatureEngine, skip: Iterable[str] = ()) -> None:
        self._steps, self._engine = steps, engine
        read = engine.plan.held.get(steps.table, ())
        self._names = [name for name in read if name in steps.names and name not in set(skip)]
        self._whole = len(self._names) == len(read)
        self._rows = np.ascontiguousarray(steps.values[[steps.names.index(name) for name in self._names]].T)
        self._first, self._end = 0, 0  # of the stretch in which the held row stands; empty

    def advance(self, known_at: int) -> None:
        """Hold what is known at a bar's close."""
        if self._first <= known_at < self._end:
            return
        row, self._first, self._end = self._steps.span(known_at)
        if self._whole and self._names:
            self._engine.hold(self._steps.table, self._rows[row])
        elif self._names:
            self._engine.hold(self._steps.table, dict(zip(self._names, self._rows[row].tolist(), strict=True)))
