"""SCAFFOLD on the coordinator: the mean update, and the control variate that corrects drift.

A site steps along g - c_i + c, where c_i is its own mean gradient of before and c the mean of all
sites' c_i. After K plain SGD steps at learning rate r it sets c_i to c_i - c - update / (K r), so
that the change of c_i is - update / (K r) - c, whatever c_i was: the coordinator computes it from
the update and from what it sent. Nothing else leaves a site.

Source: Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning", ICML, option II. As there, c is the mean over all sites and not over those of a round:
here over all that ever took part, by their public weights (the paper's are equal), because who
will take part is not known before. The paper's server step is ``server_learning_rate``.

The protocol's learning rate is constant, so the state holds - r c, the mean step of a site, which
needs no learning rate; ``control`` divides by it.

Requires plain SGD at the sites: with momentum or Adam an update is no sum of gradients. A site
changes its c_i if, and only if, its update was folded into a closed round; else c is no longer the
mean of the c_i.

Privacy: post-processing, on either side, if c_i comes from the noised update as it was sent, and if
c - c_i is added to the step's gradient after clipping and noise. In one site's update the
correction carries about as much noise of the last round as the site's own steps add; in the mean
over all sites it cancels. Not robust: a bad update stays in c until its site takes part again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.records.weights import Arrays
from common.study.aggregation_options import AggregationOptions
from server.aggregation.rule_state import joined, parted, shapes
from server.aggregation.update_checks import Intake, rounded
from server.aggregation.weighted_mean import Mean


class Scaffold:
    """Memory: four float64 copies of the update; kept between rounds: one float32 copy.

    The state names each site that ever took part with its weight: ``weight/<site>``.
    """

    def __init__(self, options: AggregationOptions, state: Arrays) -> None:
        self._rate = options.server_learning_rate
        self._step, weights = parted(state, "step", "weight")
        self._weights = {site: float(weight) for site, weight in weights.items()}
        self._before = sum(self._weights[site] for site in sorted(self._weights))
        self._intake = Intake(shapes(self._step))
        self._updates = Mean()
        self._steps = Mean()

    def fold(self, site: str, update: Arrays, *, weight: float, steps: int) -> None:
        self._intake.admit(site, update, weight=weight, steps=steps)
        self._updates.add(update, weight=weight)
        self._steps.add(update, weight=weight, factor=1 / steps)
        self._weights[site] = weight

    def result(self) -> Arrays:
        self._intake.least(1, rule="scaffold")
        return rounded((name, self._rate * value) for name, value in self._updates.items())

    def state(self) -> Arrays:
        self._intake.least(1, rule="scaffold")
        after = sum(self._weights[site] for site in sorted(self._weights))
        kept = (self._before - self._steps.weight) / after
        share = self._steps.weight / after
        step = rounded(
            (name, kept * self._old(name) + share * value) for name, value in self._steps.items()
        )
        weights = {site: np.array(weight, np.float32) for site, weight in self._weights.items()}
        return joined({"step": step, "weight": weights})

    def _old(self, name: str) -> NDArray[np.float64]:
        return np.asarray(self._step.get(name, 0.0), np.float64)


def control(state: Arrays, *, learning_rate: float) -> Arrays:
    """Return c for the orders of the next round, from the state of the last; {} before the first.

    ``learning_rate`` is the sites', ``training.learning_rate`` of the protocol. The coordinator
    must hand out exactly the c of the state that the round's rule starts from.
    """
    step, _ = parted(state, "step", "weight")
    return rounded(
        (name, np.asarray(value, np.float64) / -learning_rate) for name, value in step.items()
    )
