"""The kernels that a catalogue row may name: parameters, inputs, outputs, warm-up, lowering.

Each is declared once, here; :mod:`mia_fast.features.lowering` turns rows that share a kernel into instructions of
:mod:`mia_kernels.program`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mia_fast.errors import ConfigError
from mia_fast.features import lowering
from mia_fast.features.builder import Builder
from mia_fast.features.rows import DAY, Column, Rows, Warmup, period
from mia_kernels import opcodes as op
from mia_kernels.session import OPEN_MINUTE

HOLDS = (
    "null while an input is missing (for RSI and ADX the input is the change from the bar before); "
    "the state is held and goes on from there"
)
FORGETS = "null while a missing value is in the window; forgets it with its row"
POINTWISE = "null where an operand is missing or the result is not finite"
SKIPS = "null at a bar with a missing input, which is left out of the sum"
KEEPS = "keeps its value at a bar with a missing input, which is left out of the sum"
PASSES = "null at a bar with a missing input, which changes nothing that is remembered"
BY_KEY = "null at a bar without a key, which changes nothing; a missing value leaves the one before it standing"

POLICIES = {
    "pointwise": POINTWISE,
    "forgets": FORGETS,
    "keeps": KEEPS,
    "skips": SKIPS,
    "passes": PASSES,
    "by_key": BY_KEY,
    "holds": HOLDS,
}
"""By the word of the catalogue, from the one under which a missing value is felt least to the longest felt."""

SESSION = 23 * 60
"""Minutes of a Globex session without a gap."""
BREAK = 60
"""Minutes before the open in which there is no session."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A whole-number parameter with its bounds."""

    low: int
    high: int
    meaning: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a catalogue row needs to know of a kernel."""

    name: str
    meaning: str
    inputs: tuple[str, ...]
    missing: str
    lower: Callable[[Builder, Rows], None]
    warmup: Callable[[Column], Warmup]
    outputs: tuple[str, ...] = ()
    parameters: dict[str, Parameter] = field(default_factory=dict)
    refuse: Callable[[Column], str | None] = lambda _row: None
    """What is wrong with parameters that are each in their bounds; None if nothing is."""
    digest: str = ""
    """Of a registered kernel: a hash of its function. The built-in ones go by the package's version."""
    unfit: Callable[[Column, float], str | None] = lambda _row, _bar_minutes: None
    """What bars a row needs, where those of that many minutes do not fit it; None if they do."""
    clock_warmup: Callable[[Column, Warmup, float], Warmup] | None = None
    """The whole warm-up, for kernels that go by the clock: from that of the inputs and the bar's minutes."""


REGISTERED: dict[str, Kernel] = {}
"""Kernels that the running program registered, see :func:`mia_fast.features.own.register_kernel`."""


def find(name: str, own: Mapping[str, Kernel]) -> Kernel | None:
    """The kernel of that name: built in, of the workspace (``own``), or registered by the program."""
    return KERNELS.get(name) or own.get(name) or REGISTERED.get(name)


def check(column: Column, where: str, own: Mapping[str, Kernel]) -> Kernel:
    """The kernel that a row names, after checking the row against it.

    Raises
    ------
    ConfigError
        Unknown kernel, wrong number of inputs, unknown, missing or out-of-range parameter, unknown
        output.
    """
    kernel = find(column.kernel, own)
    if kernel is None:
        names = sorted({*KERNELS, *own, *REGISTERED})
        near = difflib.get_close_matches(column.kernel, names, n=1)
        raise ConfigError(
            f"unknown kernel {column.kernel!r}",
            where=where,
            hint=(f"did you mean {near[0]!r}?" if near else f"kernels: {', '.join(names)};")
            + " an own one is registered by the file that kernels_from names, or by mia_fast.register_kernel",
        )
    if column.kernel != "formula" and len(column.inputs) != len(kernel.inputs):
        raise ConfigError(
            f"kernel {kernel.name!r} takes {len(kernel.inputs)} inputs, got {len(column.inputs)}",
            where=where,
            hint=f"inputs: {', '.join(kernel.inputs)}",
        )
    for name in column.params:
        if name not in kernel.parameters:
            raise ConfigError(
                f"kernel {kernel.name!r} has no parameter {name!r}",
                where=where,
                hint=f"parameters: {', '.join(kernel.parameters) or 'none'}",
            )
    for name, parameter in kernel.parameters.items():
        value = column.params.get(name)
        if value is None:
            raise ConfigError(
                f"parameter {name!r} ({parameter.meaning}) is missing",
                where=where,
                hint=f"give a whole number from {parameter.low} to {parameter.high}",
            )
        if value != int(value) or not parameter.low <= value <= parameter.high:
            raise ConfigError(
                f"parameter {name} = {value:g}: {parameter.meaning} is a whole number from "
                f"{parameter.low} to {parameter.high}",
                where=where,
            )
    wrong = kernel.refuse(column)
    if wrong is not None:
        raise ConfigError(wrong, where=where)
    if kernel.outputs and column.output not in kernel.outputs:
        raise ConfigError(
            f"kernel {kernel.name!r} has no output {column.output!r}",
            where=where,
            hint=f"outputs: {', '.join(kernel.outputs)}",
        )
    if not kernel.outputs and column.output is not None:
        raise ConfigError(f"kernel {kernel.name!r} has one output; remove 'output'", where=where)
    return kernel


# --- warm-ups: rows without a value, given inputs that have one from the first row on -----------------


def _no_warmup(_row: Column) -> Warmup:
    return Warmup()


def _first_full_window(row: Column) -> Warmup:
    return Warmup(rows=period(row) - 1)


def _wilder_of_changes(row: Column) -> Warmup:
    return Warmup(rows=period(row))


def _adx_warmup(row: Column) -> Warmup:
    # True range and directional movement are missing at the first row, which the input's own warm-up
    # counts: n - 1 values seed them, one more gives the first indicator, n of those seed ADX.
    return Warmup(rows=2 * period(row) - 2 if row.output == "adx" else period(row) - 1)


def _minutes_warmup(row: Column, before: Warmup, bar_minutes: float) -> Warmup:
    """A full window of minutes."""
    return Warmup(rows=max(0, int(row.params["minutes"] / bar_minutes) - 1) + before.rows, sessions=before.sessions)


_ROUNDING = 1e-9
"""Of a quotient of minutes, which is a whole number where bars fit."""


def _first_input_row(before: Warmup, bar_minutes: float) -> int:
    """The first row at which the inputs have a value, counted from a session's open."""
    return max(before.rows, int(before.sessions * SESSION / bar_minutes))


def _clock_warmup(row: Column, before: Warmup, bar_minutes: float) -> Warmup:
    """The second return of the first daily window that holds two."""
    start = (row.params["from"] - OPEN_MINUTE) % DAY  # minutes after the session's open
    stop = start + row.params["to"] - row.params["from"]
    valid, open_at = _first_input_row(before, bar_minutes), 0
    opening, closing = math.floor(start / bar_minutes + _ROUNDING), math.floor(stop / bar_minutes + _ROUNDING)
    if closing - opening < 2:
        return before  # it stays null
    while max(open_at + opening, valid) + 1 >= open_at + closing:
        open_at += int(SESSION / bar_minutes)
    return Warmup(rows=max(open_at + opening, valid) + 1, sessions=before.sessions)


EVEN_BARS = "bars of one length"
"""What a row lacks that counts minutes in bars, over volume bars (bar_minutes 0)."""


def _even(_row: Column, bar_minutes: float) -> str | None:
    return EVEN_BARS if bar_minutes == 0.0 else None


def _clock_unfit(row: Column, bar_minutes: float) -> str | None:
    if bar_minutes == 0.0:
        return EVEN_BARS
    start = (row.params["from"] - OPEN_MINUTE) % DAY
    stop = start + row.params["to"] - row.params["from"]
    closes = math.floor(stop / bar_minutes + _ROUNDING) - math.floor(start / bar_minutes + _ROUNDING)
    return None if closes >= 2 else "bars of which 2 close in the window"


def _clock_refuse(row: Column) -> str | None:
    opening, closing = period(row, "from"), period(row, "to")
    if opening >= closing:
        return f"from = {opening} is not before to = {closing}"
    if opening < OPEN_MINUTE and closing > OPEN_MINUTE - BREAK:
        return f"the window {opening}..{closing} reaches into the break, {OPEN_MINUTE - BREAK}..{OPEN_MINUTE}"
    return None


def _macd_refuse(row: Column) -> str | None:
    fast, slow, _ = lowering.macd_key(row)
    return None if fast < slow else f"fast = {fast} is not shorter than slow = {slow}"


def _seasonal_warmup(row: Column, before: Warmup, bar_minutes: float) -> Warmup:
    """One session after the first slot in which the input has a value."""
    valid, slot, session = _first_input_row(before, bar_minutes), row.params["slot"], max(1, int(SESSION / bar_minutes))
    sessions, at = divmod(valid, session)
    ended = math.ceil((at + 1) * bar_minutes / slot - _ROUNDING) - 1  # slots of the session that lie before it
    rows = math.floor(ended * slot / bar_minutes + _ROUNDING)
    return Warmup(sessions=sessions + 1, rows=(sessions + 1) * session + rows if rows else 0)


def _seasonal_refuse(row: Column) -> str | None:
    slot = period(row, "slot")
    return None if OPEN_MINUTE % slot == DAY % slot == 0 else f"slot = {slot} does not divide the 6 hours after 18:00"


def _minutes_unfit(fewest: int) -> Callable[[Column, float], str | None]:
    return lambda row, bar_minutes: unfit(row.params["minutes"], fewest, bar_minutes)


def unfit(minutes: float, fewest: int, bar_minutes: float) -> str | None:
    """What bars a window of ``minutes`` needs, where these do not fit it: a whole number of them, within reach."""
    if bar_minutes == 0.0:
        return EVEN_BARS
    rows = minutes / bar_minutes
    fits = rows == int(rows) and fewest <= rows < op.HISTORY
    return None if fits else f"bars that fit {minutes:g} minutes {fewest} to {op.HISTORY - 1} times"


_PERIOD = {"period": Parameter(2, op.HISTORY, "length in bars")}

KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        Kernel("column", "an input as it is", ("any",), POINTWISE, lowering.lower_formula, _no_warmup),
        Kernel(
            "ema",
            "exponential average, alpha 2/(n+1), seeded with a simple average",
            ("any",),
            HOLDS,
            lowering.lower_averages,
            _first_full_window,
            parameters=_PERIOD,
        ),
        Kernel(
            "wilder",
            "Wilder's average, alpha 1/n, seeded with a simple average",
            ("any",),
            HOLDS,
            lowering.lower_averages,
            _first_full_window,
            parameters=_PERIOD,
        ),
        Kernel(
            "rsi",
            "relative strength index",
            ("price",),
            HOLDS,
            lowering.lower_rsi,
            _wilder_of_changes,
            parameters=_PERIOD,
        ),
        Kernel(
            "adx",
            "average directional index and directional indicators",
            ("high", "low", "true_range"),
            HOLDS,
            lowering.lower_adx,
            _adx_warmup,
            outputs=("adx", "plus_di", "minus_di"),
            parameters=_PERIOD,
        ),
        Kernel(
            "macd",
            "moving average convergence/divergence",
            ("price",),
            HOLDS,
            lowering.lower_macd,
            lambda row: Warmup(rows=period(row, "slow") + period(row, "signal") - 2),
            outputs=("line", "signal", "histogram"),
            refuse=_macd_refuse,
            parameters={
                "fast": Parameter(2, op.HISTORY, "length of the fast average"),
                "slow": Parameter(3, op.HISTORY, "length of the slow average"),
                "signal": Parameter(2, op.HISTORY, "length of the signal average"),
            },
        ),
        Kernel(
            "window",
            "moments over the last bars; 'deviation' divides by n, 'sample_deviation' by n - 1",
            ("any",),
            FORGETS,
            lowering.lower_moments,
            _first_full_window,
            outputs=tuple(lowering.MOMENTS),
            parameters=_PERIOD,
        ),
        Kernel(
            "correlation",
            "Pearson's correlation of two columns over the last bars; null where either does not vary",
            ("any", "any"),
            FORGETS,
            lowering.lower_correlation,
            _first_full_window,
            parameters={"period": Parameter(3, op.HISTORY, "length in bars")},
        ),
        Kernel(
            "slope",
            "least-squares slope against time over the last bars, per bar",
            ("any",),
            FORGETS,
            lowering.lower_slope,
            _first_full_window,
            parameters=_PERIOD,
        ),
        Kernel(
            "highest",
            "largest of the last bars",
            ("any",),
            FORGETS,
            lowering.lower_extreme(op.MAXIMUM_TABLE, op.MAXIMUM_WINDOW),
            _first_full_window,
            parameters=_PERIOD,
        ),
        Kernel(
            "lowest",
            "smallest of the last bars",
            ("any",),
            FORGETS,
            lowering.lower_extreme(op.MINIMUM_TABLE, op.MINIMUM_WINDOW),
            _first_full_window,
            parameters=_PERIOD,
        ),
        Kernel(
            "stochastic",
            "slow stochastic, %K smoothed over 3, %D over 3 more",
            ("high", "low", "close"),
            FORGETS,
            lowering.lower_stochastic,
            lambda row: Warmup(rows=period(row) + 3),
            outputs=("k", "d"),
            parameters=_PERIOD,
        ),
        Kernel(
            "time_deviation",
            "sample standard deviation of the returns inside a time window; a return across a gap counts "
            "only when both closes lie in the window",
            ("log_return",),
            FORGETS,
            lowering.lower_time_deviation,
            _no_warmup,
            parameters={"minutes": Parameter(2, op.HISTORY - 1, "length in minutes")},
            unfit=_minutes_unfit(2),
            clock_warmup=_minutes_warmup,  # the log return brings one row more
        ),
        Kernel(
            "true_range",
            "Wilder's true range",
            ("high", "low", "close"),
            POINTWISE,
            lowering.lower_true_range,
            lambda _row: Warmup(rows=1),
        ),
        Kernel(
            "log_return",
            "logarithm of the ratio to an earlier value",
            ("price",),
            POINTWISE,
            lowering.lower_log_return,
            lambda row: Warmup(rows=period(row, "bars")),
            parameters={"bars": Parameter(1, op.HISTORY, "how far back")},
        ),
        Kernel("formula", "arithmetic over columns", (), POINTWISE, lowering.lower_formula, _no_warmup),
        Kernel(
            "vwap",
            "volume-weighted average price since the session's open",
            ("high", "low", "close", "volume"),
            SKIPS,
            lowering.lower_vwap,
            _no_warmup,
        ),
        Kernel(
            "profile",
            "volume profile of the session",
            ("high", "low", "volume"),
            SKIPS,
            lowering.lower_profile,
            _no_warmup,
            outputs=lowering.PROFILE,
        ),
        Kernel(
            "session_variance",
            "realised volatility of whole sessions, annualised with 252",
            ("log_return",),
            KEEPS,
            lowering.lower_session_variance,
            lambda row: Warmup(sessions=1 if row.output == "one_session" else 5),
            outputs=lowering.VARIANCE,
        ),
        Kernel(
            "return_since",
            "a value less its value when a slow one became known (s UTC); of a log price, the log return since then",
            ("any", "known_at"),
            POINTWISE,
            lowering.lower_return_since,
            lambda _row: Warmup(sessions=1),
        ),
        Kernel("session_sum", "sum since the session's open", ("any",), KEEPS, lowering.lower_session_sum, _no_warmup),
        Kernel(
            "session_rank",
            "place between the lowest and the highest of earlier sessions' last values and the present one, 0..1; "
            "0.5 where these are equal",
            ("any",),
            PASSES,
            lowering.lower_session_rank,
            lambda row: Warmup(sessions=period(row, "sessions")),
            parameters={"sessions": Parameter(2, 60, "earlier sessions")},
        ),
        Kernel(
            "clock_deviation",
            "sample standard deviation of the returns of bars that close in a daily window of New York's clock, "
            "held until the next one opens",
            ("log_return",),
            KEEPS,
            lowering.lower_clock_deviation,
            _no_warmup,
            refuse=_clock_refuse,
            parameters={
                "from": Parameter(0, DAY - 2, "opening in minutes after midnight, itself outside"),
                "to": Parameter(1, DAY - 1, "closing in minutes after midnight, itself inside"),
            },
            unfit=_clock_unfit,
            clock_warmup=_clock_warmup,
        ),
        Kernel(
            "seasonal_mean",
            "exponential mean, alpha 2/(span+1), over earlier sessions of a session's mean in the present slot of "
            "New York's day",
            ("any",),
            KEEPS,
            lowering.lower_seasonal_mean,
            _no_warmup,
            refuse=_seasonal_refuse,
            parameters={
                "slot": Parameter(5, 360, "length of a slot in minutes"),
                "span": Parameter(1, 250, "span of the exponential mean in sessions"),
            },
            unfit=_even,
            clock_warmup=_seasonal_warmup,
        ),
        Kernel(
            "unchanged_for",
            "minutes since the value last changed",
            ("any",),
            PASSES,
            lowering.lower_unchanged_for,
            _no_warmup,
        ),
        Kernel(
            "before_change",
            "last value that stood while a key had its previous value",
            ("any", "key"),
            BY_KEY,
            lowering.lower_before_change,
            lambda _row: Warmup(sessions=1),
        ),
        Kernel(
            "time_window",
            "sum or mean over the bars inside a time window; a gap leaves fewer of them",
            ("any",),
            FORGETS,
            lowering.lower_time_window,
            _no_warmup,
            outputs=lowering.TOTALS,
            parameters={"minutes": Parameter(1, op.HISTORY - 1, "length in minutes")},
            unfit=_minutes_unfit(1),
            clock_warmup=_minutes_warmup,
        ),
        Kernel(
            "profile_window",
            "volume profile of the bars inside a time window; null beyond 2048 ticks",
            ("high", "low", "volume"),
            FORGETS,
            lowering.lower_profile_window,
            _no_warmup,
            outputs=lowering.PROFILE,
            parameters={"minutes": Parameter(1, 60, "length in minutes")},
            unfit=_minutes_unfit(2),
            clock_warmup=_minutes_warmup,
        ),
        Kernel(
            "time_slope",
            "least-squares slope per minute over the bars inside a time window, of which there must be three",
            ("any",),
            FORGETS,
            lowering.lower_time_slope,
            _no_warmup,
            parameters={"minutes": Parameter(2, op.HISTORY - 1, "length in minutes")},
            unfit=_minutes_unfit(3),
            clock_warmup=_minutes_warmup,
        ),
    )
}
