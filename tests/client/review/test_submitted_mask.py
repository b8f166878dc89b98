"""A mask that a browser sends is one on the right grid, or is refused with words."""

from __future__ import annotations

import gzip
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from client.review.submitted_mask import read_mask
from common.errors import CaseError
from tests.scanners import oblique

SHAPE = (5, 6, 7)
AFFINE = oblique((2.0, 3.0, 5.0))


def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)


def sent(data: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> bytes:
    return bytes(nib.Nifti1Image(labels() if data is None else data, affine).to_bytes())


def read(body: bytes) -> np.ndarray:
    return read_mask(body, shape=SHAPE, affine=AFFINE)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "packed"])
def test_a_mask_comes_as_it_was_drawn(pack: Any) -> None:
    found = read(pack(sent()))
    assert found.dtype == np.uint8
    assert np.array_equal(found, labels())
    assert np.array_equal(read(pack(sent(labels()[..., None]))), labels())


REFUSED = {
    "nothing": (b"", "no whole NIfTI file"),
    "no NIfTI": (b"x" * 900, "no whole NIfTI file"),
    "cut short": (sent()[:-10], "no whole NIfTI file"),
    "packed and cut short": (gzip.compress(sent())[:-30], "no whole NIfTI file"),
    "a bomb": (gzip.compress(bytes(10**7)), "no whole NIfTI file"),
    "too long": (sent() + bytes(10**6), "no whole NIfTI file"),
    "floats": (sent(labels().astype(np.float32)), "of type float32, not uint8"),
    "another size": (sent(labels()[1:]), "4x6x7 voxels and the scan has 5x6x7"),
    "turned": (sent(affine=AFFINE @ np.diag([-1, 1, 1, 1])), "lies elsewhere"),
    "moved": (sent(affine=AFFINE + np.eye(4, k=3)), "lies elsewhere"),
    "unknown labels": (sent(labels() + np.uint8(2)), "the values 4, 5 mean no label"),
}


def without_end() -> bytes:
    """Return a mask whose header says 35 TB."""
    header = nib.Nifti1Header(sent()[:348])
    header["dim"] = [3, 32767, 32767, 32767, 1, 1, 1, 1]
    return bytes(header.binaryblock) + sent()[348:]


REFUSED["35 TB of voxels"] = (without_end(), "32767x32767x32767 voxels and the scan has 5x6x7")


@pytest.mark.parametrize("name", REFUSED)
def test_another_is_refused(name: str) -> None:
    body, words = REFUSED[name]
    with pytest.raises(CaseError, match=words) as caught:
        read(body)
    assert caught.value.code == "review-mask"
    assert "is kept" in caught.value.do
