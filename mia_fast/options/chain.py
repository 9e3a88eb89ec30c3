"""From a table of quotes to the flat arrays that the kernels read.

A chain is laid out by *strike*: one row per (root, expiry, strike) with the call and the put side by
side, because they share one volatility. Rows are ordered by settlement, root and strike.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import polars as pl

from mia_fast.clock import NS_PER_SECOND, from_datetime, iso
from mia_fast.errors import DataError
from mia_fast.options.config import OptionsConfig, Root

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
I8 = npt.NDArray[np.int8]

COLUMNS = (
    "quote_time",
    "underlying_price",
    "root",
    "settlement",
    "expiry",
    "strike",
    "type",
    "bid",
    "ask",
    "open_interest",
)
NEW_YORK = ZoneInfo("America/New_York")
_OPEN, _CLOSE, _EARLY_CLOSE = dt.time(9, 30), dt.time(16, 0), dt.time(13, 0)
_EPOCH = dt.date(1970, 1, 1)
_THEN = "no levels were computed"


@dataclass(frozen=True)
class Chain:
    """One chain at one instant, as arrays: n strikes in g expiries, m distinct strikes.

    Row 0 of the [2, n] arrays is the calls, row 1 the puts. ``years`` is not positive for an expired
    group. Instants are nanoseconds UTC; prices in the underlying's unit; interest in contracts.
    """

    quote_time_ns: int  # when the chain was known
    market_time_ns: int  # the time of its quotes: T is measured from here
    spot: float
    root: tuple[str, ...]  # [g]
    settlement: tuple[str, ...]  # [g]
    expiry: tuple[dt.date, ...]  # [g]
    settle_ns: I64  # [g]
    years: F64  # [g]
    european: I8  # [g]
    multiplier: F64  # [g]
    rate: F64  # [g]
    dividend_yield: F64  # [g]
    start: I64  # [g + 1]
    group: I64  # [n]
    strike: F64  # [n]
    level: I64  # [n], index into levels
    levels: F64  # [m]
    bid: F64  # [2, n], NaN where there is none
    ask: F64  # [2, n]
    interest: F64  # [2, n]
    volume: F64 | None  # [2, n] contracts traded today; None where the table has none
    listed: I8  # [2, n]
    stale: I8  # [2, n]
    interest_missing: int  # contracts without open interest in the table
    interest_date: dt.date  # the close that the open interest is of
    interest_dated: bool  # the table says so; False: it is the rule of open_interest_date
    layout: Layout | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Layout:
    """Where each row of a table goes: the part of a chain that holds while its contracts stay the same."""

    keys: tuple[pl.Series, ...]  # the columns that name the contracts, as they came
    place: I64  # [rows] flat index into [2, n]; -1: a later quote replaces the row
    root: tuple[str, ...]
    settlement: tuple[str, ...]
    expiry: tuple[dt.date, ...]
    settle_ns: I64
    european: I8
    multiplier: F64
    rate: F64
    dividend_yield: F64
    start: I64
    group: I64
    strike: F64
    level: I64
    levels: F64
    listed: I8

    @cached_property
    def index(self) -> dict[tuple[str, dt.date, int, str], tuple[int, int]]:
        """(root, expiry, strike in thousandths, C or P) to (side, row), of every listed contract."""
        milli = np.rint(self.strike * 1000.0).astype(np.int64).tolist()
        return {
            (self.root[g], self.expiry[g], milli[i], "CP"[side]): (side, i)
            for i, g in enumerate(self.group.tolist())
            for side in range(2)
            if self.listed[side, i]
        }


def early_close(day: dt.date) -> bool:
    """Whether US equity markets close at 13:00 New York by rule.

    3 July and 24 December when they fall on Monday to Thursday (on a Friday the holiday itself is
    observed then), and the Friday after the fourth Thursday of November (NYSE Rule 7.2 and its
    yearly calendars, since 2013).
    """
    if (day.month, day.day) in {(7, 3), (12, 24)}:
        return day.weekday() < 4
    return day.month == 11 and day.weekday() == 4 and 23 <= day.day <= 29


def settlement_ns(expiry: dt.date, settlement: str, config: OptionsConfig) -> int:
    """The instant at which a contract settles: AM 09:30, PM 16:00 (13:00 on early closes) New York."""
    if settlement == "AM":
        hour = _OPEN
    else:
        by_rule = config.time.early_close_rule == "us_equity" and early_close(expiry)
        hour = _EARLY_CLOSE if by_rule or expiry in config.time.early_closes else _CLOSE
    return _in_new_york(expiry, hour)


@lru_cache(maxsize=4096)
def _in_new_york(day: dt.date, hour: dt.time) -> int:
    return from_datetime(dt.datetime.combine(day, hour, NEW_YORK))


def open_interest_date(market_time_ns: int) -> dt.date:
    """The trading day whose close the open interest seen at an instant is of.

    The Options Clearing Corporation counts after the close and publishes the next morning, so during
    New York's day it is of the trading day before.
    """
    return _session_before(new_york_date(market_time_ns))


def new_york_date(instant_ns: int) -> dt.date:
    """The calendar day of an instant in New York."""
    return dt.datetime.fromtimestamp(instant_ns // NS_PER_SECOND, NEW_YORK).date()


@lru_cache(maxsize=64)
def _session_before(day: dt.date) -> dt.date:
    from mia_fast.simulate.calendar import on_or_before  # the exchange's closures by rule

    return on_or_before(day - dt.timedelta(days=1))


def prepare(
    frame: pl.DataFrame, config: OptionsConfig, now_ns: int | None = None, layout: Layout | None = None
) -> Chain | None:
    """The chain in ``frame`` as of ``now_ns``, or None when the table holds no row by then.

    Parameters
    ----------
    frame
        Columns :data:`COLUMNS`, optionally ``volume``, ``market_time`` (older than ``quote_time`` in delayed
        feeds), ``open_interest_date`` and ``ticker``. Of several snapshots each contract's last row counts.
    now_ns
        Rows with a later ``quote_time`` do not exist yet. None: every row is known.
    layout
        Of an earlier chain (``chain.layout``): used again where the columns that name the contracts are
        the same, row for row, so that only the quotes are read.

    Raises
    ------
    DataError
        A column is missing or of the wrong type, a value is impossible, a contract stands twice at
        one instant, a root is not in ``config/options.yaml``, or the table mixes underlyings.
    """
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise DataError(
            f"columns missing: {', '.join(missing)}",
            where="chain",
            hint="a chain has quote_time, underlying_price, root, settlement, expiry, strike, type, bid, ask, "
            "open_interest; map other people's names in config/inputs.yaml",
            then=_THEN,
        )
    quoted = _instants(frame["quote_time"])
    if now_ns is not None and quoted.size and int(quoted.max()) > now_ns:
        frame = frame.filter(pl.Series(quoted <= now_ns))
        quoted = quoted[quoted <= now_ns]
    if frame.height == 0:
        return None
    live = _instants(frame["market_time"]) if "market_time" in frame.columns else quoted
    quote_time = int(quoted.max())
    one_snapshot = int(quoted.min()) == quote_time
    latest = slice(None) if one_snapshot else quoted == quote_time
    market_time = int(live[latest].max())
    spot = _spot(frame, latest)
    keys = tuple(frame[name] for name in _KEYS if name in frame.columns)
    if layout is None or not one_snapshot or not _same(layout.keys, keys):
        layout = _lay_out(frame, config, quoted, keys)
    held = numbers(frame, "open_interest")
    unknown = np.isnan(held)
    unknown_count = int(unknown.sum() if one_snapshot else unknown[layout.place >= 0].sum())
    if unknown_count:
        held = np.where(unknown, 0.0, held)
    _refuse(frame, "open_interest", ~((held >= 0.0) & np.isfinite(held)))
    volume = None
    if "volume" in frame.columns:
        volume = np.nan_to_num(numbers(frame, "volume"))
    n = layout.strike.size
    kept = slice(None) if one_snapshot else layout.place >= 0
    place = layout.place[kept]

    def table(values: F64, empty: float) -> F64:
        out = np.full((2, n), empty)
        out.reshape(-1)[place] = values[kept]
        return out

    stale = np.zeros((2, n), dtype=np.int8)
    if int(live[kept].min()) < market_time:
        lag = market_time - live[kept]
        stale.reshape(-1)[place] = lag > config.quality.stale_quote_seconds * NS_PER_SECOND
    seconds = (layout.settle_ns - market_time) / NS_PER_SECOND
    seconds = np.where(seconds > 0.0, np.maximum(seconds, config.time.floor_seconds), seconds)
    dated = None
    if "open_interest_date" in frame.columns:
        dated = frame["open_interest_date"].max()
    return Chain(
        quote_time_ns=quote_time,
        market_time_ns=market_time,
        spot=spot,
        root=layout.root,
        settlement=layout.settlement,
        expiry=layout.expiry,
        settle_ns=layout.settle_ns,
        years=seconds / config.time.seconds_per_year,
        european=layout.european,
        multiplier=layout.multiplier,
        rate=layout.rate,
        dividend_yield=layout.dividend_yield,
        start=layout.start,
        group=layout.group,
        strike=layout.strike,
        level=layout.level,
        levels=layout.levels,
        bid=table(numbers(frame, "bid"), np.nan),
        ask=table(numbers(frame, "ask"), np.nan),
        interest=table(held, 0.0),
        volume=None if volume is None else table(volume, 0.0),
        listed=layout.listed,
        stale=stale,
        interest_missing=unknown_count,
        interest_date=dated if isinstance(dated, dt.date) else open_interest_date(market_time),
        interest_dated=isinstance(dated, dt.date),
        layout=layout if one_snapshot else None,
    )


_KEYS = ("strike", "type", "expiry", "root", "settlement", "ticker")


def _same(held: tuple[pl.Series, ...], keys: tuple[pl.Series, ...]) -> bool:
    """Whether two tables name the same contracts in the same rows."""
    return len(held) == len(keys) and all(
        a.name == b.name and a.dtype == b.dtype and a.len() == b.len() and a.equals(b, null_equal=True)
        for a, b in zip(held, keys, strict=True)
    )


def _lay_out(frame: pl.DataFrame, config: OptionsConfig, quoted: I64, keys: tuple[pl.Series, ...]) -> Layout:
    """The order of the contracts, and where each row of the table goes; -1 for one that a later quote replaces."""
    if "ticker" in frame.columns and frame["ticker"].n_unique() > 1:
        raise DataError(
            f"holds several underlyings: {', '.join(map(str, frame['ticker'].unique().sort().to_list()))}",
            where="chain.ticker",
            hint="filter the table to one; exposures of different underlyings do not add up by strike",
            then=_THEN,
        )
    strike = numbers(frame, "strike")
    milli = np.rint(strike * 1000.0)
    _refuse(frame, "strike", ~((strike > 0.0) & (np.abs(strike - milli / 1000.0) <= 1e-9 * strike) & (milli < 2.0**31)))
    put = _is(frame["type"], "P")
    _refuse(frame, "type", ~(put | _is(frame["type"], "C")))
    code, root, settlement, expiry, settle = _expiries(frame, config)
    key = ((code << 31) | milli.astype(np.int64)) << 1 | put
    order = _ordered(frame, key, quoted)
    sorted_key = key[order]
    strike_key = sorted_key >> 1
    first = np.empty(order.size, dtype=bool)
    first[0] = True
    np.not_equal(strike_key[1:], strike_key[:-1], out=first[1:])
    row = np.cumsum(first) - 1
    n = int(row[-1]) + 1
    group = (strike_key[first] >> 31).astype(np.int64)
    start = np.searchsorted(group, np.arange(len(root) + 1)).astype(np.int64)
    side = (sorted_key & 1).astype(np.int64)
    levels, level = _distinct(strike_key[first] & 0x7FFFFFFF)
    place = np.full(key.size, -1, dtype=np.int64)
    place[order] = side * n + row
    listed = np.zeros((2, n), dtype=np.int8)
    listed[side, row] = 1
    about = [config.roots[name] for name in root]
    carried = np.array([item.carry == "spot" for item in about])
    rate = np.full(len(root), config.forward.rate)
    return Layout(
        keys=keys,
        place=place,
        root=root,
        settlement=settlement,
        expiry=expiry,
        settle_ns=settle,
        european=np.array([item.exercise == "european" for item in about], dtype=np.int8),
        multiplier=np.array([item.multiplier for item in about]),
        rate=rate,
        dividend_yield=np.where(carried, config.forward.dividend_yield, rate),
        start=start,
        group=group,
        strike=strike[order][first],
        level=level,
        levels=levels / 1000.0,
        listed=listed,
    )


def _instants(column: pl.Series) -> I64:
    """Nanoseconds UTC of a column with a time zone and without nulls."""
    if not isinstance(column.dtype, pl.Datetime) or column.dtype.time_zone is None:
        raise DataError(
            f"is {column.dtype}, not an instant with a time zone",
            where=f"chain.{column.name}",
            hint='attach one, for instance dt.replace_time_zone("America/New_York")',
            then=_THEN,
        )
    if column.null_count():
        raise DataError(
            "is null",
            where=f"chain.{column.name} row {column.is_null().arg_true()[0]}",
            hint="every quote has a time",
            then=_THEN,
        )
    values: I64 = column.to_physical().to_numpy()
    unit = {"ns": 1, "us": 1_000, "ms": 1_000_000}[column.dtype.time_unit]
    return values if unit == 1 else values * unit


def numbers(frame: pl.DataFrame, name: str) -> F64:
    """A numeric column as float64, NaN for null."""
    column = frame[name]
    if not column.dtype.is_numeric():
        raise DataError(
            f"is {column.dtype}, not a number", where=f"chain.{name}", hint="cast the column to Float64", then=_THEN
        )
    if column.dtype != pl.Float64:
        column = column.cast(pl.Float64)
    values: F64 = (column.fill_null(float("nan")) if column.null_count() else column).to_numpy()
    return values


def _refuse(frame: pl.DataFrame, name: str, bad: npt.NDArray[np.bool_]) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        wanted = {
            "strike": "a positive multiple of 0.001, as option symbols hold it",
            "type": "C or P",
            "open_interest": "contracts, not negative",
            "settlement": "AM or PM",
            "expiry": "a date",
            "root": "the root of the option symbol",
        }[name]
        raise DataError(
            f"{frame[name][row]!r} is not {wanted}",
            where=f"chain.{name} row {row}",
            hint="correct or drop the row",
            then=_THEN,
        )


def _spot(frame: pl.DataFrame, latest: slice | npt.NDArray[np.bool_]) -> float:
    prices = numbers(frame, "underlying_price")[latest]
    spot = float(prices[0])
    if not (0.0 < spot < np.inf) or not (prices == spot).all():
        values = ", ".join(f"{value:g}" for value in np.unique(prices)[:5])
        raise DataError(
            f"one finite positive price per instant is needed, found {values}",
            where="chain.underlying_price",
            hint="filter the table to one underlying",
            then=_THEN,
        )
    return spot


def _expiries(
    frame: pl.DataFrame, config: OptionsConfig
) -> tuple[I64, tuple[str, ...], tuple[str, ...], tuple[dt.date, ...], I64]:
    """Each row's group, and the groups in order of settlement and root."""
    expiry = frame["expiry"]
    if isinstance(expiry.dtype, pl.Datetime):
        expiry = expiry.dt.date()
    if expiry.dtype != pl.Date:
        raise DataError(
            f"is {expiry.dtype}, not a date", where="chain.expiry", hint="cast the column to Date", then=_THEN
        )
    if expiry.null_count():
        _refuse(frame, "expiry", expiry.is_null().to_numpy())
    root = frame["root"].cast(pl.String)
    if root.null_count():
        _refuse(frame, "root", root.is_null().to_numpy())
    names = sorted(root.unique().to_list())
    about = [_about(name, config) for name in names]
    root_code = np.zeros(frame.height, dtype=np.int64)
    for code, name in enumerate(names[1:], 1):
        root_code[_is(root, name)] = code
    half = frame["settlement"]
    pm = _is(half, "PM")
    known = pm | _is(half, "AM")
    if half.null_count():
        untold = half.is_null().to_numpy()
        pm = np.where(untold, np.array([item.settlement == "PM" for item in about])[root_code], pm)
        known |= untold
    _refuse(frame, "settlement", ~known)
    day = expiry.to_physical().cast(pl.Int64).to_numpy()
    packed = (day * len(names) + root_code) * 2 + pm
    distinct, inverse = _distinct(packed)
    days = [_EPOCH + dt.timedelta(days=int(value)) for value in distinct // 2 // len(names)]
    roots = [names[int(value)] for value in distinct // 2 % len(names)]
    halves = ["PM" if value else "AM" for value in distinct % 2]
    pairs = list(zip(roots, days, strict=True))
    if len(set(pairs)) < len(pairs):
        twice = next(pair for index, pair in enumerate(pairs) if pair in pairs[:index])
        raise DataError(
            f"{twice[0]} {twice[1]} is listed both AM and PM",
            where="chain.settlement",
            hint="a contract is known by root, expiry, strike and type; correct the settlement",
            then=_THEN,
        )
    settle = np.array(
        [settlement_ns(when, which, config) for when, which in zip(days, halves, strict=True)], dtype=np.int64
    )
    order = sorted(range(len(roots)), key=lambda g: (int(settle[g]), roots[g]))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return (
        rank[inverse],
        tuple(roots[g] for g in order),
        tuple(halves[g] for g in order),
        tuple(days[g] for g in order),
        settle[order],
    )


def _is(column: pl.Series, text: str) -> npt.NDArray[np.bool_]:
    """Where a column holds a text; null does not."""
    equal = (column if column.dtype == pl.String else column.cast(pl.String)) == text
    found: npt.NDArray[np.bool_] = (equal.fill_null(False) if equal.null_count() else equal).to_numpy()
    return found


def _distinct(values: I64) -> tuple[I64, I64]:
    """The distinct values ascending, and the place of each value among them; not negative, at least one.

    By a table where the values allow one (in whole units, of 1000 where all are multiples of it), else by sorting.
    """
    unit = 1 if (values % 1000).any() else 1000
    scaled = values // unit
    low = int(scaled.min())
    span = int(scaled.max()) - low + 1
    if span > 1 << 16:
        distinct, inverse = np.unique(values, return_inverse=True)
        return distinct, inverse.astype(np.int64)
    present = np.zeros(span, dtype=bool)
    present[scaled - low] = True
    places = np.cumsum(present) - 1
    return (np.flatnonzero(present) + low) * unit, places[scaled - low]


def _about(name: str, config: OptionsConfig) -> Root:
    found = config.roots.get(name)
    if found is None:
        raise DataError(
            f"the root {name!r} is unknown, so its multiplier and exercise style are",
            where="chain.root",
            hint="add it under roots in config/options.yaml",
            then=_THEN,
        )
    return found


def _ordered(frame: pl.DataFrame, key: I64, quoted: I64) -> I64:
    """Row numbers in the order of ``key``, the last quote of each contract only."""
    if bool((key[1:] > key[:-1]).all()):
        return np.arange(key.size)
    order = np.argsort(key, kind="stable") if quoted.min() == quoted.max() else np.lexsort((quoted, key))
    same = key[order][1:] == key[order][:-1]
    if same.any():
        tie = same & (quoted[order][1:] == quoted[order][:-1])
        if tie.any():
            row = int(order[1:][tie].max())
            what = " ".join(str(frame[name][row]) for name in ("root", "expiry", "strike", "type"))
            raise DataError(
                f"{what} stands twice at {iso(int(quoted[row]))}",
                where=f"chain row {row}",
                hint="drop one of the two rows",
                then=_THEN,
            )
        order = order[np.append(~same, True)]
    return order
