"""The account as features: what is known of it at a bar's close is part of that bar's row.

Inputs of the table ``account``, held before the row is computed. A venue's report is of the bar's close, so nothing in
them is of later. They are read from the report, the risk controller after it was marked, and ``config/risk.yaml``.

===============================  ====================================================================================
``drawdown_ratio``               (peak equity - equity) / peak equity, as the latch reads it
``position_size_ratio``          ``|contracts|`` over ``limits.max_position``
``mae``, ``mfe``                 USD, <= 0 and >= 0: worst and best move of the price against the entry since the fill
                                 (Sweeney, "Maximum Adverse Excursion", 1997), times contracts and point value, by the
                                 highs and lows of the bars, the entry's included: it fills at its open. Without fees.
                                 0 while flat
``trade_volatility_exposure``    ``|contracts| * atr_14 * point value / equity``, with the row's own ``atr_14``: it is
                                 written into the row once the row is there
``overtrade_risk_score``         :mod:`mia_fast.risk.overtrading`
``margin_risk_score``            ``|contracts| * limits.margin_per_contract / equity``, at most 1
``position_risk_score``          what the account loses from the close to the protective stop, over
                                 ``limits.max_trade_risk`` of equity, at most 1; without a stop 1
``drawdown_risk_score``          ``drawdown_ratio`` over the limit in force (tightened by the memory), at most 1
``portfolio_risk_score``         the largest of the four scores
``last_3_trades_success_rate``   share with a profit after fees among the last three closed trades
===============================  ====================================================================================

Null is what is not known: a score of an equity that is not finite or a limit that is unknown, the excursions of a
position whose entry is unknown, a success rate before the third trade, the largest of scores of which one is null.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mia_fast.live.broker import Position
from mia_fast.risk import Account, Desk

if TYPE_CHECKING:
    from mia_fast.features.engine import FeatureEngine

Floats = NDArray[np.float64]

TABLE: Final = "account"
HELD: Final = (
    "drawdown_ratio",
    "position_size_ratio",
    "mae",
    "mfe",
    "overtrade_risk_score",
    "margin_risk_score",
    "position_risk_score",
    "drawdown_risk_score",
    "portfolio_risk_score",
    "last_3_trades_success_rate",
)
"""Inputs that are held before the row, in the order in which they are computed here."""
EXPOSURE: Final = "trade_volatility_exposure"
FEATURES: Final = (*HELD, EXPOSURE)
TRADES: Final = 3


class AccountState:
    """What the features know of one account.

    Parameters
    ----------
    desk
        Its controller, limits and instrument.
    features
        The engine whose inputs are held.
    brought
        Columns that the bars bring: they stand.
    """

    def __init__(self, desk: Desk, features: FeatureEngine, brought: Collection[str] = ()) -> None:
        plan = features.plan
        self._controller, self._limits = desk.controller, desk.config.limits
        self._point_value = desk.market.instrument.point_value
        self._won: deque[bool] = deque(maxlen=TRADES)
        self._trade_id: str | None = None
        self._low, self._high = math.inf, -math.inf  # of the bars since the entry, index points
        self._exposed = 0.0  # USD per index point of the true range over equity, a fraction
        held = plan.held.get(TABLE, ())
        names = [name for name in HELD if name in held and name not in brought]
        self._from = np.array([HELD.index(name) for name in names], dtype=np.intp)
        self._to = np.array([held.index(name) for name in names], dtype=np.intp)
        self._held = features.held(TABLE)
        outputs = {name: k for k, name in enumerate(plan.outputs)}
        self._atr_at = outputs["atr_14"]
        self._exposure_at = None if EXPOSURE in brought else outputs.get(EXPOSURE)
        self.values: Floats = np.full(len(HELD), np.nan)
        """As :data:`HELD`, of the last bar."""
        self.written = (*names, *(() if self._exposure_at is None else (EXPOSURE,)))
        """The inputs that are made here."""

    def closed(self, profit: float) -> None:
        """A trade was closed with this profit, USD after fees; before the bar in which that is known."""
        self._won.append(profit > 0.0)

    def see(self, high: float, low: float, close: float, account: Account, position: Position | None) -> None:
        """Before a bar's row: hold what is known of the account at its close.

        Parameters
        ----------
        high, low, close
            Of the bar, on the scale of the contract that is traded, index points.
        account
            As the venue reports it at the bar's close; the controller has been marked with it.
        position
            The open position, or None.
        """
        controller, limits, value = self._controller, self._limits, self._point_value
        contracts, equity = abs(float(account.position)), float(account.equity)
        sound = math.isfinite(equity) and math.isfinite(contracts)
        drawdown = controller.drawdown
        worst = best = 0.0 if contracts == 0.0 else math.nan
        loss = 0.0 if contracts == 0.0 else math.inf  # from the close to the stop, USD
        if position is None:
            self._trade_id = None
        else:
            if position.trade_id != self._trade_id:
                self._trade_id, self._low, self._high = position.trade_id, math.inf, -math.inf
            self._low, self._high = min(self._low, low), max(self._high, high)
            size, entry = abs(position.quantity) * value, position.entry_price
            below, above = min(self._low - entry, 0.0) * size, max(self._high - entry, 0.0) * size
            long = position.quantity > 0
            worst, best = (below, above) if long else (0.0 - above, 0.0 - below)
            if position.stop is not None:
                loss = max((close - position.stop) if long else (position.stop - close), 0.0) * size
        margin = _share(contracts * limits.margin_per_contract, equity) if sound else math.nan
        at_stop = _share(loss, limits.max_trade_risk * equity) if sound else math.nan
        of_limit = _share(drawdown, controller.limit)
        overtrading = controller.score
        scores = (overtrading, margin, at_stop, of_limit)
        known = math.isfinite(overtrading + margin + at_stop + of_limit)
        self.values[:] = (
            drawdown,
            contracts / limits.max_position,
            worst,
            best,
            *scores,
            max(scores) if known else math.nan,
            sum(self._won) / TRADES if len(self._won) == TRADES else math.nan,
        )
        self._held[self._to] = self.values[self._from]
        self._exposed = contracts * value / equity if sound and equity > 0.0 else math.nan

    def step(self, row: Floats) -> None:
        """After it: write ``trade_volatility_exposure`` into the row (outputs,)."""
        if self._exposure_at is not None:
            row[self._exposure_at] = self._exposed * row[self._atr_at]

    def save(self) -> dict[str, Any]:
        """The state, JSON-safe."""
        spread = None if self._trade_id is None else [self._low, self._high]
        return {"won": list(self._won), "trade_id": self._trade_id, "spread": spread}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from :meth:`save`."""
        self._won.clear()
        self._won.extend(saved["won"])
        self._trade_id = saved["trade_id"]
        self._low, self._high = saved["spread"] or (math.inf, -math.inf)


def _share(part: float, whole: float) -> float:
    """``part / whole`` in 0..1; 1 where something stands against nothing, NaN where either is unknown."""
    if math.isnan(part) or math.isnan(whole):
        return math.nan
    if part <= 0.0:
        return 0.0
    return min(part / whole, 1.0) if whole > 0.0 else 1.0
