from __future__ import annotations

from typing import Any

import pytest

from common.errors import FederationError, PrivacyError
from common.messages.wire_format import Report, pack
from server.reporting.markdown_report import headline, markdown
from server.reporting.study_report import full_report


def told(world: Any) -> dict[str, Any]:
    study = world.consortium.study("demo")
    sites = world.consortium.sites.names()
    return full_report(study, world.consortium.journal, admitted=sites)


def sections(page: str) -> dict[str, str]:
    parts = page.split("\n## ")
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


def test_finished_is_said_of_all_only_if_all_were_there(world: Any) -> None:
    world.join("a", "b")
    world.publish()
    world.run()
    assert headline(told(world)) == (
        "Study demo is finished: 2 of 2 rounds closed. "
        "Every admitted site took part in every closed round."
    )


def test_finished_names_everybody_who_was_left_out(world: Any) -> None:
    world.join("a", "b", "c", "e")
    world.join("d", approves=False)
    world.publish()
    world.rounds().offer({})
    world.hospitals["c"].refuses = PrivacyError("The budget is spent.", code="privacy-cap")
    world.consortium.sites.suspend("e", by="Dr. Tamm", why="odd updates")
    world.run()
    said = headline(told(world))
    assert said.startswith("Study demo is finished: 2 of 2 rounds closed. ")
    assert "never approved: d." in said
    assert "c (privacy-cap in rounds 1, 2)" in said
    assert "Suspended: e (odd updates)." in said
    assert "Every admitted site" not in said


def test_a_study_without_rounds_claims_nothing(world: Any) -> None:
    world.join("a")
    world.publish()
    said = headline(told(world))
    assert said == (
        "Study demo is published: 0 of 2 rounds closed. Admitted but never approved: a."
    )


def test_many_missed_rounds_are_counted(world: Any) -> None:
    world.join("a", "b", "c")
    world.publish(rounds=8)
    world.rounds().offer({})
    world.hospitals["c"].refuses = PrivacyError("no", code="privacy-cap")
    world.run()
    assert "c (privacy-cap in rounds 1 to 8, 8 in all)" in headline(told(world))


def test_the_page_tells_rounds_updates_fairness_conduct_and_privacy(world: Any) -> None:
    world.join("a", step=1.0)
    world.join("b", step=2.0)
    world.join("c", step=20.0)
    world.publish()
    world.rounds().offer({})

    def noised(order: Any, _good: Any) -> Any:
        base = {"kind": order.kind, "study": order.study, "round": order.round, "status": "done"}
        dice = {"WT": 0.1, "TC": 0.2}
        return pack(Report.model_validate({**base, "dice": dice, "dice_noise": 0.05}), None)

    world.hospitals["b"].replies["evaluate"] = noised
    world.run()
    page = markdown(told(world), chart="curves.png")
    found = sections(page)
    assert "![Curves of the study](curves.png)" in page
    assert headline(told(world)) in page
    assert world.consortium.study("demo").protocol.digest in page
    assert "| 1 | closed | 3: a, b, c | 3: a, b, c | 100 % | - |" in found["Rounds"]
    assert "| 2 | c | 1 | 60 | 1.000 | " in found["Updates"]
    assert "| 20-49 | 2.000 |" in found["Updates"]
    assert "| 1 | WT | 3 | " in found["Fairness"]
    assert "b~ 0.100" in found["Fairness"]
    assert "holds noise" in found["Fairness"]
    assert "about 0.050" in found["Dice on the sites' validation patients"]
    assert "10.0 times as long" in found["Contribution and drift"]
    assert "| b | 2 of 2 | 100 % |" in found["Contribution and drift"]
    assert "| c | 2.000 | 0.001 | 2 | 1 | 0.1 |" in found["Privacy"]
    assert "heads of the sites' journals fit" in page


def test_what_went_wrong_is_on_the_page(world: Any) -> None:
    world.join("a", "b", "c")
    world.publish(privacy__mode='"none"', aggregation__quorum=3)
    world.rounds().offer({})
    world.hospitals["c"].replies["train"] = lambda _order, good: type(good)()
    world.hospitals["b"].lost = 1
    world.hospitals["a"].knows = "f" * 64
    with pytest.raises(FederationError):
        world.run()
    page = markdown(told(world))
    assert "| 1 | failed: quorum of 3 missed" in page
    assert "b: order lost 1 times" in page
    assert "c (update-form: A message does not have the form" in page
    assert "- round 1, a: fork: the coordinator's journal" in page
    assert "WITHOUT differential privacy" in page
    assert "![" not in page


def test_late_updates_are_on_the_page(world: Any) -> None:
    world.join("a", "b", "c")
    world.publish(rounds=3, aggregation__late_rounds=1)
    world.rounds().offer({})
    world.fleet.slow.update(b=60.0, c=130.0)
    world.run()
    page = markdown(told(world))
    assert "c, ordered in round 1, 1 rounds late: used in round 2, with less weight" in page


def test_sites_that_kept_scores_or_costs_to_themselves_are_named(world: Any) -> None:
    world.join("a", "b")
    world.publish(rounds=1)
    world.rounds().offer({})

    def bare(order: Any, good: Any) -> Any:
        base = {"kind": order.kind, "study": order.study, "round": order.round, "status": "done"}
        good["gliofed"]["json"] = Report.model_validate(base).model_dump_json()
        return good

    world.hospitals["b"].replies.update(train=bare, evaluate=bare)
    world.run()
    page = markdown(told(world))
    assert "- without a score in round 1: b (not reported)" in page
    assert "did not say what it cost: b." in page


def test_a_reason_cannot_break_the_table(world: Any) -> None:
    world.join("a", "b")
    world.publish(rounds=1)
    world.run()
    report = told(world)
    report["attempts"][0] |= {"reason": "one|two\nthree", "state": "failed"}
    assert "| 1 | failed: one\\|two three | 2: a, b |" in markdown(report)
