"""The journal beside the engine and over the years: readers, exports by day, retention, compaction, explanations."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mia_fast import cli, journal, telemetry
from mia_fast.errors import ConfigError, JournalError
from mia_fast.journal import TABLES, Journal, Reader, Settings, segments
from mia_fast.journal.explain import explain
from mia_fast.journal.schema import feature_list_digest
from mia_fast.workspace import Workspace, shipped

ROOT = Path(__file__).resolve().parents[1]
START = 1_747_144_800_123_456_789  # 2025-05-13T14:00:00.123456789Z
DAY = 86_400_000_000_000
QUICK = Settings(interval=0.01)


def decision(name: str, **more: object) -> dict[str, object]:
    return {"timestamp": START, "trade_id": name, "decision": "buy", "signal_score": 0.5, **more}


@pytest.fixture
def opened(workspace: Workspace) -> Iterator[Journal]:
    telemetry.RECORDER.drain()
    with Journal.open(workspace, settings=QUICK) as one:
        yield one


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.csv"))}


# ---------------------------------------------------------------- readers


@pytest.fixture
def engine(workspace: Workspace) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes as fast as it can, and says how many rows it has accepted."""
    path = os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "models"))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "crash_journal.py"), "beside", str(workspace.root)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    yield process
    process.kill()
    process.communicate()


def accepted(process: subprocess.Popen[str]) -> int:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("how many\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def test_a_second_process_reads_every_accepted_row_while_the_engine_writes(
    workspace: Workspace, engine: subprocess.Popen[str]
) -> None:
    with pytest.raises(JournalError, match="in use"):
        Journal.open(workspace)
    seen = 0
    for _ in range(6):  # segments of 20 kB: dozens are sealed and removed under the reader's eyes
        before = accepted(engine)
        frame = journal.query(workspace, "SELECT trade_id, signal_score FROM decisions ORDER BY sequence")
        assert before <= frame.height <= accepted(engine)
        assert frame["trade_id"].to_list() == [f"T{n}" for n in range(frame.height)], "no gap, no row twice"
        assert frame["signal_score"].to_list() == [n / 7 for n in range(frame.height)]
        seen = frame.height
    assert seen > 100
    paths = journal.export(workspace, ["decisions"])
    lines = paths[0].read_text().splitlines()
    assert len(lines) > seen
    assert not list(workspace.data.glob(".reader-*"))
    assert engine.poll() is None


def test_the_command_line_asks_beside_the_engine(
    workspace: Workspace,
    engine: subprocess.Popen[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out.parquet"
    run(monkeypatch, "query", "SELECT trade_id FROM decisions ORDER BY sequence LIMIT 2", "--out", str(out))
    assert pl.read_parquet(out)["trade_id"].to_list() == ["T0", "T1"]
    run(monkeypatch, "query", "SELECT 40 + 2 AS answer")
    assert "42" in capsys.readouterr().out
    run(monkeypatch, "explain", "T1")
    assert "T1: buy" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "query", "DROP TABLE decisions")
    assert ended.value.code == 2
    assert accepted(engine) > 0


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """The command line as the shell calls it; only a failure leaves it by SystemExit."""
    monkeypatch.setattr(sys, "argv", ["mia-fast", *arguments])
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            raise


def test_a_reader_sees_rows_that_no_database_has_yet_and_changes_nothing(workspace: Workspace) -> None:
    one = Journal.open(workspace, settings=Settings(interval=3600))
    one.append("decisions", decision("waiting", run_id="r"))
    one.append("decisions", decision("waiting", run_id="r"))
    before = {path: path.read_bytes() for path in workspace.data.rglob("*") if path.is_file()}
    with Reader(workspace) as reader:
        assert reader.query("SELECT trade_id FROM decisions")["trade_id"].to_list() == ["waiting"], "its key holds"
        with pytest.raises(JournalError, match="not one reading statement"):
            reader.query("DELETE FROM decisions")
    assert {path: path.read_bytes() for path in workspace.data.rglob("*") if path.is_file()} == before
    with pytest.raises(JournalError, match="closed"):
        reader.query("SELECT 1")
    one.close()


def test_a_checkpoint_during_the_copy_makes_the_reader_copy_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Journal.open(workspace, settings=Settings(interval=3600))
    real, copies = shutil.copyfile, []

    def copying(source: Path, target: Path) -> None:
        """Half of the file, a checkpoint of the engine, the other half: a mixture of two states."""
        copies.append(target)
        if len(copies) > 1:
            real(source, target)
            return
        data = source.read_bytes()
        one.append("decisions", decision("during"))
        one.flush()
        one._ready().checkpoint()
        target.write_bytes(data[: len(data) // 2] + source.read_bytes()[len(data) // 2 :])

    one.append("decisions", decision("before"))
    one.flush()
    with monkeypatch.context() as slow:
        slow.setattr(shutil, "copyfile", copying)
        with Reader(workspace) as reader:
            assert reader.query("SELECT trade_id FROM decisions ORDER BY sequence")["trade_id"].to_list() == [
                "before",
                "during",
            ]
    assert len(copies) == 2
    one.close()


def test_a_reader_of_nothing_and_of_damage_says_so(workspace: Workspace) -> None:
    with pytest.raises(JournalError, match="no journal here"):
        Reader(workspace)
    one = Journal.open(workspace, settings=Settings(interval=3600))
    for name in "abc":
        one.append("decisions", decision(name))
    path, size = one._segment.path, one._segment.size
    pristine = path.read_bytes()
    damaged = bytearray(pristine)
    damaged[damaged.index(b"\xa1b") + 1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(JournalError, match=r"row 2 cannot be read") as refusal:
        Reader(workspace)
    assert "start" in str(refusal.value.hint)
    assert not list(workspace.data.glob(".reader-*"))
    path.write_bytes(pristine[: size - 3] + bytes(len(pristine) - size))  # the last row is being written at this moment
    with Reader(workspace) as reader:
        assert reader.query("SELECT trade_id FROM decisions")["trade_id"].to_list() == ["a", "b"]
    path.write_bytes(pristine)
    one.close()


def test_what_a_killed_reader_left_is_removed_by_the_next(workspace: Workspace) -> None:
    Journal.open(workspace, settings=QUICK).close()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = workspace.data / f".reader-{gone.pid}-x"
    other = workspace.data / f".reader-{os.getpid()}-x"
    for folder in (left, other):
        folder.mkdir()
        (folder / "copy.duckdb").write_bytes(b"x")
    Reader(workspace).close()
    assert not left.exists()
    assert other.exists(), "its reader lives"


def test_a_read_only_workspace_can_be_read_but_not_opened(workspace: Workspace) -> None:
    with Journal.open(workspace, settings=QUICK) as one:
        one.append("decisions", decision("kept"))
    folders = [workspace.data, workspace.data / "journal"]
    for folder in folders:
        folder.chmod(0o555)
    (workspace.data / ".mia.lock").chmod(0o444)
    code = """
import sys
from mia_fast import journal
from mia_fast.errors import JournalError
from mia_fast.workspace import Workspace
place = Workspace.current()
print(journal.query(place, "SELECT trade_id FROM decisions").item())
try:
    journal.of(place)
except JournalError as error:
    print(error.what)
    sys.exit(0 if error.hint else 3)
sys.exit(4)
"""
    path = os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "models"))
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=obey_permissions,
        )
    finally:
        for folder in folders:
            folder.chmod(0o755)
        (workspace.data / ".mia.lock").chmod(0o644)
    assert done.returncode == 0, done.stderr
    kept, refused = done.stdout.splitlines()
    assert kept == "kept"
    assert refused == "the journal cannot be written (Permission denied)"


def obey_permissions() -> None:
    """Let even root's child be bound by the permissions of files (drop CAP_DAC_OVERRIDE before exec)."""
    if os.geteuid() == 0:
        import ctypes

        libc = ctypes.CDLL(None)
        pr_capbset_drop = 24
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(pr_capbset_drop, capability, 0, 0, 0)


# ---------------------------------------------------------------- exports by day


def fill(one: Journal, days: range, label: str) -> None:
    for day in days:
        for number in range(20):
            instant = START + day * DAY + number * 1_000_000_000
            one.append("decisions", decision(f"{label}{day}-{number}", timestamp=instant, regime_probs={"trend": 0.5}))
            row = {"timestamp": instant, "component": "risk", "operation": label, "latency": 0.5, "success": True}
            one.append("telemetry", row)


def test_an_incremental_export_is_byte_for_byte_a_whole_one(opened: Journal, tmp_path: Path) -> None:
    data = opened.workspace.data
    fill(opened, range(5), "first")
    opened.export()
    for days, label in ((range(5, 7), "later"), (range(2, 3), "late"), (range(-1, 0), "before all"), (range(0), "")):
        fill(opened, days, label)
        opened.export()
        by_day = contents(data)
        opened.export(whole=True)
        assert contents(data) == by_day, label
    assert len(by_day["logs/trading/decision_log.csv"].splitlines()) == 1 + 9 * 20


def test_only_what_changed_is_written(opened: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    exporting = sys.modules["mia_fast.journal.export"]  # the package's function has the same name
    fill(opened, range(3), "a")
    opened.append("penalties", {"timestamp": START, "penalty_active": True})
    opened.export()
    data = opened.workspace.data
    stamps = {path: path.stat().st_ino for path in data.rglob("*.csv")}
    rendered: list[int] = []
    real = exporting._render

    def counting(relation: Any, file: Any, days: Any) -> None:
        before = file.tell()
        real(relation, file, days)
        rendered.append(file.tell() - before)

    monkeypatch.setattr(exporting, "_render", counting)
    opened.append("decisions", decision("one more", timestamp=START + 2 * DAY))
    opened.export()
    changed = {path.name for path, inode in stamps.items() if path.stat().st_ino != inode}
    assert changed == {"decision_log.csv"}
    size = (data / "logs/trading/decision_log.csv").stat().st_size
    assert 0 < rendered[0] < size / 2, "the first two days were kept"


@pytest.mark.parametrize("harm", ["edited", "removed", "notes gone", "notes broken"])
def test_an_export_that_was_touched_is_written_whole(opened: Journal, harm: str) -> None:
    fill(opened, range(2), "a")
    opened.export()
    data = opened.workspace.data
    path, notes = data / "logs/trading/decision_log.csv", data / "journal/exports.json"
    good = path.read_bytes()
    if harm == "edited":
        path.write_bytes(good.replace(b"buy", b"bye"))
    elif harm == "removed":
        path.unlink()
    elif harm == "notes gone":
        notes.unlink()
    else:
        notes.write_text("{")
    opened.export()
    assert path.read_bytes() == good


def test_parquet_holds_every_column_by_day_and_repeats_its_bytes(opened: Journal) -> None:
    fill(opened, range(2), "a")
    opened.append("decisions", decision("seen", timestamp=START, context=np.arange(3.0), detail="ü"))
    paths = opened.export(parquet=True)
    folder = opened.workspace.data / "parquet"
    assert {str(path.relative_to(folder)) for path in paths} == {
        f"{table}/2025-05-{day}.parquet" for table in ("decisions", "telemetry") for day in (13, 14)
    }
    path = folder / "decisions/2025-05-13.parquet"
    frame = pl.read_parquet(path)
    assert frame.columns == ["sequence", *TABLES["decisions"].names]
    assert frame.schema["timestamp"] == pl.Datetime("ns", "UTC")
    assert frame.equals(
        opened.query("SELECT * FROM decisions WHERE timestamp < '2025-05-14' ORDER BY timestamp, sequence")
    )
    first = path.read_bytes()
    assert opened.export(["decisions"], parquet=True) == []
    opened.export(parquet=True, whole=True)
    assert path.read_bytes() == first
    opened.append("decisions", decision("new", timestamp=START + DAY))
    assert opened.export(parquet=True) == [folder / "decisions/2025-05-14.parquet"]
    with pytest.raises(JournalError, match="did you mean"):
        opened.export(["decision"], parquet=True)


def test_an_export_onto_a_full_disk_is_an_error_and_leaves_the_old_file(workspace: Workspace) -> None:
    with Journal.open(workspace, settings=QUICK) as one:
        fill(one, range(3), "a")
    path = workspace.data / "logs/trading/decision_log.csv"
    before = path.read_bytes()
    code = """
import resource, signal, sys
from mia_fast.errors import JournalError
from mia_fast.journal import Reader
from mia_fast.workspace import Workspace
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Reader(Workspace.current()) as reader:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        reader.export(["decisions"], whole=True)
    except JournalError as error:
        sys.exit(0 if error.hint else 3)
sys.exit(4)
"""
    where = os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "models"))
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": where})
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.tmp"))


# ---------------------------------------------------------------- retention and compaction


def test_old_telemetry_goes_and_old_audit_rows_are_archived(workspace: Workspace) -> None:
    now = [START + 10 * DAY]
    keep = {"telemetry": 3, "decisions": 5}
    settings = Settings(interval=0.01, retention_days=keep)
    with Journal.open(workspace, settings=QUICK) as one:
        fill(one, range(11), "a")
        one.export()
    telemetry.RECORDER.drain()
    with Journal.open(workspace, settings=settings, now=lambda: now[0]) as one:
        days = "SELECT count(DISTINCT CAST(timestamp AS DATE)) FROM {}"
        assert one.query(days.format("telemetry")).item() == 4, "today and the three before"
        assert one.query(days.format("decisions")).item() == 6
        archive = workspace.data / "archive" / "decisions"
        assert {path.stem for path in archive.iterdir()} == {f"2025-05-{13 + day}" for day in range(5)}
        assert not (workspace.data / "archive" / "telemetry").exists()
        one.export()
        by_day = contents(workspace.data)
        one.export(whole=True)
        assert contents(workspace.data) == by_day, "an export never keeps rows that retention removed"
        codes = one.query("SELECT message FROM alerts")["message"].to_list()
        assert sum("rows=100 before=2025-05-18: moved" in message for message in codes) == 1
        # a row of an archived day comes late, and the next UTC day begins while the engine runs
        one.append("decisions", decision("late"))
        one.flush()
        now[0] += DAY
        deadline = time.monotonic() + 20
        while one.query(days.format("decisions")).item() != 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert one.query(days.format("decisions")).item() == 5
    frame = pl.read_parquet(archive / "2025-05-13.parquet")
    assert frame.height == 21
    assert frame["sequence"].n_unique() == 21
    assert "late" in frame["trade_id"]


def test_a_crash_between_archive_and_deletion_archives_each_row_once(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mia_fast.journal import database

    with Journal.open(workspace, settings=QUICK) as one:
        fill(one, range(2), "a")
    settings = Settings(interval=0.01, retention_days={"decisions": 1})
    with monkeypatch.context() as crashing:

        def crash(*_: object) -> int:
            raise OSError(5, "the machine went down here")

        crashing.setattr(database.Database, "purge", crash)
        with pytest.raises(JournalError, match="went down"):
            Journal.open(workspace, settings=settings, now=lambda: START + 9 * DAY)
    with Journal.open(workspace, settings=settings, now=lambda: START + 9 * DAY) as one:
        assert one.query("SELECT count(*) FROM decisions").item() == 0
    archived = pl.concat(pl.read_parquet(path) for path in (workspace.data / "archive/decisions").iterdir())
    assert archived.height == 40
    assert archived["trade_id"].n_unique() == 40


def test_a_clock_that_steps_back_removes_nothing(workspace: Workspace) -> None:
    now = [START + 9 * DAY]
    settings = Settings(interval=0.01, retention_days={"decisions": 30})
    with Journal.open(workspace, settings=settings, now=lambda: now[0]) as one:
        fill(one, range(9), "a")
        now[0] = 0
        one.flush()
        time.sleep(0.05)
        assert one.health() == "ok"
        now[0] = START - 400 * DAY
        one.append("decisions", decision("after the step"))
        assert one.query("SELECT count(*) FROM decisions").item() == 181


def test_the_room_of_deleted_rows_is_given_back(workspace: Workspace) -> None:
    rng = np.random.default_rng(1)
    with Journal.open(workspace, settings=QUICK) as one:
        for number in range(4000):
            late = number >= 3990
            row = decision(f"T{number}", timestamp=START + late * 50 * DAY, context=rng.normal(size=150))
            one.append("decisions", {**row, "run_id": "r"})
    path = workspace.data / "mia.duckdb"
    before = path.stat().st_size
    settings = Settings(interval=0.01, retention_days={"decisions": 7}, compact_bytes=0, compact_share=0.3)
    for _ in range(2):  # the first opening removes, the second finds the room free
        with Journal.open(workspace, settings=settings, now=lambda: START + 50 * DAY) as one:
            kept = one.query("SELECT * FROM decisions ORDER BY sequence")
            assert kept["trade_id"].to_list() == [f"T{number}" for number in range(3990, 4000)]
            one.append("decisions", decision("T3995", timestamp=START + 50 * DAY, run_id="r"))
            assert "compact" not in one.health()
    assert path.stat().st_size < before / 3
    with Journal.open(workspace, settings=QUICK) as one:
        assert one.query("SELECT count(*) FROM alerts WHERE code = 'JOURNAL_COMPACTED'").item() == 1
        assert one.query("SELECT count(*) FROM decisions").item() == 10, "the keys hold in the new file too"
        assert one.query("SELECT count(*) FROM alerts WHERE code = 'JOURNAL_KEY_CONFLICT'").item() == 2


# ---------------------------------------------------------------- configuration


def test_the_shipped_configuration_is_what_the_settings_say(workspace: Workspace) -> None:
    assert Settings.of(workspace) == Settings(retention_days={"telemetry": 30})
    text = (shipped() / "config" / "journal.yaml").read_text()
    for name in TABLES:
        assert f"\n  {name}: " in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("queue_rows", "queue_row"), "did you mean 'queue_rows'"),
        (("  trades: null", "  trade: null"), "did you mean 'trades'"),
        (("  telemetry: 30", "  telemetry: 0"), "at least 1 day"),
        (("metrics_port: null", "metrics_port: 70000"), "65535"),
    ],
)
def test_a_wrong_configuration_starts_nothing(workspace: Workspace, change: tuple[str, str], says: str) -> None:
    text = (shipped() / "config" / "journal.yaml").read_text()
    assert change[0] in text
    folder = workspace.root / "config"
    folder.mkdir()
    (folder / "journal.yaml").write_text(text.replace(change[0], change[1], 1))
    with pytest.raises(ConfigError, match=says):
        Journal.open(workspace)
    assert not (workspace.data / "mia.duckdb").exists()


# ---------------------------------------------------------------- explain


def test_a_decision_is_explained_from_what_was_written_down(opened: Journal) -> None:
    names = ["rsi_14", "ofi_score"]
    opened.append(
        "feature_lists", {"timestamp": 1, "digest": feature_list_digest(names), "names": names, "run_id": "r"}
    )
    opened.append("levels", {"timestamp": START - 1, "status": "OK", "gamma_wall": 5800.0, "run_id": "r"})
    opened.append("levels", {"timestamp": START + 1, "status": "OK", "gamma_wall": 1.0, "run_id": "r"})
    more = {"run_id": "r", "code": "ENTRY_SIGNAL", "context": [55.5, -0.25], "feature_list": feature_list_digest(names)}
    opened.append("decisions", decision("T", **more))
    opened.append("decisions", decision("T", context=[1.0], code="OTHER"))
    opened.append("trades", {"trade_id": "T", "timestamp": START, "entry_price": 1.0, "profit": -5.0, "run_id": "r"})
    opened.append("alerts", {"timestamp": START, "priority": 4, "code": "C", "message": "m", "run_id": "r"})
    first, second = explain(opened.workspace, "T")
    assert first.features == {"rsi_14": 55.5, "ofi_score": -0.25}
    assert first.decision["code"] == "ENTRY_SIGNAL"
    assert first.trade is not None
    assert first.trade["profit"] == -5.0
    assert first.levels is not None
    assert first.levels["gamma_wall"] == 5800.0, "the levels in force, not later ones"
    assert [alert["code"] for alert in first.alerts] == ["C"]
    assert second.features == {"#0": 1.0}
    assert (second.trade, second.levels, second.alerts) == (None, None, [])
    (only,) = explain(opened.workspace, "T", "r")
    assert only.decision["run_id"] == "r"
    with pytest.raises(JournalError, match="no decision 'TT'") as refusal:
        explain(opened.workspace, "TT")
    assert "'T'" in str(refusal.value.hint)


# ---------------------------------------------------------------- metrics


def test_the_endpoint_tells_prometheus_on_the_loopback_only(workspace: Workspace) -> None:
    import socket

    telemetry.RECORDER.drain()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/metrics"
    with Journal.open(workspace, settings=Settings(interval=0.01, metrics_port=port)) as one:
        for _ in range(3):
            with telemetry.operation("risk", "check"):
                pass
        with pytest.raises(ZeroDivisionError), telemetry.operation("risk", "check"):
            1 / 0  # noqa: B018
        one.flush()
        text = urllib.request.urlopen(url).read().decode()
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert lines["mia_journal_healthy"] == "1.0"
        assert float(lines["mia_journal_accepted_rows_total"]) == one.stats()["accepted"] == 4
        assert lines['mia_operation_seconds_count{component="risk",operation="check"}'] == "4.0"
        assert lines['mia_operation_failures_total{component="risk",operation="check"}'] == "1.0"
        assert float(lines["mia_memory_megabytes"]) > 1
        assert one._metrics is not None
        assert one._metrics._server.server_address[0] == "127.0.0.1"
        other = Workspace(workspace.root / "other")
        with Journal.open(other, settings=Settings(interval=0.01, metrics_port=port)) as second:
            assert second.health() == "ok", "a port that is taken stops no journal"
            assert second.query("SELECT code FROM alerts")["code"].to_list() == ["METRICS_UNAVAILABLE"]
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url)


def test_the_interpreter_is_shared_with_many_readers_and_writers(opened: Journal) -> None:
    """Queries, exports and appends at once: nothing is lost and nothing hangs."""
    faults: list[BaseException] = []

    def guarded(work: Any) -> threading.Thread:
        def body() -> None:
            try:
                work()
            except BaseException as error:
                faults.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        return thread

    def write() -> None:
        for number in range(300):
            opened.append("decisions", decision(f"T{number}"))

    def read() -> None:
        for _ in range(5):
            opened.query("SELECT count(*) FROM decisions")
            opened.export(["decisions"])

    for thread in [guarded(write), guarded(write), guarded(read)]:
        thread.join(60)
        assert not thread.is_alive()
    assert not faults
    assert opened.query("SELECT count(*) FROM decisions").item() == 600
    shutil.rmtree(opened.workspace.data / "logs")
    opened.export()
    assert len((opened.workspace.data / "logs/trading/decision_log.csv").read_text().splitlines()) == 601
    assert json.loads((opened.workspace.data / "journal/exports.json").read_text())
    assert segments.listing(opened.workspace.data / "journal")
