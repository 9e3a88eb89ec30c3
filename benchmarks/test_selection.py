"""The choice of 150 on 100,000 rows against the ``shap`` package's full TreeSHAP, from the same models.

Both rank by the median over the folds of the mean absolute SHAP value on test rows. Ours explains 5,000 evenly spaced
test rows with LightGBM's ``pred_contrib``, a fold to a thread; the peer explains every test row. The table is the
simulated features and their lags (1, 5, 20, 60 bars) where the catalogue is smaller than 350, so that 150 are a choice.
"""

from __future__ import annotations

import os
import platform
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lightgbm
import numpy as np
import polars as pl
import pytest

from benchmarks import gates
from mia_fast.features.catalogue import read
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.plan import make_plan
from mia_fast.selection.config import selection_config
from mia_fast.selection.shap import evenly, parameters_for, walk_forward
from mia_fast.selection.targets import Bars, make_target
from mia_fast.workspace import Workspace, shipped

ROWS = int(os.environ.get("MIA_ROWS", "100000"))
WIDTH, COUNT = 350, 150
MINUTE = 60_000_000_000
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "bars" / "es_1m_2019.parquet"


def _table() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Values (rows, 350) float32, target, instants, and up to when targets look."""
    if not REAL.exists():
        pytest.skip(f"no real data at {REAL}")
    frame = pl.read_parquet(REAL, n_rows=ROWS + 5000)
    known_at = frame["ts"].dt.epoch("ns").to_numpy() + MINUTE
    names = ("open", "high", "low", "close", "volume")
    columns = {name: frame[name].cast(pl.Float64).to_numpy() for name in names}
    plan = make_plan(read(Workspace(shipped())), names, bar_minutes=1.0, tick_size=0.25)
    matrix = FeatureEngine(plan).batch(known_at, columns)
    own = [row for row, name in zip(matrix, plan.features, strict=True) if name not in plan.missing]
    for lag in (0, 1, 5, 20, 60):
        own += [np.concatenate([np.full(lag, np.nan), row[:-lag]]) for row in own[: len(own)] if lag][
            : WIDTH - len(own)
        ]
    aim = make_target("predicted_volatility", Bars(known_at, columns))
    rows = np.flatnonzero(np.isfinite(aim.values))[-ROWS:]
    return np.column_stack(own)[rows].astype(np.float32), aim.values[rows], known_at[rows], aim.ends_at[rows]


def test_against_full_tree_shap(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import calls what Matplotlib is about to deprecate
        shap = pytest.importorskip("shap")
    rules = selection_config(Workspace(shipped())).select
    values, target, times, ends = _table()
    assert values.shape[1] == WIDTH
    blocks = walk_forward(times, ends, rules.folds)
    began = time.perf_counter()

    def fit(block: tuple[np.ndarray, np.ndarray]) -> lightgbm.Booster:
        train = block[0]
        parameters = parameters_for(rules, len(train), "number", 1)
        data = lightgbm.Dataset(
            values[train], label=target[train], params={"verbose": -1, "max_bin": 63, "num_threads": 1}
        )
        return lightgbm.train(parameters, data, num_boost_round=rules.trees)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        models = list(pool.map(fit, blocks))
    trained = time.perf_counter() - began

    def explain(job: tuple[lightgbm.Booster, np.ndarray]) -> np.ndarray:
        model, rows = job
        found = np.asarray(model.predict(values[rows], pred_contrib=True, num_threads=1))
        return np.abs(found[:, :-1]).mean(axis=0)

    few = [test[evenly(len(test), rules.shap_rows // rules.folds)] for _, test in blocks]
    began = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ours = np.array(list(pool.map(explain, zip(models, few, strict=True))))
    mine = time.perf_counter() - began

    began = time.perf_counter()
    theirs = []
    for model, (_, test) in zip(models, blocks, strict=True):
        explainer = shap.TreeExplainer(model, feature_perturbation="tree_path_dependent")
        found = explainer.shap_values(values[test], check_additivity=False)
        theirs.append(np.abs(found).mean(axis=0))
        # The same numbers where both explain the same rows.
        same = np.asarray(model.predict(values[test[:50]], pred_contrib=True))[:, :-1]
        assert np.allclose(same, found[:50], rtol=1e-6, atol=1e-9)
    full = time.perf_counter() - began
    best = [
        {*np.argsort(-np.median(np.array(table), axis=0), kind="stable")[:COUNT].tolist()} for table in (ours, theirs)
    ]
    agree = len(best[0] & best[1]) / COUNT
    with capsys.disabled():
        print(
            f"\n{COUNT} of {WIDTH} on {ROWS:,} rows: pred_contrib on {sum(map(len, few)):,} rows {mine:.1f} s, "
            f"shap {shap.__version__} on {sum(len(test) for _, test in blocks):,} test rows {full:.1f} s, "
            f"ratio {full / mine:.1f}; with {trained:.1f} s of training for both "
            f"{(full + trained) / (mine + trained):.1f}; {agree:.1%} of the choice agree "
            f"({platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f})"
        )
    assert agree >= 0.98
    if ROWS >= 100_000:  # the gain is the rows that are not explained: fewer rows, less of it
        gates.at_least("times faster than full TreeSHAP", full / mine, 8)
