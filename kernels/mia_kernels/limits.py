"""The limits that are arithmetic, of one order or of many accounts at once: one bit for each that fails.

The gate asks with a row of one; a backtest with a row per account and step. Each condition is written
so that NaN fails it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mia_kernels.compile import kernel

VALUES: Final = (
    "quantity",  # contracts, signed: a buy is positive
    "price",  # limit price, index points; of a market order the reference
    "stop",  # protective stop, index points; NaN where the order has none
    "reference",  # last price, index points
    "position",  # contracts, signed
    "buying",  # contracts in working and in-flight buys
    "selling",  # contracts in working and in-flight sells
    "equity",  # USD, realised plus open
    "peak",  # highest equity to date, USD
    "drawdown",  # fraction of the peak at the last mark
    "drawdown_limit",  # fraction, tightened
    "day_open",  # equity at which the trade date opened, USD
)
"""Columns of a row of values, in this order."""

LIMITS: Final = (
    "max_quantity",  # contracts per order
    "max_notional",  # USD per order
    "max_position",  # contracts, working and in-flight orders included
    "collar",  # fraction of the reference, either side
    "margin",  # USD per contract
    "max_daily_loss",  # fraction of the equity at the open of the trade date
    "max_trade_risk",  # fraction of equity between price and protective stop
    "stop_required",  # 1: an order without a protective stop fails
    "point_value",  # USD per index point and contract
)
"""What they are held against, in this order."""

CHECKS: Final = (
    "quantity",
    "notional",
    "position",
    "collar",
    "margin",
    "drawdown",
    "daily_loss",
    "stop",
    "trade_risk",
)
"""Bit k of the answer is set when check k fails."""


@kernel
def failed_limits(v: NDArray[np.float64], limit: NDArray[np.float64]) -> int:
    """The checks that one order fails, as bits in the order of :data:`CHECKS`; 0 when it passes all.

    Parameters
    ----------
    v
        Shape (len(VALUES),).
    limit
        Shape (len(LIMITS),).
    """
    signed, price, stop, reference = v[0], v[1], v[2], v[3]
    position, buying, selling = v[4], v[5], v[6]
    equity, peak, drawdown, drawdown_limit, day_open = v[7], v[8], v[9], v[10], v[11]
    size = abs(signed)
    point_value = limit[8]
    worst = position + buying + signed if signed > 0.0 else -(position - selling + signed)
    open_orders = buying if signed > 0.0 else selling
    now_below = (peak - equity) / peak if peak > 0.0 else np.nan
    below = now_below if now_below > drawdown else drawdown
    finite = (equity - equity == 0.0) & (drawdown - drawdown == 0.0) & (now_below - now_below == 0.0)
    absent = np.isnan(stop)
    right_side = (stop > 0.0) & ((price - stop) * signed > 0.0)
    bits = 0
    bits |= 0 if (size > 0.0) & (size <= limit[0]) else 1
    bits |= 0 if size * price * point_value <= limit[1] else 2
    bits |= 0 if worst <= limit[2] else 4
    known = (reference > 0.0) & (reference - reference == 0.0)
    bits |= 0 if known & (abs(price - reference) <= limit[3] * reference) else 8
    bits |= 0 if (abs(position) + open_orders + size) * limit[4] <= equity else 16
    bits |= 0 if finite & (below <= drawdown_limit) else 32
    bits |= 0 if day_open - equity <= limit[5] * day_open else 64
    bits |= 0 if (right_side if not absent else limit[7] == 0.0) else 128
    bits |= 0 if absent | (abs(price - stop) * size * point_value <= limit[6] * equity) else 256
    return bits
