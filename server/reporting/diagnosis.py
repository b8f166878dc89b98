"""What a coordinator finds when it looks for why something does not work.

Each look gathers facts and hands them to a judgement (``common.doctor.machine_checks``); none of
them stops the others. Asked on the network is this consortium's own door alone.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from common.doctor import machine_facts
from common.doctor.connectivity_report import of_days, of_door
from common.doctor.findings import Finding, looked, ok, problem, warning
from common.doctor.machine_checks import (
    GB,
    of_environment,
    of_leftovers,
    of_libraries,
    of_memory,
    of_owners,
    of_place,
    of_secrets,
    of_temporary,
    of_unit,
)
from common.doctor.tls_probe import PATIENCE_S, Reached, reach
from common.errors import StateError
from common.process.exit_reason import last_words
from common.records.atomic_files import is_held
from common.records.journal import Entry
from common.versions import proven, skew
from server.consortium import certificates
from server.consortium.certificate_expiry import outlook
from server.consortium.listen_address import Listening
from server.consortium.provisioning import Consortium
from server.consortium.published_study import Study
from server.consortium.sites import versions_said
from server.reporting.health import SILENT_S, problem_of, reach_superlink

LIBRARIES: Final = ("flwr", "numpy", "starlette", "uvicorn", "httpx", "cryptography")
UNIT: Final = "gliofed-server.service"

_SECRETS: Final = ("coordinator.key", "ca.key", "server.key", "superexec.secret")
_PROXIES: Final = frozenset({"http_proxy", "https_proxy", "all_proxy"})
_MEMORY: Final = GB
_LEAST_MEMORY: Final = int(0.3 * GB)


def diagnose(consortium: Consortium, *, patience_s: float = PATIENCE_S) -> list[Finding]:
    """Look at everything and say what was found."""
    entries: list[Entry] = []

    def journal() -> list[Finding]:
        entries.extend(consortium.journal.entries())
        return [ok("journal", f"The journal is whole ({len(entries)} facts).")]

    looks: dict[str, Callable[[], list[Finding]]] = {
        "journal": journal,
        "serving": lambda: _serving(consortium, patience_s=patience_s),
        "tls": lambda: _certificates(consortium),
        "sites": lambda: _sites(consortium, entries),
        "studies": lambda: _studies(consortium, entries),
        "disk": lambda: _disk(consortium, entries),
        "temporary": lambda: [of_temporary(machine_facts.temporary())],
        "memory": lambda: [
            of_memory(machine_facts.memory()[0], little=_MEMORY, too_little=_LEAST_MEMORY)
        ],
        "versions": lambda: [
            ok("versions", f"gliofed {version('gliofed')} on Python {platform.python_version()}."),
            of_libraries(LIBRARIES, proven()),
        ],
        "keys": lambda: _files(consortium),
        "environment": lambda: _environment(os.environ),
        "unit": lambda: [of_unit(machine_facts.unit(UNIT))],
    }
    return [found for about, look in looks.items() for found in looked(about, look)]


def _serving(consortium: Consortium, *, patience_s: float) -> list[Finding]:
    settings = consortium.settings
    if not is_held(consortium.lock):
        told = f"Nothing serves {consortium.folder}: no hospital comes through."
        return [problem("serving", told, "Start `gliofed-server serve`.")]
    authority, at, hub = consortium.folder / "ca.crt", consortium.listening, consortium.hub
    log = consortium.folder / "flower" / "log"
    here = reach(
        settings.host, at.port, authority=authority, patience_s=patience_s, address=at.here
    )
    superlink = reach_superlink(hub, patience_s=patience_s)
    outside = reach(settings.host, settings.port, authority=authority, patience_s=patience_s)
    return [
        of_listening("gateway", here, log=log / "gateway.log"),
        of_listening("SuperLink", superlink, log=log / "superlink.log"),
        of_executor(hub.reached_s_ago(), log=log / "executor.log"),
        *of_threads(consortium.threads.troubles(), log=log / "executor.log"),
        *of_public(outside, at),
    ]


def of_listening(name: str, found: Reached, *, log: Path) -> Finding:
    """Judge one of the two doors, asked on this machine itself."""
    where = f"{', '.join(found.addresses)} port {found.port}"
    why = problem_of(found)
    if not why:
        return ok("serving", f"The {name} answers at {where}.")
    return problem(
        "serving",
        f"The {name} does not answer at {where}: {why}.{_ends(log)}",
        f"It may be starting; else read {log}.",
    )


def of_executor(silent_s: float | None, *, log: Path) -> Finding:
    """Judge how long ago the executor, which gives the orders, reached the SuperLink."""
    if silent_s is not None and silent_s <= SILENT_S:
        return ok("serving", "The executor, which gives the orders, reaches the SuperLink.")
    since = "yet" if silent_s is None else f"for {silent_s:.0f} s"
    return problem(
        "serving",
        f"The executor has not reached the SuperLink {since}: no order can be given.{_ends(log)}",
        f"It may be starting; else read {log}.",
    )


def of_threads(troubles: Sequence[str], *, log: Path) -> list[Finding]:
    """Judge what the executor's threads say of themselves."""
    return [problem("serving", trouble, f"See {log}.") for trouble in troubles]


def _ends(log: Path) -> str:
    words = last_words(log)
    return f" The log ends: {words}" if words else ""


def of_public(found: Reached, at: Listening) -> list[Finding]:
    """Judge the door as hospitals see it, asked from here.

    Some networks do not let a machine reach itself by its public address: what fails here alone is
    a warning. ``at`` is where the gateway listens, to which what hospitals call must lead.
    """
    said = of_door(found, whose="ca.crt", now=dt.datetime.now(dt.UTC), ours=True)
    if found.verified or found.tls_problem:
        return [one for one in said if one.about != "clock"]
    hint = "Ask a hospital for `gliofed-site doctor`: from here alone the address may be out of "
    hint += "reach. "
    if at.port != found.port:
        hint += f"Port {found.port} of {found.host} must be forwarded to {at}, where the gateway "
        hint += "listens. "
    return [
        replace(one, level="warning", do=hint + ("" if one.about == "port" else one.do))
        if one.level == "problem"
        else one
        for one in said
    ]


def _certificates(consortium: Consortium) -> list[Finding]:
    folder, now = consortium.folder, dt.datetime.now(dt.UTC)
    shown = certificates.certificate(folder)
    trusted = certificates.trusted(folder)
    said = [
        outlook(folder),
        of_signature(shown, trusted),
        *(
            of_days(
                "tls",
                "The consortium's authority",
                one.not_valid_after_utc,
                now,
                renew=f"`gliofed-server rotate-ca {folder} --wait --by NAME`",
            )
            for one in trusted
        ),
    ]
    if certificates.changing_authority(folder):
        do = "`gliofed-server rotate-ca` again finishes it once every site has its kit."
        said.append(warning("tls", "The change of the authority is not finished.", do))
    return said


def of_signature(shown: x509.Certificate, trusted: Iterable[x509.Certificate]) -> Finding:
    """Judge whether one of the trusted authorities signed the certificate."""
    for one in trusted:
        with contextlib.suppress(ValueError, TypeError, InvalidSignature):
            shown.verify_directly_issued_by(one)
            return ok("tls", "The authority in the kits signed the gateway's certificate.")
    return problem(
        "tls",
        "The gateway's certificate is signed by none of the authorities in ca.crt.",
        "Every hospital refuses it: restore the folder from a backup.",
    )


def _sites(consortium: Consortium, entries: Sequence[Entry]) -> list[Finding]:
    admitted = consortium.sites.all()
    if not admitted:
        do = "`gliofed-server admit` takes the request of a hospital."
        return [warning("sites", "No hospital is admitted yet.", do)]
    said = [ok("sites", f"Sites admitted, each by a request that it signed: {len(admitted)}.")]
    for name, why in consortium.sites.suspended().items():
        do = f"`gliofed-server restore` lets {name} in again."
        said.append(warning("sites", f"{name} is suspended: {why}.", do))
    if late := sorted(consortium.sites.without_kit()):
        told = f"The newest kit has not reached {', '.join(late)}."
        do = "It goes with the next order; `gliofed-server kit` writes it to a file."
        said.append(warning("sites", told, do))
    here = {one.site for one in admitted}
    for name, theirs in sorted(versions_said(entries).items()):
        if name in here and (words := skew(site=theirs, coordinator=version("gliofed"))):
            do = f"{name} takes part in no round until then."
            said.append(problem("sites", f"{name}: {words}", do))
    return said


def _studies(consortium: Consortium, entries: Sequence[Entry]) -> list[Finding]:
    said = []
    for study in consortium.studies():
        about = [entry for entry in entries if entry.facts.get("study") == study.protocol.study]
        try:
            said.append(of_study(study, about))
        except StateError as error:
            said.append(problem("studies", error.message, error.do))
    return said


def of_study(study: Study, about: Sequence[Entry]) -> Finding:
    """Judge whether a study can go on: its newest weights are there, and whole; raise StateError.

    ``about`` are the facts of the study.
    """
    name = study.protocol.study
    closed = [e.facts for e in about if e.event == "round closed"]
    started = [e.facts for e in about if e.event == "study started"]
    if not started:
        if study.given() is not None:
            told = f"{name} has not started; the weights that its protocol names are here."
            return ok("studies", told)
        if study.wanted == "running":
            told = f"{name} has not started; its starting weights are drawn from its seed."
            return ok("studies", told)
        return ok("studies", f"{name} has not started.")
    number = int(closed[-1]["round"]) if closed else 0
    study.load(number, str((closed or started)[-1]["weights"]))
    finished = any(e.event == "study finished" for e in about)
    state = "finished" if finished else study.wanted
    told = f"{name} is {state}; the weights after round {number} are those of the journal."
    if state == "running" and study.protocol.expires <= dt.datetime.now(dt.UTC).date():
        do = "Sites refuse its orders; publish a new study."
        return problem("studies", f"{name} expired on {study.protocol.expires}.", do)
    return ok("studies", told)


def _disk(consortium: Consortium, entries: Sequence[Entry]) -> list[Finding]:
    finished = {e.facts["study"] for e in entries if e.event == "study finished"}
    needed = 0
    for study in consortium.studies():
        sizes = [p.stat().st_size for p in (study.folder / "rounds").glob("[0-9]*.safetensors")]
        if sizes and study.wanted == "running" and study.protocol.study not in finished:
            most, keep = study.protocol.rounds + 1, study.keep_rounds
            # One more than are kept: old weights go when the round that replaces them is closed.
            most = min(most, keep + 1) if keep else most
            needed += max(sizes) * max(1, most - len(study.checkpoints()))
    return [
        of_place(machine_facts.place("the consortium's state", consortium.folder), needed=needed),
        of_place(machine_facts.place("Flower's state", consortium.folder / "flower")),
    ]


def _environment(environment: Mapping[str, str]) -> list[Finding]:
    """Judge the variables; a proxy is nothing to a coordinator, which calls itself alone."""
    proxies = sorted(name for name in environment if name.lower() in _PROXIES)
    said = of_environment({k: v for k, v in environment.items() if k not in proxies})
    if not proxies:
        return said
    told = f"A proxy is set here ({', '.join(proxies)}), and not used: a coordinator calls nobody."
    return [*(one for one in said if one.level != "ok"), ok("environment", told)]


def _files(consortium: Consortium) -> list[Finding]:
    keys = consortium.folder / "keys"
    wanted = [name for name in _SECRETS if name != "superexec.secret" or (keys / name).exists()]
    return [
        *of_secrets(machine_facts.secret(keys / name) for name in wanted),
        of_owners(
            machine_facts.strangers(consortium.folder), owner=machine_facts.owner(consortium.folder)
        ),
        of_leftovers(machine_facts.leftovers(consortium.folder)),
    ]
