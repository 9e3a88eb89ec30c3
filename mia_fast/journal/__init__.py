"""The audit trail: decisions, penalties, risk snapshots, levels, trades, alerts, telemetry.

A row goes first into a segment file (safe from kill -9 when the call returns), then, off the hot
path, into ``data/mia.duckdb``, from which the CSV files of the contract are exported::

    journal = Journal.open(Workspace.current(), pin_core=1)
    journal.append("decisions", {"timestamp": now_ns, "trade_id": "T123", ...})
    journal.query("SELECT count(*) FROM decisions")
    journal.close()

See ``docs/decisions/0003-journal.md`` for why it is built so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mia_fast.journal import decision as decisions
from mia_fast.journal import outbox
from mia_fast.journal.guard import JournalInUseError
from mia_fast.journal.reader import Reader
from mia_fast.journal.schema import DECISIONS, LATEST_NS, TABLES, is_flat
from mia_fast.journal.store import _OPEN, Journal, Settings, is_open, of
from mia_fast.telemetry import RECORDER
from mia_fast.workspace import AnyWorkspace, Workspace

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "TABLES",
    "Journal",
    "JournalInUseError",
    "Reader",
    "Settings",
    "export",
    "flush",
    "is_open",
    "log_decision",
    "of",
    "post",
    "query",
]

_WORKSPACES: Final[dict[tuple[str | None, str], Workspace]] = {}
_DECISIONS: Final = TABLES["decisions"]
_record: Final = RECORDER.record
_FLOAT: Final = np.dtype("<f8")
_UNKNOWN: Final = (None,) * (_DECISIONS.names.index("input_hash") - 5)


def log_decision(
    trade_id: str,
    decision: str,
    signal_score: float,
    regime_probs: Mapping[str, float] | None,
    context: Sequence[float] | np.ndarray | Mapping[str, float] | None = None,
    *,
    workspace: AnyWorkspace | None = None,
    now_ns: int | None = None,
    durable: bool = False,
) -> int:
    """Write one line of the audit trail; it survives the end of the process when this returns.

    Each call is one line, also when a ``trade_id`` comes twice: an audit trail tells what was
    called. (A replay gives ``run_id`` to :meth:`Journal.append`, and then a row it repeats is
    stored once.)

    Parameters
    ----------
    trade_id
        The desk's name for the trade; not empty.
    decision
        What was decided: ``"buy"``, ``"sell"``, ``"exit"`` or ``"hold"``; nothing else is accepted.
    signal_score
        The signal, as the policy gives it; finite.
    regime_probs
        Probability, 0 to 1, of each regime or of some: ``trend``, ``range``, ``defensive``.
        JSON has no NaN: a number that is not finite is written as null.
    context
        The 150 features seen: in manifest order and as many as the workspace's ``selection.json`` names (where it has
        one), or by name (the names are then kept beside them).
        Stored as little-endian float64, with their SHA-256 as ``input_hash``.
    workspace
        Default: ``MIA_WORKSPACE``, else the current directory.
    now_ns
        The instant, nanoseconds since 1970 UTC. Default: the wall clock; a replay gives the bar's time.
    durable
        Also survive a power cut.

    Returns
    -------
    int
        The line's sequence number.

    Raises
    ------
    JournalError
        The line was not accepted.
    """
    # What @operation does, without a second call: this one is measured in microseconds.
    start, ticks, success = time.time_ns(), time.perf_counter_ns(), False
    try:
        place = _given(workspace)
        decisions.check(trade_id, signal_score, regime_probs)
        journal = _OPEN.get(place.root) or of(place)
        instant = start if now_ns is None else now_ns
        names, seen, inputs = None, None, None
        if context is not None:
            if isinstance(context, Mapping):
                names, context = list(context), list(context.values())
            if isinstance(context, np.ndarray) and context.dtype is _FLOAT:
                features = context
            else:
                features = np.asarray(context, _FLOAT)
            if names is None:
                decisions.check_context(place, features.size)
            seen = features.tobytes() if features.ndim == 1 else features  # which is refused
            inputs = b""  # nothing is hashed but the features
        # In the order of the columns; between the probabilities and the hash is what only an engine knows.
        values = [instant, trade_id, decision, signal_score, regime_probs]
        values += (*_UNKNOWN, inputs, None, None, seen, names, None)
        if (  # sound as it is: most calls are
            type(instant) is int
            and 0 <= instant <= LATEST_NS
            and type(decision) is str
            and decision in DECISIONS
            and type(trade_id) is str
            and type(signal_score) is float
            and (regime_probs is None or is_flat(regime_probs))
            and names is None
            and (seen is None or type(seen) is bytes)
        ):
            sequence = journal.append_values(_DECISIONS, values, durable)
        else:
            sequence = journal.append("decisions", dict(zip(_DECISIONS.names, values, strict=True)), durable=durable)
        success = True
        return sequence
    finally:
        _record("decision_log", "log_decision", start, time.perf_counter_ns() - ticks, success)


def post(workspace: Workspace, table: str, row: Mapping[str, Any]) -> str | None:
    """Append one row; where another process holds the journal, leave it there for that process.

    For what must not wait for an engine to end: the kill switch, levels computed beside it. Such a row is in the
    journal's outbox, on the disk, and goes into the journal when its holder (or the next opener) takes it,
    usually within a second. A decision is not written so: :func:`log_decision` promises the line itself.

    Returns
    -------
    str or None
        Who holds the journal, where the row was left; None where it was accepted.

    Raises
    ------
    JournalError
        The row was neither accepted nor left.
    """
    try:
        of(workspace, wait=False).append(table, row)
    except JournalInUseError as error:
        outbox.put(workspace, table, row)
        return error.what
    return None


def flush(workspace: AnyWorkspace | None = None) -> list[Path]:
    """Bring everything accepted so far into DuckDB and refresh the CSV exports; the files written.

    Raises
    ------
    JournalError
        The journal cannot be opened, its writer has failed, or a file cannot be written.
    """
    return of(_given(workspace)).export()


def export(
    source: Workspace | Journal,
    tables: Iterable[str] | None = None,
    *,
    parquet: bool = False,
    whole: bool = False,
) -> list[Path]:
    """Write the exports of a workspace (or of an open journal); the files.

    A workspace whose journal this process does not have open is opened for it, recovered and
    closed; while an engine of another process has it open, a snapshot beside that engine is read.

    Parameters
    ----------
    source
        Where the rows are.
    tables
        Which tables; None: all that have an export.
    parquet
        Instead of the contract's CSV files write one Parquet file per table and UTC day, all columns.
    whole
        Write everything again, not only the days with new rows. The bytes are the same.

    Raises
    ------
    JournalError
        A table has no export, or a file cannot be written.
    """
    if isinstance(source, Journal):
        return source.export(tables, parquet=parquet, whole=whole)
    if is_open(source):
        return of(source).export(tables, parquet=parquet, whole=whole)
    try:
        journal = Journal.open(source)
    except JournalInUseError:
        with Reader(source) as reader:
            return reader.export(tables, parquet=parquet, whole=whole)
    try:
        return journal.export(tables, parquet=parquet, whole=whole)
    finally:
        journal.close(export=False)


def query(source: Workspace, sql: str, parameters: Sequence[Any] | None = None) -> pl.DataFrame:
    """One read-only statement over everything accepted so far, also while another process writes.

    Parameters
    ----------
    source
        Where the rows are.
    sql
        A single SELECT, DESCRIBE, SHOW or EXPLAIN over :data:`TABLES`. It sees no files and no network.
    parameters
        For its ``?``.

    Raises
    ------
    JournalError
        The SQL is wrong or does not only read, or the journal is missing or damaged.
    """
    if is_open(source):
        return of(source).query(sql, parameters)
    with Reader(source) as reader:
        return reader.query(sql, parameters)


def _given(workspace: AnyWorkspace | None) -> Workspace:
    return _current() if workspace is None else Workspace.current(workspace)


def _current() -> Workspace:
    """``Workspace.current()`` without its walk through the file system at each call."""
    key = (os.environ.get("MIA_WORKSPACE"), os.getcwd())  # noqa: PTH109 - 1 us
    workspace = _WORKSPACES.get(key)
    if workspace is None:
        workspace = _WORKSPACES[key] = Workspace.current()
    return workspace
