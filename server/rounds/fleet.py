"""How orders reach sites: the seam between the rounds and the network.

``Fleet`` is what ``server.rounds.round_loop`` needs of it; ``server.transport.flower_fleet`` is a
fleet over Flower, and ``MemoryFleet`` one in this process. A fleet holds no more of a reply than
the limit of its order. ``Clock`` is the time that the rounds go
by, which is the coordinator's own: no deadline depends on the clock of a site, or on the date.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from common.errors import GliofedError, IdentityError, UpdateError
from common.messages.reply_limits import ReplyLimit
from common.messages.wire_format import Content, OrderKind


class Clock(Protocol):
    """The module ``time``, or one that only moves when somebody waits."""

    def monotonic(self) -> float:
        """Return seconds since some moment; setting the date does not move it."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


class Delivery(NamedTuple):
    """What came back for a ticket: a reply's content, or why there is none."""

    content: Content | None
    failure: str
    refused: UpdateError | IdentityError | None = None
    """Why a reply that did come was refused before its content was known."""


class Presence(NamedTuple):
    """Whether a site's connection is there, and since when (ISO 8601, UTC; empty if never)."""

    online: bool
    since: str


class Fleet(Protocol):
    """How orders reach sites."""

    def online(self) -> set[str]:
        """Return the names of the sites that can be reached now."""

    def send(
        self, site: str, kind: OrderKind, content: Content, *, ttl_s: float, limit: ReplyLimit
    ) -> str:
        """Send an order and return a ticket for its reply, which is refused beyond ``limit``."""

    def collect(self, ticket: str) -> Delivery | None:
        """Return what came back, or None if nothing did yet."""

    def forget(self, ticket: str) -> None:
        """Take note that nobody will collect what comes back for ``ticket``."""


class MemoryFleet:
    """A fleet in this process: ``sites`` maps a name to a function from order to reply."""

    def __init__(self, sites: Mapping[str, Callable[[OrderKind, Content], Content]]) -> None:
        self._sites = sites
        self._replies: dict[str, Callable[[], Content]] = {}
        self._count = 0

    def online(self) -> set[str]:
        return set(self._sites)

    def send(
        self, site: str, kind: OrderKind, content: Content, *, ttl_s: float, limit: ReplyLimit
    ) -> str:
        del ttl_s, limit  # nothing is lost on the way, and the reply is in this process already
        self._count += 1
        ticket = f"{site}/{self._count}"
        own = copy.deepcopy(content)  # a site empties what it reads; the bytes are shared
        self._replies[ticket] = lambda: self._sites[site](kind, own)
        return ticket

    def collect(self, ticket: str) -> Delivery | None:
        try:
            return Delivery(self._replies.pop(ticket)(), "")
        except GliofedError as error:
            return Delivery(None, error.code)

    def forget(self, ticket: str) -> None:
        self._replies.pop(ticket, None)
