"""A fleet whose orders the coordinator signs, and whose replies are its admitted sites' own.

See ``common.messages.signatures``. A reply that another than the site has signed, that answers
another order, or that was changed on its way, is refused before anything of it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from common.errors import IdentityError
from common.messages.signatures import new_nonce, nonce_of, signed
from common.messages.wire_format import Content, OrderKind
from common.trust.identity import Identity
from server.consortium.sites import Sites
from server.rounds.fleet import Delivery, Fleet


@dataclass
class SignedFleet:
    """The sites that ``fleet`` reaches."""

    fleet: Fleet
    identity: Identity
    sites: Sites
    _sent: dict[str, tuple[str, str]] = field(default_factory=dict)

    def online(self) -> set[str]:
        return self.fleet.online()

    def send(self, site: str, kind: OrderKind, content: Content, *, ttl_s: float) -> str:
        nonce = new_nonce()
        own = signed(content, self.identity, kind="order", site=site, nonce=nonce)
        ticket = self.fleet.send(site, kind, own, ttl_s=ttl_s)
        self._sent[ticket] = site, nonce
        return ticket

    def collect(self, ticket: str) -> Delivery | None:
        delivery = self.fleet.collect(ticket)
        if delivery is None:
            return None
        site, nonce = self._sent.pop(ticket, ("", ""))
        if delivery.content is None:
            return delivery
        try:
            answered = nonce_of(
                delivery.content, self.sites.identity_keys(site), kind="reply", site=site
            )
        except IdentityError as error:
            return Delivery(None, error.code)
        return delivery if answered == nonce else Delivery(None, "replayed")

    def forget(self, ticket: str) -> None:
        self._sent.pop(ticket, None)
        self.fleet.forget(ticket)
