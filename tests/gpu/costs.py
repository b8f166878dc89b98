"""What a training step and a prediction take on the device: seconds and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import torch

from client.privacy.dp_sgd import CountingCharge, train_privately
from client.segmentation.prediction import predict
from client.site.execution import ExecutionOptions
from client.training.loop import train
from tests.benchmarks.stepping import Meter
from tests.gpu import material
from tests.gpu.material import CROPS, PATIENTS, Scale

PRECISIONS: Final[tuple[Literal["float32", "bfloat16"], ...]] = ("float32", "bfloat16")


@dataclass(frozen=True)
class Cost:
    """Of one piece of work: the median of the turns, and the most memory above the start."""

    work: str
    precision: str
    seconds: float
    peak_bytes: int


def costs(device: str, scale: Scale) -> Iterator[Cost]:
    """Yield each cost as it is measured."""
    works = {
        f"step without privacy, {PATIENTS} patients of {CROPS} crops": _step,
        "the same step with privacy": _private_step,
        f"prediction of {' x '.join(map(str, scale.volume))}": _prediction,
    }
    for name, prepare in works.items():
        for precision in PRECISIONS:
            work = prepare(scale, ExecutionOptions((device,), precision))
            yield _measured(name, precision, work, device=device, turns=scale.turns)


def _step(scale: Scale, execution: ExecutionOptions) -> Callable[[], object]:
    return partial(
        train,
        material.network("base"),
        material.patients(scale.cost_side),
        material.training(scale.cost_side),
        seed=0,
        execution=execution,
    )


def _private_step(scale: Scale, execution: ExecutionOptions) -> Callable[[], object]:
    return partial(
        train_privately,
        material.network("base"),
        material.patients(scale.cost_side),
        material.training(scale.cost_side),
        material.privacy(sampling_rate=1.0),
        CountingCharge(),
        execution=execution,
    )


def _prediction(scale: Scale, execution: ExecutionOptions) -> Callable[[], object]:
    side = scale.cost_side
    return partial(
        predict,
        material.network("base"),
        material.scan(9, scale.volume).image,
        crop_size=(side, side, side),
        execution=execution,
    )


def _measured(
    name: str, precision: str, work: Callable[[], object], *, device: str, turns: int
) -> Cost:
    cuda = device.startswith("cuda")
    work()  # plans and allocations of the first time
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else 0
    meter = None if cuda else Meter.start()
    seconds = []
    for _ in range(turns):
        began = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() - before if meter is None else meter.peak_bytes()
    return Cost(name, precision, statistics.median(seconds), peak)
