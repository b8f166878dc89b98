"""Whether a raw case's preparation can be believed: sentences for a person, or a refusal.

Pure. The limits are rules of thumb, wide on purpose: adults' brains with their fluid measure 900 to
1900 mL, and what is refused here would be wrong for certain. What is merely odd becomes a warning,
which goes into the case's history and the clinic's result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.imaging.registration import Registration
from common.errors import CaseError
from common.regions import MODALITY_NAMES

BRAIN_ML: Final = (600.0, 2200.0)
"""What a whole brain can measure."""

_LEAST_PART_ML: Final = 100.0
_CUT_CM2: Final = 10.0  # of brain in the outermost plane; the brain stem alone is smaller
_RESIDUAL_MM: Final = (1.0, 5.0)  # warned of, refused
_PEAK: Final = (0.3, 0.1)  # warned of below, refused below
_COVERED: Final = (0.98, 0.5)  # warned of below, refused below
_ANGLE_DEG: Final = 30.0


def judge_registration(
    name: str, title: str, found: Registration, *, reference: str = "t1c"
) -> list[str]:
    """Return warnings about a registration; raise CaseError (``case-registration``)."""
    fixed = MODALITY_NAMES[reference]
    if found.residual_mm > _RESIDUAL_MM[1] or found.peak < _PEAK[1]:
        raise CaseError(
            f"{title} ({name}) could not be laid over the {fixed}: two estimates "
            f"differ by {found.residual_mm:.1f} mm, likeness peaks by {found.peak:.2f}.",
            do="Look at both in a viewer: are they the same patient's head, whole and unharmed?",
            code="case-registration",
        )
    warnings = []
    if found.residual_mm > _RESIDUAL_MM[0]:
        warnings.append(f"{name} may lie up to {found.residual_mm:.1f} mm off the {fixed}.")
    if found.peak < _PEAK[0]:
        warnings.append(
            f"{name} hardly resembles the {fixed}: is it the same patient, and was there much "
            "motion?"
        )
    if found.angle_deg > _ANGLE_DEG:
        warnings.append(
            f"{name} was turned by {found.angle_deg:.0f} degrees to fit: check that it does."
        )
    return warnings


def judge_coverage(name: str, title: str, share: float) -> list[str]:
    """Return warnings about how much of the brain a sequence shows; raise CaseError."""
    if share < _COVERED[1]:
        raise CaseError(
            f"{title} ({name}) shows only {share:.0%} of the brain.",
            do="Choose a series that covers the head.",
            code="case-coverage",
        )
    if share < _COVERED[0]:
        return [f"{name} shows only {share:.0%} of the brain; nothing is known of it elsewhere."]
    return []


def judge_brain(
    brain: NDArray[np.bool_],
    spacing_mm: NDArray[np.float64],
    name: str,
    *,
    source: str = "t1n",
    reference: str = "t1c",
) -> list[str]:
    """Return warnings about a brain mask (X, Y, Z), RAS; raise CaseError (``case-brain``).

    It was found in ``source`` and lies on the grid of ``reference``.
    """
    volume_ml = np.count_nonzero(brain) * float(np.prod(spacing_mm)) / 1000
    cut = _cut_sides(brain, spacing_mm)
    least = _LEAST_PART_ML if cut else BRAIN_ML[0]
    if not least <= volume_ml <= BRAIN_ML[1]:
        raise CaseError(
            f"What was found as the brain of {name} measures {volume_ml:.0f} mL, which no brain "
            f"does ({BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f} mL).",
            do=f"Look at the {MODALITY_NAMES[source]} in a viewer, and at its voxel size.",
            code="case-brain",
        )
    warnings = []
    if source == "t2f":
        warnings.append(
            "Without a T1 the brain was sought in the FLAIR, for which that method was not made: "
            "look at its outline."
        )
    if cut:
        warnings.append(
            f"The {MODALITY_NAMES[reference]} cuts the brain off at the {' and '.join(cut)}: what "
            "lies beyond is not segmented."
        )
    return warnings


def judge_stripped(brain: NDArray[np.bool_], spacing_mm: float, name: str) -> None:
    """Raise CaseError (``case-brain``) if what came without a skull measures what no brain does.

    ``brain`` is (X, Y, Z) with voxels of ``spacing_mm``. A part of a brain, or a small child's,
    passes.
    """
    volume_ml = np.count_nonzero(brain) * spacing_mm**3 / 1000
    if not _LEAST_PART_ML <= volume_ml <= BRAIN_ML[1]:
        raise CaseError(
            f"{name} shows {volume_ml:.0f} mL that are not 0, which is no brain and no part of one "
            f"({_LEAST_PART_ML:.0f} to {BRAIN_ML[1]:.0f} mL).",
            do="Look at the images in a viewer: are they of a head, without its skull, and is the "
            "voxel size right?",
            code="case-brain",
        )


def _cut_sides(brain: NDArray[np.bool_], spacing_mm: NDArray[np.float64]) -> list[str]:
    """Return at which ends of the field brain goes on."""
    names = (("left", "right"), ("back", "front"), ("bottom", "top"))
    cut = []
    for axis, (low, high) in enumerate(names):
        voxel_cm2 = float(np.prod(np.delete(spacing_mm, axis))) / 100
        for index, side in ((0, low), (-1, high)):
            if np.count_nonzero(np.take(brain, index, axis)) * voxel_cm2 > _CUT_CM2:
                cut.append(side)
    return cut


def warnings_of(history: tuple[Mapping[str, object], ...]) -> list[str]:
    """Return the warnings that a prepared case's history holds."""
    found: list[str] = []
    for record in history:
        if record.get("step") == "quality":
            found.extend(str(one) for one in record["warnings"])  # type: ignore[attr-defined]
    return found
