"""How a patient's gradient comes to be no longer than the clipping norm C.

- ``flat``: scaled down to C if it is longer (Abadi et al. 2016, arXiv:1607.00133).
- ``per_layer``: each of L arrays by itself, to C / sqrt(L), so that one with long gradients does
  not take the room of the others (McMahan et al. 2018, arXiv:1710.06963).
- ``automatic``: scaled by C / (norm + 0.01), also where it is shorter, so that every patient weighs
  about the same and C need not be found; of the learning rate it is a factor (Bu et al. 2023,
  "Automatic clipping", arXiv:2206.07136).

Invariant: whatever the gradient, the true L2 norm of what comes back is at most C.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal

import torch

_ROUNDING: Final = 2.0**-53
_SQUARABLE: Final = (1e-100, 1e100)
_STABILITY: Final = 0.01

Clipping = Literal["flat", "per_layer", "automatic"]
Clip = Callable[[torch.Tensor], torch.Tensor]
"""Makes a flat float64 gradient short enough."""


def clip(gradient: torch.Tensor, clipping_norm: float, *, stability: float = 0.0) -> torch.Tensor:
    """Return a flat float64 gradient, scaled down to ``clipping_norm`` if its L2 norm is above.

    With ``stability`` it is scaled by ``clipping_norm / (norm + stability)``, up or down. The
    result's true norm is never above ``clipping_norm``, whatever float64 rounds: the norm of n
    numbers is computed to n / 2 + 5 roundings, however they are added, and so much less is allowed.
    A gradient that is not finite becomes zero.
    """
    if not gradient.numel():
        return gradient
    lowest, highest = (float(extreme) for extreme in torch.aminmax(gradient))
    largest = max(-lowest, highest)
    if largest == 0.0:
        return gradient
    if not math.isfinite(largest):  # so are the extremes of NaN
        return torch.zeros_like(gradient)
    margin = 1 - (gradient.numel() + 16) * _ROUNDING
    if _SQUARABLE[0] <= largest <= _SQUARABLE[1]:
        length = float(torch.linalg.vector_norm(gradient))
        if not stability and length <= clipping_norm * margin:
            return gradient
        return gradient * (clipping_norm / (length + stability) * margin)
    # The largest entry is taken out first: squares of huge entries would overflow.
    scaled = gradient / largest
    length = float(torch.linalg.vector_norm(scaled))
    if not stability and largest * length <= clipping_norm * margin:
        return gradient
    return scaled * (clipping_norm / (length + stability / largest) * margin)


def clipper(kind: Clipping, clipping_norm: float, sizes: list[int]) -> Clip:
    """Return the clip of ``kind`` for gradients that are flat arrays of ``sizes``, one by one."""
    if kind == "automatic":
        return lambda gradient: clip(gradient, clipping_norm, stability=_STABILITY)
    if kind == "flat":
        return lambda gradient: clip(gradient, clipping_norm)
    # Rounded down, so that the parts together are no longer than the whole may be.
    each = math.nextafter(clipping_norm / math.sqrt(len(sizes)) * (1 - 4 * _ROUNDING), 0.0)

    def per_layer(gradient: torch.Tensor) -> torch.Tensor:
        return torch.cat([clip(part, each) for part in torch.split(gradient, sizes)])

    return per_layer
