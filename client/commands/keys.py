"""gliofed-site's commands for the years after joining: new keys, a newer kit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.site.folder import Site
from common import console
from common.foreign_text import printable
from common.records.atomic_files import read_json
from common.trust.identity import Statement, fingerprint

app = typer.Typer()

Folder = Annotated[Path, typer.Argument(help="The site's folder.", metavar="DIR")]
By = Annotated[str, typer.Option("--by", help="Who does it: a person's name.")]


@app.command("rotate-keys")
def rotate_keys(folder: Folder, by: By) -> None:
    """Make new keys; the next reply tells the coordinator, and its next order lets them be used."""
    from client.site import key_renewal

    site = Site.open(folder)
    statement = key_renewal.begin(site, by=by)
    console.say(
        f"New keys wait (fingerprint {fingerprint(statement.signer)}). A running study takes them "
        f"over by itself; else send {site.folder / 'renewal.json'} to the coordinator."
    )


@app.command("renew-kit")
def renew_kit(
    folder: Folder,
    kit: Annotated[Path, typer.Argument(help="What `gliofed-server kit` wrote.")],
) -> None:
    """Take a newer kit from a file, where no order could bring it."""
    from client.site import key_renewal  # it loads Flower, for which no other command shall wait

    value = read_json(kit, what="newer kit")
    site = key_renewal.take_kit(
        Site.open(folder),
        Statement.loads(str(value.get("kit"))),
        [Statement.loads(one) for one in value.get("charters", [])],
    )
    console.say(f"{site.name} uses the newer kit of {printable(site.kit.consortium)}.")
