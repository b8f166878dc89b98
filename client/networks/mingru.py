"""A convolutional and recurrent network: SegResNet with a bidirectional minGRU over its slices.

A convolution sees a few slices; what lies further along the head reaches it through the coarsest
level only. There, a minGRU reads the axial slices from below and from above, and adds what it
remembers to each: context over the whole crop for few parameters, hence for little noise under
privacy. Its gates depend on the input alone, not on the state, so that every weight is used once
for each slice, as a convolution's is, and one patient's gradient needs nothing special.

At 64 channels it has 39,000 parameters; a ConvGRU of the same reach has 113,000, and its gates must
wait for the state of the slice before.

Source: Feng et al. 2024, "Were RNNs all we needed?", arXiv:2410.01201.
"""

from __future__ import annotations

from typing import Final

import torch

from client.networks.padding import PaddedNetwork
from client.networks.segresnet import leveled
from common.study.network_shapes import MEMORY_SHARE
from common.study.protocol import NetworkOptions

_GROUPS: Final = 8


class SliceMemory(torch.nn.Module):
    """Adds to each axial slice what a minGRU in each direction remembers of the others.

    Shapes: (B, C, X, Y, Z) to the same; the third axis of the volume is the axial one. For slice k
    with gate z_k and candidate c_k, both of a convolution within the slice:
    h_k = (1 - z_k) h_{k-1} + z_k c_k, from h = 0 at either end.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = channels // MEMORY_SHARE
        self.norm1 = torch.nn.GroupNorm(_GROUPS, channels)
        self.gates = torch.nn.Conv3d(channels, 4 * self.hidden, (1, 3, 3), padding=(0, 1, 1))
        self.out = torch.nn.Conv3d(2 * self.hidden, channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return ``features`` and what is remembered of the other slices, added."""
        slices = self.norm1(features).movedim(-1, 2)
        gates, candidates = self.gates(slices).chunk(2, dim=1)
        gates, candidates = gates.sigmoid(), torch.tanh(candidates)
        kept, new = 1 - gates, gates * candidates
        up = _remembered(kept[:, : self.hidden], new[:, : self.hidden])
        down = _remembered(kept[:, self.hidden :].flip(2), new[:, self.hidden :].flip(2))
        added: torch.Tensor = self.out(torch.cat([up, down.flip(2)], dim=1))
        return features + added.movedim(2, -1)


def _remembered(kept: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Return h of every slice, (B, H, Z, X, Y), for h_k = kept_k h_{k-1} + new_k."""
    states = [new[:, :, 0]]
    for k in range(1, new.shape[2]):
        states.append(kept[:, :, k] * states[-1] + new[:, :, k])
    return torch.stack(states, dim=2)


def segresnet_mingru(options: NetworkOptions) -> PaddedNetwork:
    """Return the network of ``options`` with torch's default random weights."""
    return leveled(options, SliceMemory, kind="segresnet_mingru")
