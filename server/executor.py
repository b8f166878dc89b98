"""The process that does the rounds: takes Flower's task and runs the installed ServerApp in it.

Instead of Flower's own executor, which unpacks a bundle and starts a new process for each run, this
one runs the code that is installed and nothing else. If the SuperLink or the run is lost, it starts
a new run; the journal says where to go on. Whatever interrupts a run, or keeps sites from being
registered, is noted for `gliofed-server health` (``server.consortium.watched_threads``).
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path

from common.errors import StateError
from common.process import logs
from server.app import app
from server.consortium.key_rotation import take_renewals
from server.consortium.provisioning import Consortium
from server.consortium.watched_threads import REGISTERING, ROUNDS
from server.transport.flower_fleet import register_sites, run_app, start_run

_LOG = logging.getLogger("server.executor")
_PAUSE_S = 1.0
_COMPARE_EVERY = 5
_QUICK_S = 10.0
_LONGEST_PAUSE_S = 15.0


def execute(consortium: Consortium) -> None:
    """Run until the process is ended."""
    threads = consortium.threads
    threads.begin()
    threading.Thread(
        target=_keep_registered, args=(consortium,), name=REGISTERING, daemon=True
    ).start()
    pause_s = _PAUSE_S
    while True:
        began_s = time.monotonic()
        why = serve_once(consortium)
        if why:
            threads.failing(ROUNDS, why)
            _record(consortium, why[:300])
        quick = why and time.monotonic() - began_s < _QUICK_S
        pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s) if quick else _PAUSE_S
        time.sleep(pause_s)


def serve_once(consortium: Consortium) -> str:
    """Do the rounds until they are interrupted; return by what, or an empty text."""
    try:
        run_id = start_run(consortium)
        run_app(consortium, run_id, lambda grid, context: app(grid, context), patience_s=60.0)
    except Exception as error:  # noqa: BLE001  the process's edge: it goes on from the journal
        _LOG.exception("The run was interrupted; another one is started.")
        return f"{type(error).__name__}: {error}"
    return ""


def _record(consortium: Consortium, reason: str) -> None:
    """Record an interruption; on a full disk the log above has to do."""
    try:
        consortium.journal.append("federation interrupted", reason=reason)
    except StateError:
        _LOG.exception("The interruption is not in the journal, which does not take it.")


def _keep_registered(consortium: Consortium) -> None:
    known: dict[bytes, str] = {}
    said, looks = "", 0
    while True:
        error = register_once(consortium, known, compare=looks % _COMPARE_EVERY == 0)
        looks += 1
        if error is not None and repr(error) != said:
            _LOG.warning("The sites could not all be registered.", exc_info=error)
        said = repr(error)
        time.sleep(_PAUSE_S)


def register_once(
    consortium: Consortium, known: dict[bytes, str], *, compare: bool = False
) -> Exception | None:
    """Take over new keys and register all sites; return what went wrong.

    `health` tells it: a thread that ended here would let no new hospital in, and nobody would see.
    """
    try:
        take_renewals(consortium)
        register_sites(consortium, known, compare=compare)
    except Exception as error:  # noqa: BLE001  the thread's edge: it is tried again
        known.clear()
        consortium.threads.failing(REGISTERING, f"{type(error).__name__}: {error}")
        return error
    consortium.threads.well(REGISTERING)
    return None


if __name__ == "__main__":
    opened = Consortium.open(Path(sys.argv[1]))
    logs.configure("executor", known=opened.sites.names, in_words=True)
    execute(opened)
