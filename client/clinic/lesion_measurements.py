"""What a clinician measures on a segmentation: lesions, their RANO diameters, on which side.

Lesions are the 26-connected parts of the enhancing tumour of at least ``SMALLEST_MM3``; where
nothing enhances, those of the whole tumour. Of each, every axial slice of the mask's own grid,
which is the native grid of the contrast-enhanced T1, gives its longest diameter and the longest
chord at a right angle to it; the slice where their product is largest counts. A diameter ends on
the outer faces of the lesion's voxels and runs from rim to rim: it crosses necrosis, and in a
curved lesion what lies between its arms. RANO does not measure cysts and surgical cavities, which
nothing here tells from necrosis.

Measurable is a lesion with both diameters of at least 10 mm, or twice the slices' distance where
that is above 5 mm, that is seen on two axial slices or more. Source: Wen et al. 2023, "RANO 2.0",
doi:10.1200/JCO.23.01059.

Out of scope: lobes, which no file here tells without an atlas, and the choice of target lesions,
which is a person's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull

from client.clinic.midline import Midline
from common.regions import LABELS, REGIONS

Labels = NDArray[np.uint8]
Affine = NDArray[np.float64]
Point = tuple[float, float, float]

SMALLEST_MM3: Final = 50.0
"""Smaller parts count as no lesion: the BraTS 2023 challenges' bound for gliomas, 50 voxels of
1 mm3 (their lesion-wise metrics, https://www.synapse.org/Synapse:syn51156910)."""

_MEASURABLE_MM: Final = 10.0
_THICK_MM: Final = 5.0
_ONE_SIDED: Final = 0.9
"""A lesion with less of its volume than this on one side lies on the midline."""

_TOUCHING: Final = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class Diameters:
    """Two diameters at right angles in one axial slice, with their ends in mm of the world (RAS).

    ``slice`` counts from 1, at the lowest slice of the grid (``count`` of them) upwards.
    """

    long_mm: float
    across_mm: float
    slice: int
    count: int
    long_ends: tuple[Point, Point]
    across_ends: tuple[Point, Point]

    @property
    def product_mm2(self) -> float:
        return self.long_mm * self.across_mm


@dataclass(frozen=True)
class Lesion:
    """``side`` is "left", "right", "midline", or None where no brain tells the midline."""

    volume_ml: float
    side: str | None
    diameters: Diameters
    measurable: bool


@dataclass(frozen=True)
class Findings:
    """``of`` is the region that was measured, ET or WT; lesions by volume, the largest first.

    ``side`` is that of all lesions, or "both" where they differ; None without lesions or midline.
    """

    of: str
    lesions: tuple[Lesion, ...]

    @property
    def side(self) -> str | None:
        sides = {one.side for one in self.lesions}
        return sides.pop() if len(sides) == 1 else "both" if sides else None

    @property
    def sum_of_products_mm2(self) -> float:
        """Over all measurable lesions."""
        return sum(one.diameters.product_mm2 for one in self.lesions if one.measurable)


def labels_ml(labels: Labels, affine: Affine) -> dict[str, float]:
    """Return the volume in mL of each label and of the regions TC and WT."""
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    parts: dict[str, tuple[int, ...]] = {name: (value,) for name, value in LABELS.items()}
    for region in ("TC", "WT"):
        parts[region] = REGIONS[region]
    return {
        name: round(float(np.isin(labels, values).sum()) * voxel_ml, 3)
        for name, values in parts.items()
    }


def findings(labels: Labels, affine: Affine, midline: Midline | None) -> Findings:
    """Return what there is to measure on a label map (X, Y, Z) on the grid ``affine``."""
    for of in ("ET", "WT"):
        found = _lesions(np.isin(labels, REGIONS[of]), affine, midline)
        if found:
            return Findings(of, found)
    return Findings("WT", ())


def _lesions(
    mask: NDArray[np.bool_], affine: Affine, midline: Midline | None
) -> tuple[Lesion, ...]:
    parts, _ = ndimage.label(mask, structure=_TOUCHING)
    voxel_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
    lesions = []
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        part = parts[box] == number
        volume_mm3 = float(np.count_nonzero(part)) * voxel_mm3
        if volume_mm3 < SMALLEST_MM3:
            continue
        start = [side.start for side in box]
        diameters, slices = _largest(part, start, affine, mask.shape)
        step_mm = abs(float(np.linalg.norm(affine[:3, axial_axis(affine)])))
        least_mm = 2 * step_mm if step_mm > _THICK_MM else _MEASURABLE_MM
        lesions.append(
            Lesion(
                volume_mm3 / 1000,
                None
                if midline is None
                else _side(_world(np.argwhere(part) + start, affine), midline),
                diameters,
                bool(diameters.across_mm >= max(least_mm, _MEASURABLE_MM) and slices >= 2),
            )
        )
    return tuple(sorted(lesions, key=lambda one: -one.volume_ml))


def axial_axis(affine: Affine) -> int:
    """Return the axis of the grid that runs most nearly from feet to head."""
    return int(np.argmax(nib.orientations.io_orientation(affine)[:, 0] == 2))


def _largest(
    part: NDArray[np.bool_], start: list[int], affine: Affine, shape: tuple[int, ...]
) -> tuple[Diameters, int]:
    """Return the diameters of a part whose box begins at ``start``, and its number of slices."""
    axis = axial_axis(affine)
    upwards = affine[2, axis] > 0
    in_plane = [one for one in range(3) if one != axis]
    # Distances hold on sheared grids too: an orthonormal basis of the plane that the axes span.
    basis, to_plane = np.linalg.qr(affine[:3, in_plane])
    planes = np.moveaxis(part, axis, 0)
    best: Diameters | None = None
    slices = np.flatnonzero(planes.any(axis=(1, 2)))
    for index in slices:
        faces = _faces(planes[index]) + [start[one] for one in in_plane]
        long, across = _chords(faces @ to_plane.T)
        if best is not None and _length(long) * _length(across) <= best.product_mm2:
            continue
        number = int(index) + start[axis]
        origin = affine[:3, 3] + affine[:3, axis] * number
        best = Diameters(
            _length(long),
            _length(across),
            number + 1 if upwards else shape[axis] - number,
            shape[axis],
            _ends(long, basis, origin),
            _ends(across, basis, origin),
        )
    if best is None:
        raise ValueError("a part without voxels has no diameter")
    return best, len(slices)


def _faces(plane: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the middles (N, 2), in voxels, of the faces between a mask and what is around it."""
    padded = np.pad(plane, 1).astype(np.int8)
    found = []
    for axis in range(2):
        where = np.argwhere(np.diff(padded, axis=axis)).astype(np.float64) - 1
        where[:, axis] += 0.5
        found.append(where)
    return np.concatenate(found)


def _chords(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the longest line (2, 2) between points (N, 2) and the hull's longest one across."""
    hull = points[ConvexHull(points).vertices]
    apart = np.linalg.norm(hull[:, None] - hull[None], axis=2)
    first, second = np.unravel_index(int(apart.argmax()), apart.shape)
    long = hull[[first, second]]
    along = (long[1] - long[0]) / _length(long)
    turned = (hull - long[0]) @ np.stack([along, [-along[1], along[0]]], axis=1)
    # The hull's width along the line is concave and bends at corners only: one of them is widest.
    upper, lower = (_edge(turned[sign * turned[:, 1] >= -1e-9]) for sign in (1, -1))
    places = turned[:, 0]
    tops, bottoms = np.interp(places, *upper), np.interp(places, *lower)
    widest = int((tops - bottoms).argmax())
    normal = np.array([-along[1], along[0]])
    foot = long[0] + places[widest] * along
    return long, np.stack([foot + tops[widest] * normal, foot + bottoms[widest] * normal])


def _edge(corners: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    order = corners[:, 0].argsort()
    return corners[order, 0], corners[order, 1]


def _length(line: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(line[1] - line[0]))


def _ends(
    line: NDArray[np.float64], basis: Affine, origin: NDArray[np.float64]
) -> tuple[Point, Point]:
    first, second = (origin + basis @ point for point in line)
    return (_point(first), _point(second))


def _point(values: NDArray[np.float64]) -> Point:
    x, y, z = (round(float(value), 2) for value in values)
    return x, y, z


def _world(voxels: NDArray[np.int64], affine: Affine) -> NDArray[np.float64]:
    world: NDArray[np.float64] = voxels @ affine[:3, :3].T + affine[:3, 3]
    return world


def _side(world: NDArray[np.float64], midline: Midline) -> str:
    right = float((midline.rightwards_mm(world) > 0).mean())
    return "right" if right >= _ONE_SIDED else "left" if right <= 1 - _ONE_SIDED else "midline"
