"""What a site finds when it looks for why something does not work. Nothing of it leaves the site.

Each look gathers facts and hands them to a judgement (``common.doctor.machine_checks``); none of
them stops the others. Out of scope: whether each case can be used (``client.views.cohort_check``),
which takes minutes.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from client.clinic.installed_models import active_model
from client.cohort.case_discovery import Cohort
from client.cohort.series_decisions import cohort_of
from client.networks.cpu_threads import THREADS
from client.privacy.budget_caps import open_ledger
from client.site.folder import Site
from client.site.keys import node_key
from client.site.settings import Machine
from client.views.compute_check import of_trial, try_out
from common.doctor import machine_facts
from common.doctor.connectivity_report import duration, of_days, of_door
from common.doctor.findings import Finding, looked, ok, problem, warning
from common.doctor.machine_checks import (
    GB,
    of_environment,
    of_leftovers,
    of_libraries,
    of_memory,
    of_no_proxy,
    of_owners,
    of_place,
    of_secrets,
    of_taken_way,
    of_temporary,
    of_unit,
    size,
)
from common.doctor.tls_probe import PATIENCE_S, reach
from common.foreign_text import printable
from common.process.exit_reason import last_words
from common.records.atomic_files import is_held, read_json
from common.trust.identity import Statement
from common.versions import proven, skew

LIBRARIES: Final = ("flwr", "torch", "monai", "opacus", "dp-accounting", "numpy", "pydicom")
UNIT: Final = "gliofed-site.service"

_SILENT_S: Final = 180.0
"""The SuperNode asks every 3 s, and after failures every minute."""
_RECENT_S: Final = 3600.0
_LEVEL: Final = re.compile(r"level[\"=: ]+(warning|error|critical)")
_SECRETS: Final = ("identity.key", "node.key", "superexec.secret", "patients.key")
_MEMORY: Final = 4 * GB
_LEAST_MEMORY: Final = int(1.6 * GB)
"""To prepare a raw head; see deploy/README.md."""


@dataclass(frozen=True)
class Devices:
    """What torch and the driver say of the machine's GPUs."""

    torch: str
    cuda: str
    """The CUDA that torch was built with, or an empty text."""
    driver: str
    """The version of NVIDIA's driver, or an empty text."""
    names: tuple[str, ...] = ()
    free: tuple[int, ...] = ()
    """Bytes free on each."""
    cores: int = 1
    cpu_bfloat16: bool = False


def diagnose(site: Site, *, patience_s: float = PATIENCE_S) -> list[Finding]:
    """Look at everything and say what was found."""
    looks: dict[str, Callable[[], list[Finding]]] = {
        "kit": lambda: _connection(site, patience_s=patience_s),
        "disk": lambda: [of_place(one) for one in places(site)],
        "temporary": lambda: [of_temporary(machine_facts.temporary())],
        "memory": lambda: [
            of_memory(machine_facts.memory()[0], little=_MEMORY, too_little=_LEAST_MEMORY)
        ],
        "gpu": lambda: [of_devices(site.settings.machine, devices())],
        "trial": lambda: [of_trial(try_out(site.folder), site.folder)],
        "versions": lambda: _versions(site),
        "keys": lambda: _files(site),
        "environment": lambda: of_environment(os.environ),
        "data": lambda: [of_cohort(site.data, cohort_of(site))],
        "journal": lambda: _books(site),
        "model": lambda: [_model(site)],
        "running": lambda: _running(site),
    }
    return [found for about, look in looks.items() for found in looked(about, look)]


def _joined(site: Site) -> bool:
    return (site.folder / "kit.json").exists()


def _connection(site: Site, *, patience_s: float) -> list[Finding]:
    if not _joined(site):
        return [
            warning(
                "kit",
                f"{site.name} has not joined a consortium: there is nowhere to connect.",
                "Send request.json to the coordinator and `gliofed-site join` with the answer.",
            )
        ]
    kit = site.kit
    trusted = x509.load_pem_x509_certificates((site.folder / "ca.crt").read_bytes())
    said = [
        ok(
            "kit",
            f"{site.name} belongs to {printable(kit.consortium)}; its keys are those of the kit.",
        )
    ]
    now = dt.datetime.now(dt.UTC)
    said += looked("proxy", lambda: _way(site, patience_s=patience_s, now=now))
    for one in trusted:
        said.append(
            of_days(
                "tls",
                "The authority that this site trusts",
                one.not_valid_after_utc,
                now,
                renew="Ask the coordinator for `gliofed-server rotate-ca`; the kit comes with an "
                "order, or as a file for `gliofed-site renew-kit`.",
            )
        )
    return said


def _way(site: Site, *, patience_s: float, now: dt.datetime) -> list[Finding]:
    """Go the way that the SuperNode goes."""
    (host, port), proxy = site.coordinator, site.proxy(os.environ)
    authority = site.folder / "ca.crt"
    found = reach(host, port, authority=authority, patience_s=patience_s, proxy=proxy)
    said = of_door(found, whose="this site's kit", now=now)
    if proxy is None:
        said += of_no_proxy(os.environ, host=host, port=port, reached=found.verified)
    if is_held(site.lock) and site.way.exists():
        taken = str(read_json(site.way, what="SuperNode's way")["proxy"])
        said += of_taken_way(taken, "" if proxy is None else str(proxy))
    return said


def places(site: Site) -> list[machine_facts.Place]:
    """Look at the folders that the site writes to."""
    return [
        machine_facts.place("the site's state", site.folder),
        *(
            machine_facts.place(what, site.folder / name)
            for what, name in (
                ("the cache", "cache"),
                ("the outbox", "outbox"),
                ("models", "models"),
            )
        ),
    ]


def devices() -> Devices:
    """Ask torch and the driver."""
    import torch

    from client.site.execution import Hardware

    driver = Path("/proc/driver/nvidia/version")
    words = driver.read_text().split() if driver.exists() else []
    told = next((word for word in words if word.count(".") >= 1 and word[0].isdigit()), "")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Devices(
        torch=torch.__version__,
        cuda=torch.version.cuda or "",
        driver=told or ("unknown" if driver.exists() else ""),
        names=tuple(torch.cuda.get_device_name(n) for n in range(count)),
        free=tuple(torch.cuda.mem_get_info(n)[0] for n in range(count)),
        cores=os.cpu_count() or 1,
        cpu_bfloat16=Hardware.here().cpu_bfloat16,
    )


def of_devices(wanted: Machine, found: Devices) -> Finding:
    """Judge the GPUs against ``[machine]`` of the site's settings."""
    build = f"torch {found.torch} for " + (f"CUDA {found.cuda}" if found.cuda else "CPUs")
    if not found.names and wanted.device == "cuda":
        if found.driver and not found.cuda:
            do = "Install the build of torch for CUDA; deploy/ says how the wheelhouse gets it."
        elif found.driver:
            do = "The driver may be too old for that CUDA: `nvidia-smi`, and update the driver."
        else:
            do = 'Install NVIDIA\'s driver, or set device = "cpu" in site.toml.'
        return problem("gpu", f"site.toml asks for cuda, which {build} does not find here.", do)
    if not found.names and found.driver:
        return warning(
            "gpu",
            f"A driver of NVIDIA ({found.driver}) is here, but {build} uses no GPU.",
            "Install the build of torch for CUDA, or a driver that fits it.",
        )
    if wanted.device == "cpu" or not found.names:
        return _of_cpu(wanted, found, build)
    if wanted.gpus > len(found.names):
        return problem(
            "gpu",
            f"site.toml asks for {wanted.gpus} GPUs, of which {len(found.names)} are here.",
            "Set gpus = 1, or 0 for all that are there.",
        )
    parts = [f"{n}, {size(f)} free" for n, f in zip(found.names, found.free, strict=True)]
    return ok("gpu", f"{'; '.join(parts)} ({build}, driver {found.driver or 'unknown'}).")


def _of_cpu(wanted: Machine, found: Devices, build: str) -> Finding:
    threads = wanted.threads or THREADS
    here = "No GPU is here" if not found.names else 'site.toml says device = "cpu"'
    said = f"{here}; {build} computes on the CPU with {threads} threads (cores: {found.cores})"
    if wanted.precision == "bfloat16" and not found.cpu_bfloat16:
        return warning(
            "gpu",
            f"{said}, in float32: this CPU does not multiply bfloat16 itself.",
            'Set precision = "float32" in site.toml.',
        )
    if not wanted.threads and found.cores >= 2 * threads:
        return ok("gpu", f"{said}; `threads` in site.toml can be more.")
    return ok("gpu", f"{said}.")


def _versions(site: Site) -> list[Finding]:
    ours = version("gliofed")
    said = [of_libraries(LIBRARIES, proven())]
    noted = site.heard_version
    theirs = (
        str(read_json(noted, what="coordinator's version")["version"]) if noted.exists() else ""
    )
    return [of_release(ours, theirs), *said]


def of_release(ours: str, theirs: str) -> Finding:
    """Judge this gliofed and Python against the coordinator's gliofed; "" if it is not known."""
    here = f"gliofed {ours} on Python {platform.python_version()}"
    if not theirs:
        return ok("versions", f"{here}; the coordinator's is known with its first order.")
    if said := skew(site=ours, coordinator=theirs):
        return problem("versions", said, "Until then its orders are refused here, by code version.")
    return ok("versions", f"{here}; the coordinator's last order came from {theirs}.")


def _files(site: Site) -> list[Finding]:
    owner = machine_facts.owner(site.folder)
    found = [machine_facts.secret(site.folder / "keys" / name) for name in _SECRETS]
    extra = site.folder / "keys" / "service.token"
    if extra.exists():
        found.append(machine_facts.secret(extra))
    if site.settings.network.proxy_password_file:
        found.append(machine_facts.secret(site.folder / site.settings.network.proxy_password_file))
    return [
        *of_secrets(found),
        of_node_key(site),
        of_owners(machine_facts.strangers(site.folder), owner=owner),
        of_leftovers(machine_facts.leftovers(site.folder)),
    ]


def of_node_key(site: Site) -> Finding:
    """Judge whether the SuperNode's key is the one that this site enrolled with."""
    path = site.folder / "keys" / "node.key"
    asked = Statement.load(site.folder / "request.json", what="request").body.get("node_key")
    try:
        own = node_key(path)
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        return problem("keys", f"{path} cannot be read: {error}.", "Restore it from a backup.")
    if own == asked:
        return ok("keys", "The SuperNode's key is the one of request.json.")
    do = "Put the site's own node.key back from a backup; the coordinator lets no other in."
    return problem("keys", f"{path} is not the key that {site.name} enrolled with.", do)


def of_cohort(folder: Path, found: Cohort) -> Finding:
    """Judge what the data folder holds, by headers alone."""
    if not found.cases:
        more = f"; {len(found.refused)} were refused" if found.refused else ""
        return problem(
            "data", f"No case can be used in {folder}{more}.", "`gliofed-site check` says why."
        )
    patients = len({case.patient for case in found.cases})
    told = f"{len(found.cases)} cases of {patients} patients in {folder} ({found.layout})"
    if not any(case.label for case in found.cases):
        return warning("data", f"{told}, none with a mask.", "Only labelled cases are trained on.")
    if found.refused:
        return warning(
            "data", f"{told}; {len(found.refused)} refused.", "`gliofed-site check` says why."
        )
    return ok("data", f"{told}.")


def _books(site: Site) -> list[Finding]:
    facts = sum(1 for _ in site.journal.entries())
    with open_ledger(site) as ledger:
        charged, _ = ledger.head
    said = [ok("journal", f"The journal is whole ({facts} facts), the ledger too ({charged}).")]
    differs = site.journal.events("clock differs")
    if differs:
        last = differs[-1]
        said.append(
            ok("journal", f"The clock differed by {last.facts['ahead_s']:g} s on {last.time[:16]}.")
        )
    return said


def _model(site: Site) -> Finding:
    if not (site.folder / "models" / "active.json").exists():
        return ok("model", "No model is installed: `gliofed-site install` takes a release.")
    model = active_model(site)
    return ok("model", f"{model.card['name']} {model.card['version']} is active and verified.")


def _running(site: Site) -> list[Finding]:
    said = [of_unit(machine_facts.unit(UNIT))]
    try:
        runs = is_held(site.lock)
    except OSError as error:
        do = f"`chown` {site.lock} to the user that runs gliofed."
        return [*said, problem("running", f"{site.lock}: {error.strerror}.", do)]
    if not runs:
        do = "Start `gliofed-site run`, or the service."
        return [*said, warning("running", f"{site.name} does not run: no order comes.", do)]
    now = time.time()
    ran_s = now - site.lock.stat().st_mtime
    said.append(ok("running", f"{site.name} runs, for {duration(ran_s)}."))
    log = site.folder / "flower" / "log"
    said.append(
        of_contact(
            ran_s=ran_s,
            silent_s=now - site.contact.stat().st_mtime if site.contact.exists() else None,
            words=last_words(log / "supernode.log"),
        )
    )
    if (log / "worker.log").exists():
        ago_s = now - (log / "worker.log").stat().st_mtime
        said += of_worker(last_words(log / "worker.log"), ago_s=ago_s, ran_s=ran_s)
    return said


def of_contact(*, ran_s: float, silent_s: float | None, words: str) -> Finding:
    """Judge since when the coordinator has not answered; ``words`` are the SuperNode's last."""
    answered = "has never answered"
    if silent_s is not None:
        answered = f"last answered {duration(silent_s)} ago"
    if silent_s is not None and silent_s < _SILENT_S:
        return ok("contact", f"The coordinator {answered}.")
    if ran_s < _SILENT_S:
        return ok("contact", f"The coordinator {answered}; the site has only begun.")
    said = f" The SuperNode's last words: {words}" if words else ""
    return problem(
        "contact",
        f"The coordinator {answered}, though the site runs.{said}",
        "What stands in the way is named above; flower/log/supernode.log has the rest.",
    )


def of_worker(words: str, *, ago_s: float, ran_s: float) -> list[Finding]:
    """Judge the last words of the worker, if they are of this run and of the last hour."""
    level = _LEVEL.search(words)
    if level is None or ago_s > min(ran_s, _RECENT_S):
        return []
    told = f"The worker's last words, {duration(ago_s)} ago: {words}"
    do = "flower/log/worker.log has the rest; `gliofed-site audit` has the journal's facts."
    return [(warning if level[1] == "warning" else problem)("worker", told, do)]
