"""What a segmentation is worth without some sequences, and whether it says so itself.

Two small networks are trained on the same phantoms, from the same weights, with as many steps: one
on whole crops, one with ``sequence_dropout``. Both then segment the same held-out patients with
every set of sequences that holds T1c or FLAIR, through the clinic's own code. Told are Dice, the
mean uncertainty in the brain, and how often the true volume of a region lies in the given range.

Beside that, where no T1 is there the brain is sought in the FLAIR: its overlap with the phantoms'
true brain, against the T1s.

``GLIOFED_BENCH_STEPS`` sets other steps, to see that it runs. About six minutes on one core.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.clinic.uncertainty import predictions, range_ml, uncertainty
from client.imaging import grid, raw_preprocessing
from client.imaging.bias_field import correct_bias
from client.imaging.missing_sequences import PARTIAL, There, blank
from client.imaging.nifti import Volume
from client.networks.registry import build, load_arrays
from client.phantoms.profiles import PROFILES
from client.phantoms.raw_head import make_raw_case
from client.segmentation.dice import RegionScores
from client.segmentation.postprocessing import segmented
from client.segmentation.prediction import predict
from common.regions import MODALITIES, REGIONS, labels_to_regions
from common.study.protocol import StudyProtocol, parse_protocol
from tests.benchmarks.federation import EXECUTION, Hospital, Scan, phantom_hospitals, pretrained
from tests.benchmarks.result import Measuring, Result

STEPS: Final = int(os.environ.get("GLIOFED_BENCH_STEPS", "600"))
SEED: Final = 1
HOSPITALS: Final = ("reference", "3t-research", "1.5t-community")
PATIENTS: Final = 12
HELD_OUT: Final = 6
SIZE: Final = 40
DROPOUT: Final = 0.5
HEADS: Final = (("reference", 2), ("1.5t-community", 3))
"""Profile and number of the raw heads in which the brain is sought."""

_WHOLE: Final = (True,) * len(MODALITIES)


@dataclass(frozen=True)
class Subset:
    """What a network gives with one set of sequences, over all held-out scans."""

    dice: dict[str, float]
    uncertainty: float
    """Mean over the brain and the scans, in nats."""
    in_range: float
    """Share of the scans' regions whose true volume lies in the range."""
    width_ml: float
    """Mean width of the range."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.dice.values())


def measure(folder: Path) -> Measuring:
    """Return Dice, uncertainty and ranges for each set of sequences, with dropout and without."""
    base = protocol(0.0)
    hospitals = phantom_hospitals(
        folder, HOSPITALS, base, patients=PATIENTS, held_out=HELD_OUT, size=SIZE, seed=SEED
    )
    pooled = Hospital(
        "pooled",
        tuple(patient for one in hospitals for patient in one.patients),
        tuple(scan for one in hospitals for scan in one.held_out),
    )
    found: dict[float, dict[There, Subset]] = {}
    seconds = {}
    for dropout in (DROPOUT, 0.0):
        yield f"{STEPS} steps with dropout {dropout:g}"
        began = time.perf_counter()
        chosen = protocol(dropout)
        network = build(chosen.network, seed=0)
        load_arrays(network, pretrained(pooled, chosen, steps=STEPS, seed=SEED))
        seconds[dropout] = time.perf_counter() - began
        found[dropout] = {}
        for there in (_WHOLE, *PARTIAL):
            one = _subset(network.eval(), chosen, pooled.held_out, there)
            found[dropout][there] = one
            yield f"dropout {dropout:g}, {_name(there)}: Dice {one.mean:.3f}"
    told, untold = found[DROPOUT], found[0.0]
    better = sum(told[there].mean > untold[there].mean for there in PARTIAL)
    wider = [_name(t) for t in PARTIAL if told[t].uncertainty < told[_WHOLE].uncertainty]
    yield "the brain in raw heads"
    heads = {}
    for name, scores in _brains():
        heads[name] = scores
        yield f"{name}: " + ", ".join(f"{seq} Dice {value:.3f}" for seq, value in scores.items())
    return Result(
        title=f"{len(pooled.held_out)} held-out phantom scans with some of their sequences",
        columns=[
            "sequences",
            f"Dice, dropout {DROPOUT}",
            *REGIONS,
            "Dice, no dropout",
            "uncertainty",
            "truth in range",
            "range, mL",
        ],
        rows=[
            [
                _name(there),
                round(one.mean, 3),
                *(round(one.dice[region], 3) for region in REGIONS),
                round(untold[there].mean, 3),
                round(one.uncertainty, 4),
                f"{one.in_range:.0%}",
                round(one.width_ml, 1),
            ]
            for there, one in told.items()
        ],
        promise=f"dropout is better with {better} of the {len(PARTIAL)} incomplete sets, and less "
        f"sure with none than with all sequences (surer: {', '.join(wider) or 'none'})",
        holds=(better == len(PARTIAL) and not wider)
        if "GLIOFED_BENCH_STEPS" not in os.environ
        else None,
        facts={
            "dropout": {_name(there): vars(one) for there, one in told.items()},
            "no_dropout": {_name(there): vars(one) for there, one in untold.items()},
            "brain_dice": heads,
            "patients": len(pooled.patients),
            "held_out_scans": len(pooled.held_out),
            "steps": STEPS,
            "training_seconds": {str(key): round(value, 1) for key, value in seconds.items()},
        },
    )


def protocol(dropout: float) -> StudyProtocol:
    """Return the study of one network, as a coordinator would write it."""
    return parse_protocol(
        {
            "study": "missing-sequences",
            "title": "Missing sequences",
            "expires": "2090-01-01",
            "rounds": 1,
            "network": {"blocks_down": [1, 1, 1], "blocks_up": [1, 1]},
            "preprocessing": {"spacing_mm": 6.0},
            "training": {
                "local_steps": 1,
                "crop_size": [24, 24, 24],
                "crops_per_patient": 2,
                "patients_per_step": 3,
                "optimizer": "adam",
                "learning_rate": 2e-3,
                "sequence_dropout": dropout,
            },
            "aggregation": {"quorum": 1},
            "privacy": {"mode": "none"},
        },
        source="the benchmark",
    )


def _subset(
    network: torch.nn.Module, chosen: StudyProtocol, scans: tuple[Scan, ...], there: There
) -> Subset:
    voxel_ml = chosen.preprocessing.spacing_mm**3 / 1000
    probabilities = functools.partial(
        predict, network, crop_size=chosen.training.crop_size, execution=EXECUTION
    )
    scores, unsure, hits, widths = RegionScores(), [], [], []
    for scan in scans:
        image = scan.image.copy()
        blank(image, there)
        found = predictions(probabilities, image)
        truth = labels_to_regions(scan.labels)
        labels = segmented(found.there, chosen.postprocessing, voxel_mm3=1000 * voxel_ml)
        scores += RegionScores.of_case(labels_to_regions(labels), truth)
        unsure.append(float(uncertainty(found)[(scan.image != 0).any(axis=0)].mean()))
        ranges = range_ml(found.all, voxel_ml=voxel_ml)
        for region, part in zip(REGIONS, truth, strict=True):
            low, high = ranges[region]
            hits.append(low <= round(float(part.sum()) * voxel_ml, 3) <= high)
            widths.append(high - low)
    return Subset(
        {region: scores.mean(region) or 0.0 for region in REGIONS},
        statistics.fmean(unsure),
        statistics.fmean(hits),
        statistics.fmean(widths),
    )


def _brains() -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the Dice of the brain that is found in each sequence of a raw head alone."""
    for profile, number in HEADS:
        made = make_raw_case(PROFILES[profile], seed=SEED, number=number, working_mm=2.0)
        scores = {}
        for name in ("t1n", "t1c", "t2f"):
            volume = Volume(made.images[name].astype(np.float32), made.affines[name])
            volume, _ = correct_bias(raw_preprocessing._canonical(volume))
            brain, _ = raw_preprocessing._brain({name: volume}, {}, name)
            to_t1c = np.linalg.inv(made.motions[name] @ made.affines["t1c"]) @ volume.affine
            truth = grid.sample(
                made.brain.astype(np.float32), to_t1c, brain.shape, smooth=False, outside=0.0
            )
            scores[name] = _dice(brain, truth >= 0.5)
        yield f"{profile} {number}", scores


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return round(2 * float((one & other).sum()) / float(one.sum() + other.sum()), 4)


def _name(there: There) -> str:
    return " ".join(name for name, kept in zip(MODALITIES, there, strict=True) if kept)
