"""Training on a hospital's own patients: crops, loss, one patient's gradient, the ordinary loop.

Invariants: the unit is the patient, whose scans give ``crops_per_patient`` crops a step and one
gradient, the mean over them; the loss of a crop depends on that crop alone; what a patient
contributes depends on nothing but the weights, the patient and the random numbers handed in.
``ExecutionOptions`` change speed and rounding, never what is computed or what it costs in privacy.

Out of scope: clipping and noise (``client.private_training``), scores (``client.evaluation``).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from common.errors import CaseError
from common.networks import trainable_names
from common.protocol import TrainingOptions
from common.regions import labels_to_regions

_LOG = logging.getLogger(__name__)


class PreparedCase(Protocol):
    """What training reads of a prepared case."""

    @property
    def image(self) -> NDArray[np.float32]:
        """Normalised image, (4, X, Y, Z), 0 outside the brain."""

    @property
    def labels(self) -> NDArray[np.uint8] | None:
        """Label map, (X, Y, Z)."""


Patient = Sequence[Callable[[], PreparedCase]]
"""One loader for each scan session of a patient, called when that scan is drawn."""

Progress = Callable[[int, int], None]
"""Told after each step how many are done, of how many."""

Crops = tuple[torch.Tensor, torch.Tensor]
"""Images (K, 4, *crop) float32 and regions (K, 3, *crop) uint8, on the CPU."""


@dataclass(frozen=True)
class ExecutionOptions:
    """How a machine computes. Nothing here can change the privacy that is promised."""

    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward and backward pass; weights, norms and sums stay float32 or wider."""
    channels_last: bool = True
    prefetch: int = 2
    """Patients whose crops are drawn in the background; 0 draws them when they are needed."""


@dataclass(frozen=True)
class TrainingResult:
    """What a site's training gave.

    ``update`` is the change of each trained array. ``seconds`` and ``unusable``, the number of
    contributions that were zero because a scan could not be read or a gradient was not finite,
    depend on patients without noise: they are for the hospital's own eyes.
    """

    update: dict[str, NDArray[np.float32]]
    steps: int
    seconds: float
    unusable: int


def choose_device() -> torch.device:
    """Return the fastest kind of device that this machine has."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def choose_precision(device: torch.device) -> Literal["float32", "bfloat16"]:
    """Return bfloat16 on a GPU that has it, float32 elsewhere: on CPUs it is often slower."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    return "float32"


def choose_execution(device: Literal["auto", "cpu", "cuda", "mps"] = "auto") -> ExecutionOptions:
    """Return the options for this machine, on its fastest device or on the one that is named."""
    chosen = choose_device() if device == "auto" else torch.device(device)
    return ExecutionOptions(
        device=chosen.type,
        precision=choose_precision(chosen),
        channels_last=chosen.type != "mps",  # which has no such kernels for volumes
    )


def dice_bce(logits: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Return soft Dice loss plus binary cross-entropy of each sample, shape (B,).

    Dice is taken per sample and region with squared denominators (Milletari et al. 2016,
    arXiv:1606.04797) and smoothed by 1, then averaged over the regions. No term joins two samples.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    truth = regions.to(logits.dtype)
    axes = tuple(range(2, logits.dim()))
    chance = logits.sigmoid()
    overlap = (chance * truth).sum(axes)
    volume = chance.square().sum(axes) + truth.square().sum(axes)
    dice = 1 - (2 * overlap + 1) / (volume + 1)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return dice.mean(1) + entropy.flatten(1).mean(1)


def draw_crops(
    case: PreparedCase,
    options: TrainingOptions,
    rng: np.random.Generator,
    *,
    count: int | None = None,
) -> Crops:
    """Return ``count`` random crops of a case, ``crops_per_patient`` by default.

    With ``foreground_probability`` a crop is centred on a random tumour voxel, if there is one,
    else its place is uniform. Where the volume is smaller than the crop, zeros fill up.

    Raises CaseError for a case without labels.
    """
    count = options.crops_per_patient if count is None else count
    labels = case.labels
    if labels is None:
        raise CaseError(
            "A case without a label map cannot be trained on.",
            do="Add its label map or leave the case out of the cohort.",
            code="case-unlabelled",
        )
    tumour = np.flatnonzero(labels)
    images = np.zeros((count, case.image.shape[0], *options.crop_size), np.float32)
    regions = np.zeros((count, 3, *options.crop_size), np.uint8)
    for image, region in zip(images, regions, strict=True):
        centre: Sequence[np.intp] | None = None
        if tumour.size and rng.random() < options.foreground_probability:
            centre = np.unravel_index(rng.choice(tumour), labels.shape)
        source, target = _window(labels.shape, options.crop_size, centre, rng)
        image[:, *target] = case.image[:, *source]
        region[:, *target] = labels_to_regions(labels[source])
        if options.augmentation == "light":
            _augment(image, region, rng)
    return torch.from_numpy(images), torch.from_numpy(regions)


def _window(
    shape: Sequence[int],
    crop: Sequence[int],
    centre: Sequence[np.intp] | None,
    rng: np.random.Generator,
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the slices to read from a volume and to write in a crop."""
    source, target = [], []
    for axis, (size, wanted) in enumerate(zip(shape, crop, strict=True)):
        taken, spare = min(size, wanted), max(0, size - wanted)
        if centre is None:
            start = int(rng.integers(0, spare + 1))
        else:
            start = min(max(int(centre[axis]) - wanted // 2, 0), spare)
        offset = (wanted - taken) // 2
        source.append(slice(start, start + taken))
        target.append(slice(offset, offset + taken))
    return tuple(source), tuple(target)


def _augment(
    image: NDArray[np.float32], region: NDArray[np.uint8], rng: np.random.Generator
) -> None:
    """Flip, rescale, shift and add noise, in place; outside the brain stays 0."""
    axes = tuple(axis for axis in (1, 2, 3) if rng.random() < 0.5)
    image[...] = np.flip(image, axes)
    region[...] = np.flip(region, axes)
    brain = (image != 0).any(axis=0)
    scale = rng.uniform(0.9, 1.1, (4, 1)).astype(np.float32)
    shift = rng.uniform(-0.1, 0.1, (4, 1)).astype(np.float32)
    values = image[:, brain] * scale + shift
    values += rng.uniform(0, 0.1) * rng.standard_normal(values.shape, np.float32)
    image[:, brain] = values


def draw_patient(patient: Patient, options: TrainingOptions, rng: np.random.Generator) -> Crops:
    """Return ``crops_per_patient`` crops, each from a random one of the patient's scans.

    Raises CaseError if a scan cannot be read.
    """
    drawn = rng.integers(0, len(patient), options.crops_per_patient)
    scans, counts = np.unique(drawn, return_counts=True)
    parts = [
        draw_crops(patient[scan](), options, rng, count=int(count))
        for scan, count in zip(scans, counts, strict=True)
    ]
    return torch.cat([images for images, _ in parts]), torch.cat([regions for _, regions in parts])


class Learner:
    """The trainable part of a network, with its optimiser; everything else is frozen.

    The network is moved to the device and trained in place.
    """

    def __init__(
        self, network: torch.nn.Module, options: TrainingOptions, execution: ExecutionOptions
    ) -> None:
        self._network = network.to(execution.device).train()
        if execution.channels_last:
            network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._execution = execution
        self.device = torch.device(execution.device)
        # MPS has no float64: sums over patients are then kept on the CPU.
        self.exact_device = torch.device("cpu") if self.device.type == "mps" else self.device
        wanted = set(trainable_names(network, options.trainable))
        self._parameters = {n: p for n, p in network.named_parameters() if n in wanted}
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in wanted)
            parameter.grad = None
        self._before = {n: p.detach().clone() for n, p in self._parameters.items()}
        self.size = sum(parameter.numel() for parameter in self._parameters.values())
        trained = list(self._parameters.values())
        self._optimizer: torch.optim.Optimizer
        if options.optimizer == "adam":
            self._optimizer = torch.optim.Adam(trained, options.learning_rate)
        else:
            self._optimizer = torch.optim.SGD(
                trained, options.learning_rate, momentum=options.momentum
            )

    def gradient(self, crops: Crops) -> torch.Tensor:
        """Return the gradient of one patient's mean loss, flat, float64 on ``exact_device``."""
        kind = next(iter(self._parameters.values())).dtype
        images, regions = (self._moved(part) for part in crops)
        images = images.to(kind)
        if self._execution.channels_last:
            images = images.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self._execution.precision == "bfloat16"
        ):
            logits = self._network(images)
        loss = dice_bce(logits, regions).mean()
        parts = torch.autograd.grad(
            loss, list(self._parameters.values()), allow_unused=True, materialize_grads=True
        )
        flat = torch.cat([part.reshape(-1) for part in parts])
        return flat.to(self.exact_device).double()

    def zero(self) -> torch.Tensor:
        """Return the gradient of nobody."""
        return torch.zeros(self.size, dtype=torch.float64, device=self.exact_device)

    def step(self, gradient: torch.Tensor) -> None:
        """Let the optimiser follow ``gradient``, which is flat."""
        sizes = [parameter.numel() for parameter in self._parameters.values()]
        parts = torch.split(gradient, sizes)
        for parameter, part in zip(self._parameters.values(), parts, strict=True):
            parameter.grad = part.to(parameter.dtype).to(self.device).reshape(parameter.shape)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def update(self) -> dict[str, NDArray[np.float32]]:
        """Return the change of each trained array since the start."""
        return {
            name: (parameter.detach() - self._before[name]).float().cpu().contiguous().numpy()
            for name, parameter in self._parameters.items()
        }

    def _moved(self, part: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            return part.pin_memory().to(self.device, non_blocking=True)
        return part.to(self.device)


def drawing(
    patient: Patient, options: TrainingOptions, rng: np.random.Generator
) -> Callable[[], Crops | None]:
    """Return the task of drawing a patient's crops, which gives None if a scan is unreadable."""

    def draw() -> Crops | None:
        try:
            return draw_patient(patient, options, rng)
        except CaseError as error:
            # Stopping here would tell that this patient was drawn; the log stays in the hospital.
            _LOG.warning("A patient's contribution counts as zero. %s", error)
            return None

    return draw


def contributions(
    learner: Learner, draws: Iterable[Callable[[], Crops | None]], *, prefetch: int
) -> Iterator[torch.Tensor | None]:
    """Yield each patient's flat gradient, None where there is none or it is not finite."""
    for crops in _ahead(draws, prefetch):
        gradient = None if crops is None else learner.gradient(crops)
        if gradient is not None and not bool(torch.isfinite(gradient).all()):
            _LOG.warning("A patient's gradient is not finite and counts as zero.")
            gradient = None
        yield gradient


def _ahead(tasks: Iterable[Callable[[], Crops | None]], ahead: int) -> Iterator[Crops | None]:
    """Yield the tasks' results in order; up to ``ahead`` more run in the background."""
    if ahead == 0:
        yield from (task() for task in tasks)
        return
    with ThreadPoolExecutor(ahead) as pool:
        waiting: deque[Future[Crops | None]] = deque()
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def train(
    network: torch.nn.Module,
    patients: Sequence[Patient],
    options: TrainingOptions,
    *,
    seed: int,
    execution: ExecutionOptions,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train ``network`` in place for ``local_steps`` without privacy, and return its update.

    Each step takes the next ``patients_per_step`` patients of a shuffled round through all, or
    all if they are fewer, and follows the mean of their gradients. ``seed`` decides all draws.

    Raises CaseError (code ``case-none``) without patients.
    """
    if not patients:
        raise CaseError(
            "There is no patient to train on.", do="Check the cohort.", code="case-none"
        )
    started = time.monotonic()
    rng = np.random.default_rng(seed)
    learner = Learner(network, options, execution)
    queue: deque[int] = deque()
    unusable = 0
    for step in range(options.local_steps):
        batch = []
        for _ in range(min(options.patients_per_step, len(patients))):
            if not queue:
                queue.extend(int(place) for place in rng.permutation(len(patients)))
            batch.append(queue.popleft())
        draws = [
            drawing(patients[place], options, child)
            for place, child in zip(batch, rng.spawn(len(batch)), strict=True)
        ]
        total = learner.zero()
        for gradient in contributions(learner, draws, prefetch=execution.prefetch):
            if gradient is None:
                unusable += 1
            else:
                total += gradient
        learner.step(total / len(batch))
        if progress is not None:
            progress(step + 1, options.local_steps)
    return TrainingResult(
        learner.update(), options.local_steps, time.monotonic() - started, unusable
    )
