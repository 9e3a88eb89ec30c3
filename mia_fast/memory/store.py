"""``data/market_memory.db``: stored states with their outcomes, safe from crashes, open to other programs.

SQLite in WAL mode, one transaction per state: a reader or a crash sees a state with everything that belongs to
it, or not at all. A marker beside the file records that it once existed, so that a memory that is gone is
a fault and not an empty one.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
import os
import shutil
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mia_fast import clock
from mia_fast.errors import MarketMemoryError
from mia_fast.memory import schema
from mia_fast.memory.config import MemoryConfig
from mia_fast.memory.index import ALWAYS, OUTCOMES, Found, NeighbourIndex
from mia_fast.memory.manifest import MemoryManifest
from mia_fast.telemetry import retrying

Floats = NDArray[np.float64]
T = TypeVar("T")
Outcome = Literal["winning", "losing", "closed", "all"]

FILE: Final = "market_memory.db"
MARKER: Final = ".market_memory.created"
_STAMP: Final = "%Y-%m-%d %H:%M:%S"
_REASONS: Final = {
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "damaged",
    sqlite3.SQLITE_READONLY: "read_only",
    sqlite3.SQLITE_CANTOPEN: "io",
    sqlite3.SQLITE_PERM: "read_only",
    sqlite3.SQLITE_FULL: "full",
}
_HINTS: Final = {
    "gone": "restore it from a backup; or begin anew: mia-fast memory check --renew REASON",
    "locked": "another program holds it in a long transaction; close that program",
    "damaged": "restore it from a backup; or put it aside and begin anew: mia-fast memory check --renew REASON",
    "read_only": "check the permissions of the file and of its folder",
    "full": "free some space on the disk",
    "io": "check the disk, its free space, and the permissions of data/",
    "newer": "use the version of mia-fast that wrote it",
}
_SELECT: Final = (
    "SELECT c.cluster_id, o.profit, o.known_ns, o.run_id, v.manifest_id, v.state, "
    "CASE WHEN v.cluster_id IS NULL THEN c.features END, CASE WHEN o.cluster_id IS NULL THEN c.timestamp END "
    "FROM clusters c LEFT JOIN outcomes o USING (cluster_id) LEFT JOIN vectors v USING (cluster_id) "
    "WHERE c.cluster_id > ? ORDER BY c.cluster_id"
)


@dataclass(frozen=True, slots=True)
class Counts:
    """What the memory holds."""

    stored: int
    """Rows of ``clusters``."""
    compared: int
    """States of the present manifest: the neighbours are among them."""
    winning: int
    losing: int
    other_manifest: int
    """Kept, but stored under another list of features."""
    incomplete: int
    """Kept, but too many of the manifest's features are missing."""
    unreadable: int
    """Kept, but their JSON or their values cannot be read."""


@dataclass(frozen=True, slots=True)
class Purged:
    """What a purge did."""

    removed: int
    kept: int
    before: str
    """Rows older than this were removed, ``YYYY-MM-DD HH:MM:SS`` UTC."""
    undated: int
    """Rows whose timestamp SQLite cannot read; they are kept."""
    freed_bytes: int
    """Given back to the disk."""


@dataclass(frozen=True, slots=True)
class Check:
    """What :meth:`MemoryStore.check` found; no faults: sound."""

    counts: Counts
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    """What is kept but not used, and why."""


class Row(NamedTuple):
    """A state as it goes from one memory to another."""

    event_type: str
    features: str
    timestamp: str
    profit: float
    known_ns: int
    trade_id: str | None
    run_id: str
    recalled: float | None
    digest: str
    names: str
    state: bytes


class MemoryStore:
    """One memory, opened for reading and writing. Methods may be called from any thread.

    Parameters
    ----------
    folder
        Where ``market_memory.db`` lives: ``data`` of a workspace, or the folder of a replay.
    manifest
        Which features are compared.
    config
        ``config/memory.yaml``.
    sleep
        Waits between the retries of a locked file; None: no retries, for callers that must not sleep.

    Raises
    ------
    MarketMemoryError
        The file is gone although it once existed, locked, damaged, of a newer version, or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        manifest: MemoryManifest,
        config: MemoryConfig,
        *,
        sleep: Callable[[float], Any] | None = None,
    ) -> None:
        self.path, self._marker = folder / FILE, folder / MARKER
        self.manifest, self._config, self._sleep = manifest, config, sleep
        self._mutex = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._manifest_id: int | None = None
        self._prefixes = [("{" if k == 0 else ", ") + json.dumps(name) + ": " for k, name in enumerate(manifest.names)]
        self._index = NeighbourIndex(len(manifest.names))
        self._seen: tuple[int, int] | None = None  # data version of the file, generation of its removals
        self._last, self._behind = 0, False
        self._recalled: tuple[tuple[Any, ...], int, list[tuple[float, float]]] | None = None
        self._skipped = {"other_manifest": 0, "incomplete": 0, "unreadable": 0}
        self._retried(self._open)

    # Life

    def close(self) -> None:
        """Let go of the file."""
        with self._mutex:
            if self._db is not None:
                self._db.close()
                self._db = None

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def version(self) -> int:
        """Of the tables in the file."""
        with self._mutex:
            return _version(self._connection())

    def migrate(self, version: int) -> None:
        """Take the file to ``version`` of its tables. Back at version 1 only ``clusters`` is left, outcomes are lost.

        Raises
        ------
        MarketMemoryError
            There is no such version, or the file cannot be written.
        """
        if not 1 <= version <= schema.LATEST:
            raise self._error("input", f"there is no version {version} of the tables", f"1 to {schema.LATEST}")
        with self._mutex, self._faults():
            _migrate(self._connection(), version)
            self._index.clear()
            self._seen = self._manifest_id = None

    # Writing

    def store(
        self,
        state: Floats,
        profit: float,
        *,
        at_ns: int,
        known_ns: int | None = None,
        trade_id: str | None = None,
        run_id: str = "",
        recalled: float | None = None,
        event_type: str = "trade",
        features: Mapping[str, Any] | None = None,
    ) -> int:
        """Write one state with its outcome; it survives the end of the process when this returns.

        Parameters
        ----------
        state
            (features of the manifest,) float64, NaN where missing.
        profit
            What came of it, USD after fees.
        at_ns, known_ns
            When the state was seen, and when its outcome was known (default: the same), ns UTC.
        trade_id, run_id
            A trade is stored once: a second call with the same pair returns the first row's key.
        recalled
            ``pattern_replay_score`` when the state was seen.
        event_type
            As the contract's column.
        features
            What ``clusters.features`` holds, instead of the manifest's features by name.

        Returns
        -------
        int
            The row's ``cluster_id``.

        Raises
        ------
        MarketMemoryError
            The profit is not finite, the state has another width, or the file does not take the row.
        """
        values = np.ascontiguousarray(state, dtype="<f8")
        if values.shape != (len(self.manifest.names),):
            raise self._error("input", f"a state has shape {values.shape}", f"({len(self.manifest.names)},)")
        if not math.isfinite(profit):
            raise self._error("input", f"profit = {profit!r} is not a finite number", "USD after fees")
        known = at_ns if known_ns is None else known_ns
        text = self._json(values) if features is None else _dumps(features)
        blob = values.tobytes() if self._comparable(values) else None
        stamp = clock.to_datetime(at_ns).strftime(_STAMP)
        row = (event_type, text, stamp)

        def write() -> tuple[int, bool]:
            with self._writing() as db:
                if trade_id is not None:
                    held = db.execute(
                        "SELECT cluster_id FROM outcomes WHERE run_id = ? AND trade_id = ?", (run_id, trade_id)
                    ).fetchone()
                    if held is not None:
                        return int(held[0]), False
                key = db.execute("INSERT INTO clusters (event_type, features, timestamp) VALUES (?, ?, ?)", row)
                number = int(key.lastrowid or 0)
                db.execute(
                    "INSERT INTO outcomes VALUES (?, ?, ?, ?, ?, ?)",
                    (number, float(profit), known, trade_id, run_id, recalled),
                )
                if blob is not None:
                    db.execute("INSERT INTO vectors VALUES (?, ?, ?)", (number, self._manifest(db), blob))
                return number, True

        with self._mutex:
            number, new = self._retried(write)
            if new:
                if self._seen is not None and number == self._last + 1 and not self._behind and blob is not None:
                    one = np.array([number]), values[None], np.array([float(profit)]), np.array([known])
                    self._index.append(*one, np.array([bool(run_id)]))
                    self._last = number
                else:
                    self._behind = True
            return number

    def adopt(self, rows: Iterable[Row]) -> int:
        """Write states of another memory, in one transaction, but those that are here already; how many are new."""
        wanted = list(rows)

        def write() -> int:
            new = 0
            with self._writing() as db:
                for row in wanted:
                    held = db.execute(
                        "SELECT 1 FROM outcomes WHERE run_id = ? AND trade_id = ?", (row.run_id, row.trade_id)
                    ).fetchone()
                    if held is not None:
                        continue
                    text = (row.event_type, row.features, row.timestamp)
                    key = db.execute("INSERT INTO clusters (event_type, features, timestamp) VALUES (?, ?, ?)", text)
                    number = int(key.lastrowid or 0)
                    outcome = (row.profit, row.known_ns, row.trade_id, row.run_id, row.recalled)
                    db.execute("INSERT INTO outcomes VALUES (?, ?, ?, ?, ?, ?)", (number, *outcome))
                    manifest = _manifest_id(db, row.digest, row.names)
                    db.execute("INSERT INTO vectors VALUES (?, ?, ?)", (number, manifest, row.state))
                    new += 1
            return new

        with self._mutex:
            new = self._retried(write)
            self._behind = self._behind or new > 0
            return new

    def rows(self, run_id: str, *, until: int = ALWAYS) -> list[Row]:
        """The comparable states of a run (``""``: of no replay) whose outcome was known by ``until``, by key."""
        sql = (
            "SELECT c.event_type, c.features, c.timestamp, o.profit, o.known_ns, o.trade_id, o.run_id, o.recalled, "
            "m.digest, m.names, v.state FROM clusters c JOIN outcomes o USING (cluster_id) "
            "JOIN vectors v USING (cluster_id) JOIN manifests m USING (manifest_id) "
            "WHERE o.run_id = ? AND o.known_ns <= ? ORDER BY c.cluster_id"
        )
        with self._mutex, self._faults():
            return [Row(*row) for row in self._connection().execute(sql, (run_id, until))]

    def forget_after(self, run_id: str, known_ns: int) -> int:
        """Remove the states of a run whose outcome was known after ``known_ns``; how many."""

        def write() -> int:
            with self._writing() as db:
                return db.execute(
                    "DELETE FROM clusters WHERE cluster_id IN "
                    "(SELECT cluster_id FROM outcomes WHERE run_id = ? AND known_ns > ?)",
                    (run_id, known_ns),
                ).rowcount

        with self._mutex:
            self._behind = True
            return self._retried(write)

    def purge(self, now_ns: int, days: int | None = None, *, vacuum: bool) -> Purged:
        """Remove the rows older than ``days`` (default: the configuration's), check the file, give room back.

        Parameters
        ----------
        now_ns
            Ages are counted back from here, ns UTC.
        days
            Rows whose timestamp lies at least this many days back are removed; younger ones are kept.
        vacuum
            The file may be written anew now, which blocks its writers for a while: see ``vacuum`` of the configuration.

        Raises
        ------
        MarketMemoryError
            The file cannot be written, or is not sound afterwards.
        """
        kept_days = self._config.retention_days if days is None else days
        if kept_days < 1:
            raise self._error("input", f"{kept_days} days would keep nothing", "keep at least 1 day")
        cutoff = (clock.to_datetime(now_ns) - dt.timedelta(days=kept_days)).strftime(_STAMP)

        def write() -> tuple[int, int, int]:
            with self._writing() as db:
                removed = db.execute("DELETE FROM clusters WHERE datetime(timestamp) < ?", (cutoff,)).rowcount
                kept, undated = db.execute(
                    "SELECT count(*), count(*) - count(datetime(timestamp)) FROM clusters"
                ).fetchone()
                return removed, int(kept), int(undated)

        with self._mutex:
            removed, kept, undated = self._retried(write)
            self._behind = True
            with self._faults():
                db = self._connection()
                broken = [str(row[0]) for row in db.execute("PRAGMA integrity_check(5)")]
                if broken != ["ok"]:
                    raise self._error("damaged", f"the file is not sound: {'; '.join(broken)}", None)
                freed = self._vacuum(db) if vacuum else 0
        return Purged(removed, kept, cutoff, undated, freed)

    def _vacuum(self, db: sqlite3.Connection) -> int:
        pages, free, size = (
            int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count", "page_size")
        )
        limits = self._config.vacuum
        if free < limits.free_fraction * pages or pages * size < limits.min_mib * 2**20:
            return 0
        try:
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError:
            return 0  # somebody reads, or the disk has no room for the copy: the next purge tries again
        return (pages - int(db.execute("PRAGMA page_count").fetchone()[0])) * size

    # Reading

    def nearest(
        self,
        state: Floats,
        k: int,
        outcome: Outcome = "winning",
        *,
        until: int = ALWAYS,
        replays: bool = True,
    ) -> Found:
        """The ``k`` nearest stored states, exact; see :class:`~mia_fast.memory.index.NeighbourIndex`.

        Raises
        ------
        MarketMemoryError
            Too much of the state is missing, or the file cannot be read.
        """
        values = np.ascontiguousarray(state, dtype=np.float64)
        if not self._comparable(values):
            missing = [name for name, x in zip(self.manifest.names, values, strict=True) if not math.isfinite(x)]
            shown = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
            raise self._error("input", f"{len(missing)} of {len(values)} features are missing: {shown}", None)
        with self._mutex:
            self._retried(self._refresh)
            return self._index.nearest(values, k, wanted=OUTCOMES[outcome], until=until, replays=replays)

    def closed_count(self, *, until: int = ALWAYS, replays: bool = True) -> int:
        """How many states with an outcome known by ``until`` can be compared."""
        with self._mutex:
            self._retried(self._refresh)
            return self._index.count(wanted=OUTCOMES["closed"], until=until, replays=replays)

    def comparable(self, state: Floats) -> bool:
        """Enough of the state is there to compare it."""
        return self._comparable(np.asarray(state, dtype=np.float64))

    def describe(self, found: Found) -> pl.DataFrame:
        """Neighbours as a frame, nearest first.

        ``cluster_id``, ``event_type``, ``timestamp`` (UTC), ``profit`` in USD, ``distance``, ``trade_id``, ``run_id``.
        """
        keys = found.cluster_ids.tolist()
        held: dict[int, tuple[Any, ...]] = {}
        sql = (
            "SELECT c.cluster_id, c.event_type, c.timestamp, o.trade_id, o.run_id "
            "FROM clusters c LEFT JOIN outcomes o USING (cluster_id) WHERE c.cluster_id = ?"
        )
        with self._mutex, self._faults():
            for key in keys:
                row = self._connection().execute(sql, (key,)).fetchone()
                held[key] = row if row is not None else (key, None, None, None, None)
        columns = list(zip(*(held[key] for key in keys), strict=True)) if keys else [()] * 5
        return pl.DataFrame(
            {
                "cluster_id": pl.Series(columns[0], dtype=pl.Int64),
                "event_type": pl.Series(columns[1], dtype=pl.String),
                "timestamp": pl.Series(columns[2], dtype=pl.String).str.to_datetime(
                    _STAMP, strict=False, time_zone="UTC"
                ),
                "profit": pl.Series(found.profits, dtype=pl.Float64).fill_nan(None),
                "distance": pl.Series(found.distances, dtype=pl.Float64),
                "trade_id": pl.Series(columns[3], dtype=pl.String),
                "run_id": pl.Series(columns[4], dtype=pl.String),
            }
        )

    def states(self) -> tuple[Floats, Floats, NDArray[np.int64], NDArray[np.int64], Floats]:
        """All comparable states: (n, m) values, (n,) profits, keys and ns UTC, and (n, m) standardised values."""
        with self._mutex:
            self._retried(self._refresh)
            index = self._index
            return (
                index.rows.copy(),
                index.profits.copy(),
                index.cluster_ids.copy(),
                index.known_at.copy(),
                index.standardised(index.rows),
            )

    def recalls(self, count: int, *, until: int = ALWAYS, replays: bool = True) -> list[tuple[float, float]]:
        """(``pattern_replay_score`` at the entry, profit) of the last ``count`` trades that have both, latest first."""
        sql = (
            "SELECT recalled, profit FROM outcomes WHERE recalled IS NOT NULL AND known_ns <= ? AND (? OR run_id = '') "
            "ORDER BY known_ns DESC, cluster_id DESC LIMIT ?"
        )
        with self._mutex:
            self._retried(self._refresh)
            key = (self._seen, self._last, count, replays)
            if self._recalled is not None and self._recalled[0] == key and until >= self._recalled[1]:
                return self._recalled[2]
            with self._faults():
                db = self._connection()
                found = [(float(a), float(b)) for a, b in db.execute(sql, (until, replays, count))]
                latest = db.execute("SELECT max(known_ns) FROM outcomes").fetchone()[0]
            if latest is None or until >= latest:  # the same for every later moment, until something is stored
                self._recalled = key, latest or 0, found
            return found

    def instants(self) -> NDArray[np.int64]:
        """(n,) when the stored states were seen, ns UTC; without those whose timestamp cannot be read."""
        with self._mutex, self._faults():
            rows = self._connection().execute("SELECT timestamp FROM clusters WHERE datetime(timestamp) IS NOT NULL")
            return np.array([_ns(stamp) for (stamp,) in rows], dtype=np.int64)

    def counts(self) -> Counts:
        """What is stored, and how much of it is compared."""
        with self._mutex:
            self._retried(self._refresh)
            with self._faults():
                stored = int(self._connection().execute("SELECT count(*) FROM clusters").fetchone()[0])
            profits = self._index.profits
            won, lost = int((profits > 0).sum()), int((profits < 0).sum())
            return Counts(stored, len(self._index), won, lost, **self._skipped)

    def span(self) -> tuple[str | None, str | None]:
        """The oldest and the youngest timestamp of ``clusters``."""
        with self._mutex, self._faults():
            first, last = self._connection().execute("SELECT min(timestamp), max(timestamp) FROM clusters").fetchone()
            return first, last

    def check(self) -> Check:
        """Look at everything: the file's pages, tables, rows, JSON and values.

        Raises
        ------
        MarketMemoryError
            The file cannot be read at all.
        """
        faults: list[str] = []
        with self._mutex, self._faults():
            db = self._connection()
            faults += [str(row[0]) for row in db.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
            tables = {str(row[0]) for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            faults += [f"the table {name} is missing" for name in schema.TABLES if name not in tables]
            if not faults:
                for table in ("outcomes", "vectors"):
                    sql = f"SELECT count(*) FROM {table} WHERE cluster_id NOT IN (SELECT cluster_id FROM clusters)"  # noqa: S608
                    orphans = int(db.execute(sql).fetchone()[0])
                    if orphans:
                        faults.append(f"{orphans:,} rows of {table} belong to no state")
                undated = int(
                    db.execute("SELECT count(*) FROM clusters WHERE datetime(timestamp) IS NULL").fetchone()[0]
                )
                text = int(
                    db.execute("SELECT count(*) FROM clusters WHERE NOT coalesce(json_valid(features), 0)").fetchone()[
                        0
                    ]
                )
        if faults:
            return Check(Counts(0, 0, 0, 0, 0, 0, 0), tuple(faults), ())
        counts = self.counts()
        notes = [
            (undated, "have a timestamp that SQLite cannot read; a purge keeps them"),
            (text, "hold features that are not JSON"),
            (counts.other_manifest, "were stored under another list of features and are not compared"),
            (counts.incomplete, "lack too many features to be compared"),
            (counts.unreadable, "cannot be read as a state and are not compared"),
        ]
        return Check(counts, (), tuple(f"{count:,} rows {what}" for count, what in notes if count))

    def probe(self) -> None:
        """Raise what is wrong with the file, if anything is seen to be: gone, locked, damaged. Some microseconds.

        Raises
        ------
        MarketMemoryError
            Says what.
        """
        with self._mutex, self._faults():
            db = self._connection()
            db.execute("SELECT generation FROM schema_version").fetchone()
            for table in ("clusters", "outcomes", "vectors"):
                db.execute(f"SELECT cluster_id FROM {table} ORDER BY cluster_id DESC LIMIT 1").fetchone()  # noqa: S608

    # Inside

    def _open(self) -> None:
        once, size = self._marker.exists(), _size(self.path)
        if size is None and once:
            raise self._error("gone", "the market memory is gone although it once existed", None)
        if size == 0 and once:
            raise self._error("damaged", "the market memory is empty although it once held tables", None)
        with self._faults():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(
                self.path, timeout=self._config.busy_seconds, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(db, once)
                status = self.path.stat()
                if not once:
                    self._marker.touch()
            except BaseException:
                db.close()
                raise
        self._db, self._inode = db, (status.st_dev, status.st_ino)
        weakref.finalize(self, db.close).atexit = False  # a store that is let go closes its file

    def _prepare(self, db: sqlite3.Connection, once: bool) -> None:
        db.execute("PRAGMA synchronous = NORMAL")  # also raises here what is no database
        tables = _tables(db)
        if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            db.execute("PRAGMA journal_mode = WAL")
        if "clusters" not in tables:
            if once or set(schema.TABLES) & tables:
                raise self._error("damaged", "the table clusters is missing", None)
            _migrate(db, schema.LATEST)
            return
        columns = tuple(str(row[1]) for row in db.execute("PRAGMA table_info(clusters)"))
        if not set(schema.CLUSTERS) <= set(columns):
            raise self._error("damaged", f"the table clusters has the columns {', '.join(columns)}", None)
        version = _version(db)
        if version > schema.LATEST:
            raise self._error("newer", f"the tables are of version {version}, this program knows {schema.LATEST}", None)
        if version < schema.LATEST:
            _migrate(db, schema.LATEST)
        missing = set(schema.TABLES) - _tables(db)
        if missing:
            raise self._error("damaged", f"the table {min(missing)} is missing", None)

    def _connection(self) -> sqlite3.Connection:
        """The open file, if it is still the one at the path."""
        if self._db is None:
            raise self._error("io", "the market memory was closed", None)
        try:
            status = os.stat(self.path)  # noqa: PTH116 - 1 us
        except FileNotFoundError:
            raise self._error("gone", "the market memory is gone although it once existed", None) from None
        if (status.st_dev, status.st_ino) != self._inode:
            # Restored or renewed under our hands: what we hold open is a file without a name.
            self._db.close()
            self._db = self._seen = self._manifest_id = None
            self._index.clear()
            self._open()
        assert self._db is not None
        return self._db

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._faults():
            db = self._connection()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                self._manifest_id = None  # it may have been written by what is taken back
                if db.in_transaction:
                    with contextlib.suppress(sqlite3.Error):  # a fault of the disk may have rolled back already
                        db.execute("ROLLBACK")
                raise

    def _refresh(self) -> None:
        """Bring the index to what the file holds."""
        with self._faults():
            db = self._connection()
            data = int(db.execute("PRAGMA data_version").fetchone()[0])
            if self._seen is not None and self._seen[0] == data and not self._behind:
                return
            db.execute("BEGIN")
            try:
                generation = int(db.execute("SELECT generation FROM schema_version").fetchone()[0])
                if self._seen is None or generation != self._seen[1]:
                    self._index.clear()
                    self._last = 0
                    self._skipped = dict.fromkeys(self._skipped, 0)
                self._load(db)
            finally:
                if db.in_transaction:
                    db.execute("COMMIT")
            self._seen, self._behind = (data, generation), False

    def _load(self, db: sqlite3.Connection) -> None:
        """Append the rows after the last one seen."""
        found = db.execute("SELECT manifest_id FROM manifests WHERE digest = ?", (self.manifest.digest,)).fetchone()
        mine = None if found is None else int(found[0])
        size = 8 * len(self.manifest.names)
        ids: list[int] = []
        blobs: list[bytes] = []
        profits: list[float] = []
        known: list[int] = []
        replay: list[bool] = []
        last = self._last
        skipped = dict(self._skipped)
        for key, profit, known_ns, run_id, manifest, blob, text, stamp in db.execute(_SELECT, (last,)):
            last = key
            state = blob
            if blob is not None and manifest != mine:
                skipped["other_manifest"] += 1
                continue
            if blob is None:
                state = self._from_json(text)
                if isinstance(state, str):
                    skipped[state] += 1
                    continue
            if not isinstance(state, bytes) or len(state) != size:
                skipped["unreadable"] += 1
                continue
            ids.append(key)
            blobs.append(state)
            profits.append(math.nan if profit is None else profit)
            known.append(_ns(stamp) if known_ns is None else known_ns)
            replay.append(bool(run_id))
        rows = np.frombuffer(b"".join(blobs), dtype="<f8").reshape(len(ids), -1 if ids else len(self.manifest.names))
        self._index.append(
            np.array(ids, dtype=np.int64),
            rows.astype(np.float64, copy=False),
            np.array(profits, dtype=np.float64),
            np.array(known, dtype=np.int64),
            np.array(replay, dtype=np.bool_),
        )
        self._last, self._skipped = last, skipped

    def _from_json(self, text: Any) -> bytes | str:
        """The state of a row that has no vector (an older system wrote it), or why there is none."""
        try:
            content = json.loads(text)
            values = self.vector(content) if isinstance(content, dict) else None
        except (TypeError, ValueError, RecursionError):
            return "unreadable"
        if values is None:
            return "unreadable"
        return values.astype("<f8").tobytes() if self._comparable(values) else "incomplete"

    def vector(self, features: Mapping[str, Any]) -> Floats:
        """(features of the manifest,) from values by name; NaN where one is absent or null.

        Raises
        ------
        ValueError, TypeError
            A value is not a number.
        """
        return np.array([features.get(name) for name in self.manifest.names], dtype=np.float64)  # None becomes NaN

    def _comparable(self, values: Floats) -> bool:
        missing = len(values) - int(np.isfinite(values).sum())
        return missing <= self._config.max_missing * len(values)

    def _manifest(self, db: sqlite3.Connection) -> int:
        if self._manifest_id is None:
            found = _manifest_id(db, self.manifest.digest, json.dumps(self.manifest.names))
            self._manifest_id = found
        return self._manifest_id

    def _json(self, values: Floats) -> str:
        """As ``json.dumps`` writes it, null where a value is not finite; Polars writes the digits 3 times faster."""
        clean = np.where(np.isfinite(values), values, np.nan)
        digits = pl.Series(clean, nan_to_null=True).cast(pl.String).to_list()
        return "".join([prefix + (x or "null") for prefix, x in zip(self._prefixes, digits, strict=True)]) + "}"

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """SQLite's and the system's errors as this room's."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            reason = "io" if code is None else _REASONS.get(code & 0xFF, "io")
            if reason == "io" and str(error).startswith("no such table"):
                reason = "damaged"
            raise self._error(reason, f"the market memory cannot be used: {error}", None) from error
        except OSError as error:
            raise self._error("io", f"the market memory cannot be used: {error}", None) from error

    def _error(self, reason: str, what: str, hint: str | None) -> MarketMemoryError:
        then = "nothing was changed" if reason == "input" else "entries are blocked while the memory cannot answer"
        chosen = hint if hint is not None else _HINTS.get(reason)
        return MarketMemoryError(what, where=str(self.path), hint=chosen, then=then, reason=reason)

    def _retried(self, call: Callable[[], T]) -> T:
        """Call; a locked file is tried again 2, 4 and 8 seconds later where the caller may sleep."""
        if self._sleep is None:
            return call()
        return retrying(call, transient=_is_locked, sleep=self._sleep)


def put_aside(folder: Path, stamp: str) -> list[Path]:
    """Put the memory of a folder aside, into ``quarantine/market_memory-STAMP``; the next open begins an empty one.

    Returns
    -------
    list of pathlib.Path
        The files that were moved.
    """
    aside = folder / "quarantine" / f"market_memory-{stamp}"
    moved = []
    for name in (FILE, f"{FILE}-wal", f"{FILE}-shm"):
        if (folder / name).exists():
            aside.mkdir(parents=True, exist_ok=True)
            moved.append(Path(shutil.move(folder / name, aside / name)))
    (folder / MARKER).unlink(missing_ok=True)
    return moved


def exists(folder: Path) -> bool:
    """There is a memory, or there once was one."""
    return (folder / FILE).exists() or (folder / MARKER).exists()


def _is_locked(error: BaseException) -> bool:
    return isinstance(error, MarketMemoryError) and error.reason == "locked"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _tables(db: sqlite3.Connection) -> set[str]:
    return {str(row[0]) for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _version(db: sqlite3.Connection) -> int:
    """0: no tables; 1: ``clusters`` alone."""
    tables = _tables(db)
    if "schema_version" not in tables:
        return int("clusters" in tables)
    row = db.execute("SELECT version FROM schema_version").fetchone()
    return 0 if row is None else int(row[0])


def _migrate(db: sqlite3.Connection, target: int) -> None:
    """From the file's version to ``target``, whole or not at all; two processes may try at once."""
    db.execute("BEGIN IMMEDIATE")
    try:
        present = _version(db)
        steps: list[Sequence[str]] = []
        if target > present:
            steps = [step.up for step in schema.MIGRATIONS if present < step.version <= target]
        elif target < present:
            steps = [step.down for step in reversed(schema.MIGRATIONS) if target < step.version <= present]
        elif present == 1:
            steps = [schema.MIGRATIONS[0].up]
        for step in steps:
            for statement in step:
                db.execute(statement)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _manifest_id(db: sqlite3.Connection, digest: str, names: str) -> int:
    db.execute("INSERT OR IGNORE INTO manifests (digest, names) VALUES (?, ?)", (digest, names))
    return int(db.execute("SELECT manifest_id FROM manifests WHERE digest = ?", (digest,)).fetchone()[0])


def _ns(stamp: Any) -> int:
    """An older row's own timestamp, ns UTC; 0 where it cannot be read."""
    try:
        moment = dt.datetime.fromisoformat(str(stamp))
    except ValueError:
        return 0
    return clock.from_datetime(moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC))


def _dumps(features: Mapping[str, Any]) -> str:
    """JSON with null for what is not finite."""
    clean = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in features.items()
    }
    return json.dumps(clean, allow_nan=False, default=str)
