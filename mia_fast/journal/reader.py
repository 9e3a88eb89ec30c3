"""Reading beside the engine: another process sees everything accepted, and the engine feels nothing.

DuckDB refuses a second process while one writes. But between two checkpoints the engine's database
file does not change in any block that its header can reach, and what came since the checkpoint stands
in the segment files. So a reader copies the file, checks that no checkpoint came meanwhile, and
brings the segments in with the code that start-up uses. It takes no lock and writes nothing of the
journal's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from mia_fast.errors import JournalError
from mia_fast.journal import export as exporting
from mia_fast.journal import segments
from mia_fast.journal import sql as sqls
from mia_fast.journal.database import Database, first_line
from mia_fast.journal.recovery import NAMES, failure
from mia_fast.journal.schema import TABLES, table_named
from mia_fast.workspace import Workspace

if TYPE_CHECKING:
    import duckdb
    import polars as pl

T = TypeVar("T")

_HEADERS: Final = 3 * 4096
"""DuckDB's main header and its two database headers, of which a checkpoint writes one, last of all."""
_TRIES: Final = 20
_BATCH: Final = 16_384


class _Moved(Exception):  # noqa: N818 - not an error: the engine went on meanwhile
    """A checkpoint came while the files were read."""


class Reader:
    """A snapshot of a workspace's journal, whoever has it open. Use it as a context manager.

    Parameters
    ----------
    workspace
        Where the journal lies.

    Raises
    ------
    JournalError
        There is no journal, its files are damaged, or rows are missing: the next start-up of the
        engine repairs and reports that; a reader does not.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._path = workspace.data / "mia.duckdb"
        self._journal = workspace.data / "journal"
        self._database: Database | None = None
        self._place = self._make_place()
        try:
            for attempt in range(1, _TRIES + 1):
                try:
                    self._take()
                    return
                except (_Moved, FileNotFoundError) as moved:
                    if attempt == _TRIES:
                        raise self._unreadable(str(moved) or "its files keep changing") from moved
                    time.sleep(0.02)
        except BaseException:
            self.close()
            raise

    def _make_place(self) -> Path:
        if not self._path.is_file():
            raise JournalError(
                "there is no journal here",
                where=str(self._path),
                hint="choose the workspace with --workspace or MIA_WORKSPACE",
                then="nothing was read",
            )
        folder = self.workspace.data
        for left in folder.glob(".reader-*"):  # of readers that were killed
            with contextlib.suppress(ValueError, PermissionError):
                try:
                    os.kill(int(left.name.split("-")[1]), 0)
                except ProcessLookupError:
                    shutil.rmtree(left, ignore_errors=True)
        # On the same disk a copy may share its blocks; where the workspace is read-only it goes elsewhere.
        writable = os.access(folder, os.W_OK)
        return Path(tempfile.mkdtemp(prefix=f".reader-{os.getpid()}-", dir=folder if writable else None))

    def _take(self) -> None:
        copy = self._place / "copy.duckdb"
        before = self._headers()
        shutil.copyfile(self._path, copy)
        found = [(path, segments.read(path)) for _, path in segments.listing(self._journal)]
        if self._headers() != before:
            raise _Moved
        database = self._database = Database(copy)
        try:
            self._fill(database, found)
        except _Moved:
            database.close()
            for left in self._place.iterdir():
                left.unlink()
            raise

    def _headers(self) -> tuple[int, bytes]:
        with self._path.open("rb") as file:
            return os.fstat(file.fileno()).st_ino, file.read(_HEADERS)

    def _fill(self, database: Database, found: list[tuple[Path, segments.Content]]) -> None:
        """Bring in the rows beyond the copy, as start-up does; a gap means that the files have moved on."""
        wanted = database.drained + 1
        for path, content in found:
            rows: list[segments.Row] = []
            if content.first is not None and content.first > wanted:
                raise _Moved(f"rows {wanted} to {content.first - 1} are in no file")
            for sequence, text, blobs in content.rows:
                if sequence < wanted:
                    continue
                decoded = segments.decode(text, blobs, content.columns or NAMES)
                if sequence > wanted or decoded is None:
                    raise _Moved(f"row {wanted} cannot be read in {path.name}")
                rows.append((sequence, *decoded))
                wanted += 1
            for begin in range(0, len(rows), _BATCH):
                batch = rows[begin : begin + _BATCH]
                database.insert(batch, batch[-1][0])

    def _unreadable(self, why: str) -> JournalError:
        return JournalError(
            f"cannot be read beside the engine ({why})",
            where=str(self._path),
            hint="start the engine, or run 'mia-fast export': start-up repairs what can be and reports the rest",
            then="nothing was changed",
        )

    def query(self, sql: str, parameters: Sequence[Any] | None = None) -> pl.DataFrame:
        """As :meth:`mia_fast.journal.Journal.query`."""
        sqls.check(sql)
        return self._with_cursor(lambda cursor: sqls.run(cursor, sql, parameters))

    def export(self, tables: Iterable[str] | None = None, *, parquet: bool = False, whole: bool = False) -> list[Path]:
        """As :meth:`mia_fast.journal.Journal.export`."""
        return self._with_cursor(
            lambda cursor: run_export(cursor, self.workspace.data, tables, parquet=parquet, whole=whole)
        )

    def _with_cursor(self, work: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        import duckdb

        if self._database is None:
            raise JournalError(
                "the reader is closed", where=str(self._path), hint="open another", then="nothing was read"
            )
        cursor = self._database.cursor()
        try:
            return work(cursor)
        except duckdb.Error as error:
            raise failure("reading", self._path, error) from error
        finally:
            cursor.close()

    def close(self) -> None:
        """Let go of the snapshot and remove it."""
        if self._database is not None:
            self._database.close()
            self._database = None
        shutil.rmtree(self._place, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close()


def run_export(cursor: Any, data: Path, tables: Iterable[str] | None, *, parquet: bool, whole: bool) -> list[Path]:
    """CSV or Parquet, of the tables named or of all.

    Raises
    ------
    JournalError
        A table is unknown or has no CSV, or a file cannot be written.
    """
    try:
        if parquet:
            chosen = list(TABLES.values()) if tables is None else [table_named(name) for name in tables]
            return exporting.write_parquet(cursor, data, chosen, whole=whole)
        return exporting.write(cursor, data, exporting.choose(tables), whole=whole)
    except OSError as error:
        raise JournalError(
            f"cannot be written ({error.strerror or first_line(error)})",
            where=str(error.filename or data),
            hint="free disk space or restore the permissions, then export again",
            then="the old file stays",
        ) from error
