"""gliofed-server doctor: why something does not work, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common import console
from common.doctor import findings
from server.consortium.provisioning import Consortium
from server.reporting.diagnosis import diagnose

app = typer.Typer()


@app.command()
def doctor(
    folder: Annotated[Path, typer.Argument(help="The coordinator's folder.", metavar="DIR")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Test doors, name, certificates, sites, studies, journal, disk, keys and versions in one go.

    Fails if there is a problem. Nothing is changed.
    """
    consortium = Consortium.open(folder)
    with console.working("Looking"):
        found = diagnose(consortium)
    findings.show(f"{consortium.settings.name} in {consortium.folder}", found, json=json)
    raise typer.Exit(1 if findings.failed(found) else 0)
