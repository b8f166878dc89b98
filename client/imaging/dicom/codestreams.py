"""Compressed pixels say how large they are before a decoder believes them. Pure.

A frame's own words, and not those of its DICOM header, decide how much memory a decoder takes: the
size in a JPEG's, JPEG-LS's or JPEG 2000's head, and in RLE each run. ``guard`` sets a check before
every decoder that pydicom has, so that highdicom and whoever else decodes pass it too.

Sources: DICOM PS3.5 annex G (RLE), ISO 10918-1 annex B (JPEG), ISO 14495-1 annex C (JPEG-LS), ISO
15444-1 annex A (JPEG 2000).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Any, Final

from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

Size = tuple[int, int, int]
"""Rows, columns and samples of a pixel."""

_FRAME_HEADS: Final = {
    JPEGBaseline8Bit: {0xC0},
    JPEGExtended12Bit: {0xC0, 0xC1},
    JPEGLossless: {0xC3},
    JPEGLosslessSV1: {0xC3},
    JPEGLSLossless: {0xF7},
    JPEGLSNearLossless: {0xF7},
}
"""The marker that says how large a JPEG of a transfer syntax is. Others draw it in many passes."""

_ALL_FRAME_HEADS: Final = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_ALONE: Final = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_START, _END, _SCAN, _SIZE_AFTER, _PRESETS = 0xD8, 0xD9, 0xDA, 0xDC, 0xF8
_J2K: Final = (JPEG2000Lossless, JPEG2000)
_MOST_TILES: Final = 2**12
_SPARE: Final = 1024
_RLE_HEAD: Final = 64


def guard() -> None:
    """Set the check before every decoder that pydicom has."""
    for syntax in (*_FRAME_HEADS, *_J2K, RLELossless):
        known = get_decoder(syntax)._available
        for name, decode in known.items():
            if not hasattr(decode, "guarded"):
                known[name] = _Guarded(decode)


class _Guarded:
    """A decoder that checks a frame first."""

    guarded: Final = True

    def __init__(self, decode: Callable[..., Any]) -> None:
        self._decode = decode
        functools.update_wrapper(self, decode)

    def __call__(self, frame: bytes, runner: Any) -> Any:
        size = runner.rows, runner.columns, runner.samples_per_pixel
        check(UID(runner.transfer_syntax), frame, size, sample_bytes=runner.bits_allocated // 8)
        return self._decode(frame, runner)


def check(syntax: UID, frame: bytes, size: Size, *, sample_bytes: int) -> None:
    """Raise ValueError unless ``frame`` is of the ``size`` that its DICOM header says."""
    if syntax == RLELossless:
        _check_rle(frame, size[0] * size[1], segments=size[2] * sample_bytes)
        return
    try:
        found = _j2k_size(frame) if syntax in _J2K else _jpeg_size(frame, _FRAME_HEADS[syntax])
    except (struct.error, IndexError):
        raise ValueError("the compressed image is cut short") from None
    if found != size:
        words = " against ".join("x".join(map(str, one)) for one in (found, size))
        raise ValueError(f"the compressed image is of another size than its header says: {words}")


def _check_rle(frame: bytes, pixels: int, *, segments: int) -> None:
    """Raise ValueError unless each segment unpacks to about one byte for each pixel."""
    count, *offsets = struct.unpack_from("<16I", frame.ljust(_RLE_HEAD, b"\0"))
    if count != segments or not 0 < count < 16:
        raise ValueError(f"the RLE image has {count} segments and needs {segments}")
    for begin, end in zip(offsets, [*offsets[1:count], len(frame)], strict=False):
        if not _RLE_HEAD <= begin <= end <= len(frame) or end - begin > 2 * pixels + _SPARE:
            raise ValueError("the RLE image has a segment that is longer than it can be")
        if _unpacked(frame[begin:end], most=pixels + _SPARE) > pixels + _SPARE:
            raise ValueError("the RLE image has a segment that unpacks to more than its pixels")


def _unpacked(segment: bytes, *, most: int) -> int:
    """Return to how many bytes an RLE segment unpacks, or something above ``most``."""
    place = total = 0
    while place < len(segment) and total <= most:
        word = segment[place]
        if word < 128:
            total += word + 1
            place += word + 2
        else:
            total += (257 - word) % 129  # 128 means nothing
            place += 2 - (word == 128)
    return total


def _jpeg_size(frame: bytes, heads: set[int]) -> Size:
    """Return the size in the one head before the first scan."""
    if frame[:2] != bytes((0xFF, _START)):
        raise ValueError("the compressed image does not begin as a JPEG")
    place, size = 2, None
    while True:
        if frame[place] != 0xFF:
            raise ValueError("the compressed image is no JPEG")
        while frame[place] == 0xFF:  # fill bytes
            place += 1
        marker = frame[place]
        place += 1
        if marker == _SCAN:
            break
        if marker in _ALONE:
            continue
        (length,) = struct.unpack_from(">H", frame, place)
        if marker in _ALL_FRAME_HEADS:
            if marker not in heads or size is not None:
                raise ValueError("the compressed image is not of the kind that its header says")
            rows, columns, samples = struct.unpack_from(">HHB", frame, place + 3)
            size = rows, columns, samples
        elif marker in (_START, _END, _SIZE_AFTER) or (
            marker == _PRESETS and frame[place + 2] == 4  # JPEG-LS: a larger size than 65535
        ):
            raise ValueError("the compressed image has a marker where none may be")
        place += max(2, length)
    if size is None:
        raise ValueError("the compressed image does not say its size")
    return size


def _j2k_size(frame: bytes) -> Size:
    """Return the size of the image in a JPEG 2000 codestream."""
    if frame[:4] != b"\xff\x4f\xff\x51":
        raise ValueError("the compressed image is no JPEG 2000 codestream")
    facts = struct.unpack_from(">8IH", frame, 8)
    right, bottom, left, top, wide, high, tile_left, tile_top, samples = facts
    if not (wide > 0 < high and tile_left <= left < right and tile_top <= top < bottom):
        raise ValueError("the JPEG 2000 image has no size")
    tiles = -(-(right - tile_left) // wide) * -(-(bottom - tile_top) // high)
    if tiles > _MOST_TILES:
        raise ValueError(f"the JPEG 2000 image has {tiles} tiles, more than {_MOST_TILES}")
    return bottom - top, right - left, samples
