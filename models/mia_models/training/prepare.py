"""From raw features to the networks' inputs: fitted on training rows, computed inside the graph.

Four kinds of columns, told apart by the training rows alone:

* ``level``: a price (always within a factor 2 of the close): log of its ratio to the close, because the networks must
  not learn at which level the market stood in a year;
* ``log``: positive and skewed (the 99.9 % quantile above 8 medians): its logarithm, floored;
* ``plain``: as it is.

Then ``clip((x - centre) / scale, -5, 5)`` with the median and half the distance of the 16 % and 84 % quantiles, in
float64; only the result is cast to float32. A missing value becomes 0, the median.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mia_models.errors import ModelError
from mia_models.training.rows import Floats, Integers, Singles

CLIP = 5.0
CLOSE = "close"
SAMPLE = 60_000
_SKEWED = 8.0
_LEAST_RATIO = 1e-6
_PLAIN, _LOG, _LEVEL = 0, 1, 2


@dataclass(frozen=True)
class Preparation:
    """Fitted statistics; arrays of one number per feature, in the caller's order.

    ``kind`` holds 0 plain, 1 log, 2 level; ``floor`` is the least value a logarithm is taken of.
    """

    names: tuple[str, ...]
    kind: Integers
    floor: Floats
    centre: Floats
    scale: Floats
    median: Floats
    low: Floats
    high: Floats
    minimum: Floats
    maximum: Floats

    def apply(self, matrix: Singles | Floats) -> Singles:
        """float32 (n, features) from raw values of the same shape. The graph's twin in NumPy."""
        result = np.empty(matrix.shape, dtype=np.float32)
        for first in range(0, len(matrix), 1 << 16):
            part = slice(first, first + (1 << 16))
            z = (self._shaped(matrix[part].astype(np.float64)) - self.centre) / self.scale
            result[part] = np.clip(np.where(np.isnan(z), 0.0, z), -CLIP, CLIP)
        return result

    def _shaped(self, x: Floats) -> Floats:
        close = x[:, self.names.index(CLOSE), None]
        logs, levels = self.kind == _LOG, self.kind == _LEVEL
        with np.errstate(invalid="ignore"):
            x[:, levels] = np.log(np.maximum(x[:, levels] / close, _LEAST_RATIO))
            x[:, logs] = np.log(np.maximum(x[:, logs], self.floor[logs]))
        return x


def fit(names: Sequence[str], matrix: Singles) -> Preparation:
    """Statistics of training rows: float32 (n, features), NaN where missing."""
    if CLOSE not in names:
        raise ModelError(
            "the features lack 'close', which prices are measured against", where="features", hint="choose it as well"
        )
    x = matrix[:: max(1, len(matrix) // SAMPLE)].astype(np.float64)
    count = len(names)
    bare = [name for k, name in enumerate(names) if not np.isfinite(x[:, k]).any()]
    if bare:
        raise ModelError(
            f"{', '.join(bare)}: no value in the training rows", where="features", hint="they are not candidates"
        )
    close = x[:, list(names).index(CLOSE)]
    kind, floor = np.zeros(count, dtype=np.int64), np.ones(count)
    for k in range(count):
        column = x[np.isfinite(x[:, k]), k]
        ratio = x[:, k] / close
        ratio = ratio[np.isfinite(ratio)]
        if ratio.min() > 0.5 and ratio.max() < 2.0:
            kind[k] = _LEVEL
            continue
        least, middle, most = np.quantile(column, [0.0, 0.5, 0.999])
        if least >= 0 and middle > 0 and most > _SKEWED * middle and (column <= 0).mean() < 0.05:
            kind[k] = _LOG
            floor[k] = np.quantile(column[column > 0], 0.002)
    with np.errstate(invalid="ignore"):
        medians, lows, highs = np.nanquantile(x, [0.5, 0.01, 0.99], axis=0)
    blank = np.ones(count)
    draft = Preparation(tuple(names), kind, floor, blank, blank, medians, lows, highs, medians, medians)
    shaped = draft._shaped(x.copy())
    lower, centre, upper = np.nanquantile(shaped, [0.16, 0.5, 0.84], axis=0)
    scale, spread = (upper - lower) / 2.0, np.nanstd(shaped, axis=0)
    scale = np.where(scale > 1e-9, scale, np.where(spread > 1e-9, spread, 1.0))
    return Preparation(
        tuple(names), kind, floor, centre, scale, medians, lows, highs, np.nanmin(x, axis=0), np.nanmax(x, axis=0)
    )
