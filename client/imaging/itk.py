"""SimpleITK's images from ours and back; the only place that knows its axes.

SimpleITK counts patient coordinates to the left and to the back (LPS), gliofed to the right and to
the front (RAS). It runs with one thread: its threads add up in the order in which they finish, and
a case must be prepared to the same bits every time. Cases can be prepared side by side instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from client.imaging.grid import Affine, spacing_of

VERSION: Final = f"SimpleITK {sitk.Version.VersionString()}"

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # a filter's own setting is not enough

_FLIP: Final = np.diag([-1.0, -1.0, 1.0, 1.0])


def to_itk(data: NDArray[Any], affine: Affine) -> sitk.Image:
    """Return ``data`` (X, Y, Z) as a float32 image; ``affine`` has orthogonal axes."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T, np.float32))
    turned = _FLIP @ affine
    spacing = spacing_of(affine)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(turned[:3, 3].tolist())
    image.SetDirection((turned[:3, :3] / spacing).ravel().tolist())
    return image


def from_itk(image: sitk.Image) -> NDArray[np.float32]:
    """Return an image's voxels (X, Y, Z)."""
    return np.ascontiguousarray(sitk.GetArrayViewFromImage(image).T, np.float32)


def matrix_of(transform: sitk.Transform) -> Affine:
    """Return a linear transform of SimpleITK's world as one of ours, (4, 4)."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    for axis in range(3):
        unit = np.eye(3)[axis].tolist()
        matrix[:3, axis] = np.array(transform.TransformPoint(unit)) - origin
    matrix[:3, 3] = origin
    result: Affine = _FLIP @ matrix @ _FLIP
    return result


def point_of(point: Sequence[float]) -> NDArray[np.float64]:
    """Return a point of SimpleITK's world in ours."""
    result: NDArray[np.float64] = _FLIP[:3, :3] @ np.array(point, np.float64)
    return result
