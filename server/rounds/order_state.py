"""One order to several sites: what is ordered, what is under way, what came of it. Values only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from common.messages.wire_format import Order, OrderKind, Report
from common.records.weights import Arrays
from server.rounds.late_updates import Sent


@dataclass(frozen=True)
class Task:
    """What is ordered of several sites alike, and when the order to them ends."""

    kind: OrderKind
    number: int
    deadline_s: float
    weights: Arrays | None = None
    control: Arrays = field(default_factory=dict)
    """Arrays beside the weights, under the names that they travel by."""
    template: Mapping[str, tuple[int, ...]] | None = None
    """Name and shape of each array that a good answer brings."""
    lives_s: float = 0.0
    """How long beyond the deadline an order may be answered."""
    folded: Mapping[str, int] = field(default_factory=dict)
    """Of each site, the last round that its update is part of."""

    @property
    def lasting(self) -> bool:
        """Whether it costs a site work: whoever does not answer in time keeps the order."""
        return self.kind in {"describe", "train", "evaluate"}


@dataclass
class Exchange:
    """The state of one task."""

    waiting: set[str] = field(default_factory=set)
    sent: dict[str, Sent] = field(default_factory=dict)
    began_s: dict[str, float] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    not_before_s: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    """Who is not waited for any more, and the code that says why."""
    deferred: dict[str, str] = field(default_factory=dict)
    """Who put the order off, and the code that it gave."""


class Answer(NamedTuple):
    """A good reply to ``order``, ``seconds`` after the order left, in a body of ``nbytes``."""

    site: str
    order: Order
    report: Report
    arrays: Arrays
    seconds: float
    nbytes: int


Accept = Callable[[Answer], None]
"""Takes a good reply; raises UpdateError or IdentityError to refuse it."""

Late = Callable[[Answer], bool]
"""Takes a good reply to an order of an earlier round; returns whether it is of use in this one.
Raises UpdateError to refuse it."""


class Goal(Protocol):
    """What an exchange needs before it may end (``server.rounds.quorum``)."""

    def met(self) -> bool:
        """Return whether nobody must be waited for beyond their own deadlines."""

    def possible(self, waiting: set[str]) -> bool:
        """Return whether it is met once ``waiting`` have answered."""

    def full(self) -> bool:
        """Return whether nobody at all is waited for any more."""
