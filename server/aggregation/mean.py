"""A weighted mean that takes in one update after the other and keeps none of them.

Sums are float64: the order of the sites changes a sum by about 1e-16 of its terms, which rarely
outlives the rounding to float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from common.weights import Arrays


class Mean:
    """Memory: one float64 copy of the update, whatever the number of sites."""

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self.weight = 0.0
        """Sum of the weights so far."""

    def add(self, update: Arrays, *, weight: float, factor: float = 1.0) -> None:
        """Add ``factor`` times ``update``, which counts with ``weight``."""
        for name, value in update.items():
            if name in self._sums:
                self._sums[name] += np.multiply(value, weight * factor, dtype=np.float64)
            else:
                self._sums[name] = np.multiply(value, weight * factor, dtype=np.float64)
        self.weight += weight

    def items(self) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """Give each array's mean, one at a time."""
        for name, total in self._sums.items():
            yield name, np.asarray(total / self.weight)
