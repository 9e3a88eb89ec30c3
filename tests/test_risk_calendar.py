"""Event windows against a naive twin; every way a calendar can fail blocks with its own code."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_risk_support import CONFIG, MINUTE, T0

from mia_fast.clock import from_datetime
from mia_fast.config import load
from mia_fast.errors import ConfigError
from mia_fast.risk import Code, Event, EventCalendar, RiskConfig, load_calendar
from mia_fast.risk.config import Events, TypeWindow, Window
from mia_fast.workspace import Workspace, shipped

EVENTS = CONFIG.events
FAR = Event(T0 + 10**6 * MINUTE, "far away", 0.1)


def calendar(*events: Event, config: Events = EVENTS) -> EventCalendar:
    return EventCalendar.from_events([*events, FAR], config)


def minutes(found: EventCalendar) -> list[tuple[int, int]]:
    return [((a - T0) // MINUTE, (b - T0) // MINUTE) for a, b in zip(found.starts, found.ends, strict=True)]


# ---------------------------------------------------------------- windows


def test_default_window_is_15_before_to_30_after_both_ends_blocked():
    found = calendar(Event(T0, "Retail Sales", 0.8))
    assert minutes(found) == [(-15, 30)]
    for offset, blocked in ((-15 * MINUTE - 1, False), (-15 * MINUTE, True), (30 * MINUTE, True)):
        assert (found.blocked(T0 + offset) is not None) is blocked
    assert found.blocked(T0 + 30 * MINUTE + 1) is None
    denial = found.blocked(T0)
    assert str(denial) == "EVENT_WINDOW: event=Retail_Sales until=2020-03-16T14:30:00.000000Z"


@pytest.mark.parametrize(("impact", "blocks"), [(0.7, False), (float(np.nextafter(0.7, 1)), True), (1.0, True)])
def test_only_impact_strictly_above_the_threshold_blocks(impact, blocks):
    assert (calendar(Event(T0, "Retail Sales", impact)).blocked(T0) is not None) is blocks


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("FOMC", (-30, 60)),
        ("fomc_statement", (-30, 60)),
        ("US FOMC-Minutes", (-30, 60)),
        ("Fed Interest Rate Decision", (-30, 60)),
        ("Fed's Chair Powell speech", (-15, 60)),
        ("Fed Chair Powell: FOMC press conference", (-30, 60)),
        ("Nonfarm Payrolls", (-15, 45)),
        ("Non-Farm Employment Change", (-15, 45)),
        ("NFP", (-15, 45)),
        ("Core CPI m/m", (-15, 45)),
        ("Consumer Price Index ex Food & Energy (YoY)", (-15, 45)),
        ("Kufomc", (-15, 30)),
        ("GDP", (-15, 30)),
    ],
)
def test_types_match_at_the_start_of_a_word_whatever_the_letter_case(name, window):
    assert minutes(calendar(Event(T0, name, 0.9))) == [window]


def test_several_matching_lines_give_the_longest_time_on_each_side():
    config = Events(
        impact_threshold=0.7,
        default=Window(before_minutes=1, after_minutes=1),
        windows=(
            TypeWindow(match=("rate*day",), before_minutes=50, after_minutes=2),
            TypeWindow(match=("interest",), before_minutes=3, after_minutes=40),
        ),
    )
    assert minutes(calendar(Event(T0, "Interest rate and other day", 0.9), config=config)) == [(-50, 40)]
    assert minutes(calendar(Event(T0, "day of the rate", 0.9), config=config)) == [(-1, 1)]


def test_overlapping_windows_are_one_and_name_every_event():
    found = calendar(
        Event(T0, "Retail Sales", 0.9), Event(T0 + 40 * MINUTE, "GDP", 0.9), Event(T0 + 500 * MINUTE, "GDP", 0.9)
    )
    assert minutes(found) == [(-15, 70), (485, 530)]
    assert "event=Retail_Sales+GDP " in str(found.blocked(T0))
    assert found.events[0].type == "Retail Sales"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-300, 300), st.sampled_from(["FOMC", "CPI", "GDP", "Powell"]), st.floats(0, 1)),
        min_size=1,
        max_size=12,
    ),
    st.lists(st.integers(-400 * MINUTE, 400 * MINUTE), min_size=1, max_size=20),
)
def test_binary_search_equals_the_naive_loop(rows, offsets):
    width = {"FOMC": (30, 60), "CPI": (15, 45), "GDP": (15, 30), "Powell": (15, 60)}
    events = [Event(T0 + minute * MINUTE, name, impact) for minute, name, impact in rows]
    found = EventCalendar.from_events(events, EVENTS)
    edges = [int(edge) + d for edges in (found.starts, found.ends) for edge in edges for d in (-1, 0, 1)]
    instants = np.array([T0 + offset for offset in offsets] + edges)
    expected = [
        any(
            e.impact > 0.7 and e.start_ns - width[e.type][0] * MINUTE <= now <= e.start_ns + width[e.type][1] * MINUTE
            for e in events
        )
        or max(e.start_ns for e in events) < now
        for now in instants
    ]
    assert [found.blocked(int(now)) is not None for now in instants] == expected


# ---------------------------------------------------------------- a calendar that cannot be trusted


def test_a_calendar_that_ran_out_blocks_after_its_last_event_of_any_impact():
    found = EventCalendar.from_events([Event(T0, "Beige Book", 0.1)], EVENTS)
    assert found.blocked(T0) is None
    assert found.blocked(T0 + 1).code is Code.CALENDAR_ENDED


GOOD = {
    "start_time": [dt.datetime(2020, 3, 18, 18, tzinfo=dt.UTC), dt.datetime(2020, 4, 29, 18, tzinfo=dt.UTC)],
    "type": ["FOMC", "FOMC"],
    "impact": [0.9, 0.9],
    "cluster_id": [3.0, None],
}
SCHEMA = {
    "start_time": pl.Datetime("ns", "UTC"),
    "type": pl.String,
    "impact": pl.Float64,
    "cluster_id": pl.Float64,
}


def frame(**changes: list) -> pl.DataFrame:
    return pl.DataFrame({**GOOD, **changes}, schema=SCHEMA)


def test_a_good_frame_keeps_cluster_ids():
    found = EventCalendar.from_frame(frame(), EVENTS)
    assert found.fault is None
    assert [event.cluster_id for event in found.events] == [3, None]
    assert found.blocked(from_datetime(GOOD["start_time"][0])).code is Code.EVENT_WINDOW
    assert EventCalendar.from_frame(frame().drop("cluster_id"), EVENTS).fault is None


BAD_FRAMES = {
    "missing": (lambda: None, Code.CALENDAR_MISSING),
    "no rows": (lambda: frame().clear(), Code.CALENDAR_EMPTY),
    "no start_time": (lambda: frame().drop("start_time"), Code.CALENDAR_MALFORMED),
    "no type": (lambda: frame().drop("type"), Code.CALENDAR_MALFORMED),
    "no impact": (lambda: frame().drop("impact"), Code.CALENDAR_MALFORMED),
    "text for times": (lambda: frame().with_columns(pl.col("start_time").cast(pl.String)), Code.CALENDAR_MALFORMED),
    "no zone": (
        lambda: frame().with_columns(pl.col("start_time").dt.replace_time_zone(None)),
        Code.CALENDAR_MALFORMED,
    ),
    "words for impact": (lambda: frame().with_columns(pl.lit("high").alias("impact")), Code.CALENDAR_MALFORMED),
    "null time": (lambda: frame(start_time=[GOOD["start_time"][0], None]), Code.CALENDAR_MALFORMED),
    "null type": (lambda: frame(type=["FOMC", None]), Code.CALENDAR_MALFORMED),
    "blank type": (lambda: frame(type=["FOMC", " "]), Code.CALENDAR_MALFORMED),
    "null impact": (lambda: frame(impact=[0.9, None]), Code.CALENDAR_MALFORMED),
    "NaN impact": (lambda: frame(impact=[float("nan"), 0.9]), Code.CALENDAR_MALFORMED),
    "infinite impact": (lambda: frame(impact=[float("inf"), 0.9]), Code.CALENDAR_MALFORMED),
    "negative impact": (lambda: frame(impact=[-0.1, 0.9]), Code.CALENDAR_MALFORMED),
    "impact in percent": (lambda: frame(impact=[80.0, 90.0]), Code.CALENDAR_MALFORMED),
    "half a cluster": (lambda: frame(cluster_id=[0.5, None]), Code.CALENDAR_MALFORMED),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_a_bad_frame_blocks_always_with_its_code(name):
    make, code = BAD_FRAMES[name]
    found = EventCalendar.from_frame(make(), EVENTS)
    for now in (1, T0, 2**62):
        assert found.blocked(now).code is code


HEAD = "start_time,type,impact,cluster_id\n"
ROWS = "2020-03-18T18:00:00Z,FOMC,0.9,1\n2020-04-29T18:00:00Z,FOMC,0.9,2\n"
MANY = [f"2020-04-{day:02}T{hour:02}:00:00Z,FOMC,0.9,2\n" for day in range(1, 10) for hour in range(12)]
BAD_FILES = {
    "empty file": (b"", Code.CALENDAR_UNREADABLE),
    "only a head": (HEAD.encode(), Code.CALENDAR_EMPTY),
    "no impact column": (b"start_time,type\n2020-03-18T18:00:00Z,FOMC\n", Code.CALENDAR_MALFORMED),
    "one bad impact": ((HEAD + ROWS + "2020-05-01T18:00:00Z,CPI,1.5,1\n").encode(), Code.CALENDAR_MALFORMED),
    "one impact in words": ((HEAD + ROWS + "2020-05-01T18:00:00Z,CPI,often,1\n").encode(), Code.CALENDAR_MALFORMED),
    "one bad time": ((HEAD + ROWS + "soon,CPI,0.9,1\n").encode(), Code.CALENDAR_MALFORMED),
    "one blank type": ((HEAD + ROWS + "2020-05-01T18:00:00Z,,0.9,1\n").encode(), Code.CALENDAR_MALFORMED),
    "one bad row in a hundred": (
        (HEAD + "2020-03-01T00:00:00Z,x,1.5,1\n" + "".join(MANY)).encode(),
        Code.CALENDAR_MALFORMED,
    ),
    "binary": (bytes(range(256)) * 4, Code.CALENDAR_UNREADABLE),
}


def write(root: Path, content: bytes) -> Path:
    path = root / "data" / "macro_events.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_good_file_is_read_and_a_missing_one_blocks(tmp_path):
    found = load_calendar(Workspace(tmp_path), EVENTS)
    assert found.blocked(T0).code is Code.CALENDAR_MISSING
    write(tmp_path, (HEAD + ROWS).encode())
    found = load_calendar(Workspace(tmp_path), EVENTS)
    assert found.fault is None
    assert found.blocked(T0) is None
    assert found.blocked(from_datetime(dt.datetime(2020, 3, 18, 18, 59, tzinfo=dt.UTC))).code is Code.EVENT_WINDOW
    assert [event.cluster_id for event in found.events] == [1, 2]


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_blocks_with_its_code(tmp_path, name):
    content, code = BAD_FILES[name]
    write(tmp_path, content)
    found = load_calendar(Workspace(tmp_path), EVENTS)
    assert found.fault is not None
    assert found.fault.code is code
    assert found.blocked(T0) is found.fault


def test_a_file_that_cannot_be_opened_blocks(tmp_path):
    (tmp_path / "data" / "macro_events.csv").mkdir(parents=True)
    assert load_calendar(Workspace(tmp_path), EVENTS).fault.code is Code.CALENDAR_UNREADABLE
    if os.geteuid():
        path = write(tmp_path / "other", (HEAD + ROWS).encode())
        path.chmod(0)
        assert load_calendar(Workspace(tmp_path / "other"), EVENTS).fault.code is Code.CALENDAR_UNREADABLE


def test_a_reader_that_fails_in_an_unknown_way_blocks(tmp_path, monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError("no room")

    write(tmp_path, (HEAD + ROWS).encode())
    monkeypatch.setattr("mia_fast.tables.read_table", fail)
    assert load_calendar(Workspace(tmp_path), EVENTS).fault.code is Code.CALENDAR_UNREADABLE


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("impact_threshold: 0.7", "impact_threshold: .nan", "finite"),
        ("impact_threshold: 0.7", "impact_treshold: 0.7", "impact_threshold"),
        ("  impact_threshold: 0.7", "", "impact_threshold"),
        ('match: ["FOMC", ', 'match: ["*", ', "every event"),
        ("before_minutes: 30", "before_minutes: -30", "greater"),
        ("market_seconds: 90", "market_seconds: 0", "greater"),
        ("half_life_hours: 115", "half_life_hours: .inf", "finite"),
    ],
)
def test_an_invalid_risk_configuration_is_an_error(tmp_path, old, new, says):
    text = (shipped() / "config" / "risk.yaml").read_text()
    assert old in text
    path = tmp_path / "risk.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=says):
        load(RiskConfig, path)


@pytest.mark.real
def test_real_releases_of_march_2020(real_data):
    source = pl.read_parquet(real_data / "macro" / "us_high_impact_2014_202206.parquet")
    table = source.select(
        pl.col("ts").cast(pl.Datetime("ns", "UTC")).alias("start_time"),
        pl.col("event").alias("type"),
        pl.lit(0.9).alias("impact"),
    )
    found = EventCalendar.from_frame(table, EVENTS)
    assert found.fault is None
    payrolls = from_datetime(dt.datetime(2020, 3, 6, 13, 30, tzinfo=dt.UTC))
    denial = found.blocked(payrolls - 15 * MINUTE)
    assert denial.code is Code.EVENT_WINDOW
    assert "Nonfarm_Payrolls" in str(denial)
    assert found.blocked(payrolls + 45 * MINUTE) is not None
    assert found.blocked(payrolls - 60 * MINUTE) is None
    assert found.blocked(from_datetime(dt.datetime(2022, 7, 1, tzinfo=dt.UTC))).code is Code.CALENDAR_ENDED
