"""Files, clock, workspace, errors: what every room stands on."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mia_fast import clock, files
from mia_fast.errors import MiaError, WorkspaceError
from mia_fast.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        files.write_json(path, {"x": math.nan})
    with pytest.raises(ZeroDivisionError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert json.loads(path.read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match="File too large"):
            files.write_text(path, "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_killed_writer_never_leaves_part_of_a_file_under_the_name(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    code = (
        "import sys; from pathlib import Path; from mia_fast import files\n"
        "k = 0\n"
        "while True:\n"
        "    files.write_text(Path(sys.argv[1]), str(k % 10) * 200_000)\n"
        "    k += 1\n"
        "    print(k, flush=True)\n"
    )
    places = os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "models"))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], env={**os.environ, "PYTHONPATH": places}, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        for _ in range(20):
            child.stdout.readline()
        child.kill()
    text = path.read_text()
    assert len(text) == 200_000
    assert len(set(text)) == 1


def test_written_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a", "x", durable=True)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@given(st.integers(min_value=0, max_value=4_000_000_000_000_000_000))
def test_instants_survive_the_round_trip(ns: int) -> None:
    whole = ns - ns % 1000
    assert clock.from_datetime(clock.to_datetime(ns)) == whole
    assert dt.datetime.fromisoformat(clock.iso(ns)) == clock.to_datetime(ns)
    stamp = dt.datetime.strptime(clock.file_stamp(ns), "%Y%m%dT%H%M%S_%fZ").replace(tzinfo=dt.UTC)
    assert stamp == clock.to_datetime(ns)


def test_contract_forms_of_an_instant() -> None:
    ns = clock.from_datetime(dt.datetime(2025, 5, 13, 14, 0, 0, 123456, dt.UTC))
    assert clock.iso(ns) == "2025-05-13T14:00:00.123456Z"
    assert clock.file_stamp(ns) == "20250513T140000_123456Z"
    with pytest.raises(ValueError, match="has no time zone"):
        clock.from_datetime(dt.datetime(2025, 5, 13))


def test_workspace_from_argument_environment_and_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MIA_WORKSPACE", raising=False)
    assert Workspace.current().root == tmp_path
    monkeypatch.setenv("MIA_WORKSPACE", str(tmp_path / "b"))
    assert Workspace.current().root == tmp_path / "b"
    assert Workspace.current(tmp_path / "c").root == tmp_path / "c"
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="a file, not a folder"):
        Workspace.current(tmp_path / "file")


def test_an_error_says_what_where_what_to_do_and_what_follows() -> None:
    error = MiaError("broken", where="here:3", hint="mend it", then="nothing was started")
    assert str(error) == "here:3: broken\nHint: mend it\nNext: nothing was started"
    assert str(MiaError("broken")) == "broken"
