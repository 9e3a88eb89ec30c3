"""The networks against their baselines: walk-forward by year, then the hold-out; losses, intervals, calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mia_models.manifest import Calibration, Metric
from mia_models.training import networks, prepare, response
from mia_models.training.rows import (
    LONG,
    PRESSURE,
    REGIME,
    REGIMES,
    SHORT,
    VIX,
    VOLATILITY,
    Floats,
    Integers,
    Mask,
    Rows,
    instant,
)

MEASURES = {
    PRESSURE: "mean squared error",
    VOLATILITY: "mean absolute log error",
    REGIME: "log loss",
    LONG: "log loss",
    SHORT: "log loss",
    VIX: "mean absolute error, index points",
}
BASELINES: dict[str, tuple[str, ...]] = {
    PRESSURE: ("zero", "ridge on the last returns"),
    VOLATILITY: ("present 30 minutes", "HAR-RV by half hour"),
    REGIME: ("frequencies by time of day", "logistic regression"),
    LONG: ("base rate", "logistic regression"),
    SHORT: ("base rate", "logistic regression"),
    VIX: ("persistence", "regression"),
}
"""By output. The heads called ``linear`` are themselves what is known as logistic regression."""
CANDIDATES: dict[str, tuple[str, ...]] = {
    PRESSURE: ("cnn", "linear", "zero"),
    VOLATILITY: ("mlp", "lstm", "linear"),
    REGIME: ("mlp", "lstm", "logistic regression"),
    LONG: ("mlp", "logistic regression", "base rate"),
    SHORT: ("mlp", "logistic regression", "base rate"),
    VIX: ("lstm", "regression"),
}
"""What the graph can serve, the network that the output is named for first."""
PURGE = 86_400 * 10**9
"""One day lies between the rows of a training and what follows: more than any target looks ahead within it; the VIX
target, which looks to the next close, is purged by its own ``ends_at``."""
HELD_SHARE = 0.12
WARM_ROWS = 2000
"""Rows before the judged ones by which the state is warmed up."""
DRAWS = 1000
SURE = 0.025
"""A candidate is served in a baseline's place if this quantile of its bootstrapped lead is above zero."""
_HALF_HOUR = 30
_LEAST_PROBABILITY = 1e-6

Progress = Callable[[str], None]
Predictions = dict[str, dict[str, Floats]]
"""By output, then by method: float64 (n,) or (n, 3)."""


@dataclass(frozen=True)
class Fold:
    """Rows to train on are known before ``first``; rows to judge lie in [first, last), ISO dates.

    ``seen`` says what the design owes to these rows, for the model card.
    """

    period: str
    first: str
    last: str
    seen: str = ""


FOLDS = (
    Fold(
        "2020",
        "2020-01-01",
        "2021-01-01",
        "How features are prepared, what the networks predict and what the map reads was chosen by losses of 2020 and "
        "2021. So those years' figures flatter the design; they were not used to fit what they judge.",
    ),
    Fold("2021", "2021-01-01", "2022-01-01"),
    Fold(
        "2022H1",
        "2022-01-01",
        "2022-07-01",
        "2022H1 decided nothing, but it is no longer fresh: it was looked at in each of the four steps of the "
        "preparation's design, in the first shipped training, in the one after the catalogue's review, in an audit and "
        "in the present one, which changed what is served and the map; the map was compared on it twice, before and "
        "after its axes were given one scale. A fresh judgement needs later data.",
    ),
)


@dataclass(frozen=True)
class Fitted:
    """Everything fitted on the rows before a day."""

    preparation: prepare.Preparation
    networks: networks.Networks
    regression: response.Response
    rows: int
    sessions: int
    first: int
    last: int


def fit(
    rows: Rows,
    before: str,
    prior: Floats,
    optional: Mask,
    settings: networks.Settings,
    *,
    checkpoint: Path | None = None,
    progress: Progress = lambda _message: None,
) -> tuple[Fitted, slice]:
    """Fit preparation, networks and the VIX regression on the rows whose targets end before the day ``before``.

    The last eighth of them, behind a purge, decides when to stop. Returns also the rows that the networks learned from.
    """
    end = instant(before)
    usable = int(np.searchsorted(rows.known_at, end - PURGE))
    held_from = rows.known_at[int(usable * (1 - HELD_SHARE))]
    learn = slice(0, int(np.searchsorted(rows.known_at, held_from - PURGE)))
    held = slice(int(np.searchsorted(rows.known_at, held_from)), usable)
    preparation = prepare.fit(rows.names, rows.matrix[learn], rows.known_at[learn])
    regression = _regression(rows, slice(0, usable), prior, end)
    targets = {name: np.where(rows.ends_at[name] < end, values, np.nan) for name, values in rows.targets.items()}
    targets[VIX] = np.where(rows.ends_at[VIX] < held_from, targets[VIX], np.nan)
    held_targets = dict(targets) | {VIX: np.where(rows.ends_at[VIX] < end, rows.targets[VIX], np.nan)}
    expected = regression.predict(rows.extra)
    reference = preparation.reference(rows.extra[prepare.REFERENCE])
    data = networks.Data(
        preparation.apply(rows.matrix[learn]),
        {k: v[learn] for k, v in networks.in_network_units(targets, expected, reference).items()},
    )
    behind = networks.Data(
        preparation.apply(rows.matrix[held]),
        {k: v[held] for k, v in networks.in_network_units(held_targets, expected, reference).items()},
    )
    trained = networks.train(data, behind, optional, settings, checkpoint=checkpoint, progress=progress)
    sessions = len(np.unique(rows.session[:usable]))
    found = Fitted(
        preparation, trained, regression, usable, sessions, int(rows.known_at[0]), int(rows.known_at[usable - 1])
    )
    return found, learn


def predictions(fitted: Fitted, rows: Rows, test: slice) -> Predictions:
    """What every method says for the rows ``test``, all fitted on the rows before."""
    past = slice(0, fitted.rows)
    count = test.stop - test.start
    found = answers(fitted, rows, test)
    found[PRESSURE] |= {"zero": np.zeros(count), "ridge on the last returns": _ridge(rows, past, test)}
    found[VOLATILITY] |= {
        "present 30 minutes": rows.extra["present_30"][test],
        "HAR-RV by half hour": _har(rows, past, test),
    }
    found[REGIME]["frequencies by time of day"] = _frequencies(rows, past, test)
    for name in (LONG, SHORT):
        found[name]["base rate"] = np.full(count, np.nanmean(rows.targets[name][past]))
    found[VIX]["persistence"] = rows.extra["vix_term_1m"][test]
    return found


def answers(fitted: Fitted, rows: Rows, test: slice, missing: Mask | None = None) -> Predictions:
    """What the networks, the linear heads and the VIX regression say for the rows ``test``.

    ``missing``, bool (features,), marks features that are NaN in every row, also in the rows before by which the state
    is warmed up.
    """
    warm = slice(max(0, test.start - WARM_ROWS), test.stop)
    skip = test.start - warm.start
    matrix = rows.matrix[warm]
    extra = {k: v[test] for k, v in rows.extra.items()}
    if missing is not None:
        matrix = np.where(missing, np.float32(np.nan), matrix)
        extra |= {
            name: np.full_like(extra[name], np.nan) for k, name in enumerate(rows.names) if missing[k] and name in extra
        }
    raw = {
        k: v[skip:].astype(np.float64)
        for k, v in networks.predict(fitted.networks, fitted.preparation.apply(matrix)).items()
    }
    mlp, lstm, linear = raw["mlp"], raw["lstm"], raw["linear"]
    regression = fitted.regression.predict(extra)
    reference = fitted.preparation.reference(extra[prepare.REFERENCE])
    return {
        PRESSURE: {"cnn": raw["cnn"], "linear": linear[:, 0]},
        VOLATILITY: {
            "mlp": reference * np.exp(mlp[:, 0]),
            "lstm": reference * np.exp(lstm[:, 0]),
            "linear": reference * np.exp(linear[:, 1]),
        },
        REGIME: {
            "mlp": _softmax(mlp[:, 1:4]),
            "lstm": _softmax(lstm[:, 1:4]),
            "logistic regression": _softmax(linear[:, 2:5]),
        },
        **{
            name: {"mlp": _sigmoid(mlp[:, 4 + k]), "logistic regression": _sigmoid(linear[:, 5 + k])}
            for k, name in enumerate((LONG, SHORT))
        },
        VIX: {"lstm": regression * np.exp(lstm[:, 4] * networks.VIX_SCALE), "regression": regression},
    }


def loss(output: str, predicted: Floats, target: Floats) -> Floats:
    """The loss of each row, in the measure of :data:`MEASURES`; NaN without a target."""
    if output == PRESSURE:
        return (predicted - target) ** 2
    if output == VIX:
        return np.abs(predicted - target)
    if output == VOLATILITY:
        with np.errstate(divide="ignore", invalid="ignore"):
            apart: Floats = np.abs(np.log(np.maximum(predicted, 1e-3)) - np.log(np.maximum(target, 1e-3)))
            return apart
    known = np.isfinite(target)
    if output == REGIME:
        chosen = predicted[np.arange(len(target)), np.where(known, target, 0).astype(np.int64)]
    else:
        chosen = np.where(target == 1.0, predicted, 1.0 - predicted)
    return np.where(known, -np.log(np.maximum(chosen, _LEAST_PROBABILITY)), np.nan)


@dataclass(frozen=True)
class Scores:
    """Losses of one output in one fold, over the rows that all methods have one for.

    ``sums`` float64 (sessions,) by method, ``counts`` float64 (sessions,).
    """

    sums: Mapping[str, Floats]
    counts: Floats

    def mean(self, method: str, draws: Integers | None = None) -> Floats:
        """Mean loss per row; with ``draws`` (n, sessions) of sessions, one mean per draw."""
        sums, counts = self.sums[method], self.counts
        if draws is None:
            return np.asarray(sums.sum() / counts.sum())
        drawn: Floats = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
        return drawn

    def draws(self, seed: int) -> Integers:
        """Sessions with replacement, int64 (:data:`DRAWS`, sessions)."""
        return np.random.default_rng(seed).integers(0, len(self.counts), (DRAWS, len(self.counts)))


def scores(output: str, rows: Rows, test: slice, found: Predictions, view: Mask | None = None) -> Scores | None:
    """Losses by session, of the rows in ``view`` (bool, as many as ``test``); None if no row has one."""
    target = rows.targets[output][test]
    losses = {name: loss(output, values, target) for name, values in found[output].items()}
    chosen = np.all([np.isfinite(values) for values in losses.values()], axis=0)
    if view is not None:
        chosen &= view
    if not chosen.any():
        return None
    _, place = np.unique(rows.session[test][chosen], return_inverse=True)
    sums = {name: np.bincount(place, values[chosen]).astype(np.float64) for name, values in losses.items()}
    return Scores(sums, np.bincount(place).astype(np.float64))


def metrics(
    output: str, model: str, period: str, rows: Rows, test: slice, found: Predictions, seed: int
) -> list[Metric]:
    """Mean losses over all bars and by the regime that came, with the gain over the best baseline."""
    regime = rows.targets[REGIME][test]
    views = [("all bars", None)] + [(name, regime == k) for k, name in enumerate(REGIMES)]
    result = []
    for view, chosen in views:
        score = scores(output, rows, test, found, chosen)
        if score is None:
            continue
        errors = {name: float(score.mean(name)) for name in score.sums}
        rivals = [name for name in BASELINES[output] if name != model]
        best = min(rivals, key=errors.__getitem__)
        draws = score.draws(seed)
        low, high = np.quantile(1.0 - score.mean(model, draws) / score.mean(best, draws), [0.025, 0.975])
        result.append(
            Metric(
                output=output,
                measure=MEASURES[output],
                period=period,
                view=view,
                sessions=len(score.counts),
                errors={name: round(value, 5) for name, value in errors.items()},
                model=model,
                best_baseline=best,
                gain=round(1.0 - errors[model] / errors[best], 4),
                gain_low=round(float(low), 4),
                gain_high=round(float(high), 4),
            )
        )
    return result


def winner(output: str, folds: Sequence[Scores], seed: int) -> str:
    """What is served, by the walk-forward folds alone; the hold-out has no say.

    The candidate with the least mean loss over the folds, if it is a baseline itself or its lead over the best baseline
    is sure: the 2.5 % quantile of the lead's mean over the folds, each with its sessions drawn again, is above zero.
    Else the best baseline that the graph can compute; where it can compute none, the candidate all the same.
    """

    def mean(name: str) -> float:
        return float(np.mean([fold.mean(name) for fold in folds]))

    best = min(CANDIDATES[output], key=mean)
    simple = [name for name in CANDIDATES[output] if name in BASELINES[output]]
    if best in simple or not simple:
        return best
    rival = min(BASELINES[output], key=mean)
    leads = []
    for k, fold in enumerate(folds):
        draws = fold.draws(seed + k)
        leads.append(fold.mean(rival, draws) - fold.mean(best, draws))
    sure = float(np.quantile(np.mean(leads, axis=0), SURE)) > 0.0
    return best if sure else min(simple, key=mean)


def calibration(output: str, name: str, period: str, predicted: Floats, happened: Floats) -> Calibration:
    """How often what was given a probability came, in ten bins of equal count."""
    known = np.isfinite(happened)
    p, y = predicted[known], happened[known]
    order = np.argsort(p, kind="stable")
    bins = np.array_split(order, 10)
    said = [float(p[part].mean()) for part in bins]
    came = [float(y[part].mean()) for part in bins]
    error = float(np.average(np.abs(np.subtract(said, came)), weights=[len(part) for part in bins]))
    return Calibration(
        output=name if output == REGIME else output,
        period=period,
        predicted=tuple(round(v, 4) for v in said),
        observed=tuple(round(v, 4) for v in came),
        error=round(error, 4),
    )


def _regression(rows: Rows, past: slice, prior: Floats, end: int) -> response.Response:
    """The VIX regression on every 15th minute, as :mod:`mia_models.training.predicted_vix` fits it."""
    target = rows.targets[VIX]
    chosen = np.zeros(len(rows), dtype=np.bool_)
    chosen[past] = True
    chosen &= (rows.minute % 15 == 0) & np.isfinite(target) & (rows.ends_at[VIX] < end - PURGE)
    for name in response.INPUTS:
        chosen &= np.isfinite(rows.extra[name])
    return response.fit({name: rows.extra[name][chosen] for name in response.INPUTS}, target[chosen], prior)


def _har(rows: Rows, past: slice, test: slice) -> Floats:
    """Corsi (2009) on logarithms: 30 minutes, 1 day and 5 days, with an intercept per half hour of the day."""
    names = ("present_30", "vol_historical_1d", "vol_historical_5d")

    def design(part: slice) -> tuple[Floats, Integers]:
        columns = np.column_stack([np.log(np.maximum(rows.extra[name][part], 1e-3)) for name in names])
        return columns, rows.minute[part] // _HALF_HOUR

    x, slot = design(past)
    y = np.log(np.maximum(rows.targets[VOLATILITY][past], 1e-3))
    known = np.isfinite(x).all(axis=1) & np.isfinite(y)
    x, slot, y = x[known], slot[known], y[known]
    count = np.maximum(np.bincount(slot, minlength=48), 1)

    def centred(values: Floats) -> tuple[Floats, Floats]:
        means = np.bincount(slot, values, 48) / count
        return values - means[slot], means

    within = [centred(x[:, k]) for k in range(len(names))]
    level, y_means = centred(y)
    slopes = np.linalg.lstsq(np.column_stack([part for part, _ in within]), level, rcond=None)[0]
    intercepts = y_means - np.column_stack([means for _, means in within]) @ slopes
    now, now_slot = design(test)
    expected: Floats = np.exp(now @ slopes + intercepts[now_slot])
    return expected


def _frequencies(rows: Rows, past: slice, test: slice) -> Floats:
    target, slot = rows.targets[REGIME][past], rows.minute[past] // _HALF_HOUR
    known = np.isfinite(target)
    counts = np.ones((48, 3))
    np.add.at(counts, (slot[known], target[known].astype(np.int64)), 1.0)
    shares = counts / counts.sum(axis=1, keepdims=True)
    found: Floats = shares[rows.minute[test] // _HALF_HOUR]
    return found


def _ridge(rows: Rows, past: slice, test: slice) -> Floats:
    names = [f"returns_{k}" for k in range(1, 11)]

    def design(part: slice) -> Floats:
        columns = np.column_stack([rows.extra[name][part] for name in names])
        size = np.sqrt((columns[:, :5] ** 2).sum(axis=1))
        return np.clip(np.nan_to_num(columns / np.where(size > 0, size, np.nan)[:, None]), -3, 3)

    x, y = design(past), rows.targets[PRESSURE][past]
    known = np.isfinite(y)
    gram = x[known].T @ x[known] + 1e-3 * known.sum() * np.eye(len(names))
    expected: Floats = design(test) @ np.linalg.solve(gram, x[known].T @ y[known])
    return expected


def _softmax(logits: Floats) -> Floats:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return shares


def _sigmoid(x: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-x))
