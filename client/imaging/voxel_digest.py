"""One digest for the same voxels, whatever file they stand in.

So a scan is known again that was renamed, compressed, or converted: the axes are turned to RAS+,
values count by where they lie between the smallest and the largest, and what is at the smallest
around the rest (the background of a stripped head) is no part of it.

Out of scope: a scan that was resampled, cropped into the head, or filtered has another digest.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np

from client.imaging import grid
from client.imaging.nifti import Volume

_LEVELS: Final = 4095.37
_OFFSET: Final = 0.2113
"""Neither is a fraction that values of 8 to 16 bits have: none lies on the edge of a level, where
the last bit of a float would decide."""


def voxel_sha256(volume: Volume) -> str:
    """Return the digest (hex), or "" for a volume of one value alone, which may be anybody's."""
    data = grid.to_canonical(volume.data, volume.affine)
    low, high = float(data.min()), float(data.max())
    if not low < high:
        return ""
    part = data[grid.bounding_box(data > low, (0, 0, 0))]
    sha256 = hashlib.sha256(repr(part.shape).encode())
    scale = _LEVELS / (high - low)
    for plane in part:  # a plane at a time: a whole volume of doubles is large
        levels = np.floor((plane.astype(np.float64) - low) * scale + _OFFSET)
        sha256.update(np.ascontiguousarray(levels, "<u2").data)
    return sha256.hexdigest()
