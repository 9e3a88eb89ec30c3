"""Bars from trades, book snapshots and order messages, block by block."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mia_fast.bars.columns import COLUMNS, wanted
from mia_fast.errors import ConfigError, DataError, StateError
from mia_kernels import ticks

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bytes = NDArray[np.int8]

NEVER = 2**63 - 1
HORIZON_NS = 5_000_000_000
"""Realised spreads are measured against the middle five seconds later unless said otherwise."""
_CAPACITY = 1024
_MAGIC = b"mia-fast bar state 1\n"
_INSTANT = pl.Datetime("ns", "UTC")
_NO_TIMES = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Trades:
    """Trades: (n,) ns UTC ascending, price, size, and the aggressor (1 bought, -1 sold, 0 neither)."""

    time: Integers
    price: Floats
    size: Floats
    side: Bytes

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Trades:
        """The canonical table ``trades``."""
        return cls(
            frame["timestamp"].dt.epoch("ns").to_numpy(),
            frame["price"].to_numpy(),
            frame["size"].to_numpy(),
            frame["side"].to_numpy(),
        )

    def since(self, row: int) -> Trades:
        return Trades(self.time[row:], self.price[row:], self.size[row:], self.side[row:])


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Book snapshots: (k,) ns UTC ascending, and 4 lists of float64 columns, level by level."""

    time: Integers
    columns: tuple[Floats, ...]

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Snapshots:
        """The canonical table ``book``, with as many levels as all four families have."""
        levels = levels_of(frame.columns)
        names = [
            f"{side}_{what}_{n}" for side in ("bid", "ask") for what in ("price", "size") for n in range(1, levels + 1)
        ]
        columns = tuple(np.ascontiguousarray(frame[name].to_numpy()) for name in names)
        return cls(frame["timestamp"].dt.epoch("ns").to_numpy(), columns)

    def since(self, row: int) -> Snapshots:
        return Snapshots(self.time[row:], tuple(column[row:] for column in self.columns))


@dataclass(frozen=True, slots=True)
class Messages:
    """Order messages from :class:`~mia_fast.bars.OrderBook`: ns UTC, MESSAGE_*, side, size, MARK_* (n,)."""

    time: Integers
    action: Bytes
    side: Bytes
    size: Floats
    marks: Bytes

    def since(self, row: int) -> Messages:
        return Messages(self.time[row:], self.action[row:], self.side[row:], self.size[row:], self.marks[row:])


def levels_of(columns: list[str]) -> int:
    """Levels that all four families of a book's columns have."""
    have = set(columns)
    for level in range(1, ticks.DEPTH + 1):
        if not {f"{side}_{what}_{level}" for side in ("bid", "ask") for what in ("price", "size")} <= have:
            return level - 1
    return ticks.DEPTH


class BarBuilder:
    """Turns events into bars; the bars do not depend on how the events are cut into blocks.

    Parameters
    ----------
    interval_ns
        Length of time bars. A grid starts at each session's open, so 4-hour bars of a 23-hour session end with
        a bar of 3 hours. Exactly one of ``interval_ns`` and ``volume`` is given.
    volume
        Contracts of a volume bar. It ends with the instant whose trades reach them: trades are not split, and trades
        of one instant stay together, so that bars have distinct closes (Lopez de Prado 2018, chapter 2).
        The session's end ends it too (without a session table: the UTC day's).
    sessions
        (m, 3) int64 from :meth:`mia_fast.sessions.Sessions.array`; None for a market that never closes. Events outside
        every session are counted in :attr:`outside` and used nowhere.
    levels
        Levels of the book that will be fed, 0 for none.
    orders
        Whether order messages will be fed.
    horizon_ns
        Horizon of the realised spread.

    Raises
    ------
    ConfigError
        Lengths that are not positive, or both or neither given.
    """

    def __init__(
        self,
        *,
        interval_ns: int | None = None,
        volume: float | None = None,
        sessions: Integers | None = None,
        levels: int = 0,
        orders: bool = False,
        horizon_ns: int = HORIZON_NS,
    ) -> None:
        if (interval_ns is None) == (volume is None):
            raise ConfigError(
                "a bar has one length, of time or of volume",
                where="BarBuilder",
                hint="give interval_ns or volume, not both",
            )
        length = interval_ns if interval_ns is not None else volume
        assert length is not None
        if not 0 < length < 2**53 or not 0 < horizon_ns < 2**53 or not 0 <= levels <= ticks.DEPTH:
            raise ConfigError(
                f"length {length}, horizon {horizon_ns} ns, {levels} levels",
                where="BarBuilder",
                hint=f"lengths are positive, a book has up to {ticks.DEPTH} levels",
            )
        self._volume = float(volume or 0.0)
        self._parameters = np.array(
            [int(interval_ns is None), interval_ns or 0, levels, int(orders), horizon_ns], dtype=np.int64
        )
        self._sessions = np.ascontiguousarray(
            sessions if sessions is not None else np.empty((0, 3)), dtype=np.int64
        ).reshape(-1, 3)
        self._levels = levels
        self._places = wanted(levels, orders)
        self._whole = np.zeros(ticks.WHOLE, dtype=np.int64)
        self._real = np.zeros(ticks.REAL)
        self._pending = np.zeros((ticks.SLOTS, ticks.PER_SLOT))
        self._ends = np.zeros(ticks.SLOTS, dtype=np.int64)
        self._times = np.empty((3, _CAPACITY), dtype=np.int64)
        self._out = np.empty((ticks.COLUMNS, _CAPACITY))
        self._known = -NEVER
        ticks.reset(self._whole, self._real)

    # --- what happened to the events ------------------------------------------------------------

    @property
    def outside(self) -> int:
        """Trades outside every session: used in no bar."""
        return int(self._whole[ticks.OUTSIDE])

    @property
    def crossed(self) -> int:
        """Snapshots crossed, locked or without a touch: they break the chain of order flow and enter no average."""
        return int(self._whole[ticks.CROSSED])

    # --- events -------------------------------------------------------------------------------------

    def feed(
        self,
        trades: Trades | None = None,
        book: Snapshots | None = None,
        messages: Messages | None = None,
        *,
        until: int = NEVER,
    ) -> tuple[pl.DataFrame, tuple[int, int, int]]:
        """Take the events before ``until``; return the bars that ended, and how many of each block were taken.

        Events of several streams must be fed together as far as they are known: an event older than one that was
        taken is an error.

        Raises
        ------
        DataError
            Time steps back, or a book of other levels than declared.
        """
        blocks = np.zeros(ticks.BLOCKS, dtype=np.int64)
        keep: list[Any] = []
        first, last = NEVER, self._known
        for stream in (trades, book, messages):
            if stream is None or stream.time.size == 0:
                continue
            if stream.time[0] < self._known or np.any(stream.time[1:] < stream.time[:-1]):
                raise DataError(
                    f"{type(stream).__name__} step back in time",
                    where="BarBuilder.feed",
                    hint="feed events in the order in which they were received, and all streams together",
                    then="nothing of these blocks was taken",
                )
            first = min(first, int(stream.time[0]))
        if trades is not None and trades.time.size:
            self._aim(blocks, keep, ticks.TRADES, [trades.time, trades.price, trades.size, trades.side])
        if book is not None and book.time.size:
            if len(book.columns) != 4 * self._levels:
                raise DataError(
                    f"snapshots of {len(book.columns) // 4} levels, {self._levels} were declared",
                    where="BarBuilder.feed",
                    hint="declare the levels that the book has",
                    then="nothing of these blocks was taken",
                )
            addresses = np.array([column.ctypes.data for column in book.columns], dtype=np.int64)
            self._aim(blocks, keep, ticks.SNAPSHOT_ROWS, [book.time, addresses])
            blocks[ticks.SNAPSHOT_ROWS] = book.time.size
        if messages is not None and messages.time.size:
            self._aim(
                blocks,
                keep,
                ticks.MESSAGE_ROWS,
                [messages.time, messages.action, messages.side, messages.size, messages.marks],
            )
        done = np.zeros(3, dtype=np.int64)
        frames = [self._run(blocks, until, done)]
        while frames[-1].height == _CAPACITY:
            frames.append(self._run(blocks, until, done))
        for stream, taken in zip((trades, book, messages), done.tolist(), strict=True):
            if stream is not None and taken:
                last = max(last, int(stream.time[taken - 1]))
        self._known = last
        del keep
        counts = (int(done[0]), int(done[1]), int(done[2]))
        return pl.concat(frames) if len(frames) > 1 else frames[0], counts

    def finish(self) -> pl.DataFrame:
        """End the bar that is open, as its interval or session would."""
        end = int(self._whole[ticks.BAR_END])
        if self._whole[ticks.IN_BAR] == 0:
            end = self._known
        return self.feed(until=max(end, -NEVER + 1))[0]

    def _aim(self, blocks: Integers, keep: list[Any], at: int, arrays: list[Any]) -> None:
        blocks[at] = arrays[0].size
        for k, array in enumerate(arrays):
            contiguous = np.ascontiguousarray(array)
            keep.append(contiguous)
            blocks[at + 1 + k] = contiguous.ctypes.data

    def _run(self, blocks: Integers, until: int, done: Integers) -> pl.DataFrame:
        count = ticks.advance(
            self._parameters,
            self._volume,
            self._sessions,
            blocks,
            until,
            self._whole,
            self._real,
            self._pending,
            self._ends,
            done,
            self._times,
            self._out,
        )
        return self._frame(count)

    def _frame(self, count: int) -> pl.DataFrame:
        times = self._times[:, :count].copy()
        columns: dict[str, pl.Series] = {
            "timestamp": pl.Series(times[0]).cast(_INSTANT),
            "known_at": pl.Series(times[1]).cast(_INSTANT),
            "trade_date": pl.Series(times[2]).cast(pl.Int32).cast(pl.Date),
        }
        for place in self._places:
            columns[COLUMNS[place].name] = pl.Series(self._out[place, :count].copy(), nan_to_null=True)
        return pl.DataFrame(columns)

    # --- state ----------------------------------------------------------------------------------------

    def _identity(self) -> str:
        text = self._parameters.tobytes() + np.float64(self._volume).tobytes() + self._sessions.tobytes()
        return hashlib.sha256(text).hexdigest()[:16]

    def save(self) -> bytes:
        """The state as bytes: the same bytes however the events were cut into blocks."""
        body = io.BytesIO()
        for array in (self._whole, self._real, self._pending, self._ends):
            body.write(array.tobytes())
        content = body.getvalue()
        header = {
            "identity": self._identity(),
            "known": self._known,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        return _MAGIC + json.dumps(header).encode() + b"\n" + content

    def restore(self, saved: bytes) -> None:
        """Go on from a saved state.

        Raises
        ------
        StateError
            The bytes are damaged, or were saved by a builder of other bars.
        """
        line, _, body = saved.removeprefix(_MAGIC).partition(b"\n")
        arrays = (self._whole, self._real, self._pending, self._ends)
        try:
            header = json.loads(line)
            fits = saved.startswith(_MAGIC) and hashlib.sha256(body).hexdigest() == header["sha256"]
            fits = fits and header["identity"] == self._identity() and len(body) == sum(a.nbytes for a in arrays)
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise StateError(
                "the bar state is damaged, or belongs to bars of another length, session table or input",
                where="bar state",
                hint="use the options it was saved with, or start from the first event again",
                then="the builder keeps the state it had",
            )
        at = 0
        for array in arrays:
            array[...] = np.frombuffer(body[at : at + array.nbytes], dtype=array.dtype).reshape(array.shape)
            at += array.nbytes
        self._known = int(header["known"])
