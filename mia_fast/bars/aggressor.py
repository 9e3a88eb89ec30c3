"""Who the aggressor was, where the feed does not say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mia_fast.bars.builder import Bytes, Floats, Integers, Trades
from mia_kernels import ticks

_NO_TIMES, _NO_PRICES = np.empty(0, dtype=np.int64), np.empty(0)


class AggressorInference:
    """Fills sides that are 0 by Lee and Ready (J. Finance 46, 1991), or by the tick rule without quotes.

    A trade above the middle of the quote before it was bought, below it sold; at the middle, and where no quote
    stands, the last price change decides. Trades may come in blocks of any size.
    """

    def __init__(self) -> None:
        self._state = np.array([math.nan, 0.0, math.nan, math.nan])

    def fill(
        self,
        trades: Trades,
        quote_time: Integers | None = None,
        bid: Floats | None = None,
        ask: Floats | None = None,
        *,
        lag_ns: int = 0,
    ) -> Trades:
        """The same trades with sides.

        Parameters
        ----------
        trades
            The next trades.
        quote_time, bid, ask
            (k,) the quotes up to the last of these trades (ns UTC ascending), without those given before.
        lag_ns
            Only quotes older than this count; what a feed needs whose quotes run ahead of its trades.
        """
        side = trades.side.copy()
        times = _NO_TIMES if quote_time is None else own_array(quote_time, np.int64)
        bids = _NO_PRICES if bid is None else own_array(bid, np.float64)
        asks = _NO_PRICES if ask is None else own_array(ask, np.float64)
        taken = ticks.infer_sides(
            own_array(trades.price, np.float64),
            own_array(trades.time, np.int64),
            times,
            bids,
            asks,
            lag_ns,
            times.size,
            side,
            self._state,
        )
        if taken < times.size and lag_ns == 0:
            self._state[2], self._state[3] = bids[-1], asks[-1]  # they stand when the next block begins
        return Trades(trades.time, trades.price, trades.size, side)


def accuracy(inferred: Bytes, told: Bytes) -> float:
    """Share of the trades whose aggressor is told that were inferred rightly; NaN without any."""
    known = told != 0
    return float(np.mean(inferred[known] == told[known])) if known.any() else math.nan


def own_array(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """A writeable array of exactly this type: a frame's own memory is read-only, which Numba compiles anew for."""
    return np.require(values, dtype=dtype, requirements=["C", "W"])
