r"""The model behind ``predicted_vix``: a varying-coefficient regression on the VIX-scaled ES return.

With v the last known VIX close and r the log return of ES since then,

.. math:: \log\frac{\hat V}{v} = \sum_j \Big(b_{0j} + \sum_i b_{ij}\, x_i\Big)\, \phi_j(t)

where x are the eight standardised terms of :func:`terms` and phi = (1, t1, t2) is a broken line over the time since
the last close (:func:`basis`): Hastie and Tibshirani (1993), "Varying-coefficient models". The return enters in units
of the daily move that v itself implies, v / (100 sqrt(252)), with a separate slope for falls (the asymmetry of the
VIX's response) and an interaction with the distance to the VIX's monthly mean. The averages of the VIX over 1, 5 and
20 days and of realised volatility over 1 and 5 days are the terms of a HAR model (Corsi 2009).

Fitted to the absolute error by iteratively reweighted least squares: the score is the mean absolute error, and March
2020 must not decide the coefficients alone. A ridge penalty shrinks the coefficients towards those of the daily history
before 2019 (:mod:`mia_models.training.prior`), constant over the day.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mia_models.training.samples import Floats

INPUTS = (
    "vix_term_1m",
    "vix_mean_5",
    "vix_rolling_mean",
    "vol_historical_1d",
    "vol_historical_5d",
    "es_return_since_vix_close",
    "minutes_since_vix_close",
)
UNITS = ("index points", "index points", "index points", "fraction", "fraction", "log return", "minutes")
TERMS = ("vix_5d", "vix_20d", "realised_1d", "realised_5d", "move", "fall", "move_x_vix_20d", "nights")

DAILY = 100.0 * np.sqrt(252.0)
"""VIX points (annual percent) per unit of daily log return."""
MINUTES_PER_DAY = 1440.0
OPEN_MINUTE = 1035.0
"""From 16:15 to 09:30 New York, where the options whose prices make the VIX trade actively again."""
MOVE_BOUND = 12.0
"""The ES return is followed up to this many VIX-implied daily moves (March 2020: below 5)."""
RESPONSE_BOUND = 1.1
"""The prediction stays within a factor e**1.1 = 3.0 of the last close (record day, 2018-02-05: 2.16)."""
RIDGE = 0.1
SMALLEST_RESIDUAL = 2e-3
"""Below it the absolute error is rounded to a parabola, so that the weights stay finite."""


@dataclass(frozen=True)
class Response:
    """A fitted model: the terms' bounds, centre and scale, float64 (8,), and coefficients, float64 (9, 3)."""

    lowest: Floats
    highest: Floats
    centre: Floats
    scale: Floats
    coefficients: Floats

    def predict(self, columns: Mapping[str, Floats]) -> Floats:
        """Predicted VIX close, index points, float64 (n,). The graph's twin in NumPy."""
        x = (np.clip(terms(columns), self.lowest, self.highest) - self.centre) / self.scale
        slopes = x @ self.coefficients[1:] + self.coefficients[0]
        phi = basis(columns["minutes_since_vix_close"])
        response = slopes[:, 0] + slopes[:, 1] * phi[:, 1] + slopes[:, 2] * phi[:, 2]
        prediction: Floats = columns["vix_term_1m"] * np.exp(np.clip(response, -RESPONSE_BOUND, RESPONSE_BOUND))
        return prediction


def terms(columns: Mapping[str, Floats]) -> Floats:
    """The eight terms of :data:`TERMS` before standardisation, float64 (n, 8)."""
    vix = columns["vix_term_1m"]
    move = columns["es_return_since_vix_close"] * DAILY / vix
    month = np.log(columns["vix_rolling_mean"] / vix)
    return np.stack(
        [
            np.log(columns["vix_mean_5"] / vix),
            month,
            np.log(100.0 * columns["vol_historical_1d"] / vix),
            np.log(100.0 * columns["vol_historical_5d"] / vix),
            move,
            np.minimum(move, 0.0),
            move * month,
            np.floor(columns["minutes_since_vix_close"] / MINUTES_PER_DAY),
        ],
        axis=1,
    )


def basis(minutes: Floats) -> Floats:
    """(1, share of the way from the close to 09:30, share of the way from 09:30 to 16:15), float64 (n, 3)."""
    days = minutes / MINUTES_PER_DAY
    clock = (days - np.floor(days)) * MINUTES_PER_DAY
    overnight = np.clip(clock / OPEN_MINUTE, 0.0, 1.0)
    session = np.clip((clock - OPEN_MINUTE) / (MINUTES_PER_DAY - OPEN_MINUTE), 0.0, 1.0)
    return np.stack([np.ones_like(clock), overnight, session], axis=1)


def fit(columns: Mapping[str, Floats], target: Floats, prior: Floats) -> Response:
    """Fit to rows with finite inputs and targets.

    Parameters
    ----------
    columns, target
        float64 (n,) each.
    prior
        float64 (9,): intercept and coefficients of the raw terms towards which the ridge shrinks.
    """
    raw = terms(columns)
    lowest, highest = raw.min(axis=0), raw.max(axis=0)
    for name in ("move", "fall", "move_x_vix_20d"):
        lowest[TERMS.index(name)], highest[TERMS.index(name)] = -MOVE_BOUND, MOVE_BOUND
    centre, scale = raw.mean(axis=0), raw.std(axis=0)
    x = np.column_stack([np.ones(len(raw)), (raw - centre) / scale])
    phi = basis(columns["minutes_since_vix_close"])
    design = (x[:, :, None] * phi[:, None, :]).reshape(len(raw), -1)
    expected = prior[0] + raw @ prior[1:]
    response = np.log(target / columns["vix_term_1m"])
    coefficients = least_absolute(design, response - expected, RIDGE).reshape(x.shape[1], phi.shape[1])
    coefficients[0, 0] += prior[0] + centre @ prior[1:]
    coefficients[1:, 0] += prior[1:] * scale
    return Response(lowest, highest, centre, scale, coefficients)


def least_absolute(design: Floats, y: Floats, ridge: float) -> Floats:
    """Coefficients that minimise the mean absolute error plus a ridge penalty, float64 (k,).

    Iteratively reweighted least squares (Schlossmacher 1973); ``ridge`` is relative to the design's weighted power.
    """
    size = np.sqrt((design**2).mean(axis=0))
    z = design / size
    weight = np.ones(len(y))
    solution = np.zeros(z.shape[1])
    for _ in range(60):
        weighted = z * weight[:, None]
        gram = weighted.T @ z
        gram[np.diag_indices_from(gram)] += ridge * weight.sum()
        previous, solution = solution, np.linalg.solve(gram, weighted.T @ y)
        if np.abs(solution - previous).max() < 1e-7:
            break
        weight = 1.0 / np.maximum(np.abs(y - z @ solution), SMALLEST_RESIDUAL)
    result: Floats = solution / size
    return result
