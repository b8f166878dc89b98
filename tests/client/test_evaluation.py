from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.evaluation import evaluate, evaluate_fully, predict
from client.training import ExecutionOptions
from common.errors import CaseError
from common.networks import build
from common.protocol import NetworkOptions
from common.regions import LABELS, REGIONS
from common.segmentation_options import PostprocessingOptions

torch.set_num_threads(1)
TINY = NetworkOptions(filters=8, blocks_down=(1, 1), blocks_up=(1,))
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
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(images.shape))
        return self.scale * (images[:, :3] - 0.5)


def oracle_case(shape: tuple[int, int, int]) -> Prepared:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, shape).astype(np.uint8)
    channels = [np.isin(labels, values) for values in REGIONS.values()]
    return Prepared(np.stack([*channels, labels > 9]).astype(np.float32), labels)


@pytest.mark.parametrize("shape", [(16, 16, 16), (24, 9, 20), (30, 20, 17), (40, 16, 8)])
def test_perfect_network_scores_one(shape: tuple[int, int, int]) -> None:
    case = oracle_case(shape)
    network = Oracle()
    chance = predict(network, case.image, crop_size=CROP, execution=PLAIN)
    assert chance.shape == (3, *shape)
    assert chance.dtype == np.float32
    brain = (case.image != 0).any(axis=0)
    expected = brain / (1 + np.exp(-20 * (case.image[:3] - 0.5)))
    assert np.allclose(chance, expected, atol=1e-5)
    scores = evaluate(network, [lambda: case, lambda: case], crop_size=CROP, execution=PLAIN)
    assert [scores.mean(region) for region in REGIONS] == [1.0, 1.0, 1.0]
    assert scores.count("ET") == 2


def test_volume_that_nearly_fits_is_seen_whole() -> None:
    network = Oracle()
    predict(network, oracle_case((24, 24, 10)).image, crop_size=CROP, execution=PLAIN)
    assert network.seen == [(1, 4, 24, 24, 10)]
    network.seen.clear()
    predict(network, oracle_case((25, 16, 16)).image, crop_size=CROP, execution=PLAIN)
    assert all(shape[2:] == CROP for shape in network.seen)


@pytest.mark.parametrize(
    "execution",
    [
        ExecutionOptions(channels_last=False),
        ExecutionOptions(precision="bfloat16"),
    ],
)
def test_execution_changes_rounding_only(execution: ExecutionOptions) -> None:
    network = build(TINY, seed=0)
    image = np.random.default_rng(1).normal(size=(4, 20, 30, 18)).astype(np.float32)
    expected = predict(network, image, crop_size=CROP, execution=PLAIN)
    found = predict(network, image, crop_size=CROP, execution=execution)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 0.02


@pytest.mark.parametrize("training", [True, False])
def test_network_keeps_its_mode_and_can_still_be_trained(training: bool) -> None:
    network = build(TINY, seed=0).train(training)
    predict(network, np.zeros((4, 9, 9, 9), np.float32), crop_size=CROP, execution=PLAIN)
    assert network.training is training
    network(torch.zeros(1, 4, 8, 8, 8)).sum().backward()


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
    first, second = evaluate_fully(Oracle(), cases, crop_size=CROP, execution=PLAIN, spacing_mm=2.0)
    assert first["ET"].dice == 0.0
    assert first["ET"].lesions_false == 1
    assert first["ET"].volume_error_ml == pytest.approx(0.016)
    assert [second[region].lesion_dice for region in REGIONS] == [1.0, 1.0, 1.0]
