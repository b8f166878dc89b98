"""Grids: reorienting, cropping and resampling without losing where a voxel lies in the world.

An affine maps voxel indices to the centres of voxels. Every step here returns the affine that
belongs to its result. Pure; out of scope: what the voxels mean.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from nibabel.orientations import (
    apply_orientation,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from numpy.typing import NDArray
from scipy import ndimage

Affine = NDArray[np.float64]
Box = tuple[slice, slice, slice]

SAME_MM: Final = 1e-3
"""Spacings that differ by less are the same."""

SAME_VOXELS: Final = 0.25
"""Grids whose corners lie no farther apart than this share of the smallest spacing are the same:
headers are rounded, to 3 decimals by some tools, and no label moves to the next voxel."""

FWHM_PER_SIGMA: Final = 2 * np.sqrt(2 * np.log(2))


def spacing_of(affine: Affine) -> NDArray[np.float64]:
    """Return the distance between voxel centres along each axis, in millimetres."""
    lengths: NDArray[np.float64] = np.linalg.norm(affine[:3, :3], axis=0)
    return lengths


def apart_mm(one: Affine, other: Affine, shape: tuple[int, ...]) -> float:
    """Return how far the corner voxels of an image of ``shape`` lie apart under two affines."""
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)], np.float64)
    corners[:, :3] *= np.array(shape[:3]) - 1
    return float(np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1).max())


def is_default(affine: Affine, reference: Affine) -> bool:
    """Say whether ``affine`` is what programs write that know no place in space.

    That is: axes along the world's in their order, sides of 1 mm or those of ``reference``, and the
    first voxel at the origin.
    """
    sides = np.abs(affine[:3, :3])
    upright = np.allclose(sides, np.diag(np.diag(sides)), atol=1e-6)
    unit = np.allclose(np.diag(sides), 1, atol=1e-6)
    same = np.allclose(np.diag(sides), spacing_of(reference), rtol=1e-4)
    return bool(upright and (unit or same) and np.allclose(affine[:3, 3], 0, atol=1e-6))


def canonical_affine(affine: Affine, shape: tuple[int, ...]) -> Affine:
    """Return the affine after ``to_canonical``, for an image of ``shape`` (X, Y, Z)."""
    result: Affine = affine @ inv_ornt_aff(io_orientation(affine), shape)
    return result


def to_canonical(data: NDArray[Any], affine: Affine) -> NDArray[Any]:
    """Flip and permute ``data`` (X, Y, Z) to the axes nearest to RAS+; a view, exact."""
    result: NDArray[Any] = apply_orientation(data, io_orientation(affine))
    return result


def from_canonical(data: NDArray[Any], affine: Affine) -> NDArray[Any]:
    """Undo ``to_canonical``; ``affine`` is the one of the original image."""
    canonical = np.array([[0, 1], [1, 1], [2, 1]])
    back = ornt_transform(canonical, io_orientation(affine))
    result: NDArray[Any] = apply_orientation(data, back)
    return result


def bounding_box(mask: NDArray[np.bool_], margin: tuple[int, int, int]) -> Box:
    """Return the box of a mask that is not empty, widened by ``margin`` voxels inside the field."""
    box = []
    for axis, extra in enumerate(margin):
        others = tuple(other for other in range(3) if other != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        box.append(slice(max(0, hit[0] - extra), min(mask.shape[axis], hit[-1] + 1 + extra)))
    return box[0], box[1], box[2]


def crop_affine(affine: Affine, box: Box) -> Affine:
    """Return the affine of ``data[box]``."""
    result = affine.copy()
    result[:3, 3] = affine[:3, :3] @ [side.start for side in box] + affine[:3, 3]
    return result


class Resampling:
    """From one grid to an isotropic grid with the same axes and the same centre.

    The new grid covers the old one, voxels' full width counted. ``changes`` is false when the
    spacing already fits; the methods then return their input.
    """

    def __init__(self, shape: tuple[int, ...], affine: Affine, spacing_mm: float) -> None:
        old = spacing_of(affine)
        self.changes = bool(np.abs(old - spacing_mm).max() >= SAME_MM)
        if not self.changes:
            self.shape, self.affine = shape, affine
            return
        self._scale = spacing_mm / old
        sides = np.maximum(1, np.ceil(np.array(shape) / self._scale - 1e-6)).astype(int)
        self.shape = tuple(int(side) for side in sides)
        self._offset = (np.array(shape) - 1) / 2 - (sides - 1) / 2 * self._scale
        step = np.eye(4)
        step[:3, :3] = np.diag(self._scale)
        step[:3, 3] = self._offset
        self.affine = affine @ step

    def image(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        """Resample linearly, smoothed first along the axes that become coarser.

        The Gaussian turns a voxel's width into the new one's: FWHM**2 = new**2 - old**2
        (Cardoso et al. 2015, "Scale factor point spread function matching", MICCAI).
        """
        if not self.changes:
            return data
        sigma = np.sqrt(np.maximum(self._scale**2 - 1, 0)) / FWHM_PER_SIGMA
        if (sigma > 0.1).any():
            data = ndimage.gaussian_filter(data, sigma, mode="constant", truncate=3.0)
        return self._linear(data)

    def mask(self, data: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Resample linearly and keep what is inside by at least half; no smoothing.

        A mask is not smoothed: that would erase small lesions, which an interpolated threshold
        keeps about as often as their volume says.
        """
        if not self.changes:
            return data
        inside: NDArray[np.bool_] = self._linear(data.astype(np.float32)) >= 0.5
        return inside

    def _linear(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        return linear(data, scale=self._scale, offset=self._offset, shape=self.shape)


def linear(
    data: NDArray[np.float32],
    *,
    scale: NDArray[np.float64],
    offset: NDArray[np.float64],
    shape: tuple[int, ...],
) -> NDArray[np.float32]:
    """Sample ``data`` at index ``scale * i + offset`` for each index i of ``shape``.

    Between voxel centres linearly; beyond the outermost centres, the outermost value.
    """
    result: NDArray[np.float32] = ndimage.affine_transform(
        data,
        scale,
        offset=offset,
        output_shape=shape,
        output=np.float32,
        order=1,
        mode="nearest",
        prefilter=False,
    )
    return result


def shrink(
    data: NDArray[Any], affine: Affine, factors: NDArray[np.int_]
) -> tuple[NDArray[np.float32], Affine]:
    """Average blocks of ``factors`` voxels; what does not fill a block at an end is left out."""
    factors = np.minimum(factors, data.shape)
    x, y, z = np.array(data.shape) // factors
    i, j, k = factors
    blocks = data[: x * i, : y * j, : z * k].reshape(x, i, y, j, z, k)
    step = np.diag([*factors, 1.0])
    step[:3, 3] = (factors - 1) / 2
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32), affine @ step


def sample(
    data: NDArray[np.float32],
    to_data: Affine,
    shape: tuple[int, ...],
    *,
    smooth: bool,
    outside: float | None = None,
) -> NDArray[np.float32]:
    """Sample ``data`` linearly where ``to_data`` takes each index of ``shape``, any rotation.

    ``smooth`` widens voxels that become coarser as ``Resampling.image`` does. Beyond the field is
    ``outside``, or the outermost value if that is None.
    """
    if smooth:
        sigma = np.sqrt(np.maximum(_widths(to_data) ** 2 - 1, 0)) / FWHM_PER_SIGMA
        if (sigma > 0.1).any():
            data = ndimage.gaussian_filter(data, sigma, mode="nearest", truncate=3.0)
    result: NDArray[np.float32] = ndimage.affine_transform(
        data,
        to_data[:3, :3],
        offset=to_data[:3, 3],
        output_shape=shape,
        output=np.float32,
        order=1,
        mode="nearest" if outside is None else "constant",
        cval=outside or 0.0,
        prefilter=False,
    )
    return result


def _widths(to_data: Affine) -> NDArray[np.float64]:
    """Return how many voxels of the data a step of the new grid is wide along each of its axes."""
    widths: NDArray[np.float64] = np.abs(to_data[:3, :3]).max(axis=1)
    return widths


def within(
    to_data: Affine, data_shape: tuple[int, ...], shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Return which indices of ``shape`` fall into the field of the data, voxels' width counted."""
    inside = np.ones(shape, bool)
    x, y, z = (np.arange(n, dtype=np.float64) for n in shape)
    for row, side in zip(to_data[:3], data_shape, strict=True):
        place = (row[0] * x)[:, None, None] + (row[1] * y)[:, None] + (row[2] * z + row[3])
        inside &= (place >= -0.5 - 1e-4) & (place <= side - 0.5 + 1e-4)
    return inside
