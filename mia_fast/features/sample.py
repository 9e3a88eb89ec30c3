"""Simulated values for every input that a catalogue declares, to check features on.

Nothing here is market data or looks like a forecast of it: each column only lies where its unit and
name say that it may, moves, and is present from the first row on. A column that nothing is known of
gets a series by its unit, so that no feature escapes the checks for want of data.
"""

from __future__ import annotations

import datetime as dt
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mia_fast.features.catalogue import Catalogue, InputColumn
from mia_fast.features.events import HIGH_IMPACT
from mia_fast.sessions import session_open

Floats = NDArray[np.float64]
Range = tuple[float | None, float | None]

SESSION_ROWS: Final = 23 * 60
"""Minutes of a whole session, 18:00 to 17:00 New York."""

_MINUTE: Final = 60_000_000_000
_SUNDAY: Final = dt.date(2024, 2, 25)
_TICK: Final = 0.25
_DAILY: Final = ("daily", "cross")
_FOREIGN: Final = ("daily", "minute", "cross")
"""Tables of other markets: their prices are not the traded future's."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Closes (n,) int64 ns UTC and the inputs by name, each (n,) float64."""

    known_at: NDArray[np.int64]
    columns: Mapping[str, Floats]
    tick_size: float = _TICK
    what: str = "the simulated sample"
    bar_minutes: float = 1.0

    def __len__(self) -> int:
        return len(self.known_at)

    def rows(self, keep: slice | NDArray[np.bool_]) -> Sample:
        """Some of the rows."""
        columns = {name: np.ascontiguousarray(values[keep]) for name, values in self.columns.items()}
        return replace(self, known_at=np.ascontiguousarray(self.known_at[keep]), columns=columns)

    def altered(self, columns: Mapping[str, Floats]) -> Sample:
        """The same rows with other values in some columns."""
        return replace(self, columns={**self.columns, **columns})


def is_foreign(column: InputColumn) -> bool:
    """True for a column of another market, whose prices do not scale with the traded future's."""
    return column.table in _FOREIGN


def simulate(catalogue: Catalogue, sessions: int, *, seed: int = 1, wild: bool = False) -> Sample:
    """Whole sessions of one-minute bars with every declared input.

    Parameters
    ----------
    catalogue
        Its ``inputs`` are what is made.
    sessions
        How many, on weekdays from 2024-02-26 on: the first eleven cross a month's end and the change to
        daylight saving time.
    seed
        The same seed gives the same bits.
    wild
        Put in what markets do at their worst: prices that jump by half, nothing moving for hours, no
        volume, enormous volume, scores at their ends, minutes without some column.
    """
    days = [_SUNDAY + dt.timedelta(days=k) for k in range(1, 2 * sessions + 7)]
    days = [day for day in days if day.weekday() < 5][:sessions]
    minutes = _MINUTE * np.arange(1, SESSION_ROWS + 1, dtype=np.int64)
    known_at = np.concatenate([session_open(day) + minutes for day in days])
    maker = _Maker(known_at, seed, wild, _ranges(catalogue))
    columns = {column.name: maker.column(column) for column in catalogue.inputs}
    if wild:
        rng = np.random.default_rng(seed + 1000)
        for values in columns.values():
            values[rng.random(len(values)) < 0.002] = np.nan
    return Sample(known_at, columns, what="the wild simulated sample" if wild else "the simulated sample")


def inputs_around(
    catalogue: Catalogue, known_at: NDArray[np.int64], bars: Mapping[str, Floats], *, seed: int = 1
) -> dict[str, Floats]:
    """Every declared input but open, high, low, close and volume, made to fit those of ``bars``, each (n,)."""
    maker = _Maker(known_at, seed, False, _ranges(catalogue), bars)
    return {column.name: maker.column(column) for column in catalogue.inputs if column.name not in maker.bars}


def _ranges(catalogue: Catalogue) -> dict[str, Range]:
    """Where the values of an input lie, as the feature says that is its copy."""
    return {f.inputs[0]: f.range for f in catalogue.features if f.kernel == "column"}


class _Maker:
    """Draws columns that fit one another: a book around the close, volumes that add up."""

    def __init__(
        self,
        known_at: NDArray[np.int64],
        seed: int,
        wild: bool,
        ranges: Mapping[str, Range],
        bars: Mapping[str, Floats] | None = None,
    ) -> None:
        self.ranges = ranges
        self.known_at, self.seed, self.wild = known_at, seed, wild
        self.n = len(known_at)
        rng = np.random.default_rng(seed)
        wave = np.exp(0.9 * np.sin(np.arange(self.n) / 700.0) + 0.5 * np.sin(np.arange(self.n) / 97.0))
        body = np.rint(rng.normal(0.0, 3.0, self.n) * wave)
        close = 20_000 + np.cumsum(body + np.rint(rng.normal(0.0, 0.6, self.n)))
        wick_up, wick_down = rng.integers(0, 4, self.n), rng.integers(0, 4, self.n)
        volume = np.rint(2 + rng.gamma(2.0, 150.0, self.n) * wave)
        if wild:
            level = np.exp(np.cumsum(np.where(rng.random(self.n) < 0.004, rng.normal(0.0, 0.4, self.n), 0.0)))
            close = np.clip(np.rint(close * np.clip(level, 1e-4, 10.0)), 1, None)
            body = np.where(rng.random(self.n) < 0.01, np.rint(body * rng.choice([0, 40], self.n)), body)
            still = self._stretches(rng, 6, 400)
            close[still] = np.maximum.accumulate(np.where(still, 0, np.arange(self.n)))[still]
            held = close.copy()
            for row in np.flatnonzero(still):
                held[row] = held[row - 1] if row else 20_000
            close, body = held, np.where(still, 0.0, body)
            wick_up, wick_down = np.where(still, 0, wick_up), np.where(still, 0, wick_down)
            volume[self._stretches(rng, 4, 200)] = 0.0
            volume[rng.random(self.n) < 0.003] = 1e9
        open_ = np.clip(close - body, 1, None)
        high, low = np.maximum(open_, close) + wick_up, np.clip(np.minimum(open_, close) - wick_down, 1, None)
        self.bars: dict[str, Floats] = {name: ticks * _TICK for name, ticks in zip(
            ("open", "high", "low", "close"), (open_, high, low, close), strict=True)} | {"volume": volume}  # fmt: skip
        if bars is not None:
            self.bars = {name: np.asarray(bars[name], dtype=np.float64) for name in self.bars}
            volume = self.bars["volume"]
        self.spread = 1 + (rng.random(self.n) < 0.15)
        self.bought = np.rint(volume * np.clip(rng.beta(6.0, 6.0, self.n), 0.0, 1.0))
        self.trades = np.ceil(volume / rng.integers(1, 6, self.n))
        self.trades_up = np.rint(self.trades * np.clip(self.bought / np.maximum(volume, 1.0), 0.0, 1.0))
        self.bid = self.bars["close"] - _TICK * self.spread * (rng.random(self.n) < 0.5)
        self.away = {
            side: np.cumsum([np.zeros(self.n), *(1 + (rng.random((9, self.n)) < 0.05))], axis=0)
            for side in ("bid", "ask")
        }
        self.daily = self._since_16_15()
        self.five = np.arange(self.n) // 5
        """Rows that share the levels of one chain."""
        lasts = float(self.known_at[-1] - self.known_at[0]) / 1e9
        quiet = rng.exponential(5400.0, 200 + int(lasts / 1800.0))  # three times as long, and two weeks
        self.events = 60.0 * np.cumsum(np.rint(quiet / 60.0)) - 2 * 86_400.0 + self.known_at[0] / 1e9
        self.impacts = np.round(rng.beta(1.5, 1.5, len(self.events)), 1)

    def _stretches(self, rng: np.random.Generator, count: int, length: int) -> NDArray[np.bool_]:
        found = np.zeros(self.n, dtype=bool)
        for start in rng.integers(SESSION_ROWS // 2, max(SESSION_ROWS, self.n - length), count):
            found[start : start + length] = True
        return found

    def _since_16_15(self) -> NDArray[np.int64]:
        """Per row, how many days' closes (16:15 New York, 45 minutes before the session's end) are known."""
        return (np.arange(self.n) + 46) // SESSION_ROWS

    def column(self, column: InputColumn) -> Floats:
        """One input, (n,) float64."""
        if column.name in self.bars and not is_foreign(column):
            return self.bars[column.name].copy()
        rng = np.random.default_rng([self.seed, zlib.crc32(column.name.encode())])
        values = np.asarray(self._known(column, rng), dtype=np.float64)
        return np.ascontiguousarray(values)

    def _known(self, column: InputColumn, rng: np.random.Generator) -> Any:
        name, unit = column.name, column.unit
        book = re.fullmatch(r"(bid|ask)_price_(?:level_)?(\d+)", name)
        if book:
            away = self.away[book[1]][int(book[2]) - 1]
            return self.bid - _TICK * away if book[1] == "bid" else self.bid + _TICK * (self.spread + away)
        if column.table == "events" and column.statistic is not None:
            return self._event(column.statistic, 60.0 * (column.minutes or 0))
        if unit == "days since 1970":
            day = (self.known_at // 1_000_000_000 + 7_199) // 86_400  # the trade date, near enough
            return day - 1.0 if "interest" in name else day + (rng.random(int(self.daily[-1]) + 1) < 0.5)[self.daily]
        if name == "net_gamma":  # no more than the unsigned exposure
            return self.column(column.model_copy(update={"name": "gex"})) * np.tanh(_wander(rng, self.n)[self.five])
        split = {
            "ask_volume": self.bought, "bid_volume": self.bars["volume"] - self.bought, "trade_count": self.trades,
            "neutral_volume": np.zeros(self.n) + (rng.random(self.n) < 0.05),
            "ask_trades": self.trades_up, "bid_trades": self.trades - self.trades_up,
            "spread": _TICK * self.spread,
        }.get(name)  # fmt: skip
        if split is not None:
            return split.astype(np.float64)
        if name == "trade_vwap":
            low, high = self.bars["low"], self.bars["high"]
            return low + (high - low) * rng.random(self.n)
        if unit == "s UTC":
            instants = np.concatenate(
                [[self.known_at[0] - 106 * _MINUTE], self.known_at[SESSION_ROWS - 46 :: SESSION_ROWS]]
            )
            return instants[self.daily] / 1e9
        steps = self._steps(column, rng)
        values = self._by_unit(column, rng, steps)
        return _inside(values, self.ranges.get(name, (None, None)))[steps]

    def _event(self, statistic: str, seconds: float) -> Floats:
        """A statistic of the simulated calendar at each bar, see :class:`InputColumn`."""
        now, events = self.known_at / 1e9, self.events
        if statistic.endswith("_at"):
            starts = events[self.impacts > HIGH_IMPACT] if "high" in statistic else events
            found: Floats = starts[np.searchsorted(starts, now, "right") - statistic.startswith("previous")]
            return found
        if statistic in ("next_impact", "previous_impact"):
            return self.impacts[np.searchsorted(events, now, "right") - (statistic == "previous_impact")]
        first, last = {"last": (now - seconds, now), "next": (now, now + seconds)}.get(
            statistic.rpartition("_")[2], (now - 60.0, now)
        )
        begin, end = np.searchsorted(events, first, "right"), np.searchsorted(events, last, "right")
        if statistic == "started_in_bar":
            return (end > begin).astype(np.float64)
        if statistic.startswith("count"):
            return (end - begin).astype(np.float64)
        pairs = zip(begin.tolist(), end.tolist(), strict=True)
        return np.array([self.impacts[begins:ends].sum() for begins, ends in pairs])

    def _steps(self, column: InputColumn, rng: np.random.Generator) -> NDArray[np.int64]:
        """Per row, the number of the value that is in force: tables differ in how often they bring one."""
        table: str = column.table
        if table in _DAILY:
            return self.daily
        if table == "levels":
            return self.five
        if table in ("events", "account"):
            return np.cumsum(rng.random(self.n) < 1 / 15).astype(np.int64)
        return np.arange(self.n)

    def _by_unit(self, column: InputColumn, rng: np.random.Generator, steps: NDArray[np.int64]) -> Any:
        name, unit, count = column.name, column.unit, int(steps[-1]) + 1
        wander = _wander(rng, count)
        signed = bool(re.search(r"delta|ofi|net|change|imbalance|flow|profit|pnl|bias|slope|score|momentum|gex", name))
        close = self.bars["close"][np.searchsorted(steps, np.arange(count))]
        bounds = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*\.\.\s*(-?\d+(?:\.\d+)?)", unit)
        if bounds:
            low, high = float(bounds[1]), float(bounds[2])
            return self._ends(rng, low + (high - low) * (0.5 + 0.5 * np.tanh(wander)), (low, high))
        if re.search(r"\bflag\b|0 or 1|0/1", unit):
            return (wander > 0.5).astype(np.float64)
        labels = re.findall(r"(?:^|, )(-?\d+)(?=[, ]|$)", unit)
        if len(labels) > 1:
            return np.array([float(label) for label in labels])[np.digitize(wander, [-0.6, 0.6][: len(labels) - 1])]
        base = unit.split(" per ")[0].strip()
        if base in ("index points", "points", "price"):
            return self._points(column, rng, close, wander)
        if base in ("contracts", "trades", "orders", "messages", "rows", "shares", "count", "levels", "events", "bars"):
            drawn = np.rint(self._ends(rng, 200.0 * np.exp(0.7 * wander + 0.4 * rng.normal(size=count)), (0.0, 1e8)))
            return np.rint(150.0 * wander + 40.0 * rng.normal(size=count)) if signed else drawn + (not self.wild)
        if base == "USD":
            return 1e6 * (wander if signed else np.exp(0.5 * wander))
        if base in ("percent", "%"):
            return self._ends(rng, 50.0 + 50.0 * np.tanh(wander), (0.0, 100.0))
        if base == "log return":
            return 0.02 * wander
        if base in ("minutes", "hours", "days", "s", "seconds", "years", "ms"):
            return np.abs(20.0 * (1.5 + wander))
        if base == "fraction" or "volatility" in unit or "annual" in unit:
            return self._ends(rng, wander, (-1.0, 1.0)) if signed else 0.2 * np.exp(0.4 * wander)
        return wander if signed or base == "-" else np.exp(0.5 * wander)

    def _points(self, column: InputColumn, rng: np.random.Generator, close: Floats, wander: Floats) -> Any:
        name = column.name
        if is_foreign(column):
            level = 20.0 if "vix" in name or "vvix" in name else 1000.0
            if re.search(r"deviation|std|range", name):
                return level * 0.05 * np.exp(0.4 * wander)
            return np.round(level * np.exp(0.15 * wander + 0.02 * rng.normal(size=len(wander))), 2)
        if re.search(r"spread|width|range|distance|atr|deviation|std|change|mae|mfe", name):
            return _TICK * np.rint(4.0 * np.exp(0.6 * wander))
        side = (
            1.0
            if re.search(r"call|ask|upper|high|max", name)
            else -1.0
            if re.search(r"put|bid|lower|low|min", name)
            else 0.0
        )
        return np.maximum(_TICK, 5.0 * np.rint((close * (1.0 + 0.01 * side) + 20.0 * wander) / 5.0))

    def _ends(self, rng: np.random.Generator, values: Floats, ends: tuple[float, float]) -> Floats:
        """Wild: a tenth of the values at the ends of their range."""
        if not self.wild:
            return values
        return np.where(rng.random(len(values)) < 0.1, rng.choice(ends, len(values)), values)


def _inside(values: Floats, bounds: Range) -> Floats:
    """Values folded or squeezed into a range that they leave."""
    low, high = bounds
    if low is not None and high is not None:
        if (values < low).any() or (values > high).any():
            return low + (high - low) * (0.5 + 0.5 * np.tanh(values / (np.nanstd(values) or 1.0)))
        return values
    if low is not None and (values < low).any():
        return low + np.abs(values - low)
    return high - np.abs(values - high) if high is not None else values


def _wander(rng: np.random.Generator, count: int) -> Floats:
    """A mean-reverting series of about unit size."""
    values = 0.25 * rng.normal(size=count)
    values[0] *= 4.88  # it begins where it may be at any time
    # x[k] = 0.97 x[k - 1] + noise[k], the sum of the past in ever longer stretches: 0.97^1024 is nothing.
    for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        values[step:] += 0.97**step * values[:-step].copy()
    return values
