"""How the head lay in another sequence: rigid registration by mutual information, by SimpleITK.

Mattes' mutual information (Mattes et al. 2003) of images averaged to blocks: first of 4 mm, from
where the scanner says that things are and from where the centres of mass agree, then of 2 mm from
the better of the two, where one image is first laid over the other as that shows things, slices and
all, and both are divided by their local mean: what N4 left of the coils' fields differs between
sequences and would pull them apart by half a millimetre. The last step is taken with two
independent draws of voxels: their mean is the result, and how far they disagree at the head's
surface is what the result may be trusted to. It is taken twice where slices are thick, since
images that were laid over each other a little askew seem to fit a little askew.

Invariants: fixed seeds and one thread, so the same images give the same bits; the result is a rigid
motion. Out of scope: whether the residual is good enough (``plausibility``).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.imaging import grid
from client.imaging.nifti import Volume

if TYPE_CHECKING:
    import SimpleITK as sitk

_COARSE_MM: Final = 4.0
_FINE_MM: Final = 2.0
_LOCAL_MM: Final = 15.0  # standard deviation of the weights of a local mean
_LEAST_MEAN: Final = 0.1  # added to a local mean, as a share of the largest: air stays dark
_BINS: Final = 32
_SEEDS: Final = (1, 2)
_VOXELS: Final = 120_000  # that are compared in a step
_HEAD_MM: Final = 80.0  # half a side of the cube at whose corners residuals are taken
_AWAY_MM: Final = 12.0  # so far off, the images' likeness must have dropped


@dataclass(frozen=True, eq=False)
class Registration:
    """``matrix`` (4, 4) takes a point of the fixed image's world to the moving image's, in mm.

    ``residual_mm``: disagreement of two independent estimates, at the head's surface. ``likeness``:
    mutual information in nats. ``peak``: the share of it that is lost 12 mm away, on average; near
    0 where nothing fits.
    """

    matrix: grid.Affine
    residual_mm: float
    likeness: float
    peak: float

    @property
    def shift_mm(self) -> float:
        """How far the middle of the fixed image's world moved; depends on where its origin is."""
        return float(np.linalg.norm(self.matrix[:3, 3]))

    @property
    def angle_deg(self) -> float:
        """The angle of the rotation."""
        cosine = (np.trace(self.matrix[:3, :3]) - 1) / 2
        return float(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))

    def record(self) -> dict[str, Any]:
        """Return what history says of it."""
        from client.imaging import itk

        return {
            "step": "register",
            "library": itk.VERSION,
            "metric": f"Mattes mutual information, {_BINS} bins",
            "blocks_mm": [_COARSE_MM, _FINE_MM],
            "local_mean_mm": _LOCAL_MM,
            "voxels": _VOXELS,
            "matrix": [[round(float(x), 9) for x in row] for row in self.matrix],
            "residual_mm": round(self.residual_mm, 3),
            "likeness": round(self.likeness, 4),
            "peak": round(self.peak, 3),
        }


def register(fixed: Volume, moving: Volume) -> Registration:
    """Return the rigid motion between two images of one head; their axes are orthogonal."""
    import SimpleITK as sitk

    from client.imaging import itk

    # Thick slices are sampled where they are, not interpolated: that would look like a blur that
    # comes and goes with the slices' place, and bend the metric.
    swapped = max(moving.spacing_mm) > max(fixed.spacing_mm) + grid.SAME_MM
    sampled, other = (moving, fixed) if swapped else (fixed, moving)
    pair = _blocks(sampled, _as_thick(other, sampled), _COARSE_MM)
    by_mass = sitk.Euler3DTransform(
        sitk.CenteredTransformInitializer(
            *pair,
            sitk.Euler3DTransform(),
            sitk.CenteredTransformInitializerFilter.MOMENTS,
        )
    )
    by_header = sitk.Euler3DTransform(by_mass)
    by_header.SetTranslation((0.0, 0.0, 0.0))
    starts = [_improved(*pair, start, first=True) for start in (by_header, by_mass)]
    coarse = itk.matrix_of(min(starts, key=lambda found: found[1])[0])

    matrix = coarse
    for _ in range(2 if max(sampled.spacing_mm) > _FINE_MM + grid.SAME_MM else 1):
        pair = _blocks(sampled, _laid_over(other, sampled, matrix), _FINE_MM, evened=True)
        rest = sitk.Euler3DTransform(by_header)
        found = [_improved(*pair, rest, first=False, seed=seed)[0] for seed in _SEEDS]
        rest.SetParameters(np.mean([each.GetParameters() for each in found], axis=0).tolist())
        matrix = matrix @ itk.matrix_of(rest)
    one, other_one = (itk.matrix_of(each) for each in found)
    centre = itk.point_of(rest.GetCenter())
    likeness = -_metric(*pair, rest)
    away = [-_metric(*pair, _shifted(rest, step)) for step in _steps()]
    if swapped:
        matrix = np.linalg.inv(matrix).astype(np.float64)
    return Registration(
        matrix=matrix,
        residual_mm=float(_apart(one, other_one, centre).max()),
        likeness=likeness,
        peak=1 - float(np.mean(away)) / likeness if likeness > 0 else 0.0,
    )


def _blocks(
    one: Volume, other: Volume, spacing_mm: float, *, evened: bool = False
) -> tuple[sitk.Image, sitk.Image]:
    from client.imaging import itk

    images = []
    for volume in (one, other):
        factors = np.floor(spacing_mm / grid.spacing_of(volume.affine) + 0.25)
        factors = np.maximum(1, factors).astype(int)
        data, affine = grid.shrink(volume.data, volume.affine, factors)
        images.append(itk.to_itk(_evened(data, affine) if evened else data, affine))
    return images[0], images[1]


def _evened(data: NDArray[np.float32], affine: grid.Affine) -> NDArray[np.float32]:
    """Divide an image by its local mean."""
    bright: NDArray[np.float32] = np.maximum(data, np.float32(0))
    sigma = _LOCAL_MM / grid.spacing_of(affine)
    mean: NDArray[np.float32] = ndimage.gaussian_filter(bright, sigma, mode="nearest", truncate=3.0)
    least = max(_LEAST_MEAN * float(mean.max()), float(np.finfo(np.float32).tiny))
    divided: NDArray[np.float32] = data / (mean + np.float32(least))
    return divided


def _as_thick(image: Volume, sampled: Volume) -> Volume:
    """Blur ``image`` along its axes as far as the voxels of ``sampled`` are wider there."""
    to_sampled = np.linalg.inv(image.affine[:3, :3]) @ sampled.affine[:3, :3]
    widths = np.abs(to_sampled).max(axis=1)  # of a voxel of sampled, in voxels of the image
    return _blurred(image, np.sqrt(np.maximum(widths**2 - 1, 0)) / grid.FWHM_PER_SIGMA)


def _laid_over(image: Volume, sampled: Volume, motion: grid.Affine) -> Volume:
    """Return ``image`` as ``sampled`` would show it: through ``motion``, on the same axes, blurred
    to the same slices. Slices are cut finer, so that none is interpolated later."""
    spacing_mm = grid.spacing_of(sampled.affine)
    cuts = np.maximum(1, np.rint(spacing_mm / _FINE_MM)).astype(int)
    step = np.diag([*(1 / cuts), 1.0])
    step[:3, 3] = -(cuts - 1) / (2 * cuts)
    affine = sampled.affine @ step
    shape = tuple(int(n) for n in np.array(sampled.data.shape) * cuts)
    to_image = np.linalg.inv(image.affine) @ motion @ affine
    seen = grid.sample(image.data, to_image, shape, smooth=False, outside=0.0)
    own = 1 / np.abs(to_image[:3, :3]).max(axis=0)  # width of the image's voxels, in the cuts
    sigma = np.sqrt(np.maximum(cuts**2 - own**2, 0)) / grid.FWHM_PER_SIGMA
    return _blurred(Volume(seen, affine), sigma)


def _blurred(image: Volume, sigma: NDArray[np.float64]) -> Volume:
    if sigma.max() < 0.3:
        return image
    return Volume(ndimage.gaussian_filter(image.data, sigma, mode="nearest"), image.affine)


def _improved(
    fixed: sitk.Image,
    moving: sitk.Image,
    start: sitk.Euler3DTransform,
    *,
    first: bool,
    seed: int = _SEEDS[0],
) -> tuple[sitk.Euler3DTransform, float]:
    """Return the transform to which descent leads from ``start``, and the metric there."""
    import SimpleITK as sitk

    method = _method(min(1.0, _VOXELS / fixed.GetNumberOfPixels()), seed)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0 if first else 0.2,
        minStep=1e-2 if first else 1e-3,
        numberOfIterations=100,
        relaxationFactor=0.6,
        gradientMagnitudeTolerance=1e-8,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(sitk.Euler3DTransform(start), True)
    try:
        transform = sitk.Euler3DTransform(method.Execute(fixed, moving))
    except RuntimeError:  # nothing of the moving image lies where the fixed one is
        return sitk.Euler3DTransform(start), np.inf
    return transform, method.GetMetricValue()


def _method(share: float, seed: int) -> sitk.ImageRegistrationMethod:
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(share, seed)
    method.SetInterpolator(sitk.sitkLinear)
    return method


def _metric(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Euler3DTransform) -> float:
    """Return the negative mutual information; 0 where the images do not meet."""
    method = _method(min(1.0, _VOXELS / fixed.GetNumberOfPixels()), _SEEDS[0])
    method.SetInitialTransform(transform)
    try:
        return float(method.MetricEvaluate(fixed, moving))
    except RuntimeError:
        return 0.0


def _shifted(
    transform: sitk.Euler3DTransform, step_mm: NDArray[np.float64]
) -> sitk.Euler3DTransform:
    import SimpleITK as sitk

    moved = sitk.Euler3DTransform(transform)
    moved.SetTranslation((np.array(transform.GetTranslation()) + step_mm).tolist())
    return moved


def _steps() -> list[NDArray[np.float64]]:
    return [sign * _AWAY_MM * np.eye(3)[axis] for axis in range(3) for sign in (-1, 1)]


def _apart(
    one: grid.Affine, other: grid.Affine, centre: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how far apart two motions take the corners of a cube about the head, in mm."""
    corners = np.array(list(product((-_HEAD_MM, _HEAD_MM), repeat=3))) + centre
    moved = [corners @ each[:3, :3].T + each[:3, 3] for each in (one, other)]
    distances: NDArray[np.float64] = np.linalg.norm(moved[0] - moved[1], axis=1)
    return distances
