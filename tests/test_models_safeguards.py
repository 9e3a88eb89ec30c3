"""What keeps a training honest: purges, cuts, early stopping, checkpoints, parity. Each line of it has its test."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from mia_models.errors import ModelError

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from test_models_networks import CHOSEN, DAY, FOLDS, NAMES, TINY, declared, simulated, train  # noqa: E402

from mia_models.manifest import read  # noqa: E402
from mia_models.training import graph, judge, latent, networks, neural, neural_card, prepare  # noqa: E402
from mia_models.training.rows import LONG, PRESSURE, REGIME, SHORT, TARGETS, VIX, VOLATILITY, Rows, instant  # noqa: E402

END = "2021-03-09"  # a Tuesday: Monday's bars lie in the purge before it
SHORT_RUN = dataclasses.replace(TINY, epochs=1)


@pytest.fixture(scope="module")
def rows() -> Rows:
    return simulated()


@pytest.fixture(scope="module")
def fitted(rows):
    return fit(rows)


@pytest.fixture(scope="module")
def trained(rows, tmp_path_factory):
    out = tmp_path_factory.mktemp("networks")
    return train(rows, out, SHORT_RUN), out


def fit(rows: Rows, settings: networks.Settings = SHORT_RUN, checkpoint: Path | None = None) -> judge.Fitted:
    optional = np.array([name in ("treasury_10y_yield", "spike") for name in NAMES])
    return judge.fit(rows, END, np.zeros(9), optional, settings, checkpoint=checkpoint)[0]


def held_from(rows: Rows) -> int:
    """The first instant of the early-stopping rows, by the rule of the docstring."""
    before = rows.known_at[rows.known_at < instant(END) - DAY]
    return int(before[int(len(before) * 0.88)])


def with_targets(rows: Rows, chosen: np.ndarray, names=TARGETS, seed: int = 3) -> Rows:
    """Other targets in the ``chosen`` rows: those of rows drawn at random, so that every one is valid."""
    drawn = np.random.default_rng(seed).integers(0, len(rows), int(chosen.sum()))
    targets = {name: values.copy() for name, values in rows.targets.items()}
    for name in names:
        targets[name][chosen] = rows.targets[name][drawn]
    return dataclasses.replace(rows, targets=targets)


def with_features(rows: Rows, chosen: np.ndarray) -> Rows:
    matrix = rows.matrix.copy()
    clock = np.array([name.startswith("time_of_day") for name in NAMES])
    matrix[chosen] *= np.where(clock, 1.0, 1.7).astype(np.float32)
    return dataclasses.replace(rows, matrix=matrix)


def differences(a: judge.Fitted, b: judge.Fitted) -> list[str]:
    """Which of what was fitted is not the same to the bit."""
    found = [f.name for f in dataclasses.fields(a.preparation) if not _same(a.preparation, b.preparation, f.name)]
    found += [f.name for f in dataclasses.fields(a.regression) if not _same(a.regression, b.regression, f.name)]
    other = b.networks.state_dict()
    return found + [name for name, value in a.networks.state_dict().items() if not torch.equal(value, other[name])]


def _same(a, b, name: str) -> bool:
    x, y = getattr(a, name), getattr(b, name)
    return bool(np.array_equal(x, y)) if isinstance(x, np.ndarray) else x == y


def test_the_purge_before_a_fold_is_not_read(rows, fitted):
    purge = (rows.known_at >= instant(END) - DAY) & (rows.known_at < instant(END))
    assert purge.sum() == 180
    spoilt = with_features(with_targets(rows, purge), purge)
    spoilt = dataclasses.replace(spoilt, extra={k: np.where(purge, v * 1.3, v) for k, v in rows.extra.items()})
    assert differences(fit(spoilt), fitted) == []
    known = rows.known_at < instant(END) - DAY
    assert differences(fit(with_targets(rows, known)), fitted) != []


def test_the_purge_before_the_early_stopping_rows_is_not_read(rows, fitted):
    """By the networks; the VIX regression, which is not stopped early, reads it."""
    first = held_from(rows)
    purge = (rows.known_at >= first - DAY) & (rows.known_at < first)
    assert purge.sum() >= 180
    others = [name for name in TARGETS if name != VIX]
    spoilt = with_features(with_targets(rows, purge, others), purge)
    assert differences(fit(spoilt), fitted) == []


def test_scaling_does_not_see_the_early_stopping_rows(rows, fitted):
    behind = rows.known_at >= held_from(rows)
    found = differences(fit(with_features(rows, behind)), fitted)
    assert not set(found) & {f.name for f in dataclasses.fields(fitted.preparation)}
    assert any(name.startswith("cnn") for name in found)  # they do decide when to stop, and the calibration


@pytest.mark.parametrize("where", ["learned", "held"])
def test_targets_that_end_behind_the_first_day_are_unknown(rows, where, tmp_path):
    """Nor does the checkpoint's fingerprint, which is of all that a training was given, tell the two apart."""
    first = held_from(rows)
    part = rows.known_at < first - DAY if where == "learned" else rows.known_at >= first
    late = part & (np.arange(len(rows)) % 7 == 0)
    ends = {name: np.where(late, instant(END), values) for name, values in rows.ends_at.items()}
    reaching = dataclasses.replace(rows, ends_at=ends)
    path = tmp_path / "c.safetensors"
    assert differences(fit(reaching, checkpoint=path), fit(with_targets(reaching, late), checkpoint=path)) == []
    with pytest.raises(ModelError, match="on other rows"):
        fit(with_targets(rows, late), checkpoint=path)


def test_vix_targets_that_reach_into_the_early_stopping_rows_are_unknown(rows):
    """Rows of other minutes than every 15th, so that the regression does not read them in either case."""
    first = held_from(rows)
    late = (rows.known_at < first - DAY) & (rows.minute % 15 != 0) & (np.arange(len(rows)) % 3 == 0)
    ends = dict(rows.ends_at) | {VIX: np.where(late, first + DAY, rows.ends_at[VIX])}
    reaching = dataclasses.replace(rows, ends_at=ends)
    assert differences(fit(with_targets(reaching, late, [VIX])), fit(reaching)) == []
    assert differences(fit(with_targets(rows, late, [VIX])), fit(rows)) != []


def test_baselines_do_not_see_what_they_judge(rows, fitted):
    test = rows.between(instant(END), instant("2021-04-12"))
    behind = np.arange(len(rows)) >= test.start
    found = judge.predictions(fitted, rows, test)
    other = judge.predictions(fitted, with_targets(rows, behind), test)
    for name in TARGETS:
        assert set(judge.BASELINES[name]) | set(judge.CANDIDATES[name]) <= set(found[name])
        for method, values in found[name].items():
            assert np.array_equal(values, other[name][method], equal_nan=True), (name, method)
    before = ~behind & (rows.known_at < instant(END) - DAY)
    other = judge.predictions(fitted, with_targets(rows, before), test)
    fitted_on_the_past = {
        VOLATILITY: "HAR-RV by half hour",
        REGIME: "frequencies by time of day",
        PRESSURE: "ridge on the last returns",
        LONG: "base rate",
        SHORT: "base rate",
    }
    for name, method in fitted_on_the_past.items():
        assert not np.array_equal(found[name][method], other[name][method]), (name, method)


# --- what is served -----------------------------------------------------------------------------------------


def scores(seed: int, **means: float) -> judge.Scores:
    """Losses of 60 sessions of 100 rows that share their noise, and have a little of their own."""
    g = np.random.default_rng(seed)
    shared = g.normal(0, 5.0, 60)
    sums = {name.replace("_", " "): 100 * mean + shared + g.normal(0, 1.0, 60) for name, mean in means.items()}
    return judge.Scores(sums, np.full(60, 100.0))


@pytest.mark.parametrize(
    ("output", "means", "served"),
    [
        (PRESSURE, {"cnn": 0.9, "linear": 1.0, "zero": 1.0, "ridge_on_the_last_returns": 1.0}, "cnn"),
        (PRESSURE, {"cnn": 1.1, "linear": 0.9995, "zero": 1.0, "ridge_on_the_last_returns": 1.01}, "zero"),
        # Sure to beat what can be served, but not the best baseline of all: the simple one is served.
        (PRESSURE, {"cnn": 0.9, "linear": 1.0, "zero": 1.0, "ridge_on_the_last_returns": 0.88}, "zero"),
        (LONG, {"mlp": 1.0, "logistic_regression": 1.2, "base_rate": 1.1}, "mlp"),
        (LONG, {"mlp": 1.2, "logistic_regression": 1.0, "base_rate": 1.1}, "logistic regression"),
        (VIX, {"lstm": 0.9, "regression": 1.0, "persistence": 1.2}, "lstm"),
        (VIX, {"lstm": 1.0, "regression": 1.0, "persistence": 1.2}, "regression"),
        (VOLATILITY, {"mlp": 1.2, "lstm": 1.1, "linear": 1.3, "present_30_minutes": 1.0, "HAR-RV_by_half_hour": 1.0},
         "lstm"),
    ],
)  # fmt: skip
def test_a_network_is_served_if_its_lead_is_sure(output, means, served):
    assert judge.winner(output, [scores(1, **means), scores(2, **means)], 5) == served


def test_all_that_may_win_can_be_served(rows, fitted):
    """The graph builds for every candidate of every output, as a training would ask for it."""
    names = (*NAMES, *(name for name in neural.INPUTS if name not in NAMES))
    view = latent.view(NAMES, rows.matrix, np.ones(len(NAMES), dtype=bool), fitted.preparation.kind == prepare.LEVEL)
    placed = latent.fit(rows.matrix[:2000], view, steps=1, batch=64, seed=1, progress=lambda _: None)
    matrix = neural.raw_inputs(rows, names, slice(3000, 3200))
    rates = {LONG: 0.4, SHORT: 0.6}
    for turn in range(max(map(len, judge.CANDIDATES.values()))):
        served = {name: options[min(turn, len(options) - 1)] for name, options in judge.CANDIDATES.items()}
        content = graph.build(fitted.preparation, fitted.networks, placed, fitted.regression, served, rates, names)
        wanted = neural.expected(fitted, placed, served, rates, matrix, names)
        assert neural.compare(neural.run(content, matrix), wanted).largest <= neural.PARITY


# --- the training itself ------------------------------------------------------------------------------------


def data(count: int, seed: int, inputs: int = 8) -> networks.Data:
    g = np.random.default_rng(seed)
    z = g.normal(size=(count, inputs)).astype(np.float32)
    lean = z[:, 0] + g.normal(0, 0.5, count)
    targets = {
        PRESSURE: 0.3 * np.tanh(lean),
        VOLATILITY: 0.5 * z[:, 1],
        REGIME: np.digitize(lean, [-0.5, 0.5]).astype(float),
        LONG: (lean > 0).astype(float),
        SHORT: (lean < 0).astype(float),
        VIX: z[:, 2],
    }
    return networks.Data(z, {name: np.asarray(v, dtype=np.float32) for name, v in targets.items()})


def epochs(settings: networks.Settings) -> int:
    told: list[str] = []
    networks.train(data(1500, 1), data(500, 2), np.zeros(8, dtype=bool), settings, progress=told.append)
    return sum(line.startswith("epoch") for line in told)


def test_training_stops_when_nothing_improves():
    still = dataclasses.replace(TINY, rate=0.0, decay=0.0, epochs=7, patience=2)
    assert epochs(still) == 3  # the first is the best, and two more were waited for
    assert epochs(dataclasses.replace(TINY, epochs=3, patience=2)) == 3


def test_each_part_goes_back_to_its_best_epoch(tmp_path):
    """With a rate so high that later epochs are worse; heads apart, which the calibration changes."""
    from safetensors.torch import load_file

    wild = dataclasses.replace(TINY, rate=0.3, epochs=4, patience=9)
    path = tmp_path / "c.safetensors"
    found = networks.train(data(1500, 1), data(500, 2), np.zeros(8, dtype=bool), wild, checkpoint=path).state_dict()
    saved = load_file(path)
    worse = [part for part in networks.PARTS if not torch.equal(saved[f"best.{part}.entry.weight"],
                                                                saved[f"now.{part}.entry.weight"])]  # fmt: skip
    assert worse
    for part in networks.PARTS:
        assert torch.equal(found[f"{part}.entry.weight"], saved[f"best.{part}.entry.weight"]), part


def test_inputs_that_may_be_missing_are_blanked():
    """Blanked in all stretches, they have no gradient: their weights stay as they began."""
    settings = dataclasses.replace(TINY, blank=1.0, decay=0.0, epochs=1)
    optional = np.arange(8) >= 5
    torch.manual_seed(settings.seed)
    began = networks.Networks(8, settings).state_dict()
    found = networks.train(data(1500, 1), data(500, 2), optional, settings).state_dict()
    for part in networks.PARTS:
        name = f"{part}.entry.weight"
        assert torch.equal(found[name][:, 5:], began[name][:, 5:]), part
        assert not torch.equal(found[name][:, :5], began[name][:, :5]), part


def test_heads_are_calibrated_on_the_held_rows():
    """Where nothing of what was learned comes true, nothing of it is left."""
    held = data(500, 2)
    flat = networks.Data(held.z, dict(held.targets) | {PRESSURE: np.zeros(500, dtype=np.float32)})
    found = networks.train(data(1500, 1), flat, np.zeros(8, dtype=bool), TINY).state_dict()
    assert not found["cnn.head.weight"].any()
    assert not found["linear.head.weight"][0].any()
    assert found["lstm.head.weight"].any()


def test_a_checkpoint_with_a_non_finite_number_is_refused(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = tmp_path / "c.safetensors"
    arguments = (data(1500, 1), data(500, 2), np.zeros(8, dtype=bool))
    networks.train(*arguments, dataclasses.replace(TINY, epochs=1), checkpoint=path)
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    tensors["adam.0.exp_avg"].view(-1)[0] = float("nan")
    save_file(tensors, path, about)
    with pytest.raises(ModelError, match="holds a non-finite number"):
        networks.train(*arguments, dataclasses.replace(TINY, epochs=1), checkpoint=path)


def test_a_graph_that_computes_something_else_is_not_written(rows, monkeypatch, tmp_path):
    """PyTorch's answers shifted by a thousandth of an output's range: nothing is written, and it is said where."""
    honest = neural.expected

    def shifted(*arguments):
        answers = honest(*arguments)
        k = graph.OUTPUTS.index("neural_feature_3")
        answers[:, k] += 1e-3 * np.ptp(answers[:, k]) + 1e-4
        return answers

    monkeypatch.setattr(neural, "expected", shifted)
    with pytest.raises(ModelError, match="does not compute what was trained: neural_feature_3 is off"):
        train(rows, tmp_path, dataclasses.replace(TINY, epochs=1))
    assert not list(tmp_path.glob("networks.*"))


def test_parity_counts_missing_answers_and_labels():
    g = np.random.default_rng(0)
    wanted = g.normal(size=(4000, len(graph.OUTPUTS)))
    wanted[:, -1] = np.arange(4000) % 5
    found = neural.compare(wanted.copy(), wanted)
    assert (found.rows, found.largest, found.allowed) == (4000, 0.0, neural.PARITY)
    missing = wanted.copy()
    missing[7, 0] = np.nan
    with pytest.raises(ModelError, match="predicted_vix is off by inf"):
        neural.compare(missing, wanted)
    both = wanted.copy()
    both[7, 0] = np.nan
    assert neural.compare(missing, both).largest == 0.0
    labels = wanted.copy()
    labels[:5, -1] += 1
    with pytest.raises(ModelError, match=r"cluster_id is off by 0.0e\+00 of its range, labels in 0.1%"):
        neural.compare(labels, wanted)


def test_settling_is_measured(rows, trained):
    """What the manifest says holds for a start that the measurement did not use; an LSTM that keeps all is refused."""
    manifest, out = trained
    assert manifest.memory is not None
    assert manifest.memory.settle_rows % 256 == 0
    content = (out / "networks.onnx").read_bytes()
    matrix = neural.raw_inputs(rows, manifest.features, slice(0, 8000))
    matrix = matrix[np.isfinite(matrix[:, [bool(part.groups) for part in manifest.inputs]]).all(axis=1)]
    whole, late = neural.run(content, matrix), neural.run(content, matrix[3111:])
    apart = np.abs(late - whole[3111:])[:, : graph.OUTPUTS.index("cluster_id")] / np.maximum(
        np.ptp(whole, axis=0)[: graph.OUTPUTS.index("cluster_id")], 1e-2
    )
    apart[:, graph.OUTPUTS.index("neural_regime")] = 0.0
    assert apart[0].max() > neural.SETTLED
    assert np.nanmax(apart[manifest.memory.settle_rows :]) <= neural.SETTLED
    fitted = fit(rows)  # not the shared one: its weights are changed here
    keeps = fitted.networks
    hidden = SHORT_RUN.hidden
    with torch.no_grad():
        for name, value in keeps.lstm["cell"].named_parameters():
            value.zero_()
            if name == "weight_ih_l0":
                value[2 * hidden : 3 * hidden] = 1e-5  # a slow sum of all that was ever seen
            if name == "bias_ih_l0":
                value[hidden : 2 * hidden] = 40.0  # the forget gate stays open
    names = manifest.features
    view = latent.view(NAMES, rows.matrix, np.ones(len(NAMES), dtype=bool), fitted.preparation.kind == prepare.LEVEL)
    placed = latent.fit(rows.matrix[:2000], view, steps=1, batch=64, seed=1, progress=lambda _: None)
    served = {name: options[-1] for name, options in judge.CANDIDATES.items()}
    content = graph.build(fitted.preparation, keeps, placed, fitted.regression, served, {LONG: 0.4, SHORT: 0.6}, names)
    with pytest.raises(ModelError, match="still matters"):
        neural.settle(content, rows, names, slice(0, 8000), np.zeros(len(NAMES), dtype=bool))


def test_a_choice_that_saw_the_hold_out_is_refused(rows, tmp_path):
    for last in ("2021-03-22T00:00:00.000000Z", "2022-06-30T20:00:00.000000Z"):
        seen = CHOSEN.model_copy(update={"period": (CHOSEN.period[0], last)})
        with pytest.raises(ModelError, match=f"chosen on bars up to {last}.*hold-out begins on 2021-03-22"):
            neural.train(rows, np.zeros(9), tmp_path, declared=declared(), chosen=seen, folds=FOLDS)
    unknown = CHOSEN.model_copy(update={"period": None})
    with pytest.raises(ModelError, match="up to nobody knows when"):
        neural.train(rows, np.zeros(9), tmp_path, declared=declared(), chosen=unknown, folds=FOLDS)
    assert not list(tmp_path.iterdir())


def test_the_card_says_what_the_manifest_holds(trained):
    manifest, out = trained
    assert (out / "networks.md").read_text() == neural_card.render(read(out, "networks"))
    assert {b.output for b in manifest.blanked} >= {REGIME, VOLATILITY, LONG, SHORT}
    assert {b.count for b in manifest.blanked} == {1, 2}
    assert any(b.loss != b.whole for b in manifest.blanked if b.count == 2)  # "spike" is read, if to little avail
    card = neural_card.render(manifest)
    assert "All candidates were taken" in card
    assert "250 rows of hold-out" in card
    content = json.loads(manifest.model_dump_json())
    content["chosen"]["all_taken"] = False
    content["training"]["remarks"] = ["The hold-out was seen twice."]
    for part in content["maps"]:
        part["trustworthiness"] = 0.99 if part["method"].startswith("PCA") else 0.5
    other = neural_card.render(type(manifest).model_validate(content))
    assert "over the walk-forward years too" in other
    assert "The hold-out was seen twice." in other
    assert "by trustworthiness, PCA, 2 do better; by continuity" in other
    assert "0.500, no more than" in other


# --- the map ------------------------------------------------------------------------------------------------


def levels(count: int = 4000) -> tuple[tuple[str, ...], np.ndarray]:
    g = np.random.default_rng(11)
    vol = np.exp(np.cumsum(g.normal(0, 0.05, count)) * 0.5)

    def near(noise: float) -> np.ndarray:
        return vol * np.exp(g.normal(0, noise, count))

    columns = {
        "volatility_rolling_30": near(0.0),
        "atr_14": near(0.1),
        "atr_7": near(0.2),
        "realized_vol_15m": np.where(g.random(count) < 0.05, np.nan, near(0.2)),
        "volatility_rolling_10": near(0.3),
        "close": 4000 * near(0.01),  # a price
        "treasury_10y_yield": near(0.05),  # not of bars
        "unrelated": np.exp(g.normal(size=count)),
        "signed": np.log(vol),
        "label": 1.0 + np.digitize(vol, np.quantile(vol, [0.3, 0.6])),
        "mostly_zero": np.where(g.random(count) < 0.1, 0.0, vol),
    }
    return tuple(columns), np.column_stack(list(columns.values())).astype(np.float32)


def test_the_map_reads_levels_of_volatility_that_bars_give():
    names, matrix = levels()
    from_bars = np.array([name != "treasury_10y_yield" for name in names])
    prices = np.array([name == "close" for name in names])
    view = latent.view(names, matrix, from_bars, prices)
    assert [names[k] for k in view.columns] == list(names[:5])
    z = view.apply(matrix)
    missing = np.isnan(matrix[:, 3])
    assert missing.any()
    assert not z[missing, 3].any()
    logs = np.log(matrix[:, 1].astype(float))
    low, centre, high = np.quantile(logs, [0.16, 0.5, 0.84])
    inside = matrix[:, 1] > view.floor[1]
    np.testing.assert_allclose(z[inside, 1], np.clip((logs - centre) / ((high - low) / 2), -5, 5)[inside], atol=1e-5)
    with pytest.raises(ModelError, match="4 features go with the present volatility: too few"):
        latent.view(names, matrix, from_bars & (np.array(names) != "atr_7"), prices)
    # Without the first of the anchors the next one is what the others are held against.
    other = tuple(name.replace("volatility_rolling_30", "vol_historical_5d") for name in names)
    assert latent.view(other, matrix, from_bars, prices).columns.tolist() == [0, 1, 2, 3, 4]


def test_a_training_gives_the_map_what_bars_give(rows, trained, tmp_path):
    manifest, _ = trained
    assert set(manifest.map_inputs) == {
        "volatility_rolling_30", "vol_historical_5d", "atr_14", "realized_vol_30m", "realized_vol_15m"
    }  # fmt: skip
    without = declared() | {"atr_14": neural.Declared("-", "d", from_bars=False)}
    with pytest.raises(ModelError, match="4 features go with the present volatility"):
        neural.train(rows, np.zeros(9), tmp_path, declared=without, chosen=CHOSEN, settings=SHORT_RUN, folds=FOLDS)


def test_the_map_keeps_neighbours_and_its_axes_proportions():
    """The axes are in one unit, so a faint one stays faint; calm and storm lie apart."""
    names, matrix = levels()
    everything = np.array([name != "treasury_10y_yield" for name in names])
    view = latent.view(names, matrix, everything, np.array([name == "close" for name in names]))
    found = latent.fit(matrix, view, steps=40, batch=128, seed=1, progress=lambda _: None)
    placed = found.place(matrix)
    assert placed.shape == (4000, 5)
    assert placed[:, :2].std() == pytest.approx(1.0, rel=0.1)
    assert placed.std(axis=0)[2:].max() < 0.7 * placed.std(axis=0)[:2].max()
    order = np.argsort(matrix[:, 0])
    calm, storm = placed[order[:400]], placed[order[-400:]]
    apart = np.linalg.norm(calm.mean(axis=0) - storm.mean(axis=0))
    assert apart > 2 * max(np.linalg.norm(part.std(axis=0)) for part in (calm, storm))
    labels = found.clusters(placed)
    wanted = ((placed[:, None, :2] - found.centres[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert np.array_equal(labels, wanted)
    assert 4 <= len(found.centres) <= 7
