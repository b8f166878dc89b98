"""gliofed-site: join a consortium, decide about studies, run the site, watch the privacy budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client import running
from client import site as sites
from client.consent import check_policy
from client.imaging import preprocessing
from client.site import Site
from common import console
from common.errors import ConsentError
from common.identity import fingerprint
from common.processes import Supervisor, stop_on_signals
from common.protocol import StudyProtocol

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)

Folder = Annotated[Path, typer.Argument(help="The site's folder.", metavar="DIR")]
StudyName = Annotated[str, typer.Argument(help="The study's id.", metavar="STUDY")]
By = Annotated[str, typer.Option("--by", help="Who decides: a person's name.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command()
def request(
    folder: Folder,
    name: Annotated[str, typer.Option(help="The site's name in the consortium.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder with the patients' scans; DIR/data by default.")
    ] = None,
) -> None:
    """Make the site's folder and keys, and the request to send to the coordinator."""
    site = sites.request(folder, name=name, data=data)
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
    console.say(f"Joined {taken.consortium} at {taken.address}.")
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
    columns = ["study", "privacy", "rounds", "network", "expires", "decision", "policy"]
    console.show_table("Studies", columns, [[row[c] for c in columns] for row in rows])


@app.command()
def approve(folder: Folder, study: StudyName, by: By) -> None:
    """Approve a study: sign its digest, so that the site's worker carries out its orders."""
    site = Site.open(folder)
    protocol = site.protocol(study)
    check_policy(
        protocol,
        site.settings.policy,
        preprocessing_sha256=preprocessing.digest(protocol.preprocessing),
    )
    if not protocol.private:
        console.warn(f"{study} trains WITHOUT differential privacy.")
    site.decide(study, "approve", by=by)
    console.say(f"{by} approved {study}, protocol {protocol.digest[:16]}.")


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
def run(folder: Folder) -> None:
    """Run the site until stopped: the SuperNode and the worker."""
    site = Site.open(folder)
    supervisor = Supervisor(running.children(site), told=_told)
    stop_on_signals(supervisor)
    console.say(f"{site.name} connects to {site.kit.address}; Ctrl+C stops.")
    supervisor.run()


def main() -> None:
    console.run(app)


def _told(name: str, event: str, detail: str) -> None:
    console.say(f"{name} {event} ({detail})")


def _study_row(site: Site, name: str) -> dict[str, object]:
    protocol = site.protocol(name)
    decided = site.decision(name)
    return {
        "study": name,
        "title": protocol.title,
        "protocol": protocol.digest,
        "privacy": _privacy(protocol),
        "rounds": protocol.rounds,
        "network": protocol.network.name,
        "expires": str(protocol.expires),
        "decision": f"{decided[0].decision} by {decided[0].by}" if decided else "open",
        "policy": _policy(site, protocol),
    }


def _privacy(protocol: StudyProtocol) -> str:
    options = protocol.privacy
    if not protocol.private:
        return "NONE"
    return f"epsilon <= {options.max_epsilon:g} at delta {options.delta:g}"


def _policy(site: Site, protocol: StudyProtocol) -> str:
    try:
        check_policy(
            protocol,
            site.settings.policy,
            preprocessing_sha256=preprocessing.digest(protocol.preprocessing),
        )
    except ConsentError as error:
        return f"refused: {error.message}"
    return "allowed"


if __name__ == "__main__":
    main()
