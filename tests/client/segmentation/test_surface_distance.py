import numpy as np
import pytest

from client.segmentation.surface_distance import WORST_MM, compare_surfaces

ONE = (1.0, 1.0, 1.0)


def block(*corner: int, side: int = 4) -> np.ndarray:
    mask = np.zeros((24, 16, 16), bool)
    x, y, z = corner
    mask[x : x + side, y : y + side, z : z + side] = True
    return mask


def test_a_mask_agrees_with_itself() -> None:
    found = compare_surfaces(block(2, 2, 2), block(2, 2, 2), spacing_mm=ONE, tolerance_mm=1.0)
    assert (found.hd95_mm, found.dice) == (0.0, 1.0)


def test_single_voxels_are_as_far_apart_as_their_centres() -> None:
    found = compare_surfaces(
        block(1, 2, 3, side=1),
        block(4, 6, 3, side=1),
        spacing_mm=(1.0, 0.5, 2.0),
        tolerance_mm=3.7,
    )
    assert found.hd95_mm == pytest.approx(np.hypot(3.0, 2.0))
    assert found.dice == 1.0


@pytest.mark.parametrize(("tolerance", "share"), [(0.9, 0.0), (1.0, 0.5), (2.0, 0.5), (3.0, 1.0)])
def test_surface_dice_is_the_mean_of_both_surfaces_shares_within_the_tolerance(
    tolerance: float, share: float
) -> None:
    # The truth is two voxels, 1 and 3 mm from the one predicted: 1 of 2, and 1 of 1.
    predicted, truth = block(5, 5, 5, side=1), block(6, 5, 5, side=1) | block(2, 5, 5, side=1)
    found = compare_surfaces(predicted, truth, spacing_mm=ONE, tolerance_mm=tolerance)
    assert found.dice == pytest.approx({0.0: 0.0, 0.5: 0.75, 1.0: 1.0}[share])


def test_hd95_leaves_out_the_furthest_part_of_the_pooled_surfaces() -> None:
    truth = block(2, 2, 2, side=5)
    noise = truth | block(20, 2, 2, side=1)  # 1 of 197 surface voxels
    found = compare_surfaces(noise, truth, spacing_mm=ONE, tolerance_mm=1.0)
    assert found.hd95_mm == 0.0
    few = compare_surfaces(
        block(2, 2, 2, side=1) | block(20, 2, 2, side=1),
        block(2, 2, 2, side=1),
        spacing_mm=ONE,
        tolerance_mm=1.0,
    )
    assert few.hd95_mm == pytest.approx(np.percentile([0, 18, 0], 95))


def test_only_faces_make_a_surface_also_at_the_border_of_the_field() -> None:
    whole = np.ones((5, 5, 5), bool)
    hollow = whole.copy()
    hollow[1:4, 1:4, 1:4] = False
    found = compare_surfaces(whole, hollow, spacing_mm=ONE, tolerance_mm=0.5)
    assert found.hd95_mm == 0.0
    assert found.dice == 1.0


def test_a_mask_against_nothing_has_the_worst_scores_and_nothing_against_nothing_the_best() -> None:
    nothing, something = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    for pair in ((nothing, something), (something, nothing)):
        found = compare_surfaces(*pair, spacing_mm=ONE, tolerance_mm=1.0)
        assert (found.hd95_mm, found.dice) == (WORST_MM, 0.0)
    found = compare_surfaces(nothing, nothing, spacing_mm=ONE, tolerance_mm=1.0)
    assert (found.hd95_mm, found.dice) == (0.0, 1.0)
