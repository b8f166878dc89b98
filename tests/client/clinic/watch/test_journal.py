"""What was done is known from the disk, whatever ended the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.clinic.watch.journal import MOST_ATTEMPTS, Journal, alias
from common.errors import CaseError, StateError


def test_a_result_appears_whole_and_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.due("one", "a")
    place = journal.begin("one", "a")
    assert place is not None
    place.mkdir()
    (place / "half").write_text("x")
    assert Journal(tmp_path).due("one", "a")  # as after a kill
    assert not place.exists()
    again = journal.begin("one", "a")
    assert again is not None
    again.mkdir()
    (again / "result.json").write_text("{}")
    journal.finish("one", again)
    assert not Journal(tmp_path).due("one", "a")
    assert not Journal(tmp_path).due("one", "b")
    assert journal.record("one").state == "done"


def test_a_refused_study_waits_until_its_files_change(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin("one", "a")
    journal.refuse("one", CaseError("No brain.", code="case-x"))
    assert (journal.record("one").code, journal.record("one").reason) == ("case-x", "No brain.")
    assert not Journal(tmp_path).due("one", "a")
    assert Journal(tmp_path).due("one", "b")


def test_a_study_that_ends_the_process_is_refused_at_last(tmp_path: Path) -> None:
    for _ in range(MOST_ATTEMPTS):
        assert Journal(tmp_path).begin("one", "a") is not None
    journal = Journal(tmp_path)
    assert journal.due("one", "a")
    assert journal.begin("one", "a") is None
    assert journal.record("one").code == "watch-attempts"
    assert not journal.due("one", "a")


def test_an_attempt_that_failed_for_another_reason_does_not_count(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for _ in range(2 * MOST_ATTEMPTS):
        assert journal.begin("one", "a") is not None
        journal.put_back("one")


def test_a_damaged_record_is_said(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "one.json").write_text('{"study": 1}')
    with pytest.raises(StateError, match="damaged"):
        Journal(tmp_path).record("one")


@pytest.mark.parametrize("name", ["../up", "Müller Hans", "x" * 200, ""])
def test_no_name_leaves_the_folder(tmp_path: Path, name: str) -> None:
    journal = Journal(tmp_path)
    assert journal.result(name) == tmp_path / "results" / f"study-{alias(name)}"
