"""Predictions for frames of features: the contract's ``NeuralPipeline``."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mia_fast import registry
from mia_fast.config import market
from mia_fast.errors import DataError
from mia_fast.features import catalogue as catalogues
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.plan import make_plan, rests_on
from mia_fast.files import fill, stamp
from mia_fast.loading import load_model
from mia_fast.tables import frame_of
from mia_fast.telemetry import operation
from mia_fast.workspace import AnyWorkspace, Workspace
from mia_models.drift import FORECASTS, Drift
from mia_models.drift import OUTPUTS as JUDGED
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

    ``networks`` gives every output in one call. The model ``predicted_vix`` is called besides only where the desk
    serves a version of its own of it (:mod:`mia_fast.registry`), whose forecast then counts: the shipped one stands in
    the networks' graph as well. Any other ``NAME.onnx`` under ``data/models``, with its ``NAME.manifest.json``, is a
    model of the desk's own: its outputs are added, or take the place of those of the same name. If the files of a
    model are damaged, that is an error, not a reason to fall back. Frames and the live engine use the same models.

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
        ``predicted_vix`` by itself.
    refusals
        How many rows of the last call lacked a prediction, by the first reason.
    """

    def __init__(self, workspace: AnyWorkspace | None = None) -> None:
        self._workspace = Workspace.current(workspace)
        self.model = load_model(self._workspace, MODEL, registry.folder(self._workspace, MODEL))
        self._is_shipped = registry.served(self._workspace, MODEL) == registry.SHIPPED
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
        needed = dict.fromkeys(name for model in (self.model, *self.served) for name in model.features)
        return tuple(name for name in needed if name not in known)

    @cached_property
    def served(self) -> tuple[OnnxModel, ...]:
        """The models that give the outputs; later outputs take the place of earlier ones of the same name."""
        inside = self._is_shipped and MODEL in self.networks.outputs
        return (self.networks, *(() if inside else (self.model,)), *self.own)

    def drift(self) -> Drift | None:
        """A new judge of the forecasts, by the errors that the models' manifests state; None where they state none."""
        judged = [model.manifest for model in self.served]
        stated = {metric.output for manifest in judged for metric in manifest.metrics if metric.view == "all bars"}
        return Drift.of(*judged) if stated.issuperset(FORECASTS) else None

    @operation("neural_pipeline", "generate_predictions")
    def generate_predictions(self, data: Any, *, missing: Missing = "error") -> pl.DataFrame:
        """Add the models' outputs to a frame of features.

        The rows are a series of bars in the order of time, of each ``symbol`` if there are several: the networks carry
        their state from row to row, from the symbol's first row on, and so do the numbers that judge them
        (:mod:`mia_models.drift`). Row by row they are what a live engine writes that has seen the same bars.

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
            The frame with the outputs, null where refused; with ``prediction_confidence``, ``error_rolling_std`` and
            ``model_drift_score``, and the catalogue's features over these three alone (``confidence_drop_rate``), null
            while there are too few errors, and where the frame lacks ``timestamp`` (ascending), ``close``,
            ``vix_term_1m`` or ``minutes_since_vix_close``; and ``imputed``: in this row a median stands for a feature.
            Columns of these names that were there are replaced.

        Raises
        ------
        ModelError
            Features are absent; the error names them.
        DataError
            ``data`` is no table, its rows are not in the order of time, or a feature is not numeric.
        """

        def one(frame: pl.DataFrame) -> pl.DataFrame:
            outputs, imputed = self._outputs(frame, missing, self.served, "generate_predictions")
            return frame.with_columns(*outputs.values(), *self._judged(frame, outputs), imputed)

        return self._each_symbol(data, "generate_predictions", one)

    def encode(self, data: Any, *, missing: Missing = "error") -> pl.DataFrame:
        """The place of each row on the map of volatility regimes, see :func:`encode_vol_regime`; writes nothing."""

        def one(frame: pl.DataFrame) -> pl.DataFrame:
            outputs, imputed = self._outputs(frame, missing, (self.networks,), "encode_vol_regime")
            none = pl.Series("timestamp", [None] * frame.height)
            stamp = frame["timestamp"] if "timestamp" in frame.columns else none
            label = outputs["cluster_id"].cast(pl.Int64)
            return pl.DataFrame([stamp, outputs[LATENT[0]], outputs[LATENT[1]], label, imputed])

        return self._each_symbol(data, "encode_vol_regime", one)

    def _each_symbol(self, data: Any, where: str, one: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
        """``one`` of each symbol's rows, which must be in the order of time; the results in the frame's order."""
        frame = frame_of(data, where=where, then="nothing was predicted")
        self.refusals = {}
        if "symbol" not in frame.columns or frame["symbol"].n_unique() < 2:
            return one(_in_order(frame, where))
        at = "row of the frame"
        parts = frame.with_row_index(at).partition_by("symbol", maintain_order=True)
        done = [one(_in_order(part.drop(at), where)).with_columns(part[at]) for part in parts]
        return pl.concat(done).sort(at).drop(at)

    def _judged(self, frame: pl.DataFrame, outputs: Mapping[str, pl.Series]) -> list[pl.Series]:
        """The numbers of the drift at each row, and the features that rest on them."""
        catalogue = _over(catalogues.read(self._workspace), JUDGED)
        drift = self.drift()
        needed = ("timestamp", "close", "vix_term_1m", "minutes_since_vix_close")
        names = [*JUDGED, *catalogue.names]
        stamped = isinstance(frame.schema.get("timestamp"), pl.Datetime) and not frame["timestamp"].has_nulls()
        stamps = frame["timestamp"].dt.epoch("ns").to_numpy() if stamped else np.empty(0, dtype=np.int64)
        in_order = len(stamps) > 0 and bool((np.diff(stamps) > 0).all())
        if drift is None or not in_order or any(name not in frame.columns for name in needed):
            return [pl.Series(name, [None] * frame.height, dtype=pl.Float64) for name in names]
        close, vix, minutes = (_numbers(frame[name], "generate_predictions") for name in needed[1:])
        # When the VIX in force became known, up to a constant: whether a row marks its start or its end is the same.
        vix_known_at = np.round(stamps / 1e9 - 60.0 * minutes, 3)
        forecasts = (_numbers(outputs[name], "generate_predictions") for name in FORECASTS)
        values = dict(zip(JUDGED, drift.walk(close, vix, vix_known_at, *forecasts), strict=True))
        if catalogue.names:
            steps = np.diff(stamps)
            plan = make_plan(
                catalogue,
                [name for name in JUDGED if name in {column.name for column in catalogue.inputs}],
                bar_minutes=float(steps.min()) / 60e9 if len(steps) else 1.0,
                tick_size=market(self._workspace).instrument.tick_size,
            )
            values |= zip(plan.features, FeatureEngine(plan).batch(stamps, values), strict=True)
        return [pl.Series(name, values[name]).fill_nan(None) for name in names]

    def _outputs(
        self, frame: pl.DataFrame, missing: Missing, models: Sequence[OnnxModel], where: str
    ) -> tuple[dict[str, pl.Series], pl.Series]:
        if missing not in ("error", "impute"):
            raise DataError(f"missing={missing!r} is not known", where=where, hint="say 'error' or 'impute'")
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
        for code, count in sorted(Counter(refused[refused != Reason.NONE].tolist()).items()):
            name = Reason(code).name
            self.refusals[name] = self.refusals.get(name, 0) + count
        return outputs, pl.Series(IMPUTED, imputed)


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
        ``cluster_id`` (KMeans label), ``imputed``. The file holds the first four, its instants in UTC; a ``timestamp``
        without a time zone is UTC.

    Raises
    ------
    ModelError, DataError
        As for :meth:`NeuralPipeline.generate_predictions`.
    """
    workspace = Workspace.current(workspace)
    found = _pipeline(workspace).encode(data, missing=missing)
    at, kind = pl.col("timestamp"), found.schema["timestamp"]
    if isinstance(kind, pl.Datetime):
        utc = at if kind.time_zone is None else at.dt.convert_time_zone("UTC")
        at = utc.dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
    fill(workspace.data / LATENT_FILE, found.select(at, *LATENT).write_csv)
    return found


_PIPELINES: Final[dict[Path, tuple[Any, NeuralPipeline]]] = {}


def _pipeline(workspace: Workspace) -> NeuralPipeline:
    """The pipeline of a workspace, loaded once for as long as its models and its catalogue stay the same."""
    models = workspace.data / "models"
    files = (*_model_files(models), *models.glob("served.json"), workspace.config("feature_sets.yaml"))
    state = tuple((path, stamp(path)) for path in files)
    held = _PIPELINES.get(workspace.root)
    if held is None or held[0] != state:
        held = _PIPELINES[workspace.root] = (state, NeuralPipeline(workspace))
    return held[1]


def _over(catalogue: catalogues.Catalogue, names: Collection[str]) -> catalogues.Catalogue:
    """The catalogue without the features that need more than these inputs, and without those that are these inputs."""
    inputs = {column.name for column in catalogue.inputs}
    kept = {name for name, origins in rests_on(catalogue).items() if name not in inputs and origins <= set(names)}
    auxiliary = tuple(column for column in catalogue.auxiliary if column.name in kept)
    features = tuple(feature for feature in catalogue.features if feature.name in kept)
    return catalogue.model_copy(update={"auxiliary": auxiliary, "features": features}).with_kernels(catalogue.own)


def _model_files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("[a-z]*.onnx"), *folder.glob("[a-z]*.manifest.json")])


def _in_order(frame: pl.DataFrame, where: str) -> pl.DataFrame:
    """The frame, whose ``timestamp`` must ascend, if it has one: a state carried through other rows is of no market."""
    if "timestamp" in frame.columns and frame.height > 1:
        instants = isinstance(frame.schema["timestamp"], pl.Datetime | pl.Date)
        late = frame["timestamp"].diff() <= dt.timedelta(0) if instants else pl.Series([False])
        if late.any():
            row = int(late.arg_max() or 0)
            raise DataError(
                f"row {row} of {frame.height:,} is of {frame['timestamp'][row]}, and the row before it of "
                f"{frame['timestamp'][row - 1]}",
                where=where,
                hint="sort the frame by timestamp, and drop doubles; bars of several symbols need a column 'symbol'",
                then="nothing was predicted",
            )
    return frame


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
