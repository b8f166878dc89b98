"""FedAvgM: federated averaging with momentum on the server.

v <- server_momentum * v + mean update; the weights change by server_learning_rate * v. Source: Hsu
et al. 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", arXiv:1909.06335.

Privacy: post-processing of noised updates. Momentum b adds up the noise of past rounds: its
deviation grows by 1/sqrt(1 - b^2), 2.3 at 0.9, while a steady signal grows by 1/(1 - b), 10. Not
robust, and a bad update goes on acting in later rounds.
"""

from __future__ import annotations

import numpy as np

from common.records.weights import Arrays
from common.study.aggregation_options import AggregationOptions
from server.aggregation.rule_state import joined, parted, shapes
from server.aggregation.update_checks import Intake, rounded
from server.aggregation.weighted_mean import Mean


class FedAvgM:
    """Memory: two float64 copies of the update; kept between rounds: one float32 copy."""

    def __init__(self, options: AggregationOptions, state: Arrays) -> None:
        self._options = options
        (self._momentum,) = parted(state, "momentum")
        self._intake = Intake(shapes(self._momentum))
        self._mean = Mean()

    def fold(self, site: str, update: Arrays, *, weight: float, steps: int) -> None:
        self._intake.admit(site, update, weight=weight, steps=steps)
        self._mean.add(update, weight=weight)

    def result(self) -> Arrays:
        rate = self._options.server_learning_rate
        return rounded(
            (name, np.multiply(value, rate, dtype=np.float64))
            for name, value in self._next().items()
        )

    def state(self) -> Arrays:
        return joined({"momentum": self._next()})

    def _next(self) -> Arrays:
        self._intake.least(1, rule="fedavgm")
        none = np.zeros((), np.float32)
        return rounded(
            (
                name,
                np.multiply(
                    self._momentum.get(name, none),
                    self._options.server_momentum,
                    dtype=np.float64,
                )
                + mean,
            )
            for name, mean in self._mean.items()
        )
