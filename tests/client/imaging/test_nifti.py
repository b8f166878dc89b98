"""Each way in which a file can be wrong becomes one CaseError that names the file."""

from __future__ import annotations

import errno
import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.imaging.nifti import read_volume, write_volume
from common.errors import CaseError, StateError
from common.records import atomic_files

DATA = np.arange(1, 61, dtype=np.float32).reshape(3, 4, 5)
AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -3], [0, 0, 3.0, 7], [0, 0, 0, 1]])


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def with_value(value: float) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        data = DATA.copy()
        data[1, 1, 1] = value
        save(path, data)

    return spoil


def with_affine(affine: np.ndarray) -> Callable[[Path], None]:
    """Write ``affine`` straight into the header: nibabel would refuse some of them."""

    def spoil(path: Path) -> None:
        image = nib.Nifti1Image(DATA, np.eye(4))
        for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
            image.header[name] = affine[row]
        image.header["qform_code"] = 0
        image.header["sform_code"] = 1
        image.header["vox_offset"] = 352
        raw = image.header.binaryblock + bytes(4) + DATA.tobytes(order="F")
        path.write_bytes(gzip.compress(raw))

    return spoil


def without_orientation(path: Path) -> None:
    image = nib.Nifti1Image(DATA, None)
    path.write_bytes(gzip.compress(image.to_bytes()))


def packed(path: Path, cut: Callable[[bytes], bytes]) -> None:
    save(path, DATA)
    path.write_bytes(cut(path.read_bytes()))


def raw(path: Path, cut: Callable[[bytes], bytes]) -> None:
    path.write_bytes(gzip.compress(cut(nib.Nifti1Image(DATA, AFFINE).to_bytes())))


def flip_bit(data: bytes) -> bytes:
    spoilt = bytearray(data)
    spoilt[-6] ^= 1  # in the checksum, so that the data still unpack
    return bytes(spoilt)


FAULTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "absent": ("case-file", lambda path: path.unlink(missing_ok=True)),
    "nothing in it": ("case-file", lambda path: path.write_bytes(b"")),
    "not NIfTI": ("case-file", lambda path: path.write_bytes(b"dear colleague, " * 99)),
    "another gzip": ("case-file", lambda path: path.write_bytes(gzip.compress(b"a" * 999))),
    "a folder": ("case-file", lambda path: path.mkdir()),
    "gzip cut short": ("case-file", lambda path: packed(path, lambda data: data[: len(data) // 2])),
    "gzip without its end": ("case-file", lambda path: packed(path, lambda data: data[:-4])),
    "a flipped bit": ("case-file", lambda path: packed(path, flip_bit)),
    "too few voxels": ("case-file", lambda path: raw(path, lambda data: data[:-40])),
    "header cut short": ("case-file", lambda path: raw(path, lambda data: data[:200])),
    "NaN": ("case-values", with_value(np.nan)),
    "infinite": ("case-values", with_value(-np.inf)),
    "affine zero": ("case-affine", with_affine(np.zeros((3, 4)))),
    "affine NaN": ("case-affine", with_affine(np.full((3, 4), np.nan))),
    "affine flat": ("case-affine", with_affine(np.ones((3, 4)))),
    "no orientation": ("case-affine", without_orientation),
    "two axes": ("case-shape", lambda path: save(path, DATA[0])),
    "four channels": ("case-shape", lambda path: save(path, np.stack([DATA] * 4, -1))),
    "five axes": ("case-shape", lambda path: save(path, np.ones((3, 3, 3, 1, 2), np.float32))),
    "complex": ("case-shape", lambda path: save(path, DATA.astype(np.complex64))),
    "all zero": ("case-empty", lambda path: save(path, 0 * DATA)),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    code, spoil = FAULTS[fault]
    path = tmp_path / "scan-t1c.nii.gz"
    spoil(path)
    with pytest.raises(CaseError, match="scan-t1c") as caught:
        read_volume(path)
    assert caught.value.code == code
    assert caught.value.do


def test_an_uncompressed_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    path.write_bytes(nib.Nifti1Image(DATA, AFFINE).to_bytes()[:-9])
    with pytest.raises(CaseError, match=r"scan\.nii"):
        read_volume(path)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64])
def test_reads_every_plain_kind(tmp_path: Path, kind: type, name: str, dtype: type) -> None:
    nib.save(kind(DATA.astype(dtype), AFFINE), tmp_path / name)
    volume = read_volume(tmp_path / name)
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data, DATA)
    np.testing.assert_allclose(volume.affine, AFFINE)
    assert volume.spacing_mm == pytest.approx((1.5, 2.0, 3.0))


def test_big_endian_and_scaled_values_are_read(tmp_path: Path) -> None:
    header = nib.Nifti1Image(DATA, AFFINE).header.as_byteswapped()
    header.set_slope_inter(0.5, 10)
    header["vox_offset"] = 352
    data = header.binaryblock + bytes(4) + DATA.astype(">f4").tobytes(order="F")
    (tmp_path / "scan.nii").write_bytes(data)
    np.testing.assert_allclose(read_volume(tmp_path / "scan.nii").data, 10 + 0.5 * DATA)


def test_a_trailing_axis_of_one_is_dropped(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", DATA[..., None])
    assert read_volume(path).data.shape == DATA.shape


def test_index_picks_a_channel(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.stack([DATA, DATA + 100, DATA + 200], -1))
    np.testing.assert_array_equal(read_volume(path, index=1).data, DATA + 100)
    with pytest.raises(CaseError, match="no channel 3"):
        read_volume(path, index=3)


def test_an_empty_mask_is_read_when_that_is_allowed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", 0 * DATA)
    volume = read_volume(path, dtype=np.uint8, empty_ok=True)
    assert volume.data.dtype == np.uint8
    assert not volume.data.any()


@pytest.mark.parametrize("value", [1.5, 300.0, -1.0])
def test_whole_numbers_are_not_bent_to_fit(tmp_path: Path, value: float) -> None:
    path = save(tmp_path / "a.nii.gz", np.full_like(DATA, value))
    with pytest.raises(CaseError, match="uint8"):
        read_volume(path, dtype=np.uint8)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.float32, np.float64])
def test_what_is_written_is_read_back(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "new" / "mask.nii.gz"
    write_volume(path, DATA.astype(dtype), AFFINE)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.data, DATA.astype(dtype).astype(np.float32))
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert nib.load(path).header.get_xyzt_units()[0] == "mm"


def test_equal_volumes_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_volume(tmp_path / f"{name}.nii.gz", DATA, AFFINE)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_wrong_suffix_and_type_are_programming_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must end in"):
        write_volume(tmp_path / "a.nii", DATA, AFFINE)
    with pytest.raises(ValueError, match="complex"):
        write_volume(tmp_path / "a.nii.gz", DATA.astype(complex), AFFINE)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mask.nii.gz"
    write_volume(path, DATA, AFFINE)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic_files.os, "fsync", full)
    with pytest.raises(StateError, match="disk is full"):
        write_volume(path, DATA + 1, AFFINE)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["mask.nii.gz"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateError, match="Cannot write"):
        write_volume(tmp_path / "file" / "a.nii.gz", DATA, AFFINE)
