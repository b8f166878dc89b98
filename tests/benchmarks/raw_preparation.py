"""How well and how fast raw heads are prepared, measured where the truth is known.

Raw phantom cases of all profiles, each sequence on its own grid and moved by up to 6 degrees about
and 6 mm along each axis; in-plane 1 mm, slices as thick as the profile's. Registration error is
taken over all voxels of the brain. Each case is prepared in a process of its own, so that its
memory is its own. GLIOFED_BENCH_RAW_CASES says how many cases; 20 are what the promise is about.

Real heads: those of ``tests.real_heads`` that are installed, against HD-BET's masks. Others can be
named in GLIOFED_BENCH_HEADS, as HEAD:MASK pairs of NIfTI files at 1 mm, separated by commas.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from client.imaging import grid
from client.imaging.brain_extraction import extract_brain
from client.imaging.nifti import write_volume
from client.phantoms.profiles import PROFILES
from client.phantoms.raw_head import RawCase, make_raw_case
from common.regions import MODALITIES
from tests import children, real_heads
from tests.benchmarks.result import Measuring, Result, line

CASES: Final = int(os.environ.get("GLIOFED_BENCH_RAW_CASES", "2"))
MEAN_MM, MOST_MM = 0.5, 1.0
ROUND_TRIP: Final = 0.98
BRAIN: Final = 0.95
MOST_S, MOST_MB = 90.0, 4000.0


def measure(folder: Path) -> Measuring:
    """Return each case's errors and costs, and the brain's Dice on real heads."""
    profiles = list(PROFILES.values())
    rows: list[list[object]] = []
    facts: list[dict[str, Any]] = []
    for number in range(CASES):
        profile = profiles[number % len(profiles)]
        case = make_raw_case(profile, seed=11, number=number)
        found = _prepared(folder / f"case-{number}", case)
        errors = {
            name: errors_mm(case, name, np.array(found["motions"][name]))
            for name in MODALITIES
            if name != "t1c"
        }
        found |= {
            "profile": profile.name,
            "mean_mm": float(np.mean([mean for mean, _ in errors.values()])),
            "max_mm": max(most for _, most in errors.values()),
            "errors_mm": errors,
        }
        facts.append(found)
        rows.append([profile.name, *(found[name] for name in _SHOWN)])
        yield f"case {number + 1} of {CASES}, {line(['case', *_SHOWN], rows[-1])}"
    heads = {str(head): _real(head, mask) for head, mask in _heads()}
    for name in real_heads.HEADS:
        if (place := real_heads.place(name)) is not None:
            heads[name] = real_heads.brain_dice(name, place)
    yield from (f"{head}: brain_dice {dice:.3f}" for head, dice in heads.items())
    rows += [[head, None, None, None, dice, *[None] * 4] for head, dice in heads.items()]
    mean_mm = float(np.mean([one["mean_mm"] for one in facts]))
    holds = (
        mean_mm <= MEAN_MM
        and max(one["max_mm"] for one in facts) <= MOST_MM
        and min(one["round_trip"] for one in facts) >= ROUND_TRIP
        and max(one["seconds"] for one in facts) <= MOST_S
        and max(one["peak_mb"] for one in facts) <= MOST_MB
        and min(heads.values(), default=1.0) >= BRAIN
    )
    return Result(
        title=f"Raw heads, {CASES} phantom cases: mean error {mean_mm:.2f} mm",
        columns=["case", *_SHOWN],
        rows=rows,
        promise=f"error <= {MEAN_MM:g} mm on average, <= {MOST_MM:g} mm anywhere; round trip Dice "
        f">= {ROUND_TRIP:g}; Dice of real brains >= {BRAIN:g}; <= {MOST_S:g} s and "
        f"<= {MOST_MB:g} MB a case",
        holds=holds,
        facts={"cases": facts, "heads": heads, "mean_mm": mean_mm},
    )


_SHOWN: Final = (
    "mean_mm",
    "max_mm",
    "residual_mm",
    "brain_dice",
    "round_trip",
    "seconds",
    "cpu_s",
    "peak_mb",
)


def _prepared(folder: Path, case: RawCase) -> dict[str, Any]:
    """Write the case as a hospital would have it and prepare it in another process."""
    folder.mkdir()
    for name, image in case.images.items():
        write_volume(folder / f"case-00001-000-{name}.nii.gz", image, case.affines[name])
    affine = case.affines["t1c"]
    write_volume(folder / "case-00001-000-seg.nii.gz", case.labels, affine)
    np.save(folder / "brain.npy", case.brain)
    command = [sys.executable, "-m", "tests.benchmarks.raw_case", str(folder)]
    done = children.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def errors_mm(case: RawCase, name: str, found: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean and largest distance between found and true places of the brain's voxels."""
    affine = case.affines["t1c"]
    points = np.argwhere(case.brain) @ affine[:3, :3].T + affine[:3, 3]
    off = found - case.motions[name]
    distance = np.linalg.norm(points @ off[:3, :3].T + off[:3, 3], axis=1)
    return float(distance.mean()), float(distance.max())


def _heads() -> list[tuple[Path, Path]]:
    named = os.environ.get("GLIOFED_BENCH_HEADS", "")
    pairs = [tuple(map(Path, pair.split(":"))) for pair in named.split(",") if pair]
    return [(head, mask) for head, mask in pairs]


def _real(head: Path, mask: Path) -> float:
    """Return the Dice of the brain that is found in a head at 1 mm with the mask's."""
    image, truth = nib.load(head), nib.load(mask)
    data = grid.to_canonical(np.squeeze(image.get_fdata(dtype=np.float32)), image.affine)
    want = grid.to_canonical(np.squeeze(np.asarray(truth.dataobj)) > 0, truth.affine)
    found = extract_brain(np.ascontiguousarray(data))
    return float(2 * np.count_nonzero(found & want) / (found.sum() + want.sum()))
