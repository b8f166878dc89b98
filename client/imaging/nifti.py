"""NIfTI files in and out: the boundary at which a file becomes a checked volume.

Invariants: a Volume is finite, has three axes and an invertible affine; whatever is wrong with a
file becomes one CaseError that names the file and the reason. A compressed file is read to its
end, so that its checksum counts. Nothing is held that the header does not account for within
``client.imaging.limits``: a file is unpacked piece by piece, its header's extensions are passed
over, and of its voxels one piece is held beside the result. Out of scope: what the voxels mean,
and whether files fit together (``client.imaging.preprocessing``).
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling
from nibabel.wrapstruct import WrapStructError
from numpy.typing import DTypeLike, NDArray

from client.imaging import header_space
from client.imaging.limits import (
    MOST_GZIP_MEMBERS,
    MOST_HEADER_BYTES,
    MOST_NIFTI_BYTES,
    MOST_TRAILING_BYTES,
    MOST_VOXELS,
    is_bomb,
)
from common.errors import CaseError
from common.records.atomic_files import write_secret
from common.records.regular_files import open_regular

_GZIP: Final = b"\x1f\x8b"
_KINDS: Final = {348: nib.Nifti1Header, 540: nib.Nifti2Header}  # by the header's first field
UNREADABLE: Final = (
    EOFError,
    HeaderDataError,
    ImageFileError,
    OSError,
    ValueError,
    WrapStructError,
    zlib.error,
)
"""What nibabel and zlib raise for a file that is no whole NIfTI."""
_PIECE: Final = 2**20
_PACKED_PIECE: Final = 2**16
_VOXELS_AT_ONCE: Final = 2**21
_COPY_AGAIN: Final = "Copy or export this file again."
_CONVERT: Final = "Export the image again as a 3-D NIfTI file, for instance with dcm2niix."


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels (X, Y, Z) and the affine (4, 4) from voxel index to world millimetres (RAS+)."""

    data: NDArray[Any]
    affine: NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along each axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


def read_volume(
    path: Path,
    *,
    dtype: DTypeLike = np.float32,
    index: int | None = None,
    empty_ok: bool = False,
) -> Volume:
    """Read a .nii or .nii.gz file.

    ``index`` picks a channel of a 4-D file; without it the file must be 3-D, trailing axes of
    length 1 aside. ``empty_ok`` admits a file in which every voxel is 0, as a mask may be. With
    an integer ``dtype`` every value must fit it exactly. Raises CaseError: code ``case-file``
    (absent, truncated, damaged, not NIfTI, no regular file), ``case-shape``, ``case-limit`` (larger
    than ``client.imaging.limits`` allows), ``case-affine``, ``case-values`` (NaN, infinite, not of
    that dtype) or ``case-empty``.
    """
    try:
        with open_regular(path, most_bytes=MOST_NIFTI_BYTES) as file:
            packed = file.read(2) == _GZIP
            file.seek(0)
            data, affine = _read(
                Gunzipped(file) if packed else file,
                path,
                index,
                dtype=np.dtype(dtype),
                size=os.fstat(file.fileno()).st_size,
                packed=packed,
                mask=empty_ok,
            )
    except FileNotFoundError:
        raise CaseError(f"{path} does not exist.", do="Check the path.", code="case-file") from None
    except UNREADABLE as error:
        raise CaseError(
            f"{path} cannot be read: it is truncated, damaged or not NIfTI ({error}).",
            do=_COPY_AGAIN,
            code="case-file",
        ) from error
    return _volume(path, data, affine, empty_ok=empty_ok)


def checked(
    path: Path,
    data: NDArray[Any],
    affine: NDArray[np.float64],
    *,
    dtype: DTypeLike = np.float32,
    empty_ok: bool = False,
) -> Volume:
    """Return voxels that came from ``path``, or under that name, as a volume.

    Raises CaseError: ``case-affine``, ``case-values`` or ``case-empty``, as ``read_volume`` does.
    """
    header_space.check_affine(affine, path)
    return _volume(path, _as_dtype(data, np.dtype(dtype), path), affine, empty_ok=empty_ok)


def _volume(
    path: Path, data: NDArray[Any], affine: NDArray[np.float64], *, empty_ok: bool
) -> Volume:
    if not empty_ok and not data.any():
        raise CaseError(f"{path} is empty: every voxel is 0.", do=_COPY_AGAIN, code="case-empty")
    return Volume(data, affine)


def write_volume(path: Path, data: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write ``data`` (X, Y, Z) or (X, Y, Z, C) as .nii.gz, atomically and on disk on return.

    bool is stored as uint8, float64 as float32, other types as they are. Equal input gives equal
    bytes. Raises StateError when it cannot be written, ValueError for another suffix or type.
    """
    if not path.name.endswith(".nii.gz"):
        raise ValueError(f"{path} must end in .nii.gz")
    narrower: dict[np.dtype[Any], type] = {
        np.dtype(bool): np.uint8,
        np.dtype(np.float64): np.float32,
    }
    stored = np.asarray(data, narrower.get(data.dtype, data.dtype))
    if stored.dtype not in (np.uint8, np.int16, np.uint16, np.int32, np.float32):
        raise ValueError(f"voxels of type {data.dtype} are not written; convert them first")
    image = nib.Nifti1Image(stored, affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm")

    write_secret(path, gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))


class Stream(Protocol):
    """What voxels are read from: a file, or what unpacks one."""

    def read(self, most: int, /) -> bytes:
        """Return at most so many bytes, none only at the end."""


class Gunzipped:
    """Unpacks a gzip file, of one part or several, and holds no more than it is asked for."""

    def __init__(self, file: Stream) -> None:
        self._file = file
        self._packed = b""
        self._part: Any = None
        self._parts = 0

    def read(self, most: int, /) -> bytes:
        """Return at most ``most`` bytes, none only at the end.

        Raises EOFError for a file that is cut short, zlib.error for a damaged one and ValueError
        for one in too many parts.
        """
        while self._part is not None or self._begun():
            data: bytes = self._part.decompress(self._packed, most)
            if self._part.eof:
                self._packed, self._part = self._part.unused_data, None
            else:
                self._packed = self._part.unconsumed_tail
                if not data and not self._packed:
                    self._packed = self._file.read(_PACKED_PIECE)
                    if not self._packed:
                        raise EOFError("it is cut short")
            if data:
                return data
        return b""

    def _begun(self) -> bool:
        """Begin the next part, if there is one; zeros may stand between them."""
        while True:
            if self._parts:
                self._packed = self._packed.lstrip(b"\0")
            if self._packed:
                break
            self._packed = self._file.read(_PACKED_PIECE)
            if not self._packed:
                return False
        self._parts += 1
        if self._parts > MOST_GZIP_MEMBERS:
            raise ValueError(f"it is packed in more than {MOST_GZIP_MEMBERS} parts")
        self._part = zlib.decompressobj(wbits=31)
        return True


def _read(
    stream: Stream,
    path: Path,
    index: int | None,
    *,
    dtype: np.dtype[Any],
    size: int,
    packed: bool,
    mask: bool,
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return voxels (X, Y, Z) as ``dtype`` and the affine; ``size`` is the file's on the disk."""
    header = _header(stream)
    stored = header.get_data_dtype()
    if stored.kind not in "iuf":
        raise CaseError(
            f"{path} holds voxels of type {stored}, not plain numbers.",
            do=_CONVERT,
            code="case-shape",
        )
    shape = header.get_data_shape()
    channel = _channel(shape, path, index)
    offset, begun = header.get_data_offset(), len(header.binaryblock)
    if offset < begun:
        raise ValueError("its voxels would lie in its header")
    count = math.prod(shape[:3])
    end = offset + math.prod(shape) * stored.itemsize
    fault = ""
    if offset > MOST_HEADER_BYTES:
        fault = f"says that its header has {offset} bytes, more than {MOST_HEADER_BYTES}"
    elif end > MOST_NIFTI_BYTES:
        fault = f"would have {end} bytes when unpacked, more than {MOST_NIFTI_BYTES}"
    elif packed and dtype.kind == "f" and is_bomb(end, size):
        fault = f"would grow {end // max(1, size)} fold when unpacked, as no image does"
    if fault:
        raise _over_limit(path, fault)
    if not packed and size < end:
        raise EOFError(f"its header speaks of {end} bytes and it has {size}")
    affine = header_space.affine_mm(header, path, mask=mask)
    slope, inter = header.get_slope_inter()
    _skip(stream, offset - begun + channel * count * stored.itemsize)
    flat = np.empty(count, dtype)
    for start in range(0, count, _VOXELS_AT_ONCE):
        piece = _exactly(stream, min(_VOXELS_AT_ONCE, count - start) * stored.itemsize)
        values = np.frombuffer(piece, stored)
        if slope is not None:
            values = apply_read_scaling(values, np.float64(slope), np.float64(inter or 0.0))
        flat[start : start + len(values)] = _as_dtype(values, dtype, path)
    if packed:  # the checksum stands at the end
        _skip(stream, end - offset - (channel + 1) * count * stored.itemsize)
        _check_end(stream, path)
    return np.ascontiguousarray(flat.reshape(shape[:3], order="F")), affine


def _header(stream: Stream) -> Any:
    """Return the header, without its extensions; raise what nibabel does, or ValueError."""
    start = _exactly(stream, 4, short="no NIfTI header")
    sizes = {int.from_bytes(start, "little"), int.from_bytes(start, "big")} & set(_KINDS)
    if not sizes:
        raise ValueError("no NIfTI header")
    size = sizes.pop()
    return _KINDS[size](start + _exactly(stream, size - 4))


def _exactly(stream: Stream, count: int, *, short: str = "it is cut short") -> bytes:
    found = bytearray()
    while len(found) < count:
        piece = stream.read(count - len(found))
        if not piece:
            raise EOFError(short)
        found += piece
    return bytes(found)


def _skip(stream: Stream, count: int) -> None:
    while count:
        piece = stream.read(min(count, _PIECE))
        if not piece:
            raise EOFError("it is cut short")
        count -= len(piece)


def _check_end(stream: Stream, path: Path) -> None:
    behind = 0
    while piece := stream.read(_PIECE):
        behind += len(piece)
        if behind > MOST_TRAILING_BYTES:
            words = f"goes on for more than {MOST_TRAILING_BYTES} bytes behind its voxels"
            raise _over_limit(path, words)


def _over_limit(path: Path, fault: str) -> CaseError:
    return CaseError(
        f"{path} {fault}.",
        do=f"{_CONVERT} The limits stand in client/README.md.",
        code="case-limit",
    )


def _channel(shape: tuple[int, ...], path: Path, index: int | None) -> int:
    """Return which three axes of an array of ``shape`` are meant; raise CaseError."""
    trailing = shape[3:]
    if len(shape) < 3 or min(shape) < 1 or any(n != 1 for n in trailing[1:]):
        fault = f"has shape {'x'.join(map(str, shape))} instead of three axes"
    elif math.prod(shape[:3]) > MOST_VOXELS:
        fault = f"has {math.prod(shape[:3])} voxels, more than {MOST_VOXELS}"
    elif index is None and trailing and trailing[0] != 1:
        fault = f"has {trailing[0]} channels; one volume is expected"
    elif index is not None and not 0 <= index < (trailing[0] if trailing else 1):
        fault = f"has no channel {index}"
    else:
        return index or 0
    raise CaseError(f"{path} {fault}.", do=_CONVERT, code="case-shape")


def _as_dtype(data: NDArray[Any], dtype: np.dtype[Any], path: Path) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):  # judged below, voxel by voxel
        result = data.astype(dtype, order="C", copy=True)
    if not np.isfinite(data).all() or not np.isfinite(result).all():
        raise CaseError(
            f"{path} holds voxels that are not finite numbers (NaN or infinite).",
            do="Find out which processing step made them and export the image again.",
            code="case-values",
        )
    if dtype.kind in "iu" and not np.array_equal(result, data):
        raise CaseError(
            f"{path} holds values that are not whole numbers of type {dtype}.",
            do="Save the mask again as whole numbers.",
            code="case-values",
        )
    return result
