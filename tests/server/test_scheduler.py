from __future__ import annotations

import datetime as dt
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import FederationError, PrivacyError
from server import scheduler
from server.scheduler import run_study, schedule


@pytest.fixture(autouse=True)
def without_waiting(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "time", world.clock)


@pytest.fixture
def two(world: Any) -> Any:
    world.join("a", "b")
    world.publish()
    return world


class Turns:
    """Ends a schedule after ``count`` turns."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_published_study_is_offered_before_it_is_launched(two: Any) -> None:
    schedule(two.consortium, two.fleet, ended=Turns(3))
    assert two.names() == ["study published", "study approved", "study approved"]
    assert two.hospitals["a"].asked == [("offer", 0)]


def test_a_pending_answer_is_said_once(world: Any) -> None:
    world.join("a", approves=False)
    world.publish()
    schedule(world.consortium, world.fleet, ended=Turns(5))
    assert len(world.events("site declined")) == 1
    assert len(world.hospitals["a"].asked) == 5


def test_an_expired_study_is_not_offered(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch)
    schedule(two.consortium, two.fleet, ended=Turns(2))
    assert two.hospitals["a"].asked == []


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scheduler believe that it is 2099."""

    class Later(dt.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return dt.datetime(2099, 1, 1, tzinfo=tz)

    monkeypatch.setattr(scheduler, "dt", SimpleNamespace(UTC=dt.UTC, datetime=Later))


def test_an_expired_study_is_paused(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch)
    study = two.consortium.study("demo")
    study.want("running")
    run_study(two.consortium, study, two.fleet)
    (paused,) = two.events("study paused")
    assert paused["code"] == "expired"
    assert study.wanted == "stopped"


def test_a_wanted_study_runs_to_its_end(two: Any) -> None:
    two.consortium.study("demo").want("running")
    schedule(two.consortium, two.fleet, ended=Turns(1))
    assert two.names()[-1] == "study finished"
    assert two.consortium.study("demo").wanted == "finished"


def test_studies_run_one_after_the_other(two: Any) -> None:
    two.publish("another", rounds=1)
    for name in ("demo", "another"):
        two.consortium.study(name).want("running")
    schedule(two.consortium, two.fleet, ended=Turns(2))
    finished = [facts["study"] for facts in two.events("study finished")]
    assert finished == ["another", "demo"]


def test_a_stopped_study_says_so_and_is_not_run_again(two: Any) -> None:
    study = two.consortium.study("demo")
    study.want("running")

    def stop(order: Any, good: Any) -> Any:
        two.fleet.deaf = {"b"}
        study.want("stopped")
        return good

    two.hospitals["a"].replies["train"] = stop
    schedule(two.consortium, two.fleet, ended=Turns(3))
    assert two.names()[-1] == "study stopped"
    assert len([kind for kind, _ in two.hospitals["a"].asked if kind == "train"]) == 1


def test_a_study_that_is_stuck_is_paused_with_its_reason(two: Any) -> None:
    two.rounds().approvals.gather(2)
    two.hospitals["b"].refuses = PrivacyError("no")
    study = two.consortium.study("demo")
    study.want("running")
    schedule(two.consortium, two.fleet, ended=Turns(2))
    (paused,) = two.events("study paused")
    assert paused["code"] == "quorum"
    assert "missed its quorum 3 times" in paused["reason"]
    assert study.wanted == "stopped"


def test_a_lost_connection_is_for_the_executor(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> str:
        raise FederationError("Flower did not take it.", code="order-push")

    monkeypatch.setattr(two.fleet, "send", broken)
    study = two.consortium.study("demo")
    study.want("running")
    with pytest.raises(FederationError, match="did not take it"):
        run_study(two.consortium, study, two.fleet)
    assert study.wanted == "running"
    assert not two.events("study paused")
