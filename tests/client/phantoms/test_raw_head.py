"""A raw phantom is a whole head that moved by what it says."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest

from client.imaging import grid
from client.phantoms.profiles import PROFILES
from client.phantoms.raw_head import RawCase, make_raw_case
from common.regions import MODALITIES
from tests.raw_heads import head


def test_each_sequence_has_a_grid_of_its_own() -> None:
    made = head("1.5t-community")
    assert tuple(made.images) == MODALITIES
    axes = {"".join(nibabel.aff2axcodes(affine)) for affine in made.affines.values()}
    assert len(axes) == 4
    for name, slice_mm in zip(MODALITIES, (5, 4, 5, 5), strict=True):
        assert made.images[name].dtype == np.int16
        spacing_mm = np.linalg.norm(made.affines[name][:3, :3], axis=0)
        np.testing.assert_allclose(spacing_mm, [4, 4, slice_mm], atol=1e-9)
    assert made.labels.shape == made.brain.shape == made.images["t1c"].shape
    assert set(np.unique(made.labels)) == {0, 1, 2, 3}


def test_a_head_has_a_skull_and_air_around_its_brain() -> None:
    made = head()
    voxel_ml = abs(np.linalg.det(made.affines["t1c"][:3, :3])) / 1000
    assert 1000 < made.brain.sum() * voxel_ml < 1900
    image = made.images["t1c"]
    skin = image[~made.brain]
    assert (skin > np.median(image[made.brain])).sum() > 0.1 * made.brain.sum()  # fat and skin
    assert np.percentile(skin, 40) < 0.1 * np.median(image[made.brain])  # air


@pytest.mark.parametrize("name", ["t1n", "t2w", "t2f"])
def test_the_head_moved_by_what_it_says(name: str) -> None:
    gbm = replace(PROFILES["reference"], mix={"gbm": 1.0})
    moved, still = (
        make_raw_case(gbm, seed=1, number=2, spacing_mm=4.0, working_mm=4.0, motion=motion)
        for motion in (1.0, 0.0)
    )
    np.testing.assert_array_equal(moved.affines[name], still.affines[name])

    def seen(made: RawCase, motion: np.ndarray) -> np.ndarray:
        to_image = np.linalg.inv(made.affines[name]) @ motion @ made.affines["t1c"]
        image = made.images[name].astype(np.float32)
        return grid.sample(image, to_image, made.brain.shape, smooth=False)[made.brain]

    truth = seen(still, np.eye(4))
    followed = np.corrcoef(seen(moved, moved.motions[name]), truth)[0, 1]
    ignored = np.corrcoef(seen(moved, np.eye(4)), truth)[0, 1]
    assert followed > 0.9 > ignored + 0.05


def test_a_case_is_a_function_of_its_arguments() -> None:
    gbm = replace(PROFILES["reference"], mix={"gbm": 1.0})
    one, two, other = (
        make_raw_case(gbm, seed=1, number=number, spacing_mm=6.0, working_mm=6.0)
        for number in (4, 4, 5)
    )
    for name in MODALITIES:
        np.testing.assert_array_equal(one.images[name], two.images[name])
        np.testing.assert_array_equal(one.motions[name], two.motions[name])
    assert not np.allclose(one.motions["t2w"], other.motions["t2w"])
    np.testing.assert_array_equal(one.motions["t1c"], np.eye(4))
