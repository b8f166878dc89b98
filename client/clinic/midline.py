"""The plane between the brain's halves, from the brain's outline alone, without an atlas.

It is the plane through the brain's middle over which the brain's mirror image covers it best, so
that a head that is turned or tilted on the scanner's table has its own midline. It trusts the file
to say where left is, and takes no notice of a midline that a tumour has shifted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

_STEPS: Final = ((-18, -12, -6, 0, 6, 12, 18), (-3, 0, 3), (-1.5, 0, 1.5), (-0.75, 0, 0.75))
"""Degrees that are tried about each of two axes, each time around the best so far."""

_POINTS: Final = 8000
_LEAST_POINTS: Final = 100


@dataclass(frozen=True)
class Midline:
    """The plane ``normal`` . world = ``offset_mm``; the unit normal points to the right (RAS)."""

    normal: tuple[float, float, float]
    offset_mm: float

    def rightwards_mm(self, world: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how far points (N, 3) lie to the right of the plane; below 0 is left."""
        result: NDArray[np.float64] = world @ np.array(self.normal) - self.offset_mm
        return result


def midline_of(brain: NDArray[np.bool_], affine: NDArray[np.float64]) -> Midline | None:
    """Return the midline of a brain (X, Y, Z) on the grid ``affine``; None if it shows none."""
    if brain.all():  # the background was never taken away: the outline is the field of view's
        return None
    voxels = np.argwhere(brain)
    if len(voxels) < _LEAST_POINTS:
        return None
    middle = affine[:3, :3] @ voxels.mean(axis=0) + affine[:3, 3]
    world = voxels[:: max(1, len(voxels) // _POINTS)] @ affine[:3, :3].T + affine[:3, 3] - middle
    to_voxels = np.linalg.inv(affine[:3, :3])
    shift = to_voxels @ (middle - affine[:3, 3])
    limits = np.array(brain.shape)

    def covered(normal: NDArray[np.float64]) -> float:
        mirrored = world - 2 * np.outer(world @ normal, normal)
        found = np.rint(mirrored @ to_voxels.T + shift).astype(int)
        found = found[((found >= 0) & (found < limits)).all(axis=1)]
        return float(np.count_nonzero(brain[tuple(found.T)])) / len(world)

    best = (0.0, 0.0)
    for steps in _STEPS:
        # Of two that cover alike the straighter wins: a round brain has no direction.
        tried = [(best[0] + yaw, best[1] + roll) for yaw, roll in product(steps, steps)]
        best = max(tried, key=lambda one: (round(covered(_normal(*one)), 3), -np.hypot(*one)))
    normal = _normal(*best)
    x, y, z = (float(value) for value in normal)
    return Midline((x, y, z), float(normal @ middle))


def _normal(yaw: float, roll: float) -> NDArray[np.float64]:
    """Return what points to the right, turned by degrees forwards and upwards."""
    turned = np.array([1.0, np.tan(np.radians(yaw)), np.tan(np.radians(roll))])
    result: NDArray[np.float64] = turned / np.linalg.norm(turned)
    return result
