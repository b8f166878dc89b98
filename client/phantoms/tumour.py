"""Gliomas: a plan drawn from a hospital's case mix, and its growth in one subject's brain.

The core is a noise-perturbed ellipsoid that avoids ventricles and prefers white matter. Oedema is
the region that a front reaches first which leaves the core fast along white matter and slowly
through cortex, after the anisotropic invasion models of glioma (Swanson et al. 2000, Clatz et al.
2005), here solved by relaxation of arrival times.

Invariants: labels are nested by construction (enhancing rim inside the core inside the whole);
nothing grows outside the brain or in a ventricle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.phantoms.anatomy import Anatomy, Push, Template
from client.phantoms.profiles import Kind, Profile
from client.phantoms.random_fields import Array, Grid, ramp, smooth_field
from common.regions import LABELS

_FAR = np.float32(1e6)
_MARCH_MM = 3.5  # arrival times are smooth, so finer grids march on every n-th voxel
_MARCH_STEPS = 24
_CORE_SHARE = {
    "gbm": (0.3, 0.55),
    "solid": (0.3, 0.6),
    "lowgrade": (0.5, 0.85),
    "multifocal": (0.25, 0.5),
}
_RIM_MM = {
    "gbm": (3.0, 6.5),
    "solid": (12.0, 22.0),
    "lowgrade": (3.0, 5.0),
    "multifocal": (3.0, 6.0),
}


@dataclass(frozen=True)
class Plan:
    """What will grow: volumes in ml, centres (n, 3) in template mm, each focus' share of size."""

    kind: Kind
    whole_ml: float
    core_ml: float
    centres_mm: Array
    shares: tuple[float, ...]
    rim_mm: float
    enhancing: bool
    push: Push


@dataclass(frozen=True)
class Tumour:
    """Labels (uint8) and the soft tissue fractions et, net, ncr and ed that replace the brain's."""

    labels: NDArray[np.uint8]
    tissue: dict[str, Array]


def plan_tumour(
    profile: Profile, kind: Kind, template: Template, rng: np.random.Generator
) -> Plan | None:
    """Draw a tumour of ``kind``; None for a healthy patient."""
    if kind == "healthy":
        return None
    whole_ml = float(np.exp(rng.uniform(*np.log(profile.tumour_ml))))
    core_ml = whole_ml * rng.uniform(*_CORE_SHARE[kind])
    weights = np.array(profile.lobes) / sum(profile.lobes)
    count = int(rng.integers(2, 4)) if kind == "multifocal" else 1
    lobes = rng.choice(len(weights), size=count, p=weights)
    centres = np.stack([rng.choice(template.sites[lobe]) for lobe in lobes])
    radius = (3 * core_ml * 1000 / (4 * np.pi)) ** (1 / 3)
    strength = rng.uniform(0.1, 0.3) if kind == "lowgrade" else rng.uniform(0.2, 0.45)
    return Plan(
        kind=kind,
        whole_ml=whole_ml,
        core_ml=core_ml,
        centres_mm=centres,
        shares=(1.0, *rng.uniform(0.45, 0.8, count - 1)),
        rim_mm=rng.uniform(*_RIM_MM[kind]),
        enhancing=kind != "lowgrade" or rng.random() < 0.3,
        push=Push(centres[0], radius, strength),
    )


def grow_tumour(
    plan: Plan, anatomy: Anatomy, grid: Grid, rng: np.random.Generator, *, growth: float = 1.0
) -> Tumour:
    """Grow ``plan`` to ``growth`` times its volume; the same ``rng`` gives the same shape."""
    fields = {mm: smooth_field(grid.shape, grid.spacing_mm, mm, rng) for mm in (18.0, 12.0, 8.0)}
    inner = _core_front(plan, anatomy, grid, rng, fields[18.0])
    open_tissue = (anatomy.depth_mm > 1) & (anatomy.ventricle_mm > 0)
    core = _smallest(inner, open_tissue, plan.core_ml * growth / grid.voxel_ml)
    inner = inner - inner[core].max()
    arrival = _arrival(core, anatomy, grid)
    arrival = arrival * np.clip(1 + 0.25 * fields[12.0], 0.3, 2) + 3 * np.abs(fields[8.0])
    reachable = open_tissue & (anatomy.tissue["csf"] < 0.6) & ~core & (arrival < _FAR / 2)
    swelling_ml = (plan.whole_ml - plan.core_ml) * growth
    oedema = _smallest(arrival, reachable, swelling_ml / grid.voxel_ml)
    edge = float(arrival[oedema].max()) if oedema.any() else 1.0

    rim = plan.rim_mm * np.clip(1 + 0.4 * fields[12.0], 0.4, 2)
    rim = np.maximum(rim, np.float32(1.1 * grid.spacing_mm))
    gaps = ramp(fields[8.0] - np.float32(1.3), 0.3)  # parts that never took up contrast agent
    soft_core = ramp(-inner, grid.spacing_mm) * open_tissue
    if plan.kind == "lowgrade":
        nodules = ramp(fields[12.0] - np.float32(1.2), 0.3) * ramp(-inner - 2, 2.0)
        enhancing = soft_core * nodules * np.float32(plan.enhancing)
        liquid = ramp(fields[8.0] - np.float32(1.2), 0.6)
    else:
        enhancing = soft_core * ramp(inner + rim, grid.spacing_mm) * (1 - gaps)
        liquid = np.clip(0.7 + 0.3 * fields[18.0] - inner / 40, 0.2, 1)

    labels = np.zeros(grid.shape, np.uint8)
    labels[_without_specks(oedema, grid)] = LABELS["ED"]
    labels[core] = LABELS["NCR"]
    labels[core & (enhancing > 0.5 * soft_core)] = LABELS["ET"]

    # Swelling fades outwards and goes on faintly beyond the border that is labelled.
    strength = np.clip(1.1 - 0.35 * arrival / edge, 0.6, 1) * ramp(edge - arrival, 0.4 * edge + 1)
    cold = soft_core - enhancing
    swollen = anatomy.tissue["wm"] + anatomy.tissue["wmh"] + 0.7 * anatomy.tissue["gm"]
    tissue = {
        "et": enhancing,
        "ncr": cold * liquid,
        "net": cold * (1 - liquid),
        "ed": strength * (1 - soft_core) * np.clip(swollen, 0, 1),
    }
    return Tumour(labels, {name: values.astype(np.float32) for name, values in tissue.items()})


def _core_front(
    plan: Plan, anatomy: Anatomy, grid: Grid, rng: np.random.Generator, noise: Array
) -> Array:
    """Return the core's level function in mm: the lower, the sooner a voxel joins the core."""
    points = grid.points()
    unit = plan.push.radius_mm
    fronts = []
    for centre, share in zip(plan.centres_mm, plan.shares, strict=True):
        miss = ((anatomy.origin_mm - centre.reshape(3, 1, 1, 1)) ** 2).sum(axis=0)
        start = points.reshape(3, -1)[:, int(miss.argmin())]
        axes, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        stretch = np.exp(rng.normal(0, 0.18, 3))
        matrix = (axes / (stretch / stretch.prod() ** (1 / 3))).astype(np.float32)
        offset = np.einsum("ji,jxyz->ixyz", matrix, points - start.reshape(3, 1, 1, 1))
        fronts.append(np.sqrt((offset**2).sum(axis=0)) - np.float32(share * unit))
    wobble = 0.2 * noise + 0.07 * smooth_field(grid.shape, grid.spacing_mm, 7.0, rng)
    reluctance = 0.2 * (1 - anatomy.tissue["wm"] - anatomy.tissue["wmh"])
    front: Array = np.min(fronts, axis=0) + np.float32(unit) * (wobble + reluctance)
    return front


def _smallest(values: Array, allowed: NDArray[np.bool_], count: float) -> NDArray[np.bool_]:
    """Return the mask of the ``count`` allowed voxels with the smallest values, at least one."""
    candidates = values[allowed]
    if candidates.size == 0:
        return np.zeros(values.shape, bool)
    rank = min(max(int(count), 1), candidates.size) - 1
    chosen: NDArray[np.bool_] = allowed & (values <= np.partition(candidates, rank)[rank])
    return chosen


def _arrival(core: NDArray[np.bool_], anatomy: Anatomy, grid: Grid) -> Array:
    """Return when a front from ``core`` arrives, in mm of white matter; large where never."""
    stride = max(1, int(_MARCH_MM / grid.spacing_mm))
    thin = (slice(None, None, stride),) * 3
    speed = anatomy.tissue["wm"] + anatomy.tissue["wmh"] + 0.25 * anatomy.tissue["gm"]
    speed = speed * (anatomy.depth_mm > 0) * (anatomy.ventricle_mm > 0)
    cost = (1 / np.maximum(speed, np.float32(0.04)))[thin] * np.float32(stride * grid.spacing_mm)
    times = np.where(core[thin], np.float32(0), _FAR)
    if not (times == 0).any():  # a core between the marched voxels
        times[tuple(axis[0] // stride for axis in np.nonzero(core))] = 0
    links = [(a, b, np.float32(d / 2) * (cost[a] + cost[b])) for a, b, d in _neighbours()]
    for _ in range(_MARCH_STEPS):
        for a, b, step in links:
            np.minimum(times[b], times[a] + step, out=times[b])
            np.minimum(times[a], times[b] + step, out=times[a])
    if stride == 1:
        return times
    where = np.meshgrid(*(np.arange(n) / stride for n in grid.shape), indexing="ij")
    full: Array = ndimage.map_coordinates(times, where, order=1, mode="nearest", output=np.float32)
    return full


def _neighbours() -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...], float]]:
    """Yield, for 13 of the 26 directions, the two shifted views and their distance."""
    ahead, behind, same = slice(1, None), slice(None, -1), slice(None)
    for step in product((-1, 0, 1), repeat=3):
        if step > (0, 0, 0):
            first = tuple({1: behind, -1: ahead, 0: same}[s] for s in step)
            second = tuple({1: ahead, -1: behind, 0: same}[s] for s in step)
            yield first, second, float(np.sqrt(sum(s * s for s in step)))


def _without_specks(
    mask: NDArray[np.bool_], grid: Grid, least_ml: float = 0.5
) -> NDArray[np.bool_]:
    """Drop connected parts smaller than ``least_ml``, which no reader would draw."""
    parts, count = ndimage.label(mask)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    large = sizes * grid.voxel_ml >= least_ml
    large[0] = False
    result: NDArray[np.bool_] = large[parts]
    return result
