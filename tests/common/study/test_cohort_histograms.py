"""Bins of histograms, and that what sites say adds up."""

from __future__ import annotations

import math
from typing import Any

import pytest

from common.errors import UpdateError
from common.study.cohort_histograms import (
    HISTOGRAMS,
    MOST_COUNT,
    StatisticsOptions,
    added,
    check_counts,
)

ASKED = StatisticsOptions(about=("spacing",))


def counts(value: float = 1.0) -> dict[str, list[float]]:
    return {name: [value] * one.bins for name, one in ASKED.histograms.items()}


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_bins_rise_and_each_has_a_name(name: str) -> None:
    histogram = HISTOGRAMS[name]
    assert list(histogram.edges) == sorted(set(histogram.edges))
    assert len(set(histogram.labels)) == histogram.bins == len(histogram.edges) + 1


def test_a_label_says_what_the_bin_holds() -> None:
    labels = HISTOGRAMS["volume_wt"].labels
    assert labels[:2] == ("up to 0", "0 to 1")
    assert labels[-1] == "above 200"


def test_only_what_is_asked_for_is_there() -> None:
    assert StatisticsOptions().histograms == {}
    assert set(ASKED.histograms) == {"spacing_finest", "spacing_coarsest"}
    every = StatisticsOptions(about=("volumes", "spacing", "intensities"), noise_multiplier=2.0)
    assert set(every.histograms) == set(HISTOGRAMS)
    assert every.deviation == pytest.approx(2.0 * math.sqrt(9))


def test_what_was_asked_for_passes() -> None:
    check_counts(counts(-3.5), ASKED)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"spacing_finest": counts()["spacing_finest"]},
        {**counts(), "volume_wt": [1.0] * 9},
        {**counts(), "spacing_finest": [1.0]},
        {**counts(), "spacing_finest": [math.nan] * 11},
        {**counts(), "spacing_finest": [2 * MOST_COUNT] * 11},
    ],
)
def test_anything_else_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UpdateError) as caught:
        check_counts(wrong, ASKED)
    assert caught.value.code == "update-statistics"


def test_sites_add_up_in_any_order() -> None:
    one, two = counts(1.0), counts(2.5)
    assert added([one, two]) == added([two, one]) == counts(3.5)
    assert added([]) == {}
