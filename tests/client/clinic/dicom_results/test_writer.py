"""What goes back to the PACS: valid objects, on the source's own voxels, by independent readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from client.clinic.dicom_results.writer import write_results
from client.imaging.case import Image
from client.imaging.dicom.file_scan import scan
from client.imaging.dicom.studies import studies
from client.imaging.image_reading import read_image
from client.imaging.nifti import Volume
from common.errors import CaseError
from common.regions import LABEL_CODES, LABELS
from tests.dicom_readers import by_dcmqi, errors, same_voxels
from tests.scanners import NAME, PATIENT, SHAPE, oblique, write_series

MODEL = {
    "name": "glioma-segresnet-of-the-northern-hospitals",
    "version": "1.2",
    "round": 42,
    "weights_sha256": "ab" * 32,
    "preprocessing_sha256": "cd" * 32,
}
VOLUMES = {"NCR": 1.25, "ED": 20.5, "ET": 3.75, "TC": 5.0, "WT": 25.5}
DIAMETERS = {"ET": (31.2, 17.4)}
PDF = b"%PDF-1.4\n%%EOF\n"


def labelled() -> np.ndarray:
    """Return a mask without any symmetry, so that no flip or turn goes unseen."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:9, 5:8, 3:9] = 2
    labels[4:7, 5:7, 3:6] = 3
    labels[5, 5, 4] = 1
    labels[12, 9, 10] = 3
    return labels


def reverse(index: int, dataset: Dataset) -> Dataset:
    """Number the slices from the other end, as scanners may."""
    dataset.InstanceNumber = SHAPE[2] - index
    return dataset


def bare(index: int, dataset: Dataset) -> Dataset:
    """Drop what anonymisers drop, and hide something in a private tag."""
    for keyword in ("PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "StudyTime"):
        delattr(dataset, keyword)
    dataset.private_block(0x0009, "SECRET", create=True).add_new(1, "LO", "Private Hospital")
    return dataset


def careless(index: int, dataset: Dataset) -> Dataset:
    """Break the forms that headers must have."""
    dataset.PatientSex, dataset.PatientBirthDate = "UNKNOWN", "1960"
    dataset.StudyTime = "half past nine"
    return dataset


SERIES: dict[str, dict[str, Any]] = {
    "axial": {"affine": np.diag([-2.0, -3.0, 5.0, 1.0])},
    "oblique, not isotropic": {"affine": oblique((2.0, 3.0, 5.0))},
    "sagittal": {
        "affine": np.array([[0, 0, 5.0, -30], [-2.0, 0, 0, 40], [0, -3.0, 0, 50], [0, 0, 0, 1]])
    },
    "flipped slices": {"affine": oblique((2.0, 3.0, 5.0)), "spoil": reverse},
    "anonymised": {"affine": oblique((2.0, 3.0, 5.0)), "spoil": bare},
    "careless headers": {"affine": oblique((2.0, 3.0, 5.0)), "spoil": careless},
    "enhanced": {"affine": oblique((2.0, 3.0, 5.0)), "enhanced": True},
}


def source(folder: Path, **options: Any) -> tuple[Image, Volume]:
    write_series(folder, 5, "T1 SE tra KM", **options)
    (study,) = studies(scan(sorted(folder.iterdir())).instances)
    image = study.series[0].image(study)
    return image, read_image(image)


def written(out: Path, image: Image, volume: Volume, labels: np.ndarray) -> dict[str, str]:
    out.mkdir()
    (out / "report.pdf").write_bytes(PDF)
    return write_results(
        out,
        image,
        labels,
        volume.affine,
        percent=(labels * 30).astype(np.uint8),
        volumes_ml=VOLUMES,
        model=MODEL,
        diameters_mm=DIAMETERS,
    )


@pytest.fixture(scope="module", params=SERIES)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Image, Volume]:
    root = tmp_path_factory.mktemp("made")
    image, volume = source(root / "series", **SERIES[request.param])
    written(root / "out", image, volume, labelled())
    return root / "out", image, volume


def test_an_independent_validator_finds_no_error(made: tuple[Path, Image, Volume]) -> None:
    found = {path.name: errors(path) for path in sorted(made[0].glob("*.dcm"))}
    assert found == {
        name: [] for name in ("document.dcm", "report.dcm", "segmentation.dcm", "uncertainty.dcm")
    }


def test_the_validator_would_find_an_error(tmp_path: Path) -> None:
    image, volume = source(tmp_path / "series")
    written(tmp_path / "out", image, volume, labelled())
    path = tmp_path / "out" / "segmentation.dcm"
    spoilt = pydicom.dcmread(path)
    del spoilt.SegmentSequence[0].SegmentedPropertyTypeCodeSequence
    spoilt.save_as(path)
    assert any("SegmentedPropertyTypeCodeSequence" in error for error in errors(path))


def test_an_independent_reader_sees_the_same_voxels(
    made: tuple[Path, Image, Volume], tmp_path: Path
) -> None:
    out, _, volume = made
    found = by_dcmqi(out / "segmentation.dcm", tmp_path / "read")
    assert same_voxels(found, labelled(), volume.affine)
    assert not same_voxels(found, labelled()[:, :, ::-1], volume.affine)


def test_mask_and_uncertainty_lie_on_the_sources_frames(
    made: tuple[Path, Image, Volume],
) -> None:
    out, image, volume = made
    mask = hd.seg.segread(out / "segmentation.dcm")
    instances = {pydicom.dcmread(part.path).SOPInstanceUID for part in image.parts}
    referenced = {
        instance.ReferencedSOPInstanceUID
        for series in mask.ReferencedSeriesSequence
        for instance in series.ReferencedInstanceSequence
    }
    assert referenced == instances
    for frame in mask.PerFrameFunctionalGroupsSequence:
        assert frame.DerivationImageSequence[0].SourceImageSequence
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    for name, expected in (
        ("segmentation.dcm", labelled()),
        ("uncertainty.dcm", labelled() * 30),
    ):
        read = hd.imread(out / name) if name == "uncertainty.dcm" else mask
        options = {"combine_segments": True} if read is mask else {}
        found = read.get_volume(dtype=np.float64, **options)
        affine = lps @ found.affine[:, [2, 1, 0, 3]]
        again = nib.Nifti1Image(found.array.transpose(2, 1, 0), affine)
        assert same_voxels(again, expected, volume.affine)


def test_patient_and_study_are_the_sources_and_private_tags_stay_behind(
    made: tuple[Path, Image, Volume],
) -> None:
    out, image, _ = made
    given = pydicom.dcmread(image.parts[0].path)
    for path in out.glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        assert (dataset.PatientID, str(dataset.PatientName)) == (PATIENT, NAME)
        assert dataset.StudyInstanceUID == given.StudyInstanceUID
        assert dataset.SeriesInstanceUID != given.SeriesInstanceUID
        assert "research use" in dataset.SeriesDescription
        contributed = [
            one.DeviceSerialNumber
            for one in dataset.ContributingEquipmentSequence
            if one.Manufacturer == "gliofed"
        ]
        assert contributed == ["ab" * 32], path.name
        assert not [element for element in dataset.iterall() if element.tag.is_private]
        assert b"Private Hospital" not in path.read_bytes()


def test_segments_are_coded_and_say_which_model_drew_them(
    made: tuple[Path, Image, Volume],
) -> None:
    mask = pydicom.dcmread(made[0] / "segmentation.dcm")
    assert mask.SegmentationType == "BINARY"
    assert mask.ContentLabel == "RESEARCH_USE"
    codes = {}
    for segment in mask.SegmentSequence:
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        codes[segment.SegmentNumber] = kind.CodeValue, kind.CodingSchemeDesignator
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert algorithm.AlgorithmName == MODEL["name"]
        assert "round=42,weights_sha256=" + "ab" * 32 in algorithm.AlgorithmParameters
        assert "gliofed=" in algorithm.AlgorithmParameters
    assert codes == {LABELS[name]: code[:2] for name, code in LABEL_CODES.items()}


def test_the_report_says_volumes_and_diameters(made: tuple[Path, Image, Volume]) -> None:
    report = hd.sr.srread(made[0] / "report.dcm")
    content = report.content
    groups = [
        *content.get_volumetric_roi_measurement_groups(),
        *content.get_image_measurement_groups(),
    ]
    found = {
        group.tracking_identifier: {one.name.meaning: one.value for one in group.get_measurements()}
        for group in groups
    }
    expected = {name: {"Volume": volume} for name, volume in VOLUMES.items()}
    expected["ET"] |= {"Long axis": 31.2, "Perpendicular Axis": 17.4}
    assert found == expected
    assert report.VerificationFlag == "UNVERIFIED"
    mask = pydicom.dcmread(made[0] / "segmentation.dcm")
    trackings = {segment.TrackingUID for segment in mask.SegmentSequence}
    assert {group.tracking_uid for group in groups} > trackings


def test_the_pdf_comes_out_as_it_went_in(made: tuple[Path, Image, Volume]) -> None:
    document = pydicom.dcmread(made[0] / "document.dcm")
    length = document.EncapsulatedDocumentLength
    assert document.EncapsulatedDocument[:length] == PDF


@pytest.mark.parametrize("enhanced", [False, True])
def test_a_mask_without_tumour_is_a_valid_object(tmp_path: Path, enhanced: bool) -> None:
    image, volume = source(tmp_path / "series", enhanced=enhanced)
    out = tmp_path / "out"
    written(out, image, volume, np.zeros(SHAPE, np.uint8))
    assert [error for path in out.glob("*.dcm") for error in errors(path)] == []
    mask = hd.seg.segread(out / "segmentation.dcm")
    assert mask.number_of_segments == 3
    assert not mask.get_volume(combine_segments=True).array.any()


def test_a_series_that_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    image, volume = source(tmp_path / "series")
    moved = volume.affine.copy()
    moved[0, 3] += 1.0
    turned = volume.affine @ np.diag([1.0, 1.0, -1.0, 1.0])
    for number, affine in enumerate((moved, turned)):
        with pytest.raises(CaseError, match="does not lie on the grid") as caught:
            written(tmp_path / f"{number}", image, Volume(volume.data, affine), labelled())
        assert caught.value.code == "case-changed"
        assert not list((tmp_path / f"{number}").glob("*.dcm"))


def test_objects_are_named_by_their_uids(tmp_path: Path) -> None:
    image, volume = source(tmp_path / "series")
    found = written(tmp_path / "out", image, volume, labelled())
    assert json.loads(json.dumps(found)) == {
        path.name: pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "out").glob("*.dcm")
    }
