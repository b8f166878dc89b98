"""How long a round waits for a site: learnt from the site's past, and short for who was not there.

A round waits for a site at most ``deadline_slack`` times the slowest of its last trainings in this
study, and a minute, but never longer than the protocol's ``deadline_s``; for a site without a past,
``deadline_s``. The minute is what Flower takes to tell that a node is gone.

Who made one exchange of orders wait in vain does not make the next one wait as well. It is ordered
all the same, and what it answers before the exchange ends counts.

Pure: seconds and names come in as values. Out of scope: the quorum, without which a round does wait
until ``deadline_s`` (``server.rounds.quorum``).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from common.messages.wire_format import OrderKind
from common.records.journal import Entry
from common.study.aggregation_options import AggregationOptions

FLOOR_S: Final = 60.0
REMEMBERED: Final = 5
"""Trainings of a site that are looked back at."""


class Deadlines:
    """How long each site took for its last orders, and how long to wait for the next."""

    def __init__(self, options: AggregationOptions, past: Iterable[Entry] = ()) -> None:
        """``past`` are the facts of the study, in order."""
        self._options = options
        self._seconds: defaultdict[tuple[str, str], deque[float]] = defaultdict(
            lambda: deque(maxlen=REMEMBERED)
        )
        for entry in past:
            facts = entry.facts
            if entry.event in {"reply accepted", "reply late"} and "seconds" in facts:
                self.learn(facts.get("order", "train"), facts["site"], facts["seconds"])
            elif entry.event == "evaluated":
                for site, seconds in facts.get("seconds", {}).items():
                    self.learn("evaluate", site, seconds)

    def learn(self, kind: str, site: str, seconds: float) -> None:
        """Take note that ``site`` answered an order after ``seconds``, in time or not."""
        self._seconds[kind, site].append(seconds)

    def wait_s(self, kind: OrderKind, site: str) -> float:
        """Return how long to wait for the answer of ``site`` to an order."""
        past = self._seconds.get((kind, site))
        if not past:
            return self._options.deadline_s
        return min(self._options.deadline_s, self._options.deadline_slack * max(past) + FLOOR_S)


@dataclass
class Attendance:
    """Who made the last exchange wait in vain, and why."""

    absent: set[str] = field(default_factory=set)
    """Could not be reached: waited for again once they have an order."""
    silent: set[str] = field(default_factory=set)
    """Had an order and did not answer: waited for again once they answer anything."""
    deferred: set[str] = field(default_factory=set)
    """Answered that they have no time: waited for unless they answer so again."""

    def waited_for(self, site: str, *, ordered: bool, deferred: bool) -> bool:
        """Return whether to wait for ``site``: it is ``ordered``, or put its order off."""
        if site in self.silent:
            return False
        if site in self.absent:
            return ordered
        return not (deferred and site in self.deferred)

    def heard(self, site: str) -> None:
        """Take note that ``site`` answered something."""
        self.absent.discard(site)
        self.silent.discard(site)

    def done(self, site: str) -> None:
        """Take note that ``site`` carried out an order or refused to."""
        self.heard(site)
        self.deferred.discard(site)

    def away(self, offline: set[str]) -> None:
        """Take note of who cannot be reached: who comes back is not who kept silent."""
        self.absent |= self.silent & offline
        self.silent -= offline

    def missed(self, why: Mapping[str, str]) -> None:
        """Take note of how an exchange ended: ``absent``, ``silent`` or ``deferred`` by site."""
        for site, how in why.items():
            self.done(site)
            {"absent": self.absent, "silent": self.silent, "deferred": self.deferred}[how].add(site)
