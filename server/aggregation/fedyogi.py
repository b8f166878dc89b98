"""FedYogi: v <- v - (1 - decay) D^2 sign(v - D^2).

v moves by a share of D^2 and not of itself, so that it forgets a large D slowly. See
``server.aggregation.adaptive``, also for privacy.

Source: Reddi et al. 2021, "Adaptive Federated Optimization", ICLR; after Zaheer et al. 2018.
"""

from __future__ import annotations

import numpy as np

from common.records.weights import Arrays
from common.study.aggregation_options import AggregationOptions
from server.aggregation.adaptive import Adaptive, Array


def fedyogi(options: AggregationOptions, state: Arrays) -> Adaptive:
    """Return the rule; memory as of ``Adaptive``."""
    share = 1 - options.server_decay

    def second(old: Array, square: Array) -> Array:
        return old - share * square * np.sign(old - square)

    return Adaptive(options, state, second)
