"""Loading and serving a model: every refusal by a really damaged file, live against batch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bars import same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

import mia_models
from mia_models import session, weights
from mia_models.errors import ModelError
from mia_models.manifest import SCHEMA_KEY, schema_sha256
from mia_models.session import OnnxModel, Reason

ARTIFACTS = Path(mia_models.__file__).parent / "artifacts"
NAME = "predicted_vix"
onnx = pytest.importorskip("onnx")


@pytest.fixture
def folder(tmp_path):
    """A copy of the shipped model that a test may damage."""
    for suffix in (".onnx", ".manifest.json"):
        shutil.copy(ARTIFACTS / f"{NAME}{suffix}", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def model():
    return OnnxModel.load(ARTIFACTS, NAME)


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Plausible inputs in the order of the model's features."""
    g = np.random.default_rng(seed)
    vix = g.uniform(10, 60, count)
    return np.column_stack(
        [
            vix,
            vix * g.uniform(0.8, 1.2, count),
            vix * g.uniform(0.7, 1.4, count),
            g.uniform(0.03, 0.9, count),
            g.uniform(0.05, 0.9, count),
            g.normal(0, 0.01, count),
            g.integers(0, 5760, count).astype(float),
        ]
    )


def change_manifest(folder: Path, **changes) -> None:
    path = folder / f"{NAME}.manifest.json"
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def put_graph(folder: Path, content: bytes) -> None:
    """Exchange the graph and make the manifest's hash fit, as somebody would who forges one."""
    (folder / f"{NAME}.onnx").write_bytes(content)
    change_manifest(folder, graph_sha256=hashlib.sha256(content).hexdigest())


def shipped_proto():
    return onnx.load_from_string((ARTIFACTS / f"{NAME}.onnx").read_bytes())


def refused(folder: Path, *words: str, **options) -> None:
    with pytest.raises(ModelError) as caught:
        OnnxModel.load(folder, NAME, **options)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.hint
    assert caught.value.then


# --- loading ---------------------------------------------------------------------------------------


def test_shipped_model_loads(model):
    assert model.outputs == ("predicted_vix",)
    assert model.features[0] == "vix_term_1m"
    assert model.manifest.training.last.year == 2021
    assert model.manifest.opset <= 21


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_graph(folder, share):
    path = folder / f"{NAME}.onnx"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(folder, "SHA-256", "cut off, altered or exchanged")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_graph_with_fitting_hash(folder, share):
    content = (folder / f"{NAME}.onnx").read_bytes()
    put_graph(folder, content[: int(len(content) * share)])
    refused(folder, "not an ONNX model")


@pytest.mark.parametrize("place", [0.05, 0.3, 0.6, 0.9])
def test_one_altered_bit(folder, place):
    path = folder / f"{NAME}.onnx"
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(bytes(content))
    refused(folder, "SHA-256")


def test_altered_weight_with_fitting_hash(folder):
    proto = shipped_proto()
    for tensor in proto.graph.initializer:
        if tensor.name == "coefficients":
            values = onnx.numpy_helper.to_array(tensor) * 1.001
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "coefficients"))
    put_graph(folder, proto.SerializeToString())
    refused(folder, "answers test row", "manifest expects")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a graph", b"\x08\x09", bytes(range(256)) * 8])
def test_foreign_file_with_fitting_hash(folder, content):
    put_graph(folder, content)
    refused(folder, "not an ONNX model")


def test_foreign_graph_of_another_width(folder):
    put_graph(folder, tiny_graph(columns=3))
    refused(folder, "expected inputs ('features', 'tensor(double)', 7)")


def test_foreign_graph_of_the_same_width(folder):
    put_graph(folder, tiny_graph(columns=7, schema="0" * 64))
    refused(folder, "another schema", SCHEMA_KEY)


def test_graph_with_an_unknown_operator(folder):
    put_graph(folder, tiny_graph(columns=7, operator="NoSuchThing"))
    refused(folder, "onnxruntime", "refuses the graph")


def test_graph_is_missing(folder):
    (folder / f"{NAME}.onnx").unlink()
    refused(folder, "cannot be read")


def test_manifest_is_missing(folder):
    (folder / f"{NAME}.manifest.json").unlink()
    refused(folder, "cannot be read", "predicted_vix.manifest.json beside it")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "\x00"])
def test_manifest_is_not_one(folder, text):
    (folder / f"{NAME}.manifest.json").write_text(text)
    refused(folder, "manifest")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "mia-model/1"}, ("mia-model/1", "reads 'mia-model/2'")),
        ({"format": None}, ("format None",)),
        ({"name": "other"}, ("describes 'other'",)),
        ({"surprise": 1}, ("surprise",)),
        ({"graph_sha256": "abc"}, ("graph_sha256",)),
        ({"inputs": []}, ("inputs",)),
    ],
)
def test_manifest_of_another_schema(folder, changes, words):
    change_manifest(folder, **changes)
    refused(folder, *words)


def test_manifest_with_reordered_inputs(folder):
    content = json.loads((folder / f"{NAME}.manifest.json").read_text())
    change_manifest(folder, inputs=content["inputs"][::-1])
    refused(folder, "schema_sha256", "the list was edited")


def test_manifest_with_reordered_inputs_and_fitting_hash(folder):
    content = json.loads((folder / f"{NAME}.manifest.json").read_text())
    inputs = content["inputs"][::-1]
    change_manifest(folder, inputs=inputs, schema_sha256=schema_sha256([i["name"] for i in inputs], [NAME]))
    refused(folder, "another schema")


def test_manifest_with_a_number_that_is_none(folder):
    path = folder / f"{NAME}.manifest.json"
    content = json.loads(path.read_text())
    content["inputs"][0]["median"] = float("nan")
    path.write_text(json.dumps(content))
    refused(folder, "inputs.0.median")


def test_callers_columns(folder, model):
    names = model.features
    assert OnnxModel.load(folder, NAME, features=names).features == names
    refused(folder, "missing: minutes_since_vix_close", "compute them first", features=names[:-1])
    refused(folder, "another order", "'vix_mean_5' stands where", features=(names[1], names[0], *names[2:]))
    refused(folder, "not among them: rsi_14", features=(*names, "rsi_14"))
    refused(folder, "some are offered twice", features=(*names, names[0]))
    refused(folder, "is it a matter of names? 'vix_term_1M' for 'vix_term_1m'", features=("vix_term_1M", *names[1:]))


def test_columns_in_a_wider_row(model):
    offered = ("close", *model.features[::-1], "volume")
    place = model.columns_in(offered)
    assert [offered[k] for k in place] == list(model.features)
    with pytest.raises(ModelError, match="1 of the 7 features of 'predicted_vix' are missing: vix_term_1m"):
        model.columns_in(model.features[1:])


# --- weights ---------------------------------------------------------------------------------------


def tiny_graph(
    columns: int = 7, schema: str | None = None, operator: str = "ReduceMean", tensors=(), nodes=()
) -> bytes:
    """A graph of one operator, with any tensors and nodes beside it."""
    helper, kinds = onnx.helper, onnx.TensorProto
    axes = onnx.numpy_helper.from_array(np.array([1]), "axes")
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node(operator, ["features", "axes"], ["predictions"]), *nodes],
            "tiny",
            [helper.make_tensor_value_info("features", kinds.DOUBLE, ["n", columns])],
            [helper.make_tensor_value_info("predictions", kinds.DOUBLE, ["n", 1])],
            [axes, *tensors],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    if schema is not None:
        helper.set_model_props(proto, {SCHEMA_KEY: schema})
    return proto.SerializeToString()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_weight(folder, bad):
    proto = shipped_proto()
    for tensor in proto.graph.initializer:
        if tensor.name == "coefficients":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[3, 1] = bad
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "coefficients"))
    put_graph(folder, proto.SerializeToString())
    refused(folder, "initializer 'coefficients' holds a non-finite number")


@pytest.mark.parametrize("bad", [1.0, math.nan, math.inf])
@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "COMPLEX64"])
def test_weights_of_every_type(kind, raw, bad):
    helper = onnx.helper
    data_type = getattr(onnx.TensorProto, kind)
    values = np.array([0.5, bad, -2.0])
    if raw:
        dtype = {"FLOAT": "<f4", "DOUBLE": "<f8", "FLOAT16": "<f2", "COMPLEX64": "<c8"}.get(kind)
        content = (values.astype("<f4").view("<u4") >> 16).astype("<u2") if dtype is None else values.astype(dtype)
        tensor = onnx.TensorProto(name="w", data_type=data_type, dims=[3], raw_data=content.tobytes())
    else:
        tensor = helper.make_tensor("w", data_type, [3], values.tolist())
    fault = weights.first_fault(tiny_graph(tensors=[tensor]))
    assert fault == (None if math.isfinite(bad) else "initializer 'w' holds a non-finite number")


def test_weights_in_nodes_and_sub_graphs():
    helper = onnx.helper
    tensor = helper.make_tensor("c", onnx.TensorProto.FLOAT, [1], [math.nan])
    constant = helper.make_node("Constant", [], ["out"], value=tensor)
    assert "non-finite" in weights.first_fault(tiny_graph(nodes=[constant]))
    output = helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1])
    branch = helper.make_graph([constant], "branch", [], [output])
    choice = helper.make_node("If", ["flag"], ["chosen"], then_branch=branch, else_branch=branch)
    assert "non-finite" in weights.first_fault(tiny_graph(nodes=[choice]))
    plain = helper.make_node("Constant", [], ["out"], value_floats=[1.0, math.inf])
    assert "non-finite" in weights.first_fault(tiny_graph(nodes=[plain]))
    single = helper.make_node("LeakyRelu", ["features"], ["out"], alpha=math.nan)
    assert "non-finite" in weights.first_fault(tiny_graph(nodes=[single]))
    fine = helper.make_node("LeakyRelu", ["features"], ["out"], alpha=0.5)
    assert weights.first_fault(tiny_graph(nodes=[fine])) is None


def test_sparse_weights():
    values = onnx.helper.make_tensor("s", onnx.TensorProto.FLOAT, [1], [math.inf])
    indices = onnx.helper.make_tensor("i", onnx.TensorProto.INT64, [1], [2])
    proto = onnx.load_from_string(tiny_graph())
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [7]))
    assert "non-finite" in weights.first_fault(proto.SerializeToString())


def test_weights_in_another_file(folder):
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "elsewhere.bin"
    put_graph(folder, tiny_graph(tensors=[tensor]))
    refused(folder, "keeps its numbers in another file")


def test_weights_that_cannot_be_read():
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT8E5M2, dims=[1], raw_data=b"\x7c")
    assert "cannot be checked" in weights.first_fault(tiny_graph(tensors=[tensor]))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_reader_of_weights_survives_any_bytes(content):
    with contextlib.suppress(weights.UnreadableError):
        weights.first_fault(content)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_reader_of_weights_survives_damage(at, flip):
    content = bytearray((ARTIFACTS / f"{NAME}.onnx").read_bytes())
    content[at % len(content)] ^= flip
    with contextlib.suppress(weights.UnreadableError):
        weights.first_fault(bytes(content))


# --- serving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 64, 257])
def test_step_equals_batch_bit_for_bit(model, count):
    matrix = rows(count, seed=count)
    batch = model.predict(matrix)
    assert batch.shape == (count, 1)
    live = [model.step(row).copy() for row in matrix]
    assert np.array_equal(batch, np.array(live).reshape(count, 1))
    assert np.isfinite(batch).all()


def test_batch_does_not_depend_on_how_it_is_cut(model, monkeypatch):
    matrix = rows(1001, seed=5)
    whole = model.predict(matrix)
    for size in (8, 24, 1000):
        monkeypatch.setattr(session, "_BLOCK", size)
        assert np.array_equal(model.predict(matrix), whole)


@pytest.mark.parametrize("wild", [False, True])
def test_a_model_with_a_memory_gives_a_row_the_same_bits_in_any_block(monkeypatch, wild):
    """10,000 rows near the self-test's; then rows of nonsense, some of which overflow and must not count."""
    networks = OnnxModel.load(ARTIFACTS, "networks")
    g = np.random.default_rng(0)
    test = np.array(networks.manifest.self_test.inputs)
    low, high = (np.array([getattr(part, name) for part in networks.manifest.inputs]) for name in ("low", "high"))
    shares = g.dirichlet(np.ones(len(test)), 10_000)
    matrix = g.uniform(low, high, (600, len(low))) if wild else shares @ test
    matrix[40:60, networks.optional] = math.nan
    matrix[50, networks.features.index("close")] = math.nan
    matrix[70, networks.features.index("close")] = math.inf
    stream = np.array([networks.step(row).copy() for row in matrix])
    state = networks.save()
    assert np.isnan(stream[70]).all()
    assert np.isfinite(stream[[50, 72], 0]).all()
    overflown = np.isnan(stream[:, networks.outputs.index("predicted_volatility")]).sum()
    assert (overflown > 10) == wild
    for block in (1, 2, 7, 256, 8192) if wild else (2, 8192):
        monkeypatch.setattr("mia_models.session._BLOCK", block)
        found = networks.predict(matrix)
        same_bits(found, stream)
        answers = networks.catch_up(matrix)
        same_bits(answers, stream)
        if block == 1:
            assert networks.save() == state
        # What a convolution leaves behind may differ in the last bit; nothing that is served reads it.
        same_bits(networks.step(matrix[3])[None].copy(), after := _next(networks, state, matrix[3])[None])
    assert np.isfinite(after).any()


def _next(networks: OnnxModel, state: bytes, row: np.ndarray) -> np.ndarray:
    networks.restore(state)
    return networks.step(row).copy()


def test_step_writes_into_one_buffer(model):
    first, second = rows(2)
    view = model.step(first)
    value = view[0]
    again = model.step(second)
    assert np.shares_memory(view, again)
    assert view[0] == again[0] != value


def test_strided_and_other_input(model):
    matrix = rows(20)
    assert np.array_equal(model.predict(np.asfortranarray(matrix)), model.predict(matrix))
    assert np.array_equal(model.predict(matrix[::2]), model.predict(matrix)[::2])
    assert model.step(np.asfortranarray(matrix)[3]) == model.predict(matrix)[3]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_input_is_refused(model, bad):
    for k, name in enumerate(model.features):
        matrix = rows(9, seed=k)
        matrix[4, k] = bad
        out, reasons = model.predict_with_reasons(matrix)
        assert np.isnan(out[4]).all()
        assert reasons.tolist() == [0, 0, 0, 0, Reason.INPUT_NOT_FINITE, 0, 0, 0, 0]
        assert np.isnan(model.step(matrix[4])).all()
        assert model.refusal is not None
        assert str(model.refusal) == f"MODEL_INPUT_NOT_FINITE: {name}={bad!r}"
        assert model.step(matrix[5]) == out[5]
        assert model.refusal is None


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [(0, -20.0, Reason.OUTPUT_NOT_FINITE), (0, 1e4, Reason.OUTPUT_OUT_OF_RANGE), (0, 0.01, Reason.OUTPUT_OUT_OF_RANGE)],
)
def test_senseless_output_is_refused(model, column, value, reason):
    matrix = rows(3)
    matrix[1, column] = value
    out, reasons = model.predict_with_reasons(matrix)
    assert reasons.tolist() == [0, reason, 0]
    assert np.isnan(out[1, 0])
    assert np.isnan(model.step(matrix[1])[0])
    assert model.refusal is not None
    assert model.refusal.reason is reason
    assert model.refusal.name == "predicted_vix"


def test_wrong_width(model):
    with pytest.raises(ModelError, match=r"shape \(6,\)"):
        model.step(np.zeros(6))
    with pytest.raises(ModelError, match=r"shape \(1,\)"):
        model.step(np.zeros(1))  # would broadcast
    with pytest.raises(ModelError, match=r"shape \(4, 8\)"):
        model.predict(np.zeros((4, 8)))
    with pytest.raises(ModelError, match=r"shape \(7,\)"):
        model.predict(np.zeros(7))


def test_serving_imports_neither_torch_nor_onnx():
    code = (
        "import sys, numpy as np, mia_models\n"
        "from pathlib import Path\n"
        "from mia_models.session import OnnxModel\n"
        "assert 'onnxruntime' not in sys.modules\n"
        "model = OnnxModel.load(Path(mia_models.__file__).parent / 'artifacts', 'predicted_vix')\n"
        "row = np.array([p.median for p in model.manifest.inputs])\n"
        "assert np.isfinite(model.step(row)).all() and np.isfinite(model.predict(row[None])).all()\n"
        "heavy = {'torch', 'onnx', 'pandas', 'matplotlib', 'sklearn', 'polars', 'mia_fast'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=_environment())


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_a_model_of_the_users_own(tmp_path):
    """Any graph plugs in that has a manifest of the format."""
    names, outputs = ["a", "b", "c"], ["mean"]
    content = tiny_graph(columns=3, schema=schema_sha256(names, outputs))
    (tmp_path / "own.onnx").write_bytes(content)
    shipped = json.loads((ARTIFACTS / f"{NAME}.manifest.json").read_text())
    part = shipped["inputs"][0]
    shipped |= {
        "name": "own",
        "inputs": [part | {"name": name, "definition": ""} for name in names],
        "outputs": [shipped["outputs"][0] | {"name": "mean", "minimum": -10, "maximum": 10}],
        "schema_sha256": schema_sha256(names, outputs),
        "graph_sha256": hashlib.sha256(content).hexdigest(),
        "self_test": {"inputs": [[1, 2, 6]], "outputs": [[3]], "relative_tolerance": 1e-12},
    }
    (tmp_path / "own.manifest.json").write_text(json.dumps(shipped))
    model = OnnxModel.load(tmp_path, "own")
    assert model.step(np.array([0.0, 0.0, 3.0]))[0] == 1.0
    assert np.isnan(model.step(np.array([0.0, 0.0, 33.0]))[0])
