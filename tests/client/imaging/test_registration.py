"""A motion that is known is found, to the same bits, and what does not fit is not trusted."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from client.imaging import registration
from client.imaging.nifti import Volume
from client.imaging.plausibility import judge_registration
from client.imaging.registration import Registration, register
from client.phantoms.raw_head import RawCase
from common.errors import CaseError
from tests.raw_heads import head

SCRIPT = """
from tests.client.imaging.test_registration import bits
print(bits())
"""


def bits() -> str:
    """Return what is found, to the last bit."""
    registration._VOXELS = 10_000  # put back by few_voxels
    found = register(volume(head(), "t1c"), volume(head(), "t2w"))
    return f"{found.matrix.tobytes().hex()} {found.residual_mm.hex()} {found.peak.hex()}"


def volume(made: RawCase, name: str) -> Volume:
    return Volume(made.images[name].astype(np.float32), made.affines[name])


def errors(made: RawCase, name: str, found: Registration) -> np.ndarray:
    affine = made.affines["t1c"]
    points = np.argwhere(made.brain) @ affine[:3, :3].T + affine[:3, 3]
    off = found.matrix - made.motions[name]
    return np.linalg.norm(points @ off[:3, :3].T + off[:3, 3], axis=1)


@pytest.fixture(autouse=True)
def few_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "_VOXELS", 15_000)


@pytest.mark.parametrize(
    ("profile", "name", "mean_mm"),
    [("reference", "t1n", 0.8), ("reference", "t2f", 0.8), ("1.5t-community", "t2w", 1.5)],
    ids=["the same contrast", "another contrast", "thick slices"],
)
def test_a_known_motion_is_found_to_a_fraction_of_a_voxel(
    profile: str, name: str, mean_mm: float
) -> None:
    made = head(profile)
    start = errors(made, name, Registration(np.eye(4), 0, 0, 0))
    assert start.mean() > 2
    found = register(volume(made, "t1c"), volume(made, name))
    off = errors(made, name, found)
    assert off.mean() < mean_mm
    assert off.max() < 2 * mean_mm
    np.testing.assert_allclose(found.matrix[:3, :3] @ found.matrix[:3, :3].T, np.eye(3), atol=1e-9)
    assert found.residual_mm < 3
    assert found.peak > 0.3


def test_a_scanner_that_says_another_place_is_not_believed() -> None:
    made = head()
    elsewhere = volume(made, "t1n")
    affine = elsewhere.affine.copy()
    affine[:3, 3] += 150.0, -80.0, 60.0
    found = register(volume(made, "t1c"), Volume(elsewhere.data, affine))
    found.matrix[:3, 3] -= 150.0, -80.0, 60.0
    assert errors(made, "t1n", found).mean() < 0.8


def test_what_is_no_head_is_refused() -> None:
    registration._VOXELS = 5_000  # put back by few_voxels
    made = head()
    noise = np.random.default_rng(5).gamma(2, 50, made.images["t2w"].shape).astype(np.float32)
    found = register(volume(made, "t1c"), Volume(noise, made.affines["t2w"]))
    with pytest.raises(CaseError, match="could not be laid over") as caught:
        judge_registration("t2w", "noise.nii", found)
    assert caught.value.code == "case-registration"


def test_two_processes_find_the_same_bits() -> None:
    """This one and another, with another number of threads."""
    other = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={"OMP_NUM_THREADS": "3", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == bits() != ""
