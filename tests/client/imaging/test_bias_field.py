"""A coil's field goes, the anatomy stays."""

from __future__ import annotations

import numpy as np

from client.imaging.bias_field import correct_bias
from client.imaging.nifti import Volume


def test_a_smooth_field_is_taken_out() -> None:
    shape = (36, 40, 32)
    x, y, z = (axis / side - 0.5 for axis, side in zip(np.indices(shape), shape, strict=True))
    head = x**2 + y**2 + z**2 < 0.2
    inner = x**2 + y**2 + z**2 < 0.06
    rng = np.random.default_rng(3)
    tissue = np.where(inner, 500.0, 800.0) * head + rng.normal(0, 8, shape)
    field = np.exp(0.5 * x - 0.4 * y * y + 0.3 * z)
    affine = np.diag([-4.0, 4.0, 5.0, 1.0])
    seen = np.abs(tissue * field).astype(np.float32)
    corrected, record = correct_bias(Volume(seen, affine))
    shell = head & ~inner
    before, after = (image[shell].std() / image[shell].mean() for image in (seen, corrected.data))
    assert after < before / 2
    assert (
        corrected.data[head].mean() == np.float32(seen[head].mean())
        or abs(np.log(corrected.data[head]).mean() - np.log(seen[head]).mean()) < 0.05
    )
    np.testing.assert_array_equal(corrected.affine, affine)
    assert record["step"] == "n4"
    assert record["log_field_deviation"] > 0.05
    assert "SimpleITK" in record["library"]


def test_fine_voxels_are_corrected_on_their_own_grid() -> None:
    rng = np.random.default_rng(4)
    data = rng.uniform(90, 110, (41, 37, 33)).astype(np.float32)
    data[10:30, 8:28, 8:25] *= 5
    corrected, _ = correct_bias(Volume(data, np.eye(4)))
    assert corrected.data.shape == data.shape
    assert corrected.data.dtype == np.float32
    assert np.isfinite(corrected.data).all()
    assert np.corrcoef(corrected.data.ravel(), data.ravel())[0, 1] > 0.98
