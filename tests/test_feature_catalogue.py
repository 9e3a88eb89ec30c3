"""Every feature of the catalogue, one by one, against its declaration and an independent referee.

A feature that is added to the catalogue enters all of these; it fails until it has a twin in ``naive.py``.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable

import bars
import naive
import naive_families
import numpy as np
import pytest
import talib
from bars import Bars, Floats, catalogue, same_bits

from mia_fast.features.builder import CALENDAR
from mia_fast.features.catalogue import Feature
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.expression import parse
from mia_fast.features.kernels import BY_KEY, FORGETS, HOLDS, KEEPS, KERNELS, PASSES, POINTWISE, SKIPS
from mia_fast.features.rows import Column
from mia_fast.workspace import shipped

FEATURES = catalogue().names
assert naive_families.FEATURES.keys() <= naive.TWINS.keys()
AUXILIARY = tuple(column.name for column in catalogue().auxiliary)
INPUTS = tuple(column.name for column in catalogue().inputs)
DECLARED: dict[str, Feature] = {feature.name: feature for feature in catalogue().features}
ROWS: dict[str, Column] = {c.name: c for c in (*catalogue().auxiliary, *catalogue().features) if c.name not in INPUTS}

each_feature = pytest.mark.parametrize("name", FEATURES)
each_column = pytest.mark.parametrize("name", [*FEATURES, *AUXILIARY])


# --- the data ---------------------------------------------------------------------------------------

SESSION = bars.SESSION_MINUTES
FAULT = SESSION + 320  # inside the second session


@functools.cache
def long() -> Bars:
    """12 sessions without a gap, over a month's end and the change to daylight saving time."""
    return bars.make(12)


@functools.cache
def short() -> Bars:
    """Two sessions and a part of the third."""
    return bars.make(3, seed=3).rows(slice(0, 2 * SESSION + 240))


FAULTS: dict[str, Callable[[], Bars]] = {
    "missing close": lambda: short().injected(FAULT, close=math.nan),
    "missing high": lambda: short().injected(FAULT, high=math.nan),
    "missing low": lambda: short().injected(FAULT, low=math.nan),
    "missing volume": lambda: short().injected(FAULT, volume=math.nan),
    "infinite high": lambda: short().injected(FAULT, high=math.inf),
    "minus infinite low": lambda: short().injected(FAULT, low=-math.inf),
    "two missing rows": lambda: (
        short().injected(FAULT, close=math.nan, high=math.nan).injected(FAULT + 1, close=math.nan)
    ),
    "missing first row": lambda: short().injected(0, open=math.nan, high=math.nan, low=math.nan, close=math.nan),
    "missing at the open": lambda: short().injected(SESSION, close=math.nan, volume=math.nan),
    "missing before the open": lambda: short().injected(SESSION - 1, high=math.nan, close=math.nan),
    "no volume": lambda: short().injected(FAULT, volume=0.0),
    "no volume at the open": lambda: short().injected(SESSION, volume=0.0),
    "price zero": lambda: short().injected(FAULT, open=0.0, high=0.0, low=0.0, close=0.0),
    "close zero": lambda: short().injected(FAULT, close=0.0),
    "jump after a missing close": lambda: (
        short()
        .injected(FAULT, close=math.nan)
        .altered(high=short().columns["high"] + 60.0 * (np.arange(len(short())) > FAULT))
    ),
    "nothing moves": lambda: short().altered(
        **{n: np.full(len(short()), 5000.0) for n in ("open", "high", "low", "close")}
    ),
    "no volume ever": lambda: short().altered(volume=np.zeros(len(short()))),
    "all volume missing": lambda: short().altered(volume=np.full(len(short()), math.nan)),
    "all closes missing": lambda: short().altered(close=np.full(len(short()), math.nan)),
    "all highs missing": lambda: short().altered(high=np.full(len(short()), math.nan)),
    "all vix missing": lambda: short().altered(
        **{n: np.full(len(short()), math.nan) for n in short().columns if n.startswith("vix")}
    ),
}

CASES: dict[str, Callable[[], Bars]] = {
    "whole sessions": long,
    "gaps": lambda: bars.make(7, gaps=True, seed=2),
    "short": short,
    "begins inside a session": lambda: short().rows(slice(700, None)),
    **FAULTS,
}


@functools.cache
def case(which: str) -> tuple[Bars, dict[str, Floats], naive.Twin]:
    """The bars of a case, the engine's columns over them, and their twin."""
    data = CASES[which]()
    plan = bars.plan_for(data)
    matrix = FeatureEngine(plan).batch(data.known_at, data.columns)
    return data, dict(zip(plan.outputs, matrix, strict=True)), naive.Twin(data.known_at, data.columns)


def ancestors(name: str) -> set[str]:
    """Every computed column that a column rests on, itself included."""
    found: set[str] = set()
    stack = [name]
    while stack:
        name = stack.pop()
        if name not in found and name in ROWS:
            found.add(name)
            stack += sources(name)
    return found


def sources(name: str) -> tuple[str, ...]:
    row = ROWS[name]
    return row.inputs if row.expression is None else parse(row.expression, name).columns


def resting_on(name: str) -> set[str]:
    """The missing-value policies that a column rests on."""
    return {KERNELS[ROWS[part].kernel].missing for part in ancestors(name)}


def looks_back_minutes(name: str) -> bool:
    """Whether a window of time, or a look so many minutes back, is among what a column rests on."""
    rows = [ROWS[part] for part in ancestors(name)]
    return any("minutes" in row.params or "ago(" in (row.expression or "") for row in rows)


def raw_inputs(name: str) -> set[str]:
    """The input columns that a column rests on."""
    return {s for part in ancestors(name) for s in sources(part)} & set(INPUTS)


# --- the declaration --------------------------------------------------------------------------------


def test_every_column_has_a_twin() -> None:
    assert set(ROWS) - set(naive.TWINS) == set(), "write the slow twin in tests/naive.py"


def test_every_feature_states_stage_and_missing_value_policy() -> None:
    text = (shipped() / "config" / "feature_sets.yaml").read_text(encoding="utf-8")
    rows = text[text.index("\nfeatures:") : text.index("\nrefused:")]
    assert len(FEATURES) == 350
    for part in re.split(r"\n  - (?=\{name: )", rows)[1:]:
        for key in ("stage", "missing", "warmup", "unit", "range", "source"):
            assert re.search(rf"\b{key}: ", part), f"{key} of {part}"


def test_every_twin_has_a_column() -> None:
    assert set(naive.TWINS) - set(ROWS) == set()
    assert set(naive.UNDECIDED) - set(FEATURES) == set()


def test_every_kernel_states_a_policy_that_the_suite_knows() -> None:
    assert {kernel.missing for kernel in KERNELS.values()} <= {
        HOLDS, FORGETS, POINTWISE, SKIPS, KEEPS, PASSES, BY_KEY,
    }  # fmt: skip


LONGER = ("iv_rank_30d",)
"""What needs more sessions than ``long`` has; see test_a_memory_longer_than_the_other_cases."""


@each_column
def test_warmup(name: str) -> None:
    """Null for exactly as long as declared, on bars without a gap from a session's open on."""
    warmup = DECLARED[name].warmup if name in DECLARED else bars.plan_for(long()).warmups[name]
    values = case("whole sessions")[1][name]
    first = int(np.argmax(~np.isnan(values)))
    after = warmup.sessions * SESSION
    if name in LONGER:
        assert np.isnan(values).all()
    elif {ROWS[part].kernel for part in ancestors(name)} & {"return_since", "before_change"}:
        # What it waits for arrives inside each session, and the first time only starts the count.
        assert 0 < first <= after
    elif warmup.sessions and warmup.rows:
        # Up to so many bars of the session that follows must come in first, for a window over what takes sessions.
        assert after <= first <= after + warmup.rows
        assert first > after or not looks_back_minutes(name)
    else:
        assert first == max(warmup.rows, after)


HOLES = {
    "time_deviation": 0.2,  # the break of an hour leaves such windows too few returns, or a key none to start from
    "time_slope": 0.01,  # the same, too few bars
    "clock_deviation": 0.01,  # its window opens anew each day
    "correlation": 0.01,  # nothing moves over the break, seen from an hour later
    "time_window": 0.01,  # the logarithm of nothing: five minutes without a return
}
"""Kernels after whose warm-up there may be holes, and at most what share of the rows."""


@each_column
def test_no_hole_after_the_warmup(name: str) -> None:
    values = case("whole sessions")[1][name]
    holes = np.isnan(values[np.argmax(~np.isnan(values)) :]).sum()
    allowed = [HOLES[kernel] for kernel in {ROWS[part].kernel for part in ancestors(name)} & HOLES.keys()]
    if name == "bid_ask_ratio":
        allowed.append(0.001)  # a bar in which nobody bought
    if name not in LONGER:
        assert holes <= max(allowed, default=0.0) * len(values)


def test_a_memory_longer_than_the_other_cases() -> None:
    data = bars.make(33)
    plan = bars.plan_for(data)
    columns = dict(zip(plan.outputs, FeatureEngine(plan).batch(data.known_at, data.columns), strict=True))
    twin = naive.Twin(data.known_at, data.columns)
    for name in LONGER:
        assert int(np.argmax(~np.isnan(columns[name]))) == DECLARED[name].warmup.sessions * SESSION
        assert len(np.unique(columns[name][-SESSION:])) > 100
        agree(columns[name], twin[name], 1e-11, 1.0)


@each_feature
def test_range_holds(name: str) -> None:
    low, high = DECLARED[name].range
    for which in CASES:
        if which == "close zero":
            continue  # its close lies outside its low and high: such a bar breaks any bound on the stochastic
        values = case(which)[1][name]
        values = values[~np.isnan(values)]
        assert not np.isinf(values).any(), which
        assert low is None or (values >= low).all(), f"{which}: {values.min()!r}"
        assert high is None or (values <= high).all(), f"{which}: {values.max()!r}"


@each_feature
def test_varies(name: str) -> None:
    if name in LONGER:
        return
    values = case("whole sessions")[1][name]
    values = values[~np.isnan(values)]
    assert len(values) > 1000
    assert len(np.unique(values)) > 1


def test_no_two_features_are_the_same() -> None:
    columns = case("whole sessions")[1]
    seen: dict[bytes, str] = {}
    for name in FEATURES:
        other = seen.setdefault(columns[name].tobytes(), name)
        assert other == name, f"{name} is {other} again"


# --- referees ---------------------------------------------------------------------------------------


def agree(
    got: Floats, want: Floats, tolerance: float, scale: float, skip: Floats | None = None, where: str = ""
) -> None:
    """The same values are missing, and the others differ by no more than ``tolerance * scale``."""
    wrong = np.isnan(got) != np.isnan(want)
    assert not wrong.any(), f"{where}: missing at other rows, first {np.argmax(wrong)}, {wrong.sum()} in all"
    error = np.where(np.isnan(got), 0.0, np.abs(got - want))
    if skip is not None:
        error[skip] = 0.0
    worst = int(np.argmax(error))
    assert error[worst] <= tolerance * scale, f"{where}: row {worst}: {got[worst]!r}, expected {want[worst]!r}"


def scale_of(name: str, data: Bars, values: Floats) -> float:
    """What a difference is measured against: prices carry the rounding of the price level."""
    if name in DECLARED and DECLARED[name].unit == "index points":
        return float(np.max(data.columns["open"], initial=1.0, where=np.isfinite(data.columns["open"])))
    return float(np.max(np.abs(values), initial=0.0, where=~np.isnan(values))) or 1.0


@each_column
def test_agrees_with_its_twin(name: str) -> None:
    for which in CASES:
        data, columns, twin = case(which)
        skip = naive.UNDECIDED[name](twin) if name in naive.UNDECIDED else None
        agree(columns[name], twin[name], 1e-11, scale_of(name, data, twin[name]), skip, which)


Referee = Callable[[dict[str, Floats]], Floats]

RECURRENCE, WINDOW, STOCHASTIC, CORRELATION = 1e-12, 1e-11, 1e-10, 1e-7


def _hlc(function: Callable[..., Floats], *periods: int) -> Referee:
    return lambda c: function(c["high"], c["low"], c["close"], *periods)


TALIB: dict[str, tuple[float, Referee]] = {
    **{f"rsi_{n}": (RECURRENCE, lambda c, n=n: talib.RSI(c["close"], n)) for n in (7, 14, 21)},
    **{f"adx_{n}": (RECURRENCE, _hlc(talib.ADX, n)) for n in (7, 14, 21)},
    **{f"plus_di_{n}": (RECURRENCE, _hlc(talib.PLUS_DI, n)) for n in (7, 14, 21)},
    **{f"minus_di_{n}": (RECURRENCE, _hlc(talib.MINUS_DI, n)) for n in (7, 14, 21)},
    **{f"atr_{n}": (RECURRENCE, _hlc(talib.ATR, n)) for n in (7, 10, 14, 21)},
    **{f"momentum_{n}": (0.0, lambda c, n=n: talib.MOM(c["close"], n)) for n in (5, 10, 20)},
    **{
        f"stochastic_{'kd'[line]}{end}": (
            STOCHASTIC,
            lambda c, n=n, line=line: _hlc(talib.STOCH, n, 3, 0, 3, 0)(c)[line],
        )
        for n, end in ((14, ""), (7, "_7"), (21, "_21"))
        for line in (0, 1)
    },
    "macd_line": (RECURRENCE, lambda c: talib.MACD(c["close"], 12, 26, 9)[0]),
    "macd_signal": (RECURRENCE, lambda c: talib.MACD(c["close"], 12, 26, 9)[1]),
    "macd_histogram": (RECURRENCE, lambda c: talib.MACD(c["close"], 12, 26, 9)[2]),
    "bollinger_upper_20": (WINDOW, lambda c: talib.BBANDS(c["close"], 20, 2, 2)[0]),
    "bollinger_lower_20": (WINDOW, lambda c: talib.BBANDS(c["close"], 20, 2, 2)[2]),
    "atr_normalized": (RECURRENCE, lambda c: _hlc(talib.NATR, 14)(c) / 100),
    "true_range": (0.0, _hlc(talib.TRANGE)),
    "ema_20": (RECURRENCE, lambda c: talib.EMA(c["close"], 20)),
    "sma_20": (WINDOW, lambda c: talib.SMA(c["close"], 20)),
    "deviation_20": (WINDOW, lambda c: talib.STDDEV(c["close"], 20, 1)),
    **{f"highest_{n}": (0.0, lambda c, n=n: talib.MAX(c["high"], n)) for n in (5, 9, 20)},
    **{f"lowest_{n}": (0.0, lambda c, n=n: talib.MIN(c["low"], n)) for n in (5, 9, 20)},
}
"""What TA-Lib has too, and how closely it must agree: of the price level, or of 100 for percentages."""

PERCENT = ("rsi", "adx", "plus", "minus", "stochastic")


def check_against_talib(name: str, data: Bars, got: Floats) -> None:
    tolerance, referee = TALIB[name]
    scale = (
        100.0 if name.startswith(PERCENT) else 1.0 if name == "atr_normalized" else float(np.max(data.columns["high"]))
    )
    agree(got, referee(data.columns), tolerance, scale)


@pytest.mark.parametrize("name", TALIB)
def test_agrees_with_talib(name: str) -> None:
    for which in ("whole sessions", "gaps", "nothing moves"):
        data, columns, _ = case(which)
        check_against_talib(name, data, columns[name])


def _wilder_atr(column: Column, x: dict[str, Floats]) -> Floats | None:
    if column.inputs != ("true_range",):
        return None  # TA-Lib has Wilder's average only as part of ATR
    return talib.ATR(x["high"], x["low"], x["close"], int(column.params["period"]))


def _moment(column: Column, x: dict[str, Floats]) -> Floats:
    values, n = x[column.inputs[0]], int(column.params["period"])
    if column.output in ("mean", "sum"):
        return (talib.SMA if column.output == "mean" else talib.SUM)(values, n)
    return talib.STDDEV(values, n, 1) * (1.0 if column.output == "deviation" else math.sqrt(n / (n - 1)))


def _directional(column: Column, x: dict[str, Floats]) -> Floats:
    function = {"adx": talib.ADX, "plus_di": talib.PLUS_DI, "minus_di": talib.MINUS_DI}[str(column.output)]
    return function(x["high"], x["low"], x["close"], int(column.params["period"]))


def _of_one(function: Callable[..., Floats]) -> Callable[[Column, dict[str, Floats]], Floats]:
    return lambda column, x: function(x[column.inputs[0]], int(column.params["period"]))


def _correlation(column: Column, x: dict[str, Floats]) -> Floats:
    """CORREL, which gives 0 where either series is constant: there is no correlation there."""
    a, b, n = *(x[name] for name in column.inputs), int(column.params["period"])
    constant = (talib.MAX(a, n) == talib.MIN(a, n)) | (talib.MAX(b, n) == talib.MIN(b, n))
    return np.where(constant, math.nan, talib.CORREL(a, b, n))


BY_KERNEL: dict[str, tuple[float, Callable[[Column, dict[str, Floats]], Floats | None]]] = {
    "ema": (RECURRENCE, _of_one(talib.EMA)),
    "rsi": (RECURRENCE, _of_one(talib.RSI)),
    "wilder": (RECURRENCE, _wilder_atr),
    "adx": (RECURRENCE, _directional),
    "macd": (
        RECURRENCE,
        lambda c, x: talib.MACD(x[c.inputs[0]], *(int(c.params[k]) for k in ("fast", "slow", "signal")))[
            ("line", "signal", "histogram").index(str(c.output))
        ],
    ),
    "window": (WINDOW, _moment),
    "correlation": (CORRELATION, _correlation),
    "slope": (WINDOW, _of_one(talib.LINEARREG_SLOPE)),
    "highest": (0.0, _of_one(talib.MAX)),
    "lowest": (0.0, _of_one(talib.MIN)),
    "stochastic": (
        STOCHASTIC,
        lambda c, x: talib.STOCH(*(x[name] for name in c.inputs), int(c.params["period"]), 3, 0, 3, 0)[
            "kd".index(str(c.output))
        ],
    ),
    "true_range": (0.0, lambda c, x: talib.TRANGE(*(x[name] for name in c.inputs))),
}
"""By kernel, TA-Lib's function for a row over it: a row that is added to the catalogue is compared at once."""

OVER_TALIB = [name for name, column in ROWS.items() if column.kernel in BY_KERNEL]


def check_rows_against_talib(data: Bars, columns: dict[str, Floats]) -> set[str]:
    """Compare every row over a kernel that TA-Lib has, on what the engine gave it; returns their names."""
    x = {**data.columns, **columns}
    compared = set()
    for name in OVER_TALIB:
        column = ROWS[name]
        tolerance, referee = BY_KERNEL[column.kernel]
        if any(source not in x for source in column.inputs):
            continue  # these bars do not bring it
        inputs = [x[source] for source in column.inputs]
        holes = any(np.isnan(values[np.argmax(~np.isnan(values)) :]).any() for values in inputs)
        want = None if holes else referee(column, x)
        if want is None:
            continue
        scale = max(float(np.nanmax(np.abs(values))) for values in inputs)
        scale = {"rsi": 100.0, "adx": 100.0, "stochastic": 100.0, "correlation": 1.0}.get(column.kernel, scale)
        agree(
            columns[name],
            want,
            tolerance,
            scale * (column.params["period"] if column.output == "sum" else 1),
            None,
            name,
        )
        compared.add(name)
    return compared


def test_every_row_over_a_kernel_that_talib_has_agrees_with_it() -> None:
    for which in ("whole sessions", "gaps", "nothing moves"):
        data, columns, _ = case(which)
        compared = check_rows_against_talib(data, columns)
        if which == "whole sessions":
            unlike = {n for n in OVER_TALIB if ROWS[n].kernel == "wilder" and ROWS[n].inputs != ("true_range",)}
            assert compared == set(OVER_TALIB) - unlike


@pytest.mark.real
def test_every_row_over_a_kernel_that_talib_has_agrees_with_it_on_real_bars(real_data) -> None:
    data = bars.real(real_data, 20_000)
    plan = bars.plan_for(data)
    columns = dict(zip(plan.outputs, FeatureEngine(plan).batch(data.known_at, data.columns), strict=True))
    assert len(check_rows_against_talib(data, columns)) > 30


# --- what comes later changes nothing -----------------------------------------------------------------


def test_no_look_ahead() -> None:
    """Other bars after a row, or none, leave every value up to that row as it was."""
    data, columns, _ = case("gaps")
    whole = np.array(list(columns.values()))
    other = bars.make(7, seed=99)
    rng = np.random.default_rng(5)
    for end in (1, 2, 255, 256, 257, SESSION - 5, *rng.integers(300, len(data), 6).tolist()):
        engine = FeatureEngine(bars.plan_for(data))
        tail = other.rows(other.known_at > data.known_at[end - 1])
        known_at = np.concatenate([data.known_at[:end], tail.known_at])
        values = {name: np.concatenate([data.columns[name][:end], tail.columns[name] * 1.5]) for name in data.columns}
        same_bits(engine.batch(known_at, values)[:, :end], whole[:, :end], engine.plan.outputs)
        engine.reset()
        before = data.rows(slice(0, end))
        same_bits(engine.batch(before.known_at, before.columns), whole[:, :end], engine.plan.outputs)


# --- missing values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("which", FAULTS)
def test_never_infinite(which: str) -> None:
    for name, values in case(which)[1].items():
        assert not np.isinf(values).any(), name


@each_column
def test_a_missing_value_is_forgotten_with_its_window(name: str) -> None:
    """What rests on windows alone returns to the very bits once the bad bar has left its window."""
    if resting_on(name) & {HOLDS, SKIPS, KEEPS, PASSES, BY_KEY} or "return_since" in {
        ROWS[p].kernel for p in ancestors(name)
    }:
        return  # these remember, by their stated policy; the twin and the next test check what
    warmup = bars.plan_for(short()).warmups[name].rows
    clean = case("short")[1][name]
    for which in ("missing close", "missing high", "missing low", "missing volume", "infinite high", "close zero"):
        after = slice(FAULT + warmup + 1, None)
        same_bits(case(which)[1][name][after], clean[after])


HELD = [name for name, row in ROWS.items() if KERNELS[row.kernel].missing == HOLDS]


@pytest.mark.parametrize("name", HELD)
def test_a_held_state_goes_on_at_once(name: str) -> None:
    """A recursive column is null at the bad bar - and at the next if it needs the change - and nowhere else."""
    for field in ("close", "high", "low"):
        if field not in raw_inputs(name):
            continue
        needs_change = ROWS[name].inputs != ("close",) or ROWS[name].kernel == "rsi"
        if not needs_change:
            rows = [FAULT]
        elif field == "close" and "true_range" in ancestors(name):
            rows = [FAULT + 1]  # the true range reads the close before
        elif ROWS[name].kernel == "wilder":
            rows = [FAULT]
        else:
            rows = [FAULT, FAULT + 1]
        values = case(f"missing {field}")[1][name]
        missing = np.flatnonzero(np.isnan(values))
        assert missing[missing > 100].tolist() == rows, field


@pytest.mark.parametrize(("period", "kernel"), [(n, k) for n in (2, 9, 20) for k in ("ema", "wilder")])
def test_a_held_average_is_that_of_the_bars_without_the_bad_one(period: int, kernel: str) -> None:
    from mia_fast.features.plan import make_plan

    column = Feature(
        name="average", kernel=kernel, inputs=("close",), params={"period": period}, family="test", unit="points",
        range=(None, None), warmup=period - 1, missing="holds", definition="an average", source="test",
    )  # fmt: skip
    plan = make_plan(
        catalogue().model_copy(update={"features": (column,), "auxiliary": ()}),
        ("close",),
        bar_minutes=1,
        tick_size=0.25,
    )
    data = CASES["missing close"]()
    got = FeatureEngine(plan).batch(data.known_at, data.columns)
    kept = np.ones(len(data), dtype=bool)
    kept[FAULT] = False
    without = data.rows(kept)
    same_bits(got[:, kept], FeatureEngine(plan).batch(without.known_at, without.columns))
    assert np.isnan(got[0, FAULT])


def test_session_sums_leave_the_bad_bar_out() -> None:
    """vwap and the profile go on as if the bar had not traded; the next session is untouched."""
    clean, bad = case("short")[1], case("missing volume")[1]
    none = case("no volume")[1]
    for name in ("vwap", "poc", "vah", "val", "volume_at_poc"):
        assert np.isnan(bad[name][FAULT])
        same_bits(bad[name][FAULT + 1 :], none[name][FAULT + 1 :])
        same_bits(bad[name][2 * SESSION :], clean[name][2 * SESSION :])
    assert (bad["vwap"][FAULT + 1 : 2 * SESSION] != clean["vwap"][FAULT + 1 : 2 * SESSION]).all()


def test_past_sessions_keep_their_volatility_at_a_bad_bar() -> None:
    assert KERNELS["session_variance"].missing == KEEPS
    clean, bad = (case(which)[1]["vol_historical_1d"] for which in ("short", "missing close"))
    same_bits(bad[: 2 * SESSION], clean[: 2 * SESSION])
    assert 0 < bad[2 * SESSION] < clean[2 * SESSION]


@pytest.mark.parametrize("column", ["open", "high", "low", "close", "volume"])
def test_only_what_reads_a_column_suffers_when_it_is_empty(column: str) -> None:
    data = short().altered(**{column: np.full(len(short()), math.nan)})
    clean = case("short")[1]
    plan = bars.plan_for(data)
    for name, values in zip(plan.outputs, FeatureEngine(plan).batch(data.known_at, data.columns), strict=True):
        if column in raw_inputs(name) or name == column:
            assert np.isnan(values).all(), name
        else:
            same_bits(values, clean[name])


# --- real bars --------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_bars_agree_with_twins_and_talib(real_data) -> None:
    data = bars.real(real_data, 9000)
    plan = bars.plan_for(data)
    columns = dict(zip(plan.outputs, FeatureEngine(plan).batch(data.known_at, data.columns), strict=True))
    for name in TALIB:
        check_against_talib(name, data, columns[name])
    twin = naive.Twin(data.known_at, data.columns)
    assert len(columns) - len(plan.missing) > 140  # what open, high, low, close, volume, VIX and the calendar give
    for name, got in columns.items():
        if name in plan.missing:
            assert np.isnan(got).all(), name
            continue
        skip = naive.UNDECIDED[name](twin) if name in naive.UNDECIDED else None
        agree(got, twin[name], 1e-11, scale_of(name, data, twin[name]), skip, name)
        if name in DECLARED:
            low, high = DECLARED[name].range
            assert low is None or np.nanmin(got) >= low, name
            assert high is None or np.nanmax(got) <= high, name


def test_calendar_columns_can_be_put_out() -> None:
    from mia_fast.features.plan import make_plan

    data = long()
    plan = make_plan(
        catalogue(), tuple(data.columns), bar_minutes=1, tick_size=0.25, auxiliary=(*CALENDAR, "vix_mean_5")
    )
    got = FeatureEngine(plan).batch(data.known_at, data.columns)[len(FEATURES) :]
    want = naive.calendar(data.known_at)
    same_bits(got, np.array([*(want[name] for name in CALENDAR), data.columns["vix_mean_5"]]), plan.auxiliary)
