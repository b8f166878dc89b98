import numpy as np
import pytest
import torch
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray

from client.networks.registry import build
from client.segmentation.prediction import predict
from client.site.execution import ExecutionOptions
from common.study.protocol import NetworkOptions
from common.study.segmentation_options import PredictionOptions

torch.set_num_threads(1)
TINY = NetworkOptions(size="tiny")
PLAIN = ExecutionOptions()
CROP = (16, 16, 16)


class Oracle(torch.nn.Module):
    """Takes the first three channels for logits, and remembers what shapes it saw."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(images.shape))
        return self.scale * images[:, :3]


class Slope(torch.nn.Module):
    """Says of each voxel how far it lies along x in what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.none = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        along = torch.linspace(-1, 1, images.shape[2])[None, None, :, None, None]
        return along.expand(len(images), 3, *images.shape[2:]) + self.none


def random_image(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(4, *shape)).astype(np.float32)


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize("shape", [(16, 16, 16), (24, 9, 20), (30, 20, 17), (40, 16, 8)])
def test_what_a_network_says_of_a_voxel_does_not_depend_on_the_windows(
    shape: tuple[int, int, int],
) -> None:
    image = random_image(*shape)
    image[:, : shape[0] // 2, :3] = 0
    brain = (image != 0).any(axis=0)
    found = predict(Oracle(), image, crop_size=CROP, execution=PLAIN)
    assert found.shape == (3, *shape)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, brain * sigmoid(image[:3]), atol=1e-6)


def test_windows_are_joined_as_monai_joins_them() -> None:
    network = build(TINY, seed=0).eval()
    image = random_image(32, 40, 32)  # where both put their windows at the same places
    with torch.inference_mode():
        theirs = sliding_window_inference(
            torch.from_numpy(image)[None], (16, 16, 16), 1, network, overlap=0.5, mode="gaussian"
        )[0].sigmoid()
    found = predict(network, image, crop_size=CROP, execution=PLAIN)
    np.testing.assert_allclose(found, theirs.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("side", "seen"),
    [(16, {2}), (64, {1, 2}), (65, {1})],
    ids=["in pairs, the last one twice", "in pairs", "one by one"],
)
def test_a_cpu_is_shown_small_windows_two_at_a_time(side: int, seen: set[int]) -> None:
    network = Oracle()
    image = random_image(2 * side, side, side)
    found = predict(network, image, crop_size=(side, side, side), execution=PLAIN)
    assert {shape[0] for shape in network.seen} == seen
    np.testing.assert_allclose(found, sigmoid(image[:3]), atol=1e-6)


def test_a_lone_window_in_bfloat16_is_seen_once() -> None:
    network = Oracle()
    execution = ExecutionOptions(predicts_in="bfloat16")
    predict(network, random_image(16, 16, 16), crop_size=CROP, execution=execution)
    assert [shape[0] for shape in network.seen] == [1]


def test_only_the_box_of_the_brain_is_looked_at_and_windows_without_brain_are_not() -> None:
    image = np.zeros((4, 60, 50, 40), np.float32)
    image[:, 10:30, 20:40, 5:25] = 1
    network = Oracle()
    found = predict(network, image, crop_size=CROP, execution=PLAIN)
    assert network.seen == [(2, 4, 20, 20, 20)]  # the only one, twice: see slow_alone
    assert (found[:, 10:30, 20:40, 5:25] > 0.7).all()
    assert not np.delete(found, range(10, 30), axis=1).any()

    corners = np.zeros((4, 64, 64, 64), np.float32)
    corners[:, :5, :5, :5] = corners[:, -5:, -5:, -5:] = 1
    network.seen.clear()
    found = predict(network, corners, crop_size=CROP, execution=PLAIN)
    assert network.seen == [(2, 4, *CROP)]
    np.testing.assert_allclose(found, (corners[:3] != 0) * sigmoid(corners[:3]), atol=1e-6)


def test_a_volume_without_brain_has_no_tumour() -> None:
    network = Oracle()
    found = predict(network, np.zeros((4, 9, 8, 7), np.float32), crop_size=CROP, execution=PLAIN)
    assert found.shape == (3, 9, 8, 7)
    assert not found.any()
    assert network.seen == []


@pytest.mark.parametrize("shape", [(20, 18, 16), (40, 16, 16)])
def test_mirrored_views_are_averaged(shape: tuple[int, int, int]) -> None:
    image = random_image(*shape)
    options = PredictionOptions(mirrors=("x",))
    assert predict(Slope(), image, crop_size=CROP, execution=PLAIN)[0, 0, 0, 0] < 0.3
    found = predict(Slope(), image, crop_size=CROP, execution=PLAIN, options=options)
    np.testing.assert_allclose(found, 0.5, atol=1e-6)
    straight = predict(Oracle(), image, crop_size=CROP, execution=PLAIN)
    network = Oracle()
    every = PredictionOptions(mirrors=("z", "x", "y", "x"))
    assert every.mirrors == ("x", "y", "z")
    found = predict(network, image, crop_size=CROP, execution=PLAIN, options=every)
    np.testing.assert_allclose(found, straight, atol=1e-6)
    assert len(network.seen) % 8 == 0


def test_several_networks_are_averaged_in_their_logits() -> None:
    image = random_image(24, 20, 40)
    found = predict([Oracle(1.0), Oracle(3.0)], image, crop_size=CROP, execution=PLAIN)
    np.testing.assert_allclose(found, sigmoid(2 * image[:3]), atol=1e-6)


@pytest.mark.parametrize(
    "execution",
    [
        ExecutionOptions(channels_last=False),
        ExecutionOptions(precision="bfloat16"),
        ExecutionOptions(predicts_in="bfloat16"),
    ],
)
def test_execution_changes_rounding_only(execution: ExecutionOptions) -> None:
    network = build(TINY, seed=0)
    image = random_image(20, 30, 18)
    expected = predict(network, image, crop_size=CROP, execution=PLAIN)
    found = predict(network, image, crop_size=CROP, execution=execution)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 0.02
    assert (execution.prediction_precision == "float32") == (np.abs(found - expected).max() < 1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_network_keeps_its_mode_and_can_still_be_trained(training: bool) -> None:
    network = build(TINY, seed=0).train(training)
    predict(network, np.ones((4, 9, 9, 9), np.float32), crop_size=CROP, execution=PLAIN)
    assert network.training is training
    network(torch.zeros(1, 4, 8, 8, 8)).sum().backward()
