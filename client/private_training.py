"""Training under patient-level differential privacy (DP-SGD), exact on any network.

One step: every patient is drawn with chance ``sampling_rate``; each drawn patient gives one
gradient (``client.training``), which is clipped to the norm C = ``clipping_norm``; Gaussian noise
of standard deviation ``noise_multiplier`` * C is added to the sum; the sum is divided by the
public constant ``sampling_rate * nominal_patients``; the optimiser follows it.

Invariants:

- The step is charged before a patient is looked at, with the mechanism that is then used. An
  empty draw is a step: it adds its noise and is charged.
- Adding or removing one patient moves the sum by at most C, whatever the patient's images hold: an
  unreadable scan or a gradient that is not finite counts as zero, and no step is ever skipped.
- Draws, noise and crops come from the operating system's entropy through AES-CTR. Gradients and
  noise are whole multiples of one grid, so that their sum is exact and its last bits tell nothing
  (Mironov 2012, "On significance of the least significant bits for differential privacy").

Out of scope: the caps (``common.privacy``), what a failure or a duration tells about the patients.

Source: Abadi et al. 2016, "Deep learning with differential privacy", arXiv:1607.00133; several
crops of one patient share a clip as in De et al. 2022, arXiv:2204.13650.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from client.training import (
    ExecutionOptions,
    Learner,
    Patient,
    Progress,
    TrainingResult,
    contributions,
    drawing,
)
from common.errors import PrivacyError
from common.privacy import Cap, Ledger, Mechanism
from common.protocol import PrivacyOptions, TrainingOptions

_GRID_BITS: Final = 32
"""The grid is the power of two at or below the clipping norm, over 2**32: sums of 2**20 patients
and noise of 10,000 clipping norms stay whole numbers below 2**53, exact in float64."""

_MARGIN: Final = 1 - 2.0**-40
"""Keeps a clipped gradient inside the norm whatever float64 rounds."""

RandomBytes = Callable[[int], bytes]
"""Gives that many unpredictable bytes, never the same twice."""


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
    """Charges each step to the hospital's ledger."""

    ledger: Ledger
    study: str
    protocol: str
    round_number: int
    study_cap: Cap
    site_cap: Cap

    @contextlib.contextmanager
    def __call__(self, mechanism: Mechanism, *, clipping_norm: float) -> Iterator[None]:
        number = self.ledger.reserve(
            study=self.study,
            protocol=self.protocol,
            round_number=self.round_number,
            mechanism=mechanism,
            clipping_norm=clipping_norm,
            steps=1,
            study_cap=self.study_cap,
            site_cap=self.site_cap,
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


class SystemRandom:
    """AES-256-CTR under a key of the operating system: ``RandomBytes`` for everything private."""

    def __init__(self) -> None:
        cipher = Cipher(algorithms.AES(secrets.token_bytes(32)), modes.CTR(bytes(16)))
        self._stream = cipher.encryptor()

    def __call__(self, count: int) -> bytes:
        return self._stream.update(bytes(count))


def uniforms(entropy: RandomBytes, count: int) -> NDArray[np.float64]:
    """Return ``count`` numbers from [0, 1), multiples of 2**-53."""
    whole = np.frombuffer(entropy(8 * count), "<u8") >> np.uint64(11)
    return whole.astype(np.float64) * 2.0**-53


def normals(entropy: RandomBytes, count: int) -> NDArray[np.float64]:
    """Return ``count`` standard normal numbers by Box and Muller 1958, in float64."""
    half = (count + 1) // 2
    # 1 - u lies in (0, 1], where the logarithm is finite.
    radius = np.sqrt(-2 * np.log(1 - uniforms(entropy, half)))
    angle = 2 * np.pi * uniforms(entropy, half)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def clip(gradient: torch.Tensor, clipping_norm: float) -> torch.Tensor:
    """Return a flat float64 gradient, scaled down to ``clipping_norm`` if its L2 norm is above."""
    # The largest entry is taken out first: squares of huge entries would overflow.
    largest = float(gradient.abs().max()) if gradient.numel() else 0.0
    if largest == 0.0:
        return gradient
    scaled = gradient / largest
    length = float(torch.linalg.vector_norm(scaled))
    if largest * length <= clipping_norm * _MARGIN:
        return gradient
    return scaled * (clipping_norm / length * _MARGIN)


def clipped_sum(
    gradients: Iterable[torch.Tensor | None], zero: torch.Tensor, *, clipping_norm: float
) -> tuple[torch.Tensor, int]:
    """Return the sum of the clipped gradients on the grid, and how many of them were None.

    Clipped gradients are cut towards zero, to whole multiples of ``grid(clipping_norm)``, which
    never makes them longer.
    """
    unit = grid(clipping_norm)
    total, missing = zero.clone(), 0
    for gradient in gradients:
        if gradient is None:
            missing += 1
        else:
            total += torch.trunc(clip(gradient, clipping_norm) / unit)
    return total * unit, missing


def grid(clipping_norm: float) -> float:
    """Return the grid that gradients and noise are rounded to, a power of two."""
    return 2.0 ** (math.floor(math.log2(clipping_norm)) - _GRID_BITS)


def noise(
    entropy: RandomBytes, count: int, *, noise_multiplier: float, clipping_norm: float
) -> torch.Tensor:
    """Return Gaussian noise of deviation ``noise_multiplier * clipping_norm``, on the grid."""
    unit = grid(clipping_norm)
    scale = noise_multiplier * clipping_norm / unit
    return torch.from_numpy(np.rint(normals(entropy, count) * scale) * unit)


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
    entropy: RandomBytes | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train ``network`` in place for ``local_steps`` private steps and return its update.

    ``entropy`` is ``SystemRandom()`` if it is None, as it must be outside tests.

    Raises PrivacyError: before anything, for a network with batch statistics or a protocol
    without privacy; before a step that ``charge`` does not allow, with the network as the steps
    before left it.
    """
    if privacy.mode != "patient-dp":
        raise PrivacyError(
            "The protocol grants no privacy.",
            do="Use the ordinary training loop or another protocol.",
            code="privacy-mode",
        )
    refuse_batch_statistics(network)
    started = time.monotonic()
    entropy = entropy or SystemRandom()
    mechanism = Mechanism(privacy.noise_multiplier, privacy.sampling_rate)
    learner = Learner(network, options, execution)
    unusable = 0
    for step in range(options.local_steps):
        with charge(mechanism, clipping_norm=privacy.clipping_norm):
            drawn = uniforms(entropy, len(patients)) < privacy.sampling_rate
            # A patient's crops have a seed of their own: they do not depend on who else is drawn.
            draws = [
                drawing(patients[place], options, _generator(entropy))
                for place in np.flatnonzero(drawn).tolist()
            ]
            total, missing = clipped_sum(
                contributions(learner, draws, prefetch=execution.prefetch),
                learner.zero(),
                clipping_norm=privacy.clipping_norm,
            )
            total += noise(
                entropy,
                learner.size,
                noise_multiplier=privacy.noise_multiplier,
                clipping_norm=privacy.clipping_norm,
            ).to(total.device)
            learner.step(total / (privacy.sampling_rate * privacy.nominal_patients))
        unusable += missing
        if progress is not None:
            progress(step + 1, options.local_steps)
    return TrainingResult(
        learner.update(), options.local_steps, time.monotonic() - started, unusable
    )


def _generator(entropy: RandomBytes) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(entropy(16), "little"))
