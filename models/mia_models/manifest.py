"""The manifest of a served model: what goes in, what comes out, and the proof that the graph is the one described.

A model may carry a state from row to row (:class:`Memory`), and some outputs may do without some inputs (``groups``).
One model is two files in one folder, ``NAME.onnx`` and ``NAME.manifest.json``, and for a shipped one a model card
``NAME.md``. The manifest is written last, so a graph without a fitting manifest is an unfinished export.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mia_models.errors import ModelError

FORMAT: Final = "mia-model/2"
INPUT_NAME = "features"
"""The graph's input: float64 (n, number of features). A model with a state reads that as well, see :class:`State`."""
OUTPUT_NAME = "predictions"
"""The graph's output: float64 (n, number of outputs), and the state behind the last row."""
STATE_PREFIX, NEXT_PREFIX = "state_", "next_"
"""A state called ``x`` enters the graph as ``state_x`` and leaves it as ``next_x``."""
SCHEMA_KEY = "mia_schema_sha256"
"""Metadata entry of the graph that ties it to its manifest."""
THEN = "the model was not loaded; nothing is predicted without it"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Input(_Part):
    """One column that the graph reads."""

    name: str = Field(min_length=1)
    unit: str
    median: float = Field(
        description="of the training rows; stands in for a missing value when imputation is asked for"
    )
    low: float = Field(description="1st percentile of the training rows")
    high: float = Field(description="99th percentile of the training rows")
    minimum: float
    maximum: float
    groups: tuple[str, ...] | None = Field(
        default=None,
        description="the groups of outputs that have no value without it; empty: it may be missing; null: all need it",
    )
    definition: str = Field(
        default="", description="digest of the catalogue rows that compute it at training time; empty: not recorded"
    )


class Output(_Part):
    """One number that the graph predicts."""

    name: str = Field(min_length=1)
    unit: str
    minimum: float = Field(description="a prediction below is refused")
    maximum: float = Field(description="a prediction above is refused")
    meaning: str
    group: str = Field(default="", description="which inputs it cannot do without: those that name this group, or all")


class State(_Part):
    """What the graph carries from row to row, float32, zeros before the first."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    shape: tuple[int, ...] = Field(min_length=1)


class Memory(_Part):
    """A recurrent model: the rows of a block are one after the other in time."""

    states: tuple[State, ...] = Field(min_length=1)
    group: str = Field(description="a row without the inputs of this group is passed over: the state stays as it was")
    settle_rows: int = Field(ge=0, description="so many rows after a start from zeros the outputs are as in training")
    settled_within: float | None = Field(
        default=None,
        description="largest difference from then on in any output, as a share of its range; null: unmeasured",
    )
    settle_starts: int | None = Field(default=None, description="from how many starts that was measured")


class Chosen(_Part):
    """How the features came to be chosen."""

    digest: str
    catalogue: str
    asked: int
    candidates: int
    features: int
    all_taken: bool
    period: tuple[str, str] | None = Field(
        default=None, description="first and last bar they were chosen on, ISO-8601 UTC; null: not recorded"
    )


class MapQuality(_Part):
    """How well a map of the regimes keeps neighbourhoods, on rows behind the training."""

    method: str
    rows: int | None = Field(default=None, description="on how many rows; null: not recorded")
    trustworthiness: float
    continuity: float
    rand_index: float = Field(description="adjusted, of three clusters with the regime that came")
    stability: float | None = Field(description="adjusted Rand index of clusters from two halves of the training")


class DataFile(_Part):
    """A file the model was trained or judged on."""

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Training(_Part):
    """On what the shipped weights were fitted."""

    first: dt.date = Field(description="first target date")
    last: dt.date = Field(description="last target date")
    sessions: int = Field(ge=1)
    rows: int = Field(ge=1)
    seed: int
    method: str
    data: tuple[DataFile, ...]
    remarks: tuple[str, ...] = Field(default=(), description="what the figures do not say of themselves")


class Metric(_Part):
    """Mean errors of one output in one period and view, out of sample, against the baselines."""

    output: str
    measure: str = Field(description="what an error is, with its unit")
    model: str = Field(description="which of the methods is served")
    period: str
    view: str = Field(description="'all bars', a New York time of day, or a regime")
    sessions: int = Field(ge=1)
    errors: dict[str, float] = Field(description="mean error by method")
    best_baseline: str
    gain: float = Field(description="1 - error of the model / error of the best baseline")
    gain_low: float = Field(description="2.5 % quantile of the gain, bootstrap by session")
    gain_high: float = Field(description="97.5 % quantile")


class Calibration(_Part):
    """How often what was given a probability came: ten bins of equal count, out of sample."""

    output: str
    period: str
    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    error: float = Field(description="mean absolute difference of the two")


class Blanked(_Part):
    """The loss of what is served with a group of inputs missing as a whole, on the rows of the last period."""

    output: str
    inputs: str = Field(description="which inputs were missing")
    count: int = Field(ge=1, description="how many they are")
    loss: float
    whole: float = Field(description="the loss with all inputs, on the same rows")


class Parity(_Part):
    """The exported graph against what was trained, row by row at export."""

    rows: int = Field(ge=1)
    output: str = Field(description="the output that is furthest off")
    largest: float = Field(ge=0, description="its largest difference, as a share of its range over these rows")
    allowed: float = Field(gt=0, description="with more, nothing would have been written")


class SelfTest(_Part):
    """Rows the graph is asked at every load, and what it answered when it was exported."""

    inputs: tuple[tuple[float, ...], ...]
    outputs: tuple[tuple[float, ...], ...]
    relative_tolerance: float = Field(gt=0)
    absolute_tolerance: float = Field(default=0.0, ge=0)


class Manifest(_Part):
    """``NAME.manifest.json``."""

    format: Literal["mia-model/2"]
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    version: str
    target: str
    inputs: tuple[Input, ...] = Field(min_length=1)
    outputs: tuple[Output, ...] = Field(min_length=1)
    schema_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    graph_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    opset: int
    versions: dict[str, str]
    training: Training
    self_test: SelfTest
    metrics: tuple[Metric, ...]
    memory: Memory | None = None
    chosen: Chosen | None = None
    calibration: tuple[Calibration, ...] = ()
    maps: tuple[MapQuality, ...] = ()
    map_inputs: tuple[str, ...] = Field(default=(), description="which of the inputs the map reads")
    blanked: tuple[Blanked, ...] = ()
    parity: Parity | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Manifest:
        if len(set(self.features)) != len(self.features):
            raise ValueError("an input is listed twice")
        if self.schema_sha256 != schema_sha256(self.features, self.output_names):
            raise ValueError("schema_sha256 is not the hash of the listed inputs and outputs: the list was edited")
        known = {part.group for part in self.outputs} | ({self.memory.group} if self.memory else set())
        for part in self.inputs:
            unknown = [name for name in part.groups or () if name not in known]
            if unknown:
                raise ValueError(f"the input {part.name!r} names a group that no output has: {unknown[0]!r}")
        if self.memory and len({state.name for state in self.memory.states}) != len(self.memory.states):
            raise ValueError("a state is listed twice")
        rows, answers = self.self_test.inputs, self.self_test.outputs
        if (
            not rows
            or len(rows) != len(answers)
            or any(len(row) != len(self.inputs) for row in rows)
            or any(len(row) != len(self.outputs) for row in answers)
        ):
            raise ValueError("self_test does not have one answer of the listed width for each row of inputs")
        return self

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the inputs, in the order of the graph's columns."""
        return tuple(part.name for part in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the order of the graph's columns."""
        return tuple(part.name for part in self.outputs)


def schema_sha256(features: Sequence[str], outputs: Sequence[str]) -> str:
    """SHA-256 over the ordered names of inputs and outputs."""
    text = json.dumps({"features": list(features), "outputs": list(outputs)}, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def graph_path(directory: Path, name: str) -> Path:
    """The graph of the model ``name`` in ``directory``."""
    return directory / f"{name}.onnx"


def manifest_path(directory: Path, name: str) -> Path:
    """The manifest of the model ``name`` in ``directory``."""
    return directory / f"{name}.manifest.json"


def read(directory: Path, name: str) -> Manifest:
    """Read and check the manifest of the model ``name``.

    Raises
    ------
    ModelError
        The file is missing, unreadable, not JSON, of another format, or contradicts itself.
    """
    path = manifest_path(directory, name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"the manifest cannot be read ({error})",
            where=str(path),
            hint=f"a model is {name}.onnx with {name}.manifest.json beside it; restore both, or train again",
            then=THEN,
        ) from error
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ModelError(
            f"the manifest is not JSON: {error}", where=str(path), hint="restore it from where it came", then=THEN
        ) from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ModelError(
            f"the manifest has format {found!r}, this version reads {FORMAT!r}",
            where=str(path),
            hint="train or export the model again with this version",
            then=THEN,
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'manifest'}: {fault['msg']}"
            for fault in error.errors()[:3]
        )
        raise ModelError(
            f"the manifest does not fit its format: {faults}",
            where=str(path),
            hint="restore it, or export the model again; manifests are not edited by hand",
            then=THEN,
        ) from None
    if manifest.name != name:
        raise ModelError(
            f"the manifest describes {manifest.name!r}, not {name!r}",
            where=str(path),
            hint="a manifest keeps the name of its model; do not rename the files",
            then=THEN,
        )
    return manifest
