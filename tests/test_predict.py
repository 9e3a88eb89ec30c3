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
from bars import same_bits

import mia_models
from mia_fast.errors import DataError
from mia_fast.features import catalogue as catalogues
from mia_fast.loading import definitions
from mia_fast.predict import NeuralPipeline
from mia_fast.workspace import Workspace, shipped
from mia_models.drift import OUTPUTS
from mia_models.errors import ModelError
from mia_models.session import OnnxModel

ARTIFACTS = Path(mia_models.__file__).parent / "artifacts"


@pytest.fixture
def pipeline(workspace):
    return NeuralPipeline(workspace)


SEVEN = (
    "vix_term_1m", "vix_mean_5", "vix_rolling_mean", "vol_historical_1d", "vol_historical_5d",
    "es_return_since_vix_close", "minutes_since_vix_close",
)  # fmt: skip
"""What predicted_vix cannot do without."""


def features(count: int = 12, seed: int = 0) -> pl.DataFrame:
    """Every input of the models, between real rows so that they fit each other, and a few columns besides."""
    g = np.random.default_rng(seed)
    vix = g.uniform(12, 40, count)
    manifest = json.loads((ARTIFACTS / "networks.manifest.json").read_text())
    shares = g.dirichlet(np.ones(len(manifest["self_test"]["inputs"])), count)
    rows = shares @ np.array(manifest["self_test"]["inputs"])
    columns = {p["name"]: rows[:, k] for k, p in enumerate(manifest["inputs"])}
    return pl.DataFrame(
        {
            "timestamp": np.arange(count),
            "extra": g.uniform(0, 100, count),
            **columns,
            "vol_historical_5d": g.uniform(0.08, 0.5, count),
            "vol_historical_1d": g.uniform(0.08, 0.5, count),
            "minutes_since_vix_close": g.integers(0, 1440, count),
            "es_return_since_vix_close": g.normal(0, 0.01, count),
            "vix_rolling_mean": vix * g.uniform(0.9, 1.1, count),
            "vix_mean_5": vix * g.uniform(0.9, 1.1, count),
            "vix_term_1m": vix,
        }
    )


def test_adds_the_predictions_to_any_frame(pipeline):
    frame = features()
    result = pipeline.generate_predictions(frame)
    added = [*pipeline.networks.outputs, *OUTPUTS, "confidence_drop_rate", "imputed"]
    assert result.columns == [*frame.columns, *added]
    assert result.drop(added).equals(frame)
    assert result["predicted_vix"].is_between(5, 100).all()
    assert result.select(pipeline.networks.outputs).null_count().sum_horizontal()[0] == 0
    total = result.select(pl.sum_horizontal("regime_prob_trend", "regime_prob_range", "regime_prob_defensive"))
    assert total.to_series().to_list() == pytest.approx([1.0] * 12, abs=1e-6)
    assert not result["imputed"].any()
    assert pipeline.refusals == {}
    arrow = pipeline.generate_predictions(frame.to_arrow())
    assert arrow.select(added).equals(result.select(added))
    pd = pytest.importorskip("pandas")
    from_pandas = pipeline.generate_predictions(pd.DataFrame(frame.to_dict(as_series=False)))
    assert from_pandas.select(added).equals(result.select(added))


def test_a_rally_lowers_and_a_fall_lifts_the_prediction(pipeline):
    frame = pl.concat([features(1)] * 3).with_columns(es_return_since_vix_close=pl.Series([-0.02, 0.0, 0.02]))
    low, middle, high = pipeline.generate_predictions(frame)["predicted_vix"]
    assert low > middle > high


def required(pipeline) -> str:
    """A feature that the networks cannot do without, and predicted_vix can."""
    model = pipeline.networks
    parts = zip(model.manifest.inputs, model.optional, strict=True)
    return next(part.name for part, optional in parts if not optional and part.name not in SEVEN)


def test_batch_equals_the_live_step(pipeline):
    bars_only = required(pipeline)
    frame = features(101, seed=1).with_columns(
        pl.when(pl.col("timestamp") == 3).then(None).otherwise(pl.col("vix_mean_5")).alias("vix_mean_5"),
        pl.when(pl.col("timestamp") == 7).then(math.nan).otherwise(pl.col(bars_only)).alias(bars_only),
        pl.when(pl.col("timestamp") == 9).then(math.inf).otherwise(pl.col("rsi_14")).alias("rsi_14"),
    )
    names = [name for name in pipeline.networks.outputs if name != "predicted_vix"]
    batch = pipeline.generate_predictions(frame)
    rest = batch.select(names).fill_null(math.nan).to_numpy()
    gone = np.isnan(rest)
    assert gone[[7, 9]].all()
    assert gone.sum() == 2 * len(names)  # without the VIX's mean, row 3, all but the VIX stands
    # It reads its own seven alone; an infinity is no gap, but a fault of the row.
    assert np.flatnonzero(batch["predicted_vix"].is_null()).tolist() == [3, 9]
    assert pipeline.refusals == {"INPUT_NOT_FINITE": 3}
    model = pipeline.networks
    assert pipeline.served == (model,)
    place = model.columns_in(frame.columns)
    model.reset()
    live = []
    for row in frame.iter_rows():
        model.row[:] = np.array([math.nan if v is None else float(v) for v in row])[place]
        live.append(model.step(model.row).copy())
    model.reset()
    same_bits(np.array(live), batch.select(model.outputs).fill_null(math.nan).to_numpy())


def test_the_networks_and_the_live_model_forecast_the_same_vix(pipeline):
    """The shipped networks hold the regression that is shipped by itself, trained on the same rows."""
    frame = features(50, seed=3)
    both = [
        model.predict(frame.cast(pl.Float64).to_numpy()[:, model.columns_in(frame.columns)])[:, 0]
        for model in (pipeline.networks, pipeline.model)
    ]
    np.testing.assert_allclose(*both, rtol=1e-12)


def test_a_row_that_is_passed_over_leaves_the_state_alone(pipeline):
    frame = features(60, seed=2)
    name = required(pipeline)
    holes = frame.with_columns(pl.when(pl.col("timestamp") % 7 == 5).then(None).otherwise(pl.col(name)).alias(name))
    kept = pl.col("timestamp") % 7 != 5
    with_holes = pipeline.generate_predictions(holes).filter(kept).select(pipeline.networks.outputs)
    without = pipeline.generate_predictions(frame.filter(kept)).select(pipeline.networks.outputs)
    np.testing.assert_allclose(with_holes.to_numpy(), without.to_numpy(), rtol=1e-6, atol=1e-7)


def stamped(frame: pl.DataFrame, zone: str = "UTC") -> pl.DataFrame:
    start = dt.datetime(2025, 5, 13, 14, tzinfo=dt.UTC)
    stamps = pl.datetime_range(start, start + dt.timedelta(minutes=frame.height - 1), "1m", eager=True)
    return frame.with_columns(stamps.dt.convert_time_zone(zone).alias("timestamp"))


def test_symbols_have_a_state_each(pipeline):
    """However their rows lie between one another."""
    parts = [stamped(features(60, seed=k)).with_columns(symbol=pl.lit(f"S{k}")) for k in (1, 2)]
    alone = [pipeline.generate_predictions(part) for part in parts]
    for together in (pl.concat(parts), pl.concat(parts).sort("timestamp", "symbol")):
        found = pipeline.generate_predictions(together)
        assert found.select("timestamp", "symbol").equals(together.select("timestamp", "symbol"))
        for k, want in enumerate(alone, start=1):
            assert found.filter(pl.col("symbol") == f"S{k}").equals(want)
    broken = pl.concat(parts).with_columns(
        pl.when(pl.col("timestamp").dt.minute() == 5).then(math.inf).otherwise(pl.col("rsi_14")).alias("rsi_14")
    )
    pipeline.generate_predictions(broken)
    assert pipeline.refusals == {"INPUT_NOT_FINITE": 2}


@pytest.mark.parametrize("rows", [[0, 2, 1, 3], [0, 1, 1, 2], [3, 2, 1, 0]])
def test_rows_out_of_order_are_refused(pipeline, rows):
    """A state carried through them would be that of no market."""
    with pytest.raises(DataError, match="sort the frame by timestamp") as caught:
        pipeline.generate_predictions(stamped(features(4))[rows])
    assert "nothing was predicted" in str(caught.value)


def test_latent_vectors_are_written_in_utc(workspace):
    from mia_fast import encode_vol_regime

    written = []
    for zone in ("UTC", "America/New_York"):
        encode_vol_regime(stamped(features(3), zone), workspace=workspace)
        written.append((workspace.data / "latent_vectors.csv").read_text())
    encode_vol_regime(
        stamped(features(3)).with_columns(pl.col("timestamp").dt.replace_time_zone(None)), workspace=workspace
    )
    written.append((workspace.data / "latent_vectors.csv").read_text())
    assert written[0].splitlines()[1].startswith("2025-05-13T14:00:00.000000Z,")
    assert written == [written[0]] * 3


def test_old_call_with_two_features(pipeline):
    old = pl.DataFrame({"rsi_14": [50.0], "ofi_score": [0.1]})
    with pytest.raises(ModelError) as caught:
        pipeline.generate_predictions(old)
    names = [name for name in pipeline.networks.features if name != "rsi_14"]
    assert set(pipeline.model.features) <= set(names)
    for name in names:
        assert name in str(caught.value)
    assert f"{len(names)} of the {len(names) + 1} features" in str(caught.value)
    assert "missing='impute'" in str(caught.value)
    assert "auxiliary=['es_return_since_vix_close', 'vix_mean_5', 'minutes_since_vix_close']" in str(
        caught.value
    ) or "auxiliary=['vix_mean_5', 'es_return_since_vix_close', 'minutes_since_vix_close']" in str(caught.value)
    result = pipeline.generate_predictions(old, missing="impute")
    judged = [*OUTPUTS, "confidence_drop_rate"]
    assert result.columns == ["rsi_14", "ofi_score", *pipeline.networks.outputs, *judged, "imputed"]
    assert result.select(judged).null_count().sum_horizontal()[0] == 4 * result.height  # without bars, no errors
    assert result["imputed"].to_list() == [True]
    model = pipeline.networks
    row = np.array([50.0 if p.name == "rsi_14" else p.median for p in model.manifest.inputs])
    wanted = dict(zip(model.outputs, model.predict(row[None])[0].tolist(), strict=True))
    assert result.select(list(wanted)).row(0, named=True) == wanted


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


def test_what_may_be_missing_is_said(pipeline):
    """Without the yields and the calendar the networks go on, and the row says so."""
    optional = [n for n, may in zip(pipeline.networks.features, pipeline.networks.optional, strict=True) if may]
    assert {"treasury_10y_yield", "event_timing_proximity"} <= set(optional)
    frame = features(30).with_columns(pl.lit(None, dtype=pl.Float64).alias(name) for name in optional)
    result = pipeline.generate_predictions(frame)
    assert result["imputed"].all()
    assert result.select(pipeline.networks.outputs).null_count().sum_horizontal()[0] == 0
    assert pipeline.refusals == {}


def test_null_column_of_the_catalogue_is_replaced(pipeline):
    """A feature frame may hold predicted_vix already, null until its producer exists."""
    frame = features(3).with_columns(pl.lit(None).alias("predicted_vix"), pl.lit(1).alias("after"))
    result = pipeline.generate_predictions(frame)
    assert result.columns[: len(frame.columns)] == frame.columns
    assert result["predicted_vix"].null_count() == 0


def test_no_rows(pipeline):
    result = pipeline.generate_predictions(features(3).clear(), missing="impute")
    assert result.height == 0
    assert result.schema["predicted_vix"] == pl.Float64


def test_regimes_are_encoded_and_written(workspace, pipeline):
    from mia_fast import encode_vol_regime

    start = dt.datetime(2022, 6, 6, 13, 30, tzinfo=dt.UTC)
    stamps = pl.Series("timestamp", [start + dt.timedelta(minutes=k) for k in range(12)])
    frame = features().with_columns(stamps)
    found = encode_vol_regime(frame, workspace=workspace)
    assert found.columns == ["timestamp", "latent_vol_regime_vec_1", "latent_vol_regime_vec_2", "cluster_id", "imputed"]
    whole = pipeline.generate_predictions(frame)
    assert found["latent_vol_regime_vec_2"].equals(whole["latent_vol_regime_vec_2"])
    assert found["cluster_id"].to_list() == [int(label) for label in whole["cluster_id"]]
    written = (workspace.data / "latent_vectors.csv").read_text().splitlines()
    assert written[0] == "timestamp,latent_vol_regime_vec_1,latent_vol_regime_vec_2,cluster_id"
    first = written[1].split(",")
    assert first[0] == "2022-06-06T13:30:00.000000Z"
    assert float(first[1]) == found["latent_vol_regime_vec_1"][0]
    assert first[3] == str(found["cluster_id"][0])
    assert len(written) == 13
    # One row in, one row out: a row's place does not depend on the others.
    alone = encode_vol_regime(frame[5:6], workspace=workspace)
    assert alone["cluster_id"][0] == found["cluster_id"][5]
    assert alone["latent_vol_regime_vec_1"][0] == pytest.approx(found["latent_vol_regime_vec_1"][5], abs=1e-5)
    old = pl.DataFrame({"rsi_14": [50.0], "ofi_score": [0.1]})
    with pytest.raises(ModelError, match="features of 'networks' are missing"):
        encode_vol_regime(old, workspace=workspace)
    assert encode_vol_regime(old, missing="impute", workspace=workspace)["imputed"].to_list() == [True]


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
    result = pipeline.generate_predictions(null_type)
    assert result["predicted_vix"].null_count() == 12
    assert result["cnn_pressure"].null_count() == 0


# --- the workspace's own model and catalogue ---------------------------------------------------------------


def test_own_model_comes_first_and_is_not_silently_replaced(workspace):
    own = workspace.data / "models"
    own.mkdir(parents=True)
    for name in ("predicted_vix.onnx", "predicted_vix.manifest.json"):
        shutil.copy(ARTIFACTS / name, own)
    path = own / "predicted_vix.manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"version": "9.9.9"}))
    pipeline = NeuralPipeline(workspace)
    assert pipeline.model.manifest.version == "9.9.9"
    frame = features(5)
    place = pipeline.model.columns_in(frame.columns)
    mine = pipeline.model.predict(frame.cast(pl.Float64).to_numpy()[:, place])[:, 0]
    result = pipeline.generate_predictions(frame)
    assert result["predicted_vix"].to_list() == mine.tolist()
    assert result["predicted_volatility"].null_count() == 0
    graph = own / "predicted_vix.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(ModelError, match="SHA-256"):
        NeuralPipeline(workspace)
    path.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        NeuralPipeline(workspace)


def test_a_desk_s_further_models_are_added_and_checked(workspace):
    """Under another name its outputs come beside the shipped ones; the live engine's model stays the same."""
    own = workspace.data / "models"
    own.mkdir(parents=True)
    content = json.loads((ARTIFACTS / "predicted_vix.manifest.json").read_text())
    graph = onnx_with_output(ARTIFACTS / "predicted_vix.onnx", content, "desk_vix")
    (own / "desk.onnx").write_bytes(graph)
    (own / "desk.manifest.json").write_text(json.dumps(content | {"name": "desk"}))
    pipeline = NeuralPipeline(workspace)
    assert [model.manifest.name for model in pipeline.own] == ["desk"]
    assert pipeline.model.manifest.name == "predicted_vix"
    result = pipeline.generate_predictions(features(5))
    assert [model.manifest.name for model in pipeline.served] == ["networks", "desk"]
    assert result.columns.index("desk_vix") == result.columns.index("prediction_confidence") - 1
    np.testing.assert_allclose(result["desk_vix"], result["predicted_vix"], rtol=1e-12)
    (own / "desk.manifest.json").unlink()
    again = NeuralPipeline(workspace)
    with pytest.raises(ModelError, match="cannot be read"):
        again.generate_predictions(features(5))


def test_own_networks_come_first(workspace):
    own = workspace.data / "models"
    own.mkdir(parents=True)
    for name in ("networks.onnx", "networks.manifest.json"):
        shutil.copy(ARTIFACTS / name, own)
    path = own / "networks.manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": "9.9.9"}))
    pipeline = NeuralPipeline(workspace)
    assert pipeline.networks.manifest.version == "9.9.9"
    assert pipeline.own == ()
    (own / "networks.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match="SHA-256"):
        NeuralPipeline(workspace).generate_predictions(features(5))


def onnx_with_output(path: Path, content: dict, name: str) -> bytes:
    """The graph with its schema key for an output called ``name``; ``content``, its manifest, is changed with it."""
    import hashlib

    from mia_models.manifest import SCHEMA_KEY, schema_sha256

    onnx = pytest.importorskip("onnx")
    model = onnx.load(path)
    content["outputs"][0]["name"] = name
    content["schema_sha256"] = schema_sha256([part["name"] for part in content["inputs"]], [name])
    next(entry for entry in model.metadata_props if entry.key == SCHEMA_KEY).value = content["schema_sha256"]
    graph = model.SerializeToString()
    content["graph_sha256"] = hashlib.sha256(graph).hexdigest()
    return graph


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
    assert all(part.definition for part in pipeline.networks.manifest.inputs)


def test_predicting_imports_neither_torch_nor_onnx(tmp_path):
    code = (
        "import sys, polars as pl\n"
        "from mia_fast.predict import NeuralPipeline\n"
        "assert 'onnxruntime' not in sys.modules\n"
        "pipeline = NeuralPipeline()\n"
        "row = pl.DataFrame({p.name: [p.median] for p in pipeline.networks.manifest.inputs})\n"
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
    model = OnnxModel.load(ARTIFACTS, "predicted_vix")
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


@pytest.mark.real
def test_ten_thousand_real_rows_of_the_shipped_networks(real_data, workspace, pipeline):
    """One by one they have the bits of the block; and the reference evaluator of ONNX, plain NumPy, agrees."""
    from mia_fast.features.frame import generate_features

    vix = pl.read_parquet(real_data / "vol" / "vix_family_daily_to_202206.parquet").filter(pl.col("symbol") == "VIX")
    frame = generate_features(
        real_data / "bars" / "demo_es_1m_20220606_20220617.parquet",
        cross=vix.select("date", "symbol", "close"),
        auxiliary=pipeline.auxiliary,
        workspace=workspace,
    )
    model = pipeline.networks
    matrix = frame.tail(10_000).select(model.features).cast(pl.Float64).fill_null(math.nan).to_numpy().copy()
    block = model.predict(matrix)
    assert np.isfinite(block[:, 1:]).all()
    assert 0.6 < np.isfinite(block[:, 0]).mean() < 1.0  # the VIX's inputs take five sessions
    model.reset()
    same_bits(np.array([model.step(row).copy() for row in matrix]), block)
    model.reset()
    onnx = pytest.importorskip("onnx")
    referee = pytest.importorskip("onnx.reference").ReferenceEvaluator(onnx.load(ARTIFACTS / "networks.onnx"))
    states = {f"state_{s.name}": np.zeros(s.shape, dtype=np.float32) for s in model.manifest.memory.states}
    (wanted,) = referee.run(["predictions"], {"features": matrix, **states})
    scale = np.maximum(np.nanmax(wanted, axis=0) - np.nanmin(wanted, axis=0), 1e-2)
    assert np.nanmax(np.abs(block - wanted) / scale) <= 1e-5


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


@pytest.mark.parametrize("name", ["predicted_vix", "networks"])
def test_a_training_is_recorded_once_with_its_errors_out_of_sample(tmp_path: Path, name: str) -> None:
    from mia_fast import journal
    from mia_fast.training import record
    from mia_models.manifest import Manifest

    text = (ARTIFACTS / f"{name}.manifest.json").read_text(encoding="utf-8")
    manifest = Manifest.model_validate_json(text)
    workspace = Workspace(tmp_path)
    with journal.of(workspace) as store:
        assert record(manifest, workspace, now_ns=1_600_000_000_000_000_000) == len(manifest.metrics)
        assert record(manifest, workspace) == len(manifest.metrics), "again: nothing doubled, nothing in conflict"
        rows = store.query("SELECT model, loss, step, detail, epoch_ns(timestamp) FROM training ORDER BY step").rows()
        assert store.query("SELECT count(*) FROM alerts").item() == 0
    assert [(row[0], row[1], row[2]) for row in rows] == [
        (name, metric.errors[metric.model], step) for step, metric in enumerate(manifest.metrics)
    ]
    assert {row[4] for row in rows} == {1_600_000_000_000_000_000}
    first = json.loads(rows[0][3])
    assert first["errors"] == manifest.metrics[0].errors
    assert first["trained_on"] == {file.name: file.sha256 for file in manifest.training.data}
