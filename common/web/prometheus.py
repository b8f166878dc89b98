"""Figures for Prometheus: their names, and who tells them. What is told is each side's own.

The registry is our own: nothing of other libraries is told.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, Final, Generic, TypeVar

from prometheus_client import CollectorRegistry, make_asgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.errors import StateError
from common.web import http_server
from common.web.connection_limits import ConnectionLimits

_LIMITS: Final = ConnectionLimits(unknown=32)
"""Anybody may ask, and so nobody is known: an answer takes no longer than a connection lives."""

Reading = TypeVar("Reading")


def gauge(name: str, words: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"gliofed_{name}", words, labels=labels)


def counter(name: str, words: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"gliofed_{name}", words, labels=labels)


class Figures(Collector, Generic[Reading]):
    """Tells what is in a reading, and first of all whether it could be read."""

    readable: ClassVar[tuple[str, str]]
    """Name and words of the figure that is 0 if it could not."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        """``read`` raises StateError for what cannot be read."""
        self._read = read

    def describe(self) -> list[Metric]:
        """Return nothing: what there is depends on the studies."""
        return []

    def collect(self) -> Iterator[Metric]:
        readable = gauge(*self.readable)
        try:
            reading = self._read()
        except StateError:
            readable.add_metric([], 0)
            yield readable
            return
        readable.add_metric([], float(self.whole(reading)))
        yield readable
        yield from self.figures(reading)

    def whole(self, _reading: Reading) -> bool:
        return True

    @abstractmethod
    def figures(self, reading: Reading) -> Iterator[Metric]:
        """Yield all else."""


def registry(collector: Collector) -> CollectorRegistry:
    """Return a registry that tells what ``collector`` knows and nothing else."""
    own = CollectorRegistry()
    own.register(collector)
    return own


def expose(collector: Collector, *, port: int, host: str = "127.0.0.1") -> None:
    """Serve the figures, from a thread, until the process ends; raise OSError."""
    listening = _listening(host, port)
    served = http_server.config(make_asgi_app(registry(collector)), limits=_LIMITS)
    threading.Thread(target=http_server.run, args=(served, [listening]), daemon=True).start()


@contextlib.contextmanager
def exposed(own: CollectorRegistry, *, port: int) -> Iterator[None]:
    """Serve a registry on the loopback address while the block runs; raise OSError."""
    listening = _listening("127.0.0.1", port)
    with http_server.in_thread(http_server.config(make_asgi_app(own), limits=_LIMITS), listening):
        yield


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens: whoever asks at once is answered."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)
