"""The input tables, declared once: columns, types, units and the rules they must pass.

Everything else is derived from this module: the reader, the mapping's keys in ``config/inputs.yaml``,
the quarantine's texts and the page ``docs/tables.md``. A rule's condition is SQL and is run as it
stands, so the page shows the very condition that was tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

ColumnType = Literal["instant", "date", "real", "integer", "side", "text"]
Action = Literal["refuse", "quarantine"]

DEPTH = 10
"""Levels of the book, counted from 1 at the touch."""

DTYPES: dict[ColumnType, pl.DataType] = {
    "instant": pl.Datetime("ns", "UTC"),
    "date": pl.Date(),
    "real": pl.Float64(),
    "integer": pl.Int64(),
    "side": pl.Int8(),
    "text": pl.String(),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One canonical column, or with ``levels`` a family of them numbered from 1.

    Only the first level of a family is required: a feed may publish a shallower book.
    """

    name: str
    type: ColumnType
    unit: str
    about: str
    required: bool = True
    levels: int = 0

    def names(self) -> tuple[str, ...]:
        """The column's name, or the names of all its levels."""
        return tuple(f"{self.name}_{level}" for level in range(1, self.levels + 1)) if self.levels else (self.name,)

    def must_exist(self, name: str) -> bool:
        """Whether the table is unusable without ``name``."""
        return self.required and name == self.names()[0]


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition that every row must meet.

    Parameters
    ----------
    name
        Identifier that stands in the quarantine, in reports and (in capitals) in live denials.
    columns
        The columns it concerns. ``{column}`` in ``holds`` stands for each of them in turn;
        ``{level}`` and ``{next}`` for each pair of neighbouring levels of a family.
    holds
        The condition in SQL. On a required column a missing value breaks a rule of one column; a
        comparison of columns says nothing about rows in which one is missing.
    hint
        What a person can do about it.
    """

    name: str
    columns: tuple[str, ...]
    holds: str
    hint: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A fault of the whole input: nothing of it is used."""

    name: str
    when: str
    hint: str


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A table: its columns in canonical order, its rules in the order they are tried.

    ``clock`` may never step back within one series (rows of equal ``series``). ``unique`` names a row: of rows that
    agree in it, the first good one stays.
    """

    kind: str
    about: str
    clock: str
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...]
    series: tuple[str, ...] = ()
    unique: tuple[str, ...] = ()

    def column(self, name: str) -> Column:
        """The declaration behind the canonical name ``name``."""
        return next(column for column in self.columns if name in column.names())

    def names(self) -> tuple[str, ...]:
        """All canonical names: the required ones first, then the optional, each in declared order."""
        every = [(column.must_exist(name), name) for column in self.columns for name in column.names()]
        return tuple(n for required, n in every if required) + tuple(n for required, n in every if not required)

    def required(self) -> tuple[str, ...]:
        """The names without which the table is refused."""
        return tuple(name for column in self.columns for name in column.names() if column.must_exist(name))


@dataclass(frozen=True, slots=True)
class Check:
    """One rule applied to concrete columns."""

    rule: str
    columns: tuple[str, ...]
    holds: str
    hint: str
    missing_breaks: bool


def checks(spec: TableSpec) -> tuple[Check, ...]:
    """Every rule of a table with its columns and levels filled in, in the order they are tried."""
    required = set(spec.required())
    result = []
    for rule in spec.rules:
        targets: list[tuple[tuple[str, ...], str]]
        families = [next(c for c in spec.columns if c.name == name) for name in rule.columns]
        if "{column}" in rule.holds:
            targets = [((name,), rule.holds.format(column=name)) for family in families for name in family.names()]
        elif "{level}" in rule.holds:
            pairs = [(level, level + 1) for level in range(1, families[0].levels)]
            targets = [
                (tuple(f"{f.name}_{n}" for f in families for n in pair), rule.holds.format(level=pair[0], next=pair[1]))
                for pair in pairs
            ]
        else:
            targets = [(tuple(family.names()[0] for family in families), rule.holds)]
        for columns, holds in targets:
            breaks = len(columns) == 1 and columns[0] in required
            result.append(Check(rule.name, columns, holds, rule.hint, breaks))
    return tuple(result)


_MISSING_TIME = "give the row its instant, or leave the row out"
_MISSING_TEXT = "fill the field in, or leave the row out"
_FINITE_HINT = "ask the feed for the row again; an empty, NaN or infinite value is never guessed"
_SIZE_HINT = "sizes count up from zero; check the feed's sign and its code for a missing size"


def _given(*columns: str) -> Rule:
    return Rule("value_missing", columns, "{column} IS NOT NULL", _MISSING_TEXT)


def _finite(*columns: str) -> Rule:
    return Rule("value_not_finite", columns, "ABS({column}) < 1e300", _FINITE_HINT)


def _not_negative(*columns: str) -> Rule:
    return Rule("size_negative", columns, "{column} >= 0", _SIZE_HINT)


def _clock(name: str = "timestamp") -> Rule:
    return Rule("time_missing", (name,), "{column} IS NOT NULL", _MISSING_TIME)


def _prices(*columns: str) -> tuple[Rule, Rule]:
    return (
        Rule("price_not_finite", columns, "ABS({column}) < 1e300", _FINITE_HINT),
        Rule("price_not_positive", columns, "{column} > 0", "check the feed's code for a missing price"),
    )


_RANGE_HINT = "check the order of the price columns in the mapping, then ask the feed for the row again"
_OHLC = ("open", "high", "low", "close")

BARS = TableSpec(
    kind="bars",
    about="Trade bars of one or several instruments. `known_at`, the close of the bar, is added after `timestamp`: "
    "nothing of a bar may be used before it. Volume bars bring their own: bars with a `known_at` and no length that at "
    "least half of them share (`volume_bars` in the mapping).",
    clock="timestamp",
    series=("symbol",),
    unique=("symbol", "timestamp"),
    columns=(
        Column("timestamp", "instant", "UTC", "start or end of the bar, as `stamp` in the mapping says"),
        Column("open", "real", "price", "first trade"),
        Column("high", "real", "price", "highest trade"),
        Column("low", "real", "price", "lowest trade"),
        Column("close", "real", "price", "last trade"),
        Column("volume", "real", "contracts or shares", "traded in the bar"),
        Column("symbol", "text", "-", "instrument, where the table holds several", required=False),
        Column("bid_volume", "real", "contracts or shares", "traded at the bid", required=False),
        Column("ask_volume", "real", "contracts or shares", "traded at the ask", required=False),
        Column("trade_count", "real", "trades", "number of trades in the bar", required=False),
    ),
    rules=(
        _clock(),
        *_prices(*_OHLC),
        Rule("high_below_low", ("high", "low"), "high >= low", _RANGE_HINT),
        Rule("open_outside_range", ("open", "low", "high"), "open >= low AND open <= high", _RANGE_HINT),
        Rule("close_outside_range", ("close", "low", "high"), "close >= low AND close <= high", _RANGE_HINT),
        Rule("volume_not_finite", ("volume",), "ABS({column}) < 1e300", _FINITE_HINT),
        Rule("volume_negative", ("volume",), "{column} >= 0", _SIZE_HINT),
        _finite("bid_volume", "ask_volume", "trade_count"),
        _not_negative("bid_volume", "ask_volume", "trade_count"),
    ),
)

TRADES = TableSpec(
    kind="trades",
    about="Single trades in the order they were received. Several may share an instant.",
    clock="timestamp",
    series=("symbol",),
    columns=(
        Column("timestamp", "instant", "UTC", "when the trade was known here: the receive time if the feed has one"),
        Column("price", "real", "price", "trade price"),
        Column("size", "real", "contracts or shares", "trade size"),
        Column("side", "side", "1, -1 or 0", "aggressor: 1 bought, -1 sold, 0 neither (an auction) or not told"),
        Column("symbol", "text", "-", "instrument, where the table holds several", required=False),
        Column("event_time", "instant", "UTC", "the exchange's own time of the trade", required=False),
    ),
    rules=(
        _clock(),
        *_prices("price"),
        _finite("size"),
        Rule("size_not_positive", ("size",), "{column} > 0", "a trade has a size; leave out busts and corrections"),
        Rule(
            "side_unknown",
            ("side",),
            "{column} IN (-1, 0, 1)",
            "add the feed's word under trades.values.side in config/inputs.yaml",
        ),
    ),
)

BOOK = TableSpec(
    kind="book",
    about=f"Snapshots of the order book, best level first, up to {DEPTH} levels; one row per change. Streams of "
    "single order events are rebuilt into snapshots before they come here.",
    clock="timestamp",
    series=("symbol",),
    columns=(
        Column("timestamp", "instant", "UTC", "when the snapshot was known here"),
        Column("bid_price", "real", "price", "bid, level by level", levels=DEPTH),
        Column("bid_size", "real", "contracts or shares", "resting at the bid", levels=DEPTH),
        Column("ask_price", "real", "price", "ask, level by level", levels=DEPTH),
        Column("ask_size", "real", "contracts or shares", "resting at the ask", levels=DEPTH),
        Column("symbol", "text", "-", "instrument, where the table holds several", required=False),
        Column("event_time", "instant", "UTC", "the exchange's own time of the change", required=False),
    ),
    rules=(
        _clock(),
        *_prices("bid_price", "ask_price"),
        _finite("bid_size", "ask_size"),
        _not_negative("bid_size", "ask_size"),
        Rule(
            "book_crossed",
            ("bid_price", "ask_price"),
            "bid_price_1 < ask_price_1",
            "usual before an opening auction, a fault in continuous trading; leave the pre-open out",
        ),
        Rule(
            "bid_levels_unordered",
            ("bid_price",),
            "bid_price_{level} > bid_price_{next}",
            "level 1 is the highest bid; check the order of the levels in the mapping",
        ),
        Rule(
            "ask_levels_unordered",
            ("ask_price",),
            "ask_price_{level} < ask_price_{next}",
            "level 1 is the lowest ask; check the order of the levels in the mapping",
        ),
    ),
)

ORDERS = TableSpec(
    kind="orders",
    about="Single order events (market by order), in the order the exchange sent them. What an event may do to the "
    "book (unknown orders, sizes, prices, sequence) is judged where the book is built: `mia_fast.bars.OrderBook`.",
    clock="timestamp",
    series=("symbol",),
    columns=(
        Column("timestamp", "instant", "UTC", "when the event was known here"),
        Column("action", "text", "A, C, M, T, F or R", "add, cancel, modify, trade, fill, clear the book"),
        Column("side", "side", "1, -1 or 0", "side of the order: 1 bid, -1 ask; of a trade: the aggressor's"),
        Column("price", "real", "price", "price of the order"),
        Column("size", "real", "contracts or shares", "added, taken off, or (modify) the new size"),
        Column("order_id", "integer", "-", "the exchange's number of the order"),
        Column("symbol", "text", "-", "instrument, where the table holds several", required=False),
        Column("event_time", "instant", "UTC", "the exchange's own time of the event", required=False),
        Column("flags", "integer", "bit set", "bit 7: last event of the exchange's message", required=False),
        Column("sequence", "integer", "-", "sequence number of the exchange's message", required=False),
    ),
    rules=(
        _clock(),
        Rule(
            "action_unknown",
            ("action",),
            "{column} IN ('A', 'C', 'M', 'T', 'F', 'R')",
            "add the feed's word under orders.values.action in config/inputs.yaml",
        ),
        Rule(
            "side_unknown",
            ("side",),
            "{column} IN (-1, 0, 1)",
            "add the feed's word under orders.values.side in config/inputs.yaml",
        ),
        _given("order_id"),
    ),
)

CHAIN = TableSpec(
    kind="chain",
    about="Option quotes: one or several snapshots of a chain.",
    clock="quote_time",
    series=("ticker",),
    unique=("quote_time", "ticker", "root", "settlement", "expiry", "strike", "type"),
    columns=(
        Column("quote_time", "instant", "UTC", "when the snapshot was taken"),
        Column("underlying_price", "real", "price", "last printed price of the underlying"),
        Column("root", "text", "-", "root of the option symbol, for instance SPX or SPXW"),
        Column("settlement", "text", "AM or PM", "when the expiring option is settled"),
        Column("expiry", "date", "calendar day, New York", "day of expiry"),
        Column("strike", "real", "price", "strike"),
        Column("type", "text", "C or P", "call or put"),
        Column("bid", "real", "price", "best bid; 0 where there is none"),
        Column("ask", "real", "price", "best ask; 0 where there is none"),
        Column("open_interest", "real", "contracts", "open interest of the previous evening"),
        Column("volume", "real", "contracts", "traded today"),
        Column("ticker", "text", "-", "underlying, where the table holds several", required=False),
        Column("market_time", "instant", "UTC", "time of the last live quote, if older than `quote_time`", False),
        Column("underlying_bid", "real", "price", "bid of the underlying", required=False),
        Column("underlying_ask", "real", "price", "ask of the underlying", required=False),
        Column("last", "real", "price", "last trade of the option", required=False),
        Column("iv", "real", "1 / sqrt(year)", "the vendor's implied volatility", required=False),
        Column("delta", "real", "-", "the vendor's delta", required=False),
        Column("gamma", "real", "1 / price", "the vendor's gamma", required=False),
        Column("theta", "real", "price / day", "the vendor's theta", required=False),
        Column("vega", "real", "price / volatility point", "the vendor's vega", required=False),
        Column("rho", "real", "price / rate point", "the vendor's rho", required=False),
        Column("symbol", "text", "-", "symbol of the contract", required=False),
    ),
    rules=(
        _clock("quote_time"),
        *_prices("underlying_price", "strike"),
        _given("root", "expiry"),
        Rule("settlement_unknown", ("settlement",), "{column} IN ('AM', 'PM')", "map it under chain.values.settlement"),
        Rule("type_unknown", ("type",), "{column} IN ('C', 'P')", "map it under chain.values.type"),
        Rule("price_not_finite", ("bid", "ask"), "ABS({column}) < 1e300", _FINITE_HINT),
        Rule("price_negative", ("bid", "ask"), "{column} >= 0", "a missing quote is written 0"),
        Rule(
            "quote_crossed",
            ("bid", "ask"),
            "ask = 0 OR bid <= ask",
            "the two sides are of different ages; ask for them again",
        ),
        _finite("open_interest", "volume"),
        _not_negative("open_interest", "volume"),
    ),
)

EVENTS = TableSpec(
    kind="events",
    about="Scheduled releases and meetings. The same event twice with different impacts stays twice: the higher one "
    "may block.",
    clock="start_time",
    unique=("start_time", "type", "impact"),
    columns=(
        Column("start_time", "instant", "UTC", "when the event begins"),
        Column("type", "text", "-", "name of the event"),
        Column("impact", "real", "0..1", "expected impact; entries are blocked above 0.7"),
        Column("cluster_id", "real", "-", "label of the state it belongs to", required=False),
    ),
    rules=(
        _clock("start_time"),
        _given("type"),
        Rule(
            "impact_out_of_range",
            ("impact",),
            "{column} >= 0 AND {column} <= 1",
            "impact is a fraction; words are mapped under events.values.impact in config/inputs.yaml",
        ),
    ),
)

CROSS = TableSpec(
    kind="cross",
    about="Other markets' closes, long format. A row that has only a date is known at the configured close of its "
    "symbol, which becomes its timestamp. Closes may be negative (real yields).",
    clock="timestamp",
    series=("symbol", "source"),
    unique=("symbol", "source", "timestamp"),
    columns=(
        Column("timestamp", "instant", "UTC", "when the close was known"),
        Column("symbol", "text", "-", "instrument or series"),
        Column("close", "real", "price, index points or percent", "the value"),
        Column("volume", "real", "contracts or shares", "traded since the previous row", required=False),
        Column("source", "text", "-", "provider, where a symbol comes from several", required=False),
    ),
    rules=(
        _clock(),
        _given("symbol"),
        _finite("close"),
        _finite("volume"),
        _not_negative("volume"),
    ),
)

TABLES: dict[str, TableSpec] = {spec.kind: spec for spec in (BARS, TRADES, BOOK, ORDERS, CHAIN, EVENTS, CROSS)}

DUPLICATE = Rule(
    "timestamp_duplicate",
    (),
    "the row's key differs from that of every good row before it",
    "the first good row stays; find out why the feed sent it twice",
)
OVERLAP = Rule(
    "bar_overlaps",
    (),
    "the bar starts when the last good bar before it has ended, or later",
    "check bars.interval in config/inputs.yaml; a stray stamp inside a bar is a fault of the feed",
)
PRICE_JUMP = Rule(
    "price_jump",
    ("high", "low", "close"),
    "high and low lie within price_jump.limit of the last good close of the symbol; or that bar began at least "
    "price_jump.pause_minutes before; or it is the price_jump.confirm-th bar in a row whose close lies beyond, "
    "near the one before",
    "a bad print, or a move that the feed did not confirm; if the product may move so far within a bar, raise "
    "bars.price_jump.limit in config/inputs.yaml, or set it to null",
)

_REFUSALS = (
    Refusal("kind_unknown", "the table is not one of those below", "ask for one of: " + ", ".join(TABLES)),
    Refusal("not_found", "there is no such file", "check the path"),
    Refusal(
        "unreadable",
        "the file is truncated, damaged or of another format",
        "write it again; Parquet, CSV and gzipped CSV are read, and any frame that has __arrow_c_stream__",
    ),
    Refusal("empty", "no row is there, or none is left after the mapping's filters", "check the file and the filters"),
    Refusal(
        "column_missing",
        "a required column is missing under all its names",
        "add the file's own name to {key} in config/inputs.yaml",
    ),
    Refusal(
        "column_ambiguous",
        "two names of one column are present and neither is the canonical one",
        "remove one of them from the file, or its name from {key} in config/inputs.yaml",
    ),
    Refusal("type_wrong", "a column cannot be read as its type", "convert it, or map the right column to it"),
    Refusal(
        "zone_missing",
        "instants are without a zone and the mapping gives none",
        "set {key} in config/inputs.yaml, for instance America/New_York or UTC",
    ),
    Refusal(
        "stamp_unknown",
        "cross holds bars (open, high or low) with instants, and nothing says what they mark: a close is known at its "
        "bar's end",
        "set {key} in config/inputs.yaml to start (with cross.interval) or end",
    ),
    Refusal(
        "local_time_ambiguous",
        "a local instant occurs twice, or never, on the day the clocks change",
        "write the time in UTC, or with its offset",
    ),
    Refusal(
        "unsorted",
        "time steps back within one series",
        "sort by {key}; it is not done here, it would hide a feed fault",
    ),
    Refusal(
        "interval_mismatch",
        "at least 30 gaps between bars are all longer than the configured interval, so that a bar would count as "
        "known before its close",
        "set bars.interval in config/inputs.yaml to the length of the bars",
    ),
    Refusal(
        "too_many_faults",
        "the share of quarantined rows is above max_quarantined_share",
        "look at the first faults named here; the mapping may name the wrong columns",
    ),
)
REFUSALS: dict[str, Refusal] = {refusal.name: refusal for refusal in _REFUSALS}
