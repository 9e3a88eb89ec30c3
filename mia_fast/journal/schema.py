"""Every table of the journal, declared once: columns, key, export file and the order of its columns.

Adding a table or a column here is all it takes: the segment files, the DuckDB schema (an older
database gains the new columns when it is opened) and the CSV exports follow from it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from mia_fast.errors import JournalError

LATEST_NS: Final = 9_214_646_400_000_000_000
"""2262-01-01: the end of what a 64-bit count of nanoseconds holds."""


def json_writer(*, sort_keys: bool, allow_nan: bool) -> Callable[[Any], str]:
    """``JSONEncoder.encode``, compact, without the new C encoder that makes at each call: a third of a short row."""
    encoder = json.JSONEncoder(
        ensure_ascii=False, allow_nan=allow_nan, sort_keys=sort_keys, separators=(",", ":"), check_circular=False
    )
    make: Any = json.encoder.c_make_encoder  # type: ignore[attr-defined] # None where there is no C encoder
    if make is None:
        return encoder.encode
    text = json.encoder.encode_basestring
    write = make(None, encoder.default, text, None, ":", ",", sort_keys, False, allow_nan)
    return lambda value: "".join(write(value, 0))


_TO_JSON: Final = json_writer(sort_keys=True, allow_nan=False)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a column holds.

    Attributes
    ----------
    duckdb
        The DuckDB type.
    exact
        Values of exactly this Python type are stored as they are; None: always convert.
    convert
        Turns an acceptable value into the stored one; raises TypeError or ValueError otherwise.
    csv
        How the export writes it.
    """

    duckdb: str
    exact: type | None
    convert: Callable[[Any], Any]
    csv: str


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    kind: Kind
    required: bool = False


@dataclass(frozen=True, slots=True)
class Export:
    """A CSV file below ``data``, its columns in order.

    With ``split`` there is one file for each value of that column, and ``path`` is a template;
    ``special`` names the values whose file is called otherwise.
    """

    path: str
    columns: tuple[str, ...]
    split: str | None = None
    special: Mapping[str, str] = field(default_factory=dict)

    def path_of(self, value: str) -> str:
        """The file of one value of the splitting column."""
        return self.special.get(value) or self.path.format(value)


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes
    ----------
    key
        A row in which none of these columns is null is stored once: appending the same row again
        changes nothing, another row under the same key is refused (an alert keeps it). Rows
        without a full key are never compared.
    audit
        Audit rows are never dropped: their caller waits. Other rows may be sampled; the count is kept.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    audit: bool = True
    export: Export | None = None

    def __post_init__(self) -> None:
        plan = {c.name: (k, c.kind.exact, c.kind.convert) for k, c in enumerate(self.columns)}
        object.__setattr__(self, "_plan", plan)
        object.__setattr__(self, "names", tuple(c.name for c in self.columns))
        needed = tuple((k, c.name) for k, c in enumerate(self.columns) if c.required)
        object.__setattr__(self, "_needed", needed)
        texts = tuple(k for k, c in enumerate(self.columns) if c.kind is JSON)
        object.__setattr__(self, "_texts", texts)
        seen = [k for k, c in enumerate(self.columns) if c.kind is FEATURES]
        hashes = tuple((k, seen[0]) for k, c in enumerate(self.columns) if c.kind is HASH)
        object.__setattr__(self, "_hashes", hashes)
        object.__setattr__(self, "_sound", set())

    names: tuple[str, ...] = field(init=False)
    _texts: tuple[int, ...] = field(init=False, repr=False)
    _hashes: tuple[tuple[int, int], ...] = field(init=False, repr=False)
    _sound: set[tuple[type, ...]] = field(init=False, repr=False)
    _plan: dict[str, tuple[int, type | None, Callable[[Any], Any]]] = field(init=False, repr=False)
    _needed: tuple[tuple[int, str], ...] = field(init=False, repr=False)

    def values(self, row: Mapping[str, Any]) -> list[Any]:
        """The row's values in the order of the columns, checked and converted; absent ones are None.

        A dictionary of numbers in a JSON column stays one, and the bytes of a hash stay bytes, until :meth:`settled`:
        text and hash cost more than all the rest.

        Raises
        ------
        JournalError
            A column is unknown, a required one is missing, or a value does not fit its type.
        """
        out: list[Any] = [None] * len(self.names)
        plan = self._plan
        for name, value in row.items():  # over what was given: a bare decision has 5 of 18 columns
            try:
                place, exact, convert = plan[name]
            except KeyError:
                near = difflib.get_close_matches(str(name), self.names, n=1)
                raise JournalError(
                    f"there is no column {name!r}",
                    where=f"a row for {self.name}",
                    hint=f"did you mean {near[0]!r}?" if near else f"the columns are {', '.join(self.names)}",
                    then="the row was not accepted",
                ) from None
            if type(value) is exact or value is None:
                out[place] = value
                continue
            try:
                out[place] = convert(value)
            except (TypeError, ValueError, OverflowError) as error:
                raise JournalError(
                    f"{name} = {value!r} does not fit: {error}",
                    where=f"a row for {self.name}",
                    hint="pass a value of the column's type",
                    then="the row was not accepted",
                ) from None
        for place, name in self._needed:
            if out[place] is None:
                raise JournalError(
                    f"{name} is missing",
                    where=f"a row for {self.name}",
                    hint=f"give {name}; a row needs {', '.join(c.name for c in self.columns if c.required)}",
                    then="the row was not accepted",
                )
        return out

    def in_order(self, values: list[Any]) -> list[Any]:
        """As :meth:`values`, for one value of every column in the order of the columns; made for the hot path.

        Rows whose values have the types of an earlier, sound row are not looked at one by one: what a type does not
        say (an instant between 1970 and 2262, a decision that is one) is then the caller's to know.

        Raises
        ------
        JournalError
            A required value is missing, or a value does not fit its type.
        """
        types = tuple(map(type, values))
        if types not in self._sound:
            values = self.values(dict(zip(self.names, values, strict=True)))
            if tuple(map(type, values)) == types:
                self._sound.add(types)
            return values
        for place in self._texts:
            value = values[place]
            if value is not None:
                try:
                    values[place] = _json(value)
                except (TypeError, ValueError):
                    return self.values(dict(zip(self.names, values, strict=True)))  # which says what is wrong
        return values

    def settled(self, columns: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        """The columns of some rows with what :meth:`values` left to do: the text of dictionaries, and the hashes.

        A hash is SHA-256 over the features seen and then the bytes given for it; text is a hash that the caller made.
        """
        out = list(columns)
        for place in self._texts:
            out[place] = [_flat(value) if type(value) is dict else value for value in out[place]]
        for place, seen in self._hashes:
            out[place] = [
                hashlib.sha256((features or b"") + given).hexdigest() if type(given) is bytes else given
                for given, features in zip(out[place], out[seen], strict=True)
            ]
        return out


def to_json(value: Any) -> str:
    """Canonical JSON text: sorted keys, no spaces, shortest floats.

    JSON has no NaN and no infinity: they become ``null``, because a line of the audit trail must
    not be refused for the odd number it reports. Text passes through if it is JSON.
    """
    if isinstance(value, str):
        json.loads(value)
        return value
    try:
        return _TO_JSON(value)
    except (TypeError, ValueError):
        return _TO_JSON(_plain(value))


def _json(value: Any) -> Any:
    """A flat dictionary of floats as it is, for JSON can hold it whatever they are; else the text."""
    return value if is_flat(value) else to_json(value)


def is_flat(value: Any) -> bool:
    """Is it a dictionary of floats by names?"""
    if type(value) is not dict:
        return False
    for key, item in value.items():  # noqa: SIM110 - a generator would cost twice as much
        if type(item) is not float or type(key) is not str:
            return False
    return True


_FLAT: Final[dict[tuple[str, ...], tuple[str, Callable[[Any], tuple[float, ...]]]]] = {}
"""By the keys of a dictionary: its text with places for the numbers, and what takes them out in that order."""


def _flat(value: dict[str, float]) -> str:
    """:func:`to_json` of a dictionary that :func:`_json` left, whose keys most often are those of the one before."""
    keys = tuple(value)
    made = _FLAT.get(keys)
    if made is None:
        if len(keys) < 2 or len(_FLAT) >= 64:
            return to_json(value)
        names = sorted(keys)
        text = ",".join(_TO_JSON(name).replace("%", "%%") + ":%r" for name in names)
        made = _FLAT[keys] = ("{" + text + "}", operator.itemgetter(*names))
    numbers = made[1](value)
    total = sum(numbers)
    return made[0] % numbers if total - total == 0.0 else to_json(value)  # NaN and infinities are null


def _plain(value: Any) -> Any:
    """The same value in what JSON knows."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _instant(value: Any) -> int:
    if type(value) is int and 0 <= value <= LATEST_NS:
        return value
    if isinstance(value, bool | np.bool_):
        raise TypeError("an instant is an int of nanoseconds since 1970-01-01 UTC")
    instant = operator.index(value)
    if not 0 <= instant <= LATEST_NS:
        raise ValueError("an instant lies between 1970 and 2262, in nanoseconds since 1970-01-01 UTC")
    return instant


def _integer(value: Any) -> int:
    if isinstance(value, bool | np.bool_):
        raise TypeError("a whole number is wanted")
    whole = operator.index(value)
    if not -(2**63) <= whole < 2**63:
        raise ValueError("beyond 64 bits")
    return whole


def _double(value: Any) -> float:
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        return float(value)
    raise TypeError("a number is wanted")


def _boolean(value: Any) -> bool:
    if isinstance(value, np.bool_):
        return bool(value)
    raise TypeError("True or False is wanted")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return str(value)
    raise TypeError("text is wanted")


def _identifier(value: Any) -> str:
    if isinstance(value, str) and value.isascii() and value.isidentifier():
        return str(value)
    raise ValueError("a name of letters, digits and underscores is wanted (it becomes part of a file name)")


def _hash(value: Any) -> str | bytes:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes):
        return value
    raise TypeError("a digest is wanted, or the bytes to be hashed")


def _features(value: Any) -> bytes:
    """float64, little-endian, in the order given: the order of the manifest when the engine calls."""
    if isinstance(value, bytes):
        if len(value) % 8:
            raise ValueError("the bytes are not whole float64 numbers")
        return value
    array = np.asarray(value, dtype="<f8")
    if array.ndim != 1:
        raise ValueError(f"one row of features is wanted, not the shape {array.shape}")
    return array.tobytes()


def _one_of(*choices: str) -> Kind:
    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)} is wanted")
        return str(value)

    return Kind("VARCHAR", None, convert, "text")


INSTANT: Final = Kind("TIMESTAMP_NS", None, _instant, "ISO-8601 UTC with microseconds, rounded down")
TEXT: Final = Kind("VARCHAR", str, _text, "text, quoted where needed")
NAME: Final = Kind("VARCHAR", None, _identifier, "text")
DOUBLE: Final = Kind(
    "DOUBLE", float, _double, "shortest text that reads back as the same number, as Python's repr; nan, inf"
)
BIGINT: Final = Kind("BIGINT", None, _integer, "digits")
BOOLEAN: Final = Kind("BOOLEAN", bool, _boolean, "true or false")
JSON: Final = Kind("VARCHAR", None, _json, "JSON text, quoted")
HASH: Final = Kind("VARCHAR", str, _hash, "text")
FEATURES: Final = Kind("BLOB", None, _features, "not exported")

DECISIONS: Final = ("buy", "sell", "exit", "hold")
"""What a policy can decide; anything else in the audit trail would be a slip of the caller."""

_RUN: Final = (Column("run_id", TEXT), Column("event_id", TEXT))
"""A replay names its run and each of its events, so that a resumed one doubles nothing."""

_TABLES: Final = (
    Table(
        "decisions",
        (
            Column("timestamp", INSTANT, required=True),
            Column("trade_id", TEXT, required=True),
            Column("decision", _one_of(*DECISIONS), required=True),
            Column("signal_score", DOUBLE, required=True),
            Column("regime_probs", JSON),
            Column("run_id", TEXT),
            Column("symbol", TEXT),
            Column("side", TEXT),
            Column("price", DOUBLE),
            Column("quantity", BIGINT),
            Column("verdict", _one_of("allow", "deny")),
            Column("code", TEXT),
            Column("detail", TEXT),
            Column("input_hash", HASH),
            Column("model_sha256", TEXT),
            Column("config_digest", TEXT),
            Column("context", FEATURES),
            Column("context_names", JSON),
            Column("feature_list", TEXT),
        ),
        key=("run_id", "trade_id"),
        export=Export(
            "logs/trading/decision_log.csv",
            ("timestamp", "trade_id", "decision", "signal_score", "regime_probs"),
        ),
    ),
    Table(
        "penalties",
        (
            Column("timestamp", INSTANT, required=True),
            Column("penalty_active", BOOLEAN, required=True),
            Column("overtrade_risk_score", DOUBLE),
            Column("code", TEXT),
            Column("detail", TEXT),
            *_RUN,
        ),
        key=("run_id", "event_id"),
        export=Export("logs/trading/penalty_log.csv", ("timestamp", "penalty_active", "overtrade_risk_score")),
    ),
    Table(
        "risk_snapshots",
        (
            Column("timestamp", INSTANT, required=True),
            Column("drawdown", DOUBLE),
            Column("overtrade_risk_score", DOUBLE),
            Column("penalty_active", BOOLEAN),
            Column("drawdown_limit", DOUBLE),
            Column("equity", DOUBLE),
            Column("peak_equity", DOUBLE),
            Column("latched", BOOLEAN),
            Column("code", TEXT),
            Column("detail", JSON),
            *_RUN,
        ),
        key=("run_id", "event_id"),
    ),
    Table(
        "verdicts",
        (
            Column("timestamp", INSTANT, required=True),
            Column("client_id", TEXT),
            Column("symbol", TEXT),
            Column("action", TEXT),
            Column("side", TEXT),
            Column("quantity", DOUBLE),
            Column("price", DOUBLE),
            Column("stop", DOUBLE),
            Column("reduce_only", BOOLEAN),
            Column("verdict", _one_of("allow", "deny"), required=True),
            Column("code", TEXT),
            Column("detail", TEXT),
            Column("reference", DOUBLE),
            Column("market_known_at", INSTANT),
            Column("prediction", DOUBLE),
            Column("equity", DOUBLE),
            Column("position", DOUBLE),
            Column("account", TEXT),
            Column("drawdown", DOUBLE),
            Column("drawdown_limit", DOUBLE),
            *_RUN,
        ),
        key=("run_id", "event_id"),
    ),
    Table(
        "levels",
        (
            Column("timestamp", INSTANT, required=True),
            Column("status", TEXT, required=True),
            Column("gamma_wall", DOUBLE),
            Column("call_wall", DOUBLE),
            Column("put_wall", DOUBLE),
            Column("zero_gamma", DOUBLE),
            Column("iv_atm", DOUBLE),
            Column("dealer_position_bias", DOUBLE),
            Column("path", TEXT),
            Column("detail", JSON),
            *_RUN,
        ),
        key=("run_id", "event_id"),
    ),
    Table(
        "trades",
        (
            Column("trade_id", TEXT, required=True),
            Column("timestamp", INSTANT, required=True),
            Column("entry_price", DOUBLE, required=True),
            Column("profit", DOUBLE, required=True),
            Column("regime_probs", JSON),
            Column("run_id", TEXT),
            Column("symbol", TEXT),
            Column("side", TEXT),
            Column("quantity", BIGINT),
            Column("exit_timestamp", INSTANT),
            Column("exit_price", DOUBLE),
            Column("fees", DOUBLE),
            Column("code", TEXT),
            Column("detail", JSON),
        ),
        key=("run_id", "trade_id"),
        export=Export(
            "trades/trades_simulated.csv", ("trade_id", "timestamp", "entry_price", "profit", "regime_probs")
        ),
    ),
    Table(
        "alerts",
        (
            Column("timestamp", INSTANT, required=True),
            Column("priority", BIGINT, required=True),
            Column("code", TEXT, required=True),
            Column("message", TEXT, required=True),
            Column("source", TEXT),
            Column("detail", JSON),
            *_RUN,
        ),
        key=("run_id", "event_id"),
    ),
    Table(
        "training",
        (
            Column("timestamp", INSTANT, required=True),
            Column("model", TEXT, required=True),
            Column("loss", DOUBLE),
            Column("cluster_id", BIGINT),
            Column("regime", TEXT),
            Column("step", BIGINT),
            Column("code", TEXT),
            Column("detail", JSON),
            *_RUN,
        ),
        key=("run_id", "event_id"),
    ),
    Table(
        "feature_lists",
        (
            Column("timestamp", INSTANT, required=True),
            Column("digest", TEXT, required=True),
            Column("names", JSON, required=True),
            Column("run_id", TEXT),
        ),
        key=("run_id", "digest"),
    ),
    Table(
        "telemetry",
        (
            Column("timestamp", INSTANT, required=True),
            Column("component", NAME, required=True),
            Column("operation", TEXT, required=True),
            Column("latency", DOUBLE, required=True),
            Column("success", BOOLEAN, required=True),
            Column("memory_usage_mb", DOUBLE),
            Column("cpu_percent", DOUBLE),
        ),
        audit=False,
        export=Export(
            "logs/{}_performance.csv",
            ("timestamp", "operation", "latency", "success", "memory_usage_mb", "cpu_percent"),
            split="component",
            special={"adaptive_learning": "logs/adaptive_learning.csv"},
        ),
    ),
)

TABLES: Final[Mapping[str, Table]] = {table.name: table for table in _TABLES}


def feature_list_digest(names: Sequence[str]) -> str:
    """How a decision's ``feature_list`` names the row of ``feature_lists`` that says what its context's numbers are."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def table_named(name: str) -> Table:
    """The table, or a JournalError that names the nearest one."""
    try:
        return TABLES[name]
    except KeyError:
        near = difflib.get_close_matches(str(name), TABLES, n=1)
        raise JournalError(
            f"there is no table {name!r}",
            where="the journal",
            hint=f"did you mean {near[0]!r}?" if near else f"the tables are {', '.join(TABLES)}",
            then="nothing was written",
        ) from None
