"""The gateway with TLS on the loopback interface, in front of a SuperLink that is a few lines.

A hospital calls while others open connections and let them lie, from many addresses or from the
hospital's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from common.web import http_server
from common.web.connection_limits import ConnectionLimits
from server.consortium.superlink_address import Hub
from server.transport.gateway import LIMITS, Door, application
from tests.supernodes import signed

FEW = dataclasses.replace(LIMITS, unknown=12)
"""Three for each of four addresses, as the real limit has ten for each of fifty."""


@contextlib.contextmanager
def gateway(world: Any, limits: ConnectionLimits) -> Iterator[int]:
    upstream = httpx.AsyncClient(
        base_url="https://127.0.0.1:1",
        transport=httpx.MockTransport(lambda request: httpx.Response(200, content=request.content)),
    )
    hub = Hub.make(world.folder / "flower")
    app = application(upstream, admits=Door(world.consortium.sites))
    served = http_server.config(
        app, limits=limits, tls=http_server.tls_context(hub.certificate, hub.key)
    )
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    with http_server.in_thread(served, listening):
        yield listening.getsockname()[1]


@functools.cache
def unchecked() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class Hospital:
    """Calls again and again, each time on a new connection, and once more where one was lost."""

    def __init__(self, port: int, key: ec.EllipticCurvePrivateKey, *, address: str) -> None:
        self._url = f"https://127.0.0.1:{port}/v1/fleet/pull-messages"
        self._key = key
        self._transport = {"verify": unchecked(), "local_address": address}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.seconds: list[float] = []
        self.lost = 0

    def __enter__(self) -> Hospital:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            while not self._answered() and time.monotonic() - began < 30:
                self.lost += 1
            self.seconds.append(time.monotonic() - began)
            self._stop.wait(0.05)

    def _answered(self) -> bool:
        try:
            with httpx.Client(transport=httpx.HTTPTransport(**self._transport)) as client:
                answer = client.post(self._url, content=b"x", headers=signed(self._key), timeout=10)
        except httpx.TransportError:
            return False
        return answer.status_code == 200


def bare(one: socket.socket) -> socket.socket:
    return one


def agreed(one: socket.socket) -> socket.socket:
    return unchecked().wrap_socket(one)


def half(one: socket.socket) -> socket.socket:
    made = agreed(one)
    made.sendall(b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nX-A: b")
    return made


def flooded(
    port: int, count: int, addresses: list[str], then: Callable[[socket.socket], socket.socket]
) -> Iterator[socket.socket]:
    """Open connections and let them lie."""
    for number in range(count):
        with contextlib.suppress(OSError):  # closed for the next one
            source = (addresses[number % len(addresses)], 0)
            raw = socket.create_connection(("127.0.0.1", port), timeout=20, source_address=source)
            yield raw
            yield then(raw)


OTHERS = [f"127.0.1.{number}" for number in range(1, 51)]
NAT = ["127.0.0.1"]
KINDS = [bare, agreed, half]


def shut_out(
    world: Any, limits: ConnectionLimits, count: int, addresses: list[str], kind: Any
) -> Hospital:
    world.join("a")
    with (
        gateway(world, limits) as port,
        contextlib.ExitStack() as held,
        Hospital(port, world.node_keys["a"], address="127.0.0.1") as hospital,
    ):
        for one in flooded(port, count, addresses, kind):
            held.enter_context(one)
        until = len(hospital.seconds) + 3
        while len(hospital.seconds) < until:
            time.sleep(0.05)

    return hospital


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("addresses", [OTHERS[:4], NAT], ids=["from others", "from its own"])
def test_idle_connections_shut_no_hospital_out(world: Any, addresses: list[str], kind: Any) -> None:
    hospital = shut_out(world, FEW, 120, addresses, kind)
    assert max(hospital.seconds) < 10.0
    if addresses != NAT:
        assert hospital.lost == 0


@pytest.mark.slow  # 5,000 connections, each with its handshake: half a minute a case
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("addresses", [OTHERS, NAT], ids=["from others", "from its own"])
def test_five_thousand_idle_connections_shut_no_hospital_out(
    world: Any, addresses: list[str], kind: Any
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        hospital = shut_out(world, LIMITS, 5000, addresses, kind)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert max(hospital.seconds) < 10.0
    if addresses is OTHERS:
        assert hospital.lost == 0
