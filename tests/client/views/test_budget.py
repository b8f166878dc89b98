"""What the ledger says in words: spent, left, of the worst patient, over all studies."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

import pytest

from client.privacy import budget_caps
from client.privacy.accountant import epsilon
from client.privacy.mechanism import Mechanism
from client.site.folder import Site
from client.site.pseudonyms import keep_withdrawal
from client.views.budget import budget, patients_now
from common.study.protocol import PROTOCOL, StudyProtocol
from server.consortium.provisioning import Consortium
from tests.consortia import STUDY, edit, tiny_protocol

STEP = Mechanism(2.0, 0.5)
ELSEWHERE = "f" * 32
"""A patient who was in a study and is not in the cohort any more."""


def offer(site: Site, consortium: Consortium, protocol: StudyProtocol) -> None:
    site.keep_protocol(consortium.identity.sign(PROTOCOL, protocol.model_dump(mode="json")))


def charge(
    site: Site,
    protocol: StudyProtocol,
    patients: Collection[str],
    *,
    number: int = 1,
    mechanism: Mechanism = STEP,
    steps: int = 2,
    purpose: Literal["training", "metrics"] = "training",
    confirm: bool = True,
) -> None:
    """Write into the ledger what a round of the study writes."""
    study_cap, patient_cap = budget_caps.caps(site, protocol)
    with budget_caps.open_ledger(site) as ledger:
        fact = ledger.reserve(
            study=protocol.study,
            protocol=protocol.digest,
            round_number=number,
            purpose=purpose,
            patients=frozenset(patients),
            mechanism=mechanism,
            clipping_norm=1.0,
            steps=steps,
            study_cap=study_cap,
            patient_cap=patient_cap,
        )
        if confirm:
            ledger.confirm(fact)


def test_nothing_offered_nothing_spent(site: Site) -> None:
    found = budget(site)
    assert found["studies"] == []
    assert found["all_studies"] == {
        "epsilon_spent": 0.0,
        "epsilon_cap": 10.0,
        "delta": 1e-5,
        "steps_spent": 0,
        "steps_unconfirmed": 0,
        "worst_patient": None,
        "studies_of_worst_patient": [],
    }


def test_spent_and_left_fit_the_accountant(site: Site, consortium: Consortium) -> None:
    first, second = tiny_protocol(), tiny_protocol(study="another-one", privacy={"delta": 1e-4})
    bare = tiny_protocol(study="bare", privacy={"mode": "none"})
    for protocol in (first, second, bare):
        offer(site, consortium, protocol)
    patients = patients_now(site, first)
    charge(site, first, patients)
    charge(site, second, patients, confirm=False)
    found = budget(site)
    by_name = {one["study"]: one for one in found["studies"]}
    assert by_name["bare"] == {
        "study": "bare",
        "private": False,
        "epsilon_spent": 0.0,
        "steps_spent": 0,
        "steps_unconfirmed": 0,
    }
    own = by_name[STUDY]
    assert (own["steps_spent"], own["steps_unconfirmed"]) == (2, 0)
    assert by_name["another-one"]["steps_unconfirmed"] == 2
    assert own["epsilon_spent"] == pytest.approx(epsilon([(STEP, 2)], 1e-3), abs=1e-4)
    assert own["rounds_left"] == own["steps_left"] // 2 > 0
    assert own["patients"] == own["patients_with_a_round_left"] == len(patients) == 4
    assert epsilon([(STEP, own["steps_left"] + 2)], 1e-3) <= own["epsilon_cap"]
    everything = found["all_studies"]
    assert (everything["delta"], everything["steps_spent"]) == (1e-4, 4)
    assert everything["epsilon_spent"] == pytest.approx(epsilon([(STEP, 4)], 1e-4), abs=1e-4)
    assert everything["worst_patient"] in patients
    assert everything["studies_of_worst_patient"] == ["another-one", STUDY]


def test_patients_are_told_apart(site: Site, consortium: Consortium) -> None:
    protocol = tiny_protocol()
    offer(site, consortium, protocol)
    one, *others = sorted(patients_now(site, protocol))
    charge(site, protocol, [one], steps=20)
    charge(site, protocol, [one, *others], steps=2)
    with budget_caps.open_ledger(site) as ledger:
        left = ledger.room(
            study=STUDY,
            mechanism=STEP,
            patients=frozenset([one]),
            study_cap=budget_caps.caps(site, protocol)[0],
            patient_cap=budget_caps.caps(site, protocol)[1],
        )[one]
    charge(site, protocol, [one], steps=left - 1)  # one step is left, and a round takes two
    (own,) = budget(site)["studies"]
    assert (own["worst_patient"], own["steps_spent"]) == (one, 22 + left - 1)
    assert (own["steps_left"], own["rounds_left"]) == (1, 0)
    assert (own["patients"], own["patients_with_a_round_left"]) == (4, 3)
    keep_withdrawal(site, one, by="Dr. Tamm")
    (own,) = budget(site)["studies"]
    # What was spent stays spent; what is left is that of those who are in the study now.
    assert own["worst_patient"] == one
    assert own["rounds_left"] > 0
    assert (own["patients"], own["patients_with_a_round_left"]) == (3, 3)


def test_the_worst_over_all_studies_is_not_the_worst_of_each(
    site: Site, consortium: Consortium
) -> None:
    a, b, c = (letter * 32 for letter in "abc")
    first, second = tiny_protocol(), tiny_protocol(study="another-one")
    for protocol in (first, second):
        offer(site, consortium, protocol)
    charge(site, first, [a], steps=3)
    charge(site, second, [b], steps=3)
    charge(site, first, [c], steps=2)
    charge(site, second, [c], steps=2)
    found = budget(site)
    assert {one["study"]: one["worst_patient"] for one in found["studies"]} == {
        STUDY: a,
        "another-one": b,
    }
    total = found["all_studies"]
    assert (total["worst_patient"], total["steps_spent"]) == (c, 4)
    # Not the sum of the epsilons, which composition makes too large.
    assert total["epsilon_spent"] == pytest.approx(epsilon([(STEP, 4)], 1e-3), abs=1e-4)


def test_scores_are_told_apart_from_training(site: Site, consortium: Consortium) -> None:
    protocol = tiny_protocol()
    offer(site, consortium, protocol)
    score = Mechanism(5.0, 1.0)
    charge(site, protocol, patients_now(site, protocol))
    for number in (1, 2):
        charge(
            site,
            protocol,
            [ELSEWHERE],
            number=number,
            mechanism=score,
            steps=1,
            purpose="metrics",
        )
    (own,) = budget(site)["studies"]
    assert (own["scores"], own["steps_spent"]) == (2, 2)
    assert own["epsilon_of_scores"] == pytest.approx(epsilon([(score, 2)], 1e-3), abs=1e-4)


def test_the_patients_cap_limits_what_is_left(site: Site, consortium: Consortium) -> None:
    offer(site, consortium, tiny_protocol())
    (before,) = budget(site)["studies"]
    (after,) = budget(edit(site, "max_epsilon = 10.0", "max_epsilon = 1.0"))["studies"]
    assert after["steps_left"] < before["steps_left"]
    assert after["rounds_left"] == after["steps_left"] // 2


def test_without_a_cohort_nothing_is_left(
    make_site: Callable[..., Site], consortium: Consortium, own_cohort: Path
) -> None:
    site = make_site("south", own_cohort)
    offer(site, consortium, tiny_protocol())
    shutil.rmtree(own_cohort)
    own_cohort.mkdir()
    (own,) = budget(site)["studies"]
    assert (own["patients"], own["rounds_left"], own["patients_with_a_round_left"]) == (0, 0, 0)
