"""How well the forecasts have done so far: errors as they become known, and what they say of the model.

Fed bar by bar with what was predicted and what is seen, it keeps only what it needs: the forecasts whose outcome is
still ahead, and two windows of errors; its state can be saved. Live bars and blocks of them run through the same kernel
(:mod:`mia_kernels.drift`) and give the same bits.

A bar's numbers rest on the errors that are known at it, and none of its own forecasts is: so they are there before the
bar's forecasts are made (:meth:`Drift.see`, then :meth:`Drift.expect`).

Each close of the VIX judges all forecasts made since the one before it (of more than :data:`WINDOW`, the last so many),
as the card's error does: those of the morning are further off than those of the last minutes.

* ``error_rolling_std``: standard deviation over the last :data:`SESSIONS` closes of their mean errors (close less
  forecast), index points.
* ``prediction_confidence``: 0..1. ``1 / (1 + (e / m)^2)`` with e the mean over the last :data:`SESSIONS` closes of
  their mean absolute errors and m that of the hold-out: one half while the forecasts are as good as on the card.
* ``model_drift_score``: 0..1. r is the mean absolute log error of ``predicted_volatility`` over the last
  :data:`WINDOW` matured forecasts, over that of the hold-out; the score is ``clip(r - 1, 0, 1)``: 0 while the errors
  are no larger than when the model was judged, 1 when they are twice as large.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mia_kernels import drift as kernels
from mia_models.errors import ModelError
from mia_models.manifest import Manifest

OUTPUTS: Final = ("prediction_confidence", "error_rolling_std", "model_drift_score")
SESSIONS, FEWEST_SESSIONS = kernels.SESSIONS, kernels.FEWEST_SESSIONS
WINDOW, FEWEST = kernels.WINDOW, kernels.FEWEST
"""A day of minutes."""
AHEAD = kernels.AHEAD
"""Bars that ``predicted_volatility`` looks ahead; so many stand between a forecast and its error."""
BARS_PER_YEAR = kernels.BARS_PER_YEAR
FORECASTS: Final = ("predicted_vix", "predicted_volatility")
"""What is judged."""

Floats = NDArray[np.float64]


class Drift:
    """Errors of the forecasts seen so far.

    Parameters
    ----------
    vix_error
        Mean absolute error of ``predicted_vix`` to expect, index points.
    volatility_error
        Mean absolute log error of ``predicted_volatility`` to expect.

    Attributes
    ----------
    values
        float64 (3,), in the order of :data:`OUTPUTS`; NaN until there are errors enough. Overwritten by each
        :meth:`see`.
    """

    def __init__(self, vix_error: float, volatility_error: float) -> None:
        for name, value in (("vix_error", vix_error), ("volatility_error", volatility_error)):
            if not (math.isfinite(value) and value > 0):
                raise ModelError(
                    f"{name} is {value!r}",
                    where="drift",
                    hint="it is an error out of sample, from the manifest: finite and above 0",
                )
        self._expected = np.array([vix_error, volatility_error])
        self._state = kernels.initial_state()  # one array, so that a state is its bytes
        self._bar = np.empty(3)
        self.values: Floats = np.full(len(OUTPUTS), np.nan)

    @classmethod
    def of(cls, *manifests: Manifest) -> Drift:
        """With the errors that the manifests state for their last period, over all bars; a later manifest counts."""
        found: dict[str, float] = {}
        for manifest in manifests:
            for metric in manifest.metrics:
                if metric.view == "all bars":
                    found[metric.output] = metric.errors[metric.model]
        try:
            return cls(*(found[name] for name in FORECASTS))
        except KeyError as error:
            raise ModelError(
                f"the manifest states no error of {error.args[0]!r}",
                where=f"model {', '.join(manifest.name for manifest in manifests)}",
                hint="its metrics must cover predicted_vix and predicted_volatility",
            ) from error

    def reset(self) -> None:
        """Forget all errors."""
        self._state[:] = kernels.initial_state()
        self.values[:] = np.nan

    def see(self, close: float, vix: float, vix_known_at: float) -> Floats:
        """Take what is seen at a bar, in the order of time.

        Parameters
        ----------
        close
            The bar's close, index points.
        vix
            The last daily close of the VIX that is known at the bar; NaN if none is.
        vix_known_at
            When that close became known, any unit that ascends: a later one is a new close.

        Returns
        -------
        float64 (3,)
            :attr:`values`. The errors counted are those known at this bar.
        """
        self._bar[0], self._bar[1], self._bar[2] = close, vix, vix_known_at
        kernels.see(self._bar, self._state, self._expected, self.values)
        return self.values

    def expect(self, predicted_vix: float, predicted_volatility: float) -> None:
        """Take the forecasts of the bar seen last; NaN where refused."""
        kernels.expect(predicted_vix, predicted_volatility, self._state)

    def update(
        self, close: float, vix: float, vix_known_at: float, predicted_vix: float, predicted_volatility: float
    ) -> Floats:
        """:meth:`see` and :meth:`expect` of one bar."""
        self.see(close, vix, vix_known_at)
        self.expect(predicted_vix, predicted_volatility)
        return self.values

    def walk(
        self,
        close: ArrayLike,
        vix: ArrayLike,
        vix_known_at: ArrayLike,
        predicted_vix: ArrayLike,
        predicted_volatility: ArrayLike,
    ) -> Floats:
        """:meth:`update` of each bar of a block: (n,) each in, the numbers at each bar (3, n) out."""
        columns: Sequence[ArrayLike] = (close, vix, vix_known_at, predicted_vix, predicted_volatility)
        bars = np.ascontiguousarray(np.stack([np.asarray(column, dtype=np.float64) for column in columns]))
        out = np.empty((len(OUTPUTS), bars.shape[1]))
        kernels.walk(bars, self._state, self._expected, out)
        kernels.measure(self._state, self._expected, self.values)
        return out

    def save(self) -> bytes:
        """The state as bytes."""
        content = self._state.tobytes()
        return hashlib.sha256(content).digest() + content

    def restore(self, saved: bytes) -> None:
        """Go on from a saved state.

        Raises
        ------
        ModelError
            The bytes are damaged or of another version; the state stays as it was.
        """
        content = saved[32:]
        if hashlib.sha256(content).digest() != saved[:32] or len(content) != self._state.nbytes:
            raise ModelError(
                "the saved errors are damaged, or of another version",
                where="drift",
                hint="start without them: reset()",
                then="what was counted so far stays",
            )
        self._state[:] = np.frombuffer(content)
        kernels.measure(self._state, self._expected, self.values)
