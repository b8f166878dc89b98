"""Training under patient-level differential privacy (DP-SGD), exact on any network.

One step: every patient is drawn with chance ``sampling_rate``; each drawn patient gives one
gradient (``client.training.loop``), which is clipped to the norm C = ``clipping_norm``
(``client.privacy.clipping``); Gaussian noise
of standard deviation ``noise_multiplier`` * C is added to the sum; the sum is divided by the
public constant ``sampling_rate * nominal_patients``; the optimiser follows it, with what the site
adds (``client.training.drift_correction``).

Invariants:

- The step is charged before a patient is looked at, with the mechanism that is then used. An
  empty draw is a step: it adds its noise and is charged.
- Adding or removing one patient moves the sum by at most C, whatever the patient's images hold: an
  unreadable scan or a gradient that is not finite counts as zero, and no step is ever skipped.
- Draws, noise and crops come from the operating system's entropy, or the result says that it is
  not safe. Gradients and noise are whole multiples of one grid and their sum is exact:
  ``client.privacy.secure_noise`` says why that matters and what remains.
- Parameters that stay at the site (``local``) are clipped and noised with the others.
- Sampling, clip, noise and optimiser are in one place, however many devices compute gradients.

Out of scope: the caps (``client.privacy.ledger``), what a failure or a duration tells about the
patients.

Source: Abadi et al. 2016, "Deep learning with differential privacy", arXiv:1607.00133; several
crops of one patient share a clip as in De et al. 2022, arXiv:2204.13650.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import torch

from client.networks.cpu_threads import pool
from client.privacy.clipping import Clip, clipper
from client.privacy.ledger import Ledger
from client.privacy.mechanism import Cap, Mechanism
from client.privacy.secure_noise import (
    RandomBytes,
    SystemRandom,
    check_exact,
    grid,
    noise,
    uniforms,
)
from client.site.execution import ExecutionOptions, computing
from client.training.crops import Patient
from client.training.drift_correction import NO_TERMS, Terms
from client.training.loop import (
    BeforeStep,
    Learner,
    Progress,
    TrainingResult,
    contributions,
    drawing,
)
from client.training.lr_schedule import Place
from common.errors import PrivacyError
from common.messages.low_rank import Subspace
from common.study.protocol import PrivacyOptions, TrainingOptions

_LOG = logging.getLogger(__name__)

_BLOCK: Final = 2**16
"""Numbers at a time: what they need stays in the processor's cache."""


class Charge(Protocol):
    """Pays for steps. An in-memory double is ``CountingCharge``."""

    def __call__(
        self, mechanism: Mechanism, *, clipping_norm: float
    ) -> AbstractContextManager[None]:
        """Reserve one step on entry and confirm it on exit.

        Raises PrivacyError on entry when the budget does not allow the step, which is then not
        taken.
        """


@dataclass(frozen=True)
class LedgerCharge:
    """Charges each step to the hospital's ledger, to everybody who might be drawn.

    ``patients`` are the pseudonyms of all patients of the training, drawn or not.
    """

    ledger: Ledger
    study: str
    protocol: str
    round_number: int
    patients: frozenset[str]
    study_cap: Cap
    patient_cap: Cap

    @contextlib.contextmanager
    def __call__(self, mechanism: Mechanism, *, clipping_norm: float) -> Iterator[None]:
        number = self.ledger.reserve(
            study=self.study,
            protocol=self.protocol,
            round_number=self.round_number,
            purpose="training",
            patients=self.patients,
            mechanism=mechanism,
            clipping_norm=clipping_norm,
            steps=1,
            study_cap=self.study_cap,
            patient_cap=self.patient_cap,
        )
        yield
        self.ledger.confirm(number)


@dataclass
class CountingCharge:
    """Notes mechanism and clipping norm of each step in memory and refuses those above ``most``."""

    most: int = 1_000_000
    reserved: list[tuple[Mechanism, float]] = field(default_factory=list)
    confirmed: int = 0

    @contextlib.contextmanager
    def __call__(self, mechanism: Mechanism, *, clipping_norm: float) -> Iterator[None]:
        if len(self.reserved) >= self.most:
            raise PrivacyError(f"All {self.most} steps are spent.", code="privacy-cap")
        self.reserved.append((mechanism, clipping_norm))
        yield
        self.confirmed += 1


def sample(entropy: RandomBytes, count: int, *, rate: float) -> list[int]:
    """Return the places of those of ``count`` patients who are drawn: Poisson sampling.

    Each is drawn with chance ``rate``, to 2**-53, whatever becomes of the others.
    """
    return [int(place) for place in np.flatnonzero(uniforms(entropy, count) < rate)]


def clipped_sum(
    gradients: Iterable[torch.Tensor | None],
    zero: torch.Tensor,
    *,
    clipping_norm: float,
    clip: Clip | None = None,
) -> tuple[torch.Tensor, int]:
    """Return the sum of the clipped gradients on the grid, and how many of them were None.

    ``clip`` makes each no longer than ``clipping_norm``; by default it is the flat one.

    Clipped gradients are cut towards zero, to whole multiples of ``grid(clipping_norm)``, which
    never makes them longer. The sum is exact: the order does not matter.

    Raises PrivacyError (code ``privacy-exact``) where it would not be.
    """
    unit = grid(clipping_norm)
    clip = clip or clipper("flat", clipping_norm, [])
    total, missing = zero.clone(), 0
    for count, gradient in enumerate(gradients, start=1):
        check_exact(count, noise_multiplier=0.0, clipping_norm=clipping_norm)
        if gradient is None:
            missing += 1
        else:
            clipped = clip(gradient)
            for part, into in zip(
                torch.split(clipped, _BLOCK), torch.split(total, _BLOCK), strict=True
            ):
                into += torch.div(part, unit).trunc_()
    total *= unit
    return total, missing


def refuse_batch_statistics(network: torch.nn.Module) -> None:
    """Raise PrivacyError if a layer of ``network`` would mix patients or keep their statistics."""
    for name, module in network.named_modules():
        if (
            isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
            or getattr(module, "running_mean", None) is not None
        ):
            raise PrivacyError(
                f"Layer {name!r} of the network keeps statistics over patients, which no clipping "
                "bounds.",
                do="Use a network with group norm.",
                code="privacy-batch-statistics",
            )


def train_privately(
    network: torch.nn.Module,
    patients: Sequence[Patient],
    options: TrainingOptions,
    privacy: PrivacyOptions,
    charge: Charge,
    *,
    execution: ExecutionOptions,
    subspace: Subspace | None = None,
    terms: Terms = NO_TERMS,
    place: Place | None = None,
    entropy: RandomBytes | None = None,
    before_step: BeforeStep | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train ``network`` in place for ``local_steps`` private steps and return its update.

    ``subspace`` is needed where low rank is trained. ``terms`` are added to what clipping and noise
    made of the gradients; ``place`` decides the learning rates. A step waits for ``before_step``
    before it is charged. ``entropy`` is ``SystemRandom()`` if it is None; with any other, as tests
    have it, the result says that it is not ``safe``: who knows the entropy can take the noise off.

    Raises PrivacyError: before anything, for a network with batch statistics, a protocol without
    privacy or one whose sums would not be exact; before a step that ``charge`` does not allow,
    with the network as the steps before left it. Raises ProtocolError as ``Learner`` does.
    """
    if privacy.mode != "patient-dp":
        raise PrivacyError(
            "The protocol grants no privacy.",
            do="Use the ordinary training loop or another protocol.",
            code="privacy-mode",
        )
    refuse_batch_statistics(network)
    check_exact(
        len(patients),
        noise_multiplier=privacy.noise_multiplier,
        clipping_norm=privacy.clipping_norm,
    )
    safe = entropy is None
    if entropy is None:
        entropy = SystemRandom()
    else:
        _LOG.warning("The noise is not from the operating system: the update must not leave.")
    started = time.monotonic()
    mechanism = Mechanism(privacy.noise_multiplier, privacy.sampling_rate)
    with computing(execution):
        learner = Learner(network, options, execution, subspace=subspace, terms=terms, place=place)
        clip = clipper(privacy.clipping, privacy.clipping_norm, learner.sizes)
        unusable = 0
        # Noise is drawn while gradients are computed. All other draws of a step come before it, so
        # that what each of them gets does not depend on who is faster.
        with pool(1) as background:
            for step in range(options.local_steps):
                if before_step is not None:
                    before_step()
                with charge(mechanism, clipping_norm=privacy.clipping_norm):
                    # A patient's crops have a seed of their own: they do not depend on who else is
                    # drawn.
                    draws = [
                        drawing(
                            patients[place], options, _generator(entropy), device=execution.device
                        )
                        for place in sample(entropy, len(patients), rate=privacy.sampling_rate)
                    ]
                    noises = background.submit(
                        noise,
                        entropy,
                        learner.size,
                        noise_multiplier=privacy.noise_multiplier,
                        clipping_norm=privacy.clipping_norm,
                    )
                    total, missing = clipped_sum(
                        contributions(learner, draws, prefetch=execution.prefetch),
                        learner.zero(),
                        clipping_norm=privacy.clipping_norm,
                        clip=clip,
                    )
                    total += noises.result().to(total.device)
                    learner.step(total / (privacy.sampling_rate * privacy.nominal_patients))
                unusable += missing
                if progress is not None:
                    progress(step + 1, options.local_steps)
    return TrainingResult(
        learner.update(),
        options.local_steps,
        time.monotonic() - started,
        unusable,
        safe=safe,
        local=learner.local(),
    )


def _generator(entropy: RandomBytes) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(entropy(16), "little"))
