"""Histograms under differential privacy: what a patient adds, how far one moves them, the noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.imaging.missing_sequences import blank
from client.imaging.preprocessing import Prepared
from client.privacy.dp_histograms import SENSITIVITY, noised_statistics, patient_vector
from common.study.cohort_histograms import HISTOGRAMS, StatisticsOptions

EVERYTHING = StatisticsOptions(about=("volumes", "spacing", "intensities"))


def seeded(seed: int) -> Any:
    return np.random.default_rng(seed).bytes


def scan(
    *,
    tumour_voxels: int = 0,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 3.0),
    value: float = 0.3,
    labelled: bool = True,
) -> Prepared:
    """Return a scan of 10 x 10 x 10 voxels of 10 mm, 1 mL each; all of it is brain."""
    labels = np.zeros(1000, np.uint8)
    labels[:tumour_voxels] = 3
    return Prepared(
        image=np.full((4, 10, 10, 10), value, np.float32),
        labels=labels.reshape(10, 10, 10) if labelled else None,
        affine=np.diag([10.0, 10.0, 10.0, 1.0]),
        native_shape=(10, 10, 10),
        native_affine=np.diag([*spacing_mm, 1.0]),
        history=(),
    )


def bins(vector: Any, options: StatisticsOptions = EVERYTHING) -> dict[str, dict[str, float]]:
    """Return what is not 0 in each histogram, by the label of its bin."""
    found, at = {}, 0
    for name, one in options.histograms.items():
        part = vector[at : at + one.bins]
        found[name] = {label: v for label, v in zip(one.labels, part, strict=True) if v}
        at += one.bins
    return found


def test_a_scan_falls_into_the_bins_of_its_values() -> None:
    found = bins(patient_vector([scan(tumour_voxels=7)], EVERYTHING.histograms))
    assert found["volume_wt"] == found["volume_et"] == {"5 to 10": 1.0}
    assert found["spacing_finest"] == {"0.8 to 1": 1.0}
    assert found["spacing_coarsest"] == {"2 to 3": 1.0}
    assert found["intensity_t1c"] == {"0 to 0.5": 1.0}


@pytest.mark.parametrize(
    ("voxels", "label"), [(0, "up to 0"), (1, "0 to 1"), (2, "1 to 5"), (500, "above 200")]
)
def test_a_volume_on_an_edge_is_below_it(voxels: int, label: str) -> None:
    found = bins(patient_vector([scan(tumour_voxels=voxels)], EVERYTHING.histograms))
    assert found["volume_wt"] == {label: 1.0}


def test_a_spacing_that_is_nearly_round_is_round() -> None:
    near = scan(spacing_mm=(1.0000001, 1.0, 1.0))
    found = bins(patient_vector([near], EVERYTHING.histograms))
    assert found["spacing_coarsest"] == {"0.8 to 1": 1.0}


def test_two_scans_of_a_patient_count_half_each() -> None:
    scans = [scan(tumour_voxels=7), scan(tumour_voxels=0)]
    found = bins(patient_vector(scans, EVERYTHING.histograms))
    assert found["volume_wt"] == {"up to 0": 0.5, "5 to 10": 0.5}
    assert found["spacing_finest"] == {"0.8 to 1": 1.0}


@pytest.mark.parametrize("scans", [[], [scan(labelled=False)]])
def test_what_is_not_there_adds_nothing(scans: list[Prepared]) -> None:
    found = bins(patient_vector(scans, EVERYTHING.histograms))
    assert found["volume_wt"] == {}


PATIENTS = st.lists(
    st.builds(
        scan,
        tumour_voxels=st.integers(0, 1000),
        value=st.floats(-1e6, 1e6, width=32).filter(bool),
        spacing_mm=st.tuples(*(st.floats(0.1, 10.0),) * 3),
    ),
    max_size=3,
)


@given(PATIENTS)
def test_one_patient_moves_the_sum_by_one_at_most(scans: list[Prepared]) -> None:
    vector = patient_vector(scans, EVERYTHING.histograms)
    assert (vector >= 0).all()
    assert np.linalg.norm(vector) / np.sqrt(len(HISTOGRAMS)) <= SENSITIVITY + 1e-12


def test_a_vector_that_is_too_long_is_clipped() -> None:
    options = StatisticsOptions(about=("spacing",), noise_multiplier=1e-6)
    made = noised_statistics([np.full(22, 1e6)], options)
    norm = np.linalg.norm(np.concatenate(list(made.values())))
    assert norm == pytest.approx(np.sqrt(2), abs=0.05)


def test_with_little_noise_it_is_the_sum() -> None:
    options = StatisticsOptions(about=("volumes", "spacing"), noise_multiplier=1e-6)
    scans = [scan(tumour_voxels=n) for n in (0, 0, 7, 7, 7)]
    vectors = [patient_vector([one], options.histograms) for one in scans]
    found = bins(np.concatenate(list(noised_statistics(vectors, options).values())), options)
    assert found["volume_wt"] == {"up to 0": 2.0, "5 to 10": 3.0}
    assert found["spacing_finest"] == {"0.8 to 1": 5.0}


def test_the_noise_has_the_deviation_that_is_said() -> None:
    options = EVERYTHING.model_copy(update={"noise_multiplier": 4.0})
    found = np.concatenate(
        [
            np.concatenate(list(noised_statistics([], options, entropy=seeded(n)).values()))
            for n in range(40)
        ]
    )
    assert options.deviation == 12.0
    assert abs(found.mean()) < 1.0
    assert 0.95 < found.std() / options.deviation < 1.05


def test_what_stands_for_a_missing_sequence_is_no_intensity() -> None:
    lacking = scan(tumour_voxels=7)
    blank(lacking.image, (True, False, True, True))
    found = bins(patient_vector([lacking], EVERYTHING.histograms))
    assert found["intensity_t1c"] == {}
    assert found["intensity_t1n"] == found["intensity_t2f"] == {"0 to 0.5": 1.0}
    assert found["volume_wt"] == {"5 to 10": 1.0}
    both = bins(patient_vector([lacking, scan()], EVERYTHING.histograms))
    assert both["intensity_t1c"] == {"0 to 0.5": 0.5}
