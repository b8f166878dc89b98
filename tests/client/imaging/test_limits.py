"""A small file that says much is refused before anything of it is held.

Each row is a file that somebody made against a site. What reading it took is measured: Python's
memory at its highest, numpy's and zlib's included.
"""

from __future__ import annotations

import gzip
import io
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from client.cohort.case_discovery import read_cohort
from client.imaging import limits
from client.imaging.case import Image, Part
from client.imaging.dicom import codestreams
from client.imaging.dicom.file_scan import scan
from client.imaging.dicom.files_and_zips import members
from client.imaging.dicom.volume import read_series
from client.imaging.nifti import read_volume
from common.errors import CaseError
from tests.scanners import SHAPE, voxels, write_series

MB = 2**20
MOST_MB = 40
"""What refusing any of them may take: a header, and pieces of what follows."""


def measured(read: Callable[[], object]) -> tuple[CaseError, float]:
    """Return the refusal and the megabytes that it took."""
    tracemalloc.start()
    try:
        with pytest.raises(CaseError) as caught:
            read()
        return caught.value, tracemalloc.get_traced_memory()[1] / MB
    finally:
        tracemalloc.stop()


def header(shape: tuple[int, ...], kind: Any = np.float32, offset: float = 352) -> bytes:
    made = nib.Nifti1Header()
    made.set_data_dtype(kind)
    made.set_data_shape(shape)
    made.set_sform(np.eye(4), 1)
    made["vox_offset"], made["magic"] = offset, b"n+1"
    return bytes(made.binaryblock)


def packed(path: Path, *parts: bytes | int) -> Path:
    """Write a gzip file of bytes, and of so many zeros where a number stands."""
    with gzip.open(path, "wb", 1) as file:
        for part in parts:
            if isinstance(part, bytes):
                file.write(part)
                continue
            for start in range(0, part, MB):
                file.write(bytes(min(MB, part - start)))
    return path


CUBE = np.ones((4, 4, 4), np.float32).tobytes()


def extension(path: Path) -> Path:
    size = 100 * MB
    lead = header((4, 4, 4), offset=352 + size) + b"\1\0\0\0" + struct.pack("<ii", size, 0)
    return packed(path, lead, size - 8, CUBE)


def many_extensions(path: Path) -> Path:
    one = struct.pack("<ii", 16, 0) + bytes(8)
    count = 8 * MB // 16
    return packed(path, header((4, 4, 4), offset=352 + 8 * MB) + b"\1\0\0\0", one * count, CUBE)


def dimensions(path: Path) -> Path:
    return packed(path, header((256, 256, 256), np.float64) + bytes(4), 256**3 * 8)


def far_too_large(path: Path) -> Path:
    return packed(path, header((640, 640, 640), np.float64) + bytes(4), MB)


def no_data(path: Path) -> Path:
    path = path.with_suffix("")  # unpacked
    path.write_bytes(header((500, 500, 500)) + bytes(4))
    return path


def trailing(path: Path) -> Path:
    return packed(path, header((4, 4, 4)) + bytes(4) + CUBE, 64 * MB)


def trailing_part(path: Path) -> Path:
    """Write a second gzip part behind the first."""
    packed(path, header((4, 4, 4)) + bytes(4) + CUBE)
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(64 * MB), 1))
    return path


def many_parts(path: Path) -> Path:
    packed(path, header((4, 4, 4)) + bytes(4) + CUBE)
    path.write_bytes(path.read_bytes() + gzip.compress(b"") * (limits.MOST_GZIP_MEMBERS + 1))
    return path


def channels(path: Path) -> Path:
    return packed(path, header((128, 128, 128, 200), np.float64) + bytes(4), MB)


NIFTI: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "a header's extension of 100 MB": (extension, "case-limit", "header has 104857952 bytes"),
    "an image that grows a thousand fold": (dimensions, "case-limit", "fold when unpacked"),
    "voxels beyond the limit": (far_too_large, "case-shape", "262144000 voxels, more than"),
    "voxels that are not there": (no_data, "case-file", "500000352 bytes and it has 352"),
    "64 MB behind the voxels": (trailing, "case-limit", "behind its voxels"),
    "64 MB in another part": (trailing_part, "case-limit", "behind its voxels"),
    "65537 parts": (many_parts, "case-file", "more than 65536 parts"),
    "channels without end": (channels, "case-limit", "when unpacked, more than"),
}


@pytest.mark.parametrize("name", NIFTI)
def test_a_nifti_file_that_says_too_much_is_refused(tmp_path: Path, name: str) -> None:
    make, code, words = NIFTI[name]
    path = make(tmp_path / "scan.nii.gz")
    index = 0 if name == "channels without end" else None
    began = time.process_time()
    error, took_mb = measured(lambda: read_volume(path, index=index))
    assert (error.code, words in error.message) == (code, True), error
    assert error.do
    assert took_mb < MOST_MB
    assert time.process_time() - began < 5


def test_extensions_are_passed_over_and_not_kept(tmp_path: Path) -> None:
    path = many_extensions(tmp_path / "scan.nii.gz")
    tracemalloc.start()
    assert read_volume(path).data.sum() == 64
    took = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert took < 8 * MB


def test_a_mask_may_be_all_one_value(tmp_path: Path) -> None:
    """It shrinks a thousand fold, as no image does."""
    lead = header((320, 320, 170), np.float32) + bytes(4)
    path = packed(tmp_path / "mask.nii.gz", lead, 4 * 320 * 320 * 170)
    assert read_volume(path, dtype=np.uint8, empty_ok=True).data.nbytes == 320 * 320 * 170
    with pytest.raises(CaseError, match="fold when unpacked"):
        read_volume(path)


def test_a_volume_is_read_in_about_its_own_size(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(1, 99, (160, 160, 120)).astype(np.int16)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "scan.nii")
    tracemalloc.start()
    read = read_volume(tmp_path / "scan.nii").data
    took = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(read, data)
    assert took < 2 * read.nbytes + 48 * MB


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    if kind in (b"OB", b"SQ"):
        return struct.pack("<HH2sHI", group, number, kind, 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, kind, len(value)) + value


def dataset(folder: Path) -> tuple[Path, Any]:
    path = write_series(folder, 1)[0]
    return path, pydicom.dcmread(path)


def plain_bytes(one: Any) -> bytes:
    del one.file_meta
    out = io.BytesIO()
    pydicom.dcmwrite(out, one, implicit_vr=False, little_endian=True)
    return out.getvalue()


def deflated(folder: Path, *, before: int) -> Path:
    """Write a deflated file whose transfer syntax stands behind so many bytes of another value."""
    path, one = dataset(folder)
    raw = plain_bytes(one)
    place = raw.find(struct.pack("<HH", 0x7FE0, 0x0010))
    lead = struct.pack("<HH2sHI", 0x7FDF, 0x0010, b"OB", 0, 64 * MB)
    packer = zlib.compressobj(1, wbits=-15)
    content = packer.compress(raw[:place] + lead) + packer.compress(bytes(64 * MB))
    content += packer.compress(raw[place:]) + packer.flush()
    meta = (
        element(2, 1, b"OB", b"\0\1" + bytes(before))
        + element(2, 2, b"UI", str(one.SOPClassUID).encode())
        + element(2, 3, b"UI", str(one.SOPInstanceUID).encode())
        + element(2, 0x10, b"UI", DeflatedExplicitVRLittleEndian.encode())
    )
    length = element(2, 0, b"UL", struct.pack("<I", len(meta)))
    path.write_bytes(bytes(128) + b"DICM" + length + meta + content)
    return path


def items_without_end(folder: Path) -> Path:
    path, _ = dataset(folder)
    whole = path.read_bytes()
    place = whole.find(struct.pack("<HH", 0x7FE0, 0x0010))
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    many = element(0x5200, 0x9230, b"SQ", item * (limits.MOST_ITEMS + 1))
    path.write_bytes(whole[:place] + many + whole[place:])
    return path


def long_value(folder: Path) -> Path:
    path, _ = dataset(folder)
    whole = path.read_bytes()
    place = whole.find(struct.pack("<HH", 0x7FE0, 0x0010))
    value = element(0x5200, 0x9230, b"SQ", bytes(2 * limits.MOST_HEADER_BYTES))
    path.write_bytes(whole[:place] + value + whole[place:])
    return path


HEADERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "deflated": (lambda folder: deflated(folder, before=0), "deflated"),
    "deflated, said late": (lambda folder: deflated(folder, before=5000), "deflated"),
    "items without end": (items_without_end, "damaged"),
    "a value of 32 MB": (long_value, "damaged"),
}


@pytest.mark.parametrize("reads", ["the header", "the pixels"])
@pytest.mark.parametrize("name", HEADERS)
def test_a_dicom_file_whose_header_says_too_much_is_refused(
    tmp_path: Path, name: str, reads: str
) -> None:
    make, words = HEADERS[name]
    path = make(tmp_path)
    if reads == "the header":
        (fault,) = scan([path]).faults
        assert words in fault[1].message
        assert fault[1].code == "case-file"
    elif name != "a value of 32 MB":  # beside the pixels it is no more than what is on the disk
        error, took_mb = measured(lambda: read_series(Image(path, parts=(Part(path),))))
        assert error.code == "case-file"
        assert took_mb < MOST_MB


def j2k(wide: int, high: int, *, tile: int = 0, samples: int = 1) -> bytes:
    facts = (wide, high, 0, 0, tile or wide, tile or high, 0, 0)
    size = struct.pack(">H8IH", 0, *facts, samples) + b"\x0f\1\1" * samples
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(size) + 2) + size + bytes(64)


def jls(wide: int, high: int, *, before: bytes = b"") -> bytes:
    head = struct.pack(">HBHHBBBB", 11, 16, high, wide, 1, 1, 0x11, 0)
    return b"\xff\xd8" + before + b"\xff\xf7" + head + b"\xff\xda" + bytes(64) + b"\xff\xd9"


def rle(pixels: int, *, grows: int = 1) -> bytes:
    runs = bytes((0x81, 0)) * (grows * pixels // 128 + 1)
    return struct.pack("<16I", 2, 64, 64 + len(runs), *[0] * 13) + runs + runs


FRAMES: dict[str, tuple[str, bytes]] = {
    "JPEG 2000 of 60000 x 60000": (JPEG2000Lossless, j2k(60000, 60000)),
    "JPEG-LS of 60000 x 60000": (JPEGLSLossless, jls(60000, 60000)),
    "RLE that grows": (RLELossless, rle(SHAPE[0] * SHAPE[1], grows=4000)),
}


@pytest.mark.parametrize("name", FRAMES)
def test_pixels_that_would_unpack_to_more_than_their_header_says_are_refused(
    tmp_path: Path, name: str
) -> None:
    syntax, frame = FRAMES[name]
    path, one = dataset(tmp_path)
    one.file_meta.TransferSyntaxUID = syntax
    one.PixelData = encapsulate([frame])
    one["PixelData"].VR, one["PixelData"].is_undefined_length = "OB", True
    one.save_as(path)
    image = Image(path, parts=(Part(path),))
    read_series_once(image)  # what loads a decoder is no part of what is measured
    error, took_mb = measured(lambda: read_series(image))
    assert error.code == "case-pixels"
    assert took_mb < MOST_MB


def read_series_once(image: Image) -> None:
    with pytest.raises(CaseError):
        read_series(image)


def test_frames_behind_those_of_the_header_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, one = dataset(tmp_path)
    one.compress(RLELossless)
    frame = rle(SHAPE[0] * SHAPE[1])
    one.PixelData = encapsulate([frame] * 500)
    one["PixelData"].VR, one["PixelData"].is_undefined_length = "OB", True
    one.ImageOrientationPatient = [1, 0, 0, 1, 0, 0]  # no volume: then the pixels are tried
    one.save_as(path)
    checked: list[object] = []
    check = codestreams.check
    monkeypatch.setattr(codestreams, "check", lambda *a, **k: (checked.append(a), check(*a, **k)))
    with pytest.raises(CaseError, match="not one whole volume"):
        read_series(Image(path, parts=(Part(path),)))
    assert 0 < len(checked) < 5


def test_a_series_of_too_many_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_series(tmp_path, 1)
    monkeypatch.setattr("client.imaging.dicom.volume.MOST_SERIES_BYTES", 4000)
    with pytest.raises(CaseError, match="more than 4000 bytes") as caught:
        read_series(Image(tmp_path, parts=tuple(map(Part, paths))))
    assert caught.value.code == "case-limit"


def liar(path: Path) -> None:
    """Write a zip file of one member that says that it has 100 bytes and has 64 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a.dcm", bytes(64 * MB))
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I", raw, raw.rfind(b"PK\x01\x02") + 24, 100)
    struct.pack_into("<I", raw, 22, 100)
    path.write_bytes(bytes(raw))


def other_method(path: Path) -> None:
    """Write a zip file of bzip2, which is unpacked by the kilobyte packed and not unpacked."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2, compresslevel=1) as archive:
        archive.writestr("a.dcm", bytes(16 * MB))
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I", raw, raw.rfind(b"PK\x01\x02") + 24, 4096)
    struct.pack_into("<I", raw, 22, 4096)
    path.write_bytes(bytes(raw))


def overlapping(path: Path) -> None:
    """Write a zip file in which 5000 names stand for one member of 1 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0", bytes(MB))
    raw, many = path.read_bytes(), 5000
    begin, end = raw.rfind(b"PK\x01\x02"), raw.rfind(b"PK\x05\x06")
    facts = (0, 0, many, many, (end - begin) * many, begin, 0)
    last = b"PK\x05\x06" + struct.pack("<HHHHIIH", *facts)
    path.write_bytes(raw[:begin] + raw[begin:end] * many + last)


def long_list(path: Path) -> None:
    """Write a zip file that is nothing but a list of 110 MB, most of it holes on the disk."""
    length = 110 * MB
    last = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, length, 0, 0)
    with path.open("wb") as file:
        file.seek(length)
        file.write(last)


ZIPS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a member larger than it says": (liar, "cannot be read to its end"),
    "a method without a limit": (other_method, "another way than by deflate"),
    "many names for one member": (overlapping, "zip bomb"),
    "a list of files of 110 MB": (long_list, "lists its files in 115343360 bytes"),
}


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_that_says_too_much_is_refused(tmp_path: Path, name: str) -> None:
    make, words = ZIPS[name]
    make(tmp_path / "study.zip")
    scan([])  # what loads pydicom is no part of what is measured
    error, took_mb = measured(lambda: read_cohort(tmp_path))
    assert words in error.message
    assert took_mb < MOST_MB


def test_an_ordinary_zip_is_within_the_limits(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", voxels().tobytes())
    assert members(tmp_path / "study.zip") == [Part(tmp_path / "study.zip", "a.dcm")]
