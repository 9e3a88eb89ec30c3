"""Daily values of other markets, as of each bar: a close counts only once it is known."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

Floats = NDArray[np.float64]

VIX_COLUMNS: Final = ("vix", "vix_known_at", "vix_mean_5", "vix_mean_20", "vix_deviation_20")
"""The inputs of the catalogue that this room makes, in this order."""

STALE_AFTER_NS: Final = 5 * 86_400 * 1_000_000_000
"""A daily close older than this is missing: four days pass over a long week-end, five mean that the feed stopped."""

_CLOSE = 16 * 60 + 15
_NS = 1_000_000_000


class VixHistory:
    """Daily VIX closes with the instant at which each became known (16:15 New York of its date).

    Parameters
    ----------
    known_at
        (n,) int64 ns UTC, ascending.
    close
        (n,) index points.
    """

    def __init__(self, known_at: NDArray[np.int64], close: Floats) -> None:
        self.known_at = known_at
        table = np.full((len(VIX_COLUMNS), len(close) + 1), np.nan)
        table[0, 1:] = close
        table[1, 1:] = known_at / _NS
        for k in range(len(close)):
            if k >= 4:
                table[2, k + 1] = close[k - 4 : k + 1].mean()
            if k >= 19:
                table[3, k + 1] = close[k - 19 : k + 1].mean()
                table[4, k + 1] = close[k - 19 : k + 1].std()
        self._table = table  # column 0: nothing is known yet
        self._known = known_at.tolist()
        self._rows = [tuple(column) for column in table.T.tolist()]

    @classmethod
    def from_cross(cls, frame: pl.DataFrame, symbol: str = "VIX") -> VixHistory | None:
        """Take the daily closes of ``symbol`` out of a canonical cross table; None if it has none.

        The close of a date is its last value stamped at or before 16:15 New York.
        """
        import polars as pl

        rows = frame.filter(pl.col("symbol") == symbol)
        if rows.is_empty():
            return None
        local = pl.col("timestamp").dt.convert_time_zone("America/New_York")
        daily = (
            rows.with_columns(
                date=local.dt.date(),
                minute=local.dt.hour().cast(pl.Int32) * 60 + local.dt.minute().cast(pl.Int32),
            )
            .filter(pl.col("minute") <= _CLOSE)
            .sort("timestamp")
            .group_by("date", maintain_order=True)
            .agg(pl.col("close").last())
            .with_columns(
                known=pl.col("date")
                .dt.combine(pl.time(16, 15))
                .dt.replace_time_zone("America/New_York")
                .dt.convert_time_zone("UTC")
                .dt.epoch("ns")
            )
        )
        return cls(daily["known"].to_numpy().copy(), daily["close"].cast(pl.Float64).to_numpy().copy())

    def columns(self, known_at: NDArray[np.int64]) -> dict[str, Floats]:
        """The inputs as of bars known at ``known_at`` (n,): name -> (n,)."""
        at = np.searchsorted(self.known_at, known_at, side="right")
        # Column 0 of the table is "nothing known"; so is a close that has grown too old.
        at[known_at - self.known_at[at - 1] > STALE_AFTER_NS] = 0
        return {name: self._table[k][at] for k, name in enumerate(VIX_COLUMNS)}

    def at(self, known_at: int) -> tuple[float, ...]:
        """The same for one bar, in the order of :data:`VIX_COLUMNS`."""
        at = bisect.bisect_right(self._known, known_at)
        return self._rows[at if at and known_at - self._known[at - 1] <= STALE_AFTER_NS else 0]
