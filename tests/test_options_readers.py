"""Chains in the formats people have: each written by hand from a simulated chain, read, and priced alike."""

from __future__ import annotations

import datetime as dt
import json
from types import SimpleNamespace

import polars as pl
import pytest
from test_options_levels import CONFIG, NOON, SPOT, simulated

from mia_fast.clock import from_datetime
from mia_fast.errors import DataError
from mia_fast.options import LevelsEngine, read_chain
from mia_fast.options.readers import is_cboe_csv, read_cboe_csv

SEEN = NOON + dt.timedelta(minutes=15)


def symbols(frame: pl.DataFrame) -> pl.DataFrame:
    milli = (pl.col("strike") * 1000).cast(pl.Int64).cast(pl.String).str.zfill(8)
    symbol = pl.concat_str("root", pl.col("expiry").dt.strftime("%y%m%d"), "type", milli)
    return frame.with_columns(symbol=symbol)


def cboe_csv(frame: pl.DataFrame) -> str:
    both = (
        symbols(frame)
        .pivot(
            on="type", index=["root", "expiry", "strike"], values=["symbol", "bid", "ask", "open_interest", "volume"]
        )
        .drop_nulls()
        .sort("expiry", "root", "strike")
    )
    rows = [
        "",
        f"S&P 500 INDEX,Last: {SPOT},Change: 3.10",
        f'"Date: {SEEN:%B %d, %Y} at {SEEN:%I:%M %p} EDT",Bid: 5299,Ask: 5301,Size: 1*1,Volume: 0',
        "Expiration Date,Calls,Last Sale,Net,Bid,Ask,Volume,IV,Delta,Gamma,Open Interest,Strike,"
        "Puts,Last Sale,Net,Bid,Ask,Volume,IV,Delta,Gamma,Open Interest",
    ]
    for row in both.iter_rows(named=True):
        sides = [
            f"{row[f'symbol_{k}']},0,0,{row[f'bid_{k}']!r},{row[f'ask_{k}']!r},{row[f'volume_{k}']},0.2,0.5,0.001,"
            f"{row[f'open_interest_{k}']}"
            for k in "CP"
        ]
        rows.append(f"{row['expiry']:%a %b %d %Y},{sides[0]},{row['strike']:.3f},{sides[1]}")
    return "\n".join(rows) + "\n"


def cboe_json(frame: pl.DataFrame, *, stamp: str) -> str:
    options = [
        {
            "option": row["symbol"],
            "bid": row["bid"],
            "ask": row["ask"],
            "iv": 0.2,
            "open_interest": float(row["open_interest"]),
            "volume": float(row["volume"]),
            "delta": 0.5,
            "gamma": 0.001,
            "last_trade_price": 0.0,
            "last_trade_time": None,
        }
        for row in symbols(frame).iter_rows(named=True)
    ]
    data = {"options": options, "current_price": SPOT, "last_trade_time": "2024-05-15T12:00:00", "symbol": "^SPX"}
    return json.dumps({"timestamp": stamp, "data": data, "symbol": "_SPX"})


@pytest.fixture(scope="module")
def chain() -> pl.DataFrame:
    return simulated(3)


@pytest.fixture(scope="module")
def expected(chain):
    return LevelsEngine(CONFIG).update(chain)


def assert_same_levels(frame: pl.DataFrame, expected) -> None:
    levels = LevelsEngine(CONFIG).update(frame)
    assert levels.status == "OK"
    assert levels.contracts == expected.contracts
    assert levels.net_gamma == pytest.approx(expected.net_gamma, rel=1e-9)
    assert levels.zero_gamma == pytest.approx(expected.zero_gamma, rel=1e-12)
    assert levels.iv_atm == pytest.approx(expected.iv_atm, rel=1e-12)


def test_cboe_csv(chain, expected, tmp_path, workspace):
    path = tmp_path / "spx_quotedata.csv"
    path.write_text(cboe_csv(chain))
    frame = read_chain(path, workspace=workspace)
    assert frame["quote_time"].dt.epoch("ns")[0] == from_datetime(SEEN)
    assert_same_levels(frame, expected)
    assert set(frame["settlement"].unique()) == {"AM", "PM"}
    assert frame["volume"].null_count() == 0


@pytest.mark.parametrize("stamp", ["2024-05-15 16:15:00", "2024-05-15 12:15:00"])
def test_cboe_json_in_utc_and_in_new_york(stamp, chain, expected, tmp_path, workspace):
    path = tmp_path / "_SPX.json"
    path.write_text(cboe_json(chain, stamp=stamp))
    frame = read_chain(str(path), workspace=workspace)
    assert frame["quote_time"].dt.epoch("ns")[0] == from_datetime(SEEN)
    assert_same_levels(frame, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_frames_as_yfinance_returns_them(chain, expected, workspace):
    pandas = pytest.importorskip("pandas")
    about = {"regularMarketPrice": SPOT, "regularMarketTime": int(NOON.timestamp())}
    parts = []
    for _, part in symbols(chain).group_by("expiry", "root", maintain_order=True):
        sides = []
        for kind in "CP":
            side = part.filter(pl.col("type") == kind)
            sides.append(
                pandas.DataFrame(
                    {
                        "contractSymbol": side["symbol"].to_list(),
                        "strike": side["strike"].to_list(),
                        "lastPrice": 0.0,
                        "bid": side["bid"].to_list(),
                        "ask": side["ask"].to_list(),
                        "volume": [float("nan")] * side.height,
                        "openInterest": side["open_interest"].to_list(),
                        "impliedVolatility": 0.2,
                        "inTheMoney": False,
                    }
                )
            )
        parts.append(SimpleNamespace(calls=sides[0], puts=sides[1], underlying=about))
    assert_same_levels(read_chain(parts, workspace=workspace), expected)
    bare = SimpleNamespace(calls=parts[0].calls, puts=parts[0].puts, underlying=None)
    with pytest.raises(DataError, match="pass underlying_price"):
        read_chain(bare, workspace=workspace)
    told = read_chain(bare, underlying_price=SPOT, quote_time=NOON, workspace=workspace)
    assert told["underlying_price"].unique().to_list() == [SPOT]
    with pytest.raises(DataError, match="columns missing: openInterest"):
        broken = SimpleNamespace(
            calls=parts[0].calls.drop(columns="openInterest"), puts=parts[0].puts, underlying=about
        )
        read_chain(broken, workspace=workspace)


def test_a_tidy_parquet(chain, expected, tmp_path, workspace):
    path = tmp_path / "chain.parquet"
    chain.rename({"open_interest": "oi", "underlying_price": "spot"}).write_parquet(path)
    assert_same_levels(read_chain(path, workspace=workspace), expected)


@pytest.mark.parametrize(
    ("seen", "live"),
    [
        ("2024-05-15 12:00", "2024-05-15 11:45"),
        ("2024-05-15 18:00", "2024-05-15 16:15"),
        ("2024-05-15 20:45", "2024-05-15 20:30"),
        ("2024-05-18 11:00", "2024-05-17 16:15"),
        ("2024-05-27 10:00", "2024-05-24 16:15"),
    ],
)
def test_when_delayed_quotes_were_live(seen, live, chain, tmp_path):
    moment = dt.datetime.fromisoformat(seen).replace(tzinfo=NOON.tzinfo)
    text = cboe_csv(chain).replace(f"{SEEN:%B %d, %Y} at {SEEN:%I:%M %p}", f"{moment:%B %d, %Y} at {moment:%I:%M %p}")
    path = tmp_path / "chain.csv"
    path.write_text(text)
    frame = read_cboe_csv(path, CONFIG)
    wanted = dt.datetime.fromisoformat(live).replace(tzinfo=NOON.tzinfo)
    assert frame["market_time"].dt.epoch("ns")[0] == from_datetime(wanted)


def test_what_is_damaged_is_refused(chain, tmp_path, workspace):
    path = tmp_path / "chain.csv"
    text = cboe_csv(chain)
    for damage, message in (
        (text.replace("Last:", "Zuletzt:"), "heading lacks"),
        (text.replace("SPXW240515C", "SPXW24O515C", 1), "is not an option symbol"),
        ("\n".join(text.splitlines()[:5])[:-20] + "\n", "columns, 22 expected|is not an option symbol|cannot be read"),
    ):
        path.write_text(damage)
        assert is_cboe_csv(path)
        with pytest.raises(DataError, match=message):
            read_chain(path, workspace=workspace)
    path = tmp_path / "chain.json"
    for text in ("{}", "[1", cboe_json(chain, stamp="noon")):
        path.write_text(text)
        with pytest.raises(DataError, match="is not Cboe's JSON"):
            read_chain(path, workspace=workspace)
