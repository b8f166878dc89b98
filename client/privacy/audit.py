"""An empirical audit of the installed private training: a lower bound on the epsilon it has.

``train_privately`` is run on invented patients, the canaries, each of which is in or out by the
toss of a coin. What they leave in the trained weights is used to guess who was in; the number of
right guesses gives a bound that epsilon exceeds at the stated confidence. A lower bound above what
the ledger would charge proves that the code gives less privacy than the ledger says.

Each canary has a weight of its own: its gradient is so long that the clip must cut it, and lies
along that weight alone. So canaries do not hide each other, and a step that adds ``f`` times the
clipping norm of one patient, or 1/f of the noise, shows as if the noise multiplier were 1/f.

From the same weights the noise and a patient's share are estimated: the weights of the canaries
that were out hold noise alone, those of the canaries that were in their clipped gradients as well.
An estimate says nothing about epsilon, and a fault in noise, clip or rate of a few per cent shows
in it that is far too small for the bound.

Invariants:

- The number of guesses is fixed before the run. Nothing is chosen by its outcome, so that nothing
  needs a correction but the number of trials, which share the allowed error between them.
- Seen from the audit, training is what a study runs: the same function with its own entropy. The
  upper bound is computed from what that function charged, not from what it was told.
- No patient, no ledger and no study is read or changed.

Out of scope: entropy that an attacker knows; the study's network, noise multiplier and sampling
rate: the trials have their own, chosen so that they can tell.

Source: Steinke, Nasr, Jagielski 2023, "Privacy auditing with one (1) training run",
arXiv:2305.08846: theorem 5.2 and the code of appendix D; the canaries that touch one weight each
are from Nasr et al. 2023, "Tight auditing of differentially private machine learning",
arXiv:2302.07956.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.privacy.accountant import epsilon
from client.privacy.audit_bound import correct_guesses, lower_bound
from client.privacy.dp_sgd import CountingCharge, train_privately
from client.privacy.mechanism import Mechanism
from client.privacy.secure_noise import RandomBytes, SystemRandom
from client.site.execution import ExecutionOptions
from common.errors import PrivacyError
from common.study.protocol import PrivacyOptions, TrainingOptions

CONFIDENCE: Final = 0.95
"""That no honest lower bound exceeds the true epsilon, over all trials of an audit together."""

CANARIES: Final = 32_768
"""With so many, all of 2,000 simulated audits of half the noise failed, as they must, the closest
with a bound 6 % above the ledger's epsilon. The honest bound is 46 to 66 % of it."""

LEAST_CANARIES: Final = 8_192
"""With so many, an audit finds half the noise in 99 of 100 cases; with half of them in 76."""

MOST_CANARIES: Final = 2**17

_ERRORS: Final = 5.0
"""Standard errors beyond which an estimate is no chance: four estimates exceed them once in a
million audits."""

_SIDE: Final = 8
_AHEAD: Final = 1e3
"""A canary's gradient is about half of this many clipping norms long."""

AuditProgress = Callable[[str, int, int], None]
"""Told the trial's name, how many canaries were trained on, and about how many there will be."""


@dataclass(frozen=True)
class Estimate:
    """A figure of the training as it was measured, with its standard error."""

    value: float
    error: float
    expected: float

    @property
    def below(self) -> bool:
        """Whether it is smaller than expected, beyond chance."""
        return self.value + _ERRORS * self.error < self.expected

    @property
    def above(self) -> bool:
        """Whether it is larger than expected, beyond chance."""
        return self.value - _ERRORS * self.error > self.expected

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f} (expected {self.expected:g})"


@dataclass(frozen=True)
class Trial:
    """One run of the training with canaries, and what it showed.

    ``lower_bound`` holds with ``confidence``; ``upper_bound`` is the epsilon at ``delta`` that the
    ledger would show for the steps that were charged.
    """

    name: str
    lower_bound: float
    upper_bound: float
    delta: float
    confidence: float
    canaries: int
    guesses: int
    correct: int
    noise_multiplier: float
    sampling_rate: float
    steps: int
    clipping_norm: float
    noise: Estimate
    """Of the noise multiplier: expected is what was charged."""
    share: Estimate
    """Of what a patient adds to a step, on average and in clipping norms: expected is the sampling
    rate that was charged."""

    @property
    def passed(self) -> bool:
        return (
            self.lower_bound <= self.upper_bound and not self.noise.below and not self.share.above
        )


@dataclass(frozen=True)
class AuditResult:
    """All trials of one audit; an honest one passes with chance ``confidence`` or more."""

    trials: tuple[Trial, ...]
    confidence: float
    crops_per_patient: int
    seconds: float

    @property
    def passed(self) -> bool:
        return all(trial.passed for trial in self.trials)


@dataclass(frozen=True)
class _Design:
    """A trial before it is run: ``delta_share`` is delta times canaries, ``error`` its part of
    1 - CONFIDENCE, ``one_in`` says for how many canaries of an audit the trial has one."""

    name: str
    mechanism: Mechanism
    steps: int
    one_in: int
    guessed: float
    """Part of the canaries that is guessed in, and out, each."""
    delta_share: float
    error: float


# Chosen by simulating scores: the first finds a fault of factor 2 with the fewest canaries. The
# second looks for a rate that is not kept, which costs so much that few canaries show it.
_DESIGNS: Final = (
    _Design("noise and clipping", Mechanism(2.0, 1.0), 1, 1, 0.025, 0.5, 0.045),
    _Design("sampling", Mechanism(2.0, 0.1), 4, 8, 0.04, 0.005, 0.005),
)


def audit_privacy(
    *,
    privacy: PrivacyOptions | None = None,
    training: TrainingOptions | None = None,
    canaries: int = CANARIES,
    execution: ExecutionOptions | None = None,
    entropy: RandomBytes | None = None,
    progress: AuditProgress | None = None,
) -> AuditResult:
    """Audit the installed training; see the module's docstring.

    Of ``privacy`` and ``training`` the clipping norm, the crops per patient and the mode are
    taken; noise multiplier, sampling rate, steps, delta, crop size and optimiser are the audit's
    own. ``execution`` says how to compute, as for a study. ``entropy`` is for tests alone:
    without it canaries and training each draw from the operating system's.

    It takes about a second per thousand canaries on one core. Raises PrivacyError (code
    ``privacy-audit``) for a number of canaries that cannot tell or is too large, and for a
    training that leaves numbers that are not finite.
    """
    if not LEAST_CANARIES <= canaries <= MOST_CANARIES:
        raise PrivacyError(
            f"An audit with {canaries:,} canaries cannot tell right from wrong or takes too long.",
            do=f"Choose {LEAST_CANARIES:,} to {MOST_CANARIES:,}; {CANARIES:,} is a good number.",
            code="privacy-audit",
        )
    privacy = privacy or PrivacyOptions()
    training = training or TrainingOptions(local_steps=1, learning_rate=1.0)
    execution = execution or ExecutionOptions(prefetch=0)
    began = time.monotonic()
    trials = tuple(
        _try(
            design,
            privacy=privacy,
            training=training,
            canaries=canaries // design.one_in,
            execution=execution,
            entropy=entropy,
            progress=progress,
        )
        for design in _DESIGNS
    )
    return AuditResult(trials, CONFIDENCE, training.crops_per_patient, time.monotonic() - began)


def check(result: AuditResult) -> None:
    """Raise PrivacyError (code ``privacy-audit``) if the audit did not pass."""
    failed = [trial for trial in result.trials if not trial.passed]
    if failed:
        found = "; ".join(
            f"{trial.name}: epsilon is at least {trial.lower_bound:.2f}, "
            f"the ledger would show {trial.upper_bound:.2f}; noise multiplier {trial.noise}; "
            f"a patient's share of a step {trial.share}"
            for trial in failed
        )
        raise PrivacyError(
            f"The installed training gives less privacy than the ledger says ({found}).",
            do="Stop all training here and tell the coordinator. Reinstall gliofed from a release "
            "whose checksum you compared, and audit again. Chance alone causes this in at most "
            f"{1 - result.confidence:.0%} of audits: a second failure is certain enough.",
            code="privacy-audit",
        )


def _try(
    design: _Design,
    *,
    privacy: PrivacyOptions,
    training: TrainingOptions,
    canaries: int,
    execution: ExecutionOptions,
    entropy: RandomBytes | None,
    progress: AuditProgress | None,
) -> Trial:
    source = entropy or SystemRandom()
    # The coins do not pass through the code that is audited.
    coins = np.unpackbits(np.frombuffer(source((canaries + 7) // 8), np.uint8))
    members = coins[:canaries].astype(bool)
    charge = CountingCharge()
    network = _CanaryNetwork(canaries, gain=_AHEAD * privacy.clipping_norm)
    mechanism, told = design.mechanism, _Count(design, int(members.sum()), progress)
    result = train_privately(
        network,
        [[_Canary(int(place), told)] for place in np.flatnonzero(members)],
        # One plain step along the sum, so that the update is the sum: Adam would show its sign.
        training.model_copy(
            update={
                "local_steps": design.steps,
                "crop_size": (_SIDE, _SIDE, _SIDE),
                "augmentation": "none",
                "optimizer": "sgd",
                "learning_rate": 1.0,
                "momentum": 0.0,
                "trainable": ("all",),
            }
        ),
        privacy.model_copy(
            update={
                "noise_multiplier": mechanism.noise_multiplier,
                "sampling_rate": mechanism.sampling_rate,
                "nominal_patients": 1,
            }
        ),
        charge,
        execution=execution,
        entropy=entropy,
    )
    scores = -result.update["weights"].astype(np.float64)
    if not np.isfinite(scores).all():
        raise PrivacyError(
            "The audited training gave numbers that are not finite.",
            do="Audit with the clipping norm of a real study, then reinstall gliofed.",
            code="privacy-audit",
        )
    charged = Counter(paid for paid, _ in charge.reserved)
    noise, share = _estimates(
        scores,
        members,
        scale=mechanism.sampling_rate / privacy.clipping_norm,
        steps=design.steps,
        charged=charged.most_common(1)[0][0],
    )
    each, delta = round(design.guessed * canaries), design.delta_share / canaries
    correct = correct_guesses(scores, members, each=each)
    return Trial(
        name=design.name,
        lower_bound=lower_bound(
            canaries=canaries,
            guesses=2 * each,
            correct=correct,
            delta=delta,
            confidence=1 - design.error,
        ),
        upper_bound=epsilon(list(charged.items()), delta),
        delta=delta,
        confidence=1 - design.error,
        canaries=canaries,
        guesses=2 * each,
        correct=correct,
        noise_multiplier=mechanism.noise_multiplier,
        sampling_rate=mechanism.sampling_rate,
        steps=design.steps,
        clipping_norm=privacy.clipping_norm,
        noise=noise,
        share=share,
    )


def _estimates(
    scores: NDArray[np.float64],
    members: NDArray[np.bool_],
    *,
    scale: float,
    steps: int,
    charged: Mechanism,
) -> tuple[Estimate, Estimate]:
    """Return the noise multiplier and a patient's share of a step, as ``scores`` show them.

    ``scale`` makes the scores sums over the steps in clipping norms.
    """
    inside, outside = scores[members] * scale, scores[~members] * scale
    noise = float(outside.std(ddof=1)) / math.sqrt(steps)
    share = float(inside.mean() - outside.mean()) / steps
    spread = math.sqrt(inside.var(ddof=1) / len(inside) + outside.var(ddof=1) / len(outside))
    return (
        Estimate(noise, noise / math.sqrt(2 * (len(outside) - 1)), charged.noise_multiplier),
        Estimate(share, spread / steps, charged.sampling_rate),
    )


class _CanaryNetwork(torch.nn.Module):
    """Answers 0 everywhere, with a gradient of ``gain`` at the weight that the image names."""

    def __init__(self, canaries: int, *, gain: float) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(canaries))
        self._gain = gain

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        named = self.weights[images[:, 0, 0, 0, 0].long()]
        # The answer stays 0 however the weights move: a sigmoid far from 0 has no gradient.
        answer = self._gain * (named - named.detach())
        return answer.reshape(-1, 1, 1, 1, 1).expand(-1, 3, *images.shape[2:])


class _Count:
    """Counts loaded canaries for ``progress``."""

    def __init__(self, design: _Design, members: int, progress: AuditProgress | None) -> None:
        self._name, self._progress = design.name, progress
        self._total = max(1, round(members * design.mechanism.sampling_rate * design.steps))
        self._done = 0

    def __call__(self) -> None:
        self._done += 1
        if self._progress is not None and (self._done % 256 == 0 or self._done == self._total):
            self._progress(self._name, min(self._done, self._total), self._total)


@dataclass(frozen=True)
class _CanaryScan:
    """A scan whose every voxel is the canary's number, exact in float32; no voxel is tumour."""

    image: NDArray[np.float32]
    labels: NDArray[np.uint8] | None


@dataclass(frozen=True)
class _Canary:
    """Loads the one scan of a canary."""

    number: int
    told: _Count

    def __call__(self) -> _CanaryScan:
        self.told()
        return _CanaryScan(
            np.full((4, _SIDE, _SIDE, _SIDE), self.number, np.float32),
            np.zeros((_SIDE, _SIDE, _SIDE), np.uint8),
        )
