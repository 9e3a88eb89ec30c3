"""How well the forecasts have done so far: errors as they become known, and what they say of the model.

Fed bar by bar with what was predicted and what is seen, it keeps only what it needs: the forecasts whose outcome is
still ahead, and two windows of errors. Plain NumPy; its state can be saved.

* ``error_rolling_std``: standard deviation of the errors of ``predicted_vix`` over the last :data:`SESSIONS` closes,
  index points. An error is the close less the last forecast made before it became known.
* ``model_drift_score``: 0..1. r is the mean absolute log error of ``predicted_volatility`` over the last
  :data:`WINDOW` matured forecasts, over that of the hold-out; the score is ``clip(r - 1, 0, 1)``: 0 while the errors
  are no larger than when the model was judged, 1 when they are twice as large.
* ``prediction_confidence``: 0..1. ``1 / (1 + (e / m)^2)`` with e the root mean square of the last VIX errors and m
  what the hold-out's mean absolute error stands for, ``m = sqrt(pi / 2) * error``: one half while the forecasts are as
  good as on the card.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mia_models.errors import ModelError
from mia_models.manifest import Manifest

OUTPUTS: Final = ("prediction_confidence", "error_rolling_std", "model_drift_score")
SESSIONS: Final = 20
FEWEST_SESSIONS: Final = 5
WINDOW: Final = 1380
"""A day of minutes."""
FEWEST: Final = 120
AHEAD: Final = 30
"""Bars that ``predicted_volatility`` looks ahead; so many stand between a forecast and its error."""
BARS_PER_YEAR: Final = 252 * 23 * 60

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
        :meth:`update`.
    """

    def __init__(self, vix_error: float, volatility_error: float) -> None:
        for name, value in (("vix_error", vix_error), ("volatility_error", volatility_error)):
            if not (math.isfinite(value) and value > 0):
                raise ModelError(
                    f"{name} is {value!r}",
                    where="drift",
                    hint="it is an error out of sample, from the manifest: finite and above 0",
                )
        self._expected = (vix_error, volatility_error)
        # One array, so that a state is its bytes: counters, then the windows.
        self._state = np.zeros(8 + SESSIONS + 2 * AHEAD + WINDOW)
        self._head = self._state[:8]
        self._vix = self._state[8 : 8 + SESSIONS]
        at = 8 + SESSIONS
        self._forecasts, self._moves = self._state[at : at + AHEAD], self._state[at + AHEAD : at + 2 * AHEAD]
        self._errors = self._state[at + 2 * AHEAD :]
        self.values: Floats = np.full(len(OUTPUTS), np.nan)
        self.reset()

    @classmethod
    def of(cls, manifest: Manifest) -> Drift:
        """With the errors that the manifest states for its last period, over all bars."""
        found: dict[str, float] = {}
        for metric in manifest.metrics:
            if metric.view == "all bars":
                found[metric.output] = metric.errors[metric.model]
        try:
            return cls(found["predicted_vix"], found["predicted_volatility"])
        except KeyError as error:
            raise ModelError(
                f"the manifest states no error of {error.args[0]!r}",
                where=f"model {manifest.name}",
                hint="its metrics must cover predicted_vix and predicted_volatility",
            ) from error

    def reset(self) -> None:
        """Forget all errors."""
        self._state[:] = 0.0
        # Bars seen; last log close; when the VIX in force became known; last forecast of it; counts of both errors.
        self._head[1:4] = np.nan
        self._forecasts[:] = np.nan
        self._moves[:] = np.nan
        self.values[:] = np.nan

    def update(
        self, close: float, vix: float, vix_known_at: float, predicted_vix: float, predicted_volatility: float
    ) -> Floats:
        """Take one bar, in the order of time.

        Parameters
        ----------
        close
            The bar's close, index points.
        vix
            The last daily close of the VIX that is known at the bar; NaN if none is.
        vix_known_at
            When that close became known, any unit that ascends: a later one is a new close.
        predicted_vix, predicted_volatility
            The bar's forecasts; NaN where refused.

        Returns
        -------
        float64 (3,)
            :attr:`values`. The errors counted are those known at this bar.
        """
        head = self._head
        if math.isfinite(vix) and math.isfinite(vix_known_at):
            if vix_known_at > head[2] and math.isfinite(head[3]):
                self._vix[int(head[4]) % SESSIONS] = vix - head[3]
                head[4] += 1
                head[3] = math.nan
            head[2] = vix_known_at
        if math.isfinite(predicted_vix):
            head[3] = predicted_vix
        bar = int(head[0])
        place = bar % AHEAD
        log_close = math.log(close) if close > 0 else math.nan
        self._moves[place] = log_close - head[1]
        realised = math.sqrt(float((self._moves**2).sum()) * BARS_PER_YEAR / AHEAD)
        forecast = self._forecasts[place]  # made AHEAD bars ago
        if realised > 0 and forecast > 0:  # false for NaN
            error = abs(math.log(forecast / realised))
            at = int(head[5]) % WINDOW
            self._errors[at] = error
            head[5] += 1
        self._forecasts[place] = predicted_volatility
        head[0], head[1] = bar + 1, log_close
        self._measure()
        return self.values

    def _measure(self) -> None:
        closes, matured = min(int(self._head[4]), SESSIONS), min(int(self._head[5]), WINDOW)
        if closes >= FEWEST_SESSIONS:
            errors = self._vix[:closes]
            typical = math.sqrt(math.pi / 2.0) * self._expected[0]
            self.values[0] = 1.0 / (1.0 + float((errors**2).mean()) / typical**2)
            self.values[1] = errors.std()
        if matured >= FEWEST:
            ratio = float(self._errors[:matured].mean()) / self._expected[1]
            self.values[2] = min(max(ratio - 1.0, 0.0), 1.0)

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
        self.values[:] = np.nan
        self._measure()
