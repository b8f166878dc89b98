"""What a rule keeps from one round to the next: named float32 arrays, as ``common.records.weights``
saves.

An array's name is its kind and the name that it has in the update: ``momentum/conv.weight``. The
next round starts from the rounded arrays whether the coordinator was restarted or not, so that
both give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from common.errors import FederationError
from common.records.weights import Arrays


def joined(kinds: Mapping[str, Arrays]) -> Arrays:
    """Return the arrays of all ``kinds`` under one set of names."""
    return {
        f"{kind}/{name}": value for kind, arrays in kinds.items() for name, value in arrays.items()
    }


def parted(state: Arrays, *kinds: str) -> tuple[Arrays, ...]:
    """Return the arrays of each of ``kinds``; all are empty in a study's first round.

    Raises FederationError if ``state`` holds anything else or is no state that a rule wrote.
    """
    found: dict[str, Arrays] = {kind: {} for kind in kinds}
    for key, value in state.items():
        kind, _, name = key.partition("/")
        if kind not in found or not name:
            raise _foreign(f"it holds {key!r}")
        if value.dtype != np.float32 or not np.isfinite(value).all():
            raise _foreign(f"{key!r} is not finite float32")
        found[kind][name] = value
    return tuple(found.values())


def shapes(*parts: Arrays) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes that ``parts`` share; raise FederationError if they differ."""
    said = [{name: value.shape for name, value in part.items()} for part in parts]
    if any(other != said[0] for other in said[1:]):
        raise _foreign("its parts have different names or shapes")
    return said[0]


def _foreign(reason: str) -> FederationError:
    return FederationError(
        f"The rule cannot go on from the state of the round before: {reason}.",
        do="Restore the study's folder from a backup.",
    )
