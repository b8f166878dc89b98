"""What a study would cost and send, before anybody approves it.

The answer is about this site: its patients, what they have spent in other studies, its policy. It
starts nothing and writes nothing. Numbers of patients are exact: the plan is for the hospital.

Source of the noise's length: a step releases the mean clipped gradient plus Gaussian noise of
standard deviation sigma C / (q n) in each of P parameters, which has the length
sigma C sqrt(P) / (q n); n is the public number of patients in the protocol. Abadi et al. 2016,
arXiv:1607.00133.

Out of scope: how long a step takes, which `gliofed-site rehearse` measures.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from client.cohort.series_decisions import cohort_of
from client.imaging import preprocessing
from client.privacy.budget_caps import accountant, mechanism, open_ledger
from client.privacy.mechanism import Accountant, Mechanism
from client.site.folder import Site
from client.study.consent import check_delta, check_policy
from client.study.outbound import may_report
from client.study.round_training import read_split, starting_weights, trained_shapes, update_shapes
from client.study.schedule import due
from client.views.budget import ADJACENCY, histograms, patients_now, room
from common.errors import CaseError, ConsentError
from common.foreign_text import printable
from common.study.drawn_weights import start_in_words
from common.study.protocol import StudyProtocol

STRICT_DELTA: Final = 1e-5
"""Epsilon is told at this delta too, so that studies with unlike deltas can be compared."""

_FLOAT_BYTES: Final = 4


def plan(site: Site, protocol: StudyProtocol) -> dict[str, Any]:
    """Return what the study would cost each patient, whether it fits, and what would leave.

    A protocol that was not published yet counts as one for the preprocessing installed here.
    Raises StateError, and CaseError for a cohort that cannot be read.
    """
    draft = not protocol.preprocessing_sha256
    if draft:
        own = preprocessing.digest(protocol.preprocessing)
        protocol = protocol.model_copy(update={"preprocessing_sha256": own})
    weights = starting_weights(protocol)
    trained = sum(math.prod(shape) for shape in trained_shapes(protocol, weights).values())
    sent = sum(math.prod(shape) for shape in update_shapes(protocol, weights).values())
    return {
        "site": site.name,
        "study": protocol.study,
        "title": printable(protocol.title),
        "version": protocol.version,
        "digest": "" if draft else protocol.digest,
        "private": protocol.private,
        "policy": _policy(site, protocol),
        "patients": _patients(site, protocol),
        "cases_that_lack_sequences_left_out": _left_out(site, protocol),
        "network": {
            "name": protocol.network.name,
            "parameters": sum(array.size for array in weights.values()),
            "trained_parameters": trained,
            "trained_groups": list(protocol.training.trainable),
            "sent_parameters": sent,
        },
        "rounds": protocol.rounds,
        "steps_per_round": protocol.training.steps_per_round,
        "starts_from": start_in_words(protocol),
        "initial_sha256": protocol.initial_sha256,
        "leaves": _leaves(site, protocol, sent),
        "privacy": _privacy(site, protocol, trained) if protocol.private else None,
    }


def _policy(site: Site, protocol: StudyProtocol) -> dict[str, Any]:
    try:
        check_policy(
            protocol,
            site.settings.policy,
            preprocessing_sha256=_installed(protocol),
            patients=len(patients_now(site, protocol)),
        )
    except ConsentError as error:
        return {"allowed": False, "reason": error.message, "do": error.do}
    return {"allowed": True, "reason": "", "do": ""}


def _installed(protocol: StudyProtocol) -> str:
    return preprocessing.digest(protocol.preprocessing)


def _patients(site: Site, protocol: StudyProtocol) -> dict[str, int]:
    try:
        return read_split(site, protocol).patients
    except CaseError as error:
        if error.code != "case-none":
            raise
        return {"train": 0, "validation": 0, "test": 0}


def _left_out(site: Site, protocol: StudyProtocol) -> int:
    """Return how many labelled cases lack a sequence that the study cannot do without."""
    if protocol.training.sequence_dropout:
        return 0
    try:
        return sum(bool(case.missing) for case in cohort_of(site).labelled)
    except CaseError as error:
        if error.code != "case-none":
            raise
        return 0


def _leaves(site: Site, protocol: StudyProtocol, sent: int) -> list[dict[str, Any]]:
    """Return what can leave, how often at most, and what protects the patients in it.

    ``fields`` are those of the report that hold it. Without ``times`` it goes with every answer.
    """
    noise = "differentially private" if protocol.private else "NO PRIVACY: exact"
    dice = {
        "exact": "exact: not covered by epsilon",
        "noised": "with noise, charged to the validation patients",
        "never": "does not leave",
    }[site.settings.policy.dice]
    rounds, about = protocol.rounds, ", ".join(protocol.statistics.about)
    found = [
        _row(
            "the signed approval, with the name of who decided",
            1,
            "holds no patient's data",
            "approval",
        ),
        _row("weight update", rounds, noise, size=_FLOAT_BYTES * sent),
        _row(
            "hashes of the site's journal and ledger, salted",
            None,
            "tell nothing of their lines",
            "site_head",
            "ledger_head",
        ),
        _row(
            "the last hash of the coordinator's journal, and its kit, that are known here",
            None,
            "the coordinator's own",
            "coordinator_head",
            "kit_sha256",
        ),
        _row(
            "the version of gliofed, and new public keys when they are renewed",
            None,
            "holds no patient's data",
            "version",
            "renewal",
        ),
        _row(
            "that an order was refused or failed: a code, and words about the protocol",
            None,
            "no figure of a patient",
            "code",
            "reason",
        ),
    ]
    counted = "with noise, charged to the training patients"
    reports = {
        "statistics": _row(
            f"histograms of the training patients ({about})", 1, counted, "statistics"
        ),
        "dice": _row(
            "mean Dice of the validation patients", len(due(protocol)), dice, "dice", "dice_noise"
        ),
        "case_count": _row(
            "number of training cases", rounds, "a range, not by epsilon", "case_count"
        ),
    }
    if protocol.private:
        reports |= {
            "privacy_spent": _row(
                "epsilon and steps so far", rounds, "of the worst patient", "privacy_spent"
            ),
            "withdrawals": _row(
                "rounds that saw who withdrew", rounds, "rounds, no patient", "withdrawn"
            ),
        }
    return found + [row for what, row in reports.items() if may_report(site, protocol, what)]


def _row(
    what: str, times: int | None, protection: str, *fields: str, size: int = 0
) -> dict[str, Any]:
    return {
        "what": what,
        "times": times,
        "protection": protection,
        "bytes": size or None,
        "fields": list(fields),
    }


def _privacy(site: Site, protocol: StudyProtocol, trained: int) -> dict[str, Any]:
    options = protocol.privacy
    known, step = accountant(site), mechanism(protocol)
    patients = patients_now(site, protocol)
    with open_ledger(site) as ledger:
        left = room(site, protocol, ledger, patients)
        facts = ledger.facts(study=protocol.study)
    done = max((fact.round for fact in facts if fact.purpose == "training"), default=0)
    expected = options.sampling_rate * options.nominal_patients
    noise = options.noise_multiplier * options.clipping_norm * math.sqrt(trained) / expected
    return {
        "unit": ADJACENCY,
        "noise_multiplier": options.noise_multiplier,
        "sampling_rate": options.sampling_rate,
        "clipping_norm": options.clipping_norm,
        "delta": options.delta,
        "one_over_patients": 1 / len(patients) if patients else None,
        "delta_cap": site.settings.policy.delta_cap(len(patients)),
        "delta_fits": _delta_fits(site, protocol, len(patients)),
        "epsilon": _epsilons(site, protocol, known, step),
        "study_cap": options.max_epsilon,
        "patient_cap": site.settings.policy.max_epsilon,
        "rounds_done": done,
        "last_rounds": _last_rounds(protocol, left, done),
        "patients_per_step": options.sampling_rate * len(patients),
        "patients_per_step_divided_by": expected,
        "noise_norm": noise,
        "noise_over_clipping_norm": noise / options.clipping_norm,
        "dice": _dice_cost(site, protocol, known),
        "statistics": _statistics_cost(site, protocol, known),
    }


def _delta_fits(site: Site, protocol: StudyProtocol, patients: int) -> bool:
    try:
        check_delta(site.settings.policy, protocol, patients)
    except ConsentError:
        return False
    return True


def _epsilons(
    site: Site, protocol: StudyProtocol, known: Accountant, step: Mechanism
) -> list[dict[str, float]]:
    rounds = protocol.rounds
    rows = sorted({1, *(max(1, round(rounds * quarter / 4)) for quarter in (1, 2, 3, 4))})
    found = []
    besides = [(release, 1) for release in histograms(site, protocol)]
    for number in rows:
        taken = [(step, number * protocol.training.steps_per_round), *besides]
        at = {
            delta: known.epsilon(taken, delta) for delta in (protocol.privacy.delta, STRICT_DELTA)
        }
        found.append(
            {
                "round": number,
                "steps": taken[0][1],
                "at_delta": round(at[protocol.privacy.delta], 4),
                "at_strict_delta": round(at[STRICT_DELTA], 4),
            }
        )
    return found


def _last_rounds(
    protocol: StudyProtocol, left: Mapping[str, int], done: int
) -> list[dict[str, int]]:
    """Return for how many patients which round would be the last, the earliest first; 0 is none."""
    last = Counter(
        min(protocol.rounds, done + steps // protocol.training.steps_per_round)
        for steps in left.values()
    )
    return [{"last_round": number, "patients": last[number]} for number in sorted(last)]


def _statistics_cost(site: Site, protocol: StudyProtocol, known: Accountant) -> float | None:
    """Return what the cohort's histograms alone cost each training patient; None if none leave."""
    releases = histograms(site, protocol)
    if not releases:
        return None
    return round(known.epsilon([(one, 1) for one in releases], protocol.privacy.delta), 4)


def _dice_cost(site: Site, protocol: StudyProtocol, known: Accountant) -> dict[str, Any] | None:
    """Return what noised Dice would cost the validation patients; None if it is not noised."""
    if site.settings.policy.dice != "noised" or not may_report(site, protocol, "dice"):
        return None
    release = Mechanism(protocol.privacy.dice_noise_multiplier, 1.0)
    times = len(due(protocol))
    spent = known.epsilon([(release, times)], protocol.privacy.delta)
    return {"times": times, "epsilon": round(spent, 4)}
