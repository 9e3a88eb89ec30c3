"""A bad print through everything that reads bars: frames, histories, live features, a replay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import mia_fast
from mia_fast import histories
from mia_fast.errors import DataError
from mia_fast.histories.inputs import Beside
from mia_fast.live.replay import read_inputs, replay
from mia_fast.workspace import Workspace, shipped

SAMPLE = shipped() / "data" / "sample"
PRICES = ("open", "high", "low", "close")


@pytest.fixture(scope="module")
def clean() -> pl.DataFrame:
    return pl.read_parquet(SAMPLE / "bars.parquet").head(600)


def spoiled(clean: pl.DataFrame, row: int, factor: float) -> pl.DataFrame:
    hit = pl.int_range(pl.len()) == row
    return clean.with_columns(
        pl.when(hit).then(pl.col(name) * factor).otherwise(pl.col(name)).alias(name) for name in PRICES
    )


@pytest.mark.parametrize("factor", [0.5, 10.0])
def test_features_of_a_frame_are_those_without_the_bad_bar_and_live_agrees(
    workspace: Workspace, clean: pl.DataFrame, factor: float
) -> None:
    frame = spoiled(clean, 400, factor)
    with pytest.warns(mia_fast.QuarantineWarning, match="price_jump"):
        batch = mia_fast.generate_features(frame)
    without = mia_fast.generate_features(clean.filter(pl.int_range(pl.len()) != 400))
    assert batch.equals(without)
    brought = [name for name in frame.columns if name not in ("timestamp", "symbol")]
    inputs = [name for name in brought if name not in (*PRICES, "volume")]
    live = mia_fast.Features(inputs=inputs)
    rows = []
    for number, bar in enumerate(frame.iter_rows(named=True)):
        if number == 400:
            with pytest.raises(DataError, match="BAR_PRICE_JUMP"):
                live.update(bar)
        else:
            rows.append(live.update(bar).copy())
        if number == 400:
            saved = live.save()
            live.restore(saved)
    names = batch.columns[1:]
    at = [live.names.index(name) for name in names]
    assert np.array_equal(np.array(rows)[:, at], batch.select(names).to_numpy(), equal_nan=True)


def test_a_history_and_a_replay_leave_it_out(workspace: Workspace, clean: pl.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "bars.parquet"
    whole = pl.read_parquet(SAMPLE / "bars.parquet").head(4000)
    spoiled(whole, 2000, 0.5).write_parquet(path, row_group_size=2000)  # the print is the first row of its block
    found = histories.survey([path], workspace=workspace)
    assert found.sources[0].quarantine == {"price_jump": 1}
    outcome = histories.write_history(found, tmp_path / "history", Beside(workspace), workspace=workspace)
    assert outcome.rows == whole.height - 1
    inputs = read_inputs(
        workspace, bars=path, events=SAMPLE / "events.parquet", cross=SAMPLE / "cross.parquet", chain=None
    )
    start = int(whole["timestamp"].dt.epoch("ns")[1500])
    summary = replay(workspace, inputs, start=start)
    assert summary.bars == whole.height - 1501  # without the bad one
    assert summary.marks["drawdown"].max() < 0.05
