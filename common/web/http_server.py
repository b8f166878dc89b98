"""The only door to uvicorn: how pages, metrics and the gateway are served, and to how many.

Every connection is counted from its first packet on, before TLS: ``connection_limits`` says which
one has to leave. Three deadlines bound all that a peer can be slow at: one until somebody vouched
for the connection (TLS and headers included), one for a request and its answer (a body that drips
and an answer that is not read included), one between two requests. A peer that reads slowly is
waited for, so that an answer is never held whole for it; headers have a largest size.

An application vouches with ``vouch``; TLS that asks for a certificate has vouched. Out of scope:
what a request may hold, which is its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import socket
import ssl
import threading
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any, Final, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from common.web.connection_limits import ConnectionLimits, Connections

_MOST_HEADER_BYTES: Final = 32 * 1024
_MINE: Final = "gliofed.connection"
_OWN: Final = ConnectionLimits(known=512, each=512)
"""Of a server for processes of this machine and user: there is one known peer."""
_BACKLOG: Final = 512
"""Connections that the system holds for us; also how many are taken before others are served."""


def config(
    app: Any,
    *,
    limits: ConnectionLimits | None = None,
    tls: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    graceful_s: int | None = 1,
) -> uvicorn.Config:
    """Return how uvicorn serves ``app``: no request is logged, no live page holds up its end."""
    door = _Door(limits or ConnectionLimits(), tls)
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=cast(Any, functools.partial(_Guarded, door)),
        loop="asyncio",  # the same one everywhere, Windows included
        ws="none",
        log_config=None,
        log_level="error",  # a stranger must not fill a log
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
        timeout_keep_alive=math.ceil(door.limits.idle_s),
        timeout_graceful_shutdown=graceful_s,
    )


def run(served: uvicorn.Config, sockets: list[socket.socket] | None = None) -> None:
    """Serve until told to stop, at ``sockets`` if there are any; Ctrl-C is raised."""
    uvicorn.Server(served).run(sockets)


@contextlib.contextmanager
def in_thread(served: uvicorn.Config, listening: socket.socket) -> Iterator[None]:
    """Serve at a socket that listens, from a thread of this process, while the block runs."""
    server = uvicorn.Server(served)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def in_place_of_uvicorn(tls: ssl.SSLContext, listening: socket.socket) -> Any:
    """Return what stands in a program of another maker for its module ``uvicorn``.

    Whatever the program asks for, it serves at ``listening`` alone, to whoever ``tls`` lets in. It
    has the three names that Flower 1.41 uses and no others: a Flower that serves in another way
    fails instead of serving everyone, also because the port is taken.
    """

    class Server(uvicorn.Server):
        def run(self, sockets: list[socket.socket] | None = None) -> None:
            del sockets
            super().run(sockets=[listening])

    class Module:
        pass

    def made(app: Any, **_: Any) -> uvicorn.Config:
        return config(app, limits=_OWN, tls=tls)

    def served(app: Any, **_: Any) -> None:
        Server(made(app)).run()

    module: Any = Module()
    module.Config, module.Server, module.run = made, Server, served
    return module


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return the TLS of a door; raises OSError and ssl.SSLError as the files make it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(certificate, key)
    return context


def vouch(scope: MutableMapping[str, Any], peer: str) -> bool:
    """Say that the request in ``scope`` is a known peer's; return whether the peer has a place.

    Where something else serves the application, as a test does, there always is one.
    """
    one = scope.get("state", {}).get(_MINE)
    return one is None or bool(one.vouch(peer))


class _Door:
    """What all connections of one server share."""

    def __init__(self, limits: ConnectionLimits, tls: ssl.SSLContext | None) -> None:
        self.limits = limits
        self.tls = tls
        self.connections: Connections[_Guarded] = Connections(limits)


class _Guarded(H11Protocol):
    """One connection, from its first packet on."""

    def __init__(self, door: _Door, **options: Any) -> None:
        super().__init__(**{**options, "app_state": {**options["app_state"], _MINE: self}})
        self._door = door
        self._raw: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._securing: asyncio.Task[None] | None = None
        self._open = False  # to requests: what TLS there is, is agreed on
        self._before = bytearray()  # what came in the same packet as the end of the handshake

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._raw = transport
        self.connections.add(self)
        # asyncio does so only where the listening socket was made with a protocol's number.
        carrier = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # it is gone already
            carrier.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = transport.get_extra_info("peername") or ("",)
        for other in self._door.connections.arrived(self, str(peer[0])):
            other.drop()
        self._within(self._door.limits.arrive_s)
        if self._door.tls is None:
            self._opened(transport)
        else:
            transport.pause_reading()
            self._securing = self.loop.create_task(self._secure(transport, self._door.tls))

    def data_received(self, data: bytes) -> None:
        if self._open:
            super().data_received(data)
        else:
            self._before += data

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()
        if self._open:
            super().connection_lost(exc)

    # What uvicorn calls

    def on_response_complete(self) -> None:
        if self._door.connections.answered(self):
            self._within(self._door.limits.idle_s)
        super().on_response_complete()

    def shutdown(self) -> None:
        if self._open:
            super().shutdown()
        else:
            self.drop()

    # Ours

    def vouch(self, peer: str) -> bool:
        """Count this connection as the peer's, if that has a place left."""
        room, leaving = self._door.connections.vouched(self, peer)
        for other in leaving:
            other.drop()
        if room:
            self._within(self._door.limits.call_s)
        return room

    def drop(self) -> None:
        """Close the connection at once."""
        self._gone()
        if self._raw is not None:
            self._raw.abort()

    async def _secure(self, raw: asyncio.Transport, context: ssl.SSLContext) -> None:
        if raw.is_closing():
            return
        try:
            made = await self.loop.start_tls(
                raw,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=self._door.limits.arrive_s,
            )
        except OSError:  # no TLS, broken off, or too late: asyncio has closed it
            self._gone()
            return
        if made is None or made.is_closing():
            self.drop()
            return
        self._opened(made)

    def _opened(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._open = True
        if self._door.tls is not None and self._door.tls.verify_mode is ssl.CERT_REQUIRED:
            self.vouch("who has the key")
        if self._before:
            super().data_received(bytes(self._before))
            self._before.clear()

    def _within(self, seconds: float) -> None:
        """Close the connection in so many seconds, instead of when it was to be closed."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self.drop)

    def _gone(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._door.connections.left(self)
        self.connections.discard(self)
