"""The market memory: what is stored, recalled and forgotten, and its say in the drawdown limit."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from crash_memory import DAY, MANIFEST, NAMES, START, opened, state
from selections import selection_of

import mia_fast
from mia_fast import journal as journals
from mia_fast import memory
from mia_fast.errors import ConfigError, DataError, MarketMemoryError
from mia_fast.features import catalogue as catalogues
from mia_fast.journal.schema import feature_list_digest
from mia_fast.memory import FEATURES, MemoryStore, MemoryWatch, memory_config, memory_features, schema
from mia_fast.memory.index import Found
from mia_fast.memory.recall import recollect, weights
from mia_fast.telemetry import RECORDER
from mia_fast.workspace import Workspace

MINUTE = 60_000_000_000
CONTRACT = ("cluster_id", "event_type", "features", "timestamp")


@pytest.fixture(autouse=True)
def _closed(workspace: Workspace) -> Iterator[None]:
    yield
    memory.forget(workspace)


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def frame(number: int, names: tuple[str, ...] | None = None) -> pl.DataFrame:
    names = names if names is not None else memory_features(Workspace.current()).names
    values = np.sin(np.arange(len(names)) * (number + 1))
    return pl.DataFrame({name: [float(x)] for name, x in zip(names, values, strict=True)})


# --- the contract


def test_the_table_is_the_contracts(workspace: Workspace) -> None:
    path = mia_fast.setup_database()
    assert path == workspace.data / "market_memory.db"
    columns = rows(path, "PRAGMA table_info(clusters)")
    assert tuple(row[1] for row in columns) == CONTRACT
    assert [row[2] for row in columns] == ["INTEGER", "TEXT", "TEXT", "DATETIME"]
    assert columns[0][5] == 1, "the primary key"
    indexes = [str(row[1]) for row in rows(path, "PRAGMA index_list(clusters)")]
    indexed = {rows(path, f"PRAGMA index_info({name})")[0][2] for name in indexes}
    assert indexed == {"cluster_id", "timestamp"}
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]
    assert mia_fast.setup_database() == path, "again changes nothing"


def test_storing_as_the_old_programs_do(workspace: Workspace) -> None:
    data = pl.DataFrame({"rsi_14": [55.0], "ofi_score": [0.4], "regime": ["trend"]})
    key = mia_fast.store_pattern(data, profit=100.0)
    path = workspace.data / "market_memory.db"
    ((number, kind, text, stamp),) = rows(path, "SELECT * FROM clusters")
    assert (number, kind) == (key, "trade")
    assert json.loads(text) == {"rsi_14": 55.0, "ofi_score": 0.4, "regime": "trend"}
    assert rows(path, "SELECT timestamp > date('now', '-1 days') AND length(timestamp) = 19 FROM clusters") == [(1,)]
    assert stamp[10] == " "
    assert memory.of(workspace).counts().incomplete == 1, "two features are no state to compare"


def test_a_stored_state_is_recalled_with_its_outcome_and_date(workspace: Workspace) -> None:
    for number in range(30):
        data = frame(number).with_columns(timestamp=pl.lit(START + number * MINUTE).cast(pl.Datetime("ns", "UTC")))
        mia_fast.store_pattern(data, (-1) ** number * (number + 0.5))
    found = mia_fast.recall_patterns(frame(4), 3)
    assert found.columns == ["cluster_id", "event_type", "timestamp", "profit", "distance", "trade_id", "run_id"]
    assert found.row(0, named=True) == {
        "cluster_id": 5,
        "event_type": "trade",
        "timestamp": pl.Series([START + 4 * MINUTE]).cast(pl.Datetime("ns")).dt.replace_time_zone("UTC")[0],
        "profit": 4.5,
        "distance": 0.0,
        "trade_id": None,
        "run_id": "",
    }
    assert (found["profit"] > 0).all(), "winners by default"
    assert found["distance"].is_sorted()
    assert (mia_fast.recall_patterns(frame(5), 5, outcome="losing")["profit"] < 0).all()
    assert mia_fast.recall_patterns(frame(5), 99, outcome="all").height == 30
    known = mia_fast.recall_patterns(frame(5), 99, outcome="closed", before_ns=START + 9 * MINUTE)
    assert sorted(known["cluster_id"]) == list(range(1, 11)), "what was not known yet is not recalled"


@pytest.mark.parametrize("make", [lambda f: f.to_arrow(), lambda f: f.to_pandas(), lambda f: f])
def test_any_arrow_table_is_taken(workspace: Workspace, make: object) -> None:
    pytest.importorskip("pandas")
    mia_fast.store_pattern(make(frame(1)), 5)  # type: ignore[operator]
    assert mia_fast.recall_patterns(make(frame(1)), 1)["profit"].to_list() == [5.0]  # type: ignore[operator]


def test_what_cannot_be_stored_or_asked_is_refused(workspace: Workspace) -> None:
    good = frame(1)
    for bad in (pl.concat([good, good]), good.head(0)):
        with pytest.raises(DataError, match="rows"):
            mia_fast.store_pattern(bad, 1.0)
    with pytest.raises(DataError, match="is not a table"):
        mia_fast.recall_patterns({"rsi_14": 1.0})
    for profit in (math.nan, math.inf, None, "much"):
        with pytest.raises(MarketMemoryError, match="not a finite number"):
            mia_fast.store_pattern(good, profit)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="not a number"):
        mia_fast.store_pattern(good.with_columns(pl.lit("high").alias(good.columns[0])), 1.0)
    with pytest.raises(DataError, match="not an instant"):
        mia_fast.store_pattern(good.with_columns(timestamp=pl.lit("yesterday")), 1.0)
    for k in (0, -1, 2.5, True):
        with pytest.raises(DataError, match="positive whole"):
            mia_fast.recall_patterns(good, k)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="outcome"):
        mia_fast.recall_patterns(good, outcome="best")  # type: ignore[arg-type]
    with pytest.raises(MarketMemoryError, match="features are missing") as refusal:
        mia_fast.recall_patterns(pl.DataFrame({"rsi_14": [1.0]}))
    assert refusal.value.reason == "input"
    assert memory_features(workspace).names[0] in refusal.value.what
    assert memory.of(workspace).counts().stored == 0


def test_operations_are_measured(workspace: Workspace) -> None:
    mia_fast.setup_database()
    mia_fast.store_pattern(frame(1), 1.0)
    mia_fast.recall_patterns(frame(1), 1)
    mia_fast.purge_old_data()
    with pytest.raises(DataError):
        mia_fast.store_pattern(frame(1).head(0), 1.0)
    told = [(item[1], item[2], item[5]) for item in RECORDER.drain()[0]]
    assert told == [
        ("db_setup", "setup_database", True),
        ("market_memory", "store_pattern", True),
        ("market_memory", "recall_patterns", True),
        ("db_maintenance", "purge_old_data", True),
        ("market_memory", "store_pattern", False),
    ]


# --- files of older systems, versions


def old_file(workspace: Workspace, count: int = 3) -> Path:
    path = workspace.data / "market_memory.db"
    path.parent.mkdir(exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "CREATE TABLE clusters (cluster_id INTEGER PRIMARY KEY, event_type TEXT, features TEXT, timestamp DATETIME)"
        )
        db.execute("CREATE INDEX a ON clusters (cluster_id)")
        db.execute("CREATE INDEX b ON clusters (timestamp)")
        for number in range(count):
            text = json.dumps(dict(zip(NAMES, state(number).tolist(), strict=True)))
            db.execute(
                "INSERT INTO clusters (event_type, features, timestamp) VALUES (?, ?, '2025-05-13 14:00:00')",
                ("vix", text),
            )
    return path


def test_a_file_of_the_old_system_opens_as_it_is(workspace: Workspace) -> None:
    path = old_file(workspace)
    before = rows(path, "SELECT * FROM clusters")
    with opened(workspace) as store:
        assert store.nearest(state(1), 1, "all").cluster_ids.tolist() == [2]
        assert len(store.nearest(state(1), 5, "winning").cluster_ids) == 0, "no outcome is no win"
        assert store.states()[3].tolist() == [START] * 3
        store.store(state(9), 9.0, at_ns=START)
        assert store.check().faults == ()
    assert rows(path, "SELECT * FROM clusters WHERE cluster_id <= 3") == before


def test_versions_go_up_and_down_again(workspace: Workspace) -> None:
    path = old_file(workspace)
    before = rows(path, "SELECT type, name, sql FROM sqlite_master ORDER BY name")
    with opened(workspace) as store:
        assert store.version == schema.LATEST
        store.store(state(7), 7.0, at_ns=START)
        store.migrate(1)
        assert store.version == 1
        assert rows(path, "SELECT type, name, sql FROM sqlite_master ORDER BY name") == before
        store.migrate(schema.LATEST)
        assert store.nearest(state(7), 1, "all").cluster_ids.tolist() == [4]
        with pytest.raises(MarketMemoryError, match="no version 99"):
            store.migrate(99)
    assert [step.version for step in schema.MIGRATIONS] == list(range(1, schema.LATEST + 1))


def test_two_processes_may_create_it_at_once(workspace: Workspace) -> None:
    faults: list[BaseException] = []

    def create() -> None:
        try:
            opened(workspace).close()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    with opened(workspace) as store:
        assert store.check().faults == ()


# --- purge


def test_a_purge_keeps_what_is_young_and_gives_room_back(workspace: Workspace) -> None:
    with opened(workspace) as store:
        now = START + 1000 * DAY
        for number in range(3000):
            store.store(state(number), float(number), at_ns=now - (number // 50) * DAY - 5 * 3_600_000_000_000)
        kept = [number for number in range(3000) if number // 50 < 30]
        size = store.path.stat().st_size
        assert store.purge(now, 90, vacuum=True).removed == 0
        done = store.purge(now, vacuum=False)
        assert (done.removed, done.kept, done.freed_bytes) == (1500, 1500, 0)
        done = store.purge(now, vacuum=True)
        assert done.removed == 0
        assert done.freed_bytes > 0.3 * size
        assert store.path.stat().st_size < 0.7 * size
        assert sorted(store.states()[1].astype(int).tolist()) == kept
        for table in ("outcomes", "vectors"):
            assert rows(store.path, f"SELECT count(*) FROM {table}") == [(1500,)]
        assert store.nearest(state(20), 1, "all").profits.tolist() == [20.0]
        assert store.nearest(state(2900), 1, "all").profits.tolist() != [2900.0]
        with pytest.raises(MarketMemoryError, match="keep at least 1 day"):
            store.purge(now, 0, vacuum=False)


def test_room_is_given_back_by_itself_only_while_the_market_is_closed() -> None:
    import datetime as dt

    from mia_fast.clock import from_datetime

    utc = dt.UTC
    assert not memory.market_closed(from_datetime(dt.datetime(2025, 5, 13, 15, 0, tzinfo=utc)))
    assert memory.market_closed(from_datetime(dt.datetime(2025, 5, 13, 21, 30, tzinfo=utc)))
    assert memory.market_closed(from_datetime(dt.datetime(2025, 5, 17, 12, 0, tzinfo=utc)))


# --- what is compared


def test_the_manifest_is_the_selection_where_there_is_one(workspace: Workspace) -> None:
    candidates = memory_features(workspace)
    assert candidates.source == "catalogue"
    names = catalogues.read(workspace).names
    assert set(candidates.names) < set(names)
    assert "close" in candidates.names or "rsi_14" in candidates.names
    mia_fast.store_pattern(frame(3), 3.0)
    chosen = list(candidates.names[:12])
    path = workspace.data / "features" / "selection.json"
    path.parent.mkdir(parents=True)
    path.write_text(selection_of(chosen, workspace).model_dump_json())
    found = memory_features(workspace)
    assert (found.names, found.source) == (tuple(chosen), "selection")
    assert found.digest != candidates.digest
    assert memory.of(workspace).counts().other_manifest == 1, "kept, counted, not compared"
    assert mia_fast.recall_patterns(frame(3), 1).height == 0
    whole = json.loads(path.read_text())
    odd, twice = [*chosen[:-1], "nonsense"], [*chosen[:-1], chosen[0]]
    for content, match in (
        (whole | {"names": [*chosen[:-1], "close"]}, "edited"),
        (whole | {"names": odd, "digest": feature_list_digest(odd)}, "nonsense"),
        (whole | {"names": twice, "digest": feature_list_digest(twice)}, "twice"),
        (whole | {"definitions": ["0" * 16, *whole["definitions"][1:]]}, f"otherwise than .* chosen: {chosen[0]}"),
        ({"names": []}, "digest Field required"),
        ("[", "cannot be used"),
    ):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(ConfigError, match=match):
            memory_features(workspace)


def test_the_same_file_answers_the_same_after_a_restart_and_in_another_process(workspace: Workspace) -> None:
    with opened(workspace) as store, opened(workspace) as other:
        for number in range(300):
            (store if number % 3 else other).store(state(number), float(number - 150), at_ns=START)
            if number % 37 == 0:
                a, b = store.nearest(state(5), 7, "all"), other.nearest(state(5), 7, "all")
                assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        asked = store.nearest(state(77) + 0.1, 20, "closed")
    with opened(workspace) as again:
        for x, y in zip(asked, again.nearest(state(77) + 0.1, 20, "closed"), strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_trade_is_stored_once(workspace: Workspace) -> None:
    with opened(workspace) as store:
        first = store.store(state(1), 1.0, at_ns=START, trade_id="T1", run_id="run-a")
        assert store.store(state(2), 2.0, at_ns=START, trade_id="T1", run_id="run-a") == first
        assert store.store(state(2), 2.0, at_ns=START, trade_id="T1", run_id="run-b") != first
        assert store.counts().stored == 2


def test_text_written_by_polars_is_what_json_would_write(workspace: Workspace) -> None:
    odd = np.array([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e300, 5e-324, 1 / 3, 1e16, 123456789.25, *range(30)])
    with opened(workspace) as store:
        store.store(odd, 1.0, at_ns=START)
        ((text,),) = rows(store.path, "SELECT features FROM clusters")
    read = json.loads(text)
    assert list(read) == list(NAMES)
    for name, x in zip(NAMES, odd, strict=True):
        assert read[name] == (x if math.isfinite(x) else None)


# --- what the neighbours say


def found(distances: list[float], profits: list[float]) -> Found:
    return Found(np.arange(len(distances)), np.array(distances), np.array(profits))


def test_the_share_of_losers_is_weighted_by_distance() -> None:
    near = found([1.0] * 10 + [2.0] * 10, [-1.0] * 10 + [1.0] * 10)
    assert recollect(near, 4, 9, []).losing_share == pytest.approx(10 / 15)
    assert recollect(found([1.0] * 19, [-1.0] * 19), 4, 9, []).losing_share is None, "fewer than 20"
    at_zero = found([0.0, 0.0, *[1.0] * 18], [1.0, -1.0, *[-1.0] * 18])
    assert recollect(at_zero, 4, 9, []).losing_share == 0.5, "identical states alone count"
    flat = recollect(found([1.0] * 20, [0.0] * 20), 4, 9, [])
    assert flat.losing_share == 0.0
    assert flat.values[0] == 0.0


def test_weights_are_scikit_learns() -> None:
    learn = pytest.importorskip("sklearn.neighbors")
    g = np.random.default_rng(3)
    points, lost = g.normal(size=(20, 3)), g.random(20) < 0.4
    for query in (np.zeros(3), points[7]):
        model = learn.KNeighborsRegressor(20, weights="distance").fit(points, lost.astype(float))
        distances = np.sqrt(((points - query) ** 2).sum(axis=1))
        mine = recollect(found(distances.tolist(), np.where(lost, -1.0, 1.0).tolist()), 3, 0, []).losing_share
        assert mine == pytest.approx(float(model.predict(query[None])[0]), abs=1e-12)
    assert weights(np.array([2.0, 4.0])).tolist() == [0.5, 0.25]


def test_the_four_features_by_their_definitions() -> None:
    near = found([1.0] * 10 + [2.0] * 10, [3.0] * 10 + [-1.0] * 10)
    recalls = [(0.5, 10.0)] * 15 + [(-0.5, 10.0)] * 5 + [(0.0, 5.0), (0.5, 0.0)]
    told = recollect(near, 9, 1, recalls).values
    count = 15.0**2 / (10 * 1.0 + 10 * 0.25)
    assert told == pytest.approx((5 / 15, 1.5 / 3.0, 5 / 15 * count / (count + 2), 0.75))
    assert math.isnan(recollect(near, 9, 1, recalls[:19]).values[3])
    assert all(math.isnan(x) for x in recollect(found([1.0], [1.0]), 9, 1, []).values)
    assert FEATURES == (
        "pattern_replay_score",
        "cluster_score_distance",
        "pattern_confidence",
        "memory_recall_accuracy",
    )


def test_memory_values_of_a_frame(workspace: Workspace) -> None:
    for number in range(25):
        data = frame(number).with_columns(timestamp=pl.lit(START + number * MINUTE).cast(pl.Datetime("ns", "UTC")))
        mia_fast.store_pattern(data, 1.0 if number % 5 else -1.0)
    told = memory.memory_values(frame(5))
    assert tuple(told) == FEATURES
    assert told["pattern_replay_score"] == -1.0, "the state itself is stored, and lost"
    early = memory.memory_values(frame(5), before_ns=START + 10 * MINUTE)
    assert math.isnan(early["pattern_replay_score"])


# --- beside an engine


def settled(watch: MemoryWatch, seconds: float = 5.0) -> bool:
    """Wait until the worker has answered all it was given; False if it has not by then."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with watch._mutex:
            if not (watch._asked or watch._entered or watch._closed):
                return True
        time.sleep(0.002)
    return False


def watching(workspace: Workspace, *, background: bool, replays: bool = True, run_id: str = "run-1") -> MemoryWatch:
    config = memory_config(workspace)
    return MemoryWatch(
        lambda: MemoryStore(workspace.data, MANIFEST, config),
        ("other", *NAMES),
        stale_seconds=180.0,
        replays=replays,
        background=background,
        run_id=run_id,
    )


def seen(number: int) -> np.ndarray:
    return np.r_[99.0, state(number)]


def trade(watch: MemoryWatch, number: int, profit: float) -> None:
    at = START + number * MINUTE
    watch.entered(f"T{number}", at, seen(number))
    watch.observe(at, seen(number))
    watch.closed(f"T{number}", profit, at + MINUTE)


@pytest.mark.parametrize("background", [True, False])
def test_closed_trades_are_stored_and_tighten_from_the_twentieth_on(workspace: Workspace, background: bool) -> None:
    watch = watching(workspace, background=background)
    try:
        for number in range(19):
            trade(watch, number, -1.0 if number % 2 else 1.0)
        watch.observe(START + 30 * MINUTE, seen(3))
        assert settled(watch)
        assert watch.losing_share() is None
        trade(watch, 19, -1.0)
        watch.observe(START + 31 * MINUTE, seen(3))
        assert settled(watch)
        assert watch.losing_share() == 1.0, "the state itself was stored, and lost"
        assert watch.values()["pattern_replay_score"] == -1.0
        with opened(workspace) as store:
            assert store.counts().compared == 20
            held = store.rows("run-1")
            assert [row.trade_id for row in held] == [f"T{number}" for number in range(20)]
            np.testing.assert_array_equal(np.frombuffer(held[4].state), state(4))
            assert held[4].known_ns == START + 5 * MINUTE
    finally:
        watch.close()


def test_a_live_engines_watch_is_the_workspaces(workspace: Workspace) -> None:
    names = memory_features(workspace).names
    live = memory.watch(workspace, names)
    try:
        live.entered("T1", START, np.ones(len(names)))
        live.closed("T1", 7.0, START + MINUTE)
        live.closed("a trade of an earlier process", 7.0, START + MINUTE)
        live.observe(START + MINUTE, np.ones(len(names)))
        assert settled(live)
        assert live.fault is None
        assert live.losing_share() is None
        assert mia_fast.recall_patterns(frame(1), 5)["profit"].to_list() == [7.0]
    finally:
        live.close()


def test_the_watch_never_looks_ahead(workspace: Workspace) -> None:
    with opened(workspace) as store:
        for number in range(25):
            store.store(state(number), -1.0, at_ns=START, known_ns=START + number * MINUTE, run_id="run-1")
    watch = watching(workspace, background=False)
    with pytest.raises(MarketMemoryError, match="not been asked"):
        watch.losing_share()
    watch.observe(START + 18 * MINUTE, seen(1))
    assert watch.losing_share() is None
    watch.observe(START + 19 * MINUTE, seen(1))
    assert watch.losing_share() == 1.0
    watch.close()
    quiet = watching(workspace, background=False, replays=False)
    quiet.observe(START + 40 * MINUTE, seen(1))
    assert quiet.losing_share() is None, "the trades of replays do not move a live limit"
    quiet.close()


def test_a_state_that_cannot_be_compared_makes_the_limit_unknown(workspace: Workspace) -> None:
    watch = watching(workspace, background=False)
    watch.observe(START, np.full(41, math.nan))
    assert watch.losing_share() is None, "an empty memory tightens nothing"
    for number in range(20):
        trade(watch, number, 1.0)
    watch.observe(START + 99 * MINUTE, np.full(41, math.nan))
    share = watch.losing_share()
    assert share is not None
    assert math.isnan(share)
    watch.close()


def test_an_answer_that_lags_behind_is_stale(workspace: Workspace) -> None:
    watch = watching(workspace, background=True)
    for number in range(20):
        trade(watch, number, 1.0)
    watch.observe(START + 30 * MINUTE, seen(1))
    assert settled(watch)
    assert watch.losing_share() == 0.0
    with watch._mutex:  # the worker is held up
        watch.observe(START + 33 * MINUTE, seen(1))
        assert watch.losing_share() == 0.0, "three minutes are allowed"
        watch.observe(START + 34 * MINUTE, seen(1))
        with pytest.raises(MarketMemoryError, match="240 s older"):
            watch.losing_share()
    assert settled(watch)
    assert watch.losing_share() == 0.0
    watch.close()


def test_a_memory_that_breaks_blocks_until_it_is_back_and_no_trade_is_lost(
    workspace: Workspace, tmp_path: Path
) -> None:
    watch = watching(workspace, background=True)
    trade(watch, 0, 1.0)
    assert settled(watch)
    path, aside = workspace.data / "market_memory.db", tmp_path / "aside.db"
    path.rename(aside)
    trade(watch, 1, 1.0)
    assert not settled(watch, 0.3)
    with pytest.raises(MarketMemoryError, match="gone"):
        watch.losing_share()
    assert math.isnan(watch.values()["pattern_confidence"])
    aside.rename(path)
    assert settled(watch)
    assert watch.losing_share() is None
    watch.close()
    with opened(workspace) as store:
        assert store.counts().compared == 2


def test_a_saved_watch_goes_on_as_if_nothing_had_been(workspace: Workspace) -> None:
    watch = watching(workspace, background=False)
    for number in range(30):
        trade(watch, number, 1.0 if number % 3 else -1.0)
    watch.entered("open", START + 40 * MINUTE, seen(40))
    watch.observe(START + 40 * MINUTE, seen(40))
    saved, values, share = json.loads(json.dumps(watch.save())), watch.values(), watch.losing_share()
    watch.closed("open", -5.0, START + 41 * MINUTE)
    watch.close()
    with opened(workspace) as store:
        assert store.forget_after("run-1", START + 40 * MINUTE) == 1
    again = watching(workspace, background=False)
    again.restore(saved)
    assert again.losing_share() == share
    np.testing.assert_equal(again.values(), values)
    again.closed("open", -5.0, START + 41 * MINUTE)
    again.close()
    with opened(workspace) as store:
        row = store.rows("run-1")[-1]
        assert (row.trade_id, row.profit, row.known_ns) == ("open", -5.0, START + 41 * MINUTE)
        assert row.recalled == values["pattern_replay_score"]


def test_a_trade_that_waits_for_a_broken_memory_is_saved_too(workspace: Workspace, tmp_path: Path) -> None:
    watch = watching(workspace, background=False)
    path, aside = workspace.data / "market_memory.db", tmp_path / "aside.db"
    path.rename(aside)
    trade(watch, 3, -2.0)
    assert watch.fault is not None
    saved = json.loads(json.dumps(watch.save()))
    watch.close()
    aside.rename(path)
    again = watching(workspace, background=False)
    again.restore(saved)
    again.observe(START + 9 * MINUTE, seen(1))
    again.close()
    with opened(workspace) as store:
        assert [(row.trade_id, row.profit) for row in store.rows("run-1")] == [("T3", -2.0)]


def test_beginning_anew_is_journalled_and_keeps_the_old_file(workspace: Workspace) -> None:
    path = mia_fast.setup_database()
    mia_fast.store_pattern(frame(1), 1.0)
    with pytest.raises(MarketMemoryError, match="reason"):
        memory.renew(workspace, "  ")
    moved = memory.renew(workspace, "a drill")
    assert moved[0].is_relative_to(workspace.data / "quarantine")
    assert path.is_file()
    assert memory.of(workspace).counts().stored == 0
    assert rows(moved[0], "SELECT count(*) FROM clusters") == [(1,)]
    told = journals.query(workspace, "SELECT code, priority FROM alerts")
    assert told.rows() == [("MEMORY_RENEWED", 4)]
    journals.of(workspace).close()


def test_an_arrow_table_of_no_features_is_named(workspace: Workspace) -> None:
    with pytest.raises(MarketMemoryError, match="are missing"):
        mia_fast.recall_patterns(pa.table({"x": [1]}))
