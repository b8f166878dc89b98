"""Processes that take training steps when they are told to, and say what each has cost.

``python -m tests.benchmarks.stepping METHOD SIZE SIDE`` answers each line of its standard input
with one step. Each method has a process of its own, so that its memory is its own, and all those
of a comparison wait for their turns, so that they see the same machine. Needs Linux, whose
``/proc`` keeps and resets the high water mark of a process.

Seconds are of the processor, of all threads of the process: what else runs does not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from tests import children

_PROC: Final = Path("/proc/self")
_WARMING_SIDE: Final = 16
_RESET_HIGH_WATER: Final = "5"

OPACUS_SAYS: Final = (
    # The images of the first layer need no gradient; its parameters have theirs all the same.
    "Full backward hook is firing when gradients are computed with respect to module outputs",
    # Opacus' summed gradients are not channels-last, which only its own optimiser reads.
    "grad and param do not obey the gradient layout contract",
)


@dataclass(frozen=True)
class Cost:
    """What one step took: seconds of the processor and of the clock, bytes above the start."""

    seconds: float
    elapsed_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Stepper:
    """A running process of one method."""

    process: subprocess.Popen[str]

    def step(self) -> Cost:
        """Have it take one step."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("The process has no pipes.")
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"The process ended: {self.process.args}")
        return Cost(**json.loads(line))


@contextmanager
def stepper(method: str, *, size: str, side: int) -> Iterator[Stepper]:
    """Start the process of ``method`` and end it afterwards."""
    process = children.start(
        [sys.executable, "-m", __name__, method, size, str(side)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with process:
        try:
            yield Stepper(process)
        finally:
            process.terminate()


@dataclass(frozen=True)
class Meter:
    """The most memory that this process takes from ``start`` on. Needs Linux."""

    resident: int

    @classmethod
    def start(cls) -> Self:
        """Forget the high water mark until now."""
        (_PROC / "clear_refs").write_text(_RESET_HIGH_WATER)
        return cls(_status("VmRSS"))

    def peak_bytes(self) -> int:
        return _status("VmHWM") - self.resident


def _status(name: str) -> int:
    for line in (_PROC / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc does not tell {name}.")


def main(method: str, size: str, side: int) -> None:
    """Serve steps until the input ends."""
    import torch

    from tests.benchmarks.steps import METHODS, work

    torch.set_num_threads(1)
    for message in OPACUS_SAYS:
        warnings.filterwarnings("ignore", message, UserWarning)
    prepare = METHODS[method]
    prepare(work(size=size, side=_WARMING_SIDE))()
    step = prepare(work(size=size, side=side))
    meter = Meter.start()
    for _ in sys.stdin:
        seconds, elapsed = time.process_time(), time.perf_counter()
        step()
        cost = Cost(
            seconds=time.process_time() - seconds,
            elapsed_s=time.perf_counter() - elapsed,
            peak_bytes=meter.peak_bytes(),
        )
        sys.stdout.write(json.dumps(asdict(cost)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
