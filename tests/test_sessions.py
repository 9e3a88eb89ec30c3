"""Sessions, halts, gaps and rolls, against the calendar's golden days and bars of the time."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest

from mia_fast import clock, session_table
from mia_fast.bars import back_adjust, continuous, gap_events, roll_table
from mia_fast.bars.rolls import FixedRoll, RollsConfig, expiry_date, rolls
from mia_fast.errors import ConfigError, DataError
from mia_fast.features.frame import generate_features
from mia_fast.features.live import Features
from mia_fast.sessions import Sessions, session_open
from mia_fast.tables import read_table
from mia_fast.workspace import Workspace, shipped
from mia_kernels import opcodes as op
from mia_kernels.calendar import calendar_columns

PLACE = Workspace(shipped())
ES = Sessions.load(PLACE, "ES")
NY = ZoneInfo("America/New_York")
MINUTE = clock.NS_PER_MINUTE


def _hours(day: str) -> tuple[str, ...] | None:
    """Open, halt, close in New York: ``We 18:00``."""
    row = ES.of(dt.date.fromisoformat(day))
    if row is None:
        return None

    def local(ns):
        return clock.to_datetime(ns).astimezone(NY).strftime("%a %H:%M")

    return tuple(local(ns) for ns in (row.open, row.halt_from, row.halt_to, row.close) if ns)


@pytest.mark.parametrize(
    ("day", "hours"),
    [
        ("2019-11-27", ("Tue 18:00", "Wed 16:15", "Wed 16:30", "Wed 17:00")),
        ("2019-11-28", ("Wed 18:00", "Thu 13:00")),  # Thanksgiving
        ("2019-11-29", ("Thu 18:00", "Fri 13:15")),
        ("2021-06-18", ("Thu 18:00", "Fri 16:15", "Fri 16:30", "Fri 17:00")),  # Juneteenth 2021: a full day
        ("2022-06-20", ("Sun 18:00", "Mon 13:00")),  # Juneteenth since 2022
        ("2026-06-19", ("Thu 18:00", "Fri 13:00")),
        ("2021-06-25", ("Thu 18:00", "Fri 16:15", "Fri 16:30", "Fri 17:00")),
        ("2021-06-28", ("Sun 18:00", "Mon 17:00")),  # the daily halt is gone
        ("2021-04-02", ("Thu 18:00", "Fri 09:15")),  # Good Friday with payrolls
        ("2022-04-15", None),  # Good Friday
        ("2019-07-03", ("Tue 18:00", "Wed 13:15")),
        ("2019-12-24", ("Mon 18:00", "Tue 13:15")),
        ("2021-12-24", None),
        ("2023-12-25", None),
        ("2013-10-08", ("Mon 18:00", "Tue 16:15", "Tue 16:30", "Tue 17:15")),
        ("2015-09-18", ("Thu 18:00", "Fri 16:15", "Fri 16:30", "Fri 17:15")),
        ("2015-09-21", ("Sun 18:00", "Mon 16:15", "Mon 16:30", "Mon 17:00")),
    ],
)
def test_golden_days(day, hours):
    assert _hours(day) == hours


@pytest.mark.parametrize(
    ("day", "utc"), [("2025-03-07", 23), ("2025-03-10", 22), ("2025-10-31", 22), ("2025-11-03", 23)]
)
def test_the_open_moves_with_the_clocks(day, utc):
    row = ES.of(dt.date.fromisoformat(day))
    assert row is not None
    assert clock.to_datetime(row.open).hour == utc
    assert row.close - row.open == 23 * 60 * MINUTE


def test_every_bar_of_the_time_lies_in_its_session(real_data: Path):
    missing = 0
    for name in ("es_1m_2019", "es_1m_2020", "es_1m_2021", "es_1m_2022h1"):
        frame = pl.read_parquet(real_data / f"bars/{name}.parquet")
        starts = frame["ts"].cast(pl.Datetime("ns", "UTC")).dt.epoch("ns").to_numpy()
        table = ES.array()
        place = np.searchsorted(table[:, 0], starts, side="right") - 1
        inside = starts < table[place, 1]
        assert (frame["ts"].to_numpy()[~inside] == np.datetime64("2021-08-08T04:00")).all()  # the one stray bar
        days = frame["session_date"].cast(pl.Int32).to_numpy()
        assert np.array_equal(days[inside], table[place[inside], 2])
        traded = set(days[inside].tolist())
        expected = {(r.trade_date - dt.date(1970, 1, 1)).days for r in ES.rows}
        missing += len({d for d in expected if min(traded) <= d <= max(traded)} - traded)
        # The last minute of each session traded, so that no close is too late.
        last = {}
        for day, start in zip(days[inside].tolist(), starts[inside].tolist(), strict=True):
            last[day] = start
        assert all(table[table[:, 2] == day][0, 1] - start == MINUTE for day, start in last.items())
    assert missing == 0


def test_the_rule_of_the_kernels_is_the_table():
    """Features reset where the table opens: the compiled rule names every trade date as the table does."""
    from mia_fast.features.plan import new_york

    closes = np.array([[r.open + 1, r.open + MINUTE, r.close] for r in ES.rows], dtype=np.int64).ravel()
    columns = np.zeros((op.FIRST_INPUT, closes.size))
    calendar_columns(closes, new_york(), columns, 0)
    days = np.repeat(ES.array()[:, 2], 3)
    assert np.array_equal(columns[op.SESSION].astype(np.int64), days)
    assert all(session_open(row.trade_date) == row.open for row in ES.rows)


GOLDEN = {
    "Thanksgiving": ("2019-11-26", "2019-12-02"),
    "day of Martin Luther King": ("2020-01-17", "2020-01-21"),
    "limit-down halts": ("2020-03-06", "2020-03-18"),
    "clocks forward": ("2021-03-11", "2021-03-16"),
    "the daily halt goes": ("2021-06-24", "2021-06-29"),
    "clocks back": ("2021-11-04", "2021-11-09"),
    "Juneteenth": ("2022-06-16", "2022-06-22"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_vwap_profile_and_sums_begin_again_at_the_tables_opens(tmp_path: Path, real_data: Path, name):
    """And nowhere else: not at a halt, nor at midnight; live as in a batch, to the last bit."""
    first, last = map(dt.date.fromisoformat, GOLDEN[name])
    file = "es_1m_2022h1" if first.year == 2022 else f"es_1m_{first.year}"
    raw = pl.read_parquet(real_data / f"bars/{file}.parquet").filter(pl.col("session_date").is_between(first, last))
    raw = raw.with_columns(ask_volume=(pl.col("volume") * 0.625).floor()).with_columns(
        bid_volume=pl.col("volume") - pl.col("ask_volume")
    )
    bars = read_table("bars", raw.drop("session_date"), workspace=PLACE)
    found = generate_features(bars, workspace=Workspace(tmp_path))
    typical = (pl.col("high") + pl.col("low") + pl.col("close")) / 3
    opens = [ES.at(t).open for t in bars.frame["timestamp"].dt.epoch("ns").to_list()]  # by the table
    want = bars.frame.with_columns(open_at=pl.Series(opens)).with_columns(
        vwap=(typical * pl.col("volume")).cum_sum().over("open_at") / pl.col("volume").cum_sum().over("open_at"),
        delta=(pl.col("ask_volume") - pl.col("bid_volume")).cum_sum().over("open_at"),
        highest=pl.col("high").cum_max().over("open_at"),
        lowest=pl.col("low").cum_min().over("open_at"),
        total=pl.col("volume").cum_sum().over("open_at"),
    )
    sessions = [row for row in ES.rows if first <= row.trade_date <= last]
    assert sorted(set(opens)) == [row.open for row in sessions]
    assert found["vwap"].null_count() == 0  # the first bar is a session's first
    assert (found["vwap"] - want["vwap"]).abs().max() < 1e-8
    assert found["cumulative_delta"].equals(want["delta"])
    assert ((found["poc"] >= want["lowest"]) & (found["poc"] <= want["highest"])).all()
    assert (found["volume_at_poc"] <= want["total"] + 1e-6).all()
    starts = want["open_at"] != want["open_at"].shift(1)  # a session's first bar is all that its profile knows
    here = found.filter(starts.fill_null(True)), want.filter(starts.fill_null(True))
    assert here[0].height == len(sessions)
    assert ((here[0]["vah"] <= here[1]["high"]) & (here[0]["val"] >= here[1]["low"])).all()
    live = Features(workspace=Workspace(tmp_path), inputs=("bid_volume", "ask_volume"))
    names = ["vwap", "poc", "vah", "val", "volume_at_poc", "cumulative_delta", "vol_historical_1d"]
    places = [live.names.index(column) for column in names]
    columns = ["open", "high", "low", "close", "volume", "bid_volume", "ask_volume"]
    known = bars.frame["known_at"].dt.epoch("ns").to_list()
    rows = bars.frame.select(columns).iter_rows()
    step = np.array(
        [
            live.update({"known_at": at, **dict(zip(columns, row, strict=True))})[places]
            for at, row in zip(known, rows, strict=True)
        ]
    )
    batch = found.select(pl.col(names).fill_null(float("nan"))).to_numpy()
    assert np.array_equal(step, batch, equal_nan=True)


def test_the_session_of_a_holiday_is_its_own():
    """CME clears it with the next business day; features, as table and bars of the time do, begin anew at 18:00."""
    alone = [row for row in ES.rows if row.note.startswith(("holiday", "Juneteenth"))]
    assert len(alone) > 90
    for row in alone:
        after = next(r for r in ES.rows if r.trade_date > row.trade_date)
        assert clock.to_datetime(row.close).astimezone(NY).time() == dt.time(13)
        opened = clock.to_datetime(after.open).astimezone(NY)
        assert (opened.date(), opened.time()) == (after.trade_date - dt.timedelta(days=1), dt.time(18))
    days = {row.trade_date.isoformat() for row in alone}
    assert {"2019-11-28", "2020-01-20", "2022-06-20", "2022-05-30", "2025-09-01", "2026-06-19"} <= days


def test_the_table_reaches_far_enough():
    ES.check_ahead(clock.now_ns())
    with pytest.raises(ConfigError, match="179 days"):
        ES.check_ahead(ES.rows[-1].close - 179 * 86_400_000_000_000 - MINUTE)


def test_validate_finds_a_table_that_ends_soon(tmp_path: Path, monkeypatch):
    from mia_fast import validate

    def findings():
        return [f.what for f in validate.configuration(Workspace(tmp_path))[0]]

    assert findings() == []
    monkeypatch.setattr(validate, "now_ns", lambda: ES.rows[-1].close)
    assert findings() == [f"the session table ends on {ES.rows[-1].trade_date}, 0 days from now"]


@pytest.mark.filterwarnings("ignore:Series.values")  # exchange_calendars under pandas 3.1
def test_the_generator_gives_the_shipped_table():
    pytest.importorskip("exchange_calendars")
    text = session_table.table(ES.rows[0].trade_date, ES.rows[-1].trade_date)
    assert text == (shipped() / "config/sessions_cme_equity.csv").read_text(encoding="utf-8")


def test_easter():
    known = {2019: (4, 21), 2020: (4, 12), 2021: (4, 4), 2022: (4, 17), 2024: (3, 31), 2026: (4, 5), 2038: (4, 25)}
    assert {year: (session_table.easter(year).month, session_table.easter(year).day) for year in known} == known


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trade_date,open", "date,open", "header"),
        ("2013-10-02,2013-10-01T22:00Z", "2013-10-02,2013-10-03T22:00Z", "not in order"),
        ("2013-10-02,2013-10-01T22:00Z", "2013-10-02,2013-10-01T20:00Z", "overlaps"),
        ("2013-10-02,2013-10-01T22:00Z", "2013-10-02,soon", "not a session"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, old, new, message):
    text = (shipped() / "config/sessions_cme_equity.csv").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "config").mkdir()
    (tmp_path / "config/sessions_cme_equity.csv").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        Sessions.load(Workspace(tmp_path), "ES")


def test_hours_are_never_guessed():
    with pytest.raises(ConfigError, match="no session table"):
        Sessions.load(PLACE, "CL")
    with pytest.raises(ConfigError, match="covers"):
        ES.covers(0, 1)


# --- halts and gaps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("day", "first", "last"),
    [("2020-03-09", "09:36", "09:48"), ("2020-03-12", "09:37", "09:49"), ("2020-03-16", "09:31", "09:44"),
     ("2020-03-18", "12:58", "13:10")],
)  # fmt: skip
def test_circuit_breakers_of_march_2020(real_data: Path, day, first, last):
    frame = _march(real_data)
    gaps = gap_events(frame, MINUTE, ES)
    start, end = (dt.datetime.fromisoformat(f"{day}T{t}").replace(tzinfo=NY).astimezone(dt.UTC) for t in (first, last))
    halts = gaps.filter((pl.col("cause") == "halt") & pl.col("reason").str.contains("circuit"))
    inside = halts.filter((pl.col("start") <= start) & (pl.col("end") > end))
    assert inside.height == 1
    assert inside["bars"][0] >= 12
    assert not ES.is_open(clock.from_datetime(start))
    assert ES.is_open(clock.from_datetime(end) + 3 * MINUTE)


def test_limit_nights_of_march_2020(real_data: Path):
    """At the limit the price stands: most bars of the interval touch one and the same price."""
    frame = _march(real_data)
    gaps = gap_events(frame, MINUTE, ES)
    for pause in [p for p in ES.pauses if p.kind == "limit"]:
        here = frame.filter(pl.col("timestamp").dt.epoch("ns").is_between(pause.start, pause.end, closed="left"))
        assert (here["low"] == here["low"].min()).mean() > 0.35, pause
        assert gaps.filter((pl.col("cause") == "limit") & (pl.col("start").dt.epoch("ns") >= pause.start)).height


def _march(real_data: Path) -> pl.DataFrame:
    raw = pl.read_parquet(real_data / "bars/es_1m_2020.parquet").filter(
        pl.col("session_date").is_between(dt.date(2020, 3, 6), dt.date(2020, 3, 20))
    )
    return read_table("bars", raw.drop("session_date"), workspace=PLACE).frame


def test_gaps_account_for_every_missing_minute(real_data: Path):
    frame = _march(real_data)
    gaps = gap_events(frame, MINUTE, ES)
    first, last = frame["timestamp"].dt.epoch("ns")[0], frame["timestamp"].dt.epoch("ns")[-1]
    minutes = sum(
        (min(r.close, last + MINUTE) - max(r.open, first)) // MINUTE
        for r in ES.rows
        if r.open <= last and r.close > first
    )
    assert frame.height + gaps["bars"].sum() == minutes
    assert gaps.filter(pl.col("cause") == "closed")["bars"].sum() == 0
    spans = gaps.select((pl.col("end") - pl.col("start")).dt.total_nanoseconds()).sum().item()
    assert spans == last - first - (frame.height - 1) * MINUTE


def test_a_session_without_a_bar_is_an_event():
    days = [ES.of(dt.date(2025, 5, d)) for d in (13, 15)]
    frame = pl.DataFrame({"timestamp": [days[0].close - MINUTE, days[1].open]}).with_columns(
        pl.col("timestamp").cast(pl.Datetime("ns", "UTC"))
    )
    gaps = gap_events(frame, MINUTE, ES)
    assert gaps["cause"].to_list() == ["closed", "session_missing", "closed"]
    assert gaps["bars"].to_list() == [0, 23 * 60, 0]
    assert gap_events(frame.clear(), MINUTE, ES).height == 0


# --- rolls ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expiries() -> pl.DataFrame:
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / "bars" / "es_quote_trade_1m_2013.parquet"
    if not path.exists():
        pytest.skip(f"no real data at {path}")
    return read_table("bars", path, workspace=PLACE).frame.filter(pl.col("symbol").is_in(["201312", "201403"]))


FIXED = RollsConfig(fixed=(FixedRoll.model_validate({"from": "201312", "to": "201403", "trade_date": "2013-10-08"}),))


def test_the_rule_finds_the_desks_usual_day():
    assert expiry_date("201312") == dt.date(2013, 12, 20)
    config = rolls(PLACE)
    assert config.rule == "calendar"
    second_thursday = dt.date(2013, 12, 12)
    frame = pl.DataFrame(
        {
            "timestamp": [clock.from_datetime(dt.datetime(2013, 12, d, 15, tzinfo=dt.UTC)) for d in (11, 11, 13, 13)],
            "symbol": ["201312", "201403"] * 2,
            "close": [1800.0, 1794.0, 1801.0, 1795.0],
            "volume": [9.0, 10.0, 1.0, 9.0],
        }
    ).with_columns(pl.col("timestamp").cast(pl.Datetime("ns", "UTC")))
    found = roll_table(frame, config, ES)
    assert [(r.trade_date, r.gap) for r in found] == [(second_thursday, -6.0)]
    by_volume = roll_table(frame, RollsConfig(rule="volume"), ES)
    assert [r.trade_date for r in by_volume] == [second_thursday]  # the session after that of the 11th


def test_the_gap_of_2013_and_the_series_on_both_sides(expiries):
    (roll,) = roll_table(expiries, FIXED, ES)
    assert roll.at == session_open(dt.date(2013, 10, 8))
    assert roll.at - roll.measured <= 90 * MINUTE
    # An independent vendor's back-adjustment has Z13 at +67.75 and H14 at +61.50 from its own base: 6.25 apart at the
    # roll of December; the gap narrows as the carry to both expiries shortens.
    assert roll.gap == -6.5
    series = continuous(expiries, (roll,))
    before = series.filter(pl.col("timestamp").dt.epoch("ns") < roll.at)
    after = series.filter(pl.col("timestamp").dt.epoch("ns") >= roll.at)
    assert before["symbol"].unique().to_list() == ["201312"]
    assert after["symbol"].unique().to_list() == ["201403"]
    assert before["adjustment"].unique().to_list() == [roll.gap]
    assert after["adjustment"].unique().to_list() == [0.0]
    # Prices of the series are the contracts' own, to the last bit.
    own = expiries.join(series.select("timestamp", "symbol"), on=["timestamp", "symbol"]).sort("timestamp")
    assert series.drop("adjustment").equals(own)
    # On the adjusted copy the seam is a minute like any other; on the real prices it is a jump.
    seam = before.height
    assert series["close"].diff()[seam] == -6.5
    assert back_adjust(series)["close"].diff()[seam] == 0.0
    same = expiries.filter(pl.col("symbol") == "201312").sort("timestamp")
    overnight = same.filter(pl.col("timestamp").dt.epoch("ns") >= roll.at)["close"][0] - before["close"][-1]
    assert abs(overnight) < 1.0  # the old contract itself did not move


def test_features_do_not_see_the_roll(expiries, tmp_path: Path):
    (roll,) = roll_table(expiries, FIXED, ES)
    series = continuous(expiries, (roll,))
    plain = ["timestamp", "open", "high", "low", "close", "volume"]
    place = Workspace(tmp_path)
    adjusted = generate_features(back_adjust(series).select(plain), workspace=place)
    raw = generate_features(series.select(plain), workspace=place)
    at = (series["timestamp"].dt.epoch("ns") < roll.at).sum()
    window = slice(at, at + 14)
    # True range at the seam: the jump is in the raw series and not in the adjusted one.
    assert raw["atr_14"][window].max() - adjusted["atr_14"][window].max() > 0.2
    assert adjusted["momentum_10"][window].abs().max() < raw["momentum_10"][window].abs().max()


def test_a_gap_is_measured_or_refused(expiries):
    with pytest.raises(DataError, match="no minute in common"):
        roll_table(
            expiries.filter(
                (pl.col("symbol") == "201312") | (pl.col("timestamp") >= dt.datetime(2013, 10, 9, tzinfo=dt.UTC))
            ),
            FIXED,
            ES,
        )
    with pytest.raises(DataError, match="no roll"):
        continuous(expiries, ())
