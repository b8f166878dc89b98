"""A fleet whose orders the coordinator signs, and whose replies are its admitted sites' own.

See ``common.messages.signatures``. A reply that another than the site has signed, that answers
another order, or that was changed on its way, is refused before anything of it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from common.errors import IdentityError, UpdateError
from common.messages.reply_limits import ReplyLimit
from common.messages.signatures import new_nonce, nonce_of, signed
from common.messages.wire_format import Content, OrderKind
from common.trust.identity import Identity
from server.consortium.sites import Sites
from server.rounds.fault_boundary import within
from server.rounds.fleet import Delivery, Fleet


@dataclass
class SignedFleet:
    """The sites that ``fleet`` reaches; ``identity()`` is the coordinator's, which may change."""

    fleet: Fleet
    identity: Callable[[], Identity]
    sites: Sites
    _sent: dict[str, tuple[str, str]] = field(default_factory=dict)

    def online(self) -> set[str]:
        return self.fleet.online()

    def send(
        self, site: str, kind: OrderKind, content: Content, *, ttl_s: float, limit: ReplyLimit
    ) -> str:
        nonce = new_nonce()
        own = signed(content, self.identity(), kind="order", site=site, nonce=nonce)
        ticket = self.fleet.send(site, kind, own, ttl_s=ttl_s, limit=limit)
        self._sent[ticket] = site, nonce
        return ticket

    def collect(self, ticket: str) -> Delivery | None:
        delivery = self.fleet.collect(ticket)
        if delivery is None:
            return None
        site, nonce = self._sent.pop(ticket, ("", ""))
        if (content := delivery.content) is None:
            return delivery
        keys = self.sites.identity_keys(site)  # none for what was not sent here
        try:
            if within(lambda: nonce_of(content, keys, kind="reply", site=site)) != nonce:
                raise IdentityError("The reply is to an order before this one.", code="replayed")
        except (IdentityError, UpdateError) as error:
            return Delivery(None, "", error)
        return delivery

    def forget(self, ticket: str) -> None:
        self._sent.pop(ticket, None)
        self.fleet.forget(ticket)
