"""A model at work: the checked graph, one onnxruntime session, buffers made once."""

from __future__ import annotations

import difflib
import hashlib
import math
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
from mia_models.manifest import INPUT_NAME, OUTPUT_NAME, SCHEMA_KEY, THEN, Manifest

Floats = NDArray[np.float64]

_BLOCK = 8192
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

    Not safe for two threads at once: :meth:`step` writes into buffers of its own.

    Attributes
    ----------
    manifest
        What the model is.
    features, outputs
        Ordered names of the columns of inputs and predictions.
    refusal
        Why the last :meth:`step` gave no number; None when it gave one.
    """

    def __init__(self, manifest: Manifest, session: Any) -> None:
        import onnxruntime as ort

        self.manifest = manifest
        self.features = manifest.features
        self.outputs = manifest.output_names
        self.refusal: Refusal | None = None
        self._session = session
        self._low = [part.minimum for part in manifest.outputs]
        self._high = [part.maximum for part in manifest.outputs]
        self._lowest = np.array([part.minimum for part in manifest.inputs])
        self._highest = np.array([part.maximum for part in manifest.inputs])
        # The rows after the first only fill the vector lanes; they hold the training medians.
        self._filler = np.tile([part.median for part in manifest.inputs], (_LANES, 1))
        self._input = self._filler.copy()
        self._output = np.zeros((_LANES, len(self.outputs)))
        self._row: Floats = self._input[0]
        self._answer: Floats = self._output[0]
        # On the CPU an OrtValue made from an array is the array's own memory: writing the row is binding it.
        self._values = (ort.OrtValue.ortvalue_from_numpy(self._input), ort.OrtValue.ortvalue_from_numpy(self._output))
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(INPUT_NAME, self._values[0])
        self._binding.bind_ortvalue_output(OUTPUT_NAME, self._values[1])

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

    def step(self, row: Floats) -> Floats:
        """Predict one row.

        Parameters
        ----------
        row
            float64 (number of features,), in the order of :attr:`features`.

        Returns
        -------
        float64 (number of outputs,)
            A view of this object's buffer, overwritten by the next call. All NaN when the prediction is refused;
            :attr:`refusal` then says why.
        """
        if row.shape != self._row.shape:
            raise self._wrong_width(row.shape)
        self._row[:] = row
        answer = self._answer
        if not np.isfinite(self._row).all():
            self.refusal = self._refuse_input()
            answer.fill(math.nan)
            return answer
        self._session.run_with_iobinding(self._binding)
        for low, value, high in zip(self._low, answer.tolist(), self._high, strict=True):
            if not low <= value <= high:
                self.refusal = self._refuse_output()
                answer.fill(math.nan)
                return answer
        self.refusal = None
        return answer

    def predict(self, matrix: Floats) -> Floats:
        """Predict many rows: float64 (n, features) in, float64 (n, outputs) out; a refused row is NaN."""
        return self.predict_with_reasons(matrix)[0]

    def predict_with_reasons(self, matrix: Floats) -> tuple[Floats, NDArray[np.uint8]]:
        """Predict many rows and say why some have no prediction.

        Parameters
        ----------
        matrix
            float64 (n, number of features), in the order of :attr:`features`; n may be 0.

        Returns
        -------
        predictions
            float64 (n, number of outputs); refused rows are NaN.
        reasons
            uint8 (n,), the values of :class:`Reason`.
        """
        if matrix.ndim != 2 or matrix.shape[1] != len(self.features):
            raise self._wrong_width(matrix.shape)
        rows = np.ascontiguousarray(matrix, dtype=np.float64)
        out = np.empty((len(rows), len(self.outputs)))
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            count = len(block)
            if count % _LANES:
                block = np.concatenate([block, self._filler[count % _LANES :]])
            out[start : start + count] = self._session.run([OUTPUT_NAME], {INPUT_NAME: block})[0][:count]
        reasons = np.zeros(len(rows), dtype=np.uint8)
        reasons[~((out >= self._low) & (out <= self._high)).all(axis=1)] = Reason.OUTPUT_OUT_OF_RANGE
        reasons[~np.isfinite(out).all(axis=1)] = Reason.OUTPUT_NOT_FINITE
        reasons[~np.isfinite(rows).all(axis=1)] = Reason.INPUT_NOT_FINITE
        out[reasons != Reason.NONE] = np.nan
        return out, reasons

    def outside_training(self, matrix: Floats) -> NDArray[np.bool_]:
        """Which inputs lie outside what training saw (its minimum and maximum): bool, the shape of ``matrix``.

        Such a prediction is an extrapolation. NaN counts as outside.
        """
        return ~((matrix >= self._lowest) & (matrix <= self._highest))

    def _refuse_input(self) -> Refusal:
        at = int(np.flatnonzero(~np.isfinite(self._row))[0])
        return Refusal(Reason.INPUT_NOT_FINITE, self.features[at], float(self._row[at]))

    def _refuse_output(self) -> Refusal:
        values = list(zip(self.outputs, self._low, self._answer.tolist(), self._high, strict=True))
        for name, _, value, _ in values:
            if not math.isfinite(value):
                return Refusal(Reason.OUTPUT_NOT_FINITE, name, value)
        name, value = next((name, value) for name, low, value, high in values if not low <= value <= high)
        return Refusal(Reason.OUTPUT_OUT_OF_RANGE, name, value)

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
        if not np.allclose(found, expected, rtol=test.relative_tolerance, atol=0.0):
            row = int(
                np.flatnonzero(~np.isclose(found, expected, rtol=test.relative_tolerance, atol=0.0).all(axis=1))[0]
            )
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
    similar = [f"{found[0]!r} for {name!r}" for name, found in near.items() if found]
    return ModelError(
        f"{len(missing)} of the {len(manifest.inputs)} features of {manifest.name!r} are missing: {', '.join(missing)}",
        where=f"model {manifest.name}",
        hint=f"is it a matter of names? {', '.join(similar)}; else {hint}" if similar else hint,
        then="nothing was predicted",
    )


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
    expected = (
        (INPUT_NAME, "tensor(double)", len(manifest.inputs)),
        (OUTPUT_NAME, "tensor(double)", len(manifest.outputs)),
    )
    found = tuple(
        tuple((node.name, node.type, node.shape[1] if len(node.shape) == 2 else None) for node in nodes)
        for nodes in (session.get_inputs(), session.get_outputs())
    )
    if found != tuple((part,) for part in expected):
        raise ModelError(
            f"the graph has inputs {found[0]} and outputs {found[1]}; expected {expected[0]} and {expected[1]} "
            "(name, type, columns)",
            where=str(path),
            hint=f"export it with one input {INPUT_NAME!r} (n, features) and one output {OUTPUT_NAME!r} (n, outputs)",
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
