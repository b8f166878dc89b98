"""Keys by which anybody can sign, second names of keys, and what is no key, are refused."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.errors import IdentityError
from common.trust.identity import Identity, Statement
from common.trust.public_keys import check_identity_key, check_node_key, is_weak

P = 2**255 - 19
D = (-121665 * pow(121666, P - 2, P)) % P
ROOT = pow(2, (P - 1) // 4, P)


def x_of(y: int) -> int | None:
    """Return an x of the point of edwards25519 with this y, if there is one."""
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT % P
    return None if (x * x - square) % P else x


def added(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    (a, b), (c, d) = first, second
    product = D * a * b * c * d % P
    x = (a * d + c * b) * pow(1 + product, P - 2, P)
    y = (b * d + a * c) * pow(1 - product, P - 2, P)
    return x % P, y % P


def small_points() -> list[tuple[int, int]]:
    """Return the points whose order divides 8: the multiples of one of order 8."""
    y = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
    x = x_of(y)
    assert x is not None
    points, one = [], (0, 1)
    for _ in range(8):
        points.append(one)
        one = added(one, (x, y))
    assert one == (0, 1), "the order is 8"
    assert len(set(points)) == 8
    return points


def spelt(y: int, sign: int) -> str:
    return (y | sign << 255).to_bytes(32, "little").hex()


WEAK = sorted(
    {spelt(y, sign) for _, y in small_points() for sign in (0, 1)}
    | {spelt(y, sign) for y in (P, P + 1) for sign in (0, 1)}
)


@pytest.mark.parametrize("key", WEAK)
def test_every_spelling_of_a_point_of_small_order_is_refused(key: str) -> None:
    assert is_weak(key)
    with pytest.raises(IdentityError, match="anybody can sign") as refused:
        check_identity_key(key, whose="north")
    assert refused.value.code == "key"


def test_no_statement_is_taken_for_signed_by_such_a_key() -> None:
    """Its signature fits any statement: R = 0 encodes, S = 0."""
    key = "01" + "00" * 31
    forged = Statement("study-approval", {"site": "north"}, key, key + "00" * 32)
    assert key not in forged.signers()
    with pytest.raises(IdentityError, match="anybody can sign"):
        forged.opened(kind="study-approval", signer=key)


@pytest.mark.parametrize("y", range(P + 2, 2**255))
def test_a_second_name_of_a_point_is_refused(y: int) -> None:
    assert is_weak(spelt(y, 0))


def test_made_keys_are_none_of_these() -> None:
    for _ in range(200):
        key = Identity(ed25519.Ed25519PrivateKey.generate()).public
        assert not is_weak(key)
        check_identity_key(key, whose="north")


def openssh(key: object) -> str:
    made: bytes = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)  # type: ignore[attr-defined]
    return made.decode()


GOOD = openssh(ec.generate_private_key(ec.SECP384R1()))


def broken(text: str) -> str:
    """Return a key whose point is not on the curve."""
    kind, data = text.split(" ")
    raw = bytearray(base64.b64decode(data))
    raw[-1] ^= 1
    return f"{kind} {base64.b64encode(raw).decode()}"


NODE_KEYS = {
    "no key": "ecdsa-sha2-nistp384 AAAA",
    "slashes": "ecdsa-sha2-nistp384 ////",
    "padding alone": "ecdsa-sha2-nistp384 ====",
    "one letter": "ecdsa-sha2-nistp384 A",
    "a point that is not on the curve": broken(GOOD),
    "another curve": openssh(ec.generate_private_key(ec.SECP256R1())),
    "another kind": openssh(rsa.generate_private_key(65537, 2048)),
    "an identity key": openssh(ed25519.Ed25519PrivateKey.generate()),
    "a comment behind": f"{GOOD} north",
    "a space behind": f"{GOOD} ",
    "cut": GOOD[:-8],
    "empty": "",
}


def test_a_made_node_key_is_taken() -> None:
    check_node_key(GOOD, whose="north")


@pytest.mark.parametrize("case", NODE_KEYS)
def test_what_is_no_node_key_is_refused(case: str) -> None:
    with pytest.raises(IdentityError, match="node key of north is no P-384 key") as refused:
        check_node_key(NODE_KEYS[case], whose="north")
    assert refused.value.code == "key"
