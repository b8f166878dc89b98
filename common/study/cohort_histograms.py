"""Histograms that describe the sites' cohorts: what is counted, in which bins, how counts add up.

A patient adds at most 1 to a histogram, shared among its bins: a patient with two scans adds half
of each, and a scan adds to the histograms of intensities the share of its brain in each bin, and
nothing to that of a sequence that it lacks. So sums over patients add up over sites. The bins are
fixed here: nothing about them depends on data.

A site's counts hold Gaussian noise (``client.privacy.dp_histograms``), whose deviation in each bin
``deviation`` tells; they may be below 0. Pure.

Out of scope: whether a site lets them leave, and what that costs its patients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from common.errors import UpdateError
from common.regions import MODALITIES, REGIONS

Topic = Literal["volumes", "spacing", "intensities"]
Counts = Mapping[str, Sequence[float]]
"""The bins' counts of each histogram, by its name."""

MOST_COUNT: Final = 1e9
"""No cohort with its noise has more in a bin."""


@dataclass(frozen=True)
class Histogram:
    """Bin i holds ``edges[i - 1] < value <= edges[i]``, the last one what is above all edges."""

    topic: Topic
    title: str
    unit: str
    edges: tuple[float, ...]

    @property
    def bins(self) -> int:
        return len(self.edges) + 1

    @property
    def labels(self) -> tuple[str, ...]:
        """What each bin holds, in words, without the unit."""
        first, last = f"up to {self.edges[0]:g}", f"above {self.edges[-1]:g}"
        between = (f"{a:g} to {b:g}" for a, b in zip(self.edges, self.edges[1:], strict=False))
        return (first, *between, last)


_VOLUMES_ML: Final = (0.0, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 200.0)
_SPACING_MM: Final = (0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0)
_Z_SCORES: Final = (-2.5, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5)

HISTOGRAMS: Final[dict[str, Histogram]] = {
    **{
        f"volume_{region.lower()}": Histogram("volumes", f"volume of {region}", "mL", _VOLUMES_ML)
        for region in REGIONS
    },
    "spacing_finest": Histogram("spacing", "finest voxel spacing of a scan", "mm", _SPACING_MM),
    "spacing_coarsest": Histogram("spacing", "coarsest voxel spacing of a scan", "mm", _SPACING_MM),
    **{
        f"intensity_{name}": Histogram(
            "intensities", f"intensity of {name} in the brain, normalised", "z-score", _Z_SCORES
        )
        for name in MODALITIES
    },
}


class StatisticsOptions(BaseModel):
    """Which histograms of their training patients the sites are asked for, once in a study.

    They leave a site with noise only, charged to each patient's budget like a step of training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    about: tuple[Topic, ...] = ()
    noise_multiplier: Annotated[float, Field(gt=0, le=1e4)] = 5.0

    @property
    def histograms(self) -> dict[str, Histogram]:
        """The histograms that are asked for, by name."""
        return {name: one for name, one in HISTOGRAMS.items() if one.topic in self.about}

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise in each bin of one site, in patients.

        A patient's vector of H histograms has at most the length sqrt(H).
        """
        return self.noise_multiplier * math.sqrt(len(self.histograms))


def check_counts(counts: Counts, options: StatisticsOptions) -> None:
    """Raise UpdateError (code ``update-statistics``) unless all that was asked for is there."""
    asked = {name: one.bins for name, one in options.histograms.items()}
    given = {name: len(values) for name, values in counts.items()}
    if asked != given or any(
        not abs(value) <= MOST_COUNT for values in counts.values() for value in values
    ):
        raise UpdateError(
            "The histograms are not those that the protocol asks for.",
            do="Compare the versions of gliofed at the site and at the coordinator.",
            code="update-statistics",
        )


def added(sites: Iterable[Counts]) -> dict[str, list[float]]:
    """Return the sum over sites that were asked for the same, in the order of ``HISTOGRAMS``.

    Without any site it is {}.
    """
    told = list(sites)
    return {
        name: [sum(values) for values in zip(*(counts[name] for counts in told), strict=True)]
        for name in HISTOGRAMS
        if told and name in told[0]
    }
