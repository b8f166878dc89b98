"""DICOM studies become cases: whose, of when, from which series; with their masks, or refused."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset

from client.cohort.case_discovery import read_case, read_cohort
from client.cohort.patient_split import split
from client.imaging.dicom import files_and_zips
from client.imaging.image_reading import read_image
from client.imaging.prepared_cache import PreparedCache, content_sha256
from client.imaging.preprocessing import prepare
from common.errors import CaseError
from common.regions import MODALITIES
from common.study.protocol import PreprocessingOptions
from tests.scanners import (
    DATE,
    NAME,
    PATIENT,
    SEQUENCES,
    oblique,
    voxels,
    write_series,
    write_study,
    zipped,
)

OPTIONS = PreprocessingOptions(spacing_mm=6.0)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "scans" / "study")


def write_mask(path: Path, value: int = 3) -> Path:
    mask = np.zeros(voxels().shape, np.uint8)
    mask[7:10, 6:9, 5:8] = value
    nib.save(nib.Nifti1Image(mask, oblique()), path)
    return path


def test_a_study_becomes_a_case(study: Path) -> None:
    cohort = read_cohort(study.parent)
    (case,) = cohort.cases
    assert (case.patient, case.session) == (PATIENT, DATE)
    assert cohort.layout == "dicom"
    assert cohort.refused == ()
    by_role = {role: str(number) for number, (role, *_) in SEQUENCES.items()}
    assert {role: image.series for role, image in case.images.items()} == by_role
    assert tuple(case.images) == MODALITIES
    for role, image in case.images.items():
        volume = read_image(image)
        expected = voxels(int(by_role[role]))
        assert np.sort(volume.data, axis=None).tolist() == np.sort(expected, axis=None).tolist()


def test_a_folder_and_its_zip_are_the_same_case(study: Path, tmp_path: Path) -> None:
    path = zipped(study, tmp_path / "study.zip")
    folder, packed = read_case(study), read_case(path)
    for role in MODALITIES:
        one, other = folder.images[role], packed.images[role]
        np.testing.assert_array_equal(read_image(one).data, read_image(other).data)
        assert content_sha256(one) == content_sha256(other)
    assert all(image.path == path for image in packed.images.values())
    shutil.rmtree(study)
    assert [case.name for case in read_cohort(tmp_path).cases] == [folder.name]


def test_a_study_beside_its_own_zip_is_one_case(study: Path) -> None:
    """Every instance is there twice then, byte for byte."""
    zipped(study, study.parent / "study.zip")
    (case,) = read_cohort(study.parent).cases
    assert len(case.images["t1n"].parts) == 12


def test_an_enhanced_study_is_a_case(tmp_path: Path) -> None:
    case = read_case(write_study(tmp_path / "study", enhanced=True))
    assert {image.series for image in case.images.values()} == {"2", "3", "4", "5"}
    assert all(len(image.parts) == 1 for image in case.images.values())


def test_studies_of_patients_in_one_heap_are_told_apart(tmp_path: Path) -> None:
    heap = tmp_path / "heap"
    heap.mkdir()
    for number, (patient, date) in enumerate(
        (("A", "20240101"), ("A", "20240601"), ("A", "20240601"), ("B", "20240101"))
    ):
        source = write_study(
            tmp_path / f"{number}", patient=patient, study=f"1.2.{number}", StudyDate=date,
            seed=number,
        )  # fmt: skip
        for file in source.rglob("*.dcm"):
            file.rename(heap / f"{number}-{file.name}")
    cohort = read_cohort(heap)
    names = ["A-20240101", "A-20240601", "A-20240601-2", "B-20240101"]
    assert [case.name for case in cohort.cases] == names
    assert cohort.patients == ("A", "B")
    with pytest.raises(CaseError) as caught:
        read_case(heap)
    assert caught.value.code == "case-several"


@pytest.mark.parametrize("left", [0, -600])
def test_a_broken_file_in_a_heap_spoils_no_more_than_its_own_study(
    tmp_path: Path, left: int
) -> None:
    heap = tmp_path / "heap"
    heap.mkdir()
    for number, patient in enumerate("AB"):
        source = write_study(
            tmp_path / patient, patient=patient, study=f"1.9.{number}", seed=number
        )
        for file in source.rglob("*.dcm"):
            file.rename(heap / f"{patient}-{file.name}")
    last = heap / "B-IM005-0011.dcm"
    last.write_bytes(last.read_bytes()[:left])  # cut off within its header, or empty
    cohort = read_cohort(heap)
    whose = ["A"] if left else ["A", "B"]  # of an empty file nobody knows whose it was
    assert [case.patient for case in cohort.cases] == whose
    assert [(one.code, one.file) for one in cohort.refused] == [("case-file", last.name)]


def test_a_broken_file_around_the_series_spoils_the_study(study: Path) -> None:
    (study / "stray.dcm").write_bytes(b"")
    with pytest.raises(CaseError, match="It lies beside") as caught:
        read_case(study)
    assert caught.value.code == "case-file"


@pytest.mark.parametrize("place", ["in the study", "around it", "in a folder of its own"])
def test_a_mask_beside_the_study_is_its_mask(study: Path, place: str) -> None:
    target = {"in the study": study, "around it": study.parent}.get(place, study / "masks")
    target.mkdir(exist_ok=True)
    path = write_mask(target / "patient_seg.nii.gz")
    (case,) = read_cohort(study.parent).cases
    assert case.label == path
    prepared = prepare(case, OPTIONS)
    assert prepared.labels is not None
    assert set(np.unique(prepared.labels)) == {0, 3}
    parts = split(read_cohort(study.parent), "study")
    assert len(parts.train + parts.validation + parts.test) == 1


def test_a_mask_lies_beside_a_zip_of_its_name(study: Path, tmp_path: Path) -> None:
    other = write_study(tmp_path / "other", study="1.2.9", patient="B", seed=1)
    scans = tmp_path / "zips"
    scans.mkdir()
    zipped(study, scans / "a.zip")
    zipped(other, scans / "b.zip")
    path = write_mask(scans / "b-seg.nii.gz")
    labels = {case.patient: case.label for case in read_cohort(scans).cases}
    assert labels == {PATIENT: None, "B": path}


def test_a_mask_that_could_be_of_two_studies_is_of_none(study: Path) -> None:
    write_study(study.parent / "other", study="1.2.9", patient="B", seed=1)
    write_mask(study.parent / "seg.nii.gz")
    cohort = read_cohort(study.parent)
    assert [case.label for case in cohort.cases] == [None, None]
    assert [one.code for one in cohort.refused] == ["case-sequence"]


def test_nifti_and_dicom_may_lie_in_one_folder(study: Path, cohort: Path) -> None:
    shutil.copytree(cohort, study.parent / "nifti")
    found = read_cohort(study.parent)
    assert found.layout == "brats-2023+dicom"
    assert PATIENT in found.patients
    assert found.refused == ()


def test_the_same_scan_under_two_patients_names_is_used_once(study: Path) -> None:
    shutil.copytree(study, study.parent / "again")
    import pydicom

    for path in (study.parent / "again").rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.PatientID, dataset.StudyInstanceUID = "ZZ-1", "1.2.99"
        dataset.save_as(path)
    cohort = read_cohort(study.parent)
    assert [case.patient for case in cohort.cases] == [PATIENT]
    assert [(one.code, one.case) for one in cohort.refused] == [("case-copy", f"ZZ-1-{DATE}")]


def test_two_sequences_of_one_kind_are_chosen_between(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study")
    times = SEQUENCES[5][2]
    fine = oblique((12.0, 12.0, 12.0))
    write_series(folder / "6", 6, "T1 3D KM", affine=fine, **times)
    write_series(folder / "7", 7, "T1 3D KM", affine=fine, **times)
    write_series(folder / "8", 8, "T1 tra KM", affine=oblique((6.0, 6.0, 13.0)), **times)
    assert read_case(folder).images["t1c"].series == "7"  # isotropic, and the later of the two


def test_a_repeat_that_lacks_slices_does_not_replace_a_whole_series(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study")
    write_series(
        folder / "6",
        6,
        "T1 SE tra KM",
        spoil=lambda index, dataset: None if index == 0 else dataset,
        **SEQUENCES[5][2],
    )
    assert read_case(folder).images["t1c"].series == "5"


def test_a_t1_acquired_after_contrast_and_unmarked_is_not_guessed(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", skip=(2,))
    write_series(folder / "6", 6, "T1 SE tra", **SEQUENCES[2][2])
    with pytest.raises(CaseError, match="after contrast had been given") as caught:
        read_case(folder)
    assert caught.value.code == "case-series"
    assert "--set t1n=SERIES" in str(caught.value)


def test_two_unmarked_t1_and_none_with_contrast_are_not_guessed(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", skip=(2, 5))
    write_series(folder / "2", 2, "T1 SE tra", **SEQUENCES[2][2])
    write_series(folder / "5", 5, "T1 SE tra", **SEQUENCES[2][2])
    with pytest.raises(CaseError, match="no series for t1c") as caught:
        read_case(folder)
    assert caught.value.code == "case-series"


def test_a_t1_said_to_be_without_contrast_goes_before_a_later_one_of_which_nothing_is_said(
    tmp_path: Path,
) -> None:
    """The later one is finer, but may well show contrast that nobody wrote down."""
    folder = write_study(tmp_path / "study", skip=(5,))
    write_series(folder / "6", 6, "T1", affine=oblique((12.0, 12.0, 12.0)), **SEQUENCES[2][2])
    write_series(folder / "7", 7, "T1 KM", **SEQUENCES[5][2])
    assert read_case(folder).images["t1n"].series == "2"


def test_a_short_sequence_is_noted(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", skip=(4,))
    write_series(folder / "4", 4, "FLAIR tra", data=voxels(4)[:, :, :7], **SEQUENCES[4][2])
    (note,) = read_case(folder).notes
    assert note.startswith("t2f: series 4 covers 91 mm")


def test_nothing_of_a_person_enters_the_cache(study: Path, tmp_path: Path) -> None:
    """Voxels and geometry only; not even under the hashes that find them."""
    write_mask(study / "seg.nii.gz")

    def private(index: int, dataset: Dataset) -> Dataset:
        block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        block.add_new(0x10, "LO", "SecretOfThePatient")
        return dataset

    shutil.rmtree(study / "5")
    write_series(study / "5", 5, "T1 SE tra KM", spoil=private, **SEQUENCES[5][2])
    case = read_case(study)
    cache = PreparedCache(tmp_path / "cache", OPTIONS)
    prepared = cache.get(case)
    names = (PATIENT, NAME, "Erika", DATE, "ACC0001", "SecretOfThePatient", "1.2.3.4", "SE tra")
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert kept
    for path in kept:
        content = path.read_bytes() + str(path.relative_to(tmp_path)).encode()
        assert not [name for name in names if name.encode() in content]
    assert not [name for name in names if name in str(prepared.history)]


def test_the_cache_finds_a_series_by_what_its_files_hold(study: Path, tmp_path: Path) -> None:
    cache = PreparedCache(tmp_path / "cache", OPTIONS)
    case = read_case(study)
    first = cache.place(case)
    moved = study.rename(study.with_name("moved"))
    for path in (moved / "5").iterdir():
        path.rename(path.with_suffix(".ima"))
    assert cache.place(read_case(moved)) == first
    assert cache.place(read_case(zipped(moved, tmp_path / "x.zip"))) == first
    (one, *_) = (moved / "5").iterdir()
    data = bytearray(one.read_bytes())
    data[-1] ^= 1
    one.write_bytes(data)
    assert cache.place(read_case(moved)) != first


def test_files_that_were_read_are_not_read_again(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.imaging.dicom import file_scan

    read_cohort(study.parent)
    monkeypatch.setattr(file_scan, "read_header", lambda *_: pytest.fail("read again"))
    assert len(read_cohort(study.parent).cases) == 1


@pytest.mark.parametrize("name", [None, "", "A\x07B", "x" * 65])
def test_a_study_of_nobody_knows_whom_is_read_but_never_trained_on(
    tmp_path: Path, name: str | None
) -> None:
    """Two studies of one such patient would count as two patients."""

    def anonymous(_: int, dataset: Dataset) -> Dataset:
        if name is None:
            del dataset.PatientID
        else:
            dataset["PatientID"].value = name
        return dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DICOM allows none of these names
        folder = write_study(tmp_path / "study", spoil=anonymous)
    with pytest.raises(CaseError, match="no usable PatientID"):
        read_cohort(tmp_path)
    if not name:
        assert read_case(folder).patient == "unnamed"


@pytest.mark.parametrize("limit", ["MOST_ZIP_FILES", "MOST_ZIP_BYTES", "MOST_DICOM_BYTES"])
def test_a_zip_too_large_for_anything_is_refused(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(files_and_zips, limit, 9)
    with pytest.raises(CaseError) as caught:
        read_case(zipped(study, tmp_path / "study.zip"))
    assert caught.value.code == "case-zip"


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_a_study_may_lack_a_sequence_and_says_what_was_looked_at(
    tmp_path: Path, number: int
) -> None:
    role = SEQUENCES[number][0]
    case = read_case(write_study(tmp_path / "study", skip=(number,)))
    assert case.missing == (role,)
    (note,) = case.notes
    assert note.startswith(f"{role}: no series for it; 4 were looked at, series 1 is left out")
    prepared = prepare(case, OPTIONS)
    assert prepared.missing == (role,)


def test_a_study_without_t1c_and_flair_is_no_case(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="no series for t1c, t2f") as caught:
        read_case(write_study(tmp_path / "study", skip=(4, 5)))
    assert caught.value.code == "case-series"


def test_a_sequence_whose_only_series_is_broken_is_not_missing(tmp_path: Path) -> None:
    """It would be there if the series were exported again; a person may say that it never was."""
    folder = write_study(tmp_path / "study")
    sorted((folder / "3").iterdir())[5].unlink()
    with pytest.raises(CaseError, match="lacks 1 of the slices") as caught:
        read_case(folder)
    assert caught.value.code == "case-slices"
    case = read_case(folder, decide=lambda one: "none" if one.name == "3" else None)
    assert case.missing == ("t2w",)


def test_a_sequence_that_an_untold_series_may_be_is_not_missing(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", skip=(3,))
    write_series(folder / "6", 6, "ax", RepetitionTime=None, EchoTime=None)
    with pytest.raises(CaseError, match="none=SERIES") as caught:
        read_case(folder)
    assert caught.value.code == "case-series"
    case = read_case(folder, decide=lambda one: "none" if one.name == "6" else None)
    assert case.missing == ("t2w",)


def test_a_second_t2_is_no_flair(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", skip=(4,))
    write_series(folder / "6", 6, "T2 TSE tra", **SEQUENCES[3][2])
    assert read_case(folder).missing == ("t2f",)
