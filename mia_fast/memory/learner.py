"""The adaptive learner: groups of patterns, drift, and when to learn again.

Drift of a feature is the population stability index between a reference and the recent rows, over the deciles of the
reference: ``sum_i (a_i - e_i) ln(a_i / e_i)`` with the shares a (recent) and e (reference) of bin i (Siddiqi 2006,
"Credit risk scorecards"; from 0.25 on a shift is called significant). Missing values are a bin of their own; empty
bins count as :data:`FLOOR`.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mia_fast import clock, journal
from mia_fast.errors import DataError, MarketMemoryError
from mia_fast.files import write_json
from mia_fast.memory.config import memory_config
from mia_fast.memory.manifest import memory_features
from mia_fast.tables import frame_of
from mia_fast.telemetry import operation
from mia_fast.workspace import Workspace

Floats = NDArray[np.float64]

BINS: Final = 10
FLOOR: Final = 1e-4
ROWS_LEAST: Final = 200
"""Fewer rows give an index that is mostly noise."""
TOLD: Final = 10
"""So many features of the largest index are journalled."""


@dataclass(frozen=True, slots=True)
class Group:
    """One cluster of patterns."""

    label: int
    size: int
    win_share: float
    """Of its states with an outcome; NaN without any."""
    mean_profit: float
    """USD."""
    centre: Floats
    """(features,) in standard deviations."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Whether to train again, and why."""

    reasons: tuple[str, ...]
    psi: dict[str, float]
    """By feature; empty where there was nothing to compare."""

    def __bool__(self) -> bool:
        return bool(self.reasons)


@dataclass(frozen=True, slots=True)
class Reference:
    """What the features looked like: inner bin edges and shares by feature."""

    edges: dict[str, Floats]
    shares: dict[str, Floats]

    @classmethod
    def of(cls, names: Sequence[str], rows: Floats) -> Reference:
        """Deciles of (n, features) rows."""
        edges, shares = {}, {}
        for name, column in zip(names, rows.T, strict=True):
            finite = column[np.isfinite(column)]
            inner = np.unique(np.quantile(finite, np.arange(1, BINS) / BINS)) if len(finite) else np.empty(0)
            edges[name] = inner
            shares[name] = _shares(column, inner)
        return cls(edges, shares)

    def psi(self, names: Sequence[str], rows: Floats) -> dict[str, float]:
        """Population stability index of each column of (n, features) rows that the reference knows."""
        found = {}
        for name, column in zip(names, rows.T, strict=True):
            if name in self.edges:
                a = np.maximum(_shares(column, self.edges[name]), FLOOR)
                e = np.maximum(self.shares[name], FLOOR)
                found[name] = float(((a - e) * np.log(a / e)).sum())
        return found


def _shares(column: Floats, inner: Floats) -> Floats:
    """Share of rows in each bin; the last is for missing values."""
    finite = np.isfinite(column)
    places = np.searchsorted(inner, column[finite], side="right")
    counts = np.bincount(places, minlength=len(inner) + 1)
    shares: Floats = np.append(counts, len(column) - int(finite.sum())) / max(len(column), 1)
    return shares


class AdaptiveLearner:
    """Follows the patterns and the features of a workspace.

    Parameters
    ----------
    workspace
        Default: ``MIA_WORKSPACE``, else the current directory.
    """

    def __init__(self, workspace: Workspace | None = None) -> None:
        self.workspace = workspace if workspace is not None else Workspace.current()
        self.config = memory_config(self.workspace).learning

    @property
    def reference_path(self) -> Path:
        """Where the reference of the drift lies."""
        return self.workspace.data / "models" / "drift_reference.json"

    @operation("adaptive_learning", "cluster_patterns")
    def cluster(self) -> tuple[dict[int, int], list[Group]]:
        """Group the stored patterns by mini-batch KMeans on their standardised features.

        Returns
        -------
        labels, groups
            ``cluster_id`` of the table -> label, and the groups by label. The same memory gives the same labels.

        Raises
        ------
        MarketMemoryError
            Fewer states are stored than groups are asked for, scikit-learn is not installed, or the memory cannot be
            read.
        """
        try:
            from sklearn.cluster import MiniBatchKMeans
        except ModuleNotFoundError as error:
            raise MarketMemoryError(
                "grouping patterns needs scikit-learn, which is not installed",
                where="import sklearn",
                hint="pip install 'mia-fast[train]'",
                then="nothing was grouped; the memory works without it",
                reason="input",
            ) from error
        from mia_fast import memory

        _, profits, keys, _, standardised = memory.of(self.workspace).states()
        if len(keys) < self.config.clusters:
            raise MarketMemoryError(
                f"{len(keys)} states are stored, {self.config.clusters} groups are asked for",
                where="config/memory.yaml, learning.clusters",
                hint="wait for more closed trades, or ask for fewer groups",
                then="nothing was grouped",
                reason="input",
            )
        model = MiniBatchKMeans(
            n_clusters=self.config.clusters, random_state=self.config.seed, n_init=3, batch_size=1024
        )
        labels = model.fit_predict(standardised)
        groups = []
        for label in range(self.config.clusters):
            members = labels == label
            closed = profits[members & np.isfinite(profits)]
            won = float((closed > 0).mean()) if len(closed) else math.nan
            mean = float(closed.mean()) if len(closed) else math.nan
            groups.append(Group(label, int(members.sum()), won, mean, model.cluster_centers_[label].copy()))
        return {int(key): int(label) for key, label in zip(keys, labels, strict=True)}, groups

    def set_reference(self, frame: Any) -> Path:
        """Keep the distribution of these rows as what drift is measured against.

        Parameters
        ----------
        frame
            Features, at least :data:`ROWS_LEAST` rows: a Parquet or CSV file, or any table that speaks the Arrow
            PyCapsule interface.

        Raises
        ------
        DataError
            It cannot be read, is too short, or holds none of the memory's features.
        """
        names, rows = self._matrix(frame)
        found = Reference.of(names, rows)
        content = {name: {"edges": found.edges[name].tolist(), "shares": found.shares[name].tolist()} for name in names}
        write_json(self.reference_path, {"rows": len(rows), "features": content}, durable=True)
        return self.reference_path

    @operation("adaptive_learning", "propose")
    def propose(
        self,
        recent: Any = None,
        *,
        errors: Floats | None = None,
        error_reference: float | None = None,
        trained: dt.date | None = None,
        now_ns: int | None = None,
        name: str = "predicted_vix",
    ) -> Proposal:
        """Whether to train again: drift of the features, of the prediction's error, or the schedule.

        The answer is a row of the journal's table ``training``: ``RETRAIN_PROPOSED`` or ``RETRAIN_NOT_NEEDED``.

        Parameters
        ----------
        recent
            Recent features (as :meth:`set_reference`); None: no look at their drift.
        errors, error_reference
            Recent errors of the predictions, (n,), and the mean absolute error that the model was judged by.
        trained
            Last date the served model was trained on.
        now_ns
            ns UTC; default: the wall clock.
        name
            The model in question.

        Returns
        -------
        Proposal
            True in a condition when there is a reason. It is only a proposal: :func:`mia_fast.retrain_model` acts.

        Raises
        ------
        DataError
            The recent rows cannot be used, or there is no reference to compare them with.
        JournalError
            The journal does not take the row.
        """
        at = clock.now_ns() if now_ns is None else now_ns
        error: float | None = None
        reasons: list[str] = []
        psi: dict[str, float] = {}
        if recent is not None:
            names, rows = self._matrix(recent)
            psi = self._reference().psi(names, rows)
            drifted = sorted(
                (name for name, value in psi.items() if value >= self.config.psi), key=lambda name: -psi[name]
            )
            if psi and len(drifted) > self.config.drifted_share * len(psi):
                worst = ", ".join(f"{name} {psi[name]:.2f}" for name in drifted[:3])
                reasons.append(f"{len(drifted)} of {len(psi)} features have drifted (stability index: {worst})")
        if errors is not None and error_reference is not None:
            finite = np.abs(errors[np.isfinite(errors)])
            if len(finite) and error_reference > 0:
                error = float(finite.mean())
                ratio = error / error_reference
                if ratio > self.config.error_ratio:
                    reasons.append(f"the predictions' error is {ratio:.2f} times the one the model was judged by")
        if trained is not None:
            days = (clock.to_datetime(at).date() - trained).days
            if days > self.config.schedule_days:
                reasons.append(
                    f"the last training ends {days} days back, the schedule says {self.config.schedule_days}"
                )
        most = sorted(psi, key=lambda feature: -psi[feature])[:TOLD]
        detail = {
            "reasons": reasons,
            "features": len(psi),
            "psi": {feature: round(psi[feature], 4) for feature in most},
        }
        code = "RETRAIN_PROPOSED" if reasons else "RETRAIN_NOT_NEEDED"
        row = {"timestamp": at, "model": name, "loss": error, "code": code, "detail": detail}
        journal.of(self.workspace).append("training", row)
        return Proposal(tuple(reasons), psi)

    def _matrix(self, frame: Any) -> tuple[tuple[str, ...], Floats]:
        table = _table(frame)
        names = tuple(name for name in memory_features(self.workspace).names if name in table.columns)
        if not names or table.height < ROWS_LEAST:
            raise DataError(
                f"{table.height:,} rows with {len(names)} of the memory's features say nothing of drift",
                where="adaptive_learner",
                hint=f"give at least {ROWS_LEAST} rows of generate_features(bars)",
                then="nothing was changed",
            )
        return names, table.select(pl.col(name).cast(pl.Float64).fill_null(math.nan) for name in names).to_numpy()

    def _reference(self) -> Reference:
        try:
            content = json.loads(self.reference_path.read_text(encoding="utf-8"))["features"]
            return Reference(
                {name: np.array(part["edges"], dtype=float) for name, part in content.items()},
                {name: np.array(part["shares"], dtype=float) for name, part in content.items()},
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"there is no reference to measure drift against ({error})",
                where=str(self.reference_path),
                hint="mia-fast models propose --reference FEATURES makes one, from features of a normal time",
                then="nothing was compared",
            ) from error


def _table(source: Any) -> pl.DataFrame:
    if not isinstance(source, str | Path):
        return frame_of(source, where="adaptive_learner", then="nothing was changed")
    path = Path(source)
    try:
        return pl.read_csv(path, infer_schema_length=None) if path.suffix == ".csv" else pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"cannot be read ({error})",
            where=str(path),
            hint="give a Parquet or CSV file that mia-fast features wrote",
            then="nothing was changed",
        ) from error
