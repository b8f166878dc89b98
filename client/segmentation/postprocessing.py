"""From the regions' probabilities to a label map: threshold, nest, fill, drop what is too small.

Small pure functions over region masks (3, X, Y, Z) in the order of ``REGIONS``; each returns new
masks, and what goes into one nested (ET in TC in WT) comes out nested. Parts are 26-connected, as
the BraTS challenges count lesions; holes are what 6-connected background does not reach.

scipy labels the parts: connected-components-3d and fill_voids are faster, but LGPL and GPL.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.imaging.grid import bounding_box
from common.regions import REGIONS, regions_to_labels
from common.study.segmentation_options import PostprocessingOptions

Masks = NDArray[np.bool_]

WT, TC, ET = range(len(REGIONS))
TOUCHING: Final = np.ones((3, 3, 3), bool)
"""26-connectivity: voxels that share a corner are of one part."""


def segmented(
    probabilities: NDArray[np.float32], options: PostprocessingOptions, *, voxel_mm3: float
) -> NDArray[np.uint8]:
    """Return the label map (X, Y, Z) of the regions' probabilities (3, X, Y, Z).

    ``voxel_mm3`` is the volume of one voxel.
    """
    masks = nested(thresholded(probabilities, options.thresholds))
    labels = np.zeros(masks.shape[1:], np.uint8)
    if not masks[WT].any():
        return labels
    # One voxel of margin shows what is outside.
    box = bounding_box(masks[WT], (1, 1, 1))
    masks = masks[:, *box]
    if options.fill_holes:
        masks = filled(masks)
    masks = without_small_parts(masks, options.smallest_part_mm3, voxel_mm3=voxel_mm3)
    masks = without_little_et(masks, options.smallest_et_mm3, voxel_mm3=voxel_mm3)
    labels[box] = regions_to_labels(masks)
    return labels


def thresholded(
    probabilities: NDArray[np.float32], thresholds: tuple[float, float, float]
) -> Masks:
    """Return where each region's probability is above its threshold."""
    masks: Masks = probabilities > np.array(thresholds, np.float32)[:, None, None, None]
    return masks


def nested(masks: Masks) -> Masks:
    """Return the masks with TC cut to WT, and ET to that."""
    return np.logical_and.accumulate(masks, axis=0)


def filled(masks: Masks) -> Masks:
    """Return nested masks with the holes of WT and TC filled; those of ET are necrosis.

    A hole in TC is filled wherever WT, filled too, is: the masks stay nested.
    """
    result = masks.copy()
    for region in (WT, TC):
        result[region] = ndimage.binary_fill_holes(masks[region])
    return nested(result)


def without_small_parts(
    masks: Masks, smallest_mm3: tuple[float, float, float], *, voxel_mm3: float
) -> Masks:
    """Return nested masks without parts of a region smaller than ``smallest_mm3``, outside in."""
    result = masks.copy()
    for region, least in enumerate(smallest_mm3):
        if region > WT:
            result[region] &= result[region - 1]
        if least > 0:
            parts, count = ndimage.label(result[region], structure=TOUCHING)
            sizes = np.bincount(parts.ravel(), minlength=count + 1) * voxel_mm3
            kept = sizes >= least
            kept[0] = False
            result[region] = kept[parts]
    return result


def without_little_et(masks: Masks, least_mm3: float, *, voxel_mm3: float) -> Masks:
    """Return the masks without any ET if all of it together is less than ``least_mm3``."""
    if np.count_nonzero(masks[ET]) * voxel_mm3 >= least_mm3:
        return masks
    result = masks.copy()
    result[ET] = False
    return result
