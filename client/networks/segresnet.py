"""SegResNet, the network that won BraTS 2018, with MONAI's layers, for volumes of any size.

Group norm and no dropout: the output for a patient depends on that patient alone, which private
training needs. Activations are not in place, since per-patient hooks would see changed values.

Source: Myronenko 2018, "3D MRI brain tumor segmentation using autoencoder regularization",
arXiv:1810.11654.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from monai.networks.nets.segresnet import SegResNet

from client.networks.padding import PaddedNetwork
from common.regions import MODALITIES, REGIONS
from common.study.network_shapes import SEGRESNET, SegResNetPlan
from common.study.protocol import NetworkOptions

_GROUPS: Final = 8


class LeveledSegResNet(SegResNet):
    """MONAI's SegResNet with a layer at its coarsest level and, if ``deep``, heads at others.

    ``bottleneck`` keeps the shape of what it is given. Names of weights are MONAI's, with those of
    ``bottleneck`` and ``heads`` beside them.
    """

    def __init__(
        self,
        plan: SegResNetPlan,
        bottleneck: Callable[[int], torch.nn.Module] | None,
        *,
        deep: bool,
    ) -> None:
        super().__init__(
            spatial_dims=3,
            init_filters=plan.filters,
            in_channels=len(MODALITIES),
            out_channels=len(REGIONS),
            act=("RELU", {"inplace": False}),
            norm=("GROUP", {"num_groups": _GROUPS}),
            blocks_down=plan.blocks_down,
            blocks_up=plan.blocks_up,
        )
        self.bottleneck = bottleneck(plan.deepest) if bottleneck else torch.nn.Identity()
        # The finest level has ``conv_final``.
        coarser = range(1, len(plan.blocks_up)) if deep else ()
        self.heads = torch.nn.ModuleList(
            torch.nn.Conv3d(plan.filters * 2**level, len(REGIONS), 1) for level in coarser
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 3, X, Y, Z)."""
        logits: torch.Tensor = self.conv_final(self._levels(images)[0])
        return logits

    def supervised(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits of each level that has a head, the finest first."""
        finest, *coarser = self._levels(images)
        # zip ends with the heads: coarsest levels have none
        pairs = zip(self.heads, coarser, strict=False)
        return [self.conv_final(finest), *(head(level) for head, level in pairs)]

    def _levels(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return what the decoder makes of each level that has a head, the finest first."""
        deepest, down = self.encode(images)
        down.pop()  # the deepest itself
        level, coarser = self.bottleneck(deepest), []
        for sample, layer in zip(self.up_samples, self.up_layers, strict=True):
            if self.heads:
                coarser.append(level)
            # A name for what is not needed any more would keep its memory through the layer.
            level = sample(level)
            level = level + down.pop()
            level = layer(level)
        return [level, *reversed(coarser)]


def segresnet(options: NetworkOptions) -> PaddedNetwork:
    """Return the network of ``options`` with torch's default random weights."""
    return leveled(options, None, kind="segresnet")


def leveled(
    options: NetworkOptions, bottleneck: Callable[[int], torch.nn.Module] | None, *, kind: str
) -> PaddedNetwork:
    """Return a SegResNet whose coarsest level goes through ``bottleneck(channels)``."""
    plan = SEGRESNET[options.size]
    body = LeveledSegResNet(plan, bottleneck, deep=options.deep_supervision)
    factor = 2 ** (len(plan.blocks_down) - 1)
    return PaddedNetwork(body, factor=factor, kind=kind, deep=options.deep_supervision)
