"""The rounds of a study: order, collect, check, quorum, aggregate, record, resume.

Every change of state is journalled before it is acted on, and everything needed to go on is on the
disk: a coordinator that is killed at any moment continues from the last closed round, and ends with
the bits that it would have ended with. A site that already trained for the open round answers again
without training again.

A round ends when its sites have answered or had their time (``server.rounds.deadlines``), at the
latest after ``aggregation.deadline_s``; or, with ``aggregation.buffer``, as soon as that many
updates are in. It counts if its quorum is there (``server.rounds.quorum``). What comes later is for
``server.rounds.late_updates``.

This module decides; how messages travel is the ``Fleet``'s affair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from common.errors import FederationError, UpdateError
from common.messages.low_rank import expand
from common.messages.wire_format import CONTROL
from common.records.journal import Entry, Journal
from common.records.weights import Arrays, digest, norm
from common.study.drawn_weights import draw, drawn_digest
from common.study.trained_parameters import update_shapes
from server.aggregation import RULES, Rule
from server.aggregation.scaffold import control
from server.consortium.published_study import Study
from server.consortium.sites import Sites
from server.rounds.approvals import OFFER_S, Approvals
from server.rounds.deadlines import Deadlines
from server.rounds.evaluation_orders import Surveys
from server.rounds.fleet import Clock, Fleet
from server.rounds.late_updates import FORGOTTEN, discount, forgotten
from server.rounds.order_state import Answer, Task
from server.rounds.orders import NO_TIME, Orders
from server.rounds.quorum import Turnout
from server.rounds.weight_retention import tidy

_FAILED_ROUNDS: Final = 3
_LOOK_S: Final = 2.0


@dataclass(frozen=True)
class Failure:
    """Why a round was not closed; ``what`` it did, to be followed by how often."""

    code: str
    what: str
    reason: str
    put_off: bool = False
    """Whether only sites that put their orders off are missing: they will be back."""


class Rounds:
    """Runs one study over a fleet until its last round is closed."""

    def __init__(
        self,
        study: Study,
        fleet: Fleet,
        *,
        journal: Journal,
        sites: Sites,
        closed: Callable[[], str] = lambda: "",
        poll_s: float = 0.25,
        clock: Clock = time,
    ) -> None:
        """``closed`` says why no site can come through now, and what to do, or nothing."""
        self._study = study
        self._protocol = study.protocol
        self._fleet = fleet
        self._journal = journal
        self._closed = closed
        self._clock = clock
        self._past = journal.events(study=study.protocol.study)
        self._orders = Orders(
            study,
            fleet,
            journal,
            sites=sites,
            deadlines=Deadlines(study.protocol.aggregation, self._past),
            poll_s=poll_s,
            clock=clock,
        )
        self.approvals = Approvals(
            study,
            fleet,
            self._orders,
            journal=journal,
            sites=sites,
            past=self._past,
            clock=clock,
        )
        self._surveys = Surveys(study.protocol, self._orders, self.approvals, self._record)
        self._folded = _folded(self._past)
        self._state = ""
        """Digest of what the rule kept after the last closed round."""
        self._change: Arrays = {}
        """What the last closed round changed, to compare updates with."""

    def run(self) -> None:
        """Do every round that is left. Raises StoppedError, FederationError, StateError.

        Raises AmendedError before the first round that a waiting amendment is for.
        """
        try:
            self._run()
        finally:
            self.approvals.close()
            self._orders.forget()

    def offer(self, told: dict[str, str]) -> None:
        """Offer the protocol once to every site that is online and has not approved yet.

        ``told`` is what each site said before: what it says again is not recorded again.
        """
        self.approvals.offer(told)

    def _run(self) -> None:
        if self._orders.restored:
            here = self.approvals.current() & self._fleet.online()
            self._orders.greet(here, deadline_s=OFFER_S)
        number, weights = self._resume()
        if number and not any(
            e.event == "evaluated" and e.facts["round"] == number for e in self._past
        ):
            self._evaluate_if_due(number, weights)  # what ended the last run came before that
        described = any(e.event == "cohorts described" for e in self._past)
        if self._protocol.statistics.about and not described and not number:
            self.approvals.gather(self._protocol.aggregation.quorum)
            self._surveys.describe()
        self._past.clear()
        failed = 0
        while number < self._protocol.rounds or self._study.amendment is not None:
            self._wait_until_open()
            self.approvals.gather(self._protocol.aggregation.quorum)
            closed = self._train(number + 1, weights)
            if isinstance(closed, Failure):
                failed += not closed.put_off and not self._closed()
                if failed == _FAILED_ROUNDS:
                    raise FederationError(
                        f"Round {number + 1} of {self._protocol.study} {closed.what} "
                        f"{failed} times. {closed.reason}",
                        do="See `gliofed-server status`, mend what it names, and launch again.",
                        code=closed.code,
                    )
                self._orders.pause(min(30.0, 5.0 * max(1, failed)))
                continue
            failed, number, weights = 0, number + 1, closed
            tidy(self._study, self._journal)
            self._evaluate_if_due(number, weights)
        self._record("study finished", rounds=number, weights=digest(weights))

    def _wait_until_open(self) -> None:
        """Open no round that no site could hear of; say once why, and go on by itself."""
        told = ""
        while why := self._closed():
            if why != told:
                self._record("study waits", reason=why)
                told = why
            self._orders.pause(_LOOK_S)

    def _resume(self) -> tuple[int, Arrays]:
        """Return the last closed round and its weights."""
        closed = [entry.facts for entry in self._past if entry.event == "round closed"]
        started = [entry.facts for entry in self._past if entry.event == "study started"]
        if closed:
            facts = closed[-1]
            number = int(facts["round"])
            self._record("study resumed", round=number, weights=facts["weights"])
            lost = forgotten(self._past) if self._protocol.aggregation.late_rounds else {}
            if lost:
                self._record("late orders forgotten", sites=lost, reason=FORGOTTEN)
            self._state = str(facts["state"])
            weights = self._study.load(number, str(facts["weights"]))
            tidy(self._study, self._journal)  # what ended the last run came before that
            before = closed[-2:-1] or started[-1:]
            self._change = self._changed(before, weights)
            return number, weights
        if started and self._still_due(str(started[-1]["weights"])):
            return 0, self._study.load(0, str(started[-1]["weights"]))
        weights, source = self._starting_weights()
        identity = self._study.save(0, weights)
        self._record("study started", weights=identity, source=source)
        return 0, weights

    def _still_due(self, weights: str) -> bool:
        """Return whether a study that closed no round starts from these weights now.

        Earlier versions let a site draw them, by which sites go no more. Nothing is lost yet.
        """
        protocol = self._protocol
        named = protocol.initial_sha256
        return weights == (named or drawn_digest(protocol.network, seed=protocol.seed))

    def _starting_weights(self) -> tuple[Arrays, str]:
        """Return the weights to start from and where they are from; raise StateError."""
        given = self._study.given()
        if given is not None:
            return given, "study --initial"
        return draw(self._protocol.network, seed=self._protocol.seed), "seed"

    def _changed(self, before: list[dict[str, Any]], weights: Arrays) -> Arrays:
        """Return what the last closed round changed, or {} if its start is not there any more."""
        number = int(before[0].get("round", 0)) if before else 0
        if not before or not self._study.checkpoint(number).exists():
            return {}
        old = self._study.load(number, str(before[0]["weights"]))
        return {name: weights[name] - value for name, value in old.items()}

    def _train(self, number: int, weights: Arrays) -> Arrays | Failure:
        """Do one round; return the new weights, or why there are none."""
        began_s = self._clock.monotonic()
        options, training = self._protocol.aggregation, self._protocol.training
        sites = self.approvals.current()
        shapes = {name: array.shape for name, array in weights.items()}
        kept = self._study.load_state(number - 1, self._state)
        rule = RULES[options.rule](options, kept)
        task = Task(
            kind="train",
            number=number,
            deadline_s=options.deadline_s,
            weights=weights,
            control=self._control(kept),
            template=update_shapes(shapes, self._protocol.network.name, training),
            lives_s=options.late_rounds * options.deadline_s,
            folded=self._folded,
        )
        del kept
        busy = {s: at for s, at in self._orders.under_way().items() if s in sites and at < number}
        self._record(
            "round opened",
            round=number,
            base=digest(weights),
            sites=sorted(sites),
            ordered=sorted(sites - busy.keys()),
            busy=busy,
            bytes=sum(array.nbytes for array in (*weights.values(), *task.control.values())),
        )
        turnout = Turnout(options, sites)
        spent: dict[str, Any] = {}

        def accept(answer: Answer) -> None:
            self._fold(rule, answer, number=number)
            turnout.add(answer.site)
            if answer.report.privacy_spent is not None:
                spent[answer.site] = answer.report.privacy_spent.model_dump()

        def late(answer: Answer) -> bool:
            if number - answer.order.round > options.late_rounds or answer.site not in sites:
                return False
            accept(answer)
            return True

        dropped = self._orders.give(
            task, sites, accept, late=late, goal=turnout, meanwhile=self.approvals.look
        )
        self.approvals.take_back(dropped, number=number)
        facts = {
            "round": number,
            "took_part": turnout.took_part,
            "dropped": dropped,
            "seconds": round(self._clock.monotonic() - began_s, 3),
            **turnout.shares(),
            "under_way": self._orders.under_way(),
        }
        if not turnout.met():
            reason = turnout.missed(dropped)
            self._record("round failed", **facts, reason=reason)
            back = {site for site, code in dropped.items() if code in NO_TIME}
            put_off = bool(back) and turnout.possible(back)
            return Failure("quorum", "missed its quorum", reason, put_off=put_off)
        try:
            change = expand(
                rule.result(),
                shapes,
                seed=self._protocol.seed,
                round_number=number,
                rank=training.rank,
            )
            state, new = rule.state(), _moved(weights, change)
        except FederationError as error:
            self._record("round failed", **facts, reason=str(error))
            return Failure("aggregation", "could not be aggregated", str(error))
        identity = self._study.save(number, new)
        self._state = self._study.save_state(number, state)
        self._record(
            "round closed", **facts, weights=identity, state=self._state, privacy_spent=spent
        )
        self._change = change
        self._folded.update(dict.fromkeys(turnout.took_part, number))
        return new

    def _fold(self, rule: Rule, answer: Answer, *, number: int) -> None:
        """Fold one update into the round and say so; raise UpdateError if the rule refuses it."""
        options, report, update = self._protocol.aggregation, answer.report, answer.arrays
        staleness = number - answer.order.round
        weight = options.weights.get(answer.site, 1.0) * discount(staleness)
        facts: dict[str, Any] = {
            "update": digest(update),
            "norm": round(norm(update), 6),
            "cosine": _cosine(update, self._change),
            "weight": weight,
            "seconds": answer.seconds,
            "bytes": answer.nbytes,
        }
        if staleness:
            facts |= {"staleness": staleness, "base_round": answer.order.round}
        if report.privacy_spent is not None:
            facts["privacy_spent"] = report.privacy_spent.model_dump()
        if report.case_count is not None:
            facts["case_count"] = report.case_count
        if report.withdrawn:
            facts["withdrawn"] = report.withdrawn
        try:
            rule.fold(answer.site, update, weight=weight, steps=self._protocol.training.local_steps)
        except FederationError as error:
            raise UpdateError(error.message, do=error.do, code="update-rule") from error
        self._record(
            "reply accepted", round=number, site=answer.site, site_head=report.site_head, **facts
        )

    def _control(self, state: Arrays) -> Arrays:
        """Return what goes to the sites beside the weights, under the names that it travels by."""
        if self._protocol.aggregation.rule != "scaffold":
            return {}
        made = control(state, learning_rate=self._protocol.training.learning_rate)
        return {CONTROL + name: value for name, value in made.items()}

    def _evaluate_if_due(self, number: int, weights: Arrays) -> None:
        last = number == self._protocol.rounds
        if number % self._protocol.evaluate_every and not last:
            return
        self._surveys.evaluate(number, weights)

    def _record(self, event: str, **facts: Any) -> None:
        self._journal.append(event, study=self._protocol.study, **facts)


def _folded(past: Iterable[Entry]) -> dict[str, int]:
    """Return the last closed round that each site's update became part of."""
    return {
        site: int(entry.facts["round"])
        for entry in past
        if entry.event == "round closed"
        for site in entry.facts["took_part"]
    }


def _moved(weights: Arrays, change: Arrays) -> Arrays:
    """Return ``weights`` plus ``change``; raise FederationError if they are finite no more."""
    with np.errstate(over="ignore"):
        new = {
            name: value + change[name] if name in change else value
            for name, value in weights.items()
        }
    for name in change:
        if not np.isfinite(new[name]).all():
            raise FederationError(
                f"Array {name!r} of the new weights is not finite.",
                do="Lower aggregation.max_update_norm or the server's learning rate.",
            )
    return new


def _cosine(update: Arrays, change: Arrays) -> float | None:
    """Return the cosine of the angle between an update and what the last round changed.

    None if either is zero or they are not of the same form.
    """
    if any(name not in change or change[name].shape != u.shape for name, u in update.items()):
        return None
    along = sum(
        float(np.dot(value.reshape(-1).astype(np.float64), change[name].reshape(-1)))
        for name, value in update.items()
    )
    lengths = norm(update) * norm({name: change[name] for name in update})
    return round(along / lengths, 6) if lengths else None
