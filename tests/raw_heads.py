"""Raw phantom heads for tests: coarse, on disk, and prepared in seconds instead of a minute."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from client.imaging import grid, raw_preprocessing
from client.imaging.case import Case, Image
from client.imaging.label_codings import BRATS_2023
from client.imaging.nifti import Volume, write_volume
from client.imaging.registration import Registration
from client.phantoms.profiles import PROFILES
from client.phantoms.raw_head import RawCase, make_raw_case
from common.regions import MODALITIES

SPACING_MM = 4.0


@lru_cache(maxsize=4)
def head(profile: str = "reference", number: int = 2) -> RawCase:
    """Return a head with a tumour, its voxels 4 mm wide."""
    gbm = replace(PROFILES[profile], mix={"gbm": 1.0})
    return make_raw_case(gbm, seed=1, number=number, spacing_mm=SPACING_MM, working_mm=4.0)


def write(folder: Path, made: RawCase, *, label_on: str | None = "t1c") -> Case:
    """Write a raw head in a BraTS layout; the mask can lie on another sequence's grid."""
    folder.mkdir(exist_ok=True)
    stem = folder / "case-00001-000"
    for name, image in made.images.items():
        write_volume(Path(f"{stem}-{name}.nii.gz"), image, made.affines[name])
    if label_on is not None:
        write_volume(Path(f"{stem}-seg.nii.gz"), drawn_on(made, label_on), made.affines[label_on])
    return Case(
        patient="case-00001",
        session="000",
        images={name: Image(Path(f"{stem}-{name}.nii.gz")) for name in MODALITIES},
        label=Path(f"{stem}-seg.nii.gz") if label_on is not None else None,
        label_map=BRATS_2023,
    )


def drawn_on(made: RawCase, name: str) -> NDArray[np.uint8]:
    """Return the tumour as it lies in a sequence, through the true motion."""
    if name == "t1c":
        return made.labels
    to_t1c = np.linalg.inv(made.motions[name] @ made.affines["t1c"]) @ made.affines[name]
    labels = np.zeros(made.images[name].shape, np.uint8)
    for value in (2, 1, 3):
        part = (made.labels == value).astype(np.float32)
        seen = grid.sample(part, to_t1c, labels.shape, smooth=False, outside=0.0)
        labels[seen >= 0.5] = value
    return labels


def know_brain(patch: pytest.MonkeyPatch, made: RawCase, *, on: str = "t1c") -> None:
    """Let the true brain be found, without running the networks, where ``on`` is the reference."""
    shape = made.images[on].shape
    affine = grid.canonical_affine(made.affines[on], shape)
    to_t1c = np.linalg.inv(made.motions[on] @ made.affines["t1c"]) @ made.affines[on]
    there = grid.sample(made.brain.astype(np.float32), to_t1c, shape, smooth=False, outside=0.0)
    truth = np.ascontiguousarray(grid.to_canonical(there >= 0.5, made.affines[on]))
    fine = grid.Resampling(truth.shape, affine, raw_preprocessing.SPACING_MM)
    brain = fine.mask(truth)

    def extract(image: NDArray[np.float32]) -> NDArray[np.bool_]:
        found = np.zeros(image.shape, bool)
        x, y, z = np.minimum(image.shape, brain.shape)
        found[:x, :y, :z] = brain[:x, :y, :z]
        return found

    patch.setattr(raw_preprocessing, "extract_brain", extract)


def know_motions(patch: pytest.MonkeyPatch, made: RawCase) -> None:
    """Let the true motions be found and the bias be none, without searching."""
    affines = {
        name: grid.canonical_affine(affine, made.images[name].shape)
        for name, affine in made.affines.items()
    }

    def register(fixed: Volume, moving: Volume) -> Registration:
        there, here = (made.motions[named(volume)] for volume in (moving, fixed))
        return Registration(there @ np.linalg.inv(here), 0.1, 0.8, 0.5)

    def named(volume: Volume) -> str:
        off = {name: np.abs(volume.affine - affine).max() for name, affine in affines.items()}
        return min(off, key=lambda name: off[name])

    patch.setattr(raw_preprocessing, "register", register)
    patch.setattr(raw_preprocessing, "correct_bias", lambda volume: (volume, {"step": "n4"}))
