"""Figures for Prometheus: their names, and who tells them. What is told is each side's own.

The registry is our own: nothing of other libraries is told.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, Generic, TypeVar

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.errors import StateError

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
    """Serve the figures, from a thread, until the process ends."""
    start_http_server(port, addr=host, registry=registry(collector))
