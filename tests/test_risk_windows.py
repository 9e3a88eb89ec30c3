"""Trading hours, closures, expiry and streams by the clock; who holds the account."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_risk_support import CONFIG, MINUTE, ROOT, T0

from mia_fast.clock import from_datetime, to_datetime
from mia_fast.risk import Code, Event, EventCalendar, Instance, TradeWindowFilter, WeeklySessions, trading_hours
from mia_fast.risk.config import Closure, Contract, Stream
from mia_fast.workspace import Workspace

NEW_YORK = ZoneInfo("America/New_York")
QUARTERLY = Contract(expiry=None, before_hours=15.5, after_hours=1)
DAY = 1440 * MINUTE


def at(text: str) -> int:
    """An instant of the New York wall clock."""
    return from_datetime(dt.datetime.fromisoformat(text).replace(tzinfo=NEW_YORK))


def windows(*events: Event, closures=(), contract=QUARTERLY) -> TradeWindowFilter:
    calendar = EventCalendar.from_events([*events, Event(T0 + 10**7 * MINUTE, "far", 0.1)], CONFIG.events)
    return TradeWindowFilter(calendar, WeeklySessions(), closures, contract)


@pytest.mark.parametrize(
    ("when", "is_open", "trade_date"),
    [
        ("2020-03-08T17:59:59", False, "2020-03-06"),  # Sunday, and the night summer time began
        ("2020-03-08T18:00:00", True, "2020-03-09"),
        ("2020-03-09T16:59:59", True, "2020-03-09"),
        ("2020-03-09T17:00:00", False, "2020-03-09"),
        ("2020-03-09T18:00:00", True, "2020-03-10"),
        ("2020-03-13T16:59:59", True, "2020-03-13"),
        ("2020-03-13T17:00:00", False, "2020-03-13"),
        ("2020-03-14T12:00:00", False, "2020-03-13"),
        ("2020-11-01T18:00:00", True, "2020-11-02"),  # the night it ended
    ],
)
def test_hours_by_the_new_york_wall_clock(when, is_open, trade_date):
    span = WeeklySessions().span(at(when))
    assert span.open is is_open
    assert dt.date.fromordinal(span.trade_date).isoformat() == trade_date
    assert span.start_ns <= at(when) < span.end_ns


@settings(max_examples=200, deadline=None)
@given(st.integers(at("2019-01-01T00:00"), at("2023-01-01T00:00")))
def test_spans_tile_time_and_agree_with_the_wall_clock(now):
    sessions = WeeklySessions()
    span = sessions.span(now)
    assert sessions.span(span.start_ns) == sessions.span(span.end_ns - 1) == span
    assert sessions.span(span.end_ns).start_ns == span.end_ns
    local = to_datetime(now).astimezone(NEW_YORK)
    week, hour = local.weekday(), local.hour
    closed = week == 5 or (week == 6 and hour < 18) or (week == 4 and hour >= 17) or hour == 17
    assert span.open is not closed


@pytest.mark.real
def test_every_bar_of_2020_lies_in_the_hours(real_data):
    import polars as pl

    stamps = pl.read_parquet(real_data / "bars" / "es_1m_2020.parquet", columns=["ts"])["ts"]
    sessions = WeeklySessions()
    instants = stamps.dt.cast_time_unit("ns").to_physical().to_list()[::97]
    assert all(sessions.span(instant).open for instant in instants)


@pytest.mark.parametrize(
    ("when", "code"),
    [
        ("2020-03-19T17:59:59", None),
        ("2020-03-19T18:00:00", Code.CONTRACT_ROLL),
        ("2020-03-20T10:29:59", Code.CONTRACT_ROLL),
        ("2020-03-20T10:30:00", None),
        ("2020-06-19T09:00:00", Code.CONTRACT_ROLL),
        ("2020-06-12T09:00:00", None),
    ],
)
def test_the_blackout_around_the_third_friday_of_the_quarter(when, code):
    found = windows().blackout(at(when))
    assert (found and found.code) is code


def test_a_dated_contract_expires_for_good():
    mine = windows(contract=Contract(expiry=dt.date(2020, 3, 20), before_hours=1, after_hours=5))
    assert mine.blackout(at("2020-03-20T08:29:59")) is None
    assert mine.blackout(at("2020-03-20T08:30:00")).code is Code.CONTRACT_ROLL
    assert mine.blackout(at("2020-03-20T09:30:00")).code is Code.CONTRACT_EXPIRED
    assert mine.blackout(at("2021-03-20T09:30:00")).code is Code.CONTRACT_EXPIRED


CLOSED = Closure(start=to_datetime(T0), end=to_datetime(T0 + 30 * MINUTE), reason="limit down")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-3 * 1440, 5 * 1440), min_size=1, max_size=40), st.integers(0, 1))
def test_what_is_remembered_equals_what_is_asked_anew(minutes, dated):
    contract = Contract(expiry=dt.date(2020, 3, 19), before_hours=2, after_hours=2) if dated else QUARTERLY
    found = windows(Event(T0 + 60 * MINUTE, "FOMC", 0.9), closures=(CLOSED,), contract=contract)
    instants = np.array(sorted({T0 + minute * MINUTE + d for minute in minutes for d in (-1, 0, 1)}))
    expected = []
    for instant in instants.tolist():
        fresh = windows(Event(T0 + 60 * MINUTE, "FOMC", 0.9), closures=(CLOSED,), contract=contract)
        expected.append(fresh.blocked(instant) is not None)
        assert fresh.move(instant) is not expected[-1]
        assert fresh.start_ns <= instant < fresh.end_ns
        for edge in (fresh.start_ns, fresh.end_ns - 1):
            assert (found.blocked(edge) is None) is fresh.free
    remembered = []
    for instant in instants.tolist():
        if not found.start_ns <= instant < found.end_ns:
            found.move(instant)
        remembered.append(not found.free)
    assert remembered == expected


def test_a_stream_ages_in_session_time_where_it_is_told_to():
    friday = at("2020-03-13T16:15:00")
    wall, open_time = Stream(seconds=86_400, session_time=False), Stream(seconds=86_400, session_time=True)
    assert windows().deadline(friday, wall) == friday + DAY
    # 45 minutes to Friday's close, then 23 h 15 from Sunday 18:00, with the break of Monday at 17:00.
    assert windows().deadline(friday, open_time) == at("2020-03-16T18:15:00")


# ---------------------------------------------------------------- who holds the account


def test_the_newest_gate_of_a_process_holds_the_account(tmp_path):
    one = Instance(tmp_path)
    assert one.held
    two = Instance(tmp_path)
    assert (one.held, two.held) == (False, True)
    one.release()  # what is no longer held gives nothing back
    assert two.held
    two.release()
    three = Instance(tmp_path)
    assert three.held
    three.release()


def test_another_process_keeps_the_account_until_it_ends(tmp_path):
    held = "import sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path; from mia_fast.risk import Instance;"
    held += "one = Instance(Path(sys.argv[1])); print(one.held, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", held, str(tmp_path), str(ROOT), str(ROOT / "kernels")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "True\n"
        assert not Instance(tmp_path).held
        other.kill()
        other.wait()
    mine = Instance(tmp_path)
    assert mine.held
    mine.release()


def test_a_folder_that_was_replaced_is_claimed_anew(tmp_path):
    import shutil

    folder = tmp_path / "state"
    one = Instance(folder)
    shutil.rmtree(folder)
    two = Instance(folder)
    assert (one.held, two.held) == (False, True)
    assert two.path.exists()
    two.release()


def test_what_cannot_be_locked_is_not_held(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert not Instance(tmp_path / "file").held


# ---------------------------------------------------------------- the dated table


def instant(text: str) -> int:
    return from_datetime(dt.datetime.fromisoformat(text))


ES_HOURS = trading_hours(Workspace(ROOT), "ES")


@pytest.mark.parametrize(
    ("when", "is_open", "until"),
    [
        ("2021-11-24T20:00Z", True, "2021-11-24T22:00Z"),  # the day before Thanksgiving is a whole one
        ("2021-11-25T17:59Z", True, "2021-11-25T18:00Z"),  # Thanksgiving ends at 13:00 New York
        ("2021-11-25T18:00Z", False, "2021-11-25T23:00Z"),
        ("2021-11-26T18:14Z", True, "2021-11-26T18:15Z"),  # the day after at 13:15
        ("2021-11-26T18:15Z", False, "2021-11-28T23:00Z"),
        ("2022-06-20T16:59Z", True, "2022-06-20T17:00Z"),  # Juneteenth, kept on a Monday, at 13:00
        ("2022-06-20T17:00Z", False, "2022-06-20T22:00Z"),
        ("2021-12-23T23:30Z", False, "2021-12-26T23:00Z"),  # Christmas kept on Friday the 24th: no session at all
        ("2020-12-24T18:14Z", True, "2020-12-24T18:15Z"),  # Christmas Eve at 13:15
        ("2022-04-15T12:00Z", False, "2022-04-17T22:00Z"),  # Good Friday
        ("2020-02-03T21:15Z", False, "2020-02-03T21:30Z"),  # the daily halt of those years
        ("2020-02-03T21:30Z", True, "2020-02-03T22:00Z"),
        ("2020-03-16T13:40Z", False, "2020-03-16T13:45:01Z"),  # circuit breaker
        ("2020-03-16T13:46Z", True, "2020-03-16T20:15Z"),
    ],
)
def test_golden_days_by_the_dated_table(when, is_open, until):
    span = ES_HOURS.span(instant(when))
    assert (span.open, span.end_ns) == (is_open, instant(until))


@given(st.datetimes(dt.datetime(2013, 10, 2), dt.datetime(2028, 12, 1)))
def test_dated_spans_tile_time_and_never_open_when_the_weekly_rule_is_closed(when):
    now = from_datetime(when.replace(tzinfo=dt.UTC))
    span = ES_HOURS.span(now)
    assert span.start_ns <= now < span.end_ns
    assert ES_HOURS.span(span.start_ns) == ES_HOURS.span(span.end_ns - 1) == span
    after = ES_HOURS.span(span.end_ns)
    assert after.start_ns == span.end_ns
    assert after.open is not span.open
    assert after.trade_date >= span.trade_date
    if span.open and when.year > 2015:
        weekly = WeeklySessions().span(now)
        assert (weekly.open, weekly.trade_date) == (True, span.trade_date)


@pytest.mark.parametrize("when", ["2013-09-30T12:00Z", "2028-12-29T22:00Z", "2035-06-01T12:00Z"])
def test_outside_the_table_the_hours_are_not_known_and_that_blocks(when):
    assert ES_HOURS.span(instant(when)) is None
    windows = TradeWindowFilter(
        EventCalendar.from_events([Event(instant("2036-01-01T00:00Z"), "x", 0.1)], CONFIG.events),
        ES_HOURS, (), CONFIG.contract,
    )  # fmt: skip
    assert windows.blocked(instant(when)).code is Code.SESSION_UNKNOWN
    assert not windows.move(instant(when))


def test_a_product_without_a_table_has_no_known_hours():
    assert trading_hours(Workspace(ROOT), "BTC").span(T0) is None
