"""Telemetry's ring and the retries."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mia_fast import telemetry
from mia_fast.telemetry import Gauge, Recorder, is_transient, operation, retrying


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    one = Recorder(1024)
    monkeypatch.setattr(telemetry, "_record", one.record)
    return one


def test_a_decorated_function_keeps_its_result_and_its_name(ring: Recorder) -> None:
    @operation("risk", "double")
    def double(x: int, *, plus: int = 0) -> int:
        """Twice."""
        time.sleep(0.002)
        return 2 * x + plus

    before = time.time_ns()
    assert double(3, plus=1) == 7
    assert (double.__name__, double.__doc__) == ("double", "Twice.")
    ((number, component, name, start, latency, success),), lost = ring.drain()
    assert (number, component, name, success, lost) == (0, "risk", "double", True, 0)
    assert before <= start <= time.time_ns()
    assert 2_000_000 <= latency < 60_000_000_000


def test_an_exception_is_recorded_and_passes(ring: Recorder) -> None:
    @operation("risk", "fail")
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    with pytest.raises(KeyError), operation("risk", "block"):
        raise KeyError("y")
    measured, _ = ring.drain()
    assert [(row[2], row[5]) for row in measured] == [("fail", False), ("block", False)]


def test_recursion_and_threads_do_not_mix_up_their_clocks(ring: Recorder) -> None:
    @operation("x", "down")
    def down(depth: int) -> None:
        if depth:
            down(depth - 1)

    threads = [threading.Thread(target=down, args=(20,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    measured, lost = ring.drain()
    assert (len(measured), lost) == (8 * 21, 0)
    assert [row[0] for row in measured] == list(range(8 * 21))


@settings(deadline=None)
@given(st.lists(st.integers(0, 25), max_size=20))
def test_the_ring_keeps_the_latest_and_counts_the_rest(bursts: list[int]) -> None:
    one = Recorder(8)
    recorded = 0
    for burst in bursts:
        for _ in range(burst):
            one.record("c", str(recorded), 0, 0, True)
            recorded += 1
        measured, lost = one.drain()
        assert len(measured) == min(burst, 8)
        assert lost == burst - len(measured)
        assert [row[2] for row in measured] == [str(n) for n in range(recorded - len(measured), recorded)]
    assert one.drain() == ([], 0)


def test_a_drain_beside_recording_threads_misses_nothing() -> None:
    one = Recorder(1 << 14)
    count = 4000

    def record(label: str) -> None:
        for number in range(count):
            one.record(label, str(number), 0, 0, True)

    threads = [threading.Thread(target=record, args=(label,)) for label in "abc"]
    for thread in threads:
        thread.start()
    taken: list[telemetry.Measured] = []
    lost = 0
    while any(thread.is_alive() for thread in threads):
        measured, gone = one.drain()
        taken += measured
        lost += gone
    measured, gone = one.drain()
    taken += measured
    assert len(taken) + lost + gone == 3 * count
    assert len({row[0] for row in taken}) == len(taken)
    if not lost + gone:
        for label in "abc":
            assert [row[2] for row in taken if row[1] == label] == [str(n) for n in range(count)]


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="file name"):
        operation("../x", "y")

    async def later() -> None:
        await asyncio.sleep(0)

    with pytest.raises(TypeError, match="measure inside it"):
        operation("x", "y")(later)
    with pytest.raises(ValueError, match="power of two"):
        Recorder(1000)


def test_the_gauge_sees_memory_and_work() -> None:
    import psutil

    gauge = Gauge()
    ends = time.perf_counter() + 0.05
    while time.perf_counter() < ends:
        pass
    memory, cpu = gauge.sample()
    assert memory == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.5)
    assert cpu > 1
    time.sleep(0.05)
    assert gauge.sample()[1] < cpu + 100


class Failing:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_a_transient_fault_is_tried_again_after_2_4_and_8_seconds() -> None:
    waits: list[float] = []
    told: list[BaseException] = []
    call = Failing(BlockingIOError(), TimeoutError(), BlockingIOError())
    assert retrying(call, sleep=waits.append, failed=told.append) == "done"
    assert waits == [2.0, 4.0, 8.0]
    assert len(told) == 3


def test_after_three_retries_the_last_error_is_raised_as_it_is() -> None:
    waits: list[float] = []
    errors = [BlockingIOError(str(n)) for n in range(5)]
    call = Failing(*errors)
    with pytest.raises(BlockingIOError) as raised:
        retrying(call, sleep=waits.append)
    assert raised.value is errors[3]
    assert call.calls == 4
    assert len(waits) == 3


@pytest.mark.parametrize("error", [ValueError("data"), KeyError("bug"), FileNotFoundError(2, "gone"), MemoryError()])
def test_other_errors_are_never_tried_again(error: Exception) -> None:
    waits: list[float] = []
    call = Failing(error)
    with pytest.raises(type(error)):
        retrying(call, sleep=waits.append)
    assert call.calls == 1
    assert not waits


def test_a_locked_sqlite_database_is_transient_and_a_wrong_statement_is_not(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    holder = sqlite3.connect(path, isolation_level=None)
    other = sqlite3.connect(path, timeout=0)
    try:
        holder.execute("CREATE TABLE t (a)")
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError) as locked:
            other.execute("SELECT * FROM t")
        assert is_transient(locked.value)
        holder.execute("ROLLBACK")
        with pytest.raises(sqlite3.OperationalError) as wrong:
            other.execute("SELEC")
        assert not is_transient(wrong.value)
    finally:
        other.close()
        holder.close()
