"""Replay: bars from files run through the live engine, with a simulated account, and resumed after a crash.

A run is named by the digest of everything that decides its result: inputs, configuration, catalogue,
model. The same run again therefore writes the same rows, which the journal stores once. Every
``checkpoint_bars`` the features so far go to a Parquet part and the state to a checkpoint; a killed
run goes on from there, repeats the bars since, and ends with what an undisturbed one ends with.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mia_fast import clock as clocks
from mia_fast import config as configs
from mia_fast import journal as journals
from mia_fast import memory as memories
from mia_fast.bars.rolls import Roll, back_adjust, one_series
from mia_fast.errors import DataError, MarketMemoryError, StateError
from mia_fast.features import catalogue as catalogues
from mia_fast.features.asof import Steps
from mia_fast.features.frame import (
    brought,
    event_source,
    input_arrays,
    level_source,
    market_sources,
    matrix_frame,
    one_symbol,
    plan_for,
    read_cross,
    write_latest,
)
from mia_fast.features.levels import CLOSES_KEPT, snapshots
from mia_fast.features.plan import rests_on
from mia_fast.files import replacing, write_json
from mia_fast.live.broker import ACCOUNT, SimulatedBroker, Trade
from mia_fast.live.checkpoint import Checkpoint
from mia_fast.live.engine import BAR_COLUMNS, MINUTE, STAGES, Bar, Engine
from mia_fast.live.forecast import models_digest
from mia_fast.live.opening import made_by_engine, warm
from mia_fast.live.policy import Policy
from mia_fast.options.config import options_config
from mia_fast.options.levels import FutureLevels, Levels, LevelsEngine, no_chain
from mia_fast.options.snapshot import SNAPSHOT_KEYS, journal_row
from mia_fast.options.snapshot import save as save_levels
from mia_fast.predict import NeuralPipeline
from mia_fast.risk import Desk
from mia_fast.risk import config as risk_config
from mia_fast.risk.calendar import load_calendar
from mia_fast.tables import Table, read_table
from mia_fast.telemetry import RECORDER
from mia_fast.workspace import Workspace

if TYPE_CHECKING:
    from mia_models.session import OnnxModel

CONFIGS: Final = ("market_config.yaml", "policy.yaml", "risk.yaml", "options.yaml", "inputs.yaml", "memory.yaml")
_COMPONENTS: Final = (
    ("feature_engine", "update"),
    ("neural_pipeline", "step"),
    ("policy", "decide"),
    ("risk", "check"),
    ("decision_log", "append"),
    ("market_memory", "observe"),
)

MARKS: Final = {
    "known_at": pl.Int64,
    "equity": pl.Float64,
    "drawdown": pl.Float64,
    "drawdown_limit": pl.Float64,
    "closed_by": pl.String,
}
"""Account and gate at each bar: instant (ns UTC), USD, fractions of the peak, and why no entry at all could pass."""

Progress = Callable[[int, int], None]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a replay reads, already checked."""

    bars: Table
    events: Path | None
    cross: Table | None
    chain: Table | None
    fingerprint: str
    """Digest of the files and the rolls."""
    rolls: tuple[Roll, ...] = ()
    """Of bars of several contracts, made one series: features see back-adjusted prices, all else the contracts' own."""


@dataclass(slots=True)
class Tally:
    """What is counted along the way; saved with each checkpoint."""

    actions: Counter[str] = field(default_factory=Counter)
    blocks: Counter[str] = field(default_factory=Counter)
    block_spans: dict[str, list[int]] = field(default_factory=dict)
    """Code -> first and last bar, ns UTC, at which it refused an entry."""
    reasons: Counter[str] = field(default_factory=Counter)
    latched_at: int | None = None
    max_drawdown: float = 0.0
    peak_equity: float = 0.0

    def mark(self, equity: float) -> None:
        """Follow the account's own drawdown."""
        self.peak_equity = max(self.peak_equity, equity)
        self.max_drawdown = max(self.max_drawdown, 1.0 - equity / self.peak_equity)

    def block(self, code: str, now: int) -> None:
        """An order was refused for ``code``."""
        self.blocks[code] += 1
        self.block_spans.setdefault(code, [now, now])[1] = now


@dataclass(frozen=True, slots=True)
class Summary:
    """How a replay ended."""

    run_id: str
    bars: int
    first: int
    last: int
    resumed_at: int
    """Bars that an earlier, killed process had done."""
    features: int
    null_features: dict[str, tuple[str, ...]]
    tally: Tally
    equity: float
    starting_equity: float
    trades: int
    wins: int
    latency_us: dict[str, tuple[float, float]]
    """Stage -> p50, p99 in microseconds, over the bars of this process."""
    seconds: float
    """In the loop over the bars."""
    levels: Levels | None
    future_levels: FutureLevels | None
    snapshots: int
    marks: pl.DataFrame
    """Per bar: :data:`MARKS`."""
    memory: str
    """What was recalled from and added to the market memory, or why not."""
    files: tuple[Path, ...]


def read_inputs(
    workspace: Workspace,
    *,
    bars: Path,
    events: Path | None = None,
    cross: Path | Sequence[Path] | None = None,
    chain: Path | None = None,
) -> Inputs:
    """Read and check the files of a replay; of cross-asset closes there may be several.

    Raises
    ------
    DataError
        A file cannot be used; says which row and why.
    """
    configs.check_names(workspace)
    if events is not None:
        read_table("events", events, workspace=workspace)  # refuse a typing error in the path before the run
    digest = hashlib.sha256()
    others = [] if cross is None else [cross] if isinstance(cross, Path) else list(cross)
    for path in (bars, events, *(others or (None,)), chain):
        digest.update(b"-" if path is None else _file_digest(path))
    table = read_table("bars", bars, workspace=workspace)
    if table.interval_ns == 0:
        raise DataError(
            "the bars have no common length",
            where=table.source,
            hint="replay time bars; mia-fast features takes volume bars",
            then="nothing was started",
        )
    root = configs.market(workspace).instrument.symbol
    table, rolls = one_series(table, root, workspace)
    if rolls:
        digest.update(repr(rolls).encode())
    else:
        one_symbol(table)
        _check_symbol(table, root)
    return Inputs(
        bars=table,
        rolls=rolls,
        events=events,
        cross=read_cross(others, workspace) if others else None,
        chain=None if chain is None else read_table("chain", chain, workspace=workspace),
        fingerprint=digest.hexdigest(),
    )


def _check_symbol(bars: Table, root: str) -> None:
    """Refuse bars of another instrument than the configured one: its tick and point value would be wrong."""
    if "symbol" not in bars.frame.columns:
        return
    symbol = str(bars.frame["symbol"][0])
    if symbol != root and not re.fullmatch(rf"{re.escape(root)}[FGHJKMNQUVXZ]\d{{1,4}}", symbol):
        raise DataError(
            f"the bars are of {symbol!r}, the configured instrument is {root!r}",
            where=bars.source,
            hint="set instrument (symbol, tick_size, point_value) in config/market_config.yaml of the workspace",
            then="nothing was started",
        )


def _file_digest(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").digest()
    except OSError as error:
        raise DataError(
            f"cannot be read ({error.strerror})", where=str(path), hint="check the path", then="nothing was started"
        ) from error


def replay(
    workspace: Workspace,
    inputs: Inputs,
    *,
    start: int | None = None,
    end: int | None = None,
    fresh: bool = False,
    checkpoint_bars: int = 1000,
    progress: Progress | None = None,
) -> Summary:
    """Run the bars through features, prediction, policy, risk gate and journal.

    Parameters
    ----------
    workspace
        Configuration is read from it, everything is written to it.
    inputs
        From :func:`read_inputs`.
    start, end
        Only decide on bars known in (start, end], ns UTC; the bars up to ``start`` warm the features.
    fresh
        Start from the first bar although a killed run left a checkpoint.
    checkpoint_bars
        How often the state is saved.
    progress
        Called with (bars done, bars to do).
    """
    frame = inputs.bars.frame
    if end is not None:
        frame = frame.filter(pl.col("known_at").dt.epoch("ns") <= end)
    known_at = frame["known_at"].dt.epoch("ns").to_numpy()
    first = 0 if start is None else int(np.searchsorted(known_at, start, side="right"))
    if first >= len(known_at):
        raise DataError(
            "there is no bar in the period asked for",
            where=inputs.bars.source,
            hint=f"the bars run from {_iso(inputs.bars.frame, 0)} to {_iso(inputs.bars.frame, -1)}",
            then="nothing was started",
        )
    bars = Table(
        inputs.bars.kind, frame, inputs.bars.quarantine, inputs.bars.source, interval_ns=inputs.bars.interval_ns
    )
    pipeline = NeuralPipeline(workspace)
    base = _recalled(workspace, int(known_at[first]))
    run_id = _run_id(workspace, inputs, pipeline.served, start, end, base)
    folder = workspace.data / "runs" / run_id
    parts = workspace.data / "features" / "runs" / run_id
    if fresh:
        (folder / "checkpoint").unlink(missing_ok=True)
    saved = Checkpoint.read(folder / "checkpoint")

    with contextlib.ExitStack() as stack:
        mine, other = _two_cores()
        # Rows are safe in the segments at once. They go on into DuckDB at the checkpoints: a writer that works beside
        # bars at full speed takes the interpreter from them (docs/decisions/0080-alerts-and-readers.md).
        spread = journals.Settings.of(workspace)
        spread = replace(spread, interval=60.0, reserve_bytes=spread.segment_bytes)
        journal = stack.enter_context(journals.Journal.open(workspace, pin_core=other, settings=spread))
        stack.enter_context(_pinned(mine))
        run = _Run(workspace, inputs, bars, pipeline, run_id, folder, parts, journal, first, known_at, base)
        stack.callback(run.close)
        if saved is None:
            run.begin()
        else:
            run.resume(saved)
        with _quiet_collector():
            run.loop(checkpoint_bars, progress)
        return run.finish()


class _Run:
    """One replay at work."""

    def __init__(
        self,
        workspace: Workspace,
        inputs: Inputs,
        bars: Table,
        pipeline: NeuralPipeline,
        run_id: str,
        folder: Path,
        parts: Path,
        journal: journals.Journal,
        first: int,
        known_at: NDArray[np.int64],
        base: _Base,
    ) -> None:
        assert bars.interval_ns is not None
        self.workspace, self.bars, self.pipeline = workspace, bars, pipeline
        self.rolls = inputs.rolls
        self.moved = replace(bars, frame=back_adjust(bars.frame)) if self.rolls else bars
        self.run_id, self.folder, self.parts = run_id, folder, parts
        self.journal, self.first, self.known_at = _RunJournal(journal, run_id), first, known_at
        self.store = journal
        self.now = 0
        market = configs.market(workspace)
        self.market = market
        catalogue = catalogues.read(workspace)
        self.catalogue = catalogue
        extra = (MINUTE, *pipeline.auxiliary)
        self.events = inputs.events if inputs.events is not None else workspace.data / "macro_events.csv"
        self.chains = [] if inputs.chain is None else snapshots(inputs.chain.frame)
        self.sources = self._slow(None if inputs.cross is None else inputs.cross.frame)
        self.plan = plan_for(bars, workspace=workspace, sources=self.sources, auxiliary=extra)
        self.broker = SimulatedBroker(market)
        self.tally = Tally()
        self.resumed_at = 0
        self.row = first
        self.buffer: list[NDArray[np.float64]] = []
        self.marks: list[tuple[int, float, float, float, str | None]] = []
        self.next_chain = 0
        self.last_levels: Levels | None = None
        self.latency = np.zeros((len(known_at) - first, len(STAGES)), dtype=np.int64)
        self.measured = 0
        self.part_start = first
        self.seconds = 0.0
        self.base = base
        self.memory: memories.MemoryWatch | None = None

    def begin(self) -> None:
        """Start from the first bar: a new account, warm features."""
        self._assemble(None)
        self._forget_marks(self.first)
        self.engine.desk.controller.new_account(self.broker.cash, int(self.known_at[self.first]))
        self.engine.desk.controller.arm()
        self.engine.journal_features(int(self.known_at[self.first]))
        self._warm()
        if not self.chains:
            at = int(self.known_at[self.first])
            self._keep_levels(no_chain(at, "CHAIN_MISSING: no chain was given to the replay"), at)

    def resume(self, saved: Checkpoint) -> None:
        """Go on where the checkpoint stands."""
        self._assemble(saved.state["risk"], int(self.known_at[saved.row - 1]))
        self.engine.features.restore(saved.features)
        self.engine.restore_closes(saved.state["closes"])
        self.engine.forecasts.restore(saved.state["forecasts"])
        self.engine.account.restore(saved.state["account"])
        self.broker.restore(saved.state["broker"])
        assert self.memory is not None
        self.memory.restore(saved.state["memory"])
        self.engine.gate.restore(saved.state["gate"])
        tally = saved.state["tally"]
        self.tally = Tally(
            Counter(tally["actions"]),
            Counter(tally["blocks"]),
            tally["block_spans"],
            Counter(tally["reasons"]),
            tally["latched_at"],
            tally["max_drawdown"],
            tally["peak_equity"],
        )
        self.row = self.part_start = saved.row
        self.now = int(self.known_at[saved.row - 1])
        self.resumed_at = saved.row - self.first
        self._forget_marks(saved.row)
        self.next_chain = saved.state["next_chain"]
        if self.next_chain:  # the levels in force are recomputed from their chain, not stored twice
            self._take_chain(self.next_chain - 1, settled=True)
        elif not self.chains:
            at = int(self.known_at[self.first])
            self._keep_levels(no_chain(at, "CHAIN_MISSING: no chain was given to the replay"), at)
        if self.engine.desk.controller.latch is None:
            self.engine.desk.controller.arm()

    def loop(self, checkpoint_bars: int, progress: Progress | None) -> None:
        """All bars that are left."""
        columns = [self.bars.frame[name].cast(pl.Float64).to_list() for name in BAR_COLUMNS]
        opens, highs, lows, closes, volumes = columns
        further = [self.moved.frame[name].cast(pl.Float64).fill_null(math.nan).to_list() for name in self.engine.extra]
        extras: list[tuple[float, ...]] = list(zip(*further, strict=True)) if further else [()] * len(opens)
        times = self.known_at.tolist()
        rolled = _rolled(self.bars.frame) if self.rolls else frozenset()
        total = len(times)
        began = time.perf_counter()
        record, wall = RECORDER.record, time.time_ns
        gate, controller = self.engine.gate, self.engine.desk.controller
        while self.row < total:
            stop = min(total, self.row + checkpoint_bars)
            for k in range(self.row, stop):
                now = times[k]
                self.now = now
                bar = Bar(now, opens[k], highs[k], lows[k], closes[k], volumes[k], extras[k])
                if k in rolled and (left := self.broker.leave(closes[k - 1], times[k - 1])) is not None:
                    self._journal_trade(left, now)
                trade = self.broker.take_bar(bar.open, bar.high, bar.low, now)
                if trade is not None:
                    self._journal_trade(trade, now)
                while self.next_chain < len(self.chains) and self.chains[self.next_chain][0] <= now:
                    self._take_chain(self.next_chain)
                    self.next_chain += 1
                account = self.broker.account(bar.close, now)
                self.tally.mark(account.equity)
                decision = self.engine.on_bar(bar, account, self.broker.position)
                if decision.order is not None:
                    self.broker.submit(decision.order, decision.trade_id, decision.regime_probs, decision.code)
                self.tally.actions[decision.action] += 1
                if decision.allowed:  # of what is missing, the name is the news
                    missing = decision.code.endswith("_MISSING")
                    self.tally.reasons[decision.detail if missing else decision.code] += 1
                else:
                    self.tally.block(decision.code, now)
                closed = gate.standing(now)
                self.marks.append(
                    (
                        now,
                        account.equity,
                        controller.drawdown,
                        controller.limit,
                        None if closed is None else closed.code.name,
                    )
                )
                if self.tally.latched_at is None and controller.latch is not None:
                    self.tally.latched_at = now
                self.buffer.append(self.engine.values[: len(self.plan.features)].copy())
                spent = self.engine.latency_ns
                self.latency[self.measured] = spent
                self.measured += 1
                at = wall()
                for (component, name), ns in zip(_COMPONENTS, spent, strict=False):
                    record(component, name, at, ns, True)
            self.row = stop
            self._checkpoint()
            if progress is not None:
                progress(self.row - self.first, total - self.first)
        self.seconds = time.perf_counter() - began

    def finish(self) -> Summary:
        """Write what a run leaves behind; the journal is closed and exported by its context."""
        if self.measured:  # a finished run that is started again has nothing new to tell
            self.engine.desk.controller.snapshot()
        write_latest(self._latest(), self.workspace)
        files = self.store.export()
        latency = self.latency[: self.measured] / 1e3
        spread = {
            stage: (float(np.percentile(latency[:, k], 50)), float(np.percentile(latency[:, k], 99)))
            for k, stage in enumerate(STAGES)
            if self.measured
        }
        # What the engine itself writes into its rows is null only for want of what it is made from.
        forecasts, written = self.engine.forecasts, self.engine.written
        null = {name: lacks for name, lacks in self.plan.null_features.items() if name not in written}
        null |= forecasts.lacking(self.plan, rests_on(self.catalogue))
        summary = Summary(
            run_id=self.run_id,
            bars=len(self.known_at) - self.first,
            first=int(self.known_at[self.first]),
            last=int(self.known_at[-1]),
            resumed_at=self.resumed_at,
            features=len(self.plan.features) - len(null),
            null_features=null,
            tally=self.tally,
            equity=self.broker.equity(float(self.bars.frame["close"][-1])),
            starting_equity=self.market.account.starting_equity,
            trades=self.broker.trades,
            wins=self.broker.wins,
            latency_us=spread,
            seconds=self.seconds,
            levels=self.last_levels,
            future_levels=self.engine.levels,
            snapshots=self.next_chain,
            marks=pl.concat([pl.read_parquet(path) for path in sorted(self.folder.glob("marks-*.parquet"))]),
            memory=self._publish(),
            files=(self.workspace.data / "features" / "features_latest.csv", *files),
        )
        write_json(
            self.folder / "run.json",
            {
                "run_id": self.run_id,
                "bars": summary.bars,
                "first": clocks.iso(summary.first),
                "last": clocks.iso(summary.last),
                "decisions": dict(self.tally.actions),
                "blocks": dict(self.tally.blocks),
                "trades": summary.trades,
                "equity": summary.equity,
                "max_drawdown": self.tally.max_drawdown,
            },
        )
        return summary

    # --- parts --------------------------------------------------------------------------------------

    def _assemble(self, risk_state: dict[str, str] | None, until: int | None = None) -> None:
        """Make the long-lived objects; the run's own risk state and memory are set to what the checkpoint holds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("*risk_state*"):
            path.unlink()
        for name, text in (risk_state or {}).items():
            (self.folder / name).write_text(text, encoding="utf-8")
        self.now = int(self.known_at[self.first])
        self.memory = self._open_memory(until)
        desk = Desk(
            self.workspace,
            losing_share=self.memory.losing_share,
            journal=self.journal,
            clock=lambda: self.now,
            events=self.events,
            state_folder=self.folder,
            run_id=self.run_id,
        )
        digest = configs.digest(*_config_files(self.workspace))
        assert self.bars.interval_ns is not None
        self.engine = Engine(
            plan=self.plan,
            inputs=self.catalogue.inputs,
            sources=self.sources,
            brought=brought(self.bars.frame),
            models=self.pipeline.served,
            drift=self.pipeline.drift(),
            policy=Policy.open(self.workspace),
            desk=desk,
            gate=desk.gate(
                account=ACCOUNT,
                model_sha256=models_digest(self.pipeline.served),
                resume=False,
            ),
            journal=self.journal,
            levels=LevelsEngine(options_config(self.workspace)),
            account_name=self.run_id,
            interval_ns=self.bars.interval_ns,
            run_id=self.run_id,
            config_digest=digest,
            memory=self.memory,
            rolls=self.rolls,
        )
        self.engine.jumps = None  # the bars are a table's

    def _open_memory(self, until: int | None) -> memories.MemoryWatch:
        """The run's own memory: what the desk knew before the run, and the run's trades, up to ``until`` when resumed.

        It answers in place, from a file of its own, so that the run depends on nothing that others store meanwhile.
        """
        base, config = self.base, memories.memory_config(self.workspace)
        if until is None:
            for name in (memories.FILE, f"{memories.FILE}-wal", f"{memories.FILE}-shm", memories.MARKER):
                (self.folder / name).unlink(missing_ok=True)

        def opened() -> memories.MemoryStore:
            if base.fault is not None:
                raise base.fault
            return memories.MemoryStore(self.folder, base.manifest, config)

        try:
            if base.fault is None:
                with opened() as store:
                    if until is None:
                        store.adopt(base.rows)
                    else:
                        store.forget_after(self.run_id, until)
        except MarketMemoryError as error:
            raise StateError(
                f"the run's own memory cannot be used: {error.what}",
                where=str(self.folder),
                hint="run again with --fresh to start this replay from its first bar",
                then="nothing was started",
            ) from error
        return memories.MemoryWatch(
            opened,
            self.plan.outputs,
            stale_seconds=config.tightening.stale_seconds,
            replays=True,  # of replays, only this one is in it
            background=False,
            run_id=self.run_id,
        )

    def _publish(self) -> str:
        """Hand the run's trades to the desk's memory; those that are there already stay as they are."""
        base = self.base
        if base.fault is not None:
            return f"not used: {base.fault.what}"
        with memories.MemoryStore(self.folder, base.manifest, memories.memory_config(self.workspace)) as store:
            rows = store.rows(self.run_id)
        try:
            added = memories.of(self.workspace).adopt(rows)
        except MarketMemoryError as error:
            return f"{len(rows):,} closed trades not added: {error.what}"
        return (
            f"{len(base.rows):,} earlier states recalled from; {added:,} of {len(rows):,} closed trades are new in it"
        )

    def close(self) -> None:
        """Let go of the run's memory."""
        if self.memory is not None:
            self.memory.close()

    def _slow(self, cross: pl.DataFrame | None) -> tuple[Steps, ...]:
        """What is known of the slower tables, and what the engine makes bar by bar; levels come with their chains."""
        assert self.bars.interval_ns is not None
        calendar = load_calendar(self.workspace, risk_config.risk(self.workspace).events, self.events)
        return (
            *(() if cross is None else market_sources(cross, self.workspace)),
            *event_source(calendar, self.workspace, self.bars.interval_ns),
            *made_by_engine(self.catalogue, levels=bool(self.chains), judged=self.pipeline.drift() is not None),
        )

    def _early(self, known: int) -> bool:
        """Known to the bars before the period, which went through the features in one batch."""
        return self.first > 0 and known <= int(self.known_at[self.first - 1])

    def _warm(self) -> None:
        """Run the bars before the period through the features alone."""
        if not self.first:
            return
        earlier = replace(self.moved, frame=self.moved.frame.head(self.first))
        solver = LevelsEngine(options_config(self.workspace))
        levels = [solver.update(chain, known) for known, chain in self.chains if self._early(known)]
        # Of two sources of one table the later wins: levels that are known over none.
        sources = (*self.sources, *level_source(levels, earlier, self.workspace))
        known_at, columns = input_arrays(self.plan, earlier, sources)
        matrix = warm(self.engine, known_at, columns)
        assert self.memory is not None
        self.memory.observe(int(known_at[-1]), np.ascontiguousarray(matrix[:, -1]))
        closes = self.bars.frame["close"].head(self.first).tail(CLOSES_KEPT).to_list()
        self.engine.restore_closes(list(zip(known_at[-CLOSES_KEPT:].tolist(), closes, strict=True)))

    def _take_chain(self, number: int, *, settled: bool = False) -> None:
        known, chain = self.chains[number]
        begin = int(self.known_at[self.first])
        at = max(known, begin)  # an older chain is as old as it is when the run begins
        levels = self.engine.on_chain(chain, at, known_at=known, settled=settled or self._early(known))
        # Of the chains before the first bar, the last is in force when the run begins.
        if number + 1 == len(self.chains) or self.chains[number + 1][0] > begin:
            self._keep_levels(levels, at)

    def _keep_levels(self, levels: Levels, at: int) -> None:
        """One snapshot file and one journal row per chain; a run that is repeated finds its own file."""
        content = {key: levels[key] for key in SNAPSHOT_KEYS}
        path = self.workspace.data / "options_snapshots" / f"levels_{clocks.file_stamp(at)}.json"
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == content:
            levels = replace(levels, path=path)
        else:
            levels = save_levels(levels, self.workspace)
        self.last_levels = levels
        row = journal_row(levels, self.workspace)
        self.journal.append("levels", {**row, "timestamp": at, "event_id": f"levels-{at}"})

    def _journal_trade(self, trade: Trade, now: int) -> None:
        self.engine.closed(trade.trade_id, trade.profit, now)
        self.journal.append(
            "trades",
            {
                "trade_id": trade.trade_id,
                "timestamp": trade.entry_ns,
                "entry_price": trade.entry_price,
                "profit": trade.profit,
                "regime_probs": trade.regime_probs,
                "symbol": self.market.instrument.symbol,
                "side": trade.side,
                "quantity": trade.quantity,
                "exit_timestamp": trade.exit_ns,
                "exit_price": trade.exit_price,
                "fees": trade.fees,
                "code": trade.reason,
            },
        )

    def _checkpoint(self) -> None:
        """First the features, then the state that says they are there; the journal's writer gets its turn."""
        self.store.flush()
        if self.buffer:
            matrix = np.ascontiguousarray(np.stack(self.buffer, axis=1))
            stamps = self.bars.frame["timestamp"].slice(self.part_start, len(self.buffer))
            self.parts.mkdir(parents=True, exist_ok=True)
            with replacing(self._part(self.part_start)) as temporary:
                matrix_frame(stamps, self.plan.features, matrix).write_parquet(temporary)
            with replacing(self._marks_part(self.part_start)) as temporary:
                pl.DataFrame(self.marks, schema=MARKS, orient="row").write_parquet(temporary)
            self.part_start += len(self.buffer)
            self.buffer.clear()
            self.marks.clear()
        controller = self.engine.desk.controller
        controller.checkpoint()
        tally = self.tally
        assert self.memory is not None
        Checkpoint(
            row=self.row,
            features=self.engine.features.save(),
            state={
                "broker": self.broker.save(),
                "gate": self.engine.gate.save(),
                "closes": self.engine.recent_closes(),
                "forecasts": self.engine.forecasts.save(),
                "account": self.engine.account.save(),
                "next_chain": self.next_chain,
                "memory": self.memory.save(),
                "tally": {
                    "actions": tally.actions,
                    "blocks": tally.blocks,
                    "block_spans": tally.block_spans,
                    "reasons": tally.reasons,
                    "latched_at": tally.latched_at,
                    "max_drawdown": tally.max_drawdown,
                    "peak_equity": tally.peak_equity,
                },
                "risk": {
                    path.name: path.read_text(encoding="utf-8")
                    for path in self.folder.glob("*risk_state*")
                    if path.suffix in (".json", ".created")
                },
            },
        ).write(self.folder / "checkpoint")
        gc.collect()

    def _part(self, first_row: int) -> Path:
        return self.parts / f"part-{first_row - self.first:08d}.parquet"

    def _marks_part(self, first_row: int) -> Path:
        return self.folder / f"marks-{first_row - self.first:08d}.parquet"

    def _forget_marks(self, first_row: int) -> None:
        """Parts from this row on are of an earlier attempt, perhaps cut elsewhere."""
        keep = self._marks_part(first_row).name
        for path in self.folder.glob("marks-*.parquet"):
            if path.name >= keep:
                path.unlink()

    def _latest(self) -> pl.DataFrame:
        names = sorted(self.parts.glob("part-*.parquet"))
        wanted = configs.market(self.workspace).latest_rows
        held: list[pl.DataFrame] = []
        rows = 0
        for path in reversed(names):
            held.insert(0, pl.read_parquet(path))
            rows += held[0].height
            if rows >= wanted:
                break
        return pl.concat(held)


class _RunJournal:
    """The journal under the name of a run: what a resumed run repeats is stored once."""

    def __init__(self, journal: journals.Journal, run_id: str) -> None:
        self._journal, self._run_id = journal, run_id
        self.health = journal.health
        self.append_values = journal.append_values  # the engine's decisions have the run's name

    def append(self, table: str, row: Any, /) -> int:
        """Add the run's name, and an event's name where the row has none."""
        if row.get("run_id") != self._run_id:
            row = {**row, "run_id": self._run_id}
        if table not in ("decisions", "trades", "feature_lists") and row.get("event_id") is None:
            row = {**row, "event_id": f"{row.get('code') or table}-{row['timestamp']}"}
        return self._journal.append(table, row)


def _rolled(frame: pl.DataFrame) -> frozenset[int]:
    """The rows with which a new contract begins."""
    contract = frame["symbol"]
    return frozenset((contract != contract.shift(1)).fill_null(False).arg_true().to_list())


def _config_files(workspace: Workspace) -> list[Path]:
    """Every file whose content may change a decision."""
    return [*(workspace.config(name) for name in CONFIGS), *catalogues.files(workspace)]


@dataclass(frozen=True, slots=True)
class _Base:
    """What the desk's memory gives to a run: the trades, not of replays, whose outcome was known before it."""

    manifest: memories.MemoryManifest
    rows: tuple[memories.Row, ...]
    fault: MarketMemoryError | None
    digest: str


def _recalled(workspace: Workspace, first_ns: int) -> _Base:
    """The desk's memory as a run that begins at ``first_ns`` may know it; a broken one blocks the run's entries."""
    manifest = memories.memory_features(workspace)
    digest = hashlib.sha256(manifest.digest.encode())
    try:
        rows = tuple(memories.of(workspace).rows("", until=first_ns - 1))
    except MarketMemoryError as fault:
        return _Base(manifest, (), fault, f"{digest.hexdigest()} {fault.reason}")
    for row in rows:
        digest.update(repr(row).encode())
    return _Base(manifest, rows, None, digest.hexdigest())


def _run_id(
    workspace: Workspace, inputs: Inputs, models: Sequence[OnnxModel], start: int | None, end: int | None, base: _Base
) -> str:
    parts = [
        inputs.fingerprint,
        configs.digest(*_config_files(workspace)),
        str(models_digest(models)),
        str(start),
        str(end),
        base.digest,
    ]
    if inputs.events is None:
        calendar = workspace.data / "macro_events.csv"
        parts.append(hashlib.sha256(calendar.read_bytes()).hexdigest() if calendar.is_file() else "-")
    return "run-" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _iso(frame: pl.DataFrame, row: int) -> str:
    return clocks.iso(frame["known_at"].dt.epoch("ns")[row])


def _two_cores() -> tuple[int | None, int | None]:
    """A core for the loop and another for the journal's writer; None where there is no choice."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return (cores[0], cores[-1]) if len(cores) > 1 else (None, None)


@contextlib.contextmanager
def _pinned(core: int | None) -> Iterator[None]:
    """Keep this thread on one core: shared with the writer, the loop's worst bars take ten times as long."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _quiet_collector() -> Iterator[None]:
    """No garbage collection between bars: a growing heap gives pauses of more than 100 ms."""
    was = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was:
            gc.enable()
