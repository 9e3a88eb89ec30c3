"""From files to the rows that networks are trained on, and the command that does all of it; on the sample's bars."""

from __future__ import annotations

import datetime as dt
import functools
import json
import math
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from selections import selection_of
from typer.testing import CliRunner

import mia_models
from mia_fast.errors import ConfigError, DataError
from mia_fast.features import catalogue as catalogues
from mia_fast.selection.manifest import write_selection
from mia_fast.training import _lagged, _realised, chosen_features, network_rows

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from mia_models.errors import ModelError
from mia_models.training import neural
from mia_models.training.response import INPUTS
from mia_models.training.rows import TARGETS, VIX

SAMPLE = Path(__file__).parent.parent / "data" / "sample"
ARTIFACTS = Path(mia_models.__file__).parent / "artifacts"
MINUTE = 60 * 10**9
NAMES = (
    "rsi_14", "close", "volatility_rolling_30", "volatility_rolling_10", "vol_historical_5d", "vol_historical_1d",
    "time_of_day_sin", "time_of_day_cos", "atr_14", "atr_7", "realized_vol_30m", "bollinger_width_20", "volume",
)  # fmt: skip


def rows_of(bars: pl.DataFrame, folder: Path, workspace, names=NAMES):
    path = folder / f"bars_{len(bars)}.parquet"
    bars.write_parquet(path)
    return network_rows([path], [SAMPLE / "cross.parquet"], SAMPLE / "events.parquet", names, workspace=workspace)


@pytest.fixture(scope="module")
def bars() -> pl.DataFrame:
    return pl.read_parquet(SAMPLE / "bars.parquet")


def test_rows_hold_the_features_of_their_own_bar(bars, workspace, tmp_path):
    """Each column is the frame call's, bar by bar; what comes later changes nothing before."""
    from mia_fast.features.frame import generate_features

    rows = rows_of(bars, tmp_path, workspace)
    extra = [name for name in INPUTS if name not in catalogues.read(workspace).names]
    frame = generate_features(
        bars, cross=SAMPLE / "cross.parquet", events=SAMPLE / "events.parquet", auxiliary=extra, workspace=workspace
    )
    assert rows.known_at.tolist() == (frame["timestamp"].dt.epoch("ns") + MINUTE).to_list()
    for k, name in enumerate(NAMES):
        wanted = frame[name].cast(pl.Float64).fill_null(math.nan).to_numpy().astype(np.float32)
        assert np.array_equal(rows.matrix[:, k], wanted, equal_nan=True), name
        assert np.isfinite(wanted).any(), name
    for name in INPUTS:
        wanted = frame[name].cast(pl.Float64).fill_null(math.nan).to_numpy()
        assert np.array_equal(rows.extra[name], wanted, equal_nan=True), name
    cut = 7321
    first = rows_of(bars.head(cut), tmp_path, workspace)
    assert np.array_equal(first.matrix, rows.matrix[:cut], equal_nan=True)
    assert np.array_equal(first.session, rows.session[:cut])
    for name, values in first.extra.items():
        assert np.array_equal(values, rows.extra[name][:cut], equal_nan=True), name
    for name in TARGETS:
        if name == VIX:
            continue  # a target day's close is in the cross file either way
        known = rows.ends_at[name][:cut] <= first.known_at[-1]
        assert known.sum() > cut - 200
        assert np.array_equal(first.targets[name][known], rows.targets[name][:cut][known], equal_nan=True), name


def test_baselines_columns_are_plain_loops(bars, workspace, tmp_path):
    rows = rows_of(bars, tmp_path, workspace)
    close = bars["close"].to_numpy()
    known = (bars["timestamp"].dt.epoch("ns") + MINUTE).to_numpy()
    moves = [0.0] + [math.log(close[k]) - math.log(close[k - 1]) for k in range(1, len(close))]
    session = 0
    for k in range(len(close)):
        session += k > 0 and known[k] - known[k - 1] > 30 * MINUTE
        if k % 37 and k > 100:
            continue
        for lag in range(1, 11):
            wanted = moves[k - lag + 1] if k - lag + 1 >= 0 else 0.0
            assert rows.extra[f"returns_{lag}"][k] == pytest.approx(wanted, abs=1e-12)
        inside = [moves[j] ** 2 for j in range(max(0, k - 40), k + 1) if known[j] > known[k] - 30 * MINUTE]
        wanted = math.sqrt(sum(inside) / len(inside) * 252 * 23 * 60)
        assert rows.extra["present_30"][k] == pytest.approx(wanted, rel=1e-6, abs=1e-9)
        assert rows.session[k] == session + rows.session[0]
        local = bars["timestamp"][k].astimezone(dt.timezone(dt.timedelta(hours=-4))) + dt.timedelta(minutes=1)
        assert rows.minute[k] == local.hour * 60 + local.minute
    assert session >= 7


def test_realised_bridges_gaps_and_lagged_begins_with_zeros():
    known = np.array([0, 1, 2, 100, 101]) * MINUTE
    moves = np.array([0.0, 1e-3, 2e-3, 5e-3, 1e-3])
    factor = 252 * 23 * 60
    wanted = [0.0, 1e-6 / 2, 5e-6 / 3, 25e-6, 26e-6 / 2]
    np.testing.assert_allclose(_realised(known, moves, 30) ** 2 / factor, wanted, atol=1e-15)
    assert _lagged(moves, 2).tolist() == [0.0, 0.0, 0.0, 1e-3, 2e-3]
    assert _lagged(moves, 0).tolist() == moves.tolist()


def test_features_that_the_files_do_not_give_are_named(bars, workspace, tmp_path):
    with pytest.raises(DataError, match="treasury_10y_yield cannot be computed"):
        rows_of(bars.head(500), tmp_path, workspace, (*NAMES, "treasury_10y_yield"))


def test_what_the_catalogue_declares(workspace):
    from mia_fast.training import _declared

    found = _declared(("rsi_14", "vix_term_1m", "treasury_10y_yield", "vol_historical_5d", *INPUTS), workspace)
    assert {name for name, value in found.items() if not value.from_bars} >= {"vix_term_1m", "treasury_10y_yield"}
    assert found["rsi_14"].from_bars
    assert found["vol_historical_5d"].from_bars
    assert found["vix_term_1m"].unit == "index points"
    assert all(value.definition for value in found.values())


def test_the_choice_and_its_period(workspace):
    names, chosen = chosen_features(workspace)
    shipped = json.loads((ARTIFACTS / "selection.json").read_text())
    assert list(names) == shipped["names"]
    assert chosen.period == tuple(shipped["period"])
    own = selection_of(NAMES, workspace)
    write_selection(own, workspace)
    names, chosen = chosen_features(workspace)
    assert names == NAMES
    assert chosen.period == own.period
    write_selection(selection_of((*NAMES, "predicted_vix"), workspace), workspace)
    with pytest.raises(ConfigError, match="predicted_vix: no stage-1 feature"):
        chosen_features(workspace)


def restamped(bars: pl.DataFrame, folder: Path) -> list[Path]:
    """Three hours of the sample's sessions, fortnight by fortnight: regimes take 60 sessions of before."""
    hours = bars.filter(pl.col("timestamp").dt.hour().is_between(14, 16))
    paths = []
    starts = {2019: ("2019-08-04", 10), 2020: ("2020-06-07", 2), 2021: ("2021-06-06", 2), 2022: ("2022-03-20", 2)}
    for year, (first, count) in starts.items():
        at = dt.datetime.fromisoformat(first).replace(tzinfo=dt.UTC)
        by = [at + dt.timedelta(days=14 * turn) - dt.datetime(2025, 5, 4, tzinfo=dt.UTC) for turn in range(count)]
        paths.append(folder / f"es_{year}.parquet")
        pl.concat([hours.with_columns(pl.col("timestamp") + part) for part in by]).write_parquet(paths[-1])
    return paths


def daily(folder: Path) -> Path:
    g = np.random.default_rng(4)
    days = pl.date_range(dt.date(2004, 1, 2), dt.date(2022, 7, 1), interval="1d", eager=True)
    days = days.filter(days.dt.weekday() <= 5)
    moves = g.normal(0, 0.01, len(days))
    vix = 20 * np.exp(np.clip(np.cumsum(-3 * moves + g.normal(0, 0.01, len(days))) * 0.1, -1, 1))
    path = folder / "daily.parquet"
    pl.concat(
        [
            pl.DataFrame({"date": days, "symbol": "VIX", "close": vix}),
            pl.DataFrame({"date": days, "symbol": "SPX", "close": 1100 * np.exp(np.cumsum(moves) * 0.3)}),
        ]
    ).write_parquet(path)
    return path


def test_train_networks_from_the_command_line(bars, workspace, tmp_path, monkeypatch):
    """All of it but the size: files, features, targets, folds, graph, card, the journal's rows."""
    from test_models_networks import TINY

    from mia_fast import journal
    from mia_fast.cli.commands import app
    from mia_models.manifest import read
    from mia_models.session import OnnxModel

    own = selection_of(NAMES, workspace)
    own = own.model_copy(update={"period": ("2019-08-04T23:01:00.000000Z", "2021-12-31T21:54:00.000000Z")})
    write_selection(own, workspace)
    small = functools.partial(neural.train, settings=TINY, latent_steps=5, latent_batch=128, compared=200)
    monkeypatch.setattr(neural, "train", small)
    close, out = daily(tmp_path), tmp_path / "out"
    call = ["train", "networks", "--vix", str(close), "--index", str(close), "--out", str(out)]
    for path in restamped(bars, tmp_path):
        call += ["--bars", str(path)]
    done = CliRunner(env={**os.environ, "MIA_WORKSPACE": str(workspace.root)}).invoke(app, call)
    assert done.exit_code == 0, done.output
    manifest = read(out, "networks")
    assert manifest.features[: len(NAMES)] == NAMES
    assert manifest.chosen is not None
    assert manifest.chosen.period == own.period
    assert {part.name for part in manifest.training.data} == {
        "es_2019.parquet", "es_2020.parquet", "es_2021.parquet", "es_2022.parquet",
        "daily.parquet",
    }  # fmt: skip
    model = OnnxModel.load(out, "networks")
    assert np.isfinite(model.step(np.array([part.median for part in manifest.inputs]))).all()
    recorded = journal.of(workspace).query("SELECT count(*) FROM training").item()
    assert recorded == len(manifest.metrics) > 40
    seen = own.model_copy(update={"period": ("2019-08-04T23:01:00.000000Z", "2022-01-03T10:00:00.000000Z")})
    write_selection(seen, workspace)
    again = CliRunner(env={**os.environ, "MIA_WORKSPACE": str(workspace.root)}).invoke(app, call)
    assert isinstance(again.exception, ModelError)
    assert "begins on 2022-01-01" in str(again.exception)


def test_the_shipped_graph_settles_as_its_manifest_says(bars, workspace):
    """On the sample's bars, which its training has not seen; yields and further inputs are missing there."""
    from mia_fast.features.frame import generate_features
    from mia_models.session import OnnxModel

    model = OnnxModel.load(ARTIFACTS, "networks")
    memory = model.manifest.memory
    assert memory is not None
    assert memory.settled_within is not None
    extra = [name for name in INPUTS if name not in catalogues.read(workspace).names]
    frame = generate_features(
        bars, cross=SAMPLE / "cross.parquet", events=SAMPLE / "events.parquet", auxiliary=extra, workspace=workspace
    )
    matrix = np.column_stack([frame[name].cast(pl.Float64).fill_null(math.nan).to_numpy() for name in model.features])
    needed = np.array([part.groups is not None and memory.group in part.groups for part in model.manifest.inputs])
    matrix = matrix[np.isfinite(matrix[:, needed]).all(axis=1)]
    assert len(matrix) > 9000
    whole = model.predict(matrix)
    labels = [model.outputs.index(name) for name in ("neural_regime", "cluster_id")]
    size = np.maximum(np.nanmax(whole, axis=0) - np.nanmin(whole, axis=0), 1e-2)
    size[labels] = np.inf
    for start in (1500, 3111, 5000, 6500):
        apart = np.nan_to_num(np.abs(model.predict(matrix[start:]) - whole[start:]) / size)
        assert apart[0].max() > 10 * memory.settled_within
        assert apart[memory.settle_rows :].max() <= memory.settled_within


# --- real data ----------------------------------------------------------------------------------------------


@pytest.mark.real
def test_the_shipped_graph_has_the_cards_losses_on_fresh_rows(real_data, workspace):
    """The shipped file, asked about 2022H1 rows that are computed here, loses what its manifest says."""
    from mia_models.session import OnnxModel
    from mia_models.training import judge
    from mia_models.training.rows import LONG, PRESSURE, REGIME, SHORT, VOLATILITY, instant

    names, _ = chosen_features(workspace)
    rows = network_rows(
        [real_data / "bars" / f"es_1m_{year}.parquet" for year in ("2021", "2022h1")],
        [real_data / "vol" / "vix_family_daily_to_202206.parquet",
         real_data / "cross" / "daily_prices_to_202206.parquet",
         real_data / "cross" / "fred_yields_daily_to_202206.parquet"],
        real_data / "macro" / "us_high_impact_2014_202206.parquet",
        names,
        workspace=workspace,
    )  # fmt: skip
    model = OnnxModel.load(ARTIFACTS, "networks")
    assert model.manifest.memory is not None
    test = rows.between(instant("2022-01-01"), instant("2022-07-01"))
    warm = test.start - 2 * model.manifest.memory.settle_rows
    found = model.predict(neural.raw_inputs(rows, model.features, slice(warm, test.stop)))[test.start - warm :]
    at = {name: k for k, name in enumerate(model.outputs)}
    chances = found[:, [at[f"regime_prob_{name}"] for name in ("trend", "range", "defensive")]]
    said = {
        PRESSURE: found[:, at["cnn_pressure"]],
        VOLATILITY: found[:, at["predicted_volatility"]],
        REGIME: chances,
        LONG: found[:, at["trade_success_prob"]],
        SHORT: found[:, at["trade_success_prob_short"]],
        VIX: found[:, at["predicted_vix"]],
    }
    stated = {m.output: m for m in model.manifest.metrics if m.period == "2022H1" and m.view == "all bars"}
    for name, values in said.items():
        error = float(np.nanmean(judge.loss(name, values, rows.targets[name][test])))
        assert error == pytest.approx(stated[name].errors[stated[name].model], rel=1e-3), name
