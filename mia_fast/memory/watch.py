"""The memory beside an engine: what the gate reads, and where closed trades go.

The engine hands each bar's state over after it has decided; the answer is what the gate reads at the next bar. A live
engine's states are answered on a worker thread, so that no bar waits for the memory; a replay answers in place, so
that its result does not depend on how fast a thread was. Both read the same answer, that of the bar before.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mia_fast.errors import MarketMemoryError, MiaError
from mia_fast.memory.recall import FEATURES, NEIGHBOURS, TRADES, Recollection, recollect
from mia_fast.memory.store import MemoryStore

Floats = NDArray[np.float64]

_REST: Final = 1.0  # seconds until a worker tries again what the memory refused


@dataclass(slots=True)
class _Entry:
    """A position's state when it was entered."""

    at_ns: int
    state: list[float]
    recalled: float | None


@dataclass(slots=True)
class _Closed:
    """A trade that is to be stored."""

    trade_id: str
    profit: float
    known_ns: int


class MemoryWatch:
    """One engine's view of one memory.

    Parameters
    ----------
    open_store
        Opens the memory; called again after a fault. It must not sleep unless ``background``.
    outputs
        Names of the values that :meth:`observe` is given.
    stale_seconds
        An answer this much older than the last state blocks.
    replays
        Trades of replays count.
    background
        Answer on a worker thread.
    run_id
        Of a replay, with which its trades are stored.
    """

    def __init__(
        self,
        open_store: Callable[[], MemoryStore],
        outputs: Sequence[str],
        *,
        stale_seconds: float,
        replays: bool,
        background: bool,
        run_id: str = "",
    ) -> None:
        self._open_store, self._outputs = open_store, tuple(outputs)
        self._stale_ns = round(stale_seconds * 1e9)
        self._replays, self._run_id = replays, run_id
        self._store: MemoryStore | None = None
        self._columns: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._fault: str | None = None
        self._ready = False  # the memory has been opened once, and it is known whether it can tighten at all
        self._can_tighten = False
        self._offered_ns: int | None = None
        self._answer: Recollection | None = None
        self._last: tuple[int, Floats] | None = None
        self._entries: dict[str, _Entry] = {}
        self._asked: deque[tuple[int, Floats]] = deque(maxlen=1)  # of the states, only the latest is worth an answer
        self._entered: deque[str] = deque()
        self._closed: deque[_Closed] = deque()
        self._mutex = threading.Lock()  # one thread at a time works on the memory
        self._wake = threading.Event()
        self._ending = False
        self._work()
        self._thread: threading.Thread | None = None
        if background:
            self._thread = threading.Thread(target=self._run, name="mia-memory", daemon=True)
            self._thread.start()

    # What the engine calls

    def observe(self, now_ns: int, values: Floats) -> None:
        """Take the state of a bar that has been decided; the next bar's gate reads its answer."""
        state = values.copy()
        self._offered_ns = now_ns
        self._asked.append((now_ns, state))
        self._turn()

    def entered(self, trade_id: str, now_ns: int, values: Floats) -> None:
        """Keep the state in which a position is entered, until :meth:`closed`."""
        self._entries[trade_id] = _Entry(now_ns, values.tolist(), None)
        self._entered.append(trade_id)
        self._turn()

    def closed(self, trade_id: str, profit: float, known_ns: int) -> None:
        """Store a closed trade with the state of its entry.

        A trade whose entry this watch has not seen has no state, and is not stored.
        """
        if trade_id in self._entries:
            self._closed.append(_Closed(trade_id, profit, known_ns))
            self._turn()

    def losing_share(self) -> float | None:
        """s of the contract, by the state of the bar before; None below 20 states. Reads only.

        Raises
        ------
        MarketMemoryError
            The memory cannot answer, or its answer is too old: the limit is unknown, and that blocks entries.
        """
        fault, answer, offered = self._fault, self._answer, self._offered_ns
        if fault is not None:
            raise MarketMemoryError(fault, reason="io")
        if not self._ready:
            raise MarketMemoryError("the memory has not been opened yet", reason="io")
        if answer is None:
            if not self._can_tighten:
                return None
            raise MarketMemoryError("the memory has not been asked about a state yet", reason="io")
        if offered is not None and offered - answer.at_ns > self._stale_ns:
            late = (offered - answer.at_ns) / 1e9
            raise MarketMemoryError(f"the memory's answer is {late:.0f} s older than the last bar", reason="io")
        return answer.losing_share

    def values(self) -> dict[str, float]:
        """The memory's features by the last answer: :data:`~mia_fast.memory.recall.FEATURES`; NaN where unknown."""
        answer = self._answer
        known = answer.values if answer is not None and self._fault is None else (math.nan,) * len(FEATURES)
        return dict(zip(FEATURES, known, strict=True))

    @property
    def fault(self) -> str | None:
        """Why the memory cannot answer or store, or None."""
        return self._fault

    # Life

    def save(self) -> dict[str, Any]:
        """What a restart must know, JSON-safe; of a watch that answers in place."""
        last = None if self._last is None else [self._last[0], self._last[1].tolist()]
        entries = {name: [entry.at_ns, entry.state, entry.recalled] for name, entry in self._entries.items()}
        waiting = [[trade.trade_id, trade.profit, trade.known_ns] for trade in self._closed]
        return {"last": last, "entries": entries, "closed": waiting, "offered": self._offered_ns}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from :meth:`save`: the memory itself must stand as it stood then."""
        self._entries = {name: _Entry(*entry) for name, entry in saved["entries"].items()}
        self._closed.extend(_Closed(*trade) for trade in saved["closed"])
        self._offered_ns = saved["offered"]
        if saved["last"] is not None:
            self._asked.append((saved["last"][0], np.array(saved["last"][1])))
            self._turn()

    def close(self) -> None:
        """Store what waits, end the worker, let go of the file."""
        self._ending = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        with self._mutex:
            if self._store is not None:
                self._store.close()
                self._store = None

    # Inside

    def _turn(self) -> None:
        if self._thread is None:
            self._work()
        else:
            self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait(_REST if self._fault is not None else None)
            self._wake.clear()
            self._work()
            if self._ending:
                return

    def _work(self) -> None:
        """Do what waits; whatever the memory raises becomes the fault that blocks."""
        with self._mutex:
            asked = self._asked.popleft() if self._asked else None
            try:
                store = self._opened()
                if asked is None:  # an answer looks at the file anyway
                    store.probe()
                while self._entered:
                    entry = self._entries.get(self._entered[0])
                    if entry is not None and store.comparable(state := self._state(np.array(entry.state))):
                        score = self._recollect(store, entry.at_ns, state).values[0]
                        entry.recalled = score if np.isfinite(score) else None
                    self._entered.popleft()
                while self._closed:
                    self._keep(store, self._closed[0])
                    self._closed.popleft()
                if asked is not None:
                    self._answer, self._last = self._answered(store, *asked), asked
                self._fault = None
            except MiaError as error:
                self._fault = error.what
            except Exception as error:  # whatever it is, the limit is unknown now
                self._fault = f"{type(error).__name__}: {error}"
            if self._fault is not None and asked is not None and not self._asked:
                self._asked.append(asked)

    def _opened(self) -> MemoryStore:
        if self._store is None:
            self._store = store = self._open_store()
            places = {name: k for k, name in enumerate(self._outputs)}
            self._columns = np.array([places.get(name, -1) for name in store.manifest.names])
            self._can_tighten = store.closed_count(replays=self._replays) >= NEIGHBOURS
            self._ready = True
        return self._store

    def _state(self, values: Floats) -> Floats:
        return np.where(self._columns >= 0, values[self._columns], np.nan)

    def _answered(self, store: MemoryStore, at_ns: int, values: Floats) -> Recollection:
        state = self._state(values)
        if store.comparable(state):
            return self._recollect(store, at_ns, state)
        # Nothing is known of such a state; where the memory could have tightened, the limit is unknown as well.
        enough = store.closed_count(until=at_ns, replays=self._replays) >= NEIGHBOURS
        return Recollection(at_ns, math.nan if enough else None, (math.nan,) * 4)

    def _recollect(self, store: MemoryStore, at_ns: int, state: Floats) -> Recollection:
        found = store.nearest(state, NEIGHBOURS, "closed", until=at_ns, replays=self._replays)
        recalls = store.recalls(TRADES, until=at_ns, replays=self._replays)
        return recollect(found, len(state), at_ns, recalls)

    def _keep(self, store: MemoryStore, trade: _Closed) -> None:
        entry = self._entries.get(trade.trade_id)
        if entry is None:
            return
        store.store(
            self._state(np.array(entry.state)),
            trade.profit,
            at_ns=entry.at_ns,
            known_ns=trade.known_ns,
            trade_id=trade.trade_id,
            run_id=self._run_id,
            recalled=entry.recalled,
        )
        del self._entries[trade.trade_id]
