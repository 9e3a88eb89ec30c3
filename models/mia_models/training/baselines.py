"""What ``predicted_vix`` is measured against: persistence, a linear response, and a HAR regression.

The two regressions are fitted by least squares in index points, one per half hour of the day, which is the strongest
form of each: their coefficients may differ between 10:30 and 15:30.
"""

from __future__ import annotations

import numpy as np

from mia_models.training.response import MINUTES_PER_DAY
from mia_models.training.samples import Floats, Integers, Samples

PERSISTENCE, LINEAR, HAR = "persistence", "linear response", "HAR, asymmetric"
NAMES = (PERSISTENCE, LINEAR, HAR)
_SLOT_MINUTES = 30.0
_FEWEST_ROWS = 20


def predict(train: Samples, test: Samples, name: str) -> Floats:
    """Predictions of the baseline ``name`` for ``test``, fitted on ``train``; index points, float64 (n,)."""
    vix = test.columns["vix_term_1m"]
    if name == PERSISTENCE:
        return vix.copy()
    past, present = _design(train, name), _design(test, name)
    change = train.target - train.columns["vix_term_1m"]
    overall = np.linalg.lstsq(past, change, rcond=None)[0]
    slots_past, slots = _slot(train), _slot(test)
    prediction = vix + present @ overall
    for slot in np.unique(slots):
        rows = slots_past == slot
        if rows.sum() >= _FEWEST_ROWS:
            here = slots == slot
            prediction[here] = vix[here] + present[here] @ np.linalg.lstsq(past[rows], change[rows], rcond=None)[0]
    return prediction


def _design(samples: Samples, name: str) -> Floats:
    c = samples.columns
    vix, move = c["vix_term_1m"], c["es_return_since_vix_close"] * c["vix_term_1m"]
    if name == LINEAR:
        return move[:, None]
    return np.stack(
        [np.ones_like(vix), move, np.minimum(move, 0.0), vix, c["vix_mean_5"], c["vix_rolling_mean"]], axis=1
    )


def _slot(samples: Samples) -> Integers:
    """Half hours since 16:15, so that 10:30 lies in the middle of one."""
    minutes = samples.columns["minutes_since_vix_close"] % MINUTES_PER_DAY
    return np.floor(minutes / _SLOT_MINUTES).astype(np.int64)
