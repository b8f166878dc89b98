"""The only port that faces the internet.

Flower serves its fleet, control and runtime calls on one port. Whoever reaches the control calls
may start runs and register nodes, so the SuperLink stays on the loopback address and this gateway
forwards exactly the calls that a SuperNode of an admitted hospital needs; everything else is 404.
TLS ends here and begins again towards the SuperLink. Node authentication is Flower's (the
SuperLink checks each call's signature); the gateway adds a limit on the size of a call.
"""

from __future__ import annotations

import datetime as dt
import ssl
import sys
from pathlib import Path
from typing import Final

import httpx
import uvicorn
from cryptography import x509
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from server.provisioning import Consortium

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

_HOP_HEADERS: Final = {"host", "connection", "transfer-encoding", "content-length", "keep-alive"}


def application(upstream: httpx.AsyncClient) -> Starlette:
    """Return the gateway in front of ``upstream``, a client whose base URL is the SuperLink."""

    async def forward(request: Request) -> Response:
        if request.method != "POST" or request.url.path not in FLEET_CALLS:
            return PlainTextResponse("not found", status_code=404)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return PlainTextResponse("too large", status_code=413)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_HEADERS}
        try:
            answer = await upstream.post(request.url.path, content=bytes(body), headers=headers)
        except httpx.TransportError:
            return PlainTextResponse("the coordinator is starting", status_code=503)
        kept = {
            name: value
            for name, value in answer.headers.items()
            if name.lower() == "content-type" or name.lower().startswith("flwr-")
        }
        return Response(answer.content, answer.status_code, kept)

    methods = ["GET", "POST", "PUT", "DELETE", "PATCH"]
    return Starlette(routes=[Route("/{path:path}", forward, methods=methods)])


def expired(consortium: Consortium) -> dt.datetime | None:
    """Return since when (UTC) hospitals refuse the certificate, or None if it is valid."""
    pem = (consortium.folder / "server.crt").read_bytes()
    until = x509.load_pem_x509_certificate(pem).not_valid_after_utc
    return until if until <= dt.datetime.now(dt.UTC) else None


def serve(consortium: Consortium) -> None:
    """Serve until told to stop."""
    since = expired(consortium)
    if since is not None:
        # No hospital comes through any more: the journal is where people look for the reason.
        consortium.journal.append("certificate expired", since=since.isoformat())
    trust = ssl.create_default_context(cafile=str(consortium.folder / "ca.crt"))
    upstream = httpx.AsyncClient(
        base_url=f"https://{consortium.private_address}",
        verify=trust,
        timeout=httpx.Timeout(120.0, connect=5.0),
        limits=httpx.Limits(max_connections=256),
    )
    uvicorn.run(
        application(upstream),
        host=_interface(consortium.settings.host),
        port=consortium.settings.port,
        ssl_certfile=str(consortium.folder / "server.crt"),
        ssl_keyfile=str(consortium.folder / "keys" / "server.key"),
        log_level="warning",
        server_header=False,
        timeout_keep_alive=75,
    )


def _interface(host: str) -> str:
    """Return where to listen so that ``host`` reaches us; the demo's loopback stays private."""
    if host in {"127.0.0.1", "localhost", "::1"}:
        return "127.0.0.1" if host == "localhost" else host
    return "::" if ":" in host else "0.0.0.0"  # noqa: S104


if __name__ == "__main__":
    serve(Consortium.open(Path(sys.argv[1])))
