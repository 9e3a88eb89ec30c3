"""Which features matter: TreeSHAP values out of sample, over purged walk-forward folds."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mia_fast.clock import iso
from mia_fast.errors import ConfigError, DataError
from mia_fast.features.catalogue import Catalogue
from mia_fast.features.cross import daily_closes
from mia_fast.features.frame import read_cross
from mia_fast.files import fill
from mia_fast.journal.schema import feature_list_digest
from mia_fast.loading import definitions
from mia_fast.selection.config import SelectRules, selection_config
from mia_fast.selection.data import Features, Floats, Integers
from mia_fast.selection.manifest import IMPORTANCE, Fold, Selection, Stability, write_selection
from mia_fast.selection.targets import TARGETS, Bars, Target, make_target
from mia_fast.tables import read_table
from mia_fast.tables.mapping import day_closes
from mia_fast.telemetry import operation
from mia_fast.workspace import AnyWorkspace, Workspace

Progress = Callable[[int, int], None]

_MINUTE: Final = 60_000_000_000
_LEAST_ROWS: Final = 500
_PRICES: Final = ("open", "high", "low", "close", "atr_14")
_THEN: Final = "nothing was written"


def calculate_shap_weights(
    data: Any,
    target: Any = None,
    *,
    bars: Any = None,
    cross: Any = None,
    workspace: AnyWorkspace | None = None,
    symbol: str | None = None,
    since: int | None = None,
    until: int | None = None,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Rank the features by their SHAP values and write the choice.

    Writes ``data/features/feature_importance.csv`` and ``data/features/selection.json`` (the manifest).

    Parameters
    ----------
    data
        Features of one symbol in the order of time: what ``generate_features`` returns, a Parquet file, or the folder
        of a history.
    target
        The name of a target (:data:`mia_fast.selection.TARGETS`), of a column of ``data``, or numbers, one per row,
        NaN where unknown. Default: that of ``config/selection.yaml``. Columns and numbers are purged by its
        ``purge_minutes``.
    bars
        Bars of the same times, for a named target whose prices are not among the features.
    cross
        Daily closes with the VIX, for the target ``predicted_vix``.
    workspace
        Whose catalogue and rules apply, and where the files go.
    symbol, since, until
        Which rows: the symbol of a history that has several; ns UTC, ``since <= timestamp < until``. What lies outside
        is not seen: leave out what the networks will be judged on.
    progress
        Called with (folds done, folds).

    Returns
    -------
    polars.DataFrame
        ``feature``, ``shap_value`` in descending order: the chosen ones, 150 where there are so many candidates.

    Raises
    ------
    DataError
        The data, the target or the period cannot be used.
    ConfigError
        The configuration is invalid, or LightGBM (the extra ``select``) is not installed.
    """
    selection, _ = select_features(
        data,
        target,
        bars=bars,
        cross=cross,
        workspace=workspace,
        symbol=symbol,
        since=since,
        until=until,
        progress=progress,
    )
    return pl.DataFrame({"feature": selection.names, "shap_value": selection.shap_values})


@dataclass(frozen=True, slots=True)
class Importance:
    """The SHAP values behind a selection: ``values`` is (folds, candidates), in the order of ``names``."""

    names: tuple[str, ...]
    values: Floats


@operation("feature_selection", "calculate_shap_weights")
def select_features(
    data: Any,
    target: Any = None,
    *,
    bars: Any = None,
    cross: Any = None,
    workspace: AnyWorkspace | None = None,
    symbol: str | None = None,
    since: int | None = None,
    until: int | None = None,
    progress: Progress | None = None,
) -> tuple[Selection, Importance]:
    """As :func:`calculate_shap_weights`; returns the manifest, and the values of every fold."""
    _lightgbm()
    workspace = Workspace.current(workspace)
    rules = selection_config(workspace).select
    features = Features(data, workspace, symbol=symbol, since=since, until=until)
    aim = _target(features, rules.target if target is None else target, bars, cross, workspace, rules)
    selection, importance = choose(features, aim, rules, progress)
    write_selection(selection, workspace)
    frame = pl.DataFrame({"feature": selection.names, "shap_value": selection.shap_values})
    fill(workspace.data / "features" / IMPORTANCE, frame.write_csv)
    return selection, importance


def choose(
    features: Features, target: Target, rules: SelectRules, progress: Progress | None = None
) -> tuple[Selection, Importance]:
    """Choose by the rules; nothing is written."""
    lightgbm = _lightgbm()
    known = np.flatnonzero(np.isfinite(target.values))
    if len(known) < _LEAST_ROWS:
        raise DataError(
            f"{len(known)} rows have a target, {_LEAST_ROWS} are the least",
            where="target",
            hint="give a longer period",
            then=_THEN,
        )
    rows = known[evenly(len(known), rules.max_rows)]
    coverage, refused = _candidates(features, rules)
    names = tuple(coverage)
    if not names:
        raise DataError(
            f"no feature has a value in {rules.min_coverage:.0%} of the rows",
            where=features.label,
            hint="give the tables that the features need (mia-fast features --dry-run names them), or a longer period",
            then=_THEN,
        )
    matrix = features.matrix(names, rows)
    values, times, ends = target.values[rows], features.timestamps[rows], target.ends_at[rows]
    blocks = walk_forward(times, ends, rules.folds)

    def one(block: tuple[Integers, Integers]) -> tuple[Floats, Fold]:
        return _fold(lightgbm, matrix, values, times, ends, *block, target, rules)

    per_fold, folds = [], []
    # A fold to a thread: LightGBM's own threads wait for one another at every leaf, and crawl on a busy machine.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for shap, fold in pool.map(one, blocks):
            per_fold.append(shap)
            folds.append(fold)
            if progress is not None:
                progress(len(folds), len(blocks))
    importance = Importance(names, np.array(per_fold))
    return _selection(features, target, rules, importance, matrix, coverage, refused, folds, known, rows, lightgbm), (
        importance
    )


def walk_forward(times: Integers, ends: Integers, folds: int) -> list[tuple[Integers, Integers]]:
    """Test blocks of equal size in time order, each with the rows before it whose targets end before it begins.

    Parameters
    ----------
    times, ends
        (n,) ns UTC ascending: the rows, and up to when their targets look.
    folds
        Blocks; the first ``1 / (folds + 1)`` of the rows is never tested.

    Returns
    -------
    list of (train, test)
        Row numbers.
    """
    edges = [len(times) * k // (folds + 1) for k in range(1, folds + 2)]
    result = []
    for first, last in itertools.pairwise(edges):
        train = np.flatnonzero(ends[:first] < times[first])
        if not len(train):
            raise DataError(
                "the purge leaves no row to train on before the first test block",
                where="target",
                hint="give a longer period, or fewer folds in config/selection.yaml",
                then=_THEN,
            )
        result.append((train, np.arange(first, last)))
    return result


def _fold(
    lightgbm: Any,
    matrix: NDArray[np.float32],
    values: Floats,
    times: Integers,
    ends: Integers,
    train: Integers,
    test: Integers,
    target: Target,
    rules: SelectRules,
) -> tuple[Floats, Fold]:
    """Mean absolute SHAP values (candidates,) on the test block, from a model of the training rows."""
    classes = int(values.max()) + 1 if target.kind == "classes" else 1
    parameters = parameters_for(rules, len(train), target.kind, classes)
    data = lightgbm.Dataset(matrix[train], label=values[train], params={"verbose": -1, "max_bin": 63, "num_threads": 1})
    model = lightgbm.train(parameters, data, num_boost_round=rules.trees)
    explained = test[evenly(len(test), max(1, rules.shap_rows // rules.folds))]
    contributions = np.asarray(model.predict(matrix[explained], pred_contrib=True, num_threads=1))
    width = matrix.shape[1] + 1  # the last of each class is the expectation
    shap = np.abs(contributions.reshape(len(explained), -1, width)[:, :, :-1]).mean(axis=0).sum(axis=0)
    predicted = np.asarray(model.predict(matrix[explained], num_threads=1))
    fold = Fold(
        train_rows=len(train),
        train_end=iso(int(ends[train].max())),
        test_first=iso(int(times[test[0]])),
        test_last=iso(int(times[test[-1]])),
        test_rows=len(test),
        shap_rows=len(explained),
        skill=_skill(values[train], values[explained], predicted, target),
    )
    return shap, fold


def parameters_for(rules: SelectRules, rows: int, kind: str, classes: int) -> dict[str, Any]:
    """What LightGBM is told, for a model of so many rows."""
    return {
        "objective": {"number": "regression", "yes_no": "binary", "classes": "multiclass"}[kind],
        "num_leaves": rules.leaves,
        "learning_rate": rules.learning_rate,
        "min_data_in_leaf": max(5, min(1000, rows // 50)),
        "feature_fraction": 0.5,
        "max_bin": 63,
        "seed": rules.seed,
        "deterministic": True,
        "force_col_wise": True,
        "num_threads": 1,
        "verbose": -1,
        **({"num_class": classes} if classes > 1 else {}),
    }


def _skill(trained: Floats, true: Floats, predicted: Floats, target: Target) -> float:
    if target.kind == "number":
        error = float(np.mean((true - predicted) ** 2))
        base = float(np.mean((true - trained.mean()) ** 2))
    else:
        table = np.column_stack([1 - predicted, predicted]) if predicted.ndim == 1 else predicted
        shares = np.array([max(float(np.mean(trained == k)), 1e-6) for k in range(table.shape[1])])
        place = true.astype(np.int64)
        error = float(-np.mean(np.log(np.maximum(table[np.arange(len(true)), place], 1e-12))))
        base = float(-np.mean(np.log(shares[place])))
    return 1.0 - error / base if base > 0 else 0.0


def _candidates(features: Features, rules: SelectRules) -> tuple[dict[str, float], dict[str, str]]:
    """Candidate -> coverage, and why the others are none."""
    coverage: dict[str, float] = {}
    refused = dict.fromkeys((n for n in features.catalogue.names if n not in features.names), "not in the data")
    for name, values in features.arrays(features.names):
        finite = np.isfinite(values)
        share = float(finite.mean())
        if share < rules.min_coverage:
            refused[name] = f"coverage {share:.3f}"
        elif (low := values[finite].min()) == values[finite].max():
            refused[name] = f"constant {low:g}"
        else:
            coverage[name] = share
    return coverage, refused


def _selection(
    features: Features,
    target: Target,
    rules: SelectRules,
    importance: Importance,
    matrix: NDArray[np.float32],
    coverage: dict[str, float],
    refused: dict[str, str],
    folds: Sequence[Fold],
    known: Integers,
    rows: Integers,
    lightgbm: Any,
) -> Selection:
    typical = np.median(importance.values, axis=0)  # one wild fold, of a model that extrapolates, decides nothing
    order = np.argsort(-typical, kind="stable")  # of equals, the catalogue's order
    chosen = order[: rules.count]
    names = tuple(importance.names[k] for k in chosen)
    catalogue: Catalogue = features.catalogue
    return Selection(
        names=names,
        digest=feature_list_digest(names),
        definitions=tuple(definitions(catalogue, names).values()),
        catalogue=catalogue.digest,
        all_taken=len(order) <= rules.count,
        asked=rules.count,
        candidates=len(order),
        features=len(catalogue.names),
        target=target.name,
        target_unit=target.unit,
        period=(iso(int(features.timestamps[known[0]])), iso(int(features.timestamps[known[-1]]))),
        rows=len(known),
        rows_used=len(rows),
        min_coverage=rules.min_coverage,
        shap_values=tuple(float(typical[k]) for k in chosen),
        shap_folds=tuple(tuple(float(fold[k]) for k in chosen) for fold in importance.values),
        coverage=tuple(coverage[name] for name in names),
        medians=tuple(float(np.nanmedian(matrix[:, k])) for k in chosen),
        not_chosen={importance.names[k]: float(typical[k]) for k in order[rules.count :]},
        not_candidates=refused,
        stability=stability(importance.values, chosen),
        folds=tuple(folds),
        lightgbm=lightgbm.__version__,
        settings=rules.model_dump(include={"trees", "leaves", "learning_rate", "seed", "folds"}),
    )


def stability(values: Floats, chosen: Integers) -> Stability:
    """Agreement of the folds; ``values`` is (folds, candidates)."""
    orders = np.argsort(-values, axis=1, kind="stable")
    ranks = np.argsort(orders, axis=1, kind="stable").astype(np.float64)
    pairs = list(itertools.combinations(range(len(values)), 2))
    if values.shape[1] > 1:
        correlation = float(np.mean([np.corrcoef(ranks[a], ranks[b])[0, 1] for a, b in pairs]))
    else:
        correlation = 1.0
    sizes = dict.fromkeys(min(k, values.shape[1]) for k in (20, 50, 100, len(chosen)))
    overlap = {
        str(k): float(np.mean([len({*orders[a][:k].tolist()} & {*orders[b][:k].tolist()}) / k for a, b in pairs]))
        for k in sizes
    }
    best = [{*order[: len(chosen)].tolist()} for order in orders]
    return Stability(
        rank_correlation=correlation,
        overlap=overlap,
        folds_selected=tuple(sum(int(k) in own for own in best) for k in chosen),
    )


def evenly(count: int, wanted: int) -> Integers:
    """``wanted`` of ``count`` places, evenly spaced; all if there are fewer."""
    if count <= wanted:
        return np.arange(count)
    return np.arange(wanted, dtype=np.int64) * count // wanted


def _target(features: Features, target: Any, bars: Any, cross: Any, workspace: Workspace, rules: SelectRules) -> Target:
    purge = int(rules.purge_minutes * _MINUTE)
    if isinstance(target, Target):
        _check_length(len(target.values), features)
        return target
    if isinstance(target, str):
        if target in TARGETS:
            return make_target(target, _bars(features, bars, cross, workspace))
        if target not in features.columns:
            make_target(target, Bars(features.timestamps, {}))  # raises: names the nearest
        if target in features.names:
            raise DataError(
                f"{target!r} is a feature of the catalogue: the others would explain the present, not the future",
                where="target",
                hint=f"choose one of: {', '.join(TARGETS)}; or give a column that looks forward",
                then=_THEN,
            )
        values = features.column(target)
        name = target
    else:
        try:
            values = np.asarray(target, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"the target cannot be read as numbers ({error})",
                where="target",
                hint="give one number per row, a column's name, or a target's name",
                then=_THEN,
            ) from error
        name = getattr(target, "name", None) or "given numbers"
    if values.ndim != 1:
        raise DataError(
            f"the target has shape {values.shape}", where="target", hint="give one number per row", then=_THEN
        )
    _check_length(len(values), features)
    return Target(str(name), values, features.timestamps + purge, unit="as given")


def _check_length(count: int, features: Features) -> None:
    if count != len(features):
        raise DataError(
            f"the target has {count:,} values, the data {len(features):,} rows",
            where="target",
            hint="give one number per row, NaN where unknown",
            then=_THEN,
        )


def _bars(features: Features, bars: Any, cross: Any, workspace: Workspace) -> Bars:
    """The columns that targets need, row by row of the features."""
    stamps = features.timestamps
    gaps = np.diff(stamps)
    interval = int(gaps.min()) if len(gaps) else _MINUTE
    columns: dict[str, Floats] = {name: features.column(name) for name in _PRICES if name in features.names}
    if bars is not None:
        table = read_table("bars", bars, workspace=workspace)
        own = table.frame["timestamp"].dt.epoch("ns").to_numpy()
        at = np.minimum(np.searchsorted(own, stamps), len(own) - 1)
        if not np.array_equal(own[at], stamps):
            row = int(np.argmin(own[at] == stamps))
            raise DataError(
                f"the bars lack the bar of {iso(int(stamps[row]))}",
                where=table.source,
                hint="give the bars that the features were made from",
                then=_THEN,
            )
        columns |= {n: table.frame[n].to_numpy()[at] for n in ("open", "high", "low", "close")}
    vix = None
    if cross is not None:
        known, closes = daily_closes(read_cross(cross, workspace).frame, "VIX", day_closes(workspace))
        if len(known):
            vix = (known, closes)
    return Bars(stamps + interval, columns, vix)


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError as error:
        raise ConfigError(
            "the choice of features needs LightGBM, which is not installed",
            where="calculate_shap_weights",
            hint="pip install 'mia-fast[select]'",
            then=_THEN,
        ) from error
    return lightgbm
