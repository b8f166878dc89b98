"""A manifest is taken at its word, inside its folder, and each bad row is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.cohort.case_discovery import read_cohort
from common.errors import CaseError

HEADER = "patient,session,t1n,t1c,t2w,t2f,label\n"


def touch(path: Path, content: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content or f"voxels of {path}")


ROW = "p1,1,a.nii,b.nii,c.nii,d.nii,\n"
ROWS = {
    # header and row, part of the reason
    "up and out": (HEADER, ROW.replace("a.nii", "../a.nii"), "leaves"),
    "absolute": (HEADER, ROW.replace("a.nii", "/etc/a.nii"), "leaves"),
    "through a link": (HEADER, ROW.replace("a.nii", "out/a.nii"), "leaves"),
    "a link to itself": (HEADER, ROW.replace("a.nii", "loop.nii"), ""),
    "absent": (HEADER, ROW.replace("a.nii", "e.nii"), "does not exist"),
    "another kind": (HEADER, ROW.replace("a.nii", "a.dcm"), "not a .nii"),
    "no sequence": (HEADER, "p1,1,,,,,\n", "no file for t1n"),
    "the needed ones missing": (HEADER, "p1,1,a.nii,,c.nii,,\n", "no file for t1c, t2f"),
    "no patient": (HEADER, ROW.replace("p1", ""), "letters, digits"),
    "a path for a name": (HEADER, ROW.replace("p1", "../p1"), "letters, digits"),
    "too many cells": (HEADER, "p1,1,a.nii,b.nii,c.nii,d.nii,,x\n", "more or fewer"),
    "too few cells": (HEADER, "p1,1,a.nii\n", "more or fewer"),
    "bad labels": (HEADER.strip() + ",labels\n", ROW.strip() + ",tumour=1\n", "or read like NCR=1"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    header, row, reason = ROWS[name]
    root = tmp_path / "cohort"
    for file in ("a", "b", "c", "d", "x/a", "x/b", "x/c", "x/d"):
        touch(root / f"{file}.nii")
    touch(tmp_path / "outside" / "a.nii")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "loop.nii").symlink_to("loop.nii")
    cells = "p9,,x/a.nii,x/b.nii,x/c.nii,x/d.nii,"
    good = cells + "," * (header.count(",") - cells.count(",")) + "\n"
    touch(root / "list.csv", header + good + row)
    cohort = read_cohort(root)
    assert [case.name for case in cohort.cases] == ["p9"]
    (refusal,) = cohort.refused
    assert reason in refusal.reason


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_manifest_may_say_what_mask_values_mean(tmp_path: Path, delimiter: str) -> None:
    for file in "abcdm":
        touch(tmp_path / f"{file}.nii")
    cells = ["p1", "a.nii", "b.nii", "c.nii", "d.nii", "m.nii", "NCR=5 ED=6 ET=7 background=8"]
    header = ["Patient", "t1n", "t1c", "t2w", "t2f", "label", "labels"]
    text = "\n".join(delimiter.join(line) for line in (header, cells))
    touch(tmp_path / "list.CSV", text)
    (case,) = read_cohort(tmp_path).cases
    assert case.label_map == {5: 1, 6: 2, 7: 3, 8: 0}


def test_a_manifest_without_its_columns_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "list.csv", "patient,t1n,t1c,t2w\n")
    with pytest.raises(CaseError, match="without the columns t2f"):
        read_cohort(tmp_path)


def test_a_manifest_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(HEADER.encode() + "Müller,1,a,b,c,d,".encode("latin-1"))
    with pytest.raises(CaseError, match="UTF-8"):
        read_cohort(tmp_path)
