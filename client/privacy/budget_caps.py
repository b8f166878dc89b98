"""What a study costs the patients of a site: its caps and mechanism, the ledger, the accountant.

Invariant: a ledger that is older than what the site's journal says of it is never opened.

Out of scope: what stands in the ledger (``client.privacy.ledger``), who is trained on
(``client.study.round_training``).
"""

from __future__ import annotations

from importlib.metadata import version

from client.privacy.accountant import PldAccountant
from client.privacy.ledger import Ledger, over_cap
from client.privacy.mechanism import UNPROTECTED, Accountant, Cap, Mechanism, Patients
from client.site.folder import Site
from client.site.pseudonyms import withdrawn
from common.errors import StateError
from common.messages.wire_format import PrivacySpent
from common.study.protocol import StudyProtocol


def accountant(site: Site) -> Accountant:
    """Return the accountant of the site's ledger, with what it reckoned before."""
    return PldAccountant(site.folder / "cache" / "accounting.json")


def open_ledger(site: Site) -> Ledger:
    """Open the site's privacy ledger.

    Raises StateError; code ``ledger-old`` if it is not the one, or older than the one, that the
    journal speaks of: an old copy would forget what was spent.
    """
    ledger = Ledger(
        site.folder / "ledger.sqlite",
        accountant=accountant(site),
        code_version=version("gliofed"),
    )
    entries = site.journal.events("sent", "declined")
    said = [e.facts for e in entries if "ledger_head" in e.facts]
    if said and not ledger.holds(said[-1]["ledger_facts"], said[-1]["ledger_head"]):
        ledger.close()
        raise StateError(
            f"The privacy ledger of {site.name} is not the one that the journal speaks of: it was "
            "put back from an old copy or replaced.",
            do="Put the newest copy of ledger.sqlite back; until then no patient is trained on.",
            code="ledger-old",
        )
    return ledger


def mechanism(protocol: StudyProtocol) -> Mechanism:
    """Return the mechanism of one training step of the study."""
    return Mechanism(protocol.privacy.noise_multiplier, protocol.privacy.sampling_rate)


def caps(site: Site, protocol: StudyProtocol) -> tuple[Cap, Cap]:
    """Return a patient's cap in the study and over all studies, both at the study's delta."""
    delta = protocol.privacy.delta
    return (
        Cap(protocol.privacy.max_epsilon, delta),
        Cap(site.settings.policy.max_epsilon, delta),
    )


def privacy_spent(site: Site, protocol: StudyProtocol) -> PrivacySpent:
    """Return what the study has cost its worst patient here: steps of training, and epsilon of all.

    What is not a step of training, such as histograms, has its share in epsilon.
    """
    with open_ledger(site) as ledger:
        spent = ledger.spent(protocol.privacy.delta, study=protocol.study)
        worst = ledger.worst_patient(protocol.privacy.delta, study=protocol.study)
        facts = ledger.facts(study=protocol.study, patient=worst) if worst else ()
    return PrivacySpent(
        noise_multiplier=protocol.privacy.noise_multiplier,
        sampling_rate=protocol.privacy.sampling_rate,
        steps=sum(fact.steps for fact in facts if fact.purpose == "training"),
        delta=spent.delta,
        epsilon=round(spent.epsilon, 4),
    )


def withdrawn_rounds(site: Site, protocol: StudyProtocol) -> tuple[int, ...]:
    """Return the rounds of the study that saw patients who have withdrawn since."""
    gone = withdrawn(site)
    if not gone:
        return ()
    with open_ledger(site) as ledger:
        return tuple(
            sorted(
                {
                    fact.round
                    for name in gone
                    for fact in ledger.facts(study=protocol.study, patient=name)
                    if fact.round
                }
            )
        )


def with_room(
    ledger: Ledger,
    protocol: StudyProtocol,
    wanted: Mechanism,
    steps: int,
    patients: frozenset[str],
    limits: tuple[Cap, Cap],
) -> frozenset[str]:
    """Return the patients whose budget allows ``steps`` more; raise PrivacyError if none does.

    Who is left out depends on what the ledger charged before, never on what a scan holds.
    """
    study_cap, patient_cap = limits
    room = ledger.room(
        study=protocol.study,
        mechanism=wanted,
        patients=patients,
        study_cap=study_cap,
        patient_cap=patient_cap,
    )
    fitting = frozenset(name for name, left in room.items() if left >= steps)
    if not fitting:
        raise over_cap(protocol.study, steps, study_cap, patient_cap)
    return fitting


def charge_unprotected(
    site: Site, protocol: StudyProtocol, ledger: Ledger, patients: Patients, *, round_number: int
) -> int:
    """Charge a round without privacy to all of ``patients`` and return the fact's number."""
    study_cap, patient_cap = caps(site, protocol)
    return ledger.reserve(
        study=protocol.study,
        protocol=protocol.digest,
        round_number=round_number,
        purpose="training",
        patients=patients,
        mechanism=UNPROTECTED,
        clipping_norm=protocol.privacy.clipping_norm,
        steps=protocol.training.steps_per_round,
        study_cap=study_cap,
        patient_cap=patient_cap,
    )
