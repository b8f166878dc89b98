"""Spoilt scans are told from sound ones; where nothing can be compared, that is said."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from client.clinic.ood import Cohort, Familiarity, familiarity
from client.cohort.case_discovery import read_cohort
from client.imaging.missing_sequences import ABSENT
from client.imaging.preprocessing import Prepared, prepare
from client.phantoms.cohort import write_cohort
from client.phantoms.profiles import PROFILES
from client.privacy.dp_histograms import patient_vector
from common.regions import MODALITIES
from common.study.cohort_histograms import HISTOGRAMS
from common.study.protocol import PreprocessingOptions
from tests.benchmarks.familiarity import WAYS, again

MANY = 1000.0


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Prepared]:
    """Of three scanners, with voxels that show more of a brain than those of other tests."""
    root = tmp_path_factory.mktemp("phantoms")
    options = PreprocessingOptions(spacing_mm=5.0)
    for name in ("reference", "3t-research", "1.5t-community"):
        write_cohort(root / name, PROFILES[name], patients=2, size=48, seed=3)
    return [
        prepare(case, options)
        for path in sorted(root.iterdir())
        for case in read_cohort(path).cases
    ]


def cohort_of(scans: list[Prepared], *, deviation: float = 0.0) -> Cohort:
    """Return the histograms of many patients that have such scans."""
    total = MANY * np.mean([patient_vector([one], HISTOGRAMS) for one in scans], axis=0)
    ends = np.cumsum([one.bins for one in HISTOGRAMS.values()])[:-1]
    parts = dict(zip(HISTOGRAMS, (part.tolist() for part in np.split(total, ends)), strict=True))
    return Cohort(parts, deviation, 3)


def looked(scan: Prepared, cohort: Cohort | None = None, *, volume_ml: float = 30) -> Familiarity:
    return familiarity(scan, cohort, whole_tumour_ml=volume_ml)


def codes(found: Familiarity) -> set[str]:
    return {one.code for one in found.unlike}


def test_no_sound_scan_is_unlike(scans: list[Prepared]) -> None:
    cohort = cohort_of(scans)
    for scan in scans:
        for found in (looked(scan), looked(scan, cohort)):
            assert not found.unlike
    assert looked(scans[0]).cohort == "none"
    assert looked(scans[0], cohort).cohort == "compared"
    assert looked(scans[0], cohort).sites == 3


@pytest.mark.parametrize(
    ("way", "code"),
    [
        ("T1 as T1c too", "double"),
        ("noise twice as strong", "noise"),
        ("another body part", "opposite"),
    ],
)
def test_a_spoilt_scan_is_unlike_without_any_cohort(
    scans: list[Prepared], way: str, code: str
) -> None:
    for number, scan in enumerate(scans):
        assert code in codes(looked(again(scan, WAYS[way], seed=number)))


def test_an_inverted_scan_is_unlike_the_cohort(scans: list[Prepared]) -> None:
    cohort = cohort_of(scans)
    spoilt = [again(scan, WAYS["all inverted"], seed=0) for scan in scans]
    told = [codes(looked(one, cohort)) for one in spoilt]
    assert np.mean(["intensities" in one for one in told]) > 0.8


def test_what_no_patient_had_is_unlike(scans: list[Prepared]) -> None:
    scan = scans[0]
    thick = dataclasses.replace(scan, native_affine=np.diag([1.0, 1.0, 20.0, 1.0]))
    cohort = cohort_of(scans)
    rare = {
        "spacing_coarsest": [0.0, 0, 0, 0, 0, 0, 0, 0, 0, MANY, 0],
        "volume_wt": [100.0, 100, 100, 100, 300, 200, 100, 0, 0],
    }
    cohort = Cohort({**cohort.histograms, **rare}, cohort.deviation, cohort.sites)
    assert codes(looked(thick, cohort)) == {"spacing"}
    assert codes(looked(scan, cohort, volume_ml=900)) == {"volume"}
    assert not looked(scan, cohort).unlike


def test_noise_that_hides_the_cohort_is_said(scans: list[Prepared]) -> None:
    found = looked(scans[0], cohort_of(scans, deviation=MANY))
    assert (found.cohort, found.unlike) == ("noisy", ())


@pytest.mark.parametrize("missing", ["t1n", "t1c", "t2w", "t2f"])
def test_what_is_missing_is_not_judged(scans: list[Prepared], missing: str) -> None:
    image = scans[0].image.copy()
    image[MODALITIES.index(missing), (image != 0).any(axis=0)] = ABSENT
    found = looked(dataclasses.replace(scans[0], image=image), cohort_of(scans))
    assert not any(missing in key for key in found.measured)
    assert not found.unlike


@pytest.mark.parametrize("card", [{}, {"cohort": None}])
def test_a_card_without_histograms(card: dict[str, Any]) -> None:
    assert Cohort.of(card) is None
