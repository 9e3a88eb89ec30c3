"""From raw features to the networks' inputs: fitted on training rows, computed inside the graph.

What a network must not learn is at which level the market stood in a year. So the columns are told apart by the
training rows alone:

* ``level``: a price (always within a factor 2 of the close): log of its ratio to the close;
* ``volatility``: positive, and its logarithm varies less from month to month (as a share of its variance) once
  that of :data:`REFERENCE`, the volatility of the last five sessions, is taken off: log of the ratio of the two;
* ``log``: another positive and skewed one (the 99.9 % quantile above 8 medians): its logarithm;
* ``plain``: as it is;
* ``slow``: whatever of these still has most of its variance between months: three years hold some 36 values of it, by
  which a network would tell dates. It is read and checked, but its weight is 0.

Then ``clip((x - centre) / scale, -5, 5)`` with the median and half the distance of the 16 % and 84 % quantiles, in
float64; only the result is cast to float32. A missing value becomes 0, the median. The hour of the day enters
besides as 48 smooth bumps around the clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mia_models.errors import ModelError
from mia_models.training.rows import Floats, Integers, Singles

CLIP = 5.0
CLOSE, REFERENCE = "close", "vol_historical_5d"
CLOCK = ("time_of_day_sin", "time_of_day_cos")
BUMPS = 48
SHARPNESS = float(np.log(4.0) / (1.0 - np.cos(2.0 * np.pi / BUMPS)))
"""A bump falls to a quarter at the centre of the next."""
SAMPLE = 60_000
PLAIN, LOG, LEVEL, VOLATILITY = 0, 1, 2, 3
LEAST_RATIO = 1e-6
_SKEWED = 8.0
_SLOW = 0.5
_MONTH = 30 * 86_400 * 10**9


@dataclass(frozen=True)
class Preparation:
    """Fitted statistics; arrays of one number per feature, in the caller's order.

    ``floor`` is the least value a logarithm is taken of; ``slow`` marks what gets no weight.
    """

    names: tuple[str, ...]
    kind: Integers
    floor: Floats
    slow: Integers
    centre: Floats
    scale: Floats
    median: Floats
    low: Floats
    high: Floats
    minimum: Floats
    maximum: Floats

    @property
    def width(self) -> int:
        """Numbers per row that the networks see."""
        return len(self.names) + BUMPS

    def apply(self, matrix: Singles | Floats) -> Singles:
        """float32 (n, width) from raw values (n, features). The graph's twin in NumPy."""
        result = np.empty((len(matrix), self.width), dtype=np.float32)
        count = len(self.names)
        for first in range(0, len(matrix), 1 << 16):
            part = slice(first, first + (1 << 16))
            x = matrix[part].astype(np.float64)
            clock = x[:, [self.names.index(name) for name in CLOCK]]
            z = (self.shaped(x) - self.centre) / self.scale * (self.slow == 0)
            result[part, :count] = np.clip(np.where(np.isnan(z), 0.0, z), -CLIP, CLIP)
            result[part, count:] = np.exp(clock @ (SHARPNESS * hours()) - SHARPNESS)
        return result

    def shaped(self, x: Floats) -> Floats:
        """Ratios and logarithms, before standardisation; works in place."""
        close = x[:, self.names.index(CLOSE), None].copy()
        reference = np.log(self.reference(x[:, self.names.index(REFERENCE)]))[:, None]
        levels, logs, relative = (
            self.kind == LEVEL,
            (self.kind == LOG) | (self.kind == VOLATILITY),
            self.kind == VOLATILITY,
        )
        with np.errstate(invalid="ignore"):
            x[:, levels] = np.log(np.maximum(x[:, levels] / close, LEAST_RATIO))
            x[:, logs] = np.log(np.maximum(x[:, logs], self.floor[logs]))
            x[:, relative] -= reference
        return x

    def reference(self, values: Floats) -> Floats:
        """:data:`REFERENCE` with its median where it is missing, and floored."""
        at = self.names.index(REFERENCE)
        known: Floats = np.maximum(np.where(np.isnan(values), self.median[at], values), self.floor[at])
        return known


def hours() -> Floats:
    """Sines and cosines of the bumps' centres, float64 (2, BUMPS)."""
    angle = 2.0 * np.pi * np.arange(BUMPS) / BUMPS
    return np.stack([np.sin(angle), np.cos(angle)])


def fit(names: Sequence[str], matrix: Singles, known_at: Integers) -> Preparation:
    """Statistics of training rows: float32 (n, features), NaN where missing; int64 (n,) ns UTC."""
    absent = [name for name in (CLOSE, REFERENCE, *CLOCK) if name not in names]
    if absent:
        raise ModelError(
            f"the features lack {', '.join(absent)}, which others are measured against",
            where="features",
            hint="choose them as well",
            then="nothing was trained",
        )
    stride = max(1, len(matrix) // SAMPLE)
    x, month = matrix[::stride].astype(np.float64), known_at[::stride] // _MONTH
    bare = [name for k, name in enumerate(names) if not np.isfinite(x[:, k]).any()]
    if bare:
        raise ModelError(
            f"{', '.join(bare)}: no value in the training rows", where="features", hint="they are not candidates"
        )
    count = len(names)
    close, reference = (x[:, list(names).index(name)] for name in (CLOSE, REFERENCE))
    kind, floor = np.zeros(count, dtype=np.int64), np.ones(count)
    with np.errstate(divide="ignore", invalid="ignore"):
        slow_part = np.log(reference)
        for k, name in enumerate(names):
            column = x[np.isfinite(x[:, k]), k]
            ratio = (x[:, k] / close)[np.isfinite(x[:, k])]
            if ratio.min() > 0.5 and ratio.max() < 2.0:
                kind[k] = LEVEL
                continue
            if column.min() < 0 or (column <= 0).mean() > 0.05:
                continue
            floor[k] = np.quantile(column[column > 0], 0.002)
            logs = np.log(np.maximum(x[:, k], floor[k]))
            if name != REFERENCE and _between(logs - slow_part, month) < _between(logs, month):
                kind[k] = VOLATILITY
            elif np.quantile(column, 0.999) > _SKEWED * np.median(column):
                kind[k] = LOG
    medians, lows, highs = np.nanquantile(x, [0.5, 0.01, 0.99], axis=0)
    blank, none = np.ones(count), np.zeros(count, dtype=np.int64)
    draft = Preparation(tuple(names), kind, floor, none, blank, blank, medians, lows, highs, medians, medians)
    shaped = draft.shaped(x.copy())
    slow = np.array([int(_between(shaped[:, k], month) > _SLOW) for k in range(count)])
    lower, centre, upper = np.nanquantile(shaped, [0.16, 0.5, 0.84], axis=0)
    scale, spread = (upper - lower) / 2.0, np.nanstd(shaped, axis=0)
    scale = np.where(scale > 1e-9, scale, np.where(spread > 1e-9, spread, 1.0))
    return Preparation(
        tuple(names), kind, floor, slow, centre, scale, medians, lows, highs, np.nanmin(x, axis=0), np.nanmax(x, axis=0)
    )


def _between(values: Floats, group: Integers) -> float:
    """Share of the variance that lies between groups, 0..1."""
    known = np.isfinite(values)
    values, (_, place) = values[known], np.unique(group[known], return_inverse=True)
    total = float(values.var()) if len(values) else 0.0
    if total < 1e-18:
        return 0.0
    count = np.bincount(place)
    means = np.bincount(place, values) / count
    return float((count * (means - values.mean()) ** 2).sum() / len(values)) / total
