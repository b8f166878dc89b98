"""Where a sliding window looks at a volume, and how much each look counts.

The windows have one shape, lie inside the volume and are spread evenly, so that neighbours overlap
by at least the wanted share. Pure; what a network sees there is
``client.segmentation.prediction``'s.

Source: the Gaussian weights and their floor are those of MONAI's ``SlidingWindowInferer`` (sigma an
eighth of the window), as nnU-Net introduced them (Isensee et al. 2021, Nature Methods 18:203).
"""

from __future__ import annotations

import itertools
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.imaging.grid import Box

Shape = tuple[int, int, int]

WHOLE: Final = 1.5
"""An axis of at most so many times the window is seen whole: no border in it is seen twice."""

_SIGMA: Final = 0.125
_FLOOR: Final = 1e-3


def window_shape(shape: Shape, size: Shape) -> Shape:
    """Return the windows' shape in a volume of ``shape``, given the crops' ``size``."""
    x, y, z = (n if n <= WHOLE * s else s for n, s in zip(shape, size, strict=True))
    return x, y, z


def windows(shape: Shape, window: Shape, *, overlap: float) -> list[Box]:
    """Return the windows that cover a volume of ``shape``, the last axis fastest.

    ``overlap`` is the share of a window that it has at least in common with the next one. There are
    as many as MONAI takes; those end with a smaller step, these have equal ones.
    """
    sides = [_starts(n, w, overlap) for n, w in zip(shape, window, strict=True)]
    x, y, z = window
    return [
        (slice(a, a + x), slice(b, b + y), slice(c, c + z)) for a, b, c in itertools.product(*sides)
    ]


def gaussian(window: Shape) -> NDArray[np.float32]:
    """Return the weight of each voxel of a window, 1 in its centre."""
    weight = np.ones((), np.float64)
    for n in window:
        place = (np.arange(n) - (n - 1) / 2) / (_SIGMA * n)
        weight = np.multiply.outer(weight, np.exp(-(place**2) / 2))
    return np.maximum(weight, _FLOOR).astype(np.float32)


def _starts(n: int, window: int, overlap: float) -> list[int]:
    step = max(1, int(window * (1 - overlap)))
    count = math.ceil((n - window) / step) + 1
    return [round(place) for place in np.linspace(0, n - window, count)]
