"""The folder of a history: parts by symbol and month, a manifest, and what a stopped run needs to go on.

::

    OUT/manifest.json                                written last: its presence says that the history is whole
    OUT/symbol=ES/month=2019-01/part-000.parquet     whole or not there
    OUT/.progress/                                   while a run is under way or was stopped
        run.json                                     the parts that are finished; replaced after each of them
        <symbol>-<number of parts>.state             the feature engine after the last of them
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from mia_fast.errors import DataError, StateError, WorkspaceError
from mia_fast.files import replacing, sha256, write_json
from mia_fast.histories.sources import MANIFEST
from mia_fast.risk.store import try_lock

KIND: Final = "mia-fast history of features"
_VERSION: Final = 2
_PROGRESS: Final = ".progress"
_FRESH: Final = "run with --fresh to begin again, or write to another folder"


@dataclass(frozen=True, slots=True)
class Part:
    """One finished file."""

    path: str
    """Relative to the history's folder."""
    symbol: str
    month: str
    rows: int
    first: int
    """Timestamp of the first bar, ns UTC."""
    last: int
    bytes: int
    sha256: str


@dataclass(slots=True)
class Manifest:
    """``manifest.json``: what the history is made of and how; equal runs leave equal bytes.

    Attributes
    ----------
    identity
        Everything that decides the values and the bytes: inputs by name, size and SHA-256, catalogue digest, plan
        digests, kernels, versions, type, compression. A run goes on only under the same identity.
    features
        The columns after ``timestamp``, in order.
    null_features
        Symbol -> features that are null throughout -> the inputs they lack.
    parts
        The files, in the order they were written.
    """

    identity: dict[str, Any]
    features: tuple[str, ...]
    null_features: dict[str, dict[str, list[str]]]
    parts: list[Part] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.bytes for part in self.parts)

    def content(self) -> dict[str, Any]:
        """As it is written."""
        return {
            "kind": KIND,
            "format": _VERSION,
            **self.identity,
            "rows": self.rows,
            "features": list(self.features),
            "null_features": self.null_features,
            "parts": [asdict(part) for part in self.parts],
        }

    @classmethod
    def of(cls, content: Mapping[str, Any], where: Path) -> Manifest:
        """From what :meth:`content` gave.

        Raises
        ------
        StateError
            It is not a manifest of this version.
        """
        rest = dict(content)
        try:
            if (rest.pop("kind"), rest.pop("format")) != (KIND, _VERSION):
                raise ValueError("another kind or version")
            parts = [Part(**part) for part in rest.pop("parts")]
            features, nulls = tuple(rest.pop("features")), rest.pop("null_features")
            rest.pop("rows")
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(
                f"is not a manifest of this version ({type(error).__name__}: {error})", where=str(where), hint=_FRESH
            ) from error
        return cls(rest, features, nulls, parts)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a whole history.

    Raises
    ------
    DataError
        The folder holds none: it is no history, or its run was stopped.
    StateError
        It is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        stopped = (folder / _PROGRESS / "run.json").exists()
        raise DataError(
            "the run that writes this history was stopped" if stopped else "holds no history of features",
            where=str(folder),
            hint="run mia-fast features with the same arguments to finish it" if stopped else "check the path",
        )
    return Manifest.of(_json(path), path)


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StateError(
            f"cannot be read ({error})", where=str(path), hint=_FRESH, then="nothing was changed"
        ) from error
    return content


def part_path(symbol: str, month: str, number: int) -> str:
    """Where a part goes, relative to the history's folder."""
    return f"symbol={_escaped(symbol)}/month={month}/part-{number:03d}.parquet"


def _escaped(symbol: str) -> str:
    """As hive partitions are written: what a file name must not hold is percent-encoded."""
    return re.sub(r"[^A-Za-z0-9._ -]|^\.+$", lambda m: "".join(f"%{byte:02X}" for byte in m[0].encode()), symbol)


class Dataset:
    """A history being written, by this process alone. Use as a context manager.

    Raises
    ------
    WorkspaceError
        Another process writes there, or the folder holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._progress = folder / _PROGRESS
        self._lock: int | None = None

    def __enter__(self) -> Dataset:
        if self.folder.exists() and not self.folder.is_dir():
            raise WorkspaceError(
                "is a file; a history is a folder", where=str(self.folder), hint="choose another name for it"
            )
        ours = (self.folder / MANIFEST).exists() or self._progress.is_dir()
        if self.folder.is_dir() and not ours and any(self.folder.iterdir()):
            raise WorkspaceError(
                "the folder is not empty and holds no history of features",
                where=str(self.folder),
                hint="choose a new or empty folder",
                then="nothing was computed",
            )
        self._progress.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._progress / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        if not try_lock(handle):
            os.close(handle)
            raise WorkspaceError(
                "another process is writing this history",
                where=str(self.folder),
                hint="wait for it, or write to another folder",
                then="nothing was computed",
            )
        self._lock = handle
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def clear(self) -> None:
        """Remove what a run wrote here, and only that."""
        for path in (self.folder / MANIFEST, self._progress / "run.json"):
            if path.exists():
                try:
                    parts = Manifest.of(_json(path), path).parts
                except StateError:
                    parts = []
                path.unlink()
                for part in parts:
                    (self.folder / part.path).unlink(missing_ok=True)
        self._sweep(set())
        for path in self._progress.glob("*.state"):
            path.unlink()

    def begin(self, manifest: Manifest) -> Manifest:
        """What is finished of this run already: ``manifest`` with its parts.

        Raises
        ------
        StateError
            The folder holds a history of other inputs, another catalogue or other settings; or finished parts are
            gone or damaged.
        """
        whole = self.folder / MANIFEST
        path = whole if whole.exists() else self._progress / "run.json"
        if not path.exists():
            self._sweep(set())
            return manifest
        found = Manifest.of(_json(path), path)
        difference = _difference(found.identity, manifest.identity)
        if difference is not None:
            raise StateError(
                f"{difference} since this history was {'written' if whole.exists() else 'begun'}",
                where=str(self.folder),
                hint=f"restore what it was begun with; or {_FRESH}",
                then="nothing was changed",
            )
        for part in found.parts:
            self._check(part)
        if not whole.exists():
            self._sweep({part.path for part in found.parts})
        return found

    def is_whole(self) -> bool:
        """Whether the history is complete."""
        return (self.folder / MANIFEST).exists()

    def state(self, symbol: str, parts: int) -> bytes:
        """The engine's state after so many parts of a symbol."""
        path = self._state_path(symbol, parts)
        try:
            return path.read_bytes()
        except OSError as error:
            raise StateError(
                f"the saved feature state cannot be read ({error})", where=str(path), hint=_FRESH
            ) from error

    def commit(self, manifest: Manifest, state: bytes) -> None:
        """Take the last part of ``manifest`` as finished. Its file is in place already; this makes it count."""
        symbol = manifest.parts[-1].symbol
        number = sum(part.symbol == symbol for part in manifest.parts)
        with replacing(self._state_path(symbol, number), durable=True) as temporary:
            temporary.write_bytes(state)
        write_json(self._progress / "run.json", manifest.content(), durable=True)
        self._state_path(symbol, number - 1).unlink(missing_ok=True)

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest: the history is whole."""
        write_json(self.folder / MANIFEST, manifest.content(), durable=True)
        self.tidy()

    def tidy(self) -> None:
        """Remove what only a run under way needs."""
        shutil.rmtree(self._progress, ignore_errors=True)

    def _state_path(self, symbol: str, parts: int) -> Path:
        return self._progress / f"{_escaped(symbol)}-{parts}.state"

    def _check(self, part: Part) -> None:
        path = self.folder / part.path
        try:
            same = sha256(path) == part.sha256
        except OSError:
            same = False
        if not same:
            raise StateError(
                "a finished part was changed or removed" if path.exists() else "a finished part is gone",
                where=str(path),
                hint=f"restore it from a backup; or {_FRESH}",
                then="nothing was changed",
            )

    def _sweep(self, finished: set[str]) -> None:
        """Remove parts that were not committed, and temporary files of a killed run."""
        for path in self.folder.glob("symbol=*/month=*/*"):
            ours = re.fullmatch(r"part-\d{3,}\.parquet|\.part-\d{3,}\.parquet\..*\.tmp", path.name)
            if ours and path.relative_to(self.folder).as_posix() not in finished:
                path.unlink()
        for folder in (self.folder, self._progress):
            for path in folder.glob(".*.tmp"):
                path.unlink()


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first thing that differs, in words; None if nothing does."""
    for key in new:
        before, now = old.get(key), new[key]
        if before == now:
            continue
        if key == "inputs":
            was = {item["name"]: item for item in before or ()}
            names = {item["name"] for item in now}
            gone = [name for name in was if name not in names]
            added = [item["name"] for item in now if item["name"] not in was]
            changed = [item["name"] for item in now if item["name"] in was and was[item["name"]] != item]
            for words, files in (("changed", changed), ("was left out", gone), ("was added", added)):
                if files:
                    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
                    return f"the input {files[0]}{more} {words}"
            return "the inputs changed"
        if key == "tables":
            before = before or {}
            name = next(name for name in (*now, *before) if before.get(name) != now.get(name))
            if name not in before or name not in now:
                return f"the table {name} was {'left out' if name in before else 'added'}"
            return f"the table {name} ({now[name]['name']}) changed"
        return f"the {key.replace('_', ' ')} changed (was {_short(before)}, is {_short(now)})"
    return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 90 else text[:87] + "..."
