"""Which hospitals take part in a study: offers, signed approvals, and approvals taken back.

What a hospital said last counts. An approval that comes while the study runs counts from the next
round; a hospital that refuses the study after it approved is out of it until it approves again. All
of this is in the journal, and read from it when the coordinator starts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

from common.errors import IdentityError
from common.records.journal import Entry, Journal
from common.study.protocol import APPROVAL
from common.trust.identity import Statement
from server.consortium.published_study import Study
from server.consortium.sites import Sites
from server.rounds.fleet import Clock, Fleet
from server.rounds.order_state import Answer, Exchange, Task
from server.rounds.orders import AmendedError, Orders

OFFER_S: Final = 60.0
"""How long an offer waits for a site's answer."""

OFFER_AGAIN_S: Final = 30.0
"""How often a site that has not decided is asked while the study runs."""

APPROVED: Final = "approve"
"""The decision in a signed statement that makes an approval of it; any other is none."""

_WORDS: Final = ("by", "why", "time", "study")
"""Of a signed decision, what people read."""

TAKEN_BACK: Final = frozenset({"refused-by-site", "not-approved"})
"""Codes by which a site that approved declines an order because it does not any more."""


class Approvals:
    """The approvals of one study."""

    def __init__(
        self,
        study: Study,
        fleet: Fleet,
        orders: Orders,
        *,
        journal: Journal,
        sites: Sites,
        past: Iterable[Entry],
        clock: Clock = time,
    ) -> None:
        """``past`` are the facts of the study, in order."""
        self._study = study
        self._protocol = study.protocol
        self._fleet = fleet
        self._orders = orders
        self._journal = journal
        self._sites = sites
        self._clock = clock
        self._running = Exchange()
        self._told: dict[str, str] = {}
        self._next_s: dict[str, float] = {}
        self._approved: set[str] = set()
        for entry in past:
            if entry.facts.get("protocol") != self._protocol.digest:
                continue
            if entry.event == "study approved":
                self._approved.add(str(entry.facts["site"]))
            elif entry.event == "approval taken back":
                self._approved.discard(str(entry.facts["site"]))

    def current(self) -> set[str]:
        """Return the sites that approved this protocol, are admitted and are not suspended."""
        return self._approved & self._sites.active()

    def gather(self, quorum: int) -> None:
        """Offer the protocol until ``quorum`` sites have approved; known approvals count.

        Once there are enough, nobody waits for those that have not decided. Raises AmendedError
        when another version of the protocol waits to take force.
        """
        self._check_in_force()
        if len(self.current()) >= quorum:
            self.look()
            return
        self._record("waiting for approvals", needed=quorum, so_far=sorted(self.current()))
        while len(self.current()) < quorum:
            self._check_in_force()
            missing = self._undecided()
            self._running.waiting |= missing
            if missing:
                self._give(self._told, deadline_s=OFFER_S, state=self._running)
            if len(self.current()) < quorum:
                self._orders.pause(2.0)

    def _check_in_force(self) -> None:
        if self._study.amendment is not None:
            raise AmendedError(f"{self._protocol.study} was amended.")

    def look(self) -> None:
        """Offer the protocol to who has not decided, and take what they say; wait for nothing."""
        now = self._clock.monotonic()
        due = {s for s in self._undecided() if now >= self._next_s.get(s, now)}
        self._next_s.update(dict.fromkeys(due, now + OFFER_AGAIN_S))
        self._running.waiting |= due
        if self._running.waiting:
            self._give(self._told, deadline_s=0.0, state=self._running)

    def offer(self, told: dict[str, str]) -> None:
        """Offer the protocol once to every site that is online and has not approved yet."""
        if missing := self._undecided():
            self._give(told, deadline_s=OFFER_S, state=Exchange(waiting=missing))

    def take_back(self, dropped: dict[str, str], *, number: int) -> None:
        """Take note of who refused an order of round ``number`` because it does not approve."""
        for site, code in sorted(dropped.items()):
            if code in TAKEN_BACK and site in self._approved:
                self._approved.discard(site)
                self._record(
                    "approval taken back",
                    site=site,
                    round=number,
                    protocol=self._protocol.digest,
                    code=code,
                    reason=f"{site} does not approve the study any more: it gets no order of it "
                    "until it approves again.",
                )

    def close(self) -> None:
        """Forget the offers that are under way."""
        self._orders.forget(self._running)

    def _undecided(self) -> set[str]:
        return (self._fleet.online() & self._sites.active()) - self.current()

    def _give(self, told: dict[str, str], *, deadline_s: float, state: Exchange) -> None:
        task = Task(kind="offer", number=0, deadline_s=deadline_s)
        self._orders.give(task, (), self._accept, told=told, state=state)

    def _accept(self, answer: Answer) -> None:
        site, report = answer.site, answer.report
        self._check(site, report.approval)
        self._record(
            "study approved",
            site=site,
            protocol=self._protocol.digest,
            site_head=report.site_head,
            approval=Statement.loads(report.approval).to_dict(),
        )
        self._approved.add(site)

    def _check(self, site: str, text: str) -> None:
        request = self._sites.get(site)
        if request is None:
            raise IdentityError(f"{site} was never admitted.")
        statement = Statement.loads(text)
        keys = self._sites.identity_keys(site)
        signer = statement.signer if statement.signer in keys else request.identity_key
        body = statement.opened(kind=APPROVAL, signer=signer)
        if body.get("protocol") != self._protocol.digest or body.get("site") != site:
            raise IdentityError(f"The approval of {site} is for another protocol.")
        if body.get("decision") != APPROVED:
            raise IdentityError(
                f"What {site} signed is no approval: it decided otherwise.",
                do=f"Ask {site} what it decided: `gliofed-site approve` there approves.",
                code="not-approved",
            )
        if not all(isinstance(body.get(key, ""), str) for key in _WORDS):
            raise IdentityError(f"The approval of {site} does not say in words who decided, when.")

    def _record(self, event: str, **facts: Any) -> None:
        self._journal.append(event, study=self._protocol.study, **facts)
