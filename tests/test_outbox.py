"""Rows of a process that does not hold the journal: the kill switch and levels beside a running engine."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import polars as pl
import pytest
from test_risk_support import ROOT
from typer.testing import CliRunner

from mia_fast import journal, recalculate_levels
from mia_fast.cli.commands import app
from mia_fast.errors import JournalError
from mia_fast.journal import outbox
from mia_fast.risk import State, desk, detach
from mia_fast.workspace import Workspace

HOLDER = """
import sys
from mia_fast import journal
from mia_fast.workspace import Workspace
held = journal.Journal.open(Workspace.current(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
held.close()
"""


@contextlib.contextmanager
def holder(workspace: Workspace) -> Iterator[subprocess.Popen[str]]:
    """A process that has the journal open until the end of the block."""
    command = [sys.executable, "-c", HOLDER, str(workspace.root)]
    env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}:{ROOT / 'models'}", "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(30) == 0


@pytest.fixture
def here(workspace: Workspace) -> Iterator[Workspace]:
    yield workspace
    detach(workspace)
    if journal.is_open(workspace):
        journal.of(workspace).close()


def test_the_kill_switch_and_the_reset_work_beside_an_engine_and_lose_no_line(here: Workspace) -> None:
    runner = CliRunner()
    with holder(here) as process:
        halted = runner.invoke(app, ["risk", "halt", "--reason", "A. Smith: venue trouble"])
        assert halted.exit_code == 0, halted.output
        assert halted.output.startswith("halted: entries are blocked")
        said = " ".join(halted.output.split())
        assert f"in use by process {process.pid}: the journal's lines wait in data/journal/outbox" in said
        assert json.loads((here.data / "risk_state.json").read_text())["latched"] is True
        reset = runner.invoke(app, ["risk", "reset", "--reason", "A. Smith: venue is back"])
        assert reset.exit_code == 0, reset.output
        assert "cleared the latch" in reset.output
        assert desk(here).controller.state is State.DISARMED
        with pytest.raises(JournalError, match=f"in use by process {process.pid}"):
            journal.log_decision("T1", "buy", 0.5, None)  # it promises the line itself
    assert not list(outbox.folder_of(here).iterdir())  # the holder took them, the last at its close
    held = journal.of(here)
    penalties = held.query("SELECT code, penalty_active, detail FROM penalties ORDER BY sequence").rows()
    assert [row[:2] for row in penalties] == [("RISK_HALT", True), ("RISK_RESET", False)]
    assert penalties[1][2] == "A. Smith: venue is back"
    alerts = held.query("SELECT code, message FROM alerts WHERE source = 'risk' ORDER BY sequence").rows()
    assert [code for code, _ in alerts] == ["RISK_HALT", "RISK_HALT", "RISK_RESET"]
    assert "A. Smith: venue trouble" in alerts[1][1]


def test_levels_beside_an_engine_come_back_once_with_a_note(here: Workspace) -> None:
    frame = pl.DataFrame({"call_iv_atm": [0.25], "option_skew": [0.05]})
    with holder(here) as process:
        found = recalculate_levels(frame)
        assert found["iv_atm"] == 0.25
        assert found.notes[-1].startswith(f"the journal is in use by process {process.pid}")
        assert list((here.data / "options_snapshots").iterdir()) == [found.path]
    rows = journal.of(here).query("SELECT path, iv_atm, json_extract_string(detail, 'status') FROM levels").rows()
    assert rows == [(found.path.relative_to(here.root).as_posix(), 0.25, "NO_CHAIN")]


def test_a_row_left_behind_is_taken_by_the_next_opener_in_order_and_stored_once(here: Workspace) -> None:
    for number in range(3):
        path = outbox.put(here, "alerts", _alert(f"row {number}"))
    again = path.read_text()
    assert journal.of(here).query("SELECT message FROM alerts").to_series().to_list() == ["row 0", "row 1", "row 2"]
    assert not path.exists()
    path.write_text(again)  # a crash came between taking the row and removing its file
    assert journal.of(here).query("SELECT count(*) FROM alerts").item() == 3
    assert not path.exists()


def test_a_file_that_is_no_row_is_kept_and_told_and_holds_up_nothing(here: Workspace) -> None:
    folder = outbox.folder_of(here)
    folder.mkdir(parents=True)
    for name, text in (("0.json", "{"), ("1.json", '{"table": "alerts", "row": {"mesage": 1}}'), ("2.json", "[]")):
        (folder / name).write_text(text)
    outbox.put(here, "alerts", _alert("behind them"))
    told = journal.of(here).query("SELECT code, message FROM alerts ORDER BY sequence").rows()
    assert ("A", "behind them") in told
    assert [code for code, _ in told].count("JOURNAL_OUTBOX") == 3
    assert sorted(path.name for path in folder.iterdir()) == ["0.refused", "1.refused", "2.refused"]


def test_what_cannot_wait_is_refused_at_once(here: Workspace) -> None:
    with pytest.raises(JournalError, match="no column 'mesage'"):
        outbox.put(here, "alerts", {"mesage": "x"})
    with pytest.raises(JournalError, match="cannot wait in a file"):
        row = {"timestamp": 1, "trade_id": "T", "decision": "buy", "signal_score": 0.5, "context": np.zeros(2)}
        outbox.put(here, "decisions", row)
    assert not outbox.folder_of(here).exists() or not list(outbox.folder_of(here).iterdir())


def _alert(message: str) -> dict[str, object]:
    return {"timestamp": 1_700_000_000_000_000_000, "priority": 2, "code": "A", "message": message}
