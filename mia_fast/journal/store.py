"""The journal itself: rows in at one end, DuckDB at the other, nothing acknowledged ever lost between."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

from mia_fast import clock, telemetry
from mia_fast.errors import JournalError
from mia_fast.journal import export as exporting
from mia_fast.journal import outbox, segments
from mia_fast.journal import sql as sqls
from mia_fast.journal.database import Database, DatabaseDamagedError, first_line, is_damage
from mia_fast.journal.guard import Incidents, WorkspaceLock
from mia_fast.journal.reader import run_export
from mia_fast.journal.recovery import NAMES, Recovery, failure
from mia_fast.journal.retention import expire
from mia_fast.journal.schema import TABLES, Table, table_named
from mia_fast.workspace import Workspace

if TYPE_CHECKING:
    import polars as pl

    from mia_fast.alerts.config import AlertsConfig
    from mia_fast.alerts.dispatcher import Dispatcher
    from mia_fast.journal.metrics import Metrics

_LOG: Final = logging.getLogger(__name__)
_PACK: Final = segments.PACK


@dataclass(frozen=True, slots=True)
class Settings:
    """How the journal spreads its work.

    Attributes
    ----------
    interval
        Seconds between two drains when little happens.
    queue_rows
        Accepted rows that may wait for DuckDB. Beyond it audit rows make their caller wait; from
        half of it on, telemetry is sampled.
    batch_rows
        Rows in one transaction.
    segment_bytes
        Size at which a segment is sealed. Each sealed segment costs one checkpoint.
    reserve_bytes
        Of the first segment, written ahead as zeros when the journal opens; later ones are made ready whole, by the
        writer.
    retention_days
        Days a table keeps a row; tables that are not named keep theirs for ever.
    compact_share, compact_bytes
        When the journal opens and more than this share of a file of at least this size is free or
        held by deleted rows, it is written anew.
    metrics_port
        Port of the Prometheus endpoint on the loopback; None: none.
    pause
        Waits between retries of the writer, and of the opening; it returns early when the journal closes. None:
        the journal's own.
    """

    interval: float = 0.25
    queue_rows: int = 65_536
    batch_rows: int = 16_384
    segment_bytes: int = 8 << 20
    reserve_bytes: int = 1 << 20
    retention_days: Mapping[str, int] = field(default_factory=dict)
    compact_share: float = 0.5
    compact_bytes: int = 64 << 20
    metrics_port: int | None = None
    pause: Callable[[float], Any] | None = None

    @classmethod
    def of(cls, workspace: Workspace) -> Settings:
        """As the workspace's ``config/journal.yaml`` says.

        Raises
        ------
        ConfigError
            It is present but invalid.
        """
        from mia_fast.journal.config import journal_config

        config = journal_config(workspace)
        return cls(
            interval=config.interval_seconds,
            queue_rows=config.queue_rows,
            batch_rows=config.batch_rows,
            segment_bytes=config.segment_mib << 20,
            retention_days={name: days for name, days in config.retention_days.items() if days is not None},
            compact_share=config.compaction.free_fraction,
            compact_bytes=config.compaction.min_mib << 20,
            metrics_port=config.metrics_port,
        )


class Journal:
    """The audit trail of one workspace. Thread-safe.

    Use :meth:`open`, or :func:`mia_fast.journal.of` for the one of the process. While it is open no
    other process can open it; readers there use the exports.
    """

    def __init__(self, workspace: Workspace, guard: WorkspaceLock, settings: Settings, now: Callable[[], int]) -> None:
        self.workspace = workspace
        self._guard = guard
        self.messages: list[str] = []
        """What start-up found and did, in plain words."""
        self.first = 1
        """The first sequence number of this opening."""
        self._settings = settings
        self._now = now
        self._data = workspace.data
        self._folder = self._data / "journal"
        self._path = self._data / "mia.duckdb"
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._moved = threading.Condition(self._lock)
        self._reading = threading.Lock()
        self._ending = threading.Event()
        self._pending: list[bytes] = []
        self._taken = 0
        """The last sequence number that has left ``_pending``."""
        self._full = settings.segment_bytes
        """The segment's size at which the next one begins."""
        self._spare: segments.Spare | None = None
        self._synced = False
        """Somebody waits for the disk: a spare segment is made ready down to it."""
        self._sealed: list[tuple[int, Path]] = []
        self._hurry = False
        self._fault: str | None = None
        self._spool_trouble: str | None = None
        self._writer_trouble: str | None = None
        self._sampled = 0
        self._sampled_total = 0
        self._waits = 0
        self._waited_ns = 0
        self._waits_total = 0
        self._repeated = 0
        self._gauge = telemetry.Gauge()
        self._collecting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._database: Database | None = None
        self._next = 1
        self._drained = 0
        self._day = 0
        self._done: list[str] = []
        self._listeners: list[Callable[[], None]] = []
        self._metrics: Metrics | None = None
        self._dispatcher: Dispatcher | None = None

    # ---------------------------------------------------------------- start-up, which is recovery

    @classmethod
    def open(
        cls,
        workspace: Workspace,
        *,
        pin_core: int | None = None,
        settings: Settings | None = None,
        now: Callable[[], int] = clock.now_ns,
        wait: bool = True,
    ) -> Journal:
        """Open the journal of a workspace; what a crash left in the segments goes into DuckDB first.

        Parameters
        ----------
        workspace
            An empty folder is fine; ``data/mia.duckdb`` and ``data/journal`` are created.
        pin_core
            The core for the writer thread; give one that the live loop does not use. None: any.
        settings
            Sizes and intervals. None: what ``config/journal.yaml`` says.
        now
            The clock for what the journal itself reports (alerts, incidents, names of quarantined files).
        wait
            Where another program holds the database file, try again 2, 4 and 8 seconds later. False on a live path.

        Raises
        ------
        JournalError
            Another process holds it, the folder cannot be written, the disk is full, or the database
            belongs to another version.
        ConfigError
            ``config/journal.yaml`` or ``config/alerts.yaml`` is present but invalid.
        """
        chosen = settings if settings is not None else Settings.of(workspace)
        telling = _alerts_config(workspace)
        if pin_core is not None and pin_core not in _cores():
            raise JournalError(
                f"core {pin_core} is not available to this process",
                where="pin_core",
                hint=f"choose one of {sorted(_cores())}",
                then="nothing was opened",
            )
        try:
            (workspace.data / "journal").mkdir(parents=True, exist_ok=True)
            guard = WorkspaceLock(workspace.data / ".mia.lock")
        except OSError as error:
            raise _unwritable(workspace.data, error) from error
        journal = cls(workspace, guard, chosen, now)
        try:
            journal._start(wait)
        except OSError as error:
            journal._abandon()
            raise _unwritable(workspace.data, error) from error
        except BaseException:
            journal._abandon()
            raise
        thread = threading.Thread(target=journal._write, args=(pin_core,), name="mia-journal", daemon=True)
        journal._thread = thread
        thread.start()
        with _OPEN_LOCK:
            _OPEN[workspace.root] = journal
        try:
            for message in journal.messages:
                journal._note("JOURNAL_RECOVERY", 4 if journal._incidents.open else 2, message)
            for message in journal._done:
                journal._note(message.partition(":")[0], 1, message)
            with _threads_on(pin_core):
                journal._serve_metrics()
                if telling is not None:
                    journal._dispatch(telling)
        except BaseException:
            journal._abandon()
            raise
        return journal

    def _start(self, wait: bool) -> None:
        for module in ("polars", "pyarrow", "tenacity"):
            # Not at first use: that may be the drain at exit, when the interpreter loads no more threading modules.
            importlib.import_module(module)
        self._incidents = Incidents(self._folder / "incidents.json")
        recovery = Recovery(
            self._data, self._incidents, self._now, self._settings.batch_rows, self._pause if wait else None
        )
        try:
            self._database = database = recovery.run()
        finally:
            self.messages = recovery.messages
        self._next = self.first = recovery.next
        self._repeated = recovery.repeated
        self._ordinal = recovery.ordinal + 1
        self._taken = self._next - 1
        segments.Spare.forget(self._folder)
        reserve = min(self._settings.reserve_bytes, self._settings.segment_bytes)
        path = segments.path_of(self._folder, self._ordinal)
        self._segment = segments.Segment(path, self._next, NAMES, reserve=reserve)
        self._segment.sync_name()
        segments.sync(self._segment.handle())
        # From here the new segment keeps the count: the old ones may go once DuckDB holds their rows.
        try:
            database.checkpoint()
        except Exception as error:
            raise failure("the checkpoint", self._path, error) from error
        self._drained = database.drained
        recovery.retire()
        try:
            self._database = self._compacted(database)
            self._expire()
        except Exception as error:
            raise failure("retention", self._path, error) from error

    def _abandon(self) -> None:
        """Let go of everything after a failed start."""
        self._ending.set()
        with self._lock:
            self._fault = self._fault or "the journal did not start"
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()
        if self._database is not None:
            self._database.close()
        segment = self.__dict__.pop("_segment", None)
        if segment is not None:
            segment.finish()
        self._discard_spare()
        self._guard.release()
        _forget(self)

    def _compacted(self, database: Database) -> Database:
        """The database without the room that deleted rows left, where that is worth it."""
        size = self._path.stat().st_size
        if size < self._settings.compact_bytes or database.wasted_share() <= self._settings.compact_share:
            return database
        self._database = None
        smaller = database.compacted()
        self._done.append(
            f"JOURNAL_COMPACTED: before_mb={size / 1e6:.1f} after_mb={self._path.stat().st_size / 1e6:.1f}"
        )
        return smaller

    def _expire(self) -> None:
        """Once for each UTC day: what is older than its table keeps leaves."""
        now = self._now()
        day = now // (86_400 * clock.NS_PER_SECOND)
        if day > self._day and self._settings.retention_days:
            self._done += expire(self._ready(), self._data, self._settings.retention_days, now)
        self._day = max(self._day, day)

    def _serve_metrics(self) -> None:
        """Start the endpoint; where that fails the journal goes on, and an alert says why."""
        if self._settings.metrics_port is None:
            return
        from mia_fast.journal.metrics import Metrics

        try:
            self._metrics = Metrics(self, self._settings.metrics_port)
        except (OSError, ImportError) as error:
            message = f"METRICS_UNAVAILABLE: port={self._settings.metrics_port} ({first_line(error)})"
            self._note("METRICS_UNAVAILABLE", 3, message)

    def _dispatch(self, config: AlertsConfig) -> None:
        """Tell people; where the outbox cannot be opened the journal goes on, and says so."""
        import sqlite3

        from mia_fast.alerts.dispatcher import Dispatcher

        try:
            self._dispatcher = Dispatcher(self, config, self._now)
        except (sqlite3.Error, OSError) as error:
            message = f"ALERTS_UNAVAILABLE: nobody is told of alerts ({first_line(error)})"
            self._note("ALERTS_UNAVAILABLE", 4, message)

    def on_alert(self, listener: Callable[[], None]) -> None:
        """From now on call ``listener``, on the writer thread, when alerts are in DuckDB or the writer has failed.

        It must return at once and must not raise.
        """
        self._listeners.append(listener)

    def _tell_listeners(self) -> None:
        for listener in self._listeners:
            listener()

    # ---------------------------------------------------------------- rows in

    def append(self, table: str, row: Mapping[str, Any], *, durable: bool = False) -> int:
        """Accept one row; when this returns, it survives the end of the process (kill -9 included).

        Parameters
        ----------
        table
            One of :data:`mia_fast.journal.TABLES`.
        row
            Values by column; absent and None are null.
        durable
            Also wait until the row survives a power cut (fdatasync: some 0.2 ms, at worst tens of ms).

        Returns
        -------
        int
            The row's sequence number; 0 for a telemetry row that was sampled out (and counted).

        Raises
        ------
        JournalError
            The row does not fit its table, the disk takes no more, or the writer has failed. The row
            was not accepted.
        """
        declared = TABLES.get(table) or table_named(table)
        return self.append_values(declared, declared.values(row), durable)

    def append_values(self, table: Table, values: list[Any], durable: bool = False, *, wait: bool = True) -> int:
        """As :meth:`append`, for the hot path: values as :meth:`Table.in_order` gives them.

        Parameters
        ----------
        table, values
            What :meth:`Table.in_order` of that table gave.
        durable
            As for :meth:`append`.
        wait
            Hold the caller while the queue is full. The journal's own threads must not wait for themselves.

        Raises
        ------
        JournalError
            As :meth:`append`.
        """
        try:
            content = _PACK([table.name, *values, True])  # segments.encode
        except (UnicodeEncodeError, OverflowError) as error:
            raise JournalError(
                f"a value cannot be written as UTF-8 or as a 64-bit number ({error})",
                where=f"a row for {table.name}",
                hint="a lone surrogate in a text usually comes from undecodable bytes: remove it",
                then="the row was not accepted",
            ) from error
        handle = -1
        with self._lock:
            if self._fault is not None:
                self._raise_fault()
            backlog = self._next - 1 - self._drained
            if not table.audit and backlog >= self._settings.queue_rows // 2:
                self._sampled += 1
                return 0
            if wait and backlog >= self._settings.queue_rows:
                self._wait_for_room()
            if self._segment.size >= self._full:
                self._seal()
            sequence = self._next
            segment = self._segment
            size = segment.size
            try:
                segment.append(sequence, content)
                self._pending.append(content)
                self._next = sequence + 1
            except OSError as error:
                self._refuse(error)
            except BaseException:
                self._take_back(sequence, size)
                raise
            self._spool_trouble = None
            if len(self._pending) >= self._settings.batch_rows:
                self._wake.notify()
            if durable:
                handle = self._prepare_sync(sequence)
        if durable:
            try:
                segments.sync(handle)
            except OSError as error:
                self._fail(_unconfirmed(sequence, error))
                self._raise_fault()
        return sequence

    def _take_back(self, sequence: int, size: int) -> None:
        """After an interrupt (Ctrl-C) inside an append: the row was not accepted, so it must not stand in the file.

        Otherwise the next row would get the same number, and recovery would keep the wrong one.
        """
        try:
            self._segment.cut(sequence, size)
        except OSError as error:
            self._fault = f"the end of {self._segment.path} is unknown after an interrupt ({error})"
        del self._pending[sequence - 1 - self._taken :]
        self._next = sequence

    def _prepare_sync(self, sequence: int) -> int:
        """A handle to wait on outside the lock. The row is in the file already: a failure here is final."""
        self._synced = True
        try:
            self._segment.sync_name()
            return self._segment.handle()
        except OSError as error:
            self._fault = _unconfirmed(sequence, error)
            self._raise_fault()

    def _wait_for_room(self) -> None:
        """Hold the caller until DuckDB has caught up. The lock is held on entry and on return."""
        began = time.perf_counter_ns()
        self._waits += 1
        while self._next - 1 - self._drained >= self._settings.queue_rows:
            self._hurry = True
            self._wake.notify()
            self._moved.wait(1.0)
            if self._fault is not None:
                self._raise_fault()
        self._waited_ns = max(self._waited_ns, time.perf_counter_ns() - began)

    def _seal(self, *, last: bool = False) -> None:
        """Begin a new segment. Where that fails the old one just grows: the next row tries again.

        The ``last`` one of this opening takes no rows any more.
        """
        spare, self._spare = (None, self._spare) if last else (self._spare, None)
        self._full = self._settings.segment_bytes
        with contextlib.suppress(OSError):
            path = segments.path_of(self._folder, self._ordinal + 1)
            fresh = segments.Segment(path, self._next, NAMES, spare=spare)
            self._ordinal += 1
            self._sealed.append((self._segment.last, self._segment.path))
            self._segment.finish()
            self._segment = fresh

    def _provide(self) -> None:
        """Once half of the segment is used, make the next one ready: on the writer's side, before it is needed.

        A row then meets pages and blocks that are there. Without a spare, rows are written as well, at two to ten times
        the price.
        """
        with self._lock:
            if self._spare is not None or 2 * self._segment.size < self._ready_bytes():
                return
        try:
            spare = segments.Spare(self._folder, self._settings.segment_bytes)
            if self._synced:
                segments.sync(os.dup(spare.fd))
        except OSError:
            return
        with self._lock:
            self._spare = spare
            self._full = self._ready_bytes()

    def _ready_bytes(self) -> int:
        """How far the present segment goes before its rows meet new pages."""
        return min(max(self._segment.reserved, 1), self._settings.segment_bytes)

    def _discard_spare(self) -> None:
        if self._spare is not None:
            self._spare.discard()
            self._spare = None

    def _refuse(self, error: OSError) -> NoReturn:
        if error.filename is not None:
            self._fault = f"the end of {error.filename} is unknown after a failed write ({error})"
            self._raise_fault()
        self._spool_trouble = f"the journal cannot be written ({error.strerror})"
        raise JournalError(
            f"the row could not be written ({error.strerror})",
            where=str(self._segment.path),
            hint="free disk space or restore the disk",
            then="the row was not accepted; the next one is tried afresh",
        ) from error

    def _note(self, code: str, priority: int, message: str) -> None:
        """A row of the journal's own; never waits for room, so the writer may call it.

        On a full disk it goes to the log alone: health() already says why, and the writer must live.
        """
        table = TABLES["alerts"]
        row = {"timestamp": self._now(), "priority": priority, "code": code, "message": message, "source": "journal"}
        try:
            self.append_values(table, table.values(row), wait=False)
        except JournalError:
            _LOG.warning(message)
            if self._fault is not None:
                raise

    # ---------------------------------------------------------------- the writer thread

    def _write(self, pin_core: int | None) -> None:
        try:
            if pin_core is not None:
                os.sched_setaffinity(0, {pin_core})  # 0: the calling thread, and DuckDB works in it
            while True:
                with self._lock:
                    self._wake.wait_for(self._called, self._settings.interval)
                    self._hurry = False
                    if self._fault is not None:
                        return
                    ending = self._ending.is_set()
                if not ending:
                    self._provide()
                self._collect()
                self._drain()
                self._keep_house()
                if ending:
                    return
        except BaseException as error:  # whatever it is, nobody must believe that the journal still works
            self._fail(f"the writer has stopped ({type(error).__name__}: {first_line(error)})")
            if is_damage(error):
                self._suspect()
            _LOG.exception("the journal's writer has stopped; what was accepted stays in the segments")

    def _keep_house(self) -> None:
        """Retention, when a new day has begun. It may fail as any write may, and is then tried the same way."""
        if self._now() // (86_400 * clock.NS_PER_SECOND) <= self._day:
            return
        self._persist(self._expire)
        done, self._done = self._done, []
        for message in done:
            self._note(message.partition(":")[0], 1, message)

    def _called(self) -> bool:
        return (
            self._hurry
            or self._ending.is_set()
            or self._fault is not None
            or len(self._pending) >= self._settings.batch_rows
        )

    def _collect(self) -> None:
        """Bring in telemetry and what other processes left, and say what was sampled or had to wait."""
        with self._collecting:
            self._fetch()
            lost = 0
            if _telemetry_owner() is self:
                measured, lost = telemetry.RECORDER.drain()
                lost += self._take(measured)
            with self._lock:
                self._sampled += lost
                sampled, waits, longest = self._sampled, self._waits, self._waited_ns
                self._sampled, self._waits, self._waited_ns = 0, 0, 0
                self._sampled_total += sampled
                self._waits_total += waits
            if sampled:
                self._note("TELEMETRY_SAMPLED", 1, f"TELEMETRY_SAMPLED: rows={sampled}")
            if waits:
                message = f"JOURNAL_BACKPRESSURE: waits={waits} longest_ms={longest / 1e6:.1f}"
                self._note("JOURNAL_BACKPRESSURE", 3, message)

    def _fetch(self) -> None:
        """Take the rows that processes without the journal left beside it; on a full disk they wait on."""
        with contextlib.suppress(JournalError):  # health() says why; a fault of the writer ends it a step later
            for message in outbox.take(
                self._folder / outbox.FOLDER,
                lambda table, values: self.append_values(table, values, durable=True, wait=False),
            ):
                self._note("JOURNAL_OUTBOX", 3, message)

    def _take(self, measured: Sequence[telemetry.Measured]) -> int:
        """Accept telemetry rows; how many the disk refused."""
        if not measured:
            return 0
        memory, cpu = self._gauge.sample()
        if self._metrics is not None:
            self._metrics.add(measured, memory, cpu)
        table = TABLES["telemetry"]
        for count, (_, component, name, start, latency, success) in enumerate(measured):
            try:
                values = [start, component, name, latency / 1e9, success, memory, cpu]
                self.append_values(table, values, wait=False)
            except JournalError:
                if self._fault is not None:
                    raise
                return len(measured) - count
        return 0

    def _drain(self) -> None:
        """Move all that is pending into DuckDB, then retire the segments that are through."""
        while True:
            with self._lock:
                if not self._pending:
                    break
                first = self._taken + 1
                batch = self._pending[: self._settings.batch_rows]
                del self._pending[: self._settings.batch_rows]
                self._taken += len(batch)
            self._persist(functools.partial(self._insert, first, batch))
            with self._lock:
                self._drained = first + len(batch) - 1
                self._moved.notify_all()
        with self._lock:
            done = [item for item in self._sealed if item[0] <= self._drained]
        if done:
            self._persist(lambda: self._ready().checkpoint())
            segments.sync_folder(self._folder)  # the newer segment's name must be safe before the older one goes
            for _, path in done:
                path.unlink()
            with self._lock:
                self._sealed = [item for item in self._sealed if item not in done]

    def _persist(self, work: Callable[[], None]) -> None:
        """Do it; after a transient fault again, on a fresh connection."""
        telemetry.retrying(work, transient=_store_fault, sleep=self._pause, failed=self._stumble)
        self._writer_trouble = None

    def _ready(self) -> Database:
        """The database, opened afresh after a fault."""
        if self._database is None:
            with self._reading:
                self._database = Database(self._path)
        return self._database

    def _insert(self, first: int, contents: list[bytes]) -> None:
        """One transaction. A commit that failed before may have happened: ``drained`` tells."""
        database = self._ready()
        done = max(database.drained + 1 - first, 0)
        rows = segments.decode_rows(first + done, contents[done:])
        if rows:
            result = database.insert(rows, rows[-1][0])
            self._repeated += result.repeated
            for refused in result.refused:
                _LOG.error(refused)
            if self._listeners and (result.refused or any(row[1] == "alerts" for row in rows)):
                self._tell_listeners()

    def _stumble(self, error: BaseException) -> None:
        self._writer_trouble = f"the journal's database cannot be written, trying again ({first_line(error)})"
        _LOG.warning(self._writer_trouble)
        with self._reading:
            if self._database is not None:
                self._database.close()
                self._database = None

    def _pause(self, seconds: float) -> None:
        if self._settings.pause is not None:
            self._settings.pause(seconds)
        else:
            self._ending.wait(seconds)

    def _fail(self, reason: str) -> None:
        with self._lock:
            self._fault = self._fault or reason
            self._wake.notify_all()
            self._moved.notify_all()
        self._tell_listeners()

    def _raise_fault(self) -> NoReturn:
        raise JournalError(
            str(self._fault),
            where=str(self._path),
            hint="stop the engine, remove the cause and start again; start-up brings in what was accepted",
            then="the row was not accepted; entries are to be blocked while health() is not ok",
        )

    # ---------------------------------------------------------------- out

    def health(self) -> str:
        """``"ok"``, or why entries must be blocked. A few attribute reads: fit for every bar."""
        return self._fault or self._spool_trouble or self._writer_trouble or self._incidents.reason or "ok"

    def stats(self) -> dict[str, int]:
        """The state in numbers.

        ``accepted`` and ``drained`` are the last sequence numbers accepted and stored in DuckDB, ``backlog``
        their distance. The others count since the journal was opened: rows that were there already
        (``repeated``), callers held by back-pressure (``waits``), telemetry rows left out (``telemetry_sampled``).
        """
        with self._lock:
            return {
                "accepted": self._next - 1,
                "drained": self._drained,
                "backlog": self._next - 1 - self._drained,
                "repeated": self._repeated,
                "waits": self._waits_total + self._waits,
                "telemetry_sampled": self._sampled_total + self._sampled,
            }

    def acknowledge(self, reason: str) -> None:
        """Close the open incidents: a person has seen what was lost. Journalled, with the reason.

        Raises
        ------
        JournalError
            The reason is empty, or the row cannot be written.
        """
        if not reason.strip():
            raise JournalError("an empty reason", where="acknowledge", hint="say who looked and what was found")
        if not self._incidents.open:
            return
        message = f"JOURNAL_ACKNOWLEDGED: reason={reason} incidents={self._incidents.reason}"
        row = {"timestamp": self._now(), "priority": 3, "code": "JOURNAL_ACKNOWLEDGED", "message": message}
        self.append("alerts", {**row, "source": "journal"}, durable=True)
        self._incidents.close()

    def flush(self) -> None:
        """Return when every row accepted before the call is in DuckDB, telemetry included.

        Raises
        ------
        JournalError
            The writer has failed.
        """
        with self._lock:
            if self._fault is not None:
                self._raise_fault()
        self._collect()
        with self._lock:
            target = self._next - 1
            while self._drained < target:
                if self._fault is not None:
                    self._raise_fault()
                self._hurry = True
                self._wake.notify()
                self._moved.wait(1.0)

    def query(self, sql: str, parameters: Sequence[Any] | None = None) -> pl.DataFrame:
        """The result of one read-only statement over everything accepted so far.

        Instants come as Datetime("ns", "UTC"). SQL sees this database only: no files, no network.

        Raises
        ------
        JournalError
            The SQL is wrong, is not one reading statement, or the database is damaged.
        """
        sqls.check(sql)
        if self._fault is None:
            self.flush()
        return self.stored(sql, parameters)

    def stored(self, sql: str, parameters: Sequence[Any] | None = None) -> pl.DataFrame:
        """As :meth:`query`, over what is in DuckDB already: the writer is not waited for."""
        sqls.check(sql)
        with self._cursor() as cursor:
            return sqls.run(cursor, sql, parameters)

    @property
    def fault(self) -> str | None:
        """Why the journal takes no rows any more, or None."""
        return self._fault

    @contextlib.contextmanager
    def _cursor(self) -> Any:
        """A cursor for reading; damage it meets is remembered, so that the next start looks at every block."""
        import duckdb

        with self._reading:
            if self._database is None:
                raise JournalError(
                    self.health(), where=str(self._path), hint="try again when health() is ok", then="nothing was read"
                )
            cursor = self._database.cursor()
        try:
            yield cursor
        except duckdb.Error as error:
            if is_damage(error):
                self._suspect()
                raise JournalError(
                    f"a block is damaged ({first_line(error)})",
                    where=str(self._path),
                    hint="restart the engine: the file is then set aside and rebuilt from the segments",
                    then="entries are to be blocked; rows are still accepted",
                ) from error
            raise failure("reading", self._path, error) from error
        finally:
            cursor.close()

    def _suspect(self) -> None:
        """Remember that a block is damaged: health() shows it, and the next start reads every block."""
        with contextlib.suppress(OSError):  # where the disk refuses the note too, this process still knows
            self._incidents.record("database", f"a block of {self._path.name} is damaged", self._now())

    def export(self, tables: Iterable[str] | None = None, *, parquet: bool = False, whole: bool = False) -> list[Path]:
        """Write the CSV files of the contract; the paths of all that are up to date now.

        Only days with new rows are written again (see :mod:`mia_fast.journal.export`).

        Parameters
        ----------
        tables
            Which tables; None: all that have an export.
        parquet
            Instead write ``data/parquet/<table>/<day>.parquet``, all columns; the paths written.
        whole
            Write everything again.

        Raises
        ------
        JournalError
            The writer has failed, a table has no export, or a file cannot be written.
        """
        if tables is not None and not parquet:
            tables = [table.name for table in exporting.choose(tables)]
        if self._fault is None:
            self.flush()
        with self._cursor() as cursor:
            return run_export(cursor, self._data, tables, parquet=parquet, whole=whole)

    def close(self, *, export: bool = True) -> None:
        """Drain, checkpoint, export, let go of the lock. A second call does nothing.

        Raises
        ------
        JournalError
            Something of it failed. The journal is closed all the same, and what was accepted is in
            the segments.
        """
        if self._thread is None:
            return
        self._ending.set()
        with self._lock:
            self._wake.notify_all()
        self._thread.join()
        self._thread = None
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        problem: BaseException | None = None
        try:
            if self._fault is not None:
                self._raise_fault()
            self._finish(export=export)
        except BaseException as error:
            problem = error
        if self._dispatcher is not None:
            self._dispatcher.close()
            self._dispatcher = None
        with self._lock:
            self._fault = self._fault or "the journal is closed"
            self._segment.finish()
            self._discard_spare()
        if self._database is not None:
            self._database.close()
            self._database = None
        self._guard.release()
        _forget(self)
        if problem is not None:
            raise failure("closing", self._path, problem) from problem

    def _finish(self, *, export: bool) -> None:
        """What the writer left to do: the last rows, the exports, an empty segment that keeps the count."""
        self._collect()
        self._drain()
        self._ready()
        if export:
            with self._cursor() as cursor:
                exporting.write(cursor, self._data, exporting.choose(None))
        with self._lock:
            if self._segment.last >= self._segment.first:
                self._seal(last=True)
        self._drain()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close(export=kind is None)

    def _forked(self) -> None:
        """In a child of fork there is no writer, and what it would write belongs to its parent."""
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._moved = threading.Condition(self._lock)
        self._reading = threading.Lock()
        self._fault = "the journal belongs to the parent of this forked process"
        self._thread = None
        self._guard.forget()
        self._segment.close()
        if self._spare is not None:
            os.close(self._spare.fd)
            self._spare = None


# -------------------------------------------------------------------- one journal per workspace

_OPEN: Final[dict[Path, Journal]] = {}
_OPEN_LOCK: Final = threading.RLock()


def of(workspace: Workspace, *, wait: bool = True) -> Journal:
    """The journal of the workspace in this process; it is opened at the first call and closed at exit.

    ``wait``: as for :meth:`Journal.open`.

    Raises
    ------
    JournalError
        As :meth:`Journal.open`.
    """
    journal = _OPEN.get(workspace.root)
    if journal is None:
        with _OPEN_LOCK:
            journal = _OPEN.get(workspace.root) or Journal.open(workspace, wait=wait)
    return journal


def is_open(workspace: Workspace) -> bool:
    """Has this process the journal of the workspace open?"""
    return workspace.root in _OPEN


def _forget(journal: Journal) -> None:
    with _OPEN_LOCK:
        if _OPEN.get(journal.workspace.root) is journal:
            del _OPEN[journal.workspace.root]


def _telemetry_owner() -> Journal | None:
    """The journal that was opened last takes the process's telemetry: the work under way belongs to it."""
    return next(reversed(_OPEN.values()), None)


@atexit.register
def _close_all() -> None:
    for journal in list(_OPEN.values()):
        try:
            journal.close()
        except JournalError:
            _LOG.exception("the journal could not be closed cleanly; the next start recovers")


def _after_fork() -> None:
    for journal in list(_OPEN.values()):
        journal._forked()
    _OPEN.clear()
    _OPEN_LOCK.release()


os.register_at_fork(before=_OPEN_LOCK.acquire, after_in_parent=_OPEN_LOCK.release, after_in_child=_after_fork)


def _store_fault(error: BaseException) -> bool:
    """A full disk or a held lock may pass; damage and wrong data do not."""
    import duckdb

    if is_damage(error) or isinstance(error, DatabaseDamagedError):
        return False
    return isinstance(error, duckdb.IOException | duckdb.FatalException | JournalError | OSError)


def _unconfirmed(sequence: int, error: OSError) -> str:
    """After a failed sync nobody knows what is on the disk, and a second one may lie: this is final."""
    return f"the disk did not confirm row {sequence} ({error})"


def _alerts_config(workspace: Workspace) -> AlertsConfig | None:
    """``config/alerts.yaml`` where it names a channel."""
    from mia_fast.alerts.config import alerts_config

    config = alerts_config(workspace)
    return config if config.channels else None


@contextlib.contextmanager
def _threads_on(core: int | None) -> Iterator[None]:
    """Threads started in here stay on the core: a new thread inherits where its maker may run."""
    if core is None:
        yield
        return
    before = _cores()
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _cores() -> set[int]:
    return os.sched_getaffinity(0)


def _unwritable(where: Path, error: OSError) -> JournalError:
    return JournalError(
        f"the journal cannot be written ({error.strerror})",
        where=str(error.filename or where),
        hint="make the workspace's data folder writable, or free disk space",
        then="nothing was opened",
    )
