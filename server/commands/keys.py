"""gliofed-server's commands for the years after the founding: keys, certificates, coordinators."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from common import console
from common.errors import StateError
from common.records.atomic_files import read_json, write_json
from common.trust.identity import Identity, Statement, fingerprint
from server.consortium import certificates, key_rotation
from server.consortium.provisioning import Consortium

app = typer.Typer()

Folder = Annotated[Path, typer.Argument(help="The coordinator's folder.", metavar="DIR")]
By = Annotated[str, typer.Option(help="Your name, for the journal.")]


@app.command("rotate-certificate")
def rotate_certificate(folder: Folder, by: By) -> None:
    """Replace the TLS certificate while everything runs; the authority stays the same."""
    key_rotation.renew_certificate(Consortium.open(folder), by=by)
    console.say("The certificate is replaced; a running gateway takes it up within seconds.")


@app.command()
def address(
    folder: Folder,
    host: Annotated[str, typer.Option(help="Another name or address for hospitals to call.")] = "",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Another TCP port for hospitals to call.")
    ] = 0,
    listen: Annotated[
        str,
        typer.Option(
            metavar="[ADDRESS:]PORT",
            help="Where the gateway listens on this machine, to which what hospitals call leads.",
        ),
    ] = "",
    by: By = "",
) -> None:
    """Show what hospitals call and where the gateway listens, or change either of them.

    A gateway that runs moves at once. What hospitals call is in a newer kit, which goes with the
    next order; a site uses it from its next start on. Until then the way before must lead here too.
    """
    consortium = Consortium.open(folder)
    before = consortium.address
    if host or port or listen:
        if not by:
            raise typer.BadParameter("Give your name, for the journal.", param_hint="--by")
        consortium = key_rotation.readdress(consortium, by=by, host=host, port=port, listen=listen)
    console.say(
        f"Hospitals call {consortium.address}; the gateway listens at {consortium.listening}."
    )
    if consortium.address != before and (sites := sorted(consortium.sites.without_kit())):
        console.say(
            f"Keep the way by {before} open until these sites have their newer kit and were "
            f"started anew: {', '.join(sites)}."
        )


@app.command("rotate-ca")
def rotate_ca(
    folder: Folder,
    by: By,
    wait: Annotated[bool, typer.Option(help="Wait until every site trusts the new one.")] = False,
    without: Annotated[
        list[str] | None, typer.Option(help="Do not wait for this site; it needs a kit as a file.")
    ] = None,
) -> None:
    """Replace the certification authority: first trusted beside the old one, then alone.

    Call it twice, or with --wait: the second step needs that every site has taken its newer kit,
    which travels with the orders of a study.
    """
    consortium = Consortium.open(folder)
    if not certificates.changing_authority(consortium.folder):
        key_rotation.begin_authority(consortium, by=by)
        if not wait:
            console.say("The sites learn of the new authority; `rotate-ca` again finishes it.")
            return
    left_out = frozenset(without or ())
    if wait and (waited_for := consortium.sites.without_kit() - left_out):
        console.say(f"Waiting until they trust the new authority: {', '.join(sorted(waited_for))}.")
    while wait and consortium.sites.without_kit() - left_out:
        time.sleep(0.5)
    key_rotation.finish_authority(consortium, by=by, without=left_out)
    console.say("The new authority signs, and the old one is trusted no more.")


@app.command("rotate-key")
def rotate_key(folder: Folder, by: By) -> None:
    """Hand over from this folder's coordinator key to a new one; sites follow with their orders."""
    consortium = Consortium.open(folder)
    old = fingerprint(consortium.identity.public)
    if key_rotation.rotate_key(consortium, by=by) is None:
        _awaits(consortium, "consortium-charter")
        return
    console.say(f"{old} handed over to {fingerprint(consortium.identity.public)}.")


@app.command()
def coordinators(
    folder: Folder,
    by: By,
    needed: Annotated[int, typer.Option(min=1, help="How many sign a study and a release.")],
    coordinator: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PUBLIC KEY (hex) of another coordinator; may be repeated."),
    ] = None,
) -> None:
    """Say who the coordinators are beside you, and how many must sign what counts.

    With --needed 2 sites refuse a study, and clinics a release, that one of them signed alone.
    """
    consortium = Consortium.open(folder)
    own = consortium.identity.public
    known = consortium.charter.coordinators
    wanted = {name: key for name, key in known.items() if key == own}
    for word in coordinator or []:
        name, _, key = word.partition("=")
        wanted[name.strip()] = key.strip()
    if key_rotation.change_coordinators(consortium, wanted, needed=needed, by=by) is None:
        _awaits(consortium, "consortium-charter")
        return
    console.say(f"{needed} of {len(wanted)} coordinators sign from now on.")


@app.command("coordinator-key")
def coordinator_key(
    key: Annotated[Path, typer.Argument(help="Where to keep the new key.", metavar="KEY")],
) -> None:
    """Make a key for another coordinator, on that person's own machine."""
    made = Identity.create(key)
    console.say(f"Public key: {made.public}\nFingerprint: {fingerprint(made.public)}")


@app.command()
def cosign(
    statement: Annotated[
        Path, typer.Argument(help="A draft, or a release's release.json.", metavar="FILE")
    ],
    key: Annotated[Path, typer.Option(help="Your own coordinator key.")],
) -> None:
    """Sign a draft or a release as another coordinator; the file gets your signature as well."""
    found = Statement.load(statement, what="draft")
    found.opened(kind=found.kind, signer=found.signer)
    found.cosigned(Identity.load(key)).save(statement)
    console.say(f"Signed the {found.kind} as well. Send {statement} back to the coordinator.")


@app.command()
def countersigned(
    folder: Folder,
    statement: Annotated[Path, typer.Argument(help="The cosigned draft.", metavar="FILE")],
) -> None:
    """Take a draft back that another coordinator cosigned; with enough signatures it counts."""
    consortium = Consortium.open(folder)
    console.say(
        key_rotation.take_countersigned(consortium, Statement.load(statement, what="draft"))
    )


@app.command()
def kit(
    folder: Folder,
    site: Annotated[str, typer.Argument(help="The site's name.", metavar="SITE")],
    out: Annotated[Path, typer.Option(help="Where to write the kit.")],
) -> None:
    """Write a site's newest kit to a file, for one that cannot get it with an order."""
    consortium = Consortium.open(folder)
    if consortium.sites.get(site) is None:
        raise StateError(f"There is no site {site} here.", do="See `gliofed-server status`.")
    key_rotation.renew_kit(consortium, site)
    write_json(out, read_json(consortium.sites.kit_path(site), what="kit"))
    console.say(f"Send {out} to {site}: `gliofed-site renew-kit DIR {out.name}`.")


@app.command("renew-site")
def renew_site(
    folder: Folder,
    request: Annotated[Path, typer.Argument(help="The renewal.json of the site.")],
    out: Annotated[Path, typer.Option(help="Where to write the site's newer kit.")],
) -> None:
    """Take a site's new keys from a file, for one that is not connected."""
    consortium = Consortium.open(folder)
    statement = Statement.load(request, what="new keys")
    name = str(statement.body.get("site"))
    consortium.sites.offer_renewal(name, statement)
    key_rotation.take_renewals(consortium)
    kit(folder, name, out)


def _awaits(consortium: Consortium, name: str) -> None:
    path = consortium.folder / "drafts" / f"{name}.json"
    console.say(
        f"It waits for another coordinator: let them `gliofed-server cosign {path} --key KEY`, "
        "then `gliofed-server countersigned` takes the file."
    )
