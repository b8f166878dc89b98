"""The SuperLink's process: ``python -m server.transport.superlink DIR``, which becomes Flower's
program.

The port that was chosen when `serve` started may be another process's by the time that a SuperLink
is started anew. Then another one is chosen and noted, and what watches the note learns of it.

Little is imported here: a site's answer that comes while the SuperLink is away is lost after a few
seconds (Flower's SuperNode tries no longer), and then has to be asked for again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from common.process.child_processes import free_port, script
from server.consortium import listen_address
from server.consortium.superlink_address import HOST, Hub

PROGRAM: Final = "flower-superlink"


def start(folder: Path, *, become: Callable[[str, list[str]], object] = os.execv) -> None:
    """Become the SuperLink of the coordinator's ``folder``, at its private port if that is free."""
    hub = Hub.open(folder / "flower")
    if listen_address.refusal(HOST, hub.port):
        hub = hub.at(free_port())
    become(script(PROGRAM), command(folder, hub))


def command(folder: Path, hub: Hub) -> list[str]:
    return [
        script(PROGRAM),
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
    start(Path(sys.argv[1]))
