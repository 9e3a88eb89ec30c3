"""Writes ``docs/tables.md`` from the declarations: ``python -m mia_fast.tables.page docs/tables.md``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mia_fast.files import write_text
from mia_fast.tables.schema import DUPLICATE, OVERLAP, PRICE_JUMP, REFUSALS, TABLES, Column, TableSpec

_TYPES = {
    "instant": 'Datetime("ns", "UTC")',
    "date": "Date",
    "real": "Float64",
    "integer": "Int64",
    "side": "Int8",
    "text": "String",
}

_INTRODUCTION = """\
# The input tables

This page is generated from `mia_fast/tables/schema.py`; change that file, then run
`python -m mia_fast.tables.page docs/tables.md`.

`mia_fast.tables.read_table(kind, source)` reads a table from Parquet (`.parquet`, `.pq`), CSV (`.csv`, `.csv.gz`) or a
frame that speaks the Arrow PyCapsule interface (Polars, pandas, pyarrow, a DuckDB relation). `config/inputs.yaml` maps
other people's names, words, stamps and time zones; a workspace's own file replaces the shipped one. Names are compared
without regard to case. The result holds the required columns, then the optional ones that are there, then the source's
other numeric columns as they were.

Float64 columns of a frame in one chunk are not copied unless rows are taken out.

## Faults of the whole input

They are refused with an error that names the source, the row (0-based), the value and what to do. Nothing of the input
is used.
"""

_ROWS = """\
## Faults of single rows

A row that breaks one of the rules below its table is taken out and listed in the quarantine with its row (0-based in
the source), column, value, rule and hint; if it breaks several, under the first. When more than `max_quarantined_share`
of the rows are faulty, the whole input is refused.

The conditions are SQL. `{column}` stands for each of the rule's columns in turn, `{level}` and `{next}` for
neighbouring levels of the book. A required field may not be empty, NaN or infinite; an optional one may be empty.

Rows that repeat one another are judged last, among the rows that pass all other rules, so that a faulty row never
displaces its correction. Bars are measured against the last good bar of their symbol, as in the live path
(`mia_fast.tables.check_bar`, `mia_fast.tables.PriceJumps`).

`price_jump` is what a bad print breaks: a bar of half or ten times the price passes every other rule, and would be a
loss, a latch and a wrong forecast. The shipped limit of 20 % is the widest band in which the CME lets its equity index
futures trade in a day; within one bar they cannot leave it. A true move beyond it is not refused for ever: the third
bar in a row near the new level is accepted, and so is a bar 30 minutes after the last good one (the CME's daily pause
has 60), whatever its price. The rule sees one bar after the other: nothing looks ahead, and the first bar of all, or of
a file, has nothing to be measured against. Bars of 30 minutes or longer may each begin a session: the rule passes them.
"""


def markdown() -> str:
    """The whole page."""
    parts = [_INTRODUCTION, _refusals(), _ROWS, *(_table(spec) for spec in TABLES.values())]
    return "\n".join(parts)


def _refusals() -> str:
    rows = [
        (f"`{fault.name}`", fault.when, fault.hint.replace("{key}", "the key named there"))
        for fault in REFUSALS.values()
    ]
    return _grid(("fault", "when", "hint"), rows)


def _table(spec: TableSpec) -> str:
    order = f"`{spec.clock}` may not step back"
    if spec.series:
        order += " within one " + " and ".join(f"`{name}`" for name in spec.series) + " (where present)"
    columns = [
        (_name(column), _TYPES[column.type], column.unit, _need(column), column.about) for column in spec.columns
    ]
    rules = [
        (f"`{rule.name}`", ", ".join(f"`{name}`" for name in rule.columns), f"`{rule.holds}`", rule.hint)
        for rule in spec.rules
    ]
    if spec.unique:
        rules.append(
            (f"`{DUPLICATE.name}`", ", ".join(f"`{name}`" for name in spec.unique), DUPLICATE.holds, DUPLICATE.hint)
        )
    if spec.kind == "bars":
        rules.append((f"`{OVERLAP.name}`", f"`{spec.clock}`", OVERLAP.holds, OVERLAP.hint))
        columns_of = ", ".join(f"`{name}`" for name in PRICE_JUMP.columns)
        rules.append((f"`{PRICE_JUMP.name}`", columns_of, PRICE_JUMP.holds, PRICE_JUMP.hint))
    return "\n".join(
        (
            f"## {spec.kind}\n",
            f"{spec.about}\n",
            f"Order: {order}.\n",
            _grid(("column", "type", "unit", "", "meaning"), columns),
            _grid(("rule", "columns", "every row must meet", "hint"), rules),
        )
    )


def _name(column: Column) -> str:
    return f"`{column.name}_1..{column.levels}`" if column.levels else f"`{column.name}`"


def _need(column: Column) -> str:
    if not column.required:
        return "optional"
    return "level 1 required" if column.levels else "required"


def _grid(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), markdown())
