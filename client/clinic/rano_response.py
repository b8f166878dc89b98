"""What changed against an earlier result, and which RANO 2.0 category the numbers alone suggest.

An aid, never an assessment: RANO compares progression with the smallest and response with the
first measurement, confirms both on a second scan and counts steroids and the patient's state. None
of that is known here; the one earlier result stands for both. Source of the thresholds for products
of diameters: Wen et al. 2023, "RANO 2.0", doi:10.1200/JCO.23.01059. Those for volumes follow from
them for a sphere, whose volume goes with its product to the power of 1.5: of 1.25 that is 1.40, of
0.5 it is 0.354. That volumes should be compared is proposed by Ellingson et al. 2017, "Modified
criteria for radiographic response assessment in glioblastoma clinical trials",
doi:10.1007/s13311-016-0507-6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

Category = Literal["progression", "stable", "partial response", "complete response"]

BIDIMENSIONAL: Final = (-50.0, 25.0)
VOLUMETRIC: Final = (-65.0, 40.0)
"""Per cent: at most the first is a partial response, at least the second is progression."""

Amount = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Before:
    """What the earlier result said; ``lesions`` and the sum are None where it did not measure."""

    folder: str
    case: str
    date: str
    volumes_ml: Mapping[str, float]
    range_ml: Mapping[str, tuple[float, float]]
    lesions: int | None
    of: str | None
    sum_of_products_mm2: float | None
    model_sha256: str


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Changed(_Part):
    """A number then and now; ``percent`` is None where there was none before."""

    before: Amount
    now: Amount
    percent: float | None


class Change(_Part):
    """Against the result in ``prior``, by the folder's name. ``of`` is what the categories are of.

    ``within_ranges`` names the regions whose ranges overlap: their change may be none.
    """

    prior: str
    prior_case: str
    prior_date: str
    same_model: bool
    of: Literal["ET", "WT"]
    volumes_ml: dict[str, Changed]
    within_ranges: tuple[str, ...]
    sum_of_products_mm2: Changed | None
    lesions: tuple[int, int] | None
    volumetric: Category | None
    bidimensional: Category | None


def change(
    before: Before,
    *,
    volumes_ml: Mapping[str, float],
    range_ml: Mapping[str, tuple[float, float]],
    of: str,
    lesions: int,
    sum_of_products_mm2: float,
    model_sha256: str,
) -> Change:
    """Return the change from ``before``; the enhancing tumour counts if there ever was one.

    Sums of products are compared only where both are of one region.
    """
    volumes = {
        name: changed(before.volumes_ml[name], now)
        for name, now in volumes_ml.items()
        if name in before.volumes_ml
    }
    measured: Literal["ET", "WT"] = "ET" if "ET" in (of, before.of) else "WT"
    products: Changed | None = None
    counts: tuple[int, int] | None = None
    if before.sum_of_products_mm2 is not None and before.lesions is not None:
        # Where the other of the two had no enhancing lesion, its sum of enhancing products is 0.
        then = before.sum_of_products_mm2 if before.of == measured else 0.0
        now = sum_of_products_mm2 if of == measured else 0.0
        products = changed(then, now)
        counts = (
            before.lesions if before.of == measured else 0,
            lesions if of == measured else 0,
        )
    return Change(
        prior=before.folder,
        prior_case=before.case,
        prior_date=before.date,
        same_model=before.model_sha256 == model_sha256,
        of=measured,
        volumes_ml=volumes,
        within_ranges=tuple(
            name
            for name, (low, high) in range_ml.items()
            if name in before.range_ml
            and low <= before.range_ml[name][1]
            and before.range_ml[name][0] <= high
        ),
        sum_of_products_mm2=products,
        lesions=counts,
        volumetric=category(volumes[measured], VOLUMETRIC) if measured in volumes else None,
        bidimensional=None
        if products is None
        else category(products, BIDIMENSIONAL, gone=counts is not None and counts[1] == 0),
    )


def changed(before: float, now: float) -> Changed:
    percent = None if before == 0 else round(100 * (now - before) / before, 1)
    return Changed(before=before, now=now, percent=percent)


def category(
    one: Changed, thresholds: tuple[float, float], *, gone: bool = True
) -> Category | None:
    """Return what a change suggests; None where there was nothing before and is nothing now.

    ``gone`` is False where 0 is not nothing: lesions may be there that are not measurable.
    """
    response, progression = thresholds
    if one.before == 0:
        return "progression" if one.now > 0 else None
    if one.now == 0 and gone:
        return "complete response"
    # The exact quotient: what rounds up to a threshold has not reached it.
    percent = 100 * (one.now - one.before) / one.before
    if percent >= progression:
        return "progression"
    return "partial response" if percent <= response else "stable"
