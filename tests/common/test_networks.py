import numpy as np
import pytest
import torch

from common.errors import ModelError, ProtocolError
from common.networks import NETWORKS, build, load_arrays, state_arrays, trainable_names
from common.protocol import NetworkOptions
from common.weights import digest

SMALL = NetworkOptions(filters=8, blocks_down=(1, 1, 1), blocks_up=(1, 1))
torch.set_num_threads(1)


@pytest.fixture(params=sorted(NETWORKS))
def options(request: pytest.FixtureRequest) -> NetworkOptions:
    return SMALL.model_copy(update={"name": request.param})


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
    images = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = network(images)
    assert logits.shape == (2, 3, *size)
    assert torch.isfinite(logits).all()


def test_patients_do_not_mix(options: NetworkOptions) -> None:
    network = build(options, seed=0).double().train()
    images = torch.randn(2, 4, 8, 8, 8, generator=torch.Generator().manual_seed(1)).double()
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
