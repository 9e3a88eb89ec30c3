"""A restart of a live gate: what passed is read back from the journal, also after kill -9 before any checkpoint."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_risk_support import MINUTE, ROOT, T0, Clock, Recorder

from mia_fast import journal
from mia_fast.risk import Account, Action, Desk, Gate, Market, Order, Side
from mia_fast.workspace import Workspace

SECOND = 1_000_000_000
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_risk_history import T0, SECOND, begin, check, entry
from mia_fast.workspace import Workspace
desk, gate = begin(Workspace(Path(sys.argv[1])), T0)
for k in range(3):
    verdict = check(gate, entry(f"id-{k}", (1, 1, 2)[k], 2_395.0 + k), T0 + 6 * k * SECOND)
    assert verdict.allowed, str(verdict)
os.kill(os.getpid(), signal.SIGKILL)
"""


def begin(workspace: Workspace, now: int, account: str = "A") -> tuple[Desk, Gate]:
    """A live desk, marked and armed, and its gate."""
    workspace.data.mkdir(parents=True, exist_ok=True)
    calendar = workspace.data / "macro_events.csv"
    if not calendar.exists():
        calendar.write_text("start_time,type,impact\n2020-12-01T00:00:00Z,GDP,0.1\n")
    desk = Desk(workspace, clock=Clock(now), losing_share=lambda: None)
    desk.controller.update_equity(200_000.0, now)
    desk.controller.arm()
    return desk, desk.gate(account=account, model_sha256="sha")


def entry(name: str, quantity: float, price: float | None = None) -> Order:
    return Order(name, "ES", Side.BUY, quantity, price, stop=2_390.0)


def check(gate: Gate, order: Order, now: int, position: float = 0, known_at: int = T0):
    gate.controller.update_equity(200_000.0, now)
    market = Market(now, 2_400.0, True, 40.0, "sha", True, False, {"cross": T0 - MINUTE})
    return gate.check(order, market, Account(known_at, 200_000.0, position, gate.account, True, ()), now)


@pytest.fixture
def workspace(tmp_path: Path):
    yield Workspace(tmp_path)
    if journal.is_open(Workspace(tmp_path)):
        journal.of(Workspace(tmp_path)).close()


def test_kill_9_between_an_entry_and_the_checkpoint_loses_nothing(workspace):
    """Count of the day, rate window, orders in flight, ids and the clock: all that the killed gate knew."""
    folders = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(workspace.root), *folders], check=False, capture_output=True, text=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert '"entries": 0' in (workspace.data / "risk_state.json").read_text() or '"day": null' in (
        (workspace.data / "risk_state.json").read_text()
    ), "the state on disk knows of no entry"
    now = T0 + 13 * SECOND
    desk, gate = begin(workspace, now)
    assert desk.controller.entries == 3
    assert list(gate.sent) == [T0, T0 + 6 * SECOND, T0 + 12 * SECOND]
    assert gate.last_ns == T0 + 12 * SECOND
    assert [(at, order.client_id, order.quantity) for at, order in gate.in_flight] == [
        (T0, "id-0", 1),
        (T0 + 6 * SECOND, "id-1", 1),
        (T0 + 12 * SECOND, "id-2", 2),
    ]
    assert check(gate, entry("id-9", 2), now).code == "LIMIT_POSITION", "six contracts may still fill"
    younger = T0 + 14 * SECOND
    assert check(gate, entry("id-2", 1), younger, known_at=younger).code == "ORDER_DUPLICATE"
    assert check(gate, entry("id-9", 2, 2_397.0), younger, known_at=younger).code == "ORDER_REPEATED"
    assert check(gate, entry("id-9", 1), T0, known_at=younger).code == "CLOCK_BACKWARDS"
    assert check(gate, entry("id-9", 1), younger, known_at=younger).allowed
    assert desk.controller.entries == 4
    assert check(gate, entry("id-10", 1), T0 + 26 * 60 * MINUTE).code is not None
    assert desk.controller.entries == 0, "the next trade date begins"


@pytest.mark.parametrize("seed", range(5))
def test_a_recalled_gate_knows_what_the_one_before_it_knew(workspace, seed):
    """Entries, exits, cancels and refusals in any order; then another gate, from the journal alone."""
    dice = random.Random(seed)
    desk, gate = begin(workspace, T0)
    now, position = T0, 0
    for k in range(25):
        now += dice.randrange(0, 4 * SECOND)
        side = dice.choice([Side.BUY, Side.SELL])
        price = dice.choice([None, 2_400.0 + dice.randrange(-4, 5)])
        stop = 2_390.0 if side is Side.BUY else 2_410.0
        order = Order(f"o-{seed}-{k}", "ES", side, dice.choice([1, 1, 2, 9]), price, dice.random() < 0.3, stop=stop)
        if dice.random() < 0.2:
            order = replace(order, action=Action.CANCEL)
        check(gate, order, now, position=dice.choice([0, 2, -2]), known_at=now - dice.randrange(0, 2 * SECOND))
    before, entries = gate.save(), desk.controller.entries
    assert before["passed_ids"]
    journal.of(workspace).close()
    again, recalled = begin(workspace, now)
    after = recalled.save()
    assert after["in_flight"][len(after["in_flight"]) - len(before["in_flight"]) :] == before["in_flight"]
    assert {key: after[key] for key in ("passed_ids", "last_ns", "sent")} == {
        key: before[key] for key in ("passed_ids", "last_ns", "sent")
    }
    assert recalled._contents == {what: at for what, at in gate._contents.items() if now - at < gate.repeat_ns}
    assert again.controller.entries == entries
    young = Account(now, 200_000.0, position, "A", True, ())
    assert recalled.open_orders(young) == gate.open_orders(young)


def test_another_account_and_a_replay_are_not_taken_for_this_one(workspace):
    _, other = begin(workspace, T0, account="B")
    assert check(other, entry("id-0", 1), T0)
    store = journal.of(workspace)
    row = {"timestamp": T0, "verdict": "allow", "account": "A", "action": "new", "client_id": "r", "side": "buy"}
    store.append("verdicts", {**row, "run_id": "run-1", "event_id": "x"})
    _, mine = begin(workspace, T0)
    assert (mine.passed_ids, list(mine.sent), mine.last_ns) == (set(), [], 0)


def test_a_journal_that_cannot_be_read_back_lets_no_entry_pass_until_it_can(workspace, monkeypatch):
    desk, gate = begin(workspace, T0)
    assert check(gate, entry("id-0", 1), T0)
    with monkeypatch.context() as broken:
        broken.setattr(journal.of(workspace), "query", lambda *_: (_ for _ in ()).throw(journal_error()))
        gate = desk.gate(account="A", model_sha256="sha")
    verdict = check(gate, entry("id-1", 1, 2_398.0), T0 + 7 * SECOND)
    assert str(verdict) == "JOURNAL_UNHEALTHY: why=a_block_is_damaged"
    leave = Order("x", "ES", Side.SELL, 1, reduce_only=True)
    assert check(gate, leave, T0 + 7 * SECOND, position=1), "exits pass"
    assert desk.recall(gate)
    assert [order.client_id for _, order in gate.in_flight] == ["id-0", "x"]
    assert list(gate.sent) == [T0, T0 + 7 * SECOND]
    later = T0 + 9 * SECOND
    assert check(gate, entry("id-1", 1, 2_398.0), later, known_at=later)
    assert check(gate, entry("id-0", 1, 2_397.0), later, known_at=later).code == "ORDER_DUPLICATE"


def test_a_gate_whose_journal_cannot_be_read_back_says_so(tmp_path):
    desk = Desk(Workspace(tmp_path), journal=Recorder(), clock=Clock(T0))
    assert desk.gate(account="A", model_sha256="sha").unread == "this journal cannot be read back"


def journal_error() -> Exception:
    from mia_fast.errors import JournalError

    return JournalError("a block is damaged")
