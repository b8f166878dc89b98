"""Reading a case's image, whatever it lies in: NIfTI or DICOM."""

from __future__ import annotations

from client.imaging.case import Image
from client.imaging.nifti import Volume, read_volume


def read_image(image: Image) -> Volume:
    """Return voxels and affine of ``image``; raise CaseError as the reader of its kind does."""
    if image.parts:
        from client.imaging.dicom.volume import read_series  # half a second that NIfTI need not pay

        return read_series(image)
    return read_volume(image.path, index=image.index)
