import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.segmentation.dice import RegionScores, dice
from common.errors import UpdateError
from common.regions import REGIONS, labels_to_regions

BILLION = 1_000_000_000


@st.composite
def scores(draw: st.DrawFn) -> RegionScores:
    counts = [draw(st.integers(0, 1000)) for _ in REGIONS]
    return RegionScores(
        tuple(draw(st.integers(0, count * BILLION)) for count in counts), tuple(counts)
    )


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        ([0, 0, 0], [0, 0, 0], 1.0),
        ([1, 0, 0], [0, 0, 0], 0.0),
        ([0, 0, 0], [1, 0, 0], 0.0),
        ([1, 1, 0], [1, 1, 0], 1.0),
        ([1, 1, 0], [0, 1, 1], 0.5),
        ([1, 1, 1], [1, 0, 0], 0.5),
    ],
)
def test_dice(prediction: list[int], truth: list[int], expected: float) -> None:
    assert dice(np.array(prediction, bool), np.array(truth, bool)) == expected


def test_masks_of_different_shape_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match="no overlap"):
        dice(np.zeros((2, 3), bool), np.zeros(3, bool))


@given(scores(), scores(), scores())
def test_scores_are_a_commutative_monoid(a: RegionScores, b: RegionScores, c: RegionScores) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + RegionScores() == a


@given(scores())
def test_scores_survive_json(value: RegionScores) -> None:
    assert RegionScores.from_dict(json.loads(json.dumps(value.to_dict()))) == value


def test_mean_over_cases() -> None:
    truth = labels_to_regions(np.array([[[1, 2, 3, 0]]], np.uint8))
    other = labels_to_regions(np.array([[[2, 2, 3, 0]]], np.uint8))
    total = RegionScores.of_case(truth, truth) + RegionScores.of_case(other, truth)
    assert total.mean("WT") == 1.0
    assert total.mean("TC") == pytest.approx((1 + 2 / 3) / 2)
    assert total.mean("ET") == 1.0
    assert total.count("TC") == 2
    assert RegionScores().mean("WT") is None


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        {region: {} for region in REGIONS},
        {region: {"billionths": 1.5, "count": 2} for region in REGIONS},
        {region: {"billionths": True, "count": 2} for region in REGIONS},
        {region: {"billionths": 2 * BILLION, "count": 1} for region in REGIONS},
        {region: {"billionths": 0, "count": -1} for region in REGIONS},
        {region: {"billionths": 0, "count": 1, "name": 3} for region in REGIONS},
        dict.fromkeys(REGIONS, 1.0),
    ],
)
def test_malformed_scores_are_refused(data: object) -> None:
    with pytest.raises(UpdateError) as error:
        RegionScores.from_dict(data)  # type: ignore[arg-type]
    assert error.value.code == "update-scores"


def test_scores_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(ValueError, match="3 regions"):
        RegionScores((1,), (1,))
