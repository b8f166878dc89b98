"""The rounds of a study: order, collect, check, quorum, aggregate, record, resume.

Every change of state is journalled before it is acted on, and everything needed to go on is on the
disk: a coordinator that is killed at any moment continues from the last closed round. A site that
already trained for the open round answers again without training again.

This module decides; how messages travel is the ``Fleet``'s affair.
"""

from __future__ import annotations

import time
from typing import Any, Final

from common.errors import FederationError, IdentityError
from common.identity import Statement
from common.journal import Journal
from common.low_rank import expand
from common.parameters import update_shapes
from common.protocol import APPROVAL
from common.weights import Arrays, digest, load, norm
from common.wire import Report
from server.aggregation import RULES
from server.fleet import Fleet
from server.orders import OFFER_S, Exchange, Orders
from server.sites import Sites
from server.studies import Study

_FAILED_ROUNDS: Final = 3


class Rounds:
    """Runs one study over a fleet until its last round is closed."""

    def __init__(
        self,
        study: Study,
        fleet: Fleet,
        *,
        journal: Journal,
        sites: Sites,
        poll_s: float = 0.25,
    ) -> None:
        self._study = study
        self._protocol = study.protocol
        self._fleet = fleet
        self._journal = journal
        self._sites = sites
        self._orders = Orders(study, fleet, journal, poll_s=poll_s)
        self._offers = Exchange()
        self._told: dict[str, str] = {}

    def run(self) -> None:
        """Do every round that is left. Raises StoppedError, FederationError."""
        number, weights = self._resume()
        if number:  # what ended the last run may have come before the evaluation
            self._evaluate_if_due(number, weights)
        failed = 0
        while number < self._protocol.rounds:
            self.gather_approvals(self._protocol.aggregation.quorum)
            closed = self._train(number + 1, weights)
            if closed is None:
                failed += 1
                if failed == _FAILED_ROUNDS:
                    raise FederationError(
                        f"Round {number + 1} of {self._protocol.study} missed its quorum "
                        f"{failed} times.",
                        do="See `gliofed-server status`, mend what it names, and launch again.",
                        code="quorum",
                    )
                self._orders.pause(min(30.0, 5.0 * failed))
                continue
            failed, number, weights = 0, number + 1, closed
            self._evaluate_if_due(number, weights)
        self._record("study finished", rounds=number, weights=digest(weights))

    def gather_approvals(self, quorum: int) -> None:
        """Offer the protocol until ``quorum`` sites have approved; known approvals count."""
        if len(self.approved()) < quorum:
            self._record("waiting for approvals", needed=quorum, so_far=sorted(self.approved()))
        while True:
            approved = self.approved()
            missing = (self._fleet.online() & set(self._sites.names())) - approved
            if missing:
                # Once there are enough, nobody waits for those that have not decided.
                enough = len(approved) >= quorum
                wait_s = 0.0 if enough else OFFER_S
                self._offer(missing, self._told, deadline_s=wait_s, state=self._offers)
                approved = self.approved()
            if len(approved) >= quorum:
                return
            self._orders.pause(2.0)

    def offer(self, told: dict[str, str]) -> None:
        """Offer the protocol once to every site that is online and has not approved yet."""
        missing = (self._fleet.online() & set(self._sites.names())) - self.approved()
        if missing:
            self._offer(missing, told, deadline_s=OFFER_S, state=Exchange())

    def approved(self) -> set[str]:
        """Return the admitted sites whose signed approval of this protocol is in the journal."""
        said = {
            str(entry.facts["site"])
            for entry in self._journal.events("study approved", study=self._protocol.study)
            if entry.facts["protocol"] == self._protocol.digest
        }
        return said & set(self._sites.names())

    def _offer(
        self, sites: set[str], told: dict[str, str], *, deadline_s: float, state: Exchange
    ) -> None:
        def accept(site: str, report: Report, _: Arrays) -> None:
            self._check_approval(site, report.approval)
            self._record(
                "study approved",
                site=site,
                protocol=self._protocol.digest,
                site_head=report.site_head,
                approval=Statement.loads(report.approval).to_dict(),
            )

        state.waiting = set(sites)
        self._orders.give(
            "offer", sites, 0, None, accept, deadline_s=deadline_s, told=told, state=state
        )

    def _check_approval(self, site: str, text: str) -> None:
        request = self._sites.get(site)
        if request is None:
            raise IdentityError(f"{site} was never admitted.")
        body = Statement.loads(text).opened(kind=APPROVAL, signer=request.identity_key)
        if body.get("protocol") != self._protocol.digest or body.get("site") != site:
            raise IdentityError(f"The approval of {site} is for another protocol.")

    def _resume(self) -> tuple[int, Arrays]:
        """Return the last closed round and its weights."""
        study = self._protocol.study
        closed = self._journal.events("round closed", study=study)
        if closed:
            facts = closed[-1].facts
            number = int(facts["round"])
            self._record("study resumed", round=number, weights=facts["weights"])
            return number, self._study.load(number, str(facts["weights"]))
        started = self._journal.events("study started", study=study)
        if started:
            return 0, self._study.load(0, str(started[-1].facts["weights"]))
        if self._study.initial.exists():
            weights, source = load(self._study.initial), "launch --initial"
        else:
            self.gather_approvals(1)
            weights, source = self._ask_for_weights()
        identity = self._study.save(0, weights)
        self._record("study started", weights=identity, source=source)
        return 0, weights

    def _ask_for_weights(self) -> tuple[Arrays, str]:
        """Let one site make the random starting weights that protocol and seed determine."""
        got: list[tuple[Arrays, str]] = []
        for site in sorted(self.approved() & self._fleet.online()):
            self._orders.give(
                "initial",
                {site},
                0,
                None,
                lambda name, _, arrays: got.append((arrays, f"seed, made at {name}")),
                deadline_s=600.0,
            )
            if got:
                return got[0]
        raise FederationError(
            "No site could make the starting weights.",
            do="Start a site, or launch with --initial weights.safetensors.",
        )

    def _train(self, number: int, weights: Arrays) -> Arrays | None:
        """Do one round; return the new weights, or None if the quorum was missed."""
        began = time.monotonic()
        options = self._protocol.aggregation
        sites = self.approved()
        training = self._protocol.training
        shapes = {name: array.shape for name, array in weights.items()}
        template = update_shapes(shapes, self._protocol.network.name, training)
        self._record("round opened", round=number, base=digest(weights), sites=sorted(sites))
        rule = RULES[options.rule](options, self._rule_state(number - 1))
        took_part: dict[str, dict[str, Any]] = {}

        def accept(site: str, report: Report, update: Arrays) -> None:
            weight = options.weights.get(site, 1.0)
            fact = {"update": digest(update), "norm": round(norm(update), 6), "weight": weight}
            if report.privacy_spent is not None:
                fact["privacy_spent"] = report.privacy_spent.model_dump()
            if report.case_count is not None:
                fact["case_count"] = report.case_count
            if report.withdrawn:
                fact["withdrawn"] = report.withdrawn
            rule.fold(site, update, weight=weight, steps=training.local_steps)
            self._record(
                "reply accepted", round=number, site=site, site_head=report.site_head, **fact
            )
            took_part[site] = fact

        dropped = self._orders.give(
            "train",
            sites,
            number,
            weights,
            accept,
            deadline_s=options.deadline_s,
            template=template,
        )
        self._orders.absent = {site for site, why in dropped.items() if why == "no-answer"}
        facts = {
            "round": number,
            "took_part": sorted(took_part),
            "dropped": dropped,
            "seconds": round(time.monotonic() - began, 3),
        }
        if len(took_part) < options.quorum:
            self._record("round failed", **facts, reason=f"quorum of {options.quorum} missed")
            return None
        update = expand(
            rule.result(),
            shapes,
            seed=self._protocol.seed,
            round_number=number,
            rank=training.rank,
        )
        new = {
            name: value + update[name] if name in update else value
            for name, value in weights.items()
        }
        identity = self._study.save(number, new)
        state = self._study.save_state(number, rule.state())
        self._record(
            "round closed",
            **facts,
            weights=identity,
            state=state,
            privacy_spent={
                site: fact["privacy_spent"]
                for site, fact in took_part.items()
                if "privacy_spent" in fact
            },
        )
        return new

    def _rule_state(self, number: int) -> Arrays:
        """Return what the aggregation rule kept after round ``number``."""
        closed = self._journal.events("round closed", study=self._protocol.study, round=number)
        return self._study.load_state(number, str(closed[-1].facts["state"])) if closed else {}

    def _evaluate_if_due(self, number: int, weights: Arrays) -> None:
        last = number == self._protocol.rounds
        if number % self._protocol.evaluate_every and not last:
            return
        if self._journal.events("evaluated", study=self._protocol.study, round=number):
            return
        scores: dict[str, dict[str, float]] = {}
        noise: dict[str, float] = {}

        def accept(site: str, report: Report, _: Arrays) -> None:
            if report.dice is not None:
                scores[site] = {str(region): value for region, value in report.dice.items()}
            if report.dice_noise is not None:
                noise[site] = report.dice_noise

        dropped = self._orders.give(
            "evaluate",
            self.approved(),
            number,
            weights,
            accept,
            deadline_s=self._protocol.aggregation.deadline_s,
        )
        self._record("evaluated", round=number, dice=scores, dice_noise=noise, dropped=dropped)

    def _record(self, event: str, **facts: Any) -> None:
        self._journal.append(event, study=self._protocol.study, **facts)
