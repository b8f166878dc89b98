"""Federated averaging: the weighted mean of the sites' updates.

Source: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS. FedProx (Li et al. 2020), layers that stay at their site (FedBN, Li et al. 2021)
and Ditto (Li et al. 2021) change what a site computes; on the coordinator they are this rule.

Privacy: post-processing; the mean of noised updates costs nothing more, and with S sites of equal
weight its noise is 1/sqrt(S) of one site's. Not robust: one site of S moves the mean by 1/S of
whatever it sends.
"""

from __future__ import annotations

from common.records.weights import Arrays
from common.study.aggregation_options import AggregationOptions
from server.aggregation.rule_state import parted
from server.aggregation.update_checks import Intake, rounded
from server.aggregation.weighted_mean import Mean


class FedAvg:
    """Memory: two float64 copies of the update, whatever the number of sites."""

    def __init__(self, options: AggregationOptions, state: Arrays) -> None:  # noqa: ARG002
        parted(state)
        self._intake = Intake()
        self._mean = Mean()

    def fold(self, site: str, update: Arrays, *, weight: float, steps: int) -> None:
        self._intake.admit(site, update, weight=weight, steps=steps)
        self._mean.add(update, weight=weight)

    def result(self) -> Arrays:
        self._intake.least(1, rule="fedavg")
        return rounded(self._mean.items())

    def state(self) -> Arrays:
        return {}
