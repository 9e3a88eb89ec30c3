"""The journal's figures for Prometheus, on the loopback only (extra ``metrics``)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from mia_fast.telemetry import Measured

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

ADDRESS: Final = "127.0.0.1"
_BUCKETS: Final = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


class Journal(Protocol):
    """What the endpoint asks of the journal that opens it."""

    def health(self) -> str:
        """``"ok"``, or why entries must be blocked."""

    def stats(self) -> dict[str, int]:
        """The state in numbers."""


class _Operation:
    """What is known of one operation: calls by latency, their sum, failures."""

    __slots__ = ("counts", "failures", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS) + 1)
        self.seconds = 0.0
        self.failures = 0


class Metrics:
    """``http://127.0.0.1:<port>/metrics`` while a journal is open.

    Operations are counted on the writer's side, from the telemetry it brings in: the caller pays nothing more.
    """

    def __init__(self, journal: Journal, port: int) -> None:
        """Start the endpoint.

        Raises
        ------
        ImportError
            prometheus-client is not installed.
        OSError
            The port is taken.
        """
        from prometheus_client import CollectorRegistry, start_http_server

        self._journal = journal
        self._mutex = threading.Lock()
        self._operations: dict[tuple[str, str], _Operation] = {}
        self._memory_mb = 0.0
        self._cpu_percent = 0.0
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        self._server, self._thread = start_http_server(port, addr=ADDRESS, registry=registry)

    def add(self, measured: Sequence[Measured], memory_mb: float, cpu_percent: float) -> None:
        """Count what telemetry brought; called by the writer."""
        import bisect

        with self._mutex:
            self._memory_mb, self._cpu_percent = memory_mb, cpu_percent
            for _, component, name, _, latency, success in measured:
                known = self._operations.get((component, name))
                if known is None:
                    known = self._operations[component, name] = _Operation()
                seconds = latency / 1e9
                known.counts[bisect.bisect_left(_BUCKETS, seconds)] += 1
                known.seconds += seconds
                known.failures += not success

    def collect(self) -> Iterator[Metric]:
        """What Prometheus asks for; runs on the endpoint's own thread."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        stats = self._journal.stats()
        yield GaugeMetricFamily(
            "mia_journal_healthy", "1 while health() is ok", value=float(self._journal.health() == "ok")
        )
        yield GaugeMetricFamily("mia_journal_backlog_rows", "accepted, not yet in DuckDB", value=stats["backlog"])
        yield CounterMetricFamily("mia_journal_accepted_rows", "last sequence number accepted", value=stats["accepted"])
        yield CounterMetricFamily("mia_journal_waits", "callers held by back-pressure", value=stats["waits"])
        yield CounterMetricFamily(
            "mia_journal_telemetry_sampled_rows", "telemetry rows left out", value=stats["telemetry_sampled"]
        )
        with self._mutex:
            yield GaugeMetricFamily("mia_memory_megabytes", "resident memory", value=self._memory_mb)
            yield GaugeMetricFamily("mia_cpu_percent", "of one core", value=self._cpu_percent)
            latency = HistogramMetricFamily(
                "mia_operation_seconds", "latency of an operation", labels=["component", "operation"]
            )
            failures = CounterMetricFamily(
                "mia_operation_failures", "operations that raised", labels=["component", "operation"]
            )
            for labels, known in self._operations.items():
                total = 0
                buckets: list[tuple[str, float]] = []
                for bound, count in zip((*map(str, _BUCKETS), "+Inf"), known.counts, strict=True):
                    total += count
                    buckets.append((bound, total))
                latency.add_metric(labels, buckets, known.seconds)
                failures.add_metric(labels, known.failures)
        yield latency
        yield failures

    def close(self) -> None:
        """Stop the endpoint and free its port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
