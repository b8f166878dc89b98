"""A head with a tumour in the right frontal lobe, as volumes and as the network sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from client.cohort.quality.case_measurements import CaseMeasures, measure
from client.imaging.missing_sequences import blank
from client.imaging.nifti import Volume
from client.imaging.preprocessing import Prepared
from common.regions import MODALITIES

SHAPE = (48, 56, 44)
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])


@dataclass
class Head:
    """Images (X, Y, Z) in RAS by sequence, and labels: change them, then ask for measures."""

    images: dict[str, Any]
    labels: Any
    affine: Any

    def prepared(self) -> Prepared:
        nothing = np.zeros_like(self.labels)
        stack = np.stack([self.images.get(name, nothing) for name in MODALITIES])
        scored = np.where(stack != 0, (stack - 500) / 100, 0).astype(np.float32)
        blank(scored, tuple(name in self.images for name in MODALITIES))
        x, y, z = self.labels.shape
        return Prepared(scored, self.labels, self.affine, (x, y, z), self.affine, ())

    def volumes(self) -> dict[str, Volume]:
        return {name: Volume(image, self.affine) for name, image in self.images.items()}

    def measures(self, name: str = "case", patient: str = "patient") -> CaseMeasures:
        return measure(name, patient, self.volumes(), self.prepared())


MakeHead = Callable[..., Head]


def make(*, seed: int = 0, noise: float = 10.0) -> Head:
    rng = np.random.default_rng(seed)
    x, y, z = np.indices(SHAPE)
    brain = ((x - 24) / 20) ** 2 + ((y - 28) / 24) ** 2 + ((z - 22) / 18) ** 2 < 1
    folds = 60 * np.sin(x / 3 + seed) * np.cos(y / 4) * np.sin(z / 3)
    near = np.sqrt((x - 34) ** 2 + (y - 38) ** 2 + (z - 24) ** 2)
    labels = np.zeros(SHAPE, np.uint8)
    labels[near < 6] = 2
    labels[near < 4] = 3
    labels[near < 2] = 1
    images = {
        name: ((500 + folds + 80 * labels + rng.normal(0, noise, SHAPE)) * brain).astype(np.float32)
        for name in MODALITIES
    }
    return Head(images, labels, AFFINE.copy())


@pytest.fixture
def head() -> Head:
    return make()


@pytest.fixture
def make_head() -> MakeHead:
    return make
