"""The stored states in memory, for exact nearest neighbours: built from the file, extended as rows arrive."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mia_fast.errors import MarketMemoryError
from mia_kernels import neighbours

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

UNKNOWN, WINNING, LOSING, FLAT = range(4)
"""What came of a state. A trade of a replay has the kind + :data:`REPLAY`."""
REPLAY: Final = 4
OUTCOMES: Final = {
    "winning": 1 << WINNING,
    "losing": 1 << LOSING,
    "closed": 1 << WINNING | 1 << LOSING | 1 << FLAT,
    "all": 1 << UNKNOWN | 1 << WINNING | 1 << LOSING | 1 << FLAT,
}
"""Which kinds a question asks for, as bits of the kernel's ``wanted``."""
ALWAYS: Final = 2**63 - 1


_TOGETHER: Final = 200_000
"""So many states and more are looked through by two threads; below, starting the second costs more than it brings."""


@functools.cache
def _second() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="mia-memory")


class Found(NamedTuple):
    """Neighbours, nearest first."""

    cluster_ids: Integers
    distances: Floats
    """Standardised Euclidean distances: the square root of the sum of squares over the columns."""
    profits: Floats
    """USD; NaN where no outcome is known."""


class NeighbourIndex:
    """States of one manifest, in the order of their ``cluster_id``.

    The scaling is a function of the stored states alone: mean and deviation of each column over the first 2^p of them,
    with 2^p the largest power of two that there are. So the same file gives the same distances in every process and
    after every restart, and a growing memory is scaled anew whenever it has doubled.

    Parameters
    ----------
    columns
        Values of a state.

    Raises
    ------
    MarketMemoryError
        A state has more values than the distances of their codes can be added up for.
    """

    def __init__(self, columns: int) -> None:
        if columns > neighbours.COLUMNS_MOST:
            raise MarketMemoryError(
                f"a state has {columns:,} features, at most {neighbours.COLUMNS_MOST:,} can be compared",
                where="market memory",
                hint="choose fewer features for the memory",
                then="nothing was opened",
                reason="input",
            )
        self._columns = columns
        self._width = neighbours.code_width(columns)
        self.clear()

    def clear(self) -> None:
        """Forget all states."""
        self._n, self._fitted, self._error = 0, 0, 0.0
        self._mean, self._weight = np.zeros(self._columns), np.zeros(self._columns)
        self._resize(64)

    def __len__(self) -> int:
        return self._n

    @property
    def rows(self) -> Floats:
        """(n, columns) the states, NaN where missing; a view."""
        return self._rows[: self._n]

    @property
    def cluster_ids(self) -> Integers:
        """(n,) keys of the rows; a view."""
        return self._ids[: self._n]

    @property
    def profits(self) -> Floats:
        """(n,) USD, NaN where no outcome is known; a view."""
        return self._profits[: self._n]

    @property
    def known_at(self) -> Integers:
        """(n,) when the outcome was known, ns UTC; a view."""
        return self._known[: self._n]

    @property
    def scaling(self) -> tuple[Floats, Floats]:
        """Mean, and 1 / standard deviation (0: the column does not count), each (columns,)."""
        return self._mean.copy(), self._weight.copy()

    def standardised(self, rows: Floats) -> Floats:
        """``rows`` (n, columns) in standard deviations from the mean, 0 where missing."""
        with np.errstate(invalid="ignore"):
            values = (rows - self._mean) * self._weight
        return np.where(np.abs(rows) <= neighbours.LARGEST, values, 0.0)

    def append(
        self, ids: Integers, rows: Floats, profits: Floats, known_at: Integers, replay: NDArray[np.bool_]
    ) -> None:
        """Add states in the order of their keys.

        Parameters
        ----------
        ids, profits, known_at, replay
            (n,): key, USD (NaN: no outcome), ns UTC, and whether a replay wrote it.
        rows
            (n, columns) float64, NaN where missing.
        """
        added = len(ids)
        if not added:
            return
        first, last = self._n, self._n + added
        if last > len(self._ids):
            self._resize(max(last, 2 * len(self._ids)))
        self._ids[first:last], self._rows[first:last], self._profits[first:last] = ids, rows, profits
        self._known[first:last] = known_at
        kinds = np.where(profits > 0, WINNING, np.where(profits < 0, LOSING, FLAT))
        self._kind[first:last] = np.where(np.isnan(profits), UNKNOWN, kinds) + REPLAY * replay
        self._n = last
        power = 1 << (last.bit_length() - 1)
        if power != self._fitted:
            neighbours.column_scales(self._rows, power, self._mean, self._weight)
            self._fitted, self._error, first = power, 0.0, 0
        fresh = neighbours.encode(self._rows, first, last, self._mean, self._weight, self._codes)
        self._error = max(self._error, fresh)

    def count(self, *, wanted: int, until: int = ALWAYS, replays: bool = True) -> int:
        """How many states :meth:`nearest` chooses from."""
        mask = wanted | wanted << REPLAY if replays else wanted
        chosen = (mask >> self._kind[: self._n].astype(np.int64)) & 1
        return int((chosen & (self._known[: self._n] <= until)).sum())

    def nearest(self, query: Floats, k: int, *, wanted: int, until: int = ALWAYS, replays: bool = True) -> Found:
        """The ``k`` nearest states of the wanted kinds that were known by ``until``; fewer if there are fewer.

        Exact: see :mod:`mia_kernels.neighbours`. Ties come in the order of the keys.

        Parameters
        ----------
        query
            (columns,) float64, NaN where missing.
        k
            How many.
        wanted
            Of :data:`OUTCOMES`.
        until
            ns UTC; a state whose outcome was known later does not count.
        replays
            Trades of replays count.
        """
        k = min(k, self._n)
        mask = wanted | wanted << REPLAY if replays else wanted
        point = np.ascontiguousarray(query, dtype=np.float64)
        if self._n < _TOGETHER:
            chosen, square = self._scan(0, self._n, point, k, mask, until)
        else:
            middle = self._n // 2
            second = _second().submit(self._scan, middle, self._n, point, k, mask, until)
            halves = [self._scan(0, middle, point, k, mask, until), second.result()]
            places, squares = (np.concatenate(parts) for parts in zip(*halves, strict=True))
            order = np.lexsort((places, squares))[:k]  # ties in the order of the keys
            chosen, square = places[order], squares[order]
        return Found(self._ids[chosen], np.sqrt(square), self._profits[chosen])

    def _scan(self, first: int, last: int, query: Floats, k: int, mask: int, until: int) -> tuple[Integers, Floats]:
        """Places and squared distances of the nearest among the rows ``first`` .. ``last``, in order."""
        place, square = np.empty(k, dtype=np.int64), np.empty(k)
        count = neighbours.nearest(
            self._codes[first:last],
            self._rows[first:last],
            self._kind[first:last],
            self._known[first:last],
            last - first,
            query,
            self._mean,
            self._weight,
            self._error,
            mask,
            until,
            min(k, last - first),
            self._apart[first:last],
            place,
            square,
        )
        return place[:count] + first, square[:count]

    def _resize(self, capacity: int) -> None:
        def grown(name: str, shape: tuple[int, ...], dtype: type) -> None:
            array: NDArray[Any] = np.empty((capacity, *shape), dtype=dtype)
            if self._n:
                array[: self._n] = getattr(self, name)[: self._n]
            setattr(self, name, array)

        self._ids: Integers
        self._rows: Floats
        self._profits: Floats
        self._known: Integers
        self._kind: NDArray[np.int8]
        self._codes: NDArray[np.int8]
        grown("_ids", (), np.int64)
        grown("_rows", (self._columns,), np.float64)
        grown("_profits", (), np.float64)
        grown("_known", (), np.int64)
        grown("_kind", (), np.int8)
        grown("_codes", (self._width,), np.int8)
        self._apart = np.empty(capacity, dtype=np.int32)
