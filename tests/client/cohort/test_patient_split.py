"""Patients keep their part of the split, whoever joins or leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.cohort.case_discovery import Cohort
from client.cohort.patient_split import Split, position, split
from client.imaging.case import Case


def cohort_of(patients: list[str], sessions: int = 1) -> Cohort:
    cases = tuple(
        Case(patient, str(session), {}, Path("mask"), {})
        for patient in patients
        for session in range(sessions)
    )
    return Cohort("brats-2023", cases, ())


def parts_of(result: Split) -> dict[str, str]:
    named = {"train": result.train, "validation": result.validation, "test": result.test}
    return {case.patient: name for name, part in named.items() for case in part}


PATIENTS = [f"P{i:04d}" for i in range(1000)]


def test_a_split_comes_near_its_fractions_and_loses_nobody() -> None:
    result = split(cohort_of(PATIENTS, sessions=2), "study-a")
    assert result.patients == pytest.approx({"train": 700, "validation": 100, "test": 200}, abs=45)
    assert sum(result.patients.values()) == 1000
    assert len(result.train + result.validation + result.test) == 2000


def test_adding_a_patient_moves_nobody() -> None:
    before = parts_of(split(cohort_of(PATIENTS[::2]), "study-a"))
    after = parts_of(split(cohort_of(PATIENTS[::-1]), "study-a"))
    assert before.items() <= after.items()


def test_studies_split_differently_and_each_always_the_same() -> None:
    assert parts_of(split(cohort_of(PATIENTS), "a")) != parts_of(split(cohort_of(PATIENTS), "b"))
    # Fixed values: a change would move patients from training to test between versions.
    assert position("glioma-1", "BraTS-GLI-00001") == pytest.approx(0.803648219, abs=1e-9)


@pytest.mark.parametrize("fractions", [(0.5, 0.2, 0.2), (1.2, -0.4, 0.2)])
def test_fractions_must_be_shares_of_one(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        split(cohort_of(PATIENTS[:3]), "a", fractions)
