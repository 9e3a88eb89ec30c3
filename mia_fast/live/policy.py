"""The rule policy: from features and the VIX forecast to a signal, regime probabilities and a side.

It is a baseline that can be read in a minute, not an edge:

* trend score   ``trend_slope * (trend_strength_score - trend_centre)`` (efficiency ratio, Kaufman 1995)
* defensive     ``defensive_slope * (predicted_vix / vix_term_1m - defensive_centre)``; range scores 0
* probabilities softmax of the three
* signal        ``p_trend * m - p_range * z``: follow momentum in a trend, fade the distance from VWAP in a
  range, nothing when defensive; m = 2 market_momentum_score - 1, z = d / (1 + |d|) with
  d = (close - vwap) / (4 atr_14). It lies in -1..1.

Where the networks serve, their probabilities of the next hour's regime are the decision's ``regime_probs``. The signal
keeps the rule's own, which are of the bars just seen: a trend in the sense of the networks is so rare that with their
probabilities the rule would fade and nothing else.

A missing feature or forecast gives no signal: unknown is never a reason to trade.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import Field, field_validator

from mia_fast.config import Model, load, market
from mia_fast.sessions import Sessions, SessionsConfig
from mia_fast.workspace import Workspace

FEATURES: Final = ("close", "vwap", "atr_14", "market_momentum_score", "trend_strength_score", "vix_term_1m")
"""What the policy reads, in this order."""
CLOSE: Final = 17 * 60
"""The usual close in minutes after midnight, New York: on a short day the times are as long before its own."""

_MINUTE: Final = 60_000_000_000
REGIMES: Final = ("trend", "range", "defensive")


class Regime(Model):
    """Centres and slopes of the regime scores."""

    trend_centre: float
    trend_slope: float = Field(gt=0)
    defensive_centre: float = Field(gt=0)
    defensive_slope: float = Field(gt=0)


class PolicyConfig(Model):
    """``config/policy.yaml``."""

    regime: Regime
    entry_threshold: float = Field(gt=0, le=1)
    exit_threshold: float = Field(ge=-1, le=1)
    stop_atr: float = Field(gt=0)
    max_bars: int = Field(ge=1)
    no_entry_from: str
    flat_from: str

    @field_validator("no_entry_from", "flat_from")
    @classmethod
    def _is_clock(cls, text: str) -> str:
        minutes(text)
        return text


def minutes(text: str) -> int:
    """Minutes after midnight of ``HH:MM``."""
    hour, colon, minute = text.partition(":")
    if not colon or not (hour.isdigit() and minute.isdigit()) or int(hour) > 23 or int(minute) > 59:
        raise ValueError(f"{text!r} is not a time of day; write HH:MM")
    return 60 * int(hour) + int(minute)


@dataclass(frozen=True, slots=True)
class Signal:
    """What the policy makes of one bar."""

    score: float
    """-1..1, positive for long; 0 where there is none."""
    regime_probs: dict[str, float] | None
    missing: str | None = None
    """Why there is no signal."""


class Policy:
    """The rules with their configuration; holds no state.

    Parameters
    ----------
    config
        ``config/policy.yaml``.
    sessions
        The product's dated table, for short days; None: every day closes as usual.
    """

    def __init__(self, config: PolicyConfig, sessions: Sessions | None = None) -> None:
        self.config = config
        rows = () if sessions is None else sessions.rows
        self._opens, self._closes = [row.open for row in rows], [row.close for row in rows]
        self.no_entry_from = minutes(config.no_entry_from)
        self.flat_from = minutes(config.flat_from)

    @classmethod
    def open(cls, workspace: Workspace) -> Policy:
        """The policy of a workspace's configuration, with the sessions of its instrument where they are known."""
        symbol = market(workspace).instrument.symbol
        known = load(SessionsConfig, workspace.config("sessions.yaml")).products
        sessions = Sessions.load(workspace, symbol) if symbol in known else None
        return cls(load(PolicyConfig, workspace.config("policy.yaml")), sessions)

    def signal(
        self, features: Sequence[float], predicted_vix: float, forecast: Sequence[float] | None = None
    ) -> Signal:
        """The signal of a bar.

        Parameters
        ----------
        features
            In the order of :data:`FEATURES`.
        predicted_vix
            Index points.
        forecast
            Probabilities of :data:`REGIMES` that a model gives, NaN where refused: no signal. None: no model gives
            them, and the decision names the rule's.
        """
        close, vwap, atr, momentum, efficiency, vix = features
        if not math.isfinite(close + vwap + atr + momentum + efficiency + vix):
            name = next(n for n, x in zip(FEATURES, features, strict=True) if not math.isfinite(x))
            return Signal(0.0, None, f"FEATURE_MISSING: feature={name}")
        if not math.isfinite(predicted_vix):
            return Signal(0.0, None, "PREDICTION_MISSING: output=predicted_vix")
        if atr <= 0.0 or vix <= 0.0:
            return Signal(0.0, None, f"FEATURE_INVALID: atr_14={atr!r} vix_term_1m={vix!r}")
        rule = self._probabilities(efficiency, predicted_vix / vix)
        if forecast is None:
            told = rule
        elif math.isfinite(sum(forecast)):
            told = (forecast[0], forecast[1], forecast[2])
        else:
            return Signal(0.0, None, "PREDICTION_MISSING: output=regime_probs")
        p_trend, p_range, _ = rule
        distance = (close - vwap) / (4.0 * atr)
        score = p_trend * (2.0 * momentum - 1.0) - p_range * distance / (1.0 + abs(distance))
        return Signal(score, {"trend": told[0], "range": told[1], "defensive": told[2]})

    def _probabilities(self, efficiency: float, ratio: float) -> tuple[float, float, float]:
        """The rule's: by the efficiency ratio, and the forecast of the VIX over its last close."""
        regime = self.config.regime
        trend = regime.trend_slope * (efficiency - regime.trend_centre)
        defensive = regime.defensive_slope * (ratio - regime.defensive_centre)
        top = max(trend, 0.0, defensive)
        weights = (math.exp(trend - top), math.exp(-top), math.exp(defensive - top))
        total = weights[0] + weights[1] + weights[2]
        return weights[0] / total, weights[1] / total, weights[2] / total

    def entries_open(self, minute: float, known_at: int) -> bool:
        """Entries are allowed at this minute of the New York day, which is the instant ``known_at`` (ns UTC)."""
        return not self._ends(self.no_entry_from, minute, known_at)

    def must_be_flat(self, minute: float, known_at: int) -> bool:
        """Positions are to be closed at this minute of the New York day, which is ``known_at`` (ns UTC)."""
        return self._ends(self.flat_from, minute, known_at)

    def _ends(self, since: int, minute: float, known_at: int) -> bool:
        if since <= minute < 18 * 60:
            return True
        place = bisect.bisect_left(self._opens, known_at) - 1
        if place < 0 or (place == len(self._opens) - 1 and known_at > self._closes[place]):
            return False  # outside the table nothing is known of short days
        return known_at >= self._closes[place] - max(CLOSE - since, 0) * _MINUTE
