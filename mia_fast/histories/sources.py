"""The files of a history: which they are, what is in them, and their bars a block at a time."""

from __future__ import annotations

import glob
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mia_fast import config
from mia_fast.errors import DataError
from mia_fast.features.frame import brought
from mia_fast.files import sha256
from mia_fast.tables import InputsConfig, PriceJumps, Table, read_table
from mia_fast.tables.mapping import inputs as read_inputs
from mia_fast.tables.schema import DUPLICATE, OVERLAP
from mia_fast.workspace import Workspace

BLOCK_ROWS: Final = 1 << 16
"""Rows of input that are held at a time."""

MANIFEST: Final = "manifest.json"
"""What a history of features holds, beside its folders ``symbol=.../month=...``."""

_SUFFIXES: Final = (".parquet", ".pq", ".csv", ".csv.gz")
_CSV_BYTES_PER_ROW: Final = 64
_THEN: Final = "nothing was computed"
_EXAMPLES: Final = 3

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Span:
    """The bars of one symbol in one file."""

    first: int
    """Timestamp of the first bar, ns UTC."""
    last: int
    rows: int = 0
    groups: set[int] = field(default_factory=set)
    """Row groups of the file that hold any of them."""
    months: dict[str, int] = field(default_factory=dict)
    """Rows by UTC month of the timestamp, ``YYYY-MM``."""


@dataclass(slots=True)
class Source:
    """One file of bars, read through once."""

    path: Path
    size: int
    sha256: str
    interval_ns: int
    columns: tuple[str, ...]
    """The canonical columns it brings, and its other numeric ones; one without any value is as good as absent."""
    rows: int
    quarantine: dict[str, int]
    """Rows taken out, by rule."""
    spans: dict[str, Span]
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Survey:
    """What the files of a history hold.

    Attributes
    ----------
    sources
        The files, in the order they were given.
    symbols
        Symbol -> its files in the order of time.
    default
        The symbol of files that name none.
    seconds
        What it took to read them.
    """

    sources: tuple[Source, ...]
    symbols: dict[str, tuple[Source, ...]]
    default: str
    seconds: float = 0.0

    def rows(self, symbol: str) -> int:
        """Bars of one symbol."""
        return sum(source.spans[symbol].rows for source in self.symbols[symbol])

    def months(self, symbol: str) -> dict[str, int]:
        """Rows of one symbol by month, in order."""
        found: dict[str, int] = {}
        for source in self.symbols[symbol]:
            for month, rows in source.spans[symbol].months.items():
                found[month] = found.get(month, 0) + rows
        return dict(sorted(found.items()))

    def columns(self, symbol: str) -> tuple[str, ...]:
        """Every column that any file of the symbol brings."""
        return tuple(dict.fromkeys(name for source in self.symbols[symbol] for name in source.columns))

    def partial(self, symbol: str) -> dict[str, list[str]]:
        """Columns that only some of the symbol's files bring -> the files without them."""
        return {
            name: lacking
            for name in self.columns(symbol)
            if (lacking := [s.path.name for s in self.symbols[symbol] if name not in s.columns])
        }

    def interval_ns(self, symbol: str) -> int:
        """Length of the symbol's bars."""
        return self.symbols[symbol][0].interval_ns

    @property
    def total(self) -> int:
        """All bars."""
        return sum(self.rows(symbol) for symbol in self.symbols)


def expand(patterns: Sequence[str | Path]) -> tuple[Path, ...]:
    """The files that names, globs (``es_*.parquet``, ``bars/**/*.csv``) and folders stand for, each once.

    A folder stands for all Parquet and CSV files below it; hidden ones are left out.

    Raises
    ------
    DataError
        A name stands for nothing, or a folder holds features instead of bars.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            if (path / MANIFEST).exists():
                raise DataError(
                    "is a history of features, not of bars",
                    where=str(path),
                    hint="give the bars that it was made from",
                    then=_THEN,
                )
            files = sorted(p for p in path.rglob("*") if p.is_file() and _is_bars(p.relative_to(path)))
            missing = "holds no Parquet or CSV file"
        elif path.is_file():
            files = [path]
            missing = ""
        else:
            names = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            files = sorted(file for name in names if (file := Path(name)).is_file())
            missing = "there is no such file" if not glob.has_magic(str(path)) else "no file matches"
        if not files:
            raise DataError(missing, where=str(pattern), hint="check the name, or give a folder", then=_THEN)
        for file in files:
            found.setdefault(file.resolve(), file)
    if not found:
        raise DataError("no file of bars was given", where="features", hint="give files, globs or folders", then=_THEN)
    return tuple(found.values())


def _is_bars(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.name.lower().endswith(_SUFFIXES)


def survey(
    paths: Sequence[Path],
    *,
    workspace: Workspace,
    symbol: str | None = None,
    progress: Progress | None = None,
) -> Survey:
    """Read every file once: hash it, apply the rules of bars, and note what it holds.

    Parameters
    ----------
    paths
        Files of bars, from :func:`expand`.
    workspace
        Whose mapping applies; its instrument's symbol stands for files that name none.
    symbol
        The symbol of files that name none, instead.
    progress
        Called with (bytes done, bytes).

    Raises
    ------
    DataError
        A file cannot be used (as :func:`mia_fast.tables.read_table` says it); two files overlap in time for one
        symbol; the bars of a symbol have several lengths.
    """
    began = time.perf_counter()
    mapping = read_inputs(workspace)
    default = symbol or config.market(workspace).instrument.symbol
    total = sum(path.stat().st_size for path in paths)
    sources, done = [], 0
    for path in paths:
        sources.append(_survey_file(path, mapping, default))
        done += path.stat().st_size
        if progress is not None:
            progress(done, total)
    names = dict.fromkeys(name for source in sources for name in source.spans)
    symbols = {}
    for name in names:
        own = sorted((s for s in sources if name in s.spans), key=lambda s: s.spans[name].first)
        for before, after in itertools.pairwise(own):
            _check_follows(name, before, after)
        symbols[name] = tuple(own)
    return Survey(tuple(sources), symbols, default, time.perf_counter() - began)


def _check_follows(name: str, before: Source, after: Source) -> None:
    if before.interval_ns != after.interval_ns:
        raise DataError(
            f"the bars of {name} are {before.interval_ns / 1e9:g} s long in {before.path.name} "
            f"and {after.interval_ns / 1e9:g} s in {after.path.name}",
            where=str(after.path),
            hint="bars of one length make a history; write each length to its own folder",
            then=_THEN,
        )
    end = before.spans[name].last
    start = after.spans[name].first
    if start < end + before.interval_ns:
        same = " (the files have the same content)" if before.sha256 == after.sha256 else ""
        raise DataError(
            f"the bars of {name} overlap: {before.path.name} ends with the bar of {_utc(end)}, "
            f"{after.path.name} begins with that of {_utc(start)}{same}",
            where=str(after.path),
            hint="leave one of the two out, or cut it; two versions of one bar cannot both be right",
            then=_THEN,
        )


def _survey_file(path: Path, mapping: InputsConfig, default: str) -> Source:
    source = Source(path, path.stat().st_size, sha256(path), 0, (), 0, {}, {})
    examples: list[tuple[int, str, str, str, str]] = []
    reader = Reader(source, mapping, default)
    for table, group, first_row in reader.tables(None):
        filled = (column for column in brought(table.frame) if column not in _NOT_INPUTS)
        source.columns = tuple(dict.fromkeys((*source.columns, *filled)))
        for rule, count in table.quarantine.group_by("rule", maintain_order=True).len().rows():
            source.quarantine[rule] = source.quarantine.get(rule, 0) + count
        room = _EXAMPLES - len(examples)
        examples += [(first_row + row[0], *row[1:]) for row in table.quarantine.head(max(room, 0)).rows()]
        source.notes = tuple(dict.fromkeys((*source.notes, *table.notes)))
        months = pl.col("timestamp").dt.strftime("%Y-%m")
        for name, frame in reader.by_symbol(table.frame):
            stamps = frame["timestamp"].dt.epoch("ns")
            span = source.spans.setdefault(name, Span(int(stamps[0]), int(stamps[-1])))
            span.last = int(stamps[-1])
            span.rows += frame.height
            span.groups.add(group)
            for month, rows in frame.group_by(months.alias("month"), maintain_order=True).len().rows():
                span.months[month] = span.months.get(month, 0) + rows
    for rule, count in reader.repeated.items():
        source.quarantine[rule] = source.quarantine.get(rule, 0) + count
    faulty = sum(source.quarantine.values())
    if faulty > mapping.max_quarantined_share * source.rows:
        shown = "; ".join(f"row {row}: {rule} ({column} {value})" for row, column, value, rule, _ in examples)
        raise DataError(
            f"{faulty:,} of {source.rows:,} rows are faulty, {faulty / source.rows:.1%} "
            f"(allowed {mapping.max_quarantined_share:.1%}): {shown}",
            where=str(path),
            hint=(examples[0][4] if examples else OVERLAP.hint) + ". See docs/tables.md",
            then=_THEN,
        )
    if not source.spans:
        raise DataError("holds no usable bar", where=str(path), hint="check that it is a file of bars", then=_THEN)
    return source


class Reader:
    """Reads one file of bars block by block, under the rules that hold for the whole."""

    def __init__(self, source: Source, mapping: InputsConfig, default: str) -> None:
        self.source = source
        self.repeated: dict[str, int] = {}
        # Shares are judged for the file, not for a block; the length of bars is decided once.
        self._mapping = mapping.model_copy(update={"max_quarantined_share": 1.0})
        self._default = default
        self._last: dict[str, int] = {}
        self._jumps: dict[Any, PriceJumps] = {}
        if source.interval_ns:
            self._fix_interval(source.interval_ns)

    def tables(self, groups: set[int] | None) -> Iterator[tuple[Table, int, int]]:
        """(table, row group, first row) of each block; of the given row groups only, where there are such."""
        done, counted = 0, not self.source.rows
        try:
            for raw, group in _batches(self.source.path, groups):
                first, done = done, done + raw.height
                if counted:
                    self.source.rows += raw.height
                try:
                    table = read_table("bars", raw, inputs=self._mapping, carry=self._jumps)
                except DataError as error:
                    if error.reason == "empty":
                        continue
                    where = (error.where or "").rpartition(", ")[2]
                    row = f", {where} of the block" if where.startswith("row ") else ""
                    raise DataError(
                        error.what,
                        where=f"{self.source.path}, rows from {first}{row}",
                        hint=error.hint,
                        then=_THEN,
                        reason=error.reason,
                    ) from error
                if table.interval_ns == 0:
                    raise DataError(
                        "the bars are volume bars: they have no common length",
                        where=str(self.source.path),
                        hint="a history is of time bars; write one file: mia-fast features IN OUT.parquet",
                        then=_THEN,
                    )
                if not self.source.interval_ns:
                    assert table.interval_ns is not None
                    self.source.interval_ns = table.interval_ns
                    self._fix_interval(table.interval_ns)
                yield table, group, first
        except (pl.exceptions.PolarsError, pa.ArrowException, OSError, EOFError) as error:
            reason = str(error).strip().splitlines()
            raise DataError(
                f"cannot be read ({reason[0] if reason else type(error).__name__})",
                where=str(self.source.path),
                hint="Parquet, CSV and gzipped CSV are read; is the file whole?",
                then=_THEN,
            ) from error
        if not self.source.rows:
            raise DataError("holds no rows", where=str(self.source.path), hint="leave the file out", then=_THEN)

    def by_symbol(self, frame: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
        """The block's bars of each symbol, without those that repeat or overlap the block before."""
        if "symbol" in frame.columns:
            parts = [(str(key[0]), part) for key, part in frame.group_by("symbol", maintain_order=True)]
        else:
            parts = [(self._default, frame)]
        for name, part in parts:
            own = part
            last = self._last.get(name)
            stamps = own["timestamp"].dt.epoch("ns")
            if last is not None and int(stamps[0]) < last + self.source.interval_ns:
                if int(stamps[0]) < last:
                    raise DataError(
                        f"timestamp {_utc(int(stamps[0]))} of {name} comes after {_utc(last)} [unsorted]",
                        where=str(self.source.path),
                        hint="sort the file by symbol, timestamp; it is not done here, it would hide a feed fault",
                        then=_THEN,
                    )
                keep = stamps >= last + self.source.interval_ns
                rule = DUPLICATE.name if int(stamps[0]) == last else OVERLAP.name
                self.repeated[rule] = self.repeated.get(rule, 0) + int((~keep).sum())
                own = own.filter(keep)
                if not own.height:
                    continue
                stamps = own["timestamp"].dt.epoch("ns")
            self._last[name] = int(stamps[-1])
            yield name, own

    def _fix_interval(self, interval_ns: int) -> None:
        bars: Any = self._mapping.bars
        lengths = dict(zip(bars.intervals_ns(), bars.interval, strict=True))
        fixed = bars.model_copy(update={"interval": (lengths[interval_ns],), "volume_bars": False})
        self._mapping = self._mapping.model_copy(update={"bars": fixed})


_NOT_INPUTS: Final = ("timestamp", "known_at", "symbol")


def bars_of(
    source: Source, symbol: str, *, workspace: Workspace, default: str, after: int | None = None
) -> Iterator[pl.DataFrame]:
    """The bars of one symbol in one file, in blocks, from the first later than the timestamp ``after`` (ns) on.

    Raises
    ------
    DataError
        The file changed since it was surveyed.
    """
    if source.path.stat().st_size != source.size:
        raise _changed(source)
    span = source.spans[symbol]
    reader = Reader(source, read_inputs(workspace), default)
    rows = 0
    for table, _group, _first in reader.tables(span.groups):
        for name, frame in reader.by_symbol(table.frame):
            if name != symbol:
                continue
            rows += frame.height
            kept = frame if after is None else frame.filter(pl.col("timestamp").dt.epoch("ns") > after)
            if kept.height:
                yield kept
    if rows != span.rows:
        raise _changed(source)


def _changed(source: Source) -> DataError:
    return DataError(
        "changed while the features were computed",
        where=str(source.path),
        hint="run again when nothing writes to the file; what is finished stays",
        then="the run stopped; no part with these bars was added",
    )


def _batches(path: Path, groups: set[int] | None) -> Iterator[tuple[pl.DataFrame, int]]:
    """Blocks of at most :data:`BLOCK_ROWS` rows, and the row group of each. Arrow's readers hold one block."""
    if path.name.lower().endswith((".parquet", ".pq")):
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                if groups is not None and group not in groups:
                    continue
                for batch in file.iter_batches(batch_size=BLOCK_ROWS, row_groups=[group], use_threads=False):
                    yield pl.DataFrame(batch), group
        return
    if not path.name.lower().endswith(_SUFFIXES):
        raise DataError(
            f"{path.suffix or 'no suffix'!r} is not a format that is read",
            where=str(path),
            hint="give Parquet (.parquet, .pq), CSV (.csv) or gzipped CSV (.csv.gz)",
            then=_THEN,
        )
    from pyarrow import csv

    options = csv.ReadOptions(block_size=BLOCK_ROWS * _CSV_BYTES_PER_ROW)
    with csv.open_csv(path, read_options=options) as reader:
        for batch in reader:
            yield pl.DataFrame(batch), 0


def _utc(ns: int) -> str:
    from mia_fast.clock import iso

    return iso(ns)
