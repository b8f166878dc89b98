"""Whether probabilities are true at this site, and one temperature a region that makes them truer.

A network that says 0.9 should be right 9 times of 10. Dividing a region's logits by one number, the
temperature, mends most of what is wrong (Guo et al. 2017, arXiv:1706.04599). It is fitted on the
site's validation patients, kept at the site and never sent. It changes no mask: thresholds are of
the network's own probabilities.

Fit and error need no voxel, only how many of each logit were true: ``Counts``, which add up over
cases in any order. Logits are rounded to 1/32 for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from common.regions import REGIONS

Probabilities = NDArray[np.float32]
Temperatures = tuple[float, float, float]

AS_IT_IS: Final[Temperatures] = (1.0, 1.0, 1.0)
LIMIT: Final = 8.0
"""A temperature lies between 1 / LIMIT and LIMIT."""

_MOST: Final = 16.0
_STEPS: Final = 1024
_LOGITS: Final = (np.arange(_STEPS) + 0.5) / _STEPS * 2 * _MOST - _MOST
_BINS: Final = 15


@dataclass(frozen=True)
class Counts:
    """Voxels of the brain by region, whether they are in it, and logit: (3, 2, 1024) int64.

    A commutative monoid: ``Counts()`` is the neutral element, ``+`` joins disjoint cases.
    """

    voxels: NDArray[np.int64]

    @classmethod
    def none(cls) -> Counts:
        return cls(np.zeros((len(REGIONS), 2, _STEPS), np.int64))

    @classmethod
    def of_case(cls, probabilities: Probabilities, truth: NDArray[np.bool_]) -> Counts:
        """Return the counts of one case from probabilities and region masks (3, X, Y, Z).

        Where all regions' probabilities are 0 is no brain: ``client.segmentation.prediction`` says
        so.
        """
        brain = probabilities.any(axis=0)
        voxels = np.empty((len(REGIONS), 2, _STEPS), np.int64)
        for region, (chance, mask) in enumerate(zip(probabilities, truth, strict=True)):
            place = ((logits(chance[brain]) + _MOST) / (2 * _MOST) * _STEPS).astype(np.intp)
            place = np.clip(place, 0, _STEPS - 1)
            inside = mask[brain]
            for value in (0, 1):
                voxels[region, value] = np.bincount(place[inside == value], minlength=_STEPS)
        return cls(voxels)

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.voxels + other.voxels)


def logits(probabilities: Probabilities) -> Probabilities:
    """Return the logits of probabilities, those of 0 and 1 at the limits of float32."""
    edge = 1e-7
    inside = np.clip(probabilities, edge, 1 - edge)
    return np.log(inside) - np.log1p(-inside)


def fitted(counts: Counts) -> Temperatures:
    """Return the temperatures under which the truth is likeliest.

    A region that holds no voxel, or every one, has nothing to fit and stays as it is.
    """
    wt, tc, et = (_fitted(voxels) for voxels in counts.voxels)
    return wt, tc, et


def calibrated(probabilities: Probabilities, temperatures: Temperatures) -> Probabilities:
    """Return the probabilities (3, ...) at the temperatures; 0 stays 0, outside the brain."""
    if temperatures == AS_IT_IS:
        return probabilities
    result = np.empty_like(probabilities)
    for region, temperature in enumerate(temperatures):
        colder = 1 / (1 + np.exp(-logits(probabilities[region]) / temperature))
        result[region] = np.where(probabilities[region] > 0, colder, 0)
    return result


def calibration_errors(
    counts: Counts, temperatures: Temperatures = AS_IT_IS
) -> dict[str, float | None]:
    """Return each region's expected calibration error (ECE), None without voxels.

    That is the distance of the mean probability from the share that is true, in 15 equal bins of
    the probability, weighted by their voxels: 0 at best (Naeini et al. 2015).
    """
    found: dict[str, float | None] = {}
    for region, voxels, temperature in zip(REGIONS, counts.voxels, temperatures, strict=True):
        chance = 1 / (1 + np.exp(-_LOGITS / temperature))
        place = np.minimum((chance * _BINS).astype(int), _BINS - 1)
        total = voxels.sum(axis=0)
        said = np.bincount(place, total * chance, _BINS)
        true = np.bincount(place, voxels[1], _BINS)
        everything = int(total.sum())
        found[region] = float(np.abs(said - true).sum()) / everything if everything else None
    return found


def _fitted(voxels: NDArray[np.int64]) -> float:
    if not voxels[0].any() or not voxels[1].any():
        return 1.0

    def unlikely(log_temperature: float) -> float:
        scaled = _LOGITS / math.exp(log_temperature)
        loss = voxels[1] @ np.logaddexp(0, -scaled) + voxels[0] @ np.logaddexp(0, scaled)
        return float(loss) / float(voxels.sum())

    bound = math.log(LIMIT)
    found: Any = optimize.minimize_scalar(unlikely, bounds=(-bound, bound), method="bounded")
    return float(math.exp(found.x))
