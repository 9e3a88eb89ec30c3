"""The stored states nearest to a moment of a file of bars, and what the price did after each."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl

from mia_fast import clock
from mia_fast import memory as memories
from mia_fast.errors import DataError
from mia_fast.memory.store import Outcome
from mia_fast.workspace import Workspace


@dataclass(frozen=True)
class Nearest:
    """Neighbours of a moment.

    Attributes
    ----------
    at_ns
        The moment: the close of a bar, ns UTC.
    frame
        As :func:`mia_fast.recall_patterns` returns it.
    followed
        For each neighbour the change of the close, index points, at each bar after it, beginning with 0; shorter than
        ``minutes`` where the bars end, empty where they do not hold its time.
    own
        The same after the moment itself, as far as the bars go.
    minutes
        How many bars were looked at.
    """

    at_ns: int
    frame: pl.DataFrame
    followed: list[list[float]]
    own: list[float]
    minutes: int


def nearest_to(
    workspace: Workspace,
    bars: Path,
    *,
    at: dt.datetime | None = None,
    k: int = 10,
    outcome: str = "closed",
    minutes: int = 60,
    cross: Sequence[Path] | None = None,
) -> Nearest:
    """Recall the states nearest to the last bar known by ``at``, by outcomes that were known then.

    Parameters
    ----------
    workspace
        Whose memory and catalogue.
    bars, cross
        As for :func:`mia_fast.generate_features`.
    at
        Aware; default: the last bar.
    k, outcome
        As for :func:`mia_fast.recall_patterns`.
    minutes
        How many bars after each state to look at.

    Raises
    ------
    DataError
        The bars cannot be used, none of them is known by ``at`` or they end before it, or ``outcome`` is not known.
    MarketMemoryError
        The memory cannot be read, or too much of the moment's state is missing.
    """
    from mia_fast.features.engine import FeatureEngine
    from mia_fast.features.frame import input_arrays, market_sources, one_symbol, plan_for, read_cross
    from mia_fast.tables import read_table

    if outcome not in ("winning", "losing", "closed", "all"):
        raise DataError(f"outcome {outcome!r} is not known", where="--outcome", hint="winning, losing, closed or all")
    table = read_table("bars", bars, workspace=workspace)
    one_symbol(table)
    sources = market_sources(read_cross(list(cross), workspace).frame, workspace) if cross else ()
    times = table.frame["known_at"].dt.epoch("ns").to_numpy()
    last = len(times) if at is None else int(np.searchsorted(times, clock.from_datetime(at), side="right"))
    if not last:
        raise DataError(
            "no bar is known by then",
            where=str(bars),
            hint=f"the first bar is known at {clock.iso(int(times[0]))}",
            then="nothing was recalled",
        )
    assert table.interval_ns is not None
    if at is not None and clock.from_datetime(at) >= int(times[-1]) + max(table.interval_ns, clock.NS_PER_MINUTE):
        raise DataError(
            f"the bars end before: the last is known at {clock.iso(int(times[-1]))}",
            where=str(bars),
            hint="name a moment that the bars cover, or give bars that go on to it",
            then="nothing was recalled",
        )
    plan = plan_for(table, workspace=workspace, sources=sources)
    seen = dataclasses.replace(table, frame=table.frame.head(last))
    known_at, columns = input_arrays(plan, seen, sources)
    state = FeatureEngine(plan).batch(known_at, columns)[:, -1]
    store = memories.of(workspace)
    values = store.vector({name: float(x) for name, x in zip(plan.outputs, state, strict=True)})
    at_ns = int(known_at[-1])
    frame = store.describe(store.nearest(values, k, cast(Outcome, outcome), until=at_ns))
    closes = table.frame["close"].cast(pl.Float64).to_numpy()

    def after(instant: int) -> list[float]:
        first = int(np.searchsorted(times, instant, side="right")) - 1
        if first < 0 or (first == len(times) - 1 and instant > int(times[-1])):
            return []
        path: list[float] = (closes[first : first + minutes + 1] - closes[first]).tolist()
        return path

    instants = frame["timestamp"].dt.epoch("ns").to_list()
    followed = [[] if instant is None else after(instant) for instant in instants]
    return Nearest(at_ns, frame, followed, after(at_ns), minutes)
