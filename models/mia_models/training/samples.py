"""Training rows as arrays, and the target of ``predicted_vix``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mia_models.errors import ModelError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Samples:
    """Rows in time order, all arrays of one length n.

    Attributes
    ----------
    local_day, local_minute
        New York date (days since 1970) and minutes since its midnight at which the bar is known.
    columns
        float64 (n,) by feature name.
    target
        float64 (n,), the VIX close the row looks forward to, index points.
    target_day
        int64 (n,), the date of that close, days since 1970.
    """

    local_day: Integers
    local_minute: Integers
    columns: Mapping[str, Floats]
    target: Floats
    target_day: Integers

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: Mask) -> Samples:
        """The rows where ``rows`` is true."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Samples(self.local_day[rows], self.local_minute[rows], columns, self.target[rows], self.target_day[rows])


def upcoming_close(
    known_at: Integers, close_known_at: Integers, close: Floats, day: Integers
) -> tuple[Floats, Integers]:
    """The first daily close that becomes known strictly after each row.

    Parameters
    ----------
    known_at
        int64 (n,) ns UTC at which the rows' bars are known.
    close_known_at, close, day
        int64 (m,) ns UTC ascending, float64 (m,) index points, int64 (m,) days since 1970: the daily series.

    Returns
    -------
    target, target_day
        float64 (n,), NaN where no later close exists; int64 (n,), -1 there.
    """
    if np.any(np.diff(close_known_at) <= 0):
        raise ModelError(
            "the daily closes are not in ascending order of time",
            where="close_known_at",
            hint="sort them and keep one value per day",
        )
    place = np.searchsorted(close_known_at, known_at, side="right")
    there = place < len(close)
    at = np.where(there, place, 0)
    return np.where(there, close[at], np.nan), np.where(there, day[at], -1)


def select(samples: Samples, names: tuple[str, ...]) -> Samples:
    """The rows that have a target and a finite value in each of the named columns; only these columns."""
    missing = [name for name in names if name not in samples.columns]
    if missing:
        raise ModelError(
            f"the training rows lack {', '.join(missing)}",
            where="columns",
            hint="the catalogue must declare them, and the bars and the VIX must be given",
            then="nothing was trained",
        )
    whole = np.isfinite(samples.target)
    for name in names:
        whole &= np.isfinite(samples.columns[name])
    columns = {name: samples.columns[name] for name in names}
    return Samples(samples.local_day, samples.local_minute, columns, samples.target, samples.target_day).take(whole)
