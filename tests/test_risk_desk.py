"""The plain functions on the real journal, and the contract's table of workspaces."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from test_risk_support import MINUTE, ROOT, T0, Clock, Recorder

from mia_fast import clock, journal
from mia_fast.errors import ConfigError, JournalError
from mia_fast.risk import Account, Desk, Market, Order, Side, State, attach, block_trade, desk, detach, stop_trading
from mia_fast.risk import desk as shared
from mia_fast.workspace import Workspace


@pytest.fixture
def here(workspace):
    """An empty workspace; its journal and its desk are closed afterwards."""
    yield workspace
    detach(workspace)
    if journal.is_open(workspace):
        journal.of(workspace).close()


def write_events(workspace, *rows: tuple[int, str, float]) -> None:
    path = workspace.data / "macro_events.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{clock.iso(start)},{name},{impact},1" for start, name, impact in rows]
    path.write_text("\n".join(["start_time,type,impact,cluster_id", *lines]) + "\n")


# ---------------------------------------------------------------- the calls of the contract


def test_stop_trading_as_the_old_programs_call_it(here):
    assert stop_trading(0.06) is True
    assert stop_trading(0.01) is True
    assert len(list((here.data / "risk_snapshots").glob("risk_*.json"))) == 1
    rows = journal.of(here)
    assert rows.query("SELECT priority, code FROM alerts WHERE source = 'risk'").rows() == [(5, "DRAWDOWN_LIMIT")]
    rows.export()
    lines = (here.data / "logs" / "trading" / "penalty_log.csv").read_text().splitlines()
    assert lines[0] == "timestamp,penalty_active,overtrade_risk_score"
    assert len(lines) == 2
    assert ",true,0.0" in lines[1]
    detach(here)  # a restart
    assert stop_trading(0.0) is True
    cleared = desk().controller.reset("contract example")
    assert cleared.cause == "DRAWDOWN_LIMIT"
    assert stop_trading(0.05) is False
    assert rows.query("SELECT penalty_active FROM penalties ORDER BY timestamp").to_series().to_list() == [True, False]


def test_stop_trading_works_armed_or_not_and_makes_an_empty_folder_a_workspace(here):
    assert not list(here.root.iterdir())
    assert stop_trading(0.05) is False
    assert json.loads((here.data / "risk_state.json").read_text())["latched"] is False
    assert desk().controller.state is State.DISARMED
    desk().controller.arm()
    assert stop_trading(0.05) is False
    assert stop_trading(float("nan")) is True


def test_block_trade_true_blocks_with_an_event_on_file_and_without(here):
    write_events(here, (T0, "CPI", 0.8), (T0 + 1000 * MINUTE, "GDP", 0.1))
    assert block_trade(True) is True
    assert block_trade(True, now_ns=T0 - 500 * MINUTE) is True
    assert block_trade(False, now_ns=T0 - 500 * MINUTE) is False
    assert block_trade(False, now_ns=T0 + 45 * MINUTE) is True
    assert block_trade(False, now_ns=T0 + 45 * MINUTE + 1) is False
    assert block_trade(False) is True  # the wall clock lies after the last event
    for unclear in (None, float("nan"), "", np.bool_(True), 1):
        assert block_trade(unclear, now_ns=T0 - 500 * MINUTE) is True
    assert block_trade(np.bool_(False), now_ns=T0 - 500 * MINUTE) is False


def test_a_block_is_told_once_for_each_reason(here):
    write_events(here, (T0, "CPI", 0.8), (T0 + 1000 * MINUTE, "GDP", 0.1))
    for minute in (-500, 0, 1, 2, 100, 2000, 2001):
        block_trade(False, now_ns=T0 + minute * MINUTE)
    told = journal.of(here).query("SELECT code FROM alerts WHERE source = 'trade_window_filter' ORDER BY timestamp")
    assert told.to_series().to_list() == ["EVENT_WINDOW", "CALENDAR_ENDED"]


def test_a_calendar_that_comes_changes_or_goes_is_noticed(here):
    now = T0 - 500 * MINUTE
    assert block_trade(False, now_ns=now) is True
    write_events(here, (T0, "CPI", 0.8))
    assert block_trade(False, now_ns=now) is False
    write_events(here, (now, "a longer name", 0.8), (T0, "CPI", 0.8))
    assert block_trade(False, now_ns=now) is True
    write_events(here, (T0, "CPI", 0.8))
    assert block_trade(False, now_ns=now) is False
    (here.data / "macro_events.csv").unlink()
    assert block_trade(False, now_ns=now) is True


def test_the_plain_functions_work_on_the_engines_own_desk(here):
    time = Clock()
    engine = Desk(here, journal=Recorder(), clock=time)
    attach(engine)
    assert desk(here) is engine
    write_events(here, (T0 + MINUTE, "CPI", 0.8), (T0 + 1000 * MINUTE, "GDP", 0.1))
    assert block_trade(False) is True
    time.now = T0 + 100 * MINUTE
    assert block_trade(False) is False
    assert stop_trading(0.06) is True
    assert engine.controller.state is State.LATCHED


# ---------------------------------------------------------------- the contract's table: state of the workspace, entries


def entry(engine: Desk, time: Clock) -> list[str]:
    """The codes that deny an otherwise perfect entry on this desk."""
    engine.controller.update_equity(100_000.0, time.now)
    if engine.controller.state is not State.LATCHED:
        engine.controller.arm()
    order = Order("id", engine.market.instrument.symbol, Side.BUY, 1, stop=2390.0)
    market = Market(time.now, 2400.0, True, 40.0, "sha", True, False, {"cross": time.now - MINUTE})
    account = Account(time.now, 100_000.0, 0, "A", True, ())
    resume = not isinstance(engine.journal, Recorder)
    verdict = engine.gate(account="A", model_sha256="sha", resume=resume).check(order, market, account, time.now)
    return [denial.code.name for denial in verdict.denials]


def engine_desk(workspace, **parts) -> list[str]:
    time = Clock()
    return entry(Desk(workspace, journal=Recorder(), clock=time, **parts), time)


def test_a_new_empty_folder_is_blocked_by_its_missing_calendar_only(here):
    assert engine_desk(here, losing_share=lambda: None) == ["CALENDAR_MISSING"]


def test_with_a_calendar_an_entry_passes(here):
    write_events(here, (T0 + 1000 * MINUTE, "CPI", 0.8))
    assert engine_desk(here) == []


def test_calendar_rows_of_the_table(here):
    write_events(here, (T0 - MINUTE, "GDP", 0.1))
    assert engine_desk(here) == ["CALENDAR_ENDED"]
    write_events(here, (T0 + 1000 * MINUTE, "CPI", 80.0))
    assert engine_desk(here) == ["CALENDAR_MALFORMED"]
    (here.data / "macro_events.csv").write_bytes(b"start_time,type,impact\n\xff\xfe,\x00\xff\n")
    assert engine_desk(here) == ["CALENDAR_UNREADABLE"]
    write_events(here, (T0 + 20 * MINUTE, "FOMC", 0.8))
    assert engine_desk(here) == ["EVENT_WINDOW"]


def test_stores_that_once_existed(here):
    write_events(here, (T0 + 1000 * MINUTE, "CPI", 0.8))
    assert engine_desk(here) == []

    def locked() -> float:
        raise OSError("database is locked")

    assert engine_desk(here, losing_share=locked) == ["RISK_MEMORY"]
    (here.data / "risk_state.json").unlink()
    assert engine_desk(here) == ["RISK_LATCHED"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("risk.yaml", "events: {}\n"),
        ("market_config.yaml", None),
        ("market_config.yaml", "max_drawdown: .nan"),
        ("market_config.yaml", "max_drawdown: 5"),
        ("market_config.yaml", "max_drawdowns: 0.05"),
    ],
)
def test_a_configuration_that_is_present_but_invalid_starts_nothing(here, name, text):
    shipped = (ROOT / "config" / "market_config.yaml").read_text()
    content = text if text and name == "risk.yaml" else shipped.replace("max_drawdown: 0.05", text or "")
    (here.root / "config").mkdir()
    (here.root / "config" / name).write_text(content)
    with pytest.raises(ConfigError):
        stop_trading(0.01)
    with pytest.raises(ConfigError):
        block_trade(False)


LIMITS = [line.split(":")[0].strip() for line in (ROOT / "config" / "risk.yaml").read_text().splitlines()
          if line.startswith("  ") and ":" in line and line.strip()[0].isalpha()]  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(LIMITS) - {"before_minutes", "after_minutes", "cross", "windows"}))
def test_each_absent_limit_starts_nothing(here, name):
    lines = (ROOT / "config" / "risk.yaml").read_text().splitlines()
    at = next(k for k, line in enumerate(lines) if line.strip().startswith(f"{name}:"))
    indent = len(lines[at]) - len(lines[at].lstrip())
    end = next((k for k in range(at + 1, len(lines)) if len(lines[k]) - len(lines[k].lstrip()) <= indent), len(lines))
    (here.root / "config").mkdir()
    (here.root / "config" / "risk.yaml").write_text("\n".join(lines[:at] + lines[end:]))
    with pytest.raises(ConfigError, match=name):
        stop_trading(0.01)


def test_an_entry_needs_the_real_journal(here):
    """The desk's own journal, held by this process, then damaged under it."""
    write_events(here, (T0 + 1000 * MINUTE, "CPI", 0.8))
    time = Clock()
    mine = Desk(here, clock=time)
    assert entry(mine, time) == []
    rows = journal.of(here)
    assert rows.query("SELECT verdict FROM verdicts").to_series().to_list() == ["allow"]
    rows.close()
    (here.data / "mia.duckdb").write_bytes(b"not a database" * 100)
    assert mine.journal.health() != "ok"
    gate = mine.gate(account="A", model_sha256="sha")
    order = Order("id-2", "ES", Side.BUY, 1, stop=2390.0)
    market = Market(T0, 2400.0, True, 40.0, "sha", True, False, {"cross": T0 - MINUTE})
    verdict = gate.check(order, market, Account(T0, 100_000.0, 0, "A", True, ()), T0)
    assert verdict.code == "JOURNAL_UNHEALTHY"


def test_a_journal_held_by_another_process_blocks_but_never_hides_a_breach(here):
    held = "import sys; sys.path[:0] = sys.argv[2:]; from mia_fast import journal; from mia_fast.workspace import *;"
    held += "journal.of(Workspace.current(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", held, str(here.root), str(ROOT), str(ROOT / "kernels")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        assert stop_trading(0.06) is True
        mine = desk(here)
        assert mine.journal.health() != "ok"
        with pytest.raises(JournalError):
            mine.journal.append("alerts", {})
        assert mine.controller.latch.reported is True  # the evidence is on the disk, left for the holder
        assert block_trade(False) is True
        other.stdin.close()
        other.wait()
    assert stop_trading(0.0) is True
    assert mine.journal.health() == "ok"
    assert journal.of(here).query("SELECT count(*) FROM penalties").item() == 1


@pytest.mark.real
def test_march_2020_blocks_at_its_releases(here, real_data):
    source = pl.read_parquet(real_data / "macro" / "us_high_impact_2014_202206.parquet")
    here.data.mkdir()
    source.select(
        pl.col("ts").dt.strftime("%Y-%m-%dT%H:%M:%SZ").alias("start_time"),
        pl.col("event").alias("type"),
        pl.lit(0.9).alias("impact"),
    ).unique(maintain_order=True).write_csv(here.data / "macro_events.csv")
    bars = pl.read_parquet(real_data / "bars" / "demo_es_1m_20200309_20200320.parquet", columns=["ts"])
    now = bars["ts"].dt.cast_time_unit("ns").to_physical().to_numpy() + MINUTE
    engine = Desk(here, journal=Recorder(), clock=Clock())
    blocked = [engine.calendar.blocked(int(instant)) is not None for instant in now]
    assert engine.calendar.fault is None
    assert 0.02 < np.mean(blocked) < 0.4


def test_the_module_of_the_shared_desk_forgets_nothing_by_itself(tmp_path):
    one, two = Workspace(tmp_path / "a"), Workspace(tmp_path / "b")
    for workspace in (one, two):
        attach(Desk(workspace, journal=Recorder(), clock=Clock()))
    assert stop_trading(0.06, workspace=one) is True
    assert stop_trading(0.01, workspace=two) is False
    assert shared(one) is not shared(two)
    for workspace in (one, two):
        detach(workspace)
