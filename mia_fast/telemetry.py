"""One row per operation, at a cost the caller does not feel; and retries, for work off the hot path.

::

    @operation("neural_pipeline", "generate_predictions")
    def generate_predictions(data): ...

    with operation("risk", "stop_trading"):
        ...

The caller pays for two readings of the clock and one tuple in a preallocated ring. The writer
thread of the open journal empties the ring, samples memory and CPU once for what it found there
(psutil costs 50 us, so the caller never asks), and writes the rows into the table ``telemetry``,
from which ``data/logs/<component>_performance.csv`` are exported. Telemetry describes the machine:
its timestamps are the wall clock, in a replay too. Rows still in the ring when the process is
killed are lost; the ones that did not fit are counted.
"""

from __future__ import annotations

import errno
import functools
import inspect
import itertools
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

RETRIES: Final = 3

Measured = tuple[int, str, str, int, int, bool]
"""Running number, component, operation, start (ns since 1970 UTC), latency (ns), success."""


class Recorder:
    """A ring of the latest measurements: any thread records, one thread at a time drains.

    ``record`` takes no lock. Where the ring has lapped what was not drained yet, the oldest are
    gone; :meth:`drain` says how many.
    """

    def __init__(self, capacity: int = 1 << 14) -> None:
        if capacity < 1 or capacity & (capacity - 1):
            raise ValueError(f"the capacity {capacity} is not a power of two")
        self._ring: list[Measured | None] = [None] * capacity
        self._mask = capacity - 1
        self._numbers = itertools.count()
        self._read = 0
        self._draining = threading.Lock()

    def record(self, component: str, name: str, start_ns: int, latency_ns: int, success: bool) -> None:
        """Store one measurement."""
        number = next(self._numbers)  # atomic: one bytecode into C
        self._ring[number & self._mask] = (number, component, name, start_ns, latency_ns, success)

    def drain(self) -> tuple[list[Measured], int]:
        """What was recorded since the last call, oldest first, and how many were overwritten before it came."""
        taken: list[Measured] = []
        lost = 0
        with self._draining:
            while True:
                item = self._ring[self._read & self._mask]
                if item is None or item[0] < self._read:
                    return taken, lost
                if item[0] > self._read:  # lapped: what is left starts one lap before this one
                    oldest = item[0] - self._mask
                    lost += oldest - self._read
                    self._read = oldest
                    continue
                taken.append(item)
                self._read += 1


RECORDER: Final = Recorder()
"""The process's own: the journal that was opened last drains it."""

_record = RECORDER.record


class operation:  # noqa: N801 - read as a word: with operation(...), @operation(...)
    """Measure an operation: as a decorator each call, as a context manager the block.

    Parameters
    ----------
    component
        Which part of the house; the export is ``<component>_performance.csv``. Letters, digits, underscores.
    name
        The operation.

    An exception marks the row as failed and passes through.
    """

    __slots__ = ("_component", "_name", "_start", "_ticks")

    def __init__(self, component: str, name: str) -> None:
        if not (component.isascii() and component.isidentifier()):
            raise ValueError(f"the component {component!r} becomes a file name: use letters, digits and underscores")
        self._component = component
        self._name = name

    def __enter__(self) -> None:
        self._start = time.time_ns()
        self._ticks = time.perf_counter_ns()

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        _record(self._component, self._name, self._start, time.perf_counter_ns() - self._ticks, kind is None)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(f"{function.__qualname__} returns before its work is done; measure inside it")
        component, name = self._component, self._name

        @functools.wraps(function)
        def measured(*args: P.args, **kwargs: P.kwargs) -> T:
            start, ticks, success = time.time_ns(), time.perf_counter_ns(), False
            try:
                result = function(*args, **kwargs)
                success = True
                return result
            finally:
                _record(component, name, start, time.perf_counter_ns() - ticks, success)

        return measured


class Gauge:
    """Memory and CPU of this process, sampled by the journal's writer."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._cpu = time.process_time()

    def sample(self) -> tuple[float, float]:
        """Resident memory in MB (10^6 bytes) and CPU in percent of one core since the last sample."""
        wall, cpu = time.perf_counter(), time.process_time()
        percent = 100.0 * (cpu - self._cpu) / max(wall - self._wall, 1e-9)
        self._wall, self._cpu = wall, cpu
        return _resident_bytes() / 1e6, percent


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - 1.7 us; psutil takes 30
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        import psutil

        return int(psutil.Process().memory_info().rss)


_BUSY: Final = frozenset(
    {
        errno.EBUSY,
        errno.ETXTBSY,
        errno.EAGAIN,
        errno.EDEADLK,
        errno.ENOLCK,
        errno.EINTR,
        errno.ETIMEDOUT,
        errno.ESTALE,
    }
)


def _number(error: OSError) -> int | None:
    """The system's number of an error; Polars has it in the text only, as Rust writes it."""
    if error.errno is None and (found := re.search(r"\(os error (\d+)\)$", str(error))):
        return int(found[1])
    return error.errno


def is_transient(error: BaseException) -> bool:
    """A locked database or a busy file: worth another try. A programming or data error is not.

    Of the system's errors: a file or a mount in use (EBUSY, ETXTBSY), a lock that is taken or not to be had for now
    (EAGAIN, EDEADLK, ENOLCK), an interruption (EINTR), a network file system that did not answer or gave the file a new
    handle (ETIMEDOUT, ESTALE). Not a full disk, missing rights, a read-only or a failing disk: waiting mends none.
    """
    if isinstance(error, sqlite3.OperationalError):
        return (error.sqlite_errorcode & 0xFF) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    if isinstance(error, BlockingIOError | InterruptedError | TimeoutError):
        return True
    if isinstance(error, OSError):
        return _number(error) in _BUSY
    return type(error).__module__.endswith("duckdb") and "could not set lock" in str(error).lower()


def retrying(
    call: Callable[[], T],
    *,
    transient: Callable[[BaseException], bool] = is_transient,
    sleep: Callable[[float], Any] = time.sleep,
    failed: Callable[[BaseException], Any] | None = None,
) -> T:
    """Call; after a transient fault try again up to 3 times, 2, 4 and 8 seconds later.

    It sleeps: never call it in the live path.

    Parameters
    ----------
    call
        What to do; it must be safe to do again.
    transient
        Which errors are worth another try; all others are raised at once.
    sleep
        Waits for so many seconds.
    failed
        Is told each transient error before the wait.

    Raises
    ------
    BaseException
        The last error, unchanged.
    """
    try:
        return call()
    except BaseException as error:  # only a failure pays for the library: 30 us, and a replay asks at every bar
        if not transient(error):
            raise
        seen = [error]
    import tenacity

    def attempt() -> T:
        if seen:
            raise seen.pop()
        return call()

    def before_sleep(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if failed is not None and error is not None:
            failed(error)

    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(1 + RETRIES),
        wait=lambda state: float(2**state.attempt_number),
        retry=tenacity.retry_if_exception(transient),
        before_sleep=before_sleep,
        sleep=sleep,
        reraise=True,
    )(attempt)
