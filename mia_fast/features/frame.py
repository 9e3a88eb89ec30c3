"""From a frame of bars to a frame of features, without copies where none is needed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from mia_fast import config
from mia_fast.errors import DataError, WorkspaceError
from mia_fast.features import catalogue as catalogues
from mia_fast.features.cross import VIX_COLUMNS, VixHistory
from mia_fast.features.engine import FeatureEngine, Progress
from mia_fast.features.plan import Plan, make_plan
from mia_fast.features.sample import Sample
from mia_fast.files import replacing
from mia_fast.tables import Table, read_table
from mia_fast.telemetry import operation
from mia_fast.workspace import Workspace
from mia_kernels.validity import validity_bitmap

LATEST_ROWS = 1440
"""Rows that ``features_latest.csv`` keeps: one day of minutes."""

Floats = NDArray[np.float64]


def plan_for(
    bars: Table, *, workspace: Workspace, vix: VixHistory | None = None, auxiliary: Sequence[str] = ()
) -> Plan:
    """The plan of this workspace's catalogue over what ``bars`` (and ``vix``) bring."""
    catalogue, available, bar_minutes, tick_size = _shape(bars, workspace, vix)
    return make_plan(catalogue, available, bar_minutes=bar_minutes, tick_size=tick_size, auxiliary=auxiliary)


def _shape(
    bars: Table, workspace: Workspace, vix: VixHistory | None
) -> tuple[catalogues.Catalogue, tuple[str, ...], float, float]:
    """What decides a plan: catalogue, columns at hand, bar length in minutes, tick size."""
    assert bars.interval_ns is not None
    available = (*bars.frame.columns, *(VIX_COLUMNS if vix is not None else ()))
    return (
        catalogues.read(workspace),
        available,
        bars.interval_ns / 60e9,
        config.market(workspace).instrument.tick_size,
    )


_ENGINES_KEPT: Final = 8
_ENGINES: Final[dict[tuple[Any, ...], FeatureEngine]] = {}
_TURN: Final = threading.Lock()


def _engine(
    catalogue: catalogues.Catalogue,
    available: tuple[str, ...],
    bar_minutes: float,
    tick_size: float,
    auxiliary: tuple[str, ...],
) -> FeatureEngine:
    """One engine for each shape of input: a second call on the same kind of frame pays for its rows alone."""
    key = (catalogue.digest, available, bar_minutes, tick_size, auxiliary)
    engine = _ENGINES.get(key)
    if engine is None:
        plan = make_plan(catalogue, available, bar_minutes=bar_minutes, tick_size=tick_size, auxiliary=auxiliary)
        engine = FeatureEngine(plan)
        if len(_ENGINES) >= _ENGINES_KEPT:
            _ENGINES.pop(next(iter(_ENGINES)))
        _ENGINES[key] = engine
    return engine


def input_arrays(plan: Plan, bars: Table, vix: VixHistory | None) -> tuple[NDArray[np.int64], dict[str, Floats]]:
    """The closes (ns UTC) and the plan's inputs as arrays; the bars' float64 columns are not copied."""
    known_at = bars.frame["known_at"].dt.epoch("ns").to_numpy()
    columns = {name: _array(bars.frame[name]) for name in plan.inputs if name in bars.frame.columns}
    if vix is not None:
        columns |= {name: array for name, array in vix.columns(known_at).items() if name not in columns}
    return known_at, columns


def _array(series: pl.Series) -> Floats:
    """Float64 values with NaN for null; the frame's own memory where it has no nulls."""
    values: Floats = series.cast(pl.Float64).to_numpy()
    return values


def sample_of(catalogue: catalogues.Catalogue, bars: Table, vix: VixHistory | None, *, workspace: Workspace) -> Sample:
    """A table of bars as data for :func:`mia_fast.features.checks.check_features`: the inputs that it brings."""
    assert bars.interval_ns is not None
    available = (*bars.frame.columns, *(VIX_COLUMNS if vix is not None else ()))
    tick_size = config.market(workspace).instrument.tick_size
    minutes = bars.interval_ns / 60e9
    plan = make_plan(catalogue, available, bar_minutes=minutes, tick_size=tick_size)
    known_at, columns = input_arrays(plan, bars, vix)
    return Sample(known_at, columns, tick_size, what=bars.source, bar_minutes=minutes)


def one_symbol(bars: Table) -> None:
    """Refuse a frame of several symbols: their bars must not follow one another in one state."""
    if "symbol" in bars.frame.columns and bars.frame["symbol"].n_unique() > 1:
        names = bars.frame["symbol"].unique().sort().to_list()
        shown = ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")
        raise DataError(
            f"the bars are of {len(names)} symbols: {shown}",
            where=bars.source,
            hint="pass one symbol at a time; filters of bars in config/inputs.yaml can keep one",
            then="nothing was computed",
        )


def feature_frame(timestamps: pl.Series, names: Sequence[str], matrix: Floats) -> pl.DataFrame:
    """``timestamp`` and one column per row of ``matrix``; NaN becomes null. Values are not copied."""
    columns = {"timestamp": timestamps}
    for name, row in zip(names, matrix, strict=True):
        bitmap = np.zeros((len(row) + 7) // 8, dtype=np.uint8)
        missing = validity_bitmap(row, bitmap)
        buffers = [pa.py_buffer(bitmap) if missing else None, pa.py_buffer(row)]
        columns[name] = pl.Series(name, pa.Array.from_buffers(pa.float64(), len(row), buffers, missing))
    return pl.DataFrame(columns)


def write_latest(frame: pl.DataFrame, workspace: Workspace) -> Path:
    """Write the last rows of a feature frame to ``data/features/features_latest.csv``."""
    path = workspace.data / "features" / "features_latest.csv"
    with replacing(path) as temporary:
        frame.tail(LATEST_ROWS).with_columns(pl.col("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")).write_csv(
            temporary
        )
    return path


@operation("feature_engine", "generate_features")
def generate_features(
    data: Any,
    *,
    cross: Any = None,
    auxiliary: Sequence[str] = (),
    workspace: Workspace | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Compute the catalogue's features for a frame of bars of one symbol.

    Parameters
    ----------
    data
        Bars: a path, or any table that speaks the Arrow PyCapsule interface. A catalogue input of
        another table (``vix``) may also stand among its columns.
    cross
        Cross-asset closes (path or table) with the daily VIX; without it the features that need it
        are null.
    auxiliary
        Auxiliary columns of the catalogue to put after the features.
    workspace
        Where configuration is read and ``data/features/features_latest.csv`` is written.
    threads
        1 or 2; the values are the same.
    progress
        Called with (rows done, rows) along the way.

    Returns
    -------
    polars.DataFrame
        ``timestamp`` as the bars have it, then the features in the catalogue's order; null during
        warm-up and where an input is missing.

    Raises
    ------
    DataError
        The bars cannot be used; says which row and why.
    """
    workspace = workspace or Workspace.current()
    bars = data if isinstance(data, Table) else read_table("bars", data, workspace=workspace)
    one_symbol(bars)
    vix = None
    if cross is not None:
        table = cross if isinstance(cross, Table) else read_table("cross", cross, workspace=workspace)
        vix = VixHistory.from_cross(table.frame)
    shape = _shape(bars, workspace, vix)
    with _TURN:
        engine = _engine(*shape, tuple(auxiliary))
        plan = engine.plan
        known_at, columns = input_arrays(plan, bars, vix)
        engine.reset()
        matrix = engine.batch(known_at, columns, threads=threads, progress=progress)
    frame = feature_frame(bars.frame["timestamp"], plan.outputs, matrix)
    try:
        write_latest(frame.select("timestamp", *plan.features), workspace)
    except OSError as error:
        raise WorkspaceError(
            f"features_latest.csv cannot be written ({error})",
            where=str(workspace.data / "features"),
            hint="check the permissions and the free space of the workspace, or choose another one",
            then="the features were computed but not returned, because the contract's file would be stale",
        ) from error
    return frame
