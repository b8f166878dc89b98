"""Training on a hospital's own patients: crops, loss, one patient's gradient, the ordinary loop.

Invariants: the unit is the patient, whose scans give ``crops_per_patient`` crops a step and one
gradient, the mean over them; the loss of a crop depends on that crop alone; what a patient
contributes depends on nothing but the weights, the patient and the random numbers handed in.
``ExecutionOptions`` change speed and rounding, never what is computed or what it costs in privacy.

Several devices share the crops of one patient, and one place does all the rest: who is drawn, the
clip, the noise and the optimiser. torch's DistributedDataParallel would share the patients instead.
It averages gradients over its ranks in the backward pass, before anybody could clip those of one
patient, and it waits for all ranks, so that one which happened to draw nobody stops the others.

Out of scope: clipping and noise (``client.privacy.dp_sgd``), scores
(``client.segmentation.evaluation``).
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from client.networks.cpu_threads import pool
from client.networks.padding import PaddedNetwork
from client.site.execution import ExecutionOptions, computing, slow_alone
from client.training.crops import Crops, Patient, draw_patient
from client.training.drift_correction import NO_TERMS, Drift, Terms
from client.training.losses import LOSSES, Loss, over_levels
from client.training.lr_schedule import Place, learning_rate
from common.errors import CaseError, ProtocolError
from common.messages.low_rank import Subspace, basis
from common.study.protocol import TrainingOptions
from common.study.trained_parameters import local_names, trained_shapes

_LOG = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Told after each step how many are done, of how many."""

BeforeStep = Callable[[], None]
"""Called before each step, which waits until it returns: training yields to a clinical job."""


@dataclass(frozen=True)
class TrainingResult:
    """What a site's training gave.

    ``update`` is the change of each array that is sent, or its factor B
    (``common.messages.low_rank``); ``local`` are the new values of those that stay at the site.
    ``seconds`` and ``unusable``, the number of contributions that were zero because a scan could
    not be read or a gradient was not finite, depend on patients without noise: they are for the
    hospital's own eyes.
    """

    update: dict[str, NDArray[np.float32]]
    steps: int
    seconds: float
    unusable: int
    safe: bool
    """Whether every step had clipping and noise from the operating system's entropy. Under a
    protocol with privacy no other update may leave."""
    local: dict[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass
class _Replica:
    """The network on one device, which computes the gradient of a share of a patient's crops."""

    network: torch.nn.Module
    trained: dict[str, torch.nn.Parameter]
    bases: dict[str, torch.Tensor]
    """A of each parameter that changes by low rank."""
    device: torch.device
    execution: ExecutionOptions
    loss: Loss
    thread: Executor = field(default_factory=lambda: pool(1))
    """One for as long as the replica lives: cuDNN keeps its plans for each thread."""

    def gradient(self, images: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        """Return the flat gradient of the mean loss over these crops, on this device."""
        images = self._moved(images).to(next(iter(self.trained.values())).dtype)
        if self.execution.precision == "float32" and slow_alone(images):
            # The mean over the same crop twice is the same but for rounding.
            images, regions = torch.cat([images, images]), torch.cat([regions, regions])
        if self.execution.channels_last:
            images = images.contiguous(memory_format=torch.channels_last_3d)
        # Autocast is of the thread that enters it.
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.execution.precision == "bfloat16"
        ):
            if isinstance(self.network, PaddedNetwork) and self.network.deep:
                levels = self.network.supervised(images)
            else:
                levels = [self.network(images)]
        loss = over_levels(self.loss, levels, self._moved(regions)).mean()
        parts = torch.autograd.grad(
            loss, list(self.trained.values()), allow_unused=True, materialize_grads=True
        )
        return torch.cat(
            [
                # W = W0 + B A, so that the gradient of B is that of W times A transposed.
                (part.flatten(1) @ self.bases[name].T if name in self.bases else part).reshape(-1)
                for name, part in zip(self.trained, parts, strict=True)
            ]
        )

    def _moved(self, part: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda" and part.device.type == "cpu":
            return part.pin_memory().to(self.device, non_blocking=True)
        return part.to(self.device)


class Learner:
    """The trainable part of a network, with its optimiser; everything else is frozen.

    The network is moved to the first device and trained in place; each further device has a copy,
    which follows it step by step. ``subspace`` is needed where low rank is trained. ``terms`` say
    what each step follows beside the gradient that it is given. ``place`` is where in the study it
    begins, for the learning rate's schedule; without it the study is these steps.

    Raises ProtocolError if a group of the options has no parameter in the network, or (code
    ``model-subspace``) if low rank is to be trained without a subspace.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        options: TrainingOptions,
        execution: ExecutionOptions,
        *,
        subspace: Subspace | None = None,
        terms: Terms = NO_TERMS,
        place: Place | None = None,
    ) -> None:
        network.to(execution.device).train()
        if execution.channels_last:
            network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        device = torch.device(execution.device)
        # MPS has no float64: sums over patients are then kept on the CPU.
        self.exact_device = torch.device("cpu") if device.type == "mps" else device
        kind = network.kind if isinstance(network, PaddedNetwork) else ""
        shapes = {n: tuple(p.shape) for n, p in network.named_parameters()}
        wanted = trained_shapes(shapes, kind, options)
        self._local = local_names(shapes, kind, options)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in wanted)
            parameter.grad = None
        # More devices than crops would have nothing to do.
        self._replicas = [
            _replica(network if number == 0 else copy.deepcopy(network), name, execution, options)
            for number, name in enumerate(execution.devices[: options.crops_per_patient])
        ]
        trained = self._replicas[0].trained
        self._before = {name: p.detach().clone() for name, p in trained.items()}
        self._leading = dict(trained)
        """What the optimiser changes: a parameter, or in its place its factor B."""
        for name, parameter in trained.items():
            if wanted[name] == tuple(parameter.shape):
                continue
            if subspace is None:
                raise ProtocolError(
                    "Low rank is to be trained, but not in which round of which protocol.",
                    do="Name the subspace.",
                    code="model-subspace",
                )
            self._leading[name] = torch.nn.Parameter(parameter.new_zeros(wanted[name]))
            known = basis(
                name,
                seed=subspace.seed,
                round_number=subspace.round_number,
                rank=options.rank,
                columns=math.prod(parameter.shape[1:]),
            )
            for replica in self._replicas:
                replica.bases[name] = torch.from_numpy(known).to(parameter.dtype).to(replica.device)
        leading = list(self._leading.values())
        self.sizes = [values.numel() for values in leading]
        """Of the arrays that a flat gradient is made of, in its order."""
        self.size = sum(self.sizes)
        self._options = options
        self._place = place or Place(0, options.local_steps)
        self._steps = 0
        self._drift = Drift(
            terms,
            mu=options.proximal_mu,
            names=frozenset(self._leading) - set(self._local),
            leading=self._leading,
            trained=trained,
            bases=self._replicas[0].bases,
            device=self.exact_device,
        )
        self._optimizer: torch.optim.Optimizer
        if options.optimizer == "adam":
            self._optimizer = torch.optim.Adam(leading, options.learning_rate)
        else:
            self._optimizer = torch.optim.SGD(
                leading, options.learning_rate, momentum=options.momentum
            )

    def gradient(self, crops: Crops) -> torch.Tensor:
        """Return the gradient of one patient's mean loss, flat, float64 on ``exact_device``."""
        first = self._replicas[0]
        count = len(crops[0])
        if len(self._replicas) == 1 or count == 1:
            return first.gradient(*crops).to(self.exact_device).double()
        parts = min(len(self._replicas), count)
        shares = list(zip(*(part.tensor_split(parts) for part in crops), strict=True))
        others = [
            replica.thread.submit(replica.gradient, *share)
            for replica, share in zip(self._replicas[1:], shares[1:], strict=False)
        ]
        total = self.zero()
        found = [first.gradient(*shares[0]), *(other.result() for other in others)]
        for (images, _), part in zip(shares, found, strict=True):
            total += part.to(self.exact_device).double() * (len(images) / count)
        return total

    def zero(self) -> torch.Tensor:
        """Return the gradient of nobody."""
        return torch.zeros(self.size, dtype=torch.float64, device=self.exact_device)

    def step(self, gradient: torch.Tensor) -> None:
        """Let the optimiser follow ``gradient``, which is flat, and the site's terms."""
        for (name, values), flat in zip(
            self._leading.items(), torch.split(gradient, self.sizes), strict=True
        ):
            part, added = flat.reshape(values.shape), self._drift.added(name)
            if added is not None:
                part = part + added
            values.grad = part.to(values.dtype).to(values.device)
        rate = learning_rate(self._options, self._place.done + self._steps, self._place.total)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._steps += 1
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        first = self._replicas[0]
        with torch.no_grad():
            for name, known in first.bases.items():
                change = (self._leading[name] @ known).reshape(first.trained[name].shape)
                first.trained[name].copy_(self._before[name] + change)
            for replica in self._replicas[1:]:
                for name, parameter in first.trained.items():
                    replica.trained[name].copy_(parameter, non_blocking=True)

    def update(self) -> dict[str, NDArray[np.float32]]:
        """Return what changed since the start: of each parameter that is sent, or its factor B."""
        bases = self._replicas[0].bases
        changes = {
            name: values.detach() if name in bases else values.detach() - self._before[name]
            for name, values in self._leading.items()
            if name not in self._local
        }
        return {name: _array(change) for name, change in changes.items()}

    def local(self) -> dict[str, NDArray[np.float32]]:
        """Return the values of the trained parameters that stay at the site."""
        return {name: _array(self._leading[name]) for name in self._local}


def _array(values: torch.Tensor) -> NDArray[np.float32]:
    # A copy: the optimiser would go on to change what it shares.
    return np.array(values.detach().float().cpu().contiguous().numpy())


def _replica(
    network: torch.nn.Module, device: str, execution: ExecutionOptions, options: TrainingOptions
) -> _Replica:
    network = network.to(device)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    return _Replica(network, trained, {}, torch.device(device), execution, LOSSES[options.loss])


def drawing(
    patient: Patient, options: TrainingOptions, rng: np.random.Generator, *, device: str = "cpu"
) -> Callable[[], Crops | None]:
    """Return the task of drawing a patient's crops, which gives None if that fails, whyever.

    A file that is gone, a damaged one, a fault of the disk, too little memory for this scan: each
    of them depends on who was drawn, so that to stop would tell it. ``device`` is where crops are
    augmented, and are then.
    """

    def draw() -> Crops | None:
        try:
            return draw_patient(patient, options, rng, device=device)
        except CaseError as error:  # the log stays in the hospital
            _LOG.warning("A patient's contribution counts as zero. %s", error)
        except Exception:  # noqa: BLE001  the edge of one patient's data
            _LOG.exception("A patient's contribution counts as zero, for a reason nobody foresaw.")
        return None

    return draw


def contributions(
    learner: Learner, draws: Iterable[Callable[[], Crops | None]], *, prefetch: int
) -> Iterator[torch.Tensor | None]:
    """Yield each patient's flat gradient, None where there is none or it is not finite."""
    for crops in _ahead(draws, prefetch):
        gradient = None if crops is None else learner.gradient(crops)
        if gradient is not None and not _finite(gradient):
            _LOG.warning("A patient's gradient is not finite and counts as zero.")
            gradient = None
        yield gradient


def _finite(values: torch.Tensor) -> bool:
    """Return whether all are finite, in one look and no copy: the extremes of NaN are NaN."""
    return not values.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(values))).all())


def _ahead(tasks: Iterable[Callable[[], Crops | None]], ahead: int) -> Iterator[Crops | None]:
    """Yield the tasks' results in order; up to ``ahead`` more run in the background."""
    if ahead == 0:
        yield from (task() for task in tasks)
        return
    with pool(ahead) as drawers:
        waiting: deque[Future[Crops | None]] = deque()
        for task in tasks:
            waiting.append(drawers.submit(task))
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
    subspace: Subspace | None = None,
    terms: Terms = NO_TERMS,
    place: Place | None = None,
    before_step: BeforeStep | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train ``network`` in place for ``local_steps`` without privacy, and return its update.

    Each step takes the next ``patients_per_step`` patients of a shuffled round through all, or
    all if they are fewer, and follows the mean of their gradients and ``terms``, at the learning
    rates of ``place``. ``seed`` decides all draws.

    Raises CaseError (code ``case-none``) without patients, ProtocolError as ``Learner`` does.
    """
    if not patients:
        raise CaseError(
            "There is no patient to train on.", do="Check the cohort.", code="case-none"
        )
    started = time.monotonic()
    rng = np.random.default_rng(seed)
    with computing(execution):
        learner = Learner(network, options, execution, subspace=subspace, terms=terms, place=place)
        queue: deque[int] = deque()
        unusable = 0
        for step in range(options.local_steps):
            if before_step is not None:
                before_step()
            batch = []
            for _ in range(min(options.patients_per_step, len(patients))):
                if not queue:
                    queue.extend(int(place) for place in rng.permutation(len(patients)))
                batch.append(queue.popleft())
            draws = [
                drawing(patients[place], options, child, device=execution.device)
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
        learner.update(),
        options.local_steps,
        time.monotonic() - started,
        unusable,
        safe=False,
        local=learner.local(),
    )
