"""What one private step costs beside an ordinary one, and beside Opacus' ways to take it.

All methods take their turns on one thread, with the same network and the same patients. A ratio is
the median of the ratios within the turns. Opacus' slow methods get fewer turns: what they are
compared for is a factor of several, which one turn shows.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from client.networks.registry import build
from common.study.protocol import NetworkOptions
from tests.benchmarks.result import Measuring, Result, line
from tests.benchmarks.stepping import Cost, stepper
from tests.benchmarks.steps import CROPS, METHODS, PATIENTS

SIZES: Final = ("small", "base")
SIDES: Final = (48, 64)
TURNS: Final[Mapping[str, int]] = {"ordinary": 7, "ours": 7, "Opacus hooks": 2}
"""Of every other method, 1."""

MOST_TIMES_ORDINARY: Final = 1.1
LEAST_TIMES_FASTER: Final = 3.0

Costs = Mapping[str, Sequence[Cost]]


def measure(folder: Path) -> Measuring:
    """Return seconds and peak memory of each method, for each network and crop."""
    del folder
    columns = ["network, crop", "step", "median s", "times ordinary", "peak MB", "turns"]
    rows, facts, broken = [], [], []
    for size, side in itertools.product(SIZES, SIDES):
        count = sum(
            p.numel()
            for p in build(NetworkOptions.model_validate({"size": size}), seed=0).parameters()
        )
        what = f"{count / 1e6:.1f} M, {side}^3"
        found = yield from compare(what, size=size, side=side)
        for method, costs in found.items():
            rows.append(
                [
                    what,
                    method,
                    statistics.median(cost.seconds for cost in costs),
                    times(found, method, "ordinary"),
                    peak_bytes(costs) / 1e6,
                    len(costs),
                ]
            )
            yield line(columns, rows[-1])
        broken += [f"{what}: {failure}" for failure in failures(found)]
        facts.append(
            {
                "size": size,
                "parameters": count,
                "side": side,
                "times_ordinary": {name: times(found, name, "ordinary") for name in found},
                "hooks_times_ours": times(found, "Opacus hooks", "ours"),
                "costs": {name: [asdict(cost) for cost in costs] for name, costs in found.items()},
            }
        )
    return Result(
        title=f"One step on one thread, {PATIENTS} patients of {CROPS} crops, SegResNet in float32 "
        "(Opacus clips each crop: it has no samples of several)",
        columns=columns,
        rows=rows,
        promise=f"ours takes at most {MOST_TIMES_ORDINARY} times the ordinary step, is "
        f"{LEAST_TIMES_FASTER:g} times faster than Opacus' hooks or more, and needs less memory "
        f"than both{''.join('; ' + what for what in broken)}",
        holds=not broken,
        facts={"configurations": facts, "broken": broken},
    )


def compare(what: str, *, size: str, side: int) -> Generator[str, None, dict[str, list[Cost]]]:
    """Return the costs of the turns of each method; yield each of them, ``what`` before it."""
    found: dict[str, list[Cost]] = {method: [] for method in METHODS}
    with ExitStack() as running:
        steppers = {
            method: running.enter_context(stepper(method, size=size, side=side))
            for method in METHODS
        }
        for turn in range(max(TURNS.values())):
            for method, one in steppers.items():
                if turn < TURNS.get(method, 1):
                    found[method].append(cost := one.step())
                    yield (
                        f"{what}, {method}, turn {turn + 1}: {cost.seconds:.2f} s of the "
                        f"processor, {cost.peak_bytes / 1e6:.0f} MB"
                    )
    return found


def times(found: Costs, method: str, other: str) -> float:
    """Return how many times the seconds of ``other`` a step of ``method`` takes."""
    pairs = zip(found[method], found[other], strict=False)
    return statistics.median(one.seconds / two.seconds for one, two in pairs)


def peak_bytes(costs: Sequence[Cost]) -> int:
    return max(cost.peak_bytes for cost in costs)


def failures(found: Costs) -> list[str]:
    """Return what is not as it is promised."""
    slower, faster = times(found, "ours", "ordinary"), times(found, "Opacus hooks", "ours")
    peaks: dict[str, Any] = {name: peak_bytes(costs) for name, costs in found.items()}
    failed = []
    if slower > MOST_TIMES_ORDINARY:
        failed.append(f"{slower:.2f} times the ordinary step")
    if faster < LEAST_TIMES_FASTER:
        failed.append(f"only {faster:.2f} times faster than Opacus' hooks")
    failed += [
        f"more memory than {name}"
        for name in ("ordinary", "Opacus hooks")
        if peaks["ours"] >= peaks[name]
    ]
    return failed
