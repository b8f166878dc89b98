"""What the coordinator's pages show now: everything that ``server.reporting.study_report`` says,
read once.

A reading is made when the journal's file has changed, a study is wanted otherwise, or a site has
come or gone; until then the last one serves everybody. The journal is checked each time it is read.

Out of scope: words, pictures and pages.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from common.foreign_text import printable_values
from common.records.journal import Entry, Journal
from server.consortium.provisioning import Consortium
from server.consortium.sites import versions_said
from server.reporting.study_report import full_report, paused_sites
from server.rounds.fleet import Presence

LOOK_EVERY_S: Final = 2.0
"""How often the SuperLink is asked who is connected, at most."""

Ask = Callable[[], Mapping[str, Presence] | None]
"""Returns who is connected, or None if nobody can tell."""

_OF_A_SITE: Final = frozenset(
    {"study approved", "reply accepted", "reply late", "reply refused", "site declined"}
)
"""Facts that say that a site was heard."""


@dataclass(frozen=True)
class SiteReading:
    """One admitted site; ``online`` is None where nobody can tell."""

    name: str
    admitted: str
    version: str
    online: bool | None
    since: str
    heard: str
    heard_what: str
    suspended: str
    paused: str
    """Since when it says that its hospital has stopped it; empty if it does not."""


@dataclass(frozen=True)
class ModelReading:
    """One released model and where its weights come from."""

    study: str
    version: str
    released: str
    rounds: tuple[int, ...]
    start: str
    sites: tuple[str, ...]
    private: bool | None
    revoked: Entry | None
    """The fact that nobody must use it any more."""
    facts: Mapping[str, Any]
    closed: tuple[Mapping[str, Any], ...]
    """The rounds that led to it: number, weights, who took part."""


@dataclass(frozen=True)
class Reading:
    """All that the pages show."""

    mark: str
    """Another one when anything has changed."""
    at: str
    consortium: str
    address: str
    entries: tuple[Entry, ...]
    sites: tuple[SiteReading, ...]
    studies: Mapping[str, Mapping[str, Any]]
    models: tuple[ModelReading, ...]


class Readings:
    """Reads the folder of ``consortium``; ``ask`` tells who is connected."""

    def __init__(
        self, consortium: Consortium, ask: Ask, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._consortium = consortium
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._presence: Mapping[str, Presence] | None = None
        self._asked_s = float("-inf")
        self._last: Reading | None = None

    def mark(self) -> str:
        """Return what changes when a new reading would say something else; raise StateError."""
        with self._lock:
            return self._mark()

    def now(self) -> Reading:
        """Return what is the case; raise StateError if the journal or a file is damaged."""
        with self._lock:
            mark = self._mark()
            if self._last is None or self._last.mark != mark:
                self._last = self._read(mark)
            return self._last

    def _mark(self) -> str:
        if self._clock() - self._asked_s >= LOOK_EVERY_S:
            self._presence = self._ask()
            self._asked_s = self._clock()
        wanted = [(s.protocol.study, s.wanted) for s in self._consortium.studies()]
        seen = None if self._presence is None else sorted(self._presence.items())
        path = self._consortium.journal.path
        file = path.stat() if path.exists() else None
        written = None if file is None else (file.st_size, file.st_mtime_ns, file.st_ino)
        return repr((written, wanted, seen, self._consortium.sites.names()))

    def _read(self, mark: str) -> Reading:
        consortium = self._consortium
        entries = tuple(
            entry._replace(facts=printable_values(entry.facts))
            for entry in consortium.journal.entries()
        )
        journal = _Read(consortium.journal.path, entries)
        admitted = consortium.sites.names()
        studies = {
            study.protocol.study: full_report(study, journal, admitted=admitted)
            for study in consortium.studies()
        }
        return Reading(
            mark=mark,
            at=entries[-1].time if entries else "",
            consortium=consortium.settings.name,
            address=consortium.address,
            entries=entries,
            sites=tuple(_sites(entries, admitted, consortium.sites.suspended(), self._presence)),
            studies=studies,
            models=tuple(_models(entries, studies)),
        )


class _Read(Journal):
    """A journal whose entries were read and checked already."""

    def __init__(self, path: Path, entries: Sequence[Entry]) -> None:
        super().__init__(path)
        self._entries = entries

    def entries(self) -> Iterator[Entry]:
        return iter(self._entries)


def _sites(
    entries: Sequence[Entry],
    admitted: Sequence[str],
    suspended: Mapping[str, str],
    presence: Mapping[str, Presence] | None,
) -> Iterator[SiteReading]:
    versions = versions_said(entries)
    came = {e.facts["site"]: e for e in entries if e.event == "site admitted"}
    heard = {e.facts["site"]: e for e in entries if e.event in _OF_A_SITE}
    paused = paused_sites(entries)
    for name in admitted:
        there = (presence or {}).get(name, Presence(online=False, since=""))
        last = heard.get(name)
        yield SiteReading(
            name=name,
            admitted=came[name].time if name in came else "",
            version=versions.get(name, ""),
            online=None if presence is None else there.online,
            since=there.since,
            heard=last.time if last else "",
            heard_what=last.event if last else "",
            suspended=suspended.get(name, ""),
            paused=paused.get(name, ""),
        )


def _models(
    entries: Sequence[Entry], studies: Mapping[str, Mapping[str, Any]]
) -> Iterator[ModelReading]:
    """Yield the released models, newest first."""
    revoked = {e.facts["weights_sha256"]: e for e in entries if e.event == "model revoked"}
    for entry in reversed(entries):
        if entry.event != "model released":
            continue
        facts = entry.facts
        study, number = str(facts["study"]), int(facts["round"])
        starts = [e for e in entries if e.event == "study started" and e.facts["study"] == study]
        closed = tuple(
            one for one in studies.get(study, {}).get("rounds", ()) if one["round"] <= number
        )
        yield ModelReading(
            study=study,
            version=str(facts.get("version", f"1.0.{number}")),
            released=entry.time,
            rounds=tuple(facts.get("rounds", (number,))),
            start=str(starts[-1].facts["source"]) if starts else "",
            sites=tuple(sorted({site for one in closed for site in one["took_part"]})),
            private=facts.get("private"),
            revoked=revoked.get(facts["weights_sha256"]),
            facts=facts,
            closed=closed,
        )
