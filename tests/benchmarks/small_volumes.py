"""What one small volume costs on a CPU, alone and as one of two: why windows come in pairs.

One thread, float32, channels last; the best of several turns. The same volume goes through the
network alone and twice in a batch. ``client.site.execution.slow_alone`` has a lone volume of at
most 48^3 voxels computed twice; ``client.segmentation.prediction`` looks at windows of at most 64^3
two at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import torch

from client.networks.registry import build
from client.site.execution import ExecutionOptions, computing, slow_alone
from common.study.protocol import NetworkOptions
from tests.benchmarks.result import Measuring, Result, line

TURNS: Final = 5
SIDES: Final = (16, 24, 32, 48, 64, 80)
SIZES: Final[tuple[Literal["tiny", "base"], ...]] = ("tiny", "base")
MOST: Final = 1.1
"""So many times its own seconds a volume may take that is computed twice."""


def measure(folder: Path) -> Measuring:
    """Return how many times its seconds one volume alone takes of two in a batch, by side."""
    columns = [
        "network, side",
        "prediction, ms",
        "two at once, ms",
        "gradient, ms",
        "twice at once, ms",
        "done twice",
    ]
    rows: list[list[object]] = []
    worst = 0.0
    with computing(ExecutionOptions(threads=1)):
        for size in SIZES:
            network = build(NetworkOptions(size=size), seed=0)
            network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            for side in SIDES:
                one = torch.randn(1, 4, side, side, side)
                one = one.contiguous(memory_format=torch.channels_last_3d)
                two = torch.cat([one, one])
                seconds = [
                    _best(work, network, images)
                    for work in (_predict, _gradient)
                    for images in (one, two)
                ]
                if slow_alone(one):
                    worst = max(worst, seconds[3] / seconds[2])
                rows.append(
                    [
                        f"segresnet {size}, {side}",
                        *(1000 * s for s in seconds),
                        "yes" if slow_alone(one) else "no",
                    ]
                )
                yield line(columns, rows[-1])
    return Result(
        title="One small volume on a CPU, and two",
        columns=columns,
        rows=rows,
        promise=f"a crop that is computed twice takes at most {MOST} times its seconds alone, "
        f"it takes {worst:.2f}",
        holds=worst <= MOST,
        facts={"worst": worst},
    )


def _predict(network: torch.nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode():
        network(images)


def _gradient(network: torch.nn.Module, images: torch.Tensor) -> None:
    loss = network(images).square().mean()
    torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)


def _best(
    work: Callable[[torch.nn.Module, torch.Tensor], None],
    network: torch.nn.Module,
    images: torch.Tensor,
) -> float:
    work(network, images)
    seconds = []
    for _ in range(TURNS):
        began = time.perf_counter()
        work(network, images)
        seconds.append(time.perf_counter() - began)
    return min(seconds)
