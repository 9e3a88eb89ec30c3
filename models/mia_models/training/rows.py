"""What the networks are trained on: one row per bar, in the order of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

PRESSURE, VOLATILITY, REGIME = "cnn_pressure", "predicted_volatility", "neural_regime"
LONG, SHORT, VIX = "trade_success_long", "trade_success_short", "predicted_vix"
TARGETS = (PRESSURE, VOLATILITY, REGIME, LONG, SHORT, VIX)
REGIMES = ("trend", "range", "defensive")


@dataclass(frozen=True)
class Rows:
    """Bars of one symbol with features, targets and what the baselines need; all arrays have n rows.

    Attributes
    ----------
    names
        The features, in the order of the columns of ``matrix``.
    matrix
        float32 (n, features), NaN where a feature is missing.
    known_at
        int64 (n,) ns UTC at which the bar is known.
    session
        int64 (n,), a number per session, ascending.
    minute
        int64 (n,), minutes since midnight in New York.
    targets
        float64 (n,) by name of :data:`TARGETS`; NaN where unknown.
    ends_at
        int64 (n,) ns UTC by target: up to when it looks.
    extra
        float64 (n,): the inputs of the ``predicted_vix`` regression by name, ``returns_1`` .. ``returns_10`` (the last
        one-minute log returns) and ``present_30`` (annualised realised volatility of the last 30 minutes).
    """

    names: tuple[str, ...]
    matrix: Singles
    known_at: Integers
    session: Integers
    minute: Integers
    targets: Mapping[str, Floats]
    ends_at: Mapping[str, Integers]
    extra: Mapping[str, Floats]

    def __len__(self) -> int:
        return len(self.known_at)

    def between(self, first: int, last: int) -> slice:
        """The rows known in [first, last), ns UTC."""
        a, b = np.searchsorted(self.known_at, [first, last])
        return slice(int(a), int(b))


def instant(text: str) -> int:
    """ns UTC of an ISO date."""
    return int(np.datetime64(text, "ns").astype(np.int64))
