"""Norm-bounded mean: an update longer than ``norm_bound`` is scaled down to it, then the mean.

No site moves the mean by more than its share of the bound, however long its update: the rule for
consortia too small for the others, and the only robust one that holds no updates. It bounds an
attack and does not remove it: within the bound, a site sends what it likes.

Source: Sun et al. 2019, "Can You Really Backdoor Federated Learning?", arXiv:1911.07963, the norm
threshold; without the noise that they add, which here the sites do.

Privacy: post-processing. Noise of deviation s in each of d weights makes every honest update about
s sqrt(d) long; a bound below that cuts the signal in the same proportion, one far above it leaves
an attacker that room. This bound is on a site's update and gives no privacy of its own.
"""

from __future__ import annotations

from common.errors import FederationError
from common.records.weights import Arrays, norm
from common.study.aggregation_options import AggregationOptions
from server.aggregation.rule_state import parted
from server.aggregation.update_checks import Intake, rounded
from server.aggregation.weighted_mean import Mean


class NormBoundedMean:
    """Memory: two float64 copies of the update, whatever the number of sites."""

    def __init__(self, options: AggregationOptions, state: Arrays) -> None:
        parted(state)
        if options.norm_bound is None:
            raise FederationError("The rule norm_bounded_mean needs aggregation.norm_bound.")
        self._bound = options.norm_bound
        self._intake = Intake()
        self._mean = Mean()

    def fold(self, site: str, update: Arrays, *, weight: float, steps: int) -> None:
        self._intake.admit(site, update, weight=weight, steps=steps)
        length = norm(update)
        factor = self._bound / length if length > self._bound else 1.0
        self._mean.add(update, weight=weight, factor=factor)

    def result(self) -> Arrays:
        self._intake.least(1, rule="norm_bounded_mean")
        return rounded(self._mean.items())

    def state(self) -> Arrays:
        return {}
