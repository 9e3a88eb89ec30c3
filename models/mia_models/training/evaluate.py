"""Out-of-sample errors: walk-forward by quarter, then one hold-out, with a bootstrap by session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mia_models.manifest import Metric
from mia_models.training.samples import Floats, Mask, Samples

Fitter = Callable[[Samples, Samples], Floats]
"""Takes training and test rows, gives predictions for the test rows."""

VIEWS = (("10:30", 630), ("13:00", 780), ("15:30", 930))
_STALE_MINUTES = 15
PURGED_DAYS = 1
DRAWS = 2000


@dataclass(frozen=True)
class Fold:
    """One test span of target days, [first, last), and the name of the period it counts towards."""

    period: str
    first: int
    last: int


def day(text: str) -> int:
    """Days since 1970 of an ISO date."""
    return int(np.datetime64(text, "D").astype(np.int64))


def quarters(first: str, last: str, name: Callable[[np.datetime64], str]) -> list[Fold]:
    """Calendar quarters from ``first`` to before ``last`` (ISO dates of quarter starts)."""
    starts = np.arange(np.datetime64(first, "M"), np.datetime64(last, "M"), 3)
    return [Fold(name(start), day(str(start) + "-01"), day(str(start + 3) + "-01")) for start in starts]


def out_of_sample(
    samples: Samples,
    training_rows: Mask,
    folds: list[Fold],
    fitters: Mapping[str, Fitter],
    progress: Callable[[str], None],
) -> dict[str, Floats]:
    """Predictions of each fitter for the rows of the folds, NaN elsewhere; float64 (n,) by name.

    For each fold the fitters see only rows whose target day lies before its first day, less the purge: the target looks
    at most one session ahead, and one session is left out.
    """
    result = {name: np.full(len(samples), np.nan) for name in fitters}
    for fold in folds:
        test = (samples.target_day >= fold.first) & (samples.target_day < fold.last)
        if not test.any():
            continue
        past = training_rows & (samples.target_day < fold.first - PURGED_DAYS)
        train, present = samples.take(past), samples.take(test)
        for name, fitter in fitters.items():
            progress(f"{fold.period}: {name}, {len(train):,} training rows")
            result[name][test] = fitter(train, present)
    return result


def seen_at(samples: Samples, minute: int) -> Mask:
    """The last row of each target day that is known by ``minute`` of that day in New York, at most 15 minutes old."""
    rows = np.flatnonzero(
        (samples.local_day == samples.target_day)
        & (samples.local_minute <= minute)
        & (samples.local_minute > minute - _STALE_MINUTES)
    )
    days = samples.target_day[rows]
    last = np.append(days[1:] != days[:-1], True)[: len(days)]
    chosen = np.zeros(len(samples), dtype=np.bool_)
    chosen[rows[last]] = True
    return chosen


def metric(
    period: str,
    view: str,
    rows: Mask,
    samples: Samples,
    predictions: Mapping[str, Floats],
    model: str,
    baselines: tuple[str, ...],
    seed: int,
) -> Metric | None:
    """Mean absolute errors over ``rows`` and the gain over the best baseline, with its interval; None without rows.

    The bootstrap draws whole target days with replacement, because the errors of a day share their target; the error is
    the mean over the bars of the drawn days. The best baseline is chosen in hindsight, which favours it.
    """
    rows = rows & np.all([np.isfinite(p) for p in predictions.values()], axis=0)
    if not rows.any():
        return None
    days, place = np.unique(samples.target_day[rows], return_inverse=True)
    count = np.bincount(place).astype(np.float64)
    sums = {name: np.bincount(place, np.abs(p[rows] - samples.target[rows])) for name, p in predictions.items()}
    errors = {name: float(s.sum() / count.sum()) for name, s in sums.items()}
    best = min(baselines, key=errors.__getitem__)
    draws = np.random.default_rng(seed).integers(0, len(days), (DRAWS, len(days)))
    ratio = sums[model][draws].sum(axis=1) / sums[best][draws].sum(axis=1)
    low, high = np.quantile(1.0 - ratio, [0.025, 0.975])
    return Metric(
        output="predicted_vix",
        measure="mean absolute error, index points",
        model=model,
        period=period,
        view=view,
        sessions=len(days),
        errors={name: round(value, 4) for name, value in errors.items()},
        best_baseline=best,
        gain=round(1.0 - errors[model] / errors[best], 4),
        gain_low=round(float(low), 4),
        gain_high=round(float(high), 4),
    )
