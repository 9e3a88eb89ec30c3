"""What every computed column says of itself, and how long it takes to have a value: kernels lower these rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from mia_fast.config import Model

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


Rows = Sequence[Column]

DAY = 24 * 60
"""Minutes."""


def period(column: Column, name: str = "period") -> int:
    """A whole-number parameter of a row, already checked."""
    return int(column.params[name])
