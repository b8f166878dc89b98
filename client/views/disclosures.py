"""What left the hospital, as its journal says: when, to whom, for which study, and what it told.

The journal is checked while it is read. Facts that an older version did not write are left open,
never guessed.

Out of scope: what people send by hand (the enrolment request), and the folder ``outbox``, which
holds the last update in case it is asked for again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any, Final

from client.site.folder import Site
from common.records.journal import Entry
from common.regions import REGIONS

_DIGESTS: Final = ("update", "weights")


def outbox(
    site: Site, *, study: str | None = None, since: dt.date | None = None
) -> list[dict[str, Any]]:
    """Return what left, oldest first: of ``study``, from the day ``since`` (UTC), or all.

    Raises StateError if the journal is damaged.
    """
    return listed(site.journal.events("sent", "declined"), study=study, since=since)


def listed(
    entries: Iterable[Entry], *, study: str | None = None, since: dt.date | None = None
) -> list[dict[str, Any]]:
    """Return what of ``entries`` of a journal left, as ``outbox`` does."""
    return [
        {
            "time": entry.time,
            "to": entry.facts.get("to", ""),
            "study": entry.facts.get("study", ""),
            "round": entry.facts.get("round"),
            "what": entry.facts.get("what", ""),
            "told": _told(entry.event, entry.facts),
            "bytes": entry.facts.get("bytes"),
            "digests": {key: entry.facts[key] for key in _DIGESTS if entry.facts.get(key)},
            "line": entry.hash,
        }
        for entry in entries
        if entry.event in {"sent", "declined"}
        and study in {None, entry.facts.get("study")}
        and (since is None or dt.datetime.fromisoformat(entry.time).date() >= since)
    ]


def _told(event: str, facts: Mapping[str, Any]) -> str:
    """Return in words what the receiver learned beside the arrays."""
    words: list[str] = []
    if event == "declined":
        words.append(f"not done: {facts.get('code', 'no reason')}")
        if facts.get("reason"):
            words.append(str(facts["reason"]))
    if "private" in facts:
        words.append("differentially private" if facts["private"] else "WITHOUT PRIVACY")
    if facts.get("by"):
        words.append(f"decided by {facts['by']}")
    if dice := facts.get("dice"):
        noise = facts.get("dice_noise")
        kind = f"with noise of about {noise:g}" if noise else "EXACT"
        scores = ", ".join(f"{region} {dice[region]:.3f}" for region in REGIONS if region in dice)
        words.append(f"Dice {scores} ({kind})")
    if facts.get("statistics"):
        words.append(f"{len(facts['statistics'])} histograms, differentially private")
    if facts.get("case_count"):
        words.append(f"training cases {facts['case_count']}")
    if spent := facts.get("privacy_spent"):
        words.append(f"epsilon {spent['epsilon']:.2f} after {spent['steps']} steps")
    if facts.get("withdrawn"):
        words.append(f"rounds that saw who withdrew: {', '.join(map(str, facts['withdrawn']))}")
    return "; ".join(words)
