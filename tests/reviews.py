"""A result to review, of a phantom head on any grid, as ``segment`` leaves it, made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.clinic.result_folder import Origin, Segmentation, segment_by
from client.imaging.case import Case
from client.imaging.nifti import write_volume
from common.regions import MODALITIES
from common.trust.identity import Identity
from tests.scanners import oblique

SHAPE = (40, 36, 32)
GRIDS = {
    "RAS": np.array([[2.0, 0, 0, -40], [0, 2, 0, -36], [0, 0, 2, -32], [0, 0, 0, 1]]),
    "LPS": np.array([[-2.0, 0, 0, 40], [0, -2, 0, 36], [0, 0, 2, -32], [0, 0, 0, 1]]),
    "oblique": oblique((2.0, 1.5, 3.0)),
    "sagittal": np.array([[0, 0, 2.5, -40], [-2.0, 0, 0, 40], [0, -2, 0, 40], [0, 0, 0, 1]]),
}
"""Affines (voxel to RAS mm): straight, turned, askew with three spacings, scanned from the side."""
IDENTITY = {
    "name": "glioma",
    "version": "1.0.0",
    "round": 7,
    "weights_sha256": "ab" * 32,
    "preprocessing_sha256": "cd" * 32,
}


def head(seed: int = 0) -> NDArray[np.float32]:
    """Return an ellipsoid brain with a ventricle that is not in the middle, 0 around it."""
    grid = np.indices(SHAPE).astype(np.float32)
    middle = np.array(SHAPE, np.float32)[:, None, None, None] / 2
    far = (((grid - middle) / (0.45 * 2 * middle)) ** 2).sum(axis=0)
    image = np.where(far < 1, 400 + 60 * seed + 100 * np.cos(6 * far), 0)
    hole = (((grid - middle * [[[[0.8]]], [[[1.2]]], [[[1.0]]]]) / 4) ** 2).sum(axis=0) < 1
    noise = np.random.default_rng(seed).normal(0, 12, SHAPE)
    image = np.where(hole, 150, image + noise)
    return np.where(far < 1, np.clip(image, 1, None), 0).astype(np.float32)


def tumour() -> NDArray[np.uint8]:
    """Return the mask that "the model" draws: three shells around a place beside the middle."""
    grid = np.indices(SHAPE).astype(np.float32)
    far = np.sqrt(((grid - np.array([27, 20, 16])[:, None, None, None]) ** 2).sum(axis=0))
    return np.select([far < 2, far < 4, far < 6], [1, 3, 2], 0).astype(np.uint8)


def by(case: Case) -> tuple[Segmentation, Origin]:
    """Segment any case of that shape as ``tumour``."""
    from client.imaging.image_reading import read_image

    affine = read_image(case.images[case.reference]).affine
    doubt = np.where(tumour() == 2, 0.4, 0).astype(np.float32)
    found = Segmentation(
        tumour(),
        affine,
        uncertainty=doubt,
        range_ml={"WT": (5.0, 9.0)},
        confidence={"WT": 0.9},
        input_sha256="ef" * 32,
    )
    federation = {
        "consortium": "North",
        "private": True,
        "privacy_unit": "patient",
        "intended_use": "Research.",
        "sites": [],
    }
    return found, Origin(IDENTITY, federation, [], {}, "float32", calibrated=False, trusted=True)


def write_case(folder: Path, affine: NDArray[np.float64], name: str = "GF-00001-000") -> Path:
    """Write four sequences and return their folder."""
    folder = folder / name
    folder.mkdir(parents=True)
    for seed, sequence in enumerate(MODALITIES):
        write_volume(folder / f"{name}-{sequence}.nii.gz", head(seed), affine)
    return folder


def write_result(
    root: Path, grid: str = "RAS", *, sealer: tuple[str, Identity] | None = None
) -> Path:
    """Write a case on a grid of ``GRIDS`` and its result; return the result's folder."""
    segment_by(by, write_case(root / "case", GRIDS[grid]), root / "result", sealer=sealer)
    return root / "result"
