"""The shipped mapping on the real files, as they are."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import polars as pl
import pytest

from mia_fast.errors import DataError
from mia_fast.tables import InputsConfig, Table, inputs, read_table
from mia_fast.workspace import Workspace

SHIPPED = inputs(Workspace(Path(__file__).resolve().parents[1]))
pytestmark = pytest.mark.real

# kind, file, rows kept, rows quarantined
ACCEPTED = [
    ("bars", "bars/btcusd_1m_coinbase_days", 12_423, 0),
    ("bars", "bars/demo_es_1m_20200309_20200320", 12_326, 0),
    ("bars", "bars/demo_es_1m_20220606_20220617", 13_800, 0),
    ("bars", "bars/es_1m_2019", 349_335, 0),
    ("bars", "bars/es_1m_2020", 350_285, 0),
    ("bars", "bars/es_1m_2021", 353_264, 0),
    ("bars", "bars/es_1m_2022h1", 175_677, 0),
    ("bars", "bars/es_quote_trade_1m_2013", 17_537, 0),
    ("bars", "bars/nq_1m_202311", 14_714, 0),
    ("bars", "bars/spy_1m_2013", 3_180, 0),
    ("bars", "bars/spy_1s_20131007_08", 39_058, 0),
    ("bars", "bars/spy_qqq_1m_202511", 12_120, 0),
    ("bars", "bars/xasset_1m_20190211_15", 26_871, 0),
    ("trades", "l2/btcusdt_perp_trades_20240808", 21_313, 0),
    ("trades", "l2/es_trades_esh4_20231225", 1_865, 0),
    ("trades", "l2/es_mbo_esh4_20231225", 1_865, 0),
    ("trades", "l2/nq_trades_20251009_1600_1630utc", 19_794, 0),
    ("trades", "l2/nq_trades_20251127", 43_719, 0),
    ("book", "l2/aapl_lobster10_20120621", 999, 0),
    ("book", "l2/btcusdt_perp_bbo_20240808", 66_089, 0),
    ("book", "l2/btcusdt_perp_depth10_20240808", 4_260, 0),
    ("book", "l2/es_mbp10_esh4_20231225", 20_336, 143),
    ("chain", "options/spx_20220323_1011", 19_002, 0),
    ("chain", "options/spx_20221212", 19_156, 0),
    ("chain", "options/spx_20230904_gth", 19_158, 0),
    ("chain", "options/spx_20230914", 19_920, 0),
    ("chain", "options/spy_20230914", 7_292, 0),
    ("events", "macro/forexfactory_all_201911_202006", 785, 0),
    ("events", "macro/us_high_impact_2014_202206", 1_444, 0),
    ("cross", "cross/daily_prices_to_202206", 61_981, 0),
    ("cross", "cross/fred_yields_daily_to_202206", 16_637, 0),
    ("cross", "vol/vix_family_daily_to_202206", 30_169, 0),
]

# Files that are not one of the tables, and why.
REFUSED = [
    ("bars", "bars/xauusd_quote_1m_201405", "'open', 'high', 'low', 'close', 'volume' are missing"),  # quotes
    ("bars", "bars/spx_1m_20191105_08", r"constants: {volume: 0\.0}"),  # an index
    ("trades", "l2/spy_trades_20131007", r"constants: {side: 0}"),  # no aggressor told
    ("trades", "l2/nq_dom30_trades_20251020", r"constants: {side: 0}"),  # none that can be trusted
    ("book", "l2/es_mbo_esh4_20231225", "'bid_price_1'.* are missing"),  # order events
    ("events", "macro/fomc_dates_2000_202206", "a date is not an instant"),
]


def read(kind: str, path: Path, **changes: object) -> Table:
    content = SHIPPED.model_dump()
    for key, value in changes.items():
        content[kind][key] = value
    return read_table(kind, path, inputs=InputsConfig.model_validate(content))


@pytest.mark.parametrize(("kind", "name", "kept", "quarantined"), ACCEPTED, ids=[case[1] for case in ACCEPTED])
def test_a_real_file_is_accepted_as_it_is(real_data: Path, kind: str, name: str, kept: int, quarantined: int) -> None:
    table = read_table(kind, real_data / f"{name}.parquet", inputs=SHIPPED)
    assert (table.frame.height, table.quarantine.height) == (kept, quarantined)


@pytest.mark.parametrize(("kind", "name", "reason"), REFUSED, ids=[case[1] for case in REFUSED])
def test_a_file_that_is_no_table_is_refused_with_a_way_out(real_data: Path, kind: str, name: str, reason: str) -> None:
    with pytest.raises(DataError, match=f"(?s)column_missing.*{reason}|{reason}.*column_missing"):
        read_table(kind, real_data / f"{name}.parquet", inputs=SHIPPED)


def test_every_real_file_is_listed_here(real_data: Path) -> None:
    listed = {case[1] for case in [*ACCEPTED, *REFUSED]} | {"bars/spx_1m_20210104_14"}
    there = {str(path.relative_to(real_data).with_suffix("")) for path in real_data.rglob("*.parquet")}
    assert there == listed


def test_the_ways_out_work(real_data: Path) -> None:
    index = read("bars", real_data / "bars/spx_1m_20210104_14.parquet", constants={"volume": 0.0})
    assert (index.frame.height, index.quarantine.height) == (822, 0)
    for name, rows in (("spy_trades_20131007", 250_601), ("nq_dom30_trades_20251020", 1_058)):
        trades = read("trades", real_data / f"l2/{name}.parquet", constants={"side": 0})
        assert (trades.frame.height, trades.quarantine.height) == (rows, 0)


def test_the_trades_in_a_stream_of_orders_are_the_trades_file(real_data: Path) -> None:
    orders = read_table("trades", real_data / "l2/es_mbo_esh4_20231225.parquet", inputs=SHIPPED).frame
    trades = read_table("trades", real_data / "l2/es_trades_esh4_20231225.parquet", inputs=SHIPPED).frame
    shared = ["timestamp", "price", "size", "side", "event_time"]
    assert orders.select(shared).equals(trades.select(shared))


def test_the_crossed_books_are_all_before_the_opening(real_data: Path) -> None:
    path = real_data / "l2/es_mbp10_esh4_20231225.parquet"
    quarantine = read_table("book", path, inputs=SHIPPED).quarantine
    assert quarantine["rule"].unique().to_list() == ["book_crossed"]
    happened = pl.read_parquet(path)["ts_event"].gather(quarantine["row"])
    assert happened.max() < dt.datetime(2023, 12, 25, 23, tzinfo=dt.UTC)


def test_daily_values_of_real_symbols_are_known_at_their_close(real_data: Path) -> None:
    vix = read_table("cross", real_data / "vol/vix_family_daily_to_202206.parquet", inputs=SHIPPED).frame
    row = vix.filter(pl.col("symbol") == "VIX", pl.col("timestamp").dt.date() == dt.date(2020, 3, 16))
    assert row.select("timestamp", "close").row(0) == (dt.datetime(2020, 3, 16, 20, 15, tzinfo=dt.UTC), 82.69)
    prices = read_table("cross", real_data / "cross/daily_prices_to_202206.parquet", inputs=SHIPPED).frame
    qqq = prices.filter(pl.col("symbol") == "QQQ")
    assert qqq["timestamp"].is_sorted()
    assert qqq.filter(pl.col("timestamp").dt.year() == 2008).height > 250  # the hole of one source, filled by the other
    assert set(qqq.filter(pl.col("timestamp").dt.year() == 2020)["source"].unique()) == {"lean"}


def test_impacts_of_the_real_calendar_are_fractions_and_of_this_market(real_data: Path) -> None:
    table = read_table("events", real_data / "macro/forexfactory_all_201911_202006.parquet", inputs=SHIPPED)
    assert set(table.frame["impact"].unique()) == {0.0, 0.2, 0.5, 0.9}
    assert "left out 2,109 rows whose currency is not USD or All" in table.report()
