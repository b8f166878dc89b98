"""How often a scan is said to be unlike what the model learnt from: sound ones, and spoilt ones.

Phantoms of five scanners, ten patients each, at 3.75 mm; each is spoilt in every way after it was
prepared, and z-scored again. The cohort's histograms are those of the four other scanners, as if
2,000 patients had such scans, with the noise of four sites (noise multiplier 5). "Card" is what is
said with them, "alone" what is said without. Beside it the Dice that a small network expects, which
was pre-trained on phantoms of other scanners, and the Dice that it has.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from client.clinic.ood import Cohort, Familiarity, familiarity
from client.cohort.case_discovery import read_cohort
from client.imaging.preprocessing import Prepared, prepare
from client.networks.registry import build, load_arrays
from client.phantoms.cohort import write_cohort
from client.phantoms.profiles import PROFILES
from client.privacy.dp_histograms import noised_statistics, patient_vector
from client.segmentation.dice import dice
from client.segmentation.expected_dice import region_confidence
from client.segmentation.prediction import predict
from client.site.execution import ExecutionOptions
from common.records.weights import load
from common.regions import MODALITIES, labels_to_regions, regions_to_labels
from common.study.cohort_histograms import StatisticsOptions, added
from common.study.protocol import NetworkOptions, PreprocessingOptions
from tests.benchmarks.result import Measuring, Result, line

PATIENTS: Final = 10
PREDICTED: Final = 3
"""Scans of each scanner whose Dice is looked at."""
SIZE: Final = 64
SPACING_MM: Final = 3.75
COHORT: Final = 2000
ASKED: Final = StatisticsOptions(about=("intensities",), noise_multiplier=5.0)
WEIGHTS: Final = Path("deploy/demo/initial-segresnet.safetensors")
CROP: Final = (32, 32, 32)

Image = NDArray[np.float32]
Spoil = Callable[[Image, NDArray[np.bool_], np.random.Generator], Image]


def exchanged(one: str, other: str) -> Spoil:
    first, second = MODALITIES.index(one), MODALITIES.index(other)

    def spoil(image: Image, inside: NDArray[np.bool_], random: np.random.Generator) -> Image:
        image[[first, second]] = image[[second, first]]
        return image

    return spoil


def twice(shown: str, instead_of: str) -> Spoil:
    source, target = MODALITIES.index(shown), MODALITIES.index(instead_of)

    def spoil(image: Image, inside: NDArray[np.bool_], random: np.random.Generator) -> Image:
        image[target] = image[source]
        return image

    return spoil


def inverted(*names: str) -> Spoil:
    def spoil(image: Image, inside: NDArray[np.bool_], random: np.random.Generator) -> Image:
        for name in names:
            image[MODALITIES.index(name)] *= -1
        return image

    return spoil


def noisy(deviation: float) -> Spoil:
    def spoil(image: Image, inside: NDArray[np.bool_], random: np.random.Generator) -> Image:
        return image + random.normal(0, deviation, image.shape).astype(np.float32)

    return spoil


def blurred(image: Image, inside: NDArray[np.bool_], random: np.random.Generator) -> Image:
    return np.stack([ndimage.gaussian_filter(one, 2) for one in image])


def limb(image: Image, inside: NDArray[np.bool_], random: np.random.Generator) -> Image:
    """Bone with marrow, muscle and fat in rings."""
    depth = ndimage.distance_transform_edt(inside)
    depth /= depth.max()
    tissue = np.select([depth < 0.15, depth < 0.65, depth < 0.75], [1.0, 0.35, 0.02], 0.9)
    return np.stack([tissue + random.normal(0, 0.04, tissue.shape) for _ in MODALITIES]).astype(
        np.float32
    )


def texture(image: Image, inside: NDArray[np.bool_], random: np.random.Generator) -> Image:
    """Smooth blobs that are another in each sequence."""
    return ndimage.gaussian_filter(random.normal(size=image.shape), (0, 3, 3, 3)).astype(np.float32)


WAYS: Final[Mapping[str, Spoil]] = {
    "as it is": lambda image, *_: image,
    "T1 and T2 exchanged": exchanged("t1n", "t2w"),
    "T1c and FLAIR exchanged": exchanged("t1c", "t2f"),
    "T2 and FLAIR exchanged": exchanged("t2w", "t2f"),
    "T1 and T1c exchanged": exchanged("t1n", "t1c"),
    "T1 as T1c too": twice("t1n", "t1c"),
    "T2 as FLAIR too": twice("t2w", "t2f"),
    "T1c inverted": inverted("t1c"),
    "FLAIR inverted": inverted("t2f"),
    "all inverted": inverted(*MODALITIES),
    "noise as strong as contrast": noisy(1.0),
    "noise twice as strong": noisy(2.0),
    "blurred by 7.5 mm": blurred,
    "another body part": limb,
    "no body at all": texture,
}


def measure(folder: Path) -> Measuring:
    """Return how many scans are said to be unlike, spoilt in each way."""
    torch.set_num_threads(2)
    columns = ["scan", "alone", "card", "expected Dice", "Dice"]
    yield f"phantoms of {len(PROFILES)} scanners"
    network = build(NetworkOptions(name="segresnet", size="tiny"), seed=0)
    load_arrays(network, load(WEIGHTS))
    network.eval()
    scans = {name: phantoms(folder / name, name) for name in PROFILES}
    cohorts = {name: cohort_without(name, scans) for name in scans}
    rows: list[list[object]] = []
    facts = {}
    for way, spoil in WAYS.items():
        alone, card, expected, had = [], [], [], []
        for profile, some in scans.items():
            for number, scan in enumerate(some):
                spoilt = again(scan, spoil, seed=number)
                alone.append(bool(_looked(spoilt, None).unlike))
                card.append(bool(_looked(spoilt, cohorts[profile]).unlike))
                if number >= PREDICTED:
                    continue
                probabilities = predict(
                    network, spoilt.image, crop_size=CROP, execution=ExecutionOptions(prefetch=0)
                )
                labels = regions_to_labels(probabilities > 0.5)
                expected.append(statistics.fmean(region_confidence(probabilities, labels).values()))
                had.append(_dice(labels, scan))
        count = len(alone)
        facts[way] = {
            "scans": count,
            "alone": sum(alone) / count,
            "card": sum(card) / count,
            "expected_dice": statistics.median(expected),
            "dice": statistics.median(had),
        }
        rows.append([way, *(f"{100 * facts[way][key]:.0f} %" for key in ("alone", "card")),
                     facts[way]["expected_dice"], facts[way]["dice"]])  # fmt: skip
        yield line(columns, rows[-1])
    sound = facts["as it is"]
    return Result(
        title=f"Scans said to be unlike what the model learnt from, of {sound['scans']} each",
        columns=columns,
        rows=rows,
        promise=f"of sound scans at most 2 %: {100 * sound['card']:.1f} %",
        holds=sound["card"] <= 0.02,
        facts=facts,
    )


def phantoms(folder: Path, profile: str) -> list[Prepared]:
    site = list(PROFILES).index(profile)
    write_cohort(folder, PROFILES[profile], patients=PATIENTS, size=SIZE, seed=5, site=site)
    options = PreprocessingOptions(spacing_mm=SPACING_MM)
    return [prepare(case, options) for case in read_cohort(folder).cases]


def cohort_without(name: str, scans: Mapping[str, Sequence[Prepared]]) -> Cohort:
    """Return the histograms of a large federation of the other scanners."""
    sites = []
    for other in scans:
        if other == name:
            continue
        vectors = [patient_vector([scan], ASKED.histograms) for scan in scans[other]]
        many = (vectors[n % len(vectors)] for n in range(COHORT // (len(scans) - 1)))
        sites.append(noised_statistics(many, ASKED))
    return Cohort(added(sites), ASKED.deviation * len(sites) ** 0.5, len(sites))


def again(scan: Prepared, spoil: Spoil, *, seed: int) -> Prepared:
    """Return a scan that was spoilt and then normalised as ``prepare`` does."""
    inside = (scan.image != 0).any(axis=0)
    image = spoil(scan.image.copy(), inside, np.random.default_rng(seed))
    for one in image:
        values = one[inside]
        clipped = np.clip(values, *np.percentile(values, (0.5, 99.5)))
        one[inside] = (clipped - clipped.mean()) / clipped.std()
    image[:, ~inside] = 0
    return dataclasses.replace(scan, image=image)


def _looked(scan: Prepared, cohort: Cohort | None) -> Familiarity:
    return familiarity(scan, cohort, whole_tumour_ml=0.0)


def _dice(labels: NDArray[np.uint8], scan: Prepared) -> float:
    if scan.labels is None:
        raise RuntimeError("a phantom has no labels")
    pairs = zip(labels_to_regions(labels), labels_to_regions(scan.labels), strict=True)
    return statistics.fmean(dice(*pair) for pair in pairs)
