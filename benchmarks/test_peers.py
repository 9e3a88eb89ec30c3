"""The whole catalogue of stage-1 features against the same features written in pandas and in Polars.

The catalogue is data, so coverage follows it: ``pandas_catalogue.py`` and ``polars_catalogue.py`` hold one function per
kernel and evaluate the formulas over columns. All inputs are given as of the bar, to all three. Parity with
``mia_fast.generate_features`` is asserted for every compared column before anything is timed: the same missing rows,
and values within ``TOLERANCE`` of the column's size.

Frame to frame in each case: input columns in memory, feature columns in memory. The processor's time is that of all
threads together, which other work on the machine changes little; the wall clock says what two threads gain.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import polars as pl
import pytest

from benchmarks import pandas_catalogue, polars_catalogue
from benchmarks.gates import at_least
from mia_fast import generate_features
from mia_fast.features.catalogue import Catalogue, read
from mia_fast.features.engine import FeatureEngine, room
from mia_fast.features.expression import parse
from mia_fast.features.frame import feature_frame
from mia_fast.features.plan import make_plan
from mia_fast.features.rows import Column
from mia_fast.features.sample import Sample, simulate
from mia_fast.workspace import Workspace, shipped

SESSIONS = 40
"""55,200 minutes; a column ranks against 30 sessions."""
ROUNDS = 5
MINUTE = 60_000_000_000
TOLERANCE = 1e-5
"""Of the larger of a value and the column's median: the peers' running sums drift where a window hardly varies."""
PANDAS_GOAL, POLARS_GOAL = 50.0, 5.0
LEFT_BY_SUMS = {"liquidity_trend_5m": 1e-3}
"""Share of rows where a peer has a value and there is none: five closes without a change make 0, whose logarithm is
missing; Polars' running sum leaves 1e-23 of what went before."""


@dataclass(frozen=True)
class Market:
    """One sample in the form that each of the three takes."""

    sample: Sample
    catalogue: Catalogue
    names: tuple[str, ...]
    """All features of stage 1."""
    table: pd.DataFrame
    frame: pl.DataFrame

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def rows(self) -> tuple[Column, ...]:
        return (*self.catalogue.auxiliary, *self.catalogue.features)

    @property
    def timestamps(self) -> pl.Series:
        return pl.Series("timestamp", self.sample.known_at - MINUTE).cast(pl.Datetime("ns", "UTC"))


@pytest.fixture(scope="module")
def market() -> Market:
    catalogue = read(Workspace(shipped()))
    stage_1 = {column.name for column in catalogue.inputs if column.table not in ("models", "account", "memory")}
    sample = simulate(catalogue, SESSIONS)
    columns = {name: values for name, values in sample.columns.items() if name in stage_1}
    known_at = pl.Series("known_at", sample.known_at).cast(pl.Datetime("ns", "UTC"))
    return Market(
        sample,
        catalogue,
        tuple(feature.name for feature in catalogue.features if feature.stage == 1),
        pd.DataFrame(columns, index=pd.DatetimeIndex(known_at.to_numpy(), tz="UTC")),
        pl.DataFrame({"known_at": known_at, **columns}),
    )


@pytest.fixture(scope="module")
def ours(market: Market, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """What a user gets."""
    bars = market.frame.drop("known_at").insert_column(0, market.timestamps)
    return generate_features(bars, workspace=Workspace(tmp_path_factory.mktemp("desk")))


def test_against_pandas(market: Market, ours: pl.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    """All 313, with the volume profiles bar by bar and as matrices; those for which pandas has compiled code; and of
    these the ones with something to compute."""
    for by_bar in (True, False):
        peer = pandas_catalogue.Features(market.rows, market.table, by_bar=by_bar).frame(market.names)
        _agree(ours, {name: peer[name].to_numpy(float) for name in market.names})
    compiled = _without(market, pandas_catalogue.LOOPS)
    lines = []
    for names, by_bar, what in (
        (market.names, True, "the whole catalogue, pandas' volume profiles in a loop over the bars"),
        (market.names, False, "... as NumPy matrices, whole sessions at once"),
        (compiled, False, "without the volume profiles, so that pandas runs compiled code only"),
        ([name for name in compiled if not _is_copy(market, name)], False, "... and without inputs as they are"),
    ):

        def theirs(names: Sequence[str] = names, by_bar: bool = by_bar) -> object:
            return pandas_catalogue.Features(market.rows, market.table, by_bar=by_bar).frame(names)

        times = _interleaved(
            {"here": _call(market, names), "here, 2 threads": _call(market, names, 2), "pandas": theirs}
        )
        lines += [f"{len(names)} columns, {what}", *_table(market, times, len(names)), _ratio(times, "pandas")]
        if by_bar:
            loop = times["pandas"].wall / times["here, 2 threads"].wall
    _print(capsys, f"pandas {pd.__version__}", lines)
    at_least("the catalogue against pandas, by the clock", loop, PANDAS_GOAL)


def test_against_polars(market: Market, ours: pl.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    """All that expressions can say: ``with_columns`` after ``with_columns``, and the same lazily in one ``collect``."""
    inputs = [name for name in market.frame.columns if name != "known_at"]
    features = polars_catalogue.Features(market.rows, inputs)
    said = [name for name in market.names if name not in features.left_out]
    assert {*said} == {*_without(market, polars_catalogue.UNSAID)}
    for peer in (features.of(market.frame, said), features.of(market.frame.lazy(), said).collect()):
        _agree(ours, {name: peer[name].cast(pl.Float64).to_numpy() for name in said})
    lines = []
    ratios: dict[str, float] = {}
    for names, what in (
        (said, "all but the volume profiles"),
        ([name for name in said if not _is_copy(market, name)], "... and without inputs as they are"),
    ):
        steps = polars_catalogue.Features(market.rows, inputs)
        query = steps.of(market.frame.lazy(), names)

        def theirs(names: Sequence[str] = names, steps: polars_catalogue.Features = steps) -> object:
            return steps.of(market.frame, names)

        times = _interleaved(
            {
                "here": _call(market, names),
                "here, 2 threads": _call(market, names, 2),
                "with_columns": theirs,
                "one collect": query.collect,
            }
        )
        fastest = min(("with_columns", "one collect"), key=lambda name: times[name].wall)
        lines += [f"{len(names)} columns, {what}", *_table(market, times, len(names)), _ratio(times, fastest)]
        ratios[what] = times[fastest].wall / times["here, 2 threads"].wall
    _print(capsys, f"Polars {pl.__version__}, {pl.thread_pool_size()} threads", lines)
    for what, ratio in ratios.items():
        at_least(f"{what}, against Polars, by the clock", ratio, POLARS_GOAL)


# --- the lists --------------------------------------------------------------------------------------


def _reads(row: Column) -> tuple[str, ...]:
    return row.inputs if row.expression is None else parse(row.expression, row.name).columns


def _without(market: Market, kernels: Sequence[str]) -> list[str]:
    """The features that do not rest on these kernels."""
    rows = {row.name: row for row in market.rows if row.inputs != (row.name,)}

    def rests(name: str) -> bool:
        row = rows.get(name)
        return row is not None and (row.kernel in kernels or any(map(rests, _reads(row))))

    return [name for name in market.names if not rests(name)]


def _is_copy(market: Market, name: str) -> bool:
    return any(feature.name == name and feature.kernel == "column" for feature in market.catalogue.features)


def _restricted(market: Market, names: Sequence[str]) -> Catalogue:
    """A catalogue of these features; others that they read become auxiliary."""
    rows = {row.name: row for row in market.rows if row.inputs != (row.name,)}
    wanted, found = list(names), set(names)
    while wanted:
        row = rows.get(wanted.pop())
        more = [name for name in (_reads(row) if row else ()) if name in rows and name not in found]
        found.update(more)
        wanted += more
    features = tuple(feature for feature in market.catalogue.features if feature.name in set(names))
    fields = set(Column.model_fields)
    auxiliary = tuple(
        Column(**row.model_dump(include=fields)) for name, row in rows.items() if name in found - set(names)
    )
    return Catalogue(inputs=market.catalogue.inputs, auxiliary=auxiliary, features=features)


def _call(market: Market, names: Sequence[str], threads: int = 1) -> Callable[[], object]:
    """Ours: the features of these names as a frame; the matrix is used again, as the peers' allocators do."""
    catalogue = _restricted(market, names)
    plan = make_plan(catalogue, tuple(market.table.columns), bar_minutes=1.0, tick_size=market.sample.tick_size)
    engine = FeatureEngine(plan)
    columns = {name: market.sample.columns[name] for name in plan.inputs}
    memory = room(len(plan.outputs), len(market))
    timestamps = market.timestamps

    def call() -> pl.DataFrame:
        engine.reset()
        return feature_frame(timestamps, engine.block(market.sample.known_at, columns, out=memory, threads=threads))

    assert call().columns == ["timestamp", *catalogue.names]
    return call


# --- parity, time, print ----------------------------------------------------------------------------


def _agree(ours: pl.DataFrame, peer: dict[str, np.ndarray]) -> None:
    """The same missing rows, values within the tolerance, and enough of them for that to mean something."""
    for name, theirs in peer.items():
        a, b = ours[name].fill_null(np.nan).to_numpy(), np.where(np.isfinite(theirs), theirs, np.nan)
        apart = np.flatnonzero(np.isnan(a) != np.isnan(b))
        assert len(apart) <= LEFT_BY_SUMS.get(name, 0.0) * len(a), f"{name}: missing rows differ, first {apart[:3]}"
        both = ~np.isnan(a) & ~np.isnan(b)
        assert both.sum() > 0.2 * len(a), f"{name}: {both.sum()} values"
        size = np.maximum(np.abs(a[both]), np.median(np.abs(a[both])))
        off = np.abs(a[both] - b[both]) > TOLERANCE * size
        assert not off.any(), f"{name}: {off.sum()} values differ, first at row {np.flatnonzero(both)[off][0]}"


@dataclass(frozen=True)
class Times:
    """Medians in seconds."""

    processor: float
    wall: float


def _interleaved(calls: dict[str, Callable[[], object]]) -> dict[str, Times]:
    """Taken in turns, so that the machine's moods strike all alike."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.process_time(), time.perf_counter()
            call()
            times[name].append((time.process_time() - began[0], time.perf_counter() - began[1]))
    return {name: Times(*map(statistics.median, zip(*own, strict=True))) for name, own in times.items()}


def _table(market: Market, times: dict[str, Times], count: int) -> list[str]:
    def per_row(seconds: float) -> str:
        return f"{seconds / len(market) * 1e9:,.0f}"

    lines = [f"  {name}: {per_row(own.processor)} of processor, {per_row(own.wall)}" for name, own in times.items()]
    return [*lines, f"  NumPy filling {count} columns with one number: {per_row(_stored(market, count))}"]


def _stored(market: Market, count: int) -> float:
    """Seconds in which NumPy fills as many columns of warm memory: what a copy of every column would cost."""
    matrix = room(count, len(market))
    times = []
    for number in range(ROUNDS + 1):
        began = time.perf_counter()
        matrix.fill(number)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def _ratio(times: dict[str, Times], peer: str) -> str:
    theirs, here, two = times[peer], times["here"], times["here, 2 threads"]
    return (
        f"  {peer} over here: {theirs.processor / here.processor:.1f} of processor; by the clock "
        f"{theirs.wall / here.wall:.1f}, against two threads {theirs.wall / two.wall:.1f}"
    )


def _print(capsys: pytest.CaptureFixture[str], what: str, lines: Sequence[str]) -> None:
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    with capsys.disabled():
        print("\n".join([f"\n{what}, ns per row ({machine})", *(f"  {line}" for line in lines)]))
