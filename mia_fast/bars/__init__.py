"""From ticks to bars: trades, book snapshots and order events, sessions, gaps and rolls."""

from __future__ import annotations

from mia_fast.bars.aggressor import AggressorInference
from mia_fast.bars.builder import BarBuilder, Messages, Snapshots, Trades
from mia_fast.bars.gaps import gap_events
from mia_fast.bars.orderbook import OrderBook
from mia_fast.bars.rolls import back_adjust, continuous, roll_table
from mia_fast.bars.stream import make_bars

__all__ = [
    "AggressorInference",
    "BarBuilder",
    "Messages",
    "OrderBook",
    "Snapshots",
    "Trades",
    "back_adjust",
    "continuous",
    "gap_events",
    "make_bars",
    "roll_table",
]
