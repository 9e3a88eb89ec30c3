"""Catalogues for the benchmarks: 350 columns that TA-Lib has too, and one of the shape of the shipped 350.

The first is the layout that the engine's prototype was measured on: 16 families, 350 columns, 285 calls of TA-Lib.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import talib
from talib import stream

from mia_fast.features.catalogue import Catalogue

Arrays = dict[str, np.ndarray]
Rows = list[dict[str, Any]]

EMA, SMA, RSI, ATR, ADX = range(5, 35), range(5, 35), range(5, 25), range(5, 20), range(8, 18)
MACD = [(6 + i, 16 + 2 * i, 5 + i) for i in range(10)]
BANDS, DEVIATION, STOCHASTIC = range(10, 25), range(25, 50), range(8, 23)
CORRELATION, SLOPE, CHANGE, MOMENTUM = range(10, 50, 2), range(8, 28), range(1, 16), range(1, 11)
WILLIAMS, LOWEST, HIGHEST = range(8, 18), range(20, 30), range(20, 30)
BARS = ("open", "high", "low", "close", "volume")
MACD_LINES = ("line", "signal", "histogram")


def _row(name: str, kernel: str, inputs: str, output: str | None = None, **params: int) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "kernel": kernel, "inputs": inputs.split(), "params": params}
    return row | ({"output": output} if output else {})


def _formula(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "kernel": "formula", "expression": text}


def talib_layout() -> tuple[Catalogue, list[str]]:
    """The catalogue (all rows auxiliary: they need no contract) and the names of its 350 columns."""
    helpers: Rows = [_row("true_range", "true_range", "high low close")]
    helpers += [_row(f"dev_{n}", "window", "close", "deviation", period=n) for n in BANDS]
    lengths = sorted(set(WILLIAMS))
    helpers += [_row(f"top_{n}", "highest", "high", period=n) for n in lengths]
    helpers += [_row(f"bottom_{n}", "lowest", "low", period=n) for n in lengths]
    rows: Rows = [_row(f"ema_{n}", "ema", "close", period=n) for n in EMA]
    rows += [_row(f"sma_{n}", "window", "close", "mean", period=n) for n in SMA]
    rows += [_row(f"rsi_{n}", "rsi", "close", period=n) for n in RSI]
    rows += [_row(f"atr_{n}", "wilder", "true_range", period=n) for n in ATR]
    for n in ADX:
        rows += [_row(f"{o}_{n}", "adx", "high low true_range", o, period=n) for o in ("adx", "plus_di", "minus_di")]
    for f, s, g in MACD:
        rows += [_row(f"macd_{o}_{f}", "macd", "close", o, fast=f, slow=s, signal=g) for o in MACD_LINES]
    for n in BANDS:
        rows += [_formula(f"upper_{n}", f"sma_{n} + 2 * dev_{n}"), _row(f"middle_{n}", "column", f"sma_{n}")]
        rows += [_formula(f"lower_{n}", f"sma_{n} - 2 * dev_{n}")]
    rows += [_row(f"deviation_{n}", "window", "close", "deviation", period=n) for n in DEVIATION]
    for n in STOCHASTIC:
        rows += [_row(f"stochastic_{o}_{n}", "stochastic", "high low close", o, period=n) for o in ("k", "d")]
    rows += [_row(f"correlation_{n}", "correlation", "close volume", period=n) for n in CORRELATION]
    rows += [_row(f"slope_{n}", "slope", "close", period=n) for n in SLOPE]
    rows += [_formula(f"change_{n}", f"(close / lag(close, {n}) - 1) * 100") for n in CHANGE]
    rows += [_formula(f"momentum_{n}", f"close - lag(close, {n})") for n in MOMENTUM]
    for n in WILLIAMS:
        text = f"where(top_{n} > bottom_{n}, -100 * (top_{n} - close) / (top_{n} - bottom_{n}), 0 * close)"
        rows.append(_formula(f"williams_{n}", text))
    rows += [_row(f"lowest_{n}", "lowest", "low", period=n) for n in LOWEST]
    rows += [_row(f"highest_{n}", "highest", "high", period=n) for n in HIGHEST]
    names = [str(row["name"]) for row in rows]
    assert len(names) == 350
    return _catalogue(helpers + rows), names


def _catalogue(rows: Rows, inputs: tuple[str, ...] = BARS) -> Catalogue:
    declared = [{"name": name, "table": "bars", "unit": "-", "meaning": "of a benchmark"} for name in inputs]
    return Catalogue.model_validate({"inputs": declared, "auxiliary": rows, "features": []})


def _calls(lib: Any, high: np.ndarray, low: np.ndarray, close: np.ndarray, volume: np.ndarray) -> list[Any]:
    """The 285 calls of TA-Lib's functions or of its streams, in the order of the layout; groups as tuples."""
    found: list[Any] = [lib.EMA(close, n) for n in EMA]
    found += [lib.SMA(close, n) for n in SMA]
    found += [lib.RSI(close, n) for n in RSI]
    found += [lib.ATR(high, low, close, n) for n in ATR]
    for n in ADX:
        found += [f(high, low, close, n) for f in (lib.ADX, lib.PLUS_DI, lib.MINUS_DI)]
    found += [lib.MACD(close, f, s, g) for f, s, g in MACD]
    found += [lib.BBANDS(close, n, 2.0, 2.0) for n in BANDS]
    found += [lib.STDDEV(close, n, 1.0) for n in DEVIATION]
    found += [lib.STOCH(high, low, close, n, 3, 0, 3, 0) for n in STOCHASTIC]
    found += [lib.CORREL(close, volume, n) for n in CORRELATION]
    found += [lib.LINEARREG_SLOPE(close, n) for n in SLOPE]
    found += [lib.ROC(close, n) for n in CHANGE]
    found += [lib.MOM(close, n) for n in MOMENTUM]
    found += [lib.WILLR(high, low, close, n) for n in WILLIAMS]
    found += [lib.MIN(low, n) for n in LOWEST]
    found += [lib.MAX(high, n) for n in HIGHEST]
    return found


def talib_batch(arrays: Arrays) -> list[np.ndarray]:
    """TA-Lib's 350 columns, in the order of the layout."""
    columns: list[np.ndarray] = []
    for found in _calls(talib, arrays["high"], arrays["low"], arrays["close"], arrays["volume"]):
        columns += found if isinstance(found, tuple) else [found]
    return columns


def talib_halves(arrays: Arrays, stored: np.ndarray | None = None) -> tuple[Callable[[], None], Callable[[], None]]:
    """The same calls in two halves for two threads (TA-Lib lets go of the GIL).

    Each result is thrown away, or with ``stored`` (350, n) brought into its rows: the first half from the top, the
    second from the bottom.
    """
    h, lo, c, v = (arrays[name] for name in ("high", "low", "close", "volume"))

    def one() -> Iterator[object]:
        for n in EMA:
            yield talib.EMA(c, n)
        for n in SMA:
            yield talib.SMA(c, n)
        for n in RSI:
            yield talib.RSI(c, n)
        for n in ATR:
            yield talib.ATR(h, lo, c, n)
        for n in ADX:
            for f in (talib.ADX, talib.PLUS_DI, talib.MINUS_DI):
                yield f(h, lo, c, n)

    def other() -> Iterator[object]:
        for fast, slow, signal in MACD:
            yield talib.MACD(c, fast, slow, signal)
        for n in BANDS:
            yield talib.BBANDS(c, n, 2.0, 2.0)
        for n in DEVIATION:
            yield talib.STDDEV(c, n, 1.0)
        for n in STOCHASTIC:
            yield talib.STOCH(h, lo, c, n, 3, 0, 3, 0)
        for n in CORRELATION:
            yield talib.CORREL(c, v, n)
        for n in SLOPE:
            yield talib.LINEARREG_SLOPE(c, n)
        for n in CHANGE:
            yield talib.ROC(c, n)
        for n in MOMENTUM:
            yield talib.MOM(c, n)
        for n in WILLIAMS:
            yield talib.WILLR(h, lo, c, n)
        for n in LOWEST:
            yield talib.MIN(lo, n)
        for n in HIGHEST:
            yield talib.MAX(h, n)

    def run(results: Iterator[object], row: int, step: int) -> None:
        for result in results:
            for column in result if isinstance(result, tuple) else (result,):
                if stored is not None:
                    stored[row] = column
                row += step

    return lambda: run(one(), 0, 1), lambda: run(other(), -1, -1)


def talib_streams(arrays: Arrays, first: int, last: int) -> list[Any]:
    """TA-Lib's streams over rows ``first`` .. ``last``: the last bar only."""
    return _calls(stream, *(arrays[name][first:last] for name in ("high", "low", "close", "volume")))
