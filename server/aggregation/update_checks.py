"""What a rule demands of each update before it counts, and how its result leaves.

Invariant: an update that is refused has changed nothing. The rounds check updates against the
network before (``common.records.weights.check_like``); a rule does not rely on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from common.errors import FederationError
from common.records.weights import Arrays


class Intake:
    """Admits the updates of one round: each site once, all of one form, every number finite.

    ``shapes`` are those of the arrays that the rule kept from the round before, if it kept any.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self._shapes = dict(shapes or {})
        self._sites: set[str] = set()

    def admit(self, site: str, update: Arrays, *, weight: float, steps: int) -> None:
        """Raise FederationError if the update of ``site`` may not be folded."""
        if site in self._sites:
            raise _refused(site, "it has one in this round already")
        if not 0 < weight < math.inf:
            raise _refused(site, f"its weight must be positive and finite, not {weight}")
        if steps < 1:
            raise _refused(site, f"its number of local steps must be positive, not {steps}")
        shapes = {name: value.shape for name, value in update.items()}
        expected = self._shapes or shapes
        if not shapes:
            raise _refused(site, "it holds no array")
        for name in sorted(expected.keys() ^ shapes.keys()):
            state = "is missing" if name in expected else "is not in those before"
            raise _refused(site, f"array {name!r} {state}")
        for name, value in update.items():
            if value.dtype != np.float32:
                raise _refused(site, f"array {name!r} is {value.dtype}, not float32")
            if value.shape != expected[name]:
                raise _refused(
                    site, f"array {name!r} has shape {value.shape}, before {expected[name]}"
                )
            if not np.isfinite(value).all():
                raise _refused(site, f"array {name!r} holds a value that is not finite")
        self._shapes = expected
        self._sites.add(site)

    def least(self, sites: int, *, rule: str) -> None:
        """Raise FederationError unless at least ``sites`` were admitted."""
        if not self._sites:
            raise FederationError("There is no update to aggregate.")
        if len(self._sites) < sites:
            raise FederationError(
                f"The rule {rule} needs {sites} updates, there are {len(self._sites)}.",
                do="Raise the quorum of the protocol.",
            )


def rounded(arrays: Iterable[tuple[str, NDArray[np.float64]]]) -> Arrays:
    """Return ``arrays`` as float32; raise FederationError if one is not finite any more."""
    result: Arrays = {}
    for name, value in arrays:
        with np.errstate(over="ignore"):
            result[name] = np.asarray(value, np.float32)
        if not np.isfinite(result[name]).all():
            raise FederationError(
                f"Array {name!r} of the combined update is not finite.",
                do="Lower aggregation.max_update_norm or the server's learning rate.",
            )
    return result


def _refused(site: str, reason: str) -> FederationError:
    return FederationError(
        f"The update of {site} cannot be aggregated: {reason}.",
        do="Check that all sites run the same version of gliofed and the same protocol.",
    )
