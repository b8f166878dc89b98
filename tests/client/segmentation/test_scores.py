"""Scores of made label maps, worked out by hand; ``test_outside_scorer`` compares real ones."""

import numpy as np
import pytest

from client.segmentation.scores import Scores, lesion_scores, mean_scores, score_labels
from client.segmentation.surface_distance import WORST_MM
from common.regions import LABELS, REGIONS

ONE = (1.0, 1.0, 1.0)
SHAPE = (40, 24, 24)


def block(*corner: int, side: int = 4) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    x, y, z = corner
    mask[x : x + side, y : y + side, z : z + side] = True
    return mask


def test_two_lesions_one_missed_one_false() -> None:
    found_one, missed, false = block(2, 2, 2), block(16, 2, 2), block(30, 2, 2)
    predicted = block(3, 2, 2) | false
    found = lesion_scores(predicted, found_one | missed, spacing_mm=ONE)
    assert (found.found, found.missed, found.false) == (1, 1, 1)
    # 48 of 64 voxels agree; a missed lesion and a false one have 0.
    assert found.dice == pytest.approx(0.75 / 3)
    assert found.hd95_mm == pytest.approx((1.0 + 2 * WORST_MM) / 3)


def test_parts_of_the_truth_within_twice_the_dilation_are_one_lesion() -> None:
    for gap, lesions in ((5, 1), (6, 1), (7, 2)):
        truth = block(2, 8, 8) | block(6 + gap, 8, 8)
        found = lesion_scores(truth, truth, spacing_mm=ONE)
        assert found.found == lesions, gap
        assert found.dice == 1.0


def test_a_predicted_part_within_the_dilation_of_a_lesion_belongs_to_it() -> None:
    truth = block(2, 8, 8)
    beside, beyond = block(8, 8, 8, side=1), block(9, 8, 8, side=1)  # 3 and 4 voxels away
    assert lesion_scores(truth | beside, truth, spacing_mm=ONE).false == 0
    found = lesion_scores(truth | beyond, truth, spacing_mm=ONE)
    assert found.false == 1
    assert found.dice == pytest.approx(0.5)


def test_lesions_of_at_most_50_mm3_do_not_count_but_excuse_what_was_predicted_there() -> None:
    large, small = block(2, 2, 2), block(20, 2, 2, side=3)
    for predicted in (large, large | small):
        found = lesion_scores(predicted, large | small, spacing_mm=ONE)
        assert (found.dice, found.found, found.missed, found.false) == (1.0, 1, 0, 0)
    double = lesion_scores(large, large | small, spacing_mm=(2.0, 2.0, 2.0))
    assert (double.found, double.missed) == (1, 1)


def test_a_prediction_over_two_lesions_is_compared_with_each() -> None:
    truth = block(2, 2, 2) | block(20, 2, 2)
    whole = np.zeros(SHAPE, bool)
    whole[2:24, 2:6, 2:6] = True
    found = lesion_scores(whole, truth, spacing_mm=ONE)
    assert (found.found, found.missed, found.false) == (2, 0, 0)
    assert found.dice == pytest.approx(2 * 64 / (64 + 22 * 16))


def test_where_there_is_nothing_nothing_is_right() -> None:
    empty = np.zeros(SHAPE, np.uint8)
    for region, scores in score_labels(empty, empty, spacing_mm=ONE).items():
        assert region in REGIONS
        assert (scores.dice, scores.surface_dice, scores.lesion_dice) == (1.0, 1.0, 1.0)
        assert (scores.hd95_mm, scores.lesion_hd95_mm, scores.volume_error_ml) == (0.0, 0.0, 0.0)


def test_one_voxel_of_et_where_there_is_none_costs_everything() -> None:
    truth = np.where(block(2, 2, 2, side=8), LABELS["ED"], 0).astype(np.uint8)
    predicted = truth.copy()
    predicted[4, 4, 4] = LABELS["ET"]
    scores = score_labels(predicted, truth, spacing_mm=ONE)
    assert scores["WT"].dice == 1.0
    assert scores["ET"].dice == scores["ET"].lesion_dice == scores["ET"].surface_dice == 0.0
    assert scores["ET"].hd95_mm == scores["ET"].lesion_hd95_mm == WORST_MM
    assert scores["ET"].lesions_false == 1


def test_volumes_are_in_ml_and_scores_do_not_depend_on_where_the_tumour_lies() -> None:
    truth = np.where(block(10, 8, 8), LABELS["NCR"], 0).astype(np.uint8)
    predicted = np.where(block(11, 8, 8), LABELS["NCR"], 0).astype(np.uint8)
    predicted[20:24, 8:12, 8:12] = LABELS["ED"]
    spacing = (2.0, 1.0, 1.5)
    scores = score_labels(predicted, truth, spacing_mm=spacing)
    assert scores["WT"].volume_ml == pytest.approx(0.384)
    assert scores["WT"].volume_error_ml == pytest.approx(0.192)
    assert scores["TC"].volume_error_ml == 0.0
    moved = score_labels(
        np.roll(predicted, (-10, -8, -8), (0, 1, 2)),
        np.roll(truth, (-10, -8, -8), (0, 1, 2)),
        spacing_mm=spacing,
    )
    assert moved == scores


def test_means_are_over_cases() -> None:
    one = Scores(1.0, 0.0, 1.0, 1.0, 0.0, 1, 0, 0, 3.0, 2.0)
    other = Scores(0.5, 4.0, 0.5, 0.0, 374.0, 0, 1, 0, 1.0, 4.0)
    found = mean_scores([dict.fromkeys(REGIONS, one), dict.fromkeys(REGIONS, other)])
    assert found["TC"] == {
        "dice": 0.75,
        "hd95_mm": 2.0,
        "surface_dice": 0.75,
        "lesion_dice": 0.5,
        "lesion_hd95_mm": 187.0,
        "absolute_volume_error_ml": 2.0,
    }
    assert mean_scores([]) == {}


def test_maps_of_different_shape_are_not_compared() -> None:
    with pytest.raises(ValueError, match="do not compare"):
        score_labels(np.zeros((2, 3, 4), np.uint8), np.zeros((4, 3, 2), np.uint8), spacing_mm=ONE)
