"""The models at work in an engine: what is forecast from a bar's row is written into that row.

A forecast made from the row of bar t is a column of row t, in a frame and live: the model reads the row, then the row
gets its columns. The numbers that judge the forecasts (:class:`mia_models.drift.Drift`) rest on errors that are known
at the bar, and on none of its own forecasts. So they are held as inputs before the row is computed, and what the
catalogue derives from them (``confidence_drop_rate``) is computed with it.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mia_fast.features.plan import Plan
from mia_models.drift import FORECASTS, OUTPUTS, Drift

if TYPE_CHECKING:
    from mia_fast.features.engine import FeatureEngine
    from mia_models.session import OnnxModel

Floats = NDArray[np.float64]

TABLE: Final = "models"
PREDICTED_VIX: Final = "predicted_vix"
PROBABILITIES: Final = ("regime_prob_trend", "regime_prob_range", "regime_prob_defensive")
"""What the networks say of the regimes, in the policy's order."""


def models_digest(models: Sequence[OnnxModel]) -> str | None:
    """What the models are known by: the SHA-256 of the graph, of several one over theirs in order; None of none."""
    graphs = [model.manifest.graph_sha256 for model in models]
    return hashlib.sha256("".join(graphs).encode()).hexdigest() if len(graphs) > 1 else next(iter(graphs), None)


class Forecasts:
    """The models of an engine, with their states and the errors they made.

    Parameters
    ----------
    models
        In order: of two that give the same output, the later one counts.
    drift
        Judges the forecasts; None where the models do not say what errors to expect.
    features
        The engine whose rows they read, with the models' inputs among its columns.
    brought
        Columns that the bars bring: they stand, whatever a model says.

    Raises
    ------
    ModelError
        An input of a model is not among the columns.

    Attributes
    ----------
    values : numpy.ndarray
        Float64, all outputs of the last row by :attr:`names`; NaN where refused.
    """

    def __init__(
        self,
        models: Sequence[OnnxModel],
        drift: Drift | None,
        features: FeatureEngine,
        brought: Collection[str] = (),
    ) -> None:
        plan = features.plan
        self.models, self.drift = tuple(models), drift
        self.sha256 = models_digest(models)
        self.names = tuple(dict.fromkeys(name for model in models for name in model.outputs))
        """All outputs, whether the catalogue has them as features or not."""
        places = {name: k for k, name in enumerate(self.names)}
        self.values: Floats = np.full(len(self.names), np.nan)
        self._steps = [
            (model, model.columns_in(plan.outputs), np.array([places[name] for name in model.outputs]))
            for model in models
        ]
        rows = {name: k for k, name in enumerate(plan.outputs)}
        self.written = tuple(name for name in self.names if name in plan.features and name not in brought)
        """The outputs that are features of the row."""
        self._to = np.array([rows[name] for name in self.written], dtype=np.intp)
        self._from = np.array([places[name] for name in self.written], dtype=np.intp)
        self._answers = np.empty(len(self.written))
        self._vix_at = places.get(PREDICTED_VIX)
        self._vix_model = next((model for model in reversed(models) if PREDICTED_VIX in model.outputs), None)
        known = all(name in places for name in PROBABILITIES)
        self._regime_at = [places[name] for name in PROBABILITIES] if known else None
        held = plan.held.get(TABLE, ())
        judged = [name for name in OUTPUTS if name in held and name not in brought]
        self._judged_from = np.array([OUTPUTS.index(name) for name in judged], dtype=np.intp)
        self._judged_to = np.array([held.index(name) for name in judged], dtype=np.intp)
        self.judged = tuple(judged)
        """What the plan reads of the drift's numbers."""
        self._held = features.held(TABLE)
        daily = plan.held.get("daily", ())
        self._daily = features.held("daily")
        self._vix_in_force = [daily.index(name) if name in daily else None for name in ("vix", "vix_known_at")]
        self._forecasts_at = [places.get(name) for name in FORECASTS]

    def see(self, close: float) -> None:
        """Before a bar's row: hold what the errors known at this bar say; ``close`` as the features see it."""
        drift = self.drift
        if drift is None:
            return
        vix, known_at = (math.nan if k is None else self._daily[k] for k in self._vix_in_force)
        self._held[self._judged_to] = drift.see(close, vix, known_at)[self._judged_from]

    def step(self, row: Floats) -> None:
        """After it: forecast from the bar's row (outputs,), and write the features among the forecasts into it."""
        values = self.values
        for model, at, places in self._steps:
            np.take(row, at, out=model.row, mode="clip")
            values[places] = model.step(model.row)
        self.write(row)
        if self.drift is not None:
            self.drift.expect(*self._judged())

    def write(self, row: Floats) -> None:
        """Write the features among the last forecasts into a row (outputs,)."""
        np.take(self.values, self._from, out=self._answers, mode="clip")
        row[self._to] = self._answers

    def catch_up(self, matrix: Floats, close: Floats, vix: Floats, vix_known_at: Floats) -> Floats:
        """Start anew and take a history, as :meth:`see` and :meth:`step` would have, bar by bar.

        Parameters
        ----------
        matrix
            (plan's outputs, n), n > 0: its rows.
        close, vix, vix_known_at
            (n,) as for :meth:`mia_models.drift.Drift.see`.

        Returns
        -------
        float64 (len(judged), n)
            :attr:`judged` at each bar.
        """
        found: dict[str, Floats] = {}
        for model, at, places in self._steps:
            answers = model.catch_up(np.ascontiguousarray(matrix[at].T))
            found |= {name: answers[:, k] for k, name in enumerate(model.outputs)}
            self.values[places] = answers[-1]
        if self.drift is None:
            return np.empty((0, matrix.shape[1]))
        self.drift.reset()
        unknown = np.full(matrix.shape[1], np.nan)
        judged = self.drift.walk(close, vix, vix_known_at, *(found.get(name, unknown) for name in FORECASTS))
        return judged[self._judged_from]

    @property
    def predicted_vix(self) -> float:
        """Index points; NaN where refused."""
        return math.nan if self._vix_at is None else float(self.values[self._vix_at])

    @property
    def regime(self) -> list[float] | None:
        """The probabilities of :data:`PROBABILITIES`, NaN where refused; None where no model gives them."""
        return None if self._regime_at is None else [float(self.values[k]) for k in self._regime_at]

    @property
    def refusal(self) -> str | None:
        """Why there is no ``predicted_vix``, or no other output of its model; None where all are there."""
        found = None if self._vix_model is None else self._vix_model.refusal
        return None if found is None else str(found)

    def lacking(self, plan: Plan, origins: Mapping[str, frozenset[str]]) -> dict[str, tuple[str, ...]]:
        """The features that stay null for want of a forecast, with the input columns that it lacks.

        ``origins`` says what the catalogue's columns rest on (:func:`mia_fast.features.plan.rests_on`).
        """
        lacks: dict[str, tuple[str, ...]] = {}
        for model in self.models:
            for name in model.outputs:
                needed = dict.fromkeys(lack for one in model.required(name) for lack in plan.missing.get(one, ()))
                lacks[name] = tuple(needed)
        lost = {name: lacks[name] for name in self.written if lacks[name]}
        for name, forecast in zip(OUTPUTS, (FORECASTS[0], FORECASTS[0], FORECASTS[1]), strict=True):
            if name in self.judged and lacks.get(forecast):
                lost[name] = lacks[forecast]
        late = [name for name in OUTPUTS if name in lost]
        for name in plan.features:
            wants = [judged for judged in late if judged in origins[name]]
            if wants and name not in lost:
                lost[name] = tuple(dict.fromkeys(lack for judged in wants for lack in lost[judged]))
        return lost

    def save(self) -> dict[str, Any]:
        """The states of models and drift, JSON-safe."""
        return {
            "models": [base64.b64encode(model.save()).decode() for model in self.models],
            "drift": None if self.drift is None else base64.b64encode(self.drift.save()).decode(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from :meth:`save`.

        Raises
        ------
        ModelError
            The state is damaged, or of other models.
        """
        for model, state in zip(self.models, saved["models"], strict=True):
            model.restore(base64.b64decode(state))
        if self.drift is not None:
            self.drift.restore(base64.b64decode(saved["drift"]))

    def _judged(self) -> tuple[float, float]:
        vix, volatility = (math.nan if k is None else self.values[k] for k in self._forecasts_at)
        return vix, volatility
