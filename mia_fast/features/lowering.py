"""How catalogue rows become instructions of :mod:`mia_kernels.program`: one function for each kernel.

Rows that share a kernel, and where the kernel gains by it their inputs, come together and become as few instructions
as their lanes allow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mia_fast.features.builder import Builder
from mia_fast.features.rows import DAY, Column, Rows, period
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
from mia_kernels.session import PROFILE_STATE, RETURN_SINCE_STATE, SESSION_VARIANCE_STATE, VWAP_STATE

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


def lower_averages(builder: Builder, rows: Rows) -> None:
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


def lower_rsi(builder: Builder, rows: Rows) -> None:
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
    """Targets of a kernel with several outputs: for each output, for each lane.

    Unused ones get a working column each: a kernel may read back what it wrote, so no two may share one.
    """
    where = {(of(row), row.output): builder.target(row.name) for row in rows}
    wanted = [(key, name) for name in names for key in keys]
    return [where[each] if each in where else -1 - builder.private_slot() for each in wanted]


def lower_adx(builder: Builder, rows: Rows) -> None:
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


def macd_key(row: Column) -> tuple[int, ...]:
    return (period(row, "fast"), period(row, "slow"), period(row, "signal"))


def lower_macd(builder: Builder, rows: Rows) -> None:
    keys = sorted({macd_key(row) for row in rows})
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
            targets=_by_output(builder, rows, lanes, ("line", "signal", "histogram"), macd_key),
        )


# --- windows --------------------------------------------------------------------------------------

MOMENTS = {
    "mean": op.MEAN,
    "deviation": op.POPULATION_DEVIATION,
    "sample_deviation": op.SAMPLE_DEVIATION,
    "sum": op.SUM,
}


def lower_moments(builder: Builder, rows: Rows) -> None:
    source = rows[0].inputs[0]
    ordered = sorted(rows, key=period)
    table = builder.table(op.MOMENT_TABLE, source)
    builder.emit(
        op.MOMENT_WINDOW,
        a=builder.slot(source),
        b=table,
        count=len(ordered),
        integers=[number for row in ordered for number in (period(row), MOMENTS[str(row.output)])],
        targets=[builder.target(row.name) for row in ordered],
    )


def lower_correlation(builder: Builder, rows: Rows) -> None:
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


def lower_extreme(table_code: int, window_code: int) -> Callable[[Builder, Rows], None]:
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


def lower_stochastic(builder: Builder, rows: Rows) -> None:
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


def lower_time_deviation(builder: Builder, rows: Rows) -> None:
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


def lower_true_range(builder: Builder, rows: Rows) -> None:
    high, low, close = (builder.slot(name) for name in rows[0].inputs)
    for row in rows:
        builder.emit(op.TRUE_RANGE, a=high, b=low, c=close, targets=[builder.target(row.name)])


def lower_log_return(builder: Builder, rows: Rows) -> None:
    for row in rows:
        builder.emit(
            op.LOG_RETURN,
            a=builder.slot(row.inputs[0]),
            integers=[period(row, "bars")],
            targets=[builder.target(row.name)],
        )


def lower_formula(builder: Builder, rows: Rows) -> None:
    for row in rows:
        builder.define(row)


def lower_slope(builder: Builder, rows: Rows) -> None:
    builder.emit(
        op.SLOPE,
        a=builder.slot(rows[0].inputs[0]),
        count=len(rows),
        integers=[period(row) for row in rows],
        targets=[builder.target(row.name) for row in rows],
    )


# --- since the session's open ---------------------------------------------------------------------


def lower_vwap(builder: Builder, rows: Rows) -> None:
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


PROFILE = ("poc", "vah", "val", "volume_at_poc", "volume_at_vah", "volume_at_val")


def lower_profile(builder: Builder, rows: Rows) -> None:
    high, low, volume = (builder.slot(name) for name in rows[0].inputs)
    where = {row.output: builder.target(row.name) for row in rows}
    builder.emit(
        op.PROFILE,
        a=high,
        b=low,
        c=volume,
        state=PROFILE_STATE,
        floats=[builder.tick_size, builder.bar_minutes],
        targets=[where.get(name, -1 - op.SPARE) for name in PROFILE],
    )


VARIANCE = ("one_session", "five_sessions")


def lower_session_variance(builder: Builder, rows: Rows) -> None:
    where = {row.output: builder.target(row.name) for row in rows}
    builder.emit(
        op.SESSION_VARIANCE,
        a=builder.slot(rows[0].inputs[0]),
        state=SESSION_VARIANCE_STATE,
        floats=[builder.bar_minutes],
        targets=[where.get(name, -1 - op.SPARE) for name in VARIANCE],
    )


def lower_return_since(builder: Builder, rows: Rows) -> None:
    log_close, key = (builder.slot(name) for name in rows[0].inputs)
    for row in rows:
        builder.emit(op.RETURN_SINCE, a=log_close, b=key, state=RETURN_SINCE_STATE, targets=[builder.target(row.name)])


def lower_session_sum(builder: Builder, rows: Rows) -> None:
    for row in rows:
        builder.emit(
            op.SESSION_SUM,
            a=builder.slot(row.inputs[0]),
            state=SESSION_SUM_STATE,
            floats=[builder.bar_minutes],
            targets=[builder.target(row.name)],
        )


# --- over days and changes --------------------------------------------------------------------------


def lower_session_rank(builder: Builder, rows: Rows) -> None:
    for row in rows:
        sessions = period(row, "sessions")
        builder.emit(
            op.SESSION_RANK,
            a=builder.slot(row.inputs[0]),
            state=SESSION_RANK_STATE + sessions,
            integers=[sessions],
            targets=[builder.target(row.name)],
        )


def lower_clock_deviation(builder: Builder, rows: Rows) -> None:
    for row in rows:
        builder.emit(
            op.CLOCK_DEVIATION,
            a=builder.slot(row.inputs[0]),
            state=CLOCK_DEVIATION_STATE,
            floats=[60.0 * period(row, "from"), 60.0 * period(row, "to"), builder.bar_minutes],
            targets=[builder.target(row.name)],
        )


def lower_seasonal_mean(builder: Builder, rows: Rows) -> None:
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


def lower_unchanged_for(builder: Builder, rows: Rows) -> None:
    for row in rows:
        builder.emit(
            op.UNCHANGED_FOR,
            a=builder.slot(row.inputs[0]),
            state=UNCHANGED_FOR_STATE,
            targets=[builder.target(row.name)],
        )


def lower_before_change(builder: Builder, rows: Rows) -> None:
    source, key = (builder.slot(name) for name in rows[0].inputs)
    for row in rows:
        builder.emit(op.BEFORE_CHANGE, a=source, b=key, state=BEFORE_CHANGE_STATE, targets=[builder.target(row.name)])


# --- the last minutes -------------------------------------------------------------------------------


TOTALS = ("sum", "mean")


def lower_time_window(builder: Builder, rows: Rows) -> None:
    numbers: list[int] = []
    for row in rows:
        numbers += [builder.rows_in(period(row, "minutes")), MOMENTS[str(row.output)]]
    builder.emit(
        op.TIME_WINDOW,
        a=builder.slot(rows[0].inputs[0]),
        count=len(rows),
        integers=numbers,
        floats=[60.0 * period(row, "minutes") for row in rows],
        targets=[builder.target(row.name) for row in rows],
    )


def lower_profile_window(builder: Builder, rows: Rows) -> None:
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
        targets=[where.get((minutes, name), -1 - op.SPARE) for minutes in lengths for name in PROFILE],
    )


def lower_time_slope(builder: Builder, rows: Rows) -> None:
    builder.emit(
        op.TIME_SLOPE,
        a=builder.slot(rows[0].inputs[0]),
        b=builder.private_slot(),
        count=len(rows),
        integers=[builder.rows_in(period(row, "minutes")) for row in rows],
        floats=[60.0 * period(row, "minutes") for row in rows],
        targets=[builder.target(row.name) for row in rows],
    )
