"""The page: everything is on it, nothing on it runs or loads, and only its owner may read it."""

from __future__ import annotations

import io
import json
import re
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.cohort.quality.cohort_warnings import remarks
from client.cohort.quality.quality_report import write_report
from client.cohort.quality.thumbnails import thumbnail
from common.regions import LABEL_COLOURS
from tests.programs import needed

EVIL = "<script>alert('x')</script> & co"


def write(folder: Path, heads: dict[str, Any], **changes: Any) -> str:
    cases = [head.measures(name, f"p-{name}") for name, head in heads.items()]
    page = write_report(
        folder,
        site="north",
        spacing_mm=3.0,
        cases=cases,
        remarks=remarks(cases),
        refused=changes.get("refused", []),
        pictures={name: thumbnail(head.prepared()) for name, head in heads.items()},
    )
    return page.read_text()


def test_everything_is_on_the_page_and_in_the_json(make_head: Any, tmp_path: Path) -> None:
    shifted = make_head(seed=3)
    shifted.images["t2w"] = np.roll(shifted.images["t2w"], 6, axis=0)
    refused = [{"case": "bad", "file": "t1.nii", "reason": "It is cut short.", "code": "case-file"}]
    page = write(tmp_path, {"sound": make_head(), "moved": shifted}, refused=refused)
    for words in ("north", "sound", "moved", "18 mm from t1c", "It is cut short.", "48×56×44"):
        assert words in page
    assert "It must not leave the hospital" in page
    assert page.count("data:image/png;base64,") == 2
    value = json.loads((tmp_path / "quality.json").read_text())
    assert [one["name"] for one in value["cases"]] == ["sound", "moved"]
    assert [one["code"] for one in value["remarks"]] == ["shift"]
    assert value["refused"] == refused
    assert "sketch" not in value["cases"][0]


def test_what_a_name_says_is_text(head: Any, tmp_path: Path) -> None:
    refused = [{"case": EVIL, "file": EVIL, "reason": EVIL, "code": "x"}]
    page = write(tmp_path, {EVIL: head}, refused=refused)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_page_loads_nothing(head: Any, tmp_path: Path) -> None:
    page = write(tmp_path, {"one": head})
    assert "default-src 'none'" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)


def test_a_cohort_without_a_fault_says_so(head: Any, tmp_path: Path) -> None:
    assert "Every case that was found can be used" in write(tmp_path, {"one": head})
    assert "0 usable cases of 0 patients" in write(tmp_path, {})


def test_only_the_owner_may_read_it(head: Any, tmp_path: Path) -> None:
    write(tmp_path, {"one": head})
    for name in ("quality.html", "quality.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_what_cannot_be_told_is_null(head: Any, tmp_path: Path) -> None:
    head.images["t1n"] = np.where(head.images["t1n"] != 0, 500, 0).astype(np.float32)
    page = write(tmp_path, {"one": head})
    value = json.loads((tmp_path / "quality.json").read_text())
    assert value["cases"][0]["sequences"]["t1n"]["snr"] is None
    assert ">nan<" not in page


def pixels(head: Any) -> Any:
    return np.asarray(Image.open(io.BytesIO(thumbnail(head.prepared()))))


def test_a_thumbnail_shows_the_right_on_the_left_and_the_front_above(head: Any) -> None:
    picture = pixels(head)
    assert picture.shape == (3 * 128, 4 * 128, 3)
    tile = picture[128:256, :128].astype(int)
    colour = np.array([int(LABEL_COLOURS["ED"][i : i + 2], 16) for i in (1, 3, 5)])
    rows, columns = np.nonzero(np.abs(tile - colour).sum(axis=2) < 30)
    # The tumour is at x 34 of 48 to the right, and y 38 of 56 to the front.
    assert columns.mean() < 64
    assert rows.mean() < 64


@pytest.mark.parametrize("labelled", [True, False])
def test_a_head_without_tumour_is_shown_too(head: Any, labelled: bool) -> None:
    head.labels[:] = 0
    prepared = head.prepared()
    if not labelled:
        prepared = replace(prepared, labels=None)
    picture = np.asarray(Image.open(io.BytesIO(thumbnail(prepared))))
    grey = picture[..., 0].astype(int)
    assert (np.abs(picture - grey[..., None]) == 0).all()
    assert grey.max() > 100


def test_a_browser_draws_it(make_head: Any, tmp_path: Path) -> None:
    write(tmp_path, {f"case-{n}": make_head(seed=n) for n in range(2)})
    shot = tmp_path / "page.png"
    words = [needed("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    words += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,1400"]
    words += [f"--screenshot={shot}", (tmp_path / "quality.html").as_uri()]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    drawn = np.asarray(Image.open(shot).convert("L"))
    assert drawn.shape == (1400, 1000)
    assert (drawn < 60).mean() > 0.1  # the pictures' black
    assert (drawn > 240).mean() > 0.3


def test_a_sequence_that_is_missing_is_said_where_its_picture_would_be(
    head: Any, make_head: Any
) -> None:
    del head.images["t2w"]
    picture = pixels(head)
    whole = pixels(make_head())
    t1n, t1c, t2w, t2f = (picture[:, 128 * n : 128 * (n + 1)] for n in range(4))
    assert (t2w == t2w[:1]).mean() > 0.8, "black but for a line of text"
    assert t2w.max() > 100
    np.testing.assert_array_equal(t2w[:128], t2w[128:256])
    for place, tile in ((0, t1n), (1, t1c), (3, t2f)):
        np.testing.assert_array_equal(tile, whole[:, 128 * place : 128 * (place + 1)])


def test_the_page_names_what_a_case_lacks(head: Any, tmp_path: Path) -> None:
    del head.images["t1c"]
    page = write(tmp_path, {"one": head})
    assert "t1c is missing" in page
    assert '<td>t1c</td><td colspan="6" class="doubt">missing</td>' in page
    assert "from t2f" in page
    value = json.loads((tmp_path / "quality.json").read_text())
    assert (value["cases"][0]["missing"], value["cases"][0]["reference"]) == (["t1c"], "t2f")
