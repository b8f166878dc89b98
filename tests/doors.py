"""Servers that answer 404 by TLS, in the places of gateway, SuperLink and SuperNode."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from client.site.folder import Site
from server.consortium.provisioning import Consortium
from server.consortium.superlink_address import Hub


class _Nothing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


def door(consortium: Consortium, port: int) -> AbstractContextManager[None]:
    """Answer at a port of the loopback interface as the gateway does."""
    folder = consortium.folder
    return _door(folder / "server.crt", folder / "keys" / "server.key", port)


def hub(consortium: Consortium) -> AbstractContextManager[None]:
    """Answer as the SuperLink does, at a private port that is chosen now."""
    made = Hub.make(consortium.folder / "flower")
    return _door(made.certificate, made.key, made.port, asks=made.certificate)


def runtime(site: Site) -> AbstractContextManager[None]:
    """Answer as a site's SuperNode does to its worker."""
    made = site.runtime.create()
    return _door(made.certificate, made.key, made.port, asks=made.certificate)


@contextmanager
def _door(certificate: Path, key: Path, port: int, *, asks: Path | None = None) -> Iterator[None]:
    """``asks`` is what a client must show, if anything."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Nothing)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if asks is not None:
        context.load_verify_locations(asks)
        context.verify_mode = ssl.CERT_REQUIRED
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
