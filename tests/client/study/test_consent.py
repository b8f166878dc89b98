"""The hospital's veto, as a table: what was asked, what was decided, which code comes out."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from client.site.folder import Decision
from client.site.settings import Policy
from client.study.consent import check_order, check_policy, check_start
from common.errors import ConsentError
from common.study.drawn_weights import drawn_digest
from common.study.protocol import StudyProtocol
from tests.consortia import tiny_protocol

NOON = dt.datetime(2030, 5, 1, 12, 0)
OPEN = {"privacy": {"mode": "none"}}

DRAWN = drawn_digest(tiny_protocol().network, seed=tiny_protocol().seed)


def decision(approved: StudyProtocol, /, **changes: Any) -> Decision:
    fields = {
        "study": approved.study,
        "protocol": approved.digest,
        "site": "north",
        "decision": "approve",
        "by": "Dr. Tamm",
        "time": "2030-01-01T00:00:00+00:00",
    }
    return Decision.model_validate({**fields, **changes})


def code_of(
    protocol: StudyProtocol,
    decided: Decision | None,
    policy: Policy,
    *,
    now: dt.datetime = NOON,
    installed: str | None = None,
) -> str:
    """Return the code of the refusal, or "" if there is none."""
    try:
        check_order(
            protocol,
            decided,
            policy,
            now=now,
            preprocessing_sha256=installed or protocol.preprocessing_sha256,
        )
    except ConsentError as error:
        return error.code
    return ""


CASES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
    # name, changes to the protocol, to the policy, to the decision, code
    ("approved", {}, {}, {}, ""),
    ("approved without privacy", OPEN, {"allow_without_privacy": True}, {}, ""),
    ("just below the cap", {}, {"max_epsilon": 8.0}, {}, ""),
    (
        "no cap counts without privacy",
        OPEN,
        {"allow_without_privacy": True, "max_epsilon": 1},
        {},
        "",
    ),
    ("another protocol was approved", {}, {}, {"protocol": "0" * 64}, "not-approved"),
    (
        "another protocol was refused",
        {},
        {},
        {"protocol": "1", "decision": "refuse"},
        "not-approved",
    ),
    ("refused", {}, {}, {"decision": "refuse", "why": "ethics"}, "refused-by-site"),
    ("expired today", {"expires": "2030-05-01"}, {}, {}, "expired"),
    ("last day", {"expires": "2030-05-02"}, {}, {}, ""),
    ("only the study drops privacy", OPEN, {}, {}, "policy-privacy"),
    ("above the cap", {}, {"max_epsilon": 7.9}, {}, "policy-epsilon"),
    ("no network allowed", {}, {"networks": ()}, {}, "policy-network"),
    ("another network allowed", {}, {"networks": ("unet",)}, {}, "policy-network"),
    ("other preprocessing", {"preprocessing_sha256": "0" * 64}, {}, {}, "preprocessing"),
    ("at night only", {}, {"hours": "20:00-06:00"}, {}, "policy-hours"),
    ("by day", {}, {"hours": "08:00-17:00"}, {}, ""),
    ("hours end at noon", {}, {"hours": "08:00-12:00"}, {}, "policy-hours"),
]


@pytest.mark.parametrize(
    ("protocol_changes", "policy_changes", "decision_changes", "code"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_every_refusal_has_its_code(
    protocol_changes: dict[str, Any],
    policy_changes: dict[str, Any],
    decision_changes: dict[str, Any],
    code: str,
) -> None:
    protocol = tiny_protocol(**protocol_changes)
    found = code_of(
        protocol,
        decision(protocol, **decision_changes),
        Policy(**policy_changes),
        installed=tiny_protocol().preprocessing_sha256,
    )
    assert found == code


@pytest.mark.parametrize(
    ("named", "number", "trains", "brings", "code"),
    [
        ("a" * 64, 1, True, "a" * 64, ""),
        ("a" * 64, 1, True, "b" * 64, "initial"),
        ("a" * 64, 0, True, "b" * 64, "initial"),
        ("a" * 64, 2, True, "b" * 64, ""),
        ("a" * 64, 0, False, "b" * 64, "initial"),
        ("a" * 64, 1, False, "b" * 64, ""),
        ("", 1, True, "b" * 64, "initial"),
        ("", 1, True, DRAWN, ""),
        ("", 0, True, DRAWN, ""),
        ("", 0, False, "b" * 64, "initial"),
        ("", 2, True, "b" * 64, ""),
        ("a" * 64, 1, True, DRAWN, "initial"),
    ],
)
def test_the_first_round_starts_from_what_was_approved(
    named: str, number: int, trains: bool, brings: str, code: str
) -> None:
    try:
        check_start(
            tiny_protocol(initial_sha256=named),
            round_number=number,
            trains=trains,
            weights_sha256=brings,
        )
        found = ""
    except ConsentError as error:
        found = error.code
    assert found == code


def test_a_start_that_nobody_drew_is_refused_by_both_digests() -> None:
    """Neither a hospital nor the coordinator chooses what everybody trains from."""
    protocol = tiny_protocol(seed=5)
    with pytest.raises(ConsentError) as refused:
        check_start(protocol, round_number=1, trains=True, weights_sha256="b" * 64)
    due = drawn_digest(protocol.network, seed=5)
    assert f"the random weights of seed 5, {due[:16]}" in refused.value.message
    assert "this order brings " + "b" * 16 in refused.value.message


def test_nothing_runs_undecided() -> None:
    assert code_of(tiny_protocol(), None, Policy()) == "not-approved"


@pytest.mark.parametrize(
    ("time", "code"),
    [
        ("19:59", "policy-hours"),
        ("20:00", ""),
        ("00:00", ""),
        ("05:59", ""),
        ("06:00", "policy-hours"),
    ],
)
def test_hours_over_midnight(time: str, code: str) -> None:
    protocol = tiny_protocol()
    now = dt.datetime.combine(NOON.date(), dt.time.fromisoformat(time))
    assert code_of(protocol, decision(protocol), Policy(hours="20:00-06:00"), now=now) == code


def test_the_reason_of_a_refusal_is_said() -> None:
    protocol = tiny_protocol()
    refused = decision(protocol, decision="refuse", why="waiting for the ethics board")
    with pytest.raises(ConsentError, match="waiting for the ethics board"):
        check_order(
            protocol,
            refused,
            Policy(),
            now=NOON,
            preprocessing_sha256=protocol.preprocessing_sha256,
        )


def test_policy_alone_says_nothing_about_decisions_or_hours() -> None:
    protocol = tiny_protocol(expires="2001-01-01")
    check_policy(
        protocol,
        Policy(hours="00:00-00:00"),
        preprocessing_sha256=protocol.preprocessing_sha256,
    )
