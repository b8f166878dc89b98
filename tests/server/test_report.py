from __future__ import annotations

from typing import Any

import pytest

from common.errors import FederationError, PrivacyError
from server.report import study_report
from server.scheduler import run_study


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


def test_refused_replies_and_failed_rounds_are_told(world: Any) -> None:
    world.join("a", "b")
    world.publish()
    world.rounds().offer({})
    bad = world.hospitals["b"]
    bad.replies["train"] = lambda _order, good: type(good)()
    with pytest.raises(FederationError):
        world.run()
    report = told(world)
    assert [r["reason"] for r in report["failed_rounds"]] == ["quorum of 2 missed"] * 3
    assert {r["code"] for r in report["refused_replies"]} == {"update-form"}
    assert report["rounds_closed"] == 0


def test_states_follow_what_happens(world: Any) -> None:
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
