"""From a fitted response to files: one ONNX graph with its preprocessing inside, and the manifest that describes it."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mia_models.errors import ModelError
from mia_models.manifest import (
    FORMAT,
    INPUT_NAME,
    OUTPUT_NAME,
    SCHEMA_KEY,
    DataFile,
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
from mia_models.training.response import (
    DAILY,
    INPUTS,
    MINUTES_PER_DAY,
    OPEN_MINUTE,
    RESPONSE_BOUND,
    TERMS,
    UNITS,
    Response,
)
from mia_models.training.samples import Floats, Samples

NAME = "predicted_vix"
VERSION = "1.0.0"
OPSET = 20
IR_VERSION = 9
"""The file format that goes with opset 20; older onnxruntimes read it too."""
LOWEST_VIX, HIGHEST_VIX = 5.0, 250.0
"""A prediction outside is refused. On record the close lies between 9.14 (2017-11-03) and 82.69 (2020-03-16)."""
SELF_TEST_ROWS = 8
SELF_TEST_TOLERANCE = 1e-9


def graph(model: Response) -> bytes:
    """The serialised ONNX graph of ``model``: float64 (n, 7) in, float64 (n, 1) out, float64 throughout.

    There is no float32 in it: with 27 coefficients it would save nothing, and the prediction is the same to the last
    digits for one row and for many.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ModuleNotFoundError as error:
        raise ModelError(
            "export needs the onnx package",
            where="import onnx",
            hint="pip install 'mia-fast[train]'",
            then="nothing was written",
        ) from error

    nodes = []
    constants = []

    def constant(name: str, value: object, dtype: type = np.float64) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def split(source: str, sizes: list[int], outputs: list[str]) -> list[str]:
        nodes.append(helper.make_node("Split", [source, constant(f"{source}_sizes", sizes, np.int64)], outputs, axis=1))
        return outputs

    # INPUTS and TERMS are ordered so that the four logarithms are one operator: each costs about 0.4 us live.
    vix, slow, moved, minutes = split(INPUT_NAME, [1, 4, 1, 1], ["vix", "slow", "moved", "minutes"])
    zero, one = constant("zero", 0.0), constant("one", 1.0)

    points = node("Mul", [slow, constant("to_points", [1.0, 1.0, 100.0, 100.0])], "slow_points")
    logs = node("Log", [node("Div", [points, vix], "slow_ratios")], "slow_logs")
    month = node("Gather", [logs, constant("month_column", [TERMS.index("vix_20d")], np.int64)], "vix_20d", axis=1)
    move = node("Div", [node("Mul", [moved, constant("daily", DAILY)], "move_points"), vix], "move")
    fall = node("Min", [move, zero], "fall")
    days = node("Div", [minutes, constant("minutes_per_day", MINUTES_PER_DAY)], "days")
    nights = node("Floor", [days], "nights")
    raw = node("Concat", [logs, move, fall, node("Mul", [move, month], "move_x_vix_20d"), nights], "terms", axis=1)
    above = node("Max", [raw, constant("lowest", model.lowest)], "above")
    bounded = node("Min", [above, constant("highest", model.highest)], "bounded")
    centred = node("Sub", [bounded, constant("centre", model.centre)], "centred")
    x = node("Div", [centred, constant("scale", model.scale)], "standardised")
    coefficients = constant("coefficients", model.coefficients[1:])
    slopes = node("Gemm", [x, coefficients, constant("intercepts", model.coefficients[0])], "slopes")
    level, by_time = split(slopes, [1, 2], ["level", "by_time"])

    share = node("Sub", [days, nights], "day_share")
    opening = OPEN_MINUTE / MINUTES_PER_DAY
    since = node("Sub", [share, constant("ramp_starts", [0.0, opening])], "since_start")
    ramps = node(
        "Clip",
        [node("Div", [since, constant("ramp_lengths", [opening, 1.0 - opening])], "progress"), zero, one],
        "ramps",
    )
    parts = node("Mul", [by_time, ramps], "parts")
    added = node("ReduceSum", [parts, constant("columns_axis", [1], np.int64)], "added", keepdims=1)
    response = node("Add", [level, added], "response")
    least, most = constant("least", -RESPONSE_BOUND), constant("most", RESPONSE_BOUND)
    factor = node("Exp", [node("Clip", [response, least, most], "bounded_response")], "factor")
    node("Mul", [vix, factor], OUTPUT_NAME)

    proto = helper.make_model(
        helper.make_graph(
            nodes,
            NAME,
            [helper.make_tensor_value_info(INPUT_NAME, TensorProto.DOUBLE, ["rows", len(INPUTS)])],
            [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.DOUBLE, ["rows", 1])],
            constants,
        ),
        producer_name="mia_models",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    helper.set_model_props(proto, {SCHEMA_KEY: schema_sha256(INPUTS, (NAME,))})
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def write(
    directory: Path,
    model: Response,
    rows: Samples,
    *,
    seed: int,
    method: str,
    data: tuple[DataFile, ...],
    definitions: Mapping[str, str],
    metrics: tuple[Metric, ...],
) -> Manifest:
    """Write ``predicted_vix.onnx`` and, after it, ``predicted_vix.manifest.json``.

    ``rows`` are the training rows: they give the medians, the ranges and the period. ``definitions`` are the digests of
    the catalogue's rows by feature.
    """
    import onnx
    import onnxruntime as ort

    content = graph(model)
    matrix = np.column_stack([rows.columns[name] for name in INPUTS])
    median = np.median(matrix, axis=0)
    low, high = np.quantile(matrix, [0.01, 0.99], axis=0)
    inputs = tuple(
        Input(
            name=name,
            unit=unit,
            median=float(median[k]),
            low=float(low[k]),
            high=float(high[k]),
            minimum=float(matrix[:, k].min()),
            maximum=float(matrix[:, k].max()),
            definition=definitions.get(name, ""),
        )
        for k, (name, unit) in enumerate(zip(INPUTS, UNITS, strict=True))
    )
    chosen = matrix[np.linspace(0, len(matrix) - 1, SELF_TEST_ROWS).astype(int)]
    answers = _answers(content, np.vstack([median, chosen]))
    expected = model.predict({name: np.r_[median[k], chosen[:, k]] for k, name in enumerate(INPUTS)})
    if not np.allclose(answers[:, 0], expected, rtol=SELF_TEST_TOLERANCE, atol=0.0):
        raise ModelError(
            "the exported graph does not compute the fitted model",
            where="export",
            hint="report this: the export and mia_models.training.response differ",
            then="nothing was written",
        )
    days = np.unique(rows.target_day)
    manifest = Manifest(
        format=FORMAT,
        name=NAME,
        version=VERSION,
        target="the VIX close of the current trading day; after 16:15 New York, of the next",
        inputs=inputs,
        outputs=(
            Output(
                name=NAME,
                unit="index points",
                minimum=LOWEST_VIX,
                maximum=HIGHEST_VIX,
                meaning="conditional median of the coming VIX close",
            ),
        ),
        schema_sha256=schema_sha256(INPUTS, (NAME,)),
        graph_sha256=hashlib.sha256(content).hexdigest(),
        opset=OPSET,
        versions={"numpy": np.__version__, "onnx": onnx.__version__, "onnxruntime": ort.__version__},
        training=Training(
            first=dt.date(1970, 1, 1) + dt.timedelta(days=int(days[0])),
            last=dt.date(1970, 1, 1) + dt.timedelta(days=int(days[-1])),
            sessions=len(days),
            rows=len(rows),
            seed=seed,
            method=method,
            data=data,
        ),
        self_test=SelfTest(
            inputs=tuple(tuple(row) for row in np.vstack([median, chosen]).tolist()),
            outputs=tuple(tuple(row) for row in answers.tolist()),
            relative_tolerance=SELF_TEST_TOLERANCE,
        ),
        metrics=metrics,
    )
    directory.mkdir(parents=True, exist_ok=True)
    replace(graph_path(directory, NAME), content)
    replace(manifest_path(directory, NAME), (manifest.model_dump_json(indent=2) + "\n").encode())
    return manifest


def _answers(content: bytes, matrix: Floats) -> Floats:
    import onnxruntime as ort

    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    answers: Floats = session.run([OUTPUT_NAME], {INPUT_NAME: matrix})[0]
    return answers


def replace(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
