"""FedAdam: v <- decay v + (1 - decay) D^2. See ``server.aggregation.adaptive``, also for privacy.

Source: Reddi et al. 2021, "Adaptive Federated Optimization", ICLR; after Kingma & Ba 2015.
"""

from __future__ import annotations

from common.records.weights import Arrays
from common.study.aggregation_options import AggregationOptions
from server.aggregation.adaptive import Adaptive, Array


def fedadam(options: AggregationOptions, state: Arrays) -> Adaptive:
    """Return the rule; memory as of ``Adaptive``."""
    keep = options.server_decay

    def second(old: Array, square: Array) -> Array:
        return keep * old + (1 - keep) * square

    return Adaptive(options, state, second)
