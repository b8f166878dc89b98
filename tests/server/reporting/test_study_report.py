from __future__ import annotations

import json
from typing import Any

import pytest

from common.errors import ConsentError, FederationError, PrivacyError
from common.messages.wire_format import Order, Report, pack
from server.reporting.markdown_report import headline
from server.reporting.study_report import full_report, paused_sites, study_report
from server.rounds import study_scheduler
from server.rounds.study_scheduler import run_study


def told(world: Any) -> dict[str, Any]:
    study = world.consortium.study("demo")
    sites = world.consortium.sites.names()
    return study_report(study, world.consortium.journal, admitted=sites)


def test_a_study_that_has_not_begun(world: Any) -> None:
    world.join("a", "b")
    study = world.publish()
    report = told(world)
    assert report["study"] == "demo"
    assert report["title"] == "A study"
    assert report["protocol"] == study.protocol.digest
    assert report["state"] == "published"
    assert report["private"]
    assert (report["rounds_planned"], report["rounds_closed"]) == (2, 0)
    assert (report["approved"], report["not_approved"]) == ([], ["a", "b"])
    assert report["rounds"] == report["failed_rounds"] == report["evaluations"] == []
    assert report["privacy_spent"] == report["declined"] == {}
    assert report["last_problem"] == ""


def test_a_finished_study_says_who_took_part_and_who_did_not(world: Any) -> None:
    world.join("a", "b", "c")
    world.join("d", approves=False)
    world.publish()
    world.rounds().offer({})
    world.hospitals["c"].refuses = PrivacyError("The budget is spent.", code="privacy-cap")
    world.run()
    report = told(world)
    assert report["state"] == "finished"
    assert (report["approved"], report["not_approved"]) == (["a", "b", "c"], ["d"])
    assert report["declined"] == {"c": "The budget is spent.", "d": "not-approved"}
    assert [r["took_part"] for r in report["rounds"]] == [["a", "b"]] * 2
    assert [r["dropped"] for r in report["rounds"]] == [{"c": "privacy-cap"}] * 2
    assert [e["round"] for e in report["evaluations"]] == [1, 2]
    assert report["privacy_spent"]["a"]["steps"] == 2
    assert set(report["privacy_spent"]) == {"a", "b"}


def test_a_reason_is_forgotten_once_the_site_takes_part(world: Any) -> None:
    late = world.join("a", approves=False)
    world.join("b")
    world.publish()
    world.rounds().offer({})
    assert told(world)["declined"] == {"a": "not-approved"}
    late.approves = True
    world.run()
    assert told(world)["declined"] == {}


def test_who_is_paused_by_the_hospital(world: Any) -> None:
    world.join("a", "b", "c")
    world.publish()
    world.rounds().offer({})
    world.hospitals["c"].refuses = ConsentError("Stopped.", code="site-stopped")
    world.run()
    study, journal = world.consortium.study("demo"), world.consortium.journal
    first = journal.events("site declined", site="c")[0]
    assert told(world)["paused_sites"] == {"c": first.time}
    assert "Paused by the hospital: c (since" in headline(
        full_report(study, journal, admitted=["a", "b", "c"])
    )
    journal.append("evaluated", study="demo", dice={"c": {}})
    assert paused_sites(journal.entries()) == {}


def test_refused_replies_and_failed_rounds_are_told(world: Any) -> None:
    world.join("a", "b")
    world.publish()
    world.rounds().offer({})
    bad = world.hospitals["b"]
    bad.replies["train"] = lambda _order, good: type(good)()
    with pytest.raises(FederationError):
        world.run()
    report = told(world)
    reasons = [r["reason"] for r in report["failed_rounds"]]
    assert len(reasons) == 3
    for reason in reasons:
        assert "quorum of 2 missed" in reason
        assert "b (update-form)" in reason
    assert {r["code"] for r in report["refused_replies"]} == {"update-form"}
    assert report["rounds_closed"] == 0


def test_states_follow_what_happens(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # By the clock of the tests: three failed rounds pause in earnest else.
    monkeypatch.setattr(study_scheduler, "_rounds", lambda *_: world.rounds())
    world.join("a", "b")
    study = world.publish()
    world.rounds().offer({})
    world.hospitals["b"].refuses = PrivacyError("no")
    study.want("running")
    assert told(world)["state"] == "running"
    run_study(world.consortium, study, world.fleet)
    assert told(world)["state"] == "paused"
    assert "quorum" in told(world)["last_problem"]
    world.hospitals["b"].refuses = None
    study.want("running")
    run_study(world.consortium, study, world.fleet)
    assert told(world)["state"] == "finished"
    assert told(world)["last_problem"] == ""


def test_a_stopped_study(world: Any) -> None:
    world.join("a", "b", approves=False)
    study = world.publish()
    study.want("stopped")
    assert told(world)["state"] == "stopped"
    run_study(world.consortium, study, world.fleet)
    assert told(world)["state"] == "stopped"
    assert world.names()[-1] == "study stopped"


def report_of(order: Order, **fields: Any) -> Report:
    base = {"kind": order.kind, "study": order.study, "round": order.round, "status": "done"}
    return Report.model_validate({**base, **fields})


def told_in_full(world: Any) -> dict[str, Any]:
    study = world.consortium.study("demo")
    sites = world.consortium.sites.names()
    return full_report(study, world.consortium.journal, admitted=sites)


def three_and_a_stranger(world: Any, **changes: Any) -> None:
    world.join("a", step=1.0)
    world.join("b", step=2.0)
    world.join("c", step=6.0)
    world.join("d", approves=False)
    world.publish(**changes)
    world.rounds().offer({})


def test_each_attempt_says_who_was_ordered_answered_and_left_out(world: Any) -> None:
    three_and_a_stranger(world)
    world.hospitals["c"].refuses = PrivacyError("The budget is spent.", code="privacy-cap")
    world.run()
    report = told_in_full(world)
    assert [one["round"] for one in report["attempts"]] == [1, 2]
    for one in report["attempts"]:
        assert one["state"] == "closed"
        assert one["approved"] == one["ordered"] == ["a", "b", "c"]
        assert one["took_part"] == sorted(one["sites"]) == ["a", "b"]
        assert one["dropped"] == {"c": "privacy-cap"}
        assert one["share_of_weight"] == pytest.approx(2 / 3, abs=1e-6)
        assert one["order_bytes"] == 4 * 9
        assert one["ended"] > one["opened"]
        (accepted,) = world.events("reply accepted", site="b", round=one["round"])
        assert one["sites"]["b"]["norm"] == accepted["norm"] == pytest.approx(6.0)
        assert one["sites"]["b"]["bytes"] == accepted["bytes"] > 36
        assert one["sites"]["b"]["seconds"] == accepted["seconds"]
        assert one["sites"]["b"]["privacy_spent"]["epsilon"] == one["round"]
    assert report["absences"] == {
        "c": {"1": "privacy-cap", "2": "privacy-cap"},
        "d": {"1": "not-approved", "2": "not-approved"},
    }
    assert report["conduct"]["c"]["share"] == 0.0
    # All add the same to each weight: along the change of the round before.
    assert report["conduct"]["a"]["drift"] == pytest.approx(0.0, abs=1e-6)


def test_the_summary_is_part_of_the_full_report(world: Any) -> None:
    three_and_a_stranger(world)
    world.run()
    summary = told(world)
    report = told_in_full(world)
    assert summary.items() <= report.items()
    *_, last = world.consortium.journal.entries()
    assert report["journal"] == {"facts": last.number, "head": last.hash, "until": last.time}
    json.dumps(report, allow_nan=False)


def test_failed_and_interrupted_attempts_are_told(world: Any) -> None:
    world.join("a", "b")
    study = world.publish()
    world.rounds().offer({})
    world.consortium.journal.append("round opened", study="demo", round=1, base="", sites=["a"])
    world.hospitals["b"].replies["train"] = lambda _order, good: type(good)()
    with pytest.raises(FederationError):
        world.run()
    del world.hospitals["b"].replies["train"]
    world.run()
    report = told_in_full(world)
    states = [(one["round"], one["state"]) for one in report["attempts"]]
    assert states == [(1, "interrupted"), *[(1, "failed")] * 3, (1, "closed"), (2, "closed")]
    failed = report["attempts"][1]
    assert list(failed["refused"]) == ["b"]
    assert "does not have the form" in failed["refused"]["b"]
    # The same answer to the same round is no repetition, the same in two rounds is.
    assert report["conduct"]["a"]["repeated"] == 2
    assert study.protocol.study == report["study"]


def test_lost_orders_are_counted(world: Any) -> None:
    three_and_a_stranger(world, rounds=1)
    world.hospitals["b"].lost = 2
    world.run()
    (one,) = told_in_full(world)["attempts"]
    assert one["lost_orders"] == {"b": 2}
    assert one["took_part"] == ["a", "b", "c"]


def test_fairness_names_the_worst_site_and_who_was_silent(world: Any) -> None:
    three_and_a_stranger(world, rounds=1)

    def says(**fields: Any) -> Any:
        return lambda order, _: pack(report_of(order, **fields), None)

    world.hospitals["a"].replies["evaluate"] = says(dice={"WT": 0.9, "TC": 0.4}, dice_noise=0.05)
    world.hospitals["b"].replies["evaluate"] = says(dice={"WT": 0.5})
    world.hospitals["c"].replies["evaluate"] = says()
    world.run()
    (one,) = told_in_full(world)["fairness"]
    assert one["round"] == 1
    assert (one["regions"]["WT"]["worst_site"], one["regions"]["WT"]["worst"]) == ("b", 0.5)
    assert one["regions"]["WT"]["spread"] == pytest.approx(0.4)
    assert one["regions"]["WT"]["standard_deviation"] == pytest.approx(0.2)
    assert one["regions"]["TC"]["sites"] == 1
    assert "ET" not in one["regions"]
    assert one["noised"] == ["a"]
    assert one["not_reported"] == {"c": "not reported"}


def test_an_approval_that_was_taken_back_is_none(world: Any) -> None:
    three_and_a_stranger(world)
    world.hospitals["c"].refuses = ConsentError("No more.", code="refused-by-site")
    world.hospitals["c"].approves = False
    world.run()
    report = told_in_full(world)
    assert (report["approved"], report["not_approved"]) == (["a", "b"], ["c", "d"])
    assert report["absences"]["c"] == {"1": "refused-by-site", "2": "not-approved"}


def test_a_suspended_site_is_named_until_it_is_restored(world: Any) -> None:
    three_and_a_stranger(world, rounds=1)
    world.consortium.sites.suspend("c", by="Dr. Tamm", why="odd updates")
    world.run()
    report = told_in_full(world)
    assert report["suspended"] == {"c": "odd updates"}
    assert report["attempts"][0]["took_part"] == ["a", "b"]
    assert "c" in report["absences"]
    world.consortium.sites.restore("c", by="Dr. Tamm")
    assert told_in_full(world)["suspended"] == {}


LATE: list[tuple[int, int | None]] = [(0, None), (1, 2)]


@pytest.mark.parametrize(("late_rounds", "used"), LATE)
def test_late_updates_are_told(world: Any, late_rounds: int, used: int | None) -> None:
    three_and_a_stranger(
        world, rounds=3, aggregation__late_rounds=late_rounds, aggregation__deadline_s=100
    )
    world.fleet.slow["c"] = 130.0
    world.fleet.slow["b"] = 60.0
    world.run()
    found = told_in_full(world)["late_replies"]
    assert found[0]["site"] == "c"
    assert (found[0]["base_round"], found[0]["staleness"]) == (1, 1)
    assert found[0]["used_in_round"] == used


def test_forks_and_gaps_of_journals_are_kept(world: Any) -> None:
    three_and_a_stranger(world, rounds=1)
    journal = world.consortium.journal
    accepted = {"weight": 1.0, "norm": 1.0, "update": "x", "study": "demo"}
    for number, head in ((1, "a" * 64), (2, "a" * 64), (3, ""), (4, "b" * 64)):
        journal.append("round opened", study="demo", round=number, base="", sites=["a"])
        journal.append("reply accepted", round=number, site="a", site_head=head, **accepted)
    journal.append("journal fork", study="demo", round=4, site="b", order="train", head="f" * 64)
    declined = {"order": "train", "status": "refused", "reason": "cut"}
    journal.append(
        "site declined", study="demo", round=4, site="c", code="journal-fork", **declined
    )
    said = [
        (one["round"], one["site"], one["what"]) for one in told_in_full(world)["journal_alarms"]
    ]
    assert said == [
        (2, "a", "gap: the site's journal has not grown since round 1"),
        (3, "a", "gap: no head of the site's journal, which it sent in round 2"),
        (4, "b", "fork: the coordinator's journal is not the one that the site heard of"),
        (4, "c", "fork: the site's journal is not the one that the coordinator heard of"),
    ]


def test_an_older_journal_lacks_facts_and_nothing_is_made_up(world: Any) -> None:
    three_and_a_stranger(world)
    journal = world.consortium.journal
    journal.append("round opened", study="demo", round=1, base="", sites=["a", "b"])
    journal.append(
        "reply accepted", study="demo", round=1, site="a", update="x", norm=1.0, weight=1.0
    )
    ended = {"took_part": ["a"], "dropped": {"b": "no-answer"}, "seconds": 3.0, "weights": "w"}
    journal.append("round closed", study="demo", round=1, **ended)
    report = told_in_full(world)
    (one,) = report["attempts"]
    assert (one["ordered"], one["order_bytes"], one["share_of_weight"]) == (["a", "b"], None, None)
    assert (one["sites"]["a"]["bytes"], one["sites"]["a"]["cosine"]) == (None, None)
    assert report["conduct"]["a"]["drift"] is None
    assert report["journal_alarms"] == []
