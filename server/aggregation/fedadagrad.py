"""FedAdagrad: v <- v + D^2, so that steps only become shorter.

See ``server.aggregation.adaptive``. Under privacy v grows by the noise's square each round: the
step falls with the square root of the number of rounds even where nothing is left to learn.

Source: Reddi et al. 2021, "Adaptive Federated Optimization", ICLR; after Duchi et al. 2011.
"""

from __future__ import annotations

from common.records.weights import Arrays
from common.study.aggregation_options import AggregationOptions
from server.aggregation.adaptive import Adaptive, Array


def fedadagrad(options: AggregationOptions, state: Arrays) -> Adaptive:
    """Return the rule; memory as of ``Adaptive``."""

    def second(old: Array, square: Array) -> Array:
        return old + square

    return Adaptive(options, state, second)
