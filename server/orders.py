"""One order to several sites: send, collect, check each reply, order again what was lost.

Every reply is checked before anything of it is used; one that does not pass drops its site from
this order, and the journal says why. Each order carries the last head of that site's journal that
the coordinator heard, and each reply the last head of the coordinator's that the site heard: a
journal that was changed on either side shows.

Out of scope: what is done with good replies (``server.rounds``), how messages travel (the fleet).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from common.errors import FederationError, IdentityError, UpdateError
from common.journal import Journal
from common.weights import Arrays, digest
from common.wire import Order, OrderKind, Report, pack, readdressed, unpack_report
from server.fleet import Delivery, Fleet
from server.studies import Study

OFFER_S: Final = 60.0
"""How long an offer waits for a site's answer."""

_ATTEMPTS: Final = 8
_INITIAL_NORM: Final = 1e6

Accept = Callable[[str, Report, Arrays], None]
"""Takes a site's name and its good reply; raises UpdateError or IdentityError to refuse it."""


class StoppedError(FederationError):
    """The coordinator asked the study to stop."""

    default_code = "stopped"


@dataclass
class Exchange:
    """The state of one order to several sites."""

    waiting: set[str] = field(default_factory=set)
    tickets: dict[str, str] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    not_before: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


class Heads:
    """The heads of journals: the coordinator's own, and the sites' as they were last heard."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._sites: dict[str, str] = {}
        self._own: set[str] = set()
        for entry in journal.entries():
            self._own.add(entry.hash)
            if "site" in entry.facts and entry.facts.get("site_head"):
                self._sites[entry.facts["site"]] = entry.facts["site_head"]

    def of(self, site: str) -> str:
        """Return the head of the site's journal that was heard last, or an empty text."""
        return self._sites.get(site, "")

    def heard(self, site: str, head: str) -> None:
        if head:
            self._sites[site] = head

    def owns(self, head: str) -> bool:
        """Return whether the coordinator's journal had this head once."""
        if head and head not in self._own:
            self._own.update(entry.hash for entry in self._journal.entries())
        return not head or head in self._own


class Orders:
    """Gives the orders of one study."""

    def __init__(self, study: Study, fleet: Fleet, journal: Journal, *, poll_s: float) -> None:
        self._study = study
        self._fleet = fleet
        self._journal = journal
        self._heads = Heads(journal)
        self._poll_s = poll_s
        self.absent: set[str] = set()
        """Sites that are not waited for, since they did not answer in the last round."""

    def give(
        self,
        kind: OrderKind,
        sites: Iterable[str],
        number: int,
        weights: Arrays | None,
        accept: Accept,
        *,
        deadline_s: float,
        template: Mapping[str, tuple[int, ...]] | None = None,
        told: dict[str, str] | None = None,
        state: Exchange | None = None,
    ) -> dict[str, str]:
        """Order ``kind`` of ``sites``; hand each good reply to ``accept``; return who dropped out.

        A lost order is given again when its site is back. A site that was absent for the whole of
        the last round is not waited for, but is ordered if it appears in time. ``state`` goes on
        with an exchange that was left before: what was sent then may be answered now.
        """
        order = Order(
            kind=kind,
            study=self._study.protocol.study,
            round=number,
            protocol=self._study.statement.dumps(),
            weights_sha256=digest(weights) if weights is not None else "",
        )
        content = pack(order, weights)
        state = state or Exchange(waiting=set(sites))
        deadline = time.monotonic() + deadline_s
        while state.waiting:
            online = self._fleet.online()
            if not (state.waiting - self.absent) and not (state.waiting & online):
                break
            for site in sorted(state.waiting & online - set(state.tickets)):
                if time.monotonic() >= state.not_before.get(site, 0.0):
                    least = OFFER_S if kind == "offer" else 1.0
                    left = max(least, deadline - time.monotonic())
                    own = readdressed(
                        content,
                        order.model_copy(
                            update={
                                "coordinator_head": self._journal.head,
                                "site_head": self._heads.of(site),
                            }
                        ),
                    )
                    state.tickets[site] = self._fleet.send(site, kind, own, ttl_s=left)
                    state.attempts[site] = state.attempts.get(site, 0) + 1
            for site, ticket in sorted(state.tickets.items()):
                delivery = self._fleet.collect(ticket)
                if delivery is not None:
                    del state.tickets[site]
                    self._take(site, delivery, order, state, accept, template, told)
            if not state.waiting or time.monotonic() >= deadline:
                break
            self.pause(self._poll_s)
        state.dropped.update(dict.fromkeys(state.waiting, "no-answer"))
        return state.dropped

    def _take(
        self,
        site: str,
        delivery: Delivery,
        order: Order,
        state: Exchange,
        accept: Accept,
        template: Mapping[str, tuple[int, ...]] | None,
        told: dict[str, str] | None,
    ) -> None:
        """Check one reply and either accept it, order again, or drop the site from this order."""
        facts: dict[str, Any] = {"round": order.round, "site": site, "order": order.kind}
        if delivery.content is None:
            self._record("order lost", **facts, reason=delivery.failure)
            if state.attempts[site] < _ATTEMPTS:
                state.not_before[site] = time.monotonic() + min(10.0, float(state.attempts[site]))
            else:
                state.waiting.discard(site)
                state.dropped[site] = "order-lost"
            return
        state.waiting.discard(site)
        maximum = self._study.protocol.aggregation.max_update_norm
        if order.kind == "initial":
            template, maximum = None, _INITIAL_NORM
        try:
            report, arrays = unpack_report(
                delivery.content,
                template=template,
                max_norm=maximum,
                any_arrays=order.kind == "initial",
                options=self._study.protocol.messages,
            )
            if (report.kind, report.study, report.round) != (order.kind, order.study, order.round):
                raise UpdateError("The reply is to another order.", code="update-form")
            self._heads.heard(site, report.site_head)
            if not self._heads.owns(report.coordinator_head):
                # The replies are what they are; but this journal is not what the sites saw.
                self._record("journal fork", **facts, head=report.coordinator_head)
            if report.status == "done":
                accept(site, report, arrays)
        except (UpdateError, IdentityError) as error:
            self._record("reply refused", **facts, code=error.code, reason=error.message[:500])
            state.dropped[site] = error.code
            return
        if report.status == "done":
            return
        state.dropped[site] = report.code or report.status
        said = f"{report.status} {report.code}"
        if told is None or told.get(site) != said:
            self._record(
                "site declined",
                **facts,
                status=report.status,
                code=report.code,
                reason=report.reason,
            )
        if told is not None:
            told[site] = said

    def pause(self, seconds: float) -> None:
        """Wait, but stop at once when the coordinator wants the study stopped."""
        until = time.monotonic() + seconds
        while True:
            if self._study.wanted == "stopped":
                raise StoppedError(
                    f"Study {self._study.protocol.study} was stopped.",
                    do="`launch` goes on with it.",
                )
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.25))

    def _record(self, event: str, **facts: Any) -> None:
        self._journal.append(event, study=self._study.protocol.study, **facts)
