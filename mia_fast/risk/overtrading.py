"""How busy the desk is against its own history: ``overtrade_risk_score``."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from mia_fast.clock import NS_PER_MINUTE
from mia_fast.errors import StateError
from mia_fast.risk.config import Overtrading
from mia_kernels.account import overtrading

FORMULA = """\
The score is the probability that a desk trading at its own past rate would make *fewer* trades in a window than it
made in the present one:

    score = P(K < k) = sum over j < k of NB(j; a, p),   p = b / (b + w)
    NB(j; a, p) = Gamma(a + j) / (Gamma(a) j!) p^a (1 - p)^j

`k` trades lie in the present window of length `w`; `a = 1/2 + sum of weights` of the earlier trades and
`b = weighted time` they were made in, each weighted `2^(-age / half-life)`. This is the predictive distribution of a
Poisson count whose rate has a Gamma distribution with exponential discounting (Harvey and Fernandes, "Time series
models for count or qualitative observations", Journal of Business and Economic Statistics 7(4), 1989; Jeffreys'
prior 1/2). 0.99 means: at the past rate, one window in a hundred is this busy. No trade in the window gives 0.

Time is active time: it runs only while bars arrive, so nights, weekends and holidays neither dilute the rate nor make
the open look hectic. With less history than `min_trades` weighted trades or `min_windows` weighted windows
the score is 0: too little is known to call anything unusual."""


class TradeRate:
    """Trades on the axis of active time: the present window, and an exponentially weighted past.

    ``tick`` moves time on, ``trade`` records a fill, ``score`` gives 0..1. All cost O(1) per call
    but ``score``, which is O(trades in the window).
    """

    def __init__(self, config: Overtrading) -> None:
        self._window = config.window_minutes * 60.0
        self._decay = math.log(2.0) / (config.half_life_hours * 3600.0)
        self._min_trades = config.min_trades
        self._min_time = config.min_windows * self._window
        self._pause = round(config.pause_minutes * NS_PER_MINUTE)
        self._count = np.empty(1, dtype=np.int64)
        self._past, self._time, self._score = np.empty(1), np.empty(1), np.empty(1)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._last_ns: int | None = None
        self._active = 0.0  # s of active time since the start
        self._recent: deque[float] = deque()  # active times of the trades in the present window
        self._past_trades = 0.0  # weighted, as of `_past_end`
        self._past_time = 0.0  # weighted s, as of `_past_end`
        self._past_end = 0.0  # active time up to which the past is summed: the window's start

    def tick(self, now_ns: int) -> None:
        """The engine's clock stands at ``now_ns``. A clock that goes backwards adds no time."""
        if self._last_ns is not None:
            step = now_ns - self._last_ns
            if 0 < step <= self._pause:
                self._active += step * 1e-9
        self._last_ns = now_ns
        start = self._active - self._window
        while self._recent and self._recent[0] <= start:
            self._age(self._recent.popleft())
            self._past_trades += 1.0
        self._age(start)

    def trade(self, now_ns: int) -> None:
        """A fill at ``now_ns``."""
        self.tick(now_ns)
        self._recent.append(self._active)

    def score(self) -> float:
        """``overtrade_risk_score`` in 0..1; see :data:`FORMULA`."""
        self._count[0] = len(self._recent)
        self._past[0] = self._past_trades
        self._time[0] = self._past_time
        overtrading(self._count, self._past, self._time, self._window, self._min_trades, self._min_time, self._score)
        return float(self._score[0])

    def _age(self, until: float) -> None:
        """Discount the past from its end to ``until`` (active s), and add the time that passed."""
        passed = until - self._past_end
        if passed > 0.0:
            weight = math.exp(-self._decay * passed)
            self._past_trades *= weight
            self._past_time = self._past_time * weight + (1.0 - weight) / self._decay
            self._past_end = until

    def save(self) -> dict[str, Any]:
        """The state as JSON can hold it."""
        return {
            "last_ns": self._last_ns,
            "active": self._active,
            "recent": list(self._recent),
            "past_trades": self._past_trades,
            "past_time": self._past_time,
            "past_end": self._past_end,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state.

        Raises
        ------
        StateError
            As :func:`parse`; the present state is kept.
        """
        self._last_ns, recent, numbers = parse(state)
        self._recent = deque(recent)
        self._active, self._past_trades, self._past_time, self._past_end = numbers


def parse(state: Mapping[str, Any]) -> tuple[int | None, list[float], list[float]]:
    """Last instant, recent trades, and the four sums of a saved state.

    Raises
    ------
    StateError
        A value is missing, not a number, negative or not finite.
    """
    try:
        last_ns = state["last_ns"]
        recent = [float(value) for value in state["recent"]]
        numbers = [float(state[key]) for key in ("active", "past_trades", "past_time", "past_end")]
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(f"the saved trade rate is damaged ({error!r})", where="overtrading") from error
    whole = last_ns is None or type(last_ns) is int
    if not whole or not all(math.isfinite(value) and value >= 0.0 for value in [*numbers, *recent]):
        raise StateError("the saved trade rate holds an impossible number", where="overtrading")
    return last_ns, recent, numbers
