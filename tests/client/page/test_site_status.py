"""What the page knows of a site, and what it says when something is broken."""

from __future__ import annotations

import datetime as dt
import json
import os
from pathlib import Path
from typing import Any

import pytest

from client.page import site_status as module
from client.page.site_status import Readings, window
from client.page.status_text import in_words
from client.site import stop
from client.site.activity import Activity
from client.site.folder import Site
from client.views.cohort_check import check_site
from common.errors import PrivacyError, StateError
from common.messages.wire_format import Order
from common.records.atomic_files import held
from common.study.protocol import PreprocessingOptions
from tests.consortia import STUDY, edit

TRAIN = Order(kind="train", study=STUDY, round=1, protocol="")


def test_a_site_that_did_nothing_yet(readings: Readings) -> None:
    found = readings.now()
    assert (found.running, found.halt, found.doing, found.left) == (False, None, None, ())
    assert (found.contact, found.studies, found.troubles) == ("", {}, ())
    assert [one.study for one in found.budgets] == [""]


def test_a_site_that_took_part(trained: Site, readings: Readings) -> None:
    found = readings.now()
    assert found.studies == {STUDY: "approved"}
    assert [one["what"] for one in found.left] == ["a refusal", "weight update"]
    assert found.kinds["weight update"][0] == 1
    assert found.kinds["weight update"][1] > 10_000
    study, together = found.budgets
    assert (study.study, study.steps) == (STUDY, 2)
    assert 0 < study.epsilon <= study.cap == 8.0
    assert (together.study, together.cap) == ("", 10.0)
    assert found.orders[STUDY, "train", "done"][0] == 1
    assert found.orders[STUDY, "train", "done"][1] > 0
    assert found.orders[STUDY, "train", "rounds"][0] == 1
    assert found.events[0].event == "declined"
    assert all(set(one.facts) <= set(module._SHOWN) for one in found.events)


def test_nothing_of_it_names_a_patient(
    trained: Site, readings: Readings, patients: list[str]
) -> None:
    (trained.folder / "flower").mkdir(exist_ok=True)
    trained.journal.append("patient withdrawn", patient="0" * 32, why=patients[0], case=patients[1])
    said = repr(readings.now()) + json.dumps(in_words(readings.now()))
    assert len(patients) > 5
    assert not [name for name in patients if name in said]
    assert "0" * 32 not in said


def test_what_runs_now(trained: Site, readings: Readings) -> None:
    ticks = iter(range(100))
    activity = Activity(trained, clock=lambda: next(ticks) / 10)
    before = readings.mark()
    with activity.doing(TRAIN):
        assert readings.mark() != before
        doing = readings.now().doing
        assert doing is not None
        assert (doing.study, doing.round, doing.order, doing.steps) == (STUDY, 1, "train", 0)
        for step in range(1, 9):
            activity.step(step, 8)
        doing = readings.now().doing
        assert doing is not None
        assert (doing.step, doing.steps) == (8, 8)
        assert in_words(readings.now())["steps"] == "8 of 8"
    assert readings.now().doing is None


def test_the_first_step_is_told_however_soon_it_is_done(trained: Site, readings: Readings) -> None:
    activity = Activity(trained, clock=lambda: 0.0)
    with activity.doing(TRAIN):
        for done, told in ((1, 1), (2, 1), (3, 3)):
            activity.step(done, 3)
            doing = readings.now().doing
            assert doing is not None
            assert (doing.step, doing.steps) == (told, 3)


def test_what_a_killed_worker_left_is_not_shown(trained: Site, readings: Readings) -> None:
    activity = Activity(trained)
    path = trained.folder / "flower" / "activity.json"
    with activity.doing(TRAIN):
        left = json.loads(path.read_text())
    for value in ({**left, "pid": 2**22 + 1}, {"study": 1}, [], {**left, "pid": "x"}):
        path.write_text(json.dumps(value))
        assert Readings(trained.folder).now().doing is None, value


def test_a_disk_that_takes_nothing_costs_the_training_nothing(
    trained: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StateError("full", code="disk-full")

    monkeypatch.setattr("client.site.activity.write_bytes", full)
    with Activity(trained).doing(TRAIN):
        pass
    assert "not told what runs" in caplog.text


def test_a_damaged_journal_hides_neither_the_stop_nor_the_machine(
    trained: Site, readings: Readings
) -> None:
    stop.stop(trained, by="Bo")
    path = trained.journal.path
    path.write_bytes(path.read_bytes().replace(b"consortium joined", b"consortium joineD", 1))
    found = readings.now()
    assert found.halt is not None
    assert "is damaged or was changed" in found.troubles[0]
    assert (found.left, found.machine.processors) == ((), 16)


def test_accountants_that_contradict_each_other_are_said(
    trained: Site, readings: Readings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def contradicts(*_: Any, **__: Any) -> None:
        raise PrivacyError("The accountants contradict each other.")

    monkeypatch.setattr("client.privacy.ledger.Ledger.spent", contradicts)
    assert readings.now().troubles == ("The accountants contradict each other.",)


def test_privacy_is_not_reckoned_while_an_order_is_carried_out(
    trained: Site, readings: Readings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = readings.now().budgets
    reckoned = []
    monkeypatch.setattr(module, "budgets", lambda _: reckoned.append(1) or first)
    with Activity(trained).doing(TRAIN):
        trained.journal.append("training", study=STUDY, round=2)
        assert readings.now().budgets == first
        assert not reckoned
    readings.now()
    assert reckoned == [1]


def test_nobody_waits_for_the_reckoning(trained: Site) -> None:
    waiting: list[Any] = []
    readings = Readings(trained.folder, aside=waiting.append)
    before = readings.mark()
    assert readings.now().budgets == ()
    readings.now()
    (work,) = waiting
    work()
    assert readings.mark() != before, "the page is told"
    assert len(readings.now().budgets) == 2


def test_when_the_coordinator_answered(trained: Site, readings: Readings) -> None:
    contact = trained.folder / "flower" / "contact"
    contact.parent.mkdir(exist_ok=True)
    contact.touch()
    os.utime(contact, (1_700_000_000, 1_700_000_000))
    assert readings.now().contact == "2023-11-14T22:13:20+00:00"


def test_a_site_that_runs(trained: Site, readings: Readings) -> None:
    with held(trained.lock, what="x"), held(trained.clinic_lock, what="x", shared=True):
        assert (readings.now().running, readings.now().clinic) == (True, True)


@pytest.mark.parametrize(
    ("hours", "now", "said"),
    [
        ("00:00-24:00", 12, "open at all hours"),
        ("08:00-17:00", 12, "open until 17:00"),
        ("20:00-06:00", 23, "open until 06:00"),
        ("20:00-06:00", 12, "closed; opens today at 20:00"),
        ("08:00-17:00", 18, "closed; opens tomorrow at 08:00"),
        ("00:00-00:00", 12, "never open (hours = 00:00-00:00)"),
    ],
)
def test_the_next_window(site: Site, hours: str, now: int, said: str) -> None:
    if hours != "00:00-24:00":
        site = edit(site, "00:00-24:00", hours)
    assert window(site, dt.datetime(2030, 5, 1, now, 0)) == said


def test_cases_are_counted_by_the_check(site: Site, readings: Readings) -> None:
    assert readings.now().cases == {}
    check_site(site, PreprocessingOptions(spacing_mm=6.0), workers=1)
    again = Readings(site.folder)
    assert again.now().cases == {"usable": 7, "labelled": 7, "refused": 0, "doubtful": 0}
    Path(site.checked).write_text("[]")
    assert Readings(site.folder).now().cases == {}
