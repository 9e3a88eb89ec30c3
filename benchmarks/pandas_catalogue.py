"""The catalogue's features as a quant writes them in pandas: one function per kernel, formulas over Series.

Vectorised throughout: rolling, ewm, groupby, cumsum, shift, reindex with ``method="ffill"``. Nothing needs
``rolling.apply``; a rank between sessions' extremes is a rolling minimum and maximum over one value per session. Only
the volume profiles have no pandas expression: they are NumPy matrices of rows x ticks, session by session, and the
value area grows for all rows of a session at once; or, with ``by_bar``, what a script has: a loop over the bars.

An infinite value counts as missing, as it does to any reader of such a frame.
"""

from __future__ import annotations

import ast
import operator
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from mia_fast.features.rows import Column

MINUTE = pd.Timedelta(minutes=1)
DAY = 24 * 60
PROFILE = ("poc", "vah", "val", "volume_at_poc", "volume_at_vah", "volume_at_val")
LOOPS = ("profile", "profile_window")
"""Kernels that loop in Python: over sessions, and over the steps in which a value area grows."""


class Features:
    """Columns of a catalogue by name, each computed once.

    Parameters
    ----------
    rows
        The catalogue's auxiliary columns and features.
    inputs
        A column for each input; the index holds the bars' closes, UTC, ascending.
    tick_size
        Of the prices.
    by_bar
        Whether a volume profile and its value area are made bar by bar.
    """

    def __init__(
        self, rows: Sequence[Column], inputs: pd.DataFrame, tick_size: float = 0.25, by_bar: bool = False
    ) -> None:
        self.by_bar = by_bar
        self.rows = {row.name: row for row in rows if row.kernel != "column" or row.inputs != (row.name,)}
        self.index = pd.DatetimeIndex(inputs.index)
        self.tick_size = tick_size
        self.known: dict[str, pd.Series] = {str(name): inputs[name] for name in inputs}
        self.groups: dict[tuple[Any, ...], dict[str, pd.Series]] = {}
        self.seconds: dict[str, float] = {}
        """The processor's time for each column, without that for the columns it reads."""
        self._inner = 0.0
        self._back: dict[int, np.ndarray] = {}

    def frame(self, names: Sequence[str]) -> pd.DataFrame:
        """These columns."""
        with np.errstate(all="ignore"):
            return pd.DataFrame({name: self[name] for name in names}, index=self.index, copy=False)

    def __getitem__(self, name: str) -> pd.Series:
        if name not in self.known:
            began, outer, self._inner = time.process_time(), self._inner, 0.0
            row = self.rows.get(name)
            if row is None:
                self.known[name] = self.series(CALENDAR[name](self))
            elif row.expression is not None:
                self.known[name] = self.series(_Formula(self).visit(ast.parse(row.expression, mode="eval").body))
            else:
                self.known[name] = KERNELS[row.kernel](self, row)
            took = time.process_time() - began
            self.seconds[name] = took - self._inner
            self._inner = outer + took
        return self.known[name]

    def series(self, values: Any) -> pd.Series:
        """Values as a column; a column as it is."""
        return values if isinstance(values, pd.Series) else pd.Series(values, index=self.index)

    def once(self, key: tuple[Any, ...], make: Callable[[], dict[str, pd.Series]]) -> dict[str, pd.Series]:
        """Several outputs of one computation."""
        if key not in self.groups:
            self.groups[key] = make()
        return self.groups[key]

    def ago(self, x: pd.Series, minutes: int) -> pd.Series:
        """The last value known that many minutes ago."""
        if minutes not in self._back:
            self._back[minutes] = self.index.get_indexer(self.index - minutes * MINUTE, method="ffill")
        back = self._back[minutes]
        return pd.Series(np.where(back >= 0, x.to_numpy()[back], np.nan), index=self.index)

    # --- the wall clock

    @cached_property
    def local(self) -> pd.DatetimeIndex:
        """New York's clock at the bars' closes."""
        return self.index.tz_convert("America/New_York").tz_localize(None)

    @cached_property
    def minute_of_day(self) -> np.ndarray:
        return np.asarray(self.local.hour * 60 + self.local.minute)

    @cached_property
    def session(self) -> pd.DatetimeIndex:
        """The trade date: a session opens at 18:00 on the evening before."""
        return (self.local + pd.Timedelta(hours=6) - pd.Timedelta(1, "us")).normalize()

    @cached_property
    def session_number(self) -> np.ndarray:
        """The sessions of the series counted from 0."""
        return pd.factorize(self.session)[0]

    @cached_property
    def whole(self) -> np.ndarray | None:
        """Where the session's opening has been seen; None if that is everywhere."""
        return None if self.minute_of_day[0] == 18 * 60 + 1 else self.session_number > 0

    def since_open(self, x: pd.Series) -> pd.Series:
        """Missing in a first session that the series did not see open."""
        return x if self.whole is None else x.where(self.whole)

    def by_session(self, x: pd.Series) -> Any:
        """Grouped by session."""
        return x.groupby(self.session_number)


CALENDAR: dict[str, Callable[[Features], Any]] = {
    "time": lambda c: c.index.as_unit("ns").asi8 / 1e9,
    "session_date": lambda c: c.session.as_unit("s").asi8 / 86_400,
    "minute_of_day": lambda c: c.minute_of_day.astype(float),
    "weekday": lambda c: c.local.day_of_week.to_numpy(float),
    "month_day": lambda c: c.local.day.to_numpy(float),
    "month": lambda c: c.local.month.to_numpy(float),
}


# --- formulas ---------------------------------------------------------------------------------------


def _compare(compare: Callable[[Any, Any], Any], a: Any, b: Any) -> pd.Series:
    """1 or 0; missing where either is."""
    return compare(a, b).astype(float).where((a - b).notna())


def _where(condition: pd.Series, yes: Any, no: Any) -> pd.Series:
    """The chosen branch; missing where the condition is."""
    return pd.Series(np.where(condition, yes, no), index=condition.index).where(condition.notna())


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "sqrt": np.sqrt,
    "log": np.log,
    "exp": np.exp,
    "sign": np.sign,
    "floor": np.floor,
    "sin_turn": lambda x: np.sin(2 * np.pi * x),
    "cos_turn": lambda x: np.cos(2 * np.pi * x),
    "min": np.minimum,
    "max": np.maximum,
    "where": _where,
    "lag": lambda x, bars: x.shift(bars),
}
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
}


class _Formula(ast.NodeVisitor):
    """A formula of the catalogue, evaluated over columns."""

    def __init__(self, columns: Features) -> None:
        self.columns = columns

    def visit_Constant(self, node: ast.Constant) -> Any:
        return node.value

    def visit_Name(self, node: ast.Name) -> pd.Series:
        return self.columns[node.id]

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        return _OPERATORS[type(node.op)](self.visit(node.operand))

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        return _OPERATORS[type(node.op)](self.visit(node.left), self.visit(node.right))

    def visit_Compare(self, node: ast.Compare) -> pd.Series:
        a, b = self.visit(node.left), self.visit(node.comparators[0])
        return _compare(_OPERATORS[type(node.ops[0])], a, b)

    def visit_Call(self, node: ast.Call) -> Any:
        assert isinstance(node.func, ast.Name)
        values = [self.visit(part) for part in node.args]
        return self.columns.ago(*values) if node.func.id == "ago" else _FUNCTIONS[node.func.id](*values)


# --- averages ---------------------------------------------------------------------------------------


def _average(x: pd.Series, period: int, alpha: float, skip: int = 0) -> pd.Series:
    """Recursive average seeded with the simple average of the first values, as TA-Lib and the catalogue do."""
    first = int(x.notna().to_numpy().argmax()) + skip
    seeded = x.copy()
    seeded.iloc[: first + period - 1] = np.nan
    seeded.iloc[first + period - 1] = x.iloc[first : first + period].mean()
    return seeded.ewm(alpha=alpha, adjust=False, ignore_na=True).mean()


def _period(row: Column, name: str = "period") -> int:
    return int(row.params[name])


def ema(c: Features, row: Column) -> pd.Series:
    """Exponential average."""
    return _average(c[row.inputs[0]], _period(row), 2 / (_period(row) + 1))


def wilder(c: Features, row: Column) -> pd.Series:
    """Wilder's average."""
    return _average(c[row.inputs[0]], _period(row), 1 / _period(row))


def rsi(c: Features, row: Column) -> pd.Series:
    """Relative strength index; 0 where nothing moved."""
    n = _period(row)
    change = c[row.inputs[0]].diff()
    gain, loss = _average(change.clip(lower=0), n, 1 / n), _average(-change.clip(upper=0), n, 1 / n)
    total = gain + loss
    return (100 * gain / total).mask(total == 0, 0)


def adx(c: Features, row: Column) -> pd.Series:
    """Directional movement; the sums begin with n - 1 moves, from which an n-th is taken off each bar."""

    def make() -> dict[str, pd.Series]:
        n = _period(row)
        high, low, true_range = (c[name] for name in row.inputs)
        up, down = high.diff(), -low.diff()
        plus = up.where((up > down) & (up > 0), 0.0)
        minus = down.where((down > up) & (down > 0), 0.0)

        def smoothed(x: pd.Series) -> pd.Series:
            seeded = x.copy()
            seeded.iloc[: n - 1] = np.nan
            seeded.iloc[n - 1] = x.iloc[1:n].sum() / n
            out = seeded.ewm(alpha=1 / n, adjust=False, ignore_na=True).mean()
            out.iloc[n - 1] = np.nan
            return out

        ranges = smoothed(true_range)
        plus_di, minus_di = 100 * smoothed(plus) / ranges, 100 * smoothed(minus) / ranges
        index = 100 * (plus_di - minus_di).abs() / (plus_di + minus_di)
        return {"adx": _average(index, n, 1 / n), "plus_di": plus_di, "minus_di": minus_di}

    return c.once(("adx", row.inputs, _period(row)), make)[str(row.output)]


def macd(c: Features, row: Column) -> pd.Series:
    """All three from the signal's first value on."""

    def make() -> dict[str, pd.Series]:
        fast, slow, signal = (_period(row, name) for name in ("fast", "slow", "signal"))
        x = c[row.inputs[0]]
        line = _average(x, fast, 2 / (fast + 1), skip=slow - fast) - _average(x, slow, 2 / (slow + 1))
        smooth = _average(line, signal, 2 / (signal + 1))
        return {"line": line.where(smooth.notna()), "signal": smooth, "histogram": line - smooth}

    return c.once(("macd", row.inputs, *row.params.values()), make)[str(row.output)]


# --- windows ----------------------------------------------------------------------------------------

_MOMENTS: dict[str, Callable[[Any], pd.Series]] = {
    "mean": lambda window: window.mean(),
    "sum": lambda window: window.sum(),
    "deviation": lambda window: window.std(ddof=0),
    "sample_deviation": lambda window: window.std(),
}


def window(c: Features, row: Column) -> pd.Series:
    """Moments of the last bars."""
    return _MOMENTS[str(row.output)](c[row.inputs[0]].rolling(_period(row)))


def correlation(c: Features, row: Column) -> pd.Series:
    """Pearson's correlation."""
    x, y = (c[name] for name in row.inputs)
    return x.rolling(_period(row)).corr(y)


def highest(c: Features, row: Column) -> pd.Series:
    return c[row.inputs[0]].rolling(_period(row)).max()


def lowest(c: Features, row: Column) -> pd.Series:
    return c[row.inputs[0]].rolling(_period(row)).min()


def stochastic(c: Features, row: Column) -> pd.Series:
    """Slow stochastic; %K is given where %D is."""

    def make() -> dict[str, pd.Series]:
        n = _period(row)
        high, low, close = (c[name] for name in row.inputs)
        bottom = low.rolling(n).min()
        width = high.rolling(n).max() - bottom
        k = (100 * (close - bottom) / width).mask(width == 0, 0).rolling(3).mean()
        d = k.rolling(3).mean()
        return {"k": k.where(d.notna()), "d": d}

    return c.once(("stochastic", row.inputs, _period(row)), make)[str(row.output)]


def true_range(c: Features, row: Column) -> pd.Series:
    """The bar's range, stretched to the close before it."""
    high, low, close = (c[name] for name in row.inputs)
    before = close.shift(1)
    return np.maximum(high, before) - np.minimum(low, before)


def log_return(c: Features, row: Column) -> pd.Series:
    x = c[row.inputs[0]]
    return np.log(x / x.shift(_period(row, "bars")))


def _warm(x: pd.Series, of: pd.Series, rows: int) -> pd.Series:
    """Missing until that many rows after the first value of ``of``."""
    out = x.copy()
    out.iloc[: int(of.notna().to_numpy().argmax()) + rows] = np.nan
    return out


def time_deviation(c: Features, row: Column) -> pd.Series:
    """Deviation of the window's returns but those that came across a longer gap; half of them must be there.

    The catalogue also leaves out the first one if a missing minute lets it begin before the window.
    """
    x, minutes = c[row.inputs[0]], _period(row, "minutes")
    inside = x.where(c.index.diff() <= minutes * MINUTE)
    return _warm(inside.rolling(minutes * MINUTE, min_periods=max(2, -(-minutes // 2))).std(), x, minutes - 1)


def time_window(c: Features, row: Column) -> pd.Series:
    """Sum or mean of the bars inside the window."""
    x, minutes = c[row.inputs[0]], _period(row, "minutes")
    return _warm(_MOMENTS[str(row.output)](x.rolling(minutes * MINUTE)), x, minutes - 1)


def time_slope(c: Features, row: Column) -> pd.Series:
    """Least-squares slope against time: covariance over variance."""
    x, minutes = c[row.inputs[0]], _period(row, "minutes")
    clock = c.series((c.index - c.index[0]) / MINUTE)
    span = minutes * MINUTE
    slope = x.rolling(span, min_periods=3).cov(clock) / clock.rolling(span, min_periods=3).var()
    return _warm(slope, x, minutes - 1)


# --- sessions and changes -----------------------------------------------------------------------------


def session_sum(c: Features, row: Column) -> pd.Series:
    return c.since_open(c.by_session(c[row.inputs[0]]).cumsum())


def vwap(c: Features, row: Column) -> pd.Series:
    """Volume-weighted typical price since the open."""
    high, low, close, volume = (c[name] for name in row.inputs)
    paid = (high + low + close) / 3 * volume
    return c.since_open(c.by_session(paid).cumsum() / c.by_session(volume).cumsum())


def session_variance(c: Features, row: Column) -> pd.Series:
    """Realised volatility of the whole sessions before."""

    def make() -> dict[str, pd.Series]:
        squares = c.by_session(c[row.inputs[0]] ** 2).sum()
        if c.whole is not None:
            squares.iloc[0] = np.nan
        variance = squares.shift(1)
        found = {"one_session": variance, "five_sessions": variance.rolling(5).mean()}
        return {k: c.series(np.sqrt(252 * v).to_numpy()[c.session_number]) for k, v in found.items()}

    return c.once(("session_variance", row.inputs), make)[str(row.output)]


def session_rank(c: Features, row: Column) -> pd.Series:
    """Place between the extremes of earlier sessions' last values and the present one."""
    x, sessions = c[row.inputs[0]], _period(row, "sessions")
    before = c.by_session(x).last().shift(1).rolling(sessions)
    low = np.minimum(before.min().to_numpy()[c.session_number], x)
    high = np.maximum(before.max().to_numpy()[c.session_number], x)
    return ((x - low) / (high - low)).mask(high == low, 0.5)


def clock_deviation(c: Features, row: Column) -> pd.Series:
    """Deviation of the returns inside a daily window so far, held until the next one opens."""
    inside = (c.minute_of_day > row.params["from"]) & (c.minute_of_day <= row.params["to"])
    found = c[row.inputs[0]][inside].groupby(c.local.normalize()[inside]).expanding().std().droplevel(0)
    return found.reindex(c.index, method="ffill")


def seasonal_mean(c: Features, row: Column) -> pd.Series:
    """Exponential mean over earlier sessions of the session's mean in the slot of the day."""
    slot = (c.minute_of_day - 1) % DAY // _period(row, "slot")
    table = c[row.inputs[0]].groupby([c.session_number, slot]).mean().unstack()
    usual = table.ewm(span=_period(row, "span"), adjust=False, ignore_na=True).mean().shift(1)
    return c.series(usual.to_numpy()[c.session_number, usual.columns.get_indexer(slot)])


def unchanged_for(c: Features, row: Column) -> pd.Series:
    """Minutes since the value last changed."""
    x, clock = c[row.inputs[0]], c["time"]
    return (clock - clock.where(x != x.shift(1)).ffill()) / 60


def before_change(c: Features, row: Column) -> pd.Series:
    """The last value under the key's previous value."""
    x, key = (c[name] for name in row.inputs)
    before = key.shift(1)
    return x.shift(1).where((key != before) & before.notna()).ffill()


def return_since(c: Features, row: Column) -> pd.Series:
    """A value less its value at the last bar known at the key's instant."""
    x, key = (c[name] for name in row.inputs)
    return x - x.reindex(pd.to_datetime(key, unit="s", utc=True), method="ffill").to_numpy()


# --- volume profiles ----------------------------------------------------------------------------------


def value_area(at: np.ndarray, highest: np.ndarray, lowest: np.ndarray) -> dict[str, np.ndarray]:
    """Point of control and the 70 % around it, for every row of ``at`` (rows, ticks).

    Two ticks at a time, on the side where they hold more; all rows that are not there yet take a step together.
    """
    rows = np.arange(len(at))
    poc = at.argmax(axis=1)
    edged = np.pad(at, ((0, 0), (2, 2)))  # tick k is column k + 2
    held, wanted = at[rows, poc], 0.7 * at.sum(axis=1)
    top, bottom = poc.copy(), poc.copy()
    open_ = rows
    while len(open_):
        open_ = open_[(held[open_] < wanted[open_]) & ((top[open_] < highest[open_]) | (bottom[open_] > lowest[open_]))]
        up, down = top[open_], bottom[open_]
        above = edged[open_, up + 3] + edged[open_, up + 4]
        below = edged[open_, down + 1] + edged[open_, down]
        rises = (down == lowest[open_]) | ((up < highest[open_]) & (above >= below))
        top[open_] = np.where(rises, np.minimum(up + 2, highest[open_]), up)
        bottom[open_] = np.where(rises, down, np.maximum(down - 2, lowest[open_]))
        held[open_] += np.where(rises, above, below)
    found = {"poc": poc, "vah": top, "val": bottom}
    return found | {f"volume_at_{name}": at[rows, tick] for name, tick in found.items()}


def value_area_of_bar(at: np.ndarray, highest: int, lowest: int) -> tuple[float, ...]:
    """:func:`value_area` of one row."""
    poc = top = bottom = int(at.argmax())
    held, wanted = at[poc], 0.7 * at.sum()
    while held < wanted and (top < highest or bottom > lowest):
        above = at[top + 1 : top + 3].sum() if top < highest else -1.0
        below = at[max(bottom - 2, 0) : bottom].sum() if bottom > lowest else -1.0
        if above >= below:
            held, top = held + above, min(top + 2, highest)
        else:
            held, bottom = held + below, max(bottom - 2, lowest)
    return poc, top, bottom, at[poc], at[top], at[bottom]


def _by_bar(bars: pd.DataFrame, first: np.ndarray, minutes: int | None) -> dict[str, np.ndarray]:
    """Profiles of a session's bars one after the other, over the last ``minutes`` or since the open.

    ``first`` is the tick from which each profile counts.
    """
    bottom, top = bars["bottom"].to_numpy(), bars["top"].to_numpy()
    share, stamps = bars["share"].to_numpy(), bars.index
    at = np.zeros(top.max() - bottom.min() + 1)
    found = []
    for k in range(len(bars)):
        begin = k
        if minutes is not None:
            at[:] = 0.0
            while begin > 0 and stamps[k] - stamps[begin - 1] < minutes * MINUTE:
                begin -= 1
        for bar in range(begin, k + 1):
            at[bottom[bar] - first[k] : top[bar] - first[k] + 1] += share[bar]
        since = 0 if minutes is None else begin
        highest, lowest = top[since : k + 1].max() - first[k], bottom[since : k + 1].min() - first[k]
        found.append(value_area_of_bar(at, highest, lowest))
    named = ("poc", "vah", "val", *PROFILE[3:])
    return dict(zip(named, map(np.array, zip(*found, strict=True)), strict=True))


def _spread(bottom: np.ndarray, top: np.ndarray, share: np.ndarray, width: int) -> np.ndarray:
    """Each bar's share of volume at each of its ticks, (rows, ticks)."""
    ticks = np.arange(width)
    return np.where((ticks >= bottom[:, None]) & (ticks <= top[:, None]), share[:, None], 0.0)


def _profiles(
    c: Features, row: Column, of: Callable[[pd.DataFrame], tuple[dict[str, np.ndarray], Any]]
) -> dict[str, pd.Series]:
    """A profile of every row, session by session; ticks back to prices."""
    high, low, volume = (c[name] for name in row.inputs)
    bars = pd.DataFrame(
        {"bottom": (low / c.tick_size).round().astype(int), "top": (high / c.tick_size).round().astype(int)}
    )
    bars["share"] = volume / (bars["top"] - bars["bottom"] + 1)
    parts = []
    for _, part in bars.groupby(c.session_number):
        found, first = of(part)
        prices = {name: (found[name] + first) * c.tick_size for name in PROFILE[:3]}
        parts.append(pd.DataFrame(found | prices, index=part.index))
    whole = pd.concat(parts)
    return {name: whole[name] for name in PROFILE}


def profile(c: Features, row: Column) -> pd.Series:
    """Volume profile since the open, each bar's volume spread evenly over its ticks."""

    def of(bars: pd.DataFrame) -> tuple[dict[str, np.ndarray], Any]:
        first = bars["bottom"].min()
        if c.by_bar:
            return _by_bar(bars, np.full(len(bars), first), None), first
        bottom, top = (bars["bottom"] - first).to_numpy(), (bars["top"] - first).to_numpy()
        at = _spread(bottom, top, bars["share"].to_numpy(), top.max() + 1).cumsum(axis=0)
        return value_area(at, np.maximum.accumulate(top), np.minimum.accumulate(bottom)), first

    def make() -> dict[str, pd.Series]:
        return {name: c.since_open(x) for name, x in _profiles(c, row, of).items()}

    return c.once(("profile", row.inputs), make)[str(row.output)]


def profile_window(c: Features, row: Column) -> pd.Series:
    """Volume profile of the bars inside a window of minutes."""
    minutes = _period(row, "minutes")

    def of(bars: pd.DataFrame) -> tuple[dict[str, np.ndarray], Any]:
        span = minutes * MINUTE
        first = bars["bottom"].rolling(span).min().to_numpy().astype(int)
        if c.by_bar:
            return _by_bar(bars, first, minutes), first
        highest = bars["top"].rolling(span).max().to_numpy().astype(int) - first
        at = np.zeros((len(bars), highest.max() + 1))
        clock = bars.index.to_series()
        for back in reversed(range(minutes)):
            then = bars.shift(back).where(clock - clock.shift(back) < span)
            bottom, top = (then["bottom"] - first).to_numpy(), (then["top"] - first).to_numpy()
            at += _spread(bottom, top, then["share"].to_numpy(), at.shape[1])
        return value_area(at, highest, np.zeros(len(bars), dtype=int)), first

    def make() -> dict[str, pd.Series]:
        volume = c[row.inputs[2]]
        return {name: _warm(x, volume, minutes - 1) for name, x in _profiles(c, row, of).items()}

    return c.once(("profile_window", row.inputs, minutes), make)[str(row.output)]


KERNELS: dict[str, Callable[[Features, Column], pd.Series]] = {
    "column": lambda c, row: c[row.inputs[0]],
    **{
        function.__name__: function
        for function in (
            ema, wilder, rsi, adx, macd, window, correlation, highest, lowest, stochastic, true_range, log_return,
            time_deviation, time_window, time_slope, session_sum, vwap, session_variance, session_rank, clock_deviation,
            seasonal_mean, unchanged_for, before_change, return_since, profile, profile_window,
        )
    },
}  # fmt: skip
