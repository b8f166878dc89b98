"""The change against an earlier result: per cents, and what the thresholds of RANO 2.0 say."""

from __future__ import annotations

import dataclasses

import pytest

from client.clinic.rano_response import (
    BIDIMENSIONAL,
    VOLUMETRIC,
    Before,
    Change,
    category,
    change,
    changed,
)

BEFORE = Before(
    folder="earlier",
    case="case-1",
    date="2026-01-14",
    volumes_ml={"ET": 10.0, "WT": 50.0},
    range_ml={"ET": (9.0, 11.0), "WT": (40.0, 60.0)},
    lesions=2,
    of="ET",
    sum_of_products_mm2=800.0,
    model_sha256="a",
)


def now(
    before: Before = BEFORE,
    *,
    et: float = 10.0,
    of: str = "ET",
    lesions: int = 2,
    products: float = 800.0,
) -> Change:
    return change(
        before,
        volumes_ml={"ET": et, "WT": 52.0},
        range_ml={"ET": (et - 1, et + 1), "WT": (45.0, 70.0)},
        of=of,
        lesions=lesions,
        sum_of_products_mm2=products,
        model_sha256="a",
    )


@pytest.mark.parametrize(
    ("before", "after", "by_volume", "by_diameters"),
    [
        (1000, 1400, "progression", "progression"),
        (1000, 1399.9, "stable", "progression"),
        (1000, 1250, "stable", "progression"),
        (1000, 1249.9, "stable", "stable"),
        (1000, 500.1, "stable", "stable"),
        (1000, 500, "stable", "partial response"),
        (1000, 350.1, "stable", "partial response"),
        (1000, 350, "partial response", "partial response"),
        (1000, 0, "complete response", "complete response"),
        (0, 5, "progression", "progression"),
        (0, 0, None, None),
    ],
)
def test_categories_change_at_the_thresholds(
    before: float, after: float, by_volume: str | None, by_diameters: str | None
) -> None:
    one = changed(before, after)
    assert category(one, VOLUMETRIC) == by_volume
    assert category(one, BIDIMENSIONAL) == by_diameters


def test_what_was_nothing_has_no_per_cent() -> None:
    assert changed(0, 3.0).percent is None
    assert changed(3.0, 4.0).percent == 33.3


def test_growth_is_told_with_its_ranges_and_model() -> None:
    found = now(et=15.0, products=900.0, lesions=3)
    assert found.volumes_ml["ET"].percent == 50.0
    assert (found.volumetric, found.bidimensional) == ("progression", "stable")
    assert (found.within_ranges, found.lesions) == (("WT",), (2, 3))
    assert found.same_model
    assert not now(dataclasses.replace(BEFORE, model_sha256="b")).same_model


def test_enhancement_that_went_away_is_compared_as_enhancement() -> None:
    found = now(et=0.0, of="WT", lesions=1, products=1500.0)
    assert (found.of, found.lesions) == ("ET", (2, 0))
    assert found.sum_of_products_mm2 == changed(800.0, 0.0)
    assert (found.volumetric, found.bidimensional) == ("complete response", "complete response")


def test_enhancement_that_came_is_progression() -> None:
    calm = dataclasses.replace(BEFORE, of="WT", volumes_ml={"ET": 0.0, "WT": 50.0})
    found = now(calm, et=3.0)
    assert (found.of, found.lesions) == ("ET", (0, 2))
    assert (found.volumetric, found.bidimensional) == ("progression", "progression")


def test_lesions_too_small_to_measure_are_no_complete_response() -> None:
    assert now(et=1.0, products=0.0, lesions=1).bidimensional == "partial response"


def test_a_prior_without_findings_is_compared_by_volume_alone() -> None:
    old = dataclasses.replace(BEFORE, lesions=None, of=None, sum_of_products_mm2=None)
    found = now(old, et=3.0)
    assert (found.volumetric, found.bidimensional) == ("partial response", None)
    assert (found.sum_of_products_mm2, found.lesions) == (None, None)
