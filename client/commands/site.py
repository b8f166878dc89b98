"""gliofed-site: join a consortium, decide about studies, run the site, watch the privacy budget."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from client.commands import supervisor as site_supervisor
from client.commands.backup import app as keeping
from client.commands.doctor import app as doctor
from client.commands.experiments import app as practice
from client.commands.keys import app as upkeep
from client.commands.privacy import app as oversight
from client.commands.series import app as choosing
from client.commands.stop import app as watching
from client.page.listen_address import note_page, page_link, read_place
from client.privacy.ledger import Ledger
from client.site import folder as sites
from client.site.folder import Site
from client.site.stop import check_not_retired, halted
from client.study.consent import WITHOUT_PRIVACY, check_policy
from common import console
from common.errors import CaseError, ConsentError, StateError
from common.foreign_text import printable
from common.process import logs, supervisor_log
from common.process.child_processes import Supervisor, stop_on_signals
from common.records.atomic_files import held, is_held
from common.study.amendment import changes
from common.study.drawn_weights import start_in_words
from common.study.protocol import StudyProtocol, preprocessing_digest
from common.trust.identity import fingerprint
from common.web.listen_address import Place

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)

app.add_typer(oversight)
app.add_typer(practice)
app.add_typer(choosing)
app.add_typer(upkeep)
app.add_typer(doctor)
app.add_typer(watching)
app.add_typer(keeping)

Folder = Annotated[Path, typer.Argument(help="The site's folder.", metavar="DIR")]
StudyName = Annotated[str, typer.Argument(help="The study's id.", metavar="STUDY")]
By = Annotated[str, typer.Option("--by", help="Who decides: a person's name.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


LogFormat = Annotated[
    logs.Form | None,
    typer.Option("--log-format", help="Log every fact, without patients: json or text lines."),
]


@app.command()
def request(
    folder: Folder,
    name: Annotated[str, typer.Option(help="The site's name in the consortium.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder with the patients' scans; DIR/data by default.")
    ] = None,
) -> None:
    """Make the site's folder and keys, and the request to send to the coordinator."""
    site = sites.request(folder, name=name, data=data, make_ledger=Ledger.create)
    console.say(
        f"Send {site.folder / 'request.json'} to the coordinator. Your fingerprint, to read to "
        f"them by telephone: {fingerprint(site.identity.public)}"
    )


@app.command()
def join(
    folder: Folder,
    kit: Annotated[Path, typer.Argument(help="The kit that the coordinator sent.")],
    coordinator: Annotated[
        str | None, typer.Option(help="The coordinator's fingerprint, heard by telephone.")
    ] = None,
) -> None:
    """Join the consortium with the kit that the coordinator sent."""
    taken = sites.join(Site.open(folder), kit, coordinator=coordinator)
    console.say(f"Joined {printable(taken.consortium)} at {taken.address}.")
    if coordinator is None:
        console.say(
            f"Its fingerprint is {fingerprint(taken.coordinator_key)}: compare it with the "
            f"coordinator by telephone before you approve a study."
        )


@app.command()
def studies(folder: Folder, json: Json = False) -> None:
    """List the studies that were offered, what they would cost and what was decided."""
    site = Site.open(folder)
    rows = [_study_row(site, name) for name in site.study_names()]
    if json:
        console.show_json(rows)
        return
    if not rows:
        console.say("No study was offered yet; offers arrive while `gliofed-site run` is running.")
        return
    columns = ["study", "version", "privacy", "rounds", "network", "expires", "decision", "policy"]
    console.show_table("Studies", columns, [[row[c] for c in columns] for row in rows])
    for row in rows:
        protocol = site.protocol(str(row["study"]))
        console.say(f"{protocol.study} starts from {start_in_words(protocol)}.")
        for line in _changed(site, protocol):
            console.say(line)
        if not row["private"]:
            console.warn(f"{row['study']} trains WITHOUT differential privacy.")


@app.command()
def approve(
    folder: Folder,
    study: StudyName,
    by: By,
    digest: Annotated[
        str,
        typer.Option(
            help="Of the protocol that you have read, as `plan` prints it; the first 8 letters do."
        ),
    ] = "",
) -> None:
    """Approve a study: sign its digest, so that the site's worker carries out its orders."""
    from client.views.budget import patients_now

    site = Site.open(folder)
    protocol = site.protocol(study)
    sites.check_digest(protocol, digest)
    check_policy(
        protocol,
        site.settings.policy,
        preprocessing_sha256=preprocessing_digest(protocol.preprocessing),
        patients=len(patients_now(site, protocol)),
    )
    if not protocol.private:
        console.warn(f"{study} trains WITHOUT differential privacy. {WITHOUT_PRIVACY}")
    for line in _changed(site, protocol):
        console.say(line)
    site.decide(study, "approve", by=by, digest=protocol.digest)
    console.say(
        f"{by} approved {study}, protocol {protocol.digest[:16]}. "
        f"It starts from {start_in_words(protocol)}."
    )
    would = _would_spend(site, protocol)
    if would is not None:
        console.say(
            f"Its {protocol.rounds} rounds spend epsilon {would:.2f} per patient; it ends here "
            f"before it passes {protocol.privacy.max_epsilon:g}."
        )


@app.command()
def refuse(
    folder: Folder,
    study: StudyName,
    by: By,
    why: Annotated[str, typer.Option(help="The reason; the coordinator will read it.")],
) -> None:
    """Refuse a study, also one that was approved before; its orders are refused from now on."""
    Site.open(folder).decide(study, "refuse", by=by, why=why)
    console.say(f"{by} refused {study}: {why}")


@app.command()
def check(
    folder: Folder,
    spacing_mm: Annotated[
        float, typer.Option(min=0.5, max=6.0, help="Voxel size to prepare for, as a protocol does.")
    ] = 1.0,
    raw: Annotated[
        bool, typer.Option("--raw", help="Prepare for studies that take whole, unregistered heads.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Write a page with pictures of every case here. It stays with you."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cases at a time; as many as the machine can hold.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if a case is refused or doubtful.")
    ] = False,
    json: Json = False,
) -> None:
    """Read and prepare every case; say what cannot be used, what is doubtful, missing, and why.

    Prepared cases stay in DIR/cache for training; cache_gb in site.toml limits what they take.
    """
    from client.views.cohort_check import check_site
    from common.study.protocol import PreprocessingOptions

    site = Site.open(folder)
    with console.progress("Preparing cases") as told:
        found = check_site(
            site,
            PreprocessingOptions(spacing_mm=spacing_mm, input="raw" if raw else "brats"),
            report=report,
            workers=workers,
            progress=functools.partial(told, "Preparing cases"),
        )
    doubts = len({one["case"] for one in found["remarks"] if one["kind"] == "doubt"})
    failed = not found["cases"] or (strict and (doubts or found["refused"]))
    if json:
        console.show_json(found)
        raise typer.Exit(CaseError.exit_code if failed else 0)
    _show_check(site, found)
    if not found["cases"]:
        raise CaseError(
            f"None of the cases in {found['data']} can be used.",
            do="The reasons are listed above.",
            code="case-none",
        )
    if failed:
        raise CaseError(
            f"{len(found['refused'])} cases were refused and {doubts} are doubtful.",
            do="Mend them, or leave them out with a manifest.",
            code="case-doubtful",
        )


@app.command()
def run(
    folder: Folder,
    page: Annotated[
        str | None,
        typer.Option(metavar="[HOST:]PORT", help="Show the site's page here, on this machine."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="[HOST:]PORT", help="Prometheus metrics, without a password."),
    ] = None,
    log_format: LogFormat = None,
) -> None:
    """Run the site until stopped: the SuperNode and the worker, maybe a page and metrics."""
    site = Site.open(folder)
    check_not_retired(site)
    shown = None if page is None else read_place(page)
    figures = None if metrics is None else Place.read(metrics, what="metrics")
    with held(site.lock, what=f"{site.name} is running"):
        site.lock.touch()  # since when it runs
        told, tick = supervisor_log.begin(
            "site",
            form=log_format,
            known=lambda: [site.name, *site.study_names()],
            journal=site.journal,
            site=site.name,
        )
        supervisor = Supervisor(
            site_supervisor.children(site, page=shown, metrics=figures), told=told
        )
        stop_on_signals(supervisor)
        proxy = site.proxy(os.environ)
        way = "" if proxy is None else f" through the proxy {proxy} ({proxy.source})"
        console.say(f"{site.name} connects to {site.kit.address}{way}; Ctrl+C stops.")
        stopped = halted(site)
        if stopped is not None:
            console.warn(f"It carries out no order: stopped {stopped}.")
        note_page(site, shown)
        if shown is not None:
            console.say(f"Page, once, within an hour: {page_link(site, shown)}")
        supervisor.run(on_tick=tick)


@app.command()
def health(folder: Folder) -> None:
    """Fail unless the site runs here; say so if the hospital has stopped it."""
    site = Site.open(folder)
    if not is_held(site.lock):
        raise StateError(
            f"{site.name} does not run.", do="Start `gliofed-site run`.", code="not-running"
        )
    stopped = halted(site)
    if stopped is not None:
        console.warn(f"{site.name} runs, but carries out no order: stopped {stopped}.")
        return
    console.say(f"{site.name} runs.")


@app.command()
def install(
    folder: Folder,
    model: Annotated[Path, typer.Argument(help="The folder of a released model.")],
    activate: Annotated[
        bool,
        typer.Option("--activate", help="Make it the active model whatever it scores here."),
    ] = False,
    json: Json = False,
) -> None:
    """Verify a released model, score and calibrate it on this site's patients, and activate it.

    It takes the active model's place unless it scores worse here. Fewer than three test patients
    cannot tell: then --activate decides. Fewer than three validation patients calibrate nothing.
    """
    from client.commands import tables
    from client.study.model_installation import install as take

    with console.working("Scoring and calibrating on the site's own patients"):
        found = take(Site.open(folder), model, insist=activate)
    if json:
        console.show_json(found)
    else:
        tables.show_installed(found)


@app.command()
def serve(
    folder: Folder,
    host: Annotated[str, typer.Option(help="Where to listen; beyond loopback with TLS alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8001,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Prometheus metrics on 127.0.0.1; 0 for none.")
    ] = 8002,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="The token, mode 0600; made in DIR/keys/service.token by default."),
    ] = None,
    queue: Annotated[int, typer.Option(min=1, max=256, help="How many may wait.")] = 8,
    max_message_mb: Annotated[
        int, typer.Option(min=16, max=2047, help="Largest request. BraTS volumes take 143 MB.")
    ] = 512,
    watch: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|URL", help="Segment each new study here, or in this Orthanc."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where --watch writes results.")] = None,
    quiet_s: Annotated[
        float, typer.Option(min=0, help="A watched study is complete when unchanged for so long.")
    ] = 60.0,
    send: Annotated[
        bool, typer.Option("--send", help="Store results of --watch URL in that Orthanc.")
    ] = False,
    past: Annotated[
        bool, typer.Option("--past", help="Begin --watch URL with what that Orthanc has already.")
    ] = False,
    log_format: LogFormat = None,
) -> None:
    """Segment for the clinic as a gRPC service (Open Inference Protocol v2), until stopped.

    The active model is kept warm; `gliofed-site install` exchanges it while the service runs.
    SIGTERM or Ctrl+C finishes what was begun. --watch works unattended, each study once.
    """
    from client.clinic import service_process as service
    from client.clinic.service.grpc_server import Terms
    from client.site.execution import execution_for

    if watch is not None and out is None:
        raise typer.BadParameter("say where --watch writes results", param_hint="--out")
    if send and not (watch or "").startswith(("http://", "https://")):
        raise typer.BadParameter("only an Orthanc that is watched can be sent to")
    site = Site.open(folder)
    form = log_format or logs.form_named()
    if form is not None:
        logs.configure("service", known=lambda: [site.name, *site.study_names()], form=form)
    watched = service.Watch(watch, out, quiet_s, send, past) if watch and out else None
    with service.serving(
        site,
        execution=execution_for(site.settings.machine),
        terms=Terms(host, port, queue, max_message_mb),
        access=service.Access(certificate, key, token_file),
        metrics_port=metrics_port,
        watch=watched,
        told=lambda warm: console.say(f"Model {warm.name} {warm.version} is ready."),
    ) as running:
        console.say(f"Serving at {host}:{running.port}; the token is in {running.token}.")
        service.until_stopped()
        console.say("Finishing what was begun.")


@app.command()
def revocations(
    folder: Folder,
    path: Annotated[Path, typer.Argument(help="The coordinator's list of revoked models.")],
) -> None:
    """Install the coordinator's signed list of models that must not be used any more."""
    from client.clinic.revoked_models import take_revocations

    found = take_revocations(Site.open(folder), path)
    for one in found.models:
        console.say(f"{one.study}, round {one.round}: revoked on {one.time[:10]}: {one.why}")
    console.say(
        f"{len(found.models)} models are revoked here; the clinic refuses them from now on."
    )


def main() -> None:
    console.run(app, needs_posix="gliofed-site")


def _show_check(site: Site, found: dict[str, Any]) -> None:
    rows: list[list[object]] = [
        [key.replace("_", " "), found[key]]
        for key in (
            "data",
            "layout",
            "cases",
            "patients",
            "labelled_cases",
            "withdrawn_patients",
            "cases_without_tumour",
            "cases_that_lack_sequences",
        )
    ]
    rows += [[key, value] for key, value in found["machine"].items()]
    console.show_table(site.name, ["looked at", "found"], rows)
    if found["refused"]:
        refused = [[r["case"], r["file"], r["reason"]] for r in found["refused"]]
        console.show_table("Refused", ["case", "file", "reason"], refused)
    if found["remarks"]:
        rows = [[one["case"], one["kind"], one["text"]] for one in found["remarks"]]
        console.show_table("To look at", ["case", "kind", "what"], rows)
    if found["report"]:
        console.say(f"The page with pictures is {found['report']}. It must not leave the hospital.")


def _study_row(site: Site, name: str) -> dict[str, object]:
    protocol = site.protocol(name)
    decided = site.decision(name)
    would = _would_spend(site, protocol)
    return {
        "study": name,
        "title": printable(protocol.title),
        "version": protocol.version,
        "protocol": protocol.digest,
        "private": protocol.private,
        "would_spend": would,
        "privacy": _privacy(protocol, would),
        "rounds": protocol.rounds,
        "network": protocol.network.name,
        "initial_sha256": protocol.initial_sha256,
        "expires": str(protocol.expires),
        "decision": _decision(decided[0], protocol) if decided else "open",
        "policy": _policy(site, protocol),
    }


def _decision(decision: sites.Decision, protocol: StudyProtocol) -> str:
    said = f"{decision.decision} by {decision.by}"
    return said if decision.protocol == protocol.digest else f"open (version before: {said})"


def _changed(site: Site, protocol: StudyProtocol) -> list[str]:
    """Say what an amendment changed since the version before."""
    before = site.version_before(protocol.study)
    if before is None:
        return []
    return [
        f"{protocol.study}, version {protocol.version}: {key} was {printable(str(old))}, is "
        f"{printable(str(new))}."
        for key, (old, new) in changes(before, protocol)
    ]


def _privacy(protocol: StudyProtocol, would: float | None) -> str:
    options = protocol.privacy
    if would is None:
        return "NONE"
    return f"epsilon {would:.2f}, at most {options.max_epsilon:g} (delta {options.delta:g})"


def _would_spend(site: Site, protocol: StudyProtocol) -> float | None:
    """Return the epsilon of all rounds of the study, if each is done once; None without privacy."""
    if not protocol.private:
        return None
    from client.privacy.budget_caps import accountant, mechanism

    steps = protocol.rounds * protocol.training.steps_per_round
    taken = [(mechanism(protocol), steps)]
    return round(accountant(site).epsilon(taken, protocol.privacy.delta), 3)


def _policy(site: Site, protocol: StudyProtocol) -> str:
    try:
        check_policy(
            protocol,
            site.settings.policy,
            preprocessing_sha256=preprocessing_digest(protocol.preprocessing),
        )
    except ConsentError as error:
        return f"refused: {error.message}"
    return "allowed"


if __name__ == "__main__":
    main()
