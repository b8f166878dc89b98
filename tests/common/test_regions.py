import itertools

import numpy as np
import pytest

from common.regions import (
    LABEL_COLOURS,
    LABEL_NAMES,
    LABELS,
    MODALITIES,
    REGIONS,
    labels_to_regions,
    regions_to_labels,
)


def test_every_label_has_a_name_a_colour_and_a_region() -> None:
    assert set(LABELS) == set(LABEL_NAMES) == set(LABEL_COLOURS)
    assert set(REGIONS["WT"]) == set(LABELS.values())
    assert len(MODALITIES) == 4


def test_regions_are_nested() -> None:
    assert set(REGIONS["ET"]) < set(REGIONS["TC"]) < set(REGIONS["WT"])
    assert list(REGIONS) == ["WT", "TC", "ET"]


def test_labels_survive_regions() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.uint8)
    regions = labels_to_regions(labels)
    assert regions.shape == (3, 5, 6, 7)
    assert regions.dtype == bool
    again = regions_to_labels(regions)
    assert again.dtype == np.uint8
    assert np.array_equal(again, labels)


@pytest.mark.parametrize("said", list(itertools.product([False, True], repeat=3)))
def test_every_mask_that_a_network_can_say_becomes_a_label(said: tuple[bool, bool, bool]) -> None:
    expected = {
        (True, False): LABELS["ED"],
        (True, True): LABELS["ET" if said[2] else "NCR"],
    }.get(said[:2], 0)
    assert regions_to_labels(np.array(said)[:, None]).tolist() == [expected]
