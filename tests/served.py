"""A page of ours, served from a thread of the test's own process."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from common.web import http_server
from common.web.connection_limits import ConnectionLimits


@contextmanager
def served(
    pages: Any,
    *,
    limits: ConnectionLimits | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[str]:
    """Serve ``pages`` on a free port of the loopback address and yield the address."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    with http_server.in_thread(http_server.config(pages, limits=limits, tls=tls), listening):
        yield f"http{'s' if tls else ''}://127.0.0.1:{port}"
