from __future__ import annotations

import asyncio
import base64
import contextlib
import resource
import socket
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import StateError
from common.process.loopback_tls import free_port
from server.consortium import provisioning
from server.consortium.provisioning import Consortium
from server.consortium.superlink_address import Hub
from server.transport import gateway
from server.transport.gateway import (
    FLEET_CALLS,
    MAX_BODY_BYTES,
    REFUSED,
    Caller,
    Door,
    Notices,
    application,
)
from server.transport.node_signature import KEY_HEADER, SIGNATURE_HEADER, TIME_HEADER
from server.transport.site_allowance import SiteAllowances
from tests import faulty_doors
from tests.supernodes import announced, pulled, signed

Handler = Callable[[httpx.Request], httpx.Response]


def echo(request: httpx.Request) -> httpx.Response:
    headers = {
        "content-type": "application/grpc",
        "flwr-version": "1",
        "server": "hidden",
        "set-cookie": "a=b",
    }
    return httpx.Response(200, content=request.content[::-1], headers=headers)


class Upstream(httpx.AsyncBaseTransport):
    """Answers with ``handler``; one that raises ConnectError was not connected to."""

    def __init__(self, handler: Handler = echo) -> None:
        self.seen: list[httpx.Request] = []
        self._handler = handler

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        with contextlib.suppress(httpx.ConnectError):
            self._handler(httpx.Request("POST", request.url, content=b""))
            await request.aread()
        return self._handler(request)


NORTH = Caller("north", "key")


def call(
    upstream: Upstream,
    method: str,
    path: str,
    *,
    content: Any = b"",
    admits: Callable[[Mapping[str, str]], Caller] = lambda _headers: NORTH,
    allowances: SiteAllowances | None = None,
    noticed: Callable[[str, str], None] = lambda _site, _reason: None,
    patience_s: float = 0.0,
    **headers: str,
) -> httpx.Response:
    async def go() -> httpx.Response:
        async with (
            httpx.AsyncClient(base_url="https://127.0.0.1:1", transport=upstream) as behind,
            httpx.AsyncClient(
                base_url="https://gateway",
                transport=httpx.ASGITransport(
                    application(
                        behind,
                        admits=admits,
                        allowances=allowances,
                        noticed=noticed,
                        patience_s=patience_s,
                    )
                ),
            ) as client,
        ):
            return await client.request(method, path, content=content, headers=headers)

    return asyncio.run(go())


@pytest.mark.parametrize("path", sorted(FLEET_CALLS))
def test_a_fleet_call_passes(path: str) -> None:
    upstream = Upstream()
    body = announced() if path.endswith("push-messages") else b"abc"
    answer = call(upstream, "POST", path, content=body, **{"flwr-key": "k"})
    assert (answer.status_code, answer.content) == (200, body[::-1])
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


def test_a_call_that_does_not_say_how_long_it_is_is_not_read() -> None:
    upstream = Upstream()
    sent = []

    async def chunks() -> Any:
        sent.append(1)
        yield b"0"

    assert call(upstream, "POST", "/v1/fleet/push-object", content=chunks()).status_code == 411
    assert (sent, upstream.seen) == ([], [])


@pytest.mark.parametrize("said", ["-1", "1e3", "9" * 4400, "", "0x10", " "])
def test_a_length_that_is_none_is_refused(said: str) -> None:
    async def chunks() -> Any:
        yield b""

    answer = call(
        Upstream(), "POST", "/v1/fleet/get-run", content=chunks(), **{"content-length": said}
    )
    assert answer.status_code in {411, 413}


@pytest.mark.parametrize("name", [KEY_HEADER, SIGNATURE_HEADER, TIME_HEADER, "content-length"])
def test_a_header_that_is_there_twice_is_refused(world: Any, name: str) -> None:
    """Else a revoked site could add its own key and signature to an admitted one's."""
    world.join("a")
    headers = {**signed(world.node_keys["a"]), "content-length": "0"}
    revoked = {**signed(ec.generate_private_key(ec.SECP384R1())), "content-length": "0"}
    upstream = Upstream()

    async def go() -> int:
        app = application(
            httpx.AsyncClient(base_url="https://127.0.0.1:1", transport=upstream),
            admits=Door(world.consortium.sites),
        )
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(base_url="https://gateway", transport=transport) as client:
            pairs = [*headers.items(), (name.title(), revoked[name])]
            answer = await client.post("/v1/fleet/pull-messages", headers=pairs)
            return answer.status_code

    assert asyncio.run(go()) == 400
    assert upstream.seen == []


def test_a_length_beside_pieces_without_one_is_refused() -> None:
    async def chunks() -> Any:
        yield b"0" * 100

    framing = {"content-length": "5", "transfer-encoding": "chunked"}
    upstream = Upstream()
    answer = call(upstream, "POST", "/v1/fleet/push-object", content=chunks(), **framing)
    assert (answer.status_code, upstream.seen) == (411, [])


def test_only_an_object_may_be_long() -> None:
    small = b"0" * (2**16 + 1)
    answers = {
        path: call(Upstream(), "POST", path, content=small).status_code for path in FLEET_CALLS
    }
    assert {path for path, status in answers.items() if status == 200} == {"/v1/fleet/push-object"}


def test_a_body_is_passed_on_piece_by_piece() -> None:
    """What came of it is upstream before the rest was sent."""
    passed: list[bytes] = []
    held: list[int] = []

    class Reads(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            async for piece in request.stream:  # type: ignore[union-attr]
                passed.append(piece)
            return httpx.Response(200)

    async def chunks() -> Any:
        for number in range(8):
            held.append(number - len(passed))
            yield b"0" * 2**20

    async def go() -> None:
        async with (
            httpx.AsyncClient(base_url="https://127.0.0.1:1", transport=Reads()) as behind,
            httpx.AsyncClient(
                base_url="https://gateway",
                transport=httpx.ASGITransport(application(behind, admits=lambda _: NORTH)),
            ) as client,
        ):
            answer = await client.post(
                "/v1/fleet/push-object",
                content=chunks(),
                headers={"content-length": str(8 * 2**20)},
            )
            assert answer.status_code == 200

    asyncio.run(go())
    assert len(passed) == 8
    assert max(held) <= 1


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
    """Return where the gateway listens, and that it has its certificate."""
    served: list[Any] = []

    def run(_config: Any, sockets: list[socket.socket]) -> None:
        served.append(sockets[0].getsockname())
        sockets[0].close()

    monkeypatch.setattr(gateway.http_server, "run", run)
    Hub.make(consortium.folder / "flower")
    gateway.serve(consortium)
    ((host, port),) = served
    return host, port


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


def knock(door: Door, headers: dict[str, str]) -> httpx.Response:
    return call(Upstream(), "POST", "/v1/fleet/pull-messages", admits=door, **headers)


def test_a_revoked_site_is_refused_from_its_next_call_on(world: Any) -> None:
    world.join("a", "b")
    door = Door(world.consortium.sites)
    a, b = world.node_keys["a"], world.node_keys["b"]
    assert [knock(door, signed(key)).status_code for key in (a, b)] == [200, 200]
    world.consortium.sites.revoke("a", by="Ada", why="stolen laptop")
    refused = knock(door, signed(a))
    assert (refused.status_code, refused.text) == (403, REFUSED)
    assert knock(door, signed(b)).status_code == 200


@pytest.mark.parametrize("key", ["", "!", base64.b64encode(b"no key").decode(), "stranger", "long"])
def test_no_key_and_a_strangers_key_are_refused(world: Any, key: str) -> None:
    world.join("a")
    headers = signed(ec.generate_private_key(ec.SECP384R1()))
    if key == "long":
        headers[KEY_HEADER] *= 8
    elif key != "stranger":
        headers[KEY_HEADER] = key
    assert knock(Door(world.consortium.sites), headers).status_code == 403


@pytest.mark.parametrize("signature", ["", "another's", "used"])
def test_of_a_body_that_is_not_signed_no_byte_is_read(world: Any, signature: str) -> None:
    """A node key is public: whoever knows it could have filled the memory."""
    world.join("a")
    key = world.node_keys["a"]
    headers = signed(key)
    door = Door(world.consortium.sites)
    if signature == "used":
        assert knock(door, headers).status_code == 200
    else:
        other = signed(ec.generate_private_key(ec.SECP384R1()))
        headers[SIGNATURE_HEADER] = other[SIGNATURE_HEADER] if signature else ""
    read = []

    async def chunks() -> Any:
        read.append(1)
        yield b"0" * 2**20

    upstream = Upstream()
    answer = call(
        upstream,
        "POST",
        "/v1/fleet/push-object",
        content=chunks(),
        admits=door,
        **headers,
        **{"content-length": str(2**20)},
    )
    assert answer.status_code == 401
    assert (read, upstream.seen) == ([], [])


def test_a_folder_that_cannot_be_read_lets_nobody_in(
    world: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    world.join("a", "b")
    key = world.node_keys["a"]
    (world.consortium.folder / "sites" / "b.json").write_text("{")
    assert knock(Door(world.consortium.sites), signed(key)).status_code == 403
    assert "Nobody is let in" in capsys.readouterr().err


def test_a_site_that_sends_more_than_it_was_asked_for_is_held_back_and_named(world: Any) -> None:
    world.join("a")
    journal = world.consortium.journal
    clock = [0.0]
    noticed = Notices(journal, now_s=lambda: clock[0])
    allowances = SiteAllowances(lambda: 1000)
    upstream = Upstream(lambda _: httpx.Response(200))

    def push() -> int:
        return call(
            upstream,
            "POST",
            "/v1/fleet/push-object",
            content=b"0" * 2000,
            admits=lambda _: Caller("a", "key"),
            allowances=allowances,
            noticed=noticed,
        ).status_code

    assert [push() for _ in range(4)] == [200, 503, 503, 503]
    assert len(upstream.seen) == 1
    (entry,) = journal.events("site limited")
    assert entry.facts["site"] == "a"
    clock[0] = 3601.0
    push()
    assert len(journal.events("site limited")) == 2


def test_what_is_no_reply_is_not_announced(world: Any) -> None:
    """A tree of thousands of objects would lock the SuperLink's database for everybody."""
    world.join("a")
    upstream = Upstream(lambda _: httpx.Response(200))
    answer = call(
        upstream,
        "POST",
        "/v1/fleet/push-messages",
        content=b"\0" * 4000,
        admits=lambda _: Caller("a", "key"),
        noticed=Notices(world.consortium.journal),
    )
    assert answer.status_code == 400
    assert upstream.seen == []
    (entry,) = world.consortium.journal.events("site limited")
    assert "announces what is no reply" in entry.facts["reason"]


def test_each_order_that_is_delivered_allows_an_answer() -> None:
    allowances = SiteAllowances(lambda: 1000)
    assert allowances.take("north", 2500, cost=2500)
    allowances.done("north", 2500, cost=2500, taken=True)
    assert not allowances.take("north", 1, cost=1)
    order = Upstream(lambda _: httpx.Response(200, content=pulled(1)))
    call(order, "POST", "/v1/fleet/pull-messages", allowances=allowances)
    assert allowances.take("north", 1250, cost=1250)
    assert not allowances.take("north", 1, cost=1)


@pytest.mark.parametrize(
    ("hard", "unknown", "known"),
    [(resource.RLIM_INFINITY, 512, 1024), (4096, 512, 1024), (1152, 256, 512), (100, 1, 1)],
)
def test_there_are_no_more_connections_than_open_files(
    monkeypatch: pytest.MonkeyPatch, hard: int, unknown: int, known: int
) -> None:
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: asked.append(pair))
    limits = gateway._within_descriptors(gateway.LIMITS)
    assert (limits.unknown, limits.known) == (unknown, known)
    assert all(soft <= hard or hard == resource.RLIM_INFINITY for soft, _ in asked)
