"""``NeuralPipeline`` on frames, and the shipped model on real bars."""

from __future__ import annotations

import datetime as dt
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import mia_models
from mia_fast.errors import DataError
from mia_fast.features import catalogue as catalogues
from mia_fast.loading import definitions
from mia_fast.predict import NeuralPipeline
from mia_fast.workspace import Workspace, shipped
from mia_models.errors import ModelError

ARTIFACTS = Path(mia_models.__file__).parent / "artifacts"


@pytest.fixture
def pipeline(workspace):
    return NeuralPipeline(workspace)


def features(count: int = 12, seed: int = 0) -> pl.DataFrame:
    g = np.random.default_rng(seed)
    vix = g.uniform(12, 40, count)
    return pl.DataFrame(
        {
            "timestamp": np.arange(count),
            "rsi_14": g.uniform(0, 100, count),
            "vol_historical_5d": g.uniform(0.08, 0.5, count),
            "vol_historical_1d": g.uniform(0.08, 0.5, count),
            "minutes_since_vix_close": g.integers(0, 1440, count),
            "es_return_since_vix_close": g.normal(0, 0.01, count),
            "vix_rolling_mean": vix * g.uniform(0.9, 1.1, count),
            "vix_mean_5": vix * g.uniform(0.9, 1.1, count),
            "vix_term_1m": vix,
        }
    )


def test_adds_the_prediction_to_any_frame(pipeline):
    frame = features()
    result = pipeline.generate_predictions(frame)
    assert result.columns == [*frame.columns, "predicted_vix"]
    assert result.drop("predicted_vix").equals(frame)
    assert result["predicted_vix"].is_between(5, 100).all()
    assert pipeline.refusals == {}
    arrow = pipeline.generate_predictions(frame.to_arrow())
    assert arrow["predicted_vix"].equals(result["predicted_vix"])
    pd = pytest.importorskip("pandas")
    from_pandas = pipeline.generate_predictions(pd.DataFrame(frame.to_dict(as_series=False)))
    assert from_pandas["predicted_vix"].equals(result["predicted_vix"])


def test_a_rally_lowers_and_a_fall_lifts_the_prediction(pipeline):
    frame = pl.concat([features(1)] * 3).with_columns(es_return_since_vix_close=pl.Series([-0.02, 0.0, 0.02]))
    low, middle, high = pipeline.generate_predictions(frame)["predicted_vix"]
    assert low > middle > high


def test_batch_equals_the_live_step(pipeline):
    frame = features(101, seed=1).with_columns(
        vix_mean_5=pl.when(pl.col("timestamp") == 3).then(None).otherwise(pl.col("vix_mean_5")),
        vol_historical_1d=pl.when(pl.col("timestamp") == 7).then(math.nan).otherwise(pl.col("vol_historical_1d")),
    )
    batch = pipeline.generate_predictions(frame)["predicted_vix"].to_list()
    model = pipeline.model
    offered = frame.columns
    place = model.columns_in(offered)
    for k, row in enumerate(frame.iter_rows()):
        values = np.array([math.nan if v is None else float(v) for v in row])[place]
        live = float(model.step(values)[0])
        if k in (3, 7):
            assert batch[k] is None
            assert math.isnan(live)
            assert model.refusal is not None
        else:
            assert live == batch[k]
    assert pipeline.refusals == {"INPUT_NOT_FINITE": 2}


def test_old_call_with_two_features(pipeline):
    old = pl.DataFrame({"rsi_14": [50.0], "ofi_score": [0.1]})
    with pytest.raises(ModelError) as caught:
        pipeline.generate_predictions(old)
    for name in pipeline.model.features:
        assert name in str(caught.value)
    assert "7 of the 7 features" in str(caught.value)
    assert "missing='impute'" in str(caught.value)
    assert "auxiliary=['vix_mean_5', 'es_return_since_vix_close', 'minutes_since_vix_close']" in str(caught.value)
    result = pipeline.generate_predictions(old, missing="impute")
    assert result.columns == ["rsi_14", "ofi_score", "predicted_vix", "imputed"]
    assert result["imputed"].to_list() == [True]
    medians = np.array([part.median for part in pipeline.model.manifest.inputs])
    assert result["predicted_vix"].to_list() == pipeline.model.predict(medians[None])[:, 0].tolist()


def test_imputation_fills_nulls_and_nan_but_not_infinities(pipeline):
    frame = features(4).with_columns(
        vix_mean_5=pl.Series([None, 20.0, 20.0, 20.0]),
        vol_historical_1d=pl.Series([0.2, math.nan, math.inf, 0.2]),
    )
    result = pipeline.generate_predictions(frame, missing="impute")
    assert result["imputed"].to_list() == [True, True, False, False]
    assert result["predicted_vix"].is_null().to_list() == [False, False, True, False]
    assert pipeline.refusals == {"INPUT_NOT_FINITE": 1}
    median = next(p.median for p in pipeline.model.manifest.inputs if p.name == "vix_mean_5")
    filled = frame.with_columns(vix_mean_5=pl.Series([median, 20.0, 20.0, 20.0]))
    assert pipeline.generate_predictions(filled)["predicted_vix"][0] == result["predicted_vix"][0]


def test_null_column_of_the_catalogue_is_replaced(pipeline):
    """A feature frame may hold predicted_vix already, null until its producer exists."""
    frame = features(3).with_columns(pl.lit(None).alias("predicted_vix"), pl.lit(1).alias("after"))
    result = pipeline.generate_predictions(frame)
    assert result.columns == frame.columns
    assert result["predicted_vix"].null_count() == 0


def test_no_rows(pipeline):
    result = pipeline.generate_predictions(features(3).clear(), missing="impute")
    assert result.height == 0
    assert result.schema["predicted_vix"] == pl.Float64


@pytest.mark.parametrize("data", [[1, 2], {"a": [1]}, np.zeros((2, 7)), None])
def test_what_is_no_table(pipeline, data):
    with pytest.raises(DataError, match="is not a table"):
        pipeline.generate_predictions(data)


def test_wrong_type_and_wrong_choice(pipeline):
    with pytest.raises(DataError, match="'vix_term_1m' is String"):
        pipeline.generate_predictions(features().with_columns(pl.col("vix_term_1m").cast(pl.String)))
    with pytest.raises(DataError, match="missing='guess' is not known"):
        pipeline.generate_predictions(features(), missing="guess")  # type: ignore[arg-type]
    null_type = features().with_columns(pl.lit(None).alias("vix_mean_5"))
    assert pipeline.generate_predictions(null_type)["predicted_vix"].null_count() == 12


# --- the workspace's own model and catalogue ---------------------------------------------------------------


def test_own_model_comes_first_and_is_not_silently_replaced(workspace):
    own = workspace.data / "models"
    own.mkdir(parents=True)
    for name in ("predicted_vix.onnx", "predicted_vix.manifest.json"):
        shutil.copy(ARTIFACTS / name, own)
    path = own / "predicted_vix.manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"version": "9.9.9"}))
    assert NeuralPipeline(workspace).model.manifest.version == "9.9.9"
    graph = own / "predicted_vix.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(ModelError, match="SHA-256"):
        NeuralPipeline(workspace)
    path.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        NeuralPipeline(workspace)


def test_a_feature_defined_otherwise_is_refused(workspace):
    text = workspace.config("feature_sets.yaml").read_text()
    path = workspace.root / "config" / "feature_sets.yaml"
    path.parent.mkdir()
    path.write_text(text)
    NeuralPipeline(workspace)
    assert "(time - vix_known_at) / 60" in text
    path.write_text(text.replace("(time - vix_known_at) / 60", "(time - vix_known_at) / 3600"))
    with pytest.raises(ModelError, match="computes minutes_since_vix_close otherwise"):
        NeuralPipeline(workspace)


def test_definitions_follow_what_they_read():
    catalogue = catalogues.read(Workspace.current())
    names = ["vol_historical_1d", "es_return_since_vix_close", "vix_mean_5", "no_such_feature"]
    found = definitions(catalogue, names)
    assert list(found) == names[:3]
    assert len(set(found.values())) == 3

    def changed(name: str, **update) -> dict[str, str]:
        auxiliary = tuple(c.model_copy(update=update) if c.name == name else c for c in catalogue.auxiliary)
        return definitions(catalogue.model_copy(update={"auxiliary": auxiliary}), names)

    assert changed("true_range", kernel="other") == found
    other = changed("log_return", params={"bars": 2})
    assert {name for name in found if found[name] != other[name]} == {"vol_historical_1d"}
    other = changed("log_close", expression="log(open)")
    assert {name for name in found if found[name] != other[name]} == {"es_return_since_vix_close"}


def test_manifest_knows_the_definitions(pipeline):
    assert all(part.definition for part in pipeline.model.manifest.inputs)


def test_predicting_imports_neither_torch_nor_onnx(tmp_path):
    code = (
        "import sys, polars as pl\n"
        "from mia_fast.predict import NeuralPipeline\n"
        "assert 'onnxruntime' not in sys.modules\n"
        "pipeline = NeuralPipeline()\n"
        "row = pl.DataFrame({p.name: [p.median] for p in pipeline.model.manifest.inputs})\n"
        "assert pipeline.generate_predictions(row)['predicted_vix'].null_count() == 0\n"
        "heavy = {'torch', 'onnx', 'pandas', 'matplotlib', 'sklearn', 'mia_models.training'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    import os

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MIA_WORKSPACE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


# --- real data ---------------------------------------------------------------------------------------------


@pytest.mark.real
def test_card_figures_on_the_hold_out(real_data, workspace, pipeline):
    """The shipped graph on the feature engine's output has the errors that its card states for 2022H1."""
    from mia_fast.training import vix_samples

    bars = [real_data / "bars" / f"es_1m_{year}.parquet" for year in ("2021", "2022h1")]
    vix = real_data / "vol" / "vix_family_daily_to_202206.parquet"
    model = pipeline.model
    samples = vix_samples(bars, vix, model.features, workspace=workspace)
    rows = samples.take(samples.target_day >= np.datetime64("2022-01-01").astype(np.int64))
    predicted = model.predict(np.column_stack([rows.columns[name] for name in model.features]))[:, 0]
    vix_now = rows.columns["vix_term_1m"]
    there = np.isfinite(predicted) & np.isfinite(rows.target)
    stated = {m.view: m for m in model.manifest.metrics if m.period == "2022H1"}

    def error(values: np.ndarray, chosen: np.ndarray) -> float:
        return float(np.abs(values - rows.target)[chosen].mean())

    assert error(predicted, there) == pytest.approx(stated["all bars"].errors["model"], abs=1e-4)
    assert error(vix_now, there) == pytest.approx(stated["all bars"].errors["persistence"], abs=1e-4)
    # At 13:00, by another road than the one that wrote the card.
    frame = pl.DataFrame(
        {"day": rows.local_day, "minute": rows.local_minute, "target_day": rows.target_day, "k": np.arange(len(rows))}
    )
    seen = frame.filter((pl.col("day") == pl.col("target_day")) & (pl.col("minute") == 780)).sort("day")["k"].to_numpy()
    assert len(seen) == stated["13:00"].sessions
    assert error(predicted, seen) == pytest.approx(stated["13:00"].errors["model"], abs=1e-4)
    # The reference's mark for persistence: 1.678 on 125 days; the card also counts 3 January 2022.
    assert error(vix_now, seen[1:]) == pytest.approx(1.678, abs=2e-3)


@pytest.mark.real
def test_no_input_is_known_too_early(real_data, workspace):
    """VIX closes from 16:15 of a day on do not change what was computed before it."""
    from mia_fast.features.frame import generate_features

    bars = pl.read_parquet(real_data / "bars" / "demo_es_1m_20220606_20220617.parquet")
    vix = pl.read_parquet(real_data / "vol" / "vix_family_daily_to_202206.parquet").filter(pl.col("symbol") == "VIX")
    names = NeuralPipeline(workspace).auxiliary
    cut = pl.date(2022, 6, 14)
    spoilt = vix.with_columns(
        pl.when(pl.col("date") >= cut).then(pl.col("close") * 2).otherwise(pl.col("close")).alias("close")
    )
    honest, other = (
        NeuralPipeline(workspace).generate_predictions(
            generate_features(
                bars, cross=closes.select("date", "symbol", "close"), auxiliary=names, workspace=workspace
            )
        )
        for closes in (vix, spoilt)
    )
    known = pl.col("timestamp") + pl.duration(minutes=1)
    before = known < pl.datetime(2022, 6, 14, 20, 15, time_zone="UTC")
    first, second = (frame.filter(before)["predicted_vix"] for frame in (honest, other))
    assert first.null_count() < len(first)
    assert first.equals(second)
    after = (frame.filter(~before)["predicted_vix"] for frame in (honest, other))
    assert not next(after).equals(next(after))


# --- the glue of training ------------------------------------------------------------------------------------


def minute_bars(first: str, count: int) -> pl.DataFrame:
    start = dt.datetime.fromisoformat(first + "+00:00")
    times = pl.datetime_range(start, start + dt.timedelta(minutes=count - 1), interval="1m", eager=True)
    price = 4000.0 + np.arange(count) * 0.25
    return pl.DataFrame(
        {"timestamp": times, "open": price, "high": price + 1, "low": price - 1, "close": price, "volume": 10.0}
    )


def closes(symbol: str, path: Path, days: int = 40) -> Path:
    dates = pl.date_range(pl.date(2021, 5, 10), pl.date(2021, 7, 1), eager=True)[:days]
    pl.DataFrame({"date": dates, "symbol": symbol, "close": 20.0 + np.arange(days) * 0.1}).write_parquet(path)
    return path


def test_samples_from_files(tmp_path, workspace):
    from mia_fast.training import vix_samples

    for k, first in enumerate(("2021-06-10T13:00:00", "2021-06-09T13:00:00")):
        minute_bars(first, 600).write_parquet(tmp_path / f"{k}.parquet")
    names = ["vix_term_1m", "minutes_since_vix_close", "close"]
    bars = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    samples = vix_samples(bars, closes("VIX", tmp_path / "v.parquet"), names, workspace=workspace)
    assert len(samples) == 1200
    assert samples.local_minute[:2].tolist() == [541, 542]  # known at 09:01 New York
    day = np.datetime64("2021-06-09").astype(int)
    assert samples.local_day[[0, 600]].tolist() == [day, day + 1]
    # The close of 9 June, the 31st of the file, is known from 16:15: the 435th bar of that day closes then.
    assert samples.columns["minutes_since_vix_close"][[433, 434]].tolist() == [1439.0, 0.0]
    assert samples.columns["vix_term_1m"][[433, 434]].tolist() == pytest.approx([22.9, 23.0])
    assert samples.target[[433, 434]].tolist() == pytest.approx([23.0, 23.1])
    assert samples.target_day[[433, 434]].tolist() == [day, day + 1]


def test_files_that_training_refuses(tmp_path, workspace):
    from mia_fast.training import vix_prior, vix_samples

    minute_bars("2021-06-09T13:00:00", 600).write_parquet(tmp_path / "a.parquet")
    minute_bars("2021-06-09T22:00:00", 600).write_parquet(tmp_path / "b.parquet")
    vix = closes("VIX", tmp_path / "v.parquet")
    with pytest.raises(DataError, match="overlap in time"):
        vix_samples([tmp_path / "a.parquet", tmp_path / "b.parquet"], vix, ["close"], workspace=workspace)
    other = closes("VVIX", tmp_path / "o.parquet")
    with pytest.raises(DataError, match="no symbol VIX in it"):
        vix_samples([tmp_path / "a.parquet"], other, ["close"], workspace=workspace)
    with pytest.raises(DataError, match="no symbol SPX in it"):
        vix_prior(vix, other, workspace=workspace)
    with pytest.raises(ModelError, match="0 days have both closes"):
        vix_prior(vix, closes("SPX", tmp_path / "s.parquet"), workspace=workspace)


@pytest.mark.real
def test_prior_of_the_real_history(real_data, workspace):
    """VIX fell by about 5 % for a rise of one implied daily move from 2004 to 2018, and rose by more for a fall."""
    from mia_fast.training import vix_prior
    from mia_models.training.response import TERMS

    vix = real_data / "vol" / "vix_family_daily_to_202206.parquet"
    prior = vix_prior(vix, real_data / "cross" / "daily_prices_to_202206.parquet", workspace=workspace)
    move, fall = prior[1 + TERMS.index("move")], prior[1 + TERMS.index("fall")]
    assert -0.06 < move < -0.04
    assert -0.05 < fall < -0.02


def test_an_input_that_is_declared_otherwise_is_another_input(workspace: Workspace) -> None:
    """The mean of five closes that the model was trained on is not the mean of seven under its name."""
    shipped_text = (shipped() / "config" / "feature_sets.yaml").read_text(encoding="utf-8")
    assert shipped_text.count("statistic: mean, period: 5") == 1
    folder = workspace.root / "config"
    folder.mkdir()
    (folder / "feature_sets.yaml").write_text(
        shipped_text.replace("statistic: mean, period: 5", "statistic: mean, period: 7"), encoding="utf-8"
    )
    with pytest.raises(ModelError, match="computes vix_mean_5 otherwise"):
        NeuralPipeline(workspace)


def test_a_training_is_recorded_once_with_its_errors_out_of_sample(tmp_path: Path) -> None:
    from mia_fast import journal
    from mia_fast.training import record
    from mia_models.manifest import Manifest

    text = (ARTIFACTS / "predicted_vix.manifest.json").read_text(encoding="utf-8")
    manifest = Manifest.model_validate_json(text)
    workspace = Workspace(tmp_path)
    with journal.of(workspace) as store:
        assert record(manifest, workspace, now_ns=1_600_000_000_000_000_000) == len(manifest.metrics)
        assert record(manifest, workspace) == len(manifest.metrics), "again: nothing doubled, nothing in conflict"
        rows = store.query("SELECT model, loss, step, detail, epoch_ns(timestamp) FROM training ORDER BY step").rows()
        assert store.query("SELECT count(*) FROM alerts").item() == 0
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ("predicted_vix", metric.errors["model"], step) for step, metric in enumerate(manifest.metrics)
    ]
    assert {row[4] for row in rows} == {1_600_000_000_000_000_000}
    first = json.loads(rows[0][3])
    assert first["errors"] == manifest.metrics[0].errors
    assert first["trained_on"] == {file.name: file.sha256 for file in manifest.training.data}
