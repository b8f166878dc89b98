"""The voxel grid of a phantom and smooth random fields on it.

Arrays here are indexed towards right, anterior, superior; the files are turned to LPS when a case
is finished. All lengths are millimetres. Pure numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FIELD_MM = (240.0, 240.0, 155.0)
"""The field of view of BraTS: 240 x 240 x 155 voxels of 1 mm."""

Array: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """Isotropic voxels that cover the field of view, ``size`` of them along x."""

    size: int
    field_mm: tuple[float, float, float] = FIELD_MM

    @property
    def spacing_mm(self) -> float:
        return self.field_mm[0] / self.size

    @property
    def shape(self) -> tuple[int, int, int]:
        _, y, z = (int(np.ceil(mm / self.spacing_mm - 1e-6)) for mm in self.field_mm)
        return self.size, y, z

    @property
    def voxel_ml(self) -> float:
        return self.spacing_mm**3 / 1000

    def points(self) -> Array:
        """Return the voxel centres in mm from the field's centre, shape (3, X, Y, Z)."""
        axes = [(np.arange(n) - (n - 1) / 2) * self.spacing_mm for n in self.shape]
        return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)

    def affine(self) -> NDArray[np.float64]:
        """Return the LPS affine, which at 240 voxels is that of every BraTS file."""
        s = self.spacing_mm
        affine = np.diag([-s, -s, s, 1.0])
        affine[:3, 3] = 0.5 - s / 2, self.field_mm[1] - 0.5 - s / 2, s / 2 - 0.5
        return affine


def smooth_field(
    shape: tuple[int, ...],
    spacing_mm: float | tuple[float, ...],
    length_mm: float,
    rng: np.random.Generator,
) -> Array:
    """Return a Gaussian random field of zero mean, unit deviation and the given coarseness.

    White noise on a lattice of ``length_mm`` is interpolated by cubic B-splines, axis by axis.
    """
    spacings = np.broadcast_to(np.asarray(spacing_mm, float), (len(shape),))
    steps = spacings / length_mm
    knots = [int((count - 1) * step) + 4 for count, step in zip(shape, steps, strict=True)]
    field = rng.standard_normal(knots).astype(np.float32)
    for axis, (count, step) in enumerate(zip(shape, steps, strict=True)):
        field = _interpolate(field, axis, count, step)
    result: Array = (field - field.mean()) / (field.std() + np.float32(1e-6))
    return result


def _interpolate(field: Array, axis: int, count: int, step: float) -> Array:
    """Evaluate cubic B-splines along one axis at ``count`` positions, ``step`` knots apart.

    Four gathers, not a matrix product: the same bits whatever the number of BLAS threads.
    """
    position = np.arange(count) * step
    cell = position.astype(int)
    t = (position - cell).astype(np.float32)
    weights = (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )
    along = [-1 if each == axis else 1 for each in range(field.ndim)]
    result: Array = np.take(field, cell, axis) * weights[0].reshape(along)
    for offset, weight in enumerate(weights[1:], start=1):
        result += np.take(field, cell + offset, axis) * weight.reshape(along)
    return result


def ramp(values: Array, width: float) -> Array:
    """Return a soft step: 0 below ``-width/2``, 1 above ``width/2``."""
    result: Array = np.clip(values / np.float32(width) + np.float32(0.5), 0, 1)
    return result
