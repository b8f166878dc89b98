"""Keys and signed statements.

A consortium's coordinator and each hospital own one Ed25519 key. What they promise each other
(a protocol, an approval, a kit, a release) is a *statement*: a kind, a JSON body, the signer's
public key and a signature over both. The kind is signed with the body, so that a statement can
never be passed off as one of another kind. Others may sign the same statement as well: *cosign* it.
Private keys never leave the folder they are made in, but in a backup.

Standard: RFC 8032 (Ed25519). Out of scope: TLS certificates (``server.consortium.provisioning``).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import IdentityError, StateError
from common.records.atomic_files import read_json, write_json, write_secret
from common.trust.public_keys import is_weak

_TEXT: Final = re.compile(r"[!-~]{1,200}")
"""Kind, signer and signature: short and printable, since they are shown before they are checked."""

_MOST_SIGNERS: Final = 20


@dataclass(frozen=True)
class Statement:
    """A signed statement. Only ``opened`` gives its body, after the signature was checked."""

    kind: str
    body: dict[str, Any]
    signer: str
    signature: str
    cosignatures: tuple[tuple[str, str], ...] = ()
    """Other keys, each with its signature over the same."""

    def signers(self) -> frozenset[str]:
        """Return the keys (hex) whose signatures fit."""
        signed = ((self.signer, self.signature), *self.cosignatures)
        return frozenset(key for key, signature in signed if self._fits(key, signature))

    def cosigned(self, identity: Identity) -> Statement:
        """Return the statement with the signature of ``identity`` as well."""
        if identity.public in self.signers():
            return self
        mine = identity.sign(self.kind, self.body)
        return replace(self, cosignatures=(*self.cosignatures, (identity.public, mine.signature)))

    def signed_first_by(self, key: str) -> Statement:
        """Return the statement with the signature of ``key``, which is one of its, in front."""
        signed = ((self.signer, self.signature), *self.cosignatures)
        first = next(pair for pair in signed if pair[0] == key)
        others = tuple(pair for pair in signed if pair != first)
        return replace(self, signer=first[0], signature=first[1], cosignatures=others)

    def _fits(self, key: str, signature: str) -> bool:
        if is_weak(key):
            return False  # anybody may have signed
        try:
            public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
            public.verify(bytes.fromhex(signature), _payload(self.kind, self.body))
        except (InvalidSignature, ValueError, RecursionError):
            return False
        return True

    def opened(self, *, kind: str, signer: str) -> dict[str, Any]:
        """Return the body if this is a ``kind`` signed by the public key ``signer`` (hex).

        Raises IdentityError otherwise.
        """
        if self.kind != kind:
            raise IdentityError(
                f"Expected a signed {kind}, got a {self.kind}.", do="Check which file was given."
            )
        if self.signer != signer:
            raise IdentityError(
                f"This {kind} is signed by key {fingerprint(self.signer)}, "
                f"not by {fingerprint(signer)}.",
                do="Compare the fingerprints with the sender by telephone.",
            )
        if is_weak(signer):
            raise IdentityError(
                f"This {kind} is signed by a key by which anybody can sign.",
                do="Ask the sender for a new key, made by gliofed.",
                code="key",
            )
        if not self._fits(signer, self.signature):
            raise IdentityError(
                f"The signature of this {kind} does not fit its content: it was changed.",
                do="Ask the sender for it again.",
            )
        return self.body

    def to_dict(self) -> dict[str, Any]:
        value: dict[str, Any] = {
            "kind": self.kind,
            "body": self.body,
            "signer": self.signer,
            "signature": self.signature,
        }
        if self.cosignatures:
            value["cosigned"] = [list(pair) for pair in self.cosignatures]
        return value

    @classmethod
    def from_dict(cls, data: Any) -> Statement:
        """Raise IdentityError unless ``data`` has the form of a statement."""
        if not isinstance(data, dict):
            raise IdentityError("A signed statement is a JSON object.", do="Ask for it again.")
        try:
            fields = {name: data[name] for name in ("kind", "body", "signer", "signature")}
        except KeyError as error:
            raise IdentityError(
                f"A signed statement lacks {error}.", do="Ask for it again."
            ) from None
        cosigned = data.get("cosigned", [])
        if not isinstance(cosigned, list) or not all(
            isinstance(pair, list) and len(pair) == 2 for pair in cosigned[:_MOST_SIGNERS]
        ):
            raise IdentityError("A signed statement has the wrong types.", do="Ask for it again.")
        others = [text for pair in cosigned[:_MOST_SIGNERS] for text in pair]
        texts = [fields["kind"], fields["signer"], fields["signature"], *others]
        if not isinstance(fields["body"], dict) or not all(
            isinstance(text, str) and _TEXT.fullmatch(text) for text in texts
        ):
            raise IdentityError("A signed statement has the wrong types.", do="Ask for it again.")
        pairs = tuple((key, signature) for key, signature in cosigned[:_MOST_SIGNERS])
        return cls(**fields, cosignatures=pairs)

    def save(self, path: Path) -> None:
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path, *, what: str) -> Statement:
        return cls.from_dict(read_json(path, what=what))

    def dumps(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def loads(cls, text: str) -> Statement:
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise IdentityError("A signed statement is not JSON.", do="Ask for it again.") from None
        return cls.from_dict(data)


class Identity:
    """A private Ed25519 key and what can be done with it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw().hex()

    @classmethod
    def create(cls, path: Path) -> Identity:
        """Make a key and keep it at ``path``, readable by its owner only.

        Raises StateError if a key is there.
        """
        if path.exists():
            raise StateError(f"{path} already holds a key.", do="Choose an empty folder.")
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_secret(path, pem)
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read the key at ``path``; raise StateError if it is missing or damaged."""
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except FileNotFoundError:
            raise StateError(
                f"There is no key at {path}.", do="Is this the right folder? Keys are made once."
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise StateError(f"Cannot read the key {path}: {error}.") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise StateError(f"{path} does not hold an Ed25519 key.")
        return cls(key)

    def sign(self, kind: str, body: dict[str, Any]) -> Statement:
        """Return ``body`` as a signed statement of ``kind``."""
        return Statement(kind, body, self.public, self._key.sign(_payload(kind, body)).hex())


def fingerprint(public_key: str) -> str:
    """Return a short form of a public key (hex) that two people can compare by telephone."""
    digest = hashlib.sha256(public_key.encode()).hexdigest()[:20]
    return "-".join(digest[i : i + 4] for i in range(0, 20, 4))


def _payload(kind: str, body: dict[str, Any]) -> bytes:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"gliofed/{kind}/1\n{text}".encode()
