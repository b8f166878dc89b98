"""What predicting a case of 240 x 240 x 155 voxels takes, beside MONAI's ``SlidingWindowInferer``.

SegResNet of 4.7 million parameters, trained for ten minutes on phantoms of 1 mm, so that masks mean
something; windows of 128^3 with an overlap of a half and Gaussian weights; two threads. MONAI's own
network with the same weights goes through its own inferer. Each way takes its turn in a process of
its own; a ratio is the median of the ratios within the turns.

Through MONAI's very windows the masks must be MONAI's. As a rule gliofed looks at the brain's box
alone, which it sees whole if it is not much larger than a window: group norm sees less of the void
then, and Dice is another, which must not be lower. ``GLIOFED_BENCH_TURNS`` other turns than 2, of
about two minutes each for MONAI on an idle machine.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from client.cohort import read_cohort
from client.imaging.cache import PreparedCache
from client.phantoms import PROFILES, write_cohort
from client.training import ExecutionOptions, Patient, train
from common.metrics import dice
from common.networks import build, state_arrays
from common.protocol import PreprocessingOptions, TrainingOptions
from common.regions import REGIONS, labels_to_regions, regions_to_labels
from common.weights import save
from tests.benchmarks.predicting import NETWORK, THREADS, WAYS
from tests.benchmarks.result import Result

SHAPE: Final = (240, 240, 155)
SIDE: Final = 128
TURNS: Final = int(os.environ.get("GLIOFED_BENCH_TURNS", "2"))
PATIENTS: Final = 10
"""Phantoms to train on; one more is predicted."""
TRAINING: Final = TrainingOptions(
    local_steps=100,
    crop_size=(64, 64, 64),
    crops_per_patient=2,
    patients_per_step=1,
    learning_rate=2e-3,
)

MOST_TIME: Final = 0.5
MOST_DICE: Final = 0.002


def measure(folder: Path) -> Result:
    """Return seconds, peak memory and Dice of each way."""
    truth = prepare(folder)
    turns = [{way: predicted(folder, way, truth) for way in WAYS} for _ in range(TURNS)]
    stock = turns[0]["MONAI"]
    rows, facts = [], {}
    for way in WAYS:
        of = [turn[way] for turn in turns]
        ratio = statistics.median(t[way]["seconds"] / t["MONAI"]["seconds"] for t in turns)
        peak = max(one["peak_bytes"] for one in of)
        same = float(
            np.mean([dice(a, b) for a, b in zip(of[0]["mask"], stock["mask"], strict=True)])
        )
        seconds = statistics.median(one["seconds"] for one in of)
        rows.append([way, seconds, ratio, peak / 1e6, *of[0]["dice"], same])
        facts[way] = {
            "seconds": seconds,
            "times_monai": ratio,
            "peak_bytes": peak,
            "dice": dict(zip(REGIONS, of[0]["dice"], strict=True)),
            "dice_with_monai": same,
        }
    ours, exact, theirs = (facts[way] for way in ("gliofed", "gliofed, MONAI's windows", "MONAI"))
    gained = [exact["dice"][region] - theirs["dice"][region] for region in REGIONS]
    in_box = min(ours["dice"][region] - theirs["dice"][region] for region in REGIONS)
    return Result(
        title=f"Predicting {' x '.join(map(str, SHAPE))} voxels on {THREADS} threads",
        columns=["way", "seconds", "times MONAI", "peak MB", *REGIONS, "agreement"],
        rows=rows,
        promise=f"through MONAI's windows its Dice within {MOST_DICE}, it is from "
        f"{min(gained):+.4f} to {max(gained):+.4f}; in the brain's box at most {MOST_TIME} times "
        f"its time, it takes {ours['times_monai']:.3f}, and no region's Dice lower by more, the "
        f"least gain is {in_box:+.4f}; less memory, both",
        holds=ours["times_monai"] <= MOST_TIME
        and all(one["peak_bytes"] < theirs["peak_bytes"] for one in (exact, ours))
        and max(map(abs, gained)) <= MOST_DICE
        and in_box >= -MOST_DICE,
        facts=facts,
    )


def prepare(folder: Path) -> np.ndarray:
    """Leave weights and an image in ``folder``; return the region masks that are true."""
    torch.set_num_threads(THREADS)
    write_cohort(
        folder / "phantoms", PROFILES["reference"], patients=PATIENTS + 1, size=SHAPE[0], seed=0
    )
    cache = PreparedCache(folder / "cache", PreprocessingOptions())
    cases = {case.patient: case for case in read_cohort(folder / "phantoms").cases}
    last, *others = [functools.partial(cache.get, case) for case in cases.values()]
    patients: list[Patient] = [[load] for load in others]
    network = build(NETWORK, seed=0)
    train(network, patients, TRAINING, seed=0, execution=ExecutionOptions())
    save(folder / "weights.safetensors", state_arrays(network), {})
    prepared = last()
    if prepared.labels is None:
        raise RuntimeError("a phantom has no labels")
    inside = prepared.labels.shape
    box = tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(SHAPE, inside, strict=True))
    image, labels = np.zeros((4, *SHAPE), np.float32), np.zeros(SHAPE, np.uint8)
    image[:, *box], labels[box] = prepared.image, prepared.labels
    np.save(folder / "image.npy", image)
    return labels_to_regions(labels)


def predicted(folder: Path, way: str, truth: np.ndarray) -> dict[str, Any]:
    """Return what one way took, its masks, and their Dice with the truth."""
    command = [sys.executable, "-m", "tests.benchmarks.predicting", str(folder), way, str(SIDE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    mask = labels_to_regions(regions_to_labels(np.load(folder / "found.npy")))
    scores = [dice(p, t) for p, t in zip(mask, truth, strict=True)]
    return {**json.loads(done.stdout), "mask": mask, "dice": scores}
