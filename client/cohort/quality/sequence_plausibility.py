"""Whether a case's sequences and its mask can be what they are called: numbers, and their limits.

What nobody sees in a table of files: a T1 that was copied as the contrast-enhanced one, T1 and T2
exchanged, a mask on the wrong side, a part of the brain that holds one value. Each number is taken
inside the brain, on the network's grid thinned to about 3 mm, after what varies slowly (the coil's
field) is taken off where that matters. The limits lie between what sound cases and spoilt ones
measure; ``python -m tests.benchmarks plausibility`` counts both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.imaging import grid
from common.regions import MODALITIES

ALIKE: Final = 0.99
"""Correlation of two sequences from which on they are one: different ones stay below 0.95."""

PLATEAU: Final = 0.05
"""Share of the brain that may lie amid equal values: clipping leaves under 0.01."""

MIRRORED: Final = -0.3
"""A mask's brightness over its mirror image's, below which the mask is on the wrong side: on its
own side it is above 0.5. In standard deviations of the brain's FLAIR and T2, summed."""

EXCHANGED: Final = -0.3
"""Skewness of the T2 over that of the T1, below which they are exchanged: it is above 0.6 where
they are not, since fluid is bright in the one and dark in the other."""

_GRID_MM: Final = 3.0
_FIELD_MM: Final = 20.0
_EQUAL: Final = 1e-4
_LEAST_VOXELS: Final = 20


@dataclass(frozen=True)
class Plausibility:
    """What was measured; nan where it cannot be told."""

    alike: tuple[tuple[str, str, float], ...] = ()
    """Pairs of sequences whose correlation passes ``ALIKE``."""
    plateau: Mapping[str, float] = field(default_factory=dict)
    """Of each sequence, the share of the brain amid equal values."""
    t2_over_t1: float = float("nan")
    """Skewness of the T2 less that of the T1."""
    mask_over_mirror: float = float("nan")
    """How much brighter FLAIR and T2 are in the mask than in its mirror image."""


def look(
    image: NDArray[np.float32],
    names: Sequence[str],
    labels: NDArray[np.uint8] | None,
    affine: grid.Affine,
) -> Plausibility:
    """Measure the sequences ``names`` of a prepared ``image`` (4, X, Y, Z) and its mask."""
    spacing = grid.spacing_of(affine)
    stride = max(1, int(_GRID_MM / float(spacing.min()) + 1e-3))
    thin = (slice(None, None, stride),) * 3
    inside = (image[(slice(None), *thin)] != 0).any(axis=0)
    ones = {name: image[(MODALITIES.index(name), *thin)] for name in names}
    if np.count_nonzero(inside) < _LEAST_VOXELS:
        return Plausibility()
    sigma = _FIELD_MM / (spacing * stride)
    flat = {name: _flattened(ones[name], inside, sigma) for name in ("t1n", "t2w") if name in ones}
    whole = None if labels is None else labels[thin] > 0
    mirror = float("nan")
    if whole is not None and {"t2w", "t2f"} <= set(ones):
        fluid = flat["t2w"] + _flattened(ones["t2f"], inside, sigma)
        mirror = _over_mirror(whole & inside, fluid, inside)
    return Plausibility(
        alike=tuple(_alike(ones, inside)),
        plateau={name: round(_plateau(one, inside), 4) for name, one in ones.items()},
        t2_over_t1=round(_skewness(flat["t2w"][inside]) - _skewness(flat["t1n"][inside]), 3)
        if len(flat) == 2
        else float("nan"),
        mask_over_mirror=round(mirror, 3),
    )


def _alike(
    ones: Mapping[str, NDArray[np.float32]], inside: NDArray[np.bool_]
) -> list[tuple[str, str, float]]:
    found = []
    for a, b in combinations(ones, 2):
        values = ones[a][inside], ones[b][inside]
        if min(float(one.std()) for one in values) > 0:
            likeness = float(np.corrcoef(*values)[0, 1])
            if likeness > ALIKE:
                found.append((a, b, round(likeness, 4)))
    return found


def _plateau(one: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    """Return the share of the brain whose voxels equal their six neighbours; 0 is not seen."""
    flat = inside & (one != 0)
    padded = np.pad(one, 1, constant_values=np.nan)
    for axis in range(3):
        for start in (0, 2):
            part = [slice(1, -1)] * 3
            part[axis] = slice(start, start + one.shape[axis])
            flat &= np.abs(padded[tuple(part)] - one) < _EQUAL
    return float(np.count_nonzero(flat) / np.count_nonzero(inside))


def _flattened(
    one: NDArray[np.float32], inside: NDArray[np.bool_], sigma: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return ``one`` without what varies over more than ``sigma`` voxels, 0 outside the brain."""
    weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma)
    slow = ndimage.gaussian_filter(np.where(inside, one, 0), sigma) / np.maximum(weight, 1e-3)
    return np.where(inside, one - slow, 0).astype(np.float32)


def _skewness(values: NDArray[np.float32]) -> float:
    centred = values.astype(np.float64) - values.mean(dtype=np.float64)
    deviation = float(centred.std())
    return float((centred**3).mean()) / deviation**3 if deviation > 0 else 0.0


def _over_mirror(
    whole: NDArray[np.bool_], brightness: NDArray[np.float32], inside: NDArray[np.bool_]
) -> float:
    """Return the mean brightness of what is in ``whole`` alone less that of its mirror image alone.

    The mirror stands at the middle of the brain, across the first axis (left and right in RAS).
    """
    area = inside.sum(axis=(1, 2))
    index = np.arange(len(area))
    mirrored = np.round(2 * float(index @ area) / float(area.sum())).astype(int) - index
    there = (mirrored >= 0) & (mirrored < len(area))
    image = np.zeros_like(whole)
    image[there] = whole[mirrored[there]]
    image &= inside
    here, other = whole & ~image, image & ~whole
    if min(np.count_nonzero(here), np.count_nonzero(other)) < _LEAST_VOXELS:
        return float("nan")
    return float(brightness[here].mean() - brightness[other].mean())
