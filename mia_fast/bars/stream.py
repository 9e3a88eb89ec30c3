"""From tick files of any length to a file of bars, a block at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mia_fast.bars.aggressor import AggressorInference
from mia_fast.bars.builder import NEVER, BarBuilder, Floats, Messages, Snapshots, Trades, levels_of
from mia_fast.bars.gaps import gap_events
from mia_fast.bars.orderbook import OrderBook
from mia_fast.errors import DataError
from mia_fast.files import replacing
from mia_fast.sessions import Sessions
from mia_fast.tables import read_table
from mia_fast.tables.mapping import inputs as read_inputs
from mia_fast.workspace import Workspace
from mia_kernels.ticks import DEPTH

BLOCK_ROWS = 1 << 20
ORDER_ROWS = 1 << 16
"""Order events read at a time: each may bring a ten-level snapshot."""
PICTURE_BARS = 3000
"""The last bars are kept for a picture."""

_CSV_BYTES_PER_ROW = 64

Part = tuple[Trades | None, Snapshots | None, Messages | None]


@dataclass(slots=True)
class BarsReport:
    """What became of a run.

    ``quarantine`` counts rows by rule, ``outside`` trades outside every session, ``crossed`` snapshots that were
    crossed, locked or empty on one side (an auction), ``auction_prints`` trades without an aggressor.
    """

    path: Path
    bars: int = 0
    events: int = 0
    trades: int = 0
    outside: int = 0
    crossed: int = 0
    without_side: int = 0
    quarantine: dict[str, int] = field(default_factory=dict)
    examples: list[tuple[int, str, str, str, str]] = field(default_factory=list)
    gaps: pl.DataFrame | None = None
    tail: pl.DataFrame | None = None
    suspect: bool = False


def read_blocks(
    kind: str,
    path: Path,
    workspace: Workspace,
    report: BarsReport,
    *,
    rows: int = BLOCK_ROWS,
    symbol: str | None = None,
) -> Iterator[tuple[pl.DataFrame, int, NDArray[np.int64]]]:
    """Blocks of a canonical table from Parquet or CSV, the source rows read so far, and each row's own (0-based).

    Raises
    ------
    DataError
        The file cannot be read, a block is refused (:func:`mia_fast.tables.read_table`), time steps back between
        blocks, or the file holds several symbols and none was chosen.
    """
    mapping = read_inputs(workspace)
    try:
        done, last = 0, None
        for raw in _batches(path, rows):
            try:
                table = read_table(kind, raw, inputs=mapping)
            except DataError as error:
                raise DataError(
                    error.what,
                    where=f"{path}, in the block from row {done}: {error.where}",
                    hint=error.hint,
                    then=error.then,
                ) from error
            for rule, count in table.quarantine.group_by("rule", maintain_order=True).len().rows():
                report.quarantine[rule] = report.quarantine.get(rule, 0) + count
            report.examples += [(done + row[0], *row[1:]) for row in table.quarantine.head(3).rows()]
            frame = table.frame
            origin = done + (np.arange(frame.height) if table.rows is None else table.rows)
            done += raw.height
            if symbol is not None and "symbol" in frame.columns:
                wanted = (frame["symbol"] == symbol).fill_null(False)
                frame, origin = frame.filter(wanted), origin[wanted.to_numpy()]
            elif "symbol" in frame.columns and frame["symbol"].n_unique() > 1:
                some = ", ".join(map(str, frame["symbol"].unique().sort().head(8)))
                raise DataError(
                    f"several symbols: {some}", where=str(path), hint="choose one with --symbol", then="no bar was made"
                )
            if not frame.height:
                continue
            first = frame["timestamp"][0]
            if last is not None and first < last:
                raise DataError(
                    f"time steps back from {last} to {first}",
                    where=f"{path}, near row {done - raw.height}",
                    hint="sort the file by the time of receipt; it is not done here, it would hide a feed fault",
                    then="no bar was made",
                )
            last = frame["timestamp"][-1]
            yield frame, done, origin
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _batches(path: Path, rows: int) -> Iterator[pl.DataFrame]:
    """Blocks of about ``rows`` rows. Arrow's readers hold one block; Polars' own reads ahead without bound."""
    if path.name.lower().endswith((".parquet", ".pq")):
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=rows, use_threads=False):
                yield pl.DataFrame(batch)
        return
    from pyarrow import csv

    with csv.open_csv(path, read_options=csv.ReadOptions(block_size=rows * _CSV_BYTES_PER_ROW)) as reader:
        for batch in reader:
            yield pl.DataFrame(batch)


class _Source:
    """One file: the events that were read and not yet used."""

    def __init__(self, blocks: Iterator[tuple[Part, int]]) -> None:
        self.blocks = blocks
        self.part: Part = (None, None, None)
        self.last = -NEVER
        self.rows = 0
        self.open = True
        self.pull()

    def pull(self) -> None:
        """Read one more block."""
        found = next(self.blocks, None)
        if found is None:
            self.open, self.last = False, NEVER
            return
        part, self.rows = found
        self.part = tuple(_join(old, new) for old, new in zip(self.part, part, strict=True))  # type: ignore[assignment]
        self.last = max([int(s.time[-1]) for s in self.part if s is not None and s.time.size] + [self.last])

    def drop(self, counts: tuple[int, int, int]) -> None:
        """Forget the events that were used."""
        self.part = tuple(s if s is None else s.since(n) for s, n in zip(self.part, counts, strict=True))  # type: ignore[assignment]


def _join(old: Trades | Snapshots | Messages | None, new: Trades | Snapshots | Messages | None) -> object:
    if old is None or not old.time.size or new is None:
        return new if new is not None else old
    if isinstance(old, Snapshots) and isinstance(new, Snapshots):
        columns: tuple[Floats, ...] = tuple(map(_both, old.columns, new.columns))
        return Snapshots(np.concatenate((old.time, new.time)), columns)
    build: Any = type(old)
    fields = build.__dataclass_fields__
    return build(*(np.concatenate((getattr(old, name), getattr(new, name))) for name in fields))


def _both(first: Floats, second: Floats) -> Floats:
    return np.concatenate((first, second))


def make_bars(
    out: Path,
    *,
    trades: Path | None = None,
    book: Path | None = None,
    orders: Path | None = None,
    workspace: Workspace,
    interval_ns: int | None = None,
    volume: float | None = None,
    sessions: Sessions | None = None,
    tick: float = 0.25,
    symbol: str | None = None,
    infer_sides: bool = False,
    rows: int = BLOCK_ROWS,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> BarsReport:
    """Turn tick files into a Parquet file of bars, in memory that does not depend on their length.

    Parameters
    ----------
    out
        The file to write; it appears whole or not at all.
    trades, book, orders
        Tick files. Order events bring their own trades and book; with them the others are not given.
    interval_ns, volume
        Length of a time bar, or contracts of a volume bar.
    sessions
        The product's hours; None for a market that never closes.
    infer_sides
        Fill missing aggressors, by Lee and Ready with ``book``, else by the tick rule.
    rows
        Rows read at a time.
    metadata
        Of the file.
    progress
        Called with rows done and all rows.

    Raises
    ------
    DataError
        No trades, orders together with trades or book, or a file that cannot be used.
    """
    if (trades is None) == (orders is None) or (orders is not None and book is not None):
        raise DataError(
            "bars are made of trades, with or without a book, or of order events alone",
            where="make_bars",
            hint="order events bring their own trades and book",
            then="no bar was made",
        )
    report = BarsReport(out)
    files = [path for path in (trades, book, orders) if path is not None]
    total = sum(_rows(path) for path in files)
    levels, books = 0, None
    sources: list[_Source] = []
    if trades is not None:
        sources.append(
            _Source(_trade_parts(read_blocks("trades", trades, workspace, report, rows=rows, symbol=symbol)))
        )
    if book is not None:
        sources.append(_Source(_book_parts(read_blocks("book", book, workspace, report, rows=rows, symbol=symbol))))
        first = sources[-1].part[1]
        levels = 0 if first is None else len(first.columns) // 4
    if orders is not None:
        levels, books = DEPTH, OrderBook(tick)
        blocks = read_blocks("orders", orders, workspace, report, rows=min(rows, ORDER_ROWS), symbol=symbol)
        sources.append(_Source(_order_parts(blocks, books, report)))
    builder = BarBuilder(
        interval_ns=interval_ns,
        volume=volume,
        sessions=None if sessions is None else sessions.array(),
        levels=levels,
        orders=orders is not None,
    )
    inference = AggressorInference() if infer_sides else None
    kept: list[pl.DataFrame] = []
    writer: pq.ParquetWriter | None = None
    with replacing(out) as temporary:
        try:
            while True:
                until = min(source.last for source in sources)
                parts = [next((s.part[k] for s in sources if s.part[k] is not None), None) for k in range(3)]
                deals, snapshots, messages = parts
                assert deals is None or isinstance(deals, Trades)
                assert snapshots is None or isinstance(snapshots, Snapshots)
                assert messages is None or isinstance(messages, Messages)
                if sessions is not None and deals is not None and deals.time.size:
                    sessions.covers(int(deals.time[0]), int(deals.time[-1]))
                if deals is not None:
                    deals = _sided(deals, snapshots, until, inference)
                frame, counts = builder.feed(deals, snapshots, messages, until=until)
                finished = not any(source.open for source in sources)
                if finished:
                    frame = pl.concat((frame, builder.finish()))
                if deals is not None:
                    used = deals.side[: counts[0]]
                    report.trades += counts[0]
                    report.without_side += int(np.count_nonzero(used == 0))
                report.events += sum(counts)
                if writer is None and (frame.height or finished):
                    schema = frame.to_arrow().schema.with_metadata(metadata)
                    writer = pq.ParquetWriter(temporary, schema, compression="zstd")
                if frame.height and writer is not None:
                    writer.write_table(frame.to_arrow().replace_schema_metadata(metadata))
                    report.bars += frame.height
                    kept = [pl.concat((*kept, frame)).tail(PICTURE_BARS)]
                if progress is not None:
                    progress(sum(source.rows for source in sources), total)
                if finished:
                    break
                for source in sources:
                    source.drop(counts)
                    if source.open and source.last == until:
                        source.pull()
        finally:
            if writer is not None:
                writer.close()
    report.outside, report.crossed = builder.outside, builder.crossed
    report.suspect = books is not None and books.suspect
    report.tail = kept[0] if kept else None
    if sessions is not None and interval_ns is not None and report.bars:
        report.gaps = gap_events(pl.read_parquet(out, columns=["timestamp"]), interval_ns, sessions)
    return report


def is_orders(path: Path) -> bool:
    """Whether a file holds single order events: it has an order's identifier and an action."""
    names = {name.strip().casefold() for name in _scan(path).collect_schema().names()}
    return {"order_id", "action"} <= names


def _rows(path: Path) -> int:
    """Rows of a file, for the progress bar."""
    return int(_scan(path).select(pl.len()).collect().item())


def _scan(path: Path) -> pl.LazyFrame:
    """The file as a lazy frame whose schema could be read."""
    name = path.name.lower()
    try:
        lazy = (
            pl.scan_parquet(path, glob=False) if name.endswith((".parquet", ".pq")) else pl.scan_csv(path, glob=False)
        )
        lazy.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from error
    return lazy


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__})",
        where=str(path),
        hint="Parquet, CSV and gzipped CSV are read",
        then="no bar was made",
    )


def _sided(trades: Trades, book: Snapshots | None, until: int, inference: AggressorInference | None) -> Trades:
    """The trades before ``until`` with inferred sides; the others wait for their quotes."""
    if inference is None:
        return trades
    ready = int(np.searchsorted(trades.time, until))
    now = Trades(trades.time[:ready], trades.price[:ready], trades.size[:ready], trades.side[:ready])
    if book is None:
        filled = inference.fill(now)
    else:
        quotes, levels = int(np.searchsorted(book.time, until)), len(book.columns) // 4
        filled = inference.fill(now, book.time[:quotes], book.columns[0][:quotes], book.columns[2 * levels][:quotes])
    side = np.concatenate((filled.side, trades.side[ready:]))
    return Trades(trades.time, trades.price, trades.size, side)


_Blocks = Iterator[tuple[pl.DataFrame, int, NDArray[np.int64]]]


def _trade_parts(blocks: _Blocks) -> Iterator[tuple[Part, int]]:
    for frame, done, _ in blocks:
        yield (Trades.of(frame), None, None), done


def _book_parts(blocks: _Blocks) -> Iterator[tuple[Part, int]]:
    levels = None
    for frame, done, _ in blocks:
        found = levels_of(frame.columns)
        if levels is not None and found != levels:
            raise DataError(f"the book changes from {levels} to {found} levels", where="book", then="no bar was made")
        levels = found
        yield (None, Snapshots.of(frame), None), done


def _order_parts(blocks: _Blocks, book: OrderBook, report: BarsReport) -> Iterator[tuple[Part, int]]:
    for frame, done, origin in blocks:
        block = book.apply(frame, rows=origin)
        for rule, count in block.quarantine.group_by("rule", maintain_order=True).len().rows():
            report.quarantine[rule] = report.quarantine.get(rule, 0) + count
        report.examples += block.quarantine.head(3).rows()
        yield (block.trades, block.snapshots(), block.messages), done
