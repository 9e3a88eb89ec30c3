"""From a frame of bars to a frame of features, without copies where none is needed."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from mia_fast import config
from mia_fast.errors import DataError, WorkspaceError
from mia_fast.features import catalogue as catalogues
from mia_fast.features.asof import Steps
from mia_fast.features.cross import DailyHistory, MinuteHistory
from mia_fast.features.engine import FeatureBlock, FeatureEngine, Progress
from mia_fast.features.events import EventSchedule
from mia_fast.features.levels import LevelsHistory, read_levels
from mia_fast.features.plan import Plan, make_plan
from mia_fast.features.sample import Sample
from mia_fast.files import fill
from mia_fast.options.config import options_config
from mia_fast.options.levels import Levels
from mia_fast.tables import Table, read_table
from mia_fast.tables.left_out import read_and_tell
from mia_fast.tables.mapping import day_closes, unscheduled_events
from mia_fast.telemetry import operation
from mia_fast.workspace import AnyWorkspace, Workspace
from mia_kernels.validity import validity_bitmap

Floats = NDArray[np.float64]


def plan_for(
    bars: Table,
    *,
    workspace: Workspace,
    sources: Sequence[Steps] = (),
    auxiliary: Sequence[str] = (),
) -> Plan:
    """The plan of this workspace's catalogue over what ``bars`` and the slower tables bring."""
    catalogue, available, bar_minutes, tick_size = _shape(bars, workspace, sources)
    return make_plan(catalogue, available, bar_minutes=bar_minutes, tick_size=tick_size, auxiliary=auxiliary)


def _shape(
    bars: Table, workspace: Workspace, sources: Sequence[Steps]
) -> tuple[catalogues.Catalogue, tuple[str, ...], float, float]:
    """What decides a plan: catalogue, columns at hand, bar length in minutes, tick size."""
    assert bars.interval_ns is not None
    available = (*brought(bars.frame), *(name for steps in sources for name in steps.names))
    return (
        catalogues.read(workspace),
        available,
        bars.interval_ns / 60e9,
        config.market(workspace).instrument.tick_size,
    )


def brought(frame: pl.DataFrame) -> tuple[str, ...]:
    """The columns that hold anything: one without any value is as good as absent."""
    return tuple(name for name in frame.columns if not _empty(frame[name]))


def _empty(series: pl.Series) -> bool:
    if series.null_count() == series.len():
        return True
    return series.dtype.is_float() and series[0] != series[0] and bool(series.is_nan().all())


def read_cross(source: Any, workspace: Workspace) -> Table:
    """Cross-asset closes from one source or several together: paths, tables, or a list of them.

    Raises
    ------
    DataError
        A source cannot be used, or two of them disagree on a value.
    """
    parts = source if isinstance(source, list | tuple) else [source]
    if not parts:
        raise DataError(
            "holds no table",
            where="cross",
            hint="leave the argument out, or give the closes of other markets",
            then="nothing was computed",
        )
    tables = [part if isinstance(part, Table) else read_and_tell("cross", part, workspace) for part in parts]
    if len(tables) == 1:
        return tables[0]
    named = ("timestamp", "symbol", "close", "volume")
    frames = [table.frame.select(name for name in named if name in table.frame.columns) for table in tables]
    together = pl.concat(frames, how="diagonal_relaxed").unique(maintain_order=True)
    twice = together.filter(pl.struct("timestamp", "symbol").is_duplicated())
    if twice.height:
        first = twice.row(0, named=True)
        raise DataError(
            f"{first['symbol']} has two values at {first['timestamp']:%Y-%m-%d %H:%M:%S} UTC",
            where=", ".join(table.source for table in tables),
            hint="pass each series once",
            then="nothing was computed",
        )
    return dataclasses.replace(
        tables[0],
        frame=together.sort("timestamp", maintain_order=True).rechunk(),
        quarantine=pl.concat([table.quarantine for table in tables]),
        source=", ".join(table.source for table in tables),
        notes=tuple(note for table in tables for note in table.notes),
    )


def market_sources(cross: pl.DataFrame, workspace: Workspace) -> tuple[Steps, ...]:
    """The inputs of the tables ``daily`` and ``minute`` that a canonical cross table has values for."""
    declared = catalogues.read(workspace).inputs
    closes = day_closes(workspace)
    found = (kind.from_cross(cross, declared, closes) for kind in (DailyHistory, MinuteHistory))
    return tuple(steps for steps in found if steps is not None)


def event_source(events: Any, workspace: Workspace, interval_ns: int) -> tuple[Steps, ...]:
    """The inputs of the table ``events``: of a path, a frame, a table, or the risk room's calendar.

    Raises
    ------
    DataError
        A row cannot be read: an event that is left out would turn up as a calm hour.
    """
    declared = catalogues.read(workspace).inputs
    surprises = unscheduled_events(workspace)
    if hasattr(events, "blocked"):
        steps = EventSchedule.from_calendar(events, declared, interval_ns, surprises)
        return () if steps is None else (steps,)
    table = events if isinstance(events, Table) else read_table("events", events, workspace=workspace)
    if table.quarantine.height:
        row = table.quarantine.row(0, named=True)
        raise DataError(
            f"{table.quarantine.height} events cannot be read, first: {row['column']} = {row['value']} ({row['rule']})",
            where=f"{table.source}, row {row['row']}",
            hint=row["hint"] or "correct the row",
            then="nothing was computed; an event that is left out would turn up as a calm hour",
        )
    steps = EventSchedule.from_frame(table.frame, declared, interval_ns, surprises)
    return () if steps is None else (steps,)


def level_source(levels: Sequence[Levels], bars: Table, workspace: Workspace) -> tuple[Steps, ...]:
    """The inputs of the table ``levels`` for one symbol's bars, prices on their scale."""
    known_at, close = bars.frame["known_at"].dt.epoch("ns").to_numpy(), array_of(bars.frame["close"])
    declared = catalogues.read(workspace).inputs
    found = LevelsHistory.build(levels, declared, options_config(workspace), known_at, close)
    return () if found is None else (found,)


def _sources(bars: Table, workspace: Workspace, cross: Any, events: Any) -> tuple[Steps, ...]:
    """What all symbols share."""
    assert bars.interval_ns is not None
    market = () if cross is None else market_sources(read_cross(cross, workspace).frame, workspace)
    return market if events is None else (*market, *event_source(events, workspace, bars.interval_ns))


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


def input_arrays(
    plan: Plan, bars: Table, sources: Sequence[Steps] = (), own: Collection[str] | None = None
) -> tuple[NDArray[np.int64], dict[str, Floats]]:
    """The closes (ns UTC) and the plan's inputs as arrays; the bars' float64 columns are not copied.

    What the bars bring themselves comes before any source, and of two sources of one input the later one. Where
    ``bars`` are a part of more, ``own`` says what the whole brings: what this part lacks of it is NaN.
    """
    known_at = bars.frame["known_at"].dt.epoch("ns").to_numpy()
    here = set(brought(bars.frame))
    present = here if own is None else set(own)
    columns = {
        name: array_of(bars.frame[name]) if name in here else np.full(len(known_at), np.nan)
        for name in plan.inputs
        if name in present
    }
    for steps in sources:
        wanted = [name for name in plan.held.get(steps.table, ()) if name not in present]
        columns |= steps.columns(known_at, wanted)
    return known_at, columns


def array_of(series: pl.Series) -> Floats:
    """Float64 values with NaN for null; the frame's own memory where it has no nulls."""
    values: Floats = series.cast(pl.Float64).to_numpy()
    return values


def sample_of(
    catalogue: catalogues.Catalogue,
    bars: Table,
    *,
    workspace: Workspace,
    cross: Any = None,
    levels: Any = None,
    events: Any = None,
) -> Sample:
    """Bars and what goes with them as data for :func:`mia_fast.features.checks.check_features`."""
    assert bars.interval_ns is not None
    known = () if levels is None else level_source(read_levels(levels, workspace), bars, workspace)
    sources = (*_sources(bars, workspace, cross, events), *known)
    available = (*brought(bars.frame), *(name for steps in sources for name in steps.names))
    tick_size = config.market(workspace).instrument.tick_size
    minutes = bars.interval_ns / 60e9
    plan = make_plan(catalogue, available, bar_minutes=minutes, tick_size=tick_size)
    known_at, columns = input_arrays(plan, bars, sources)
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


def feature_frame(timestamps: pl.Series, block: FeatureBlock) -> pl.DataFrame:
    """``timestamp`` and one column per feature, null where missing. Values are not copied."""
    rows = len(timestamps)
    columns = []
    for values, valid, missing in zip(block.values, block.valid, block.missing.tolist(), strict=True):
        buffers = [pa.py_buffer(valid) if missing else None, pa.py_buffer(values)]
        columns.append(pa.Array.from_buffers(pa.float64(), rows, buffers, missing))
    if not columns:
        return timestamps.alias("timestamp").to_frame()
    features = pl.DataFrame(pa.RecordBatch.from_arrays(columns, list(block.names)))  # half the time of 350 Series
    return features.insert_column(0, timestamps.alias("timestamp"))


def matrix_frame(timestamps: pl.Series, names: Sequence[str], matrix: Floats) -> pl.DataFrame:
    """:func:`feature_frame` of (features, n) numbers, in which NaN is missing."""
    valid = np.zeros((len(names), (len(timestamps) + 63) // 64 * 8), dtype=np.uint8)
    missing = [validity_bitmap(row, bits) for row, bits in zip(matrix, valid, strict=True)]
    return feature_frame(timestamps, FeatureBlock(tuple(names), list(matrix), valid, np.array(missing, dtype=np.int64)))


def write_latest(frame: pl.DataFrame, workspace: Workspace) -> Path:
    """Write the last rows of a feature frame, ``latest_rows`` of the market's configuration, to
    ``data/features/features_latest.csv``."""
    rows = config.market(workspace).latest_rows
    path = workspace.data / "features" / "features_latest.csv"
    latest = frame.tail(rows).with_columns(pl.col("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"))
    fill(path, latest.write_csv)
    return path


def by_symbol(bars: Table) -> list[tuple[Any, Table, NDArray[np.int64]]]:
    """The bars of each symbol in order of appearance, with their rows in the whole; one part if there is one symbol."""
    frame = bars.frame
    if "symbol" not in frame.columns or frame["symbol"].n_unique() == 1:
        return [(None, bars, np.arange(frame.height))]
    parts = frame.with_row_index("_row").partition_by("symbol", maintain_order=True)
    return [
        (
            part["symbol"][0],
            dataclasses.replace(bars, frame=part.drop("_row").rechunk(), source=f"{bars.source}, {part['symbol'][0]}"),
            part["_row"].cast(pl.Int64).to_numpy(),
        )
        for part in parts
    ]


def _symbols(
    bars: Table, workspace: Workspace, cross: Any, levels: Any, events: Any
) -> Iterator[tuple[Any, Table, NDArray[np.int64], tuple[Steps, ...]]]:
    """Of each symbol what :func:`by_symbol` gives, and the sources that go with its bars."""
    shared = _sources(bars, workspace, cross, events)
    known = [] if levels is None else read_levels(levels, workspace)
    for symbol, part, rows in by_symbol(bars):
        yield symbol, part, rows, (*shared, *level_source(known, part, workspace))


@operation("feature_engine", "generate_features")
def generate_features(
    data: Any,
    *,
    cross: Any = None,
    levels: Any = None,
    events: Any = None,
    auxiliary: Sequence[str] = (),
    workspace: AnyWorkspace | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Compute the catalogue's features for a frame of bars, of one symbol or of several.

    What a table does not bring is null; :func:`feature_availability` says beforehand which features that concerns. The
    features of stages 2 and 3 (forecasts, account, market memory) are among it: they are copied from columns that the
    bars bring and null without them. :meth:`mia_fast.NeuralPipeline.generate_predictions` gives the forecasts of a
    frame; the live engine makes all of them itself.

    Parameters
    ----------
    data
        Bars: a path, or any table that speaks the Arrow PyCapsule interface. A catalogue input of another table
        (``vix``, ``predicted_vix``) may also stand among its columns. Bars of several symbols may be interleaved.
    cross
        Cross-asset closes: a path, a table, or a list of them. A close counts from its own close on.
    levels
        Option levels as :func:`mia_fast.features.levels.read_levels` takes them: ``Levels``, paths of chains, a frame
        of level rows, or a list of these. They count once known, prices moved to the future's by the basis.
    events
        The macro calendar: a path, a table, or the risk room's calendar.
    auxiliary
        Auxiliary columns of the catalogue to put after the features: a list of names, or one name.
    workspace
        Where configuration is read and ``data/features/features_latest.csv`` is written.
    threads
        1 or 2; the values are the same.
    progress
        Called with (rows done, rows) along the way, for each symbol.

    Returns
    -------
    polars.DataFrame
        ``timestamp`` as the bars have it, ``symbol`` where there are several, then the features in the catalogue's
        order; null during warm-up and where an input is missing. A feature that is an input as it is shares the memory
        of a Polars or Arrow table, and is a copy of a pandas frame's, which its owner writes to in place. (A table that
        was built around a NumPy array changes with that array, and so does what it shares.) Of several symbols,
        ``features_latest.csv`` holds the configured instrument, or the first one.

    Raises
    ------
    DataError
        An input cannot be used; says which row and why.
    """
    workspace = Workspace.current(workspace)
    bars = data if isinstance(data, Table) else read_and_tell("bars", data, workspace)
    frames = []
    for symbol, part, rows, sources in _symbols(bars, workspace, cross, levels, events):
        shape = _shape(part, workspace, sources)
        with _TURN:
            engine = _engine(*shape, (auxiliary,) if isinstance(auxiliary, str) else tuple(auxiliary))
            plan = engine.plan
            known_at, columns = input_arrays(plan, part, sources)
            engine.reset()
            block = engine.block(known_at, columns, share=not bars.borrowed, threads=threads, progress=progress)
        stamps = part.frame["timestamp"]
        if bars.borrowed:
            stamps = pl.Series(stamps.to_physical().to_numpy().copy()).cast(stamps.dtype)
        frames.append((symbol, rows, feature_frame(stamps, block)))
    if len(frames) == 1:
        frame = latest = frames[0][2]
    else:
        root = config.market(workspace).instrument.symbol
        latest = next((one for symbol, _, one in frames if str(symbol) == root), frames[0][2])
        where = np.argsort(np.concatenate([rows for _, rows, _ in frames]), kind="stable")
        named = [
            one.select("timestamp", pl.lit(symbol).alias("symbol"), pl.exclude("timestamp"))
            for symbol, _, one in frames
        ]
        frame = pl.concat(named)[where]
    try:
        write_latest(latest.select("timestamp", *catalogues.read(workspace).names), workspace)
    except OSError as error:
        raise WorkspaceError(
            f"features_latest.csv cannot be written ({error})",
            where=str(workspace.data / "features"),
            hint="check the permissions and the free space of the workspace, or choose another one",
            then="the features were computed but not returned, because the contract's file would be stale",
        ) from error
    return frame


def feature_availability(
    data: Any,
    *,
    cross: Any = None,
    levels: Any = None,
    events: Any = None,
    workspace: AnyWorkspace | None = None,
) -> pl.DataFrame:
    """Which features these inputs can give, and what the others lack; nothing is computed.

    Parameters
    ----------
    data, cross, levels, events, workspace
        As for :func:`generate_features`. Of several symbols, a feature counts as available if it is for each of them.

    Returns
    -------
    polars.DataFrame
        One row per feature in the catalogue's order: ``feature``, ``family``, ``stage``, ``available``, ``lacks`` (list
        of the input columns that are missing) and ``wanted_from`` (the tables and series that would bring them).
    """
    workspace = Workspace.current(workspace)
    bars = data if isinstance(data, Table) else read_and_tell("bars", data, workspace)
    plans = [
        plan_for(part, workspace=workspace, sources=sources)
        for _, part, _, sources in _symbols(bars, workspace, cross, levels, events)
    ]
    return availability(catalogues.read(workspace), plans)


def availability(catalogue: catalogues.Catalogue, plans: Sequence[Plan]) -> pl.DataFrame:
    """The table of :func:`feature_availability` for plans that are made."""
    origins = {column.name: column.origin for column in catalogue.inputs}
    rows = []
    for feature in catalogue.features:
        lacks = list(dict.fromkeys(name for plan in plans for name in plan.missing.get(feature.name, ())))
        wanted = list(dict.fromkeys(origins[name] for name in lacks if name in origins))
        rows.append((feature.name, feature.family, feature.stage, not lacks, lacks, wanted))
    names = ("feature", "family", "stage", "available", "lacks", "wanted_from")
    kinds = (pl.String, pl.String, pl.Int64, pl.Boolean, pl.List(pl.String), pl.List(pl.String))
    return pl.DataFrame(rows, schema=dict(zip(names, kinds, strict=True)), orient="row")
