"""What one private step (clip each patient, add noise) costs beside an ordinary one."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch

from client.imaging.preprocessing import Prepared
from client.private_training import CountingCharge, train_privately
from client.training import ExecutionOptions, Patient, train
from common.networks import build
from common.protocol import NetworkOptions, PrivacyOptions, TrainingOptions
from tests.benchmarks.result import Result

PATIENTS: Final = 4
SIDE: Final = 48
REPETITIONS: Final = 9
OPTIONS: Final = TrainingOptions(
    local_steps=1,
    crop_size=(SIDE, SIDE, SIDE),
    crops_per_patient=2,
    patients_per_step=PATIENTS,
    learning_rate=1e-3,
)
PRIVACY: Final = PrivacyOptions(sampling_rate=1.0, nominal_patients=PATIENTS)


def measure(folder: Path) -> Result:
    """Return the seconds of both kinds of step, taken in turns so that the machine is the same."""
    del folder
    torch.set_num_threads(1)
    patients = [_patient(number) for number in range(PATIENTS)]
    execution = ExecutionOptions()
    seconds: dict[str, list[float]] = {"ordinary": [], "private": []}
    for repetition in range(REPETITIONS + 1):
        for kind, times in seconds.items():
            network = build(NetworkOptions(filters=8), seed=0)
            if kind == "ordinary":
                done = train(network, patients, OPTIONS, seed=repetition, execution=execution)
            else:
                done = train_privately(
                    network, patients, OPTIONS, PRIVACY, CountingCharge(), execution=execution
                )
            if repetition:  # the first warms up
                times.append(done.seconds)
    ratios = [p / o for p, o in zip(seconds["private"], seconds["ordinary"], strict=True)]
    ratio = statistics.median(ratios)
    return Result(
        title=f"One step, {PATIENTS} patients of 2 crops of {SIDE}^3, SegResNet of 8 filters",
        columns=["step", "median s", "least s", "most s"],
        rows=[
            [kind, statistics.median(times), min(times), max(times)]
            for kind, times in seconds.items()
        ],
        promise=f"a private step costs {ratio:.2f} times an ordinary one",
        holds=None,
        facts={"ratio": ratio, "ratios": ratios, "seconds": seconds},
    )


def _patient(number: int) -> Patient:
    rng = np.random.default_rng(number)
    shape = (64, 64, 64)
    labels = np.zeros(shape, np.uint8)
    labels[24:40, 24:40, 24:40] = rng.integers(1, 4, (16, 16, 16))
    prepared = Prepared(
        image=rng.standard_normal((4, *shape), np.float32),
        labels=labels,
        affine=np.eye(4),
        native_shape=shape,
        native_affine=np.eye(4),
        history=(),
    )
    return [partial(_same, prepared)]


def _same(prepared: Prepared) -> Prepared:
    return prepared
