"""The state of a study, computed from the journal alone.

Nothing here is kept: what the journal does not say did not happen. A round that went on without a
site names it and says why; "finished" is never said without who took part.
"""

from __future__ import annotations

from typing import Any

from common.journal import Journal
from server.studies import Study


def study_report(study: Study, journal: Journal, *, admitted: list[str]) -> dict[str, Any]:
    """Return what happened in ``study``: state, approvals, rounds, scores, privacy spent."""
    name = study.protocol.study
    entries = journal.events(study=name)
    approved = sorted({e.facts["site"] for e in entries if e.event == "study approved"})
    rounds = [
        {"round": e.facts["round"], "time": e.time, **_round(e.facts, closed=True)}
        for e in entries
        if e.event == "round closed"
    ]
    failed = [
        {"round": e.facts["round"], "time": e.time, **_round(e.facts, closed=False)}
        for e in entries
        if e.event == "round failed"
    ]
    scores = [
        {key: e.facts[key] for key in ("round", "dice", "dice_noise", "dropped")}
        for e in entries
        if e.event == "evaluated"
    ]
    return {
        "study": name,
        "title": study.protocol.title,
        "protocol": study.protocol.digest,
        "state": _state(study, [e.event for e in entries]),
        "private": study.protocol.private,
        "rounds_planned": study.protocol.rounds,
        "rounds_closed": len(rounds),
        "approved": approved,
        "not_approved": sorted(set(admitted) - set(approved)),
        "declined": _declined(entries),
        "rounds": rounds,
        "failed_rounds": failed,
        "refused_replies": [
            {key: e.facts[key] for key in ("site", "round", "code", "reason")}
            for e in entries
            if e.event == "reply refused"
        ],
        "evaluations": scores,
        "privacy_spent": _last(entries, "privacy_spent"),
        "withdrawn": _last(entries, "withdrawn"),
        "journal_forks": _forks(entries),
        "last_problem": _last_problem(entries),
    }


def _state(study: Study, events: list[str]) -> str:
    if "study finished" in events:
        return "finished"
    last = [e for e in events if e in {"study paused", "study stopped"}]
    if study.wanted == "running":
        return "running"
    if last:
        return last[-1].removeprefix("study ")
    return study.wanted


def _round(facts: dict[str, Any], *, closed: bool) -> dict[str, Any]:
    kept = {key: facts[key] for key in ("took_part", "dropped", "seconds")}
    return {**kept, "weights": facts["weights"]} if closed else {**kept, "reason": facts["reason"]}


def _declined(entries: list[Any]) -> dict[str, str]:
    """Return, per site that has not approved since, the last reason it gave for declining."""
    said: dict[str, str] = {}
    for entry in entries:
        site = entry.facts.get("site")
        if entry.event == "site declined":
            said[site] = entry.facts["reason"] or entry.facts["code"] or entry.facts["status"]
        elif entry.event in {"study approved", "reply accepted"}:
            said.pop(site, None)
    return said


def _last(entries: list[Any], what: str) -> dict[str, Any]:
    """Return, per site, the last of ``what`` that it reported."""
    return {
        entry.facts["site"]: entry.facts[what]
        for entry in entries
        if entry.event == "reply accepted" and what in entry.facts
    }


def _forks(entries: list[Any]) -> dict[str, str]:
    """Return, per site, whose journal is not the one that the other side knew."""
    found: dict[str, str] = {}
    for entry in entries:
        site = entry.facts.get("site")
        if entry.event == "site declined" and entry.facts["code"] == "journal-fork":
            found[site] = "the site's journal was cut, changed or put back from an old copy"
        elif entry.event == "journal fork":
            found[site] = "the coordinator's journal is not the one that the site heard of"
        elif entry.event == "reply accepted" and found.get(site, "").startswith("the site's"):
            del found[site]
    return found


def _last_problem(entries: list[Any]) -> str:
    for entry in reversed(entries):
        if entry.event == "study paused":
            return str(entry.facts["reason"])
        if entry.event in {"study resumed", "study finished"}:
            break
    return ""
