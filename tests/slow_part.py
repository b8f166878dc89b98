"""Runs the part of the slow tests that is due, and stops in time: pytest's side of ``tests.parts``.

    pytest -m slow --slow-turn 17 --slow-minutes 30

runs the part of turn 17, begins no test that does not fit into what is left of the 30 minutes, and
says in the end how long each took and which were not run. A test that does not end in time fails.
``--slow-seconds`` keeps what was measured in ``seconds.json``. Without these options nothing here
changes anything.
"""

from __future__ import annotations

import json
import signal
import time
from collections import defaultdict
from collections.abc import Generator
from typing import Final

import pytest

from tests import parts

GRACE_S: Final = 120.0
"""So much longer than the minutes given may take what was begun in time."""


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("slow tests")
    group.addoption("--slow-turn", type=int, metavar="N", help="run only the part of turn N")
    group.addoption("--slow-minutes", type=float, metavar="M", help="begin no test too late for M")
    group.addoption("--slow-seconds", action="store_true", help="keep each test's seconds")


class SlowPart:
    """Chooses, bounds and measures; one for each run."""

    def __init__(self, config: pytest.Config) -> None:
        self._turn: int | None = config.getoption("--slow-turn")
        self._minutes: float | None = config.getoption("--slow-minutes")
        self._keep: bool = config.getoption("--slow-seconds")
        self._known = parts.known()
        self._collected: list[str] = []
        self._left_out: list[str] = []
        self._took: dict[str, float] = defaultdict(float)
        self._failed: set[str] = set()
        self._part = ""
        self._ends = float("inf")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        slow = {i.nodeid: i for i in items if i.get_closest_marker("slow") is not None}
        self._collected = list(slow)
        if self._turn is None:
            return
        chosen = parts.due(list(slow), self._known, turn=self._turn)
        count = len(parts.parts(list(slow), self._known))
        self._part = f"part {self._turn % count + 1} of {count} of the slow tests"
        config.hook.pytest_deselected(items=[i for i in items if i.nodeid not in set(chosen)])
        items[:] = [slow[name] for name in chosen]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        if self._minutes is None:
            return (yield)
        self._ends = time.monotonic() + 60 * self._minutes
        before = signal.signal(signal.SIGALRM, lambda *_: self._cut_off())
        signal.setitimer(signal.ITIMER_REAL, 60 * self._minutes + GRACE_S)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _cut_off(self) -> None:
        pytest.fail(f"not done in time: the part was to end after {self._minutes:g} minutes")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        left_s = self._ends - time.monotonic()
        if not parts.fits(item.nodeid, self._known, left_s=left_s):
            self._left_out.append(item.nodeid)
            pytest.skip("no time is left for it")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._took[report.nodeid] += report.duration
        if not report.passed:
            self._failed.add(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        ran = {n: t for n, t in self._took.items() if n not in set(self._left_out)}
        terminalreporter.section(self._part or "slow tests")
        for name, seconds in sorted(ran.items(), key=lambda item: -item[1]):
            terminalreporter.line(f"{seconds:7.1f} s  {name}")
        for name in self._left_out:
            terminalreporter.line(f"NOT RUN, no time was left: {name}")
        if not self._keep:
            return
        files = {name.partition("::")[0] for name in self._collected}
        elsewhere = [name for name in self._known if name.partition("::")[0] not in files]
        measured = {n: t for n, t in ran.items() if n in self._collected and n not in self._failed}
        kept = parts.updated(self._known, measured, names=[*self._collected, *elsewhere])
        parts.SECONDS.write_text(json.dumps(kept, indent=2) + "\n")
