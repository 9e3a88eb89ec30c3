"""Configuration: YAML read with its line numbers, checked by pydantic, unknown keys refused.

Each room declares its own model next to the code that uses it and reads it with :func:`load`.
The desk-wide ``config/market_config.yaml`` is declared here.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError

from mia_fast.errors import ConfigError
from mia_fast.workspace import Workspace, shipped

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_THEN = "nothing was started; a present but invalid configuration is never replaced by a default"


def _strict_numbers(schema: Any) -> None:
    """Make every number and switch of a schema strict, and leave the rest: a list may still give a tuple."""
    if isinstance(schema, list | tuple):
        for part in schema:
            _strict_numbers(part)
    elif isinstance(schema, dict):
        if schema.get("type") in ("int", "float", "bool"):
            schema["strict"] = True
        for name, part in schema.items():
            if name not in ("metadata", "default"):
                _strict_numbers(part)


class Model(BaseModel):
    """The base of every configuration model: frozen, strict about unknown keys, finite numbers.

    Numbers and switches are taken for what they are: ``yes`` is no number, ``"0.05"`` is none either,
    and 1 is no switch. An integer may stand for a real number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        schema = handler(source)
        _strict_numbers(schema)
        return schema


M = TypeVar("M", bound=BaseModel)


class Instrument(Model):
    """The traded contract."""

    symbol: str = Field(description="root symbol of the traded future")
    tick_size: float = Field(gt=0, description="smallest price step, index points")
    point_value: float = Field(gt=0, description="USD per index point and contract")


class Account(Model):
    """The simulated account of a replay."""

    starting_equity: float = Field(gt=0, description="USD")
    contracts: int = Field(ge=1, description="contracts per trade")
    fee_per_side: float = Field(ge=0, description="USD per contract and side")
    slippage_ticks: float = Field(ge=0, description="ticks lost at each fill, against the next bar's open or the stop")


class MarketConfig(Model):
    """``config/market_config.yaml``."""

    instrument: Instrument
    account: Account
    max_drawdown: float = Field(gt=0, le=1, description="fraction of peak equity")
    latest_rows: int = Field(default=1440, ge=1, description="rows of features_latest.csv and its filtered copy")


def market(workspace: Workspace) -> MarketConfig:
    """The desk's ``market_config.yaml``."""
    return load(MarketConfig, workspace.config("market_config.yaml"))


def load(model: type[M], path: Path) -> M:
    """Read ``path`` into ``model``.

    Raises
    ------
    ConfigError
        The file is missing, unreadable, not YAML, or does not fit: with file, line and the nearest
        valid key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot be read ({error})", where=str(path), hint="restore the file or its permissions", then=_THEN
        ) from error
    parsed: M = _parse(model, text, path)
    return parsed


@functools.lru_cache(maxsize=64)
def _parse(model: type[M], text: str, path: Path) -> M:
    """The model of a file's text: parsed once for each content, because models are frozen."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(
            f"is not valid YAML: {getattr(error, 'problem', error)}",
            where=f"{path}{line}",
            hint="check indentation, colons and quotes on this line and the one above",
            then=_THEN,
        ) from error
    duplicate = _duplicate_key(node)
    if duplicate is not None:
        key, line_number = duplicate
        raise ConfigError(
            f"the key {key!r} stands twice", where=f"{path}:{line_number}", hint="keep one of the two", then=_THEN
        )
    try:
        return model.model_validate(content if content is not None else {})
    except ValidationError as error:
        raise _explain(error, model, node, path) from None


def misspelt(workspace: Workspace) -> list[tuple[Path, str]]:
    """Files in the workspace's ``config`` that are called almost like one that is read, and would be ignored."""
    known = sorted(path.name for path in (shipped() / "config").glob("*.yaml"))
    own = sorted((workspace.root / "config").glob("*.y*ml"))
    near = [(path, difflib.get_close_matches(path.name, known, n=1, cutoff=0.75)) for path in own]
    return [(path, names[0]) for path, names in near if path.name not in known and names]


def check_names(workspace: Workspace) -> None:
    """Refuse a workspace whose configuration would be ignored for a slip in a file's name.

    Raises
    ------
    ConfigError
        Names the file and the name it should have.
    """
    for path, name in misspelt(workspace):
        raise ConfigError(
            "this file is not read under its name",
            where=str(path),
            hint=f"did you mean {name!r}? Rename or remove it",
            then="nothing was started; the shipped file would have applied in silence",
        )


def digest(*paths: Path) -> str:
    """A short hash of configuration files, journalled with each decision."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode())
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def _explain(error: ValidationError, model: type[BaseModel], node: Any, path: Path) -> ConfigError:
    """Turn pydantic's report into one error with lines and suggestions; the first fault leads."""
    faults = []
    first_line = 0
    hint = None
    # A misspelt key shows up twice, as unknown and as missing: the unknown one is the one to mend.
    order = {"extra_forbidden": 0, "missing": 2}
    for fault in sorted(error.errors(), key=lambda fault: order.get(fault["type"], 1)):
        location = [part for part in fault["loc"] if not str(part).startswith("function-")]
        line = _line_of(node, location)
        first_line = first_line or line
        dotted = ".".join(str(part) for part in location) or "(the whole file)"
        if fault["type"] == "extra_forbidden":
            message = f"unknown key {dotted!r}"
            near = _nearest(str(location[-1]), model, location[:-1])
            hint = hint or (f"did you mean {near!r}?" if near else "remove it, or see the shipped file for the keys")
        elif fault["type"] == "missing":
            message = f"{dotted!r} is missing"
            hint = hint or (
                f"add {dotted!r}: a file applies whole. The shipped one, with units, is "
                f"{shipped() / 'config' / path.name}; `mia-fast config init {path.name}` copies it"
            )
        else:
            hint = hint or _hint(fault["type"], fault["input"])
            message = f"{dotted} = {fault['input']!r}: {fault['msg']}"
        faults.append(f"line {line}: {message}" if len(error.errors()) > 1 else message)
    return ConfigError("; ".join(faults), where=f"{path}:{first_line}", hint=hint or "correct the value", then=_THEN)


def _hint(kind: str, value: Any) -> str:
    """What to do about a value of the wrong kind."""
    if kind.startswith(("float_", "int_")) and isinstance(value, bool):
        return "YAML reads yes, no, on and off as switches: write the number"
    if kind.startswith(("float_", "int_")) and isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return "write a number"
        return "YAML reads this as text: write the number without quotes, and with its point and sign (1.0e-2)"
    if kind.startswith("int_") and isinstance(value, float):
        return "write a whole number without a point"
    if kind.startswith("bool_"):
        return "write true or false"
    return "correct the value"


def _line_of(node: Any, location: list[Any]) -> int:
    """The 1-based line of a value, or of the nearest parent that exists."""
    line = node.start_mark.line + 1 if node is not None else 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                return int(line)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            continue  # a union's tag in pydantic's location, not a place in the file
    return int(line)


def _duplicate_key(node: Any) -> tuple[str, int] | None:
    """YAML keeps the last of two equal keys in silence; a limit must not be overridden so."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                return str(key.value), key.start_mark.line + 1
            seen.add(key.value)
            found = _duplicate_key(value)
            if found:
                return found
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            found = _duplicate_key(item)
            if found:
                return found
    return None


def _nearest(key: str, model: type[BaseModel], parents: list[Any]) -> str | None:
    fields: set[str] = set()
    stack: list[Any] = [model]
    current: type[BaseModel] | None = model
    for part in parents:
        field = current.model_fields.get(str(part)) if current is not None else None
        if field is not None:
            current = _model_in(field.annotation)
    if current is not None:
        fields = set(current.model_fields)
    if not fields:  # inside a mapping of free keys: offer every key that exists anywhere
        while stack:
            item = stack.pop()
            for name, field in item.model_fields.items():
                fields.add(name)
                inner = _model_in(field.annotation)
                if inner is not None and inner is not item:
                    stack.append(inner)
    close = difflib.get_close_matches(key, sorted(fields), n=1, cutoff=0.5)
    return close[0] if close else None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside an annotation such as ``list[Model]`` or ``Model | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
