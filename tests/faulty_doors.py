"""Doors that are wrong in one way each, on the loopback interface; they die with the test."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
import threading
from collections.abc import Iterator
from email.utils import format_datetime
from pathlib import Path

from common.process.loopback_tls import free_port


@contextlib.contextmanager
def listening(port: int = 0, *, backlog: int = 5) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(backlog)
        yield listener


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """Take connections and say nothing: a middlebox that swallows what is inside."""
    with listening() as listener:
        yield listener.getsockname()[1]


@contextlib.contextmanager
def swallowing() -> Iterator[int]:
    """Swallow connections: the queue of this port is full, so that the system drops the packets."""
    with listening(backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(4):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@contextlib.contextmanager
def plain() -> Iterator[int]:
    """Speak, but no TLS."""
    with listening() as listener, _answering(listener, lambda one: one.sendall(b"220 mail\r\n")):
        yield listener.getsockname()[1]


@contextlib.contextmanager
def closed() -> Iterator[int]:
    yield free_port()


@contextlib.contextmanager
def tls(folder: Path, *, port: int = 0, ahead_s: float = 0.0, date: bool = True) -> Iterator[int]:
    """Answer by TLS with the coordinator's certificate, at another time of day."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "keys" / "server.key")

    def answer(raw: socket.socket) -> None:
        with context.wrap_socket(raw, server_side=True) as door:
            door.recv(4096)
            at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=ahead_s)
            line = f"Date: {format_datetime(at, usegmt=True)}\r\n" if date else ""
            door.sendall(f"HTTP/1.1 404 Not Found\r\n{line}Connection: close\r\n\r\n".encode())

    with listening(port) as listener, _answering(listener, answer):
        yield listener.getsockname()[1]


@contextlib.contextmanager
def _answering(listener: socket.socket, answer) -> Iterator[None]:  # type: ignore[no-untyped-def]
    ended = threading.Event()
    listener.settimeout(0.02)

    def serve() -> None:
        while not ended.is_set():
            try:
                raw, _ = listener.accept()
            except TimeoutError:
                continue
            raw.settimeout(5.0)
            with contextlib.suppress(OSError), raw:
                answer(raw)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
