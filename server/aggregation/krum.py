"""Krum and Multi-Krum: the update nearest to its neighbours, or the mean of the nearest few.

With S sites of which ``malicious_sites`` f may be hostile, an update's score is the sum of its
squared distances to the S - f - 2 others nearest to it. Krum returns the one with the lowest score,
Multi-Krum the plain mean of the ``krum_keep`` lowest. Equal scores go by the sites' names. Needs S
of at least 2 f + 3. Weights do not count: the mathematics counts heads.

Source: Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent", NIPS.

Privacy: post-processing, but a poor match. Krum's result is one site's update with all its noise s
in each of d coordinates, not s / sqrt(S). Two honest updates lie s sqrt(2 d) apart by noise alone:
what differs by less cannot be told. And a hostile site that leaves its noise out lies only
s sqrt(d) from every honest one, is the most central of all, and is the one that Krum takes. With
privacy use a median or a trimmed mean.
"""

from __future__ import annotations

import numpy as np

from common.records.weights import Arrays
from common.study.aggregation_options import AggregationOptions
from server.aggregation.rule_state import parted
from server.aggregation.update_buffer import Block, Collection
from server.aggregation.update_checks import Intake


class Krum:
    """Krum with ``keep`` of 1, Multi-Krum with more.

    Memory: one float32 copy of every site's update.
    """

    def __init__(self, options: AggregationOptions, state: Arrays, *, keep: int) -> None:
        parted(state)
        self._rule = options.rule
        self._malicious = options.malicious_sites
        self._keep = keep
        self._intake = Intake()
        self._updates = Collection()

    def fold(self, site: str, update: Arrays, *, weight: float, steps: int) -> None:
        self._intake.admit(site, update, weight=weight, steps=steps)
        self._updates.add(site, update, weight=weight)

    def result(self) -> Arrays:
        least = max(2 * self._malicious + 3, self._keep + self._malicious)
        self._intake.least(least, rule=self._rule)
        scores = _scores(self._updates.squared_distances(), self._malicious)
        kept = np.sort(np.argsort(scores, kind="stable")[: self._keep])
        return self._updates.reduced(lambda block: block[kept].mean(axis=0))

    def state(self) -> Arrays:
        return {}


def krum(options: AggregationOptions, state: Arrays) -> Krum:
    """Return the rule that takes one site's update."""
    return Krum(options, state, keep=1)


def multi_krum(options: AggregationOptions, state: Arrays) -> Krum:
    """Return the rule that takes the mean of ``options.krum_keep`` updates."""
    return Krum(options, state, keep=options.krum_keep)


def _scores(squared: Block, malicious: int) -> Block:
    """Return the sum of each update's squared distances to its nearest others."""
    nearest = len(squared) - malicious - 2
    others = squared + np.diag(np.full(len(squared), np.inf))
    return np.asarray(np.sort(others, axis=1)[:, :nearest].sum(axis=1))
