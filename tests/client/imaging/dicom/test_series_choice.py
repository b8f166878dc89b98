"""Which of a study's series are used, and whether what is said of the others is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from client.imaging.dicom.series_choice import Choice, choose
from client.imaging.dicom.series_facts import Facts
from client.imaging.dicom.studies import Series, Study

T1: dict[str, Any] = {
    "description": "AX T1",
    "tr": 500.0,
    "te": 10.0,
    "scanning": ("SE",),
    "shape": (256, 256),
    "spacing_mm": (1.0, 1.0, 5.0),
    "slices": 30,
    "started_s": 100.0,
}


def chosen(*series: dict[str, Any], decided: dict[str, str] | None = None) -> Choice:
    facts = [Facts(number=number, **{**T1, **one}) for number, one in enumerate(series, start=1)]
    made = tuple(Series(str(one.number), str(one.number), one, (), None, "") for one in facts)
    study = Study("1.2", "p", "20200101", Path("study"), made)
    return choose(study, lambda one: (decided or {}).get(one.uid))


INSTEAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    # the series that is not used, the one that is, why
    "both without a word of contrast, the same time": ({}, {}, "it has the higher number"),
    "both without a word of contrast": ({}, {"started_s": 200.0}, "it was acquired later"),
    "one is said to be without": (
        {"started_s": 200.0},
        {"description": "AX T1 pre"},
        "of this one nothing says that it is without contrast",
    ),
    "thinner slices": (
        {"started_s": 200.0},
        {"spacing_mm": (1.0, 1.0, 1.0), "slices": 150},
        "its voxels are more isotropic",
    ),
    "computed": (
        {"image_type": ("DERIVED", "SECONDARY", "MPR"), "spacing_mm": (1.0, 1.0, 3.5)},
        {},
        "this one was computed from other images",
    ),
    "both with contrast": (
        {"description": "AX T1 KM"},
        {"description": "AX T1 KM", "started_s": 200.0},
        "it was acquired later",
    ),
}


@pytest.mark.parametrize("name", INSTEAD)
def test_a_series_that_is_not_used_says_what_the_used_one_has(name: str) -> None:
    other, best, why = INSTEAD[name]
    left, used = chosen(other, best).judged
    assert used.used
    assert not left.used
    assert left.why == f"series 2 is used instead: {why}"


def test_a_series_that_a_person_chose_is_not_said_to_be_better() -> None:
    used, left = chosen({}, {"started_s": 200.0}, decided={"1": "t1n"}).judged
    assert used.used
    assert left.why == "series 1 is used instead: a person chose it"


def test_what_was_looked_at_is_said_once() -> None:
    found = chosen({"description": "localizer"}, {"description": "AX DWI"})
    assert len(found.missing) == 4
    (note,) = found.notes()
    assert note.startswith("t1n, t1c, t2w, t2f: no series for them; 2 were looked at, series 1")


AGENT = {"contrast": "Gadovist"}
POST = {"description": "AX T1 POST", "started_s": 200.0, **AGENT}


@pytest.mark.parametrize("started_s", [100.0, None])
def test_an_agent_recorded_for_the_whole_examination_is_no_word_about_the_first_t1(
    started_s: float | None,
) -> None:
    found = chosen({"started_s": started_s, **AGENT}, POST)
    first, second = found.judged
    assert second.used
    assert not first.used
    assert "may have been acquired before it" in first.why
    assert found.candidates("t1n") == (first,)


@pytest.mark.parametrize("first", [{"started_s": 300.0}, {"description": "AX T1 PRE"}])
def test_an_agent_recorded_later_or_against_the_name_raises_no_question(
    first: dict[str, Any],
) -> None:
    found = chosen({**first, **AGENT}, POST)
    assert not found.candidates("t1n") or "t1n" in found.chosen


def test_the_record_decides_where_no_name_does() -> None:
    found = chosen({"contrast": ""}, {"started_s": 200.0, **AGENT})
    assert [one.verdict.role for one in found.judged if one.used] == ["t1n", "t1c"]
