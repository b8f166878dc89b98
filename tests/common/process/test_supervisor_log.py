"""What a supervisor logs: its processes and each new fact, and no patient."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.process import logs, supervisor_log
from common.records.journal import Journal
from tests.logging_state import restored

PATIENT = "-".join(["BraTS", "PHA", "00042"])


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(logs.FORM, "")
    monkeypatch.delenv(logs.FORM)
    with restored():
        yield


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(tmp_path / "journal.jsonl")
    made.append("study offered", study="pilot")
    return made


def begin(journal: Journal, **options: Any) -> Any:
    return supervisor_log.begin(
        "site", known=lambda: ["pilot", "north"], journal=journal, site="north", **options
    )


def test_without_a_form_it_speaks_in_sentences(
    journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    told, tick = begin(journal, form=None)
    told("worker", "started", "42")
    assert tick is None
    assert capsys.readouterr().out == "worker started (42)\n"


@pytest.mark.parametrize("way", ["option", "environment"])
def test_json_lines(
    journal: Journal,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    if way == "environment":
        monkeypatch.setenv(logs.FORM, "json")
    monkeypatch.setattr("common.process.supervisor_log._LOOK_EVERY_S", 0.0)
    told, tick = begin(journal, form="json" if way == "option" else None)
    told("worker", "started", "42")
    tick()
    facts = {"study": "pilot", "round": 3, "order": "train", "bytes": 7, "patient": PATIENT}
    journal.append("sent", **facts, what=PATIENT)
    journal.append("order failed", study=PATIENT, code="internal", error=PATIENT)
    tick()
    tick()
    told("worker", "ended", "exit code 1")
    said = capsys.readouterr()
    assert said.out == ""
    assert PATIENT not in said.err
    started, sent, failed, ended = map(json.loads, said.err.splitlines())
    assert (started["event"], started["child"], started["pid"]) == ("child started", "worker", 42)
    assert (sent["event"], sent["study"], sent["round"]) == ("sent", "pilot", 3)
    assert (sent["site"], sent["order"], sent["bytes"]) == ("north", "train", 7)
    assert (failed["code"], "study" in failed) == ("internal", False)
    assert (ended["event"], ended["level"]) == ("child ended", "warning")
    assert os.environ[logs.FORM] == "json", "the children take the same form"


def test_text_lines_beside_the_sentences(
    journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    told, _ = begin(journal, form="text")
    told("worker", "started", "42")
    said = capsys.readouterr()
    assert said.out == "worker started (42)\n"
    assert "process=site" in said.err
    assert "child=worker" in said.err


def test_it_looks_once_a_second_and_says_a_damaged_journal_once(
    journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("site", known=list, form="json")
    now = [0.0]
    look = supervisor_log.Chronicle(journal, logs.get_logger("x"), clock=lambda: now[0])
    look()
    journal.path.write_bytes(journal.path.read_bytes().replace(b"offered", b"offereD"))
    look()
    assert capsys.readouterr().err == ""
    for _ in range(3):
        now[0] += 1.1
        look()
    (said,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert said["code"] == "journal-damaged"


def test_a_journal_that_begins_later_is_followed_from_its_first_fact(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("site", known=list, form="json")
    journal, now = Journal(tmp_path / "j"), [0.0]
    look = supervisor_log.Chronicle(journal, logs.get_logger("x"), clock=lambda: now[0])
    look()
    journal.append("site made")
    now[0] = 2.0
    look()
    assert json.loads(capsys.readouterr().err)["event"] == "site made"
