"""From the journal to the channels, on threads of its own."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from mia_fast import clock
from mia_fast.alerts.channels import Channel, open_channels
from mia_fast.alerts.config import SENT_FROM, AlertsConfig
from mia_fast.alerts.outbox import FILE, SOURCE, Alert, Outbox
from mia_fast.errors import ConfigError, JournalError

if TYPE_CHECKING:
    import polars as pl

    from mia_fast.workspace import Workspace

_LOG: Final = logging.getLogger(__name__)
_GRACE_SECONDS: Final = 5.0
_LONGEST_WAIT: Final = 60.0
_QUERY: Final = (
    "SELECT sequence, epoch_ns(timestamp), priority, code, message, coalesce(source, ''), coalesce(run_id, '') "
    "FROM alerts WHERE sequence > ? AND priority >= ? ORDER BY sequence"
)


class Journal(Protocol):
    """What the dispatcher needs of the journal that opens it."""

    workspace: Workspace
    first: int
    """The first sequence number of this opening."""

    @property
    def fault(self) -> str | None:
        """Why the journal takes no rows any more, or None."""

    def on_alert(self, listener: Callable[[], None]) -> None:
        """From now on call ``listener`` when alerts are stored or the writer has failed."""

    def stored(self, sql: str, parameters: Sequence[Any] | None = None) -> pl.DataFrame:
        """The result of a reading statement over what is stored."""

    def append(self, table: str, row: Mapping[str, Any], /) -> int:
        """Take one row."""


class Dispatcher:
    """Sends the alerts of one open journal. Its threads never touch the path of a bar.

    One thread takes alerts from DuckDB into the outbox when the journal's writer says that some have
    come; one thread per channel sends, so that a dead channel holds up no other. The outbox remembers
    how far it has come: after a crash the next start goes on there. An alert may then arrive twice,
    never not at all (within ``expire_hours``).

    Parameters
    ----------
    journal
        Open; it closes the dispatcher before it closes.
    config
        ``config/alerts.yaml``.
    now
        The clock, ns UTC.
    """

    def __init__(self, journal: Journal, config: AlertsConfig, now: Callable[[], int] = clock.now_ns) -> None:
        self._journal = journal
        self._config = config
        self._now = now
        self._ending = threading.Event()
        self._come = threading.Event()
        self._due = threading.Condition()
        self._told_fault: str | None = None
        self._deadline = 0.0
        self._outbox = Outbox(journal.workspace.data / FILE, config)
        if self._outbox.cursor is None:  # what happened before anyone was to be told stays in the journal
            self._outbox.take([], journal.first - 1, now())
        self._taker = threading.Thread(target=self._take_loop, name="mia-alerts", daemon=True)
        self._senders: list[threading.Thread] = []
        for opened in open_channels(list(config.channels)):
            if isinstance(opened, ConfigError):
                self._note("ALERT_CHANNEL_UNUSABLE", 4, f"ALERT_CHANNEL_UNUSABLE: {opened.where}: {opened.what}", "")
            else:
                name = f"mia-alerts-{opened.name}"
                self._senders.append(threading.Thread(target=self._send_loop, args=(opened,), name=name, daemon=True))
        journal.on_alert(self._come.set)
        self._come.set()
        for thread in (self._taker, *self._senders):
            thread.start()

    # ---------------------------------------------------------------- in

    def _take_loop(self) -> None:
        while not self._ending.is_set():
            self._come.wait(self._take_wait())
            self._come.clear()
            self._take()

    def _take_wait(self) -> float | None:
        try:
            return self._outbox.span_seconds(self._now())
        except sqlite3.Error:
            return _LONGEST_WAIT

    def _take(self) -> None:
        """Take in what has come. The journal keeps it: where the outbox cannot be written, it is tried again."""
        try:
            since = self._outbox.cursor or 0
            found: list[Alert] = []
            last: int | None = None
            with contextlib.suppress(JournalError):  # its fault is told below
                for sequence, at, priority, code, message, source, run in self._journal.stored(
                    _QUERY, [since, SENT_FROM]
                ).iter_rows():
                    last = sequence
                    if self._config.replays or not run.startswith("run-"):
                        found.append(Alert(sequence, at, priority, code, message, source))
            self._outbox.take([*found, *self._fault()], last, self._now())
        except (sqlite3.Error, OSError):
            _LOG.exception("the alerts' outbox cannot be written; the alerts stay in the journal")
            self._ending.wait(1.0)
            self._come.set()
        with self._due:
            self._due.notify_all()

    def _fault(self) -> list[Alert]:
        """A journal that has failed cannot write an alert about it: that one goes out directly, once."""
        fault = self._journal.fault
        if fault is None or fault == self._told_fault:
            return []
        self._told_fault = fault
        return [Alert(0, self._now(), 5, "JOURNAL_FAILED", f"JOURNAL_FAILED: {fault}", "journal")]

    # ---------------------------------------------------------------- out

    def _send_loop(self, channel: Channel) -> None:
        while True:
            try:
                self._send_due(channel)
                wait = self._outbox.wait_seconds(channel.name, self._now())
            except sqlite3.Error:
                _LOG.exception("the alerts' outbox cannot be used; %s is tried again", channel.name)
                wait = 1.0
            with self._due:
                if self._ending.is_set() and (wait is None or time.monotonic() + wait > self._deadline):
                    return
                self._due.wait(_LONGEST_WAIT if wait is None else min(max(wait, 0.01), _LONGEST_WAIT))

    def _send_due(self, channel: Channel) -> None:
        while (batch := self._outbox.batch(channel.name, self._now())) is not None:
            reason = channel.send(batch.title, batch.body, batch.priority)
            if reason is None:
                if self._outbox.sent(batch):
                    self._note("ALERT_CHANNEL_RESTORED", 2, f"ALERT_CHANNEL_RESTORED: channel={channel.name}", "")
                continue
            failures = self._outbox.failed(channel.name, self._now())
            _LOG.warning("the alert channel %s failed %d times in a row: %s", channel.name, failures, reason)
            if failures == 1:
                message = f"ALERT_CHANNEL_FAILED: channel={channel.name} reason={reason}"
                self._note("ALERT_CHANNEL_FAILED", 3, message, channel.name)
            return

    def _note(self, code: str, priority: int, message: str, channel: str) -> None:
        """An alert of the room's own; the channel it speaks of is not told."""
        row = {"timestamp": self._now(), "priority": priority, "code": code, "message": message}
        with contextlib.suppress(JournalError):  # a journal that takes no rows is told of by itself
            self._journal.append("alerts", {**row, "source": SOURCE + channel})

    def counts(self) -> dict[str, dict[str, int]]:
        """Deliveries by channel and state."""
        return self._outbox.counts()

    def close(self) -> None:
        """Take in what is left, give the channels a few seconds to send it, and stop. What is not sent waits."""
        self._ending.set()
        self._come.set()
        self._taker.join()
        self._take()
        with self._due:
            self._deadline = time.monotonic() + _GRACE_SECONDS
            self._due.notify_all()
        for thread in self._senders:
            thread.join(max(0.0, self._deadline + 1.0 - time.monotonic()))
        if not any(thread.is_alive() for thread in self._senders):
            self._outbox.close()
