"""What a privacy budget is made of: mechanisms, caps, facts, and the accountant's two questions.

Values only. The ledger that keeps the facts is ``client.privacy.ledger``, which facts touched which
patient is ``client.privacy.patient_exposure``, and the accountant of a site is
``client.privacy.accountant``.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from common.errors import PrivacyError

MOST_STEPS: Final = 2**24
"""No question about steps is answered with a larger number."""

Patients = frozenset[str]
"""Pseudonyms, which the site makes: 32 lower-case hexadecimal characters, a keyed hash each."""

Purpose = Literal["training", "metrics", "statistics"]

_PSEUDONYM: Final = re.compile(r"[0-9a-f]{32}")


def require(holds: bool, what: str) -> None:
    """Raise PrivacyError (code ``privacy-parameters``) that says ``what`` unless ``holds``."""
    if not holds:
        raise PrivacyError(
            f"Privacy parameters are impossible: {what}.",
            do="Correct the protocol or the site's settings.",
            code="privacy-parameters",
        )


def require_patients(patients: Patients) -> None:
    """Raise PrivacyError unless there are patients and each is a pseudonym."""
    require(bool(patients), "there are no patients")
    # The message names none: what is not a pseudonym may be a name.
    require(all(map(_PSEUDONYM.fullmatch, patients)), "a patient is not a pseudonym")


@dataclass(frozen=True)
class Mechanism:
    """One step of the Poisson-sampled Gaussian mechanism; adjacency: add or remove one patient.

    ``noise_multiplier`` is the noise's standard deviation over the clipping norm, and
    ``sampling_rate`` each patient's chance to be drawn.
    """

    noise_multiplier: float
    sampling_rate: float

    def __post_init__(self) -> None:
        require(0 < self.noise_multiplier < math.inf, "noise_multiplier is not above 0")
        require(0 < self.sampling_rate <= 1, "sampling_rate is not above 0 and at most 1")


UNPROTECTED: Final = Mechanism(sys.float_info.min, 1.0)
"""A step without privacy, in the least noise that a ledger can hold: its epsilon is infinite."""


@dataclass(frozen=True)
class Cap:
    """The most that may be spent: ``epsilon`` at ``delta``."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        require(0 <= self.epsilon < math.inf, "epsilon is not at least 0")
        require(0 < self.delta < 1, "delta is not between 0 and 1")


@dataclass(frozen=True)
class Spend:
    """What some facts cost one patient; ``unconfirmed`` of the steps were reserved only."""

    epsilon: float
    delta: float
    steps: int
    unconfirmed: int


@dataclass(frozen=True)
class Fact:
    """One line of the ledger; ``time`` is UTC, ISO 8601, and ``delta`` the study's own.

    ``purpose`` says what the steps were for, and ``cohort`` is the digest of the set of patients
    that they touched.
    """

    id: int
    time: str
    study: str
    protocol: str
    round: int
    purpose: Purpose
    cohort: str
    mechanism: Mechanism
    clipping_norm: float
    delta: float
    steps: int
    code_version: str
    state: Literal["reserved", "confirmed"]


History = Sequence[tuple[Mechanism, int]]
"""Mechanisms and how many steps of each were taken; a mechanism may be listed more than once."""


class Accountant(Protocol):
    """What a history costs. Both answers depend on their arguments alone.

    Composing more never costs less: the ledger asks only for those patients whose history is not
    contained in another's.
    """

    def epsilon(self, history: History, delta: float) -> float:
        """Return an upper bound of epsilon at ``delta``; adjacency: add or remove one patient."""

    def most(self, mechanism: Mechanism, beside: History, cap: Cap) -> int:
        """Return the most steps of ``mechanism`` that fit below ``cap`` beside the steps of
        ``beside``: at most ``MOST_STEPS``, and 0 if none fits."""


class StepPrices:
    """Each step costs the inverse of its noise: the accountant that tests reckon with by hand.

    It bounds nothing. Out of scope: delta and the sampling rate.
    """

    def epsilon(self, history: History, delta: float) -> float:  # noqa: ARG002 - one price
        return sum(steps / mechanism.noise_multiplier for mechanism, steps in history)

    def most(self, mechanism: Mechanism, beside: History, cap: Cap) -> int:
        low, high = 0, MOST_STEPS
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.epsilon([*beside, (mechanism, middle)], cap.delta) <= cap.epsilon
            low, high = (middle, high) if fits else (low, middle - 1)
        return low
