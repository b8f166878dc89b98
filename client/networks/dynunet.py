"""nnU-Net's plain U-Net, with MONAI's blocks: two convolutions a level, strided, transposed up.

Group norm in place of instance norm, which fails on a level of one voxel. MONAI's own class reaches
each layer by two paths, so that its weights have two names each; here they have one.

Source: Isensee et al. 2021, "nnU-Net: a self-configuring method for deep learning-based biomedical
image segmentation", Nature Methods 18.
"""

from __future__ import annotations

from typing import Final

import torch
from monai.networks.nets.dynunet import DynUNet

from client.networks.padding import PaddedNetwork
from common.regions import MODALITIES, REGIONS
from common.study.network_shapes import DYNUNET
from common.study.protocol import NetworkOptions

_GROUPS: Final = 8


class PlainUNet(DynUNet):
    """MONAI's DynUNet, walked level by level."""

    def __init__(self, filters: tuple[int, ...], *, deep: bool) -> None:
        levels = len(filters)
        super().__init__(
            spatial_dims=3,
            in_channels=len(MODALITIES),
            out_channels=len(REGIONS),
            kernel_size=[3] * levels,
            strides=[1] + [2] * (levels - 1),
            upsample_kernel_size=[2] * (levels - 1),
            filters=filters,
            norm_name=("GROUP", {"num_groups": _GROUPS}),
            act_name=("leakyrelu", {"inplace": False, "negative_slope": 0.01}),
            deep_supervision=deep,
            deep_supr_num=levels - 2,
        )
        del self.skip_layers  # the second path

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 3, X, Y, Z)."""
        logits: torch.Tensor = self.output_block(self._levels(images)[0])
        return logits

    def supervised(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits of each level that has a head, the finest first."""
        finest, *coarser = self._levels(images)
        heads = self.deep_supervision_heads if self.deep_supervision else ()
        # zip ends with the heads: the coarsest level has none
        pairs = zip(heads, coarser, strict=False)
        return [self.output_block(finest), *(head(level) for head, level in pairs)]

    def _levels(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return what the decoder makes of each level, the finest first."""
        down = [self.input_block(images)]
        for layer in self.downsamples:
            down.append(layer(down[-1]))
        levels = [self.bottleneck(down[-1])]
        for layer, skip in zip(self.upsamples, reversed(down), strict=True):
            levels.append(layer(levels[-1], skip))
        return levels[::-1]


def dynunet(options: NetworkOptions) -> PaddedNetwork:
    """Return the network of ``options`` with nnU-Net's random weights (He et al. 2015)."""
    filters = DYNUNET[options.size]
    body = PlainUNet(filters, deep=options.deep_supervision)
    deep = options.deep_supervision
    return PaddedNetwork(body, factor=2 ** (len(filters) - 1), kind="dynunet", deep=deep)
