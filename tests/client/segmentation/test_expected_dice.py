import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from client.segmentation.expected_dice import entropy, region_confidence
from common.regions import LABELS, REGIONS, labels_to_regions


def voxel(*probabilities: float) -> np.ndarray:
    return np.array(probabilities, np.float32).reshape(3, 1, 1, 1)


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ((0, 0, 0), 0.0),
        ((1, 1, 1), 0.0),
        ((1, 0, 0), 0.0),
        ((0.75, 0.5, 0.25), 1.0),
        ((0.5, 0, 0), 0.5),
        ((1, 0.5, 0.5), 0.5),
        ((0.5, 0.9, 0.9), 0.5),  # no core outside the tumour
    ],
)
def test_entropy_of_a_voxel(probabilities: tuple[float, float, float], expected: float) -> None:
    assert entropy(voxel(*probabilities)).item() == pytest.approx(expected, abs=1e-6)


@given(arrays(np.float32, (3, 2, 3, 4), elements=st.floats(0, 1, width=32)))
def test_entropy_lies_between_0_and_1(probabilities: np.ndarray) -> None:
    found = entropy(probabilities)
    assert found.shape == (2, 3, 4)
    assert ((found >= 0) & (found <= 1)).all()


def test_confidence_is_the_dice_to_expect() -> None:
    rng = np.random.default_rng(0)
    said = rng.random((3, 40, 40, 40)).astype(np.float32) ** 3
    probabilities = np.minimum.accumulate(said, axis=0)
    labels = np.zeros(probabilities.shape[1:], np.uint8)
    labels[probabilities[0] > 0.5] = LABELS["ED"]
    labels[probabilities[1] > 0.5] = LABELS["NCR"]
    labels[probabilities[2] > 0.5] = LABELS["ET"]
    found = region_confidence(probabilities, labels)
    truths = rng.random((5, *probabilities.shape)) < probabilities
    for region, mask, true in zip(
        REGIONS, labels_to_regions(labels), truths.swapaxes(0, 1), strict=True
    ):
        dice = [2 * (mask & one).sum() / (mask.sum() + one.sum()) for one in true]
        assert found[region] == pytest.approx(np.mean(dice), abs=0.01)


def test_sure_masks_have_confidence_1_and_empty_ones_that_nothing_was_missed() -> None:
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[2:4] = LABELS["NCR"]
    probabilities = labels_to_regions(labels).astype(np.float32)
    assert region_confidence(probabilities, labels) == {"WT": 1.0, "TC": 1.0, "ET": 1.0}
    probabilities[2, 0, 0, 0] = 0.4
    assert region_confidence(probabilities, labels)["ET"] == pytest.approx(0.6)
