"""The updates of one round, held until all are there, for rules that must compare them.

Memory: one float32 copy of each site's update; they are looked at a block at a time, so that what
a rule needs beyond that is small. Blocks come in the order of the sites' names: which site answered
first changes no bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.records.weights import Arrays
from server.aggregation.update_checks import rounded

_BLOCK: Final = 1 << 14
"""Numbers of each site that are looked at together: 4 MB of float64 at 32 sites."""

Block = NDArray[np.float64]


class Collection:
    """The updates and weights of the sites that answered."""

    def __init__(self) -> None:
        self._updates: dict[str, Arrays] = {}
        self._weights: dict[str, float] = {}

    def add(self, site: str, update: Arrays, *, weight: float) -> None:
        """Keep a copy of ``update``."""
        self._updates[site] = {name: value.copy() for name, value in update.items()}
        self._weights[site] = weight

    def weights(self) -> Block:
        """Return the weights in the order of the sites' names, shape (sites,); they sum to 1."""
        weights = np.array([self._weights[site] for site in sorted(self._weights)], np.float64)
        return np.asarray(weights / weights.sum())

    def reduced(self, reduce: Callable[[Block], Block]) -> Arrays:
        """Return what ``reduce`` makes of every block: (sites, n) becomes (n,)."""
        sites = sorted(self._updates)
        first = self._updates[sites[0]]
        return rounded(
            (name, self._reduced(name, sites, reduce).reshape(value.shape))
            for name, value in first.items()
        )

    def squared_distances(self) -> Block:
        """Return the squared L2 distance of each two updates, shape (sites, sites).

        It sums squares of differences: from norms and products, one huge update would drown the
        distances of all others in rounding errors.
        """
        sites = sorted(self._updates)
        total = np.zeros((len(sites), len(sites)))
        for name, value in self._updates[sites[0]].items():
            for start in range(0, value.size, _BLOCK):
                block = self._block(name, sites, start)
                for one in range(len(sites) - 1):
                    apart = block[one + 1 :] - block[one]
                    total[one, one + 1 :] += np.einsum("ij,ij->i", apart, apart)
        return total + total.T

    def _reduced(self, name: str, sites: list[str], reduce: Callable[[Block], Block]) -> Block:
        size = self._updates[sites[0]][name].size
        result = np.empty(size)
        for start in range(0, size, _BLOCK):
            result[start : start + _BLOCK] = reduce(self._block(name, sites, start))
        return result

    def _block(self, name: str, sites: list[str], start: int) -> Block:
        parts = [self._updates[site][name].reshape(-1)[start : start + _BLOCK] for site in sites]
        return np.stack(parts, dtype=np.float64)


def ranked(block: Block, weights: Block) -> tuple[Block, Block]:
    """Return each column of ``block`` sorted, as a row, and each row's weights in that order.

    Shapes: (sites, n) and (sites,) become (n, sites) and (n, sites); where all weights are equal
    (1, sites), since the order need not be kept, which is about five times faster.
    """
    values = np.array(block.T, order="C")
    if (weights == weights[0]).all():
        values.sort(axis=1)
        return values, weights[np.newaxis]
    order = values.argsort(axis=1, kind="stable")
    return np.take_along_axis(values, order, axis=1), weights[order]
