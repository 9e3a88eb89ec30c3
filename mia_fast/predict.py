"""Predictions for frames of features: the contract's ``NeuralPipeline``."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mia_fast import registry
from mia_fast.errors import DataError
from mia_fast.features import catalogue as catalogues
from mia_fast.loading import load_model
from mia_fast.telemetry import operation
from mia_fast.workspace import Workspace
from mia_models.session import Reason, missing_features

MODEL = "predicted_vix"
IMPUTED = "imputed"

Floats = NDArray[np.float64]


class NeuralPipeline:
    """The served models of a workspace, loaded once.

    A model under ``data/models`` of the workspace is taken in place of the shipped one (:mod:`mia_fast.registry`); if
    its files are damaged, that is an error, not a reason to fall back.

    Parameters
    ----------
    workspace
        Whose models and catalogue apply; by default the current one.

    Raises
    ------
    ModelError
        The model's files are damaged or do not belong together, or the workspace's catalogue computes one of its inputs
        otherwise than in training.

    Attributes
    ----------
    model
        The loaded model; a live engine calls its ``step`` for each bar.
    auxiliary
        The model's inputs that are not among the catalogue's features; ``generate_features`` and ``make_plan`` give
        them when they are asked for by their argument ``auxiliary``.
    refusals
        How many rows of the last call were refused, by reason.
    """

    def __init__(self, workspace: Workspace | None = None) -> None:
        workspace = workspace or Workspace.current()
        self.model = load_model(workspace, MODEL, registry.folder(workspace, MODEL))
        self.refusals: dict[str, int] = {}
        catalogue = catalogues.read(workspace)
        self.auxiliary = tuple(name for name in self.model.features if name not in catalogue.names)

    @operation("neural_pipeline", "generate_predictions")
    def generate_predictions(self, data: Any, *, missing: Literal["error", "impute"] = "error") -> pl.DataFrame:
        """Add ``predicted_vix`` to a frame of features.

        Parameters
        ----------
        data
            Any table that speaks the Arrow PyCapsule interface, with the model's features among its columns.
        missing
            ``"error"``: absent features are an error, and a row with a null or NaN among them has no prediction.
            ``"impute"``: absent columns, nulls and NaN take the median of the training rows, and the column ``imputed``
            says for which rows that was done. An infinity is not missing: it is refused either way.

        Returns
        -------
        polars.DataFrame
            The frame with ``predicted_vix`` in index points (and ``imputed``); null where the prediction was refused.
            A column of that name that was there is replaced.

        Raises
        ------
        ModelError
            Features are absent; the error names them.
        DataError
            ``data`` is no table, or a feature is not numeric.
        """
        if missing not in ("error", "impute"):
            raise DataError(
                f"missing={missing!r} is not known", where="generate_predictions", hint="say 'error' or 'impute'"
            )
        frame = _frame(data)
        model = self.model
        absent = [name for name in model.features if name not in frame.columns]
        if absent and missing == "error":
            raise missing_features(
                model.manifest,
                absent,
                frame.columns,
                hint=f"compute them with generate_features(bars, cross=daily_vix, auxiliary={list(self.auxiliary)}), "
                "or pass missing='impute' to take the training medians and flag the rows",
            )
        matrix = np.full((frame.height, len(model.features)), np.nan)
        for k, name in enumerate(model.features):
            if name in frame.columns:
                matrix[:, k] = _numbers(frame[name])
        added: list[pl.Series] = []
        if missing == "impute":
            gaps = np.isnan(matrix)
            medians = np.array([part.median for part in model.manifest.inputs])
            matrix = np.where(gaps, medians, matrix)
            added.append(pl.Series(IMPUTED, gaps.any(axis=1)))
        predictions, reasons = model.predict_with_reasons(matrix)
        counts = Counter(reasons[reasons != Reason.NONE].tolist())
        self.refusals = {Reason(code).name: count for code, count in sorted(counts.items())}
        values = [pl.Series(name, predictions[:, k]).fill_nan(None) for k, name in enumerate(model.outputs)]
        return frame.with_columns(*values, *added)


def _frame(data: Any) -> pl.DataFrame:
    """The caller's table as a Polars frame, without a copy where its memory allows."""
    if isinstance(data, pl.DataFrame):
        return data
    if not hasattr(data, "__arrow_c_stream__"):
        raise DataError(
            f"a {type(data).__name__} is not a table",
            where="generate_predictions",
            hint="pass a Polars or pandas frame, a pyarrow table or a DuckDB relation",
            then="nothing was predicted",
        )
    return pl.DataFrame(data)


def _numbers(series: pl.Series) -> Floats:
    """Float64 values with NaN for null."""
    if not (series.dtype.is_numeric() or series.dtype == pl.Null):
        raise DataError(
            f"the feature {series.name!r} is {series.dtype}, not a number",
            where="generate_predictions",
            hint="cast the column to a float",
            then="nothing was predicted",
        )
    values: Floats = series.cast(pl.Float64).fill_null(np.nan).to_numpy()
    return values
