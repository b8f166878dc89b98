"""How far two masks' surfaces lie apart: the 95 % Hausdorff distance and the surface Dice.

A mask's surface are its voxels that have a face outside it; distances are between voxel centres.
The definitions are those of the BraTS challenges' package of 2026 (``brats-evaluation``, by way of
``panoptica``): HD95 is the 95th percentile of the distances of both surfaces pooled, and surface
Dice the mean of the shares of each surface within the tolerance. Google DeepMind's
``surface-distance``, which the challenges of 2023 used, weighs by area: it is a little different.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.imaging.grid import bounding_box

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

WORST_MM: Final = 374.0
"""HD95 of a mask against an empty one: by convention about the diagonal of BraTS' volumes."""


@dataclass(frozen=True)
class SurfaceScores:
    """``hd95_mm`` is 0 at best, ``dice`` (within ``tolerance_mm``) 1."""

    hd95_mm: float
    dice: float


def compare_surfaces(
    predicted: Mask, truth: Mask, *, spacing_mm: Spacing, tolerance_mm: float
) -> SurfaceScores:
    """Return the distances of two masks (X, Y, Z).

    Two empty masks agree (0 mm, 1); a mask and an empty one do not (``WORST_MM``, 0).
    """
    if not predicted.any() or not truth.any():
        agree = predicted.any() == truth.any()
        return SurfaceScores(0.0, 1.0) if agree else SurfaceScores(WORST_MM, 0.0)
    box = bounding_box(predicted | truth, (0, 0, 0))
    ours, theirs = _surface(predicted[box]), _surface(truth[box])
    to_truth = _distances(theirs, spacing_mm)[ours]
    to_predicted = _distances(ours, spacing_mm)[theirs]
    hd95 = float(np.percentile(np.concatenate([to_truth, to_predicted]), 95))
    near = [np.mean(found <= tolerance_mm) for found in (to_truth, to_predicted)]
    return SurfaceScores(hd95, float(np.mean(near)))


def _surface(mask: Mask) -> Mask:
    # Beyond the array's border there is nothing, so that a mask which ends there has a face there.
    surface: Mask = mask & ~ndimage.binary_erosion(mask)
    return surface


def _distances(surface: Mask, spacing_mm: Spacing) -> NDArray[np.float64]:
    distances: NDArray[np.float64] = ndimage.distance_transform_edt(~surface, sampling=spacing_mm)
    return distances
