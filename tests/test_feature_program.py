"""The program that a plan makes: shared operations, lanes in vectors, two halves on two threads."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bars
import naive
import numpy as np
import pytest
import talib
from bars import Bars, Floats, same_bits
from test_feature_engine import frame_of
from test_kernels_unit import compute, walk

from benchmarks.layouts import BARS, talib_layout
from mia_fast.errors import DataError, StateError
from mia_fast.features import engine as engines
from mia_fast.features import plan as plans
from mia_fast.features.catalogue import Catalogue
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.frame import generate_features
from mia_fast.features.plan import Plan, make_plan
from mia_fast.workspace import Workspace
from mia_kernels import opcodes as op


@pytest.fixture(scope="module")
def gappy() -> Bars:
    return bars.make(4, seed=3, gaps=True)


@pytest.fixture(scope="module")
def plan(gappy: Bars) -> Plan:
    return bars.plan_for(gappy)


# --- formulas -----------------------------------------------------------------------------------------


def plan_of(*expressions: str) -> Plan:
    rows = [{"name": f"f{k}", "kernel": "formula", "expression": text} for k, text in enumerate(expressions)]
    small = Catalogue.model_validate(
        {"inputs": [c.model_dump() for c in bars.catalogue().inputs], "auxiliary": rows, "features": []}
    )
    return make_plan(small, BARS, bar_minutes=1, tick_size=0.25, auxiliary=[str(row["name"]) for row in rows])


def operations(plan: Plan, program: np.ndarray | None = None) -> list[tuple[int, list[int]]]:
    """(operation, places) of every operation, in order."""
    found = []
    for line in plan.program if program is None else program:
        if line[op.CODE] == op.ARITHMETIC:
            table = plan.integers[line[op.INTEGERS] :][: line[op.COUNT] * op.OPERATION_FIELDS]
            found += [(int(line[op.SOURCE_A]), row.tolist()) for row in table.reshape(-1, op.OPERATION_FIELDS)]
    return found


def test_equal_parts_are_computed_once() -> None:
    shared = plan_of(
        "(high - low) / close", "(high - low) * volume", "close / (high - low)", "1 + (high - low) / close"
    )
    assert sorted(code for code, _ in operations(shared) if code != op.CHECK) == sorted(
        [op.SUBTRACT, op.DIVIDE, op.MULTIPLY, op.DIVIDE, op.ADD]
    )


def test_numbers_are_folded_and_a_signed_zero_is_kept() -> None:
    assert [code for code, _ in operations(plan_of("close * (60 * 24 - 1)"))] == [op.MULTIPLY]
    zeros = compute(
        [
            {"name": "minus", "kernel": "formula", "expression": "-0 * close"},
            {"name": "plus", "kernel": "formula", "expression": "0 * close"},
        ],
        close=np.ones(3),
    )
    assert [math.copysign(1.0, zeros[name][0]) for name in ("minus", "plus")] == [-1.0, 1.0]


def test_scratch_is_used_again_and_never_by_its_own_group() -> None:
    """A result that shared its column with an operand of its group would be read after it was overwritten."""
    chained = plan_of(*(f"((close - lag(close, {k})) / high + low) * {k}.5 - volume" for k in range(1, 60)))
    scratch = (chained.memory_size - chained.state_size) // op.STRIDE - len(chained.numbers)
    assert scratch < 59 * 5 / 2
    for line in chained.program[chained.program[:, op.CODE] == op.ARITHMETIC]:
        table = chained.integers[line[op.INTEGERS] :][: line[op.COUNT] * op.OPERATION_FIELDS]
        table = table.reshape(-1, op.OPERATION_FIELDS)
        assert len(set(table[:, 0].tolist())) == len(table)
        assert not set(table[:, 0].tolist()) & set(table[:, 1:].ravel().tolist())


def traced(plan: Plan, program: np.ndarray, known: dict[tuple[int, ...], int]) -> dict[int, int]:
    """What a program of formulas puts out, found by following it place by place: output -> number in ``known``.

    There, a value is an operation on values, a place that nothing wrote (-1), or a value some rows back (-2), which
    must have been stored before. Equal values of several programs have one number.
    """
    held: dict[int, int] = {}
    homes = {place for _, (place, *_) in in_order(plan, program) if place < 8 * op.STRIDE * slots_of(plan)}

    def read(place: int) -> int:
        if place in held:
            return held[place]
        home = next((h for h in homes if 0 <= h - place <= 8 * op.HISTORY), None)
        assert home is None or home in held, "looked back before it was stored"
        value = (-1, place) if home is None else (-2, (home - place) // 8, held[home])
        return known.setdefault(value, len(known))

    out: dict[int, int] = {}
    for code, (place, *operands) in in_order(plan, program):
        if code == op.PUT:
            assert place not in out
            out[place] = read(operands[0])
        else:
            assert place not in operands
            held[place] = known.setdefault((code, *map(read, operands)), len(known))
    return out


def slots_of(plan: Plan) -> int:
    return (plan.state_size - plan.columns_at) // op.STRIDE


def in_order(plan: Plan, program: np.ndarray) -> list[tuple[int, list[int]]]:
    """(operation, places) and (PUT, [output, place]), in order, of either kind of program."""
    found: list[tuple[int, list[int]]] = []
    widths = {op.ARITHMETIC: op.OPERATION_FIELDS, op.OPERATIONS: 1 + op.OPERATION_FIELDS, op.PUT: 2}
    for line in program:
        if line[op.CODE] in widths:
            width = widths[int(line[op.CODE])]
            for row in plan.integers[line[op.INTEGERS] :][: line[op.COUNT] * width].reshape(-1, width).tolist():
                if line[op.CODE] == op.OPERATIONS:
                    found.append((row[0], row[1:]))
                else:
                    found.append((int(line[op.SOURCE_A]) if line[op.CODE] == op.ARITHMETIC else op.PUT, row))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_in_either_order_a_program_puts_out_the_same_values(seed: int) -> None:
    """Live and in blocks, whole and in halves: the same operations on the same operands, whatever lies where when."""
    rng = np.random.default_rng(seed)
    names = ["open", "high", "low", "close", "volume"]
    texts = []
    for k in range(60):
        a, b, c = (str(x) for x in rng.choice(names, 3))
        back = f"lag(f{rng.integers(k)}, {rng.integers(1, 9)})" if k and rng.random() < 0.4 else f"{k}.5"
        part = f"({a} - {b}) / ({c} + {rng.integers(1, 4)})"
        texts.append(f"where({part} > {back}, abs({a} * {part}), max({b}, {part} - {back}) / {k + 2})")
        names.append(f"f{k}")
    plan = plan_of(*texts)
    known: dict[tuple[int, ...], int] = {}
    live = traced(plan, plan.program, known)
    assert len(live) == len(texts)
    assert traced(plan, plan.blocks, known) == live
    first, second = (traced(plan, half, known) for half in plan.halves)
    assert first
    assert second
    assert not first.keys() & second.keys()
    assert first | second == live


def test_in_blocks_a_result_is_read_soon_and_its_column_used_again() -> None:
    """A column waits for few others: what is between an operation and its readers stays in the nearest cache."""
    texts = [f"((close - lag(close, {k})) / (high + {k}) + low) * {k}.5 - volume" for k in range(1, 60)]
    plan = plan_of(*texts)

    def scratch(program: np.ndarray) -> int:
        first = 8 * op.STRIDE * slots_of(plan)
        return len({places[0] for code, places in in_order(plan, program) if code != op.PUT and places[0] >= first})

    assert scratch(plan.blocks) <= 12 < scratch(plan.program)  # eight wait to be put out


def test_what_is_only_looked_back_on_is_stored_though_nothing_puts_it_out() -> None:
    """The last operations of a program may belong to a column that is put out some rows later alone."""
    rows = [
        {"name": "x", "kernel": "formula", "expression": "close * 3 + 1"},
        {"name": "f", "kernel": "formula", "expression": "lag(x, 2)"},
    ]
    small = Catalogue.model_validate(
        {"inputs": [c.model_dump() for c in bars.catalogue().inputs], "auxiliary": rows, "features": []}
    )
    plan = make_plan(small, BARS, bar_minutes=1, tick_size=0.25, auxiliary=["f"])
    data = bars.make(1, seed=8).rows(slice(0, 600))
    for threads in (1, 2):
        (got,) = FeatureEngine(plan).batch(data.known_at, data.columns, threads=threads)
        np.testing.assert_array_equal(got, naive.lag(data.columns["close"] * 3 + 1, 2))


def test_columns_begin_with_a_cache_line(plan: Plan) -> None:
    for _ in range(3):
        assert FeatureEngine(plan)._columns().ctypes.data % 64 == 0


def test_a_formula_of_formulas_is_what_its_parts_are() -> None:
    """Named parts, looked back at and averaged, give the bits of columns computed from them one by one."""
    c = walk(900)
    rows = [
        {"name": "a", "kernel": "formula", "expression": "close / lag(close, 3) - 1"},
        {"name": "b", "kernel": "formula", "expression": "a - lag(a, 2)"},
        {"name": "m", "kernel": "ema", "inputs": ["b"], "params": {"period": 9}},
        {"name": "d", "kernel": "formula", "expression": "where(m > 0, b / m, lag(m, 1)) + ago(a, 5)"},
        {"name": "same", "kernel": "column", "inputs": ["d"]},
    ]
    whole = compute(rows, **c)
    cut = compute(rows, cuts=(1, 2, 3, 40, 41, 255, 300, 700), **c)
    close = c["close"]
    a = naive.divide(close, naive.lag(close, 3)) - 1
    np.testing.assert_allclose(whole["a"], a, rtol=1e-15)
    b = whole["a"] - naive.lag(whole["a"], 2)
    np.testing.assert_array_equal(whole["b"], b)
    m = naive.ema(b, 9)
    np.testing.assert_allclose(whole["m"], m, rtol=1e-12, atol=1e-15)
    d = naive.choose(naive.more(whole["m"], 0.0), naive.divide(b, whole["m"]), naive.lag(whole["m"], 1))
    np.testing.assert_array_equal(whole["d"], d + naive.lag(whole["a"], 5))
    for name, values in whole.items():
        same_bits(values, cut[name])
    same_bits(whole["same"], whole["d"])


# --- averages in lanes ----------------------------------------------------------------------------------


def average(name: str, source: str, period: int, kernel: str = "ema") -> dict[str, object]:
    return {"name": name, "kernel": kernel, "inputs": [source], "params": {"period": period}}


def test_lanes_in_vectors_have_the_bits_of_a_lane_alone() -> None:
    """Up to 32 lanes side by side, and eight of eight inputs, with missing and absurd values among them."""
    c = dict(walk(1500))
    for k, name in enumerate(("close", "high", "low", "volume")):
        c[name] = c[name].copy()
        c[name][[400 + k, 401, 1100 + 3 * k]] = [math.nan, math.inf, 1e15]
    rows = [average(f"e{n}", "close", n) for n in range(2, 45)]
    rows += [average(f"w{n}", "close", n, "wilder") for n in (5, 14)]
    rows += [average(f"o{k}", name, 7 + k) for k, name in enumerate(("high", "low", "volume"))]
    for cuts in ((), (1, 5, 260, 263, 401, 402, 1100)):
        together = compute(rows, cuts=cuts, **c)
        for row in rows:
            alone = compute([row], **c)
            same_bits(alone[str(row["name"])], together[str(row["name"])])


def test_a_value_beyond_the_numbers_is_no_value_for_an_average() -> None:
    """A deviation may be beyond the numbers, so missing: the average holds, alone and beside others."""
    rows = [
        {"name": "x", "kernel": "formula", "expression": "where(close > 5, 1e200, close)"},
        {"name": "s", "kernel": "window", "inputs": ["x"], "params": {"period": 2}, "output": "deviation"},
        average("m", "s", 3),
        average("other", "close", 2),
    ]
    close = np.array([1.0, 2.0, 3.0, 4.0, 9.0, 4.0, 4.0])
    want = [math.nan, math.nan, math.nan, 0.5, math.nan, math.nan, 0.25]
    for chosen in (rows, rows[:3]):
        for cuts in ((), (1, 2, 3, 4, 5, 6)):
            np.testing.assert_array_equal(compute(chosen, cuts=cuts, close=close)["m"], want)


# --- slope ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [(), (1, 2, 127, 128, 129, 700, 1213)])
def test_slope_of_every_length_agrees_with_talib_and_lines(cuts: tuple[int, ...]) -> None:
    close = walk()["close"]
    lengths = (2, 3, 4, 5, 7, 8, 14, 31, 32, 33, 64, 100, 127, 128)
    rows = [{"name": f"p{n}", "kernel": "slope", "inputs": ["close"], "params": {"period": n}} for n in lengths]
    got = compute(rows, cuts=cuts, close=close)
    line = compute(rows, cuts=cuts, close=np.arange(600.0) * -2.5 + 4000)
    for n in lengths:
        want = talib.LINEARREG_SLOPE(close, n)
        np.testing.assert_array_equal(np.isnan(got[f"p{n}"]), np.isnan(want))
        np.testing.assert_allclose(got[f"p{n}"], want, rtol=0, atol=2e-10)
        np.testing.assert_allclose(line[f"p{n}"][n - 1 :], -2.5, rtol=1e-13)
        part = close[1000 - n + 1 : 1001] - close[1000]
        fit = np.polynomial.polynomial.polyfit(np.arange(n), part, 1)[1]
        assert got[f"p{n}"][1000] == pytest.approx(fit, rel=0, abs=1e-11)


# --- two threads ----------------------------------------------------------------------------------------


def layout_plan() -> Plan:
    catalogue, names = talib_layout()
    return make_plan(catalogue, BARS, bar_minutes=1.0, tick_size=0.25, auxiliary=names)


@pytest.mark.parametrize("which", ["catalogue", "layout"])
def test_two_threads_give_the_bits_and_the_state_of_one(gappy: Bars, plan: Plan, which: str) -> None:
    plan = plan if which == "catalogue" else layout_plan()
    assert all(len(half) for half in plan.halves)
    one, two = FeatureEngine(plan), FeatureEngine(plan)
    cuts = (0, 1, 3, 700, 1301, 1302, len(gappy))
    for k, (first, last) in enumerate(itertools.pairwise(cuts)):
        block = gappy.rows(slice(first, last))
        columns = {name: block.columns[name] for name in plan.inputs}
        same_bits(
            one.batch(block.known_at, columns),
            two.batch(block.known_at, columns, threads=2 if k != 3 else 1),
            plan.outputs,
        )
        assert one.save() == two.save()
    later = FeatureEngine(plan)
    later.restore(two.save())
    assert later.save() == one.save()


def test_a_row_that_one_half_needs_is_not_computed_by_the_other_from_nothing() -> None:
    """Few averages are one instruction, but not in a half that lacks what they read (mm_score was lost so)."""
    data = bars.make(1, seed=8).rows(slice(0, 600))
    names = ("open", "high", "low", "close", "volume")
    rows = [{"name": f"x{k}", "kernel": "formula", "expression": f"{name} / lag({name}, {k + 1})"}
            for k, name in enumerate(names)]  # fmt: skip
    rows += [average(f"m{k}", f"x{k}", 5 + k) for k in range(5)]
    rows += [{"name": f"y{k}", "kernel": "formula", "expression": f"m{k} - lag(m{k}, 1)"} for k in range(5)]
    rows += [average(f"w{k}", f"y{k}", 3 + k) for k in range(5)]
    small = Catalogue.model_validate(
        {"inputs": [c.model_dump() for c in bars.catalogue().inputs], "auxiliary": rows, "features": []}
    )
    plan = make_plan(small, BARS, bar_minutes=1, tick_size=0.25, auxiliary=[f"w{k}" for k in range(5)])
    assert all(len(half) for half in plan.halves)
    one, two = FeatureEngine(plan), FeatureEngine(plan)
    got = one.batch(data.known_at, data.columns)
    same_bits(got, two.batch(data.known_at, data.columns, threads=2), plan.outputs)
    assert not np.isnan(got[:, 100:]).any()
    assert one.save() == two.save()


def test_two_threads_tell_of_progress_and_go_on_live(gappy: Bars, plan: Plan) -> None:
    one, two = FeatureEngine(plan), FeatureEngine(plan)
    head, last = gappy.rows(slice(0, len(gappy) - 1)), gappy.rows(slice(len(gappy) - 1, len(gappy)))
    told: list[int] = []
    a = one.batch(head.known_at, head.columns)
    b = two.batch(head.known_at, head.columns, threads=2, progress=lambda done, _: told.append(done))
    same_bits(a, b, plan.outputs)
    assert told[-1] == len(head)
    for engine in (one, two):
        for table, names in plan.held.items():
            engine.hold(table, [float(last.columns[name][0]) for name in names])
    values = [float(last.columns[name][0]) for name in plan.bar_inputs]
    same_bits(one.update(int(last.known_at[0]), values), two.update(int(last.known_at[0]), values))


def test_a_frame_on_two_threads(workspace: Workspace, gappy: Bars) -> None:
    frame = frame_of(gappy)
    one = generate_features(frame, workspace=workspace)
    assert generate_features(frame, workspace=workspace, threads=2).equals(one)


def test_only_one_or_two_threads(gappy: Bars, plan: Plan) -> None:
    with pytest.raises(DataError, match="threads = 3"):
        FeatureEngine(plan).batch(gappy.known_at, gappy.columns, threads=3)


# --- a live bar as an array -----------------------------------------------------------------------------


def test_a_bar_may_be_a_list_an_array_or_the_engine_s_own(gappy: Bars, plan: Plan) -> None:
    matrix = np.stack([gappy.columns[name] for name in plan.bar_inputs], axis=1)[:400]
    engines = [FeatureEngine(plan) for _ in range(4)]
    for t, row in zip(gappy.known_at.tolist(), matrix, strict=False):
        engines[3].bar[:] = row
        given = (row.tolist(), row, row.astype(np.float32).astype(float), engines[3].bar)
        first, *others = [e.update(t, values).copy() for e, values in zip(engines, given, strict=True)]
        for other in (others[0], others[2]):
            same_bits(first, other, plan.outputs)
    assert engines[0].save() == engines[1].save() == engines[3].save()


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((1, 5)), np.array(["a"] * 5), np.zeros(5, dtype=complex)])
def test_an_array_that_is_no_bar_is_refused(gappy: Bars, plan: Plan, wrong: Floats) -> None:
    engine = FeatureEngine(plan)
    before = engine.save()
    with pytest.raises(DataError, match="takes an int and"):
        engine.update(int(gappy.known_at[0]), wrong)
    assert engine.save() == before


# --- halves that share, and their thread ----------------------------------------------------------------


def plan_of_rows(*rows: dict[str, Any], ask: Sequence[str]) -> Plan:
    inputs = [c.model_dump() for c in bars.catalogue().inputs]
    small = Catalogue.model_validate({"inputs": inputs, "auxiliary": list(rows), "features": []})
    return make_plan(small, BARS, bar_minutes=1, tick_size=0.25, auxiliary=ask)


def test_a_formula_is_there_before_the_table_that_another_half_asks_for_too(gappy: Bars) -> None:
    """Both halves read the moments of f; only the first one had made f by then."""
    made = plan_of_rows(
        {"name": "f", "kernel": "formula", "expression": "high * 2 - low"},
        {"name": "s", "kernel": "ema", "inputs": ["close"], "params": {"period": 10}},
        {"name": "a", "kernel": "correlation", "inputs": ["f", "close"], "params": {"period": 20}},
        {"name": "b", "kernel": "correlation", "inputs": ["f", "s"], "params": {"period": 20}},
        ask=["a", "b"],
    )
    one, two = FeatureEngine(made), FeatureEngine(made)
    whole = one.batch(gappy.known_at, gappy.columns)
    same_bits(two.batch(gappy.known_at, gappy.columns, threads=2), whole, made.outputs)
    assert two.save() == one.save()


@pytest.mark.parametrize(
    ("kernel", "inputs", "params", "outputs"),
    [
        ("adx", ["high", "low", "tr"], {"period": 14}, ("adx", "plus_di", "minus_di")),
        ("macd", ["close"], {"fast": 12, "slow": 26, "signal": 9}, ("line", "signal", "histogram")),
        ("stochastic", ["high", "low", "close"], {"period": 14}, ("k", "d")),
        ("profile", ["high", "low", "volume"], {}, ("poc", "vah", "val")),
    ],
)
def test_any_of_a_kernel_s_outputs_alone_is_what_it_is_among_all(
    gappy: Bars, kernel: str, inputs: list[str], params: dict[str, int], outputs: tuple[str, ...]
) -> None:
    """What is not asked for has a place of its own: the average directional index is made from both directions."""
    true_range = {"name": "tr", "kernel": "true_range", "inputs": ["high", "low", "close"]}
    rows = [{"name": o, "kernel": kernel, "inputs": inputs, "params": params, "output": o} for o in outputs]
    every = plan_of_rows(true_range, *rows, ask=outputs)
    expected = dict(zip(outputs, FeatureEngine(every).batch(gappy.known_at, gappy.columns), strict=True))
    for size in range(1, len(outputs)):
        for some in itertools.combinations(outputs, size):
            plan = plan_of_rows(true_range, *rows, ask=some)
            for threads in (1, 2):
                got = FeatureEngine(plan).batch(gappy.known_at, gappy.columns, threads=threads)
                same_bits(got, np.array([expected[name] for name in some]), some)


def test_an_input_under_another_name_and_one_some_rows_back(gappy: Bars) -> None:
    """Read by others or by nobody, put out as it is or late."""
    made = plan_of_rows(
        {"name": "price", "kernel": "column", "inputs": ["close"]},
        {"name": "unread", "kernel": "column", "inputs": ["volume"]},
        {"name": "smooth", "kernel": "ema", "inputs": ["price"], "params": {"period": 5}},
        {"name": "before", "kernel": "formula", "expression": "lag(price, 2)"},
        {"name": "opened", "kernel": "formula", "expression": "lag(open, 3)"},
        ask=["price", "unread", "smooth", "before", "opened"],
    )
    plain = plan_of_rows(
        {"name": "smooth", "kernel": "ema", "inputs": ["close"], "params": {"period": 5}}, ask=["smooth"]
    )
    close, opened = gappy.columns["close"], gappy.columns["open"]
    for threads in (1, 2):
        got = FeatureEngine(made).batch(gappy.known_at, gappy.columns, threads=threads)
        same_bits(got[0], close)
        same_bits(got[1], gappy.columns["volume"])
        same_bits(got[2], FeatureEngine(plain).batch(gappy.known_at, gappy.columns)[0])
        same_bits(got[3], naive.lag(close, 2))
        same_bits(got[4], naive.lag(opened, 3))


def test_two_threads_after_a_fork(gappy: Bars, plan: Plan) -> None:
    """A child has the engine, but not the thread that its second half waits in."""
    engine = FeatureEngine(plan)
    whole = engine.batch(gappy.known_at, gappy.columns, threads=2)
    engine.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: this process has threads; that is the point
        child = os.fork()
    if child == 0:  # pragma: no cover - another process
        try:
            got = engine.batch(gappy.known_at, gappy.columns, threads=2)
            os._exit(0 if np.array_equal(got, whole, equal_nan=True) else 1)
        finally:
            os._exit(2)
    for _ in range(600):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child's second half never came")
    assert os.waitstatus_to_exitcode(status) == 0


def test_who_stops_a_call_waits_for_its_other_half() -> None:
    """The other half writes to memory that is freed, or used again, once the call is left."""
    with ThreadPoolExecutor(max_workers=1) as other:
        slow = other.submit(time.sleep, 0.5)
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.1)
        try:
            with pytest.raises(KeyboardInterrupt):
                engines._join(slow)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert slow.done()


_LAYOUT = """
import hashlib
from mia_fast.features.catalogue import read
from mia_fast.features.plan import make_plan
from mia_fast.workspace import Workspace, shipped
catalogue = read(Workspace(shipped()))
digest = hashlib.sha256()
for inputs in ([c.name for c in catalogue.inputs], ["open", "high", "low", "close", "volume"]):
    plan = make_plan(catalogue, inputs, bar_minutes=1.0, tick_size=0.25)
    for array in (plan.program, plan.blocks, *plan.halves, plan.integers, plan.depths, plan.second_columns):
        digest.update(array.tobytes())
    digest.update(plan.digest.encode())
print(digest.hexdigest())
"""


def test_every_process_finds_the_same_layout() -> None:
    """A state that one process saves is restored by another, whose sets have another order."""
    paths = os.pathsep.join(sys.path)
    found = {
        subprocess.run(
            [sys.executable, "-c", _LAYOUT],
            env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3", "4")
    }
    assert len(found) == 1


def test_a_state_of_another_layout_is_refused(gappy: Bars, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same catalogue and inputs, other halves: columns lie elsewhere, and the sizes may well agree."""
    monkeypatch.setattr(plans, "_ONCE", {})
    monkeypatch.setattr(plans, "_OTHERS", 100_000)
    other = bars.plan_for(gappy)
    saved = FeatureEngine(plan).save()
    if other.program.tobytes() == plan.program.tobytes():
        pytest.fail("the costs do not move anything: choose others")
    with pytest.raises(StateError, match="was saved under plan"):
        FeatureEngine(other).restore(saved)
