"""The choice of features, the filter, the audit and the observation, each against something obvious."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from selections import selection_of
from typer.testing import CliRunner

import mia_fast
from mia_fast.cli.commands import app
from mia_fast.errors import ConfigError, DataError
from mia_fast.features import catalogue as catalogues
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.frame import feature_frame, generate_features
from mia_fast.features.plan import make_plan
from mia_fast.features.sample import simulate
from mia_fast.journal.schema import feature_list_digest
from mia_fast.memory import memory_features
from mia_fast.selection import (
    TARGETS,
    FilterRules,
    Observer,
    Target,
    audited,
    filtered,
    make_target,
    read_selection,
    select_features,
)
from mia_fast.selection import plot as pictures
from mia_fast.selection.audit import correlations, stability_index
from mia_fast.selection.config import selection_config
from mia_fast.selection.data import Features
from mia_fast.selection.manifest import write_selection
from mia_fast.selection.shap import stability, walk_forward
from mia_fast.selection.targets import Bars
from mia_fast.training import chosen_features
from mia_fast.workspace import Workspace, shipped

SAMPLE = shipped() / "data" / "sample"
MINUTE = 60_000_000_000
SMALL = {"folds": 3, "shap_rows": 300, "trees": 15, "max_rows": 6000}


def _desk(root: Path, count: int = 150, **rules: float) -> Workspace:
    """A workspace whose rules make a quick choice."""
    text = (shipped() / "config" / "selection.yaml").read_text(encoding="utf-8")
    for name, value in ({"count": count} | SMALL | rules).items():
        lines = [f"  {name}: {value}" if line.startswith(f"  {name}:") else line for line in text.splitlines()]
        text = "\n".join(lines)
    (root / "config").mkdir(parents=True, exist_ok=True)
    (root / "config" / "selection.yaml").write_text(text, encoding="utf-8")
    return Workspace(root)


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """Features of the sample's eight simulated sessions."""
    place = Workspace(tmp_path_factory.mktemp("features"))
    return generate_features(SAMPLE / "bars.parquet", cross=SAMPLE / "cross.parquet", workspace=place)


@pytest.fixture(scope="module")
def planted(frame: pl.DataFrame) -> np.ndarray:
    """A target that three features decide, with noise."""
    rng = np.random.default_rng(3)
    parts = [frame[name].fill_null(strategy="backward").to_numpy() for name in ("rsi_14", "volume", "time_of_day_sin")]
    scaled = [(part - part.mean()) / part.std() for part in parts]
    ranks = np.argsort(np.argsort(parts[1])) / len(parts[1]) - 0.5
    return 3 * scaled[0] + 4 * ranks + 2 * scaled[2] + rng.normal(0, 0.5, frame.height)


@pytest.fixture(scope="module")
def chosen(frame: pl.DataFrame, planted: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a choice of 20."""
    place = _desk(tmp_path_factory.mktemp("chosen"), count=20, purge_minutes=60)
    mia_fast.calculate_shap_weights(frame, planted, workspace=place)
    return place


# --- the choice ------------------------------------------------------------------------------------


def test_the_choice_finds_what_decides(frame: pl.DataFrame, chosen: Workspace) -> None:
    selection = read_selection(chosen)
    assert "rsi_14" in selection.names[:3]
    assert "volume" in selection.names
    assert all(fold.skill > 0.5 for fold in selection.folds)
    assert len(selection.names) == 20
    assert not selection.all_taken
    values = [*selection.shap_values, *selection.not_chosen.values()]
    assert values == sorted(values, reverse=True)
    assert selection.candidates == len(values)
    assert selection.candidates + len(selection.not_candidates) == selection.features == frame.width - 1


def test_the_contracts_file_and_the_manifest(chosen: Workspace) -> None:
    table = pl.read_csv(chosen.data / "features" / "feature_importance.csv")
    content = json.loads((chosen.data / "features" / "selection.json").read_text())
    assert table.columns == ["feature", "shap_value"]
    assert table["feature"].to_list() == content["names"]
    assert table["shap_value"].to_list() == content["shap_values"]
    assert content["digest"] == feature_list_digest(content["names"])
    assert content["catalogue"] == catalogues.read(chosen).digest
    assert len(content["folds"]) == 3
    for before, fold in zip([None, *content["folds"]], content["folds"], strict=False):
        assert fold["train_end"] < fold["test_first"] < fold["test_last"]
        assert before is None or before["test_last"] < fold["test_first"]


def test_the_same_choice_again(frame: pl.DataFrame, planted: np.ndarray, chosen: Workspace, tmp_path: Path) -> None:
    """Bit for bit, from a Parquet file and as a column as well."""
    place = _desk(tmp_path, count=20, purge_minutes=60)
    path = tmp_path / "features.parquet"
    frame.with_columns(given=pl.Series(planted)).write_parquet(path)
    mia_fast.calculate_shap_weights(path, "given", workspace=place)
    mine, theirs = read_selection(place), read_selection(chosen)
    assert mine.shap_folds == theirs.shap_folds
    assert mine.names == theirs.names


@pytest.fixture(scope="module")
def everything() -> pl.DataFrame:
    """All 350 features from simulated values of every declared input, three sessions."""
    catalogue = catalogues.read(Workspace(shipped()))
    sample = simulate(catalogue, 3)
    plan = make_plan(catalogue, tuple(sample.columns), bar_minutes=1.0, tick_size=sample.tick_size)
    block = FeatureEngine(plan).block(sample.known_at, {name: sample.columns[name] for name in plan.inputs})
    return feature_frame(pl.Series("timestamp", sample.known_at - MINUTE).cast(pl.Datetime("ns", "UTC")), block)


def test_the_contracts_files_of_all_350(everything: pl.DataFrame, tmp_path: Path) -> None:
    """The files that other programs read: columns, order and rows to the letter, and the 150 in all of them."""
    place = _desk(tmp_path, folds=2, trees=30)
    (place.root / "config" / "market_config.yaml").write_text(
        (shipped() / "config" / "market_config.yaml").read_text().replace("latest_rows: 1440", "latest_rows: 300")
    )
    folder = place.data / "features"
    assert everything.columns == ["timestamp", *catalogues.read(place).names]
    mia_fast.calculate_shap_weights(everything, "predicted_volatility", workspace=place)
    importance = pl.read_csv(folder / "feature_importance.csv")
    assert importance.schema == {"feature": pl.String, "shap_value": pl.Float64}
    assert importance.height == importance["feature"].n_unique() == 150
    assert importance["shap_value"].is_sorted(descending=True)
    assert importance["shap_value"][0] > 0
    names = read_selection(place).names
    assert importance["feature"].to_list() == list(names)
    assert not read_selection(place).all_taken

    audit = mia_fast.audit_features(everything, workspace=place)
    written = pl.read_csv(place.data / "logs" / "market" / "features_audit_final.csv")
    assert written.columns == ["feature", "nan_ratio", "outlier_count", "shap_value"]
    assert written["feature"].to_list() == list(catalogues.read(place).names)
    assert written["outlier_count"].dtype == pl.Int64
    assert audit.columns[:4] == written.columns

    spoilt = everything.with_columns(
        pl.lit(None, dtype=pl.Float64).alias(names[0]),
        pl.lit(2.5).alias(names[1]),
        (pl.col(names[3]) * 2.0).alias(names[2]),
        pl.when(pl.int_range(pl.len()) == pl.len() - 7).then(np.inf).otherwise(names[4]).alias(names[4]),
    )
    done = filtered(spoilt, workspace=place)
    latest = pl.read_csv(folder / "features_latest_filtered.csv")
    assert latest.columns == done.frame.columns
    assert [name for name in everything.columns if name in latest.columns] == latest.columns
    assert {*names} <= {*latest.columns}
    assert latest.height == 300
    assert {*done.kept} >= {names[0], names[1]}
    assert {names[2], names[3]} & {*done.kept}
    assert latest[names[4]].null_count() == 1

    weights = selection_config(place).observation["defensive"].families
    family = {feature.name: feature.family for feature in catalogues.read(place).features}
    row = everything.row(-1, named=True)
    found = mia_fast.create_observation(everything, "defensive", workspace=place)
    assert found.shape == (150,)
    assert found.tolist() == [row[name] * weights.get(family[name], 1.0) for name in names]


def test_fewer_candidates_than_asked_for(frame: pl.DataFrame, planted: np.ndarray, tmp_path: Path) -> None:
    """All are taken and the manifest says so; features without enough values or of one value are none."""
    place = _desk(tmp_path)
    few = frame.select("timestamp", "rsi_14", "volume", "close", "vix_term_1m", "adx_14").with_columns(
        vix_term_1m=pl.lit(17.0),
        adx_14=pl.when(pl.int_range(pl.len()) % 2 == 0).then("adx_14"),
    )
    table = mia_fast.calculate_shap_weights(few, planted, workspace=place)
    selection = read_selection(place)
    assert {*table["feature"]} == {"rsi_14", "volume", "close"}
    assert selection.all_taken
    assert selection.candidates == 3
    assert selection.not_candidates["adx_14"].startswith("coverage 0.49")
    assert selection.not_candidates["vix_term_1m"] == "constant 17"
    assert selection.not_candidates["atr_14"] == "not in the data"


def test_the_choice_does_not_see_what_lies_behind_its_period(
    frame: pl.DataFrame, planted: np.ndarray, tmp_path: Path
) -> None:
    """Other values after ``until`` change nothing."""
    until = int(frame["timestamp"].dt.epoch("ns")[8000])
    spoilt = frame.with_columns(
        pl.when(pl.int_range(pl.len()) < 8000).then(pl.col(name)).otherwise(-999.0).alias(name)
        for name in frame.columns[1:]
    )
    found = []
    for k, rows in enumerate((frame, spoilt)):
        place = _desk(tmp_path / str(k))
        data = rows.with_columns(given=pl.Series(planted))
        found.append(select_features(data, "given", workspace=place, until=until)[0])
    assert found[0] == found[1]


def test_walk_forward_never_trains_on_what_looks_into_the_test() -> None:
    times = np.arange(0, 6000, 6, dtype=np.int64)
    ends = times + 100
    blocks = walk_forward(times, ends, 4)
    assert [len(test) for _, test in blocks] == [200] * 4
    for train, test in blocks:
        assert ends[train].max() < times[test[0]]
        assert ends[train.max() + 1] >= times[test[0]]  # and leaves out no more than that
    assert np.concatenate([test for _, test in blocks]).tolist() == list(range(200, 1000))
    with pytest.raises(DataError, match="leaves no row"):
        walk_forward(times, times + 5000, 4)


def test_stability_of_folds_that_agree_and_of_folds_that_do_not() -> None:
    same = stability(np.tile(np.arange(60.0), (3, 1)), np.arange(59, 39, -1))
    assert same.rank_correlation == pytest.approx(1.0)
    assert same.overlap == {"20": 1.0, "50": 1.0, "60": 1.0}
    assert set(same.folds_selected) == {3}
    turned = stability(np.array([np.arange(60.0), np.arange(60.0)[::-1]]), np.arange(59, 39, -1))
    assert turned.rank_correlation == pytest.approx(-1.0)
    assert turned.overlap["20"] == 0.0
    assert set(turned.folds_selected) == {1}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("cnn_presure", "did you mean 'cnn_pressure'"),
        ("rsi_14", "is a feature of the catalogue"),
        ([1.0, 2.0], "2 values"),
        (["a", "b"], "cannot be read as numbers"),
        (np.zeros((3, 2)), "shape"),
        ("predicted_vix", "needs the daily VIX"),
        (np.full(11_040, np.nan), "0 rows have a target"),
    ],
)
def test_targets_that_cannot_be(frame: pl.DataFrame, tmp_path: Path, target: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        mia_fast.calculate_shap_weights(frame, target, workspace=_desk(tmp_path))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_named_target_can_be_chosen_for(frame: pl.DataFrame, tmp_path: Path, name: str) -> None:
    """The regime needs sixty sessions before it: too long a story for the sample."""
    place = _desk(tmp_path, folds=2, trees=5)
    call = {"workspace": place, "cross": SAMPLE / "cross.parquet"}
    if name == "neural_regime":
        with pytest.raises(DataError, match="0 rows have a target"):
            mia_fast.calculate_shap_weights(frame, name, **call)
        return
    few = frame.select("timestamp", "open", "high", "low", "close", "atr_14", "rsi_14", "realized_vol_30m")
    table = mia_fast.calculate_shap_weights(few, name, **call)
    assert table.height == 7
    assert read_selection(place).target == name


def test_classes_are_explained_too(frame: pl.DataFrame, planted: np.ndarray, tmp_path: Path) -> None:
    place = _desk(tmp_path, folds=2)
    values = np.digitize(planted, [-1.5, 1.5]).astype(float)
    stamps = frame["timestamp"].dt.epoch("ns").to_numpy()
    aim = Target("three classes", values, stamps + MINUTE, "classes")
    selection, importance = select_features(frame, aim, workspace=place)
    assert selection.names[0] == "rsi_14"
    assert importance.values.shape == (2, selection.candidates)
    assert all(fold.skill > 0.3 for fold in selection.folds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop("timestamp"), "no column 'timestamp'"),
        (lambda f: f.with_columns(pl.col("timestamp").dt.epoch("s")), "not an instant"),
        (lambda f: f.reverse(), "do not ascend"),
        (lambda f: pl.concat([f, f[-1:]]), "do not ascend"),
        (lambda f: f.select("timestamp", x="rsi_14"), "none of the catalogue's"),
        (lambda f: f.with_columns(pl.col("rsi_14").cast(pl.String)), "'rsi_14' is String"),
        (lambda f: f[:0], "holds no rows"),
        (lambda f: "nowhere.parquet", "no such file"),
        (lambda f: 7, "is not a table"),
    ],
)
@pytest.mark.parametrize("function", ["calculate_shap_weights", "filter_features", "audit_features"])
def test_data_that_cannot_be(frame: pl.DataFrame, tmp_path: Path, change: object, message: str, function: str) -> None:
    data = change(frame)  # type: ignore[operator]
    extra = {"target": "cnn_pressure"} if function == "calculate_shap_weights" else {}
    with pytest.raises(DataError, match=message):
        getattr(mia_fast, function)(data, workspace=_desk(tmp_path), **extra)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"rsi_14"', '"rsi_15"', "was edited"),
        ('"digest": "', '"digest": "0', "was edited"),
        ('"definitions"', '"definition"', "definitions Field required"),
        ('"names"', '"nam"', "nam"),
        ("{", "", "cannot be used"),
    ],
)
def test_a_damaged_selection_is_an_error(chosen: Workspace, tmp_path: Path, old: str, new: str, message: str) -> None:
    place = _desk(tmp_path)
    path = place.data / "features" / "selection.json"
    path.parent.mkdir(parents=True)
    path.write_text((chosen.data / "features" / "selection.json").read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        read_selection(place)


def _with_catalogue(place: Workspace, chosen: Workspace, old: str, new: str) -> Workspace:
    """A workspace with that choice, and a catalogue in which one text is another."""
    (place.data / "features").mkdir(parents=True)
    selection = (chosen.data / "features" / "selection.json").read_bytes()
    (place.data / "features" / "selection.json").write_bytes(selection)
    text = (shipped() / "config" / "feature_sets.yaml").read_text(encoding="utf-8")
    assert text.count(old) == 1
    (place.root / "config" / "feature_sets.yaml").write_text(text.replace(old, new), encoding="utf-8")
    return place


def test_a_choice_made_under_other_definitions_does_not_pass(
    frame: pl.DataFrame, chosen: Workspace, tmp_path: Path
) -> None:
    """The same names, computed otherwise: every reader refuses."""
    row = """rsi_14, family: trend, stage: 1, kernel: rsi, inputs: [close], params: {period: 14},
     unit: percent, range: [0, 100], warmup: 14"""
    place = _with_catalogue(_desk(tmp_path), chosen, row, row.replace("14}", "15}").replace("warmup: 14", "warmup: 15"))
    readers: list[tuple[str, Callable[[], object]]] = [
        ("the selection was not used", lambda: read_selection(place)),
        ("the selection was not used", lambda: Observer(place)),
        ("the selection was not used", lambda: mia_fast.filter_features(frame, workspace=place)),
        ("the selection was not used", lambda: mia_fast.audit_features(frame, workspace=place)),
        ("the memory was not opened", lambda: memory_features(place)),
        ("nothing was trained", lambda: chosen_features(place)),
    ]
    for then, read in readers:
        with pytest.raises(ConfigError, match=r"of the 20 otherwise than when they were chosen: .*rsi_14") as caught:
            read()
        assert caught.value.then == then
        assert "mia-fast select" in str(caught.value.hint)


def test_rows_of_the_catalogue_that_no_chosen_feature_reads_may_change(chosen: Workspace, tmp_path: Path) -> None:
    assert "ichimoku_tenkan" not in read_selection(chosen).names
    place = _with_catalogue(_desk(tmp_path), chosen, "(highest_9 + lowest_9) / 2", "(highest_9 + lowest_9) * 0.5")
    assert read_selection(place) == read_selection(chosen)
    assert catalogues.read(place).digest != read_selection(place).catalogue


def test_the_shipped_choice_fits_the_shipped_catalogue(tmp_path: Path) -> None:
    """Without a choice of its own, a desk trains on the one that ships; its rows of the catalogue must stand."""
    names, how = chosen_features(Workspace(tmp_path))
    assert len(names) == how.candidates
    assert how.digest == feature_list_digest(names)


def test_networks_take_no_feature_of_a_model_or_an_account(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    write_selection(selection_of(["rsi_14", "predicted_vix"], place), place)
    with pytest.raises(ConfigError, match="predicted_vix: no stage-1 feature"):
        chosen_features(place)


# --- targets -----------------------------------------------------------------------------------------


def _walk(n: int, seed: int = 5) -> Bars:
    rng = np.random.default_rng(seed)
    close = 4000 * np.exp(np.cumsum(rng.normal(0, 2e-4, n)))
    keep = np.ones(n, dtype=bool)
    keep[n // 2 : n // 2 + 40] = False
    keep[n // 3] = False
    known_at = (1 + np.arange(n, dtype=np.int64)) * MINUTE
    columns = {
        "close": close,
        "high": close + rng.uniform(0, 0.5, n),
        "low": close - rng.uniform(0, 0.5, n),
        "atr_14": np.full(n, 1.5),
    }
    return Bars(known_at[keep], {name: values[keep] for name, values in columns.items()})


def test_targets_against_their_definitions_in_plain_loops() -> None:
    bars = _walk(900)
    at = {int(t): k for k, t in enumerate(bars.known_at)}
    close = bars.columns["close"]
    pressure = make_target("cnn_pressure", bars).values
    volatility = make_target("predicted_volatility", bars).values
    unknown = 0
    for k, now in enumerate(bars.known_at.tolist()):

        def price(minutes: int, now: int = now) -> float | None:
            place = at.get(now + minutes * MINUTE)
            return None if place is None else float(close[place])

        past = [price(m) for m in range(-5, 1)]
        later = price(5)
        if later is None or None in past:
            assert math.isnan(pressure[k])
            unknown += 1
        else:
            squares = sum(math.log(b / a) ** 2 for a, b in itertools.pairwise(past))  # type: ignore[operator]
            expected = math.log(later / price(0)) / math.sqrt(squares)  # type: ignore[operator]
            assert pressure[k] == pytest.approx(max(-3.0, min(3.0, expected)) / 3, rel=1e-7)
        ahead = [price(m) for m in range(31)]
        if None in ahead:
            assert math.isnan(volatility[k])
        else:
            squares = sum(math.log(b / a) ** 2 for a, b in itertools.pairwise(ahead))  # type: ignore[operator]
            assert volatility[k] == pytest.approx(math.sqrt(squares * 252 * 1380 / 30), rel=1e-6)
    assert 20 < unknown < 80


@pytest.mark.parametrize("side", [1, -1])
def test_triple_barrier_against_a_plain_loop(side: int) -> None:
    bars = _walk(700)
    found = make_target("trade_success_long" if side > 0 else "trade_success_short", bars)
    close, high, low = (bars.columns[name] for name in ("close", "high", "low"))
    wins = 0
    for k in range(len(close)):
        if k + 30 >= len(close) or bars.known_at[k + 30] - bars.known_at[k] > 60 * MINUTE:
            assert math.isnan(found.values[k])
            continue
        expected = 0.0
        for j in range(k + 1, k + 31):
            up, down = high[j] >= close[k] + 1.5, low[j] <= close[k] - 1.5
            if up or down:
                expected = float((up and not down) if side > 0 else (down and not up))
                break
        assert found.values[k] == expected
        assert found.ends_at[k] == bars.known_at[k + 30]
        wins += int(expected)
    assert wins > 50


def test_regime_of_the_next_hour() -> None:
    """Sixty quiet sessions; then a wild one, a straight one and a restless one."""
    rng = np.random.default_rng(1)
    minutes, parts, times = 200, [], []
    for session in range(64):
        steps = rng.normal(0, 1e-4, minutes)
        if session == 61:
            steps = rng.normal(0, 1e-2, minutes)
        if session == 62:
            steps = np.full(minutes, 1e-5)
        if session == 63:
            steps = np.where(np.arange(minutes) % 2, 1e-5, -1e-5)
        parts.append(steps)
        times.append(session * 1440 + np.arange(minutes))
    close = 4000 * np.exp(np.cumsum(np.concatenate(parts)))
    known_at = np.concatenate(times).astype(np.int64) * MINUTE
    found = make_target("neural_regime", Bars(known_at, {"close": close})).values.reshape(64, minutes)
    assert np.isnan(found[:60]).all()
    assert np.isnan(found[:, -60:]).all()
    assert set(found[61, :-60]) == {2.0}
    assert set(found[62, :-60]) == {0.0}
    assert set(found[63, :-60]) == {1.0}


def test_the_next_vix_close() -> None:
    known = np.array([100, 200, 300], dtype=np.int64)
    bars = Bars(np.array([50, 100, 199, 300], dtype=np.int64), {}, (known, np.array([10.0, 20.0, 30.0])))
    found = make_target("predicted_vix", bars)
    assert found.values[:3].tolist() == [10.0, 20.0, 20.0]
    assert math.isnan(found.values[3])
    assert found.ends_at[:3].tolist() == [100, 200, 200]


# --- the filter ------------------------------------------------------------------------------------


def _table(**columns: np.ndarray) -> pl.DataFrame:
    n = len(next(iter(columns.values())))
    stamps = pl.Series("timestamp", np.arange(n) * MINUTE).cast(pl.Datetime("ns", "UTC"))
    return pl.DataFrame({"timestamp": stamps, **columns})


def test_each_rule_of_the_filter(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    n = 4000
    base = rng.normal(50, 1, n)
    spiked = base.copy()
    spiked[100] = 1e6
    spiked[200] = -np.inf
    empty = np.where(np.arange(n) % 2 == 0, base, np.nan)
    frame = _table(
        rsi_14=spiked,
        rsi_7=2 * base + 1,
        rsi_21=base * 3 - 2,
        adx_14=empty,
        close=np.where(np.arange(n) < 2, 1.0, 4000.0),
        volatility_spike_indicator=(rng.random(n) < 0.1).astype(float),
        volume=rng.gamma(2, 100, n),
    )
    done = filtered(frame, workspace=_desk(tmp_path))
    assert dict(done.dropped) == {
        "adx_14": "50.0% of its rows are empty",
        "close": "one value fills 99.95% of its rows",
        "rsi_21": "correlates by 1.000000 with rsi_7",
    }
    assert done.clipped["rsi_14"] == 1
    deviation = 1.4826 * np.median(np.abs(base - np.median(base)))
    assert done.frame["rsi_14"].max() == pytest.approx(np.median(base) + 12 * deviation, rel=1e-3)
    assert done.frame["rsi_14"].null_count() == 1  # an infinity is no number
    assert "volatility_spike_indicator" not in done.clipped  # a flag has no deviation
    assert done.frame["volatility_spike_indicator"].sum() == frame["volatility_spike_indicator"].sum()


def test_a_long_tail_is_not_clipped_away(tmp_path: Path) -> None:
    """What fades away by powers has a tiny deviation: half of it lies beyond twelve of them, and is no outlier."""
    rng = np.random.default_rng(6)
    n = 20_000
    fading = np.exp(-rng.uniform(0, 60, n))
    spiked = rng.lognormal(5, 1.2, n)
    spiked[[7, 8]] = 1e9
    frame = _table(event_timing_proximity=fading, volume=spiked, rsi_14=rng.normal(0, 1, n))
    done = filtered(frame, workspace=_desk(tmp_path))
    beyond = np.sum(fading > np.median(fading) + 12 * 1.4826 * np.median(np.abs(fading - np.median(fading))))
    assert beyond > 0.3 * n
    assert done.clipped["event_timing_proximity"] == 20  # one in a thousand, at the upper end only
    kept = np.sort(fading)[-21]
    assert done.frame["event_timing_proximity"].max() == kept
    assert done.frame["volume"].max() < 1e6
    assert done.clipped["volume"] <= 20
    few = filtered(
        frame[:50].with_columns(rsi_14=pl.when(pl.int_range(50) == 3).then(1e6).otherwise("rsi_14")),
        workspace=_desk(tmp_path),
    )
    assert few.frame["rsi_14"].max() < 20


def test_rows_of_the_warm_up_go_and_other_gaps_stay(frame: pl.DataFrame, tmp_path: Path) -> None:
    done = filtered(frame, workspace=_desk(tmp_path))
    assert 0 < done.rows_dropped < 40
    share = done.frame.select(pl.mean_horizontal(pl.exclude("timestamp").is_null())).to_series()
    assert share.max() <= 0.5
    assert done.frame.null_count().transpose().to_series().sum() > 0
    written = pl.read_csv(tmp_path / "data" / "features" / "features_latest_filtered.csv")
    assert written.columns == done.frame.columns
    assert written.height == 1440
    assert written["rsi_14"].to_list() == done.frame["rsi_14"].tail(1440).to_list()
    assert written["timestamp"][-1].endswith("000000Z")


def test_chosen_features_stay_and_it_is_said_why_they_should_not(frame: pl.DataFrame, chosen: Workspace) -> None:
    selection = read_selection(chosen)
    last = selection.names[-1]
    done = filtered(frame.with_columns(pl.lit(1.0).alias(last)), workspace=chosen)
    assert {*selection.names} <= {*done.frame.columns}
    assert done.kept[last] == "one value fills 100.00% of its rows"
    assert not {*done.dropped} & {*selection.names}
    with pytest.raises(DataError, match=f"1 of the 20 chosen features are missing: {last}"):
        mia_fast.filter_features(frame.drop(last), workspace=chosen)


def test_rules_learnt_on_one_period_are_applied_to_another(frame: pl.DataFrame, tmp_path: Path) -> None:
    place = _desk(tmp_path)
    early, late = frame[:6000], frame[6000:]
    rules = FilterRules.fit(Features(early, place), selection_config(place).filter)
    expected = rules.apply(late)
    assert filtered(late, workspace=place, reference=early).frame.equals(expected.frame)
    changed = late.with_columns(volume=pl.col("volume") * 1000)
    low, high = rules.bounds["volume"]
    assert rules.apply(changed).frame["volume"].max() == high
    assert low < 0 < high


# --- the audit ------------------------------------------------------------------------------------


def test_the_audit_counts(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    n = 20_000
    calm = rng.normal(0, 1, n)
    spiked = calm.copy()
    spiked[[10, 500, 15_000]] = [40.0, -60.0, np.inf]
    moved = np.where(np.arange(n) < n // 4, calm, calm + 5)
    empty = np.where(np.arange(n) % 5 == 0, np.nan, calm)
    frame = _table(rsi_7=spiked, rsi_14=moved, rsi_21=empty, adx_7=calm, adx_14=np.full(n, 3.0))
    place = _desk(tmp_path)
    found = audited(frame, workspace=place)
    by_name = {row["feature"]: row for row in found.frame.iter_rows(named=True)}
    assert by_name["rsi_7"]["outlier_count"] == 3
    assert by_name["rsi_21"]["nan_ratio"] == pytest.approx(0.2)
    assert by_name["rsi_14"]["drift"] > 5
    assert by_name["adx_7"]["drift"] < 0.01
    assert (by_name["adx_14"]["outlier_count"], by_name["adx_14"]["drift"]) == (0, 0.0)
    written = pl.read_csv(tmp_path / "data" / "logs" / "market" / "features_audit_final.csv")
    assert written.columns == ["feature", "nan_ratio", "outlier_count", "shap_value"]
    assert written["feature"].to_list() == [n for n in catalogues.read(place).names if n in frame.columns]
    assert written["shap_value"].null_count() == 5


def test_shap_values_of_the_choice_stand_in_the_audit(frame: pl.DataFrame, chosen: Workspace) -> None:
    selection = read_selection(chosen)
    table = mia_fast.audit_features(frame, workspace=chosen)
    values = dict(zip(table["feature"], table["shap_value"], strict=True))
    for name, value in zip(selection.names, selection.shap_values, strict=True):
        assert values[name] == value
    for name, value in selection.not_chosen.items():
        assert values[name] == value


def test_stability_index_by_hand() -> None:
    reference = np.array([50, 50])
    expected = (0.8 - 0.5) * math.log(0.8 / 0.5) + (0.2 - 0.5) * math.log(0.2 / 0.5)
    assert stability_index(reference, np.array([8, 2])) == pytest.approx(expected)
    assert stability_index(reference, np.array([[5, 5], [8, 2]])).tolist() == pytest.approx([0.0, expected])


def test_correlations_rest_on_the_rows_that_two_features_share() -> None:
    rng = np.random.default_rng(8)
    n = 3000
    a = rng.normal(4000, 3, n)
    b = a + rng.normal(0, 2, n)
    b[rng.random(n) < 0.3] = np.nan
    late = np.where(np.arange(n) >= 2500, 7 - 2 * a, np.nan)  # shares 500 rows with a, and what b has of them
    early = np.where(np.arange(n) < 200, a, np.nan)
    lone = np.where(np.arange(n) < 149, a, np.nan)
    flag = np.full(n, 2.0)
    odd = np.where(np.arange(n) == 5, np.inf, a)
    table = np.column_stack([a, b, late, early, lone, flag, odd])
    found = correlations(table)
    for i, j in itertools.product(range(7), repeat=2):
        both = np.isfinite(table[:, i]) & np.isfinite(table[:, j])
        if both.sum() < 150 or 5 in (i, j):
            assert math.isnan(found[i, j])
        else:
            assert found[i, j] == pytest.approx(np.corrcoef(table[both, i], table[both, j])[0, 1], abs=1e-9)
    assert found[0, 2] == pytest.approx(-1.0)
    assert math.isnan(found[2, 3])
    assert math.isnan(found[0, 4])


@pytest.mark.parametrize("until", [0, 2**62])
def test_a_reference_outside_the_data(frame: pl.DataFrame, tmp_path: Path, until: int) -> None:
    with pytest.raises(DataError, match="the reference holds"):
        mia_fast.audit_features(frame, workspace=_desk(tmp_path), reference_until=until)


# --- the observation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", ["trend", "range", "defensive"])
def test_an_observation_is_value_times_weight_in_order(frame: pl.DataFrame, chosen: Workspace, regime: str) -> None:
    selection = read_selection(chosen)
    weights = selection_config(chosen).observation[regime].families
    family = {feature.name: feature.family for feature in catalogues.read(chosen).features}
    row = frame.row(-1, named=True)
    found = mia_fast.create_observation(frame, regime, workspace=chosen)
    assert found.tolist() == [row[name] * weights.get(family[name], 1.0) for name in selection.names]
    assert mia_fast.create_observation(row, regime, workspace=chosen).tolist() == found.tolist()
    assert mia_fast.create_observation(frame.to_arrow(), regime, workspace=chosen).tolist() == found.tolist()
    observer = Observer(chosen)
    values = np.array([row[name] for name in selection.names])
    assert observer.vector(values, regime).tolist() == found.tolist()
    matrix, imputed = observer.observe(frame[-50:], regime)
    assert matrix[-1].tolist() == found.tolist()
    assert not imputed.any()


def test_observations_that_cannot_be(frame: pl.DataFrame, chosen: Workspace) -> None:
    selection = read_selection(chosen)
    make = mia_fast.create_observation
    with pytest.raises(DataError, match="no regime 'trendy'") as caught:
        make(frame, "trendy", workspace=chosen)
    assert "did you mean 'trend'" in str(caught.value.hint)
    with pytest.raises(DataError, match="no regime 2"):
        make(frame, 2, workspace=chosen)  # type: ignore[arg-type]
    one = pl.DataFrame({"rsi_14": [50.0], "ofi_score": [0.1]})
    with pytest.raises(DataError, match="19 of the 20 features are missing") as caught:
        make(one, "trend", workspace=chosen)
    assert all(name in str(caught.value) for name in selection.names if name != "rsi_14")
    with pytest.raises(DataError, match="1 of the 20 features have no value: rsi_14"):
        make(frame.with_columns(rsi_14=pl.lit(None, dtype=pl.Float64)), "trend", workspace=chosen)
    with pytest.raises(DataError, match="features are infinite: rsi_14"):
        make(frame.with_columns(rsi_14=pl.lit(np.inf)), "trend", missing="impute", workspace=chosen)
    with pytest.raises(DataError, match="is String"):
        make(frame.with_columns(rsi_14=pl.lit("x")), "trend", workspace=chosen)
    with pytest.raises(DataError, match="holds no rows"):
        make(frame[:0], "trend", workspace=chosen)
    with pytest.raises(DataError, match="is not known"):
        make(frame, "trend", missing="zero", workspace=chosen)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="is not a table"):
        make(3.0, "trend", workspace=chosen)
    with pytest.raises(DataError, match="have no value"):
        Observer(chosen).vector(np.full(20, np.nan), "trend")


def test_imputed_values_are_medians_and_flagged(frame: pl.DataFrame, chosen: Workspace) -> None:
    one = pl.DataFrame({"rsi_14": [50.0]})
    observer = Observer(chosen)
    values, imputed = observer.observe(one, "range", missing="impute")
    assert imputed.sum() == 19
    medians = np.where(imputed[0], observer.selection.medians, 50.0)
    assert values[0].tolist() == (medians * observer.weights["range"]).tolist()
    assert mia_fast.create_observation(one, "range", missing="impute", workspace=chosen).tolist() == values[0].tolist()


def test_no_choice_yet(frame: pl.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no features were chosen yet"):
        mia_fast.create_observation(frame, "trend", workspace=Workspace(tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("families: {trend: 1.25,", "families: {trnd: 1.25,", "unknown family 'trnd'"),
        ("  defensive:\n", "  defensif:\n", "unknown regime 'defensif'"),
        ("features: {}", "features: {rsi_15: 2.0}", "unknown feature 'rsi_15'"),
        ("  folds: 3", "  fold: 3", "unknown key 'select.fold'"),
        ("  outlier_z: 12", "  outlier_z: -1", "outlier_z"),
    ],
)
def test_bad_weights_and_rules(chosen: Workspace, tmp_path: Path, old: str, new: str, message: str) -> None:
    place = _desk(tmp_path)
    (place.data / "features").mkdir(parents=True)
    selection = (chosen.data / "features" / "selection.json").read_bytes()
    (place.data / "features" / "selection.json").write_bytes(selection)
    config = place.root / "config" / "selection.yaml"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        Observer(place)


def test_an_edited_configuration_counts_at_the_next_call(
    frame: pl.DataFrame, chosen: Workspace, tmp_path: Path
) -> None:
    place = _desk(tmp_path)
    (place.data / "features").mkdir(parents=True)
    (place.data / "features" / "selection.json").write_bytes((chosen.data / "features" / "selection.json").read_bytes())
    before = mia_fast.create_observation(frame, "trend", workspace=place)
    config = place.root / "config" / "selection.yaml"
    config.write_text(config.read_text().replace("features: {}", "features: {rsi_14: 100.0}", 1))
    after = mia_fast.create_observation(frame, "trend", workspace=place)
    at = read_selection(place).names.index("rsi_14")
    assert after[at] == frame["rsi_14"][-1] * 100.0
    assert np.delete(after, at).tolist() == np.delete(before, at).tolist()


# --- pictures and commands ------------------------------------------------------------------------------


def test_pictures_and_the_page(frame: pl.DataFrame, chosen: Workspace, tmp_path: Path) -> None:
    found = audited(frame, workspace=chosen)
    paths = pictures.draw(found, tmp_path)
    assert [path.name for path in paths] == ["importance.png", "drift.png", "correlation.png"]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 20_000
    page = pictures.write_page(found, tmp_path / "page.html", "Features & <sample>").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "Features &amp; &lt;sample&gt;" in page
    assert "http" not in page
    for name in read_selection(chosen).names:
        assert name in page
    order = pictures.drift_order(found)
    drift = found.frame["drift"].to_list()
    assert len(order) == 350 - drift.count(None) > 100
    own = list(dict.fromkeys(feature.family for feature in catalogues.read(chosen).features))
    keys = [(own.index(found.families[k]), -drift[k]) for k in order]
    assert keys == sorted(keys)


def test_like_stands_by_like() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 500))
    table = np.column_stack([a, b, a + 0.1 * rng.normal(size=500), -b, a, b + 0.1 * rng.normal(size=500)])
    order = pictures.order_of(np.corrcoef(table.T))
    groups = [k in (0, 2, 4) for k in order.tolist()]
    assert groups in ([True] * 3 + [False] * 3, [False] * 3 + [True] * 3)


def test_the_commands(frame: pl.DataFrame, planted: np.ndarray, tmp_path: Path) -> None:
    place = _desk(tmp_path / "desk", count=10)
    path = tmp_path / "features.parquet"
    frame.with_columns(given=pl.Series(planted)).write_parquet(path)

    def run(*arguments: object) -> str:
        result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(
            app, [*map(str, arguments), "--workspace", str(place.root)]
        )
        assert result.exit_code == 0, result.output + repr(result.exception)
        return result.output

    text = run("select", path, "--target", "given")
    assert "10 of" in text
    assert "data/features/selection.json" in text
    text = run("audit", path, "--report", tmp_path / "page.html", "--plot", tmp_path / "pictures")
    assert "350 features, 11,040 rows" in text
    assert (tmp_path / "page.html").exists()
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 3
    text = run("filter", path, tmp_path / "filtered.parquet")
    assert "left out" in text
    assert pl.read_parquet(tmp_path / "filtered.parquet").height > 10_000
