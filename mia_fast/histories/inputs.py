"""The tables beside the bars: the one place that knows what :mod:`mia_fast.features.frame` takes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mia_fast.features.asof import Steps
from mia_fast.features.engine import Floats
from mia_fast.features.frame import event_source, input_arrays, market_sources, plan_for, read_cross
from mia_fast.features.plan import Plan
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
    """

    def __init__(self, workspace: Workspace, *, cross: Path | Sequence[Path] = (), events: Path | None = None) -> None:
        self.workspace = workspace
        paths = [cross] if isinstance(cross, Path) else list(cross or ())
        self.files = {f"cross {k}" if k else "cross": path for k, path in enumerate(paths)}
        self.reports: list[Table] = []
        self._market: tuple[Steps, ...] = ()
        self._events = events
        self._scheduled: dict[int, tuple[Steps, ...]] = {}
        if paths:
            table = read_cross(paths, workspace)
            self.reports.append(table)
            self._market = market_sources(table.frame, workspace)
        if events is not None:
            self.files["events"] = events

    def digests(self) -> dict[str, dict[str, str]]:
        """Table -> the name and SHA-256 of its file."""
        return {
            name: {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for name, path in self.files.items()
        }

    def plan(self, columns: tuple[str, ...], interval_ns: int) -> Plan:
        """The plan over bars with values in these columns and these tables."""
        bars = _bars(pl.DataFrame({name: [1.0] for name in columns}), interval_ns)
        return plan_for(bars, workspace=self.workspace, sources=self._sources(interval_ns))

    def arrays(self, plan: Plan, frame: pl.DataFrame, interval_ns: int) -> tuple[NDArray[np.int64], dict[str, Floats]]:
        """Closes (n,) ns UTC and the plan's inputs (n,); a column that these bars lack is NaN."""
        known_at, columns = input_arrays(plan, _bars(frame, interval_ns), self._sources(interval_ns))
        for name in plan.inputs:
            if name not in columns:
                columns[name] = np.full(len(known_at), np.nan)
        return known_at, columns

    def _sources(self, interval_ns: int) -> tuple[Steps, ...]:
        if self._events is None:
            return self._market
        if interval_ns not in self._scheduled:
            self._scheduled[interval_ns] = event_source(self._events, self.workspace, interval_ns)
        return (*self._market, *self._scheduled[interval_ns])


def _bars(frame: pl.DataFrame, interval_ns: int) -> Table:
    return Table("bars", frame, pl.DataFrame(), "bars", (), interval_ns)
