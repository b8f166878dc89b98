from __future__ import annotations

import asyncio
import base64
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
from server import gateway
from server.gateway import FLEET_CALLS, KEY_HEADER, MAX_BODY_BYTES, REFUSED, Door, application
from server.serving import children
from tests.certificates import expired

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
    **headers: str,
) -> httpx.Response:
    async def go() -> httpx.Response:
        transport = httpx.MockTransport(upstream)
        async with (
            httpx.AsyncClient(base_url="https://127.0.0.1:1", transport=transport) as behind,
            httpx.AsyncClient(
                base_url="https://gateway",
                transport=httpx.ASGITransport(application(behind, admits=admits)),
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


@pytest.mark.parametrize("status", [401, 403, 500])
def test_refusals_of_the_superlink_are_passed_on(status: int) -> None:
    upstream = Upstream(lambda _request: httpx.Response(status, content=b"no"))
    answer = call(upstream, "POST", "/v1/fleet/get-run")
    assert (answer.status_code, answer.content) == (status, b"no")


@pytest.mark.parametrize(
    ("host", "interface"),
    [
        ("localhost", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("fed.example.org", "0.0.0.0"),  # noqa: S104
        ("192.0.2.7", "0.0.0.0"),  # noqa: S104
        ("2001:db8::7", "::"),
    ],
)
def test_a_private_consortium_stays_private(
    world: Any, monkeypatch: pytest.MonkeyPatch, host: str, interface: str
) -> None:
    served: list[uvicorn.Config] = []
    monkeypatch.setattr(gateway.uvicorn.Server, "run", lambda server: served.append(server.config))
    settings = world.consortium.settings.model_copy(update={"host": host})
    gateway.serve(type(world.consortium)(world.consortium.folder, settings))
    assert (served[0].host, served[0].port) == (interface, 9443)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(served[0].ssl_certfile), served[0].ssl_keyfile)


def test_an_expired_certificate_is_told(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.uvicorn.Server, "run", lambda _server: None)
    gateway.serve(world.consortium)
    assert children(world.consortium)
    assert not world.events("certificate expired")
    certificate = world.consortium.folder / "server.crt"
    certificate.write_bytes(expired(world.consortium.folder))
    gateway.serve(world.consortium)
    (told,) = world.events("certificate expired")
    assert told["since"] == gateway.expired(world.consortium).isoformat()
    with pytest.raises(StateError, match="expired on 20") as refused:
        children(world.consortium)
    assert refused.value.code == "certificate"


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
