"""Whether a round counts: by the number of sites that answered, and by their share of the weight.

The share is of the total public weight of all sites that approved and are not suspended, whether
they could be reached or not: a round cannot count because others were left out of the sum. A late
update counts with the site's whole weight; that it enters the mean with less is another matter.

Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from common.study.aggregation_options import AggregationOptions

_ROUNDING: Final = 1e-9
"""Of a sum of shares, so that a third of three equal sites is a third."""


class Turnout:
    """Who took part in one attempt at a round, of those that could."""

    def __init__(self, options: AggregationOptions, sites: Iterable[str]) -> None:
        """``sites`` are those that approved and are not suspended."""
        self._options = options
        self._sites = frozenset(sites)
        self._took_part: set[str] = set()

    def add(self, site: str) -> None:
        self._took_part.add(site)

    @property
    def took_part(self) -> list[str]:
        return sorted(self._took_part)

    def met(self) -> bool:
        """Return whether the quorum is there."""
        return self._enough(self._took_part)

    def possible(self, waiting: set[str]) -> bool:
        """Return whether the quorum is there once ``waiting`` have answered."""
        return self._enough(self._took_part | waiting)

    def full(self) -> bool:
        """Return whether the buffer is full, and the round closes without who is missing."""
        buffer = self._options.buffer
        return buffer is not None and len(self._took_part) >= buffer and self.met()

    def shares(self) -> dict[str, Any]:
        """Return the facts about the turnout that a round's end records."""
        return {
            "share_of_sites": round(len(self._took_part) / max(1, len(self._sites)), 6),
            "share_of_weight": round(self._share(self._took_part), 6),
        }

    def missed(self, dropped: Mapping[str, str]) -> str:
        """Return which quorum was missed, and by whom, in words."""
        said = []
        if len(self._took_part) < self._options.quorum:
            said.append(
                f"quorum of {self._options.quorum} missed: {len(self._took_part)} of "
                f"{len(self._sites)} sites took part"
            )
        if not self._heavy(self._took_part):
            said.append(
                f"quorum of {self._options.quorum_weight:g} of the weight missed: the sites that "
                f"took part have {self._share(self._took_part):.3g}"
            )
        missing = sorted(self._sites - self._took_part)
        who = ", ".join(f"{site} ({dropped.get(site, 'no-answer')})" for site in missing)
        return f"{'; '.join(said)}. Missing: {who or 'nobody'}"

    def _enough(self, sites: set[str]) -> bool:
        return len(sites) >= self._options.quorum and self._heavy(sites)

    def _heavy(self, sites: set[str]) -> bool:
        return self._share(sites) >= self._options.quorum_weight - _ROUNDING

    def _share(self, sites: Iterable[str]) -> float:
        whole = math.fsum(self._weight(site) for site in self._sites)
        return math.fsum(self._weight(s) for s in self._sites.intersection(sites)) / (whole or 1.0)

    def _weight(self, site: str) -> float:
        return self._options.weights.get(site, 1.0)
