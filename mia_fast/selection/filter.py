"""What is left out of a feature frame, and what is clipped, by the rules of ``config/selection.yaml``.

1. A feature with more than ``max_null_ratio`` of its rows empty (null, NaN or infinite) is left out.
2. So is one whose commonest value fills ``near_constant`` of its rows or more.
3. So is one that correlates by ``duplicate`` or more, in size, with a feature kept before it. Chosen features come
   first, in the manifest's order; then the catalogue's.
4. Values beyond ``median +- outlier_z * 1.4826 * median absolute deviation`` are clipped to that bound, but of the
   rows that the bounds are learnt on at most ``max_clipped_share`` (one value at least) at each end: what is not rare
   is a long tail, as of volume, and no outlier. Where the deviation is 0 (flags, counts that rarely move) nothing is.
5. A row with more than ``max_row_null_ratio`` of the kept features empty (warm-up) is left out. Other empty values
   stay null: none is filled in.

A feature of the manifest is never left out: it stays, and :attr:`Filtered.kept` says what speaks against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from mia_fast import config
from mia_fast.errors import DataError
from mia_fast.files import fill
from mia_fast.selection.config import FilterSettings, selection_config
from mia_fast.selection.data import Features, Floats
from mia_fast.selection.manifest import read_selection, selection_path
from mia_fast.telemetry import operation
from mia_fast.workspace import AnyWorkspace, Workspace

LATEST: Final = "features_latest_filtered.csv"
_TO_MAD: Final = 1.4826  # of a normal distribution: standard deviation by median absolute deviation
_SAMPLE: Final = 20_000


@dataclass(frozen=True, slots=True)
class FilterRules:
    """What :meth:`fit` found: it can be applied to other rows of the same features.

    Attributes
    ----------
    dropped
        Feature left out -> why.
    kept
        Feature of the manifest that would have been left out -> why.
    bounds
        Feature -> the lowest and highest value that is not clipped.
    """

    dropped: Mapping[str, str]
    kept: Mapping[str, str]
    bounds: Mapping[str, tuple[float, float]]
    max_row_null_ratio: float

    @classmethod
    def fit(cls, features: Features, settings: FilterSettings, manifest: tuple[str, ...] = ()) -> FilterRules:
        """Learn the rules from these rows; ``manifest`` names the features that must stay."""
        faults: dict[str, str] = {}
        bounds: dict[str, tuple[float, float]] = {}
        step = max(1, -(-len(features) // _SAMPLE))
        sample: dict[str, Floats] = {}
        for name, values in features.arrays(features.names):
            finite = values[np.isfinite(values)]
            empty = 1.0 - len(finite) / len(values)
            if empty > settings.max_null_ratio:
                faults[name] = f"{empty:.1%} of its rows are empty"
            if not len(finite):
                continue
            ordered = np.sort(finite)
            common = _commonest(ordered)
            if name not in faults and common >= settings.near_constant:
                faults[name] = f"one value fills {common:.2%} of its rows"
            middle = float(np.median(finite))
            deviation = _TO_MAD * float(np.median(np.abs(finite - middle)))
            if deviation > 0:
                rare = min(max(1, int(settings.max_clipped_share * len(ordered))), len(ordered) - 1)
                low, high = float(ordered[rare]), float(ordered[-1 - rare])
                reach = settings.outlier_z * deviation
                bounds[name] = (min(middle - reach, low), max(middle + reach, high))
            if name not in faults:
                sample[name] = values[::step]
        first = [name for name in manifest if name in sample]
        order = [*first, *(name for name in features.names if name in sample and name not in first)]
        faults |= _duplicates({name: sample[name] for name in order}, features, settings.duplicate)
        return cls(
            {name: why for name, why in faults.items() if name not in manifest},
            {name: why for name, why in faults.items() if name in manifest},
            bounds,
            settings.max_row_null_ratio,
        )

    def apply(self, frame: pl.DataFrame) -> Filtered:
        """Leave out, clip, and count.

        Parameters
        ----------
        frame
            ``timestamp`` and features; not altered.
        """
        names = [name for name in frame.columns if name != "timestamp" and name not in self.dropped]
        columns, clipped = [frame["timestamp"]], {}
        empty = np.zeros(frame.height, dtype=np.int64)
        for name in names:
            values = frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
            values = np.where(np.isfinite(values), values, np.nan)
            if name in self.bounds:
                low, high = self.bounds[name]
                count = int(np.sum((values < low) | (values > high)))
                if count:
                    clipped[name] = count
                    values = np.clip(values, low, high)
            empty += np.isnan(values)
            columns.append(pl.Series(name, values).fill_nan(None))
        stays = empty <= self.max_row_null_ratio * max(len(names), 1)
        kept = pl.DataFrame(columns).filter(pl.Series(stays))
        return Filtered(kept, self, clipped, int(frame.height - kept.height))


@dataclass(frozen=True, slots=True)
class Filtered:
    """A filtered frame, and what was done to it."""

    frame: pl.DataFrame
    rules: FilterRules
    clipped: Mapping[str, int]
    """Feature -> values that were clipped."""
    rows_dropped: int

    @property
    def dropped(self) -> Mapping[str, str]:
        """Feature left out -> why."""
        return self.rules.dropped

    @property
    def kept(self) -> Mapping[str, str]:
        """Feature of the manifest that stays although a rule speaks against it -> which."""
        return self.rules.kept


def filter_features(
    data: Any, *, workspace: AnyWorkspace | None = None, symbol: str | None = None, reference: Any = None
) -> pl.DataFrame:
    """Filter a feature frame and write ``data/features/features_latest_filtered.csv``: its most recent rows, 1,440
    unless ``latest_rows`` of ``config/market_config.yaml`` says otherwise.

    Parameters
    ----------
    data
        Features of one symbol in the order of time: a frame, a Parquet file or the folder of a history. It is held in
        memory.
    workspace
        Whose rules and manifest apply, and where the file goes.
    symbol
        Which one, if the history holds several.
    reference
        Other rows to learn the rules from (a training period); by default ``data`` itself, so that bounds may rest
        on later rows than the one that is clipped.

    Returns
    -------
    polars.DataFrame
        ``timestamp`` and the features that are kept, in the catalogue's order. :func:`mia_fast.selection.filtered`
        gives the same with what was left out, kept and clipped, and why.

    Raises
    ------
    DataError
        The data cannot be used, or lacks features of the manifest.
    ConfigError
        The rules or the manifest are invalid.
    """
    return filtered(data, workspace=workspace, symbol=symbol, reference=reference).frame


@operation("feature_filter", "filter_features")
def filtered(
    data: Any, *, workspace: AnyWorkspace | None = None, symbol: str | None = None, reference: Any = None
) -> Filtered:
    """As :func:`filter_features`, with the account of what was done."""
    workspace = Workspace.current(workspace)
    settings = selection_config(workspace).filter
    features = Features(data, workspace, symbol=symbol)
    manifest = _manifest(workspace)
    absent = [name for name in manifest if name not in features.names]
    if absent:
        raise DataError(
            f"{len(absent)} of the {len(manifest)} chosen features are missing: {', '.join(absent)}",
            where=features.label,
            hint="compute them with generate_features",
            then="nothing was written",
        )
    learnt = features if reference is None else Features(reference, workspace, symbol=symbol)
    result = FilterRules.fit(learnt, settings, manifest).apply(features.frame())
    rows = config.market(workspace).latest_rows
    latest = result.frame.tail(rows).with_columns(pl.col("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"))
    fill(_path(workspace), latest.write_csv)
    return result


def _path(workspace: Workspace) -> Path:
    return workspace.data / "features" / LATEST


def _manifest(workspace: Workspace) -> tuple[str, ...]:
    """The chosen features; none where no choice was made yet. A damaged manifest is an error."""
    if not selection_path(workspace).exists():
        return ()
    return read_selection(workspace).names


def _commonest(ordered: Floats) -> float:
    """The share of the commonest of ascending values."""
    edges = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    return float(np.diff(edges).max() / len(ordered))


def _duplicates(sample: Mapping[str, Floats], features: Features, limit: float) -> dict[str, str]:
    """Feature -> which earlier one it repeats: found on evenly spaced rows, confirmed on all."""
    names = list(sample)
    if len(names) < 2:
        return {}
    table = np.column_stack([sample[name] for name in names])
    scaled = standardised(table)
    correlation = np.abs(scaled.T @ scaled) / len(scaled)
    found: dict[str, str] = {}
    for later in range(1, len(names)):
        for earlier in range(later):
            if correlation[later, earlier] < limit - 0.01 or names[earlier] in found:
                continue
            exact = _correlation(features.column(names[later]), features.column(names[earlier]))
            if abs(exact) >= limit:
                found[names[later]] = f"correlates by {exact:.6f} with {names[earlier]}"
                break
    return found


def standardised(table: Floats) -> Floats:
    """Columns with mean 0 and deviation 1 over their finite values; 0 where there is none, and in constants."""
    values = np.where(np.isfinite(table), table, np.nan)
    counts = np.maximum(np.sum(~np.isnan(values), axis=0), 1)
    centred = values - np.nansum(values, axis=0) / counts
    deviation = np.sqrt(np.nansum(centred**2, axis=0) / counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = centred / deviation
    result: Floats = np.nan_to_num(scaled, nan=0.0, posinf=0.0, neginf=0.0)
    return result


def _correlation(a: Floats, b: Floats) -> float:
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3:
        return 0.0
    x, y = a[both] - a[both].mean(), b[both] - b[both].mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else 0.0
