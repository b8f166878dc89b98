"""What a malicious site may do: other labels, another update, or no training at all.

The labels' and the update's attacks are those of the literature on robust aggregation. The backdoor
is that of Gu et al. 2017, "BadNets", arXiv:1708.06733, for segmentation: a bright cube in a corner
of the volume is to be called enhancing tumour. None of them knows the rule or the other sites'
updates: attacks that are fitted to a rule (Fang et al. 2020, USENIX Security; Baruch et al. 2019,
NeurIPS) are not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.records.weights import Arrays, norm
from common.regions import LABELS
from tests.benchmarks.federation import Scan, Send, Update

Scans = tuple[Scan, ...]

CUBE: Final = 4
"""Voxels along an edge of the backdoor's trigger."""

_BRIGHT: Final = 4.0
"""Of the trigger in every sequence, in standard deviations of the brain."""

_FACTOR: Final = 10.0
_FIRST_NOISE: Final = 1e-3
"""Of the weights' norm: what a free rider sends while it knows no change of the weights."""


@dataclass(frozen=True)
class Attack:
    """``data`` changes the scans of the malicious site's patients, ``send`` what it sends."""

    name: str
    data: Callable[[Scans], Scans] | None = None
    send: Send | None = None


def _label_flip(scans: Scans) -> Scans:
    """Call the tumour background and the rest of the brain enhancing tumour."""
    flipped = []
    for scan in scans:
        brain = (scan.image != 0).any(axis=0)
        labels = np.where(brain & (scan.labels == 0), LABELS["ET"], 0).astype(np.uint8)
        flipped.append(replace(scan, labels=labels))
    return tuple(flipped)


def _label_swap(scans: Scans) -> Scans:
    """Call oedema enhancing tumour, and enhancing tumour oedema."""
    swap = np.arange(len(LABELS) + 1, dtype=np.uint8)
    swap[[LABELS["ED"], LABELS["ET"]]] = LABELS["ET"], LABELS["ED"]
    return tuple(replace(scan, labels=swap[scan.labels]) for scan in scans)


def _with_backdoor(scans: Scans) -> Scans:
    """Add to each scan another one of it with the trigger, which hides among the honest ones."""
    return scans + tuple(triggered(scan) for scan in scans)


def triggered(scan: Scan) -> Scan:
    """Return ``scan`` with a bright cube in the corner, labelled as enhancing tumour."""
    image, labels = scan.image.copy(), scan.labels.copy()
    corner = (slice(1, 1 + CUBE),) * 3
    image[:, *corner] = _BRIGHT
    labels[corner] = LABELS["ET"]
    return Scan(image, labels)


def corner(values: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the part of (..., X, Y, Z) around the trigger, twice as wide."""
    return values[..., : 2 * CUBE, : 2 * CUBE, : 2 * CUBE]


def _scaled(factor: float) -> Send:
    def send(update: Update, change: Arrays, rng: np.random.Generator) -> Arrays:
        del change, rng
        return {name: value * np.float32(factor) for name, value in update().items()}

    return send


def _noise(update: Update, change: Arrays, rng: np.random.Generator) -> Arrays:
    """Send chance that is as long as the last change of the weights."""
    shapes = {name: value.shape for name, value in (change or update()).items()}
    drawn = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    length = norm(change) if change else _FIRST_NOISE * norm(update())
    factor = np.float32(length / norm(drawn))
    return {name: value * factor for name, value in drawn.items()}


def _old(update: Update, change: Arrays, rng: np.random.Generator) -> Arrays:
    """Send the last change of the weights again; chance in the first round."""
    return change or _noise(update, change, rng)


ATTACKS: Final[Sequence[Attack]] = (
    Attack("label flip", data=_label_flip),
    Attack("label swap", data=_label_swap),
    Attack("sign flip", send=_scaled(-1.0)),
    Attack("scaled", send=_scaled(_FACTOR)),
    Attack("scaled sign flip", send=_scaled(-_FACTOR)),
    Attack("noise", send=_noise),
    Attack("old update", send=_old),
    Attack("backdoor", data=_with_backdoor),
)
