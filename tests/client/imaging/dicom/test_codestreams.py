"""A frame is decoded only if it is of the size that its DICOM header says."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.encoders.base import get_encoder
from pydicom.pixels.encoders.native import _encode_row
from pydicom.uid import (
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from client.imaging.dicom import codestreams
from client.imaging.dicom.codestreams import check

ROWS, COLUMNS = 20, 30
SIZE = (ROWS, COLUMNS, 1)


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (ROWS, COLUMNS)).astype(np.uint8)


def encoded(kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels()).save(out, kind, **({"no_jp2": True} if kind == "JPEG2000" else {}))
    return out.getvalue()


def rle(data: np.ndarray) -> bytes:
    rows = b"".join(_encode_row(row.tobytes()) for row in data)
    return struct.pack("<16I", 1, 64, *[0] * 14) + rows


def jpeg_ls() -> bytes:
    return get_encoder(JPEGLSLossless).encode(
        pixels(), rows=ROWS, columns=COLUMNS, samples_per_pixel=1, bits_allocated=8, bits_stored=8,
        pixel_representation=0, photometric_interpretation="MONOCHROME2", number_of_frames=1,
    )  # fmt: skip


def progressive() -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels()).save(out, "JPEG", progressive=True)
    return out.getvalue()


def j2k(*, wide: int = COLUMNS, high: int = ROWS, tile: int = 64, left: int = 0) -> bytes:
    facts = struct.pack(">H8IH", 0, wide, high, left, 0, tile, tile, 0, 0, 1) + b"\7\1\1"
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(facts) + 2) + facts


def head(marker: int, rows: int = ROWS, columns: int = COLUMNS) -> bytes:
    body = struct.pack(">BHHBBBB", 8, rows, columns, 1, 1, 0x11, 0)
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


START, SCAN = b"\xff\xd8", b"\xff\xda"
LARGER = b"\xff\xf8\x00\x0b\x04\x04\x00\x01\x00\x00\x00\x01\x00"

GOOD: dict[str, tuple[UID, bytes]] = {
    "JPEG": (JPEGBaseline8Bit, encoded("JPEG")),
    "JPEG 2000": (JPEG2000Lossless, encoded("JPEG2000")),
    "JPEG-LS": (JPEGLSLossless, jpeg_ls()),
    "RLE": (RLELossless, rle(pixels())),
    "lossless JPEG": (JPEGLosslessSV1, START + b"\xff\xff" + head(0xC3)[1:] + SCAN),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_an_encoder_wrote_is_let_through(name: str) -> None:
    syntax, frame = GOOD[name]
    check(syntax, frame, SIZE, sample_bytes=1)


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("size", [(ROWS - 1, COLUMNS, 1), (ROWS, COLUMNS, 3), (1, 1, 1)])
def test_another_size_than_the_header_says_is_refused(
    name: str, size: tuple[int, int, int]
) -> None:
    syntax, frame = GOOD[name]
    if syntax == RLELossless and size[2] == 1:
        size = (1, 1, 1) if size[0] == 1 else (ROWS, COLUMNS, 2)
        frame = rle(np.zeros((60, 60), np.uint8) if size[0] == 1 else pixels())
    with pytest.raises(ValueError, match=r"another size|more than its pixels|longer|segments"):
        check(syntax, frame, size, sample_bytes=1)


BAD: dict[str, tuple[UID, bytes, str]] = {
    "nothing": (JPEGBaseline8Bit, b"", "does not begin"),
    "cut short": (JPEGBaseline8Bit, START + b"\xff\xc0\0", "cut short"),
    "no head": (JPEGBaseline8Bit, START + SCAN, "does not say its size"),
    "two heads": (JPEGBaseline8Bit, START + head(0xC0) + head(0xC0) + SCAN, "not of the kind"),
    "many passes": (JPEGBaseline8Bit, progressive(), "not of the kind"),
    "a second start": (JPEGBaseline8Bit, START + START + bytes(9), "none may be"),
    "no marker": (JPEGBaseline8Bit, START + bytes(9), "is no JPEG"),
    "JPEG-LS of a larger size": (
        JPEGLSLossless, START + LARGER + head(0xF7) + SCAN, "none may be"),
    "JPEG as JPEG 2000": (JPEG2000Lossless, encoded("JPEG"), "no JPEG 2000"),
    "JPEG 2000 in boxes": (JPEG2000Lossless, b"\0\0\0\x0cjP  " + bytes(99), "no JPEG 2000"),
    "a tile for each pixel": (
        JPEG2000Lossless, j2k(wide=300, high=300, tile=1), "90000 tiles"),
    "tiles of no size": (JPEG2000Lossless, j2k(tile=0), "no size"),
    "JPEG 2000 cut short": (JPEG2000Lossless, j2k()[:20], "cut short"),
    "an image beside its tiles": (JPEG2000Lossless, j2k(left=99), "no size"),
    "RLE of two segments": (
        RLELossless, struct.pack("<16I", 2, 64, 64, *[0] * 13), "has 2 segments and needs 1"),
    "RLE that begins in its head": (
        RLELossless, struct.pack("<16I", 1, 3, *[0] * 14), "longer than it can be"),
    "RLE of nothing but no-ops": (
        RLELossless, struct.pack("<16I", 1, 64, *[0] * 14) + b"\x80" * 9000, "longer"),
    "RLE that grows": (
        RLELossless, struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 100, "more than its"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_frame_that_is_no_such_image_is_refused(name: str) -> None:
    syntax, frame, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        check(syntax, frame, SIZE, sample_bytes=1)


@given(st.sampled_from(sorted(GOOD)), st.data())
def test_whatever_a_frame_holds_it_is_refused_or_of_its_size(
    name: str, data: st.DataObject
) -> None:
    syntax, frame = GOOD[name]
    spoilt = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 4))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(spoilt)))
    for one in (bytes(spoilt), bytes(spoilt[:cut])):
        try:
            check(syntax, one, SIZE, sample_bytes=1)
        except ValueError:
            continue


@pytest.mark.parametrize(
    "syntax", [JPEGBaseline8Bit, JPEG2000Lossless, JPEGLSLossless, RLELossless]
)
def test_every_decoder_that_is_installed_is_behind_the_check(syntax: UID) -> None:
    codestreams.guard()  # again: a decoder is not checked twice
    known = get_decoder(syntax)._available
    assert known
    for decode in known.values():
        assert isinstance(decode, codestreams._Guarded)
        assert not isinstance(decode._decode, codestreams._Guarded)
