"""Reads one of the input tables from a file or a frame, maps it, and applies the declared rules.

Faults of the whole input are refused with a :class:`~mia_fast.errors.DataError`. Faults of single rows are taken out
and listed in the quarantine. Nothing is sorted, filled in or guessed.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import difflib
import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mia_fast.errors import DataError
from mia_fast.tables import mapping as maps
from mia_fast.tables.live import PriceJumps
from mia_fast.tables.schema import (
    DTYPES,
    DUPLICATE,
    OVERLAP,
    PRICE_JUMP,
    REFUSALS,
    TABLES,
    Check,
    Column,
    TableSpec,
    checks,
)
from mia_fast.workspace import Workspace

_THEN = "the whole input was refused; nothing of it is used"
_ISO = r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?(Z|[+-]\d{2}:?\d{2})?$"
_OFFSET = r"(Z|[+-]\d{2}:?\d{2})$"
_DAY = r"^\d{4}-\d{2}-\d{2}$"
_PER_EPOCH_UNIT = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
_GAPS_TO_JUDGE = 30  # below this many gaps a sparse table of short bars can look like one of long bars
_EXAMPLES = 3  # faults quoted when an input is refused for their share

QUARANTINE_SCHEMA: dict[str, pl.DataType] = {
    "row": pl.Int64(),
    "column": pl.String(),
    "value": pl.String(),
    "rule": pl.String(),
    "hint": pl.String(),
}


@dataclass(frozen=True, slots=True)
class Table:
    """An input that passed.

    Attributes
    ----------
    kind
        One of the names in :data:`~mia_fast.tables.schema.TABLES`.
    frame
        Canonical columns: the required ones (``known_at`` after ``timestamp`` in bars), then the optional ones that are
        there, then the source's other numeric columns as they were. Instants Datetime("ns", "UTC"), prices and sizes
        Float64, one chunk, no nulls in the required columns.
    quarantine
        One line per row taken out: ``row`` (0-based in the source), ``column``, ``value``, ``rule``, ``hint``. A row
        that breaks several rules is listed under the first in declared order.
    source
        The file or the type of frame, for messages.
    notes
        What else was done to the input: rows filtered or skipped, names mapped, the interval of bars.
    interval_ns
        Length of the bars in nanoseconds; 0 of volume bars, which have no common one; None for other tables.
    rows
        Source row (0-based) of each row of ``frame``, (n,) int64; None where it is the row itself, or rows were merged.
    borrowed
        Columns lie in memory that its owner writes to in place, as a pandas frame's: what outlives the call copies
        them. Polars, Arrow and DuckDB never write to what they have given away; where such a frame was wrapped around a
        NumPy array, whoever writes to that array changes the frame and all that was selected from it.
    """

    kind: str
    frame: pl.DataFrame
    quarantine: pl.DataFrame
    source: str
    notes: tuple[str, ...] = ()
    interval_ns: int | None = None
    rows: NDArray[np.int64] | None = None
    borrowed: bool = False

    def report(self) -> str:
        """A few lines for a person: rows, quarantined rows by rule, what was mapped and left out."""
        lines = [f"{self.kind} from {self.source}: {self.frame.height:,} rows"]
        lines += [f"  quarantined {fault}" for fault in self.faults()]
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)

    def faults(self) -> list[str]:
        """For each broken rule how many rows, the first of them with its value, and what to do."""
        first = self.quarantine.group_by("rule", maintain_order=True).agg(pl.len(), pl.all().exclude("rule").first())
        return [
            f"{count:,}: {rule} (first: row {row}, {value if '=' in value else f'{column} = {value}'}; {hint})"
            for rule, count, row, column, value, hint in first.select(
                "rule", "len", "row", "column", "value", "hint"
            ).iter_rows()
        ]


def read_table(
    kind: str,
    source: Any,
    *,
    inputs: maps.InputsConfig | None = None,
    workspace: Workspace | None = None,
    carry: dict[Any, PriceJumps] | None = None,
) -> Table:
    """Read ``source`` as the table ``kind``.

    Parameters
    ----------
    kind
        ``bars``, ``trades``, ``book``, ``orders``, ``chain``, ``events`` or ``cross``.
    source
        A path to Parquet (``.parquet``, ``.pq``), CSV (``.csv``) or gzipped CSV (``.csv.gz``), or a frame that speaks
        the Arrow PyCapsule interface (Polars, pandas, pyarrow, a DuckDB relation). Float64 columns of a frame in one
        chunk are not copied unless rows are taken out.
    inputs
        The mapping; by default ``config/inputs.yaml`` of the workspace.
    workspace
        Where the mapping is looked for; by default the current one.
    carry
        For bars that are read block by block: what the rule against bad prints knows, by symbol. Empty before the first
        block, brought up to date by each.

    Raises
    ------
    DataError
        A fault of the whole input (``docs/tables.md`` lists them), with source, row, value and hint.
    ConfigError
        ``config/inputs.yaml`` is present but invalid.
    """
    spec = TABLES.get(kind)
    if spec is None:
        refusal = REFUSALS["kind_unknown"]
        near = difflib.get_close_matches(kind, TABLES, n=1)
        suggestion = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(
            f"{kind!r} is not an input table", where="read_table", hint=suggestion + refusal.hint, then=_THEN
        )
    config = inputs if inputs is not None else maps.inputs(workspace or Workspace.current())
    reader = _Reader(spec, config.of(kind), config.max_quarantined_share, _label(source), carry=carry)
    return dataclasses.replace(reader.read(reader.load(source)), borrowed=_is_borrowed(source))


def _is_borrowed(source: Any) -> bool:
    """Whether the memory of a source may be written to by others; see :class:`Table`."""
    lasting = ("polars", "pyarrow", "duckdb")
    return not isinstance(source, str | Path) and type(source).__module__.partition(".")[0] not in lasting


def published(day: pl.Expr, close: maps.Close) -> pl.Expr:
    """The instant (UTC) at which the value of a date is known."""
    if close.business_days_later:
        day = day.dt.add_business_days(close.business_days_later, roll="forward")
    return day_close(day, close)


def day_close(day: pl.Expr, close: maps.Close) -> pl.Expr:
    """The instant (UTC) at which a date ends by the clock of its symbol."""
    # Added to the local date before the zone is applied: wall time, also on days of 23 or 25 hours.
    local = day.cast(pl.Datetime("ns")) + pl.lit(close.offset(), dtype=pl.Duration("ns"))
    # A close in the hour that occurs twice counts from the later one; one that never occurs, an hour later.
    zoned = local.dt.replace_time_zone(close.zone, ambiguous="latest", non_existent="null")
    shifted = (local + pl.duration(hours=1, time_unit="ns")).dt.replace_time_zone(
        close.zone, ambiguous="latest", non_existent="null"
    )
    return zoned.fill_null(shifted).dt.convert_time_zone("UTC")


@dataclass(slots=True)
class _Reader:
    """One reading of one input: what is known so far, and how to refuse it."""

    spec: TableSpec
    mapping: maps.TableInput
    allowed_share: float
    source: str
    rows: pl.Series | None = None  # source row of each row left; None while none was dropped
    notes: list[str] = field(default_factory=list)
    carry: dict[Any, PriceJumps] | None = None

    # refusing

    def refuse(self, fault: str, what: str, *, position: int | None = None, key: str = "", extra: str = "") -> NoReturn:
        where = self.source if position is None else f"{self.source}, row {self.row(position)}"
        hint = REFUSALS[fault].hint.format(key=key)
        raise DataError(f"{what} [{fault}]", where=where, hint=f"{extra}{hint}", then=_THEN, reason=fault)

    def row(self, position: int) -> int:
        """The 0-based row of the source at ``position`` of the rows left."""
        return position if self.rows is None else int(self.rows[position])

    # reading

    def load(self, source: Any) -> pl.DataFrame:
        """The source as a Polars frame, without a copy where the source is a frame."""
        if isinstance(source, pl.DataFrame):
            return source
        is_path = isinstance(source, str | Path)
        if isinstance(source, pl.LazyFrame):
            self.refuse("unreadable", "a LazyFrame holds no rows yet", extra="call .collect() on it. Otherwise ")
        if isinstance(source, dict):
            self.refuse("unreadable", "a dict is no frame", extra="make one of it: polars.DataFrame(data). Otherwise ")
        if not is_path and not hasattr(source, "__arrow_c_stream__"):
            self.refuse("unreadable", f"{type(source).__name__} is neither a path nor a frame")
        name = Path(source).name.lower() if is_path else ""
        if is_path and not name.endswith((".parquet", ".pq", ".csv", ".csv.gz")):
            self.refuse("unreadable", f"{Path(source).suffix or 'no suffix'!r} is not a format that is read")
        if is_path and not Path(source).exists():
            self.refuse("not_found", "there is no such file")
        try:
            if not is_path:
                return pl.DataFrame(_Stream(source))
            if name.endswith((".parquet", ".pq")):
                return pl.read_parquet(source, glob=False)
            return pl.read_csv(source, infer_schema_length=None, glob=False)
        except (pl.exceptions.PolarsError, OSError, EOFError, UnicodeDecodeError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()
            self.refuse("unreadable", f"cannot be read ({reason[0] if reason else type(error).__name__})")

    def read(self, raw: pl.DataFrame) -> Table:
        if not raw.height:
            self.refuse("empty", "holds no rows")
        names = self.resolve(raw.columns)
        raw = self.keep(raw, names)
        frame = self.convert(raw, names)
        self.check_sorted(frame)
        first_broken, tested = self.broken(frame)
        broken = first_broken >= 0
        own = self.own_closes(raw, frame) if self.spec.kind == "bars" else None
        if broken.sum() > self.allowed_share * frame.height:  # what is left would say nothing of the interval
            self.quarantine(raw, frame, names, first_broken, tested, np.zeros(frame.height, np.int8), broken)
        interval_ns: int | None = None
        if own is not None:
            interval_ns = 0
            self.notes.append("bars without a common length, each with its own known_at")
            repeated = self.overlapping(frame, own, first_broken)
        else:
            interval_ns = self.interval(frame, first_broken) if self.spec.kind == "bars" else None
            repeated = self.repeated(frame, first_broken, interval_ns)
        if interval_ns is not None:
            repeated = self.jumps(frame, own, interval_ns, first_broken, repeated)
        bad = broken | (repeated > 0)
        quarantine = self.quarantine(raw, frame, names, first_broken, tested, repeated, bad)
        rows = None if self.rows is None else self.rows.cast(pl.Int64).to_numpy()
        if bad.any():
            frame = frame.filter(pl.Series(~bad))
            rows = np.flatnonzero(~bad) if rows is None else rows[~bad]
            own = None if own is None else own[~bad]
        if self.spec.kind == "cross":
            frame, rows = self.merge_sources(frame), None
        if own is not None:
            frame = frame.insert_column(1, pl.Series("known_at", own).cast(pl.Datetime("ns", "UTC")))
        elif interval_ns is not None:
            frame = self.known_at(frame, interval_ns)
        return Table(self.spec.kind, frame.rechunk(), quarantine, self.source, tuple(self.notes), interval_ns, rows)

    # names

    def resolve(self, columns: list[str]) -> dict[str, str]:
        """Canonical name -> the source's own, for each canonical column that is there."""
        present: dict[str, list[str]] = {}
        for name in columns:
            present.setdefault(name.strip().casefold(), []).append(name)
        found: dict[str, str] = {}
        missing: list[tuple[Column, str]] = []
        for column in self.spec.columns:
            key = f"{self.spec.kind}.columns.{column.name}"
            for canonical, others in maps.aliases(self.mapping, column.name, column.levels).items():
                own = present.get(canonical.casefold(), [])
                aliased = dict.fromkeys(name for other in others for name in present.get(other.casefold(), []))
                candidates = [canonical] if canonical in own else own or list(aliased)
                if len(candidates) > 1:
                    both = " and ".join(repr(name) for name in candidates)
                    self.refuse("column_ambiguous", f"{canonical!r} is present as {both}", key=key)
                if candidates:
                    found[canonical] = candidates[0]
                elif column.must_exist(canonical) and getattr(self.mapping.constants, column.name) is None:
                    missing.append((column, canonical))
        if missing:
            column, canonical = missing[0]
            one = f"the column {canonical!r} is missing"
            every = "the columns " + ", ".join(repr(name) for _, name in missing) + " are missing"
            self.refuse(
                "column_missing",
                f"{one if len(missing) == 1 else every}; the source has: {_some(columns)}",
                key=f"{self.spec.kind}.columns.{column.name}",
                extra=self.missing_hint(column, canonical, found, columns, len(missing)),
            )
        renamed = [f"{own} as {name}" for name, own in found.items() if own != name]
        if renamed:
            self.notes.append(f"read {_some(renamed)}")
        return found

    def missing_hint(
        self, column: Column, canonical: str, found: dict[str, str], columns: list[str], count: int
    ) -> str:
        """What else can be done about a missing column, beyond naming it."""
        if column.name == "volume":
            return "an index has no volume: say so with constants: {volume: 0.0} in its mapping. Otherwise "
        if column.name == "side":
            return "a feed that does not tell the aggressor: say so with constants: {side: 0}. Otherwise "
        if column.name == self.spec.clock and "event_time" in found:
            own = found["event_time"]
            return f"only the exchange's time {own!r} is there: move it from event_time to {column.name}. Otherwise "
        if column.name == self.spec.clock and "date" in columns:
            return "a date is not an instant: the file must give the time of day. Otherwise "
        if count > 1 and 2 * count >= len(self.spec.required()):  # one more name in the mapping will not do
            return f"is this a file of {self.spec.kind} at all? If it is, map each of these columns. The first: "
        free = [name for name in columns if name not in found.values()]
        near = difflib.get_close_matches(canonical, free, n=1, cutoff=0.75)
        return f"is it {near[0]!r}? " if near else ""

    # rows

    def keep(self, raw: pl.DataFrame, names: dict[str, str]) -> pl.DataFrame:
        """Drop the rows that the mapping's filters exclude and the bars without any trade."""
        mask: pl.Series | None = None
        for row_filter in self.mapping.filters:
            match = next((c for c in raw.columns if c.strip().casefold() == row_filter.column.casefold()), None)
            if match is None:
                continue
            wanted = [value.casefold() for value in row_filter.keep]
            text = raw[match].cast(pl.String).str.strip_chars().str.to_lowercase()
            stays = text.is_in(wanted).fill_null(True) | (text == "").fill_null(True)
            dropped = int((~stays).sum())
            if dropped:
                self.notes.append(f"left out {dropped:,} rows whose {match} is not {' or '.join(row_filter.keep)}")
            mask = stays if mask is None else mask & stays
        if getattr(self.mapping, "skip_empty", False):
            prices = [names[name] for name in ("open", "high", "low", "close") if name in names]
            if prices and all(raw[name].null_count() for name in prices):
                traded = raw.select(pl.any_horizontal(pl.col(prices).is_not_null())).to_series()
                if "volume" in names and raw.schema[names["volume"]].is_numeric():
                    traded |= (raw[names["volume"]] != 0).fill_null(False)  # volume without a price is a fault
                dropped = int((~traded).sum())
                if dropped:
                    self.notes.append(f"skipped {dropped:,} intervals without trades")
                mask = traded if mask is None else mask & traded
        if mask is None or mask.all():
            return raw
        self.rows = mask.arg_true()
        raw = raw.filter(mask)
        if not raw.height:
            self.refuse("empty", "no row is left after the filters of the mapping")
        return raw

    # types

    def convert(self, raw: pl.DataFrame, names: dict[str, str]) -> pl.DataFrame:
        """Canonical columns in canonical order and type, then the other numeric columns."""
        done: dict[str, pl.Series] = {}
        clock = self.spec.clock
        for name in self.spec.names():
            column = self.spec.column(name)
            if name in names:
                if self.spec.kind == "cross" and name == clock:
                    continue  # a date's instant depends on the symbol, which comes later
                done[name] = self.typed(column, raw[names[name]]).alias(name)
            elif (constant := getattr(self.mapping.constants, column.name)) is not None and name == column.names()[0]:
                done[name] = self.constant(column, name, constant, raw.height)
        if self.spec.kind == "cross":
            done[clock] = self.daily_or_instant(raw, names[clock], done["symbol"]).alias(clock)
        used = set(names.values())
        schema = raw.schema  # made anew at each access
        extras = [
            raw[name]
            for name in raw.columns
            if name not in used
            and schema[name].is_numeric()
            and name not in done
            and name != "known_at"
            and not name.startswith("__index_level_")  # pandas' unnamed index, not a column of the source
        ]
        return pl.DataFrame([done[name] for name in self.spec.names() if name in done] + extras)

    def constant(self, column: Column, name: str, value: float | str, height: int) -> pl.Series:
        if isinstance(value, str) != (column.type == "text"):
            self.refuse(
                "type_wrong", f"the constant {value!r} of {name!r} in the mapping is not {_article(column.type)}"
            )
        self.notes.append(f"{name} = {value} by the mapping")
        return pl.repeat(value, height, dtype=DTYPES[column.type], eager=True).alias(name)

    def typed(self, column: Column, values: pl.Series) -> pl.Series:
        if values.null_count() == values.len():  # a column without any value has whatever type its writer chose
            return pl.Series(values.name, [None] * values.len(), dtype=DTYPES[column.type])
        match column.type:
            case "instant":
                return self.instant(values)
            case "date":
                return self.date(values)
            case "text":
                return self.text(column, values)
            case "integer":
                return self.integer(values)
            case "side":
                numbers = self.real(column, values)
                sides = numbers.cast(pl.Int8, strict=False)
                return sides.set((sides.cast(pl.Float64) != numbers).fill_null(True), None)
            case _:
                return self.real(column, values)

    def wrong(self, values: pl.Series, wanted: str, position: int | None = None, extra: str = "") -> NoReturn:
        shown = "" if position is None else f": {_show(values[position])}"
        self.refuse(
            "type_wrong",
            f"the column {values.name!r} ({values.dtype}) cannot be read as {wanted}{shown}",
            position=position,
            extra=extra,
        )

    def words(self, column: Column) -> dict[str, float | str]:
        table: dict[str, float | str] = getattr(self.mapping.values, column.name)
        return {word.casefold(): meaning for word, meaning in table.items()}

    def real(self, column: Column, values: pl.Series) -> pl.Series:
        dtype = values.dtype
        if dtype == pl.Float64:
            return values
        if dtype.is_numeric():
            return values.cast(pl.Float64)
        if dtype in (pl.Categorical, pl.Enum):
            values = values.cast(pl.String)
        elif dtype != pl.String:
            self.wrong(values, "numbers")
        stripped = values.str.strip_chars()
        numbers = stripped.cast(pl.Float64, strict=False)
        words = self.words(column)
        if words:
            # A word that the mapping does not know is a fault of its row: it stays null and breaks the column's rule.
            meant = stripped.str.to_lowercase().replace_strict(words, default=None, return_dtype=pl.Float64)
            return numbers.fill_null(meant)
        unread = (numbers.is_null() & values.is_not_null() & (stripped != "")).arg_true()
        if unread.len():
            self.wrong(values, "numbers", int(unread[0]))
        return numbers

    def integer(self, values: pl.Series) -> pl.Series:
        """Whole numbers, exactly: identifiers are larger than a float holds."""
        if values.dtype != pl.String and not values.dtype.is_integer():
            self.wrong(values, "whole numbers")
        text = values.str.strip_chars() if values.dtype == pl.String else values
        numbers = text.cast(pl.Int64, strict=False)
        given = values.is_not_null() if values.dtype != pl.String else (text != "").fill_null(False)
        unread = (numbers.is_null() & given).arg_true()
        if unread.len():
            self.wrong(values, "whole numbers", int(unread[0]))
        return numbers

    def text(self, column: Column, values: pl.Series) -> pl.Series:
        dtype = values.dtype
        if not (dtype in (pl.String, pl.Categorical, pl.Enum) or dtype.is_integer()):
            self.wrong(values, "text")
        strings = values.cast(pl.String).str.strip_chars()
        words = self.words(column)
        if words:
            meant = strings.str.to_lowercase().replace_strict(words, default=None, return_dtype=pl.String)
            strings = meant.fill_null(strings)
        return strings.set((strings == "").fill_null(False), None)

    def date(self, values: pl.Series) -> pl.Series:
        dtype = values.dtype
        if dtype == pl.Date:
            return values
        if isinstance(dtype, pl.Datetime):  # pandas has no type for dates
            return values.dt.date()
        if dtype != pl.String:
            self.wrong(values, "dates")
        days = values.str.strip_chars().str.to_date("%Y-%m-%d", strict=False)
        unread = (days.is_null() & values.is_not_null() & (values != "")).arg_true()
        if unread.len():
            self.wrong(values, "dates (YYYY-MM-DD)", int(unread[0]))
        return days

    # instants

    def instant(self, values: pl.Series) -> pl.Series:
        dtype = values.dtype
        if isinstance(dtype, pl.Datetime):
            return self.to_utc(self.to_ns(values))
        if dtype.is_integer():
            return self.from_epoch(values)
        if dtype == pl.Date:
            self.wrong(values, "instants", 0, "a date is not an instant: add the time of day. ")
        if dtype != pl.String:
            self.wrong(values, "instants")
        return self.parsed(values)

    def to_ns(self, values: pl.Series) -> pl.Series:
        zone = cast(pl.Datetime, values.dtype).time_zone
        exact = values.cast(pl.Datetime("ns", zone), strict=False)
        lost = (exact.is_null() & values.is_not_null()).arg_true()
        if lost.len():
            self.wrong(values, "nanoseconds (years 1678 to 2261)", int(lost[0]))
        return exact

    def to_utc(self, values: pl.Series, original: pl.Series | None = None) -> pl.Series:
        """Instants in nanoseconds, with a zone or in the configured one, in UTC."""
        if cast(pl.Datetime, values.dtype).time_zone is not None:
            return values.dt.convert_time_zone("UTC")
        shown = values if original is None else original
        zone = self.mapping.zone
        if zone is None:
            self.refuse(
                "zone_missing",
                f"the instants of {values.name!r} have no time zone: {_show(shown[0])}",
                position=0,
                key=f"{self.spec.kind}.zone",
            )
        local = values.dt.replace_time_zone(zone, ambiguous="null", non_existent="null")
        lost = (local.is_null() & values.is_not_null()).arg_true()
        if lost.len():
            first = int(lost[0])
            self.refuse(
                "local_time_ambiguous",
                f"{values.name} {_show(shown[first])} occurs twice or never in {zone}",
                position=first,
            )
        return local.dt.convert_time_zone("UTC")

    def from_epoch(self, values: pl.Series) -> pl.Series:
        unit = self.mapping.epoch
        if unit is None:
            key = f"set {self.spec.kind}.epoch to s, ms, us or ns if they count from 1970. "
            self.wrong(values, "instants", 0, key)
        factor = _PER_EPOCH_UNIT[unit]
        whole = values.cast(pl.Int64, strict=False)
        limit = (2**63 - 1) // factor
        outside = ((whole.is_null() & values.is_not_null()) | (whole.abs() > limit).fill_null(False)).arg_true()
        if outside.len():
            self.wrong(values, f"instants in {unit}", int(outside[0]))
        return (whole * factor).cast(pl.Datetime("ns", "UTC"))

    def parsed(self, values: pl.Series) -> pl.Series:
        """Text instants: ISO-8601, or the mapping's ``time_format``."""
        text = values.str.strip_chars()
        given = (text != "").fill_null(False)
        if self.mapping.time_format is not None:
            moments = text.str.to_datetime(self.mapping.time_format, time_unit="ns", strict=False)
            wanted = f"instants in the format {self.mapping.time_format!r}"
            return self.to_utc(self.all_read(moments, values, given, wanted), values)
        iso = text.str.contains(_ISO).fill_null(False)
        unread = (given & ~iso).arg_true()
        if unread.len():
            extra = "write ISO-8601 (2025-05-13T14:00:00Z), or set time_format in the mapping. "
            self.wrong(values, "instants", int(unread[0]), extra)
        zoned = text.str.contains(_OFFSET).fill_null(False)
        text = text.str.replace(" ", "T", literal=True).str.replace(",", ".", literal=True)
        text = text.str.replace(r"(T\d{2}:\d{2})(Z|[+-]|$)", "${1}:00${2}")
        text = text.str.replace(r"([+-]\d{2})(\d{2})$", "${1}:${2}")
        if zoned.any():
            bare = (given & ~zoned).arg_true()
            if bare.len():
                first = int(bare[0])
                self.refuse(
                    "zone_missing",
                    f"{values.name} {_show(values[first])} has no offset, others of the column have one",
                    position=first,
                    key=f"{self.spec.kind}.zone (and write all instants in that style)",
                )
            moments = text.str.to_datetime("%+", time_unit="ns", time_zone="UTC", strict=False)
            return self.all_read(moments, values, given, "instants")
        moments = (text + "Z").str.to_datetime("%+", time_unit="ns", time_zone="UTC", strict=False)
        return self.to_utc(self.all_read(moments, values, given, "instants").dt.replace_time_zone(None), values)

    def all_read(self, moments: pl.Series, values: pl.Series, given: pl.Series, wanted: str) -> pl.Series:
        unread = (moments.is_null() & given).arg_true()
        if unread.len():
            self.wrong(values, wanted, int(unread[0]))
        return moments

    def daily_or_instant(self, raw: pl.DataFrame, clock: str, symbols: pl.Series) -> pl.Series:
        """The clock of ``cross``: an instant, or the close of the day that the source names."""
        values = raw[clock]
        dtype = values.dtype
        days: pl.Series | None = None
        if dtype == pl.Date:
            days = values
        elif dtype == pl.String and values.drop_nulls().str.contains(_DAY).all():
            days = self.date(values)
        elif isinstance(dtype, pl.Datetime) and dtype.time_zone is None and _midnights(values):
            # Dates of a program that has only instants. Taken as midnights they would be known before their close.
            days = values.dt.date()
        if days is None:
            instants = self.instant(values)
            if {"open", "high", "low"}.isdisjoint(name.lower() for name in raw.columns):
                return instants
            return self.closes_of_bars(instants)
        daily = cast(Any, self.mapping).daily
        self.notes.append(f"{values.name}: each value is known at the close of its day")
        day, symbol = pl.col("day"), pl.col("symbol")
        known = published(day, daily.default)
        for close in daily.closes:
            known = pl.when(symbol.is_in(close.symbols)).then(published(day, close)).otherwise(known)
        return pl.DataFrame({"day": days, "symbol": symbols}).select(known.alias(values.name)).to_series()

    def closes_of_bars(self, stamps: pl.Series) -> pl.Series:
        """When the closes of bars among ``cross`` are known: a start that was taken for it would look ahead."""
        mapping = cast(Any, self.mapping)
        if mapping.stamp is None:
            self.refuse("stamp_unknown", f"{stamps.name!r} may mark the start or the end of a bar", key="cross.stamp")
        if mapping.stamp == "end":
            return stamps
        self.notes.append(f"bars of {mapping.interval}, each close known at its bar's end")
        return stamps + dt.timedelta(microseconds=maps.duration_ns(mapping.interval) // 1000)

    # rules

    def series_of(self, frame: pl.DataFrame) -> list[str]:
        return [name for name in self.spec.series if name in frame.columns]

    def check_sorted(self, frame: pl.DataFrame) -> None:
        clock = self.spec.clock
        if not frame[clock].null_count() and frame[clock].is_sorted():
            return
        series = self.series_of(frame)
        before = pl.col(clock).shift(1)
        known = frame.select(clock, *series).with_row_index("position").drop_nulls(clock)
        backward = known.with_columns((before.over(series) if series else before).alias("before")).filter(
            pl.col(clock) < pl.col("before")
        )
        if backward.height:
            first = backward.row(0, named=True)
            of = "".join(f" of {first[name]}" for name in series)
            self.refuse(
                "unsorted",
                f"{clock} {_show(first[clock])}{of} comes after {_show(first['before'])}",
                position=int(first["position"]),
                key=", ".join([*series, clock]),
            )

    def broken(self, frame: pl.DataFrame) -> tuple[np.ndarray, tuple[Check, ...]]:
        """For each row the index of the first rule it breaks, or -1; and the rules."""
        tested = tuple(c for c in _checks(self.spec.kind) if set(c.columns) <= set(frame.columns))
        conditions = [_condition(check) for check in tested]
        passed = frame.select(c.all().alias(str(i)) for i, c in enumerate(conditions)).row(0)
        first_broken = np.full(frame.height, -1, np.int16)
        for index, whole in enumerate(passed):
            if not whole:
                holds = frame.select(conditions[index].alias("holds")).to_series().to_numpy()
                first_broken[~holds & (first_broken < 0)] = index
        return first_broken, tested

    def interval(self, frame: pl.DataFrame, first_broken: np.ndarray) -> int:
        """The length of the bars: of the configured ones that which the most gaps have."""
        bars = cast(Any, self.mapping)
        lengths: tuple[int, ...] = bars.intervals_ns()
        gaps = self.gaps(frame.filter(pl.Series(first_broken < 0)) if (first_broken >= 0).any() else frame)
        counts = [int((gaps == length).sum()) for length in lengths]
        chosen = counts.index(max(counts))
        positive = gaps.filter(gaps > 0)
        if not (positive <= lengths[chosen]).any():
            if positive.len() >= _GAPS_TO_JUDGE:
                self.refuse(
                    "interval_mismatch",
                    f"the interval is {bars.interval[chosen]}, but no two bars are closer than "
                    f"{cast(int, positive.min()) / 1e9:g} s",
                )
            self.notes.append(
                f"too few bars ({frame.height}) to prove that they are {bars.interval[chosen]} long: "
                "bars.interval of config/inputs.yaml is believed"
            )
        self.notes.append(f"bars of {bars.interval[chosen]}, stamped at their {bars.stamp}")
        return lengths[chosen]

    def gaps(self, frame: pl.DataFrame) -> pl.Series:
        """Nanoseconds from each bar's stamp to that of the bar before it in its series; null at the first."""
        gap = pl.col(self.spec.clock).diff()
        series = self.series_of(frame)
        return frame.select((gap.over(series) if series else gap).dt.total_nanoseconds()).to_series()

    def repeated(self, frame: pl.DataFrame, first_broken: np.ndarray, interval_ns: int | None) -> np.ndarray:
        """1 where a good row repeats the key of an earlier good row, 2 where a bar overlaps one, else 0."""
        result = np.zeros(frame.height, np.int8)
        unique = [name for name in self.spec.unique if name in frame.columns]
        if not unique:
            return result
        good = np.flatnonzero(first_broken < 0)
        if good.size < frame.height:
            frame = frame.filter(pl.Series(first_broken < 0))
        if interval_ns is None:
            again = ~frame.select(pl.struct(unique).is_first_distinct()).to_series().to_numpy()
            result[good[again]] = 1
            return result
        if not (self.gaps(frame) < interval_ns).any():
            return result
        # As in the live path, a bar is measured against the last one that was accepted, not the last that came.
        stamps = frame[self.spec.clock].dt.epoch("ns").to_list()
        symbols: Iterable[Any] = frame["symbol"].to_list() if "symbol" in frame.columns else [None] * frame.height
        accepted: dict[Any, int] = {}
        for position, (stamp, symbol) in enumerate(zip(stamps, symbols, strict=True)):
            last = accepted.get(symbol)
            if last is None or stamp - last >= interval_ns:
                accepted[symbol] = stamp
            else:
                result[good[position]] = 1 if stamp == last else 2
        return result

    def own_closes(self, raw: pl.DataFrame, frame: pl.DataFrame) -> NDArray[np.int64] | None:
        """(n,) the closes that volume bars bring (ns UTC, the least int64 where there is none); None of other bars.

        Volume bars have no length that at least half of them share.
        """
        bars = cast(Any, self.mapping)
        name = next((c for c in raw.columns if c.strip().casefold() == "known_at"), None)
        if not bars.volume_bars or bars.stamp != "start" or name is None or raw[name].null_count() == raw.height:
            return None
        closes = self.instant(raw[name])
        lengths = frame.select((closes - pl.col(self.spec.clock)).alias("length"))["length"].drop_nulls()
        if lengths.is_empty() or 2 * cast(int, lengths.value_counts()["count"].max()) >= lengths.len():
            return None
        return closes.to_physical().fill_null(np.iinfo(np.int64).min).to_numpy()

    def overlapping(
        self, frame: pl.DataFrame, closes: NDArray[np.int64], first_broken: NDArray[Any]
    ) -> NDArray[np.int8]:
        """As :meth:`repeated`, of bars with their own closes: each begins when the last accepted one is over."""
        result = np.zeros(frame.height, np.int8)
        starts = frame[self.spec.clock].dt.epoch("ns").to_list()
        symbols: Iterable[Any] = frame["symbol"].to_list() if "symbol" in frame.columns else [None] * frame.height
        accepted: dict[Any, tuple[int, int]] = {}
        rows = zip(starts, closes.tolist(), symbols, (first_broken >= 0).tolist(), strict=True)
        for position, (start, close, symbol, broken) in enumerate(rows):
            if broken:
                continue
            began, ended = accepted.get(symbol, (-1, -1))
            if start == began:
                result[position] = 1
            elif close < start or start < ended or close <= ended:
                result[position] = 2
            else:
                accepted[symbol] = (start, close)
        return result

    def jumps(
        self,
        frame: pl.DataFrame,
        own: NDArray[np.int64] | None,
        interval_ns: int,
        first_broken: NDArray[Any],
        repeated: NDArray[np.int8],
    ) -> NDArray[np.int8]:
        """``repeated``, with 3 where a bar is a bad print.

        Where no bar jumps away from the one before it there is nothing to follow. Else every bar is followed, because a
        refused one is no measure for those behind it, neither of their price nor of their time.
        """
        config: maps.PriceJump = cast(Any, self.mapping).price_jump
        carry = self.carry if self.carry is not None else {}
        if config.limit is None:
            return repeated
        symbols = frame["symbol"] if "symbol" in frame.columns else None
        stamps = frame[self.spec.clock].dt.epoch("ns").to_numpy()
        good = np.flatnonzero((first_broken < 0) & (repeated == 0))
        wild = any(guard.waiting for guard in carry.values())
        groups = [(None, good)] if symbols is None else _places(symbols, good)
        for name, places in groups:
            if not places.size:
                continue
            close = frame["close"].to_numpy()[places]
            band = close[:-1] * (1.0 - config.limit), close[:-1] * (1.0 + config.limit)
            low, high = frame["low"].to_numpy()[places[1:]], frame["high"].to_numpy()[places[1:]]
            begun = carry.get(name)
            first = int(places[0])
            wild |= bool(((low < band[0]) | (high > band[1])).any()) or (
                begun is not None
                and begun.beyond(int(stamps[first]), *(float(frame[c][first]) for c in ("high", "low")))
            )
        if not wild:
            if self.carry is not None:
                for name, places in groups:
                    if places.size:
                        last = int(places[-1])
                        carry.setdefault(name, config.guard()).take(int(stamps[last]), float(frame["close"][last]))
            return repeated
        return self.followed(frame, stamps, own, interval_ns, first_broken, carry)

    def followed(
        self,
        frame: pl.DataFrame,
        stamps: NDArray[np.int64],
        own: NDArray[np.int64] | None,
        interval_ns: int,
        first_broken: NDArray[Any],
        carry: dict[Any, PriceJumps],
    ) -> NDArray[np.int8]:
        """1, 2 and 3 as for :meth:`jumps`, from one bar to the next as the live path does it."""
        config: maps.PriceJump = cast(Any, self.mapping).price_jump
        result = np.zeros(frame.height, np.int8)
        ends = (stamps + interval_ns if own is None else own).tolist()
        symbols: Iterable[Any] = frame["symbol"].to_list() if "symbol" in frame.columns else [None] * frame.height
        prices = zip(*(frame[name].to_list() for name in ("high", "low", "close")), strict=True)
        accepted: dict[Any, tuple[int, int]] = {}
        rows = zip(stamps.tolist(), ends, symbols, prices, (first_broken >= 0).tolist(), strict=True)
        for position, (start, end, symbol, (high, low, close), broken) in enumerate(rows):
            if broken:
                continue
            began, ended = accepted.get(symbol, (-1, -1))
            guard = carry.get(symbol) or carry.setdefault(symbol, config.guard())
            if start == began:
                result[position] = 1
            elif end < start or start < ended or end <= ended:
                result[position] = 2
            elif guard.fault(start, high, low, close) is not None:
                result[position] = 3
            else:
                guard.take(start, close)
                accepted[symbol] = (start, end)
        return result

    def quarantine(
        self,
        raw: pl.DataFrame,
        frame: pl.DataFrame,
        names: dict[str, str],
        first_broken: np.ndarray,
        tested: tuple[Check, ...],
        repeated: np.ndarray,
        bad: np.ndarray,
    ) -> pl.DataFrame:
        positions = np.flatnonzero(bad)
        refused = positions.size > self.allowed_share * frame.height
        lines = []
        for position in positions[:_EXAMPLES] if refused else positions:
            index = int(first_broken[position])
            if index >= 0:
                columns, rule, hint = tested[index].columns, tested[index].rule, tested[index].hint
            else:
                fault = {1: DUPLICATE, 2: OVERLAP, 3: PRICE_JUMP}[int(repeated[position])]
                columns, rule, hint = fault.columns or (self.spec.clock,), fault.name, fault.hint
            values = [
                _show(raw[names[name]][int(position)] if name in names else frame[name][int(position)])
                for name in columns
            ]
            pairs = zip(columns, values, strict=True)
            shown = values[0] if len(columns) == 1 else " ".join(f"{name}={value}" for name, value in pairs)
            lines.append((self.row(int(position)), columns[0], shown, rule, hint))
        if refused:
            examples = "; ".join(f"row {row}: {rule} ({column} {value})" for row, column, value, rule, _ in lines)
            share = positions.size / frame.height
            self.refuse(
                "too_many_faults",
                f"{positions.size:,} of {frame.height:,} rows are faulty, {share:.1%} "
                f"(allowed {self.allowed_share:.1%}): {examples}",
                position=int(positions[0]),
                extra=f"{lines[0][4]}. ",
            )
        return pl.DataFrame(lines, schema=QUARANTINE_SCHEMA, orient="row")

    # what each table adds

    def known_at(self, frame: pl.DataFrame, interval_ns: int) -> pl.DataFrame:
        stamp = frame["timestamp"]
        if cast(Any, self.mapping).stamp == "start":
            known = (stamp.dt.epoch("ns") + interval_ns).cast(pl.Datetime("ns", "UTC"))
        else:
            known = stamp
        return frame.insert_column(1, known.alias("known_at"))

    def merge_sources(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Of several sources of one value keep the preferred. Each source was checked on its own before."""
        if (
            "source" not in frame.columns
            or frame.select((pl.col("source").n_unique().over("symbol") == 1).all()).item()
        ):
            return frame
        preferred: tuple[str, ...] = cast(Any, self.mapping).prefer_source
        listed = {name: float(rank) for rank, name in enumerate(preferred)}
        position = pl.int_range(pl.len())
        rank = pl.col("source").replace_strict(listed, default=None, return_dtype=pl.Float64)
        rank = rank.fill_null(len(listed) + position.min().over("source"))
        merged = (
            frame.with_columns(position.min().over("symbol").alias("__symbol"), rank.alias("__rank"))
            .sort("__symbol", "timestamp", "__rank", maintain_order=True)
            .unique(["symbol", "timestamp"], keep="first", maintain_order=True)
            .drop("__symbol", "__rank")
        )
        self.notes.append(f"left out {frame.height - merged.height:,} values that a preferred source also has")
        return merged


def _places(symbols: pl.Series, good: NDArray[np.int64]) -> list[tuple[Any, NDArray[np.int64]]]:
    """The good rows of each symbol."""
    held = pl.DataFrame({"symbol": symbols[good], "place": good})
    return [(key[0], part["place"].to_numpy()) for key, part in held.group_by("symbol", maintain_order=True)]


def _midnights(values: pl.Series) -> bool:
    return values.null_count() < values.len() and bool((values.dt.truncate("1d") == values).fill_null(True).all())


class _Stream:
    """Any Arrow stream, taken as it is: Polars treats pandas frames specially and would drop their index."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._owner.__arrow_c_stream__(requested_schema)


@functools.cache
def _checks(kind: str) -> tuple[Check, ...]:
    return checks(TABLES[kind])


@functools.cache
def _condition(check: Check) -> pl.Expr:
    return pl.sql_expr(check.holds).fill_null(not check.missing_breaks)


def _label(source: Any) -> str:
    if isinstance(source, str | Path):
        return str(source)
    kind = type(source)
    return f"{kind.__module__.split('.')[0]} {kind.__qualname__}"


def _show(value: Any) -> str:
    if value is None:
        return "null"
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _some(names: list[str], limit: int = 12) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _article(kind: str) -> str:
    return "text" if kind == "text" else "a number"
