"""Whether a coordinator that should serve can give orders: for a container's health check.

Asked are the supervisor's lock, both doors (the gateway where it listens, and the SuperLink behind
it), whether hospitals accept the certificate, whether the executor reaches the SuperLink, and
whether its threads live (``server.consortium.watched_threads``). What a door answers does not
matter, that it answers does. No proxy is asked: the doors are this machine's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from common.doctor.findings import Finding
from common.doctor.tls_probe import Reached, reach
from common.errors import StateError
from common.process.exit_reason import last_words
from common.process.loopback_tls import HOST
from common.records.atomic_files import is_held
from server.consortium.certificate_expiry import closed, outlook
from server.consortium.provisioning import Consortium
from server.consortium.superlink_address import Hub

SILENT_S: Final = 60.0
"""The executor reaches the SuperLink every ten seconds, and waits for one that is started anew."""

_PATIENCE_S: Final = 5.0


def check(consortium: Consortium, *, patience_s: float = _PATIENCE_S) -> Finding:
    """Return what is to be said of the certificate's days.

    Raises StateError (code ``not-serving``, or ``certificate`` once that has expired) if no order
    can be given to a hospital, ``thread`` if a thread of the executor has ended or fails.
    """
    folder, log = consortium.folder, consortium.folder / "flower" / "log"
    if not is_held(consortium.lock):
        raise StateError(
            f"Nothing serves {folder}.", do="Start `gliofed-server serve`.", code="not-serving"
        )
    if why := closed(folder):
        raise StateError(why, code="certificate")
    settings, at, hub = consortium.settings, consortium.listening, consortium.hub
    gateway = reach(
        settings.host,
        at.port,
        authority=folder / "ca.crt",
        patience_s=patience_s,
        address=at.here,
    )
    _answered("gateway", str(at), gateway, log=log / "gateway.log")
    superlink = reach_superlink(hub, patience_s=patience_s)
    _answered("SuperLink", hub.address, superlink, log=log / "superlink.log")
    silent_s = hub.reached_s_ago()
    if silent_s is None or silent_s > SILENT_S:
        since = "yet" if silent_s is None else f"for {silent_s:.0f} s"
        raise _silent(f"The executor has not reached the SuperLink {since}", log / "executor.log")
    for trouble in consortium.threads.troubles():
        raise StateError(trouble, do=f"See {log / 'executor.log'}.", code="thread")
    return outlook(folder)


def reach_superlink(hub: Hub, *, patience_s: float) -> Reached:
    """Go up to the SuperLink, as the coordinator's own processes do."""
    return reach(
        HOST,
        hub.port,
        authority=hub.certificate,
        own=(hub.certificate, hub.key),
        patience_s=patience_s,
    )


def problem_of(found: Reached) -> str:
    """Return what is wrong with a door on this machine, or an empty text."""
    if found.answered:
        return ""
    wrong = {
        "name": f"its certificate is for {', '.join(found.names) or 'no name'}",
        "chain": "another program answers there, with a certificate that is not the consortium's",
    }
    said = found.name_problem or found.port_problem or found.tls_problem
    return wrong.get(found.tls_problem, said) or "no answer"


def _answered(name: str, where: str, found: Reached, *, log: Path) -> None:
    if why := problem_of(found):
        raise _silent(f"The {name} does not answer at {where} ({why})", log)


def _silent(what: str, log: Path) -> StateError:
    words = last_words(log)
    said = f" The log ends: {words}" if words else ""
    return StateError(
        f"{what}: no order can be given.{said}",
        do=f"It may be starting; else read {log}.",
        code="not-serving",
    )
