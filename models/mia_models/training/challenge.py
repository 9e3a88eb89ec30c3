"""A challenger of the served ``predicted_vix``: trained on the recent past, judged where neither model has been."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mia_models.errors import ModelError
from mia_models.manifest import Metric
from mia_models.training import evaluate
from mia_models.training.predicted_vix import SEED, STRIDE_MINUTES
from mia_models.training.response import INPUTS, Response, fit
from mia_models.training.samples import Floats, Samples, select

CHALLENGER, CHAMPION = "challenger", "champion"
PERIOD = "challenge"
METHOD = (
    "varying-coefficient regression with 27 coefficients, least absolute error, on the recent sessions and the bars of "
    "stored patterns, shrunk towards the daily history of 2004 to 2018"
)
PATTERNS_LEAST = 20
"""Fewer stored patterns among the judged bars say nothing by themselves."""


@dataclass(frozen=True)
class Challenge:
    """A trained challenger and how it fared.

    Attributes
    ----------
    model, rows
        The fit, and the rows it was fitted on.
    overall
        Mean absolute errors of both over all judged bars, with the challenger's gain over the champion.
    patterns
        The same over the judged bars at which a pattern was stored; None if there are too few.
    """

    model: Response
    rows: Samples
    overall: Metric
    patterns: Metric | None

    @property
    def wins(self) -> bool:
        """Better by more than chance over all judged bars, and not worse at the stored patterns."""
        at_patterns = self.patterns is None or self.patterns.gain >= 0.0
        return self.overall.gain_low > 0.0 and at_patterns


def challenge(
    samples: Samples,
    prior: Floats,
    champion: Callable[[Floats], Floats],
    champion_last: int,
    patterns: NDArray[np.int64],
    *,
    window_sessions: int,
    judged_sessions: int,
) -> Challenge:
    """Train a challenger, and judge both models on the last sessions.

    Parameters
    ----------
    samples
        One row per bar with at least the columns :data:`~mia_models.training.response.INPUTS`.
    prior
        float64 (9,), from :func:`mia_models.training.prior.from_daily`.
    champion
        Predictions of the served model, float64 (n,), for a matrix of its inputs, float64 (n, 7).
    champion_last
        The last target day that the champion was fitted on, days since 1970.
    patterns
        int64 (p, 2): New York date (days since 1970) and minute of the bars at which patterns were stored. They are
        trained on beside every 15th minute, and judged apart.
    window_sessions, judged_sessions
        How many sessions are trained on, and on how many sessions after them both are judged.

    Raises
    ------
    ModelError
        The rows lack a column, are too few, or end so early that the champion has seen what it would be judged on.
    """
    rows = select(samples, INPUTS)
    days = np.unique(rows.target_day)
    needed = 60 + judged_sessions
    if len(days) < needed:
        raise ModelError(
            f"the rows cover {len(days)} sessions, a challenge needs {needed}",
            where="samples",
            hint="give bars of more sessions",
            then="nothing was trained; the champion stays",
        )
    first_judged = int(days[-judged_sessions])
    if champion_last >= first_judged:
        raise ModelError(
            f"the champion has seen up to {_date(champion_last)}, the challenge would begin on {_date(first_judged)}",
            where="samples",
            hint=f"come back with bars of {judged_sessions} sessions that the champion has not seen",
            then="nothing was trained; the champion stays",
        )
    at_pattern = np.isin(rows.local_day * 1440 + rows.local_minute, patterns[:, 0] * 1440 + patterns[:, 1])
    first = int(days[max(0, len(days) - judged_sessions - window_sessions)])
    recent = (rows.target_day >= first) & (rows.target_day < first_judged - evaluate.PURGED_DAYS)
    chosen = rows.take(recent & (at_pattern | (rows.local_minute % STRIDE_MINUTES == 0)))
    model = fit(chosen.columns, chosen.target, prior)
    judged = rows.target_day >= first_judged
    predictions = {
        CHALLENGER: model.predict(rows.columns),
        CHAMPION: champion(np.column_stack([rows.columns[name] for name in INPUTS])),
    }
    overall = evaluate.metric(PERIOD, "all bars", judged, rows, predictions, CHALLENGER, (CHAMPION,), SEED)
    if overall is None:
        raise ModelError(
            "the champion refuses every judged bar",
            where="samples",
            hint="check the bars and the VIX of the last sessions",
            then="nothing was written; the champion stays",
        )
    found = None
    if int((judged & at_pattern).sum()) >= PATTERNS_LEAST:
        found = evaluate.metric(
            PERIOD, "stored patterns", judged & at_pattern, rows, predictions, CHALLENGER, (CHAMPION,), SEED
        )
    return Challenge(model, chosen, overall, found)


def _date(day: int) -> str:
    return str(np.datetime64(day, "D"))
