"""Geometric median (RFA): the point with the least weighted sum of distances to all updates.

Smoothed Weiszfeld iterations from the weighted mean: each update counts with its weight over its
distance to the last point. The point is always a weighted mean of the updates, so that distances
to it follow from those between updates, which are computed once: with shares a, the squared
distance to update k is (sum over j of a_j D_jk) - (sum over i, j of a_i a_j D_ij) / 2. Iterations
then cost nothing. Sites with together less than half of the weight cannot take the result far
from the others.

Source: Pillutla et al. 2022, "Robust Aggregation for Federated Learning", IEEE Trans. Signal
Processing, algorithm 2. Their smoothing is a constant 1e-6; here it is 1e-6 of the smallest radius
around an update that takes in half of the others, so that larger updates give the same result,
larger, and hostile ones cannot widen it.

Privacy: post-processing. Noise of deviation s in each of d coordinates puts all honest updates at
about the same distance s sqrt(d), so that they count alike and the result has little more noise
than the mean. A hostile update without noise lies nearer to the middle and counts for more, up to
its full pull, though it must lie near the middle to do so.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from common.records.weights import Arrays
from common.study.aggregation_options import AggregationOptions
from server.aggregation.rule_state import parted
from server.aggregation.update_buffer import Block, Collection
from server.aggregation.update_checks import Intake

_SMOOTHING: Final = 1e-6


class GeometricMedian:
    """Memory: one float32 copy of every site's update."""

    def __init__(self, options: AggregationOptions, state: Arrays) -> None:
        parted(state)
        self._iterations = options.geometric_median_iterations
        self._intake = Intake()
        self._updates = Collection()

    def fold(self, site: str, update: Arrays, *, weight: float, steps: int) -> None:
        self._intake.admit(site, update, weight=weight, steps=steps)
        self._updates.add(site, update, weight=weight)

    def result(self) -> Arrays:
        self._intake.least(1, rule="geometric_median")
        shares = _shares(
            self._updates.squared_distances(), self._updates.weights(), self._iterations
        )
        return self._updates.reduced(lambda block: shares @ block)

    def state(self) -> Arrays:
        return {}


def _shares(squared: Block, weights: Block, iterations: int) -> Block:
    """Return with what share each update enters the geometric median; they sum to 1."""
    if not squared.any():
        return weights
    # The smallest radius around an update that takes in half of all others: a minority can make it
    # smaller and not larger. Where it is zero, smoothing only keeps the division defined.
    radius = np.sqrt(np.sort(squared, axis=1)[:, len(weights) // 2].min())
    least = float(_SMOOTHING * radius or 1e-30 * np.sqrt(squared[squared > 0].min()))
    shares = weights
    for _ in range(iterations):
        inner = squared @ shares
        distances = np.sqrt(np.maximum(inner - shares @ inner / 2, 0.0))
        pulls = weights / np.maximum(distances, least)
        shares = pulls / pulls.sum()
    return shares
