"""The obvious slow twins of the features, from their definitions: loops, dictionaries, whole windows.

Nothing here imports a kernel. A value that is missing is NaN; an input that is not finite, or beyond 1e15, is missing.
``Twin(known_at, columns)[name]`` computes any auxiliary column or feature, and what it reads.
"""

from __future__ import annotations

import bisect
import datetime as dt
import math
from collections.abc import Callable, Mapping, Sequence
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NEW_YORK = ZoneInfo("America/New_York")
NAN = math.nan


# --- the wall clock -------------------------------------------------------------------------------


def wall_clock(known_at: NDArray[np.int64]) -> list[dt.datetime]:
    """New York wall clock, whole seconds."""
    return [dt.datetime.fromtimestamp(int(t) // 1_000_000_000, NEW_YORK) for t in known_at]


def trade_date(local: dt.datetime) -> dt.date:
    """The Globex session of a date opens at 18:00 on the evening before; a bar that closes then precedes it."""
    return (local.replace(tzinfo=None) + dt.timedelta(hours=6, microseconds=-1)).date()


def calendar(known_at: NDArray[np.int64]) -> dict[str, Floats]:
    """The calendar columns that formulas may read."""
    local = wall_clock(known_at)
    epoch = dt.date(1970, 1, 1)
    return {
        "time": known_at / 1e9,
        "session_date": np.array([float((trade_date(t) - epoch).days) for t in local]),
        "minute_of_day": np.array([float(t.hour * 60 + t.minute) for t in local]),
        "weekday": np.array([float(t.weekday()) for t in local]),
        "month_day": np.array([float(t.day) for t in local]),
        "month": np.array([float(t.month) for t in local]),
    }


def minutes_to_next(known_at: NDArray[np.int64], hour: int, minute: int) -> Floats:
    """Wall-clock minutes to the next such time of a weekday."""
    out = []
    for local in wall_clock(known_at):
        now = local.replace(tzinfo=None, second=0)
        then = now.replace(hour=hour, minute=minute)
        while then < now or then.weekday() > 4:
            then += dt.timedelta(days=1)
        out.append((then - now).total_seconds() / 60)
    return np.array(out)


def vix_columns(known_at: NDArray[np.int64], dates: Sequence[dt.date], closes: Sequence[float]) -> dict[str, Floats]:
    """What is known of the daily VIX at each bar: a close counts from 16:15 New York of its date on."""
    known = [int(dt.datetime(d.year, d.month, d.day, 16, 15, tzinfo=NEW_YORK).timestamp()) * 10**9 for d in dates]
    names = ("vix", "vix_known_at", "vix_mean_5", "vix_mean_20", "vix_deviation_20")
    out = {name: np.full(len(known_at), NAN) for name in names}
    count = 0
    for i, t in enumerate(known_at):
        while count < len(known) and known[count] <= t:
            count += 1
        if count:
            out["vix"][i], out["vix_known_at"][i] = closes[count - 1], known[count - 1] / 1e9
        if count >= 5:
            out["vix_mean_5"][i] = math.fsum(closes[count - 5 : count]) / 5
        if count >= 20:
            last = closes[count - 20 : count]
            mean = math.fsum(last) / 20
            out["vix_mean_20"][i] = mean
            out["vix_deviation_20"][i] = math.sqrt(math.fsum((x - mean) ** 2 for x in last) / 20)
    return out


# --- one row at a time ----------------------------------------------------------------------------


def finite(x: Floats) -> Floats:
    """What is not finite is missing."""
    return np.where(np.isfinite(x), x, NAN)


def lag(x: Floats, bars: int) -> Floats:
    """The value that many bars back."""
    return np.concatenate([np.full(bars, NAN), x])[: len(x)]


def ago(x: Floats, known_at: NDArray[np.int64], minutes: float) -> Floats:
    """The last value known that many minutes ago."""
    out = np.full(len(x), NAN)
    times = known_at.tolist()
    for i, t in enumerate(times):
        j = bisect.bisect_right(times, t - int(minutes * 60e9)) - 1
        if j >= 0:
            out[i] = x[j]
    return out


def divide(a: Floats, b: Floats) -> Floats:
    """Division; by zero it is missing."""
    with np.errstate(all="ignore"):
        return finite(np.asarray(a, dtype=float) / b)


def log(x: Floats) -> Floats:
    """Natural logarithm, missing for zero and below."""
    return np.array([math.log(v) if v > 0 else NAN for v in x])


def more(a: Floats, b: Floats) -> Floats:
    """1 where a > b, else 0; missing where either is."""
    a, b = np.broadcast_arrays(np.asarray(a, dtype=float), b)
    return np.where(np.isnan(a) | np.isnan(b), NAN, np.where(a > b, 1.0, 0.0))


def at_least(a: Floats, b: Floats) -> Floats:
    """1 where a >= b, else 0; missing where either is."""
    return 1.0 - more(b, a)


def choose(condition: Floats, yes: Floats, no: Floats) -> Floats:
    """The chosen branch decides; the other one may be missing."""
    return np.where(np.isnan(condition), NAN, np.where(condition != 0, yes, no))


def true_range(high: Floats, low: Floats, close: Floats) -> Floats:
    """Wilder 1978: the bar's range, stretched to the close before it."""
    out = np.full(len(high), NAN)
    for i in range(1, len(high)):
        top, bottom, before = high[i], low[i], close[i - 1]
        if not (math.isnan(top) or math.isnan(bottom) or math.isnan(before)):
            out[i] = max(top - bottom, abs(top - before), abs(bottom - before))
    return out


# --- recursive averages: a row without input gives nothing and changes nothing ---------------------


def average(x: Floats, need: int, alpha: float, *, skip: int = 0) -> Floats:
    """Recursive average seeded with the simple average of ``need`` values, after ``skip`` values."""
    out = np.full(len(x), NAN)
    seed: list[float] = []
    value = NAN
    for i, z in enumerate(x):
        if math.isnan(z):
            continue
        if skip:
            skip -= 1
        elif len(seed) < need:
            seed.append(z)
            if len(seed) == need:
                value = math.fsum(seed) / need
                out[i] = value
        else:
            value = value + alpha * (z - value)
            out[i] = value
    return out


def ema(x: Floats, period: int) -> Floats:
    """Exponential average, alpha = 2 / (n + 1)."""
    return average(x, period, 2 / (period + 1))


def wilder(x: Floats, period: int) -> Floats:
    """Wilder's average, alpha = 1 / n."""
    return average(x, period, 1 / period)


def rsi(close: Floats, period: int) -> Floats:
    """Wilder 1978; 0 where nothing moved. A change across a missing close is missing."""
    change = close - lag(close, 1)
    gain = wilder(np.where(np.isnan(change), NAN, np.maximum(change, 0.0)), period)
    loss = wilder(np.where(np.isnan(change), NAN, np.maximum(-change, 0.0)), period)
    total = gain + loss
    with np.errstate(all="ignore"):
        return np.where(np.isnan(total), NAN, np.where(total == 0.0, 0.0, 100.0 * gain / total))


def macd(close: Floats, fast: int, slow: int, signal: int) -> dict[str, Floats]:
    """Appel 1979, all three from the signal's first value on."""
    line = average(close, fast, 2 / (fast + 1), skip=slow - fast) - ema(close, slow)
    smooth = ema(line, signal)
    line = np.where(np.isnan(smooth), NAN, line)
    return {"line": line, "signal": smooth, "histogram": line - smooth}


def adx(high: Floats, low: Floats, ranges: Floats, period: int) -> dict[str, Floats]:
    """Wilder 1978 in his own form: sums from which a period-th is taken off each bar."""
    n = len(high)
    out = {name: np.full(n, NAN) for name in ("adx", "plus_di", "minus_di")}
    sums = [0.0, 0.0, 0.0]
    seen = 0
    strength: list[float] = []
    value = NAN
    for i in range(1, n):
        row = (high[i], low[i], high[i - 1], low[i - 1], ranges[i])
        if any(math.isnan(v) for v in row):
            continue
        up, down = high[i] - high[i - 1], low[i - 1] - low[i]
        moves = (up if up > down and up > 0 else 0.0, down if down > up and down > 0 else 0.0, ranges[i])
        seen += 1
        if seen < period:
            sums = [s + m for s, m in zip(sums, moves, strict=True)]
            continue
        sums = [s - s / period + m for s, m in zip(sums, moves, strict=True)]
        plus, minus = (100 * sums[k] / sums[2] if sums[2] > 0 else 0.0 for k in (0, 1))
        out["plus_di"][i], out["minus_di"][i] = plus, minus
        total = plus + minus
        defined = total > 0
        if len(strength) < period:
            strength.append(100 * abs(plus - minus) / total if defined else 0.0)
            if len(strength) < period:
                continue
            value = math.fsum(strength) / period
        elif defined:
            value = (value * (period - 1) + 100 * abs(plus - minus) / total) / period
        out["adx"][i] = value
    return out


# --- windows: the last rows and nothing else --------------------------------------------------------


def windowed(x: Floats, period: int, function: Callable[[Floats], Floats]) -> Floats:
    """``function`` of every full window (rows of its argument); missing where the window has a missing value."""
    out = np.full(len(x), NAN)
    if len(x) >= period:
        out[period - 1 :] = function(np.lib.stride_tricks.sliding_window_view(x, period))
    return out


def total(parts: Floats) -> Floats:
    return parts.sum(axis=-1)


def mean(parts: Floats) -> Floats:
    return parts.mean(axis=-1)


def largest(parts: Floats) -> Floats:
    return parts.max(axis=-1)


def smallest(parts: Floats) -> Floats:
    return parts.min(axis=-1)


def deviation(parts: Floats, ddof: int) -> Floats:
    """Standard deviation by two passes, from the first value so that equal values give 0."""
    return (parts - parts[..., :1]).std(axis=-1, ddof=ddof)


def correlation(x: Floats, y: Floats, period: int) -> Floats:
    """Pearson's correlation of each full window, in long doubles; missing where either is constant."""

    def deviations(a: Floats) -> NDArray[np.longdouble]:
        parts = np.lib.stride_tricks.sliding_window_view(a, period).astype(np.longdouble)
        return np.where((parts == parts[:, :1]).all(axis=1, keepdims=True), NAN, parts - parts.mean(1, keepdims=True))

    out = np.full(len(x), NAN)
    if len(x) >= period:
        a, b = deviations(x), deviations(y)
        out[period - 1 :] = (a * b).sum(1) / np.sqrt((a * a).sum(1)) / np.sqrt((b * b).sum(1))
    return out


def stochastic(high: Floats, low: Floats, close: Floats, period: int) -> dict[str, Floats]:
    """Lane's slow stochastic; a window without range is 0. %K is given where %D is, as TA-Lib does."""
    top, bottom = windowed(high, period, largest), windowed(low, period, smallest)
    raw = np.full(len(close), NAN)
    for i in range(len(close)):
        width = top[i] - bottom[i]
        if not math.isnan(width) and not math.isnan(close[i]):
            raw[i] = 100 * (close[i] - bottom[i]) / width if width > 0 else 0.0
    k = windowed(raw, 3, mean)
    d = windowed(k, 3, mean)
    return {"k": np.where(np.isnan(d), NAN, k), "d": d}


def time_deviation(returns: Floats, known_at: NDArray[np.int64], minutes: int, bar_minutes: float = 1.0) -> Floats:
    """Sample deviation of the returns whose two closes lie in the last ``minutes``.

    Missing when a return in the window is, when the series has fewer returns than a window without gaps
    holds (the warm-up), and when fewer than two or than half of those are there.
    """
    out = np.full(len(returns), NAN)
    for i, t in enumerate(known_at):
        since = t - minutes * 60 * 10**9
        if i < minutes / bar_minutes:
            continue
        part = []
        j = i
        while j >= 1 and known_at[j - 1] >= since:
            part.append(returns[j])
            j -= 1
        if len(part) >= 2 and 2 * len(part) >= minutes / bar_minutes and not any(math.isnan(r) for r in part):
            out[i] = float(deviation(np.array(part), 1))
    return out


# --- since the session's open -----------------------------------------------------------------------


def sessions(twin: Twin) -> tuple[list[bool], list[bool]]:
    """For each row: does a session begin here, and has the series seen this session's beginning?"""
    date, local = twin["session_date"], wall_clock(twin.known_at)
    open_seconds = 18 * 3600 + round(60 * twin.bar_minutes)
    begins, seen = [], []
    for i in range(len(date)):
        first = i == 0 or date[i] != date[i - 1]
        second = local[i].hour * 3600 + local[i].minute * 60 + local[i].second
        opening = first and (i > 0 or second == open_seconds)
        begins.append(first)
        seen.append(opening or (not first and seen[-1]))
    return begins, seen


def vwap(twin: Twin) -> Floats:
    """Volume-weighted typical price since the open."""
    high, low, close, volume = (twin[name] for name in ("high", "low", "close", "volume"))
    begins, seen = sessions(twin)
    out = np.full(len(close), NAN)
    paid = traded = 0.0
    for i in range(len(close)):
        if begins[i]:
            paid = traded = 0.0
        price = (high[i] + low[i] + close[i]) / 3
        if math.isnan(price) or math.isnan(volume[i]):
            continue
        paid += price * volume[i]
        traded += volume[i]
        if seen[i] and traded > 0:
            out[i] = paid / traded
    return out


PROFILE = ("poc", "vah", "val", "volume_at_poc", "volume_at_vah", "volume_at_val")


def value_area(at: Mapping[int, float]) -> tuple[int, int, int, bool]:
    """Point of control, top and bottom of the value area of a profile by tick.

    The last value says that 70 % was met to 9 digits on the way, so that rounding decides where it ends.
    """
    lowest, highest = min(at), max(at)
    most = max(at.values())
    poc = min(tick for tick, volume in at.items() if volume == most)
    top = bottom = poc
    held, wanted = most, 0.7 * math.fsum(at.values())
    near = abs(held - wanted) <= 1e-9 * wanted
    while held < wanted and (top < highest or bottom > lowest):
        above = at.get(top + 1, 0.0) + at.get(top + 2, 0.0)
        below = at.get(bottom - 1, 0.0) + at.get(bottom - 2, 0.0)
        if bottom == lowest or (top < highest and above >= below):
            top, held = min(top + 2, highest), held + above
        else:
            bottom, held = max(bottom - 2, lowest), held + below
        near = near or abs(held - wanted) <= 1e-9 * wanted
    return poc, top, bottom, near


def profile(twin: Twin) -> dict[str, Floats]:
    """Volume profile since the open: each bar's volume spread evenly over its ticks."""
    high, low, volume = (twin[name] for name in ("high", "low", "volume"))
    begins, seen = sessions(twin)
    out = {name: np.full(len(high), NAN) for name in PROFILE}
    out["near"] = np.zeros(len(high))
    at: dict[int, float] = {}
    first: int | None = None
    for i in range(len(high)):
        if begins[i]:
            at, first = {}, None
        if math.isnan(high[i]) or math.isnan(low[i]) or math.isnan(volume[i]) or not seen[i]:
            continue
        bottom, top = round(low[i] / twin.tick_size), round(high[i] / twin.tick_size)
        first = bottom if first is None else first
        if bottom < first - 4096 or top >= first + 4096:
            first = -(10**9)  # every later bar of the session is too far as well
        if first == -(10**9):
            continue
        for tick in range(bottom, top + 1) if volume[i] > 0 else ():
            at[tick] = at.get(tick, 0.0) + volume[i] / (top - bottom + 1)
        if at:
            *ticks, out["near"][i] = value_area(at)
            for name, tick in zip(PROFILE, ticks, strict=False):
                out[name][i] = tick * twin.tick_size
                out[f"volume_at_{name}"][i] = at.get(tick, 0.0)
    return out


def session_variance(twin: Twin, count: int) -> Floats:
    """sqrt(252 * mean of the last ``count`` whole sessions' sums of squared returns).

    A missing return is left out of its session's sum, and the value, which is of past sessions, stays. A
    session without any return has no variance.
    """
    returns = twin["log_return"]
    begins, seen = sessions(twin)
    out = np.full(len(returns), NAN)
    whole: list[float] = []
    squares: list[float] = []
    for i in range(len(returns)):
        if begins[i]:
            if i > 0 and seen[i - 1]:
                whole.append(math.fsum(squares) if squares else NAN)
            squares = []
        if not math.isnan(returns[i]):
            squares.append(returns[i] ** 2)
        if len(whole) >= count:
            out[i] = math.sqrt(252 * sum(whole[-count:]) / count)
    return out


def return_since(log_close: Floats, known_at: NDArray[np.int64], key: Floats) -> Floats:
    """Return since the last close at or before the instant ``key`` (s).

    That close is looked for among the last 128 bars when a key is first seen; none, if it is not there.
    """
    out = np.full(len(key), NAN)
    times = (known_at / 1e9).tolist()
    last = reference = NAN
    for i in range(len(key)):
        if math.isnan(key[i]):
            continue
        if key[i] != last:
            j = bisect.bisect_right(times, key[i], 0, i + 1) - 1
            last, reference = key[i], log_close[j] if j >= 0 and i - j < 128 else NAN
        out[i] = log_close[i] - reference
    return out


# --- the catalogue ----------------------------------------------------------------------------------


class Twin:
    """Slow values of any column by name."""

    def __init__(
        self,
        known_at: NDArray[np.int64],
        columns: Mapping[str, Floats],
        *,
        tick_size: float = 0.25,
        bar_minutes: float = 1.0,
    ) -> None:
        self.known_at, self.tick_size, self.bar_minutes = known_at, tick_size, bar_minutes
        self._known: dict[str, Floats] = {
            name: np.where(np.abs(array) <= 1e15, array, NAN) for name, array in columns.items()
        }
        self._known |= calendar(known_at)

    def __getitem__(self, name: str) -> Floats:
        if name not in self._known:
            with np.errstate(all="ignore"):
                self._known[name] = finite(TWINS[name](self))
        return self._known[name]

    def group(self, name: str, make: Callable[[], dict[str, Floats]]) -> dict[str, Floats]:
        """Several outputs of one computation, made once."""
        if f"{name}." not in self._known:
            self._known |= {f"{name}.{output}": array for output, array in make().items()}
            self._known[f"{name}."] = np.zeros(0)
        return {key.partition(".")[2]: array for key, array in self._known.items() if key.startswith(f"{name}.")}

    def adx(self, period: int, output: str) -> Floats:
        made = self.group(f"adx {period}", lambda: adx(self["high"], self["low"], self["true_range"], period))
        return made[output]

    def stochastic(self, period: int, output: str) -> Floats:
        made = self.group(f"k {period}", lambda: stochastic(self["high"], self["low"], self["close"], period))
        return made[output]

    def macd(self, output: str) -> Floats:
        return self.group("macd", lambda: macd(self["close"], 12, 26, 9))[output]

    def profile(self, output: str) -> Floats:
        return self.group("profile", lambda: profile(self))[output]

    def volatility(self, period: int) -> Floats:
        return windowed(self["log_return"], period, lambda part: deviation(part, 1))

    def realized(self, minutes: int) -> Floats:
        return time_deviation(self["log_return"], self.known_at, minutes, self.bar_minutes)


def _outside(c: Twin) -> Floats:
    over = c["close"] - lag(c["highest_20"], 1)
    under = lag(c["lowest_20"], 1) - c["close"]
    return np.maximum(0.0, np.maximum(over, under))


def _overlap(c: Twin) -> Floats:
    out = np.full(len(c.known_at), NAN)
    for i, (high, low, top, bottom) in enumerate(zip(c["high"], c["low"], c["vah"], c["val"], strict=True)):
        if any(math.isnan(v) for v in (high, low, top, bottom)):
            continue
        if high > low:
            out[i] = max(0.0, min(high, top) - max(low, bottom)) / (high - low)
        else:
            out[i] = 1.0 if bottom <= high and low <= top else 0.0
    return out


def _regime(c: Twin) -> Floats:
    busy, wild = more(c["session_volatility_index"], np.float64(2.0)), more(c["vol_historical_1d"], np.float64(0.4))
    return choose(np.maximum(busy, wild), np.float64(2.0), choose(more(c["efficiency_ratio_20"], 0.35), 0.0, 1.0))


def _efficiency(c: Twin) -> Floats:
    path = c["path_20"]
    return np.where(path == 0, 0.0, divide(np.abs(c["close"] - lag(c["close"], 20)), path))


def _circle(function: Callable[[float], float], x: Floats) -> Floats:
    return np.array([function(2 * math.pi * v) for v in x])


def _week(c: Twin) -> Floats:
    return (c["month_day"] - 1) // 7 / 5


TWINS: dict[str, Callable[[Twin], Floats]] = {
    # auxiliary
    "true_range": lambda c: true_range(c["high"], c["low"], c["close"]),
    "log_close": lambda c: log(c["close"]),
    "log_return": lambda c: log(divide(c["close"], lag(c["close"], 1))),
    "absolute_change": lambda c: np.abs(c["close"] - lag(c["close"], 1)),
    "path_20": lambda c: windowed(c["absolute_change"], 20, total),
    "sma_20": lambda c: windowed(c["close"], 20, mean),
    "deviation_20": lambda c: windowed(c["close"], 20, lambda part: deviation(part, 0)),
    "ema_20": lambda c: ema(c["close"], 20),
    "atr_10": lambda c: wilder(c["true_range"], 10),
    "highest_9": lambda c: windowed(c["high"], 9, largest),
    "lowest_9": lambda c: windowed(c["low"], 9, smallest),
    "highest_20": lambda c: windowed(c["high"], 20, largest),
    "lowest_20": lambda c: windowed(c["low"], 20, smallest),
    "return_mean_20": lambda c: windowed(c["log_return"], 20, mean),
    "realized_vol_60m": lambda c: c.realized(60),
    "illiquidity": lambda c: divide(np.abs(c["log_return"]), c["close"] * c["volume"]),
    "illiquidity_10": lambda c: windowed(c["illiquidity"], 10, mean),
    "illiquidity_60": lambda c: windowed(c["illiquidity"], 60, mean),
    "efficiency_ratio_20": _efficiency,
    "es_return_since_vix_close": lambda c: return_since(c["log_close"], c.known_at, c["vix_known_at"]),
    "minutes_since_vix_close": lambda c: (c["time"] - c["vix_known_at"]) / 60,
    "minutes_to_next_event": lambda c: (c["next_event_at"] - c["time"]) / 60,
    "minutes_since_event": lambda c: (c["time"] - c["previous_event_at"]) / 60,
    "minutes_to_next_high_event": lambda c: (c["next_high_event_at"] - c["time"]) / 60,
    "minutes_since_high_event": lambda c: (c["time"] - c["last_event_at"]) / 60,
    # trend
    **{f"adx_{n}": lambda c, n=n: c.adx(n, "adx") for n in (7, 14, 21)},
    **{f"plus_di_{n}": lambda c, n=n: c.adx(n, "plus_di") for n in (7, 14, 21)},
    **{f"minus_di_{n}": lambda c, n=n: c.adx(n, "minus_di") for n in (7, 14, 21)},
    **{f"rsi_{n}": lambda c, n=n: rsi(c["close"], n) for n in (7, 14, 21)},
    **{f"momentum_{n}": lambda c, n=n: c["close"] - lag(c["close"], n) for n in (5, 10, 20)},
    "stochastic_k": lambda c: c.stochastic(14, "k"),
    "stochastic_k_7": lambda c: c.stochastic(7, "k"),
    "stochastic_k_21": lambda c: c.stochastic(21, "k"),
    "stochastic_d": lambda c: c.stochastic(14, "d"),
    "stochastic_d_7": lambda c: c.stochastic(7, "d"),
    "stochastic_d_21": lambda c: c.stochastic(21, "d"),
    "macd_line": lambda c: c.macd("line"),
    "macd_signal": lambda c: c.macd("signal"),
    "macd_histogram": lambda c: c.macd("histogram"),
    "bollinger_upper_20": lambda c: c["sma_20"] + 2 * c["deviation_20"],
    "bollinger_lower_20": lambda c: c["sma_20"] - 2 * c["deviation_20"],
    "bollinger_width_20": lambda c: divide(c["bollinger_upper_20"] - c["bollinger_lower_20"], c["sma_20"]),
    "keltner_upper_20": lambda c: c["ema_20"] + 2 * c["atr_10"],
    "keltner_lower_20": lambda c: c["ema_20"] - 2 * c["atr_10"],
    "ichimoku_tenkan": lambda c: (c["highest_9"] + c["lowest_9"]) / 2,
    "vwap": vwap,
    "trend_strength": lambda c: np.where(c["plus_di_14"] < c["minus_di_14"], -1, 1) * c["adx_14"] / 100,
    "trend_rsi": lambda c: c["rsi_14"] - lag(c["rsi_14"], 1),
    # volatility
    **{f"atr_{n}": lambda c, n=n: wilder(c["true_range"], n) for n in (7, 14, 21)},
    "atr_normalized": lambda c: divide(c["atr_14"], c["close"]),
    "range_threshold": lambda c: divide(c["highest_20"] - c["lowest_20"], c["atr_14"]),
    "volatility_trend": lambda c: divide(c["volatility_rolling_10"], c["volatility_rolling_30"]) - 1,
    **{f"volatility_rolling_{n}": lambda c, n=n: c.volatility(n) for n in (10, 20, 30)},
    **{f"realized_vol_{n}m": lambda c, n=n: c.realized(n) for n in (5, 15, 30)},
    "vol_historical_1d": lambda c: session_variance(c, 1),
    "vol_historical_5d": lambda c: session_variance(c, 5),
    "vol_trend_1h": lambda c: divide(c["realized_vol_60m"], ago(c["realized_vol_60m"], c.known_at, 60)) - 1,
    "volatility_breakout_signal": lambda c: more(c["true_range"], 2 * lag(c["atr_14"], 1)),
    "volatility_spike_indicator": lambda c: more(c["realized_vol_5m"], 2 * c["realized_vol_30m"]),
    # profile
    **{name: lambda c, name=name: c.profile(name) for name in PROFILE},
    # scores
    "breakout_score": lambda c: divide(_outside(c), _outside(c) + lag(c["atr_14"], 1)),
    "trend_exhaustion_signal": lambda c: np.abs(c["rsi_14"] - 50) / 50 * more(lag(c["adx_14"], 5), c["adx_14"]),
    "market_momentum_score": lambda c: 0.5 + 0.5 * divide(c["momentum_10"], c["atr_14"] + np.abs(c["momentum_10"])),
    "trend_strength_score": lambda c: c["efficiency_ratio_20"],
    "volatility_score": lambda c: divide(c["atr_7"], c["atr_7"] + c["atr_21"]),
    "market_liquidity_score": lambda c: divide(c["illiquidity_60"], c["illiquidity_60"] + c["illiquidity_10"]),
    "sharpe_ratio_rolling_20": lambda c: divide(c["return_mean_20"], c["volatility_rolling_20"]),
    "price_memory_zone_overlap": _overlap,
    "market_regime": _regime,
    # context
    "time_of_day_sin": lambda c: _circle(math.sin, c["minute_of_day"] / 1440),
    "time_of_day_cos": lambda c: _circle(math.cos, c["minute_of_day"] / 1440),
    "day_of_week": lambda c: c["weekday"],
    "day_of_week_sin": lambda c: _circle(math.sin, c["weekday"] / 7),
    "day_of_week_cos": lambda c: _circle(math.cos, c["weekday"] / 7),
    "week_of_month_sin": lambda c: _circle(math.sin, _week(c)),
    "week_of_month_cos": lambda c: _circle(math.cos, _week(c)),
    "month_of_year_sin": lambda c: _circle(math.sin, (c["month"] - 1) / 12),
    "month_of_year_cos": lambda c: _circle(math.cos, (c["month"] - 1) / 12),
    "time_to_market_open": lambda c: minutes_to_next(c.known_at, 9, 30),
    "time_to_market_close": lambda c: minutes_to_next(c.known_at, 16, 0),
    # cross-asset: the inputs as they are; vix_columns is their twin
    "vix_term_1m": lambda c: c["vix"],
    "vix_rolling_mean": lambda c: c["vix_mean_20"],
    "vix_rolling_std": lambda c: c["vix_deviation_20"],
    # interactions
    "volume_atr_ratio": lambda c: divide(c["volume"], np.maximum(c["atr_14"], c["close"] / 10_000)),
}
"""Every column but the raw inputs, by name."""


def _near(a: Floats, b: Floats) -> NDArray[np.bool_]:
    return np.abs(a - b) <= 1e-9 * np.maximum(np.abs(a), np.abs(b))


UNDECIDED: dict[str, Callable[[Twin], NDArray[np.bool_]]] = {
    "volatility_breakout_signal": lambda c: _near(c["true_range"], 2 * lag(c["atr_14"], 1)),
    "volatility_spike_indicator": lambda c: _near(c["realized_vol_5m"], 2 * c["realized_vol_30m"]),
    "trend_exhaustion_signal": lambda c: _near(lag(c["adx_14"], 5), c["adx_14"]),
    "trend_strength": lambda c: _near(c["plus_di_14"], c["minus_di_14"]),
    **{
        name: lambda c: c.profile("near") > 0
        for name in ("vah", "val", "volume_at_vah", "volume_at_val", "price_memory_zone_overlap")
    },
    "market_regime": lambda c: (
        _near(c["session_volatility_index"], 2.0)
        | _near(c["vol_historical_1d"], 0.4)
        | _near(c["efficiency_ratio_20"], 0.35)
    ),
}
"""Rows at which a threshold is met to 9 digits: rounding decides, so either side is right."""


def nearest(rows, query, mean, weight, k):
    """The k nearest rows: (numbers, squared distances), every distance written out, ties in the order of the rows."""
    found = []
    for i in range(len(rows)):
        total = 0.0
        for j in range(rows.shape[1]):
            x = rows[i, j] if abs(rows[i, j]) <= 1e150 else mean[j]
            q = query[j] if abs(query[j]) <= 1e150 else mean[j]
            total += ((x - q) * weight[j]) ** 2
        found.append((total, i))
    found.sort()
    return [i for _, i in found[:k]], [d for d, _ in found[:k]]
