"""Training, judging and exporting ``predicted_vix`` on simulated sessions."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import math

import numpy as np
import pytest

from mia_models.errors import ModelError
from mia_models.manifest import read
from mia_models.session import OnnxModel
from mia_models.training import baselines, card, evaluate, prior, response
from mia_models.training.response import INPUTS, TERMS
from mia_models.training.samples import Samples, select, upcoming_close

NO_PRIOR = np.zeros(9)
MINUTES = (0, 240, 900, 1095, 1245, 1395)  # after 16:15 New York; 1095 is 10:30


def simulated(first: str, last: str, seed: int = 1, noise: float = 0.02) -> Samples:
    """Weekdays with a VIX that answers the ES return by -0.06 per implied daily move, and reverts."""
    g = np.random.default_rng(seed)
    days = np.arange(np.datetime64(first), np.datetime64(last))
    days = days[np.is_busday(days)].astype(np.int64)
    vix = [20.0] * 25
    out = []
    for previous, today in itertools.pairwise(days):
        v, five, month = vix[-1], np.mean(vix[-5:]), np.mean(vix[-20:])
        path = np.cumsum(g.normal(0, 0.4, len(MINUTES))) * v / response.DAILY
        change = -0.06 * path[-1] * response.DAILY / v + 0.3 * math.log(month / v) + g.normal(0, noise)
        target = float(np.clip(v * math.exp(change), 10, 80))
        vol1, vol5 = g.uniform(0.5, 1.2) * v / 100, g.uniform(0.6, 1.1) * v / 100
        for minute, move in zip(MINUTES, path, strict=True):
            local = 975 + minute
            day = int(previous) + local // 1440 if minute < 465 else int(today)
            age = (today - previous - 1) * 1440 * (minute >= 465) + minute
            out.append((day, local % 1440, v, five, month, vol1, vol5, move, age, target, today))
        vix.append(target)
    table = np.array(out)
    columns = {name: table[:, 2 + k] for k, name in enumerate(INPUTS)}
    return Samples(table[:, 0].astype(int), table[:, 1].astype(int), columns, table[:, 9], table[:, 10].astype(int))


@pytest.fixture(scope="module")
def sessions() -> Samples:
    return simulated("2018-12-03", "2022-07-01")


@pytest.fixture(scope="module")
def fitted(sessions) -> response.Response:
    return response.fit(sessions.columns, sessions.target, NO_PRIOR)


def plain_prediction(model: response.Response, row: dict[str, float]) -> float:
    """The formula of the docstring, one number at a time."""
    v = row["vix_term_1m"]
    move = row["es_return_since_vix_close"] / (v / 100 / math.sqrt(252))
    month = math.log(row["vix_rolling_mean"] / v)
    nights = row["minutes_since_vix_close"] // 1440
    x = (
        math.log(row["vix_mean_5"] / v),
        month,
        math.log(row["vol_historical_1d"] * 100 / v),
        math.log(row["vol_historical_5d"] * 100 / v),
        move,
        min(move, 0.0),
        move * month,
        nights,
    )
    clock = row["minutes_since_vix_close"] - 1440 * nights
    phi = (1.0, min(clock / 1035, 1.0), max(clock - 1035, 0.0) / 405)
    total = 0.0
    for j in range(3):
        inner = model.coefficients[0, j]
        for i in range(8):
            bounded = min(max(x[i], model.lowest[i]), model.highest[i])
            inner += model.coefficients[i + 1, j] * (bounded - model.centre[i]) / model.scale[i]
        total += inner * phi[j]
    return v * math.exp(min(max(total, -1.1), 1.1))


def wild_rows(count: int, seed: int) -> dict[str, np.ndarray]:
    """Inputs far beyond training as well, so that every bound is met."""
    g = np.random.default_rng(seed)
    vix = np.exp(g.uniform(math.log(8), math.log(90), count))
    return {
        "vix_term_1m": vix,
        "vix_mean_5": vix * np.exp(g.normal(0, 0.2, count)),
        "vix_rolling_mean": vix * np.exp(g.normal(0, 0.4, count)),
        "es_return_since_vix_close": g.standard_t(2, count) * 0.02,
        "minutes_since_vix_close": g.integers(0, 7000, count).astype(float),
        "vol_historical_1d": np.exp(g.normal(-2, 1, count)),
        "vol_historical_5d": np.exp(g.normal(-2, 1, count)),
    }


def test_numpy_form_is_the_formula(fitted):
    columns = wild_rows(300, seed=2)
    found = fitted.predict(columns)
    expected = [plain_prediction(fitted, {name: float(c[k]) for name, c in columns.items()}) for k in range(300)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_graph_is_the_formula(fitted):
    pytest.importorskip("onnx")
    import onnxruntime as ort

    from mia_models.training import export

    columns = wild_rows(3000, seed=3)
    runtime = ort.InferenceSession(export.graph(fitted), providers=["CPUExecutionProvider"])
    matrix = np.column_stack([columns[name] for name in INPUTS])
    found = runtime.run(None, {"features": matrix})[0][:, 0]
    np.testing.assert_allclose(found, fitted.predict(columns), rtol=1e-12)


def test_fit_finds_the_response(fitted):
    slope = fitted.coefficients[1 + TERMS.index("move")] / fitted.scale[TERMS.index("move")]
    fall = fitted.coefficients[1 + TERMS.index("fall")] / fitted.scale[TERMS.index("fall")]
    # At 16:15; the ridge shares the symmetric response between both slopes, so they count together, for a fall.
    assert slope.sum() + fall.sum() == pytest.approx(-0.06, abs=0.012)
    month = fitted.coefficients[1 + TERMS.index("vix_20d")] / fitted.scale[TERMS.index("vix_20d")]
    assert month.sum() > 0.1


def test_prior_is_what_remains_without_evidence(sessions):
    """With targets that follow the prior exactly, nothing is added to it, in any unit."""
    wanted = np.array([-0.02, 0.04, 0.05, 0.0, -0.01, -0.05, -0.03, 0.1, 0.01])
    expected = wanted[0] + response.terms(sessions.columns) @ wanted[1:]
    target = sessions.columns["vix_term_1m"] * np.exp(expected)
    model = response.fit(sessions.columns, target, wanted)
    np.testing.assert_allclose(model.predict(sessions.columns), target, rtol=1e-9)
    np.testing.assert_allclose(model.coefficients[:, 1:], 0, atol=1e-9)


def test_least_absolute_is_a_median_not_a_mean():
    g = np.random.default_rng(0)
    y = np.concatenate([g.normal(0, 0.1, 400), np.full(60, 5.0)])
    level = response.least_absolute(np.ones((len(y), 1)), y, 0.0)
    assert level[0] == pytest.approx(np.median(y), abs=3e-3)
    assert abs(level[0] - y.mean()) > 0.5


# --- target, views, folds ----------------------------------------------------------------------------


def ns(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).timestamp()) * 10**9


def test_target_changes_when_the_close_becomes_known():
    # 16:15 New York on a Thursday, a Friday and a Monday of July 2021 (UTC-4).
    known = np.array(
        [ns("2021-07-08T20:15:00+00:00"), ns("2021-07-09T20:15:00+00:00"), ns("2021-07-12T20:15:00+00:00")]
    )
    close, day = np.array([19.0, 16.18, 16.17]), np.array([8, 9, 12])
    bars = [
        "2021-07-09T20:14:00",
        "2021-07-09T20:15:00",
        "2021-07-11T23:00:00",
        "2021-07-12T20:14:59",
        "2021-07-12T20:15:00",
    ]
    target, target_day = upcoming_close(np.array([ns(bar + "+00:00") for bar in bars]), known, close, day)
    assert target[:4].tolist() == [16.18, 16.17, 16.17, 16.17]
    assert math.isnan(target[4])
    assert target_day.tolist() == [9, 12, 12, 12, -1]
    with pytest.raises(ModelError, match="ascending"):
        upcoming_close(known, known[::-1], close, day)


def test_seen_at_takes_the_last_bar_of_the_target_day():
    day = np.array([4, 5, 5, 5, 5, 6, 6])
    minute = np.array([630, 629, 630, 631, 900, 600, 640])
    samples = Samples(day, minute, {}, np.zeros(7), np.array([5, 5, 5, 5, 5, 6, 6]))
    # Day 4 is the evening before; on day 6 the last bar by 10:30 is half an hour old.
    assert evaluate.seen_at(samples, 630).tolist() == [False, False, True, False, False, False, False]


def test_no_fold_sees_its_own_days(sessions):
    """Targets from a fold's first day on may change as they like: what is predicted there does not."""
    folds = evaluate.quarters("2020-01-01", "2020-07-01", str)
    everything = np.ones(len(sessions), dtype=bool)
    fitters = {
        "model": lambda a, b: response.fit(a.columns, a.target, NO_PRIOR).predict(b.columns),
        **{name: lambda a, b, name=name: baselines.predict(a, b, name) for name in baselines.NAMES},
    }
    honest = evaluate.out_of_sample(sessions, everything, folds[:1], fitters, lambda _: None)
    later = sessions.target_day >= folds[0].first - evaluate.PURGED_DAYS
    spoilt = dataclasses.replace(sessions, target=np.where(later, 55.0, sessions.target))
    again = evaluate.out_of_sample(spoilt, everything, folds[:1], fitters, lambda _: None)
    for name, values in honest.items():
        assert np.isfinite(values).any()
        assert np.array_equal(values, again[name], equal_nan=True)


def test_metric_is_the_mean_over_bars():
    samples = Samples(np.zeros(4, int), np.zeros(4, int), {}, np.array([10.0, 10, 20, 20]), np.array([1, 1, 1, 2]))
    predictions = {"model": np.array([11.0, 9, 21, 24]), "flat": np.array([12.0, 12, 22, 22]), "bad": np.full(4, 90.0)}
    found = evaluate.metric(
        "2021", "all bars", np.ones(4, bool), samples, predictions, "model", ("flat", "bad"), seed=1
    )
    assert found.errors == {"model": 1.75, "flat": 2.0, "bad": 75.0}
    assert (found.best_baseline, found.gain, found.sessions) == ("flat", 0.125, 2)
    # Drawn sessions: the first alone gains 1/2, the second alone loses as much again.
    assert (found.gain_low, found.gain_high) == (-1.0, 0.5)
    assert evaluate.metric("2021", "none", np.zeros(4, bool), samples, predictions, "model", ("flat",), seed=1) is None


def test_baselines(sessions):
    errors = {
        name: np.abs(baselines.predict(sessions, sessions, name) - sessions.target).mean() for name in baselines.NAMES
    }
    assert errors["HAR, asymmetric"] < errors["linear response"] < errors["persistence"]
    assert np.array_equal(baselines.predict(sessions, sessions, "persistence"), sessions.columns["vix_term_1m"])


# --- prior -------------------------------------------------------------------------------------------


def daily(seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    days = np.arange(np.datetime64("2003-10-01"), np.datetime64("2022-07-01"))
    days = days[np.is_busday(days)].astype(np.int64)
    vix, index = [20.0], [1000.0]
    for _ in days[1:]:
        z = g.normal(0, 0.8)
        index.append(index[-1] * math.exp(z * vix[-1] / response.DAILY))
        vix.append(vix[-1] * math.exp(-0.05 * z + 0.04 * math.log(20 / vix[-1]) + g.normal(0, 0.01)))
    return days, np.array(vix), np.array(index)


def test_prior_finds_the_daily_response():
    coefficients = prior.from_daily(*daily())
    assert coefficients[1 + TERMS.index("move")] == pytest.approx(-0.05, abs=0.004)
    assert coefficients[1 + TERMS.index("fall")] == pytest.approx(0, abs=0.006)
    assert coefficients[1 + TERMS.index("realised_1d")] == 0


def test_prior_does_not_see_beyond_2018():
    days, vix, index = daily()
    later = days > np.datetime64("2018-12-31").astype(np.int64)
    g = np.random.default_rng(0)
    shaken = np.where(later, vix * g.uniform(0.5, 2, len(vix)), vix)
    assert np.array_equal(prior.from_daily(days, vix, index), prior.from_daily(days, shaken, index))
    assert not np.array_equal(
        prior.from_daily(days, vix, index), prior.from_daily(days, vix * np.where(later, 1, 1.1), index**0.9)
    )


def test_prior_needs_a_history():
    days, vix, index = daily()
    with pytest.raises(ModelError, match="have both closes between 2004-01-01 and 2018-12-31"):
        prior.from_daily(days[3000:], vix[3000:], index[3000:])


# --- the whole -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(sessions, tmp_path_factory):
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    from mia_models.training import predicted_vix

    out = tmp_path_factory.mktemp("trained")
    told: list[str] = []
    return predicted_vix.train(sessions, NO_PRIOR, out, progress=told.append), out, told


def test_training_writes_a_model_that_loads(sessions, trained):
    manifest, out, told = trained
    model = OnnxModel.load(out, "predicted_vix", features=INPUTS)
    assert model.manifest == manifest == read(out, "predicted_vix")
    assert told[-1].startswith("wrote predicted_vix")
    test = sessions.take(sessions.target_day >= evaluate.day("2022-01-01"))
    found = model.predict(np.column_stack([test.columns[name] for name in INPUTS]))[:, 0]
    errors = next(m for m in manifest.metrics if (m.period, m.view) == ("2022H1", "all bars")).errors
    assert np.abs(found - test.target).mean() == pytest.approx(errors["model"], abs=1e-4)
    assert errors["model"] < 0.8 * errors["persistence"]
    assert manifest.training.last < dt.date(2022, 1, 1)


def test_no_statistic_sees_the_hold_out(sessions, trained, tmp_path):
    """With other prices in 2022, everything but the figures of 2022 stays the same to the byte."""
    from mia_models.training import predicted_vix

    manifest, out, _ = trained
    later = sessions.target_day >= evaluate.day("2022-01-01")
    columns = {name: np.where(later, values * 1.5, values) for name, values in sessions.columns.items()}
    spoilt = dataclasses.replace(sessions, columns=columns, target=np.where(later, 44.0, sessions.target))
    again = predicted_vix.train(spoilt, NO_PRIOR, tmp_path)
    assert (tmp_path / "predicted_vix.onnx").read_bytes() == (out / "predicted_vix.onnx").read_bytes()
    assert again.inputs == manifest.inputs
    assert [m for m in again.metrics if m.period != "2022H1"] == [m for m in manifest.metrics if m.period != "2022H1"]
    assert [m for m in again.metrics if m.period == "2022H1"] != [m for m in manifest.metrics if m.period == "2022H1"]


def test_card_says_what_was_measured(trained, fitted):
    manifest, out, _ = trained
    text = (out / "predicted_vix.md").read_text()
    for metric in manifest.metrics:
        assert f"{metric.errors['model']:.3f}" in text
        assert f"{metric.gain:+.1%}" in text
    poor = manifest.model_copy(
        update={
            "metrics": tuple(
                m.model_copy(update={"gain": 0.05 if m.view == "10:30" else 0.2}) for m in manifest.metrics
            )
        }
    )
    assert "**not reached** in 2019H2 10:30 (+5.0%), 2020 10:30 (+5.0%)" in card.render(poor, fitted, TERMS)
    good = manifest.model_copy(update={"metrics": tuple(m.model_copy(update={"gain": 0.2}) for m in manifest.metrics)})
    assert "in every period and view: reached." in card.render(good, fitted, TERMS)


def test_rows_that_cannot_be_used(sessions, tmp_path):
    from mia_models.training import predicted_vix

    columns = {name: values for name, values in sessions.columns.items() if name != "vix_mean_5"}
    with pytest.raises(ModelError, match="lack vix_mean_5"):
        predicted_vix.train(dataclasses.replace(sessions, columns=columns), NO_PRIOR, tmp_path)
    early = sessions.take(sessions.target_day < evaluate.day("2021-01-01"))
    with pytest.raises(ModelError, match="do not reach from before July 2019 into 2022"):
        predicted_vix.train(early, NO_PRIOR, tmp_path)
    gaps = {name: values.copy() for name, values in sessions.columns.items()}
    gaps["vix_mean_5"][::2] = np.nan
    kept = select(dataclasses.replace(sessions, columns=gaps), INPUTS)
    assert len(kept) == len(sessions) // 2
    assert not list(tmp_path.iterdir())
