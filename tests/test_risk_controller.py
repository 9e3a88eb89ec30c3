"""The latch: the contract's calls, restarts, other processes, damage, faults in writing, kill -9."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_risk_support import CONFIG, MINUTE, ROOT, T0, Clock, Recorder, controller

from mia_fast import files
from mia_fast.errors import JournalError, RiskError
from mia_fast.risk import RiskController, State
from mia_fast.workspace import Workspace


def state_file(root: Path) -> dict:
    return json.loads((root / "data" / "risk_state.json").read_text())


# ---------------------------------------------------------------- the contract's calls


def test_breach_then_calm_stays_true_with_one_line_of_evidence(tmp_path):
    journal = Recorder()
    risk = controller(tmp_path, journal)
    assert risk.state is State.DISARMED
    assert risk.stop_trading(0.06) is True
    assert risk.stop_trading(0.01) is True
    assert risk.state is State.LATCHED
    (penalty,) = journal.of("penalties")
    assert (penalty["timestamp"], penalty["penalty_active"], penalty["overtrade_risk_score"]) == (T0, True, 0.0)
    (alert,) = journal.of("alerts")
    assert alert["priority"] >= 3
    assert "entries blocked, exits continue" in alert["message"]
    (row,) = journal.of("risk_snapshots")
    assert (row["drawdown"], row["drawdown_limit"], row["latched"]) == (0.06, 0.05, True)
    (path,) = (tmp_path / "data" / "risk_snapshots").iterdir()
    assert path.name == "risk_20200316T140000_000000Z.json"
    content = json.loads(path.read_text())
    assert list(content) == ["timestamp", "drawdown", "overtrade_risk_score", "penalty_active"]
    assert content == {
        "timestamp": "2020-03-16T14:00:00.000000Z",
        "drawdown": 0.06,
        "overtrade_risk_score": 0.0,
        "penalty_active": True,
    }


@pytest.mark.parametrize(
    ("drawdown", "stops"),
    [
        (0.0, False),
        (0.05, False),
        (math.nextafter(0.05, 1), True),
        (1.0, True),
        (-0.01, False),
        (math.nan, True),
        (math.inf, True),
        (-math.inf, True),
        (None, True),
        ("six", True),
        ("0.01", True),
        (False, True),
        (True, True),
        (np.False_, True),
        (np.float32(0.5), True),
        (np.float64(0.01), False),
    ],
)
def test_exceeds_means_strictly_above_and_unknown_means_stop(tmp_path, drawdown, stops):
    risk = controller(tmp_path)
    assert risk.stop_trading(drawdown) is stops
    assert (risk.state is State.LATCHED) is stops
    assert risk.penalty_active is stops


def test_a_drawdown_that_is_not_a_number_is_null_in_the_snapshot(tmp_path):
    journal = Recorder()
    assert controller(tmp_path, journal).stop_trading(math.nan)
    (path,) = (tmp_path / "data" / "risk_snapshots").iterdir()
    content = json.loads(path.read_text())
    assert content["drawdown"] is None
    assert content["penalty_active"] is True
    assert journal.of("penalties")[0]["code"] == "DRAWDOWN_UNKNOWN"


@pytest.mark.parametrize(("share", "limit"), [(None, 0.05), (0.0, 0.05), (1.0, 0.025), (0.4, 0.05 * (1 - 0.5 * 0.4))])
def test_memory_tightens_by_the_contracts_formula(tmp_path, share, limit):
    risk = controller(tmp_path, losing_share=lambda: share)
    assert risk.stop_trading(limit) is False
    assert risk.limit == limit
    assert risk.stop_trading(math.nextafter(limit, 1)) is True


def broken() -> float:
    raise OSError("the memory is locked")


@pytest.mark.parametrize("share", [broken, lambda: math.nan, lambda: 1.5, lambda: -0.1, lambda: math.inf, lambda: "x"])
def test_a_memory_that_does_not_answer_blocks_but_latches_only_a_certain_breach(tmp_path, share):
    answers = [share]
    risk = controller(tmp_path, losing_share=lambda: answers[-1]())  # noqa: PLW0108 - the answer changes
    risk.arm()
    assert risk.stop_trading(0.0) is True
    assert risk.memory_fault
    assert math.isnan(risk.limit)
    assert risk.state is State.ARMED
    answers.append(lambda: 0.0)
    assert risk.stop_trading(0.0) is False
    answers.append(share)
    assert risk.stop_trading(0.051) is True
    assert risk.state is State.LATCHED


@pytest.mark.parametrize("limit", [0.0, -0.05, 1.01, math.nan, math.inf, None, True, "0.05"])
def test_an_impossible_limit_starts_nothing(tmp_path, limit):
    with pytest.raises(RiskError, match="max_drawdown"):
        controller(tmp_path, max_drawdown=limit)


# ---------------------------------------------------------------- equity


def test_marks_follow_the_peak_and_latch(tmp_path):
    risk = controller(tmp_path)
    risk.arm()
    equity = [100_000, 110_000, 108_000, 104_500]
    assert [risk.update_equity(e, T0 + i * MINUTE) for i, e in enumerate(equity)] == [False] * 4
    assert risk.drawdown == 0.05
    assert risk.state is State.ARMED
    assert risk.update_equity(104_499.99, T0 + 4 * MINUTE) is True
    assert risk.state is State.LATCHED
    assert risk.update_equity(120_000, T0 + 5 * MINUTE) is True


@pytest.mark.parametrize("equity", [math.nan, math.inf, -math.inf, 0.0, -5.0, None, "much", True, "250000"])
def test_an_equity_without_meaning_stops(tmp_path, equity):
    risk = controller(tmp_path)
    assert risk.update_equity(equity, T0) is True
    assert risk.state is State.LATCHED


def test_a_restart_keeps_the_peak_and_is_disarmed(tmp_path):
    risk = controller(tmp_path)
    risk.arm()
    risk.update_equity(100_000, T0)
    risk.update_equity(97_000, T0 + MINUTE)
    risk.checkpoint()
    again = controller(tmp_path)
    assert again.state is State.DISARMED
    assert (again.peak, again.equity) == (100_000, 97_000)
    assert math.isnan(again.drawdown)
    assert again.update_equity(94_000, T0 + 2 * MINUTE) is True


def test_disarming_shuts_this_gate_and_is_told_once(tmp_path):
    journal = Recorder()
    risk = controller(tmp_path, journal)
    risk.disarm()
    assert [row["code"] for row in journal.of("alerts")] == []
    risk.arm()
    risk.disarm()
    risk.disarm()
    assert risk.state is State.DISARMED
    assert [row["code"] for row in journal.of("alerts")] == ["RISK_ARMED", "RISK_DISARMED"]
    risk.arm()
    journal.state = "the disk is full"
    risk.disarm()
    assert risk.state is State.DISARMED


def test_a_new_account_starts_a_new_peak_but_keeps_a_latch(tmp_path):
    journal = Recorder()
    risk = controller(tmp_path, journal)
    risk.update_equity(100_000, T0)
    risk.new_account(50_000, T0 - 1000 * MINUTE)
    assert risk.update_equity(49_000, T0 - 999 * MINUTE) is False
    risk.checkpoint()
    assert controller(tmp_path).peak == 50_000
    risk.stop_trading(0.9)
    risk.new_account(50_000, T0)
    assert risk.state is State.LATCHED
    assert [row["code"] for row in journal.of("alerts")].count("RISK_NEW_ACCOUNT") == 2
    for bad in (0.0, -1.0, math.nan, None):
        with pytest.raises(RiskError):
            risk.new_account(bad, T0)


# ---------------------------------------------------------------- the trade date

NEXT_DATE = T0 + 8 * 60 * MINUTE  # 18:00 New York


def test_a_daily_loss_blocks_to_the_end_of_the_trade_date_and_survives_a_restart(tmp_path):
    journal = Recorder()
    risk = controller(tmp_path, journal)
    risk.update_equity(100_000.0, T0)
    assert risk.update_equity(97_000.0, T0 + MINUTE) is False
    assert risk.day_denial is None  # exactly the limit
    assert risk.update_equity(96_999.99, T0 + 2 * MINUTE) is False, "stop_trading speaks of the drawdown only"
    assert risk.day_denial.code.name == "DAILY_LOSS"
    risk.update_equity(99_000.0, T0 + 3 * MINUTE)
    assert risk.day_denial is not None, "a recovery does not reopen the day"
    risk = controller(tmp_path, journal)  # nothing but the stop itself forced it to disk
    assert risk.day_denial.code.name == "DAILY_LOSS"
    risk.update_equity(99_000.0, T0 + 4 * MINUTE)
    risk.update_equity(98_000.0, NEXT_DATE)
    assert risk.day_denial is None
    assert risk.day_open == 99_000.0, "the date opens with the last mark of the one before"
    risk.update_equity(98_000.0, T0 + 5 * MINUTE)  # a clock that goes backwards forgives nothing
    assert risk.day_open == 99_000.0
    alerts = [row for row in journal.of("alerts") if row["code"] == "DAILY_LOSS"]
    assert len(alerts) == 1
    assert "exits continue" in alerts[0]["message"]


def test_the_stop_of_a_day_reaches_another_process_and_a_new_account_starts_afresh(tmp_path):
    engine, other = controller(tmp_path), controller(tmp_path)
    for risk in (engine, other):
        risk.update_equity(100_000.0, T0)
    engine.count_entry()
    engine.update_equity(96_000.0, T0 + MINUTE)
    other.update_equity(99_000.0, T0 + MINUTE)
    assert other.day_denial is not None
    assert other.entries == 1
    other.new_account(50_000.0, T0 + 2 * MINUTE)
    assert (other.day_denial, other.entries, other.day_open) == (None, 0, 50_000.0)


def test_entries_of_the_day_survive_a_restart_and_end_with_the_day(tmp_path):
    risk = controller(tmp_path)
    risk.update_equity(100_000.0, T0)
    risk.count_entry()
    risk.count_entry()
    risk.checkpoint()
    risk = controller(tmp_path)
    assert risk.entries == 2
    risk.update_equity(100_000.0, T0 + MINUTE)
    assert risk.entries == 2
    risk.update_equity(100_000.0, NEXT_DATE)
    assert risk.entries == 0


def test_hours_that_are_unknown_leave_the_date_where_it_was(tmp_path):
    class NoHours:
        def span(self, now_ns):
            return None

    risk = RiskController(
        Workspace(tmp_path), config=CONFIG, max_drawdown=0.05, journal=Recorder(), clock=Clock(), sessions=NoHours()
    )
    risk.update_equity(100_000.0, T0)
    risk.update_equity(96_000.0, NEXT_DATE)
    assert risk.day_denial is not None


# ---------------------------------------------------------------- by hand


def test_a_halt_latches_every_process_until_a_reset(tmp_path):
    journal = Recorder()
    engine, person = controller(tmp_path, journal), controller(tmp_path, journal)
    engine.arm()
    engine.update_equity(100_000.0, T0)
    with pytest.raises(RiskError, match="reason"):
        person.halt(" ")
    person.halt("A. Smith: venue trouble")
    assert engine.update_equity(100_000.0, T0 + MINUTE) is True
    assert engine.state is State.LATCHED
    assert controller(tmp_path).latch.cause == "RISK_HALT"
    assert any(row["detail"] == '{"reason":"A. Smith: venue trouble"}' for row in journal.of("alerts"))
    assert engine.reset("venue is back").cause == "RISK_HALT"


def test_a_halt_that_cannot_be_saved_stops_this_process_and_says_so(tmp_path, monkeypatch):
    risk = controller(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(files, "write_json", no_space)
        with pytest.raises(RiskError, match="not on disk"):
            risk.halt("venue trouble")
    assert risk.state is State.LATCHED
    assert risk.stop_trading(0.0) is True
    assert controller(tmp_path).state is State.LATCHED


# ---------------------------------------------------------------- restart, reset, other processes


def test_only_a_reset_with_a_reason_clears(tmp_path):
    journal = Recorder()
    controller(tmp_path, journal).update_equity(-1.0, T0)
    risk = controller(tmp_path, journal)
    assert risk.state is State.LATCHED
    assert risk.stop_trading(0.0) is True
    with pytest.raises(RiskError, match="latched"):
        risk.arm()
    for reason in ("", "  \n", None):
        with pytest.raises(RiskError, match="reason"):
            risk.reset(reason)
    assert risk.state is State.LATCHED
    cleared = risk.reset("A. Smith: reviewed, flat")
    assert "the gate is disarmed" in str(cleared)
    assert risk.state is State.DISARMED
    assert risk.stop_trading(0.0) is False
    assert journal.of("penalties")[-1]["penalty_active"] is False
    assert journal.of("penalties")[-1]["detail"] == "A. Smith: reviewed, flat"
    assert journal.of("alerts")[-1]["code"] == "RISK_RESET"
    assert controller(tmp_path, journal).state is State.DISARMED
    with pytest.raises(RiskError, match="nothing is latched"):
        risk.reset("again")


def test_a_reset_restarts_the_peak_so_that_the_old_loss_does_not_latch_again(tmp_path):
    risk = controller(tmp_path)
    risk.update_equity(100_000, T0)
    assert risk.update_equity(90_000, T0 + MINUTE)
    cleared = risk.reset("reviewed")
    assert (cleared.peak_before, cleared.peak_after) == (100_000, 90_000)
    assert risk.update_equity(89_000, T0 + 2 * MINUTE) is False
    assert risk.update_equity(85_000, T0 + 3 * MINUTE) is True


def test_a_reset_that_cannot_be_journalled_clears_nothing(tmp_path):
    journal = Recorder()
    risk = controller(tmp_path, journal)
    risk.stop_trading(0.06)
    journal.state = "disk full"
    with pytest.raises(JournalError):
        risk.reset("reviewed")
    assert risk.state is State.LATCHED
    assert controller(tmp_path).state is State.LATCHED


def test_a_latch_and_a_reset_elsewhere_reach_a_running_process(tmp_path):
    engine, other = controller(tmp_path), controller(tmp_path)
    engine.arm()
    engine.update_equity(100_000, T0)
    other.stop_trading(0.06)
    assert engine.update_equity(100_000, T0 + MINUTE) is True
    assert engine.state is State.LATCHED
    engine.update_equity(90_000, T0 + 2 * MINUTE)
    other.reset("reviewed")
    assert engine.update_equity(90_000, T0 + 3 * MINUTE) is False
    assert engine.state is State.DISARMED
    assert engine.peak == 90_000


def test_a_checkpoint_never_overwrites_a_latch_of_another_process(tmp_path):
    engine, other = controller(tmp_path), controller(tmp_path)
    engine.update_equity(100_000, T0)
    other.stop_trading(0.06)
    engine.checkpoint()
    assert state_file(tmp_path)["latched"] is True
    assert engine.state is State.LATCHED


def test_a_breach_after_a_reset_elsewhere_is_not_lost(tmp_path):
    first, second = controller(tmp_path), controller(tmp_path)
    first.stop_trading(0.06)
    first.reset("reviewed")
    assert second.stop_trading(0.07) is True  # it had not looked at the file since
    assert controller(tmp_path).state is State.LATCHED


# ---------------------------------------------------------------- damage


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def damage_flip(path: Path) -> None:
    """Still JSON, still the right types, another content."""
    path.write_text(re.sub(r'"account": (\d+)', lambda found: f'"account": {int(found[1]) + 1}', path.read_text()))


def damage_edit(path: Path) -> None:
    content = json.loads(path.read_text())
    content["latched"], content["latch"], content["peak"] = False, None, 1.0
    path.write_text(json.dumps(content))


DAMAGE = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": damage_cut,
    "flipped": damage_flip,
    "edited": damage_edit,
    "not JSON": lambda path: path.write_text("latched: no"),
    "a list": lambda path: path.write_text("[]"),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("before", ["latched", "calm"])
def test_a_state_that_is_gone_or_damaged_is_latched_until_reset(tmp_path, how, before):
    risk = controller(tmp_path)
    if before == "latched":
        risk.stop_trading(0.06)
    DAMAGE[how](tmp_path / "data" / "risk_state.json")
    journal = Recorder()
    again = controller(tmp_path, journal)
    assert again.state is State.LATCHED
    assert again.stop_trading(0.0) is True
    assert journal.of("penalties")[0]["code"] == "RISK_STATE"
    assert controller(tmp_path, journal).state is State.LATCHED
    if how != "gone":
        assert list((tmp_path / "data").glob("risk_state.damaged_*"))
    again.reset("looked into it")
    assert controller(tmp_path, journal).state is State.DISARMED


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_under_a_running_process_latches_it(tmp_path, how):
    risk = controller(tmp_path)
    risk.arm()
    risk.update_equity(100_000, T0)
    DAMAGE[how](tmp_path / "data" / "risk_state.json")
    assert risk.update_equity(100_000, T0 + MINUTE) is True
    assert risk.state is State.LATCHED


def test_state_and_marker_gone_while_running_is_still_latched(tmp_path):
    calm = controller(tmp_path)
    calm.arm()
    shutil.rmtree(tmp_path / "data")
    assert calm.update_equity(100_000, T0) is True
    assert controller(tmp_path).state is State.LATCHED


def test_a_replay_in_its_own_folder_leaves_the_workspaces_state_alone(tmp_path):
    journal = Recorder()

    def replay(name: str, limit: float) -> RiskController:
        return RiskController(
            Workspace(tmp_path),
            config=CONFIG,
            max_drawdown=limit,
            journal=journal,
            clock=Clock(),
            state_folder=tmp_path / "runs" / name,
            run_id=name,
        )

    one, two = replay("one", 0.05), replay("two", 0.04)
    assert one.stop_trading(0.06)
    assert two.stop_trading(0.06)  # the same day again: its own rows
    two.snapshot()
    assert [row["run_id"] for row in journal.of("penalties")] == ["one", "two"]
    assert not (tmp_path / "data" / "risk_state.json").exists()
    assert controller(tmp_path, journal).state is State.DISARMED
    assert replay("one", 0.05).state is State.LATCHED


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"latched": True},
        {"latch": {"cause": "DRAWDOWN_LIMIT"}},
        {"peak": "high"},
        {"generation": None},
        {"trade_rate": {"last_ns": 1}},
    ],
)
def test_content_with_a_right_seal_but_a_wrong_meaning_is_not_guessed_at(tmp_path, change):
    from mia_fast.risk import store

    controller(tmp_path)
    content = {**state_file(tmp_path), **change}
    del content["sha256"]
    content["sha256"] = store._seal(content)
    (tmp_path / "data" / "risk_state.json").write_text(json.dumps(content))
    assert controller(tmp_path).state is State.LATCHED


# ---------------------------------------------------------------- faults in writing


def no_space(*args: object, **kwargs: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_keeps_the_latch_in_memory_blocks_and_is_made_good(tmp_path, monkeypatch):
    journal = Recorder()
    risk = controller(tmp_path, journal)
    with monkeypatch.context() as patched:
        patched.setattr(files, "write_json", no_space)
        assert risk.stop_trading(0.06) is True
        assert risk.unsaved
        assert "No space" in risk.unsaved
        assert risk.stop_trading(0.0) is True
        with pytest.raises(RiskError):
            risk.reset("too early")
    assert state_file(tmp_path)["latched"] is False
    assert risk.stop_trading(0.0) is True
    assert risk.unsaved is None
    assert state_file(tmp_path)["latched"] is True
    assert len(journal.of("penalties")) == len(journal.of("alerts")) == 1


def test_the_latch_is_forced_to_disk_before_anything_is_told(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(files, "_sync", lambda path: order.append("folder" if path.is_dir() else "content"))

    class Watcher(Recorder):
        def append(self, table, row, /):
            order.append(table)
            assert state_file(tmp_path)["latched"] is True
            return super().append(table, row)

    risk = controller(tmp_path, Watcher())
    order.clear()
    assert risk.stop_trading(0.06)
    assert order[:3] == ["content", "folder", "penalties"]


@pytest.mark.skipif(sys.platform == "win32", reason="holds the lock the POSIX way")
def test_a_lock_that_another_process_never_gives_back_does_not_hide_a_breach(tmp_path):
    import fcntl

    risk = controller(tmp_path)
    with (tmp_path / "data" / ".risk_state.lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert risk.stop_trading(0.06) is True
        assert "lock" in risk.unsaved
        assert risk.state is State.LATCHED
    assert risk.stop_trading(0.0) is True
    assert risk.unsaved is None
    assert controller(tmp_path).state is State.LATCHED


def test_a_workspace_that_cannot_be_written_never_arms(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "write_json", no_space)
    risk = controller(tmp_path)
    assert risk.unsaved
    with pytest.raises(RiskError, match="saved"):
        risk.arm()
    with pytest.raises(RiskError):
        risk.checkpoint()


def test_evidence_that_the_journal_refused_is_written_later_once(tmp_path):
    journal = Recorder()
    risk = controller(tmp_path, journal)
    journal.state = "locked"
    risk.update_equity(100_000, T0)
    assert risk.update_equity(90_000, T0 + MINUTE) is True
    assert state_file(tmp_path)["latch"]["reported"] is False
    assert risk.update_equity(91_000, T0 + 2 * MINUTE) is True
    journal.state = "ok"
    again = controller(tmp_path, journal)
    assert again.state is State.LATCHED
    risk.update_equity(92_000, T0 + 3 * MINUTE)
    for table in ("penalties", "risk_snapshots", "alerts"):
        assert len(journal.of(table)) == 1
    assert len(list((tmp_path / "data" / "risk_snapshots").iterdir())) == 1
    assert state_file(tmp_path)["latch"]["reported"] is True


def test_a_failing_clock_does_not_save_a_breach(tmp_path):
    def clock() -> int:
        raise OSError("no time")

    risk = controller(tmp_path, clock=clock)
    risk.update_equity(100_000, T0)
    assert risk.stop_trading(0.06) is True
    assert risk.latch.at_ns == T0
    assert controller(tmp_path).state is State.LATCHED


def test_snapshots_of_one_instant_do_not_overwrite_each_other(tmp_path):
    journal = Recorder()
    risk = controller(tmp_path, journal)
    risk.update_equity(100_000, T0)
    first = risk.snapshot()
    assert risk.snapshot() == first  # the same snapshot is one file
    risk.update_equity(99_000, T0)
    second = risk.snapshot()
    assert second.name == "risk_20200316T140000_000001Z.json"
    assert json.loads(second.read_text())["timestamp"] == "2020-03-16T14:00:00.000001Z"
    assert json.loads(first.read_text())["drawdown"] == 0.0
    assert len(journal.of("risk_snapshots")) == 3


# ---------------------------------------------------------------- kill -9

CHILD = """
import os, signal, sys
sys.path[:0] = {paths!r}
from test_risk_support import Clock, Recorder, controller
from mia_fast.risk import store

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

where = sys.argv[2]
class Deadly(Recorder):
    def append(self, table, row, /):
        if where == table:
            die()
        return super().append(table, row)

from pathlib import Path
risk = controller(Path(sys.argv[1]), Deadly())
if where == "snapshot":
    store.write_snapshot = die
    import mia_fast.risk.controller as module
    module.write_snapshot = die
if where == "report":
    original = store.StateStore.write
    def write(self, record, **options):
        if record.latch is not None and record.latch.reported:
            die()
        return original(self, record, **options)
    store.StateStore.write = write
risk.stop_trading(0.06)
die()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
@pytest.mark.parametrize("where", ["snapshot", "penalties", "risk_snapshots", "alerts", "report", "return"])
def test_kill_between_breach_and_return_does_not_lose_the_latch(tmp_path, where):
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]
    child = subprocess.run([sys.executable, "-c", CHILD.format(paths=paths), str(tmp_path), where], check=False)
    assert child.returncode == -signal.SIGKILL
    journal = Recorder()
    risk = controller(tmp_path, journal)
    assert risk.state is State.LATCHED
    assert risk.stop_trading(0.0) is True
    assert risk.latch.reported
    assert len(list((tmp_path / "data" / "risk_snapshots").iterdir())) == 1
    assert len(journal.of("penalties")) == (0 if where == "return" else 1)


# ---------------------------------------------------------------- a model of the latch


class LatchModel(RuleBasedStateMachine):
    """Two processes on one workspace, in any order of breaches, marks, crashes, damage and resets."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.journal, self.clock = Recorder(), Clock()
        self.risk = [self.fresh(), self.fresh()]
        self.latched = False
        self.resets = 0

    def fresh(self) -> RiskController:
        return controller(self.root, self.journal, self.clock)

    who = st.integers(0, 1)

    @rule(who=who, drawdown=st.one_of(st.floats(-0.1, 0.2), st.sampled_from([0.05, math.nan, math.inf])))
    def stop(self, who: int, drawdown: float) -> None:
        self.risk[who].refresh()
        expected = self.latched or not drawdown <= 0.05
        assert self.risk[who].stop_trading(drawdown) is (expected or not math.isfinite(drawdown))
        self.latched = expected

    @rule(who=who, equity=st.floats(90_000, 100_000))
    def mark(self, who: int, equity: float) -> None:
        self.clock.now += MINUTE
        risk = self.risk[who]
        risk.refresh()
        peak = max(risk.peak, equity)
        stopped = risk.update_equity(equity, self.clock.now)
        assert stopped is (self.latched or (peak - equity) / peak > 0.05)
        assert abs(risk.peak - peak) < 0.005
        self.latched = stopped

    @rule(who=who)
    def crash(self, who: int) -> None:
        self.risk[who] = self.fresh()

    @rule(who=who)
    def checkpoint(self, who: int) -> None:
        self.risk[who].checkpoint()

    @rule(who=who)
    def arm(self, who: int) -> None:
        try:
            self.risk[who].arm()
            assert not self.latched
        except RiskError:
            assert self.latched

    @rule(who=who, how=st.sampled_from(sorted(DAMAGE)))
    def damage(self, who: int, how: str) -> None:
        self.clock.now += MINUTE
        DAMAGE[how](self.root / "data" / "risk_state.json")
        self.risk[who] = self.fresh()
        self.latched = True

    @precondition(lambda self: self.latched)
    @rule(who=who)
    def reset(self, who: int) -> None:
        self.clock.now += MINUTE
        self.risk[who].refresh()
        self.risk[who].reset("reviewed")
        self.latched = False
        self.resets += 1

    @invariant()
    def the_file_knows(self) -> None:
        if not hasattr(self, "risk"):
            return
        assert state_file(self.root)["latched"] is self.latched
        for risk in self.risk:
            risk.refresh()
            assert (risk.state is State.LATCHED) is self.latched
        assert sum(row["penalty_active"] is False for row in self.journal.of("penalties")) == self.resets

    def teardown(self) -> None:
        if hasattr(self, "root"):
            shutil.rmtree(self.root)


TestLatchModel = LatchModel.TestCase
TestLatchModel.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_open_reads_the_shipped_configuration(tmp_path):
    risk = RiskController.open(Workspace(tmp_path), Recorder(), Clock())
    assert risk.limit == 0.05
    assert CONFIG.overtrading.window_minutes == 60
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
