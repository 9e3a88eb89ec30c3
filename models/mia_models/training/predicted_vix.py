"""Trains, judges and exports ``predicted_vix``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mia_models.errors import ModelError
from mia_models.manifest import DataFile, Manifest, Metric
from mia_models.training import baselines, card, evaluate, export, network
from mia_models.training.card import CHALLENGER, MODEL
from mia_models.training.response import INPUTS, TERMS, fit
from mia_models.training.samples import Floats, Mask, Samples, select

HOLD_OUT = "2022H1"
STRIDE_MINUTES = 15
"""Training uses every 15th minute: the rows of one session share their target and nearly their inputs."""
SEED = 20220630
FIRST_TEST, HOLD_OUT_FIRST, HOLD_OUT_LAST = "2019-07-01", "2022-01-01", "2022-07-01"
METHOD = (
    "varying-coefficient regression with 27 coefficients, least absolute error, shrunk towards the daily history of "
    "2004 to 2018"
)

Progress = Callable[[str], None]


def train(
    samples: Samples,
    prior: Floats,
    out: Path,
    *,
    data: tuple[DataFile, ...] = (),
    definitions: Mapping[str, str] | None = None,
    progress: Progress = lambda _message: None,
) -> Manifest:
    """Judge the model walk-forward and on the hold-out, fit it on 2019 to 2021, and write graph, manifest and card.

    Parameters
    ----------
    samples
        One row per bar from 2019 to the middle of 2022, with at least the columns
        :data:`~mia_models.training.response.INPUTS`. Rows with a missing input or target are left out.
    prior
        float64 (9,), from :func:`mia_models.training.prior.from_daily`.
    out
        Folder of the three files ``predicted_vix.onnx``, ``.manifest.json`` and ``.md``.
    data
        The files that the rows come from.
    definitions
        Digest of the catalogue's rows by feature.
    progress
        Called with a line of text at each step.

    Raises
    ------
    ModelError
        The rows lack a column or do not cover the periods; PyTorch or onnx is not installed.
    """
    rows = select(samples, INPUTS)
    in_training = rows.target_day < evaluate.day(HOLD_OUT_FIRST)
    sampled = in_training & (rows.local_minute % STRIDE_MINUTES == 0)
    if (
        not (rows.target_day < evaluate.day(FIRST_TEST)).any()
        or not (rows.target_day >= evaluate.day(HOLD_OUT_FIRST)).any()
    ):
        raise ModelError(
            "the rows do not reach from before July 2019 into 2022",
            where="samples",
            hint="give the minute bars of 2019, 2020, 2021 and the first half of 2022, and the daily VIX",
            then="nothing was trained",
        )
    metrics = judge(rows, sampled, prior, progress)
    progress("fitting on 2019 to 2021")
    # The purge is kept here too, so that the shipped weights are the ones judged on the hold-out.
    chosen = rows.take(sampled & (rows.target_day < evaluate.day(HOLD_OUT_FIRST) - evaluate.PURGED_DAYS))
    model = fit(chosen.columns, chosen.target, prior)
    manifest = export.write(
        out, model, chosen, seed=SEED, method=METHOD, data=data, definitions=definitions or {}, metrics=metrics
    )
    (out / f"{export.NAME}.md").write_text(card.render(manifest, model, TERMS), encoding="utf-8")
    progress(f"wrote {export.NAME} to {out}")
    return manifest


def judge(rows: Samples, sampled: Mask, prior: Floats, progress: Progress) -> tuple[Metric, ...]:
    """Errors of the model, the challenger and the baselines in each period and view, all out of sample."""
    fitters: dict[str, evaluate.Fitter] = {
        MODEL: lambda train, test: fit(train.columns, train.target, prior).predict(test.columns),
        CHALLENGER: lambda train, test: network.fit_predict(train, test, prior, SEED),
    }
    fitters |= {name: functools.partial(baselines.predict, name=name) for name in baselines.NAMES}
    folds = evaluate.quarters(FIRST_TEST, HOLD_OUT_FIRST, lambda m: "2019H2" if str(m) < "2020" else str(m)[:4])
    folds.append(evaluate.Fold(HOLD_OUT, evaluate.day(HOLD_OUT_FIRST), evaluate.day(HOLD_OUT_LAST)))
    predictions = evaluate.out_of_sample(rows, sampled, folds, fitters, progress)
    metrics = []
    vix = rows.columns["vix_term_1m"]
    everything = np.ones(len(rows), dtype=np.bool_)
    views = [("all bars", everything)]
    views += [(label, evaluate.seen_at(rows, minute)) for label, minute in evaluate.VIEWS]
    views += [
        ("VIX below 18", vix < 18.0),
        ("VIX 18 to 28", (vix >= 18.0) & (vix < 28.0)),
        ("VIX 28 and above", vix >= 28.0),
    ]
    for period in dict.fromkeys(fold.period for fold in folds):
        within = np.zeros(len(rows), dtype=np.bool_)
        for fold in folds:
            if fold.period == period:
                within |= (rows.target_day >= fold.first) & (rows.target_day < fold.last)
        for label, view in views:
            found = evaluate.metric(period, label, within & view, rows, predictions, MODEL, baselines.NAMES, SEED)
            if found is not None:
                metrics.append(found)
    return tuple(metrics)
