"""What Prometheus may read: numbers and the model's version, and nothing of a patient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from common.errors import StateError
from common.web.prometheus import exposed

_SECONDS: Final = (0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 120, 300, 600)


class Counters:
    """The service's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "gliofed_service_requests",
            "Requests to segment, by gRPC status.",
            ["status"],
            registry=self.registry,
        )
        self.refused = Counter(
            "gliofed_service_refused",
            "Requests that were not computed, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.latency = Histogram(
            "gliofed_service_seconds",
            "From the request to its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.waited = Histogram(
            "gliofed_service_waited_seconds",
            "From the request to the begin of its work.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.studies = Counter(
            "gliofed_service_watched_studies",
            "Studies that were found by watching, by outcome.",
            ["outcome"],
            registry=self.registry,
        )
        self._queue = Gauge("gliofed_service_queue", "Who waits.", registry=self.registry)
        self._model = Gauge(
            "gliofed_service_model",
            "1 for the model that is used.",
            ["name", "version", "weights"],
            registry=self.registry,
        )

    def waiting(self, length: Callable[[], float]) -> None:
        """Show ``length()`` as the length of the queue."""
        self._queue.set_function(length)

    def model(self, name: str, version: str, weights: str) -> None:
        """Show which model is used now."""
        self._model.clear()
        self._model.labels(name, version, weights[:16]).set(1)

    @contextlib.contextmanager
    def served(self, port: int) -> Iterator[None]:
        """Answer on a port of the loopback interface while the block runs. Raises StateError."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(exposed(self.registry, port=port))
            except OSError as error:
                raise StateError(
                    f"The port {port} for metrics cannot be opened: {error.strerror}.",
                    do="Choose another with --metrics-port, or 0 for none.",
                    code="service-port",
                ) from error
            yield
