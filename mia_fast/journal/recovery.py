"""Start-up, which is recovery: what a crash, a power cut or a broken disk left is brought back in order.

Nothing is deleted but segments whose every row DuckDB holds. What is broken moves to
``data/quarantine/<moment>/``. What may have cost rows becomes an incident.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from mia_fast import clock, telemetry
from mia_fast.errors import JournalError
from mia_fast.journal import export as exporting
from mia_fast.journal import segments
from mia_fast.journal.database import Database, DatabaseDamagedError, first_line, is_damage
from mia_fast.journal.guard import Incidents
from mia_fast.journal.schema import TABLES

_LOG: Final = logging.getLogger(__name__)
NAMES: Final = {name: table.names for name, table in TABLES.items()}
"""Today's columns of each table."""


class Recovery:
    """One start-up.

    Attributes
    ----------
    messages
        What was found and done, in plain words.
    next
        The sequence number of the next row.
    ordinal
        The number of the last segment file.
    repeated
        Rows that were in the database already.
    """

    def __init__(
        self,
        data: Path,
        incidents: Incidents,
        now: Callable[[], int],
        batch_rows: int,
        pause: Callable[[float], Any] | None,
    ) -> None:
        self.messages: list[str] = []
        self.next = 1
        self.ordinal = 0
        self.repeated = 0
        self._data = data
        self._folder = data / "journal"
        self._path = data / "mia.duckdb"
        self._incidents = incidents
        self._now = now
        self._batch_rows = batch_rows
        self._pause = pause
        self._found: list[tuple[int, Path]] = []
        self._unsound: list[Path] = []

    def run(self) -> Database:
        """Open the database and bring it up to the last row of the segments.

        Raises
        ------
        JournalError
            It cannot be opened or filled, and not because of damage; the segments stay.
        OSError
            A file cannot be read or moved.
        """
        database, self._found = self._open_database()
        try:
            try:
                self._fill(database)
            except Exception as error:
                if not is_damage(error):
                    raise
                database.close()
                database = self._rebuild(f"is damaged ({first_line(error)})")
                self._fill(database)
        except BaseException as error:
            database.close()
            raise failure("recovery", self._path, error) from error
        return database

    def retire(self) -> None:
        """Remove the old segments; the unsound ones go into quarantine. Only after a checkpoint."""
        for _, path in self._found:
            if path not in self._unsound:
                path.unlink()
        if self._unsound:
            self._quarantine(self._unsound)

    def _open_database(self) -> tuple[Database, list[tuple[int, Path]]]:
        """The database, rebuilt if it is gone or broken, and the segments that are there."""
        path, log = self._path, self._path.with_name(self._path.name + ".wal")
        found = segments.listing(self._folder)
        if path.exists() and not path.is_file():
            raise JournalError(
                "is not a file",
                where=str(path),
                hint="move it away; the journal keeps its database under this name",
                then="nothing was opened",
            )
        if not path.exists():
            stray = [file for file in (log, *exporting.existing(self._data)) if file.exists()]
            if stray:
                folder = self._quarantine(stray)
                self._tell(
                    f"there was no {path.name}; older logs were moved to {folder} so that no export replaces them"
                )
            return self._connected(path), found
        try:
            return self._sound(path), found
        except DatabaseDamagedError as error:
            fault = error.what
        if log.exists():
            folder = self._quarantine([log])
            try:
                database = self._sound(path, verify=True)
                self._tell(f"{log.name} was damaged; it was moved to {folder} and its rows were read from the segments")
                return database, found
            except DatabaseDamagedError as error:
                fault = error.what
        return self._rebuild(fault), found

    def _rebuild(self, fault: str) -> Database:
        """A new database; the old one, and the exports that may hold more than the new one will, are set aside."""
        message = f"{self._path.name} {fault}; it was set aside and a new one was filled from the segments"
        self._incidents.record("lost", message, self._now())
        self._incidents.close("database")
        log = self._path.with_name(self._path.name + ".wal")
        folder = self._quarantine(
            [file for file in (self._path, log, *exporting.existing(self._data)) if file.exists()]
        )
        self._tell(f"{message}; the old file and its exports are in {folder}")
        return Database(self._path)

    def _connected(self, path: Path) -> Database:
        """Open; while another program holds the file, again 2, 4 and 8 seconds later (where pauses are allowed)."""
        if self._pause is None:
            return Database(path)

        def waiting(error: BaseException) -> None:
            _LOG.warning("%s is held by another program, trying again (%s)", path.name, first_line(error))

        return telemetry.retrying(lambda: Database(path), transient=_held, sleep=self._pause, failed=waiting)

    def _sound(self, path: Path, *, verify: bool = False) -> Database:
        """Open; read every block if one was found damaged before, because opening alone does not notice."""
        database = self._connected(path)
        if verify or self._incidents.has("database"):
            try:
                database.verify()
            except DatabaseDamagedError:
                database.close()
                raise
        return database

    def _fill(self, database: Database) -> None:
        """Insert what the segments hold beyond the database.

        An incident is recorded before the rows behind a gap are inserted: a crash in between must
        not make the gap look like something that was drained.
        """
        start = database.drained
        found = self._found
        if start and not found:
            self._lose(f"the segments in {self._folder.name} are gone: rows accepted after {start} may be lost")
        unsound: list[Path] = []
        self.next = start + 1
        recovered = 0
        for _, path in found:
            content = segments.read(path)
            rows: list[segments.Row] = []
            if content.first is not None:
                self._expect(content.first)
            for sequence, text, blobs in content.rows:
                if sequence < self.next:
                    continue
                self._expect(sequence)
                self.next = sequence + 1
                decoded = segments.decode(text, blobs, content.columns or NAMES)
                if decoded is None:
                    self._lose(f"row {sequence} in {path.name} belongs to no known table; it stays in quarantine")
                    unsound.append(path)
                else:
                    rows.append((sequence, *decoded))
            for begin, end, last in content.damage:
                if path == found[-1][1] and end == content.size:  # no later row shows what is missing
                    known = max(last, self.next - 1)
                    self._lose(f"{path.name} is damaged from byte {begin} to its end: rows after {known} may be lost")
                else:
                    self._tell(f"{path.name} was damaged from byte {begin} to {end}; reading went on behind it")
            if content.torn:
                self._tell(
                    f"{path.name} ended in an unfinished row of {content.torn} bytes, never acknowledged: cut off"
                )
            if content.torn or content.damage:
                unsound.append(path)
            for begin in range(0, len(rows), self._batch_rows):
                batch = rows[begin : begin + self._batch_rows]
                result = database.insert(batch, batch[-1][0])
                recovered += result.rows
                self.repeated += result.repeated
        if database.drained < self.next - 1:
            database.advance(self.next - 1)
        if recovered:
            self._tell(f"{recovered} rows that the last run had accepted but not stored were recovered")
        self.ordinal = found[-1][0] if found else 0
        self._unsound = list(dict.fromkeys(unsound))

    def _expect(self, sequence: int) -> None:
        """Report the rows between what was read so far and ``sequence``."""
        if sequence > self.next:
            self._lose(f"rows {self.next} to {sequence - 1} are in no sound segment and not in {self._path.name}")
            self.next = sequence

    def _lose(self, message: str) -> None:
        self._incidents.record("lost", message, self._now())
        self._tell(message)

    def _tell(self, message: str) -> None:
        if message not in self.messages:
            self.messages.append(message)
            _LOG.warning(message)

    def _quarantine(self, paths: Iterable[Path]) -> Path:
        """Move files into a folder of their own, named after this moment; nothing is deleted."""
        stamp = clock.file_stamp(self._now())
        folder = self._data / "quarantine" / stamp
        number = 1
        while folder.exists():
            number += 1
            folder = folder.with_name(f"{stamp}_{number}")
        folder.mkdir(parents=True)
        for path in paths:
            path.rename(folder / path.name)
        segments.sync_folder(folder)
        return folder


def _held(error: BaseException) -> bool:
    """A lock may be let go of; every other reason not to open stays what it is."""
    return telemetry.is_transient(error.__cause__ if isinstance(error, JournalError) and error.__cause__ else error)


def failure(doing: str, path: Path, error: BaseException) -> BaseException:
    """The error as a JournalError; one that is none of the journal's business stays as it is."""
    if isinstance(error, JournalError) or not isinstance(error, Exception):
        return error
    return JournalError(
        f"{doing} failed ({type(error).__name__}: {first_line(error)})",
        where=str(path),
        hint="free disk space, close other programs that hold the file, and try again",
        then="what was accepted stays in the segments",
    )
