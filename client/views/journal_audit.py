"""Whether the site's own records are whole: the journal, the ledger, and each against the other.

Every check is made even when an earlier one failed, so that one look shows all damage. Nothing is
repaired.

Out of scope: whether training was as private as the ledger says (``client.privacy.audit``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from client.privacy.budget_caps import accountant, open_ledger
from client.privacy.ledger import Ledger
from client.site.folder import Site
from client.site.pseudonyms import withdrawn
from client.study import charged_files
from common.errors import StateError
from common.records.journal import GENESIS, Entry

T = TypeVar("T")


@dataclass(frozen=True)
class Findings:
    """What the records hold, and each damage that was found.

    ``told_head`` is the last hash of the journal that went to the coordinator; ``heard_head`` the
    one that the coordinator named as the last it knows, "" if it never named one.
    """

    entries: tuple[Entry, ...]
    head: str
    told_head: str
    heard_head: str
    ledger_facts: int
    unconfirmed_facts: int
    withdrawn: int
    damage: tuple[StateError, ...]


def audit(site: Site) -> Findings:
    """Check everything; what is damaged is in ``damage``, and counts as empty."""
    damage: list[StateError] = []

    def attempt(check: Callable[[], T]) -> T | None:
        try:
            return check()
        except StateError as error:
            if str(error) not in map(str, damage):
                damage.append(error)
            return None

    entries: tuple[Entry, ...] = attempt(lambda: tuple(site.journal.entries())) or ()
    states = attempt(lambda: _ledger_states(site)) or ()
    attempt(lambda: _check_charged(site))
    gone = attempt(lambda: withdrawn(site)) or frozenset()
    attempt(lambda: _check_withdrawn(site, entries, gone))
    told, heard = _heads(entries)
    attempt(lambda: _check_heard(site, entries, heard))
    return Findings(
        entries=entries,
        head=entries[-1].hash if entries else GENESIS,
        told_head=told,
        heard_head=heard,
        ledger_facts=len(states),
        unconfirmed_facts=states.count("reserved"),
        withdrawn=len(gone),
        damage=tuple(damage),
    )


def _ledger_states(site: Site) -> tuple[str, ...]:
    """Return the state of every fact: opening the ledger checks its whole chain."""
    with Ledger(site.folder / "ledger.sqlite", accountant=accountant(site)) as ledger:
        return tuple(fact.state for fact in ledger.facts())


def _check_charged(site: Site) -> None:
    """Compare the ledger with the journal, and with every file that waits to leave."""
    with open_ledger(site) as ledger:
        charged_files.check_all(site, ledger)


def _check_withdrawn(site: Site, entries: tuple[Entry, ...], gone: frozenset[str]) -> None:
    said = {e.facts.get("patient") for e in entries if e.event == "patient withdrawn"}
    if missing := len(said - gone):
        raise StateError(
            f"{missing} patients whom the journal calls withdrawn are not in "
            f"{site.folder / 'withdrawn.json'}: studies would use them again.",
            do="Put the newest copy of that file back, or withdraw them once more.",
            code="withdrawn",
        )


def _heads(entries: tuple[Entry, ...]) -> tuple[str, str]:
    told = heard = ""
    for entry in entries:
        if entry.event in {"sent", "declined"}:
            told = entry.hash
        heard = entry.facts.get("site_head") or heard
    return told, heard


def _check_heard(site: Site, entries: tuple[Entry, ...], heard: str) -> None:
    if heard and heard != GENESIS and heard not in {entry.hash for entry in entries}:
        raise StateError(
            f"The journal of {site.name} does not hold the line that the coordinator last knew, "
            f"{heard[:16]}: it was cut, changed or put back from an old copy.",
            do="Put the newest copies of journal.jsonl and ledger.sqlite back.",
            code="journal-fork",
        )
