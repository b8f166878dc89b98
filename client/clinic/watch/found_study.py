"""A study that was found, and where studies are found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Found:
    """A complete study. ``files`` brings it to this machine for as long as it is needed;
    ``fingerprint`` changes when its files do; ``settled`` is called once nothing is left to do."""

    name: str
    fingerprint: str
    files: Callable[[], AbstractContextManager[Path]]
    settled: Callable[[], None]


class Source(Protocol):
    """Where studies appear."""

    def look(self) -> Iterable[Found]:
        """Return the studies that are complete now; those that were settled may be left out."""
