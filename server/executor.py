"""The process that does the rounds: takes Flower's task and runs the installed ServerApp in it.

Instead of Flower's own executor, which unpacks a bundle and starts a new process for each run, this
one runs the code that is installed and nothing else. If the SuperLink or the run is lost, it starts
a new run; the journal says where to go on.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path

from common.errors import GliofedError, StateError
from common.process import logs
from server.app import app
from server.consortium.key_rotation import take_renewals
from server.consortium.provisioning import Consortium
from server.transport.flower_fleet import CALL_ERRORS, register_sites, run_app, start_run

_LOG = logging.getLogger("server.executor")
_PAUSE_S = 1.0


def execute(consortium: Consortium) -> None:
    """Run until the process is ended."""
    threading.Thread(target=_keep_registered, args=(consortium,), daemon=True).start()
    while True:
        try:
            run_id = start_run(consortium)
            run_app(consortium, run_id, lambda grid, context: app(grid, context), patience_s=60.0)
        except (*CALL_ERRORS, GliofedError) as error:
            _LOG.exception("The run was interrupted; another one is started.")
            _record(consortium, f"{type(error).__name__}: {error}"[:300])
        time.sleep(_PAUSE_S)


def _record(consortium: Consortium, reason: str) -> None:
    """Record an interruption; on a full disk the log above has to do."""
    try:
        consortium.journal.append("federation interrupted", reason=reason)
    except StateError:
        _LOG.exception("The interruption is not in the journal, which does not take it.")


def _keep_registered(consortium: Consortium) -> None:
    known: dict[bytes, str] = {}
    while True:
        try:
            take_renewals(consortium)
            register_sites(consortium, known)
        except CALL_ERRORS:
            known.clear()
        except GliofedError:
            # A disk that is full, a file that was changed: it is tried again.
            _LOG.exception("The sites could not be registered.")
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    opened = Consortium.open(Path(sys.argv[1]))
    logs.configure("executor", known=opened.sites.names, in_words=True)
    execute(opened)
