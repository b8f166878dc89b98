"""Sequences that a case lacks: which may be missing, and how a network is told.

A network is told by a value in the brain that no present sequence has: one that is there is
z-scored between two percentiles, and lies well above ``ABSENT``; what is outside the brain is 0 in
all. So no input has to be added, and weights that were trained on whole cases can be used. Without
contrast-enhanced T1 and FLAIR both, nothing can be said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import CaseError
from common.regions import MODALITIES

ABSENT: Final = -5.0

NEEDED: Final = ("t1c", "t2f")
"""Of these sequences one at least must be there. The first of them that is there is a case's
reference: raw input is laid over it, and results go back to its grid."""

There = tuple[bool, ...]
"""What is there, in the order of MODALITIES."""


def sufficient(names: Iterable[str]) -> bool:
    """Say whether a case with these sequences can be used at all."""
    return not set(names).isdisjoint(NEEDED)


def _holds(there: There) -> bool:
    return sufficient(name for name, kept in zip(MODALITIES, there, strict=True) if kept)


PARTIAL: Final[tuple[There, ...]] = tuple(
    there
    for there in product((True, False), repeat=len(MODALITIES))
    if not all(there) and _holds(there)
)
"""Every way in which a case may lack sequences."""


def sparser(there: There) -> tuple[There, ...]:
    """Return every way in which a case that has ``there`` may lack more; () for a last one."""
    return tuple(
        fewer
        for fewer in PARTIAL
        if fewer != there and all(old or not new for old, new in zip(there, fewer, strict=True))
    )


def present(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which channels of ``image`` (4, ...) are there; all, where there is no brain."""
    inside = (image != 0).any(axis=0)
    there: NDArray[np.bool_] = (image[:, inside] != ABSENT).any(axis=1)
    return there if inside.any() else np.ones(len(image), bool)


def blank(image: NDArray[np.float32], there: There) -> None:
    """Make the channels that are not ``there`` absent, in place; outside the brain stays 0."""
    inside = (image != 0).any(axis=0)
    for channel, kept in zip(image, there, strict=True):
        if not kept:
            channel[inside] = ABSENT


def check_usable(case: str, missing: Sequence[str], *, sequence_dropout: float) -> None:
    """Raise CaseError (code ``case-sequence``) where a network cannot do without ``missing``.

    Only one that was trained with ``sequence_dropout`` has learnt what an absent sequence is.
    """
    if missing and not sequence_dropout:
        raise CaseError(
            f"{case} lacks {', '.join(missing)}, and the study's networks are trained on whole "
            "cases (sequence_dropout = 0).",
            do="Add what is missing, or use a model of a study with training.sequence_dropout.",
            code="case-sequence",
        )
