"""The input tables: bars, trades, book, orders, chain, events, cross."""

from __future__ import annotations

from mia_fast.tables.frames import frame_of
from mia_fast.tables.live import PriceJumps, check_bar
from mia_fast.tables.mapping import InputsConfig, inputs, price_jumps
from mia_fast.tables.read import Table, read_table
from mia_fast.tables.schema import TABLES

__all__ = [
    "TABLES",
    "InputsConfig",
    "PriceJumps",
    "Table",
    "check_bar",
    "frame_of",
    "inputs",
    "price_jumps",
    "read_table",
]
