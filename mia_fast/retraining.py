"""Challengers: a model trained again on recent data and patterns, served only if it wins."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from mia_fast import clock, registry
from mia_fast import memory as memories
from mia_fast.errors import ConfigError
from mia_fast.files import sha256
from mia_fast.telemetry import operation
from mia_fast.training import Progress, local_clock, quiet, vix_prior, vix_samples
from mia_fast.workspace import AnyWorkspace, Workspace

MODEL: Final = "predicted_vix"
"""What is trained again. The networks take their features, their outputs' methods and hours of training anew."""


@dataclass(frozen=True, slots=True)
class Retrained:
    """What came of a retraining."""

    name: str
    version: str
    """Of the challenger: it is kept whether it won or not."""
    promoted: bool
    champion: str
    """The version it challenged."""
    challenger_error: float
    champion_error: float
    """Mean absolute errors over the judged bars, in the unit of the output."""
    gain: float
    gain_low: float
    """1 - ratio of the errors, and its 2.5 % quantile over whole sessions."""
    sessions: int
    """Judged."""
    why: str


@operation("adaptive_learning", "retrain_model")
def retrain_model(
    name: str,
    *,
    bars: Sequence[Path] | None = None,
    vix: Path | None = None,
    index: Path | None = None,
    workspace: AnyWorkspace | None = None,
    progress: Progress = quiet,
) -> Retrained:
    """Train a challenger on recent data and patterns; it replaces the champion only if it wins.

    Both are judged on the last sessions (``judged_sessions`` of ``config/memory.yaml``), which neither was fitted on.
    The challenger wins when its mean absolute error is lower by more than chance (the 2.5 % quantile of a bootstrap by
    session is above 0), and not higher at the bars whose states the market memory stored, where there are at least 20.
    Win or lose, it is kept in ``data/models/versions``, and the journal's table ``training`` says what came of it.

    Parameters
    ----------
    name
        ``predicted_vix``.
    bars, vix, index
        As for :func:`mia_fast.training.train_predicted_vix`, up to the present; default: ``retraining`` of the
        configuration.
    workspace
        Default: ``MIA_WORKSPACE``, else the current directory.
    progress
        Called with a line of text at each step.

    Raises
    ------
    ConfigError
        There is no such model, or no file of bars was named.
    DataError
        The files cannot be used.
    ModelError
        They are too few or end before the champion's training does; or the extra ``train`` is not installed.
    MarketMemoryError
        The market memory cannot be read.
    JournalError
        The journal does not take the result; nothing was changed.
    """
    if name != MODEL:
        known = name in registry.MODELS
        raise ConfigError(
            f"{name} is not trained again by itself" if known else f"there is no model {name!r} to train",
            where="name",
            hint="mia-fast train networks chooses, trains and judges them; then they are served" if known else MODEL,
            then="no change",
        )
    from mia_fast import journal
    from mia_fast.features import catalogue as catalogues
    from mia_fast.loading import definitions, load_model
    from mia_models.manifest import DataFile
    from mia_models.training import challenge as challenges
    from mia_models.training import export
    from mia_models.training.predicted_vix import SEED
    from mia_models.training.response import INPUTS

    place = Workspace.current(workspace)
    config = memories.memory_config(place)
    files = _files(place, config, bars, vix, index)
    *bar_files, vix_file, index_file = files
    champion_version = registry.served(place, name)
    champion = load_model(place, name, registry.folder(place, name))
    samples = vix_samples(bar_files, vix_file, INPUTS, workspace=place, progress=progress)
    prior = vix_prior(vix_file, index_file, workspace=place)
    day, minute = local_clock(memories.of(place).instants())
    progress(f"training on {config.learning.window_sessions} sessions and {len(day):,} stored patterns")
    result = challenges.challenge(
        samples,
        prior,
        lambda matrix: champion.predict(matrix)[:, 0],
        (champion.manifest.training.last - dt.date(1970, 1, 1)).days,
        np.column_stack([day, minute]),
        window_sessions=config.learning.window_sessions,
        judged_sessions=config.learning.judged_sessions,
    )
    data = tuple(DataFile(name=path.name, sha256=sha256(path)) for path in files)
    metrics = (result.overall,) if result.patterns is None else (result.overall, result.patterns)
    versions = place.data / "models" / "versions" / name
    versions.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=versions) as folder:
        manifest = export.write(
            Path(folder),
            result.model,
            result.rows,
            seed=SEED,
            method=challenges.METHOD,
            data=data,
            definitions=definitions(catalogues.read(place), INPUTS),
            metrics=metrics,
        )
        target = registry.new_folder(place, name, manifest.graph_sha256)
        target.mkdir(exist_ok=True)
        for part in sorted(Path(folder).iterdir(), reverse=True):  # the graph before its manifest
            part.replace(target / part.name)
    overall = result.overall
    errors = overall.errors
    why = (
        f"error {errors[challenges.CHALLENGER]:.4f} against {errors[challenges.CHAMPION]:.4f} over {overall.sessions} "
        f"sessions, gain {overall.gain:+.1%} ({overall.gain_low:+.1%} to {overall.gain_high:+.1%})"
    )
    if result.patterns is not None:
        why += f"; at stored patterns {result.patterns.gain:+.1%}"
    version = target.name
    promoted = result.wins and version != champion_version
    if promoted:
        registry.promote(place, name, version, reason=f"won: {why}", detail={"challenge": errors})
    else:
        row = {"timestamp": clock.now_ns(), "model": name, "loss": errors[challenges.CHALLENGER], "code": "MODEL_KEPT"}
        detail = {"reason": f"did not win: {why}", "version": version, "champion": champion_version}
        journal.of(place).append("training", {**row, "detail": detail})
    return Retrained(
        name,
        version,
        promoted,
        champion_version,
        errors[challenges.CHALLENGER],
        errors[challenges.CHAMPION],
        overall.gain,
        overall.gain_low,
        overall.sessions,
        why,
    )


def _files(
    place: Workspace,
    config: memories.MemoryConfig,
    bars: Sequence[Path] | None,
    vix: Path | None,
    index: Path | None,
) -> list[Path]:
    """Bars, VIX, index: what was given, else what the configuration names."""
    named = config.retraining
    if bars is None:
        bars = sorted({path for pattern in named.bars for path in place.root.glob(pattern)})
    daily = [
        given if given is not None else None if name is None else place.root / name
        for given, name in ((vix, named.vix), (index, named.index))
    ]
    if not bars or any(path is None for path in daily):
        raise ConfigError(
            "there is nothing to train on",
            where="config/memory.yaml, retraining",
            hint="name the files of bars, of the daily VIX and of the index there, or pass bars=, vix= and index=",
            then="nothing was trained; the champion stays",
        )
    return [*bars, *(path for path in daily if path is not None)]
