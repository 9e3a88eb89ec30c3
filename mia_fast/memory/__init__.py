"""The market memory: what happened the last times the market looked like this?

Every closed trade's state is stored with its outcome in ``data/market_memory.db``, and recalled exactly: the nearest by
standardised distance. The share of losers among the nearest tightens the drawdown limit. See
``docs/decisions/0090-market-memory.md``.
"""

from __future__ import annotations

import datetime as dt
import functools
import math
import os
import threading
import time
from pathlib import Path
from typing import Any, Final

import polars as pl

from mia_fast import clock
from mia_fast.errors import DataError, MarketMemoryError
from mia_fast.files import stamp
from mia_fast.memory.config import MemoryConfig, memory_config
from mia_fast.memory.index import ALWAYS
from mia_fast.memory.manifest import SELECTION, MemoryManifest, memory_features
from mia_fast.memory.recall import FEATURES, NEIGHBOURS, TRADES, Recollection, recollect
from mia_fast.memory.store import FILE, MARKER, Check, Counts, MemoryStore, Outcome, Purged, Row, exists, put_aside
from mia_fast.memory.watch import MemoryWatch
from mia_fast.tables import frame_of
from mia_fast.telemetry import operation
from mia_fast.workspace import AnyWorkspace, Workspace

__all__ = [
    "FEATURES",
    "FILE",
    "MARKER",
    "Check",
    "Counts",
    "MemoryConfig",
    "MemoryManifest",
    "MemoryStore",
    "MemoryWatch",
    "Purged",
    "Recollection",
    "Row",
    "exists",
    "market_closed",
    "memory_config",
    "memory_features",
    "memory_values",
    "of",
    "probe",
    "purge_old_data",
    "recall_patterns",
    "renew",
    "setup_database",
    "store_pattern",
    "watch",
]

_Stamps = tuple[tuple[int, int, int] | None, ...]
_STORES: Final[dict[tuple[str, bool, int], tuple[_Stamps, MemoryStore]]] = {}
_SETTINGS: Final = (
    "config/memory.yaml",
    "config/feature_sets.yaml",
    "config/market_config.yaml",
    f"data/{SELECTION}",
)
"""What decides how a workspace's memory is opened: it is opened again when one of them changes."""
_MUTEX: Final = threading.Lock()


def of(workspace: AnyWorkspace | None = None, *, patient: bool = True) -> MemoryStore:
    """The memory of a workspace in this process; opened, and created where none ever was, at the first call.

    Parameters
    ----------
    workspace
        Default: ``MIA_WORKSPACE``, else the current directory.
    patient
        A locked file is tried again after 2, 4 and 8 seconds; a caller that must not sleep says False.

    Raises
    ------
    MarketMemoryError
        The file is gone although it once existed, locked, damaged, or cannot be written.
    ConfigError
        ``memory.yaml`` or the manifest is present but invalid.
    """
    chosen = Workspace.current(workspace)
    # A process that was forked must not use its parent's connection.
    key = (os.fspath(chosen.root), patient, os.getpid())
    settings = tuple(map(stamp, _files(chosen.root)))
    with _MUTEX:
        held = _STORES.get(key)
        if held is None or held[0] != settings:
            sleep = time.sleep if patient else None
            store = MemoryStore(chosen.data, memory_features(chosen), memory_config(chosen), sleep=sleep)
            if held is not None:
                held[1].close()
            held = _STORES[key] = settings, store
        return held[1]


@functools.cache
def _files(root: Path) -> tuple[Path, ...]:
    return tuple(root / name for name in _SETTINGS)


def forget(workspace: Workspace) -> None:
    """Close what this process holds of a workspace's memory; the next call opens it from the file."""
    with _MUTEX:
        for key in [key for key in _STORES if key[0] == os.fspath(workspace.root)]:
            _STORES.pop(key)[1].close()


@operation("db_setup", "setup_database")
def setup_database(workspace: AnyWorkspace | None = None) -> Path:
    """Create ``data/market_memory.db``, or bring an older file's tables up to date; the file's path.

    A memory that once existed and is gone is not made anew: that would unblock entries in silence.

    Raises
    ------
    MarketMemoryError
        The file is gone although it once existed, locked, damaged, or cannot be written.
    ConfigError
        ``memory.yaml`` or the manifest is present but invalid.
    """
    store = of(workspace)
    store.probe()
    return store.path


@operation("db_maintenance", "purge_old_data")
def purge_old_data(
    days: int | None = None,
    *,
    workspace: AnyWorkspace | None = None,
    now_ns: int | None = None,
    vacuum: bool | None = None,
) -> Purged:
    """Remove the states older than ``days``, check the file, and give room back while the market is closed.

    Parameters
    ----------
    days
        Default: ``retention_days`` of ``config/memory.yaml``, 30.
    workspace
        Default: ``MIA_WORKSPACE``, else the current directory.
    now_ns
        Ages are counted back from here, ns UTC; default: the wall clock.
    vacuum
        Write the file anew if enough of it is free; default: only while the market is closed.

    Raises
    ------
    MarketMemoryError
        The file cannot be written, or is not sound afterwards.
    """
    now = clock.now_ns() if now_ns is None else now_ns
    return of(workspace).purge(now, days, vacuum=market_closed(clock.now_ns()) if vacuum is None else vacuum)


def renew(workspace: Workspace, reason: str) -> list[Path]:
    """Put a workspace's memory aside, into ``data/quarantine``, and begin an empty one; the files that were moved.

    The journal takes it first.

    Raises
    ------
    MarketMemoryError
        The reason is empty, or the files cannot be moved.
    JournalError
        The journal does not take the row; nothing was changed.
    """
    from mia_fast import journal

    if not reason.strip():
        raise MarketMemoryError(
            "to begin the memory anew needs a reason",
            where="reason",
            hint='say who decided what, for instance --renew "A. Smith: disk replaced, no backup"',
            then="nothing was changed",
            reason="input",
        )
    now = clock.now_ns()
    text = f"the market memory is put aside and begun anew: {reason.strip()}"
    row = {"timestamp": now, "priority": 4, "code": "MEMORY_RENEWED", "message": text, "source": "market_memory"}
    journal.of(workspace).append("alerts", {**row, "detail": {"reason": reason.strip()}})
    forget(workspace)
    moved = put_aside(workspace.data, clock.file_stamp(now))
    of(workspace)
    return moved


def market_closed(now_ns: int) -> bool:
    """The futures do not trade: 17:00 to 18:00 New York, and from Friday 17:00 to Sunday 18:00."""
    from mia_fast.risk.windows import WeeklySessions

    return not WeeklySessions().span(now_ns).open


@operation("market_memory", "store_pattern")
def store_pattern(data: Any, profit: float, *, workspace: AnyWorkspace | None = None) -> int:
    """Write the state of a closed trade with its outcome: one row in ``clusters`` with ``event_type`` 'trade'.

    Parameters
    ----------
    data
        One row of features: any table that speaks the Arrow PyCapsule interface. All its columns are kept; those of the
        memory's manifest are what it is recalled by, and where too many of them are missing it is kept without being
        compared. A column ``timestamp`` says when the state was seen (UTC); without it, now.
    profit
        What came of it, USD after fees.
    workspace
        Default: ``MIA_WORKSPACE``, else the current directory.

    Returns
    -------
    int
        The row's ``cluster_id``.

    Raises
    ------
    DataError
        ``data`` is no table of one row, or one of the manifest's columns is not numeric.
    MarketMemoryError
        The profit is not finite, or the file does not take the row.
    """
    row = _one_row(data, "store_pattern")
    at_ns = _instant(row.pop("timestamp", None))
    store = of(workspace)
    values = _vector(store, row)
    features = None if tuple(row) == store.manifest.names else row  # None: the same text, written faster
    number = _number(profit)
    if math.isnan(number):
        raise MarketMemoryError(
            f"profit = {profit!r} is not a finite number",
            where="store_pattern",
            hint="USD after fees",
            then="nothing was stored",
            reason="input",
        )
    return store.store(values, number, at_ns=at_ns, features=features)


@operation("market_memory", "recall_patterns")
def recall_patterns(
    data: Any,
    k: int = 10,
    *,
    outcome: Outcome = "winning",
    before_ns: int | None = None,
    workspace: AnyWorkspace | None = None,
) -> pl.DataFrame:
    """The ``k`` nearest stored states by standardised Euclidean distance, exact; winning ones by default.

    Parameters
    ----------
    data
        One row of features. Missing values stand at the mean of the stored states.
    k
        How many.
    outcome
        ``"winning"``, ``"losing"``, ``"closed"`` (every known outcome) or ``"all"``.
    before_ns
        Only outcomes known by then, ns UTC; default: all.
    workspace
        Default: ``MIA_WORKSPACE``, else the current directory.

    Returns
    -------
    polars.DataFrame
        ``cluster_id``, ``event_type``, ``timestamp`` (UTC), ``profit`` in USD, ``distance`` in standard deviations,
        ``trade_id``, ``run_id`` (empty: of no replay); nearest first, fewer rows if fewer states are stored.

    Raises
    ------
    DataError
        ``data`` is no table of one row, ``k`` is not positive, or ``outcome`` is not known.
    MarketMemoryError
        Too many of the manifest's features are missing (they are named), or the file cannot be read.
    """
    if outcome not in ("winning", "losing", "closed", "all"):
        raise DataError(
            f"outcome={outcome!r} is not known", where="recall_patterns", hint="winning, losing, closed or all"
        )
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise DataError(f"k={k!r} is not a positive whole number", where="recall_patterns", hint="for instance 10")
    row = _one_row(data, "recall_patterns")
    store = of(workspace)
    until = ALWAYS if before_ns is None else before_ns
    return store.describe(store.nearest(_vector(store, row), k, outcome, until=until))


def memory_values(
    data: Any, *, before_ns: int | None = None, workspace: AnyWorkspace | None = None
) -> dict[str, float]:
    """The memory's four features for one row of features, in the order of :data:`FEATURES`; NaN where unknown.

    Parameters and errors are those of :func:`recall_patterns`; ``before_ns`` defaults to the present.
    """
    row = _one_row(data, "memory_values")
    store = of(workspace)
    at_ns = clock.now_ns() if before_ns is None else before_ns
    values = _vector(store, row)
    found = store.nearest(values, NEIGHBOURS, "closed", until=at_ns)
    known = recollect(found, len(values), at_ns, store.recalls(TRADES, until=at_ns)).values
    return dict(zip(FEATURES, known, strict=True))


def probe(workspace: Workspace) -> float | None:
    """For the plain risk functions, which know no present state: None, so no tightening - if the memory is sound.

    Raises
    ------
    MarketMemoryError
        It is gone although it once existed, locked or damaged: that blocks entries.
    """
    of(workspace, patient=False).probe()
    return None


def watch(workspace: Workspace, outputs: Any) -> MemoryWatch:
    """A live engine's watch on its workspace's memory: it answers and stores on a worker thread.

    Parameters
    ----------
    workspace
        Whose memory.
    outputs
        Names of the values that the engine has at each bar, in their order.
    """
    config, manifest = memory_config(workspace), memory_features(workspace)
    return MemoryWatch(
        lambda: MemoryStore(workspace.data, manifest, config, sleep=time.sleep),
        outputs,
        stale_seconds=config.tightening.stale_seconds,
        replays=config.tightening.replays,
        background=True,
    )


def _one_row(data: Any, where: str) -> dict[str, Any]:
    frame = frame_of(data, where=where, then="the memory is unchanged")
    if frame.height != 1:
        raise DataError(
            f"the table has {frame.height:,} rows",
            where=where,
            hint="pass exactly one row: the state at one instant",
            then="the memory is unchanged",
        )
    return dict(zip(frame.columns, frame.row(0), strict=True))


def _vector(store: MemoryStore, row: dict[str, Any]) -> Any:
    try:
        return store.vector(row)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"a feature of the manifest is not a number: {error}",
            where="data",
            hint="cast the columns to floats",
            then="the memory is unchanged",
        ) from None


def _number(profit: Any) -> float:
    """As a float; NaN for what is not a number: a truth value and a text are none."""
    if isinstance(profit, bool | str | bytes):
        return math.nan
    try:
        return float(profit)
    except (TypeError, ValueError):
        return math.nan


def _instant(value: Any) -> int:
    """ns UTC of a row's ``timestamp``; a naive one is UTC, none is now."""
    if value is None:
        return clock.now_ns()
    try:
        moment = value if isinstance(value, dt.datetime) else dt.datetime.fromisoformat(str(value))
    except ValueError:
        raise DataError(
            f"timestamp = {value!r} is not an instant",
            where="store_pattern",
            hint="give a datetime in UTC",
            then="the memory is unchanged",
        ) from None
    return clock.from_datetime(moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC))
