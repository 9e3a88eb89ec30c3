"""The input tables: bars, trades, book, orders, chain, events, cross."""

from __future__ import annotations

from mia_fast.tables.frames import frame_of
from mia_fast.tables.live import check_bar
from mia_fast.tables.mapping import InputsConfig, inputs
from mia_fast.tables.read import Table, read_table
from mia_fast.tables.schema import TABLES

__all__ = ["TABLES", "InputsConfig", "Table", "check_bar", "frame_of", "inputs", "read_table"]
