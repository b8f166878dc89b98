"""Peers that are slow, idle, many or wrong, on real sockets of the loopback interface."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from common.web import http_server
from common.web.connection_limits import ConnectionLimits
from common.web.http_server import vouch
from tests.served import served

SOON = ConnectionLimits(unknown=8, known=8, each=4, arrive_s=0.4, idle_s=0.4, call_s=0.4)
PATIENT = ConnectionLimits(unknown=8, known=8, each=4)
LONG_BYTES = 2**26
HELLO = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"
KNOWN = b"GET /hello?peer=north HTTP/1.1\r\nHost: x\r\n\r\n"


async def hello(request: Request) -> Response:
    peer = request.query_params.get("peer")
    if peer and not vouch(request.scope, peer):
        return PlainTextResponse("full", 503)
    try:
        size = sum([len(piece) async for piece in request.stream()])
    except ClientDisconnect:
        return PlainTextResponse("gone")
    return PlainTextResponse(f"hello {size}")


async def long_answer(request: Request) -> Response:
    vouch(request.scope, "north")

    async def pieces() -> Any:
        for _ in range(LONG_BYTES >> 16):
            yield bytes(2**16)

    return StreamingResponse(pieces())


PAGES = Starlette(
    routes=[Route("/hello", hello, methods=["GET", "POST"]), Route("/long", long_answer)]
)


@contextlib.contextmanager
def door(limits: ConnectionLimits, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    with served(PAGES, limits=limits, tls=tls) as address:
        yield int(address.rpartition(":")[2])


def connected(port: int, *, at: str = "127.0.0.1") -> socket.socket:
    one = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(at, 0))
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one


def said(one: socket.socket, request: bytes) -> bytes:
    """Return the whole answer to a request, or what came of it."""
    one.sendall(request)
    text = b""
    while not text.endswith((b"hello 0", b"full")) and (piece := one.recv(4096)):
        text += piece
    return text


def ended(one: socket.socket, *, within_s: float = 5.0) -> bool:
    """Return whether the other side closes the connection, whatever it says before."""
    until = time.monotonic() + within_s
    try:
        while time.monotonic() < until:
            one.settimeout(max(0.01, until - time.monotonic()))
            if not one.recv(2**16):
                return True
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return False


def drip(one: socket.socket, text: bytes, *, every_s: float = 0.05) -> bool:
    """Send letter by letter; return whether the other side ends it."""
    for number in range(len(text)):
        try:
            one.sendall(text[number : number + 1])
        except ConnectionError:
            return True
        time.sleep(every_s)
    return ended(one, within_s=0.5)


LONG = b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n"
SLOW: dict[str, tuple[bytes, bytes]] = {
    "nothing": (b"", b""),
    "half a line": (b"", b"GET /hel"),
    "headers without end": (HELLO[:-2], b"X: y\r\n" * 9),
    "a body that drips": (LONG, b"0" * 60),
    "a known peer's body that drips": (LONG.replace(b"hello", b"hello?peer=n"), b"0" * 60),
    "a chunk that drips": (
        b"POST /hello HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"0" * 60,
    ),
    "a known peer's next headers": (KNOWN, KNOWN[:-2] + b"X: y\r\n" * 9),
    "an unknown one that asks again and again": (HELLO, HELLO * 4),
}


@pytest.mark.parametrize("what", SLOW)
def test_who_is_slow_is_closed(what: str) -> None:
    with door(SOON) as port, connected(port) as one:
        began = time.monotonic()
        at_once, slowly = SLOW[what]
        one.sendall(at_once)
        assert drip(one, slowly)
        assert time.monotonic() - began < 4
        with connected(port) as other:
            assert b"hello 0" in said(other, HELLO)


def test_an_answer_that_nobody_reads_is_given_up() -> None:
    with door(SOON) as port, connected(port) as one:
        one.sendall(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.8)
        came = 0
        with contextlib.suppress(ConnectionError):
            while piece := one.recv(2**20):
                came += len(piece)
        assert came < LONG_BYTES


def test_a_known_peer_may_ask_again_and_again_for_longer_than_it_took_to_arrive() -> None:
    with door(SOON) as port, connected(port) as one:
        for _ in range(5):
            assert b"hello 0" in said(one, KNOWN)
            time.sleep(0.12)


def test_an_answer_in_pieces_waits_for_no_acknowledgement() -> None:
    """Without TCP_NODELAY each took 40 ms more, and a round of a hundred calls four seconds."""
    with door(PATIENT) as port, connected(port) as one:
        began = time.monotonic()
        for _ in range(50):
            assert b"hello 0" in said(one, KNOWN)
        assert time.monotonic() - began < 1.5


def test_headers_have_a_largest_size() -> None:
    with door(PATIENT) as port, connected(port) as one:
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                one.sendall(b"GET / HTTP/1.1\r\n" if _ == 0 else b"X: " + b"y" * 4000 + b"\r\n")
                time.sleep(0.001)
        assert ended(one)


def test_requests_that_were_not_waited_for_are_answered_one_by_one() -> None:
    with door(PATIENT) as port, connected(port) as one:
        one.sendall(HELLO * 50)
        text = b""
        while text.count(b"hello 0") < 50:
            text += one.recv(2**16)
        assert text.count(b"200 OK") == 50


def test_idle_connections_of_other_addresses_shut_nobody_out() -> None:
    with door(PATIENT) as port, contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(port, at=f"127.0.0.{2 + n % 3}")) for n in range(40)]
        one = stack.enter_context(connected(port))
        for other in range(20):
            stack.enter_context(connected(port, at=f"127.0.0.{2 + other % 3}"))
        assert b"hello 0" in said(one, HELLO)
        assert all(ended(early) for early in held[:20])


def test_idle_connections_of_the_same_address_shut_nobody_out() -> None:
    with door(PATIENT) as port, contextlib.ExitStack() as stack:
        site = stack.enter_context(connected(port))
        assert b"hello 0" in said(site, KNOWN)
        for _ in range(40):
            stack.enter_context(connected(port))
        assert b"hello 0" in said(site, KNOWN), "a known connection is not asked to leave"
        with connected(port) as new:
            assert b"hello 0" in said(new, HELLO)


def test_a_peer_has_its_share_of_connections() -> None:
    with door(PATIENT) as port, contextlib.ExitStack() as stack:
        ones = [stack.enter_context(connected(port)) for _ in range(PATIENT.each + 1)]
        for one in ones:
            assert b"hello 0" in said(one, KNOWN)
        assert ended(ones[0])
        assert b"hello 0" in said(ones[1], KNOWN)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    from server.consortium.superlink_address import Hub

    hub = Hub.make(tmp_path_factory.mktemp("door"))
    return http_server.tls_context(hub.certificate, hub.key)


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@pytest.mark.parametrize("begins", [b"", b"\x16\x03\x01\x02\x00\x01", HELLO])
def test_a_handshake_that_does_not_end_is_closed(tls: ssl.SSLContext, begins: bytes) -> None:
    with door(SOON, tls) as port, connected(port) as one:
        one.sendall(begins)
        assert ended(one, within_s=2.0)


def test_a_door_with_tls_answers_and_counts_who_has_not_agreed_on_it(tls: ssl.SSLContext) -> None:
    with door(PATIENT, tls) as port, contextlib.ExitStack() as stack:
        bare = [stack.enter_context(connected(port)) for _ in range(20)]
        agreed = [
            stack.enter_context(trusting().wrap_socket(stack.enter_context(connected(port))))
            for _ in range(8)
        ]
        assert all(ended(one) for one in bare[:12])
        assert b"hello 0" in said(agreed[-1], KNOWN)
        assert b"hello 0" in said(agreed[-1], KNOWN)


def test_a_request_in_the_same_packet_as_the_end_of_the_handshake_is_answered(
    tls: ssl.SSLContext,
) -> None:
    with door(PATIENT, tls) as port, connected(port) as raw:
        came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        ours = trusting().wrap_bio(came, goes)
        with contextlib.suppress(ssl.SSLWantReadError):
            ours.do_handshake()
        raw.sendall(goes.read())
        while True:
            came.write(raw.recv(2**16))
            try:
                ours.do_handshake()
            except ssl.SSLWantReadError:
                continue
            break
        ours.write(HELLO)
        raw.sendall(goes.read())
        text = b""
        while b"hello 0" not in text:
            came.write(raw.recv(2**16))
            with contextlib.suppress(ssl.SSLWantReadError):
                while True:
                    text += ours.read()


def test_a_certificate_is_not_asked_for_and_old_tls_is_refused(tls: ssl.SSLContext) -> None:
    assert tls.verify_mode == ssl.CERT_NONE
    assert tls.minimum_version == ssl.TLSVersion.TLSv1_2
    assert tls.options & ssl.OP_NO_RENEGOTIATION


def test_a_stranger_fills_no_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with door(PATIENT) as port, connected(port) as one:
        one.sendall(b"\x00\xff nonsense\r\n\r\n")
        assert ended(one)
    assert capfd.readouterr().err == ""
