"""Writing outputs around the cache gives the same numbers in the same places, and touches nothing else."""

from __future__ import annotations

import functools
import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import bars
import numpy as np
import pandas as pd
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from mia_fast.errors import StateError
from mia_fast.features import engine as engines
from mia_fast.features.catalogue import read
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.frame import feature_frame, generate_features, matrix_frame
from mia_fast.features.plan import make_plan
from mia_fast.features.sample import simulate
from mia_fast.workspace import Workspace, shipped
from mia_kernels.streams import stream, stream_within
from mia_kernels.validity import mark


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 16, 255, 256])
def test_any_alignment(size: int) -> None:
    """Heads and tails of partial cache lines too; the numbers on either side stay."""
    x = np.random.default_rng(size).normal(size=size + 8)
    x[::5] = np.inf
    x[1::7] = np.nan
    x[2::11] = -3.0
    for shift in range(9):
        for limit in (None, 2.0, 1.7976931348623157e308):
            memory = np.full(size + 32, 7.0)
            source = x[shift % 3 :][:size]
            at = source.ctypes.data, memory.ctypes.data + 8 * shift, size
            stream(*at) if limit is None else stream_within(*at, limit)
            expected = x if limit is None else np.where(np.abs(x) <= limit, x, np.nan)
            np.testing.assert_array_equal(memory[shift : shift + size], expected[shift % 3 :][:size])
            assert (memory[:shift] == 7.0).all()
            assert (memory[shift + size :] == 7.0).all()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_columns_are_the_matrix_with_its_bitmaps(threads: int, streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of columns over everything the catalogue computes, cut where no word of a bitmap ends: the numbers and
    the state of a matrix, bits set where it is not NaN, and inputs that are put out as they are not copied."""
    if streamed:
        monkeypatch.setattr(engines, "_STREAMED", 0)
    catalogue = read(Workspace(shipped()))
    sample = simulate(catalogue, 3)
    columns = {name: values[:1371].copy() for name, values in sample.columns.items()}
    for k, name in enumerate(columns):  # what an input must not be: beyond the limit, infinite, missing
        columns[name][[700 + k, 800 + k, 900 + k]] = 2e15, -np.inf, np.nan
    plan = make_plan(catalogue, list(columns), bar_minutes=1.0, tick_size=0.25, auxiliary=["bid_price_1", "weekday"])
    whole, parts = FeatureEngine(plan), FeatureEngine(plan)
    matrix = whole.batch(sample.known_at[:1371], columns)
    assert len(plan.passed) > 100
    for start, end in itertools.pairwise((0, 1, 64, 397, 653, 660, 1371)):
        part = {name: values[start:end] for name, values in columns.items()}
        out = np.full((len(plan.outputs), end - start), 5.0)
        block = parts.block(sample.known_at[start:end], part, out=out, threads=threads)
        there = np.unpackbits(block.valid, axis=1, bitorder="little")
        for row, name in enumerate(plan.outputs):
            expected = matrix[row, start:end]
            known = ~np.isnan(expected)
            np.testing.assert_array_equal(there[row, : end - start], known, name)
            assert not there[row, end - start :].any()
            assert block.missing[row] == (~known).sum(), name
            assert np.array_equal(block.values[row][known].view(np.int64), expected[known].view(np.int64)), name
            if row in plan.passed:
                assert np.shares_memory(block.values[row], part[plan.passed[row]])
                assert (out[row] == 5.0).all()
    assert parts.save() == whole.save()


def test_features_do_not_change_with_the_frame_they_were_made_from(workspace: Workspace) -> None:
    """pandas' memory is copied, for its owner writes to it in place; Polars' is shared."""
    data = bars.make(1)
    frame = pd.DataFrame({"timestamp": pd.to_datetime(data.known_at - 60_000_000_000, utc=True), **data.columns})
    theirs = pl.DataFrame(frame.copy())
    features, shared = generate_features(frame, workspace=workspace), generate_features(theirs, workspace=workspace)
    kept = features.to_pandas().copy()
    for name in data.columns:
        frame.loc[10, name] = 1.0
    frame.loc[10, "timestamp"] = frame["timestamp"][0]
    pd.testing.assert_frame_equal(features.to_pandas(), kept)
    assert_frame_equal(features, shared, check_exact=True)
    assert np.shares_memory(shared["close"].to_numpy(), theirs["close"].to_numpy())


def _tell(told: list[int], done: int, _rows: int) -> None:
    told.append(done)


def test_a_frame_of_columns_is_that_of_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = read(Workspace(shipped()))
    sample = simulate(catalogue, 2)
    bars_alone = {name: sample.columns[name] for name in ("open", "high", "low", "close", "volume")}
    plan = make_plan(catalogue, list(bars_alone), bar_minutes=1.0, tick_size=0.25)
    assert plan.missing
    stamps = pl.Series("timestamp", sample.known_at).cast(pl.Datetime("ns", "UTC"))
    engine = FeatureEngine(plan)
    monkeypatch.setattr(engines, "_STRETCH", 64)  # with progress, stretch by stretch: each has bitmaps of its own
    expected = matrix_frame(stamps, plan.outputs, engine.batch(sample.known_at, bars_alone))
    engine.reset()
    for threads in (1, 2):
        engine.reset()
        told: list[int] = []
        done = functools.partial(_tell, told)
        block = engine.block(sample.known_at, bars_alone, threads=threads, progress=done)
        assert_frame_equal(feature_frame(stamps, block), expected, check_exact=True)
        assert told[-1] == len(sample)
    empty = engine.block(sample.known_at[:0], {name: values[:0] for name, values in bars_alone.items()})
    assert feature_frame(stamps[:0], empty).shape == (0, 1 + len(plan.outputs))


@pytest.mark.parametrize("threads", [1, 2])
def test_streamed_outputs_have_the_same_bits(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the shipped catalogue computes, over an odd number of rows: every column begins elsewhere in a line."""
    catalogue = read(Workspace(shipped()))
    sample = simulate(catalogue, 3)
    rows = min(len(sample), 1371)
    columns = {name: values[:rows] for name, values in sample.columns.items()}
    plan = make_plan(catalogue, list(columns), bar_minutes=1.0, tick_size=0.25)
    engine = FeatureEngine(plan)
    plain = engine.batch(sample.known_at[:rows], columns, threads=threads)
    assert plain.nbytes < engines._STREAMED
    saved = engine.save()
    monkeypatch.setattr(engines, "_STREAMED", 0)
    engine.reset()
    streamed = engine.batch(sample.known_at[:rows], columns, threads=threads)
    np.testing.assert_array_equal(np.isnan(plain), np.isnan(streamed))
    known = ~np.isnan(plain)
    assert np.array_equal(plain[known].view(np.int64), streamed[known].view(np.int64))
    assert engine.save() == saved


def test_two_halves_may_mark_one_column_at_a_time() -> None:
    """Each byte is written once, as it stays: a count of the other half never sees a cleared word."""
    values = np.ones(63)
    words = np.zeros(8, dtype=np.uint8)

    def count() -> int:
        return sum(mark(values.ctypes.data, 63, math.inf, words.ctypes.data) for _ in range(100_000))

    with ThreadPoolExecutor(max_workers=2) as pool:
        assert [done.result() for done in [pool.submit(count) for _ in range(2)]] == [0, 0]


def test_no_features_make_a_frame_of_timestamps() -> None:
    stamps = pl.Series("timestamp", [1, 2]).cast(pl.Datetime("ns", "UTC"))
    assert matrix_frame(stamps, [], np.empty((0, 2))).columns == ["timestamp"]


def test_a_state_of_an_earlier_layout_is_refused() -> None:
    plan = make_plan(read(Workspace(shipped())), ["close"], bar_minutes=1.0, tick_size=0.25)
    saved = FeatureEngine(plan).save()
    assert saved.startswith(b"mia-fast feature state 3\n")
    for other in (1, 2):
        with pytest.raises(StateError, match="not a feature state of this version"):
            FeatureEngine(plan).restore(saved.replace(b"state 3", b"state %d" % other, 1))
