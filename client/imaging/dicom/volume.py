"""The voxels and the affine of one series, through highdicom's gate.

Axes are (column, row, slice), as converters to NIfTI write them; the affine is in RAS millimetres,
where DICOM's own is LPS. The rescale slope and intercept of each slice are applied; windows and
real-world value maps are not: they are for display, and scanners differ in them.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Sequence
from typing import Any, Final

import highdicom
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from client.imaging.case import Image, Part
from client.imaging.dicom import codestreams
from client.imaging.dicom.files_and_zips import Digests, contents, digests
from client.imaging.dicom.headers import DAMAGED, ENHANCED, damaged, items, quiet
from client.imaging.dicom.slice_geometry import REGULAR_MM, SAME_DIRECTION
from client.imaging.limits import MOST_ITEMS, MOST_SERIES_BYTES, MOST_VOXELS
from client.imaging.nifti import Volume
from common.errors import CaseError

codestreams.guard()

_LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
_TRANSFORMS: Final[dict[str, Any]] = {
    "dtype": np.float64,
    "apply_real_world_transform": False,
    "apply_modality_transform": None,
    "apply_voi_transform": False,
    "atol": REGULAR_MM,
}
_shown: Digests = {}
_ASKED_OF_EACH_FILE: Final = "does_iod_have_pixel_data"
"""What highdicom looks up in the whole standard for each file, though it depends on the SOP class
alone: half of the time that reading a series takes. It is asked once, where it has that name."""
if (_asked := getattr(highdicom.image, _ASKED_OF_EACH_FILE, None)) is not None:
    setattr(highdicom.image, _ASKED_OF_EACH_FILE, functools.cache(_asked))
_EXPORT: Final = "Export the series again, uncompressed (explicit VR, little endian)."


def read_series(image: Image) -> Volume:
    """Read a DICOM series as float32; raise CaseError.

    Codes: ``case-file`` (absent, truncated, damaged), ``case-zip``, ``case-pixels`` (no pixels, a
    compression without a decoder, colour), ``case-slices`` (missing, twice, not even),
    ``case-orientation``, ``case-values`` (not finite), ``case-empty``.
    """
    with quiet():
        array, affine = _read(image)
    return _checked(array, affine, image)


def _read(image: Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    datasets, size = [], 0
    for part, data in contents(image.parts):
        size += len(data)
        if size > MOST_SERIES_BYTES:
            raise CaseError(
                f"{image.title} has more than {MOST_SERIES_BYTES} bytes.",
                do="No MR series is that large: look at what its files hold. The limits stand in "
                "client/README.md.",
                code="case-limit",
            )
        datasets.append(_dataset(part, data))
    try:
        for dataset in datasets:
            _check_pixels(dataset, image, slices=len(datasets))
    except DAMAGED as error:
        raise _no_pixels(image, f"its header is damaged ({type(error).__name__})") from error
    try:
        volume = _volume(datasets)
        return np.asarray(volume.array, np.float64), np.asarray(volume.affine, np.float64)
    except (ValueError, AttributeError) as error:
        if _undecoded(datasets):
            raise _no_pixels(image, "its pixels cannot be decoded: they are damaged") from error
        raise CaseError(
            f"{image.title} is not one whole volume: {error}",
            do="Export the whole series again; a slice may be missing, doubled or moved.",
            code="case-slices",
        ) from error
    except DAMAGED as error:
        raise _no_pixels(image, f"its pixels cannot be decoded ({type(error).__name__})") from error


def pixel_digest(parts: Sequence[Part]) -> bytes:
    """Return a SHA-256 of what ``parts`` show, whatever their headers say; raise CaseError.

    The same scan under two patients' names has one digest.
    """
    with quiet():
        found = digests(parts, _pixels, _shown)
    return hashlib.sha256(b"".join(sorted(found))).digest()


def _pixels(part: Part, data: bytes) -> bytes:
    return hashlib.sha256(bytes(_dataset(part, data).get("PixelData") or b"")).digest()


def _dataset(part: Part, data: bytes) -> Dataset:
    if items(data) > MOST_ITEMS:
        raise damaged(part, "it has too many items")
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        # Behind the frames that the header speaks of there may be thousands.
        dataset.pixel_array_options(allow_excess_frames=False)
        dataset.get("PixelData")
    except DAMAGED as error:
        raise damaged(part, type(error).__name__) from error
    return dataset


def _volume(datasets: list[Dataset]) -> highdicom.Volume:
    if datasets[0].SOPClassUID in ENHANCED:
        return highdicom.Image.from_dataset(datasets[0], copy=False).get_volume(**_TRANSFORMS)
    for dataset in datasets:
        if "FrameOfReferenceUID" not in dataset:  # some anonymisers drop it; the series has one
            dataset.FrameOfReferenceUID = dataset.SeriesInstanceUID
    return highdicom.get_volume_from_series(datasets, orientation_tol=SAME_DIRECTION, **_TRANSFORMS)


def _check_pixels(dataset: Dataset, image: Image, *, slices: int) -> None:
    """Refuse what cannot be decoded, before a decoder sees it."""
    syntax = UID(str(getattr(dataset.file_meta, "TransferSyntaxUID", "1.2.840.10008.1.2")))
    if not dataset.get("PixelData"):
        raise _no_pixels(image, "it holds no pixels")
    if dataset.get("SamplesPerPixel", 1) != 1 or dataset.get("PhotometricInterpretation") not in (
        "MONOCHROME2",
        None,
    ):
        raise _no_pixels(image, "it is not a plain grey image")
    if syntax.is_compressed and not _decodable(syntax):
        raise _no_pixels(image, f"no decoder is installed for its compression ({syntax.name})")
    rows, columns = int(dataset.get("Rows", 0)), int(dataset.get("Columns", 0))
    voxels = rows * columns * max(slices, int(dataset.get("NumberOfFrames", 1) or 1))
    if not 0 < voxels <= MOST_VOXELS:
        raise _no_pixels(image, f"it would have {voxels} voxels, more than {MOST_VOXELS}")
    if not syntax.is_compressed:
        frames = int(dataset.get("NumberOfFrames", 1) or 1)
        needed = rows * columns * frames * int(dataset.get("BitsAllocated", 16)) // 8
        if len(dataset.PixelData) < needed:
            raise _no_pixels(image, "its pixels are cut off")


def _decodable(syntax: UID) -> bool:
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def _undecoded(datasets: list[Dataset]) -> bool:
    """Say whether a pixel decoder fails, as opposed to the rules for volumes."""
    try:
        for dataset in datasets:
            _ = dataset.pixel_array
    except DAMAGED:
        return True
    return False


def _checked(array: NDArray[np.float64], affine: NDArray[np.float64], image: Image) -> Volume:
    with np.errstate(over="ignore", invalid="ignore"):  # judged below
        data = np.ascontiguousarray(array.transpose(2, 1, 0), np.float32)
    if not np.isfinite(data).all():
        raise CaseError(
            f"{image.title} holds voxels that are not finite numbers.",
            do="Its rescale slope or intercept is wrong; export it again.",
            code="case-values",
        )
    if not data.any():
        raise CaseError(f"{image.title} is empty: every voxel is 0.", do=_EXPORT, code="case-empty")
    ras = _LPS_TO_RAS @ affine[:, [2, 1, 0, 3]]
    lengths = np.linalg.norm(ras[:3, :3], axis=0)
    if not np.isfinite(ras).all() or not lengths.all():
        raise CaseError(
            f"{image.title} cannot be placed in space: its voxels have no size.",
            do="Correct PixelSpacing at the source and export it again.",
            code="case-affine",
        )
    return Volume(data, ras)


def _no_pixels(image: Image, why: str) -> CaseError:
    return CaseError(f"{image.title} cannot be used: {why}.", do=_EXPORT, code="case-pixels")
