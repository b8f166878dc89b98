"""What is said of a cohort: a sentence for each fault, none for a sound case."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client.cohort.quality.case_measurements import CaseMeasures, MaskMeasures, SequenceMeasures
from client.cohort.quality.cohort_warnings import remarks
from client.cohort.quality.sequence_plausibility import Plausibility
from common.regions import MODALITIES

SEQUENCE = SequenceMeasures(
    shape=(240, 240, 155),
    spacing_mm=(1.0, 1.0, 1.0),
    orientation="LPS",
    snr=30.0,
    slice_jump=0.05,
    shift_mm=0.0,
)


def case(number: int = 0, **changes: Any) -> CaseMeasures:
    """Return a sound case whose head is like no other; ``t1c`` changes that sequence."""
    sequence = changes.pop("t1c", {})
    sketch = np.zeros(64, np.float32)
    sketch[number] = 1
    made = CaseMeasures(
        name=f"case-{number:02d}",
        patient=f"patient-{number:02d}",
        sequences={
            name: replace(SEQUENCE, **sequence) if name == "t1c" else SEQUENCE
            for name in MODALITIES
        },
        brain_ml=1400.0 + number,
        cut_off={},
        mask=MaskMeasures(volume_ml={"WT": 60.0, "TC": 20.0, "ET": 10.0}, parts=2, outside_brain=0),
        voxels_sha256=f"{number:064x}",
        sketch=sketch,
    )
    return replace(made, **changes)


def mask(**changes: Any) -> MaskMeasures:
    sound = case().mask
    assert sound is not None
    return replace(sound, **changes)


def test_nothing_is_said_of_sound_cases() -> None:
    assert remarks([case(n) for n in range(20)]) == []
    assert remarks([]) == []


@pytest.mark.parametrize(
    ("changes", "code", "kind", "words"),
    [
        ({"missing": ("t1n",)}, "missing", "doubt", "t1n is missing"),
        ({"missing": ("t1n", "t2w")}, "missing", "doubt", "t1n and t2w are missing"),
        ({"brain_ml": 300.0}, "brain-volume", "doubt", "300 mL"),
        ({"brain_ml": 3100.0}, "brain-volume", "doubt", "3100 mL"),
        ({"cut_off": {"superior": 0.4}}, "cut-off", "note", "superior end (40%)"),
        ({"t1c": {"snr": 3.0}}, "noise", "doubt", "t1c is noisy"),
        ({"t1c": {"slice_jump": 0.6}}, "slice-jump", "doubt", "60% brighter or darker"),
        ({"t1c": {"shift_mm": 9.0}}, "shift", "doubt", "9 mm from t1c"),
        ({"t1c": {"shift_mm": 9.0}, "reference": "t2f"}, "shift", "doubt", "9 mm from t2f"),
        ({"t1c": {"spacing_mm": (1, 1, 7)}}, "coarse", "note", "7.0 mm"),
        ({"mask": mask(outside_brain=0.3)}, "mask-outside", "doubt", "30% of the mask"),
        ({"mask": mask(parts=90)}, "mask-parts", "doubt", "90 pieces"),
        (
            {"plausibility": Plausibility(alike=(("t1n", "t1c", 0.999),))},
            "same-sequence",
            "doubt",
            "t1n and t1c are the same image (correlation 0.999",
        ),
        (
            {"plausibility": Plausibility(plateau={"t1n": 0.01, "t2f": 0.21})},
            "plateau",
            "doubt",
            "t2f holds one value over 21% of the brain",
        ),
        (
            {"plausibility": Plausibility(t2_over_t1=-1.2)},
            "exchanged",
            "doubt",
            "t1n and t2w seem to be exchanged",
        ),
        (
            {"plausibility": Plausibility(mask_over_mirror=-0.8)},
            "mask-mirrored",
            "doubt",
            "wrong side",
        ),
        (
            {"mask": mask(volume_ml={"WT": 5.0, "TC": 0.0, "ET": 0.0})},
            "no-enhancing",
            "note",
            "no enhancing",
        ),
        (
            {"mask": mask(volume_ml={"WT": 0.0, "TC": 0.0, "ET": 0.0}, parts=0)},
            "no-tumour",
            "note",
            "empty",
        ),
    ],
)
def test_each_fault_has_its_sentence(
    changes: dict[str, Any], code: str, kind: str, words: str
) -> None:
    (one,) = remarks([case(1), case(0, **changes)])
    assert (one.code, one.kind, one.case) == (code, kind, "case-00")
    assert words in one.text


@pytest.mark.parametrize(
    "changes",
    [
        {"t1c": {"snr": float("nan")}},
        {"cut_off": {"superior": 0.05}},
        {"t1c": {"shift_mm": 5.0, "spacing_mm": (3, 3, 3)}},
        {"mask": None},
        {"plausibility": Plausibility(plateau={"t1n": 0.02}, t2_over_t1=-0.1)},
        {"plausibility": Plausibility(mask_over_mirror=-0.1, t2_over_t1=3.0)},
    ],
)
def test_what_may_be_chance_is_not_remarkable(changes: dict[str, Any]) -> None:
    assert remarks([case(0, **changes), case(1)]) == []


def test_one_scan_under_two_names() -> None:
    (one,) = remarks([case(0), replace(case(0), name="again", patient="other"), case(1)])
    assert (one.code, one.kind) == ("double", "doubt")
    assert "again" in one.text


def test_one_head_under_two_names_and_two_scans_of_one_patient() -> None:
    follow_up = replace(case(0), name="follow-up", voxels_sha256="f" * 64)
    assert remarks([case(0), follow_up]) == []
    (one,) = remarks([case(0), replace(follow_up, patient="somebody else")])
    assert one.code == "same-head"
    assert "privacy" in one.text


def test_outliers_are_told_with_what_is_usual() -> None:
    cohort = [case(n, t1c={"snr": 30.0 + n % 5}) for n in range(20)]
    (one,) = remarks([*cohort, case(21, t1c={"snr": 200.0})])
    assert (one.code, one.kind, one.case) == ("outlier-snr", "note", "case-21")
    assert "200, in this cohort usually 32" in one.text


def test_few_cases_have_no_outliers() -> None:
    cohort = [case(n, t1c={"snr": 30.0 + n}) for n in range(6)]
    assert remarks([*cohort, case(7, t1c={"snr": 200.0})]) == []


def test_doubts_come_first() -> None:
    noted, doubted = case(0, cut_off={"superior": 0.4}), case(1, brain_ml=300.0)
    assert [one.kind for one in remarks([noted, doubted])] == ["doubt", "note"]


def test_heads_are_known_again_by_one_sequence_only() -> None:
    """A FLAIR looks like no T1: what they have in common is no sign of one head."""
    one, other = case(0), replace(case(1), sketch=case(0).sketch)
    assert [r.code for r in remarks([one, other])] == ["same-head"]
    assert remarks([one, replace(other, reference="t2f")]) == []
    both = [replace(each, reference="t2f") for each in (one, other)]
    assert [r.code for r in remarks(both)] == ["same-head"]
