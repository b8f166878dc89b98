"""The site's keys on its disk, and how new ones take their place.

    keys/identity.key, node.key             in use
    keys/identity.next.key, node.next.key   made by `gliofed-site rotate-keys`, not in use yet
    renewal.json                            the request with the new keys, signed by both
    identities.json                         public keys by which the site signed before
    kit.next.json                           a newer kit that was checked; ``settle`` takes it

Invariant: killed at any moment, ``settle`` finishes what was begun, and until it is called nothing
has changed. Out of scope: whether a kit may be believed (``client.site.key_renewal``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.records.atomic_files import held, read_json, write_bytes, write_json, write_secret
from common.study.protocol import APPROVAL
from common.trust.enrolment import Request, sign_request
from common.trust.identity import Identity, Statement

STAGED: Final = "kit.next.json"
_NEXT: Final = "identity.next.key"
_FORMER: Final = "identities.json"


def new_node_key(path: Path) -> str:
    """Make the key of a SuperNode (P-384, as Flower wants it); return its public half."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_secret(
        path,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        ),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return public.decode()


def node_key(path: Path) -> str:
    """Return the public half of a SuperNode's key, as ``new_node_key`` did."""
    key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return public.decode()


def new_keys(folder: Path, *, site: str, version: str) -> Statement:
    """Make new keys beside those in use; return the request with them, which both keys signed."""
    keys = folder / "keys"
    (keys / _NEXT).unlink(missing_ok=True)
    new, old = Identity.create(keys / _NEXT), Identity.load(keys / "identity.key")
    wanted = Request(
        site=site,
        identity_key=new.public,
        node_key=new_node_key(keys / "node.next.key"),
        version=version,
    )
    statement = sign_request(wanted, new).cosigned(old)
    statement.save(folder / "renewal.json")
    return statement


def waiting_key(folder: Path) -> str:
    """Return the public identity key that waits to be used, or an empty text."""
    path = folder / "keys" / _NEXT
    return Identity.load(path).public if path.exists() else ""


def former_identities(folder: Path) -> list[str]:
    """Return the public keys by which the site signed before its present one, the oldest first."""
    path = folder / _FORMER
    return [str(key) for key in read_json(path, what="former keys")] if path.exists() else []


def settle(folder: Path) -> None:
    """Take the staged kit, and the keys that it names; do nothing if there is none."""
    if not (folder / STAGED).exists():
        return
    with held(folder / "flower" / "renewal.lock", what="Keys are being renewed", attempts=50):
        if not (folder / STAGED).exists():
            return
        kit = Statement.from_dict(read_json(folder / STAGED, what="newer kit"))
        if kit.body["identity_key"] == waiting_key(folder):
            _take_keys(folder)
        write_bytes(folder / "ca.crt", str(kit.body["ca_certificate"]).encode())
        write_json(folder / "kit.json", kit.to_dict())
        (folder / STAGED).unlink()


def _take_keys(folder: Path) -> None:
    """Sign the hospital's decisions with the new key, then use it; the old one is gone."""
    keys = folder / "keys"
    new, old = Identity.load(keys / _NEXT), Identity.load(keys / "identity.key")
    for path in sorted(folder.glob("studies/*/decision.json")):
        statement = Statement.load(path, what="decision")
        if statement.signer == old.public:
            body = statement.opened(kind=APPROVAL, signer=old.public)
            new.sign(APPROVAL, body).save(path)
    former = [key for key in former_identities(folder) if key != old.public]
    write_json(folder / _FORMER, [*former, old.public])
    for name in ("node", "identity"):  # the identity last: it says that all is done
        following = keys / f"{name}.next.key"
        if following.exists():
            following.replace(keys / f"{name}.key")
    if (folder / "renewal.json").exists():
        (folder / "renewal.json").replace(folder / "request.json")
