"""The picture of a segmentation: the right side on the left, the tumour in the slices."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.image import imread

from client.clinic.lesion_measurements import findings
from client.clinic.overlays import _slices, _window, doubtful, overview


def test_the_picture_shows_right_on_the_left() -> None:
    """A bright half in the patient's right must come out on the left of every panel."""
    volume = np.full((20, 24, 16), 10.0, np.float32)
    volume[10:] = 100.0  # the first axis runs to the left: this half is the patient's left
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    drawn = []
    for sign in (1, -1):
        data = volume if sign == 1 else volume[::-1]
        grid = affine if sign == 1 else np.diag([1.0, 1.0, 1.0, 1.0])
        labels = np.zeros(data.shape, np.uint8)
        png = overview(
            {"t2f": np.ascontiguousarray(data), "t1c": np.ascontiguousarray(data)},
            labels,
            grid,
            volumes={"NCR": 0.0, "ED": 0.0, "ET": 0.0},
        )
        drawn.append(imread(io.BytesIO(png))[..., :3].mean(axis=2))
    assert np.array_equal(*drawn)
    fifth = drawn[0].shape[1] // 5
    panel = drawn[0][:, :fifth]
    assert panel[:, fifth // 2 :].mean() > 2 * panel[:, : fifth // 2].mean()


def volume(*slices: int, area: int = 4) -> np.ndarray:
    mask = np.zeros((10, 10, 20), np.uint8)
    for z in slices:
        mask[2 : 2 + area, 2 : 2 + area, z] = 1
    return mask


BRAIN = np.ones((10, 10, 20), np.float32)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (volume(*range(4, 12)), [4, 6, 7, 9, 11]),
        (volume(7), [5, 6, 7, 8, 9]),
        (volume(0), [0, 1, 2, 3, 4]),
        (volume(19), [15, 16, 17, 18, 19]),
        (volume(5, 15), [4, 5, 6, 14, 15]),
        (volume(3, 4, 5, 6, area=1) + volume(9, area=8), [3, 4, 5, 6, 9]),
        (volume(), [1, 5, 9, 13, 17]),
    ],
    ids=["evenly", "one slice", "lowest", "highest", "two apart", "mostly in one", "none"],
)
def test_slices_follow_the_tumour(mask: np.ndarray, expected: list[int]) -> None:
    assert _slices(mask, BRAIN) == expected


def test_slices_of_an_empty_and_of_a_shallow_volume() -> None:
    assert _slices(volume(), np.zeros_like(BRAIN)) == [2, 6, 10, 14, 18]
    assert _slices(volume()[..., :2], BRAIN[..., :2]) == [0, 1, 1, 1, 1]


def test_the_window_holds_the_head_and_a_margin() -> None:
    inside = np.zeros((50, 60, 5), bool)
    inside[20:30, 1:59, 2] = True
    assert _window(inside) == (slice(18, 32), slice(0, 60))
    assert _window(np.zeros((7, 8, 9), bool)) == (slice(0, 7), slice(0, 8))


def test_the_slice_that_was_measured_is_shown() -> None:
    mask = volume(*range(4, 12))
    assert 8 not in _slices(mask, BRAIN)
    assert 8 in _slices(mask, BRAIN, 8)
    assert len(set(_slices(mask, BRAIN, 8))) == 5


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_diameters_and_doubt_are_drawn(sign: float) -> None:
    labels = np.zeros((40, 48, 20), np.uint8)
    labels[8:24, 10:30, 5:12] = 3
    image = np.full(labels.shape, 50.0, np.float32)
    affine = np.diag([sign, 1.0, 3.0, 1.0])
    measured = findings(labels, affine, None).lesions[0].diameters
    volumes = {"NCR": 0.0, "ED": 0.0, "ET": 6.7}
    plain = overview({"t1c": image}, labels, affine, volumes=volumes)
    drawn = overview({"t1c": image}, labels, affine, volumes=volumes, diameters=measured)
    assert plain != drawn
    doubt = np.zeros(labels.shape, np.float32)
    sure = doubtful({"t1c": image}, labels, affine, uncertainty=doubt)
    doubt[10:20, 12:20] = 0.9
    unsure = doubtful({"t1c": image}, labels, affine, uncertainty=doubt)
    coloured = [np.ptp(imread(io.BytesIO(one))[60:250, :, :3], axis=2) for one in (sure, unsure)]
    assert (coloured[1] > 0.3).sum() > 1000 + (coloured[0] > 0.3).sum()
