"""Trimmed mean: of each weight's changes, the largest and the smallest are left out of the mean.

At either end ``trim_share`` of the sites' weight is cut off; a site on the edge counts with what
is left of its weight. With equal weights and a share of 1/S this leaves out one site at either
end. Sites with together at most that share of the weight cannot take a coordinate out of the
others' range.

Source: Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates", ICML; there all weights are equal.

Privacy: post-processing. The noise of the result lies between that of the mean, at a small share,
and 1.25 times that, at a share near a half, where the rule is the median. As with the median,
hostile sites can hide within the noise s of a coordinate and shift it by a fraction of s.
"""

from __future__ import annotations

import numpy as np

from common.records.weights import Arrays
from common.study.aggregation_options import AggregationOptions
from server.aggregation.rule_state import parted
from server.aggregation.update_buffer import Block, Collection, ranked
from server.aggregation.update_checks import Intake


class TrimmedMean:
    """Memory: one float32 copy of every site's update."""

    def __init__(self, options: AggregationOptions, state: Arrays) -> None:
        parted(state)
        self._share = options.trim_share
        self._intake = Intake()
        self._updates = Collection()

    def fold(self, site: str, update: Arrays, *, weight: float, steps: int) -> None:
        self._intake.admit(site, update, weight=weight, steps=steps)
        self._updates.add(site, update, weight=weight)

    def result(self) -> Arrays:
        self._intake.least(1, rule="trimmed_mean")
        weights = self._updates.weights()
        return self._updates.reduced(lambda block: _trimmed(block, weights, self._share))

    def state(self) -> Arrays:
        return {}


def _trimmed(block: Block, weights: Block, share: float) -> Block:
    """Return the trimmed mean of each column of ``block``, shape (sites, n)."""
    values, weights = ranked(block, weights)
    # What is left of a site is the part of its stretch on [0, 1] between the two cuts.
    edges = weights.cumsum(axis=1).clip(share, 1 - share)
    left = np.diff(edges, axis=1, prepend=share)
    # A sliver that rounding left of a site would let a huge value through.
    left[left < 1e-12] = 0.0
    return np.asarray((left * values).sum(axis=1) / left.sum(axis=1))
