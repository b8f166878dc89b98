"""Coordinate-wise median: of each weight's changes, the one with half the weight on either side.

Where exactly half lies on one side, the middle between the two next to it, so that with equal
weights this is the ordinary median. Sites with together less than half of the weight cannot take
a coordinate out of the others' range.

Source: Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates", ICML.

Privacy: post-processing. Each site's update carries noise of deviation s in every coordinate, for
one step sigma C / (q n) times the learning rate. Of S sites the median keeps s 1.25 / sqrt(S), the
mean s / sqrt(S): a quarter more noise. And f hostile sites can hide in it: they shift each
coordinate by about 1.25 s f / (S - f), in the same direction every round.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from common.records.weights import Arrays
from common.study.aggregation_options import AggregationOptions
from server.aggregation.rule_state import parted
from server.aggregation.update_buffer import Block, Collection, ranked
from server.aggregation.update_checks import Intake

_EQUAL: Final = 1e-9
"""Shares this close are equal: a sum of the same weights in another order differs in last bits."""


class CoordinateMedian:
    """Memory: one float32 copy of every site's update."""

    def __init__(self, options: AggregationOptions, state: Arrays) -> None:  # noqa: ARG002
        parted(state)
        self._intake = Intake()
        self._updates = Collection()

    def fold(self, site: str, update: Arrays, *, weight: float, steps: int) -> None:
        self._intake.admit(site, update, weight=weight, steps=steps)
        self._updates.add(site, update, weight=weight)

    def result(self) -> Arrays:
        self._intake.least(1, rule="coordinate_median")
        weights = self._updates.weights()
        return self._updates.reduced(lambda block: _median(block, weights))

    def state(self) -> Arrays:
        return {}


def _median(block: Block, weights: Block) -> Block:
    """Return the weighted median of each column of ``block``, shape (sites, n)."""
    values, weights = ranked(block, weights)
    below = weights.cumsum(axis=1)
    lower = (below >= 0.5 - _EQUAL).argmax(axis=1, keepdims=True)
    upper = (below > 0.5 + _EQUAL).argmax(axis=1, keepdims=True)
    low, high = (np.take_along_axis(values, at, axis=1)[:, 0] for at in (lower, upper))
    return np.asarray(low + (high - low) / 2)
