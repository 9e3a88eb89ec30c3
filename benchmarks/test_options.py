"""Implied volatility, greeks, the profile and whole chains against the peers that can be installed.

Parity first, then both timed in turns in one run; medians. What the processor's vectors are decides most of it,
so the instruction set is printed.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mia_fast.options import LevelsEngine, options_config, prepare
from mia_fast.workspace import Workspace, shipped
from mia_kernels import black, gamma

N = 20_000
EXPIRIES = 64
SPOT = 4480.0
RATE = 0.04
CHAIN = Path(__file__).resolve().parents[2] / "shared" / "data" / "options" / "spx_20220323_1011.parquet"
Arrays = dict[str, np.ndarray]


def _vectors() -> str:
    import llvmlite.binding as llvm

    features = os.environ.get("NUMBA_CPU_FEATURES") or llvm.get_host_cpu_features().flatten()
    has = next((name for name in ("avx512f", "avx2", "avx", "sse2") if f"+{name}" in features.split(",")), "baseline")
    return f"{llvm.get_host_cpu_name()}, {has}"


def _turns(*functions: Callable[[], object], rounds: int) -> list[list[float]]:
    """Seconds of each, taken in turns so that the machine's moods strike all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(rounds):
        for function, spent in zip(functions, times, strict=True):
            began = time.perf_counter()
            function()
            spent.append(time.perf_counter() - began)
    return times


def _interleaved(*functions: Callable[[], object], rounds: int = 15) -> list[float]:
    """Median seconds of each."""
    return [statistics.median(spent) for spent in _turns(*functions, rounds=rounds)]


def _say(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with capsys.disabled():
        print(f"\n{text} ({_vectors()})")


def _book() -> Arrays:
    """Out-of-the-money options of 64 expiries, QuantLib's own prices at known volatilities; no dividends."""
    import QuantLib

    rng = np.random.default_rng(3)
    listed = np.sort(rng.uniform(0.02, 1.5, EXPIRIES))
    group = np.sort(rng.integers(0, EXPIRIES, N))
    years = listed[group]
    sigma = rng.uniform(0.1, 0.6, N)
    forward = SPOT * np.exp(RATE * years)
    strike = forward * np.exp(rng.uniform(-2.5, 2.5, N) * sigma * np.sqrt(years))
    order = np.lexsort((strike, group))
    strike, sigma = strike[order], sigma[order]
    discount = np.exp(-RATE * years)
    right = np.where(strike >= forward, 1.0, -1.0)
    price = np.array(
        [
            QuantLib.blackFormula(QuantLib.Option.Call if w > 0 else QuantLib.Option.Put, k, f, s * np.sqrt(t), d)
            for w, k, f, s, t, d in zip(right, strike, forward, sigma, years, discount, strict=True)
        ]
    )
    keep = price > 1e-9
    names = ("forward", "strike", "years", "sigma", "discount", "right", "price", "group")
    held = (forward, strike, years, sigma, discount, right, price, group)
    return {name: np.ascontiguousarray(array[keep]) for name, array in zip(names, held, strict=True)}


@pytest.fixture(scope="module")
def book() -> Arrays:
    return _book()


def _volatilities(book: Arrays) -> tuple[float, float, str]:
    """Nanoseconds for each volatility, ours and iv-engine's, after both met the truth; a digest of our bits."""
    import iv_engine

    n = book["price"].size
    sigma, status = np.empty(n), np.empty(n, np.int8)
    columns = [book[name] for name in ("price", "forward", "strike", "years", "discount", "right")]

    def ours() -> None:
        black.implied_volatility(*columns, sigma, status)

    theirs = _peer_iv(iv_engine, book)
    ours()
    assert (status == black.OK).all()
    assert np.abs(sigma / book["sigma"] - 1).max() < 1e-9  # the price's own bits limit the cheapest of them
    assert np.abs(np.asarray(theirs()) / book["sigma"] - 1).max() < 1e-6
    mine, peer = _interleaved(ours, theirs)
    return mine / n * 1e9, peer / n * 1e9, hashlib.sha256(sigma.tobytes()).hexdigest()


def test_implied_volatility_against_iv_engine(book: Arrays, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("iv_engine")
    mine, peer, _ = _volatilities(book)
    _say(
        capsys,
        f"implied volatility, {book['price'].size:,} contracts: mia-fast {mine:.1f}, iv-engine {peer:.1f} ns each; "
        f"ratio {peer / mine:.1f} (15 wanted with AVX-512)",
    )


def test_implied_volatility_on_avx2(book: Arrays, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel for a Haswell (AVX2, FMA) in a process of its own: the same bits. iv-engine is as it was built."""
    pytest.importorskip("iv_engine")
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.test_options"],
        env={**os.environ, "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""},
        cwd=Path(__file__).resolve().parents[1],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    first, second, bits = said.split()
    mine, peer = float(first), float(second)
    assert bits == _volatilities(book)[2]
    with capsys.disabled():
        print(
            f"\nimplied volatility, kernels for haswell (AVX2): mia-fast {mine:.1f}, iv-engine {peer:.1f} ns each; "
            f"ratio {peer / mine:.1f} (8 wanted)"
        )


def _peer_iv(iv_engine: object, book: Arrays) -> Callable[[], np.ndarray]:
    """Their batch call on one thread: undiscounted prices, one type per call, so calls and puts apart."""
    price = book["price"] / book["discount"]
    found = np.empty(price.size)
    sides = []
    for sign in (1.0, -1.0):
        rows = np.flatnonzero(book["right"] == sign)
        columns = (price, book["forward"], book["strike"], book["years"])
        sides.append((rows, sign > 0, [np.ascontiguousarray(column[rows]) for column in columns]))

    def run() -> np.ndarray:
        for rows, call, columns in sides:
            found[rows] = iv_engine.implied_volatilities(*columns, is_call=call, parallel=False)  # type: ignore[attr-defined]
        return found

    return run


def test_volatility_and_greeks_against_py_vollib_vectorized(book: Arrays, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours: volatility, ten greeks, their sums by expiry and gamma by strike. Theirs: volatility and five greeks.

    Their greeks are difference quotients of Black-Scholes whatever the model named, so the book pays no dividends.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vollib = pytest.importorskip("py_vollib_vectorized")
    n = book["price"].size
    group, strike, price = book["group"], book["strike"], book["price"]
    start = np.searchsorted(group, np.arange(EXPIRIES + 1))
    years, discount = book["years"][start[:-1]], book["discount"][start[:-1]]
    terms = np.empty((black.N_TERMS, EXPIRIES))
    terms[black.FORWARD], terms[black.DISCOUNT], terms[black.CARRY] = SPOT / discount, discount, 1.0
    terms[black.YEARS], terms[black.ROOT_YEARS] = years, np.sqrt(years)
    terms[black.RATE], terms[black.YIELD] = RATE, 0.0
    out, status = np.empty((black.N_GREEKS, n)), np.zeros(n, np.int8)
    interest = np.random.default_rng(4).integers(0, 500, (2, n)).astype(float)
    level, levels = np.arange(n) % 500, 500
    scale, buckets = np.full(EXPIRIES, 100 * SPOT * SPOT * 0.01), np.array([EXPIRIES])
    exposure = np.empty((1, 2, levels))
    sums = np.empty((EXPIRIES, 2, black.N_SUMS))
    flag, spot, rate = np.where(book["right"] > 0, "c", "p"), np.full(n, SPOT), np.full(n, RATE)

    def ours() -> None:
        status[:] = black.OK
        black.smile(price, strike, group, terms, SPOT, out, status, interest, sums)
        gamma.exposure_by_strike(out[black.GAMMA], status, level, start, buckets, interest, scale, exposure)

    def theirs() -> tuple[np.ndarray, dict[str, np.ndarray]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sigma = vollib.vectorized_implied_volatility_black(
                price, book["forward"], strike, rate, book["years"], flag, return_as="numpy"
            )
            greeks = vollib.get_all_greeks(
                flag, spot, strike, book["years"], rate, sigma, model="black_scholes", return_as="dict"
            )
        return sigma, greeks

    ours()
    sigma, greeks = theirs()
    assert (status == black.OK).all()
    assert np.abs(out[black.SIGMA] / book["sigma"] - 1).max() < 1e-9
    assert np.abs(sigma / book["sigma"] - 1).max() < 1e-5
    put = book["right"] < 0
    same = {
        "delta": (out[black.DELTA] - put, 1e-6),
        "gamma": (out[black.GAMMA], 1e-3),
        "vega": (out[black.VEGA] / 100, 1e-2),
        "rho": ((out[black.RHO] - put * strike * book["years"] * book["discount"]) / 100, 1e-2),
        "theta": ((out[black.THETA] + put * RATE * strike * book["discount"]) / 365, 0.1),  # theirs is a whole day's
    }
    for name, (mine, room) in same.items():
        peer = np.asarray(greeks[name]).ravel()
        assert np.abs(mine - peer).max() <= room * np.abs(peer).max(), name
    for side in range(2):
        unit = out[black.GAMMA] * interest[side] * scale[0]
        np.testing.assert_allclose(exposure[0, side], np.bincount(level, unit, levels), rtol=1e-12)
        for row in range(black.DELTA, black.N_GREEKS):
            each = out[row] * interest[side]
            room = 1e-13 * np.bincount(group, np.abs(each), EXPIRIES)
            assert (np.abs(sums[:, side, row] - np.bincount(group, each, EXPIRIES)) <= room).all(), row
    turns = _turns(ours, theirs, rounds=31)
    fast, slow = (statistics.median(spent) for spent in turns)
    _say(
        capsys,
        f"volatility + 10 greeks + sums, {n:,} contracts: mia-fast {fast / n * 1e9:.1f}, "
        f"py_vollib_vectorized (5 greeks) {slow / n * 1e9:.1f} ns each; ratio {slow / fast:.1f} (30 wanted), "
        f"of the fastest turns {min(turns[1]) / min(turns[0]):.1f}",
    )


@pytest.fixture(scope="module")
def chain() -> pl.DataFrame:
    if not CHAIN.exists():
        pytest.skip("the real chain is not beside the project")
    return pl.read_parquet(CHAIN)


def test_profile_against_numpy(chain: pl.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    engine = LevelsEngine(options_config(Workspace(shipped())))
    engine.update(chain)
    surface = engine.surface
    assert surface is not None
    m = surface.profile_size
    table = np.ascontiguousarray(surface.profile_table[:, :m])
    step, size = 0.0025, 160
    origin = float(np.log(surface.chain.spot)) - step * size / 2
    out, x = np.empty((2, size)), origin + step * np.arange(size)

    def theirs() -> np.ndarray:
        d = (x[:, None] - table[0]) * table[1]
        return (table[2] * np.exp(-0.5 * d * d)).sum(axis=1) * np.exp(x) / np.sqrt(2 * np.pi)

    gamma.profiles(table, 0, m, origin, step, out)
    expected = theirs()
    assert np.abs(out[0] - expected).max() < 1e-11 * np.abs(expected).max()
    mine, peer = _interleaved(lambda: gamma.profiles(table, 0, m, origin, step, out), theirs, rounds=7)
    _say(
        capsys,
        f"gamma profile (ours with the trigger's as well), {m:,} strikes x {size}: mia-fast {mine * 1e3:.2f}, "
        f"NumPy {peer * 1e3:.2f} ms; ratio {peer / mine:.1f}",
    )


def test_a_full_chain(chain: pl.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    """Arrays to all levels in total and by bucket; the frame's first and later readings; what moves between chains."""
    config = options_config(Workspace(shipped()))
    engine = LevelsEngine(config)
    arrays = prepare(chain, config)
    assert arrays is not None
    assert engine.update(arrays).status == "OK"
    changed = chain.filter(pl.col("bid") > 1.0).gather_every(200)
    fresh = LevelsEngine(config)

    def first() -> None:
        fresh._layout = None
        fresh.update(chain)

    spent = _interleaved(
        lambda: engine.update(arrays),
        first,
        lambda: fresh.update(chain),
        lambda: engine.update_spot(arrays.spot * 1.001),
        lambda: engine.update_quotes(changed) if engine.update(chain) else None,
        rounds=25,
    )
    whole, cold, warm, spot, quotes = (value * 1e3 for value in spent)
    _say(
        capsys,
        f"{chain.height:,} contracts to all levels: arrays {whole:.2f} ms; frame {cold:.2f} ms, "
        f"with the layout kept {warm:.2f} ms; spot-only {spot:.2f} ms; "
        f"{changed.height} quotes changed {quotes - warm:.2f} ms",
    )


if __name__ == "__main__":  # the process of test_implied_volatility_on_avx2
    print(*_volatilities(_book()))
