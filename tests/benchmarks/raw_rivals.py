"""Our steps on raw heads beside those of brainles-preprocessing, one thread each, in one run.

The cases are those of ``raw_preparation``; GLIOFED_BENCH_RIVAL_CASES says how many. Each step of
each case runs in a process of its own. GLIOFED_BENCH_BRAINLES names the Python that has
brainles-preprocessing, antspyx and picsl-greedy; without it the rival's rows say "not measured".
Each side does what its own pipeline does, with its own defaults: ours registers what N4 corrected,
the rival the scanner's images, and its registration writes the moved images too. N4 is timed on T1c
alone. The rival's brain extraction downloads its models, so it is not measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from client.imaging.nifti import write_volume
from client.phantoms.profiles import PROFILES
from client.phantoms.raw_head import RawCase, make_raw_case
from tests import children
from tests.benchmarks.raw_preparation import errors_mm
from tests.benchmarks.result import Measuring, Result

CASES: Final = int(os.environ.get("GLIOFED_BENCH_RIVAL_CASES", "3"))
RIVAL: Final = os.environ.get("GLIOFED_BENCH_BRAINLES", "")
MOST_S: Final = 3600.0  # for one step of one case, on however busy a machine
DOWNLOADS: Final = "downloads its model: not measured"
ABSENT: Final = "not measured: GLIOFED_BENCH_BRAINLES names no Python"

OURS: Final = {
    "n4": "N4 of T1c",
    "register": "registration of three",
    "brain": "brain mask",
    "normalise": "resampling, z-score",
}
THEIRS: Final = {
    "ANTsRegistrator": "registration of three, ANTs",
    "GreedyRegistrator": "registration of three, Greedy",
    "NiftyRegRegistrator": "registration of three, NiftyReg",
    "normalise": "percentiles",
    "n4": "N4 of T1c",  # last: it takes longest
}
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
_COSTS: Final = ("cpu_s", "seconds", "peak_mb")


def measure(folder: Path) -> Measuring:
    """Return what each step cost on average and at most, and how far registrations were off."""
    found: dict[str, list[dict[str, Any]]] = {}
    profiles = list(PROFILES.values())
    for number in range(CASES):
        case = make_raw_case(profiles[number % len(profiles)], seed=11, number=number)
        place = folder / f"case-{number}"
        _write(place, case)
        commands = {f"gliofed {step}": _ours(step) for step in OURS}
        if RIVAL:
            commands |= {f"brainles {step}": _theirs(step) for step in THEIRS}
        for step, command in commands.items():
            one = _run([*command, str(place)]) | {"case": number}
            errors = [
                errors_mm(case, name, np.array(matrix))
                for name, matrix in one.get("motions", {}).items()
            ]
            if errors:
                one |= {
                    "mean_mm": float(np.mean([mean for mean, _ in errors])),
                    "max_mm": max(most for _, most in errors),
                }
            found.setdefault(step, []).append(one)
            said = ", ".join(
                f"{key} {one[key]:.4g}" for key in (*_COSTS, "mean_mm", "max_mm") if key in one
            )
            yield f"case {number + 1} of {CASES}, {step}: {one.get('fault', said)}"
    return Result(
        title=f"Steps on raw heads, mean of {CASES} phantom cases, one thread",
        columns=["step", "of", *_COSTS, "mean_mm", "max_mm", "remark"],
        rows=[
            *(_row(title, "gliofed", found[f"gliofed {step}"]) for step, title in OURS.items()),
            *(
                _row(title, "brainles", found.get(f"brainles {step}", []))
                for step, title in THEIRS.items()
            ),
            ["brain mask, HD-BET or SynthStrip", "brainles", *[None] * 5, DOWNLOADS],
        ],
        promise="a comparison",
        holds=None,
        facts={"steps": found},
    )


def minutes() -> float:
    """Return about how many minutes it takes: the rival needs many more a case."""
    return CASES * (15 if RIVAL else 2)


def _row(title: str, whose: str, runs: list[dict[str, Any]]) -> list[object]:
    """Return means over cases, of peaks and largest errors the largest."""
    if not runs:
        return [title, whose, *[None] * 5, ABSENT]
    done = [one for one in runs if "fault" not in one]
    faults = [one["fault"] for one in runs if "fault" in one]
    remark = f"{len(faults)} of {len(runs)} failed: {faults[0]}" if faults else ""
    if not done:
        return [title, whose, *[None] * 5, remark]
    cpu, seconds, mean_mm = (
        float(np.mean([one[key] for one in done])) if key in done[0] else None
        for key in ("cpu_s", "seconds", "mean_mm")
    )
    peak_mb, max_mm = (
        max(one[key] for one in done) if key in done[0] else None for key in ("peak_mb", "max_mm")
    )
    return [title, whose, cpu, seconds, peak_mb, mean_mm, max_mm, remark]


def _ours(step: str) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks.raw_steps", step]


def _theirs(step: str) -> list[str]:
    return [RIVAL, str(Path(__file__).with_name("brainles_step.py")), step]


def _run(command: list[str]) -> dict[str, Any]:
    """Return what the last line of a step's output says, or its fault."""
    environment = os.environ | _ONE_THREAD
    try:
        done = children.run(
            command, env=environment, capture_output=True, text=True, timeout=MOST_S
        )
    except subprocess.TimeoutExpired:
        return {"fault": f"not done after {MOST_S:g} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"fault": lines[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _write(folder: Path, case: RawCase) -> None:
    """Write the sequences as float32: the rival's N4 takes no integers."""
    folder.mkdir()
    for name, image in case.images.items():
        path = folder / f"case-00001-000-{name}.nii.gz"
        write_volume(path, image.astype(np.float32), case.affines[name])
    label = folder / "case-00001-000-seg.nii.gz"
    write_volume(label, case.labels, case.affines["t1c"])
