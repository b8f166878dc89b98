"""Aggregation rules, one a file. A rule combines the checked updates of one round.

A rule sees only arrays, and of each site its name, public weight and public number of local steps;
these come from the protocol, never from a reply. It never changes what it is given. Whatever order
the sites answer in, the result is the same to the last bit: for rules that hold the updates
(medians, trimmed mean, Krum) always, for those that add them up as they come and keep none within
the limits that ``server.aggregation.weighted_mean`` names.

What a rule needs in the next round is its ``state``; a rule made from a saved state gives the bits
that it would have given without the interruption. State belongs to the arrays as they are sent: it
means nothing where these change their meaning from round to round (``common.messages.low_rank``).

Rules other than sums need each site's update in the clear; they and secure aggregation exclude one
another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from common.records.weights import Arrays
from common.study.aggregation_options import AggregationOptions
from server.aggregation.coordinate_median import CoordinateMedian
from server.aggregation.fedadagrad import fedadagrad
from server.aggregation.fedadam import fedadam
from server.aggregation.fedavg import FedAvg
from server.aggregation.fedavgm import FedAvgM
from server.aggregation.fednova import FedNova
from server.aggregation.fedyogi import fedyogi
from server.aggregation.geometric_median import GeometricMedian
from server.aggregation.krum import krum, multi_krum
from server.aggregation.norm_bounded_mean import NormBoundedMean
from server.aggregation.scaffold import Scaffold
from server.aggregation.trimmed_mean import TrimmedMean


class Rule(Protocol):
    """Combines the updates of one round."""

    def fold(self, site: str, update: Arrays, *, weight: float, steps: int) -> None:
        """Take in one site's update; raise FederationError, changed by nothing, if it is not fit.

        ``weight`` is the site's public weight, ``steps`` its public number of local steps.
        """

    def result(self) -> Arrays:
        """Return the change of the global weights, float32, as often as asked.

        Raises FederationError if there are too few updates or the change is not finite.
        """

    def state(self) -> Arrays:
        """Return what the next round needs, float32; {} if nothing. Raises as ``result`` does."""


RULES: Final[dict[str, Callable[[AggregationOptions, Arrays], Rule]]] = {
    "fedavg": FedAvg,
    "fednova": FedNova,
    "fedavgm": FedAvgM,
    "fedadam": fedadam,
    "fedyogi": fedyogi,
    "fedadagrad": fedadagrad,
    "scaffold": Scaffold,
    "norm_bounded_mean": NormBoundedMean,
    "coordinate_median": CoordinateMedian,
    "trimmed_mean": TrimmedMean,
    "geometric_median": GeometricMedian,
    "krum": krum,
    "multi_krum": multi_krum,
}
"""Makes the rule of a round from the protocol's options and the state after the round before, {} at
first."""
