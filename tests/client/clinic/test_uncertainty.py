"""Uncertainty: known entropies, spread that only adds, and a trained network that says it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from client.clinic.uncertainty import Predict, Predictions, predictions, range_ml, uncertainty
from client.imaging.missing_sequences import PARTIAL, blank, present
from client.segmentation.prediction import predict
from client.site.execution import ExecutionOptions
from client.training.crops import draw_crops
from client.training.losses import dice_bce
from common.regions import MODALITIES, labels_to_regions
from common.study.protocol import TrainingOptions

PLAIN = ExecutionOptions(prefetch=0)


def probabilities(*regions: float) -> np.ndarray:
    """Return the probabilities of WT, TC and ET in one voxel."""
    return np.array(regions, np.float32).reshape(3, 1, 1, 1)


def head(seed: int = 1) -> np.ndarray:
    image = np.random.default_rng(seed).normal(0, 1, (4, 5, 6, 7)).astype(np.float32)
    image[:, :2] = 0
    return image


@pytest.mark.parametrize(
    ("regions", "nats"),
    [
        ((0.0, 0.0, 0.0), 0.0),
        ((1.0, 1.0, 1.0), 0.0),
        ((0.5, 0.0, 0.0), math.log(2)),
        ((0.75, 0.5, 0.25), math.log(4)),
        ((0.5, 0.9, 0.9), math.log(2)),  # a region within another has no more chance than it
    ],
)
def test_the_entropy_is_that_of_four_classes(regions: tuple[float, ...], nats: float) -> None:
    assert uncertainty(Predictions(probabilities(*regions))).item() == pytest.approx(
        nats / math.log(4), abs=1e-5
    )


def test_predictions_that_part_are_less_sure_and_those_that_agree_are_not() -> None:
    yes, no = probabilities(1, 0, 0), probabilities(0, 0, 0)
    assert uncertainty(Predictions(yes, (yes, yes))).item() == pytest.approx(0, abs=1e-5)
    assert uncertainty(Predictions(yes, (no,))).item() == pytest.approx(0.5, abs=1e-5)


def test_the_spread_never_makes_it_surer() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        first, *others = rng.random((3, 3, 4, 4, 4), np.float32)
        own = uncertainty(Predictions(first))
        assert (uncertainty(Predictions(first, tuple(others))) >= own).all()
        # However sure the others are.
        sure = tuple(np.round(one) for one in others)
        assert (uncertainty(Predictions(first, sure)) >= own).all()


def test_a_whole_case_is_predicted_once() -> None:
    seen: list[np.ndarray] = []

    def look(image: np.ndarray) -> np.ndarray:
        seen.append(image)
        return probabilities(0.5, 0.5, 0.5)

    assert predictions(look, head()).fewer == ()
    assert len(seen) == 1


@pytest.mark.parametrize("there", PARTIAL)
def test_each_sequence_that_can_be_spared_is_taken_away_once(there: tuple[bool, ...]) -> None:
    image = head()
    blank(image, there)
    before = image.copy()
    seen: list[tuple[bool, ...]] = []

    def look(image: np.ndarray) -> np.ndarray:
        seen.append(tuple(present(image).tolist()))
        return probabilities(0.5, 0.5, 0.5)

    found = predictions(look, image)
    names = {n for n, kept in zip(MODALITIES, there, strict=True) if kept}
    spared = [name for name in MODALITIES if name in names and (names - {name}) & {"t1c", "t2f"}]
    assert len(found.fewer) == len(spared)
    assert seen[0] == there
    expected = {tuple(n in names - {one} for n in MODALITIES) for one in spared}
    assert set(seen[1:]) == expected
    np.testing.assert_array_equal(image, before)


def test_the_range_spans_all_predictions() -> None:
    first, other = np.zeros((2, 3, 10, 10, 10), np.float32)
    first[0, :4] = 0.9  # 400 voxels surely, 100 more perhaps
    first[0, 4] = 0.3
    first[1, :1] = 0.6
    other[0, :2] = 0.8
    other[0, 2:8] = 0.26
    assert range_ml([first], voxel_ml=0.5) == {
        "WT": (200.0, 250.0),
        "TC": (0.0, 50.0),
        "ET": (0.0, 0.0),
    }
    assert range_ml([first, other], voxel_ml=0.5)["WT"] == (100.0, 400.0)


@dataclass(frozen=True)
class Scan:
    image: np.ndarray
    labels: np.ndarray


SHOWN = {"t1n": (0, 0.5, 0.5), "t1c": (0, 0.5, 3), "t2w": (2, 0, 0), "t2f": (3, 0, 0)}
"""How much brighter each sequence shows WT, TC and ET, in deviations of its noise."""


def patient(seed: int) -> Scan:
    """Return a brain with a tumour that each sequence shows another part of, in noise."""
    rng = np.random.default_rng(seed)
    distance = np.linalg.norm(np.indices((16, 16, 16)) - rng.uniform(6, 10, (3, 1, 1, 1)), axis=0)
    labels = np.select([distance < 2, distance < 4, distance < 6], [1, 3, 2], 0).astype(np.uint8)
    regions = labels_to_regions(labels)
    image = rng.standard_normal((4, *labels.shape), np.float32)
    for channel, name in zip(image, MODALITIES, strict=True):
        channel += sum(gain * one for gain, one in zip(SHOWN[name], regions, strict=True))
    image[:, :1] = 0
    return Scan(image.astype(np.float32), labels)


@pytest.fixture(scope="module")
def look() -> Predict:
    """Return a tiny network, voxel by voxel, trained with the product's own sequence dropout."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv3d(4, 24, 1), torch.nn.ReLU(), torch.nn.Conv3d(24, 24, 1)]
    network = torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Conv3d(24, 3, 1))
    adam = torch.optim.Adam(network.parameters(), lr=1e-2)
    rng = np.random.default_rng(0)
    options = TrainingOptions(
        local_steps=1,
        crop_size=(16, 16, 16),
        crops_per_patient=4,
        augmentation="none",
        learning_rate=1e-2,
        sequence_dropout=0.7,
    )
    for step in range(200):
        images, regions = draw_crops(patient(step % 10), options, rng)
        loss = dice_bce(network(images), regions).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return functools.partial(predict, network, crop_size=(16, 16, 16), execution=PLAIN)


@pytest.mark.parametrize("there", PARTIAL)
def test_a_trained_network_is_less_sure_of_a_case_that_lacks_sequences(
    look: Predict, there: tuple[bool, ...]
) -> None:
    """Also without the spread, and most of all where the tumour is."""
    whole, fewer, own, wide, wider = [], [], [], [], []
    for seed in range(100, 106):
        scan = patient(seed)
        partial = scan.image.copy()
        blank(partial, there)
        for image, kept, widths in ((scan.image, whole, wide), (partial, fewer, wider)):
            found = predictions(look, image)
            inside = (scan.image != 0).any(axis=0)
            kept.append(uncertainty(found)[inside].mean())
            widths += [high - low for low, high in range_ml(found.all, voxel_ml=1.0).values()]
        own.append(uncertainty(Predictions(found.there))[inside].mean())
    assert np.mean(fewer) >= np.mean(own) > np.mean(whole)
    assert np.mean(wider) > np.mean(wide)
