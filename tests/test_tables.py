"""The input tables: mapping, rules, quarantine and refusals, on made-up data."""

from __future__ import annotations

import datetime as dt
import gzip
import itertools
import math
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mia_fast.errors import ConfigError, DataError
from mia_fast.tables import TABLES, InputsConfig, PriceJumps, Table, check_bar, inputs, page, read_table
from mia_fast.tables.schema import REFUSALS, checks
from mia_fast.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = inputs(Workspace(ROOT))
UTC = dt.UTC
START = dt.datetime(2024, 3, 4, 14, 30, tzinfo=UTC)
MINUTE = dt.timedelta(minutes=1)


def minutes(count: int, start: dt.datetime = START) -> pl.Series:
    return pl.datetime_range(start, start + (count - 1) * MINUTE, "1m", time_unit="ns", eager=True)


def bars(count: int = 100) -> pl.DataFrame:
    steps = np.sin(np.arange(count)) * 3
    opens, closes = 5000 + steps, 5000 - steps
    return pl.DataFrame(
        {
            "timestamp": minutes(count),
            "open": opens,
            "high": np.maximum(opens, closes) + 1.0,
            "low": np.minimum(opens, closes) - 1.0,
            "close": closes,
            "volume": np.arange(count, dtype=float) + 10,
        }
    )


def trades(count: int = 100) -> pl.DataFrame:
    side = ["B", "S"] * (count // 2)
    return pl.DataFrame({"ts": minutes(count), "price": 5000.0, "size": 2, "aggressor": side})


def book(count: int = 100) -> pl.DataFrame:
    levels: dict[str, Any] = {}
    for level in range(3):
        levels |= {f"bid_px_{level:02d}": 4999.75 - level * 0.25, f"bid_sz_{level:02d}": 5}
        levels |= {f"ask_px_{level:02d}": 5000.0 + level * 0.25, f"ask_sz_{level:02d}": 6}
    return pl.DataFrame({"ts_recv": minutes(count), "ts_event": minutes(count)}).with_columns(
        *(pl.lit(value).alias(name) for name, value in levels.items())
    )


def chain(count: int = 100) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "quote_time": [START.astimezone(dt.UTC)] * count,
            "underlying_price": 5000.0,
            "root": "SPXW",
            "settlement": "PM",
            "expiry": [dt.date(2024, 3, 8)] * count,
            "strike": [4000.0 + 5 * i for i in range(count)],
            "type": ["C", "P"] * (count // 2),
            "bid": 10.0,
            "ask": 10.5,
            "open_interest": 100,
            "volume": 3,
        }
    )


def events(count: int = 100) -> pl.DataFrame:
    return pl.DataFrame({"start_time": minutes(count), "type": "CPI", "impact": 0.8})


def cross(count: int = 100) -> pl.DataFrame:
    return pl.DataFrame({"timestamp": minutes(count), "symbol": "VIX", "close": 15.0, "volume": 0.0})


def orders(count: int = 100) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "ts_recv": minutes(count),
            "action": ["A", "C"] * (count // 2),
            "side": ["B", "A"] * (count // 2),
            "price": 5000.0,
            "size": 2,
            "order_id": range(2**60, 2**60 + count),
        }
    )


GOOD = {
    "bars": bars,
    "trades": trades,
    "book": book,
    "orders": orders,
    "chain": chain,
    "events": events,
    "cross": cross,
}


def read(kind: str, source: Any, **changes: Any) -> Table:
    """Read with the shipped mapping, some of whose keys for this table are changed."""
    config = SHIPPED
    if changes:
        content = SHIPPED.model_dump()
        for key, value in changes.items():
            content[kind][key] = content[kind][key] | value if isinstance(value, dict) else value
        config = InputsConfig.model_validate(content)
    return read_table(kind, source, inputs=config)


def spoil(frame: pl.DataFrame, row: int, column: str, value: Any) -> pl.DataFrame:
    """The frame with one value replaced."""
    dtype = pl.Float64 if isinstance(value, float) and frame.schema[column].is_integer() else frame.schema[column]
    values = frame[column].cast(dtype).to_list()
    values[row] = value
    return frame.with_columns(pl.Series(column, values, dtype=dtype))


# Good tables


@pytest.mark.parametrize("kind", TABLES)
def test_a_good_table_passes_whole_and_in_canonical_shape(kind: str) -> None:
    table = read(kind, GOOD[kind]())
    spec = TABLES[kind]
    assert table.frame.height == 100
    assert table.quarantine.is_empty()
    assert table.quarantine.columns == ["row", "column", "value", "rule", "hint"]
    expected = list(spec.required())
    if kind == "bars":
        expected.insert(1, "known_at")
    assert table.frame.columns[: len(expected)] == expected
    assert table.frame.schema[spec.clock] == pl.Datetime("ns", "UTC")
    assert table.frame.n_chunks() == 1
    assert sum(table.frame.select(spec.required()).null_count().row(0)) == 0
    assert "100 rows" in table.report()


def test_optional_columns_follow_the_required_then_other_numbers_untouched() -> None:
    frame = bars().with_columns(
        pl.lit("x").alias("comment"),
        pl.lit(7, pl.Int16).alias("vix_ticks"),
        pl.lit(3.0).alias("bid_volume"),
        pl.lit("ES").alias("symbol"),
        pl.lit(dt.date(2024, 3, 4)).alias("session"),
    )
    out = read("bars", frame).frame
    assert out.columns == [
        "timestamp", "known_at", "open", "high", "low", "close", "volume", "symbol", "bid_volume", "vix_ticks",
    ]  # fmt: skip
    assert out.schema["vix_ticks"] == pl.Int16


def test_levels_of_the_book_are_numbered_from_one() -> None:
    out = read("book", book()).frame
    assert out.row(0, named=True)["bid_price_3"] == 4999.25
    assert out.row(0, named=True)["ask_size_1"] == 6.0
    assert "bid_price_4" not in out.columns
    assert "event_time" in out.columns


def test_words_become_numbers_whatever_their_case() -> None:
    frame = events(4).with_columns(impact=pl.Series(["High", " medium", "LOW", "holiday"]))
    assert read("events", frame).frame["impact"].to_list() == [0.9, 0.5, 0.2, 0.0]
    frame = trades(4).with_columns(aggressor=pl.Series(["b", "Sell", "N", "BUY"]))
    assert read("trades", frame).frame["side"].to_list() == [1, -1, 0, 1]
    assert read("trades", trades(2).with_columns(aggressor=pl.Series([1, -1]))).frame["side"].dtype == pl.Int8
    frame = chain(2).with_columns(type=pl.Series(["call", "Put"]), settlement=pl.Series(["a", "p"]))
    out = read("chain", frame).frame
    assert out["type"].to_list() == ["C", "P"]
    assert out["settlement"].to_list() == ["AM", "PM"]


def test_filters_leave_out_rows_but_keep_those_without_a_value() -> None:
    frame = events(4).with_columns(currency=pl.Series(["USD", "EUR", None, "all"]))
    table = read("events", spoil(frame, 3, "impact", 0.3))
    assert table.frame["impact"].to_list() == [0.8, 0.8, 0.3]
    assert "left out 1 rows whose currency is not USD or All" in table.report()


def test_row_numbers_are_those_of_the_source_after_filters() -> None:
    frame = events(100).with_columns(currency=pl.Series(["EUR"] * 10 + ["USD"] * 90))
    assert read("events", spoil(frame, 50, "impact", 1.5)).quarantine["row"].to_list() == [50]


def test_constants_stand_for_columns_that_the_source_does_not_have() -> None:
    table = read("bars", bars().drop("volume"), constants={"volume": 0.0, "symbol": "SPX"})
    assert table.frame["volume"].unique().to_list() == [0.0]
    assert table.frame["symbol"].unique().to_list() == ["SPX"]
    assert "volume = 0.0 by the mapping" in table.report()
    assert read("bars", bars(), constants={"volume": 0.0}).frame["volume"].max() == 109.0
    with pytest.raises(DataError, match="type_wrong"):
        read("bars", bars().drop("volume"), constants={"volume": "none"})


def test_an_interval_without_trades_is_skipped_unless_the_mapping_says_otherwise() -> None:
    empty = pl.int_range(pl.len()) == 40
    frame = bars().with_columns(pl.when(~empty).then(pl.col("open", "high", "low", "close", "volume")))
    table = read("bars", frame)
    assert (table.frame.height, table.quarantine.height) == (99, 0)
    assert "skipped 1 intervals without trades" in table.report()
    assert read("bars", frame, skip_empty=False).quarantine["row"].to_list() == [40]
    assert read("bars", spoil(frame, 40, "volume", 5.0)).quarantine["rule"].to_list() == ["price_not_finite"]


# Stamps and intervals


@pytest.mark.parametrize(("stamp", "delay"), [("start", 300), ("end", 0)])
def test_a_close_among_bars_of_other_markets_is_known_at_its_bar_s_end(stamp: str, delay: int) -> None:
    """Taken as it stands, a bar's start would make its close known before it was there."""
    plain = cross()
    others = plain.with_columns(open=15.0, high=15.0, low=15.0)
    with pytest.raises(DataError, match="start or the end of a bar") as caught:
        read("cross", others)
    assert caught.value.reason == "stamp_unknown"
    assert "cross.stamp" in str(caught.value)
    found = read("cross", others, stamp=stamp, interval="5m").frame
    late = found["timestamp"] - read("cross", plain).frame["timestamp"]
    assert late.dt.total_seconds().unique().to_list() == [delay]
    daily = others.with_columns(timestamp=pl.date_range(dt.date(2024, 1, 1), dt.date(2024, 4, 9), "1d", eager=True))
    assert read("cross", daily).frame.height == 100  # a date counts from its day's close, whatever columns there are


@pytest.mark.parametrize(("stamp", "delay"), [("start", 60), ("end", 0)])
def test_a_bar_is_known_at_its_close(stamp: str, delay: int) -> None:
    table = read("bars", bars(), stamp=stamp)
    assert table.frame.columns[1] == "known_at"
    assert table.frame.schema["known_at"] == pl.Datetime("ns", "UTC")
    assert (table.frame["known_at"] - table.frame["timestamp"]).dt.total_seconds().unique().to_list() == [delay]
    assert table.interval_ns == 60_000_000_000


def test_the_commonest_gap_chooses_among_the_intervals() -> None:
    seconds = bars().with_columns(
        timestamp=pl.datetime_range(START, START + 99 * dt.timedelta(seconds=1), "1s", time_unit="ns", eager=True)
    )
    assert read("bars", seconds).interval_ns == 1_000_000_000
    assert read("bars", bars(1)).interval_ns == 60_000_000_000


def test_bars_longer_than_every_interval_are_refused() -> None:
    slow = bars().with_columns(timestamp=pl.lit(START) + pl.duration(minutes=5 * pl.int_range(pl.len())))
    with pytest.raises(DataError, match=r"no two bars are closer than 300 s \[interval_mismatch\]"):
        read("bars", slow)
    assert read("bars", slow, interval="5m").interval_ns == 300_000_000_000


def test_bars_full_of_holes_are_refused_for_their_faults_and_not_for_their_interval() -> None:
    """What 90 % of faulty rows leave has gaps of any length, which say nothing of the bars'."""
    holes = bars(400).with_columns(
        close=pl.when(pl.int_range(pl.len()) % 10 == 0).then("close").otherwise(float("nan"))
    )
    with pytest.raises(DataError, match=r"360 of 400 rows are faulty, 90.0% .* \[too_many_faults\]"):
        read("bars", holes)


@pytest.mark.parametrize(("count", "minutes", "proven"), [(1, 1, False), (20, 5, False), (20, 1, True), (2, 1, True)])
def test_a_file_too_short_to_prove_its_interval_says_so(count: int, minutes: int, proven: bool) -> None:
    frame = bars(count).with_columns(timestamp=pl.lit(START) + pl.duration(minutes=minutes * pl.int_range(pl.len())))
    table = read("bars", frame)
    assert table.interval_ns == 60_000_000_000
    assert ("too few bars" in table.report()) is not proven


def test_a_bar_inside_another_is_quarantined_and_the_next_one_stays() -> None:
    stray = bars(1).with_columns(timestamp=pl.lit(START + 10.5 * MINUTE, pl.Datetime("ns", "UTC")))
    frame = pl.concat([bars()[:11], stray, bars()[11:]])
    table = read("bars", frame)
    assert table.quarantine.select("row", "rule").rows() == [(11, "bar_overlaps")]
    assert table.frame["timestamp"].to_list() == bars()["timestamp"].to_list()


def test_symbols_are_judged_each_on_their_own() -> None:
    both = pl.concat([bars().with_columns(symbol=pl.lit(name)) for name in ("ES", "NQ")])
    assert read("bars", both).frame.height == 200  # one after the other
    mixed = both.sort("timestamp", "symbol")
    assert read("bars", mixed).quarantine.is_empty()
    repeated = pl.concat([mixed[:51], mixed[49:]])
    assert read("bars", repeated).quarantine.select("row", "rule").rows() == [
        (51, "timestamp_duplicate"),
        (52, "timestamp_duplicate"),
    ]
    back = pl.concat([both[:120], both[110:111], both[120:]])
    with pytest.raises(DataError, match=r"row 120: timestamp .* of NQ comes after"):
        read("bars", back)


# Rules on rows

ROW_FAULTS = [
    ("bars", "timestamp", None, "time_missing"),
    ("bars", "open", math.nan, "price_not_finite"),
    ("bars", "high", math.inf, "price_not_finite"),
    ("bars", "low", -math.inf, "price_not_finite"),
    ("bars", "close", None, "price_not_finite"),
    ("bars", "close", 0.0, "price_not_positive"),
    ("bars", "low", -1.0, "price_not_positive"),
    ("bars", "high", 1.0, "high_below_low"),
    ("bars", "open", 6000.0, "open_outside_range"),
    ("bars", "close", 4000.0, "close_outside_range"),
    ("bars", "volume", None, "volume_not_finite"),
    ("bars", "volume", math.nan, "volume_not_finite"),
    ("bars", "volume", -1.0, "volume_negative"),
    ("trades", "ts", None, "time_missing"),
    ("trades", "price", math.nan, "price_not_finite"),
    ("trades", "price", 0.0, "price_not_positive"),
    ("trades", "size", None, "value_not_finite"),
    ("trades", "size", 0, "size_not_positive"),
    ("trades", "size", -3, "size_not_positive"),
    ("trades", "aggressor", "?", "side_unknown"),
    ("trades", "aggressor", None, "side_unknown"),
    ("book", "ts_recv", None, "time_missing"),
    ("book", "bid_px_00", 5000.0, "book_crossed"),
    ("book", "ask_px_00", 4000.0, "book_crossed"),
    ("book", "ask_px_01", math.nan, "price_not_finite"),
    ("book", "bid_px_02", -1.0, "price_not_positive"),
    ("book", "bid_sz_00", None, "value_not_finite"),
    ("book", "ask_sz_02", -1, "size_negative"),
    ("book", "bid_px_01", 4999.75, "bid_levels_unordered"),
    ("book", "ask_px_02", 5000.0, "ask_levels_unordered"),
    ("orders", "ts_recv", None, "time_missing"),
    ("orders", "action", "Z", "action_unknown"),
    ("orders", "action", None, "action_unknown"),
    ("orders", "side", "?", "side_unknown"),
    ("orders", "order_id", None, "value_missing"),
    ("chain", "underlying_price", math.nan, "price_not_finite"),
    ("chain", "strike", 0.0, "price_not_positive"),
    ("chain", "root", None, "value_missing"),
    ("chain", "expiry", None, "value_missing"),
    ("chain", "settlement", "XX", "settlement_unknown"),
    ("chain", "type", "X", "type_unknown"),
    ("chain", "bid", None, "price_not_finite"),
    ("chain", "ask", -0.5, "price_negative"),
    ("chain", "bid", 11.0, "quote_crossed"),
    ("chain", "open_interest", -1, "size_negative"),
    ("chain", "volume", None, "value_not_finite"),
    ("events", "start_time", None, "time_missing"),
    ("events", "type", " ", "value_missing"),
    ("events", "impact", 1.01, "impact_out_of_range"),
    ("events", "impact", -0.1, "impact_out_of_range"),
    ("events", "impact", math.nan, "impact_out_of_range"),
    ("events", "impact", None, "impact_out_of_range"),
    ("cross", "timestamp", None, "time_missing"),
    ("cross", "symbol", None, "value_missing"),
    ("cross", "close", math.inf, "value_not_finite"),
    ("cross", "volume", math.nan, "value_not_finite"),
    ("cross", "volume", -1.0, "size_negative"),
]


@pytest.mark.parametrize(("kind", "column", "value", "rule"), ROW_FAULTS)
def test_a_faulty_row_is_taken_out_and_explained(kind: str, column: str, value: Any, rule: str) -> None:
    good = GOOD[kind]()
    table = read(kind, spoil(good, 42, column, value))
    assert table.quarantine.height == 1
    line = table.quarantine.row(0, named=True)
    assert (line["row"], line["rule"]) == (42, rule)
    shown = "null" if value is None else str(value)
    assert shown in line["value"]
    assert line["hint"]
    kept = read(kind, good).frame.with_row_index().filter(pl.col("index") != 42).drop("index")
    assert table.frame.equals(kept)
    assert rule in table.report()


def test_every_row_rule_is_in_the_table_of_faults() -> None:
    declared = {(kind, check.rule) for kind, spec in TABLES.items() for check in checks(spec) if check.missing_breaks}
    declared |= {(kind, rule.name) for kind, spec in TABLES.items() for rule in spec.rules}
    # One function makes the rules of optional sizes and of the clocks; one table of each suffices.
    covered = {(kind, rule) for kind, _, _, rule in ROW_FAULTS}
    assert declared - covered <= {("bars", "value_not_finite"), ("bars", "size_negative"), ("chain", "time_missing")}


def test_an_optional_column_may_be_empty_but_not_wrong() -> None:
    frame = bars().with_columns(bid_volume=pl.Series([None] * 99 + [1.0]), trade_count=pl.lit(3))
    assert read("bars", frame).quarantine.is_empty()
    table = read("bars", spoil(spoil(frame, 5, "bid_volume", math.nan), 6, "trade_count", -1))
    assert table.quarantine.select("row", "column", "rule").rows() == [
        (5, "bid_volume", "value_not_finite"),
        (6, "trade_count", "size_negative"),
    ]


def test_a_column_without_any_value_may_have_any_type() -> None:
    frame = trades().with_columns(pl.lit(None).alias("event_time"), pl.lit(None, pl.Boolean).alias("symbol"))
    out = read("trades", frame).frame
    assert out.schema["event_time"] == pl.Datetime("ns", "UTC")
    assert out.schema["symbol"] == pl.String
    with pytest.raises(DataError, match=r"row 0: 100 of 100 rows are faulty, 100\.0%.*time_missing"):
        read("trades", trades().with_columns(ts=pl.lit(None)))


@pytest.mark.parametrize("kind", ["bars", "chain", "events", "cross"])
def test_of_repeated_rows_the_first_stays(kind: str) -> None:
    good = GOOD[kind]()
    table = read(kind, pl.concat([good[:31], good[30:]]))
    line = table.quarantine.row(0, named=True)
    assert (table.quarantine.height, line["row"], line["rule"]) == (1, 31, "timestamp_duplicate")
    assert table.frame.equals(read(kind, good).frame)


@pytest.mark.parametrize("kind", ["trades", "book"])
def test_trades_and_books_may_share_an_instant(kind: str) -> None:
    good = GOOD[kind]()
    assert read(kind, pl.concat([good[:31], good[30:]])).frame.height == 101


def test_a_faulty_row_does_not_displace_its_correction() -> None:
    frame = pl.concat([spoil(bars()[:31], 30, "close", math.nan), bars()[30:]])
    table = read("bars", frame)
    assert table.quarantine.select("row", "rule").rows() == [(30, "price_not_finite")]
    assert table.frame.equals(read("bars", bars()).frame)


def test_an_event_with_two_impacts_keeps_both() -> None:
    frame = pl.concat([events(1), spoil(events(1), 0, "impact", 0.1)])
    assert read("events", frame).frame["impact"].to_list() == [0.8, 0.1]


def test_too_many_faults_refuse_the_whole_input() -> None:
    frame = bars().with_columns(high=pl.when(pl.int_range(pl.len()) % 10 == 7).then(1.0).otherwise("high"))
    with pytest.raises(DataError, match=r"row 7: 10 of 100 rows are faulty, 10.0% \(allowed 5.0%\): row 7: high_below"):
        read("bars", frame)
    loose = SHIPPED.model_copy(update={"max_quarantined_share": 0.1})
    assert read_table("bars", frame, inputs=loose).quarantine.height == 10


# Faults of the whole input


def test_the_faults_of_whole_inputs_name_source_value_and_way_out(tmp_path: Path) -> None:
    good = bars()
    swapped = pl.concat([good[:10], good[11:12], good[10:11], good[12:]])
    cases: list[tuple[str, str, Any, str]] = [
        ("kind_unknown", "bar", good, "did you mean 'bars'"),
        ("empty", "bars", good[:0], "holds no rows"),
        ("empty", "events", events().with_columns(currency=pl.lit("EUR")), "no row is left"),
        ("column_missing", "bars", good.drop("close"), "the column 'close' is missing; the source has: timestamp"),
        ("column_missing", "bars", good.rename({"close": "cloze"}), "is it 'cloze'"),
        ("column_missing", "bars", good.drop("volume"), "constants: {volume: 0.0}"),
        ("column_missing", "trades", trades().drop("aggressor"), "constants: {side: 0}"),
        ("column_missing", "events", pl.DataFrame({"date": [START.date()]}), "a date is not an instant"),
        ("column_missing", "trades", trades().rename({"ts": "ts_event"}), "only the exchange's time 'ts_event'"),
        ("column_ambiguous", "bars", good.rename({"close": "c"}).with_columns(tr_close="c"), "'tr_close' and 'c'"),
        ("type_wrong", "bars", spoil(good.cast({"open": pl.String}), 8, "open", "n/a"), "row 8: .*: n/a"),
        ("type_wrong", "bars", good.with_columns(open=pl.lit(True)), "numbers"),
        ("type_wrong", "bars", good.with_columns(timestamp=pl.lit(START.date())), "a date is not an instant"),
        ("type_wrong", "bars", good.with_columns(timestamp=pl.int_range(pl.len())), "bars.epoch"),
        ("type_wrong", "bars", good.with_columns(timestamp=pl.lit(1.5)), "instants"),
        ("type_wrong", "bars", good.with_columns(timestamp=pl.lit("03/04/2024 10:00")), "row 0: .*time_format"),
        ("type_wrong", "bars", good.with_columns(timestamp=pl.lit("2024-13-04T10:00:00Z")), "2024-13-04"),
        ("type_wrong", "chain", chain().with_columns(expiry=pl.lit("8 March")), "YYYY-MM-DD.*8 March"),
        ("type_wrong", "chain", chain().with_columns(root=pl.lit(1.5)), "text"),
        ("type_wrong", "bars", good.with_columns(timestamp=pl.lit(dt.datetime(3000, 1, 1, tzinfo=UTC))), "1678"),
        ("zone_missing", "bars", good.with_columns(pl.col("timestamp").dt.replace_time_zone(None)), "bars.zone"),
        ("zone_missing", "events", events().with_columns(start_time=pl.lit("2024-03-04 10:00")), "events.zone"),
        ("stamp_unknown", "cross", cross().with_columns(high=16.0), "start or the end of a bar.*cross.stamp"),
        ("unsorted", "bars", swapped, "row 11: timestamp 2024-03-04T14:40:00.* comes after 2024-03-04T14:41:00"),
        ("not_found", "bars", tmp_path / "none.parquet", "none.parquet: there is no such file"),
        ("not_found", "bars", tmp_path / "none.csv", "none.csv: there is no such file"),
        ("unreadable", "bars", tmp_path / "bars.xlsx", "'.xlsx' is not a format"),
        ("unreadable", "bars", {"open": [1.0]}, "a dict is no frame"),
        ("unreadable", "bars", [1.0], "list is neither a path nor a frame"),
        ("unreadable", "bars", good.lazy(), "holds no rows yet"),
        ("column_missing", "chain", good, "is this a file of chain at all"),
    ]
    for name, kind, source, pattern in cases:
        with pytest.raises(DataError, match=f"(?s){pattern}") as caught:
            read(kind, source)
        if name != "kind_unknown":
            assert f"[{name}]" in str(caught.value), pattern
        assert caught.value.hint
        assert caught.value.then == "the whole input was refused; nothing of it is used"
    elsewhere = {"local_time_ambiguous", "interval_mismatch", "too_many_faults"}
    assert {case[0] for case in cases} | elsewhere == set(REFUSALS)


def test_unsorted_rows_are_named_by_source_row_after_filters() -> None:
    frame = events(20).with_columns(currency=pl.Series(["EUR"] * 5 + ["USD"] * 15))
    with pytest.raises(DataError, match="row 12: start_time"):
        read("events", pl.concat([frame[:11], frame[12:13], frame[11:12], frame[13:]]))


def test_a_missing_time_does_not_hide_an_unsorted_one() -> None:
    frame = spoil(bars(), 11, "timestamp", None)
    frame = spoil(frame, 12, "timestamp", START)
    with pytest.raises(DataError, match="row 12: timestamp 2024-03-04T14:30"):
        read("bars", frame)


@pytest.mark.parametrize("suffix", ["parquet", "csv.gz"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bars.{suffix}"
    if suffix == "parquet":
        bars().write_parquet(path)
    else:
        path.write_bytes(gzip.compress(bars().write_csv().encode()))
    assert read("bars", path).frame.height == 100
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"bars\.{suffix}: cannot be read"):
        read("bars", path)


def test_the_canonical_name_wins_over_others() -> None:
    frame = bars().with_columns(ts=pl.lit(START), c=pl.lit(1.0), last=pl.lit(2.0))
    out = read("bars", frame).frame
    assert out["close"].to_list() == bars()["close"].to_list()
    assert out["c"].to_list() == [1.0] * 100
    assert read("bars", bars().with_columns(Close=pl.lit(1.0))).frame["close"].to_list() == bars()["close"].to_list()
    with pytest.raises(DataError, match="'Close' and 'CLOSE'"):
        read("bars", bars().rename({"close": "Close"}).with_columns(CLOSE="Close"))


# Sources


def as_pandas_index(frame: pl.DataFrame) -> Any:
    return frame.to_pandas().set_index("timestamp")


def as_duckdb(frame: pl.DataFrame) -> Any:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'America/New_York'")
    connection.register("good", frame.to_arrow())
    return connection.sql("SELECT timestamp, open, high, low, close, volume::DECIMAL(12, 2) AS volume FROM good")


@pytest.mark.parametrize(
    "convert",
    [
        pl.DataFrame.to_pandas,
        pl.DataFrame.to_arrow,
        as_pandas_index,
        as_duckdb,
        lambda frame: pa.table(frame.to_arrow()).to_reader(max_chunksize=7),
        lambda frame: pl.concat([frame[:50], frame[50:]], rechunk=False),
        lambda frame: frame.with_columns(pl.col("timestamp").dt.convert_time_zone("Asia/Tokyo")),
        lambda frame: frame.to_pandas().sample(frac=1, random_state=1).sort_values("timestamp"),
    ],
)
def test_every_arrow_speaking_frame_gives_the_same_table(convert: Any) -> None:
    expected = read("bars", bars())
    table = read("bars", convert(bars()))
    assert table.frame.equals(expected.frame)
    assert table.frame.n_chunks() == 1


def test_a_fixed_offset_is_an_instant() -> None:
    arrow = bars().to_arrow()
    column = arrow["timestamp"].cast(pa.timestamp("us", "+02:00"))
    table = read("bars", arrow.set_column(0, "timestamp", column))
    assert table.frame["timestamp"].to_list() == bars()["timestamp"].to_list()


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("suffix", ["parquet", "csv", "csv.gz"])
def test_files_give_the_same_table_as_the_frame(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"{kind}.{suffix}"
    frame = GOOD[kind]()
    if suffix == "parquet":
        frame.write_parquet(path)
    elif suffix == "csv":
        frame.write_csv(path)
    else:
        path.write_bytes(gzip.compress(frame.write_csv().encode()))
    table = read(kind, str(path))
    assert table.source == str(path)
    assert table.frame.equals(read(kind, frame).frame)


def test_what_was_read_can_be_read_again(tmp_path: Path) -> None:
    once = read("bars", bars())
    once.frame.write_parquet(tmp_path / "again.parquet")
    assert read("bars", tmp_path / "again.parquet").frame.equals(once.frame)


def address(values: pl.Series) -> int:
    return int(values.to_numpy(allow_copy=False).__array_interface__["data"][0])


def test_float_columns_of_a_frame_are_not_copied() -> None:
    arrow = bars().to_arrow().combine_chunks()
    out = read("bars", arrow).frame
    for name in ("open", "high", "low", "close", "volume"):
        assert address(out[name]) == arrow[name].chunk(0).buffers()[1].address
    frame = bars()
    renamed = read("bars", frame.rename({"close": "c"})).frame
    assert address(renamed["close"]) == address(frame["close"])


def test_the_source_frame_is_left_as_it_was() -> None:
    frame = spoil(bars(), 3, "high", 1.0)
    before = frame.clone()
    read("bars", frame)
    assert frame.equals(before)


# Time zones


def test_naive_instants_are_read_in_the_configured_zone_on_both_sides_of_a_clock_change() -> None:
    naive = [dt.datetime(2024, 3, 8, 9, 30), dt.datetime(2024, 3, 11, 9, 30)]
    expected = [dt.datetime(2024, 3, 8, 14, 30, tzinfo=UTC), dt.datetime(2024, 3, 11, 13, 30, tzinfo=UTC)]
    frame = bars(2).with_columns(timestamp=pl.Series(naive))
    assert read("bars", frame, zone="America/New_York").frame["timestamp"].to_list() == expected
    text = frame.with_columns(pl.col("timestamp").dt.to_string("%Y-%m-%d %H:%M"))
    assert read("bars", text, zone="America/New_York").frame["timestamp"].to_list() == expected
    american = frame.with_columns(pl.col("timestamp").dt.to_string("%m/%d/%Y %H:%M"))
    out = read("bars", american, zone="America/New_York", time_format="%m/%d/%Y %H:%M")
    assert out.frame["timestamp"].to_list() == expected


@pytest.mark.parametrize("moment", [dt.datetime(2024, 11, 3, 1, 30), dt.datetime(2024, 3, 10, 2, 30)])
@pytest.mark.parametrize("text", [False, True])
def test_a_local_hour_that_occurs_twice_or_never_is_refused(moment: dt.datetime, text: bool) -> None:
    naive = pl.Series([moment - dt.timedelta(days=1), moment, moment + dt.timedelta(days=1)])
    frame = bars(3).with_columns(timestamp=naive.dt.to_string("iso") if text else naive)
    with pytest.raises(DataError, match=rf"row 1: timestamp {moment.date()}.*\[local_time_ambiguous\]"):
        read("bars", frame, zone="America/New_York")


def test_text_instants_keep_their_nanoseconds_and_offsets() -> None:
    text = ["2024-03-04T14:30:00.123456789Z", "2024-03-04 09:31-05:00", "2024-03-04T15:32:00+0100", "2024-03-04T14:33Z"]
    table = read("trades", trades(4).with_columns(ts=pl.Series(text)))
    first = 1709562600_000000000
    expected = [first + 123456789, first + 60_000000000, first + 120_000000000, first + 180_000000000]
    assert table.frame["timestamp"].dt.epoch("ns").to_list() == expected
    mixed = trades(4).with_columns(ts=pl.Series([*text[:2], "2024-03-04 15:00", text[3]]))
    with pytest.raises(DataError, match=r"row 2: ts 2024-03-04 15:00 has no offset"):
        read("trades", mixed)


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_integers_are_instants_in_the_configured_unit(unit: str, factor: int) -> None:
    epoch = [1709562600 * factor, 1709562660 * factor]
    table = read("bars", bars(2).with_columns(timestamp=pl.Series(epoch)), epoch=unit)
    assert table.frame["timestamp"].to_list() == [START, START + MINUTE]
    if unit != "ns":
        with pytest.raises(DataError, match="row 1"):
            read("bars", bars(2).with_columns(timestamp=pl.Series([0, 2**62])), epoch=unit)


# Daily values


def daily(days: pl.Series, symbol: str) -> pl.DataFrame:
    return pl.DataFrame({"date": days, "symbol": symbol, "close": 1.0})


@pytest.mark.parametrize(
    ("symbol", "day", "known"),
    [
        ("VIX", dt.date(2024, 3, 8), dt.datetime(2024, 3, 8, 21, 15)),  # 16:15 EST
        ("VIX", dt.date(2024, 3, 11), dt.datetime(2024, 3, 11, 20, 15)),  # 16:15 EDT
        ("SPY", dt.date(2024, 3, 11), dt.datetime(2024, 3, 11, 20, 0)),
        ("BTCUSD", dt.date(2024, 3, 9), dt.datetime(2024, 3, 10, 0, 0)),
        ("DGS10", dt.date(2024, 3, 8), dt.datetime(2024, 3, 11, 20, 15)),  # Friday's is published on Monday
    ],
)
def test_a_daily_value_counts_only_after_its_close(symbol: str, day: dt.date, known: dt.datetime) -> None:
    sources = [
        pl.Series([day]),
        pl.Series([day.isoformat()]),
        pl.Series([dt.datetime.combine(day, dt.time())]),  # as pandas keeps dates
    ]
    for values in sources:
        out = read("cross", daily(values, symbol)).frame
        assert out["timestamp"].to_list() == [known.replace(tzinfo=UTC)]


def test_a_close_in_the_hour_of_the_clock_change_is_never_early() -> None:
    close = {"default": {"time": "01:30", "zone": "America/New_York"}}
    out = read("cross", daily(pl.Series([dt.date(2024, 11, 3)]), "X"), daily=close).frame
    assert out["timestamp"].to_list() == [dt.datetime(2024, 11, 3, 6, 30, tzinfo=UTC)]  # the second 01:30
    close = {"default": {"time": "02:30", "zone": "America/New_York"}}
    out = read("cross", daily(pl.Series([dt.date(2024, 3, 10)]), "X"), daily=close).frame
    assert out["timestamp"].to_list() == [dt.datetime(2024, 3, 10, 7, 30, tzinfo=UTC)]  # 03:30 EDT


def test_of_two_sources_the_preferred_wins_and_the_other_fills_its_holes() -> None:
    days = [dt.date(2024, 3, day) for day in (4, 5, 6, 7)]
    second = pl.DataFrame({"date": days, "symbol": "SPY", "close": 2.0, "source": "other"})
    first = pl.DataFrame({"date": [days[0], days[3]], "symbol": "SPY", "close": 1.0, "source": "lean"})
    for frame in (pl.concat([second, first]), pl.concat([first, second])):
        table = read("cross", frame)
        assert table.frame["close"].to_list() == [1.0, 2.0, 2.0, 1.0]
        assert table.frame["timestamp"].is_sorted()
        assert "left out 2 values that a preferred source also has" in table.report()
    with pytest.raises(DataError, match=r"row 1: timestamp .* of SPY of lean comes after"):
        read("cross", pl.concat([first[::-1], second]))


# The mapping


def test_an_unknown_column_in_the_mapping_is_refused_with_its_line(workspace: Workspace) -> None:
    path = workspace.root / "config" / "inputs.yaml"
    path.parent.mkdir()
    path.write_text("bars:\n  columns:\n    closs: [last]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"(?s)inputs.yaml:3: unknown key 'bars.columns.closs'.*did you mean 'close'"):
        read_table("bars", bars())
    path.write_text("bars:\n  columns:\n    close: [last_price]\n", encoding="utf-8")
    renamed = bars().rename({"close": "last_price"})
    assert read_table("bars", renamed).frame.height == 100
    assert read_table("bars", renamed, workspace=workspace).frame.height == 100
    with pytest.raises(DataError, match="'close' is missing"):
        read_table("bars", renamed, workspace=Workspace(ROOT))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"bars": {"columns": {"close": []}}}, "at least 1 item"),
        ({"bars": {"columns": {"close": ["x"], "open": ["X"]}}}, "listed under 'open' and under 'close'"),
        ({"book": {"columns": {"bid_price": ["b{depth}"]}}}, "only {level} and {level0}"),
        ({"bars": {"interval": "1 minute"}}, "is not a duration"),
        ({"bars": {"interval": []}}, "at least 1 item"),
        ({"bars": {"zone": "New York"}}, "not an IANA time zone"),
        ({"bars": {"stamp": "middle"}}, "'start' or 'end'"),
        ({"cross": {"daily": {"default": {"time": 960}}}}, "in quotes as HH:MM"),
        ({"cross": {"daily": {"default": {"time": "25:00"}}}}, "in quotes as HH:MM"),
        ({"cross": {"daily": {"closes": [{"symbols": ["A"]}, {"symbols": ["A"]}]}}}, "'A' has two closes"),
        ({"max_quarantined_share": 1.0}, "less than 1"),
        ({"quotes": {}}, "Extra inputs"),
    ],
)
def test_a_wrong_mapping_is_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        InputsConfig.model_validate(content)


# The live path


BAR = {"open": 10.0, "high": 12.0, "low": 9.0, "close": 11.0, "volume": 5.0}


@pytest.mark.parametrize(
    ("change", "denial"),
    [
        ({}, None),
        ({"open": math.nan}, "BAR_PRICE_NOT_FINITE: open=nan"),
        ({"high": math.inf}, "BAR_PRICE_NOT_FINITE: high=inf"),
        ({"low": 0.0}, "BAR_PRICE_NOT_POSITIVE: low=0.0"),
        ({"high": 8.0}, "BAR_HIGH_BELOW_LOW: high=8.0 low=9.0"),
        ({"open": 13.0}, "BAR_OPEN_OUTSIDE_RANGE: open=13.0 low=9.0 high=12.0"),
        ({"close": 8.0}, "BAR_CLOSE_OUTSIDE_RANGE: close=8.0 low=9.0 high=12.0"),
        ({"volume": math.nan}, "BAR_VOLUME_NOT_FINITE: volume=nan"),
        ({"volume": -1.0}, "BAR_VOLUME_NEGATIVE: volume=-1.0"),
    ],
)
def test_a_live_bar_is_denied_by_the_declared_rules(change: dict[str, float], denial: str | None) -> None:
    assert check_bar(120, **(BAR | change), previous_known_ns=120) == denial
    if denial is not None:
        names = {f"BAR_{rule.name.upper()}" for rule in TABLES["bars"].rules}
        assert denial.split(":")[0] in names


def test_a_live_bar_may_not_start_before_the_last_one_closed() -> None:
    assert check_bar(119, **BAR, previous_known_ns=None) is None
    assert check_bar(119, **BAR, previous_known_ns=120) == "BAR_OVERLAPS: timestamp=119 previous_known=120"


AWKWARD = st.sampled_from([9.0, 10.0, 11.0, 13.0, 0.0, -1.0, math.nan, math.inf, -math.inf, 1e300])
STEP = st.one_of(st.integers(0, 150), st.just(60), st.sampled_from([1799, 1800, 1860]))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(STEP, st.one_of(st.just(10.0), AWKWARD), AWKWARD, AWKWARD, AWKWARD, AWKWARD),
            st.tuples(STEP, st.sampled_from([5.0, 9.0, 10.0, 11.0, 13.0, 100.0])).map(
                lambda bar: (bar[0], bar[1], bar[1], bar[1], bar[1], 1.0)
            ),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_the_live_check_and_the_table_accept_the_same_bars(rows: list[tuple[Any, ...]]) -> None:
    stamp, known, accepted, stamps = 0, None, [], []
    jumps = PriceJumps(0.2, 3, 1_800_000_000_000)
    for step, *numbers in rows:
        stamp += step * 1_000_000_000
        stamps.append(stamp)
        denial = check_bar(stamp, *numbers, known) or jumps.fault(stamp, *numbers[1:4])
        accepted.append(denial is None)
        if denial is None:
            known = stamp + 60_000_000_000
            jumps.take(stamp, numbers[3])
    names = ["open", "high", "low", "close", "volume"]
    frame = pl.DataFrame([row[1:] for row in rows], schema=dict.fromkeys(names, pl.Float64), orient="row")
    frame = frame.with_columns(timestamp=pl.Series(stamps).cast(pl.Datetime("ns", "UTC")))
    config = InputsConfig.model_validate({"max_quarantined_share": 0.999999, "bars": {"interval": "1m"}})
    if not any(accepted):
        with pytest.raises(DataError, match="too_many_faults"):
            read_table("bars", frame, inputs=config)
        return
    table = read_table("bars", frame, inputs=config)
    assert table.quarantine["row"].to_list() == [row for row, good in enumerate(accepted) if not good]
    assert table.frame["timestamp"].dt.epoch("ns").to_list() == [
        value for value, good in zip(stamps, accepted, strict=True) if good
    ]


# Bad prints


def flat(*prices: float | tuple[float, float, float], step: int = 60) -> pl.DataFrame:
    """Minute bars: one price each, or high, low and close."""
    shaped = [price if isinstance(price, tuple) else (price, price, price) for price in prices]
    stamps = [1_700_000_040 + step * k for k in range(len(prices))]
    return pl.DataFrame(
        {
            "timestamp": (pl.Series(stamps, dtype=pl.Int64) * 1000).cast(pl.Datetime("ms", "UTC")),
            "open": [float(close) for _, _, close in shaped],
            "high": [float(high) for high, _, _ in shaped],
            "low": [float(low) for _, low, _ in shaped],
            "close": [float(close) for _, _, close in shaped],
            "volume": [1.0] * len(prices),
        }
    )


JUMPS = InputsConfig.model_validate({"max_quarantined_share": 0.9})


@pytest.mark.parametrize(
    ("prices", "refused"),
    [
        ([100, 50, 100, 101], [1]),
        ([100, 1000, 100, 101], [1]),
        ([100, (1000, 100, 100), 100], [1]),  # a spike inside the bar
        ([100, (1000, 100, 100), (1000, 100, 100), (1000, 100, 100), 100], [1, 2, 3]),  # is no level however often
        ([100, 120, 96, 100], []),  # at the limit, each against the close before it
        ([100, 120.1, 100], [1]),
        ([100, 50, 50, 50, 51, 50], [1, 2]),  # a true move: the third bar at the level is taken, and those behind it
        ([100, 50, 100, 50, 100, 50, 100], [1, 3, 5]),  # not in a row
        ([100, 50, 10, 50, 10, 10, 10, 10], [1, 2, 3, 4, 5]),  # not one level
        ([1000, 100, 100, 100, 100], [1, 2]),  # the first of all cannot be judged, and does not rule for ever
    ],
)
def test_a_bad_print_is_refused_and_a_true_move_is_confirmed(prices: list[Any], refused: list[int]) -> None:
    table = read_table("bars", flat(*prices), inputs=JUMPS)
    assert table.quarantine["row"].to_list() == refused
    assert set(table.quarantine["rule"]) <= {"price_jump"}
    if refused:
        assert table.quarantine["value"][0].startswith("high=")
        assert "bars.price_jump.limit" in table.quarantine["hint"][0]


def test_behind_a_pause_a_session_begins_at_any_price() -> None:
    table = read_table(
        "bars",
        flat(100, 100, 100).vstack(flat(50, 50).with_columns(pl.col("timestamp") + pl.duration(minutes=32))),
        inputs=JUMPS,
    )
    assert table.quarantine.is_empty()
    short = flat(100, 100, 100).vstack(flat(50, 100).with_columns(pl.col("timestamp") + pl.duration(minutes=31)))
    assert read_table("bars", short, inputs=JUMPS).quarantine["row"].to_list() == [3]


def test_daily_bars_and_a_limit_of_null_are_never_refused() -> None:
    daily = InputsConfig.model_validate({"bars": {"interval": "1d"}})
    assert read_table("bars", flat(100, 50, 500, step=86_400), inputs=daily).quarantine.is_empty()
    off = InputsConfig.model_validate({"bars": {"price_jump": {"limit": None}}})
    assert read_table("bars", flat(100, 50, 500, 50), inputs=off).quarantine.is_empty()


def test_each_symbol_has_its_own_last_close_and_a_correction_is_taken() -> None:
    both = pl.concat(
        [flat(100, 100, 50, 100).with_columns(symbol=pl.lit("A")), flat(5, 5, 5, 5).with_columns(symbol=pl.lit("B"))]
    ).sort("timestamp", "symbol")
    assert read_table("bars", both, inputs=JUMPS).quarantine["row"].to_list() == [4]
    again = flat(100, 50, 100, 100)
    again = again.with_columns(timestamp=again["timestamp"].gather([0, 1, 1, 2]))
    table = read_table("bars", again, inputs=JUMPS)
    assert table.quarantine.select("row", "rule").rows() == [(1, "price_jump")]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([50.0, 55.0, 100.0, 110.0, 1000.0]), min_size=2, max_size=25),
    st.lists(st.integers(1, 24), max_size=4),
)
def test_blocks_cut_anywhere_refuse_the_same_bars_as_the_whole(prices: list[float], cuts: list[int]) -> None:
    loose = InputsConfig.model_validate({"max_quarantined_share": 0.999, "bars": {"interval": "1m"}})
    frame = flat(*prices)
    whole = read_table("bars", frame, inputs=loose).quarantine["row"].to_list()
    carry: dict[Any, PriceJumps] = {}
    found = []
    edges = sorted({0, len(prices), *(cut for cut in cuts if cut < len(prices))})
    for begin, end in itertools.pairwise(edges):
        config = loose.model_copy(update={"max_quarantined_share": 1.0})
        table = read_table("bars", frame[begin:end], inputs=config, carry=carry)
        found += [begin + row for row in table.quarantine["row"]]
    assert found == whole


# Random faults in good tables


@st.composite
def injected(draw: st.DrawFn) -> tuple[str, dict[int, tuple[str, Any, str]]]:
    kind = draw(st.sampled_from(sorted(TABLES)))
    faults = [fault[1:] for fault in ROW_FAULTS if fault[0] == kind and not isinstance(fault[2], str)]
    rows = draw(st.lists(st.integers(0, 99), max_size=5, unique=True))
    return kind, {row: draw(st.sampled_from(faults)) for row in rows}


@settings(max_examples=100, deadline=None)
@given(injected())
def test_exactly_the_injected_rows_are_quarantined(case: tuple[str, dict[int, tuple[str, Any, str]]]) -> None:
    kind, faults = case
    good = frame = GOOD[kind]()
    for row, (column, value, _) in faults.items():
        frame = spoil(frame, row, column, value)
    table = read(kind, frame)
    assert dict(table.quarantine.select("row", "rule").rows()) == {row: fault[2] for row, fault in faults.items()}
    keep = pl.Series([row not in faults for row in range(100)])
    expected = read(kind, good).frame.filter(keep)
    assert table.frame.select(expected.columns).equals(expected)


# The page


def test_the_page_of_the_tables_is_current() -> None:
    text = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    assert text == page.markdown(), "run: python -m mia_fast.tables.page docs/tables.md"
