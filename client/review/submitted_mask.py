"""What the browser sends as a mask: checked, or refused with words. Pure.

A mask is a NIfTI file, packed or not, of 8-bit whole numbers on the grid that was segmented.
"""

from __future__ import annotations

import zlib
from typing import Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from client.imaging.nifti import UNREADABLE
from common.errors import CaseError
from common.regions import LABELS

_GZIP: Final = b"\x1f\x8b"
_HEADER_BYTES: Final = 2**16  # a header and what extensions may follow it
_SAME_MM: Final = 1e-2


def most_bytes(shape: tuple[int, ...]) -> int:
    """Return how long a mask of ``shape`` may be at most."""
    return int(np.prod(shape)) + _HEADER_BYTES


def read_mask(
    body: bytes, *, shape: tuple[int, ...], affine: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Return the labels (X, Y, Z) in ``body``; raise CaseError (code ``review-mask``)."""
    try:
        image = nib.Nifti1Image.from_bytes(_unpacked(body, most_bytes(shape)))
        kind, found = image.get_data_dtype(), image.shape
        if kind != np.uint8:
            raise _refused(f"its voxels are of type {kind}, not uint8")
        if found[:3] != shape or any(length != 1 for length in found[3:]):
            sizes = ("x".join(map(str, one)) for one in (found, shape))
            raise _refused("it has {} voxels and the scan has {}".format(*sizes))
        data = np.asarray(image.dataobj).reshape(shape)
    except UNREADABLE as error:
        raise _refused(f"it is no whole NIfTI file ({type(error).__name__})") from error
    apart = float(np.abs(image.affine - affine).max())
    if not apart <= _SAME_MM:
        raise _refused(f"it lies elsewhere than the scan, by up to {apart:.3g} mm")
    unknown = sorted(set(np.unique(data).tolist()) - {0, *LABELS.values()})
    if unknown:
        raise _refused(f"the values {', '.join(f'{one:g}' for one in unknown[:5])} mean no label")
    return np.ascontiguousarray(data, np.uint8)


def _unpacked(body: bytes, most: int) -> bytes:
    if body.startswith(_GZIP):
        reader = zlib.decompressobj(wbits=31)
        body = reader.decompress(body, most + 1)
        if not reader.eof and len(body) <= most:
            raise EOFError("the packed file is cut short")
    if len(body) > most:
        raise ValueError("longer than a mask of this grid can be")
    return body


def _refused(why: str) -> CaseError:
    return CaseError(
        f"The mask was not taken: {why}.",
        do="What was drawn before is kept. Load the page again and go on from there.",
        code="review-mask",
    )
