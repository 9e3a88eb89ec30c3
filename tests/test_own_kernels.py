"""Features without a fork: rows over existing kernels, and registered functions called from the compiled program."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bars
import numpy as np
import polars as pl
import pytest
from bars import Bars, Floats, catalogue, cut, feed, same_bits

from mia_fast import generate_features, register_kernel
from mia_fast.errors import ConfigError, StateError
from mia_fast.features import catalogue as catalogues
from mia_fast.features import kernels
from mia_fast.features.catalogue import Catalogue
from mia_fast.features.checks import check_features
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.kernels import Parameter
from mia_fast.features.plan import Plan, make_plan
from mia_fast.loading import definitions
from mia_fast.workspace import Workspace
from mia_kernels import external
from mia_kernels import opcodes as op

ROOT = Path(__file__).resolve().parents[1]
CONTRACT = {
    "family": "mine", "unit": "-", "range": (None, None), "warmup": 0, "definition": "for a test", "source": "test",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    before = dict(kernels.REGISTERED)
    yield
    kernels.REGISTERED.clear()
    kernels.REGISTERED.update(before)


@pytest.fixture(scope="module")
def gappy() -> Bars:
    return bars.make(3, gaps=True, seed=5)


def rows(*features: dict[str, Any], **more: Any) -> Catalogue:
    inputs = [column.model_dump() for column in catalogue().inputs]
    return Catalogue.model_validate(
        {"inputs": inputs, "auxiliary": [], "features": [CONTRACT | feature for feature in features]} | more
    )


def plan_of(found: Catalogue, data: Bars) -> Plan:
    return make_plan(found, tuple(data.columns), bar_minutes=1, tick_size=0.25)


def run(found: Catalogue, data: Bars) -> dict[str, Floats]:
    plan = plan_of(found, data)
    return dict(zip(plan.outputs, FeatureEngine(plan).batch(data.known_at, data.columns), strict=True))


def row(kernel: str, *inputs: str, **more: Any) -> dict[str, Any]:
    return {"name": "mine", "kernel": kernel, "inputs": list(inputs) or ["close"]} | more


def register_average(name: str = "own_average") -> None:
    """TA-Lib's EMA, written as a desk would."""

    @register_kernel(
        name, inputs=("any",), parameters={"period": Parameter(2, 500, "length in bars")}, state=2, missing="holds",
        warmup=lambda params: int(params["period"]) - 1, meaning="exponential average",
    )  # fmt: skip
    def average(x: Floats, params: Floats, state: Floats, out: Floats) -> None:
        n = params[0]
        state[0] += 1.0
        if state[0] <= n:
            state[1] += x[0, -1] / n
        else:
            state[1] += 2.0 / (n + 1.0) * (x[0, -1] - state[1])
        if state[0] >= n:
            out[0] = state[1]


# --- a row over a kernel that exists ------------------------------------------------------------------------


def own_yaml(workspace: Workspace, *lines: str, top: str = "") -> Path:
    """The shipped catalogue with more rows, as the workspace's own."""
    text = Workspace(workspace.root / "nowhere").config("feature_sets.yaml").read_text(encoding="utf-8")
    path = workspace.root / "config" / "feature_sets.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(top + bars.with_rows(text, *lines), encoding="utf-8")
    return path


EXAMPLE = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "own-features.md").read_text(encoding="utf-8"), re.DOTALL)
YAML = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "own-features.md").read_text(encoding="utf-8"), re.DOTALL)


def example_rows(text: str) -> list[str]:
    return text.split("features:\n")[1].splitlines()


def frame(data: Bars) -> pl.DataFrame:
    stamps = pl.Series("timestamp", data.known_at - bars.MINUTE).cast(pl.Datetime("ns", "UTC"))
    names = ("open", "high", "low", "close", "volume")
    return pl.DataFrame({"timestamp": stamps, **{name: data.columns[name] for name in names}})


def test_a_row_in_the_workspace_s_yaml_is_a_feature(workspace: Workspace) -> None:
    """The first example of docs/own-features.md, as it stands there."""
    auxiliary = next(line for line in YAML[0].splitlines() if "mid_range, kernel" in line)
    path = own_yaml(workspace, *example_rows(YAML[0]))
    path.write_text(path.read_text(encoding="utf-8").replace("auxiliary:\n", f"auxiliary:\n{auxiliary}\n"), "utf-8")
    data = bars.make(1)
    result = generate_features(frame(data), workspace=workspace)
    assert result.width == 1 + len(catalogue().names) + 2
    import talib

    middle = (data.columns["high"] + data.columns["low"]) / 2
    np.testing.assert_allclose(result["mid_range_ema_50"].to_numpy(), talib.EMA(middle, 50), rtol=1e-12)
    assert result["mid_range_ema_50"].null_count() == 49
    close = data.columns["close"]
    np.testing.assert_array_equal(
        result["overnight_gap"].to_numpy()[1:], (data.columns["open"][1:] - close[:-1]) / close[:-1]
    )
    assert check_features(catalogues.read(workspace), only="mid_range_ema_50").findings == []


# --- a registered function ------------------------------------------------------------------------------------


def test_a_function_gives_what_it_says(gappy: Bars) -> None:
    register_average()
    got = run(rows(row("own_average", params={"period": 20}, warmup=19)), gappy)["mine"]
    built_in = run(rows(row("ema", params={"period": 20}, warmup=19)), gappy)["mine"]
    np.testing.assert_allclose(got, built_in, rtol=1e-13)
    assert np.isnan(got[:19]).all()


def test_look_back_shows_the_rows_before_and_no_other(gappy: Bars) -> None:
    @register_kernel("seen", inputs=("a", "b"), look_back=3, warmup=3, missing="forgets", meaning="for a test")
    def seen(x: Floats, params: Floats, state: Floats, out: Floats) -> None:
        out[0] = x[0, 0] + 10.0 * x[0, 1] + 100.0 * x[0, 2] + 1000.0 * x[0, 3] + x[1, -1] * x.shape[0] * x.shape[1]

    got = run(rows(row("seen", "close", "open", warmup=3)), gappy)["mine"]
    c, o = gappy.columns["close"], gappy.columns["open"]
    np.testing.assert_array_equal(got[3:], c[:-3] + 10.0 * c[1:-2] + 100.0 * c[2:-1] + 1000.0 * c[3:] + o[3:] * 2 * 4)


def test_outputs_parameters_and_sizes_by_parameter(gappy: Bars) -> None:
    @register_kernel(
        "ends", inputs=("any",), parameters={"period": Parameter(2, 128, "bars"), "scale": Parameter(1, 9, "factor")},
        look_back=lambda p: int(p["period"]) - 1, warmup=lambda p: int(p["period"]) - 1, missing="forgets",
        outputs=("top", "bottom"), meaning="highest and lowest of a window, times a factor",
    )  # fmt: skip
    def ends(x: Floats, params: Floats, state: Floats, out: Floats) -> None:
        out[0] = x.max() * params[1]
        out[1] = x.min() * params[1]

    def one(name: str, period: int, output: str, scale: int = 1) -> dict[str, Any]:
        return row("ends", name=name, params={"period": period, "scale": scale}, output=output, warmup=period - 1)

    got = run(rows(one("a", 9, "top"), one("b", 9, "bottom"), one("c", 128, "top", 3), one("d", 2, "bottom")), gappy)
    import talib

    close = gappy.columns["close"]
    same_bits(got["a"], talib.MAX(close, 9))
    same_bits(got["b"], talib.MIN(close, 9))
    same_bits(got["c"], 3.0 * talib.MAX(close, 128))
    same_bits(got["d"], talib.MIN(close, 2))


def test_others_may_read_it_and_it_may_read_others(gappy: Bars) -> None:
    register_average()
    found = rows(
        row("own_average", "change", params={"period": 5}, warmup=5),
        {"name": "over", "kernel": "formula", "expression": "2 * mine - lag(mine, 1)", "warmup": 6},
        auxiliary=[{"name": "change", "kernel": "formula", "expression": "close - lag(close, 1)"}],
    )
    got = run(found, gappy)
    same_bits(got["over"][6:], 2 * got["mine"][6:] - got["mine"][5:-1])
    assert plan_of(found, gappy).policies["over"] == kernels.HOLDS


def test_live_is_batch_at_every_cut_and_from_a_saved_state(gappy: Bars) -> None:
    register_average()
    plan = plan_of(rows(row("own_average", params={"period": 20}, warmup=19)), gappy)
    whole = feed(FeatureEngine(plan), gappy)
    same_bits(feed(FeatureEngine(plan), gappy, live=True), whole)
    for size in (1, 2, 3, 7, 255, 256, 257):
        engine = FeatureEngine(plan)
        part = gappy.rows(slice(0, 1500))
        same_bits(np.hstack([feed(engine, b) for b in cut(part, range(size, 1500, size))]), whole[:, :1500])
    engine = FeatureEngine(plan)
    parts = []
    for block in cut(gappy, (1, 17, 700, 701, 2000)):
        parts.append(feed(engine, block))
        saved, engine = engine.save(), FeatureEngine(plan)
        engine.restore(saved)
    same_bits(np.hstack(parts), whole)


def test_it_passes_the_suite() -> None:
    register_average()
    found = rows(row("own_average", params={"period": 20}, warmup=19, unit="index points", range=(0, None)))
    assert check_features(found).findings == []


def test_several_threads_call_it_at_once(gappy: Bars) -> None:
    """Each engine has its own scratch memory; the function runs without the GIL, failing rows included."""

    @register_kernel("shy", inputs=("any",), state=1, missing="holds", meaning="raises at every 10th row")
    def shy(x: Floats, params: Floats, state: Floats, out: Floats) -> None:
        state[0] += 1.0
        if state[0] % 10.0 == 0.0:
            out[1] = 0.0  # there is one output
        out[0] = state[0] + x[0, -1]

    plan = plan_of(rows(row("shy")), gappy)
    want = feed(FeatureEngine(plan), gappy)
    engines = [FeatureEngine(plan) for _ in range(4)]
    got: list[Floats] = [np.empty(0)] * 4

    def work(k: int) -> None:
        for _ in range(20):
            engines[k].reset()
            got[k] = feed(engines[k], gappy)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(4):
        same_bits(got[k], want)
        assert engines[k].failures == {"mine": len(gappy) // 10}


# --- missing values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "empty"),
    [("pointwise", [500]), ("holds", [500]), ("skips", [500]), ("forgets", [500, 501, 502]), ("keeps", [])],
)
def test_the_engine_keeps_the_stated_policy(missing: str, empty: list[int]) -> None:
    @register_kernel("calls", inputs=("any",), look_back=2, state=1, missing=missing, meaning="counts its calls")
    def calls(x: Floats, params: Floats, state: Floats, out: Floats) -> None:
        state[0] += 1.0
        out[0] = state[0]

    data = bars.make(1).rows(slice(0, 600)).injected(500, close=math.inf)
    got = run(rows(row("calls", warmup=0)), data)["mine"]
    first = 2 if missing == "forgets" else 0
    assert np.flatnonzero(np.isnan(got)).tolist() == [*range(first), *empty]
    assert got[-1] == 600 - first - len(empty)


def test_infinite_and_unset_results_are_missing() -> None:
    @register_kernel("odd", inputs=("any",), state=1, missing="pointwise", meaning="for a test")
    def odd(x: Floats, params: Floats, state: Floats, out: Floats) -> None:
        state[0] += 1.0
        if state[0] == 3.0:
            out[0] = 1.0 / (x[0, -1] - x[0, -1])
        elif state[0] != 5.0:
            out[0] = state[0]

    got = run(rows(row("odd")), bars.make(1).rows(slice(0, 6)))["mine"]
    assert got[[0, 1, 3, 5]].tolist() == [1.0, 2.0, 4.0, 6.0]
    assert np.isnan(got[[2, 4]]).all()


# --- functions that misbehave ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["x[0, 2]", "x[1, 0]", "x[0, -3]", "params[0]", "state[1]", "out[1]"])
def test_an_index_out_of_bounds_is_a_missing_value_and_is_told(where: str, gappy: Bars) -> None:
    """The next row's value would lie at x[0, 2]: it cannot be read."""
    space: dict[str, Any] = {}
    exec(f"def bad(x, params, state, out):\n    out[0] = x[0, -1]\n    out[0] = {where} + 1.0\n", space)
    register_kernel("bad", inputs=("any",), look_back=1, state=1, missing="pointwise", meaning="for a test")(
        space["bad"]
    )
    plan = plan_of(rows(row("bad")), gappy)
    engine = FeatureEngine(plan)
    assert np.isnan(feed(engine, gappy)).all()
    assert engine.failures == {"mine": len(gappy)}


def test_the_suite_tells_of_a_function_that_raises() -> None:
    @register_kernel("bad", inputs=("any",), missing="pointwise", meaning="for a test")
    def bad(x: Floats, params: Floats, state: Floats, out: Floats) -> None:
        out[0] = x[0, -1] if x[0, -1] > 4900.0 else x[0, 5]

    report = check_features(rows(row("bad", unit="index points")))
    assert any("the function behind 'mine' raised in" in finding.saw for finding in report.findings)


def test_writing_to_what_it_was_given_harms_nobody(gappy: Bars) -> None:
    @register_kernel("rude", inputs=("any",), look_back=5, missing="pointwise", meaning="for a test",
                     parameters={"k": Parameter(1, 9, "-")})  # fmt: skip
    def rude(x: Floats, params: Floats, state: Floats, out: Floats) -> None:
        out[0] = x[0, -1] * params[0]
        x[:] = -1.0
        params[:] = -1.0

    got = run(
        rows(row("rude", params={"k": 2}), {"name": "other", "kernel": "formula", "expression": "close + lag(close, 3)",
                                            "warmup": 3}),
        gappy,
    )  # fmt: skip
    close = gappy.columns["close"]
    same_bits(got["mine"], 2.0 * close)
    same_bits(got["other"][3:], close[3:] + close[:-3])


LAST = np.zeros(1)


def test_a_global_cannot_be_kept() -> None:
    with pytest.raises(ConfigError, match="Numba cannot compile it") as caught:

        @register_kernel("global", inputs=("any",), missing="pointwise", meaning="for a test")
        def keeps_a_global(x: Floats, params: Floats, state: Floats, out: Floats) -> None:
            out[0] = LAST[0]
            LAST[0] = x[0, -1]

    assert "the kernel was not registered" in str(caught.value)
    assert "global" not in kernels.REGISTERED


def test_a_hidden_state_is_caught_by_the_suite() -> None:
    @register_kernel("dice", inputs=("any",), missing="pointwise", meaning="a generator of its own")
    def dice(x: Floats, params: Floats, state: Floats, out: Floats) -> None:
        out[0] = np.random.random() + x[0, -1]

    report = check_features(rows(row("dice")))
    assert {"prefix", "blocks"} <= {finding.check for finding in report.findings}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"name": "ema"}, "that of a built-in kernel"),
        ({"name": "My Kernel"}, "is not a name"),
        ({"missing": "ignores"}, "missing = 'ignores'"),
        ({"inputs": ()}, "0 inputs"),
        ({"inputs": ("a",) * 17}, "17 inputs"),
        ({"outputs": tuple("abcdefghi")}, "9 outputs"),
        ({"parameters": {f"p{k}": Parameter(1, 2, "x") for k in range(17)}}, "17 parameters"),
    ],
)
def test_a_declaration_that_cannot_be(changes: dict[str, Any], what: str) -> None:
    given = {"name": "mine", "inputs": ("any",), "missing": "pointwise", "meaning": "for a test"} | changes
    with pytest.raises(ConfigError, match=re.escape(what)) as caught:
        register_kernel(given.pop("name"), **given)
    assert caught.value.hint


@pytest.mark.parametrize(("size", "value"), [("look_back", 128), ("look_back", -1), ("state", -1), ("warmup", -1)])
def test_a_size_that_cannot_be(size: str, value: int, gappy: Bars) -> None:
    @register_kernel("sized", inputs=("any",), missing="pointwise", meaning="for a test", **{size: value})
    def sized(x: Floats, params: Floats, state: Floats, out: Floats) -> None:
        out[0] = x[0, -1]

    with pytest.raises(ConfigError, match=f"{size} = {value} for 'mine'"):
        plan_of(rows(row("sized")), gappy)


def test_a_function_that_numba_does_not_know() -> None:
    with pytest.raises(ConfigError, match="Numba cannot compile it") as caught:

        @register_kernel("wrong", inputs=("any",), missing="pointwise", meaning="for a test")
        def wrong(x: Floats, params: Floats, state: Floats, out: Floats) -> None:
            out[0] = x.median_of_something()

    assert "median_of_something" in caught.value.what


def test_an_unknown_kernel_s_error_tells_how_to_register(gappy: Bars) -> None:
    with pytest.raises(ConfigError, match="unknown kernel 'zzzz'") as caught:
        plan_of(rows(row("zzzz")), gappy)
    assert "kernels_from" in str(caught.value.hint)
    assert "register_kernel" in str(caught.value.hint)
    register_average()
    with pytest.raises(ConfigError, match="unknown kernel 'own_averag'") as caught:
        plan_of(rows(row("own_averag")), gappy)
    assert "did you mean 'own_average'?" in str(caught.value.hint)


# --- digests -----------------------------------------------------------------------------------------------------


SOURCE = """
from mia_fast import register_kernel
import numba
FACTOR = 2.0

@numba.njit
def helper(v):
    return v + 0.0

@register_kernel("mine", inputs=("any",), missing="pointwise", meaning="for a test")
def mine(x, params, state, out):
    out[0] = FACTOR * helper(x[0, -1])
"""


def workspace_with(folder: Path, source: str) -> Workspace:
    place = Workspace(folder)
    (folder / "config").mkdir(parents=True, exist_ok=True)
    (folder / "config" / "kernels.py").write_text(source, encoding="utf-8")
    own_yaml(
        place,
        "  - {name: doubled, family: mine, kernel: mine, inputs: [close], unit: index points,",
        "     range: [0, null], warmup: 0, definition: twice the close, source: this desk}",
        top="kernels_from: kernels.py\n",
    )
    return place


def address_of(plan: Plan) -> int:
    """The address that the plan's one call of a registered function goes to."""
    (line,) = plan.program[plan.program[:, op.CODE] == op.EXTERNAL]
    return int(plan.integers[line[op.INTEGERS] + external.ADDRESS])


def test_a_digest_follows_the_function_and_not_its_address(tmp_path: Path, gappy: Bars) -> None:
    def look(place: Workspace) -> tuple[str, str, bytes]:
        found = catalogues.read(place)
        plan = plan_of(found, gappy)
        engine = FeatureEngine(plan)
        feed(engine, gappy.rows(slice(0, 300)))
        return plan.digest, definitions(found, ["doubled"])["doubled"], engine.save()

    first = look(workspace_with(tmp_path / "a", SOURCE))
    same = look(workspace_with(tmp_path / "b", SOURCE))  # compiled again: another address
    addresses = [address_of(plan_of(catalogues.read(Workspace(tmp_path / w)), gappy)) for w in "ab"]
    assert len(set(addresses)) == 2
    assert address_of(plan_of(catalogues.read(Workspace(tmp_path / "a")), gappy)) in addresses
    assert first == same
    for address in addresses:
        assert address.to_bytes(8, sys.byteorder) not in first[2]
    for old, new in (("FACTOR = 2.0", "FACTOR = 3.0"), ("v + 0.0", "v + 1.0"), ("helper(x[0, -1])", "x[0, -1]")):
        other = look(workspace_with(tmp_path / "c", SOURCE.replace(old, new)))
        assert other[0] != first[0]
        assert other[1] != first[1]
        engine = FeatureEngine(plan_of(catalogues.read(Workspace(tmp_path / "c")), gappy))
        with pytest.raises(StateError, match="was saved under plan"):
            engine.restore(first[2])


def test_another_process_gives_the_same_digest(tmp_path: Path, gappy: Bars) -> None:
    place = workspace_with(tmp_path, SOURCE)
    plan = plan_of(catalogues.read(place), gappy)
    code = (
        "import sys; from pathlib import Path\n"
        "from mia_fast.features import catalogue; from mia_fast.features.plan import make_plan\n"
        "from mia_fast.workspace import Workspace\n"
        "found = catalogue.read(Workspace(Path(sys.argv[1])))\n"
        "print(make_plan(found, sys.argv[2].split(','), bar_minutes=1, tick_size=0.25).digest)\n"
    )
    places = os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "models"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path), ",".join(gappy.columns)],
        env={**os.environ, "PYTHONPATH": places}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == plan.digest, done.stderr


def test_a_name_may_mean_one_thing_here_and_another_there(tmp_path: Path, gappy: Bars) -> None:
    two = workspace_with(tmp_path / "a", SOURCE)
    three = workspace_with(tmp_path / "b", SOURCE.replace("FACTOR = 2.0", "FACTOR = 3.0"))
    for _ in range(2):
        for place, factor in ((two, 2.0), (three, 3.0)):
            same_bits(run(catalogues.read(place), gappy)["doubled"], factor * gappy.columns["close"])
    assert "mine" not in kernels.REGISTERED


def test_registering_again_counts_from_the_next_plan_on(gappy: Bars) -> None:
    for factor in (2.0, 3.0):

        @register_kernel("times", inputs=("any",), missing="pointwise", meaning="for a test")
        def times(x: Floats, params: Floats, state: Floats, out: Floats) -> None:
            out[0] = factor * x[0, -1]  # noqa: B023 - frozen when it is compiled

        found = rows(row("times"))
        plan = plan_of(found, gappy)
        if factor == 2.0:
            first, old = found.digest, FeatureEngine(plan)
        same_bits(feed(FeatureEngine(plan), gappy)[0], factor * gappy.columns["close"])
    assert found.digest != first
    same_bits(feed(old, gappy)[0], 2.0 * gappy.columns["close"])  # a plan keeps the function it was made with


# --- the workspace's file --------------------------------------------------------------------------------------------


def test_the_example_of_the_page_works(workspace: Workspace) -> None:
    """The second example of docs/own-features.md, as it stands there."""
    assert EXAMPLE is not None
    own_yaml(workspace, *example_rows(YAML[1]), top="kernels_from: my_kernels.py\n")
    (workspace.root / "config" / "my_kernels.py").write_text(EXAMPLE[1], encoding="utf-8")
    data = bars.make(1)
    result = generate_features(frame(data), workspace=workspace)
    gap = result["true_gap"].to_numpy()
    np.testing.assert_array_equal(gap[1:], data.columns["open"][1:] - data.columns["close"][:-1])
    assert result["true_gap"].null_count() == 1
    volume, keep = data.columns["volume"], 0.5 ** (1 / 30)
    weights = keep ** np.arange(1000)[::-1]
    want = (weights * volume[380:1380]).sum() / weights.sum()
    assert result["decayed_volume_30"].to_numpy()[-1] == pytest.approx(want, rel=1e-9)
    for name in ("true_gap", "decayed_volume_30"):
        assert check_features(catalogues.read(workspace), only=name).findings == []


def test_code_runs_only_when_the_catalogue_asks(workspace: Workspace) -> None:
    mark = workspace.root / "ran"
    source = SOURCE + f"\nopen({str(mark)!r}, 'w').close()\n"
    place = workspace_with(workspace.root, source)
    asked = place.root / "config" / "feature_sets.yaml"
    text = asked.read_text(encoding="utf-8")
    asked.write_text(text.replace("kernels_from: kernels.py\n", ""), encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown kernel 'mine'"):
        generate_features(frame(bars.make(1).rows(slice(0, 5))), workspace=place)
    assert not mark.exists()
    asked.write_text(text, encoding="utf-8")
    from mia_fast.validate import configuration

    assert configuration(place)[0] == []
    assert not mark.exists()  # checking a configuration does not run it
    generate_features(frame(bars.make(1).rows(slice(0, 5))), workspace=place)
    assert mark.exists()


@pytest.mark.parametrize("name", ["../kernels.py", "/tmp/kernels.py", "kernels", "sub/kernels.py", "kernels.py\n"])
def test_the_file_lies_beside_the_catalogue(workspace: Workspace, name: str) -> None:
    own_yaml(workspace, top=f"kernels_from: {name!r}\n")
    with pytest.raises(ConfigError, match="kernels_from"):
        catalogues.read(workspace)


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_a_file_that_anyone_may_write_is_not_run(workspace: Workspace) -> None:
    mark = workspace.root / "ran"
    place = workspace_with(workspace.root, SOURCE + f"\nopen({str(mark)!r}, 'w').close()\n")
    (place.root / "config" / "kernels.py").chmod(0o666)
    with pytest.raises(ConfigError, match="anyone may write it: it is not run") as caught:
        catalogues.read(place)
    assert "chmod o-w" in str(caught.value.hint)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("x = 1\ny = x / 0\n", r"kernels.py:2: fails as it is run: ZeroDivisionError"),
        ("def f(:\n", r"kernels.py:1: fails as it is run: SyntaxError"),
        ("import nothing_of_that_name\n", r"kernels.py:1: fails as it is run: ModuleNotFoundError"),
        ("x = 1\n", "registers no kernel"),
        (SOURCE.replace('"mine"', '"ema"'), "built-in kernel"),
    ],
)
def test_a_file_that_fails(workspace: Workspace, source: str, what: str) -> None:
    place = workspace_with(workspace.root, source)
    with pytest.raises(ConfigError, match=what):
        catalogues.read(place)


def test_a_file_that_is_not_there(workspace: Workspace) -> None:
    place = workspace_with(workspace.root, SOURCE)
    (place.root / "config" / "kernels.py").unlink()
    with pytest.raises(ConfigError, match=r"kernels_from: kernels.py cannot be read"):
        catalogues.read(place)


def test_the_journalled_digest_follows_the_file(workspace: Workspace) -> None:
    from mia_fast import config
    from mia_fast.live.replay import _config_files

    place = workspace_with(workspace.root, SOURCE)
    first = config.digest(*_config_files(place))
    (place.root / "config" / "kernels.py").write_text(SOURCE + "\n# another\n", encoding="utf-8")
    assert config.digest(*_config_files(place)) != first
