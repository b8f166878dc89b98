"""Brains: the MNI152 template, and one subject's own shape of it.

The template's tissue maps are those of the ICBM 2009a symmetric average brain (Fonov et al. 2009),
read from the files that nilearn's wheel carries; nilearn itself is not imported. They are loaded
once per process and resolution. A subject is the template under a random affine and smooth warp,
with its own ventricles, sulci and white-matter lesions; mass effect pushes tissue off a centre.

Invariant: the tissue fractions of a subject lie in 0..1 and add up to at most 1 in each voxel.
Out of scope: tumours (``tumour``) and images (``scanner``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.phantoms.random_fields import Array, Grid, ramp, smooth_field
from common.errors import StateError

_FILE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_MM_PER_VOXEL = 1.0
_FIT = np.array([0.97, 0.97, 0.94])  # the average brain is larger than life; keep it in the field


@dataclass(frozen=True)
class Template:
    """Tissue maps around the brain's centre.

    ``maps`` holds the fractions gm, wm and csf, and signed distances in mm: depth below the
    brain's surface (negative outside) and ventricle, to their wall (negative inside). ``sites``
    holds, for each lobe, the points (n, 3) in mm from the centre where a tumour may start: deep
    white matter above the tentorium.
    """

    spacing_mm: float
    maps: dict[str, Array]
    sites: tuple[Array, ...]

    def sample(self, points: Array, *names: str) -> dict[str, Array]:
        """Interpolate the named maps, or all, at points (3, ...) in mm from the centre."""
        centre = (np.array(self.maps["depth"].shape) - 1) / 2
        voxels = points / self.spacing_mm + centre.reshape(3, 1, 1, 1)
        outside = {"ventricle": 99.0, "depth": -99.0}
        return {
            name: ndimage.map_coordinates(
                self.maps[name], voxels, order=1, cval=outside.get(name, 0.0), output=np.float32
            )
            for name in names or self.maps
        }


@dataclass(frozen=True)
class Push:
    """Mass effect: tissue within about ``radius_mm`` of a template point moves outwards."""

    centre_mm: Array
    radius_mm: float
    strength: float


@dataclass(frozen=True)
class Anatomy:
    """One subject: tissue fractions, signed distances in mm, and each voxel's template point."""

    tissue: dict[str, Array]
    depth_mm: Array
    """Distance below the brain's surface; negative outside."""
    ventricle_mm: Array
    """Distance to the ventricles; negative inside."""
    origin_mm: Array
    """Template point that each voxel came from, shape (3, X, Y, Z)."""


def load_template(spacing_mm: float) -> Template:
    """Return the template at a resolution that suits images of ``spacing_mm``.

    Raises StateError when nilearn's files are not installed.
    """
    return _load(max(1, round(spacing_mm / 1.5)))


@lru_cache(maxsize=2)
def _load(factor: int) -> Template:
    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise StateError(
            "The brain template for phantoms is missing: nilearn is not installed.",
            do="Install gliofed with its site extra: pip install 'gliofed[site]'.",
            code="phantom-template",
        )
    folder = Path(spec.origin).parent / "datasets" / "data"
    raw = {name: _read(folder / _FILE.format(name)) for name in ("t1", "gm", "wm")}
    inside = np.argwhere(raw["t1"] > 0)
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    pad = [(3 * factor, 3 * factor + int(a - b) % factor) for a, b in zip(low, high, strict=True)]

    mask = np.pad(raw["t1"][box] > 0, pad)
    inner: Array = mask.astype(np.float32)
    gm, wm = (np.pad(raw[name][box], pad) * (inner / np.float32(255)) for name in ("gm", "wm"))
    likely = np.stack([gm, wm, np.clip(inner - gm - wm, 0, 1)])
    # An average of many brains is blurred; squaring the probabilities gives one brain's borders.
    sharp = likely**2
    sharp /= np.maximum(sharp.sum(axis=0), np.float32(1e-6))
    gm, wm, csf = (_shrink(tissue, factor) for tissue in sharp)
    # The opening cuts off what the template's mask keeps of the orbits.
    rounds = max(2, 6 // factor)
    brain: NDArray[np.bool_] = ndimage.binary_opening(
        _shrink(inner, factor) > 0.5, iterations=rounds
    )
    spacing = factor * _MM_PER_VOXEL
    depth = _signed_distance(brain, spacing)
    ventricle = (csf > 0.5) & (depth > 18)
    maps: dict[str, Array] = {
        "gm": gm * brain,
        "wm": wm * brain,
        "csf": csf * brain,
        "depth": depth,
    }
    maps["ventricle"] = _signed_distance(~ventricle, spacing)
    return Template(spacing, maps, _sites(maps, spacing))


def _read(path: Path) -> NDArray[np.uint8]:
    image = nibabel.as_closest_canonical(nibabel.load(path))
    data: NDArray[np.uint8] = np.asanyarray(image.dataobj)
    return data


def _shrink(values: Array, factor: int) -> Array:
    """Average blocks of ``factor`` voxels along each axis."""
    x, y, z = (n // factor for n in values.shape)
    blocks = values.reshape(x, factor, y, factor, z, factor)
    result: Array = blocks.mean(axis=(1, 3, 5), dtype=np.float32)
    return result


def _signed_distance(mask: NDArray[np.bool_], spacing_mm: float) -> Array:
    """Return the distance in mm to the border of ``mask``, positive inside it."""
    inside = ndimage.distance_transform_edt(mask)
    outside = ndimage.distance_transform_edt(~mask)
    result: Array = ((inside - outside) * spacing_mm).astype(np.float32)
    return result


def _sites(maps: dict[str, Array], spacing_mm: float) -> tuple[Array, ...]:
    """Return the possible tumour centres in frontal, temporal, parietal and occipital lobe."""
    shape = maps["depth"].shape
    index = np.argwhere((maps["wm"] > 0.6) & (maps["depth"] > 12) & (maps["ventricle"] > 4))
    inside = np.argwhere(maps["depth"] > 0)
    low, high = inside.min(axis=0), inside.max(axis=0)
    x, y, z = ((index - low) / (high - low)).T
    lateral = abs(x - 0.5) > 0.12
    lobes = (
        (y > 0.58) & (z > 0.42),
        (z > 0.25) & (z <= 0.5) & (y > 0.4) & (abs(x - 0.5) > 0.24),
        (y <= 0.58) & (y > 0.28) & (z > 0.55),
        (y <= 0.28) & (z > 0.38),
    )
    points = ((index - (np.array(shape) - 1) / 2) * spacing_mm).astype(np.float32)
    return tuple(points[lobe & lateral] for lobe in lobes)


def grow_anatomy(
    template: Template, grid: Grid, rng: np.random.Generator, *, age: float, push: Push | None
) -> Anatomy:
    """Return one subject; ``rng`` decides on everything but ``age`` and the mass effect."""
    origin = _warp(grid, rng)
    if push is not None:
        offset = origin - push.centre_mm.reshape(3, 1, 1, 1)
        reach = (offset**2).sum(axis=0) / np.float32((1.7 * push.radius_mm) ** 2)
        skull = np.clip(template.sample(origin, "depth")["depth"] / 15, 0, 1)  # does not yield
        origin = origin - offset * (np.float32(push.strength) * np.exp(-reach) * skull)
    maps = template.sample(origin)
    spacing = grid.spacing_mm
    depth = maps["depth"]
    brain = ramp(depth, spacing)
    gm, wm, csf = maps["gm"], maps["wm"], maps["csf"]

    # Atrophy: the ventricles' wall moves outwards and the sulci widen.
    widen = np.float32(rng.uniform(0.0, 1.0) + 3.5 * age)
    hollow = ramp(widen - maps["ventricle"], 2.0)
    fold = np.abs(smooth_field(grid.shape, spacing, 9.0, rng))
    sulci = np.clip(1 - fold / np.float32(0.25), 0, 1) * np.clip(1 - depth / 16, 0, 1)
    csf = np.maximum(np.maximum(csf, hollow), sulci * np.float32(0.3 + 0.5 * age) * (gm > 0.2))
    keep = (brain - np.minimum(csf, brain)) / np.maximum(gm + wm, 1e-6)
    keep = np.minimum(keep, 1)
    gm, wm = gm * keep, wm * keep

    # White-matter lesions of age: caps on the ventricles and spots, bright like oedema.
    wall = maps["ventricle"] - widen
    caps = np.clip(1 - wall / np.float32(2 + 6 * age), 0, 1) * np.float32(0.2 + 0.6 * age)
    caps = caps * np.clip(0.6 + 0.5 * smooth_field(grid.shape, spacing, 11.0, rng), 0, 1)
    spots = np.clip(smooth_field(grid.shape, spacing, 7.0, rng) - np.float32(3.2 - 0.9 * age), 0, 1)
    wmh = np.clip(caps + spots * (depth > 8), 0, 1) * wm
    tissue = {"csf": np.minimum(csf, brain), "gm": gm, "wm": wm - wmh, "wmh": wmh}
    return Anatomy(tissue, depth, wall, origin)


def _warp(grid: Grid, rng: np.random.Generator) -> Array:
    """Return the template point of each voxel: random pose, size, side and smooth warp."""
    angles = np.deg2rad(rng.uniform(-7, 7, 3))
    scale = _FIT * rng.uniform(0.93, 1.0) * (1 + rng.uniform(-0.03, 0.03, 3))
    matrix = rotation(angles) @ np.diag(rng.choice([-1, 1]) * np.array([1, 0, 0]) + [0, 1, 1])
    matrix = matrix / scale.reshape(3, 1)
    shift = rng.uniform(-3, 3, 3).astype(np.float32).reshape(3, 1, 1, 1)
    points = grid.points() - shift
    warped = np.einsum("ij,jxyz->ixyz", matrix.astype(np.float32), points)
    amplitude = np.float32(rng.uniform(1.5, 3.5))
    for axis in warped:
        axis += amplitude * smooth_field(grid.shape, grid.spacing_mm, 38.0, rng)
        axis += np.float32(0.8) * smooth_field(grid.shape, grid.spacing_mm, 15.0, rng)
    result: Array = warped.astype(np.float32)
    return result


def rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation by three angles in radians about x, y and z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    product: NDArray[np.float64] = about_x @ about_y @ about_z
    return product
