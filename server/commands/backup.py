"""gliofed-server's commands for backups: make one, check one, restore one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common import console
from common.backup import folder_backup as backups
from common.backup.archive import read_passphrase
from common.errors import StateError
from common.records.journal import Journal
from server.consortium.provisioning import Consortium
from server.rounds.journal_heads import Heads

app = typer.Typer()

KEY = "keys/coordinator.key"
FOLDERS = ("keys", "sites", "studies", "drafts")

Folder = Annotated[Path, typer.Argument(help="The coordinator's folder.", metavar="DIR")]
Archive = Annotated[Path, typer.Argument(help="The backup.", metavar="FILE")]
Passphrase = Annotated[
    Path | None, typer.Option(help="Its first line is the passphrase of the backup.")
]
SignedBy = Annotated[
    str | None,
    typer.Option("--fingerprint", help="The coordinator's fingerprint, to refuse another's."),
]


def source(consortium: Consortium) -> backups.Source:
    """Return what a backup of the coordinator takes: everything but Flower's files."""
    name = consortium.settings.name
    return backups.Source(consortium.folder, "coordinator", name, name, KEY, FOLDERS)


def restore(
    path: Path, to: Path, *, passphrase: bytes | None = None, signed_by: str | None = None
) -> Consortium:
    """Restore a coordinator's backup into a new folder."""

    def finish(folder: Path, manifest: backups.Manifest) -> None:
        Journal(folder / "journal.jsonl").append("backup restored", backup=manifest.created)
        Consortium.open(folder).studies()

    backups.restore(
        path,
        to,
        kind="coordinator",
        key=KEY,
        finish=finish,
        passphrase=passphrase,
        signed_by=signed_by,
    )
    return Consortium.open(to)


@app.command()
def backup(
    folder: Folder,
    to: Annotated[Path, typer.Option(help="A new file, or a folder to put it in.")],
    passphrase_file: Passphrase = None,
) -> None:
    """Back up the coordinator, also while it serves: keys, sites, studies with rounds, journal.

    The journal is held while it is copied: a round that closes meanwhile waits. Flower's files are
    left out. The backup holds private keys.
    """
    consortium = Consortium.open(folder)
    made = backups.write(source(consortium), to, passphrase=read_passphrase(passphrase_file))
    console.say(
        f"Backed up {made.name}: {len(made.files)} files, {made.size} bytes. "
        f"Left out: {', '.join(made.left_out) or 'nothing'}."
    )
    if passphrase_file is None:
        console.warn("It holds private keys and is not encrypted: keep it as you keep those.")


@app.command("verify-backup")
def verify_backup(
    archive: Archive, passphrase_file: Passphrase = None, fingerprint: SignedBy = None
) -> None:
    """Read and check all of a backup; write nothing."""
    found = backups.verify(
        archive,
        kind="coordinator",
        passphrase=read_passphrase(passphrase_file),
        signed_by=fingerprint,
    )
    console.say(
        f"{archive} is whole: {found.name}, made on {found.created} by gliofed {found.version}, "
        f"{len(found.files)} files."
    )


@app.command("restore-backup")
def restore_backup(
    archive: Archive,
    to: Annotated[Path, typer.Option(help="The coordinator's folder, new or empty.")],
    passphrase_file: Passphrase = None,
    fingerprint: SignedBy = None,
) -> None:
    """Restore a coordinator from a backup that was checked, into a new folder.

    Its studies go on from there. If a site has seen what came after the backup they pause instead.
    """
    consortium = restore(
        archive, to, passphrase=read_passphrase(passphrase_file), signed_by=fingerprint
    )
    console.say(
        f"Restored {consortium.settings.name} to {consortium.folder}. Start `gliofed-server serve`."
    )
    console.warn("Never let the old folder serve again: there would be two coordinators.")


@app.command("accept-loss")
def accept_loss(
    folder: Folder,
    by: Annotated[str, typer.Option(help="Your name, for the journal.")],
    why: Annotated[str, typer.Option(help="The reason; the journal keeps it.")],
) -> None:
    """Go on from a restored backup although sites saw what came after it: that is lost.

    Rounds that were lost are done again, and cost their sites' patients again.
    """
    consortium = Consortium.open(folder)
    if not Heads(consortium.journal).restored:
        raise StateError(
            "This coordinator was not restored from a backup, or its loss was accepted already.",
            do="Nothing was changed.",
            code="accept-loss",
        )
    consortium.journal.append("loss accepted", by=by, why=why)
    console.say("Accepted. `gliofed-server launch` goes on with each study that paused.")
