"""gliofed-server: found a consortium, admit hospitals, publish and run studies, release models."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from common import console
from common.doctor.findings import Finding
from common.errors import FederationError, StateError
from common.process import logs, supervisor_log
from common.process.child_processes import Supervisor, stop_on_signals
from common.records.atomic_files import (
    held,
    is_held,
    read_json,
    write_json,
    write_secret,
)
from common.study.drawn_weights import start_in_words
from common.study.starting_weights import read as read_weights
from common.trust.identity import fingerprint
from server.commands import supervisor as coordinator_supervisor
from server.commands.amend import app as amending
from server.commands.backup import app as keeping
from server.commands.doctor import app as doctor
from server.commands.keys import app as lifetime
from server.commands.simulate import simulate
from server.consortium import provisioning
from server.consortium.certificate_expiry import outlook
from server.consortium.provisioning import Consortium
from server.consortium.published_study import KEEP_ROUNDS
from server.release.release_folder import release as make_release
from server.release.revocation import revoke as revoke_model
from server.release.revocation import write_revocations
from server.reporting.dashboard.listen_address import Place
from server.reporting.health import check as check_health
from server.reporting.histogram_chart import draw_statistics
from server.reporting.markdown_report import headline, markdown
from server.reporting.study_chart import draw
from server.reporting.study_report import full_report, study_report
from server.rounds.weight_retention import spans, stock, tidy

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)

Folder = Annotated[Path, typer.Argument(help="The coordinator's folder.", metavar="DIR")]
StudyName = Annotated[str, typer.Argument(help="The study's id.", metavar="STUDY")]
SiteArgument = Annotated[str, typer.Argument(help="The site's name.", metavar="SITE")]
By = Annotated[str, typer.Option(help="Your name, for the journal.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command()
def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="The consortium's name.")],
    host: Annotated[str, typer.Option(help="Host name or address that hospitals connect to.")],
    port: Annotated[int, typer.Option(help="TCP port that hospitals connect to.")],
    listen: Annotated[
        str,
        typer.Option(
            metavar="[ADDRESS:]PORT",
            help="Where the gateway listens, if host and port are forwarded to it; `address` "
            "changes it later.",
        ),
    ] = "",
) -> None:
    """Found a consortium: make its keys and certificates in a new folder."""
    consortium = provisioning.init(folder, name=name, host=host, port=port, listen=listen)
    console.say(f"Founded {name}. Hospitals will connect to {consortium.address}.")
    if listen:
        console.say(
            f"The gateway will listen at {consortium.listening}: let port {port} of "
            f"{consortium.settings.host} be forwarded to it."
        )
    console.say(
        f"Your key's fingerprint, to read to hospitals by telephone: "
        f"{fingerprint(consortium.identity.public)}"
    )


@app.command()
def admit(
    folder: Folder,
    request: Annotated[Path, typer.Argument(help="The hospital's request.json.")],
    out: Annotated[Path, typer.Option(help="Where to write the kit for the hospital.")],
) -> None:
    """Admit a hospital: check its request and write the kit that it joins with."""
    kit = provisioning.admit(Consortium.open(folder), request, out)
    console.say(
        f"Admitted {kit.site} (key {fingerprint(kit.identity_key)}). Compare the fingerprint with "
        f"the hospital by telephone, then send it {out}."
    )


@app.command()
def study(
    folder: Folder,
    protocol: Annotated[Path, typer.Argument(help="The study protocol, TOML.")],
    initial: Annotated[
        Path | None, typer.Option(help="Starting weights (safetensors); else drawn from the seed.")
    ] = None,
) -> None:
    """Publish a study: validate, freeze and sign its protocol, and offer it to the sites.

    The protocol names the starting weights by their digest: hospitals approve them with it.
    """
    consortium = Consortium.open(folder)
    frozen = provisioning.publish(consortium, protocol, initial=initial)
    draft = consortium.folder / "drafts" / f"{frozen.study}.json"
    if draft.exists():
        console.warn(
            f"{frozen.study} is a draft: {consortium.charter.needed} coordinators must sign it. "
            f"`gliofed-server cosign {draft} --key KEY`, then `countersigned`."
        )
    else:
        console.say(f"Published {frozen.study}, protocol {frozen.digest[:16]}.")
    console.say(f"It starts from {start_in_words(frozen)}.")
    if not frozen.private:
        console.warn("This study trains WITHOUT differential privacy.")


@app.command()
def serve(
    folder: Folder,
    dashboard: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Show pages of the consortium here; any HOST but this machine itself is by TLS.",
        ),
    ] = None,
    metrics: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            metavar="PORT",
            help="With a dashboard: Prometheus metrics on this port of the loopback address.",
        ),
    ] = None,
    log_format: Annotated[
        logs.Form | None,
        typer.Option("--log-format", help="Log every fact: json or text lines."),
    ] = None,
) -> None:
    """Serve the consortium until stopped: SuperLink, gateway and executor, maybe a dashboard."""
    consortium = Consortium.open(folder)
    place = None if dashboard is None else Place.read(dashboard)
    if metrics is not None and place is None:
        raise typer.BadParameter("Metrics need a dashboard: give --dashboard too.")
    with held(consortium.lock, what=f"{folder} is served"):
        told, tick = supervisor_log.begin(
            "server",
            form=log_format,
            known=lambda: [
                *consortium.sites.names(),
                *(study.protocol.study for study in consortium.studies()),
            ],
            journal=consortium.journal,
        )
        coordinator_supervisor.probe(consortium, dashboard=place, metrics_port=metrics)
        supervisor = Supervisor(
            coordinator_supervisor.children(consortium, dashboard=dashboard, metrics_port=metrics),
            told=told,
        )
        stop_on_signals(supervisor)
        where = f"Serving {consortium.settings.name} at {consortium.address}"
        if consortium.settings.listen:
            where += f", listening at {consortium.listening}"
        console.say(f"{where}; Ctrl+C stops.")
        watch = coordinator_supervisor.CertificateWatch(consortium, say=console.warn)
        if place is not None:
            write_json(consortium.folder / "flower" / "dashboard.json", asdict(place))
            console.say(f"Dashboard, once, within an hour: {place.link(consortium.folder)}")
        supervisor.run(on_tick=lambda: _each(watch, tick))


@app.command("dashboard")
def dashboard_link(folder: Folder) -> None:
    """Print another one-time link to the dashboard that is served."""
    consortium = Consortium.open(folder)
    kept = consortium.folder / "flower" / "dashboard.json"
    if not is_held(consortium.lock) or not kept.exists():
        raise StateError(
            "No dashboard is served here.", do="Start `gliofed-server serve DIR --dashboard PORT`."
        )
    place = Place(**read_json(kept, what="dashboard's address"))
    console.say(place.link(consortium.folder))


@app.command()
def health(folder: Folder) -> None:
    """Fail unless orders can be given: gateway, SuperLink and executor with its threads are well.

    Fails once the certificate has expired, and warns before.
    """
    consortium = Consortium.open(folder)
    _warn(check_health(consortium))
    console.say(f"{consortium.settings.name} is served at {consortium.address}.")


@app.command()
def launch(
    folder: Folder,
    study: StudyName,
    initial: Annotated[
        Path | None,
        typer.Option(help="The study's starting weights once more, if they are not here any more."),
    ] = None,
    keep_rounds: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=f"Keep the weights of so many of the last rounds, and those of releases; 0 keeps "
            f"all. {KEEP_ROUNDS} if it was never said.",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow the study until it ends.")] = True,
) -> None:
    """Start a study, or go on with it after any interruption."""
    consortium = Consortium.open(folder)
    chosen = consortium.study(study)
    started = consortium.journal.events("study started", study=study)
    if started and initial is not None:
        console.warn("The study has started: its starting weights stay as they are.")
    elif initial is not None:
        chosen.give(read_weights(initial, chosen.protocol.network))
    elif not started:
        chosen.given()  # raises while somebody listens
    if not chosen.protocol.private:
        console.warn(f"{study} trains WITHOUT differential privacy.")
    if consortium.journal.events("study finished", study=study):
        if keep_rounds is not None:
            chosen.want("finished", keep_rounds=keep_rounds)
            tidy(chosen, consortium.journal)
        console.say(f"{study} is finished; `gliofed-server release` makes its model.")
        return
    seen = len(consortium.journal.events(study=study))
    kept = {} if keep_rounds is None else {"keep_rounds": keep_rounds}
    consortium.journal.append("study launched", study=study, **kept)
    chosen.want("running", keep_rounds=keep_rounds)
    if not is_held(consortium.lock):
        console.warn("Nothing serves this consortium now: start `gliofed-server serve`.")
    if wait:
        _follow(consortium, study, seen=seen)


@app.command()
def stop(folder: Folder, study: StudyName) -> None:
    """Stop a study after the step it is at; `launch` goes on with it."""
    consortium = Consortium.open(folder)
    chosen = consortium.study(study)
    if consortium.journal.events("study finished", study=study):
        raise StateError(f"{study} is finished.", do="There is nothing to stop.")
    consortium.journal.append("stop wanted", study=study)
    chosen.want("stopped")
    console.say(f"{study} stops; sites that are training finish what they do and are not heard.")


@app.command()
def status(
    folder: Folder,
    study: Annotated[str | None, typer.Argument(help="One study only.", metavar="STUDY")] = None,
    json: Json = False,
) -> None:
    """Show what the journal says: sites, studies, rounds, who took part and who did not."""
    consortium = Consortium.open(folder)
    studies = [consortium.study(study)] if study else consortium.studies()
    admitted = consortium.sites.names()
    suspended = consortium.sites.suspended()
    reports = [
        {
            **study_report(s, consortium.journal, admitted=admitted),
            "weights": asdict(stock(s, consortium.journal.events(study=s.protocol.study))),
        }
        for s in studies
    ]
    if json:
        value = {
            "consortium": consortium.settings.name,
            "sites": admitted,
            "suspended": suspended,
            "studies": reports,
        }
        console.show_json(value)
        return
    console.say(
        f"{consortium.settings.name} at {consortium.address}; sites: "
        f"{', '.join(admitted) or 'none yet'}"
    )
    _warn(outlook(consortium.folder))
    for site, why in suspended.items():
        console.warn(f"{site} is suspended: {why}.")
    for report in reports:
        _show(report)


@app.command()
def report(
    folder: Folder,
    study: StudyName,
    out: Annotated[
        Path | None, typer.Option(help="Write report.md, report.json and pictures here.")
    ] = None,
    json: Json = False,
) -> None:
    """Tell all of a study that the journal says: each round, each site, fairness, conduct."""
    consortium = Consortium.open(folder)
    told = full_report(
        consortium.study(study), consortium.journal, admitted=consortium.sites.names()
    )
    if out is not None:
        draw(told, out / "report.png")
        if told["statistics"] and told["statistics"]["statistics"]:
            draw_statistics(told, out / "cohorts.png")
        write_json(out / "report.json", told, mode=0o600)
        write_secret(out / "report.md", markdown(told, chart="report.png").encode())
    if json:
        console.show_json(told)
    elif out is not None:
        console.say(f"{headline(told)} Written to {out}.")
    else:
        console.say(markdown(told))


@app.command()
def export(
    folder: Folder,
    study: StudyName,
    tensorboard: Annotated[Path, typer.Option(help="TensorBoard's folder: one run a study.")],
) -> None:
    """Write a study's figures by round for TensorBoard."""
    from server.reporting.tensorboard import (
        write_events,  # tensorboardX loads torch where there is one
    )

    consortium = Consortium.open(folder)
    told = full_report(
        consortium.study(study), consortium.journal, admitted=consortium.sites.names()
    )
    count = write_events(told, tensorboard)
    console.say(f"{count} values written to {tensorboard / study}.")


@app.command()
def suspend(
    folder: Folder,
    site: SiteArgument,
    by: By,
    why: Annotated[str, typer.Option(help="The reason; every report shows it.")],
) -> None:
    """Leave a site out of every study from the next round on, until it is restored."""
    Consortium.open(folder).sites.suspend(site, by=by, why=why)
    console.say(f"{site} is out from the next round on; `restore` lets it in again.")


@app.command()
def restore(folder: Folder, site: SiteArgument, by: By) -> None:
    """Let a suspended site take part again from the next round on."""
    Consortium.open(folder).sites.restore(site, by=by)
    console.say(f"{site} takes part again from the next round on.")


@app.command("revoke-site")
def revoke_site(
    folder: Folder,
    site: SiteArgument,
    by: By,
    why: Annotated[str, typer.Option(help="The reason; the journal keeps it.")],
) -> None:
    """Put a site out for good: its next message is refused, its keys are never admitted again."""
    Consortium.open(folder).sites.revoke(site, by=by, why=why)
    console.say(
        f"{site} is out from its next message on; the others go on. It comes back with new keys "
        "only: `admit`."
    )


@app.command()
def release(
    folder: Folder,
    study: StudyName,
    out: Annotated[Path, typer.Option(help="The model's folder, made new.")],
    round_number: Annotated[
        int | None, typer.Option("--round", help="A closed round; the last one by default.")
    ] = None,
    average: Annotated[
        int, typer.Option(min=1, help="Of so many rounds, the last being that one, the mean.")
    ] = 1,
    expires: Annotated[
        dt.datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="The last day on which clinics may use it."),
    ] = None,
) -> None:
    """Write a signed model that sites can install: weights, card, protocol, signature."""
    consortium = Consortium.open(folder)
    last = None if expires is None else expires.date()
    if last is not None and last < dt.date.today():
        raise typer.BadParameter("That day is over.", param_hint="--expires")
    card = make_release(consortium, study, out, number=round_number, average=average, expires=last)
    console.say(f"Released {card['name']} {card['version']} (round {card['round']}) to {out}.")


@app.command()
def revoke(
    folder: Folder,
    study: StudyName,
    round_number: Annotated[int, typer.Option("--round", help="The released model's round.")],
    by: By,
    why: Annotated[str, typer.Option(help="The reason; every clinic that has it is told.")],
    out: Annotated[Path, typer.Option(help="Where to write the signed list for the sites.")],
) -> None:
    """Revoke a released model for good: sites that install the list refuse to use it."""
    consortium = Consortium.open(folder)
    revoked = revoke_model(consortium, study, number=round_number, by=by, why=why)
    for weights in revoked:
        console.say(f"Revoked the model of round {round_number} of {study}, weights {weights}.")
    _write_revocations(consortium, out)


@app.command()
def revocations(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="Where to write the signed list for the sites.")],
) -> None:
    """Write the signed list of all revoked models again."""
    _write_revocations(Consortium.open(folder), out)


app.command()(simulate)
app.add_typer(amending)
app.add_typer(lifetime)
app.add_typer(doctor)
app.add_typer(keeping)


def main() -> None:
    console.run(app, needs_posix="gliofed-server")


def _each(*actions: Callable[[], None] | None) -> None:
    for action in filter(None, actions):
        action()


def _warn(found: Finding) -> None:
    if found.level != "ok":
        console.warn(f"{found.what} {found.do}")


def _write_revocations(consortium: Consortium, out: Path) -> None:
    found = write_revocations(consortium, out)
    console.say(
        f"{out} lists {len(found.models)} revoked models. Send it to every site, which installs it "
        "with `gliofed-site revocations`: until then its clinic goes on using them."
    )


def _follow(consortium: Consortium, study: str, *, seen: int) -> None:
    """Print the study's facts after the first ``seen``, until it is finished, stopped or paused."""
    rounds = consortium.study(study).protocol.rounds
    with console.progress(f"{study}: rounds") as told:
        while True:
            entries = consortium.journal.events(study=study)
            told(f"{study}: rounds", sum(e.event == "round closed" for e in entries), rounds)
            for entry in entries[seen:]:
                words = console.brief(entry.facts)
                console.say(f"{entry.time[11:19]} {entry.event}{': ' if words else ''}{words}")
                if entry.event == "study paused":
                    raise FederationError(str(entry.facts["reason"]), code="paused")
                if entry.event in {"study finished", "study stopped"}:
                    return
            seen = len(entries)
            time.sleep(0.5)


def _show(report: dict[str, Any]) -> None:
    if not report["private"]:
        console.warn(f"{report['study']} trains WITHOUT differential privacy.")
    console.say(
        f"\n{report['study']}: {report['title']}\n"
        f"state {report['state']}, rounds {report['rounds_closed']}/{report['rounds_planned']}, "
        f"approved by {', '.join(report['approved']) or 'nobody yet'}"
        + (f"; not by {', '.join(report['not_approved'])}" if report["not_approved"] else "")
    )
    for site, reason in report["declined"].items():
        console.say(f"{site} declined: {reason}")
    rows = [
        [
            r["round"],
            ", ".join(r["took_part"]),
            ", ".join(f"{site} ({why})" for site, why in r["dropped"].items()) or "-",
            float(r["seconds"]),
        ]
        for r in report["rounds"]
    ]
    if rows:
        console.show_table("Rounds", ["round", "took part", "dropped out", "seconds"], rows)
    scores = [
        [
            e["round"],
            site,
            *(console.figure(e["dice"].get(site, {}).get(r)) for r in ("WT", "TC", "ET")),
            _noise(e, site),
        ]
        for e in report["evaluations"]
        for site in sorted({*e["dice"], *report["approved"]})
    ]
    if scores:
        title = "Dice on the sites' validation patients"
        console.show_table(title, ["round", "site", "WT", "TC", "ET", "noise"], scores)
    spent = [
        [site, float(s["epsilon"]), f"{s['delta']:g}", s["steps"]]
        for site, s in report["privacy_spent"].items()
    ]
    if spent:
        console.show_table(
            "Privacy spent per patient", ["site", "epsilon", "delta", "steps"], spent
        )
    for site, seen in report["withdrawn"].items():
        console.say(
            f"{site}: patients who withdrew since were in rounds {', '.join(map(str, seen))}"
        )
    for site, fork in report["journal_forks"].items():
        console.warn(f"{site}: {fork}.")
    weights = report["weights"]
    if weights["on_disk"] or weights["removed"]:
        console.say(_kept(weights))
    if report["last_problem"]:
        console.warn(str(report["last_problem"]))


def _noise(evaluation: dict[str, Any], site: str) -> str:
    """Return what noise a site's scores hold, or why there are none."""
    if site in evaluation["dice_noise"]:
        return f"about {evaluation['dice_noise'][site]:.3f}"
    if site in evaluation["dice"]:
        return "exact"
    return str(evaluation["dropped"].get(site, "not reported"))


def _kept(weights: dict[str, Any]) -> str:
    """Say of which rounds the weights are here, and of which they were removed."""
    text = f"Weights on the disk: rounds {spans(weights['on_disk'])} (0 is the start)"
    if weights["released"]:
        text += f", of which a release has {spans(weights['released'])}"
    if weights["removed"]:
        text += f"; removed: {spans(weights['removed'])}"
    kept = weights["keep_rounds"]
    return f"{text}. " + (f"The last {kept} are kept." if kept else "All are kept.")


if __name__ == "__main__":
    main()
