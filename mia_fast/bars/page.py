"""Writes ``docs/bars.md`` from the declarations: ``python -m mia_fast.bars.page docs/bars.md``."""

from __future__ import annotations

import sys
from pathlib import Path

from mia_fast.bars.columns import FROM_BOOK, FROM_ORDERS, FROM_TRADES, BarColumn
from mia_fast.files import write_text

_HEAD = """\
# Columns of the bars

This page is generated from `mia_fast/bars/columns.py`; change that file, then run
`python -m mia_fast.bars.page docs/bars.md`.

`mia-fast bars` and `mia_fast.bars.BarBuilder` make them. `timestamp` is the bar's start (of a volume bar its first
trade), `known_at` its end; nothing of a bar may be used before. `trade_date` is the session's. A bar without a trade
is not made. At one instant trades come first, then order messages, then snapshots. A column is empty where it has no
value: no book stood, nobody hit it, no horizon ended.
"""


def markdown() -> str:
    """The whole page."""
    parts = [_HEAD]
    for title, columns in (
        ("From trades", FROM_TRADES),
        ("From the book (snapshots, or order events)", FROM_BOOK),
        ("From order events", FROM_ORDERS),
    ):
        parts += [f"## {title}\n", _grid(columns)]
    parts.append(
        "Then the ten levels at the bar's end: `bid_price_k`, `bid_size_k`, `ask_price_k`, `ask_size_k`, k from 1.\n"
    )
    return "\n".join(parts)


def _grid(columns: tuple[BarColumn, ...]) -> str:
    lines = ["| column | unit | definition | source |", "|---|---|---|---|"]
    lines += [f"| `{c.name}` | {c.unit} | {c.definition.replace('|', chr(92) + '|')} | {c.source} |" for c in columns]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), markdown())
