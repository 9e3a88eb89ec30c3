"""The market memory under broken files, full disks, other processes and kill -9."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from crash_memory import MANIFEST, START, opened, state

import mia_fast
from mia_fast import memory
from mia_fast.errors import MarketMemoryError
from mia_fast.memory import MemoryStore, memory_config
from mia_fast.risk.desk import desk, detach
from mia_fast.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = int(os.environ.get("MIA_TORTURE_ROUNDS", "4"))


@pytest.fixture(autouse=True)
def _closed(workspace: Workspace) -> Iterator[None]:
    yield
    memory.forget(workspace)
    detach(workspace)


def child(*arguments: object, **options: object) -> subprocess.Popen[str]:
    path = os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "models"))
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "crash_memory.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


@contextlib.contextmanager
def raw(path: Path, **options: object) -> Iterator[sqlite3.Connection]:
    """Another program's connection."""
    with contextlib.closing(sqlite3.connect(path, **options)) as db, db:  # type: ignore[call-overload]
        yield db


def quick(workspace: Workspace) -> MemoryStore:
    """A memory that does not wait for locks."""
    config = memory_config(workspace).model_copy(update={"busy_seconds": 0.0})
    return MemoryStore(workspace.data, MANIFEST, config)


def reason(call: object, *arguments: object, **named: object) -> str:
    with pytest.raises(MarketMemoryError) as refusal:
        call(*arguments, **named)  # type: ignore[operator]
    assert refusal.value.hint
    return refusal.value.reason


def sound(store: MemoryStore) -> None:
    """Whole rows only: every state has its outcome and its vector, and says the same as they do."""
    assert store.check().faults == ()
    rows, profits, _, _, _ = store.states()
    assert len(rows) == store.counts().stored
    assert np.array_equal(rows, np.array([state(int(profit)) for profit in profits]))


def blocked(workspace: Workspace) -> bool:
    """As the plain functions of a desk see it, with a calendar that blocks nothing."""
    workspace.data.mkdir(exist_ok=True)
    (workspace.data / "macro_events.csv").write_text("start_time,type,impact\n2099-01-01T00:00:00Z,CPI,0.8\n")
    return mia_fast.block_trade(False, workspace=workspace)


# --- files


def test_a_new_folder_gets_an_empty_memory_and_is_not_blocked_by_it(workspace: Workspace) -> None:
    assert not blocked(workspace)
    assert not mia_fast.stop_trading(0.049)
    assert (workspace.data / "market_memory.db").is_file()
    assert memory.of(workspace).counts().stored == 0


def test_a_memory_that_is_gone_blocks_and_is_not_made_anew(workspace: Workspace) -> None:
    path = mia_fast.setup_database()
    assert not blocked(workspace)
    path.unlink()
    assert blocked(workspace)
    assert mia_fast.stop_trading(0.0)
    assert desk(workspace).controller.memory_fault
    assert desk(workspace).controller.latch is None
    assert reason(mia_fast.setup_database) == "gone"
    memory.forget(workspace)
    assert reason(mia_fast.setup_database) == "gone"
    assert not path.exists()


def test_a_memory_that_comes_back_is_taken_up_again(workspace: Workspace, tmp_path: Path) -> None:
    store = opened(workspace)
    store.store(state(1), 1.0, at_ns=START)
    store.close()
    store = opened(workspace)
    assert len(store.nearest(state(1), 5, "all").profits) == 1
    backup = tmp_path / "backup.db"
    with raw(backup) as copy:
        store._connection().backup(copy)
    store.store(state(2), 2.0, at_ns=START)
    for path in workspace.data.glob("market_memory.db*"):
        path.unlink()
    assert reason(store.nearest, state(1), 5) == "gone"
    shutil.copy(backup, store.path)
    assert store.nearest(state(1), 5, "all").profits.tolist() == [1.0]
    sound(store)


@pytest.mark.parametrize("content", [b"", b"this is no database\n" * 500])
def test_an_empty_or_foreign_file_where_a_memory_was_is_damage(workspace: Workspace, content: bytes) -> None:
    path = mia_fast.setup_database()
    memory.forget(workspace)
    for file in workspace.data.glob("market_memory.db*"):
        file.unlink()
    path.write_bytes(content)
    assert reason(mia_fast.setup_database) == "damaged"
    assert blocked(workspace)
    assert path.read_bytes() == content, "a person must still be able to look at it"


def test_a_missing_table_is_damage(workspace: Workspace) -> None:
    store = opened(workspace)
    with raw(store.path) as other:
        other.execute("DROP TABLE clusters")
    assert reason(store.store, state(1), 1.0, at_ns=START) == "damaged"
    assert "clusters" in store.check().faults[0]
    assert reason(store.probe) == "damaged"
    store.close()
    assert reason(opened, workspace) == "damaged"
    with raw(store.path) as other:
        other.execute("CREATE TABLE clusters (a, b)")
    assert reason(opened, workspace) == "damaged"


def test_a_table_of_ours_that_is_missing_is_damage(workspace: Workspace) -> None:
    store = opened(workspace)
    store.close()
    with raw(store.path) as other:
        other.execute("DROP TABLE vectors")
    assert reason(opened, workspace) == "damaged"


def test_damaged_pages_are_found(workspace: Workspace) -> None:
    store = opened(workspace)
    for number in range(300):
        store.store(state(number), float(number), at_ns=START)
    store._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    content = bytearray(store.path.read_bytes())
    for page in range(20, len(content) // 4096 - 1):
        content[page * 4096 : page * 4096 + 200] = b"\xa5" * 200
    store.path.write_bytes(bytes(content))
    broken = opened(workspace)
    assert reason(broken.nearest, state(1), 5) == "damaged"
    assert reason(broken.purge, START, vacuum=False) == "damaged"
    assert broken.check().faults


def test_a_file_of_a_newer_version_is_left_alone(workspace: Workspace) -> None:
    store = opened(workspace)
    store.close()
    with raw(store.path) as other:
        other.execute("UPDATE schema_version SET version = 99")
    assert reason(opened, workspace) == "newer"


def test_a_locked_file_refuses_writes_and_blocks_when_it_cannot_be_read(workspace: Workspace) -> None:
    store = quick(workspace)
    store.store(state(1), 1.0, at_ns=START)
    with raw(store.path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        assert reason(store.store, state(2), 2.0, at_ns=START) == "locked"
        assert len(store.nearest(state(1), 3, "all").profits) == 1, "readers do not wait for writers"
        other.execute("ROLLBACK")
    store.close()
    config = workspace.root / "config"
    config.mkdir()
    text = workspace.config("memory.yaml").read_text().replace("busy_seconds: 1.0", "busy_seconds: 0.0")
    (config / "memory.yaml").write_text(text)
    assert not blocked(workspace)
    memory.forget(workspace)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    assert blocked(workspace)
    other.close()
    assert not blocked(workspace)
    store = quick(workspace)
    sound(store)


def test_a_lock_is_tried_again_as_the_contract_says(workspace: Workspace) -> None:
    waits: list[float] = []
    config = memory_config(workspace).model_copy(update={"busy_seconds": 0.0})
    other = sqlite3.connect(opened(workspace).path, isolation_level=None)

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3 and other.in_transaction:
            other.execute("ROLLBACK")

    store = MemoryStore(workspace.data, MANIFEST, config, sleep=sleep)
    other.execute("BEGIN IMMEDIATE")
    assert store.store(state(1), 1.0, at_ns=START) == 1
    assert waits == [2.0, 4.0, 8.0]
    other.execute("BEGIN IMMEDIATE")
    waits[:] = [0.0] * 3
    assert reason(store.store, state(2), 2.0, at_ns=START) == "locked"
    assert waits[3:] == [2.0, 4.0, 8.0]
    waits.clear()
    assert reason(store.store, state(2), float("nan"), at_ns=START) == "input"
    assert waits == [], "a data error is never tried again"
    other.close()


def test_a_read_only_memory_answers_and_takes_nothing(workspace: Workspace) -> None:
    folder = Path(tempfile.mkdtemp(prefix="mia-read-only-"))
    try:
        store = opened(Workspace(folder))
        store.store(state(4), 4.0, at_ns=START)
        store.close()
        folder.chmod(0o755)
        (folder / "data").chmod(0o777)
        for path in (folder / "data").iterdir():
            path.chmod(0o444)
        code = (
            "import os, sys; sys.path[:0] = sys.argv[2:]\n"
            "from crash_memory import *\n"
            "with opened(Workspace(Path(sys.argv[1]) / 'other')) as other:\n"
            "    other.store(state(4), 4.0, at_ns=START)\n"
            "    other.nearest(state(4), 1)\n"
            "if os.geteuid() == 0: os.setegid(65534); os.seteuid(65534)\n"
            "memory = opened(Workspace(Path(sys.argv[1])))\n"
            "print(memory.nearest(state(4), 1, 'all').profits.tolist())\n"
            "memory.probe()\n"
            "writes = lambda: memory.store(state(5), 5.0, at_ns=START), lambda: memory.purge(START, vacuum=True)\n"
            "for write in writes:\n"
            "    try: write()\n"
            "    except MarketMemoryError as error: print(error.reason)\n"
        )
        paths = [str(ROOT / part) for part in (".", "kernels", "models", "tests")]
        found = subprocess.run(
            [sys.executable, "-c", code, str(folder), *paths],
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.stdout.splitlines() == ["[4.0]", "read_only", "read_only"], found.stderr
    finally:
        (folder / "data").chmod(0o755)
        shutil.rmtree(folder)


def test_a_full_disk_refuses_the_row_and_keeps_the_others(workspace: Workspace) -> None:
    process = child("full", workspace.root)
    out, _ = process.communicate(timeout=120)
    stored, why, compared, faults = out.split()
    assert int(stored) > 5
    assert why in ("full", "io")
    assert int(compared) == int(stored) + 1, "with room again it goes on"
    assert int(faults) == 0
    store = opened(workspace)
    assert store.counts().stored == int(compared)
    assert store.check().faults == ()


# --- rows


def test_rows_that_cannot_be_used_are_counted_and_kept(workspace: Workspace) -> None:
    store = opened(workspace)
    store.store(state(1), 1.0, at_ns=START)
    gaps = state(2)
    gaps[5:] = np.nan
    store.store(gaps, 2.0, at_ns=START)
    other = MemoryStore(
        workspace.data, memory.MemoryManifest(MANIFEST.names, "another", "selection"), memory_config(workspace)
    )
    other.store(state(3), 3.0, at_ns=START)
    with raw(store.path) as db:
        rows = [
            ("{bad", "x"),
            ("[1, 2]", "2025-05-13 14:00:00"),
            (None, None),
            ('{"feature_0": "text"}', "?"),
            ("{}", ""),
        ]
        db.executemany("INSERT INTO clusters (event_type, features, timestamp) VALUES ('trade', ?, ?)", rows)
        db.execute("UPDATE vectors SET state = x'00' WHERE cluster_id = 3")
        db.execute("UPDATE vectors SET manifest_id = 1 WHERE cluster_id = 3")
    counts = store.counts()
    assert (counts.stored, counts.compared, counts.incomplete, counts.unreadable) == (8, 1, 2, 5)
    assert other.counts().other_manifest == 2
    assert store.nearest(state(1), 9, "all").profits.tolist() == [1.0]
    report = store.check()
    assert report.faults == ()
    assert any("not JSON" in note for note in report.notes)
    done = store.purge(START, vacuum=False)
    assert (done.removed, done.kept, done.undated) == (0, 8, 4)


def test_orphans_are_a_fault(workspace: Workspace) -> None:
    store = opened(workspace)
    with raw(store.path) as db:
        db.execute("INSERT INTO outcomes VALUES (77, 1.0, 0, NULL, '', NULL)")
    assert "outcomes" in store.check().faults[0]


def test_what_another_program_removes_leaves_no_half_of_a_row(workspace: Workspace) -> None:
    store = opened(workspace)
    for number in range(30):
        store.store(state(number), float(number), at_ns=START)
    assert store.nearest(state(7), 1, "all").profits.tolist() == [7.0]
    with raw(store.path) as old:
        old.execute("DELETE FROM clusters WHERE cluster_id = 8")
        old.execute("INSERT INTO clusters (event_type, features, timestamp) VALUES ('x', '{}', '2025-05-13 14:00:00')")
    assert store.nearest(state(7), 1, "all").profits.tolist() != [7.0]
    assert store.check().faults == ()
    store.store(state(40), 40.0, at_ns=START)
    assert store.nearest(state(40), 1, "all").profits.tolist() == [40.0]


# --- processes


def test_ten_readers_beside_a_writer(workspace: Workspace) -> None:
    writer = opened(workspace)
    for number in range(50):
        writer.store(state(number), float(number), at_ns=START)
    readers = child("read", workspace.root, 0.5, 10)
    number = 50
    while readers.poll() is None:
        writer.store(state(number), float(number), at_ns=START)
        number += 1
        if number % 100 == 0:
            writer.purge(START, vacuum=False)
    out, _ = readers.communicate()
    assert readers.returncode == 0
    told = [tuple(map(int, line.split())) for line in out.splitlines()]
    assert len(told) == 10
    assert all(asked > 0 and 50 <= seen <= number for asked, seen in told)
    sound(writer)
    assert writer.counts().stored == number


@pytest.mark.parametrize("mode", ["store", "purge"])
def test_kill_9_leaves_whole_rows_and_every_acknowledged_one(workspace: Workspace, tmp_path: Path, mode: str) -> None:
    rng = random.Random(20250513)
    acknowledged = tmp_path / "acknowledged"
    acknowledged.touch()
    for number in range(ROUNDS):
        process = child(mode, workspace.root, acknowledged)
        size, deadline = acknowledged.stat().st_size, time.monotonic() + 60
        while number % 3 and acknowledged.stat().st_size == size:
            assert process.poll() is None, "the child ended by itself"
            assert time.monotonic() < deadline, "the child never wrote"
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.3))  # somewhere in start-up, or in the load
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with opened(workspace) as store:
        sound(store)
        lines = [line.split() for line in acknowledged.read_text().splitlines(keepends=True) if line.endswith("\n")]
        assert lines
        db = store._connection()
        if mode == "store":
            held = dict(db.execute("SELECT trade_id, cluster_id FROM outcomes"))
            assert not [name for key, name in lines if held.get(name) != int(key)][:5]
        else:
            store.purge(START, vacuum=True)
            stamps = {row[0] for row in db.execute("SELECT timestamp FROM clusters")}
            assert stamps == {"2025-05-13 14:00:00"}, "young states are kept, old ones are gone"
