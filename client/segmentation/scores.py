"""How well a segmentation agrees with a person's, as the BraTS challenges score it.

Of each region: Dice, HD95, surface Dice, volumes, and Dice and HD95 by lesion. The lesions are
those of 2023 (https://github.com/rachitsaluja/BraTS-2023-Metrics): parts of the truth that are
26-connected once it is dilated by 3 mm; each is compared with all predicted parts that touch it,
dilated by itself; every predicted part that touches none is a false positive and counts as a
lesion with the worst score; lesions of at most 50 mm3 are left out.

These scores are exact facts about patients: they are for the hospital's own eyes, and for work on
phantoms. What may leave a site is ``client.segmentation.dice``, and
``client.runtime.order_handler`` decides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.imaging.grid import bounding_box
from client.segmentation.dice import dice
from client.segmentation.surface_distance import WORST_MM, Mask, Spacing, compare_surfaces
from common.regions import REGIONS, labels_to_regions

DILATION_MM: Final = 3.0
LEAST_LESION_MM3: Final = 50.0
TOLERANCE_MM: Final = 1.0
"""Of the surface Dice, but at least the smallest side of a voxel."""

_GROWING: Final = ndimage.generate_binary_structure(3, 2)
_TOUCHING: Final = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class LesionScores:
    """Means over lesions and false positives; 1 and 0 mm where there is neither."""

    dice: float
    hd95_mm: float
    found: int
    missed: int
    false: int


@dataclass(frozen=True)
class Scores:
    """One region of one case."""

    dice: float
    hd95_mm: float
    surface_dice: float
    lesion_dice: float
    lesion_hd95_mm: float
    lesions_found: int
    lesions_missed: int
    lesions_false: int
    volume_ml: float
    true_volume_ml: float

    @property
    def volume_error_ml(self) -> float:
        """How much too large (above 0) or too small the predicted volume is."""
        return self.volume_ml - self.true_volume_ml


MEANT: Final = (
    "dice",
    "hd95_mm",
    "surface_dice",
    "lesion_dice",
    "lesion_hd95_mm",
    "absolute_volume_error_ml",
)
"""What ``mean_scores`` gives of each region."""


def score_labels(
    predicted: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    *,
    spacing_mm: Spacing,
) -> dict[str, Scores]:
    """Return the scores of each region of a predicted label map against the true one.

    Both are (X, Y, Z) with the values of ``common.regions.LABELS``. Raises ValueError where their
    shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"label maps of shapes {predicted.shape} and {truth.shape} do not compare")
    either = (predicted > 0) | (truth > 0)
    if either.any():
        # Nothing beyond the box counts, but lesions are dilated in it.
        margin = _steps(spacing_mm) + 1
        box = bounding_box(either, (margin, margin, margin))
        predicted, truth = predicted[box], truth[box]
    masks = zip(REGIONS, labels_to_regions(predicted), labels_to_regions(truth), strict=True)
    return {region: _score(p, t, spacing_mm) for region, p, t in masks}


def mean_scores(cases: Sequence[Mapping[str, Scores]]) -> dict[str, dict[str, float]]:
    """Return the means over cases, by region and name (``MEANT``); empty without cases."""
    if not cases:
        return {}
    means: dict[str, dict[str, float]] = {}
    for region in REGIONS:
        rows = [
            {**dataclasses.asdict(case[region]), "error": case[region].volume_error_ml}
            for case in cases
        ]
        of = {name: float(np.mean([row[name] for row in rows])) for name in MEANT[:-1]}
        means[region] = {**of, MEANT[-1]: float(np.mean([abs(row["error"]) for row in rows]))}
    return means


def lesion_scores(predicted: Mask, truth: Mask, *, spacing_mm: Spacing) -> LesionScores:
    """Return the scores by lesion of two masks (X, Y, Z)."""
    steps, voxel_mm3 = _steps(spacing_mm), math.prod(spacing_mm)
    parts, count = ndimage.label(predicted, structure=_TOUCHING)
    grown = _grown(truth, steps)
    lesions, total = ndimage.label(grown, structure=_TOUCHING)
    lesions *= truth
    touched: set[int] = set()
    scores: list[tuple[float, float]] = []
    found = missed = 0
    for number in range(1, total + 1):
        lesion = lesions == number
        box = bounding_box(lesion, (steps, steps, steps))
        near = np.setdiff1d(parts[box][_grown(lesion[box], steps)], [0])
        touched.update(near.tolist())
        if np.count_nonzero(lesion) * voxel_mm3 <= LEAST_LESION_MM3:
            continue
        found += near.size > 0
        missed += near.size == 0
        match = np.isin(parts, near)
        apart = compare_surfaces(match, lesion, spacing_mm=spacing_mm, tolerance_mm=TOLERANCE_MM)
        scores.append((dice(match, lesion), apart.hd95_mm))
    false = count - len(touched)
    scores += [(0.0, WORST_MM)] * false
    if not scores:
        return LesionScores(1.0, 0.0, 0, 0, 0)
    by_dice, by_distance = np.mean(scores, axis=0)
    return LesionScores(float(by_dice), float(by_distance), found, missed, false)


def _score(predicted: Mask, truth: Mask, spacing_mm: Spacing) -> Scores:
    tolerance = max(TOLERANCE_MM, min(spacing_mm))
    apart = compare_surfaces(predicted, truth, spacing_mm=spacing_mm, tolerance_mm=tolerance)
    lesions = lesion_scores(predicted, truth, spacing_mm=spacing_mm)
    voxel_ml = math.prod(spacing_mm) / 1000
    return Scores(
        dice=dice(predicted, truth),
        hd95_mm=apart.hd95_mm,
        surface_dice=apart.dice,
        lesion_dice=lesions.dice,
        lesion_hd95_mm=lesions.hd95_mm,
        lesions_found=lesions.found,
        lesions_missed=lesions.missed,
        lesions_false=lesions.false,
        volume_ml=np.count_nonzero(predicted) * voxel_ml,
        true_volume_ml=np.count_nonzero(truth) * voxel_ml,
    )


def _steps(spacing_mm: Spacing) -> int:
    """Return how many voxels the dilation reaches: 3 at 1 mm, at least one."""
    return max(1, round(DILATION_MM / math.prod(spacing_mm) ** (1 / 3)))


def _grown(mask: Mask, steps: int) -> Mask:
    grown: Mask = ndimage.binary_dilation(mask, structure=_GROWING, iterations=steps)
    return grown
