"""A coordinator that asks for all it can think of gets what ``plan`` said, and no more."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from client.privacy.budget_caps import open_ledger
from client.site.folder import Site
from client.study import round_training
from client.study.withdrawal import withdraw
from client.views.study_cost import plan
from common.messages.wire_format import Report
from common.records.weights import Arrays, digest
from common.study.protocol import StudyProtocol
from server.consortium.provisioning import Consortium
from tests.client.runtime.test_order_handler import Hospital
from tests.consortia import edit, events, tiny_protocol

HISTOGRAMS = {"about": ["volumes"], "noise_multiplier": 8.0}
ROUNDS = 3


def asking(changes: dict[str, Any] | None = None) -> StudyProtocol:
    """A study of three rounds whose scores are due after the second and the last."""
    training = {"local_steps": 1, "trainable": ["head"]}
    return tiny_protocol(
        rounds=ROUNDS, evaluate_every=2, statistics=HISTOGRAMS, training=training, **(changes or {})
    )


def chosen(protocol: StudyProtocol, count: int = 2) -> list[Arrays]:
    """Return weights that the coordinator made up."""
    start = round_training.starting_weights(protocol)
    return [{k: v + np.float32(0.01 * n) for k, v in start.items()} for n in range(count)]


def harvest(
    hospital: Hospital, protocol: StudyProtocol, orders: Iterable[tuple[str, int, Arrays]]
) -> dict[str, set[str]]:
    """Give each order, those that are done twice; return each different answer, by field."""
    found: dict[str, set[str]] = defaultdict(set)
    for kind, number, weights in orders:
        given = {} if kind == "describe" else {"weights": weights}
        done = True
        for _ in range(2):
            if not done:
                break
            report, update = hospital.ask(protocol, kind, number=number, **given)
            done = report.status == "done"
            if update:
                found["update"].add(digest(update))
            for field in set(Report.model_fields) - {"kind", "study", "round", "status"}:
                if getattr(report, field):
                    told = json.dumps(report.model_dump(mode="json")[field], sort_keys=True)
                    of = f"{number} {digest(weights)} " if kind == "evaluate" else ""
                    found[field].add(of + told)
    return found


def everything(protocol: StudyProtocol) -> list[tuple[str, int, Arrays]]:
    """Return every order that there is, the trainings of new rounds before other weights."""
    models = chosen(protocol)
    orders: list[tuple[str, int, Arrays]] = [("describe", n, {}) for n in (0, 1)]
    orders += [("evaluate", n, weights) for n in range(ROUNDS + 2) for weights in models]
    for number in range(ROUNDS + 2):
        orders.append(("train", number, models[0]))
        orders += [("evaluate", n, weights) for n in (number, number + 1) for weights in models]
    orders += [("train", n, weights) for n in range(ROUNDS + 2) for weights in models]
    return [*orders, ("describe", 0, {})]


@pytest.fixture
def hospital(site: Site, consortium: Consortium) -> Hospital:
    edit(site, '"withdrawals"]', '"withdrawals", "statistics"]')
    return Hospital(Site.open(site.folder), consortium.identity)


@pytest.mark.parametrize("dice", ["exact", "noised", "never"])
def test_a_greedy_coordinator_gets_what_the_plan_said(hospital: Hospital, dice: str) -> None:
    if dice != "exact":
        hospital.site = edit(hospital.site, 'dice = "exact"', f'dice = "{dice}"')
    protocol = asking()
    hospital.approve(protocol)
    planned = plan(hospital.site, protocol)
    times = {row["what"].partition(" (")[0]: row["times"] for row in planned["leaves"]}
    found = harvest(hospital, protocol, everything(protocol))
    assert len(found["update"]) == times["weight update"] == ROUNDS
    scores = times.get("mean Dice of the validation patients", 0)
    assert len(found.get("dice", ())) == scores == (0 if dice == "never" else 2)
    assert len(found["statistics"]) == times["histograms of the training patients"] == 1
    assert len(found["privacy_spent"]) == times["epsilon and steps so far"]
    assert len(found["case_count"]) <= times["number of training cases"]
    said = {field for row in planned["leaves"] for field in row["fields"]}
    assert set(found) - {"update"} <= said
    with open_ledger(hospital.site) as ledger:
        facts = ledger.facts()
        spent = ledger.spent(protocol.privacy.delta, study=protocol.study)
    by_purpose = dict.fromkeys(("training", "metrics", "statistics"), 0)
    for fact in facts:
        by_purpose[fact.purpose] += fact.steps
    assert by_purpose == {
        "training": planned["rounds"] * planned["steps_per_round"],
        "metrics": scores if dice == "noised" else 0,
        "statistics": 1,
    }
    assert spent.epsilon == pytest.approx(planned["privacy"]["epsilon"][-1]["at_delta"], abs=1e-3)


def test_the_plan_names_every_field_that_a_report_has(hospital: Hospital) -> None:
    planned = plan(hospital.site, asking())
    said = {field for row in planned["leaves"] for field in row["fields"]}
    assert said == set(Report.model_fields) - {"kind", "study", "round", "status"}


def test_no_score_leaves_before_training_or_for_a_round_that_is_not_due(hospital: Hospital) -> None:
    protocol = asking()
    hospital.approve(protocol)
    weights = chosen(protocol, 1)[0]
    codes = [
        hospital.ask(protocol, "evaluate", number=number, weights=weights)[0].code
        for number in range(ROUNDS + 2)
    ]
    assert codes == ["not-due", "not-due", "not-trained", "not-trained", "rounds"]
    assert not any("dice" in fact for fact in events(hospital.site, "sent"))


def test_a_withdrawal_shows_in_no_difference_of_exact_scores(hospital: Hospital) -> None:
    protocol = asking({"study": "differences-0"})
    victims = round_training.read_split(hospital.site, protocol).validation
    assert victims
    hospital.approve(protocol)
    weights = chosen(protocol, 1)[0]

    def score(number: int) -> Report:
        return hospital.ask(protocol, "evaluate", number=number, weights=weights)[0]

    hospital.train(protocol, number=2, weights=weights)
    before = score(2)
    assert before.dice is not None
    withdraw(hospital.site, victims[0].patient, by="Dr. Tamm")
    assert score(2).dice == before.dice  # word for word, not measured anew
    hospital.train(protocol, number=3, weights=weights)
    after = score(3)
    assert (after.status, after.code, after.dice) == ("done", "", None)
    kept_back = events(hospital.site, "scores kept back")
    # Without a patient left to validate on there is nothing to keep back.
    assert len(kept_back) == (1 if len({case.patient for case in victims}) > 1 else 0)
