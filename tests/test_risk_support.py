"""What the risk tests share: a journal in memory that accepts what the real schema accepts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mia_fast.clock import NS_PER_MINUTE
from mia_fast.config import load
from mia_fast.errors import JournalError
from mia_fast.journal import TABLES
from mia_fast.risk import RiskConfig, RiskController
from mia_fast.workspace import Workspace, shipped

ROOT = Path(__file__).resolve().parents[1]
T0 = 1_584_367_200_000_000_000  # 2020-03-16 14:00 UTC
MINUTE = NS_PER_MINUTE
CONFIG = load(RiskConfig, shipped() / "config" / "risk.yaml")


class Recorder:
    """Keeps rows; checks each against the journal's declared columns; stores a keyed row once."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, dict[str, Any]]] = []
        self.state = "ok"

    def append(self, table: str, row: Any, /) -> int:
        if self.state != "ok":
            raise JournalError(self.state)
        values = dict(zip(TABLES[table].names, TABLES[table].values(row), strict=True))
        key = TABLES[table].key
        for other, seen in self.rows:
            if other == table and all(values[k] is not None and values[k] == seen[k] for k in key):
                assert seen == values, "another row under the same key"
                return len(self.rows)
        self.rows.append((table, values))
        return len(self.rows)

    def health(self) -> str:
        return self.state

    def of(self, table: str) -> list[dict[str, Any]]:
        return [row for name, row in self.rows if name == table]


class Clock:
    def __init__(self, now: int = T0) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def controller(
    root: Path,
    journal: Recorder | None = None,
    clock: Callable[[], int] | None = None,
    max_drawdown: float = 0.05,
    losing_share: Callable[[], float | None] | None = None,
) -> RiskController:
    return RiskController(
        Workspace(root),
        config=CONFIG,
        max_drawdown=max_drawdown,
        journal=journal if journal is not None else Recorder(),
        clock=clock if clock is not None else Clock(),
        losing_share=losing_share,
    )
