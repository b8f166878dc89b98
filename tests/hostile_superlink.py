"""A SuperLink in this process, and sites behind it that may put anything into it as their replies.

Both halves of what ``server.transport.flower_fleet`` asks are here: the ``Grid`` and the
``Replies``. Pulls are done at once, in the caller's thread, so that rounds under a clock that
nobody waits for meet them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from flwr.app import Message

from common.messages.wire_format import Content, OrderKind
from server.transport.flower_fleet import GridFleet
from tests.flower_objects import Deflated, deflated

Reply = Callable[[Message, Deflated], Deflated]
"""Makes of an order and the honest reply what the site stores."""


class Inline:
    """A pool that does at once what is submitted."""

    def submit(self, work: Callable[..., Any], *given: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*given))
        except Exception as error:  # noqa: BLE001  as a pool does
            future.set_exception(error)
        return future


@dataclass
class HostileSuperLink:
    """Answers each order by the site's function; ``hostile`` sites store something else."""

    sites: Mapping[str, Callable[[OrderKind, Content], Content]]
    hostile: dict[str, Reply] = field(default_factory=dict)
    away: dict[str, int] = field(default_factory=dict)
    """How often a site has crashed."""
    waiting: dict[str, list[Deflated]] = field(default_factory=dict)
    stored: dict[str, bytes | None] = field(default_factory=dict)
    orders: dict[str, tuple[str, str]] = field(default_factory=dict)
    freed: list[str] = field(default_factory=list)
    served_bytes: int = 0
    pushed: int = 0

    def fleet(self) -> GridFleet:
        grid: Any = self
        made = GridFleet(grid, replies=self, online_every_s=0.0, broken_off_s=0.0)
        pool: Any = Inline()
        made._pool = pool
        return made

    def get_nodes(self) -> list[Any]:
        return [
            SimpleNamespace(
                name=name, node_id=number, last_activated_at=f"{self.away.get(name, 0):04d}"
            )
            for number, name in enumerate(self.sites)
        ]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        tickets = []
        for message in messages:
            self.pushed += 1
            ticket = f"ticket-{self.pushed}"
            message.metadata.__dict__["_message_id"] = ticket
            name = list(self.sites)[message.metadata.dst_node_id]
            kind: Any = message.metadata.message_type.rpartition(".")[2]
            self.orders[ticket] = (name, kind)
            # A site empties what it reads.
            content = self.sites[name](kind, copy.deepcopy(message.content))
            honest = deflated(Message(content, reply_to=message))
            stored = self.hostile[name](message, honest) if name in self.hostile else honest
            self.waiting[ticket] = [stored]
            tickets.append(ticket)
        return tickets

    def arrived(self, ticket: str) -> Sequence[tuple[str, Any]]:
        found = self.waiting.pop(ticket, [])
        for one in found:
            self.stored.update(one.objects)
        return [(one.root, one.tree) for one in found]

    def content(self, name: str) -> bytes | None:
        content = self.stored[name]
        self.served_bytes += len(content or b"")
        return content

    def free(self, root: str) -> None:
        self.freed.append(root)
