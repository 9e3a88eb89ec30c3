"""docs/live-loop.md and the README's live snippet are programs that run as they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import mia_fast
from mia_fast import journal
from mia_fast.errors import DataError
from mia_fast.risk import detach
from mia_fast.workspace import Workspace

PAGE = Path(__file__).resolve().parents[1] / "docs" / "live-loop.md"


@pytest.fixture
def here(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.chdir(workspace.root)
    yield workspace
    detach(workspace)
    if journal.is_open(workspace):
        journal.of(workspace).close()


def test_the_page_runs_as_it_stands(here: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    known: dict[str, Any] = {}
    exec(compile(blocks[0], str(PAGE), "exec"), known)
    live, row = known["live"], known["row"]
    batch = mia_fast.generate_features(known["bars"].head(500), cross=known["sample"] / "cross.parquet")
    for name in ("rsi_14", "atr_14", "vix_term_1m"):
        assert row[live.names.index(name)] == batch[name][-1], name
    exec(compile(blocks[1], str(PAGE), "exec"), known)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 300
    engine = known["engine"]
    assert np.isfinite(engine.values[engine.plan.outputs.index("predicted_vix")])
    assert not any("MISSING" in line or "NOT_FINITE" in line for line in lines)
    told = pl.read_csv(here.data / "logs" / "trading" / "decision_log.csv")
    assert told.height == 300
    assert set(told["decision"]) <= {"buy", "sell", "exit", "hold"}
    assert engine.levels is not None
    assert engine.levels.status == "OK"


def test_an_engine_that_is_opened_refuses_a_bad_print_and_confirms_a_level(here: Workspace) -> None:
    from mia_fast.live.broker import SimulatedBroker
    from mia_fast.live.engine import Bar
    from mia_fast.live.opening import open_engine
    from mia_fast.workspace import shipped

    sample = shipped() / "data" / "sample"
    bars = (
        pl.read_parquet(sample / "bars.parquet").select("timestamp", "open", "high", "low", "close", "volume").head(600)
    )
    engine = open_engine(bars, account="U1", events=sample / "events.parquet")
    broker = SimulatedBroker(mia_fast.config.market(here))
    close = float(bars["close"][-1])
    now = int(bars["timestamp"].dt.epoch("ns")[-1]) + 60_000_000_000
    codes = []
    for price in (close, close / 2, close, close / 2, close / 2, close / 2, close / 2):
        now += 60_000_000_000
        extra = (0.0,) * len(engine.extra)
        bar = Bar(now, price, price, price, price, 1.0, extra)
        codes.append(engine.on_bar(bar, broker.account(close, now), None).code)
    assert [code == "BAR_PRICE_JUMP" for code in codes] == [False, True, False, True, True, False, False]
    with pytest.raises(DataError, match="symbol"):
        open_engine(pl.read_parquet(sample / "cross.parquet"), account="U1")
    assert engine.memory is not None
    engine.memory.close()
