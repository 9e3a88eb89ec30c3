"""The simulated market: reproducible, consistent in itself, and shaped like the real one."""

from __future__ import annotations

import datetime as dt
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mia_fast.errors import DataError
from mia_fast.simulate import NOTICE, TABLES, calendar, market, options, simulate
from mia_fast.workspace import shipped

NEW_YORK = ZoneInfo("America/New_York")
UTC = dt.UTC
Frames = dict[str, pl.DataFrame]


def run(out: Path, **arguments: Any) -> Frames:
    paths = simulate(out, **arguments)
    return {name: pl.read_parquet(path) for name, path in paths.items() if path.suffix == ".parquet"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated")
    simulate(out)
    return out


@pytest.fixture(scope="module")
def sample(folder: Path) -> Frames:
    return {path.stem: pl.read_parquet(path) for path in folder.glob("*.parquet")}


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """120 sessions of bars with the New York minute of the day and the log return."""
    bars = run(tmp_path_factory.mktemp("history"), sessions=120, tables=("bars",))["bars"]
    new_york = pl.col("timestamp").dt.convert_time_zone("America/New_York")
    return bars.with_columns(
        minute=new_york.dt.hour().cast(pl.Int64) * 60 + new_york.dt.minute().cast(pl.Int64),
        session=(new_york + pl.duration(hours=6)).dt.date(),
        log_return=(pl.col("close") / pl.col("open")).log(),
    )


def correlation(a: Any, b: Any) -> float:
    return float(np.corrcoef(np.asarray(a), np.asarray(b))[0, 1])


# Reproducible


def test_same_arguments_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = simulate(tmp_path)
    assert sorted(path.name for path in again.values()) == sorted(path.name for path in folder.iterdir())
    for path in again.values():
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def test_another_seed_is_another_market(sample: Frames, tmp_path: Path) -> None:
    other = run(tmp_path, seed=8)
    for name in ("bars", "trades", "book", "chain", "cross"):
        assert not other[name].equals(sample[name]), name
    assert other["events"].equals(sample["events"])  # the calendar is a rule


def test_a_longer_run_begins_with_the_shorter_one(sample: Frames, tmp_path: Path) -> None:
    longer = run(tmp_path, sessions=3)
    for name in ("bars", "trades", "book", "chain", "cross"):
        assert longer[name].height > sample[name].height
        assert longer[name].head(sample[name].height).equals(sample[name]), name


@pytest.mark.parametrize("chosen", [("bars",), ("book", "cross"), ("chain",), ("events",)])
def test_the_choice_of_tables_does_not_change_them(folder: Path, tmp_path: Path, chosen: Sequence[str]) -> None:
    paths = simulate(tmp_path, tables=chosen)
    expected = {*chosen, "readme"} | ({"macro_events"} if "events" in chosen else set())
    assert set(paths) == expected
    for name in chosen:
        assert paths[name].read_bytes() == (folder / f"{name}.parquet").read_bytes()


def test_progress_is_told_session_by_session(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    simulate(tmp_path, sessions=3, tables=("bars",), progress=lambda *step: told.append(step))
    assert told == [("sessions", 1, 3), ("sessions", 2, 3), ("sessions", 3, 3)]


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"seed": -1}, "seed"),
        ({"sessions": 0}, "sessions"),
        ({"book_seconds": 7}, "book_seconds"),
        ({"book_seconds": 0}, "book_seconds"),
        ({"tables": ("bars", "tape")}, "tables"),
        ({"tables": ()}, "tables"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, Any], where: str
) -> None:
    with pytest.raises(DataError) as caught:
        simulate(tmp_path / "out", **arguments)
    assert caught.value.where == where
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_failed_run_leaves_nothing_half_written(tmp_path: Path) -> None:
    def stop(_stage: str, _done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path, progress=stop)
    assert list(tmp_path.iterdir()) == []


# Labelled


def test_every_file_says_that_it_is_simulated(folder: Path) -> None:
    first = (folder / "README.md").read_text(encoding="utf-8").splitlines()[0]
    assert first == NOTICE
    assert first.startswith("SIMULATED DATA")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "mia-fast simulate --seed 7 --start 2025-05-13 --sessions 2" in text
    for name in TABLES:
        metadata = pq.read_schema(folder / f"{name}.parquet").metadata
        assert metadata[b"simulated"] == b"true"
        assert metadata[b"notice"].decode() == NOTICE
        assert metadata[b"seed"] == b"7"
        assert name in text


def test_the_sample_is_small() -> None:
    sizes = [path.stat().st_size for path in (shipped() / "data" / "sample").iterdir()]
    assert max(sizes) < 2_500_000
    assert sum(sizes) < 4_000_000


def test_a_warm_up_puts_bars_and_closes_before_the_first_session(sample: Frames, tmp_path: Path) -> None:
    warm = run(tmp_path, warmup_sessions=3)
    first = sample["bars"]["timestamp"][0]
    earlier = warm["bars"].filter(pl.col("timestamp") < first)
    assert earlier.height == 3 * 1380
    assert warm["bars"].height == sample["bars"].height + earlier.height
    for name in ("trades", "book", "chain"):
        moment = "quote_time" if name == "chain" else "timestamp"
        assert warm[name][moment].min() >= first, name
    assert warm["cross"].filter(pl.col("symbol") == "VIX", pl.col("timestamp") < first).height == 60 + 3 * 405


def test_the_shipped_sample_is_what_the_simulator_makes(tmp_path: Path) -> None:
    shipped_sample = shipped() / "data" / "sample"
    folder = tmp_path
    simulate(folder, warmup_sessions=6)
    assert sorted(path.name for path in shipped_sample.iterdir()) == sorted(path.name for path in folder.iterdir())
    for path in sorted(folder.iterdir()):
        twin = shipped_sample / path.name
        if path.suffix == ".parquet":  # bytes may differ with the version of the Parquet writer; content may not
            assert pl.read_parquet(twin).equals(pl.read_parquet(path)), f"{path.name}: run `mia-fast simulate` again"
            keys = (b"seed", b"command", b"simulator_version", b"notice")
            old, new = pq.read_schema(twin).metadata, pq.read_schema(path).metadata
            assert [old[key] for key in keys] == [new[key] for key in keys]
        else:
            assert twin.read_bytes() == path.read_bytes(), path.name


# Sessions and calendar


@pytest.mark.parametrize(
    ("start", "opens"),
    [
        # Across the start of daylight saving time (2025-03-09): the evening before Monday is already EDT.
        (dt.date(2025, 3, 7), ["2025-03-06T23:00", "2025-03-09T22:00", "2025-03-10T22:00"]),
        # Across its end (2025-11-02).
        (dt.date(2025, 10, 31), ["2025-10-30T22:00", "2025-11-02T23:00", "2025-11-03T23:00"]),
        # A Saturday moves on to Monday's session; Memorial Day has none.
        (dt.date(2025, 5, 24), ["2025-05-26T22:00", "2025-05-27T22:00", "2025-05-28T22:00"]),
    ],
)
def test_session_hours(tmp_path: Path, start: dt.date, opens: list[str]) -> None:
    bars = run(tmp_path, start=start, sessions=3, tables=("bars",))["bars"]
    assert bars.schema["timestamp"] == pl.Datetime("ns", "UTC")
    stamps = bars["timestamp"].to_list()
    assert len(stamps) == 3 * 1380
    for number, text in enumerate(opens):
        first = dt.datetime.fromisoformat(text).replace(tzinfo=UTC)
        expected = [first + dt.timedelta(minutes=k) for k in range(1380)]
        assert stamps[1380 * number : 1380 * (number + 1)] == expected
    local = [stamp.astimezone(NEW_YORK) for stamp in stamps]
    assert all(stamp.hour != 17 for stamp in local)
    assert all(stamp.weekday() != 5 for stamp in local)
    assert all(stamp.hour >= 18 for stamp in local if stamp.weekday() == 6)


def test_session_dates_are_those_of_the_exchange() -> None:
    exchange_calendars = pytest.importorskip("exchange_calendars")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the referee's own use of pandas
        referee = exchange_calendars.get_calendar("XNYS", start="2022-01-03", end="2026-12-31")
    expected = [stamp.date() for stamp in referee.sessions]
    days = [dt.date(2022, 1, 1) + dt.timedelta(days=k) for k in range(5 * 365 + 1)]
    ours = [day for day in days if calendar.is_session(day)]
    assert set(expected) - set(ours) == set()
    assert set(ours) - set(expected) == {dt.date(2025, 1, 9)}  # a day of mourning follows no rule


def test_events_surround_the_sessions(folder: Path, sample: Frames) -> None:
    events, bars = sample["events"], sample["bars"]
    assert events.columns == ["start_time", "type", "impact", "cluster_id"]
    end = bars["timestamp"].max()
    inside = events.filter(pl.col("start_time").is_between(bars["timestamp"].min(), end))
    assert inside.filter(pl.col("impact") > 0.7)["type"].to_list() == ["CPI", "FOMC", "FOMC_PRESS_CONFERENCE"]
    local = inside["start_time"].dt.convert_time_zone("America/New_York").dt.strftime("%m-%d %H:%M")
    assert local.to_list() == ["05-13 08:30", "05-14 14:00", "05-14 14:30"]
    assert events.filter(pl.col("start_time") > end + dt.timedelta(days=7)).height > 0
    assert events["impact"].is_between(0, 1).all()
    assert events["start_time"].is_sorted()

    written = pl.read_csv(folder / "macro_events.csv", try_parse_dates=False)
    assert written.columns == events.columns
    parsed = written.with_columns(pl.col("start_time").str.to_datetime("%Y-%m-%dT%H:%M:%S%.6fZ", time_unit="ns"))
    assert parsed.with_columns(pl.col("start_time").dt.replace_time_zone("UTC")).equals(events)


@given(st.dates(dt.date(2022, 1, 1), dt.date(2035, 12, 1)), st.integers(0, 40))
@settings(max_examples=50, deadline=None)
def test_a_calendar_is_the_sum_of_its_days(first: dt.date, length: int) -> None:
    whole = calendar.events_between(first, first + dt.timedelta(days=length))
    days = [first + dt.timedelta(days=k) for k in range(length + 1)]
    assert whole == [event for day in days for event in calendar.events_between(day, day)]
    for event in whole:
        local = dt.datetime.fromtimestamp(event.start_ns / 1e9, NEW_YORK)
        assert calendar.is_session(local.date())
        assert (local.hour, local.minute) == (event.release.hour, event.release.minute)


# Trades, bars, book


def test_bars_are_the_aggregation_of_the_trades(sample: Frames) -> None:
    twin = (
        sample["trades"]
        .group_by_dynamic("timestamp", every="1m")
        .agg(
            open=pl.col("price").first(),
            high=pl.col("price").max(),
            low=pl.col("price").min(),
            close=pl.col("price").last(),
            volume=pl.col("size").sum(),
            bid_volume=pl.col("size").filter(pl.col("side") == "S").sum(),
            ask_volume=pl.col("size").filter(pl.col("side") == "B").sum(),
            trade_count=pl.len().cast(pl.Int64),
        )
    )
    assert sample["bars"].drop("symbol").equals(twin)


def test_bars_and_trades_are_sane(sample: Frames) -> None:
    bars, trades = sample["bars"], sample["trades"]
    assert (bars["high"] >= bars.select(pl.max_horizontal("open", "close")).to_series()).all()
    assert (bars["low"] <= bars.select(pl.min_horizontal("open", "close")).to_series()).all()
    assert (bars["bid_volume"] + bars["ask_volume"] == bars["volume"]).all()
    assert (bars["volume"] >= bars["trade_count"]).all()
    assert bars["symbol"].unique().to_list() == ["ES"]
    assert (trades["price"] * 4 == (trades["price"] * 4).round()).all()
    assert trades["size"].min() == 1
    assert sorted(trades["side"].unique().to_list()) == ["B", "S"]
    assert (np.diff(trades["timestamp"].to_physical().to_numpy()) > 0).all()
    assert bars.null_count().sum_horizontal().sum() == 0


def test_the_book_is_never_crossed_and_shows_the_last_trade(sample: Frames) -> None:
    book = sample["book"]
    names = [f"{side}_{what}_{n}" for side in ("bid", "ask") for n in range(1, 11) for what in ("price", "size")]
    assert book.columns == ["timestamp", *names]
    bid = book.select([f"bid_price_{n}" for n in range(1, 11)]).to_numpy()
    ask = book.select([f"ask_price_{n}" for n in range(1, 11)]).to_numpy()
    assert (np.diff(bid, axis=1) == -0.25).all()
    assert (np.diff(ask, axis=1) == 0.25).all()
    spread = ask[:, 0] - bid[:, 0]
    assert spread.min() == 0.25
    assert (spread == 0.25).mean() > 0.9
    assert (spread > 0.25).any()
    assert book.select(pl.min_horizontal(pl.selectors.contains("size")).min()).item() >= 1

    joined = book.join_asof(sample["trades"], on="timestamp", strategy="backward")
    touch = joined.select(
        pl.when(pl.col("side") == "B").then(pl.col("ask_price_1")).otherwise(pl.col("bid_price_1")).alias("touch")
    )["touch"]
    assert (joined["price"] == touch).all()


@pytest.mark.parametrize("seconds", [5, 10, 60])
def test_each_bar_holds_a_snapshot_at_its_end(tmp_path: Path, seconds: int) -> None:
    made = run(tmp_path, sessions=1, book_seconds=seconds, tables=("bars", "book"))
    ends = set(made["bars"]["timestamp"].dt.offset_by("1m").dt.offset_by("-1ms").to_list())
    stamps = made["book"]["timestamp"]
    assert ends <= set(stamps.to_list())
    assert 1380 * 60 // seconds - stamps.len() < 60 // seconds  # only snapshots before the first trade are missing
    steps = stamps.diff().drop_nulls().dt.total_milliseconds().unique().to_list()
    assert steps == [seconds * 1000]


def test_the_fuller_side_of_the_book_lies_away_from_the_next_move(sample: Frames) -> None:
    book = sample["book"]
    bid, ask = book["bid_size_1"].to_numpy(), book["ask_size_1"].to_numpy()
    middle = (book["bid_price_1"] + book["ask_price_1"]).to_numpy() / 2
    assert correlation(((bid - ask) / (bid + ask))[:-1], np.sign(np.diff(middle))) > 0.05


@given(st.integers(1, 400), st.floats(1, 5000), st.floats(-3, 3))
@settings(max_examples=60, deadline=None)
def test_autoregression_is_the_recursion(n: int, half_life: float, initial: float) -> None:
    half_life = max(half_life, n / 30)
    shocks = np.random.default_rng(n).standard_normal(n)
    phi, value, naive = 2 ** (-1 / half_life), initial, []
    for shock in shocks:
        value = phi * value + shock
        naive.append(value)
    np.testing.assert_allclose(market.autoregression(shocks, half_life, initial), naive, rtol=1e-6, atol=1e-6)


def test_moving_sum_is_the_convolution() -> None:
    values, weights = np.random.default_rng(1).standard_normal(50), np.array([0.5, 0.3, 0.2])
    np.testing.assert_allclose(market.moving_sum(values, weights), np.convolve(values, weights, "valid"), rtol=1e-12)


# Stylised facts


def test_returns_have_fat_tails_and_no_memory(history: pl.DataFrame) -> None:
    cash = history.filter(pl.col("minute").is_between(570, 959))["log_return"].to_numpy()
    centred = cash - cash.mean()
    assert (centred**4).mean() / (centred**2).mean() ** 2 - 3 > 2
    assert abs(correlation(cash[1:], cash[:-1])) < 0.03


def test_volatility_clusters(history: pl.DataFrame) -> None:
    cash = history.filter(pl.col("minute").is_between(600, 929))
    size = cash["log_return"].abs().to_numpy()
    for lag, least in ((1, 0.08), (30, 0.05), (330, 0.02)):
        assert correlation(size[lag:], size[:-lag]) > least
    assert correlation(cash["volume"].log(), size) > 0.2


def test_volatility_rises_after_a_fall(history: pl.DataFrame) -> None:
    hours = (
        history.filter(pl.col("minute").is_between(600, 929))
        .with_columns(hour=pl.col("minute") // 30)
        .group_by("session", "hour", maintain_order=True)
        .agg(move=pl.col("log_return").sum(), swing=pl.col("log_return").std().log())
    )
    change = hours.with_columns(next=pl.col("swing").shift(-1).over("session") - pl.col("swing")).drop_nulls()
    assert correlation(change["move"], change["next"]) < -0.03


def test_volume_is_u_shaped_in_the_day_and_quiet_at_night(history: pl.DataFrame) -> None:
    mean = dict(history.group_by("minute").agg(pl.col("volume").mean()).iter_rows())

    def average(first: int, last: int) -> float:
        return float(np.mean([mean[minute] for minute in range(first, last)]))

    noon = average(750, 830)
    assert average(570, 600) > 2 * noon
    assert average(930, 960) > 1.5 * noon
    assert average(0, 120) < 0.2 * noon
    assert mean[570] > 3 * mean[569]
    assert mean[959] > 3 * mean[957]
    assert mean[960] > 2 * mean[965]


def test_a_release_moves_price_and_volume(history: pl.DataFrame) -> None:
    releases = [
        event
        for event in calendar.events_between(history["session"].min(), history["session"].max())  # type: ignore[arg-type]
        if event.release.type in ("CPI", "NFP")
    ]
    stamps = history["timestamp"].to_physical().to_numpy()
    at = np.searchsorted(stamps, [event.start_ns for event in releases])
    assert len(at) > 8
    volume, size = history["volume"].to_numpy(), history["log_return"].abs().to_numpy()
    assert np.median(volume[at] / volume[at - 5]) > 4
    assert np.median(size[at]) > 4 * np.median(size[at - 5])


def test_flow_goes_with_the_move_and_does_not_foretell_the_next(history: pl.DataFrame) -> None:
    cash = history.filter(pl.col("minute").is_between(570, 959))
    flow = ((cash["ask_volume"] - cash["bid_volume"]) / cash["volume"]).to_numpy()
    move = cash["log_return"].to_numpy()
    assert correlation(flow, move) > 0.2
    assert abs(correlation(flow[:-1], move[1:])) < 0.03


def test_prices_stay_in_a_plausible_range(history: pl.DataFrame) -> None:
    close = history.group_by("session", maintain_order=True).agg(pl.col("close").last())["close"].to_numpy()
    assert 0.004 < np.diff(np.log(close)).std() < 0.02
    assert 0.5 < close.min() / 5850 < close.max() / 5850 < 2


@pytest.mark.parametrize("seed", range(3))
def test_vix_reverts_and_falls_when_prices_rise(seed: int) -> None:
    _, _, state = market.history(seed, 60, 5850.0)
    days = calendar.sessions_from(dt.date(2024, 1, 2), 250)
    path = []
    for number, day in enumerate(days):
        events = calendar.events_between(day, day)
        market.minutes(seed, number, state, calendar.session_open_ns(day), events, weekend=False)
        path.append((state.log_price, state.log_vix))
    price, vix = np.array(path).T
    assert 7 < np.exp(vix.min()) < np.exp(vix).mean() < np.exp(vix.max()) < 60
    assert correlation(np.diff(price), np.diff(vix)) < -0.5


@pytest.mark.real
def test_the_shapes_are_those_of_real_bars(real_data: Path, history: pl.DataFrame) -> None:
    new_york = pl.col("ts").dt.convert_time_zone("America/New_York")
    real = pl.read_parquet(real_data / "bars" / "es_1m_2019.parquet").with_columns(
        minute=new_york.dt.hour().cast(pl.Int64) * 60 + new_york.dt.minute().cast(pl.Int64),
        log_return=(pl.col("close") / pl.col("open")).log(),
    )

    def shape(bars: pl.DataFrame) -> pl.DataFrame:
        grouped = bars.group_by((pl.col("minute") // 30).alias("half_hour"))
        return grouped.agg(pl.col("volume").mean().log(), pl.col("log_return").std().log()).sort("half_hour")

    both = shape(real).join(shape(history), on="half_hour")
    assert both.height == 46
    assert correlation(both["volume"], both["volume_right"]) > 0.97
    assert correlation(both["log_return"], both["log_return_right"]) > 0.9


# Cross-asset


def test_vix_answers_the_index_by_the_minute(sample: Frames) -> None:
    cross = sample["cross"].filter(pl.col("timestamp") > sample["bars"]["timestamp"][0])
    wide = cross.pivot("symbol", index="timestamp", values="close").sort("timestamp").drop_nulls()
    vix, spx = (np.diff(np.log(wide[name].to_numpy())) for name in ("VIX", "SPX"))
    assert correlation(vix, spx) < -0.4
    assert correlation(np.diff(np.log(wide["SPY"].to_numpy())), spx) > 0.99


def test_cross_table_has_sixty_daily_closes_then_minutes(sample: Frames) -> None:
    cross = sample["cross"].with_columns(local=pl.col("timestamp").dt.convert_time_zone("America/New_York"))
    assert cross.columns[:4] == ["timestamp", "symbol", "close", "volume"]
    assert cross["timestamp"].is_sorted()
    assert not cross.select("timestamp", "symbol").is_duplicated().any()
    before = cross.filter(pl.col("timestamp") < sample["bars"]["timestamp"][0])
    for symbol, clock in (
        ("VIX", dt.time(16, 15)),
        ("VIX3M", dt.time(16, 15)),
        ("SPX", dt.time(16)),
        ("SPY", dt.time(16)),
    ):
        rows = before.filter(pl.col("symbol") == symbol)
        assert rows.height == 60
        assert rows["local"].dt.time().unique().to_list() == [clock]
        assert rows["local"].dt.weekday().max() <= 5
        minutes = cross.filter((pl.col("symbol") == symbol) & (pl.col("local").dt.date() == dt.date(2025, 5, 14)))[
            "local"
        ]
        assert (minutes.dt.time().min(), minutes.dt.time().max()) == (dt.time(9, 31), clock)
    assert (cross.filter(pl.col("symbol") == "SPY")["volume"] > 0).all()
    assert (
        cross.filter(pl.col("symbol") != "SPY")["volume"].null_count() == cross.filter(pl.col("symbol") != "SPY").height
    )


def test_the_future_stands_a_slow_basis_above_the_index(sample: Frames) -> None:
    index = sample["cross"].filter(pl.col("symbol") == "SPX").select("timestamp", "close")
    bars = sample["bars"].select(pl.col("timestamp").dt.offset_by("1m"), future="close")
    basis = index.join(bars, on="timestamp").select(pl.col("future") - pl.col("close")).to_series().to_numpy()
    assert basis.size == 780
    assert 15 < basis.min() < basis.max() < 30
    assert np.abs(np.diff(basis)).max() < 0.75  # less than half a tick of rounding each, and a small step


# Options


@pytest.fixture(scope="module")
def chain(sample: Frames) -> pl.DataFrame:
    """The chain with forward and discount factor, computed here."""
    chain = sample["chain"]
    local = chain["expiry"].to_list()
    seconds = [
        (
            dt.datetime.combine(day, dt.time(9, 30) if settlement == "AM" else dt.time(16), NEW_YORK) - quoted
        ).total_seconds()
        for day, settlement, quoted in zip(local, chain["settlement"], chain["quote_time"], strict=True)
    ]
    years = pl.Series("years", seconds) / 31_536_000
    return chain.with_columns(
        years=years,
        forward=pl.col("underlying_price") * (0.030 * years).exp(),
        discount=(-0.043 * years).exp(),
        mid=(pl.col("bid") + pl.col("ask")) / 2,
    )


def implied_volatility(price: float, forward: float, strike: float, years: float, discount: float, call: bool) -> float:
    """By bisection on Black's formula: slow and plain."""
    low, high = 1e-4, 5.0
    cdf = NormalDist().cdf
    for _ in range(60):
        sigma = (low + high) / 2
        root = sigma * math.sqrt(years)
        d1 = math.log(forward / strike) / root + root / 2
        value = forward * cdf(d1) - strike * cdf(d1 - root) if call else strike * cdf(root - d1) - forward * cdf(-d1)
        low, high = (low, sigma) if discount * value > price else (sigma, high)
    return low


def test_chain_has_the_contracts_columns(sample: Frames) -> None:
    chain = sample["chain"]
    assert chain.columns == [
        *("quote_time", "market_time", "underlying_price", "root", "settlement", "expiry"),
        *("strike", "type", "bid", "ask", "open_interest", "volume"),
    ]
    assert chain.null_count().sum_horizontal().sum() == 0
    local = chain["quote_time"].unique().sort().dt.convert_time_zone("America/New_York").dt.strftime("%d %H:%M")
    assert local.to_list() == [f"{day} {clock}" for day in (13, 14) for clock in ("10:00", "12:30", "15:30")]
    assert chain.group_by("quote_time").len()["len"].is_between(2000, 4000).all()
    key = ["quote_time", "root", "expiry", "strike", "type"]
    assert not chain.select(key).is_duplicated().any()
    spx = sample["cross"].filter(pl.col("symbol") == "SPX")
    joined = chain.join(spx, left_on="quote_time", right_on="timestamp")
    assert joined.height == chain.height
    assert (joined["underlying_price"] == joined["close"]).all()


def test_roots_and_expiries(sample: Frames) -> None:
    chain = sample["chain"]
    pairs = set(chain.select("root", "settlement").unique().iter_rows())
    assert pairs == {("SPX", "AM"), ("SPXW", "PM")}
    days = chain["quote_time"].dt.convert_time_zone("America/New_York").dt.date()
    assert ((chain["expiry"] == days) & (chain["root"] == "SPXW")).any()  # a 0DTE expiry
    assert (chain["expiry"] >= days).all()
    monthly = chain.filter(pl.col("root") == "SPX")["expiry"].unique()
    assert dt.date(2025, 5, 16) in monthly.to_list()
    # Third Fridays. In June 2026 that is Juneteenth: the eve takes its place.
    for day in monthly.to_list():
        assert 15 <= day.day <= 21
        assert day.weekday() == 4
    assert options.expiries(dt.date(2026, 6, 1))[-1].date >= dt.date(2027, 3, 1)
    june = [e.date for e in options.expiries(dt.date(2026, 6, 1)) if e.root == "SPX" and e.date.month == 6]
    assert dt.date(2026, 6, 18) in june
    assert dt.date(2026, 6, 19) not in june


def test_parity_holds_within_the_quotes(chain: pl.DataFrame) -> None:
    key = ["quote_time", "root", "expiry", "strike"]
    calls, puts = (chain.filter(pl.col("type") == kind) for kind in ("C", "P"))
    both = calls.join(puts, on=key, suffix="_put")
    assert both.height == calls.height == puts.height
    error = both["mid"] - both["mid_put"] - both["discount"] * (both["forward"] - both["strike"])
    half = (both["ask"] - both["bid"] + both["ask_put"] - both["bid_put"]) / 2
    # The index is printed to a cent; the quotes were made from the printed value.
    assert (error.abs() <= half + 1e-9).all()


def test_quotes_are_on_their_ticks_and_not_crossed(chain: pl.DataFrame) -> None:
    assert (chain["bid"] >= 0).all()
    assert (chain["ask"] > chain["bid"]).all()
    for side in ("bid", "ask"):
        price = chain[side].to_numpy()
        tick = np.where(price < 3, 0.05, 0.10)
        np.testing.assert_allclose(price / tick, np.round(price / tick), atol=1e-6)


def test_quotes_leave_no_static_arbitrage(chain: pl.DataFrame) -> None:
    for _, group in chain.group_by("quote_time", "root", "expiry", "type"):
        ordered = group.sort("strike")
        strike, bid, ask = (ordered[name].to_numpy() for name in ("strike", "bid", "ask"))
        sign = 1 if ordered["type"][0] == "C" else -1
        assert (sign * (bid[1:] - ask[:-1]) <= 0).all() if sign == 1 else (bid[:-1] <= ask[1:]).all()
        weight = (strike[2:] - strike[1:-1]) / (strike[2:] - strike[:-2])
        assert (weight * ask[:-2] + (1 - weight) * ask[2:] >= bid[1:-1] - 1e-9).all()


@given(st.floats(8, 80), st.floats(0.0005, 1.5), st.floats(1.02, 3))
@settings(max_examples=60, deadline=None)
def test_the_surface_has_no_static_arbitrage(vix: float, years: float, longer: float) -> None:
    near, far = (float(options.term_variance(vix, t)) for t in (years, years * longer))
    assert 0 < near < far
    k = np.linspace(-6, 6, 401) * math.sqrt(near)
    assert (options.ssvi(k, near) <= options.ssvi(k, far) + 1e-12).all()  # calendar
    strike = 5800 * np.exp(k)
    call, put = options.black(5800.0, strike, options.ssvi(k, near), 1.0)
    slope = np.diff(call) / np.diff(strike)
    assert ((slope >= -1 - 1e-7) & (slope <= 1e-7)).all()  # call spreads
    assert (np.diff(slope) >= -1e-7).all()  # butterflies
    np.testing.assert_allclose(call - put, 5800 - strike, atol=1e-9)


@given(st.floats(0.6, 1.6), st.floats(1e-5, 0.5))
@settings(max_examples=60, deadline=None)
def test_black_against_a_plain_formula(moneyness: float, variance: float) -> None:
    forward, strike, discount = 5800.0, 5800.0 * moneyness, 0.97
    call, put = options.black(forward, np.array([strike]), np.array([variance]), discount)
    d1 = math.log(forward / strike) / math.sqrt(variance) + math.sqrt(variance) / 2
    cdf = NormalDist().cdf
    expected = discount * (forward * cdf(d1) - strike * cdf(d1 - math.sqrt(variance)))
    assert call[0] == pytest.approx(expected, abs=1e-8)
    assert put[0] == pytest.approx(expected - discount * (forward - strike), abs=1e-8)


def test_smile_and_term_structure(chain: pl.DataFrame) -> None:
    first = chain.filter(pl.col("quote_time") == chain["quote_time"].min())
    skews = []
    for (root, expiry), group in first.group_by("root", "expiry", maintain_order=True):
        out = group.filter(
            (pl.col("bid") > 0.2) & ((pl.col("type") == "C") == (pl.col("strike") >= pl.col("forward")))
        ).sort("strike")
        sigma = np.array(
            [
                implied_volatility(
                    row["mid"], row["forward"], row["strike"], row["years"], row["discount"], row["type"] == "C"
                )
                for row in out.iter_rows(named=True)
            ]
        )
        k = np.log((out["strike"] / out["forward"]).to_numpy())
        at = float(np.interp(0.0, k, sigma))
        assert 0.08 < at < 0.6, (root, expiry)
        width = at * math.sqrt(out["years"][0])
        skews.append(float(np.interp(-width, k, sigma) - np.interp(0.5 * width, k, sigma)))
    assert len(skews) > 15
    assert min(skews) > 0.01


def test_open_interest_clusters_and_stays(sample: Frames) -> None:
    chain = sample["chain"]
    key = ["root", "expiry", "strike", "type"]
    by_day = chain.with_columns(day=pl.col("quote_time").dt.date())
    # Once a day: all snapshots of a session agree.
    assert (by_day.group_by("day", *key).agg(pl.col("open_interest").n_unique())["open_interest"] == 1).all()
    near = by_day.filter((pl.col("strike") / pl.col("underlying_price") - 1).abs() < 0.03)
    round_ones = near.filter(pl.col("strike") % 100 == 0)["open_interest"].mean()
    odd_ones = near.filter(pl.col("strike") % 25 != 0)["open_interest"].mean()
    assert isinstance(round_ones, float)
    assert isinstance(odd_ones, float)
    assert round_ones > 4 * odd_ones
    # A contract keeps most of it overnight.
    first, second = (
        by_day.filter(pl.col("day") == day).unique([*key]).select(*key, "open_interest")
        for day in (dt.date(2025, 5, 13), dt.date(2025, 5, 14))
    )
    held = first.join(second, on=key).filter(pl.col("open_interest") > 500)
    assert held.height > 200
    assert correlation(held["open_interest"].log(), held["open_interest_right"].log()) > 0.95
    # Puts lie below the index, calls above it.
    centre = (
        chain.with_columns(pl.col("strike") * pl.col("open_interest"))
        .group_by("type")
        .agg(pl.col("strike").sum() / pl.col("open_interest").sum())
    )
    places = dict(centre.iter_rows())
    assert places["P"] < 5800 < places["C"]


def test_volume_only_rises_within_a_day(sample: Frames) -> None:
    key = ["root", "expiry", "strike", "type"]
    chain = sample["chain"].with_columns(day=pl.col("quote_time").dt.date()).sort("quote_time")
    steps = chain.with_columns(step=pl.col("volume").diff().over("day", *key))["step"].drop_nulls()
    assert (steps >= 0).all()
    assert steps.sum() > 0
    short = chain.filter(pl.col("expiry") == pl.col("day"))["volume"].sum()
    assert short > 0.2 * chain["volume"].sum()
