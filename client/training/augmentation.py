"""nnU-Net's augmentation of one crop, in torch, on whatever device the crop is.

Rotation and scale sample the case itself, so that what turns into the crop is anatomy, not padding;
then come noise, blur, brightness, contrast, low resolution, gamma and mirrors, with nnU-Net's
probabilities and ranges. Rotation is to 15 degrees, since a registered head is upright.

Invariants: all chance is of the generator that is handed in; what is outside the brain stays 0, a
sequence that the case lacks stays absent; a label is never interpolated.

Source: Isensee et al. 2021, Nature Methods 18, supplement, and nnU-Net v2's default training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch.nn import functional

from client.imaging.missing_sequences import ABSENT

_MARGIN: Final = 0.25
"""Of the crop's side, what is read beyond it at either end when it is turned or scaled."""

_MOST_TURN: Final = math.radians(15)
_EPSILON: Final = 1e-7


@dataclass(frozen=True)
class Turn:
    """How a crop is turned and scaled about its centre: offsets in the crop to offsets in the case,
    both in voxels."""

    matrix: np.ndarray[tuple[int, ...], np.dtype[np.float64]]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Turn | None:
        """Return a random one, or None: most crops stay as they are."""
        turned, scaled = rng.random() < 0.2, rng.random() < 0.2
        if not turned and not scaled:
            return None
        matrix = np.eye(3)
        if turned:
            for axis, angle in enumerate(rng.uniform(-_MOST_TURN, _MOST_TURN, 3)):
                matrix = matrix @ _rotation(axis, angle)
        if scaled:
            # Each voxel of the crop is so many of the case: 0.7 enlarges, 1.4 shrinks.
            matrix = matrix * rng.uniform(0.7, 1.4)
        return cls(matrix)

    @staticmethod
    def margin(crop_size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return how many voxels beyond the crop are read at either end of each axis."""
        x, y, z = (math.ceil(_MARGIN * side) for side in crop_size)
        return x, y, z

    def apply(
        self, image: torch.Tensor, regions: torch.Tensor, crop_size: tuple[int, int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the crop in the middle of ``image`` (4, X, Y, Z) and ``regions`` (3, X, Y, Z)."""
        offsets = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in crop_size]
        places = torch.stack(torch.meshgrid(*offsets, indexing="ij"), -1)
        places = places @ torch.from_numpy(self.matrix.T).float()
        # grid_sample wants the last axis first, and the outermost voxels at -1 and 1.
        half = torch.tensor([max(n - 1, 1) / 2 for n in image.shape[1:]])
        grid = (places / half).flip(-1).to(image.device)[None]
        inside = image != 0
        brain = inside.any(0)

        def sampled(values: torch.Tensor, mode: str) -> torch.Tensor:
            return functional.grid_sample(
                values[None], grid, mode=mode, padding_mode="zeros", align_corners=True
            )[0]

        nearest = sampled(torch.cat([brain[None].float(), regions.float()]), "nearest")
        there = nearest[:1] > 0
        absent = (image == ABSENT).sum((1, 2, 3)) == brain.sum()
        turned = sampled(image, "bilinear") * there
        if bool(brain.any()) and bool(absent.any()):
            turned[absent] = ABSENT * there.float()
        return turned, nearest[1:].to(regions.dtype)


def _rotation(axis: int, angle: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    a, b = (other for other in range(3) if other != axis)
    matrix = np.eye(3)
    matrix[a, a] = matrix[b, b] = math.cos(angle)
    matrix[a, b], matrix[b, a] = -math.sin(angle), math.sin(angle)
    return matrix


def recoloured(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return ``image`` (4, X, Y, Z) as another scanner might have shown it."""
    brain = (image != 0).any(0)
    if not bool(brain.any()):
        return image
    there = [
        channel for channel in range(len(image)) if bool((image[channel, brain] != ABSENT).any())
    ]
    changed = image.clone()
    noisy = rng.uniform(0, 0.1) if rng.random() < 0.1 else 0.0
    for channel in there:
        values = image[channel]
        if noisy:
            drawn = rng.standard_normal(values.shape, np.float32)
            values = values + math.sqrt(noisy) * torch.from_numpy(drawn).to(values.device)
        if rng.random() < 0.2 * 0.5:
            values = _blurred(values, rng.uniform(0.5, 1.0))
        if rng.random() < 0.15:
            values = values * rng.uniform(0.75, 1.25)
        if rng.random() < 0.15:
            values = _contrasted(values, brain, rng.uniform(0.75, 1.25))
        if rng.random() < 0.25 * 0.5:
            values = _coarse(values, rng.uniform(0.5, 1.0))
        if rng.random() < 0.1:
            values = -_bent(-values, brain, rng.uniform(0.7, 1.5))
        if rng.random() < 0.3:
            values = _bent(values, brain, rng.uniform(0.7, 1.5))
        changed[channel] = values * brain
    return changed


def mirrored(
    image: torch.Tensor, regions: torch.Tensor, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both with each axis turned round, or not."""
    axes = [axis for axis in (1, 2, 3) if rng.random() < 0.5]
    return image.flip(axes), regions.flip(axes)


def _blurred(values: torch.Tensor, sigma: float) -> torch.Tensor:
    reach = math.ceil(3 * sigma)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32, device=values.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = kernel / kernel.sum()
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = len(kernel)
        padding = [0, 0, 0]
        padding[axis] = reach
        values = functional.conv3d(
            values[None, None], kernel.reshape(shape), padding=tuple(padding)
        )[0, 0]
    return values


def _contrasted(values: torch.Tensor, brain: torch.Tensor, factor: float) -> torch.Tensor:
    """Return values further from, or nearer to, their mean, within the range that they had."""
    known = values[brain]
    mean = known.mean()
    return ((values - mean) * factor + mean).clamp(known.min(), known.max())


def _coarse(values: torch.Tensor, scale: float) -> torch.Tensor:
    """Return what a scanner with ``1 / scale`` times the voxel size would have seen."""
    low = [max(1, round(n * scale)) for n in values.shape]
    down = functional.interpolate(values[None, None], low, mode="nearest-exact")
    return functional.interpolate(down, values.shape, mode="trilinear")[0, 0]


def _bent(values: torch.Tensor, brain: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return values along a gamma curve, with the mean and deviation that they had."""
    known = values[brain]
    low, spread = known.min(), known.max() - known.min()
    mean, deviation = known.mean(), known.std(correction=0)
    bent = ((values - low) / (spread + _EPSILON)).clamp(0, 1) ** gamma * spread + low
    inside = bent[brain]
    return (bent - inside.mean()) / (inside.std(correction=0) + _EPSILON) * deviation + mean
