"""The ways to take one training step that ``private_step`` compares, all on the same patients.

``PATIENTS`` patients give ``CROPS`` crops each. Ours clips each patient's mean gradient. Opacus
knows no samples of several crops, so that it clips each crop: another sum, but as much work.
All are in float32, and in the layout that is the fastest for each of them, channels-last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import prepare_module
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

from client.networks.registry import build
from client.privacy.dp_sgd import CountingCharge, train_privately
from client.site.execution import ExecutionOptions
from client.training.crops import Patient, draw_patient
from client.training.losses import dice_bce
from common.study.protocol import NetworkOptions, PrivacyOptions, TrainingOptions
from tests.opacus_ready import OutOfPlace

PATIENTS: Final = 4
CROPS: Final = 2
NOISE: Final = 1.0
CLIPPING_NORM: Final = 1.0

Step = Callable[[], None]


@dataclass(frozen=True)
class Prepared:
    """A scan of the size of a crop."""

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class Work:
    """What all methods compute on: a network and ``PATIENTS`` patients of one scan each."""

    network: torch.nn.Module
    patients: tuple[Patient, ...]
    options: TrainingOptions

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the crops of all patients as one batch, as part of a step."""
        rng = np.random.default_rng(0)
        drawn = [draw_patient(patient, self.options, rng) for patient in self.patients]
        images, regions = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return images.to(memory_format=torch.channels_last_3d), regions

    def adam(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), self.options.learning_rate)


def work(*, size: str, side: int) -> Work:
    """Return a SegResNet and patients with random scans of side ``side``."""
    rng = np.random.default_rng(0)
    network = build(NetworkOptions.model_validate({"size": size}), seed=0).train()
    options = TrainingOptions(
        local_steps=1,
        crop_size=(side, side, side),
        crops_per_patient=CROPS,
        augmentation="none",
        learning_rate=1e-3,
    )
    patients = [(partial(_given, _scan(rng, side)),) for _ in range(PATIENTS)]
    return Work(network.to(memory_format=torch.channels_last_3d), tuple(patients), options)


def _scan(rng: np.random.Generator, side: int) -> Prepared:
    labels = rng.integers(0, 4, (side, side, side)).astype(np.uint8)
    return Prepared(rng.standard_normal((4, side, side, side), np.float32), labels)


def _given(scan: Prepared) -> Prepared:
    return scan


def ordinary(task: Work) -> Step:
    """One batch of all crops, no privacy: plain torch."""
    optimizer = task.adam()

    def step() -> None:
        images, regions = task.batch()
        optimizer.zero_grad(set_to_none=True)
        dice_bce(task.network(images), regions).mean().backward()
        optimizer.step()

    return step


def ours(task: Work) -> Step:
    """A private round of one step, with all that belongs to it: also its charge and its update."""
    privacy = PrivacyOptions(
        noise_multiplier=NOISE,
        clipping_norm=CLIPPING_NORM,
        sampling_rate=1.0,
        nominal_patients=PATIENTS,
    )

    def step() -> None:
        train_privately(
            task.network,
            task.patients,
            task.options,
            privacy,
            CountingCharge(),
            execution=ExecutionOptions(),
        )

    return step


def opacus(task: Work, *, mode: str, micro_batch: int) -> Step:
    """Opacus' gradients of each crop, in micro-batches as its BatchMemoryManager makes them."""
    module = prepare_module(task.network, grad_sample_mode=mode, loss_reduction="mean")
    optimizer = DPOptimizer(
        task.adam(),
        noise_multiplier=NOISE,
        max_grad_norm=CLIPPING_NORM,
        expected_batch_size=PATIENTS * CROPS,
    )

    def step() -> None:
        images, regions = task.batch()
        for start in range(0, len(images), micro_batch):
            part = slice(start, start + micro_batch)
            optimizer.signal_skip_step(do_skip=part.stop < len(images))
            optimizer.zero_grad()
            with OutOfPlace():
                logits = module(images[part])
            dice_bce(logits, regions[part]).mean().backward()
            optimizer.step()
        optimizer.zero_grad()

    return step


def opacus_ghost(task: Work) -> Step:
    """Opacus' two passes: the norms first, then the sum of the losses times their clip factors."""
    module = prepare_module(
        task.network, grad_sample_mode="ghost", loss_reduction="mean", max_grad_norm=CLIPPING_NORM
    )
    optimizer = DPOptimizerFastGradientClipping(
        task.adam(),
        noise_multiplier=NOISE,
        max_grad_norm=CLIPPING_NORM,
        expected_batch_size=PATIENTS * CROPS,
    )
    loss = DPLossFastGradientClipping(module, optimizer, _PerCrop(), "mean")

    def step() -> None:
        images, regions = task.batch()
        optimizer.zero_grad()
        with OutOfPlace():
            logits = module(images)
        loss(logits, regions).backward()
        optimizer.step()

    return step


class _PerCrop:
    """The loss as Opacus wants to call it."""

    reduction = "mean"

    def __call__(self, logits: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        return dice_bce(logits, regions)


METHODS: Final[Mapping[str, Callable[[Work], Step]]] = {
    "ordinary": ordinary,
    "ours": ours,
    "Opacus hooks": partial(opacus, mode="hooks", micro_batch=PATIENTS * CROPS),
    "Opacus functorch": partial(opacus, mode="functorch", micro_batch=PATIENTS * CROPS),
    "Opacus ghost": opacus_ghost,
    "Opacus, batches of 1": partial(opacus, mode="hooks", micro_batch=1),
}
