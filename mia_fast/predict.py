"""Predictions for frames of features: the contract's ``NeuralPipeline``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mia_fast import registry
from mia_fast.errors import DataError
from mia_fast.features import catalogue as catalogues
from mia_fast.files import replacing
from mia_fast.loading import load_model
from mia_fast.telemetry import operation
from mia_fast.workspace import AnyWorkspace, Workspace
from mia_models.session import OnnxModel, Reason, missing_features

MODEL = "predicted_vix"
NETWORKS = "networks"
IMPUTED = "imputed"
LATENT = ("latent_vol_regime_vec_1", "latent_vol_regime_vec_2", "cluster_id")
LATENT_FILE = "latent_vectors.csv"

Floats = NDArray[np.float64]
Missing = Literal["error", "impute"]


class NeuralPipeline:
    """The served models of a workspace, each loaded once.

    ``predicted_vix`` is what a live engine steps; ``networks`` gives every other output of a frame in one call, and is
    loaded when a frame first asks for it. A version under ``data/models`` of the workspace is taken in place of the
    shipped one (:mod:`mia_fast.registry`). Any other ``NAME.onnx`` there, with its ``NAME.manifest.json``, is a model
    of the desk's own: its outputs are added, or take the place of those of the same name. If the files of a model are
    damaged, that is an error, not a reason to fall back.

    Parameters
    ----------
    workspace
        Whose models and catalogue apply; by default the current one.

    Raises
    ------
    ModelError
        A model's files are damaged or do not belong together, or the workspace's catalogue computes one of its inputs
        otherwise than in training. For ``model`` at once, for the others when they are first asked for.

    Attributes
    ----------
    model
        ``predicted_vix``; a live engine calls its ``step`` for each bar.
    refusals
        How many rows of the last call lacked a prediction, by the first reason.
    """

    def __init__(self, workspace: AnyWorkspace | None = None) -> None:
        self._workspace = Workspace.current(workspace)
        self.model = load_model(self._workspace, MODEL, registry.folder(self._workspace, MODEL))
        self.refusals: dict[str, int] = {}

    @cached_property
    def networks(self) -> OnnxModel:
        """The model of all outputs."""
        return load_model(self._workspace, NETWORKS, registry.folder(self._workspace, NETWORKS))

    @cached_property
    def own(self) -> tuple[OnnxModel, ...]:
        """The desk's further models, in the order of their names."""
        folder = self._workspace.data / "models"
        names = {path.name.removesuffix(".manifest.json").removesuffix(".onnx") for path in _model_files(folder)}
        return tuple(load_model(self._workspace, name, folder) for name in sorted(names - {MODEL, NETWORKS}))

    @cached_property
    def auxiliary(self) -> tuple[str, ...]:
        """The models' inputs that are not among the catalogue's features.

        ``generate_features`` and ``make_plan`` give them when they are asked for by their argument ``auxiliary``.
        """
        known = catalogues.read(self._workspace).names
        needed = dict.fromkeys(name for model in self._all for name in model.features)
        return tuple(name for name in needed if name not in known)

    @property
    def _all(self) -> tuple[OnnxModel, ...]:
        """Later outputs take the place of earlier ones: a frame's ``predicted_vix`` is that of the live engine."""
        return (self.networks, self.model, *self.own)

    @operation("neural_pipeline", "generate_predictions")
    def generate_predictions(self, data: Any, *, missing: Missing = "error") -> pl.DataFrame:
        """Add the models' outputs to a frame of features.

        The rows are one series of bars in the order of time: the networks carry their state from row to row, from the
        frame's first row on.

        Parameters
        ----------
        data
            Any table that speaks the Arrow PyCapsule interface, with the models' features among its columns.
        missing
            ``"error"``: absent features are an error. A null or NaN in a row leaves those outputs null that cannot do
            without the feature (the manifest says which); where an output can, the training median is read for it.
            ``"impute"``: absent columns, nulls and NaN take the median of the training rows everywhere. An infinity is
            not missing: it is refused either way.

        Returns
        -------
        polars.DataFrame
            The frame with the outputs, null where refused, and ``imputed``: in this row a median stands for a feature.
            Columns of these names that were there are replaced.

        Raises
        ------
        ModelError
            Features are absent; the error names them.
        DataError
            ``data`` is no table, or a feature is not numeric.
        """
        frame, outputs, imputed = self._outputs(data, missing, self._all, "generate_predictions")
        return frame.with_columns(*outputs.values(), imputed)

    def encode(self, data: Any, *, missing: Missing = "error") -> pl.DataFrame:
        """The place of each row on the map of volatility regimes, see :func:`encode_vol_regime`; writes nothing."""
        frame, outputs, imputed = self._outputs(data, missing, (self.networks,), "encode_vol_regime")
        stamp = frame["timestamp"] if "timestamp" in frame.columns else pl.Series("timestamp", [None] * frame.height)
        label = outputs["cluster_id"].cast(pl.Int64)
        return pl.DataFrame([stamp, outputs[LATENT[0]], outputs[LATENT[1]], label, imputed])

    def _outputs(
        self, data: Any, missing: Missing, models: Sequence[OnnxModel], where: str
    ) -> tuple[pl.DataFrame, dict[str, pl.Series], pl.Series]:
        if missing not in ("error", "impute"):
            raise DataError(f"missing={missing!r} is not known", where=where, hint="say 'error' or 'impute'")
        frame = _frame(data, where)
        refused = np.full(frame.height, Reason.NONE, dtype=np.int64)
        outputs: dict[str, pl.Series] = {}
        imputed = np.zeros(frame.height, dtype=np.bool_)
        for model in models:
            absent = [name for name in model.features if name not in frame.columns]
            if absent and missing == "error":
                raise missing_features(
                    model.manifest,
                    absent,
                    frame.columns,
                    hint="compute them with generate_features(bars, cross=daily_closes, events=calendar, "
                    f"auxiliary={list(self.auxiliary)}), or pass missing='impute' to take the training medians and "
                    "flag the rows",
                )
            matrix = np.full((frame.height, len(model.features)), np.nan)
            for k, name in enumerate(model.features):
                if name in frame.columns:
                    matrix[:, k] = _numbers(frame[name], where)
            gaps = np.isnan(matrix)
            if missing == "impute":
                medians = np.array([part.median for part in model.manifest.inputs])
                matrix = np.where(gaps, medians, matrix)
                imputed |= gaps.any(axis=1)
            else:
                imputed |= gaps[:, model.optional].any(axis=1)
            predictions, reasons = model.predict_with_reasons(matrix)
            refused = np.where(refused == Reason.NONE, reasons, refused)
            outputs |= {
                name: pl.Series(name, predictions[:, k], dtype=pl.Float64).fill_nan(None)
                for k, name in enumerate(model.outputs)
            }
        counts = Counter(refused[refused != Reason.NONE].tolist())
        self.refusals = {Reason(code).name: count for code, count in sorted(counts.items())}
        return frame, outputs, pl.Series(IMPUTED, imputed)


@operation("contextual_state_encoder", "encode_vol_regime")
def encode_vol_regime(data: Any, *, missing: Missing = "error", workspace: AnyWorkspace | None = None) -> pl.DataFrame:
    """Place each row on the map of volatility regimes, and write ``data/latent_vectors.csv``.

    Parameters
    ----------
    data, missing
        As for :meth:`NeuralPipeline.generate_predictions`.
    workspace
        Whose models apply, and where the file goes; by default the current one.

    Returns
    -------
    polars.DataFrame
        ``timestamp`` (null if ``data`` has none), ``latent_vol_regime_vec_1``, ``latent_vol_regime_vec_2``,
        ``cluster_id`` (KMeans label), ``imputed``. The file holds the first four.

    Raises
    ------
    ModelError, DataError
        As for :meth:`NeuralPipeline.generate_predictions`.
    """
    workspace = Workspace.current(workspace)
    found = _pipeline(workspace).encode(data, missing=missing)
    stamp = pl.col("timestamp")
    if isinstance(found.schema["timestamp"], pl.Datetime):
        stamp = stamp.dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
    with replacing(workspace.data / LATENT_FILE) as temporary:
        found.select(stamp, *LATENT).write_csv(temporary)
    return found


_PIPELINES: Final[dict[Path, tuple[Any, NeuralPipeline]]] = {}


def _pipeline(workspace: Workspace) -> NeuralPipeline:
    """The pipeline of a workspace, loaded once for as long as its models and its catalogue stay the same."""
    models = workspace.data / "models"
    files = (*_model_files(models), *models.glob("served.json"), workspace.config("feature_sets.yaml"))
    state = tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    held = _PIPELINES.get(workspace.root)
    if held is None or held[0] != state:
        held = _PIPELINES[workspace.root] = (state, NeuralPipeline(workspace))
    return held[1]


def _model_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("[a-z]*.onnx"), *folder.glob("[a-z]*.manifest.json")])


def _frame(data: Any, where: str) -> pl.DataFrame:
    """The caller's table as a Polars frame, without a copy where its memory allows."""
    if isinstance(data, pl.DataFrame):
        return data
    if not hasattr(data, "__arrow_c_stream__"):
        raise DataError(
            f"a {type(data).__name__} is not a table",
            where=where,
            hint="pass a Polars or pandas frame, a pyarrow table or a DuckDB relation",
            then="nothing was predicted",
        )
    return pl.DataFrame(data)


def _numbers(series: pl.Series, where: str) -> Floats:
    """Float64 values with NaN for null."""
    if not (series.dtype.is_numeric() or series.dtype == pl.Null):
        raise DataError(
            f"the feature {series.name!r} is {series.dtype}, not a number",
            where=where,
            hint="cast the column to a float",
            then="nothing was predicted",
        )
    values: Floats = series.cast(pl.Float64).fill_null(np.nan).to_numpy()
    return values
