"""The risk state on disk: a latch that no crash, restart or second process can lose.

``data/risk_state.json`` is replaced atomically and forced to disk before a latch is reported. A
marker beside it records that it once existed, so that deleting it blocks instead of clearing. Every
write happens under a lock file and first merges what other processes wrote: the order is
``(generation, latched)``, where a reset raises the generation, and so does a latch that replaces a
damaged file. So a latch set anywhere wins over every state of its generation, and nothing but a
reset undoes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mia_fast import files
from mia_fast.clock import file_stamp, iso
from mia_fast.errors import RiskError, StateError
from mia_fast.files import Stamp, stamp
from mia_fast.risk import overtrading
from mia_fast.risk.codes import Code

FORMAT = 2
_LOCK_TRIES, _LOCK_PAUSE = 25, 0.01  # a writer holds the lock for milliseconds; a quarter of a second is a fault


@dataclass(frozen=True, slots=True)
class Latch:
    """Why and when trading stopped. ``reported``: penalty line, snapshot and alert are written."""

    cause: str
    drawdown: float | None
    limit: float | None
    at_ns: int
    overtrade_risk_score: float
    equity: float | None
    peak: float | None
    reported: bool


@dataclass(frozen=True, slots=True)
class Day:
    """What the present trade date has seen; ``date`` is its ordinal, ``open`` and ``last`` are USD."""

    date: int
    open: float | None
    last: float | None
    stopped: bool
    entries: int


@dataclass(frozen=True, slots=True)
class Record:
    """What a restart must know.

    ``generation`` rises with each reset, ``account`` with each new account. ``identity`` names the
    state for good, so that journal rows of two replays of one day are told apart.
    """

    identity: str
    generation: int = 0
    latch: Latch | None = None
    account: int = 0
    peak: float | None = None
    equity: float | None = None
    marked_ns: int | None = None
    trade_rate: Mapping[str, Any] | None = None
    day: Day | None = None


class StateStore:
    """Reads and writes the record in one folder: ``data`` of a workspace, or the folder of a replay."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "risk_state.json"
        self.marker = folder / ".risk_state.created"
        self._lock = folder / ".risk_state.lock"

    def read(self) -> Record | None:
        """The record, or None in a folder that never had one.

        Raises
        ------
        RiskError
            It is gone although it once existed, unreadable or damaged.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            if self.marker.exists():
                raise self._fault("the risk state is gone although it once existed") from None
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise self._fault(f"the risk state cannot be read ({error})") from error
        try:
            return _decode(json.loads(text))
        except (KeyError, TypeError, ValueError, RecursionError, StateError) as error:
            raise self._fault(f"the risk state is damaged ({error})") from error

    def fingerprint(self) -> Stamp | None:
        """Changes whenever any process replaces the file; None while there is none."""
        return stamp(self.path)

    def write(self, record: Record, *, breach: bool = False) -> tuple[Record, Stamp | None]:
        """Merge ``record`` with the file and force the result to disk; returns what is there now.

        With ``breach`` the latch of ``record`` is newer than any reset on disk and joins its generation.

        Raises
        ------
        RiskError
            The lock stayed taken, the file on disk is unusable, or it cannot be written.
        """
        with self._locked():
            theirs = self.read()
            if breach and theirs is not None and theirs.generation > record.generation:
                record = replace(record, generation=theirs.generation)
            merged = merge(record, theirs)
            if merged != theirs:
                self._put(merged)
            return merged, self.fingerprint()

    def overwrite(self, record: Record) -> tuple[Record, Stamp | None]:
        """Replace a file that :meth:`read` refuses; the damaged one is kept beside it as evidence.

        Raises
        ------
        RiskError
            As :meth:`write`.
        """
        with self._locked():
            try:
                theirs = self.read()
            except RiskError:
                theirs = None
            if theirs is not None:  # another process was quicker to replace it
                record = merge(replace(record, generation=theirs.generation), theirs)
            elif self.path.exists():
                moment = record.latch.at_ns if record.latch is not None else 0
                aside = self.path.with_name(f"risk_state.damaged_{file_stamp(moment)}.json")
                try:
                    self.path.replace(aside)
                except OSError as error:
                    raise self._fault(f"the damaged risk state cannot be put aside ({error})") from error
            self._put(record)
            return record, self.fingerprint()

    def _put(self, record: Record) -> None:
        try:
            files.write_json(self.path, _encode(record), durable=True)
            if not self.marker.exists():
                files.write_text(self.marker, "risk_state.json was created; its absence blocks entries\n", durable=True)
        except OSError as error:
            raise self._fault(f"the risk state cannot be written ({error})") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclusive among processes; given back by the system when the holder dies."""
        try:
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._fault(f"the lock of the risk state cannot be opened ({error})") from error
        try:
            for attempt in range(_LOCK_TRIES):
                if try_lock(handle):
                    break
                if attempt == _LOCK_TRIES - 1:
                    raise self._fault("another process holds the lock of the risk state")
                time.sleep(_LOCK_PAUSE)
            yield
        finally:
            os.close(handle)

    def _fault(self, what: str) -> RiskError:
        return RiskError(
            what,
            where=str(self.path),
            hint='check the disk and the permissions, then `mia-fast risk reset --reason "..."`',
            then="entries stay blocked; cancels and reductions pass",
        )


def merge(mine: Record, theirs: Record | None) -> Record:
    """The state that must win: the higher generation, then the latched one, then the later account and mark."""
    if theirs is None or mine.generation > theirs.generation:
        return mine
    if theirs.generation > mine.generation:
        return theirs
    latch = theirs.latch or mine.latch
    if mine.latch is not None and theirs.latch is not None and mine.latch == replace(theirs.latch, reported=True):
        latch = mine.latch
    later = mine if (mine.account, mine.marked_ns or 0) >= (theirs.account, theirs.marked_ns or 0) else theirs
    return replace(later, identity=theirs.identity, latch=latch, day=_later_day(later.day, mine, theirs))


def _later_day(day: Day | None, mine: Record, theirs: Record) -> Day | None:
    """The day of the later mark; what another process saw of the same date and account is not forgotten."""
    if day is None or mine.account != theirs.account:
        return day
    same = [other.day for other in (mine, theirs) if other.day is not None and other.day.date == day.date]
    return replace(day, stopped=any(d.stopped for d in same), entries=max(d.entries for d in same))


def write_snapshot(folder: Path, at_ns: int, values: Mapping[str, Any]) -> Path:
    """Write ``risk_*.json`` for the instant: ``timestamp``, then ``values``.

    Name and timestamp move on by a microsecond while the name is taken by another snapshot; the same
    snapshot written twice is one file.
    """
    while True:
        path = folder / f"risk_{file_stamp(at_ns)}.json"
        content = {"timestamp": iso(at_ns), **values}
        if not path.exists():
            files.write_json(path, content)
            return path
        try:
            if json.loads(path.read_text(encoding="utf-8")) == content:
                return path
        except ValueError:
            pass  # something else under this name: leave it
        at_ns += 1000


def _encode(record: Record) -> dict[str, Any]:
    latch = record.latch
    content: dict[str, Any] = {
        "format": FORMAT,
        "identity": record.identity,
        "generation": record.generation,
        "latched": latch is not None,
        "latch": None
        if latch is None
        else {
            "cause": latch.cause,
            "drawdown": latch.drawdown,
            "limit": latch.limit,
            "at_ns": latch.at_ns,
            "overtrade_risk_score": latch.overtrade_risk_score,
            "equity": latch.equity,
            "peak": latch.peak,
            "reported": latch.reported,
        },
        "account": record.account,
        "peak": record.peak,
        "equity": record.equity,
        "marked_ns": record.marked_ns,
        "trade_rate": record.trade_rate,
        "day": None if record.day is None else asdict(record.day),
    }
    content["sha256"] = _seal(content)
    return content


def _decode(content: Any) -> Record:
    """Raises KeyError, TypeError or ValueError for anything but what :func:`_encode` made."""
    if not isinstance(content, dict):
        raise TypeError("not a JSON object")
    sealed = {key: value for key, value in content.items() if key != "sha256"}
    if content["sha256"] != _seal(sealed):
        raise ValueError("the checksum does not fit the content")
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r} is unknown to this version")
    if content["trade_rate"] is not None:
        overtrading.parse(content["trade_rate"])
    latch, day = content["latch"], content["day"]
    if (latch is not None) is not content["latched"]:
        raise ValueError("latched and latch contradict each other")
    return Record(
        identity=str(content["identity"]),
        generation=int(content["generation"]),
        latch=None
        if latch is None
        else Latch(
            cause=Code[latch["cause"]].name,
            drawdown=_number(latch["drawdown"]),
            limit=_number(latch["limit"]),
            at_ns=int(latch["at_ns"]),
            overtrade_risk_score=float(latch["overtrade_risk_score"]),
            equity=_number(latch["equity"]),
            peak=_number(latch["peak"]),
            reported=bool(latch["reported"]),
        ),
        account=int(content["account"]),
        peak=_number(content["peak"]),
        equity=_number(content["equity"]),
        marked_ns=None if content["marked_ns"] is None else int(content["marked_ns"]),
        trade_rate=content["trade_rate"],
        day=None
        if day is None
        else Day(
            int(day["date"]), _number(day["open"]), _number(day["last"]), bool(day["stopped"]), int(day["entries"])
        ),
    )


def _number(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is not finite")
    return number


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


if sys.platform == "win32":
    import msvcrt

    def try_lock(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def try_lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
