"""A simulated market: E-mini S&P 500 sessions with trades, order book, option chain, VIX and calendar.

It exists so that the demo and the tests need no licensed data. Everything it writes says that it is
simulated: the first line of its README and the metadata of every Parquet file.

The same arguments and library versions give the same bytes. Across processors and versions the values
stay the same: whatever is stored lies on a grid (ticks, contracts, cents, microseconds), so a last bit of
``exp`` that differs between two processors is rounded away.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mia_fast import clock, files
from mia_fast.errors import DataError
from mia_fast.simulate import calendar, market, options
from mia_fast.simulate.calendar import SESSION_MINUTES
from mia_fast.simulate.market import TICK, Floats, Ints, Minutes, State

__all__ = ["FIRST_SESSION", "NOTICE", "TABLES", "VERSION", "simulate"]

VERSION = 1
"""Version of the model: raise it with every change that moves a number."""

NOTICE = "SIMULATED DATA - invented by `mia-fast simulate`; no price in this folder was ever traded."

FIRST_SESSION = "first_session"
"""Metadata key of every file: the trade date at which a replay of it should begin."""

TABLES = ("bars", "trades", "book", "chain", "cross", "events")

HISTORY_SESSIONS = 60
CALENDAR_TAIL = dt.timedelta(days=21)
START_PRICE = 5850.0

_TIMESTAMP = pa.timestamp("ns", tz="UTC")
_LADDER = [
    (f"{side}_{what}_{level}", pa.float64() if what == "price" else pa.int64())
    for side in ("bid", "ask")
    for level in range(1, market.LEVELS + 1)
    for what in ("price", "size")
]
_SCHEMAS: dict[str, pa.Schema] = {
    "bars": pa.schema(
        [
            ("timestamp", _TIMESTAMP),
            ("symbol", pa.string()),
            *((name, pa.float64()) for name in ("open", "high", "low", "close")),
            *((name, pa.int64()) for name in ("volume", "bid_volume", "ask_volume", "trade_count")),
        ]
    ),
    "trades": pa.schema(
        [("timestamp", _TIMESTAMP), ("price", pa.float64()), ("size", pa.int64()), ("side", pa.string())]
    ),
    "book": pa.schema([("timestamp", _TIMESTAMP), *_LADDER]),
    "chain": pa.schema(
        [
            ("quote_time", _TIMESTAMP),
            ("market_time", _TIMESTAMP),
            ("underlying_price", pa.float64()),
            ("root", pa.string()),
            ("settlement", pa.string()),
            ("expiry", pa.date32()),
            ("strike", pa.float64()),
            ("type", pa.string()),
            ("bid", pa.float64()),
            ("ask", pa.float64()),
            ("open_interest", pa.int64()),
            ("volume", pa.int64()),
        ]
    ),
    "cross": pa.schema(
        [("timestamp", _TIMESTAMP), ("symbol", pa.string()), ("close", pa.float64()), ("volume", pa.int64())]
    ),
    "events": pa.schema(
        [("start_time", _TIMESTAMP), ("type", pa.string()), ("impact", pa.float64()), ("cluster_id", pa.int64())]
    ),
}
_DELTA = {"timestamp": "DELTA_BINARY_PACKED"}
_GROUP_ROWS = 65_536

_CASH_OPEN, _CASH_CLOSE = market.minute_of(9, 30), market.minute_of(16, 0)
_VIX_CLOSE = market.minute_of(16, 15)
_SPY_RATIO = 0.09975  # SPY holds a tenth of the index, less the dividend it has not yet paid out
_SPY_VOLUME = 35.0  # shares of SPY per contract of ES


class _Sink:
    """Writes one table in row groups of about ``_GROUP_ROWS`` rows, under its final name only when complete."""

    def __init__(self, stack: contextlib.ExitStack, path: Path, schema: pa.Schema) -> None:
        temporary = stack.enter_context(files.replacing(path))
        self._schema = schema
        delta = "timestamp" in schema.names
        self._writer = stack.enter_context(
            pq.ParquetWriter(
                temporary,
                schema,
                compression="zstd",
                compression_level=15,
                use_dictionary=[name for name in schema.names if name != "timestamp"],
                column_encoding=_DELTA if delta else None,
            )
        )
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def write(self, columns: dict[str, Any]) -> None:
        table = pa.table(
            [pa.array(columns[field.name], type=field.type) for field in self._schema], schema=self._schema
        )
        self._waiting.append(table)
        self._rows += table.num_rows
        if self._rows >= _GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks(), row_group_size=self._rows)
            self._waiting, self._rows = [], 0


def simulate(
    out: Path,
    *,
    seed: int = 7,
    start: dt.date = dt.date(2025, 5, 13),
    sessions: int = 2,
    warmup_sessions: int = 0,
    tables: Sequence[str] | None = None,
    book_seconds: int = 10,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Path]:
    """Write a simulated market into the folder ``out``.

    Parameters
    ----------
    out
        Folder; created if need be. Files of the same names are replaced, each at once.
    seed
        Non-negative. The same seed gives the same market; a longer run begins with the shorter one.
    start
        Date of the first session (New York; the session opens at 18:00 of the evening before). A day
        without a session moves on to the next one.
    sessions
        Number of sessions. Memory does not grow with it.
    warmup_sessions
        Sessions before the first that have bars and cross-asset closes only: history for features to
        warm up on.
    tables
        Names out of :data:`TABLES`; all by default. ``("bars",)`` is the quick way to a long history.
        The choice does not change a table's content.
    book_seconds
        Seconds between two snapshots of the book; a divisor of 60.
    progress
        Called as ``progress("sessions", done, all)`` after each session, those of the warm-up included.

    Returns
    -------
    dict
        Path by table name, with ``macro_events`` (the calendar as the contract's CSV) beside
        ``events``, and ``readme``.

    Raises
    ------
    DataError
        An argument out of its range.
    """
    chosen = _checked(tables, seed=seed, sessions=sessions, warmup_sessions=warmup_sessions, book_seconds=book_seconds)
    days = calendar.sessions_from(start, sessions)
    warm_days = calendar.sessions_before(days[0], warmup_sessions) if warmup_sessions else []
    history_days = calendar.sessions_before((warm_days or days)[0], HISTORY_SESSIONS)
    command = f"mia-fast simulate --seed {seed} --start {days[0]} --sessions {sessions}"
    if warmup_sessions:
        command += f" --warmup-sessions {warmup_sessions}"
    if book_seconds != 10:
        command += f" --book-seconds {book_seconds}"
    label = {
        "simulated": "true",
        "notice": NOTICE,
        "simulator_version": str(VERSION),
        "seed": str(seed),
        "command": command,
        FIRST_SESSION: str(days[0]),
    }
    paths = {name: out / f"{name}.parquet" for name in TABLES if name in chosen}

    log_price, log_vix, state = market.history(seed, HISTORY_SESSIONS, START_PRICE)
    with contextlib.ExitStack() as stack:
        sinks = {name: _Sink(stack, path, _SCHEMAS[name].with_metadata(label)) for name, path in paths.items()}
        if "cross" in sinks:
            sinks["cross"].write(_daily(history_days, log_price, log_vix, state))
        previous = history_days[-1]
        warm_sinks = {name: sink for name, sink in sinks.items() if name in ("bars", "cross")}
        for number, day in enumerate([*warm_days, *days]):
            written = warm_sinks if number < len(warm_days) else sinks
            _session(written, seed, number, day, state, weekend=(day - previous).days > 1, book_seconds=book_seconds)
            previous = day
            if progress is not None:
                progress("sessions", number + 1, len(warm_days) + sessions)
        if "events" in sinks:
            planned = calendar.events_between((warm_days or days)[0], days[-1] + CALENDAR_TAIL)
            sinks["events"].write(
                {
                    "start_time": [event.start_ns for event in planned],
                    "type": [event.release.type for event in planned],
                    "impact": [event.release.impact for event in planned],
                    "cluster_id": [event.release.family for event in planned],
                }
            )
            paths["macro_events"] = out / "macro_events.csv"
            lines = [
                f"{clock.iso(event.start_ns)},{event.release.type},{event.release.impact},{event.release.family}\n"
                for event in planned
            ]
            files.write_text(paths["macro_events"], "start_time,type,impact,cluster_id\n" + "".join(lines))
        for sink in sinks.values():
            sink.flush()
    paths["readme"] = out / "README.md"
    files.write_text(paths["readme"], _readme(command, seed, days, warm_days, list(paths)[:-1]))
    return paths


def _checked(
    tables: Sequence[str] | None, *, seed: int, sessions: int, warmup_sessions: int, book_seconds: int
) -> frozenset[str]:
    then = "nothing was written"
    if seed < 0:
        raise DataError(f"the seed is {seed}", where="seed", hint="take 0 or a positive integer", then=then)
    if sessions < 1:
        raise DataError(f"{sessions} sessions were asked for", where="sessions", hint="take 1 or more", then=then)
    if warmup_sessions < 0:
        raise DataError(
            f"{warmup_sessions} sessions of warm-up were asked for",
            where="warmup_sessions",
            hint="take 0 or more",
            then=then,
        )
    if book_seconds < 1 or 60 % book_seconds:
        raise DataError(
            f"{book_seconds} seconds between snapshots do not fill a minute",
            where="book_seconds",
            hint="take a divisor of 60, for instance 10",
            then=then,
        )
    chosen = frozenset(TABLES if tables is None else tables)
    unknown = sorted(chosen - set(TABLES))
    if unknown or not chosen:
        raise DataError(
            f"unknown table {unknown[0]!r}" if unknown else "no table was asked for",
            where="tables",
            hint="choose from " + ", ".join(TABLES),
            then=then,
        )
    return chosen


def _session(
    sinks: dict[str, _Sink], seed: int, number: int, day: dt.date, state: State, *, weekend: bool, book_seconds: int
) -> None:
    before = State(state.log_price, state.log_vix, state.fast, state.volume, state.basis)
    events = calendar.events_between(day, day)
    session = market.minutes(seed, number, state, calendar.session_open_ns(day), events, weekend=weekend)
    if sinks.keys() & {"bars", "trades", "book"}:
        deals = market.trades(seed, number, session)
        if "bars" in sinks:
            sinks["bars"].write({"symbol": pa.repeat("ES", SESSION_MINUTES), **market.bars(session, deals)})
        if "trades" in sinks:
            sinks["trades"].write(
                {
                    "timestamp": deals.timestamp,
                    "price": deals.ticks * TICK,
                    "size": deals.size,
                    "side": pa.array(["S", "B"]).take(pa.array(deals.buy.astype(np.int8))),
                }
            )
        if "book" in sinks:
            sinks["book"].write(market.book(seed, number, session, deals, book_seconds))
    if "chain" in sinks:
        reference = float(np.exp(before.log_price))
        for hour, minute in options.SNAPSHOTS:
            at = market.minute_of(hour, minute) - 1  # the end of that minute is the instant of the snapshot
            sinks["chain"].write(
                options.snapshot(
                    seed,
                    number,
                    day,
                    int(session.end_ns[at]),
                    underlying=float(_index(session)[at]),
                    reference=round(reference / 25) * 25.0,
                    vix=float(np.exp(session.log_vix[at])),
                )
            )
    if "cross" in sinks:
        sinks["cross"].write(_intraday(seed, number, session))


def _index(session: Minutes) -> Floats:
    """The cash index at the minutes' ends, index points rounded to cents."""
    return np.asarray(np.round(np.exp(session.log_price) - session.basis, 2))


def _daily(days: list[dt.date], log_price: Floats, log_vix: Floats, state: State) -> dict[str, Any]:
    """The history before the first session: VIX and VIX3M at 16:15 New York, SPX and SPY at 16:00."""
    index = (np.exp(log_price) - state.basis) / (1.0 + market.carry(1.0))
    vix = np.exp(log_vix)
    closes = np.stack([index, _SPY_RATIO * index, vix, options.vix3m(vix)], axis=1)
    volume = np.array([70_000_000, 0]) * np.sqrt(vix / 18)[:, None]
    instants = [(calendar.new_york_ns(day, 16, 0), calendar.new_york_ns(day, 16, 15)) for day in days]
    return {
        "timestamp": [at for cash, late in instants for at in (cash, cash, late, late)],
        "symbol": ["SPX", "SPY", "VIX", "VIX3M"] * len(days),
        "close": np.round(closes, 2).ravel(),
        "volume": [
            shares
            for row in np.rint(volume[:, 0] / 100).astype(np.int64) * 100
            for shares in (None, int(row), None, None)
        ],
    }


def _intraday(seed: int, number: int, session: Minutes) -> dict[str, Any]:
    """Minute closes of the cash session, stamped with the minute's end: the instant at which they are known."""
    rng = market.generator(seed, market.CROSS, number)
    spread = rng.standard_normal((2, SESSION_MINUTES))
    index = _index(session)
    vix = np.exp(session.log_vix)
    third = options.vix3m(vix) * np.exp(0.001 * spread[0])
    shares = np.rint(session.volume * _SPY_VOLUME * np.exp(0.25 * spread[1]) / 100).astype(np.int64) * 100
    cash, late = np.arange(_CASH_OPEN, _CASH_CLOSE), np.arange(_CASH_OPEN, _VIX_CLOSE)
    pieces: list[tuple[str, Ints, Floats]] = [
        ("SPX", cash, index),
        ("SPY", cash, _SPY_RATIO * index),
        ("VIX", late, vix),
        ("VIX3M", late, third),
    ]
    at = np.concatenate([minute for _, minute, _ in pieces])
    symbol = np.repeat(np.arange(len(pieces)), [minute.size for _, minute, _ in pieces])
    close = np.concatenate([np.round(values[minute], 2) for _, minute, values in pieces])
    order = np.lexsort((symbol, at))
    return {
        "timestamp": session.end_ns[at[order]],
        "symbol": pa.array([name for name, _, _ in pieces]).take(pa.array(symbol[order])),
        "close": close[order],
        "volume": pa.array(shares[at[order]], mask=symbol[order] != 1),
    }


_DESCRIPTIONS = {
    "bars": "minute bars of ES; `timestamp` is the bar's start; the aggregation of the trades. `ask_volume` was bought"
    " by the aggressor, `bid_volume` sold",
    "trades": "every trade: price, size, `side` of the aggressor (B bought at the ask, S sold at the bid)",
    "book": "ten levels every {seconds} seconds, one millisecond before the boundary",
    "chain": "SPX and SPXW quotes at 10:00, 12:30 and 15:30 New York of each session",
    "cross": "closes of SPX, SPY, VIX and VIX3M: {history} daily ones before the first session, then by the minute"
    " of the cash session; `timestamp` is the instant at which the value is known (the minute's end)",
    "events": "scheduled releases up to {tail} days after the last session; `cluster_id` labels the family"
    " (0 inflation, 1 labour, 2 central bank, 3 activity)",
    "macro_events": "the same calendar as `data/macro_events.csv` of a workspace",
}


def _readme(command: str, seed: int, days: list[dt.date], warm_days: list[dt.date], written: list[str]) -> str:
    seconds = command.split("--book-seconds ")[1] if "--book-seconds" in command else "10"
    rows = [
        f"| `{name}.{'csv' if name == 'macro_events' else 'parquet'}` | "
        + _DESCRIPTIONS[name].format(seconds=seconds, history=HISTORY_SESSIONS, tail=CALENDAR_TAIL.days)
        + " |\n"
        for name in written
    ]
    warm = f"- bars and cross begin {len(warm_days)} sessions earlier, on {warm_days[0]}\n" if warm_days else ""
    return (
        f"{NOTICE}\n\n"
        f"- made by: `{command}`\n"
        f"- seed {seed}, simulator version {VERSION}\n"
        f"- sessions: {len(days)}, {days[0]} to {days[-1]} (18:00 New York of the evening before to 17:00)\n"
        f"{warm}"
        "- all times are UTC; prices in index points, sizes in contracts; the label is also in each Parquet file's"
        " metadata\n\n"
        "| file | content |\n| --- | --- |\n" + "".join(rows) + "\n"
        "Days and hours are real, everything else is drawn at random: the calendar follows rules of thumb, not the"
        " published one. Not modelled: contract rolls, early closes, trading halts. A day on which the New York Stock"
        " Exchange is closed has no session.\n"
    )
