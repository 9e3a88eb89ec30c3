"""From files to a trained model: reads bars and the VIX, runs the feature engine, and calls the training room."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mia_fast import clock
from mia_fast import journal as journals
from mia_fast.errors import DataError, JournalError
from mia_fast.features import catalogue as catalogues
from mia_fast.features.cross import daily_closes
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.frame import input_arrays, market_sources, one_symbol, plan_for
from mia_fast.loading import definitions
from mia_fast.tables import Table, read_table
from mia_fast.tables.mapping import day_closes
from mia_fast.workspace import Workspace

if TYPE_CHECKING:
    from mia_models.manifest import Manifest
    from mia_models.training.samples import Samples

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Progress = Callable[[str], None]
_NEW_YORK = "America/New_York"


def _quiet(_message: str) -> None:
    """Progress that nobody watches."""


def train_predicted_vix(
    bars: Sequence[Path],
    vix: Path,
    index: Path,
    out: Path,
    *,
    workspace: Workspace | None = None,
    progress: Progress = _quiet,
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
    files = tuple(
        DataFile(name=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest()) for path in (*bars, vix, index)
    )
    manifest = predicted_vix.train(
        samples,
        prior,
        out,
        data=files,
        definitions=definitions(catalogues.read(workspace), INPUTS),
        progress=progress,
    )
    try:
        record(manifest, workspace)
    except JournalError as error:  # the manifest holds the same numbers; an engine may have the journal
        progress(f"the journal's table of trainings was not written: {error.what}")
    return manifest


def record(manifest: Manifest, workspace: Workspace, *, now_ns: int | None = None) -> int:
    """Write a training into the journal: one row of ``training`` per period and view it was judged on; how many.

    ``loss`` is the mean absolute error out of sample, in the unit of the output; ``detail`` holds the baselines' and
    which data it rests on. The same model recorded again is the same rows.

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
        row = {"timestamp": at, "model": manifest.name, "loss": metric.errors["model"], "step": step}
        code = {"code": "OUT_OF_SAMPLE", "run_id": run, "event_id": f"{step}"}
        journal.append("training", {**row, **code, "detail": detail})
    return len(manifest.metrics)


def vix_samples(
    bars: Sequence[Path],
    vix: Path,
    names: Sequence[str],
    *,
    workspace: Workspace,
    progress: Progress = _quiet,
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
    target, target_day = upcoming_close(known_at, vix_known_at, closes, _local(vix_known_at)[0])
    day, minute = _local(known_at)
    chosen = {name: matrix[plan.outputs.index(name)].copy() for name in names}
    return Samples(day, minute, chosen, target, target_day)


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
    day, _ = _local(rows["timestamp"].dt.epoch("ns").to_numpy())
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


def _local(known_at: Integers) -> tuple[Integers, Integers]:
    """New York date (days since 1970) and minutes since its midnight."""
    local = pl.Series(known_at).cast(pl.Datetime("ns", "UTC")).dt.convert_time_zone(_NEW_YORK)
    day = local.dt.date().to_physical().cast(pl.Int64).to_numpy()
    minute = (local.dt.hour().cast(pl.Int64) * 60 + local.dt.minute().cast(pl.Int64)).to_numpy()
    return day, minute
