"""Orders under way, and what is done with an answer that comes after its round was closed.

A site that has not answered when its round closes keeps its order: it may be at work, and another
order would only make it work for nothing, at its patients' expense. It gets no other one until it
has answered, or the order is lost or has expired.

With ``late_rounds`` of 0 a late update is dropped, and the journal says so. With N it is folded
into the round that is open when it comes, if that is at most N rounds later, with its weight
divided by the root of 1 + staleness: buffered asynchronous aggregation (Nguyen et al. 2022,
"Federated Learning with Buffered Asynchronous Aggregation", AISTATS, arXiv:2106.06639, section 5).
Staleness is the number of rounds by which the open one is later than the update's own.

What was under way is known in memory alone: a coordinator that starts again forgets it, says so,
and orders anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from common.messages.wire_format import Order
from common.records.journal import Entry

FORGOTTEN = (
    "The coordinator started again: what these sites answer to orders of rounds that were closed "
    "without them is not heard. They are ordered anew."
)


@dataclass(frozen=True)
class Sent:
    """An order on its way to one site, or its answer on its way back."""

    ticket: str
    order: Order
    template: Mapping[str, tuple[int, ...]] | None
    """Name and shape of each array that a good answer to this order brings."""
    at_s: float
    until_s: float
    """When the order expires, on the coordinator's monotonic clock."""

    def same(self, order: Order) -> bool:
        """Return whether an answer to this is an answer to ``order``."""
        mine, other = self.order, order
        return (mine.kind, mine.round, mine.weights_sha256) == (
            other.kind,
            other.round,
            other.weights_sha256,
        )


def discount(staleness: int) -> float:
    """Return the factor of the weight of an update that comes ``staleness`` rounds late."""
    return 1.0 / math.sqrt(1.0 + staleness)


def forgotten(past: Iterable[Entry]) -> dict[str, int]:
    """Return the rounds of the orders that were under way when the coordinator ended, by site.

    ``past`` are the facts of the study, in order.
    """
    open_: dict[str, int] = {}
    for entry in past:
        if entry.event in {"round closed", "round failed"}:
            open_ = dict(entry.facts.get("under_way", {}))
        elif entry.event == "late orders forgotten":
            open_ = {}
        elif entry.event in {"reply accepted", "reply late", "reply refused", "order lost"}:
            open_.pop(entry.facts["site"], None)
    return open_
