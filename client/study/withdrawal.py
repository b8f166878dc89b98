"""A patient withdraws: no study uses the patient any more, and what did so far is named.

From now on the pseudonym is in ``withdrawn.json``, the patient's prepared images are gone from the
cache, and so are copies that reviews left (``client.cohort.reviewed_cases``), and the journal says
so. It holds the pseudonym and the rounds, never the name and no reason in free words, which may
hold one: reasons belong into the hospital's own records.

The lineage is the rounds that saw the patient, as the ledger says, and the models installed here
that descend from them: the model of round N of a study descends from every round up to N. A round
that trained without privacy before gliofed charged those, and an exact Dice score, are not in the
ledger; they are named as rounds that may have seen the patient.

Out of scope: to take a patient out of weights. Differential privacy bounds what weights that were
trained with the patient tell of the patient; the hospital's scans themselves are the hospital's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from client.clinic.released_model import open_model
from client.cohort.case_discovery import Cohort
from client.cohort.patient_split import split
from client.cohort.reviewed_cases import take_back_patient
from client.cohort.series_decisions import cohort_of
from client.imaging.case import Case
from client.imaging.prepared_cache import retain
from client.privacy.budget_caps import open_ledger
from client.site.folder import Site
from client.site.pseudonyms import keep_withdrawal, patients_key, pseudonym, withdrawals
from client.study.known_patients import by_patient
from common.errors import CaseError, ConsentError, GliofedError
from common.records.atomic_files import is_held, read_json
from common.study.protocol import PreprocessingOptions

LIMITS: Final = (
    "Weights that have left stay: nobody can call them back. What those of a study with privacy "
    "tell of the patient is bounded by the epsilon in `gliofed-site budget`.",
    "The last update that was trained stays in the folder outbox until the study's next round, in "
    "case the coordinator asks for it again.",
    "Layers and models of this site's own (local.safetensors, personal.safetensors in studies/ID) "
    "stay here and go on being used; remove them if nothing shall remain of the patient.",
    "Weights that `gliofed-site train-alone` wrote are not tracked: remove them yourself.",
    "The scans stay where they are; to remove them is the hospital's to do.",
)
"""What a withdrawal cannot do, in words for a person."""


@dataclass(frozen=True)
class StudyLineage:
    """The rounds of one study that saw the patient, as the ledger says.

    ``statistics`` is (0,) if the patient was counted in histograms that left with noise.
    ``maybe_training`` are rounds that trained without privacy, and ``maybe_metrics`` those whose
    Dice left exactly, on patients of whom this one may have been one: no ledger says.
    """

    study: str
    training: tuple[int, ...] = ()
    metrics: tuple[int, ...] = ()
    statistics: tuple[int, ...] = ()
    maybe_training: tuple[int, ...] = ()
    maybe_metrics: tuple[int, ...] = ()


@dataclass(frozen=True)
class Descendant:
    """A model installed here that descends from a round that saw the patient.

    Not ``certain``: from a round that may have, or a model that can no longer be verified.
    """

    model: str
    active: bool
    certain: bool


@dataclass(frozen=True)
class Effect:
    """What a withdrawal did: ``since`` (UTC) and ``by`` are those of the first time."""

    patient: str
    since: str
    by: str
    again: bool
    in_cohort: bool
    prepared_removed: int
    reviewed_removed: int
    running: bool
    lineage: tuple[StudyLineage, ...]
    models: tuple[Descendant, ...]


def withdraw(site: Site, patient: str, *, by: str) -> Effect:
    """Withdraw the patient whom the cohort lists, or listed, under the name ``patient``.

    A second time changes nothing and says since when. Raises CaseError (code ``patient-unknown``)
    for a name that neither the cohort nor the ledger knows, ConsentError without a person's name,
    StateError.
    """
    if not 0 < len(by.strip()) <= 200:
        raise ConsentError(
            "The withdrawal was not kept: it needs a person's name, of at most 200 letters.",
            do="Say who writes it down with --by NAME.",
            code="decision",
        )
    key = patients_key(site)
    hidden = pseudonym(key, patient)
    cases = _cases(site)
    own = [case for case in cases if pseudonym(key, case.patient) == hidden]
    before = withdrawals(site)
    if not own and hidden not in before and not _in_ledger(site, hidden):
        raise CaseError(
            f"Neither the cohort nor the ledger of {site.name} knows a patient {patient}.",
            do="Give the name as the cohort's files have it: `gliofed-site check` reads them, and "
            "capital letters count.",
            code="patient-unknown",
        )
    lineage = _lineage(site, hidden, own)
    models = _models(site, lineage)
    by_patient(site, own)  # so that the scans stay away under any other name
    if hidden not in before:
        site.journal.append(
            "patient withdrawn",
            patient=hidden,
            by=by.strip(),
            lineage=[asdict(one) for one in lineage],
            models=[one.model for one in models],
        )
    kept = keep_withdrawal(site, hidden, by=by.strip())
    for left in site.folder.glob("outbox/*/*.residual"):
        left.unlink()  # a part of old updates that waits for the next: it may have seen the patient
    reviewed_removed = take_back_patient(site, hidden)
    gone = withdrawals(site)
    remaining = [case for case in cases if pseudonym(key, case.patient) not in gone]
    return Effect(
        patient=hidden,
        since=kept.time,
        by=kept.by,
        again=hidden in before,
        in_cohort=bool(own),
        prepared_removed=retain(site.folder / "cache", remaining, _options(site)),
        reviewed_removed=reviewed_removed,
        running=is_held(site.lock),
        lineage=lineage,
        models=models,
    )


def _cases(site: Site) -> tuple[Case, ...]:
    """Return the cases that the cohort has now; none if its last one is gone."""
    try:
        return cohort_of(site).cases
    except CaseError as error:
        if error.code != "case-none":
            raise
        return ()


def _in_ledger(site: Site, hidden: str) -> bool:
    with open_ledger(site) as ledger:
        return hidden in ledger.patients()


def _options(site: Site) -> set[PreprocessingOptions]:
    """Return what the cache may hold entries of: the studies' options and those of ``check``."""
    asked = {site.protocol(name).preprocessing for name in site.study_names()}
    return asked | {PreprocessingOptions(), PreprocessingOptions(input="raw")}


def _lineage(site: Site, hidden: str, own: Sequence[Case]) -> tuple[StudyLineage, ...]:
    rounds: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    with open_ledger(site) as ledger:
        for fact in ledger.facts(patient=hidden):
            rounds[fact.study][fact.purpose].add(fact.round)
        charged = {(fact.study, fact.round) for fact in ledger.facts()}
    for study, what, number in _unaccounted(site, own):
        if what != "maybe_training" or (study, number) not in charged:
            rounds[study][what].add(number)
    return tuple(
        StudyLineage(study, **{what: tuple(sorted(numbers)) for what, numbers in seen.items()})
        for study, seen in sorted(rounds.items())
    )


def _unaccounted(site: Site, own: Sequence[Case]) -> Iterator[tuple[str, str, int]]:
    """Yield study, kind and round of what the ledger does not hold and may have used ``own``."""
    private = {name for name in site.study_names() if site.protocol(name).private}
    for entry in site.journal.events("training", "sent"):
        study, facts = str(entry.facts["study"]), entry.facts
        part = split(Cohort("", tuple(own), ()), study)
        # Of a patient who is not in the cohort any more nobody knows in which part it was.
        if entry.event == "training" and study not in private and (part.train or not own):
            yield study, "maybe_training", int(facts["round"])
        exact = entry.event == "sent" and "dice" in facts and "dice_noise" not in facts
        if exact and (part.validation or not own):
            yield study, "maybe_metrics", int(facts["round"])


def _models(site: Site, lineage: Collection[StudyLineage]) -> tuple[Descendant, ...]:
    certain = {one.study: one.training[0] for one in lineage if one.training}
    maybe = {one.study: one.maybe_training[0] for one in lineage if one.maybe_training}
    folder = site.folder / "models"
    path = folder / "active.json"
    active = read_json(path, what="active model")["folder"] if path.exists() else ""
    found = []
    for release in sorted(folder.glob("[!.]*/release.json")):
        name = release.parent.name
        try:
            card = open_model(release.parent, signer=site.known_coordinators).card
        except GliofedError:
            found.append(Descendant(name, active=name == active, certain=False))
            continue
        sure = card["round"] >= certain.get(card["name"], card["round"] + 1)
        if sure or card["round"] >= maybe.get(card["name"], card["round"] + 1):
            found.append(Descendant(name, active=name == active, certain=sure))
    return tuple(found)
