"""Are the features sound? Empty values, outliers and drift, feature by feature.

- ``nan_ratio``: share of rows that are null or NaN.
- ``outlier_count``: finite values with a robust z-score ``|x - median| / (1.4826 * MAD)`` above the limit; where the
  median absolute deviation (MAD) is 0, the mean one takes its place (times 1.2533), and where that is 0 too, none
  [Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers]. Infinite values count.
- Drift: the population stability index of a period against the reference, ``sum((p - q) * ln(p / q))`` over bins of
  equal count in the reference and one of empty values [Siddiqi 2006, Credit Risk Scorecards]. Customary marks: below
  0.1 stable, above 0.25 shifted. Prices shift always; a ratio that does so deserves a look.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mia_fast.clock import iso
from mia_fast.errors import DataError
from mia_fast.files import fill
from mia_fast.selection.config import AuditSettings, selection_config
from mia_fast.selection.data import Features, Floats, Integers
from mia_fast.selection.filter import standardised
from mia_fast.selection.manifest import Selection, read_selection, selection_path
from mia_fast.telemetry import operation
from mia_fast.workspace import AnyWorkspace, Workspace

REPORT: Final = "features_audit_final.csv"
_LEAST: Final = 1e-4  # share of an empty bin, so that the logarithm stays finite
_SAMPLE: Final = 20_000
_FEWEST: Final = 100  # rows that two features must share for a correlation, and
_LEAST_SHARE: Final = 0.05  # of all: a week in three years, seen alone, makes anything look alike


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found.

    Attributes
    ----------
    frame
        ``feature``, ``nan_ratio``, ``outlier_count``, ``shap_value`` (null where the feature is no candidate of the
        selection), ``drift`` (over all rows behind the reference), ``drift_worst`` (of a month), ``drift_month``.
    months
        ``YYYY-MM`` behind the reference.
    drift
        (features, months); NaN where a feature has no value in the reference.
    correlation
        (features, features) on evenly spaced rows, each pair on the rows where both have a value; NaN where these are
        too few (:func:`correlations`) or one of the two is constant.
    families
        Of the features, as the catalogue has them.
    reference
        First and last instant of the reference, ISO-8601 UTC.
    selection
        The choice whose SHAP values are shown, if there is one.
    """

    frame: pl.DataFrame
    months: tuple[str, ...]
    drift: Floats
    correlation: Floats
    families: tuple[str, ...]
    reference: tuple[str, str]
    rows: int
    selection: Selection | None


def audit_features(
    data: Any, *, workspace: AnyWorkspace | None = None, symbol: str | None = None, reference_until: int | None = None
) -> pl.DataFrame:
    """Audit features and write ``data/logs/market/features_audit_final.csv``.

    Parameters
    ----------
    data
        Features of one symbol in the order of time: a frame, a Parquet file or the folder of a history, which is read a
        few columns at a time.
    workspace
        Whose rules and selection apply, and where the file goes.
    symbol
        Which one, if the history holds several.
    reference_until
        ns UTC: rows before it are the reference of the drift. Default: the first quarter
        (``audit.reference_share`` of ``config/selection.yaml``).

    Returns
    -------
    polars.DataFrame
        One row per feature in the catalogue's order: ``feature``, ``nan_ratio``, ``outlier_count``, ``shap_value`` as
        in the file, then ``drift``, ``drift_worst``, ``drift_month``.

    Raises
    ------
    DataError
        The data cannot be used, or the reference leaves nothing on one side.
    ConfigError
        The rules or the selection are invalid.
    """
    return audited(data, workspace=workspace, symbol=symbol, reference_until=reference_until).frame


@operation("feature_audit", "audit_features")
def audited(
    data: Any, *, workspace: AnyWorkspace | None = None, symbol: str | None = None, reference_until: int | None = None
) -> Audit:
    """As :func:`audit_features`, with drift by month and correlations."""
    workspace = Workspace.current(workspace)
    settings = selection_config(workspace).audit
    has_selection = selection_path(workspace).exists()
    selection = read_selection(workspace) if has_selection else None
    features = Features(data, workspace, symbol=symbol)
    found = examine(features, settings, selection, reference_until)
    path = workspace.data / "logs" / "market" / REPORT
    fill(path, found.frame.select("feature", "nan_ratio", "outlier_count", "shap_value").write_csv)
    return found


def examine(
    features: Features, settings: AuditSettings, selection: Selection | None, reference_until: int | None = None
) -> Audit:
    """Audit by the rules; nothing is written."""
    n = len(features)
    if reference_until is None:
        split = int(n * settings.reference_share)
    else:
        split = int(np.searchsorted(features.timestamps, reference_until))
    if not 0 < split < n:
        raise DataError(
            f"the reference holds {split:,} of {n:,} rows",
            where=features.label,
            hint="choose an instant inside the data",
            then="nothing was written",
        )
    stamps = pl.Series(features.timestamps).cast(pl.Datetime("ns", "UTC"))
    labels = stamps.dt.strftime("%Y-%m")
    months = tuple(labels[split:].unique(maintain_order=True).to_list())
    place = {month: k for k, month in enumerate(months)}
    month_of = labels[split:].replace_strict(place, return_dtype=pl.Int64).to_numpy()
    step = max(1, -(-n // _SAMPLE))
    shap = _shap(selection)
    rows, drift, sample = [], [], []
    for name, values in features.arrays(features.names):
        nan = np.isnan(values)
        whole, by_month = _drift(values, nan, split, month_of, len(months), settings.bins)
        drift.append(by_month)
        finite = np.isfinite(by_month).any()
        worst = int(np.nanargmax(by_month)) if finite else None
        rows.append(
            (
                name,
                float(nan.mean()),
                _outliers(values[~nan], settings.outlier_z),
                shap.get(name),
                whole if np.isfinite(whole) else None,
                None if worst is None else float(by_month[worst]),
                None if worst is None else months[worst],
            )
        )
        sample.append(values[::step])
    family = {feature.name: feature.family for feature in features.catalogue.features}
    schema = {
        "feature": pl.String,
        "nan_ratio": pl.Float64,
        "outlier_count": pl.Int64,
        "shap_value": pl.Float64,
        "drift": pl.Float64,
        "drift_worst": pl.Float64,
        "drift_month": pl.String,
    }
    return Audit(
        pl.DataFrame(rows, schema=schema, orient="row"),
        months,
        np.array(drift),
        correlations(np.column_stack(sample)),
        tuple(family[name] for name in features.names),
        (iso(int(features.timestamps[0])), iso(int(features.timestamps[split - 1]))),
        n,
        selection,
    )


def _shap(selection: Selection | None) -> dict[str, float]:
    if selection is None:
        return {}
    return dict(zip(selection.names, selection.shap_values, strict=True)) | selection.not_chosen


def _outliers(values: Floats, limit: float) -> int:
    """Values whose robust z-score is above the limit, and infinite ones."""
    finite = values[np.isfinite(values)]
    infinite = len(values) - len(finite)
    if not len(finite):
        return infinite
    distance = np.abs(finite - np.median(finite))
    scale = 1.4826 * float(np.median(distance)) or 1.2533 * float(np.mean(distance))
    return infinite + (int(np.sum(distance > limit * scale)) if scale > 0 else 0)


def _drift(
    values: Floats, nan: NDArray[np.bool_], split: int, month_of: Integers, months: int, bins: int
) -> tuple[float, Floats]:
    """Stability index of all rows behind the reference, and of each month, against the reference."""
    reference = values[:split][~nan[:split]]
    if not len(reference):
        return np.nan, np.full(months, np.nan)
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, values, side="left")
    place[nan] = len(edges) + 1
    width = len(edges) + 2
    before = np.bincount(place[:split], minlength=width)
    after = np.bincount(month_of * width + place[split:], minlength=months * width).reshape(months, width)
    return float(stability_index(before, after.sum(axis=0))), stability_index(before, after)


def stability_index(reference: Integers, counts: Integers) -> Floats:
    """Population stability index of counts (..., bins) against those of the reference (bins,)."""
    q = np.maximum(reference / reference.sum(), _LEAST)
    p = np.maximum(counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1), _LEAST)
    index: Floats = np.sum((p - q) * np.log(p / q), axis=-1)
    return index


def correlations(table: Floats) -> Floats:
    """Pearson correlations (k, k) of the columns of (n, k), each pair on the rows where both are finite.

    NaN where two columns share fewer than 100 rows or a twentieth of all, or one of them does not vary.
    """
    there = np.isfinite(table).astype(np.float64)
    values = standardised(table)  # near 0 and 1, so that the sums below lose nothing
    counts = there.T @ there
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (values.T @ there) / counts  # [i, j]: of column i, on the rows it shares with j
        variance = (values**2).T @ there / counts - mean**2
        shared = (values.T @ values) / counts - mean * mean.T
        result: Floats = shared / np.sqrt(variance * variance.T)
    result[(counts < max(_FEWEST, _LEAST_SHARE * len(table))) | (variance < 1e-12) | (variance.T < 1e-12)] = np.nan
    return np.clip(result, -1.0, 1.0)
