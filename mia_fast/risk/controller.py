"""Drawdown limit, latch and penalties: the part of risk that remembers."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import operator
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mia_fast import config as desk_config
from mia_fast.clock import iso, now_ns
from mia_fast.errors import MiaError, RiskError
from mia_fast.files import Stamp
from mia_fast.risk import config as risk_config
from mia_fast.risk.codes import Code, Denial, denial
from mia_fast.risk.config import RiskConfig
from mia_fast.risk.overtrading import TradeRate
from mia_fast.risk.store import Day, Latch, Record, StateStore, merge, write_snapshot
from mia_fast.risk.windows import Sessions, Span, WeeklySessions, trading_hours
from mia_fast.workspace import Workspace
from mia_kernels.account import DAY, DAY_LAST, DAY_OPEN, daily_loss, initial_day_state
from mia_kernels.drawdown import DRAWDOWN, EQUITY, PEAK, drawdown, initial_state


class Journal(Protocol):
    """What risk needs of the audit trail."""

    def append(self, table: str, row: Mapping[str, Any], /) -> int:
        """Take one row; returns once it is safe from the end of the process: its sequence number, if it has one yet."""

    def health(self) -> str:
        """``"ok"``, or why rows cannot be taken."""


class State(Enum):
    """DISARMED -> ARMED -> LATCHED; only a reset leads back from LATCHED, to DISARMED."""

    DISARMED = "disarmed"
    ARMED = "armed"
    LATCHED = "latched"


@dataclass(frozen=True, slots=True)
class Cleared:
    """What a reset cleared, for the person who asked for it."""

    cause: str
    latched_since: str
    peak_before: float | None
    peak_after: float | None

    def __str__(self) -> str:
        return (
            f"cleared the latch of {self.latched_since} ({self.cause}); the peak starts again: "
            f"{_money(self.peak_before)} -> {_money(self.peak_after)}; the gate is disarmed"
        )


class RiskController:
    """Tracks equity against its peak, and stops trading when the drawdown limit is exceeded.

    Starts DISARMED, or LATCHED if the workspace's state file says so, is damaged, or is gone although
    it existed. A breach is on disk before the call that found it returns. Methods may be called
    from any thread.

    Parameters
    ----------
    workspace
        Where ``data/risk_snapshots`` lives, and ``data/risk_state.json`` unless ``state_folder`` is given.
    config, max_drawdown
        ``config/risk.yaml``, and the limit as a fraction of peak equity in (0, 1].
    journal
        Takes penalties, snapshots and alerts.
    clock
        The engine's clock, ns UTC.
    losing_share
        s of the contract, 0..1: the distance-weighted share of losing outcomes among the nearest
        stored states; None where it is not known because too few are stored. An error, or any
        other value, makes the limit unknown and blocks entries.
    state_folder
        Where ``risk_state.json`` lives; by default ``data`` of the workspace. A replay keeps its own.
    run_id
        Marks the journal rows.
    sessions
        Trading hours: they say to which trade date a mark belongs.

    Raises
    ------
    RiskError
        ``max_drawdown`` is not a fraction in (0, 1].
    """

    def __init__(
        self,
        workspace: Workspace,
        *,
        config: RiskConfig,
        max_drawdown: float,
        journal: Journal,
        clock: Callable[[], int] = now_ns,
        losing_share: Callable[[], float | None] | None = None,
        state_folder: Path | None = None,
        run_id: str = "risk",
        sessions: Sessions | None = None,
    ) -> None:
        if not 0.0 < _float(max_drawdown) <= 1.0:
            raise RiskError(
                f"max_drawdown = {max_drawdown!r} is not a fraction in (0, 1]",
                where="config/market_config.yaml",
                hint="0.05 means 5 % of peak equity",
                then="nothing was started",
            )
        self.trade_rate = TradeRate(config.overtrading)
        self.limit = float(max_drawdown)  # as of the last evaluation; NaN while it is unknown
        self.memory_fault: str | None = None
        self._report_fault: str | None = None  # why the evidence of the latch is not written
        self.unsaved: str | None = None  # why the state on disk is older than the one in memory
        self.marked_ns: int | None = None  # when the account was last marked by this process
        self.day_denial: Denial | None = None  # the daily loss limit was exceeded in this trade date
        self.day_open = math.nan  # equity at the open of the trade date, USD
        self.entries = 0  # that passed the gate in this trade date
        self.score = 0.0  # overtrade_risk_score at the last mark
        self._max_daily_loss = config.limits.max_daily_loss
        self._sessions: Sessions = sessions if sessions is not None else WeeklySessions()
        self._recalled: Counter[int] = Counter()  # trade date -> entries that the journal knows of
        self._span = Span(0, 0, False, 1)
        self._day_state = initial_day_state()
        self._day_number = np.zeros(1)
        self._loss = np.empty(1)
        self._max_drawdown = float(max_drawdown)
        self._workspace = workspace
        self._journal = journal
        self._clock = clock
        self._losing_share = losing_share
        self._mutex = threading.RLock()
        self._armed = False
        self._stopped = False  # what stop_trading returned last
        self._state = initial_state()
        self._equity = np.empty(1)
        self._out = np.empty(1)
        self._run_id = run_id
        self._store = StateStore(state_folder if state_folder is not None else workspace.data)
        self._record = Record(identity=secrets.token_hex(8))
        self._fingerprint: Stamp | None = None
        self.state_denial: Denial | None = None
        self._load()

    @classmethod
    def open(
        cls,
        workspace: Workspace,
        journal: Journal,
        clock: Callable[[], int] = now_ns,
        losing_share: Callable[[], float | None] | None = None,
    ) -> RiskController:
        """The controller of a workspace, by its configuration files.

        Raises
        ------
        ConfigError
            A configuration file is present but invalid.
        """
        market = desk_config.market(workspace)
        return cls(
            workspace,
            config=risk_config.risk(workspace),
            max_drawdown=market.max_drawdown,
            journal=journal,
            clock=clock,
            losing_share=losing_share,
            sessions=trading_hours(workspace, market.instrument.symbol),
        )

    # What it knows

    @property
    def state(self) -> State:
        if self._record.latch is not None:
            return State.LATCHED
        return State.ARMED if self._armed else State.DISARMED

    @property
    def latch(self) -> Latch | None:
        """Why and since when trading is stopped."""
        return self._record.latch

    @property
    def drawdown(self) -> float:
        """Fraction of peak equity at the last mark; NaN before the first."""
        return float(self._state[DRAWDOWN])

    @property
    def peak(self) -> float:
        """USD; -inf before the first mark."""
        return float(self._state[PEAK])

    @property
    def equity(self) -> float:
        """USD at the last mark; NaN before the first."""
        return float(self._state[EQUITY])

    @property
    def penalty_active(self) -> bool:
        """What :meth:`stop_trading` returned last; True while latched."""
        return self._stopped or self._record.latch is not None

    def overtrade_risk_score(self) -> float:
        """0..1, see :mod:`mia_fast.risk.overtrading`."""
        return self.trade_rate.score()

    # What happens on the path

    def update_equity(self, equity: float, now_ns: int) -> bool:
        """Mark the account to ``equity`` USD, realised plus open, at ``now_ns``; returns :meth:`stop_trading`.

        An equity that is not finite makes the drawdown unknown, and that stops trading.
        """
        with self._mutex:
            now_ns = operator.index(now_ns)
            self.refresh()
            self._equity[0] = _float(equity)
            drawdown(self._equity, self._state, self._out)
            self.marked_ns = now_ns
            self.trade_rate.tick(now_ns)
            self.score = self.trade_rate.score()
            self._mark_day(now_ns)
            return self.stop_trading(float(self._out[0]))

    def count_entry(self) -> None:
        """An entry passed the gate."""
        with self._mutex:
            self.entries += 1

    def recall_entries(self, instants: Sequence[int]) -> None:
        """Entries that passed before a restart, ns UTC: the state on disk may be older than the last of them."""
        with self._mutex:
            self._recalled = Counter(
                span.trade_date for at in instants if (span := self._sessions.span(at)) is not None and span.open
            )
            self.entries = max(self.entries, self._recalled[self._date()])

    def on_trade(self, now_ns: int) -> None:
        """A fill at ``now_ns``, for ``overtrade_risk_score``."""
        with self._mutex:
            self.trade_rate.trade(now_ns)

    def stop_trading(self, drawdown: float) -> bool:
        """True when latched, when ``drawdown`` exceeds the limit, or when it is not finite.

        A drawdown above the limit, or one that is not finite (it may hide a breach), latches: the
        state file is on disk, and a penalty line, a snapshot and an alert are written, before this
        returns. Where the limit itself is unknown the answer is True, without a latch unless even
        the untightened limit is exceeded. Never raises: a fault in writing blocks entries and is
        tried again at the next call.
        """
        with self._mutex:
            value = _float(drawdown)
            if self._record.latch is not None:
                if self.unsaved is not None:
                    self._save(breach=True)
                self._report()
                self._stopped = True
                return True
            limit = self._limit_now()
            if not math.isfinite(value):
                self._latch(Code.DRAWDOWN_UNKNOWN, value)
            elif value > (self._max_drawdown if math.isnan(limit) else limit):
                self._latch(Code.DRAWDOWN_LIMIT, value)
            elif self.unsaved is not None:
                self._save()
            self._stopped = self._record.latch is not None or math.isnan(limit)
            return self._stopped

    def refresh(self) -> None:
        """Take over what another process did to the state file: a latch, or a reset. One stat when nothing changed."""
        found = self._store.fingerprint()
        if found == self._fingerprint:
            return
        with self._mutex:
            try:
                theirs = self._store.read()
            except RiskError as fault:
                self._latch_for_state(fault)
                return
            if theirs is None:
                self._latch_for_state(RiskError("the risk state was removed", where=str(self._store.path)))
                return
            self._adopt(merge(self._present(), theirs), found)

    # What people and the engine's life cycle ask for

    def halt(self, reason: str) -> None:
        """Stop trading by hand: latches like a breach, in every process of this workspace.

        It does not close positions. Evidence is written as for a breach; only :meth:`reset` clears it.

        Raises
        ------
        RiskError
            The reason is empty, or the latch is not safe on disk (this process is stopped all the same).
        JournalError
            The journal does not take the reason; this process is stopped all the same.
        """
        if not isinstance(reason, str) or not reason.strip():
            raise RiskError(
                "a halt needs a reason",
                where="reason",
                hint='say who decided what, for instance --reason "A. Smith: venue trouble"',
                then="nothing was changed",
            )
        with self._mutex:
            self.refresh()
            if self._record.latch is None:
                self._latch(Code.RISK_HALT, self.drawdown)
            self._stopped = True
            if self.unsaved is not None:
                raise RiskError(
                    f"the halt is not on disk: {self.unsaved}",
                    hint=Code.RISK_UNSAVED.hint,
                    then="this process is stopped; others are not",
                )
            self._tell(4, "RISK_HALT", f"halted by hand: {reason.strip()}", None, {"reason": reason.strip()})

    def arm(self) -> None:
        """Let entries through. Journalled first.

        Raises
        ------
        RiskError
            Latched, or the state cannot be saved.
        JournalError
            The journal does not take the row.
        """
        with self._mutex:
            self.refresh()
            if self._record.latch is not None:
                raise RiskError(
                    f"trading is latched: {self.state_denial}",
                    hint=Code.RISK_LATCHED.hint,
                    then="the gate stays closed for entries",
                )
            if self.unsaved is not None:
                self._save()
            if self.unsaved is not None:
                raise RiskError(
                    f"the risk state cannot be saved: {self.unsaved}",
                    hint=Code.RISK_UNSAVED.hint,
                    then="the gate stays disarmed",
                )
            self._tell(2, "RISK_ARMED", "the order gate is armed")
            self._armed = True
            self._restate()

    def disarm(self) -> None:
        """Refuse entries of this process until armed again; :meth:`halt` stops every process. Never fails.

        The alert goes to the journal after the gate is shut, and a journal that does not take it keeps it shut.
        """
        with self._mutex:
            was, self._armed = self._armed, False
            self._restate()
            if was:
                with contextlib.suppress(MiaError):
                    self._tell(2, "RISK_DISARMED", "the order gate is disarmed")

    def reset(self, reason: str) -> Cleared:
        """Clear the latch, restart the peak at the present equity, and leave the gate DISARMED.

        Without a new peak the old drawdown would latch again at the next mark. The journal takes the
        row before anything is cleared.

        Raises
        ------
        RiskError
            The reason is empty, nothing is latched, the evidence of the latch is not safe yet, or the
            state cannot be written. The latch then stays.
        JournalError
            The journal does not take the row. The latch stays.
        """
        if not isinstance(reason, str) or not reason.strip():
            raise RiskError(
                "a reset needs a reason",
                where="reason",
                hint='say who decided what, for instance --reason "A. Smith: feed fault, positions flat"',
                then="nothing was cleared",
            )
        with self._mutex:
            self.refresh()
            latch = self._record.latch
            if latch is None:
                raise RiskError(
                    "nothing is latched", hint="data/risk_state.json shows the state", then="nothing was changed"
                )
            self._report()
            if self._record.latch is not None and not self._record.latch.reported:
                raise RiskError(
                    f"the penalty line, snapshot and alert of this latch cannot be written ({self._report_fault})",
                    hint="restore the journal and the permissions of data/ first",
                    then="nothing was cleared",
                )
            before = _finite(self.peak)
            after = _finite(self.equity)
            cleared = Cleared(latch.cause, iso(latch.at_ns), before, after)
            generation = self._record.generation + 1
            event = f"reset-{self._record.identity}-{generation}-{latch.at_ns}"
            now = self._now()
            score = self.overtrade_risk_score()
            self._append(
                "penalties",
                timestamp=now,
                penalty_active=False,
                overtrade_risk_score=score,
                code="RISK_RESET",
                detail=reason.strip(),
                run_id=self._run_id,
                event_id=event,
            )
            self._tell(4, "RISK_RESET", f"{cleared}; reason: {reason.strip()}", event, {"reason": reason.strip()})
            old_state = self._state.copy()
            self._state[PEAK] = after if after is not None else -np.inf
            self._state[DRAWDOWN] = 0.0 if after is not None else np.nan
            try:
                written, fingerprint = self._store.write(
                    replace(self._present(), generation=generation, latch=None, peak=after)
                )
            except RiskError:
                self._state = old_state
                raise
            self._armed = False
            self.unsaved = None
            self._stopped = False
            self._record = written
            self._fingerprint = fingerprint
            self._restate()
            return cleared

    def new_account(self, equity: float, now_ns: int) -> None:
        """Begin another account, for instance a fresh replay: peak and trade rate start again, a latch stays.

        Raises
        ------
        RiskError
            ``equity`` is not positive and finite, or the state cannot be written.
        JournalError
            The journal does not take the row.
        """
        value = _float(equity)
        if not (math.isfinite(value) and value > 0.0):
            raise RiskError(f"equity = {equity!r} is not a positive finite number", then="the account was not changed")
        with self._mutex:
            self.refresh()
            self._tell(1, "RISK_NEW_ACCOUNT", f"a new account begins with {value:.2f} USD", at_ns=now_ns)
            self._state = initial_state()
            self._day_state = initial_day_state()
            self.entries, self.day_denial, self.score = 0, None, 0.0
            self._recalled.clear()
            self.trade_rate.clear()
            self._record = replace(self._record, account=self._record.account + 1)
            self._equity[0] = value
            drawdown(self._equity, self._state, self._out)
            self.marked_ns = now_ns
            self.trade_rate.tick(now_ns)
            self._mark_day(now_ns)
            self._save()
            if self.unsaved is not None:
                raise RiskError(
                    f"the risk state cannot be saved: {self.unsaved}",
                    hint=Code.RISK_UNSAVED.hint,
                    then="entries stay blocked",
                )

    def checkpoint(self) -> None:
        """Force peak, equity and trade rate to disk; call it off the hot path, with every saved engine state.

        Raises
        ------
        RiskError
            It cannot be written; entries stay blocked until it can.
        """
        with self._mutex:
            record = self._present()
        try:
            written, fingerprint = self._store.write(record)
        except RiskError as error:
            with self._mutex:
                self.unsaved = error.what
            raise
        with self._mutex:
            if self._record.latch is None or written.latch is not None:
                self._adopt(merge(self._present(), written), fingerprint)
                self.unsaved = None

    def snapshot(self) -> Path:
        """Write ``data/risk_snapshots/risk_*.json`` and its journal row now.

        Raises
        ------
        OSError
            The file cannot be written.
        JournalError
            The row was not taken.
        """
        with self._mutex:
            now = self._now()
            score = self.overtrade_risk_score()
            value = _finite(self.drawdown)  # JSON has no NaN
            path = self._write_snapshot(now, value, score, self.penalty_active)
            self._append(
                "risk_snapshots",
                timestamp=now,
                drawdown=value,
                overtrade_risk_score=score,
                penalty_active=self.penalty_active,
                drawdown_limit=_finite(self.limit),
                equity=_finite(self.equity),
                peak_equity=_finite(self.peak),
                latched=self._record.latch is not None,
                run_id=self._run_id,
            )
            return path

    # Inside

    def _load(self) -> None:
        try:
            found = self._store.read()
        except RiskError as fault:
            self._latch_for_state(fault)
            return
        if found is None:
            self._save()
        else:
            self._fingerprint = self._store.fingerprint()
            self._record = found
            if found.peak is not None:
                self._state[PEAK] = found.peak
            if found.equity is not None:
                self._state[EQUITY] = found.equity  # the drawdown stays unknown until the first mark
            if found.trade_rate is not None:
                self.trade_rate.restore(found.trade_rate)
                self.score = self.trade_rate.score()
            if found.day is not None:
                known = (found.day.date, found.day.open, found.day.last)
                self._day_state[:] = [math.nan if value is None else value for value in known]
                self.day_open = float(self._day_state[DAY_OPEN])
                self.entries = found.day.entries
                self._stop_day(found.day.stopped)
            self._report()
        self._restate()

    def _limit_now(self) -> float:
        """The limit tightened by the memory; NaN where the memory does not answer."""
        share: Any = None
        fault = None
        if self._losing_share is not None:
            try:
                share = self._losing_share()
            except Exception as error:  # whatever a store raises, the limit is unknown
                fault = f"{type(error).__name__}: {error}"
        if share is None:
            tightened = self._max_drawdown
        else:
            value = _float(share)
            if not 0.0 <= value <= 1.0:
                fault = f"a losing share of {share!r} is not in 0..1"
            tightened = self._max_drawdown * (1 - 0.5 * value)
        self.memory_fault = fault
        self.limit = math.nan if fault is not None else tightened
        return self.limit

    def _latch(self, cause: Code, value: float) -> None:
        self._set_latch(cause, value)
        self._save(breach=True)
        self._report()

    def _set_latch(self, cause: Code, value: float) -> None:
        """In memory first: whatever fails afterwards, this process is stopped."""
        latch = Latch(
            cause=cause.name,
            drawdown=_finite(value),
            limit=_finite(self.limit),
            at_ns=self._now(),
            overtrade_risk_score=self.overtrade_risk_score(),
            equity=_finite(self.equity),
            peak=_finite(self.peak),
            reported=False,
        )
        self._record = replace(self._record, latch=latch)
        self._armed = False
        self._restate()

    def _latch_for_state(self, fault: RiskError) -> None:
        """The state on disk is unusable: whatever it held, it is latched now."""
        if self._record.latch is None:
            self._set_latch(Code.RISK_STATE, self.drawdown)
        # The generation on disk is lost: take one above any count of resets, so that no process that
        # still remembers the old state outranks this latch.
        self._record = replace(self._record, generation=max(self._record.generation + 1, time.time_ns()))
        try:
            self._record, self._fingerprint = self._store.overwrite(self._present())
            self.unsaved = None
        except RiskError as error:
            self.unsaved = f"{fault.what}; {error.what}"
        self._report()

    def _present(self) -> Record:
        """The record as it should be on disk now."""
        if self.marked_ns is None:
            return self._record  # this process knows no account: what is on disk stands
        return replace(
            self._record,
            peak=_finite(self.peak),
            equity=_finite(self.equity),
            marked_ns=self.marked_ns,
            trade_rate=self.trade_rate.save(),
            day=None
            if self._day_state[DAY] == -np.inf
            else Day(
                date=int(self._day_state[DAY]),
                open=_finite(float(self._day_state[DAY_OPEN])),
                last=_finite(float(self._day_state[DAY_LAST])),
                stopped=self.day_denial is not None,
                entries=self.entries,
            ),
        )

    def _mark_day(self, now_ns: int) -> None:
        """Daily loss at the mark just made; exceeding the limit stops entries to the end of the trade date."""
        span = self._span
        if not span.start_ns <= now_ns < span.end_ns:
            found = self._sessions.span(now_ns)  # where the hours are unknown the gate is closed; the date stays
            if found is not None:
                self._span = span = found
        before = self._day_state[DAY]
        self._day_number[0] = span.trade_date
        daily_loss(self._equity, self._day_number, self._day_state, self._loss)
        self.day_open = float(self._day_state[DAY_OPEN])
        if self._day_state[DAY] != before:
            self.entries = self._recalled[self._date()]
            self._stop_day(False)
        loss = float(self._loss[0])
        if self.day_denial is None and loss > self._max_daily_loss * self.day_open:
            self._stop_day(True, loss)
            self._save()
            message = f"{self.day_denial}: entries blocked until the next trade date, exits continue"
            # With the instant: two processes may each find the same day's breach, at marks of their own.
            event = f"daily-{self._record.identity}-{self._record.account}-{now_ns}"
            with contextlib.suppress(MiaError):  # the block holds; the journal's own health tells of its fault
                self._tell(4, Code.DAILY_LOSS.name, message, event, at_ns=now_ns)

    def _date(self) -> int:
        """The present trade date's ordinal; 0 before the first mark."""
        return int(self._day_state[DAY]) if math.isfinite(self._day_state[DAY]) else 0

    def _stop_day(self, stopped: bool, loss: float | None = None) -> None:
        self.day_denial = None
        if stopped:
            date = dt.date.fromordinal(int(self._day_state[DAY]))
            seen = {} if loss is None else {"loss": loss, "limit": self._max_daily_loss * self.day_open}
            self.day_denial = denial(Code.DAILY_LOSS, trade_date=date, **seen)

    def _save(self, *, breach: bool = False) -> None:
        """Write and merge; a fault is kept in ``unsaved``, which blocks entries."""
        try:
            written, fingerprint = self._store.write(self._present(), breach=breach)
        except RiskError as error:
            self.unsaved = error.what
            return
        self.unsaved = None
        self._adopt(written, fingerprint)

    def _adopt(self, record: Record, fingerprint: Stamp | None) -> None:
        """Take over a merged record; a reset by another process restarts the peak here as well."""
        if record.generation > self._record.generation:
            self._armed = False
            self._stopped = False
            if record.latch is None and self.marked_ns is not None:
                self._state[PEAK] = self._state[EQUITY]
        if record.latch is not None:
            self._armed = False
        day = record.day
        if day is not None and day.date == self._day_state[DAY] and record.account == self._record.account:
            self.entries = max(self.entries, day.entries)
            if day.stopped and self.day_denial is None:
                self._stop_day(True)
        self._record = record
        self._fingerprint = fingerprint
        self._restate()

    def _restate(self) -> None:
        """Build the denial once, at the change, so that the gate only looks."""
        latch = self._record.latch
        if latch is not None:
            self.state_denial = denial(Code.RISK_LATCHED, cause=latch.cause, since=iso(latch.at_ns))
        elif not self._armed:
            self.state_denial = denial(Code.RISK_DISARMED)
        else:
            self.state_denial = None

    def _report(self) -> None:
        """Evidence of the latch: at least once, whatever crash or fault lies between."""
        latch = self._record.latch
        if latch is None or latch.reported:
            return
        event = f"latch-{self._record.identity}-{self._record.generation}-{latch.at_ns}"
        shown = "unknown" if latch.drawdown is None else f"{latch.drawdown:.4%}"
        limit = "unknown" if latch.limit is None else f"{latch.limit:.4%}"
        text = (
            f"{latch.cause}: entries blocked, exits continue; drawdown {shown}, limit {limit}. {Code[latch.cause].hint}"
        )
        score = latch.overtrade_risk_score
        try:
            self._write_snapshot(latch.at_ns, latch.drawdown, score, True)
            self._append(
                "penalties",
                timestamp=latch.at_ns,
                penalty_active=True,
                overtrade_risk_score=score,
                code=latch.cause,
                detail=text,
                run_id=self._run_id,
                event_id=event,
            )
            self._append(
                "risk_snapshots",
                timestamp=latch.at_ns,
                drawdown=latch.drawdown,
                overtrade_risk_score=score,
                penalty_active=True,
                drawdown_limit=latch.limit,
                equity=latch.equity,
                peak_equity=latch.peak,
                latched=True,
                code=latch.cause,
                run_id=self._run_id,
                event_id=event,
            )
            self._tell(5, latch.cause, text, event, at_ns=latch.at_ns)
        except Exception as error:
            # The latch holds; the journal's own health tells of its fault, and this is tried again at every mark.
            self._report_fault = error.what if isinstance(error, MiaError) else str(error)
            return
        self._record = replace(self._record, latch=replace(latch, reported=True))
        self._save()

    def _write_snapshot(self, at_ns: int, value: float | None, score: float, active: bool) -> Path:
        folder = self._workspace.data / "risk_snapshots"
        values = {"drawdown": value, "overtrade_risk_score": score, "penalty_active": active}
        return write_snapshot(folder, at_ns, values)

    def _tell(
        self,
        priority: int,
        code: str,
        message: str,
        event: str | None = None,
        detail: Mapping[str, Any] | None = None,
        at_ns: int | None = None,
    ) -> None:
        self._append(
            "alerts",
            timestamp=self._now() if at_ns is None else at_ns,
            priority=priority,
            code=code,
            message=message,
            source="risk",
            detail=detail,
            run_id=self._run_id,
            event_id=event,
        )

    def _append(self, table: str, **row: Any) -> None:
        self._journal.append(table, row)

    def _now(self) -> int:
        """The engine's clock; the last mark where the clock fails, because a latch must not wait for it."""
        try:
            return operator.index(self._clock())
        except Exception:
            return self.marked_ns or 0


def _float(value: Any) -> float:
    """As a float; NaN for what is not a number: a truth value and a text are none."""
    if isinstance(value, bool | np.bool_ | str | bytes):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _money(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f} USD"
