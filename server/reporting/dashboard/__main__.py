"""The process of the dashboard: ``python -m server.reporting.dashboard DIR PORT`` or ``DIR
HOST:PORT``.

A third word is the port of the metrics, on the loopback address.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from common.process.logs import configure
from common.web import http_server
from common.web.auth import Door
from common.web.prometheus import expose
from server.consortium.provisioning import Consortium
from server.reporting.dashboard.listen_address import Place
from server.reporting.dashboard.pages import application
from server.reporting.live_status import Readings
from server.reporting.prometheus import Consortium as Exposed
from server.transport.flower_fleet import CALL_ERRORS, presence


def serve(folder: Path, place: Place, *, metrics_port: int | None = None) -> None:
    """Serve the dashboard, and the metrics if they have a port, until told to stop."""
    consortium = Consortium.open(folder)

    def ask() -> Any:
        try:
            return presence(consortium)
        except CALL_ERRORS:  # the SuperLink is starting or gone: then nobody can tell
            return None

    readings = Readings(consortium, ask)
    if metrics_port is not None:
        expose(Exposed(readings.now), port=metrics_port)
    door = Door(
        place.tokens(folder),
        title=f"gliofed: {consortium.settings.name}",
        hosts=[place.host, consortium.settings.host],
        secure=place.secure,
        renew=f"gliofed-server dashboard {folder}",
    )
    certificate = (folder / "server.crt", folder / "keys" / "server.key")
    tls = http_server.tls_context(*certificate) if place.secure else None
    pages = application(readings, door)
    with contextlib.suppress(KeyboardInterrupt):
        http_server.run(http_server.config(pages, host=place.host, port=place.port, tls=tls))


if __name__ == "__main__":
    opened = Consortium.open(Path(sys.argv[1]))
    configure("dashboard", known=opened.sites.names, in_words=True)
    port = int(sys.argv[3]) if len(sys.argv) > 3 else None
    serve(opened.folder, Place.read(sys.argv[2]), metrics_port=port)
