"""Compile what a desk needs before the market opens."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final


def _features() -> None:
    import numpy as np

    from mia_fast.features.catalogue import read
    from mia_fast.features.engine import FeatureEngine
    from mia_fast.features.plan import make_plan
    from mia_fast.workspace import Workspace, shipped

    names = ("open", "high", "low", "close", "volume")
    plan = make_plan(read(Workspace(shipped())), names, bar_minutes=1.0, tick_size=0.25)
    FeatureEngine(plan).batch(np.array([60_000_000_000]), dict.fromkeys(names, np.array([100.0])))


def _bitmaps() -> None:
    import numpy as np

    from mia_kernels.validity import validity_bitmap

    validity_bitmap(np.zeros(8), np.zeros(8, dtype=np.uint8))


def _risk() -> None:
    import numpy as np

    from mia_kernels.account import daily_loss, initial_day_state, overtrading
    from mia_kernels.drawdown import drawdown, initial_state
    from mia_kernels.limits import LIMITS, VALUES, failed_limits

    drawdown(np.ones(1), initial_state(), np.ones(1))
    daily_loss(np.ones(1), np.ones(1), initial_day_state(), np.ones(1))
    overtrading(np.zeros(1, dtype=np.int64), np.ones(1), np.ones(1), 1.0, 1.0, 1.0, np.ones(1))
    failed_limits(np.ones(len(VALUES)), np.ones(len(LIMITS)))


def _options() -> None:
    from mia_fast.options.config import options_config
    from mia_fast.options.levels import LevelsEngine
    from mia_fast.tables import read_table
    from mia_fast.workspace import Workspace, shipped

    place = Workspace(shipped())
    chain = read_table("chain", shipped() / "data" / "sample" / "chain.parquet", workspace=place).frame
    engine = LevelsEngine(options_config(place))
    first = chain.filter(chain["quote_time"] == chain["quote_time"].min())
    engine.update_spot(1.0001 * (engine.update(first).underlying_price or 1.0))
    engine.update_quotes(first.head(1))


def _bars() -> None:
    import numpy as np
    import polars as pl

    from mia_fast.bars import AggressorInference, BarBuilder, OrderBook, Trades

    time = np.array([60_000_000_000])
    trades = Trades(time, np.ones(1), np.ones(1), np.zeros(1, dtype=np.int8))
    BarBuilder(interval_ns=60_000_000_000).feed(AggressorInference().fill(trades))
    order = {"action": "A", "side": 1, "price": 100.0, "size": 1.0, "order_id": 1}
    stamp = pl.Series([60_000_000_000]).cast(pl.Datetime("ns", "UTC"))
    OrderBook(0.25).apply(pl.DataFrame({"timestamp": stamp, **order}).cast({"side": pl.Int8}))


def _memory() -> None:
    import numpy as np

    from mia_fast.memory.index import OUTCOMES, NeighbourIndex

    index = NeighbourIndex(2)
    one = np.zeros(1, dtype=np.int64)
    index.append(one, np.zeros((1, 2)), np.ones(1), one, np.zeros(1, dtype=np.bool_))
    index.nearest(np.zeros(2), 1, wanted=OUTCOMES["all"])


def _models() -> None:
    from mia_models.drift import Drift

    drift = Drift(1.0, 1.0)
    drift.walk([100.0], [20.0], [0.0], [20.0], [0.1])
    drift.update(100.0, 20.0, 0.0, 20.0, 0.1)
    drift.restore(drift.save())


STEPS: Final[dict[str, Callable[[], None]]] = {
    "features": _features,
    "bitmaps": _bitmaps,
    "risk": _risk,
    "options": _options,
    "bars": _bars,
    "memory": _memory,
    "models": _models,
}


def warmup(progress: Callable[[int, str], None] | None = None) -> tuple[dict[str, float], Path]:
    """Run every kernel once; returns the seconds each step took and where the machine code is."""
    from mia_kernels.compile import cache_dir

    seconds = {}
    for done, (name, step) in enumerate(STEPS.items()):
        if progress is not None:
            progress(done, name)
        began = time.perf_counter()
        step()
        seconds[name] = time.perf_counter() - began
    if progress is not None:
        progress(len(STEPS), "")
    return seconds, cache_dir()
