"""SegResNet, the network that won BraTS 2018, as MONAI builds it, for volumes of any size.

Group norm and no dropout: the output for a patient depends on that patient alone, which private
training needs. Activations are not in place, since per-patient hooks would see changed values.

Source: Myronenko 2018, "3D MRI brain tumor segmentation using autoencoder regularization",
arXiv:1810.11654.
"""

from __future__ import annotations

import torch
from monai.networks.nets.segresnet import SegResNet
from torch.nn import functional

from common.protocol import NetworkOptions
from common.regions import MODALITIES, REGIONS

_GROUPS = 8


class PaddedNetwork(torch.nn.Module):
    """Pads the volume with zeros to a multiple of ``factor`` and crops the logits back.

    ``kind`` is the name of the network in a protocol.
    """

    def __init__(self, body: torch.nn.Module, *, factor: int, kind: str) -> None:
        super().__init__()
        self.body = body
        self.factor = factor
        self.kind = kind

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 3, X, Y, Z) for images (B, 4, X, Y, Z)."""
        x, y, z = images.shape[2:]
        missing = [-size % self.factor for size in (x, y, z)]
        if any(missing):
            images = functional.pad(images, (0, missing[2], 0, missing[1], 0, missing[0]))
        logits: torch.Tensor = self.body(images)
        return logits[:, :, :x, :y, :z]


def segresnet(options: NetworkOptions) -> PaddedNetwork:
    """Return the network of ``options`` with torch's default random weights."""
    body = SegResNet(
        spatial_dims=3,
        init_filters=options.filters,
        in_channels=len(MODALITIES),
        out_channels=len(REGIONS),
        act=("RELU", {"inplace": False}),
        norm=("GROUP", {"num_groups": _GROUPS}),
        blocks_down=options.blocks_down,
        blocks_up=options.blocks_up,
    )
    return PaddedNetwork(body, factor=2 ** (len(options.blocks_down) - 1), kind="segresnet")
