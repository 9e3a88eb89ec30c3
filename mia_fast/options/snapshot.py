"""Levels on disk, and the call that does everything at once."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path
from typing import Any

import polars as pl

from mia_fast import clock, journal
from mia_fast.config import load
from mia_fast.errors import DataError, WorkspaceError
from mia_fast.files import Stamp, stamp, write_json
from mia_fast.options.chain import Chain
from mia_fast.options.config import OptionsConfig
from mia_fast.options.levels import Levels, LevelsEngine, no_chain
from mia_fast.options.readers import read_chain
from mia_fast.telemetry import operation
from mia_fast.workspace import Workspace

SNAPSHOT_KEYS = ("timestamp", "gamma_wall", "iv_atm", "dealer_position_bias")
RECORD_SCHEMA = 1
"""Of the full record in the journal: raised when a field goes or changes its meaning or unit; a new field leaves it."""
_ATTEMPTS = 10_000
_IV_MOST = 5.0
"""Per square root of a year. The VIX has never closed above 82.69 (0.83, March 2020); percents lie above."""


def save(levels: Levels, workspace: Workspace, *, wait: bool = False) -> Levels:
    """Write ``data/options_snapshots/levels_<instant>.json`` and return the levels with ``path`` set.

    The file appears whole, under the instant that it holds, and never takes another's place: when
    that microsecond is taken, also by another process, both the name and the ``timestamp`` are those
    of the next free one. The name is claimed by creating ``.levels_<instant>.json.claim``
    exclusively, which is removed once the snapshot stands. With ``wait`` a busy file is tried again
    (:func:`mia_fast.files.fill`); the live path does not wait.

    Raises
    ------
    DataError
        The levels have no instant: computed from nothing, without ``now_ns``.
    WorkspaceError
        The folder cannot be written.
    """
    if levels.timestamp_ns is None:
        raise DataError(
            "has no instant",
            where="levels.timestamp",
            hint="pass now_ns where the levels are computed",
            then="no snapshot was written",
        )
    folder = workspace.data / "options_snapshots"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for bump in range(_ATTEMPTS):
            instant = levels.timestamp_ns + 1000 * bump
            path = folder / f"levels_{clock.file_stamp(instant)}.json"
            claim = folder / f".{path.name}.claim"
            try:
                os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                continue
            try:
                if path.exists():
                    continue
                stamped = dataclasses.replace(levels, timestamp_ns=instant, path=path)
                record = stamped.record()
                write_json(path, {key: record[key] for key in SNAPSHOT_KEYS}, wait=wait)
                return stamped
            finally:
                claim.unlink()
    except OSError as error:
        raise WorkspaceError(
            f"the levels cannot be written ({error})",
            where=str(folder),
            hint="check the permissions and the free space of the workspace",
            then="the levels were computed but not saved",
        ) from error
    raise WorkspaceError(
        f"{_ATTEMPTS} snapshots stand at and after {clock.iso(levels.timestamp_ns)}",
        where=str(folder),
        hint="pass the instant of each snapshot as now_ns",
        then="the levels were computed but not saved",
    )


@operation("spotgamma_recalculator", "recalculate_levels")
def recalculate_levels(
    data: Any, *, workspace: Workspace | str | os.PathLike[str] | None = None, now_ns: int | None = None
) -> Levels:
    """Dealer levels from an option chain, written to a snapshot file.

    Parameters
    ----------
    data
        A chain: any table that speaks Arrow (Polars, pandas, pyarrow, DuckDB), the path of a Parquet
        file or of Cboe's delayed quotes (CSV, JSON), what yfinance returns, a prepared
        :class:`~mia_fast.options.chain.Chain`. Or a table with ``call_iv_atm`` (a fraction: 0.25 is 25 %, at most 5)
        and optionally ``option_skew`` and no strikes: its last row is echoed, the levels that need a chain are None.
        Or None: there is no chain.
    workspace
        Where the file goes and the configuration comes from; default the current workspace.
    now_ns
        As of when (UTC nanoseconds): later quotes are ignored and the chain's age is checked. None:
        the whole table counts, and the snapshot is stamped with the instant at which the chain was known.

    Returns
    -------
    Levels
        A mapping; ``path`` is the file. Where another process holds the journal, the record is left for it, and the
        last of ``notes`` says so.

    Raises
    ------
    DataError, ConfigError, WorkspaceError
    JournalError
        The snapshot stands, but its record can neither be journalled nor left for the process that holds the journal.
    """
    place = workspace if isinstance(workspace, Workspace) else Workspace.current(workspace)
    engine = _engine(place.config("options.yaml"))
    stamp = clock.now_ns() if now_ns is None else now_ns  # where there is no chain to tell the time
    table = data if data is None or isinstance(data, Chain) else _table(data, place)
    if table is None:
        levels = no_chain(stamp, "CHAIN_MISSING: data=None")
    elif isinstance(table, pl.DataFrame) and "call_iv_atm" in table.columns and "strike" not in table.columns:
        given = _last(table, "call_iv_atm")
        usable = given is None or 0.0 < given <= _IV_MOST
        levels = no_chain(
            stamp,
            "CHAIN_MISSING: columns=call_iv_atm"
            if usable
            else f"IV_INVALID: call_iv_atm={given} most={_IV_MOST} (a fraction: 0.25 is 25 %)",
            iv_atm=given if usable else None,
            option_skew=_last(table, "option_skew"),
        )
    else:
        with _BUSY:
            levels = engine.update(table, now_ns)
        if now_ns is not None or levels.timestamp_ns is None:
            levels = dataclasses.replace(levels, timestamp_ns=stamp)
    saved = save(levels, place, wait=True)
    holder = journal.post(place, "levels", journal_row(saved, place))
    if holder is None:
        return saved
    left = f"{holder}: the row of these levels waits in data/journal/outbox, that process takes it"
    return dataclasses.replace(saved, notes=(*saved.notes, left))


def journal_row(levels: Levels, workspace: Workspace) -> dict[str, Any]:
    """The row of the journal's table ``levels`` for a saved snapshot.

    The full record goes into ``detail`` with its ``schema_version``; the snapshot file has exactly the contract's keys.
    """
    record = levels.record()
    assert levels.path is not None
    assert levels.timestamp_ns is not None
    named = ("status", "gamma_wall", "call_wall", "put_wall", "zero_gamma", "iv_atm", "dealer_position_bias")
    return {
        "timestamp": levels.timestamp_ns,
        **{name: record[name] for name in named},
        "path": levels.path.relative_to(workspace.root).as_posix(),
        "detail": {
            "schema_version": RECORD_SCHEMA,
            **{name: value for name, value in record.items() if name != "path"},
        },
    }


_BUSY = threading.Lock()  # an engine's buffers serve one caller at a time
_ENGINES: dict[Path, tuple[Stamp | None, LevelsEngine]] = {}


def _engine(path: Path) -> LevelsEngine:
    """One engine per configuration file, built again when the file has changed."""
    version = stamp(path)  # None: reading it raises the error that names it
    held = _ENGINES.get(path)
    if held is None or held[0] != version:
        held = _ENGINES[path] = (version, LevelsEngine(load(OptionsConfig, path)))
    return held[1]


def _table(data: Any, place: Workspace) -> pl.DataFrame:
    if isinstance(data, pl.DataFrame):
        return data
    if _is_foreign(data):
        return read_chain(data, workspace=place)
    if isinstance(data, str | os.PathLike):
        try:
            return pl.read_parquet(Path(data))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(
                f"cannot be read as Parquet ({error})",
                where=str(data),
                hint="pass the path of a chain in Parquet, or a table",
                then="no levels were computed",
            ) from error
    try:
        return pl.DataFrame(data)
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{type(data).__name__} is not a table ({error})",
            where="recalculate_levels(data)",
            hint="pass a Polars, pandas, pyarrow or DuckDB table, or the path of a Parquet file",
            then="no levels were computed",
        ) from error


def _is_foreign(data: Any) -> bool:
    """Whether ``data`` is a chain in another's format: a CSV or JSON, or what yfinance returns."""
    if isinstance(data, str | Path):
        return Path(data).suffix.lower() in {".csv", ".json"}
    parts = data if isinstance(data, list) else [data]
    return bool(parts) and all(hasattr(part, "calls") and hasattr(part, "puts") for part in parts)


def _last(table: pl.DataFrame, name: str) -> float | None:
    """The last value of a column, None where it is absent, null, not finite or not a number."""
    if name not in table.columns or table.height == 0 or not table[name].dtype.is_numeric():
        return None
    value = table[name].cast(pl.Float64)[-1]
    return value if value is not None and abs(value) < float("inf") else None
