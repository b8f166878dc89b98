"""Small cases on disk: an ellipsoid of brain with a tumour, in any orientation and spacing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from client.imaging.case import Case, Image
from client.imaging.label_codings import BRATS_2023, Coding
from common.regions import MODALITIES

SHAPE = (40, 36, 30)
MakeCase = Callable[..., Case]


def anatomy() -> tuple[np.ndarray, np.ndarray]:
    """Return four images (4, X, Y, Z) and labels in RAS; the tumour sits off centre."""
    x, y, z = np.indices(SHAPE)
    brain = ((x - 20) / 13) ** 2 + ((y - 18) / 12) ** 2 + ((z - 15) / 10) ** 2 < 1
    distance = np.sqrt((x - 26) ** 2 + (y - 15) ** 2 + (z - 17) ** 2)
    labels = np.zeros(SHAPE, np.uint8)
    labels[distance < 6] = 2
    labels[distance < 4] = 3
    labels[distance < 2] = 1
    noise = np.random.default_rng(7).normal(0, 10, (4, *SHAPE))
    images = (300 + noise + 60 * labels) * brain
    return images.astype(np.float32), labels


@pytest.fixture
def make_case(tmp_path: Path) -> MakeCase:
    def make(
        *,
        codes: str = "RAS",
        spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
        images: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        labelled: bool = True,
        label_map: Coding = BRATS_2023,
    ) -> Case:
        default_images, default_labels = anatomy()
        images = default_images if images is None else images
        labels = default_labels if labels is None else labels
        affine = np.diag([*spacing_mm, 1.0])
        affine[:3, 3] = -17.0, -23.0, 11.0
        turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
        turned = affine @ inv_ornt_aff(turn, labels.shape)

        def save(name: str, data: np.ndarray) -> Path:
            path = tmp_path / f"case-00001-000-{name}.nii.gz"
            nib.save(nib.Nifti1Image(nib.apply_orientation(data, turn), turned), path)
            return path

        return Case(
            patient="case-00001",
            session="000",
            images={n: Image(save(n, images[i])) for i, n in enumerate(MODALITIES)},
            label=save("seg", labels) if labelled else None,
            label_map=label_map,
        )

    return make
