"""The journal in everyday use: rows in, queries, keys, exports, back-pressure, a writer that fails."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mia_fast import clock, journal, telemetry
from mia_fast.errors import JournalError
from mia_fast.journal import TABLES, Journal, Settings, database, schema, segments, store
from mia_fast.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
START = 1_747_144_800_123_456_789
PROBS = {"trend": 0.7, "range": 0.2, "defensive": 0.1}
CONTRACT = {
    "logs/trading/decision_log.csv": "timestamp,trade_id,decision,signal_score,regime_probs",
    "logs/trading/penalty_log.csv": "timestamp,penalty_active,overtrade_risk_score",
    "trades/trades_simulated.csv": "trade_id,timestamp,entry_price,profit,regime_probs",
}
TELEMETRY = "timestamp,operation,latency,success,memory_usage_mb,cpu_percent"


def decision(name: str, **more: object) -> dict[str, object]:
    return {"timestamp": START, "trade_id": name, "decision": "buy", "signal_score": 0.5, **more}


@pytest.fixture
def opened(workspace: Workspace) -> Iterator[Journal]:
    telemetry.RECORDER.drain()
    with Journal.open(workspace, settings=Settings(interval=0.01)) as one:
        yield one


# ---------------------------------------------------------------- the contract's functions


def test_the_contract_s_call(workspace: Workspace) -> None:
    journal.log_decision("T123", "buy", 0.75, {"trend": 0.7, "range": 0.2, "defensive": 0.1}, now_ns=START)
    paths = journal.flush()
    measured = "logs/decision_log_performance.csv"
    assert {str(path.relative_to(workspace.data)) for path in paths} == {*CONTRACT, measured}
    assert ",log_decision," in (workspace.data / measured).read_text()
    with (workspace.data / "logs/trading/decision_log.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == ["timestamp", "trade_id", "decision", "signal_score", "regime_probs"]
    assert row["timestamp"] == clock.iso(START) == "2025-05-13T14:00:00.123456Z"
    assert (row["trade_id"], row["decision"], row["signal_score"]) == ("T123", "buy", "0.75")
    assert json.loads(row["regime_probs"]) == PROBS
    journal.of(workspace).close()
    assert not journal.is_open(workspace)


def test_each_call_is_a_line_even_under_the_same_trade_id(workspace: Workspace) -> None:
    first = journal.log_decision("T1", "buy", 1.0, PROBS, now_ns=START)
    second = journal.log_decision("T1", "buy", 1.0, PROBS, now_ns=START)
    assert second > first
    one = journal.of(workspace)
    assert one.query("SELECT sequence FROM decisions")["sequence"].to_list() == [first, second]
    one.close()


def test_the_features_seen_come_back_bit_for_bit(workspace: Workspace) -> None:
    seen = np.random.default_rng(1).normal(size=150)
    seen[3], seen[4] = np.nan, -0.0
    journal.log_decision("by order", "buy", 1.0, PROBS, seen, now_ns=START)
    journal.log_decision("by name", "buy", 1.0, PROBS, {"rsi_14": 1.5, "ofi_score": -2}, now_ns=START, durable=True)
    one = journal.of(workspace)
    frame = one.query("SELECT context, context_names, input_hash FROM decisions ORDER BY sequence")
    assert frame["context"][0] == seen.astype("<f8").tobytes()
    assert np.frombuffer(frame["context"][1], "<f8").tolist() == [1.5, -2.0]
    assert json.loads(frame["context_names"][1]) == ["rsi_14", "ofi_score"]
    assert len(set(frame["input_hash"])) == 2
    one.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trade_id": ""}, "names no trade"),
        ({"trade_id": "  "}, "names no trade"),
        ({"trade_id": None}, "names no trade"),
        ({"signal_score": np.nan}, "not a finite number"),
        ({"signal_score": -np.inf}, "not a finite number"),
        ({"signal_score": True}, "not a finite number"),
        ({"signal_score": "0.5"}, "not a finite number"),
        ({"regime_probs": {"bull": 0.5}}, "there is no regime 'bull'"),
        ({"regime_probs": {"trend": 5}}, "is no probability"),
        ({"regime_probs": {"trend": -0.01}}, "is no probability"),
        ({"regime_probs": {"trend": True}}, "is no probability"),
        ({"regime_probs": {"trend": "0.5"}}, "is no probability"),
        ({"regime_probs": [0.5]}, "is a list"),
    ],
    ids=str,
)
def test_a_decision_that_says_nothing_is_refused(workspace: Workspace, change: dict[str, object], said: str) -> None:
    sound = {"trade_id": "T1", "decision": "buy", "signal_score": 0.5, "regime_probs": {"trend": 0.25}}
    with pytest.raises(JournalError, match=said):
        journal.log_decision(**(sound | change))  # type: ignore[arg-type]
    journal.log_decision(**(sound | {"signal_score": np.float32(0.5), "regime_probs": {"range": 1}}))  # type: ignore[arg-type]
    with journal.of(workspace) as one:
        assert one.query("SELECT trade_id FROM decisions")["trade_id"].to_list() == ["T1"]


def test_a_context_without_names_is_as_long_as_the_selection(workspace: Workspace) -> None:
    path = workspace.data / "features" / "selection.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"names": [f"f{k}" for k in range(131)], "digest": "x"}))
    with pytest.raises(JournalError, match="holds 3 numbers, the list of features in force has 131"):
        journal.log_decision("T1", "buy", 0.5, PROBS, [1.0, 2.0, 3.0])
    journal.log_decision("T1", "buy", 0.5, PROBS, np.zeros(131))
    journal.log_decision("T2", "buy", 0.5, PROBS, {"f3": 1.0})  # named: its own list
    path.write_text(json.dumps({"names": ["f0"], "digest": "x"}))
    journal.log_decision("T3", "buy", 0.5, PROBS, [1.0])
    path.write_text("{")
    with pytest.raises(JournalError, match="held against the selection"):
        journal.log_decision("T4", "buy", 0.5, PROBS, [1.0])
    journal.of(workspace).close()


def test_the_environment_chooses_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        monkeypatch.setenv("MIA_WORKSPACE", str(tmp_path / name))
        journal.log_decision(name, "buy", 1.0, None, now_ns=START)
    for name in ("one", "two"):
        with journal.of(Workspace(tmp_path / name)) as one:
            assert one.query("SELECT trade_id FROM decisions")["trade_id"].to_list() == [name]


def test_the_journal_is_closed_and_exported_at_exit(workspace: Workspace) -> None:
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print([m for m in ('pandas', 'torch') if m in sys.modules]))\n"  # runs last
        "from mia_fast.journal import log_decision; log_decision('T1', 'buy', 0.5, {'trend': 1.0})"
    )
    path = os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "models"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout == "[]\n", "the journal works without them"
    assert "T1,buy,0.5" in (workspace.data / "logs/trading/decision_log.csv").read_text()
    assert (workspace.data / "mia.duckdb.wal").exists() is False


def test_importing_the_journal_loads_nothing_heavy() -> None:
    code = (
        "import sys, mia_fast.journal, mia_fast.telemetry;"
        "print([m for m in ('duckdb','pyarrow','polars','pandas','torch','tenacity','psutil') if m in sys.modules])"
    )
    path = os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "models"))
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"


# ---------------------------------------------------------------- rows


def test_every_table_takes_a_full_and_a_bare_row(opened: Journal) -> None:
    samples = {
        "TIMESTAMP_NS": START,
        "DOUBLE": 1.25,
        "BIGINT": -(2**63),
        "BOOLEAN": True,
        "VARCHAR": "x",
        "BLOB": [1.0, 2.0],
    }
    for name, table in TABLES.items():
        full: dict[str, Any] = {}
        for column in table.columns:
            full[column.name] = "hold" if column.name == "decision" else samples[column.kind.duckdb]
            if column.kind is schema.JSON:
                full[column.name] = {"b": 1, "a": [None, "é"]}
        if "verdict" in full:
            full["verdict"] = "deny"
        bare = {column.name: full[column.name] for column in table.columns if column.required}
        opened.append(name, full)
        opened.append(name, bare)
        frame = opened.query(f'SELECT * FROM "{name}" ORDER BY sequence')
        assert frame.columns == ["sequence", *table.names]
        first, second = frame.rows(named=True)
        for column in table.columns:
            if column.kind is schema.JSON:
                assert first[column.name] == '{"a":[null,"é"],"b":1}'
            elif column.kind.duckdb == "BLOB":
                assert first[column.name] == np.array([1.0, 2.0], "<f8").tobytes()
            elif column.kind.duckdb != "TIMESTAMP_NS":
                assert first[column.name] == full[column.name]
            assert (second[column.name] is None) == (not column.required)
        assert frame.schema["timestamp"] == pl.Datetime("ns", "UTC")
        assert frame["timestamp"].to_physical().to_list() == [START, START]


def test_numpy_s_scalars_are_welcome(opened: Journal) -> None:
    opened.append(
        "penalties",
        {
            "timestamp": np.int64(START),
            "penalty_active": np.bool_(True),
            "overtrade_risk_score": np.float32(0.5),
            "code": np.str_("X"),
        },
    )
    opened.append("decisions", decision("T", regime_probs={"trend": np.float64(0.5), "range": np.float32(np.nan)}))
    assert opened.query("SELECT penalty_active, overtrade_risk_score, code FROM penalties").row(0) == (True, 0.5, "X")
    assert opened.query("SELECT regime_probs FROM decisions").item() == '{"range":null,"trend":0.5}'


@pytest.mark.parametrize(
    ("table", "change", "says"),
    [
        ("decisions", {"trade_id": None}, "trade_id is missing"),
        ("decisions", {"trade_id": 7}, "text is wanted"),
        ("decisions", {"decision": "long"}, "one of buy, sell, exit, hold is wanted"),
        ("decisions", {"decision": "BUY"}, "one of buy, sell, exit, hold is wanted"),
        ("decisions", {"signal_score": "high"}, "a number is wanted"),
        ("decisions", {"signal_score": True}, "a number is wanted"),
        ("decisions", {"timestamp": -1}, "between 1970 and 2262"),
        ("decisions", {"timestamp": 2**63}, "between 1970 and 2262"),
        ("decisions", {"timestamp": 1.5}, "does not fit"),
        ("decisions", {"quantity": 2**63}, "beyond 64 bits"),
        ("decisions", {"regime_probs": "{"}, "does not fit"),
        ("decisions", {"regime_probs": {"trend": object()}}, "no JSON form"),
        ("decisions", {"context": [[1.0]]}, "one row of features"),
        ("decisions", {"context": b"1234567"}, "whole float64"),
        ("decisions", {"verdict": "perhaps"}, "one of allow, deny"),
        ("decisions", {"detail": "\ud800"}, "UTF-8"),
        ("decisions", {"signal_scor": 1.0}, "did you mean 'signal_score'"),
        ("decision", {}, "did you mean 'decisions'"),
        ("penalties", {}, "there is no column"),
    ],
)
def test_what_does_not_fit_is_refused_whole(opened: Journal, table: str, change: dict[str, Any], says: str) -> None:
    row = {**decision("T"), **change}
    if table == "penalties":
        row["penalty_active"] = True
    with pytest.raises(JournalError, match=says):
        opened.append(table, row)
    assert opened.stats()["accepted"] == 0
    assert opened.append("decisions", decision("T")) == 1
    assert opened.health() == "ok"


def test_a_component_cannot_name_a_path(opened: Journal) -> None:
    row = {"timestamp": START, "component": "../evil", "operation": "x", "latency": 0.1, "success": True}
    with pytest.raises(JournalError, match="letters, digits and underscores"):
        opened.append("telemetry", row)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
rows = st.fixed_dictionaries(
    {
        "timestamp": st.integers(0, schema.LATEST_NS),
        "trade_id": texts,
        "decision": st.sampled_from(schema.DECISIONS),
        "signal_score": st.floats(),
    },
    optional={
        "regime_probs": st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
        "detail": texts,
        "quantity": st.integers(-(2**63), 2**63 - 1),
        "verdict": st.sampled_from(["allow", "deny"]),
        "context": st.lists(st.floats(), max_size=5),
    },
)


@settings(deadline=None)
@given(rows)
def test_a_frame_gives_back_what_went_in(row: dict[str, Any]) -> None:
    table = TABLES["decisions"]
    values = table.values(row)
    content = segments.encode("decisions", values)
    decoded = segments.decode(b"", content, {"decisions": list(table.names)})
    assert decoded is not None
    assert repr(segments.decode_rows(7, [content] * 2)) == repr([(7, *decoded), (8, *decoded)]), "both ways"
    assert decoded[0] == "decisions"
    assert repr(decoded[1]) == repr(values)  # repr: NaN is not equal to itself, -0.0 is equal to 0.0


@settings(deadline=None, max_examples=40)
@given(st.lists(rows, max_size=8))
def test_arrow_and_duckdb_keep_every_value(batch: list[dict[str, Any]]) -> None:
    import duckdb

    table = TABLES["decisions"]
    if not batch:
        return
    given = table.settled(list(zip(*(table.values(row) for row in batch), strict=True)))
    with duckdb.connect() as connection:
        connection.register("batch", database._frame(table, range(len(batch)), given))
        columns = ", ".join(
            f'epoch_ns("{c.name}")' if c.kind.duckdb == "TIMESTAMP_NS" else f'"{c.name}"' for c in table.columns
        )
        back = connection.execute(f"SELECT {columns} FROM batch").fetchall()
    assert [repr(row) for row in back] == [repr(row) for row in zip(*given, strict=True)]


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text('ab%r"é', max_size=3), st.floats(), max_size=4), max_size=5))
def test_the_writer_s_text_of_a_dictionary_is_the_canonical_one(given_: list[dict[str, float]]) -> None:
    table = TABLES["decisions"]
    bare = [None] * len(table.names)
    place = table.names.index("regime_probs")
    columns = list(zip(*([*bare[:place], one, *bare[place + 1 :]] for one in given_), strict=True))
    if columns:
        assert table.settled(columns)[place] == [schema.to_json(one) for one in given_]


def test_values_in_order_are_taken_as_a_row_is(opened: Journal) -> None:
    table = TABLES["decisions"]
    context = np.array([1.5, np.nan, -0.0])
    row = decision("T", regime_probs={"trend": 0.5, "range": math.nan}, context=context.tobytes(), input_hash=b"bar")
    opened.append("decisions", row)
    for numbers in (float, np.float64, int):  # as they are, and converted
        named = row | {"signal_score": numbers(1), "price": numbers(5000)}
        opened.append_values(table, table.in_order([named.get(name) for name in table.names]))
    for change, says in (
        ({"signal_score": "0.5"}, "a number is wanted"),
        ({"trade_id": None}, "trade_id is missing"),
        ({"regime_probs": ""}, "does not fit"),
        ({"regime_probs": {"a": object()}}, "no JSON form"),
        ({"detail": "\ud800"}, "UTF-8"),
    ):
        bad = row | change
        with pytest.raises(JournalError, match=says):
            opened.append_values(table, table.in_order([bad.get(name) for name in table.names]))
    frame = opened.query("SELECT * FROM decisions ORDER BY sequence")
    assert frame["price"].to_list() == [None, 5000.0, 5000.0, 5000.0]
    assert frame["regime_probs"].unique().to_list() == ['{"range":null,"trend":0.5}']
    assert frame["input_hash"].unique().to_list() == [hashlib.sha256(context.tobytes() + b"bar").hexdigest()]


# ---------------------------------------------------------------- keys


def test_a_repeated_replay_row_is_stored_once(opened: Journal) -> None:
    for _ in range(3):
        for number in range(50):
            opened.append("decisions", decision(f"T{number}", run_id="march"))
    opened.flush()
    opened.append("decisions", decision("T7", run_id="march"))
    opened.append("decisions", decision("T7", run_id="april"))
    opened.flush()
    assert opened.query("SELECT count(*) FROM decisions").item() == 51
    assert opened.query("SELECT count(*) FROM alerts").item() == 0
    assert opened.stats()["repeated"] == 101


def test_rows_without_a_run_are_never_compared_within_one_batch(opened: Journal) -> None:
    table = TABLES["decisions"]
    batch = [(number, "decisions", table.values(decision("T"))) for number in range(1, 6)]
    assert opened._database is not None
    assert opened._database.insert(batch, 5).rows == 5
    alerts = TABLES["alerts"]
    row = {"timestamp": START, "priority": 1, "code": "C", "message": "m"}
    batch = [(number, "alerts", alerts.values(row)) for number in range(6, 9)]
    assert opened._database.insert(batch, 8).rows == 3


@pytest.mark.parametrize("together", [True, False])
def test_the_first_of_two_rows_under_one_key_is_kept_and_the_other_alerted(opened: Journal, together: bool) -> None:
    opened.append(
        "trades", {"trade_id": "T", "timestamp": START, "entry_price": 1.0, "profit": math.nan, "run_id": "r"}
    )
    if not together:
        opened.flush()
    opened.append(
        "trades", {"trade_id": "T", "timestamp": START, "entry_price": 1.0, "profit": math.nan, "run_id": "r"}
    )
    opened.append("trades", {"trade_id": "T", "timestamp": START, "entry_price": 1.0, "profit": 5.0, "run_id": "r"})
    assert opened.query("SELECT sequence FROM trades")["sequence"].to_list() == [1]
    (alert,) = opened.query("SELECT * FROM alerts").rows(named=True)
    assert alert["code"] == database.CONFLICT
    assert alert["sequence"] == 3
    assert "run_id=r trade_id=T kept_sequence=1 refused_sequence=3" in alert["message"]
    assert json.loads(alert["detail"])["profit"] == 5.0
    assert opened.stats()["repeated"] == 1
    assert opened.health() == "ok"


# ---------------------------------------------------------------- exports


def test_empty_exports_have_their_headers(workspace: Workspace) -> None:
    telemetry.RECORDER.drain()
    Journal.open(workspace).close()
    for name, header in CONTRACT.items():
        assert (workspace.data / name).read_bytes() == f"{header}\n".encode()


def test_exports_are_the_same_bytes_whenever_they_are_made(workspace: Workspace) -> None:
    rng = np.random.default_rng(3)
    one = Journal.open(workspace, settings=Settings(interval=0.01, batch_rows=64))
    for number in range(500):
        instant = START - number * 1_000_000_000 if number % 3 else START  # a clock that steps back
        row = decision(f"T{number}", timestamp=instant, signal_score=float(rng.normal() * 10.0 ** rng.integers(-9, 9)))
        one.append("decisions", {**row, "regime_probs": PROBS})
        one.append("penalties", {"timestamp": instant, "penalty_active": number % 2 == 0, "overtrade_risk_score": 0.1})
    path = workspace.data / "logs/trading/decision_log.csv"
    one.export(["decisions"])
    first = path.read_bytes()
    one.export()
    assert path.read_bytes() == first
    one.close()
    path.unlink()
    journal.export(workspace)
    assert path.read_bytes() == first
    assert not list(path.parent.glob("*.tmp"))
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    with Journal.open(workspace) as one:
        stored = one.query("SELECT * FROM decisions ORDER BY timestamp, sequence").rows(named=True)
    assert [line["trade_id"] for line in lines] == [row["trade_id"] for row in stored]
    assert [line["timestamp"] for line in lines] == sorted(line["timestamp"] for line in lines)
    for line, row in zip(lines, stored, strict=True):
        assert float(line["signal_score"]) == row["signal_score"]
        assert line["signal_score"] == repr(row["signal_score"])
    penalty = (workspace.data / "logs/trading/penalty_log.csv").read_text().splitlines()
    assert {line.split(",", 1)[1] for line in penalty[1:]} == {"true,0.1", "false,0.1"}


def test_awkward_values_in_csv(opened: Journal) -> None:
    awkward = 'a,"b"\nc'
    opened.append("decisions", decision(awkward, signal_score=math.nan, timestamp=0))
    opened.append("decisions", decision("", signal_score=1e16, timestamp=1_999))
    opened.export()
    with (opened.workspace.data / "logs/trading/decision_log.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["trade_id"] == awkward
    assert math.isnan(float(first["signal_score"]))
    assert first["regime_probs"] == ""
    assert first["timestamp"] == clock.iso(0)
    assert (second["trade_id"], second["timestamp"]) == ("", clock.iso(1_999))
    assert float(second["signal_score"]) == 1e16


def test_telemetry_has_a_file_for_each_component(opened: Journal) -> None:
    with telemetry.operation("neural_pipeline", "generate_predictions"):
        pass
    with pytest.raises(ZeroDivisionError), telemetry.operation("adaptive_learning", "retrain"):
        1 / 0  # noqa: B018
    names = {str(path.relative_to(opened.workspace.data)) for path in opened.export(["telemetry"])}
    assert names == {"logs/neural_pipeline_performance.csv", "logs/adaptive_learning.csv"}
    for name, operation, success in (
        ("logs/neural_pipeline_performance.csv", "generate_predictions", "true"),
        ("logs/adaptive_learning.csv", "retrain", "false"),
    ):
        text = (opened.workspace.data / name).read_text()
        assert text.splitlines()[0] == TELEMETRY
        (row,) = csv.DictReader(text.splitlines())
        assert (row["operation"], row["success"]) == (operation, success)
        assert 0 <= float(row["latency"]) < 60
        assert 1 < float(row["memory_usage_mb"]) < 1e6
        assert float(row["cpu_percent"]) >= 0


def test_a_table_without_an_export_is_refused(opened: Journal) -> None:
    with pytest.raises(JournalError, match="has no CSV export"):
        opened.export(["levels"])


# ---------------------------------------------------------------- queries


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM decisions",
        "SELECT 1; SELECT 2",
        "",
        "SELEC",
        "SELECT * FROM nothing",
        "COPY decisions TO 'x.csv'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "ATTACH 'other.duckdb'",
        "SET enable_external_access = true",
        "EXPLAIN ANALYZE DELETE FROM decisions",
    ],
)
def test_only_reading_statements_over_this_database_run(opened: Journal, sql: str) -> None:
    opened.append("decisions", decision("T"))
    with pytest.raises(JournalError) as refusal:
        opened.query(sql)
    assert refusal.value.hint
    assert opened.query("SELECT count(*) AS n FROM decisions")["n"].item() == 1
    assert opened.health() == "ok"


def test_describe_and_show_work(opened: Journal) -> None:
    assert set(TABLES) < set(opened.query("SHOW TABLES")["name"])
    assert opened.query("DESCRIBE penalties")["column_name"].to_list() == ["sequence", *TABLES["penalties"].names]


# ---------------------------------------------------------------- back-pressure and a writer in trouble


class Gate:
    """Stands in for the database's insert: holds the writer until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()
        real = database.Database.insert

        def insert(self_: database.Database, rows: Any, upto: int) -> database.Inserted:
            self.reached.set()
            assert self.open.wait(30)
            return real(self_, rows, upto)

        monkeypatch.setattr(database.Database, "insert", insert)


def test_audit_rows_wait_and_telemetry_is_sampled_and_counted(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry.RECORDER.drain()
    gate = Gate(monkeypatch)
    one = Journal.open(workspace, settings=Settings(interval=0.01, queue_rows=10, batch_rows=2))
    measured = {"timestamp": START, "component": "risk", "operation": "x", "latency": 0.1, "success": True}
    assert one.append("telemetry", measured) == 1
    assert gate.reached.wait(10)
    for number in range(9):
        one.append("decisions", decision(f"T{number}"))
    assert one.append("telemetry", measured) == 0
    waiting = threading.Thread(target=one.append, args=("decisions", decision("last")))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive(), "the queue is full: the caller must wait"
    assert one.stats()["backlog"] == 10
    gate.open.set()
    waiting.join(10)
    assert not waiting.is_alive()
    assert one.query("SELECT count(*) FROM decisions").item() == 10
    assert one.query("SELECT count(*) FROM telemetry").item() == 1
    said = one.query("SELECT message FROM alerts ORDER BY message")["message"].to_list()
    assert said[0].startswith("JOURNAL_BACKPRESSURE: waits=1 longest_ms=")
    assert said[1] == "TELEMETRY_SAMPLED: rows=1"
    assert one.stats()["telemetry_sampled"] == 1
    one.close()


def test_a_passing_fault_of_the_store_is_tried_again_with_growing_delays(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    seen: list[str] = []
    one = Journal.open(
        workspace, settings=Settings(interval=0.01, pause=lambda s: seen.append(one.health()) or waited.append(s))
    )
    real = database.Database.insert
    faults = iter([OSError(28, "No space left on device")] * 3)

    def insert(self: database.Database, rows: Any, upto: int) -> database.Inserted:
        result = real(self, rows, upto)  # it commits, and the caller never learns it
        for fault in faults:
            raise fault
        return result

    monkeypatch.setattr(database.Database, "insert", insert)
    one.append("decisions", decision("T"))
    one.flush()
    assert waited == [2.0]
    assert "trying again" in seen[0]
    assert one.health() == "ok"
    assert one.query("SELECT count(*) FROM decisions").item() == 1
    one.close()


def test_a_writer_that_gives_up_is_seen_at_once_and_loses_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    one = Journal.open(workspace, settings=Settings(interval=0.01, pause=waited.append))
    with monkeypatch.context() as broken:

        def insert(*_: object) -> None:
            raise OSError(28, "No space left on device")

        broken.setattr(database.Database, "insert", insert)
        one.append("decisions", decision("accepted"))
        with pytest.raises(JournalError, match="writer has stopped"):
            one.flush()
    assert waited == [2.0, 4.0, 8.0]
    assert "No space left" in one.health()
    with pytest.raises(JournalError, match="writer has stopped"):
        one.append("decisions", decision("refused"))
    with pytest.raises(JournalError, match="writer has stopped"):
        one.close()
    with Journal.open(workspace) as again:
        assert again.query("SELECT trade_id FROM decisions")["trade_id"].to_list() == ["accepted"]
        assert again.health() == "ok"


def test_wrong_data_is_never_retried(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    one = Journal.open(workspace, settings=Settings(interval=0.01, pause=waited.append))
    with monkeypatch.context() as broken:
        broken.setattr(database.Database, "insert", lambda *_: {}["a programming error"])
        one.append("decisions", decision("accepted"))
        with pytest.raises(JournalError, match="KeyError"):
            one.flush()
    assert waited == []
    with pytest.raises(JournalError):
        one.close()


def test_durable_waits_for_the_disk_and_believes_its_refusal(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fdatasync
    one = Journal.open(workspace)
    monkeypatch.setattr(os, "fdatasync", lambda handle: synced.append(handle) or real(handle))
    one.append("decisions", decision("a"))
    assert not synced
    one.append("decisions", decision("b"), durable=True)
    assert len(synced) == 1

    def fail(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(JournalError, match="did not confirm row 3"):
        one.append("decisions", decision("c"), durable=True)
    assert "did not confirm" in one.health()
    with pytest.raises(JournalError):
        one.append("decisions", decision("d"))
    with pytest.raises(JournalError):
        one.close()


def test_a_short_write_is_taken_back(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Journal.open(workspace, settings=Settings(interval=3600))
    size = one._segment.size
    real = os.pwrite
    calls = iter([10, 0])

    def write(handle: int, data: bytes, at: int) -> int:
        for count in calls:
            if count:
                return real(handle, data[:count], at)
            raise OSError(28, "No space left on device")
        return real(handle, data, at)

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", write)
        with pytest.raises(JournalError, match="No space left"):
            one.append("decisions", decision("refused"))
        assert one._segment.path.stat().st_size == size
        assert "No space left" in one.health()
    assert one.append("decisions", decision("accepted")) == 1
    assert one.health() == "ok"
    one.close()


@pytest.mark.parametrize("written", [True, False])
def test_an_interrupted_append_leaves_no_row_that_could_hide_the_next(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    one = Journal.open(workspace, settings=Settings(interval=3600))
    real = os.pwrite

    def write(handle: int, data: bytes, at: int) -> int:
        if written:
            real(handle, data, at)
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(os, "pwrite", write)
        with pytest.raises(KeyboardInterrupt):
            one.append("decisions", decision("interrupted"))
    assert one.append("decisions", decision("accepted")) == 1
    content = segments.read(one._segment.path)
    assert [row[0] for row in content.rows] == [1]
    assert b"accepted" in content.rows[0][2]
    assert not content.damage
    assert one.query("SELECT trade_id FROM decisions")["trade_id"].to_list() == ["accepted"]
    one.close()


def test_a_failure_before_the_sync_never_reuses_the_row_s_number(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Journal.open(workspace, settings=Settings(interval=3600))

    def dup(handle: int) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as broken:
        broken.setattr(os, "dup", dup)
        with pytest.raises(JournalError, match="did not confirm row 1"):
            one.append("decisions", decision("a"), durable=True)
    assert one.stats()["accepted"] == 1
    with pytest.raises(JournalError, match="did not confirm"):
        one.append("decisions", decision("b"))
    with pytest.raises(JournalError):
        one.close()


def test_segments_are_sealed_and_leave_once_duckdb_has_their_rows(workspace: Workspace) -> None:
    one = Journal.open(workspace, settings=Settings(interval=3600, segment_bytes=2_000, batch_rows=100_000))
    for number in range(100):
        one.append("decisions", decision(f"T{number}"))
    folder = workspace.data / "journal"
    assert len(segments.listing(folder)) > 5
    one.flush()
    deadline = time.monotonic() + 10
    while len(segments.listing(folder)) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(segments.listing(folder)) == 1
    assert one.query("SELECT count(*) FROM decisions").item() == 100
    one.close()


# ---------------------------------------------------------------- one engine


def test_a_second_journal_in_the_same_process_is_refused(opened: Journal) -> None:
    with pytest.raises(JournalError, match=f"in use by process {os.getpid()}"):
        Journal.open(opened.workspace)
    assert journal.of(opened.workspace) is opened


def test_a_closed_journal_takes_nothing(workspace: Workspace) -> None:
    one = Journal.open(workspace)
    one.close()
    one.close()
    with pytest.raises(JournalError, match="closed"):
        one.append("decisions", decision("T"))
    with pytest.raises(JournalError, match="closed"):
        one.query("SELECT 1")
    assert one.health() != "ok"


def test_a_forked_child_cannot_write_its_parent_s_journal(workspace: Workspace) -> None:
    code = """
import os, sys
from mia_fast.errors import JournalError
from mia_fast.journal import of
from mia_fast.workspace import Workspace
row = {"timestamp": 1, "trade_id": "parent", "decision": "buy", "signal_score": 1.0}
journal = of(Workspace.current())
journal.append("decisions", row)
child = os.fork()
if child == 0:
    try:
        journal.append("decisions", row)
    except JournalError as error:
        sys.exit(0 if "parent" in str(error) else 3)
    sys.exit(4)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
journal.append("decisions", row)
journal.close()
sys.exit(status)
"""
    path = os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "models"))
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path}, timeout=60)
    with Journal.open(workspace) as one:
        assert one.query("SELECT count(*) FROM decisions").item() == 2
        assert one.health() == "ok"


def test_a_core_that_is_not_ours_is_refused(workspace: Workspace) -> None:
    with pytest.raises(JournalError, match="core 4096"):
        Journal.open(workspace, pin_core=4096)
    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    with Journal.open(workspace, pin_core=core) as one:
        one.append("decisions", decision("T"))
        assert one._thread is not None
        assert one._thread.native_id is not None
        one.flush()
        assert os.sched_getaffinity(one._thread.native_id) == {core}
        assert os.sched_getaffinity(0) == before


# ---------------------------------------------------------------- older versions


def test_an_older_database_gains_the_new_columns(workspace: Workspace) -> None:
    import duckdb

    with Journal.open(workspace) as one:
        one.append("decisions", decision("old", run_id="r"))
    with duckdb.connect(str(workspace.data / "mia.duckdb")) as connection:
        connection.execute("ALTER TABLE decisions DROP COLUMN context_names")
        connection.execute("DROP TABLE levels")
    with Journal.open(workspace) as one:
        one.append("decisions", decision("old", run_id="r"))
        one.append("decisions", decision("new", context_names=["a"]))
        one.append("levels", {"timestamp": START, "status": "NO_CHAIN"})
        assert one.query("SELECT trade_id, context_names FROM decisions ORDER BY sequence").rows() == [
            ("old", None),
            ("new", '["a"]'),
        ]
        assert one.query("SELECT count(*) FROM levels").item() == 1


def test_a_database_with_another_type_is_left_alone(workspace: Workspace) -> None:
    import duckdb

    Journal.open(workspace).close()
    path = workspace.data / "mia.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("ALTER TABLE levels ALTER COLUMN gamma_wall TYPE VARCHAR")
    with pytest.raises(JournalError, match=r"levels.gamma_wall is VARCHAR"):
        Journal.open(workspace)
    assert path.exists()
    assert not (workspace.data / "quarantine").exists()


def test_a_segment_of_an_older_version_is_read(workspace: Workspace) -> None:
    folder = workspace.data / "journal"
    folder.mkdir(parents=True)
    columns = {"penalties": ("timestamp", "penalty_active"), "retired": ("x",)}
    segment = segments.Segment(segments.path_of(folder, 1), 1, columns)
    segment.append(1, segments.encode("penalties", [START, True]))
    segment.append(2, segments.encode("retired", [1]))
    segment.close()
    with Journal.open(workspace) as one:
        assert one.query("SELECT penalty_active, code FROM penalties").rows() == [(True, None)]
        assert "row 2" in one.health()
    assert list((workspace.data / "quarantine").rglob("segment-00000001.journal"))


def test_a_segment_of_format_1_is_read(workspace: Workspace) -> None:
    """Rows as JSON with their binary columns behind it, as the journal wrote them before MessagePack."""
    folder = workspace.data / "journal"
    folder.mkdir(parents=True)
    columns = ["timestamp", "trade_id", "decision", "signal_score", "regime_probs", "context", "feature_list"]
    seen = np.array([1.5, np.nan, -0.0]).tobytes()
    texts = [
        json.dumps({"format": 1, "columns": {"decisions": columns}}).encode(),
        json.dumps(["decisions", START, "T1", "buy", float("nan"), '{"trend":0.5}', len(seen), "f"]).encode(),
        json.dumps(["decisions", START + 1, "T2", "hold", -0.0, None, None, None]).encode(),
    ]
    frames = [segments.frame(segments.HEADER, 1, texts[0], len(texts[0]))]
    frames += [segments.frame(segments.ROW, 1, texts[1] + seen, len(texts[1]))]
    frames += [segments.frame(segments.ROW, 2, texts[2], len(texts[2]))]
    segments.path_of(folder, 1).write_bytes(b"".join(frames))
    with Journal.open(workspace) as one:
        assert one.health() == "ok"
        found = one.query("SELECT trade_id, signal_score, regime_probs, context, feature_list FROM decisions").rows()
    assert repr(found) == repr([("T1", math.nan, '{"trend":0.5}', seen, "f"), ("T2", -0.0, None, None, None)])


def test_a_dictionary_is_copied_when_it_is_accepted(workspace: Workspace) -> None:
    """Its text is made later, by the writer; what the caller does to it meanwhile must not show."""
    with Journal.open(workspace) as one:
        probs = {"trend": 0.25, "range": math.nan}
        one.append("decisions", decision("T1") | {"regime_probs": probs})
        probs["trend"] = 0.9
        assert one.query("SELECT regime_probs FROM decisions").item() == '{"range":null,"trend":0.25}'


def test_the_registry_forgets_what_did_not_open(workspace: Workspace) -> None:
    workspace.data.mkdir(parents=True)
    (workspace.data / "mia.duckdb").mkdir()
    with pytest.raises(JournalError):
        journal.of(workspace)
    assert not journal.is_open(workspace)
    (workspace.data / "mia.duckdb").rmdir()
    journal.of(workspace).close()
    assert workspace.root not in store._OPEN
