from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.segmentation.calibration import calibration_errors
from client.segmentation.evaluation import evaluate, evaluate_fully
from client.site.execution import ExecutionOptions
from common.errors import CaseError
from common.regions import LABELS, REGIONS
from common.study.segmentation_options import PostprocessingOptions

torch.set_num_threads(1)
PLAIN = ExecutionOptions()
CROP = (16, 16, 16)


@dataclass(frozen=True)
class Prepared:
    image: NDArray[np.float32]
    labels: NDArray[np.uint8] | None


class Oracle(torch.nn.Module):
    """Reads the region logits off the first three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(20.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scale * (images[:, :3] - 0.5)


def oracle_case(shape: tuple[int, int, int]) -> Prepared:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, shape).astype(np.uint8)
    channels = [np.isin(labels, values) for values in REGIONS.values()]
    return Prepared(np.stack([*channels, labels > 9]).astype(np.float32), labels)


def test_a_perfect_network_scores_one() -> None:
    case = oracle_case((24, 9, 20))
    scores = evaluate(Oracle(), [lambda: case, lambda: case], crop_size=CROP, execution=PLAIN)
    assert [scores.mean(region) for region in REGIONS] == [1.0, 1.0, 1.0]
    assert scores.count("ET") == 2


def test_regions_are_nested_before_they_are_scored() -> None:
    case = oracle_case((16, 16, 16))
    image = case.image.copy()
    image[0] = 0  # no whole tumour: then there is no core and no enhancing tumour either
    scores = evaluate(
        Oracle(), [lambda: Prepared(image, case.labels)], crop_size=CROP, execution=PLAIN
    )
    assert [scores.mean(region) for region in REGIONS] == [0.0, 0.0, 0.0]


def test_case_without_labels_is_refused() -> None:
    case = oracle_case((16, 16, 16))
    with pytest.raises(CaseError) as error:
        evaluate(Oracle(), [lambda: Prepared(case.image, None)], crop_size=CROP, execution=PLAIN)
    assert error.value.code == "case-unlabelled"


def test_no_cases_have_no_mean() -> None:
    assert evaluate(Oracle(), [], crop_size=CROP, execution=PLAIN).mean("WT") is None


def speck_case() -> Prepared:
    """A case whose truth has no ET, and an image in which an oracle sees two voxels of it."""
    labels = np.full((12, 12, 12), LABELS["ED"], np.uint8)
    labels[3:9, 3:9, 3:9] = LABELS["NCR"]
    seen = labels.copy()
    seen[5, 5, 5:7] = LABELS["ET"]
    channels = [np.isin(seen, values) for values in REGIONS.values()]
    return Prepared(np.stack([*channels, seen > 0]).astype(np.float32), labels)


@pytest.mark.parametrize(("spacing_mm", "dice"), [(1.0, 1.0), (2.0, 0.0)])
def test_scores_are_of_what_postprocessing_leaves(spacing_mm: float, dice: float) -> None:
    found = evaluate(
        Oracle(),
        [speck_case],
        crop_size=CROP,
        execution=PLAIN,
        postprocessing=PostprocessingOptions(smallest_et_mm3=10.0),
        spacing_mm=spacing_mm,
    )
    assert found.mean("ET") == dice
    assert found.mean("TC") == found.mean("WT") == 1.0


def test_full_scores_are_case_by_case_and_in_millimetres() -> None:
    cases = [speck_case, lambda: oracle_case((16, 16, 16))]
    found = evaluate_fully(Oracle(), cases, crop_size=CROP, execution=PLAIN, spacing_mm=2.0)
    first, second = found.cases
    assert found.counts.voxels[0].sum() <= 12**3 + 16**3
    errors = calibration_errors(found.counts)
    assert errors["WT"] == pytest.approx(0, abs=1e-3)
    assert errors["ET"] == pytest.approx(2 / found.counts.voxels[0].sum(), abs=1e-3)
    assert first["ET"].dice == 0.0
    assert first["ET"].lesions_false == 1
    assert first["ET"].volume_error_ml == pytest.approx(0.016)
    assert [second[region].lesion_dice for region in REGIONS] == [1.0, 1.0, 1.0]
