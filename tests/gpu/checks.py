"""Each check compares what the device computes with what a CPU computes in float32.

A check gives a number, and a limit that it must not be above. The limits for training are those of
``tests/client/training/test_loop.py`` on a CPU: what differs is the order of sums, and the eight
bits of bfloat16.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from client.privacy.clipping import Clipping, clip, clipper
from client.privacy.dp_sgd import CountingCharge, clipped_sum, train_privately
from client.privacy.secure_noise import SystemRandom, grid, noise
from client.segmentation.prediction import predict
from client.site.execution import ExecutionOptions
from client.training.crops import draw_patient
from client.training.loop import Learner, train
from tests.gpu import material
from tests.gpu.material import CLIPPING_NORM, NOISE_MULTIPLIER, Scale, apart, flat

T = TypeVar("T")
Precision = Literal["float32", "bfloat16"]
Update = Callable[[Scale, ExecutionOptions], NDArray[np.float64]]

ROUNDING: Final[Mapping[Precision, float]] = {"float32": 1e-3, "bfloat16": 0.2}
"""The most that an update may be apart from the reference, in parts of its length."""

CERTAIN: Final[Mapping[Precision, float]] = {"float32": 1e-3, "bfloat16": 0.1}
"""The most that a probability may be apart from the reference."""

KINDS: Final[tuple[Clipping, ...]] = ("flat", "per_layer", "automatic")

FACTORS: Final = (1e-6, 1e3, 1e150)
"""For gradients before they are clipped: short ones, long ones, and of overflowing squares."""

CPU: Final = ExecutionOptions(prefetch=0)
"""The reference."""


@dataclass(frozen=True)
class Check:
    """What was found: it holds if ``found`` is at most ``limit``."""

    name: str
    measure: str
    found: float
    limit: float
    seconds: float

    @property
    def holds(self) -> bool:
        return self.found <= self.limit  # NaN is not


Measured = tuple[str, float, float]
"""What is measured, what was found, and the limit."""


def checks(device: str, scale: Scale) -> dict[str, Callable[[], Measured]]:
    """Return what is to be checked, by name, on ``device``."""
    given = partial(ExecutionOptions, (device,), prefetch=0)
    twice = ExecutionOptions((device, device), prefetch=0)
    return {
        "training step, float32": lambda: training(scale, given()),
        "training step, bfloat16 AMP": lambda: training(scale, given("bfloat16")),
        "training step, channels first": lambda: training(scale, given(channels_last=False)),
        "training step, crops drawn ahead": lambda: training(
            scale, ExecutionOptions((device,), prefetch=2)
        ),
        "training step, two replicas on one device": lambda: training(scale, twice),
        "private step, float32": lambda: private(scale, given()),
        "private step, bfloat16 AMP": lambda: private(scale, given("bfloat16")),
        "private step, two replicas on one device": lambda: private(scale, twice),
        "clip": lambda: longest(scale, given()),
        "sum of clipped gradients": lambda: inexact_sums(scale, given()),
        "noise": lambda: inexact_noise(scale, given()),
        "prediction, float32": lambda: prediction(scale, given()),
        "prediction, bfloat16": lambda: prediction(scale, given("bfloat16")),
        "prediction, channels first": lambda: prediction(scale, given(channels_last=False)),
        "prediction, a second time": lambda: repeated(scale, given()),
        "prediction in bfloat16, a second time": lambda: repeated(scale, given("bfloat16")),
    }


def run(wanted: Mapping[str, Callable[[], Measured]]) -> Iterator[Check]:
    """Yield each check as it is done."""
    for name, check in wanted.items():
        began = time.monotonic()
        measure, found, limit = check()
        yield Check(name, measure, found, limit, time.monotonic() - began)


def training(scale: Scale, execution: ExecutionOptions) -> Measured:
    """Compare the update of two steps without privacy."""
    return _compared(_trained, scale, execution)


def private(scale: Scale, execution: ExecutionOptions) -> Measured:
    """Compare the update of two steps with privacy, of the same patients with the same noise."""
    return _compared(_privately_trained, scale, execution)


def _compared(update: Update, scale: Scale, execution: ExecutionOptions) -> Measured:
    found, expected = update(scale, execution), _on_a_cpu(update, scale)
    limit = ROUNDING[execution.precision]
    return "update, relative difference", apart(found, expected), limit


@functools.cache
def _on_a_cpu(result: Callable[[Scale, ExecutionOptions], T], scale: Scale) -> T:
    """Return what all others are compared with."""
    return result(scale, CPU)


def _trained(scale: Scale, execution: ExecutionOptions) -> NDArray[np.float64]:
    options = material.training(scale.side, steps=2)
    network = material.network(scale.size)
    people = material.patients(scale.side)
    return flat(train(network, people, options, seed=3, execution=execution).update)


def _privately_trained(scale: Scale, execution: ExecutionOptions) -> NDArray[np.float64]:
    result = train_privately(
        material.network(scale.size),
        material.patients(scale.side),
        material.training(scale.side, steps=2),
        material.privacy(noise_multiplier=1e-12),  # more would hide what is compared
        CountingCharge(),
        execution=execution,
        entropy=material.seeded(3),
    )
    return flat(result.update)


def longest(scale: Scale, execution: ExecutionOptions) -> Measured:
    """Return the exact norm of the longest clipped gradient, in parts of the clipping norm."""
    learner, gradients = _gradients(scale, execution)
    found = 0.0
    for kind, factor in itertools.product(KINDS, FACTORS):
        shorten = clipper(kind, CLIPPING_NORM, learner.sizes)
        for gradient in gradients:
            total, _ = clipped_sum(
                [gradient * factor], learner.zero(), clipping_norm=CLIPPING_NORM, clip=shorten
            )
            found = max(found, _exact_norm(total))
    return "exact norm / clipping norm", found, 1.0


def _exact_norm(on_grid: torch.Tensor) -> float:
    """Return the norm over the clipping norm: above 1.0 exactly if it is, however little."""
    unit = grid(CLIPPING_NORM)
    whole = (on_grid / unit).abs().cpu().numpy().astype(np.int64)  # of at most 33 bits
    high, low = whole >> 17, whole & (2**17 - 1)
    square = sum(
        int(np.dot(a, b)) << shift
        for a, b, shift in ((high, high, 34), (high, low, 18), (low, low, 0))
    )
    most = int(CLIPPING_NORM / unit) ** 2
    found = math.sqrt(square / most)
    return max(found, math.nextafter(1.0, 2.0)) if square > most else min(found, 1.0)


def inexact_sums(scale: Scale, execution: ExecutionOptions) -> Measured:
    """Count the entries of a sum that depend on the order, or on where they are added."""
    _, gradients = _gradients(scale, execution)
    clipped = [clip(gradient, CLIPPING_NORM) for gradient in gradients]

    def added(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        zero = torch.zeros_like(parts[0])
        whole: torch.Tensor = clipped_sum(
            parts, zero, clipping_norm=CLIPPING_NORM, clip=lambda part: part
        )[0]
        return whole.cpu()

    here = added(clipped)
    others = (added(clipped[::-1]), added([part.cpu() for part in clipped]))
    differing = max(int((here != other).sum()) for other in others)
    return "entries that differ", float(differing), 0.0


def inexact_noise(scale: Scale, execution: ExecutionOptions) -> Measured:
    """Count the entries of sum and noise from which the noise cannot be taken without a rest."""
    learner, gradients = _gradients(scale, execution)
    total, _ = clipped_sum(gradients, learner.zero(), clipping_norm=CLIPPING_NORM)
    added = noise(
        SystemRandom(),
        learner.size,
        noise_multiplier=NOISE_MULTIPLIER,
        clipping_norm=CLIPPING_NORM,
    ).to(total.device)
    noised = total + added
    units = noised / grid(CLIPPING_NORM)
    wrong = (noised - added != total) | (units != units.round()) | (units.abs() >= 2.0**53)
    return "entries that are not exact", float(wrong.sum()), 0.0


def _gradients(scale: Scale, execution: ExecutionOptions) -> tuple[Learner, list[torch.Tensor]]:
    """Return each patient's gradient, not yet clipped, where sums are made."""
    options = material.training(scale.side)
    learner = Learner(material.network(scale.size), options, execution)
    return learner, [
        learner.gradient(draw_patient(one, options, np.random.default_rng(index)))
        for index, one in enumerate(material.patients(scale.side))
    ]


def prediction(scale: Scale, execution: ExecutionOptions) -> Measured:
    """Compare the probabilities of a volume that takes several windows."""
    found, expected = _predicted(scale, execution), _on_a_cpu(_predicted, scale)
    limit = CERTAIN[execution.precision]
    return "largest difference of a probability", float(np.abs(found - expected).max()), limit


def repeated(scale: Scale, execution: ExecutionOptions) -> Measured:
    """Count the probabilities that a second prediction gives otherwise."""
    first, second = _predicted(scale, execution), _predicted(scale, execution)
    return "probabilities that differ", float((first != second).sum()), 0.0


def _predicted(scale: Scale, execution: ExecutionOptions) -> NDArray[np.float32]:
    side = scale.side
    image = material.scan(9, (2 * side, side, side + 5)).image
    return predict(
        material.network(scale.size), image, crop_size=(side, side, side), execution=execution
    )
