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
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from client.imaging.dicom.contrast_words import Contrast, contrast
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


AGENTS_WRITTEN = (
    "Gd",
    "KM",
    "CE",
    "mdc",
    "contrast",
    "GADO",
    "Kontrastmittel",
    "CIV",
    "gadolinium",
)
HINTS = ("C", "IV")
PLACES = ("T1 {} tra", "{} T1 ax", "T1 sag {}", "AX_T1_{}_FS")
WITHOUT = (
    "-{}", "{}-", "{}(-)", "{} (-)", "({}-)", "w/o {}", "w/o-{}", "without {}", "wo {}", "ohne {}",
    "kein {}", "sin {}", "sans {}", "senza {}", "sem {}", "zonder {}", "geen {}", "bez {}",
    "utan {}", "pre {}", "pre-{}", "vor {}", "avant {}", "prima del {}", "voor {}", "przed {}",
    "antes de {}", "no {}", "non-{}", "s/{}", "s/ {}", "[-] {}", "\u2013{}", "{}\u2212",
)  # fmt: skip
WITH = (
    "{}", "+{}", "+ {}", "{}+", "{}(+)", "w/{}", "w/ {}", "with {}", "mit {}", "con {}",
    "avec {}", "com {}", "met {}", "post {}", "post-{}", "nach {}", "après {}", "dopo {}",
    "tras {}", "após {}", "c/{}", "c/ {}",
)  # fmt: skip


@pytest.mark.parametrize("form", WITHOUT)
def test_every_negation_negates_every_agent(form: str) -> None:
    for agent, place in itertools.product((*AGENTS_WRITTEN, *HINTS), PLACES):
        name = place.format(form.format(agent))
        assert contrast(name) is Contrast.WITHOUT, name


@pytest.mark.parametrize("form", WITH)
def test_every_affirmation_affirms_every_agent(form: str) -> None:
    for agent, place in itertools.product(AGENTS_WRITTEN, PLACES):
        name = place.format(form.format(agent))
        assert contrast(name) is Contrast.WITH, name


@pytest.mark.parametrize("agent", AGENTS_WRITTEN)
def test_a_hyphen_between_letters_joins(agent: str) -> None:
    for name in (f"T1-{agent}", f"{agent}-T1", f"T1_{agent}-FS", f"T1-{agent}-tra"):
        assert contrast(name) is Contrast.WITH, name


@pytest.mark.parametrize("no", ["ohne {}", "{}-", "-{}", "pre {}", "w/o {}", "sin {}"])
@pytest.mark.parametrize("yes", ["mit {}", "{}+", "post {}", "w/ {}", "con {}", "nach {}"])
def test_what_contradicts_itself_is_a_question(no: str, yes: str) -> None:
    for agent in AGENTS_WRITTEN:
        for name in (f"T1 {no} {yes}", f"{yes} T1 {no}", f"{no} / {yes} T1"):
            said = contrast(name.format(agent, agent))
            assert said in (Contrast.BOTH, Contrast.UNCLEAR), name


@pytest.mark.parametrize(
    "text", ["ohne FS", "w/o fat sat", "without FS", "sans fatsat", "sin FS", "senza FS", "no FS"]
)
def test_what_is_negated_need_not_be_contrast(text: str) -> None:
    assert contrast(f"T1 tra {text}") is Contrast.NOTHING
    assert contrast(f"T1 tra {text} KM") is Contrast.WITH
    assert contrast(f"T1 KM {text}") is Contrast.WITH


@pytest.mark.parametrize("name", ["T1-C", "BRAVO-C AX", "T1_SE-C"])
def test_a_hyphen_before_a_mere_c_may_join_or_negate(name: str) -> None:
    assert {happens(name, agent, **T1) for agent in ("", "Gadovist", "NONE")} == {"ask"}


@pytest.mark.parametrize("name", ["T1 C", "T1WI_SAGc", "AX T1 W", "AX T1 POST_XYZ"])
def test_what_may_mean_contrast_is_decided_by_the_record(name: str) -> None:
    said = {agent: happens(name, agent, **T1) for agent in ("", "Gadovist", "NONE")}
    assert said == {"": "ask", "Gadovist": "t1c", "NONE": "ask"}


def test_what_is_no_name_is_not_read() -> None:
    assert contrast("T1 Gd " * 43) is Contrast.UNCLEAR


@example(text="t1" * 128)
@example(text="t1w" * 85)
@example(text="gd " * 85)
@example(text="post" * 64)
@given(text=st.text(alphabet="t1 gdcw/+-()?.okmpresv_", max_size=256))
def test_any_name_is_read(text: str) -> None:
    assert contrast(text) in Contrast
