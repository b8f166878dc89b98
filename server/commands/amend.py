"""gliofed-server amend: a new version of a study's protocol, while the study runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common import console
from common.errors import ProtocolError, StateError
from common.study.amendment import amended, changes
from common.study.protocol import StudyProtocol
from server.consortium import provisioning
from server.consortium.provisioning import Consortium

app = typer.Typer()


def amend_study(consortium: Consortium, study: str, path: Path) -> tuple[StudyProtocol, bool]:
    """Sign the protocol at ``path`` as the version of ``study`` that follows the one in force.

    Returns it, and whether enough coordinators signed it: then it takes force before the next
    round, and each site takes part again once its people have approved it. Raises ProtocolError for
    what an amendment may not change, StateError if one waits already or the study is over.
    """
    now = consortium.study(study)
    if now.amendment is not None:
        raise StateError(
            f"An amendment of {study} waits already.",
            do="It takes force before the next round; for that the consortium must be served.",
            code="amendment",
        )
    if consortium.journal.events("study finished", study=study):
        raise StateError(f"{study} is finished.", do="Publish a new study to go on from its model.")
    start = now.protocol.initial_sha256
    draft = provisioning.frozen_protocol(consortium, path, initial_sha256=start)
    if draft.study != study or draft.supersedes:
        raise ProtocolError(
            f"{path} is no draft of an amendment of {study}.",
            do=f'Write `study = "{study}"`, and leave `supersedes` out: it is filled in.',
            code="amendment",
        )
    new = amended(now.protocol, draft)
    done = len(consortium.journal.events("round closed", study=study))
    if new.rounds <= done:
        raise ProtocolError(
            f"{done} rounds of {study} are closed: it cannot have {new.rounds}.",
            do=f"Set rounds above {done}; `gliofed-server stop` and `release` end a study early.",
            code="amendment",
        )
    return new, provisioning.sign_and_publish(consortium, new)


@app.command()
def amend(
    folder: Annotated[Path, typer.Argument(help="The coordinator's folder.", metavar="DIR")],
    study: Annotated[str, typer.Argument(help="The study's id.", metavar="STUDY")],
    protocol: Annotated[Path, typer.Argument(help="The whole protocol as it shall be, TOML.")],
) -> None:
    """Give a study a new version of its protocol; each hospital must approve it anew.

    It takes force before the next round. Rounds and privacy budget go on. Network, preparation and
    all that scores depend on cannot change, caps only fall: for the rest there are new studies.
    """
    consortium = Consortium.open(folder)
    before = consortium.study(study).protocol
    new, enough = amend_study(consortium, study, protocol)
    for key, (old, value) in changes(before, new):
        console.say(f"{key} was {old}, will be {value}.")
    if not enough:
        draft = consortium.folder / "drafts" / f"{study}.json"
        console.warn(
            f"{study}, version {new.version}, is a draft: {consortium.charter.needed} coordinators "
            f"must sign it. `gliofed-server cosign {draft} --key KEY`, then `countersigned`."
        )
        return
    console.say(
        f"{study} has version {new.version} from its next round on, protocol {new.digest[:16]}. "
        "Sites that have not approved it by then take no part until they do."
    )
