"""Values of other markets, as of each bar: a close counts only once it is known.

Two readings of one canonical cross table (``timestamp`` is when a value was known, ``symbol``, ``close``, ``volume``):

* **Daily**: the close of a day is the last value stamped at or before the close of the series
  (``cross.daily`` in ``config/inputs.yaml``; 16:15 New York for the VIX) and counts from that close on. Later values of
  the day belong to no day. A close older than five days is missing: four pass over a long week-end, five mean that the
  feed stopped.
* **Minute**: every value counts from its stamp on, for five minutes - except a day's single value: one stamped
  exactly at the close of its series with no other in the five minutes before it. The rule looks back only, so that a
  value that comes later changes no earlier row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mia_fast.errors import DataError
from mia_fast.features.asof import Floats, Integers, Steps, expiring
from mia_fast.features.catalogue import InputColumn

if TYPE_CHECKING:
    import polars as pl

    from mia_fast.tables.mapping import Close, Daily

_NS = 1_000_000_000
STALE_AFTER_NS: Final = 5 * 86_400 * _NS
"""A daily close older than this is missing."""
MINUTE_STALE_NS: Final = 300 * _NS
"""A minute close older than this is missing."""
STRESS: Final = "VIX"
"""Its closes above their mean over the period mark the dates of ``stress_correlation``."""
FEWEST_STRESSED: Final = 10


class DailyHistory(Steps):
    """The declared statistics over daily closes, as of each instant."""

    @classmethod
    def from_cross(cls, frame: pl.DataFrame, inputs: Sequence[InputColumn], closes: Daily) -> DailyHistory | None:
        """The inputs of table ``daily`` that ``frame`` has the series for; None if there are none.

        Parameters
        ----------
        frame
            A canonical cross table, of one or several sources.
        inputs
            The catalogue's inputs.
        closes
            When the day of each series ends: ``cross.daily`` of ``config/inputs.yaml``.

        Raises
        ------
        DataError
            A series has values, but none at or before the close of its day.
        """
        present = set(frame["symbol"].unique().to_list())
        series = _Series(frame, closes)
        parts = []
        for column in inputs:
            if column.table == "daily" and present.issuperset(_symbols(column)):
                known, values = _STATISTICS[column.statistic or ""](series, column)
                parts.append((column.name, *expiring(known, values, STALE_AFTER_NS)))
        if not parts:
            return None
        merged = cls.merged("daily", parts)
        return cls("daily", merged.names, merged.instants, merged.values)


class MinuteHistory(Steps):
    """The last minute closes and volumes of other markets, as of each instant."""

    @classmethod
    def from_cross(cls, frame: pl.DataFrame, inputs: Sequence[InputColumn], closes: Daily) -> MinuteHistory | None:
        """The inputs of table ``minute`` that ``frame`` has minute values for; None if there are none."""
        series = _Series(frame, closes)
        parts = []
        for column in inputs:
            if column.table == "minute" and column.statistic in frame.columns:
                known, values = series.minutes(column.series or "", column.statistic)
                if known.size:
                    parts.append((column.name, *expiring(known, values, MINUTE_STALE_NS)))
        if not parts:
            return None
        merged = cls.merged("minute", parts)
        return cls("minute", merged.names, merged.instants, merged.values)


def close_of(symbol: str, closes: Daily) -> Close:
    """When the day of a symbol ends."""
    return next((close for close in closes.closes if symbol in close.symbols), closes.default)


def _symbols(column: InputColumn) -> set[str]:
    """The series that an input needs."""
    needed = {column.series or "", column.other or column.series or ""}
    return needed | {STRESS} if column.statistic == "stress_correlation" else needed


def daily_closes(frame: pl.DataFrame, symbol: str, closes: Daily) -> tuple[Integers, Floats]:
    """The daily closes of one symbol of a canonical cross table: instants known (m,) ns UTC, closes (m,)."""
    day = _Series(frame, closes).day(symbol)
    return day.known, day.close


class _Day:
    """The daily closes of one series: dates (days since 1970), instants known (ns UTC), closes; each (m,)."""

    def __init__(self, date: Integers, known: Integers, close: Floats) -> None:
        self.date, self.known, self.close = date, known, close

    @cached_property
    def log_close(self) -> Floats:
        """NaN where a price is not positive."""
        return np.log(np.where(self.close > 0.0, self.close, np.nan))


class _Series:
    """The series of a cross table, each read once."""

    def __init__(self, frame: pl.DataFrame, closes: Daily) -> None:
        import polars as pl

        # A day that ends at midnight is told from the next by one nanosecond.
        self._frame = frame.with_columns(pl.col("timestamp").cast(pl.Datetime("ns", "UTC")))
        self._closes = closes
        self._days: dict[str, _Day] = {}

    def _rows(self, symbol: str) -> pl.DataFrame:
        """The rows of a symbol in time, with the day that each falls into and that day's close."""
        import polars as pl

        from mia_fast.tables.read import day_close

        close = close_of(symbol, self._closes)
        moment = pl.col("timestamp")
        # The instant at which a day ends belongs to it: a day that ends at 24:00 is not the next one's.
        local = (moment - pl.duration(nanoseconds=1)).dt.convert_time_zone(close.zone)
        return (
            self._frame.filter(pl.col("symbol") == symbol)
            .sort("timestamp", maintain_order=True)
            .with_columns(date=local.dt.date())
            .with_columns(end=day_close(pl.col("date"), close))
        )

    def day(self, symbol: str) -> _Day:
        """The daily closes of a symbol."""
        import polars as pl

        if symbol not in self._days:
            rows = self._rows(symbol)
            daily = (
                rows.filter(pl.col("timestamp") <= pl.col("end"))
                .group_by("date", maintain_order=True)
                .agg(pl.col("close", "end").last())
            )
            if rows.height and not daily.height:
                close = close_of(symbol, self._closes)
                raise DataError(
                    f"all {rows.height} values of {symbol} come after {close.time} {close.zone}, the day's close",
                    where="cross",
                    hint=f"give the close of {symbol} under cross.daily.closes in config/inputs.yaml",
                    then="nothing was computed",
                )
            self._days[symbol] = _Day(
                daily["date"].to_physical().cast(pl.Int64).to_numpy(),
                daily["end"].dt.epoch("ns").to_numpy(),
                daily["close"].cast(pl.Float64).to_numpy(),
            )
        return self._days[symbol]

    def minutes(self, symbol: str, what: str) -> tuple[Integers, Floats]:
        """Instants and values of a symbol, without the values of whole days."""
        import polars as pl

        lone = pl.col("timestamp").diff().fill_null(pl.duration(days=1)) > pl.duration(nanoseconds=MINUTE_STALE_NS)
        rows = self._rows(symbol).filter(~(lone & (pl.col("timestamp") == pl.col("end"))))
        rows = rows.unique("timestamp", keep="last", maintain_order=True)
        return rows["timestamp"].dt.epoch("ns").to_numpy(), _floats(rows[what])

    def common(self, *symbols: str) -> tuple[Integers, list[Floats], list[Floats]]:
        """Of the dates that all series have: the instants at which all are known, closes, log closes."""
        days = [self.day(symbol) for symbol in symbols]
        dates = days[0].date
        for day in days[1:]:
            dates = np.intersect1d(dates, day.date, assume_unique=True)
        at = [np.searchsorted(day.date, dates) for day in days]
        known = np.max([day.known[k] for day, k in zip(days, at, strict=True)], axis=0)
        pairs = list(zip(days, at, strict=True))
        return known, [day.close[k] for day, k in pairs], [day.log_close[k] for day, k in pairs]


def _floats(series: pl.Series) -> Floats:
    import polars as pl

    values: Floats = series.cast(pl.Float64).to_numpy()
    return values


def _windows(values: Floats, period: int) -> Floats:
    """(m - period + 1, period): each stretch of ``period`` values, in its own memory, so that sums have one order."""
    if len(values) < period:
        return np.empty((0, period))
    return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(values, period))


def _late(values: Floats, count: int) -> Floats:
    """Values at the end of ``count`` rows, NaN before."""
    return np.concatenate([np.full(count - len(values), np.nan), values])


Statistic = Callable[[_Series, InputColumn], tuple[Integers, Floats]]


def _last(series: _Series, column: InputColumn) -> tuple[Integers, Floats]:
    day = series.day(column.series or "")
    return day.known, day.close


def _known_at(series: _Series, column: InputColumn) -> tuple[Integers, Floats]:
    day = series.day(column.series or "")
    return day.known, day.known / _NS


def _change(series: _Series, column: InputColumn) -> tuple[Integers, Floats]:
    day = series.day(column.series or "")
    return day.known, _late(np.diff(day.close), len(day.close))


def _over(function: Callable[[Floats], Any]) -> Statistic:
    def statistic(series: _Series, column: InputColumn) -> tuple[Integers, Floats]:
        day = series.day(column.series or "")
        return day.known, _late(function(_windows(day.close, column.period or 1)), len(day.close))

    return statistic


def _log_return(series: _Series, column: InputColumn) -> tuple[Integers, Floats]:
    day, period = series.day(column.series or ""), column.period or 1
    logs = day.log_close
    return day.known, _late(logs[period:] - logs[:-period], len(logs)) if len(logs) > period else np.full(
        len(logs), np.nan
    )


def _pearson(x: Floats, y: Floats, keep: Floats) -> Floats:
    """Correlation of each row's values where ``keep`` is 1, (m, period) each; NaN where one does not vary."""
    with np.errstate(invalid="ignore", divide="ignore"):
        count = keep.sum(axis=1, keepdims=True)
        dx = (x - (x * keep).sum(axis=1, keepdims=True) / count) * keep
        dy = (y - (y * keep).sum(axis=1, keepdims=True) / count) * keep
        spread = np.sqrt((dx * dx).sum(axis=1)) * np.sqrt((dy * dy).sum(axis=1))
        return np.where(spread > 1e-15, np.clip((dx * dy).sum(axis=1) / spread, -1.0, 1.0), np.nan)


def _correlation(series: _Series, column: InputColumn) -> tuple[Integers, Floats]:
    period = column.period or 1
    known, _, logs = series.common(column.series or "", column.other or "")
    x, y = (_windows(np.diff(log), period) for log in logs)
    return known, _late(_pearson(x, y, np.ones_like(x)), len(known))


def _stress_correlation(series: _Series, column: InputColumn) -> tuple[Integers, Floats]:
    period = column.period or 1
    known, closes, logs = series.common(column.series or "", column.other or "", STRESS)
    x, y = (_windows(np.diff(log), period) for log in logs[:2])
    level = _windows(closes[2][1:], period)
    stressed = (level > level.mean(axis=1, keepdims=True)).astype(np.float64)
    enough = stressed.sum(axis=1) >= FEWEST_STRESSED
    return known, _late(np.where(enough, _pearson(x, y, stressed), np.nan), len(known))


_STATISTICS: Final[dict[str, Statistic]] = {
    "last": _last,
    "known_at": _known_at,
    "change": _change,
    "mean": _over(lambda windows: windows.mean(axis=1)),
    "deviation": _over(lambda windows: windows.std(axis=1)),
    "log_return": _log_return,
    "correlation": _correlation,
    "stress_correlation": _stress_correlation,
}
