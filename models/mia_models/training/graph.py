"""From fitted networks to one ONNX graph: preparation, all outputs, and the state that goes in and comes out.

The number of rows is free. One row is a live step; a block of rows is the same walk through time, with the state behind
its last row handed out. Scaling is float64, the networks float32, the VIX regression float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mia_models.manifest import INPUT_NAME, NEXT_PREFIX, OUTPUT_NAME, SCHEMA_KEY, STATE_PREFIX, State, schema_sha256
from mia_models.training import export, networks, prepare
from mia_models.training.latent import DIMENSIONS, Map
from mia_models.training.response import INPUTS, Response
from mia_models.training.rows import LONG, PRESSURE, REGIME, SHORT, VIX, VOLATILITY, Floats

OUTPUTS = (
    "predicted_vix",
    "cnn_pressure",
    "predicted_volatility",
    "neural_regime",
    "regime_prob_trend",
    "regime_prob_range",
    "regime_prob_defensive",
    "trade_success_prob",
    "trade_success_prob_short",
    *(f"neural_feature_{k}" for k in range(8)),
    *(f"latent_vol_regime_vec_{k + 1}" for k in range(DIMENSIONS)),
    "cluster_id",
)
_FAR = np.iinfo(np.int64).max
_LANES = 8


def held(served: Mapping[str, str]) -> tuple[str, ...]:
    """The networks in the graph: those that serve an output, and the LSTM, whose components are outputs themselves.

    A network that serves nothing would cost every bar its nodes and change no answer.
    """
    return tuple(part for part in networks.PARTS if part == "lstm" or part in served.values())


def states(settings: networks.Settings, served: Mapping[str, str]) -> tuple[State, ...]:
    """What is carried from row to row, in the order of the networks' own state."""
    past = tuple(
        State(name=f"bars_{d}", shape=(1, settings.channels, (networks.TAPS - 1) * d))
        for d in (networks.DILATIONS if "cnn" in held(served) else ())
    )
    return (*past, *(State(name=name, shape=(1, 1, settings.hidden)) for name in ("hidden", "cell")))


class _Builder:
    """Nodes and constants under way."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._count = 0

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        self._count += 1
        name = f"c{self._count}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(np.asarray(value, dtype=dtype)), name))
        return name

    def whole(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def node(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        self._count += 1
        output = output or f"{kind.lower()}_{self._count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"n{self._count}", **attributes))
        return output

    def split(self, source: str, sizes: Sequence[int]) -> list[str]:
        self._count += 1
        outputs = [f"part_{self._count}_{k}" for k in range(len(sizes))]
        self.nodes.append(
            helper.make_node("Split", [source, self.whole(*sizes)], outputs, name=f"n{self._count}", axis=1)
        )
        return outputs

    def columns(self, source: str, places: Sequence[int]) -> str:
        return self.node("Gather", [source, self.whole(*places)], axis=1)

    def dense(self, source: str, weight: Any, bias: Any, dtype: Any = np.float32) -> str:
        """Rows times ``weight`` (outputs, inputs) transposed, plus ``bias``."""
        return self.node("Gemm", [source, self.constant(np.asarray(weight).T, dtype), self.constant(bias, dtype)])

    def in_lanes(self, kind: str, source: str, width: int, output: str | None = None) -> str:
        """``Log`` or ``Exp`` of ``width`` float64 columns, without left-overs: some are computed more than once."""
        wide = self.node("Concat", [source] * (_LANES // math.gcd(width, _LANES)), axis=1)
        values = self.node(kind, [wide])
        return self.node("Gather", [values, self.whole(*range(width))], output, axis=1)

    def cast(self, source: str, to: int, output: str | None = None) -> str:
        return self.node("Cast", [source], output, to=to)


def build(
    preparation: prepare.Preparation,
    nets: networks.Networks,
    found: Map,
    regression: Response,
    served: Mapping[str, str],
    base_rates: Mapping[str, float],
    names: Sequence[str],
) -> bytes:
    """The serialised graph.

    Parameters
    ----------
    served
        Which method gives each output (:func:`mia_models.training.judge.winner`).
    base_rates
        Of the outputs that are served by their base rate.
    names
        The graph's inputs in order: the features of ``preparation`` first, then what else the regression reads.
    """
    b = _Builder()
    settings = nets.settings
    weights = {name: value.detach().double().numpy() for name, value in nets.state_dict().items()}
    z, order, reference = _prepared(b, preparation)

    def entry(part: str) -> tuple[Floats, Floats]:
        return weights[f"{part}.entry.weight"][:, order], weights[f"{part}.entry.bias"]

    parts, carried = held(served), states(settings, served)
    entries = [entry(part) for part in parts]
    first = b.dense(z, np.concatenate([w for w, _ in entries]), np.concatenate([bias for _, bias in entries]))
    into = dict(zip(parts, b.split(b.node("Relu", [first]), [len(bias) for _, bias in entries]), strict=True))
    linear = b.dense(z, weights["linear.head.weight"][:, order], weights["linear.head.bias"])
    by_linear = b.split(linear, [1, 1, 3, 1, 1])

    by_cnn = _pressure(b, weights, into["cnn"], carried) if "cnn" in parts else ""
    h, c = carried[-2:]
    gates = [_onnx_gates(weights[f"lstm.cell.{name}"], settings.hidden) for name in ("weight_ih_l0", "weight_hh_l0")]
    biases = [_onnx_gates(weights[f"lstm.cell.{name}"], settings.hidden) for name in ("bias_ih_l0", "bias_hh_l0")]
    b.nodes.append(
        helper.make_node(
            "LSTM",
            [
                b.node("Unsqueeze", [into["lstm"], b.whole(1)]),
                *(b.constant(g[None]) for g in gates),
                b.constant(np.concatenate(biases)[None]),
                "",
                STATE_PREFIX + h.name,
                STATE_PREFIX + c.name,
            ],
            ["lstm_rows", NEXT_PREFIX + h.name, NEXT_PREFIX + c.name],
            name="lstm",
            hidden_size=settings.hidden,
        )
    )
    hidden = b.node("Squeeze", ["lstm_rows", b.whole(1, 2)])
    components = b.node("Tanh", [b.dense(hidden, weights["lstm.features.weight"], weights["lstm.features.bias"])])
    by_lstm = b.split(b.dense(components, weights["lstm.head.weight"], weights["lstm.head.bias"]), [1, 3, 1])
    by_mlp = [""] * 4
    if "mlp" in parts:
        narrow = b.node("Relu", [b.dense(into["mlp"], weights["mlp.second.weight"], weights["mlp.second.bias"])])
        by_mlp = b.split(b.dense(narrow, weights["mlp.head.weight"], weights["mlp.head.bias"]), [1, 3, 1, 1])

    vix = _regression(b, regression, names)
    if served[VIX] == "lstm":
        beyond = b.node("Mul", [b.cast(by_lstm[2], TensorProto.DOUBLE), b.constant(networks.VIX_SCALE, np.float64)])
        vix = b.node("Mul", [vix, b.in_lanes("Exp", beyond, 1)])
    pressure = {"cnn": by_cnn, "linear": by_linear[0]}.get(served[PRESSURE])
    if pressure is None:  # zero for every row
        pressure = b.node("Mul", [by_linear[0], b.constant(0.0)])
    added = {"mlp": by_mlp[0], "lstm": by_lstm[0], "linear": None}[served[VOLATILITY]]
    ratio = by_linear[1] if added is None else b.node("Add", [by_linear[1], added])
    volatility = b.node("Mul", [b.in_lanes("Exp", b.cast(ratio, TensorProto.DOUBLE), 1), reference])
    logits = {"mlp": by_mlp[1], "lstm": by_lstm[1], "logistic regression": by_linear[2]}[served[REGIME]]
    chances = b.node("Softmax", [logits], axis=1)
    likeliest = b.cast(b.node("ArgMax", [chances], axis=1, keepdims=1), TensorProto.DOUBLE)
    success = []
    for k, name in enumerate((LONG, SHORT)):
        logit = {"mlp": by_mlp[2 + k], "logistic regression": by_linear[3 + k]}.get(served[name])
        if logit is None:  # the base rate for every row
            rate = float(np.log(base_rates[name] / (1.0 - base_rates[name])))
            logit = b.node("Add", [b.node("Mul", [by_linear[0], b.constant(0.0)]), b.constant(rate)])
        success.append(b.node("Sigmoid", [logit]))

    layers = [layer for layer in found.encoder if isinstance(layer, nn.Linear)]
    view = found.view
    levels = b.columns(INPUT_NAME, view.columns.tolist())
    logs = b.in_lanes("Log", b.node("Max", [levels, b.constant(view.floor, np.float64)]), len(view.columns))
    centred = b.node("Sub", [logs, b.constant(view.centre, np.float64)])
    scaled = b.node("Div", [centred, b.constant(view.scale, np.float64)])
    placed = b.cast(_finished(b, scaled, b.node("IsNaN", [levels])), TensorProto.FLOAT)
    for k, layer in enumerate(layers):
        placed = b.dense(placed, layer.weight.detach().numpy(), layer.bias.detach().numpy())
        if k < len(layers) - 1:
            placed = b.node("Relu", [placed])
    placed = b.cast(placed, TensorProto.DOUBLE)
    on_map = b.node("Unsqueeze", [b.columns(placed, [0, 1]), b.whole(1)])
    away = b.node("Sub", [on_map, b.constant(found.centres[None], np.float64)])
    squared = b.node("ReduceSum", [b.node("Mul", [away, away]), b.whole(2)], keepdims=0)
    cluster = b.cast(b.node("ArgMin", [squared], axis=1, keepdims=1), TensorProto.DOUBLE)

    singles = b.node("Concat", [chances, *success, components], axis=1)
    doubled = b.cast(singles, TensorProto.DOUBLE)
    b.node(
        "Concat",
        [vix, b.cast(pressure, TensorProto.DOUBLE), volatility, likeliest, doubled, placed, cluster],
        OUTPUT_NAME,
        axis=1,
    )
    return _serialised(b, names, carried)


def _pressure(b: _Builder, weights: Mapping[str, Floats], bars: str, carried: Sequence[State]) -> str:
    """The CNN over the last bars: rows of its entry, its past in and out."""
    seen = b.node("Unsqueeze", [b.node("Transpose", [bars], perm=[1, 0]), b.whole(0)])
    for d, state in zip(networks.DILATIONS, carried, strict=False):
        joined = b.node("Concat", [STATE_PREFIX + state.name, seen], axis=2)
        b.node("Slice", [joined, b.whole(-state.shape[2]), b.whole(_FAR), b.whole(2)], NEXT_PREFIX + state.name)
        kernel = [b.constant(weights[f"cnn.conv_{d}.{kind}"]) for kind in ("weight", "bias")]
        seen = b.node("Relu", [b.node("Conv", [joined, *kernel], dilations=[d])])
    late = b.node("Transpose", [b.node("Squeeze", [seen, b.whole(0)])], perm=[1, 0])
    both = b.node("Concat", [bars, late], axis=1)
    return b.node("Tanh", [b.dense(both, weights["cnn.head.weight"], weights["cnn.head.bias"])])


def _serialised(b: _Builder, names: Sequence[str], carried: Sequence[State]) -> bytes:
    def value(name: str, kind: int, shape: Sequence[int | str]) -> Any:
        return helper.make_tensor_value_info(name, kind, list(shape))

    proto = helper.make_model(
        helper.make_graph(
            b.nodes,
            "networks",
            [
                value(INPUT_NAME, TensorProto.DOUBLE, ["rows", len(names)]),
                *(value(STATE_PREFIX + s.name, TensorProto.FLOAT, s.shape) for s in carried),
            ],
            [
                value(OUTPUT_NAME, TensorProto.DOUBLE, ["rows", len(OUTPUTS)]),
                *(value(NEXT_PREFIX + s.name, TensorProto.FLOAT, s.shape) for s in carried),
            ],
            b.constants,
        ),
        producer_name="mia_models",
        opset_imports=[helper.make_opsetid("", export.OPSET)],
        ir_version=export.IR_VERSION,
    )
    helper.set_model_props(proto, {SCHEMA_KEY: schema_sha256(names, OUTPUTS)})
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _prepared(b: _Builder, p: prepare.Preparation) -> tuple[str, list[int], str]:
    """The networks' inputs, float32: their name, which column of the twin each is, and the reference volatility.

    Columns of one kind stand together, and those that get no weight are left out.
    """
    used = np.flatnonzero(p.slow == 0)
    by_kind = [used[p.kind[used] == kind] for kind in (prepare.PLAIN, prepare.VOLATILITY, prepare.LOG, prepare.LEVEL)]
    order = np.concatenate(by_kind)
    x = b.columns(INPUT_NAME, order.tolist())
    missing = b.node("IsNaN", [x])
    plain, logs, levels = b.split(x, [len(by_kind[0]), len(by_kind[1]) + len(by_kind[2]), len(by_kind[3])])
    close = b.columns(INPUT_NAME, [p.names.index(prepare.CLOSE)])
    least = b.constant([prepare.LEAST_RATIO], np.float64)
    levels = b.node("Max", [b.node("Div", [levels, close]), least])
    at = p.names.index(prepare.REFERENCE)
    raw = b.columns(INPUT_NAME, [at])
    known = b.node("Where", [b.node("IsNaN", [raw]), b.constant([p.median[at]], np.float64), raw])
    reference = b.node("Max", [known, b.constant([p.floor[at]], np.float64)])
    positive = np.concatenate(by_kind[1:3])
    logs = b.node("Max", [logs, b.constant(p.floor[positive], np.float64)])
    sizes = [len(positive), len(by_kind[3]), 1]
    spare = -sum(sizes) % _LANES
    every = b.node("Log", [b.node("Concat", [logs, levels, *[reference] * (1 + spare)], axis=1)])
    logs, levels, log_reference, *_ = b.split(every, [*sizes, *[spare] * (spare > 0)])
    relative = b.constant([[1.0] * len(by_kind[1]) + [0.0] * len(by_kind[2])], np.float64)
    logs = b.node("Sub", [logs, b.node("Mul", [log_reference, relative])])
    shaped = b.node("Concat", [plain, logs, levels], axis=1)
    centred = b.node("Sub", [shaped, b.constant(p.centre[order], np.float64)])
    scaled = b.node("Div", [centred, b.constant(p.scale[order], np.float64)])
    clipped = _finished(b, scaled, missing)
    clock = b.columns(INPUT_NAME, [p.names.index(name) for name in prepare.CLOCK])
    turned = b.dense(
        clock, prepare.SHARPNESS * prepare.hours().T, np.full(prepare.BUMPS, -prepare.SHARPNESS), np.float64
    )
    assert prepare.BUMPS % _LANES == 0
    bumps = b.node("Exp", [turned])
    z = b.cast(b.node("Concat", [clipped, bumps], axis=1), TensorProto.FLOAT)
    return z, [*order.tolist(), *range(len(p.names), p.width)], reference


def _finished(b: _Builder, scaled: str, missing: str) -> str:
    """0 where missing, and clipped."""
    filled = b.node("Where", [missing, b.constant(0.0, np.float64), scaled])
    return b.node("Clip", [filled, b.constant(-prepare.CLIP, np.float64), b.constant(prepare.CLIP, np.float64)])


def _regression(b: _Builder, regression: Response, names: Sequence[str]) -> str:
    """The graph of ``predicted_vix``, whole, under the prefix ``vix_``."""
    proto = onnx.load_from_string(export.graph(regression))
    inner = onnx.compose.add_prefix_graph(proto.graph, "vix_")
    b.nodes.append(
        helper.make_node(
            "Gather",
            [INPUT_NAME, b.whole(*(list(names).index(name) for name in INPUTS))],
            ["vix_" + INPUT_NAME],
            name="vix_columns",
            axis=1,
        )
    )
    shapes = {found.name: found.type.tensor_type.shape for found in _shapes(inner)}
    for node in inner.node:
        if node.op_type in ("Log", "Exp"):
            b.in_lanes(node.op_type, node.input[0], shapes[node.input[0]].dim[1].dim_value, node.output[0])
        else:
            b.nodes.append(node)
    b.constants.extend(inner.initializer)
    return "vix_" + OUTPUT_NAME


def _shapes(inner: Any) -> Any:
    proto = helper.make_model(inner, opset_imports=[helper.make_opsetid("", export.OPSET)])
    return onnx.shape_inference.infer_shapes(proto).graph.value_info


def _onnx_gates(values: Floats, hidden: int) -> Floats:
    """PyTorch orders the gates input, forget, cell, output; ONNX input, output, forget, cell."""
    i, f, g, o = (values[k * hidden : (k + 1) * hidden] for k in range(4))
    return np.concatenate([i, o, f, g])
