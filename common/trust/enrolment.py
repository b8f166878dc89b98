"""Enrolment: what a hospital asks for, and the kit that it gets.

``request`` -> ``admit`` -> kit -> ``join``. The hospital makes its own keys and sends only the
public halves, in a request signed by its identity key. The coordinator answers with a kit, signed
by the consortium's key: where to connect, whom to trust, and which keys were admitted. A kit holds
no secret: for anyone but its hospital it is useless.

Keys are read where they enter the consortium (``check_keys``), and not again afterwards.

A site that renews its keys sends a new request, which the old identity key signed as well; a
consortium that renews something sends new kits with its orders.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import IdentityError
from common.study.aggregation_options import SiteName
from common.trust.coordinator_charter import Charter
from common.trust.identity import Identity, Statement, fingerprint
from common.trust.public_keys import check_identity_key, check_node_key

REQUEST = "enrolment-request"
KIT = "site-kit"

Model = TypeVar("Model", bound=BaseModel)


class Request(BaseModel):
    """What a hospital asks: its name and the public halves of its two keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: SiteName
    identity_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    node_key: str = Field(pattern=r"^ecdsa-sha2-nistp384 [A-Za-z0-9+/=]+$", max_length=1000)
    version: str = Field(max_length=40, pattern=r"^[0-9A-Za-z.+!-]*$")


class Kit(BaseModel):
    """What the coordinator answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    consortium: str = Field(min_length=1)
    coordinator_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    site: SiteName
    identity_key: str = Field(pattern=r"^[0-9a-f]{64}$")
    address: str = Field(pattern=r"^[^\s:]+:\d{1,5}$|^\[[0-9a-fA-F:]+\]:\d{1,5}$")
    ca_certificate: str
    """PEM; two while the consortium changes its authority."""
    charter: Charter | None = None
    """Who the coordinators are; None for the one whose key is ``coordinator_key``."""

    @property
    def coordinators(self) -> Charter:
        return self.charter or Charter.first(self.coordinator_key)


def sign_request(request: Request, identity: Identity) -> Statement:
    return identity.sign(REQUEST, request.model_dump())


def open_request(statement: Statement) -> Request:
    """Return the request if it is signed by the identity key that it names; raise IdentityError."""
    request = _parse(Request, statement.opened(kind=REQUEST, signer=statement.signer))
    if request.identity_key != statement.signer:
        raise IdentityError(
            f"The request of {request.site} names another key than the one that signed it.",
            do="Ask the hospital to run `gliofed-site request` again.",
        )
    return request


def check_keys(request: Request) -> None:
    """Raise IdentityError (code ``key``) unless both keys of ``request`` are keys to rely on."""
    check_identity_key(request.identity_key, whose=request.site)
    check_node_key(request.node_key, whose=request.site)


def sign_kit(kit: Kit, coordinator: Identity) -> Statement:
    return coordinator.sign(KIT, kit.model_dump(exclude_none=True))


def open_kit(statement: Statement, *, identity_key: str) -> Kit:
    """Return the kit if it is whole and made for the hospital with ``identity_key``.

    Whether the consortium is the right one is for a person to say: compare
    ``fingerprint(kit.coordinator_key)`` with the coordinator by telephone. Raises IdentityError.
    """
    kit = _parse(Kit, statement.opened(kind=KIT, signer=statement.signer))
    if kit.coordinator_key != statement.signer:
        raise IdentityError("The kit names another consortium than the one that signed it.")
    if kit.identity_key != identity_key:
        raise IdentityError(
            f"This kit was made for {kit.site} with key {fingerprint(kit.identity_key)}, "
            f"but this folder's key is {fingerprint(identity_key)}.",
            do="Ask the coordinator for the kit that answers this folder's request.json.",
        )
    return kit


def _parse(model: type[Model], body: dict[str, Any]) -> Model:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, item["loc"])) for item in error.errors())
        raise IdentityError(
            f"The {model.__name__.lower()} is not valid in: {wrong}.", do="Ask for it again."
        ) from None
