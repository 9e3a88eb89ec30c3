"""The page ``docs/risk-codes.md``: ``python -m mia_fast.risk.document > docs/risk-codes.md``."""

from __future__ import annotations

import sys

from mia_fast.risk import overtrading
from mia_fast.risk.codes import Category, Code
from mia_fast.risk.gate import RULES, Scope

_HEAD = """\
# Risk: denial codes

Generated from `mia_fast.risk.codes` by `python -m mia_fast.risk.document`; do not edit.

A denial reads `CODE: key=value ...`. Codes are stable. Cancels always pass. An order marked reduce-only that truly
reduces the position is an exit: it passes in every state of the desk and is refused only for the codes marked *exits
too*. Everything else is an entry. What is unknown, stale, missing or not finite refuses an entry. Every limit is in
`config/risk.yaml`, but for the drawdown limit: `max_drawdown` in `config/market_config.yaml`.

| code | meaning | what to do | exits too |
|---|---|---|---|
"""


def page() -> str:
    """The whole page, in Markdown."""
    exits = {code for rule in RULES if Scope.EXIT in rule.scope for code in rule.codes}
    exits |= {Code.ORDER_MISSING, Code.RISK_CHECK}
    rows = []
    for category in Category:
        rows.append(f"| **{category.name}** | *{category.value}* | | |")
        rows += [
            f"| `{code.name}` | {code.meaning} | {code.hint} | {'yes' if code in exits else ''} |"
            for code in Code
            if code.category is category
        ]
    return _HEAD + "\n".join(rows) + "\n\n## `overtrade_risk_score`\n\n" + overtrading.FORMULA + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
