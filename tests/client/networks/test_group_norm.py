"""A group norm whose answer does not depend on how the volume lies in memory."""

from __future__ import annotations

import pytest
import torch

from client.networks.group_norm import ExactGroupNorm
from client.networks.registry import NETWORKS, build
from common.study.protocol import NetworkOptions


def norm(channels: int = 8) -> ExactGroupNorm:
    layer = ExactGroupNorm(4, channels)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, channels))
        layer.bias.copy_(torch.linspace(-1, 1, channels))
    return layer


def half_empty(side: int, *, batch: int = 1) -> torch.Tensor:
    """Return features of a head with air around it, with the channels last in memory."""
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(batch, 8, side, side, side, generator=draw) * 0.5 + 0.3
    features[..., : side // 2] = 0.3137
    return features.contiguous(memory_format=torch.channels_last_3d)


def true(layer: ExactGroupNorm, features: torch.Tensor) -> torch.Tensor:
    wide = torch.nn.GroupNorm(layer.num_groups, layer.num_channels).double()
    wide.load_state_dict(layer.state_dict())
    with torch.no_grad():
        normed: torch.Tensor = wide(features.double().contiguous())
    return normed


def test_a_large_volume_is_normalised_exactly() -> None:
    layer, features = norm(), half_empty(96)
    with torch.no_grad():
        found = layer(features)
        torchs = torch.nn.functional.group_norm(
            features, layer.num_groups, layer.weight, layer.bias
        )
    wanted = true(layer, features)
    assert (found - wanted).abs().max() < 1e-5
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    if (torchs - wanted).abs().max() < 1e-5:
        pytest.fail("torch adds up exactly itself now: ExactGroupNorm can go")


def test_each_patient_of_a_batch_has_moments_of_their_own() -> None:
    layer, features = norm(), half_empty(12, batch=3)
    features[1] *= 7
    with torch.no_grad():
        found = layer(features)
    torch.testing.assert_close(found.double(), true(layer, features), atol=1e-5, rtol=0)


def test_bfloat16_stays_bfloat16_with_sums_in_more_digits() -> None:
    layer, features = norm(), half_empty(24).bfloat16()
    with torch.no_grad():
        found = layer(features)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), true(layer, features), atol=0.02, rtol=0.01)


def test_a_channel_that_is_the_same_everywhere_gives_no_nan() -> None:
    layer = norm()
    features = torch.full((1, 8, 9, 9, 9), 0.1).contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        found = layer(features)
    torch.testing.assert_close(found[0, :, 0, 0, 0], layer.bias.detach(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_no_network_keeps_another_group_norm(name: str) -> None:
    network = build(NetworkOptions.model_validate({"name": name, "size": "tiny"}), seed=0)
    kinds = {type(m) for m in network.modules() if isinstance(m, torch.nn.GroupNorm)}
    assert kinds == (set() if name == "unet" else {ExactGroupNorm}), "unet has instance norms"


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_networks_answer_does_not_depend_on_the_layout(name: str) -> None:
    network = build(NetworkOptions.model_validate({"name": name, "size": "tiny"}), seed=0).eval()
    images = torch.zeros(1, 4, 64, 64, 64)
    images[..., 16:48] = torch.randn(1, 4, 64, 64, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first = network(images)
        last = network(images.contiguous(memory_format=torch.channels_last_3d))
    torch.testing.assert_close(last, first, atol=1e-4, rtol=0)
