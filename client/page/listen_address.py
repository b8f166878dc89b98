"""Where the site's page listens: this machine alone. Who sits elsewhere comes through a tunnel.

The page has a button that stops a hospital's work; the coordinator's certificate is not the site's
to use, and the site has none of its own.
"""

from __future__ import annotations

from pathlib import Path

from client.site.folder import Site
from common.errors import StateError
from common.records.atomic_files import is_held, read_json, write_json
from common.web.auth import issue, link
from common.web.listen_address import Place


def read_place(said: str) -> Place:
    """Read ``PORT`` or ``HOST:PORT``; raise StateError (code ``place``) beyond this machine."""
    place = Place.read(said, what="the site's page")
    if place.secure:
        raise StateError(
            f"The site's page is for this machine alone; {place.host} is beyond it.",
            do=f"Give a port alone, and come from elsewhere through a tunnel: ssh -L "
            f"{place.port}:127.0.0.1:{place.port} THIS_MACHINE.",
            code="place",
        )
    return place


def tokens(site: Site) -> Path:
    """Return where the site keeps the hashes of one-time tokens."""
    return site.folder / "flower" / "page"


def note_page(site: Site, place: Place | None) -> None:
    """Keep where the page is, for links that are wanted later; None if there is none."""
    if place is None:
        _noted(site).unlink(missing_ok=True)
    else:
        write_json(_noted(site), {"host": place.host, "port": place.port})


def noted_page(site: Site) -> Place:
    """Return where the page is now; raise StateError if there is none."""
    if not is_held(site.lock) or not _noted(site).exists():
        raise StateError(
            f"No page of {site.name} is served here.",
            do="Start `gliofed-site run DIR --page PORT`.",
        )
    return Place(**read_json(_noted(site), what="page's address"))


def _noted(site: Site) -> Path:
    return site.folder / "flower" / "page.json"


def page_link(site: Site, place: Place) -> str:
    """Make a one-time link to the page."""
    return link(place.address, issue(tokens(site)))
