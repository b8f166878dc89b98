"""Run one step of brainles-preprocessing on a raw case; print its cost and the motions as JSON.

Run by the Python that has it (``raw_rivals``), so it imports nothing of gliofed. Its parameters are
its own defaults. A motion is 4 x 4, RAS, mm, and takes a point of T1c's world to the sequence's, as
``client.imaging.registration`` has it.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

OTHERS = ("t1n", "t2w", "t2f")
Step = Callable[[], Any]


def registration(name: str, folder: Path) -> tuple[Step, Callable[[], dict[str, Any]]]:
    from brainles_preprocessing import registration as library

    registrator = getattr(library, name)()
    suffix = ".txt" if name == "NiftyRegRegistrator" else ".mat"
    out = folder / name
    out.mkdir()

    def step() -> None:
        for other in OTHERS:
            registrator.register(
                str(folder / "case-00001-000-t1c.nii.gz"),
                str(folder / f"case-00001-000-{other}.nii.gz"),
                str(out / f"{other}.nii.gz"),
                str(out / f"{other}{suffix}"),
                str(out / f"{other}.log"),
            )

    def motions() -> dict[str, Any]:
        read = from_ants if name == "ANTsRegistrator" else np.loadtxt
        return {other: read(out / f"{other}{suffix}").tolist() for other in OTHERS}

    return step, motions


def from_ants(path: Path) -> Any:
    """Return an ITK transform, LPS about a centre, as a matrix in RAS."""
    import ants

    transform = ants.read_transform(str(path))
    matrix = np.array(transform.parameters[:9]).reshape(3, 3)
    centre = np.array(transform.fixed_parameters)
    found = np.eye(4)
    found[:3, :3] = matrix
    found[:3, 3] = np.array(transform.parameters[9:]) + centre - matrix @ centre
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    return flip @ found @ flip


def bias(folder: Path) -> Step:
    from brainles_preprocessing.n4_bias_correction import SitkN4BiasCorrector

    corrector = SitkN4BiasCorrector()
    image = folder / "case-00001-000-t1c.nii.gz"
    return lambda: corrector.correct(image, folder / "n4.nii.gz")


def normalising(folder: Path) -> Step:
    from auxiliary.io import read_image
    from brainles_preprocessing.normalization import PercentileNormalizer

    normaliser = PercentileNormalizer(lower_percentile=0.1, upper_percentile=99.9)

    def step() -> None:
        for name in ("t1c", *OTHERS):
            normaliser.normalize(read_image(str(folder / f"case-00001-000-{name}.nii.gz")))

    return step


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    motions: Callable[[], dict[str, Any]] = dict
    if name == "n4":
        step = bias(folder)
    elif name == "normalise":
        step = normalising(folder)
    else:
        step, motions = registration(name, folder)
    began, began_cpu = time.monotonic(), cpu_s()
    step()
    cost = {"seconds": time.monotonic() - began, "cpu_s": cpu_s() - began_cpu, "peak_mb": peak_mb()}
    # The libraries write to stdout as they like: the last line is ours.
    print("\n" + json.dumps({**cost, "motions": motions()}))  # noqa: T201


def cpu_s() -> float:
    """Return the seconds of this process and of those it ended: NiftyReg is a program."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_mb() -> float:
    """Return the larger peak of this process and its children; a parent's does not count."""
    own = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert own is not None
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(int(own[1]), children) * 1.024 / 1000


if __name__ == "__main__":
    main()
