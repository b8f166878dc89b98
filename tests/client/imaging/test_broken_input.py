"""What hospitals' disks hold: each kind of broken input has one named refusal, never a traceback.

The table is the promise. Each row breaks one thing in a case that is otherwise fine, and says which
code the refusal has and which words it holds; the same case must be refused for training too.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLosslessSV1

from client.cohort.case_discovery import read_case, read_cohort
from client.imaging.case import Case
from client.imaging.missing_sequences import check_usable
from client.imaging.preprocessing import Prepared, prepare
from common.errors import CaseError
from common.study.protocol import PreprocessingOptions
from tests.scanners import SEQUENCES, oblique, voxels, write_series, write_study, zipped

OPTIONS = PreprocessingOptions(spacing_mm=6.0)
FILES = ("t1n", "t1c", "t2w", "t2f", "seg")
GRID = oblique((6.0, 6.0, 6.0))
Break = Callable[[Path, pytest.MonkeyPatch], object]


def nifti_case(root: Path) -> Path:
    folder = root / "case-00001-000"
    folder.mkdir(parents=True)
    for number, name in enumerate(FILES):
        data = voxels(number)
        if name == "seg":
            data = np.zeros_like(data, np.uint8)
            data[7:10, 6:9, 5:8] = 2
        save(folder, name, data)
    return folder


def save(folder: Path, name: str, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    image = nib.Nifti1Image(data, GRID if affine is None else affine)
    nib.save(image, path := folder / f"case-00001-000-{name}.nii.gz")
    return path


def at(root: Path, name: str = "t2w") -> Path:
    return root / "case-00001-000" / f"case-00001-000-{name}.nii.gz"


def header(name: str = "t2w", **fields: Any) -> Break:
    """Change fields of a NIfTI header as it lies on the disk; nibabel would not write them."""

    def spoil(root: Path, _: pytest.MonkeyPatch) -> None:
        with gzip.open(at(root, name)) as file:
            data = bytearray(file.read())
        head = nib.Nifti1Header(bytes(data[:348]), check=False)
        for field, value in fields.items():
            head[field] = value
        data[:348] = head.binaryblock
        at(root, name).write_bytes(gzip.compress(bytes(data)))

    return spoil


AIR = np.random.default_rng(1).uniform(5, 30, voxels().shape)


def content(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Break:
    return lambda root, _: save(root / "case-00001-000", name, make(voxels()))


def value(number: float, name: str = "t2w") -> Break:
    def make(data: np.ndarray) -> np.ndarray:
        data = data.astype(np.float64) * (name != "seg")
        data[8, 7, 6] = number
        return data

    return content(name, make)


def data(change: Callable[[bytes], bytes], name: str = "t2w") -> Break:
    return lambda root, _: at(root, name).write_bytes(change(at(root, name).read_bytes()))


def unpacked(change: Callable[[bytes], bytes]) -> Break:
    return data(lambda packed: gzip.compress(change(gzip.decompress(packed))))


def unreadable(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_file = os.open

    def opened(path: Any, *args: Any, **kwargs: Any) -> int:
        if Path(path).name == at(root).name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_file(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", opened)


def replaced(make: Callable[[Path], object]) -> Break:
    def spoil(root: Path, _: pytest.MonkeyPatch) -> None:
        at(root).unlink()
        make(at(root))

    return spoil


def moved(*, mm: float, name: str = "t2w") -> Break:
    affine = GRID.copy()
    affine[0, 3] += mm
    return lambda root, _: save(root / "case-00001-000", name, voxels(), affine)


STRUCTURED = np.zeros((16, 14, 12), [("R", "u1"), ("G", "u1"), ("B", "u1")])
NIFTI: dict[str, tuple[Break, str, str]] = {
    # what is broken, how, code, words
    "an empty file": (data(lambda _: b""), "case-file", "truncated, damaged or not NIfTI"),
    "a truncated gzip": (data(lambda d: d[: len(d) // 2]), "case-file", "truncated"),
    "a gzip with a flipped bit": (
        data(lambda d: d[:-6] + bytes([d[-6] ^ 1]) + d[-5:]), "case-file", "damaged"),
    "a truncated NIfTI": (unpacked(lambda d: d[:2000]), "case-file", "truncated"),
    "a wrong magic": (unpacked(lambda d: b"\0" * 352 + d[352:]), "case-file", "not NIfTI"),
    "text named as an image": (data(lambda _: b"not an image\n" * 99), "case-file", "not NIfTI"),
    "NaN": (value(np.nan), "case-values", "NaN or infinite"),
    "infinity": (value(np.inf), "case-values", "NaN or infinite"),
    "a number too large": (value(1e300), "case-values", "not finite"),
    "a zero affine": (
        header(srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4, sform_code=1),
        "case-affine", "zero or flat"),
    "an affine that is not finite": (header(srow_x=[np.nan] * 4), "case-affine", "not finite"),
    "neither sform nor qform": (
        header(sform_code=0, qform_code=0), "case-affine", "neither sform nor qform"),
    "a 4-D file of many volumes": (
        content("t2w", lambda d: np.stack([d] * 5, -1)), "case-shape", "5 channels"),
    "a 2-D file": (content("t2w", lambda d: d[:, :, 0]), "case-shape", "instead of three axes"),
    "complex numbers": (content("t2w", lambda d: d.astype(np.complex64)), "case-shape", "complex"),
    "colours": (content("t2w", lambda _: STRUCTURED), "case-shape", "not plain numbers"),
    "a shape of petabytes": (
        header(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "case-shape", "voxels, more than"),
    "a sequence on another grid": (moved(mm=5.0), "case-grid", "on different grids"),
    "a sequence of another shape": (
        content("t2w", lambda d: d[:-1]), "case-grid", "voxels against"),
    "a missing sequence": (lambda root, _: at(root).unlink(), "case-sequence", "lacks t2w"),
    "neither t1c nor t2f": (
        lambda root, _: [at(root, name).unlink() for name in ("t1c", "t2f")],
        "case-sequence", "no file for t1c, t2f"),
    "two files for one sequence": (
        lambda root, _: nib.save(
            nib.Nifti1Image(voxels(), GRID), at(root, "t1c").with_suffix("")),
        "case-ambiguous", "2 files for one sequence (t1c)"),
    "an image of nothing": (content("t2w", np.zeros_like), "case-empty", "every voxel is 0"),
    "a flat image": (content("t2w", lambda d: np.sign(d) * 7), "case-contrast", "is flat"),
    "a head with its skull and air": (
        lambda root, _: [save(root / "case-00001-000", n, voxels() + AIR) for n in FILES[:4]],
        "case-not-stripped", "not skull-stripped"),
    "a mask value that means nothing": (value(9, "seg"), "case-label", "holds the value 9"),
    "a mask value between two": (value(1.5, "seg"), "case-label", "holds the value 1.5"),
    "a mask with NaN": (value(np.nan, "seg"), "case-values", "NaN"),
    "a mask on another grid": (moved(mm=5.0, name="seg"), "case-grid", "seg"),
    "a mask of another shape": (content("seg", lambda d: d[:-1] * 0), "case-grid", "seg"),
    "a folder named as a file": (replaced(lambda path: path.mkdir()), "case-sequence", "t2w"),
    "a link that leads nowhere": (
        replaced(lambda path: path.symlink_to(path.with_name("gone.nii.gz"))),
        "case-file", "does not exist"),
    "a link that leads to itself": (
        replaced(lambda path: path.symlink_to(path)), "case-file", "does not exist"),
    "a file that may not be read": (unreadable, "case-file", "Permission denied"),
}  # fmt: skip


def instances(root: Path, number: int = 5) -> list[Path]:
    return sorted((root / "study" / f"{number}").iterdir())


def each(number: int = 5, only: tuple[int, ...] | None = None, **values: Any) -> Break:
    """Set tags in the instances of a series; None removes one."""

    def spoil(root: Path, _: pytest.MonkeyPatch) -> None:
        for index, path in enumerate(instances(root, number)):
            if only is None or index in only:
                dataset = pydicom.dcmread(path)
                for name, given in values.items():
                    if given is None:
                        delattr(dataset, name)
                    else:
                        setattr(dataset, name, given(dataset) if callable(given) else given)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # these values are wrong on purpose
                    dataset.save_as(path)

    return spoil


def everywhere(**values: Any) -> Break:
    def spoil(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in (1, 2, 3, 4, 5):
            each(number, **values)(root, monkeypatch)

    return spoil


def bytes_of(change: Callable[[bytes], bytes], index: int = 4) -> Break:
    def spoil(root: Path, _: pytest.MonkeyPatch) -> None:
        path = instances(root)[index]
        path.write_bytes(change(path.read_bytes()))

    return spoil


def duplicate(root: Path, _: pytest.MonkeyPatch) -> None:
    """A second slice at the same place: another image under another UID."""
    dataset = pydicom.dcmread(instances(root)[4])
    dataset.SOPInstanceUID, dataset.InstanceNumber = "1.2.3.4.5", 99
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(instances(root)[4].with_name("copy.dcm"))


def altered(root: Path, _: pytest.MonkeyPatch) -> None:
    """The same instance twice, and the two differ."""
    dataset = pydicom.dcmread(instances(root)[4])
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(instances(root)[4].with_name("copy.dcm"))


def times(root: Path, _: pytest.MonkeyPatch) -> None:
    """A second time point in the same series."""
    for path in instances(root):
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID += ".2"
        dataset.TemporalPositionIdentifier = 2
        dataset.save_as(path.with_name(f"second-{path.name}"))


def without_tags(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times(root, monkeypatch)
    each(TemporalPositionIdentifier=1)(root, monkeypatch)


def shift(mm: float, axis: int) -> Callable[[Any], list[float]]:
    def moved(dataset: Any) -> list[float]:
        place = [float(one) for one in dataset.ImagePositionPatient]
        place[axis] += mm
        return place

    return moved


def second_patient(root: Path, _: pytest.MonkeyPatch) -> None:
    write_study(root / "study" / "other", patient="B", study="1.2.9", seed=1)


def one_study_two_patients(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    each(PatientID="B")(root, monkeypatch)


def directory_only(root: Path, _: pytest.MonkeyPatch) -> None:
    source = instances(root)[0]
    dataset = pydicom.dcmread(source)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    shutil.rmtree(root / "study")
    (root / "study").mkdir()
    dataset.save_as(root / "study" / "DICOMDIR")


def undecodable(root: Path, _: pytest.MonkeyPatch) -> None:
    for path in instances(root):
        dataset = pydicom.dcmread(path)
        dataset.PixelData = encapsulate([b"\xff\xd8\xff\xc3 not decoded here"])
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        dataset.save_as(path)


def another(description: str, **values: Any) -> Break:
    """Series 5 again under another description."""

    def spoil(root: Path, _: pytest.MonkeyPatch) -> None:
        shutil.rmtree(root / "study" / "5")
        write_series(root / "study" / "5", 5, description, **{**SEQUENCES[5][2], **values})

    return spoil


DICOM: dict[str, tuple[Break, str, str]] = {
    "no pixels": (each(PixelData=None), "case-pixels", "holds no pixels"),
    "pixels cut off": (
        each(PixelData=lambda d: d.PixelData[:-100]), "case-pixels", "cut off"),
    "a compression without a decoder": (undecodable, "case-pixels", "no decoder is installed"),
    "more voxels than memory": (each(Rows=60000, Columns=60000), "case-pixels", "voxels"),
    "a colour image": (
        each(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "case-pixels", "grey"),
    "a missing middle slice": (
        lambda root, _: instances(root)[5].unlink(),
        "case-slices", "lacks 1 of the slices in its middle"),
    "a missing first slice": (
        lambda root, _: instances(root)[0].unlink(), "case-series", "begins with image 2"),
    "a duplicate slice": (duplicate, "case-slices", "twice"),
    "one instance in two versions": (altered, "case-slices", "the two differ"),
    "a slice that lies too high": (
        each(only=(5,), ImagePositionPatient=shift(0.8, 2)), "case-slices", "not evenly"),
    "a slice that lies aside": (
        each(only=(5,), ImagePositionPatient=shift(9.0, 0)), "case-slices", "slices"),
    "a single slice": (
        lambda root, _: [path.unlink() for path in instances(root)[1:]],
        "case-slices", "a single slice"),
    "slices of two orientations": (
        each(only=(1, 2, 3), ImageOrientationPatient=[1, 0, 0, 0, 0, -1]),
        "case-sequence", "lacks t1c"),
    "no position": (each(ImagePositionPatient=None), "case-orientation", "where its slices lie"),
    "no orientation": (
        each(ImageOrientationPatient=None), "case-orientation", "where its slices lie"),
    "an orientation that cannot be": (
        each(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "case-orientation", "cannot be"),
    "voxels without a size": (each(PixelSpacing=[0, 0]), "case-affine", "how large its voxels"),
    "no voxel size": (each(PixelSpacing=None), "case-affine", "how large its voxels"),
    "several time points": (times, "case-volumes", "2 volumes"),
    "several volumes that nothing tells apart": (without_tags, "case-volumes", "2 volumes"),
    "a slope beyond all numbers": (
        each(RescaleSlope=1e38, RescaleIntercept=0), "case-values", "not finite"),
    "an image of nothing": (
        each(PixelData=lambda d: bytes(len(d.PixelData))), "case-empty", "every voxel is 0"),
    "an empty file": (bytes_of(lambda _: b""), "case-file", "empty"),
    "a file cut off in its header": (
        bytes_of(lambda d: d[:700]), "case-file", "slices may be missing"),
    "a header of noise": (
        bytes_of(lambda d: d[:132] + np.random.default_rng(0).bytes(900)), "case-file", "damaged"),
    "a deflated file": (
        bytes_of(lambda d: d.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99", 1)),
        "case-file", "deflated"),
    "a DICOMDIR alone": (directory_only, "case-none", "no image in it"),
    "two patients in one folder": (second_patient, "case-several", "holds 2 cases"),
    "one study of two patients": (one_study_two_patients, "case-several", "holds 2 cases"),
    "CT instead of MR": (everywhere(Modality="CT"), "case-modality", "no series for"),
    "screenshots only": (
        everywhere(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "case-modality", "no series for"),
    "burned-in text": (each(BurnedInAnnotation="YES"), "case-sequence", "lacks t1c"),
    "a subtraction instead of the image": (
        another("T1 KM SUB"), "case-sequence", "lacks t1c"),
    "a sequence that nobody can tell": (
        another("ax", RepetitionTime=None, EchoTime=None), "case-series", "--set t1c=SERIES"),
    "a description against the times": (
        another("T1 KM", RepetitionTime=5000, EchoTime=110), "case-series", "but its description"),
    "sequences on grids of their own": (
        another("T1 KM", affine=oblique((11.0, 11.0, 12.0))), "case-grid", "different grids"),
    "a missing sequence": (
        lambda root, _: shutil.rmtree(root / "study" / "4"), "case-sequence", "lacks t2f"),
    "neither T1 with contrast nor FLAIR": (
        lambda root, _: [shutil.rmtree(root / "study" / n) for n in "45"],
        "case-series", "no series for t1c, t2f"),
    "a mask with NaN": (
        lambda root, _: save(root / "study", "seg", np.full((16, 14, 12), np.nan)),
        "case-values", "NaN"),
}  # fmt: skip


def rewritten(change: Callable[[bytes], bytes]) -> Break:
    def spoil(root: Path, _: pytest.MonkeyPatch) -> None:
        path = root / "study.zip"
        path.write_bytes(change(path.read_bytes()))

    return spoil


def added(name: str, content: bytes = b"x", *, mode: int = 0o644) -> Break:
    def spoil(root: Path, _: pytest.MonkeyPatch) -> None:
        with zipfile.ZipFile(root / "study.zip", "a", zipfile.ZIP_DEFLATED) as archive:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)

    return spoil


def encrypted(packed: bytes) -> bytes:
    """Set the flag for encryption in every entry, as a tool with a password does."""
    result = bytearray(packed)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = result.find(mark)
        while place >= 0:
            result[place + offset] |= 1
            place = result.find(mark, place + 4)
    return bytes(result)


ZIP: dict[str, tuple[Break, str, str]] = {
    "not a zip": (rewritten(lambda _: b"this is no zip file"), "case-zip", "as a zip file"),
    "a truncated zip": (rewritten(lambda d: d[: len(d) // 2]), "case-zip", "as a zip file"),
    "an empty file": (rewritten(lambda _: b""), "case-zip", "as a zip file"),
    "a flipped bit": (
        rewritten(lambda d: d[:900] + bytes([d[900] ^ 255]) + d[901:]),
        "case-zip",
        "to its end",
    ),
    "a password": (rewritten(encrypted), "case-zip", "encrypted"),
    "a bomb": (added("bomb", bytes(100 * 2**20)), "case-zip", "zip bomb"),
    "a path out of it": (added("../../evil.dcm"), "case-zip", "leads out of it"),
    "an absolute path": (added("/etc/evil.dcm"), "case-zip", "leads out of it"),
    "a drive's path": (added("C:\\evil.dcm"), "case-zip", "leads out of it"),
    "a link": (added("link.dcm", b"/etc/passwd", mode=0o120777), "case-zip", "symbolic link"),
    "a damaged DICOM file": (added("5/bad.dcm", b"\0" * 128 + b"DICMjunk"), "case-file", "damaged"),
}


def used(case: Case) -> Prepared:
    """Prepare a case for a network that was trained on whole cases."""
    check_usable(case.name, case.missing, sequence_dropout=0.0)
    return prepare(case, OPTIONS)


def outcome(place: Path) -> Prepared:
    return used(read_case(place))


def refused(place: Path) -> CaseError:
    with pytest.raises(CaseError) as caught:
        outcome(place)
    return caught.value


def for_training(root: Path) -> set[str]:
    """Return the codes with which a cohort of this one case is refused."""
    try:
        cohort = read_cohort(root)
    except CaseError as error:
        return {error.code}
    codes = {one.code for one in cohort.refused}
    for case in cohort.cases:
        try:
            used(case)
        except CaseError as error:
            codes.add(error.code)
    return codes


def check(place: Path, code: str, words: str) -> None:
    error = refused(place)
    assert (error.code, words in str(error)) == (code, True), str(error)
    assert error.do
    codes = for_training(place if place.is_dir() else place.parent)
    assert codes & {code, "case-none"} or code == "case-several"


@pytest.mark.parametrize("name", NIFTI)
def test_broken_nifti_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    spoil, code, words = NIFTI[name]
    nifti_case(tmp_path)
    spoil(tmp_path, monkeypatch)
    check(tmp_path, code, words)


@pytest.mark.parametrize("name", DICOM)
def test_broken_dicom_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    spoil, code, words = DICOM[name]
    write_study(tmp_path / "study")
    spoil(tmp_path, monkeypatch)
    check(tmp_path / "study", code, words)


@pytest.mark.parametrize("name", ZIP)
def test_a_broken_zip_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    spoil, code, words = ZIP[name]
    source = write_study(tmp_path / "source")
    zipped(source, tmp_path / "study.zip")
    shutil.rmtree(source)
    spoil(tmp_path, monkeypatch)
    check(tmp_path / "study.zip", code, words)


def test_there_are_at_least_thirty_kinds() -> None:
    assert len(NIFTI) + len(DICOM) + len(ZIP) >= 30


def test_what_the_rows_break_was_fine(tmp_path: Path) -> None:
    """Else a row could be refused for another reason than its own."""
    assert outcome(nifti_case(tmp_path / "a")).labels is not None
    study = write_study(tmp_path / "b")
    expected = outcome(study).image
    np.testing.assert_array_equal(outcome(zipped(study, tmp_path / "c.zip")).image, expected)
    empty = save(nifti_case(tmp_path / "d"), "seg", np.zeros((16, 14, 12), np.uint8))
    labels = outcome(empty.parent).labels
    assert labels is not None
    assert not labels.any()


def test_noise_in_a_dicom_file_is_refused_or_harmless(tmp_path: Path) -> None:
    """Bytes of the header are overwritten at random: no traceback follows, whatever they were."""
    write_study(tmp_path / "study")
    path = instances(tmp_path)[4]
    whole = path.read_bytes()
    rng = np.random.default_rng(11)
    for _ in range(30):
        spoilt = bytearray(whole)
        for place in rng.integers(132, len(whole) - 500, int(rng.integers(1, 6))):
            spoilt[place] = rng.integers(256)
        path.write_bytes(bytes(spoilt))
        with contextlib.suppress(CaseError):
            outcome(tmp_path / "study")
