import numpy as np
import pytest

from client.segmentation.calibration import (
    AS_IT_IS,
    LIMIT,
    Counts,
    calibrated,
    calibration_errors,
    fitted,
    logits,
)
from common.regions import REGIONS

SHAPE = (60, 60, 30)


def drawn(temperature: float, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities, and truths that come true as if divided by ``temperature``."""
    rng = np.random.default_rng(seed)
    said = rng.normal(-1, 3, (3, *SHAPE)).astype(np.float32)
    probabilities = 1 / (1 + np.exp(-said))
    true = rng.random((3, *SHAPE)) < 1 / (1 + np.exp(-said / temperature))
    return probabilities.astype(np.float32), true


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_truth_is_found(temperature: float) -> None:
    probabilities, truth = drawn(temperature)
    counts = Counts.of_case(probabilities, truth)
    found = fitted(counts)
    assert found == pytest.approx([temperature] * 3, rel=0.03)
    before, after = calibration_errors(counts), calibration_errors(counts, found)
    for region in REGIONS:
        assert after[region] < 0.01
        assert (before[region] > 0.03) == (temperature != 1.0)


def test_the_error_after_is_that_of_the_calibrated_probabilities() -> None:
    probabilities, truth = drawn(2.0)
    found = (2.0, 1.0, 0.7)
    later = Counts.of_case(calibrated(probabilities, found), truth)
    expected = calibration_errors(Counts.of_case(probabilities, truth), found)
    for region, error in calibration_errors(later).items():
        assert error == pytest.approx(expected[region], abs=2e-3)


def test_the_calibration_error_of_an_overconfident_region() -> None:
    probabilities = np.full((3, 10, 10, 10), 0.9, np.float32)
    truth = np.zeros((3, 10, 10, 10), bool)
    truth[:, :6] = True
    found = calibration_errors(Counts.of_case(probabilities, truth))
    assert found == {region: pytest.approx(0.3, abs=2e-3) for region in REGIONS}


def test_counts_add_up_and_leave_out_what_is_no_brain() -> None:
    probabilities, truth = drawn(1.0)
    half = probabilities.copy()
    half[:, :30] = 0
    other = probabilities.copy()
    other[:, 30:] = 0
    whole = Counts.of_case(probabilities, truth)
    parts = Counts.of_case(half, truth) + Counts.none() + Counts.of_case(other, truth)
    assert np.array_equal(parts.voxels, whole.voxels)
    assert whole.voxels[0].sum() == np.prod(SHAPE)


def test_a_region_without_voxels_stays_as_it_is_and_no_temperature_is_extreme() -> None:
    probabilities, truth = drawn(1.0)
    truth[2] = False
    truth[0] = probabilities[0] > 0.5
    truth[1] = probabilities[1] < 0.5
    wt, tc, et = fitted(Counts.of_case(probabilities, truth))
    assert et == 1.0
    assert wt == pytest.approx(1 / LIMIT, rel=0.1)
    assert tc == pytest.approx(LIMIT, rel=0.1)
    assert fitted(Counts.none()) == AS_IT_IS
    assert calibration_errors(Counts.none()) == dict.fromkeys(REGIONS)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_calibration_keeps_order_and_the_middle_and_what_is_no_brain(temperature: float) -> None:
    probabilities = np.tile(np.array([0.0, 1e-6, 0.3, 0.5, 0.7, 1.0], np.float32), (3, 1, 1, 1))
    found = calibrated(probabilities, (temperature,) * 3)
    assert found.dtype == np.float32
    assert found[0, 0, 0, 0] == 0
    assert (np.diff(found) >= 0).all()
    assert ((found > 0.5) == (probabilities > 0.5)).all()
    assert np.isfinite(logits(probabilities)).all()
