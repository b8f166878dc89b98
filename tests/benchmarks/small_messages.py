"""What fewer bytes a message cost in Dice: the same studies with each encoding of updates.

Training has no privacy here: encodings are applied to what is noised already, so that they cost
none, and noise would hide what they do. The four hospitals are phantoms, or the folders of the
folder that the environment variable ``GLIOFED_BENCH_DATA`` names. The seeds differ in what is drawn
in training and in rounding; a seed's studies differ in nothing but the messages.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from common.records.weights import Arrays
from common.study.protocol import StudyProtocol
from tests.benchmarks.federation import (
    Federation,
    Hospital,
    data_folder,
    folder_hospitals,
    phantom_hospitals,
    pretrained,
    score,
)
from tests.benchmarks.result import Measuring, Result

SEEDS: Final = (0, 1, 2)
PROFILES: Final = ("3t-research", "1.5t-community", "3t-lowgrade", "1.5t-screening")
PATIENTS: Final = 8
HELD_OUT: Final = 8
PRETRAINING_STEPS: Final = 120
PLAIN: Final = "float32"
SMALL: Final = "int8"
MESSAGES: Final[Mapping[str, Mapping[str, Any]]] = {
    PLAIN: {},
    "float16": {"encoding": "float16"},
    SMALL: {"encoding": "int8"},
    "int8, largest 10 %": {"encoding": "int8", "top_share": 0.1},
}

MOST_BYTES: Final = 0.27
"""Of the bytes of float32."""

MOST_DICE: Final = 0.01


def measure(folder: Path) -> Measuring:
    """Return Dice and bytes per update of each encoding."""
    torch.set_num_threads(1)
    hospitals, source = _hospitals(folder)
    scans = [scan for hospital in hospitals for scan in hospital.held_out]
    found: dict[str, list[float]] = {name: [] for name in MESSAGES}
    nbytes: dict[str, float] = {}
    start = 0.0
    for seed in SEEDS:
        yield f"seed {seed}: the start, {PRETRAINING_STEPS} steps"
        federation = Federation(_start(folder, seed), seed)
        start = score(federation.start, protocol_of({}), scans)
        for name, messages in MESSAGES.items():
            study = protocol_of(messages)
            outcome = federation.study(study, hospitals)
            nbytes[name] = statistics.fmean(outcome.nbytes)
            found[name].append(score(outcome.weights, study, scans))
            yield f"seed {seed}, {name}: {nbytes[name]:.0f} bytes, Dice {found[name][-1]:.4f}"
    dice = {name: statistics.fmean(several) for name, several in found.items()}
    share = nbytes[SMALL] / nbytes[PLAIN]
    lost = dice[PLAIN] - dice[SMALL]
    return Result(
        title=f"Encodings of updates, {len(hospitals)} sites of {source}, {len(scans)} held-out "
        f"scans, mean over {len(SEEDS)} seeds (start: Dice {start:.3f})",
        columns=["updates as", "bytes an update", "of float32", "Dice", "to float32", "by seed"],
        rows=[
            [
                name,
                round(nbytes[name]),
                f"{nbytes[name] / nbytes[PLAIN]:.3f}",
                f"{dice[name]:.4f}",
                f"{dice[name] - dice[PLAIN]:+.4f}",
                ", ".join(f"{one:.3f}" for one in several),
            ]
            for name, several in found.items()
        ],
        promise=f"int8 takes at most {MOST_BYTES} of the bytes, it takes {share:.3f}, with Dice "
        f"within {MOST_DICE} of float32's, {lost:+.4f} below it",
        holds=share <= MOST_BYTES and abs(lost) <= MOST_DICE,
        facts={"data": source, "start": start, "dice": found, "bytes": nbytes},
    )


def protocol_of(messages: Mapping[str, Any]) -> StudyProtocol:
    """Return the study; only ``messages`` differ."""
    return StudyProtocol.model_validate(
        {
            "study": "small-messages",
            "title": "Small messages",
            "expires": "2099-12-31",
            "rounds": 5,
            "network": {"size": "tiny"},
            "preprocessing": {"spacing_mm": 3.75},
            "training": {
                "local_steps": 6,
                "crop_size": [24, 24, 24],
                "crops_per_patient": 2,
                "patients_per_step": 4,
                "learning_rate": 2e-3,
            },
            "aggregation": {"quorum": 1},
            "privacy": {"mode": "none"},
            "messages": messages,
        }
    )


def _start(folder: Path, seed: int) -> Arrays:
    """Return weights trained on phantoms of a hospital that takes no part."""
    (reference,) = phantom_hospitals(
        folder / f"start-{seed}",
        ["reference"],
        protocol_of({}),
        patients=PATIENTS,
        held_out=1,
        size=64,
        seed=seed + 1000,
    )
    return pretrained(reference, protocol_of({}), steps=PRETRAINING_STEPS, seed=seed)


def _hospitals(folder: Path) -> tuple[Sequence[Hospital], str]:
    """Return the hospitals, and what they are."""
    data = data_folder()
    if data:
        return folder_hospitals(data, folder / "cache", protocol_of({})), "a folder"
    hospitals = phantom_hospitals(
        folder,
        PROFILES,
        protocol_of({}),
        patients=PATIENTS,
        held_out=HELD_OUT,
        size=64,
        seed=100,
    )
    return hospitals, "phantoms"
