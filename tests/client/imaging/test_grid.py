"""Sampling through any rigid motion keeps places; what is outside of a field is known."""

from __future__ import annotations

import numpy as np
import pytest

from client.imaging import grid


def tilted(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = 3.0, -2.0, 1.5
    return turn


def ramp(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Return an image whose value says where in the world it is."""
    index = np.stack(np.indices(shape)).reshape(3, -1)
    world = affine[:3, :3] @ index + affine[:3, 3:]
    return (world * [[1.0], [10.0], [100.0]]).sum(axis=0).reshape(shape).astype(np.float32)


def test_blocks_are_averaged_where_they_lie() -> None:
    affine = tilted(20) @ np.diag([1.0, 0.5, 3.0, 1.0])
    data = ramp((12, 17, 5), affine)
    small, small_affine = grid.shrink(data, affine, np.array([4, 8, 1]))
    assert small.shape == (3, 2, 5)
    np.testing.assert_allclose(small, ramp(small.shape, small_affine), atol=1e-3)


@pytest.mark.parametrize("degrees", [0, 7, 25])
def test_a_sample_is_taken_where_the_motion_leads(degrees: float) -> None:
    affine = np.diag([0.8, 1.1, 2.0, 1.0])
    data = ramp((30, 25, 14), affine)
    target = tilted(degrees) @ np.diag([1.0, 1.0, 1.0, 1.0])
    to_data = np.linalg.inv(affine) @ target
    seen = grid.within(to_data, data.shape, (16, 14, 12))
    sampled = grid.sample(data, to_data, (16, 14, 12), smooth=False)
    inner = grid.within(to_data, data.shape, (16, 14, 12))
    where = np.linalg.inv(affine) @ target @ np.append(np.argwhere(inner)[100], 1)
    assert (where[:3] >= -0.5).all()
    deep = seen & grid.within(to_data - _half(), tuple(n - 1 for n in data.shape), seen.shape)
    want = ramp(seen.shape, target)
    np.testing.assert_allclose(sampled[deep], want[deep], atol=0.05)
    assert deep.sum() > 300


def _half() -> np.ndarray:
    """Shift by half a voxel: then the field is that between the outermost centres."""
    half = np.zeros((4, 4))
    half[:3, 3] = 0.5
    return half


def test_coarser_voxels_are_averages_not_picks() -> None:
    noise = np.random.default_rng(1).normal(0, 1, (40, 40, 40)).astype(np.float32)
    to_data = np.diag([4.0, 4.0, 4.0, 1.0])
    picked = grid.sample(noise, to_data, (9, 9, 9), smooth=False)
    smooth = grid.sample(noise, to_data, (9, 9, 9), smooth=True)
    assert smooth.std() < 0.3 < picked.std()


def test_beyond_the_field_is_what_was_asked_for() -> None:
    data = np.full((4, 4, 4), 5, np.float32)
    to_data = np.eye(4)
    to_data[0, 3] = -3
    outside = ~grid.within(to_data, data.shape, (10, 4, 4))
    assert outside[:3].all()
    assert not outside[3:7].any()
    assert outside[7:].all()
    assert not grid.sample(data, to_data, (10, 4, 4), smooth=False, outside=0.0)[:3].any()
    assert (grid.sample(data, to_data, (10, 4, 4), smooth=False) == 5).all()
