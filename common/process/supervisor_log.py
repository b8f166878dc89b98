"""The log of a supervisor: what its processes do, and each fact of the journal as it is written.

``--log-format json`` gives one JSON object a line, for programs; ``text`` one ``key=value`` line;
without it a supervisor says in sentences which processes start and end, and no more. The processes
that it starts take the same form, in their own files. Every line passes ``common.process.logs``.

Out of scope: facts from before the supervisor began; the journal has them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final

from common import console
from common.errors import StateError
from common.process import logs
from common.records.journal import Journal

_LOOK_EVERY_S: Final = 1.0
Told = Callable[[str, str, str], None]


class Chronicle:
    """Logs the facts that are added to ``journal`` from now on, each time that it is called."""

    def __init__(
        self,
        journal: Journal,
        logger: Any,
        *,
        site: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = journal
        self._logger = logger
        self._site = site
        self._clock = clock
        self._next_s = float("-inf")
        self._stamp: object = None
        self._seen: int | None = None

    def __call__(self) -> None:
        """Look for new facts, once a second at most; a damaged journal is said once."""
        now = self._clock()
        if now < self._next_s:
            return
        self._next_s = now + _LOOK_EVERY_S
        stamp = self._changed()
        if stamp == self._stamp and self._seen is not None:
            return
        self._stamp = stamp
        try:
            entries = list(self._journal.entries())
        except StateError as error:
            self._logger.error("The journal cannot be read.", code=error.code)
            return
        if self._seen is not None:
            logs.log_facts(self._logger, entries[self._seen :], site=self._site)
        self._seen = len(entries)

    def _changed(self) -> object:
        try:
            about = self._journal.path.stat()
        except OSError:
            return None
        return about.st_mtime_ns, about.st_size, about.st_ino


def begin(
    process: str, *, form: logs.Form | None, known: logs.Known, journal: Journal, site: str = ""
) -> tuple[Told, Callable[[], None] | None]:
    """Return what a supervisor calls when a child starts or ends, and at each tick.

    Without ``form`` the environment's counts, if it has one.
    """
    form = form or logs.form_named()
    if form is None:
        return _say, None
    os.environ[logs.FORM] = form
    logs.configure(process, known=known, form=form)
    logger = logs.get_logger("common.process.supervisor_log")
    chronicle = Chronicle(journal, logger, site=site)
    chronicle()  # what is there already is no news

    def told(name: str, event: str, detail: str) -> None:
        if event == "started":
            logger.info("child started", child=name, pid=int(detail))
        else:
            logger.warning("child ended", child=name)
        if form == "text":
            _say(name, event, detail)

    return told, chronicle


def _say(name: str, event: str, detail: str) -> None:
    console.say(f"{name} {event} ({detail})")
