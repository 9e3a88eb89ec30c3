"""From ticks to features: every input that the catalogue declares of the bars is a column that the ticks fill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mia_fast.bars import make_bars
from mia_fast.bars.columns import COLUMNS
from mia_fast.errors import DataError
from mia_fast.features import catalogue as catalogues
from mia_fast.features.frame import feature_availability, generate_features
from mia_fast.histories import survey
from mia_fast.live.replay import read_inputs
from mia_fast.sessions import Sessions
from mia_fast.tables import read_table
from mia_fast.workspace import Workspace, shipped

PLACE = Workspace(shipped())
SECOND = 1_000_000_000
ES = "l2/es_mbo_esh4_20231225.parquet"
FAMILIES = ("order flow", "book")


def _bars(real_data: Path, out: Path, **length) -> Path:
    make_bars(out, orders=real_data / ES, workspace=PLACE, sessions=Sessions.load(PLACE, "ES"), **length)
    return out


def test_the_ticks_fill_every_input_that_the_catalogue_declares_of_the_bars():
    declared = {column.name: column.unit for column in catalogues.read(PLACE).inputs if column.table == "bars"}
    made = {column.name: column.unit for column in COLUMNS}
    assert len(declared) > 50
    assert set(declared) <= set(made)
    in_points = {name: unit.replace("price", "index points") for name, unit in made.items()}
    assert {name: unit for name, unit in declared.items() if unit != in_points[name]} == {}


@pytest.mark.parametrize("seconds", [1, 60])
def test_order_events_compute_the_families_of_flow_and_book(tmp_path: Path, real_data: Path, seconds):
    bars = read_table("bars", _bars(real_data, tmp_path / "b.parquet", interval_ns=seconds * SECOND), workspace=PLACE)
    found = generate_features(bars, workspace=PLACE)
    table = feature_availability(bars, workspace=PLACE).filter(pl.col("family").is_in(FAMILIES))
    lacking = table.filter(~pl.col("available"))
    # Nothing is missing for want of a column; windows of minutes do not fit bars of a second.
    reasons = set(lacking["lacks"].explode().to_list())
    assert all(reason.startswith("bars that fit") for reason in reasons)
    assert (not lacking.height) == (seconds == 60)
    available = table.filter(pl.col("available"))["feature"].to_list()
    assert len(available) > 55
    empty = [name for name in available if found[name].null_count() == found.height]
    if seconds == 1:  # half an hour of bars of a minute is shorter than some windows, 606 bars of a second are not
        assert empty == []
    else:
        rows = {f.name: f.warmup for f in catalogues.read(PLACE).features}
        assert all(rows[name].rows >= found.height or rows[name].sessions for name in empty)


def test_volume_bars_are_read_back_as_they_were_made(tmp_path: Path, real_data: Path):
    path = _bars(real_data, tmp_path / "v.parquet", volume=50.0)
    made = pl.read_parquet(path)
    bars = read_table("bars", path, workspace=PLACE)
    assert bars.interval_ns == 0
    assert not bars.quarantine.height
    assert bars.frame["known_at"].equals(made["known_at"])
    assert "without a common length" in bars.report()
    found = generate_features(bars, workspace=PLACE)
    table = feature_availability(bars, workspace=PLACE)
    uneven = table.filter(pl.col("lacks").list.contains("bars of one length"))
    assert {"order_imbalance_persistence_5min", "absorption_seed_5min"} <= set(uneven["feature"])
    assert all(found[name].null_count() == found.height for name in uneven["feature"])
    # What counts bars and not minutes is what it is over any bars.
    close = made["close"].to_numpy()
    assert np.allclose(found["momentum_10"].to_numpy()[10:], close[10:] - close[:-10])
    with pytest.raises(DataError, match="no common length"):
        read_inputs(PLACE, bars=path)
    with pytest.raises(DataError, match="no common length"):
        survey([path], workspace=Workspace(tmp_path))


def test_volume_bars_that_overlap_are_quarantined(tmp_path: Path, real_data: Path):
    made = pl.read_parquet(_bars(real_data, tmp_path / "v.parquet", volume=50.0))
    late = made.with_row_index().with_columns(
        known_at=pl.when(pl.col("index") == 7).then(pl.col("timestamp") - pl.duration(seconds=1))
        .when(pl.col("index") == 20).then(pl.col("known_at") + pl.duration(seconds=20)).otherwise("known_at")
    ).drop("index")  # fmt: skip
    bars = read_table("bars", pl.concat((late.head(90), late.tail(1), late.tail(1))), workspace=PLACE)
    rules = list(zip(bars.quarantine["row"], bars.quarantine["rule"], strict=True))
    assert rules[0] == (7, "bar_overlaps")
    assert rules[-1] == (91, "timestamp_duplicate")
    assert all(rule == "bar_overlaps" and 20 < row < 90 for row, rule in rules[1:-1])
    known = bars.frame["known_at"].to_numpy()
    assert (bars.frame["timestamp"].to_numpy()[1:] >= known[:-1]).all()
    assert bars.rows is not None
    assert made["close"].gather(bars.rows[:-1]).equals(bars.frame["close"][:-1])


def test_time_bars_with_their_closes_are_time_bars(tmp_path: Path, real_data: Path):
    path = _bars(real_data, tmp_path / "b.parquet", interval_ns=SECOND)
    assert read_table("bars", path, workspace=PLACE).interval_ns == SECOND
