"""Lesions of known geometry on grids that lie every way: 1 % of volume, 1 mm of diameter."""

from __future__ import annotations

import numpy as np
import pytest

from client.clinic.lesion_measurements import Findings, axial_axis, findings
from client.clinic.midline import Midline, midline_of
from client.clinic.result_folder import Segmentation, volumes_ml

SHAPE = (96, 104, 40)


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    result = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        first, second = [one for one in range(3) if one != axis]
        turn = np.eye(3)
        turn[[first, first, second, second], [first, second, first, second]] = (
            np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle),
        )  # fmt: skip
        result = turn @ result
    return result


def grid(
    turn: np.ndarray, spacing: tuple[float, float, float], shape: tuple[int, ...]
) -> np.ndarray:
    """Return an affine whose axes are the columns of ``turn``, the origin in its middle."""
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


GRIDS = {
    "RAS": (grid(np.eye(3), (1.0, 1.0, 2.0), SHAPE), SHAPE),
    "LPS": (grid(np.diag([-1.0, -1.0, 1.0]), (0.9, 0.9, 2.0), SHAPE), SHAPE),
    "PSR": (
        grid(np.array([[0, 0, 1.0], [-1.0, 0, 0], [0, 1.0, 0]]), (1.0, 2.0, 1.0), (104, 40, 96)),
        (104, 40, 96),
    ),
    "oblique": (
        grid(rotation((17.0, -9.0, 23.0)), (0.8, 1.1, 2.5), (120, 100, 36)),
        (120, 100, 36),
    ),
    "oblique LAI": (
        grid(
            rotation((-12.0, 14.0, 8.0)) @ np.diag([-1.0, 1.0, -1.0]),
            (1.1, 0.9, 3.0),
            (96, 110, 30),
        ),
        (96, 110, 30),
    ),
}


def world_of(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.indices(shape), axis=-1) @ affine[:3, :3].T + affine[:3, 3]


def ellipsoid(
    affine: np.ndarray,
    shape: tuple[int, ...],
    middle: tuple[float, float, float],
    radii: tuple[float, float, float],
    *,
    turned: float = 0.0,
) -> np.ndarray:
    """Return where a voxel's centre lies in an ellipsoid, whose third radius is along the slices.

    The other two lie in the axial plane of the grid, turned in it.
    """
    axis = axial_axis(affine)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    first, second = (directions[:, one] for one in range(3) if one != axis)
    angle = np.radians(turned)
    frame = np.stack(
        [
            np.cos(angle) * first + np.sin(angle) * second,
            -np.sin(angle) * first + np.cos(angle) * second,
            directions[:, axis],
        ],
        axis=1,
    )
    return (((world_of(affine, shape) - middle) @ frame / radii) ** 2).sum(axis=-1) <= 1


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("turned", [0.0, 30.0, 67.0])
def test_an_ellipsoid_has_its_volume_and_diameters(name: str, turned: float) -> None:
    affine, shape = GRIDS[name]
    radii = (23.0, 14.0, 18.0)
    labels = np.zeros(shape, np.uint8)
    labels[ellipsoid(affine, shape, (0.3, -0.2, 0.1), (31.0, 28.0, 26.0))] = 2
    labels[ellipsoid(affine, shape, (0.3, -0.2, 0.1), radii, turned=turned)] = 3
    labels[ellipsoid(affine, shape, (0.3, -0.2, 0.1), (17.0, 10.0, 13.0), turned=turned)] = 1
    volumes = volumes_ml(Segmentation(labels, affine))
    ml = 4 / 3 * np.pi / 1000
    assert volumes["TC"] == pytest.approx(ml * np.prod(radii), rel=0.01)
    assert volumes["WT"] == pytest.approx(ml * 31 * 28 * 26, rel=0.01)
    assert volumes["NCR"] == pytest.approx(ml * 17 * 10 * 13, rel=0.01)
    found = findings(labels, affine, Midline((1.0, 0.0, 0.0), 0.0))
    (lesion,) = found.lesions
    assert (found.of, lesion.measurable, lesion.side) == ("ET", True, "midline")
    assert lesion.volume_ml == pytest.approx(volumes["ET"], abs=1e-3)
    assert lesion.diameters.long_mm == pytest.approx(46.0, abs=1.0)
    assert lesion.diameters.across_mm == pytest.approx(28.0, abs=1.0)
    long, across = (np.diff(ends, axis=0)[0] for ends in both(found))
    assert np.linalg.norm(long) == pytest.approx(lesion.diameters.long_mm, abs=0.02)
    assert np.linalg.norm(across) == pytest.approx(lesion.diameters.across_mm, abs=0.02)
    assert long @ across == pytest.approx(0, abs=1.0)
    slices = affine[:3, axial_axis(affine)]
    assert abs(long @ slices) < 0.1
    assert abs(across @ slices) < 0.1


def both(found: Findings) -> tuple[object, object]:
    diameters = found.lesions[0].diameters
    return diameters.long_ends, diameters.across_ends


@pytest.mark.parametrize("name", GRIDS)
def test_the_slice_counts_from_the_feet(name: str) -> None:
    affine, shape = GRIDS[name]
    axis = axial_axis(affine)
    step = np.linalg.norm(affine[:3, axis])
    labels = np.where(ellipsoid(affine, shape, (0, 0, 0), (12.0, 12.0, 12.0)), 3, 0).astype(
        np.uint8
    )
    low = findings(labels, affine, None).lesions[0].diameters
    assert low.slice == pytest.approx((shape[axis] + 1) / 2, abs=1)
    up = affine[:3, axis] / step * (8 if affine[2, axis] > 0 else -8)
    labels = np.where(ellipsoid(affine, shape, tuple(up), (12.0, 12.0, 12.0)), 3, 0).astype(
        np.uint8
    )
    high = findings(labels, affine, None).lesions[0].diameters
    assert high.slice - low.slice == pytest.approx(8 / step, abs=1)
    assert high.count == shape[axis]


@pytest.mark.parametrize("name", GRIDS)
def test_lesions_are_counted_and_have_sides(name: str) -> None:
    affine, shape = GRIDS[name]
    labels = np.zeros(shape, np.uint8)
    labels[ellipsoid(affine, shape, (20.0, 0, 0), (9.0, 8.0, 8.0))] = 3
    labels[ellipsoid(affine, shape, (-20.0, 5, 0), (7.0, 6.0, 7.0))] = 3
    labels[ellipsoid(affine, shape, (0, -28.0, 0), (3.0, 3.0, 3.0))] = 3
    labels[0, 0, 0] = 3  # a speck
    found = findings(labels, affine, Midline((1.0, 0.0, 0.0), 0.0))
    assert [one.side for one in found.lesions] == ["right", "left", "midline"]
    assert [one.measurable for one in found.lesions] == [True, True, False]
    assert found.side == "both"
    measured = [one.diameters.product_mm2 for one in found.lesions[:2]]
    assert found.sum_of_products_mm2 == pytest.approx(sum(measured))


def test_without_enhancement_the_whole_tumour_is_measured() -> None:
    affine, shape = GRIDS["RAS"]
    labels = np.where(ellipsoid(affine, shape, (25.0, 0, 0), (15.0, 10.0, 12.0)), 2, 0)
    found = findings(labels.astype(np.uint8), affine, None)
    assert (found.of, found.side, len(found.lesions)) == ("WT", None, 1)
    assert found.lesions[0].diameters.long_mm == pytest.approx(30.0, abs=1.0)
    assert findings(np.zeros(shape, np.uint8), affine, None) == Findings("WT", ())


def test_parts_that_touch_at_a_corner_are_one_lesion() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:8, 2:8, 2:8] = labels[8:14, 8:14, 8:14] = 3
    assert len(findings(labels, np.eye(4), None).lesions) == 1
    labels[7, 7, 7] = 0
    assert len(findings(labels, np.eye(4), None).lesions) == 2


@pytest.mark.parametrize(("thickness_mm", "measurable"), [(5.0, True), (9.0, False)])
def test_thick_slices_raise_what_is_measurable(thickness_mm: float, measurable: bool) -> None:
    labels = np.zeros((30, 30, 10), np.uint8)
    labels[5:18, 5:17, 3:6] = 3
    affine = np.diag([1.0, 1.0, thickness_mm, 1.0])
    assert findings(labels, affine, None).lesions[0].measurable is measurable
    labels[..., 4:] = 0  # one slice alone
    assert not findings(labels, affine, None).lesions[0].measurable


@pytest.mark.parametrize("name", GRIDS)
def test_the_midline_of_a_brain_that_lies_askew(name: str) -> None:
    affine, shape = GRIDS[name]
    frame = rotation((0.0, 6.0, 9.0))  # rolled and turned on the table
    middle = np.array([4.0, 1.0, 0.0])
    radii = (34.0, 42.0, 30.0)
    points = world_of(affine, shape)
    brain = ((((points - middle) @ frame) / radii) ** 2).sum(axis=-1) <= 1
    midline = midline_of(brain, affine)
    assert midline is not None
    right = midline.rightwards_mm(points.reshape(-1, 3)).reshape(shape) > 0
    truly = (points - middle) @ frame[:, 0] > 0
    assert (right != truly)[brain].mean() < 0.03


def test_where_no_outline_is_no_midline_is_told() -> None:
    assert midline_of(np.ones((8, 9, 10), bool), np.eye(4)) is None
    assert midline_of(np.zeros((8, 9, 10), bool), np.eye(4)) is None
