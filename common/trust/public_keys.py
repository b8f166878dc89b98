"""Public keys that somebody else sent: read once, where they enter, and refused if they are none.

An identity key is a point of edwards25519 (RFC 8032). A few points have an order of 8 or less: a
signature by such a key fits without a private key, for any statement. Nineteen further texts name a
point that has another name as well. None of them comes from an honest key generator; all are
refused.

A node key is a point of NIST P-384 in OpenSSH's form, by which Flower knows a SuperNode. It must be
spelt as OpenSSH spells it: two spellings of one key would be two sites.

Pure. Out of scope: whose key it is (``common.trust.enrolment``, ``server.consortium.sites``).
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from common.errors import IdentityError

_P: Final = 2**255 - 19
_ORDER_8: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
"""The y of the points of order 8, but for its sign (a test computes it)."""

_SMALL: Final = frozenset({0, 1, _P - 1, _ORDER_8, _P - _ORDER_8})
"""The y of all points whose order divides 8."""

_DO: Final = "Let the hospital run `gliofed-site request` in a new folder, and send that request."


def is_weak(key: str) -> bool:
    """Return whether an Ed25519 public key (hex) is one that anybody can sign by, or a second name.

    >>> is_weak("01" + "00" * 31)
    True
    """
    try:
        y = int.from_bytes(bytes.fromhex(key), "little") & (2**255 - 1)
    except ValueError:
        return False  # no key at all: whoever reads it says so
    return y in _SMALL or y >= _P


def check_identity_key(key: str, *, whose: str) -> None:
    """Raise IdentityError (code ``key``) unless ``key`` (hex) is an Ed25519 key to rely on."""
    if is_weak(key):
        raise IdentityError(
            f"The identity key of {whose} is one by which anybody can sign.", do=_DO, code="key"
        )
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
    except ValueError:
        raise _no_key(whose, "identity", "Ed25519") from None


def check_node_key(text: str, *, whose: str) -> None:
    """Raise IdentityError (code ``key``) unless ``text`` is a P-384 key as OpenSSH spells it."""
    try:
        key = load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise _no_key(whose, "node", "P-384") from None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise _no_key(whose, "node", "P-384")
    if key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) != text.encode():
        raise _no_key(whose, "node", "P-384")


def _no_key(whose: str, what: str, kind: str) -> IdentityError:
    return IdentityError(
        f"The {what} key of {whose} is no {kind} key as its key generator writes it.",
        do=_DO,
        code="key",
    )
