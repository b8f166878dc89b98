"""What `check` finds: usable and refused cases, the machine, the ledger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.cohort.case_discovery import read_cohort
from client.site.folder import Site
from client.views.cohort_check import check_site
from common.errors import CaseError
from common.study.protocol import PreprocessingOptions
from tests import consortia

COARSE = PreprocessingOptions(spacing_mm=6.0)


def test_a_sound_cohort(site: Site) -> None:
    told: list[tuple[int, int]] = []
    found = check_site(site, COARSE, workers=1, progress=lambda *done: told.append(done))
    assert (found["patients"], found["refused"]) == (consortia.PATIENTS, [])
    assert found["cases"] == found["labelled_cases"] == len(told) == told[-1][1]
    assert found["ledger_facts"] == 0
    assert found["joined"] is True
    assert found["machine"]["threads"] >= 1
    assert check_site(site, COARSE, workers=2) == found


def test_what_cannot_be_used_is_named(make_site: Callable[..., Site], own_cohort: Path) -> None:
    broken, unlabelled, untumoured, short = read_cohort(own_cohort).cases[:4]
    broken.images["t2w"].path.write_bytes(b"cut short")
    assert unlabelled.label is not None
    unlabelled.label.unlink()
    assert untumoured.label is not None
    label = nib.load(untumoured.label)
    empty = np.zeros(label.shape, np.uint8)
    nib.save(nib.Nifti1Image(empty, label.affine), untumoured.label)
    for name in ("t1c", "t2f"):
        short.images[name].path.unlink()
    site = make_site("south", own_cohort)
    found = check_site(site, COARSE, workers=1)
    whole = len(read_cohort(own_cohort).cases)
    assert found["cases"] == whole - 1
    assert found["labelled_cases"] == whole - 2
    assert found["cases_without_tumour"] >= 1
    refused = {one["case"]: one for one in found["refused"]}
    assert set(refused) == {broken.name, short.name}
    assert "t2w" in refused[broken.name]["reason"]
    assert "t1c" in refused[short.name]["reason"]
    assert all(one["code"].startswith("case-") for one in found["refused"])


def test_what_a_case_lacks_is_said_and_refuses_nothing(
    make_site: Callable[..., Site], own_cohort: Path, tmp_path: Path
) -> None:
    one, other = read_cohort(own_cohort).cases[:2]
    one.images["t1n"].path.unlink()
    for name in ("t1c", "t2w"):
        other.images[name].path.unlink()
    page = tmp_path / "report"
    found = check_site(make_site("south", own_cohort), COARSE, workers=1, report=page)
    assert (found["refused"], found["cases_that_lack_sequences"]) == ([], 2)
    said = {r["case"]: r["text"] for r in found["remarks"] if r["code"] == "missing"}
    assert said[one.name].startswith("t1n is missing")
    assert said[other.name].startswith("t1c and t2w are missing")
    measured = {case["name"]: case for case in found["measures"]}
    assert set(measured[other.name]["sequences"]) == {"t1n", "t2f"}
    assert measured[other.name]["reference"] == "t2f"
    html = (page / "quality.html").read_text()
    assert html.count('class="doubt">missing</td>') == 3
    assert "from t2f" in html


def test_no_cohort_is_an_error(make_site: Callable[..., Site], tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="is not a folder"):
        check_site(make_site("south", tmp_path / "nowhere"), COARSE)
