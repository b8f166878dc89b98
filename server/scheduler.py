"""Which study runs now: the loop behind every round.

A study that `launch` wants runs until it is finished, stopped or stuck; while none is wanted,
published studies are offered to the sites, so that hospitals see and approve them before launch.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from typing import Final

from common.errors import FederationError, GliofedError
from server.fleet import Fleet
from server.orders import StoppedError
from server.provisioning import Consortium
from server.rounds import Rounds
from server.studies import Study

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
            if study.wanted == "published" and study.protocol.expires > today:
                rounds = _rounds(consortium, study, fleet)
                rounds.offer(told.setdefault(study.protocol.study, {}))
        time.sleep(OFFER_EVERY_S)


def run_study(consortium: Consortium, study: Study, fleet: Fleet) -> None:
    """Run one study to its end and say in the journal how it ended."""
    name, journal = study.protocol.study, consortium.journal
    try:
        if study.protocol.expires <= dt.datetime.now(dt.UTC).date():
            raise FederationError(
                f"Study {name} expired on {study.protocol.expires}.",
                do="Publish a new protocol.",
                code="expired",
            )
        _rounds(consortium, study, fleet).run()
        study.want("finished")
    except StoppedError:
        journal.append("study stopped", study=name)
    except GliofedError as error:
        if error.code == "order-push":
            raise
        study.want("stopped")
        journal.append("study paused", study=name, code=error.code, reason=str(error))


def _rounds(consortium: Consortium, study: Study, fleet: Fleet) -> Rounds:
    return Rounds(study, fleet, journal=consortium.journal, sites=consortium.sites)
