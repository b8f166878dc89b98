"""The process of the site's page: ``python -m client.page DIR PAGE METRICS``.

PAGE and METRICS are each a port, ``HOST:PORT`` or ``-`` for none.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import Final

from client.page.listen_address import tokens
from client.page.pages import application
from client.page.prometheus import SiteFigures
from client.page.site_status import Readings
from client.site.folder import Site
from common.process import logs
from common.web import http_server
from common.web.auth import Door
from common.web.listen_address import Place
from common.web.prometheus import expose

_POLITE: Final = 10


def serve(folder: Path, *, page: Place | None, metrics: Place | None) -> None:
    """Serve the page and the metrics, those that have a place, until told to stop."""
    readings = Readings(folder)
    if metrics is not None:
        expose(SiteFigures(readings.now), port=metrics.port, host=metrics.host)
    if page is None:
        threading.Event().wait()
        return
    site = Site.open(folder)
    door = Door(
        tokens(site),
        title=f"gliofed: {site.name}",
        hosts=[page.host],
        renew=f"gliofed-site page {folder}",
        cookie="gliofed_site",
    )
    pages = application(folder, readings, door)
    with contextlib.suppress(KeyboardInterrupt):
        http_server.run(http_server.config(pages, host=page.host, port=page.port))


if __name__ == "__main__":
    opened = Site.open(Path(sys.argv[1]))
    logs.configure("page", known=lambda: [opened.name, *opened.study_names()])
    with contextlib.suppress(OSError):
        os.nice(_POLITE)  # training goes first
    places = [None if said == "-" else Place.read(said) for said in sys.argv[2:4]]
    serve(opened.folder, page=places[0], metrics=places[1])
