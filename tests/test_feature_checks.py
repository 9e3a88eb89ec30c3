"""The check suite: the shipped catalogue passes it, and each check catches what it is there for."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bars
import numpy as np
import pytest
from bars import Floats, catalogue
from typer.testing import CliRunner

from mia_fast.errors import ConfigError
from mia_fast.features import catalogue as catalogues
from mia_fast.features import kernels
from mia_fast.features.builder import Builder
from mia_fast.features.catalogue import Catalogue
from mia_fast.features.checks import CHECKS, ON_DATA, UNWAIVABLE, Bench, Finding, Report, check_features, degrees
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.kernels import FORGETS, HOLDS, KEEPS, KERNELS, POINTWISE, POLICIES, SKIPS, Kernel, Parameter
from mia_fast.features.own import register_kernel
from mia_fast.features.plan import derived_missing, make_plan
from mia_fast.features.rows import Column, Warmup
from mia_fast.features.sample import SESSION_ROWS, Sample, simulate
from mia_fast.workspace import Workspace
from mia_kernels import opcodes as op

CONTRACT = {
    "family": "test", "unit": "-", "range": (None, None), "warmup": 0, "definition": "for a test", "source": "test",
}  # fmt: skip
SHIPPED_INPUTS = [column.model_dump() for column in catalogue().inputs]


def rows(*features: dict[str, Any], auxiliary: tuple[dict[str, Any], ...] = (), inputs: Any = None) -> Catalogue:
    """A catalogue of these features."""
    return Catalogue.model_validate(
        {
            "inputs": SHIPPED_INPUTS if inputs is None else inputs,
            "auxiliary": auxiliary,
            "features": [CONTRACT | feature for feature in features],
        }
    )


def formula(expression: str, name: str = "mine", **changes: Any) -> dict[str, Any]:
    return {"name": name, "kernel": "formula", "expression": expression} | changes


def found(report: Report) -> dict[str, set[str]]:
    """feature -> the checks that found something."""
    result: dict[str, set[str]] = {}
    for finding in report.findings:
        result.setdefault(finding.feature, set()).add(finding.check)
    return result


def one(report: Report, feature: str, check: str) -> Finding:
    """The first finding of that check on that feature."""
    return next(f for f in report.findings if (f.feature, f.check) == (feature, check))


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    before = dict(kernels.REGISTERED)
    yield
    kernels.REGISTERED.clear()
    kernels.REGISTERED.update(before)


# --- what is shipped passes -------------------------------------------------------------------------------


WHOLE = bool(os.environ.get("MIA_WHOLE"))


@functools.cache
def bench(seed: int = 1) -> Bench:
    """The shipped catalogue on simulated data: made once for all tests of a process."""
    return Bench(catalogue(), seed, FeatureEngine)


def test_the_shipped_catalogue_passes() -> None:
    report = check_features(catalogue())
    assert report.findings == []
    assert report.features == len(catalogue().features) == 350


@pytest.mark.skipif(not WHOLE, reason="seven seconds for each seed: make torture")
@pytest.mark.parametrize("seed", range(2, 3 + int(os.environ.get("MIA_TORTURE_ROUNDS", "0")) // 10))
def test_other_simulated_data_change_no_verdict(seed: int) -> None:
    assert check_features(catalogue(), seed=seed).findings == []


@pytest.mark.real
def test_real_bars_pass(real_data: Path) -> None:
    real = bars.real(real_data, 100_000 if WHOLE else 6000)
    data = Sample(real.known_at, real.columns, what="real bars")
    assert len(catalogue().features) - len(bars.plan_for(real).null_features) > 100
    for check, rule in ON_DATA.items():
        assert list(rule(bench(), data)) == [], check


@pytest.mark.real
def test_a_report_says_what_of_the_user_s_bars_could_be_computed(real_data: Path) -> None:
    real = bars.real(real_data, 2000)
    data = Sample(real.known_at, real.columns, what="real bars")
    report = check_features(catalogue(), data=data, only="rsi_14")
    assert report.findings == []
    assert report.over[-1] == "real bars (prefix, blocks, range; 1 of 1 can be computed)"
    report = check_features(catalogue(), data=data, only="ofi_score")
    assert report.findings == []
    assert "0 of 1 can be computed" in report.over[-1]


def test_every_feature_enters_every_check() -> None:
    """No opt-out: on the sample no feature lacks an input, and each has a value."""
    assert bench().plan.missing == {}
    assert not np.isnan(bench().values).all(axis=1).any()
    assert not np.isnan(np.array(list(bench().clean.columns.values()))).any()


# --- each check catches its fault ---------------------------------------------------------------------------


def lowered(name: str, *, lag: int, warmup: int = 0, missing: str = POINTWISE) -> Kernel:
    """A built-in-like kernel that reads its input ``lag`` rows back; a negative lag is the future."""

    def lower(builder: Builder, group: Any) -> None:
        for row in group:
            builder.emit(
                op.LOG_RETURN, a=builder.slot(row.inputs[0]), integers=[lag], targets=[builder.target(row.name)]
            )

    return Kernel(name, "for a test", ("price",), missing, lower, lambda _row: Warmup(rows=warmup))


def test_a_kernel_that_reads_the_future_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "peek", lowered("peek", lag=-1))
    peeking = {"name": "peeking", "kernel": "peek", "inputs": ["close"]}
    report = check_features(rows(peeking, formula("close - open", "honest", unit="index points")))
    assert {"prefix", "blocks"} <= found(report)["peeking"]
    assert "honest" not in found(report)
    assert "future" in one(report, "peeking", "prefix").saw
    assert "negative lag" in one(report, "peeking", "prefix").repair


class Peeking(FeatureEngine):
    """Knows the next bar of a batch; live it has none."""

    def batch(self, known_at: Any, columns: Any, **options: Any) -> Floats:
        out = super().batch(known_at, columns, **options)
        out[0, :-1] = out[0, 1:].copy()
        return out


class Forgetful(FeatureEngine):
    """Loses a part of its state on the way to the disk."""

    def restore(self, saved: bytes) -> None:
        super().restore(saved)
        self._state[op.HEADER : self.plan.columns_at] = 0.0


class Blocky(FeatureEngine):
    """Lets the length of a block into the last value of every block, in batches of more than 7 rows."""

    def batch(self, known_at: Any, columns: Any, **options: Any) -> Floats:
        out = super().batch(known_at, columns, **options)
        if len(known_at) in (64, 257):
            out[0, -1] += 1e-12 * abs(out[0, -1])
        return out


AVERAGE = {"name": "average", "kernel": "ema", "inputs": ["close"], "params": {"period": 20}, "warmup": 19,
           "unit": "index points"}  # fmt: skip


@pytest.mark.parametrize(
    ("make_engine", "check", "where"),
    [
        (Peeking, "prefix", "row"),
        (Forgetful, "blocks", "resumed"),
        (Blocky, "blocks", "blocks of 64"),
    ],
)
def test_an_engine_that_breaks_a_cut_is_caught(make_engine: Any, check: str, where: str) -> None:
    report = check_features(rows(AVERAGE), make_engine=make_engine)
    assert where in one(report, "average", check).where


def test_a_wrong_warmup_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "late", lowered("late", lag=5, warmup=4))
    monkeypatch.setitem(KERNELS, "early", lowered("early", lag=5, warmup=6))
    report = check_features(
        rows(
            {"name": "late", "kernel": "late", "inputs": ["close"], "warmup": 4},
            {"name": "early", "kernel": "early", "inputs": ["open"], "warmup": 6},
            formula("log(volume / 0)", "never"),
        )
    )
    assert found(report) == {"late": {"warmup"}, "early": {"warmup"}, "never": {"warmup"}}
    assert one(report, "late", "warmup").saw == "its first value is at row 5, its declared warm-up of 4 rows means 4"
    assert "never has a value" in one(report, "never", "warmup").saw


@pytest.mark.parametrize(
    ("expression", "bounds", "seen"),
    [
        ("close / lag(close, 1) - 1", (-0.2, 0.2), True),  # holds on ordinary bars, not on wild ones
        ("(high - low) / close", (0.001, None), True),
        ("close / lag(close, 1) - 1", (-1, None), False),
    ],
)
def test_a_wrong_range_is_caught(expression: str, bounds: Any, seen: bool) -> None:
    back = 1 if "lag" in expression else 0
    report = check_features(rows(formula(expression, range=bounds, warmup=back)))
    assert found(report) == ({"mine": {"range"}} if seen else {})


def test_a_state_behind_a_policy_of_forgetting_is_caught() -> None:
    @register_kernel("sum_up", inputs=("any",), state=1, missing="pointwise", meaning="adds up what it sees")
    def sum_up(x: Floats, params: Floats, state: Floats, out: Floats) -> None:
        state[0] += x[0, -1]
        out[0] = state[0]

    report = check_features(rows({"name": "mine", "kernel": "sum_up", "inputs": ["volume"], "unit": "contracts"}))
    assert found(report)["mine"] == {"missing", "gaps"}
    assert "its policy is to forget" in one(report, "mine", "missing").saw
    assert "still remembers the first session" in one(report, "mine", "gaps").saw


def test_one_missing_value_that_empties_a_feature_for_ever_is_caught() -> None:
    @register_kernel("poisoned", inputs=("any",), state=1, missing="keeps", meaning="an average that NaN poisons")
    def poisoned(x: Floats, params: Floats, state: Floats, out: Floats) -> None:
        state[0] += 0.1 * (x[0, -1] - state[0])
        out[0] = state[0]

    row = {"name": "mine", "kernel": "poisoned", "inputs": ["close"], "unit": "index points"}
    finding = one(check_features(rows(row)), "mine", "missing")
    assert "its policy is to keep its value" in finding.saw
    assert "close missing" in finding.where


def test_a_session_s_sum_that_one_missing_value_empties_for_ever_is_caught() -> None:
    @register_kernel("lost", inputs=("any",), state=1, missing="keeps", meaning="gives up late")
    def lost(x: Floats, params: Floats, state: Floats, out: Floats) -> None:
        if np.isnan(x[0, -1]):
            state[0] = 1.0
        elif state[0] > 0.0:
            state[0] += 1.0
        out[0] = x[0, -1] if 0.0 < state[0] < 2000.0 or state[0] == 0.0 else np.nan
        if np.isnan(x[0, -1]):
            out[0] = 5000.0

    row = {"name": "mine", "kernel": "lost", "inputs": ["close"], "unit": "index points"}
    assert "one missing value still empties it" in one(check_features(rows(row)), "mine", "missing").saw


def long_memory(sessions: int) -> dict[str, Any]:
    """A kernel that keeps what it saw so many sessions ago."""
    day = 1380

    @register_kernel(
        "long_ago", inputs=("any",), parameters={"sessions": Parameter(1, 100, "how far back")}, missing="keeps",
        state=lambda p: 2 + day * int(p["sessions"]), meaning="the value so many sessions of rows ago, else the first",
    )  # fmt: skip
    def long_ago(x: Floats, params: Floats, state: Floats, out: Floats) -> None:
        size = state.shape[0] - 2
        place = 2 + int(state[0]) % size
        out[0] = state[place] if state[0] >= size else 5000.0
        state[place] = x[0, -1] if x[0, -1] == x[0, -1] else 5000.0
        state[0] += 1.0

    return {"name": "mine", "kernel": "long_ago", "inputs": ["volume"], "params": {"sessions": sessions}}


@pytest.mark.parametrize(("keep", "seen"), [(0.0, False), (0.5, False), (0.98, True), (1.0, True)])
def test_an_average_over_days_must_fade(keep: float, seen: bool) -> None:
    """A mean of sessions' sums that keeps a share of the past at each: half must be gone after its span of 3."""
    day = 1380.0

    @register_kernel(
        "of_days", inputs=("any",), parameters={"span": Parameter(1, 100, "sessions")}, missing="keeps", state=3,
        meaning="a mean over days",
    )  # fmt: skip
    def of_days(x: Floats, params: Floats, state: Floats, out: Floats) -> None:
        state[0] += 1.0
        state[1] += x[0, -1] if x[0, -1] == x[0, -1] else 0.0
        if state[0] % day == 0.0:
            state[2] = keep * state[2] + (1.0 - keep) * state[1] if keep < 1.0 else state[2] + state[1]
            state[1] = 0.0
        out[0] = state[2]

    row = {"name": "mine", "kernel": "of_days", "inputs": ["volume"], "params": {"span": 3}}
    findings = list(CHECKS["gaps"](Bench(rows(row), 1, FeatureEngine)))
    assert bool(findings) == seen


@pytest.mark.parametrize(("sessions", "seen"), [(1, ""), (3, ""), (41, "it looks back 41 sessions")])
def test_a_declared_memory_of_sessions_may_be_that_long(sessions: int, seen: str) -> None:
    bench = Bench(rows(long_memory(sessions)), 1, FeatureEngine)
    assert bench.remembers("mine") == sessions
    findings = list(CHECKS["gaps"](bench))
    assert (seen in findings[0].saw) if seen else findings == []


def test_a_window_that_reaches_over_a_hole_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows passed off as minutes."""
    counting_rows = Kernel(
        "minutes_ago", "for a test", ("price",), POINTWISE, lowered("", lag=30).lower,
        lambda _row: Warmup(rows=30), parameters={"minutes": Parameter(1, 60, "length")},
    )  # fmt: skip
    monkeypatch.setitem(KERNELS, "minutes_ago", counting_rows)
    row = {"name": "mine", "kernel": "minutes_ago", "inputs": ["volume"], "params": {"minutes": 30}, "warmup": 30}
    honest = formula("log(volume / ago(volume, 30))", "honest", warmup=30)
    report = check_features(rows(row, honest))
    assert "reach over a hole" in one(report, "mine", "gaps").saw
    assert "gaps" not in found(report).get("honest", set())


def test_a_clock_in_what_counts_bars_is_caught() -> None:
    bench = Bench(rows(formula("close - lag(close, 30)", "by_bars", unit="index points", warmup=30)), 1, FeatureEngine)
    assert bench.reaches("by_bars") == {"bars"}
    assert list(CHECKS["gaps"](bench)) == []
    bench.plan = make_plan(
        rows(formula("close - ago(close, 30)", "by_bars", unit="index points", warmup=30)),
        tuple(bench.inputs), bar_minutes=1, tick_size=0.25,
    )  # fmt: skip
    assert "it counts bars, yet a hole" in next(CHECKS["gaps"](bench)).saw


@pytest.mark.parametrize(
    ("expression", "unit", "ok"),
    [
        ("close - open", "index points", True),
        ("close - open", "fraction", False),
        ("(close - open) / close", "fraction", True),
        ("(close - open) / (1 + abs(close - open))", "fraction", False),  # a constant with a dimension
        ("volume / (high - low + close)", "contracts per index point", True),
        ("volume / (high - low + close)", "contracts", False),
        ("(close - open) * volume", "index points * contracts", True),
        ("(close - open) * (close - open)", "index points^2", True),
        ("volume > 100", "flag", False),
        ("vix - vix_mean_5", "index points", True),  # another market's points stay
        ("close - open", "furlongs", False),
    ],
)
def test_a_unit_that_is_not_the_feature_s_is_caught(expression: str, unit: str, ok: bool) -> None:
    report = check_features(rows(formula(expression, unit=unit)))
    assert found(report) == ({} if ok else {"mine": {"scaling"}})


@pytest.mark.parametrize(
    ("unit", "powers"),
    [
        ("index points", (1, 0)), ("contracts", (0, 1)), ("contracts per index point", (-1, 1)), ("per bar", (0, 0)),
        ("0..1", (0, 0)), ("-1..1", (0, 0)), ("0 trend, 1 range, 2 defensive", (0, 0)), ("USD", (1, 0)),
        ("index points^2", (2, 0)), ("contracts^2", (0, 2)), ("index points per contract", (1, -1)),
        ("1 / index points", (-1, 0)), ("furlongs", None), ("index points^x", None),
        ("USD per squared point", (-1, 0)), ("0, 1, 2", (0, 0)), ("0 or 1", (0, 0)), ("1/s", (0, 0)),
        ("USD per 1 % move", (1, 0)), ("USD per index point", (0, 0)),
    ],
)  # fmt: skip
def test_degrees_of_units(unit: str, powers: Any) -> None:
    assert degrees(unit) == powers


def test_constants_and_twins_are_caught() -> None:
    report = check_features(
        rows(
            formula("0 * close + 3", "three"),
            formula("close - open", "change", unit="index points"),
            formula("close + close - 2 * open", "twice", unit="index points"),
            formula("(open - close) / 4", "back", unit="index points"),
            formula("close - low", "else", unit="index points"),
            formula("weekday", "day"),
            formula("weekday + 1", "day_from_one"),
        )
    )
    assert found(report) == {
        "three": {"constant"},
        "twice": {"duplicate"},
        "back": {"duplicate"},
        "day_from_one": {"duplicate"},
    }
    assert one(report, "twice", "duplicate").saw.startswith("it is 2 times 'change' plus")


def test_the_same_row_twice_is_refused_before_it_is_run() -> None:
    """A kernel that shares its work between rows would leave the second one's memory as it found it."""
    twin = {"kernel": "stochastic", "inputs": ["high", "low", "close"], "params": {"period": 14}, "output": "k"}
    with pytest.raises(ConfigError, match=r"feature_sets.yaml, b: declares the same as 'a'"):
        check_features(rows({"name": "a", "warmup": 17} | twin, {"name": "b", "warmup": 17} | twin))


# --- waivers ------------------------------------------------------------------------------------------------


def test_a_waiver_needs_its_reason_and_its_finding() -> None:
    reason = "a desk's own threshold of 100 contracts, which does not scale"
    report = check_features(rows(formula("volume > 100", unit="flag", waivers={"scaling": reason})))
    assert report.findings == []
    assert report.waived == {("mine", "scaling"): reason}
    idle = check_features(rows(formula("close - open", unit="index points", waivers={"scaling": reason})))
    assert found(idle) == {"mine": {"waiver"}}
    with pytest.raises(ValueError, match="at least 20 characters"):
        rows(formula("volume > 100", waivers={"scaling": "because"}))


@pytest.mark.parametrize("check", [*UNWAIVABLE, "speed"])
def test_look_ahead_and_cuts_cannot_be_waived(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KERNELS, "peek", lowered("peek", lag=-1))
    row = {"name": "mine", "kernel": "peek", "inputs": ["close"], "waivers": {check: "it is so profitable this way"}}
    report = check_features(rows(row))
    assert report.waived == {}
    assert {"prefix", "blocks", "waiver"} <= found(report)["mine"]


# --- the sample ---------------------------------------------------------------------------------------------

WIDE_INPUTS = [
    *SHIPPED_INPUTS,
    *({"name": name, "table": "bars", "unit": unit, "meaning": "for a test"} for name, unit in (
        ("neutral_volume", "contracts"), ("trade_vwap", "index points"), ("ofi", "contracts"),
        ("spread", "index points"), ("aggressive_ratio", "0..1"), ("is_news", "flag"), ("event_minutes", "minutes"),
        ("regime", "0 trend, 1 range, 2 defensive"), ("frequency", "1/s"), ("rhodium", "something new"),
    )),
]  # fmt: skip


@pytest.mark.parametrize("wild", [False, True])
def test_simulated_inputs_lie_where_their_units_say(wild: bool) -> None:
    sample = simulate(rows(formula("close"), inputs=WIDE_INPUTS), 3, wild=wild)
    c = sample.columns
    assert set(c) == {row["name"] for row in WIDE_INPUTS}
    for name, values in c.items():
        assert values.shape == sample.known_at.shape, name
        assert not np.isinf(values).any(), name
        assert np.isnan(values).any() == wild, name
        assert name == "neutral_volume" or len(np.unique(values[~np.isnan(values)])) > 1, name

    def holds(*parts: np.ndarray[Any, Any]) -> None:
        present = ~np.isnan(np.array([np.broadcast_to(p, sample.known_at.shape) for p in parts[1:]])).any(axis=0)
        assert parts[0][present].all()

    holds((c["low"] <= c["open"]) & (c["low"] <= c["close"]), c["low"], c["open"], c["close"])
    holds((c["high"] >= c["open"]) & (c["high"] >= c["close"]), c["high"], c["open"], c["close"])
    holds(c["bid_volume"] + c["ask_volume"] == c["volume"], c["bid_volume"], c["ask_volume"], c["volume"])
    holds(c["bid_trades"] + c["ask_trades"] == c["trade_count"], c["bid_trades"], c["ask_trades"], c["trade_count"])
    holds(c["bid_price_1"] < c["ask_price_1"], c["bid_price_1"], c["ask_price_1"])
    holds(c["ask_price_1"] < c["ask_price_3"], c["ask_price_1"], c["ask_price_3"])
    holds((c["trade_vwap"] >= c["low"]) & (c["trade_vwap"] <= c["high"]), c["trade_vwap"], c["low"], c["high"])
    holds(np.abs(c["tick_imbalance"]) <= 1, c["tick_imbalance"])
    holds((c["aggressive_ratio"] >= 0) & (c["aggressive_ratio"] <= 1), c["aggressive_ratio"])
    holds(np.isin(c["is_news"], (0, 1)), c["is_news"])
    holds(np.isin(c["regime"], (0, 1, 2)), c["regime"])
    holds((c["bid_size_1"] >= 0) & (c["bid_size_1"] % 1 == 0), c["bid_size_1"])
    holds(c["vix_known_at"] <= sample.known_at / 1e9, c["vix_known_at"])
    holds((c["close"] > 0) & (c["close"] % 0.25 == 0), c["close"])
    again = simulate(rows(formula("close"), inputs=WIDE_INPUTS), 3, wild=wild)
    for name in c:
        np.testing.assert_array_equal(again.columns[name], c[name])


def test_features_over_all_kinds_of_inputs_are_checked() -> None:
    report = check_features(
        rows(
            formula("ask_volume - bid_volume", "delta", unit="contracts"),
            formula("ask_volume / (ask_volume + bid_volume)", "share", unit="0..1", range=(0, 1)),
            formula("ask_price_1 - bid_price_1", "quoted", unit="index points", range=(0, None)),
            formula("call_wall - close", "to_wall", unit="index points"),
            formula("net_gamma / close", "gamma", unit="USD per index point"),
            formula("iv_atm * is_news", "news_iv", unit="fraction"),
            formula("rhodium / lag(rhodium, 1) - 1", "rhodium_change", unit="fraction", warmup=1),
            inputs=WIDE_INPUTS,
        )
    )
    # An input whose unit nobody knows cannot be scaled: that is a finding, not an excuse.
    assert found(report) == {"rhodium_change": {"scaling"}}
    assert "'something new' is not known" in one(report, "rhodium_change", "scaling").saw


def test_the_sample_s_sessions_are_whole() -> None:
    sample = simulate(catalogue(), 12)
    np.testing.assert_array_equal(sample.known_at, bars.make(12).known_at)
    assert len(sample) == 12 * SESSION_ROWS


# --- the derived policy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "before", "policy"),
    [
        (POINTWISE, [], POINTWISE),
        (POINTWISE, [POINTWISE, FORGETS], FORGETS),
        (POINTWISE, [FORGETS, HOLDS], HOLDS),
        (FORGETS, [POINTWISE], FORGETS),
        (FORGETS, [SKIPS], SKIPS),
        (HOLDS, [KEEPS], HOLDS),
        (SKIPS, [FORGETS], SKIPS),
        (KEEPS, [POINTWISE], KEEPS),
        (KEEPS, [FORGETS], KEEPS),
        (KEEPS, [HOLDS], HOLDS),
        (POINTWISE, [KEEPS], KEEPS),
        (POINTWISE, [KEEPS, KEEPS], KEEPS),
        (POINTWISE, [KEEPS, POINTWISE], SKIPS),
        (POINTWISE, [KEEPS, FORGETS], SKIPS),
    ],
)
def test_the_policy_of_a_column_follows_from_its_kernel_and_inputs(own: str, before: list[str], policy: str) -> None:
    assert derived_missing(own, before) == policy


def test_every_feature_has_a_policy() -> None:
    plan = bars.plan_for(bars.make(1))
    assert set(plan.policies) == set(plan.outputs)
    assert set(plan.policies.values()) <= set(POLICIES.values())
    assert plan.policies["atr_normalized"] == HOLDS
    assert plan.policies["vwap"] == SKIPS
    assert plan.policies["vol_historical_1d"] == KEEPS
    assert plan.policies["bollinger_upper_20"] == FORGETS
    assert plan.policies["momentum_5"] == POINTWISE


def test_every_kernel_s_policy_has_its_rank() -> None:
    assert {kernel.missing for kernel in KERNELS.values()} <= set(POLICIES.values())


# --- the command ------------------------------------------------------------------------------------------------

WIDE = {"COLUMNS": "220", "NO_COLOR": "1", "TERM": "dumb"}


def _cli(*arguments: str | Path, workspace: Path) -> tuple[int, str]:
    from mia_fast.cli import show
    from mia_fast.cli.commands import app

    show.out.width = int(WIDE["COLUMNS"])  # it may have been made in a narrower process, as a worker of xdist is
    result = CliRunner(env=WIDE | {"MIA_WORKSPACE": str(workspace)}).invoke(app, [str(part) for part in arguments])
    return result.exit_code, result.output


def test_the_command_checks_a_user_s_catalogue_and_bars(workspace: Workspace) -> None:
    from mia_fast.workspace import shipped as package

    text = Workspace(workspace.root).config("feature_sets.yaml").read_text(encoding="utf-8")
    own = workspace.root / "mine.yaml"
    row = (
        '  - {name: my_gap, family: mine, kernel: formula, expression: "(open - lag(close, 1)) / 100",\n'
        "     unit: fraction, range: [0, 1], warmup: 1, definition: open less the close before, source: this desk}"
    )
    own.write_text(bars.with_rows(text, row), encoding="utf-8")
    sample = package() / "data" / "sample"
    code, output = _cli(
        "check-features", sample / "bars.parquet", "--catalogue", own, "--cross", sample / "cross.parquet",
        "--feature", "my_gap", workspace=workspace.root,
    )  # fmt: skip
    assert code == 1, output
    assert "my_gap" in output
    assert "scaling" in output
    assert "1 of 1 can be computed" in output
    assert "outside [0.0, 1.0]" in output
    code, output = _cli("check-features", "--feature", "rsi_14", workspace=workspace.root)
    assert code == 0, output
    assert "Findings" not in output


def test_the_command_teaches_and_refuses(workspace: Workspace) -> None:
    code, output = _cli("check-features", "--help", workspace=workspace.root)
    assert code == 0
    for part in ("look-ahead", "waivers", "kernels_from", "status 1", "Example"):
        assert part in output, part
    with pytest.raises(ConfigError, match="there is no feature 'rsi_15'"):
        check_features(catalogues.read(workspace), only="rsi_15")


def test_one_feature_alone_keeps_its_verdict() -> None:
    report = check_features(catalogue(), only="market_regime")
    assert report.features == 1
    assert report.findings == []


def test_a_column_of_the_base_model_is_enough_for_a_policy() -> None:
    column = Column(name="a", kernel="ema", inputs=("close",), params={"period": 3})
    kernel = kernels.check(column, "here", {})
    assert derived_missing(kernel.missing, [POINTWISE]) == HOLDS
    assert not math.isnan(kernel.warmup(column).rows)
