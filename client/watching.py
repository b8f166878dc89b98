"""gliofed-site's commands for a site that runs: stop its work, take it up again."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from client import halt
from client.site import Site
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
    already = halt.halted(site)
    if already is not None:
        console.say(f"{site.name} is stopped already: {already}.")
        return
    halt.stop(site, by=_person(), reason=reason)
    console.say(f"{site.name} is stopped. `gliofed-site resume {folder}` takes its work up again.")


@app.command()
def resume(folder: Folder) -> None:
    """Take the site's work up again after `stop`."""
    site = Site.open(folder)
    lifted = halt.resume(site, by=_person())
    if lifted is None:
        console.say(f"{site.name} is not stopped.")
        return
    console.say(f"{site.name} takes orders again; it was stopped {lifted}.")


def _person() -> str:
    """Return who is logged in at this machine, for the journal."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container whose user has no name
        return "unknown"
