"""What each test file costs, to begin with the dearest and to choose those of ``make test-fast``.

``file_seconds.json`` beside this file holds seconds of the processor, children's too, so that what
else runs on the machine does not count. ``pytest -m "not slow" --file-seconds`` measures anew what
it runs, in one process.
"""

from __future__ import annotations

import json
import resource
from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Final

import pytest

SECONDS: Final = Path(__file__).with_name("file_seconds.json")
FAST_S: Final = 35.0
"""What ``make test-fast`` may cost, beside the start of its workers: 18 seconds of two cores."""

PRODUCT: Final = ("server", "client", "common")
"""The folders of tests that mirror packages; the others run real processes and guides."""

UNKNOWN_S: Final = 10.0
"""Of a file that nobody has measured yet."""


def known() -> dict[str, float]:
    """Return the seconds of the test files, by their paths from the root."""
    found: dict[str, float] = json.loads(SECONDS.read_text())
    return found


def dearest_first(items: list[pytest.Item], seconds: Mapping[str, float]) -> list[pytest.Item]:
    """Return the tests so that the last file is a short one, each file's in their own order."""
    return sorted(items, key=lambda item: (-seconds.get(_file(item), UNKNOWN_S), _file(item)))


def fast(files: Iterable[str], seconds: Mapping[str, float]) -> set[str]:
    """Return the files of ``make test-fast``: the cheapest of each package, then the cheapest."""
    cheapest = sorted(files, key=lambda file: (seconds.get(file, UNKNOWN_S), file))
    first: dict[str, str] = {}
    for file in cheapest:
        if Path(file).parts[1] in PRODUCT:
            first.setdefault(str(Path(file).parent), file)
    chosen = set(first.values())
    left_s = FAST_S - sum(seconds.get(file, UNKNOWN_S) for file in chosen)
    for file in cheapest:
        cost = seconds.get(file, UNKNOWN_S)
        if file not in chosen and cost <= left_s:
            chosen.add(file)
            left_s -= cost
    return chosen


class Meter:
    """Measures every file of a run and keeps what it found."""

    def __init__(self) -> None:
        self._took: dict[str, float] = defaultdict(float)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        before = _cpu_s()
        try:
            return (yield)
        finally:
            self._took[_file(item)] += _cpu_s() - before

    def pytest_sessionfinish(self) -> None:
        root = SECONDS.parents[1]
        both = {**known(), **{file: round(took, 1) for file, took in self._took.items()}}
        there = {file: both[file] for file in sorted(both) if (root / file).exists()}
        SECONDS.write_text(json.dumps(there, indent=2) + "\n")


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
