"""Numbers about one case that tell a good scan from a bad one. Nothing here refuses a case.

Two kinds: what the files are (grid, noise, slices that jump, a head that is cut off), and what
became of them (brain, mask, whether the sequences lie on each other). All are taken inside the
brain. None is a diagnosis of the scanner: they are there to be compared with each other.

Sources. Noise: Immerkær 1996, "Fast noise variance estimation", Computer Vision and Image
Understanding 64(2). Shift: Kuglin & Hines 1975, "The phase correlation image alignment method", on
gradients, which different sequences share.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray
from scipy import fft, ndimage

from client.cohort.quality.sequence_plausibility import Plausibility, look
from client.imaging import grid
from client.imaging.missing_sequences import NEEDED
from client.imaging.nifti import Volume
from client.imaging.preprocessing import Prepared, stripped_background
from common.regions import MODALITIES, REGIONS, labels_to_regions

_FACES: Final = ("left", "right", "posterior", "anterior", "inferior", "superior")
"""The two ends of each axis of a RAS+ grid."""

_FULL_SLICE: Final = 0.5
"""Of the largest slice's brain, what a slice has to have to be compared with its neighbours."""

_HEAD_SHARE: Final = 0.75
"""Of a volume, what is not 0 if the head was not stripped: the noise in the air is not."""

_SKETCH: Final = 12
"""Voxels along each side of the coarse copy by which the same head is known again."""

_SHIFT_GRID_MM: Final = 2.0
"""A shift is looked for on about this grid: a finer one costs eight times the memory and time."""

_MOST_SHIFT_MM: Final = 40.0
"""No farther is looked for a shift: sequences of one session do not lie farther apart."""

_IMMERKAER: Final = np.outer((1, -2, 1), (1, -2, 1)).astype(np.float32)


@dataclass(frozen=True)
class SequenceMeasures:
    """What one sequence's file is like."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    orientation: str
    snr: float
    """Mean in the brain over the standard deviation of the noise; NaN where it cannot be told."""
    slice_jump: float
    """The largest leap of brightness between neighbouring slices, as a share of the brightness,
    beyond what their other neighbours let expect."""
    shift_mm: float
    """How far the sequence lies from the case's reference, to 2 mm or whole voxels if they are
    larger; 0 for that one."""


@dataclass(frozen=True)
class MaskMeasures:
    """What the tumour mask is like."""

    volume_ml: dict[str, float]
    """Of each region."""
    parts: int
    """Connected parts of the whole tumour."""
    outside_brain: float
    """Share of the whole tumour that lies where no sequence shows anything."""


@dataclass(frozen=True)
class CaseMeasures:
    """One case. ``name`` and ``patient`` stay in the hospital.

    ``sequences`` are those that are there; ``reference`` is t1c, or t2f where that is missing.
    """

    name: str
    patient: str
    sequences: dict[str, SequenceMeasures]
    brain_ml: float
    cut_off: dict[str, float]
    """Sides at which the brain touches the field's end, with the share of its largest slice."""
    mask: MaskMeasures | None
    voxels_sha256: str
    sketch: NDArray[np.float32]
    """A coarse copy of the reference, of mean 0 and length 1: of one reference, equal heads have a
    dot product of 1."""
    missing: tuple[str, ...] = ()
    reference: str = "t1c"
    plausibility: Plausibility = field(default_factory=Plausibility)


def measure(
    name: str, patient: str, volumes: Mapping[str, Volume], prepared: Prepared
) -> CaseMeasures:
    """Return the measures of a case from its ``volumes``, by sequence, and what they became."""
    inside = (prepared.image != 0).any(axis=0)
    reference = next(one for one in NEEDED if one in volumes)
    first = prepared.image[MODALITIES.index(reference)]
    spacing = grid.spacing_of(prepared.affine)
    volumes = {one: _brain_of(volume, inside, prepared.affine) for one, volume in volumes.items()}
    return CaseMeasures(
        name=name,
        patient=patient,
        sequences={
            one: _sequence(
                volume,
                shift_mm=_shift_mm(first, prepared.image[MODALITIES.index(one)], spacing)
                if one != reference
                else 0.0,
            )
            for one, volume in volumes.items()
        },
        brain_ml=round(float(inside.sum() * np.prod(spacing)) / 1000, 1),
        cut_off=_cut_off(volumes[reference]),
        mask=None if prepared.labels is None else _mask(prepared.labels, inside, spacing),
        voxels_sha256=hashlib.sha256(np.ascontiguousarray(prepared.image).data).hexdigest(),
        sketch=_sketch(first),
        missing=tuple(one for one in MODALITIES if one not in volumes),
        reference=reference,
        plausibility=look(prepared.image, tuple(volumes), prepared.labels, prepared.affine),
    )


def _brain_of(volume: Volume, inside: NDArray[np.bool_], affine: grid.Affine) -> Volume:
    """Return a whole head with everything but the brain set to 0; a stripped one as it is.

    How the head moved between sequences is left out: a few millimetres do not matter here.
    """
    volume = Volume(stripped_background(volume.data)[0], volume.affine)
    if np.count_nonzero(volume.data) < _HEAD_SHARE * volume.data.size:
        return volume
    to_inside = np.linalg.inv(affine) @ volume.affine
    brain = ndimage.affine_transform(
        inside.astype(np.uint8), to_inside, output_shape=volume.data.shape, order=0
    )
    return Volume(volume.data * brain, volume.affine)


def _sequence(volume: Volume, *, shift_mm: float) -> SequenceMeasures:
    x, y, z = volume.spacing_mm
    across = int(np.argmax(volume.spacing_mm))
    slices = np.moveaxis(volume.data, across, 0)
    # Of a grid that was resampled to cubes nobody knows any more how it was acquired.
    cubes = max(volume.spacing_mm) - min(volume.spacing_mm) < grid.SAME_MM
    ways = [np.moveaxis(volume.data, axis, 0) for axis in range(3)] if cubes else [slices]
    return SequenceMeasures(
        shape=tuple(volume.data.shape),
        spacing_mm=(round(x, 3), round(y, 3), round(z, 3)),
        orientation="".join(aff2axcodes(volume.affine)),
        snr=_snr(slices),
        slice_jump=max(map(_slice_jump, ways)),
        shift_mm=shift_mm,
    )


def _snr(slices: NDArray[np.float32]) -> float:
    """Return mean over noise; slices are (N, ., .), and 0 is no brain."""
    noise, values = 0.0, 0
    for one in slices:
        inside = ndimage.binary_erosion(one != 0, iterations=2)
        if inside.any():
            noise += float(np.abs(ndimage.convolve(one, _IMMERKAER)[inside]).sum())
            values += int(inside.sum())
    brain = slices[slices != 0]
    if not values or not noise:
        return math.nan
    return round(float(brain.mean()) / (math.sqrt(math.pi / 2) / 6 * noise / values), 2)


def _slice_jump(slices: NDArray[np.float32]) -> float:
    """Return the largest second difference of the slices' log brightness, but for the ends."""
    area = (slices != 0).sum(axis=(1, 2))
    full = np.flatnonzero(area >= _FULL_SLICE * area.max())
    if len(full) < 4:
        return 0.0
    levels = np.array([np.median(one[one != 0]) for one in slices[full[0] : full[-1] + 1]])
    if not (levels > 0).all():
        return 0.0
    return round(float(np.abs(np.diff(np.log(levels), 2)).max()) / 2, 4)


def _cut_off(volume: Volume) -> dict[str, float]:
    brain = grid.to_canonical(volume.data, volume.affine) != 0
    found = {}
    for axis in range(3):
        area = brain.sum(axis=tuple({0, 1, 2} - {axis}))
        for end, side in ((0, _FACES[2 * axis]), (-1, _FACES[2 * axis + 1])):
            if area[end]:
                found[side] = round(float(area[end] / area.max()), 3)
    return found


def _shift_mm(
    fixed: NDArray[np.float32], moving: NDArray[np.float32], spacing_mm: NDArray[np.float64]
) -> float:
    """Return how far ``moving`` lies from ``fixed``, both (X, Y, Z) on one grid."""
    stride = max(1, int(_SHIFT_GRID_MM / float(spacing_mm.min()) + 1e-3))
    spacing_mm = spacing_mm * stride
    edges = [
        np.asarray(ndimage.gaussian_gradient_magnitude(one, float(stride)))[
            ::stride, ::stride, ::stride
        ]
        for one in (fixed, moving)
    ]
    # Twice as wide, so that what leaves on one side does not come in on the other.
    sides = [fft.next_fast_len(2 * n, real=True) for n in edges[0].shape]
    a, b = (fft.rfftn(one - one.mean(), sides) for one in edges)
    cross = a * np.conj(b)
    surface = fft.irfftn(cross / np.maximum(np.abs(cross), 1e-9), sides)
    surface = ndimage.gaussian_filter(surface, 1.0, mode="wrap")
    steps = [fft.fftfreq(n, 1 / n) for n in sides]
    mm = [step * size for step, size in zip(steps, spacing_mm, strict=True)]
    x, y, z = np.ix_(*mm)
    distance = np.sqrt(x**2 + y**2 + z**2)
    best = np.where(distance <= _MOST_SHIFT_MM, surface, -np.inf).argmax()
    return round(float(distance.ravel()[best]), 2)


def _mask(
    labels: NDArray[np.uint8], inside: NDArray[np.bool_], spacing_mm: NDArray[np.float64]
) -> MaskMeasures:
    masks = dict(zip(REGIONS, labels_to_regions(labels), strict=True))
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    whole = masks["WT"]
    size = int(whole.sum())
    return MaskMeasures(
        volume_ml={name: round(int(mask.sum()) * voxel_ml, 3) for name, mask in masks.items()},
        parts=int(ndimage.label(whole, np.ones((3, 3, 3)))[1]),
        outside_brain=round(int((whole & ~inside).sum()) / size, 4) if size else 0.0,
    )


def _sketch(image: NDArray[np.float32]) -> NDArray[np.float32]:
    shape = np.array(image.shape)
    smooth = ndimage.gaussian_filter(image, shape / _SKETCH / 2)
    coarse = ndimage.zoom(smooth, _SKETCH / shape, order=1)
    coarse = coarse - coarse.mean()
    result: NDArray[np.float32] = (coarse / max(1e-9, float(np.linalg.norm(coarse)))).ravel()
    return result.astype(np.float32)
