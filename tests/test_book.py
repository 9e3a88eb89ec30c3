"""The order book: against the given snapshots, a book of dictionaries, and streams with faults."""

from __future__ import annotations

from pathlib import Path

import naive_bars
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mia_fast.bars import OrderBook
from mia_fast.errors import ConfigError, DataError, StateError
from mia_fast.tables import read_table
from mia_fast.workspace import Workspace, shipped
from mia_kernels import book as kernels

PLACE = Workspace(shipped())
ES = "l2/es_mbo_esh4_20231225.parquet"


def _events(rows, **more):
    """Frame of ``orders`` from (action, side, price, size, order_id)."""
    action, side, price, size, order = zip(*rows, strict=True)
    return pl.DataFrame(
        {
            "timestamp": pl.Series(np.arange(len(rows)) * 1_000_000 + 10**18).cast(pl.Datetime("ns", "UTC")),
            "action": action,
            "side": pl.Series(side, dtype=pl.Int8),
            "price": [float(p) for p in price],
            "size": [float(s) for s in size],
            "order_id": order,
            **more,
        }
    )


def _rules(block):
    return list(zip(block.quarantine["row"], block.quarantine["rule"], strict=True))


def _levels(row, side):
    base = 0 if side > 0 else 3 * kernels.DEPTH
    prices, sizes, counts = (row[base + k * 10 : base + k * 10 + 10].tolist() for k in range(3))
    return [(p, s, c) for p, s, c in zip(prices, sizes, counts, strict=True) if c]


@pytest.mark.parametrize("rows", [10**6, 1009])
def test_ten_levels_equal_the_given_snapshots(real_data: Path, rows):
    frame = read_table("orders", real_data / ES, workspace=PLACE).frame
    book = OrderBook(0.25)
    blocks = [book.apply(frame[at : at + rows]) for at in range(0, frame.height, rows)]
    assert not sum(block.quarantine.height for block in blocks)
    found = pl.concat([block.frame() for block in blocks])
    given_ = pl.read_parquet(real_data / "l2/es_mbp10_esh4_20231225.parquet")
    pairs = [
        (f"{side}_{what}_{k + 1}", f"{side}_{short}_{k:02d}")
        for side in ("bid", "ask")
        for what, short in (("price", "px"), ("size", "sz"), ("orders", "ct"))
        for k in range(10)
    ]
    ours = found.select(pl.col(a).cast(pl.Float64) for a, _ in pairs).fill_null(0.0).to_numpy()
    theirs = given_.select(pl.col(b).cast(pl.Float64) for _, b in pairs).fill_null(0.0).to_numpy()
    changed = np.append(True, (ours[1:] != ours[:-1]).any(axis=1))
    assert given_.height == 20_479
    assert np.array_equal(ours[changed], theirs)
    stamps = found["timestamp"].to_numpy()[changed]
    assert np.array_equal(stamps, given_["ts_recv"].to_numpy())
    # The pre-open book is crossed, the book in trading never.
    auction = found["auction"].to_numpy()[changed]
    opened = np.datetime64("2023-12-25T23:00:00")
    assert auction.sum() == 143
    assert stamps[auction].max() < opened + np.timedelta64(110, "ms")
    assert not auction[stamps > opened + np.timedelta64(1, "s")].any()
    assert book.orders == 10_877


_ACTIONS = st.tuples(
    st.sampled_from("AAAACCMMFTR"),
    st.sampled_from([1, -1]),
    st.integers(-14, 14),
    st.integers(-1, 6),
    st.integers(1, 25),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_ACTIONS, min_size=1, max_size=120))
def test_the_book_is_the_book_of_dictionaries(events):
    book, twin = OrderBook(0.5, rungs=64), naive_bars.Book()
    rows = [(a, s, 100 + p * 0.5, q, i) for a, s, p, q, i in events if not (a == "R" and q < 5)]
    if not rows:
        return
    block = book.apply(_events(rows), show="every")
    faults = dict(_rules(block))
    for k, (action, side, price, size, order) in enumerate(rows):
        assert faults.get(k) == _maybe_off_ladder(twin, (action, side, price, size, order), faults.get(k)), k
        row = block.levels[k]
        for own in (1, -1):
            expected = [(round(p / 0.5), s, c) for p, s, c in twin.levels(own)]
            assert _levels(row, own) == expected, (k, own)
    assert book.orders == len(twin.orders)


def _maybe_off_ladder(twin, event, found):
    if found == "price_off_ladder":  # the 64 rungs are centred on the first price
        return found
    return twin.apply(*event)


def test_contradictions_are_quarantined_and_not_applied():
    rows = [
        ("A", 1, 100, 5, 1),
        ("C", 1, 100, 2, 99),  # never added
        ("A", 1, 100, 5, 1),  # rests already
        ("A", -1, 101, -3, 2),  # negative
        ("A", -1, 101, 0, 3),
        ("A", -1, 101, 2.5, 4),  # no whole contracts
        ("C", 1, 100, 6, 1),  # more than rests
        ("M", -1, 101, 1, 1),  # an order keeps its side
        ("A", 0, 101, 1, 5),
        ("A", 1, 100.1, 1, 6),  # no multiple of the tick
        ("A", 1, 99_999, 1, 7),  # beyond the ladder
        ("A", 1, float("nan"), 1, 8),
        ("A", -1, 101, 4, 9),
    ]
    book = OrderBook(0.25)
    block = book.apply(_events(rows))
    assert [rule for _, rule in _rules(block)] == [
        "order_unknown",
        "order_duplicate",
        "size_not_positive",
        "size_not_positive",
        "size_not_positive",
        "taken_exceeds_resting",
        "side_unknown",
        "side_unknown",
        "price_off_grid",
        "price_off_ladder",
        "price_off_grid",
    ]
    assert [row for row, _ in _rules(block)] == list(range(1, 12))
    assert _levels(block.levels[-1], 1) == [(400, 5, 1)]
    assert _levels(block.levels[-1], -1) == [(404, 4, 1)]
    assert block.quarantine.row(0) == (1, "order_id", "99", "order_unknown", block.quarantine["hint"][0])
    again = book.apply(_events([("C", 1, 100, 1, 77)]))
    assert again.quarantine["row"].to_list() == [len(rows)]  # counted from the start of the stream


def test_sequence_gaps_and_steps_back():
    rows = [("A", 1, 100 - k, 1, k) for k in range(5)]
    book = OrderBook(0.25, contiguous=True)
    block = book.apply(_events(rows, sequence=[7, 8, 11, 9, 12]))
    assert _rules(block) == [(2, "sequence_gap"), (3, "sequence_backward")]
    assert book.suspect
    assert len(_levels(block.levels[-1], 1)) == 4  # the row after the gap is applied, the one of the past is not
    book.apply(_events([("R", 0, 0, 0, 0)], sequence=[13]))
    assert not book.suspect
    assert book.orders == 0
    channel = OrderBook(0.25)  # CME numbers a whole channel: one instrument may skip
    assert _rules(channel.apply(_events(rows, sequence=[7, 8, 11, 9, 12]))) == [(3, "sequence_backward")]
    snapshot = [32, 32, 32 + 128, 128, 128]  # the opening snapshot is not in order of sequence
    assert not _rules(OrderBook(0.25).apply(_events(rows, sequence=[9, 3, 5, 9, 12], flags=snapshot)))


def test_a_sequence_gap_is_found_across_blocks():
    book = OrderBook(0.25, contiguous=True)
    book.apply(_events([("A", 1, 100, 1, 1)], sequence=[5]))
    assert _rules(book.apply(_events([("A", 1, 99, 1, 2)], sequence=[7]))) == [(1, "sequence_gap")]


def test_messages_leave_executions_out():
    rows = [
        ("A", 1, 100, 5, 1),
        ("A", 1, 100, 4, 2),
        ("T", -1, 100, 3, 900),
        ("F", 1, 100, 3, 1),
        ("C", 1, 100, 3, 1),  # the fill, not a cancel
        ("C", 1, 100, 1, 1),  # one contract withdrawn
        ("M", 1, 99, 4, 2),
    ]
    block = OrderBook(0.25).apply(_events(rows))
    assert list(zip(block.messages.action.tolist(), block.messages.size.tolist(), strict=True)) == [
        (1, 5.0),
        (1, 4.0),
        (2, 1.0),
        (3, 4.0),
    ]
    assert (block.trades.size.tolist(), block.trades.side.tolist()) == ([3.0], [-1])


def test_fleeting_orders_and_the_spoofing_pattern():
    large = ("A", 1, 99, 50, 7)  # a bid of more than twice the mean size
    rows = [("A", 1, 100, 5, 1), ("A", -1, 101, 5, 2), large, ("T", 1, 101, 5, 900), ("C", 1, 99, 50, 7)]
    marks = OrderBook(0.25).apply(_events(rows)).messages.marks.tolist()
    assert marks == [0, 0, 0, 3]  # fleeting (2 ms) and spoofing: its offer was bought meanwhile
    honest = [*rows[:3], ("T", -1, 100, 5, 900), rows[4]]
    assert OrderBook(0.25).apply(_events(honest)).messages.marks.tolist() == [0, 0, 0, 1]
    assert OrderBook(0.25, fleeting_ns=1, spoof_ns=1).apply(_events(rows)).messages.marks.tolist() == [0, 0, 0, 0]
    filled = [*rows[:4], ("F", 1, 99, 1, 7), ("C", 1, 99, 1, 7), ("C", 1, 99, 49, 7)]
    assert OrderBook(0.25).apply(_events(filled)).messages.marks.tolist() == [0, 0, 0, 0]  # it was traded with


def test_the_table_of_orders_grows():
    rng = np.random.default_rng(4)
    ids = rng.permutation(40_000) * 7919
    rows = [("A", 1 if k % 2 else -1, 100 - 50 * (k % 2) + k % 40, 1, int(i)) for k, i in enumerate(ids)]
    book = OrderBook(0.25)
    book.apply(_events(rows))
    assert book.orders == 40_000
    gone = [("C", 1, 0, 1, int(i)) for i in rng.permutation(ids)]
    block = book.apply(_events(gone))
    assert not block.quarantine.height
    assert book.orders == 0


@pytest.mark.parametrize("cut", [1, 9_000, 11_500, 44_000])
def test_a_restored_book_goes_on_with_the_same_bits(real_data: Path, cut):
    frame = read_table("orders", real_data / ES, workspace=PLACE).frame
    whole, first, second = OrderBook(0.25), OrderBook(0.25), OrderBook(0.25)
    whole.apply(frame.head(cut))
    for at in range(0, cut, 1000):
        first.apply(frame[at : min(at + 1000, cut)])
    saved = whole.save()
    assert first.save() == saved
    second.apply(frame.tail(3000))  # a book that has seen other things
    second.restore(saved)
    assert second.save() == saved
    ours, theirs = second.apply(frame[cut:]), whole.apply(frame[cut:])
    assert np.array_equal(ours.levels, theirs.levels)
    assert np.array_equal(ours.time, theirs.time)
    assert np.array_equal(ours.messages.marks, theirs.messages.marks)
    assert second.save() == whole.save()


def test_a_grown_book_is_saved_as_a_book_that_was_always_large():
    rows = [("A", 1 if k % 2 else -1, 100 - 50 * (k % 2) + k % 40, 1 + k % 3, k * 7919) for k in range(30_000)]
    book, again = OrderBook(0.25), OrderBook(0.25)
    book.apply(_events(rows))
    again.restore(book.save())
    assert again.orders == 30_000
    gone = _events([("C", 1, 0, 1 + k % 3, k * 7919) for k in range(29_999)])
    assert np.array_equal(again.apply(gone).levels, book.apply(gone).levels)
    assert again.save() == book.save()


def test_a_state_of_another_book_or_damaged_is_refused():
    book = OrderBook(0.25)
    book.apply(_events([("A", 1, 100, 5, 1), ("A", -1, 101, 4, 2)]))
    saved = book.save()
    for bad in (saved[:-1], saved[:-8] + b"12345678", b"", b"x" + saved, saved.replace(b'"orders": 2', b'"orders": 3')):
        with pytest.raises(StateError, match="damaged"):
            book.restore(bad)
    with pytest.raises(StateError, match="fleeting_ns"):
        OrderBook(0.25, fleeting_ns=1).restore(saved)
    assert book.save() == saved


def _lobster(row):
    """The twenty levels after one message: (side, price in cents) -> size."""
    return {
        (side, round(row[f"{name}_px_{k:02d}"] * 100)): row[f"{name}_sz_{k:02d}"]
        for side, name in ((1, "bid"), (-1, "ask"))
        for k in range(10)
    }


def test_lobsters_messages_give_lobsters_book(real_data: Path):
    """All twenty levels after each of the 999 messages.

    LOBSTER leaves messages deeper than ten levels out: a level that comes into view there is taken from the snapshot,
    one that goes out of view is forgotten.
    """
    raw = pl.read_parquet(real_data / "l2/aapl_lobster10_20120621.parquet")
    shown = [_lobster(row) for row in raw.iter_rows(named=True)]
    rows: list[tuple] = []
    resting: dict[int, list] = {}  # order -> side, cents, size
    standing: dict[tuple[int, int], int] = {}  # level -> the order that stands for what it held

    def add(side, cents, size, order, at):
        rows.append(("A", side, cents / 100, size, order, at))
        resting[order] = [side, cents, size]

    def come_into_view(side, cents, size, at):
        standing[side, cents] = 10**15 + len(rows)
        add(side, cents, size, standing[side, cents], at)

    for (side, cents), size in shown[0].items():
        come_into_view(side, cents, size, 0)
    told = 0
    for at, event in enumerate(raw.iter_rows(named=True)):
        kind, order, side, size = event["type"], event["order_id"], event["direction"], event["size"]
        cents = round(event["price"] * 100)
        if at == 0:
            continue
        if kind == 1:
            add(side, cents, size, order, at)
        elif kind in (2, 3, 4):  # hidden executions leave the shown book alone
            order = order if order in resting else standing[side, cents]
            rows += [("F", side, cents / 100, size, order, at)] * (kind == 4)
            rows.append(("C", side, cents / 100, size, order, at))
            resting[order][2] -= size
            if not resting[order][2]:
                del resting[order]
        told += kind in (1, 2, 3, 4)
        for side in (1, -1):
            before, after = ({p for s, p in shown[k] if s == side} for k in (at - 1, at))
            reach = min if side > 0 else max
            for gone in [p for p in before - after if side * (p - reach(after)) < 0]:
                for order, (s, p, left) in [*resting.items()]:
                    if (s, p) == (side, gone):
                        rows.append(("C", side, gone / 100, left, order, at))
                        del resting[order]
            for new in [p for p in after - before if side * (p - reach(before)) < 0]:
                if not any((s, p) == (side, new) for s, p, _ in resting.values()):
                    come_into_view(side, new, shown[at][side, new], at)
    assert told == raw.height - 61 - 1
    *events, places = zip(*rows, strict=True)
    block = OrderBook(0.01).apply(_events(list(zip(*events, strict=True))), show="every")
    assert not block.quarantine.height
    ours = dict(zip(np.asarray(places)[block.rows].tolist(), block.levels, strict=True))
    found = ours[0]
    for at, theirs in enumerate(shown):
        found = ours.get(at, found)
        assert {(side, p): size for side in (1, -1) for p, size, _ in _levels(found, side)} == theirs, at
    view = sum(row[4] >= 10**15 for row in rows if row[0] == "A")
    assert view == 338  # the rest of the 19,980 levels is the messages' work


def test_options_and_words():
    for options in ({"tick": 0.0}, {"tick": 0.25, "rungs": 100}):
        with pytest.raises(ConfigError):
            OrderBook(**options)
    raw = pl.DataFrame(
        {
            "ts": ["2025-01-02T15:00:00Z"] * 2,
            "action": ["add", "delete"],
            "side": ["bid", "A"],
            "price": [1.0, 1.0],
            "size": [1, 1],
            "order_id": [2**60 + 1, 5],
        }
    )
    with pytest.raises(DataError, match="action_unknown"):
        read_table("orders", raw, workspace=PLACE)
    table = read_table("orders", raw.head(1), workspace=PLACE)
    assert table.frame["order_id"][0] == 2**60 + 1  # exact, where a float would round
    assert table.frame["action"][0] == "A"
    with pytest.raises(DataError, match="whole numbers"):
        read_table("orders", raw.with_columns(order_id=pl.lit("x")), workspace=PLACE)
