"""What `gliofed-server serve` keeps alive: SuperLink, gateway, executor and dashboard."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from typing import Final

from common.errors import StateError
from common.process.child_processes import Child, script
from common.records.atomic_files import write_secret
from server.consortium.certificate_expiry import closed, outlook
from server.consortium.certificates import serving_until
from server.consortium.listen_address import bound
from server.consortium.provisioning import Consortium
from server.consortium.superlink_address import Hub
from server.reporting.dashboard.listen_address import Place
from server.transport.gateway import door_of
from server.transport.superlink import PROGRAM

_LOOK_EVERY_S: Final = 5.0
_DAY_S: Final = 86_400.0
_DYING_S: Final = 3.0
"""How long the processes of a `serve` that was killed may still hold its ports."""


class CertificateWatch:
    """Called over and over, it says once a day that the certificate expires, and when it has."""

    def __init__(
        self,
        consortium: Consortium,
        *,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._consortium = consortium
        self._say = say
        self._clock = clock
        self._next_s = self._again_s = float("-inf")
        self._closed = ""

    def __call__(self) -> None:
        now = self._clock()
        if now < self._next_s:
            return
        self._next_s = now + _LOOK_EVERY_S
        try:
            self._look(now)
        except StateError as error:  # half replaced, or a full disk: it is looked again
            self._say(str(error))

    def _look(self, now: float) -> None:
        folder = self._consortium.folder
        why = closed(folder)
        if why != self._closed:
            if why:
                self._record(since=serving_until(folder).isoformat(), reason=why)
            self._closed, self._again_s = why, now  # whatever changed, say how it is now
        if now < self._again_s:
            return
        self._again_s = now + _DAY_S
        found = outlook(folder)
        if found.level != "ok":
            self._say(f"{found.what} {found.do}")

    def _record(self, *, since: str, reason: str) -> None:
        """Record the end of the certificate, unless an earlier `serve` did."""
        journal = self._consortium.journal
        if not journal.events("certificate expired", since=since):
            journal.append("certificate expired", since=since, reason=reason)


def probe(
    consortium: Consortium, *, dashboard: Place | None = None, metrics_port: int | None = None
) -> None:
    """Raise StateError (code ``port``) if one of the ports to be served cannot be listened at."""
    until = time.monotonic() + _DYING_S
    _free(lambda: door_of(consortium).close(), until)
    other = "give `serve` another one."
    if dashboard is not None:
        at = dashboard.host, dashboard.port
        _free(lambda: bound("dashboard", *at, else_do=other).close(), until)
    if metrics_port is not None:
        here = "127.0.0.1", metrics_port
        _free(lambda: bound("metrics' page", *here, else_do=other).close(), until)


def _free(look: Callable[[], None], until: float) -> None:
    while True:
        try:
            look()
        except StateError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.2)
        else:
            return


def children(
    consortium: Consortium, *, dashboard: str | None = None, metrics_port: int | None = None
) -> list[Child]:
    """Return the coordinator's processes in the order in which they start.

    ``dashboard`` is where the dashboard listens, if there is to be one; beside it, on
    the loopback address, are the metrics.
    """
    folder = consortium.folder
    # Known to the processes of this machine alone: each start has its own.
    write_secret(consortium.superexec_secret, secrets.token_hex(32).encode())
    flower = folder / "flower"
    (flower / "home").mkdir(parents=True, exist_ok=True)
    hub = Hub.make(flower)
    script(PROGRAM)  # said at once where it is missing
    environment = {"FLWR_HOME": str(flower / "home")}
    log = flower / "log"
    own = [sys.executable, "-m"]
    # Read once, by those who must know: where the SuperLink is, and what hospitals call.
    addresses = (hub.noted, folder / "consortium.json")
    made = [
        Child(
            name,
            [*own, module, str(folder)],
            log / f"{name}.log",
            environment,
            watches=watches,
        )
        for name, module, watches in (
            ("superlink", "server.transport.superlink", ()),
            ("gateway", "server.transport.gateway", addresses),
            ("executor", "server.executor", addresses),
        )
    ]
    if dashboard is not None:
        command = [*own, "server.reporting.dashboard", str(folder), dashboard]
        command += [] if metrics_port is None else [str(metrics_port)]
        shown = (folder / "server.crt",) if Place.read(dashboard).secure else ()
        made.append(Child("dashboard", command, log / "dashboard.log", environment, watches=shown))
    return made
