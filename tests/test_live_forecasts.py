"""The models in a live engine and in a frame, over sessions enough that their errors are known: cuts and restarts."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from bars import same_bits

import mia_fast
import mia_models
from mia_fast import registry
from mia_fast.errors import StateError
from mia_fast.features import catalogue as catalogues
from mia_fast.features.asof import Steps
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.frame import plan_for
from mia_fast.journal import Journal
from mia_fast.live.account import EXPOSURE, HELD, AccountState
from mia_fast.live.broker import Position
from mia_fast.live.checkpoint import Checkpoint
from mia_fast.live.forecast import Forecasts, models_digest
from mia_fast.live.replay import Inputs, Summary, read_inputs, replay
from mia_fast.risk import Account, Desk
from mia_fast.simulate import simulate
from mia_fast.tables import read_table
from mia_fast.workspace import Workspace
from mia_models.drift import OUTPUTS, WINDOW, Drift
from mia_models.errors import ModelError

ARTIFACTS = Path(mia_models.__file__).parent / "artifacts"
DAY = dt.date(2025, 5, 13)
EARLIER = 13
FIRST = EARLIER * 1380 - 70
"""The run's first bar: ten to four in New York, so that a close of the VIX comes in along the way."""
JUDGED = (*OUTPUTS, "confidence_drop_rate")


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Fourteen sessions: five until the forecast of the VIX has its inputs, five errors of it, and some more."""
    out = tmp_path_factory.mktemp("market")
    return simulate(out, seed=3, start=DAY, sessions=1, warmup_sessions=EARLIER, tables=("bars", "cross", "events"))


def _inputs(place: Workspace, market: dict[str, Path]) -> Inputs:
    return read_inputs(place, bars=market["bars"], events=market["events"], cross=market["cross"])


def _run(place: Workspace, market: dict[str, Path], **options) -> Summary:
    known = read_table("bars", market["bars"], workspace=place).frame["known_at"].dt.epoch("ns")
    end = options.pop("end", int(known[FIRST + 239]))
    return replay(place, _inputs(place, market), **{"start": int(known[FIRST - 1]), "end": end, **options})


def _features(place: Workspace, run_id: str) -> pl.DataFrame:
    parts = sorted((place.data / "features" / "runs" / run_id).glob("*.parquet"))
    return pl.concat([pl.read_parquet(path) for path in parts])


def _frame(place: Workspace, market: dict[str, Path]) -> pl.DataFrame:
    pipeline = mia_fast.NeuralPipeline(place)
    frame = mia_fast.generate_features(
        market["bars"],
        cross=market["cross"],
        events=market["events"],
        auxiliary=pipeline.auxiliary,
        workspace=place,
    )
    return pipeline.generate_predictions(frame)


def _second(place: Workspace) -> list[str]:
    return [feature.name for feature in catalogues.read(place).features if feature.stage == 2]


@pytest.fixture(scope="module")
def batch(market: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    return _frame(Workspace(tmp_path_factory.mktemp("batch")), market)


@pytest.fixture(scope="module")
def live(market: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Summary]:
    place = Workspace(tmp_path_factory.mktemp("live"))
    return place, _run(place, market, checkpoint_bars=1000)


def test_a_live_row_has_the_bits_of_the_frame(live: tuple[Workspace, Summary], batch: pl.DataFrame) -> None:
    place, done = live
    rows, names = _features(place, done.run_id), _second(place)
    wanted = batch[FIRST : FIRST + 240]
    assert rows["timestamp"].equals(wanted["timestamp"])
    assert rows.select(names).null_count().sum_horizontal()[0] == 0
    assert (rows["confidence_drop_rate"] != 0).any()
    assert rows["prediction_confidence"].n_unique() == 2 < rows["model_drift_score"].n_unique()
    same_bits(rows.select(names).to_numpy().T.copy(), wanted.select(names).to_numpy().T.copy(), names)


def test_forecasts_fed_back_as_bars_give_the_same_frame(
    market: dict[str, Path], batch: pl.DataFrame, tmp_path: Path
) -> None:
    """The other way of a batch: the models' columns among the bars, and features over them."""
    place = Workspace(tmp_path)
    names = _second(place)
    inputs = [name for name in names if name != "confidence_drop_rate"]
    bars = pl.concat([pl.read_parquet(market["bars"]), batch.select(inputs)], how="horizontal")
    again = mia_fast.generate_features(bars, workspace=place)
    same_bits(*(frame.select(names).fill_null(np.nan).to_numpy().T.copy() for frame in (again, batch)), names)


def test_a_stopped_run_goes_on_to_the_same_bytes(
    live: tuple[Workspace, Summary], market: dict[str, Path], tmp_path: Path
) -> None:
    undisturbed, expected = live
    place = Workspace(tmp_path)

    def stop(done: int, _total: int) -> None:
        if done >= 60 * stops[0]:
            raise KeyboardInterrupt

    for number in (1, 2, 3):
        stops = [number]
        with pytest.raises(KeyboardInterrupt):
            _run(place, market, checkpoint_bars=30, progress=stop)
    done = _run(place, market, checkpoint_bars=1000)
    assert done.resumed_at == 180
    assert done.run_id == expected.run_id
    assert _features(place, done.run_id).equals(_features(undisturbed, expected.run_id))
    first, second = (Checkpoint.read(root.data / "runs" / done.run_id / "checkpoint") for root in (place, undisturbed))
    assert first is not None
    assert second is not None
    assert first.features == second.features
    for name in ("forecasts", "account", "broker", "gate", "closes"):
        assert first.state[name] == second.state[name], name


def test_a_checkpoint_of_another_version_is_refused_and_says_so(
    live: tuple[Workspace, Summary], market: dict[str, Path], tmp_path: Path
) -> None:
    source, done = live
    place = Workspace(tmp_path)
    shutil.copytree(source.root, tmp_path, dirs_exist_ok=True)
    path = place.data / "runs" / done.run_id / "checkpoint"
    path.write_bytes(path.read_bytes().replace(b"mia-fast checkpoint 2\n", b"mia-fast checkpoint 1\n"))
    with pytest.raises(StateError, match="of another version"):
        _run(place, market)


def test_the_numbers_of_the_drift_do_not_look_ahead(batch: pl.DataFrame, tmp_path: Path) -> None:
    """A prefix of a frame has the prefix of them, and they are the plain formulas of what was known."""
    pipeline = mia_fast.NeuralPipeline(Workspace(tmp_path))
    frame = batch.drop(*pipeline.networks.outputs, *JUDGED, "imputed")
    for count in (1, 500, 1380, FIRST + 3):
        head = pipeline.generate_predictions(frame.head(count)).select(JUDGED)
        same_bits(*(part.fill_null(np.nan).to_numpy().T.copy() for part in (head, batch.select(JUDGED).head(count))))
    # The VIX's errors close by close: each judges the forecasts made since the one before it, up to a day of minutes.
    minutes = batch["minutes_since_vix_close"].to_numpy()
    new = np.flatnonzero(minutes[1:] < minutes[:-1]) + 1
    forecast, vix = (batch[name].to_numpy() for name in ("predicted_vix", "vix_term_1m"))
    errors, known, since = [], [], 0
    for k in new:
        made = forecast[since:k][np.isfinite(forecast[since:k])][-WINDOW:]
        if made.size:
            errors.append((vix[k] - made).mean())
            known.append(k)
            since = k
    assert len(errors) >= 6
    spread = batch["error_rolling_std"].to_numpy()
    assert np.isnan(spread[: known[4]]).all()
    for count in range(5, len(errors) + 1):
        end = known[count] if count < len(known) else len(spread)
        np.testing.assert_allclose(spread[known[count - 1] : end], np.std(errors[:count][-20:]), rtol=1e-9)


def test_a_version_of_the_desk_is_served_live_as_in_frames(
    live: tuple[Workspace, Summary], market: dict[str, Path], tmp_path: Path
) -> None:
    """The desk's own ``predicted_vix`` counts, in the row and for the drift; all else is the networks'."""
    onnx = pytest.importorskip("onnx")
    place = Workspace(tmp_path)
    own = place.data / "models"
    own.mkdir(parents=True)
    content = json.loads((ARTIFACTS / "predicted_vix.manifest.json").read_text())
    proto = onnx.load(ARTIFACTS / "predicted_vix.onnx")
    weights = next(part for part in proto.graph.initializer if part.name == "intercepts")
    weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) + 0.01, weights.name))
    graph = proto.SerializeToString()
    content["graph_sha256"] = hashlib.sha256(graph).hexdigest()
    content["self_test"]["relative_tolerance"] = 0.1
    (own / "predicted_vix.onnx").write_bytes(graph)
    (own / "predicted_vix.manifest.json").write_text(json.dumps(content))
    pipeline = mia_fast.NeuralPipeline(place)
    assert [model.manifest.name for model in pipeline.served] == ["networks", "predicted_vix"]
    assert registry.served(place, "predicted_vix") == "own"
    done = _run(place, market, checkpoint_bars=1000)
    rows, names = _features(place, done.run_id), _second(place)
    wanted = _frame(place, market)[FIRST : FIRST + 240]
    same_bits(rows.select(names).to_numpy().T.copy(), wanted.select(names).to_numpy().T.copy(), names)
    shipped = _features(live[0], live[1].run_id)
    assert (rows["predicted_vix"] > shipped["predicted_vix"]).all()
    assert (rows["prediction_confidence"] != shipped["prediction_confidence"]).all()
    assert rows["predicted_volatility"].equals(shipped["predicted_volatility"])
    assert done.run_id != live[1].run_id
    assert models_digest(pipeline.served) not in {content["graph_sha256"], models_digest(pipeline.served[:1])}


def test_the_first_bars_of_a_series_have_no_forecast_and_no_entry(market: dict[str, Path], tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    known = read_table("bars", market["bars"], workspace=place).frame["known_at"].dt.epoch("ns")
    done = _run(place, market, start=None, end=int(known[149]), checkpoint_bars=1000)
    rows = _features(place, done.run_id)
    assert rows["predicted_vix"].null_count() == 150
    assert 0 < rows["predicted_volatility"].null_count() < 150
    assert done.tally.actions == {"hold": 150}


def test_columns_that_the_bars_bring_stand(market: dict[str, Path], tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    frame = pl.read_parquet(market["bars"]).head(200)
    table = read_table(
        "bars", frame.with_columns(cnn_pressure=pl.lit(0.5), model_drift_score=pl.lit(0.25)), workspace=place
    )
    pipeline = mia_fast.NeuralPipeline(place)
    sources = (
        Steps.nothing("models", OUTPUTS),
        Steps.nothing("daily", ("vix", "vix_known_at", "vix_mean_5", "vix_mean_20")),
    )
    plan = plan_for(table, workspace=place, sources=sources, auxiliary=pipeline.auxiliary)
    engine = FeatureEngine(plan)
    found = Forecasts(pipeline.served, pipeline.drift(), engine, ("cnn_pressure", "model_drift_score"))
    assert "cnn_pressure" not in found.written
    assert found.judged == ("prediction_confidence", "error_rolling_std")
    engine.held("models")[:] = 0.25
    found.see(4000.0)
    held = dict(zip(plan.held["models"], engine.held("models"), strict=True))
    assert held["model_drift_score"] == 0.25
    assert np.isnan(held["prediction_confidence"])
    row = np.full(len(plan.outputs), np.nan)
    row[plan.outputs.index("cnn_pressure")] = 0.5
    found.step(row)
    assert row[plan.outputs.index("cnn_pressure")] == 0.5
    assert np.isnan(found.predicted_vix)
    assert found.refusal is not None
    assert found.refusal.startswith("MODEL_INPUT_NOT_FINITE")
    lost = found.lacking(plan, {name: frozenset() for name in plan.features})
    assert lost == {}
    poor = plan_for(read_table("bars", frame, workspace=place), workspace=place, auxiliary=pipeline.auxiliary)
    none = Forecasts(pipeline.served, None, FeatureEngine(poor))
    assert set(none.lacking(poor, {})) == {"predicted_vix"}
    none.see(4000.0)
    with pytest.raises(ModelError, match="features of 'networks' are missing"):
        Forecasts(pipeline.served, None, FeatureEngine(plan_for(table, workspace=place)))


def test_the_drift_of_a_block_is_that_of_its_bars_one_by_one() -> None:
    g = np.random.default_rng(4)
    count = 4000
    close = 4000 * np.exp(np.cumsum(g.normal(0, 2e-4, count)))
    vix_known_at = (np.arange(count) // 130).astype(float)
    vix = 20 + g.normal(0, 1, int(vix_known_at[-1]) + 1)[vix_known_at.astype(int)]
    forecast, volatility = vix + g.normal(size=count), 0.12 * np.exp(g.normal(0, 0.3, count))
    columns = np.stack([close, vix, vix_known_at, forecast, volatility])
    columns[:, g.random(count) < 0.002] = np.nan
    columns[g.integers(0, 5, 200), g.integers(0, count, 200)] = np.nan
    one, stepped = Drift(1.4, 0.2), Drift(1.4, 0.2)
    whole = one.walk(*columns)
    rows = np.array([stepped.update(*bar).copy() for bar in columns.T]).T
    same_bits(rows.copy(), whole)
    assert stepped.save() == one.save()
    assert np.isfinite(whole[:, -1]).all()
    assert len(np.unique(whole[0])) > 10
    cut = Drift(1.4, 0.2)
    places = [0, 1, 29, 30, 31, 1500, 1501, 3999, count]
    parts = []
    for first, end in itertools.pairwise(places):
        parts.append(cut.walk(*columns[:, first:end]))
        again = Drift(1.4, 0.2)
        again.restore(cut.save())
        same_bits(again.values, cut.values)
        cut = again
    same_bits(np.concatenate(parts, axis=1), whole)


def test_the_account_where_little_is_known(market: dict[str, Path], tmp_path: Path) -> None:
    """Shorts, no stop, an equity that is none, an entry that is not known; and a restart in the middle of a trade."""
    place = Workspace(tmp_path)
    table = read_table("bars", pl.read_parquet(market["bars"]).head(50), workspace=place)
    plan = plan_for(table, workspace=place, sources=(Steps.nothing("account", HELD),))
    engine = FeatureEngine(plan)
    with Journal.open(place) as journal:
        desk = Desk(place, journal=journal, clock=lambda: 1, state_folder=tmp_path)
        state = AccountState(desk, engine)

        def told(high: float, low: float, close: float, equity: float, held: float, position: Position | None):
            told.now += 60 * 10**9
            desk.controller.update_equity(equity, told.now)
            state.see(high, low, close, Account(told.now, equity, held), position)
            assert np.array_equal(
                engine.held("account"), state.values[[HELD.index(n) for n in plan.held["account"]]], True
            )
            row = np.full(len(plan.outputs), 2.0)
            state.step(row)
            return dict(zip(HELD, state.values.tolist(), strict=True)) | {EXPOSURE: row[plan.outputs.index(EXPOSURE)]}

        told.now = 1_700_000_040 * 10**9
        flat = told(101.0, 99.0, 100.0, 250_000.0, 0.0, None)
        assert [flat[name] for name in ("mae", "mfe", "position_size_ratio", "margin_risk_score", EXPOSURE)] == [
            0.0
        ] * 5
        assert np.isnan(flat["last_3_trades_success_rate"])
        short = Position("T1", -2, 100.0, told.now, 1, None, 104.0)
        now = told(103.0, 98.0, 99.0, 240_000.0, -2.0, short)
        assert now["mae"] == -3.0 * 2 * 50
        assert now["mfe"] == 2.0 * 2 * 50
        assert now["drawdown_ratio"] == 10_000 / 250_000
        assert now["drawdown_risk_score"] == pytest.approx(0.04 / 0.05)
        assert now["margin_risk_score"] == 2 * 15_000 / 240_000
        assert now["position_risk_score"] == pytest.approx(5.0 * 2 * 50 / 2400)
        assert now["portfolio_risk_score"] == now["drawdown_risk_score"]
        assert now[EXPOSURE] == pytest.approx(2 * 50 * 2.0 / 240_000)
        later = AccountState(desk, engine)
        later.restore(json.loads(json.dumps(state.save())))
        state = later
        now = told(100.0, 99.5, 100.0, 240_000.0, -2.0, short)
        assert (now["mae"], now["mfe"]) == (-300.0, 200.0), "the extremes outlive a restart"
        bare = Position("T2", 1, 100.0, told.now, 1, None, None)
        now = told(102.0, 100.0, 101.0, 240_000.0, 1.0, bare)
        assert (now["mae"], now["mfe"], now["position_risk_score"]) == (0.0, 100.0, 1.0)
        now = told(102.0, 100.0, 101.0, 240_000.0, 1.0, None)
        assert np.isnan([now["mae"], now["mfe"]]).all()
        assert now["position_risk_score"] == 1.0
        for profit in (1.0, -1.0, 0.0, 5.0):
            state.closed(profit)
        now = told(102.0, 100.0, 101.0, float("nan"), 1.0, bare)
        assert now["last_3_trades_success_rate"] == 1 / 3
        unknown = ("drawdown_ratio", "margin_risk_score", "position_risk_score", "drawdown_risk_score", EXPOSURE)
        assert np.isnan([now[name] for name in (*unknown, "portfolio_risk_score")]).all()


def test_a_saved_state_of_other_models_is_refused(market: dict[str, Path], tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    table = read_table("bars", pl.read_parquet(market["bars"]).head(50), workspace=place)
    pipeline = mia_fast.NeuralPipeline(place)
    plan = plan_for(table, workspace=place, auxiliary=pipeline.auxiliary)
    found = Forecasts(pipeline.served, Drift(1.0, 1.0), FeatureEngine(plan))
    saved = found.save()
    found.restore(json.loads(json.dumps(saved)))
    with pytest.raises(ModelError, match="damaged"):
        found.restore({**saved, "drift": saved["models"][0]})
    other = Forecasts((pipeline.model,), None, FeatureEngine(plan))
    with pytest.raises(ModelError, match="another graph"):
        other.restore(saved)
