"""The observation of a policy: the chosen features in the manifest's order, weighted by the regime."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mia_fast.errors import ConfigError, DataError
from mia_fast.features import catalogue as catalogues
from mia_fast.features.plan import FILE as CATALOGUE
from mia_fast.files import stamp
from mia_fast.selection.config import FILE as CONFIG
from mia_fast.selection.config import selection_config
from mia_fast.selection.data import Floats
from mia_fast.selection.manifest import Selection, read_selection, selection_path
from mia_fast.tables import frame_of
from mia_fast.telemetry import operation
from mia_fast.workspace import AnyWorkspace, Workspace

REGIMES: Final = ("trend", "range", "defensive")
_NUMBERS: Final = re.compile(r"\d+")
_THEN: Final = "no observation was made"


class Observer:
    """Makes observations; long-lived, it reads nothing while it works.

    Parameters
    ----------
    workspace
        Whose selection, catalogue and weights apply.

    Raises
    ------
    ConfigError
        There is no selection, or the weights name an unknown regime, family or feature.

    Attributes
    ----------
    names
        The chosen features, in the order of the vector.
    weights
        Regime -> (k,) float64.
    """

    def __init__(self, workspace: Workspace) -> None:
        catalogue = catalogues.read(workspace)
        self.selection: Selection = read_selection(workspace)
        self.names = self.selection.names
        self._medians = np.array(self.selection.medians)
        family = {feature.name: feature.family for feature in catalogue.features}
        where = str(workspace.config(CONFIG))
        self.weights: dict[str, Floats] = {}
        for regime, own in selection_config(workspace).observation.items():
            _known(regime, REGIMES, f"observation.{regime}", "regime", where)
            for name in own.families:
                _known(name, sorted({*family.values()}), f"observation.{regime}.families", "family", where)
            for name in own.features:
                _known(name, catalogue.names, f"observation.{regime}.features", "feature", where)
            self.weights[regime] = np.array(
                [own.features.get(name, own.families.get(family[name], 1.0)) for name in self.names]
            )

    def observe(
        self, data: Any, regime: str, *, missing: Literal["error", "impute"] = "error"
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """All rows of a frame: observations (n, k) float64, and which values (n, k) were imputed.

        Raises
        ------
        DataError
            The regime is unknown; chosen features are absent; or values are null, NaN or infinite.
        """
        if missing not in ("error", "impute"):
            raise DataError(
                f"missing={missing!r} is not known", where="create_observation", hint="say 'error' or 'impute'"
            )
        weights = self._weights(regime)
        frame = frame_of(data, where="create_observation", then=_THEN)
        schema = dict(frame.schema)  # once: Polars makes it anew at each asking
        absent = [name for name in self.names if name not in schema]
        if absent and missing == "error":
            raise _missing(absent, len(self.names), tuple(schema), "features are missing")
        if not frame.height:
            raise DataError("holds no rows", where="create_observation", hint="give at least one row", then=_THEN)
        there = [k for k, name in enumerate(self.names) if name in schema]
        for k in there:
            dtype = schema[self.names[k]]
            if not (dtype.is_numeric() or dtype == pl.Null):
                raise DataError(
                    f"the feature {self.names[k]!r} is {dtype}, not a number",
                    where="create_observation",
                    hint="cast the column to a float",
                    then=_THEN,
                )
        matrix = np.full((frame.height, len(self.names)), np.nan)
        matrix[:, there] = frame.select([self.names[k] for k in there]).cast(pl.Float64).to_numpy()
        if np.isinf(matrix).any():
            bad = [self.names[k] for k in np.flatnonzero(np.isinf(matrix).any(axis=0))]
            raise _missing(bad, len(self.names), (), "features are infinite")
        gaps = np.isnan(matrix)
        if gaps.any() and missing == "error":
            bad = [self.names[k] for k in np.flatnonzero(gaps.any(axis=0))]
            raise _missing(bad, len(self.names), (), "features have no value")
        return np.where(gaps, self._medians, matrix) * weights, gaps

    def vector(self, values: Floats, regime: str, out: Floats | None = None) -> Floats:
        """One bar: ``values`` (k,) in the order of :attr:`names`, weighted. For the live loop: no frame, no check but
        that all are finite.

        Raises
        ------
        DataError
            The regime is unknown, or a value is not finite.
        """
        weights = self._weights(regime)
        if values.shape != weights.shape or not bool(np.isfinite(values).all()):
            bad = [name for name, value in zip(self.names, values, strict=False) if not np.isfinite(value)]
            raise _missing(bad or [f"shape {values.shape}"], len(self.names), (), "features have no value")
        return np.multiply(values, weights, out=out)

    def _weights(self, regime: str) -> Floats:
        found = self.weights.get(regime) if isinstance(regime, str) else None
        if found is None:
            near = difflib.get_close_matches(str(regime), self.weights, n=1)
            raise DataError(
                f"there is no regime {regime!r}",
                where="create_observation",
                hint=f"did you mean {near[0]!r}?" if near else f"say one of: {', '.join(self.weights)}",
                then=_THEN,
            )
        return found


_KEPT: Final[dict[Any, Observer]] = {}


@operation("observation", "create_observation")
def create_observation(
    data: Any,
    regime: str,
    *,
    missing: Literal["error", "impute"] = "error",
    workspace: AnyWorkspace | None = None,
) -> Floats:
    """The observation of the last row of ``data``: its chosen features in the manifest's order, weighted by regime.

    Parameters
    ----------
    data
        Features: one row, or several in the order of time, as any table that speaks the Arrow PyCapsule interface, or a
        mapping from name to number.
    regime
        ``trend``, ``range`` or ``defensive``.
    missing
        ``"error"``: an absent feature, a null or NaN is an error that names the features. ``"impute"``: they take the
        median of the rows that the choice was made on; :meth:`Observer.observe` says which.
    workspace
        Whose selection and weights apply.

    Returns
    -------
    numpy.ndarray
        (k,) float64: 150 values, or as many as the manifest names. Value times weight; the weights are those of
        ``observation`` in ``config/selection.yaml``.

    Raises
    ------
    DataError
        The regime is unknown, or features are absent, null, NaN or infinite: with their names.
    ConfigError
        No features were chosen yet, or the configuration is invalid.
    """
    workspace = Workspace.current(workspace)
    frame = (
        pl.DataFrame({name: [value] for name, value in data.items()})
        if isinstance(data, Mapping)
        else frame_of(data, where="create_observation", then=_THEN)
    )
    values, _ = _observer(workspace).observe(frame.tail(1), regime, missing=missing)
    observation: Floats = values[0]
    return observation


def _observer(workspace: Workspace) -> Observer:
    """One observer for each state of the files it rests on."""
    paths = (
        selection_path(workspace),
        workspace.config(CONFIG),
        workspace.config(CATALOGUE),
    )
    key = tuple((path, stamp(path)) for path in paths)
    if key not in _KEPT:
        _KEPT.clear()
        _KEPT[key] = Observer(workspace)
    return _KEPT[key]


def _known(name: str, known: Any, where: str, what: str, file: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"{where} names an unknown {what} {name!r}",
            where=file,
            hint=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}",
            then="nothing was started; a present but invalid configuration is never replaced by a default",
        )


def _missing(names: list[str], count: int, offered: Any, what: str) -> DataError:
    near = {name: difflib.get_close_matches(name, offered, n=1, cutoff=0.8) for name in names}
    similar = [
        f"{found[0]!r} for {name!r}"
        for name, found in near.items()
        if found and _NUMBERS.sub("", found[0]) != _NUMBERS.sub("", name)  # rsi_14 is no slip of rsi_21
    ]
    hint = "compute them with generate_features, or pass missing='impute' to take the medians of the selection"
    return DataError(
        f"{len(names)} of the {count} {what}: {', '.join(names)}",
        where="create_observation",
        hint=f"is it a matter of names? {', '.join(similar)}; else {hint}" if similar else hint,
        then=_THEN,
    )
