"""Serving the models: one call with the state carried against five windowed sessions, and against an empty graph.

Run: pytest benchmarks/test_models.py -s -q -m ""
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import mia_models
from mia_models.session import OnnxModel

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

ARTIFACTS = Path(mia_models.__file__).parent / "artifacts"
WINDOW = 64
"""Bars that the CNN sees."""
ROUNDS, CALLS = 15, 200


def _options():
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _windowed(matrix: np.ndarray):
    """The shipped graph cut into five sessions, as models are usually served: the LSTM starts anew on the last 64 bars
    at every call, the MLP, the regime, the VIX and the map read the last bar; each prepares its own inputs."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    proto = onnx.load_from_string((ARTIFACTS / "networks.onnx").read_bytes())
    named = {node.op_type: node.output[0] for node in proto.graph.node}  # the last of each kind
    cuts = (
        (named["Tanh"], TensorProto.FLOAT, WINDOW),
        (named["Sigmoid"], TensorProto.FLOAT, 1),
        (named["Softmax"], TensorProto.FLOAT, 1),
        ("vix_predictions", TensorProto.DOUBLE, 1),
        (named["ArgMin"], TensorProto.INT64, 1),
    )
    calls = []
    for output, kind, length in cuts:
        part = onnx.ModelProto()
        part.CopyFrom(proto)
        del part.graph.output[:]
        part.graph.output.append(helper.make_tensor_value_info(output, kind, None))
        session = ort.InferenceSession(part.SerializeToString(), _options(), providers=["CPUExecutionProvider"])
        feeds = {"features": matrix[-length:]}
        for value in session.get_inputs()[1:]:
            feeds[value.name] = np.zeros(value.shape, dtype=np.float32)
        calls.append((session, feeds))
    return lambda: [session.run(None, feeds)[0][-1] for session, feeds in calls]


def _identity(inputs: int):
    """A graph of one node, called the same way: the floor."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    kind = TensorProto.DOUBLE
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "identity",
            [helper.make_tensor_value_info("x", kind, [1, inputs])],
            [helper.make_tensor_value_info("y", kind, [1, inputs])],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    session = ort.InferenceSession(proto.SerializeToString(), _options(), providers=["CPUExecutionProvider"])
    x, y = (ort.OrtValue.ortvalue_from_numpy(np.zeros((1, inputs))) for _ in range(2))
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)
    return lambda: session.run_with_iobinding(binding)


def _interleaved(*functions) -> list[np.ndarray]:
    """Microseconds per call of each, taking turns."""
    times: list[list[int]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, found in zip(functions, times, strict=True):
            for _ in range(CALLS):
                began = time.perf_counter_ns()
                function()
                found.append(time.perf_counter_ns() - began)
    return [np.array(found) / 1000 for found in times]


def test_one_call_against_five_windowed_sessions():
    model = OnnxModel.load(ARTIFACTS, "networks")
    row = np.array(model.manifest.self_test.inputs[0])
    matrix = np.tile(row, (300, 1))
    window = model.predict(matrix)  # parity first: what is timed gives what the windowed form gives
    model.reset()
    stream = np.array([model.step(one).copy() for one in matrix])
    np.testing.assert_allclose(stream, window, rtol=1e-5, atol=1e-6)
    sessions = _windowed(matrix)
    names = [f"neural_feature_{k}" for k in range(8)]
    found = dict(zip(model.outputs, stream[-1], strict=True))
    components, short, chances, vix, cluster = sessions()
    np.testing.assert_allclose(short, found["trade_success_prob_short"], atol=1e-6)
    np.testing.assert_allclose(components, [found[name] for name in names], atol=0.1)  # restarted: nearly it
    np.testing.assert_allclose(chances, [found[f"regime_prob_{k}"] for k in ("trend", "range", "defensive")], atol=1e-6)
    np.testing.assert_allclose(vix, found["predicted_vix"], rtol=1e-9)
    assert cluster == found["cluster_id"]
    ours, theirs, floor = _interleaved(lambda: model.step(row), sessions, _identity(len(row)))
    ratio = np.median(theirs) / np.median(ours)
    print(
        f"\none call, state carried: p50 {np.median(ours):.1f} us, p99 {np.quantile(ours, 0.99):.1f}; "
        f"five windowed sessions: p50 {np.median(theirs):.1f}; {ratio:.2f} x; "
        f"identity graph {np.median(floor):.1f} us: {np.median(ours) / np.median(floor):.1f} x the floor"
    )
    assert ratio >= 2.5


def test_a_year_in_a_batch():
    model = OnnxModel.load(ARTIFACTS, "networks")
    rows = np.array(model.manifest.self_test.inputs)
    matrix = rows[np.random.default_rng(0).integers(0, len(rows), 350_000)]
    began = time.perf_counter()
    found = model.predict(matrix)
    seconds = time.perf_counter() - began
    assert np.isfinite(found).all()
    print(f"\n350,000 minutes in {seconds:.2f} s, {seconds / len(matrix) * 1e6:.1f} us per row")
    assert seconds < 20


def test_load_to_first_prediction():
    code = (
        "import time; start = time.perf_counter()\n"
        "import sys, numpy as np\n"
        "from mia_models.session import OnnxModel\n"
        f"model = OnnxModel.load({str(ARTIFACTS)!r}, 'networks')\n"
        "model.step(np.array([part.median for part in model.manifest.inputs]))\n"
        "assert 'torch' not in sys.modules\n"
        "print(time.perf_counter() - start)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    seconds = [
        float(
            subprocess.run(
                [sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True
            ).stdout
        )
        for _ in range(5)
    ]
    print(f"\nimport, load and first prediction: {np.median(seconds):.2f} s (worst of 5: {max(seconds):.2f})")
    assert np.median(seconds) <= 1.0
