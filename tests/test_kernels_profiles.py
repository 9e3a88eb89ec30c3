"""The two volume profiles bit for bit: their shortcuts against the plain rules, in the same order of additions."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
import pytest
from bars import Floats, same_bits
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mia_kernels import opcodes as op
from mia_kernels.session import PROFILE_BINS, PROFILE_STATE, profile
from mia_kernels.spans import PROFILE_SCRATCH, WINDOW_BINS, profile_bars, profile_window

TICK = 0.25
HIGH, LOW, VOLUME, FIRST = op.FIRST_INPUT, op.FIRST_INPUT + 1, op.FIRST_INPUT + 2, op.FIRST_INPUT + 3
ROUNDS = int(os.environ.get("MIA_TORTURE_ROUNDS", "0"))
GUARD = -7.0
"""Stands before and behind what a kernel may write."""


def to_tick(price: float) -> float:
    return float(np.floor(price / TICK + 0.5))


def value_area(bins: Sequence[float], lowest: int, highest: int, total: float) -> tuple[int, int, int]:
    """Point of control, top and bottom: grown from nothing, pair by pair."""
    poc = down = up = bins.index(max(bins))
    held, target = bins[poc], 0.70 * total
    while held < target and (down > lowest or up < highest):
        above = below = -1.0
        if up < highest:
            above = bins[up + 1] + (bins[up + 2] if up + 2 <= highest else 0.0)
        if down > lowest:
            below = bins[down - 1] + (bins[down - 2] if down - 2 >= lowest else 0.0)
        if above >= below:
            held, up = held + above, min(up + 2, highest)
        else:
            held, down = held + below, max(down - 2, lowest)
    return poc, up, down


def session_twin(opens: Sequence[bool], high: Floats, low: Floats, volume: Floats) -> Floats:
    """:func:`profile`, every bar's area from the point of control anew."""
    out = np.full((6, len(high)), math.nan)
    seen, first, total = False, math.nan, 0.0
    bins = [0.0] * PROFILE_BINS
    lowest, highest = PROFILE_BINS, -1
    for i, (h, lo, v) in enumerate(zip(high.tolist(), low.tolist(), volume.tolist(), strict=True)):
        if opens[i]:
            seen, first, total = True, math.nan, 0.0
            bins = [0.0] * PROFILE_BINS
            lowest, highest = PROFILE_BINS, -1
        if not seen or not all(map(math.isfinite, (h, lo, v))):
            continue
        if math.isnan(first):
            first = to_tick(lo) - PROFILE_BINS // 2
        start, stop = to_tick(lo) - first, to_tick(h) - first
        if not 0 <= start <= stop < PROFILE_BINS:
            seen = False
            continue
        if v > 0.0:
            a, b = int(start), int(stop)
            for j in range(a, b + 1):
                bins[j] += v / (b - a + 1)
            total += v
            lowest, highest = min(lowest, a), max(highest, b)
        if 0.0 < total < math.inf:
            ticks = value_area(bins, lowest, highest, total)
            out[:3, i] = [(first + k) * TICK for k in ticks]
            out[3:, i] = [bins[k] for k in ticks]
    return out


def window_twin(time: Floats, high: Floats, low: Floats, volume: Floats, seconds: float, rows: int) -> Floats:
    """:func:`profile_window`, one window after the other."""
    out = np.full((6, len(high)), math.nan)
    for i in range(rows - 1, len(high)):
        held = [j for j in range(max(0, i - 200), i + 1) if time[j] > time[i] - seconds]
        if len(held) >= op.HISTORY or not np.isfinite([high[held], low[held], volume[held]]).all():
            continue
        ends = [(to_tick(low[j]), to_tick(high[j])) for j in held]
        lowest = min(a for a, _ in ends)
        if any(a > b for a, b in ends) or max(b for _, b in ends) - lowest >= WINDOW_BINS:
            continue
        bins, total = [0.0] * WINDOW_BINS, 0.0
        used = []
        for j, (a, b) in zip(held, ends, strict=True):
            share = float(volume[j]) / (b - a + 1.0)
            if share > 0.0:
                for k in range(int(a - lowest), int(b - lowest) + 1):
                    bins[k] += share
                total += float(volume[j])
                used += [int(a - lowest), int(b - lowest)]
        if 0.0 < total < math.inf:
            ticks = value_area(bins, min(used), max(used), total)
            out[:3, i] = [(lowest + k) * TICK for k in ticks]
            out[3:, i] = [bins[k] for k in ticks]
    return out


def columns_of(time: Floats, session: Floats, high: Floats, low: Floats, volume: Floats) -> Floats:
    """Working columns: HISTORY rows before the series, in which nothing is known."""
    columns = np.full((FIRST + 3, op.HISTORY + len(high)), math.nan)
    for k, values in ((op.TIME, time), (op.SESSION, session), (HIGH, high), (LOW, low), (VOLUME, volume)):
        columns[k, op.HISTORY :] = values
    columns[op.MINUTE] = 0.0
    return columns


def blocks(n: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """From and to of blocks that end at ``cuts`` and are never longer than BLOCK."""
    ends = sorted({*(c for c in cuts if 0 < c < n), *range(0, n, op.BLOCK), n} - {0})
    return list(zip([0, *ends[:-1]], ends, strict=True))


def working(columns: Floats, a: int, b: int) -> Floats:
    """Rows a to b as the engine lays them: behind HISTORY rows of the past, STRIDE numbers from column to column."""
    laid = np.full((len(columns), op.STRIDE), math.nan)
    laid[:, : op.HISTORY + b - a] = columns[:, a : b + op.HISTORY]
    return laid


def session_kernel(columns: Floats, cuts: Sequence[int]) -> Floats:
    """:func:`profile` in blocks; nothing outside its state may change."""
    n = columns.shape[1] - op.HISTORY
    state = np.full(PROFILE_STATE + 128, GUARD)
    state[64:-64] = 0.0
    out, room = np.empty((6, n)), np.empty((6, op.SCRATCH_STRIDE))
    for a, b in blocks(n, cuts):
        profile(working(columns, a, b), HIGH, LOW, VOLUME, TICK, 1.0, op.HISTORY, b - a, state, 64, room)
        out[:, a:b] = room[:, : b - a]
    assert (state[:64] == GUARD).all()
    assert (state[-64:] == GUARD).all()
    return out


def window_kernel(columns: Floats, seconds: float, rows: int, cuts: Sequence[int]) -> Floats:
    """:func:`profile_window` in blocks; what lies in the scratch must not matter."""
    n = columns.shape[1] - op.HISTORY
    scratch = np.full(PROFILE_SCRATCH + 64, GUARD)
    out, room = np.empty((6, n)), np.empty((6, op.SCRATCH_STRIDE))
    for a, b in blocks(n, cuts):
        laid = working(columns, a, b)
        profile_bars(laid, HIGH, LOW, VOLUME, TICK, FIRST, op.HISTORY, b - a)
        profile_window(laid, VOLUME, FIRST, TICK, seconds, rows, op.HISTORY, b - a, scratch, room)
        columns[FIRST : FIRST + 3, a + op.HISTORY : b + op.HISTORY] = laid[FIRST:, op.HISTORY : op.HISTORY + b - a]
        out[:, a:b] = room[:, : b - a]
    assert (scratch[-64:] == GUARD).all()
    return out


def check(
    time: Floats, opens: Sequence[bool], high: Floats, low: Floats, volume: Floats, cuts: Sequence[int]
) -> tuple[Floats, Floats]:
    """Both kernels against their twins, in the given blocks and row by row at times; the twins' values."""
    session = np.cumsum(np.asarray(opens, dtype=float))
    columns = columns_of(time, session, high, low, volume)
    # The series' first row only counts as an open where the session changes: row 0 is never one.
    want = session_twin([False, *opens[1:]], high, low, volume)
    same_bits(session_kernel(columns, cuts), want)
    for minutes in (2, 5, 60):
        got = window_kernel(columns, 60.0 * minutes, minutes, cuts)
        same_bits(got, window_twin(time, high, low, volume, 60.0 * minutes, minutes))
    return want, window_twin(time, high, low, volume, 300.0, 5)


def draw(
    seed: int,
    n: int,
    *,
    step: float,
    spread: float,
    volumes: str,
    faults: float = 0.0,
    gaps: float = 0.0,
    ends: float = 0.005,
    home: float = 0.0,
) -> tuple[Floats, list[bool], Floats, Floats, Floats]:
    """Bars that walk ``step`` ticks at a time, drawn back by ``home``, some ``spread`` ticks long."""
    rng = np.random.default_rng(seed)
    middle, walk = 16_000.0, []
    for move in rng.normal(0.0, step, n):
        middle += move - home * (middle - 16_000.0)
        walk.append(np.rint(middle))
    lengths = np.floor(rng.exponential(spread, n)) if spread else np.zeros(n)
    low = np.array(walk) - np.floor(lengths / 2)
    high = low + lengths
    volume = {
        "even": lambda: 10.0 * (lengths + 1.0),  # ten a tick: pairs tie, and 70 % is met to the last bit
        "few": lambda: rng.integers(0, 4, n).astype(float),
        "whole": lambda: rng.integers(1, 5000, n).astype(float),
        "any": lambda: rng.lognormal(3.0, 2.0, n),
        "tiny": lambda: rng.integers(0, 9, n) * 5e-324,
        "huge": lambda: rng.random(n) * 1e306,
    }[volumes]()
    low, high = low * TICK, high * TICK
    for column in (low, high, volume):
        bad = rng.random(n) < faults
        column[bad] = rng.choice([math.nan, math.inf, -math.inf, -0.0, 1e7, -5.0], bad.sum())
    minutes = np.cumsum(np.where(rng.random(n) < gaps, rng.integers(2, 9, n), 1)).astype(float)
    crowd = 60.0 if rng.random() < 0.8 else 20.0
    return 1.7e9 + crowd * minutes, (rng.random(n) < ends).tolist(), high, low, volume


VOLUMES = ("even", "few", "whole", "any", "tiny", "huge")


@settings(max_examples=40 + 5 * ROUNDS, deadline=None, derandomize=not ROUNDS)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 560),
    step=st.sampled_from([0.0, 0.6, 2.0, 8.0, 60.0]),
    spread=st.sampled_from([0.0, 1.0, 4.0, 15.0, 90.0]),
    volumes=st.sampled_from(VOLUMES),
    faults=st.sampled_from([0.0, 0.0, 0.003, 0.05]),
    gaps=st.sampled_from([0.0, 0.02, 0.3]),
    ends=st.sampled_from([0.002, 0.01, 0.1]),
    home=st.sampled_from([0.0, 0.02, 0.3]),
    cuts=st.lists(st.integers(1, 559), max_size=8),
)
@example(3, 560, 2.0, 4.0, "any", 0.0, 0.0, 0.002, 0.02, [1, 2, 3, 255, 256, 257])
@example(4, 560, 2.0, 4.0, "even", 0.0, 0.0, 0.002, 0.02, [64])
@example(5, 560, 8.0, 1.0, "few", 0.0, 0.02, 0.002, 0.3, [])
def test_profiles_follow_the_plain_rules_to_the_bit(
    seed: int,
    n: int,
    step: float,
    spread: float,
    volumes: str,
    faults: float,
    gaps: float,
    ends: float,
    home: float,
    cuts: list[int],
) -> None:
    drawn = draw(seed, n, step=step, spread=spread, volumes=volumes, faults=faults, gaps=gaps, ends=ends, home=home)
    drawn[1][0] = True
    if n > 1:
        drawn[1][1] = True
    check(*drawn, cuts)


@pytest.mark.parametrize("cuts", [[], list(range(1, 1400)), [1, 255, 600, 601]])
@pytest.mark.parametrize("volumes", ["even", "few", "whole", "any"])
def test_a_long_session_in_any_cuts(volumes: str, cuts: list[int]) -> None:
    """Long enough that the area mostly stays, grows and shrinks by a pair, and its edges are traded at."""
    time, opens, high, low, volume = draw(11, 1400, step=3.0, spread=4.0, volumes=volumes, ends=0.0, home=0.01)
    opens[1] = True
    session, window = check(time, opens, high, low, volume, cuts)
    tops = session[1, 1:]
    assert (tops[1:] == tops[:-1]).mean() > 0.5
    assert (tops[1:] < tops[:-1]).sum() > 3
    assert (tops[1:] > tops[:-1]).sum() > 3
    assert len(np.unique(session[0, 1:])) > 1, "the point of control never moved"
    assert np.isfinite(window[:, 4:]).mean() > 0.9


@pytest.mark.parametrize("length", [1, 8, 9, 40, 4096])
def test_the_ends_of_the_8192_ticks_are_used_and_not_passed(length: int) -> None:
    """Bars that reach the first and the last bin, whose pairs reach beyond; then one tick more on either side."""
    n = 40
    base = 16_000
    low = np.full(n, float(base))
    high = low + 1.0
    low[4:20], high[4:20] = base - 4096, base - 4096 + length - 1
    low[20:36], high[20:36] = base + 4095 - (length - 1), base + 4095
    volume = np.where(np.arange(n) < 4, 1.0, 50.0 + np.arange(n))
    for beyond in (-1, 1):
        low[38] = high[38] = base - 4097 if beyond < 0 else base + 4096
        opens = [False, True, *[False] * (n - 2)]
        time = 1.7e9 + 60.0 * np.arange(n)
        for cuts in ([], list(range(1, n))):
            session, _ = check(time, opens, high * TICK, low * TICK, volume, cuts)
            assert np.isfinite(session[:, 1:38]).all()
            assert np.isnan(session[:, 38:]).all()


def test_seventy_percent_met_but_for_rounding() -> None:
    """Ten ticks that hold the same: seven are 70 % as far as a float can tell, and the last bit decides on a pair more.

    A volume carried from bar to bar has other last bits than one added up from the point of control.
    """
    n = 256
    low = np.full(n, 4000.0)
    tops = set()
    for seed in range(6):
        volume = np.random.default_rng(seed).random(n)
        opens = [False, True, *[False] * (n - 2)]
        want, _ = check(1.7e9 + 60.0 * np.arange(n), opens, low + 9 * TICK, low, volume, [100])
        tops |= set(((want[1, 1:] - 4000.0) / TICK).tolist())
    assert tops == {6.0, 8.0}, "rounding never decided"


def test_windows_of_which_some_are_not_short() -> None:
    """56 ticks and 57, five bars and six, a bar without volume, ticks between bars that nobody traded."""
    n = 256
    time = 1.7e9 + 60.0 * np.arange(n)
    low = np.full(n, 16_000.0)
    high = low + 3.0
    volume = 100.0 + np.arange(n) % 7
    high[20], high[40], high[60] = low[20] + 55.0, low[40] + 56.0, low[60] + 2047.0
    volume[80] = 0.0
    low[100], high[100] = low[100] + 30, high[100] + 30  # ticks without volume, above and below
    low[120:140:2], high[120:140:2] = low[120:140:2] - 40, high[120:140:2] - 40
    volume[130] = 10_000.0
    time[160:] -= 30.0  # the sixth bar of the window
    opens = [False, True, *[False] * (n - 2)]
    for cuts in ([], [31, 33, 64, 97], list(range(1, n))):
        _, window = check(time, opens, high * TICK, low * TICK, volume, cuts)
        assert np.isfinite(window[:, 4:]).all()
