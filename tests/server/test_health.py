"""A health check says well only of a consortium whose doors answer."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from common.errors import StateError
from common.files import held
from server.health import check
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


Part = Callable[[Consortium], AbstractContextManager[None]]
PARTS: dict[str, Part] = {
    "supervisor": lambda one: held(one.lock, what="served"),
    "gateway": lambda one: door(one, one.settings.port),
    "superlink": lambda one: door(one, one.settings.private_port),
}


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        ("supervisor", "Nothing serves"),
        ("gateway", "The gateway does not answer"),
        ("superlink", "The superlink does not answer"),
    ],
)
def test_a_part_that_is_absent_is_named(consortium: Consortium, absent: str, words: str) -> None:
    with ExitStack() as running:
        for name, start in PARTS.items():
            if name != absent:
                running.enter_context(start(consortium))
        with pytest.raises(StateError, match=words) as raised:
            check(consortium)
    assert raised.value.code == "not-serving"


def test_a_consortium_that_is_served_is_well(consortium: Consortium) -> None:
    with ExitStack() as running:
        for start in PARTS.values():
            running.enter_context(start(consortium))
        check(consortium)
