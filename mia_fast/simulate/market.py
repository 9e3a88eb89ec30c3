"""The simulated future: prices, trades, bars and book of one session after another.

The model, from slow to fast:

- ``log VIX`` reverts to a mean and falls when the price rises. It sets the session's volatility, so
  volatility clusters over weeks and reacts to returns (leverage).
- Within a session the standard deviation of a minute is that level times the intraday shape, an
  AR(1) factor that rises after falling prices, and an independent activity factor that also scales
  volume (a subordinated process; Clark, Econometrica 41, 1973). Releases add a jump and a burst.
- A minute's return is spread over its trades by a Brownian bridge. The efficient price between two
  ticks gives bid and ask; a buyer pays the ask, a seller gets the bid. Bars are the aggregation of
  the trades, and the book shows the quotes at which the last trade was made.

Shapes and parameters are round numbers near the averages of ES minute bars of 2019 and of an hour of
its order book. All random numbers of a session come from generators keyed by (seed, session number,
purpose): a session does not depend on how many follow it or on which tables are written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mia_fast.clock import NS_PER_MINUTE, NS_PER_SECOND
from mia_fast.simulate.calendar import SESSION_MINUTES, Event

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

TICK = 0.25
LEVELS = 10
TRADING_DAYS = 252

# Purposes of the random streams.
HISTORY, MINUTES, TRADES, BOOK, CHAIN, INTEREST, CROSS = range(7)

# (New York time, contracts per minute, volatility of a minute in basis points); linear in the
# logarithm between the knots. Two knots at 09:29/09:30 and 15:58..16:01 make the jumps.
_SHAPE = (
    (1800, 450, 4.0),
    (1805, 240, 2.2),
    (1830, 110, 1.5),
    (2000, 260, 1.9),
    (2130, 230, 1.7),
    (2300, 110, 1.2),
    (30, 90, 1.05),
    (200, 190, 1.5),
    (300, 450, 2.1),
    (430, 320, 1.7),
    (630, 280, 1.6),
    (730, 380, 1.75),
    (829, 520, 1.9),
    (830, 750, 2.5),
    (900, 780, 2.0),
    (929, 1600, 2.3),
    (930, 11500, 5.6),
    (931, 7800, 5.0),
    (940, 5700, 4.5),
    (1000, 4300, 3.9),
    (1030, 3200, 3.4),
    (1130, 2500, 3.0),
    (1230, 1700, 2.45),
    (1330, 1500, 2.35),
    (1430, 1750, 2.65),
    (1530, 2600, 3.0),
    (1550, 4800, 3.8),
    (1558, 7700, 4.4),
    (1559, 30000, 5.6),
    (1600, 17000, 4.0),
    (1601, 5500, 2.9),
    (1605, 2600, 2.3),
    (1614, 3200, 2.4),
    (1615, 1200, 2.0),
    (1630, 300, 1.4),
    (1658, 260, 1.3),
    (1659, 480, 1.8),
)

_REALISED_TO_IMPLIED = 0.85  # realised volatility over VIX: the variance risk premium
_DRIFT = 0.0003  # log return per session
_GAP, _WEEKEND_GAP = 0.10, 0.30  # standard deviation of the gap over that of the session

# log VIX
_VIX_MEAN = float(np.log(18.0))
_VIX_REVERSION = 0.035  # per session: half-life of 20 sessions
_VIX_BETA = 5.5  # fall of log VIX per log return of the future, at the mean; less when VIX is high already
_VIX_BETA_POWER = -0.5
_VIX_NOISE = 0.038  # per session
_VIX_RELIEF = 0.01  # a release with impact 1 takes this much out of it

# The fast volatility factor and the activity of a minute (both in log standard deviation)
_FAST_HALF_LIFE, _FAST_SD, _FAST_LEVERAGE = 70.0, 0.30, -0.45
_ACTIVITY_SD, _ACTIVITY_TO_VOLUME = 0.30, 1.4
_VOLUME_HALF_LIFE, _VOLUME_SD, _VOLUME_TO_FAST = 45.0, 0.40, 0.9

_TRADES_SCALE, _TRADES_POWER = 1.3, 0.45  # trades of a minute = scale * volume ** power
_SIZE_SD = 0.8  # log standard deviation of the trades' shares in the minute's volume
_SIGN_RETURN = 0.8  # weight of the standardised price step in the aggressor's side
_SIGN_MEMORY = np.array([0.8, 0.45, 0.3, 0.26])  # an order is worked in several trades of one side

_BASIS_CARRY = 0.030 * 45 / 365  # (rate - dividend yield) * time to a delivery that never comes nearer
_BASIS_HALF_LIFE, _BASIS_SD = 390.0, 0.5  # minutes, index points

# Mean sizes by level, and their memory over snapshots
_DEPTH = np.array([27.0, 42.0, 48.0, 48.0, 46.0, 45.0, 44.0, 43.0, 43.0, 43.0])
_DEPTH_MEMORY = 0.8 ** np.arange(16.0)
_DEPTH_SD = 0.45
_DEPTH_TILT = 1.2  # log size at the touch per tick of distance of the efficient price from the middle


def generator(seed: int, purpose: int, *key: int) -> np.random.Generator:
    """The random stream of one purpose (and session, and expiry)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, purpose, *key])))


def minute_of(hour: int, minute: int) -> int:
    """Minutes from the session's open (18:00) to a New York time."""
    return (hour * 60 + minute - 18 * 60) % (24 * 60)


def _shapes() -> tuple[Floats, Floats]:
    knots = np.array([minute_of(*divmod(clock, 100)) for clock, _, _ in _SHAPE], dtype=np.float64)
    minutes = np.arange(SESSION_MINUTES, dtype=np.float64)
    volume = np.exp(np.interp(minutes, knots, np.log([float(v) for _, v, _ in _SHAPE])))
    volatility = np.exp(np.interp(minutes, knots, np.log([v for _, _, v in _SHAPE])))
    return volume, volatility / np.sqrt(np.sum(volatility**2))


VOLUME_SHAPE, VOLATILITY_SHAPE = _shapes()


def autoregression(shocks: Floats, half_life: float, initial: float) -> Floats:
    """x[t] = phi x[t-1] + shocks[t], with x[-1] = ``initial`` and phi = 2 ** (-1 / half_life).

    Closed form as a scaled running sum; good to 2 ** (-52 + n / half_life) over n steps.
    """
    weight = 2.0 ** (np.arange(1, shocks.size + 1) / half_life)
    return np.asarray((initial + np.cumsum(shocks * weight)) / weight)


def moving_sum(values: Floats, weights: Floats) -> Floats:
    """Weighted sum over the last ``len(weights)`` rows; the first ``len(weights) - 1`` rows are used up."""
    rows = values.shape[0] - weights.size + 1
    out = np.zeros((rows, *values.shape[1:]))
    for lag, weight in enumerate(weights):
        start = weights.size - 1 - lag
        out += weight * values[start : start + rows]
    return out


@dataclass(slots=True)
class State:
    """What one session hands to the next; all logarithms are natural."""

    log_price: float
    log_vix: float
    fast: float = 0.0
    volume: float = 0.0
    basis: float = 0.0  # deviation of the basis from its carry, index points


@dataclass(frozen=True, slots=True)
class Minutes:
    """One session by the minute; arrays of ``SESSION_MINUTES`` values, at the minutes' ends if not said otherwise."""

    open_ns: int
    start_log: float  # log price after the gap, before the first trade
    returns: Floats  # diffusive log return of each minute
    jumps: Floats  # log jump at the minute's start
    sigma: Floats  # standard deviation of `returns`
    calm: Floats  # sigma over what the shape alone gives: the book is thin when this is high
    volume: Floats  # contracts, before rounding
    log_price: Floats
    log_vix: Floats
    basis: Floats  # future minus cash index, index points

    @property
    def end_ns(self) -> Ints:
        """Instants of the minutes' ends."""
        return self.open_ns + NS_PER_MINUTE * np.arange(1, SESSION_MINUTES + 1, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Trades:
    """The trades of one session in order of time."""

    timestamp: Ints  # nanoseconds, strictly rising
    ticks: Ints  # price in ticks
    size: Ints  # contracts
    buy: Flags  # the aggressor bought
    bid: Ints  # the quotes at which the trade was made, in ticks
    ask: Ints
    within: Floats  # place of the efficient price between two ticks, 0..1
    first: Ints  # index of each minute's first trade


def history(seed: int, count: int, price: float) -> tuple[Floats, Floats, State]:
    """``count`` daily closes before the first session.

    Returns
    -------
    log_price, log_vix
        Arrays of length ``count``; the last log price is ``log(price)``.
    state
        The state in which the first session starts.
    """
    rng = generator(seed, HISTORY)
    shocks, noise = rng.standard_normal((2, count))
    log_vix, log_price = np.empty(count), np.empty(count)
    vix, level = _VIX_MEAN, 0.0
    for day in range(count):
        move = _DRIFT + _daily_sigma(vix) * float(shocks[day])
        vix += _VIX_REVERSION * (_VIX_MEAN - vix) - _vix_beta(vix) * move + _VIX_NOISE * float(noise[day])
        level += move
        log_vix[day], log_price[day] = vix, level
    log_price += np.log(price) - level
    return log_price, log_vix, State(log_price=float(log_price[-1]), log_vix=vix)


def carry(price: float | Floats) -> Any:
    """The mean of the basis for a cash index at ``price``."""
    return price * _BASIS_CARRY


def _daily_sigma(log_vix: float) -> float:
    return float(_REALISED_TO_IMPLIED * np.exp(log_vix) / 100 / np.sqrt(TRADING_DAYS))


def _vix_beta(log_vix: float) -> float:
    return float(_VIX_BETA * np.exp(_VIX_BETA_POWER * (log_vix - _VIX_MEAN)))


def minutes(seed: int, number: int, state: State, open_ns: int, events: list[Event], *, weekend: bool) -> Minutes:
    """Draw session ``number`` from ``state``, which is moved on to the session's end."""
    rng = generator(seed, MINUTES, number)
    gap, vix_gap = rng.standard_normal(2)
    z, surprise, fast_noise, volume_noise, vix_noise, basis_noise, activity = rng.standard_normal((7, SESSION_MINUTES))
    daily = _daily_sigma(state.log_vix)

    jumps, burst, busy, relief = np.zeros((4, SESSION_MINUTES))
    burst += 1.0
    busy += 1.0
    elapsed = np.arange(SESSION_MINUTES, dtype=np.float64)
    for event in events:
        at = (event.start_ns - open_ns) // NS_PER_MINUTE
        if not 0 <= at < SESSION_MINUTES:
            continue
        release = event.release
        after = np.where(elapsed >= at, np.exp(-np.maximum(elapsed - at, 0.0) / release.decay_minutes), 0.0)
        burst += (release.volatility - 1.0) * after
        busy += (release.volume - 1.0) * after
        jumps[at] += release.jump * surprise[at]
        relief[at] += _VIX_RELIEF * release.impact

    # Volatility of a minute is known at its start: the factor enters with one minute's delay.
    innovation = np.sqrt(1.0 - 2.0 ** (-2.0 / _FAST_HALF_LIFE)) * _FAST_SD
    fast = autoregression(
        innovation * (_FAST_LEVERAGE * z + np.sqrt(1 - _FAST_LEVERAGE**2) * fast_noise), _FAST_HALF_LIFE, state.fast
    )
    known = np.concatenate(([state.fast], fast[:-1]))
    calm = np.exp(known - _FAST_SD**2)
    active = np.exp(_ACTIVITY_SD * activity - _ACTIVITY_SD**2)
    sigma = daily * VOLATILITY_SHAPE * calm * burst * active
    returns = _DRIFT / SESSION_MINUTES + sigma * z

    innovation = np.sqrt(1.0 - 2.0 ** (-2.0 / _VOLUME_HALF_LIFE)) * _VOLUME_SD
    own = autoregression(innovation * volume_noise, _VOLUME_HALF_LIFE, state.volume)
    level = np.sqrt(np.exp(state.log_vix - _VIX_MEAN))
    volume = VOLUME_SHAPE * level * busy * np.exp(own + _VOLUME_TO_FAST * known) * active**_ACTIVITY_TO_VOLUME

    overnight = daily * (_WEEKEND_GAP if weekend else _GAP) * float(gap)
    start_log = state.log_price + overnight
    moves = returns + jumps
    log_price = start_log + np.cumsum(moves)

    reversion = _VIX_REVERSION / SESSION_MINUTES
    beta = _vix_beta(state.log_vix)
    shocks = reversion * _VIX_MEAN - beta * moves - relief + _VIX_NOISE * VOLATILITY_SHAPE * vix_noise
    shocks[0] += 0.3 * _VIX_NOISE * float(vix_gap) - beta * overnight
    log_vix = autoregression(shocks, float(-np.log(2.0) / np.log1p(-reversion)), state.log_vix)

    innovation = np.sqrt(1.0 - 2.0 ** (-2.0 / _BASIS_HALF_LIFE)) * _BASIS_SD
    deviation = autoregression(innovation * basis_noise, _BASIS_HALF_LIFE, state.basis)
    # future = index + carry(index) + deviation
    index = (np.exp(log_price) - deviation) / (1.0 + _BASIS_CARRY)

    state.log_price, state.log_vix = float(log_price[-1]), float(log_vix[-1])
    state.fast, state.volume, state.basis = float(fast[-1]), float(own[-1]), float(deviation[-1])
    return Minutes(
        open_ns=open_ns,
        start_log=start_log,
        returns=returns,
        jumps=jumps,
        sigma=sigma,
        calm=calm * burst,
        volume=volume,
        log_price=log_price,
        log_vix=log_vix,
        basis=np.exp(log_price) - index,
    )


def trades(seed: int, number: int, session: Minutes) -> Trades:
    """The trades of a session: their sum over a minute is the minute's return and volume."""
    rng = generator(seed, TRADES, number)
    expected = _TRADES_SCALE * session.volume**_TRADES_POWER
    counts = 2 + rng.poisson(expected)
    volume = np.maximum(np.rint(session.volume).astype(np.int64), counts)
    last = np.cumsum(counts) - 1
    first = last - counts + 1
    total = int(last[-1]) + 1
    minute = np.repeat(np.arange(SESSION_MINUTES), counts)

    # Whole microseconds; two trades in the same one are moved apart.
    micros = (np.sort(minute + 0.999 * rng.random(total)) * 6e7).astype(np.int64)
    order = np.arange(total)
    micros = np.maximum.accumulate(micros - order) + order

    z = rng.standard_normal(total)
    running = np.cumsum(z)
    mean = np.diff(running[last], prepend=0.0) / counts
    scale = session.sigma / np.sqrt(counts)
    steps = scale[minute] * (z - mean[minute]) + (session.returns / counts)[minute]
    drive = steps / scale[minute]
    # The first trade after a release is still at the old price; the next two take the jump.
    steps[first + 1] += 0.6 * session.jumps
    steps[np.minimum(first + 2, last)] += 0.4 * session.jumps
    ticks = np.exp(session.start_log + np.cumsum(steps)) / TICK
    below = np.floor(ticks)

    lean = _SIGN_RETURN * drive + np.sqrt(1 - _SIGN_RETURN**2) * moving_sum(
        rng.standard_normal(total + _SIGN_MEMORY.size - 1), _SIGN_MEMORY
    )
    buy = lean > 0
    # The spread is one tick, and two when the market is quick or thin.
    chance = np.minimum(0.015 * session.calm**2 + 4.0 / (100.0 + session.volume), 0.4)[minute]
    draw = rng.random(total)
    bid = below.astype(np.int64) - (draw < chance / 2)
    ask = below.astype(np.int64) + 1 + (draw > 1 - chance / 2)

    share = np.cumsum(np.exp(_SIZE_SD * rng.standard_normal(total)))
    base = np.concatenate(([0.0], share[last[:-1]]))
    portion = (share - base[minute]) / (share[last] - base)[minute]
    filled = np.floor(portion * (volume - counts)[minute] + 0.5).astype(np.int64)
    size = np.diff(filled, prepend=0)
    size[first] = filled[first]
    return Trades(
        timestamp=session.open_ns + micros * 1000,
        ticks=np.where(buy, ask, bid),
        size=size + 1,
        buy=buy,
        bid=bid,
        ask=ask,
        within=ticks - below,
        first=first,
    )


def bars(session: Minutes, deals: Trades) -> dict[str, Any]:
    """Minute bars as the aggregation of the trades; ``timestamp`` is the bar's start."""
    last = np.append(deals.first[1:], deals.ticks.size) - 1
    volume = np.add.reduceat(deals.size, deals.first)
    bought = np.add.reduceat(np.where(deals.buy, deals.size, 0), deals.first)
    return {
        "timestamp": session.end_ns - NS_PER_MINUTE,
        "open": deals.ticks[deals.first] * TICK,
        "high": np.maximum.reduceat(deals.ticks, deals.first) * TICK,
        "low": np.minimum.reduceat(deals.ticks, deals.first) * TICK,
        "close": deals.ticks[last] * TICK,
        "volume": volume,
        "bid_volume": volume - bought,
        "ask_volume": bought,
        "trade_count": last - deals.first + 1,
    }


def book(seed: int, number: int, session: Minutes, deals: Trades, interval_s: int) -> dict[str, Any]:
    """Ten levels at the end of every ``interval_s`` seconds, one millisecond before the boundary.

    The millisecond keeps a bar's last snapshot inside the bar whether its end is read as open or
    closed. The touch is the pair of quotes at which the last trade was made.
    """
    rng = generator(seed, BOOK, number)
    step = interval_s * NS_PER_SECOND
    offset = np.arange(step, SESSION_MINUTES * NS_PER_MINUTE + 1, step, dtype=np.int64) - 1_000_000
    at = np.searchsorted(deals.timestamp, session.open_ns + offset, side="right") - 1
    noise = rng.standard_normal((offset.size + _DEPTH_MEMORY.size - 1, 2 * LEVELS))
    noise = moving_sum(noise, _DEPTH_MEMORY / np.sqrt(np.sum(_DEPTH_MEMORY**2)))
    minute = offset // NS_PER_MINUTE
    # Night books hold about as much as the day's: size follows volume only weakly.
    scale = (session.volume / 1000.0) ** 0.15 / np.sqrt(session.calm)
    traded = at >= 0
    offset, at, noise, minute = offset[traded], at[traded], noise[traded], minute[traded]
    sizes = scale[minute, None] * np.tile(_DEPTH, 2) * np.exp(_DEPTH_SD * noise - _DEPTH_SD**2 / 2)
    tilt = np.exp(_DEPTH_TILT * (deals.within[at] - 0.5))
    sizes[:, 0] *= tilt
    sizes[:, LEVELS] /= tilt
    whole = np.maximum(np.rint(sizes), 1.0).astype(np.int64)

    columns: dict[str, Any] = {"timestamp": session.open_ns + offset}
    for level in range(LEVELS):
        columns[f"bid_price_{level + 1}"] = (deals.bid[at] - level) * TICK
        columns[f"bid_size_{level + 1}"] = whole[:, level]
    for level in range(LEVELS):
        columns[f"ask_price_{level + 1}"] = (deals.ask[at] + level) * TICK
        columns[f"ask_size_{level + 1}"] = whole[:, LEVELS + level]
    return columns
