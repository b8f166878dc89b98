"""What right guesses at canaries prove about epsilon: the statistics of ``client.privacy.audit``.

Canaries are invented patients, each in or out by the toss of a coin. An auditor sees what training
left, guesses at some of them and abstains from the rest; how many guesses it makes must be fixed
before the run. Pure.

Source: Steinke, Nasr, Jagielski 2023, "Privacy auditing with one (1) training run",
arXiv:2305.08846: theorem 5.2 and the code of appendix D.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom


def p_value(*, canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Return a bound on the chance of ``correct`` or more right guesses under (epsilon, delta).

    ``canaries`` were each in with chance 1/2 and ``guesses`` of them were guessed at. Theorem 5.2
    of Steinke, Nasr, Jagielski 2023: right guesses are at most as many as those of randomised
    response, but for a chance that delta allows.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"{correct} right of {guesses} guesses at {canaries} canaries: impossible")
    if epsilon < 0 or not 0 <= delta <= 1:
        raise ValueError(f"({epsilon}, {delta}) is no differential privacy")
    right = 1 / (1 + math.exp(-epsilon))
    bound = float(binom.sf(correct - 1, guesses, right))
    if delta and correct:
        below = np.arange(1, correct + 1)
        # P[correct > W >= correct - i] for i = 1, 2, ..., where W ~ Binomial(guesses, right).
        probabilities = np.cumsum(binom.pmf(correct - below, guesses, right))
        bound += 2 * canaries * delta * float((probabilities / below).max())
    return min(1.0, bound)


def lower_bound(
    *, canaries: int, guesses: int, correct: int, delta: float, confidence: float
) -> float:
    """Return the epsilon below which the guesses are too good for (epsilon, delta), or 0.

    Searches upwards for the first epsilon that cannot be refused, to 1e-6.
    """

    def refused(value: float) -> bool:
        chance = p_value(
            canaries=canaries, guesses=guesses, correct=correct, epsilon=value, delta=delta
        )
        return chance <= 1 - confidence

    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not at {confidence}")
    if not refused(0.0):
        return 0.0
    low, high = 0.0, 0.25
    while refused(high):
        low, high = high, high + 0.25
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if refused(middle) else (low, middle)
    return low


def correct_guesses(scores: NDArray[np.floating], members: NDArray[np.bool_], *, each: int) -> int:
    """Return how many guesses are right: the ``each`` highest scores in, the lowest out."""
    order = np.argsort(scores, kind="stable")
    return int(members[order[len(order) - each :]].sum() + (~members[order[:each]]).sum())
