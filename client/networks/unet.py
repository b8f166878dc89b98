"""The residual U-Net of MONAI: PReLU, instance norm, two convolutions a unit.

Instance norm needs more than one voxel, so that volumes are padded to two at the coarsest level. It
has no heads at coarser levels.

Source: Kerfoot et al. 2019, "Left-ventricle quantification using residual U-Net", STACOM 2018.
"""

from __future__ import annotations

import torch
from monai.networks.nets.unet import UNet

from client.networks.padding import PaddedNetwork
from common.regions import MODALITIES, REGIONS
from common.study.network_shapes import UNET
from common.study.protocol import NetworkOptions


class ResidualUNet(UNet):
    """MONAI's UNet, supervised at the finest level alone."""

    def supervised(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits of the only head."""
        return [self(images)]


def unet(options: NetworkOptions) -> PaddedNetwork:
    """Return the network of ``options`` with torch's default random weights."""
    filters = UNET[options.size]
    body = ResidualUNet(
        spatial_dims=3,
        in_channels=len(MODALITIES),
        out_channels=len(REGIONS),
        channels=filters,
        strides=[2] * (len(filters) - 1),
        num_res_units=2,
        norm=("INSTANCE", {"affine": True}),
    )
    return PaddedNetwork(body, factor=2 ** len(filters), kind="unet")
