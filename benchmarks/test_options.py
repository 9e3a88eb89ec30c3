"""Implied volatility, greeks, the profile and whole chains against the peers that can be installed.

Parity first, then both timed in turns in one run; medians. What the processor's vectors are decides most of it,
so the instruction set is printed.
"""

from __future__ import annotations

import os
import statistics
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
CHAIN = Path(__file__).resolve().parents[2] / "shared" / "data" / "options" / "spx_20220323_1011.parquet"
Arrays = dict[str, np.ndarray]


def _vectors() -> str:
    import llvmlite.binding as llvm

    features = os.environ.get("NUMBA_CPU_FEATURES") or llvm.get_host_cpu_features().flatten()
    has = next((name for name in ("avx512f", "avx2", "avx", "sse2") if f"+{name}" in features.split(",")), "baseline")
    return f"{llvm.get_host_cpu_name()}, {has}"


def _interleaved(*functions: Callable[[], object], rounds: int = 15) -> list[float]:
    """Median seconds of each, taken in turns so that the machine's moods strike all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(rounds):
        for function, spent in zip(functions, times, strict=True):
            began = time.perf_counter()
            function()
            spent.append(time.perf_counter() - began)
    return [statistics.median(spent) for spent in times]


def _say(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with capsys.disabled():
        print(f"\n{text} ({_vectors()})")


@pytest.fixture(scope="module")
def book() -> Arrays:
    """Out-of-the-money options of QuantLib's own prices at known volatilities."""
    import QuantLib

    rng = np.random.default_rng(3)
    forward = np.full(N, 4480.0)
    years = rng.uniform(0.02, 1.5, N)
    sigma = rng.uniform(0.1, 0.6, N)
    strike = forward * np.exp(rng.uniform(-2.5, 2.5, N) * sigma * np.sqrt(years))
    discount = np.exp(-0.04 * years)
    right = np.where(strike >= forward, 1.0, -1.0)
    price = np.array(
        [
            QuantLib.blackFormula(QuantLib.Option.Call if w > 0 else QuantLib.Option.Put, k, f, s * np.sqrt(t), d)
            for w, k, f, s, t, d in zip(right, strike, forward, sigma, years, discount, strict=True)
        ]
    )
    keep = price > 1e-9
    names = ("forward", "strike", "years", "sigma", "discount", "right", "price")
    held = (forward, strike, years, sigma, discount, right, price)
    return {name: np.ascontiguousarray(array[keep]) for name, array in zip(names, held, strict=True)}


def test_implied_volatility_against_iv_engine(book: Arrays, capsys: pytest.CaptureFixture[str]) -> None:
    iv_engine = pytest.importorskip("iv_engine")
    n = book["price"].size
    sigma, status = np.empty(n), np.empty(n, np.int8)

    def ours() -> None:
        black.implied_volatility(
            book["price"],
            book["forward"],
            book["strike"],
            book["years"],
            book["discount"],
            book["right"],
            sigma,
            status,
        )

    theirs = _peer_iv(iv_engine, book)
    ours()
    assert (status == black.OK).all()
    assert np.abs(sigma / book["sigma"] - 1).max() < 1e-9  # the price's own bits limit the cheapest of them
    assert np.abs(np.asarray(theirs()) / book["sigma"] - 1).max() < 1e-6
    mine, peer = _interleaved(ours, theirs)
    _say(
        capsys,
        f"implied volatility, {n:,} contracts: mia-fast {mine / n * 1e9:.1f}, iv-engine {peer / n * 1e9:.1f} ns each; "
        f"ratio {peer / mine:.1f}",
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
    """Ours: volatility, ten greeks and the sums by strike. Theirs: volatility and five greeks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vollib = pytest.importorskip("py_vollib_vectorized")
    n = book["price"].size
    flag = np.where(book["right"] > 0, "c", "p")
    rate = np.full(n, 0.04)
    terms = np.empty((black.N_TERMS, 64))
    group = np.minimum((book["years"] * 40).astype(np.int64), 63)
    years = np.bincount(group, book["years"], 64) / np.maximum(np.bincount(group, minlength=64), 1)
    years[years == 0] = 1.0
    terms[black.FORWARD] = 4480.0
    terms[black.DISCOUNT] = np.exp(-0.04 * years)
    terms[black.CARRY] = terms[black.DISCOUNT]
    terms[black.YEARS], terms[black.ROOT_YEARS] = years, np.sqrt(years)
    terms[black.RATE] = terms[black.YIELD] = 0.04
    out, status = np.empty((black.N_GREEKS, n)), np.zeros(n, np.int8)
    interest, level = np.ones((2, n)), np.arange(n) % 500
    exposure, scale, start = np.empty((1, 2, 500)), np.full(64, 1e5), np.zeros(65, np.int64)
    sums = np.empty((64, 2, black.N_SUMS))
    order = np.argsort(group, kind="stable")
    strike, price, grouped = book["strike"][order], book["price"][order], group[order]
    start[:] = np.searchsorted(grouped, np.arange(65))

    def ours() -> None:
        status[:] = black.OK
        black.smile(price, strike, grouped, terms, 4480.0, out, status, interest, sums)
        gamma.exposure_by_strike(out[black.GAMMA], status, level, start, np.array([64]), interest, scale, exposure)

    def theirs() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sigma = vollib.vectorized_implied_volatility_black(
                book["price"], book["forward"], book["strike"], rate, book["years"], flag, return_as="numpy"
            )
            vollib.get_all_greeks(
                flag, book["forward"], book["strike"], book["years"], rate, sigma, model="black", return_as="dict"
            )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sigma = vollib.vectorized_implied_volatility_black(
            book["price"], book["forward"], book["strike"], rate, book["years"], flag, return_as="numpy"
        )
    assert np.nanmax(np.abs(sigma / book["sigma"] - 1)) < 1e-5
    mine, peer = _interleaved(ours, theirs, rounds=7)
    _say(
        capsys,
        f"volatility + 10 greeks + sums, {n:,} contracts: mia-fast {mine / n * 1e9:.1f}, "
        f"py_vollib_vectorized (5 greeks) {peer / n * 1e9:.1f} ns each; ratio {peer / mine:.1f}",
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
