"""What follows a review: objects that say who changed what, and what they follow."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from client.clinic.dicom_results.writer import reviewed_by, study_of, write_results
from client.imaging.case import Image
from client.imaging.nifti import Volume
from common.errors import CaseError
from tests.client.clinic.dicom_results.test_writer import (
    DIAMETERS,
    MODEL,
    PDF,
    VOLUMES,
    labelled,
    source,
    written,
)
from tests.dicom_readers import by_dcmqi, errors, same_voxels
from tests.scanners import oblique

WHEN = dt.datetime(2026, 4, 3, 10, 11, 12)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Image, Volume]:
    """A result as ``segment`` leaves it."""
    root = tmp_path_factory.mktemp("machine")
    image, volume = source(root / "series", affine=oblique((2.0, 3.0, 5.0)))
    named = written(root / "out", image, volume, labelled())
    (root / "out" / "result.json").write_text(json.dumps({"dicom": named}))
    return root / "out", image, volume


def follow(
    out: Path, machine: tuple[Path, Image, Volume], labels: np.ndarray, decision: str
) -> None:
    before, image, volume = machine
    out.mkdir()
    (out / "report.pdf").write_bytes(PDF)
    write_results(
        out,
        image,
        labels,
        volume.affine,
        percent=None,
        volumes_ml=VOLUMES,
        model=MODEL,
        diameters_mm=DIAMETERS,
        reviewed=reviewed_by(
            before,
            reviewer="Dr. Kreuz^Tamm=x",
            decision=decision,
            corrected=decision == "corrected",
            time=WHEN,
            organization="Northern Hospital",
        ),
    )


@pytest.mark.parametrize("decision", ["accepted", "corrected"])
def test_the_objects_follow_those_that_were_reviewed(
    machine: tuple[Path, Image, Volume], tmp_path: Path, decision: str
) -> None:
    out, labels = tmp_path / "out", labelled()
    labels[2, 2, 2] = 3
    follow(out, machine, labels, decision)
    assert {path.name: errors(path) for path in sorted(out.glob("*.dcm"))} == {
        "document.dcm": [],
        "report.dcm": [],
        "segmentation.dcm": [],
    }
    before = {one: pydicom.dcmread(machine[0] / f"{one}.dcm") for one in ("segmentation", "report")}
    now = {one: pydicom.dcmread(out / f"{one}.dcm") for one in ("segmentation", "report")}
    mask = now["segmentation"]
    assert same_voxels(
        by_dcmqi(out / "segmentation.dcm", tmp_path / "read"), labels, machine[2].affine
    )
    assert mask.SOPInstanceUID != before["segmentation"].SOPInstanceUID
    assert mask.ContentCreatorName == "Dr. Kreuz Tamm x"
    assert [one.TrackingUID for one in mask.SegmentSequence] == [
        one.TrackingUID for one in before["segmentation"].SegmentSequence
    ]
    kinds = {one.SegmentAlgorithmType for one in mask.SegmentSequence}
    purposes = {
        one.PurposeOfReferenceCodeSequence[0].CodeValue
        for one in mask.ContributingEquipmentSequence
    }
    assert kinds == {"SEMIAUTOMATIC" if decision == "corrected" else "AUTOMATIC"}
    assert ("109103" in purposes) is (decision == "corrected")
    report = now["report"]
    (observer,) = report.VerifyingObserverSequence
    assert report.VerificationFlag == "VERIFIED"
    assert observer.VerifyingObserverName == "Dr. Kreuz Tamm x"
    assert observer.VerifyingOrganization == "Northern Hospital"
    (study,) = report.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (previous,) = series.ReferencedSOPSequence
    assert previous.ReferencedSOPInstanceUID == before["report"].SOPInstanceUID
    assert decision in report.CompletionFlagDescription


def test_the_study_of_a_result_is_known(
    machine: tuple[Path, Image, Volume], tmp_path: Path
) -> None:
    assert study_of(machine[0]) == "1.2.3.4"
    assert study_of(tmp_path) == ""


def test_a_report_that_is_gone_is_said(machine: tuple[Path, Image, Volume], tmp_path: Path) -> None:
    for path in machine[0].iterdir():
        if path.name != "report.dcm":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CaseError, match=r"report\.dcm is not the object"):
        follow(tmp_path / "out", (tmp_path, *machine[1:]), labelled(), "accepted")
