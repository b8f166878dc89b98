"""The one door through which anything leaves the hospital: check, journal, and only then pack.

Nothing passes but what is on the allow-list: the fields of ``common.messages.wire_format.Report``
that the study's protocol asks for and the site's policy allows, and the arrays that the protocol
names, with their shapes, finite and within its norm. What leaves is in the journal, synced, before
it can leave, with the head of the privacy ledger, which leaves too: neither can be put back alone.

One exception: when the journal itself cannot be written or is damaged, the code ``journal-write``
or ``journal-damaged`` leaves, alone and unjournalled: without it the coordinator would wait for
nothing.

Out of scope: what was computed, and its privacy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from client.privacy.budget_caps import open_ledger
from client.site.folder import Site
from client.site.key_renewal import kit_sha256, pending
from client.site.stop import check_not_halted
from client.study.restore_reconciliation import last_heard
from client.study.restore_reconciliation import pending as pending_restoration
from common.errors import StateError, UpdateError
from common.messages.compression import decode
from common.messages.wire_format import Content, Order, Report, pack
from common.records.journal import GENESIS
from common.records.weights import check_like
from common.study.cohort_histograms import check_counts
from common.study.protocol import MessageOptions, StudyProtocol
from common.versions import own

_REPORTS: Final = {
    "dice": "dice",
    "dice_noise": "dice",
    "case_count": "case_count",
    "privacy_spent": "privacy_spent",
    "withdrawn": "withdrawals",
    "statistics": "statistics",
}
"""What both sides must allow for a field of the report to be filled."""


@dataclass(frozen=True)
class Reply:
    """What is about to leave. ``due`` gives name and shape of every array that ``body`` may hold,
    and ``messages`` how it holds them.

    ``what`` says in plain words what it is, ``facts`` more for the journal, which stays here. A
    reply that is not ``news`` (a site that is asked every few seconds) is not journalled.
    """

    report: Report
    what: str
    body: bytes | None = None
    messages: MessageOptions = field(default_factory=MessageOptions)
    due: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    max_norm: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    news: bool = True


def may_report(site: Site, protocol: StudyProtocol, what: str) -> bool:
    """Return whether both the protocol and the hospital's policy let ``what`` be reported."""
    policy = site.settings.policy
    allowed = policy.dice != "never" if what == "dice" else what in policy.reports
    asked = bool(protocol.statistics.about) if what == "statistics" else what in protocol.reports
    return allowed and asked


def check(site: Site, protocol: StudyProtocol | None, reply: Reply) -> None:
    """Raise UpdateError unless everything in ``reply`` is on the allow-list."""
    arrays = {} if reply.body is None else decode(reply.body, reply.due, reply.messages)
    check_like(arrays, dict(reply.due), max_norm=reply.max_norm)
    report = reply.report
    filled = {name for name in _REPORTS if getattr(report, name) not in (None, ())}
    if protocol is None or report.status != "done":
        strange = filled | (set() if reply.body is None else {"arrays"})
    else:
        strange = {name for name in filled if not may_report(site, protocol, _REPORTS[name])}
        exact = site.settings.policy.dice != "noised"
        if report.dice is not None and not exact and report.dice_noise is None:
            strange.add("dice")
        if report.statistics is not None and "statistics" not in strange:
            check_counts(report.statistics, protocol.statistics)
    if report.reason and report.status != "refused":
        strange.add("reason")
    if strange:
        raise UpdateError(
            f"The reply holds what must not leave this site: {', '.join(sorted(strange))}.",
            do="Nothing was sent. Report this to the makers of gliofed.",
            code="update-outbound",
        )


def let_out(site: Site, order: Order, protocol: StudyProtocol | None, reply: Reply) -> Content:
    """Check ``reply``, write in the journal what leaves, to whom and how much, and pack it.

    Raises UpdateError and journals nothing for what is not on the allow-list; ConsentError (code
    ``site-stopped``) when the hospital stopped the site meanwhile; StateError when the journal
    cannot be written, and then nothing leaves.
    """
    check(site, protocol, reply)
    if reply.report.status == "done" and order.kind != "offer":
        check_not_halted(site)
    # The head goes with replies that passed every check alone: also that of the heads before.
    done = reply.report.status == "done" and reply.news
    ledger = _ledger(site, done=done) if reply.news else {}
    report = reply.report.model_copy(
        update={
            "ledger_head": ledger.get("ledger_head", ""),
            "coordinator_head": _heard(site),
            "site_head": GENESIS if done else "",
            "kit_sha256": kit_sha256(site) if done else "",
            "renewal": pending(site) if done else "",
            "version": own(),
        }
    )
    if not reply.news:
        return pack(report, reply.body)
    size = len(report.model_dump_json(exclude_defaults=True)) + len(reply.body or b"")
    kept = set(_REPORTS)
    entry = site.journal.append(
        "sent" if done else "declined",
        study=order.study,
        round=order.round,
        order=order.kind,
        what=reply.what,
        to=f"{site.kit.consortium}, {site.kit.address}",
        bytes=size,
        coordinator_head=order.coordinator_head,
        site_head=order.site_head,
        **({} if done else {"code": report.code, "reason": report.reason}),
        **report.model_dump(include=kept, exclude_defaults=True),
        **ledger,
        **reply.facts,
    )
    if done:
        report = report.model_copy(update={"site_head": entry.hash})
    return pack(report, reply.body)


def _ledger(site: Site, *, done: bool) -> dict[str, Any]:
    """Return the ledger's head, to which the answer is bound.

    What was done does not leave without one (raises StateError); that nothing was done may.
    """
    try:
        with open_ledger(site) as ledger:
            facts, head = ledger.head
    except StateError:
        if done:
            raise
        return {}
    return {"ledger_facts": facts, "ledger_head": head}


def unjournalled(order: Order, error: Exception) -> Content:
    """Return the one reply that needs no journal: that the order failed for want of one."""
    damaged = isinstance(error, StateError) and error.code == "journal-damaged"
    return pack(
        Report(
            kind=order.kind,
            study=order.study,
            round=order.round,
            status="failed",
            code="journal-damaged" if damaged else "journal-write",
            version=own(),
        ),
        None,
    )


def _heard(site: Site) -> str:
    """Return the last head of the coordinator's journal that is known here.

    After a restoration it is that of the backup until all is settled: what came since is asked for.
    """
    restoration = pending_restoration(site)
    return last_heard(site.journal) if restoration is None else restoration.since
