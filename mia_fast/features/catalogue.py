"""The catalogue: what each feature is, read from ``config/feature_sets.yaml`` and nowhere else."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from mia_fast.config import Model, load
from mia_fast.features.kernels import Kernel, find
from mia_fast.features.rows import Column, Name, WarmupField
from mia_fast.workspace import Workspace

TABLES: Final = ("bars", "daily", "minute", "levels", "events", "models", "account", "memory")
"""Where an input may come from, in the order of a plan's inputs: a bar brings its own, the others are held."""

_NEEDS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "daily": {
        "last": (),
        "known_at": (),
        "change": (),
        "mean": ("period",),
        "deviation": ("period",),
        "log_return": ("period",),
        "correlation": ("period", "other"),
        "stress_correlation": ("period", "other"),
    },
    "minute": {"close": (), "volume": ()},
    "events": {
        "next_at": (),
        "next_impact": (),
        "previous_at": (),
        "previous_impact": (),
        "next_high_at": (),
        "previous_high_at": (),
        "started_in_bar": (),
        "count_last": ("minutes",),
        "count_next": ("minutes",),
        "impact_last": ("minutes",),
        "impact_next": ("minutes",),
    },
}
"""Table -> statistic -> what its row must say besides; and nothing else."""

_STAGE: Final = {"models": 2, "account": 3, "memory": 3}
"""Tables whose columns are made after the market's."""

_FEWEST: Final = {"deviation": 2, "correlation": 3, "stress_correlation": 10}


class InputColumn(Model):
    """A column that market data must bring for some features, as of each bar's close.

    ``table`` says where it comes from; the further keys belong to it (docs/decisions/0034-inputs-as-of-the-bar.md):

    * ``bars`` - a column of the bars, under this name.
    * ``daily`` - ``statistic`` over the daily closes of ``series``, each counting from its own close on: ``last``,
      ``known_at``, ``change``; ``mean``, ``deviation`` (divided by n), ``log_return`` over ``period`` closes;
      ``correlation`` of the daily log returns with those of ``with`` over the last ``period`` common dates;
      ``stress_correlation``, the same over those of them with a VIX above its mean.
    * ``minute`` - the last ``close`` or ``volume`` of ``series`` within five minutes.
    * ``levels`` - a ``field`` of the option levels, by default the input's own name; prices on the future's scale.
    * ``events`` - ``statistic`` of the macro calendar; counts and sums over ``minutes``.
    * ``models``, ``account``, ``memory`` - brought by the caller: a column of the frame, or ``hold`` live.
    """

    model_config = ConfigDict(populate_by_name=True)  # ``with`` is no name for an attribute

    name: Name
    table: Literal["bars", "daily", "minute", "levels", "events", "models", "account", "memory"] = Field(
        description="the input table that holds it"
    )
    unit: str
    meaning: str
    series: str | None = Field(default=None, min_length=1, description="symbol in the cross table")
    statistic: str | None = Field(default=None, description="what is taken of a series or of the calendar")
    period: int | None = Field(default=None, ge=1, le=2000, description="daily closes, or returns")
    minutes: int | None = Field(default=None, ge=1, le=43_200, description="length of a window of events")
    other: str | None = Field(default=None, alias="with", min_length=1, description="series to correlate with")
    field: str | None = Field(default=None, description="of the option levels; default: the input's name")

    @model_validator(mode="after")
    def _fits_its_table(self) -> InputColumn:
        needed: set[str] = {"series"} if self.table in ("daily", "minute") else set()
        allowed: set[str] = {"field"} if self.table == "levels" else set()
        if self.table in _NEEDS:
            statistics = _NEEDS[self.table]
            if self.statistic not in statistics:
                raise ValueError(f"{self.name}: table {self.table!r} has the statistics {', '.join(statistics)}")
            needed |= {"statistic", *statistics[self.statistic]}
        for key in ("series", "statistic", "period", "minutes", "other", "field"):
            label = "with" if key == "other" else key
            given = getattr(self, key) is not None
            if key in needed and not given:
                raise ValueError(f"{self.name}: {self.statistic or self.table} needs {label!r}")
            if given and key not in needed | allowed:
                raise ValueError(f"{self.name}: {label!r} does not belong to {self.statistic or self.table}")
        fewest = _FEWEST.get(self.statistic or "", 1)
        if self.period is not None and self.period < fewest:
            raise ValueError(f"{self.name}: {self.statistic} needs a period of at least {fewest}")
        return self

    @property
    def origin(self) -> str:
        """Where the values come from, for people: ``daily: VIX``, ``levels``, ``bars``."""
        series = [name for name in (self.series, self.other) if name is not None]
        return f"{self.table}: {', '.join(series)}" if series else self.table


class Feature(Column):
    """One of the features: a computed column with its contract."""

    family: str
    stage: Literal[1, 2, 3] = Field(
        default=1,
        description="1 computed from market inputs; 2 by frozen models that read stage 1; 3 from account and memory",
    )
    unit: str
    range: tuple[float | None, float | None] = Field(description="closed; null is unbounded")
    warmup: WarmupField = Field(description="checked against what the plan derives")
    missing: Literal["pointwise", "forgets", "keeps", "skips", "passes", "by_key", "holds"] | None = Field(
        default=None, description="what becomes of a missing input (docs/features.md); the plan derives and checks it"
    )
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
    refused: dict[Name, str] = Field(
        default_factory=dict, description="names of the vocabulary that are not features, each with the reason"
    )
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
        both = sorted(self.refused.keys() & set(names))
        if both:
            raise ValueError(f"both declared and refused: {', '.join(both)}")
        late = {c.name: stage for c in self.inputs for stage in (_STAGE.get(c.table),) if stage is not None}
        for feature in self.features:
            stages = {late.get(name, 1) for name in feature.inputs}
            if feature.kernel == "column" and stages != {feature.stage}:
                raise ValueError(f"{feature.name!r} says stage {feature.stage}, its input is of stage {stages.pop()}")
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
        inputs = [c.model_dump_json(exclude={"unit", "meaning"}) for c in self.inputs if c.table != "bars"]
        rows = inputs + [c.model_dump_json(include=_DECIDES) for c in (*self.auxiliary, *self.features)]
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
