"""Why a decision was what it was: everything the journal holds about it, put together."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, Final

from mia_fast import journal
from mia_fast.errors import JournalError
from mia_fast.workspace import Workspace

_AROUND: Final = "timestamp <= make_timestamp_ns(?) AND run_id IS NOT DISTINCT FROM ?"


@dataclass(frozen=True, slots=True)
class Explanation:
    """One decision and what belongs to it.

    Attributes
    ----------
    decision
        The row of ``decisions``, without its context.
    features
        What it saw, by name; by position (``"#0"``, ...) where no list of names was written.
    trade
        The closed trade that came of it, or None.
    levels, risk
        The dealer levels and the risk snapshot in force, or None.
    alerts
        Alerts of the same run and instant.
    """

    decision: dict[str, Any]
    features: dict[str, float]
    trade: dict[str, Any] | None
    levels: dict[str, Any] | None
    risk: dict[str, Any] | None
    alerts: list[dict[str, Any]]


def explain(workspace: Workspace, trade_id: str, run_id: str | None = None) -> list[Explanation]:
    """All decisions under a trade id, oldest first: a replay run twice, or two calls, give several.

    Parameters
    ----------
    workspace
        Whose journal; it may be open in another process.
    trade_id
        As in the decision log.
    run_id
        Only those of this run.

    Raises
    ------
    JournalError
        There is no such decision, or the journal cannot be read.
    """
    if journal.is_open(workspace):
        return _explain(journal.of(workspace), workspace, trade_id, run_id)
    with journal.Reader(workspace) as reader:
        return _explain(reader, workspace, trade_id, run_id)


def _explain(
    source: journal.Journal | journal.Reader, workspace: Workspace, trade_id: str, run_id: str | None
) -> list[Explanation]:
    def rows(sql: str, *parameters: Any) -> list[dict[str, Any]]:
        return source.query(sql, parameters).rows(named=True)

    found = rows(
        "SELECT *, epoch_ns(timestamp) AS at_ns FROM decisions WHERE trade_id = ? AND (? IS NULL OR run_id = ?) "
        "ORDER BY timestamp, sequence",
        trade_id,
        run_id,
        run_id,
    )
    if not found:
        near = rows(
            "SELECT DISTINCT trade_id FROM decisions ORDER BY levenshtein(trade_id, ?), trade_id LIMIT 3", trade_id
        )
        raise JournalError(
            f"there is no decision {trade_id!r}" + (f" in the run {run_id!r}" if run_id else ""),
            where=str(workspace.data / "mia.duckdb"),
            hint="the nearest are " + ", ".join(repr(row["trade_id"]) for row in near) if near else "it is empty",
            then="nothing was changed",
        )
    out = []
    for decision in found:
        at, run = decision.pop("at_ns"), decision["run_id"]
        context, names = decision.pop("context"), decision.pop("context_names")
        listed = rows("SELECT names FROM feature_lists WHERE digest = ? LIMIT 1", decision["feature_list"])
        names = json.loads(names or (listed[0]["names"] if listed else "[]"))
        latest = "ORDER BY timestamp DESC, sequence DESC LIMIT 1"
        trades = "SELECT * FROM trades WHERE trade_id = ? AND run_id IS NOT DISTINCT FROM ? LIMIT 1"
        levels = rows(f"SELECT * FROM levels WHERE {_AROUND} {latest}", at, run)  # noqa: S608 - own text
        risk = rows(f"SELECT * FROM risk_snapshots WHERE {_AROUND} {latest}", at, run)  # noqa: S608 - own text
        out.append(
            Explanation(
                decision=decision,
                features=_features(context, names),
                trade=next(iter(rows(trades, trade_id, run)), None),
                levels=next(iter(levels), None),
                risk=next(iter(risk), None),
                alerts=rows(
                    "SELECT priority, code, message FROM alerts WHERE timestamp = make_timestamp_ns(?) "
                    "AND run_id IS NOT DISTINCT FROM ? ORDER BY sequence",
                    at,
                    run,
                ),
            )
        )
    return out


def _features(context: bytes | None, names: list[str]) -> dict[str, float]:
    if context is None:
        return {}
    values = struct.unpack(f"<{len(context) // 8}d", context)
    if len(names) != len(values):
        names = [f"#{k}" for k in range(len(values))]
    return dict(zip(names, values, strict=True))
