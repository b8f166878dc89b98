"""Run one step of our preparation on a raw case and print its cost as JSON.

Files in, files out: each step reads what the one before wrote beside the case, as the rival's do
(``brainles_step``). Only the step is timed, with the reading of the NIfTI files where it reads any.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from client.cohort.case_discovery import read_case
from client.imaging import bias_field, grid, itk, preprocessing, raw_preprocessing, registration
from client.imaging.nifti import Volume, read_volume
from common.regions import MODALITIES
from common.study.protocol import PreprocessingOptions
from tests.benchmarks.brainles_step import cpu_s, peak_mb

OTHERS = [name for name in MODALITIES if name != "t1c"]


class Clock:
    """The seconds between its making and ``cost``, and the peak until then."""

    def __init__(self) -> None:
        self._began = time.monotonic(), cpu_s()

    def cost(self) -> dict[str, Any]:
        seconds, used = time.monotonic() - self._began[0], cpu_s() - self._began[1]
        return {"seconds": seconds, "cpu_s": used, "peak_mb": peak_mb(), "motions": {}}


def n4(folder: Path) -> dict[str, Any]:
    """Correct T1c, timed, then the others for the steps that follow."""
    assert itk.VERSION  # SimpleITK is loaded before the clock starts
    clock = Clock()
    image, _ = bias_field.correct_bias(_canonical(folder, "t1c"))
    cost = clock.cost()
    _keep(folder, "t1c", image)
    for name in OTHERS:
        _keep(folder, name, bias_field.correct_bias(_canonical(folder, name))[0])
    return cost


def register(folder: Path) -> dict[str, Any]:
    assert itk.VERSION
    clock = Clock()
    images = _kept(folder, MODALITIES)
    found = {name: registration.register(images["t1c"], images[name]) for name in OTHERS}
    cost = clock.cost()
    motions = {name: each.matrix.tolist() for name, each in found.items()}
    (folder / "motions.json").write_text(json.dumps(motions))
    return {**cost, "motions": motions}


def brain(folder: Path) -> dict[str, Any]:
    clock = Clock()
    found, _ = raw_preprocessing._brain(_kept(folder, MODALITIES), _motions(folder), "t1c")
    cost = clock.cost()
    np.save(folder / "brain.npy", found)
    return cost


def normalise(folder: Path) -> dict[str, Any]:
    """Sample, clip and z-score: all of ``prepare`` but what aligns, which is known by now."""
    mask = np.load(folder / "brain.npy")
    aligned = raw_preprocessing.Aligned(
        "t1c", _kept(folder, MODALITIES), _motions(folder), mask, ()
    )
    raw_preprocessing.align = lambda *_: aligned
    case = read_case(folder)
    clock = Clock()
    preprocessing.prepare(case, PreprocessingOptions(input="raw"))
    return clock.cost()


STEPS = {"n4": n4, "register": register, "brain": brain, "normalise": normalise}


def _canonical(folder: Path, name: str) -> Volume:
    volume = read_volume(folder / f"case-00001-000-{name}.nii.gz")
    data = np.ascontiguousarray(grid.to_canonical(volume.data, volume.affine), np.float32)
    return Volume(data, grid.canonical_affine(volume.affine, volume.data.shape))


def _keep(folder: Path, name: str, volume: Volume) -> None:
    np.savez(folder / f"{name}.npz", data=volume.data, affine=volume.affine)


def _kept(folder: Path, names: Iterable[str]) -> dict[str, Volume]:
    kept = {name: np.load(folder / f"{name}.npz") for name in names}
    return {name: Volume(one["data"], one["affine"]) for name, one in kept.items()}


def _motions(folder: Path) -> dict[str, grid.Affine]:
    found = json.loads((folder / "motions.json").read_text())
    return {name: np.array(matrix) for name, matrix in found.items()}


if __name__ == "__main__":
    print(json.dumps(STEPS[sys.argv[1]](Path(sys.argv[2]))))  # noqa: T201
