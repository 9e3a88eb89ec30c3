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

_SETTING = """\

## How a desk sets its limits

`config/risk.yaml` ships starting values for one ES contract on 250,000 USD, each with the reason beside it. They are
not advice. Copy the file into the workspace's `config` and go from the money to the order:

1. **What may be lost at all**: `max_drawdown` (market_config.yaml), a fraction of peak equity. It latches, so it is the
   loss after which a person looks, not a daily event. The market memory may halve it, never raise it.
2. **What a day may lose**: `max_daily_loss`, clearly below it, so that a bad day ends before the latch.
3. **What a trade may lose**: `max_trade_risk`, so that a day holds several full stops. It and the distance of the stop
   give the quantity: `quantity <= max_trade_risk * equity / (distance * point_value)`. A stop is not a promise: a gap
   fills beyond it, so size for the gap as well.
4. **What may be held**: `max_position` from the margin the account can carry in a bad week (`margin_per_contract` as
   the broker states it, not the exchange's minimum), then `max_quantity` and `max_notional` as nets for slips.
5. **What is normal**: run `mia-fast run` over quiet and violent weeks (March 2020, the days of the FOMC), read the
   table of blocks, and set `max_entries_per_day`, `max_orders` and `collar` two to three times above what was seen.
6. **What is fresh**: `freshness` from the feed: one missed bar is tolerated, two are not.

A change takes effect at the next start, and its digest stands in every decision of the journal. An absent or misspelt
limit starts nothing.
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
    return _HEAD + "\n".join(rows) + "\n\n## `overtrade_risk_score`\n\n" + overtrading.FORMULA + "\n" + _SETTING


if __name__ == "__main__":
    sys.stdout.write(page())
