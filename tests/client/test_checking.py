"""What `check` finds: usable and refused cases, the machine, the ledger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.checking import check_site
from client.cohort import read_cohort
from client.site import Site
from common.errors import CaseError
from common.protocol import PreprocessingOptions
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
    short.images["t1c"].path.unlink()
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


def test_no_cohort_is_an_error(make_site: Callable[..., Site], tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="is not a folder"):
        check_site(make_site("south", tmp_path / "nowhere"), COARSE)
