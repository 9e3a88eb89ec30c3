"""The tables beside the bars: the one place that knows what :mod:`mia_fast.features.frame` takes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mia_fast.features.cross import VixHistory
from mia_fast.features.engine import Floats
from mia_fast.features.frame import input_arrays, plan_for
from mia_fast.features.plan import Plan
from mia_fast.tables import Table, read_table
from mia_fast.workspace import Workspace


class Beside:
    """The other tables that features read, held in memory: they are small beside the bars.

    Parameters
    ----------
    workspace
        Whose catalogue and mapping apply.
    cross
        Cross-asset closes with the daily VIX.
    """

    def __init__(self, workspace: Workspace, *, cross: Path | None = None) -> None:
        self.workspace = workspace
        self.files = {name: path for name, path in (("cross", cross),) if path is not None}
        self.reports: list[Table] = []
        self._vix: VixHistory | None = None
        if cross is not None:
            table = read_table("cross", cross, workspace=workspace)
            self.reports.append(table)
            self._vix = VixHistory.from_cross(table.frame)

    def digests(self) -> dict[str, dict[str, str]]:
        """Table -> the name and SHA-256 of its file."""
        return {
            name: {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for name, path in self.files.items()
        }

    def plan(self, columns: tuple[str, ...], interval_ns: int) -> Plan:
        """The plan over bars with values in these columns and these tables."""
        return plan_for(_bars(pl.DataFrame({name: [1.0] for name in columns}), interval_ns), **self._tables())

    def arrays(self, plan: Plan, frame: pl.DataFrame, interval_ns: int) -> tuple[NDArray[np.int64], dict[str, Floats]]:
        """Closes (n,) ns UTC and the plan's inputs (n,); a column that these bars lack is NaN."""
        known_at, columns = input_arrays(plan, _bars(frame, interval_ns), self._vix)
        for name in plan.inputs:
            if name not in columns:
                columns[name] = np.full(len(known_at), np.nan)
        return known_at, columns

    def _tables(self) -> dict[str, Any]:
        return {"workspace": self.workspace, "vix": self._vix}


def _bars(frame: pl.DataFrame, interval_ns: int) -> Table:
    return Table("bars", frame, pl.DataFrame(), "bars", (), interval_ns)
