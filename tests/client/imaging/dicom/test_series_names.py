"""What must happen to each of the series names in ``series_names.tsv``.

The names follow scanners' own protocols and what people type in thirteen languages; they were
collected before the grammar was written. ``must`` is the sequence that a person would call the
series; "other" is none of the four; "ask" is what a person would not decide by the name. ``agent``
is what the header records: "yes", "no", "-" (nothing) or "any" (whatever it records, the name
decides). The half that ``developed`` tells was looked at while the grammar was written, the other
only afterwards.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.imaging.dicom.sequence_recognition import SURE, weigh
from client.imaging.dicom.series_facts import Facts

AGENTS = {"yes": ("Gadovist",), "no": ("NONE",), "-": ("",), "any": ("", "Gadovist", "NONE")}
T1 = {"tr": 500.0, "te": 10.0, "scanning": ("SE",)}
TIMES: dict[str, list[dict[str, Any]]] = {
    "t1n": [{}, T1],
    "t1c": [{}, T1],
    "t2w": [{}, {"tr": 5000.0, "te": 100.0, "scanning": ("SE",)}],
    "t2f": [{}, {"tr": 9000.0, "te": 100.0, "ti": 2500.0, "scanning": ("SE", "IR")}],
    "other": [{}],
    "ask": [{}],
}


class Row(NamedTuple):
    must: str
    agent: str
    language: str
    maker: str
    name: str

    @property
    def plain(self) -> str:
        return " ".join(self.name.replace("_", " ").lower().split())


def rows() -> list[Row]:
    table = Path(__file__).with_name("series_names.tsv").read_text(encoding="utf-8")
    lines = csv.DictReader(table.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [Row(**one) for one in lines]


def developed(row: Row) -> bool:
    return hashlib.sha256(row.plain.encode()).digest()[0] % 2 == 0


def happens(name: str, agent: str = "", **more: Any) -> str:
    verdict = weigh(Facts(description=name, contrast=agent, **more))
    if verdict.left_out:
        return "other"
    return verdict.role if verdict.confidence >= SURE else "ask"


def all_that_happens(row: Row) -> set[str]:
    times = TIMES[row.must] + ([T1] if row.must == "ask" and "t1" in row.plain else [])
    return {happens(row.name, agent, **one) for agent in AGENTS[row.agent] for one in times}


ROWS = rows()


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.name} {row.agent}" for row in ROWS])
def test_a_name_is_read(row: Row) -> None:
    assert all_that_happens(row) == {row.must}


UNRELATED = ("ax", "SAG", "3D", "iso", "tse", "brain", "p2", "1mm", "512", "Head", "thick")


@given(
    row=st.sampled_from(ROWS),
    case=st.sampled_from((str.lower, str.upper, str)),
    separator=st.sampled_from((" ", "_", "  ", "_ ")),
    first=st.lists(st.sampled_from(UNRELATED), max_size=2),
    last=st.lists(st.sampled_from(UNRELATED), max_size=2),
)
def test_case_separators_and_unrelated_words_change_nothing(
    *, row: Row, case: Any, separator: str, first: list[str], last: list[str]
) -> None:
    words = row.name.replace("_", " ").split()
    last = last if row.name[-1].isalnum() else []  # a sign at the end is one at the end
    name = case(separator.join([*first, *words, *last]))
    changed = row._replace(name=name)
    assert all_that_happens(changed) == {row.must}, name
