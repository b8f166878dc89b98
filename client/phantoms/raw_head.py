"""A phantom as the scanner wrote it: whole head, each sequence on its own grid, the patient moving.

The brain and its tumour are those of ``cases``; around them lie cerebrospinal fluid, skull, fat,
skin and a neck. The patient moves as a rigid body between sequences, each of which has its own
spacing, orientation, tilt, bias field and noise. The motion is known, so that registration can be
measured.

Out of scope: faces, motion within a sequence, distortion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.phantoms.anatomy import grow_anatomy, load_template, rotation
from client.phantoms.cases import Patient
from client.phantoms.profiles import Kind, Profile
from client.phantoms.random_fields import Array, Grid, ramp, smooth_field
from client.phantoms.scanner import mix_tissue, tissue_signals
from client.phantoms.tumour import grow_tumour, plan_tumour
from common.regions import MODALITIES

HEAD_MM: Final = (208.0, 248.0, 208.0)
"""Field in which a head is made, around the brain's centre."""

Affine = NDArray[np.float64]

_AXES: Final = MappingProxyType({"t1n": "PIR", "t1c": "LPS", "t2w": "LAS", "t2f": "RAS"})
_LAYERS_MM: Final = (2.5, 8.0, 12.5, 15.0)  # where fluid, bone, fat and skin end
_FIELD_MM: Final = np.array([200.0, 236.0, 196.0])  # what a sequence images
_TILT_DEG: Final = (10.0, 4.0, 4.0)
_FWHM_PER_SIGMA: Final = 2.355
_NAMED: Final = {
    "R": (1, 0, 0),
    "L": (-1, 0, 0),
    "A": (0, 1, 0),
    "P": (0, -1, 0),
    "S": (0, 0, 1),
    "I": (0, 0, -1),
}


@dataclass(frozen=True)
class RawCase:
    """One scan session. ``images`` maps each modality to int16 on its own grid ``affines``.

    ``labels`` (values of ``common.regions.LABELS``) and ``brain`` lie on the grid of t1c.
    ``motions[name]`` (4, 4) takes a point of the head, in mm where it lay during t1c, to where it
    lay during that sequence.
    """

    images: Mapping[str, NDArray[np.int16]]
    affines: Mapping[str, Affine]
    labels: NDArray[np.uint8]
    brain: NDArray[np.bool_]
    motions: Mapping[str, Affine]
    kind: Kind


def make_raw_case(
    profile: Profile,
    *,
    seed: int,
    number: int,
    site: int = 0,
    spacing_mm: float = 1.0,
    working_mm: float = 1.5,
    motion: float = 1.0,
) -> RawCase:
    """Return patient ``number`` of a site before any preparation.

    ``spacing_mm`` is the in-plane spacing and, where the profile's slices are thinner, that of
    the slices; anatomy is made at ``working_mm``. ``motion`` scales the patient's movement: with 1
    it is up to 6 degrees about and 6 mm along each axis. Raises StateError when the template is
    not installed.
    """
    patient = Patient(profile, seed, site, number)
    grid = Grid(round(HEAD_MM[0] / working_mm), HEAD_MM)
    template = load_template(grid.spacing_mm)
    kind = patient.kind()
    body = patient.stream("body")
    age = float(np.clip(body.normal(profile.age, 0.15), 0, 1))
    plan = plan_tumour(profile, kind, template, patient.stream("plan"))
    anatomy = grow_anatomy(template, grid, body, age=age, push=plan.push if plan else None)
    labels = np.zeros(grid.shape, np.uint8)
    growths: dict[str, Array] = {}
    if plan is not None:
        tumour = grow_tumour(plan, anatomy, grid, patient.stream("growth"))
        labels, growths = tumour.labels, tumour.tissue
    tissue = mix_tissue(anatomy, growths, grid, patient.stream("vessels"))
    brain = ndimage.binary_fill_holes(anatomy.depth_mm > 0)
    around = _shell(tissue.pop("soft"), brain, grid, patient.stream("head"))
    tissue |= around | {"csf": tissue["csf"] + around["csf"]}

    rng = patient.stream("raw")
    timings = {"t1n": profile.t1, "t1c": profile.t1, "t2w": profile.t2, "t2f": profile.flair}
    images, affines, motions = {}, {}, {}
    for name, slice_mm in zip(MODALITIES, profile.slice_mm, strict=True):
        moved = np.eye(4) if name == "t1c" else _motion(motion, rng)
        thick = max(spacing_mm, slice_mm)
        affine, shape = _placed(_AXES[name], np.array([spacing_mm, spacing_mm, thick]), rng)
        ideal = np.zeros(grid.shape, np.float32)
        for part, signal in tissue_signals(profile, name, timings[name]).items():
            if part in tissue:
                ideal += tissue[part] * np.float32(signal)
        width_mm = np.abs(affine[:3, :3]).max(axis=1)  # along the head's axes
        ideal = ndimage.gaussian_filter(ideal, width_mm / _FWHM_PER_SIGMA / grid.spacing_mm)
        seen = _seen(ideal, grid, np.linalg.inv(moved) @ affine, shape, order=1)
        images[name] = _recorded(seen, profile, affine, rng)
        affines[name], motions[name] = affine, moved
        if name == "t1c":
            mask = _seen(brain.astype(np.float32), grid, affine, shape, order=1) >= 0.5
            drawn = _seen(labels, grid, affine, shape, order=0)
    return RawCase(images, affines, drawn, mask, motions, kind)


def _shell(
    soft: Array, brain: NDArray[np.bool_], grid: Grid, rng: np.random.Generator
) -> dict[str, Array]:
    """Return what lies around the brain: fluid, bone, fat and soft tissue; beyond them is air."""
    step = grid.spacing_mm
    away = ndimage.distance_transform_edt(~brain).astype(np.float32) * np.float32(step)
    away /= np.clip(1 + 0.12 * smooth_field(grid.shape, step, 45.0, rng), 0.7, 1.3)
    x, y, z = grid.points()
    neck = np.maximum(np.hypot(x, y + 15) - 52, z + 35)
    face = np.hypot(np.hypot(x / 0.9, (y - 62) / 0.8), (z + 48) / 0.9) - 48
    fluid, bone, fat, skin = (ramp(edge - away, step) for edge in _LAYERS_MM)
    flesh = np.maximum(skin, ramp(-np.minimum(neck, face), 2.0))
    layers = {"csf": fluid, "bone": bone - fluid, "fat": fat - bone, "soft": flesh - fat}
    return {name: np.maximum(values, 0) * soft for name, values in layers.items()}


def _motion(scale: float, rng: np.random.Generator) -> Affine:
    """Return a rotation about the head's centre and a shift, in mm."""
    motion = np.eye(4)
    motion[:3, :3] = rotation(np.deg2rad(scale * rng.uniform(-6, 6, 3)))
    motion[:3, 3] = scale * rng.uniform(-6, 6, 3)
    return motion


def _placed(
    axes: str, spacing_mm: NDArray[np.float64], rng: np.random.Generator
) -> tuple[Affine, tuple[int, int, int]]:
    """Return a tilted grid around the head whose voxel axes run to ``axes``, and its shape."""
    turn = np.array([_NAMED[axis] for axis in axes], float).T
    i, j, k = np.rint(np.abs(turn.T) @ _FIELD_MM / spacing_mm).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = rotation(np.deg2rad(rng.uniform(-1, 1, 3) * _TILT_DEG)) @ turn * spacing_mm
    middle = (np.array([i, j, k]) - 1) / 2
    affine[:3, 3] = rng.uniform(-4, 4, 3) + np.array([0, 0, -8]) - affine[:3, :3] @ middle
    return affine, (int(i), int(j), int(k))


def _seen(
    values: NDArray[Any], grid: Grid, affine: Affine, shape: tuple[int, int, int], *, order: int
) -> NDArray[Any]:
    """Sample what lies on the working grid at the voxels of a sequence; air outside."""
    middle = (np.array(grid.shape) - 1) / 2
    matrix = affine[:3, :3] / grid.spacing_mm
    result: NDArray[Any] = ndimage.affine_transform(  # type: ignore[call-overload]
        values,
        matrix,
        offset=affine[:3, 3] / grid.spacing_mm + middle,
        output_shape=shape,
        output=values.dtype,
        order=order,
    )
    return result


def _recorded(
    seen: Array, profile: Profile, affine: Affine, rng: np.random.Generator
) -> NDArray[np.int16]:
    """Add the coil's field, Rician noise and the scanner's unit."""
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    field = smooth_field(seen.shape, tuple(float(mm) for mm in spacing_mm), 110.0, rng)
    seen = seen * np.exp(np.float32(profile.bias) * field)
    edge_mm = float(np.prod(spacing_mm) ** (1 / 3))
    sigma = np.float32(np.sqrt(3.75 / edge_mm) / profile.snr)
    real, imaginary = rng.standard_normal((2, *seen.shape), dtype=np.float32) * sigma
    gain = np.float32(profile.intensity * rng.uniform(0.8, 1.25))
    magnitude = np.sqrt((seen + real) ** 2 + imaginary**2) * gain
    counts: NDArray[np.int16] = np.clip(np.rint(magnitude), 0, 32767).astype(np.int16)
    return counts
