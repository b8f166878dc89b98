"""A plan says before approval what a study costs, whether it fits here, and what would leave."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.commands.tables import show_plan
from client.privacy.accountant import epsilon
from client.privacy.mechanism import Mechanism
from client.site.folder import Site
from client.study import reported_metrics, round_training
from client.study.round_state import Kept
from client.views.budget import patients_now
from client.views.study_cost import plan
from common.records.atomic_files import write_json
from server.consortium.provisioning import Consortium
from tests.client.views.test_budget import STEP, charge, offer
from tests.consortia import STUDY, edit, tiny_protocol


def test_the_cost_is_the_accountants(site: Site) -> None:
    protocol = tiny_protocol(rounds=8)
    privacy = plan(site, protocol)["privacy"]
    assert [one["round"] for one in privacy["epsilon"]] == [1, 2, 4, 6, 8]
    for one in privacy["epsilon"]:
        taken = [(STEP, 2 * one["round"])]
        assert one["steps"] == taken[0][1]
        assert one["at_delta"] == pytest.approx(epsilon(taken, 1e-3), abs=1e-4)
        assert one["at_strict_delta"] == pytest.approx(epsilon(taken, 1e-5), abs=1e-4)


@pytest.mark.parametrize(("rounds", "rows"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3])])
def test_few_rounds_are_few_rows(site: Site, rounds: int, rows: list[int]) -> None:
    privacy = plan(site, tiny_protocol(rounds=rounds))["privacy"]
    assert [one["round"] for one in privacy["epsilon"]] == rows


def test_what_stays_is_trained_and_noised_but_not_sent(site: Site) -> None:
    whole, local = (
        plan(site, tiny_protocol(training={"local": groups})) for groups in ([], ["norms"])
    )
    trained = whole["network"]["trained_parameters"]
    assert local["network"]["trained_parameters"] == trained
    assert whole["network"]["sent_parameters"] == trained > local["network"]["sent_parameters"]
    assert local["privacy"]["noise_norm"] == whole["privacy"]["noise_norm"]
    sent = [row["bytes"] for row in local["leaves"] if row["what"] == "weight update"]
    assert sent == [4 * local["network"]["sent_parameters"]]


def test_a_personal_model_costs_as_many_steps_again(site: Site) -> None:
    protocol = tiny_protocol(training={"personal_lambda": 0.5})
    found = plan(site, protocol)
    assert found["steps_per_round"] == 4
    assert [row["steps"] for row in found["privacy"]["epsilon"]] == [4, 8]


def test_a_step_in_numbers(site: Site) -> None:
    protocol = tiny_protocol(
        privacy={"clipping_norm": 0.5, "nominal_patients": 40}, training={"trainable": ["head"]}
    )
    found = plan(site, protocol)
    weights = round_training.starting_weights(protocol)
    shapes = round_training.update_shapes(protocol, weights)
    trained = sum(math.prod(shape) for shape in shapes.values())
    assert found["network"]["trained_parameters"] == trained
    assert found["network"]["parameters"] == sum(array.size for array in weights.values()) > trained
    assert found["network"]["trained_groups"] == ["head"]
    assert (found["rounds"], found["steps_per_round"]) == (2, 2)
    assert found["patients"] == {"train": 4, "validation": 1, "test": 1}
    privacy = found["privacy"]
    # sigma C sqrt(P) / (q n), with sigma 2, C 0.5, q 0.5 and n 40.
    assert privacy["noise_norm"] == pytest.approx(2 * 0.5 * math.sqrt(trained) / 20)
    assert privacy["noise_over_clipping_norm"] == pytest.approx(2 * math.sqrt(trained) / 20)
    assert privacy["patients_per_step"] == 0.5 * 4
    assert privacy["patients_per_step_divided_by"] == 20
    assert privacy["one_over_patients"] == 0.25


@pytest.mark.parametrize(("delta", "fits"), [(0.001, True), (0.0011, False), (0.0999, False)])
def test_delta_against_the_sites_cap(site: Site, delta: float, fits: bool) -> None:
    found = plan(site, tiny_protocol(privacy={"delta": delta}))
    assert (found["privacy"]["delta_fits"], found["privacy"]["delta_cap"]) == (fits, 1e-3)
    assert found["policy"]["allowed"] is fits


def test_many_patients_lower_the_cap_of_delta(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    many = frozenset(f"{n:032x}" for n in range(2000))
    monkeypatch.setattr("client.views.study_cost.patients_now", lambda *_: many)
    found = plan(site, tiny_protocol(privacy={"delta": 1e-3}))
    assert found["privacy"]["delta_cap"] == pytest.approx(2000**-1.1)
    assert not found["privacy"]["delta_fits"]
    assert "more than this site allows" in found["policy"]["reason"]
    assert "2000" not in found["policy"]["reason"]


def test_what_patients_spent_elsewhere_shortens_the_study(
    site: Site, consortium: Consortium
) -> None:
    elsewhere, wanted = tiny_protocol(study="another-one"), tiny_protocol(rounds=50)
    offer(site, consortium, elsewhere)
    one, *others = sorted(patients_now(site, wanted))
    fresh = plan(site, wanted)["privacy"]["last_rounds"]
    charge(site, elsewhere, [one], steps=30)
    found = plan(site, wanted)["privacy"]
    assert found["rounds_done"] == 0
    spent, unspent = found["last_rounds"]
    assert (spent["patients"], unspent["patients"]) == (1, len(others))
    assert [unspent | {"patients": 4}] == fresh
    # The last round that fits beside thirty steps elsewhere, and not one more.
    steps = 2 * spent["last_round"]
    assert epsilon([(STEP, 30 + steps)], 1e-3) <= 10.0 < epsilon([(STEP, 30 + steps + 2)], 1e-3)
    assert spent["last_round"] < unspent["last_round"]


def test_a_study_that_has_begun_goes_on_from_there(site: Site, consortium: Consortium) -> None:
    protocol = tiny_protocol(rounds=50)
    offer(site, consortium, protocol)
    (fresh,) = plan(site, protocol)["privacy"]["last_rounds"]
    charge(site, protocol, patients_now(site, protocol), number=1)
    found = plan(site, protocol)["privacy"]
    assert found["rounds_done"] == 1
    assert found["last_rounds"] == [fresh]


def leaving(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["what"]: one for one in found["leaves"]}


def test_what_would_leave_follows_protocol_and_policy(site: Site) -> None:
    protocol = tiny_protocol(rounds=5, evaluate_every=2)
    found = plan(site, protocol)
    rows = leaving(found)
    update = rows["weight update"]
    assert (update["times"], update["protection"]) == (5, "differentially private")
    assert update["bytes"] == 4 * found["network"]["trained_parameters"]
    dice = rows["mean Dice of the validation patients"]
    assert (dice["times"], dice["protection"]) == (3, "exact: not covered by epsilon")
    assert found["privacy"]["dice"] is None
    assert "number of training cases" in rows

    fewer = plan(site, protocol.model_copy(update={"reports": ("privacy_spent",)}))
    assert set(rows) - set(leaving(fewer)) == {
        "mean Dice of the validation patients",
        "number of training cases",
        "rounds that saw who withdrew",
    }

    never = plan(edit(site, 'dice = "exact"', 'dice = "never"'), protocol)
    assert "mean Dice of the validation patients" not in leaving(never)

    noised = plan(edit(site, 'dice = "never"', 'dice = "noised"'), protocol)
    assert "with noise" in leaving(noised)["mean Dice of the validation patients"]["protection"]
    spent = epsilon([(Mechanism(5.0, 1.0), 3)], 1e-3)
    assert noised["privacy"]["dice"] == {"times": 3, "epsilon": pytest.approx(spent, abs=1e-4)}


def test_histograms_are_told_with_what_they_cost(site: Site, consortium: Consortium) -> None:
    asked = {"about": ["spacing"], "noise_multiplier": 2.0}
    protocol = tiny_protocol(statistics=asked)
    without = plan(site, protocol)
    assert without["privacy"]["statistics"] is None
    assert not any("histograms" in what for what in leaving(without))

    site = edit(site, '"withdrawals"]', '"withdrawals", "statistics"]')
    found = plan(site, protocol)
    row = leaving(found)["histograms of the training patients (spacing)"]
    assert (row["times"], row["protection"]) == (1, "with noise, charged to the training patients")
    release = (Mechanism(2.0, 1.0), 1)
    assert found["privacy"]["statistics"] == pytest.approx(epsilon([release], 1e-3), abs=1e-4)
    for one in found["privacy"]["epsilon"]:
        spent = epsilon([(STEP, one["steps"]), release], 1e-3)
        assert one["at_delta"] == pytest.approx(spent, abs=1e-4)


def test_the_rounds_that_fit_are_those_beside_the_histograms(
    site: Site, consortium: Consortium
) -> None:
    asked = {"about": ["spacing"], "noise_multiplier": 0.8}
    protocol = tiny_protocol(rounds=1000, statistics=asked)
    site = edit(site, '"withdrawals"]', '"withdrawals", "statistics"]')
    offer(site, consortium, protocol)
    (planned,) = plan(site, protocol)["privacy"]["last_rounds"]
    (without,) = plan(site, tiny_protocol(rounds=1000))["privacy"]["last_rounds"]
    assert planned["last_round"] < without["last_round"]
    reported_metrics.noised_cohort_statistics(site, protocol)
    write_json(Kept(site, STUDY).statistics, {})
    (after,) = plan(site, protocol)["privacy"]["last_rounds"]
    assert after == planned  # what was planned is spent, no more and no less


def test_without_privacy(site: Site) -> None:
    found = plan(site, tiny_protocol(privacy={"mode": "none"}))
    assert (found["private"], found["privacy"]) == (False, None)
    assert leaving(found)["weight update"]["protection"].startswith("NO PRIVACY")
    assert not found["policy"]["allowed"]
    assert "allow_without_privacy" in found["policy"]["do"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"preprocessing_sha256": ""}, ""),  # a draft: filled in when it is published
        ({"preprocessing_sha256": "0" * 64}, "another preprocessing"),
        ({"privacy": {"max_epsilon": 99.0}}, "this site allows 10"),
    ],
)
def test_the_policys_verdict(site: Site, changes: dict[str, Any], reason: str) -> None:
    verdict = plan(site, tiny_protocol(**changes))["policy"]
    assert verdict["allowed"] == (not reason)
    assert reason in verdict["reason"]


def test_without_a_cohort_the_cost_is_told_all_the_same(
    make_site: Callable[..., Site], tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    found = plan(make_site("south", empty), tiny_protocol())
    assert found["patients"] == {"train": 0, "validation": 0, "test": 0}
    assert found["privacy"]["last_rounds"] == []
    assert found["privacy"]["epsilon"][-1]["at_delta"] > 0


def test_cases_that_the_study_leaves_out_for_a_missing_sequence_are_counted(
    make_site: Callable[..., Site], own_cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_site("south", own_cohort)
    before = plan(site, tiny_protocol())
    assert before["cases_that_lack_sequences_left_out"] == 0
    for case in round_training.read_split(site, tiny_protocol()).train[:2]:
        case.images["t2w"].path.unlink()
    strict = plan(site, tiny_protocol())
    assert strict["cases_that_lack_sequences_left_out"] == 2
    show_plan(strict)
    assert "2 labelled cases lack a sequence" in capsys.readouterr().err
    lenient = plan(site, tiny_protocol(training={"sequence_dropout": 0.2}))
    assert lenient["cases_that_lack_sequences_left_out"] == 0
    assert lenient["patients"] == before["patients"]
