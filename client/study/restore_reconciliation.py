"""What a site settles after it was restored from a backup: what it may have spent since.

The backup does not know what was trained after it was made. Until that is settled nothing is
trained, scored or counted here. It is settled in one of two ways:

- The first order is declined with the code ``restored``, and the coordinator gives it again with an
  account of every order that this site was given since. Each order that the restored journal has
  not answered is charged to the ledger, as if it had been answered fully. No order, no charge.
- A person at the hospital says how many rounds were trained since, and those are charged.

Nobody is charged beyond a cap: the site kept to it then, too. Charges stand in the ledger as
reservations that were never confirmed. Killed in between, the site charges again; it never forgets.

``restored.json`` says that there is something to settle; the journal says how it was. Out of scope:
the backup (``common.backup.folder_backup``).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from client.privacy.budget_caps import caps, charge_unprotected, mechanism, open_ledger
from client.privacy.dp_dice import SENSITIVITY
from client.privacy.dp_histograms import SENSITIVITY as STATISTICS_SENSITIVITY
from client.privacy.ledger import Ledger
from client.privacy.mechanism import Mechanism, Purpose
from client.site.folder import Site
from client.study import round_training
from client.study.known_patients import by_patient
from client.study.round_state import Kept
from common.errors import CaseError, ConsentError, StateError
from common.messages.wire_format import RESTORED, Given, Order
from common.records.atomic_files import read_json, write_json
from common.records.journal import Journal
from common.study.protocol import StudyProtocol

FILE: Final = "restored.json"
SETTLED: Final = "restoration settled"


class Restoration(BaseModel):
    """``restored.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    backup: str
    """When the backup was made (UTC)."""
    since: str
    """The last head of the coordinator's journal that the backup knows."""
    charged_by: str = ""
    """Who charged by hand; then the next order settles it without the coordinator's account."""


def begin(folder: Path, *, backup: str) -> None:
    """Write into a restored folder that there is something to settle."""
    journal = Journal(folder / "journal.jsonl")
    since = last_heard(journal)
    journal.append("backup restored", backup=backup, since=since)
    write_json(folder / FILE, Restoration(backup=backup, since=since).model_dump())


def last_heard(journal: Journal) -> str:
    """Return the head of the coordinator's journal that came with the last answered order."""
    head = ""
    for entry in journal.events("sent", "declined"):
        head = entry.facts.get("coordinator_head") or head
    return head


def pending(site: Site) -> Restoration | None:
    """Return what is to be settled, or None; raise StateError."""
    path = site.folder / FILE
    if not path.exists():
        return None
    try:
        return Restoration.model_validate(read_json(path, what="note of a restoration"))
    except ValidationError:
        raise StateError(
            f"{path} is damaged or of another version.",
            do="Restore the site again from its backup.",
            code="restored-note",
        ) from None


def accepted(site: Site) -> set[str]:
    """Return heads of this site's lost journals that were settled: they are no fork."""
    return {entry.facts["lost_head"] for entry in site.journal.events(SETTLED)}


def settle(site: Site, restoration: Restoration, order: Order) -> None:
    """Settle with the account in ``order``; raise ConsentError (code ``restored``) without one."""
    if restoration.charged_by:
        charged: list[dict[str, Any]] = []
        orders: list[tuple[str, str, int]] = []
        by = restoration.charged_by
    elif order.account is None:
        raise ConsentError(
            f"{site.name} was restored from its backup of {restoration.backup} and does not know "
            "what it was ordered since.",
            do="The coordinator's next order brings that. If none comes, `gliofed-site settle`.",
            code=RESTORED,
        )
    else:
        charged, by = _charge(site, order.account), "the coordinator's account"
        orders = _listed(order.account)
    lost = "" if not order.site_head or site.journal.holds(order.site_head) else order.site_head
    site.journal.append(
        SETTLED,
        backup=restoration.backup,
        by=by,
        charged=charged,
        orders=orders,
        lost_head=lost,
    )
    (site.folder / FILE).unlink()


def charge_by_hand(site: Site, rounds: dict[str, int], *, by: str) -> list[dict[str, Any]]:
    """Charge that so many rounds more of each study were trained; return what was charged.

    Raises StateError if nothing is to be settled, or a study was never offered here.
    """
    restoration = pending(site)
    if restoration is None or restoration.charged_by:
        raise StateError(
            f"{site.name} has nothing to settle.", do="Nothing was charged.", code="settled"
        )
    if not 0 < len(by.strip()) <= 200:
        raise ConsentError(
            "Nothing was charged: it needs a person's name, of at most 200 letters.",
            do="Say who settles with --by NAME.",
            code="decision",
        )
    account = []
    for study, count in rounds.items():
        last = _last_round(site, study)
        for kind in ("train", "evaluate"):
            account += [
                Given(study=study, kind=kind, round=last + more) for more in range(1, count + 1)
            ]
    charged = _charge(site, account)
    site.journal.append(
        "restoration charged",
        by=by.strip(),
        rounds=rounds,
        charged=charged,
        orders=_listed(account),
    )
    note = restoration.model_copy(update={"charged_by": by.strip()})
    write_json(site.folder / FILE, note.model_dump())
    return charged


def _listed(account: Iterable[Given]) -> list[tuple[str, str, int]]:
    """Return the orders as the journal keeps them: what they gave may have left."""
    return sorted({(one.study, one.kind, one.round) for one in account})


def _charge(site: Site, account: Iterable[Given]) -> list[dict[str, Any]]:
    """Charge every order that was not answered before the backup; return what was charged."""
    entries = list(site.journal.events("sent"))
    answered = {(e.facts["study"], e.facts["order"], e.facts["round"]) for e in entries}
    left = [one for one in account if (one.study, one.kind, one.round) not in answered]
    by_study: dict[str, list[Given]] = defaultdict(list)
    for one in left:
        by_study[one.study].append(one)
    unknown = sorted(set(by_study) - set(site.study_names()))
    if unknown:
        raise ConsentError(
            f"{site.name} was ordered to work for {', '.join(unknown)} since its backup of then, "
            "which does not know that study: what it cost cannot be charged.",
            do="Get its protocol.json from the coordinator: `gliofed-site settle --protocol FILE`.",
            code="restored-study",
        )
    charged: list[dict[str, Any]] = []
    with open_ledger(site) as ledger:
        for study, orders in sorted(by_study.items()):
            charged += _charge_study(site, site.protocol(study), ledger, orders)
    return charged


def _charge_study(
    site: Site, protocol: StudyProtocol, ledger: Ledger, orders: list[Given]
) -> list[dict[str, Any]]:
    asked: Counter[tuple[str, int]] = Counter()
    for one in orders:
        asked[one.kind, one.round] += one.times
    known = ledger.patients(study=protocol.study)
    now = _patients_now(site, protocol)
    options, policy = protocol.privacy, site.settings.policy
    charged = []
    for (kind, number), times in sorted(asked.items()):
        if kind == "train" and not protocol.private:
            charged += _charge_unprotected(site, protocol, ledger, known | now["train"], number)
        elif kind == "train":
            charged += _reserve(
                site,
                protocol,
                ledger,
                known | now["train"],
                purpose="training",
                release=mechanism(protocol),
                steps=times * protocol.training.steps_per_round,
                norm=options.clipping_norm,
                number=number,
            )
        elif kind == "evaluate" and policy.dice == "noised" and "dice" in protocol.reports:
            charged += _reserve(
                site,
                protocol,
                ledger,
                known | now["validation"],
                purpose="metrics",
                release=Mechanism(options.dice_noise_multiplier, 1.0),
                steps=times,
                norm=SENSITIVITY,
                number=number,
            )
    asks = bool(protocol.statistics.about) and "statistics" in policy.reports
    if asks and not Kept(site, protocol.study).statistics.exists():
        charged += _reserve(
            site,
            protocol,
            ledger,
            known | now["train"],
            purpose="statistics",
            release=Mechanism(protocol.statistics.noise_multiplier, 1.0),
            steps=max(1, asked["describe", 0]),
            norm=STATISTICS_SENSITIVITY,
            number=0,
        )
    return charged


def _charge_unprotected(
    site: Site, protocol: StudyProtocol, ledger: Ledger, patients: frozenset[str], number: int
) -> list[dict[str, Any]]:
    if not patients:
        return []
    charge_unprotected(site, protocol, ledger, patients, round_number=number)
    steps = protocol.training.steps_per_round
    return [{"study": protocol.study, "round": number, "purpose": "training", "steps": steps}]


def _reserve(
    site: Site,
    protocol: StudyProtocol,
    ledger: Ledger,
    patients: frozenset[str],
    *,
    purpose: Purpose,
    release: Mechanism,
    steps: int,
    norm: float,
    number: int,
) -> list[dict[str, Any]]:
    """Reserve ``steps`` for each patient, or as many as the caps leave."""
    if not patients:
        return []
    study_cap, patient_cap = caps(site, protocol)
    room = ledger.room(
        study=protocol.study,
        mechanism=release,
        patients=patients,
        study_cap=study_cap,
        patient_cap=patient_cap,
    )
    groups: dict[int, set[str]] = defaultdict(set)
    for name, left in room.items():
        groups[min(left, steps)].add(name)
    for own, names in sorted(groups.items()):
        if own:
            ledger.reserve(
                study=protocol.study,
                protocol=protocol.digest,
                round_number=number,
                purpose=purpose,
                patients=frozenset(names),
                mechanism=release,
                clipping_norm=norm,
                steps=own,
                study_cap=study_cap,
                patient_cap=patient_cap,
            )
    return [{"study": protocol.study, "round": number, "purpose": purpose, "steps": max(groups)}]


def _patients_now(site: Site, protocol: StudyProtocol) -> dict[str, frozenset[str]]:
    """Return the pseudonyms of today's training and validation patients; none without a cohort."""
    try:
        split = round_training.read_split(site, protocol)
    except CaseError as error:
        if error.code != "case-none":
            raise
        return {"train": frozenset(), "validation": frozenset()}
    return {
        "train": frozenset(by_patient(site, split.train)),
        "validation": frozenset(by_patient(site, split.validation)),
    }


def _last_round(site: Site, study: str) -> int:
    site.protocol(study)  # raises for a study that was never offered
    said = [entry.facts["round"] for entry in site.journal.events("sent", study=study)]
    return max(said, default=0)
