from __future__ import annotations

import base64
import datetime as dt

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common import constant
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.supercore import constant as core
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from server.transport import node_signature
from server.transport.node_signature import (
    EARLIEST_S,
    KEY_HEADER,
    LATEST_S,
    SIGNATURE_HEADER,
    TIME_HEADER,
    BadSignature,
    NodeKey,
    SeenSignatures,
)
from tests.supernodes import signed

KEY = ec.generate_private_key(ec.SECP384R1())
NOW = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)


def check(
    headers: dict[str, str], seen: SeenSignatures | None = None, *, late_s: float = 0.0
) -> None:
    key = NodeKey.read(headers[KEY_HEADER])
    assert key is not None
    (seen or SeenSignatures()).check(key, headers, now_s=NOW.timestamp() + late_s)


def test_what_flowers_supernode_signs_is_taken() -> None:
    """Fails when Flower signs something else, or in other headers."""
    import httpx
    from flwr.supercore.protobuf.client import ProtobufRequestContext

    request = httpx.Request("POST", "https://fl.example.org/v1/fleet/pull-messages")
    context = ProtobufRequestContext("PullMessages", PullMessagesRequest(), request)
    NodeAuthHttpInterceptor(KEY, KEY.public_key()).intercept(context, lambda _: httpx.Response(200))
    headers = dict(request.headers)
    assert {KEY_HEADER, TIME_HEADER, SIGNATURE_HEADER} <= set(headers)
    key = NodeKey.read(headers[KEY_HEADER])
    assert key is not None
    SeenSignatures().check(key, headers, now_s=dt.datetime.now(dt.UTC).timestamp())


def test_the_window_is_that_of_flowers_superlink() -> None:
    assert -constant.SYSTEM_TIME_TOLERANCE == EARLIEST_S
    assert constant.TIMESTAMP_TOLERANCE + constant.SYSTEM_TIME_TOLERANCE == LATEST_S
    assert (KEY_HEADER, SIGNATURE_HEADER, TIME_HEADER) == (
        core.FLEET_HTTP_PUBLIC_KEY_HEADER,
        core.FLEET_HTTP_SIGNATURE_HEADER,
        constant.TIMESTAMP_HEADER,
    )


@pytest.mark.parametrize("late_s", [-4.9, 0.0, 304.9])
def test_a_call_of_now_is_taken(late_s: float) -> None:
    check(signed(KEY, at=NOW), late_s=late_s)


@pytest.mark.parametrize("late_s", [-5.0, 305.0, 1e6, -1e6])
def test_a_call_of_another_time_is_refused(late_s: float) -> None:
    with pytest.raises(BadSignature, match="another time"):
        check(signed(KEY, at=NOW), late_s=late_s)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "now",
        "2026-05-01T12:00:00",  # of which time zone?
        "9999-12-31T23:59:59+00:00",
        "0001-01-01T00:00:00+23:59",
        "2026-05-01T12:00:00+00:00" + " " * 2000,
        "2026-05-01T12:00:00+00:00\u00e9",
    ],
)
def test_a_time_that_is_none_is_refused(said: str) -> None:
    headers = signed(KEY, at=NOW)
    headers[TIME_HEADER] = said
    with pytest.raises(BadSignature):
        check(headers)


@pytest.mark.parametrize("signature", ["", "!", base64.b64encode(b"0" * 96).decode(), "others"])
def test_a_signature_that_is_none_is_refused(signature: str) -> None:
    headers = signed(KEY, at=NOW)
    if signature == "others":
        other = signed(ec.generate_private_key(ec.SECP384R1()), at=NOW)
        signature = other[SIGNATURE_HEADER]
    headers[SIGNATURE_HEADER] = signature
    with pytest.raises(BadSignature):
        check(headers)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_call_is_taken_once(mirrored: bool) -> None:
    seen = SeenSignatures()
    headers = signed(KEY, at=NOW)
    check(headers, seen)
    if mirrored:
        r, s = decode_dss_signature(base64.b64decode(headers[SIGNATURE_HEADER]))
        other = encode_dss_signature(r, node_signature._ORDER - s)
        headers[SIGNATURE_HEADER] = base64.b64encode(other).decode()
    with pytest.raises(BadSignature, match="before"):
        check(headers, seen, late_s=300.0)


def test_two_calls_of_one_moment_are_two() -> None:
    seen = SeenSignatures()
    for _ in range(3):
        check(signed(KEY, at=NOW), seen)


def test_what_was_seen_is_forgotten_once_it_is_worth_nothing() -> None:
    seen = SeenSignatures()
    for minute in range(60):
        check(signed(KEY, at=NOW + dt.timedelta(minutes=minute)), seen, late_s=60.0 * minute)
    assert sum(len(marks) for marks in (*seen._now.values(), *seen._before.values())) <= 12


def test_no_key_fills_the_memory() -> None:
    seen = SeenSignatures(most=3)
    for _ in range(3):
        check(signed(KEY, at=NOW), seen)
    with pytest.raises(BadSignature, match="too many"):
        check(signed(KEY, at=NOW), seen)
    check(signed(ec.generate_private_key(ec.SECP384R1()), at=NOW), seen)


def test_a_key_of_another_kind_is_none() -> None:
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert NodeKey.read(base64.b64encode(pem).decode()) is None
