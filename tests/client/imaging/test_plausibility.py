"""What cannot be believed is refused; what is odd is said."""

from __future__ import annotations

import numpy as np
import pytest

from client.imaging.plausibility import (
    judge_brain,
    judge_coverage,
    judge_registration,
    warnings_of,
)
from client.imaging.registration import Registration
from common.errors import CaseError

SPACING = np.array([4.0, 4.0, 4.0])


def turned(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    matrix = np.eye(4)
    matrix[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


@pytest.mark.parametrize(
    ("degrees", "residual_mm", "peak", "words"),
    [
        (5, 0.2, 0.5, ""),
        (5, 1.5, 0.5, "up to 1.5 mm off"),
        (5, 0.2, 0.2, "hardly resembles"),
        (40, 0.2, 0.5, "turned by 40 degrees"),
    ],
)
def test_odd_registrations_are_warned_of(
    degrees: float, residual_mm: float, peak: float, words: str
) -> None:
    found = Registration(turned(degrees), residual_mm, 0.8, peak)
    warnings = judge_registration("t2w", "file", found)
    assert (len(warnings) == 1 and words in warnings[0]) if words else warnings == []


@pytest.mark.parametrize(("residual_mm", "peak"), [(6.0, 0.5), (0.1, 0.05)])
def test_hopeless_registrations_are_refused(residual_mm: float, peak: float) -> None:
    with pytest.raises(CaseError, match=r"scan\.nii \(t2w\)") as caught:
        judge_registration("t2w", "scan.nii", Registration(np.eye(4), residual_mm, 0.8, peak))
    assert caught.value.code == "case-registration"


def test_a_sequence_that_misses_part_of_the_brain_is_said_or_refused() -> None:
    assert judge_coverage("t2f", "scan.nii", 0.99) == []
    assert "shows only 80% of the brain" in judge_coverage("t2f", "scan.nii", 0.8)[0]
    with pytest.raises(CaseError, match="only 40%") as caught:
        judge_coverage("t2f", "scan.nii", 0.4)
    assert caught.value.code == "case-coverage"


def ball(radius_mm: float, middle: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    points = np.stack(np.indices((60, 60, 60))) * 4.0 - 118.0
    return ((points - np.reshape(middle, (3, 1, 1, 1))) ** 2).sum(axis=0) < radius_mm**2


@pytest.mark.parametrize(("radius_mm", "fits"), [(45, False), (70, True), (85, False)])
def test_a_brain_has_the_size_of_one(radius_mm: float, fits: bool) -> None:
    if fits:
        assert judge_brain(ball(radius_mm), SPACING, "case") == []
        return
    with pytest.raises(CaseError, match="which no brain") as caught:
        judge_brain(ball(radius_mm), SPACING, "case")
    assert caught.value.code == "case-brain"


def test_a_brain_at_the_edge_of_the_field_may_be_smaller() -> None:
    warnings = judge_brain(ball(70, (0, 0, 110)), SPACING, "case")
    assert len(warnings) == 1
    assert "cuts the brain off at the top" in warnings[0]


def test_warnings_are_found_in_a_history() -> None:
    history = ({"step": "n4"}, {"step": "quality", "covered": {}, "warnings": ["one", "two"]})
    assert warnings_of(history) == ["one", "two"]
    assert warnings_of(()) == []
