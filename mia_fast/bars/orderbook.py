"""The order book of one instrument from its order events, with a quarantine for what contradicts it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mia_fast.bars.aggressor import own_array
from mia_fast.bars.builder import Messages, Snapshots, Trades
from mia_fast.errors import ConfigError, StateError
from mia_fast.tables.read import QUARANTINE_SCHEMA
from mia_kernels import book as kernels
from mia_kernels.ticks import DEPTH

Integers = NDArray[np.int64]
Bytes = NDArray[np.int8]

SNAPSHOT_FLAG, LAST_FLAG = 32, 128
FLEETING_NS, SPOOF_NS = 100_000_000, 10_000_000_000
_ACTIONS = pl.Enum(["", "A", "C", "M", "T", "F", "R"])
"""A word's place is the kernel's code of it: ADD, CANCEL, MODIFY, TRADE, FILL, CLEAR."""
_BITS = 14
"""The table of orders begins with 2**14 rows and doubles when it is half full."""
_MAGIC = b"mia-fast book state 1\n"
_SHOWN_ROWS = 1 << 16
"""Snapshots written between two calls of the kernel."""
_INSTANT = pl.Datetime("ns", "UTC")
_SHOW = {"changes": 0, "every": 1, "none": 2}
_FAULTS: dict[int, tuple[str, str, str]] = {
    kernels.UNKNOWN_ORDER: (
        "order_unknown",
        "order_id",
        "the order was never added: the stream began after it, or events were lost",
    ),
    kernels.DUPLICATE_ORDER: ("order_duplicate", "order_id", "the order rests already; the feed sent it twice"),
    kernels.SIZE_NOT_POSITIVE: ("size_not_positive", "size", "sizes are whole contracts above zero"),
    kernels.TAKEN_EXCEEDS_RESTING: ("taken_exceeds_resting", "size", "more is taken than rests; an event was lost"),
    kernels.SEQUENCE_BACKWARD: ("sequence_backward", "sequence", "an event of the past; the feed repeats itself"),
    kernels.SEQUENCE_GAP: (
        "sequence_gap",
        "sequence",
        "events are missing before this one; the book is suspect until it is cleared and sent again",
    ),
    kernels.PRICE_OFF_GRID: ("price_off_grid", "price", "the price is no multiple of the tick"),
    kernels.PRICE_OFF_LADDER: ("price_off_ladder", "price", "too far from the first price; raise `rungs`"),
    kernels.SIDE_UNKNOWN: ("side_unknown", "side", "an order has one side, and keeps it"),
    kernels.ACTION_UNKNOWN: ("action_unknown", "action", "add the feed's word under orders.values.action"),
}


@dataclass(frozen=True, slots=True)
class BookBlock:
    """What one block of order events gave.

    Attributes
    ----------
    rows
        (c,) row of the block after which each snapshot stood.
    time
        (c,) its instant, ns UTC.
    levels
        (c, 60) int64: bid prices in ticks, bid sizes, numbers of bid orders, then asks; ten of each, 0 orders where
        there is no level.
    messages, trades
        The same events as a flow of order messages and as trades.
    quarantine
        Rows that were not applied (a sequence gap is reported, its row is applied), as
        :attr:`mia_fast.tables.Table.quarantine`.
    """

    rows: Integers
    time: Integers
    levels: Integers
    messages: Messages
    trades: Trades
    quarantine: pl.DataFrame
    tick: float

    @property
    def auction(self) -> NDArray[np.bool_]:
        """(c,) True where the book is crossed or locked: before an opening auction, or in a fault of the feed."""
        depth = DEPTH
        bid, ask = self.levels[:, 0], self.levels[:, 3 * depth]
        both = (self.levels[:, 2 * depth] > 0) & (self.levels[:, 5 * depth] > 0)
        crossed: NDArray[np.bool_] = both & (bid >= ask)
        return crossed

    def snapshots(self) -> Snapshots:
        """The levels as ten-level snapshots in price units; NaN where there is no level."""
        depth = DEPTH
        columns = []
        for side in (0, 3 * depth):
            prices, sizes, orders = (self.levels[:, side + k * depth : side + (k + 1) * depth] for k in range(3))
            there = orders > 0
            columns += [np.where(there[:, k], prices[:, k] * self.tick, np.nan) for k in range(depth)]
            columns += [np.where(there[:, k], sizes[:, k].astype(np.float64), np.nan) for k in range(depth)]
        return Snapshots(self.time, tuple(columns))

    def frame(self) -> pl.DataFrame:
        """The snapshots as the canonical table ``book``, with ``bid_orders_k``, ``ask_orders_k`` and ``auction``."""
        found = self.snapshots()
        depth = DEPTH
        data: dict[str, Any] = {"timestamp": pl.Series(found.time).cast(pl.Datetime("ns", "UTC"))}
        at = 0
        for side, base in (("bid", 0), ("ask", 3 * depth)):
            for what in ("price", "size"):
                for k in range(depth):
                    data[f"{side}_{what}_{k + 1}"] = pl.Series(found.columns[at], nan_to_null=True)
                    at += 1
            for k in range(depth):
                data[f"{side}_orders_{k + 1}"] = self.levels[:, base + 2 * depth + k].copy()
        data["auction"] = self.auction
        return pl.DataFrame(data)


class OrderBook:
    """The book of one instrument; feed it order events, read ten levels.

    Parameters
    ----------
    tick
        Smallest price step.
    rungs
        Prices the ladder spans, centred on the first order's; a multiple of 64. 65,536 ticks are 16,384 ES points.
    contiguous
        The stream's sequence numbers leave no gap (one instrument's own numbering). CME numbers the messages of a whole
        channel, so that one instrument's stream may skip: there only steps back are faults.
    fleeting_ns, spoof_ns
        See ``quote_stuffing_ratio`` and ``spoofing_score``.
    """

    def __init__(
        self,
        tick: float,
        *,
        rungs: int = 65_536,
        contiguous: bool = False,
        fleeting_ns: int = FLEETING_NS,
        spoof_ns: int = SPOOF_NS,
    ) -> None:
        if not tick > 0.0 or rungs <= 0 or rungs % 64:
            raise ConfigError(
                f"tick {tick}, {rungs} rungs", where="OrderBook", hint="a positive tick; rungs a multiple of 64"
            )
        self.tick = tick
        self._contiguous, self._fleeting_ns, self._spoof_ns = contiguous, fleeting_ns, spoof_ns
        self._whole = np.zeros(kernels.BOOK_WHOLE, dtype=np.int64)
        self._orders = np.zeros((1 << _BITS, kernels.ORDER_FIELDS), dtype=np.int64)
        self._ladder = np.zeros((2, rungs, 2), dtype=np.int64)
        self._words = np.zeros((2, rungs // 64), dtype=np.uint64)
        self._row = 0
        kernels.start(self._whole, self._orders, _BITS, self._ladder, self._words)

    @property
    def orders(self) -> int:
        """Orders that rest."""
        return int(self._whole[kernels.ORDERS])

    @property
    def suspect(self) -> bool:
        """True after a sequence gap, until the book is cleared: do not trade on it."""
        return bool(self._whole[kernels.SUSPECT])

    def apply(
        self,
        frame: pl.DataFrame,
        *,
        show: Literal["changes", "every", "none"] = "changes",
        rows: Integers | None = None,
    ) -> BookBlock:
        """Apply a block of the canonical table ``orders``.

        Parameters
        ----------
        frame
            The next events.
        show
            With ``changes`` a snapshot is taken after each message of the exchange (bit 7 of ``flags``; every row
            without flags) that touched the ten levels, with ``every`` after each message, with ``none`` never.
        rows
            (n,) the source's row of each event, for the quarantine; by default they are counted from the first event
            applied.
        """
        n = frame.height
        # Only casts, no expressions: those go through Polars' pool of threads, which costs more than the book.
        time = own_array(frame["timestamp"].cast(_INSTANT).to_physical().to_numpy(), np.int64)
        words = frame["action"].cast(_ACTIONS, strict=False).to_physical()
        action = own_array((words.fill_null(0) if words.null_count() else words).to_numpy(), np.int8)
        side = own_array(frame["side"].to_numpy(), np.int8)
        price, size = own_array(frame["price"].to_numpy(), np.float64), own_array(frame["size"].to_numpy(), np.float64)
        order_id = own_array(frame["order_id"].to_numpy(), np.int64)
        marks_of_event = np.full(n, kernels.ENDS_MESSAGE, dtype=np.int8)
        if "flags" in frame.columns:
            told = frame["flags"]
            flags = (told.fill_null(LAST_FLAG) if told.null_count() else told).to_numpy()
            marks_of_event = (
                ((flags & LAST_FLAG) != 0) * kernels.ENDS_MESSAGE + ((flags & SNAPSHOT_FLAG) != 0) * kernels.IN_SNAPSHOT
            ).astype(np.int8)
        numbered = "sequence" in frame.columns and not frame["sequence"].null_count()
        sequence = own_array(frame["sequence"].to_numpy(), np.int64) if numbered else np.zeros(n, dtype=np.int64)
        parameters = np.array(
            [int(self._contiguous), int(numbered), self._fleeting_ns, self._spoof_ns, _SHOW[show]], dtype=np.int64
        )
        faults, message, marks = (np.zeros(n, dtype=np.int8) for _ in range(3))
        message_size = np.zeros(n)
        result = np.zeros(2, dtype=np.int64)
        places, levels = [], []
        begin, status = 0, kernels.OUT_FULL
        room = 0 if show == "none" else min(n, _SHOWN_ROWS)
        while status != kernels.TAKE_ALL:
            # Fresh memory, of which only what is written is ever touched; it becomes the caller's without a copy.
            shown_levels = np.empty((max(room, 1), kernels.SNAPSHOT_FIELDS), dtype=np.int64)
            shown_row = np.empty(max(room, 1), dtype=np.int64)
            status = kernels.apply(
                parameters,
                self.tick,
                time,
                action,
                side,
                price,
                size,
                order_id,
                marks_of_event,
                sequence,
                self._whole,
                self._orders,
                self._ladder,
                self._words,
                begin,
                faults,
                shown_levels,
                shown_row,
                message,
                message_size,
                marks,
                result,
            )
            begin, count = int(result[0]), int(result[1])
            places.append(shown_row[:count])
            levels.append(shown_levels[:count])
            if status == kernels.TABLE_FULL:
                self._regrow()
        shown = np.concatenate(places) if len(places) > 1 else places[0]
        kept = message > 0
        traded = (action == kernels.TRADE) & ((faults == kernels.FINE) | (faults == kernels.SEQUENCE_GAP))
        block = BookBlock(
            rows=shown,
            time=time[shown],
            levels=np.concatenate(levels) if len(levels) > 1 else levels[0],
            messages=Messages(time[kept], message[kept], side[kept], message_size[kept], marks[kept]),
            trades=Trades(time[traded], price[traded], size[traded], side[traded]),
            quarantine=self._quarantine(frame, faults, rows),
            tick=self.tick,
        )
        self._row += n
        return block

    # --- state ----------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        return {
            "tick": self.tick,
            "rungs": self._ladder.shape[1],
            "contiguous": self._contiguous,
            "fleeting_ns": self._fleeting_ns,
            "spoof_ns": self._spoof_ns,
        }

    def save(self) -> bytes:
        """The book as bytes: magic line, header line with a SHA-256, state and resting orders.

        A restored book goes on with the same bits. The same book gives the same bytes however its events were cut.
        """
        resting = self._orders[self._orders[:, kernels.ORDER_SIDE] != 0]
        resting = resting[np.argsort(resting[:, kernels.ORDER_ID])]
        whole = self._whole.copy()
        whole[kernels.BITS] = 0  # how large the table has grown depends on the past, not on the book
        content = whole.tobytes() + resting.tobytes()
        header = {
            "identity": self._identity(),
            "orders": len(resting),
            "row": self._row,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        return b"".join((_MAGIC, json.dumps(header, sort_keys=True).encode(), b"\n", content))

    def restore(self, saved: bytes) -> None:
        """Go on from :meth:`save` of a book with the same parameters.

        Raises
        ------
        StateError
            Damaged, of another version, or of a book with other parameters; the book is as it was.
        """
        size = 8 * kernels.BOOK_WHOLE
        try:
            magic, line, content = saved.split(b"\n", 2)
            header = json.loads(line)
            sound = (
                magic + b"\n" == _MAGIC
                and hashlib.sha256(content).hexdigest() == header["sha256"]
                and len(content) == size + 8 * kernels.ORDER_FIELDS * header["orders"]
            )
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            raise StateError(
                "the book state is damaged, or of another version",
                where="OrderBook.restore",
                hint="apply the session's events again from the first one, or from a clear",
                then="the book is as it was",
            )
        if header["identity"] != self._identity():
            raise StateError(
                f"the state is of a book with {header['identity']}, this one has {self._identity()}",
                where="OrderBook.restore",
                hint="make the book with the parameters it was saved with",
                then="the book is as it was",
            )
        orders = np.frombuffer(content, np.int64, offset=size).reshape(-1, kernels.ORDER_FIELDS).copy()
        bits = max(_BITS, int(2 * len(orders)).bit_length())
        self._orders = np.zeros((1 << bits, kernels.ORDER_FIELDS), dtype=np.int64)
        kernels.regrow(orders, self._orders, bits)
        self._whole[:] = np.frombuffer(content, np.int64, count=kernels.BOOK_WHOLE)
        self._whole[kernels.BITS] = bits
        self._row = header["row"]
        side = (orders[:, kernels.ORDER_SIDE] < 0).astype(np.int64)
        rung = orders[:, kernels.ORDER_TICK]
        self._ladder[:], self._words[:] = 0, 0
        np.add.at(self._ladder[:, :, 0], (side, rung), orders[:, kernels.ORDER_SIZE])
        np.add.at(self._ladder[:, :, 1], (side, rung), 1)
        np.bitwise_or.at(self._words, (side, rung >> 6), np.uint64(1) << (rung & 63).astype(np.uint64))

    def _regrow(self) -> None:
        bits = int(self._whole[kernels.BITS]) + 1
        larger = np.zeros((1 << bits, kernels.ORDER_FIELDS), dtype=np.int64)
        kernels.regrow(self._orders, larger, bits)
        self._orders = larger
        self._whole[kernels.BITS] = bits

    def _quarantine(self, frame: pl.DataFrame, faults: Bytes, rows: Integers | None) -> pl.DataFrame:
        lines = []
        for row in np.flatnonzero(faults).tolist():
            rule, column, hint = _FAULTS[int(faults[row])]
            source = self._row + row if rows is None else int(rows[row])
            lines.append((source, column, str(frame[column][row]), rule, hint))
        return pl.DataFrame(lines, schema=QUARANTINE_SCHEMA, orient="row")
