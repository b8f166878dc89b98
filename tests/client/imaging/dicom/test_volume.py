"""A series becomes voxels where they lie in the patient, or a refusal that names why not."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless, RLELossless

from client.imaging.case import Image, Part
from client.imaging.dicom.file_scan import scan
from client.imaging.dicom.studies import Series, studies
from client.imaging.dicom.volume import read_series
from client.imaging.image_reading import read_image
from client.imaging.nifti import Volume, read_volume
from common.errors import CaseError
from tests.programs import needed
from tests.scanners import oblique, voxels, write_series

ORIENTATIONS = {
    # columns run to, rows run to, slices run to; spacing along each
    "axial": np.diag([-2.0, -3.0, 5.0, 1.0]),
    "sagittal": np.array([[0, 0, 5.0, -30], [-2.0, 0, 0, 40], [0, -3.0, 0, 50], [0, 0, 0, 1]]),
    "coronal": np.array([[-2.0, 0, 0, 30], [0, 0, 5.0, -40], [0, -3.0, 0, 50], [0, 0, 0, 1]]),
    "oblique": oblique((2.0, 3.0, 5.0)),
}


def series_in(folder: Path) -> tuple[Volume, Series]:
    found = scan(sorted(path for path in folder.rglob("*") if path.is_file()))
    (study,) = studies(found.instances)
    (series,) = study.series
    return read_image(series.image(study)), series


def at(volume: Volume, place_mm: np.ndarray) -> float:
    """Return the value of the voxel at a place in the patient."""
    index = np.linalg.inv(volume.affine) @ [*place_mm, 1]
    np.testing.assert_allclose(index, index.round(), atol=1e-3)
    i, j, k = index[:3].round().astype(int)
    return float(volume.data[i, j, k])


@pytest.mark.parametrize("enhanced", [False, True], ids=["classic", "enhanced"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_marker_is_where_the_scanner_put_it(
    tmp_path: Path, orientation: str, enhanced: bool
) -> None:
    affine = ORIENTATIONS[orientation]
    write_series(tmp_path, 1, affine=affine, enhanced=enhanced)
    volume, series = series_in(tmp_path)
    assert at(volume, (affine @ [10, 5, 8, 1])[:3]) == 1999
    assert volume.data.dtype == np.float32
    assert series.facts.spacing_mm == pytest.approx((2, 3, 5))
    for corner in ((0, 0, 0), (15, 13, 11), (15, 0, 11)):
        np.testing.assert_allclose(at(volume, (affine @ [*corner, 1])[:3]), voxels(1)[corner])
    assert np.sort(volume.data, axis=None).tolist() == np.sort(voxels(1), axis=None).tolist()


@pytest.mark.parametrize("enhanced", [False, True], ids=["classic", "enhanced"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_independent_converter_agrees(tmp_path: Path, orientation: str, enhanced: bool) -> None:
    source, out = tmp_path / "dicom", tmp_path / "nifti"
    out.mkdir()
    write_series(source, 1, affine=ORIENTATIONS[orientation], enhanced=enhanced)
    command = [needed("dcm2niix"), "-z", "n", "-b", "n", "-f", "x", "-o", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (converted,) = out.glob("*.nii")
    theirs = nib.as_closest_canonical(nib.load(converted))
    volume, _ = series_in(source)
    ours = nib.as_closest_canonical(nib.Nifti1Image(volume.data, volume.affine))
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
    np.testing.assert_array_equal(ours.get_fdata(), theirs.get_fdata())


@pytest.mark.parametrize("enhanced", [False, True], ids=["classic", "enhanced"])
def test_files_in_any_order_give_one_volume(tmp_path: Path, enhanced: bool) -> None:
    paths = write_series(tmp_path, 1, enhanced=enhanced)
    first, _ = series_in(tmp_path)
    for number, path in enumerate(reversed(paths)):
        path.rename(path.with_name(f"{number:03d}"))
    second, _ = series_in(tmp_path)
    np.testing.assert_array_equal(first.data, second.data)
    np.testing.assert_array_equal(first.affine, second.affine)


def test_slope_and_intercept_of_each_slice_are_applied(tmp_path: Path) -> None:
    def scaled(index: int, dataset: Dataset) -> Dataset:
        dataset.RescaleSlope, dataset.RescaleIntercept = 1 + index, -5
        return dataset

    write_series(tmp_path, 1, spoil=scaled)
    volume, _ = series_in(tmp_path)
    affine = oblique()
    assert at(volume, (affine @ [10, 5, 8, 1])[:3]) == 9 * 1999 - 5
    assert at(volume, (affine @ [0, 0, 3, 1])[:3]) == -5


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_lossless_compression_changes_nothing(tmp_path: Path, syntax: str) -> None:
    write_series(tmp_path / "a", 1, syntax=syntax)
    write_series(tmp_path / "b", 1)
    packed, _ = series_in(tmp_path / "a")
    plain, _ = series_in(tmp_path / "b")
    np.testing.assert_array_equal(packed.data, plain.data)


def test_echoes_are_split(tmp_path: Path) -> None:
    def second(index: int, dataset: Dataset) -> Dataset:
        dataset.EchoTime, dataset.InstanceNumber = 95, 13 + index
        return dataset

    uid = {"SeriesInstanceUID": "1.2.3.77"}
    write_series(tmp_path / "a", 4, EchoTime=15, **uid)
    write_series(tmp_path / "b", 4, EchoTime=95, spoil=second, data=voxels(9), **uid)
    (study,) = studies(scan(sorted(tmp_path.rglob("*.dcm"))).instances)
    assert [one.name for one in study.series] == ["4.1", "4.2"]
    assert [one.facts.te for one in study.series] == [15, 95]
    late = read_image(study.series[1].image(study))
    assert at(late, (oblique() @ [3, 7, 6, 1])[:3]) == voxels(9)[3, 7, 6]


def test_a_volume_from_dicom_and_its_nifti_are_one(tmp_path: Path) -> None:
    """What a converter would have written is read as the same volume."""
    write_series(tmp_path / "d", 1)
    volume, _ = series_in(tmp_path / "d")
    path = tmp_path / "x.nii.gz"
    nib.save(nib.Nifti1Image(volume.data, volume.affine), path)
    again = read_volume(path)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-5)
    np.testing.assert_array_equal(again.data, volume.data)


def drop(*gone: int) -> Any:
    return lambda index, dataset: None if index in gone else dataset


MISSING = {
    # slices left out, further tags, what is said
    "the first": (drop(0), {}, "begins with image 2"),
    "the last, and the archive knew how many": (
        drop(11),
        {"NumberOfSeriesRelatedInstances": 12},
        "11 slices where 12",
    ),
    "the last, and the scanner said how many": (drop(11), {"ImagesInAcquisition": 12}, "where 12"),
    "none": (drop(), {"ImagesInAcquisition": 12}, ""),
    "none, of an acquisition of three series": (drop(), {"ImagesInAcquisition": 36}, ""),
}


@pytest.mark.parametrize("case", MISSING)
def test_missing_end_slices_leave_a_trace(tmp_path: Path, case: str) -> None:
    spoil, values, said = MISSING[case]
    write_series(tmp_path, 1, spoil=spoil, **values)
    _, series = series_in(tmp_path)
    assert series.fault is None
    assert said in series.missing
    assert bool(series.missing) == bool(said)


def test_images_that_were_numbered_backwards_or_from_anywhere_are_whole(tmp_path: Path) -> None:
    def backwards(index: int, dataset: Dataset) -> Dataset:
        dataset.InstanceNumber = 112 - index
        return dataset

    write_series(tmp_path, 1, spoil=backwards)
    assert series_in(tmp_path)[1].missing == ""


def test_a_file_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    (first, *_) = write_series(tmp_path, 1)
    shutil.copy(first, tmp_path / "copy")
    volume, series = series_in(tmp_path)
    assert series.facts.slices == 12
    assert volume.data.shape[2] == 12


def test_a_frame_of_reference_that_an_anonymiser_dropped_is_no_fault(tmp_path: Path) -> None:
    write_series(tmp_path, 1, FrameOfReferenceUID=None)
    assert series_in(tmp_path)[0].data.any()


SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"


def shipped(name: str) -> np.ndarray:
    return read_series(Image(SHIPPED, parts=(Part(SHIPPED / name),), series="1")).data


@pytest.mark.parametrize(
    "coded", ["RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "implicit", "padded"]
)
def test_every_lossless_coding_of_one_image_gives_the_same_voxels(coded: str) -> None:
    np.testing.assert_array_equal(shipped(f"MR_small_{coded}.dcm"), shipped("MR_small.dcm"))


def test_every_file_that_pydicom_tests_with_is_read_or_refused() -> None:
    """Files of all kinds and ages, many damaged on purpose: none ends in a traceback."""
    paths = sorted(path for path in SHIPPED.rglob("*") if path.is_file())
    outcomes: Counter[str] = Counter()
    found = scan(paths)
    outcomes.update(error.code for _, error in found.faults)
    for study in studies(found.instances):
        for series in study.series:
            try:
                read_image(series.image(study))
            except CaseError as error:
                outcomes[error.code] += 1
            else:
                outcomes["read"] += 1
    assert outcomes["read"] > 5
    assert outcomes.keys() <= {
        "read", "case-file", "case-pixels", "case-slices", "case-empty", "case-affine",
    }  # fmt: skip
