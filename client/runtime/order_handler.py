"""What a site does with an order: check, consent, train or evaluate, check again, record, answer.

Order of things, each before the next: the protocol's signature, the two journals' heads, the
hospital's own decision, policy and what the approved protocol still has room for
(``client.study.schedule``), the privacy ledger (before each step), the journal's "sent"
(``client.study.outbound``), and only then the reply. What was trained or noised for a round is kept
until the next one (``client.study.round_state``), so that an order that is given again, after a
crash anywhere, is answered with the same and costs no patient anything more. The disk is looked at
before a patient is: a round that cannot be kept is not trained.

A site whose journal cannot be read or written answers with a code alone, and lives on.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from client.imaging import preprocessing
from client.privacy import budget_caps
from client.privacy.patient_exposure import cohort_digest
from client.site import key_renewal
from client.site.activity import Activity
from client.site.folder import Site
from client.site.stop import CODE as STOPPED
from client.site.stop import check_not_halted
from client.study import (
    charged_files,
    reported_metrics,
    restore_reconciliation,
    round_training,
    schedule,
)
from client.study.answer_times import Work
from client.study.consent import check_order, check_start
from client.study.outbound import Reply, let_out, may_report, unjournalled
from client.study.round_state import Kept
from client.study.schedule import Answers
from client.training.drift_correction import next_control
from common.errors import CaseError, ConsentError, GliofedError, UpdateError
from common.messages.compression import decode, encoded_bytes_limit, plain
from common.messages.wire_format import (
    CONTROL,
    Content,
    Order,
    Report,
    case_count_bucket,
    refusal,
    unpack_order,
)
from common.records.weights import Arrays, check_like, digest, norm
from common.study.protocol import StudyProtocol
from common.trust.identity import Statement
from common.versions import own, skew

_LOG = logging.getLogger(__name__)

_INITIAL_NORM: Final = 1e6
_KEPT_COPIES: Final = 4
"""Of the size of all weights, what may be kept of a round beside its update: the residual, the
control variate, the local layers or the personal model, one of them twice while it is moved."""


class Participation:
    """Answers the orders of one site."""

    def __init__(
        self,
        site: Site,
        *,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._site = site
        self._pause, self._clock = pause, clock
        self._work: Work | None = None
        self._said: dict[str, tuple[str, str]] = {}
        self._stopped: tuple[str, str, int] | None = None
        self._activity = Activity(site)

    @classmethod
    def open(cls, folder: Path) -> Participation:
        return cls(Site.open(folder))

    def answer(self, content: Content) -> Content:
        """Return the reply to an order; whatever goes wrong with it or the data is a reply too.

        Raises UpdateError for a message that is no order: there is nothing to reply to.
        """
        order, weights = unpack_order(content)
        del content
        try:
            with self._activity.doing(order):
                return self._answer(order, weights)
        except Exception as error:  # noqa: BLE001  the worker lives on, whatever the disk does
            _LOG.exception("The journal of this site does not work: nothing leaves but a code.")
            return unjournalled(order, error)

    def _answer(self, order: Order, weights: Arrays) -> Content:
        """Return the journalled reply to an order; raise what the journal raises."""
        began = self._clock()
        self._work = None
        protocol: StudyProtocol | None = None
        try:
            site, protocol = self._open(order)
            reply = self._carry_out(site, protocol, order, weights)
            self._hold()
            took = {"seconds": round(self._clock() - began, 3)}
            reply = replace(reply, facts={**reply.facts, **took})
            return let_out(site, order, protocol, self._news(order, reply))
        except GliofedError as error:
            self._hold(failed=True)
            reply = self._news(order, Reply(refusal(order, error), what="a refusal"))
            if reply.news:
                self._record("order refused", order, code=error.code, reason=_reason(error))
        except Exception as error:  # noqa: BLE001  the site's edge: a code leaves
            self._hold(failed=True)
            # The text may name a file, and so a patient: it stays in the log.
            _LOG.exception("An order failed; the coordinator hears a code alone.")
            reply = Reply(refusal(order, GliofedError("unforeseen")), what="a failure")
            self._record("order failed", order, code="internal", error=type(error).__name__)
        return let_out(self._site, order, protocol, reply)

    def _open(self, order: Order) -> tuple[Site, StudyProtocol]:
        """Return the site as it is now, and the protocol that the coordinator signed."""
        site = Site.open(self._site.folder)  # settings and decisions may have changed
        if order.version and (said := skew(site=own(), coordinator=order.version)):
            raise ConsentError(said, code="version")
        restoration = restore_reconciliation.pending(site)
        if restoration is not None:
            if order.kind not in {"offer", "initial"}:  # which touch no patient
                restore_reconciliation.settle(site, restoration, order)
        elif order.site_head and not self._knows(site, order.site_head):
            raise ConsentError(
                "The journal of this site does not hold what it said to the coordinator before: "
                "it was cut, changed or put back from an old copy.",
                do="Put the newest copies of journal.jsonl and ledger.sqlite back; until then no "
                "order is carried out.",
                code="journal-fork",
            )
        site = key_renewal.take(site, order)
        protocol = site.keep_protocol(Statement.loads(order.protocol))
        if protocol.study != order.study:
            raise ConsentError("The order is for another study than its protocol.", code="mismatch")
        return site, protocol

    @staticmethod
    def _knows(site: Site, head: str) -> bool:
        return site.journal.holds(head) or head in restore_reconciliation.accepted(site)

    def _carry_out(
        self, site: Site, protocol: StudyProtocol, order: Order, weights: Arrays
    ) -> Reply:
        decided = site.decision(order.study)
        if order.kind == "offer":
            if decided is None or decided[0].protocol != protocol.digest:
                report = self._report(order, status="pending", code="not-approved")
                return Reply(report, what="no decision yet", news=False)
            if decided[0].decision == "approve":
                report = self._report(order, approval=decided[1].dumps())
                return Reply(report, what="the signed approval", facts={"by": decided[0].by})
        if order.kind != "offer":
            check_not_halted(site)
        check_order(
            protocol,
            decided[0] if decided else None,
            site.settings.policy,
            now=dt.datetime.now(),
            preprocessing_sha256=preprocessing.digest(protocol.preprocessing),
        )
        if order.kind != "evaluate" or may_report(site, protocol, "dice"):
            schedule.check_round(protocol, order.kind, order.round)
        if order.kind == "initial":
            made = round_training.starting_weights(protocol)
            return Reply(
                self._report(order),
                what="the random starting weights of the protocol's seed",
                body=plain(made),
                due={name: array.shape for name, array in made.items()},
                max_norm=_INITIAL_NORM,
            )
        with budget_caps.open_ledger(site) as ledger:
            charged_files.check_all(site, ledger)
        if site.settings.policy.answer_every_s != "auto":
            self._begin(site, protocol)
        if order.kind == "describe":
            return self._describe(site, order, protocol)
        weights, control = _parted(weights)
        if order.weights_sha256 != digest(weights):
            raise UpdateError("The weights are not those that the order names.", code="weights")
        check_start(
            protocol,
            round_number=order.round,
            trains=order.kind == "train",
            weights_sha256=order.weights_sha256,
        )
        if control and (order.kind != "train" or protocol.aggregation.rule != "scaffold"):
            raise UpdateError(
                "The order brings a control variate, of which it has no use.", code="update-name"
            )
        if order.kind == "evaluate":
            return self._evaluate(site, order, protocol, weights)
        return self._train(site, order, protocol, weights, control)

    def _describe(self, site: Site, order: Order, protocol: StudyProtocol) -> Reply:
        """Count the cohort once for a study; asked again, say the same."""
        if not may_report(site, protocol, "statistics"):
            return Reply(self._report(order), what="nothing", news=False)
        before = schedule.answered(site, order.study).statistics
        path = Kept(site, protocol.study).statistics
        if before:
            counts = before[0]["statistics"]
        else:
            data = charged_files.read(site, path)
            if data is None:
                made = reported_metrics.noised_cohort_statistics(site, protocol)
                data = json.dumps(made).encode()
                charged_files.write(site, path, data)
            counts = json.loads(data)
        return Reply(
            self._report(order, statistics=counts),
            what=f"histograms of the training patients, with noise "
            f"({', '.join(protocol.statistics.about)})",
        )

    def _evaluate(
        self, site: Site, order: Order, protocol: StudyProtocol, weights: Arrays
    ) -> Reply:
        """Score one set of weights a round that is due: scores are no oracle for chosen weights."""
        nothing = Reply(self._report(order), what="nothing", news=False)
        if not may_report(site, protocol, "dice"):
            return nothing
        answers = schedule.answered(site, order.study)
        before = schedule.scores_before(
            protocol, answers, number=order.round, weights_sha256=order.weights_sha256
        )
        exact = site.settings.policy.dice == "exact"
        if before is not None:
            if "dice_noise" not in before and not exact:
                return nothing  # the hospital lets no exact score leave any more
            said = {key: before[key] for key in ("dice", "dice_noise") if key in before}
            facts = {key: before[key] for key in ("weights", "validation") if key in before}
            return Reply(self._report(order, **said), what=str(before["what"]), facts=facts)
        kept = Kept(site, protocol.study)
        kept.settle()  # what is scored has the newest local layers
        path = kept.scores(order.round, order.weights_sha256)
        data = charged_files.read(site, path)
        if data is None:
            made = self._scores(site, order, protocol, weights, answers)
            if made is None:
                return nothing
            data = json.dumps(made).encode()
            charged_files.write(site, path, data)
        scores = json.loads(data)
        if "dice_noise" not in scores and not exact:
            return nothing
        return Reply(
            self._report(order, **{key: scores[key] for key in scores if key != "validation"}),
            what="Dice of the validation patients, with noise"
            if "dice_noise" in scores
            else "exact Dice of the validation patients",
            facts={
                "weights": order.weights_sha256,
                **{key: scores[key] for key in scores if key == "validation"},
            },
        )

    def _scores(
        self,
        site: Site,
        order: Order,
        protocol: StudyProtocol,
        weights: Arrays,
        answers: Answers,
    ) -> dict[str, object] | None:
        """Return scores to keep until they leave; None if none may leave."""
        if site.settings.policy.dice == "noised":
            made = reported_metrics.noised_validation_dice(
                site, protocol, weights, round_number=order.round
            )
            return {"dice": made.dice, "dice_noise": made.deviation}
        patients = reported_metrics.validation_patients(site, protocol)
        if not patients:
            return None
        validation = cohort_digest(frozenset(patients))
        if not schedule.same_patients(answers, validation):
            self._record("scores kept back", order, reason="the validation patients have changed")
            return None
        dice = reported_metrics.validation_dice(site, protocol, weights, patients)
        return {"dice": dice, "validation": validation} if dice else None

    def _train(
        self, site: Site, order: Order, protocol: StudyProtocol, weights: Arrays, control: Arrays
    ) -> Reply:
        due = round_training.update_shapes(protocol, weights)
        kept = Kept(site, protocol.study)
        answers = schedule.answered(site, order.study)
        left = order.round in answers.trained
        body = kept.body(order.round, order.weights_sha256, left=left)
        seen = {} if body is None else decode(body, due, protocol.messages)
        schedule.check_training(
            protocol,
            answers,
            number=order.round,
            update="" if body is None else digest(seen),
        )
        kept.settle()
        if body is not None:
            self._record("order given again", order, update=digest(seen))
        else:
            body = self._train_now(site, order, protocol, weights, control, kept)
            seen = decode(body, due, protocol.messages)
        before = answers.updates.get(digest(seen))
        return Reply(
            self._report(order, **self._beside_update(site, protocol, before)),
            what="weight update",
            body=body,
            messages=protocol.messages,
            due=due,
            max_norm=protocol.aggregation.max_update_norm,
            facts={
                "update": digest(seen),
                "arrays": len(seen),
                "norm": round(norm(seen), 6),
                "private": protocol.private,
            },
        )

    @staticmethod
    def _beside_update(
        site: Site, protocol: StudyProtocol, before: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Return what leaves beside an update: of one that left ``before`` what left with it."""
        found: dict[str, Callable[[], object]] = {
            "case_count": lambda: case_count_bucket(round_training.training_cases(site, protocol))
        }
        if protocol.private:
            found["privacy_spent"] = lambda: budget_caps.privacy_spent(site, protocol)
            found["withdrawn"] = lambda: budget_caps.withdrawn_rounds(site, protocol)
        allowed = {
            name: make
            for name, make in found.items()
            if may_report(site, protocol, "withdrawals" if name == "withdrawn" else name)
        }
        if before is not None:
            return {name: before[name] for name in allowed if name in before}
        return {name: make() for name, make in allowed.items()}

    def _train_now(
        self,
        site: Site,
        order: Order,
        protocol: StudyProtocol,
        weights: Arrays,
        control: Arrays,
        kept: Kept,
    ) -> bytes:
        """Train for the round, keep what it gave, and return the bytes that leave."""
        due, options = round_training.update_shapes(protocol, weights), protocol.training
        whole = 4 * sum(array.size for array in weights.values())
        kept.check_room(encoded_bytes_limit(due, protocol.messages) + _KEPT_COPIES * whole)
        scaffold = protocol.aggregation.rule == "scaffold"
        if scaffold:
            if control:
                check_like(control, due, max_norm=math.inf)
            kept.settle_control(order.folded_round)
        self._record(
            "training",
            order,
            base=order.weights_sha256,
            **(
                {"control": digest(control), "folded_round": order.folded_round} if scaffold else {}
            ),
        )
        trained = round_training.train_round(
            site,
            protocol,
            weights,
            round_number=order.round,
            control=control if scaffold else None,
            progress=self._activity.step,
            drawing=lambda: self._begin(site, protocol),
        )

        def follower(body: bytes) -> Arrays:
            return next_control(
                kept.own("control"),
                control,
                decode(body, due, protocol.messages),
                steps=options.local_steps,
                learning_rate=options.learning_rate,
            )

        return kept.keep(
            order.round,
            order.weights_sha256,
            trained,
            messages=protocol.messages,
            control=follower if scaffold else None,
        )

    def _begin(self, site: Site, protocol: StudyProtocol) -> None:
        """Note that from now on it shows in the time what is done with patients."""
        self._work = Work(site, protocol, self._clock())

    def _hold(self, *, failed: bool = False) -> None:
        """Wait until the time does not tell how many patients were drawn."""
        work, self._work = self._work, None
        if work is not None and (wait_s := work.wait_s(self._clock(), failed=failed)) > 0:
            self._pause(wait_s)

    def _news(self, order: Order, reply: Reply) -> Reply:
        """Return ``reply``, marked as no news if an offer, asked every few seconds, got it before.

        Outside the site's hours every order is refused, each of which would be one. An order that a
        stopped site gets every minute is news once.
        """
        report = reply.report
        if order.kind != "offer":
            told, self._stopped = self._stopped, None
            if report.code == STOPPED:
                self._stopped = (order.study, order.kind, order.round)
            return replace(reply, news=reply.news and not (told and told == self._stopped))
        said = (report.status, report.code)
        old = self._said.get(order.study) == said or report.code in {"not-approved", "policy-hours"}
        self._said[order.study] = said
        return replace(reply, news=reply.news and not old)

    @staticmethod
    def _report(order: Order, *, status: str = "done", **fields: object) -> Report:
        base = {"kind": order.kind, "study": order.study, "round": order.round, "status": status}
        return Report.model_validate({**base, **fields})

    def _record(self, event: str, order: Order, **facts: object) -> None:
        self._site.journal.append(
            event, study=order.study, round=order.round, order=order.kind, **facts
        )


def _reason(error: GliofedError) -> str:
    """Return what the journal keeps of an error: of a case none of its words, which name it."""
    if not isinstance(error, CaseError):
        return str(error)
    _LOG.warning("%s", error)
    if error.code == "case-none":
        return (
            "No patient here is in the part of the split that the order needs; `gliofed-site plan` "
            "says how many each part has."
        )
    return "Images of a patient cannot be used; `gliofed-site check` says whose and why."


def _parted(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """Return the weights of an order and its control variate, {} if it has none."""
    weights = {name: value for name, value in arrays.items() if not name.startswith(CONTROL)}
    control = {
        name.removeprefix(CONTROL): value
        for name, value in arrays.items()
        if name.startswith(CONTROL)
    }
    return weights, control
