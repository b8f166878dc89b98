import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from client.segmentation.postprocessing import (
    filled,
    nested,
    segmented,
    thresholded,
    without_little_et,
    without_small_parts,
)
from common.regions import LABELS, labels_to_regions
from common.study.segmentation_options import PostprocessingOptions

PLAIN = PostprocessingOptions()
MASKS = arrays(bool, (3, 4, 5, 6))
NCR, ED, ET = LABELS["NCR"], LABELS["ED"], LABELS["ET"]


def empty() -> np.ndarray:
    return np.zeros((3, 12, 12, 12), bool)


def is_nested(masks: np.ndarray) -> bool:
    return not (masks[1] & ~masks[0]).any() and not (masks[2] & ~masks[1]).any()


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_a_voxel_above_its_regions_threshold_is_in_it(threshold: float) -> None:
    probabilities = np.full((3, 2, 2, 2), 0.5, np.float32)
    found = thresholded(probabilities, (threshold, 0.5, 0.1))
    assert found[0].all() == (threshold < 0.5)
    assert not found[1].any()
    assert found[2].all()


@given(MASKS)
def test_nesting_cuts_inner_regions_to_outer_ones_and_adds_nothing(masks: np.ndarray) -> None:
    found = nested(masks)
    assert is_nested(found)
    assert not (found & ~masks).any()
    assert np.array_equal(found[0], masks[0])


@given(MASKS)
def test_filled_masks_have_no_hole_and_lose_nothing(masks: np.ndarray) -> None:
    before = nested(masks)
    found = filled(before)
    assert is_nested(found)
    assert not (before & ~found).any()
    assert np.array_equal(filled(found), found)
    assert np.array_equal(found[2], before[2])


def test_a_hole_that_a_corner_opens_is_filled_and_one_that_a_face_opens_is_not() -> None:
    masks = empty()
    masks[0, 2:7, 2:7, 2:7] = True
    masks[0, 4, 4, 4] = False
    masks[0, 2, 2, 2] = False
    assert np.count_nonzero(filled(masks)[0]) == 125 - 1
    masks[0, 4, 4, 2:5] = False
    assert np.count_nonzero(filled(masks)[0]) == 125 - 1 - 3


@given(MASKS, st.tuples(*[st.floats(0, 20)] * 3))
def test_what_is_left_of_small_parts_is_nested_and_large(
    masks: np.ndarray, smallest: tuple[float, float, float]
) -> None:
    found = without_small_parts(nested(masks), smallest, voxel_mm3=2.0)
    assert is_nested(found)
    assert not (found & ~masks).any()
    assert np.array_equal(without_small_parts(found, smallest, voxel_mm3=2.0), found)


def test_a_small_part_falls_back_to_the_region_around_it() -> None:
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[1:6, 1:6, 1:6] = ED
    labels[2:5, 2:5, 2:5] = NCR
    labels[3, 3, 3] = ET
    labels[9, 9, 9] = ET
    labels[10, 10, 10] = ET  # one part with the voxel whose corner it shares
    probabilities = labels_to_regions(labels).astype(np.float32)

    def found(*least: float) -> np.ndarray:
        options = PostprocessingOptions(smallest_part_mm3=least)
        return segmented(probabilities, options, voxel_mm3=1.0)

    assert found(0, 0, 2)[3, 3, 3] == NCR
    assert found(0, 0, 2)[9, 9, 9] == ET
    assert found(0, 0, 3)[9, 9, 9] == NCR
    assert found(0, 3, 0)[9, 9, 9] == ED
    assert found(3, 0, 0)[9, 9, 9] == 0
    assert np.array_equal(found(3, 0, 0)[:8], labels[:8])
    assert (found(0, 28, 0)[1:6, 1:6, 1:6] == ED).all()


@pytest.mark.parametrize(("least", "left"), [(0.0, 8), (24.0, 8), (24.1, 0)])
def test_too_little_et_in_all_becomes_necrosis(least: float, left: int) -> None:
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[2:4, 2:4, 2:4] = ET
    masks = labels_to_regions(labels)
    found = without_little_et(masks, least, voxel_mm3=3.0)
    assert np.count_nonzero(found[2]) == left
    assert np.array_equal(found[:2], masks[:2])
    options = PostprocessingOptions(smallest_et_mm3=least)
    made = segmented(masks.astype(np.float32), options, voxel_mm3=3.0)
    assert np.count_nonzero(made == ET) == left
    assert np.count_nonzero(made) == 8


def test_the_defaults_only_threshold_and_nest() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.random((3, 9, 8, 7)).astype(np.float32)
    masks = nested(probabilities > 0.5)
    found = labels_to_regions(segmented(probabilities, PLAIN, voxel_mm3=1.0))
    assert np.array_equal(found, masks)


def test_nothing_stays_nothing() -> None:
    options = PostprocessingOptions(
        fill_holes=True, smallest_part_mm3=(9.0, 9.0, 9.0), smallest_et_mm3=9.0
    )
    found = segmented(np.zeros((3, 4, 4, 4), np.float32), options, voxel_mm3=1.0)
    assert found.dtype == np.uint8
    assert found.shape == (4, 4, 4)
    assert not found.any()
