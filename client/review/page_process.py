"""The process of ``gliofed-clinic review``: one result, one page, this machine alone."""

from __future__ import annotations

import socket
import tempfile
import webbrowser
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Final

from client.clinic.provenance import RESULT
from client.review.pages import application
from client.review.review_case import REVIEWS
from client.review.session import Desk
from common.errors import StateError
from common.records.atomic_files import held, write_secret
from common.web import http_server
from common.web.auth import Door, issue, link

HOST: Final = "127.0.0.1"


def serve(
    folder: Path,
    desk: Callable[[], Desk],
    *,
    port: int = 0,
    reviewer: str = "",
    browser: bool = True,
    told: Callable[[str], None],
) -> None:
    """Serve the review of the result in ``folder`` until told to stop; tell the link.

    One process at a time reviews a result. Port 0 takes a free one. Raises what ``desk`` raises,
    and StateError for a result under review and a port in use.
    """
    place = folder / REVIEWS
    if not (folder / RESULT).is_file():
        raise StateError(
            f"{folder} holds no {RESULT}.",
            do="Name the folder that `gliofed-clinic segment` wrote.",
            code="review-result",
        )
    with (
        held(place / ".lock", what="This result is being reviewed"),
        tempfile.TemporaryDirectory(prefix="gliofed-review-") as tokens,
    ):
        opened = desk()
        with _bound(port) as listening:
            number = listening.getsockname()[1]
            door = Door(
                Path(tokens),
                title="gliofed: review",
                cookie=f"gliofed_review_{number}",
                pictures=True,
                renew=f"gliofed-clinic review {folder}",
            )
            page = application(opened, door, reviewer=reviewer)
            address = link(f"http://{HOST}:{number}", issue(Path(tokens)))
            told(address)
            if browser:
                webbrowser.open(_opening(Path(tokens), address))
            http_server.run(http_server.config(page), [listening])


def _opening(folder: Path, address: str) -> str:
    """Return the address of a page of our own that leads to ``address``.

    Every user of the machine can read what a browser is started with, only its owner the page.
    """
    page = folder / "open.html"
    write_secret(
        page,
        f'<!doctype html><meta http-equiv="refresh" content="0; url={escape(address)}">'
        f'<a href="{escape(address)}">gliofed</a>\n'.encode(),
    )
    return page.as_uri()


def _bound(port: int) -> socket.socket:
    """Return a socket that listens to this machine alone."""
    listening = socket.socket()
    # On Windows SO_REUSEADDR would let another program take the port as well.
    option = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
    listening.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise StateError(
            f"The page cannot be served at {HOST}:{port}: {error.strerror}.",
            do="Choose another --port, or leave it out for a free one.",
            code="place",
        ) from error
    return listening
