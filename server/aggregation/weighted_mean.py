"""A weighted mean that takes in one update after the other and keeps none of them.

Sums are kept as the sum of two float64, so that what rounding takes from the first is kept in the
second ("TwoSum": Knuth, The Art of Computer Programming 2, section 4.2.2; Ogita, Rump & Oishi 2005,
"Accurate Sum and Dot Product", SIAM J. Sci. Comput.). The order in which sites answer then changes
no bit: for up to 1,000 sites a sum is exact as long as its terms, update times weight, are zero or
within a factor of 2**30 of each other (2**50, where weights are 1 or other powers of two). Beyond
that it is off by at most 2**-75 of the largest term, and that would have to decide a rounding to
float32 to show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.records.weights import Arrays

_BLOCK: Final = 1 << 15
"""Numbers that are added together: what an addition needs beside the sums stays in the cache."""


class Mean:
    """Memory: two float64 copies of the update, whatever the number of sites."""

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._weights: list[float] = []

    @property
    def weight(self) -> float:
        """Sum of the weights so far, the same in whatever order they came."""
        return math.fsum(self._weights)

    def add(self, update: Arrays, *, weight: float, factor: float = 1.0) -> None:
        """Add ``factor`` times ``update``, which counts with ``weight``."""
        for name, value in update.items():
            if name not in self._sums:
                self._sums[name] = np.zeros((2, value.size))
                self._shapes[name] = value.shape
            _add(self._sums[name], value.reshape(-1), weight * factor)
        self._weights.append(weight)

    def items(self) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """Give each array's mean, one at a time."""
        weight = self.weight
        for name, (total, rest) in self._sums.items():
            yield name, ((total + rest) / weight).reshape(self._shapes[name])


def _add(sums: NDArray[np.float64], values: NDArray[np.float32], factor: float) -> None:
    """Add ``factor`` times ``values`` (n,) to ``sums`` (2, n), in place."""
    with np.errstate(over="ignore", invalid="ignore"):  # whoever rounds the result refuses those
        for start in range(0, values.size, _BLOCK):
            total, rest = sums[:, start : start + _BLOCK]
            term = np.multiply(values[start : start + _BLOCK], factor, dtype=np.float64)
            after = total + term
            gained = after - total
            rest += (total - (after - gained)) + (term - gained)
            total[:] = after
