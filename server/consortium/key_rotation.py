"""Renew every key and certificate of the consortium while its studies run.

What changes for the sites is in a newer kit, signed, that goes with each order until all have it
(``server.consortium.sites``). Old and new hold beside each other as long as a site may know the old
one only:

- certificate: replaced at once, the authority that signs it is the same;
- authority: the new one is trusted beside the old one first, and signs when every site trusts it;
- a coordinator's key: the old one signs a charter that hands over to the new one, and everything
  that counts is signed again; then the old one is destroyed;
- a site's keys: the site sends a request that old and new key signed; both node keys are let in
  until the new one is in use.

Each step is journalled, and one that was killed half-way is finished by ``settle``.
"""

from __future__ import annotations

from typing import Final

from common.errors import IdentityError, StateError
from common.foreign_text import printable
from common.records.atomic_files import write_json
from common.study.protocol import PROTOCOL, parse_protocol
from common.trust.coordinator_charter import CHARTER, Charter
from common.trust.enrolment import open_request, sign_kit
from common.trust.identity import Identity, Statement, fingerprint
from server.consortium import certificates
from server.consortium.provisioning import (
    Consortium,
    check_keys,
    drafts,
    keep_settings,
    kit_for,
    put_in_force,
    readdressed,
)

_NEXT: Final = "coordinator.next.key"


def renew_certificate(consortium: Consortium, *, by: str) -> None:
    """Replace the TLS certificate and its key; the gateway takes it up by itself."""
    consortium.journal.append("certificate renewed", by=by)
    certificates.renew(consortium.folder, host=consortium.settings.host)


def readdress(
    consortium: Consortium, *, by: str, host: str = "", port: int = 0, listen: str = ""
) -> Consortium:
    """Change what hospitals call, or where the gateway listens; return the consortium as it is now.

    The certificate holds for a new host beside the one before, and what hospitals call is in a
    newer kit: both ways must lead to the gateway until every site has started with its kit. Killed
    anywhere, it is done again by the same command. Raises StateError for what is no address.
    """
    now = readdressed(consortium, host=host, port=port, listen=listen)
    consortium.journal.append(
        "address changed", by=by, address=now.address, listening=str(now.listening)
    )
    if host:
        certificates.renew(now.folder, host=now.settings.host)
    keep_settings(now)
    if host or port:
        renew_kits(now)
    return now


def begin_authority(consortium: Consortium, *, by: str) -> None:
    """Make a new authority and tell the sites to trust it beside the old one."""
    if certificates.changing_authority(consortium.folder):
        raise StateError(
            "The consortium's authority is being changed already.",
            do="`gliofed-server rotate-ca` again finishes it once every site has taken its kit.",
            code="authority",
        )
    consortium.journal.append("authority begun", by=by)
    certificates.begin_authority(consortium.folder, name=consortium.settings.name)
    renew_kits(consortium)


def finish_authority(consortium: Consortium, *, by: str, without: frozenset[str]) -> None:
    """Let the new authority sign, and trust the old one no more.

    Raises StateError (code ``kits``) while a site that is not in ``without`` trusts the old one
    only: it could not connect any more.
    """
    late = consortium.sites.without_kit() - without
    if late:
        raise StateError(
            f"These sites have not taken the kit with the new authority yet: "
            f"{', '.join(sorted(late))}.",
            do="Kits travel with orders. Wait, or send them by `gliofed-server kit`; "
            "--without SITE goes on without one, which then needs its kit as a file.",
            code="kits",
        )
    consortium.journal.append("authority changed", by=by, without=sorted(without))
    certificates.finish_authority(consortium.folder, host=consortium.settings.host)
    renew_kits(consortium)


def rotate_key(consortium: Consortium, *, by: str) -> Charter | None:
    """Hand over from this folder's coordinator key to a new one.

    Returns the charter that is in force now, or None if others must cosign it first.
    """
    path = consortium.folder / "keys" / _NEXT
    new = Identity.load(path) if path.exists() else Identity.create(path)
    now, old = consortium.charter, consortium.identity
    keys = {
        name: new.public if key == old.public else key for name, key in now.coordinators.items()
    }
    following = now.follower(keys, needed=now.needed)
    statement = new.sign(CHARTER, following.model_dump(mode="json")).cosigned(old)
    consortium.journal.append("coordinator key handed over", by=by, old=old.public, new=new.public)
    return enact(consortium, statement)


def change_coordinators(
    consortium: Consortium, coordinators: dict[str, str], *, needed: int, by: str
) -> Charter | None:
    """Change who the coordinators are and how many must sign; None if others must cosign first."""
    own = consortium.identity
    if own.public not in coordinators.values():
        raise IdentityError(
            "This folder's own key would be no coordinator's any more: it could sign nothing.",
            do="Name it as well; `gliofed-server rotate-key` replaces it.",
            code="charter",
        )
    following = consortium.charter.follower(coordinators, needed=needed)
    consortium.journal.append(
        "coordinators wanted",
        by=by,
        needed=needed,
        coordinators={name: fingerprint(key) for name, key in coordinators.items()},
    )
    return enact(consortium, own.sign(CHARTER, following.model_dump(mode="json")))


def enact(consortium: Consortium, statement: Statement) -> Charter | None:
    """Put a charter in force, or keep it as a draft until enough coordinators signed it."""
    charters = consortium.charters
    if charters.current.missing(statement):
        drafts(consortium, statement).parent.mkdir(parents=True, exist_ok=True)
        statement.save(drafts(consortium, statement))
        return None
    charter = charters.add(statement)
    consortium.journal.append(
        "coordinators changed",
        number=charter.number,
        needed=charter.needed,
        coordinators=charter.coordinators,
        charter=charter.digest,
    )
    drafts(consortium, statement).unlink(missing_ok=True)
    settle(consortium)
    return charter


def take_countersigned(consortium: Consortium, statement: Statement) -> str:
    """Take a draft that another coordinator signed as well; say what became of it."""
    path = drafts(consortium, statement)
    if not path.exists():
        raise StateError(
            f"No {statement.kind} waits here for a signature under that name.",
            do="Was it taken already? See `gliofed-server status`.",
            code="draft",
        )
    draft = Statement.load(path, what="draft")
    if draft.body != statement.body or draft.kind != statement.kind:
        raise IdentityError(
            "The file is another one than the draft that waits here: it was changed.",
            do="Send the draft again.",
            code="draft",
        )
    pairs = {draft.signer: draft.signature, **dict(draft.cosignatures)}
    pairs |= {statement.signer: statement.signature, **dict(statement.cosignatures)}
    first = pairs.pop(draft.signer)
    merged = Statement(draft.kind, draft.body, draft.signer, first, tuple(pairs.items()))
    merged.save(path)
    if lacking := consortium.charter.missing(merged):
        return f"{lacking} more signatures are needed."
    if merged.kind == CHARTER:
        enact(consortium, merged)
        return "The coordinators are changed."
    if merged.kind == PROTOCOL:
        protocol = parse_protocol(merged.body, source=str(path))
        put_in_force(consortium, merged, protocol)
        path.unlink()
        done = "amended from its next round on" if protocol.supersedes else "published"
        return f"{protocol.study} is {done}."
    raise IdentityError(f"A {merged.kind} is not published here.", do="Check the file.")


def settle(consortium: Consortium) -> None:
    """Finish what was begun: the key that was handed over to, signatures, kits."""
    certificates.settle(consortium.folder)
    keys = consortium.folder / "keys"
    following = keys / _NEXT
    if following.exists() and Identity.load(following).public in consortium.charter.keys:
        following.replace(keys / "coordinator.key")  # the old key is gone: it signs nothing more
    identity, charter = consortium.identity, consortium.charter
    waiting = consortium.folder.glob("studies/*/amendment.json")
    for path in sorted((*consortium.folder.glob("studies/*/protocol.json"), *waiting)):
        statement = Statement.load(path, what="study protocol")
        if statement.signer not in charter.keys and identity.public in charter.keys:
            statement.cosigned(identity).signed_first_by(identity.public).save(path)
    renew_kits(consortium)


def renew_kits(consortium: Consortium) -> None:
    """Write the kit of each site anew; it goes with its next order."""
    for name in consortium.sites.names():
        renew_kit(consortium, name)


def renew_kit(consortium: Consortium, name: str) -> None:
    request = consortium.sites.get(name)
    if request is None:
        return
    statement = sign_kit(kit_for(consortium, request), consortium.identity)
    charters = [one.dumps() for one in consortium.charters.statements]
    write_json(consortium.sites.kit_path(name), {"kit": statement.dumps(), "charters": charters})


def take_renewals(consortium: Consortium) -> None:
    """Take over the keys that sites sent, and tell each by a new kit.

    What is no key, or another's, is refused: the site keeps the keys that it has.
    """
    for path in consortium.sites.renewals():
        try:
            statement = Statement.load(path, what="new keys")
            wanted = open_request(statement)
            check_keys(consortium, wanted)
        except IdentityError as error:
            consortium.journal.append(
                "site keys refused",
                site=path.stem,
                code=error.code,
                reason=printable(error.message),
            )
            path.unlink()
            continue
        consortium.sites.replace(statement)
        consortium.journal.append(
            "site keys renewed", site=wanted.site, key=wanted.identity_key, version=wanted.version
        )
        renew_kit(consortium, wanted.site)
        path.unlink()
