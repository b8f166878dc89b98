"""What FedAdam, FedYogi and FedAdagrad share: a step size of its own for each weight.

With the mean update D, m <- b m + (1 - b) D, and v the rule's running mean of D^2, the weights
change by server_learning_rate * m / (sqrt(v) + server_adaptivity); v starts at
server_adaptivity^2, m at zero, and neither is corrected for its start. Source: Reddi et al. 2021,
"Adaptive Federated Optimization", ICLR, algorithm 2.

Privacy: post-processing of noised updates. v then holds the square of the noise in every weight,
the same everywhere: where noise is larger than signal, the rules step like FedAvgM with a constant
factor, and ``server_adaptivity`` well below the noise has no effect. Not robust, though one update
cannot move a weight by more than about the learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from common.errors import FederationError
from common.records.weights import Arrays
from common.study.aggregation_options import AggregationOptions
from server.aggregation.rule_state import joined, parted, shapes
from server.aggregation.update_checks import Intake, rounded
from server.aggregation.weighted_mean import Mean

Array = NDArray[np.float64]
Second = Callable[[Array, Array], Array]
"""Makes the new v of the old one and D^2."""


class Adaptive:
    """One round of one of the three rules.

    Memory: two float64 and two float32 copies of the update; kept between rounds: two float32
    copies, ``momentum`` and ``second``.
    """

    def __init__(self, options: AggregationOptions, state: Arrays, second: Second) -> None:
        self._options = options
        self._second = second
        self._old_momentum, self._old_second = parted(state, "momentum", "second")
        self._intake = Intake(shapes(self._old_momentum, self._old_second))
        if any((value < 0).any() for value in self._old_second.values()):
            raise FederationError(
                "The rule cannot go on from the state of the round before: a square is negative.",
                do="Restore the study's folder from a backup.",
            )
        self._mean = Mean()

    def fold(self, site: str, update: Arrays, *, weight: float, steps: int) -> None:
        self._intake.admit(site, update, weight=weight, steps=steps)
        self._mean.add(update, weight=weight)

    def result(self) -> Arrays:
        rate, floor = self._options.server_learning_rate, self._options.server_adaptivity
        return rounded((n, rate * m / (np.sqrt(v) + floor)) for n, m, v in self._next())

    def state(self) -> Arrays:
        return joined(
            {
                "momentum": rounded((name, momentum) for name, momentum, _ in self._next()),
                "second": rounded((name, second) for name, _, second in self._next()),
            }
        )

    def _next(self) -> Iterator[tuple[str, Array, Array]]:
        """Give name, m and v of each array, one at a time."""
        self._intake.least(1, rule=self._options.rule)
        keep, floor = self._options.server_momentum, self._options.server_adaptivity
        for name, mean in self._mean.items():
            old_momentum = np.asarray(self._old_momentum.get(name, 0.0), np.float64)
            old_second = np.asarray(self._old_second.get(name, floor**2), np.float64)
            momentum = keep * old_momentum + (1 - keep) * mean
            yield name, momentum, self._second(np.broadcast_to(old_second, mean.shape), mean**2)
