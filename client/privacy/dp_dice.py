"""Mean Dice scores under differential privacy, for sites that let no exact score leave.

Each patient gives one vector: its score in each region minus a half, and a half. Its L2 norm is at
most 1, so that one patient more or less moves the sum by at most 1 (adjacency: add or remove one
patient). The sum with Gaussian noise of ``noise_multiplier`` is what is released, as means: sums
over the noised number of patients, which is twice the last entry.

Out of scope: the ledger, which the caller charges with ``Mechanism(noise_multiplier, 1.0)`` first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import torch

from client.privacy.dp_sgd import clipped_sum
from client.privacy.secure_noise import RandomBytes, SystemRandom, noise
from common.regions import REGIONS

SENSITIVITY: Final = 1.0
"""Most that one patient moves the sum, in the L2 norm: sqrt(3 / 4 + 1 / 4)."""


class NoisedDice(NamedTuple):
    """Mean score of each region, and about the standard deviation of the noise in it."""

    dice: dict[str, float]
    deviation: float


def noised_dice(
    patients: Sequence[Mapping[str, float | None]],
    *,
    noise_multiplier: float,
    entropy: RandomBytes | None = None,
) -> NoisedDice:
    """Return the noised means over the patients' scores, each from 0 to 1 or None.

    No patient is a result too: of noise alone. ``entropy`` is the operating system's if it is None,
    as it must be outside tests.
    """
    vectors = [
        torch.tensor([*(_centred(scores.get(region)) for region in REGIONS), 0.5]).double()
        for scores in patients
    ]
    total, _ = clipped_sum(
        vectors, torch.zeros(len(REGIONS) + 1).double(), clipping_norm=SENSITIVITY
    )
    total += noise(
        entropy or SystemRandom(),
        len(REGIONS) + 1,
        noise_multiplier=noise_multiplier,
        clipping_norm=SENSITIVITY,
    )
    *sums, halves = total.tolist()
    count = max(1.0, 2 * halves)
    means = {
        region: round(min(1.0, max(0.0, 0.5 + value / count)), 3)
        for region, value in zip(REGIONS, sums, strict=True)
    }
    # The noise of the sum and, for a mean at the edge, as much again from that of the count.
    return NoisedDice(means, round(math.sqrt(2) * noise_multiplier / count, 3))


def _centred(score: float | None) -> float:
    return 0.0 if score is None else min(1.0, max(0.0, score)) - 0.5
