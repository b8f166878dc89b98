"""A header that cannot be believed is refused with the reason; a rounded one is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from client.imaging.header_space import affine_mm
from common.errors import CaseError

PATH = Path("t1c.nii.gz")
SHAPE = (240, 240, 155)
GOOD = np.array([[-1.0, 0, 0, 120], [0, -1, 0, 130], [0, 0, 1, -70], [0, 0, 0, 1]])


def turned(degrees: float) -> np.ndarray:
    a = np.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    result: np.ndarray = turn @ GOOD
    return result


def header(
    sform: np.ndarray = GOOD,
    qform: np.ndarray | None = None,
    *,
    codes: tuple[int, int] = (1, 1),
    unit: str = "mm",
) -> Any:
    made = nib.Nifti1Header()
    made.set_data_shape(SHAPE)
    made.set_sform(sform, codes[0])
    if codes[1]:
        made.set_qform(sform if qform is None else qform, codes[1], strip_shears=True)
    made.set_xyzt_units(unit)
    return made


def sheared(share: float) -> np.ndarray:
    result = GOOD.copy()
    result[0, 1] += share
    return result


def shifted(mm: float) -> np.ndarray:
    result = GOOD.copy()
    result[0, 3] += mm
    return result


def scaled(factor: float) -> np.ndarray:
    return np.diag([factor, factor, factor, 1.0]) @ GOOD


REFUSED = {
    "mirrored": (header(qform=np.diag([-1.0, 1, 1, 1]) @ GOOD), "mirrored against each other"),
    "mirrored, of two spaces": (
        header(qform=np.diag([1.0, 1, -1, 1]) @ GOOD, codes=(2, 1)),
        "mirrored against each other",
    ),
    "LPS against RAS": (header(qform=np.diag([-1.0, -1, 1, 1]) @ GOOD), "turned by 180 degrees"),
    "shifted in one space": (header(qform=shifted(30)), "30 mm apart"),
    "sheared": (header(sheared(0.06)), "sheared by 6.0%"),
    "metres that are millimetres": (header(unit="meter"), "in metres, so that a voxel would be"),
    "millimetres that are metres": (header(scaled(1e-3)), "0.001 x 0.001 x 0.001 mm"),
    "micrometres that are millimetres": (header(unit="micron"), "in micrometres"),
    "in no space": (header(codes=(0, 0)), "neither sform nor qform"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_header_that_cannot_be_believed_is_refused(name: str) -> None:
    made, words = REFUSED[name]
    with pytest.raises(CaseError, match=words) as caught:
        affine_mm(made, PATH, mask=False)
    assert caught.value.code == "case-affine"
    assert "t1c.nii.gz" in caught.value.message


BELIEVED = {
    "as it should be": (header(), GOOD),
    "qform alone": (header(codes=(0, 1)), GOOD),
    "sform alone": (header(codes=(1, 0)), GOOD),
    "two spaces, turned a little": (header(qform=turned(20), codes=(4, 1)), GOOD),
    "two spaces, shifted": (header(qform=shifted(30), codes=(2, 1)), GOOD),
    "rounded": (header(qform=shifted(2e-3)), GOOD),
    "sheared by rounding": (header(sheared(2e-3)), sheared(2e-3)),
    "metres": (header(scaled(1e-3), unit="meter"), GOOD),
    "micrometres": (header(scaled(1e3), unit="micron"), GOOD),
    "no unit": (header(unit="unknown"), GOOD),
}


@pytest.mark.parametrize("name", BELIEVED)
def test_a_header_that_can_be_true_gives_the_sform_in_mm(name: str) -> None:
    made, affine = BELIEVED[name]
    np.testing.assert_allclose(affine_mm(made, PATH, mask=False), affine, atol=1e-3)


def test_a_mask_without_a_place_is_told_of_its_image() -> None:
    with pytest.raises(CaseError) as caught:
        affine_mm(header(codes=(0, 0)), PATH, mask=True)
    assert "copy that image's header" in caught.value.do
