import tomllib

import numpy as np
import pytest

from client.segmentation.postprocessing_search import WORTH, as_toml, try_options
from common.regions import LABELS, labels_to_regions
from common.study.segmentation_options import PostprocessingOptions

SHAPE = (24, 24, 24)


def tumour() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:14, 4:14, 4:14] = LABELS["ED"]
    labels[6:12, 6:12, 6:12] = LABELS["NCR"]
    return labels


def seen(labels: np.ndarray, *, inside: float = 0.9, outside: float = 0.05) -> np.ndarray:
    return np.where(labels_to_regions(labels), inside, outside).astype(np.float32)


def test_what_helps_is_chosen_and_the_rest_stays_at_its_default() -> None:
    truth = tumour()
    with_specks = truth.copy()
    with_specks[18:20, 18:20, 18:20] = LABELS["ED"]  # 8 voxels of 8 mm3, far away
    with_specks[8, 8, 8] = LABELS["ET"]  # 8 mm3 where there is none
    found, trials = try_options(
        [(seen(with_specks), truth)], spacing_mm=2.0, criterion="lesion_dice"
    )
    assert found == PostprocessingOptions(smallest_part_mm3=(200.0, 0.0, 50.0), smallest_et_mm3=0.0)
    by_option = {trial.option for trial in trials}
    assert len(by_option) == 8
    assert sum(trial.chosen for trial in trials) == 8
    scores = {(t.option, t.value): t.score for t in trials}
    assert scores["smallest_part_mm3, WT", 200.0] > scores["smallest_part_mm3, WT", 0.0]


def test_thresholds_follow_a_network_that_is_too_careful() -> None:
    truth = tumour()
    truth[8:10, 8:10, 8:10] = LABELS["ET"]
    careful = seen(truth, inside=0.45)
    found, _ = try_options([(careful, truth)], spacing_mm=1.0, criterion="dice")
    assert all(threshold in (0.3, 0.4) for threshold in found.thresholds)


def test_a_gain_that_is_not_worth_it_changes_nothing() -> None:
    truth = tumour()
    probabilities = seen(truth)
    probabilities[0, 14, 4:14, 4] = 0.55  # 10 of 1000 voxels more: Dice of WT 0.995
    ours = [(probabilities, truth)] + [(seen(truth), truth)] * 2
    found, trials = try_options(ours, spacing_mm=1.0, criterion="dice")
    best = max(t.score for t in trials if t.option == "thresholds, WT")
    default = next(t.score for t in trials if t.option == "thresholds, WT" and t.value == 0.5)
    assert 0 < best - default < WORTH
    assert found == PostprocessingOptions()


@pytest.mark.parametrize("fill", [True, False])
def test_the_printed_section_is_the_protocols(fill: bool) -> None:
    options = PostprocessingOptions(
        thresholds=(0.4, 0.5, 0.6), fill_holes=fill, smallest_part_mm3=(50.0, 0.0, 0.0)
    )
    read = tomllib.loads(as_toml(options))["postprocessing"]
    assert PostprocessingOptions.model_validate(read) == options
