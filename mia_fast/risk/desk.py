"""One desk per workspace and process: controller and calendar, shared by the engine and the plain functions."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mia_fast import clock
from mia_fast import config as desk_config
from mia_fast.errors import MiaError
from mia_fast.files import stamp
from mia_fast.risk import config as risk_config
from mia_fast.risk import history
from mia_fast.risk.calendar import EventCalendar, load_calendar
from mia_fast.risk.codes import Code, Denial, denial
from mia_fast.risk.controller import Journal, RiskController
from mia_fast.risk.gate import Gate
from mia_fast.risk.instance import Instance
from mia_fast.risk.windows import Sessions, TradeWindowFilter, trading_hours
from mia_fast.telemetry import operation
from mia_fast.workspace import AnyWorkspace, Workspace

if TYPE_CHECKING:
    import polars as pl

    from mia_fast import journal as journals


class WorkspaceJournal:
    """The journal of a workspace, opened when the first row comes.

    Where another process holds it, a row is left for that process on the disk; ``health`` says who. Where it
    cannot be opened for another reason, rows are refused, and the next row tries again. So risk works, and
    blocks, without a journal.

    Attributes
    ----------
    left
        Who holds the journal, if a row was left for that process; else None.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self.left: str | None = None

    def append(self, table: str, row: Mapping[str, Any], /) -> int:
        """Take one row; returns its number, or 0 where it was left for the journal's holder.

        Raises
        ------
        JournalError
            The journal cannot be opened or does not take the row, and the row could not be left for it.
        """
        from mia_fast import journal

        try:
            return self._open().append(table, row)
        except journal.JournalInUseError as error:
            journal.outbox.put(self._workspace, table, row)
            self.left = error.what
            return 0

    def query(self, sql: str, parameters: Sequence[Any] | None = None) -> pl.DataFrame:
        """The result of one read-only statement over everything accepted so far.

        Raises
        ------
        JournalError
            The journal cannot be opened or read.
        """
        return self._open().query(sql, parameters)

    def health(self) -> str:
        """``"ok"``, or why rows cannot be taken."""
        try:
            return self._open().health()
        except MiaError as error:
            return error.what

    def _open(self) -> journals.Journal:
        from mia_fast import journal  # DuckDB is loaded only where a row is written

        return journal.of(self._workspace, wait=False)  # the gate asks on the path of an order


class Desk:
    """What the risk functions of one workspace share.

    Parameters
    ----------
    workspace
        Where configuration, calendar and state live.
    journal
        By default the workspace's own.
    clock
        The engine's clock, ns UTC; by default the wall clock. A replay gives the bar's time.
    events
        The calendar's file; by default ``data/macro_events.csv``.
    losing_share, state_folder, run_id
        See :class:`~mia_fast.risk.controller.RiskController`.
    sessions
        Trading hours; by default the dated table of ``config/sessions.yaml``. Outside it entries are blocked.

    Raises
    ------
    ConfigError
        A configuration file is present but invalid.
    """

    def __init__(
        self,
        workspace: Workspace,
        *,
        journal: Journal | None = None,
        clock: Callable[[], int] = clock.now_ns,
        events: Path | None = None,
        losing_share: Callable[[], float | None] | None = None,
        state_folder: Path | None = None,
        run_id: str = "risk",
        sessions: Sessions | None = None,
    ) -> None:
        self.workspace = workspace
        self.config = risk_config.risk(workspace)
        self.market = desk_config.market(workspace)
        self.journal: Journal = journal if journal is not None else WorkspaceJournal(workspace)
        self.clock = clock
        self._losing_share = losing_share
        self._sessions: Sessions = (
            sessions if sessions is not None else trading_hours(workspace, self.market.instrument.symbol)
        )
        self._state_folder = state_folder if state_folder is not None else workspace.data
        self.controller = RiskController(
            workspace,
            config=self.config,
            max_drawdown=self.market.max_drawdown,
            journal=self.journal,
            clock=clock,
            losing_share=losing_share,
            state_folder=state_folder,
            run_id=run_id,
            sessions=self._sessions,
        )
        self._run_id = run_id
        self._events = events if events is not None else workspace.data / "macro_events.csv"
        self._seen = stamp(self._events)
        self.calendar: EventCalendar = load_calendar(workspace, self.config.events, self._events)
        self._told: tuple[Code, str] | None = None

    def gate(self, *, account: str, model_sha256: str | None, resume: bool = True) -> Gate:
        """A gate on this desk's controller, windows and journal; see :class:`~mia_fast.risk.gate.Gate`.

        It claims the account: an older gate on the same risk state lets no entry through from now on. With ``resume``
        it takes over from the journal what passed before a restart; where the journal cannot be read no entry
        passes until :meth:`recall` succeeds. A replay, which repeats its bars from a checkpoint, gives False.
        """
        gate = Gate(
            self.controller,
            self.windows(),
            self.market.instrument,
            self.config,
            self.journal,
            Instance(self._state_folder),
            account=account,
            model_sha256=model_sha256,
        )
        if resume:
            self.recall(gate)
        return gate

    def recall(self, gate: Gate) -> bool:
        """Read what passed before a restart; False where the journal cannot be read, and then no entry passes."""
        if not isinstance(self.journal, history.Readable):
            gate.unread = "this journal cannot be read back"
            return False
        try:
            gate.recall(history.read(self.journal, gate.account))
        except MiaError as error:
            gate.unread = error.what
        return gate.unread is None

    def windows(self) -> TradeWindowFilter:
        """When the clock alone forbids entries, by the calendar as it is now."""
        return TradeWindowFilter(self.calendar, self._sessions, self.config.closures, self.config.contract)

    def blocked(self, event_active: bool, now_ns: int) -> Denial | None:
        """Why entries are forbidden by events at ``now_ns``, or None."""
        quiet = isinstance(event_active, bool | int | np.bool_) and not event_active
        if not quiet:  # None, NaN or text cannot be read as "no event"
            return denial(Code.EVENT_ASSERTED)
        return self.calendar.blocked(now_ns)

    def store_fault(self) -> Denial | None:
        """Why the journal or the market memory cannot be relied on; None if both can."""
        if (health := self.journal.health()) != "ok":
            return denial(Code.JOURNAL_UNHEALTHY, why=health)
        if self._losing_share is None:
            return None
        try:
            self._losing_share()
        except Exception as error:  # whatever a store raises, it does not answer
            return denial(Code.RISK_MEMORY, why=error.what if isinstance(error, MiaError) else error)
        return None

    def reload(self) -> None:
        """Read the calendar again if its file changed. The gate of an engine keeps the one it was given."""
        seen = stamp(self._events)
        if seen != self._seen:
            self.calendar = load_calendar(self.workspace, self.config.events, self._events)
            self._seen = seen

    def tell(self, found: Denial | None, now_ns: int) -> None:
        """One alert when the reason changes, not one for each question."""
        reason = None if found is None else (found.code, str(found))
        if found is not None and reason != self._told:
            self.journal.append(
                "alerts",
                {
                    "timestamp": now_ns,
                    "priority": 2,
                    "code": found.code.name,
                    "message": f"{found}: entries blocked, exits continue. {found.hint}",
                    "source": "trade_window_filter",
                    "run_id": self._run_id,
                },
            )
        self._told = reason


_DESKS: Final[dict[str, Desk]] = {}
_MUTEX: Final = threading.Lock()


def desk(workspace: AnyWorkspace | None = None) -> Desk:
    """The desk of a workspace in this process; made at the first call.

    Raises
    ------
    ConfigError
        A configuration file is present but invalid.
    """
    chosen = Workspace.current(workspace)
    key = os.fspath(chosen.root)
    with _MUTEX:
        found = _DESKS.get(key)
        if found is None:
            found = _DESKS[key] = Desk(chosen, losing_share=lambda: _memory(chosen))
        return found


def _memory(workspace: Workspace) -> float | None:
    """The memory's say where no engine runs: nothing about a state, but whether it is there and sound."""
    from mia_fast import memory  # its kernels are loaded only where it is asked

    return memory.probe(workspace)


def attach(engine_desk: Desk) -> None:
    """From now on the plain functions of this workspace work on the engine's own desk."""
    with _MUTEX:
        _DESKS[os.fspath(engine_desk.workspace.root)] = engine_desk


def detach(workspace: Workspace) -> None:
    """Forget the desk of a workspace; the next call makes one from the files."""
    with _MUTEX:
        _DESKS.pop(os.fspath(workspace.root), None)


@operation("risk", "stop_trading")
def stop_trading(drawdown: float, *, workspace: AnyWorkspace | None = None) -> bool:
    """True when trading is latched, ``drawdown`` exceeds the limit, or it is not finite.

    A breach latches until ``mia-fast risk reset --reason``: penalty line, snapshot and alert are
    written, and the state is on disk, before this returns.

    Parameters
    ----------
    drawdown
        Fraction of peak equity: 0.06 is 6 %.
    workspace
        Default: ``MIA_WORKSPACE``, else the current directory.

    Raises
    ------
    ConfigError
        A configuration file is present but invalid.
    """
    controller = desk(workspace).controller
    controller.refresh()
    return controller.stop_trading(drawdown)


@operation("trade_window_filter", "block_trade")
def block_trade(event_active: bool, *, workspace: AnyWorkspace | None = None, now_ns: int | None = None) -> bool:
    """True when entries are forbidden by macro events.

    Parameters
    ----------
    event_active
        True: the caller asserts an event, which always blocks. False leaves it to the calendar,
        which also blocks when it is missing, unreadable, malformed, empty or has run out.
    workspace
        Default: ``MIA_WORKSPACE``, else the current directory.
    now_ns
        The instant, ns UTC; default: the desk's clock, which is the wall clock unless an engine runs.

    Raises
    ------
    ConfigError
        A configuration file is present but invalid.
    """
    here = desk(workspace)
    now = here.clock() if now_ns is None else now_ns
    here.reload()
    found = here.blocked(event_active, now)
    if found is None:
        found = here.store_fault()
    with contextlib.suppress(MiaError):  # a block that cannot be journalled is still a block
        here.tell(found, now)
    return found is not None
