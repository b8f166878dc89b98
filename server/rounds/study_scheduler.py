"""Which study runs now: the loop behind every round.

A study that `launch` wants runs until it is finished, stopped or stuck; while none is wanted,
published studies are offered to the sites, so that hospitals see and approve them before launch.

When the disk is full or the journal cannot be written, nothing that needs it is done: the study
pauses, which is said as soon as it can be written down, and what was not written is done again
after `launch`.
"""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections.abc import Callable
from typing import Final

from common.errors import FederationError, GliofedError, StateError
from common.study.protocol import parse_protocol
from server.consortium import certificate_expiry
from server.consortium.provisioning import Consortium
from server.consortium.published_study import Study
from server.rounds.fleet import Fleet
from server.rounds.orders import AmendedError, StoppedError
from server.rounds.round_loop import Rounds

OFFER_EVERY_S: Final = 2.0


def schedule(
    consortium: Consortium, fleet: Fleet, *, ended: Callable[[], bool] = lambda: False
) -> None:
    """Run wanted studies and offer published ones until ``ended``; call errors pass through."""
    told: dict[str, dict[str, str]] = {}
    while not ended():
        studies = consortium.studies()
        wanted = [study for study in studies if study.wanted == "running"]
        if wanted:
            run_study(consortium, wanted[0], fleet)
            continue
        today = dt.datetime.now(dt.UTC).date()
        for study in studies:
            if study.wanted in {"published", "stopped"}:
                study = in_force(consortium, study)
            if study.wanted == "published" and study.protocol.expires > today:
                rounds = _rounds(consortium, study, fleet)
                try:
                    rounds.offer(told.setdefault(study.protocol.study, {}))
                except StateError as error:
                    _say(str(error))
        time.sleep(OFFER_EVERY_S)


def run_study(consortium: Consortium, study: Study, fleet: Fleet) -> None:
    """Run one study to its end and say in the journal how it ended."""
    name = study.protocol.study
    try:
        if study.protocol.expires <= dt.datetime.now(dt.UTC).date():
            raise FederationError(
                f"Study {name} expired on {study.protocol.expires}.",
                do="Publish a new protocol.",
                code="expired",
            )
        while True:
            study = in_force(consortium, study)
            try:
                _rounds(consortium, study, fleet).run()
                break
            except AmendedError:
                continue
        study.want("finished")
    except StoppedError:
        _until_written(lambda: _record(consortium, "study stopped", study=name))
    except GliofedError as error:
        if error.code == "order-push":
            raise
        _pause(consortium, study, code=error.code, reason=str(error))


def in_force(consortium: Consortium, study: Study) -> Study:
    """Return the study with the amendment in force that waits for it, if one does."""
    if study.amendment is None:
        return study
    following = parse_protocol(study.amendment.body, source="The amendment")
    consortium.journal.append(
        "amendment in force",
        study=following.study,
        protocol=following.digest,
        version=following.version,
    )
    study.amend()
    return consortium.study(following.study)


def _pause(consortium: Consortium, study: Study, *, code: str, reason: str) -> None:
    """Record that the study pauses, unless somebody launches it anew before that can be written."""
    name = study.protocol.study
    _say(reason)
    before = _launches(consortium, name)

    def write() -> None:
        if _launches(consortium, name) == before:
            study.want("stopped")
            _record(consortium, "study paused", study=name, code=code, reason=reason)

    _until_written(write)


def _launches(consortium: Consortium, study: str) -> int:
    """Return how often the study was launched, or -1 if the journal cannot be read."""
    try:
        return len(consortium.journal.events("study launched", study=study))
    except StateError as error:
        _say(str(error))
        return -1


def _until_written(write: Callable[[], None]) -> None:
    """Try again until the disk takes it: without a journal nothing else may be done."""
    while True:
        try:
            write()
        except StateError as error:
            _say(str(error))
            time.sleep(OFFER_EVERY_S)
        else:
            return


def _record(consortium: Consortium, event: str, **facts: str) -> None:
    consortium.journal.append(event, **facts)


def _say(text: str) -> None:
    """Say it in the executor's log, which is all that is left when nothing can be written."""
    sys.stderr.write(f"{text}\n")


def _rounds(consortium: Consortium, study: Study, fleet: Fleet) -> Rounds:
    return Rounds(
        study,
        fleet,
        journal=consortium.journal,
        sites=consortium.sites,
        closed=lambda: certificate_expiry.closed(consortium.folder),
        clock=time,
    )
