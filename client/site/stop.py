"""The hospital's stop: while it stands, no order that touches a patient is carried out.

``retired.json`` is a stop for good: the site moved, and goes on in a copy of this folder.

``stopped.json`` in the site's folder is the stop. It outlasts every restart, and whoever may write
the folder can set it, with or without a page. A training step that has begun is finished; no other
begins, and nothing that was computed leaves (``client.study.outbound``). A SuperNode that sends at
that moment is killed by the supervisor (``client.commands.supervisor``).

Invariants: what cannot be read counts as a stop; a stop does not wait for the journal, whose disk
may be full, and is lifted only after the journal has it. The reason is for the hospital's own
people: the coordinator hears the code ``site-stopped``.

Out of scope: offers of studies, which touch no patient and are still heard.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict, dataclass
from typing import Final

from client.site.folder import Site
from common.errors import ConsentError, StateError
from common.records.atomic_files import read_json, write_json

CODE: Final = "site-stopped"
RETIRED: Final = "site-retired"
_MOST_LETTERS: Final = 500


@dataclass(frozen=True)
class Halt:
    """Who stopped the site, when (UTC) and why."""

    by: str
    time: str
    reason: str = ""

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        since = f"{self.time[:10]} {self.time[11:16]} UTC" if self.time else "an unknown time"
        return f"since {since} by {self.by}{why}"


def halted(site: Site) -> Halt | None:
    """Return the stop that stands, or None."""
    if not site.stopped.exists():
        return None
    try:
        found = read_json(site.stopped, what="stop")
        return Halt(str(found["by"]), str(found["time"]), str(found["reason"]))
    except (StateError, KeyError, TypeError):
        return None if not site.stopped.exists() else Halt("unknown", "", "the file is damaged")


def check_not_halted(site: Site) -> None:
    """Raise ConsentError while the hospital has stopped the site, or since it moved.

    Codes ``site-stopped``, ``site-retired``.
    """
    check_not_retired(site)
    if site.stopped.exists():
        raise ConsentError(
            "The hospital has stopped this site.",
            do="`gliofed-site resume` takes its work up again.",
            code=CODE,
        )


def check_not_retired(site: Site) -> None:
    """Raise ConsentError (code ``site-retired``) if the site goes on in another folder."""
    if site.retired.exists():
        raise ConsentError(
            f"{site.name} moved: {site.folder} is its old folder, which was backed up to go on "
            "elsewhere.",
            do="Run it where it was restored. If it was restored nowhere, `gliofed-site backup` "
            "this folder again and restore that.",
            code=RETIRED,
        )


def retire(site: Site) -> None:
    """Let nothing be computed or sent from this folder any more; raise StateError."""
    write_json(site.retired, {"time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")})
    site.journal.append("site retired")


def stop(site: Site, *, by: str, reason: str = "") -> Halt:
    """Stop the site from now on; a stop that stands stays as it is.

    Raises StateError if the stop cannot be written, or if the journal does not take it: in that
    case the site is stopped all the same, and the error says so.
    """
    standing = halted(site)
    if standing is not None:
        return standing
    made = Halt(
        by=by,
        time=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        reason=" ".join(reason.split())[:_MOST_LETTERS],
    )
    try:
        write_json(site.stopped, asdict(made))
    except StateError as error:
        raise StateError(
            f"{site.name} is NOT stopped. {error.message}",
            do="End `gliofed-site run`: that stops it as well, until it is started again.",
            code=error.code,
        ) from error
    try:
        site.journal.append("site stopped", by=made.by, reason=made.reason)
    except StateError as error:
        raise StateError(
            f"{site.name} is stopped, but its journal {site.journal.path} does not take that.",
            do="Free space or restore the journal; it stays stopped until `gliofed-site resume`.",
            code=error.code,
        ) from error
    return made


def resume(site: Site, *, by: str) -> Halt | None:
    """Lift the stop and return it, or None if none stands; raise StateError."""
    standing = halted(site)
    if standing is None:
        return None
    site.journal.append("site resumed", by=by, stopped=standing.time)
    try:
        site.stopped.unlink(missing_ok=True)
    except OSError as error:
        raise StateError(
            f"Cannot remove {site.stopped}: {error.strerror}. {site.name} stays stopped.",
            do="Correct the permissions of the site's folder, then resume again.",
            code="disk-write",
        ) from error
    return standing
