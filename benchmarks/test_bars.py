"""Ticks to bars and order events to a book, against Polars, hftbacktest and nautilus_trader.

Parity first, then both timed in turns in one process. hftbacktest and nautilus_trader hold NumPy below 2.3 and pandas
below 3: their comparisons are skipped where they are not installed (docs/decisions/0040-ticks-to-bars.md says how they
ran).
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest

from mia_fast.bars import BarBuilder, OrderBook, Snapshots, Trades
from mia_fast.tables import read_table
from mia_fast.workspace import Workspace, shipped

MINUTE = 60_000_000_000
PLACE = Workspace(shipped())
REAL = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "l2"
ES = REAL / "es_mbo_esh4_20231225.parquet"
REPEAT = 40


def _medians(rounds: int, **actions: Callable[[], object]) -> dict[str, float]:
    spent: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()
    for _ in range(rounds):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            spent[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in spent.items()}


def _trades(n: int = 5_000_000) -> Trades:
    rng = np.random.default_rng(7)
    times = 1_700_000_040_000_000_000 + np.sort(rng.integers(0, 86_400 * 10**9, n))
    price = 5000 + 0.25 * np.cumsum(rng.integers(-1, 2, n))
    side = rng.choice(np.array([-1, 1], dtype=np.int8), n)
    return Trades(times, price, rng.integers(1, 20, n).astype(float), side)


def test_trades_to_bars_against_polars() -> None:
    trades = _trades()
    frame = pl.DataFrame({"t": trades.time, "p": trades.price, "s": trades.size, "d": trades.side}).with_columns(
        pl.col("t").cast(pl.Datetime("ns"))
    )
    p, s, d = pl.col("p"), pl.col("s"), pl.col("d")

    def peer() -> pl.DataFrame:
        return frame.group_by_dynamic("t", every="1m").agg(
            p.first().alias("open"), p.max().alias("high"), p.min().alias("low"), p.last().alias("close"),
            s.sum().alias("volume"), s.filter(d < 0).sum().alias("bid_volume"),
            s.filter(d > 0).sum().alias("ask_volume"),
        )  # fmt: skip

    def ours() -> pl.DataFrame:
        builder = BarBuilder(interval_ns=MINUTE)
        return pl.concat((builder.feed(trades)[0], builder.finish()))

    names = ["open", "high", "low", "close", "volume", "bid_volume", "ask_volume"]
    assert ours().select(names).equals(peer().select(names))
    found = _medians(5, ours=ours, peer=peer)
    n = trades.time.size
    print(f"\n{platform.processor() or platform.machine()}: {n:,} trades to 1-minute bars, all 22 columns")
    print(f"  mia-fast {n / found['ours'] / 1e6:.0f} M/s (one thread), Polars with 7 columns "
          f"{n / found['peer'] / 1e6:.0f} M/s (all threads): {found['peer'] / found['ours']:.2f} x")  # fmt: skip


def test_snapshots_against_reading_them(tmp_path: Path) -> None:
    frame = read_table("book", shipped() / "data" / "sample" / "book.parquet", workspace=PLACE).frame
    days = [frame.with_columns(pl.col("timestamp") + pl.duration(days=7 * k)) for k in range(20)]
    path = tmp_path / "book.parquet"
    pl.concat(days).write_parquet(path)
    table = read_table("book", path, workspace=PLACE).frame
    book = Snapshots.of(table)

    def bars() -> int:
        builder = BarBuilder(interval_ns=MINUTE, levels=10)
        builder.feed(None, book)
        return builder.crossed

    assert bars() == 0
    found = _medians(7, bars=bars, read=lambda: pl.read_parquet(path))
    n = table.height
    print(f"\n{n:,} snapshots of ten levels: bars {found['bars'] / n * 1e9:.0f} ns each, reading the Parquet file "
          f"{found['read'] / n * 1e9:.0f} ns each (all threads): {found['bars'] / found['read']:.2f} x")  # fmt: skip


def _events() -> pl.DataFrame:
    if not ES.exists():
        pytest.skip(f"no real data at {ES}")
    return read_table("orders", ES, workspace=PLACE).frame


def _again(frame: pl.DataFrame) -> pl.DataFrame:
    """The hour again and again, each time on a book that was cleared, so that start-up does not count."""
    clear = frame.head(1).with_columns(
        pl.lit("R").alias("action"), pl.lit(0, pl.Int8).alias("side"), (pl.col("flags") | 32).alias("flags")
    )
    span = frame["timestamp"][-1] - frame["timestamp"][0]
    parts = []
    for k in range(REPEAT):
        part = pl.concat((clear, frame)) if k else frame
        parts.append(part.with_columns(pl.col("timestamp") + span * k, sequence=pl.col("sequence") + 10**7 * k))
    return pl.concat(parts)


def _apply(frame: pl.DataFrame, show: Literal["changes", "none"]) -> None:
    """In blocks, as a file is read."""
    book = OrderBook(0.25)
    for at in range(0, frame.height, 1 << 16):
        book.apply(frame[at : at + (1 << 16)], show=show)


def test_order_events_against_hftbacktest() -> None:
    hft = pytest.importorskip("hftbacktest")
    from numba import njit

    frame = _events().filter(pl.col("action") != "F")
    whole = _again(frame)
    book = OrderBook(0.25)
    last = book.apply(frame).levels[-1]

    # A partial cancel is a change of size in the peer's vocabulary.
    rest: dict[int, float] = {}
    rows = []
    for now, action, side, price, size, order in frame.select(
        pl.col("timestamp").dt.epoch("ns"), "action", "side", "price", "size", "order_id"
    ).iter_rows():
        kind = {"A": hft.types.ADD_ORDER_EVENT, "M": hft.types.MODIFY_ORDER_EVENT, "C": hft.types.CANCEL_ORDER_EVENT,
                "T": hft.types.TRADE_EVENT}[action]  # fmt: skip
        left = size
        if action in "AM":
            rest[order] = size
        elif action == "C":
            rest[order] -= size
            if rest[order] > 0:
                kind, left = hft.types.MODIFY_ORDER_EVENT, rest[order]
        way = hft.types.BUY_EVENT if side > 0 else hft.types.SELL_EVENT if side < 0 else 0
        rows.append((kind | way | hft.types.EXCH_EVENT | hft.types.LOCAL_EVENT, now, now, price, left, order, 0, 0.0))
    events = np.array(rows, dtype=hft.types.event_dtype)

    @njit
    def touch(test: object) -> tuple[float, float, int]:
        test.elapse(10**15)  # type: ignore[attr-defined]
        depth = test.depth(0)  # type: ignore[attr-defined]
        return depth.best_bid, depth.best_ask, test.current_timestamp  # type: ignore[attr-defined]

    def peer(data: np.ndarray) -> tuple[tuple[float, float, int], float]:
        asset = (
            hft.BacktestAsset().data([data]).linear_asset(1.0).constant_order_latency(0, 0).l3_fifo_queue_model()
            .no_partial_fill_exchange().trading_value_fee_model(0.0, 0.0).tick_size(0.25).lot_size(1.0)
        )  # fmt: skip
        test = hft.HashMapMarketDepthBacktest([asset])
        began = time.perf_counter()
        found = touch(test)
        spent = time.perf_counter() - began
        test.close()
        return found, spent

    found, _ = peer(events)
    assert found[:2] == (last[0] * 0.25, last[30] * 0.25)
    theirs = [peer(events)[1] for _ in range(5)]
    ours = _medians(5, book=lambda: _apply(whole, "none"), levels=lambda: _apply(whole, "changes"))
    theirs += [peer(events)[1] for _ in range(5)]
    two = statistics.median(theirs) / len(events) * 1e9
    _tell(f"hftbacktest {hft.__version__} (it keeps two books, the exchange's and the local one)", whole, ours, two)


def test_order_events_against_nautilus() -> None:
    pytest.importorskip("nautilus_trader")
    from nautilus_trader.model.book import OrderBook as Peer
    from nautilus_trader.model.data import BookOrder, OrderBookDelta
    from nautilus_trader.model.enums import BookAction, BookType, OrderSide
    from nautilus_trader.model.identifiers import InstrumentId
    from nautilus_trader.model.objects import Price, Quantity

    frame = _events().filter(pl.col("action").is_in(["A", "C", "M"]))
    last = OrderBook(0.25).apply(frame).levels[-1]
    instrument = InstrumentId.from_str("ESH4.GLBX")
    rest: dict[int, float] = {}
    deltas = []
    for now, action, side, price, size, order in frame.select(
        pl.col("timestamp").dt.epoch("ns"), "action", "side", "price", "size", "order_id"
    ).iter_rows():
        kind = {"A": BookAction.ADD, "M": BookAction.UPDATE, "C": BookAction.DELETE}[action]
        left = size
        if action in "AM":
            rest[order] = size
        else:
            rest[order] -= size
            if rest[order] > 0:
                kind, left = BookAction.UPDATE, rest[order]
        one = BookOrder(OrderSide.BUY if side > 0 else OrderSide.SELL, Price(price, 2), Quantity(left, 0), order)
        deltas.append(OrderBookDelta(instrument, kind, one, 0, 0, now, now))

    def peer() -> tuple[float, float]:
        book = Peer(instrument, BookType.L3_MBO)
        for delta in deltas:
            book.apply_delta(delta)
        return float(book.best_bid_price()), float(book.best_ask_price())

    assert peer() == (last[0] * 0.25, last[30] * 0.25)
    whole = _again(frame)
    found = _medians(5, book=lambda: _apply(whole, "none"), levels=lambda: _apply(whole, "changes"), peer=peer)
    _tell("nautilus_trader, called from Python", whole, found, found["peer"] / len(deltas) * 1e9)


def _tell(peer: str, frame: pl.DataFrame, ours: dict[str, float], theirs: float) -> None:
    book, levels = (ours[name] / frame.height * 1e9 for name in ("book", "levels"))
    print(f"\n{frame.height:,} ES order events: {peer} {theirs:.0f} ns each;")
    print(f"  mia-fast {book:.0f} ns, {theirs / book:.1f} x; "
          f"with every ten-level snapshot written {levels:.0f} ns, {theirs / levels:.1f} x")  # fmt: skip
