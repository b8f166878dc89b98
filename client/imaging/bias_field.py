"""The coil's bias field, taken out of an image: N4 (Tustison et al. 2010), by SimpleITK.

The field is smooth, so it is found on blocks of 4 mm or a little more and interpolated to the
image's grid. Only voxels of the head, above Otsu's threshold, are fitted; the mean of the
logarithm there is kept.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.imaging import grid
from client.imaging.nifti import Volume

BLOCK_MM: Final = 4.0
_ITERATIONS: Final = (50, 50, 50)
_CONVERGED: Final = 1e-3


def correct_bias(volume: Volume) -> tuple[Volume, dict[str, Any]]:
    """Return ``volume`` (float32) without its bias field, and what history records of it."""
    import SimpleITK as sitk

    from client.imaging import itk

    factors = np.maximum(1, np.ceil(BLOCK_MM / grid.spacing_of(volume.affine) - 0.25)).astype(int)
    small, small_affine = grid.shrink(volume.data, volume.affine, factors)
    image = itk.to_itk(small, small_affine)
    head = sitk.OtsuThreshold(image, 0, 1, 128)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(_ITERATIONS)
    n4.SetConvergenceThreshold(_CONVERGED)
    n4.Execute(image, head)
    log_field = itk.from_itk(n4.GetLogBiasFieldAsImage(image))
    inside = itk.from_itk(head) > 0
    log_field -= np.float32(log_field[inside].mean(dtype=np.float64))
    full = _at_full_size(log_field, volume, small_affine)
    record = {
        "step": "n4",
        "library": itk.VERSION,
        "block_mm": BLOCK_MM,
        "iterations": list(_ITERATIONS),
        "log_field_deviation": round(float(log_field[inside].std(dtype=np.float64)), 4),
    }
    return Volume(volume.data / np.exp(full), volume.affine), record


def _at_full_size(
    field: NDArray[np.float32], volume: Volume, affine: grid.Affine
) -> NDArray[np.float32]:
    to_field = np.linalg.inv(affine) @ volume.affine
    return grid.linear(
        field, scale=np.diag(to_field)[:3], offset=to_field[:3, 3], shape=volume.data.shape
    )
