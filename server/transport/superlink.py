"""The SuperLink's process, ``python -m server.transport.superlink DIR``: Flower's program, locked.

Flower serves its fleet, control and runtime calls to whoever reaches its port, and its control
calls register keys under a hospital's name. Here the port is of the loopback interface and asks
each caller for the certificate of this consortium's own processes
(``common.process.loopback_tls``): no other user of this machine comes past the handshake.

Little is imported before the port is bound: a site's answer that comes while the SuperLink is away
is lost after a few seconds (Flower's SuperNode tries no longer), and has to be asked for again.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from common.process.loopback_tls import HOST, LoopbackAddress
from common.web.http_server import in_place_of_uvicorn
from server.consortium.superlink_address import Hub

PROGRAM: Final = "flower-superlink"


def main(folder: Path) -> None:
    """Run the SuperLink of the coordinator's ``folder`` until told to stop."""
    hub, listening = Hub.open(folder / "flower").bound()
    program: Any = import_module("flwr.superlink.cli.flower_superlink")
    program.uvicorn = in_place_of_uvicorn(hub.server_context(), listening)
    sys.argv = [PROGRAM, *arguments(folder, hub)]
    program.flower_superlink()


def arguments(folder: Path, hub: LoopbackAddress) -> list[str]:
    """Return what Flower's program is told."""
    return [
        *("--host", HOST, "--port", str(hub.port)),
        *("--ssl-ca-certfile", str(hub.certificate)),
        *("--ssl-certfile", str(hub.certificate)),
        *("--ssl-keyfile", str(hub.key)),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(folder / "keys" / "superexec.secret")),
        *("--database", str(folder / "flower" / "state.sqlite")),
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
