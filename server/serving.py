"""What `gliofed-server serve` keeps alive: SuperLink, gateway, executor and dashboard."""

from __future__ import annotations

import secrets
import sys

from common.errors import StateError
from common.files import write_secret
from common.processes import Child, script
from server.gateway import expired
from server.provisioning import Consortium


def children(
    consortium: Consortium, *, dashboard: str | None = None, metrics_port: int | None = None
) -> list[Child]:
    """Return the coordinator's processes in the order in which they start.

    ``dashboard`` is where the dashboard listens, if there is to be one; beside it, on
    the loopback address, are the metrics.

    Raises StateError (code ``certificate``) when no hospital could connect to them.
    """
    since = expired(consortium)
    if since is not None:
        raise StateError(
            f"The TLS certificate {consortium.folder / 'server.crt'} expired on {since:%Y-%m-%d}: "
            "every hospital would refuse it.",
            do="`gliofed-server rotate-certificate` makes a new one; then start again.",
            code="certificate",
        )
    folder = consortium.folder
    # Known to the processes of this machine alone: each start has its own.
    write_secret(consortium.superexec_secret, secrets.token_hex(32).encode())
    flower = folder / "flower"
    (flower / "home").mkdir(parents=True, exist_ok=True)
    host, port = consortium.private_address.split(":")
    environment = {"FLWR_HOME": str(flower / "home")}
    superlink = [
        script("flower-superlink"),
        *("--host", host, "--port", port),
        *("--ssl-ca-certfile", str(folder / "ca.crt")),
        *("--ssl-certfile", str(folder / "server.crt")),
        *("--ssl-keyfile", str(folder / "keys" / "server.key")),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(consortium.superexec_secret)),
        *("--database", str(flower / "state.sqlite")),
    ]
    log = flower / "log"
    own = [sys.executable, "-m"]
    made = [
        Child(
            "superlink",
            superlink,
            log / "superlink.log",
            environment,
            watches=(folder / "server.crt",),
        ),
        Child("gateway", [*own, "server.gateway", str(folder)], log / "gateway.log", environment),
        Child(
            "executor",
            [*own, "server.executor", str(folder)],
            log / "executor.log",
            environment,
            watches=(folder / "ca.crt",),  # Flower's clients read it once
        ),
    ]
    if dashboard is not None:
        command = [*own, "server.dashboard", str(folder), dashboard]
        command += [] if metrics_port is None else [str(metrics_port)]
        made.append(Child("dashboard", command, log / "dashboard.log", environment))
    return made
