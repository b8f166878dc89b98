"""Which answers the approved protocol still has room for: each update and each score once.

A study of R rounds gets R updates from a site, scores of the rounds that are due by
``evaluate_every``, each of one model, and one set of histograms. What has left already is left
again, word for word, when the same is ordered again; nothing else is.

- Scores of a round leave after an update of the rounds that they are due for. A site that could not
  train (no patient, no budget) may score all the same.
- Exact scores are of one set of patients for a whole study: the difference between two sets would
  be a patient's own score.

Pure, beside ``answered``, which reads the site's journal. Out of scope: what people approved
(``client.study.consent``) and what an answer costs (``client.privacy.ledger``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from client.site.folder import Site
from common.errors import ConsentError
from common.study.protocol import StudyProtocol

Facts = Mapping[str, Any]

_COULD_NOT: Final = frozenset({"case-none", "privacy-cap"})
"""Codes of a site that declined to train for want of patients or of budget."""
_RESTORED: Final = ("restoration settled", "restoration charged")


@dataclass(frozen=True)
class Answers:
    """What has left of one study, as the journal says, oldest first.

    ``updates`` by digest; ``scores`` by round; ``unable`` are rounds that the site could not train;
    ``lost`` and ``lost_scores`` are rounds that were ordered after the backup from which the site
    was restored, so that nobody here knows what left.
    """

    updates: dict[str, Facts] = field(default_factory=dict)
    scores: dict[int, Facts] = field(default_factory=dict)
    statistics: list[Facts] = field(default_factory=list)
    unable: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    lost_scores: set[int] = field(default_factory=set)

    @property
    def trained(self) -> set[int]:
        """The rounds of which an update left."""
        return {int(facts["round"]) for facts in self.updates.values()}


def answered(site: Site, study: str) -> Answers:
    """Return what has left of ``study``; raise StateError if the journal is damaged."""
    found = Answers()
    ordered: dict[str, set[int]] = {"train": set(), "evaluate": set()}
    for entry in site.journal.events("sent", "declined", *_RESTORED):
        facts = entry.facts
        for name, kind, number in facts.get("orders", ()) if entry.event in _RESTORED else ():
            if name == study and kind in ordered:
                ordered[kind].add(int(number))
        if entry.event in _RESTORED or facts.get("study") != study:
            continue
        kind, number = facts["order"], int(facts["round"])
        if entry.event == "declined":
            if kind == "train" and facts.get("code") in _COULD_NOT:
                found.unable.add(number)
        elif kind == "train" and "update" in facts:
            found.updates.setdefault(str(facts["update"]), facts)
        elif kind == "evaluate" and "dice" in facts:
            found.scores.setdefault(number, facts)
        elif kind == "describe" and "statistics" in facts:
            found.statistics.append(facts)
    found.lost.update(ordered["train"] - found.trained)
    found.lost_scores.update(ordered["evaluate"] - found.scores.keys())
    return found


def due(protocol: StudyProtocol) -> tuple[int, ...]:
    """Return the rounds after which the protocol asks for scores: the last always is one."""
    rounds, every = protocol.rounds, protocol.evaluate_every
    return tuple(sorted({*range(every, rounds + 1, every), rounds}))


def check_round(protocol: StudyProtocol, kind: str, number: int) -> None:
    """Raise ConsentError unless the protocol has an order of this kind for round ``number``."""
    study = protocol.study
    if number > protocol.rounds:
        raise ConsentError(
            f"Round {number} was ordered; {study} has {protocol.rounds} rounds.",
            do="Ask the coordinator who ordered it.",
            code="rounds",
        )
    if kind == "train" and number < 1:
        raise ConsentError(
            f"Training for round {number} of {study} was ordered; its rounds begin with 1.",
            do="Ask the coordinator who ordered it.",
            code="not-due",
        )
    if kind in {"describe", "initial"} and number:
        raise ConsentError(
            f"An order that comes once, before the first round of {study}, came for round "
            f"{number}.",
            do="Ask the coordinator who ordered it.",
            code="not-due",
        )
    if kind == "evaluate" and number not in due(protocol):
        raise ConsentError(
            f"Scores of round {number} of {study} were ordered; its protocol asks for them after "
            f"every {protocol.evaluate_every} rounds and after the last, {protocol.rounds}.",
            do="Ask the coordinator who ordered it.",
            code="not-due",
        )


def check_training(
    protocol: StudyProtocol, answers: Answers, *, number: int, update: str = ""
) -> None:
    """Raise ConsentError if the update for round ``number`` would be one more than was approved.

    ``update`` is the digest of one that was made before, which may leave again.
    """
    if update in answers.updates or number in answers.lost:
        return
    if len(answers.updates) + len(answers.lost) >= protocol.rounds:
        raise ConsentError(
            f"{protocol.study} has {protocol.rounds} rounds, and so many updates have left here.",
            do="More need an amendment with more rounds, which the hospital approves.",
            code="rounds-done",
        )


def scores_before(
    protocol: StudyProtocol, answers: Answers, *, number: int, weights_sha256: str
) -> Facts | None:
    """Return the scores that left for round ``number``; None if they are to be measured now.

    Raises ConsentError for another model than that of then, or before the training.
    """
    study = protocol.study
    before = answers.scores.get(number)
    if before is not None and before.get("weights") == weights_sha256:
        return before
    if before is not None or number in answers.lost_scores:
        raise ConsentError(
            f"Round {number} of {study} was evaluated here before, maybe with other weights.",
            do="Ask the coordinator why it wants scores of two models in one round.",
            code="evaluated-already",
        )
    since = max((one for one in due(protocol) if one < number), default=0)
    done = answers.trained | answers.unable | answers.lost
    if not any(since < one <= number for one in done):
        raise ConsentError(
            f"Scores of round {number} of {study} were ordered; this site has trained in none of "
            f"its rounds {since + 1} to {number}.",
            do="Nothing needs to be done; scores leave after the next training.",
            code="not-trained",
        )
    return None


def same_patients(answers: Answers, validation: str) -> bool:
    """Return whether exact scores left of no other patients than those of ``validation``.

    ``validation`` is the digest of their pseudonyms.
    """
    said = (facts.get("validation") for facts in answers.scores.values())
    return all(one in {None, validation} for one in said)
