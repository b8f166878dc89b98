"""Seconds per round without any training: what the federation itself costs.

Two sites over real processes and a model of 18.7 MB, beside stock Flower on the same machine.
"""

from __future__ import annotations

import datetime as dt
import itertools
import statistics
import sys
from pathlib import Path
from typing import Final

from client.networks.registry import build, state_arrays
from common.study.protocol import NetworkOptions
from tests.benchmarks.result import Measuring, Result, line
from tests.benchmarks.stock import seconds_per_round
from tests.deployment.stack import PROTOCOL, Stack, running_stack

NETWORK: Final = NetworkOptions(size="base")
ROUNDS: Final = 8
MOST_S: Final = 6.0
SITES: Final = ("north", "south")
_NETWORK = 'size = "base"'


def measure(folder: Path) -> Measuring:
    """Return the seconds per round of gliofed and of stock Flower."""
    weights = state_arrays(build(NETWORK, seed=0))
    size = sum(array.nbytes for array in weights.values())
    columns = ["", "median s", "least s", "most s", "rounds"]
    yield "a study of gliofed"
    found = {"gliofed": _ours(folder / "ours")}
    yield line(columns, _row("gliofed", found["gliofed"]))
    yield "the same rounds over stock Flower"
    (folder / "stock").mkdir()
    shapes = {name: array.shape for name, array in weights.items()}
    found["stock Flower"] = seconds_per_round(folder / "stock", shapes, rounds=ROUNDS)
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    return Result(
        title=f"Round without training, {size / 1e6:.1f} MB, two sites",
        columns=columns,
        rows=[_row(name, seconds) for name, seconds in found.items()],
        promise=f"at most {MOST_S:g} s a round",
        holds=medians["gliofed"] <= MOST_S,
        facts={"bytes": size, "median_s": medians, "seconds": found},
    )


def _row(name: str, seconds: list[float]) -> list[object]:
    return [name, statistics.median(seconds), min(seconds), max(seconds), len(seconds)]


def _ours(folder: Path) -> list[float]:
    folder.mkdir()
    with running_stack(folder) as stack:
        for seed, name in enumerate(SITES):
            stack.enrol(name, seed=seed, patients=4)
        text = PROTOCOL.replace('size = "tiny"', _NETWORK)
        stack.publish("idle", text=text, rounds=ROUNDS, local_steps=1)
        stack.start("server")
        for name in SITES:
            stack.start(name, command=idle(stack, name))
        stack.wait_for_offer("idle", *SITES)
        stack.approve("idle", *SITES)
        stack.call("gliofed-server", "launch", stack.coordinator, "idle")
        closed = stack.journal.events("round closed", study="idle")
        times = [dt.datetime.fromisoformat(entry.time).timestamp() for entry in closed]
        return [after - before for before, after in itertools.pairwise(times)]


def idle(stack: Stack, name: str) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks.idle_site", str(stack.site(name))]
