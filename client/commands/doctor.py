"""gliofed-site doctor: why something does not work, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.site.folder import Site
from common import console
from common.doctor import findings

app = typer.Typer()


@app.command()
def doctor(
    folder: Annotated[Path, typer.Argument(help="The site's folder.", metavar="DIR")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Test name, proxy, port, TLS, clock, disk, GPU, versions, keys, data and books in one go.

    It goes the way to the coordinator that the SuperNode goes, and reads what that last said. A
    step of training and a segmentation are tried on noise, which takes some seconds. Fails if there
    is a problem. Nothing is changed and nothing but one request to the coordinator's port leaves.
    """
    from client.views.diagnosis import diagnose

    site = Site.open(folder)
    with console.working("Looking"):
        found = diagnose(site)
    findings.show(f"{site.name} in {site.folder}", found, json=json)
    raise typer.Exit(1 if findings.failed(found) else 0)
