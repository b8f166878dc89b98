"""The slow tests in parts, one for each push, so that a few pushes run them all.

``seconds.json`` beside this file says how long each slow test takes. Tests of one file share what
was set up for it, so a file stays whole unless it is longer than a part. Which tests a part holds
follows from the names and the seconds alone; which part is due, from a number that grows by one
with each push. Nothing here starts a test: that is pytest's, through ``tests/conftest.py``.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

SECONDS: Final = Path(__file__).with_name("seconds.json")
PART_S: Final = 1200.0
"""What a part takes where ``seconds.json`` was measured."""

UNKNOWN_S: Final = 300.0
"""Of a test that nobody has measured yet."""

SLOWER: Final = 1.5
"""A test is begun only if so many times its seconds are left."""


def known() -> dict[str, float]:
    """Return the seconds of the slow tests, by their node ids."""
    found: dict[str, float] = json.loads(SECONDS.read_text())
    return found


def parts(names: Sequence[str], seconds: Mapping[str, float]) -> list[list[str]]:
    """Deal the tests ``names``, in their order, into parts of about ``PART_S``, each named once."""
    took = {name: seconds.get(name, UNKNOWN_S) for name in names}
    count = max(1, math.ceil(sum(took.values()) / PART_S))
    chunks = sorted(_chunks(names, took), key=lambda chunk: (-_sum(chunk, took), chunk))
    dealt: list[list[str]] = [[] for _ in range(count)]
    for chunk in chunks:  # the longest first, each to who has least
        min(dealt, key=lambda part: _sum(part, took)).extend(chunk)
    return dealt


def due(names: Sequence[str], seconds: Mapping[str, float], *, turn: int) -> list[str]:
    """Return the part of that turn; what comes first in it changes each time that it is due.

    So what a slow machine has no time for is not the same each time.
    """
    dealt = parts(names, seconds)
    part = dealt[turn % len(dealt)]
    files = [list(group) for _, group in itertools.groupby(part, key=_file)]
    first = turn // len(dealt) % max(1, len(files))
    return [name for group in (*files[first:], *files[:first]) for name in group]


def fits(name: str, seconds: Mapping[str, float], *, left_s: float) -> bool:
    """Return whether a test may be begun when ``left_s`` seconds are left."""
    return SLOWER * seconds.get(name, UNKNOWN_S) <= left_s


def updated(
    seconds: Mapping[str, float], measured: Mapping[str, float], *, names: Iterable[str]
) -> dict[str, float]:
    """Return the seconds of the tests ``names``, the only ones that there are."""
    both = {**seconds, **{name: round(value, 1) for name, value in measured.items()}}
    return {name: both[name] for name in sorted(names) if name in both}


def _chunks(names: Sequence[str], took: Mapping[str, float]) -> Iterable[list[str]]:
    """Yield the tests of each file together, or in pieces of at most half a part."""
    for _, group in itertools.groupby(names, key=_file):
        tests = list(group)
        if _sum(tests, took) <= PART_S:
            yield tests
            continue
        piece: list[str] = []
        for name in tests:
            if piece and _sum([*piece, name], took) > PART_S / 2:
                yield piece
                piece = []
            piece.append(name)
        yield piece


def _file(name: str) -> str:
    return name.partition("::")[0]


def _sum(names: Iterable[str], took: Mapping[str, float]) -> float:
    return math.fsum(took[name] for name in names)
