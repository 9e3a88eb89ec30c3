"""Loading a model: its files must be sound, and the workspace's catalogue must still compute its inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from mia_fast.features import catalogue as catalogues
from mia_fast.features.catalogue import Catalogue
from mia_fast.features.expression import parse
from mia_fast.features.kernels import find
from mia_fast.workspace import Workspace
from mia_models.errors import ModelError
from mia_models.session import OnnxModel


def load_model(workspace: Workspace, name: str, folder: Path) -> OnnxModel:
    """The model ``name`` of a folder, if it is sound and the workspace's catalogue still computes its inputs.

    Raises
    ------
    ModelError
        Its files are damaged or do not belong together, or the catalogue computes an input otherwise than in training.
    """
    model = OnnxModel.load(folder, name)
    _check_definitions(model, catalogues.read(workspace))
    return model


def definitions(catalogue: Catalogue, names: Sequence[str]) -> dict[str, str]:
    """A digest (16 hex digits) of all catalogue rows that decide the values of each named column.

    A column of the bars or of the calendar is decided by its name alone, an input of a slower table by its declaration
    too (series, statistic, period); a name that the catalogue does not know is left out.
    """
    columns = {column.name: column for column in (*catalogue.auxiliary, *catalogue.features)}
    inputs = {
        column.name: ""
        if column.table == "bars"
        else " " + column.model_dump_json(exclude={"name", "unit", "meaning"}, exclude_none=True)
        for column in catalogue.inputs
    }
    result = {}
    for name in names:
        if name not in columns and name not in inputs:
            continue
        seen: dict[str, str] = {}
        stack = [name]
        while stack:
            current = stack.pop()
            if current in seen:
                continue
            column = columns.get(current)
            if column is None or (current in inputs and column.kernel == "column"):
                seen[current] = f"input{inputs.get(current, '')}"
                continue
            seen[current] = column.model_dump_json(include={"kernel", "inputs", "params", "output", "expression"})
            kernel = find(column.kernel, catalogue.own)
            seen[current] += kernel.digest if kernel is not None else ""
            stack += _reads(column.expression, columns.keys() | inputs.keys()) if column.expression else column.inputs
        text = "\n".join(f"{key} {seen[key]}" for key in sorted(seen))
        result[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return result


def _reads(expression: str, known: set[str]) -> list[str]:
    """The catalogue's columns that a formula reads."""
    return [name for name in parse(expression, "formula").columns if name in known]


def _check_definitions(model: OnnxModel, catalogue: Catalogue) -> None:
    present = definitions(catalogue, model.features)
    changed = [
        part.name
        for part in model.manifest.inputs
        if part.definition and part.name in present and present[part.name] != part.definition
    ]
    if changed:
        raise ModelError(
            f"the catalogue computes {', '.join(changed)} otherwise than when {model.manifest.name!r} was trained",
            where="feature_sets.yaml",
            hint="restore these rows of the catalogue, or train the model again with it",
            then="the model was not loaded; nothing is predicted without it",
        )
