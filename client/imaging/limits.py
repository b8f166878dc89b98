"""How much of a file from outside is read, unpacked or decoded at most: all limits in one place.

Who made a scan decides what its bytes say, and a few kilobytes can say gigabytes. Each limit is
looked at before what it limits is held in memory. What passes one is refused with a CaseError, so
that the case is left out, with a reason that its hospital reads. The limits are far above what MRI
needs: they are there against files that were made to stop a site.

A growth of more than ``MOST_GROWTH`` is that of a bomb, for images; a mask may be all one value.
"""

from __future__ import annotations

from typing import Final

MOST_VOXELS: Final = 2**27
"""In one volume: 512 x 512 x 512."""

MOST_NIFTI_BYTES: Final = 2**31
"""In one NIfTI file, unpacked: four volumes of the largest size."""

MOST_HEADER_BYTES: Final = 2**24
"""Before the voxels of a NIfTI file, and in one value of a DICOM header."""

MOST_TRAILING_BYTES: Final = 2**20
"""Behind the voxels of a packed NIfTI file, which is read to its end for its checksum."""

MOST_GZIP_MEMBERS: Final = 2**16
"""Parts that a gzip file may be made of."""

MOST_DICOM_BYTES: Final = 2**29
"""In one DICOM file, unpacked."""

MOST_ITEMS: Final = 2**18
"""Of sequences in one DICOM file: 10,000 frames with what is said of each."""

MOST_SERIES_BYTES: Final = 2**31
"""In the files of one DICOM series together."""

MOST_ZIP_FILES: Final = 200_000
"""In one zip file."""

MOST_ZIP_BYTES: Final = 2**35
"""In the files of one zip file together, of which one is unpacked at a time."""

MOST_TABLE_BYTES: Final = 2**24
"""In a manifest, or another text file that describes a cohort."""

MOST_GROWTH: Final = 100
"""Times that images may grow when unpacked: NIfTI and DICOM shrink 2 to 10 fold."""

HARMLESS_BYTES: Final = 2**26
"""What is no larger than this when unpacked may have grown as it likes."""


def is_bomb(unpacked: int, packed: int) -> bool:
    """Say whether ``packed`` bytes that say they unpack to ``unpacked`` are no image."""
    return unpacked > HARMLESS_BYTES and unpacked > MOST_GROWTH * max(1, packed)
