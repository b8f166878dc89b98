"""Whether a scan is unlike what the model learnt from, as far as that can be told here.

Two looks at the network's input. The first needs no reference and holds for any brain on any
scanner: water is dark in T1 and bright in T2, so the two do not rise together; two sequences are
not one image; noise is not as strong as all contrast. The second compares with the histograms of
the federation's training patients, where the study asked for them (``[statistics]`` of a protocol):
they left each site with noise only, and the model's card holds their sum. Intensities are compared
by the first Wasserstein distance over the bins, in standard deviations of the brain; voxels' sizes
and the tumour's volume by how many of those patients had such ones. Where the card has no
histograms, or their noise hides what is looked for, the result says that it cannot tell.

What the model itself says of its doubt is no such measure: on phantoms whose sequences were
exchanged or inverted it expects about the Dice that it expects of sound ones (``python -m
tests.benchmarks familiarity``, from which the limits are, too). What passes here may still be
unlike all that the model saw. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from client.imaging.grid import spacing_of
from client.imaging.missing_sequences import present
from client.imaging.preprocessing import Prepared
from common.regions import MODALITIES, MODALITY_NAMES
from common.study.cohort_histograms import HISTOGRAMS, Counts, Histogram

Floats = NDArray[np.float32]
Code = Literal["opposite", "double", "noise", "intensities", "spacing", "volume"]

MOST_TOGETHER: Final = 0.2
"""Correlation of a T1 and the T2 inside the brain. Of phantoms of five scanners it is at most
-0.12, on grids of 10 mm more."""

SAME_IMAGE: Final = 0.995
"""Correlation of two sequences. Of the phantoms' T1 without and with contrast it is at most 0.91;
what is there twice has 1."""

_BORDER_MM: Final = 6.0
"""Of the brain, where every sequence darkens, as voxels are brain in part."""

MOST_NOISE: Final = 0.6
"""Standard deviation of the noise, in that of all the brain. Of the phantoms it is at most 0.43,
structure that counts as noise on coarse grids with it."""

MOST_DISTANCE: Final = 0.4
"""Between a sequence's intensities and the cohort's. Of the phantoms it is at most 0.26, from the
patients of a single other scanner 0.38."""

FEWEST: Final = 0.02
"""Share of the cohort's patients that have such a value or one beyond it."""

_MOST_ERROR: Final = 0.1
"""Error of the distance that the noise in the cohort's histograms may make."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Unlike(_Part):
    """One thing that is unlike; ``value`` lies beyond ``limit``."""

    code: Code
    says: str
    value: float
    limit: float


class Familiarity(_Part):
    """What was looked at and found. ``cohort`` says whether the card's histograms could be used:
    ``noisy`` where none of them was exact enough, ``none`` where it has none."""

    cohort: Literal["compared", "noisy", "none"]
    sites: Annotated[int, Field(ge=0)] = 0
    measured: dict[str, float]
    unlike: tuple[Unlike, ...] = ()


@dataclass(frozen=True)
class Cohort:
    """The sum of the sites' histograms, with noise of ``deviation`` patients in each bin."""

    histograms: Counts
    deviation: float
    sites: int

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> Cohort | None:
        """Return what a model's card holds, None if it holds nothing."""
        said = card.get("cohort")
        if not said:
            return None
        return cls(said["histograms"], float(said["deviation"]), int(said["sites"]))


def familiarity(scan: Prepared, cohort: Cohort | None, *, whole_tumour_ml: float) -> Familiarity:
    """Return how familiar a prepared scan is, in which so large a tumour was found."""
    image = scan.image
    inside = (image != 0).any(axis=0)
    there = [n for n, kept in zip(MODALITIES, present(image), strict=True) if kept]
    values = {name: image[MODALITIES.index(name)] for name in there}
    measured: dict[str, float] = {}
    deep = _without_border(inside, float(spacing_of(scan.affine).min()))
    unlike = [*_together(values, deep, measured), *_noisy(values, inside, measured)]
    if cohort is None:
        return Familiarity(cohort="none", measured=measured, unlike=tuple(unlike))
    before = len(measured)
    unlike += _elsewhere(values, inside, cohort, measured)
    coarsest_mm = float(spacing_of(scan.native_affine).max())
    unlike += _rare("spacing", "spacing_coarsest", coarsest_mm, cohort, measured)
    unlike += _rare("volume", "volume_wt", whole_tumour_ml, cohort, measured)
    return Familiarity(
        cohort="compared" if len(measured) > before else "noisy",
        sites=cohort.sites,
        measured=measured,
        unlike=tuple(unlike),
    )


def _without_border(inside: NDArray[np.bool_], spacing_mm: float) -> NDArray[np.bool_]:
    steps = math.ceil(_BORDER_MM / spacing_mm)
    deep: NDArray[np.bool_] = ndimage.binary_erosion(inside, iterations=steps)
    return deep if deep.any() else inside


def _together(
    values: Mapping[str, Floats], deep: NDArray[np.bool_], measured: dict[str, float]
) -> Iterator[Unlike]:
    brains = {name: value[deep] for name, value in values.items()}
    for one, other in combinations(brains, 2):
        found = round(float(np.corrcoef(brains[one], brains[other])[0, 1]), 3)
        measured[f"correlation_{one}_{other}"] = found
        if found > SAME_IMAGE:
            yield Unlike(
                code="double",
                says=f"{_named(one)} and {_named(other)} show the same image (correlation "
                f"{found:.2f}).",
                value=found,
                limit=SAME_IMAGE,
            )
        elif other == "t2w" and one in ("t1n", "t1c") and found > MOST_TOGETHER:
            yield Unlike(
                code="opposite",
                says=f"{_named(one)} and {_named(other)} are bright in the same places "
                f"(correlation {found:+.2f}), where water makes one dark and the other bright: is "
                "each the sequence that its name says?",
                value=found,
                limit=MOST_TOGETHER,
            )


def _noisy(
    values: Mapping[str, Floats], inside: NDArray[np.bool_], measured: dict[str, float]
) -> Iterator[Unlike]:
    places = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if any(one.size == 0 for one in places):
        return
    # The middle of the brain alone: its border is no noise.
    quarters = [np.percentile(one, (25, 75)).astype(int) for one in places]
    middle = tuple(slice(low, high + 1) for low, high in quarters)
    for name, value in values.items():
        found = round(_noise(value[middle]), 3)
        measured[f"noise_{name}"] = found
        if found > MOST_NOISE:
            yield Unlike(
                code="noise",
                says=f"The noise of {_named(name)} is {found:.1f} of all its contrast in the "
                "brain.",
                value=found,
                limit=MOST_NOISE,
            )


def _noise(part: Floats) -> float:
    """Return the noise by Immerkær 1996 (Computer Vision and Image Understanding 64(2)), in the
    planes in which it is least: across thick slices neighbours differ without noise."""
    found = []
    for axes in combinations(range(3), 2):
        if all(part.shape[axis] > 2 for axis in axes):
            second = np.diff(np.diff(part, 2, axis=axes[0]), 2, axis=axes[1])
            found.append(math.sqrt(math.pi / 2) / 6 * float(np.abs(second).mean()))
    return min(found, default=0.0)


def _elsewhere(
    values: Mapping[str, Floats],
    inside: NDArray[np.bool_],
    cohort: Cohort,
    measured: dict[str, float],
) -> Iterator[Unlike]:
    for name, value in values.items():
        title = f"intensity_{name}"
        histogram = HISTOGRAMS[title]
        steps = cumulated(cohort, title)
        if steps is None:
            continue
        place = np.searchsorted(histogram.edges, value[inside], side="left")
        own = np.cumsum(np.bincount(place, minlength=histogram.bins)) / inside.sum()
        found = round(float(np.abs(own - steps)[:-1].sum()) * _step(histogram), 3)
        measured[title] = found
        if found > MOST_DISTANCE:
            yield Unlike(
                code="intensities",
                says=f"The intensities of {_named(name)} are spread otherwise than in the patients "
                f"that the model learnt from (distance {found:.2f}, limit {MOST_DISTANCE:g}).",
                value=found,
                limit=MOST_DISTANCE,
            )


def cumulated(cohort: Cohort, title: str) -> NDArray[np.float64] | None:
    """Return the share of the cohort's brains up to each edge; None if noise hides it."""
    counts = cohort.histograms.get(title)
    if counts is None:
        return None
    patients = sum(counts)
    if patients <= 0 or _error(HISTOGRAMS[title], cohort.deviation / patients) > _MOST_ERROR:
        return None
    steps = np.cumsum(np.maximum(counts, 0))
    result: NDArray[np.float64] = steps / steps[-1]
    return result


def _error(histogram: Histogram, deviation: float) -> float:
    """Return the distance that noise of ``deviation`` (as a share) in each bin makes on average.

    The cumulated noise is a bridge: 0 at both ends, since shares add up to 1.
    """
    before = np.arange(1, histogram.bins)
    bridge = np.sqrt(before * (histogram.bins - before) / histogram.bins)
    return math.sqrt(2 / math.pi) * deviation * float(bridge.sum()) * _step(histogram)


def _step(histogram: Histogram) -> float:
    """Return the width of a bin of intensities; all are equally wide."""
    return histogram.edges[1] - histogram.edges[0]


def _rare(
    code: Code, title: str, value: float, cohort: Cohort, measured: dict[str, float]
) -> Iterator[Unlike]:
    """Say if hardly a patient of the cohort has ``value`` or more."""
    counts = cohort.histograms.get(title)
    if counts is None or (patients := sum(counts)) <= 0:
        return
    histogram = HISTOGRAMS[title]
    beyond = counts[int(np.searchsorted(histogram.edges, round(value, 3), side="left")) :]
    doubt = 2 * cohort.deviation * math.sqrt(len(beyond)) / patients
    if doubt > FEWEST:
        return
    share = round(max(0.0, sum(beyond) / patients), 4)
    measured[title] = share
    if share + doubt < FEWEST:
        yield Unlike(
            code=code,
            says=f"The {histogram.title} is {value:.1f} {histogram.unit}: of the patients that the "
            f"model learnt from, {100 * share:.1f} % had as much.",
            value=share,
            limit=FEWEST,
        )


def _named(name: str) -> str:
    return f"{MODALITY_NAMES[name]} ({name})"
