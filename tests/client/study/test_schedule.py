"""What the approved protocol has room for, as tables: what was answered, what is asked."""

from __future__ import annotations

from typing import Any

import pytest

from client.site.folder import Site
from client.study.schedule import (
    Answers,
    answered,
    check_round,
    check_training,
    due,
    same_patients,
    scores_before,
)
from common.errors import ConsentError
from tests.consortia import STUDY, tiny_protocol

A, B = "a" * 64, "b" * 64


def trained(*rounds: int) -> dict[str, Any]:
    return {f"{number:064x}": {"round": number} for number in rounds}


@pytest.mark.parametrize(
    ("rounds", "every", "wanted"),
    [
        (1, 1, (1,)),
        (5, 1, (1, 2, 3, 4, 5)),
        (5, 2, (2, 4, 5)),
        (6, 2, (2, 4, 6)),
        (5, 5, (5,)),
        (5, 50, (5,)),
    ],
)
def test_scores_are_due_by_the_protocol(rounds: int, every: int, wanted: tuple[int, ...]) -> None:
    assert due(tiny_protocol(rounds=rounds, evaluate_every=every)) == wanted


@pytest.mark.parametrize(
    ("kind", "number", "code"),
    [
        ("train", 0, "not-due"),
        ("train", 1, ""),
        ("train", 6, ""),
        ("train", 7, "rounds"),
        ("evaluate", 0, "not-due"),
        ("evaluate", 1, "not-due"),
        ("evaluate", 4, ""),
        ("evaluate", 5, "not-due"),
        ("evaluate", 6, ""),
        ("evaluate", 8, "rounds"),
        ("describe", 0, ""),
        ("describe", 4, "not-due"),
        ("initial", 0, ""),
        ("initial", 1, "not-due"),
    ],
)
def test_an_order_comes_for_a_round_that_the_protocol_has(
    kind: str, number: int, code: str
) -> None:
    try:
        check_round(tiny_protocol(rounds=6, evaluate_every=4), kind, number)
        found = ""
    except ConsentError as error:
        found = error.code
    assert found == code


@pytest.mark.parametrize(
    ("answers", "number", "update", "code"),
    [
        (Answers(), 1, "", ""),
        (Answers(updates=trained(1)), 1, "", ""),  # the coordinator went back to a backup
        (Answers(updates=trained(1, 2)), 2, "", "rounds-done"),
        (Answers(updates=trained(1, 2)), 1, "", "rounds-done"),
        (Answers(updates=trained(1, 2)), 1, f"{1:064x}", ""),
        (Answers(updates=trained(1), lost={2}), 2, "", ""),  # the order that broke off
        (Answers(updates=trained(1), lost={2}), 1, "", "rounds-done"),
    ],
)
def test_no_more_updates_leave_than_the_study_has_rounds(
    answers: Answers, number: int, update: str, code: str
) -> None:
    try:
        check_training(tiny_protocol(rounds=2), answers, number=number, update=update)
        found = ""
    except ConsentError as error:
        found = error.code
    assert found == code


SCORED = {4: {"round": 4, "weights": A, "dice": {"WT": 0.5}}}


@pytest.mark.parametrize(
    ("answers", "number", "weights", "code"),
    [
        (Answers(), 4, A, "not-trained"),
        (Answers(updates=trained(4)), 4, A, ""),
        (Answers(updates=trained(1)), 4, A, ""),  # it missed rounds 2 to 4
        (Answers(updates=trained(4)), 6, A, "not-trained"),
        (Answers(updates=trained(5)), 4, A, "not-trained"),
        (Answers(unable={4}), 4, A, ""),  # patients to validate on, none to train on
        (Answers(lost={3}), 4, A, ""),
        (Answers(updates=trained(4), lost_scores={4}), 4, A, "evaluated-already"),
        (Answers(updates=trained(4), scores=SCORED), 4, B, "evaluated-already"),
    ],
)
def test_scores_leave_once_and_after_the_training(
    answers: Answers, number: int, weights: str, code: str
) -> None:
    protocol = tiny_protocol(rounds=6, evaluate_every=4)
    try:
        found = str(scores_before(protocol, answers, number=number, weights_sha256=weights))
    except ConsentError as error:
        found = error.code
    assert found == (code or "None")


def test_the_same_order_gets_the_same_scores() -> None:
    protocol = tiny_protocol(rounds=6, evaluate_every=4)
    answers = Answers(updates=trained(4), scores=SCORED)
    assert scores_before(protocol, answers, number=4, weights_sha256=A) is SCORED[4]


@pytest.mark.parametrize(
    ("said", "holds"),
    [([], True), ([None], True), (["x"], True), (["y"], False), (["x", "y"], False)],
)
def test_exact_scores_are_of_one_set_of_patients(said: list[str | None], holds: bool) -> None:
    scores = {number: {"validation": one} for number, one in enumerate(said)}
    assert same_patients(Answers(scores=scores), "x") is holds


def test_the_journal_says_what_was_answered(site: Site) -> None:
    def say(event: str, kind: str, number: int, study: str = STUDY, **facts: Any) -> None:
        site.journal.append(event, study=study, order=kind, round=number, **facts)

    say("sent", "train", 1, update=A)
    say("sent", "train", 1, update=A)  # again
    say("sent", "train", 2, update=B, study="another")
    say("sent", "evaluate", 1, dice={"WT": 0.5}, weights=A)
    say("sent", "describe", 0, statistics={"x": [1.0]})
    say("declined", "train", 3, code="case-none")
    say("declined", "train", 4, code="not-approved")
    orders = [
        (STUDY, "train", 1),
        (STUDY, "train", 5),
        (STUDY, "evaluate", 5),
        ("other", "train", 6),
    ]
    site.journal.append("restoration settled", backup="", by="x", charged=[], orders=orders)
    found = answered(site, STUDY)
    assert (set(found.updates), found.trained, set(found.scores)) == ({A}, {1}, {1})
    assert [one["statistics"] for one in found.statistics] == [{"x": [1.0]}]
    assert (found.unable, found.lost, found.lost_scores) == ({3}, {5}, {5})
    assert answered(site, "nothing") == Answers()
