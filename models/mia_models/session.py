"""A model at work: the checked graph, one onnxruntime session, buffers made once."""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mia_models import manifest as manifests
from mia_models import weights
from mia_models.errors import ModelError
from mia_models.manifest import (
    INPUT_NAME,
    NEXT_PREFIX,
    OUTPUT_NAME,
    SCHEMA_KEY,
    STATE_PREFIX,
    THEN,
    Input,
    Manifest,
)

Floats = NDArray[np.float64]

_BLOCK = 8192
_NUMBERS = re.compile(r"\d+")
"""Rows per call in a batch: the graph's intermediates stay in the cache."""
_LANES = 8
"""Every call has a multiple of this many rows. onnxruntime computes logarithms and exponentials in vector lanes, the
rows left over with the C library, which differs in the last bit: without left-overs live and batch agree to the bit."""


class Reason(IntEnum):
    """Why there is no prediction."""

    NONE = 0
    INPUT_NOT_FINITE = 1
    OUTPUT_NOT_FINITE = 2
    OUTPUT_OUT_OF_RANGE = 3


@dataclass(frozen=True, slots=True)
class Refusal:
    """A prediction that was not given, with the value that prevented it."""

    reason: Reason
    name: str
    value: float

    def __str__(self) -> str:
        return f"MODEL_{self.reason.name}: {self.name}={self.value!r}"


class OnnxModel:
    """One loaded model. Make it with :meth:`load`, keep it, and call :meth:`step` for each bar.

    A model with a memory carries a state from step to step: rows must come in the order of time, each once. A row that
    is passed over, because the memory's inputs are not all there or its outputs are not finite, leaves the state as it
    was, and the next row goes on from the last one taken.

    Not safe for two threads at once: :meth:`step` writes into buffers of its own.

    Attributes
    ----------
    manifest
        What the model is.
    features, outputs
        Ordered names of the columns of inputs and predictions.
    row
        float64 (number of features,), what :meth:`step` reads when it is given this very array.
    refusal
        Why the last :meth:`step` gave no number for an output, the first such output; None when it gave all.
    """

    def __init__(self, manifest: Manifest, session: Any) -> None:
        import onnxruntime as ort

        self.manifest = manifest
        self.features = manifest.features
        self.outputs = manifest.output_names
        self.refusal: Refusal | None = None
        self._session = session
        self._low = np.array([part.minimum for part in manifest.outputs])
        self._high = np.array([part.maximum for part in manifest.outputs])
        self._needs = np.array([[_needed(part, out.group) for part in manifest.inputs] for out in manifest.outputs])
        self.optional: NDArray[np.bool_] = np.logical_not(self._needs.any(axis=0))
        """Inputs (features,) that may be NaN: no output is refused for want of them."""
        memory = manifest.memory
        group = None if memory is None else memory.group
        self._recalls = np.array([_needed(part, group or "") for part in manifest.inputs])
        self._remembered = np.array([memory is not None and out.group == group for out in manifest.outputs])
        # The rows after the first only fill the vector lanes; they hold the training medians.
        lanes = _LANES if memory is None else 1
        self._filler = np.tile([part.median for part in manifest.inputs], (lanes, 1))
        self._input = self._filler.copy()
        self._output = np.zeros((lanes, len(self.outputs)))
        self.row: Floats = self._input[0]
        self._answer: Floats = self._output[0]
        self._finite = np.empty(len(self.features), dtype=np.bool_)
        self._fine = np.empty((2, len(self.outputs)), dtype=np.bool_)
        self._nothing = np.zeros(len(self.outputs), dtype=np.bool_)
        # Which inputs are finite hardly ever changes from bar to bar: what follows from it is kept.
        self._seen = np.ones_like(self._finite)
        self._follows = (self._nothing, True)
        states = () if memory is None else memory.states
        self._names = tuple(state.name for state in states)
        # Two sets of states that take turns: what one step writes the next one reads, without a copy.
        self._states = tuple([np.zeros(state.shape, dtype=np.float32) for state in states] for _ in range(2))
        self._now = 0
        # On the CPU an OrtValue made from an array is the array's own memory: writing the row is binding it.
        wrap = ort.OrtValue.ortvalue_from_numpy
        self._values = (wrap(self._input), wrap(self._output), [[wrap(x) for x in part] for part in self._states])
        self._bindings = []
        for turn in range(2 if states else 1):
            binding = session.io_binding()
            binding.bind_ortvalue_input(INPUT_NAME, self._values[0])
            binding.bind_ortvalue_output(OUTPUT_NAME, self._values[1])
            for k, name in enumerate(self._names):
                binding.bind_ortvalue_input(STATE_PREFIX + name, self._values[2][turn][k])
                binding.bind_ortvalue_output(NEXT_PREFIX + name, self._values[2][1 - turn][k])
            self._bindings.append(binding)

    @classmethod
    def load(cls, directory: str | Path, name: str, *, features: Sequence[str] | None = None) -> OnnxModel:
        """Load the model ``name`` from ``directory`` after checking that it is the one described.

        Checked in this order: the manifest fits its format and its own hashes; the graph has the manifest's SHA-256;
        every weight is there and finite; onnxruntime accepts it; its input, output and schema are the manifest's; it
        answers the manifest's test rows as it did when it was exported.

        Parameters
        ----------
        features
            The caller's columns, if they must be exactly the model's, in its order. A caller whose rows hold more uses
            :meth:`columns_in` instead.

        Raises
        ------
        ModelError
            Any of the checks failed.
        """
        folder = Path(directory)
        manifest = manifests.read(folder, name)
        if features is not None:
            require(manifest, features)
        content = _checked_bytes(manifests.graph_path(folder, name), manifest)
        session = _session(content, manifests.graph_path(folder, name), manifest)
        model = cls(manifest, session)
        model._check_answers(str(manifests.graph_path(folder, name)))
        return model

    def columns_in(self, offered: Sequence[str]) -> NDArray[np.intp]:
        """Where the model's features stand among the ``offered`` columns: int (number of features,).

        Raises
        ------
        ModelError
            Some are not there; the error names them.
        """
        place = {name: k for k, name in enumerate(offered)}
        missing = [name for name in self.features if name not in place]
        if missing:
            raise missing_features(self.manifest, missing, offered)
        return np.array([place[name] for name in self.features], dtype=np.intp)

    def required(self, output: str) -> tuple[str, ...]:
        """The features without which an output has no value."""
        needs = self._needs[self.outputs.index(output)]
        return tuple(name for name, needed in zip(self.features, needs, strict=True) if needed)

    def step(self, row: Floats) -> Floats:
        """Predict one row, and carry the state on.

        Parameters
        ----------
        row
            float64 (number of features,), in the order of :attr:`features`; NaN where an optional one is missing.

        Returns
        -------
        float64 (number of outputs,)
            A view of this object's buffer, overwritten by the next call. NaN where a prediction is refused;
            :attr:`refusal` then says why.
        """
        own = self.row
        if row is not own:
            if row.shape != own.shape:
                raise self._wrong_width(row.shape)
            own[:] = row
        answer = self._answer
        finite = np.isfinite(own, out=self._finite)
        refused, recalls = self._without(finite)
        if refused.all():
            self.refusal = self._why(refused, finite)
            answer.fill(math.nan)
            return answer
        self._session.run_with_iobinding(self._bindings[self._now])
        above, fine = np.greater_equal(answer, self._low, out=self._fine[0]), self._fine[1]
        np.logical_and(np.less_equal(answer, self._high, out=fine), above, out=fine)
        whole = bool(fine.all())
        if self._names and recalls and (whole or np.isfinite(answer[self._remembered]).all()):
            self._now = 1 - self._now
        if whole and not refused.any():
            self.refusal = None
        else:
            self.refusal = self._why(refused, finite)
            answer[refused | ~fine] = math.nan
        return answer

    def predict(self, matrix: Floats) -> Floats:
        """Predict many rows: float64 (n, features) in, float64 (n, outputs) out; what is refused is NaN."""
        return self.predict_with_reasons(matrix)[0]

    def predict_with_reasons(self, matrix: Floats) -> tuple[Floats, NDArray[np.uint8]]:
        """Predict many rows and say why some have no prediction.

        The rows of a model with a memory are one series in the order of time, from its first row on; the state of
        :meth:`step` is left alone.

        Parameters
        ----------
        matrix
            float64 (n, number of features), in the order of :attr:`features`; n may be 0.

        Returns
        -------
        predictions
            float64 (n, number of outputs); what is refused is NaN.
        reasons
            uint8 (n,), the values of :class:`Reason`, of the first output that was refused in the row.
        """
        start = [np.zeros_like(part) for part in self._states[0]]
        out, reasons, _ = self._walk(matrix, start)
        return out, reasons

    def catch_up(self, matrix: Floats) -> Floats:
        """Start anew and take the rows of a history, as :meth:`step` would have: the next step goes on from there.

        A model with a memory has settled after ``manifest.memory.settle_rows`` of them.

        Returns
        -------
        float64 (n, number of outputs)
            Their predictions; what is refused is NaN.
        """
        out, _, states = self._walk(matrix, [np.zeros_like(part) for part in self._states[0]])
        for part, found in zip(self._states[self._now], states, strict=True):
            part[:] = found
        return out

    def reset(self) -> None:
        """Forget the rows taken so far."""
        for part in self._states[self._now]:
            part[:] = 0.0

    def save(self) -> bytes:
        """The state as bytes, bound to this graph."""
        content = self.manifest.graph_sha256.encode() + b"".join(part.tobytes() for part in self._states[self._now])
        return hashlib.sha256(content).digest() + content

    def restore(self, saved: bytes) -> None:
        """Go on from a saved state.

        Raises
        ------
        ModelError
            The bytes are damaged, or were saved by another graph. The model keeps the state it had.
        """
        mark = self.manifest.graph_sha256.encode()
        digest, content = saved[:32], saved[32:]
        sizes = [part.nbytes for part in self._states[0]]
        if (
            hashlib.sha256(content).digest() != digest
            or not content.startswith(mark)
            or len(content) != len(mark) + sum(sizes)
        ):
            raise ModelError(
                "the saved state is damaged, or of another graph",
                where=f"model {self.manifest.name}",
                hint="start from history again: catch_up(rows)",
                then="the model keeps the state it had",
            )
        at = len(mark)
        for part, size in zip(self._states[self._now], sizes, strict=True):
            part[:] = np.frombuffer(content[at : at + size], dtype=np.float32).reshape(part.shape)
            at += size

    def _walk(
        self, matrix: Floats, states: list[NDArray[np.float32]]
    ) -> tuple[Floats, NDArray[np.uint8], list[NDArray[np.float32]]]:
        if matrix.ndim != 2 or matrix.shape[1] != len(self.features):
            raise self._wrong_width(matrix.shape)
        rows = np.ascontiguousarray(matrix, dtype=np.float64)
        finite = np.isfinite(rows)
        out = np.empty((len(rows), len(self.outputs)))
        if not self._names:
            for start in range(0, len(rows), _BLOCK):
                block = rows[start : start + _BLOCK]
                count = len(block)
                if count % _LANES:
                    block = np.concatenate([block, self._filler[count % _LANES :]])
                out[start : start + count] = self._session.run([OUTPUT_NAME], {INPUT_NAME: block})[0][:count]
        else:
            taken = finite[:, self._recalls].all(axis=1) & ~np.isinf(rows).any(axis=1)
            whole = bool(taken.all())
            for chosen, carried in ((taken, True), (~taken, False)):
                places = slice(None) if whole else np.flatnonzero(chosen)
                part = rows[places]
                if not chosen.any():
                    continue
                answers = np.empty((len(part), len(self.outputs)))
                inner = states if carried else [np.zeros_like(state) for state in states]
                for start in range(0, len(part), _BLOCK):
                    block = part[start : start + _BLOCK]
                    before = inner
                    answers[start : start + _BLOCK], inner = self._run(block, before)
                    if carried and not np.isfinite(answers[start : start + _BLOCK, self._remembered]).all():
                        inner = before  # rows that the memory must not take: as step does it, one by one
                        for k, row in enumerate(block, start):
                            answers[k : k + 1], after = self._run(row[None], inner)
                            if np.isfinite(answers[k, self._remembered]).all():
                                inner = after
                out[places] = answers
                states = inner if carried else states
        refused = np.zeros(out.shape, dtype=np.bool_)
        gaps = np.flatnonzero(~finite.all(axis=1))
        if len(gaps):
            refused[gaps] = ((~finite[gaps]).astype(np.float32) @ self._needs.T.astype(np.float32)) > 0
            refused[np.isinf(rows).any(axis=1)] = True
        reason = np.zeros(out.shape, dtype=np.uint8)
        reason[~((out >= self._low) & (out <= self._high))] = Reason.OUTPUT_OUT_OF_RANGE
        reason[~np.isfinite(out)] = Reason.OUTPUT_NOT_FINITE
        reason[refused] = Reason.INPUT_NOT_FINITE
        out[reason != Reason.NONE] = np.nan
        first = (reason != Reason.NONE).argmax(axis=1)
        return out, reason[np.arange(len(out)), first], states

    def _run(self, rows: Floats, states: list[NDArray[np.float32]]) -> tuple[Floats, list[NDArray[np.float32]]]:
        """The graph of a model with a memory on consecutive rows: predictions, and the states behind the last one."""
        feeds = {STATE_PREFIX + name: state for name, state in zip(self._names, states, strict=True)}
        wanted = [OUTPUT_NAME, *(NEXT_PREFIX + name for name in self._names)]
        predictions, *after = self._session.run(wanted, {INPUT_NAME: rows, **feeds})
        return predictions, after

    def _without(self, finite: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], bool]:
        """Which outputs have no value for want of an input, and whether the row counts for the memory.

        An infinity is a fault of the row, not a gap.
        """
        if finite.all():
            return self._nothing, True
        if np.isinf(self.row).any():
            return np.ones(len(self.outputs), dtype=np.bool_), False
        if not np.array_equal(finite, self._seen):
            self._seen[:] = finite
            self._follows = np.array(self._needs[:, ~finite].any(axis=1)), bool(finite[self._recalls].all())
        return self._follows

    def _why(self, refused: NDArray[np.bool_], finite: NDArray[np.bool_]) -> Refusal:
        """The reason of the first output that is refused; the answers are still in the buffer."""
        for k, name in enumerate(self.outputs):
            if refused[k]:
                bad = ~finite & (self._needs[k] | np.isinf(self.row))
                at = int(np.flatnonzero(bad)[0])
                return Refusal(Reason.INPUT_NOT_FINITE, self.features[at], float(self.row[at]))
            value = float(self._answer[k])
            if not math.isfinite(value):
                return Refusal(Reason.OUTPUT_NOT_FINITE, name, value)
            if not self._low[k] <= value <= self._high[k]:
                return Refusal(Reason.OUTPUT_OUT_OF_RANGE, name, value)
        raise AssertionError("no output was refused")

    def _wrong_width(self, shape: tuple[int, ...]) -> ModelError:
        return ModelError(
            f"the inputs have shape {shape}, {self.manifest.name!r} takes {len(self.features)} features per row",
            where=f"model {self.manifest.name}",
            hint="select the columns with columns_in(names) in the order of .features",
            then="nothing was predicted",
        )

    def _check_answers(self, where: str) -> None:
        test = self.manifest.self_test
        given = np.array(test.inputs)
        expected = np.array(test.outputs)
        found, _ = self.predict_with_reasons(given)
        same = np.isclose(found, expected, rtol=test.relative_tolerance, atol=test.absolute_tolerance).all(axis=1)
        if not same.all():
            row = int(np.flatnonzero(~same)[0])
            raise ModelError(
                f"the graph answers test row {row} with {found[row].tolist()}, the manifest expects "
                f"{expected[row].tolist()}",
                where=where,
                hint="graph and manifest come from different exports, or this onnxruntime computes it differently; "
                "export the model again",
                then=THEN,
            )


def require(manifest: Manifest, offered: Sequence[str]) -> None:
    """Refuse columns that are not exactly the model's, in its order, with the difference named."""
    wanted = manifest.features
    if tuple(offered) == wanted:
        return
    missing = [name for name in wanted if name not in set(offered)]
    if missing:
        raise missing_features(manifest, missing, offered)
    extra = [name for name in offered if name not in set(wanted)]
    if extra or len(offered) != len(wanted):
        what = f"{len(offered)} columns are offered, {manifest.name!r} takes {len(wanted)}"
        what += f"; not among them: {', '.join(extra)}" if extra else "; some are offered twice"
    else:
        at = next(k for k, (a, b) in enumerate(zip(offered, wanted, strict=True)) if a != b)
        what = f"the columns are in another order: {offered[at]!r} stands where {manifest.name!r} takes {wanted[at]!r}"
    raise ModelError(
        what,
        where=f"model {manifest.name}",
        hint="select the columns by name in the order of the manifest's inputs",
        then=THEN,
    )


def missing_features(
    manifest: Manifest, missing: Sequence[str], offered: Sequence[str], *, hint: str = "compute them first"
) -> ModelError:
    """The error for columns that the model needs and the caller does not have."""
    near = {name: difflib.get_close_matches(name, offered, n=1, cutoff=0.8) for name in missing}
    similar = [
        f"{found[0]!r} for {name!r}"
        for name, found in near.items()
        if found and _NUMBERS.sub("", found[0]) != _NUMBERS.sub("", name)  # rsi_14 is no slip of rsi_21
    ]
    return ModelError(
        f"{len(missing)} of the {len(manifest.inputs)} features of {manifest.name!r} are missing: {', '.join(missing)}",
        where=f"model {manifest.name}",
        hint=f"is it a matter of names? {', '.join(similar)}; else {hint}" if similar else hint,
        then="nothing was predicted",
    )


def _needed(part: Input, group: str) -> bool:
    """Whether outputs of the group have no value without the input."""
    return part.groups is None or group in part.groups


def _checked_bytes(path: Path, manifest: Manifest) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"the graph cannot be read ({error})", where=str(path), hint="restore it beside its manifest", then=THEN
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != manifest.graph_sha256:
        raise ModelError(
            f"the file has SHA-256 {found[:12]}..., the manifest describes {manifest.graph_sha256[:12]}...: "
            "it was cut off, altered or exchanged",
            where=str(path),
            hint="restore both files from where they came, or train again",
            then=THEN,
        )
    try:
        fault = weights.first_fault(content)
    except weights.UnreadableError as error:
        raise ModelError(
            f"the file is not an ONNX model: {error}", where=str(path), hint="export it again", then=THEN
        ) from error
    if fault:
        raise ModelError(
            fault, where=str(path), hint="training has diverged or the export is wrong; train again", then=THEN
        )
    return content


def _session(content: bytes, path: Path, manifest: Manifest) -> Any:
    """An onnxruntime session on exactly the checked bytes, if the graph is the manifest's."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # its faults are raised and told below; it need not print them as well
    try:
        session = ort.InferenceSession(content, sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own C++ exceptions, without a common base
        raise ModelError(
            f"onnxruntime {ort.__version__} refuses the graph: {str(error).splitlines()[0][:300]}",
            where=str(path),
            hint="export it with opset 21 or lower and standard operators",
            then=THEN,
        ) from error
    states = () if manifest.memory is None else manifest.memory.states
    expected = tuple(
        ((name, "tensor(double)", width), *((prefix + s.name, "tensor(float)", s.shape) for s in states))
        for name, width, prefix in (
            (INPUT_NAME, len(manifest.inputs), STATE_PREFIX),
            (OUTPUT_NAME, len(manifest.outputs), NEXT_PREFIX),
        )
    )
    found = tuple(
        tuple(
            (node.name, node.type, (node.shape[1] if len(node.shape) == 2 else None) if k == 0 else tuple(node.shape))
            for k, node in enumerate(nodes)
        )
        for nodes in (session.get_inputs(), session.get_outputs())
    )
    if found != expected:
        told, wanted = (
            " and ".join(
                "inputs" * (k == 0) + "outputs" * (k == 1) + " " + ", ".join(map(str, part))
                for k, part in enumerate(parts)
            )
            for parts in (found, expected)
        )
        raise ModelError(
            f"the graph has {told}; expected {wanted} (name, type, columns or shape)",
            where=str(path),
            hint=f"export it with the input {INPUT_NAME!r} (n, features), the output {OUTPUT_NAME!r} (n, outputs) and "
            "the states of the manifest's memory",
            then=THEN,
        )
    schema = session.get_modelmeta().custom_metadata_map.get(SCHEMA_KEY)
    if schema != manifest.schema_sha256:
        raise ModelError(
            f"the graph was exported for another schema ({SCHEMA_KEY} is {schema!r})",
            where=str(path),
            hint="graph and manifest do not belong together; restore the pair, or export again",
            then=THEN,
        )
    return session
