"""Versions of a model, challengers, drift, and the commands over them."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from crash_memory import START
from test_models_training import NO_PRIOR, simulated
from typer.testing import CliRunner

import mia_models
from mia_fast import journal as journals
from mia_fast import memory, registry
from mia_fast.cli.commands import app
from mia_fast.errors import ConfigError, DataError, JournalError, MarketMemoryError
from mia_fast.memory.learner import BINS, AdaptiveLearner, Reference
from mia_fast.predict import NeuralPipeline
from mia_fast.retraining import retrain_model
from mia_fast.workspace import Workspace
from mia_models.errors import ModelError
from mia_models.training import evaluate
from mia_models.training.challenge import CHALLENGER, CHAMPION, challenge
from mia_models.training.response import INPUTS

SHIPPED = Path(mia_models.__file__).parent / "artifacts"
NO_PATTERNS = np.empty((0, 2), dtype=np.int64)
MODEL = "predicted_vix"


@pytest.fixture(autouse=True)
def _closed(workspace: Workspace) -> Iterator[None]:
    yield
    memory.forget(workspace)
    if journals.is_open(workspace):
        journals.of(workspace).close()


def challenger(workspace: Workspace, name: str = "abcdef123456") -> Path:
    """A version that can be served: the shipped model under another name of its folder."""
    place = workspace.data / "models" / "versions" / MODEL / name
    place.mkdir(parents=True)
    for path in SHIPPED.glob(f"{MODEL}.*"):
        shutil.copy(path, place / path.name)
    return place


def swaps(workspace: Workspace) -> list[tuple[str, str, str, str]]:
    told = journals.query(workspace, "SELECT code, detail FROM training ORDER BY sequence").rows()
    details = [(code, json.loads(detail)) for code, detail in told]
    return [(code, detail["before"], detail["version"], detail["reason"]) for code, detail in details]


# --- the registry


def test_the_shipped_model_is_served_where_nothing_else_is(workspace: Workspace) -> None:
    assert registry.served(workspace, MODEL) == "shipped"
    assert registry.folder(workspace, MODEL) == SHIPPED
    (found,) = registry.versions(workspace, MODEL)
    assert (found.version, found.served, found.trained_to) == ("shipped", True, "2021-12-30")


def test_a_model_in_data_models_is_the_version_own(workspace: Workspace) -> None:
    own = workspace.data / "models"
    own.mkdir(parents=True)
    for path in SHIPPED.glob(f"{MODEL}.*"):
        shutil.copy(path, own / path.name)
    assert registry.served(workspace, MODEL) == "own"
    assert [found.version for found in registry.versions(workspace, MODEL)] == ["shipped", "own"]
    registry.promote(workspace, MODEL, "shipped", reason="a test")
    assert registry.folder(workspace, MODEL) == SHIPPED
    (own / f"{MODEL}.onnx").write_bytes(b"broken")
    with pytest.raises(ModelError):
        registry.promote(workspace, MODEL, "own", reason="a test")
    assert registry.served(workspace, MODEL) == "shipped"


def test_promotion_and_rollback_are_journalled_and_reversible(workspace: Workspace) -> None:
    first, second = challenger(workspace), challenger(workspace, "fedcba654321")
    assert registry.promote(workspace, MODEL, "abc", reason="better") == "shipped"
    assert registry.folder(workspace, MODEL) == first
    assert NeuralPipeline(workspace).model.manifest.name == MODEL
    assert registry.promote(workspace, MODEL, "fedcba654321", reason="better still") == "abcdef123456"
    assert registry.folder(workspace, MODEL) == second
    assert registry.rollback(workspace, MODEL, reason="worse") == ("abcdef123456", "fedcba654321")
    assert registry.rollback(workspace, MODEL, reason="worse too") == ("shipped", "abcdef123456")
    with pytest.raises(ModelError, match="no other version"):
        registry.rollback(workspace, MODEL, reason="further")
    assert swaps(workspace) == [
        ("MODEL_PROMOTED", "shipped", "abcdef123456", "better"),
        ("MODEL_PROMOTED", "abcdef123456", "fedcba654321", "better still"),
        ("MODEL_ROLLED_BACK", "fedcba654321", "abcdef123456", "worse"),
        ("MODEL_ROLLED_BACK", "abcdef123456", "shipped", "worse too"),
    ]


def test_what_cannot_be_served_is_not_promoted(workspace: Workspace) -> None:
    place = challenger(workspace)
    for version, match in (("nonsense", "no version"), ("", "no version"), ("shipped", "already")):
        with pytest.raises(ModelError, match=match):
            registry.promote(workspace, MODEL, version, reason="a test")
    challenger(workspace, "abcdef999999")
    with pytest.raises(ModelError, match="more than one"):
        registry.promote(workspace, MODEL, "abcdef", reason="a test")
    (place / f"{MODEL}.manifest.json").unlink()
    with pytest.raises(ModelError, match="manifest"):
        registry.promote(workspace, MODEL, "abcdef123456", reason="a test")
    assert registry.versions(workspace, MODEL)[1].fault
    assert not (workspace.data / "models" / "served.json").exists()


def test_without_the_journal_nothing_is_swapped(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    challenger(workspace)
    journal = journals.of(workspace)
    journal._fail("the disk is gone")
    with pytest.raises(JournalError):
        registry.promote(workspace, MODEL, "abc", reason="a test")
    with pytest.raises(JournalError):
        journal.close()
    assert registry.served(workspace, MODEL) == "shipped"


def test_a_damaged_record_or_a_version_that_is_gone_is_an_error(workspace: Workspace) -> None:
    place = challenger(workspace)
    registry.promote(workspace, MODEL, "abc", reason="a test")
    shutil.rmtree(place)
    with pytest.raises(ModelError):
        NeuralPipeline(workspace)
    path = workspace.data / "models" / "served.json"
    for content in ("[", "[]", '{"predicted_vix": {}}', '{"predicted_vix": {"version": 1, "before": []}}'):
        path.write_text(content)
        with pytest.raises(ModelError, match="which models are served"):
            NeuralPipeline(workspace)


def test_the_commands(workspace: Workspace) -> None:
    challenger(workspace)
    run = CliRunner()
    assert "shipped" in run.invoke(app, ["models", "list"]).output
    told = run.invoke(app, ["models", "promote", "abc", "--reason", "a test"])
    assert told.exit_code == 0, told.output
    assert "shipped -> abcdef123456" in told.output
    assert "abcdef123456 -> shipped" in run.invoke(app, ["models", "rollback", "--reason", "back"]).output
    assert isinstance(run.invoke(app, ["models", "list", "unknown"]).exception, ConfigError)


def test_the_networks_have_versions_too(workspace: Workspace) -> None:
    """One that is promoted gives every output, ``predicted_vix`` among them; the shipped one comes back."""
    content = json.loads((SHIPPED / "networks.manifest.json").read_text())
    version = content["graph_sha256"][:12]
    place = registry.new_folder(workspace, "networks", content["graph_sha256"])
    place.mkdir(parents=True)
    shutil.copy(SHIPPED / "networks.onnx", place)
    (place / "networks.manifest.json").write_text(json.dumps(content | {"version": "2.0.0"}))
    assert [found.version for found in registry.versions(workspace, "networks")] == ["shipped", version]
    run = CliRunner()
    promote = ["models", "promote", version[:6], "--name", "networks", "--reason", "a test"]
    assert f"networks: shipped -> {version}" in run.invoke(app, promote).output
    pipeline = NeuralPipeline(workspace)
    assert [model.manifest.version for model in pipeline.served] == ["2.0.0"]
    assert registry.served(workspace, MODEL) == "shipped"
    assert version in run.invoke(app, ["models", "list", "networks"]).output
    assert registry.rollback(workspace, "networks", reason="back") == ("shipped", version)
    assert NeuralPipeline(workspace).networks.manifest.version != "2.0.0"


# --- challengers


def champion_of(samples: object) -> object:
    """Predicts the last close: a model that learnt nothing."""
    return lambda matrix: matrix[:, INPUTS.index("vix_term_1m")].copy()


def test_a_challenger_that_knows_more_wins_and_one_that_does_not_loses() -> None:
    samples = simulated("2020-01-01", "2022-07-01")
    old = evaluate.day("2020-06-01")
    parts = {"window_sessions": 400, "judged_sessions": 60}
    found = challenge(samples, NO_PRIOR, champion_of(samples), old, NO_PATTERNS, **parts)  # type: ignore[arg-type]
    assert found.wins
    assert found.patterns is None
    assert found.overall.errors[CHALLENGER] < 0.9 * found.overall.errors[CHAMPION]
    assert found.overall.sessions == 60
    days = np.unique(samples.target_day)
    assert found.rows.target_day.max() < days[-60] - evaluate.PURGED_DAYS
    assert len(np.unique(found.rows.target_day)) <= 400
    strong = found.model
    again = challenge(
        samples,
        NO_PRIOR,
        lambda matrix: strong.predict(dict(zip(INPUTS, matrix.T, strict=True))),
        old,
        NO_PATTERNS,
        **parts,  # type: ignore[arg-type]
    )
    assert not again.wins, "a model does not beat itself"
    assert again.overall.gain == 0.0


def test_the_judged_sessions_decide_nothing_in_the_training() -> None:
    samples = simulated("2020-01-01", "2022-07-01")
    days = np.unique(samples.target_day)
    later = samples.target_day >= days[-60]
    spoilt = type(samples)(
        samples.local_day,
        samples.local_minute,
        {name: np.where(later, values * 1.3, values) for name, values in samples.columns.items()},
        np.where(later, 44.0, samples.target),
        samples.target_day,
    )
    parts = {"window_sessions": 400, "judged_sessions": 60}
    a, b = (challenge(rows, NO_PRIOR, champion_of(rows), 0, NO_PATTERNS, **parts) for rows in (samples, spoilt))  # type: ignore[arg-type]
    assert np.array_equal(a.model.coefficients, b.model.coefficients)
    assert a.overall != b.overall


def test_patterns_are_trained_on_and_judged_apart() -> None:
    samples = simulated("2020-01-01", "2022-07-01")
    odd = type(samples)(
        samples.local_day, samples.local_minute + 1, samples.columns, samples.target, samples.target_day
    )  # no bar lies on the 15 minutes: without patterns there is nothing to train on
    patterns = np.column_stack([odd.local_day, odd.local_minute])
    parts = {"window_sessions": 400, "judged_sessions": 60}
    found = challenge(odd, NO_PRIOR, champion_of(odd), 0, patterns, **parts)  # type: ignore[arg-type]
    assert found.patterns is not None
    assert found.patterns.errors == found.overall.errors
    few = challenge(samples, NO_PRIOR, champion_of(samples), 0, patterns[-5:] - [[0, 1]], **parts)  # type: ignore[arg-type]
    assert few.patterns is None, "5 bars say nothing"


def test_a_champion_is_not_judged_on_what_it_has_seen() -> None:
    samples = simulated("2020-01-01", "2021-01-01")
    last = int(samples.target_day.max())
    parts = {"window_sessions": 400, "judged_sessions": 60}
    with pytest.raises(ModelError, match="the champion has seen"):
        challenge(samples, NO_PRIOR, champion_of(samples), last - 10, NO_PATTERNS, **parts)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="a challenge needs"):
        challenge(samples, NO_PRIOR, champion_of(samples), 0, NO_PATTERNS, window_sessions=60, judged_sessions=400)  # type: ignore[arg-type]


def test_retraining_says_what_it_lacks(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="nothing to train on"):
        retrain_model(MODEL)
    with pytest.raises(ConfigError, match="no model 'other'"):
        retrain_model("other")
    with pytest.raises(ConfigError, match="networks is not trained again by itself") as told:
        retrain_model("networks")
    assert "mia-fast train networks" in str(told.value)


@pytest.mark.real
@pytest.mark.skipif(not os.environ.get("MIA_WHOLE"), reason="half a minute: make torture")
def test_retraining_on_the_real_bars(workspace: Workspace, real_data: Path) -> None:
    """The whole of it: files, features, both models, the version on disk, the record."""
    pytest.importorskip("onnx")
    config = workspace.root / "config"
    config.mkdir(parents=True)
    text = workspace.config("memory.yaml").read_text()
    (config / "memory.yaml").write_text(text.replace("window_sessions: 750", "window_sessions: 60"))
    done = retrain_model(
        MODEL,
        bars=[real_data / "bars" / "es_1m_2022h1.parquet"],
        vix=real_data / "vol" / "vix_family_daily_to_202206.parquet",
        index=real_data / "cross" / "daily_prices_to_202206.parquet",
        workspace=workspace,
    )
    assert done.champion == "shipped"
    assert done.sessions == 60
    found = {one.version: one for one in registry.versions(workspace, MODEL)}
    assert found[done.version].fault is None
    assert found[done.version].gain == done.gain
    assert done.promoted == (done.gain_low > 0)
    assert registry.served(workspace, MODEL) == (done.version if done.promoted else "shipped")
    told = journals.query(workspace, "SELECT code FROM training")["code"].to_list()
    assert told == ["MODEL_PROMOTED" if done.promoted else "MODEL_KEPT"]


# --- drift


def features(workspace: Workspace, rows: int, seed: int = 1, shift: float = 0.0) -> pl.DataFrame:
    g = np.random.default_rng(seed)
    names = memory.memory_features(workspace).names
    return pl.DataFrame({name: g.normal(shift, 1.0, rows) for name in names})


def test_the_stability_index_is_its_formula() -> None:
    g = np.random.default_rng(0)
    old, new = g.normal(size=5000), g.normal(0.5, 1.2, 3000)
    found = Reference.of(["x"], old[:, None]).psi(["x"], new[:, None])["x"]
    edges = np.r_[-np.inf, np.quantile(old, np.arange(1, BINS) / BINS), np.inf]
    e = np.histogram(old, edges)[0] / 5000
    a = np.histogram(new, edges)[0] / 3000
    assert found == pytest.approx(float(((a - e) * np.log(a / e)).sum()), rel=1e-9)
    assert Reference.of(["x"], old[:, None]).psi(["x"], old[:, None])["x"] == 0.0
    gone = np.where(g.random(5000) < 0.5, np.nan, old)
    assert Reference.of(["x"], old[:, None]).psi(["x"], gone[:, None])["x"] > 1.0, "values that vanish are drift"
    constant = np.ones((500, 1))
    assert Reference.of(["x"], constant).psi(["x"], constant)["x"] == 0.0


def test_a_retraining_is_proposed_on_drift_error_or_schedule(workspace: Workspace) -> None:
    learner = AdaptiveLearner(workspace)
    with pytest.raises(DataError, match="no reference"):
        learner.propose(features(workspace, 500))
    learner.set_reference(features(workspace, 2000))
    assert not learner.propose(features(workspace, 1000, seed=2))
    drifted = AdaptiveLearner(workspace).propose(features(workspace, 1000, seed=2, shift=1.0))
    assert "have drifted" in drifted.reasons[0]
    assert min(drifted.psi.values()) > learner.config.psi
    assert not learner.propose(errors=np.array([1.0, -1.1, np.nan]), error_reference=1.0)
    assert "error is 2.00 times" in learner.propose(errors=np.array([2.0, -2.0]), error_reference=1.0).reasons[0]
    day = dt.date(2025, 1, 1)
    assert not learner.propose(trained=day, now_ns=START - 100 * 86_400 * 10**9)
    assert "schedule" in learner.propose(trained=day, now_ns=START).reasons[0]
    told = journals.query(workspace, "SELECT code, loss, detail FROM training WHERE model = 'predicted_vix'")
    asked = ["NOT_NEEDED", "PROPOSED", "NOT_NEEDED", "PROPOSED", "NOT_NEEDED", "PROPOSED"]
    assert told["code"].to_list() == [f"RETRAIN_{answer}" for answer in asked]
    assert told["loss"].to_list() == [None, None, pytest.approx(1.05), 2.0, None, None]
    detail = json.loads(told["detail"][1])
    assert detail["reasons"] == list(drifted.reasons)
    assert len(detail["psi"]) == 10
    assert max(detail["psi"].values()) == pytest.approx(max(drifted.psi.values()), abs=1e-4)
    with pytest.raises(DataError, match="say nothing"):
        learner.propose(features(workspace, 10))


def test_the_command_that_proposes(workspace: Workspace, tmp_path: Path) -> None:
    features(workspace, 2000).write_parquet(tmp_path / "normal.parquet")
    features(workspace, 1000, seed=2, shift=1.0).write_csv(tmp_path / "now.csv")
    run = CliRunner()
    propose = ["models", "propose", "--workspace", str(workspace.root)]
    assert isinstance(run.invoke(app, [*propose, "--features", str(tmp_path / "now.csv")]).exception, DataError)
    told = run.invoke(
        app, [*propose, "--reference", str(tmp_path / "normal.parquet"), "--features", str(tmp_path / "now.csv")]
    )
    assert told.exit_code == 0, told.output
    assert "have drifted" in told.output
    assert "drift_reference.json" in told.output
    row = journals.query(workspace, "SELECT code, detail FROM training").row(0)
    assert row[0] == "RETRAIN_PROPOSED"
    assert "have drifted" in row[1]
    (tmp_path / "broken.parquet").write_bytes(b"no")
    wrong = run.invoke(app, [*propose, "--features", str(tmp_path / "broken.parquet")]).exception
    assert isinstance(wrong, DataError)
    assert "cannot be read" in wrong.what


def test_patterns_are_grouped(workspace: Workspace) -> None:
    learn = pytest.importorskip("sklearn.metrics")
    learner = AdaptiveLearner(workspace)
    with pytest.raises(MarketMemoryError, match="0 states"):
        learner.cluster()
    store, g = memory.of(workspace), np.random.default_rng(4)
    width = len(store.manifest.names)
    centres = g.normal(0, 5, size=(16, width))
    truth = []
    for number in range(320):
        kind = number % 16
        truth.append(kind)
        store.store(centres[kind] + g.normal(0, 0.3, width), 1.0 if kind < 8 else -1.0, at_ns=START)
    labels, groups = learner.cluster()
    assert learn.adjusted_rand_score(truth, [labels[number + 1] for number in range(320)]) > 0.8
    assert sum(group.size for group in groups) == 320
    assert {group.label for group in groups} == set(range(16))
    assert learner.cluster()[0] == labels, "the same memory gives the same groups"
