"""Simulated minute bars for tests: Globex sessions on a tick grid, with gaps, weekends and a change of DST."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

import naive
import numpy as np
from numpy.typing import NDArray

from mia_fast.features import catalogue as catalogues
from mia_fast.features.catalogue import Catalogue
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.plan import Plan, make_plan
from mia_fast.features.sample import inputs_around
from mia_fast.workspace import Workspace, shipped

NEW_YORK = ZoneInfo("America/New_York")
MINUTE = 60_000_000_000
SESSION_MINUTES = 23 * 60
TICK = 0.25

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bars:
    """Closes (n,) int64 ns UTC and the catalogue's inputs, each (n,) float64."""

    known_at: NDArray[np.int64]
    columns: dict[str, Floats]

    def __len__(self) -> int:
        return len(self.known_at)

    def rows(self, keep: slice | NDArray[np.bool_]) -> Bars:
        """Some of the rows."""
        return Bars(self.known_at[keep].copy(), {name: array[keep].copy() for name, array in self.columns.items()})

    def altered(self, **values: Floats) -> Bars:
        """The same bars with other columns."""
        return Bars(self.known_at, {**self.columns, **values})

    def without(self, *names: str) -> Bars:
        """The same bars lacking some columns."""
        return Bars(self.known_at, {name: array for name, array in self.columns.items() if name not in names})

    def injected(self, row: int, **values: float) -> Bars:
        """The same bars with other values at one row."""
        columns = {name: array.copy() for name, array in self.columns.items()}
        for name, value in values.items():
            columns[name][row] = value
        return Bars(self.known_at, columns)


@functools.cache
def catalogue() -> Catalogue:
    """The shipped catalogue."""
    return catalogues.read(Workspace(shipped()))


def with_rows(text: str, *lines: str) -> str:
    """The text of a catalogue with more lines at the end of its features."""
    head, refused, rest = text.partition("\nrefused:")
    return head.rstrip() + "\n" + "\n".join(lines) + "\n" + refused + rest


def plan_for(bars: Bars, *, auxiliary: bool = True, tick_size: float = TICK) -> Plan:
    """The shipped catalogue over these bars' columns, all auxiliary columns put out as well."""
    names = [column.name for column in catalogue().auxiliary] if auxiliary else []
    return make_plan(catalogue(), tuple(bars.columns), bar_minutes=1, tick_size=tick_size, auxiliary=names)


def cut(bars: Bars, ends: Iterable[int]) -> Iterator[Bars]:
    """The bars in blocks that end at these rows, and the rest."""
    start = 0
    for end in (*ends, len(bars)):
        yield bars.rows(slice(start, end))
        start = end


def feed(engine: FeatureEngine, bars: Bars, *, live: bool = False) -> Floats:
    """(outputs, n): all rows in one block, or bar by bar."""
    if not live:
        return engine.batch(bars.known_at, bars.columns)
    rows = np.column_stack([bars.columns[name] for name in engine.plan.bar_inputs]).tolist()
    slow = {t: np.column_stack([bars.columns[n] for n in names]).tolist() for t, names in engine.plan.held.items()}
    out = np.empty((len(engine.plan.outputs), len(bars)))
    for k, (known_at, row) in enumerate(zip(bars.known_at.tolist(), rows, strict=True)):
        for table, values in slow.items():
            if k == 0 or values[k] != values[k - 1]:  # a slow input stands until it is held anew
                engine.hold(table, values[k])
        out[:, k] = engine.update(known_at, row)
    return out


def same_bits(a: Floats, b: Floats, names: Sequence[str] = ()) -> None:
    """Fail where two matrices, or two columns, differ in any bit; all NaN are equal."""
    assert a.shape == b.shape
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    different = (a.copy().view(np.int64) != b.copy().view(np.int64)) & ~(np.isnan(a) & np.isnan(b))
    if different.any():
        row, column = np.argwhere(different.T)[0][::-1]
        name = names[row] if len(names) else row
        raise AssertionError(
            f"{different.sum()} values differ; {name} at {column}: {a[row, column]!r} {b[row, column]!r}"
        )


def session_days(sunday: dt.date, count: int) -> list[dt.date]:
    """The first ``count`` trade dates after a Sunday: weekdays."""
    days: list[dt.date] = []
    day = sunday + dt.timedelta(days=1)
    while len(days) < count:
        if day.weekday() < 5:
            days.append(day)
        day += dt.timedelta(days=1)
    return days


def closes_of(days: Iterable[dt.date]) -> NDArray[np.int64]:
    """The closes of every minute of these sessions, 18:01 of the evening before to 17:00."""
    parts = []
    for day in days:
        evening = day - dt.timedelta(days=1)
        start = dt.datetime(evening.year, evening.month, evening.day, 18, tzinfo=NEW_YORK)
        parts.append(
            int(start.timestamp()) * 1_000_000_000 + MINUTE * np.arange(1, SESSION_MINUTES + 1, dtype=np.int64)
        )
    return np.concatenate(parts)


def prices(rng: np.random.Generator, n: int, start: float = 5000.0) -> dict[str, Floats]:
    """Open, high, low, close and volume of ``n`` bars on the tick grid, volatility in slow waves."""
    wave = np.exp(0.9 * np.sin(np.arange(n) / 700.0) + 0.5 * np.sin(np.arange(n) / 97.0))
    body = np.rint(rng.normal(0.0, 3.0, n) * wave)
    jump = np.rint(rng.normal(0.0, 0.6, n))
    close = start / TICK + np.cumsum(body + jump)
    open_ = close - body
    high = np.maximum(open_, close) + rng.integers(0, 4, n)
    low = np.minimum(open_, close) - rng.integers(0, 4, n)
    volume = np.rint(1 + rng.gamma(2.0, 150.0, n) * wave)
    return {"open": open_ * TICK, "high": high * TICK, "low": low * TICK, "close": close * TICK, "volume": volume}


def event_columns(known_at: NDArray[np.int64]) -> dict[str, Floats]:
    """When the events before and after each bar are: one every 7 hours, every third of them high."""
    step = 7 * 60 * MINUTE
    schedule = np.arange(known_at[0] // step - 5, known_at[-1] // step + 6) * step
    found = {}
    for before, after, starts in (
        ("previous_event_at", "next_event_at", schedule),
        ("last_event_at", "next_high_event_at", schedule[::3]),
    ):
        at = np.searchsorted(starts, known_at, side="right")
        found |= {before: starts[at - 1] / 1e9, after: starts[at] / 1e9}
    return found


def make(
    sessions: int,
    *,
    seed: int = 1,
    sunday: dt.date = dt.date(2024, 2, 25),
    gaps: bool = False,
    minutes: int = 1,
) -> Bars:
    """Whole sessions from a Sunday 18:00 New York on.

    ``gaps`` leaves out 3 % of the minutes one by one, and holes of 2 to 200 minutes, one of them over an
    open. ``minutes`` is the bar's length. The default dates cross a month's end and, from the 11th session
    on, the change to daylight saving time.
    """
    rng = np.random.default_rng(seed)
    days = session_days(sunday, sessions)
    known_at = closes_of(days)[minutes - 1 :: minutes]
    columns = prices(rng, len(known_at))
    dates = [days[0] - dt.timedelta(days=k) for k in range(45, 0, -1)]
    dates = [d for d in dates if d.weekday() < 5] + days
    vix = np.round(18.0 * np.exp(np.cumsum(rng.normal(0.0, 0.05, len(dates)))), 2)
    columns |= inputs_around(catalogue(), known_at, columns, seed=seed)
    columns |= naive.vix_columns(known_at, dates, vix) | event_columns(known_at)
    bars = Bars(known_at, columns)
    if not gaps:
        return bars
    keep = rng.random(len(known_at)) > 0.03
    for length in (2, 4, 8, 16, 31, 45, 61, 90, 130, 200):
        at = int(rng.integers(200, len(known_at) - 200))
        keep[at : at + length] = False
    keep[SESSION_MINUTES // minutes - 3 : SESSION_MINUTES // minutes + 7] = False  # over the second open
    keep[0] = True
    return bars.rows(keep)


def real(folder: Path, rows: int) -> Bars:
    """The first rows of the real ES bars of 2019, with the real daily VIX."""
    import polars as pl

    frame = pl.read_parquet(folder / "bars" / "es_1m_2019.parquet", n_rows=rows)
    known_at = frame["ts"].dt.epoch("ns").to_numpy() + MINUTE
    columns = {
        name: frame[name].cast(pl.Float64).to_numpy().copy() for name in ("open", "high", "low", "close", "volume")
    }
    vix = pl.read_parquet(folder / "vol" / "vix_family_daily_to_202206.parquet")
    vix = vix.filter(pl.col("symbol") == "VIX").drop_nulls("close").sort("date")
    vix = vix.filter(pl.col("date") > frame["ts"][0].date() - dt.timedelta(days=45))
    columns |= naive.vix_columns(known_at, vix["date"].to_list(), vix["close"].to_numpy()) | event_columns(known_at)
    return Bars(known_at, columns)
