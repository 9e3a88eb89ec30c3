"""A network of the desk's own, trained anywhere: from an ONNX file and some of its rows to a served model."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, compose, helper

from mia_models.errors import ModelError
from mia_models.manifest import (
    FORMAT,
    INPUT_NAME,
    OUTPUT_NAME,
    SCHEMA_KEY,
    Input,
    Manifest,
    Metric,
    Output,
    SelfTest,
    Training,
    graph_path,
    manifest_path,
    schema_sha256,
)
from mia_models.session import OnnxModel
from mia_models.training.export import IR_VERSION, OPSET, replace
from mia_models.training.rows import Floats

THEN = "nothing was written"
_TESTED = 8


def pack(
    graph: Path,
    out: Path,
    *,
    name: str,
    inputs: Mapping[str, str],
    outputs: Sequence[Output],
    rows: Floats,
    training: Training,
    target: str,
    version: str = "1.0.0",
    metrics: Sequence[Metric] = (),
    definitions: Mapping[str, str] | None = None,
) -> Manifest:
    """Write ``NAME.onnx`` and ``NAME.manifest.json`` into ``out`` for a graph without a memory.

    The graph's one input (n, inputs) and one output (n, outputs), of whatever names and of float32 or float64, are made
    the format's. Medians, quantiles, limits, hashes and the self-test come from ``rows`` and from what the graph
    answers to them; the result is loaded, with all checks that serving makes, before it is written.

    Parameters
    ----------
    graph
        The ONNX file, of opset 20 or lower.
    out
        ``WORKSPACE/data/models`` is where :class:`mia_fast.predict.NeuralPipeline` looks.
    name
        Lower case, digits and underscores. ``predicted_vix`` and ``networks`` take the place of the shipped ones.
    inputs
        Name to unit, in the order of the graph's columns.
    outputs
        In the order of the graph's columns, each with the range outside which a prediction is refused.
    rows
        float64 (n, inputs), rows it was trained on: n of a few thousand gives good quantiles. Rows with a NaN or an
        infinity are left out of the self-test.
    training, target, version, metrics
        As the manifest takes them; what they say is the caller's word.
    definitions
        By input, what decides a feature's values (:func:`mia_fast.loading.definitions`): a catalogue that computes one
        otherwise is then refused. Without it nothing is compared.

    Raises
    ------
    ModelError
        The graph has another shape, cannot be run, or its answers to ``rows`` are not finite and within their ranges.
    """
    matrix = np.asarray(rows, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] != len(inputs):
        raise _fault(f"the rows have shape {matrix.shape}, {len(inputs)} inputs are named", "rows")
    names, produced = tuple(inputs), tuple(part.name for part in outputs)
    content = _adapted(graph, names, produced)
    whole = matrix[np.isfinite(matrix).all(axis=1)]
    if not len(whole):
        raise _fault("no row is finite in every column: there is nothing to test the graph with", "rows")
    answers = _answers(content, whole, len(outputs), str(graph))
    low, high = np.array([part.minimum for part in outputs]), np.array([part.maximum for part in outputs])
    bad = np.argwhere(~(np.isfinite(answers) & (answers >= low) & (answers <= high)))
    if len(bad):
        row, column = bad[0]
        raise _fault(
            f"{produced[column]} is {answers[row, column]} for row {row} of the finite ones, outside "
            f"{low[column]} to {high[column]}",
            str(graph),
        )
    median, least, most = np.nanquantile(np.where(np.isfinite(matrix), matrix, np.nan), [0.5, 0.01, 0.99], axis=0)
    tested = whole[np.unique(np.linspace(0, len(whole) - 1, _TESTED).astype(np.int64))]
    manifest = Manifest(
        format=FORMAT,
        name=name,
        version=version,
        target=target,
        inputs=tuple(
            Input(
                name=feature,
                unit=unit,
                median=float(median[k]),
                low=float(least[k]),
                high=float(most[k]),
                minimum=float(whole[:, k].min()),
                maximum=float(whole[:, k].max()),
                definition=(definitions or {}).get(feature, ""),
            )
            for k, (feature, unit) in enumerate(inputs.items())
        ),
        outputs=tuple(outputs),
        schema_sha256=schema_sha256(names, produced),
        graph_sha256=hashlib.sha256(content).hexdigest(),
        opset=OPSET,
        versions={"numpy": np.__version__, "onnx": onnx.__version__, "onnxruntime": ort.__version__},
        training=training,
        self_test=SelfTest(
            inputs=tuple(tuple(row) for row in tested.tolist()),
            outputs=tuple(tuple(row) for row in _answers(content, tested, len(outputs), str(graph)).tolist()),
            relative_tolerance=1e-4,
            absolute_tolerance=1e-6,
        ),
        metrics=tuple(metrics),
    )
    text = (manifest.model_dump_json(indent=1) + "\n").encode()
    with tempfile.TemporaryDirectory() as draft:
        graph_path(Path(draft), name).write_bytes(content)
        manifest_path(Path(draft), name).write_bytes(text)
        OnnxModel.load(draft, name)
    out.mkdir(parents=True, exist_ok=True)
    replace(graph_path(out, name), content)
    replace(manifest_path(out, name), text)
    return manifest


def _adapted(path: Path, names: tuple[str, ...], produced: tuple[str, ...]) -> bytes:
    """The graph with the format's names and types around it."""
    try:
        proto = onnx.load(path)
        proto = onnx.version_converter.convert_version(proto, OPSET)
    except Exception as error:  # onnx raises protobuf's, its own and runtime errors, without a common base
        raise _fault(f"the graph cannot be read as opset {OPSET} ({error})", str(path)) from error
    weights = {part.name for part in proto.graph.initializer}
    entries = [part for part in proto.graph.input if part.name not in weights]
    if len(entries) != 1 or len(proto.graph.output) != 1:
        raise _fault(
            f"the graph has {len(entries)} inputs and {len(proto.graph.output)} outputs, one of each is taken",
            str(path),
        )
    inner = compose.add_prefix_graph(proto.graph, "own_")
    entry = next(part for part in inner.input if part.name == "own_" + entries[0].name)
    leave = inner.output[0].name
    kind = entry.type.tensor_type.elem_type
    if kind not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        raise _fault(f"the graph's input {entries[0].name!r} is neither float32 nor float64", str(path))
    nodes = [
        helper.make_node("Cast", [INPUT_NAME], [entry.name], name="enter", to=kind),
        *inner.node,
        helper.make_node("Cast", [leave], [OUTPUT_NAME], name="leave", to=TensorProto.DOUBLE),
    ]
    around = helper.make_graph(
        nodes,
        proto.graph.name or "own",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.DOUBLE, ["rows", len(names)])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.DOUBLE, ["rows", len(produced)])],
        inner.initializer,
    )
    model = helper.make_model(
        around, producer_name="mia_models", opset_imports=proto.opset_import, ir_version=IR_VERSION
    )
    helper.set_model_props(model, {SCHEMA_KEY: schema_sha256(names, produced)})
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _answers(content: bytes, matrix: Floats, width: int, where: str) -> Floats:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(content, sess_options=options, providers=["CPUExecutionProvider"])
        found: Floats = session.run([OUTPUT_NAME], {INPUT_NAME: matrix})[0]
    except Exception as error:  # onnxruntime raises its own C++ exceptions, without a common base
        raise _fault(f"the graph does not run on these rows ({str(error).splitlines()[0][:300]})", where) from error
    if found.shape != (len(matrix), width):
        raise _fault(f"the graph answers {len(matrix)} rows with shape {found.shape}, {width} outputs are named", where)
    return found


def _fault(what: str, where: str) -> ModelError:
    return ModelError(
        what,
        where=where,
        hint="see docs/own-models.md: one input (rows, features) and one output (rows, outputs), any number of rows",
        then=THEN,
    )
