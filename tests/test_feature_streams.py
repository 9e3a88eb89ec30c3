"""Writing outputs around the cache gives the same numbers in the same places, and touches nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from mia_fast.features import engine as engines
from mia_fast.features.catalogue import read
from mia_fast.features.engine import FeatureEngine
from mia_fast.features.plan import make_plan
from mia_fast.features.sample import simulate
from mia_fast.workspace import Workspace, shipped
from mia_kernels.streams import stream, stream_finite


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 16, 255, 256])
def test_any_alignment(size: int) -> None:
    """Heads and tails of partial cache lines too; the numbers on either side stay."""
    x = np.random.default_rng(size).normal(size=size + 8)
    x[::5] = np.inf
    x[1::7] = np.nan
    for shift in range(9):
        for kernel, expected in ((stream, x), (stream_finite, np.where(np.isfinite(x), x, np.nan))):
            memory = np.full(size + 32, 7.0)
            source = x[shift % 3 :][:size]
            kernel(source.ctypes.data, memory.ctypes.data + 8 * shift, size)
            np.testing.assert_array_equal(memory[shift : shift + size], expected[shift % 3 :][:size])
            assert (memory[:shift] == 7.0).all()
            assert (memory[shift + size :] == 7.0).all()


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
