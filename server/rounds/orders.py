"""Give an order to several sites: send, collect, check each reply, order again what was lost.

Every reply is checked before anything of it is used, ``within`` the boundary of
``server.rounds.fault_boundary``; one that does not pass drops its site from this order, whatever it
did, and the journal says why. Each order carries the last head of that site's journal that
the coordinator heard, and each reply the last head of the coordinator's that the site heard: a
journal that was changed on either side shows.

A site that says that it has no time now (outside its hours, or a clinical job has its GPU) is asked
again every minute; so is one that its hospital has stopped, but nobody waits for it whom the quorum
does not need. One that does not answer keeps its order beyond the end of the exchange
(``server.rounds.late_updates``). How long each site is waited for is ``server.rounds.deadlines``'
to say.

Out of scope: what is done with good replies (``server.rounds.round_loop``), how messages travel
(the fleet).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from common.errors import FederationError, IdentityError, StateError, UpdateError
from common.messages.reply_limits import reply_limit
from common.messages.wire_format import (
    RESTORED,
    Content,
    Given,
    Order,
    Report,
    body_bytes,
    pack,
    readdressed,
    unpack_report,
)
from common.records.journal import Journal
from common.records.weights import Arrays, digest
from common.versions import own, skew
from server.consortium.published_study import Study
from server.consortium.sites import Sites
from server.rounds.deadlines import Attendance, Deadlines
from server.rounds.fault_boundary import reason, within
from server.rounds.fleet import Clock, Delivery, Fleet
from server.rounds.journal_heads import Heads
from server.rounds.late_updates import Sent
from server.rounds.order_state import Accept, Answer, Exchange, Goal, Late, Task
from server.rounds.restore_account import given

ASK_AGAIN_S: Final = 60.0
STOPPED: Final = "site-stopped"
"""The code by which a hospital says that it has stopped its site, for as long as it likes."""
NO_TIME: Final = frozenset({"policy-hours", "busy", STOPPED})
"""Codes by which a site puts an order off."""

_ATTEMPTS: Final = 8
_LEAST_S: Final = 60.0
_CLOCKS_S: Final = 310.0
"""By which Flower lets the clock of a site differ from the coordinator's. Flower compares the date
of an order with the site's clock: orders live longer by as much."""


class StoppedError(FederationError):
    """The coordinator asked the study to stop."""

    default_code = "stopped"


class AmendedError(FederationError):
    """A new version of the protocol takes force here, between two rounds."""

    default_code = "amended"


class Orders:
    """Gives the orders of one study."""

    def __init__(
        self,
        study: Study,
        fleet: Fleet,
        journal: Journal,
        *,
        sites: Sites,
        deadlines: Deadlines,
        poll_s: float = 0.25,
        clock: Clock = time,
    ) -> None:
        self._study = study
        self._fleet = fleet
        self._journal = journal
        self._sites = sites
        self._deadlines = deadlines
        self._heads = Heads(journal)
        self._poll_s = poll_s
        self._clock = clock
        self._attendance = Attendance()
        self._under_way: dict[str, Sent] = {}
        self._accounts: dict[str, tuple[Given, ...]] = {}
        self._ahead = ""
        """A site that knows more of this coordinator's journal than the coordinator."""

    @property
    def restored(self) -> bool:
        return self._heads.restored

    def greet(self, sites: Iterable[str], *, deadline_s: float) -> None:
        """Ask ``sites`` what they know of this coordinator's journal, before any works for it.

        Raises FederationError (code ``restored``) if one of them knows more than is here.
        """
        self.give(Task(kind="offer", number=0, deadline_s=deadline_s), sites, lambda _: None)
        self._check_ahead()

    def _check_ahead(self) -> None:
        if self._ahead:
            raise FederationError(
                f"This coordinator was restored from a backup, and {self._ahead} has seen what "
                "came after it: rounds were lost.",
                do="Restore the newest backup there is. Without a newer one "
                "`gliofed-server accept-loss` lets the study go on from here: the lost rounds are "
                "done again, and cost their sites' patients again.",
                code="restored",
            )

    def under_way(self) -> dict[str, int]:
        """Return the sites that still have an order of an earlier exchange, and of which round."""
        return {site: sent.order.round for site, sent in sorted(self._under_way.items())}

    def give(
        self,
        task: Task,
        sites: Iterable[str],
        accept: Accept,
        *,
        late: Late | None = None,
        goal: Goal | None = None,
        meanwhile: Callable[[], None] | None = None,
        told: dict[str, str] | None = None,
        state: Exchange | None = None,
    ) -> dict[str, str]:
        """Give ``task`` to ``sites``; hand each good reply to ``accept``; return who dropped out.

        It ends when everybody answered or was waited for as long as ``server.rounds.deadlines``
        says, but not before ``task.deadline_s`` while ``goal`` is not met and can be; at once when
        it is full. A lost order is given again when its site is back. ``late`` takes the updates of
        earlier rounds. ``meanwhile`` is called over and over. ``state`` goes on with an exchange
        that was left before: what was sent then may be answered now.
        """
        if task.kind != "offer":
            self._check_ahead()
        order, content = self._packed(task)
        exchange = state or Exchange(waiting=set(sites))
        opened_s = self._clock.monotonic()
        try:
            self._adopt(order, exchange)
            while exchange.waiting:
                online = self._fleet.online()
                self._expel(exchange)
                if task.lasting:
                    self._attendance.away(exchange.waiting - online)
                    self._hear_late(order, exchange, late)
                self._send(task, order, content, exchange, online, opened_s)
                self._collect(task, exchange, accept, told)
                if meanwhile is not None:
                    meanwhile()
                if self._ended(task, exchange, goal, opened_s):
                    break
                self.pause(self._poll_s)
        except BaseException:
            self.forget(exchange)
            raise
        self._close(task, exchange)
        if state is None:
            self.forget(exchange)
        return exchange.dropped

    def forget(self, exchange: Exchange | None = None) -> None:
        """Forget what is under way of ``exchange``, or of all that have ended."""
        book = self._under_way if exchange is None else exchange.sent
        while book:
            self._fleet.forget(book.popitem()[1].ticket)

    def pause(self, seconds: float) -> None:
        """Wait, but stop at once when the coordinator wants the study stopped."""
        until = self._clock.monotonic() + seconds
        while True:
            if self._study.wanted == "stopped":
                raise StoppedError(
                    f"Study {self._study.protocol.study} was stopped.",
                    do="`launch` goes on with it.",
                )
            left = until - self._clock.monotonic()
            if left <= 0:
                return
            self._clock.sleep(min(left, 0.25))

    def _packed(self, task: Task) -> tuple[Order, Content]:
        order = Order(
            kind=task.kind,
            study=self._study.protocol.study,
            round=task.number,
            protocol=self._study.signed(),
            weights_sha256=digest(task.weights) if task.weights is not None else "",
            version=own(),
        )
        arrays = None if task.weights is None else {**task.weights, **task.control}
        return order, pack(order, arrays)

    def _adopt(self, order: Order, exchange: Exchange) -> None:
        """Go on waiting for answers to the very same order, given in an attempt before this."""
        for site in sorted(exchange.waiting & self._under_way.keys()):
            if self._under_way[site].same(order):
                exchange.sent[site] = self._under_way.pop(site)

    def _expel(self, exchange: Exchange) -> None:
        """Drop who was suspended or revoked meanwhile, with what is under way to them."""
        here = {*exchange.waiting, *exchange.sent, *self._under_way}
        for site in here - self._sites.active():
            for book in (exchange.sent, self._under_way):
                if site in book:
                    self._fleet.forget(book.pop(site).ticket)
            if site in exchange.waiting:
                exchange.waiting.discard(site)
                exchange.dropped[site] = self._sites.out(site)

    def _send(
        self,
        task: Task,
        order: Order,
        content: Content,
        exchange: Exchange,
        online: set[str],
        opened_s: float,
    ) -> None:
        free = exchange.waiting & online - exchange.sent.keys() - self._under_way.keys()
        for site in sorted(free):
            now = self._clock.monotonic()
            if now < exchange.not_before_s.get(site, 0.0):
                continue
            lives_s = max(_LEAST_S, opened_s + task.deadline_s - now) + task.lives_s + _CLOCKS_S
            own = order.model_copy(
                update={
                    "coordinator_head": self._heads.own,
                    "site_head": self._heads.of(site),
                    "folded_round": task.folded.get(site, 0),
                    "account": self._accounts.get(site),
                    **self._sites.newer_kit(site),
                }
            )
            ticket = self._fleet.send(
                site,
                task.kind,
                readdressed(content, own),
                ttl_s=lives_s,
                limit=reply_limit(task.template, self._study.protocol.messages),
            )
            exchange.sent[site] = Sent(ticket, own, task.template, now, now + lives_s)
            exchange.began_s[site] = now
            exchange.attempts[site] = exchange.attempts.get(site, 0) + 1

    def _collect(
        self, task: Task, exchange: Exchange, accept: Accept, told: dict[str, str] | None
    ) -> None:
        for site, sent in sorted(exchange.sent.items()):
            delivery = self._fleet.collect(sent.ticket)
            if delivery is None:
                continue
            del exchange.sent[site]
            if delivery.content is None and delivery.refused is None:
                self._lost(site, sent.order, delivery.failure, exchange)
                continue
            report, refused = self._read(site, sent, delivery, accept, told=told)
            if task.lasting and report is not None and report.code in NO_TIME:
                self._put_off(site, sent.order, report, exchange, told)
                continue
            if report is not None and report.code == RESTORED and site not in self._accounts:
                self._account(site, sent.order, report, exchange)
                continue
            self._accounts.pop(site, None)
            exchange.waiting.discard(site)
            self._attendance.done(site)
            if report is None:
                exchange.dropped[site] = refused
            elif report.status != "done":
                exchange.dropped[site] = report.code or report.status
                self._declined(site, sent.order, report, told)

    def _account(self, site: str, order: Order, report: Report, exchange: Exchange) -> None:
        """Order again, and tell a site that was restored what it was given since its backup."""
        self._declined(site, order, report, None)
        account = given(self._journal, site, since=report.coordinator_head)
        if account is None:
            exchange.waiting.discard(site)
            exchange.dropped[site] = report.code
            return
        self._record(site, order, "site restored", account=[one.model_dump() for one in account])
        self._accounts[site] = account

    def _lost(self, site: str, order: Order, failure: str, exchange: Exchange) -> None:
        self._record(site, order, "order lost", reason=failure)
        attempts = exchange.attempts.get(site, 1)
        if attempts < _ATTEMPTS:
            exchange.not_before_s[site] = self._clock.monotonic() + min(10.0, float(attempts))
        else:
            exchange.waiting.discard(site)
            exchange.dropped[site] = "order-lost"

    def _put_off(
        self,
        site: str,
        order: Order,
        report: Report,
        exchange: Exchange,
        told: dict[str, str] | None,
    ) -> None:
        """Ask again in a minute; the journal says so once."""
        self._attendance.heard(site)
        exchange.not_before_s[site] = self._clock.monotonic() + ASK_AGAIN_S
        if exchange.deferred.get(site) != report.code:
            self._declined(site, order, report, told)
        exchange.deferred[site] = report.code

    def _hear_late(self, order: Order, exchange: Exchange, late: Late | None) -> None:
        """Take what comes for orders of earlier rounds; whoever answers is free for this one."""

        def accept(answer: Answer) -> None:
            if late is not None and answer.order.kind == order.kind and late(answer):
                exchange.waiting.discard(answer.site)
                return
            self._record(
                answer.site,
                answer.order,
                "reply late",
                base_round=answer.order.round,
                staleness=order.round - answer.order.round,
                seconds=answer.seconds,
                bytes=answer.nbytes,
                site_head=answer.report.site_head,
            )

        kept = self._study.protocol.aggregation.late_rounds > 0 and order.kind != "train"
        for site, sent in sorted(self._under_way.items()):
            if kept and sent.order.kind == "train":
                continue  # of use in the next round
            delivery = self._fleet.collect(sent.ticket)
            if delivery is None and self._clock.monotonic() < sent.until_s:
                continue
            del self._under_way[site]
            if delivery is None or (delivery.content is None and delivery.refused is None):
                self._fleet.forget(sent.ticket)
                why = delivery.failure if delivery else "expired"
                self._record(site, sent.order, "order lost", reason=why)
                continue
            report, _ = self._read(site, sent, delivery, accept)
            self._attendance.heard(site)
            if report is not None and report.status != "done":
                self._declined(site, sent.order, report, None)

    def _read(
        self,
        site: str,
        sent: Sent,
        delivery: Delivery,
        accept: Accept,
        *,
        told: dict[str, str] | None = None,
    ) -> tuple[Report | None, str]:
        """Check a reply and hand a good one to ``accept``; return it, or None and why not.

        A site is refused again and again for the same where it is asked again and again, as with an
        offer: then the journal says so once, which ``told`` knows.
        Only what is not the site's doing passes: a disk of ours (StateError), and what another
        journal says after a restore (FederationError).
        """
        order = sent.order
        seconds = round(self._clock.monotonic() - sent.at_s, 3)
        try:
            if delivery.refused is not None or delivery.content is None:
                raise delivery.refused or UpdateError("There is no reply.", code="update-form")
            content = delivery.content
            nbytes = within(lambda: body_bytes(content))
            report, arrays = within(lambda: self._opened(sent, content))
            within(lambda: self._heard(site, report), passes=(StateError,))
            self._compare_heads(site, order, report)
            if report.status == "done":
                answer = Answer(site, order, report, arrays, seconds, nbytes)
                within(lambda: accept(answer), passes=(StateError,))
                self._deadlines.learn(order.kind, site, seconds)
        except (UpdateError, IdentityError) as error:
            said = f"refused here {error.code}"
            if told is None or told.get(site) != said:
                self._record(site, order, "reply refused", code=error.code, reason=reason(error))
            if told is not None:
                told[site] = said
            return None, error.code
        return report, ""

    def _opened(self, sent: Sent, content: Content) -> tuple[Report, Arrays]:
        """Return the report and the arrays of a reply; raise UpdateError."""
        order, protocol = sent.order, self._study.protocol
        report, arrays = unpack_report(
            content,
            template=sent.template,
            max_norm=protocol.aggregation.max_update_norm,
            options=protocol.messages,
        )
        if (report.kind, report.study, report.round) != (order.kind, order.study, order.round):
            raise UpdateError("The reply is to another order.", code="update-form")
        theirs = report.version or own()
        if report.status == "done" and (said := skew(site=theirs, coordinator=own())):
            raise UpdateError(said, code="version")
        return report, arrays

    def _heard(self, site: str, report: Report) -> None:
        """Take note of what a site says of itself; raise IdentityError."""
        self._heads.heard(site, report.site_head)
        self._sites.heard(
            site,
            kit_sha256=report.kit_sha256,
            renewal=report.renewal,
            version=report.version,
        )

    def _compare_heads(self, site: str, order: Order, report: Report) -> None:
        """Say that a site knows another journal of ours; raise FederationError (``restored``)."""
        if self._heads.owns(report.coordinator_head):
            return
        # The replies are what they are; but this journal is not what the sites saw.
        self._record(site, order, "journal fork", head=report.coordinator_head)
        if self._heads.restored:
            self._ahead = site
            if order.kind != "offer":
                self._check_ahead()

    def _declined(
        self, site: str, order: Order, report: Report, told: dict[str, str] | None
    ) -> None:
        """Say in the journal that a site declined, unless ``told`` has it that it did so before."""
        said = f"{report.status} {report.code}"
        if told is None or told.get(site) != said:
            facts = {"status": report.status, "code": report.code, "reason": report.reason}
            self._record(site, order, "site declined", **facts)
        if told is not None:
            told[site] = said

    def _ended(self, task: Task, exchange: Exchange, goal: Goal | None, opened_s: float) -> bool:
        now = self._clock.monotonic()
        if not exchange.waiting or now >= opened_s + task.deadline_s:
            return True
        if goal is not None and goal.full():
            return True
        if not task.lasting:
            return False
        if goal is not None and not goal.met() and goal.possible(exchange.waiting):
            return False
        return not any(self._awaited(s, task, exchange, opened_s, now) for s in exchange.waiting)

    def _awaited(
        self, site: str, task: Task, exchange: Exchange, opened_s: float, now: float
    ) -> bool:
        sent = exchange.sent.get(site)
        # A site that puts its order off is asked again, which must not start its time anew.
        deferred = sent is None and site in exchange.deferred
        if deferred and exchange.deferred[site] == STOPPED:
            return False
        if not self._attendance.waited_for(site, ordered=sent is not None, deferred=deferred):
            return False
        since_s = opened_s if deferred else exchange.began_s.get(site, opened_s)
        return now < since_s + self._deadlines.wait_s(task.kind, site)

    def _close(self, task: Task, exchange: Exchange) -> None:
        """Say why each site that is still waited for did not answer; it may keep its order."""
        why: dict[str, str] = {}
        for site in exchange.waiting:
            busy = site in self._under_way
            said = exchange.deferred.get(site, "no-answer")
            exchange.dropped[site] = "still-busy" if busy else said
            if busy or site in exchange.sent:
                why[site] = "silent"
            else:
                why[site] = "deferred" if site in exchange.deferred else "absent"
        if task.lasting:
            self._attendance.missed(why)
            self._under_way.update(exchange.sent)
            exchange.sent = {}

    def _record(self, site: str, order: Order, event: str, **facts: Any) -> None:
        about = {"round": order.round, "site": site, "order": order.kind, **facts}
        self._journal.append(event, study=order.study, **about)
