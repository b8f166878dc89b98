"""The state of a study, computed from the journal alone.

Nothing here is kept: what the journal does not say did not happen. A round that went on without a
site names it and says why; "finished" is never said without who took part, and who did not.

``study_report`` is the summary behind ``status`` and a release; ``full_report`` adds every attempt
at every round with each site's part in it, the spread of Dice and the conduct of the sites. Facts
that an older journal does not have are None, and are shown as not recorded.

Out of scope: words and pictures (``server.reporting.markdown_report``), the figures
(``server.reporting.fairness``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from common.foreign_text import printable, printable_values
from common.records.journal import Entry, Journal
from common.study.cohort_histograms import added
from server.consortium.published_study import Study
from server.reporting.fairness import Attempt, Reply, conducts, spreads
from server.rounds.orders import STOPPED

_MOST: Final = 1e15
"""No fact is a larger number, but one that a site made up."""

_OF_A_REPLY: Final = (
    "weight",
    "norm",
    "bytes",
    "seconds",
    "cosine",
    "update",
    "case_count",
    "privacy_spent",
    "withdrawn",
    "staleness",
)
"""What is told of an accepted update, where the journal has it."""


def study_report(study: Study, journal: Journal, *, admitted: list[str]) -> dict[str, Any]:
    """Return what happened in ``study``: state, approvals, rounds, scores, privacy spent."""
    return _summary(study, _entries(study, journal), admitted=admitted)


def cohorts(study: Study, journal: Journal) -> dict[str, Any] | None:
    """Return the noised histograms of the sites' cohorts and their sum; None without any."""
    return _statistics(_entries(study, journal))


def full_report(study: Study, journal: Journal, *, admitted: list[str]) -> dict[str, Any]:
    """Return the summary and, beside it, what each site did in each attempt at each round.

    Keys beside those of ``study_report``: ``attempts``, ``absences``, ``suspended``,
    ``statistics``, ``fairness``, ``conduct``, ``late_replies``, ``journal_alarms``, and of which
    ``journal`` all this is.
    """
    entries = _entries(study, journal)
    report = _summary(study, entries, admitted=admitted)
    attempts = _attempts(entries)
    sites = sorted({*admitted, *report["approved"], *(s for a in attempts for s in a["approved"])})
    compared = [
        Attempt(
            number=one["round"],
            closed=one["state"] == "closed",
            ordered=frozenset(one["ordered"]),
            replies={
                site: Reply(
                    weight=said["weight"],
                    norm=said["norm"],
                    digest=said["update"],
                    cosine=said["cosine"],
                )
                for site, said in one["sites"].items()
            },
        )
        for one in attempts
    ]
    return {
        **report,
        "attempts": attempts,
        "absences": _absences(attempts, sites),
        "suspended": _suspended(entries),
        "statistics": _statistics(entries),
        "fairness": [
            {
                "round": said["round"],
                "regions": {r: asdict(found) for r, found in spreads(said["dice"]).items()},
                "noised": sorted(said["dice_noise"]),
                "not_reported": {
                    site: said["dropped"].get(site, "not reported")
                    for site in report["approved"]
                    if site not in said["dice"]
                },
            }
            for said in report["evaluations"]
        ],
        "conduct": {site: asdict(said) for site, said in conducts(compared, sites).items()},
        "late_replies": _late(entries),
        "journal_alarms": _alarms(entries),
        "journal": {
            "facts": entries[-1].number if entries else 0,
            "head": entries[-1].hash if entries else "",
            "until": entries[-1].time if entries else "",
        },
    }


def _drawable(value: Any) -> Any:
    """Return a value whose numbers a chart can be drawn of."""
    if isinstance(value, dict):
        return {key: _drawable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_drawable(one) for one in value]
    if isinstance(value, int | float) and abs(value) > _MOST:
        return math.copysign(_MOST, value)
    return value


def _entries(study: Study, journal: Journal) -> list[Entry]:
    """Return the facts about the study, and those about sites that hold for every study.

    Sites wrote some of their words and numbers, and earlier versions took any: all that is reported
    of them is fit to be shown from here on.
    """
    name = study.protocol.study
    return [
        entry._replace(facts=_drawable(printable_values(entry.facts)))
        for entry in journal.entries()
        if entry.facts.get("study") == name or entry.event in {"site suspended", "site restored"}
    ]


def _summary(study: Study, entries: Sequence[Entry], *, admitted: list[str]) -> dict[str, Any]:
    name = study.protocol.study
    approved = _approved(entries)
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
        "title": printable(study.protocol.title),
        "protocol": study.protocol.digest,
        "version": study.protocol.version,
        "state": _state(study, [e.event for e in entries]),
        "private": study.protocol.private,
        "max_epsilon": study.protocol.privacy.max_epsilon if study.protocol.private else None,
        "rounds_planned": study.protocol.rounds,
        "rounds_closed": len(rounds),
        "approved": approved,
        "not_approved": sorted(set(admitted) - set(approved)),
        "declined": _declined(entries),
        "paused_sites": paused_sites(entries),
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


def _approved(entries: Iterable[Entry]) -> list[str]:
    """Return who approves the study now: what a hospital said last counts."""
    found: set[str] = set()
    for entry in entries:
        if entry.event == "study approved":
            found.add(str(entry.facts["site"]))
        elif entry.event == "approval taken back":
            found.discard(str(entry.facts["site"]))
        elif entry.event == "amendment in force":
            found.clear()
    return sorted(found)


def _round(facts: dict[str, Any], *, closed: bool) -> dict[str, Any]:
    kept = {key: facts[key] for key in ("took_part", "dropped", "seconds")}
    return {**kept, "weights": facts["weights"]} if closed else {**kept, "reason": facts["reason"]}


def _declined(entries: Sequence[Entry]) -> dict[str, str]:
    """Return, per site that has not approved since, the last reason it gave for declining."""
    said: dict[str, str] = {}
    for entry in entries:
        site = str(entry.facts.get("site"))
        if entry.event == "site declined":
            said[site] = entry.facts["reason"] or entry.facts["code"] or entry.facts["status"]
        elif entry.event in {"study approved", "reply accepted"}:
            said.pop(site, None)
    return said


def paused_sites(entries: Iterable[Entry]) -> dict[str, str]:
    """Return, per site that said last that its hospital has stopped it, since when it says so."""
    since: dict[str, str] = {}
    for entry in entries:
        if entry.event == "site declined" and entry.facts["code"] == STOPPED:
            since.setdefault(str(entry.facts["site"]), entry.time)
        elif entry.event in {"reply accepted", "site declined"}:
            since.pop(str(entry.facts["site"]), None)
        elif entry.event == "evaluated":
            for site in entry.facts["dice"]:
                since.pop(site, None)
    return since


def _last(entries: Sequence[Entry], what: str) -> dict[str, Any]:
    """Return, per site, the last of ``what`` that it reported."""
    return {
        entry.facts["site"]: entry.facts[what]
        for entry in entries
        if entry.event == "reply accepted" and what in entry.facts
    }


def _forks(entries: Sequence[Entry]) -> dict[str, str]:
    """Return, per site, whose journal is not the one that the other side knew."""
    found: dict[str, str] = {}
    for entry in entries:
        site = str(entry.facts.get("site"))
        if entry.event == "site declined" and entry.facts["code"] == "journal-fork":
            found[site] = "the site's journal was cut, changed or put back from an old copy"
        elif entry.event == "journal fork":
            found[site] = "the coordinator's journal is not the one that the site heard of"
        elif entry.event == "reply accepted" and found.get(site, "").startswith("the site's"):
            del found[site]
    return found


def _last_problem(entries: Sequence[Entry]) -> str:
    for entry in reversed(entries):
        if entry.event in {"study paused", "study waits"}:
            return str(entry.facts["reason"])
        if entry.event in {"study resumed", "study finished", "round opened"}:
            break
    return ""


def _attempts(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Return each attempt at a round: ordered, answered, dropped and why, what each site sent.

    States: ``closed``, ``failed`` (its quorum was missed), ``interrupted`` (it never ended, another
    one began), ``open``.
    """
    attempts: list[dict[str, Any]] = []
    for entry in entries:
        facts = entry.facts
        now = attempts[-1] if attempts and attempts[-1]["state"] == "open" else None
        if entry.event == "round opened":
            if now is not None:
                now["state"] = "interrupted"
            attempts.append(
                {
                    "round": facts["round"],
                    "state": "open",
                    "opened": entry.time,
                    "ended": "",
                    "seconds": None,
                    "order_bytes": facts.get("bytes"),
                    "approved": list(facts["sites"]),
                    "ordered": list(facts.get("ordered", facts["sites"])),
                    "busy": dict(facts.get("busy", {})),
                    "took_part": [],
                    "dropped": {},
                    "share_of_weight": None,
                    "under_way": {},
                    "reason": "",
                    "sites": {},
                    "lost_orders": {},
                    "refused": {},
                }
            )
        elif now is None or facts.get("round") != now["round"]:
            continue
        elif entry.event == "reply accepted":
            now["sites"][facts["site"]] = {key: facts.get(key) for key in _OF_A_REPLY}
        elif entry.event == "order lost" and facts["order"] == "train":
            lost = now["lost_orders"]
            lost[facts["site"]] = lost.get(facts["site"], 0) + 1
        elif entry.event == "reply refused" and facts["order"] == "train":
            now["refused"][facts["site"]] = facts["reason"]
        elif entry.event in {"round closed", "round failed"}:
            now |= {key: facts[key] for key in ("took_part", "dropped", "seconds")}
            now["share_of_weight"] = facts.get("share_of_weight")
            now["under_way"] = dict(facts.get("under_way", {}))
            now["state"] = entry.event.removeprefix("round ")
            now["ended"], now["reason"] = entry.time, facts.get("reason", "")
    return attempts


def _statistics(entries: Iterable[Entry]) -> dict[str, Any] | None:
    """Return the histograms of the sites' cohorts and their sum; None if they were not asked for.

    ``deviation`` is that of the noise in each bin of one site, ``sum_deviation`` that in the sum.
    """
    said = [entry.facts for entry in entries if entry.event == "cohorts described"]
    if not said:
        return None
    facts = said[-1]
    sites = facts["statistics"]
    return {
        **{key: facts[key] for key in ("about", "statistics", "deviation", "dropped")},
        "sum": added(sites.values()),
        "sum_deviation": round(facts["deviation"] * math.sqrt(len(sites)), 4),
    }


def _absences(
    attempts: Iterable[Mapping[str, Any]], sites: Iterable[str]
) -> dict[str, dict[str, str]]:
    """Return, per site, the closed rounds without it and why: a round's number, as text, to why."""
    closed = [
        (one, frozenset(one["approved"]), frozenset(one["took_part"]))
        for one in attempts
        if one["state"] == "closed"
    ]
    return {
        site: missed
        for site in sites
        if (
            missed := {
                str(one["round"]): one["dropped"].get(
                    site, "no-answer" if site in approved else "not-approved"
                )
                for one, approved, took_part in closed
                if site not in took_part
            }
        )
    }


def _late(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Return each update that came after its own round was closed, and whether it was used."""
    return [
        {
            "site": entry.facts["site"],
            "base_round": entry.facts["base_round"],
            "staleness": entry.facts["staleness"],
            "seconds": entry.facts["seconds"],
            "used_in_round": entry.facts["round"] if entry.event == "reply accepted" else None,
        }
        for entry in entries
        if (entry.event == "reply accepted" and entry.facts.get("staleness"))
        or (entry.event == "reply late" and entry.facts["order"] == "train")
    ]


def _suspended(entries: Iterable[Entry]) -> dict[str, str]:
    """Return why each site that is suspended now is."""
    found: dict[str, str] = {}
    for entry in entries:
        if entry.event == "site suspended":
            found[entry.facts["site"]] = str(entry.facts["why"])
        elif entry.event == "site restored":
            found.pop(entry.facts["site"], None)
    return found


def _alarms(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Return every time that the heads of two journals did not fit, also if they do by now.

    ``fork``: one side does not know the head that the other kept. ``gap``: an update came without
    the head of the site's journal, though earlier ones had it, or with the head that the site's
    journal had in an earlier round: a journal that grows with each order has another one.
    """
    found = []
    heads: dict[str, tuple[str, int]] = {}
    for entry in entries:
        facts = entry.facts
        what = ""
        if entry.event == "journal fork":
            what = "fork: the coordinator's journal is not the one that the site heard of"
        elif entry.event == "site declined" and facts["code"] == "journal-fork":
            what = "fork: the site's journal is not the one that the coordinator heard of"
        elif entry.event == "reply accepted":
            site, head, number = facts["site"], facts.get("site_head", ""), facts["round"]
            before, at = heads.get(site, ("", 0))
            if before and not head:
                what = f"gap: no head of the site's journal, which it sent in round {at}"
            elif before == head and head and number != at:
                what = f"gap: the site's journal has not grown since round {at}"
            if head:
                heads[site] = (head, number)
        if what:
            found.append(
                {"time": entry.time, "round": facts["round"], "site": facts["site"], "what": what}
            )
    return found
