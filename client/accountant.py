"""Epsilon of what the ledger holds: the one door to the accountants of Opacus.

The answer is an upper bound for Poisson-sampled Gaussian mechanisms and the adjacency "add or
remove one patient". Importing Opacus takes seconds, so it is done at the first question.

Source: Mironov, Talwar, Zhang 2019, "Rényi Differential Privacy of the Sampled Gaussian
Mechanism", arXiv:1908.10530; conversion to (epsilon, delta) by Balle et al. 2020,
arXiv:1905.09982, as Opacus' ``RDPAccountant`` does it.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import PrivacyError
from common.privacy import Mechanism

_ORDERS: Final = (
    *(1 + x / 10 for x in range(1, 100)),
    *range(12, 64),
    *(64, 80, 96, 128, 192, 256, 512, 1024),
)
"""Opacus' own orders and larger ones, which serve small epsilon. More orders never loosen."""

_ROUNDING: Final = 1e-13
"""Added to each step: where the divergence is below the rounding of its logarithms, 0 comes out."""


def epsilon(history: Sequence[tuple[Mechanism, int]], delta: float) -> float:
    """Return the epsilon at ``delta`` of composing each mechanism as often as it was used.

    Equal mechanisms may be listed more than once. Raises PrivacyError (code
    ``privacy-parameters``) for a delta or a count that is impossible.
    """
    if not 0 < delta < 1 or any(steps < 0 for _, steps in history):
        raise PrivacyError(
            "Epsilon is defined for delta between 0 and 1 and counts from 0.",
            do="Correct the protocol or the site's settings.",
            code="privacy-parameters",
        )
    total = np.zeros(len(_ORDERS))
    for mechanism, steps in history:
        if steps:
            total = total + steps * _renyi(mechanism)
    if not any(steps for _, steps in history):
        return 0.0
    from opacus.accountants.analysis.rdp import get_privacy_spent

    with warnings.catch_warnings():
        # Nothing to do about it: at the edge the bound is looser, and still a bound.
        warnings.filterwarnings("ignore", "Optimal order is the (smallest|largest) alpha")
        bound = float(get_privacy_spent(orders=_ORDERS, rdp=total, delta=delta)[0])
    return math.inf if math.isnan(bound) else max(0.0, bound)


@functools.lru_cache(maxsize=256)
def _renyi(mechanism: Mechanism) -> NDArray[np.float64]:
    """Return the Rényi divergence of one step at each order."""
    from opacus.accountants.analysis.rdp import compute_rdp

    with np.errstate(over="ignore", invalid="ignore"):
        bound = compute_rdp(
            q=mechanism.sampling_rate,
            noise_multiplier=mechanism.noise_multiplier,
            steps=1,
            orders=_ORDERS,
        )
    values = np.asarray(bound, np.float64)
    return np.where(np.isnan(values), np.inf, np.maximum(values, 0.0) + _ROUNDING)
