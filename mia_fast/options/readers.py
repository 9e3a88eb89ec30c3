"""Option chains as people have them, as one table with the chain's canonical columns.

* Cboe's delayed quotes, the CSV that the web page offers (``spx_quotedata.csv``) and the JSON behind it
  (``/api/global/delayed_quotes/options/_SPX.json``): 15 minutes late, so ``market_time`` - what T is
  measured from - lies before ``quote_time``.
* What ``yfinance.Ticker(...).option_chain(...)`` returns, one expiry or a list of several.
* A tidy Parquet, CSV or frame: :func:`mia_fast.tables.read_table`, as every other input.

Nothing is invented: a symbol that is no option symbol, a missing price of the underlying or a missing
instant is an error with its place.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl

from mia_fast.errors import DataError
from mia_fast.options.chain import NEW_YORK
from mia_fast.options.config import OptionsConfig, options_config
from mia_fast.workspace import AnyWorkspace, Workspace

_THEN = "the chain was not read"
_SYMBOL = r"^([A-Z]+\d?)\s*(\d{6})([CP])(\d{8})$"  # OCC: root, expiry, type, strike in thousandths
_DELAY = dt.timedelta(minutes=15)
_CLOSE, _EVENING = dt.time(16, 15), dt.time(20, 15)
_UTC = dt.UTC
_ZONES: Final = {"EDT": -4, "EST": -5, "CDT": -5, "CST": -6, "UTC": 0, "GMT": 0}
_PAGE = re.compile(r"Date: (\w+ \d{1,2}, \d{4}) at (\d{1,2}:\d{2}) (AM|PM) ([A-Z]{3})")
_SIDE = ("symbol", "last", "net", "bid", "ask", "volume", "iv", "delta", "gamma", "open_interest")
_COLUMNS = (
    "quote_time",
    "market_time",
    "underlying_price",
    "root",
    "settlement",
    "expiry",
    "strike",
    "type",
    "bid",
    "ask",
    "last",
    "iv",
    "delta",
    "gamma",
    "open_interest",
    "volume",
    "symbol",
)


def read_chain(
    source: Any,
    *,
    underlying_price: float | None = None,
    quote_time: dt.datetime | None = None,
    workspace: AnyWorkspace | None = None,
) -> pl.DataFrame:
    """A chain in any of the formats above, with the canonical columns.

    Parameters
    ----------
    source
        Path of a Cboe CSV or JSON, the object that yfinance's ``option_chain`` returns or a list of them;
        anything else goes to :func:`mia_fast.tables.read_table` as the table ``chain``.
    underlying_price, quote_time
        For yfinance, where the object does not hold them: S, and when the quotes were taken (with a zone).
    workspace
        Whose configuration tells the settlement of each root and the mapping of tidy tables.

    Raises
    ------
    DataError
        The source cannot be read as what it looks like.
    """
    place = Workspace.current(workspace)
    if isinstance(source, str | Path):
        path = Path(source)
        if path.suffix.lower() == ".json":
            return read_cboe_json(path, options_config(place))
        if path.suffix.lower() == ".csv" and is_cboe_csv(path):
            return read_cboe_csv(path, options_config(place))
    parts = source if isinstance(source, list) else [source]
    if parts and all(hasattr(part, "calls") and hasattr(part, "puts") for part in parts):
        return from_yfinance(parts, options_config(place), underlying_price=underlying_price, quote_time=quote_time)
    from mia_fast.tables import read_table

    return read_table("chain", source, workspace=place).frame


def is_cboe_csv(path: Path) -> bool:
    """Whether the head of a CSV is that of Cboe's delayed quotes."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = [next(file, "") for _ in range(4)]
    except (OSError, UnicodeDecodeError):
        return False
    return any(line.startswith("Expiration Date,Calls,") for line in head)


def read_cboe_csv(path: Path, config: OptionsConfig) -> pl.DataFrame:
    """Cboe's ``*_quotedata.csv``: three lines of heading, then calls and puts side by side."""
    text = path.read_text(encoding="utf-8-sig")
    lines = text.splitlines()
    table = next((number for number, line in enumerate(lines) if line.startswith("Expiration Date,Calls,")), None)
    heading = "\n".join(lines[: table or 0])
    last = re.search(r"Last: ([\d.]+)", heading)
    moment = _PAGE.search(heading)
    if table is None or last is None or moment is None or moment[4] not in _ZONES:
        raise DataError(
            "the heading lacks 'Last: <price>', 'Date: <month day, year> at <time> <zone>' or the column names",
            where=str(path),
            hint="save the CSV as the delayed-quotes page of Cboe gives it, in its English form",
            then=_THEN,
        )
    zone = dt.timezone(dt.timedelta(hours=_ZONES[moment[4]]))
    at = dt.datetime.strptime(f"{moment[1]} {moment[2]} {moment[3]}", "%B %d, %Y %I:%M %p").replace(tzinfo=zone)
    names = ["expiration", *(f"call_{name}" for name in _SIDE), "strike", *(f"put_{name}" for name in _SIDE)]
    body = "\n".join(lines[table + 1 :]).encode()
    try:
        raw = pl.read_csv(body, has_header=False, new_columns=names, infer_schema=False, truncate_ragged_lines=False)
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"the table cannot be read ({str(error).splitlines()[0]})",
            where=str(path),
            hint="the file is cut or was edited; save it again",
            then=_THEN,
        ) from error
    if raw.width != len(names):
        raise DataError(
            f"{raw.width} columns, {len(names)} expected",
            where=str(path),
            hint="save the CSV with all columns of the quote table",
            then=_THEN,
        )
    sides = [
        raw.select(*(pl.col(f"{side}_{name}").alias(name) for name in _SIDE if name != "net")).with_columns(
            pl.exclude("symbol").cast(pl.Float64, strict=False)
        )
        for side in ("call", "put")
    ]
    return _canonical(pl.concat(sides), float(last[1]), at, _market_time(at), config, str(path))


def read_cboe_json(path: Path, config: OptionsConfig) -> pl.DataFrame:
    """The JSON of Cboe's delayed quotes: ``timestamp`` and ``data`` with ``options`` and ``current_price``.

    ``data.last_trade_time`` is New York's time. ``timestamp`` carries no zone; it is read as UTC, unless that
    would put it before the last trade: then it is New York's time too.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        data = document["data"]
        rows = data["options"]
        price = float(data["current_price"])
        stamp = dt.datetime.fromisoformat(document["timestamp"])
        traded = dt.datetime.fromisoformat(data["last_trade_time"]).replace(tzinfo=NEW_YORK)
        raw = pl.DataFrame(rows, infer_schema_length=None)
        sides = raw.select(
            pl.col("option").alias("symbol"),
            *(
                pl.col(held).cast(pl.Float64).alias(name)
                for name, held in (
                    ("last", "last_trade_price"),
                    ("bid", "bid"),
                    ("ask", "ask"),
                    ("volume", "volume"),
                    ("iv", "iv"),
                    ("delta", "delta"),
                    ("gamma", "gamma"),
                    ("open_interest", "open_interest"),
                )
            ),
        )
    except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"is not Cboe's JSON of delayed quotes ({type(error).__name__}: {error})",
            where=str(path),
            hint="it has 'timestamp' and 'data' with 'options', 'current_price' and 'last_trade_time'",
            then=_THEN,
        ) from error
    at = stamp if stamp.tzinfo is not None else stamp.replace(tzinfo=_UTC)
    if stamp.tzinfo is None and at < traded:
        at = stamp.replace(tzinfo=NEW_YORK)
    return _canonical(sides, price, at, min(_market_time(at), at), config, str(path))


def from_yfinance(
    parts: Sequence[Any],
    config: OptionsConfig,
    *,
    underlying_price: float | None = None,
    quote_time: dt.datetime | None = None,
) -> pl.DataFrame:
    """What ``yfinance.Ticker(...).option_chain(expiry)`` returned, one or several expiries.

    Each has ``calls`` and ``puts`` (pandas frames with ``contractSymbol``, ``bid``, ``ask``, ``openInterest``,
    ``volume``, ...) and ``underlying`` (a mapping with ``regularMarketPrice`` and ``regularMarketTime``).
    """
    where = "read_chain(yfinance)"
    about = [getattr(part, "underlying", None) or {} for part in parts]
    price = underlying_price
    if price is None:
        price = next((item["regularMarketPrice"] for item in about if item.get("regularMarketPrice")), None)
    at = quote_time
    if at is None:
        at = next(
            (
                dt.datetime.fromtimestamp(item["regularMarketTime"], _UTC)
                for item in about
                if "regularMarketTime" in item
            ),
            None,
        )
    if price is None or at is None or at.tzinfo is None:
        raise DataError(
            "the underlying's price or the instant of the quotes is missing",
            where=where,
            hint="pass underlying_price=... and quote_time=... with a zone",
            then=_THEN,
        )
    wanted = {
        "contractSymbol": "symbol",
        "lastPrice": "last",
        "bid": "bid",
        "ask": "ask",
        "volume": "volume",
        "impliedVolatility": "iv",
        "openInterest": "open_interest",
    }
    frames = []
    for part in parts:
        for name in ("calls", "puts"):
            table = getattr(part, name)
            missing = [column for column in wanted if column not in table.columns]
            if missing:
                raise DataError(
                    f"columns missing: {', '.join(missing)}",
                    where=f"{where}.{name}",
                    hint="pass what option_chain returns, unchanged",
                    then=_THEN,
                )
            if len(table):
                frame = pl.DataFrame({new: table[old].to_numpy() for old, new in wanted.items() if new != "symbol"})
                symbols = pl.Series("symbol", table["contractSymbol"].tolist(), dtype=pl.String)
                frames.append(frame.cast(pl.Float64).with_columns(symbols))
    if not frames:
        raise DataError("no contract is listed", where=where, hint="ask for an expiry that exists", then=_THEN)
    table = pl.concat(frames).with_columns(
        pl.col("open_interest", "volume").fill_nan(0.0),
        delta=pl.lit(None, dtype=pl.Float64),
        gamma=pl.lit(None, dtype=pl.Float64),
    )
    return _canonical(table, float(price), at, at, config, where)


def _canonical(
    sides: pl.DataFrame, price: float, at: dt.datetime, market: dt.datetime, config: OptionsConfig, where: str
) -> pl.DataFrame:
    parsed = sides.with_columns(pl.col("symbol").str.extract_groups(_SYMBOL).alias("part"))
    bad = parsed["part"].struct.field("1").is_null()
    if bad.any():
        row = int(bad.arg_true()[0])
        raise DataError(
            f"{sides['symbol'][row]!r} is not an option symbol",
            where=f"{where} contract {row}",
            hint="root, expiry as YYMMDD, C or P, strike in thousandths (8 digits), as in SPXW240517C05300000",
            then=_THEN,
        )
    part = pl.col("part").struct
    settlement = {root: about.settlement for root, about in config.roots.items()}
    frame = parsed.with_columns(
        quote_time=pl.lit(at.astimezone(_UTC)).dt.cast_time_unit("ns"),
        market_time=pl.lit(market.astimezone(_UTC)).dt.cast_time_unit("ns"),
        underlying_price=pl.lit(price),
        root=part.field("1"),
        expiry=part.field("2").str.to_date("%y%m%d"),
        type=part.field("3"),
        strike=part.field("4").cast(pl.Float64) / 1000.0,
    ).with_columns(
        settlement=pl.col("root").replace_strict(settlement, default="PM", return_dtype=pl.String),
        bid=pl.col("bid").fill_null(0.0).fill_nan(0.0),
        ask=pl.col("ask").fill_null(0.0).fill_nan(0.0),
    )
    return frame.select(_COLUMNS)


def _market_time(at: dt.datetime) -> dt.datetime:
    """When quotes that are seen at ``at``, 15 minutes late, were live.

    After the close of the index options at 16:15 New York, until their night session at 20:15, they are
    those of the close; on days without a session those of the last one.
    """
    from mia_fast.simulate.calendar import is_session, on_or_before

    local = (at - _DELAY).astimezone(NEW_YORK)
    day = local.date()
    if local.time() >= _EVENING:
        return local
    if not is_session(day):
        return dt.datetime.combine(on_or_before(day), _CLOSE, NEW_YORK)
    return min(local, dt.datetime.combine(day, _CLOSE, NEW_YORK))
