"""What the nearest stored states say: the share of losers, and the memory's four features.

Of the :data:`NEIGHBOURS` nearest states with an outcome, at distances ``d_i``, weights are ``w_i = 1 / d_i``; where
some distances are 0, those states alone count, equally. Fewer than :data:`NEIGHBOURS` such states: nothing is known.

=========================  ====================================================================================
``pattern_replay_score``   ``(sum of w over winners - sum of w over losers) / sum of w``, -1..1
``cluster_score_distance`` mean of the ``d_i`` over the square root of the number of features: how far, in standard
                           deviations per feature, the present state lies from what is remembered, >= 0
``pattern_confidence``     ``|pattern_replay_score| n / (n + 2)`` with ``n = (sum of w)^2 / sum of w^2``, the
                           neighbours that effectively count (Kish 1965; the 2 is Laplace's rule of succession), 0..1
``memory_recall_accuracy`` of the last :data:`TRADES` closed trades, the share whose profit had the sign of the
                           ``pattern_replay_score`` at their entry, 0..1; unknown below :data:`NEIGHBOURS` such trades
=========================  ====================================================================================

A trade without profit or loss is neither winner nor loser. All four are causal: they rest on outcomes that were
known at the state's own time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mia_fast.memory.index import Found

Floats = NDArray[np.float64]

NEIGHBOURS: Final = 20
"""The contract's: the nearest that are asked, and the fewest that are answered from."""
TRADES: Final = 100
FEATURES: Final = (
    "pattern_replay_score",
    "cluster_score_distance",
    "pattern_confidence",
    "memory_recall_accuracy",
)
"""The memory's features, in the order of :attr:`Recollection.values`."""


class Recollection(NamedTuple):
    """What the memory says of one state."""

    at_ns: int
    """The state's time, ns UTC."""
    losing_share: float | None
    """s of the contract, 0..1; None below :data:`NEIGHBOURS` states."""
    values: tuple[float, float, float, float]
    """As :data:`FEATURES`; NaN where unknown."""


def weights(distances: Floats) -> Floats:
    """(n,) the weight of each neighbour: 1 / distance, or 1 for those at distance 0 and 0 for the others."""
    at_zero = distances == 0.0
    weight: Floats = at_zero.astype(np.float64) if at_zero.any() else 1.0 / distances
    return weight


def recollect(found: Found, columns: int, at_ns: int, recalls: Sequence[tuple[float, float]]) -> Recollection:
    """Sum up the neighbours of a state.

    Parameters
    ----------
    found
        The :data:`NEIGHBOURS` nearest states with an outcome.
    columns
        Features of a state.
    at_ns
        The state's time, ns UTC.
    recalls
        (``pattern_replay_score`` at the entry, profit) of the last closed trades.
    """
    known = [(score, profit) for score, profit in recalls if score != 0.0 and profit != 0.0]
    accuracy = math.nan
    if len(known) >= NEIGHBOURS:
        accuracy = sum((score > 0.0) == (profit > 0.0) for score, profit in known) / len(known)
    if len(found.distances) < NEIGHBOURS:
        return Recollection(at_ns, None, (math.nan, math.nan, math.nan, accuracy))
    weight = weights(found.distances)
    total = float(weight.sum())
    lost = float(weight[found.profits < 0.0].sum()) / total
    won = float(weight[found.profits > 0.0].sum()) / total
    count = total * total / float((weight * weight).sum())
    score = won - lost
    apart = float(found.distances.mean()) / math.sqrt(columns)
    # Sums of rounded weights may pass 1 in the last digit.
    return Recollection(at_ns, min(lost, 1.0), (score, apart, abs(score) * count / (count + 2.0), accuracy))
