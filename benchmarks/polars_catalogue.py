"""The catalogue's features as a person writes them in Polars: expressions only, nothing calls back into Python.

Every column that others read is a column of the frame, so that it is computed once; columns that do not read one
another stand in one ``with_columns`` and run side by side. Volume profiles are left out: a value area grows step by
step, which expressions cannot say.

An infinite value or NaN counts as missing, as null does.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Sequence
from math import pi
from typing import Any, TypeVar

import polars as pl

from mia_fast.features.rows import Column

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)

DAY = 24 * 60
CLOCK = "known_at"
"""The bars' closes, UTC."""
UNSAID = ("profile", "profile_window")
"""Kernels without an expression."""


class Features:
    """Columns of a catalogue as layers of expressions.

    Parameters
    ----------
    rows
        The catalogue's auxiliary columns and features.
    inputs
        Names of the input columns, which have no nulls.
    """

    def __init__(self, rows: Sequence[Column], inputs: Sequence[str]) -> None:
        self.rows = {row.name: row for row in rows if row.kernel != "column" or row.inputs != (row.name,)}
        self.layer: dict[str, int] = dict.fromkeys((*inputs, CLOCK), 0)
        self.layers: list[dict[str, pl.Expr]] = []
        self.left_out: set[str] = set()
        for name, expression in _CALENDAR:
            self.define(name, expression)
        self.left_out.update(name for name in self.rows if not self._said(name))

    def _said(self, name: str) -> bool:
        row = self.rows.get(name)
        if row is None:
            return True
        reads = row.inputs
        if row.expression is not None:
            parts = ast.walk(ast.parse(row.expression))
            reads = tuple(p.id for p in parts if isinstance(p, ast.Name) and p.id not in _WORDS)
        return row.kernel not in UNSAID and all(self._said(read) for read in reads)

    def of(self, frame: Frame, names: Sequence[str]) -> Frame:
        """These columns of a frame, lazy or not, of the inputs and ``known_at``."""
        for name in names:
            self.column(name)
        for layer in self.layers:
            frame = frame.with_columns(expression.alias(name) for name, expression in layer.items())
        return frame.select(names)

    def define(self, name: str, expression: pl.Expr) -> pl.Expr:
        """A column of the first layer in which everything that it reads is there."""
        if name not in self.layer:
            self.layer[name] = 1 + max((self.layer[read] for read in expression.meta.root_names()), default=0)
            self.layers += [{} for _ in range(self.layer[name] - len(self.layers))]
            self.layers[self.layer[name] - 1][name] = expression
        return pl.col(name)

    def column(self, name: str) -> pl.Expr:
        """A column of the catalogue."""
        if name not in self.layer:
            row = self.rows[name]
            if row.expression is not None:
                expression = _Formula(self).visit(ast.parse(row.expression, mode="eval").body)
            else:
                expression = KERNELS[row.kernel](self, row)
            self.define(name, expression)
        return pl.col(name)

    def inputs(self, row: Column) -> list[pl.Expr]:
        """What a row reads."""
        return [self.column(name) for name in row.inputs]

    def ago(self, x: pl.Expr, minutes: int) -> pl.Expr:
        """The last value known that many minutes ago."""
        then = pl.col(CLOCK).search_sorted(pl.col(CLOCK) - pl.duration(minutes=minutes), side="right")
        return x.gather(self.define(f"_ago_{minutes}", _before(then)))


_ROW = pl.int_range(pl.len())
_SESSION = pl.col("_session")
_LOCAL = pl.col("_local")

_CALENDAR: tuple[tuple[str, pl.Expr], ...] = (
    ("_local", pl.col(CLOCK).dt.convert_time_zone("America/New_York").dt.replace_time_zone(None)),
    ("time", pl.col(CLOCK).dt.epoch("ns") / 1e9),
    ("minute_of_day", (_LOCAL.dt.hour().cast(pl.Int32) * 60 + _LOCAL.dt.minute()).cast(pl.Float64)),
    ("weekday", (_LOCAL.dt.weekday() - 1).cast(pl.Float64)),
    ("month_day", _LOCAL.dt.day().cast(pl.Float64)),
    ("month", _LOCAL.dt.month().cast(pl.Float64)),
    ("session_date", (_LOCAL + pl.duration(minutes=359)).dt.epoch("d").cast(pl.Float64)),
    ("_session", pl.col("session_date").rle_id()),
    ("_last_of_session", _SESSION.ne(_SESSION.shift(-1)).fill_null(True)),
)


def _before(where: pl.Expr) -> pl.Expr:
    """The place before one that was searched for; null before the first row."""
    where = where.cast(pl.Int64)
    return pl.when(where > 0).then(where - 1)


# --- formulas ---------------------------------------------------------------------------------------


def _extreme(horizontal: Callable[..., pl.Expr]) -> Callable[[Any, Any], pl.Expr]:
    """Minimum or maximum of two; null where either is."""

    def of(a: Any, b: Any) -> pl.Expr:
        columns = [x for x in (a, b) if isinstance(x, pl.Expr)]
        known = columns[0].is_not_null() if len(columns) == 1 else columns[0].is_not_null() & columns[1].is_not_null()
        return pl.when(known).then(horizontal(a, b))

    return of


def _where(condition: pl.Expr, yes: Any, no: Any) -> pl.Expr:
    return pl.when(condition != 0).then(yes).when(condition == 0).then(no)


_FUNCTIONS: dict[str, Callable[..., pl.Expr]] = {
    "abs": lambda x: x.abs(),
    "sqrt": lambda x: x.sqrt(),
    "log": lambda x: x.log(),
    "exp": lambda x: x.exp(),
    "sign": lambda x: x.sign(),
    "floor": lambda x: x.floor(),
    "sin_turn": lambda x: (2 * pi * x).sin(),
    "cos_turn": lambda x: (2 * pi * x).cos(),
    "min": _extreme(pl.min_horizontal),
    "max": _extreme(pl.max_horizontal),
    "where": _where,
    "lag": lambda x, bars: x.shift(bars),
}
_WORDS = {*_FUNCTIONS, "ago"}
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
    """A formula of the catalogue as an expression."""

    def __init__(self, columns: Features) -> None:
        self.columns = columns

    def visit_Constant(self, node: ast.Constant) -> Any:
        return node.value

    def visit_Name(self, node: ast.Name) -> pl.Expr:
        return self.columns.column(node.id)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        return _OPERATORS[type(node.op)](self.visit(node.operand))

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        return _OPERATORS[type(node.op)](self.visit(node.left), self.visit(node.right))

    def visit_Compare(self, node: ast.Compare) -> pl.Expr:
        compare = _OPERATORS[type(node.ops[0])]
        return pl.Expr.cast(compare(self.visit(node.left), self.visit(node.comparators[0])), pl.Float64)

    def visit_Call(self, node: ast.Call) -> pl.Expr:
        assert isinstance(node.func, ast.Name)
        values = [self.visit(part) for part in node.args]
        return self.columns.ago(*values) if node.func.id == "ago" else _FUNCTIONS[node.func.id](*values)


# --- averages ---------------------------------------------------------------------------------------


def _period(row: Column, name: str = "period") -> int:
    return int(row.params[name])


def _average(x: pl.Expr, period: int, alpha: float, skip: int = 0) -> pl.Expr:
    """Recursive average seeded with the simple average of the first values, as TA-Lib and the catalogue do."""
    first = x.is_not_null().arg_true().first().cast(pl.Int64) + skip
    seed = first + period - 1
    seeded = pl.when(seed < _ROW).then(x).when(seed == _ROW).then(x.slice(first, period).mean())
    return seeded.ewm_mean(alpha=alpha, adjust=False, ignore_nulls=True)


def ema(c: Features, row: Column) -> pl.Expr:
    """Exponential average."""
    return _average(*c.inputs(row), _period(row), 2 / (_period(row) + 1))


def wilder(c: Features, row: Column) -> pl.Expr:
    """Wilder's average."""
    return _average(*c.inputs(row), _period(row), 1 / _period(row))


def rsi(c: Features, row: Column) -> pl.Expr:
    """Relative strength index; 0 where nothing moved."""
    n = _period(row)
    change = c.define(f"_change_{row.inputs[0]}", c.inputs(row)[0].diff())
    gain = c.define(f"_gain_{row.name}", _average(change.clip(lower_bound=0), n, 1 / n))
    loss = c.define(f"_loss_{row.name}", _average(-change.clip(upper_bound=0), n, 1 / n))
    return pl.when(gain + loss > 0).then(100 * gain / (gain + loss)).otherwise(0 * gain)


def adx(c: Features, row: Column) -> pl.Expr:
    """Directional movement; the sums begin with n - 1 moves, from which an n-th is taken off each bar."""
    n = _period(row)
    high, low, true_range = c.inputs(row)
    up, down = c.define("_up", high.diff()), c.define("_down", -low.diff())
    plus = c.define("_plus", pl.when((up > down) & (up > 0)).then(up).otherwise(0 * up))
    minus = c.define("_minus", pl.when((down > up) & (down > 0)).then(down).otherwise(0 * down))

    def smoothed(x: pl.Expr) -> pl.Expr:
        seeded = pl.when(n - 1 < _ROW).then(x).when(n - 1 == _ROW).then(x.slice(1, n - 1).sum() / n)
        return pl.when(n - 1 < _ROW).then(seeded.ewm_mean(alpha=1 / n, adjust=False, ignore_nulls=True))

    ranges = c.define(f"_ranges_{n}", smoothed(true_range))
    plus_di = c.define(f"_plus_di_{n}", 100 * smoothed(plus) / ranges)
    minus_di = c.define(f"_minus_di_{n}", 100 * smoothed(minus) / ranges)
    index = c.define(f"_dx_{n}", 100 * (plus_di - minus_di).abs() / (plus_di + minus_di))
    return {"plus_di": plus_di, "minus_di": minus_di, "adx": _average(index, n, 1 / n)}[str(row.output)]


def macd(c: Features, row: Column) -> pl.Expr:
    """All three from the signal's first value on."""
    fast, slow, signal = (_period(row, name) for name in ("fast", "slow", "signal"))
    (x,) = c.inputs(row)
    name = f"_macd_{fast}_{slow}"
    difference = _average(x, fast, 2 / (fast + 1), skip=slow - fast) - _average(x, slow, 2 / (slow + 1))
    line = c.define(name, difference)
    smooth = c.define(f"{name}_{signal}", _average(line, signal, 2 / (signal + 1)))
    found = {"line": pl.when(smooth.is_not_null()).then(line), "signal": smooth, "histogram": line - smooth}
    return found[str(row.output)]


# --- windows ----------------------------------------------------------------------------------------

_MOMENTS: dict[str, Callable[[pl.Expr, int], pl.Expr]] = {
    "mean": lambda x, n: x.rolling_mean(n),
    "sum": lambda x, n: x.rolling_sum(n),
    "deviation": lambda x, n: x.rolling_std(n, ddof=0),
    "sample_deviation": lambda x, n: x.rolling_std(n, ddof=1),
}


def window(c: Features, row: Column) -> pl.Expr:
    """Moments of the last bars."""
    return _MOMENTS[str(row.output)](c.inputs(row)[0], _period(row))


def correlation(c: Features, row: Column) -> pl.Expr:
    """Pearson's correlation."""
    x, y = c.inputs(row)
    n = _period(row)
    return pl.rolling_corr(x, y, window_size=n, min_samples=n)


def highest(c: Features, row: Column) -> pl.Expr:
    return c.inputs(row)[0].rolling_max(_period(row))


def lowest(c: Features, row: Column) -> pl.Expr:
    return c.inputs(row)[0].rolling_min(_period(row))


def stochastic(c: Features, row: Column) -> pl.Expr:
    """Slow stochastic; %K is given where %D is."""
    n = _period(row)
    high, low, close = c.inputs(row)
    bottom = c.define(f"_bottom_{n}", low.rolling_min(n))
    width = c.define(f"_width_{n}", high.rolling_max(n) - bottom)
    raw = pl.when(width > 0).then(100 * (close - bottom) / width).otherwise(0 * width)
    k = c.define(f"_k_{n}", raw.rolling_mean(3))
    d = c.define(f"_d_{n}", k.rolling_mean(3))
    return d if row.output == "d" else pl.when(d.is_not_null()).then(k)


def true_range(c: Features, row: Column) -> pl.Expr:
    """The bar's range, stretched to the close before it."""
    high, low, close = c.inputs(row)
    before = close.shift(1)
    stretched = pl.max_horizontal(high, before) - pl.min_horizontal(low, before)
    return pl.when(before.is_not_null()).then(stretched)


def log_return(c: Features, row: Column) -> pl.Expr:
    (x,) = c.inputs(row)
    return (x / x.shift(_period(row, "bars"))).log()


def _warm(x: pl.Expr, of: pl.Expr, rows: int) -> pl.Expr:
    """Null until that many rows after the first value of ``of``."""
    return pl.when(of.is_not_null().arg_true().first() + rows <= _ROW).then(x)


def time_deviation(c: Features, row: Column) -> pl.Expr:
    """Deviation of the window's returns but those that came across a longer gap; half of them must be there.

    The catalogue also leaves out the first one if a missing minute lets it begin before the window.
    """
    (x,), minutes = c.inputs(row), _period(row, "minutes")
    inside = pl.when(pl.col(CLOCK).diff() <= pl.duration(minutes=minutes)).then(x)
    fewest = max(2, -(-minutes // 2))
    return _warm(inside.rolling_std_by(CLOCK, f"{minutes}m", min_samples=fewest), x, minutes - 1)


def time_window(c: Features, row: Column) -> pl.Expr:
    """Sum or mean of the bars inside the window."""
    (x,), minutes = c.inputs(row), _period(row, "minutes")
    of = x.rolling_sum_by if row.output == "sum" else x.rolling_mean_by
    return _warm(of(CLOCK, f"{minutes}m"), x, minutes - 1)


def time_slope(c: Features, row: Column) -> pl.Expr:
    """Least-squares slope against time."""
    (x,), minutes = c.inputs(row), _period(row, "minutes")
    span = f"{minutes}m"
    clock = c.define("_minutes", (pl.col("time") - pl.col("time").first().over("_session")) / 60)
    count = (0 * x + 1).rolling_sum_by(CLOCK, span)
    times, values = clock.rolling_sum_by(CLOCK, span), x.rolling_sum_by(CLOCK, span)
    products, squares = (clock * x).rolling_sum_by(CLOCK, span), (clock * clock).rolling_sum_by(CLOCK, span)
    slope = (count * products - times * values) / (count * squares - times * times)
    return _warm(pl.when(count >= 3).then(slope), x, minutes - 1)


# --- sessions and changes -----------------------------------------------------------------------------


def session_sum(c: Features, row: Column) -> pl.Expr:
    return c.inputs(row)[0].cum_sum().over("_session")


def vwap(c: Features, row: Column) -> pl.Expr:
    """Volume-weighted typical price since the open."""
    high, low, close, volume = c.inputs(row)
    paid = (high + low + close) / 3 * volume
    return paid.cum_sum().over("_session") / volume.cum_sum().over("_session")


def session_variance(c: Features, row: Column) -> pl.Expr:
    """Realised volatility of the whole sessions before."""
    total = c.define("_session_squares", c.inputs(row)[0].pow(2).sum().over("_session"))
    before = total.filter(pl.col("_last_of_session")).shift(1)
    before = before if row.output == "one_session" else before.rolling_mean(5)
    return (252 * before.gather(_SESSION)).sqrt()


def session_rank(c: Features, row: Column) -> pl.Expr:
    """Place between the extremes of earlier sessions' last values and the present one."""
    (x,), sessions = c.inputs(row), _period(row, "sessions")
    before = x.filter(pl.col("_last_of_session")).shift(1)
    least = c.define(f"_least_{row.name}", before.rolling_min(sessions).gather(_SESSION))
    most = c.define(f"_most_{row.name}", before.rolling_max(sessions).gather(_SESSION))
    low, high = pl.min_horizontal(least, x), pl.max_horizontal(most, x)
    place = pl.when(high > low).then((x - low) / (high - low)).otherwise(0.5)
    return pl.when(least.is_not_null()).then(place)


def clock_deviation(c: Features, row: Column) -> pl.Expr:
    """Deviation of the returns inside a daily window so far, held until the next one opens."""
    minute = pl.col("minute_of_day")
    inside = (minute > row.params["from"]) & (minute <= row.params["to"])
    x = c.define(f"_x_{row.name}", pl.when(inside).then(c.inputs(row)[0]))
    day = _LOCAL.dt.date()
    count, total, squares = (part.over(day) for part in (x.cum_count(), x.cum_sum(), (x * x).cum_sum()))
    deviation = ((squares - total * total / count) / (count - 1)).sqrt()
    return pl.when(x.is_not_null()).then(pl.when(count >= 2).then(deviation).otherwise(float("nan"))).forward_fill()


def seasonal_mean(c: Features, row: Column) -> pl.Expr:
    """Exponential mean over earlier sessions of the session's mean in the slot of the day."""
    (x,) = c.inputs(row)
    slot = c.define("_slot", ((pl.col("minute_of_day").cast(pl.Int32) - 1) % DAY) // _period(row, "slot"))
    run = c.define("_run", pl.struct(_SESSION, slot).rle_id())
    first = run.ne(run.shift(1)).fill_null(True)
    mean = c.define("_slot_mean", x.mean().over("_run"))
    smooth = pl.when(first).then(mean).ewm_mean(span=_period(row, "span"), adjust=False, ignore_nulls=True)
    before = c.define("_slot_before", smooth.forward_fill().shift(1).over("_slot"))
    return before.first().over("_run")


def unchanged_for(c: Features, row: Column) -> pl.Expr:
    """Minutes since the value last changed."""
    (x,), clock = c.inputs(row), pl.col("time")
    return (clock - pl.when(x.ne_missing(x.shift(1))).then(clock).forward_fill()) / 60


def before_change(c: Features, row: Column) -> pl.Expr:
    """The last value under the key's previous value."""
    x, key = c.inputs(row)
    return pl.when(key != key.shift(1)).then(x.shift(1)).forward_fill()


def return_since(c: Features, row: Column) -> pl.Expr:
    """A value less its value at the last bar known at the key's instant."""
    x, key = c.inputs(row)
    return x - x.gather(_before(pl.col("time").search_sorted(key, side="right")))


KERNELS: dict[str, Callable[[Features, Column], pl.Expr]] = {
    "column": lambda c, row: c.inputs(row)[0],
    **{
        function.__name__: function
        for function in (
            ema, wilder, rsi, adx, macd, window, correlation, highest, lowest, stochastic, true_range, log_return,
            time_deviation, time_window, time_slope, session_sum, vwap, session_variance, session_rank, clock_deviation,
            seasonal_mean, unchanged_for, before_change, return_since,
        )
    },
}  # fmt: skip
