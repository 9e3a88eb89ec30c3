"""Bad input, from the frame that a user hands in to every column that the catalogue declares.

Each case ends in a clear error or in the declared nulls; never in an infinite value, a wrong one or a crash.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import bars
import numpy as np
import polars as pl
import pytest
from bars import Bars, Floats, catalogue, cut, feed, same_bits

from mia_fast import generate_features
from mia_fast.errors import ConfigError, DataError, QuarantineWarning, StateError
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.plan import Plan, make_plan
from mia_fast.features.sample import SESSION_ROWS, simulate
from mia_fast.workspace import Workspace

ROW = 150
BARS = ("open", "high", "low", "close", "volume")


@functools.cache
def frame() -> pl.DataFrame:
    """400 bars of one session, as a user has them."""
    data = bars.make(1).rows(slice(0, 400))
    stamps = pl.Series("timestamp", data.known_at - bars.MINUTE).cast(pl.Datetime("ns", "UTC"))
    return pl.DataFrame({"timestamp": stamps, **{name: data.columns[name] for name in BARS}})


def at_row(**values: float | None) -> pl.DataFrame:
    """The frame with other values at one row."""
    here = pl.int_range(pl.len()) == ROW
    return frame().with_columns(
        **{name: pl.when(here).then(pl.lit(value, dtype=pl.Float64)).otherwise(name) for name, value in values.items()}
    )


# --- frames ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason", "what"),
    [
        (lambda: frame().head(0), "empty", "holds no rows"),
        (lambda: frame().select("timestamp"), "column_missing", "'open', 'high', 'low', 'close', 'volume' are missing"),
        (lambda: frame().with_columns(close=pl.lit("abc")), "type_wrong", "cannot be read as numbers: abc"),
        (lambda: frame().reverse(), "unsorted", "comes after"),
        (lambda: pl.concat([frame().head(3), frame().head(3)]), "unsorted", "comes after"),
        (lambda: frame().with_columns(close=pl.lit(None, dtype=pl.Float64)), "too_many_faults", "close null"),
        (lambda: frame().with_columns(volume=pl.lit(None)), "too_many_faults", "volume null"),
        (lambda: frame().with_columns(close=pl.lit(math.nan)), "too_many_faults", "price_not_finite"),
        (lambda: frame().with_columns(high=pl.lit(math.inf)), "too_many_faults", "price_not_finite"),
        (lambda: frame().with_columns(low=-pl.col("low")), "too_many_faults", "price_not_positive"),
        (lambda: frame().with_columns(volume=-pl.col("volume")), "too_many_faults", "volume_negative"),
        (lambda: frame().with_columns(high=pl.col("low"), low=pl.col("high")), "too_many_faults", "high_below_low"),
    ],
)
def test_a_frame_that_cannot_be_used_is_refused(workspace: Workspace, data, reason: str, what: str) -> None:
    with pytest.raises(DataError) as caught:
        generate_features(data(), workspace=workspace)
    assert caught.value.reason == reason
    assert what in caught.value.what
    assert caught.value.hint
    assert not (workspace.data / "features").exists()  # nothing was written


@pytest.mark.parametrize(
    "values",
    [
        {"close": None},
        {"close": math.nan},
        {"high": math.inf},
        {"low": -math.inf, "close": -math.inf},
        {"volume": math.nan},
        {"volume": -1.0},
        dict.fromkeys(BARS[:4], 0.0),
    ],
    ids=str,
)
def test_a_bad_row_is_left_out_and_the_others_stand(workspace: Workspace, values: dict[str, float | None]) -> None:
    """The reader takes the row out and says so; what follows is what the bars without it give."""
    with pytest.warns(
        QuarantineWarning, match=r"1 of 400 rows of bars were left out: 1: \w+ \(first: row 150, "
    ) as told:
        got = generate_features(at_row(**values), workspace=workspace)
    listed = workspace.data / "quarantine" / "bars.csv"
    assert len(told) == 1
    assert str(listed) in str(told[0].message)
    assert told[0].filename == __file__
    (line,) = pl.read_csv(listed).rows(named=True)
    assert line["source"] == "polars DataFrame"
    assert line["row"] == ROW
    assert line["column"] in values
    assert line["rule"] in str(told[0].message)
    assert line["hint"]
    want = generate_features(frame().filter(pl.int_range(pl.len()) != ROW), workspace=workspace)
    assert got.equals(want)
    assert got.height == 399
    assert not any(got[name].is_infinite().any() for name in got.columns[1:])


def test_no_volume_all_day_empties_only_what_divides_by_it(workspace: Workspace) -> None:
    got = generate_features(frame().with_columns(volume=pl.lit(0.0)), workspace=workspace)
    clean = generate_features(frame(), workspace=workspace)
    assert (got["volume"] == 0.0).all()
    assert got["vwap"].null_count() == got["poc"].null_count() == got.height
    for name in ("rsi_14", "atr_14", "bollinger_upper_20", "realized_vol_15m"):
        assert got[name].equals(clean[name])
    assert not any(got[name].is_infinite().any() for name in got.columns[1:])


@pytest.mark.parametrize("rows", [1, 2])
def test_a_frame_of_one_row_has_the_declared_nulls(workspace: Workspace, rows: int) -> None:
    got = generate_features(frame().head(rows), workspace=workspace)
    plan = make_plan(catalogue(), BARS, bar_minutes=1, tick_size=0.25)
    for name in plan.features:
        warmup = plan.warmups[name]
        if name in plan.missing or warmup.sessions or warmup.rows >= rows:
            assert got[name].null_count() == rows, name
        else:
            assert got[name].null_count() < rows, name


# --- every declared input ------------------------------------------------------------------------------------


@functools.cache
def sample() -> Bars:
    found = simulate(catalogue(), 3)
    return Bars(found.known_at, dict(found.columns))


@functools.cache
def plan() -> Plan:
    return make_plan(catalogue(), tuple(sample().columns), bar_minutes=1, tick_size=0.25)


@functools.cache
def clean() -> Floats:
    return feed(FeatureEngine(plan()), sample())


FAULT = SESSION_ROWS + 500
VALUES = {"NaN": math.nan, "infinity": math.inf, "minus infinity": -math.inf, "beyond all prices": 1e300}


@pytest.mark.parametrize("name", [column.name for column in catalogue().inputs])
def test_what_is_not_a_number_is_a_missing_one(name: str) -> None:
    """NaN, both infinities and absurd sizes are one thing: missing. Nothing before them changes."""
    got = {what: feed(FeatureEngine(plan()), sample().injected(FAULT, **{name: v})) for what, v in VALUES.items()}
    for what, values in got.items():
        same_bits(values, got["NaN"], plan().outputs)
        same_bits(values[:, :FAULT], clean()[:, :FAULT], plan().outputs)
        assert not np.isinf(values).any(), what


@pytest.mark.parametrize("value", [0.0, -1.0, 1e15, 5e-324])
@pytest.mark.parametrize("name", [column.name for column in catalogue().inputs])
def test_a_zero_or_an_absurd_number_is_never_infinite(name: str, value: float) -> None:
    data = sample().injected(FAULT, **{name: value})
    whole = feed(FeatureEngine(plan()), data)
    assert not np.isinf(whole).any()
    engine = FeatureEngine(plan())
    same_bits(np.hstack([feed(engine, b) for b in cut(data, (FAULT - 1, FAULT, FAULT + 1, FAULT + 200))]), whole)


CHOOSES = ("macro_event_severity",)
"""Features that have a value while an input is missing that they would read at another bar."""


@pytest.mark.parametrize("value", [math.nan, 0.0])
@pytest.mark.parametrize("name", [column.name for column in catalogue().inputs])
def test_a_column_of_nothing_else(name: str, value: float) -> None:
    """All null: what does not rest on it keeps its bits. All zero: never infinite."""
    got = feed(FeatureEngine(plan()), sample().altered(**{name: np.full(len(sample()), value)}))
    assert not np.isinf(got).any()
    if math.isnan(value):
        untouched = make_plan(
            catalogue(), [other for other in plan().inputs if other != name], bar_minutes=1, tick_size=0.25
        )
        for k, feature in enumerate(plan().features):
            if feature in untouched.missing:
                given = ~np.isnan(got[k])
                same_bits(got[k][given], clean()[k][given])  # where() may choose the branch that is there
                assert not given.any() or feature in CHOOSES, feature
            else:
                same_bits(got[k], clean()[k])


# --- catalogues and states -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("kernel: rsi, inputs: [close], params: {period: 7}", "kernel: rsy, inputs: [close], params: {period: 7}",
         "unknown kernel 'rsy'"),
        ("expression: log(close)}", "expression: log(es_return_since_vix_close)}", "columns depend on themselves"),
        ("expression: efficiency_ratio_20,", "expression: volatility_score + trend_strength_score,",
         "columns depend on themselves: trend_strength_score -> trend_strength_score"),
        ("kernel: rsi, inputs: [close], params: {period: 7}", "kernel: rsi, inputs: [close], params: {period: 14}",
         "declares the same as"),
    ],
)  # fmt: skip
def test_a_catalogue_that_cannot_be_planned(workspace: Workspace, old: str, new: str, what: str) -> None:
    text = workspace.config("feature_sets.yaml").read_text(encoding="utf-8")
    assert old in text
    own = workspace.root / "config" / "feature_sets.yaml"
    own.parent.mkdir(exist_ok=True)
    own.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        generate_features(frame(), workspace=workspace)
    assert what in caught.value.what
    assert "feature_sets.yaml" in str(caught.value.where)
    assert caught.value.hint


@pytest.mark.parametrize("change", ["catalogue", "inputs", "bars", "tick"])
def test_a_state_file_of_another_plan_is_refused(tmp_path: Path, change: str) -> None:
    less = catalogue().features[:-1]
    other = {
        "catalogue": lambda: make_plan(
            catalogue().__class__(inputs=catalogue().inputs, auxiliary=catalogue().auxiliary, features=less),
            plan().inputs, bar_minutes=1, tick_size=0.25),
        "inputs": lambda: make_plan(catalogue(), BARS, bar_minutes=1, tick_size=0.25),
        "bars": lambda: make_plan(catalogue(), plan().inputs, bar_minutes=5, tick_size=0.25),
        "tick": lambda: make_plan(catalogue(), plan().inputs, bar_minutes=1, tick_size=0.5),
    }[change]()  # fmt: skip
    file = tmp_path / "features.state"
    file.write_bytes(FeatureEngine(other).save())
    engine = FeatureEngine(plan())
    feed(engine, sample().rows(slice(0, 300)))
    before = engine.save()
    with pytest.raises(StateError, match="was saved under plan") as caught:
        engine.restore(file.read_bytes())
    assert caught.value.hint
    assert engine.save() == before
