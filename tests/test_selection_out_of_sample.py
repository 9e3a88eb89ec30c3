"""SHAP values are out of sample: measured on test rows only, the median over the folds, behind the purge.

The data are made so that each rule decides the outcome: three unrelated features of a few levels, one row a minute.
"""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mia_fast.selection import Target, select_features
from mia_fast.selection.config import SelectRules, selection_config
from mia_fast.selection.data import Features
from mia_fast.selection.shap import Importance, choose
from mia_fast.workspace import Workspace, shipped

ROWS, FOLDS = 4000, 3
LAST = ROWS * FOLDS // (FOLDS + 1)
"""The first row of the last test block."""
MINUTE = 60_000_000_000
NAMES = ("rsi_14", "volume", "adx_14")


@pytest.fixture
def levels() -> dict[str, np.ndarray]:
    """-1, 0 or 1, each in a third of the rows, for three features that know nothing of each other."""
    rng = np.random.default_rng(17)
    return {name: rng.permutation(np.arange(ROWS) % 3 - 1.0) for name in NAMES}


def _frame(columns: dict[str, np.ndarray]) -> pl.DataFrame:
    start = dt.datetime(2025, 5, 13, 14, tzinfo=dt.UTC)
    stamps = pl.Series("timestamp", [start + dt.timedelta(minutes=k) for k in range(ROWS)], pl.Datetime("ns", "UTC"))
    return pl.DataFrame({"timestamp": stamps, **columns})


def _rules(**changes: float) -> SelectRules:
    small = {"folds": FOLDS, "trees": 80, "shap_rows": ROWS, "max_rows": ROWS, "count": 2}
    return selection_config(Workspace(shipped())).select.model_copy(update=small | changes)


def _chosen(root: Path, columns: dict[str, np.ndarray], values: np.ndarray) -> tuple[tuple[str, ...], Importance]:
    features = Features(_frame(columns), Workspace(root))
    ends = features.timestamps + MINUTE
    selection, importance = choose(features, Target("made", values, ends), _rules())
    return selection.names, importance


def test_what_stands_still_in_a_test_block_explains_nothing_there(
    tmp_path: Path, levels: dict[str, np.ndarray]
) -> None:
    """It moved in the rows that the block's model learnt from, by as much as in the blocks before."""
    values = levels["rsi_14"] + levels["volume"]
    levels["rsi_14"][LAST:] = 0.0
    _, importance = _chosen(tmp_path, levels, values)
    rsi, volume = (importance.values[:, importance.names.index(name)] for name in ("rsi_14", "volume"))
    assert (volume > 0.5).all()  # the mean of |-1|, |0|, |1| is two thirds
    assert (rsi[:-1] > 0.5).all()
    assert rsi[-1] < 0.1


def test_the_target_of_a_test_block_is_not_learnt_from(tmp_path: Path, levels: dict[str, np.ndarray]) -> None:
    """Another target from the last block on changes no importance, down to the bit."""
    values = levels["rsi_14"] + levels["volume"]
    _, before = _chosen(tmp_path, levels, values)
    values[LAST:] = 40 * levels["adx_14"][LAST:]
    _, after = _chosen(tmp_path, levels, values)
    np.testing.assert_array_equal(after.values, before.values)


def test_one_wild_fold_does_not_decide(tmp_path: Path, levels: dict[str, np.ndarray]) -> None:
    """``volume`` leads in the mean over the folds, by its last block; ``rsi_14`` leads in two of three."""
    rng = np.random.default_rng(5)
    rare = np.where(rng.random(ROWS) < 0.1, levels["volume"], 0.0)
    rare[LAST:] = np.where(levels["volume"][LAST:] > 0, 1.0, -1.0)
    columns = levels | {"volume": rare}
    names, importance = _chosen(tmp_path, columns, levels["rsi_14"] + 5 * rare)
    table = dict(zip(importance.names, importance.values.T, strict=True))
    assert table["volume"].mean() > 1.5 * table["rsi_14"].mean(), "the case is the one described"
    assert names == ("rsi_14", "volume")


@pytest.mark.parametrize("purge_minutes", [0, 90, 700])
@pytest.mark.parametrize("given", ["numbers", "column"])
def test_a_target_of_unknown_horizon_is_purged(
    tmp_path: Path, levels: dict[str, np.ndarray], given: str, purge_minutes: int
) -> None:
    """No training row stands within ``purge_minutes`` of its test block, and no other is left out."""
    text = (shipped() / "config" / "selection.yaml").read_text(encoding="utf-8")
    for name in ("folds", "trees", "shap_rows", "count", "purge_minutes"):
        value = getattr(_rules(purge_minutes=purge_minutes), name)
        text, found = re.subn(rf"^  {name}: .*$", f"  {name}: {value}", text, flags=re.MULTILINE)
        assert found == 1
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "selection.yaml").write_text(text, encoding="utf-8")
    values = levels["rsi_14"] + levels["volume"]
    frame = _frame(levels)
    target = values if given == "numbers" else "ahead"
    data = frame if given == "numbers" else frame.with_columns(ahead=pl.Series(values))
    selection, _ = select_features(data, target, workspace=Workspace(tmp_path))
    stamps = frame["timestamp"].to_list()
    purge = dt.timedelta(minutes=purge_minutes)
    assert len(selection.folds) == FOLDS
    for k, fold in enumerate(selection.folds):
        first = stamps[ROWS * (k + 1) // (FOLDS + 1)]
        allowed = [stamp for stamp in stamps if stamp + purge < first]
        assert fold.test_first == first.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        assert fold.train_rows == len(allowed)
        assert fold.train_end == (allowed[-1] + purge).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
