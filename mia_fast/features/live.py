"""Features bar by bar, for one symbol or several side by side: :class:`Features`."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from mia_fast import config
from mia_fast.errors import DataError, StateError
from mia_fast.features import catalogue as catalogues
from mia_fast.features.asof import Feed, Floats, Steps
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.frame import event_source, market_sources, read_cross
from mia_fast.features.levels import CLOSES_KEPT, LevelsFeed
from mia_fast.features.plan import Plan, make_plan
from mia_fast.options.config import options_config
from mia_fast.options.levels import Levels
from mia_fast.tables import PriceJumps, check_bar, price_jumps
from mia_fast.tables.mapping import interval_of
from mia_fast.workspace import AnyWorkspace, Workspace

OHLCV: Final = ("open", "high", "low", "close", "volume")


class Features:
    """The catalogue's features live: the same bits as :func:`mia_fast.generate_features` on the same rows.

    Parameters
    ----------
    workspace
        Whose catalogue and configuration apply; by default the current one.
    symbols
        Whose bars will come. Each symbol has a state of its own; the plan is shared. With one symbol its name need not
        be given again.
    inputs
        Columns that the bars or :meth:`hold` will bring besides open, high, low, close and volume: names of the
        catalogue's inputs, or of whole tables (``levels``, ``models``).
    cross, events
        As for :func:`mia_fast.generate_features`: values that are known beforehand (daily closes, the calendar), held
        as each bar's close reaches them.
    auxiliary
        Auxiliary columns to put out after the features.
    interval
        Length of a bar: ``1m``.

    Raises
    ------
    DataError
        An input that the catalogue does not declare; sources that cannot be used.
    """

    def __init__(
        self,
        *,
        workspace: AnyWorkspace | None = None,
        symbols: Sequence[str] = ("",),
        inputs: Sequence[str] = (),
        cross: Any = None,
        events: Any = None,
        auxiliary: Sequence[str] = (),
        interval: str = "1m",
    ) -> None:
        place = self._place = Workspace.current(workspace)
        catalogue = catalogues.read(place)
        self._interval = interval_of(interval)
        self._declared = {column.name: column.table for column in catalogue.inputs}
        sources = () if cross is None else market_sources(read_cross(cross, place).frame, place)
        if events is not None:
            sources = (*sources, *event_source(events, place, self._interval))
        available = {*OHLCV, *self._expanded(inputs), *(name for steps in sources for name in steps.names)}
        self.plan: Plan = make_plan(
            catalogue,
            available,
            bar_minutes=self._interval / 60e9,
            tick_size=config.market(place).instrument.tick_size,
            auxiliary=(auxiliary,) if isinstance(auxiliary, str) else auxiliary,
        )
        """What is computed, and what is null for want of which input."""
        options = options_config(place)

        def one() -> _Symbol:
            engine = FeatureEngine(self.plan)
            feed = LevelsFeed(engine, catalogue.inputs, options)
            return _Symbol(engine, sources, feed, self._interval, price_jumps(place))

        if not symbols or len(set(symbols)) != len(symbols):
            raise DataError(
                f"symbols are {list(symbols)}",
                where="Features",
                hint="name each symbol once",
                then="nothing was started",
            )
        self._symbols = {symbol: one() for symbol in symbols}

    @property
    def names(self) -> tuple[str, ...]:
        """What :meth:`update` returns, in order."""
        return self.plan.outputs

    def update(self, bar: Any, symbol: str | None = None) -> Floats:
        """Take one closed bar; return its features.

        Parameters
        ----------
        bar
            A mapping with open, high, low, close, volume, further inputs by name, and ``known_at`` (its close: ns UTC
            or an aware datetime) or ``timestamp`` (its start); or an object with these as attributes, such as
            :class:`mia_fast.live.engine.Bar`. Its ``symbol`` counts where the argument is not given. An input of a slow
            table that a mapping brings is held as by :meth:`hold`.
        symbol
            Whose bar it is.

        Returns
        -------
        numpy.ndarray
            (names,) NaN where missing; overwritten by the symbol's next bar.

        Raises
        ------
        DataError
            The bar breaks a rule of the table ``bars``, or the symbol is not one of these; the state is unchanged, but
            that a bar refused for its price counts as one towards a new level (``docs/tables.md``).
        """
        get: Callable[[str], Any] = bar.get if isinstance(bar, Mapping) else lambda name: getattr(bar, name, None)
        named = symbol if symbol is not None else get("symbol")
        return self._of(named).update(self._close_of(get), get, bar if isinstance(bar, Mapping) else {})

    def hold(self, table: str, values: Mapping[str, float], symbol: str | None = None) -> None:
        """Set inputs of a slow table: they stand from the next bar on, until they are set again.

        Parameters
        ----------
        table
            ``daily``, ``minute``, ``levels``, ``events``, ``models``, ``account`` or ``memory``.
        values
            By name; NaN where missing. Inputs that no feature reads are left aside.
        symbol
            Only for this symbol; by default for all.

        Raises
        ------
        DataError
            An input that the catalogue does not declare in this table, or that was not announced; nothing was set.
        """
        wrong = [name for name in values if self._declared.get(name) != table]
        if wrong:
            raise DataError(
                f"the catalogue declares no input {wrong[0]!r} in the table {table!r}",
                where="Features.hold",
                hint="see the inputs in docs/features.md",
                then="nothing was set",
            )
        read = self.plan.held.get(table, ())
        lost = [name for name in values if name not in read and self._wants(name)]
        if lost:
            raise DataError(
                f"features wait for {lost[0]!r}, but the plan was made without it",
                where="Features.hold",
                hint=f"name it when Features is made: inputs=[{lost[0]!r}, ...]",
                then="nothing was set",
            )
        chosen = {name: value for name, value in values.items() if name in read}
        if chosen:
            for state in self._symbols.values() if symbol is None else [self._of(symbol)]:
                state.engine.hold(table, chosen)

    def take_levels(self, levels: Levels, symbol: str | None = None) -> None:
        """New option levels, on the underlying's scale: held from the first bar on whose close they are known.

        Raises
        ------
        DataError
            No level was announced in ``inputs``, so no feature would read them; nothing was set.
        """
        if not self.plan.held.get("levels"):
            raise DataError(
                "the plan was made without option levels",
                where="Features.take_levels",
                hint='announce them when Features is made: inputs=["levels"]',
                then="nothing was set",
            )
        for state in self._symbols.values() if symbol is None else [self._of(symbol)]:
            state.levels.take(levels)

    def take_cross(self, cross: Any) -> None:
        """Read the daily and minute closes anew, for instance when a day's close has come in.

        Raises
        ------
        DataError
            The closes cannot be used; those from before stay.
        """
        sources = market_sources(read_cross(cross, self._place).frame, self._place)
        for state in self._symbols.values():
            state.replace(sources)

    def take_events(self, events: Any) -> None:
        """Read the calendar anew, for instance when a release was rescheduled: it counts from the next bar on.

        A calendar of the risk room that is unusable leaves its features missing.

        Raises
        ------
        DataError
            A row cannot be read; the calendar from before stays.
        """
        sources = event_source(events, self._place, self._interval)
        if not sources:
            sources = (Steps.nothing("events", self.plan.held.get("events", ())),)
        for state in self._symbols.values():
            state.replace(sources)

    def save(self, symbol: str | None = None) -> bytes:
        """A symbol's state after its last bar; levels that no bar has seen must be taken again."""
        return self._of(symbol).save()

    def restore(self, saved: bytes, symbol: str | None = None) -> None:
        """Go on from a saved state.

        Raises
        ------
        StateError
            It is damaged, or of another plan.
        """
        self._of(symbol).restore(saved)

    def _expanded(self, inputs: Sequence[str]) -> list[str]:
        names: list[str] = []
        for name in inputs:
            found = [column for column, table in self._declared.items() if table == name] or [name]
            if found == [name] and name not in self._declared:
                raise DataError(
                    f"the catalogue declares no input {name!r}, and no table is called so",
                    where="Features(inputs)",
                    hint="declare it under inputs in feature_sets.yaml",
                    then="nothing was started",
                )
            names += found
        return names

    def _wants(self, name: str) -> bool:
        return any(name in lacks for lacks in self.plan.missing.values())

    def _of(self, symbol: str | None) -> _Symbol:
        if symbol is None and len(self._symbols) == 1:
            return next(iter(self._symbols.values()))
        found = self._symbols.get(symbol or "")
        if found is None:
            if len(self._symbols) == 1 and "" in self._symbols:
                return self._symbols[""]
            raise DataError(
                f"there is no symbol {symbol!r}",
                where="Features",
                hint=f"symbols: {', '.join(self._symbols)}",
                then="nothing was taken; the states are unchanged",
            )
        return found

    def _close_of(self, get: Callable[[str], Any]) -> int:
        for name, ahead in (("known_at", 0), ("timestamp", self._interval)):
            moment = get(name)
            if isinstance(moment, dt.datetime) and moment.tzinfo is not None:
                whole = moment.replace(microsecond=0)
                return int(whole.timestamp()) * 1_000_000_000 + moment.microsecond * 1000 + ahead
            if isinstance(moment, int) and not isinstance(moment, bool):
                return moment + ahead
            if moment is not None:
                raise DataError(
                    f"{name} is {moment!r}",
                    where="Features.update",
                    hint="give nanoseconds UTC or a datetime with a zone",
                    then="the bar was not taken; the state is unchanged",
                )
        raise DataError(
            "the bar has no instant",
            where="Features.update",
            hint="give known_at (its close) or timestamp (its start)",
            then="the bar was not taken; the state is unchanged",
        )


class _Symbol:
    """One symbol: engine, what is held for it, and its last closes for the basis."""

    def __init__(
        self, engine: FeatureEngine, sources: Sequence[Steps], levels: LevelsFeed, interval_ns: int, jumps: PriceJumps
    ) -> None:
        self.engine, self.levels, self.jumps = engine, levels, jumps
        self._feeds = {steps.table: Feed(steps, engine) for steps in sources}
        self._interval = interval_ns
        self._closes: deque[tuple[int, float]] = deque(maxlen=CLOSES_KEPT)
        self._names = engine.plan.bar_inputs
        self._table_of = {name: table for table, names in engine.plan.held.items() for name in names}
        self._slow = frozenset(self._table_of)

    def update(self, known_at: int, get: Callable[[str], Any], bar: Mapping[str, Any]) -> Floats:
        o, h, low, c, v = [_number(get(name)) for name in OHLCV]
        last = self.engine.last_known_at
        fault = check_bar(known_at - self._interval, o, h, low, c, v, last if last > 0 else None)
        if fault is None:
            fault = self.jumps.fault(known_at - self._interval, h, low, c)
        if fault is not None:
            raise DataError(
                f"the bar cannot be used: {fault}",
                where="Features.update",
                hint="mend the feed; docs/tables.md lists the rules",
                then="the bar was not taken; the state is unchanged",
            )
        self._closes.append((known_at, c))
        self.jumps.take(known_at - self._interval, c)
        for feed in self._feeds.values():
            feed.advance(known_at)
        self.levels.advance(known_at, self._closes)
        brought: dict[str, dict[str, float]] = {}
        for name in self._slow.intersection(bar):  # what a bar brings itself comes before what is held
            brought.setdefault(self._table_of[name], {})[name] = _number(bar[name])
        for table, values in brought.items():
            self.engine.hold(table, values)
        return self.engine.update(known_at, [_number(get(name)) for name in self._names])

    def replace(self, sources: Sequence[Steps]) -> None:
        self._feeds |= {steps.table: Feed(steps, self.engine) for steps in sources}

    def save(self) -> bytes:
        kept = {"closes": list(self._closes), "lapse": self.levels.lapse, "jumps": self.jumps.save()}
        head = json.dumps(kept).encode()
        return len(head).to_bytes(8, "little") + head + self.engine.save()

    def restore(self, saved: bytes) -> None:
        size = int.from_bytes(saved[:8], "little")
        try:
            head = json.loads(saved[8 : 8 + size])
            closes = [(int(at), float(close)) for at, close in head["closes"]]
            lapse = int(head["lapse"])
            jumps = [float(value) for value in head["jumps"]]
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(
                "the saved features are damaged",
                where="Features.restore",
                hint="restore the file from a backup, or start from history again",
                then="the state is as it was",
            ) from error
        self.engine.restore(saved[8 + size :])
        self._closes.clear()
        self._closes.extend(closes)
        self.levels.lapse = lapse
        self.jumps.restore(jumps)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
