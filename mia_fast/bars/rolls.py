"""Rolls of a continuous future: which contract, from when, and by how much the series jumps there.

Orders and levels use the contract's own price. Only features may see the back-adjusted copy: prices before a roll
moved by the gap between the two contracts at that instant, so that a roll is not a return.
"""

from __future__ import annotations

import datetime as dt
import itertools
import math
import re
from dataclasses import dataclass, replace
from typing import Literal

import polars as pl
from pydantic import Field

from mia_fast.clock import iso
from mia_fast.config import Model, load
from mia_fast.errors import DataError
from mia_fast.sessions import Sessions
from mia_fast.tables import Table
from mia_fast.workspace import Workspace
from mia_kernels.ticks import DEPTH

PRICES = (
    *("open", "high", "low", "close", "trade_vwap"),
    *(f"{side}_price_{level}" for side in ("bid", "ask") for level in range(1, DEPTH + 1)),
)
"""The columns of bars that are prices: what moves with the contract."""
_CODES = "FGHJKMNQUVXZ"
_THEN = "no continuous series was made; a gap is measured, never guessed"


class FixedRoll(Model):
    """A roll that was decided otherwise than by the rule."""

    from_: str = Field(alias="from")
    to: str
    trade_date: dt.date


class RollsConfig(Model):
    """``config/rolls.yaml``."""

    rule: Literal["calendar", "volume"] = "calendar"
    business_days_before_expiry: int = Field(default=6, ge=0, le=30)
    fixed: tuple[FixedRoll, ...] = ()


@dataclass(frozen=True, slots=True)
class Roll:
    """From ``at`` (ns UTC, a session's open) on the series is ``new``; before it ``old``.

    ``gap`` is the price of the new contract minus that of the old one, at ``measured`` (ns UTC).
    """

    old: str
    new: str
    trade_date: dt.date
    at: int
    gap: float
    measured: int


def contract_month(symbol: str, root: str, year: int) -> str | None:
    """``yyyymm`` of a contract: ``201312``, ``ESZ2013``, ``ESZ13`` or ``ESZ3``; None of anything else.

    One or two digits are those of the year nearest to ``year``.
    """
    if re.fullmatch(r"\d{4}(0[1-9]|1[0-2])", symbol):
        return symbol
    found = re.fullmatch(rf"{re.escape(root)}([{_CODES}])(\d|\d\d|\d{{4}})", symbol)
    if found is None:
        return None
    digits = found[2]
    span = 10 ** len(digits)
    near = [year + k for k in range(-span // 2, span // 2 + 1) if (year + k) % span == int(digits)]
    whole = int(digits) if len(digits) == 4 else min(near, key=lambda y: abs(y - year))
    return f"{whole:04d}{_CODES.index(found[1]) + 1:02d}"


def one_series(table: Table, root: str, workspace: Workspace) -> tuple[Table, tuple[Roll, ...]]:
    """Bars of several contracts of ``root`` as one series at the contracts' own prices, with its rolls.

    The frame has :func:`continuous`'s ``adjustment``, and ``symbol`` as ``yyyymm``. A table of one symbol, or of others
    than contracts, comes back as it is, without rolls.

    Raises
    ------
    DataError
        No roll lies inside the bars, or its gap cannot be measured.
    ConfigError
        ``rolls.yaml`` or the product's session table cannot be used.
    """
    if "symbol" not in table.frame.columns or table.frame["symbol"].n_unique() < 2:
        return table, ()
    year = table.frame["timestamp"][0].year
    months = {str(name): contract_month(str(name), root, year) for name in table.frame["symbol"].unique().to_list()}
    if None in months.values():
        return table, ()
    frame = table.frame.with_columns(pl.col("symbol").replace_strict(months, return_dtype=pl.String))
    found = roll_table(frame, rolls(workspace), Sessions.load(workspace, root))
    series = continuous(frame, found)
    note = "; ".join(f"{r.old} to {r.new} at {iso(r.at)}, {r.gap:+g} points" for r in found)
    return replace(table, frame=series.rechunk(), notes=(*table.notes, f"rolled {note}"), rows=None), found


def adjustment(table: tuple[Roll, ...], instant: int) -> float:
    """What features add to the prices of a bar that starts at ``instant`` (ns UTC): the gaps of the rolls after it."""
    return math.fsum(roll.gap for roll in table if roll.at > instant)


def rolls(workspace: Workspace) -> RollsConfig:
    """The desk's ``rolls.yaml``."""
    return load(RollsConfig, workspace.config("rolls.yaml"))


def expiry_date(contract: str) -> dt.date:
    """The third Friday of a contract named ``yyyymm``."""
    first = dt.date(int(contract[:4]), int(contract[4:6]), 1)
    return first + dt.timedelta(days=(4 - first.weekday()) % 7 + 14)


def roll_table(bars: pl.DataFrame, config: RollsConfig, sessions: Sessions) -> tuple[Roll, ...]:
    """The rolls inside a frame of bars of several contracts.

    Parameters
    ----------
    bars
        ``timestamp``, ``symbol`` (the contract as ``yyyymm``), ``close``, ``volume``; ``bid_close`` and ``ask_close``
        are used for the gap where they are: two middles are of one instant, two last trades seldom are.
    config, sessions
        The rule, and the product's hours.

    Raises
    ------
    DataError
        The two contracts have no common minute in the session before the roll.
    """
    contracts = sorted(bars["symbol"].unique().to_list())
    found: list[Roll] = []
    for old, new in itertools.pairwise(contracts):
        fixed = next((f.trade_date for f in config.fixed if f.from_ == old and f.to == new), None)
        if fixed is not None:
            day: dt.date | None = fixed
        elif config.rule == "calendar":
            day = _days_before(expiry_date(old), config.business_days_before_expiry, sessions)
        else:
            day = _by_volume(bars, old, new, sessions)
        session = None if day is None else sessions.of(day)
        if session is None:
            continue
        first, last = bars["timestamp"].dt.epoch("ns").min(), bars["timestamp"].dt.epoch("ns").max()
        assert isinstance(first, int)
        assert isinstance(last, int)
        if not first < session.open <= last:
            continue
        gap, measured = _gap(bars, old, new, session.open)
        found.append(Roll(old, new, session.trade_date, session.open, gap, measured))
    return tuple(found)


def continuous(bars: pl.DataFrame, table: tuple[Roll, ...]) -> pl.DataFrame:
    """Each instant's contract, at its own prices: the series that levels and orders use.

    Adds ``adjustment``, what :func:`back_adjust` adds to the row's prices.
    """
    if not table:
        raise DataError(
            "no roll lies inside the bars",
            where="continuous",
            hint="keep one contract (filters of bars in config/inputs.yaml), or name a roll under fixed in rolls.yaml",
            then=_THEN,
        )
    instant = pl.col("timestamp").dt.epoch("ns")
    contract, adjustment = pl.lit(table[0].old), pl.lit(math.fsum(r.gap for r in table))
    for k, roll in enumerate(table):
        later = math.fsum(r.gap for r in table[k + 1 :])
        contract = pl.when(instant >= roll.at).then(pl.lit(roll.new)).otherwise(contract)
        adjustment = pl.when(instant >= roll.at).then(pl.lit(later)).otherwise(adjustment)
    return bars.filter(pl.col("symbol") == contract).with_columns(adjustment.alias("adjustment")).sort("timestamp")


def back_adjust(frame: pl.DataFrame) -> pl.DataFrame:
    """A copy for features: prices plus ``adjustment``; the last contract keeps its own.

    Differences of prices are those of the contracts; ratios are not. The real price stays in the frame given.
    """
    return frame.with_columns((pl.col(name) + pl.col("adjustment")) for name in PRICES if name in frame.columns)


def _days_before(expiry: dt.date, count: int, sessions: Sessions) -> dt.date | None:
    earlier = [row.trade_date for row in sessions.rows if row.trade_date <= expiry]
    return earlier[-1 - count] if len(earlier) > count and earlier[-1] > expiry - dt.timedelta(days=5) else None


def _by_volume(bars: pl.DataFrame, old: str, new: str, sessions: Sessions) -> dt.date | None:
    """The session after the first one in which ``new`` traded more than ``old``."""
    opens = pl.DataFrame({"open": [r.open for r in sessions.rows], "place": range(len(sessions.rows))})
    volume = (
        bars.filter(pl.col("symbol").is_in([old, new]))
        .select(pl.col("timestamp").dt.epoch("ns").alias("open"), "symbol", "volume")
        .sort("open")
        .join_asof(opens.sort("open"), on="open")
        .group_by("place")
        .agg(
            pl.col("volume").filter(pl.col("symbol") == old).sum().alias("old"),
            pl.col("volume").filter(pl.col("symbol") == new).sum().alias("new"),
        )
        .filter(pl.col("new") > pl.col("old"))
        .sort("place")
    )
    if not volume.height:
        return None
    place = int(volume["place"][0]) + 1
    return sessions.rows[place].trade_date if place < len(sessions.rows) else None


def _gap(bars: pl.DataFrame, old: str, new: str, at: int) -> tuple[float, int]:
    quoted = {"bid_close", "ask_close"} <= set(bars.columns)
    price = (pl.col("bid_close") + pl.col("ask_close")) / 2 if quoted else pl.col("close")
    sides = [
        bars.filter((pl.col("symbol") == contract) & (pl.col("timestamp").dt.epoch("ns") < at))
        .select("timestamp", price.alias(contract))
        .drop_nulls()
        for contract in (old, new)
    ]
    common = sides[0].join(sides[1], on="timestamp").sort("timestamp")
    if quoted:
        common = common.filter(pl.col(old).is_finite() & pl.col(new).is_finite())
    near = common.filter(pl.col("timestamp").dt.epoch("ns") >= at - 4 * 86_400_000_000_000)
    if not near.height:
        raise DataError(
            f"{old} and {new} have no minute in common in the four days before {iso(at)}",
            where="roll_table",
            hint="bring bars of both contracts up to the roll",
            then=_THEN,
        )
    last = near.tail(1)
    return float(last[new][0] - last[old][0]), int(last["timestamp"].dt.epoch("ns")[0])
