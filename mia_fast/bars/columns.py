"""What a bar holds, column by column: the order in which :mod:`mia_kernels.ticks` writes it, and what each means."""

from __future__ import annotations

from typing import NamedTuple

from mia_kernels import ticks


class BarColumn(NamedTuple):
    """One column: its name, unit, definition and source."""

    name: str
    unit: str
    definition: str
    source: str


_OWN = "this project"
_CONT = "Cont, Kukanov and Stoikov, J. Financial Econometrics 12 (2014)"
_HUANG = "Huang and Stoll, J. Financial Economics 41 (1996)"

FROM_TRADES = (
    BarColumn("open", "price", "first trade", "-"),
    BarColumn("high", "price", "highest trade", "-"),
    BarColumn("low", "price", "lowest trade", "-"),
    BarColumn("close", "price", "last trade", "-"),
    BarColumn("volume", "contracts", "traded, auctions included", "-"),
    BarColumn("trade_count", "trades", "number of trades", "-"),
    BarColumn("bid_volume", "contracts", "traded at the bid: the aggressor sold", "-"),
    BarColumn("ask_volume", "contracts", "traded at the ask: the aggressor bought", "-"),
    BarColumn("neutral_volume", "contracts", "traded without an aggressor (auctions), or not told", "-"),
    BarColumn("bid_trades", "trades", "trades whose aggressor sold", "-"),
    BarColumn("ask_trades", "trades", "trades whose aggressor bought", "-"),
    BarColumn("trade_vwap", "price", "sum of price x size over sum of size", "-"),
    BarColumn("delta_volume", "contracts", "ask_volume - bid_volume", "-"),
    BarColumn("cumulative_delta", "contracts", "delta_volume summed since the session's open", "-"),
    BarColumn("cumulative_delta_low", "contracts", "lowest cumulative delta inside the bar", "-"),
    BarColumn("cumulative_delta_high", "contracts", "highest cumulative delta inside the bar", "-"),
    BarColumn("aggressive_trade_ratio", "0..1", "share of the trades that have an aggressor", _OWN),
    BarColumn("trade_size_variance", "contracts^2", "variance (ddof 0) of the trades' sizes", "-"),
    BarColumn("trade_size_skew", "-", "third central moment over variance^1.5; empty when all sizes are equal", "-"),
    BarColumn("largest_trade", "contracts", "largest single trade", "-"),
    BarColumn("trade_frequency", "1/s", "trade_count over the bar's length", "-"),
    BarColumn(
        "tick_imbalance", "-1..1", "(upticks - downticks) / (upticks + downticks), against the trade before", "-"
    ),
)
FROM_BOOK = (
    BarColumn("snapshots", "rows", "book snapshots with a valid touch", "-"),
    BarColumn("ofi", "contracts", "sum of the contributions e_n of the touch over the snapshots", _CONT + ", eq. 2.1"),
    BarColumn("ofi_score", "-1..1", "ofi over the sum of |e_n|; 0 when nothing changed", _CONT + "; scaled here"),
    BarColumn(
        "ofi_5", "contracts", "e_n of each of the first five levels, summed", "Cont, Cucuringu and Zhang, QF 23 (2023)"
    ),
    BarColumn("effective_spread", "price", "2 |trade price - middle before the trade|, weighted by size", _HUANG),
    BarColumn(
        "realized_spread",
        "price",
        "2 d (trade price - middle a horizon later), d the aggressor's side, weighted by size, of the trades whose "
        "horizon "
        "ended in this bar; trades are taken together in slots of 1/32 of the horizon, measured from the slot's end",
        _HUANG,
    ),
    BarColumn("spread", "price", "ask - bid at the bar's end", "-"),
    BarColumn("spread_mean", "price", "ask - bid, weighted by time", "-"),
    BarColumn("order_book_depth", "contracts", "size of all levels of both sides, weighted by time", "-"),
    BarColumn("depth_imbalance", "-1..1", "(bids - asks) / (bids + asks) over all levels, weighted by time", "-"),
    BarColumn("order_imbalance", "-1..1", "(bid size - ask size) / (both) of the touch at the bar's end", "-"),
    BarColumn("bid_ask_imbalance", "-1..1", "the same over five levels at the bar's end", "-"),
    BarColumn("order_book_skew_10", "-1..1", "the same over all levels at the bar's end", "-"),
    BarColumn("bid_stacked", "contracts", "size that appeared at bids seen in both of two snapshots (5 levels)", _OWN),
    BarColumn("bid_pulled", "contracts", "size that went from those bids beyond what was sold meanwhile", _OWN),
    BarColumn("ask_stacked", "contracts", "size that appeared at asks seen in both of two snapshots (5 levels)", _OWN),
    BarColumn("ask_pulled", "contracts", "size that went from those asks beyond what was bought meanwhile", _OWN),
    BarColumn(
        "absorption_strength", "0..1", "share of the aggressive volume after which the touch it hit still stood", _OWN
    ),
    BarColumn("absorption_delta", "-1..1", "the same, absorbed at the bid minus absorbed at the ask", _OWN),
    BarColumn(
        "hidden_liquidity_ratio",
        "0..1",
        "share of the aggressive volume beyond the size shown at a touch that stood",
        _OWN,
    ),
)
FROM_ORDERS = (
    BarColumn("order_messages", "messages", "orders added, cancelled or modified; executions do not count", "-"),
    BarColumn("bid_added", "contracts", "size of the bids added", "-"),
    BarColumn("ask_added", "contracts", "size of the asks added", "-"),
    BarColumn("bid_cancelled", "contracts", "size of the bids cancelled, executions left out", "-"),
    BarColumn("ask_cancelled", "contracts", "size of the asks cancelled, executions left out", "-"),
    BarColumn("order_cancellation_ratio", "0..1", "cancelled over added and cancelled size", _OWN),
    BarColumn(
        "spoofing_score",
        "0..1",
        "share of the cancelled size that came from orders of at least twice the mean size, untouched, withdrawn "
        "within "
        "the window (10 s), while an aggressor traded against the other side of the book",
        "after Lee, Eom and Park, J. Financial Markets 16 (2013)",
    ),
    BarColumn(
        "quote_stuffing_ratio",
        "0..1",
        "share of the cancels that withdraw an untouched order within 100 ms of its arrival",
        "fleeting orders: Hasbrouck and Saar, J. Financial Markets 12 (2009)",
    ),
    BarColumn(
        "quote_stuffing_intensity",
        "0..1",
        "z / (z + 20), z how many Poisson deviations the busiest second has more messages than the bar's mean second",
        "Egginton, Van Ness and Van Ness, Financial Management 45 (2016)",
    ),
)
LEVELS = tuple(
    BarColumn(f"{side}_{what}_{level}", unit, f"{side} {what}, level {level}, at the bar's end", "-")
    for side in ("bid", "ask")
    for what, unit in (("price", "price"), ("size", "contracts"))
    for level in range(1, ticks.DEPTH + 1)
)
COLUMNS = (*FROM_TRADES, *FROM_BOOK, *FROM_ORDERS, *LEVELS)


def wanted(levels: int, orders: bool) -> list[int]:
    """Positions of the columns that streams with ``levels`` of a book and (or without) orders can fill."""
    places = list(range(ticks.FIRST_BOOK_COLUMN))
    if levels:
        places += range(ticks.FIRST_BOOK_COLUMN, ticks.FIRST_ORDER_COLUMN)
    if orders:
        places += range(ticks.FIRST_ORDER_COLUMN, ticks.OUT_BOOK)
    places += [ticks.OUT_BOOK + k * ticks.DEPTH + level for k in range(4) for level in range(min(levels, ticks.DEPTH))]
    return places
