"""What the checks compute on: a network, patients with scans as large as a crop, and options."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.networks.registry import build
from client.privacy.secure_noise import RandomBytes
from client.training.crops import Patient
from common.study.protocol import NetworkOptions, PrivacyOptions, TrainingOptions

PATIENTS: Final = 4
CROPS: Final = 2
CLIPPING_NORM: Final = 0.5
NOISE_MULTIPLIER: Final = 1.0


@dataclass(frozen=True)
class Scale:
    """How large the checks are."""

    size: str
    """Of the network whose results are compared."""
    side: int
    """Of a crop, in voxels, where results are compared."""
    cost_side: int
    """Of a crop, in voxels, where time and memory are measured, of a network of size ``base``."""
    volume: tuple[int, int, int]
    """That is predicted where time and memory are measured."""
    turns: int
    """Timed steps; one more goes before them."""


@dataclass(frozen=True)
class Scan:
    """A prepared case of noise, with a ball of tumour that is bright in every channel."""

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]


def scan(seed: int, shape: tuple[int, int, int]) -> Scan:
    rng = np.random.default_rng(seed)
    grids = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    centre = rng.uniform(-0.3, 0.3, 3)
    distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(grids, centre, strict=True)))
    labels = np.select([distance < 0.25, distance < 0.4, distance < 0.6], [1, 3, 2])
    image = rng.normal(0, 0.3, (4, *shape)) + labels
    return Scan(image.astype(np.float32), labels.astype(np.uint8))


def patients(side: int) -> list[Patient]:
    scans = [scan(seed, (side, side, side)) for seed in range(PATIENTS)]
    return [(partial(_given, one),) for one in scans]


def _given(one: Scan) -> Scan:
    return one


def network(size: str) -> torch.nn.Module:
    return build(NetworkOptions.model_validate({"size": size}), seed=0)


def training(side: int, *, steps: int = 1) -> TrainingOptions:
    """Return plain steps: what an update is, is then linear in the gradients."""
    return TrainingOptions(
        local_steps=steps,
        crop_size=(side, side, side),
        crops_per_patient=CROPS,
        patients_per_step=PATIENTS,
        optimizer="sgd",
        momentum=0.0,
        learning_rate=0.1,
    )


def privacy(
    *, noise_multiplier: float = NOISE_MULTIPLIER, sampling_rate: float = 0.75
) -> PrivacyOptions:
    return PrivacyOptions(
        noise_multiplier=noise_multiplier,
        clipping_norm=CLIPPING_NORM,
        sampling_rate=sampling_rate,
        nominal_patients=PATIENTS,
    )


def seeded(seed: int) -> RandomBytes:
    """Return entropy that anybody can foresee: for a comparison, never for a patient."""
    return np.random.default_rng(seed).bytes


def flat(update: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    return np.concatenate([array.ravel() for array in update.values()]).astype(np.float64)


def apart(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Return the length of the difference over that of ``expected``; infinite if not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
