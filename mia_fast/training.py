"""From files to a trained model: reads bars and the VIX, runs the feature engine, and calls the training room."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

import mia_models
from mia_fast import clock
from mia_fast import journal as journals
from mia_fast.errors import ConfigError, DataError, JournalError
from mia_fast.features import catalogue as catalogues
from mia_fast.features.cross import daily_closes
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.frame import (
    array_of,
    event_source,
    input_arrays,
    market_sources,
    one_symbol,
    plan_for,
    read_cross,
)
from mia_fast.files import sha256
from mia_fast.loading import definitions, reads
from mia_fast.tables import Table, read_table
from mia_fast.tables.mapping import day_closes
from mia_fast.workspace import Workspace
from mia_models.errors import ModelError

if TYPE_CHECKING:
    from mia_models.manifest import Chosen, Manifest
    from mia_models.training.neural import Declared
    from mia_models.training.rows import Rows
    from mia_models.training.samples import Samples

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Progress = Callable[[str], None]
_NEW_YORK = "America/New_York"


def quiet(_message: str) -> None:
    """Progress that nobody watches."""


def train_predicted_vix(
    bars: Sequence[Path],
    vix: Path,
    index: Path,
    out: Path,
    *,
    workspace: Workspace | None = None,
    progress: Progress = quiet,
) -> Manifest:
    """Train ``predicted_vix`` and write graph, manifest and model card.

    Parameters
    ----------
    bars
        Minute bars of ES from the start of 2019 to the middle of 2022: one or several files.
    vix
        Daily closes with the symbol ``VIX``, from 2004 on.
    index
        Daily closes with the symbol ``SPX``, from 2004 on: with the VIX of those years they give the prior.
    out
        Folder for ``predicted_vix.onnx``, ``.manifest.json`` and ``.md``. ``WORKSPACE/data/models`` is where
        :class:`mia_fast.predict.NeuralPipeline` looks first.
    workspace
        Whose configuration and catalogue apply.
    progress
        Called with a line of text at each step.

    Raises
    ------
    DataError
        The files cannot be used.
    ModelError
        They do not cover the periods, or the extra ``train`` is not installed.
    """
    from mia_models.manifest import DataFile
    from mia_models.training import predicted_vix
    from mia_models.training.response import INPUTS

    workspace = workspace or Workspace.current()
    samples = vix_samples(bars, vix, INPUTS, workspace=workspace, progress=progress)
    prior = vix_prior(vix, index, workspace=workspace)
    files = tuple(DataFile(name=path.name, sha256=sha256(path)) for path in (*bars, vix, index))
    manifest = predicted_vix.train(
        samples,
        prior,
        out,
        data=files,
        definitions=definitions(catalogues.read(workspace), INPUTS),
        progress=progress,
    )
    _recorded(manifest, workspace, progress)
    return manifest


def _recorded(manifest: Manifest, workspace: Workspace, progress: Progress) -> None:
    try:
        record(manifest, workspace)
    except JournalError as error:  # the manifest holds the same numbers; an engine may have the journal
        progress(f"the journal's table of trainings was not written: {error.what}")


def record(manifest: Manifest, workspace: Workspace, *, now_ns: int | None = None) -> int:
    """Write a training into the journal: one row of ``training`` per output, period and view it was judged on; how
    many.

    ``loss`` is that of what is served, out of sample, by the measure of the output; ``detail`` names both, and holds
    the baselines' losses and which data it rests on. The same model recorded again is the same rows.

    Raises
    ------
    JournalError
        The journal cannot be opened, or does not take the rows.
    """
    journal = journals.of(workspace)
    run = f"train-{manifest.graph_sha256[:12]}"
    first = journal.query("SELECT min(epoch_ns(timestamp)) FROM training WHERE run_id = ?", [run]).item()
    at = first if first is not None else clock.now_ns() if now_ns is None else now_ns
    for step, metric in enumerate(manifest.metrics):
        detail = {
            **metric.model_dump(mode="json"),
            "version": manifest.version,
            "graph_sha256": manifest.graph_sha256,
            "trained_on": {file.name: file.sha256 for file in manifest.training.data},
            "rows": manifest.training.rows,
        }
        row = {"timestamp": at, "model": manifest.name, "loss": metric.errors[metric.model], "step": step}
        code = {"code": "OUT_OF_SAMPLE", "run_id": run, "event_id": f"{step}"}
        journal.append("training", {**row, **code, "detail": detail})
    return len(manifest.metrics)


def vix_samples(
    bars: Sequence[Path],
    vix: Path,
    names: Sequence[str],
    *,
    workspace: Workspace,
    progress: Progress = quiet,
) -> Samples:
    """The named columns of the feature engine for every bar, with the target of ``predicted_vix``.

    The target is the first VIX close that becomes known after the bar (16:15 New York of its date).
    """
    from mia_models.training.samples import Samples, upcoming_close

    progress(f"reading {len(bars)} files of bars")
    table = _one_table([read_table("bars", path, workspace=workspace) for path in bars])
    one_symbol(table)
    cross = read_table("cross", vix, workspace=workspace).frame
    if not (cross["symbol"] == "VIX").any():
        raise DataError(
            "there is no symbol VIX in it",
            where=str(vix),
            hint="give daily closes with a column symbol that holds VIX",
            then="nothing was trained",
        )
    features = catalogues.read(workspace).names
    extra = [name for name in names if name not in features]
    sources = market_sources(cross, workspace)
    plan = plan_for(table, workspace=workspace, sources=sources, auxiliary=extra)
    known_at, columns = input_arrays(plan, table, sources)
    progress(f"computing {len(plan.outputs)} features for {len(known_at):,} bars")
    matrix = FeatureEngine(plan).batch(known_at, columns)
    vix_known_at, closes = daily_closes(cross, "VIX", day_closes(workspace))
    target, target_day = upcoming_close(known_at, vix_known_at, closes, local_clock(vix_known_at)[0])
    day, minute = local_clock(known_at)
    chosen = {name: matrix[plan.outputs.index(name)].copy() for name in names}
    return Samples(day, minute, chosen, target, target_day)


def train_networks(
    bars: Sequence[Path],
    vix: Path,
    index: Path,
    out: Path,
    *,
    cross: Sequence[Path] = (),
    events: Path | None = None,
    workspace: Workspace | None = None,
    progress: Progress = quiet,
) -> Manifest:
    """Train the networks and write graph, manifest, model card and checkpoints.

    The features are those of ``data/features/selection.json`` of the workspace, or of the shipped selection.

    Parameters
    ----------
    bars, vix, index, out, workspace, progress
        As for :func:`train_predicted_vix`.
    cross
        Further daily closes that chosen features need.
    events
        The macro calendar.

    Raises
    ------
    DataError
        The files cannot be used, or a chosen feature cannot be computed from them.
    ModelError
        They do not cover the periods, the features were chosen on bars of the hold-out, a checkpoint is of another
        training, or the extra ``train`` is not installed.
    ConfigError
        The selection cannot be used.
    """
    try:
        from mia_models.training import neural
    except ModuleNotFoundError as error:
        raise ModelError(
            f"training needs {error.name}",
            where=f"import {error.name}",
            hint="pip install 'mia-fast[train]'",
            then="nothing was trained",
        ) from error
    from mia_models.manifest import DataFile
    from mia_models.training.response import INPUTS

    workspace = workspace or Workspace.current()
    names, chosen = chosen_features(workspace)
    rows = network_rows(bars, (vix, index, *cross), events, names, workspace=workspace, progress=progress)
    paths = (*bars, vix, index, *cross, *(() if events is None else (events,)))
    manifest = neural.train(
        rows,
        vix_prior(vix, index, workspace=workspace),
        out,
        declared=_declared((*names, *INPUTS), workspace),
        chosen=chosen,
        data=tuple(DataFile(name=path.name, sha256=sha256(path)) for path in paths),
        progress=progress,
    )
    _recorded(manifest, workspace, progress)
    return manifest


def chosen_features(workspace: Workspace) -> tuple[tuple[str, ...], Chosen]:
    """The selected features in their order, and how they were chosen: the workspace's selection, or the shipped one.

    Raises
    ------
    ConfigError
        The selection cannot be used, or holds features that are not of stage 1.
    """
    from mia_fast.selection.manifest import read_selection_file, selection_path
    from mia_models.manifest import Chosen

    own = selection_path(workspace)
    path = own if own.exists() else Path(mia_models.__file__).parent / "artifacts" / "selection.json"
    catalogue = catalogues.read(workspace)
    found = read_selection_file(
        path,
        catalogue,
        hint="choose the features again with mia-fast select"
        + (", or remove the file to train on the shipped selection" if path == own else ""),
        then="nothing was trained",
    )
    chosen = Chosen(**found.model_dump(include=set(Chosen.model_fields)))
    stages = {feature.name: feature.stage for feature in catalogue.features}
    wrong = [name for name in found.names if stages[name] != 1]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)}: no stage-1 feature, and networks read market data alone",
            where=str(path),
            hint="choose from data without the outputs of models, account and memory",
            then="nothing was trained",
        )
    return found.names, chosen


def _declared(names: Sequence[str], workspace: Workspace) -> dict[str, Declared]:
    """What the catalogue says of each column: unit, digest, and whether bars alone give it."""
    from mia_models.training.neural import Declared

    catalogue = catalogues.read(workspace)
    digests = definitions(catalogue, names)
    columns = {column.name: column for column in (*catalogue.auxiliary, *catalogue.features)}
    units = {column.name: column.unit for column in catalogue.inputs}
    units |= {column.name: column.unit for column in catalogue.features}
    tables = {column.name: column.table for column in catalogue.inputs}

    def from_bars(name: str) -> bool:
        seen: set[str] = set()
        stack = [name]
        while stack:
            current = stack.pop()
            if current in seen:
                continue
            seen.add(current)
            column = columns.get(current)
            if column is None or (current in tables and column.kernel == "column"):
                if tables.get(current, "bars") != "bars":
                    return False
                continue
            known = columns.keys() | tables.keys()
            stack += reads(column.expression, known) if column.expression else column.inputs
        return True

    return {name: Declared(units.get(name, "-"), digests.get(name, ""), from_bars(name)) for name in names}


def network_rows(
    bars: Sequence[Path],
    cross: Sequence[Path],
    events: Path | None,
    names: Sequence[str],
    *,
    workspace: Workspace,
    progress: Progress = quiet,
) -> Rows:
    """The named features of every bar with the targets of ``targets.md`` and what the baselines need.

    Parameters
    ----------
    bars
        Minute bars of one symbol.
    cross
        Daily closes, with the VIX among them.
    events
        The macro calendar, or None.
    names
        Stage-1 features of the catalogue.

    Raises
    ------
    DataError
        The files cannot be used, or a feature cannot be computed from them.
    """
    from mia_fast.selection.targets import Bars, make_target
    from mia_models.training.response import INPUTS
    from mia_models.training.rows import TARGETS, Rows

    progress(f"reading {len(bars)} files of bars")
    table = _one_table([read_table("bars", path, workspace=workspace) for path in bars])
    one_symbol(table)
    assert table.interval_ns is not None
    closes = read_cross(list(cross), workspace)
    sources = market_sources(closes.frame, workspace)
    if events is not None:
        sources = (*sources, *event_source(events, workspace, table.interval_ns))
    catalogue = catalogues.read(workspace)
    extra = [name for name in INPUTS if name not in catalogue.names]
    plan = plan_for(table, workspace=workspace, sources=sources, auxiliary=extra)
    bare = [name for name in (*names, *INPUTS) if name in plan.missing]
    if bare:
        raise DataError(
            f"{', '.join(bare)} cannot be computed from these files",
            where="features",
            hint="give the files that the selection was made with (--bars, --cross, --events)",
            then="nothing was trained",
        )
    known_at, columns = input_arrays(plan, table, sources)
    progress(f"computing {len(plan.outputs)} features for {len(known_at):,} bars")
    values = FeatureEngine(plan).batch(known_at, columns)
    places = {name: k for k, name in enumerate(plan.outputs)}
    matrix = np.empty((len(known_at), len(names)), dtype=np.float32)
    for k, name in enumerate(names):
        matrix[:, k] = values[places[name]]
    prices = {name: array_of(table.frame[name]) for name in ("open", "high", "low", "close", "volume")}
    vix = daily_closes(closes.frame, "VIX", day_closes(workspace))
    source = Bars(known_at, {**prices, "atr_14": values[places["atr_14"]].copy()}, vix)
    progress("computing targets")
    targets = {name: make_target(name, source) for name in TARGETS}
    moves = np.diff(np.log(prices["close"]), prepend=np.log(prices["close"][0]))
    others = {f"returns_{k}": _lagged(moves, k - 1) for k in range(1, 11)}
    others["present_30"] = _realised(known_at, moves, 30)
    others |= {name: values[places[name]].copy() for name in INPUTS}
    session = np.cumsum(np.diff(known_at, prepend=known_at[:1]) > 30 * 60 * 10**9, dtype=np.int64)
    return Rows(
        tuple(names),
        matrix,
        known_at,
        session,
        local_clock(known_at)[1],
        {name: target.values for name, target in targets.items()},
        {name: target.ends_at for name, target in targets.items()},
        others,
    )


def _lagged(values: Floats, rows: int) -> Floats:
    return np.concatenate([np.zeros(rows), values[: len(values) - rows]])


def _realised(known_at: Integers, moves: Floats, minutes: int) -> Floats:
    """Annualised realised volatility of the last minutes, in one-minute log returns; gaps are bridged."""
    total = np.concatenate([[0.0], np.cumsum(moves**2)])
    first = np.searchsorted(known_at, known_at - minutes * 60 * 10**9, side="right")
    rows = np.arange(len(known_at))
    with np.errstate(divide="ignore", invalid="ignore"):
        per_minute = (total[rows + 1] - total[first]) / (rows + 1 - first)
    annual: Floats = np.sqrt(per_minute * 252 * 23 * 60)
    return annual


def vix_prior(vix: Path, index: Path, *, workspace: Workspace) -> Floats:
    """The prior of the regression from the days that have a close of both VIX and SPX: float64 (9,)."""
    from mia_models.training.prior import from_daily

    closes = [_closes(path, symbol, workspace) for path, symbol in ((vix, "VIX"), (index, "SPX"))]
    both = closes[0].join(closes[1], on="day", how="inner").sort("day")
    return from_daily(both["day"].to_numpy(), both["VIX"].to_numpy(), both["SPX"].to_numpy())


def _closes(path: Path, symbol: str, workspace: Workspace) -> pl.DataFrame:
    """``day`` (days since 1970, New York) and the close of ``symbol``."""
    rows = read_table("cross", path, workspace=workspace).frame.filter(pl.col("symbol") == symbol).sort("timestamp")
    if rows.is_empty():
        raise DataError(
            f"there is no symbol {symbol} in it",
            where=str(path),
            hint=f"give daily closes with a column symbol that holds {symbol}",
            then="nothing was trained",
        )
    day, _ = local_clock(rows["timestamp"].dt.epoch("ns").to_numpy())
    return pl.DataFrame({"day": day, symbol: rows["close"]}).group_by("day", maintain_order=True).last()


def _one_table(tables: Sequence[Table]) -> Table:
    """The bars of several files as one table, in order of time; overlapping bars are refused."""
    frames = sorted((table.frame for table in tables), key=lambda frame: frame["known_at"][0])
    shared = [name for name in frames[0].columns if all(name in frame.columns for frame in frames)]
    frame = pl.concat([frame.select(shared) for frame in frames])
    if bool((frame["known_at"].diff().dt.total_nanoseconds() <= 0).any()):
        raise DataError(
            "the files of bars overlap in time",
            where=", ".join(table.source for table in tables),
            hint="give each bar once",
            then="nothing was trained",
        )
    if len({table.interval_ns for table in tables}) > 1:
        raise DataError(
            "the files hold bars of different lengths",
            where=", ".join(table.source for table in tables),
            hint="give minute bars only",
            then="nothing was trained",
        )
    return dataclasses.replace(tables[0], frame=frame.rechunk())


def local_clock(known_at: Integers) -> tuple[Integers, Integers]:
    """New York date (days since 1970) and minutes since its midnight."""
    local = pl.Series(known_at).cast(pl.Datetime("ns", "UTC")).dt.convert_time_zone(_NEW_YORK)
    day = local.dt.date().to_physical().cast(pl.Int64).to_numpy()
    minute = (local.dt.hour().cast(pl.Int64) * 60 + local.dt.minute().cast(pl.Int64)).to_numpy()
    return day, minute
