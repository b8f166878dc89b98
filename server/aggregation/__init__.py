"""Aggregation rules, one a file. Each folds checked updates one by one and frees them.

A rule sees only arrays and the public weight of the site they came from; the weight comes from
the protocol, never from a reply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from common.weights import Arrays
from server.aggregation.fedavg import FedAvg


class Rule(Protocol):
    """Combines the updates of one round."""

    def fold(self, update: Arrays, *, weight: float) -> None:
        """Take in one site's update."""

    def result(self) -> Arrays:
        """Return the combined update."""


RULES: Final[dict[str, Callable[[], Rule]]] = {"fedavg": FedAvg}
