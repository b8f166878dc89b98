from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from common.errors import StateError
from common.process.child_processes import free_port
from server.consortium import provisioning
from server.consortium.provisioning import Consortium
from server.consortium.superlink_address import Hub
from server.transport import gateway
from server.transport.gateway import (
    FLEET_CALLS,
    KEY_HEADER,
    MAX_BODY_BYTES,
    REFUSED,
    Door,
    application,
)
from tests import faulty_doors

Handler = Callable[[httpx.Request], httpx.Response]


def echo(request: httpx.Request) -> httpx.Response:
    headers = {
        "content-type": "application/grpc",
        "flwr-version": "1",
        "server": "hidden",
        "set-cookie": "a=b",
    }
    return httpx.Response(200, content=request.content[::-1], headers=headers)


class Upstream:
    def __init__(self, handler: Handler = echo) -> None:
        self.seen: list[httpx.Request] = []
        self._handler = handler

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        return self._handler(request)


def call(
    upstream: Upstream,
    method: str,
    path: str,
    *,
    content: Any = b"",
    admits: Callable[[str], bool] = lambda _key: True,
    patience_s: float = 0.0,
    **headers: str,
) -> httpx.Response:
    async def go() -> httpx.Response:
        transport = httpx.MockTransport(upstream)
        async with (
            httpx.AsyncClient(base_url="https://127.0.0.1:1", transport=transport) as behind,
            httpx.AsyncClient(
                base_url="https://gateway",
                transport=httpx.ASGITransport(
                    application(behind, admits=admits, patience_s=patience_s)
                ),
            ) as client,
        ):
            return await client.request(method, path, content=content, headers=headers)

    return asyncio.run(go())


@pytest.mark.parametrize("path", sorted(FLEET_CALLS))
def test_a_fleet_call_passes(path: str) -> None:
    upstream = Upstream()
    answer = call(upstream, "POST", path, content=b"abc", **{"flwr-key": "k"})
    assert (answer.status_code, answer.content) == (200, b"cba")
    (request,) = upstream.seen
    assert request.url == f"https://127.0.0.1:1{path}"
    assert request.headers["flwr-key"] == "k"
    assert request.headers["host"] == "127.0.0.1:1"


def test_only_flowers_own_headers_come_back() -> None:
    answer = call(Upstream(), "POST", "/v1/fleet/get-run", content=b"a")
    assert set(answer.headers) == {"content-type", "flwr-version", "content-length"}


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/get-run/",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/get-run%2f..%2f..%2fcontrol%2fstart-run",
        "//v1/fleet/get-run",
        "/V1/FLEET/GET-RUN",
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/v1/runtime/push-messages",
        "/flwr.proto.Fleet/RegisterNode",
        "/docs",
    ],
)
def test_every_other_call_is_not_found(path: str) -> None:
    upstream = Upstream()
    assert call(upstream, "POST", path).status_code == 404
    assert upstream.seen == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_post_passes(method: str) -> None:
    upstream = Upstream()
    assert call(upstream, method, "/v1/fleet/get-run").status_code in {404, 405}
    assert upstream.seen == []


def test_the_query_is_not_passed_on() -> None:
    upstream = Upstream()
    call(upstream, "POST", "/v1/fleet/get-run?x=1")
    assert upstream.seen[0].url.query == b""


@pytest.mark.parametrize(("size", "status"), [(0, 200), (1, 413)])
def test_a_call_has_a_largest_size(size: int, status: int) -> None:
    upstream = Upstream(lambda _request: httpx.Response(200))
    content = b"0" * (MAX_BODY_BYTES + size)
    assert call(upstream, "POST", "/v1/fleet/push-object", content=content).status_code == status
    assert len(upstream.seen) == (status == 200)


def test_a_stream_without_a_length_is_cut_off_too() -> None:
    upstream = Upstream()
    sent = []

    async def chunks() -> Any:
        for _ in range(40):
            sent.append(1)
            yield b"0" * 2**20

    answer = call(upstream, "POST", "/v1/fleet/push-object", content=chunks())
    assert answer.status_code == 413
    assert len(sent) <= 18
    assert upstream.seen == []


@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ReadTimeout, httpx.ReadError])
def test_a_superlink_that_is_down_is_said(error: type[httpx.TransportError]) -> None:
    def down(request: httpx.Request) -> httpx.Response:
        raise error("down")

    answer = call(Upstream(down), "POST", "/v1/fleet/get-run")
    assert (answer.status_code, answer.text) == (503, "the coordinator is starting")


@pytest.mark.parametrize(
    ("error", "tries", "status"), [(httpx.ConnectError, 3, 200), (httpx.ReadError, 1, 503)]
)
def test_a_superlink_that_is_started_anew_is_waited_for_but_hears_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, error: type[httpx.TransportError], tries: int, status: int
) -> None:
    monkeypatch.setattr(gateway, "_AGAIN_S", 0.0)

    def down(request: httpx.Request) -> httpx.Response:
        if len(upstream.seen) < 3:
            raise error("down")
        return echo(request)

    upstream = Upstream(down)
    answer = call(upstream, "POST", "/v1/fleet/push-object", content=b"ab", patience_s=60.0)
    assert (answer.status_code, len(upstream.seen)) == (status, tries)


@pytest.mark.parametrize("status", [401, 403, 500])
def test_refusals_of_the_superlink_are_passed_on(status: int) -> None:
    upstream = Upstream(lambda _request: httpx.Response(status, content=b"no"))
    answer = call(upstream, "POST", "/v1/fleet/get-run")
    assert (answer.status_code, answer.content) == (status, b"no")


def bound_at(consortium: Consortium, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """Return where the gateway listens, and check that it can serve its certificate there."""
    served: list[tuple[uvicorn.Config, Any]] = []

    def run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        served.append((server.config, sockets[0].getsockname()))
        sockets[0].close()

    monkeypatch.setattr(gateway.uvicorn.Server, "run", run)
    Hub.make(consortium.folder / "flower")
    gateway.serve(consortium)
    ((config, name),) = served
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(config.ssl_certfile), config.ssl_keyfile)
    return name[0], name[1]


@pytest.mark.parametrize("listen", ["", "127.0.0.1:{}", "{}"])
def test_the_gateway_listens_where_it_is_told_whatever_hospitals_call(
    world: Any, monkeypatch: pytest.MonkeyPatch, listen: str
) -> None:
    port = free_port()
    consortium = provisioning.init(
        world.folder / "other",
        name="Other",
        host="localhost",
        port=443 if listen else port,
        listen=listen.format(port),
    )
    assert bound_at(consortium, monkeypatch) == ("127.0.0.1", port)
    assert consortium.address == f"localhost:{443 if listen else port}"


def test_a_gateway_whose_port_is_taken_ends_with_a_sentence(world: Any) -> None:
    """The supervisor names the last line of its log."""
    with faulty_doors.closed() as port:
        consortium = provisioning.readdressed(world.consortium, listen=f"{port}")
        Hub.make(consortium.folder / "flower")
        with faulty_doors.listening(port), pytest.raises(StateError) as refused:
            gateway.serve(consortium)
    assert refused.value.code == "port"
    assert f"127.0.0.1:{port}: another process has that port" in refused.value.message


def header(world: Any, name: str) -> str:
    """Return the header in which the SuperNode of a site names its key."""
    key = load_ssh_public_key(world.consortium.sites.get(name).node_key.encode())
    return base64.b64encode(
        key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    ).decode()


def knock(door: Door, key: str) -> httpx.Response:
    return call(Upstream(), "POST", "/v1/fleet/pull-messages", admits=door, **{KEY_HEADER: key})


def test_a_revoked_site_is_refused_from_its_next_call_on(world: Any) -> None:
    world.join("a", "b")
    door = Door(world.consortium.sites)
    a, b = header(world, "a"), header(world, "b")
    assert [knock(door, key).status_code for key in (a, b)] == [200, 200]
    world.consortium.sites.revoke("a", by="Ada", why="stolen laptop")
    assert (knock(door, a).status_code, knock(door, a).text) == (403, REFUSED)
    assert knock(door, b).status_code == 200


@pytest.mark.parametrize("key", ["", "!", base64.b64encode(b"no key").decode(), "stranger"])
def test_no_key_and_a_strangers_key_are_refused(world: Any, key: str) -> None:
    world.join("a")
    if key == "stranger":
        public = ec.generate_private_key(ec.SECP384R1()).public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        key = base64.b64encode(pem).decode()
    assert knock(Door(world.consortium.sites), key).status_code == 403


def test_a_folder_that_cannot_be_read_lets_nobody_in(
    world: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    world.join("a", "b")
    key = header(world, "a")
    (world.consortium.folder / "sites" / "b.json").write_text("{")
    assert knock(Door(world.consortium.sites), key).status_code == 403
    assert "Nobody is let in" in capsys.readouterr().err
