"""Who signed a call of the fleet: read from its headers, before a byte of its body is.

A SuperNode signs the time, and nothing else of a call, with its node key; the SuperLink checks that
once the whole body is there. Here the same is checked first, with the same tolerance, and one thing
more: a signature that was seen is not taken again. Of an ECDSA signature anybody can make a second
one, (r, -s); both are one here. Each key has its own memory, so that none can fill another's.

Out of scope: which keys are admitted, which is ``server.transport.gateway``'s.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

KEY_HEADER: Final = "flwr-public-key"
"""In which a SuperNode names its public key (PEM, base64)."""
SIGNATURE_HEADER: Final = "flwr-signature"
TIME_HEADER: Final = "flwr-timestamp"

EARLIEST_S: Final = -5.0
LATEST_S: Final = 305.0
"""How old the SuperLink lets a signed time be; a test compares both with the installed Flower's."""

_MOST_HEADER: Final = 1024
_MOST_SEEN: Final = 2**16
# Of P-384, which SuperNodes use; of any other curve (r, -s) is not known as the same signature, and
# is bound to the same few minutes all the same.
_ORDER: Final = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffff"
    "c7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)


class BadSignature(Exception):  # noqa: N818 - as cryptography's InvalidSignature
    """The headers carry no signature of this key and this time, or one that was used."""


@dataclass(frozen=True)
class NodeKey:
    """A public key as a call's header names it; ``openssh`` is how the coordinator keeps it."""

    key: ec.EllipticCurvePublicKey
    openssh: str

    @classmethod
    def read(cls, header: str) -> NodeKey | None:
        """Return the key in the header's text, or None where there is none of the right kind."""
        if len(header) > _MOST_HEADER:
            return None
        try:
            key = load_pem_public_key(base64.b64decode(header, validate=True))
        except (binascii.Error, ValueError, UnsupportedAlgorithm):
            return None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return None
        return cls(key, key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode())


class SeenSignatures:
    """Checks signatures, and remembers those that it took for as long as they are worth anything.

    Two sets take turns, so that each signature is kept for at least one window and at most two.
    """

    def __init__(self, *, most: int = _MOST_SEEN) -> None:
        self._most = most
        self._now: dict[str, set[bytes]] = {}
        self._before: dict[str, set[bytes]] = {}
        self._turned_s = float("-inf")

    def check(self, key: NodeKey, headers: Mapping[str, str], *, now_s: float) -> None:
        """Raise BadSignature unless ``headers`` are signed by ``key``, now and for the first time.

        ``now_s`` is the time since the epoch.
        """
        signed = headers.get(TIME_HEADER, "")
        try:
            if len(signed) > _MOST_HEADER:
                raise ValueError
            signed_at = dt.datetime.fromisoformat(signed)
            if signed_at.tzinfo is None:
                raise ValueError
            signed_s = signed_at.timestamp()
            signature = base64.b64decode(headers.get(SIGNATURE_HEADER, ""), validate=True)
            if not EARLIEST_S < now_s - signed_s < LATEST_S:
                raise BadSignature("the call was signed at another time: compare the clocks")
            key.key.verify(signature, signed.encode("ascii"), ec.ECDSA(hashes.SHA256()))
            r, s = decode_dss_signature(signature)
        except (InvalidSignature, binascii.Error, ValueError, OverflowError):
            raise BadSignature("the call is not signed by its key") from None
        if now_s - self._turned_s > LATEST_S - EARLIEST_S:
            self._before, self._now = self._now, {}
            self._turned_s = now_s
        mark = hashlib.sha256(f"{signed} {r} {min(s, _ORDER - s)}".encode()).digest()[:16]
        seen = self._now.setdefault(key.openssh, set())
        if mark in seen or mark in self._before.get(key.openssh, ()):
            raise BadSignature("the call was made before")
        if len(seen) >= self._most:
            raise BadSignature("this key signed too many calls in a few minutes")
        seen.add(mark)
