"""The rules of ``bars`` for one live bar, on plain numbers."""

from __future__ import annotations

import math

_FINITE = 1e300  # the bound of the declared rules; beyond it a price is not a price


def check_bar(
    timestamp_ns: int,
    open: float,
    high: float,
    low: float,
    close: float,
    volume: float,
    previous_known_ns: int | None,
) -> str | None:
    """Say why a live bar must not be used, or None if it may.

    The same rules, in the same order, as :func:`mia_fast.tables.read_table` applies to a table: a bar that passes here
    passes there.

    Parameters
    ----------
    timestamp_ns
        Start of the bar, ns since 1970 UTC. For bars stamped at their end: the end minus the interval.
    open, high, low, close, volume
        Price units; contracts or shares. Python floats are quickest.
    previous_known_ns
        ``known_at`` of the last bar that passed (its close, ns), or None before the first.

    Returns
    -------
    str or None
        ``CATEGORY_CONDITION: key=value``, for instance ``BAR_HIGH_BELOW_LOW: high=10.0 low=11.0``.
    """
    if (
        0.0 < low <= open <= high < _FINITE
        and low <= close <= high
        and 0.0 <= volume < _FINITE
        and (previous_known_ns is None or timestamp_ns >= previous_known_ns)
    ):
        return None
    prices = (("open", open), ("high", high), ("low", low), ("close", close))
    for name, value in prices:
        if not abs(value) < _FINITE:
            return f"BAR_PRICE_NOT_FINITE: {name}={value}"
    for name, value in prices:
        if not value > 0.0:
            return f"BAR_PRICE_NOT_POSITIVE: {name}={value}"
    if high < low:
        return f"BAR_HIGH_BELOW_LOW: high={high} low={low}"
    if not low <= open <= high:
        return f"BAR_OPEN_OUTSIDE_RANGE: open={open} low={low} high={high}"
    if not low <= close <= high:
        return f"BAR_CLOSE_OUTSIDE_RANGE: close={close} low={low} high={high}"
    if not abs(volume) < _FINITE:
        return f"BAR_VOLUME_NOT_FINITE: volume={volume}"
    if not volume >= 0.0:
        return f"BAR_VOLUME_NEGATIVE: volume={volume}"
    return f"BAR_OVERLAPS: timestamp={timestamp_ns} previous_known={previous_known_ns}"


class PriceJumps:
    """Refuses bad prints: a bar that jumps away from the last good close, until others confirm its level.

    One series of bars, one after the other, as they come: nothing looks ahead, so live and batch agree. A bar whose
    high or low lies beyond ``limit`` of the last accepted close is refused. If its close lies there as well it is a
    level that may be true, and the bar that makes ``confirm`` in a row near it is accepted. Behind a pause of
    ``pause_ns`` without an accepted bar there is nothing to measure against: the next bar is accepted.

    Parameters
    ----------
    limit
        Fraction of the last accepted close; infinite: nothing is refused.
    confirm
        Bars in a row, whose closes lie within ``limit`` of one another's, that make a new level.
    pause_ns
        From the start of the last accepted bar to the start of the next: a new session. Bars as long as this are never
        refused.
    """

    __slots__ = ("_confirm", "_high", "_level", "_limit", "_low", "_pause", "_seen", "_start")

    def __init__(self, limit: float, confirm: int, pause_ns: int) -> None:
        self._limit, self._confirm, self._pause = limit, confirm, pause_ns
        self._high, self._low, self._start = math.inf, -math.inf, 0  # the band around the last accepted close
        self._level, self._seen = math.nan, 0  # the close of the last refused bar, and how many lie near it in a row

    def fault(self, start_ns: int, high: float, low: float, close: float) -> str | None:
        """Why this bar, which is sound in itself, must not be used; None if it may, and then :meth:`take` follows."""
        if not self.beyond(start_ns, high, low):
            return None
        last = self._high / (1.0 + self._limit)
        if self._low <= close <= self._high:
            self._seen = 0  # a spike inside the bar: there is no new level to confirm
        elif abs(close - self._level) <= self._limit * self._level:
            self._seen += 1
        else:
            self._seen = 1
        self._level = close
        if self._seen >= self._confirm:
            return None
        return f"BAR_PRICE_JUMP: high={high} low={low} close={close} last={last:.10g} limit={self._limit}"

    def beyond(self, start_ns: int, high: float, low: float) -> bool:
        """Whether a bar leaves the band around the last accepted close; a look that changes nothing."""
        return not (low >= self._low and high <= self._high) and start_ns - self._start < self._pause

    def take(self, start_ns: int, close: float) -> None:
        """This bar was accepted: the next ones are measured against it."""
        self._high, self._low, self._start = close * (1.0 + self._limit), close * (1.0 - self._limit), start_ns
        self._seen = 0

    @property
    def waiting(self) -> bool:
        """A level is to be confirmed."""
        return self._seen > 0

    def save(self) -> list[float]:
        """The state, for :meth:`restore`."""
        return [self._high, self._low, self._start, self._level, self._seen]

    def restore(self, saved: list[float]) -> None:
        """Go on from a saved state."""
        self._high, self._low, start, self._level, seen = saved
        self._start, self._seen = int(start), int(seen)
