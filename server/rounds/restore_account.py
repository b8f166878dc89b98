"""What a site was given to do, as the coordinator's journal says: for one restored from a backup.

An upper bound: an order that was given counts, whether its answer came or not, and once more each
time that it was lost and given again.
"""

from __future__ import annotations

from collections import Counter

from common.messages.wire_format import RESTORED, Given, OrderKind
from common.records.journal import GENESIS, Entry, Journal

_Key = tuple[str, OrderKind, int]


def given(journal: Journal, site: str, *, since: str) -> tuple[Given, ...] | None:
    """Return what ``site`` was given after the journal had the head ``since``.

    An order that it declined because it was restored does not count. Without a head, everything;
    None if the journal never had that head.
    """
    found: Counter[_Key] = Counter()
    known = since in {"", GENESIS}
    for entry in journal.entries():
        if known:
            found.update(_orders(entry, site))
            found.subtract(_untouched(entry, site))
        known = known or entry.hash == since
    if not known:
        return None
    return tuple(
        Given(study=study, kind=kind, round=number, times=times)
        for (study, kind, number), times in sorted(found.items())
        if times > 0
    )


def _orders(entry: Entry, site: str) -> list[_Key]:
    facts = entry.facts
    if entry.event == "round opened" and site in facts["ordered"]:
        return [(facts["study"], "train", int(facts["round"]))]
    if entry.event == "order lost" and facts["site"] == site and facts["order"] != "offer":
        return [(facts["study"], facts["order"], int(facts["round"]))]
    # Scores are ordered after a round is closed, and noted when they are in.
    if entry.event == "round closed":
        return [(facts["study"], "evaluate", int(facts["round"]))]
    if entry.event == "cohorts described":
        return [(facts["study"], "describe", 0)]
    return []


def _untouched(entry: Entry, site: str) -> list[_Key]:
    facts = entry.facts
    restored = entry.event == "site declined" and facts.get("code") == RESTORED
    if not restored or facts["site"] != site:
        return []
    return [(facts["study"], facts["order"], int(facts["round"]))]
