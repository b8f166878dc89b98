"""The loop: look, segment what is due, store it, record what became of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from client.clinic.watch.found_study import Found, Source
from client.clinic.watch.journal import Journal, alias
from common.errors import CaseError, GliofedError, StateError

_LOG = logging.getLogger(__name__)

LOOK_S: Final = 2.0
"""Between two looks at the source."""

_PASSING: Final = frozenset({"pacs-unreachable", "pacs-incomplete"})
"""Codes of failures that are not the study's own: it is tried again at the next look."""

Work = Callable[[Path, Path], None]
"""Segments the case at the first path into the second, a new folder."""


class Watcher:
    """Works off a source. ``told(outcome)`` hears done, refused, failed and stored."""

    def __init__(
        self,
        source: Source,
        journal: Journal,
        work: Work,
        *,
        send: Callable[[Path], int] | None = None,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._source, self._journal, self._work = source, journal, work
        self._send, self._told = send, told

    def run(self, stopping: threading.Event, *, every_s: float = LOOK_S) -> None:
        """Look until ``stopping`` is set; the study that was begun is finished."""
        while not stopping.is_set():
            try:
                self.look(stopping)
            except GliofedError as error:
                _LOG.warning("Watching goes on at the next look. %s", error)
            except Exception as error:  # noqa: BLE001 - the edge: the watch must not end unseen
                _LOG.error("A look failed in an unforeseen way (%s).", type(error).__name__)
            stopping.wait(every_s)

    def look(self, stopping: threading.Event | None = None) -> None:
        """Do all that is due now."""
        for found in self._source.look():
            if stopping is not None and stopping.is_set():
                return
            if self._one(found):
                found.settled()

    def _one(self, found: Found) -> bool:
        """Do one study as far as it goes; return whether nothing is left to do."""
        if self._journal.due(found.name, found.fingerprint) and not self._segment(found):
            return False
        return self._store(found)

    def _segment(self, found: Found) -> bool:
        name = alias(found.name)
        place = self._journal.begin(found.name, found.fingerprint)
        if place is None:
            self._told("refused")
            _LOG.error("Study %s is refused: it ended the work several times.", name)
            return True
        try:
            with found.files() as folder:
                self._work(folder, place)
            self._journal.finish(found.name, place)
        except CaseError as error:
            if error.code in _PASSING:
                self._again(found, error)
                return False
            self._journal.refuse(found.name, error)
            self._told("refused")
            _LOG.warning("Study %s is refused (%s).", name, error.code)
            return True
        except GliofedError as error:
            self._again(found, error)
            return False
        except Exception as error:  # noqa: BLE001 - the edge: one study must not end the watch
            self._told("failed")
            _LOG.error("Study %s failed in an unforeseen way (%s).", name, type(error).__name__)
            return False
        self._told("done")
        _LOG.info("Study %s is segmented.", name)
        return True

    def _again(self, found: Found, error: GliofedError) -> None:
        self._journal.put_back(found.name)
        self._told("failed")
        _LOG.warning("Study %s is tried again (%s).", alias(found.name), error.code)

    def _store(self, found: Found) -> bool:
        """Store a result that was not stored yet; return whether that is settled."""
        result = self._journal.result(found.name)
        if self._send is None or not (result / "result.json").exists():
            return True
        if self._journal.record(found.name).stored is not None:
            return True
        try:
            count = self._send(result)
        except (CaseError, StateError) as error:
            if error.code == "pacs-nothing":
                self._journal.stored(found.name, 0)
                return True
            _LOG.warning("Study %s is not stored yet (%s).", alias(found.name), error.code)
            return False
        self._journal.stored(found.name, count)
        self._told("stored")
        return True
