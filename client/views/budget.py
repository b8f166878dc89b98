"""What the privacy ledger says, in words and numbers that a hospital can act on.

Epsilon is per patient: that of the worst patient of a study, and that of the worst patient over
all studies, whose steps add up by composition. What is left is reckoned for the patients who are
in the study now. Everything here is for the hospital's own eyes: numbers of patients are exact.

Out of scope: the picture (``client.views.budget_chart``), a study that has not begun
(``client.views.study_cost``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from client.privacy.budget_caps import accountant, caps, mechanism, open_ledger
from client.privacy.ledger import Ledger
from client.privacy.mechanism import Accountant, Fact, Mechanism
from client.site.folder import Site
from client.study.known_patients import look_up
from client.study.outbound import may_report
from client.study.round_state import Kept
from client.study.round_training import read_split
from common.errors import CaseError
from common.study.protocol import StudyProtocol

ADJACENCY: Final = "patient; add or remove one"
UNSEEN: Final = (
    "A patient who is in another hospital's cohort too is charged there separately: no hospital "
    "sees that, and nobody adds the two up. Nor is a patient known again whose scans all changed "
    "with the name (resampled, say, or taken anew)."
)
"""What no epsilon here counts."""
_NO_STUDY_DELTA: Final = 1e-5


def budget(site: Site) -> dict[str, Any]:
    """Return, per study and for the worst patient over all studies, what is spent and left.

    Raises StateError.
    """
    protocols = [site.protocol(name) for name in site.study_names()]
    private = [protocol for protocol in protocols if protocol.private]
    delta = min((protocol.privacy.delta for protocol in private), default=_NO_STUDY_DELTA)
    known = accountant(site)
    with open_ledger(site) as ledger:
        studies = [
            _study(site, protocol, ledger, known)
            if protocol.private
            else _unprotected(protocol, ledger)
            for protocol in protocols
        ]
        total = ledger.spent(delta)
        worst = ledger.worst_patient(delta)
        facts = () if worst is None else ledger.facts(patient=worst)
    return {
        "site": site.name,
        "unit": ADJACENCY,
        "studies": studies,
        "all_studies": {
            "epsilon_spent": figure(total.epsilon),
            "epsilon_cap": site.settings.policy.max_epsilon,
            "delta": delta,
            "steps_spent": total.steps,
            "steps_unconfirmed": total.unconfirmed,
            "worst_patient": worst,
            "studies_of_worst_patient": sorted({fact.study for fact in facts}),
        },
    }


def figure(epsilon: float) -> float | str:
    """Return ``epsilon`` as JSON can hold it: training without privacy costs "infinity"."""
    return round(epsilon, 4) if math.isfinite(epsilon) else "infinity"


def history(facts: Iterable[Fact]) -> list[tuple[Mechanism, int]]:
    """Return the mechanisms of ``facts``, each with all its steps, as an accountant takes them."""
    steps: Counter[Mechanism] = Counter()
    for fact in facts:
        steps[fact.mechanism] += fact.steps
    return list(steps.items())


def patients_now(site: Site, protocol: StudyProtocol) -> frozenset[str]:
    """Return the pseudonyms of those whom the study would train on today; none without a cohort."""
    try:
        cases = read_split(site, protocol).train
    except CaseError as error:
        if error.code != "case-none":
            raise
        return frozenset()
    with open_ledger(site) as ledger:
        return frozenset(look_up(site, ledger, cases))


def room(
    site: Site, protocol: StudyProtocol, ledger: Ledger, patients: frozenset[str]
) -> dict[str, int]:
    """Return how many training steps of the study each of ``patients`` has left.

    Histograms of the cohort that will be asked for are taken off first.
    """
    sent = Kept(site, protocol.study).statistics.exists()
    to_come = [] if sent else histograms(site, protocol)
    study_cap, patient_cap = caps(site, protocol)
    return (
        ledger.room(
            study=protocol.study,
            mechanism=mechanism(protocol),
            patients=patients,
            study_cap=study_cap,
            patient_cap=patient_cap,
            planned=Counter(to_come),
        )
        if patients
        else {}
    )


def histograms(site: Site, protocol: StudyProtocol) -> list[Mechanism]:
    """Return the release of the cohort's histograms, if the study gets it from this site."""
    asked = may_report(site, protocol, "statistics")
    return [Mechanism(protocol.statistics.noise_multiplier, 1.0)] if asked else []


def _unprotected(protocol: StudyProtocol, ledger: Ledger) -> dict[str, Any]:
    spent = ledger.spent(protocol.privacy.delta, study=protocol.study)
    return {
        "study": protocol.study,
        "private": False,
        "epsilon_spent": figure(spent.epsilon),
        "steps_spent": spent.steps,
        "steps_unconfirmed": spent.unconfirmed,
    }


def _study(
    site: Site, protocol: StudyProtocol, ledger: Ledger, known: Accountant
) -> dict[str, Any]:
    options, round_steps = protocol.privacy, protocol.training.steps_per_round
    spent = ledger.spent(options.delta, study=protocol.study)
    left = room(site, protocol, ledger, patients_now(site, protocol))
    metrics = [fact for fact in ledger.facts(study=protocol.study) if fact.purpose == "metrics"]
    return {
        "study": protocol.study,
        "private": True,
        "epsilon_spent": figure(spent.epsilon),
        "epsilon_cap": options.max_epsilon,
        "delta": options.delta,
        "steps_spent": spent.steps,
        "steps_unconfirmed": spent.unconfirmed,
        "steps_left": min(left.values(), default=0),
        "rounds_left": min(left.values(), default=0) // round_steps,
        "patients": len(left),
        "patients_with_a_round_left": sum(steps >= round_steps for steps in left.values()),
        # All scores composed, as if one patient had been in each: nobody's is more.
        "epsilon_of_scores": round(known.epsilon(history(metrics), options.delta), 4),
        "scores": sum(fact.steps for fact in metrics),
        "worst_patient": ledger.worst_patient(options.delta, study=protocol.study),
    }
