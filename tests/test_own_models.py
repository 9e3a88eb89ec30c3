"""Models of the desk's own: the page's example runs, and what is wrong with a graph is said before it is served."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path

import numpy as np
import pytest

from mia_models.errors import ModelError
from mia_models.manifest import Output, Training
from mia_models.session import OnnxModel

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from mia_models.training.pack import pack  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
WHEN = Training(
    first=dt.date(2021, 1, 4), last=dt.date(2021, 12, 30), sessions=250, rows=300, seed=1, method="-", data=()
)


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    """As a whole, in a folder of its own; the prediction is that of the regression, and refusals are per row."""
    text = (ROOT / "docs" / "own-models.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sample").symlink_to(ROOT / "data" / "sample")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIA_WORKSPACE", str(tmp_path))
    names: dict = {}
    exec(compile(code, "own-models.md", "exec"), names)
    found = names["predicted"]["my_move_15"].to_numpy()
    x = names["x"]
    wanted = (x - names["centre"]) @ names["weight"]
    known = np.isfinite(x).all(axis=1)
    np.testing.assert_allclose(found[known], wanted[known], rtol=1e-4, atol=1e-4)
    assert np.isnan(found[~known]).all()
    assert known.sum() > 10_000
    assert "my_move_15" in capsys.readouterr().out


def linear(
    path: Path, *, kind=TensorProto.FLOAT, inputs: int = 2, bias: float = 0.5, opset: int = 20, extra: bool = False
):
    dtype = np.float32 if kind == TensorProto.FLOAT else np.float64
    entries = [helper.make_tensor_value_info("features", kind, [None, inputs])]
    if extra:
        entries.append(helper.make_tensor_value_info("more", kind, [None, 1]))
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["features", "w", "b"], ["predictions"])],
        "g",
        entries,
        [helper.make_tensor_value_info("predictions", kind, [None, 1])],
        [numpy_helper.from_array(np.arange(1, inputs + 1, dtype=dtype)[:, None], "w"),
         numpy_helper.from_array(np.array([bias], dtype=dtype), "b")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
    return path


def packed(graph: Path, out: Path, rows: np.ndarray, **changes):
    arguments = {
        "name": "mine",
        "inputs": {"rsi_14": "0..100", "atr_14": "index points"},
        "outputs": [Output(name="mine_1", unit="-", minimum=-10.0, maximum=10.0, meaning="a test")],
        "rows": rows,
        "training": WHEN,
        "target": "-",
    }
    return pack(graph, out, **(arguments | changes))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE])
@pytest.mark.parametrize("opset", [13, 20])
def test_packed_models_load_and_say_what_the_graph_says(tmp_path, kind, opset):
    rows = np.random.default_rng(0).normal(size=(400, 2))
    rows[3, 0] = np.nan
    rows[7, 1] = 4.0
    manifest = packed(linear(tmp_path / "g.onnx", kind=kind, opset=opset), tmp_path / "out", rows)
    model = OnnxModel.load(tmp_path / "out", "mine")
    assert model.manifest == manifest
    found = model.predict(rows)[:, 0]
    np.testing.assert_allclose(np.delete(found, 3), np.delete(rows @ [1.0, 2.0] + 0.5, 3), rtol=1e-5, atol=1e-5)
    assert np.isnan(found[3])
    assert model.step(np.array([0.25, 0.5]))[0] == pytest.approx(1.75)
    first = manifest.inputs[0]
    assert (first.unit, first.median) == ("0..100", pytest.approx(float(np.nanmedian(rows[:, 0]))))
    assert manifest.inputs[1].maximum == 4.0
    assert len(manifest.self_test.inputs) == 8


def test_what_cannot_be_packed(tmp_path):
    rows = np.random.default_rng(0).normal(size=(50, 2))
    good = linear(tmp_path / "g.onnx")
    cases = [
        (good, rows[:, :1], {}, "the rows have shape"),
        (good, rows * np.nan, {}, "no row is finite"),
        (good, rows * 100, {}, "mine_1 is .* outside -10.0 to 10.0"),
        (linear(tmp_path / "three.onnx", inputs=3), rows, {}, "does not run on these rows"),
        (linear(tmp_path / "two.onnx", extra=True), rows, {}, "2 inputs and 1 outputs"),
        (linear(tmp_path / "int.onnx", bias=float("nan")), rows, {}, "mine_1 is nan"),
        (good, rows, {"outputs": [Output(name=n, unit="-", minimum=-9, maximum=9, meaning="-") for n in "ab"]},
         r"shape \(50, 1\), 2 outputs are named"),
        (tmp_path / "absent.onnx", rows, {}, "cannot be read"),
    ]  # fmt: skip
    for graph, given, changes, said in cases:
        with pytest.raises(ModelError, match=said):
            packed(graph, tmp_path / "out", given, **changes)
    assert not (tmp_path / "out").exists()
