"""What every network of the zoo is wrapped in: volumes of any size in, logits of that size out."""

from __future__ import annotations

import torch
from torch.nn import functional

from client.networks.group_norm import exact


class PaddedNetwork(torch.nn.Module):
    """Pads the volume with zeros to a multiple of ``factor`` and crops the logits back.

    ``kind`` is the name of the network in a protocol. ``deep`` says that coarser levels have heads
    too, which training supervises and prediction does not use (Lee et al. 2015, "Deeply-supervised
    nets", arXiv:1409.5185).
    """

    def __init__(
        self, body: torch.nn.Module, *, factor: int, kind: str, deep: bool = False
    ) -> None:
        super().__init__()
        self.body = body
        self.factor = factor
        self.kind = kind
        self.deep = deep
        exact(body)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 3, X, Y, Z) for images (B, 4, X, Y, Z)."""
        x, y, z = images.shape[2:]
        logits: torch.Tensor = self.body(self._padded(images))
        return logits[:, :, :x, :y, :z]

    def supervised(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits of ``forward``, then of each coarser level with a head.

        A coarser level has the shape (B, 3, X', Y', Z') of the padded volume, halved once or more,
        rounded up: voxel i of it covers the voxels 2 i and 2 i + 1 of the finer one.
        """
        x, y, z = images.shape[2:]
        found: list[torch.Tensor] = self.body.supervised(self._padded(images))  # type: ignore[operator]
        levels = []
        for level, logits in enumerate(found):
            a, b, c = (-(-size // 2**level) for size in (x, y, z))
            levels.append(logits[:, :, :a, :b, :c])
        return levels

    def _padded(self, images: torch.Tensor) -> torch.Tensor:
        x, y, z = images.shape[2:]
        missing = [-size % self.factor for size in (x, y, z)]
        if any(missing):
            images = functional.pad(images, (0, missing[2], 0, missing[1], 0, missing[0]))
        return images
