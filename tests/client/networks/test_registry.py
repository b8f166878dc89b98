from typing import get_args

import numpy as np
import pytest
import torch
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.segresnet import SegResNet

from client.networks.mingru import SliceMemory
from client.networks.registry import NETWORKS, build, load_arrays, state_arrays, trainable_names
from common.errors import ModelError, ProtocolError
from common.records.weights import digest
from common.study.network_shapes import all_options
from common.study.protocol import NetworkName, NetworkOptions
from common.study.trained_parameters import GROUPS

SMALL = NetworkOptions(size="tiny")
torch.set_num_threads(1)


@pytest.fixture(params=sorted(NETWORKS))
def options(request: pytest.FixtureRequest) -> NetworkOptions:
    return SMALL.model_copy(update={"name": request.param})


def images_of(*size: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(seed))


def test_every_network_has_a_name_in_the_protocol_and_groups() -> None:
    assert set(NETWORKS) == set(get_args(NetworkName)) == set(GROUPS)


@pytest.mark.parametrize(("size", "least", "most"), [("small", 0.9e6, 1.3e6), ("base", 4e6, 6e6)])
def test_sizes_mean_the_same_for_all(
    options: NetworkOptions, size: str, least: float, most: float
) -> None:
    network = build(options.model_copy(update={"size": size}), seed=0)
    assert least <= sum(p.numel() for p in network.parameters()) <= most


def test_seed_alone_decides_the_weights(options: NetworkOptions) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = digest(state_arrays(build(options, seed=1)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert digest(state_arrays(build(options, seed=1))) == first
    assert digest(state_arrays(build(options, seed=2))) != first


@pytest.mark.parametrize("size", [(8, 8, 8), (9, 8, 8), (5, 10, 13), (1, 6, 3)])
def test_any_size_goes_in_and_comes_out(
    options: NetworkOptions, size: tuple[int, int, int]
) -> None:
    network = build(options, seed=0).eval()
    with torch.no_grad():
        logits = network(images_of(*size))
    assert logits.shape == (2, 3, *size)
    assert torch.isfinite(logits).all()


def test_patients_do_not_mix(options: NetworkOptions) -> None:
    network = build(options, seed=0).double().train()
    images = images_of(8, 8, 8).double()
    with torch.no_grad():
        together = network(images)
        alone = torch.cat([network(images[:1]), network(images[1:])])
    assert torch.allclose(together, alone, atol=1e-12)
    assert not list(network.buffers())
    assert not [m for m in network.modules() if getattr(m, "inplace", False)]


def test_groups_of_parameters(options: NetworkOptions) -> None:
    network = build(options, seed=0)
    every = trainable_names(network, ("all",))
    norms = trainable_names(network, ("norms",))
    head = trainable_names(network, ("head",))
    decoder = trainable_names(network, ("last_decoder",))
    assert every == tuple(sorted(dict(network.named_parameters())))
    shapes = {name: value.shape for name, value in network.named_parameters()}
    assert norms
    assert all(len(shapes[name]) == 1 for name in norms)
    assert any(shapes[name][0] == 3 for name in head)
    assert decoder
    assert not set(decoder) & set(head)
    both = trainable_names(network, ("head", "norms"))
    assert set(both) == set(head) | set(norms)
    assert list(both) == [name for name in every if name in both]
    # Each group is reached by the gradient.
    network(torch.ones(1, 4, 8, 8, 8)).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_unknown_group_is_named(options: NetworkOptions) -> None:
    with pytest.raises(ProtocolError, match="tail"):
        trainable_names(build(options, seed=0), ("tail",))


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last_3d])
def test_weights_go_round(options: NetworkOptions, memory: torch.memory_format) -> None:
    source = build(options, seed=1)
    target = build(options, seed=2).to(memory_format=memory)  # type: ignore[call-overload]
    load_arrays(target, state_arrays(source))
    assert digest(state_arrays(target)) == digest(state_arrays(source))
    weight = next(value for value in target.parameters() if value.dim() == 5)
    assert weight.is_contiguous(memory_format=memory)


def test_arrays_are_copies(options: NetworkOptions) -> None:
    network = build(options, seed=1)
    arrays = state_arrays(network)
    before = digest(arrays)
    with torch.no_grad():
        for value in network.parameters():
            value.zero_()
    assert digest(arrays) == before


def test_wrong_weights_change_nothing(options: NetworkOptions) -> None:
    network = build(options, seed=1)
    good = state_arrays(build(options, seed=2))
    before = digest(state_arrays(network))
    name = min(good)
    for wrong in (
        {key: value for key, value in good.items() if key != name},
        {**good, "extra": np.zeros(1, np.float32)},
        {**good, name: np.zeros((1, 2, 3), np.float32)},
    ):
        with pytest.raises(ModelError) as error:
            load_arrays(network, wrong)
        assert error.value.code == "model-mismatch"
    assert digest(state_arrays(network)) == before


@pytest.mark.parametrize("name", sorted({o.name for o in all_options() if o.deep_supervision}))
def test_coarser_levels_have_heads_that_prediction_does_not_use(name: str) -> None:
    options = NetworkOptions.model_validate(
        {"name": name, "size": "small", "deep_supervision": True}
    )
    network = build(options, seed=0)
    images = images_of(17, 16, 15)
    with torch.no_grad():
        finest, *coarser = network.supervised(images)
        assert torch.equal(finest, network(images))
    assert [tuple(level.shape[1:]) for level in coarser] == [(3, 9, 8, 8), (3, 5, 4, 4)]
    shallow = build(options.model_copy(update={"deep_supervision": False}), seed=0)
    with torch.no_grad():
        assert len(shallow.supervised(images)) == 1
    sum(level.square().mean() for level in network.supervised(images)).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_a_network_is_exported(options: NetworkOptions) -> None:
    network = build(options, seed=0).eval()
    images = images_of(16, 16, 16)[:1]
    exported = torch.export.export(network, (images,)).module()
    with torch.no_grad():
        assert torch.allclose(exported(images), network(images), atol=1e-5)


@pytest.mark.parametrize("deep", [False, True])
def test_dynunet_computes_what_that_of_monai_does(deep: bool) -> None:
    ours = build(NetworkOptions(name="dynunet", size="small", deep_supervision=deep), seed=0).body
    theirs = DynUNet(
        3,
        4,
        3,
        [3] * 4,
        [1, 2, 2, 2],
        [2] * 3,
        filters=[16, 32, 64, 96],
        norm_name=("GROUP", {"num_groups": 8}),
        deep_supervision=deep,
        deep_supr_num=2,
    ).eval()
    found = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert all(name.startswith("skip_layers") for name in found.missing_keys)
    assert not found.unexpected_keys
    with torch.no_grad():
        assert torch.allclose(ours(images_of(16, 16, 16)), theirs(images_of(16, 16, 16)), atol=1e-5)


def test_segresnet_computes_what_that_of_monai_does() -> None:
    ours = build(NetworkOptions(name="segresnet", size="small"), seed=0).body
    theirs = SegResNet(spatial_dims=3, init_filters=8, in_channels=4, out_channels=3)
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert torch.equal(ours(images_of(16, 16, 16)), theirs(images_of(16, 16, 16)))


def test_the_memory_joins_all_slices_and_does_not_look_sideways() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = SliceMemory(16).double()
    features = torch.randn(1, 16, 7, 7, 6, dtype=torch.float64, requires_grad=True)
    layer(features)[0, :, 3, 3, 2].sum().backward()
    # A group's norm looks everywhere; without it, what is reached is one column of 3 x 3.
    layer.norm1 = torch.nn.Identity()
    features.grad = None
    layer(features)[0, :, 3, 3, 2].sum().backward()
    assert features.grad is not None
    reached = features.grad[0].abs().sum(0) > 0
    assert reached.sum() == 3 * 3 * 6
    assert reached[2:5, 2:5].all()


def test_the_memory_is_the_recurrence_that_it_says() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = SliceMemory(8).double()
    features = torch.randn(2, 8, 3, 4, 5, dtype=torch.float64)
    parts = layer.gates(layer.norm1(features).movedim(-1, 2)).movedim(2, -1).detach().numpy()
    hidden = parts.shape[1] // 4
    gates, candidates = 1 / (1 + np.exp(-parts[:, : 2 * hidden])), np.tanh(parts[:, 2 * hidden :])
    remembered = np.zeros_like(gates)
    for channel in range(2 * hidden):
        slices = range(5) if channel < hidden else reversed(range(5))
        state = np.zeros((2, 3, 4))
        for k in slices:
            gate = gates[:, channel, ..., k]
            state = (1 - gate) * state + gate * candidates[:, channel, ..., k]
            remembered[:, channel, ..., k] = state
    with torch.no_grad():
        expected = features + layer.out(torch.from_numpy(remembered))
        assert torch.allclose(layer(features), expected, atol=1e-12)


@pytest.mark.parametrize("group", ["norms", "head", "last_decoder"])
def test_frozen_layers_before_a_norm_do_not_kill_the_process(
    options: NetworkOptions, group: str
) -> None:
    network = build(options, seed=0).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    chosen = trainable_names(network, (group,))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in chosen)
    found = []
    for layout in (torch.channels_last_3d, torch.contiguous_format):
        images = images_of(8, 8, 8).contiguous(memory_format=layout)
        loss = network.to(memory_format=layout)(images).square().mean()  # type: ignore[call-overload]
        found.append(torch.autograd.grad(loss, [network.get_parameter(name) for name in chosen]))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)
