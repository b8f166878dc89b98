"""Federated averaging: the weighted mean of the sites' updates.

Source: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS. Under privacy it is post-processing: the mean of noised updates costs nothing more,
and with S sites of equal weight its noise is 1/sqrt(S) of one site's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.errors import FederationError
from common.weights import Arrays


class FedAvg:
    """Memory: one float64 copy of the update, whatever the number of sites."""

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._weight = 0.0

    def fold(self, update: Arrays, *, weight: float) -> None:
        """Add ``weight`` times ``update``."""
        if not 0 < weight < float("inf"):
            raise FederationError(f"A site's weight must be positive, not {weight}.")
        for name, value in update.items():
            if name in self._sums:
                self._sums[name] += weight * value
            else:
                self._sums[name] = np.multiply(value, weight, dtype=np.float64)
        self._weight += weight

    def result(self) -> Arrays:
        """Return the weighted mean as float32; raise FederationError if nothing was folded."""
        if self._weight == 0:
            raise FederationError("There is no update to aggregate.")
        return {
            name: np.asarray(total / self._weight, np.float32) for name, total in self._sums.items()
        }
