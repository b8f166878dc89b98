"""Where a segmentation is unsure, voxel by voxel and region by region. Pure numpy.

Both come from the regions' probabilities, best after ``client.segmentation.calibration``: they are
as true as those, and a network cannot know what it never saw.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.regions import REGIONS, labels_to_regions

Probabilities = NDArray[np.float32]


def entropy(probabilities: Probabilities) -> Probabilities:
    """Return how unsure each voxel's label is, (X, Y, Z), from regions' probabilities (3, X, Y, Z).

    It is the entropy over background, ED, NCR and ET in units of its largest value: 0 where the
    label is sure, 1 where all four are equally likely.
    """
    inner = np.minimum.accumulate(probabilities, axis=0)  # nested, as the regions are
    outer = np.concatenate([np.ones_like(inner[:1]), inner])
    result = np.zeros(probabilities.shape[1:], np.float32)
    for region in range(len(REGIONS) + 1):
        share = outer[region] - (outer[region + 1] if region < len(REGIONS) else 0)
        result -= share * np.log(np.maximum(share, 1e-12)) / np.log(len(REGIONS) + 1)
    return np.clip(result, 0, 1)


def region_confidence(probabilities: Probabilities, labels: NDArray[np.uint8]) -> dict[str, float]:
    """Return the Dice that the probabilities let expect of each region of a label map.

    Source: the soft Dice confidence of Borges et al. 2024, arXiv:2402.10665. Of an empty region it
    is the probability that its likeliest voxel is empty.
    """
    found = {}
    for region, chance, mask in zip(REGIONS, probabilities, labels_to_regions(labels), strict=True):
        inside = float(chance[mask].sum(dtype=np.float64))
        both = np.count_nonzero(mask) + float(chance.sum(dtype=np.float64))
        empty = 1 - float(chance.max(initial=0))
        found[region] = round(float(2 * inside / both) if mask.any() else empty, 6)
    return found
