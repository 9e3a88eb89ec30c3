"""Exact nearest neighbours: the kernel against its obvious twin, scikit-learn, and the bound it rests on."""

from __future__ import annotations

import math

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mia_fast.errors import MarketMemoryError
from mia_fast.memory.index import ALWAYS, OUTCOMES, NeighbourIndex
from mia_kernels import neighbours


class Coded:
    """Rows with everything the kernel wants."""

    def __init__(self, rows: np.ndarray, fitted: int | None = None) -> None:
        self.rows = np.ascontiguousarray(rows, dtype=float)
        n, m = self.rows.shape
        self.mean, self.weight = np.empty(m), np.empty(m)
        neighbours.column_scales(self.rows, n if fitted is None else fitted, self.mean, self.weight)
        self.codes = np.empty((n, neighbours.code_width(m)), dtype=np.int8)
        self.error = neighbours.encode(self.rows, 0, n, self.mean, self.weight, self.codes)
        self.kind, self.known = np.zeros(n, dtype=np.int8), np.zeros(n, dtype=np.int64)

    def nearest(self, query: np.ndarray, k: int, wanted: int = 1, until: int = 0) -> tuple[list[int], list[float]]:
        n = len(self.rows)
        place, square = np.empty(k, dtype=np.int64), np.empty(k)
        count = neighbours.nearest(
            self.codes, self.rows, self.kind, self.known, n, query, self.mean, self.weight, self.error,
            wanted, until, k, np.empty(n, dtype=np.int32), place, square,
        )  # fmt: skip
        return place[:count].tolist(), square[:count].tolist()


def market(kind: str, n: int, m: int, seed: int = 7) -> np.ndarray:
    """Rows as a memory may hold them: independent, driven by a few factors, heavy-tailed, or mostly on one value."""
    g = np.random.default_rng(seed)
    if kind == "independent":
        return g.normal(size=(n, m))
    if kind == "factors":
        return g.normal(size=(n, 6)) @ g.normal(size=(6, m)) + 0.1 * g.normal(size=(n, m))
    if kind == "heavy":
        return 4000 + g.standard_t(1.5, size=(n, m)) * np.exp(g.normal(size=m) * 3)
    return np.where(g.random((n, m)) < 0.9, 0.0, np.round(g.normal(size=(n, m)), 1))


@pytest.mark.parametrize("kind", ["independent", "factors", "heavy", "sparse"])
@pytest.mark.parametrize(("n", "m", "k"), [(1, 3, 1), (7, 1, 10), (500, 33, 1), (2000, 150, 20)])
def test_equals_the_obvious_twin(kind: str, n: int, m: int, k: int) -> None:
    coded = Coded(market(kind, n, m))
    g = np.random.default_rng(1)
    for trial in range(6):
        query = coded.rows[g.integers(n)] + (trial % 3) * g.normal(size=m)
        assert coded.nearest(query, k) == naive.nearest(coded.rows, query, coded.mean, coded.weight, k)


def test_equals_scikit_learn() -> None:
    learn = pytest.importorskip("sklearn.neighbors")
    coded = Coded(market("factors", 3000, 150))
    query = coded.rows[11] + 0.05
    z = (coded.rows - coded.mean) * coded.weight
    peer = learn.NearestNeighbors(n_neighbors=10, algorithm="brute").fit(z)
    distances, places = peer.kneighbors(((query - coded.mean) * coded.weight)[None])
    found, square = coded.nearest(query, 10)
    assert found == places[0].tolist()
    np.testing.assert_allclose(np.sqrt(square), distances[0], rtol=1e-9)


def test_column_scales_are_numpys() -> None:
    rows = market("heavy", 1000, 20)
    rows[::7, 3] = np.nan
    rows[:, 4] = 5.0
    rows[:, 5] = np.nan
    rows[3, 6] = np.inf
    coded = Coded(rows)
    clean = np.where(np.isfinite(rows), rows, np.nan)
    with np.errstate(invalid="ignore"), pytest.warns(RuntimeWarning):
        mean, deviation = np.nanmean(clean, axis=0), np.nanstd(clean, axis=0)
    used = [j for j in range(20) if j not in (4, 5)]
    np.testing.assert_allclose(coded.mean[used], mean[used], rtol=1e-12)
    np.testing.assert_allclose(coded.weight[used], 1 / deviation[used], rtol=1e-9)
    assert coded.weight[4] == coded.weight[5] == coded.mean[5] == 0.0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["independent", "factors", "heavy", "sparse"]),
    st.sampled_from([1e-12, 1.0, 1e12]),
)
def test_the_bound_holds(seed: int, kind: str, scale: float) -> None:
    """No two rows lie nearer than their codes say: the whole claim of exactness."""
    rows = market(kind, 60, 40, seed) * scale
    g = np.random.default_rng(seed)
    rows[g.random(rows.shape) < 0.02] = np.nan
    coded = Coded(rows, fitted=30)
    codes = coded.codes.astype(np.int64)
    for i in range(0, 60, 7):
        own = neighbours.encode(coded.rows, i, i + 1, coded.mean, coded.weight, np.empty_like(coded.codes))
        filled = np.where(np.isfinite(rows), rows, coded.mean)
        true = np.sqrt((((filled - filled[i]) * coded.weight) ** 2).sum(axis=1))
        told = neighbours.STEP * np.sqrt(((codes - codes[i]) ** 2).sum(axis=1))
        assert (told - coded.error - own <= true * (1 + neighbours.SLACK)).all()


def test_rows_beyond_the_codes_are_still_exact() -> None:
    """Outliers all clip to the same code: only the float64 distances can tell them apart."""
    rows = np.vstack([market("independent", 1000, 8), np.linspace(50, 90, 41)[:, None] * np.ones(8)])
    coded = Coded(rows, fitted=1000)
    assert len(np.unique(coded.codes[1000:], axis=0)) == 1
    query = np.full(8, 70.3)
    assert coded.nearest(query, 5) == naive.nearest(rows, query, coded.mean, coded.weight, 5)
    assert coded.nearest(query, 5)[0][0] == 1020


def test_missing_values_stand_at_the_mean_and_constant_columns_do_not_count() -> None:
    rows = market("independent", 50, 4)
    rows[:, 2] = 3.0
    rows[7, 1], rows[8, 1], rows[9, 1] = np.nan, -np.inf, 1e200
    coded = Coded(rows)
    query = np.array([0.1, np.nan, 99.0, 0.2])
    filled = query.copy()
    filled[1] = coded.mean[1]
    assert (
        coded.nearest(query, 50)
        == coded.nearest(filled, 50)
        == naive.nearest(rows, query, coded.mean, coded.weight, 50)
    )
    filled[2] = 3.0
    assert coded.nearest(filled, 50) == coded.nearest(query, 50)


def test_distances_that_overflow_are_never_nearer_than_others() -> None:
    rows = np.vstack([market("independent", 20, 3), np.full((1, 3), 1e149)])
    coded = Coded(rows, fitted=20)
    coded.weight *= 1e10
    coded.error = neighbours.encode(coded.rows, 0, 21, coded.mean, coded.weight, coded.codes)
    places, square = coded.nearest(np.zeros(3), 21)
    assert places[-1] == 20
    assert square[-1] == math.inf
    assert sorted(places) == list(range(21))


def test_ties_come_in_the_order_of_the_rows_and_filters_hold() -> None:
    coded = Coded(np.repeat(market("independent", 5, 3), 4, axis=0))
    assert coded.nearest(coded.rows[8], 6)[0][:4] == [8, 9, 10, 11]
    coded.kind[:] = np.arange(20) % 4
    coded.known[:] = np.arange(20)
    assert coded.nearest(coded.rows[8], 3, wanted=1 << 2)[0] == []
    assert coded.nearest(coded.rows[8], 3, wanted=1 << 2, until=10)[0][0] == 10
    assert coded.nearest(coded.rows[8], 20, wanted=0b1010, until=10)[0] == [
        row for row in coded.nearest(coded.rows[8], 20, wanted=15, until=99)[0] if row <= 10 and row % 2
    ]


def test_an_index_grown_row_by_row_equals_one_built_at_once() -> None:
    rows, g = market("factors", 300, 20), np.random.default_rng(2)
    profits = np.where(g.random(300) < 0.1, np.nan, np.round(g.normal(size=300), 1))
    ids, known, replay = np.arange(5, 305), np.arange(300), g.random(300) < 0.3
    whole, grown = NeighbourIndex(20), NeighbourIndex(20)
    whole.append(ids, rows, profits, known, replay)
    at = 0
    while at < 300:
        step = int(g.integers(1, 9))
        part = slice(at, at + step)
        grown.append(ids[part], rows[part], profits[part], known[part], replay[part])
        at += step
        if at >= 257 or at in (1, 2, 3, 64):
            reference = NeighbourIndex(20)
            reference.append(ids[:at], rows[:at], profits[:at], known[:at], replay[:at])
            np.testing.assert_array_equal(grown.scaling, reference.scaling)
    assert len(whole) == len(grown) == 300
    for name, wanted in OUTCOMES.items():
        for until in (ALWAYS, 150):
            for replays in (True, False):
                a = whole.nearest(rows[17] + 0.01, 20, wanted=wanted, until=until, replays=replays)
                b = grown.nearest(rows[17] + 0.01, 20, wanted=wanted, until=until, replays=replays)
                for x, y in zip(a, b, strict=True):
                    np.testing.assert_array_equal(x, y)
                place = a.cluster_ids - 5
                sign = {"winning": profits > 0, "losing": profits < 0, "closed": ~np.isnan(profits)}
                assert sign.get(name, np.ones(300, dtype=bool))[place].all()
                assert (known[place] <= until).all()
                assert replays or not replay[place].any()
                count = whole.count(wanted=wanted, until=until, replays=replays)
                assert len(place) == min(20, count)


def test_two_threads_find_what_one_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties across the halves included: the states come in the order of their keys."""
    rng = np.random.default_rng(11)
    rows = np.round(rng.normal(size=(900, 6)), 0)  # many equal states
    index = NeighbourIndex(6)
    profits = rng.choice([-10.0, 0.0, 25.0, math.nan], 900)
    index.append(np.arange(900), rows, profits, np.arange(900), rng.random(900) < 0.2)
    for k in (1, 10, 500, 900, 2000):
        for wanted in OUTCOMES.values():
            monkeypatch.setattr("mia_fast.memory.index._TOGETHER", 10**9)
            one = index.nearest(rows[7] + 0.1, k, wanted=wanted, until=800)
            monkeypatch.setattr("mia_fast.memory.index._TOGETHER", 2)
            two = index.nearest(rows[7] + 0.1, k, wanted=wanted, until=800)
            for mine, theirs in zip(two, one, strict=True):
                np.testing.assert_array_equal(mine, theirs)


def test_more_columns_than_the_codes_can_add_up_are_refused() -> None:
    NeighbourIndex(neighbours.COLUMNS_MOST)
    with pytest.raises(MarketMemoryError, match="16,385 features"):
        NeighbourIndex(neighbours.COLUMNS_MOST + 1)
    worst = 2 * 127  # apart in every column
    assert worst * worst * neighbours.COLUMNS_MOST < 2**31
