"""What a person should look at in a cohort, in words: one case, two cases that are one, outliers.

A *doubt* says that the case may be wrong and should be looked at before it is trained on; a *note*
says what is unusual. Neither leaves a case out: that is the hospital's to decide, with a manifest.
Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Literal

import numpy as np

from client.cohort.quality.case_measurements import CaseMeasures
from client.cohort.quality.sequence_plausibility import EXCHANGED, MIRRORED, PLATEAU

Kind = Literal["doubt", "note"]

_BRAIN_ML: Final = (600.0, 2200.0)
"""Of a whole brain; beyond it a part is missing, or it is not a brain alone."""

_CUT_OFF: Final = 0.1
"""Of the largest slice, what may lie at the field's end before it is worth a word."""

_LEAST_SNR: Final = 5.0
_MOST_JUMP: Final = 0.35
_MOST_PARTS: Final = 40
_MOST_OUTSIDE: Final = 0.05
_LEAST_SHIFT_MM: Final = 4.0
_LEAST_SHIFT_VOXELS: Final = 2.0
_SAME_HEAD: Final = 0.995
_COARSE_MM: Final = 6.5
_FEWEST: Final = 8
"""Cases without which there is no telling what is usual."""

_FAR: Final = 5.0
"""Robust standard deviations from the median at which a case is an outlier."""

_PER_MAD: Final = 1.4826


@dataclass(frozen=True)
class Remark:
    """``code`` names the rule; ``text`` is for a person at the hospital and names the case."""

    kind: Kind
    code: str
    case: str
    text: str


def remarks(cases: Sequence[CaseMeasures]) -> list[Remark]:
    """Return everything remarkable, doubts first, then by case."""
    found = [one for case in cases for one in _of_case(case)]
    found += _doubles(cases)
    found += _outliers(cases)
    return sorted(found, key=lambda one: (one.kind, one.case, one.code, one.text))


def _of_case(case: CaseMeasures) -> Iterator[Remark]:
    def say(kind: Kind, code: str, text: str) -> Remark:
        return Remark(kind, code, case.name, text)

    low, high = _BRAIN_ML
    if not low <= case.brain_ml <= high:
        yield say(
            "doubt",
            "brain-volume",
            f"The brain has {case.brain_ml:.0f} mL, not {low:.0f} to {high:.0f}: a part is "
            "missing, more than the brain is left, or the voxel size is wrong.",
        )
    if case.missing:
        yield say(
            "doubt",
            "missing",
            f"{' and '.join(case.missing)} {'is' if len(case.missing) == 1 else 'are'} missing: "
            "only studies with training.sequence_dropout above 0 use the case.",
        )
    for side, share in sorted(case.cut_off.items()):
        if share > _CUT_OFF:
            yield say("note", "cut-off", f"The brain is cut off at its {side} end ({share:.0%}).")
    for name, one in case.sequences.items():
        finest, coarsest = min(one.spacing_mm), max(one.spacing_mm)
        if one.snr < _LEAST_SNR:
            yield say("doubt", "noise", f"{name} is noisy: signal over noise is {one.snr:.1f}.")
        if one.slice_jump > _MOST_JUMP:
            yield say(
                "doubt",
                "slice-jump",
                f"{name} has a slice that is {one.slice_jump:.0%} brighter or darker than its "
                "neighbours: movement, or slices of another series.",
            )
        if one.shift_mm > max(_LEAST_SHIFT_MM, _LEAST_SHIFT_VOXELS * finest):
            yield say(
                "doubt",
                "shift",
                f"{name} seems to lie {one.shift_mm:.0f} mm from {case.reference}: the "
                "registration is wrong, or it is another patient's.",
            )
        if coarsest > _COARSE_MM:
            yield say("note", "coarse", f"{name} has voxels of up to {coarsest:.1f} mm.")
    yield from _of_sequences(case, say)
    if case.mask is not None:
        yield from _of_mask(case, say)


def _of_sequences(case: CaseMeasures, say: Callable[[Kind, str, str], Remark]) -> Iterator[Remark]:
    found = case.plausibility
    for one, other, likeness in found.alike:
        yield say(
            "doubt",
            "same-sequence",
            f"{one} and {other} are the same image (correlation {likeness:.3f} in the brain; two "
            "sequences stay below 0.95): put the right file there, or leave one of them out.",
        )
    for name, share in found.plateau.items():
        if share > PLATEAU:
            yield say(
                "doubt",
                "plateau",
                f"{name} holds one value over {share:.0%} of the brain (sound images: below 1%): a "
                "part was not scanned, erased or clipped. Look at it, and export it again.",
            )
    if found.t2_over_t1 < EXCHANGED:
        yield say(
            "doubt",
            "exchanged",
            f"t1n and t2w seem to be exchanged: fluid is dark in what is called t2w and bright in "
            f"t1n (skewness differs by {found.t2_over_t1:.1f}; above 0.6 where they are not). "
            "Look at both, and rename them.",
        )


def _of_mask(case: CaseMeasures, say: Callable[[Kind, str, str], Remark]) -> Iterator[Remark]:
    mask = case.mask
    if mask is None:
        return
    if mask.volume_ml["WT"] == 0:
        yield say("note", "no-tumour", "The mask is empty.")
    elif mask.volume_ml["ET"] == 0:
        yield say("note", "no-enhancing", "The mask holds no enhancing tumour.")
    if mask.outside_brain > _MOST_OUTSIDE:
        yield say(
            "doubt",
            "mask-outside",
            f"{mask.outside_brain:.0%} of the mask lies outside the brain: a mask of another case, "
            "or one that was shifted or mirrored.",
        )
    if case.plausibility.mask_over_mirror < MIRRORED:
        yield say(
            "doubt",
            "mask-mirrored",
            "The mask seems to lie on the wrong side: FLAIR and T2 are brighter where its mirror "
            f"image lies, by {-case.plausibility.mask_over_mirror:.1f} (in its own place a tumour "
            "is brighter by more than 0.5). Lay it over the FLAIR, and convert it again.",
        )
    if mask.parts > _MOST_PARTS:
        yield say("doubt", "mask-parts", f"The mask is in {mask.parts} pieces.")


def _doubles(cases: Sequence[CaseMeasures]) -> Iterator[Remark]:
    """Yield pairs of cases that are one scan, or scans of one head under two names.

    Each of two names has a privacy budget of its own: one patient under both is spent twice.
    """
    if not cases:
        return
    sketches = np.stack([case.sketch for case in cases])
    alike = sketches @ sketches.T
    for a, b in combinations(range(len(cases)), 2):
        one, other = cases[a], cases[b]
        if one.voxels_sha256 == other.voxels_sha256:
            yield Remark(
                "doubt",
                "double",
                one.name,
                f"It holds the same voxels as {other.name}: leave one of them out.",
            )
        elif (
            one.patient != other.patient
            and one.reference == other.reference
            and alike[a, b] > _SAME_HEAD
        ):
            yield Remark(
                "doubt",
                "same-head",
                one.name,
                f"It looks like the head of {other.name}: if that is one patient, give both scans "
                "the same patient in a manifest, or the patient's privacy counts half.",
            )


def _outliers(cases: Sequence[CaseMeasures]) -> Iterator[Remark]:
    """Yield what lies far from the rest of the cohort (median and median absolute deviation)."""
    for code, what, unit, values in _scalars(cases):
        known = {name: math.log(v) for name, v in values.items() if v > 0 and math.isfinite(v)}
        if len(known) < _FEWEST:
            continue
        middle = float(np.median(list(known.values())))
        spread = _PER_MAD * float(np.median([abs(v - middle) for v in known.values()]))
        for name, value in known.items():
            far = abs(value - middle) / spread if spread > 0 else 0.0
            if far > _FAR:
                yield Remark(
                    "note",
                    f"outlier-{code}",
                    name,
                    f"{what} is {values[name]:.3g}{unit}, in this cohort usually "
                    f"{math.exp(middle):.3g}{unit}.",
                )


def _scalars(
    cases: Sequence[CaseMeasures],
) -> Iterator[tuple[str, str, str, dict[str, float]]]:
    """Yield code, name, unit and the value of each case for what is compared over the cohort."""
    yield "brain", "The brain's volume", " mL", {case.name: case.brain_ml for case in cases}
    for name in {name: None for case in cases for name in case.sequences}:
        have = [case for case in cases if name in case.sequences]
        yield (
            "snr",
            f"Signal over noise of {name}",
            "",
            {case.name: case.sequences[name].snr for case in have},
        )
        yield (
            "spacing",
            f"The coarsest voxel side of {name}",
            " mm",
            {case.name: max(case.sequences[name].spacing_mm) for case in have},
        )
