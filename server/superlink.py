"""The SuperLink's process: ``python -m server.superlink DIR``, which becomes Flower's program.

The port that was chosen when `serve` started may be another process's by the time that a SuperLink
is started anew. Then another one is chosen and noted, and what watches the note learns of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from common.processes import free_port, script
from server import listening
from server.hub import HOST, Hub
from server.provisioning import Consortium

PROGRAM: Final = "flower-superlink"


def start(consortium: Consortium, *, become: Callable[[str, list[str]], object] = os.execv) -> None:
    """Become the SuperLink at the consortium's private port, or at another if that is taken."""
    hub = consortium.hub
    if listening.refusal(HOST, hub.port):
        hub = hub.at(free_port())
    become(script(PROGRAM), command(consortium, hub))


def command(consortium: Consortium, hub: Hub) -> list[str]:
    return [
        script(PROGRAM),
        *("--host", HOST, "--port", str(hub.port)),
        *("--ssl-ca-certfile", str(hub.certificate)),
        *("--ssl-certfile", str(hub.certificate)),
        *("--ssl-keyfile", str(hub.key)),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(consortium.superexec_secret)),
        *("--database", str(consortium.folder / "flower" / "state.sqlite")),
    ]


if __name__ == "__main__":
    start(Consortium.open(Path(sys.argv[1])))
