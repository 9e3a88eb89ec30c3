"""The simulated SPX chain: quotes around a surface that admits no static arbitrage.

Total implied variance follows SSVI with the power-law function (Gatheral and Jacquier, "Arbitrage-free
SVI volatility surfaces", Quantitative Finance 14, 2014, equations 4.1 and 4.5). Their theorems 4.1 and
4.2 hold for the parameters below at every level of variance, because

    theta phi(theta)^2 (1 + |rho|) <= 3.1 < 4  and  theta phi(theta) (1 + |rho|) <= 3 < 4,

and because theta rises with time to expiry. Time is measured in variance: a session counts one
trading day, of which the cash session takes 65 %; scheduled releases add the variance of their jumps.
Prices are Black's (1976) on the forward. Nothing here is shared with the code that reads chains.
"""

from __future__ import annotations

import datetime as dt
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from mia_fast.clock import NS_PER_SECOND
from mia_fast.simulate import calendar
from mia_fast.simulate.calendar import Event
from mia_fast.simulate.market import CHAIN, INTEREST, TRADING_DAYS, Floats, generator

RATE, DIVIDEND_YIELD = 0.043, 0.013  # continuously compounded, per year of 365 days
SNAPSHOTS = ((10, 0), (12, 30), (15, 30))  # New York

RHO, ETA, GAMMA = -0.7, 1.75, 0.4

_LONG_VARIANCE, _REVERSION, _FLOOR = 0.17**2, 6.0, 0.002  # per year
_ATM_TO_VIX = 0.88  # at-the-money volatility over VIX at 30 days: VIX also sees the skew
_CASH_SHARE = 0.65
_MONTH, _QUARTER = 21 / TRADING_DAYS, 64 / TRADING_DAYS
_EVENT_HORIZON = dt.timedelta(days=40)
_SECONDS_PER_YEAR = 31_536_000
_STRIKE_UNIT = 5
_INTEREST_STRIKES = 6000  # the streams of open interest cover strikes up to 30,000

_erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True, slots=True)
class Expiry:
    """One listed expiry: ``root`` SPX settles in the morning (AM), SPXW at the close (PM)."""

    date: dt.date
    root: str
    days: int  # sessions after today up to and including the expiry
    size: float  # scale of open interest

    @property
    def settlement(self) -> str:
        return "AM" if self.root == "SPX" else "PM"

    @property
    def settle_ns(self) -> int:
        return calendar.new_york_ns(self.date, *((9, 30) if self.root == "SPX" else (16, 0)))


def term_variance(vix: float | Floats, years: float | Floats) -> Any:
    """Total at-the-money variance over ``years`` (252 trading days each) for a level of VIX.

    The expectation of a mean-reverting variance (Heston, Review of Financial Studies 6, 1993), set so
    that the volatility of 30 days is ``_ATM_TO_VIX`` times VIX. Rises with ``years``.
    """
    month = (_ATM_TO_VIX * np.asarray(vix) / 100) ** 2
    weight = -math.expm1(-_REVERSION * _MONTH) / (_REVERSION * _MONTH)
    now = np.maximum(_LONG_VARIANCE + (month - _LONG_VARIANCE) / weight, _FLOOR)
    return _LONG_VARIANCE * years - (now - _LONG_VARIANCE) * np.expm1(-_REVERSION * np.asarray(years)) / _REVERSION


def vix3m(vix: Floats) -> Floats:
    """The three-month index that goes with VIX on the same term structure."""
    return np.asarray(100 / _ATM_TO_VIX * np.sqrt(term_variance(vix, _QUARTER) / _QUARTER))


def ssvi(k: Floats, theta: float) -> Floats:
    """Total variance at log strike over forward ``k`` for at-the-money total variance ``theta``."""
    phi = ETA / (theta**GAMMA * (1 + theta) ** (1 - GAMMA))
    return np.asarray(theta / 2 * (1 + RHO * phi * k + np.sqrt((phi * k + RHO) ** 2 + 1 - RHO**2)))


def black(forward: float, strike: Floats, variance: Floats, discount: float) -> tuple[Floats, Floats]:
    """Call and put prices from total variance (Black, Journal of Financial Economics 3, 1976).

    The out-of-the-money side is computed and the other follows from parity, so that parity is exact.
    """
    root = np.sqrt(variance)
    d1 = np.log(forward / strike) / root + root / 2
    sign = np.where(strike >= forward, 1.0, -1.0)
    upper = 0.5 * (1 + _erf(sign * d1 / math.sqrt(2)))
    lower = 0.5 * (1 + _erf(sign * (d1 - root) / math.sqrt(2)))
    out = np.maximum(discount * sign * (forward * upper - strike * lower), 0.0)
    parity = discount * (forward - strike)
    return np.where(sign > 0, out, out + parity), np.where(sign > 0, out - parity, out)


def expiries(today: dt.date) -> list[Expiry]:
    """What is listed: SPXW for eight sessions, seven Fridays and three month ends; SPX for third Fridays."""
    weekly = dict.fromkeys(calendar.sessions_from(today, 8), 0.35)
    for week in range(7):
        friday = calendar.on_or_before(today + dt.timedelta(days=4 - today.weekday() + 7 * week))
        if friday >= today:
            weekly[friday] = 0.8
    monthly: dict[dt.date, float] = {}
    for ahead in range(13):
        year, month = today.year + (today.month - 1 + ahead) // 12, (today.month - 1 + ahead) % 12 + 1
        if ahead < 3 and (end := calendar.on_or_before(calendar.month_end(year, month))) >= today:
            weekly[end] = 1.5
        third = calendar.on_or_before(calendar.nth_weekday(year, month, 4, 3))
        # An AM contract stops trading on the eve and settles at the open of its last day.
        if third > today and (month % 3 == 0 or ahead < 5):
            monthly[third] = (7.0 if month % 3 == 0 else 3.5) / (1 + 0.12 * ahead)
    listed = [("SPXW", day, size) for day, size in weekly.items()]
    listed += [("SPX", day, size) for day, size in monthly.items()]
    closed = [day for year in (today.year, today.year + 1) for day in calendar.holidays(year)]
    tomorrow = today + dt.timedelta(days=1)
    return sorted(
        (
            Expiry(day, root, int(np.busday_count(tomorrow, day + dt.timedelta(days=1), holidays=closed)), size)
            for root, day, size in listed
        ),
        key=lambda expiry: (expiry.date, expiry.root),
    )


def strikes(expiry: Expiry, reference: float) -> Floats:
    """The listed strikes: every 5 points near ``reference`` for the first ten sessions, wider steps beyond."""
    bands: tuple[tuple[int, float, float], ...]
    if expiry.days <= 10:
        bands = ((5, 0.970, 1.030), (25, 0.900, 1.060))
    elif expiry.days <= 45:
        bands = ((25, 0.920, 1.055), (50, 0.800, 1.120))
    else:
        bands = ((25, 0.940, 1.060), (50, 0.800, 1.160), (100, 0.600, 1.300))
    listed = {
        strike
        for step, low, high in bands
        for strike in range(math.ceil(reference * low / step) * step, int(reference * high) + 1, step)
    }
    return np.array(sorted(listed), dtype=np.float64)


@functools.lru_cache(maxsize=128)
def _interest_noise(seed: int, expiry: int, root: str) -> Floats:
    """Standard normals by type and strike / 5: a contract keeps its own from day to day."""
    rng = generator(seed, INTEREST, expiry, len(root))
    return rng.standard_normal((2, _INTEREST_STRIKES))


def open_interest(seed: int, number: int, expiry: Expiry, strike: Floats, reference: float) -> Floats:
    """Contracts held at the start of the session: clustered at round strikes, puts below, calls above.

    Returns shape (2, n), calls first. It grows towards the expiry.
    """
    index = np.minimum((strike / _STRIKE_UNIT).astype(np.int64), _INTEREST_STRIKES - 1)
    noise = _interest_noise(seed, expiry.date.toordinal(), expiry.root)[:, index]
    x = np.log(strike / reference)
    width = 0.02 + 0.05 * math.sqrt(max(expiry.days, 1) / 21)
    calls = np.exp(-(((x - 0.5 * width) / width) ** 2))
    puts = 1.3 * np.exp(-(((x + 0.8 * width) / (1.5 * width)) ** 2))
    roundness = np.select([strike % 100 == 0, strike % 50 == 0, strike % 25 == 0], [6.0, 3.0, 1.8], 1.0)
    held = 1500 * expiry.size * roundness * np.stack([calls, puts]) * np.exp(0.8 * noise)
    today = generator(seed, INTEREST, expiry.date.toordinal(), len(expiry.root), number)
    growth = 1 / (1 + 0.02 * expiry.days) * np.exp(0.03 * today.standard_normal(held.shape))
    return np.asarray(np.floor(held * growth))


def _cash_left(quote_ns: int, today: dt.date) -> float:
    open_ns, close_ns = calendar.new_york_ns(today, 9, 30), calendar.new_york_ns(today, 16, 0)
    return min(max((close_ns - quote_ns) / (close_ns - open_ns), 0.0), 1.0)


def theta(expiry: Expiry, quote_ns: int, today: dt.date, vix: float, events: list[Event]) -> float:
    """At-the-money total variance of an expiry at an instant within the cash session of ``today``."""
    days = expiry.days + _CASH_SHARE * _cash_left(quote_ns, today)
    if expiry.root == "SPX":
        days -= _CASH_SHARE
    ahead = sum(event.release.jump**2 for event in events if quote_ns < event.start_ns < expiry.settle_ns)
    return float(term_variance(vix, days / TRADING_DAYS)) + ahead


def _quotes(price: Floats, intrinsic: Floats) -> tuple[Floats, Floats]:
    """Bid and ask around a model price on SPX's ticks: 0.05 below 3.00, 0.10 from there."""
    half = 0.02 + 0.008 * (price - intrinsic) + 0.006 * intrinsic
    low, high = price - half, price + half
    # Rounding first to 1e-9 keeps a price that is a tick up to arithmetic noise on that tick.
    low_tick, high_tick = np.where(low < 3, 0.05, 0.10), np.where(high < 3, 0.05, 0.10)
    bid = np.maximum(np.floor(np.round(low / low_tick, 9)), 0.0) * low_tick
    ask = np.maximum(np.ceil(np.round(high / high_tick, 9)), 1.0) * high_tick
    return np.asarray(np.round(bid, 2), dtype=np.float64), np.asarray(np.round(ask, 2), dtype=np.float64)


def snapshot(
    seed: int,
    number: int,
    today: dt.date,
    quote_ns: int,
    *,
    underlying: float,
    reference: float,
    vix: float,
) -> dict[str, list[Any]]:
    """The chain as it stands at ``quote_ns``.

    Parameters
    ----------
    underlying
        Cash index, index points.
    reference
        The index near the session's open: strikes and open interest are laid out around it once a day.
    vix
        Level of VIX, points.

    Returns
    -------
    dict
        Columns of the chain table, one entry per contract, by expiry, root, strike and type.
    """
    events = calendar.events_between(today, today + _EVENT_HORIZON)
    passed = 1.0 - _cash_left(quote_ns, today)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("root", "settlement", "expiry", "strike", "type", "bid", "ask", "open_interest", "volume")
    }
    for expiry in expiries(today):
        strike = strikes(expiry, reference)
        years = (expiry.settle_ns - quote_ns) / NS_PER_SECOND / _SECONDS_PER_YEAR
        forward = underlying * math.exp((RATE - DIVIDEND_YIELD) * years)
        discount = math.exp(-RATE * years)
        total = theta(expiry, quote_ns, today, vix, events)
        call, put = black(forward, strike, ssvi(np.log(strike / forward), total), discount)
        price = np.stack([call, put])
        intrinsic = np.maximum(discount * np.stack([forward - strike, strike - forward]), 0.0)
        bid, ask = _quotes(price, intrinsic)
        held = open_interest(seed, number, expiry, strike, reference)
        # Turnover of the day: most near the money and in short expiries; the draw is the day's, so that
        # the volume of a contract only rises from snapshot to snapshot.
        draw = generator(seed, CHAIN, number, expiry.date.toordinal(), len(expiry.root)).standard_normal(held.shape)
        near = np.exp(-((np.log(strike / reference) / (0.006 + 0.02 * math.sqrt(max(expiry.days, 1) / 21))) ** 2))
        turnover = 3000 * near / (0.3 + expiry.days) ** 0.8 * np.exp(0.9 * draw) + 0.02 * held
        traded = np.floor(turnover * passed)

        n = strike.size
        columns["root"] += [expiry.root] * (2 * n)
        columns["settlement"] += [expiry.settlement] * (2 * n)
        columns["expiry"] += [expiry.date] * (2 * n)
        columns["type"] += ["C", "P"] * n
        for name, values in (
            ("strike", np.stack([strike, strike])),
            ("bid", bid),
            ("ask", ask),
            ("open_interest", held.astype(np.int64)),
            ("volume", traded.astype(np.int64)),
        ):
            columns[name] += values.T.ravel().tolist()
    count = len(columns["root"])
    return {
        "quote_time": [quote_ns] * count,
        "market_time": [quote_ns] * count,
        "underlying_price": [round(underlying, 2)] * count,
        **columns,
    }
