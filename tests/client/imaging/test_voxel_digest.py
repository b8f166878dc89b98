"""The same voxels have the same digest, whatever file they stand in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from client.imaging.nifti import Volume, read_volume
from client.imaging.voxel_digest import voxel_sha256

Change = Callable[[Volume], Volume]


@pytest.fixture
def scan() -> Volume:
    """A stripped head of whole numbers in a field of zeros."""
    data = np.zeros((20, 24, 16))
    data[4:15, 5:20, 3:13] = np.random.default_rng(1).integers(1, 900, (11, 15, 10))
    return Volume(data, np.diag([1.0, 1.0, 2.0, 1.0]))


def _flipped(scan: Volume) -> Volume:
    affine = scan.affine.copy()
    affine[0, 0], affine[0, 3] = -1.0, 19.0
    return Volume(scan.data[::-1], affine)


def _turned(scan: Volume) -> Volume:
    return Volume(scan.data.transpose(2, 0, 1), scan.affine[:, [2, 0, 1, 3]])


SAME: dict[str, Change] = {
    "as floats": lambda scan: Volume(scan.data.astype(np.float32), scan.affine),
    "as short integers": lambda scan: Volume(scan.data.astype(np.int16), scan.affine),
    "flipped": _flipped,
    "axes turned": _turned,
    "scaled": lambda scan: Volume(np.float32(0.1) * scan.data.astype(np.float32), scan.affine),
    "shifted": lambda scan: Volume(scan.data - 1024, scan.affine),
    "a wider field": lambda scan: Volume(np.pad(scan.data, 3), scan.affine),
    "last bits": lambda scan: Volume(scan.data * (1 + 1e-7), scan.affine),
}


@pytest.mark.parametrize("name", SAME)
def test_a_conversion_changes_nothing(scan: Volume, name: str) -> None:
    assert voxel_sha256(SAME[name](scan)) == voxel_sha256(scan) != ""


OTHER: dict[str, Change] = {
    "mirrored": lambda scan: Volume(scan.data[::-1].copy(), scan.affine),
    "one voxel": lambda scan: Volume(
        np.where(scan.data == scan.data[8, 8, 8], 1, scan.data), scan.affine
    ),
    "fewer slices": lambda scan: Volume(scan.data[:, :, :12], scan.affine),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_scan_has_another_digest(scan: Volume, name: str) -> None:
    assert voxel_sha256(OTHER[name](scan)) != voxel_sha256(scan)


@pytest.mark.parametrize("value", [0, 7])
def test_a_blank_volume_is_nobodys(value: int) -> None:
    assert voxel_sha256(Volume(np.full((4, 4, 4), value), np.eye(4))) == ""


def test_a_file_that_is_compressed_or_of_another_type_is_the_same(
    scan: Volume, tmp_path: Path
) -> None:
    found = set()
    kinds: list[tuple[str, type[np.generic]]] = [
        ("a.nii", np.int16),
        ("b.nii.gz", np.int16),
        ("c.nii.gz", np.float32),
        ("d.nii", np.float64),
    ]
    for name, kind in kinds:
        data: NDArray[np.generic] = scan.data.astype(kind)
        nib.save(nib.Nifti1Image(data, scan.affine), tmp_path / name)
        found.add(voxel_sha256(read_volume(tmp_path / name)))
    assert found == {voxel_sha256(scan)}
