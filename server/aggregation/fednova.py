"""FedNova: the mean change of one local step, times the mean number of local steps.

A site that takes more steps would otherwise pull the model towards its own optimum. With shares p
and step counts t the change is (sum of p t) times (sum of p update / t); if all sites take equally
many steps, this is FedAvg.

Source: Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS, equations 5 and 6. The divisor is the one for plain SGD at the sites. Where
sites use momentum or Adam and take different numbers of steps, it is the nearest simple choice.

Privacy: post-processing, provided that the numbers of steps are public: the protocol's, never a
count that depends on a site's patients. A site of few steps has the relatively larger noise, and
dividing by its steps raises it further. Not robust.
"""

from __future__ import annotations

import math

from common.records.weights import Arrays
from common.study.aggregation_options import AggregationOptions
from server.aggregation.rule_state import parted
from server.aggregation.update_checks import Intake, rounded
from server.aggregation.weighted_mean import Mean


class FedNova:
    """Memory: two float64 copies of the update, whatever the number of sites."""

    def __init__(self, options: AggregationOptions, state: Arrays) -> None:  # noqa: ARG002
        parted(state)
        self._intake = Intake()
        self._mean = Mean()
        self._steps: list[float] = []

    def fold(self, site: str, update: Arrays, *, weight: float, steps: int) -> None:
        self._intake.admit(site, update, weight=weight, steps=steps)
        self._mean.add(update, weight=weight, factor=1 / steps)
        self._steps.append(weight * steps)

    def result(self) -> Arrays:
        self._intake.least(1, rule="fednova")
        steps = math.fsum(self._steps) / self._mean.weight
        return rounded((name, value * steps) for name, value in self._mean.items())

    def state(self) -> Arrays:
        return {}
