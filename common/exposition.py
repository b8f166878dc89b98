"""Figures for Prometheus: their names, and who tells them. What is told is each side's own.

The registry is our own: nothing of other libraries is told.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector


def gauge(name: str, words: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"gliofed_{name}", words, labels=labels)


def counter(name: str, words: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"gliofed_{name}", words, labels=labels)


def registry(collector: Collector) -> CollectorRegistry:
    """Return a registry that tells what ``collector`` knows and nothing else."""
    own = CollectorRegistry()
    own.register(collector)
    return own


def expose(collector: Collector, *, port: int, host: str = "127.0.0.1") -> None:
    """Serve the figures, from a thread, until the process ends."""
    start_http_server(port, addr=host, registry=registry(collector))
