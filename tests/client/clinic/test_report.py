"""The report says all that a result holds, in HTML and PDF alike; nothing in it runs or loads."""

from __future__ import annotations

import base64
import re
from functools import cache
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from client.clinic.lesion_measurements import findings
from client.clinic.midline import Midline
from client.clinic.overlays import doubtful, overview
from client.clinic.rano_response import Before, change
from client.clinic.report.content import BANNER, Report, Table, Words, content
from client.clinic.report.html_page import page
from client.clinic.report.pdf_sheet import sheet
from client.clinic.result_schema import Result, federation_json, findings_json

NASTY = '<script>alert("1")</script> & Søn'
IDENTITY = {
    "name": "glioma-10",
    "version": "1.0.7",
    "round": 7,
    "weights_sha256": "ab" * 32,
    "preprocessing_sha256": "cd" * 32,
}
CARD = {
    "consortium": "Northern Consortium",
    "private": True,
    "privacy_unit": "patient; add or remove one",
    "intended_use": "Research. Not a medical device; a person reviews each result.",
    "sites": ["north", "south"],
    "rounds_per_site": {"north": 7, "south": 5},
    "privacy_spent": {"north": {"epsilon": 3.21, "delta": 1e-5}},
}


def head() -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Return images, labels, uncertainty and affine of a head with two lesions."""
    affine = np.diag([-2.0, -2.0, 4.0, 1.0])
    affine[:3, 3] = (95.0, 111.0, -60.0)
    x, y, z = np.moveaxis(np.stack(np.indices((96, 112, 34)), -1) @ affine[:3, :3], -1, 0)
    x, y, z = x + affine[0, 3], y + affine[1, 3], z + affine[2, 3]

    def ball(cx: float, cy: float, cz: float, *radii: float) -> np.ndarray:
        rx, ry, rz = radii
        return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 <= 1

    brain = ball(0, 0, 4, 68, 84, 58)
    labels = np.zeros(brain.shape, np.uint8)
    labels[ball(-30, 20, 8, 32, 30, 26)] = 2
    labels[ball(-30, 20, 8, 20, 15, 17)] = 3
    labels[ball(-30, 20, 8, 12, 9, 10)] = 1
    labels[ball(30, -40, 0, 7, 6, 8)] = 3
    noise = np.random.default_rng(0).normal(0, 12, brain.shape)
    texture = 200 + 30 * np.sin(x / 9) * np.cos(y / 11) + noise
    flair = np.where(brain, texture + 140 * (labels > 0), 0).astype(np.float32)
    t1c = np.where(brain, texture + 160 * (labels == 3) - 90 * (labels == 1), 0).astype(np.float32)
    unsure = np.where(labels == 2, 0.45, 0) + np.where(ball(-30, 20, 8, 22, 17, 19), 0.2, 0)
    return {"t2f": flair, "t1c": t1c}, labels, unsure.astype(np.float32), affine


def example(*, prior: bool = True, case: str = "case-07", **fields: Any) -> dict[str, Any]:
    """Return what ``result.json`` says of ``head``."""
    _, labels, _, affine = head()
    found = findings(labels, affine, Midline((1.0, 0.0, 0.0), 0.0))
    volumes = {"NCR": 4.5, "ED": 82.1, "ET": 18.4, "TC": 22.9, "WT": 105.0}
    ranges = {"WT": (98.2, 113.0), "TC": (20.1, 25.7), "ET": (15.9, 21.2)}
    before = Before(
        "earlier", "case-07-2026-01", "2026-01-14",
        {"NCR": 3.0, "ED": 70.0, "ET": 12.1, "TC": 15.1, "WT": 85.1},
        {"WT": (80.0, 99.0), "TC": (13.0, 17.0), "ET": (10.0, 14.0)},
        1, "ET", 840.0, "ef" * 32,
    )  # fmt: skip
    compared = change(
        before,
        volumes_ml=volumes,
        range_ml=ranges,
        of=found.of,
        lesions=len(found.lesions),
        sum_of_products_mm2=found.sum_of_products_mm2,
        model_sha256="ab" * 32,
    )
    source = {"file": "t1c.nii.gz", "channel": None, "series": None, "sha256": "0" * 64}
    value: dict[str, Any] = {
        "result_version": 1,
        "case": case,
        "source": "/archive/case-07",
        "study_date": "2026-04-02",
        "made": "2026-04-03T10:11:12+02:00",
        "volumes_ml": volumes,
        "range_ml": ranges,
        "missing": ["t2w"],
        "grid_of": "t1c",
        "confidence": {"WT": 0.93, "TC": 0.88, "ET": 0.85},
        "calibrated": True,
        "explanation": None,
        "familiarity": None,
        "findings": findings_json(found),
        "midline": {"normal": [1.0, 0.0, 0.0], "offset_mm": 0.0},
        "review": None,
        "change": compared.model_dump(mode="json") if prior else None,
        "model": IDENTITY,
        "federation": federation_json(CARD),
        "together_with": [{**IDENTITY, "version": "1.0.6", "round": 6}],
        "postprocessing": {},
        "precision": "float32",
        "device": "cpu",
        "layout": "channels last",
        "threads": 4,
        "inputs": dict.fromkeys(("t1n", "t1c", "t2f"), source),
        "preparation": [
            {"step": "missing", "sequences": ["t2w"], "value": -9.0},
            {"step": "n4", "sequence": "t1c"},
            {"step": "register", "sequence": "t2f", "to": "t1c", "residual_mm": 0.4},
            {"step": "brain", "sequence": "t1n", "volume_ml": 1387.2, "method": "x"},
            {"step": "quality", "covered": {"t1c": 1.0, "t2f": 0.97}, "warnings": []},
            {"step": "resample", "from_mm": [2.0, 2.0, 4.0], "to_mm": 1.0, "interpolated": True},
        ],
        "prepared_sha256": "1" * 64,
        "dicom": {},
        "outputs": {},
        "software": {},
        "warnings": [
            "Research use only: a person must review this segmentation.",
            "Without T2 (t2w): the segmentation is less exact than with all four sequences.",
        ],
        "stages": {"predict": {"wall_s": 10.0, "cpu_s": 19.5}},
        "seconds": 12.3,
    }
    return {**value, **fields}


@cache
def pictures() -> tuple[bytes, bytes]:
    images, labels, unsure, affine = head()
    largest = findings(labels, affine, None).lesions[0].diameters
    volumes = example()["volumes_ml"]
    return (
        overview(images, labels, affine, volumes=volumes, diameters=largest),
        doubtful(images, labels, affine, uncertainty=unsure, diameters=largest),
    )


def report(**changes: Any) -> Report:
    outlines, doubt = pictures()
    return content(Result.model_validate(example(**changes)), overview=outlines, doubtful=doubt)


@pytest.fixture(scope="module")
def whole() -> Report:
    return report(case=NASTY)


def texts(found: Report) -> list[str]:
    lines = [found.title, *found.facts]
    for section in found.sections:
        lines.append(section.title)
        for block in section.blocks:
            if isinstance(block, Table):
                lines += [cell for row in (block.head, *block.rows) for cell in row if cell]
            elif isinstance(block, Words):
                lines += block.lines
    return [line.replace("\u00a0", " ") for line in lines]


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_says_everything_and_runs_nothing(whole: Report) -> None:
    html = page(whole).decode()
    read = Page()
    read.feed(html)
    said = " ".join(" ".join(read.words).split())
    for text in (*texts(whole), BANNER, "Name", "Date", "Signature"):
        assert " ".join(text.split()) in said
    assert not {"script", "link", "iframe", "object", "form", "a"} & {tag for tag, _ in read.tags}
    policy = next(one for tag, one in read.tags if "http-equiv" in one)["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    pictures = [one["src"] or "" for tag, one in read.tags if tag == "img"]
    assert len(pictures) == 2
    for source in pictures:
        start, data = source.split(",")
        assert start == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
    assert not re.search(r"https?://|url\(", html)


def test_the_numbers_are_those_of_the_result(whole: Report) -> None:
    said = " ".join(texts(whole))
    for words in (
        "18.4", "15.9 to 21.2", "0.85", "2 enhancing lesions, on both sides", "40 × 28",
        "+52.1 %", "by volume: progression (thresholds −65 %, +40 %)", "An aid, no RANO assessment",
        "2026-01-14", "Study of 2026-04-02", "Another model made the earlier result",
        "The ranges of WT then and now overlap", "FLAIR (two estimates differ by 0.4 mm)",
        "at least 97 % of the brain", "Missing: T2.", "3.21", "1e-05", "2 sites", "ab" * 32,
        "with differential privacy", "calibrated on this site's patients",
    ):  # fmt: skip
        assert words in said, words


def test_the_sheet_is_a_pdf_with_the_same_bytes_each_time(whole: Report) -> None:
    first = sheet(whole)
    assert first.startswith(b"%PDF-")
    assert first == sheet(whole)
    assert b"/JavaScript" not in first
    assert b"DejaVuSans" in first
    assert len(re.findall(rb"/Subtype /Image", first)) >= 2


def test_what_is_not_there_is_said() -> None:
    empty = {"of": "WT", "count": 0, "side": None, "sum_of_products_mm2": 0, "lesions": []}
    bare = report(prior=False, findings=empty, federation=None, study_date=None, confidence={})
    said = " ".join(texts(bare))
    assert "No earlier result was given" in said
    assert "No lesion of 50 mm³ or more" in said
    assert "Study date not in the files" in said
    assert sheet(bare).startswith(b"%PDF-")
    flat = example(prior=False)
    flat["findings"] = {**flat["findings"], "of": "WT"}
    told = content(Result.model_validate(flat), overview=b"", doubtful=None)
    assert "Nothing enhances" in " ".join(texts(told))
    assert "Where the model is unsure" not in texts(told)
    card = {**CARD, "private": False}
    told = content(
        Result.model_validate(example(federation=federation_json(card))),
        overview=b"",
        doubtful=None,
    )
    assert "WITHOUT differential privacy" in " ".join(texts(told))


def test_a_very_long_word_and_many_lesions_fit_the_sheet() -> None:
    lesion = example()["findings"]["lesions"][0]
    many = {**example()["findings"], "count": 90, "lesions": [lesion] * 90}
    found = report(case="x" * 400, findings=many, warnings=["w" * 900] * 40)
    assert any("84 smallest are not listed" in line for line in texts(found))
    assert sheet(found).startswith(b"%PDF-")


SOUND = {"measured": {"correlation_t1n_t1c": 0.6, "intensity_t1c": 0.1}, "unlike": ()}
OPPOSITE = {"code": "opposite", "says": "T1 and T2 are alike.", "value": 0.5, "limit": 0.2}
ELSEWHERE = {"code": "intensities", "says": "T1 is spread otherwise.", "value": 0.5, "limit": 0.4}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (None, "was not measured"),
        ({"cohort": "none", **SOUND}, "the model's card holds no histograms"),
        ({"cohort": "noisy", "sites": 2, **SOUND}, "the noise that protects the patients"),
        ({"cohort": "compared", "sites": 1, **SOUND}, "at 1 site: intensities. Nothing is unlike"),
        (
            {"cohort": "compared", "sites": 3, **SOUND, "unlike": [ELSEWHERE]},
            "at 3 sites: intensities. They are unlike",
        ),
        ({"cohort": "none", **SOUND, "unlike": [OPPOSITE]}, "The sequences contradict each other"),
    ],
)
def test_what_could_be_compared_is_said(said: Any, words: str) -> None:
    result = Result.model_validate(example(familiarity=said))
    whole = content(result, overview=b"", doubtful=None)
    assert words in " ".join(texts(whole))
    warned = bool(said and said["unlike"])
    assert whole.sections[0].title.startswith("This scan is unlike" if warned else "Volumes")


def test_an_explanation_says_what_it_is() -> None:
    region = {"volume_ml": 3.25, "dice": 0.5}
    without = {"t1c": dict.fromkeys(("ET", "TC", "WT"), region)}
    for hidden_as, words in (("absent", "as a missing one does"), ("mean", "never trained for")):
        said = {"hidden_as": hidden_as, "without": without}
        result = Result.model_validate(example(explanation=said))
        whole = content(result, overview=b"", doubtful=None, explained=b"picture")
        told = " ".join(texts(whole))
        assert words in told
        assert "no check of whether the answer is right" in told
        assert "contrast-enhanced T1 3.2 0.50 3.2 0.50 3.2 0.50" in told
    assert "mattered" not in " ".join(
        texts(content(Result.model_validate(example()), overview=b"", doubtful=None))
    )
