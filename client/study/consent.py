"""The hospital's veto: a signed protocol against the hospital's own decision and policy.

Pure: what is decided comes in as values, and the only outcome is silence or a ConsentError whose
words are about the protocol and the policy, never about a patient, so that they may be sent.
"""

from __future__ import annotations

import datetime as dt
from typing import Final

from client.site.folder import Decision
from client.site.settings import Policy
from common.errors import ConsentError
from common.study.drawn_weights import drawn_digest
from common.study.protocol import StudyProtocol

WITHOUT_PRIVACY: Final = (
    "Each of its patients is charged an infinite epsilon: no study with privacy can train on them "
    "here afterwards."
)


def check_policy(
    protocol: StudyProtocol, policy: Policy, *, preprocessing_sha256: str, patients: int = 0
) -> None:
    """Raise ConsentError if the site's policy can never allow this protocol.

    ``patients`` is how many would be trained on, if that is known.
    """
    study = protocol.study
    if not protocol.private and not policy.allow_without_privacy:
        raise ConsentError(
            f"Study {study} trains without differential privacy, which this site does not allow.",
            do="The hospital may set allow_without_privacy in site.toml if it wants to.",
            code="policy-privacy",
        )
    if protocol.private and protocol.privacy.max_epsilon > policy.max_epsilon:
        raise ConsentError(
            f"Study {study} may spend epsilon {protocol.privacy.max_epsilon:g} per patient; "
            f"this site allows {policy.max_epsilon:g}.",
            do="Ask for a protocol with a smaller max_epsilon, or raise the cap in site.toml.",
            code="policy-epsilon",
        )
    check_delta(policy, protocol, patients)
    if protocol.network.name not in policy.networks:
        raise ConsentError(
            f"Study {study} trains the network {protocol.network.name}, which this site does "
            f"not allow (it allows {', '.join(policy.networks)}).",
            do="The hospital may add it to networks in site.toml.",
            code="policy-network",
        )
    if protocol.preprocessing_sha256 != preprocessing_sha256:
        raise ConsentError(
            f"Study {study} is for another preprocessing than the one installed here.",
            do="Install the version of gliofed that the coordinator uses.",
            code="preprocessing",
        )


def check_delta(policy: Policy, protocol: StudyProtocol, patients: int) -> None:
    """Raise ConsentError if the delta is above the hospital's cap for so many patients.

    Whatever the hospital set, it is below one over their number. The number is not in the words,
    which may leave.
    """
    delta = protocol.privacy.delta
    fits = delta <= policy.delta_cap(patients) and delta * patients < 1
    if protocol.private and not fits:
        raise ConsentError(
            f"Study {protocol.study} reckons its epsilon at delta {delta:g}, which is more than "
            "this site allows.",
            do="Ask for a protocol with a smaller delta; `gliofed-site plan` says what is allowed. "
            "The hospital may set max_delta in site.toml.",
            code="policy-delta",
        )


def check_start(
    protocol: StudyProtocol, *, round_number: int, trains: bool, weights_sha256: str
) -> None:
    """Raise ConsentError if an order begins with other weights than those that people approved.

    Round N trains from the weights after round N - 1, and is evaluated with those after itself: the
    start is round 0. A protocol that names no weights starts from those that are drawn from its
    seed, which this site draws too: no hospital and no coordinator chooses them.
    """
    after = round_number - 1 if trains else round_number
    if after > 0:
        return
    named = protocol.initial_sha256
    due = named or drawn_digest(protocol.network, seed=protocol.seed)
    if weights_sha256 != due:
        what = "the weights" if named else f"the random weights of seed {protocol.seed},"
        raise ConsentError(
            f"Study {protocol.study} was approved to start from {what} {due[:16]}; this "
            f"order brings {weights_sha256[:16]}.",
            do="Ask the coordinator why its first round starts from other weights.",
            code="initial",
        )


def check_order(
    protocol: StudyProtocol,
    decision: Decision | None,
    policy: Policy,
    *,
    now: dt.datetime,
    preprocessing_sha256: str,
) -> None:
    """Raise ConsentError unless people here approved this protocol and it may run now."""
    study = protocol.study
    if decision is None or decision.protocol != protocol.digest:
        raise ConsentError(
            f"Study {study} has not been approved by this site.",
            do=f"`gliofed-site approve` or `gliofed-site refuse` {study}.",
            code="not-approved",
        )
    if decision.decision == "refuse":
        raise ConsentError(
            f"This site refused study {study}: {decision.why}", code="refused-by-site"
        )
    if protocol.expires <= now.date():
        raise ConsentError(f"Study {study} expired on {protocol.expires}.", code="expired")
    check_policy(protocol, policy, preprocessing_sha256=preprocessing_sha256)
    if not policy.open_at(now.time()):
        raise ConsentError(
            f"This site carries out orders only at {policy.hours}.",
            do="The coordinator will order again; nothing needs to be done.",
            code="policy-hours",
        )
