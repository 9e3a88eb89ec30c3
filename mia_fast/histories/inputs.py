"""The tables beside the bars: the one place that knows what :mod:`mia_fast.features.frame` takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mia_fast import config
from mia_fast.clock import iso
from mia_fast.features import catalogue as catalogues
from mia_fast.features.asof import Steps
from mia_fast.features.engine import Floats
from mia_fast.features.frame import event_source, input_arrays, market_sources, plan_for, read_cross
from mia_fast.features.levels import CLOSES_KEPT, LevelsHistory, moments, read_levels
from mia_fast.features.plan import Plan
from mia_fast.files import sha256
from mia_fast.histories.sources import Survey, bars_of
from mia_fast.options.config import options_config
from mia_fast.options.levels import Levels, on_future
from mia_fast.tables import Table
from mia_fast.workspace import Workspace


class Beside:
    """The other tables that features read, held in memory: they are small beside the bars.

    Parameters
    ----------
    workspace
        Whose catalogue and mapping apply.
    cross
        Files of cross-asset closes.
    events
        Macro events.
    levels
        Files of option chains, or of rows of levels. Each symbol's bars move them to their own scale, by the price at
        the chain's market time wherever in the files that is.

    Attributes
    ----------
    unmoved
        Symbol -> of levels that have no place on its scale, when they were known and why; their prices are null.
        Complete once the symbol's plan is made.
    """

    def __init__(
        self,
        workspace: Workspace,
        *,
        cross: Path | Sequence[Path] = (),
        events: Path | None = None,
        levels: Path | Sequence[Path] = (),
    ) -> None:
        self.workspace = workspace
        given = [("cross", _paths(cross)), ("levels", _paths(levels)), ("events", [] if events is None else [events])]
        self.files = {f"{name} {k}" if k else name: path for name, paths in given for k, path in enumerate(paths)}
        self.reports: list[Table] = []
        self.levels: list[Levels] = read_levels(_paths(levels), workspace)
        self.unmoved: dict[str, list[str]] = {}
        self._market: tuple[Steps, ...] = ()
        self._events = events
        self._scheduled: dict[int, tuple[Steps, ...]] = {}
        self._moved: dict[str, tuple[Survey, tuple[Steps, ...]]] = {}
        if cross:
            table = read_cross(_paths(cross), workspace)
            self.reports.append(table)
            self._market = market_sources(table.frame, workspace)

    def digests(self) -> dict[str, dict[str, str]]:
        """Table -> the name and SHA-256 of its file; and the rules of the levels, where there are such."""
        found = {name: {"name": path.name, "sha256": sha256(path)} for name, path in self.files.items()}
        if self.levels:
            rules = self.workspace.config("options.yaml")
            found["options"] = {"name": rules.name, "sha256": config.digest(rules)}
        return found

    def plan(self, found: Survey, name: str) -> Plan:
        """The plan over what the bars of a symbol bring, and these tables."""
        frame = pl.DataFrame({column: [1.0] for column in found.columns(name)})
        bars = Table("bars", frame, pl.DataFrame(), "bars", (), found.interval_ns(name))
        return plan_for(bars, workspace=self.workspace, sources=self._sources(found, name))

    def arrays(
        self, plan: Plan, frame: pl.DataFrame, found: Survey, name: str
    ) -> tuple[NDArray[np.int64], dict[str, Floats]]:
        """Closes (n,) ns UTC and the plan's inputs (n,) of some bars of a symbol; a column that they lack is NaN."""
        bars = Table("bars", frame, pl.DataFrame(), "bars", (), found.interval_ns(name))
        return input_arrays(plan, bars, self._sources(found, name), found.columns(name))

    def _sources(self, found: Survey, name: str) -> tuple[Steps, ...]:
        """In the order in which :func:`mia_fast.features.frame.generate_features` has them."""
        interval_ns = found.interval_ns(name)
        if interval_ns not in self._scheduled:
            self._scheduled[interval_ns] = (
                () if self._events is None else event_source(self._events, self.workspace, interval_ns)
            )
        if self._moved.get(name, (None,))[0] is not found:
            self._moved[name] = found, self._on_scale(found, name)
        return (*self._market, *self._scheduled[interval_ns], *self._moved[name][1])

    def _on_scale(self, found: Survey, name: str) -> tuple[Steps, ...]:
        """The levels on the price scale of a symbol."""
        if not self.levels:
            return ()
        prices = _prices(found, name, moments(self.levels), self.workspace)
        declared, rules = catalogues.read(self.workspace).inputs, options_config(self.workspace)
        self.unmoved[name] = []
        for one in self.levels:
            for market, known in moments([one]):
                underlying = math.nan if one.underlying_price is None else one.underlying_price
                reason = on_future(one, prices[market, known], underlying, limit=rules.basis_limit).reason
                if reason is not None:
                    self.unmoved[name].append(f"{iso(known)} {reason}")
        moved = LevelsHistory.priced(self.levels, declared, rules, lambda market, known: prices[market, known])
        return () if moved is None else (moved,)


def _prices(
    found: Survey, name: str, asked: Sequence[tuple[int, int]], workspace: Workspace
) -> dict[tuple[int, int], float]:
    """(market time, instant known) -> the last close at or before the market time, as the first bar that knows of it
    looks back for it; NaN if there is none. One pass over the bars, a block at a time."""
    market, known = np.array(sorted(set(asked)), dtype=np.int64).reshape(-1, 2).T
    at, seen, price = np.full(len(market), -1), np.full(len(market), -1), np.full(len(market), np.nan)
    rows = 0
    for source in found.symbols[name]:
        for frame in bars_of(source, name, workspace=workspace, default=found.default):
            closes = frame["known_at"].dt.epoch("ns").to_numpy()
            last = np.searchsorted(closes, market, side="right") - 1
            here = last >= 0
            at[here] = rows + last[here]
            price[here] = frame["close"].cast(pl.Float64).to_numpy()[last[here]]
            first = np.searchsorted(closes, known, side="left")
            here = (seen < 0) & (first < len(closes))
            seen[here] = rows + first[here]
            rows += len(closes)
    price[(at < 0) | (seen < 0) | (seen - at >= CLOSES_KEPT)] = np.nan
    return dict(zip(zip(market.tolist(), known.tolist(), strict=True), price.tolist(), strict=True))


def _paths(given: Path | Sequence[Path]) -> list[Path]:
    return [given] if isinstance(given, Path) else list(given)
