"""The hospital's stop: nothing is computed and nothing leaves, until it is lifted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from client.commands import site as site_commands
from client.commands.supervisor import children
from client.privacy import budget_caps
from client.runtime.order_handler import Participation
from client.site import stop
from client.site.folder import Site
from client.study import round_training
from common.errors import ConsentError, StateError
from common.messages.wire_format import Report
from common.records.atomic_files import held
from common.study.protocol import StudyProtocol
from common.web.listen_address import Place
from server.consortium.provisioning import Consortium
from tests.consortia import answer, approve, edit, events, order, tiny_protocol

OPEN = {"privacy": {"mode": "none"}}
WHY = "Dr. Tamm asked for it"


class Hospital:
    """A site that approved a study, and its coordinator's orders."""

    def __init__(self, site: Site, consortium: Consortium, protocol: StudyProtocol) -> None:
        self.site, self.protocol, self.consortium = site, protocol, consortium
        approve(site, consortium, protocol)
        self.participation = Participation(site)
        self.weights = round_training.starting_weights(protocol)

    def ask(self, kind: Any, *, number: int = 1) -> tuple[Report, Any]:
        weights = self.weights if kind in {"train", "evaluate"} else None
        content = order(
            self.consortium.identity, self.protocol, kind, number=number, weights=weights
        )
        return answer(self.participation, content)

    def steps(self) -> int:
        with budget_caps.open_ledger(self.site) as ledger:
            return sum(fact.steps for fact in ledger.facts())


@pytest.fixture
def hospital(site: Site, consortium: Consortium, protocol: StudyProtocol) -> Hospital:
    return Hospital(site, consortium, protocol)


@pytest.mark.parametrize("kind", ["initial", "describe", "train", "evaluate"])
def test_a_stopped_site_refuses_whatever_computes(hospital: Hospital, kind: str) -> None:
    stop.stop(hospital.site, by="Bo", reason=WHY)
    report, arrays = hospital.ask(kind)
    assert (report.status, report.code, arrays) == ("refused", "site-stopped", {})
    assert WHY not in report.model_dump_json()
    assert hospital.steps() == 0
    assert not events(hospital.site, "training")
    assert not [e for e in events(hospital.site, "sent") if e["order"] != "offer"]


def test_a_stopped_site_still_hears_of_studies(hospital: Hospital) -> None:
    stop.stop(hospital.site, by="Bo")
    report, _ = hospital.ask("offer", number=0)
    assert (report.status, bool(report.approval)) == ("done", True)


def test_a_stop_outlasts_the_worker_and_resuming_takes_the_order_up(hospital: Hospital) -> None:
    stop.stop(hospital.site, by="Bo", reason=WHY)
    hospital.participation = Participation.open(hospital.site.folder)  # the worker is started anew
    assert hospital.ask("train")[0].code == "site-stopped"
    lifted = stop.resume(hospital.site, by="Ada")
    assert lifted is not None
    assert (lifted.by, lifted.reason) == ("Bo", WHY)
    report, arrays = hospital.ask("train")
    assert report.status == "done"
    assert arrays
    (stopped,), (resumed,) = (events(hospital.site, f"site {e}") for e in ("stopped", "resumed"))
    assert stopped == {"by": "Bo", "reason": WHY}
    assert resumed == {"by": "Ada", "stopped": lifted.time}
    assert stop.resume(hospital.site, by="Ada") is None


@pytest.mark.parametrize("protocol", [tiny_protocol(), tiny_protocol(**OPEN)], ids=["dp", "open"])
def test_training_ends_before_its_next_step_and_nothing_leaves(
    site: Site, consortium: Consortium, protocol: StudyProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = edit(site, "allow_without_privacy = false", "allow_without_privacy = true")
    hospital = Hospital(site, consortium, protocol)
    looked = []

    def after_one_step(of: Site) -> None:
        looked.append(1)
        if len(looked) == 2:
            stop.stop(of, by="Bo")
        stop.check_not_halted(of)

    monkeypatch.setattr("client.study.round_training._prepare", lambda *_: None)
    monkeypatch.setattr("client.site.preemption.check_not_halted", after_one_step)
    report, arrays = hospital.ask("train")
    assert (report.code, arrays) == ("site-stopped", {})
    assert len(looked) == 2, "it went on"
    spent = 1 if protocol.private else protocol.training.local_steps  # those as a whole, ahead
    assert hospital.steps() == spent, "what was taken stays spent"
    assert not list((site.folder / "outbox").rglob("*.safetensors"))


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_what_is_ready_when_the_stop_comes_does_not_leave(
    hospital: Hospital, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "evaluate":
        hospital.ask("train")  # scores leave of a round that was trained
    hold = Participation._hold

    def stopped_meanwhile(self: Participation, **how: bool) -> None:
        stop.stop(hospital.site, by="Bo")
        hold(self, **how)

    monkeypatch.setattr(Participation, "_hold", stopped_meanwhile)
    report, arrays = hospital.ask(kind)
    assert (report.status, report.code, report.dice, arrays) == (
        "refused",
        "site-stopped",
        None,
        {},
    )
    monkeypatch.undo()
    stop.resume(hospital.site, by="Bo")
    spent = hospital.steps()
    report, _ = hospital.ask(kind)
    assert report.status == "done"
    assert hospital.steps() == spent, "what was made is sent, and not made again"


def test_a_stop_while_training_waits_for_the_clinic(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.site import preemption

    def stop_now(_: float) -> None:
        stop.stop(hospital.site, by="Bo")

    with held(hospital.site.clinic_lock, what="a job", shared=True):
        wait = preemption.yielding(hospital.site, sleep=stop_now)
        with pytest.raises(ConsentError, match="has stopped this site"):
            wait()


def test_an_order_that_comes_every_minute_is_journalled_once(hospital: Hospital) -> None:
    stop.stop(hospital.site, by="Bo")
    for _ in range(3):
        assert hospital.ask("train")[0].code == "site-stopped"
    assert len(events(hospital.site, "declined")) == 1
    hospital.ask("train", number=2)
    assert [e["round"] for e in events(hospital.site, "order refused")] == [1, 2]


@pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense"])
def test_a_stop_that_cannot_be_read_is_a_stop(hospital: Hospital, text: str) -> None:
    hospital.site.stopped.write_text(text)
    assert hospital.ask("train")[0].code == "site-stopped"
    assert "damaged" in str(stop.halted(hospital.site))
    assert stop.resume(hospital.site, by="Bo") is not None
    assert stop.halted(hospital.site) is None


def test_a_full_disk(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StateError("The disk is full.", code="disk-full")

    with monkeypatch.context() as patched:
        patched.setattr("client.site.stop.write_json", full)
        with pytest.raises(StateError, match="north is NOT stopped") as caught:
            stop.stop(site, by="Bo")
        assert "End `gliofed-site run`" in caught.value.do
    with monkeypatch.context() as patched:
        patched.setattr("common.records.journal.Journal.append", full)
        with pytest.raises(StateError, match="is stopped, but its journal"):
            stop.stop(site, by="Bo")
        assert stop.halted(site) is not None
        with pytest.raises(StateError, match="disk is full"):
            stop.resume(site, by="Bo")
    assert stop.halted(site) is not None, "lifted only when the journal has it"


def test_a_stop_ends_the_supernode_that_sends(site: Site) -> None:
    supernode, worker = children(site)
    assert site.stopped in supernode.cut_by
    assert site.stopped not in worker.cut_by, "the worker stays warm"


def test_a_page_and_metrics_have_a_process_of_their_own(site: Site) -> None:
    place = Place("127.0.0.1", 8480)
    assert [one.name for one in children(site)] == ["supernode", "worker"]
    for page, metrics, words in (
        (place, None, ["127.0.0.1:8480", "-"]),
        (None, place, ["-", "127.0.0.1:8480"]),
    ):
        last = children(site, page=page, metrics=metrics)[-1]
        assert (last.name, list(last.command)[-2:], last.ends) == ("page", words, ())


@pytest.fixture
def site_command(command: Callable[..., Any]) -> Callable[..., Any]:
    return functools.partial(command, site_commands.main)


def test_the_commands(site_command: Callable[..., Any], site: Site) -> None:
    assert "is not stopped" in site_command("resume", site.folder).out
    said = site_command("stop", site.folder, "--reason", "a  new\nscanner")
    assert (said.code, "north is stopped." in said.out) == (0, True)
    assert stop.halted(Site.open(site.folder)).reason == "a new scanner"  # type: ignore[union-attr]
    assert "stopped already" in site_command("stop", site.folder).out
    assert len(events(site, "site stopped")) == 1
    with held(site.lock, what="x"):
        healthy = site_command("health", site.folder)
        assert healthy.code == 0, "it runs: nobody shall restart it for that"
        assert "carries out no order: stopped since" in " ".join(healthy.err.split())
    shown = site_command("status", site.folder, "--json").json
    assert (shown["runs"], shown["stopped"][-13:]) == (False, "a new scanner")
    assert "a new scanner" in site_command("status", site.folder).out
    assert "takes orders again" in site_command("resume", site.folder).out
    assert not site.stopped.exists()


def test_the_folder_of_a_stopped_site_says_so(site: Site) -> None:
    made = stop.stop(site, by="Bo", reason=WHY)
    assert stop.stop(site, by="Ada", reason="another") == made
    assert stop.halted(Site.open(site.folder)) == made
    assert str(made) == f"since {made.time[:10]} {made.time[11:16]} UTC by Bo: {WHY}"
