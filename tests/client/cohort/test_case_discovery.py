"""Every layout is found without being told, and whatever is not used is said with its reason.

Reading a cohort opens no image as such, so files here hold a few bytes, each its own.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from client.cohort.case_discovery import read_case, read_cohort
from client.cohort.patient_split import split
from client.imaging.nifti import write_volume
from client.imaging.preprocessing import prepare
from common.errors import CaseError, StateError
from common.regions import MODALITIES
from common.study.protocol import PreprocessingOptions

OLD = ("_t1", "_t1ce", "_t2", "_flair", "_seg")
NEW = ("-t1n", "-t1c", "-t2w", "-t2f", "-seg")
BIDS = ("_T1w", "_ce-gadolinium_T1w", "_T2w", "_FLAIR")
HEADER = "patient,session,t1n,t1c,t2w,t2f,label\n"


def touch(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content or f"voxels of {path}")
    return path


def case_files(folder: Path, name: str, endings: tuple[str, ...], suffix: str = ".nii.gz") -> None:
    for ending in endings:
        touch(folder / f"{name}{ending}{suffix}")


def brats_2018(root: Path) -> None:
    for grade, name in (("HGG", "Brats18_CBICA_AAB_1"), ("LGG", "BraTS20_Training_260")):
        case_files(root / grade / name, name, OLD)
    touch(root / "survival_data.csv", "Brats18ID,Age,Survival\nBrats18_CBICA_AAB_1,60,289\n")


def brats_2021(root: Path) -> None:
    case_files(root / "BraTS2021_00000", "BraTS2021_00000", OLD)


def brats_2023(root: Path) -> None:
    for name in ("BraTS-GLI-00001-000", "BraTS-GLI-00001-001", "BraTS-GLI-00002-000"):
        case_files(root / name, name, NEW)


def flat_uncompressed(root: Path) -> None:
    for name in ("PAT-001", "PAT-002"):
        case_files(root, name, NEW, ".nii")


def bare_names(root: Path) -> None:
    case_files(root / "patient-a", "", ("t1n", "t1c", "t2w", "t2f", "seg"))


def decathlon(root: Path, modality: tuple[str, ...] = ("FLAIR", "T1w", "t1gd", "T2w")) -> None:
    task = root / "Task01_BrainTumour"
    touch(task / "imagesTr" / "BRATS_001.nii.gz")
    touch(task / "imagesTr" / "._BRATS_001.nii.gz")
    touch(task / "labelsTr" / "BRATS_001.nii.gz")
    touch(task / "imagesTs" / "BRATS_485.nii.gz")
    meaning = ("background", "edema", "non-enhancing tumor", "enhancing tumour")
    description = {
        "modality": {str(i): name for i, name in enumerate(modality)},
        "labels": {str(i): name for i, name in enumerate(meaning)},
    }
    touch(task / "dataset.json", json.dumps(description))


def bids(root: Path) -> None:
    case_files(root / "sub-01" / "ses-a" / "anat", "sub-01_ses-a", BIDS)
    case_files(root / "sub-02" / "anat", "sub-02", BIDS)
    touch(root / "sub-02" / "func" / "sub-02_task-rest_bold.nii.gz")
    touch(root / "dataset_description.json", "{}")
    derived = root / "derivatives"
    touch(derived / "raters" / "sub-01" / "ses-a" / "anat" / "sub-01_ses-a_dseg.nii.gz")
    touch(derived / "raters" / "sub-02" / "anat" / "sub-02_label-lesion_mask.nii.gz")
    touch(derived / "raters" / "sub-02" / "anat" / "sub-02_desc-brain_mask.nii.gz")
    touch(derived / "fmriprep" / "sub-02" / "anat" / "sub-02_dseg.nii.gz")
    touch(derived / "fmriprep" / "sub-02" / "anat" / "sub-02_desc-preproc_T1w.nii.gz")


def manifest(root: Path) -> None:
    for patient in ("p1", "p2"):
        case_files(root / "odd", f"{patient} ", ("a", "b", "c", "d", "m"))
    row = "{0},{1},odd/{0} a.nii.gz,odd/{0} b.nii.gz,odd/{0} c.nii.gz,odd/{0} d.nii.gz,{2}\n"
    rows = row.format("p1", "1", "odd/p1 m.nii.gz") + row.format("p2", "", "")
    touch(root / "cohort.csv", "\ufeff" + HEADER + rows)


LAYOUTS: dict[str, tuple[Callable[[Path], None], str, list[str], int, dict[int, int]]] = {
    # builder, layout, names of the cases, how many have a mask, mask values
    "BraTS 2018 and 2020": (
        brats_2018,
        "brats-2018",
        ["BraTS20_Training_260", "Brats18_CBICA_AAB-1"],
        2,
        {1: 1, 2: 2, 4: 3},
    ),
    "BraTS 2021": (brats_2021, "brats-2021", ["BraTS2021_00000"], 1, {1: 1, 2: 2, 4: 3}),
    "BraTS 2023": (
        brats_2023,
        "brats-2023",
        ["BraTS-GLI-00001-000", "BraTS-GLI-00001-001", "BraTS-GLI-00002-000"],
        3,
        {1: 1, 2: 2, 3: 3},
    ),
    "one folder": (flat_uncompressed, "brats-2023", ["PAT-001", "PAT-002"], 2, {1: 1, 2: 2, 3: 3}),
    "bare names": (bare_names, "brats-2023", ["patient-a"], 1, {1: 1, 2: 2, 3: 3}),
    "Decathlon": (decathlon, "decathlon", ["BRATS_001", "BRATS_485"], 1, {1: 2, 2: 1, 3: 3}),
    "BIDS": (bids, "bids", ["sub-01-ses-a", "sub-02"], 2, {1: 1, 2: 2, 3: 3}),
    "manifest": (manifest, "manifest", ["p1-1", "p2"], 1, {1: 1, 2: 2, 3: 3}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_found(tmp_path: Path, name: str) -> None:
    build, layout, names, labelled, label_map = LAYOUTS[name]
    build(tmp_path)
    cohort = read_cohort(tmp_path)
    assert cohort.refused == ()
    assert cohort.layout == layout
    assert [case.name for case in cohort.cases] == names
    assert len(cohort.labelled) == labelled
    assert len(cohort.unlabelled) == len(names) - labelled
    for case in cohort.cases:
        assert tuple(case.images) == MODALITIES
        assert case.label_map == label_map
        assert pickle.dumps(case)  # other processes prepare it
        assert len({(image.path, image.index) for image in case.images.values()}) == 4


def test_sequences_get_their_files(tmp_path: Path) -> None:
    brats_2021(tmp_path / "a")
    bids(tmp_path / "b")
    decathlon(tmp_path / "c")
    cases = {case.patient: case for case in read_cohort(tmp_path).cases}
    old = [image.path.name for image in cases["BraTS2021_00000"].images.values()]
    assert old == [f"BraTS2021_00000{one}.nii.gz" for one in ("_t1", "_t1ce", "_t2", "_flair")]
    new = [image.path.name for image in cases["sub-02"].images.values()]
    assert new == [f"sub-02{one}.nii.gz" for one in BIDS]
    assert cases["sub-02"].label is not None
    assert cases["sub-02"].label.name == "sub-02_label-lesion_mask.nii.gz"
    assert [image.index for image in cases["BRATS_001"].images.values()] == [1, 2, 3, 0]


def test_layouts_may_be_mixed_in_one_folder(tmp_path: Path) -> None:
    for build in (brats_2018, brats_2021, brats_2023, bids, decathlon):
        build(tmp_path / build.__name__)
    brats_2023(tmp_path / "again" / "deeper")
    cohort = read_cohort(tmp_path)
    assert cohort.layout == "bids+brats-2018+brats-2021+decathlon"
    assert len(cohort.cases) == 2 + 1 + 2 + 2
    assert {one.code for one in cohort.refused} == {"case-duplicate"}
    assert len(cohort.refused) == 6  # neither copy of a case is taken for the right one


def test_sessions_belong_to_their_patient(tmp_path: Path) -> None:
    brats_2023(tmp_path)
    cohort = read_cohort(tmp_path)
    assert cohort.patients == ("BraTS-GLI-00001", "BraTS-GLI-00002")
    assert [case.session for case in cohort.cases] == ["000", "001", "000"]


def test_only_the_manifest_counts_where_there_is_one(tmp_path: Path) -> None:
    brats_2023(tmp_path)
    manifest(tmp_path)
    assert [case.name for case in read_cohort(tmp_path).cases] == ["p1-1", "p2"]


def spoil_missing(root: Path) -> None:
    for name in ("t1c", "t2f"):
        (root / "BraTS-GLI-00002-000" / f"BraTS-GLI-00002-000-{name}.nii.gz").unlink()


def spoil_two(root: Path) -> None:
    case_files(root / "BraTS-GLI-00002-000", "BraTS-GLI-00002-000", ("-t1c",), ".nii")


def spoil_name(root: Path) -> None:
    touch(root / "BraTS-GLI-00002-000" / "W39_1998.09.19_Segm.nii")


def spoil_link(root: Path) -> None:
    path = root / "BraTS-GLI-00002-000" / "BraTS-GLI-00002-000-t1c.nii.gz"
    path.unlink()
    path.symlink_to(root / "nowhere.nii.gz")


def spoil_duplicate(root: Path) -> None:
    case_files(root / "copy", "BraTS-GLI-00002-000", NEW)


def spoil_copy(root: Path) -> None:
    shutil.copytree(root / "BraTS-GLI-00001-000", root / "BraTS-GLI-00002-000", dirs_exist_ok=True)
    for path in (root / "BraTS-GLI-00002-000").glob("BraTS-GLI-00001-000*"):
        path.rename(path.with_name(path.name.replace("00001", "00002")))


FAULTS = {
    # what was done, code, part of the reason, part of the file, cases left
    "a missing sequence": (spoil_missing, "case-sequence", "no file for t1c, t2f", "00002-000", 2),
    "two files": (spoil_two, "case-ambiguous", "2 files for one sequence (t1c)", "-t1c.nii", 2),
    "a broken link": (spoil_link, "case-file", "does not exist", "-t1c.nii.gz", 2),
    "an unknown name": (spoil_name, "case-name", "no known layout", "W39_1998", 3),
    "a case twice": (spoil_duplicate, "case-duplicate", "2 times", "-t1n.nii.gz", 2),
    "a scan under two names": (spoil_copy, "case-copy", "copy of BraTS-GLI-00001", "00002", 2),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_used_is_said(tmp_path: Path, fault: str) -> None:
    spoil, code, reason, file, left = FAULTS[fault]
    brats_2023(tmp_path)
    spoil(tmp_path)
    cohort = read_cohort(tmp_path)
    assert len(cohort.cases) == left
    for refusal in cohort.refused:
        assert refusal.case == "BraTS-GLI-00002-000"
        assert refusal.code == code
        assert reason in refusal.reason
        assert file in refusal.file
        assert not Path(refusal.file).is_absolute()
    assert len(cohort.refused) == (2 if fault == "a case twice" else 1)


def test_a_case_without_a_mask_is_kept_but_not_for_training(tmp_path: Path) -> None:
    brats_2023(tmp_path)
    (tmp_path / "BraTS-GLI-00002-000" / "BraTS-GLI-00002-000-seg.nii.gz").unlink()
    cohort = read_cohort(tmp_path)
    assert [case.patient for case in cohort.unlabelled] == ["BraTS-GLI-00002"]
    parts = split(cohort, "study")
    assert len(parts.train + parts.validation + parts.test) == 2


@pytest.mark.parametrize(
    ("modality", "labels"),
    [(("FLAIR", "T1w", "T2w"), None), (None, {"1": "tumour"}), (None, ["edema"])],
)
def test_a_decathlon_task_is_used_only_as_described(
    tmp_path: Path, modality: tuple[str, ...] | None, labels: object
) -> None:
    decathlon(tmp_path, modality or ("FLAIR", "T1w", "t1gd", "T2w"))
    brats_2021(tmp_path)
    path = tmp_path / "Task01_BrainTumour" / "dataset.json"
    if labels is not None:
        path.write_text(json.dumps({**json.loads(path.read_text()), "labels": labels}))
    cohort = read_cohort(tmp_path)
    assert [case.name for case in cohort.cases] == ["BraTS2021_00000"]
    assert [one.code for one in cohort.refused] == ["case-layout"]


def test_a_folder_with_no_case_lists_the_known_layouts(tmp_path: Path) -> None:
    touch(tmp_path / "scan" / "brain.nii.gz")
    with pytest.raises(CaseError, match="BraTS 2023 and later") as caught:
        read_cohort(tmp_path)
    assert "scan/brain.nii.gz" in str(caught.value)
    assert "BIDS" in caught.value.do
    assert caught.value.code == "case-none"


@pytest.mark.parametrize("read", [read_cohort, read_case])
def test_a_folder_that_is_not_there_is_named(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    with pytest.raises(CaseError, match="nowhere is not a folder"):
        read(tmp_path / "nowhere")


def test_what_cannot_be_opened_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brats_2023(tmp_path)
    locked = tmp_path / "BraTS-GLI-00001-001"
    broken = tmp_path / "BraTS-GLI-00002-000" / "BraTS-GLI-00002-000-t1c.nii.gz"
    list_folder, open_file = os.scandir, os.open

    def scandir(path: str) -> object:
        if Path(path) == locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return list_folder(path)

    def opened(path: Any, *args: Any, **kwargs: Any) -> int:
        if path == broken:
            raise OSError(errno.EIO, "Input/output error")
        return open_file(path, *args, **kwargs)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "open", opened)
    cohort = read_cohort(tmp_path)
    assert [case.name for case in cohort.cases] == ["BraTS-GLI-00001-000"]
    assert {(one.file, one.reason) for one in cohort.refused} == {
        (locked.name, "cannot be read: Permission denied"),
        (f"{broken.parent.name}/{broken.name}", "cannot be read: Input/output error"),
    }


def test_a_file_beside_the_folders_of_a_decathlon_task_is_said(tmp_path: Path) -> None:
    decathlon(tmp_path)
    touch(tmp_path / "Task01_BrainTumour" / "results" / "BRATS_001.nii.gz")
    cohort = read_cohort(tmp_path)
    assert len(cohort.cases) == 2
    assert [one.file for one in cohort.refused] == ["Task01_BrainTumour/results/BRATS_001.nii.gz"]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    brats_2021(tmp_path / "store")
    root = tmp_path / "cohort"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "store")
    (root / "loop").symlink_to(root)
    assert len(read_cohort(root).cases) == 1


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_case_is_read_for_the_clinic(tmp_path: Path, name: str) -> None:
    build, _, names, *_ = LAYOUTS[name]
    build(tmp_path)
    if len(names) == 1:
        assert read_case(tmp_path).name == names[0]
        return
    with pytest.raises(CaseError, match="cases: ") as caught:
        read_case(tmp_path)
    assert caught.value.code == "case-several"
    assert all(one in str(caught.value) for one in names)


def test_one_case_folder_out_of_a_cohort(tmp_path: Path) -> None:
    brats_2023(tmp_path)
    bids(tmp_path / "bids")
    touch(tmp_path / "BraTS-GLI-00001-001" / "localizer.nii.gz")
    assert read_case(tmp_path / "BraTS-GLI-00001-001").session == "001"
    for folder in ("sub-01", "sub-01/ses-a", "sub-01/ses-a/anat"):
        case = read_case(tmp_path / "bids" / folder)
        assert (case.patient, case.session, case.label) == ("sub-01", "ses-a", None)


@pytest.mark.parametrize("there", list(product((True, False), repeat=4))[:-1])
def test_any_case_with_t1c_or_flair_is_one_and_says_what_it_lacks(
    tmp_path: Path, there: tuple[bool, ...]
) -> None:
    brats_2023(tmp_path)
    folder = tmp_path / "BraTS-GLI-00002-000"
    missing = tuple(n for n, kept in zip(MODALITIES, there, strict=True) if not kept)
    for name in missing:
        (folder / f"BraTS-GLI-00002-000-{name}.nii.gz").unlink()
    if {"t1c", "t2f"} <= set(missing):
        with pytest.raises(CaseError, match=f"no file for {', '.join(missing)}") as caught:
            read_case(folder)
        assert caught.value.code == "case-sequence"
        return
    case = read_case(folder)
    assert case.missing == missing
    assert tuple(case.images) == tuple(n for n in MODALITIES if n not in missing)
    assert case.reference == ("t2f" if "t1c" in missing else "t1c")


@pytest.mark.parametrize("lacking", ["first", "second", "both"])
def test_a_scan_under_two_names_is_found_without_contrast_enhanced_t1(
    tmp_path: Path, lacking: str
) -> None:
    brats_2023(tmp_path)
    spoil_copy(tmp_path)
    for number, which in ((1, "first"), (2, "second")):
        if lacking in (which, "both"):
            case = f"BraTS-GLI-0000{number}-000"
            (tmp_path / case / f"{case}-t1c.nii.gz").unlink()
    (refusal,) = read_cohort(tmp_path).refused
    assert (refusal.code, "-t2f.nii" in refusal.file) == ("case-copy", True)


def test_two_scans_that_share_no_sequence_that_counts_are_two_cases(tmp_path: Path) -> None:
    brats_2023(tmp_path)
    spoil_copy(tmp_path)
    for case, name in (("00001", "t1c"), ("00002", "t2f")):
        stem = f"BraTS-GLI-{case}-000"
        (tmp_path / stem / f"{stem}-{name}.nii.gz").unlink()
    assert read_cohort(tmp_path).refused == ()


def test_a_folder_without_images_is_no_case(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="no image in it"):
        read_case(tmp_path)


def test_a_decathlon_case_goes_through_preprocessing(tmp_path: Path) -> None:
    """Channels and mask values end where they belong: T1c brightest where the mask says ET."""
    decathlon(tmp_path)
    task = tmp_path / "Task01_BrainTumour"
    x, y, z = np.indices((24, 24, 24))
    brain = (x - 12) ** 2 + (y - 12) ** 2 + (z - 12) ** 2 < 90
    labels = np.zeros(brain.shape, np.uint8)
    labels[8:14, 8:14, 8:14] = 1
    labels[9:12, 9:12, 9:12] = 3
    texture = np.random.default_rng(1).uniform(90, 110, (24, 24, 24, 4))
    texture[..., 2] += 100 * (labels == 3)
    texture[..., 0] += 100 * (labels == 1)
    image = (texture * brain[..., None]).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.eye(4)), task / "imagesTr" / "BRATS_001.nii.gz")
    write_volume(task / "labelsTr" / "BRATS_001.nii.gz", labels, np.eye(4))
    (task / "imagesTs" / "BRATS_485.nii.gz").unlink()
    prepared = prepare(read_case(tmp_path), PreprocessingOptions())
    assert prepared.labels is not None
    assert set(np.unique(prepared.labels)) == {0, 2, 3}
    assert prepared.image[1][prepared.labels == 3].min() > 2
    assert prepared.image[3][prepared.labels == 2].min() > 0.5


@pytest.mark.parametrize(
    ("ending", "code", "words"),
    [
        ("-T1_post.nii.gz", "case-sequence", "no file for t1c, and this one is not used"),
        ("_t1.nii.gz", "case-sequence", "no file for t1c, and this one is not used"),
        ("_t1ce.nii.gz", "case-duplicate", "2 times"),
    ],
)
def test_a_sequence_is_not_missing_where_a_file_of_another_name_may_be_it(
    tmp_path: Path, ending: str, code: str, words: str
) -> None:
    brats_2023(tmp_path)
    folder = tmp_path / "BraTS-GLI-00002-000"
    stem = folder / "BraTS-GLI-00002-000"
    other = Path(f"{stem}-t1c.nii.gz").rename(f"{stem}{ending}")
    cohort = read_cohort(tmp_path)
    assert "BraTS-GLI-00002" not in cohort.patients
    found = [one for one in cohort.refused if words in one.reason]
    assert {(one.code, one.case) for one in found} == {(code, "BraTS-GLI-00002-000")}
    with pytest.raises(CaseError, match=words):
        read_case(folder)
    other.unlink()
    assert read_case(folder).missing == ("t1c",)


def test_a_file_of_another_name_beside_a_whole_case_changes_nothing(tmp_path: Path) -> None:
    brats_2023(tmp_path)
    folder = tmp_path / "BraTS-GLI-00002-000"
    touch(folder / "localizer.nii.gz")
    assert read_case(folder).missing == ()
    assert len(read_cohort(tmp_path).cases) == 3


OTHER_FORMATS = {
    # files beside the case's, which of them is named, words
    "NRRD": (("t1c.nrrd",), "t1c.nrrd", "NRRD"),
    "MetaImage": (("t1c.MHA",), "t1c.MHA", "MetaImage"),
    "FreeSurfer": (("t1c.mgz",), "t1c.mgz", "FreeSurfer"),
    "a pair": (("t1c.hdr", "t1c.img"), "t1c.img", "Analyze"),
    "AFNI": (("t1c+orig.HEAD", "t1c+orig.BRIK.gz"), "t1c+orig.HEAD", "AFNI"),
    "another packing": (("t1c.nii.bz2",), "t1c.nii.bz2", "bzip2"),
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_an_image_that_is_not_read_is_named_once(tmp_path: Path, name: str) -> None:
    files, named, words = OTHER_FORMATS[name]
    brats_2023(tmp_path)
    for file in files:
        touch(tmp_path / "PAT-7" / file)
    cohort = read_cohort(tmp_path)
    assert len(cohort.cases) == 3
    (refusal,) = cohort.refused
    assert (refusal.case, refusal.code) == ("PAT-7", "case-format")
    assert refusal.file == f"PAT-7/{named}"
    assert words in refusal.reason
    assert ".nii.gz" in refusal.reason


def test_a_sequence_in_a_format_that_is_not_read_is_not_missing(tmp_path: Path) -> None:
    brats_2023(tmp_path)
    folder = tmp_path / "BraTS-GLI-00002-000"
    stem = folder / "BraTS-GLI-00002-000-t1c"
    Path(f"{stem}.nii.gz").rename(f"{stem}.mgz")
    for read in (read_cohort, read_case):
        try:
            found = read(tmp_path if read is read_cohort else folder)
            said = "".join(one.reason for one in found.refused)
        except CaseError as error:
            said = error.message
        assert "no file for t1c, and this one is not used (FreeSurfer's format" in said


def test_what_is_no_patients_image_is_not_named(tmp_path: Path) -> None:
    brats_2023(tmp_path)
    touch(tmp_path / "derivatives" / "freesurfer" / "sub-1" / "mri" / "aseg.mgz")
    touch(tmp_path / "BraTS-GLI-00002-000" / "._t1c.mgz")
    touch(tmp_path / "BraTS-GLI-00002-000" / "notes.head")
    assert read_cohort(tmp_path).refused == ()


@pytest.mark.parametrize("build", [brats_2021, brats_2023, bids, decathlon, manifest])
def test_endings_in_capitals_are_read(tmp_path: Path, build: Callable[[Path], None]) -> None:
    build(tmp_path / "lower")
    build(tmp_path / "upper")
    for path in [*(tmp_path / "upper").rglob("*.nii*")]:
        path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))
    table = tmp_path / "upper" / "cohort.csv"
    if table.exists():
        table.write_text(table.read_text().replace(".nii.gz", ".NII.GZ"))
    lower, upper = (read_cohort(tmp_path / one) for one in ("lower", "upper"))
    assert [case.name for case in upper.cases] == [case.name for case in lower.cases]
    assert len(upper.labelled) == len(lower.labelled)
    assert upper.refused == ()


def test_what_a_hospital_says_of_its_folders_masks_counts(tmp_path: Path) -> None:
    brats_2023(tmp_path / "a")
    bids(tmp_path / "b")
    decathlon(tmp_path / "c")
    after = {"b": "brats-2024", ".": "NCR=7 ED=8 ET=9", "b/derivatives/raters/sub-01": "ET=1"}
    cases = {case.patient: case for case in read_cohort(tmp_path, labels=after).cases}
    assert cases["BraTS-GLI-00001"].label_map == {7: 1, 8: 2, 9: 3}
    assert cases["sub-02"].label_map == {1: 1, 2: 2, 3: 3, 4: 0}
    assert cases["sub-01"].label_map == {1: 3}
    assert cases["BRATS_001"].label_map == {1: 2, 2: 1, 3: 3}  # its dataset.json says it
    assert all(case.label_settled for case in cases.values() if case.label)
    assert not read_cohort(tmp_path / "b").labelled[0].label_settled


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"nowhere": "brats-2024"}, "no folder of"),
        ({"..": "brats-2024"}, "no folder of"),
        ({".": "brats-2025"}, "labels must be one of"),
    ],
)
def test_what_is_said_of_no_folder_is_refused(
    tmp_path: Path, said: dict[str, str], words: str
) -> None:
    brats_2023(tmp_path)
    with pytest.raises(StateError, match=words) as caught:
        read_cohort(tmp_path, labels=said)
    assert caught.value.code == "labels"


@pytest.mark.parametrize("name", ["BraTS-PED-00001-000", "BraTS-MEN-RT-0001-1"])
def test_other_tumours_masks_have_no_meaning_until_it_is_said(tmp_path: Path, name: str) -> None:
    case_files(tmp_path / name, name, NEW)
    (case,) = read_cohort(tmp_path).cases
    assert (case.label_map, case.label_settled) == ({}, False)
    (case,) = read_cohort(tmp_path, labels={name: "brats-ped-2024"}).cases
    assert (case.label_map, case.label_settled) == ({1: 3, 2: 1, 3: 1, 4: 2}, True)


def test_a_manifest_may_name_a_coding(tmp_path: Path) -> None:
    for file in "abcdm":
        touch(tmp_path / f"{file}.nii")
    row = "p1,1,a.nii,b.nii,c.nii,d.nii,m.nii,{}\n"
    for text, settled in (("brats-2024", True), ("", False)):
        touch(tmp_path / "list.csv", HEADER.strip() + ",labels\n" + row.format(text))
        (case,) = read_cohort(tmp_path).cases
        assert (4 in case.label_map, case.label_settled) == (settled, settled)
