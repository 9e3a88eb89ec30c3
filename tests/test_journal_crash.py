"""The journal under kill -9, full disks, broken files and second engines."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mia_fast.errors import JournalError
from mia_fast.journal import Journal, Settings, segments
from mia_fast.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = int(os.environ.get("MIA_TORTURE_ROUNDS", "10"))
START = 1_747_144_800_000_000_000
QUICK = Settings(interval=0.01)


def child(*arguments: object) -> subprocess.Popen[str]:
    path = os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "models"))
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "crash_journal.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )


def decision(name: str, **more: object) -> dict[str, object]:
    return {"timestamp": START, "trade_id": name, "decision": "buy", "signal_score": 0.5, **more}


def crash(journal: Journal, *, drained: bool = False) -> None:
    """Leave the files as kill -9 would: no drain, no checkpoint, no clean end."""
    if drained:
        journal.flush()
    journal._fail("killed by the test")
    journal._ending.set()
    assert journal._thread is not None
    journal._thread.join()
    journal._thread = None
    journal._segment.close()
    assert journal._database is not None
    journal._database.close()
    journal._guard.release()
    from mia_fast.journal import store

    store._forget(journal)


def stalled(workspace: Workspace, **settings: object) -> Journal:
    """A journal whose writer sleeps: rows stay in the segments until someone flushes."""
    return Journal.open(workspace, settings=Settings(interval=3600, **settings))  # type: ignore[arg-type]


def names(journal: Journal) -> list[str]:
    return journal.query("SELECT trade_id FROM decisions ORDER BY sequence")["trade_id"].to_list()


def segment_files(workspace: Workspace) -> list[Path]:
    return [path for _, path in segments.listing(workspace.data / "journal")]


def quarantined(workspace: Workspace) -> set[str]:
    return {path.name for path in (workspace.data / "quarantine").rglob("*") if path.is_file()}


def test_kill_9_under_load_loses_and_doubles_nothing(workspace: Workspace, tmp_path: Path) -> None:
    rng = random.Random(20250513)
    acknowledged = tmp_path / "acknowledged"
    acknowledged.touch()
    for number in range(ROUNDS):
        process = child("load", workspace.root, acknowledged, f"round{number}")
        if number % 3 == 0:
            time.sleep(rng.uniform(0.2, 0.8))  # somewhere in start-up, which is recovery
        else:
            await_growth(acknowledged, process)
            time.sleep(rng.uniform(0.0, 0.5))  # somewhere in the load
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if rng.random() < 0.5:
            continue  # the next child recovers, and may be killed doing it
        check_acknowledged(workspace, acknowledged)
    check_acknowledged(workspace, acknowledged)
    assert len(acknowledged.read_text().splitlines()) > ROUNDS // 3


def await_growth(path: Path, process: subprocess.Popen[str]) -> None:
    size = path.stat().st_size
    deadline = time.monotonic() + 60
    while path.stat().st_size == size:
        assert process.poll() is None, "the child ended by itself"
        assert time.monotonic() < deadline, "the child never wrote"
        time.sleep(0.005)


def check_acknowledged(workspace: Workspace, acknowledged: Path) -> None:
    lines = [line.split() for line in acknowledged.read_text().splitlines() if line.endswith(tuple("0123456789"))]
    with Journal.open(workspace, settings=QUICK) as journal:
        assert journal.health() == "ok", journal.messages
        frame = journal.query("SELECT sequence, trade_id FROM decisions")
        stored = dict(zip(frame["trade_id"], frame["sequence"], strict=True))
        assert len(stored) == len(frame), "a row is there twice"
        lost = [name for sequence, name in lines if stored.get(name) != int(sequence)]
        assert not lost[:5]
    assert len(segment_files(workspace)) == 1


def test_a_second_process_is_refused_until_the_first_is_killed(workspace: Workspace) -> None:
    process = child("hold", workspace.root)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    with pytest.raises(JournalError, match=f"in use by process {process.pid}") as refusal:
        Journal.open(workspace)
    assert refusal.value.hint
    process.send_signal(signal.SIGKILL)
    process.communicate()
    Journal.open(workspace).close()


def test_a_full_disk_is_an_error_and_costs_nothing_that_was_acknowledged(workspace: Workspace) -> None:
    process = child("full", workspace.root)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    accepted = output.splitlines()
    assert 10 < len(accepted) < 401
    with Journal.open(workspace, settings=QUICK) as journal:
        assert names(journal) == accepted
        assert journal.health() == "ok"


def test_a_torn_tail_is_cut_at_every_offset(workspace: Workspace) -> None:
    journal = stalled(workspace)
    journal.append("decisions", decision("first"))
    whole = journal._segment.size
    journal.append("decisions", decision("second", context=[1.0]))
    path, size = journal._segment.path, journal._segment.size
    crash(journal)
    data = path.read_bytes()
    assert not any(data[size:])
    assert len(data) > size, "the reserve"
    data = data[:size]
    for end in range(whole, size):
        for reserve in (b"", bytes(5), bytes(4000)):
            content = read_bytes(path, data[:end] + reserve)
            assert [row[0] for row in content.rows] == [1]
            assert content.torn == len(data[:end].rstrip(b"\0")) - whole
            assert not content.damage
    assert [row[0] for row in read_bytes(path, data + bytes(4000)).rows] == [1, 2]
    path.write_bytes(data[:-5] + bytes(4000))
    with Journal.open(workspace, settings=QUICK) as journal:
        assert names(journal) == ["first"]
        assert journal.health() == "ok"
        assert any("unfinished row" in message for message in journal.messages)
        assert journal.append("decisions", decision("third")) > 1
        assert names(journal) == ["first", "third"]
        assert journal.query("SELECT code FROM alerts")["code"].to_list() == ["JOURNAL_RECOVERY"] * 2
    assert path.name in quarantined(workspace)


def read_bytes(path: Path, data: bytes) -> segments.Content:
    other = path.with_name("other")
    other.write_bytes(data)
    return segments.read(other)


def test_no_flipped_bit_yields_a_wrong_row_or_passes_unnoticed(tmp_path: Path) -> None:
    columns = {
        "penalties": ("timestamp", "penalty_active", "overtrade_risk_score", "code", "detail", "run_id", "event_id")
    }
    segment = segments.Segment(tmp_path / "segment-00000001.journal", 1, columns)
    for number in range(1, 4):
        values = [START, True, number / 3, None, "é", None, None]
        segment.append(number, segments.encode("penalties", values))
    segment.close()
    data = segment.path.read_bytes() + bytes(100)
    sound = read_bytes(segment.path, data)
    assert not sound.damage
    assert not sound.torn
    assert [row[0] for row in sound.rows] == [1, 2, 3]
    for offset in range(len(data)):
        damaged = bytearray(data)
        damaged[offset] ^= 1 << (offset % 8)
        content = read_bytes(segment.path, bytes(damaged))
        assert content.damage or content.torn
        assert len(content.rows) >= 2
        assert all(row in sound.rows for row in content.rows)


def test_a_damaged_row_in_the_middle_is_quarantined_and_the_rest_saved(workspace: Workspace) -> None:
    journal = stalled(workspace)
    for name in "abc":
        journal.append("decisions", decision(name))
    path = journal._segment.path
    crash(journal)
    data = bytearray(path.read_bytes())
    data[data.index(b"\xa1b") + 1] ^= 1
    path.write_bytes(data)
    with Journal.open(workspace, settings=QUICK) as journal:
        assert names(journal) == ["a", "c"]
        assert "rows 2 to 2" in journal.health()
    assert (next((workspace.data / "quarantine").iterdir()) / path.name).read_bytes() == data
    with Journal.open(workspace, settings=QUICK) as journal:
        assert "rows 2 to 2" in journal.health(), "an incident stays open over a restart"
        with pytest.raises(JournalError, match="empty reason"):
            journal.acknowledge(" ")
        journal.acknowledge("compared with the broker's statement")
        assert journal.health() == "ok"
        messages = journal.query("SELECT message FROM alerts")["message"].to_list()
        assert any("broker's statement" in message for message in messages)
    with Journal.open(workspace, settings=QUICK) as journal:
        assert journal.health() == "ok"
        assert not journal.messages


def test_a_damaged_last_row_is_an_incident_too(workspace: Workspace) -> None:
    journal = stalled(workspace)
    for name in "ab":
        journal.append("decisions", decision(name))
    path, size = journal._segment.path, journal._segment.size
    crash(journal)
    data = bytearray(path.read_bytes())
    data[size - 3] ^= 1
    path.write_bytes(data)
    with Journal.open(workspace, settings=QUICK) as journal:
        assert names(journal) == ["a"]
        assert "rows after 1 may be lost" in journal.health()


def test_a_row_drained_before_the_crash_is_not_doubled(workspace: Workspace) -> None:
    journal = stalled(workspace)
    journal.append("decisions", decision("a"))
    journal.flush()
    journal.append("decisions", decision("b"))
    crash(journal)
    with Journal.open(workspace, settings=QUICK) as journal:
        assert names(journal) == ["a", "b"]
        assert "1 rows that the last run had accepted" in journal.messages[0]


def damage(path: Path, offset: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    if offset is None:
        data[:] = b"not a database " * 1000
    else:
        data[offset] ^= 0xFF
    path.write_bytes(data)


def test_a_damaged_database_is_set_aside_and_rebuilt_from_the_segments(workspace: Workspace) -> None:
    with stalled(workspace) as journal:
        journal.append("decisions", decision("old"))
    csv = workspace.data / "logs" / "trading" / "decision_log.csv"
    before = csv.read_bytes()
    journal = stalled(workspace)
    journal.append("decisions", decision("new"))
    crash(journal)
    damage(workspace.data / "mia.duckdb")
    broken = (workspace.data / "mia.duckdb").read_bytes()
    with Journal.open(workspace, settings=QUICK) as journal:
        assert names(journal) == ["new"]
        assert "mia.duckdb is damaged" in journal.health()
        assert "rows 1 to 1 are in no sound segment" in journal.health()
    assert {"mia.duckdb", "decision_log.csv"} <= quarantined(workspace)
    folder = next((workspace.data / "quarantine").iterdir())
    assert (folder / "mia.duckdb").read_bytes() == broken
    assert (folder / "decision_log.csv").read_bytes() == before
    with Journal.open(workspace, settings=QUICK) as journal:
        assert journal.health() != "ok"
        assert names(journal) == ["new"]


def test_a_damaged_write_ahead_log_loses_nothing(workspace: Workspace) -> None:
    journal = stalled(workspace)
    for number in range(200):
        journal.append("decisions", decision(f"T{number}", context=[1.0] * 50))
        if number % 50 == 49:
            journal.flush()
    crash(journal)
    log = workspace.data / "mia.duckdb.wal"
    damage(log, log.stat().st_size // 2)
    with Journal.open(workspace, settings=QUICK) as journal:
        assert names(journal) == [f"T{number}" for number in range(200)]
        assert journal.health() == "ok"
        assert any("mia.duckdb.wal was damaged" in message for message in journal.messages)
    assert "mia.duckdb.wal" in quarantined(workspace)


def damage_noticed_late(workspace: Workspace) -> bool:
    """Open and read; True if reading failed (and blocks), False if start-up had noticed or nothing was hit."""
    journal = Journal.open(workspace, settings=QUICK)
    try:
        if journal.health() == "ok":
            try:
                journal.query("SELECT max(hash(COLUMNS(*))) FROM decisions")
            except JournalError:
                assert "damaged" in journal.health()
                return True
        return False
    finally:
        crash(journal)
        if journal._incidents.has("lost"):
            (workspace.data / "journal" / "incidents.json").unlink()


def test_damage_that_shows_only_when_read_blocks_and_is_repaired_at_the_next_start(workspace: Workspace) -> None:
    with stalled(workspace) as journal:
        for number in range(3000):
            journal.append("decisions", decision(f"{number:x}" * 20, context=[number * 1.1] * 20))
    path = workspace.data / "mia.duckdb"
    pristine = path.read_bytes()
    rng = random.Random(5)
    for _ in range(12):
        damaged = bytearray(pristine)
        damaged[rng.randrange(12_288, len(damaged))] ^= 0xFF
        path.write_bytes(damaged)
        if damage_noticed_late(workspace):
            break
    else:
        pytest.fail("none of the flips met a data block")
    with Journal.open(workspace, settings=QUICK) as journal:
        assert "set aside" in journal.health()
        assert names(journal) == []
    assert "mia.duckdb" in quarantined(workspace)


def test_a_database_that_vanished_is_an_incident(workspace: Workspace) -> None:
    with stalled(workspace) as journal:
        journal.append("decisions", decision("old"))
    (workspace.data / "mia.duckdb").unlink()
    with Journal.open(workspace, settings=QUICK) as journal:
        assert "rows 1 to 1" in journal.health()
        assert journal.append("decisions", decision("new")) > 1, "a sequence number is never used twice"
    assert "decision_log.csv" in quarantined(workspace)


def test_segments_that_vanished_are_an_incident(workspace: Workspace) -> None:
    with stalled(workspace) as journal:
        journal.append("decisions", decision("old"))
    for path in segment_files(workspace):
        path.unlink()
    with Journal.open(workspace, settings=QUICK) as journal:
        assert "rows accepted after 1 may be lost" in journal.health()
        assert journal.append("decisions", decision("new")) > 1


def test_logs_of_other_programs_are_not_overwritten(workspace: Workspace) -> None:
    log = workspace.data / "logs" / "trading" / "decision_log.csv"
    log.parent.mkdir(parents=True)
    log.write_text("the desk's own, of last year\n")
    with Journal.open(workspace, settings=QUICK) as journal:
        assert journal.health() == "ok"
        assert "older logs were moved" in journal.messages[0]
    kept = next((workspace.data / "quarantine").iterdir()) / "decision_log.csv"
    assert kept.read_text() == "the desk's own, of last year\n"
    assert log.read_text().startswith("timestamp,trade_id")


@pytest.mark.parametrize("place", ["data", "data/journal", "data/mia.duckdb"])
def test_a_place_that_cannot_be_written(workspace: Workspace, place: str) -> None:
    path = workspace.root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if place.endswith("duckdb"):
        path.mkdir()
    else:
        path.write_text("in the way")
    with pytest.raises(JournalError) as refusal:
        Journal.open(workspace)
    assert refusal.value.hint
    assert str(path) in str(refusal.value)
    assert path.exists()


def test_a_database_another_program_holds(workspace: Workspace) -> None:
    Journal.open(workspace, settings=QUICK).close()
    code = "import duckdb,sys,time; c=duckdb.connect(sys.argv[1]); print('open',flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(workspace.data / "mia.duckdb")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        waited: list[float] = []
        with pytest.raises(JournalError, match="lock") as refusal:
            Journal.open(workspace, settings=Settings(pause=waited.append))
        assert "left as it is" in str(refusal.value)
        assert waited == [2.0, 4.0, 8.0]
        with pytest.raises(JournalError, match="lock"):
            Journal.open(workspace, settings=Settings(pause=waited.append), wait=False)
        assert len(waited) == 3, "a live path does not wait"

        def let_go(_: float) -> None:
            process.kill()
            process.wait()

        with Journal.open(workspace, settings=Settings(interval=0.01, pause=let_go)) as journal:
            assert journal.health() == "ok"
    finally:
        process.kill()
        process.communicate()
    assert not (workspace.data / "quarantine").exists()


def test_a_half_made_database_of_a_killed_first_start(workspace: Workspace) -> None:
    workspace.data.mkdir(parents=True)
    (workspace.data / "mia.duckdb.new").write_bytes(b"half")
    with Journal.open(workspace, settings=QUICK) as journal:
        assert journal.health() == "ok"


def test_a_damaged_incident_file_is_refused(workspace: Workspace) -> None:
    Journal.open(workspace, settings=QUICK).close()
    (workspace.data / "journal" / "incidents.json").write_text("{")
    with pytest.raises(JournalError, match="cannot be read"):
        Journal.open(workspace)
    (workspace.data / "journal" / "incidents.json").write_text(json.dumps({"open": []}))
    Journal.open(workspace, settings=QUICK).close()


def test_a_segment_is_made_of_the_spare_and_read_after_a_crash(workspace: Workspace) -> None:
    journal = stalled(workspace, segment_bytes=8192, reserve_bytes=8192)
    spare = workspace.data / "journal" / "segment.spare"
    count = 0
    while journal._segment.size < 5000:
        count = journal.append("decisions", decision(f"{count:0100}"))
    assert not spare.exists()
    journal.flush()
    assert spare.stat().st_size == 8192
    first = journal._segment.path
    while journal._segment.path == first:
        count = journal.append("decisions", decision(f"{count:0100}"))
    second = journal._segment.path
    assert first.stat().st_size > 8000
    assert second.stat().st_size == 8192, "rows, and zeros for the rows to come"
    assert not spare.exists()
    journal.append("decisions", decision("last", context=[1.0] * 2000))  # beyond the reserve
    assert second.stat().st_size > 16_000
    spare.write_bytes(b"what the end of a process left")
    crash(journal)
    with Journal.open(workspace, settings=QUICK) as journal:
        assert names(journal) == [f"{number:0100}" for number in range(count)] + ["last"]
        assert journal.health() == "ok"
        assert not quarantined(workspace)
        assert not spare.exists()


def test_the_reserve_is_given_back_at_the_end(workspace: Workspace) -> None:
    with Journal.open(workspace, settings=Settings(interval=3600, reserve_bytes=1 << 20, segment_bytes=1 << 21)) as one:
        assert one._segment.path.stat().st_size == 1 << 20
        while one._segment.size < 600_000:
            one.append("decisions", decision("T", context=[1.0] * 5000))
        one.flush()
        assert (workspace.data / "journal" / "segment.spare").stat().st_size == 1 << 21
    sizes = {path.name: path.stat().st_size for path in (workspace.data / "journal").glob("segment*")}
    assert len(sizes) == 1
    assert max(sizes.values()) < 10_000


def test_without_room_for_a_reserve_rows_are_written_all_the_same(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = segments.shutil.disk_usage(workspace.root.parent)
    monkeypatch.setattr(segments.shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    journal = stalled(workspace)
    size = journal._segment.size
    assert journal._segment.path.stat().st_size == size
    journal.append("decisions", decision("a"))
    journal.flush()
    assert not (workspace.data / "journal" / "segment.spare").exists()
    crash(journal)
    with Journal.open(workspace, settings=QUICK) as journal:
        assert names(journal) == ["a"]
        assert not quarantined(workspace)
