"""What a benchmark says while it runs, and what it found."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """One table of figures; ``holds`` says whether ``promise`` does, None if nothing is promised.

    ``facts`` are the figures for programs.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    promise: str
    holds: bool | None
    facts: dict[str, Any] = field(default_factory=dict)


Measuring = Generator[str, None, Result]
"""A benchmark at work: it yields what it does next and each row as soon as that is known, as lines
for people, and returns its result."""


@dataclass(frozen=True)
class Benchmark:
    """``measure`` works in a folder that is there for it alone."""

    measure: Callable[[Path], Measuring]
    minutes: float
    """About how long it takes on two idle cores, as it is."""


def line(columns: Sequence[str], cells: Sequence[object]) -> str:
    """Return a row for somebody who does not see the table yet.

    >>> line(["step", "median s", "peak MB", "remark"], ["ours", 1.23456, None, ""])
    'ours: median s 1.235'
    """
    said = [
        f"{name} {cell:.4g}" if isinstance(cell, float) else f"{name} {cell}"
        for name, cell in zip(columns[1:], cells[1:], strict=True)
        if cell not in (None, "")
    ]
    return f"{cells[0]}: {', '.join(said)}"
