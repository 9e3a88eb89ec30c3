"""The market memory: exact neighbours against scikit-learn's brute force and one reading of the matrix; storing.

Parity is asserted before anything is timed. All of a test runs in one process, interleaved; medians and ratios are
printed. The million rows need ``MIA_WHOLE=1`` and 6 GB.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from mia_fast.memory import MemoryStore, memory_config
from mia_fast.memory.index import OUTCOMES, NeighbourIndex
from mia_fast.memory.manifest import MemoryManifest
from mia_fast.workspace import Workspace

WIDTH, K = 150, 10
START = 1_747_144_800_000_000_000
MINUTE = 60_000_000_000
WHOLE = bool(os.environ.get("MIA_WHOLE"))


def _rows(kind: str, n: int) -> np.ndarray:
    """States that share nothing (the worst case), or what a dozen factors drive (as features do)."""
    g = np.random.default_rng(7)
    if kind == "independent":
        return g.standard_normal((n, WIDTH))
    return g.standard_normal((n, 12)) @ g.standard_normal((12, WIDTH)) + 0.3 * g.standard_normal((n, WIDTH))


def _interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each call."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            spent[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(times) for name, times in spent.items()}


@pytest.mark.parametrize("kind", ["independent", "factors"])
@pytest.mark.parametrize("n", [50_000, *([1_000_000] if WHOLE else [])])
def test_nearest(kind: str, n: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The 10 nearest of n states, against brute force on the same standardised values in float32 and float64."""
    rows = _rows(kind, n)
    index = NeighbourIndex(WIDTH)
    at = np.arange(n, dtype=np.int64)
    began = time.perf_counter()
    index.append(at, rows, np.ones(n), at, np.zeros(n, dtype=bool))
    built = time.perf_counter() - began
    z = index.standardised(rows)
    narrow = z.astype(np.float32)
    g = np.random.default_rng(1)
    queries = [rows[g.integers(n)] + 0.2 * g.standard_normal(WIDTH) for _ in range(5)]
    peers = {"float64": NearestNeighbors(n_neighbors=K, algorithm="brute", n_jobs=1).fit(z)}
    if n <= 50_000:  # a million rows in float64 and float32 at once ask for more memory than the figure is worth
        peers["float32"] = NearestNeighbors(n_neighbors=K, algorithm="brute", n_jobs=1).fit(narrow)
    for query in queries:
        found = index.nearest(query, K, wanted=OUTCOMES["winning"])
        distances, places = peers["float64"].kneighbors(index.standardised(query[None]))
        assert found.cluster_ids.tolist() == places[0].tolist()
        np.testing.assert_allclose(found.distances, distances[0], rtol=1e-9)
    turn = iter(range(10**9))
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: index.nearest(queries[next(turn) % 5], K, wanted=OUTCOMES["winning"]),
        "read float32": lambda: narrow.view(np.int64).sum(),
        "read float64": lambda: z.view(np.int64).sum(),
    }
    for name, peer in peers.items():
        query = index.standardised(queries[0][None]).astype(z.dtype if name == "float64" else np.float32)
        calls[f"scikit-learn {name}"] = lambda peer=peer, query=query: peer.kneighbors(query)  # type: ignore[misc]
    spent = _interleaved(calls, 15 if n <= 50_000 else 7)
    with capsys.disabled():
        print(f"\n{K} nearest of {n:,} x {WIDTH}, {kind}; built in {built:.2f} s ({platform.processor() or 'CPU'})")
        for name, ms in spent.items():
            print(f"  {name:<22} {ms:9.3f} ms   {ms / spent['ours']:6.1f} x")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    manifest = MemoryManifest(tuple(f"feature_{k:03d}" for k in range(WIDTH)), "benchmark", "selection")
    with MemoryStore(tmp_path, manifest, memory_config(Workspace(tmp_path))) as opened:
        opened.counts()
        yield opened


def test_store(store: MemoryStore, capsys: pytest.CaptureFixture[str]) -> None:
    """One closed trade: JSON, three rows in one transaction, the index; and how long a question takes beside it."""
    states = np.random.default_rng(3).standard_normal((3000, WIDTH))
    spent = []
    for number, state in enumerate(states):
        began = time.perf_counter()
        store.store(state, float(number % 7 - 3), at_ns=START + number * MINUTE, trade_id=f"T{number}")
        spent.append((time.perf_counter() - began) * 1e6)
    assert store.nearest(states[17], 1, "all").distances[0] == 0.0
    asked = _interleaved({"nearest": lambda: store.nearest(states[5], 20, "closed"), "probe": store.probe}, 300)
    with capsys.disabled():
        p50, p90, p99 = np.percentile(spent, [50, 90, 99])
        print(f"\nstore of {WIDTH} features: p50 {p50:.0f} us, p90 {p90:.0f} us, p99 {p99:.0f} us")
        print(f"20 nearest of {len(states):,} stored, file looked at: {asked['nearest'] * 1e3:.0f} us")
        print(f"is the file there and sound: {asked['probe'] * 1e3:.0f} us")
