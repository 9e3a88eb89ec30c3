"""What the models predict, as numbers per row: each looks forward from the bar's close and says how far.

A value is NaN where the future it needs is not there: at the end of the data, over a session's break, and over
minutes without trades. Rows are bars of one symbol; their timestamps mark the bars' starts, and differences of time
are all that counts, except for the daily VIX.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from mia_fast.errors import DataError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_MINUTE: Final = 60_000_000_000
_ANNUAL_MINUTES: Final = 252 * 23 * 60
_SESSIONS: Final = 60
_BARRIER_BARS: Final = 30


@dataclass(frozen=True, slots=True)
class Target:
    """A target, row by row.

    Attributes
    ----------
    name
        As in the manifest.
    values
        (n,) float64; NaN where unknown. Classes are 0, 1, ...
    ends_at
        (n,) int64 ns UTC: the instant up to which the value looks ahead; training rows must end before a test begins.
    kind
        ``number``, ``yes_no`` (0 or 1) or ``classes``.
    unit
        Of the values.
    """

    name: str
    values: Floats
    ends_at: Integers
    kind: Literal["number", "yes_no", "classes"] = "number"
    unit: str = "-"


@dataclass(frozen=True, slots=True)
class Bars:
    """What targets are made from: columns (n,) by name, and the bars' closes (n,) ns UTC.

    ``vix`` holds the instants (m,) ns UTC at which daily VIX closes became known, and the closes (m,).
    """

    known_at: Integers
    columns: Mapping[str, Floats]
    vix: tuple[Integers, Floats] | None = None

    def of(self, name: str, target: str) -> Floats:
        """A column, or an error that says which target needs it."""
        if name not in self.columns:
            raise DataError(
                f"the target {target!r} needs the column {name!r}",
                where="target",
                hint="give data that has it, or the bars besides (bars=)",
                then="nothing was written",
            )
        return self.columns[name]


def cnn_pressure(bars: Bars) -> Target:
    """Log return of the next 5 minutes by the root of the sum of the last five squared one-minute returns, clipped to
    +-3 and divided by 3."""
    close = bars.of("close", "cnn_pressure")
    ahead = _exactly(bars.known_at, 5 * _MINUTE)
    behind = _exactly(bars.known_at, -5 * _MINUTE)
    whole = behind == np.arange(len(close)) - 5
    recent = np.full(len(close), np.nan)
    recent[5:] = np.sqrt(_sums_of_squares(close, 5))
    recent[~whole] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.where(ahead >= 0, np.log(close[ahead] / close), np.nan) / recent
    values = np.clip(np.where(recent > 0, moved, np.nan), -3.0, 3.0) / 3.0
    return Target("cnn_pressure", values, bars.known_at + 5 * _MINUTE, unit="-1..1")


def predicted_volatility(bars: Bars) -> Target:
    """Realised volatility of the next 30 minutes from one-minute log returns, annualised (252 sessions of 1,380)."""
    values = _realised_ahead(bars, 30, "predicted_volatility")
    scale = np.sqrt(_ANNUAL_MINUTES / 30)
    return Target("predicted_volatility", values * scale, bars.known_at + 30 * _MINUTE, unit="fraction")


def neural_regime(bars: Bars) -> Target:
    """2 (defensive) if the next hour's realised volatility is above the 90th percentile of that of the last 60
    sessions; else 0 (trend) if its efficiency ratio is above 0.35; else 1 (range). Unknown for the first 60 sessions.

    A session begins behind each gap of more than half an hour; all that the percentile rests on was known before the
    session.
    """
    volatility = _realised_ahead(bars, 60, "neural_regime")
    close = bars.of("close", "neural_regime")
    ahead = _exactly(bars.known_at, 60 * _MINUTE)
    path = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(close)))])
    with np.errstate(divide="ignore", invalid="ignore"):
        efficiency = np.abs(close[ahead] - close) / (path[ahead] - path)
    efficiency = np.where(np.isfinite(efficiency), efficiency, 0.0)
    starts = np.flatnonzero(np.diff(bars.known_at, prepend=bars.known_at[:1]) > 30 * _MINUTE)
    edges = np.concatenate([[0], starts, [len(close)]])
    limit = np.full(len(close), np.nan)
    for session in range(_SESSIONS, len(edges) - 1):
        before = volatility[edges[session - _SESSIONS] : edges[session]]
        known = before[np.isfinite(before)]
        if len(known):
            limit[edges[session] : edges[session + 1]] = np.quantile(known, 0.9)
    values = np.where(volatility > limit, 2.0, np.where(efficiency > 0.35, 0.0, 1.0))
    values[~np.isfinite(volatility) | ~np.isfinite(limit)] = np.nan
    return Target("neural_regime", values, bars.known_at + 60 * _MINUTE, "classes", "0 trend, 1 range, 2 defensive")


def trade_success_long(bars: Bars) -> Target:
    """1 if the close plus 1 ATR (14) is touched before the close less 1 ATR within 30 bars, else 0.

    A bar that touches both counts as a loss. Unknown where 30 bars take more than an hour.
    """
    return _triple_barrier(bars, "trade_success_long", 1.0)


def trade_success_short(bars: Bars) -> Target:
    """1 if the close less 1 ATR (14) is touched before the close plus 1 ATR within 30 bars, else 0."""
    return _triple_barrier(bars, "trade_success_short", -1.0)


def predicted_vix(bars: Bars) -> Target:
    """The first daily VIX close that becomes known after the bar."""
    if bars.vix is None:
        raise DataError(
            "the target 'predicted_vix' needs the daily VIX",
            where="target",
            hint="give cross-asset closes with the symbol VIX (cross=, --cross)",
            then="nothing was written",
        )
    known, closes = bars.vix
    at = np.searchsorted(known, bars.known_at, side="right")
    there = at < len(known)
    at = np.where(there, at, 0)
    return Target(
        "predicted_vix",
        np.where(there, closes[at], np.nan),
        np.where(there, known[at], bars.known_at),
        unit="index points",
    )


TARGETS: Final[dict[str, Callable[[Bars], Target]]] = {
    "cnn_pressure": cnn_pressure,
    "predicted_volatility": predicted_volatility,
    "neural_regime": neural_regime,
    "trade_success_long": trade_success_long,
    "trade_success_short": trade_success_short,
    "predicted_vix": predicted_vix,
}
"""The targets that are known by name."""


def make_target(name: str, bars: Bars) -> Target:
    """A target by its name.

    Raises
    ------
    DataError
        There is none of that name, or it needs what the bars lack.
    """
    if name not in TARGETS:
        near = difflib.get_close_matches(name, TARGETS, n=1)
        raise DataError(
            f"there is no target {name!r}",
            where="target",
            hint=f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(TARGETS)}; or give the numbers",
            then="nothing was written",
        )
    return TARGETS[name](bars)


def _exactly(known_at: Integers, distance: int) -> NDArray[np.intp]:
    """The row that lies exactly ``distance`` ns away, or -1."""
    wanted = known_at + distance
    at = np.searchsorted(known_at, wanted)
    inside = at < len(known_at)
    at = np.where(inside, at, 0)
    return np.where(inside & (known_at[at] == wanted), at, -1)


def _sums_of_squares(close: Floats, count: int) -> Floats:
    """(n - count,): of each ``count`` squared log returns in a row, summed anew: running sums would drift."""
    squares = np.log(close[1:] / close[:-1]) ** 2
    if len(squares) < count:
        return np.empty(0)
    total = np.zeros(len(squares) - count + 1)
    for k in range(count):
        total += squares[k : len(squares) - count + 1 + k]
    return total


def _realised_ahead(bars: Bars, minutes: int, target: str) -> Floats:
    """Root of the sum of the squared log returns of the next minutes, all of which must be there; NaN else."""
    close = bars.of("close", target)
    ahead = _exactly(bars.known_at, minutes * _MINUTE)
    whole = ahead == np.arange(len(close)) + minutes
    volatility = np.full(len(close), np.nan)
    sums = _sums_of_squares(close, minutes)
    volatility[: len(sums)] = np.sqrt(sums)
    volatility[~whole] = np.nan
    return volatility


def _triple_barrier(bars: Bars, name: str, side: float) -> Target:
    close, atr = bars.of("close", name), bars.of("atr_14", name)
    high, low = bars.of("high", name), bars.of("low", name)
    n = len(close)
    win = np.zeros(n)
    open_ = np.isfinite(atr)
    gain_at, loss_at = close + side * atr, close - side * atr
    for k in range(1, _BARRIER_BARS + 1):
        rows = np.arange(n - k)
        best, worst = (high, low) if side > 0 else (low, high)
        wins = side * (best[rows + k] - gain_at[rows]) >= 0
        loses = side * (worst[rows + k] - loss_at[rows]) <= 0
        still = open_[rows]
        win[rows[still & wins & ~loses]] = 1.0
        open_[rows[still & (wins | loses)]] = False
    last = np.minimum(np.arange(n) + _BARRIER_BARS, n - 1)
    ends_at = bars.known_at[last]
    known = np.isfinite(atr) & (np.arange(n) + _BARRIER_BARS < n) & (ends_at - bars.known_at <= 60 * _MINUTE)
    return Target(name, np.where(known, win, np.nan), ends_at, "yes_no")
