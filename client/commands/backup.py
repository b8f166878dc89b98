"""gliofed-site's commands for backups: make one, check one, restore one, settle what came after."""

from __future__ import annotations

import json
import tomllib
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from client.site import stop
from client.site.folder import Site
from common import console
from common.backup import folder_backup as backups
from common.backup.archive import read_passphrase
from common.errors import StateError
from common.records.atomic_files import held, write_bytes
from common.trust.identity import Statement

app = typer.Typer()

KEY = "keys/identity.key"
FOLDERS = ("keys", "studies", "outbox", "models")

Folder = Annotated[Path, typer.Argument(help="The site's folder.", metavar="DIR")]
Archive = Annotated[Path, typer.Argument(help="The backup.", metavar="FILE")]
Passphrase = Annotated[
    Path | None, typer.Option(help="Its first line is the passphrase of the backup.")
]
SignedBy = Annotated[
    str | None, typer.Option("--fingerprint", help="The site's fingerprint, to refuse another's.")
]


def source(site: Site) -> backups.Source:
    """Return what a backup of ``site`` takes: no image, no cache, none of Flower's files."""
    joined = (site.folder / "kit.json").exists()
    consortium = site.kit.consortium if joined else ""
    return backups.Source(site.folder, "site", site.name, consortium, KEY, FOLDERS)


def restore(
    path: Path,
    to: Path,
    *,
    data: Path | None,
    passphrase: bytes | None = None,
    signed_by: str | None = None,
) -> Site:
    """Restore a site's backup into a new folder; ``data`` is where its scans are now."""
    from client.study import restore_reconciliation

    def finish(folder: Path, manifest: backups.Manifest) -> None:
        if data is not None:
            _set_data(folder / "site.toml", data)
        (folder / "retired.json").unlink(missing_ok=True)  # a backup of an old folder, made again
        restore_reconciliation.begin(folder, backup=manifest.created)
        Site.open(folder)

    backups.restore(
        path, to, kind="site", key=KEY, finish=finish, passphrase=passphrase, signed_by=signed_by
    )
    return Site.open(to)


@app.command()
def backup(
    folder: Folder,
    to: Annotated[Path, typer.Option(help="A new file, or a folder to put it in.")],
    passphrase_file: Passphrase = None,
    retire: Annotated[
        bool,
        typer.Option(
            "--retire", help="To move the site: this folder never works again. Not while it runs."
        ),
    ] = False,
) -> None:
    """Back up the site, also while it runs: settings, keys, ledger, journal, studies, models.

    Scans, prepared cases and Flower's files are left out. The backup holds private keys.
    """
    site = Site.open(folder)
    passphrase = read_passphrase(passphrase_file)
    with held(site.lock, what=f"{site.name} is running") if retire else nullcontext():
        made = backups.write(source(site), to, passphrase=passphrase)
        if retire:
            stop.retire(site)
    console.say(
        f"Backed up {made.name}: {len(made.files)} files, {made.size} bytes. "
        f"Left out: {', '.join(made.left_out) or 'nothing'}."
    )
    if retire:
        console.say(f"{site.folder} is retired: run {site.name} where the backup is restored.")
    if passphrase_file is None:
        console.warn("It holds private keys and is not encrypted: keep it as you keep those.")


@app.command("verify-backup")
def verify_backup(
    archive: Archive, passphrase_file: Passphrase = None, fingerprint: SignedBy = None
) -> None:
    """Read and check all of a backup; write nothing."""
    found = backups.verify(
        archive, kind="site", passphrase=read_passphrase(passphrase_file), signed_by=fingerprint
    )
    console.say(
        f"{archive} is whole: {found.name} in {found.consortium or 'no consortium'}, made on "
        f"{found.created} by gliofed {found.version}, {len(found.files)} files."
    )


@app.command("restore-backup")
def restore_backup(
    archive: Archive,
    to: Annotated[Path, typer.Option(help="The site's folder, new or empty.")],
    data: Annotated[
        Path | None, typer.Option(help="Where the scans are on this machine, if elsewhere now.")
    ] = None,
    passphrase_file: Passphrase = None,
    fingerprint: SignedBy = None,
) -> None:
    """Restore a site from a backup that was checked, into a new folder.

    Nothing is trained there until it is settled what the site may have spent after the backup: the
    coordinator's next order brings an account, which is charged.
    """
    site = restore(
        archive,
        to,
        data=data,
        passphrase=read_passphrase(passphrase_file),
        signed_by=fingerprint,
    )
    console.say(f"Restored {site.name} to {site.folder}; its scans are expected in {site.data}.")
    if not site.data.exists():
        console.warn(f"{site.data} is not there: correct data in {site.folder / 'site.toml'}.")
    console.warn("Never let the old folder run again: two copies would each spend the budget.")


@app.command()
def settle(
    folder: Folder,
    by: Annotated[str, typer.Option("--by", help="Who settles: a person's name.")],
    rounds: Annotated[
        list[str] | None,
        typer.Option(metavar="STUDY=N", help="At most N rounds were trained since; repeatable."),
    ] = None,
    protocol: Annotated[
        Path | None, typer.Option(help="First take this signed protocol.json of a study.")
    ] = None,
) -> None:
    """Charge by hand what a restored site may have trained after its backup.

    Not needed while the coordinator's journal is whole: its next order brings the account.
    """
    from client.study import restore_reconciliation

    site = Site.open(folder)
    if protocol is not None:
        site.keep_protocol(Statement.load(protocol, what="study protocol"))
    if rounds is None and protocol is not None:
        console.say("Took the protocol; the coordinator's next order settles the rest.")
        return
    wanted: dict[str, int] = {}
    for word in rounds or []:
        study, _, count = word.partition("=")
        if not count.isdigit():
            raise typer.BadParameter(f"{word} is not STUDY=N", param_hint="--rounds")
        wanted[study] = int(count)
    if not wanted:
        raise typer.BadParameter("say STUDY=0 if nothing was trained", param_hint="--rounds")
    charged = restore_reconciliation.charge_by_hand(site, wanted, by=by)
    steps = sum(one["steps"] for one in charged)
    console.say(f"Charged {steps} steps. {site.name} works again with its next order.")


def _set_data(path: Path, data: Path) -> None:
    """Change the line of ``site.toml`` that says where the scans are; raise StateError."""
    lines = path.read_text(encoding="utf-8").splitlines()
    table = next((n for n, line in enumerate(lines) if line.startswith("[")), len(lines))
    own = [n for n in range(table) if lines[n].split("=")[0].strip() == "data"]
    value: Any = json.dumps(str(data.resolve()), ensure_ascii=False)
    if len(own) == 1:
        lines[own[0]] = f"data = {value}"
    text = "\n".join(lines) + "\n"
    if len(own) != 1 or tomllib.loads(text)["data"] != str(data.resolve()):
        raise StateError(
            "The line with data in the restored site.toml cannot be changed.",
            do="Restore without --data and correct it by hand.",
            code="restored-data",
        )
    write_bytes(path, text.encode(), mode=0o600)
