"""The kernels that a catalogue row may name: parameters, inputs, outputs, warm-up, lowering.

Each is declared once, here. ``lower`` turns rows that share a kernel and inputs into instructions
of :mod:`mia_kernels.program`; rows of one kernel over the same inputs are computed together.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mia_fast.errors import ConfigError
from mia_fast.features.builder import Builder
from mia_fast.features.rows import Column, Warmup
from mia_kernels import opcodes as op
from mia_kernels.history import (
    BEFORE_CHANGE_STATE,
    CLOCK_DEVIATION_STATE,
    SEASONAL_MEAN_STATE,
    SESSION_RANK_STATE,
    SESSION_SUM_STATE,
    UNCHANGED_FOR_STATE,
)
from mia_kernels.recurrences import AVERAGE_STATE
from mia_kernels.session import OPEN_MINUTE, PROFILE_STATE, RETURN_SINCE_STATE, SESSION_VARIANCE_STATE, VWAP_STATE

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

Rows = Sequence[Column]

DAY = 24 * 60
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


def period(column: Column, name: str = "period") -> int:
    """A whole-number parameter of a row, already checked."""
    return int(column.params[name])


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


# --- recurrences ----------------------------------------------------------------------------------


def _lanes(rows: Sequence[tuple[int, int, int, float, float]]) -> tuple[list[int], list[float]]:
    """The lane table of one average: (need, skip, emit, alpha, seed scale) per lane, padded to eight."""
    integers: list[int] = []
    alphas = [row[3] for row in rows] + [0.0] * (op.LANES - len(rows))
    scales = [row[4] for row in rows] + [0.0] * (op.LANES - len(rows))
    for need, skip, emit, _, _ in rows:
        integers += [need, skip, emit]
    integers += [0, 0, 0] * (op.LANES - len(rows))
    return integers, alphas + scales


def _chunks(rows: Rows, size: int = op.LANES) -> list[list[Column]]:
    return [list(rows[k : k + size]) for k in range(0, len(rows), size)]


_SIDE_BY_SIDE = 4 * op.LANES
_FEW = 4
"""Averages of one input that are worth a pass of their own."""


def _average_lanes(rows: Rows) -> tuple[list[int], list[float]]:
    integers: list[int] = []
    floats: list[float] = []
    for chunk in _chunks(rows):
        alphas = [1 / period(row) if row.kernel == "wilder" else 2 / (period(row) + 1) for row in chunk]
        lanes = [(period(row), 0, 1, alpha, 1 / period(row)) for row, alpha in zip(chunk, alphas, strict=True)]
        more_integers, more_floats = _lanes(lanes)
        integers += more_integers
        floats += more_floats
    return integers, floats


def _lower_averages(builder: Builder, rows: Rows) -> None:
    """Averages of both kinds over any inputs: many of one input together, the rest eight by eight."""
    by_input: dict[str, list[Column]] = {}
    for row in rows:
        by_input.setdefault(row.inputs[0], []).append(row)
    rest: list[Column] = []
    groups: list[list[Column]] = []
    for same in by_input.values():
        for chunk in _chunks(same, _SIDE_BY_SIDE):
            if len(chunk) >= _FEW:
                groups.append(chunk)
            else:
                rest += chunk
    groups += _chunks(rest)
    for group in groups:
        integers, floats = _average_lanes(group)
        inputs = [builder.slot(row.inputs[0]) for row in group]
        alone = len(set(inputs)) == 1
        builder.emit(
            op.AVERAGE if alone else op.AVERAGE_EACH,
            a=inputs[0],
            count=len(group),
            state=AVERAGE_STATE * len(_chunks(group)),
            integers=integers if alone else integers + inputs,
            floats=floats,
            targets=[builder.target(row.name) for row in group],
        )


def _lower_rsi(builder: Builder, rows: Rows) -> None:
    for chunk in _chunks(rows):
        integers, floats = _lanes([(n, 0, 1, 1 / n, 1 / n) for n in map(period, chunk)])
        builder.emit(
            op.RSI,
            a=builder.slot(chunk[0].inputs[0]),
            count=len(chunk),
            state=2 * AVERAGE_STATE,
            integers=integers,
            floats=floats,
            targets=[builder.target(row.name) for row in chunk],
        )


def _by_output(
    builder: Builder,
    rows: Rows,
    keys: Sequence[tuple[int, ...]],
    names: tuple[str, ...],
    of: Callable[[Column], tuple[int, ...]],
) -> list[int]:
    """Targets of a kernel with several outputs: for each output, for each lane; unused ones are spare."""
    where = {(of(row), row.output): builder.target(row.name) for row in rows}
    return [where.get((key, name), -1 - op.SPARE) for name in names for key in keys]


def _lower_adx(builder: Builder, rows: Rows) -> None:
    periods = sorted({period(row) for row in rows})
    for k in range(0, len(periods), op.LANES):
        lanes = periods[k : k + op.LANES]
        integers, floats = _lanes([(n - 1, 0, 0, 1 / n, 1 / n) for n in lanes])
        more_integers, more_floats = _lanes([(n, 0, 1, 1 / n, 1 / n) for n in lanes])
        high, low, true_range = rows[0].inputs
        builder.emit(
            op.ADX,
            a=builder.slot(high),
            b=builder.slot(low),
            c=builder.slot(true_range),
            count=len(lanes),
            state=4 * AVERAGE_STATE,
            integers=integers + more_integers,
            floats=floats + more_floats,
            targets=_by_output(
                builder, rows, [(n,) for n in lanes], ("adx", "plus_di", "minus_di"), lambda row: (period(row),)
            ),
        )


def _macd_key(row: Column) -> tuple[int, ...]:
    return (period(row, "fast"), period(row, "slow"), period(row, "signal"))


def _macd_refuse(row: Column) -> str | None:
    fast, slow, _ = _macd_key(row)
    return None if fast < slow else f"fast = {fast} is not shorter than slow = {slow}"


def _lower_macd(builder: Builder, rows: Rows) -> None:
    keys = sorted({_macd_key(row) for row in rows})
    for k in range(0, len(keys), op.LANES):
        lanes = keys[k : k + op.LANES]
        integers: list[int] = []
        floats: list[float] = []
        tables = (
            [(f, s - f, 1, 2 / (f + 1), 1 / f) for f, s, _ in lanes],
            [(s, 0, 1, 2 / (s + 1), 1 / s) for _, s, _ in lanes],
            [(g, 0, 1, 2 / (g + 1), 1 / g) for _, _, g in lanes],
        )
        for table in tables:
            more_integers, more_floats = _lanes(table)
            integers += more_integers
            floats += more_floats
        builder.emit(
            op.MACD,
            a=builder.slot(rows[0].inputs[0]),
            count=len(lanes),
            state=3 * AVERAGE_STATE,
            integers=integers,
            floats=floats,
            targets=_by_output(builder, rows, lanes, ("line", "signal", "histogram"), _macd_key),
        )


# --- windows --------------------------------------------------------------------------------------

_MOMENTS = {
    "mean": op.MEAN,
    "deviation": op.POPULATION_DEVIATION,
    "sample_deviation": op.SAMPLE_DEVIATION,
    "sum": op.SUM,
}


def _lower_moments(builder: Builder, rows: Rows) -> None:
    source = rows[0].inputs[0]
    ordered = sorted(rows, key=period)
    table = builder.table(op.MOMENT_TABLE, source)
    builder.emit(
        op.MOMENT_WINDOW,
        a=builder.slot(source),
        b=table,
        count=len(ordered),
        integers=[number for row in ordered for number in (period(row), _MOMENTS[str(row.output)])],
        targets=[builder.target(row.name) for row in ordered],
    )


def _lower_correlation(builder: Builder, rows: Rows) -> None:
    x, y = rows[0].inputs
    table = builder.pair_table(x, y)
    builder.emit(
        op.CORRELATION,
        a=builder.slot(x),
        b=builder.slot(y),
        c=builder.table(op.MOMENT_TABLE, x),
        d=builder.table(op.MOMENT_TABLE, y),
        count=len(rows),
        integers=[table, *map(period, rows)],
        targets=[builder.target(row.name) for row in rows],
    )


def _lower_extreme(table_code: int, window_code: int) -> Callable[[Builder, Rows], None]:
    def lower(builder: Builder, rows: Rows) -> None:
        source = rows[0].inputs[0]
        builder.emit(
            window_code,
            a=builder.slot(source),
            b=builder.table(table_code, source),
            count=len(rows),
            integers=[period(row) for row in rows],
            targets=[builder.target(row.name) for row in rows],
        )

    return lower


def _lower_stochastic(builder: Builder, rows: Rows) -> None:
    high, low, close = rows[0].inputs
    for window in sorted({period(row) for row in rows}):
        where = {row.output: builder.target(row.name) for row in rows if period(row) == window}
        builder.emit(
            op.STOCHASTIC,
            a=builder.slot(high),
            b=builder.slot(low),
            c=builder.slot(close),
            integers=[
                builder.table(op.MAXIMUM_TABLE, high),
                builder.table(op.MINIMUM_TABLE, low),
                window,
                builder.private_slot(),
                builder.private_slot(),
            ],
            targets=[where.get("k", -1 - op.SPARE), where.get("d", -1 - op.SPARE)],
        )


def _lower_time_deviation(builder: Builder, rows: Rows) -> None:
    source = rows[0].inputs[0]
    builder.emit(
        op.TIME_DEVIATION,
        a=builder.slot(source),
        b=builder.table(op.MOMENT_TABLE, source),
        count=len(rows),
        integers=[builder.rows_in(period(row, "minutes")) for row in rows],
        floats=[60.0 * period(row, "minutes") for row in rows],
        targets=[builder.target(row.name) for row in rows],
    )


# --- one row at a time ----------------------------------------------------------------------------


def _lower_true_range(builder: Builder, rows: Rows) -> None:
    high, low, close = (builder.slot(name) for name in rows[0].inputs)
    for row in rows:
        builder.emit(op.TRUE_RANGE, a=high, b=low, c=close, targets=[builder.target(row.name)])


def _lower_log_return(builder: Builder, rows: Rows) -> None:
    for row in rows:
        builder.emit(
            op.LOG_RETURN,
            a=builder.slot(row.inputs[0]),
            integers=[period(row, "bars")],
            targets=[builder.target(row.name)],
        )


def _lower_formula(builder: Builder, rows: Rows) -> None:
    for row in rows:
        builder.define(row)


def _lower_slope(builder: Builder, rows: Rows) -> None:
    builder.emit(
        op.SLOPE,
        a=builder.slot(rows[0].inputs[0]),
        count=len(rows),
        integers=[period(row) for row in rows],
        targets=[builder.target(row.name) for row in rows],
    )


# --- since the session's open ---------------------------------------------------------------------


def _lower_vwap(builder: Builder, rows: Rows) -> None:
    high, low, close, volume = (builder.slot(name) for name in rows[0].inputs)
    for row in rows:
        builder.emit(
            op.VWAP,
            a=high,
            b=low,
            c=close,
            d=volume,
            state=VWAP_STATE,
            floats=[builder.bar_minutes],
            targets=[builder.target(row.name)],
        )


_PROFILE = ("poc", "vah", "val", "volume_at_poc", "volume_at_vah", "volume_at_val")


def _lower_profile(builder: Builder, rows: Rows) -> None:
    high, low, volume = (builder.slot(name) for name in rows[0].inputs)
    where = {row.output: builder.target(row.name) for row in rows}
    builder.emit(
        op.PROFILE,
        a=high,
        b=low,
        c=volume,
        state=PROFILE_STATE,
        floats=[builder.tick_size, builder.bar_minutes],
        targets=[where.get(name, -1 - op.SPARE) for name in _PROFILE],
    )


_VARIANCE = ("one_session", "five_sessions")


def _lower_session_variance(builder: Builder, rows: Rows) -> None:
    where = {row.output: builder.target(row.name) for row in rows}
    builder.emit(
        op.SESSION_VARIANCE,
        a=builder.slot(rows[0].inputs[0]),
        state=SESSION_VARIANCE_STATE,
        floats=[builder.bar_minutes],
        targets=[where.get(name, -1 - op.SPARE) for name in _VARIANCE],
    )


def _lower_return_since(builder: Builder, rows: Rows) -> None:
    log_close, key = (builder.slot(name) for name in rows[0].inputs)
    for row in rows:
        builder.emit(op.RETURN_SINCE, a=log_close, b=key, state=RETURN_SINCE_STATE, targets=[builder.target(row.name)])


def _lower_session_sum(builder: Builder, rows: Rows) -> None:
    for row in rows:
        builder.emit(
            op.SESSION_SUM,
            a=builder.slot(row.inputs[0]),
            state=SESSION_SUM_STATE,
            floats=[builder.bar_minutes],
            targets=[builder.target(row.name)],
        )


# --- over days and changes --------------------------------------------------------------------------


def _lower_session_rank(builder: Builder, rows: Rows) -> None:
    for row in rows:
        sessions = period(row, "sessions")
        builder.emit(
            op.SESSION_RANK,
            a=builder.slot(row.inputs[0]),
            state=SESSION_RANK_STATE + sessions,
            integers=[sessions],
            targets=[builder.target(row.name)],
        )


def _lower_clock_deviation(builder: Builder, rows: Rows) -> None:
    for row in rows:
        builder.emit(
            op.CLOCK_DEVIATION,
            a=builder.slot(row.inputs[0]),
            state=CLOCK_DEVIATION_STATE,
            floats=[60.0 * period(row, "from"), 60.0 * period(row, "to"), builder.bar_minutes],
            targets=[builder.target(row.name)],
        )


def _lower_seasonal_mean(builder: Builder, rows: Rows) -> None:
    for row in rows:
        slots = DAY // period(row, "slot")
        builder.emit(
            op.SEASONAL_MEAN,
            a=builder.slot(row.inputs[0]),
            state=SEASONAL_MEAN_STATE + 2 * slots,
            integers=[slots],
            floats=[2.0 / (period(row, "span") + 1)],
            targets=[builder.target(row.name)],
        )


def _lower_unchanged_for(builder: Builder, rows: Rows) -> None:
    for row in rows:
        builder.emit(
            op.UNCHANGED_FOR,
            a=builder.slot(row.inputs[0]),
            state=UNCHANGED_FOR_STATE,
            targets=[builder.target(row.name)],
        )


def _lower_before_change(builder: Builder, rows: Rows) -> None:
    source, key = (builder.slot(name) for name in rows[0].inputs)
    for row in rows:
        builder.emit(op.BEFORE_CHANGE, a=source, b=key, state=BEFORE_CHANGE_STATE, targets=[builder.target(row.name)])


# --- the last minutes -------------------------------------------------------------------------------


_TOTALS = ("sum", "mean")


def _lower_time_window(builder: Builder, rows: Rows) -> None:
    numbers: list[int] = []
    for row in rows:
        numbers += [builder.rows_in(period(row, "minutes")), _MOMENTS[str(row.output)]]
    builder.emit(
        op.TIME_WINDOW,
        a=builder.slot(rows[0].inputs[0]),
        count=len(rows),
        integers=numbers,
        floats=[60.0 * period(row, "minutes") for row in rows],
        targets=[builder.target(row.name) for row in rows],
    )


def _lower_profile_window(builder: Builder, rows: Rows) -> None:
    high, low, volume = (builder.slot(name) for name in rows[0].inputs)
    lengths = sorted({period(row, "minutes") for row in rows})
    where = {(period(row, "minutes"), row.output): builder.target(row.name) for row in rows}
    first, _, _ = (builder.private_slot() for _ in range(3))
    builder.emit(
        op.PROFILE_WINDOW,
        a=high,
        b=low,
        c=volume,
        d=first,
        count=len(lengths),
        integers=[builder.rows_in(minutes) for minutes in lengths],
        floats=[builder.tick_size, *(60.0 * minutes for minutes in lengths)],
        targets=[where.get((minutes, name), -1 - op.SPARE) for minutes in lengths for name in _PROFILE],
    )


def _lower_time_slope(builder: Builder, rows: Rows) -> None:
    builder.emit(
        op.TIME_SLOPE,
        a=builder.slot(rows[0].inputs[0]),
        b=builder.private_slot(),
        count=len(rows),
        integers=[builder.rows_in(period(row, "minutes")) for row in rows],
        floats=[60.0 * period(row, "minutes") for row in rows],
        targets=[builder.target(row.name) for row in rows],
    )


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
        Kernel("column", "an input as it is", ("any",), POINTWISE, _lower_formula, _no_warmup),
        Kernel(
            "ema",
            "exponential average, alpha 2/(n+1), seeded with a simple average",
            ("any",),
            HOLDS,
            _lower_averages,
            _first_full_window,
            parameters=_PERIOD,
        ),
        Kernel(
            "wilder",
            "Wilder's average, alpha 1/n, seeded with a simple average",
            ("any",),
            HOLDS,
            _lower_averages,
            _first_full_window,
            parameters=_PERIOD,
        ),
        Kernel("rsi", "relative strength index", ("price",), HOLDS, _lower_rsi, _wilder_of_changes, parameters=_PERIOD),
        Kernel(
            "adx",
            "average directional index and directional indicators",
            ("high", "low", "true_range"),
            HOLDS,
            _lower_adx,
            _adx_warmup,
            outputs=("adx", "plus_di", "minus_di"),
            parameters=_PERIOD,
        ),
        Kernel(
            "macd",
            "moving average convergence/divergence",
            ("price",),
            HOLDS,
            _lower_macd,
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
            _lower_moments,
            _first_full_window,
            outputs=tuple(_MOMENTS),
            parameters=_PERIOD,
        ),
        Kernel(
            "correlation",
            "Pearson's correlation of two columns over the last bars; null where either does not vary",
            ("any", "any"),
            FORGETS,
            _lower_correlation,
            _first_full_window,
            parameters={"period": Parameter(3, op.HISTORY, "length in bars")},
        ),
        Kernel(
            "slope",
            "least-squares slope against time over the last bars, per bar",
            ("any",),
            FORGETS,
            _lower_slope,
            _first_full_window,
            parameters=_PERIOD,
        ),
        Kernel(
            "highest",
            "largest of the last bars",
            ("any",),
            FORGETS,
            _lower_extreme(op.MAXIMUM_TABLE, op.MAXIMUM_WINDOW),
            _first_full_window,
            parameters=_PERIOD,
        ),
        Kernel(
            "lowest",
            "smallest of the last bars",
            ("any",),
            FORGETS,
            _lower_extreme(op.MINIMUM_TABLE, op.MINIMUM_WINDOW),
            _first_full_window,
            parameters=_PERIOD,
        ),
        Kernel(
            "stochastic",
            "slow stochastic, %K smoothed over 3, %D over 3 more",
            ("high", "low", "close"),
            FORGETS,
            _lower_stochastic,
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
            _lower_time_deviation,
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
            _lower_true_range,
            lambda _row: Warmup(rows=1),
        ),
        Kernel(
            "log_return",
            "logarithm of the ratio to an earlier value",
            ("price",),
            POINTWISE,
            _lower_log_return,
            lambda row: Warmup(rows=period(row, "bars")),
            parameters={"bars": Parameter(1, op.HISTORY, "how far back")},
        ),
        Kernel("formula", "arithmetic over columns", (), POINTWISE, _lower_formula, _no_warmup),
        Kernel(
            "vwap",
            "volume-weighted average price since the session's open",
            ("high", "low", "close", "volume"),
            SKIPS,
            _lower_vwap,
            _no_warmup,
        ),
        Kernel(
            "profile",
            "volume profile of the session",
            ("high", "low", "volume"),
            SKIPS,
            _lower_profile,
            _no_warmup,
            outputs=_PROFILE,
        ),
        Kernel(
            "session_variance",
            "realised volatility of whole sessions, annualised with 252",
            ("log_return",),
            KEEPS,
            _lower_session_variance,
            lambda row: Warmup(sessions=1 if row.output == "one_session" else 5),
            outputs=_VARIANCE,
        ),
        Kernel(
            "return_since",
            "a value less its value when a slow one became known (s UTC); of a log price, the log return since then",
            ("any", "known_at"),
            POINTWISE,
            _lower_return_since,
            lambda _row: Warmup(sessions=1),
        ),
        Kernel("session_sum", "sum since the session's open", ("any",), KEEPS, _lower_session_sum, _no_warmup),
        Kernel(
            "session_rank",
            "place between the lowest and the highest of earlier sessions' last values and the present one, 0..1; "
            "0.5 where these are equal",
            ("any",),
            PASSES,
            _lower_session_rank,
            lambda row: Warmup(sessions=period(row, "sessions")),
            parameters={"sessions": Parameter(2, 60, "earlier sessions")},
        ),
        Kernel(
            "clock_deviation",
            "sample standard deviation of the returns of bars that close in a daily window of New York's clock, "
            "held until the next one opens",
            ("log_return",),
            KEEPS,
            _lower_clock_deviation,
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
            _lower_seasonal_mean,
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
            _lower_unchanged_for,
            _no_warmup,
        ),
        Kernel(
            "before_change",
            "last value that stood while a key had its previous value",
            ("any", "key"),
            BY_KEY,
            _lower_before_change,
            lambda _row: Warmup(sessions=1),
        ),
        Kernel(
            "time_window",
            "sum or mean over the bars inside a time window; a gap leaves fewer of them",
            ("any",),
            FORGETS,
            _lower_time_window,
            _no_warmup,
            outputs=_TOTALS,
            parameters={"minutes": Parameter(1, op.HISTORY - 1, "length in minutes")},
            unfit=_minutes_unfit(1),
            clock_warmup=_minutes_warmup,
        ),
        Kernel(
            "profile_window",
            "volume profile of the bars inside a time window; null beyond 2048 ticks",
            ("high", "low", "volume"),
            FORGETS,
            _lower_profile_window,
            _no_warmup,
            outputs=_PROFILE,
            parameters={"minutes": Parameter(1, 60, "length in minutes")},
            unfit=_minutes_unfit(2),
            clock_warmup=_minutes_warmup,
        ),
        Kernel(
            "time_slope",
            "least-squares slope per minute over the bars inside a time window, of which there must be three",
            ("any",),
            FORGETS,
            _lower_time_slope,
            _no_warmup,
            parameters={"minutes": Parameter(2, op.HISTORY - 1, "length in minutes")},
            unfit=_minutes_unfit(3),
            clock_warmup=_minutes_warmup,
        ),
    )
}
