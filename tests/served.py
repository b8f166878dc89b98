"""A page of ours, served from a thread of the test's own process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from common.process.child_processes import free_port


@contextmanager
def served(pages: Any) -> Iterator[str]:
    """Serve ``pages`` on a free port of the loopback address and yield the address."""
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(
            pages,
            host="127.0.0.1",
            port=port,
            log_config=None,
            ws="none",
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
