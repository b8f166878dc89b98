"""A door that answers 404 by TLS, in the place of gateway or SuperLink."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from server.provisioning import Consortium


class _Nothing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def door(consortium: Consortium, port: int) -> Iterator[None]:
    """Answer 404 by TLS at a port of the loopback interface, as gateway and SuperLink do."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Nothing)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(
        consortium.folder / "server.crt", consortium.folder / "keys" / "server.key"
    )
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
