"""NIfTI files in and out: the boundary at which a file becomes a checked volume.

Invariants: a Volume is finite, has three axes and an invertible affine; whatever is wrong with a
file becomes one CaseError that names the file and the reason. A compressed file is read to its
end, so that its checksum counts. Out of scope: what the voxels mean, and whether files fit
together (``client.imaging.preprocessing``).
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import DTypeLike, NDArray

from common.errors import CaseError
from common.records.atomic_files import write_secret

_GZIP: Final = b"\x1f\x8b"
_KINDS: Final = {348: nib.Nifti1Image, 540: nib.Nifti2Image}  # by the header's first field
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
_MAX_VOXELS: Final = 2**28
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
    (absent, truncated, damaged, not NIfTI), ``case-shape``, ``case-affine``, ``case-values``
    (NaN, infinite, not of that dtype) or ``case-empty``.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP
            file.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=file, mode="rb") as stream:
                    data, affine = _read(stream, path, index)
                    while stream.read(2**20):  # the checksum stands at the end
                        pass
            else:
                data, affine = _read(file, path, index)
    except FileNotFoundError:
        raise CaseError(f"{path} does not exist.", do="Check the path.", code="case-file") from None
    except UNREADABLE as error:
        raise CaseError(
            f"{path} cannot be read: it is truncated, damaged or not NIfTI ({error}).",
            do=_COPY_AGAIN,
            code="case-file",
        ) from error
    return checked(path, data, affine, dtype=dtype, empty_ok=empty_ok)


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
    _check_affine(affine, path)
    data = _as_dtype(data, np.dtype(dtype), path)
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


def _read(stream: Any, path: Path, index: int | None) -> tuple[NDArray[Any], NDArray[np.float64]]:
    start = stream.read(4)
    stream.seek(0)
    sizes = {int.from_bytes(start, "little"), int.from_bytes(start, "big")} & set(_KINDS)
    if len(start) < 4 or not sizes:
        raise ValueError("no NIfTI header")
    image = _KINDS[sizes.pop()].from_stream(stream)
    header = image.header
    if not header["sform_code"] and not header["qform_code"]:
        raise CaseError(
            f"{path} does not say how it lies in space (neither sform nor qform is set).",
            do="Convert it again from its DICOM series, for instance with dcm2niix.",
            code="case-affine",
        )
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise CaseError(
            f"{path} holds voxels of type {dtype}, not plain numbers.",
            do=_CONVERT,
            code="case-shape",
        )
    picks = _channel(image.shape, path, index)
    return np.asarray(image.dataobj[picks]), np.asarray(image.affine, np.float64)


def _channel(shape: tuple[int, ...], path: Path, index: int | None) -> tuple[Any, ...]:
    """Return the slices that leave three axes of an array of ``shape``; raise CaseError."""
    trailing = shape[3:]
    if len(shape) < 3 or 0 in shape or any(n != 1 for n in trailing[1:]):
        fault = f"has shape {'x'.join(map(str, shape))} instead of three axes"
    elif np.prod(shape, dtype=np.float64) > _MAX_VOXELS:
        fault = f"has {np.prod(shape, dtype=np.float64):.0f} voxels, more than {_MAX_VOXELS}"
    elif index is None and trailing and trailing[0] != 1:
        fault = f"has {trailing[0]} channels; one volume is expected"
    elif index is not None and not 0 <= index < (trailing[0] if trailing else 1):
        fault = f"has no channel {index}"
    else:
        picked = (index or 0,) + (0,) * (len(trailing) - 1) if trailing else ()
        return (slice(None), slice(None), slice(None), *picked)
    raise CaseError(f"{path} {fault}.", do=_CONVERT, code="case-shape")


def _check_affine(affine: NDArray[np.float64], path: Path) -> None:
    fault = ""
    if not np.isfinite(affine).all():
        fault = "holds values that are not finite"
    else:
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if not lengths.all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
            fault = "is zero or flat: it has no inverse"
    if fault:
        raise CaseError(
            f"{path} cannot be placed in space: its affine {fault}.",
            do="Convert it again from its DICOM series, for instance with dcm2niix.",
            code="case-affine",
        )


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
