"""Overlap scores of a segmentation that add up in any order, over cases and over sites.

A score is kept as a sum and a count per region, never as a mean, and the sum is an integer number
of billionths: addition is exact, so that the same cases give the same total however they are
grouped. Pure numpy.

Out of scope: whether a score may leave the hospital, which is the site's to decide.

Source: the Dice convention for empty masks is that of the BraTS challenges since 2023
(https://github.com/rachitsaluja/BraTS-2023-Metrics).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import UpdateError
from common.regions import REGIONS

_BILLION: Final = 1_000_000_000
_EMPTY: Final = (0,) * len(REGIONS)


def dice(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Return the Dice coefficient of two masks of one shape, from 0 to 1.

    Two empty masks agree and score 1; one empty mask against a filled one scores 0.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"masks of shapes {prediction.shape} and {truth.shape} have no overlap")
    volume = int(np.count_nonzero(prediction)) + int(np.count_nonzero(truth))
    if volume == 0:
        return 1.0
    return 2 * int(np.count_nonzero(prediction & truth)) / volume


@dataclass(frozen=True)
class RegionScores:
    """Sum and count of a score between 0 and 1 for each region, in the order of ``REGIONS``.

    A commutative monoid: ``RegionScores()`` is the neutral element, ``+`` joins disjoint cases.
    """

    billionths: tuple[int, ...] = _EMPTY
    counts: tuple[int, ...] = _EMPTY

    def __post_init__(self) -> None:
        if len(self.billionths) != len(REGIONS) or len(self.counts) != len(REGIONS):
            raise ValueError(f"scores are kept for {len(REGIONS)} regions")
        for total, count in zip(self.billionths, self.counts, strict=True):
            if count < 0 or not 0 <= total <= count * _BILLION:
                raise ValueError("a sum of scores lies between 0 and its count")

    @classmethod
    def of_case(cls, prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> RegionScores:
        """Return the Dice scores of one case from region masks of shape (3, X, Y, Z)."""
        return cls.of_values([dice(p, t) for p, t in zip(prediction, truth, strict=True)])

    @classmethod
    def of_values(cls, values: Sequence[float]) -> RegionScores:
        """Return the scores of one case, given for each region."""
        return cls(tuple(round(value * _BILLION) for value in values), (1,) * len(REGIONS))

    def __add__(self, other: RegionScores) -> RegionScores:
        return RegionScores(
            tuple(a + b for a, b in zip(self.billionths, other.billionths, strict=True)),
            tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)),
        )

    def count(self, region: str) -> int:
        """Return how many cases were scored in ``region``."""
        return self.counts[list(REGIONS).index(region)]

    def mean(self, region: str) -> float | None:
        """Return the mean score of ``region``, None when no case was scored."""
        place = list(REGIONS).index(region)
        if self.counts[place] == 0:
            return None
        return self.billionths[place] / self.counts[place] / _BILLION

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Return the scores as plain data, one entry a region."""
        return {
            region: {"billionths": total, "count": count}
            for region, total, count in zip(REGIONS, self.billionths, self.counts, strict=True)
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RegionScores:
        """Return the scores that ``to_dict`` wrote; raise UpdateError for anything else."""
        try:
            if set(data) != set(REGIONS):
                raise ValueError("the regions differ")
            entries = [data[region] for region in REGIONS]
            if any(set(entry) != {"billionths", "count"} for entry in entries):
                raise ValueError("the fields differ")
            if any(type(value) is not int for entry in entries for value in entry.values()):
                raise ValueError("sums and counts are integers")
            return cls(
                tuple(entry["billionths"] for entry in entries),
                tuple(entry["count"] for entry in entries),
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise UpdateError(
                f"The region scores are malformed: {error}.",
                do="Check that both sides run the same version of gliofed.",
                code="update-scores",
            ) from None
