"""Option levels as of each bar, on the future's price scale.

Levels count from the instant they were known: never before their quotes, nor before the instant they were computed for.
Price levels move by the basis, the future's last close at or before the chain's market time less the underlying
(:func:`mia_fast.options.on_future`, which refuses a basis beyond the desk's limit). Levels lapse when their market time
is further back than ``quality.max_chain_age_seconds`` of ``config/options.yaml``.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from mia_fast.clock import iso
from mia_fast.errors import ConfigError, DataError
from mia_fast.features.asof import FOREVER, Floats, Integers, Steps
from mia_fast.features.catalogue import InputColumn
from mia_fast.options.config import OptionsConfig, options_config
from mia_fast.options.levels import Levels, LevelsEngine, on_future
from mia_fast.workspace import Workspace

if TYPE_CHECKING:
    from mia_fast.features.engine import FeatureEngine

CLOSES_KEPT: Final = 1440
"""So many bars back the future's price at the chain's market time is looked for, in batch as live."""

_NS = 1_000_000_000
_EPOCH = dt.date(1970, 1, 1)
_NUMERIC = frozenset(
    field.name
    for field in dataclasses.fields(Levels)
    if str(field.type).removesuffix(" | None") in ("float", "int", "bool") and not field.name.endswith("_ns")
)
_DATES = {"open_interest_date", "nearest_expiry"}
_OWN = {"known_at", "market_time", *_DATES}


def level_inputs(inputs: Sequence[InputColumn]) -> tuple[InputColumn, ...]:
    """The catalogue's inputs of table ``levels``.

    Raises
    ------
    ConfigError
        One names a field that levels do not have.
    """
    found = tuple(column for column in inputs if column.table == "levels")
    for column in found:
        if _field(column) not in _NUMERIC | _OWN:
            raise ConfigError(
                f"levels have no numeric field {_field(column)!r}",
                where=f"feature_sets.yaml, {column.name}",
                hint=f"fields: {', '.join(sorted(_NUMERIC | _OWN))}",
                then="nothing was computed",
            )
    return found


def known_at(levels: Levels) -> int | None:
    """When levels became known, ns UTC: not before their quotes, nor before the instant they stand for."""
    instants = [at for at in (levels.timestamp_ns, levels.quote_time_ns) if at is not None]
    return max(instants) if instants else None


def _field(column: InputColumn) -> str:
    return column.field or column.name


def _says_nothing(levels: Levels) -> bool:
    """There was no chain, nor what could stand in for one: the levels before it stay in force."""
    return levels.status == "NO_CHAIN" and levels.iv_atm is None and levels.option_skew is None


def _day(value: dt.date | str | None) -> dt.date | None:
    return dt.date.fromisoformat(value) if isinstance(value, str) else value


def _market_time(levels: Levels, known: int) -> int:
    return known if levels.market_time_ns is None else levels.market_time_ns


def _row(columns: Sequence[InputColumn], levels: Levels, known: int, price: float, limit: float) -> list[float]:
    """The inputs that levels give, prices moved to the scale of a future at ``price``; NaN where missing."""
    underlying = math.nan if levels.underlying_price is None else levels.underlying_price
    moved = on_future(levels, price, underlying, limit=limit).levels
    row = []
    for column in columns:
        field = _field(column)
        if field == "known_at":
            row.append(known / _NS)
        elif field == "market_time":
            row.append(_market_time(levels, known) / _NS)
        elif field in _DATES:
            date = getattr(moved, field)
            row.append(math.nan if date is None else float((date - _EPOCH).days))
        else:
            value = getattr(moved, field)
            row.append(math.nan if value is None else float(value))
    return row


class LevelsHistory(Steps):
    """Levels known over time, as inputs of one future's bars."""

    @classmethod
    def build(
        cls,
        levels: Iterable[Levels],
        inputs: Sequence[InputColumn],
        config: OptionsConfig,
        bars_known_at: Integers,
        close: Floats,
    ) -> LevelsHistory | None:
        """The inputs of table ``levels``; None if none are declared or nothing is known.

        Parameters
        ----------
        levels
            On the underlying's scale, in any order.
        inputs
            The catalogue's inputs.
        config
            Limit of the basis, and the age at which levels lapse.
        bars_known_at, close
            The future's bars, (n,) each: closes in ns UTC, ascending, and prices.

        Raises
        ------
        DataError
            Levels without an instant.
        """

        def price(market: int, known: int) -> float:
            return _price_at(market, known, bars_known_at, close)

        return cls.priced(levels, inputs, config, price)

    @classmethod
    def priced(
        cls,
        levels: Iterable[Levels],
        inputs: Sequence[InputColumn],
        config: OptionsConfig,
        price_at: Callable[[int, int], float],
    ) -> LevelsHistory | None:
        """As :meth:`build`, where the bars are not held: ``price_at(market, known)`` is the future's price at the
        market time of levels known at ``known`` (both ns UTC, see :func:`moments`), NaN where there is none."""
        columns = level_inputs(inputs)
        found = sorted(_dated(levels), key=lambda pair: pair[0])
        if not columns or not found:
            return None
        age = round(config.quality.max_chain_age_seconds * _NS)
        instants: list[int] = []
        rows: list[list[float]] = []
        for k, (known, one) in enumerate(found):
            following = found[k + 1][0] if k + 1 < len(found) else FOREVER
            if following == known:
                continue  # of two known at one instant the later in order stands
            market = _market_time(one, known)
            lapse = max(market + age + 1, known)
            if lapse > known:
                instants.append(known)
                rows.append(_row(columns, one, known, price_at(market, known), config.basis_limit))
            if lapse < following:
                instants.append(lapse)
                rows.append([math.nan] * len(columns))
        values = np.array([[math.nan] * len(columns), *rows]).T.copy()
        return cls("levels", [column.name for column in columns], np.array(instants, dtype=np.int64), values)


def moments(levels: Iterable[Levels]) -> list[tuple[int, int]]:
    """(market time, instant known), ns UTC, of all levels that say something: for these a price is asked."""
    return [(_market_time(one, known), known) for known, one in _dated(levels)]


def _dated(levels: Iterable[Levels]) -> list[tuple[int, Levels]]:
    found = []
    for one in levels:
        if _says_nothing(one):
            continue
        known = known_at(one)
        if known is None:
            raise DataError(
                "levels without an instant",
                where="levels",
                hint="pass now_ns where they are computed",
                then="nothing was computed",
            )
        found.append((known, one))
    return found


def _price_at(market: int, known: int, bars_known_at: Integers, close: Floats) -> float:
    """The last close at or before the market time, as the first bar that sees the levels finds it; NaN if none."""
    seen = int(np.searchsorted(bars_known_at, known, side="left"))
    at = int(np.searchsorted(bars_known_at, market, side="right")) - 1
    return float(close[at]) if at >= 0 and seen < len(close) and seen - at < CLOSES_KEPT else math.nan


class LevelsFeed:
    """The same, bar by bar: takes levels as they come and holds them in a live engine."""

    def __init__(
        self, engine: FeatureEngine, inputs: Sequence[InputColumn], config: OptionsConfig, skip: Iterable[str] = ()
    ) -> None:
        wanted = set(engine.plan.held.get("levels", ())) - set(skip)
        self._columns = [column for column in level_inputs(inputs) if column.name in wanted]
        self._engine, self._limit = engine, config.basis_limit
        self._age = round(config.quality.max_chain_age_seconds * _NS)
        self._waiting: list[tuple[int, Levels]] = []
        self._due = FOREVER  # the next instant at which something changes
        self._lapse = FOREVER  # when the held levels are too old

    @property
    def lapse(self) -> int:
        """When the held levels will be too old, ns UTC; part of a saved state."""
        return self._lapse

    @lapse.setter
    def lapse(self, instant: int) -> None:
        self._lapse = instant
        self._due = min(instant, self._waiting[0][0] if self._waiting else FOREVER)

    def take(self, levels: Levels, known: int | None = None) -> None:
        """New levels, known at ``known`` (by default as :func:`known_at` has it)."""
        if self._columns and not _says_nothing(levels):
            [(dated, _)] = _dated([levels])
            self._waiting.append((dated if known is None else known, levels))
            self._waiting.sort(key=lambda pair: pair[0])
            self._due = min(self._due, self._waiting[0][0])

    def resume(self, levels: Levels, known: int | None = None) -> None:
        """These levels are held already, by a restored state or by a batch."""
        if self._columns and not _says_nothing(levels):
            [(dated, _)] = _dated([levels])
            self.lapse = _market_time(levels, dated if known is None else known) + self._age + 1

    def advance(self, now: int, closes: Sequence[tuple[int, float]]) -> None:
        """Hold what is known at a bar's close.

        Parameters
        ----------
        now
            The bar's close, ns UTC.
        closes
            The last :data:`CLOSES_KEPT` bars in time, this one included: (close ns, price).
        """
        if now < self._due:
            return
        news = None
        while self._waiting and self._waiting[0][0] <= now:
            news = self._waiting.pop(0)
        if news is not None:
            known, levels = news
            market = _market_time(levels, known)
            price = next((price for at, price in reversed(closes) if at <= market), math.nan)
            self._lapse = market + self._age + 1
            if now < self._lapse:
                row = _row(self._columns, levels, known, price, self._limit)
                self._hold(row)
        if now >= self._lapse:
            self._hold([math.nan] * len(self._columns))
            self._lapse = FOREVER
        self.lapse = self._lapse  # and with it, what is due next

    def _hold(self, row: Sequence[float]) -> None:
        names = [column.name for column in self._columns]
        self._engine.hold("levels", dict(zip(names, row, strict=True)))


# --- what levels may come as ------------------------------------------------------------------------


def read_levels(source: Any, workspace: Workspace) -> list[Levels]:
    """Levels from what a caller has.

    Parameters
    ----------
    source
        :class:`~mia_fast.options.Levels`; a chain or a table of level rows, as a path or a frame (rows of the journal's
        table ``levels`` as ``mia-fast query`` gives them, or columns named like the fields of ``Levels`` with a
        ``timestamp``); or a sequence of any of these. A file of several snapshots gives levels for each.
    workspace
        Whose ``options.yaml`` applies.

    Raises
    ------
    DataError
        It is none of these, or cannot be read.
    """
    if isinstance(source, Levels):
        return [source]
    if isinstance(source, list | tuple):
        return [levels for part in source for levels in read_levels(part, workspace)]
    from mia_fast.options.readers import read_chain
    from mia_fast.tables import Table, read_table

    if isinstance(source, Table):
        return _of_chain(source.frame, workspace)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if path.suffix.lower() not in (".parquet", ".pq"):
            return _of_chain(
                read_table("chain", read_chain(path, workspace=workspace), workspace=workspace).frame, workspace
            )
        try:
            names = pl.read_parquet_schema(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(
                f"cannot be read as Parquet ({error})",
                where=str(path),
                hint="check the path",
                then="nothing was computed",
            ) from error
        if _is_rows(names):
            return _of_rows(pl.read_parquet(path), str(path))
        return _of_chain(read_table("chain", path, workspace=workspace).frame, workspace)
    if hasattr(source, "__arrow_c_stream__"):
        frame = source if isinstance(source, pl.DataFrame) else pl.DataFrame(source)
        if _is_rows(frame.columns):
            return _of_rows(frame, "levels")
        return _of_chain(read_table("chain", frame, workspace=workspace).frame, workspace)
    raise DataError(
        f"{type(source).__name__} is neither levels nor a chain",
        where="levels",
        hint="pass Levels, paths of chains, a frame of level rows, or a list of these",
        then="nothing was computed",
    )


def _is_rows(names: Iterable[str]) -> bool:
    """A table of level rows: no strikes, and an instant."""
    present = set(names)
    return "strike" not in present and "timestamp" in present


def _of_chain(chain: pl.DataFrame, workspace: Workspace) -> list[Levels]:
    engine = LevelsEngine(options_config(workspace))
    return [engine.update(part, known) for known, part in snapshots(chain)]


def snapshots(chain: pl.DataFrame) -> list[tuple[int, pl.DataFrame]]:
    """The snapshots of a chain table with the instant at which each was known (ns UTC), in time order."""
    groups = chain.partition_by("quote_time", as_dict=True, maintain_order=True)
    found = [(int(part["quote_time"].dt.epoch("ns")[0]), part) for part in groups.values()]
    return sorted(found, key=lambda pair: pair[0])


def _of_rows(frame: pl.DataFrame, where: str) -> list[Levels]:
    clock = frame["timestamp"]
    if not isinstance(clock.dtype, pl.Datetime) or clock.null_count():
        raise DataError(
            f"the column timestamp ({clock.dtype}, {clock.null_count()} nulls) is not an instant in every row",
            where=where,
            hint="give the instant at which each row's levels were known",
            then="nothing was computed",
        )
    # An instant without a zone is DuckDB's: UTC.
    stamps = clock.dt.epoch("ns").to_list()
    return [
        _of_record(row, stamp, f"{where}, row {k}")
        for k, (row, stamp) in enumerate(zip(frame.iter_rows(named=True), stamps, strict=True))
    ]


def _of_record(row: dict[str, Any], stamp: int, where: str) -> Levels:
    detail = row.get("detail")
    if detail is not None:
        record = json.loads(detail) if isinstance(detail, str | bytes) else dict(detail)
        row = {**row, **record}
    try:
        values = {name: row[name] for name in _NUMERIC if row.get(name) is not None}
        bad = [name for name, value in values.items() if not isinstance(value, int | float)]
        if bad:
            raise ValueError(f"{bad[0]} = {values[bad[0]]!r} is not a number")
        quoted, market = (_instant(row.get(name)) for name in ("quote_time", "market_time"))
        interest, expiry = (_day(row.get(name)) for name in ("open_interest_date", "nearest_expiry"))
        return Levels(
            timestamp_ns=stamp,
            status=row.get("status") or "OK",
            quote_time_ns=quoted,
            market_time_ns=market,
            open_interest_date=interest,
            nearest_expiry=expiry,
            **values,
        )
    except (ValueError, TypeError) as error:
        raise DataError(
            f"is not a row of levels ({error}), known at {iso(stamp)}",
            where=where,
            hint="give rows of the journal's table levels, or columns named like the fields of Levels",
            then="nothing was computed",
        ) from error


def _instant(value: Any) -> int | None:
    """Nanoseconds of an instant as text, datetime or integer."""
    if value is None or isinstance(value, int):
        return value
    moment = dt.datetime.fromisoformat(value) if isinstance(value, str) else value
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)
    whole = moment.replace(microsecond=0)
    return int(whole.timestamp()) * _NS + moment.microsecond * 1000
