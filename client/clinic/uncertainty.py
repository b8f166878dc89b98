"""How sure a segmentation is: an uncertainty of each voxel, and a range of each volume.

What a network says of its own doubt is the entropy of its probabilities
(``client.segmentation.expected_dice``), 0 where the label is sure, 1 where all labels are equally
likely.

A network that was trained with sequence dropout is less sure where sequences are missing, but it
cannot say what they would have shown. Nobody can; what can be seen is how much it matters to lose
one more. So each sequence that can be spared is taken away in turn, and how far these predictions
part is added to the entropy: the Jensen-Shannon divergence (Lin 1991, "Divergence measures based on
the Shannon entropy", IEEE Transactions on Information Theory 37(1)), which is never negative. The
mask is cut from the prediction with all that is there alone. Where no other sequence can be spared
the spread cannot be seen, and only the network's own entropy is left.

The range of a volume goes from the fewest voxels above ``SURE`` to the most above ``POSSIBLE`` in
any of these predictions. It is no confidence interval, calibrated or not: ``python -m
tests.benchmarks missing_sequences`` counts how often it holds the truth on phantoms.

Out of scope: how a network predicts, which the caller hands in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.imaging.missing_sequences import blank, present, sparser
from client.segmentation.expected_dice import entropy
from common.regions import REGIONS

Floats = NDArray[np.float32]
Predict = Callable[[Floats], Floats]
"""From an image (4, X, Y, Z) to each region's chance, (3, X, Y, Z), in the order of REGIONS."""

SURE: Final = 0.75
POSSIBLE: Final = 0.25


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities (3, X, Y, Z) from all sequences ``there``; ``fewer`` with one less each."""

    there: Floats
    fewer: tuple[Floats, ...] = ()

    @property
    def all(self) -> tuple[Floats, ...]:
        return (self.there, *self.fewer)


def predictions(predict: Predict, image: Floats) -> Predictions:
    """Predict from ``image``, and where it lacks sequences, with each other one taken away too."""
    there = tuple(present(image).tolist())
    first = predict(image)
    if all(there):
        return Predictions(first)
    fewer = []
    for left in sparser(there):
        if sum(left) == sum(there) - 1:
            spared = image.copy()
            blank(spared, left)
            fewer.append(predict(spared))
    return Predictions(first, tuple(fewer))


def uncertainty(found: Predictions) -> Floats:
    """Return how unsure each voxel is, (X, Y, Z): the entropy plus the spread, at most 1."""
    own = entropy(found.there)
    if not found.fewer:
        return own
    nested = [np.minimum.accumulate(one) for one in found.all]
    apart = entropy(np.mean(nested, axis=0)) - np.mean([entropy(one) for one in nested], axis=0)
    result: Floats = np.minimum(own + np.maximum(apart, 0), 1)
    return result


def range_ml(probabilities: Iterable[Floats], *, voxel_ml: float) -> dict[str, tuple[float, float]]:
    """Return each region's least sure and most possible volume, over predictions of one case."""
    sure, possible = [], []
    for one in probabilities:
        nested = np.minimum.accumulate(one)
        sure.append((nested > SURE).sum(axis=(1, 2, 3)))
        possible.append((nested > POSSIBLE).sum(axis=(1, 2, 3)))
    ends = zip(REGIONS, np.min(sure, axis=0), np.max(possible, axis=0), strict=True)
    return {
        region: (round(float(low) * voxel_ml, 3), round(float(high) * voxel_ml, 3))
        for region, low, high in ends
    }
