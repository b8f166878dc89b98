"""How a network is told that a sequence is missing: a value in the brain that no present one has.

A sequence that is there is z-scored between two percentiles, and lies well above ``ABSENT``; what
is outside the brain is 0 in all. So no input has to be added, and weights that were trained on
whole cases can be used. Without contrast-enhanced T1 and FLAIR both, nothing can be said.
"""

from __future__ import annotations

from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.regions import MODALITIES

ABSENT: Final = -5.0

NEEDED: Final = ("t1c", "t2f")
"""Of these sequences one at least must be there."""

PARTIAL: Final[tuple[tuple[bool, ...], ...]] = tuple(
    there
    for there in product((True, False), repeat=len(MODALITIES))
    if not all(there) and any(there[MODALITIES.index(name)] for name in NEEDED)
)
"""Every way in which a case may lack sequences: what is there, in the order of MODALITIES."""


def present(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which channels of ``image`` (4, ...) are there; all, where there is no brain."""
    inside = (image != 0).any(axis=0)
    there: NDArray[np.bool_] = (image[:, inside] != ABSENT).any(axis=1)
    return there if inside.any() else np.ones(len(image), bool)


def blank(image: NDArray[np.float32], there: tuple[bool, ...]) -> None:
    """Make the channels that are not ``there`` absent, in place; outside the brain stays 0."""
    inside = (image != 0).any(axis=0)
    for channel, kept in zip(image, there, strict=True):
        if not kept:
            channel[inside] = ABSENT
