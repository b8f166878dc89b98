"""How alike a study treats its sites, and how alike the sites behave: figures from the journal.

Two views. *Spread*: of each region's Dice over the sites, the worst site and how far apart they
are; a mean alone would hide the hospital that the model fails. *Conduct*: of each site, the rounds
that it took part in, and how its updates compare with the others'. The journal keeps no update,
only its norm, digest and, where recorded, its cosine with the change of the round before: a figure
here is a reason to ask a site, never a proof. Under differential privacy most of an update's
norm is noise: ratios then lie near 1 whatever the site does, and cosines near 0.

Pure functions over plain numbers. Out of scope: reading the journal
(``server.reporting.study_report``), what a robust rule does about an odd update
(``server.aggregation``).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from common.regions import REGIONS

LENGTH_FACTOR: Final = 3.0
"""A site whose updates are so many times longer or shorter than its round's median is named."""

AGAINST: Final = -0.1
"""A site whose updates point, on average, further than this against the common change is named."""


@dataclass(frozen=True)
class Spread:
    """One region's Dice over the sites that reported it after one round."""

    sites: int
    mean: float
    worst_site: str
    worst: float
    best_site: str
    best: float
    spread: float
    """Best minus worst."""
    standard_deviation: float
    """Of these sites, which are all there are, not a sample: divided by their number."""


@dataclass(frozen=True)
class Reply:
    """What the journal holds of one accepted update."""

    weight: float
    norm: float
    digest: str
    cosine: float | None = None
    """With the change of the global weights in the round before; None if not recorded."""


@dataclass(frozen=True)
class Attempt:
    """Who was ordered in one attempt at a round and who answered with an update that was used."""

    number: int
    """Of the round."""
    closed: bool
    ordered: frozenset[str]
    replies: Mapping[str, Reply] = field(default_factory=dict)


@dataclass(frozen=True)
class Conduct:
    """One site over the attempts at all rounds; None where the journal holds too little."""

    ordered: int
    answered: int
    share: float | None
    """Answered of ordered."""
    contribution: float | None
    """Mean over the closed rounds of its weight times norm over that of all, 0 where absent: how
    much of what was averaged came from it. A robust rule may have used less of it."""
    norm_ratio: float | None
    """Median over closed rounds of its norm over the round's median norm."""
    drift: float | None
    """1 minus the mean cosine: 0 is along the common change, 1 across, 2 against."""
    repeated: int
    """Rounds whose update equals, to the last bit, one of another round or of another site."""
    remarks: tuple[str, ...]


def spreads(dice: Mapping[str, Mapping[str, float]]) -> dict[str, Spread]:
    """Return the spread of each region that a site reported; ``dice`` maps site, then region."""
    found = {}
    for region in REGIONS:
        scores = {site: said[region] for site, said in sorted(dice.items()) if region in said}
        if scores:
            worst = min(scores, key=lambda site: scores[site])
            best = max(scores, key=lambda site: scores[site])
            found[region] = Spread(
                sites=len(scores),
                mean=statistics.fmean(scores.values()),
                worst_site=worst,
                worst=scores[worst],
                best_site=best,
                best=scores[best],
                spread=scores[best] - scores[worst],
                standard_deviation=statistics.pstdev(scores.values()),
            )
    return found


def conducts(attempts: Sequence[Attempt], sites: Sequence[str]) -> dict[str, Conduct]:
    """Return the conduct of each of ``sites`` over ``attempts``."""
    # A round that is tried again is answered with the same update: that is not a repetition.
    given = {(one.number, s, r.digest) for one in attempts for s, r in one.replies.items()}
    seen = Counter(digest for _, _, digest in given)
    closed = [one for one in attempts if one.closed]
    medians = [_median([reply.norm for reply in one.replies.values()]) for one in closed]
    pulls = [
        math.fsum(reply.weight * reply.norm for reply in one.replies.values()) for one in closed
    ]
    return {site: _conduct(site, attempts, closed, medians, pulls, seen) for site in sites}


def _conduct(
    site: str,
    attempts: Sequence[Attempt],
    closed: Sequence[Attempt],
    medians: Sequence[float | None],
    pulls: Sequence[float],
    seen: Mapping[str, int],
) -> Conduct:
    ordered = sum(site in one.ordered for one in attempts)
    answered = sum(site in one.replies for one in attempts)
    given = [
        (one.replies[site], median, pull)
        for one, median, pull in zip(closed, medians, pulls, strict=True)
        if site in one.replies
    ]
    ratio = _median([reply.norm / median for reply, median, _ in given if median])
    cosines = [reply.cosine for reply, _, _ in given if reply.cosine is not None]
    repeated = len(
        {
            one.number
            for one in attempts
            if site in one.replies and seen[one.replies[site].digest] > 1
        }
    )
    return Conduct(
        ordered=ordered,
        answered=answered,
        share=answered / ordered if ordered else None,
        contribution=math.fsum(r.weight * r.norm / pull for r, _, pull in given if pull)
        / len(closed)
        if closed
        else None,
        norm_ratio=ratio,
        drift=1 - statistics.fmean(cosines) if cosines else None,
        repeated=repeated,
        remarks=_remarks(ratio, cosines, repeated),
    )


def _remarks(ratio: float | None, cosines: Sequence[float], repeated: int) -> tuple[str, ...]:
    said = []
    if ratio is not None and ratio > LENGTH_FACTOR:
        said.append(f"its updates are {ratio:.1f} times as long as the median site's")
    if ratio is not None and ratio * LENGTH_FACTOR < 1:
        said.append(f"its updates are {ratio:.2g} times as long as the median site's")
    if cosines and statistics.fmean(cosines) < AGAINST:
        mean = statistics.fmean(cosines)
        said.append(f"its updates point against the common change (mean cosine {mean:.2f})")
    if repeated:
        said.append(f"in {repeated} rounds its update equals another one to the last bit")
    return tuple(said)


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
