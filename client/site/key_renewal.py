"""What a consortium renews reaches the site with its orders: kits, coordinators, its own keys.

A kit is believed if one of the coordinators signed it, coordinators if enough of those before them
signed the change. Everything is in the journal. What can be taken over by nobody but a person is
the first kit (``client.site.folder.join``).
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version

from client.site import keys
from client.site.folder import Site
from common.errors import IdentityError
from common.messages.wire_format import Order
from common.records.atomic_files import write_json
from common.trust.coordinator_charter import followed
from common.trust.enrolment import KIT, Kit, open_kit
from common.trust.identity import Statement, fingerprint


def begin(site: Site, *, by: str) -> Statement:
    """Make new keys; they are used when the coordinator has taken them.

    Returns the request for the coordinator, which the next reply takes along.
    """
    statement = keys.new_keys(site.folder, site=site.name, version=version("gliofed"))
    site.journal.append(
        "key renewal begun",
        by=by,
        old=fingerprint(site.identity.public),
        new=fingerprint(statement.signer),
    )
    return statement


def pending(site: Site) -> str:
    """Return the request with the keys that wait, as JSON text, or an empty text."""
    path = site.folder / "renewal.json"
    return Statement.load(path, what="request with new keys").dumps() if path.exists() else ""


def kit_sha256(site: Site) -> str:
    """Return the digest by which the coordinator knows which kit is used here."""
    text = Statement.load(site.folder / "kit.json", what="site kit").dumps()
    return hashlib.sha256(text.encode()).hexdigest()


def take(site: Site, order: Order) -> Site:
    """Take what came with ``order`` and return the site as it is then; raise IdentityError."""
    if not order.kit:
        return site
    return take_kit(
        site, Statement.loads(order.kit), [Statement.loads(one) for one in order.charters]
    )


def take_kit(site: Site, statement: Statement, charters: list[Statement]) -> Site:
    """Take a newer kit, and the charters that led to it; raise IdentityError."""
    if charters:
        _take_charters(site, charters)
    if statement == Statement.load(site.folder / "kit.json", what="site kit"):
        return site
    if statement.signer not in site.coordinators.keys:
        raise IdentityError(
            f"The newer kit is signed by {fingerprint(statement.signer)}, which is none of the "
            "consortium's coordinators.",
            do="Nothing was changed. Ask the coordinator by telephone who sent it.",
            code="kit",
        )
    statement.opened(kind=KIT, signer=statement.signer)
    waiting = keys.waiting_key(site.folder)
    own = waiting if waiting and waiting == statement.body.get("identity_key") else ""
    kit = open_kit(statement, identity_key=own or site.identity.public)
    _check(site, kit)
    site.journal.append(
        "kit renewed",
        key=kit.coordinator_key,
        address=kit.address,
        authority=hashlib.sha256(kit.ca_certificate.encode()).hexdigest(),
        own_keys="new" if own else "unchanged",
    )
    write_json(site.folder / keys.STAGED, statement.to_dict())
    return Site.open(site.folder)


def _take_charters(site: Site, charters: list[Statement]) -> None:
    known = site.coordinators
    found = followed(known, charters)
    if not found:
        return
    now = found[-1]
    former = site.known_coordinators | known.keys | frozenset().union(*(c.keys for c in found))
    site.journal.append(
        "coordinators changed",
        number=now.number,
        needed=now.needed,
        before={name: fingerprint(key) for name, key in known.coordinators.items()},
        now={name: fingerprint(key) for name, key in now.coordinators.items()},
    )
    write_json(
        site.folder / "coordinators.json",
        {"now": now.model_dump(mode="json"), "known": sorted(former)},
    )


def _check(site: Site, kit: Kit) -> None:
    if kit.site != site.name or kit.consortium != site.kit.consortium:
        raise IdentityError(
            f"The newer kit is for {kit.site} in {kit.consortium}, not for this site.",
            do="Nothing was changed. Ask the coordinator for the kit of this site.",
            code="kit",
        )
