"""What a study starts from: the same bits everywhere, and the law of the networks' own set-up."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from client.networks.registry import build, load_arrays, state_arrays
from common.records.weights import digest
from common.study.drawn_weights import draw, drawn_digest
from common.study.network_shapes import all_options, shapes, title
from common.study.protocol import NetworkOptions

DIGESTS = {
    "segresnet of size tiny": "46fd1179f140e4cc",
    "segresnet of size tiny with deep_supervision": "44fa2151baf4f34a",
    "segresnet of size small": "70b8d0e302e82686",
    "segresnet of size small with deep_supervision": "a43df06fa521605b",
    "segresnet of size base": "d4a6a8ad2a12ca8b",
    "segresnet of size base with deep_supervision": "938525f6cf72af56",
    "segresnet_mingru of size tiny": "aef9ee8823a95238",
    "segresnet_mingru of size tiny with deep_supervision": "78a31ebca07397aa",
    "segresnet_mingru of size small": "c71c3a72834619d1",
    "segresnet_mingru of size small with deep_supervision": "8122ff85c1b4b979",
    "segresnet_mingru of size base": "ed79c2b071ac26ee",
    "segresnet_mingru of size base with deep_supervision": "58951e0f5b6ee071",
    "dynunet of size tiny": "11769b60d050eb36",
    "dynunet of size tiny with deep_supervision": "fb0007087b405175",
    "dynunet of size small": "14b364b2045efbf4",
    "dynunet of size small with deep_supervision": "77ae6ec9acb8ba73",
    "dynunet of size base": "0a52de1a3e0e4958",
    "dynunet of size base with deep_supervision": "168f315c43258335",
    "unet of size tiny": "c044cb2fa37b348e",
    "unet of size small": "704cd2aae5e0457a",
    "unet of size base": "3fc6d498c38f3fc7",
}
"""How the digest at seed 0 begins. It never changes: hospitals refuse what starts otherwise."""

OPTIONS = list(all_options())
SMALL = [one for one in OPTIONS if one.size == "small"]


@pytest.mark.parametrize("options", OPTIONS, ids=title)
def test_the_digest_is_what_it_was(options: NetworkOptions) -> None:
    arrays = draw(options, seed=0)
    assert digest(arrays)[:16] == DIGESTS[title(options)]
    assert {name: array.shape for name, array in arrays.items()} == shapes(options)
    assert all(array.dtype == np.float32 for array in arrays.values())
    assert all(array.flags.c_contiguous for array in arrays.values())


def test_every_seed_and_every_parameter_has_its_own_numbers() -> None:
    options = NetworkOptions(size="tiny")
    first, other = draw(options, seed=0), draw(options, seed=1)
    assert drawn_digest(options, seed=1) == digest(other) != digest(first)
    name = "body.down_layers.0.1.conv1.conv.weight"
    assert not np.array_equal(first[name], other[name])
    assert not np.array_equal(first[name], first["body.down_layers.0.1.conv2.conv.weight"])


@pytest.mark.parametrize("options", SMALL, ids=title)
def test_the_law_is_that_of_the_network_itself(options: NetworkOptions) -> None:
    """Constants are the same; the rest has the same spread, and the same bounds where it has any.

    DynUNet's normal law has none.
    """
    ours, theirs = draw(options, seed=3), state_arrays(build(options, seed=3))
    spread = []
    for name, due in theirs.items():
        if (len(np.unique(due)) == 1 and due.size > 1) or name.endswith(".adn.A.weight"):
            assert np.array_equal(ours[name], due), name
            continue
        if options.name != "dynunet":
            kernel = shapes(options)[f"{name.rpartition('.')[0]}.weight"]
            bound = 1 / math.sqrt(math.prod(kernel[1:]))
            assert np.abs(due).max() <= bound * (1 + 1e-6), name
            assert np.abs(ours[name]).max() <= bound * (1 + 1e-6), name
            if due.size > 5000:
                assert np.abs(ours[name]).max() > 0.998 * bound, name
        if due.size > 2000:
            spread.append(float(ours[name].std() / due.std()))
            assert spread[-1] == pytest.approx(1, abs=0.05), name
            assert abs(float(ours[name].mean())) < 4 * float(due.std()) / math.sqrt(due.size)
    assert len(spread) > 5
    assert np.mean(spread) == pytest.approx(1, abs=0.01)


def test_numbers_are_uniform_and_independent() -> None:
    arrays = draw(NetworkOptions(name="segresnet", size="base"), seed=0)
    name = max(arrays, key=lambda one: arrays[one].size)
    values = arrays[name].ravel().astype(np.float64)
    unit = values / (1 / math.sqrt(math.prod(arrays[name].shape[1:])))
    count = np.histogram(unit, bins=64, range=(-1, 1))[0]
    expected = unit.size / 64
    chi2 = float(((count - expected) ** 2 / expected).sum())
    assert chi2 < 63 + 5 * math.sqrt(2 * 63)
    assert abs(np.corrcoef(unit[:-1], unit[1:])[0, 1]) < 5 / math.sqrt(unit.size)


def test_a_network_runs_with_them_as_with_its_own() -> None:
    options = NetworkOptions(size="tiny")
    network = build(options, seed=0).eval()
    images = torch.randn(1, 4, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = network(images)
        load_arrays(network, draw(options, seed=0))
        drawn = network(images)
    assert torch.isfinite(drawn).all()
    assert float(drawn.std()) == pytest.approx(float(own.std()), rel=0.5)


def test_the_coordinator_draws_them_without_torch() -> None:
    code = (
        "import sys; from common.study.drawn_weights import drawn_digest; "
        "from common.study.protocol import NetworkOptions; "
        "print(drawn_digest(NetworkOptions(size='tiny'), seed=0)[:16], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [DIGESTS["segresnet of size tiny"], "False"]
