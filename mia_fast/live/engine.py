"""The live engine: it owns the long-lived objects, and a bar runs through all of them.

``engine.on_bar(bar, account)`` returns a decision with its reason, journalled before it is returned.
Nothing on that path opens a file, sleeps, retries or makes a frame; with a memory that answers in the background,
that is: one that answers in place, as a replay's does, looks at its own file.
"""

from __future__ import annotations

import math
import struct
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mia_fast.bars.rolls import Roll, adjustment
from mia_fast.clock import file_stamp
from mia_fast.errors import DataError
from mia_fast.features.asof import Feed, Steps
from mia_fast.features.catalogue import InputColumn
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.levels import CLOSES_KEPT, LevelsFeed
from mia_fast.features.plan import Plan
from mia_fast.journal.schema import TABLES, Table, feature_list_digest
from mia_fast.live.account import AccountState
from mia_fast.live.broker import Position
from mia_fast.live.forecast import Forecasts
from mia_fast.live.policy import FEATURES, Policy
from mia_fast.memory.recall import FEATURES as RECALLED
from mia_fast.options.levels import FutureLevels, Levels, LevelsEngine, on_future
from mia_fast.risk import Account, Desk, Gate, Market, Order, Side, client_id
from mia_fast.tables import PriceJumps, check_bar, price_jumps

if TYPE_CHECKING:
    import polars as pl

    from mia_fast.memory.watch import MemoryWatch
    from mia_models.drift import Drift
    from mia_models.session import OnnxModel

Floats = NDArray[np.float64]

STAGES: Final = ("features", "prediction", "decision", "risk", "journal", "memory", "whole bar")
_DECISIONS: Final = TABLES["decisions"]
BAR_COLUMNS: Final = ("open", "high", "low", "close", "volume")
MADE: Final = ("levels", "memory", "models", "account")
"""Tables whose inputs the engine makes itself, bar by bar."""
MINUTE: Final = "minute_of_day"
"""The calendar column that the engine asks of its plan."""


class Bar(NamedTuple):
    """One closed bar. Prices in index points, volume in contracts; ``known_at`` is its close, ns UTC.

    ``extra`` holds what else the engine's plan reads of a bar, in the order of :attr:`Engine.extra`.
    """

    known_at: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    extra: tuple[float, ...] = ()


class Journal(Protocol):
    """What the engine writes to."""

    def append(self, table: str, row: dict[str, Any], /) -> int:
        """Take one row; it survives the end of the process when this returns."""

    def append_values(self, table: Table, values: list[Any], /) -> int:
        """The same, of values as :meth:`Table.in_order` gives them."""

    def health(self) -> str:
        """``"ok"`` or why rows cannot be taken."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided at a bar, and why."""

    trade_id: str
    known_at: int
    action: str
    """``buy``, ``sell``, ``exit`` or ``hold``."""
    allowed: bool
    """The gate let the order pass; True for a hold."""
    code: str
    """Stable reason: of the hold, of the entry or exit, or the gate's first denial."""
    detail: str
    score: float
    regime_probs: dict[str, float] | None
    order: Order | None
    """The order to send; None unless the gate allowed one."""


class Engine:
    """Features, prediction, decision, risk gate and journal of one instrument.

    Parameters
    ----------
    plan
        Features to compute, with :data:`MINUTE` among its auxiliary columns.
    inputs
        The catalogue's inputs.
    sources
        What is known of the slower tables (daily and minute closes, the calendar) from when on; levels come by
        :meth:`on_chain`, the memory's features by ``memory``.
    brought
        Columns that the bars have besides open, high, low, close and volume.
    models
        In order, as :attr:`mia_fast.predict.NeuralPipeline.served` has them; without ``predicted_vix`` no entry passes.
    drift
        Judges the forecasts; None: the numbers of it stay null.
    policy, desk, gate, journal
        The other rooms' long-lived objects.
    levels
        For :meth:`on_chain`.
    rolls
        Of bars of several contracts: features see prices moved by the gaps of later rolls; levels, orders, account and
        journal the contract's own.
    memory
        Is given each state after its bar was decided, and the state of each entry; its features by the state of the bar
        before are held at each bar, where the plan reads them. None: no memory.
    account_name
        Part of every client id.
    interval_ns
        Length of a bar.
    run_id
        Names the run in the journal: a row that a resumed run repeats is stored once.
    model_sha256, config_digest
        Journalled with each decision.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        inputs: Sequence[InputColumn],
        sources: Sequence[Steps],
        brought: Sequence[str],
        models: Sequence[OnnxModel],
        policy: Policy,
        desk: Desk,
        gate: Gate,
        journal: Journal,
        levels: LevelsEngine,
        account_name: str,
        interval_ns: int,
        run_id: str | None,
        config_digest: str,
        drift: Drift | None = None,
        memory: MemoryWatch | None = None,
        rolls: tuple[Roll, ...] = (),
    ) -> None:
        self.plan, self.policy = plan, policy
        self.desk, self.gate, self.journal = desk, gate, journal
        self.features = FeatureEngine(plan)
        self.values: Floats = np.full(len(plan.outputs), np.nan)
        self.levels: FutureLevels | None = None
        self.latency_ns = [0] * len(STAGES)
        self.memory = memory
        self._levels_engine = levels
        self._account_name, self._symbol = account_name, desk.market.instrument.symbol
        # Two runs in one workspace must not share the names of their trades.
        self._trade_prefix = f"{self._symbol}-" if run_id is None else f"{run_id}-{self._symbol}-"
        self._contracts, self._tick = desk.market.account.contracts, desk.market.instrument.tick_size
        self._interval = interval_ns
        self._run_id, self._config_digest = run_id, config_digest
        outputs = {name: k for k, name in enumerate(plan.outputs)}
        self._policy_at = np.array([outputs[name] for name in FEATURES])
        self._minute_at = outputs[MINUTE]
        self._atr_at = outputs["atr_14"]
        self._context_size = len(plan.features)
        self._recalled = [name for name in plan.held.get("memory", ()) if name in RECALLED and name not in brought]
        self.forecasts = Forecasts(models, drift, self.features, brought)
        self.account = AccountState(desk, self.features, brought)
        self.written = frozenset((*self.forecasts.written, *self.account.written))
        """Features that the engine puts into its rows."""
        self._model_sha = self.forecasts.sha256
        own = [name for name in plan.bar_inputs if name not in BAR_COLUMNS]
        slow = [(table, name) for table, names in plan.held.items() for name in names if name in brought]
        self.extra = (*own, *(name for _, name in slow))
        """What a bar's ``extra`` holds: further columns of the bars, then slow inputs that they bring themselves."""
        have = [*BAR_COLUMNS, *own]
        order = [have.index(name) for name in plan.bar_inputs]
        self._inputs = None if order == list(range(len(have))) else order
        self._own = len(own)
        self._brought = [
            (table, [(name, len(own) + k) for k, (of, name) in enumerate(slow) if of == table])
            for table in dict.fromkeys(table for table, _ in slow)
        ]
        self._feeds = [Feed(steps, self.features, skip=brought) for steps in sources if steps.table not in MADE]
        self._level_feed = LevelsFeed(self.features, inputs, levels.config, skip=brought)
        self._daily = next((steps for steps in sources if steps.table == "daily"), None)
        self._closes: deque[tuple[int, float]] = deque(maxlen=CLOSES_KEPT)
        self.jumps: PriceJumps | None = price_jumps(desk.workspace)
        """The rule against bad prints; None where the bars were read as a table, which has been held to it."""
        self._rolls, self._shift = rolls, 0.0
        self._shift_until = -math.inf  # the next roll: until then the shift stands
        self._moved_closes = deque(self._closes, CLOSES_KEPT) if rolls else self._closes
        self._last_levels: tuple[Levels, float] | None = None
        self._feature_list = feature_list_digest(plan.features)
        self._pack_bar = struct.Struct(f"<{5 + len(self.extra)}d").pack

    def on_bar(self, bar: Bar, account: Account, position: Position | None) -> Decision:
        """Take one closed bar; decide, ask the gate, journal, return.

        Parameters
        ----------
        bar
            Its values are checked; a bad bar leaves features and forecast as they were and gives a hold that
            says why. The account is marked all the same.
        account
            As the venue reports it at the bar's close.
        position
            The open position, or None.
        """
        clock = time.perf_counter_ns
        started = clock()
        now = bar.known_at
        trade_id = f"{self._trade_prefix}{file_stamp(now)}"
        last = self.features.last_known_at
        fault = check_bar(
            now - self._interval, bar.open, bar.high, bar.low, bar.close, bar.volume, last if last > 0 else None
        )
        if fault is None and self.jumps is not None:
            fault = self.jumps.fault(now - self._interval, bar.high, bar.low, bar.close)
        if fault is not None:
            self.latency_ns = [0] * len(STAGES)
            if now > last:  # the account is no worse for the bar: its drawdown must not go unseen
                self.desk.controller.update_equity(account.equity, now)
            return self._journalled(
                Decision(trade_id, now, "hold", True, fault.partition(":")[0], fault, 0.0, None, None), bar, None
            )
        extra = bar.extra
        if len(extra) != len(self.extra):
            raise DataError(
                f"extra holds {len(extra)} numbers",
                where="Engine.on_bar",
                hint=f"give, in this order: {', '.join(self.extra) or 'nothing'}",
                then="the bar was not taken",
            )
        # The account is marked before its row is computed: the row is of this bar's close.
        begun = clock()
        self.desk.controller.update_equity(account.equity, now)
        marking = clock() - begun
        self._closes.append((now, bar.close))
        if self.jumps is not None:
            self.jumps.take(now - self._interval, bar.close)
        prices = self._moved(bar) if self._rolls else bar[1:6]
        for feed in self._feeds:
            feed.advance(now)
        self._level_feed.advance(now, self._moved_closes)
        for table, places in self._brought:
            self.features.hold(table, {name: extra[at] for name, at in places})
        if self._recalled and self.memory is not None:
            recalled = self.memory.values()
            self.features.hold("memory", {name: recalled[name] for name in self._recalled})
        self.forecasts.see(prices[3])
        self.account.see(bar.high, bar.low, bar.close, account, position)
        values: Sequence[float] = prices + extra[: self._own]
        row = self.features.update(now, values if self._inputs is None else [values[k] for k in self._inputs])
        self.values = row
        self.account.step(row)
        computed = clock()

        self.forecasts.step(row)
        predicted = self.forecasts.predicted_vix
        forecast = clock()

        decision, order = self._decide(bar, trade_id, row, predicted, position)
        decided = clock()

        if order is not None:
            market = Market(
                now,
                bar.close,
                math.isfinite(predicted) and decision.regime_probs is not None,
                predicted,
                self._model_sha,
                features_ready=bool(np.isfinite(row[self._policy_at]).all()),
                halted=False,  # a bar that just closed is the venue trading
                streams=_streams(self._daily, now),
            )
            verdict = self.gate.check(order, market, account, now)
            if not verdict.allowed:
                decision = Decision(
                    trade_id,
                    now,
                    decision.action,
                    False,
                    verdict.code or "RISK_CHECK",
                    str(verdict),
                    decision.score,
                    decision.regime_probs,
                    None,
                )
        checked = clock()
        self._journalled(decision, bar, row[: self._context_size])
        journalled = clock()
        if self.memory is not None:
            if decision.order is not None and not decision.order.reduce_only:
                self.memory.entered(trade_id, now, row)
            self.memory.observe(now, row)
        done = clock()
        self.latency_ns = [
            computed - started - marking,
            forecast - computed,
            decided - forecast,
            checked - decided + marking,
            journalled - checked,
            done - journalled,
            done - started,
        ]
        return decision

    def on_chain(self, chain: pl.DataFrame, now: int, *, known_at: int | None = None, settled: bool = False) -> Levels:
        """Take a new option chain: compute its levels and move them to the future's price by the basis.

        The basis is the future's last close known at the chain's market time less the underlying. The features read
        the levels from the first bar on whose close they are known.

        Parameters
        ----------
        chain
            One snapshot.
        now
            The instant that the levels stand for, ns UTC.
        known_at
            When the chain was known, where that was before ``now``.
        settled
            The features hold these levels already: from a restored state, or from a batch that warmed them.
        """
        levels = self._levels_engine.update(chain, now)
        known = now if known_at is None else known_at
        if settled:
            self._level_feed.resume(levels, known)
        else:
            self._level_feed.take(levels, known)
        # A close at the very instant at which the chain is known comes after it: a resumed run must not use it either.
        market_time = known if levels.market_time_ns is None else levels.market_time_ns
        self._to_future(levels, min(market_time, known - 1))
        return levels

    def on_spot(self, spot: float, now: int) -> Levels:
        """Take a new price of the underlying: the last chain's levels after that move, no volatility solved again.

        Raises
        ------
        DataError
            No chain came yet, or the price is not finite and positive.
        """
        levels = self._levels_engine.update_spot(spot, now)
        # The underlying's price is of now, so the basis is taken now.
        levels = replace(levels, timestamp_ns=now, market_time_ns=now)
        self._level_feed.take(levels, now)
        self._to_future(levels, now)
        return levels

    def _moved(self, bar: Bar) -> tuple[float, float, float, float, float]:
        """The bar as the features see it; at a roll the levels go over to the new contract's prices."""
        shift, start = self._shift, bar.known_at - self._interval
        if start >= self._shift_until:
            shift = adjustment(self._rolls, start)
            self._shift_until = min((roll.at for roll in self._rolls if roll.at > start), default=math.inf)
        self._moved_closes.append((bar.known_at, bar.close + shift))
        if shift != self._shift:
            self._shift = shift
            if self._last_levels is not None:
                self._place_levels(*self._last_levels)
        return bar.open + shift, bar.high + shift, bar.low + shift, bar.close + shift, bar.volume

    def _to_future(self, levels: Levels, market_time: int) -> None:
        moved = next((close for at, close in reversed(self._moved_closes) if at <= market_time), math.nan)
        self._place_levels(levels, moved)

    def _place_levels(self, levels: Levels, moved: float) -> None:
        """Levels on the scale of the contract that is traded; ``moved``: the future's close, as the features see it."""
        self._last_levels = (levels, moved)
        price = moved - self._shift  # on the present contract's scale, also of a close before the roll
        underlying = levels.underlying_price if levels.underlying_price is not None else math.nan
        self.levels = on_future(levels, price, underlying, limit=self._levels_engine.config.basis_limit)

    def closed(self, trade_id: str, profit: float, now: int) -> None:
        """A trade was closed; to be told before the bar at which that is known.

        The account's features, the trade rate and the market memory learn of it.

        Parameters
        ----------
        trade_id
            Of the decision that entered it.
        profit
            USD after fees.
        now
            When it was known, ns UTC.
        """
        self.desk.controller.on_trade(now)
        self.account.closed(profit)
        if self.memory is not None:
            self.memory.closed(trade_id, profit, now)

    def journal_features(self, now_ns: int) -> None:
        """Write down, once per run, which features the contexts of its decisions hold."""
        row = {"timestamp": now_ns, "digest": self._feature_list, "names": list(self.plan.features)}
        self.journal.append("feature_lists", {**row, "run_id": self._run_id})

    def recent_closes(self) -> list[tuple[int, float]]:
        """The last closes (ns UTC, price), for a checkpoint."""
        return list(self._closes)

    def restore_closes(self, closes: Sequence[Sequence[float]]) -> None:
        """Set the last closes, which the basis of a chain is taken from."""
        self._closes.clear()
        self._closes.extend((int(at), close) for at, close in closes)
        self._shift_until = -math.inf
        if self._rolls:
            self._moved_closes.clear()
            for at, close in self._closes:
                self._shift = adjustment(self._rolls, at - self._interval)
                self._moved_closes.append((at, close + self._shift))

    def _decide(
        self, bar: Bar, trade_id: str, row: Floats, predicted: float, position: Position | None
    ) -> tuple[Decision, Order | None]:
        """The policy's wish, before the gate has spoken."""
        signal = self.policy.signal(row[self._policy_at].tolist(), predicted, self.forecasts.regime)
        minute = float(row[self._minute_at])
        now, config = bar.known_at, self.policy.config

        def wish(action: str, code: str, detail: str, order: Order | None = None) -> tuple[Decision, Order | None]:
            decision = Decision(trade_id, now, action, True, code, detail, signal.score, signal.regime_probs, order)
            return decision, order

        if position is not None:
            sign = 1 if position.quantity > 0 else -1
            against = sign * (position.entry_price - bar.close)
            atr = float(row[self._atr_at])
            reason = None
            if self.policy.must_be_flat(minute, now):
                reason = ("EXIT_SESSION_END", f"EXIT_SESSION_END: minute={minute:.0f}")
            elif math.isfinite(atr) and against > config.stop_atr * atr:
                reason = ("EXIT_STOP", f"EXIT_STOP: against={against:.2f} atr_14={atr:.2f}")
            elif position.bars >= config.max_bars:
                reason = ("EXIT_TIME", f"EXIT_TIME: bars={position.bars}")
            elif signal.missing is None and sign * signal.score < config.exit_threshold:
                reason = ("EXIT_SIGNAL", f"EXIT_SIGNAL: score={signal.score:.3f}")
            if reason is None:
                return wish("hold", "HOLD_POSITION", f"HOLD_POSITION: quantity={position.quantity}")
            side = Side.SELL if sign > 0 else Side.BUY
            return wish("exit", *reason, self._order(side, abs(position.quantity), now, reduce_only=True))
        if signal.missing is not None:
            code = signal.missing.partition(":")[0]
            refusal = self.forecasts.refusal if code == "PREDICTION_MISSING" else None
            return wish("hold", code, signal.missing if refusal is None else f"{signal.missing}; {refusal}")
        if not self.policy.entries_open(minute, now):
            return wish("hold", "HOLD_SESSION_END", f"HOLD_SESSION_END: minute={minute:.0f}")
        if abs(signal.score) < config.entry_threshold:
            return wish("hold", "HOLD_NO_SIGNAL", f"HOLD_NO_SIGNAL: score={signal.score:.3f}")
        side = Side.BUY if signal.score > 0 else Side.SELL
        stop = self._stop(bar.close, side, float(row[self._atr_at]))
        order = self._order(side, self._contracts, now, reduce_only=False, stop=stop)
        return wish(side.value, "ENTRY_SIGNAL", f"ENTRY_SIGNAL: score={signal.score:.3f}", order)

    def _order(self, side: Side, quantity: int, now: int, *, reduce_only: bool, stop: float | None = None) -> Order:
        leg = "exit" if reduce_only else "entry"
        name = client_id(self._account_name, self._symbol, side, now, leg)
        return Order(name, self._symbol, side, float(quantity), None, reduce_only, stop=stop)

    def _stop(self, price: float, side: Side, atr: float) -> float | None:
        """Where the policy gives an entry up: ``stop_atr`` ATR 14 against it, on the tick, at least one tick away."""
        distance = self.policy.config.stop_atr * atr
        if not math.isfinite(distance):
            return None  # the gate refuses an entry without a stop
        ticks = max(1, math.ceil(distance / self._tick))
        whole = round(price / self._tick)
        return (whole - ticks if side is Side.BUY else whole + ticks) * self._tick

    def _journalled(self, decision: Decision, bar: Bar, context: Floats | None) -> Decision:
        """Write the decision, safe from kill -9, and hand it back.

        Its input hash, which the journal's writer makes, is SHA-256 over the context and then the bar (float64,
        little-endian).
        """
        order = decision.order
        if context is None:  # a bad bar: whatever it holds
            inputs, seen = np.array(bar[1:6] + bar.extra, dtype=np.float64).tobytes(), None
        else:
            inputs, seen = self._pack_bar(*bar[1:6], *bar.extra), context.tobytes()
        values = _DECISIONS.in_order(
            [
                decision.known_at,
                decision.trade_id,
                decision.action,
                decision.score,
                decision.regime_probs,
                self._run_id,
                self._symbol,
                None if order is None else order.side.value,
                bar.close,
                None if order is None else int(order.quantity),
                "allow" if decision.allowed else "deny",
                decision.code,
                decision.detail,
                inputs,
                self._model_sha,
                self._config_digest,
                seen,
                None,
                self._feature_list,
            ]
        )
        self.journal.append_values(_DECISIONS, values)
        return decision


def _streams(daily: Steps | None, now: int) -> dict[str, int]:
    """Further input streams by name: when the last value of each became known, ns UTC."""
    if daily is None or "vix_known_at" not in daily.names:
        return {}
    known = float(daily.values[daily.names.index("vix_known_at"), daily.index(now)])
    return {"cross": round(known * 1e9)} if math.isfinite(known) else {}
