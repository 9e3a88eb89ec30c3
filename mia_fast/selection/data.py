"""Features from a frame, a file or a history's folder, a column at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mia_fast.errors import DataError
from mia_fast.features import catalogue as catalogues
from mia_fast.loading import definitions
from mia_fast.workspace import Workspace

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_AT_ONCE: Final = 16
_THEN: Final = "nothing was written"


class Features:
    """Rows of features in the order of time; nothing but the columns asked for is held.

    Parameters
    ----------
    data
        A frame that speaks the Arrow PyCapsule interface, a Parquet file, or the folder of a history.
    workspace
        Whose catalogue says which columns are features.
    symbol
        Which one, if the history holds several.
    since, until
        ns UTC: rows with ``since <= timestamp < until``.

    Raises
    ------
    DataError
        There is no ``timestamp`` or no feature, rows are out of order, or the source cannot be read; or a history was
        computed by other rows of the catalogue. (A frame or a single file does not say by which, and is believed.)
    """

    def __init__(
        self,
        data: Any,
        workspace: Workspace,
        *,
        symbol: str | None = None,
        since: int | None = None,
        until: int | None = None,
    ) -> None:
        self.label = str(data) if isinstance(data, str | Path) else type(data).__name__
        self.catalogue = catalogues.read(workspace)
        self._lazy = self._open(data, symbol)
        try:
            schema = self._lazy.collect_schema()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self._unreadable(error) from error
        stamp = schema.get("timestamp")
        if not isinstance(stamp, pl.Datetime) or stamp.time_zone != "UTC":
            raise DataError(
                "there is no column 'timestamp' in it" if stamp is None else f"'timestamp' is {stamp}, not an instant",
                where=self.label,
                hint="give what generate_features returns, or what mia-fast features wrote",
                then=_THEN,
            )
        stamps = pl.col("timestamp").dt.epoch("ns")
        if since is not None:
            self._lazy = self._lazy.filter(stamps >= since)
        if until is not None:
            self._lazy = self._lazy.filter(stamps < until)
        self.columns: tuple[str, ...] = tuple(schema.names())
        self.names = tuple(name for name in self.catalogue.names if name in schema)
        for name in self.names:
            if not (schema[name].is_numeric() or schema[name] == pl.Null):
                raise DataError(
                    f"the feature {name!r} is {schema[name]}, not a number",
                    where=self.label,
                    hint="cast the column to a float",
                    then=_THEN,
                )
        if not self.names:
            raise DataError(
                f"none of the catalogue's {len(self.catalogue.names)} features is in it; it has: "
                + ", ".join(self.columns[:8]),
                where=self.label,
                hint="give what generate_features returns, or what mia-fast features wrote",
                then=_THEN,
            )
        self.timestamps: Integers = self._collect(["timestamp"])["timestamp"].dt.epoch("ns").to_numpy()
        if not len(self.timestamps):
            raise DataError("holds no rows", where=self.label, hint="check the period asked for", then=_THEN)
        if not bool(np.all(np.diff(self.timestamps) > 0)):
            row = int(np.argmin(np.diff(self.timestamps) > 0)) + 1
            raise DataError(
                "the timestamps do not ascend",
                where=f"{self.label}, row {row}",
                hint="sort by timestamp and keep one row per bar of one symbol",
                then=_THEN,
            )

    def __len__(self) -> int:
        return len(self.timestamps)

    def column(self, name: str) -> Floats:
        """One column (n,), NaN for null."""
        return next(self.arrays([name]))[1]

    def arrays(self, names: Iterable[str]) -> Iterator[tuple[str, Floats]]:
        """(name, (n,) float64) of each, read a few at a time."""
        wanted = list(names)
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            frame = self._collect(some)
            for name in some:
                yield name, frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy()

    def matrix(self, names: Sequence[str], rows: Integers) -> NDArray[np.float32]:
        """(rows, names) float32, row-major, as trees take it."""
        found = np.empty((len(rows), len(names)), dtype=np.float32)
        for k, (_, values) in enumerate(self.arrays(names)):
            found[:, k] = values[rows]
        return found

    def frame(self) -> pl.DataFrame:
        """All of it in memory: ``timestamp`` and the features in the catalogue's order."""
        return self._collect(["timestamp", *self.names])

    def _open(self, data: Any, symbol: str | None) -> pl.LazyFrame:
        if isinstance(data, pl.LazyFrame):
            return data
        if isinstance(data, pl.DataFrame):
            return data.lazy()
        if isinstance(data, str | Path):
            path = Path(data)
            if path.is_dir():
                return self._history(path, symbol)
            if not path.is_file():
                raise DataError("there is no such file", where=str(path), hint="check the path", then=_THEN)
            return pl.scan_parquet(path, glob=False, hive_partitioning=False)
        if not hasattr(data, "__arrow_c_stream__"):
            raise DataError(
                f"a {type(data).__name__} is not a table",
                where="data",
                hint="pass a Polars or pandas frame, a pyarrow table, a Parquet file or a history's folder",
                then=_THEN,
            )
        return pl.DataFrame(data).lazy()

    def _history(self, path: Path, symbol: str | None) -> pl.LazyFrame:
        from mia_fast.histories import read_manifest

        manifest = read_manifest(path)
        present = definitions(self.catalogue, self.catalogue.names)
        changed = [n for n, before in manifest.identity["definitions"].items() if present.get(n, before) != before]
        if changed:
            raise DataError(
                f"{len(changed)} of its features were computed otherwise than the catalogue does now: "
                + ", ".join(changed[:8]),
                where=str(path),
                hint="compute the history again (mia-fast features --fresh), or restore these rows of the catalogue",
                then=_THEN,
            )
        parts = manifest.parts
        symbols = sorted({part.symbol for part in parts})
        if symbol is None and len(symbols) > 1:
            raise DataError(
                f"holds {len(symbols)} symbols: {', '.join(symbols[:8])}",
                where=str(path),
                hint="choose one with symbol= (--symbol)",
                then=_THEN,
            )
        if symbol is not None and symbol not in symbols:
            raise DataError(
                f"holds no symbol {symbol!r}", where=str(path), hint=f"it has: {', '.join(symbols[:8])}", then=_THEN
            )
        chosen = [path / part.path for part in parts if part.symbol == (symbol or symbols[0])]
        return pl.scan_parquet(chosen, glob=False, hive_partitioning=False)

    def _collect(self, names: list[str]) -> pl.DataFrame:
        try:
            return self._lazy.select(names).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> DataError:
        reason = str(error).strip().splitlines()
        return DataError(
            f"cannot be read ({reason[0] if reason else type(error).__name__})",
            where=self.label,
            hint="give a Parquet file or a history's folder that mia-fast features wrote",
            then=_THEN,
        )
