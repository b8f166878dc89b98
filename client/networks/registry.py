"""The networks that a study may train, and their weights as named arrays.

Invariants: a network maps images of shape (B, 4, X, Y, Z), any X, Y and Z, to logits of shape
(B, 3, X, Y, Z) for the regions of ``common.regions.REGIONS``; it holds no batch statistics, so
that one patient's output never depends on another's; building one never disturbs torch's global
random state. A network is found by its name in ``NETWORKS`` and in no other way.

Out of scope: training (``client.training.loop``), files (``common.records.weights``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.networks.dynunet import dynunet
from client.networks.mingru import segresnet_mingru
from client.networks.padding import PaddedNetwork
from client.networks.segresnet import segresnet
from client.networks.unet import unet
from common.errors import ModelError
from common.study import trained_parameters
from common.study.protocol import NetworkOptions

NETWORKS: Final[Mapping[str, Callable[[NetworkOptions], PaddedNetwork]]] = {
    "segresnet": segresnet,
    "segresnet_mingru": segresnet_mingru,
    "dynunet": dynunet,
    "unet": unet,
}


def build(options: NetworkOptions, *, seed: int) -> PaddedNetwork:
    """Return the network with random weights that ``seed`` alone decides, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[options.name](options)


def trainable_names(network: torch.nn.Module, groups: Sequence[str]) -> tuple[str, ...]:
    """Return the sorted names of the parameters in ``groups``; see
    ``common.study.trained_parameters``.

    Raises ProtocolError for a group that the network does not have.
    """
    kind = network.kind if isinstance(network, PaddedNetwork) else ""
    names = [name for name, _ in network.named_parameters()]
    return trained_parameters.trainable_names(names, kind, tuple(groups))


def state_arrays(network: torch.nn.Module) -> dict[str, NDArray[np.float32]]:
    """Return a copy of all weights as float32 arrays."""
    return {
        name: np.array(value.detach().float().cpu().contiguous().numpy(), order="C")
        for name, value in network.state_dict().items()
    }


def load_arrays(network: torch.nn.Module, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Copy ``arrays`` into the network, which keeps its device, dtype and memory format.

    Raises ModelError (code ``model-mismatch``), and changes nothing, unless names and shapes are
    exactly the network's.
    """
    state = network.state_dict()
    for name in sorted(state.keys() ^ arrays.keys()):
        raise _mismatch(f"{name!r} is {'missing' if name in state else 'unexpected'}")
    for name, value in state.items():
        if arrays[name].shape != tuple(value.shape):
            raise _mismatch(f"{name!r} has shape {arrays[name].shape}, not {tuple(value.shape)}")
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(torch.from_numpy(np.array(arrays[name], np.float32)))


def _mismatch(reason: str) -> ModelError:
    return ModelError(
        f"The weights do not fit the network: {reason}.",
        do="Use weights and protocol of the same study.",
        code="model-mismatch",
    )
