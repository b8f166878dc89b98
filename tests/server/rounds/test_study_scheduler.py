from __future__ import annotations

import datetime as dt
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import FederationError, PrivacyError, StateError
from common.records.journal import Journal
from server.consortium import key_rotation, published_study
from server.reporting.study_report import study_report
from server.rounds import study_scheduler
from server.rounds.study_scheduler import run_study, schedule
from tests.certificates import expired


@pytest.fixture(autouse=True)
def without_waiting(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_scheduler, "time", world.clock)


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

    monkeypatch.setattr(study_scheduler, "dt", SimpleNamespace(UTC=dt.UTC, datetime=Later))


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


class Disk:
    """Lets writes fail from one moment on, until it has room again."""

    def __init__(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.refused = 0
        append, save = Journal.append, published_study.save

        def written(journal: Any, event: str, **facts: Any) -> Any:
            self._check("journal-write")
            return append(journal, event, **facts)

        def saved(*arguments: Any, **options: Any) -> None:
            self._check("disk-full")
            save(*arguments, **options)

        monkeypatch.setattr(Journal, "append", written)
        monkeypatch.setattr(published_study, "save", saved)
        self.world = world

    def _check(self, code: str) -> None:
        if self.full:
            self.refused += 1
            raise StateError("The disk is full.", do="Free space.", code=code)

    def fill(self, *, for_s: float) -> None:
        self.full = True
        self.world.clock.after(for_s, self.empty)

    def empty(self) -> None:
        self.full = False


@pytest.fixture
def disk(world: Any, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(world, monkeypatch)


def full_at(disk: Disk, monkeypatch: pytest.MonkeyPatch, *, round_number: int, what: str) -> None:
    """Let the disk be full for ten minutes when the round's ``what`` is to be written."""
    journal, checkpoint = Journal.append, published_study.save

    def append(self: Any, event: str, **facts: Any) -> Any:
        if (event, facts.get("round")) == (what, round_number) and not disk.refused:
            disk.fill(for_s=600.0)
        return journal(self, event, **facts)

    def save(path: Any, *arguments: Any, **options: Any) -> None:
        if what == "checkpoint" and path.stem == f"{round_number:04d}" and not disk.refused:
            disk.fill(for_s=600.0)
        checkpoint(path, *arguments, **options)

    monkeypatch.setattr(Journal, "append", append)
    monkeypatch.setattr(published_study, "save", save)


WRITES = ["round opened", "reply accepted", "checkpoint", "round closed", "evaluated"]


@pytest.mark.parametrize("what", WRITES)
def test_a_full_disk_pauses_the_study_and_launch_goes_on(
    two: Any,
    disk: Disk,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full_at(disk, monkeypatch, round_number=2, what=what)
    study = two.consortium.study("demo")
    study.want("running")
    began = two.clock.now
    schedule(two.consortium, two.fleet, ended=Turns(1))
    assert two.clock.now - began >= 600
    (paused,) = two.events("study paused")
    assert paused["reason"] == "The disk is full. Free space."
    assert paused["code"] == ("disk-full" if what == "checkpoint" else "journal-write")
    assert study.wanted == "stopped"
    assert capsys.readouterr().err.count("The disk is full. Free space.") == disk.refused
    assert [facts["round"] for facts in two.events("round closed")][:1] == [1]

    study.want("running")
    schedule(two.consortium, two.fleet, ended=Turns(1))
    assert two.names()[-1] == "study finished"
    assert [facts["round"] for facts in two.events("round closed")] == [1, 2]
    assert float(two.weights()["conv_final.0.weight"].mean()) == 2.0
    for hospital in two.hospitals.values():
        assert len(hospital.trained) == 2, "nothing was trained twice"


def test_a_study_that_is_launched_before_its_pause_can_be_written_goes_on(
    two: Any, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_at(disk, monkeypatch, round_number=2, what="round opened")
    study = two.consortium.study("demo")
    study.want("running")

    def launch() -> None:
        disk.empty()
        two.consortium.journal.append("study launched", study="demo")
        study.want("running")

    two.clock.after(300.0, launch)
    schedule(two.consortium, two.fleet, ended=Turns(2))
    assert not two.events("study paused")
    assert two.names()[-1] == "study finished"


def test_an_approval_that_cannot_be_written_is_asked_for_again(two: Any, disk: Disk) -> None:
    disk.fill(for_s=5.0)
    schedule(two.consortium, two.fleet, ended=Turns(5))
    assert disk.refused
    assert {facts["site"] for facts in two.events("study approved")} == {"a", "b"}


def test_a_study_waits_while_no_hospital_comes_through_and_goes_on_by_itself(two: Any) -> None:
    folder = two.consortium.folder
    (folder / "server.crt").write_bytes(expired(folder))
    two.clock.after(600, lambda: key_rotation.renew_certificate(two.consortium, by="Ada"))
    study = two.consortium.study("demo")
    study.want("running")
    run_study(two.consortium, study, two.fleet)
    (waits,) = two.events("study waits")
    assert "rotate-certificate" in waits["reason"]
    assert two.names()[-1] == "study finished"
    assert not two.events("study paused", "round failed")
    assert two.clock.now >= 1600


def test_a_study_that_waits_can_be_stopped_and_says_why_it_waits(two: Any) -> None:
    folder = two.consortium.folder
    (folder / "server.crt").write_bytes(expired(folder))
    study = two.consortium.study("demo")
    study.want("running")
    told: list[str] = []

    def stop() -> None:
        report = study_report(study, two.consortium.journal, admitted=["a", "b"])
        told.append(f"{report['state']}: {report['last_problem']}")
        study.want("stopped")

    two.clock.after(30, stop)
    run_study(two.consortium, study, two.fleet)
    assert two.names()[-1] == "study stopped"
    assert told[0].startswith("running: The TLS certificate")
