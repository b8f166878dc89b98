"""What training minimises: the loss of each crop, which depends on that crop alone.

Soft Dice of regions that overlap (WT holds TC holds ET, each a sigmoid of its own) plus an entropy,
summed for each sample: Dice over a batch would join patients, and no clip would bound them.

Sources: Milletari et al. 2016, arXiv:1606.04797 (Dice with squared denominators); Lin et al. 2017,
arXiv:1708.02002 (focal entropy, gamma 2); Isensee et al. 2021, Nature Methods 18 (weights of
coarser levels).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch.nn import functional

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From logits (B, 3, ...) and regions of that shape to the loss of each sample, (B,)."""

_GAMMA: Final = 2


def dice_bce(logits: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Return soft Dice loss plus binary cross-entropy of each sample, shape (B,).

    Dice is taken per sample and region with squared denominators and smoothed by 1, then averaged
    over the regions. No term joins two samples.
    """
    logits, truth = _comparable(logits, regions)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return _dice(logits, truth) + entropy.flatten(1).mean(1)


def dice_focal(logits: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Return soft Dice loss plus focal entropy of each sample, shape (B,).

    A voxel's entropy is weighted by (1 - the chance that it was given) ** 2, so that the many that
    are right already do not drown the few that are not.
    """
    logits, truth = _comparable(logits, regions)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    missed = (logits.sigmoid() - truth).abs()
    return _dice(logits, truth) + (missed**_GAMMA * entropy).flatten(1).mean(1)


LOSSES: Final[Mapping[str, Loss]] = {"dice_bce": dice_bce, "dice_focal": dice_focal}


def over_levels(loss: Loss, levels: Sequence[torch.Tensor], regions: torch.Tensor) -> torch.Tensor:
    """Return the loss of each sample over logits at several levels, the finest first, shape (B,).

    Each level weighs half of the one before; the weights add up to 1. The truth of a coarser voxel
    is the mean of what it covers.
    """
    weights = [0.5**level for level in range(len(levels))]
    truth = regions.to(levels[0].dtype if levels[0].dtype == torch.float64 else torch.float32)
    parts: list[torch.Tensor] = []
    for weight, logits in zip(weights, levels, strict=True):
        if parts:
            truth = functional.avg_pool3d(truth, 2, ceil_mode=True, count_include_pad=False)
        parts.append(loss(logits, truth) * (weight / sum(weights)))
    return torch.stack(parts).sum(0)


def _comparable(logits: torch.Tensor, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits, regions.to(logits.dtype)


def _dice(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    axes = tuple(range(2, logits.dim()))
    chance = logits.sigmoid()
    overlap = (chance * truth).sum(axes)
    volume = chance.square().sum(axes) + truth.square().sum(axes)
    return (1 - (2 * overlap + 1) / (volume + 1)).mean(1)
