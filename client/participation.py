"""What a site does with an order: check, consent, train or evaluate, check again, record, answer.

Order of things, each before the next: the protocol's signature, the hospital's own decision and
policy, the privacy ledger (before each step), the journal's "sent", and only then the reply. An
update that was trained for a round is kept until the next one, so that an order that is given
again, after a crash anywhere, is answered with the same update and costs no patient anything more.
"""

from __future__ import annotations

import datetime as dt
import traceback
from pathlib import Path

from client import studies
from client.consent import check_order
from client.imaging import preprocessing
from client.site import Site
from common.errors import ConsentError, GliofedError, UpdateError
from common.identity import Statement
from common.parameters import trainable_names
from common.protocol import StudyProtocol
from common.weights import Arrays, check_like, digest, load, norm, save
from common.wire import Content, Order, Report, case_count_bucket, pack, refusal, unpack_order


class Participation:
    """Answers the orders of one site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._refused_offers: dict[str, str] = {}

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
            report, update = self._carry_out(order, weights)
        except GliofedError as error:
            report, update = refusal(order, error), None
            if self._is_news(order, error):
                self._record("order refused", order, code=error.code, reason=str(error))
        except Exception:  # noqa: BLE001  the site's edge: the text stays here, a code leaves
            report, update = refusal(order, GliofedError("unforeseen")), None
            self._record("order failed", order, reason=traceback.format_exc()[-4000:])
        return pack(report, update)

    def _is_news(self, order: Order, error: GliofedError) -> bool:
        """Return whether a refusal is a fact for the journal; offers come every few seconds."""
        if order.kind != "offer":
            return True
        if error.code in {"not-approved", "policy-hours"}:
            return False
        before = self._refused_offers.get(order.study)
        self._refused_offers[order.study] = error.code
        return before != error.code

    def _carry_out(self, order: Order, weights: Arrays) -> tuple[Report, Arrays | None]:
        site = Site.open(self._site.folder)  # settings and decisions may have changed
        protocol = site.keep_protocol(Statement.loads(order.protocol))
        if protocol.study != order.study:
            raise ConsentError("The order is for another study than its protocol.", code="mismatch")
        decided = site.decision(order.study)
        if order.kind == "offer":
            if decided is None or decided[0].protocol != protocol.digest:
                return self._report(order, status="pending", code="not-approved"), None
            if decided[0].decision == "approve":
                return self._report(order, approval=decided[1].dumps()), None
        check_order(
            protocol,
            decided[0] if decided else None,
            site.settings.policy,
            now=dt.datetime.now(),
            preprocessing_sha256=preprocessing.digest(protocol.preprocessing),
        )
        if order.round > protocol.rounds:
            raise ConsentError(
                f"Round {order.round} was ordered; {order.study} has {protocol.rounds} rounds.",
                do="Ask the coordinator who ordered it.",
                code="rounds",
            )
        if order.kind == "initial":
            return self._report(order), studies.starting_weights(protocol)
        if order.weights_sha256 != digest(weights):
            raise UpdateError("The weights are not those that the order names.", code="weights")
        if order.kind == "evaluate":
            return self._evaluate(site, order, protocol, weights), None
        return self._train(site, order, protocol, weights)

    def _evaluate(
        self, site: Site, order: Order, protocol: StudyProtocol, weights: Arrays
    ) -> Report:
        """Score one set of weights a round: exact scores are no oracle for chosen weights."""
        if not self._may(site, protocol, "dice"):
            return self._report(order)
        asked = {"study": order.study, "round": order.round, "what": "validation Dice"}
        before = {entry.facts["weights"] for entry in site.journal.events("sent", **asked)}
        if before - {order.weights_sha256}:
            raise ConsentError(
                f"Round {order.round} of {order.study} was evaluated here with other weights.",
                do="Ask the coordinator why it wants scores of two models in one round.",
                code="evaluated-already",
            )
        dice = studies.validation_dice(site, protocol, weights) or None
        if dice is not None:
            self._record(
                "sent", order, what="validation Dice", dice=dice, weights=order.weights_sha256
            )
        return self._report(order, dice=dice)

    def _train(
        self, site: Site, order: Order, protocol: StudyProtocol, weights: Arrays
    ) -> tuple[Report, Arrays]:
        kept = site.folder / "outbox" / order.study / f"{order.round:04d}-{order.weights_sha256}"
        update_path = kept.with_suffix(".safetensors")
        if update_path.exists():
            update = load(update_path)
            self._record("order given again", order, update=digest(update))
        else:
            self._record("training", order, base=order.weights_sha256)
            update = studies.train_round(site, protocol, weights, round_number=order.round)
            save(update_path, update, {"study": order.study, "round": str(order.round)})
            for old in kept.parent.glob("*.safetensors"):
                if old != update_path:
                    old.unlink()
        due = trainable_names(weights, protocol.network.name, protocol.training.trainable)
        check_like(
            update,
            {name: weights[name].shape for name in due},
            max_norm=protocol.aggregation.max_update_norm,
        )
        report = self._report(
            order,
            case_count=(
                case_count_bucket(studies.training_cases(site, protocol))
                if self._may(site, protocol, "case_count")
                else None
            ),
            privacy_spent=(
                studies.privacy_spent(site, protocol)
                if protocol.private and self._may(site, protocol, "privacy_spent")
                else None
            ),
        )
        self._record(
            "sent",
            order,
            what="weight update",
            update=digest(update),
            arrays=len(update),
            bytes=sum(array.nbytes for array in update.values()),
            norm=round(norm(update), 6),
            private=protocol.private,
            **report.model_dump(include={"case_count", "privacy_spent"}, exclude_none=True),
        )
        return report, update

    @staticmethod
    def _may(site: Site, protocol: StudyProtocol, what: str) -> bool:
        """Return whether both the protocol and the hospital's policy let ``what`` be reported."""
        return what in protocol.reports and what in site.settings.policy.reports

    @staticmethod
    def _report(order: Order, *, status: str = "done", **fields: object) -> Report:
        base = {"kind": order.kind, "study": order.study, "round": order.round, "status": status}
        return Report.model_validate({**base, **fields})

    def _record(self, event: str, order: Order, **facts: object) -> None:
        self._site.journal.append(
            event, study=order.study, round=order.round, order=order.kind, **facts
        )
