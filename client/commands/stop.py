"""gliofed-site's commands for a site that runs: stop its work, take it up again."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from client.page.listen_address import noted_page, page_link
from client.site import stop as site_stop
from client.site.folder import Site
from common import console

app = typer.Typer()

Folder = Annotated[Path, typer.Argument(help="The site's folder.", metavar="DIR")]


@app.command()
def stop(
    folder: Folder,
    reason: Annotated[str, typer.Option(help="Why; it stays in your journal.")] = "",
) -> None:
    """Stop the site's work now: no order is carried out until `resume`, also after a restart.

    What is being trained ends before its next step, and nothing of it leaves. The coordinator hears
    that the hospital stopped its site, not why; a round goes on without it if the others suffice.
    """
    site = Site.open(folder)
    already = site_stop.halted(site)
    if already is not None:
        console.say(f"{site.name} is stopped already: {already}.")
        return
    site_stop.stop(site, by=getpass.getuser(), reason=reason)
    console.say(f"{site.name} is stopped. `gliofed-site resume {folder}` takes its work up again.")


@app.command()
def resume(folder: Folder) -> None:
    """Take the site's work up again after `stop`."""
    site = Site.open(folder)
    lifted = site_stop.resume(site, by=getpass.getuser())
    if lifted is None:
        console.say(f"{site.name} is not stopped.")
        return
    console.say(f"{site.name} takes orders again; it was stopped {lifted}.")


@app.command()
def page(folder: Folder) -> None:
    """Print another one-time link to the site's page."""
    site = Site.open(folder)
    console.say(page_link(site, noted_page(site)))


@app.command()
def status(
    folder: Folder,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of words.")] = False,
) -> None:
    """Say what the site does now, what left today, and when the coordinator last answered."""
    from client.page.site_status import Readings
    from client.page.status_text import in_words

    reading = Readings(folder, aside=lambda work: work()).now()
    if json:
        console.show_json(in_words(reading))
        return
    rows = [[key.replace("_", " "), _cell(value)] for key, value in in_words(reading).items()]
    console.show_table(reading.site, ["what", "now"], rows)


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {said}" for name, said in value.items()) or "-"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value) or "-"
