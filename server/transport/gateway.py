"""The only port that faces the internet.

Flower serves its fleet, control and runtime calls on one port. Whoever reaches the control calls
may start runs and register nodes, so the SuperLink stays on the loopback address and this gateway
forwards exactly the calls that a SuperNode of an admitted hospital needs; everything else is 404.
TLS ends here and begins again towards the SuperLink, which has a certificate of its own.

A call is let in by its headers alone: by a key of a site that is admitted when the call comes (a
revoked site's next call is refused), its signature, which the SuperLink checks again, and a length
that fits what the call is for and what the site is due (``transport.site_allowance``). Nothing of a
body is read before, and nothing is held whole but what a reply is announced by, which is short and
looked at (``transport.announcements``): bodies and answers pass through. How many
connections there may be, and how slow, is ``common.web.http_server``'s; here a connection is
vouched for by the first signed call on it.

A new certificate is taken up within a second, without closing a connection. A proxy that the
environment names is not asked: every call stays on this machine. A SuperLink that is started anew
is waited for: a site's answer that is refused a few times is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import httpx
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from common.errors import GliofedError, StateError
from common.records.journal import Journal
from common.web import http_server
from common.web.connection_limits import ConnectionLimits
from server.consortium.certificates import settle
from server.consortium.listen_address import bound
from server.consortium.provisioning import Consortium
from server.consortium.sites import Sites
from server.transport import announcements
from server.transport.node_signature import KEY_HEADER, BadSignature, NodeKey, SeenSignatures
from server.transport.site_allowance import (
    UNKNOWN_BYTES,
    LargestReply,
    SiteAllowances,
)

FLEET_CALLS: Final = frozenset(
    f"/v1/fleet/{call}"
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
"""``register-node`` is left out on purpose: only the coordinator registers nodes."""

MAX_BODY_BYTES: Final = 16 * 2**20
"""Of an object: Flower cuts arrays into chunks of 5 MiB."""

_PUSH: Final = "/v1/fleet/push-object"
_ANNOUNCE: Final = "/v1/fleet/push-messages"
_PULL: Final = "/v1/fleet/pull-messages"
_STORED: Final = {_PUSH: 1, _ANNOUNCE: 16}
"""Bytes that the SuperLink stores for one of these calls' bytes: of an announcement rows."""
_MOST_BYTES: Final = {_PUSH: MAX_BODY_BYTES, _ANNOUNCE: announcements.MOST_BYTES}
_FEW_BYTES: Final = 2**16
"""Of any other call, which asks for something. Messages go without what they hold."""

REFUSED: Final = "This site's key is not, or no longer, admitted: ask the coordinator."

_CONNECTIONS: Final = "This site holds more connections than a SuperNode needs."
_BYTES: Final = "This site sends more than its orders ask for."
_ANNOUNCED: Final = "This site announces what is no reply to an order"

LIMITS: Final = ConnectionLimits(unknown=512, known=1024, each=16, arrive_s=15.0, call_s=180.0)
"""A SuperNode has six connections at most; two pushes, two pulls, its heartbeat, its questions."""
_CALLS_ON: Final = 256
"""Connections to the SuperLink."""
_OWN_FILES: Final = 128

_NOTICE_S: Final = 3600.0
_RELOAD_S: Final = 1.0
_AGAIN_S: Final = 0.25
_STARTS_S: Final = 20.0
"""Less than the 30 seconds that a SuperNode waits for an answer."""
_TLS: Final = ("server.crt", "keys/server.key")
Lifespan = Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]
_HOP_HEADERS: Final = {"host", "connection", "transfer-encoding", "keep-alive", "expect"}


@dataclass(frozen=True)
class Caller:
    """An admitted site, as a call's headers prove it: the name, and the key that was used."""

    site: str
    key: str


class Refusal(Exception):  # noqa: N818
    """A call that is not let in: its HTTP status, and a sentence."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class Door:
    """Says whose call this is, by its headers. What it read is kept until the folder changes."""

    def __init__(self, sites: Sites, *, now_s: Callable[[], float] = time.time) -> None:
        self._sites = sites
        self._now_s = now_s
        self._state: object = None
        self._keys: dict[str, str] = {}
        self._seen = SeenSignatures()

    def __call__(self, headers: Mapping[str, str]) -> Caller:
        """Return who signed the call; raise Refusal.

        A folder that cannot be read lets nobody in.
        """
        key = NodeKey.read(headers.get(KEY_HEADER, ""))
        site = "" if key is None else self._admitted().get(key.openssh, "")
        if key is None or not site:
            raise Refusal(403, REFUSED)
        try:
            self._seen.check(key, headers, now_s=self._now_s())
        except BadSignature as error:  # as the SuperLink answers
            raise Refusal(401, f"Not let in: {error}.") from None
        return Caller(site, key.openssh)

    def _admitted(self) -> dict[str, str]:
        try:
            state = self._sites.state()
            if state != self._state:
                self._keys = self._sites.node_keys()
                self._state = state
        except (GliofedError, OSError) as error:
            self._state = None
            sys.stderr.write(f"Nobody is let in: {error}\n")
            return {}
        return self._keys


class Notices:
    """Journals which site goes beyond what it may: once an hour, however often it does."""

    def __init__(self, journal: Journal, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._journal = journal
        self._now_s = now_s
        self._at: dict[tuple[str, str], float] = {}

    def __call__(self, site: str, reason: str) -> None:
        now = self._now_s()
        if now - self._at.get((site, reason), float("-inf")) < _NOTICE_S:
            return
        self._at[site, reason] = now
        try:
            self._journal.append("site limited", site=site, reason=reason)
        except (GliofedError, OSError) as error:  # a full disk must not end the gateway
            sys.stderr.write(f"{site}: {reason} The journal cannot be written: {error}\n")


def application(
    upstream: httpx.AsyncClient,
    *,
    admits: Callable[[Mapping[str, str]], Caller],
    allowances: SiteAllowances | None = None,
    noticed: Callable[[str, str], None] = lambda _site, _reason: None,
    lifespan: Lifespan | None = None,
    patience_s: float = _STARTS_S,
) -> Starlette:
    """Return the gateway in front of ``upstream``, a client whose base URL is the SuperLink.

    ``admits`` returns whose call comes with these headers or raises Refusal, ``allowances`` says
    how much a site may send. ``noticed`` hears which site goes beyond what it may. A call waits
    ``patience_s`` for a SuperLink that takes no connection.
    """
    allowed = allowances or SiteAllowances(lambda: UNKNOWN_BYTES)
    orders = announcements.OrderNames()

    async def forward(request: Request) -> Response:
        path = request.url.path
        if request.method != "POST" or path not in FLEET_CALLS:
            return PlainTextResponse("not found", status_code=404)
        try:
            _unambiguous(request)
            caller = admits(request.headers)
            size = _length(request)
            if not http_server.vouch(request.scope, caller.site):
                noticed(caller.site, _CONNECTIONS)
                raise Refusal(503, _CONNECTIONS)
            cost = size * _STORED.get(path, 0)
            if path == _ANNOUNCE:
                why = orders.refusal(await request.body(), most_objects=allowed.objects())
                if why:
                    noticed(caller.site, f"{_ANNOUNCED}: {why}.")
                    raise Refusal(400, f"{_ANNOUNCED}: {why}.")
            if not allowed.take(caller.site, size, cost=cost):
                noticed(caller.site, _BYTES)
                raise Refusal(503, _BYTES)
        except Refusal as refusal:
            return PlainTextResponse(str(refusal), status_code=refusal.status)
        except ClientDisconnect:
            return PlainTextResponse("broken off", status_code=400)
        return _Passing(
            upstream,
            request,
            size=size,
            cost=cost,
            site=caller.site,
            allowances=allowed,
            orders=orders,
            patience_s=patience_s,
        )

    methods = ["GET", "POST", "PUT", "DELETE", "PATCH"]
    return Starlette(routes=[Route("/{path:path}", forward, methods=methods)], lifespan=lifespan)


def _unambiguous(request: Request) -> None:
    """Refuse what the SuperLink could read in another way: it must see the key that was checked."""
    if len({name.lower() for name in request.headers}) != len(request.headers.items()):
        raise Refusal(400, "a header is there twice")
    if "transfer-encoding" in request.headers:
        raise Refusal(411, "a call says how long it is")


def _length(request: Request) -> int:
    """Return how long the body is; raise Refusal where it does not say, or is too long."""
    said = request.headers.get("content-length", "")
    if not (said.isascii() and said.isdigit()):
        raise Refusal(411, "a call says how long it is")
    if len(said) > 12 or int(said) > _MOST_BYTES.get(request.url.path, _FEW_BYTES):
        raise Refusal(413, "too large")
    return int(said)


class _Passing(Response):
    """A call that is passed on, and its answer on the way back, piece by piece."""

    def __init__(
        self,
        upstream: httpx.AsyncClient,
        request: Request,
        *,
        size: int,
        cost: int,
        site: str,
        allowances: SiteAllowances,
        orders: announcements.OrderNames,
        patience_s: float,
    ) -> None:
        self.background = None
        self._upstream = upstream
        self._request = request
        self._size = size
        self._cost = cost
        self._orders = orders
        self._site = site
        self._allowances = allowances
        self._patience_s = patience_s
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        taken = False
        try:
            answer = await self._passed_on()
        except httpx.TransportError:
            said = PlainTextResponse("the coordinator is starting", status_code=503)
            await said(scope, receive, send)
            return
        except ClientDisconnect:
            return
        else:
            taken = answer.is_success
        finally:
            self._allowances.done(self._site, self._size, cost=self._cost, taken=taken)
        try:
            await self._answered(answer, send)
        finally:
            await answer.aclose()

    async def _answered(self, answer: httpx.Response, send: Send) -> None:
        if self._request.url.path == _PULL and self._orders.delivered(await answer.aread()):
            self._allowances.ordered(self._site)
        packed = "content-encoding" in answer.headers
        kept = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in answer.headers.items()
            if name.lower() == "content-type"
            or name.lower().startswith("flwr-")
            or (name.lower() == "content-length" and not packed)
        ]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
        async for piece in answer.aiter_bytes():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _passed_on(self) -> httpx.Response:
        """Pass the call on; what found no connection was not heard, and is made again for a while.

        Raises ClientDisconnect where the site broke off.
        """
        request = self._request
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_HEADERS}
        body = self._body()
        until = time.monotonic() + self._patience_s
        while True:
            call = self._upstream.build_request(
                "POST", request.url.path, content=body, headers=headers
            )
            try:
                return await self._upstream.send(call, stream=True)
            except httpx.ConnectError:
                if self._begun or time.monotonic() >= until:
                    raise
            await asyncio.sleep(_AGAIN_S)

    async def _body(self) -> AsyncIterator[bytes]:
        self._begun = True
        async for piece in self._request.stream():
            if piece:
                yield piece


def door_of(consortium: Consortium) -> socket.socket:
    """Return a socket bound where the gateway listens; raise StateError (code ``port``)."""
    where = consortium.listening
    return bound(
        "gateway",
        where.address,
        where.port,
        else_do=f"`gliofed-server address {consortium.folder} --listen [ADDRESS:]PORT --by NAME`; "
        "what hospitals call stays as it is.",
    )


def serve(consortium: Consortium) -> None:
    """Serve until told to stop; raise StateError where nothing can be listened at."""
    settle(consortium.folder)
    upstream = httpx.AsyncClient(
        base_url=f"https://{consortium.hub.address}",
        verify=consortium.hub.client_context(),
        timeout=httpx.Timeout(120.0, connect=5.0),
        limits=httpx.Limits(max_connections=_CALLS_ON),
        trust_env=False,
    )
    tls = http_server.tls_context(*(consortium.folder / name for name in _TLS))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(_keep_fresh(consortium.folder, tls))
        yield
        task.cancel()

    pages = application(
        upstream,
        admits=Door(consortium.sites),
        allowances=SiteAllowances(LargestReply(consortium)),
        noticed=Notices(consortium.journal),
        lifespan=lifespan,
    )
    config = http_server.config(pages, limits=_within_descriptors(LIMITS), tls=tls, graceful_s=None)
    http_server.run(config, [door_of(consortium)])


def _within_descriptors(limits: ConnectionLimits) -> ConnectionLimits:
    """Have the system grant as many open files as the limits need, or take fewer connections."""
    import resource

    wanted = limits.unknown + limits.known + _CALLS_ON + _OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most == wanted:
        return limits
    share = max(0.0, (most - _CALLS_ON - _OWN_FILES) / (limits.unknown + limits.known))
    return replace(
        limits,
        unknown=max(1, int(limits.unknown * share)),
        known=max(1, int(limits.known * share)),
    )


async def _keep_fresh(folder: Path, tls: ssl.SSLContext) -> None:
    """Take up a new certificate for the connections to come."""
    seen = [_stamp(folder / name) for name in _TLS]
    while True:
        await asyncio.sleep(_RELOAD_S)
        now = [_stamp(folder / name) for name in _TLS]
        if now == seen:
            continue
        try:
            settle(folder)
            tls.load_cert_chain(folder / "server.crt", folder / "keys" / "server.key")
        except (OSError, GliofedError) as error:  # half replaced: look again
            sys.stderr.write(f"The new certificate cannot be used yet: {error}\n")
            continue
        seen = now


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_ino)


if __name__ == "__main__":
    try:
        serve(Consortium.open(Path(sys.argv[1])))
    except StateError as error:  # the supervisor names the last line
        sys.exit(f"ERROR: {error}")
