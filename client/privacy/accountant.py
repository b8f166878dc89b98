"""What the facts of the ledger cost: the one door to the accountants of Opacus and Google.

Each step is a Poisson-sampled Gaussian mechanism (``client.privacy.mechanism.Mechanism``), the
adjacency is "add or remove one patient". Three answers are computed by three ways that share no
code:

- ``renyi_epsilon``: upper bound by Rényi divergences (Opacus). Fast, 7 to 15 % loose.
- ``distribution_epsilon``: upper bound by privacy loss distributions (dp_accounting), rounded so
  that each error is on the safe side ("connect the dots", both directions of the adjacency).
- ``attack_epsilon``: lower bound, what a known attack reaches.

``epsilon`` returns the smaller upper bound, and raises PrivacyError (code
``privacy-accountants``) unless lower bound <= distributions <= Rényi: until that is understood
nothing is trained. Of 900 histories of one to three mechanisms (noise multiplier 0.25 to 3,000,
sampling rate 1e-6 to 1, delta 1e-9 to 0.9) none passed a bound at all. What is tolerated is what
the grid of the distributions may add, which is on the safe side, and rounding.

Out of scope: parameters that are chosen after earlier outputs were seen. The bounds are proven
for parameters fixed beforehand, and each study's are: the signed protocol holds them, and a later
change is another protocol. Over several studies, whose protocols may be written after another
study's model was seen, a cap on composed facts is a privacy filter: proven without loss for the
Rényi sums (Feldman & Zrnic 2021), for privacy loss distributions not in general (Whitehouse et
al. 2023 give the fully adaptive bound for epsilon and delta).

Importing the libraries takes seconds, so it is done at the first question that no memory answers.

Sources: Mironov, Talwar, Zhang 2019, "Rényi Differential Privacy of the Sampled Gaussian
Mechanism", arXiv:1908.10530; conversion by Balle et al. 2020, arXiv:1905.09982; Doroshenko et al.
2022, "Connect the Dots", arXiv:2207.04380; Feldman & Zrnic 2021, "Individual Privacy Accounting
via a Rényi Filter", arXiv:2008.11193; Whitehouse et al. 2023, "Fully Adaptive Composition in
Differential Privacy", arXiv:2203.05481.
"""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from client.privacy.accounting_cache import Answers
from client.privacy.mechanism import MOST_STEPS, UNPROTECTED, Cap, History, Mechanism, require
from common.errors import PrivacyError

if TYPE_CHECKING:  # imported where it is used: to look up a known answer takes no library
    import numpy as np
    from numpy.typing import NDArray

_METHOD: Final = 1
"""Raised whenever this module computes another number for the same question."""

_ORDERS: Final = (
    *(1 + x / 10 for x in range(1, 100)),
    *range(12, 64),
    *(64, 80, 96, 128, 192, 256, 512, 1024),
)
"""Opacus' own orders and larger ones, which serve small epsilon. More orders never loosen."""

_ROUNDING: Final = 1e-13
"""Added to each step: where the divergence is below the rounding of its logarithms, 0 comes out."""

_TOLERANCE: Final = 1e-6
"""By how much, relative and absolute, bounds may cross: rounding, not approximation."""

_LARGEST: Final = 500.0
"""Above this Rényi bound no guarantee is left to compute precisely: it is the answer."""
_HELD_BACK: Final = 1e-3
"""This part of delta is held back from the distributions, for what rounding does to their masses.
It may take away no more than that, and add no more than this part of everything."""
_MISPLACED: Final = 1e-16
"""The Fourier transforms took 3e-17 of mass a step out of the tail, up to 100,000 steps."""
_SMALLEST_DELTA: Final = 1e-9
"""Where less is asked for the Rényi bound answers."""

_RESOLUTION: Final = 1 / 50
"""Grid step over the standard deviation of one step's loss: the variance grows by 1e-4 at most."""
_MOST_POINTS: Final = 2**17
"""Of one step's distribution; with fewer than asked for the bound is looser, and still a bound."""
_FINEST: Final = 2.0**-20
"""Finer grids would show the rounding of the masses; 2**17 steps on this one add 0.0002."""
_MOST_COMPOSED: Final = 2**17
"""Of more steps the distribution takes gigabytes, and the rounding of its masses shows."""


class PldAccountant:
    """The site's accountant: ``epsilon``, and how many steps fit, both remembered.

    ``cache`` is a file for the answers, which any number of processes may share.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache

    @functools.cached_property
    def _answers(self) -> Answers:
        made = (f"{name} {version(name)}" for name in ("dp-accounting", "opacus", "numpy", "scipy"))
        return Answers(self._cache, maker=", ".join((f"method {_METHOD}", *made)))

    def epsilon(self, history: History, delta: float) -> float:
        """Return ``epsilon`` of this module."""
        merged = merge(history, delta)
        if _unprotected(merged):
            return math.inf
        question = json.dumps(["epsilon", _plain(merged), delta])
        known = self._answers.get(question)
        if known is None:
            known = epsilon(merged, delta)
            self._answers.put(question, known)
        return known

    def most(self, mechanism: Mechanism, beside: History, cap: Cap) -> int:
        """Return the most steps of ``mechanism`` that fit below ``cap`` beside ``beside``."""
        others = merge(beside, cap.delta)
        if _unprotected([*others, (mechanism, 1)]):
            return 0
        question = json.dumps(["most", astuple(mechanism), _plain(others), cap.epsilon, cap.delta])
        known = self._answers.get(question)
        if known is None:
            known = most_steps(mechanism, others, cap)
            self._answers.put(question, known)
        return int(known)


def most_steps(mechanism: Mechanism, beside: History, cap: Cap) -> int:
    """Return the largest count, at most ``MOST_STEPS``, whose ``epsilon`` is below ``cap``.

    What the Rényi bound allows fits without a look at the distributions; from there on epsilon
    grows about as a power of the count, so few of them are computed.
    """

    def cost(steps: int) -> float:
        return epsilon([*beside, (mechanism, steps)], cap.delta)

    def renyi_allows(steps: int) -> bool:
        return renyi_epsilon([*beside, (mechanism, steps)], cap.delta) <= cap.epsilon

    low = 0
    for power in reversed(range(MOST_STEPS.bit_length())):
        if low + 2**power <= MOST_STEPS and renyi_allows(low + 2**power):
            low += 2**power
    if low == MOST_STEPS:
        return low
    # From here on: ``low`` fits, or is 0, and ``high`` does not.
    low_cost, high, high_cost = cost(low), MOST_STEPS + 1, math.inf
    tries = 0
    while high - low > 1:
        tries += 1
        guess = _between(low, low_cost, high, high_cost, cap.epsilon)
        if tries % 4 == 0 and high <= MOST_STEPS:
            guess = (low + high) // 2  # the cost jumps: where one bound takes over, say
        guess = min(max(guess, low + 1), high - 1)
        found = cost(guess)
        if found <= cap.epsilon:
            low, low_cost = guess, found
        else:
            high, high_cost = guess, found
    return low


def _between(low: int, low_cost: float, high: int, high_cost: float, wanted: float) -> int:
    """Return about where a cost that grows as a power of the count reaches ``wanted``."""
    if low == 0 or not 0 < low_cost <= wanted:
        return 2 * low + 1
    if high_cost == math.inf:
        return 1 + int(1.02 * low * (wanted / low_cost) ** 1.6)
    power = math.log(high / low) / math.log(high_cost / low_cost)
    return int(low * (wanted / low_cost) ** power)


def epsilon(history: History, delta: float) -> float:
    """Return the epsilon at ``delta`` of composing each mechanism as often as it was used.

    Equal mechanisms may be listed more than once. The answer is at least 0, may be infinite, and
    is never NaN. Raises PrivacyError: code ``privacy-parameters`` for a delta or a count that is
    impossible, ``privacy-accountants`` when the bounds contradict each other.
    """
    merged = merge(history, delta)
    if not merged:
        return 0.0
    if _unprotected(merged):
        return math.inf
    renyi = renyi_epsilon(merged, delta)
    if renyi > _LARGEST or _steps(merged) > _MOST_COMPOSED:
        return renyi
    tight = distribution_epsilon(merged, delta)
    reached = attack_epsilon(merged, delta)
    # A NaN makes a comparison false: it contradicts, too.
    above = tight == math.inf or tight <= _loosened(renyi) + _grid_error(merged)
    if not (above and reached <= _loosened(min(tight, renyi))):
        listed = ", ".join(f"{steps} of {astuple(mechanism)}" for mechanism, steps in merged)
        raise PrivacyError(
            "The privacy accountants of this site contradict each other.",
            do=f"Report this to the developers: steps {listed} at delta {delta:g}, distributions "
            f"{tight!r}, Rényi {renyi!r}, attack {reached!r}. Until then no patient is trained on.",
            code="privacy-accountants",
        )
    return min(tight, renyi)


def _unprotected(history: History) -> bool:
    return any(mechanism == UNPROTECTED and steps for mechanism, steps in history)


def merge(history: History, delta: float) -> tuple[tuple[Mechanism, int], ...]:
    """Return the history with each mechanism once, in one order; raise PrivacyError."""
    require(0 < delta < 1, "delta is not between 0 and 1")
    require(all(steps >= 0 for _, steps in history), "a count of steps is below 0")
    steps = Counter[Mechanism]()
    for mechanism, count in history:
        steps[mechanism] += count
    return tuple(sorted((+steps).items(), key=lambda item: astuple(item[0])))


def renyi_epsilon(history: History, delta: float) -> float:
    """Return Opacus' upper bound, as its ``RDPAccountant`` computes it."""
    merged = merge(history, delta)
    if not merged:
        return 0.0
    import numpy as np
    from opacus.accountants.analysis.rdp import get_privacy_spent

    total = np.zeros(len(_ORDERS))
    for mechanism, steps in merged:
        total = total + steps * _renyi(mechanism)
    with warnings.catch_warnings():
        # Nothing to do about it: at the edge the bound is looser, and still a bound.
        warnings.filterwarnings("ignore", "Optimal order is the (smallest|largest) alpha")
        bound = float(get_privacy_spent(orders=_ORDERS, rdp=total, delta=delta)[0])
    return math.inf if math.isnan(bound) else max(0.0, bound)


def distribution_epsilon(history: History, delta: float) -> float:
    """Return dp_accounting's upper bound by privacy loss distributions.

    It is infinite where the rounding of its masses could be seen.
    """
    merged = merge(history, delta)
    if not merged:
        return 0.0
    held_back = _HELD_BACK * delta
    if delta < _SMALLEST_DELTA or _steps(merged) * _MISPLACED > held_back:
        return math.inf
    import numpy as np

    step = _grid_step(merged)
    with np.errstate(all="ignore"):  # logarithms of masses that are 0; their NaN would be seen
        total = functools.reduce(
            lambda one, other: one.compose(other),
            (_composed(mechanism, steps, step) for mechanism, steps in merged),
        )
        if not 1 - held_back <= total.get_delta_for_epsilon(-math.inf) <= 1 + _HELD_BACK:
            return math.inf
        bound = total.get_epsilon_for_delta(delta - held_back)
    return max(0.0, float(bound))


def attack_epsilon(history: History, delta: float) -> float:
    """Return a lower bound: no smaller epsilon at ``delta`` is true.

    The attacker knows everything but whether one patient took part, whose clipped gradient points
    the same way in each of the k steps, and adds up the outputs along it: N(0, k sigma^2) without
    the patient, N(B, k sigma^2) with, where B is how often the patient was drawn, Binomial(k, q).
    Any threshold t on the sum gives log((P[with > t] - delta) / P[without > t]). Of several
    mechanisms the attacker looks at the one that tells most.
    """
    return max((_attack(*item, delta) for item in merge(history, delta)), default=0.0)


@functools.lru_cache(maxsize=256)
def _renyi(mechanism: Mechanism) -> NDArray[np.float64]:
    """Return the Rényi divergence of one step at each order."""
    import numpy as np
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


def _attack(mechanism: Mechanism, steps: int, delta: float) -> float:
    import numpy as np
    from scipy.special import bdtr, log_ndtr, ndtr

    rate = mechanism.sampling_rate
    deviation = mechanism.noise_multiplier * math.sqrt(steps)
    wide = 12 * math.sqrt(steps * rate * (1 - rate)) + 32 * (rate < 1)
    ends = max(0.0, steps * rate - wide), min(float(steps), steps * rate + wide)
    # Being drawn more often only shifts the sum: rounding down to one of these stays below.
    drawn = np.unique(np.floor(np.linspace(*ends, 257)))
    at_least = 1 - bdtr(np.maximum(drawn - 1, 0), steps, rate)
    at_least[drawn == 0] = 1.0
    probabilities = at_least - np.append(at_least[1:], 0.0)
    limits = np.linspace(-8 * deviation, ends[1] + 8 * deviation, 193)
    present = ndtr((drawn - limits[:, None]) / deviation) @ probabilities
    told = present > delta
    found = np.log(present[told] - delta) - log_ndtr(-limits[told] / deviation)
    return max(0.0, float(found.max(initial=0.0)))


def _grid_step(merged: Sequence[tuple[Mechanism, int]]) -> float:
    """Return the distance of the losses that distributions are rounded to, a power of two.

    Connecting the dots adds at most a quarter of its square to the variance of each step's loss.
    For one mechanism it does not depend on the number of steps: more steps never look cheaper.
    """
    variance = sum(n * _variance(mechanism) for mechanism, n in merged) / _steps(merged)
    widest = max(_width(mechanism) for mechanism, _ in merged)
    step = max(_RESOLUTION * math.sqrt(variance), widest / _MOST_POINTS, _FINEST)
    return 2.0 ** math.floor(math.log2(step))


def _grid_error(merged: Sequence[tuple[Mechanism, int]]) -> float:
    """Return twice the standard deviation that the grid may add to the loss of all steps."""
    return _grid_step(merged) * math.sqrt(_steps(merged))


def _variance(mechanism: Mechanism) -> float:
    """Return about the variance of one step's privacy loss."""
    plain = mechanism.noise_multiplier**-2
    if mechanism.sampling_rate == 1:
        return plain
    return min(plain, mechanism.sampling_rate**2 * math.expm1(min(plain, 700.0)))


def _width(mechanism: Mechanism) -> float:
    """Return the distance of the largest loss, at ten standard deviations, and the smallest."""
    largest = (0.5 + 10 * mechanism.noise_multiplier) / mechanism.noise_multiplier**2
    rate = mechanism.sampling_rate
    if rate == 1:
        return 2 * largest
    kept = math.log1p(-rate)
    drawn = math.log(rate) + largest
    return max(kept, drawn) + math.log1p(math.exp(-abs(kept - drawn))) - kept


@functools.lru_cache(maxsize=16)
def _one_step(mechanism: Mechanism, grid_step: float) -> Any:
    """Return the privacy loss distribution of one step, for adding and for removing a patient."""
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        mechanism.noise_multiplier,
        sampling_prob=mechanism.sampling_rate,
        value_discretization_interval=grid_step,
        pessimistic_estimate=True,
        use_connect_dots=True,
    )


@functools.lru_cache(maxsize=16)
def _composed(mechanism: Mechanism, steps: int, grid_step: float) -> Any:
    return _one_step(mechanism, grid_step).self_compose(steps)


def _plain(merged: Sequence[tuple[Mechanism, int]]) -> list[tuple[Any, ...]]:
    return [(*astuple(mechanism), steps) for mechanism, steps in merged]


def _steps(merged: Sequence[tuple[Mechanism, int]]) -> int:
    return sum(steps for _, steps in merged)


def _loosened(bound: float) -> float:
    return bound * (1 + _TOLERANCE) + _TOLERANCE
