"""The only port that faces the internet.

Flower serves its fleet, control and runtime calls on one port. Whoever reaches the control calls
may start runs and register nodes, so the SuperLink stays on the loopback address and this gateway
forwards exactly the calls that a SuperNode of an admitted hospital needs; everything else is 404.
TLS ends here and begins again towards the SuperLink, which has a certificate of its own. Node
authentication is Flower's (the SuperLink checks each call's signature); the gateway adds a limit on
the size of a call, and lets in only keys of sites that are admitted when the call comes: a revoked
site's next call is refused. A new certificate is taken up within a second, without closing a
connection. A proxy that the environment names is not asked: every call stays on this machine. A
SuperLink that is started anew is waited for: a site's answer that is refused a few times is lost.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import httpx
import uvicorn
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from common.errors import GliofedError, StateError
from server.consortium.certificates import settle
from server.consortium.listen_address import bound
from server.consortium.provisioning import Consortium
from server.consortium.sites import Sites

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
"""Flower cuts arrays into chunks of 5 MiB."""

KEY_HEADER: Final = "flwr-public-key"
"""In which a SuperNode names its public key (PEM, base64); the SuperLink checks the signature."""

REFUSED: Final = "This site's key is not, or no longer, admitted: ask the coordinator."

_RELOAD_S: Final = 1.0
_AGAIN_S: Final = 0.25
_STARTS_S: Final = 20.0
"""Less than the 30 seconds that a SuperNode waits for an answer."""
_TLS: Final = ("server.crt", "keys/server.key")
Lifespan = Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]
_HOP_HEADERS: Final = {"host", "connection", "transfer-encoding", "content-length", "keep-alive"}


class Door:
    """Says which node keys are let in now. What it read is kept until the folder changes."""

    def __init__(self, sites: Sites) -> None:
        self._sites = sites
        self._state: object = None
        self._keys: frozenset[str] = frozenset()

    def __call__(self, header: str) -> bool:
        """Return whether the key in ``header`` is that of an admitted site.

        A folder that cannot be read lets nobody in.
        """
        try:
            pem = base64.b64decode(header, validate=True)
            public = load_pem_public_key(pem).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        except (binascii.Error, ValueError, UnsupportedAlgorithm):
            return False
        try:
            state = self._sites.state()
            if state != self._state:
                self._keys = frozenset(self._sites.node_keys())
                self._state = state
        except (GliofedError, OSError) as error:
            self._state = None
            sys.stderr.write(f"Nobody is let in: {error}\n")
            return False
        return public.decode() in self._keys


def application(
    upstream: httpx.AsyncClient,
    *,
    admits: Callable[[str], bool],
    lifespan: Lifespan | None = None,
    patience_s: float = _STARTS_S,
) -> Starlette:
    """Return the gateway in front of ``upstream``, a client whose base URL is the SuperLink.

    ``admits`` says whether a call with this key (the header's text) is passed on, ``patience_s``
    how long it waits for a SuperLink that takes no connection.
    """

    async def forward(request: Request) -> Response:
        if request.method != "POST" or request.url.path not in FLEET_CALLS:
            return PlainTextResponse("not found", status_code=404)
        if not admits(request.headers.get(KEY_HEADER, "")):
            return PlainTextResponse(REFUSED, status_code=403)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return PlainTextResponse("too large", status_code=413)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_HEADERS}
        try:
            answer = await _passed_on(upstream, request.url.path, bytes(body), headers, patience_s)
        except httpx.TransportError:
            return PlainTextResponse("the coordinator is starting", status_code=503)
        kept = {
            name: value
            for name, value in answer.headers.items()
            if name.lower() == "content-type" or name.lower().startswith("flwr-")
        }
        return Response(answer.content, answer.status_code, kept)

    methods = ["GET", "POST", "PUT", "DELETE", "PATCH"]
    return Starlette(routes=[Route("/{path:path}", forward, methods=methods)], lifespan=lifespan)


async def _passed_on(
    upstream: httpx.AsyncClient,
    path: str,
    body: bytes,
    headers: dict[str, str],
    patience_s: float,
) -> httpx.Response:
    """Pass a call on; one that found no connection was not heard, and is made again for a while."""
    until = time.monotonic() + patience_s
    while True:
        try:
            return await upstream.post(path, content=body, headers=headers)
        except httpx.ConnectError:
            if time.monotonic() >= until:
                raise
        await asyncio.sleep(_AGAIN_S)


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
        limits=httpx.Limits(max_connections=256),
        trust_env=False,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(_keep_fresh(consortium.folder, config))
        yield
        task.cancel()

    config = uvicorn.Config(
        application(upstream, admits=Door(consortium.sites), lifespan=lifespan),
        ssl_certfile=str(consortium.folder / "server.crt"),
        ssl_keyfile=str(consortium.folder / "keys" / "server.key"),
        log_level="warning",
        server_header=False,
        timeout_keep_alive=75,
    )
    uvicorn.Server(config).run(sockets=[door_of(consortium)])


async def _keep_fresh(folder: Path, config: uvicorn.Config) -> None:
    """Take up a new certificate for the connections to come."""
    seen = [_stamp(folder / name) for name in _TLS]
    while True:
        await asyncio.sleep(_RELOAD_S)
        now = [_stamp(folder / name) for name in _TLS]
        if now == seen or config.ssl is None:
            continue
        try:
            settle(folder)
            config.ssl.load_cert_chain(folder / "server.crt", folder / "keys" / "server.key")
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
