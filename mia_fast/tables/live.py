"""The rules of ``bars`` for one live bar, on plain numbers."""

from __future__ import annotations

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
