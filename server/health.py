"""Whether a coordinator that should serve does: for a container's health check.

Asked are the supervisor's lock and both doors, by TLS: the gateway and the SuperLink behind it.
What a door answers does not matter, that it answers does. Out of scope: why it does not, which its
log says.
"""

from __future__ import annotations

import ssl
from typing import Final

import httpx

from common.errors import StateError
from common.files import is_held
from server.provisioning import Consortium

_PATIENCE_S: Final = 5.0


def check(consortium: Consortium) -> None:
    """Raise StateError (code ``not-serving``) if the consortium is not served."""
    if not is_held(consortium.lock):
        raise StateError(
            f"Nothing serves {consortium.folder}.",
            do="Start `gliofed-server serve`.",
            code="not-serving",
        )
    host = consortium.settings.host
    local = "[::1]" if host == "::1" else "127.0.0.1"
    trust = ssl.create_default_context(cafile=str(consortium.folder / "ca.crt"))
    doors = {
        "gateway": f"https://{local}:{consortium.settings.port}/",
        "superlink": f"https://{consortium.private_address}/",
    }
    with httpx.Client(verify=trust, timeout=_PATIENCE_S, trust_env=False) as client:
        for name, address in doors.items():
            try:
                client.get(address)
            except httpx.TransportError as error:
                raise StateError(
                    f"The {name} does not answer at {address}: {error}.",
                    do=f"It may be starting; else read {consortium.folder}/flower/log/{name}.log.",
                    code="not-serving",
                ) from None
