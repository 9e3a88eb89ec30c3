"""Inputs as of the bar: what each slower table says at a bar's close, in batch and live, and never too early."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import re
from pathlib import Path
from typing import Any

import bars
import naive_inputs
import numpy as np
import polars as pl
import pytest
import yaml
from bars import same_bits
from naive_inputs import close_at

from mia_fast.errors import ConfigError, DataError, StateError
from mia_fast.features import catalogue as catalogues
from mia_fast.features.asof import Steps, expiring
from mia_fast.features.catalogue import Catalogue, InputColumn
from mia_fast.features.cross import DailyHistory, MinuteHistory
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.events import EventSchedule
from mia_fast.features.frame import brought as brought_columns
from mia_fast.features.frame import feature_availability, generate_features, market_sources, plan_for, read_cross
from mia_fast.features.levels import LevelsHistory, level_inputs, read_levels
from mia_fast.features.live import Features
from mia_fast.features.plan import Plan, make_plan
from mia_fast.journal import Journal
from mia_fast.live.account import EXPOSURE
from mia_fast.live.broker import SimulatedBroker
from mia_fast.live.engine import MINUTE as MINUTE_OF_DAY
from mia_fast.live.engine import Bar, Engine
from mia_fast.live.policy import Policy
from mia_fast.live.replay import read_inputs, replay
from mia_fast.options.config import options_config
from mia_fast.options.levels import Levels, LevelsEngine, on_future
from mia_fast.risk import Desk
from mia_fast.risk.calendar import load_calendar
from mia_fast.risk.config import risk
from mia_fast.tables import read_table
from mia_fast.tables.mapping import day_closes
from mia_fast.workspace import Workspace, shipped

SHIPPED = Workspace(shipped())
SAMPLE = shipped() / "data" / "sample"
NUMERIC = {f.name for f in dataclasses.fields(Levels) if "float" in str(f.type) and "tuple" not in str(f.type)}
"""Every figure of a chain can be a feature."""


def own_inputs() -> list[dict[str, Any]]:
    """Inputs that no shipped feature reads: with them, every statistic and every field of the levels is declared."""
    rows: list[dict[str, Any]] = [
        {"name": "ofi", "table": "bars"},
        {"name": "spx_return_1", "table": "daily", "series": "SPX", "statistic": "log_return", "period": 1},
        {"name": "ndx", "table": "daily", "series": "NDX", "statistic": "last"},
        {"name": "vix_minute", "table": "minute", "series": "VIX", "statistic": "close"},
        {"name": "gld", "table": "minute", "series": "GLD", "statistic": "close"},
        {"name": "events_next_24h", "table": "events", "statistic": "count_next", "minutes": 1440},
        {"name": "impact_next_1h", "table": "events", "statistic": "impact_next", "minutes": 60},
    ]
    have = {c.field or c.name for c in catalogues.read(SHIPPED).inputs if c.table == "levels"}
    rows += [{"name": f"own_{name}", "table": "levels", "field": name} for name in sorted(NUMERIC - have)]
    return [{**row, "unit": "-", "meaning": "of this test"} for row in rows]


DECLARED = (*catalogues.read(SHIPPED).inputs, *map(InputColumn.model_validate, own_inputs()))
OF = {column.name: column for column in DECLARED}
MINUTE, DAY = naive_inputs.MINUTE, naive_inputs.DAY
SERIES = ("VIX", "VIX9D", "VIX3M", "VIX6M", "VIX1Y", "VVIX", "SKEW", "DGS10", "DGS2", "DXY", "SPX", "NDX", "RUT")
SERIES = (*SERIES, "XAUUSD", "WTI_SPOT", "BTCUSD")
CLOCK = dict.fromkeys(SERIES[:9], (16, 15, "America/New_York"))
CLOCK |= dict.fromkeys(("XAUUSD", "BTCUSD"), (24, 0, "UTC"))


def instants(known: np.ndarray) -> pl.Series:
    return pl.Series(np.asarray(known, dtype=np.int64)).cast(pl.Datetime("ns", "UTC"))


def cross_frame(rows: list[tuple[int, str, float, float | None]]) -> pl.DataFrame:
    frame = pl.DataFrame(
        rows, schema=["timestamp", "symbol", "close", "volume"], orient="row", infer_schema_length=None
    )
    return frame.with_columns(
        timestamp=instants(frame["timestamp"].to_numpy()), volume=pl.col("volume").cast(pl.Float64)
    )


def closes(seed: int, first: dt.date = dt.date(2023, 10, 2), days: int = 170) -> dict[str, list[naive_inputs.Close]]:
    """Daily closes of every declared series: holidays of their own, a hole of nine days, one oil price below zero."""
    rng = np.random.default_rng(seed)
    found = {}
    for name in SERIES:
        price = float(rng.uniform(10, 5000))
        held = []
        for k in range(days):
            day = first + dt.timedelta(days=k)
            price *= math.exp(float(rng.normal(0, 0.03)))
            if (day.weekday() > 4 and name not in ("XAUUSD", "BTCUSD")) or rng.random() < 0.05 or 60 <= k < 69:
                continue
            hour, minute, zone = CLOCK.get(name, (16, 0, "America/New_York"))
            value = -37.63 if name == "WTI_SPOT" and k == 120 else round(price, 2)
            held.append((day, close_at(day, hour, minute, zone), value))
        found[name] = held
    return found


def as_cross(found: dict[str, list[naive_inputs.Close]]) -> pl.DataFrame:
    rows = [(at, name, value, None) for name, held in found.items() for _, at, value in held]
    return cross_frame(sorted(rows, key=lambda row: row[0]))


def daily_of(frame: pl.DataFrame) -> DailyHistory:
    found = DailyHistory.from_cross(frame, DECLARED, day_closes(SHIPPED))
    assert found is not None
    return found


def twin(column: InputColumn, held: dict[str, list[naive_inputs.Close]], now: int) -> float:
    series, period = held[column.series or ""], column.period or 0
    if column.statistic == "correlation":
        return naive_inputs.correlation(series, held[column.other or ""], now, period)
    if column.statistic == "stress_correlation":
        return naive_inputs.correlation(series, held[column.other or ""], now, period, held["VIX"])
    return naive_inputs.daily(column.statistic or "", series, now, period)


# --- the grammar ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"table": "daily", "statistic": "last"}, "needs 'series'"),
        ({"table": "daily", "series": "VIX"}, "has the statistics"),
        ({"table": "daily", "series": "VIX", "statistic": "median"}, "has the statistics"),
        ({"table": "daily", "series": "VIX", "statistic": "mean"}, "needs 'period'"),
        ({"table": "daily", "series": "VIX", "statistic": "last", "period": 5}, "'period' does not belong"),
        ({"table": "daily", "series": "VIX", "statistic": "correlation", "period": 20}, "needs 'with'"),
        ({"table": "daily", "series": "VIX", "statistic": "correlation", "period": 2, "with": "SPX"}, "at least 3"),
        ({"table": "minute", "series": "SPY", "statistic": "last"}, "has the statistics close, volume"),
        ({"table": "events", "statistic": "count_last"}, "needs 'minutes'"),
        ({"table": "bars", "series": "ES"}, "'series' does not belong"),
        ({"table": "levels", "statistic": "last"}, "'statistic' does not belong"),
    ],
)
def test_an_input_that_does_not_fit_its_table_is_refused(row: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        InputColumn.model_validate({"name": "mine", "unit": "-", "meaning": "mine", **row})


def test_levels_know_their_fields() -> None:
    row = {"name": "mine", "table": "levels", "field": "gamma_wal", "unit": "-", "meaning": "mine"}
    with pytest.raises(ConfigError, match="'gamma_wal'"):
        level_inputs([InputColumn.model_validate(row)])
    assert {column.field or column.name for column in level_inputs(DECLARED)} >= NUMERIC


def test_every_statistic_and_table_is_declared_somewhere() -> None:
    assert {column.table for column in DECLARED} == set(catalogues.TABLES)
    said = {(column.table, column.statistic) for column in DECLARED}
    assert {(table, name) for table, names in catalogues._NEEDS.items() for name in names} <= said


# --- steps ------------------------------------------------------------------------------------------


def test_a_value_expires_and_the_next_one_replaces_it() -> None:
    at, values = expiring(np.array([10, 20, 40]), np.array([1.0, 2.0, 3.0]), 12)
    assert at.tolist() == [10, 20, 33, 40, 53]
    np.testing.assert_array_equal(values, [1.0, 2.0, np.nan, 3.0, np.nan])
    steps = Steps.merged("daily", [("a", at, values), ("b", np.array([15]), np.array([7.0]))])
    moments = np.arange(0, 60)
    columns = steps.columns(moments)
    for now in moments.tolist():
        age = [value for known, value in ((10, 1.0), (20, 2.0), (40, 3.0)) if known <= now <= known + 12][-1:]
        want = (*(age or [math.nan]), 7.0 if now >= 15 else math.nan)
        np.testing.assert_array_equal(steps.at(now), want)
        np.testing.assert_array_equal([columns["a"][now], columns["b"][now]], want)


# --- daily ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_daily_statistics_agree_with_a_twin_that_sees_only_the_past(seed: int) -> None:
    held = closes(seed)
    history = daily_of(as_cross(held))
    rng = np.random.default_rng(seed)
    changes = rng.choice(history.instants, 120)
    moments = np.unique(
        np.concatenate([changes, changes - 1, rng.integers(history.instants[0], history.instants[-1], 150)])
    )
    got = history.columns(moments)
    assert list(got) == [column.name for column in DECLARED if column.table == "daily"]
    for name, values in got.items():
        want = [twin(OF[name], held, now) for now in moments.tolist()]
        np.testing.assert_allclose(values, want, rtol=1e-9, atol=1e-12, err_msg=name)
        assert np.isfinite(values).mean() > 0.3, name
    correlated = np.concatenate([values for name, values in got.items() if "correlation" in name])
    assert np.nanmax(np.abs(correlated)) <= 1.0


def test_later_closes_change_no_earlier_row() -> None:
    frame = as_cross(closes(3))
    whole = daily_of(frame)
    moments = np.arange(int(whole.instants[0]) - DAY, int(whole.instants[-1]), 5 * 3600 * 10**9)
    full = whole.columns(moments)
    for share in (0.3, 0.61, 0.9):
        now = int(moments[int(share * len(moments))])
        known = daily_of(frame.filter(pl.col("timestamp").dt.epoch("ns") <= now))
        past = moments[moments <= now]
        for name, values in known.columns(past).items():
            same_bits(values, full[name][: len(past)])


def test_real_daily_series_agree_with_the_twin(real_data: Path) -> None:
    files = ("vol/vix_family", "cross/daily_prices", "cross/fred_yields")
    paths = [next(real_data.glob(f"{name}*_to_202206.parquet")) for name in files]
    frame = read_cross(paths, SHIPPED).frame.filter(pl.col("timestamp").dt.year().is_in([2017, 2018]))
    held = {
        str(symbol): [
            (stamp.astimezone(naive_inputs.ZoneInfo(CLOCK.get(str(symbol), (0, 0, "America/New_York"))[2])), at, value)
            for stamp, at, value in zip(
                part["timestamp"].to_list(),
                part["timestamp"].dt.epoch("ns").to_list(),
                part["close"].to_list(),
                strict=True,
            )
        ]
        for (symbol,), part in frame.group_by("symbol")
        if symbol in SERIES
    }
    # A close that is known at midnight is the day's that ends there.
    held = {
        name: [((s - dt.timedelta(microseconds=1)).date(), at, v) for s, at, v in part] for name, part in held.items()
    }
    history = daily_of(frame)
    rng = np.random.default_rng(5)
    moments = np.sort(rng.choice(history.instants, 60))
    moments = np.unique(np.concatenate([moments, moments - 1]))
    got = history.columns(moments)
    assert set(got) == {c.name for c in DECLARED if c.table == "daily" and c.series not in ("VIX1Y", "DXY")}
    for name, values in got.items():
        want = [twin(OF[name], held, now) for now in moments.tolist()]
        np.testing.assert_allclose(values, want, rtol=1e-8, atol=1e-10, err_msg=name)
    # The ten-year yield of a date is published on the next working day.
    yields = frame.filter(pl.col("symbol") == "DGS10")["timestamp"]
    assert (yields.dt.convert_time_zone("America/New_York").dt.time() == dt.time(16, 15)).all()


def test_a_series_that_never_closes_in_time_is_an_error() -> None:
    late = cross_frame([(close_at(dt.date(2024, 3, d), 17, 0), "SPX", 5000.0 + d, None) for d in (4, 5, 6)])
    with pytest.raises(DataError, match="SPX come after 16:00"):
        daily_of(late)


def test_duplicate_times_in_cross(workspace: Workspace) -> None:
    one = as_cross({"VIX": closes(1)["VIX"]})
    assert read_cross([one, one], workspace).frame.height == one.height  # the same value twice is one value
    other = one.with_columns(pl.col("close") + 1)
    with pytest.raises(DataError, match="VIX has two values at"):
        read_cross([one, other], workspace)
    doubled = read_table("cross", pl.concat([one, one.head(3)]).sort("timestamp"), workspace=workspace)
    assert doubled.quarantine["rule"].to_list() == ["timestamp_duplicate"] * 3


def test_other_people_s_names_for_a_series_are_mapped(workspace: Workspace) -> None:
    held = closes(1)
    plain = as_cross({name: held[name] for name in ("VIX", "SPX", "DXY")})
    theirs = plain.with_columns(pl.col("symbol").replace({"VIX": "^VIX", "SPX": "^GSPC", "DXY": "DX-Y.NYB"}))
    got, want = (market_sources(read_cross(part, workspace).frame, workspace)[0] for part in (theirs, plain))
    assert got.names == want.names
    assert "dxy_return_1" in got.names
    same_bits(got.values, want.values)


# --- minute -----------------------------------------------------------------------------------------


def test_minute_values_count_for_five_minutes_and_a_day_s_close_is_none() -> None:
    day = dt.date(2024, 3, 5)
    start = close_at(day, 9, 31)
    rows = [(close_at(dt.date(2024, 3, 4), 16, 0), "SPY", 500.0, 7e7)]  # a day's value: its volume is no minute's
    rows += [(start + k * MINUTE, "SPY", 501.0 + k, 1000.0 + k) for k in (0, 1, 2, 9)]
    rows += [(close_at(day, 15, 58), "SPY", 510.0, 3.0), (close_at(day, 16, 0), "SPY", 511.0, 4.0)]
    frame = cross_frame(rows)
    history = MinuteHistory.from_cross(frame, DECLARED, day_closes(SHIPPED))
    assert history is not None
    assert history.names == ("spy", "spy_volume")

    def at(now: int) -> tuple[float, ...]:
        return history.at(now)

    assert all(map(math.isnan, at(rows[0][0])))
    assert all(map(math.isnan, at(start - 1)))
    assert at(start) == (501.0, 1000.0)
    assert at(start + 2 * MINUTE) == (503.0, 1002.0)
    assert at(start + 7 * MINUTE) == (503.0, 1002.0)  # exactly five minutes old
    assert all(map(math.isnan, at(start + 7 * MINUTE + 1)))
    assert at(start + 9 * MINUTE) == (510.0, 1009.0)
    assert at(rows[-1][0]) == (511.0, 4.0)  # the close of a day of minutes is a minute
    daily = daily_of(cross_frame([row if row[1] != "SPY" else (row[0], "SPX", row[2], None) for row in rows]))
    assert dict(zip(daily.names, daily.at(rows[-1][0]), strict=True))["spx_return_1"] == math.log(511.0) - math.log(
        500.0
    )
    for k in range(1, len(rows)):  # what comes later changes nothing before it
        part = MinuteHistory.from_cross(frame.head(k), DECLARED, day_closes(SHIPPED))
        now = np.arange(rows[0][0], rows[k][0], MINUTE)
        for name in history.names if part is not None else ():
            assert part is not None
            same_bits(part.columns(now)[name], history.columns(now)[name])


def test_real_minutes_of_other_markets(real_data: Path, workspace: Workspace) -> None:
    """Five days of 2019: SPY, QQQ, GLD and VIX by the minute beside ES; a bar sees the minute that ended with it."""
    source = pl.read_parquet(real_data / "bars" / "xasset_1m_20190211_15.parquet")
    cross = source.with_columns(timestamp=pl.col("ts").dt.offset_by("1m")).select(
        "timestamp", "symbol", "close", "volume"
    )
    wide(workspace)
    steps = {s.table: s for s in market_sources(read_cross(cross.sort("timestamp"), workspace).frame, workspace)}
    minute = steps["minute"]
    assert set(minute.names) == {"spy", "qqq", "vix_minute", "gld", "spy_volume"}
    es = pl.read_parquet(real_data / "bars" / "es_1m_2019.parquet").filter(
        pl.col("session_date").is_between(dt.date(2019, 2, 11), dt.date(2019, 2, 15))
    )
    known = es["ts"].dt.epoch("ns").to_numpy() + MINUTE
    got = minute.columns(known)
    spy = {
        at: (c, v)
        for at, c, v in cross.filter(pl.col("symbol") == "SPY")
        .select(pl.col("timestamp").dt.epoch("ns"), "close", "volume")
        .rows()
    }
    seen = 0
    for row, now in enumerate(known.tolist()):
        recent = [at for at in (now - k * MINUTE for k in range(6)) if at in spy]
        want = spy[recent[0]] if recent else (math.nan, math.nan)
        np.testing.assert_array_equal((got["spy"][row], got["spy_volume"][row]), want)
        seen += bool(recent)
    assert seen > 1900
    move = np.diff(np.log(got["spy"])), np.diff(np.log(es["close"].to_numpy()))
    both = np.isfinite(move[0]) & (move[0] != 0)
    assert np.corrcoef(move[0][both], move[1][both])[0, 1] > 0.9  # not a minute early, not a minute late


# --- events -----------------------------------------------------------------------------------------


def schedule(events: list[tuple[int, float]], interval: int = MINUTE) -> EventSchedule:
    starts, impacts = (np.array(part) for part in zip(*events, strict=True))
    found = EventSchedule.build(starts.astype(np.int64), impacts.astype(np.float64), DECLARED, interval)
    assert found is not None
    return found


def check_events(events: list[tuple[int, float]], moments: np.ndarray, interval: int = MINUTE) -> None:
    got = schedule(events, interval).columns(moments)
    assert list(got) == [column.name for column in DECLARED if column.table == "events"]
    for name, values in got.items():
        column = OF[name]
        want = [
            naive_inputs.event(column.statistic or "", events, now, column.minutes or 0, interval)
            for now in moments.tolist()
        ]
        np.testing.assert_allclose(values, want, rtol=1e-15, err_msg=name)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_events_agree_with_a_twin_that_walks_the_calendar(seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = close_at(dt.date(2024, 3, 4), 8, 30)
    starts = start + rng.integers(0, 7 * 24 * 12, 60) * 5 * MINUTE
    events = [(int(at), round(float(impact), 2)) for at, impact in zip(starts, rng.random(60), strict=True)]
    edges = np.concatenate(
        [starts + shift for shift in (0, 1, -1, MINUTE, MINUTE + 1, -60 * MINUTE, DAY, DAY - 1, -DAY, -DAY - 1)]
    )
    check_events(events, np.unique(np.concatenate([edges, rng.integers(start - DAY, start + 9 * DAY, 300)])))


def test_real_events_around_real_bars(real_data: Path) -> None:
    table = read_table("events", real_data / "macro" / "forexfactory_all_201911_202006.parquet", workspace=SHIPPED)
    rows = zip(table.frame["start_time"].dt.epoch("ns").to_list(), table.frame["impact"].to_list(), strict=True)
    events = [(start, impact) for start, impact in rows if impact > 0]  # holidays are no events
    es = pl.read_parquet(real_data / "bars" / "demo_es_1m_20200309_20200320.parquet")
    known = es["ts"].dt.epoch("ns").to_numpy() + MINUTE
    check_events(events, known[::97])
    columns = schedule(events).columns(known)
    volume = es["volume"].to_numpy()
    started = columns["event_started_in_bar"] == 1.0
    assert 20 < started.sum() < 400
    at = int(np.flatnonzero(known == close_at(dt.date(2020, 3, 12), 8, 31))[0])
    assert started[at]  # the bar that holds the reaction to 08:30, not the one before
    assert not started[at - 1]
    assert columns["next_event_at"][at - 2] == close_at(dt.date(2020, 3, 12), 8, 30) / 1e9
    assert volume[at] > 0


def test_outside_the_calendar_nothing_is_said() -> None:
    start = close_at(dt.date(2024, 3, 4), 8, 30)
    steps = schedule([(start, 0.9), (start + 3 * DAY, 0.2)])
    for now in (start - 1, start + 3 * DAY + 1):
        assert all(map(math.isnan, steps.at(now))), now
    assert EventSchedule.build(np.empty(0, np.int64), np.empty(0), DECLARED, MINUTE) is None


def test_events_that_cannot_be_read_are_refused(tmp_path: Path, workspace: Workspace) -> None:
    path = tmp_path / "events.csv"
    path.write_text(
        "start_time,type,impact\n"
        + "".join(f"2024-02-{d:02}T13:30:00Z,CPI,0.9\n" for d in range(1, 29))
        + "2024-03-01T13:30:00Z,NFP,7\n"
    )
    with pytest.raises(DataError, match="1 events cannot be read"):
        generate_features(bars_frame(bars.make(1)), events=path, workspace=workspace)


# --- levels -----------------------------------------------------------------------------------------


def bars_frame(data: bars.Bars) -> pl.DataFrame:
    own = {name: data.columns[name] for name in ("open", "high", "low", "close", "volume")}
    return pl.DataFrame({"timestamp": instants(data.known_at - MINUTE), **own})


def made_levels(known: int, market: int | None = None, **fields: Any) -> Levels:
    return Levels(
        timestamp_ns=known,
        status="OK",
        quote_time_ns=known,
        market_time_ns=known if market is None else market,
        **fields,
    )


def levels_of(levels: list[Levels], known: np.ndarray, close: np.ndarray) -> dict[str, np.ndarray]:
    found = LevelsHistory.build(levels, DECLARED, options_config(SHIPPED), known, close)
    assert found is not None
    return found.columns(known)


def test_levels_count_once_known_and_lapse() -> None:
    data = bars.make(3, seed=2)
    known, close = data.known_at, data.columns["close"]
    price = float(close[400])
    at, market = int(known[431]) - 20 * 10**9, int(known[400]) + 5 * 10**9
    one = made_levels(
        at,
        market,
        underlying_price=price - 30.0,
        gamma_wall=price - 25.0,
        net_gamma=1e9,
        iv_atm=0.2,
        open_interest_date=dt.date(2024, 2, 23),
    )
    got = levels_of([one], known, close)
    seen = np.flatnonzero(np.isfinite(got["net_gamma"]))
    assert seen[0] == 431  # the first bar whose close is not before the instant
    assert known[seen[-1]] <= market + DAY < known[seen[-1] + 1]
    assert (np.diff(seen) == 1).all()
    moved = on_future(one, price, price - 30.0).levels
    assert moved.gamma_wall == price + 5.0
    for name, want in {
        "gamma_wall": moved.gamma_wall,
        "own_underlying_price": price - 30.0,
        "iv_atm": 0.2,
        "levels_known_at": at / 1e9,
        "levels_open_interest_date": 19776.0,
    }.items():
        assert set(got[name][seen].tolist()) == {want}, name
    assert np.isnan(got["zero_gamma"]).all()


def test_a_basis_beyond_the_limit_withholds_prices_alone() -> None:
    data = bars.make(1)
    known, close = data.known_at, data.columns["close"]
    far = made_levels(int(known[100]), underlying_price=float(close[100]) * 0.97, gamma_wall=5000.0, net_gamma=2.0)
    early = made_levels(
        int(known[200]), int(known[0]) - 1, underlying_price=float(close[0]), gamma_wall=5000.0, net_gamma=3.0
    )
    got = levels_of([early, far], known, close)
    assert np.isnan(got["gamma_wall"]).all()
    assert got["net_gamma"][[99, 100, 199, 200]].tolist()[1:] == [2.0, 2.0, 3.0]


def test_levels_newer_than_the_bars_change_nothing(workspace: Workspace) -> None:
    data = bars.make(1)
    wide(workspace)
    late = made_levels(int(data.known_at[-1]) + 1, underlying_price=5000.0, gamma_wall=5000.0)
    got = generate_features(bars_frame(data), levels=late, workspace=workspace)
    assert got["gamma_wall"].null_count() == got.height
    found = feature_availability(bars_frame(data), levels=late, workspace=workspace)
    assert found.filter(pl.col("feature") == "gamma_wall")[
        "available"
    ].item()  # the column is there; nothing was known yet


def test_levels_that_are_none_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    frame = bars_frame(bars.make(1))
    bad = tmp_path / "chain.parquet"
    bad.write_bytes(b"no chain")
    for source, says in (
        (3.5, "neither levels nor a chain"),
        (bad, "cannot be read as Parquet"),
        (pl.DataFrame({"timestamp": ["x"]}), "not an instant"),
        (Levels(timestamp_ns=None, status="OK", iv_atm=0.2), "without an instant"),
    ):
        with pytest.raises(DataError, match=says):
            generate_features(frame, levels=source, workspace=workspace)


def test_a_real_chain_beside_real_bars(real_data: Path, workspace: Workspace) -> None:
    """SPX of 2022-03-23 at 10:11, ES by the minute: nothing before the quotes, then levels on its scale."""
    path = next((real_data / "options").glob("spx_20220323_1011*.parquet"))
    es = (
        pl.scan_parquet(real_data / "bars" / "es_1m_2022h1.parquet")
        .filter(pl.col("session_date").is_between(dt.date(2022, 3, 22), dt.date(2022, 3, 24)))
        .collect()
    )
    es = es.select(pl.col("ts").alias("timestamp"), "open", "high", "low", "close", "volume")
    wide(workspace)
    [levels] = read_levels(path, workspace)
    got = generate_features(es, levels=path, workspace=workspace)
    known = es["timestamp"].dt.epoch("ns").to_numpy() + MINUTE
    seen = np.flatnonzero(got["net_gamma"].is_not_null().to_numpy())
    quoted, market = levels.quote_time_ns, levels.market_time_ns
    assert quoted is not None
    assert market is not None
    assert levels.gamma_wall is not None
    assert levels.underlying_price is not None
    assert known[seen[0]] >= quoted > known[seen[0] - 1]
    future = float(es["close"][int(np.searchsorted(known, market, side="right")) - 1])
    assert got["gamma_wall"][int(seen[0])] == levels.gamma_wall + (future - levels.underlying_price)
    assert (
        0.0 < (future - levels.underlying_price) / levels.underlying_price < 0.02
    )  # the carry and the back-adjustment
    assert got["open_interest_calls"][int(seen[0])] + got["open_interest_puts"][int(seen[0])] > 1e6
    cut = int(seen[0]) + 5
    same_frames(generate_features(es[:cut], levels=path, workspace=workspace), got[:cut])
    without = generate_features(es[: seen[0]], workspace=workspace)
    same_frames(without.select(pl.exclude(level_names())), got[: seen[0]].select(pl.exclude(level_names())))


def level_names() -> list[str]:
    return [column.name for column in DECLARED if column.table == "levels"]


# --- everything together ----------------------------------------------------------------------------


def wide(workspace: Workspace) -> Catalogue:
    """The shipped catalogue with the inputs of this test, and every input among the features, in the workspace."""
    content = yaml.safe_load((shipped() / "config" / "feature_sets.yaml").read_text(encoding="utf-8"))
    content["inputs"] += own_inputs()
    named = {row["name"] for row in content["features"]}
    common = {
        "kernel": "column",
        "range": [None, None],
        "warmup": 0,
        "definition": "the input itself",
        "source": "test",
    }
    for row in content["inputs"]:
        if row["name"] not in named:
            content["features"].append(
                {"name": row["name"], "family": row["table"], "inputs": [row["name"]], "unit": row["unit"], **common}
            )
    folder = workspace.root / "config"
    folder.mkdir(exist_ok=True)
    (folder / "feature_sets.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return catalogues.read(workspace)


def same_frames(a: pl.DataFrame, b: pl.DataFrame) -> None:
    assert a.columns == b.columns
    for name in a.columns:
        if a[name].dtype != pl.Float64:
            assert a[name].equals(b[name]), name
            continue
        assert a[name].is_null().equals(b[name].is_null()), name
        same_bits(*(frame[name].fill_null(0.0).to_numpy() for frame in (a, b)))


@pytest.fixture(scope="module")
def sample_cross() -> pl.DataFrame:
    """The simulated closes, and of the series that the simulator lacks, made-up ones."""
    simulated = pl.read_parquet(SAMPLE / "cross.parquet").with_columns(pl.col("volume").cast(pl.Float64))
    have = set(simulated["symbol"].unique().to_list())
    made = as_cross({k: v for k, v in closes(9, dt.date(2025, 1, 6), 140).items() if k not in have})
    minutes = simulated.filter(pl.col("symbol") == "SPY").with_columns(
        symbol=pl.lit("QQQ"), close=pl.col("close") * 0.8
    )
    more = minutes.with_columns(symbol=pl.lit("GLD"))
    return pl.concat([simulated, made, minutes, more]).sort("timestamp")


def sample_bars(seed: int = 4) -> pl.DataFrame:
    """The simulated bars with every further column that a bar may bring."""
    frame = pl.read_parquet(SAMPLE / "bars.parquet").drop("symbol")
    rng = np.random.default_rng(seed)
    further = [
        c.name for c in DECLARED if c.table in ("bars", "models", "account", "memory") and c.name not in frame.columns
    ]
    frame = frame.with_columns(pl.Series(name, np.round(rng.normal(size=frame.height), 3)) for name in further)
    holes = pl.Series(rng.random(frame.height) < 0.1)
    return frame.with_columns(pl.when(holes).then(None).otherwise(pl.col(name)).alias(name) for name in further)


@pytest.fixture(scope="module")
def everything(
    tmp_path_factory: pytest.TempPathFactory, sample_cross: pl.DataFrame
) -> tuple[Workspace, pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """A wide catalogue, bars with all columns, and their features from all tables."""
    place = Workspace.current(tmp_path_factory.mktemp("wide"))
    wide(place)
    brought = {"cross": sample_cross, "events": SAMPLE / "events.parquet", "levels": SAMPLE / "chain.parquet"}
    frame = sample_bars()
    return place, frame, generate_features(frame, **brought, workspace=place), brought


def test_all_inputs_reach_the_features(everything: tuple[Any, ...]) -> None:
    place, _, got, _ = everything
    assert got.width == 1 + len(catalogues.read(place).features)
    empty = [name for name in OF if got[name].null_count() == got.height]
    assert set(empty) <= {"put_call_parity_deviation", "zero_gamma", "vol_trigger"}, empty


def test_live_holds_the_same_bits_as_batch(everything: tuple[Any, ...]) -> None:
    """Bar by bar, levels as they come, a restart in the middle."""
    place, frame, batch, brought = everything
    options = {"workspace": place, "cross": brought["cross"], "events": brought["events"], "inputs": catalogues.TABLES}
    live = Features(**options)
    assert live.plan.null_features == {}
    levels = sorted(read_levels(brought["levels"], place), key=lambda one: one.timestamp_ns or 0)
    first = 9000
    rows = frame.rows(named=True)
    names = batch.columns[1:]
    out = np.full((len(live.names), frame.height), np.nan)
    for k, row in enumerate(rows):
        close = int(row["timestamp"].timestamp()) * 10**9 + MINUTE
        while levels and (levels[0].timestamp_ns or 0) <= close:
            live.take_levels(levels.pop(0))
        out[:, k] = live.update(row)
        if k in (first, first + 1000, frame.height - 300):
            saved, live = live.save(), Features(**options)
            live.restore(saved)
    assert not levels
    assert live.names == tuple(names)
    same_bits(out, batch.select(names).fill_null(np.nan).to_numpy().T.copy(), names)


def test_closes_that_come_in_while_it_runs(everything: tuple[Any, ...]) -> None:
    place, frame, _, brought = everything
    part = frame.tail(1500)
    batch = generate_features(part, cross=brought["cross"], workspace=place)

    def known(now: dt.datetime) -> pl.DataFrame:
        return brought["cross"].filter(pl.col("timestamp") <= now)

    live = Features(workspace=place, cross=known(part["timestamp"][0]), inputs=catalogues.TABLES)
    names = [column.name for column in DECLARED if column.table in ("daily", "minute")]
    at = [live.names.index(name) for name in names]
    for k, row in enumerate(part.rows(named=True)):
        if k % 40 == 0:
            live.take_cross(known(row["timestamp"] + dt.timedelta(minutes=1)))
            got = live.update(row)[at]
            same_bits(got, np.array([math.nan if (v := batch[name][k]) is None else v for name in names]), names)
        else:
            live.update(row)


def test_a_calendar_that_changes_while_it_runs(everything: tuple[Any, ...]) -> None:
    """From the next bar on each bar has what a batch with the new calendar gives it."""
    place, frame, _, brought = everything
    part = frame.tail(700)
    later = pl.read_parquet(brought["events"]).with_columns(pl.col("start_time") + pl.duration(minutes=17))
    names = [column.name for column in DECLARED if column.table == "events"]
    before = generate_features(part, events=brought["events"], workspace=place)
    after = generate_features(part, events=later, workspace=place)
    assert not before.select(names).equals(after.select(names))
    live = Features(workspace=place, events=brought["events"], inputs=catalogues.TABLES)
    at = [live.names.index(name) for name in names]
    for k, row in enumerate(part.rows(named=True)):
        if k == 350:
            live.take_events(later)
            broken = later.with_columns(impact=pl.lit(7.0))
            with pytest.raises(DataError):
                live.take_events(broken)
        want = (before if k < 350 else after).select(names).row(k)
        same_bits(live.update(row)[at], np.array([math.nan if v is None else v for v in want]), names)
    live.take_events(load_calendar(place, risk(place).events, SAMPLE / "absent.csv"))
    later_row = row | {"timestamp": row["timestamp"] + dt.timedelta(minutes=1)}
    assert np.isnan(live.update(later_row)[at]).all()


def test_several_symbols_side_by_side(everything: tuple[Any, ...]) -> None:
    """Whatever the interleaving of their rows: the bits of each alone, levels moved by each one's own basis."""
    place, frame, _, brought = everything
    rows = frame.tail(3000)
    other = sample_bars(7).tail(3000).with_columns(pl.col(n) * 1.001 for n in ("open", "high", "low", "close"))
    parts = {"ES": rows, "MES": other[500:]}
    alone = {name: generate_features(part, **brought, workspace=place) for name, part in parts.items()}
    named = [part.with_columns(symbol=pl.lit(name)) for name, part in parts.items()]
    by_time = pl.concat(named).sort("timestamp", maintain_order=True)
    for together in (by_time, pl.concat(named), pl.concat(named[::-1])):
        got = generate_features(together, **brought, workspace=place)
        assert got.columns[:2] == ["timestamp", "symbol"]
        assert got["symbol"].equals(together["symbol"])
        for name, want in alone.items():
            same_frames(got.filter(pl.col("symbol") == name).drop("symbol"), want)
    latest = pl.read_csv(place.data / "features" / "features_latest.csv")
    assert latest.columns[:2] == ["timestamp", "open"]
    assert latest["close"][-1] == rows["close"][-1]  # the configured instrument
    live = Features(
        workspace=place,
        symbols=("ES", "MES"),
        cross=brought["cross"],
        events=brought["events"],
        inputs=catalogues.TABLES,
    )
    deaf = Features(workspace=place)
    for levels in read_levels(brought["levels"], place):
        live.take_levels(levels)
        with pytest.raises(DataError, match="made without option levels"):
            deaf.take_levels(levels)
    last: dict[str, np.ndarray] = {}
    for row in by_time.rows(named=True):
        last[row["symbol"]] = live.update(row)
    for name, want in alone.items():
        same_bits(last[name], np.array([math.nan if v is None else v for v in want.row(-1)[1:]]), live.names)


def test_the_future_changes_no_earlier_row(everything: tuple[Any, ...]) -> None:
    """Everything after an instant is cut off, in the bars and in every table but the calendar, which is a schedule."""
    place, frame, batch, brought = everything
    levels = read_levels(brought["levels"], place)
    for cut in (9401, 10_000, 10_931):
        now = frame["timestamp"][cut - 1] + dt.timedelta(minutes=1)
        known = brought["cross"].filter(pl.col("timestamp") <= now)
        past = [one for one in levels if (one.timestamp_ns or 0) <= int(now.timestamp()) * 10**9]
        got = generate_features(
            frame[:cut], cross=known, events=brought["events"], levels=past or None, workspace=place
        )
        lost = [] if past else level_names()
        same_frames(got.drop(lost), batch[:cut].drop(lost))


def test_replay_feeds_every_table(everything: tuple[Any, ...], tmp_path: Path) -> None:
    """The replay's features, also of a run that was stopped twice, are those of the batch."""
    _, frame, batch, brought = everything
    place = Workspace.current(tmp_path)
    wide(place)
    start = 9000
    frame.write_parquet(tmp_path / "bars.parquet")
    brought["cross"].write_parquet(tmp_path / "cross.parquet")
    inputs = read_inputs(
        place,
        bars=tmp_path / "bars.parquet",
        cross=[tmp_path / "cross.parquet"],
        events=brought["events"],
        chain=brought["levels"],
    )
    begin = int(inputs.bars.frame["known_at"].dt.epoch("ns")[start - 1])

    def stop(done: int, _: int) -> None:
        if done in (400, 1200):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            replay(place, inputs, start=begin, checkpoint_bars=400, progress=stop)
    done = replay(place, inputs, start=begin, checkpoint_bars=400)
    assert done.resumed_at == 1200
    parts = sorted((place.data / "features" / "runs" / done.run_id).glob("part-*.parquet"))
    same_frames(pl.concat([pl.read_parquet(part) for part in parts]), batch[start:])


def test_level_rows_of_the_journal_are_levels(everything: tuple[Any, ...], tmp_path: Path) -> None:
    place, frame, _, brought = everything
    want = generate_features(frame.tail(2500), levels=brought["levels"], workspace=place)
    levels = read_levels(brought["levels"], place)
    desk = Workspace.current(tmp_path)
    from mia_fast.options.snapshot import journal_row, save

    with Journal.open(desk) as journal:
        for one in levels:
            journal.append("levels", journal_row(save(one, desk), desk))
    rows = mia_fast_query(desk)
    same_frames(generate_features(frame.tail(2500), levels=rows, workspace=place), want)
    rows.write_parquet(tmp_path / "rows.parquet")
    same_frames(generate_features(frame.tail(2500), levels=[tmp_path / "rows.parquet"], workspace=place), want)
    same_frames(generate_features(frame.tail(2500), levels=levels, workspace=place), want)


def mia_fast_query(desk: Workspace) -> pl.DataFrame:
    from mia_fast import journal

    return journal.query(desk, "SELECT * FROM levels")


def test_a_spot_move_updates_the_levels_live(workspace: Workspace) -> None:
    """A chain and then a move of the underlying alone, through the live engine: the bits of a batch that knows both."""
    catalogue = wide(workspace)
    chain = read_table("chain", SAMPLE / "chain.parquet", workspace=workspace).frame
    first = chain.filter(pl.col("quote_time") == chain["quote_time"].min())
    at = int(first["quote_time"].dt.epoch("ns")[0])
    frame = pl.read_parquet(SAMPLE / "bars.parquet").drop("symbol")
    frame = frame.filter(pl.col("timestamp").dt.epoch("ns").is_between(at - 120 * MINUTE, at + 120 * MINUTE))
    names = level_names()
    table = read_table("bars", frame, workspace=workspace)
    sources = (Steps.nothing("levels", names),)
    plan = plan_for(table, workspace=workspace, sources=sources, auxiliary=(MINUTE_OF_DAY,))
    levels: list[Levels] = []
    got = []
    with Journal.open(workspace) as journal:
        desk = Desk(workspace, journal=journal, clock=lambda: at, events=SAMPLE / "events.parquet")
        engine = Engine(
            plan=plan,
            inputs=catalogue.inputs,
            sources=sources,
            brought=brought_columns(table.frame),
            models=(),
            policy=Policy.open(workspace),
            desk=desk,
            gate=desk.gate(account="SIM", model_sha256=None),
            journal=journal,
            levels=LevelsEngine(options_config(workspace)),
            account_name="test",
            interval_ns=MINUTE,
            run_id=None,
            config_digest="0",
        )
        assert engine.extra == ("bid_volume", "ask_volume", "trade_count")
        broker = SimulatedBroker(desk.market)
        later = at + 37 * MINUTE + 1
        for row in table.frame.rows(named=True):
            now = int(row["known_at"].timestamp()) * 10**9
            if not levels and at <= now:
                levels.append(engine.on_chain(first, at))
            if len(levels) == 1 and later <= now:
                levels.append(engine.on_spot((levels[0].underlying_price or 0.0) * 1.004, later))
            prices = [float(row[name]) for name in ("open", "high", "low", "close", "volume")]
            extra = tuple(float(row[name]) for name in engine.extra)
            engine.on_bar(Bar(now, *prices, extra), broker.account(prices[3], now), None)
            got.append(engine.values.copy())
        with pytest.raises(DataError, match="extra holds 0 numbers"):
            engine.on_bar(Bar(now + MINUTE, *prices), broker.account(prices[3], now), None)
    want = generate_features(frame, levels=levels, workspace=workspace)
    live = np.array(got).T[: len(plan.features)].copy()
    assert (live[plan.features.index(EXPOSURE)] == 0.0)[np.isfinite(live[plan.features.index("atr_14")])].all()
    live[plan.features.index(EXPOSURE)] = np.nan  # the account's, which a batch has from its caller alone
    same_bits(live, want.select(plan.features).fill_null(np.nan).to_numpy().T.copy(), plan.features)
    underlying = want["own_underlying_price"].drop_nulls()
    assert underlying.unique().len() == 2
    assert want["levels_known_at"].drop_nulls().unique().sort().to_list() == [at / 1e9, later / 1e9]


# --- holding ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide_plan() -> Plan:
    """The shipped features over all declared inputs, those of this test included, which they do not read."""
    content = catalogues.read(SHIPPED).model_copy(update={"inputs": DECLARED})
    return make_plan(content, [c.name for c in content.inputs], bar_minutes=1, tick_size=0.25)


def test_a_plan_reads_bars_first_then_the_tables(wide_plan: Plan) -> None:
    assert wide_plan.inputs == (*wide_plan.bar_inputs, *(name for names in wide_plan.held.values() for name in names))
    assert list(wide_plan.held) == [table for table in catalogues.TABLES if table in wide_plan.held]
    assert {OF[name].table for name in wide_plan.bar_inputs} == {"bars"}
    assert "ofi" not in wide_plan.inputs  # no feature of this plan reads it: a live bar need not pay for it


def test_held_values_stand_until_they_are_set_again(wide_plan: Plan) -> None:
    data = bars.make(1).rows(slice(0, 40))
    engine = FeatureEngine(wide_plan)
    place = wide_plan.outputs.index("drawdown_ratio")
    values = [[data.columns[n][k] for n in wide_plan.bar_inputs] for k in range(6)]
    assert math.isnan(engine.update(int(data.known_at[0]), values[0])[place])
    engine.hold("account", {"drawdown_ratio": 0.25})
    assert engine.update(int(data.known_at[1]), values[1])[place] == 0.25
    assert engine.update(int(data.known_at[2]), values[2])[place] == 0.25
    saved = engine.save()
    other = FeatureEngine(wide_plan)
    other.restore(saved)
    assert other.save() == saved
    assert other.update(int(data.known_at[3]), values[3])[place] == 0.25
    engine.hold("account", [float(k) for k in range(len(wide_plan.held["account"]))])
    assert engine.update(int(data.known_at[3]), values[3])[place] == wide_plan.held["account"].index("drawdown_ratio")
    for table, wrong, says in (
        ("news", {}, "no input of the table 'news'"),
        ("account", {"drawdown": 0.1}, "no input 'drawdown'"),
        ("account", [1.0], "takes 11 numbers, got 1"),
    ):
        before = engine.save()
        with pytest.raises(DataError, match=says):
            engine.hold(table, wrong)
        assert engine.save() == before
    engine.reset()
    assert math.isnan(engine.update(int(data.known_at[0]), values[0])[place])


def test_features_refuses_what_it_cannot_use(workspace: Workspace) -> None:
    with pytest.raises(DataError, match="no input 'gama_wall'"):
        Features(workspace=workspace, inputs=["gama_wall"])
    with pytest.raises(DataError, match="symbols are"):
        Features(workspace=workspace, symbols=("ES", "ES"))
    live = Features(workspace=workspace, symbols=("ES", "NQ"))
    bar = {"timestamp": 1_700_000_000 * 10**9, "open": 10.0, "high": 11.0, "low": 9.0, "close": 10.0, "volume": 5.0}
    with pytest.raises(DataError, match="there is no symbol 'RTY'"):
        live.update(bar, "RTY")
    with pytest.raises(DataError, match="there is no symbol None"):
        live.update(bar)
    with pytest.raises(DataError, match="no instant"):
        live.update({**bar, "timestamp": None}, "ES")
    with pytest.raises(DataError, match="timestamp is '2024-"):
        live.update({**bar, "timestamp": "2024-01-01"}, "ES")
    with pytest.raises(DataError, match="BAR_HIGH_BELOW_LOW"):
        live.update({**bar, "high": 8.0}, "ES")
    with pytest.raises(DataError, match="BAR_PRICE_NOT_FINITE"):
        live.update({name: value for name, value in bar.items() if name != "open"}, "ES")
    one = live.update(bar, "ES").copy()
    with pytest.raises(DataError, match="BAR_OVERLAPS"):
        live.update(bar, "ES")
    same_bits(one, live.update(bar, "NQ"))
    later = Bar(bar["timestamp"] + 2 * MINUTE, 10.0, 11.0, 9.0, 10.5, 5.0)  # type: ignore[operator]
    assert live.update(later, "NQ")[live.names.index("close")] == 10.5
    with pytest.raises(DataError, match="no input 'vix' in the table 'minute'"):
        live.hold("minute", {"vix": 20.0})
    with pytest.raises(DataError, match="made without it"):
        live.hold("daily", {"vix": 20.0})
    with pytest.raises(StateError):
        live.restore(b"nothing", "ES")


# --- availability -----------------------------------------------------------------------------------


def test_availability_is_told_before_any_work(workspace: Workspace) -> None:
    frame = bars_frame(bars.make(1))
    found = feature_availability(frame, workspace=workspace)
    assert found["feature"].to_list() == list(catalogues.read(workspace).names)
    lost = found.filter(~pl.col("available"))
    assert lost.filter(pl.col("feature") == "vix_term_1m").select("lacks", "wanted_from").row(0) == (
        ["vix"],
        ["daily: VIX"],
    )
    assert not (workspace.data / "features").exists()
    with_vix = feature_availability(frame, cross=as_cross({"VIX": closes(1)["VIX"]}), workspace=workspace)
    assert with_vix.filter("available").height > found.filter("available").height
    got = generate_features(frame, workspace=workspace)
    for name in lost["feature"]:
        assert got[name].null_count() == got.height


def test_a_column_without_any_value_is_as_good_as_absent(workspace: Workspace) -> None:
    wide(workspace)
    frame = bars_frame(bars.make(1))
    nothing = (pl.Series([None] * frame.height, dtype=pl.Float64), pl.Series([math.nan] * frame.height))
    for name, empty in zip(("bid_volume", "ofi"), nothing, strict=True):
        with_it = frame.with_columns(empty.alias(name))
        row = feature_availability(with_it, workspace=workspace).filter(pl.col("feature") == name)
        assert row.select("available", "lacks", "wanted_from").row(0) == (False, [name], ["bars"])
        assert generate_features(with_it, workspace=workspace)[name].null_count() == frame.height


def test_bars_that_are_too_few_or_lack_volume(workspace: Workspace) -> None:
    frame = bars_frame(bars.make(1))
    with pytest.raises(DataError, match=r"empty"):
        generate_features(frame.clear(), workspace=workspace)
    with pytest.raises(DataError, match="volume"):
        generate_features(frame.drop("volume"), workspace=workspace)
    one = generate_features(frame.head(1), events=SAMPLE / "events.parquet", levels=made_levels(1), workspace=workspace)
    assert one.height == 1
    assert one["close"][0] == frame["close"][0]


def test_the_command_lists_what_every_file_brings(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mia_fast.cli.commands import app

    arguments = ["features", str(SAMPLE / "bars.parquet"), "--plan", "-w", str(tmp_path)]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert re.search(r"null for want of daily \(.*VIX", result.output)
    assert re.search(r"^ *vix_term_1m +cross +1 +vix +daily: VIX", result.output, flags=re.MULTILINE)
    assert re.search(r"^ *rsi_14 +trend +1 +computed", result.output, flags=re.MULTILINE)
    wide(Workspace.current(tmp_path))
    arguments += [
        "--cross",
        str(SAMPLE / "cross.parquet"),
        "--levels",
        str(SAMPLE / "chain.parquet"),
        "--events",
        str(SAMPLE / "events.parquet"),
    ]
    full = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert full.exit_code == 0, full.output
    assert re.search(r"^ *gamma_wall +levels +1 +computed", full.output, flags=re.MULTILINE)
    assert re.search(r"^ *ndx +\w+ +1 +ndx +daily: NDX", full.output, flags=re.MULTILINE)


def test_the_risk_room_s_calendar_is_a_source(workspace: Workspace) -> None:
    wide(workspace)
    frame = pl.read_parquet(SAMPLE / "bars.parquet").tail(500)
    calendar = load_calendar(workspace, risk(workspace).events, SAMPLE / "events.parquet")
    same_frames(
        generate_features(frame, events=calendar, workspace=workspace),
        generate_features(frame, events=SAMPLE / "events.parquet", workspace=workspace),
    )
    missing = load_calendar(workspace, risk(workspace).events, workspace.root / "none.csv")
    got = generate_features(frame, events=missing, workspace=workspace)
    assert got["next_event_at"].null_count() == got.height  # no calendar: nothing is said
