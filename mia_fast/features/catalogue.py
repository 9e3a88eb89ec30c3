"""The catalogue: what each feature is, read from ``config/feature_sets.yaml`` and nowhere else."""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, PrivateAttr, model_validator

from mia_fast.config import Model, load
from mia_fast.workspace import Workspace

if TYPE_CHECKING:
    from mia_fast.features.kernels import Kernel

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Warmup(Model):
    """How many rows, and how many whole sessions, pass before the first value."""

    rows: int = Field(default=0, ge=0)
    sessions: int = Field(default=0, ge=0)

    def __str__(self) -> str:
        parts = [f"{self.sessions} session{'s' * (self.sessions > 1)}"] if self.sessions else []
        parts += [f"{self.rows} row{'s' * (self.rows != 1)}"] if self.rows or not parts else []
        return ", ".join(parts)


def _parse_warmup(value: Any) -> Warmup:
    if isinstance(value, Warmup):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return Warmup(rows=value)
    match = re.fullmatch(r"(\d+) sessions?(?:, (\d+) rows?)?", str(value))
    if match is None:
        raise ValueError("write a number of rows, or '1 session', or '1 session, 20 rows'")
    return Warmup(sessions=int(match[1]), rows=int(match[2] or 0))


WarmupField = Annotated[Warmup, PlainValidator(_parse_warmup), PlainSerializer(str)]


class InputColumn(Model):
    """A column that market data must bring for some features."""

    name: Name
    table: Literal["bars", "cross"] = Field(description="the input table that holds it")
    unit: str
    meaning: str


class Column(Model):
    """A computed column: a kernel over other columns."""

    name: Name
    kernel: str
    inputs: tuple[Name, ...] = ()
    params: dict[str, float] = Field(default_factory=dict)
    output: str | None = Field(default=None, description="which output of a kernel that has several")
    expression: str | None = Field(default=None, description="for the kernel 'formula'")

    @model_validator(mode="after")
    def _formula_has_expression(self) -> Column:
        if (self.kernel == "formula") != (self.expression is not None):
            raise ValueError("the kernel 'formula' takes an 'expression', and only it does")
        if self.kernel == "formula" and (self.inputs or self.params):
            raise ValueError("a formula names its inputs and numbers in its expression")
        return self


class Feature(Column):
    """One of the features: a computed column with its contract."""

    family: str
    stage: Literal[1] = 1
    unit: str
    range: tuple[float | None, float | None] = Field(description="closed; null is unbounded")
    warmup: WarmupField = Field(description="checked against what the plan derives")
    definition: str = Field(min_length=8, description="one line: the formula in words or symbols")
    source: str = Field(min_length=4, description="paper, book or standard")
    waivers: dict[str, Annotated[str, Field(min_length=20)]] = Field(
        default_factory=dict, description="checks of mia-fast check-features that it cannot pass, each with the reason"
    )


class Catalogue(Model):
    """``config/feature_sets.yaml``: inputs, auxiliary columns and features."""

    kernels_from: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*\.py$",
        description="Python file beside this one that registers own kernels; it is executed",
    )
    inputs: tuple[InputColumn, ...]
    auxiliary: tuple[Column, ...]
    features: tuple[Feature, ...]
    _own: dict[str, Kernel] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Catalogue:
        seen: set[str] = set()
        for name in [*(c.name for c in self.inputs), *(c.name for c in self.auxiliary)]:
            if name in seen:
                raise ValueError(f"{name!r} is declared twice")
            seen.add(name)
        inputs = {c.name for c in self.inputs}
        for feature in self.features:
            # A raw input may appear among the features under its own name, as its own copy.
            if feature.name in seen and not (feature.name in inputs and feature.kernel == "column"):
                raise ValueError(f"{feature.name!r} is declared twice")
            if feature.name in seen and feature.inputs != (feature.name,):
                raise ValueError(f"the feature {feature.name!r} must be the input of that name")
            seen.add(feature.name)
        names = [f.name for f in self.features]
        if len(set(names)) != len(names):
            twice = sorted({n for n in names if names.count(n) > 1})
            raise ValueError(f"features declared twice: {', '.join(twice)}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The features in order: the columns of every feature file."""
        return tuple(feature.name for feature in self.features)

    @property
    def own(self) -> dict[str, Kernel]:
        """The kernels that the file ``kernels_from`` registers."""
        return self._own

    def with_kernels(self, own: dict[str, Kernel]) -> Catalogue:
        """The same catalogue with these kernels of its workspace."""
        copy = self.model_copy()
        copy._own = own
        return copy

    @property
    def digest(self) -> str:
        """A short hash of everything that decides a value."""
        from mia_fast.features.kernels import find

        own = [(name, find(name, self._own)) for name in self._kernels]
        registered = [f"{name} {kernel.digest}" for name, kernel in own if kernel is not None and kernel.digest]
        if not registered:
            return self._rows_digest
        return hashlib.sha256("\n".join([self._rows_digest, *registered]).encode()).hexdigest()[:16]

    @cached_property
    def _kernels(self) -> tuple[str, ...]:
        return tuple(sorted({column.kernel for column in (*self.auxiliary, *self.features)}))

    @cached_property
    def _rows_digest(self) -> str:
        rows = [c.model_dump_json(include=_DECIDES) for c in (*self.auxiliary, *self.features)]
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


_DECIDES = {"name", "kernel", "inputs", "params", "output", "expression"}


def read(workspace: Workspace) -> Catalogue:
    """The catalogue of this workspace, else the shipped one, with the kernels that its file registers."""
    return read_file(workspace.config("feature_sets.yaml"))


def files(workspace: Workspace) -> list[Path]:
    """What decides the catalogue of this workspace: its YAML, and the Python file that it names, if any."""
    path = workspace.config("feature_sets.yaml")
    named = load(Catalogue, path).kernels_from
    return [path] if named is None else [path, path.parent / named]


def read_file(path: Path) -> Catalogue:
    """The catalogue in ``path``, with the kernels that its ``kernels_from`` registers."""
    catalogue = load(Catalogue, path)
    if catalogue.kernels_from is None:
        return catalogue
    from mia_fast.features.own import load as load_kernels

    return catalogue.with_kernels(load_kernels(path.parent / catalogue.kernels_from, f"{path}: kernels_from"))
