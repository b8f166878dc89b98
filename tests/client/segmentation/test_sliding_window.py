import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map, dense_patch_slices

from client.segmentation.sliding_window import gaussian, window_shape, windows

SIDES = st.tuples(*[st.integers(1, 60)] * 3)


@given(SIDES, st.tuples(*[st.integers(1, 24)] * 3), st.sampled_from([0.0, 0.25, 0.5, 0.75]))
def test_windows_cover_the_volume_and_overlap_as_wanted(
    shape: tuple[int, int, int], size: tuple[int, int, int], overlap: float
) -> None:
    window = window_shape(shape, size)
    found = windows(shape, window, overlap=overlap)
    covered = np.zeros(shape, bool)
    for look in found:
        assert covered[look].shape == window
        covered[look] = True
    assert covered.all()
    for axis, side in enumerate(window):
        starts = sorted({look[axis].start for look in found})
        steps = np.diff(starts)
        assert all(step <= max(1, round(side * (1 - overlap))) for step in steps)
        assert not steps.size or np.ptp(steps) <= 1


@pytest.mark.parametrize("shape", [(240, 240, 155), (140, 100, 97), (96, 96, 96)])
def test_there_are_as_many_windows_as_monai_takes(shape: tuple[int, int, int]) -> None:
    window = (96, 96, 96)
    theirs = dense_patch_slices(shape, window, (48, 48, 48))
    assert len(windows(shape, window, overlap=0.5)) == len(theirs)


def test_an_axis_that_nearly_fits_is_seen_whole() -> None:
    assert window_shape((24, 25, 9), (16, 16, 16)) == (24, 16, 9)
    assert windows((24, 16, 9), (24, 16, 9), overlap=0.5) == [
        (slice(0, 24), slice(0, 16), slice(0, 9))
    ]


@pytest.mark.parametrize("window", [(16, 16, 16), (9, 24, 5)])
def test_weights_are_those_of_monai(window: tuple[int, int, int]) -> None:
    theirs = compute_importance_map(window, mode="gaussian", sigma_scale=0.125).numpy()
    found = gaussian(window)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.maximum(theirs, 1e-3), rtol=1e-4)
