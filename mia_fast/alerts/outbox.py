"""The outbox: what is still to be sent, on the disk, with every rule about when.

SQLite in ``data/alerts_outbox.db``. No method sleeps or asks for the time: the caller says what time
it is, so that the rules can be tested without waiting.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mia_fast import clock
from mia_fast.alerts.config import AlertsConfig

_SECOND: Final = clock.NS_PER_SECOND
_KEEP_SENT_NS: Final = 7 * 86_400 * _SECOND
_SHOWN: Final = 10
_NUMBER: Final = re.compile(r"\d+")
FILE: Final = "alerts_outbox.db"
SOURCE: Final = "alerts/"
"""How the room's own alerts name the channel they speak of: that channel is not told."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS cursor (sequence INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS deliveries (
    id INTEGER PRIMARY KEY, channel TEXT NOT NULL, taken_ns INTEGER NOT NULL, priority INTEGER NOT NULL,
    code TEXT NOT NULL, text TEXT NOT NULL, tries INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL DEFAULT 'waiting');
CREATE INDEX IF NOT EXISTS waiting ON deliveries (channel, state);
CREATE TABLE IF NOT EXISTS seen (
    key TEXT PRIMARY KEY, until_ns INTEGER NOT NULL, count INTEGER NOT NULL, priority INTEGER NOT NULL,
    code TEXT NOT NULL, text TEXT NOT NULL, source TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS channels (name TEXT PRIMARY KEY, failures INTEGER NOT NULL, until_ns INTEGER NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert of the journal."""

    sequence: int
    timestamp_ns: int
    priority: int
    code: str
    message: str
    source: str


@dataclass(frozen=True, slots=True)
class Batch:
    """One message to send, and the deliveries that are done with it."""

    channel: str
    ids: tuple[int, ...]
    priority: int
    title: str
    body: str


def peek(data: Path) -> dict[str, dict[str, int]]:
    """Deliveries by channel and state, read beside whoever sends them; empty where there is no outbox."""
    path = data / FILE
    if not path.is_file():
        return {}
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=10)) as db:
        return _counts(db)


def _counts(db: sqlite3.Connection) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for channel, state, count in db.execute("SELECT channel, state, count(*) FROM deliveries GROUP BY 1, 2"):
        found.setdefault(channel, {})[state] = count
    return found


class Outbox:
    """What each channel still has to send. Thread-safe.

    Parameters
    ----------
    path
        The SQLite file; created if it is not there.
    config
        Rates, spans and limits.
    """

    def __init__(self, path: Path, config: AlertsConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(_SCHEMA)
        except BaseException:
            self._db.close()  # of a damaged file nothing is held on to
            raise
        weakref.finalize(self, self._db.close).atexit = False  # one that is let go closes its file
        self._tokens: dict[str, tuple[float, int]] = {}

    @property
    def cursor(self) -> int | None:
        """The journal's last sequence number that was taken; None in a new outbox."""
        with self._lock:
            row = self._db.execute("SELECT sequence FROM cursor").fetchone()
        return None if row is None else int(row[0])

    def take(self, alerts: Iterable[Alert], upto: int | None, now_ns: int) -> int:
        """Take alerts in for every channel, once; how many of them will be sent.

        Parameters
        ----------
        alerts
            In the order of the journal.
        upto
            All up to this sequence number have been looked at; None leaves the cursor where it is.
        now_ns
            The time.
        """
        new = 0
        with self._lock, _Transaction(self._db):
            self._close_spans(now_ns)
            for alert in alerts:
                new += self._take(alert, now_ns)
            if upto is not None:
                self._db.execute("DELETE FROM cursor")
                self._db.execute("INSERT INTO cursor VALUES (?)", [upto])
        return new

    def _take(self, alert: Alert, now_ns: int) -> bool:
        text = f"{alert.message}\n{alert.source or 'mia-fast'}, {clock.iso(alert.timestamp_ns)}"
        if self._config.deduplicate_seconds:
            key = f"{alert.code}|{alert.source}|{_NUMBER.sub('#', alert.message)}"
            repeated = self._db.execute(
                "UPDATE seen SET count = count + 1, priority = max(priority, ?), text = ? WHERE key = ?",
                [alert.priority, text, key],
            ).rowcount
            if repeated:
                return False
            until = now_ns + self._config.deduplicate_seconds * _SECOND
            self._db.execute(
                "INSERT INTO seen VALUES (?, ?, 0, ?, ?, ?, ?)",
                [key, until, alert.priority, alert.code, text, alert.source],
            )
        self._enqueue(alert.priority, alert.code, text, alert.source, now_ns)
        return True

    def _enqueue(self, priority: int, code: str, text: str, source: str, now_ns: int) -> None:
        self._db.executemany(
            "INSERT INTO deliveries (channel, taken_ns, priority, code, text) VALUES (?, ?, ?, ?, ?)",
            [(name, now_ns, priority, code, text) for name in self._config.channels if source != SOURCE + name],
        )

    def _close_spans(self, now_ns: int) -> None:
        """End the spans that are over; what repeated itself in them is told once, with its count.

        A span that ends further ahead than its length began before the clock stepped back.
        """
        over = "until_ns <= ? OR until_ns > ?"
        limits = [now_ns, now_ns + self._config.deduplicate_seconds * _SECOND]
        for count, priority, code, text, source in self._db.execute(
            f"SELECT count, priority, code, text, source FROM seen WHERE count > 0 AND ({over})",  # noqa: S608
            limits,
        ).fetchall():
            self._enqueue(priority, code, f"{count} more like this, the last: {text}", source, now_ns)
        self._db.execute(f"DELETE FROM seen WHERE {over}", limits)  # noqa: S608

    def batch(self, channel: str, now_ns: int) -> Batch | None:
        """The next message of a channel, if one is due and the rate allows it.

        The most urgent goes first. Where more wait than may go out now, all of them become one digest.
        """
        with self._lock, _Transaction(self._db):
            oldest = now_ns - int(self._config.expire_hours * 3600 * _SECOND)
            self._db.execute(
                "UPDATE deliveries SET state = 'expired' WHERE channel = ? AND state = 'waiting' AND taken_ns < ?",
                [channel, oldest],
            )
            self._db.execute(
                "DELETE FROM deliveries WHERE state <> 'waiting' AND taken_ns < ?", [now_ns - _KEEP_SENT_NS]
            )
            if self._held(channel, now_ns) > 0:
                return None
            waiting = self._db.execute(
                "SELECT id, priority, code, text FROM deliveries WHERE channel = ? AND state = 'waiting' "
                "ORDER BY priority DESC, tries, id",
                [channel],
            ).fetchall()
            tokens = self._refill(channel, now_ns)
            if not waiting or tokens < 1:
                return None
            self._tokens[channel] = (tokens - 1, now_ns)
            chosen = waiting if len(waiting) > tokens else waiting[:1]
            ids = tuple(int(row[0]) for row in chosen)
            self._db.executemany("UPDATE deliveries SET tries = tries + 1 WHERE id = ?", [(one,) for one in ids])
        return _message(channel, ids, chosen)

    def _refill(self, channel: str, now_ns: int) -> float:
        tokens, at = self._tokens.get(channel, (float(self._config.burst), now_ns))
        earned = max(now_ns - at, 0) / _SECOND * self._config.per_minute / 60
        tokens = min(tokens + earned, float(self._config.burst))
        self._tokens[channel] = (tokens, now_ns)
        return tokens

    def _held(self, channel: str, now_ns: int) -> int:
        """Nanoseconds a failing channel is still to be left alone; a clock that stepped back cannot prolong it."""
        row = self._db.execute("SELECT until_ns FROM channels WHERE name = ?", [channel]).fetchone()
        left = 0 if row is None else int(row[0]) - now_ns
        return left if 0 < left <= self._config.retry_max_seconds * _SECOND else 0

    def sent(self, batch: Batch) -> bool:
        """The message has arrived; True if the channel had been failing."""
        with self._lock, _Transaction(self._db):
            self._db.executemany("UPDATE deliveries SET state = 'sent' WHERE id = ?", [(one,) for one in batch.ids])
            before = self._db.execute("DELETE FROM channels WHERE name = ?", [batch.channel]).rowcount
        return before > 0

    def failed(self, channel: str, now_ns: int) -> int:
        """The message has not arrived: the channel rests 2, 4, 8 ... seconds. How often it has failed in a row."""
        with self._lock, _Transaction(self._db):
            row = self._db.execute("SELECT failures FROM channels WHERE name = ?", [channel]).fetchone()
            failures = 1 if row is None else int(row[0]) + 1
            wait = min(2 ** min(failures, 30), self._config.retry_max_seconds)
            self._db.execute(
                "INSERT OR REPLACE INTO channels VALUES (?, ?, ?)", [channel, failures, now_ns + wait * _SECOND]
            )
        return failures

    def wait_seconds(self, channel: str, now_ns: int) -> float | None:
        """How long until :meth:`batch` may have something; None if nothing waits."""
        with self._lock:
            if not self._db.execute(
                "SELECT 1 FROM deliveries WHERE channel = ? AND state = 'waiting' LIMIT 1", [channel]
            ).fetchone():
                return None
            tokens = self._refill(channel, now_ns)
            return max(self._held(channel, now_ns) / _SECOND, (1 - tokens) * 60 / self._config.per_minute, 0.0)

    def span_seconds(self, now_ns: int) -> float | None:
        """How long until a span ends in which something repeated itself; None if there is none."""
        with self._lock:
            (until,) = self._db.execute("SELECT min(until_ns) FROM seen WHERE count > 0").fetchone()
        if until is None:
            return None
        return max(0.0, min((int(until) - now_ns) / _SECOND, float(self._config.deduplicate_seconds)))

    def counts(self) -> dict[str, dict[str, int]]:
        """Deliveries by channel and state: ``waiting``, ``sent`` (of the last week), ``expired``."""
        with self._lock:
            return _counts(self._db)

    def close(self) -> None:
        with self._lock:
            self._db.close()


class _Transaction:
    """BEGIN IMMEDIATE ... COMMIT, or ROLLBACK when something is raised."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


def _message(channel: str, ids: tuple[int, ...], chosen: Sequence[Any]) -> Batch:
    priority = max(int(row[1]) for row in chosen)
    if len(chosen) == 1:
        _, _, code, text = chosen[0]
        return Batch(channel, ids, priority, f"[{priority}] {code}", text)
    codes = Counter(str(row[2]) for row in chosen)
    lines = [f"{count} x {code}" for code, count in codes.most_common()]
    lines += ["", *(f"[{row[1]}] {row[3]}" for row in chosen[:_SHOWN])]
    if len(chosen) > _SHOWN:
        lines.append(f"... and {len(chosen) - _SHOWN} more, in the journal's table alerts")
    return Batch(channel, ids, priority, f"[{priority}] {len(chosen)} alerts", "\n".join(lines))
